//! Staged files the kernel passes through to: one registration per inode, shared by its handles.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use fuser::BackingId;
use parking_lot::Mutex;

use crate::fs::{Fs, IoMode, Opened};

/// Inode -> its registration, and how many handles use it.
pub(super) type Backings = Arc<Mutex<HashMap<u64, (Arc<BackingId>, u32)>>>;

/// The registration to pass through to; `None` if the kernel would not, and the handle is direct.
pub(super) fn back(
    fs: &Fs,
    backings: &Backings,
    ino: u64,
    opened: &mut Opened,
    register: impl FnOnce(&std::fs::File) -> io::Result<BackingId>,
) -> Option<Arc<BackingId>> {
    let staged = opened.backing.take()?;
    let mut backings = backings.lock();
    if let Some((id, handles)) = backings.get_mut(&ino) {
        *handles += 1;
        return Some(id.clone());
    }
    match register(staged.file()) {
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
