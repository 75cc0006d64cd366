//! How many requests a pattern of reads costs, and who waits for which.

use futures::FutureExt;

use super::*;
use crate::bucket::BucketError;

#[tokio::test]
async fn an_empty_object_costs_no_request() {
    let bench = Bench::new();
    let (version, _) = bench.object("empty", 0).await;
    assert_eq!(bench.read_all(&version, 4096).await.unwrap(), b"");
    assert_eq!(bench.store.gets(), []);
}

#[tokio::test]
async fn a_small_object_is_one_get_wherever_it_is_read() {
    let bench = Bench::new();
    let (version, bytes) = bench.object("small", MIB).await;
    let handle = bench.reader.open(version);
    let got = bench.reader.read(&handle, 700_000, 1000).await.unwrap();
    assert_eq!(got, bytes.slice(700_000..701_000));
    let got = bench.reader.read(&handle, MIB - 10, 4096).await.unwrap();
    assert_eq!(got, bytes.slice(MIB as usize - 10..), "short only at the end");
    assert_eq!(bench.reader.read(&handle, MIB, 4096).await.unwrap(), b""[..]);
    assert_eq!(bench.reader.read(&handle, u64::MAX, 4096).await.unwrap(), b""[..]);
    assert_eq!(bench.store.gets().len(), 1);
    assert_eq!(bench.store.gets()[0].range, 0..MIB);
}

#[tokio::test]
async fn a_sequential_read_is_one_get_per_block_and_no_byte_twice() {
    let bench = Bench::new();
    let size = 64 * MIB + 5;
    let (version, bytes) = bench.object("big", size).await;
    assert!(bench.read_all(&version, 128 << 10).await.unwrap() == bytes);
    let mut ranges: Vec<_> = bench.store.gets().into_iter().map(|g| g.range).collect();
    ranges.sort_by_key(|r| r.start);
    let blocks = (0..size).step_by(8 << 20).map(|s| s..(s + 8 * MIB).min(size));
    assert_eq!(ranges, blocks.collect::<Vec<_>>());
    assert_eq!(bench.reader.status().fetched_bytes, size);
}

#[tokio::test]
async fn eight_streams_on_one_handle_cost_few_more_gets_than_blocks() {
    let bench = Bench::new();
    let (version, bytes) = bench.object("big", 128 * MIB).await;
    let handle = bench.reader.open(version);
    for i in 0..128 {
        let offsets = (0..8).map(|s| s * 16 * MIB + i * 128 * KIB);
        let reads = offsets.map(|o| bench.reader.read(&handle, o, 128 << 10).map(move |r| (o, r)));
        for (o, read) in join_all(reads).await {
            assert!(read.unwrap() == bytes.slice(o as usize..(o + 128 * KIB) as usize));
        }
    }
    let gets = bench.store.gets().len();
    assert!((16..=16 + 8 * 4).contains(&gets), "{gets}");
    assert_eq!(bench.reader.status().fetched_bytes, 128 * MIB, "no byte twice");
}

#[tokio::test]
async fn a_random_read_of_a_large_object_fetches_its_granules_only() {
    let bench = Bench::new();
    let (version, bytes) = bench.object("big", 64 * MIB).await;
    let handle = bench.reader.open(version);
    let offsets = [40 * MIB, 17 * MIB + 5, 63 * MIB, 3 * MIB - 100, 29 * MIB];
    for (n, o) in offsets.into_iter().enumerate() {
        let got = bench.reader.read(&handle, o, 4096).await.unwrap();
        assert_eq!(got, bytes.slice(o as usize..o as usize + 4096));
        assert_eq!(bench.store.gets().len(), n + 1);
    }
    assert_eq!(bench.reader.status().fetched_bytes, 6 * GRANULE_BYTES);
}

#[tokio::test]
async fn many_readers_of_one_block_cause_one_get() {
    let bench = Bench::new();
    let (version, bytes) = bench.object("big", 8 * MIB).await;
    bench.store.close_gate();
    let handles: Vec<_> = (0..16).map(|_| bench.reader.open(version.clone())).collect();
    let reads = handles.iter().map(|h| bench.reader.read(h, 0, 1 << 20));
    let open = async {
        until(|| bench.store.gets().len() == 1).await;
        bench.store.open_gate();
    };
    let (got, ()) = tokio::join!(join_all(reads), open);
    assert!(got.into_iter().all(|r| r.unwrap() == bytes[..1 << 20]));
    bench.settle().await;
    assert_eq!(bench.store.gets().len(), 1);
}

#[tokio::test]
async fn the_front_of_a_block_is_served_before_its_end_has_come() {
    let bench = Bench::new();
    let (version, bytes) = bench.object("big", 8 * MIB).await;
    bench.store.close_gate();
    let handle = bench.reader.open(version);
    bench.store.pass(1);
    let got = bench.reader.read(&handle, 0, 128 << 10).await.unwrap();
    assert_eq!(got, bytes.slice(..128 << 10));
    let rest = bench.reader.read(&handle, 128 << 10, 1 << 20).now_or_never();
    assert!(rest.is_none(), "the rest is held back");
}

