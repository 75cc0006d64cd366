//! The files the kernel passes through to: one registration per inode, shared by its handles.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use fuser::{BackingId, FileHandle, Generation, ReplyCreate, ReplyOpen};
use parking_lot::Mutex;

use super::convert::{attr, open_flags};
use crate::fs::{Entry, Fs, IoMode, Opened};

/// Inode -> its registration.
pub(super) type Backings = Arc<Mutex<HashMap<u64, Registration>>>;

pub(super) struct Registration {
    id: Arc<BackingId>,
    /// How many use it.
    handles: u32,
    /// The next handle is passed through to the same file, so it must not be another one's yet.
    _hold: Option<Arc<dyn Send + Sync>>,
}

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
    if let Some(known) = backings.get_mut(&ino) {
        known.handles += 1;
        return Some(known.id.clone());
    }
    match register(backing.file()) {
        Ok(id) => {
            let id = Arc::new(id);
            let registration = Registration { id: id.clone(), handles: 1, _hold: backing.hold() };
            backings.insert(ino, registration);
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
    let Some(known) = backings.get_mut(&ino) else { return };
    known.handles -= 1;
    if known.handles == 0 {
        let gone = backings.remove(&ino);
        drop(backings);
        drop(gone); // which may be the last that has a large file open
    }
}
