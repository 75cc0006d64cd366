//! Requests run: at once where memory answers, else as tasks, each with a deadline; and the bound
//! on how many wait for the store.
//!
//! Who takes a turn: requests that only read (lookup, getattr, read, readlink, directories,
//! extended attributes). What they wait for is the store, which needs no other request. All others
//! take none: they may wait for a place, for room for dirty bytes or for the `io` of an inode whose
//! holder waits for such, and that is set free by another program's close, before which it may
//! want to read. A lookup waits for room for its name before it takes its turn. So whoever holds
//! a turn ends by itself, and nobody waits in a circle; what takes no turn is bounded by the limits
//! that it waits at.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use crate::fs::error::Errno;

/// The requests of the kernel that wait for something.
#[derive(Debug)]
pub struct Requests {
    runtime: Handle,
    turns: Arc<Semaphore>,
    max: usize,
}

/// How many wait, and how many may before the next do not even begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct RequestsStatus {
    pub waiting: usize,
    pub waiting_max: usize,
}

impl Requests {
    pub fn new(runtime: Handle, max: usize) -> Arc<Self> {
        let max = max.min(Semaphore::MAX_PERMITS);
        Arc::new(Self { runtime, turns: Arc::new(Semaphore::new(max)), max })
    }

    pub fn status(&self) -> RequestsStatus {
        let waiting = self.max - self.turns.available_permits();
        RequestsStatus { waiting, waiting_max: self.max }
    }

    /// Runs a request that only reads. Past the bound it waits for its turn before it begins, so
    /// that it holds nothing meanwhile.
    pub(super) fn run_reading(&self, request: impl Future<Output = ()> + Send + 'static) {
        let (turns, request) = (self.turns.clone(), Box::pin(request));
        self.run(async move {
            let _turn = turns.acquire().await; // never closed
            request.await;
        });
    }

    /// A turn, for a part of a request.
    pub(super) fn turn(&self) -> impl Future<Output = impl Send> + Send + 'static {
        self.turns.clone().acquire_owned()
    }

    /// Runs a request: at once if it need not wait, else as a task.
    pub(super) fn run(&self, request: impl Future<Output = ()> + Send + 'static) {
        begin(&self.runtime, Box::pin(request));
    }
}

/// Boxed at once: a request's state is kilobytes, which each hand it goes through would copy.
fn begin(runtime: &Handle, mut request: Pin<Box<dyn Future<Output = ()> + Send>>) {
    let _runtime = runtime.enter();
    let mut nobody = Context::from_waker(Waker::noop());
    match catch_unwind(AssertUnwindSafe(|| request.as_mut().poll(&mut nobody))) {
        Ok(Poll::Ready(())) => {}
        Ok(Poll::Pending) => drop(runtime.spawn(request)),
        // Dropping the request answers EIO; the panic hook has logged and counted it.
        Err(_) => drop(catch_unwind(AssertUnwindSafe(|| drop(request)))),
    }
}

/// An operation that is ETIMEDOUT when it takes too long.
pub(super) async fn bounded<T>(
    deadline: Duration,
    operation: impl Future<Output = Result<T, Errno>>,
) -> Result<T, Errno> {
    tokio::time::timeout(deadline, operation).await.unwrap_or(Err(Errno::ETIMEDOUT))
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    /// What a reply is to the library: dropped without an answer, it answers EIO.
    struct Reply(Option<oneshot::Sender<()>>);

    impl Drop for Reply {
        fn drop(&mut self) {
            let _ = self.0.take().expect("dropped once").send(());
        }
    }

    fn reply() -> (Reply, oneshot::Receiver<()>) {
        let (sender, answered) = oneshot::channel();
        (Reply(Some(sender)), answered)
    }

    #[tokio::test]
    async fn a_panic_in_a_request_answers_it_and_takes_no_other_along() {
        let requests = Requests::new(Handle::current(), 4);
        let (at_once, first) = reply();
        requests.run(async move {
            let _reply = at_once;
            panic!("at once");
        });
        let (later, second) = reply();
        requests.run(async move {
            let _reply = later;
            tokio::task::yield_now().await;
            panic!("as a task");
        });
        let (well, third) = reply();
        requests.run(async move {
            tokio::task::yield_now().await;
            drop(well);
        });
        first.await.unwrap();
        second.await.unwrap();
        third.await.unwrap();
        while requests.status().waiting > 0 {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn past_the_bound_those_that_read_wait_but_none_that_sets_others_free() {
        let requests = Requests::new(Handle::current(), 1);
        let (open, gate) = oneshot::channel::<()>();
        requests.run_reading(async move { drop(gate.await) });
        let (second, mut waits) = reply();
        requests.run_reading(async move { drop(second) });
        assert_eq!(requests.status(), RequestsStatus { waiting: 1, waiting_max: 1 });
        tokio::task::yield_now().await;
        assert!(waits.try_recv().is_err());
        requests.run(async move { open.send(()).unwrap() });
        waits.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn no_request_waits_for_ever() {
        let never = std::future::pending::<Result<(), Errno>>();
        assert_eq!(bounded(Duration::from_secs(130), never).await, Err(Errno::ETIMEDOUT));
    }
}
