//! A mount under `--durability local` over a store that a test looks at after each request, and
//! that holds and refuses what it is told to.
//!
//! Owns the mount and its store. Does not own what a test asks of them.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tempfile::TempDir;
use trialfs::bucket::BucketError;
use trialfs::bucket::memory::MemoryStore;
use trialfs::clock::{self, ulid};
use trialfs::config::Durability;
use trialfs::fs::{Caller, Closer, Fs, Purpose};
use trialfs::types::Ino;

use crate::mounts::Setup;
use crate::steered::{Steer, Steered};

pub const CALLER: Caller = Caller { uid: 0, gid: 0, pid: 0 };
/// Its bytes do not fit into the journal.
pub const LARGE: usize = 100 << 10;
/// No test takes so long unless two uploads wait for each other.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// After each request it looks at what is in the store.
pub struct Watched<F> {
    pub memory: Arc<MemoryStore>,
    pub look: F,
    /// It takes its time, and then nothing.
    pub refuses: Arc<AtomicBool>,
    /// A request waits to be refused.
    pub holds: Arc<AtomicBool>,
    /// What is refused is done all the same.
    pub does: Arc<AtomicBool>,
}

impl<F> std::fmt::Debug for Watched<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Watched")
    }
}

impl<F: Fn(Objects) + Send + Sync + 'static> Steer for Watched<F> {
    async fn run<T: Send>(
        &self,
        act: impl Future<Output = Result<T, BucketError>> + Send,
    ) -> Result<T, BucketError> {
        tokio::time::sleep(Duration::from_millis(1)).await; // uploads overlap
        if self.refuses.load(Ordering::SeqCst) {
            self.holds.store(true, Ordering::SeqCst);
            while self.refuses.load(Ordering::SeqCst) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            if self.does.load(Ordering::SeqCst) {
                let _ = act.await;
            }
            return Err(BucketError::Denied("this one".to_owned()));
        }
        let result = act.await;
        (self.look)(self.memory.objects());
        result
    }
}

#[allow(dead_code)] // not every test has it refuse
pub struct Node {
    pub fs: Arc<Fs>,
    pub memory: Arc<MemoryStore>,
    pub refuses: Arc<AtomicBool>,
    pub holds: Arc<AtomicBool>,
    pub does: Arc<AtomicBool>,
    pub _disk: Option<TempDir>,
}

pub type Objects = BTreeMap<String, bytes::Bytes>;

pub fn node(look: impl Fn(Objects) + Send + Sync + 'static) -> Node {
    let (disk, memory) = (TempDir::new().unwrap(), MemoryStore::new(clock::system()));
    let node = node_at(disk.path(), memory, look).unwrap();
    Node { _disk: Some(disk), ..node }
}

/// An error if another one has the directory.
pub fn node_at(
    dir: &Path,
    memory: Arc<MemoryStore>,
    look: impl Fn(Objects) + Send + Sync + 'static,
) -> std::io::Result<Node> {
    let clock = clock::system();
    let (refuses, holds, does): (Arc<AtomicBool>, Arc<AtomicBool>, Arc<AtomicBool>) =
        Default::default();
    let hand = Watched {
        memory: memory.clone(),
        look,
        refuses: refuses.clone(),
        holds: holds.clone(),
        does: does.clone(),
    };
    let store = Steered::new(memory.clone(), hand);
    let id = ulid(&*clock);
    let mut setup = Setup::new(store, clock, dir, id, PATIENCE);
    setup.fs.durability = Durability::Local;
    Ok(Node { fs: setup.mount()?.0, memory, refuses, holds, does, _disk: None })
}

impl Node {
    /// A descriptor to write the file, which is made if there is none.
    pub async fn open(&self, name: &str) -> u64 {
        let (root, name) = (Ino::ROOT, OsStr::new(name));
        let flags = libc::O_WRONLY | libc::O_APPEND;
        match self.fs.lookup(root, name, |_| Purpose::Unknown).await {
            Ok(entry) => self.fs.open(entry.stat.ino, flags, 0).await.unwrap().handle,
            Err(_) => {
                let flags = flags | libc::O_CREAT;
                self.fs.create(root, name, 0o644, flags, CALLER).await.unwrap().1.handle
            }
        }
    }

    pub async fn close(&self, handle: u64, closer: Closer) {
        self.fs.flush(handle, closer).await.unwrap();
        self.fs.release(handle).await;
    }

    pub async fn drain(&self) {
        let drained = tokio::time::timeout(PATIENCE, self.fs.drain()).await;
        assert_eq!(drained, Ok(0), "not all went up");
    }

    pub fn object(&self, name: &str) -> Option<Vec<u8>> {
        self.memory.objects().get(name).map(|body| body.to_vec())
    }
}
