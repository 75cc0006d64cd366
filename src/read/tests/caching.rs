//! What the cache disk holds, for how long, and what its failures cost.

use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};

use super::*;

async fn cached(bench: &Bench, key: &str, size: u64) -> (Version, Bytes) {
    let (version, bytes) = bench.object(key, size).await;
    assert!(bench.read_all(&version, 1 << 20).await.unwrap() == bytes);
    bench.settle().await;
    bench.store.take_gets();
    (version, bytes)
}

#[tokio::test]
async fn the_cache_is_ours_alone() {
    let bench = Bench::new();
    cached(&bench, "k", 4 * MIB).await;
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let dir = bench.dir.path().join("blocks");
    assert_eq!(mode(&dir), 0o700);
    for item in std::fs::read_dir(&dir).unwrap() {
        assert_eq!(mode(&item.unwrap().path()), 0o600);
    }
}

#[tokio::test]
async fn after_a_restart_what_was_cached_costs_no_get() {
    let mut bench = Bench::new();
    let (big, bytes) = cached(&bench, "big", 20 * MIB + 3).await;
    let (small, little) = cached(&bench, "small", 100).await;
    bench.restart().await;
    assert_eq!(bench.reader.status().cache_bytes, (20 * MIB + 3).next_multiple_of(4096) + 4096);
    assert!(bench.read_all(&big, 128 << 10).await.unwrap() == bytes);
    assert_eq!(bench.read_all(&small, 4096).await.unwrap(), little);
    assert_eq!(bench.store.gets(), []);
}

#[tokio::test]
async fn what_the_log_does_not_know_is_deleted_at_the_start() {
    let mut bench = Bench::new();
    let (version, bytes) = cached(&bench, "k", 2 * MIB).await;
    let stray = bench.dir.path().join("blocks/0000000000000001.block");
    std::fs::write(&stray, b"of another time").unwrap();
    bench.restart().await;
    assert!(!stray.exists());
    std::fs::remove_file(bench.dir.path().join("blocks/index")).unwrap();
    bench.restart().await;
    assert_eq!(bench.cache_files().len(), 0);
    assert!(bench.read_all(&version, 1 << 20).await.unwrap() == bytes);
}

#[tokio::test]
async fn bytes_altered_on_the_cache_disk_are_fetched_again() {
    for restart in [false, true] {
        let mut bench = Bench::new();
        let (version, bytes) = bench.object("k", 4 * MIB).await;
        bench.reader.insert(&version, bytes.clone()); // stored, and not read back yet
        until(|| bench.reader.whole_file(&version).is_some()).await;
        let file = std::fs::OpenOptions::new().write(true).open(&bench.cache_files()[0]).unwrap();
        file.write_all_at(b"XYZ", 3 * MIB + 777).unwrap();
        if restart {
            bench.restart().await;
        }
        assert!(bench.read_all(&version, 128 << 10).await.unwrap() == bytes);
        assert_eq!(bench.reader.status().corrupt_granules, 1);
        assert_eq!(bench.store.gets().len(), 1);
        assert_eq!(bench.store.gets()[0].range, 3 * MIB..3 * MIB + GRANULE_BYTES);
    }
}

/// The system's time, and as much later as the test says.
#[derive(Debug, Default)]
struct LaterClock(std::sync::atomic::AtomicU64);

impl clock::Clock for LaterClock {
    fn now(&self) -> std::time::Instant {
        let later = self.0.load(std::sync::atomic::Ordering::Relaxed);
        clock::system().now() + Duration::from_secs(later)
    }

    fn wall(&self) -> std::time::SystemTime {
        clock::system().wall()
    }

    fn random(&self) -> u64 {
        clock::system().random()
    }
}

#[tokio::test]
async fn bytes_altered_after_they_were_read_and_found_right_are_fetched_again() {
    let bench = Bench::new();
    let later = Arc::new(LaterClock::default());
    let config = config(bench.dir.path().join("later"));
    let reader = Reader::new(bench.bucket.clone(), later.clone(), config).unwrap();
    let (version, bytes) = bench.object("k", 4 * MIB).await;
    let handle = reader.open(version);
    let read = async || {
        let mut all = Vec::new();
        while all.len() < bytes.len() {
            all.extend(reader.read(&handle, all.len() as u64, 128 << 10).await.unwrap());
        }
        all
    };
    read().await;
    until(|| reader.status().in_flight_bytes == 0).await;
    assert!(read().await == bytes);
    let gets = bench.store.gets().len();
    let mut files = std::fs::read_dir(bench.dir.path().join("later")).unwrap();
    let block = files.find_map(|file| {
        let path = file.unwrap().path();
        path.extension().is_some_and(|end| end == "block").then_some(path)
    });
    let file = std::fs::OpenOptions::new().write(true).open(block.unwrap()).unwrap();
    file.write_all_at(b"XYZ", 3 * MIB + 777).unwrap();
    later.0.store(1, std::sync::atomic::Ordering::Relaxed);
    assert!(read().await == bytes);
    assert_eq!(reader.status().corrupt_granules, 1);
    assert_eq!(bench.store.gets().len(), gets + 1);
}

