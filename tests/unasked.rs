//! Questions that a lookup spares because it knows what it is for, between whole mounts of one
//! store in memory: what they cost, and that nothing another node made in the meantime is lost.

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
use trialfs::config::Durability;
use trialfs::fs::error::Errno;
use trialfs::fs::{Caller, Closer, Fs, Purpose, Replace};
use trialfs::types::{Ino, Key};

use clock::TestClock;
use mounts::Setup;

const CALLER: Caller = Caller { uid: 0, gid: 0, pid: 0 };
const REPLACE: i32 = libc::O_WRONLY | libc::O_CREAT | libc::O_TRUNC;
const READER: u32 = 7;
const TTL: Duration = Duration::from_secs(1);

/// What the nodes have in common.
struct Shared {
    objects: Arc<MemoryStore>,
    clock: Arc<dyn Clock>,
}

impl Shared {
    fn new() -> Self {
        let clock: Arc<dyn Clock> = Arc::new(TestClock::default());
        Self { objects: MemoryStore::new(clock.clone()), clock }
    }

    fn has(&self, key: &str) -> bool {
        self.objects.objects().contains_key(key)
    }
}

struct Mount {
    fs: Arc<Fs>,
    disk: TempDir,
}

impl Mount {
    fn with(store: &Shared, change: impl FnOnce(&mut Setup)) -> Self {
        let disk = TempDir::new().unwrap();
        let (clock, wait) = (store.clock.clone(), Duration::from_secs(30));
        let id = ulid(&*clock);
        let mut setup = Setup::new(store.objects.clone(), clock, disk.path(), id, wait);
        change(&mut setup);
        Self { fs: setup.mount().unwrap().0, disk }
    }

    async fn mkdir(&self, parent: Ino, name: &str) -> Result<Ino, Errno> {
        Ok(self.fs.mkdir(parent, OsStr::new(name), 0o755, CALLER).await?.stat.ino)
    }

    async fn find(&self, parent: Ino, name: &str, purpose: Purpose) -> Result<Ino, Errno> {
        Ok(self.fs.lookup(parent, OsStr::new(name), |_| purpose).await?.stat.ino)
    }

    /// open(2) of a name that is to be made or emptied, as the kernel does it.
    async fn open_anew(&self, parent: Ino, name: &str, mode: u32) -> Result<u64, Errno> {
        match self.find(parent, name, Purpose::Replace).await {
            Ok(ino) => Ok(self.fs.open(ino, REPLACE, 0).await?.handle),
            Err(Errno::ENOENT) => {
                let made = self.fs.create(parent, OsStr::new(name), mode, REPLACE, CALLER).await?;
                Ok(made.1.handle)
            }
            Err(errno) => Err(errno),
        }
    }

    async fn write_and_close(&self, handle: u64, body: &[u8]) -> Result<(), Errno> {
        self.fs.write(handle, 0, body).await?;
        let closed = self.fs.flush(handle, Closer::Living(0)).await;
        self.fs.release(handle).await;
        closed
    }

    async fn write(&self, parent: Ino, name: &str, mode: u32, body: &[u8]) -> Result<(), Errno> {
        let handle = self.open_anew(parent, name, mode).await?;
        self.write_and_close(handle, body).await
    }

    async fn read(&self, ino: Ino, thread: u32) -> Result<Vec<u8>, Errno> {
        let opened = self.fs.open(ino, libc::O_RDONLY, thread).await?;
        let bytes = self.fs.read(opened.handle, 0, 1 << 20).await;
        self.fs.release(opened.handle).await;
        bytes.map(|bytes| bytes.to_vec())
    }

    async fn mode(&self, ino: Ino) -> u32 {
        self.fs.getattr(ino).await.unwrap().stat.attributes.mode
    }

    /// Whether some file of the cache directory holds these bytes alone.
    fn keeps(&self, bytes: &[u8]) -> bool {
        let mut directories = vec![self.disk.path().to_owned()];
        while let Some(directory) = directories.pop() {
            for entry in std::fs::read_dir(directory).unwrap() {
                let entry = entry.unwrap();
                match entry.file_type().unwrap().is_dir() {
                    true => directories.push(entry.path()),
                    false if std::fs::read(entry.path()).unwrap() == bytes => return true,
                    false => {}
                }
            }
        }
        false
    }

