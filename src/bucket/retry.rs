//! When to ask a store again, and how long to wait for it: pure, so that every case is a test.
//!
//! Owns the bounds of attempts and waits. Does not own clocks, tasks or requests.

use std::time::Duration;

use crate::bucket::error::BucketError;

/// The slowest link on which a body may take its time; below it the store counts as gone.
const BYTES_PER_SECOND_MIN: u64 = 128 << 10;
/// The first wait, doubled by each further one: about one slow round trip.
const WAIT_FIRST_MS: u64 = 50;
/// The longest wait: a store that comes back is seen within seconds.
const WAIT_MAX_MS: u64 = 5_000;
/// One attempt gets this part of the whole bound, so that a stalled socket leaves time for others.
const ATTEMPTS_IN_BOUND: u32 = 4;

/// With less left than this part of the bound no last attempt is made: it would tell of nothing but
/// that it was too short.
const LAST_IN_BOUND: u32 = 10;

/// What a server is given for copying or putting together what it has, beside `io_timeout`.
const SERVER_WORK_MAX: Duration = Duration::from_secs(128);
/// Each attempt of such gets so many times what the one before had: with the default of
/// `io_timeout` half a minute, then two.
const WORK_ATTEMPT_GROWTH: u32 = 4;

/// A body that stands still, too, is begun anew so often within the bound.
const QUIETS_IN_BOUND: u32 = 3;
/// Of a body, so much may be in the kernel's hands and not yet sent on a link so slow.
const IN_KERNEL_BYTES: u64 = 1 << 20;

/// The bound on one operation, from which all else follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    pub io_timeout: Duration,
}

impl Policy {
    /// How long an operation may take in all, retries included, that moves `bytes` of body.
    pub fn bound(&self, bytes: u64) -> Duration {
        self.io_timeout + transfer_time(bytes)
    }

    /// How much longer than `io_timeout` an operation may take in all in which the server itself
    /// moves bytes.
    pub fn work_max(&self) -> Duration {
        SERVER_WORK_MAX
    }

    /// How long one attempt of such may take, after `failed` others. How long the server works is
    /// not known, and a lost answer looks the same: the first is not waited for long, and a later
    /// one, which often finds the work done, for longer.
    pub fn work_attempt(&self, failed: u32) -> Duration {
        let factor = WORK_ATTEMPT_GROWTH.saturating_pow(failed);
        self.attempt(0).saturating_mul(factor).min(self.io_timeout + SERVER_WORK_MAX)
    }

    /// How long one attempt may take.
    pub fn attempt(&self, bytes: u64) -> Duration {
        self.io_timeout / ATTEMPTS_IN_BOUND + transfer_time(bytes)
    }

    /// How long a body on its way may stand still, or its answer take once it is gone: what the
    /// kernel has taken of it goes on by itself. Where `io_timeout` is short that has less time, so
    /// that a stalled socket leaves some for others.
    pub fn quiet(&self) -> Duration {
        let whole = self.io_timeout + self.moving_max(IN_KERNEL_BYTES);
        self.attempt(IN_KERNEL_BYTES).min(whole / QUIETS_IN_BOUND)
    }

    /// How much longer than `io_timeout` an operation may take in all whose body was seen to move
    /// for so long: that, and what the kernel had of it.
    pub fn moving(&self, moved: Duration, bytes: u64) -> Duration {
        (moved + self.moving_max(IN_KERNEL_BYTES)).min(self.moving_max(bytes))
    }

    /// How much longer than `io_timeout` an operation may take in all while `bytes` of body move.
    pub fn moving_max(&self, bytes: u64) -> Duration {
        transfer_time(bytes)
    }

    /// The wait before the next attempt, or `None` if `error` is to be handed up. `failed` counts
    /// the attempts so far, `left` is what remains of the bound, `random` is the jitter.
    pub fn wait(
        &self,
        error: &BucketError,
        failed: u32,
        left: Duration,
        random: u64,
    ) -> Option<Duration> {
        if !error.is_transient() {
            return None;
        }
        let mut wait = backoff(failed, random);
        // Later than we may wait is as good as late: the last part is for one more attempt.
        let last = left - left / ATTEMPTS_IN_BOUND;
        if let BucketError::Busy { after, .. } = error {
            wait = wait.max(after.saturating_add(wait.min(*after / 8))).min(last.max(wait));
        }
        match wait < left {
            true => Some(wait),
            false => (left >= self.io_timeout / LAST_IN_BOUND).then_some(last),
        }
    }
}

fn transfer_time(bytes: u64) -> Duration {
    Duration::from_millis(bytes.saturating_mul(1000) / BYTES_PER_SECOND_MIN)
}