#[tokio::test]
async fn a_cache_file_cut_short_or_deleted_is_fetched_again() {
    let bench = Bench::new();
    let (version, bytes) = cached(&bench, "k", 4 * MIB).await;
    let path = bench.cache_files().remove(0);
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(MIB).unwrap();
    assert!(bench.read_all(&version, 128 << 10).await.unwrap() == bytes);
    bench.settle().await;
    std::fs::remove_file(&path).unwrap();
    assert!(bench.read_all(&version, 128 << 10).await.unwrap() == bytes);
}

#[tokio::test]
async fn the_limit_of_the_cache_holds_at_every_moment() {
    let limit = 6 * MIB;
    let bench = Bench::with(|c| {
        c.cache_bytes_max = limit;
        c.block_bytes = MIB;
    });
    let (version, bytes) = bench.object("big", 40 * MIB).await;
    let handle = bench.reader.open(version);
    for i in 0..40 {
        let got = bench.reader.read(&handle, i * MIB, 1 << 20).await.unwrap();
        assert!(got == bytes.slice((i << 20) as usize..((i + 1) << 20) as usize), "{i}");
        let sizes = bench.cache_files();
        let disk = sizes.iter().map(|p| std::fs::metadata(p).map_or(0, |m| m.blocks() * 512));
        assert!(disk.sum::<u64>() <= limit + 64 * KIB);
        assert!(bench.reader.status().cache_bytes <= limit);
    }
    bench.settle().await;
    assert!(bench.reader.status().evicted_blocks > 0);
}

#[tokio::test]
async fn what_was_used_last_stays() {
    let bench = Bench::with(|c| c.cache_bytes_max = 8 * MIB);
    let (old, _) = cached(&bench, "old", 2 * MIB).await;
    let (used, _) = cached(&bench, "used", 2 * MIB).await;
    cached(&bench, "other", 2 * MIB).await;
    bench.read_all(&used, 1 << 20).await.unwrap();
    cached(&bench, "last", 3 * MIB).await;
    bench.read_all(&used, 1 << 20).await.unwrap();
    assert_eq!(bench.store.gets(), []);
    bench.read_all(&old, 1 << 20).await.unwrap();
    assert_eq!(bench.store.gets().len(), 1);
}

#[tokio::test]
async fn a_full_cache_disk_costs_requests_and_no_error() {
    let full = |_: &Path| std::fs::OpenOptions::new().read(true).write(true).open("/dev/full");
    let bench = Bench::with_files(|_| {}, full);
    let (version, bytes) = bench.object("k", 12 * MIB).await;
    assert!(bench.read_all(&version, 128 << 10).await.unwrap() == bytes);
    bench.settle().await;
    let status = bench.reader.status();
    assert!(status.degraded && status.disk_errors > 0 && status.cache_bytes == 0);
    bench.store.take_gets();
    assert!(bench.read_all(&version, 128 << 10).await.unwrap() == bytes);
    assert_eq!(bench.store.gets(), [], "memory stands in");
}

#[tokio::test]
async fn a_cache_directory_that_went_away_costs_requests_and_no_error() {
    let bench = Bench::new();
    std::fs::remove_dir_all(bench.dir.path().join("blocks")).unwrap();
    let (version, bytes) = bench.object("k", 12 * MIB).await;
    assert!(bench.read_all(&version, 128 << 10).await.unwrap() == bytes);
    bench.settle().await;
    assert!(bench.reader.status().degraded);
}

#[tokio::test]
async fn a_whole_file_is_the_object_and_stays_while_it_is_held() {
    let bench = Bench::with(|c| c.cache_bytes_max = 8 * MIB);
    let (version, bytes) = bench.object("k", 5 * MIB + 1).await;
    let handle = bench.reader.open(version.clone());
    bench.reader.read(&handle, 2 * MIB, 4096).await.unwrap();
    bench.settle().await;
    assert!(bench.reader.whole_file(&version).is_none());
    bench.reader.read(&handle, 0, 8 << 20).await.unwrap();
    bench.settle().await;
    let whole = bench.reader.whole_file(&version).unwrap();
    assert!(Arc::ptr_eq(&whole, &bench.reader.whole_file(&version).unwrap()));
    drop(handle);
    bench.reader.forget(&version.key);
    cached(&bench, "other", 16 * MIB).await;
    let mut all = vec![0; bytes.len()];
    whole.read_exact_at(&mut all, 0).unwrap();
    assert!(all == bytes);
    assert_eq!(whole.metadata().unwrap().len(), version.size);
    assert!(whole.write_at(b"x", 0).is_err(), "read-only");
    assert!(bench.reader.status().cache_bytes <= 8 * MIB);
}

