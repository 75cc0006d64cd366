//! `--durability local`, and a daemon that dies at each request to the store: counted in pass one,
//! then for every k the daemon ends at the k-th, applied or not, and the next one with the same
//! cache directory must bring every acknowledged file to the bucket, and nothing that was removed.
//!
//! Owns the programs that are run and what must hold. Power loss under the journal itself is tried
//! beside it (`write::journal`), real kills in `tests/programs/kills.py`.

#[path = "support/mounts.rs"]
mod mounts;
#[path = "support/steered.rs"]
mod steered;
#[path = "crashes/store.rs"]
mod store;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::runtime::Runtime;
use trialfs::bucket::memory::MemoryStore;
use trialfs::bucket::{Bucket, BucketError};
use trialfs::clock;
use trialfs::config::Durability;
use trialfs::fs::error::Errno;
use trialfs::fs::{Caller, Closer, Fs, Purpose, Replace};
use trialfs::types::{Ino, Key};

use mounts::Setup;
use steered::Steered;
use store::{Cut, Last};

/// Longer than any life here: a request that is cut off is never given up.
const IO_TIMEOUT: Duration = Duration::from_secs(600);
const PART_BYTES: u64 = 128 << 10;
const CALLER: Caller = Caller { uid: 0, gid: 0, pid: 0 };
/// A dead life's locks are free once its tasks are dropped.
const TRIES_MAX: u32 = 2000;
const PAUSE: Duration = Duration::from_millis(5);

/// What the program was told of each name, by key: the content, or that it is gone; and what it
/// asked for last, which may have happened.
#[derive(Default)]
struct Told {
    sure: BTreeMap<String, Option<Vec<u8>>>,
    asked: Vec<(String, Option<Vec<u8>>)>,
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// A mount over `store` with its cache in `dir`.
fn mount(store: Arc<Steered<Cut>>, dir: &Path) -> std::io::Result<Arc<Fs>> {
    let id = "01ARZ3NDEKTSV4RRFFQ69G5FAV".to_owned();
    let mut setup = Setup::new(store, clock::system(), dir, id, IO_TIMEOUT);
    setup.write.part_bytes = PART_BYTES;
    setup.write.put_bytes_max = 2 * PART_BYTES;
    setup.fs.durability = Durability::Local;
    Ok(setup.mount()?.0)
}

struct Program<'a> {
    fs: Arc<Fs>,
    told: &'a Mutex<Told>,
}

impl Program<'_> {
    fn asks(&self, what: &[(&str, Option<&[u8]>)]) {
        let asked = what.iter().map(|(key, body)| ((*key).to_owned(), body.map(<[u8]>::to_vec)));
        self.told.lock().asked = asked.collect();
    }

    fn is_told(&self) {
        let mut told = self.told.lock();
        let asked = std::mem::take(&mut told.asked);
        told.sure.extend(asked);
    }

    async fn write(&self, name: &str, body: &[u8]) -> Result<(), Errno> {
        self.asks(&[(name, Some(body))]);
        let flags = libc::O_WRONLY | libc::O_TRUNC;
        let handle = match self.fs.lookup(Ino::ROOT, OsStr::new(name), |_| Purpose::Unknown).await {
            Ok(entry) => self.fs.open(entry.stat.ino, flags, 0).await?.handle,
            Err(Errno::ENOENT) => {
                let name = OsStr::new(name);
                let made = self.fs.create(Ino::ROOT, name, 0o644, flags, CALLER).await?;
                made.1.handle
            }
            Err(error) => return Err(error),
        };
        self.fs.write(handle, 0, body).await?;
        self.fs.flush(handle, Closer::Living(0)).await?;
        self.is_told();
        self.fs.release(handle).await;
        Ok(())
    }

    async fn append(&self, name: &str, before: &[u8], more: &[u8]) -> Result<(), Errno> {
        let whole = [before, more].concat();
        self.asks(&[(name, Some(&whole))]);
        let ino = self.fs.lookup(Ino::ROOT, OsStr::new(name), |_| Purpose::Unknown).await?.stat.ino;
        let handle = self.fs.open(ino, libc::O_WRONLY, 0).await?.handle;
        self.fs.write(handle, before.len() as u64, more).await?;
        self.fs.flush(handle, Closer::Living(0)).await?;
        self.is_told();
        self.fs.release(handle).await;
        Ok(())
    }

    async fn unlink(&self, name: &str) -> Result<(), Errno> {
        self.asks(&[(name, None)]);
        self.fs.unlink(Ino::ROOT, OsStr::new(name)).await?;
        self.is_told();
        Ok(())
    }

    async fn rename(&self, from: &str, to: &str, body: &[u8]) -> Result<(), Errno> {
        self.asks(&[(to, Some(body)), (from, None)]);
        let (root, from, to) = (Ino::ROOT, OsStr::new(from), OsStr::new(to));
        self.fs.rename(root, from, root, to, Replace::Allowed).await?;
        self.is_told();
        Ok(())
    }

    /// What a trainer does to files, small and in parts.
    async fn run(&self) -> Result<(), Errno> {
        let (small, large) = (vec![1u8; 100], vec![2u8; 3 * PART_BYTES as usize + 7]);
        self.write("small", &small).await?;
        self.write("large", &large).await?;
        self.write("small", b"again").await?;
        self.append("large", &large, b"more").await?;
        self.write("state.tmp", b"one").await?;
        self.rename("state.tmp", "state", b"one").await?;
        self.write("gone", &small).await?;
        self.unlink("gone").await?;
        self.write("state.tmp", b"two").await?;
        self.rename("state.tmp", "state", b"two").await?;
        self.write("small", b"").await?;
        self.write("large", b"small now").await?;
        self.append("small", b"", b"x").await?;
        self.fs.drain().await;
        Ok(())
    }
}

