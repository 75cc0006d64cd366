//! Directories that are renamed and removed while a large file goes up: what goes on elsewhere goes
//! on, and what is below waits.

#[path = "support/mounts.rs"]
mod mounts;
#[path = "support/steered.rs"]
mod steered;

use std::ffi::OsStr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tempfile::TempDir;
use tokio::sync::watch;
use trialfs::bucket::BucketError;
use trialfs::bucket::memory::MemoryStore;
use trialfs::clock::{self, ulid};
use trialfs::config::Durability;
use trialfs::fs::error::Errno;
use trialfs::fs::{Caller, Closer, Fs, Purpose, Replace};
use trialfs::types::Ino;

use mounts::Setup;
use steered::{Steer, Steered};

const CALLER: Caller = Caller { uid: 0, gid: 0, pid: 0 };
/// Nothing takes so long unless it waits for what does not come.
const PATIENCE: Duration = Duration::from_secs(20);
/// What may go on does so in much less.
const A_WHILE: Duration = Duration::from_millis(300);

/// Holds what is asked about one key.
#[derive(Debug, Default)]
struct Holds {
    key: Mutex<Option<String>>,
    held: watch::Sender<u32>,
    let_go: tokio::sync::Notify,
}

impl Steer for Arc<Holds> {
    async fn run<T: Send>(
        &self,
        act: impl Future<Output = Result<T, BucketError>> + Send,
    ) -> Result<T, BucketError> {
        act.await
    }

    async fn run_at<T: Send>(
        &self,
        at: &str,
        act: impl Future<Output = Result<T, BucketError>> + Send,
    ) -> Result<T, BucketError> {
        let mut let_go = std::pin::pin!(self.let_go.notified());
        let_go.as_mut().enable();
        if self.key.lock().as_deref() == Some(at) {
            self.held.send_modify(|held| *held += 1);
            let_go.await;
        }
        act.await
    }
}

impl Holds {
    async fn until_held(&self) {
        let mut held = self.held.subscribe();
        held.wait_for(|held| *held > 0).await.unwrap();
    }

    fn let_go(&self) {
        *self.key.lock() = None;
        self.let_go.notify_waiters();
    }
}

struct Node {
    fs: Arc<Fs>,
    memory: Arc<MemoryStore>,
    holds: Arc<Holds>,
    _disk: TempDir,
}

fn node(durability: Durability) -> Node {
    node_that_waits(durability, PATIENCE)
}

/// Commits wait so long.
fn node_that_waits(durability: Durability, commit_wait: Duration) -> Node {
    let (disk, clock) = (TempDir::new().unwrap(), clock::system());
    let (memory, holds) = (MemoryStore::new(clock.clone()), Arc::<Holds>::default());
    let store = Steered::new(memory.clone(), holds.clone());
    let id = ulid(&*clock);
    let mut setup = Setup::new(store, clock, disk.path(), id, PATIENCE);
    setup.fs.durability = durability;
    setup.fs.checkpoints.commit_wait = commit_wait;
    Node { fs: setup.mount().unwrap().0, memory, holds, _disk: disk }
}

impl Node {
    async fn mkdir(&self, parent: Ino, name: &str) -> Ino {
        self.fs.mkdir(parent, OsStr::new(name), 0o755, CALLER).await.unwrap().stat.ino
    }

    /// A new file that has been written and is open.
    async fn write(&self, parent: Ino, name: &str, body: &[u8]) -> u64 {
        let flags = libc::O_WRONLY | libc::O_CREAT;
        let made = self.fs.create(parent, OsStr::new(name), 0o644, flags, CALLER).await;
        let handle = made.unwrap().1.handle;
        self.fs.write(handle, 0, body).await.unwrap();
        handle
    }

    /// The same of a file that may be there.
    async fn write_over(&self, parent: Ino, name: &str, body: &[u8]) -> u64 {
        let Ok(there) = self.fs.lookup(parent, OsStr::new(name), |_| Purpose::Unknown).await else {
            return self.write(parent, name, body).await;
        };
        let flags = libc::O_WRONLY | libc::O_TRUNC;
        let handle = self.fs.open(there.stat.ino, flags, 0).await.unwrap().handle;
        self.fs.write(handle, 0, body).await.unwrap();
        handle
    }

    async fn close(&self, handle: u64) -> Result<(), Errno> {
        let closed = self.fs.flush(handle, Closer::Living(0)).await;
        self.fs.release(handle).await;
        closed
    }

    async fn rename(&self, parent: Ino, from: &str, to: &str) -> Result<(), Errno> {
        let (from, to) = (OsStr::new(from), OsStr::new(to));
        self.fs.rename(parent, from, parent, to, Replace::Allowed).await
    }

    fn object(&self, key: &str) -> Option<Vec<u8>> {
        self.memory.objects().get(key).map(|body| body.to_vec())
    }

    /// After a rename the objects follow.
    async fn moves(&self, from: &str, to: &str, body: &[u8]) {
        let moved = async {
            while self.object(from).is_some() || self.object(to).as_deref() != Some(body) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, moved).await.expect("the object follows");
    }

