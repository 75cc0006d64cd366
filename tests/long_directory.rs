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
use trialfs::fs::{Caller, Entry, Fs, Purpose};
use trialfs::types::{Ino, Key, Kind};

use clock::TestClock;
use mounts::Setup;
use steered::{Steer, Steered};

const NAMES: usize = 30_500;
const PAGES: u64 = 31;
const CALLER: Caller = Caller { uid: 0, gid: 0, pid: 0 };
/// Of each answer: all pages take many times as long as an attribute lasts.
const LATE: Duration = Duration::from_millis(100);

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
        Self::on(Steered::new(memory, Slow::default()), clock).await
    }

    async fn on(store: Arc<Steered<Slow>>, clock: Arc<dyn Clock>) -> Self {
        let (disk, wait) = (TempDir::new().unwrap(), Duration::from_secs(60));
        let id = ulid(&*clock);
        let (fs, _) = Setup::new(store.clone(), clock, disk.path(), id, wait).mount().unwrap();
        let directory = fs.lookup(Ino::ROOT, OsStr::new("d"), |_| Purpose::Unknown).await.unwrap();
        Self { fs, directory: directory.stat.ino, store, _disk: disk }
    }

    /// Another node that works in the same bucket.
    async fn other(&self) -> Self {
        Self::on(self.store.clone(), Arc::new(TestClock::from(1))).await
    }

    /// Makes a link.
    async fn link(&self, name: &str) {
        let (name, target) = (OsStr::new(name), OsStr::new("target"));
        self.fs.symlink(self.directory, name, target, CALLER).await.unwrap();
    }

    async fn look(&self, name: &str) -> Result<Entry, Errno> {
        self.fs.lookup(self.directory, OsStr::new(name), |_| Purpose::Unknown).await
    }

    /// Reads all of it, to know the names.
    async fn list(&self) -> Vec<String> {
        let handle = self.fs.opendir(self.directory).await.unwrap();
        let names = self.read_on(handle, Vec::new()).await;
        self.fs.releasedir(handle);
        names
    }

    fn requests(&self) -> u64 {
        self.store.hand.0.load(Ordering::SeqCst)
    }

    /// Another tool writes a file anew, of six bytes.
    async fn replace(&self, name: &str) {
        let (key, body) = (Key::new(format!("d/{name}")), Bytes::from_static(b"longer"));
        self.store.memory.put(&key, body, &Condition::Always, &Metadata::new()).await.unwrap();
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
        // The directory's own name is asked for as well, and twice a second its records.
        assert!((PAGES..=PAGES + 10).contains(&asked), "{asked} requests for {PAGES} pages");
    }
}

#[tokio::test(start_paused = true)]
async fn who_stops_reading_a_directory_finds_young_names_when_going_on() {
    let node = Node::with_names().await;
    for pages_under_way in [4, 8] {
        let before = node.requests();
        let handle = node.fs.opendir(node.directory).await.unwrap();
        let names: Vec<String> =
            node.read(handle, 0).await.into_iter().map(|(name, _)| name).collect();
        tokio::time::sleep(Duration::from_secs(600)).await;
        let asked = node.requests() - before;
        assert!(asked <= 12 + 2 * pages_under_way, "{asked} pages for one that was read");
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
async fn stats_of_all_names_in_their_order_cost_two_listings_for_each_page() {
    let node = Node::with_names().await;
    let names = node.list().await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    for kernel_asks_for_the_directory in [false, true] {
        let before = node.requests();
        let mut asked_for = tokio::time::Instant::now();
        let mut own = 0;
        for name in &names {
            if kernel_asks_for_the_directory && asked_for.elapsed() >= Duration::from_secs(1) {
                let asked = node.requests();
                let directory = OsStr::new("d");
                node.fs.lookup(Ino::ROOT, directory, |_| Purpose::Unknown).await.unwrap();
                (asked_for, own) = (tokio::time::Instant::now(), own + node.requests() - asked);
            }
            node.look(name).await.unwrap();
        }
        let asked = node.requests() - before - own;
        assert!((PAGES..=2 * PAGES + 20).contains(&asked), "{asked} requests for {PAGES} pages");
    }

    // A page tells no more than a second, and nothing of a name that went here.
    let (gone, new) = (&names[NAMES - 1], &names[NAMES - 2]);
    node.fs.unlink(node.directory, OsStr::new(gone)).await.unwrap();
    assert_eq!(node.look(gone).await.err(), Some(Errno::ENOENT));
    node.replace(new).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(node.look(new).await.unwrap().stat.size, 6);
}

/// A LIST can't tell a link from a file, the records of the directory do: a page was believed that
/// had been asked for long after them.
#[tokio::test(start_paused = true)]
async fn a_link_made_elsewhere_meanwhile_is_not_told_as_a_file_by_a_page() {
    let node = Node::with_names().await;
    let names = node.list().await;
    let other = node.other().await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    let name = &names[100];
    other.fs.unlink(other.directory, OsStr::new(name)).await.unwrap();
    other.link(name).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    for before in &names[50..100] {
        node.look(before).await.unwrap();
    }
    assert_eq!(node.look(name).await.unwrap().stat.kind, Kind::Symlink);
}

#[tokio::test(start_paused = true)]
async fn a_link_made_while_a_reader_paused_is_not_told_as_a_file() {
    let node = Node::with_names().await;
    let other = node.other().await;
    let handle = node.fs.opendir(node.directory).await.unwrap();
    let mut read = node.read(handle, 0).await.len();
    tokio::time::sleep(Duration::from_secs(30)).await;
    let link = "030400x";
    other.link(link).await;
    tokio::time::sleep(Duration::from_secs(30)).await;
    let mut told = None;
    loop {
        let more = node.read(handle, read).await;
        if more.is_empty() {
            break;
        }
        read += more.len();
        told = told.or_else(|| more.into_iter().find(|(name, _)| name == link));
    }
    assert_eq!(told.expect("it is told").1.stat.kind, Kind::Symlink);
    assert_eq!(node.look(link).await.unwrap().stat.kind, Kind::Symlink);
}

/// What a part told was taken for as young as what a stat had been told since.
#[tokio::test(start_paused = true)]
async fn an_old_part_of_a_listing_does_not_overrule_a_newer_stat() {
    let node = Node::with_names().await;
    let handle = node.fs.opendir(node.directory).await.unwrap();
    let first = node.read(handle, 0).await.len();
    tokio::time::sleep(Duration::from_secs(30)).await;
    let name = format!("{:06}", first + 5);
    node.replace(&name).await;
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(node.look(&name).await.unwrap().stat.size, 6);
    let more = node.read(handle, first).await;
    let told = more.into_iter().find(|(told, _)| *told == name).expect("it is told");
    assert_eq!(told.1.stat.size, 6);
    assert_eq!(node.look(&name).await.unwrap().stat.size, 6);
}

#[tokio::test(start_paused = true)]
async fn names_that_went_elsewhere_cost_little_more_than_their_own_questions() {
    let node = Node::with_names().await;
    let names = node.list().await;
    for name in &names[..1000] {
        node.store.memory.delete(&Key::new(format!("d/{name}")), None).await.unwrap();
    }
    tokio::time::sleep(Duration::from_secs(60)).await;
    let before = node.requests();
    for name in &names[..500] {
        assert_eq!(node.look(name).await.err(), Some(Errno::ENOENT));
    }
    let asked = node.requests() - before;
    assert!(asked <= 500 * 2 + 500 / 8, "{asked} requests for 500 names"); // HEAD and LIST each
}
