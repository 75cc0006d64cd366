//! Bytes up: one staged file for each inode that is open for writing, which becomes the object at
//! close.
//!
//! Owns staged files, their uploads, and the bounds on both. Does not own names, handles, when a
//! file is uploaded and under which condition, nor what becomes of an error (`fs`).
//!
//! # Overview
//!
//! [`Writer::stage`] makes a file on the staging disk, empty or standing for an object version (its
//! base) of which nothing is fetched yet. It is written through [`Staged::write`], or by the kernel
//! itself (passthrough), which we don't see. [`Staged::upload`] makes it the object: one PUT of a
//! small one, else an upload by parts. Parts that are full go up while the file is still being
//! written (`ahead`). A part that lies in unchanged bytes of the base is copied on the server, or
//! fetched if the store can't.
//!
//! [`Staged::take`] and [`Staged::copy_taken`] make a file that is empty so far the copy of an
//! object, part by part on the server: nothing comes down or goes up (`copying`).
//!
//! [`Staged::prepare`] sends all parts and leaves the completion to others (`prepare`): so a file
//! goes up that must not show before others do.
//!
//! # Consistency
//!
//! 1. An object is made by one PUT or one completion, so others see the old content or the new.
//! 2. What is noted as clean is the state of the file *before* the first byte was read: its
//!    version, which grows with each write of ours once the bytes are there, and in passthrough
//!    mode a mark on the file (`staging`). A write that comes while the file is read leaves it
//!    dirty.
//! 3. A part sent early counts at the close only if no write of ours touched it since, or in
//!    passthrough mode if the CRC64NVME of its bytes is still the one sent.
//! 4. Fetched bytes never replace written ones: both happen under the file's lock.
//! 5. Base bytes are fetched and copied under the base's ETag. If it changed, the error is
//!    [`BucketError::Precondition`](crate::bucket::BucketError), and what was written stays staged.
//! 6. After an upload the new object is the base, so the next one copies what did not change.
//! 7. A prepared upload holds one content and is its caller's; what a later change needs goes into
//!    another.
//!
//! # Retries
//!
//! Each request is retried by [`Bucket`]. What then fails, fails the upload; the file stays dirty,
//! and the parts that the store has are kept for the next try unless it refused. An upload that the
//! store has forgotten begins again by itself. A part number whose request was never answered is
//! not used for other bytes: the late request could win.
//!
//! # Cancellation
//!
//! Every future here may be dropped. An upload runs in a task of its own and goes on to its end;
//! the next call waits for it and finds the file clean, or tries again. A fetch notes each frame
//! once it is in the file. [`Writer::drained`] waits for all that still runs.
//!
//! # Crash consistency
//!
//! A file is acknowledged when it is in the bucket; or by [`Staged::acknowledge`] when it is synced
//! here and stands in the [`Journal`]. A daemon that dies leaves its staged files. The next one is
//! handed what the journal speaks of ([`Writer::left`], [`Writer::adopt`]) and moves all others to
//! `quarantine` beside the staging directory, but for those that bear a note that the bucket has
//! them as they are; so goes a dirty file that is dropped, prepared or not, unless the journal
//! speaks of it. Each bears the end of its key in its name. Parts of uploads that the journal knows
//! are used again, others are left to the store.

mod acknowledge;
mod ahead;
mod bodies;
mod buffers;
mod contents;
mod copying;
mod error;
mod fetch;
mod intent;
mod journal;
mod lull;
mod mapped;
mod multipart;
mod parts;
mod places;
mod prepare;
pub mod quarantine;
mod queue;
mod ranges;
mod shared;
mod spare;
mod staged;
mod staging;
mod state;
mod transfer;
mod unused;
mod uploader;

pub mod extents;

#[cfg(test)]
mod tests;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::runtime::Handle;

use crate::bucket::Bucket;
use crate::clock::{Clock, ulid};
use crate::types::Key;

use places::Places;
use shared::{Counters, DirtyBound, Shared, SharedParts};
use staging::StagingDir;

pub use acknowledge::{Adopted, Closing};
pub use copying::{Copied, Taken};
pub use error::WriteError;
pub use intent::{Before, CloseId, Intent};
pub use journal::Journal;
pub use places::Place as FilePlace;
pub use quarantine::Why;
pub use queue::{Next, Queue, Role};
pub use spare::Content;
pub use staged::{HeldBack, Staged};
pub use state::{Base, Prepared, Stamp, Uploaded};

