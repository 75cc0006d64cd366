//! One operation of a store, asked until it is answered or its time is over.
//!
//! Owns deadlines, retries, counts, and the memory of whether an attempt may have been applied
//! without our hearing of it. Does not own what to do about such a doubt: that is each operation's.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::bucket::count::{Counters, Operation};
use crate::bucket::error::BucketError;
use crate::bucket::progress::Progress;
use crate::bucket::retry::Policy;
use crate::bucket::store::Store;
use crate::clock::Clock;

/// A body that stands still is noticed a quarter late at most.
const LOOKS_IN_QUIET: u32 = 4;
/// Looking costs a timer.
const LOOK_MIN: Duration = Duration::from_millis(10);

/// Whether an attempt before the last may have been applied although no answer came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doubt {
    None,
    LostReply,
}

/// The answer to an operation, and what is not known about the attempts before it.
#[derive(Debug)]
pub struct Outcome<T> {
    pub result: Result<T, BucketError>,
    pub doubt: Doubt,
}

/// A store with what is needed to ask it patiently.
#[derive(Debug)]
pub struct Caller {
    pub store: Arc<dyn Store>,
    pub clock: Arc<dyn Clock>,
    pub policy: Policy,
    pub counters: Arc<Counters>,
    /// Whether the store ever took our credentials: then they are not what is wrong for good.
    pub admitted: Arc<AtomicBool>,
}

impl Caller {
    /// Asks until there is an answer. `bytes` is the size of the body that the request carries.
    pub async fn call<T, F, Fut>(&self, operation: Operation, bytes: u64, mut ask: F) -> Outcome<T>
    where
        F: FnMut() -> Fut,
        Fut: Future<Output = Result<T, BucketError>>,
    {
        let started = self.clock.now();
        // The time in which a body moves is not waiting; that of one which nobody watches all is.
        let mut moving = match operation.is_server_work() {
            true => self.policy.work_max(),
            false => self.policy.moving_max(bytes),
        };
        let mut moved = Duration::ZERO;
        let mut doubt = Doubt::None;
        let mut failed = 0;
        loop {
            let progress = Progress::new(self.clock.clone());
            let began = self.clock.now();
            let end = started + self.policy.io_timeout + moving;
            let attempt = progress.over(ask());
            let moves = self.while_it_moves(&progress, end, attempt);
            let limit = match operation.is_server_work() {
                true => self.policy.work_attempt(failed),
                false => self.policy.attempt(bytes),
            };
            let result = self.once(operation, limit.min(self.left(end)), moves).await;
            if let Some(last) = progress.last() {
                moved += last.saturating_duration_since(began);
                moving = self.policy.moving(moved, bytes);
            }
            let end = started + self.policy.io_timeout + moving;
            let error = match result {
                Ok(value) => return Outcome { result: Ok(value), doubt },
                Err(error) => error,
            };
            failed += 1;
            let random = self.clock.random();
            let Some(wait) = self.policy.wait(&error, failed, self.left(end), random) else {
                return Outcome { result: Err(error), doubt };
            };
            tracing::debug!(?operation, failed, ?wait, %error, "asking the store again");
            doubt = Doubt::LostReply;
            tokio::time::sleep(wait).await;
            self.counters.retry();
        }
    }

    /// Gives an attempt up whose body stands still, where somebody watches it.
    async fn while_it_moves<T>(
        &self,
        progress: &Progress,
        end: Instant,
        attempt: impl Future<Output = Result<T, BucketError>>,
    ) -> Result<T, BucketError> {
        let quiet = self.policy.quiet();
        let look = (quiet / LOOKS_IN_QUIET).max(LOOK_MIN);
        let mut attempt = std::pin::pin!(attempt);
        loop {
            if let Ok(result) = tokio::time::timeout(look, &mut attempt).await {
                return result;
            }
            let Some(last) = progress.last() else { continue };
            let still = self.clock.now().saturating_duration_since(last);
            if still >= quiet || self.clock.now() >= end {
                return Err(BucketError::TimedOut(format!("the body stood still for {still:?}")));
            }
        }
    }

    /// One attempt, counted, within `limit`.
    pub async fn once<T>(
        &self,
        operation: Operation,
        limit: Duration,
        ask: impl Future<Output = Result<T, BucketError>>,
    ) -> Result<T, BucketError> {
        self.counters.attempt(operation);
        let result = match tokio::time::timeout(limit, ask).await {
            Ok(result) => self.admission(result),
            Err(_) => Err(BucketError::TimedOut(format!("{operation:?} within {limit:?}"))),
        };
        if let Err(error) = &result
            && !matches!(error, BucketError::NotFound | BucketError::Precondition)
        {
            self.counters.error();
        }
        result
    }

    /// Credentials that were good once may be so again: exchanged keys come late to some servers.
    fn admission<T>(&self, result: Result<T, BucketError>) -> Result<T, BucketError> {
        match result {
            Err(BucketError::Unauthenticated(why)) if self.admitted.load(Ordering::Relaxed) => {
                Err(BucketError::Unavailable(why))
            }
            Ok(_) => {
                self.admitted.store(true, Ordering::Relaxed);
                result
            }
            result => result,
        }
    }

    fn left(&self, end: Instant) -> Duration {
        end.saturating_duration_since(self.clock.now())
    }
}
