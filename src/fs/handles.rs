//! Open files and directories: what the kernel's handle numbers stand for, and what all handles of
//! one inode share.
//!
//! Owns the table and the I/O mode of each open inode. Does not own contents.
//!
//! The kernel fixes how an inode is read and written while it is open: once a handle passes through
//! to a staged file, every later one must; and none may while a cached one is open.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::mpsc;

use super::error::Errno;
use crate::checkpoint::record::TxnId;
use crate::namespace::listing::Listing;
use crate::namespace::{Asked, seen::SeenEntry};
use crate::read::{ReadHandle, Version};
use crate::types::{Ino, Name};
use crate::write::{CloseId, Staged, Stamp};

/// How the kernel does the I/O of a handle.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IoMode {
    /// Through the page cache; reads come to us in read-ahead windows.
    Cached,
    /// Every read and write comes to us.
    Direct,
    /// Straight to and from the staged file, or from a whole cached one.
    Passthrough,
}

/// What the kernel passes through to.
#[derive(Clone, Debug)]
pub enum Backing {
    Staged(Arc<Staged>),
    Cached(Arc<std::fs::File>),
}

impl Backing {
    pub fn file(&self) -> &std::fs::File {
        match self {
            Self::Staged(staged) => staged.file(),
            Self::Cached(file) => file,
        }
    }

    /// While what it returns lives, the file is no other one's. `None`: it never is.
    pub fn hold(&self) -> Option<Arc<dyn Send + Sync>> {
        match self {
            Self::Staged(staged) => Some(staged.hold()),
            // Given to whoever writes it only if nobody else of us has it; the kernel, which may
            // have it open, then keeps that one from being used again.
            Self::Cached(_) => None,
        }
    }
}

/// A whole cached file that the kernel reads by itself, and what keeps it in the cache.
#[derive(Debug)]
pub struct Passing {
    pub file: Arc<std::fs::File>,
    pub reading: ReadHandle,
}

/// What the handles of one inode share.
#[derive(Debug, Default)]
pub struct OpenFile {
    /// Held while the inode's object is being changed: upload, unlink, rename, truncate.
    pub io: tokio::sync::Mutex<()>,
    pub state: Mutex<OpenState>,
    /// An upload in the background, which does not hold `io`, has ended.
    pub idle: tokio::sync::Notify,
    /// A handle was released.
    pub released: tokio::sync::Notify,
}

impl OpenFile {
    /// Whether something that was acknowledged waits for the bucket.
    pub fn is_acknowledged(&self) -> bool {
        self.state.lock().acknowledged.is_some()
    }

    /// Takes `io` once no upload runs in the background.
    pub async fn quiet(&self) -> tokio::sync::MutexGuard<'_, ()> {
        loop {
            let io = self.io.lock().await;
            let idle = self.idle.notified();
            tokio::pin!(idle);
            idle.as_mut().enable(); // before the look, so that what ends in between wakes us
            if self.state.lock().uploading == 0 {
                return io;
            }
            drop(io);
            idle.await;
        }
    }
}

#[derive(Debug, Default)]
pub struct OpenState {
    /// The content, while it is being written, or still at hand from a write just done.
    pub staged: Option<Arc<Staged>>,
    /// Reads of an unlinked file whose object is gone.
    pub orphan: Option<Arc<std::fs::File>>,
    pub reading: Option<(Version, Arc<ReadHandle>)>,
    /// What readers pass through to while nothing is staged. The kernel takes one file for all
    /// handles of an inode, so a writer that comes has this very file staged.
    pub passing: Option<Passing>,
    /// A small file whole, as it came with the answer at its open.
    pub small: Option<(Version, Bytes)>,
    pub writers: u32,
    pub cached: u32,
    pub direct: u32,
    pub passthrough: u32,
    /// Since the last writer was gone it was open in a way that may be mapped to be written: a
    /// store may leave no sign but the bytes.
    pub mapped: bool,
    /// The last close was a killed process's: what it left is not to be published.
    pub torn: bool,
    /// The staging disk was full when the file was closed after writes that only the kernel saw:
    /// some of them may have failed. Nothing of it is published until it is emptied or removed.
    pub short: bool,
    /// It was made without asking what stands at its name: its first upload does. Mode, owner and
    /// group that it was made with.
    pub unasked: Option<Access>,
    /// An upload of it may have been done at its name, though none was seen to come through.
    pub untold: bool,
    /// The transaction that it was opened in to be written.
    pub written_in: Option<TxnId>,
    /// It was part of a transaction that is lost: its bytes go to the quarantine.
    pub lost: bool,
    /// The last close that came before it was opened to be written.
    pub opened: CloseId,
    /// What was acknowledged of `staged` and waits for the bucket.
    pub acknowledged: Option<Acknowledged>,
    /// When a version that was acknowledged arrived in the bucket last.
    pub went_up: Option<Instant>,
    /// It was opened to be written with the content that it had.
    pub is_added_to: bool,
    /// Acknowledged versions that are being written over, the oldest first.
    pub aside: Vec<(CloseId, Arc<Staged>)>,
    /// Uploads that run in the background.
    pub uploading: u32,
    /// A failed upload: sticks until the file is written again, and that is uploaded.
    pub failed: Option<Failure>,
}