/// The size of the first two thousand parts: large enough that a round trip hardly shows, small
/// enough that the last of a file, which go with fewer beside them, take no time of their own (of
/// 16 MiB they made an upload of 512 MiB near a store a tenth longer).
pub const PART_BYTES_DEFAULT: u64 = 8 << 20;
/// A file up to this size goes by one PUT: two parts beside each other are not quicker by the two
/// round trips that they cost.
pub const PUT_BYTES_MAX_DEFAULT: u64 = 16 << 20;
/// Parts of one file on their way at a time.
pub const PARALLEL_PARTS_DEFAULT: usize = 8;
/// How long a writer over the dirty bound waits: as long as an operation of the store may take.
pub const DIRTY_WAIT_DEFAULT: Duration = Duration::from_secs(120);

/// How the write path is set up.
#[derive(Debug, Clone)]
pub struct WriteConfig {
    /// Where staged files live; made with mode 0700. Used by one daemon at a time.
    pub dir: PathBuf,
    /// See [`PART_BYTES_DEFAULT`]; later parts are larger, so that a store's number of parts does.
    pub part_bytes: u64,
    /// See [`PUT_BYTES_MAX_DEFAULT`]; a part at least.
    pub put_bytes_max: u64,
    /// Parts of one file on their way at a time.
    pub parallel_parts: usize,
    /// The memory for bodies, over all files. One part that is larger than all of it (by default
    /// of files over 250 GiB) is had alone.
    pub bodies_bytes_max: u64,
    /// Staged bytes not yet in the bucket; past it writers wait.
    pub dirty_bytes_max: u64,
    /// Staged files; past it [`Writer::place`] waits.
    pub staged_files_max: usize,
    /// Uploads that run at a time.
    pub uploads_max: usize,
    /// Whether uploads that nobody waits for give way to writers (`lull`): not where each close
    /// waits for its upload.
    pub gives_way: bool,
    /// How long they wait, before ENOSPC or ENFILE.
    pub wait_max: Duration,
}

/// The write path of a mount.
pub struct Writer {
    shared: Arc<Shared>,
    quarantined_at_start: u64,
    left: Mutex<Vec<Intent>>,
}

impl Writer {
    /// Opens the staging directory. What a dead daemon left there goes to `quarantine` beside it,
    /// but for what the journal speaks of ([`Writer::left`]). Fails where there is a journal that
    /// can't be read. Must be called within a tokio runtime, which then carries the uploads.
    pub fn new(
        bucket: Arc<Bucket>,
        clock: Arc<dyn Clock>,
        config: WriteConfig,
    ) -> io::Result<Arc<Self>> {
        let runtime = Handle::try_current().map_err(io::Error::other)?;
        let (journal, left) = Journal::open(&config.dir, clock.random())?.unzip();
        let left = left.unwrap_or_default();
        let kept = left.iter().map(|intent| intent.file.as_str()).collect();
        let (staging, quarantined_at_start) = StagingDir::open(&config.dir, &kept)?;
        let shared = Shared::new(SharedParts {
            bucket,
            clock,
            staging,
            part_bytes: config.part_bytes,
            put_bytes_max: config.put_bytes_max,
            parallel_parts: config.parallel_parts,
            bodies_bytes_max: config.bodies_bytes_max,
            dirty: DirtyBound::new(config.dirty_bytes_max, config.wait_max),
            places: Places::new(config.staged_files_max, config.wait_max),
            uploads_max: config.uploads_max,
            gives_way: config.gives_way,
            runtime,
        });
        if let Some(journal) = journal {
            let _ = shared.journal.set(journal); // the first, so nobody set one before
        }
        Ok(Arc::new(Self { shared, quarantined_at_start, left: Mutex::new(left) }))
    }

    /// A staged file for `key`: empty, or with the content of `base`, which is fetched as it is
    /// needed. No request. ENOSPC where the staging disk is all but full.
    pub fn stage(&self, key: Key, base: Option<Base>) -> Result<Arc<Staged>, WriteError> {
        let disk = self.shared.staging.create(&ulid(&*self.shared.clock), &key)?;
        Ok(Staged::new(self.shared.clone(), disk, key, base)?)
    }

    /// A staged file with all of `base`: the file that `bring` moves to the path it is given, on
    /// the disk of the staging directory. No request. ENOSPC as above, and what `bring` fails of.
    pub fn stage_whole(
        &self,
        key: Key,
        base: Base,
        bring: impl FnOnce(&Path) -> io::Result<()>,
    ) -> Result<Arc<Staged>, WriteError> {
        let id = ulid(&*self.shared.clock);
        let disk = self.shared.staging.take_over(&id, &key, bring)?;
        let size = base.size;
        let staged = Staged::new(self.shared.clone(), disk, key, Some(base))?;
        staged.state.lock().extents.fetched(0..size);
        Ok(staged)
    }

