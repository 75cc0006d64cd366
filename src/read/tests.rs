//! The read path against a store in memory that counts, holds back and fails.
//!
//! Owns the bench: a store, a cache directory, a reader. The promises are in the files below.

mod caching;
mod requests;
mod store;
mod versions;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::*;
use crate::bucket::{Condition, Metadata};
use crate::clock;
use store::TestStore;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

struct Bench {
    store: Arc<TestStore>,
    bucket: Arc<Bucket>,
    dir: tempfile::TempDir,
    reader: Arc<Reader>,
}

fn config(dir: PathBuf) -> ReadConfig {
    ReadConfig {
        dir,
        cache_bytes_max: 1 << 30,
        memory_bytes_max: 128 * MIB,
        block_bytes: BLOCK_BYTES_DEFAULT,
        parallel_gets: PARALLEL_GETS_DEFAULT,
    }
}

/// Bytes that differ at every offset and from seed to seed.
fn content(seed: u64, size: u64) -> Bytes {
    let word = |i: u64| (i ^ seed << 40).wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes();
    let mut bytes: Vec<u8> = (0..size.div_ceil(8)).flat_map(word).collect();
    bytes.truncate(size as usize);
    bytes.into()
}

impl Bench {
    fn new() -> Self {
        Self::with(|_| {})
    }

    fn with(change: impl FnOnce(&mut ReadConfig)) -> Self {
        Self::with_files(change, disk::create_file)
    }

    fn with_files(change: impl FnOnce(&mut ReadConfig), create: disk::Create) -> Self {
        let store = TestStore::new(clock::system());
        let bucket = Bucket::new(store.clone(), clock::system(), Duration::from_secs(20));
        let dir = tempfile::tempdir().unwrap();
        let mut config = config(dir.path().join("blocks"));
        change(&mut config);
        let reader = Reader::with_files(bucket.clone(), clock::system(), config, create).unwrap();
        Self { store, bucket, dir, reader }
    }

    /// The same directory, with nothing remembered.
    async fn restart(&mut self) {
        self.settle().await;
        let config = self.reader.config.clone();
        self.reader = Reader::new(self.bucket.clone(), clock::system(), config).unwrap();
    }

    async fn put(&self, key: &str, bytes: &Bytes) -> Version {
        let (key, always) = (Key::new(key), Condition::Always);
        let written = self.bucket.put(&key, bytes.clone(), &always, &Metadata::new()).await;
        Version { key, etag: written.unwrap().etag, size: bytes.len() as u64 }
    }

    async fn object(&self, key: &str, size: u64) -> (Version, Bytes) {
        let bytes = content(key.len() as u64 * 31 + size, size);
        (self.put(key, &bytes).await, bytes)
    }

    /// Until everything that came is stored.
    async fn settle(&self) {
        until(|| self.reader.status().in_flight_bytes == 0).await;
    }

    /// Reads all of a version as `cp` does, in READs of `len` bytes.
    async fn read_all(&self, version: &Version, len: u32) -> Result<Vec<u8>, ReadError> {
        let handle = self.reader.open(version.clone());
        let mut all = Vec::new();
        loop {
            let bytes = self.reader.read(&handle, all.len() as u64, len).await?;
            if bytes.is_empty() {
                return Ok(all);
            }
            all.extend_from_slice(&bytes);
        }
    }

    fn cache_files(&self) -> Vec<PathBuf> {
        let items = std::fs::read_dir(self.dir.path().join("blocks")).unwrap();
        let files = items.map(|item| item.unwrap().path());
        files.filter(|p| p.extension().is_some_and(|e| e == "block")).collect()
    }
}

async fn until(mut holds: impl FnMut() -> bool) {
    let wait = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), wait).await.expect("it never came to hold");
}
