//! copy_file_range(2): by the store itself where that spares the way down and up, else refused, so
//! that the kernel reads and writes.
//!
//! It pays for a clean file of more than one part that is copied from its start into an empty one
//! which the kernel does not write by itself. Cost: 1 request per part, and 2 a call; close then
//! completes the upload.
//!
//! Owns which files are copied so, and what a copy still needs when its source goes. Does not own
//! the copying (`write`).

use std::sync::{Arc, Weak};

use tokio::sync::MutexGuard;

use super::Fs;
use super::error::Errno;
use super::handles::{FileHandle, IoMode, OpenFile};
use crate::types::{Ino, Key, Kind};
use crate::write::{Base, Copied, Staged, Taken};

/// What one call copies: the kernel takes up to 4 GiB for an answer, and whoever waits for one
/// can't be killed. All parts but those of the largest files divide it, so that none is sent twice.
const COPY_BYTES_MAX: u64 = 2 << 30;

/// What copy_file_range(2) asks for: handles, and places in bytes.
#[derive(Clone, Copy, Debug)]
pub struct CopyRange {
    pub from: u64,
    pub offset_in: u64,
    pub to: u64,
    pub offset_out: u64,
    pub len: u64,
}

impl Fs {
    /// How many bytes were copied, fewer than were asked for if there are more than
    /// [`COPY_BYTES_MAX`]. EOPNOTSUPP: not this way; nothing happened, and the kernel copies.
    pub async fn copy_file_range(&self, copy: CopyRange) -> Result<u32, Errno> {
        let (from, to) = (self.handles.file(copy.from)?, self.handles.file(copy.to)?);
        let same_place = copy.offset_in == copy.offset_out && from.ino != to.ino;
        if !same_place || to.mode != IoMode::Direct || self.writing_place(to.ino).is_some() {
            return Err(Errno::EOPNOTSUPP);
        }
        let work = self.work_at_both(from.ino, to.ino).await;
        let (source, _io) = both(&from, &to).await;
        let Some((staged, taken, bytes)) = self.take(&from, &to, copy)? else {
            return Err(Errno::EOPNOTSUPP);
        };
        drop((work, source)); // who opens or removes the source need not wait for the copy
        match staged.copy_taken(taken).await? {
            Copied::Done => Ok(bytes),
            Copied::Refused => Err(Errno::EOPNOTSUPP),
        }
    }

    /// Makes the range the destination's content, if a copy can. The caller holds both `io`s.
    fn take(
        &self,
        from: &FileHandle,
        to: &FileHandle,
        copy: CopyRange,
    ) -> Result<Option<(Arc<Staged>, Taken, u32)>, Errno> {
        let staged = to.file.state.lock().staged.clone();
        let (Some(source), Some(staged)) = (self.clean_object(from.ino)?, staged) else {
            return Ok(None);
        };
        let Some(key) = self.namespace.lock().key(to.ino) else { return Ok(None) };
        let bytes = copy.len.min(COPY_BYTES_MAX).min(source.size.saturating_sub(copy.offset_in));
        if bytes == 0 {
            return Ok(None);
        }
        staged.set_key(key);
        let taken = staged.take(&source, copy.offset_in..copy.offset_in + bytes)?;
        let Some(taken) = taken else { return Ok(None) };
        let mut copies = self.copies.lock();
        copies.retain(|copy| copy.upgrade().is_some_and(|copy| copy.source().is_some()));
        copies.push(Arc::downgrade(&staged));
        Ok(Some((staged, taken, bytes as u32)))
    }

    /// The object that is the content of a file as far as this node knows; of one that is being
    /// written or lost its name: none.
    fn clean_object(&self, ino: Ino) -> Result<Option<Base>, Errno> {
        let local = {
            let namespace = self.namespace.lock();
            let inode = namespace.get(ino).ok_or(Errno::ESTALE)?;
            inode.staged || !inode.linked || inode.kind != Kind::File
        };
        let version = if local { None } else { self.version(ino)? };
        Ok(version.map(|version| Base { key: version.key, etag: version.etag, size: version.size }))
    }

    /// Before objects go or are replaced: files open here that are copies of one get all they need
    /// of it. Where that fails nothing is held up: the copy is whole in the store already, and a
    /// read or change of it before its close finds the source gone, and fails.
    pub(super) async fn complete_copies(&self, going: impl Fn(&Key) -> bool) {
        let copies: Vec<Arc<Staged>> =
            self.copies.lock().iter().filter_map(Weak::upgrade).collect();
        for copy in copies {
            if !copy.source().is_some_and(|source| going(&source)) {
                continue;
            }
            if let Err(error) = copy.complete().await {
                tracing::warn!(?copy, %error, "a copy's source goes before the copy is here");
            }
        }
    }
}

/// Holds the `io` of both, in the order of inode numbers, as a rename does.
async fn both<'a>(
    from: &'a FileHandle,
    to: &'a FileHandle,
) -> (MutexGuard<'a, ()>, MutexGuard<'a, ()>) {
    let io = |handle: &'a FileHandle| -> &'a OpenFile { &handle.file };
    if from.ino < to.ino {
        let first = io(from).io.lock().await;
        (first, io(to).io.lock().await)
    } else {
        let first = io(to).io.lock().await;
        (io(from).io.lock().await, first)
    }
}
