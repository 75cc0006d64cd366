//! What must hold on Google Cloud Storage when uploads are completed by several mounts, replies are
//! lost and objects change meanwhile; and that it mounts. Against the emulator of `support/`.

#[path = "support/gcs_emulator.rs"]
mod gcs_emulator;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use trialfs::bucket::{self, Bucket, BucketError, Condition, Metadata};
use trialfs::clock;
use trialfs::config::{Location, StoreOptions};
use trialfs::types::{ETag, Key};

use gcs_emulator::Emulator;

const IO_TIMEOUT: Duration = Duration::from_secs(30);
const TAIL: Bytes = Bytes::from_static(b"the last part");

async fn mount(emulator: &Emulator) -> Arc<Bucket> {
    let location = Location::Gcs { bucket: "bucket".to_owned(), prefix: String::new() };
    let endpoint = Some(emulator.endpoint());
    let options = StoreOptions { endpoint, ..StoreOptions::default() };
    let store = bucket::open(&location, &options, clock::system()).await.unwrap();
    Bucket::new(store, clock::system(), IO_TIMEOUT)
}

/// An upload of one part, of which all but the completion is done.
async fn uploaded(bucket: &Bucket, key: &Key) -> (String, Vec<String>) {
    let upload = bucket.create_multipart(key, &Metadata::new()).await.unwrap();
    let part = bucket.upload_part(key, &upload, 1, TAIL).await.unwrap();
    (upload, vec![part])
}

