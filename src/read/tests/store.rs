//! A store in memory whose GETs are recorded, held back frame by frame, failed or lied to.

use std::collections::VecDeque;

use async_trait::async_trait;
use futures::StreamExt;
use tokio::sync::Semaphore;

use super::*;
use crate::bucket::memory::MemoryStore;
use crate::bucket::{Body, BucketError, Capabilities, ObjectInfo, Page, Store, Written};
use crate::types::ETag;

/// What a GET asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Get {
    pub key: String,
    pub range: Range<u64>,
    pub if_match: Option<ETag>,
}

#[derive(Debug)]
pub struct TestStore {
    inner: Arc<MemoryStore>,
    gets: Mutex<Vec<Get>>,
    /// A permit for each frame that may pass.
    gate: Arc<Semaphore>,
    errors: Mutex<VecDeque<BucketError>>,
    /// Conditions are ignored, as some stores do.
    deaf: std::sync::atomic::AtomicBool,
    /// The next body is another.
    flip: std::sync::atomic::AtomicBool,
}

const OPEN: usize = Semaphore::MAX_PERMITS / 2;

impl TestStore {
    pub fn new(clock: Arc<dyn Clock>) -> Arc<Self> {
        Arc::new(Self {
            inner: MemoryStore::new(clock),
            gets: Mutex::default(),
            gate: Arc::new(Semaphore::new(OPEN)),
            errors: Mutex::default(),
            deaf: false.into(),
            flip: false.into(),
        })
    }

    /// No frame passes until [`TestStore::pass`] or [`TestStore::open_gate`].
    pub fn close_gate(&self) {
        self.gate.forget_permits(usize::MAX);
    }

    pub fn pass(&self, frames: usize) {
        self.gate.add_permits(frames);
    }

    pub fn open_gate(&self) {
        self.gate.add_permits(OPEN);
    }

    /// The next GETs fail so, one by one.
    pub fn fail(&self, errors: impl IntoIterator<Item = BucketError>) {
        self.errors.lock().extend(errors);
    }

    /// The body of the next GET is not what is stored.
    pub fn flip_next(&self) {
        self.flip.store(true, std::sync::atomic::Ordering::SeqCst);
    }

    pub fn ignore_conditions(&self) {
        self.deaf.store(true, std::sync::atomic::Ordering::SeqCst);
    }

    pub fn gets(&self) -> Vec<Get> {
        self.gets.lock().clone()
    }

    pub fn take_gets(&self) -> Vec<Get> {
        std::mem::take(&mut self.gets.lock())
    }
}

fn not_here<T>() -> Result<T, BucketError> {
    Err(BucketError::Unsupported("do more than GET and PUT here"))
}

#[async_trait]
impl Store for TestStore {
    async fn get(
        &self,
        key: &Key,
        range: Range<u64>,
        if_match: Option<&ETag>,
    ) -> Result<(ObjectInfo, Body), BucketError> {
        let get = Get { key: key.to_string(), range: range.clone(), if_match: if_match.cloned() };
        self.gets.lock().push(get);
        if let Some(error) = self.errors.lock().pop_front() {
            return Err(error);
        }
        let deaf = self.deaf.load(std::sync::atomic::Ordering::SeqCst);
        let if_match = if_match.filter(|_| !deaf);
        let (info, body) = self.inner.get(key, range, if_match).await?;
        let gate = self.gate.clone();
        let flip = self.flip.swap(false, std::sync::atomic::Ordering::SeqCst);
        let gated = body.then(move |frame| {
            let gate = gate.clone();
            async move {
                gate.acquire().await.unwrap().forget();
                match flip {
                    true => frame.map(|frame| frame.iter().map(|byte| byte ^ 1).collect()),
                    false => frame,
                }
            }
        });
        Ok((info, gated.boxed()))
    }

    async fn put(
        &self,
        key: &Key,
        body: Bytes,
        condition: &Condition,
        metadata: &Metadata,
    ) -> Result<Written, BucketError> {
        self.inner.put(key, body, condition, metadata).await
    }

    async fn delete(&self, key: &Key, if_match: Option<&ETag>) -> Result<(), BucketError> {
        self.inner.delete(key, if_match).await
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    async fn head(&self, key: &Key) -> Result<ObjectInfo, BucketError> {
        self.inner.head(key).await
    }

    async fn list(&self, _: &str, _: bool, _: Option<&str>, _: u16) -> Result<Page, BucketError> {
        not_here()
    }

    async fn copy(
        &self,
        _: &Key,
        _: Option<&ETag>,
        _: &Key,
        _: &Condition,
        _: &Metadata,
    ) -> Result<Written, BucketError> {
        not_here()
    }

    async fn rename(&self, _: &Key, _: &Key, _: &Condition) -> Result<(), BucketError> {
        not_here()
    }

    async fn create_multipart(&self, _: &Key, _: &Metadata) -> Result<String, BucketError> {
        not_here()
    }

    async fn upload_part(&self, _: &Key, _: &str, _: u32, _: Bytes) -> Result<String, BucketError> {
        not_here()
    }

    async fn upload_part_copy(
        &self,
        _: &Key,
        _: &str,
        _: u32,
        _: &Key,
        _: &ETag,
        _: Range<u64>,
    ) -> Result<String, BucketError> {
        not_here()
    }

    async fn complete_multipart(
        &self,
        _: &Key,
        _: &str,
        _: &[String],
        _: &Condition,
    ) -> Result<Written, BucketError> {
        not_here()
    }

    async fn abort_multipart(&self, _: &Key, _: &str) -> Result<(), BucketError> {
        not_here()
    }
}