/// Exponential with full jitter over its upper half: clients that failed together come back apart.
fn backoff(failed: u32, random: u64) -> Duration {
    let doublings = failed.saturating_sub(1).min(16);
    let top = (WAIT_FIRST_MS << doublings).min(WAIT_MAX_MS);
    Duration::from_millis(top / 2 + random % (top / 2 + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: Policy = Policy { io_timeout: Duration::from_secs(120) };

    #[test]
    fn answers_are_never_asked_for_again() {
        let left = Duration::from_secs(100);
        for answer in [
            BucketError::NotFound,
            BucketError::Precondition,
            BucketError::Denied(String::new()),
            BucketError::NoSpace(String::new()),
            BucketError::Invalid(String::new()),
        ] {
            assert_eq!(POLICY.wait(&answer, 1, left, 0), None, "{answer:?}");
        }
    }

    #[test]
    fn waits_grow_stay_bounded_and_differ() {
        let error = BucketError::Unavailable(String::new());
        let left = Duration::from_secs(100);
        for failed in 1..40 {
            for random in [0, 7, u64::MAX] {
                let wait = POLICY.wait(&error, failed, left, random).unwrap();
                assert!(wait >= Duration::from_millis(WAIT_FIRST_MS / 2));
                assert!(wait <= Duration::from_millis(WAIT_MAX_MS));
            }
        }
        assert_ne!(POLICY.wait(&error, 3, left, 0), POLICY.wait(&error, 3, left, 40));
        assert!(POLICY.wait(&error, 9, left, 0) > POLICY.wait(&error, 1, left, 0));
    }

    #[test]
    fn a_busy_store_is_left_alone_for_as_long_as_it_says_and_the_bound_allows() {
        let busy = |seconds| {
            let after = Duration::from_secs(seconds);
            BucketError::Busy { why: String::new(), after }
        };
        let left = Duration::from_secs(100);
        let wait = |seconds, random| POLICY.wait(&busy(seconds), 1, left, random).unwrap();
        for random in 0..100 {
            assert!(wait(20, random) >= Duration::from_secs(20));
            assert!(wait(20, random) <= Duration::from_millis(20_050));
        }
        assert_ne!(wait(20, 0), wait(20, 20), "clients that were sent away come back apart");
        assert!(wait(0, 7) >= Duration::from_millis(WAIT_FIRST_MS / 2));
        assert_eq!(wait(u64::MAX / 2, 7), Duration::from_secs(75));
    }

    #[test]
    fn nothing_waits_past_the_bound() {
        let error = BucketError::TimedOut(String::new());
        assert_eq!(POLICY.wait(&error, 5, Duration::from_millis(10), 0), None);
    }

    /// A store that was away for half of the bound was given up, as the next wait was longer than
    /// what was left.
    #[test]
    fn the_bound_is_used_up_to_its_last_tenth() {
        let (error, bound) = (BucketError::Unreachable(String::new()), Duration::from_secs(3));
        for random in 0..100 {
            let (mut left, mut failed) = (bound, 1);
            let policy = Policy { io_timeout: bound };
            while let Some(wait) = policy.wait(&error, failed, left, random * 37) {
                (left, failed) = (left - wait, failed + 1);
            }
            assert!(left < bound / 10 && failed < 20, "{left:?} left, {failed} attempts");
        }
    }

    #[test]
    fn a_body_that_stalls_leaves_time_for_others_however_short_the_bound_is() {
        for seconds in [3, 10, 16, 60, 120] {
            let policy = Policy { io_timeout: Duration::from_secs(seconds) };
            let whole = policy.io_timeout + policy.moving(Duration::ZERO, 16 << 20);
            assert!(policy.quiet() * 3 <= whole, "{seconds} s: {:?}", policy.quiet());
            assert!(policy.quiet() > policy.attempt(0), "{seconds} s");
        }
        assert_eq!(POLICY.quiet(), POLICY.attempt(IN_KERNEL_BYTES));
        let moved = Duration::from_secs(1000);
        assert_eq!(POLICY.moving(moved, 16 << 20), POLICY.moving_max(16 << 20));
    }

    #[test]
    fn a_server_that_works_is_given_time_and_a_lost_answer_takes_little_of_it() {
        assert_eq!(POLICY.work_attempt(0), POLICY.attempt(0));
        assert_eq!(POLICY.work_attempt(1), Duration::from_secs(120));
        let bound = POLICY.io_timeout + POLICY.work_max();
        assert!(POLICY.work_attempt(0) + POLICY.work_attempt(1) < bound);
        assert_eq!(POLICY.work_attempt(u32::MAX), bound);
    }

    #[test]
    fn a_big_body_gets_the_time_a_slow_link_needs() {
        assert_eq!(POLICY.bound(0), POLICY.io_timeout);
        assert!(POLICY.bound(16 << 20) >= Duration::from_secs(120 + 128));
        assert!(POLICY.attempt(u64::MAX) >= POLICY.attempt(0));
    }
}
