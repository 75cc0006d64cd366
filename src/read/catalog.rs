//! All that is cached: the set of entries, the limits on it, and eviction.
//!
//! Owns the accounting of the cache disk and who leaves it. Does not own requests (`fetch`) nor
//! what one entry holds (`entry`).
//!
//! What must hold:
//! 1. `used` never exceeds `cache_bytes_max`: room is reserved before a byte is written.
//! 2. An entry in use stays reachable; one that nobody uses and that holds nothing goes.
//! 3. Locks are taken in the order evicting, table, entry; eviction holds the table's only to copy
//!    it.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;

use crate::pool::Pool;
use crate::read::cache::{MemoryTier, SMALL_BYTES_MAX};
use crate::read::disk::{self, Disk, Wait};
use crate::read::entry::{DiskRead, Entry, Evicted};
use crate::read::index::{FileId, Saved};
use crate::read::presence::{GRANULE_BYTES, Origin};
use crate::read::status::Counters;
use crate::read::table::Table;
use crate::read::version::Version;
use crate::types::Key;

/// Files in the cache directory: an entry costs some 500 bytes of memory and a line of the log.
const CACHE_FILES_MAX: u64 = 65_536;
/// An eviction goes on until this part of the limit is free, so that it happens once per many
/// fills.
const EVICT_PART: u64 = 16;
/// Others may take the room that was just made; after this often the bytes go to memory instead.
const RESERVATIONS_MAX: u32 = 3;
/// On a full disk this part of what we hold is given back, for those who need the space more.
const SHED_PART: u64 = 8;
/// Read at once when a cached object is checked in the background.
const LEARN_BYTES: u64 = 1 << 20;
/// What cache files are accounted in; file systems give space by such pages.
const PAGE_BYTES: u64 = 4096;

#[derive(Debug)]
pub struct Catalog {
    pub disk: Disk,
    pub memory: MemoryTier,
    pub counters: Counters,
    /// Of what is on its way from the store or from the disk.
    pub pool: Arc<Pool>,
    cache_bytes_max: u64,
    block_bytes: u64,
    used_bytes: AtomicU64,
    ticks: AtomicU64,
    table: Mutex<Table>,
    evicting: Mutex<()>,
}

/// Keeps an entry where it is until dropped.
#[derive(Debug)]
pub struct Use {
    catalog: Arc<Catalog>,
    pub entry: Arc<Entry>,
}

impl Catalog {
    pub fn new(
        disk: Disk,
        saved: HashMap<FileId, Saved>,
        memory: MemoryTier,
        pool: Arc<Pool>,
        cache_bytes_max: u64,
        block_bytes: u64,
    ) -> Arc<Self> {
        let catalog = Self {
            disk,
            memory,
            pool,
            counters: Counters::default(),
            cache_bytes_max,
            block_bytes,
            used_bytes: AtomicU64::new(0),
            ticks: AtomicU64::new(0),
            table: Mutex::default(),
            evicting: Mutex::new(()),
        };
        let mut saved: Vec<_> = saved.into_iter().collect();
        saved.sort_by_key(|(_, s)| s.age);
        let mut table = catalog.table.lock();
        for (id, saved) in saved {
            let entry = Entry::reopened(id, saved, block_bytes, catalog.tick());
            catalog.used_bytes.fetch_add(on_disk(entry.bytes()), Ordering::SeqCst);
            table.insert(Arc::new(entry));
        }
        drop(table);
        catalog.evict_down_to(cache_bytes_max, CACHE_FILES_MAX);
        Arc::new(catalog)
    }

    pub fn tick(&self) -> u64 {
        self.ticks.fetch_add(1, Ordering::Relaxed)
    }

    pub fn used_bytes(&self) -> u64 {
        self.used_bytes.load(Ordering::SeqCst)
    }

    pub fn entries(&self) -> u64 {
        self.table.lock().len()
    }

    /// The entry of a version, made if there is none; it stays at least until the [`Use`] is
    /// dropped.
    pub fn hold(self: &Arc<Self>, version: &Version) -> Use {
        let mut table = self.table.lock();
        let found = table.find(version);
        let is_new = found.is_none();
        let entry = found.unwrap_or_else(|| {
            table.doom_idle_versions(&version.key);
            table.insert(Arc::new(Entry::new(version.clone(), self.block_bytes)))
        });
        entry.users.fetch_add(1, Ordering::SeqCst);
        drop(table);
        if is_new {
            self.sweep();
        }
        Use { catalog: self.clone(), entry }
    }

    /// One more use of an entry that is in use.
    pub fn hold_entry(self: &Arc<Self>, entry: &Arc<Entry>) -> Use {
        entry.users.fetch_add(1, Ordering::SeqCst);
        Use { catalog: self.clone(), entry: entry.clone() }
    }