/// One life: the program runs until it is done or the store is cut off. How many requests it took.
fn live(memory: &Arc<MemoryStore>, dir: &Path, at: u64, last: Last, told: &Mutex<Told>) -> u64 {
    let runtime = runtime();
    let store = Cut::at(memory.clone(), at, last);
    runtime.block_on(async {
        let fs = mount(store.clone(), dir).unwrap();
        let program = Program { fs, told };
        tokio::select! {
            () = store.hand.dead.notified() => {}
            result = program.run() => result.unwrap(),
        }
    });
    runtime.shutdown_background();
    store.hand.calls()
}

/// The next life uploads what is left; then everything that was told holds.
fn recover(memory: &Arc<MemoryStore>, dir: &Path, told: &Told, case: &str) {
    let runtime = runtime();
    runtime.block_on(async {
        let store = Cut::at(memory.clone(), u64::MAX, Last::Lost);
        let mut tries = 0;
        let fs = loop {
            match mount(store.clone(), dir) {
                Ok(fs) => break fs,
                Err(error) => assert!(tries < TRIES_MAX, "{case}: {error}"),
            }
            tries += 1;
            tokio::time::sleep(PAUSE).await; // the dead life's tasks still hold the journal
        };
        let recovered = fs.recover().await;
        assert_eq!((recovered.left, recovered.quarantined), (0, 0), "{case}");
        let bucket = Bucket::new(store, clock::system(), IO_TIMEOUT);
        for (key, sure) in &told.sure {
            let key_now = Key::new(key.as_str());
            let got = match bucket.head(&key_now).await.map(|info| info.size) {
                Err(error) => {
                    assert_eq!(error, BucketError::NotFound, "{case}");
                    None
                }
                Ok(0) => Some(Vec::new()),
                Ok(size) => {
                    let got = bucket.get_bytes(&key_now, 0..size, None).await.unwrap();
                    Some(got.1.to_vec())
                }
            };
            let asked = told.asked.iter().find(|(asked, _)| asked == key);
            let may_be = asked.is_some_and(|(_, body)| *body == got);
            let len = |body: &Option<Vec<u8>>| body.as_ref().map(Vec::len);
            assert!(got == *sure || may_be, "{case}: {key}: {:?} of {:?}", len(&got), len(sure));
        }
    });
    runtime.shutdown_timeout(Duration::from_secs(5));
}

#[test]
fn a_daemon_that_dies_at_any_request_loses_nothing_it_acknowledged() {
    let all = {
        let (dir, told) = (tempfile::tempdir().unwrap(), Mutex::default());
        let memory = Arc::new(MemoryStore::new(clock::system()));
        let calls = live(&memory, dir.path(), u64::MAX, Last::Lost, &told);
        recover(&memory, dir.path(), &told.into_inner(), "unharmed");
        calls
    };
    assert!(all > 20, "{all} requests are too few to show anything");
    for at in 1..=all {
        for last in [Last::Applied, Last::Lost] {
            let (dir, told) = (tempfile::tempdir().unwrap(), Mutex::default());
            let memory = Arc::new(MemoryStore::new(clock::system()));
            live(&memory, dir.path(), at, last, &told);
            recover(&memory, dir.path(), &told.into_inner(), &format!("request {at} {last:?}"));
        }
    }
}
