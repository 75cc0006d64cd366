//! A store in memory that is cut off from its mount at the k-th request, before or after that was
//! applied: to the mount it never answers again.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;
use trialfs::bucket::BucketError;
use trialfs::bucket::memory::MemoryStore;

use super::steered::{Steer, Steered};

/// Whether the last request still reaches the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Last {
    Applied,
    Lost,
}

#[derive(Debug)]
pub struct Cut {
    calls: AtomicU64,
    at: u64,
    last: Last,
    /// The k-th request was made.
    pub dead: Notify,
}

impl Cut {
    /// Counts from 1.
    pub fn at(memory: Arc<MemoryStore>, at: u64, last: Last) -> Arc<Steered<Self>> {
        let cut = Self { calls: AtomicU64::new(0), at, last, dead: Notify::new() };
        Steered::new(memory, cut)
    }

    pub fn calls(&self) -> u64 {
        self.calls.load(Ordering::SeqCst)
    }
}

impl Steer for Cut {
    async fn run<T: Send>(
        &self,
        act: impl Future<Output = Result<T, BucketError>> + Send,
    ) -> Result<T, BucketError> {
        let call = self.calls.fetch_add(1, Ordering::SeqCst) + 1;
        if call < self.at {
            return act.await;
        }
        if call == self.at {
            if self.last == Last::Applied {
                let _ = act.await; // the answer is lost
            }
            self.dead.notify_one();
        }
        std::future::pending().await
    }
}
