//! A read never mixes two versions, and a version that is gone says so.

use super::*;
use crate::bucket::BucketError;

#[tokio::test]
async fn every_get_asks_for_its_version() {
    let bench = Bench::new();
    let (version, _) = bench.object("big", 32 * MIB).await;
    bench.read_all(&version, 1 << 20).await.unwrap();
    let gets = bench.store.gets();
    assert!(!gets.is_empty());
    assert!(gets.iter().all(|get| get.if_match.as_ref() == Some(&version.etag)));
}

#[tokio::test]
async fn a_replaced_object_is_changed_where_it_was_not_read_and_old_where_it_was() {
    let bench = Bench::new();
    let (old, bytes) = bench.object("k", 32 * MIB).await;
    let handle = bench.reader.open(old.clone());
    bench.reader.read(&handle, 20 * MIB, 4096).await.unwrap();
    bench.settle().await;
    let new = bench.put("k", &content(99, 32 * MIB)).await;
    for at in [0, 31 * MIB] {
        assert_eq!(bench.reader.read(&handle, at, 4096).await, Err(ReadError::Changed));
    }
    let kept = bench.reader.read(&handle, 20 * MIB, 4096).await.unwrap();
    assert_eq!(kept, bytes.slice(20 << 20..(20 << 20) + 4096));
    assert!(bench.read_all(&new, 1 << 20).await.unwrap() == content(99, 32 * MIB));
    assert_eq!(bench.reader.read(&handle, 0, 4096).await, Err(ReadError::Changed));
}

#[tokio::test]
async fn a_removed_object_is_changed() {
    let bench = Bench::new();
    let (version, _) = bench.object("k", 32 * MIB).await;
    bench.bucket.delete(&version.key, None).await.unwrap();
    let handle = bench.reader.open(version);
    assert_eq!(bench.reader.read(&handle, 0, 4096).await, Err(ReadError::Changed));
}

#[tokio::test]
async fn a_store_that_ignores_conditions_still_never_gives_a_mix() {
    let bench = Bench::new();
    bench.store.ignore_conditions();
    let (old, _) = bench.object("k", 32 * MIB).await;
    let handle = bench.reader.open(old);
    bench.reader.read(&handle, 0, 4096).await.unwrap();
    bench.put("k", &content(99, 32 * MIB)).await;
    assert_eq!(bench.reader.read(&handle, 20 * MIB, 4096).await, Err(ReadError::Changed));
}

#[tokio::test]
async fn an_open_handle_keeps_reading_what_it_has_when_the_key_is_forgotten() {
    let bench = Bench::new();
    let (version, bytes) = bench.object("k", 4 * MIB).await;
    let handle = bench.reader.open(version.clone());
    bench.reader.read(&handle, 0, 4 << 20).await.unwrap();
    bench.settle().await;
    bench.bucket.delete(&version.key, None).await.unwrap();
    bench.reader.forget(&version.key);
    let got = bench.reader.read(&handle, 0, 4 << 20).await.unwrap();
    assert!(got == bytes);
    drop(handle);
    assert_eq!(bench.reader.status().cache_bytes, 0);
    assert_eq!(bench.cache_files(), Vec::<PathBuf>::new());
}

#[tokio::test]
async fn opening_a_new_version_frees_the_old_one() {
    let bench = Bench::new();
    let (old, _) = bench.object("k", 2 * MIB).await;
    bench.read_all(&old, 1 << 20).await.unwrap();
    bench.settle().await;
    assert_eq!(bench.reader.status().cache_bytes, 2 * MIB);
    let new = bench.put("k", &content(5, MIB)).await;
    let _handle = bench.reader.open(new);
    assert_eq!(bench.reader.status().cache_bytes, 0);
}

#[tokio::test]
async fn bytes_that_came_wrong_are_told_before_the_last_of_them_and_fetched_again() {
    let bench = Bench::new();
    let (version, bytes) = bench.object("big", 20 * MIB + 3).await;
    bench.store.flip_next();
    let read = bench.read_all(&version, 1 << 20).await;
    assert!(matches!(read, Err(ReadError::Bucket(BucketError::Corrupt(_)))), "it was taken");
    bench.settle().await;
    assert_eq!(bench.reader.status().corrupt_objects, 1);
    assert!(bench.reader.whole_file(&version).is_none());
    assert!(bench.read_all(&version, 1 << 20).await.unwrap() == bytes);
    bench.settle().await;
    let status = bench.reader.status();
    assert_eq!((status.checked_objects, status.corrupt_objects), (2, 1));
    assert!(bench.reader.whole_file(&version).is_some());
}
