//! What stands at the new name of a directory that is renamed, or stood there before.

use std::ffi::OsStr;

use trialfs::bucket::memory::MemoryStore;
use trialfs::bucket::{Condition, Store};
use trialfs::clock;
use trialfs::fs::error::Errno;
use trialfs::fs::{Replace, SetAttributes};
use trialfs::types::{Ino, Key};

use super::{Mount, settled};

#[tokio::test(start_paused = true)]
async fn over_an_empty_directory_and_not_over_a_full_one() {
    let store = MemoryStore::new(clock::system());
    let (mount, other) = (Mount::new(&store), Mount::new(&store));
    let run = mount.fill().await;
    let full = mount.mkdir(Ino::ROOT, "full").await;
    mount.write(full, "x", b"x").await;
    mount.mkdir(Ino::ROOT, "empty").await;
    mount.write(Ino::ROOT, "file", b"x").await;
    let rename = |to: &'static str| mount.rename((Ino::ROOT, "run"), (Ino::ROOT, to));
    assert_eq!(rename("full").await, Err(Errno::ENOTEMPTY));
    assert_eq!(rename("file").await, Err(Errno::ENOTDIR));
    assert_eq!(mount.rename((Ino::ROOT, "run"), (run, "in")).await, Err(Errno::EINVAL));
    assert_eq!(other.names(Ino::ROOT).await, ["empty", "file", "full", "run"]);
    rename("empty").await.unwrap();
    assert_eq!(other.names(Ino::ROOT).await, ["empty", "file", "full"]);
    let empty = other.find(Ino::ROOT, "empty").await.unwrap();
    other.whole(empty).await;
    settled(&store).await;
    other.whole(empty).await;
}

/// What stood at the new name was asked for beside the rename's first records, which hide it: a
/// directory replaced a file of another tool, and the file's bytes were gone.
#[tokio::test(start_paused = true)]
async fn a_file_of_another_tool_at_the_new_name_outlives_a_directory_that_is_renamed_onto_it() {
    let store = MemoryStore::new(clock::system());
    let mount = Mount::new(&store);
    mount.fill().await;
    // From here on the root has records.
    mount.rename((Ino::ROOT, "run"), (Ino::ROOT, "first")).await.unwrap();
    for below in ["", "sub/"] {
        let parent = match below {
            "" => Ino::ROOT,
            _ => mount.mkdir(Ino::ROOT, "sub").await,
        };
        for i in 0..3 {
            let from = format!("from{i}");
            let directory = mount.mkdir(parent, &from).await;
            mount.write(directory, "a", b"a").await;
            let names = [format!("file{i}"), format!("full{i}")];
            let keys = [format!("{below}file{i}"), format!("{below}full{i}/x")].map(Key::new);
            for key in &keys {
                let (body, none) = (bytes::Bytes::from_static(b"precious"), Default::default());
                store.put(key, body, &Condition::Always, &none).await.unwrap();
            }
            for (name, errno) in names.iter().zip([Errno::ENOTDIR, Errno::ENOTEMPTY]) {
                let renamed = mount.rename((parent, &from), (parent, name)).await;
                assert_eq!(renamed, Err(errno), "{below}{name}");
            }
            settled(&store).await;
            for key in &keys {
                assert!(store.head(key).await.is_ok(), "{key} is gone");
            }
            assert_eq!(mount.names(directory).await, ["a"]);
        }
    }
}

/// Records of a directory that an S3 client removed would have been taken for those of the one that
/// comes to its name, and its own thrown away.
#[tokio::test(start_paused = true)]
async fn records_of_a_directory_that_is_gone_do_not_speak_of_the_one_renamed_there() {
    let store = MemoryStore::new(clock::system());
    let mount = Mount::new(&store);
    let private = SetAttributes { mode: Some(0o600), ..SetAttributes::default() };
    let gone = mount.mkdir(Ino::ROOT, "gone").await;
    let old = mount.write(gone, "f", b"old").await;
    mount.fs.setattr(old, SetAttributes { mode: Some(0o640), ..private }).await.unwrap();
    mount.fs.fsyncdir(gone).await.unwrap();
    let is_record = |key: &str| key.starts_with("gone/.trialfs/attrs.");
    assert!(store.objects().keys().any(|key| is_record(key)));
    for key in ["gone/f", "gone/"] {
        store.delete(&Key::new(key), None).await.unwrap();
    }
    let new = mount.mkdir(Ino::ROOT, "new").await;
    let file = mount.write(new, "f", b"new").await;
    mount.fs.setattr(file, private).await.unwrap();
    mount.rename((Ino::ROOT, "new"), (Ino::ROOT, "gone")).await.unwrap();
    settled(&store).await;
    let other = Mount::new(&store);
    let gone = other.find(Ino::ROOT, "gone").await.unwrap();
    let file = other.find(gone, "f").await.unwrap();
    assert_eq!(other.fs.getattr(file).await.unwrap().stat.attributes.mode, 0o600);
}

#[tokio::test(start_paused = true)]
async fn a_name_that_another_node_renamed_away_is_free_at_once() {
    for replace in [Replace::Allowed, Replace::Refused] {
        let store = MemoryStore::new(clock::system());
        let (mount, other) = (Mount::new(&store), Mount::new(&store));
        mount.fill().await;
        let directory = other.mkdir(Ino::ROOT, "mine").await;
        other.write(directory, "f", b"content").await;
        mount.rename((Ino::ROOT, "run"), (Ino::ROOT, "away")).await.unwrap();
        // Its keys stand at the old name for more than a second.
        let names = (OsStr::new("mine"), OsStr::new("run"));
        other.fs.rename(Ino::ROOT, names.0, Ino::ROOT, names.1, replace).await.unwrap();
        settled(&store).await;
        let run = mount.find(Ino::ROOT, "run").await.unwrap();
        assert_eq!(mount.names(run).await, ["f"], "{replace:?}");
        let away = mount.find(Ino::ROOT, "away").await.unwrap();
        mount.whole(away).await;
    }
}
