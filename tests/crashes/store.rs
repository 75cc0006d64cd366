//! A store in memory that is cut off from its mount at the k-th request, before or after that was
//! applied: to the mount it never answers again.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::Notify;
use trialfs::bucket::memory::MemoryStore;
use trialfs::bucket::{
    Body, BucketError, Capabilities, Condition, Metadata, ObjectInfo, Page, Store, Written,
};
use trialfs::types::{ETag, Key};

/// Whether the last request still reaches the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Last {
    Applied,
    Lost,
}

#[derive(Debug)]
pub struct Cut {
    memory: Arc<MemoryStore>,
    calls: AtomicU64,
    at: u64,
    last: Last,
    /// The k-th request was made.
    pub dead: Notify,
}

impl Cut {
    /// Counts from 1.
    pub fn at(memory: Arc<MemoryStore>, at: u64, last: Last) -> Arc<Self> {
        Arc::new(Self { memory, calls: AtomicU64::new(0), at, last, dead: Notify::new() })
    }

    pub fn calls(&self) -> u64 {
        self.calls.load(Ordering::SeqCst)
    }

    async fn run<T>(
        &self,
        act: impl Future<Output = Result<T, BucketError>>,
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

#[async_trait]
impl Store for Cut {
    async fn head(&self, key: &Key) -> Result<ObjectInfo, BucketError> {
        self.run(self.memory.head(key)).await
    }

    async fn get(
        &self,
        key: &Key,
        range: Range<u64>,
        if_match: Option<&ETag>,
    ) -> Result<(ObjectInfo, Body), BucketError> {
        self.run(self.memory.get(key, range, if_match)).await
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
