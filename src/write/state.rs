//! What is known of a staged file.
//!
//! Owns the words for it. Does not own the rules between them (`staged`, `extents`), nor what is
//! under way (`transfer`).

use std::time::SystemTime;

use super::extents::Extents;
use super::intent::CloseId;
use super::quarantine::Why;
use super::staging::Mark;
use crate::bucket::Metadata;
use crate::types::{ETag, Key};

/// A single small read or write brings a part's eighth, 1 MiB: about what a fast link moves in a
/// round trip. A sequential reader comes to a whole part.
const BLOCKS_PER_PART: u64 = 8;

/// Content that a staged file starts from: an object version, not yet fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Base {
    pub key: Key,
    pub etag: ETag,
    pub size: u64,
}

/// What an upload made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uploaded {
    pub etag: ETag,
    pub size: u64,
    /// When the staged bytes were last changed, as of this upload.
    pub modified: SystemTime,
}

/// What [`Staged::prepare`](super::Staged::prepare) made: an upload with all its parts in the
/// store, that wants nothing but completion.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prepared {
    pub key: Key,
    /// The id that [`Bucket`](crate::bucket::Bucket) gave; any mount may complete it.
    pub upload: String,
    /// The ETags of all parts, in order; at least one.
    pub parts: Vec<String>,
    pub size: u64,
    /// CRC64NVME of the whole content; `None` if the store copied some of it by itself.
    pub crc: Option<u64>,
    /// When the content last changed.
    pub modified: SystemTime,
}

/// A state of a staged file, to tell later whether it was written since.
#[derive(Debug, Clone, Copy)]
pub struct Stamp {
    pub(super) version: u64,
    /// In passthrough mode; `None`: it can't be told.
    pub(super) mark: Option<Mark>,
}

/// Who writes into the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// Only we do.
    Own,
    /// The kernel too, unseen.
    Passthrough,
}

/// What the bucket holds of the file, and of which state of the file that is true.
#[derive(Debug, Clone)]
pub(super) struct Clean {
    pub version: u64,
    pub key: Key,
    /// In passthrough mode; `None`: the file may have changed since.
    pub mark: Option<Mark>,
    pub object: Uploaded,
    /// What the object is made of; empty for a base that was not ours.
    pub sums: Vec<Sum>,
}

impl Clean {
    /// What is known of a base that no upload of this file made.
    pub fn of(base: &Base, version: u64, modified: SystemTime, sums: Vec<Sum>) -> Self {
        let Base { key, etag, size } = base.clone();
        let object = Uploaded { etag, size, modified };
        Self { version, key, mark: None, object, sums }
    }
}

/// A prepared upload, and of which state of the file it is the content.
#[derive(Debug, Clone)]
pub(super) struct Ready {
    pub version: u64,
    pub metadata: Metadata,
    /// As in [`Clean`].
    pub mark: Option<Mark>,
    pub prepared: Prepared,
    pub sums: Vec<Sum>,
}

pub(super) struct State {
    pub key: Key,
    pub metadata: Metadata,
    pub base: Option<Base>,
    pub extents: Extents,
    pub version: u64,
    pub mode: Mode,
    pub clean: Option<Clean>,
    /// What was prepared last and is not the base, as far as we know.
    pub ready: Option<Ready>,
    /// The last object that we made.
    pub published: Option<Uploaded>,
    pub discarded: bool,
    /// Where an upload of it was tried last, none of which has been seen to come through.
    pub tried_at: Option<Key>,
    /// The version that refused an upload and was found to have other bytes.
    pub compared: Option<ETag>,
    /// The journal's entry that stands for it, and the CRC64NVME of what was acknowledged: if it is
    /// dropped dirty it stays where it is.
    pub kept: Option<(CloseId, u64)>,
    /// What to say of it in quarantine.
    pub why: Why,
    pub ahead: Ahead,
    /// The modification time to show, and in passthrough mode the time on disk for which it stands.
    pub modified: SystemTime,
    pub modified_on_disk: Option<SystemTime>,
    /// What this file counts for in the dirty bound.
    pub charged: u64,
}

/// A stretch of an uploaded object, in order, with the CRC64NVME of its bytes where they went
/// through our hands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sum {
    pub len: u64,
    pub crc: Option<u64>,
}

/// The file as it is when an upload begins.
pub(super) struct Snapshot {
    pub version: u64,
    pub mark: Option<Mark>,
    pub modified: SystemTime,
    pub size: u64,
    pub key: Key,
    pub metadata: Metadata,
    pub base: Option<Base>,
    /// What the bucket was last known to hold under this base.
    pub sums: Vec<Sum>,
}

/// How far a file was sent ahead.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    /// The next part to send.
    pub next: u32,
    pub running: bool,
    /// After a failure: the close will find out whether the store is well again.
    pub stopped: bool,
    /// It gave way to writers: to be looked at again.
    pub gave_way: bool,
    /// Uploads that wait for the sending to end.
    pub closing: u32,
    /// Size and time of the file at the last look.
    pub seen: Option<(u64, SystemTime)>,
}

impl Ahead {
    /// The file was cut at `len`. Only an empty file begins anew, and not while parts of the old
    /// content are on their way: two requests for one part number must not race.
    pub fn cut(&mut self, len: u64) {
        if len == 0 && !self.running {
            self.begin_again();
        }
    }

    pub fn begin_again(&mut self) {
        (self.next, self.stopped) = (0, false);
    }
}

/// A run of fetches, each where the last ended.
#[derive(Debug, Default)]
pub(super) struct Streak {
    pub next: u64,
    block: u64,
}

impl Streak {
    /// How much to bring at once from `offset` on.
    pub fn block_at(&mut self, offset: u64, part_bytes: u64) -> u64 {
        let goes_on = self.block > 0 && offset == self.next;
        let smallest = (part_bytes / BLOCKS_PER_PART).max(1);
        self.block = if goes_on { (self.block * 2).min(part_bytes) } else { smallest };
        self.block
    }
}
