//! Bytes down: reads of one version of an object, through a cache on disk and in memory.
//!
//! Owns the cache, read-ahead and the requests for bytes. Does not own which version a name has
//! (`namespace`, revalidated by `fs`), nor anything dirty: all that is here can be had again.
//!
//! What must hold:
//! 1. A read returns bytes of the handle's version or an error, never a mix: each GET carries
//!    If-Match, each cached byte belongs to one version, and what comes back from disk is checked.
//! 2. A byte is fetched once for all who want it at the time (single flight).
//! 3. The cache disk may be full, slow, broken or altered: that costs requests, never an error.
//! 4. Bytes on disk, in memory and in flight, and requests in flight, have limits.
//!
//! How a READ goes: `readahead` says how far to fetch, `entry` says under one lock where each byte
//! is and makes fills for the rest, `fetch` runs those as tasks of their own, `catalog` stores what
//! came and evicts. CRCs (CRC64NVME per granule of 256 KiB) are computed over what came from the
//! network and compared at the first reading of each granule from the file after it was stored, and
//! again after a restart. An object of up to 4 MiB comes whole, and its checksum is compared before
//! a byte is handed out. Of a larger one the CRCs of all granules make that of the whole, which is
//! compared before its last bytes are handed out, if all of it is fetched and cached (1 HEAD). What
//! is read through [`Reader::whole_file`] bypasses us: it is handed out only if every granule was
//! stored by this process or has been checked since the restart, all of it is in the page cache,
//! and nobody wrote into the file since. Not seen is what the disk makes of pages that leave memory
//! while a handle is open.

mod cache;
mod catalog;
mod disk;
mod entry;
mod fetch;
mod fill;
mod growing;
mod index;
mod plan;
mod presence;
mod status;
mod table;
#[cfg(test)]
mod tests;
mod version;

pub mod readahead;

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures::future::join_all;
use futures::{StreamExt, TryStreamExt, stream};
use parking_lot::Mutex;
use tokio::runtime::Handle;

use crate::bucket::{Bucket, CHECKED_BYTES_MAX};
use crate::clock::Clock;
use crate::pool::Pool;
use crate::types::Key;

use cache::MemoryTier;
use catalog::{Catalog, Use};
use disk::{Disk, Wait};
use entry::{DiskRead, Entry};
use fetch::Fetcher;
use plan::{Ask, Plan, Source};
use presence::{BLOCK_BYTES_MAX, GRANULE_BYTES, Origin};
use readahead::{Limits, ReadAhead};

pub use status::ReadStatus;
pub use version::{ReadError, Version};

/// Blocks by default: large enough that a request's latency is small beside its transfer.
pub const BLOCK_BYTES_DEFAULT: u64 = 8 << 20;
/// Requests by default; more win nothing on the stores measured.
pub const PARALLEL_GETS_DEFAULT: usize = 16;
/// The most blocks ahead of all streams of one handle: as many as there are requests.
const WINDOW_BLOCKS_MAX: u64 = 16;
/// Of a small cache, at most this part is filled ahead by one handle, or it evicts its own future.
const WINDOW_CACHE_PART: u64 = 4;
/// How often a part that left the cache between planning and reading is planned again, before it is
/// fetched past the cache.
const PLANS_MAX: u32 = 4;
/// Blocks of one object fetched at once by [`Reader::fetch_all`]; each holds its bytes in memory.
const FETCH_ALL_BLOCKS: usize = 8;
/// The longest object that is read through in the background, to check it: a fraction of a second.
const LEARN_BYTES_MAX: u64 = 1 << 30;
/// The least memory to work in, whatever is configured: a few granules in flight.
const MEMORY_BYTES_MIN: u64 = 8 * GRANULE_BYTES;
/// The memory tier's part of the memory; the rest is for bytes in flight.
const TIER_PART: u64 = 4;
/// So many fills of the greatest size fit in flight.
const FILLS_IN_MEMORY: u64 = 8;

/// Sizes in bytes.
#[derive(Debug, Clone)]
pub struct ReadConfig {
    /// The cache's own directory; one process at a time.
    pub dir: PathBuf,
    pub cache_bytes_max: u64,
    /// Of bytes in flight and of those kept in memory, together; at least 2 MiB is taken.
    pub memory_bytes_max: u64,
    /// The most that one GET fetches; made a multiple of 256 KiB, at most 16 MiB.
    pub block_bytes: u64,
    pub parallel_gets: usize,
}

