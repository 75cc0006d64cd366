//! The body of a GET that survives a broken connection: it goes on at the byte where it broke, with
//! If-Match, so that what comes out is one version of the object, whole, or an error.
//!
//! Owns resuming and the check of the length. Does not own the first request, nor checksums.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream;

use crate::bucket::call::Caller;
use crate::bucket::count::Operation;
use crate::bucket::error::BucketError;
use crate::bucket::store::{Body, ObjectInfo};
use crate::types::{ETag, Key};

/// What is still to come of a body.
struct Remaining {
    caller: Arc<Caller>,
    key: Key,
    etag: ETag,
    at: u64,
    end: u64,
    body: Option<Body>,
    /// Waiting time left, in which a slow reader's own time does not count.
    budget: Duration,
    failed: u32,
    finished: bool,
}

/// Wraps `body`, which answers for the bytes `start..end` of `key` as `info` describes it.
pub fn resuming(
    caller: Arc<Caller>,
    key: Key,
    info: &ObjectInfo,
    start: u64,
    end: u64,
    body: Body,
) -> Body {
    let budget = caller.policy.bound(end - start);
    let remaining = Remaining {
        caller,
        key,
        etag: info.etag.clone(),
        at: start,
        end,
        body: Some(body),
        budget,
        failed: 0,
        finished: false,
    };
    stream::unfold(remaining, |mut remaining| async move {
        let frame = remaining.next().await?;
        Some((frame, remaining))
    })
    .boxed()
}

impl Remaining {
    /// The next frame; `None` after the last byte or an error.
    async fn next(&mut self) -> Option<Result<Bytes, BucketError>> {
        loop {
            if self.finished || self.at == self.end {
                return None;
            }
            let error = match self.advance().await {
                Ok(frame) if frame.is_empty() => continue,
                Ok(frame) => return Some(Ok(frame)),
                Err(error) => error,
            };
            self.body = None;
            if let Err(error) = self.back_off(error).await {
                self.finished = true;
                return Some(Err(error));
            }
        }
    }

    /// Waits before the next attempt, or hands `error` up.
    async fn back_off(&mut self, error: BucketError) -> Result<(), BucketError> {
        self.failed += 1;
        let random = self.caller.clock.random();
        let wait =
            self.caller.policy.wait(&error, self.failed, self.budget, random).ok_or(error)?;
        self.budget -= wait;
        tokio::time::sleep(wait).await;
        self.caller.counters.retry();
        Ok(())
    }

    /// One frame, asking for the rest first if the connection broke.
    async fn advance(&mut self) -> Result<Bytes, BucketError> {
        let started = self.caller.clock.now();
        let limit = self.caller.policy.attempt(0).min(self.budget);
        let result = match self.body.take() {
            Some(mut body) => {
                let frame = tokio::time::timeout(limit, body.next()).await;
                self.body = Some(body);
                frame.unwrap_or_else(|_| {
                    Some(Err(BucketError::TimedOut(format!("no byte of the body in {limit:?}"))))
                })
            }
            None => Some(self.reopen(limit).await),
        };
        let waited = self.caller.clock.now().saturating_duration_since(started);
        self.budget = self.budget.saturating_sub(waited);
        let frame = result
            .unwrap_or_else(|| Err(BucketError::Unavailable("the body ended early".to_owned())))?;
        if frame.len() as u64 > self.end - self.at {
            return Err(BucketError::Corrupt("the body is longer than announced".to_owned()));
        }
        if !frame.is_empty() {
            self.at += frame.len() as u64;
            self.failed = 0;
        }
        Ok(frame)
    }

    /// Asks for the rest. Answers an empty frame: the bytes come with the next call.
    async fn reopen(&mut self, limit: Duration) -> Result<Bytes, BucketError> {
        let rest = self.at..self.end;
        let ask = self.caller.store.get(&self.key, rest, Some(&self.etag));
        let (info, body) = self.caller.once(Operation::Get, limit, ask).await?;
        if info.etag != self.etag {
            return Err(BucketError::Precondition);
        }
        self.body = Some(body);
        Ok(Bytes::new())
    }
}
