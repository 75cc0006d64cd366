//! Uploads that fail or are never answered, under `--durability local`: nothing that was
//! acknowledged is lost by that, and nothing old comes back.

#[path = "support/mounts.rs"]
mod mounts;
#[path = "support/steered.rs"]
mod steered;
#[path = "support/watched.rs"]
mod watched;

use std::ffi::OsStr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tempfile::TempDir;
use trialfs::bucket::memory::MemoryStore;
use trialfs::clock;
use trialfs::fs::{Closer, Purpose, Recovered};
use trialfs::types::Ino;

use watched::{LARGE, Node, PATIENCE, node, node_at};

/// A version failed while the next one was written, which then went up: the failed one was tried
/// again half a minute later, or at the unmount, and the log had lost all lines since.
#[tokio::test]
async fn a_version_that_failed_never_replaces_a_later_one() {
    for synced in [false, true] {
        let node = node(|_| ());
        let first = node.open("log").await;
        let log = node.fs.lookup(Ino::ROOT, OsStr::new("log"), |_| Purpose::Unknown).await;
        node.fs.write(first, 0, b"one").await.unwrap();
        node.refuses.store(true, Ordering::SeqCst);
        node.close(first, Closer::Living(0)).await;
        node.is_held().await;
        let flags = libc::O_WRONLY | libc::O_APPEND;
        let handle = node.fs.open(log.unwrap().stat.ino, flags, 0).await.unwrap().handle;
        node.fs.write(handle, 0, b"two").await.unwrap();
        node.refuses.store(false, Ordering::SeqCst);
        node.has_failed().await;
        if synced {
            node.fs.fsync(handle).await.unwrap();
        }
        node.close(handle, Closer::Living(0)).await;
        node.drain().await;
        assert_eq!(node.object("log").unwrap(), b"onetwo", "synced: {synced}");
    }
}

/// A log was closed by a child as well, and the daemon killed: the first close was brought to the
/// bucket, with the file cut to what it was then, and the second found no file any more.
#[test]
fn a_file_that_was_closed_twice_is_recovered_as_it_was_closed_last() {
    let (disk, memory) = (TempDir::new().unwrap(), MemoryStore::new(clock::system()));
    let mut log = vec![b'.'; LARGE];
    life(async {
        let node = node_at(disk.path(), memory.clone(), |_| ()).unwrap();
        let handle = node.open("log").await;
        node.fs.write(handle, 0, &log).await.unwrap();
        node.refuses.store(true, Ordering::SeqCst);
        node.fs.flush(handle, Closer::Living(0)).await.unwrap();
        node.is_held().await;
        node.fs.write(handle, LARGE as u64, b"more").await.unwrap();
        node.fs.flush(handle, Closer::Living(0)).await.unwrap();
    });
    log.extend(b"more");
    life(async {
        let node = mounted_again(disk.path(), &memory).await;
        let recovered = node.fs.recover().await;
        assert_eq!((recovered.left, recovered.quarantined), (0, 0));
        assert!(node.object("log") == Some(log));
    });
}

/// The first version could not be recovered, and the second went to quarantine in its place; at the
/// next mount the first was the file.
#[test]
fn a_version_that_is_to_replace_one_that_is_not_recovered_stays_in_the_journal_with_it() {
    let (disk, memory) = (TempDir::new().unwrap(), MemoryStore::new(clock::system()));
    life(async {
        let node = node_at(disk.path(), memory.clone(), |_| ()).unwrap();
        let (log, other) = (node.open("log").await, node.open("other").await);
        let there = node.fs.lookup(Ino::ROOT, OsStr::new("log"), |_| Purpose::Unknown).await;
        node.refuses.store(true, Ordering::SeqCst);
        node.fs.write(log, 0, b"one").await.unwrap();
        node.close(log, Closer::Living(0)).await;
        node.is_held().await;
        node.fs.write(other, 0, b"other").await.unwrap();
        node.close(other, Closer::Living(0)).await;
        let flags = libc::O_WRONLY | libc::O_APPEND;
        let log = node.fs.open(there.unwrap().stat.ino, flags, 0).await.unwrap().handle;
        node.fs.write(log, 0, b"two").await.unwrap();
        node.close(log, Closer::Living(0)).await;
    });
    life(async {
        let node = mounted_again(disk.path(), &memory).await;
        let recovered = node.recover_all_but_the_first().await;
        assert!(recovered.left >= 2, "{recovered:?}");
        assert_eq!(recovered.quarantined, 0);
    });
    life(async {
        let node = mounted_again(disk.path(), &memory).await;
        let recovered = node.fs.recover().await;
        assert_eq!((recovered.left, recovered.quarantined), (0, 0));
        assert_eq!(node.object("log").unwrap(), b"onetwo");
    });
}

