//! The bound on names that are known: the kernel is asked to let go of those not in use.
//!
//! Owns when and which, and who waits for it. Does not own the names (`namespace`), nor how the
//! kernel is told (`fuse`).
//!
//! What the kernel lets go of comes back by forgets, some time later. So it is asked long before
//! the bound, and whoever meets the bound waits; refused is only what found no room in all that
//! time, as where everything is in use. A kernel that can't be asked by inode (before 6.18) must
//! take the directory to forget a name in it, and a lookup holds that while it waits: there the
//! lookups go on one by one, each after a pause, so that the kernel gets the directory in between.

use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::timeout;

use super::error::Errno;
use super::{Fs, Idle};
use crate::types::{Ino, Kind};

/// Names the kernel is asked to let go of at a time: what they take here stays within 10 MiB.
const IDLE_MAX: usize = 1 << 16;
/// So long the kernel is left alone after it was asked: it forgets within milliseconds.
const ASK_INTERVAL: Duration = Duration::from_millis(50);
/// The same where it let go of little: to ask is to look at every name.
const ASK_INTERVAL_IN_VAIN: Duration = Duration::from_secs(1);
/// How long a lookup waits below the bound while the kernel is at it: see above.
const PAUSE: Duration = Duration::from_millis(50);

/// What was asked of the kernel, and what came of it.
#[derive(Debug, Default)]
pub(super) struct Crowd {
    asked: Mutex<Asked>,
    /// Told when names went.
    freed: Notify,
}

#[derive(Debug, Default)]
struct Asked {
    /// The kernel is being told.
    under_way: bool,
    last: Option<Instant>,
    names: usize,
    came_back: usize,
    /// Names that were passed over, after the others were asked for in vain.
    skipped: usize,
}

/// Which names to ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Wanted {
    /// Of a directory without names that are known the kernel may still have uses that do not
    /// show here, as by a process that stands in it: only once there was nothing else.
    directories: bool,
    skip: usize,
}

impl Asked {
    /// What to ask for now that `known` names are known. `None`: it is too early.
    fn again(&mut self, now: Instant, known: usize) -> Option<Wanted> {
        let vain = self.came_back * 4 < self.names.max(1) && self.last.is_some();
        let pause = if vain { ASK_INTERVAL_IN_VAIN } else { ASK_INTERVAL };
        let early = |last| now.saturating_duration_since(last) < pause;
        if self.under_way || self.last.is_some_and(early) {
            return None;
        }
        let further = self.skipped + IDLE_MAX;
        let skip = if vain && self.names == IDLE_MAX && further < known { further } else { 0 };
        *self = Self { under_way: true, last: Some(now), names: 0, came_back: 0, skipped: skip };
        Some(Wanted { directories: vain, skip })
    }
}

impl Fs {
    /// Waits until one more name may be known, while those not in use go; ENFILE where none did in
    /// all the time. Those that are let in at once may go over the bound by as many as they are.
    pub(super) async fn room_for_a_name(&self) -> Result<(), Errno> {
        let max = self.config.inodes_max;
        self.thin_out();
        if self.known_names() < max - max / 8 {
            return Ok(());
        }
        let _ = timeout(PAUSE, async {
            while self.crowd.asked.lock().under_way && self.known_names() >= max - max / 8 {
                self.freed_or(PAUSE).await;
            }
        })
        .await;
        let room = async {
            while self.known_names() >= max {
                self.thin_out();
                self.freed_or(ASK_INTERVAL).await;
            }
        };
        timeout(self.config.wait_max, room).await.map_err(|_| {
            tracing::warn!(max, "every name that is known is in use: no more may be");
            Errno::ENFILE
        })
    }

    fn known_names(&self) -> usize {
        self.namespace.lock().len()
    }

    async fn freed_or(&self, after: Duration) {
        let _ = timeout(after, self.crowd.freed.notified()).await;
    }

    /// Whether so many names are known that none should be without need.
    pub(super) fn is_crowded(&self) -> bool {
        let max = self.config.inodes_max;
        self.known_names() >= max - max / 4
    }

    /// The kernel gave back references to an inode.
    pub fn forget(&self, ino: Ino, lookups: u64) {
        let went = {
            let mut namespace = self.namespace.lock();
            let before = namespace.len();
            namespace.forget(ino, lookups);
            before - namespace.len()
        };
        if went > 0 {
            self.crowd.asked.lock().came_back += went;
            self.crowd.freed.notify_waiters();
        }
    }

    /// Has the kernel let go of names that nobody uses, where there are many: down to half.
    pub(super) fn thin_out(&self) {
        if !self.is_crowded() {
            return;
        }
        let Some(kernel) = self.kernel.get().cloned() else { return };
        let wanted = self.crowd.asked.lock().again(self.clock.now(), self.known_names());
        let Some(wanted) = wanted else { return };
        let idle = self.idle_names(wanted);
        self.crowd.asked.lock().names = idle.len();
        tracing::debug!(names = idle.len(), ?wanted, "the kernel is asked to let go of names");
        let me = self.me.clone();
        tokio::spawn(async move {
            kernel.let_go(idle).await;
            let Some(me) = me.upgrade() else { return };
            me.crowd.asked.lock().under_way = false;
            me.crowd.freed.notify_waiters();
        });
    }

    /// Names that may go, so many that half of the bound is left.
    fn idle_names(&self, wanted: Wanted) -> Vec<Idle> {
        let namespace = self.namespace.lock();
        let excess = namespace.len().saturating_sub(self.config.inodes_max / 2).min(IDLE_MAX);
        let idle = namespace.inodes().filter(|inode| {
            let unused = inode.opens == 0 && !inode.staged && inode.directory.children.is_empty();
            let leaf = inode.kind != Kind::Directory || wanted.directories;
            inode.linked && inode.lookups > 0 && unused && leaf
        });
        let names = idle.filter_map(|inode| {
            Some(Idle { ino: inode.ino, parent: inode.parent, name: inode.name.clone()? })
        });
        names.skip(wanted.skip).take(excess).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Clock, SystemClock};

    #[test]
    fn the_kernel_is_asked_again_at_once_where_it_lets_go_and_seldom_where_it_does_not() {
        let mut asked = Asked::default();
        let start = SystemClock.now();
        let at = |ms| start + Duration::from_millis(ms);
        assert_eq!(asked.again(start, 1500), Some(Wanted { directories: false, skip: 0 }));
        assert_eq!(asked.again(at(5000), 1500), None, "it is being told");
        (asked.names, asked.came_back, asked.under_way) = (500, 500, false);
        assert_eq!(asked.again(at(20), 1500), None);
        assert_eq!(asked.again(at(50), 1500), Some(Wanted { directories: false, skip: 0 }));
        (asked.names, asked.came_back, asked.under_way) = (500, 3, false);
        assert_eq!(asked.again(at(200), 1500), None);
        assert_eq!(asked.again(at(1050), 1500), Some(Wanted { directories: true, skip: 0 }));
    }

    #[test]
    fn names_that_stay_do_not_keep_those_behind_them_from_being_asked_for() {
        let mut asked = Asked::default();
        let start = SystemClock.now();
        let known = IDLE_MAX * 2 + 1;
        let mut skips = Vec::new();
        for seconds in 0..4 {
            let now = start + Duration::from_secs(seconds);
            skips.push(asked.again(now, known).expect("time has passed").skip);
            (asked.names, asked.under_way) = (IDLE_MAX, false);
        }
        assert_eq!(skips, [0, IDLE_MAX, IDLE_MAX * 2, 0]);
    }
}