/// The read path of one mount.
#[derive(Debug)]
pub struct Reader {
    catalog: Arc<Catalog>,
    fetcher: Arc<Fetcher>,
    config: ReadConfig,
    tier_bytes_max: u64,
    fill_bytes_max: u64,
}

/// An open version, with the memory of how it is read.
#[derive(Debug)]
pub struct ReadHandle {
    hold: Use,
    ahead: Mutex<ReadAhead>,
    frauds: u64,
}

impl ReadHandle {
    pub fn version(&self) -> &Version {
        &self.hold.entry.version
    }

    /// Whether bytes that were read here were not the object's: then every further read fails, as
    /// whoever had them must hear of it and the kernel asks twice.
    pub fn is_doubted(&self) -> bool {
        self.hold.entry.frauds() != self.frauds
    }
}

impl Reader {
    /// Takes over `config.dir`, made 0700; what an earlier daemon cached there is used again, the
    /// rest deleted. Reads the log of that directory (a few MiB at most). Must be called within the
    /// runtime that shall run the requests. Errors: the directory can't be made or written.
    pub fn new(
        bucket: Arc<Bucket>,
        clock: Arc<dyn Clock>,
        config: ReadConfig,
    ) -> io::Result<Arc<Self>> {
        Self::with_files(bucket, clock, config, disk::create_file)
    }

    fn with_files(
        bucket: Arc<Bucket>,
        clock: Arc<dyn Clock>,
        mut config: ReadConfig,
        create: disk::Create,
    ) -> io::Result<Arc<Self>> {
        let granules = config.block_bytes.clamp(GRANULE_BYTES, BLOCK_BYTES_MAX) / GRANULE_BYTES;
        config.block_bytes = granules * GRANULE_BYTES;
        config.memory_bytes_max = config.memory_bytes_max.max(MEMORY_BYTES_MIN);
        let tier_bytes_max = config.memory_bytes_max / TIER_PART;
        let flight_bytes_max = config.memory_bytes_max - tier_bytes_max;
        let fill_bytes_max = (flight_bytes_max / FILLS_IN_MEMORY)
            .clamp(GRANULE_BYTES, config.block_bytes)
            / GRANULE_BYTES
            * GRANULE_BYTES;
        let (disk, saved) = Disk::open(config.dir.clone(), clock, create)?;
        let memory = MemoryTier::new(tier_bytes_max);
        let pool = Pool::new(flight_bytes_max, Handle::current());
        let (cache, block) = (config.cache_bytes_max, config.block_bytes);
        let catalog = Catalog::new(disk, saved, memory, pool, cache, block);
        let gets = config.parallel_gets.max(1);
        let fetcher = Fetcher::new(bucket, catalog.clone(), gets, flight_bytes_max);
        Ok(Arc::new(Self { catalog, fetcher, config, tier_bytes_max, fill_bytes_max }))
    }

    /// A handle on a version. No request.
    pub fn open(self: &Arc<Self>, version: Version) -> ReadHandle {
        let hold = self.catalog.hold(&version);
        let frauds = hold.entry.frauds();
        ReadHandle { hold, ahead: Mutex::default(), frauds }
    }

    /// The bytes at `offset`; fewer than `len` only at the end of the object. Ready at the first
    /// poll, without a request, where they are in memory or in the page cache; else one GET per run
    /// of missing granules, by read-ahead mostly made before. May be polled outside the runtime.
    pub async fn read(
        &self,
        handle: &ReadHandle,
        offset: u64,
        len: u32,
    ) -> Result<Bytes, ReadError> {
        let size = handle.version().size;
        let range = offset.min(size)..offset.saturating_add(u64::from(len)).min(size);
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        if handle.is_doubted() {
            return Err(fetch::not_the_stores());
        }
        let entry = &handle.hold.entry;
        let mut fetch = handle.ahead.lock().on_read(&range, size, self.limits());
        if self.comes_whole(size) {
            fetch = 0..size;
        }
        let plan = self.plan(entry, &range, &fetch);
        if plan.refused {
            handle.ahead.lock().refused(fetch.end);
        }
        let counters = &self.catalog.counters;
        let waits = plan.parts.iter().any(|(part, source)| source.comes_later(part));
        if waits { &counters.misses } else { &counters.hits }.add(1);
        counters.read_bytes.add(range.end - range.start);
        let bytes = join(self.gather(entry, &range, plan).await?);
        self.fetcher.hand_out(entry, bytes.len() as u64).await;
        if handle.is_doubted() {
            return Err(fetch::not_the_stores());
        }
        Ok(bytes)
    }

