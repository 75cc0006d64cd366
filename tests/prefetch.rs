//! Files of a directory that are read in their order: the next are fetched before they are opened;
//! and nothing is fetched for whoever does not read so.
//!
//! Owns the readers. Does not own what follows a file (`fs::prefetch`), nor fetching (`read`).

#[path = "support/clock.rs"]
mod clock;
#[path = "support/mounts.rs"]
mod mounts;

use std::ffi::OsStr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tempfile::TempDir;
use trialfs::bucket::memory::MemoryStore;
use trialfs::bucket::{Condition, Metadata, Store};
use trialfs::clock::{Clock, ulid};
use trialfs::fs::{Fs, Purpose};
use trialfs::types::{Ino, Key};

use clock::TestClock;
use mounts::Setup;

/// Less than the window and than what is checked whole before a byte of it is handed out.
const FILE_BYTES: usize = 512 << 10;
const WAIT_MAX: Duration = Duration::from_secs(30);

struct Node {
    fs: Arc<Fs>,
    store: Arc<MemoryStore>,
    directory: Ino,
    _disk: TempDir,
}

impl Node {
    /// Another tool filled a directory with as many shards, and a small file beside each.
    async fn with_shards(count: usize) -> Self {
        Self::with(count, |_| FILE_BYTES).await
    }

    async fn with(count: usize, bytes: fn(usize) -> usize) -> Self {
        let clock: Arc<dyn Clock> = Arc::new(TestClock::default());
        let store = MemoryStore::new(clock.clone());
        for i in 0..count {
            put(&store, &format!("d/{}", shard(i)), &vec![i as u8; bytes(i)]).await;
            put(&store, &format!("d/{}.json", shard(i)), b"{}").await;
        }
        let disk = TempDir::new().unwrap();
        let id = ulid(&*clock);
        let setup = Setup::new(store.clone(), clock, disk.path(), id, Duration::from_secs(30));
        let (fs, _) = setup.mount().unwrap();
        let directory = fs.lookup(Ino::ROOT, OsStr::new("d"), |_| Purpose::Unknown).await.unwrap();
        let directory = directory.stat.ino;
        Self { fs, store, directory, _disk: disk }
    }

    async fn read(&self, name: &str, length: usize) -> Vec<u8> {
        let name = OsStr::new(name);
        let found = self.fs.lookup(self.directory, name, |_| Purpose::Unknown).await.unwrap();
        let opened = self.fs.open(found.stat.ino, libc::O_RDONLY, 7).await.unwrap();
        let bytes = self.fs.read(opened.handle, 0, length as u32).await.unwrap();
        self.fs.release(opened.handle).await;
        bytes.to_vec()
    }

    async fn read_shard(&self, i: usize) {
        assert!(self.read(&shard(i), FILE_BYTES).await == vec![i as u8; FILE_BYTES], "shard {i}");
    }

    /// Bytes that were fetched ahead so far, once all that was begun has come.
    async fn fetched_ahead(&self) -> usize {
        let settled = async {
            while self.fs.status().read.in_flight_bytes > 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(WAIT_MAX, settled).await.expect("what was begun comes");
        self.fs.status().read.ahead_bytes as usize
    }
}

fn shard(i: usize) -> String {
    format!("shard{i:02}.bin")
}

async fn put(store: &MemoryStore, key: &str, body: &[u8]) {
    let (key, body) = (Key::new(key), Bytes::copy_from_slice(body));
    store.put(&key, body, &Condition::Always, &Metadata::new()).await.unwrap();
}

#[tokio::test]
async fn shards_that_are_read_in_their_order_are_there_before_they_are_opened() {
    let node = Node::with_shards(12).await;
    node.read_shard(0).await;
    assert_eq!(node.fetched_ahead().await, 0, "nobody knows yet");
    node.read("shard00.bin.json", 2).await; // a small file between them does not matter
    node.read_shard(1).await;
    assert!(node.fetched_ahead().await >= FILE_BYTES, "the third is on its way");
    let waits = node.fs.status().read.misses;
    node.read_shard(2).await;
    assert_eq!(node.fs.status().read.misses, waits, "nobody waited for what was here");
    for i in 3..12 {
        node.read_shard(i).await;
        node.fetched_ahead().await;
    }
    let fetched = node.fs.status().read.fetched_bytes as usize;
    assert_eq!(fetched, 12 * FILE_BYTES, "each byte came once");
}

#[tokio::test]
async fn nothing_is_fetched_for_whoever_reads_one_file_or_looks_into_many() {
    let node = Node::with_shards(12).await;
    for i in [3, 0, 7, 5, 11] {
        node.read_shard(i).await; // whole, but in no order
    }
    assert_eq!(node.fetched_ahead().await, 0);
}

#[tokio::test]
async fn what_is_fetched_for_who_stops_is_bounded_by_what_was_read() {
    let node = Node::with_shards(40).await;
    node.read_shard(0).await;
    node.read_shard(1).await;
    for _ in 0..40 {
        node.read_shard(1).await; // again and again, which is no order either
    }
    let ahead = node.fetched_ahead().await;
    assert!((FILE_BYTES..=4 * FILE_BYTES).contains(&ahead), "{ahead} bytes for one file");
    for i in 2..40 {
        // A look at the head of each, as of a tool that tells what is in a file.
        node.read(&shard(i), 100).await;
    }
    let ahead = node.fetched_ahead().await;
    assert!(ahead <= 40 * FILE_BYTES / 2, "{ahead} bytes of {}", 40 * FILE_BYTES);
}

#[tokio::test]
async fn what_was_fetched_of_a_version_that_was_replaced_is_not_read() {
    let node = Node::with_shards(4).await;
    node.read_shard(0).await;
    node.read_shard(1).await;
    assert!(node.fetched_ahead().await >= FILE_BYTES);
    put(&node.store, &format!("d/{}", shard(2)), &vec![0xaa; FILE_BYTES]).await;
    assert!(node.read(&shard(2), FILE_BYTES).await == vec![0xaa; FILE_BYTES]);
}

/// What is checked whole before a byte of it is handed out must not come in two answers.
#[tokio::test]
async fn a_file_that_is_checked_whole_is_fetched_whole_or_not_at_all() {
    let node = Node::with(4, |i| if i < 2 { 160 << 10 } else { 700 << 10 }).await;
    for i in 0..2 {
        assert_eq!(node.read(&shard(i), 160 << 10).await.len(), 160 << 10);
    }
    assert_eq!(node.fetched_ahead().await, 0, "640 KiB would be a part of it");
    assert_eq!(node.read(&shard(2), 700 << 10).await.len(), 700 << 10);
    node.fetched_ahead().await;
    // Two were read by then, and the fourth fits.
    assert_eq!(node.fs.status().read.fetched_bytes as usize, (2 * 160 + 2 * 700) << 10);
}
