//! What a store refuses is not done here either: a file that could not be removed is what it was.

#[path = "support/clock.rs"]
mod clock;
#[path = "support/mounts.rs"]
mod mounts;
#[path = "support/steered.rs"]
mod steered;

use std::ffi::OsStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use trialfs::bucket::BucketError;
use trialfs::bucket::memory::MemoryStore;
use trialfs::clock::{Clock, ulid};
use trialfs::config::Durability;
use trialfs::fs::error::Errno;
use trialfs::fs::{Caller, Closer, Fs, SetMode};
use trialfs::types::Ino;

use clock::TestClock;
use mounts::Setup;
use steered::{Steer, Steered};

const CALLER: Caller = Caller { uid: 0, gid: 0, pid: 0 };
const REPLACE: i32 = libc::O_WRONLY | libc::O_CREAT | libc::O_TRUNC;

/// Refuses every request while it is told to.
#[derive(Debug, Clone, Default)]
struct Refuses(Arc<AtomicBool>);

impl Steer for Refuses {
    async fn run<T: Send>(
        &self,
        act: impl Future<Output = Result<T, BucketError>> + Send,
    ) -> Result<T, BucketError> {
        match self.0.load(Ordering::SeqCst) {
            true => Err(BucketError::Denied("by the test".to_owned())),
            false => act.await,
        }
    }
}

async fn write(fs: &Fs, handle: u64, body: &[u8]) -> Result<(), Errno> {
    fs.write(handle, 0, body).await?;
    let closed = fs.flush(handle, Closer::Living(0)).await;
    fs.release(handle).await;
    closed
}

async fn until(holds: impl Fn() -> bool, at_most: Duration) {
    let held = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(at_most, held).await.expect("it goes up");
}

/// unlink(2) had failed, and what was acknowledged last was gone all the same.
#[tokio::test(start_paused = true)]
async fn what_was_acknowledged_is_not_lost_with_an_unlink_that_is_refused() {
    let clock: Arc<dyn Clock> = Arc::new(TestClock::default());
    let (objects, refuses) = (MemoryStore::new(clock.clone()), Refuses::default());
    let store = Steered::new(objects.clone(), refuses.clone());
    let (disk, id) = (tempfile::tempdir().unwrap(), ulid(&*clock));
    let mut setup = Setup::new(store, clock, disk.path(), id, Duration::from_secs(30));
    setup.fs.durability = Durability::Local;
    let fs = setup.mount().unwrap().0;
    let name = OsStr::new("f");
    let (entry, opened) = fs.create(Ino::ROOT, name, 0o644, REPLACE, CALLER).await.unwrap();
    let has = |body: &[u8]| objects.objects().values().any(|object| object.as_ref() == body);
    write(&fs, opened.handle, b"one").await.unwrap();
    until(|| has(b"one"), Duration::from_secs(60)).await;
    let opened = fs.open(entry.stat.ino, REPLACE, 0).await.unwrap();
    refuses.0.store(true, Ordering::SeqCst);
    write(&fs, opened.handle, b"two").await.unwrap();
    fs.unlink(Ino::ROOT, name).await.unwrap_err();
    refuses.0.store(false, Ordering::SeqCst);
    until(|| has(b"two"), Duration::from_secs(600)).await;
    fs.unlink(Ino::ROOT, name).await.unwrap();
    assert!(!has(b"two"));
}

/// The close of one of its files had failed, and a record that names the checkpoint committed it
/// without that file.
#[tokio::test(start_paused = true)]
async fn a_checkpoint_of_which_a_close_failed_is_not_committed_by_a_record_that_names_it() {
    let clock: Arc<dyn Clock> = Arc::new(TestClock::default());
    let (objects, refuses) = (MemoryStore::new(clock.clone()), Refuses::default());
    let store = Steered::new(objects.clone(), refuses.clone());
    let (disk, id) = (tempfile::tempdir().unwrap(), ulid(&*clock));
    let mut setup = Setup::new(store, clock, disk.path(), id, Duration::from_secs(30));
    setup.fs.checkpoints.commit_wait = Duration::from_secs(3);
    let fs = setup.mount().unwrap().0;
    let directory = "checkpoint_2026-01-01_00-00-00.000001";
    let top = fs.mkdir(Ino::ROOT, OsStr::new(directory), 0o755, CALLER).await.unwrap().stat.ino;
    let (mut files, mut inos) = (Vec::new(), Vec::new());
    for name in ["whole.pt", "failed.pt"] {
        let made = fs.create(top, OsStr::new(name), 0o644, REPLACE, CALLER).await.unwrap();
        files.push(made.1.handle);
        inos.push(made.0.stat.ino);
    }
    write(&fs, files[0], b"whole").await.unwrap();
    refuses.0.store(true, Ordering::SeqCst);
    write(&fs, files[1], b"failed").await.unwrap_err();
    refuses.0.store(false, Ordering::SeqCst);
    let name = OsStr::new("checkpoint_manager_snapshot.json");
    let (there, opened) = fs.create(Ino::ROOT, name, 0o644, REPLACE, CALLER).await.unwrap();
    let (record_ino, record) = (there.stat.ino, opened.handle);
    let body = format!(r#"{{"checkpoint_results": [{{"checkpoint_dir_name": "{directory}"}}]}}"#);
    assert_eq!(write(&fs, record, body.as_bytes()).await, Err(Errno::EIO));
    let asked = fs.setxattr(top, "user.trialfs.commit", b"1", SetMode::Any).await;
    assert_eq!(asked, Err(Errno::EIO));
    let shown = || {
        let all = objects.objects();
        all.keys().filter(|key| key.ends_with(".pt") || key.ends_with(".json")).count()
    };
    assert_eq!(shown(), 0, "a part of it is shown, or a pointer to it");
    for (ino, body) in [(inos[1], &b"again"[..]), (record_ino, body.as_bytes())] {
        let opened = fs.open(ino, libc::O_WRONLY | libc::O_TRUNC, 0).await.unwrap();
        assert_eq!(shown(), 0, "the retry of the file shows it without that");
        write(&fs, opened.handle, body).await.unwrap();
    }
    assert_eq!(shown(), 3);
}
