//! Renames of directories that are in the bucket, on whole mounts over a store in memory that takes
//! [`ROUND_TRIP`] for each request: what they cost, and what others see meanwhile; and what is
//! refused where a key would be too long.

#[path = "support/mounts.rs"]
mod mounts;
#[path = "renames/over.rs"]
mod over;
#[path = "support/steered.rs"]
mod steered;

use std::ffi::OsStr;
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;
use trialfs::bucket::memory::MemoryStore;
use trialfs::bucket::{Bucket, BucketError, Condition, Operation};
use trialfs::clock::{self, Clock, ulid};
use trialfs::fs::error::Errno;
use trialfs::fs::{Caller, Closer, Fs, Purpose, Replace, SetAttributes, SetMode};
use trialfs::types::{Ino, Key};

use mounts::Setup;
use steered::{Steer, Steered};

const ROUND_TRIP: Duration = Duration::from_millis(15);
const FILES: usize = 101;
const CALLER: Caller = Caller { uid: 0, gid: 0, pid: 0 };

/// A store a round trip away. Time is the runtime's, which is not the machine's.
#[derive(Debug)]
struct Far;

impl Steer for Far {
    async fn run<T: Send>(
        &self,
        act: impl Future<Output = Result<T, BucketError>> + Send,
    ) -> Result<T, BucketError> {
        tokio::time::sleep(ROUND_TRIP).await;
        act.await
    }
}

struct Mount {
    fs: Arc<Fs>,
    bucket: Arc<Bucket>,
    _disk: TempDir,
}

impl Mount {
    fn new(store: &Arc<MemoryStore>) -> Self {
        let disk = TempDir::new().unwrap();
        let clock: Arc<dyn Clock> = clock::system();
        let (far, id) = (Steered::new(store.clone(), Far), ulid(&*clock));
        let mut setup = Setup::new(far, clock, disk.path(), id, Duration::from_secs(30));
        setup.fs.strict = true;
        let (fs, bucket) = setup.mount().unwrap();
        Self { fs, bucket, _disk: disk }
    }

    async fn find(&self, parent: Ino, name: &str) -> Option<Ino> {
        match self.fs.lookup(parent, OsStr::new(name), |_| Purpose::Unknown).await {
            Ok(entry) => Some(entry.stat.ino),
            Err(Errno::ENOENT) => None,
            Err(errno) => panic!("lookup of {name}: {errno}"),
        }
    }

    async fn mkdir(&self, parent: Ino, name: &str) -> Ino {
        self.fs.mkdir(parent, OsStr::new(name), 0o755, CALLER).await.unwrap().stat.ino
    }

    async fn write(&self, parent: Ino, name: &str, body: &[u8]) -> Ino {
        let flags = libc::O_WRONLY | libc::O_CREAT;
        let made = self.fs.create(parent, OsStr::new(name), 0o644, flags, CALLER).await;
        let (entry, opened) = made.unwrap();
        self.fs.write(opened.handle, 0, body).await.unwrap();
        self.fs.flush(opened.handle, Closer::Living(0)).await.unwrap();
        self.fs.release(opened.handle).await;
        entry.stat.ino
    }

    async fn names(&self, directory: Ino) -> Vec<String> {
        let handle = self.fs.opendir(directory).await.unwrap();
        let snapshot = self.fs.read_directory(handle, 0).await.unwrap();
        self.fs.releasedir(handle);
        snapshot.entries.iter().map(|(name, _)| name.as_str().to_owned()).collect()
    }

    async fn read(&self, file: Ino) -> Result<Vec<u8>, Errno> {
        let opened = self.fs.open(file, libc::O_RDONLY, 0).await?;
        let bytes = self.fs.read(opened.handle, 0, 1 << 20).await;
        self.fs.release(opened.handle).await;
        bytes.map(|bytes| bytes.to_vec())
    }

    async fn rename(&self, from: (Ino, &str), to: (Ino, &str)) -> Result<(), Errno> {
        let names = (OsStr::new(from.1), OsStr::new(to.1));
        self.fs.rename(from.0, names.0, to.0, names.1, Replace::Allowed).await
    }

