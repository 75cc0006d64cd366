//! A directory of many pages, read as `ls -l` does it: each name is as young as the page that told
//! it, and no page is asked for long before somebody reads it.
//!
//! Owns the reading. Does not own the telling (`fs::parts`).

#[path = "support/clock.rs"]
mod clock;
#[path = "support/mounts.rs"]
mod mounts;
#[path = "support/steered.rs"]
mod steered;

use std::ffi::OsStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tempfile::TempDir;
use trialfs::bucket::memory::MemoryStore;
use trialfs::bucket::{BucketError, Condition, Metadata, Store};
use trialfs::clock::{Clock, ulid};
use trialfs::fs::error::Errno;
use trialfs::fs::{Entry, Fs, Purpose};
use trialfs::types::{Ino, Key};

use clock::TestClock;
use mounts::Setup;
use steered::{Steer, Steered};

const NAMES: usize = 30_500;
const PAGES: u64 = 31;
/// Of each answer: all pages take many times as long as an attribute lasts.
const LATE: Duration = Duration::from_millis(300);

/// Answers each request late, and counts them.
#[derive(Debug, Default)]
struct Slow(AtomicU64);

impl Steer for Slow {
    async fn run<T: Send>(
        &self,
        act: impl Future<Output = Result<T, BucketError>> + Send,
    ) -> Result<T, BucketError> {
        self.0.fetch_add(1, Ordering::SeqCst);
        tokio::time::sleep(LATE).await;
        act.await
    }
}

struct Node {
    fs: Arc<Fs>,
    directory: Ino,
    store: Arc<Steered<Slow>>,
    _disk: TempDir,
}

impl Node {
    async fn with_names() -> Self {
        let clock: Arc<dyn Clock> = Arc::new(TestClock::default());
        let memory = MemoryStore::new(clock.clone());
        for i in 0..NAMES {
            let (key, body) = (Key::new(format!("d/{i:06}")), Bytes::from_static(b"x"));
            memory.put(&key, body, &Condition::Always, &Metadata::new()).await.unwrap();
        }
        let store = Steered::new(memory, Slow::default());
        let disk = TempDir::new().unwrap();
        let id = ulid(&*clock);
        let wait = Duration::from_secs(60);
        let (fs, _) = Setup::new(store.clone(), clock, disk.path(), id, wait).mount().unwrap();
        let directory = fs.lookup(Ino::ROOT, OsStr::new("d"), |_| Purpose::Unknown).await.unwrap();
        Self { fs, directory: directory.stat.ino, store, _disk: disk }
    }

    fn requests(&self) -> u64 {
        self.store.hand.0.load(Ordering::SeqCst)
    }

    /// One call of readdirplus: what stands at and behind an offset.
    async fn read(&self, handle: u64, offset: usize) -> Vec<(String, Entry)> {
        let part = self.fs.read_directory(handle, offset as u64 + 2).await.unwrap();
        let from = offset - part.first;
        (from..part.entries.len())
            .filter_map(|index| self.fs.directory_entry_plus(self.directory, &part, index))
            .collect()
    }

    /// Reads the rest of a directory, and checks that nothing of it is old.
    async fn read_on(&self, handle: u64, mut names: Vec<String>) -> Vec<String> {
        loop {
            let more = self.read(handle, names.len()).await;
            if more.is_empty() {
                return names;
            }
            for (name, entry) in more {
                let left = entry.ttl;
                assert!(left >= Duration::from_millis(200), "{name} lasts {left:?}");
                self.fs.getattr(entry.stat.ino).await.unwrap(); // as ls does, at once
                names.push(name);
            }
        }
    }
}

fn all_names() -> Vec<String> {
    (0..NAMES).map(|i| format!("{i:06}")).collect()
}

#[tokio::test(start_paused = true)]
async fn names_of_a_listing_that_takes_many_seconds_are_not_asked_for_again() {
    let node = Node::with_names().await;
    for _ in 0..2 {
        let before = node.requests();
        let handle = node.fs.opendir(node.directory).await.unwrap();
        assert_eq!(node.read_on(handle, Vec::new()).await, all_names());
        node.fs.releasedir(handle);
        let asked = node.requests() - before;
        // The directory's own name is asked for as well.
        assert!((PAGES..=PAGES + 2).contains(&asked), "{asked} requests for {PAGES} pages");
    }
}

#[tokio::test(start_paused = true)]
async fn who_stops_reading_a_directory_finds_young_names_when_going_on() {
    let node = Node::with_names().await;
    for pages_under_way in [1, 8] {
        let before = node.requests();
        let handle = node.fs.opendir(node.directory).await.unwrap();
        let names: Vec<String> =
            node.read(handle, 0).await.into_iter().map(|(name, _)| name).collect();
        tokio::time::sleep(Duration::from_secs(600)).await;
        let asked = node.requests() - before;
        assert!(asked <= 10 + 2 * pages_under_way, "{asked} pages for one that was read");
        let mut all = names;
        loop {
            let more = node.read(handle, all.len()).await;
            if more.is_empty() {
                break;
            }
            all.extend(more.into_iter().map(|(name, _)| name));
        }
        assert_eq!(all, all_names());
        node.fs.releasedir(handle);
    }
}

#[tokio::test(start_paused = true)]
async fn stats_of_all_names_in_their_order_cost_a_listing_of_each_page() {
    let node = Node::with_names().await;
    let handle = node.fs.opendir(node.directory).await.unwrap();
    let names = node.read_on(handle, Vec::new()).await;
    node.fs.releasedir(handle);
    tokio::time::sleep(Duration::from_secs(60)).await;
    let before = node.requests();
    for name in &names {
        node.fs.lookup(node.directory, OsStr::new(name), |_| Purpose::Unknown).await.unwrap();
    }
    let asked = node.requests() - before;
    assert!((PAGES..=PAGES + 20).contains(&asked), "{asked} requests for {PAGES} pages");

    // A page tells no more than a second, and nothing of a name that went here.
    let (gone, new) = (&names[NAMES - 1], &names[NAMES - 2]);
    node.fs.unlink(node.directory, OsStr::new(gone)).await.unwrap();
    let found = node.fs.lookup(node.directory, OsStr::new(gone), |_| Purpose::Unknown).await;
    assert_eq!(found.err(), Some(Errno::ENOENT));
    let (key, body) = (Key::new(format!("d/{new}")), Bytes::from_static(b"longer"));
    node.store.memory.put(&key, body, &Condition::Always, &Metadata::new()).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let found = node.fs.lookup(node.directory, OsStr::new(new), |_| Purpose::Unknown).await;
    assert_eq!(found.unwrap().stat.size, 6);
}
