//! Programs that wait for the store in a checkpoint directory: their silence is the store's.
//!
//! Owns the count of them, and that their time does not count as quiet. Does not own when a
//! directory is complete (`rules`).

use std::sync::Arc;
use std::time::Duration;

use super::Checkpoint;
use crate::clock::Clock;
use crate::fs::Fs;

/// Somebody waits, until this is dropped.
pub(in crate::fs) struct Waiting {
    checkpoint: Arc<Checkpoint>,
    clock: Arc<dyn Clock>,
    since: std::time::Instant,
    /// When the mount began, from which transactions count.
    started: std::time::Instant,
}

impl Fs {
    /// Notes that a program waits for what the store says of a name in a checkpoint directory: the
    /// next file may be made as soon as it has answered.
    pub(in crate::fs) fn wait_in(&self, checkpoint: &Arc<Checkpoint>) -> Waiting {
        checkpoint.state.lock().waiting += 1;
        let (clock, since) = (self.clock.clone(), self.clock.now());
        Waiting { checkpoint: checkpoint.clone(), clock, since, started: self.started }
    }
}

impl Drop for Waiting {
    /// It was not quiet for so long. Who asks again and again is answered soon and holds nothing
    /// up.
    fn drop(&mut self) {
        let now = self.clock.now();
        let (took, uptime) = (
            now.saturating_duration_since(self.since),
            now.saturating_duration_since(self.started),
        );
        let mut state = self.checkpoint.state.lock();
        state.waiting -= 1;
        let Some(open) = state.open.as_mut() else { return };
        open.changed = moved(open.changed, took, uptime);
        drop(state);
        self.checkpoint.wake.notify_one();
    }
}

/// The last change, later by the time for which somebody waited, but not later than now.
fn moved(changed: Duration, took: Duration, now: Duration) -> Duration {
    (changed + took).min(now).max(changed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stores_time_is_no_quiet_and_polling_holds_nothing_up_for_ever() {
        let ms = Duration::from_millis;
        assert_eq!(moved(ms(100), ms(900), ms(1010)), ms(1000));
        assert_eq!(moved(ms(1000), ms(900), ms(1010)), ms(1010), "waits overlap");
        let mut changed = ms(0);
        for now in (100..10_000).step_by(100) {
            changed = moved(changed, ms(2), ms(now));
        }
        assert!(changed < ms(1_000));
    }
}
