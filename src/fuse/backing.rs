//! The files the kernel passes through to: one registration per inode, shared by its handles.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use fuser::{BackingId, FileHandle, Generation, ReplyCreate, ReplyOpen};
use parking_lot::Mutex;

use super::convert::{attr, open_flags};
use crate::fs::{Entry, Fs, IoMode, Opened};

/// Inode -> its registration, and how many handles use it.
pub(super) type Backings = Arc<Mutex<HashMap<u64, (Arc<BackingId>, u32)>>>;

pub(super) fn reply_opened(
    fs: &Fs,
    backings: &Backings,
    ino: u64,
    mut opened: Opened,
    reply: ReplyOpen,
) {
    let register = |file: &std::fs::File| reply.open_backing(file);
    let backing = back(fs, backings, ino, &mut opened, register);
    let (handle, flags) = (FileHandle(opened.handle), open_flags(&opened));
    match backing {
        Some(id) => reply.opened_passthrough(handle, flags, &id),
        None => reply.opened(handle, flags),
    }
}

pub(super) fn reply_created(
    fs: &Fs,
    backings: &Backings,
    entry: &Entry,
    mut opened: Opened,
    reply: ReplyCreate,
) {
    let register = |file: &std::fs::File| reply.open_backing(file);
    let backing = back(fs, backings, entry.stat.ino.0, &mut opened, register);
    let (handle, flags) = (FileHandle(opened.handle), open_flags(&opened));
    let (ttl, attr, generation) = (entry.ttl, attr(&entry.stat), Generation(0));
    match backing {
        Some(id) => reply.created_passthrough(&ttl, &attr, generation, handle, flags, &id),
        None => reply.created(&ttl, &attr, generation, handle, flags),
    }
}

/// The registration to pass through to; `None` if the kernel would not, and the handle is direct.
fn back(
    fs: &Fs,
    backings: &Backings,
    ino: u64,
    opened: &mut Opened,
    register: impl FnOnce(&std::fs::File) -> io::Result<BackingId>,
) -> Option<Arc<BackingId>> {
    let backing = opened.backing.take()?;
    let mut backings = backings.lock();
    if let Some((id, handles)) = backings.get_mut(&ino) {
        *handles += 1;
        return Some(id.clone());
    }
    match register(backing.file()) {
        Ok(id) => {
            let id = Arc::new(id);
            backings.insert(ino, (id.clone(), 1));
            Some(id)
        }
        Err(error) => {
            tracing::warn!(%error, "the kernel does not pass through; using direct I/O");
            fs.refuse_passthrough(opened.handle);
            opened.mode = IoMode::Direct;
            None
        }
    }
}

pub(super) fn unback(backings: &Backings, ino: u64) {
    let mut backings = backings.lock();
    let Some((_, handles)) = backings.get_mut(&ino) else { return };
    *handles -= 1;
    if *handles == 0 {
        backings.remove(&ino);
    }
}
