//! Close-to-open between whole mounts of one store in memory, where the kernel takes its time to
//! release what was closed.

#[path = "support/mounts.rs"]
mod mounts;

use std::ffi::OsStr;
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;
use trialfs::bucket::memory::MemoryStore;
use trialfs::clock::{self, Clock, ulid};
use trialfs::fs::{Caller, Closer, Fs, Purpose};
use trialfs::types::Ino;

use mounts::Setup;

const CALLER: Caller = Caller { uid: 0, gid: 0, pid: 0 };
const NAME: &str = "log";

struct Mount {
    fs: Arc<Fs>,
    _disk: TempDir,
}

impl Mount {
    fn new(store: &Arc<MemoryStore>) -> Self {
        let disk = TempDir::new().unwrap();
        let clock: Arc<dyn Clock> = clock::system();
        let id = ulid(&*clock);
        let wait = Duration::from_secs(30);
        let (fs, _) = Setup::new(store.clone(), clock, disk.path(), id, wait).mount().unwrap();
        Self { fs, _disk: disk }
    }

    async fn find(&self) -> Ino {
        self.fs.lookup(Ino::ROOT, OsStr::new(NAME), |_| Purpose::Unknown).await.unwrap().stat.ino
    }

    /// Closed, but not released.
    async fn create(&self, body: &[u8]) -> u64 {
        let flags = libc::O_WRONLY | libc::O_CREAT;
        let made = self.fs.create(Ino::ROOT, OsStr::new(NAME), 0o644, flags, CALLER).await;
        let (_, opened) = made.unwrap();
        self.fs.write(opened.handle, 0, body).await.unwrap();
        self.fs.flush(opened.handle, Closer::Living(0)).await.unwrap();
        opened.handle
    }

    async fn append(&self, body: &[u8]) {
        let ino = self.find().await;
        let opened = self.fs.open(ino, libc::O_WRONLY | libc::O_APPEND, 0).await.unwrap();
        let end = self.fs.getattr(ino).await.unwrap().stat.size;
        self.fs.write(opened.handle, end, body).await.unwrap();
        self.fs.flush(opened.handle, Closer::Living(0)).await.unwrap();
        self.fs.release(opened.handle).await;
    }

    async fn read(&self) -> Vec<u8> {
        let opened = self.fs.open(self.find().await, libc::O_RDONLY, 0).await.unwrap();
        let body = self.fs.read(opened.handle, 0, 1 << 20).await.unwrap();
        self.fs.release(opened.handle).await;
        body.to_vec()
    }

    fn release_later(&self, handle: u64) -> tokio::task::JoinHandle<()> {
        let fs = self.fs.clone();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(100)).await;
            fs.release(handle).await;
        })
    }
}

#[tokio::test]
async fn what_another_node_closed_is_read_though_our_own_close_is_not_released_yet() {
    let store = MemoryStore::new(clock::system());
    let (a, b) = (Mount::new(&store), Mount::new(&store));
    let closed = a.create(b"first\n").await;
    b.append(b"second\n").await;
    let released = a.release_later(closed);
    assert_eq!(a.read().await, b"first\nsecond\n");
    released.await.unwrap();
    assert_eq!(a.read().await, b"first\nsecond\n");
}

#[tokio::test]
async fn appends_of_two_nodes_in_strict_turns_lose_no_record() {
    let store = MemoryStore::new(clock::system());
    let (a, b) = (Mount::new(&store), Mount::new(&store));
    let closed = a.create(b"1\n").await;
    b.append(b"2\n").await;
    let released = a.release_later(closed);
    a.append(b"3\n").await;
    released.await.unwrap();
    b.append(b"4\n").await;
    assert_eq!(b.read().await, b"1\n2\n3\n4\n");
    assert_eq!(a.read().await, b"1\n2\n3\n4\n");
}
