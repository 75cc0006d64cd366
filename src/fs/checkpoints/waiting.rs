//! Programs that wait for the store in a checkpoint directory: their silence is the store's.
//!
//! Owns the count of them, and that their time does not count as quiet. Does not own when a
//! directory is complete (`rules`).
//!
//! Every operation that may ask the store before a program writes on is counted: looking a name
//! up, listing, making, opening to write, renaming, removing. While a file is open it is the
//! handle that counts.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Checkpoint;
use crate::clock::Clock;
use crate::fs::Fs;
use crate::types::Ino;

/// Somebody waits, until this is dropped.
pub(in crate::fs) struct Waiting {
    checkpoint: Arc<Checkpoint>,
    clock: Arc<dyn Clock>,
    /// When the mount began, from which transactions count.
    started: Instant,
}

/// Those who wait in one directory.
#[derive(Debug, Default)]
pub struct Waits {
    count: usize,
    /// Since when there always was one.
    since: Duration,
}

/// When a transaction last changed, and what of the time since then is no quiet.
#[derive(Debug, Clone, Copy)]
pub struct Changed {
    at: Duration,
    waited: Duration,
}

impl Waits {
    pub fn count(&self) -> usize {
        self.count
    }

    fn begin(&mut self, now: Duration) {
        if self.count == 0 {
            self.since = now;
        }
        self.count += 1;
    }

    /// How long there was one, if this was the last.
    fn end(&mut self, now: Duration) -> Option<Duration> {
        self.count -= 1;
        (self.count == 0).then(|| now.saturating_sub(self.since))
    }
}

impl Changed {
    /// At this time since the mount began.
    pub fn at(now: Duration) -> Self {
        Self { at: now, waited: Duration::ZERO }
    }

    /// From when on it is quiet.
    pub fn quiet_since(&self, now: Duration, commit_max: Duration) -> Duration {
        match self.is_held(now, commit_max) {
            true => (self.at + self.waited).min(now),
            false => self.at,
        }
    }

    /// Whether waiting still counts: who asks for ever and writes nothing holds nothing up.
    pub fn is_held(&self, now: Duration, commit_max: Duration) -> bool {
        now.saturating_sub(self.at) < commit_max
    }
}

impl Fs {
    /// Notes that a program waits for what the store says of a name in a checkpoint directory: the
    /// next file may be made as soon as it has answered.
    pub(in crate::fs) fn wait_in(&self, checkpoint: &Arc<Checkpoint>) -> Waiting {
        checkpoint.state.lock().waits.begin(self.uptime());
        let (clock, started) = (self.clock.clone(), self.started);
        Waiting { checkpoint: checkpoint.clone(), clock, started }
    }

    /// The same for an inode that may be in one.
    pub(in crate::fs) fn wait_at(&self, ino: Ino) -> Option<Waiting> {
        Some(self.wait_in(&self.place(ino)?.checkpoint))
    }
}

impl Drop for Waiting {
    /// It was not quiet for so long. Who asks again and again is answered soon and holds nothing
    /// up.
    fn drop(&mut self) {
        let now = self.clock.now().saturating_duration_since(self.started);
        let mut state = self.checkpoint.state.lock();
        let Some(took) = state.waits.end(now) else { return };
        let Some(open) = state.open.as_mut() else { return };
        open.changed.waited += took;
        drop(state);
        self.checkpoint.wake.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: Duration = Duration::from_secs(600);

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn quiet_since(changed: &Changed, now: u64) -> Duration {
        changed.quiet_since(ms(now), MAX)
    }

    #[test]
    fn the_stores_time_is_no_quiet() {
        let mut changed = Changed::at(ms(100));
        changed.waited += ms(900);
        assert_eq!(quiet_since(&changed, 1010), ms(1000));
        changed.waited += ms(900);
        assert_eq!(quiet_since(&changed, 1010), ms(1010), "never later than now");
        assert_eq!(quiet_since(&Changed::at(ms(1500)), 1600), ms(1500), "a change begins anew");
    }

    #[test]
    fn many_who_wait_at_once_wait_once() {
        let mut waits = Waits::default();
        for at in 0..8 {
            waits.begin(ms(at));
        }
        assert!((10..17).all(|at| waits.end(ms(at)).is_none()));
        assert_eq!(waits.end(ms(20)), Some(ms(20)));
    }

    #[test]
    fn polling_holds_nothing_up_for_ever() {
        let mut changed = Changed::at(ms(0));
        for _ in (100..10_000).step_by(100) {
            changed.waited += ms(2);
        }
        assert!(quiet_since(&changed, 10_000) < ms(1_000));
        changed.waited = MAX * 2;
        assert!(changed.is_held(MAX - ms(1), MAX));
        assert!(!changed.is_held(MAX, MAX));
        assert_eq!(changed.quiet_since(MAX, MAX), ms(0));
    }
}