/// The answer to its upload was lost, and it is removed: nobody asked the store to remove it.
#[tokio::test]
async fn a_file_whose_upload_was_never_answered_does_not_come_back_after_it_was_removed() {
    let node = node(|_| ());
    let handle = node.open("log").await;
    node.fs.write(handle, 0, b"one").await.unwrap();
    node.refuses.store(true, Ordering::SeqCst);
    node.close(handle, Closer::Living(0)).await;
    node.is_held().await;
    node.does.store(true, Ordering::SeqCst);
    node.refuses.store(false, Ordering::SeqCst);
    node.has_failed().await;
    assert_eq!(node.object("log").unwrap(), b"one");
    node.fs.unlink(Ino::ROOT, OsStr::new("log")).await.unwrap();
    assert_eq!(node.object("log"), None, "it came back");
}

/// It was being written over as it failed: nobody tried it again.
#[tokio::test(start_paused = true)]
async fn a_version_that_failed_while_it_was_written_over_is_tried_again() {
    let node = node(|_| ());
    let handle = failed_and_written_over(&node).await;
    node.becomes(b"one").await;
    node.close(handle, Closer::Living(0)).await;
    assert_eq!(node.object("log").unwrap(), b"one");
}

/// It was tried again half a minute after a later content had been synced, and replaced that, since
/// that content was being written over too.
#[tokio::test(start_paused = true)]
async fn a_version_that_failed_does_not_replace_what_was_synced_since() {
    let node = node(|_| ());
    let handle = failed_and_written_over(&node).await;
    node.fs.write(handle, 0, b"two").await.unwrap();
    let meanwhile = async {
        tokio::time::sleep(Duration::from_micros(2_500)).await;
        node.fs.write(handle, 0, b"three").await.unwrap();
    };
    let (synced, ()) = tokio::join!(node.fs.fsync(handle), meanwhile);
    synced.unwrap();
    let synced = node.object("log").unwrap();
    assert!(synced.starts_with(b"onetwo"), "{:?}", String::from_utf8_lossy(&synced));
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert_eq!(node.object("log"), Some(synced), "it was replaced by an older one");
    node.close(handle, Closer::Living(0)).await;
    node.drain().await;
    assert_eq!(node.object("log").unwrap(), b"onetwothree");
}

