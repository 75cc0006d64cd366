//! What a directory mounted as a bucket promises beyond the conformance suite: nothing outside it,
//! nothing half, and versions that tell rewrites from renames.

use std::os::unix::fs::symlink;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tempfile::TempDir;
use trialfs::bucket::{self, Bucket, BucketError, Condition, Metadata};
use trialfs::clock;
use trialfs::config::{Location, StoreOptions};
use trialfs::types::Key;

async fn export() -> (TempDir, Arc<Bucket>) {
    let dir = tempfile::tempdir().unwrap();
    let location = Location::Directory { path: dir.path().to_owned() };
    let store = bucket::open(&location, &StoreOptions::default(), clock::system()).await.unwrap();
    (dir, Bucket::new(store, clock::system(), Duration::from_secs(10)))
}

async fn put(bucket: &Bucket, key: &str, body: &'static str) -> Result<(), BucketError> {
    let body = Bytes::from_static(body.as_bytes());
    let (key, always) = (Key::new(key), Condition::Always);
    bucket.put(&key, body, &always, &Metadata::new()).await.map(drop)
}

#[tokio::test]
async fn no_link_leads_out_of_the_export() {
    let outside = tempfile::tempdir().unwrap();
    std::fs::write(outside.path().join("secret"), "secret").unwrap();
    let (dir, bucket) = export().await;
    symlink(outside.path(), dir.path().join("out")).unwrap();
    symlink(outside.path().join("secret"), dir.path().join("file")).unwrap();
    for key in ["out/secret", "file", "out/"] {
        assert_eq!(bucket.head(&Key::new(key)).await, Err(BucketError::NotFound), "{key}");
        let got = bucket.get_bytes(&Key::new(key), 0..10, None).await;
        assert_eq!(got.unwrap_err(), BucketError::NotFound, "{key}");
        let deleted = bucket.delete(&Key::new(key), None).await;
        assert_eq!(deleted, Err(BucketError::NotFound), "{key}");
    }
    assert_eq!(put(&bucket, "out/new", "x").await, Err(BucketError::WrongKind));
    assert!(put(&bucket, "../new", "x").await.is_err());
    assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 1);
    let page = bucket.list_all("", false).await.unwrap();
    let keys: Vec<_> = page.objects.iter().map(|o| o.key.as_str()).collect();
    assert_eq!(keys, [".trialfs/"], "a link is not an object, and our own files are hidden");
    put(&bucket, "file", "ours").await.unwrap();
    let secret = std::fs::read_to_string(outside.path().join("secret")).unwrap();
    assert_eq!(secret, "secret", "a link is replaced, never written through");
}

#[tokio::test]
async fn a_rename_keeps_the_version_and_a_rewrite_changes_it() {
    let (_dir, bucket) = export().await;
    let (a, b) = (Key::new("a"), Key::new("b"));
    put(&bucket, "a", "same").await.unwrap();
    let first = bucket.head(&a).await.unwrap().etag;
    bucket.rename(&a, &b, &Condition::IfAbsent).await.unwrap();
    assert_eq!(bucket.head(&b).await.unwrap().etag, first);
    for _ in 0..50 {
        let before = bucket.head(&b).await.unwrap().etag;
        bucket.delete(&b, None).await.unwrap();
        put(&bucket, "b", "same").await.unwrap();
        assert_ne!(bucket.head(&b).await.unwrap().etag, before, "same inode, bytes and instant");
    }
}

#[tokio::test]
async fn what_other_programs_wrote_is_there_and_changes_are_seen() {
    let (dir, bucket) = export().await;
    std::fs::create_dir_all(dir.path().join("runs/one")).unwrap();
    std::fs::write(dir.path().join("runs/one/log"), "theirs").unwrap();
    let key = Key::new("runs/one/log");
    let (info, bytes) = bucket.get_bytes(&key, 0..100, None).await.unwrap();
    assert_eq!(bytes, "theirs");
    std::fs::write(dir.path().join("runs/one/log"), "theirs, longer").unwrap();
    let stale = bucket.get_bytes(&key, 0..6, Some(&info.etag)).await;
    assert_eq!(stale.unwrap_err(), BucketError::Precondition);
}

#[tokio::test]
async fn a_file_and_a_directory_never_replace_one_another() {
    let (_dir, bucket) = export().await;
    put(&bucket, "dir/file", "x").await.unwrap();
    assert_eq!(put(&bucket, "dir", "x").await, Err(BucketError::WrongKind));
    assert_eq!(put(&bucket, "dir/file/below", "x").await, Err(BucketError::WrongKind));
    assert_eq!(put(&bucket, "dir/file/", "").await, Err(BucketError::WrongKind));
    assert_eq!(bucket.delete(&Key::new("dir"), None).await, Err(BucketError::NotFound));
    assert_eq!(bucket.head(&Key::new("dir/file")).await.unwrap().size, 1);
}

#[tokio::test]
async fn of_many_swaps_one_wins() {
    let (_dir, bucket) = export().await;
    let key = Key::new("k");
    put(&bucket, "k", "start").await.unwrap();
    let etag = bucket.head(&key).await.unwrap().etag;
    let condition = Condition::IfMatch(etag);
    let metadata = Metadata::new();
    let swaps = (0..16).map(|i| {
        let body = Bytes::from(format!("writer {i}"));
        bucket.put(&key, body, &condition, &metadata)
    });
    let results = futures::future::join_all(swaps).await;
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1);
}

#[tokio::test]
async fn an_upload_outlives_the_process_that_began_it_and_leaves_nothing() {
    let (dir, bucket) = export().await;
    let key = Key::new("big");
    let upload = bucket.create_multipart(&key, &Metadata::new()).await.unwrap();
    let part = bucket.upload_part(&key, &upload, 1, Bytes::from_static(b"one")).await.unwrap();
    let location = Location::Directory { path: dir.path().to_owned() };
    let store = bucket::open(&location, &StoreOptions::default(), clock::system()).await.unwrap();
    let next = Bucket::new(store, clock::system(), Duration::from_secs(10));
    next.complete_multipart(&key, &upload, &[part], &Condition::IfAbsent).await.unwrap();
    assert_eq!(std::fs::read_to_string(dir.path().join("big")).unwrap(), "one");
    let left = std::fs::read_dir(dir.path().join(".trialfs/tmp")).unwrap();
    let left: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| name.to_string_lossy().starts_with("lock.")), "{left:?}");
}

#[tokio::test]
async fn a_missing_directory_is_said_to_be_missing() {
    let location = Location::Directory { path: "/no/such/dir".into() };
    let opened = bucket::open(&location, &StoreOptions::default(), clock::system()).await;
    assert!(opened.unwrap_err().to_string().contains("/no/such/dir"));
}