/// Mode, owner and group of a file.
pub type Access = (u32, u32, u32);

/// The version of an open file that waits for the bucket.
#[derive(Debug, Clone, Copy)]
pub struct Acknowledged {
    pub id: CloseId,
    pub stamp: Stamp,
    /// In a checkpoint directory: its parts are not in the store yet.
    pub unprepared: bool,
    /// It was written since, though no time of the file's says so.
    pub stale: bool,
}

/// An upload that failed.
#[derive(Clone, Copy, Debug)]
pub struct Failure {
    pub errno: Errno,
    /// The file as it was then: once it is written, an upload is worth another try.
    pub stamp: Option<Stamp>,
}

impl OpenState {
    pub fn handles(&self) -> u32 {
        self.cached + self.direct + self.passthrough
    }

    pub fn count(&mut self, mode: IoMode) -> &mut u32 {
        match mode {
            IoMode::Cached => &mut self.cached,
            IoMode::Direct => &mut self.direct,
            IoMode::Passthrough => &mut self.passthrough,
        }
    }

    /// Notes a failure, which sticks to the content as it is now.
    pub fn fail(&mut self, errno: Errno) {
        let stamp = self.staged.as_ref().map(|staged| staged.stamp());
        self.failed = Some(Failure { errno, stamp });
    }

    /// Whether the bucket may have an object at its name that nobody asked for, or that no answer
    /// told of. Once so it stays so, until that is gone.
    pub fn may_be_in_bucket(&mut self) -> bool {
        let aside = self.aside.iter().map(|(_, staged)| staged);
        self.untold |= self.staged.iter().chain(aside).any(|staged| staged.may_have_gone_up());
        self.untold || self.unasked.is_some()
    }

    /// Nothing is in the bucket at its name, or what was is gone.
    pub fn is_not_in_bucket(&mut self) {
        (self.untold, self.unasked) = (false, None);
    }

    /// The failure that close, fsync and rename repeat: of a file that was not written since.
    pub fn stuck(&self) -> Option<Errno> {
        let failed = self.failed?;
        let written = match (&self.staged, &failed.stamp) {
            (Some(staged), Some(stamp)) => staged.is_written_since(stamp),
            _ => false,
        };
        (!written).then_some(failed.errno)
    }

    /// The file for a handle that passes through.
    pub fn backing(&self) -> Option<Backing> {
        let staged = self.staged.clone().map(Backing::Staged);
        staged
            .or_else(|| self.passing.as_ref().map(|passing| Backing::Cached(passing.file.clone())))
    }

    /// Whether the content is what was acknowledged and waits for the bucket.
    pub fn holds_acknowledged(&self) -> bool {
        let Some((now, staged)) = self.acknowledged.as_ref().zip(self.staged.as_ref()) else {
            return false;
        };
        !now.stale && !staged.is_written_since(&now.stamp)
    }

    /// The mode the next handle must have. `may_pass`: the kernel, the options and the file's mode
    /// allow passthrough.
    pub fn choose_mode(&self, may_pass: bool) -> IoMode {
        let whole = match &self.staged {
            Some(staged) => staged.is_complete(),
            None => self.passing.is_some(),
        };
        if self.passthrough > 0 || (may_pass && whole && self.cached == 0 && self.direct == 0) {
            IoMode::Passthrough
        } else if self.staged.is_some() || self.orphan.is_some() {
            IoMode::Direct
        } else {
            IoMode::Cached
        }
    }
}

/// A directory being read: one listing, from which the kernel takes entries by offset.
#[derive(Debug)]
pub struct OpenDirectory {
    pub ino: Ino,
    pub listing: tokio::sync::Mutex<Listed>,
}

/// What an open directory is read from.
#[derive(Debug, Default)]
pub struct Listed {
    /// What was told so far, in order. Nothing, and nothing to come: not asked for yet.
    pub told: Vec<Arc<Snapshot>>,
    /// The rest of a long one.
    pub to_come: Option<mpsc::Receiver<Result<Snapshot, Errno>>>,
    /// It broke off here: so does every read that goes on.
    pub failed: Option<Errno>,
    /// Whether a read from the start has used it.
    pub read: bool,
}

impl Listed {
    /// What is told in one.
    pub fn whole(snapshot: Snapshot) -> Self {
        Self { told: vec![Arc::new(snapshot)], ..Self::default() }
    }

    pub fn is_asked(&self) -> bool {
        !self.told.is_empty() || self.to_come.is_some()
    }

