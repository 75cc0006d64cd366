//! A store in memory that fails as it is told: one fault for each request, in their order.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, stream};
use parking_lot::Mutex;
use trialfs::bucket::memory::MemoryStore;
use trialfs::bucket::{
    Body, BucketError, Capabilities, Condition, Metadata, ObjectInfo, Page, Store, Written,
};
use trialfs::clock::Clock;
use trialfs::types::{ETag, Key};

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
pub struct Scripted {
    pub memory: Arc<MemoryStore>,
    script: Mutex<VecDeque<Fault>>,
}

impl Scripted {
    pub fn new(clock: Arc<dyn Clock>, faults: impl IntoIterator<Item = Fault>) -> Arc<Self> {
        let script = Mutex::new(faults.into_iter().collect());
        Arc::new(Self { memory: MemoryStore::new(clock), script })
    }

    /// Replaces what is left of the script.
    pub fn script(&self, faults: impl IntoIterator<Item = Fault>) {
        *self.script.lock() = faults.into_iter().collect();
    }

    fn next(&self) -> Fault {
        self.script.lock().pop_front().unwrap_or(Fault::None)
    }

    /// Applies `act` as the next fault allows.
    async fn run<T>(
        &self,
        act: impl Future<Output = Result<T, BucketError>>,
    ) -> Result<T, BucketError> {
        let lost = || BucketError::Unavailable("scripted".to_owned());
        match self.next() {
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
}

#[async_trait]
impl Store for Scripted {
    async fn head(&self, key: &Key) -> Result<ObjectInfo, BucketError> {
        self.run(self.memory.head(key)).await
    }

    async fn get(
        &self,
        key: &Key,
        range: Range<u64>,
        if_match: Option<&ETag>,
    ) -> Result<(ObjectInfo, Body), BucketError> {
        let fault = self.script.lock().front().copied().unwrap_or(Fault::None);
        let (info, body) = self.run(self.memory.get(key, range, if_match)).await?;
        let body = match fault {
            Fault::BreakBody => {
                let broken = BucketError::Unavailable("scripted".to_owned());
                body.take(1).chain(stream::iter([Err(broken)])).boxed()
            }
            Fault::StallBody => {
                let first = body.map(|frame| frame.map(|bytes| bytes.slice(..1)));
                first.take(1).chain(stream::pending()).boxed()
            }
            _ => body,
        };
        Ok((info, body))
    }

    async fn put(
        &self,
        key: &Key,
        body: Bytes,
        condition: &Condition,
        metadata: &Metadata,
    ) -> Result<Written, BucketError> {
        self.run(self.memory.put(key, body, condition, metadata)).await
    }

    async fn delete(&self, key: &Key, if_match: Option<&ETag>) -> Result<(), BucketError> {
        self.run(self.memory.delete(key, if_match)).await
    }

    async fn list(
        &self,
        prefix: &str,
        delimiter: bool,
        page: Option<&str>,
        max: u16,
    ) -> Result<Page, BucketError> {
        self.run(self.memory.list(prefix, delimiter, page, max)).await
    }

    async fn copy(
        &self,
        from: &Key,
        from_etag: Option<&ETag>,
        to: &Key,
        condition: &Condition,
        metadata: &Metadata,
    ) -> Result<Written, BucketError> {
        self.run(self.memory.copy(from, from_etag, to, condition, metadata)).await
    }

    async fn rename(&self, from: &Key, to: &Key, condition: &Condition) -> Result<(), BucketError> {
        self.run(self.memory.rename(from, to, condition)).await
    }

    async fn create_multipart(
        &self,
        key: &Key,
        metadata: &Metadata,
    ) -> Result<String, BucketError> {
        self.run(self.memory.create_multipart(key, metadata)).await
    }

    async fn upload_part(
        &self,
        key: &Key,
        upload: &str,
        number: u32,
        body: Bytes,
    ) -> Result<String, BucketError> {
        self.run(self.memory.upload_part(key, upload, number, body)).await
    }

    async fn upload_part_copy(
        &self,
        key: &Key,
        upload: &str,
        number: u32,
        from: &Key,
        from_etag: &ETag,
        range: Range<u64>,
    ) -> Result<String, BucketError> {
        self.run(self.memory.upload_part_copy(key, upload, number, from, from_etag, range)).await
    }

    async fn complete_multipart(
        &self,
        key: &Key,
        upload: &str,
        parts: &[String],
        condition: &Condition,
    ) -> Result<Written, BucketError> {
        self.run(self.memory.complete_multipart(key, upload, parts, condition)).await
    }

    async fn abort_multipart(&self, key: &Key, upload: &str) -> Result<(), BucketError> {
        self.run(self.memory.abort_multipart(key, upload)).await
    }

    fn capabilities(&self) -> Capabilities {
        self.memory.capabilities()
    }
}
