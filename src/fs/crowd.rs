//! The bound on names that are known: the kernel is asked to forget those not in use.
//!
//! Owns when and which. Does not own the names (`namespace`), nor how the kernel is told (`fuse`).

use std::time::Duration;

use super::Fs;
use super::error::Errno;
use crate::types::{Ino, Name};

/// From this part of the bound on, in quarters, names are forgotten, down to half of it.
const CROWDED_QUARTERS: usize = 3;
/// So long the kernel has to forget what it was asked to, before it is asked for more.
const FORGET_INTERVAL: Duration = Duration::from_secs(1);

/// The kernel forgets within milliseconds; where it does not, everything is in use.
const WAIT: Duration = Duration::from_millis(50);
/// Waits in all: three times as long as until the kernel is asked again.
const WAITS_MAX: u32 = 60;

impl Fs {
    /// Waits until one more name may be known, while those not in use go; ENFILE where all are.
    pub(super) async fn room_for_a_name(&self) -> Result<(), Errno> {
        for _ in 0..WAITS_MAX {
            if self.namespace.lock().len() < self.config.inodes_max {
                return Ok(());
            }
            self.thin_out();
            tokio::time::sleep(WAIT).await;
        }
        Err(Errno::ENFILE)
    }

    /// Has the kernel forget names that nobody uses, where there are many.
    pub(super) fn thin_out(&self) {
        let max = self.config.inodes_max;
        if self.namespace.lock().len() < max / 4 * CROWDED_QUARTERS {
            return;
        }
        let now = self.clock.now();
        {
            let mut last = self.thinned.lock();
            if last.is_some_and(|last| now.saturating_duration_since(last) < FORGET_INTERVAL) {
                return;
            }
            *last = Some(now);
        }
        let Some(kernel) = self.kernel.get() else { return };
        let idle = self.idle_names(max / 2);
        tracing::debug!(names = idle.len(), "the kernel is asked to forget names");
        for (parent, name) in idle {
            kernel.forget_name(parent, &name);
        }
    }

    /// Names that may go, so many that `left` are left.
    fn idle_names(&self, left: usize) -> Vec<(Ino, Name)> {
        let namespace = self.namespace.lock();
        let excess = namespace.len().saturating_sub(left);
        let idle = namespace.inodes().filter(|inode| {
            inode.linked && inode.opens == 0 && !inode.staged && inode.directory.children.is_empty()
        });
        idle.filter_map(|inode| Some((inode.parent, inode.name.clone()?))).take(excess).collect()
    }
}