    /// Closes a file whose upload the store holds, in the background.
    async fn held_close(self: &Arc<Self>, parent: Ino, key: &str) -> Closing {
        *self.holds.key.lock() = Some(key.to_owned());
        let handle = self.write(parent, key.rsplit('/').next().unwrap(), b"large").await;
        let node = self.clone();
        let closing = tokio::spawn(async move { node.close(handle).await });
        let held = tokio::time::timeout(PATIENCE, self.holds.until_held()).await;
        held.expect("its upload is held");
        closing
    }
}

type Closing = tokio::task::JoinHandle<Result<(), Errno>>;

/// One slow upload, and an rmdir anywhere: it waited for the upload, and every create and close of
/// the mount waited for it.
#[tokio::test]
async fn a_slow_upload_holds_up_no_directory_elsewhere() {
    for durability in [Durability::Close, Durability::Local] {
        let node = Arc::new(node(durability));
        let fs = &node.fs;
        let (large, old) =
            (node.mkdir(Ino::ROOT, "large").await, node.mkdir(Ino::ROOT, "old").await);
        let mut closing = node.held_close(large, "large/f").await;
        let others = async {
            let inner = node.mkdir(old, "inner").await;
            let handle = node.write(inner, "f", b"small").await;
            node.close(handle).await.unwrap();
            fs.unlink(inner, OsStr::new("f")).await.unwrap();
            node.rename(old, "inner", "other").await.unwrap();
            fs.rmdir(old, OsStr::new("other")).await.unwrap();
            node.mkdir(large, "beside").await;
            fs.rmdir(large, OsStr::new("beside")).await.unwrap();
            fs.rmdir(Ino::ROOT, OsStr::new("old")).await.unwrap();
            let handle = node.write(Ino::ROOT, "after", b"small").await;
            node.close(handle).await.unwrap();
        };
        tokio::time::timeout(PATIENCE, others).await.expect("nobody waits for the upload");
        if durability == Durability::Close {
            let waits = tokio::time::timeout(Duration::ZERO, &mut closing).await;
            assert!(waits.is_err(), "the upload is still on its way");
        }
        assert_eq!(node.object("large/f"), None);
        node.holds.let_go();
        closing.await.unwrap().unwrap();
    }
}

/// What is below a directory that is renamed goes up first, whole, and under one name.
#[tokio::test]
async fn a_directory_is_renamed_after_the_upload_below_it() {
    for durability in [Durability::Close, Durability::Local] {
        let node = Arc::new(node(durability));
        let top = node.mkdir(Ino::ROOT, "top").await;
        let inner = node.mkdir(top, "inner").await;
        let closing = node.held_close(inner, "top/inner/f").await;
        let renamer = node.clone();
        let mut renaming =
            tokio::spawn(async move { renamer.rename(Ino::ROOT, "top", "moved").await });
        let early = tokio::time::timeout(A_WHILE, &mut renaming).await;
        assert!(early.is_err(), "{durability:?}: it went before its file");
        node.holds.let_go();
        closing.await.unwrap().unwrap();
        let renamed = tokio::time::timeout(PATIENCE, renaming).await.expect("it goes after it");
        renamed.unwrap().unwrap();
        node.moves("top/inner/f", "moved/inner/f", b"large").await;
    }
}

/// The close of a commit record waits for the last file of the checkpoint that it names, whose
/// close waited for a rename that waited for the record: 30 s, then EIO.
#[tokio::test]
async fn a_commit_record_and_a_rename_above_it_do_not_wait_for_each_other() {
    for durability in [Durability::Close, Durability::Local] {
        let node = Arc::new(node(durability));
        let run = Run::new(&node).await;
        let mut closing = run.close_record(&node).await;
        let renamed = node.rename(Ino::ROOT, "run", "moved");
        let renamed = tokio::time::timeout(PATIENCE, renamed).await.expect("it waits for nobody");
        assert_eq!(renamed, Err(Errno::EBUSY), "{durability:?}: it moved what is being written");
        let early = tokio::time::timeout(Duration::ZERO, &mut closing).await;
        assert!(early.is_err(), "{durability:?}: it names what is being written");
        run.ends(&node, closing).await;
        node.rename(Ino::ROOT, "run", "moved").await.unwrap();
        let file = format!("{DIRECTORY}/rank0.pt");
        node.moves(&format!("run/{file}"), &format!("moved/{file}"), b"whole").await;
        node.moves(&format!("run/{RECORD}"), &format!("moved/{RECORD}"), &run.body).await;
    }
}