    /// Begins to fetch an object of which nothing is here, and so finds out whether the store has
    /// it still: true when the first bytes come of a GET with If-Match that this call made. False
    /// where that failed, and without a request where something of it is here or on its way.
    pub async fn begin(&self, version: &Version) -> bool {
        let entry = &self.catalog.hold(version).entry;
        let first = 0..version.size.min(self.fill_bytes_max);
        if !entry.is_idle() || first.is_empty() {
            return false;
        }
        let mut plan = self.look(entry, &first, &first);
        let mine = plan.fills.iter().find(|(fill, _)| fill.range().start == 0);
        let mine = mine.map(|(fill, _)| fill.clone());
        self.start(entry, &mut plan);
        match mine {
            Some(fill) => fill.bytes(&(0..1)).await.is_ok(),
            None => false,
        }
    }

    /// Begins to fetch what is missing of the first `bytes` of an object that nobody has open, as
    /// far as requests and memory can be spared; returns how much that is. One that is checked
    /// before a byte is handed out comes whole or not at all, of others whole blocks. Nothing where
    /// the cache's disk can't be used. 1 GET a block.
    pub fn fetch_ahead(&self, version: &Version, bytes: u64) -> u64 {
        if !self.catalog.disk.is_usable() {
            return 0;
        }
        let block = match self.comes_whole(version.size) {
            true => version.size,
            false => self.fill_bytes_max,
        };
        let bytes = if bytes < version.size { bytes / block * block } else { version.size };
        if bytes == 0 {
            return 0;
        }
        let hold = self.catalog.hold(version);
        let mut plan = self.look(&hold.entry, &(0..0), &(0..bytes));
        let begun = plan.fills.iter().map(|(fill, _)| fill.range().end - fill.range().start).sum();
        self.start(&hold.entry, &mut plan);
        begun
    }

    /// Whether as many bytes of an object were read as it has.
    pub fn is_read(&self, version: &Version) -> bool {
        self.catalog.find(version).is_some_and(|entry| entry.is_handed_out())
    }

    /// The most that is fetched ahead of a reader, in bytes.
    pub fn window_bytes_max(&self) -> u64 {
        self.limits().window_bytes_max
    }

    /// Writes all of the object to the start of `into`, through the cache: its GETs in parallel,
    /// and none for what is cached. Errors: also of `into` ([`ReadError::Disk`]).
    pub async fn fetch_all(&self, version: &Version, into: &File) -> Result<(), ReadError> {
        let hold = &self.catalog.hold(version);
        if let Some(whole) = hold.entry.whole_file(&self.catalog.disk, self.catalog.tick()) {
            let (to, size) = (into.try_clone()?, version.size);
            if blocking(move || disk::copy(&whole, &to, size)).await.is_ok() {
                return Ok(());
            }
        }
        let frauds = hold.entry.frauds();
        let starts = (0..version.size).step_by(self.fill_bytes_max as usize);
        let blocks = starts.map(|s| s..(s + self.fill_bytes_max).min(version.size));
        let copies = blocks.map(|block| async move {
            let plan = self.plan(&hold.entry, &block, &block);
            let pieces = self.gather(&hold.entry, &block, plan).await?;
            let to = into.try_clone()?;
            let write = move || {
                let mut at = block.start;
                for piece in pieces {
                    to.write_all_at(&piece, at)?;
                    at += piece.len() as u64;
                }
                Ok(())
            };
            blocking(write).await?;
            Ok::<(), ReadError>(())
        });
        stream::iter(copies).buffer_unordered(FETCH_ALL_BLOCKS).try_collect::<()>().await?;
        self.fetcher.hand_out(&hold.entry, version.size).await;
        match hold.entry.frauds() == frauds {
            true => Ok(()),
            false => Err(fetch::not_the_stores()),
        }
    }