async fn put(bucket: &Bucket, key: &Key, body: &'static [u8]) -> ETag {
    let body = Bytes::from_static(body);
    bucket.put(key, body, &Condition::Always, &Metadata::new()).await.unwrap().etag
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_is_completed_by_any_mount_and_once() {
    let emulator = Emulator::start("bucket").await;
    let (one, other) = (mount(&emulator).await, mount(&emulator).await);
    let key = Key::new("runs/ckpt/model.pt");
    let (upload, parts) = uploaded(&one, &key).await;
    assert!(emulator.objects().is_empty(), "nothing is seen before");
    let made = other.complete_multipart(&key, &upload, &parts, &Condition::Always).await.unwrap();
    assert_eq!(emulator.objects().into_iter().collect::<Vec<_>>(), [(key.to_string(), TAIL)]);
    let again = one.complete_multipart(&key, &upload, &parts, &Condition::Always).await;
    assert_eq!(again.unwrap(), made, "whoever comes later learns that it is done");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_completion_never_replaces_what_is_newer_nor_brings_back_what_was_deleted() {
    let emulator = Emulator::start("bucket").await;
    let bucket = mount(&emulator).await;
    let key = Key::new("runs/model.pt");
    for condition in [Condition::Always, Condition::IfAbsent] {
        let (upload, parts) = uploaded(&bucket, &key).await;
        bucket.complete_multipart(&key, &upload, &parts, &condition).await.unwrap();
        bucket.delete(&key, None).await.unwrap();
        let late = bucket.complete_multipart(&key, &upload, &parts, &condition).await;
        assert_eq!(late, Err(BucketError::NotFound));
        assert!(emulator.objects().is_empty(), "{condition:?}");
    }
    let (upload, parts) = uploaded(&bucket, &key).await;
    bucket.complete_multipart(&key, &upload, &parts, &Condition::Always).await.unwrap();
    put(&bucket, &key, b"newer").await;
    let late = bucket.complete_multipart(&key, &upload, &parts, &Condition::Always).await;
    assert_eq!(late, Err(BucketError::NotFound));
    assert_eq!(emulator.objects()[key.as_str()], "newer");
}

/// A mount that died between joining the parts and moving them.
#[tokio::test(flavor = "multi_thread")]
async fn parts_that_a_dead_mount_joined_are_published_by_another() {
    let emulator = Emulator::start("bucket").await;
    let (dead, other) = (mount(&emulator).await, mount(&emulator).await);
    let key = Key::new("runs/model.pt");
    let there = put(&dead, &key, b"old").await;
    let (upload, parts) = uploaded(&dead, &key).await;
    let refused = dead.complete_multipart(&key, &upload, &parts, &Condition::IfAbsent).await;
    assert_eq!(refused, Err(BucketError::Precondition));
    assert_eq!(emulator.objects()[key.as_str()], "old");
    let condition = Condition::IfMatch(there);
    other.complete_multipart(&key, &upload, &parts, &condition).await.unwrap();
    assert_eq!(emulator.objects().into_iter().collect::<Vec<_>>(), [(key.to_string(), TAIL)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_aborted_upload_leaves_nothing_joined_or_not() {
    let emulator = Emulator::start("bucket").await;
    let bucket = mount(&emulator).await;
    let key = Key::new("runs/model.pt");
    let (upload, _) = uploaded(&bucket, &key).await;
    bucket.abort_multipart(&key, &upload).await.unwrap();
    put(&bucket, &key, b"there").await;
    let (upload, parts) = uploaded(&bucket, &key).await;
    let refused = bucket.complete_multipart(&key, &upload, &parts, &Condition::IfAbsent).await;
    assert_eq!(refused, Err(BucketError::Precondition));
    bucket.abort_multipart(&key, &upload).await.unwrap();
    bucket.abort_multipart(&key, &upload).await.unwrap();
    assert_eq!((emulator.objects().len(), emulator.open_uploads()), (1, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_whose_reply_was_lost_is_known_as_our_own() {
    let emulator = Emulator::start("bucket").await;
    let bucket = mount(&emulator).await;
    let none = Metadata::new();
    for condition in [Condition::Always, Condition::IfAbsent] {
        let key = Key::new(format!("runs/{condition:?}"));
        let (upload, parts) = uploaded(&bucket, &key).await;
        emulator.lose_reply("moveTo");
        let made = bucket.complete_multipart(&key, &upload, &parts, &condition).await.unwrap();
        assert_eq!(bucket.head(&key).await.unwrap().etag, made.etag);
    }
    let (put, copied) = (Key::new("put"), Key::new("copied"));
    emulator.lose_reply("/upload/");
    let made = bucket.put(&put, TAIL, &Condition::IfAbsent, &none).await.unwrap();
    emulator.lose_reply("rewriteToken=");
    let copy = bucket.copy(&put, Some(&made.etag), &copied, &Condition::IfAbsent, &none).await;
    assert_eq!(bucket.head(&copied).await.unwrap().etag, copy.unwrap().etag);
    emulator.lose_reply("moveTo");
    bucket.rename(&copied, &Key::new("renamed"), &Condition::IfAbsent).await.unwrap();
    let names: Vec<_> = emulator.objects().into_keys().collect();
    assert_eq!(names, ["put", "renamed", "runs/Always", "runs/IfAbsent"]);
    assert!(bucket.counts().complete >= 4);
}

/// Spaces, `+` and `/` in names and tokens, and keys that XML can't hold.
#[tokio::test(flavor = "multi_thread")]
async fn keys_that_posix_can_not_name_are_listed_and_deleted() {
    let emulator = Emulator::start("bucket").await;
    let bucket = mount(&emulator).await;
    let odd = ["a//b", "a/../c", "a/\u{1}", "a/ +%2F", "a/\u{fffe}"].map(Key::new);
    for key in &odd {
        put(&bucket, key, b"odd").await;
    }
    let listed = bucket.list_all("a/", false).await.unwrap().objects;
    let mut listed: Vec<_> = listed.into_iter().map(|object| object.key).collect();
    let mut expected = odd.to_vec();
    listed.sort();
    expected.sort();
    assert_eq!(listed, expected);
    for key in &odd {
        assert_eq!(bucket.head(key).await.unwrap().size, 3, "{key}");
        bucket.delete(key, None).await.unwrap();
    }
    assert!(emulator.objects().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn each_operation_costs_what_its_documentation_says() {
    let emulator = Emulator::start("bucket").await;
    let bucket = mount(&emulator).await;
    let key = Key::new("runs/model.pt");
    put(&bucket, &key, b"small").await;
    assert_eq!(emulator.take_requests().len(), 1);
    bucket.get_bytes(&key, 0..5, None).await.unwrap();
    bucket.head(&key).await.unwrap();
    bucket.delete(&key, None).await.unwrap();
    assert_eq!(emulator.take_requests().len(), 3);
    let (upload, parts) = uploaded(&bucket, &key).await;
    assert_eq!(emulator.take_requests().len(), 2);
    bucket.complete_multipart(&key, &upload, &parts, &Condition::IfAbsent).await.unwrap();
    assert_eq!(emulator.take_requests().len(), 2);
    bucket.rename(&key, &Key::new("runs/moved.pt"), &Condition::Always).await.unwrap();
    assert_eq!(emulator.take_requests().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_such_bucket_is_said_so() {
    let emulator = Emulator::start("another").await;
    let refused = mount(&emulator).await.list("", true, None, 1).await;
    assert!(matches!(refused, Err(BucketError::Invalid(why)) if why.contains("no such bucket")));
}

struct Mounted(std::path::PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        if table.contains(&self.0.display().to_string()) {
            let _ = Command::new("umount").arg("-l").arg(&self.0).status();
        }
    }
}

fn trialfs(home: &Path, words: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_trialfs"))
        .args(words)
        .env("HOME", home)
        .env("XDG_RUNTIME_DIR", home)
        .stdin(Stdio::null())
        .output()
        .expect("runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{words:?}: {said}");
    said
}

/// Large enough for five parts of 8 MiB.
const LARGE_BYTES: usize = 40 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn a_tree_lives_in_a_mount_and_is_found_after_a_remount() {
    // SAFETY: geteuid has no preconditions.
    let is_root = unsafe { libc::geteuid() } == 0;
    if !(is_root && Path::new("/dev/fuse").exists()) {
        assert!(std::env::var_os("CI").is_none(), "CI must run as root with /dev/fuse");
        eprintln!("skipped: wants root and /dev/fuse");
        return;
    }
    let emulator = Emulator::start("bucket").await;
    let seen = emulator.clone();
    tokio::task::spawn_blocking(move || live(&seen)).await.expect("lives");
    let left = emulator.objects();
    let names: Vec<_> = left.keys().filter(|key| !key.contains(".trialfs/")).collect();
    assert_eq!(names, ["runs/dir/", "runs/dir/large", "runs/dir/link", "runs/small"]);
    assert!(!left.keys().any(|key| key.contains("/data.")), "nothing stays staged");
    assert_eq!(emulator.open_uploads(), 0);
}

fn live(emulator: &Emulator) {
    let home = tempfile::tempdir().expect("a directory");
    let point = home.path().canonicalize().expect("the directory").join("mnt");
    fs::create_dir(&point).expect("a mount point");
    let _mounted = Mounted(point.clone());
    let mnt = point.to_str().expect("UTF-8");
    let endpoint = emulator.endpoint();
    let mount = |cache: &str| {
        let cache = home.path().join(cache);
        let words = ["mount", "gs://bucket/runs", mnt, "--endpoint", &endpoint, "--cache-dir"];
        trialfs(home.path(), &[&words[..], &[cache.to_str().expect("UTF-8")]].concat())
    };
    mount("one");
    let large: Vec<u8> = (0..LARGE_BYTES).map(|i| (i / 4096 + i % 251) as u8).collect();
    fs::write(point.join("small"), "first").expect("writes");
    fs::write(point.join("small"), "small").expect("replaces");
    fs::write(point.join("gone"), "gone").expect("writes");
    fs::create_dir(point.join("dir")).expect("makes");
    fs::write(point.join("big"), &large).expect("writes in parts");
    fs::rename(point.join("big"), point.join("dir/large")).expect("renames");
    std::os::unix::fs::symlink("../small", point.join("dir/link")).expect("links");
    fs::remove_file(point.join("gone")).expect("removes");
    trialfs(home.path(), &["unmount", mnt]);
    assert!(emulator.take_requests().iter().any(|request| request.contains("partNumber=3")));
    mount("two");
    assert_eq!(fs::read_to_string(point.join("dir/link")).expect("reads"), "small");
    assert!(fs::read(point.join("dir/large")).expect("reads") == large);
    let mut names: Vec<_> =
        fs::read_dir(&point).expect("lists").map(|e| e.expect("entry").file_name()).collect();
    names.sort();
    assert_eq!(names, ["dir", "small"]);
    trialfs(home.path(), &["unmount", mnt]);
}
