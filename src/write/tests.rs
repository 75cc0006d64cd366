//! The write path against a store in memory whose requests are counted, held up and failed.

mod adopt;
mod ahead;
mod copying;
mod model;
mod partial;
mod prepare;
mod spare;
mod upload;

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use super::unused::is_unused;
use super::{Base, Prepared, Staged, WriteConfig, Writer};
use crate::bucket::memory::MemoryStore;
use crate::bucket::{
    Body, Bucket, BucketError, Capabilities, Condition, Metadata, ObjectInfo, Operation, Page,
    Store, Written,
};
use crate::clock;
use crate::types::{ETag, Key};

pub(super) const PART: usize = 1024;

/// A writer over a store in memory, with parts of 1 KiB.
pub(super) struct Rig {
    pub store: Arc<Meddled>,
    pub writer: Arc<Writer>,
    pub root: tempfile::TempDir,
}

fn writer(bucket: Arc<Bucket>, staging: &Path, gives_way: bool) -> Arc<Writer> {
    let config = WriteConfig {
        dir: staging.to_owned(),
        part_bytes: PART as u64,
        put_bytes_max: PART as u64,
        parallel_parts: 4,
        bodies_bytes_max: 4 * PART as u64,
        dirty_bytes_max: 1 << 30,
        staged_files_max: 1000,
        uploads_max: 100,
        gives_way,
        wait_max: Duration::from_secs(1),
    };
    Writer::new(bucket, clock::system(), config).unwrap()
}

impl Rig {
    pub fn new() -> Self {
        Self::with(|_| {})
    }

    pub fn with(change: impl FnOnce(&mut Capabilities)) -> Self {
        let root = tempfile::tempdir().unwrap();
        let memory = MemoryStore::new(clock::system());
        let mut capabilities = memory.capabilities();
        change(&mut capabilities);
        let store = Arc::new(Meddled {
            memory,
            capabilities,
            errors: Mutex::default(),
            gates: Mutex::default(),
            waiting: Mutex::default(),
        });
        let bucket = Bucket::new(store.clone(), clock::system(), Duration::from_millis(200));
        let writer = writer(bucket, &root.path().join("staging"), false);
        Self { store, writer, root }
    }

    pub fn staging(&self) -> PathBuf {
        self.root.path().join("staging")
    }

    /// Another writer over the same store, as the next daemon has it.
    pub fn writer_in(&self, staging: &Path) -> Arc<Writer> {
        writer(self.writer.shared.bucket.clone(), staging, false)
    }

    /// The same with a writer whose uploads give way to writing.
    pub fn giving_way() -> Self {
        let mut rig = Self::new();
        let bucket = rig.writer.shared.bucket.clone();
        rig.writer = writer(bucket, &rig.root.path().join("giving-way"), true);
        rig
    }

    pub fn create(&self, key: &str) -> Arc<Staged> {
        self.writer.stage(Key::new(key), None).unwrap()
    }

    /// Puts an object into the store and stages it, without a request that is counted.
    pub async fn open(&self, key: &str, content: &[u8]) -> Arc<Staged> {
        let (key, body) = (Key::new(key), Bytes::copy_from_slice(content));
        let memory = &self.store.memory;
        let Written { etag } =
            memory.put(&key, body, &Condition::Always, &Metadata::new()).await.unwrap();
        memory.take_requests();
        let base = Base { key: key.clone(), etag, size: content.len() as u64 };
        self.writer.stage(key, Some(base)).unwrap()
    }

    pub fn object(&self, key: &str) -> Option<Bytes> {
        self.store.memory.objects().get(key).cloned()
    }

    /// How many requests of each kind were made since the last call.
    pub fn requests(&self) -> HashMap<Operation, usize> {
        let mut counts = HashMap::new();
        for (operation, _) in self.store.memory.take_requests() {
            *counts.entry(operation).or_default() += 1;
        }
        counts
    }

    /// What any mount does with an upload once it may show.
    pub async fn complete(&self, prepared: &Prepared) -> ETag {
        let (Prepared { key, upload, parts, .. }, always) = (prepared, Condition::Always);
        let bucket = &self.writer.shared.bucket;
        bucket.complete_multipart(key, upload, parts, &always).await.unwrap().etag
    }

    pub fn quarantined(&self) -> Vec<Vec<u8>> {
        let Ok(dir) = std::fs::read_dir(self.root.path().join("quarantine")) else {
            return Vec::new();
        };
        dir.map(|entry| std::fs::read(entry.unwrap().path()).unwrap()).collect()
    }

    /// Files that are staged; those that are done with are empty.
    pub fn staged_names(&self) -> usize {
        let dir = std::fs::read_dir(self.root.path().join("staging")).unwrap();
        let (unused, staged): (Vec<_>, Vec<_>) = dir
            .map(|entry| entry.unwrap())
            .partition(|entry| is_unused(entry.file_name().to_str().unwrap()));
        assert!(unused.iter().all(|entry| entry.metadata().unwrap().len() == 0));
        staged.len()
    }
}