    /// The cached copy, if all of it is there and trusted: a read-only file whose bytes are exactly
    /// the object's. Nothing is taken from it while the `Arc` lives, and so long it counts against
    /// the cache's limit: hold it while the kernel reads from it, and no longer. No request. `None`
    /// for an empty object. After a restart the first call begins to check the file, unless it is
    /// longer than 1 GiB, which only reading checks, and says `None`.
    pub fn whole_file(&self, version: &Version) -> Option<Arc<File>> {
        let entry = self.catalog.find(version).filter(|entry| !self.fetcher.to_compare(entry))?;
        let whole = entry.whole_file(&self.catalog.disk, self.catalog.tick());
        if whole.is_none() && entry.is_whole() {
            self.learn(version);
        }
        whole
    }

    /// Takes the file that [`Reader::whole_file`] gave out of the cache and names it `to`, which is
    /// new and on the same file system: the caller may write to it from now on. No request. Errors:
    /// others hold the file too (`ResourceBusy`, and nothing happened), or it can't be moved.
    pub fn take(&self, handle: &ReadHandle, held: &Arc<File>, to: &Path) -> io::Result<()> {
        self.catalog.give_away(&handle.hold.entry, held, to)
    }

    /// Whether bytes of a version that the kernel kept may be taken for right: they are of a small
    /// object, which is never handed out unseen, or nothing speaks against them here.
    pub fn vouches_for(&self, version: &Version) -> bool {
        version.size <= CHECKED_BYTES_MAX
            || self.catalog.find(version).is_some_and(|entry| entry.frauds() == 0)
    }

    /// The key was removed or replaced: its bytes are freed, those that open handles may still want
    /// when the last of these is closed. No request.
    pub fn forget(&self, key: &Key) {
        self.catalog.forget(key);
    }

    /// Caches content that was just uploaded, in the background. No request.
    pub fn insert(&self, version: &Version, data: Bytes) {
        if data.len() as u64 != version.size || data.is_empty() {
            return;
        }
        let (catalog, hold) = (self.catalog.clone(), self.catalog.hold(version));
        self.fetcher.runtime().spawn_blocking(move || {
            catalog.store(&hold.entry, 0, &data, Origin::Wanted);
            hold.entry.set_compared(); // it came from here
        });
    }

    /// Moves a file that was just uploaded into the cache, where reading it costs no GET. `file` is
    /// open for reading and writing, and nobody writes to it from now on. `Ok`: `path` is gone.
    /// Errors: the file stays where it is (another file system, no room, another size than said).
    pub fn adopt(&self, version: &Version, file: File, path: &Path) -> io::Result<()> {
        let hold = self.catalog.hold(version);
        self.catalog.adopt(&hold.entry, file, path)?;
        self.learn(version);
        Ok(())
    }

    pub fn status(&self) -> ReadStatus {
        let (catalog, c) = (&self.catalog, &self.catalog.counters);
        ReadStatus {
            cache_bytes: catalog.used_bytes(),
            cache_bytes_max: self.config.cache_bytes_max,
            cache_files: catalog.entries(),
            memory_bytes: catalog.memory.bytes(),
            in_flight_bytes: self.fetcher.in_flight_bytes(),
            memory_bytes_max: self.config.memory_bytes_max,
            hits: c.hits.get(),
            misses: c.misses.get(),
            read_bytes: c.read_bytes.get(),
            requests: c.requests.get(),
            fetched_bytes: c.fetched_bytes.get(),
            evicted_blocks: c.evicted_blocks.get(),
            evicted_bytes: c.evicted_bytes.get(),
            ahead_bytes: c.ahead_bytes.get(),
            ahead_wasted_bytes: c.ahead_wasted_bytes.get(),
            corrupt_granules: c.corrupt_granules.get(),
            checked_objects: c.checked_objects.get(),
            corrupt_objects: c.corrupt_objects.get(),
            disk_errors: c.disk_errors.get(),
            degraded: !catalog.disk.is_usable(),
        }
    }

    /// Whether an object of this size comes by one GET, whose body the store's checksum is compared
    /// with.
    fn comes_whole(&self, size: u64) -> bool {
        size <= CHECKED_BYTES_MAX.min(self.fill_bytes_max)
    }

