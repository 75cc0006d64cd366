//! What is lost is not shown while it is taken away, however long the store is in hearing of it.
//!
//! Owns which directories are being taken away, and waiting for that. Does not own the taking away
//! (`commit`).
//!
//! Who lists the parent is not shown what only this node has there, and waits for nothing. Who
//! looks a name of it up, opens it or lists within waits, and then asks the bucket.

use std::sync::Arc;

use tokio::sync::{Mutex, OwnedMutexGuard};

use super::commit::Root;
use super::{Checkpoint, Transaction};
use crate::fs::Fs;
use crate::types::{Ino, Name};

/// Free once nothing is left of what is taken away.
pub(super) type Gone = Arc<Mutex<()>>;

/// What is taken away, by the inode of its directory.
pub(super) type AllLeaving = Arc<parking_lot::Mutex<Vec<(Ino, Gone)>>>;

/// While one lives a lost transaction is taken away.
pub(super) struct Leaving {
    all: AllLeaving,
    until_gone: OwnedMutexGuard<()>,
}

impl Leaving {
    fn begin(all: &AllLeaving, root: Ino) -> Option<Self> {
        let gone = Gone::default();
        let until_gone = gone.clone().try_lock_owned().ok()?; // nobody else has it yet
        all.lock().push((root, gone));
        Some(Self { all: all.clone(), until_gone })
    }
}

impl Drop for Leaving {
    fn drop(&mut self) {
        let ours = OwnedMutexGuard::mutex(&self.until_gone);
        self.all.lock().retain(|(_, gone)| !Arc::ptr_eq(gone, ours));
    }
}

impl Fs {
    /// Takes out what is open, for it is lost. While what comes with it lives it is not shown;
    /// `None` where it goes on to be: somebody is about to write there again, or its directory is
    /// only being made.
    pub(super) fn take_lost(
        &self,
        checkpoint: &Checkpoint,
        goes: Root,
    ) -> Option<(Transaction, Option<Leaving>)> {
        let root = checkpoint.state.lock().open.as_ref()?.root;
        // Until the directory is made the root is its parent.
        let is_its_own = self.place(root).is_some_and(|place| {
            place.rel.is_root() && std::ptr::eq(&*place.checkpoint, checkpoint)
        });
        let (txn, leaving) = {
            let mut state = checkpoint.state.lock();
            let txn = state.lose_open()?;
            let hides = goes == Root::Goes && is_its_own && txn.root == root;
            let all = &self.checkpoints.leaving;
            (txn, hides.then(|| Leaving::begin(all, root)).flatten())
        };
        if leaving.is_some() {
            let name = self.namespace.lock().name_of(root);
            self.kernel_forgets(name);
        }
        Some((txn, leaving))
    }

    /// Has the kernel ask for a name again.
    pub(super) fn kernel_forgets(&self, name: Option<(Ino, Name)>) {
        if let (Some(kernel), Some((parent, name))) = (self.kernel.get(), name) {
            kernel.forget_name(parent, &name);
        }
    }

    /// The directories that are being taken away.
    pub(in crate::fs) fn leaving(&self) -> Vec<Ino> {
        self.checkpoints.leaving.lock().iter().map(|(root, _)| *root).collect()
    }

    /// Waits until nothing that an inode is or stands in is being taken away; whether it had to.
    pub(in crate::fs) async fn outlast_leaving(&self, ino: Ino) -> bool {
        let mut waited = false;
        while let Some(gone) = self.leaves_with(ino) {
            drop(gone.lock().await);
            waited = true;
        }
        waited
    }

    fn leaves_with(&self, ino: Ino) -> Option<Gone> {
        let leaving = self.checkpoints.leaving.lock().clone();
        if leaving.is_empty() {
            return None;
        }
        let namespace = self.namespace.lock();
        leaving.into_iter().find_map(|(root, gone)| namespace.is_below(ino, root).then_some(gone))
    }
}