    /// The entry of a version, if anything of it is known.
    pub fn find(&self, version: &Version) -> Option<Arc<Entry>> {
        self.table.lock().find(version)
    }

    fn end_use(&self, entry: &Arc<Entry>) {
        let mut table = self.table.lock();
        if entry.users.fetch_sub(1, Ordering::SeqCst) > 1 {
            return;
        }
        if entry.is_idle() {
            table.remove(entry);
        }
        drop(table);
        entry.close_file();
        self.sweep();
    }

    /// Frees what is cached of a key, of what is in use as soon as it no longer is.
    pub fn forget(&self, key: &Key) {
        self.table.lock().doom(key);
        self.sweep();
    }

    /// Releases forgotten entries that nobody uses any more.
    fn sweep(&self) {
        for (entry, evicted) in self.table.lock().release_doomed() {
            self.memory.drop_small(&entry.version);
            evicted.file.inspect(|id| self.disk.remove(*id));
            self.give_back(evicted.left.bytes);
        }
    }

    /// Stores what came of an object: `bytes` begin at a granule and end at one, or at the end of
    /// the object. On disk if that can be, else in memory. Waits for the disk.
    pub fn store(&self, entry: &Entry, start: u64, bytes: &[u8], origin: Origin) {
        let small = entry.version.size <= SMALL_BYTES_MAX;
        let stored = self.store_on_disk(entry, start, bytes, origin);
        if small || !stored {
            let first = start / GRANULE_BYTES;
            for (granule, bytes) in (first..).zip(bytes.chunks(GRANULE_BYTES as usize)) {
                self.memory.put(&entry.version, granule, Bytes::copy_from_slice(bytes));
            }
        }
    }

    fn store_on_disk(&self, entry: &Entry, start: u64, bytes: &[u8], origin: Origin) -> bool {
        let len = bytes.len() as u64;
        if !self.disk.is_usable() || !self.reserve(len) {
            return false;
        }
        let crcs = bytes.chunks(GRANULE_BYTES as usize).map(crc_fast::crc64_nvme);
        let crcs: Vec<u64> = crcs.collect();
        let first = start / GRANULE_BYTES;
        let stored = entry.write(&self.disk, (first, bytes), &crcs, origin, self.tick());
        let grown = stored.as_ref().ok().copied().flatten();
        self.give_back_exactly(on_disk(len) - on_disk(grown.unwrap_or(0)));
        if let Err(error) = &stored {
            self.disk_failed(entry, error);
        }
        grown.is_some()
    }

    fn disk_failed(&self, entry: &Entry, error: &io::Error) {
        self.counters.disk_errors.add(1);
        tracing::warn!(%error, key = %entry.version.key, "the cache disk takes nothing");
        self.disk.pause();
        if error.kind() == ErrorKind::StorageFull {
            let used = self.used_bytes();
            let _one = self.evicting.lock();
            self.evict_down_to(used - used / SHED_PART, CACHE_FILES_MAX);
        }
    }

    /// Reads a part of an object from its cache file.
    pub fn read_disk(&self, entry: &Entry, range: &Range<u64>, wait: Wait) -> DiskRead {
        let read = entry.read_disk(&self.disk, &self.pool, range, wait);
        if let DiskRead::Lost { gone_bytes, corrupt_granules } = read {
            self.give_back(gone_bytes);
            self.counters.corrupt_granules.add(corrupt_granules);
            if corrupt_granules > 0 {
                tracing::warn!(key = %entry.version.key, "the cache disk changed bytes");
            }
        }
        read
    }

    /// What came of an object is not what the store has.
    pub fn lose_all(&self, entry: &Entry) {
        self.counters.corrupt_objects.add(1);
        self.give_back(entry.lose_all());
    }

    /// Makes a finished file, which nobody may write to any more, the cached copy of `entry`.
    /// `Err`: it stays where it was.
    pub fn adopt(&self, entry: &Entry, file: File, path: &Path) -> io::Result<()> {
        let size = entry.version.size;
        if file.metadata()?.len() != size || size == 0 {
            return Err(io::Error::new(ErrorKind::InvalidInput, "not a file of that size"));
        }
        if !self.reserve(size) {
            return Err(ErrorKind::StorageFull.into());
        }
        let id = self.disk.adopt(path).inspect_err(|_| self.give_back(size))?;
        match entry.adopt(&self.disk, id, file, self.tick()) {
            Some(grown) => self.give_back_exactly(on_disk(size) - on_disk(grown)),
            None => {
                self.give_back(size);
                self.disk.remove(id);
            }
        }
        Ok(())
    }