    fn requests(&self) -> u64 {
        let now = self.fs.status().requests;
        now.head + now.get + now.put + now.list + now.delete
    }
}

/// Two nodes: one has just made `d` and knows that it is empty, the other knows `d`.
async fn nodes(store: &Shared) -> (Mount, Mount, Ino, Ino) {
    nodes_with(store, |_| {}).await
}

/// The same; the first one's setup is changed.
async fn nodes_with(store: &Shared, change: impl FnOnce(&mut Setup)) -> (Mount, Mount, Ino, Ino) {
    let (a, b) = (Mount::with(store, change), Mount::with(store, |_| {}));
    let ours = a.mkdir(Ino::ROOT, "d").await.unwrap();
    let theirs = b.find(Ino::ROOT, "d", Purpose::Unknown).await.unwrap();
    (a, b, ours, theirs)
}

#[tokio::test(start_paused = true)]
async fn a_file_in_a_directory_just_made_is_begun_without_a_request() {
    let store = Shared::new();
    let (a, b, d, theirs) = nodes(&store).await;
    let before = a.requests();
    let handle = a.open_anew(d, "f", 0o644).await.unwrap();
    assert_eq!(a.requests(), before);
    a.write_and_close(handle, b"content").await.unwrap();
    assert_eq!(a.requests() - before, 2, "1 PUT and beside it 1 LIST");
    let seen = b.find(theirs, "f", Purpose::Unknown).await.unwrap();
    assert_eq!(b.read(seen, 0).await.unwrap(), b"content");
}

#[tokio::test(start_paused = true)]
async fn what_was_listed_a_second_ago_is_asked_again_and_many_files_by_one_listing() {
    let store = Shared::new();
    let (a, b, d, theirs) = nodes(&store).await;
    tokio::time::sleep(TTL).await;
    b.write(theirs, "f", 0o644, b"theirs").await.unwrap();
    // What is there is opened, not made.
    assert!(a.find(d, "f", Purpose::Replace).await.is_ok());
    for i in 0..3 {
        a.write(d, &format!("g{i}"), 0o644, b"ours").await.unwrap();
    }
    let before = a.requests();
    for i in 0..100 {
        a.write(d, &format!("h{i}"), 0o644, b"ours").await.unwrap();
    }
    assert_eq!(a.requests() - before, 1 + 2 * 100, "1 LIST for all, and their uploads");
}

/// A directory of two pages that was listed, but few of whose names are in use.
#[tokio::test(start_paused = true)]
async fn files_made_in_a_long_directory_do_not_cost_a_listing_each() {
    let store = Shared::new();
    let (a, d) = crowded(&store, 1500).await;
    let handle = a.fs.opendir(d).await.unwrap();
    for offset in [0, 1000, 1499] {
        a.fs.read_directory(handle, offset + 2).await.unwrap();
    }
    a.fs.releasedir(handle);
    tokio::time::sleep(TTL * 2).await;
    let before = a.requests();
    for i in 0..100 {
        a.write(d, &format!("new{i}"), 0o644, b"ours").await.unwrap();
    }
    let asked = a.requests() - before;
    assert!(asked <= 2 * 100 + 40, "{asked} requests for 100 files");
}

/// A node that knows nothing yet of a directory of so many files.
async fn crowded(store: &Shared, count: usize) -> (Mount, Ino) {
    for i in 0..count {
        let (key, body) = (Key::new(format!("d/old{i:06}")), Bytes::from_static(b"x"));
        store.objects.put(&key, body, &Condition::Always, &Metadata::new()).await.unwrap();
    }
    let a = Mount::with(store, |_| {});
    let d = a.find(Ino::ROOT, "d", Purpose::Unknown).await.unwrap();
    (a, d)
}

/// Its whole listing is of more pages than are asked for to make files.
#[tokio::test(start_paused = true)]
async fn files_made_in_order_in_a_directory_of_any_length_are_begun_without_a_request_each() {
    let store = Shared::new();
    let (a, d) = crowded(&store, 20_500).await;
    for stem in ["old1", "p"] {
        let before = a.requests();
        for i in 0..400 {
            a.write(d, &format!("{stem}x{i:03}"), 0o644, b"ours").await.unwrap();
            if i % 100 == 99 {
                tokio::time::sleep(TTL).await;
            }
        }
        let asked = a.requests() - before;
        assert!(asked <= 2 * 400 + 80, "{asked} requests for 400 files at {stem}");
    }
}

