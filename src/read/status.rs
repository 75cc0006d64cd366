//! Counters of the read path, and the picture of them that `status` shows.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

/// What happened since the mount. Each is only ever added to.
#[derive(Debug, Default)]
pub struct Counters {
    pub hits: Counter,
    pub misses: Counter,
    pub read_bytes: Counter,
    pub requests: Counter,
    pub fetched_bytes: Counter,
    pub evicted_blocks: Counter,
    pub evicted_bytes: Counter,
    pub ahead_bytes: Counter,
    pub ahead_wasted_bytes: Counter,
    pub corrupt_granules: Counter,
    pub checked_objects: Counter,
    pub corrupt_objects: Counter,
    pub disk_errors: Counter,
}

#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The read path at one instant. Sizes in bytes, the rest counts since the mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ReadStatus {
    /// On the cache disk, and its limit.
    pub cache_bytes: u64,
    pub cache_bytes_max: u64,
    pub cache_files: u64,
    /// In the memory tier; and in flight or waiting to be stored; and the limit of both together.
    pub memory_bytes: u64,
    pub in_flight_bytes: u64,
    pub memory_bytes_max: u64,
    /// READs answered without, and with, waiting for the store.
    pub hits: u64,
    pub misses: u64,
    pub read_bytes: u64,
    /// GETs, and what they brought.
    pub requests: u64,
    pub fetched_bytes: u64,
    pub evicted_blocks: u64,
    pub evicted_bytes: u64,
    /// Asked for ahead of any READ; of these, evicted before any READ came.
    pub ahead_bytes: u64,
    pub ahead_wasted_bytes: u64,
    /// Granules that came back from the cache disk other than they were stored.
    pub corrupt_granules: u64,
    /// Large objects that were compared, whole, with the checksum that the store has; and those
    /// that were not what it says, which were thrown away and their readers told.
    pub checked_objects: u64,
    pub corrupt_objects: u64,
    pub disk_errors: u64,
    /// The cache disk takes nothing at the moment; memory stands in.
    pub degraded: bool,
}