/// Bytes that differ from place to place and from seed to seed.
pub(super) fn bytes(seed: u8, len: usize) -> Vec<u8> {
    (0..len).map(|at| (at as u32).wrapping_mul(2_654_435_761).to_be_bytes()[0] ^ seed).collect()
}

/// Waits until `holds`, which another task brings about; a minute means never.
pub(super) async fn until(mut holds: impl FnMut() -> bool) {
    let end = clock::system().now() + Duration::from_secs(60);
    while !holds() {
        assert!(clock::system().now() < end, "it never came true");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// A store in memory between which and the caller a test stands.
#[derive(Debug)]
pub(super) struct Meddled {
    pub memory: Arc<MemoryStore>,
    capabilities: Capabilities,
    errors: Mutex<HashMap<Operation, BucketError>>,
    gates: Mutex<HashMap<Operation, Arc<Semaphore>>>,
    waiting: Mutex<HashMap<Operation, usize>>,
}

impl Meddled {
    /// Every such request fails, before it does anything, until [`Meddled::heal`].
    pub fn fail(&self, operation: Operation, error: BucketError) {
        self.errors.lock().insert(operation, error);
    }

    pub fn heal(&self) {
        self.errors.lock().clear();
    }

    /// Such requests wait until permits are added to what this returns.
    pub fn hold(&self, operation: Operation) -> Arc<Semaphore> {
        let gate = Arc::new(Semaphore::new(0));
        self.gates.lock().insert(operation, gate.clone());
        gate
    }

    /// How many such requests are held.
    pub fn waiting(&self, operation: Operation) -> usize {
        self.waiting.lock().get(&operation).copied().unwrap_or(0)
    }

    async fn enter(&self, operation: Operation) -> Result<(), BucketError> {
        let gate = self.gates.lock().get(&operation).cloned();
        if let Some(gate) = gate {
            *self.waiting.lock().entry(operation).or_default() += 1;
            gate.acquire().await.unwrap().forget();
            *self.waiting.lock().entry(operation).or_default() -= 1;
        }
        self.errors.lock().get(&operation).cloned().map_or(Ok(()), Err)
    }
}

#[async_trait]
impl Store for Meddled {
    async fn head(&self, key: &Key) -> Result<ObjectInfo, BucketError> {
        self.enter(Operation::Head).await?;
        self.memory.head(key).await
    }

    async fn get(
        &self,
        key: &Key,
        range: Range<u64>,
        if_match: Option<&ETag>,
    ) -> Result<(ObjectInfo, Body), BucketError> {
        self.enter(Operation::Get).await?;
        self.memory.get(key, range, if_match).await
    }

    async fn put(
        &self,
        key: &Key,
        body: Bytes,
        condition: &Condition,
        metadata: &Metadata,
    ) -> Result<Written, BucketError> {
        self.enter(Operation::Put).await?;
        self.memory.put(key, body, condition, metadata).await
    }

    async fn delete(&self, key: &Key, if_match: Option<&ETag>) -> Result<(), BucketError> {
        self.memory.delete(key, if_match).await
    }

    async fn list(
        &self,
        prefix: &str,
        delimiter: bool,
        page: Option<&str>,
        max: u16,
    ) -> Result<Page, BucketError> {
        self.memory.list(prefix, delimiter, page, max).await
    }

    async fn copy(
        &self,
        from: &Key,
        from_etag: Option<&ETag>,
        to: &Key,
        condition: &Condition,
        metadata: &Metadata,
    ) -> Result<Written, BucketError> {
        self.memory.copy(from, from_etag, to, condition, metadata).await
    }

    async fn rename(&self, from: &Key, to: &Key, condition: &Condition) -> Result<(), BucketError> {
        self.memory.rename(from, to, condition).await
    }

    async fn create_multipart(
        &self,
        key: &Key,
        metadata: &Metadata,
    ) -> Result<String, BucketError> {
        self.enter(Operation::MultipartCreate).await?;
        self.memory.create_multipart(key, metadata).await
    }

    async fn upload_part(
        &self,
        key: &Key,
        upload: &str,
        number: u32,
        body: Bytes,
    ) -> Result<String, BucketError> {
        self.enter(Operation::Part).await?;
        self.memory.upload_part(key, upload, number, body).await
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
        self.enter(Operation::PartCopy).await?;
        self.memory.upload_part_copy(key, upload, number, from, from_etag, range).await
    }

    async fn complete_multipart(
        &self,
        key: &Key,
        upload: &str,
        parts: &[String],
        condition: &Condition,
    ) -> Result<Written, BucketError> {
        self.enter(Operation::Complete).await?;
        self.memory.complete_multipart(key, upload, parts, condition).await
    }

    async fn abort_multipart(&self, key: &Key, upload: &str) -> Result<(), BucketError> {
        self.memory.abort_multipart(key, upload).await
    }

    fn capabilities(&self) -> Capabilities {
        self.capabilities
    }
}