/// The close of a commit record held the record meanwhile, whose earlier version could then not go
/// up, for which an fsync of what it names waited: 30 s, then EIO.
#[tokio::test]
async fn a_commit_record_and_its_earlier_version_do_not_wait_for_each_other() {
    let node = Arc::new(node(Durability::Local));
    let top = node.mkdir(Ino::ROOT, "run").await;
    *node.holds.key.lock() = Some(format!("run/{RECORD}"));
    let earlier = node.write(top, RECORD, b"{}").await;
    node.close(earlier).await.unwrap();
    tokio::time::timeout(PATIENCE, node.holds.until_held()).await.expect("its upload is held");
    let run = Run::begun(&node, top).await;
    let closing = run.close_record(&node).await;
    node.holds.let_go();
    let synced = tokio::time::timeout(PATIENCE, node.fs.fsync(run.last)).await;
    synced.expect("it waits for nobody who waits for it").unwrap();
    run.ends(&node, closing).await;
    assert_eq!(node.fs.drain().await, 0);
    assert_eq!(node.object(&format!("run/{RECORD}")), Some(run.body));
}

/// The record could not be closed, as what it names is not whole: the unmount showed it all the
/// same.
#[tokio::test]
async fn a_commit_record_that_could_not_be_closed_is_not_shown_at_unmount() {
    for durability in [Durability::Close, Durability::Local] {
        let node = Arc::new(node_that_waits(durability, A_WHILE));
        let run = Run::new(&node).await;
        let closed = tokio::time::timeout(PATIENCE, node.close(run.record)).await;
        assert_eq!(closed, Ok(Err(Errno::EIO)), "{durability:?}");
        tokio::time::timeout(PATIENCE, node.fs.drain()).await.expect("it ends");
        assert_eq!(node.object(&format!("run/{RECORD}")), None, "{durability:?}");
        node.close(run.last).await.unwrap();
    }
}

const DIRECTORY: &str = "checkpoint_2026-01-01_00-00-00.000001";
const RECORD: &str = "checkpoint_manager_snapshot.json";

/// A run one file of whose checkpoint is being written, and the record that names that.
struct Run {
    last: u64,
    record: u64,
    body: Vec<u8>,
}

impl Run {
    async fn new(node: &Node) -> Self {
        let top = node.mkdir(Ino::ROOT, "run").await;
        Self::begun(node, top).await
    }

    async fn begun(node: &Node, top: Ino) -> Self {
        let checkpoint = node.mkdir(top, DIRECTORY).await;
        let last = node.write(checkpoint, "rank0.pt", b"whole").await;
        let body =
            format!(r#"{{"checkpoint_results": [{{"checkpoint_dir_name": "{DIRECTORY}"}}]}}"#);
        let record = node.write_over(top, RECORD, body.as_bytes()).await;
        Self { last, record, body: body.into_bytes() }
    }

    /// In the background: it waits for the last file.
    async fn close_record(&self, node: &Arc<Node>) -> Closing {
        let (closer, record) = (node.clone(), self.record);
        let mut closing = tokio::spawn(async move { closer.close(record).await });
        let early = tokio::time::timeout(A_WHILE, &mut closing).await;
        assert!(early.is_err(), "it names what is being written");
        closing
    }

    async fn ends(&self, node: &Node, closing: Closing) {
        let ended = async {
            node.close(self.last).await.unwrap();
            closing.await.unwrap().unwrap();
        };
        tokio::time::timeout(PATIENCE, ended).await.expect("nobody waits for the other");
    }
}

/// What is made while a directory above it is renamed was made under the old name, which brought
/// that back.
#[tokio::test]
async fn what_is_made_below_a_directory_that_is_renamed_has_the_new_name() {
    let node = Arc::new(node(Durability::Close));
    let top = node.mkdir(Ino::ROOT, "top").await;
    let inner = node.mkdir(top, "inner").await;
    let closing = node.held_close(inner, "top/inner/f").await;
    let renamer = node.clone();
    let mut renaming = tokio::spawn(async move { renamer.rename(Ino::ROOT, "top", "moved").await });
    let early = tokio::time::timeout(A_WHILE, &mut renaming).await;
    assert!(early.is_err(), "it waits for the upload");
    let maker = node.clone();
    let mut making = tokio::spawn(async move {
        maker.mkdir(inner, "made").await;
        let (name, target) = (OsStr::new("link"), OsStr::new("f"));
        maker.fs.symlink(inner, name, target, CALLER).await.unwrap();
        let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL;
        let made = maker.fs.create(inner, OsStr::new("new"), 0o644, flags, CALLER).await;
        maker.close(made.unwrap().1.handle).await.unwrap();
    });
    let early = tokio::time::timeout(A_WHILE, &mut making).await;
    assert!(early.is_err(), "it waits for the rename");
    node.holds.let_go();
    let ended = async {
        closing.await.unwrap().unwrap();
        renaming.await.unwrap().unwrap();
        making.await.unwrap();
    };
    tokio::time::timeout(PATIENCE, ended).await.expect("all go on");
    node.moves("top/inner/f", "moved/inner/f", b"large").await;
    for made in ["made/", "link", "new"] {
        assert!(node.object(&format!("moved/inner/{made}")).is_some(), "{made}");
        assert_eq!(node.object(&format!("top/inner/{made}")), None, "{made}");
    }
}