    /// An empty staged file in the place of `base`, of which an upload of ours knows the content:
    /// what of it is written again is not sent again. No request. ENOSPC as above.
    pub fn stage_over(
        &self,
        key: Key,
        base: Base,
        content: &Content,
    ) -> Result<Arc<Staged>, WriteError> {
        let staged = self.stage(key, Some(base))?;
        let mut state = staged.state.lock();
        if let Some(clean) = &mut state.clean {
            clean.sums = content.sums();
        }
        staged.truncate_in(&mut state, 0)?;
        drop(state);
        Ok(staged)
    }

    /// Waits until one more file may be staged; it may be while the place is held. Nobody who waits
    /// here may hold what another needs to close a file. ENFILE if it takes too long. No request.
    pub async fn place(&self) -> Result<FilePlace, WriteError> {
        self.shared.places.wait().await
    }

    /// Whether the next file that is to be staged has to wait. No request.
    pub fn is_out_of_places(&self) -> bool {
        self.shared.places.is_full()
    }

    /// Aborts a prepared upload that nothing will ever complete; nobody waits for it. One request.
    pub fn abort(&self, key: &Key, upload: &str) {
        self.shared.abort(key.clone(), upload.to_owned());
    }

    /// Whether the staging disk has no room left, so that a write the kernel did by itself may have
    /// failed unseen. No request.
    pub fn is_full(&self) -> bool {
        self.shared.staging.is_full()
    }

    /// Whether as much waits for the bucket as may. No request.
    pub fn is_dirty_full(&self) -> bool {
        self.shared.dirty.is_full()
    }

    /// Whether writers may soon wait for files to go up. No request.
    pub fn is_pressed(&self) -> bool {
        self.shared.dirty.is_half_full() || self.shared.places.is_full()
    }

    /// How long uploads that nobody waits for give way to writers before they look again; `None`:
    /// they may go. No request.
    pub fn gives_way(&self) -> Option<Duration> {
        self.shared.gives_way()
    }

    /// Waits until no upload runs and no abort is under way; what begins meanwhile counts too.
    pub async fn drained(&self) {
        self.shared.tasks.finished().await;
    }

    pub fn status(&self) -> WriteStatus {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let Counters { quarantined_files, .. } = &self.shared.counters;
        let counters = &self.shared.counters;
        WriteStatus {
            staged_files: of(&counters.staged_files),
            staged_files_max: self.shared.places.max() as u64,
            dirty_bytes: self.shared.dirty.bytes(),
            dirty_bytes_max: self.shared.dirty.max(),
            uploads_max: self.shared.uploads_max as u64,
            uploads_running: of(&counters.uploads_running),
            uploads_done: of(&counters.uploads_done),
            uploads_failed: of(&counters.uploads_failed),
            parts_sent: of(&counters.parts_sent),
            parts_sent_ahead: of(&counters.parts_sent_ahead),
            parts_copied: of(&counters.parts_copied),
            parts_kept: of(&counters.parts_kept),
            uploads_spared: of(&counters.uploads_spared),
            bytes_sent: of(&counters.bytes_sent),
            bytes_fetched: of(&counters.bytes_fetched),
            quarantined_files: of(quarantined_files) + self.quarantined_at_start,
        }
    }
}

/// What the write path is doing and has done since the mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct WriteStatus {
    pub staged_files: u64,
    pub staged_files_max: u64,
    /// Staged bytes that the bucket does not have.
    pub dirty_bytes: u64,
    pub dirty_bytes_max: u64,
    pub uploads_running: u64,
    pub uploads_max: u64,
    pub uploads_done: u64,
    pub uploads_failed: u64,
    /// Parts whose bytes were sent, and how many of them before the close.
    pub parts_sent: u64,
    pub parts_sent_ahead: u64,
    /// Parts that the store copied, and parts found there as they had to be.
    pub parts_copied: u64,
    pub parts_kept: u64,
    /// Of the uploads done, those that sent nothing: the object had the content already.
    pub uploads_spared: u64,
    pub bytes_sent: u64,
    /// Bytes of bases that had to be fetched.
    pub bytes_fetched: u64,
    /// Files that never reached the bucket and were put aside, at the start and since.
    pub quarantined_files: u64,
}