/// The upload was done, and its answer lost: whoever tried it again was refused by what it had made
/// itself, until the next mount.
#[tokio::test(start_paused = true)]
async fn an_upload_that_was_never_answered_is_found_again() {
    for size in [3, LARGE] {
        let node = node(|_| ());
        let body = vec![b'1'; size];
        let handle = node.open("log").await;
        node.fs.write(handle, 0, &body).await.unwrap();
        node.refuses.store(true, Ordering::SeqCst);
        node.close(handle, Closer::Living(0)).await;
        node.is_held().await;
        node.does.store(true, Ordering::SeqCst);
        node.refuses.store(false, Ordering::SeqCst);
        node.has_failed().await;
        assert!(!node.fs.status().failed.is_empty());
        let done = async {
            while !node.fs.status().failed.is_empty() {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(300), done).await.expect("it is found");
        assert_eq!(node.object("log").as_ref(), Some(&body));
        let handle = node.open("log").await;
        node.fs.write(handle, 0, b"2").await.unwrap();
        node.close(handle, Closer::Living(0)).await;
        node.drain().await;
        assert_eq!(node.object("log").unwrap().len(), size + 1);
    }
}

/// A file could not be recovered, and its name was used by another one: at the next mount it took
/// that one's place, or came back after that one was removed.
#[test]
fn what_was_not_recovered_does_not_come_back_once_its_name_was_used() {
    for removed in [false, true] {
        let (disk, memory) = (TempDir::new().unwrap(), MemoryStore::new(clock::system()));
        life(async {
            let node = node_at(disk.path(), memory.clone(), |_| ()).unwrap();
            let log = node.open("log").await;
            node.fs.write(log, 0, b"old").await.unwrap();
            node.refuses.store(true, Ordering::SeqCst);
            node.close(log, Closer::Living(0)).await;
            node.is_held().await;
        });
        life(async {
            let node = mounted_again(disk.path(), &memory).await;
            let recovered = node.recover_all_but_the_first().await;
            assert_eq!(recovered.left, 1, "{recovered:?}");
            let log = node.open("log").await;
            node.fs.write(log, 0, b"new").await.unwrap();
            node.holds.store(false, Ordering::SeqCst);
            node.refuses.store(!removed, Ordering::SeqCst);
            node.close(log, Closer::Living(0)).await;
            match removed {
                true => node.fs.unlink(Ino::ROOT, OsStr::new("log")).await.unwrap(),
                false => node.is_held().await, // it is on its way as the daemon dies
            }
        });
        life(async {
            let node = mounted_again(disk.path(), &memory).await;
            let recovered = node.fs.recover().await;
            assert_eq!((recovered.left, recovered.quarantined), (0, 0));
            let expected = (!removed).then(|| b"new".to_vec());
            assert_eq!(node.object("log"), expected, "removed: {removed}");
        });
        let quarantine = disk.path().join("quarantine");
        assert!(quarantine.read_dir().unwrap().count() > 0, "no byte of it is deleted");
    }
}

/// What a daemon does until it is killed.
fn life(acts: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(acts);
    runtime.shutdown_background();
}

/// A log whose first version, `one`, could not go up, and which is open to be added to.
async fn failed_and_written_over(node: &Node) -> u64 {
    let first = node.open("log").await;
    let log = node.fs.lookup(Ino::ROOT, OsStr::new("log"), |_| Purpose::Unknown).await;
    let ino = log.unwrap().stat.ino;
    node.fs.write(first, 0, b"one").await.unwrap();
    node.refuses.store(true, Ordering::SeqCst);
    node.close(first, Closer::Living(0)).await;
    node.is_held().await;
    let flags = libc::O_WRONLY | libc::O_APPEND;
    let handle = node.fs.open(ino, flags, 0).await.unwrap().handle;
    node.refuses.store(false, Ordering::SeqCst);
    node.has_failed().await;
    handle
}

impl Node {
    /// Until a request waits to be refused.
    async fn is_held(&self) {
        while !self.holds.load(Ordering::SeqCst) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// What goes first is refused, and nothing after it.
    async fn recover_all_but_the_first(&self) -> Recovered {
        self.refuses.store(true, Ordering::SeqCst);
        let heals = async {
            self.is_held().await;
            self.refuses.store(false, Ordering::SeqCst);
        };
        tokio::join!(self.fs.recover(), heals).0
    }

    async fn has_failed(&self) {
        while self.fs.status().write.uploads_failed == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    async fn becomes(&self, body: &[u8]) {
        let there = async {
            while self.object("log").as_deref() != Some(body) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, there).await.expect("it is tried again");
    }
}

/// After the daemon that had the directory died; its tasks may hold the journal yet.
async fn mounted_again(dir: &Path, memory: &Arc<MemoryStore>) -> Node {
    let mounted = async {
        loop {
            match node_at(dir, memory.clone(), |_| ()) {
                Ok(node) => return node,
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    };
    tokio::time::timeout(PATIENCE, mounted).await.unwrap()
}