/// As the threads of a pool make them, and in no order at all, which costs no more than to ask.
#[tokio::test(start_paused = true)]
async fn files_made_in_another_order_in_a_long_directory_cost_no_more_than_asking() {
    let store = Shared::new();
    let (a, d) = crowded(&store, 20_500).await;
    let before = a.requests();
    for i in 0..400 {
        a.write(d, &format!("p{:03}", i ^ 7), 0o644, b"ours").await.unwrap();
    }
    let asked = a.requests() - before;
    assert!(asked <= 2 * 400 + 120, "{asked} requests for 400 files, nearly in order");
    let before = a.requests();
    for i in 0..400 {
        a.write(d, &format!("old{:06}x", i * 7919 % 20_500), 0o644, b"ours").await.unwrap();
    }
    let asked = a.requests() - before;
    assert!(asked <= 4 * 400 + 20, "{asked} requests for 400 files in no order");
}

#[tokio::test(start_paused = true)]
async fn what_another_node_makes_behind_a_page_is_not_buried_either() {
    let store = Shared::new();
    let (a, d) = crowded(&store, 1500).await;
    let b = Mount::with(&store, |_| {});
    let theirs = b.find(Ino::ROOT, "d", Purpose::Unknown).await.unwrap();
    b.write(theirs, "p150", 0o600, b"theirs").await.unwrap();
    b.fs.fsyncdir(theirs).await.unwrap(); // its record too
    for i in 0..100 {
        a.write(d, &format!("p{i:03}"), 0o644, b"ours").await.unwrap();
    }
    let x = b.mkdir(theirs, "p100").await.unwrap();
    b.write(x, "inside", 0o644, b"kept").await.unwrap();
    let before = a.requests();
    let handle = a.open_anew(d, "p100", 0o644).await.unwrap();
    assert_eq!(a.requests(), before, "the page is young");
    assert_eq!(a.write_and_close(handle, b"file").await, Err(Errno::EISDIR));
    assert!(!store.has("d/p100"));
    // What the page shows is asked for as ever.
    a.write(d, "p150", 0o644, b"ours").await.unwrap();
    let x = a.find(d, "p150", Purpose::Unknown).await.unwrap();
    assert_eq!(a.read(x, 0).await.unwrap(), b"ours");
    assert_eq!(a.mode(x).await, 0o600);
}

#[tokio::test(start_paused = true)]
async fn another_nodes_directory_is_not_buried_under_a_file() {
    let store = Shared::new();
    let (a, b, d, theirs) = nodes(&store).await;
    let x = b.mkdir(theirs, "x").await.unwrap();
    b.write(x, "inside", 0o644, b"kept").await.unwrap();
    let handle = a.open_anew(d, "x", 0o644).await.unwrap();
    assert_eq!(a.write_and_close(handle, b"file").await, Err(Errno::EISDIR));
    assert!(!store.has("d/x"));
    let x = a.find(d, "x", Purpose::Unknown).await.unwrap();
    let inside = a.find(x, "inside", Purpose::Unknown).await.unwrap();
    assert_eq!(a.read(inside, 0).await.unwrap(), b"kept");
}

#[tokio::test(start_paused = true)]
async fn another_nodes_link_is_not_replaced_by_a_file() {
    let store = Shared::new();
    let (a, b, d, theirs) = nodes(&store).await;
    b.fs.symlink(theirs, OsStr::new("x"), OsStr::new("target"), CALLER).await.unwrap();
    let handle = a.open_anew(d, "x", 0o644).await.unwrap();
    assert_eq!(a.write_and_close(handle, b"file").await, Err(Errno::ESTALE));
    let link = a.find(d, "x", Purpose::Unknown).await.unwrap();
    assert_eq!(a.fs.readlink(link).await.unwrap(), "target");
}

#[tokio::test(start_paused = true)]
async fn another_nodes_file_is_emptied_and_keeps_its_mode() {
    let store = Shared::new();
    let (a, b, d, theirs) = nodes(&store).await;
    b.write(theirs, "x", 0o600, b"secret").await.unwrap();
    b.fs.fsyncdir(theirs).await.unwrap(); // its record too
    a.write(d, "x", 0o644, b"ours").await.unwrap();
    let x = a.find(d, "x", Purpose::Unknown).await.unwrap();
    assert_eq!(a.read(x, 0).await.unwrap(), b"ours");
    assert_eq!(a.mode(x).await, 0o600);
}

