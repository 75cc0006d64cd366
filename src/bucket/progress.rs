//! Whether a body on its way up moves: a stalled socket is told from a slow link.
//!
//! Owns the watch over one attempt's body. Does not own how long one may stand still (`retry`).

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use parking_lot::Mutex;

use crate::clock::Clock;

/// Handed to the connection at once; the next is asked for when there is room for it.
const SLICE_BYTES: usize = 256 << 10;
/// A smaller body is with the kernel as soon as the connection is, and says nothing by moving.
const WATCHED_BYTES_MIN: usize = 4 * SLICE_BYTES;

tokio::task_local! {
    static PROGRESS: Arc<Progress>;
}

/// When the connection last took a slice of an attempt's body.
#[derive(Debug)]
pub struct Progress {
    clock: Arc<dyn Clock>,
    last: Mutex<Option<Instant>>,
}

impl Progress {
    pub fn new(clock: Arc<dyn Clock>) -> Arc<Self> {
        Arc::new(Self { clock, last: Mutex::default() })
    }

    /// `None`: nobody watches, so that nothing is known.
    pub fn last(&self) -> Option<Instant> {
        *self.last.lock()
    }

    /// An attempt in which [`watched`] bodies are watched.
    pub async fn over<T>(self: &Arc<Self>, attempt: impl Future<Output = T>) -> T {
        PROGRESS.scope(self.clone(), attempt).await
    }

    fn touch(&self) {
        *self.last.lock() = Some(self.clock.now());
    }
}

/// A body that is watched while it goes up, if somebody wants to know and it is large enough. The
/// request must say its length.
pub fn watched(body: Bytes) -> reqwest::Body {
    let Ok(progress) = PROGRESS.try_with(Arc::clone) else { return body.into() };
    if body.len() < WATCHED_BYTES_MIN {
        return body.into();
    }
    progress.touch();
    let slices = (0..body.len()).step_by(SLICE_BYTES).map(move |start| {
        progress.touch();
        Ok::<Bytes, Infallible>(body.slice(start..body.len().min(start + SLICE_BYTES)))
    });
    reqwest::Body::wrap_stream(futures::stream::iter(slices))
}
