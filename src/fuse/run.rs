//! Requests run: at once where memory answers, else as tasks, each with a deadline.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::runtime::Handle;

use crate::fs::error::Errno;

/// Runs a request: at once if it need not wait, else as a task.
pub(super) fn run(runtime: &Handle, request: impl Future<Output = ()> + Send + 'static) {
    let _runtime = runtime.enter();
    let mut request: Pin<Box<dyn Future<Output = ()> + Send>> = Box::pin(request);
    let mut nobody = Context::from_waker(Waker::noop());
    match catch_unwind(AssertUnwindSafe(|| request.as_mut().poll(&mut nobody))) {
        Ok(Poll::Ready(())) => {}
        Ok(Poll::Pending) => drop(runtime.spawn(request)),
        // Dropping the request answers EIO; the panic hook has logged it.
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