#[tokio::test]
async fn a_reader_that_goes_away_takes_nothing_from_the_others() {
    let bench = Bench::new();
    let (version, bytes) = bench.object("big", 8 * MIB).await;
    bench.store.close_gate();
    let (first, second) = (bench.reader.open(version.clone()), bench.reader.open(version));
    assert!(bench.reader.read(&first, 0, 1 << 20).now_or_never().is_none());
    let mut waits = Box::pin(bench.reader.read(&second, MIB, 1 << 20));
    assert!(waits.as_mut().now_or_never().is_none());
    drop(first);
    bench.store.open_gate();
    assert_eq!(waits.await.unwrap(), bytes.slice(1 << 20..2 << 20));
    assert_eq!(bench.store.gets().len(), 1);
}

#[tokio::test]
async fn an_error_reaches_all_who_wait_and_is_forgotten() {
    let bench = Bench::new();
    let (version, bytes) = bench.object("big", 8 * MIB).await;
    bench.store.fail([BucketError::Denied("no".into())]);
    let handles: Vec<_> = (0..4).map(|_| bench.reader.open(version.clone())).collect();
    let reads = handles.iter().map(|h| bench.reader.read(h, 0, 4096));
    let denied = ReadError::Bucket(BucketError::Denied("no".into()));
    for read in join_all(reads).await {
        assert_eq!(read, Err(denied.clone()));
    }
    assert_eq!(bench.store.gets().len(), 1);
    let again = bench.reader.read(&handles[0], 0, 4096).await.unwrap();
    assert_eq!(again, bytes.slice(..4096));
}

#[tokio::test]
async fn what_is_cached_is_answered_at_the_first_poll_and_outside_the_runtime() {
    let bench = Bench::new();
    let (version, bytes) = bench.object("big", 3 * MIB).await;
    let (small, little) = bench.object("small", 1000).await;
    bench.read_all(&version, 1 << 20).await.unwrap();
    bench.read_all(&small, 1 << 20).await.unwrap();
    bench.settle().await;
    let reader = bench.reader.clone();
    let outside = std::thread::spawn(move || {
        let (big, small) = (reader.open(version), reader.open(small));
        let all = reader.read(&big, 0, 3 << 20).now_or_never();
        let part = reader.read(&big, 999, 1000).now_or_never();
        (all, part, reader.read(&small, 0, 4096).now_or_never())
    });
    let (all, part, small) = outside.join().unwrap();
    assert!(all.unwrap().unwrap() == bytes);
    assert_eq!(part.unwrap().unwrap(), bytes.slice(999..1999));
    assert_eq!(small.unwrap().unwrap(), little);
}

#[tokio::test]
async fn bytes_in_flight_stay_within_the_memory_given() {
    let bench = Bench::with(|c| c.memory_bytes_max = 8 * MIB);
    let mut objects = Vec::new();
    for i in 0..24 {
        objects.push(bench.object(&format!("o{i}"), 4 * MIB).await);
    }
    bench.store.close_gate();
    let reads = objects.iter().map(|(v, _)| bench.read_all(v, 1 << 20));
    let bound = async {
        until(|| bench.reader.status().in_flight_bytes > 5 * MIB).await;
        assert!(bench.reader.status().in_flight_bytes <= 6 * MIB);
        assert!(bench.store.gets().len() <= 16);
        bench.store.open_gate();
    };
    let (got, ()) = tokio::join!(join_all(reads), bound);
    for (got, (_, bytes)) in got.into_iter().zip(&objects) {
        assert!(got.unwrap() == *bytes);
    }
}

#[tokio::test]
async fn fetch_all_writes_the_object_and_again_from_the_cache() {
    let bench = Bench::new();
    let (version, bytes) = bench.object("big", 40 * MIB + 7).await;
    for gets in [6, 0] {
        let into = tempfile::NamedTempFile::new().unwrap();
        bench.reader.fetch_all(&version, into.as_file()).await.unwrap();
        assert!(std::fs::read(into.path()).unwrap() == bytes);
        bench.settle().await;
        assert_eq!(bench.store.take_gets().len(), gets);
    }
}

#[tokio::test]
async fn the_first_get_of_a_version_tells_whether_it_is_still_there() {
    let bench = Bench::new();
    let (version, bytes) = bench.object("big", 20 * MIB).await;
    assert!(bench.reader.begin(&version).await);
    assert!(!bench.reader.begin(&version).await, "what is on its way was asked for before");
    assert!(bench.read_all(&version, 1 << 20).await.unwrap() == bytes);
    bench.settle().await;
    assert!(!bench.reader.begin(&version).await, "what is cached says nothing of the store");
    assert_eq!(bench.store.take_gets().len(), 3, "20 MiB in blocks of 8");
    let other = Version { etag: crate::types::ETag("another".to_owned()), ..version };
    assert!(!bench.reader.begin(&other).await);
    assert_eq!(bench.store.take_gets().len(), 1);
}