    /// Takes the file that `held` is out of the cache and names it `to`. `Err`: it is cached no
    /// more, but others hold it or it could not be named so.
    pub fn give_away(&self, entry: &Entry, held: &Arc<File>, to: &Path) -> io::Result<()> {
        let evicted = entry.give_away(held).ok_or(ErrorKind::ResourceBusy)?;
        self.give_back(evicted.left.bytes);
        let id = evicted.file.ok_or(ErrorKind::NotFound)?;
        self.disk.give(id, to).inspect_err(|_| self.disk.remove(id))
    }

    /// Reads all of a cached object, so that every granule is checked and its CRC logged, without
    /// which a restart can't use an adopted file. Waits for the disk.
    pub fn learn(&self, entry: &Entry) {
        if !entry.learning.swap(true, Ordering::SeqCst) {
            self.read_through(entry);
            entry.learning.store(false, Ordering::SeqCst);
        }
    }

    fn read_through(&self, entry: &Entry) {
        let size = entry.version.size;
        for start in (0..size).step_by(LEARN_BYTES as usize) {
            let part = start..(start + LEARN_BYTES).min(size);
            if !matches!(self.read_disk(entry, &part, Wait::Yes), DiskRead::Bytes(_)) {
                return;
            }
        }
    }

    /// Makes room for `bytes` more, by eviction where needed. False: there is none to be had.
    fn reserve(&self, bytes: u64) -> bool {
        let bytes = on_disk(bytes);
        if self.take(bytes) {
            return true;
        }
        if bytes > self.cache_bytes_max {
            return false;
        }
        let _one = self.evicting.lock();
        let low = self.cache_bytes_max - self.cache_bytes_max / EVICT_PART;
        let files = CACHE_FILES_MAX - CACHE_FILES_MAX / EVICT_PART;
        for _ in 0..RESERVATIONS_MAX {
            if self.take(bytes) {
                return true;
            }
            self.evict_down_to(low.min(self.cache_bytes_max - bytes), files);
        }
        self.take(bytes)
    }

    fn take(&self, bytes: u64) -> bool {
        let max = self.cache_bytes_max;
        let grow = |used: u64| used.checked_add(bytes).filter(|sum| *sum <= max);
        let files = self.entries() <= CACHE_FILES_MAX;
        files && self.used_bytes.fetch_update(Ordering::SeqCst, Ordering::SeqCst, grow).is_ok()
    }

    fn give_back(&self, bytes: u64) {
        self.give_back_exactly(on_disk(bytes));
    }

    fn give_back_exactly(&self, bytes: u64) {
        self.used_bytes.fetch_sub(bytes, Ordering::SeqCst);
    }

    /// Evicts the blocks used longest ago until both limits hold, or nothing is left to evict.
    fn evict_down_to(&self, bytes_max: u64, files_max: u64) {
        self.sweep();
        let mut blocks: Vec<(u64, u64, Arc<Entry>)> = Vec::new();
        for entry in self.table.lock().all() {
            blocks.extend(entry.ages().into_iter().map(|(age, b)| (age, b, entry.clone())));
        }
        blocks.sort_by_key(|(age, _, _)| *age);
        for (_, block, entry) in blocks {
            if self.used_bytes() <= bytes_max && self.entries() <= files_max {
                break;
            }
            self.evict(&entry, block);
        }
    }

    fn evict(&self, entry: &Arc<Entry>, block: u64) {
        let Evicted { left, file, punch } = entry.evict(&self.disk, block);
        if let Some((open, range)) = punch {
            let punched = disk::punch(&open, &range);
            entry.punched(&self.disk, block);
            if punched.is_err() {
                self.gone(entry.evict_all()); // no holes on this file system: the whole file then
            }
        }
        self.counters.evicted_blocks.add(u64::from(left.bytes > 0));
        self.gone(Evicted { left, file, punch: None });
        let mut table = self.table.lock();
        if entry.users.load(Ordering::SeqCst) == 0 && entry.is_idle() {
            table.remove(entry);
        }
    }

    fn gone(&self, evicted: Evicted) {
        evicted.file.inspect(|id| self.disk.remove(*id));
        self.give_back(evicted.left.bytes);
        self.counters.evicted_bytes.add(evicted.left.bytes);
        self.counters.ahead_wasted_bytes.add(evicted.left.unread_bytes);
    }
}

impl Drop for Use {
    fn drop(&mut self) {
        self.catalog.end_use(&self.entry);
    }
}

fn on_disk(bytes: u64) -> u64 {
    bytes.next_multiple_of(PAGE_BYTES)
}