    /// A directory `run` of [`FILES`] files below the root.
    async fn fill(&self) -> Ino {
        let run = self.mkdir(Ino::ROOT, "run").await;
        let sub = self.mkdir(run, "sub").await;
        for i in 0..FILES {
            let parent = if i % 2 == 0 { run } else { sub };
            self.write(parent, &format!("f{i:03}"), &content(i)).await;
        }
        run
    }

    /// Checks that a directory is whole, every byte of it.
    async fn whole(&self, directory: Ino) {
        let sub = self.find(directory, "sub").await.expect("sub");
        assert_eq!(self.names(directory).await.len(), FILES.div_ceil(2) + 1);
        assert_eq!(self.names(sub).await.len(), FILES / 2);
        for i in 0..FILES {
            let parent = if i % 2 == 0 { directory } else { sub };
            let file = self.find(parent, &format!("f{i:03}")).await.expect("a file");
            assert_eq!(self.read(file).await.unwrap(), content(i));
        }
    }
}

fn content(i: usize) -> Vec<u8> {
    format!("content {i}").repeat(50).into_bytes()
}

/// Waits until nothing of ours but what is kept for an hour is in the way.
async fn settled(store: &MemoryStore) {
    for _ in 0..1000 {
        let left = |key: &str| {
            key.contains("/moving.") || key.contains(".from.") || key.contains(".into.")
        };
        if !store.objects().keys().any(|key| left(key)) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("never done: {:?}", store.objects().keys());
}

#[tokio::test(start_paused = true)]
async fn a_directory_of_101_files_is_renamed_in_three_round_trips() {
    let store = MemoryStore::new(clock::system());
    let mount = Mount::new(&store);
    let run = mount.fill().await;
    store.take_requests();
    let before = tokio::time::Instant::now();
    mount.rename((Ino::ROOT, "run"), (Ino::ROOT, "new")).await.unwrap();
    let rounds = before.elapsed().as_millis() / ROUND_TRIP.as_millis();
    let requests = store.take_requests();
    assert!(rounds <= 3, "{rounds} round trips: {requests:?}");
    assert!(requests.len() <= 20, "{} requests: {requests:?}", requests.len());
    // Stat and list of the new name do not wait for the copies.
    let before = tokio::time::Instant::now();
    assert_eq!(mount.find(Ino::ROOT, "new").await, Some(run));
    assert_eq!(mount.names(run).await.len(), FILES.div_ceil(2) + 1);
    let rounds = before.elapsed().as_millis() / ROUND_TRIP.as_millis();
    assert!(rounds <= 16, "{rounds} round trips to look at it");
    mount.whole(run).await;
    settled(&store).await;
    mount.whole(run).await;
    assert_eq!(mount.names(Ino::ROOT).await, ["new"]);
    assert!(mount.bucket.counts().errors == 0);
    let keys: Vec<String> = store.objects().into_keys().collect();
    assert!(!keys.iter().any(|key| key.starts_with("run/")), "{keys:?}");
}

#[tokio::test(start_paused = true)]
async fn an_observer_sees_one_name_and_all_of_it_while_it_moves() {
    let store = MemoryStore::new(clock::system());
    let (mover, observer) = (Mount::new(&store), Mount::new(&store));
    let there = mover.mkdir(Ino::ROOT, "there").await;
    mover.fill().await;
    let observed = tokio::spawn(async move {
        let mut seen = (0, 0);
        loop {
            let names = observer.names(Ino::ROOT).await;
            let (old, new) = (names.contains(&"run".into()), names.contains(&"new".into()));
            assert!(old != new, "both, or neither: {names:?}");
            let name = if old { "run" } else { "new" };
            match observer.find(Ino::ROOT, name).await {
                Some(directory) => observer.whole_or_gone(directory).await,
                None => assert!(old, "the new name was there"),
            }
            if new {
                assert_eq!(observer.find(Ino::ROOT, "run").await, None);
            }
            seen = (seen.0 + usize::from(old), seen.1 + usize::from(new));
            if seen.1 > 40 {
                return seen;
            }
        }
    });
    tokio::time::sleep(ROUND_TRIP * 40).await;
    mover.rename((Ino::ROOT, "run"), (Ino::ROOT, "new")).await.unwrap();
    let seen = observed.await.unwrap();
    assert!(seen.0 > 0 && seen.1 > 0, "{seen:?}");
    settled(&store).await;
    mover.rename((Ino::ROOT, "new"), (there, "deep")).await.unwrap();
    let other = Mount::new(&store);
    let there = other.find(Ino::ROOT, "there").await.unwrap();
    assert_eq!(other.names(Ino::ROOT).await, ["there"]);
    let deep = other.find(there, "deep").await.unwrap();
    other.whole(deep).await;
}

impl Mount {
    async fn whole_or_gone(&self, directory: Ino) {
        let handle = match self.fs.opendir(directory).await {
            Err(Errno::ENOENT | Errno::ESTALE) => return,
            other => other.unwrap(),
        };
        let snapshot = self.fs.read_directory(handle, 0).await.unwrap();
        self.fs.releasedir(handle);
        assert_eq!(snapshot.entries.len(), FILES.div_ceil(2) + 1, "a part");
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_changed_while_its_directory_moves_stays_changed() {
    let store = MemoryStore::new(clock::system());
    let (mover, other) = (Mount::new(&store), Mount::new(&store));
    mover.fill().await;
    mover.rename((Ino::ROOT, "run"), (Ino::ROOT, "new")).await.unwrap();
    let new = other.find(Ino::ROOT, "new").await.unwrap();
    other.fs.unlink(new, OsStr::new("f000")).await.unwrap();
    let file = other.find(new, "f002").await.unwrap();
    let opened = other.fs.open(file, libc::O_WRONLY | libc::O_TRUNC, 0).await.unwrap();
    other.fs.write(opened.handle, 0, b"over").await.unwrap();
    other.fs.flush(opened.handle, Closer::Living(0)).await.unwrap();
    other.fs.release(opened.handle).await;
    other.rename((new, "f004"), (Ino::ROOT, "out")).await.unwrap();
    other.write(new, "more", b"more").await;
    // The old name is free again when the rest is done.
    let run = other.mkdir(Ino::ROOT, "run").await;
    other.write(run, "f000", b"again").await;
    settled(&store).await;
    for mount in [&mover, &other] {
        let new = mount.find(Ino::ROOT, "new").await.unwrap();
        assert_eq!(mount.find(new, "f000").await, None, "unlinked, and back");
        assert_eq!(mount.find(new, "f004").await, None, "renamed, and back");
        for (parent, name, body) in
            [(new, "f002", "over"), (new, "more", "more"), (Ino::ROOT, "out", "")]
        {
            let file = mount.find(parent, name).await.expect(name);
            let want = if body.is_empty() { content(4) } else { body.into() };
            assert_eq!(mount.read(file).await.unwrap(), want);
        }
        let run = mount.find(Ino::ROOT, "run").await.unwrap();
        assert_eq!(mount.names(run).await, ["f000"]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_handle_below_goes_on_reading() {
    let store = MemoryStore::new(clock::system());
    let mount = Mount::new(&store);
    let run = mount.fill().await;
    let other = Mount::new(&store);
    let there = other.find(Ino::ROOT, "run").await.unwrap();
    let file = other.find(there, "f000").await.unwrap();
    drop(mount);
    let handle = other.fs.open(file, libc::O_RDONLY, 0).await.unwrap().handle;
    other.rename((Ino::ROOT, "run"), (Ino::ROOT, "new")).await.unwrap();
    assert_eq!(other.fs.read(handle, 0, 100).await.unwrap(), content(0)[..100]);
    settled(&store).await;
    assert_eq!(other.fs.read(handle, 100, 100).await.unwrap(), content(0)[100..200]);
    let _ = run;
}

/// Of a second rename too: the first leaves records in the directory that both names are in.
#[tokio::test(start_paused = true)]
async fn a_rename_after_another_takes_three_round_trips_too() {
    let store = MemoryStore::new(clock::system());
    let mount = Mount::new(&store);
    mount.fill().await;
    mount.rename((Ino::ROOT, "run"), (Ino::ROOT, "first")).await.unwrap();
    for name in ["a", "b", "c"] {
        let directory = mount.mkdir(Ino::ROOT, name).await;
        mount.write(directory, "f", b"content").await;
        let before = tokio::time::Instant::now();
        let to = format!("{name}-to");
        mount.rename((Ino::ROOT, name), (Ino::ROOT, &to)).await.unwrap();
        let rounds = before.elapsed().as_millis() / ROUND_TRIP.as_millis();
        assert!(rounds <= 3, "{rounds} round trips of {name}");
    }
}

#[tokio::test(start_paused = true)]
async fn two_nodes_that_rename_one_directory_leave_one_whole() {
    let store = MemoryStore::new(clock::system());
    let (a, b) = (Mount::new(&store), Mount::new(&store));
    a.fill().await;
    b.names(Ino::ROOT).await;
    let (first, second) = tokio::join!(
        a.rename((Ino::ROOT, "run"), (Ino::ROOT, "a")),
        b.rename((Ino::ROOT, "run"), (Ino::ROOT, "b")),
    );
    settled(&store).await;
    let observer = Mount::new(&store);
    let names = observer.names(Ino::ROOT).await;
    assert_eq!(names.len(), 1, "{names:?} after {first:?} and {second:?}");
    let left = observer.find(Ino::ROOT, &names[0]).await.unwrap();
    observer.whole(left).await;
}

#[tokio::test(start_paused = true)]
async fn a_mover_that_dies_leaves_the_old_or_the_new_and_others_finish() {
    for rounds in 0..24 {
        let store = MemoryStore::new(clock::system());
        let mover = Mount::new(&store);
        mover.fill().await;
        let rename = mover.rename((Ino::ROOT, "run"), (Ino::ROOT, "new"));
        // It dies after so many half round trips: nothing of its tasks goes on.
        let _ = tokio::time::timeout(ROUND_TRIP * rounds / 2, rename).await;
        drop(mover);
        let other = Mount::new(&store);
        let names = other.names(Ino::ROOT).await;
        assert!(names == ["run"] || names == ["new"], "{names:?} after {rounds} half rounds");
        let left = other.find(Ino::ROOT, &names[0]).await.unwrap();
        other.whole(left).await;
        settled(&store).await;
        assert_eq!(other.names(Ino::ROOT).await, names);
        other.whole(left).await;
        let prefix = if names == ["run"] { "new/" } else { "run/" };
        assert!(!store.objects().keys().any(|key| key.starts_with(prefix)));
    }
}

#[tokio::test(start_paused = true)]
async fn a_directory_with_a_key_that_has_no_name_is_shown_once_after_its_rename() {
    let store = MemoryStore::new(clock::system());
    let mount = Mount::new(&store);
    let top = mount.mkdir(Ino::ROOT, "oq").await;
    let old = mount.mkdir(top, "d").await;
    mount.write(old, "ok", b"ok").await;
    for key in ["oq/d/c\u{2}x", "oq/d/"] {
        let (body, none) = (bytes::Bytes::from_static(b"x"), Default::default());
        mount.bucket.put(&Key::new(key), body, &Condition::Always, &none).await.unwrap();
    }
    assert_eq!(mount.names(top).await, ["d"]);
    assert_eq!(mount.names(old).await, ["ok"]);
    store.take_requests();
    mount.rename((top, "d"), (top, "e")).await.unwrap();
    // Some stores list an emptied prefix until its own key is deleted: that of our mark, too.
    let deleted = (Operation::Delete, "oq/d/.trialfs/".to_owned());
    assert!(store.take_requests().contains(&deleted));
    for wait in 0..4 {
        assert_eq!(mount.names(top).await, ["e"], "after {wait} s: {:?}", store.objects().keys());
        assert_eq!(mount.find(top, "d").await, None, "after {wait} s");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let left: Vec<String> = store.objects().into_keys().collect();
    assert!(!left.iter().any(|key| key.starts_with("oq/d/")), "{left:?}");
    assert!(left.contains(&"oq/e/c\u{2}x".to_owned()), "{left:?}");
}

/// Directories of 200 bytes each, one in another.
async fn deep(mount: &Mount) -> Ino {
    let mut directory = Ino::ROOT;
    for _ in 0..4 {
        directory = mount.mkdir(directory, &"k".repeat(200)).await;
    }
    directory
}

async fn walk(mount: &Mount, path: &[&str]) -> Ino {
    let mut at = Ino::ROOT;
    for name in path {
        at = mount.find(at, name).await.expect(name);
    }
    at
}

#[tokio::test(start_paused = true)]
async fn a_rename_leaves_no_file_below_a_key_too_long_to_ask_for() {
    let store = MemoryStore::new(clock::system());
    let mount = Mount::new(&store);
    let (k, m) = ("k".repeat(200), "m".repeat(250));
    let long = deep(&mount).await;
    let short = mount.mkdir(Ino::ROOT, "short").await;
    let sub = mount.mkdir(short, "sub").await;
    mount.write(sub, &m, b"here").await;
    // Neither a node that knows the file, nor one that has only heard of its directory.
    let other = Mount::new(&store);
    let far = walk(&other, &[&k, &k, &k, &k]).await;
    for (node, into) in [(&mount, long), (&other, far)] {
        let before: Vec<String> = store.objects().into_keys().collect();
        let renamed = node.rename((Ino::ROOT, "short"), (into, "short")).await;
        assert_eq!(renamed, Err(Errno::ENAMETOOLONG));
        assert_eq!(store.objects().into_keys().collect::<Vec<_>>(), before);
        let file = walk(node, &["short", "sub", &m]).await;
        assert_eq!(node.read(file).await.unwrap(), b"here");
        assert_eq!(node.find(into, "short").await, None);
    }
    // Nor where the file is on this node only.
    mount.fs.unlink(sub, OsStr::new(&m)).await.unwrap();
    let flags = libc::O_WRONLY | libc::O_CREAT;
    let made = mount.fs.create(sub, OsStr::new(&m), 0o644, flags, CALLER).await;
    let handle = made.unwrap().1.handle;
    mount.fs.write(handle, 0, b"staged").await.unwrap();
    let renamed = mount.rename((Ino::ROOT, "short"), (long, "short")).await;
    assert_eq!(renamed, Err(Errno::ENAMETOOLONG));
    mount.fs.flush(handle, Closer::Living(0)).await.unwrap();
    mount.fs.release(handle).await;
    let file = walk(&other, &["short", "sub", &m]).await;
    assert_eq!(other.read(file).await.unwrap(), b"staged");
}

#[tokio::test(start_paused = true)]
async fn a_rename_loses_no_attributes_to_a_key_too_long_for_their_record() {
    let store = MemoryStore::new(clock::system());
    let mount = Mount::new(&store);
    let long = deep(&mount).await;
    let long = mount.mkdir(long, &"p".repeat(150)).await;
    let short = mount.mkdir(Ino::ROOT, "short").await;
    let sub = mount.mkdir(short, &"s".repeat(25)).await;
    let file = mount.write(sub, "f", b"here").await;
    let other = Mount::new(&store);
    let mode = SetAttributes { mode: Some(0o600), ..SetAttributes::default() };
    mount.fs.setattr(file, mode).await.unwrap();
    mount.fs.fsyncdir(sub).await.unwrap();
    let (k, p) = ("k".repeat(200), "p".repeat(150));
    let far = walk(&other, &[&k, &k, &k, &k, &p]).await;
    for (node, into) in [(&mount, long), (&other, far)] {
        let renamed = node.rename((Ino::ROOT, "short"), (into, "short")).await;
        assert_eq!(renamed, Err(Errno::ENAMETOOLONG));
    }
    let mode = SetAttributes { mode: Some(0o644), ..SetAttributes::default() };
    mount.fs.setattr(file, mode).await.unwrap();
    mount.fs.unlink(sub, OsStr::new("f")).await.unwrap();
    mount.write(sub, "g", b"plain").await;
    mount.rename((Ino::ROOT, "short"), (long, "short")).await.unwrap();
    settled(&store).await;
    let s = "s".repeat(25);
    let file = walk(&other, &[&k, &k, &k, &k, &p, "short", &s, "g"]).await;
    assert_eq!(other.read(file).await.unwrap(), b"plain");
}

#[tokio::test(start_paused = true)]
async fn a_directory_too_long_for_records_still_goes_to_another_name_and_back() {
    let store = MemoryStore::new(clock::system());
    let mount = Mount::new(&store);
    let long = deep(&mount).await;
    for bytes in [195, 210] {
        let name = "d".repeat(bytes);
        let directory = mount.mkdir(long, &name).await;
        mount.write(directory, "f", b"here").await;
        mount.rename((long, &name), (Ino::ROOT, "out")).await.unwrap();
        let other = Mount::new(&store);
        let file = walk(&other, &["out", "f"]).await;
        assert_eq!(other.read(file).await.unwrap(), b"here");
        assert_eq!(mount.find(long, &name).await, None);
        mount.rename((Ino::ROOT, "out"), (long, &name)).await.unwrap();
        let file = mount.find(directory, "f").await.unwrap();
        assert_eq!(mount.read(file).await.unwrap(), b"here");
        assert_eq!(other.find(Ino::ROOT, "out").await, None);
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_promised_that_no_record_can_keep_where_keys_are_too_long() {
    let store = MemoryStore::new(clock::system());
    let mount = Mount::new(&store);
    let long = deep(&mount).await;
    for bytes in [200, 213] {
        let name = "d".repeat(bytes);
        let directory = mount.mkdir(long, &name).await;
        let flags = libc::O_WRONLY | libc::O_CREAT;
        let made = mount.fs.create(directory, OsStr::new("f"), 0o600, flags, CALLER).await;
        let (entry, opened) = made.unwrap();
        mount.fs.write(opened.handle, 0, b"plain").await.unwrap();
        mount.fs.fsync(opened.handle).await.unwrap();
        mount.fs.flush(opened.handle, Closer::Living(0)).await.unwrap();
        mount.fs.fsync(opened.handle).await.unwrap();
        mount.fs.release(opened.handle).await;
        let (file, none) = (entry.stat.ino, SetAttributes::default());
        let now = Some(std::time::SystemTime::UNIX_EPOCH);
        for set in [
            SetAttributes { mode: Some(0o640), ..none },
            SetAttributes { uid: Some(7), ..none },
            SetAttributes { mtime: now, ..none },
        ] {
            assert_eq!(mount.fs.setattr(file, set).await.err(), Some(Errno::ENAMETOOLONG));
        }
        let refused = mount.fs.setxattr(file, "user.a", b"x", SetMode::Any).await;
        assert_eq!(refused, Err(Errno::ENAMETOOLONG));
        let (link, pipe) = (OsStr::new("l"), OsStr::new("p"));
        let refused = mount.fs.symlink(directory, link, OsStr::new("f"), CALLER).await;
        assert_eq!(refused.err(), Some(Errno::ENAMETOOLONG));
        let refused = mount.fs.mknod(directory, pipe, libc::S_IFIFO | 0o644, 0, CALLER).await;
        assert_eq!(refused.err(), Some(Errno::ENAMETOOLONG));
        // What comes from elsewhere keeps what it has, or its name.
        mount.fs.mknod(Ino::ROOT, pipe, libc::S_IFIFO | 0o644, 0, CALLER).await.unwrap();
        let secret = mount.write(Ino::ROOT, "s", b"secret").await;
        mount.fs.setattr(secret, SetAttributes { mode: Some(0o600), ..none }).await.unwrap();
        for name in ["p", "s"] {
            let renamed = mount.rename((Ino::ROOT, name), (directory, name)).await;
            assert_eq!(renamed, Err(Errno::ENAMETOOLONG));
            mount.fs.unlink(Ino::ROOT, OsStr::new(name)).await.unwrap();
        }
        mount.write(Ino::ROOT, "a", b"moved").await;
        mount.rename((Ino::ROOT, "a"), (directory, "a")).await.unwrap();
        mount.rename((directory, "a"), (directory, "b")).await.unwrap();
        // What changes nothing, or what the object tells, needs no record.
        mount.fs.setattr(file, SetAttributes { mode: Some(0o600), ..none }).await.unwrap();
        let cut = SetAttributes { size: Some(2), mtime: now, ..none };
        mount.fs.setattr(file, cut).await.unwrap();
        assert_eq!(mount.fs.drain().await, 0, "it is tried again");
        let other = Mount::new(&store);
        let k = "k".repeat(200);
        let directory = walk(&other, &[&k, &k, &k, &k, &name]).await;
        assert_eq!(other.names(directory).await, ["b", "f"]);
        for (name, body) in [("b", &b"moved"[..]), ("f", b"pl")] {
            let file = other.find(directory, name).await.unwrap();
            assert_eq!(other.read(file).await.unwrap(), body);
            other.fs.unlink(directory, OsStr::new(name)).await.unwrap();
        }
        other.fs.rmdir(walk(&other, &[&k, &k, &k, &k]).await, OsStr::new(&name)).await.unwrap();
    }
    assert_eq!(mount.bucket.counts().errors, 0);
}