#[tokio::test]
async fn after_a_restart_a_whole_file_is_checked_before_it_is_given_out() {
    for altered in [false, true] {
        let mut bench = Bench::new();
        let (version, _) = cached(&bench, "k", 4 * MIB).await;
        let file = std::fs::OpenOptions::new().write(true).open(&bench.cache_files()[0]).unwrap();
        if altered {
            file.write_all_at(b"XYZ", MIB).unwrap();
        }
        bench.restart().await;
        assert!(bench.reader.whole_file(&version).is_none());
        if altered {
            until(|| bench.reader.status().corrupt_granules == 1).await;
            assert!(bench.reader.whole_file(&version).is_none());
        } else {
            until(|| bench.reader.whole_file(&version).is_some()).await;
        }
    }
}

#[tokio::test]
async fn an_adopted_file_costs_no_get_before_or_after_a_restart() {
    let mut bench = Bench::new();
    let (version, bytes) = bench.object("k", 9 * MIB + 9).await;
    let path = bench.dir.path().join("staged");
    std::fs::write(&path, &bytes).unwrap();
    let file = std::fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
    bench.reader.adopt(&version, file, &path).unwrap();
    assert!(!path.exists());
    assert!(bench.reader.whole_file(&version).is_some());
    assert!(bench.read_all(&version, 128 << 10).await.unwrap() == bytes);
    let path = bench.dir.path().join("blocks/index");
    let logged = || index::fold(&std::fs::read(&path).unwrap());
    until(|| logged().values().all(|saved| saved.granules.len() == 37)).await;
    bench.restart().await;
    assert!(bench.read_all(&version, 128 << 10).await.unwrap() == bytes);
    assert_eq!(bench.store.gets(), []);
}

#[tokio::test]
async fn a_file_of_another_size_is_not_adopted() {
    let bench = Bench::new();
    let (version, _) = bench.object("k", 100).await;
    let path = bench.dir.path().join("staged");
    std::fs::write(&path, b"too short").unwrap();
    let file = std::fs::File::open(&path).unwrap();
    assert!(bench.reader.adopt(&version, file, &path).is_err());
    assert!(path.exists());
    assert_eq!(bench.reader.status().cache_bytes, 0);
}

#[tokio::test]
async fn inserted_content_costs_no_get() {
    let bench = Bench::new();
    let (version, bytes) = bench.object("k", 5000).await;
    bench.reader.insert(&version, bytes.clone());
    until(|| bench.reader.status().cache_bytes > 0).await;
    assert_eq!(bench.read_all(&version, 4096).await.unwrap(), bytes);
    assert_eq!(bench.store.gets(), []);
}

/// Objects around every edge, read at random by eight tasks through a cache and a memory far too
/// small for them, over restarts; each answer is compared with the object.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn random_reads_are_the_objects_bytes_whatever_the_cache_does() {
    for seed in 0..4u64 {
        let mut bench = Bench::with(|c| {
            c.cache_bytes_max = 3 * MIB + seed * 2 * MIB;
            c.memory_bytes_max = 2 * MIB;
            c.block_bytes = MIB;
            c.parallel_gets = 4;
        });
        let g = GRANULE_BYTES;
        let mut objects = Vec::new();
        for (i, size) in [1, g - 1, g, g + 1, MIB, MIB + 1, 7 * MIB + 123].into_iter().enumerate() {
            objects.push(bench.object(&format!("o{i}"), size).await);
        }
        for round in 0..3 {
            let tasks = (0..8).map(|task| {
                let (reader, objects) = (bench.reader.clone(), objects.clone());
                tokio::spawn(random_reads(reader, objects, seed * 1000 + round * 10 + task))
            });
            for task in join_all(tasks).await {
                task.unwrap();
            }
            let status = bench.reader.status();
            assert!(status.cache_bytes <= status.cache_bytes_max);
            assert_eq!(status.corrupt_granules, 0, "seed {seed}");
            bench.restart().await;
        }
    }
}

async fn random_reads(reader: Arc<Reader>, objects: Vec<(Version, Bytes)>, seed: u64) {
    let mut x = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut random = move |below: u64| {
        x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (x >> 33) % below
    };
    for _ in 0..12 {
        let (version, bytes) = &objects[random(objects.len() as u64) as usize];
        let handle = reader.open(version.clone());
        let mut at = random(version.size);
        for _ in 0..20 {
            let most = if random(4) == 0 { 2 * MIB } else { 20_000 };
            let len = random(most) + 1;
            let got = reader.read(&handle, at, len as u32).await.unwrap();
            let end = (at + len).min(version.size);
            assert!(got == bytes.slice(at as usize..end as usize), "{version:?} {at}+{len}");
            at = if random(3) == 0 || end == version.size { random(version.size) } else { end };
        }
    }
}