#[tokio::test(start_paused = true)]
async fn an_acknowledged_file_that_met_a_directory_is_kept_and_told_of() {
    let store = Shared::new();
    let local = |setup: &mut Setup| setup.fs.durability = Durability::Local;
    let (a, b, d, theirs) = nodes_with(&store, local).await;
    b.mkdir(theirs, "x").await.unwrap();
    let handle = a.open_anew(d, "x", 0o644).await.unwrap();
    a.fs.write(handle, 0, b"acknowledged").await.unwrap();
    a.fs.flush(handle, Closer::Living(0)).await.unwrap();
    assert!(a.fs.fsync(handle).await.is_err());
    a.fs.release(handle).await;
    assert!(!store.has("d/x"));
    assert!(store.has("d/x/"));
    assert!(a.keeps(b"acknowledged"), "it is in no quarantine");
}

#[tokio::test(start_paused = true)]
async fn an_open_of_an_unknown_name_takes_what_its_lookup_brought() {
    let store = Shared::new();
    let (a, b, d, theirs) = nodes(&store).await;
    b.write(theirs, "f", 0o644, b"content").await.unwrap();
    let f = a.find(d, "f", Purpose::Read(READER)).await.unwrap();
    let before = a.requests();
    assert_eq!(a.read(f, READER).await.unwrap(), b"content");
    assert_eq!(a.requests(), before);
    // The next open is another one, whoever makes it.
    b.write(theirs, "f", 0o644, b"changed").await.unwrap();
    assert_eq!(a.read(f, READER).await.unwrap(), b"changed");
}

#[tokio::test(start_paused = true)]
async fn an_answer_is_for_the_open_of_its_own_thread_and_not_for_a_later_one() {
    let store = Shared::new();
    let (a, b, d, theirs) = nodes(&store).await;
    b.write(theirs, "f", 0o644, b"content").await.unwrap();
    let f = a.find(d, "f", Purpose::Read(READER)).await.unwrap();
    b.write(theirs, "f", 0o644, b"changed").await.unwrap();
    assert_eq!(a.read(f, READER + 1).await.unwrap(), b"changed");
    assert_eq!(a.find(d, "g", Purpose::Read(READER)).await, Err(Errno::ENOENT));
    tokio::time::sleep(TTL).await;
    let f = a.find(d, "f", Purpose::Read(READER)).await.unwrap();
    tokio::time::sleep(TTL / 2).await; // the kernel refused that open
    b.write(theirs, "f", 0o644, b"changed again").await.unwrap();
    assert_eq!(a.read(f, READER).await.unwrap(), b"changed again");
}

#[tokio::test(start_paused = true)]
async fn a_rename_over_what_its_lookup_did_not_ask_for_refuses_as_ever() {
    let store = Shared::new();
    let (a, b, d, theirs) = nodes(&store).await;
    a.mkdir(d, "from").await.unwrap();
    let full = b.mkdir(theirs, "full").await.unwrap();
    b.write(full, "inside", 0o644, b"kept").await.unwrap();
    b.write(theirs, "file", 0o644, b"kept").await.unwrap();
    a.write(d, "f", 0o644, b"ours").await.unwrap();
    tokio::time::sleep(TTL).await;
    assert_eq!(a.find(d, "full", Purpose::RenameTo).await, Err(Errno::ENOENT));
    let rename = async |from: &str, to: &str, replace| {
        a.find(d, from, Purpose::RenameFrom).await.unwrap();
        let _ = a.find(d, to, Purpose::RenameTo).await;
        a.fs.rename(d, OsStr::new(from), d, OsStr::new(to), replace).await
    };
    assert_eq!(rename("from", "full", Replace::Allowed).await, Err(Errno::ENOTEMPTY));
    assert_eq!(rename("from", "file", Replace::Allowed).await, Err(Errno::ENOTDIR));
    assert_eq!(rename("f", "full", Replace::Allowed).await, Err(Errno::EISDIR));
    assert_eq!(rename("f", "file", Replace::Refused).await, Err(Errno::EEXIST));
    assert_eq!(rename("f", "file", Replace::Allowed).await, Ok(()));
}
