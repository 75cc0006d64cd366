//! A clock whose time is the runtime's, which a test may pause, and whose numbers are the same in
//! each run.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use trialfs::clock::Clock;

#[derive(Debug, Default)]
pub struct TestClock(AtomicU64);

impl From<u64> for TestClock {
    /// With numbers of its own.
    fn from(first: u64) -> Self {
        Self(first.into())
    }
}

impl Clock for TestClock {
    fn now(&self) -> Instant {
        tokio::time::Instant::now().into_std()
    }

    fn wall(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000)
    }

    fn random(&self) -> u64 {
        self.0.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed)
    }
}
