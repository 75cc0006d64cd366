//! The memory tier: granules of small objects, and whatever the disk would not take.
//!
//! Owns a bounded, least-recently-used set of granules. Does not own bytes in flight (`fetch`), nor
//! anything on disk.

use std::sync::Arc;

use bytes::Bytes;
use moka::policy::EvictionPolicy;
use moka::sync::Cache;

use crate::read::version::Version;

/// Objects up to this long are kept in memory as well as on disk: they are read again and again
/// (metadata, manifests), and a system call and a file each would be most of their cost.
pub const SMALL_BYTES_MAX: u64 = 64 << 10;
/// What a granule costs beside its bytes: key, node, counters. Measured at some 300.
const OVERHEAD_BYTES: u32 = 512;

#[derive(Debug)]
pub struct MemoryTier {
    granules: Cache<(Arc<Version>, u64), Bytes>,
}

impl MemoryTier {
    pub fn new(bytes_max: u64) -> Self {
        let granules = Cache::builder()
            .max_capacity(bytes_max)
            .weigher(|_, bytes: &Bytes| OVERHEAD_BYTES.saturating_add(bytes.len() as u32))
            .eviction_policy(EvictionPolicy::lru())
            .build();
        Self { granules }
    }

    pub fn get(&self, version: &Arc<Version>, granule: u64) -> Option<Bytes> {
        self.granules.get(&(version.clone(), granule))
    }

    pub fn has(&self, version: &Arc<Version>, granule: u64) -> bool {
        self.granules.contains_key(&(version.clone(), granule))
    }

    /// `bytes` should own no more memory than they show.
    pub fn put(&self, version: &Arc<Version>, granule: u64, bytes: Bytes) {
        self.granules.insert((version.clone(), granule), bytes);
    }

    pub fn drop_small(&self, version: &Arc<Version>) {
        self.granules.invalidate(&(version.clone(), 0));
    }

    /// Bytes held, as of the cache's last housekeeping.
    pub fn bytes(&self) -> u64 {
        self.granules.weighted_size()
    }
}
