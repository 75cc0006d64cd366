//! A store in memory that fails as it is told: one fault for each request, in their order.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, stream};
use parking_lot::Mutex;
use trialfs::bucket::memory::MemoryStore;
use trialfs::bucket::{Body, BucketError, ObjectInfo};
use trialfs::clock::Clock;

use super::steered::{Steer, Steered};

/// What happens to one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    None,
    /// Refused before it was applied.
    Unavailable,
    /// Sent away, to come back after so many seconds.
    Busy(u64),
    Denied,
    /// No answer, ever; not applied.
    Stall,
    /// Applied, but the answer is a 5xx.
    LostReply,
    /// Applied, but no answer comes.
    LateTimeout,
    /// The body breaks off after its first frame.
    BreakBody,
    /// The body stalls after its first frame.
    StallBody,
}

#[derive(Debug)]
pub struct Scripted(Mutex<VecDeque<Fault>>);

impl Scripted {
    pub fn new(
        clock: Arc<dyn Clock>,
        faults: impl IntoIterator<Item = Fault>,
    ) -> Arc<Steered<Self>> {
        let script = Mutex::new(faults.into_iter().collect());
        Steered::new(MemoryStore::new(clock), Self(script))
    }

    /// Replaces what is left of the script.
    pub fn script(&self, faults: impl IntoIterator<Item = Fault>) {
        *self.0.lock() = faults.into_iter().collect();
    }
}

fn lost() -> BucketError {
    BucketError::Unavailable("scripted".to_owned())
}

impl Steer for Scripted {
    /// Applies `act` as the next fault allows.
    async fn run<T: Send>(
        &self,
        act: impl Future<Output = Result<T, BucketError>> + Send,
    ) -> Result<T, BucketError> {
        let fault = self.0.lock().pop_front().unwrap_or(Fault::None);
        match fault {
            Fault::Unavailable => Err(lost()),
            Fault::Busy(seconds) => Err(BucketError::Busy {
                why: "scripted".to_owned(),
                after: Duration::from_secs(seconds),
            }),
            Fault::Denied => Err(BucketError::Denied("scripted".to_owned())),
            Fault::Stall => std::future::pending().await,
            Fault::LostReply => {
                act.await?;
                Err(lost())
            }
            Fault::LateTimeout => {
                act.await?;
                std::future::pending().await
            }
            Fault::None | Fault::BreakBody | Fault::StallBody => act.await,
        }
    }

    async fn get(
        &self,
        act: impl Future<Output = Result<(ObjectInfo, Body), BucketError>> + Send,
    ) -> Result<(ObjectInfo, Body), BucketError> {
        let fault = self.0.lock().front().copied().unwrap_or(Fault::None);
        let (info, body) = self.run(act).await?;
        let body = match fault {
            Fault::BreakBody => body.take(1).chain(stream::iter([Err(lost())])).boxed(),
            Fault::StallBody => {
                let first = body.map(|frame| frame.map(|bytes| bytes.slice(..1)));
                first.take(1).chain(stream::pending()).boxed()
            }
            _ => body,
        };
        Ok((info, body))
    }
}
