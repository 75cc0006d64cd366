//! A checkpoint directory that is complete once it is quiet, on a store one answer of which comes
//! late: counted in pass one, then for every k the k-th. However long a program waits between two
//! files, what it makes is one commit.
//!
//! Owns what programs do between their files. Does not own what counts as quiet
//! (`fs::checkpoints::waiting`).

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

use trialfs::bucket::BucketError;
use trialfs::bucket::memory::MemoryStore;
use trialfs::clock::{Clock, ulid};
use trialfs::fs::error::Errno;
use trialfs::fs::{Caller, Closer, Fs, Purpose, Replace};
use trialfs::types::Ino;

use clock::TestClock;
use mounts::Setup;
use steered::{Steer, Steered};

/// An answer that is late comes many times the idle time later, and within an attempt.
const LATE: Duration = Duration::from_secs(5);
const IO_TIMEOUT: Duration = Duration::from_secs(60);
const CALLER: Caller = Caller { uid: 0, gid: 0, pid: 0 };
/// Of a commit, and its publishing.
const SETTLED_MAX: Duration = Duration::from_secs(60);

/// Answers the `at`-th request late.
#[derive(Debug)]
struct Late {
    calls: AtomicU64,
    at: u64,
}

impl Steer for Late {
    async fn run<T: Send>(
        &self,
        act: impl Future<Output = Result<T, BucketError>> + Send,
    ) -> Result<T, BucketError> {
        if self.calls.fetch_add(1, Ordering::SeqCst) + 1 == self.at {
            tokio::time::sleep(LATE).await;
        }
        act.await
    }
}

struct Program(Arc<Fs>);

impl Program {
    /// As the kernel does it: the name is looked up first.
    async fn write(&self, parent: Ino, name: &str) -> Result<Ino, Errno> {
        let name = OsStr::new(name);
        let flags = libc::O_WRONLY | libc::O_TRUNC;
        let (ino, handle) = match self.0.lookup(parent, name, |_| Purpose::Unknown).await {
            Ok(entry) => (entry.stat.ino, self.0.open(entry.stat.ino, flags, 0).await?.handle),
            Err(Errno::ENOENT) => {
                let (entry, opened) = self.0.create(parent, name, 0o644, flags, CALLER).await?;
                (entry.stat.ino, opened.handle)
            }
            Err(errno) => return Err(errno),
        };
        self.0.write(handle, 0, b"some bytes").await?;
        self.0.flush(handle, Closer::Living(0)).await?;
        self.0.release(handle).await;
        Ok(ino)
    }

    async fn mkdir(&self, parent: Ino, name: &str) -> Result<Ino, Errno> {
        let name = OsStr::new(name);
        match self.0.lookup(parent, name, |_| Purpose::Unknown).await {
            Err(Errno::ENOENT) => {}
            other => return other.map(|entry| entry.stat.ino),
        }
        Ok(self.0.mkdir(parent, name, 0o755, CALLER).await?.stat.ino)
    }

    async fn list(&self, directory: Ino) -> Result<(), Errno> {
        let handle = self.0.opendir(directory).await?;
        self.0.read_directory(handle, 0).await?;
        self.0.releasedir(handle);
        Ok(())
    }

    /// A save, with all that savers do between two files.
    async fn save(&self) -> Result<(), Errno> {
        let top = self.mkdir(Ino::ROOT, "checkpoint_000001").await?;
        self.write(top, "rank0.pt").await?;
        self.write(top, "rank1.pt").await?;
        self.list(top).await?;
        let sub = self.mkdir(top, "sub").await?;
        self.write(sub, "layer.pt").await?;
        self.0.getattr(top).await?;
        let state = self.write(top, "state.tmp").await?;
        let (from, to) = (OsStr::new("state.tmp"), OsStr::new("state"));
        self.0
            .lookup(top, to, |_| Purpose::Unknown)
            .await
            .err()
            .filter(|e| *e == Errno::ENOENT)
            .ok_or(Errno::EEXIST)?;
        self.0.rename(top, from, top, to, Replace::Allowed).await?;
        self.0.getattr(state).await?;
        self.write(top, "gone").await?;
        self.0.unlink(top, OsStr::new("gone")).await?;
        let target = OsStr::new("rank0.pt");
        self.0.symlink(top, OsStr::new("latest"), target, CALLER).await?;
        self.write(top, "rank0.pt").await?; // once more
        self.write(top, "meta.json").await?;
        Ok(())
    }
}

/// Saves with the `at`-th answer late, and checks that it became one commit of everything. How
/// many requests it took.
async fn save(at: u64) -> u64 {
    let clock: Arc<dyn Clock> = Arc::new(TestClock::default());
    let memory = MemoryStore::new(clock.clone());
    let store = Steered::new(memory, Late { calls: AtomicU64::new(0), at });
    let disk = tempfile::tempdir().unwrap();
    let id = ulid(&*clock);
    let setup = Setup::new(store.clone(), clock, disk.path(), id, IO_TIMEOUT);
    let (fs, _) = setup.mount().unwrap();
    Program(fs.clone()).save().await.unwrap();
    let calls = store.hand.calls.load(Ordering::SeqCst);
    let settled = async {
        loop {
            let now = fs.status().checkpoints;
            if now.open + now.waiting == 0 {
                return now.committed;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let committed = tokio::time::timeout(SETTLED_MAX, settled).await.expect("it is committed");
    let names: Vec<String> = store.memory.objects().into_keys().collect();
    assert_eq!(committed, 1, "request {at} was late: commits of parts: {names:?}");
    let seen = names.iter().filter_map(|key| key.strip_prefix("checkpoint_000001/"));
    let seen: Vec<&str> = seen.filter(|name| !name.starts_with(".trialfs/")).collect();
    let all = ["latest", "meta.json", "rank0.pt", "rank1.pt", "state", "sub/layer.pt"];
    assert_eq!(seen, all, "request {at} was late");
    calls
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_slow_between_two_files_shows_no_half_of_a_checkpoint() {
    let calls = save(u64::MAX).await;
    assert!(calls > 30, "{calls} requests are too few to show anything");
    for at in 1..=calls {
        save(at).await;
    }
}