    fn limits(&self) -> Limits {
        let block_bytes = self.fill_bytes_max;
        let room = if self.catalog.disk.is_usable() {
            self.config.cache_bytes_max / WINDOW_CACHE_PART
        } else {
            self.tier_bytes_max / 2
        };
        Limits { block_bytes, window_bytes_max: room.min(WINDOW_BLOCKS_MAX * block_bytes) }
    }

    /// Plans, and starts the fills of the plan.
    fn plan(&self, entry: &Arc<Entry>, read: &Range<u64>, fetch: &Range<u64>) -> Plan {
        let mut plan = self.look(entry, read, fetch);
        self.start(entry, &mut plan);
        plan
    }

    fn look(&self, entry: &Arc<Entry>, read: &Range<u64>, fetch: &Range<u64>) -> Plan {
        entry.plan(&Ask {
            read: read.clone(),
            fetch: fetch.clone(),
            fill_bytes_max: self.fill_bytes_max,
            memory: &self.catalog.memory,
            admit: &|bytes| self.fetcher.admit(bytes),
            tick: self.catalog.tick(),
        })
    }

    fn start(&self, entry: &Arc<Entry>, plan: &mut Plan) {
        for (fill, permits) in plan.fills.drain(..) {
            if fill.origin() == Origin::Ahead {
                let ahead = fill.range().end - fill.range().start;
                self.catalog.counters.ahead_bytes.add(ahead);
            }
            let hold = self.catalog.hold_entry(entry);
            self.fetcher.start(hold, fill, permits);
        }
    }

    /// The bytes of a range, in pieces. All parts are waited for at once, so that none holds memory
    /// while another waits for it.
    async fn gather(
        &self,
        entry: &Arc<Entry>,
        range: &Range<u64>,
        plan: Plan,
    ) -> Result<Vec<Bytes>, ReadError> {
        let mut plan = plan;
        for _ in 0..PLANS_MAX {
            let parts = plan.parts.into_iter().map(|(part, source)| self.part(entry, part, source));
            let parts: Vec<Option<Bytes>> =
                join_all(parts).await.into_iter().collect::<Result<_, _>>()?;
            if let Some(parts) = parts.into_iter().collect() {
                return Ok(parts);
            }
            plan = self.plan(entry, range, range);
        }
        self.fetcher.fetch_uncached(&entry.version, range).await
    }

    /// One part; `None` where it is no longer where the plan saw it.
    async fn part(
        &self,
        entry: &Arc<Entry>,
        part: Range<u64>,
        source: Source,
    ) -> Result<Option<Bytes>, ReadError> {
        match source {
            Source::Memory(bytes) => Ok(Some(bytes)),
            Source::Fill(fill) => fill.bytes(&part).await.map(Some),
            Source::Disk => match self.catalog.read_disk(entry, &part, Wait::No) {
                DiskRead::Bytes(bytes) => Ok(Some(bytes)),
                DiskRead::Lost { .. } => Ok(None),
                DiskRead::WouldBlock => self.part_from_slow_disk(entry, part).await,
            },
        }
    }

    async fn part_from_slow_disk(
        &self,
        entry: &Arc<Entry>,
        part: Range<u64>,
    ) -> Result<Option<Bytes>, ReadError> {
        let (catalog, entry) = (self.catalog.clone(), entry.clone());
        let read = move || catalog.read_disk(&entry, &part, Wait::Yes);
        match self.fetcher.runtime().spawn_blocking(read).await {
            Ok(DiskRead::Bytes(bytes)) => Ok(Some(bytes)),
            _ => Ok(None),
        }
    }

    /// Checks, or learns the CRCs of, a whole file in the background.
    fn learn(&self, version: &Version) {
        if version.size > LEARN_BYTES_MAX {
            return;
        }
        let (catalog, hold) = (self.catalog.clone(), self.catalog.hold(version));
        self.fetcher.runtime().spawn_blocking(move || catalog.learn(&hold.entry));
    }
}

async fn blocking(work: impl FnOnce() -> io::Result<()> + Send + 'static) -> io::Result<()> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|e| Err(io::Error::other(e)))
}

fn join(mut pieces: Vec<Bytes>) -> Bytes {
    if pieces.len() == 1 {
        return pieces.remove(0);
    }
    let mut whole = BytesMut::with_capacity(pieces.iter().map(Bytes::len).sum());
    pieces.iter().for_each(|piece| whole.extend_from_slice(piece));
    whole.freeze()
}