    /// The part with an entry, once it is told; past the end one without it.
    pub async fn part_with(&mut self, index: usize) -> Result<Arc<Snapshot>, Errno> {
        loop {
            let with = self.told.iter().find(|part| index < part.first + part.entries.len());
            let last = self.told.last().filter(|_| self.to_come.is_none());
            match (with, self.failed) {
                (Some(part), _) => return Ok(part.clone()),
                (None, Some(errno)) => return Err(errno),
                (None, None) => {}
            }
            if let Some(part) = last {
                return Ok(part.clone());
            }
            let Some(to_come) = &mut self.to_come else { return Err(Errno::EIO) };
            match to_come.recv().await {
                Some(Ok(part)) => self.told.push(Arc::new(part)),
                Some(Err(errno)) => {
                    (self.failed, self.to_come) = (Some(errno), None);
                    return Err(errno);
                }
                None => self.to_come = None,
            }
        }
    }
}

/// A directory as one LIST told it, or a part of that.
#[derive(Debug)]
pub struct Snapshot {
    pub asked: Asked,
    /// The place of the first entry in the whole.
    pub first: usize,
    pub entries: Vec<(Name, SnapshotEntry)>,
}

#[derive(Clone, Debug)]
pub enum SnapshotEntry {
    /// As the bucket has it.
    Seen(SeenEntry),
    /// Only this node knows of it yet.
    Local(Ino),
}

impl Snapshot {
    pub fn new(asked: Asked, listing: Listing, local: Vec<(Name, Ino)>) -> Self {
        let mut listed = listing.entries;
        let mut entries = Vec::with_capacity(listed.len() + local.len());
        for (name, ino) in local {
            listed.remove(&name);
            entries.push((name, SnapshotEntry::Local(ino)));
        }
        entries.extend(listed.into_iter().map(|(name, seen)| (name, SnapshotEntry::Seen(seen))));
        entries.sort_by(|a, b| a.0.cmp(&b.0));
        Self { asked, first: 0, entries }
    }
}

#[derive(Clone, Debug)]
pub enum Handle {
    File(FileHandle),
    Directory(Arc<OpenDirectory>),
}

#[derive(Clone, Debug)]
pub struct FileHandle {
    pub ino: Ino,
    /// The thread that opened it.
    pub opener: u32,
    pub file: Arc<OpenFile>,
    pub writable: bool,
    pub append: bool,
    pub mode: IoMode,
}

/// The kernel's handle numbers, and the files that are open or still hold something.
#[derive(Debug, Default)]
pub struct Handles {
    next: AtomicU64,
    handles: Mutex<HashMap<u64, Handle>>,
    files: Mutex<HashMap<Ino, Arc<OpenFile>>>,
}

impl Handles {
    pub fn add(&self, handle: Handle) -> u64 {
        let number = self.next.fetch_add(1, Ordering::Relaxed) + 1;
        self.handles.lock().insert(number, handle);
        number
    }

    pub fn file(&self, number: u64) -> Result<FileHandle, Errno> {
        match self.handles.lock().get(&number) {
            Some(Handle::File(handle)) => Ok(handle.clone()),
            _ => Err(Errno::EBADF),
        }
    }

    pub fn directory(&self, number: u64) -> Result<Arc<OpenDirectory>, Errno> {
        match self.handles.lock().get(&number) {
            Some(Handle::Directory(handle)) => Ok(handle.clone()),
            _ => Err(Errno::EBADF),
        }
    }

    pub fn set_mode(&self, number: u64, mode: IoMode) {
        if let Some(Handle::File(handle)) = self.handles.lock().get_mut(&number) {
            handle.mode = mode;
        }
    }

    pub fn remove(&self, number: u64) -> Option<Handle> {
        self.handles.lock().remove(&number)
    }

    pub fn len(&self) -> usize {
        self.handles.lock().len()
    }

    pub fn is_empty(&self) -> bool {
        self.handles.lock().is_empty()
    }

    /// What the handles of the inode share; made if nobody has it open.
    pub fn shared(&self, ino: Ino) -> Arc<OpenFile> {
        self.files.lock().entry(ino).or_default().clone()
    }

    pub fn shared_if_any(&self, ino: Ino) -> Option<Arc<OpenFile>> {
        self.files.lock().get(&ino).cloned()
    }

    /// Drops what nobody has open and that holds nothing.
    pub fn tidy(&self, ino: Ino) {
        let mut files = self.files.lock();
        let idle = files.get(&ino).is_some_and(|file| {
            let state = file.state.lock();
            Arc::strong_count(file) == 1
                && state.handles() == 0
                && state.staged.is_none()
                && state.aside.is_empty()
                && state.failed.is_none()
        });
        if idle {
            files.remove(&ino);
        }
    }

    pub fn all_files(&self) -> Vec<(Ino, Arc<OpenFile>)> {
        self.files.lock().iter().map(|(ino, file)| (*ino, file.clone())).collect()
    }
}
