//! The requests: runs a fill from its GET to the cache, within the bounds on requests and memory.
//!
//! Owns the two semaphores and the order of storing. Does not own retries and bodies that break off
//! (`bucket`), nor which fills there are (`entry`).
//!
//! What must hold:
//! 1. Every GET asks for one version (If-Match) and every answer is compared with it.
//! 2. A fill runs as its own task: a reader that goes away takes nothing from the others.
//! 3. Frames reach the waiters before the disk; a slow disk holds up no reader of the same fill.
//!    But the last frames of a large object wait for the disk and the comparison of the whole.
//! 4. What is fetched ahead never takes the last quarter of the permits, so a READ seldom waits
//!    behind a guess.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;

use crate::bucket::{Body, Bucket, BucketError, CHECKED_BYTES_MAX};
use crate::read::catalog::{Catalog, Use};
use crate::read::entry::Entry;
use crate::read::fill::{Fill, Permits};
use crate::read::presence::GRANULE_BYTES;
use crate::read::version::{ReadError, Version};

/// Stored at once: a thread's hand-over costs some 10 us, which this many bytes make small.
const STORE_BYTES: u64 = 1 << 20;
/// Memory is handed out in this unit, as permits are counted in `u32`.
const PERMIT_BYTES: u64 = 1024;
/// The part of all permits that only fills with waiters may take.
const RESERVED_PART: usize = 4;

/// What is said of an object whose bytes came wrong.
const NOT_THE_STORES: &str = "the object's bytes have another CRC64NVME than the store's";

#[derive(Debug)]
pub struct Fetcher {
    bucket: Arc<Bucket>,
    catalog: Arc<Catalog>,
    runtime: Handle,
    gets: Arc<Semaphore>,
    gets_max: usize,
    memory: Arc<Semaphore>,
    memory_permits_max: usize,
}

impl Fetcher {
    /// `memory_bytes_max` bounds what is in flight or not yet stored. Must be called in the runtime
    /// in which the requests shall run.
    pub fn new(
        bucket: Arc<Bucket>,
        catalog: Arc<Catalog>,
        gets_max: usize,
        memory_bytes_max: u64,
    ) -> Arc<Self> {
        let memory_permits_max = (memory_bytes_max / PERMIT_BYTES) as usize;
        Arc::new(Self {
            bucket,
            catalog,
            runtime: Handle::current(),
            gets: Arc::new(Semaphore::new(gets_max)),
            gets_max,
            memory: Arc::new(Semaphore::new(memory_permits_max)),
            memory_permits_max,
        })
    }

    pub fn runtime(&self) -> &Handle {
        &self.runtime
    }

    pub fn in_flight_bytes(&self) -> u64 {
        (self.memory_permits_max - self.memory.available_permits()) as u64 * PERMIT_BYTES
    }

    /// Permits for a fill that nobody waits for, if they are there now and enough remains.
    pub fn admit(&self, bytes: u64) -> Option<Permits> {
        let need = permits(bytes);
        let spare = |of: &Semaphore, max: usize, need: usize| {
            of.available_permits() >= need + max / RESERVED_PART
        };
        if !spare(&self.gets, self.gets_max, 1)
            || !spare(&self.memory, self.memory_permits_max, need as usize)
        {
            return None;
        }
        let get = self.gets.clone().try_acquire_owned().ok()?;
        let memory = self.memory.clone().try_acquire_many_owned(need).ok()?;
        Some(Permits { get, memory })
    }

    /// Runs a fill that was made for the entry of `hold`.
    pub fn start(self: &Arc<Self>, hold: Use, fill: Arc<Fill>, permits: Option<Permits>) {
        let run = self.clone().run(Running { hold, fill }, permits);
        self.runtime.spawn(run);
    }

    async fn run(self: Arc<Self>, running: Running, permits: Option<Permits>) {
        let Running { hold, fill } = &running;
        let Permits { get, memory } = match permits {
            Some(permits) => permits,
            None => self.acquire(fill.range()).await,
        };
        let mut store = Storing::new(hold, fill, &self.catalog);
        let pulled = self.pull(&hold.entry, fill, memory, &mut store).await;
        drop(get);
        store.finish().await;
        hold.entry.remove_fill(fill);
        fill.end(pulled);
        self.compare(&hold.entry).await;
    }

    /// Bytes were read. Whoever may now have the whole of an object waits for what is on its way to
    /// be stored, and for the whole, if it is here then, to be compared: so nobody gets all of an
    /// object that is not what it should be without [`Entry::frauds`] telling of it.
    pub async fn hand_out(&self, entry: &Entry, bytes: u64) {
        if !entry.hand_out(bytes) || !self.to_compare(entry) {
            return;
        }
        for ended in entry.completing() {
            ended.await;
        }
        self.compare(entry).await;
    }

    /// Compares an object that is whole with the checksum that the store has of it, once. One HEAD
    /// for each large object that was fetched. Where they differ all of it is given up.
    async fn compare(&self, entry: &Entry) {
        if !self.to_compare(entry) || !entry.is_whole() {
            return;
        }
        let _turn = entry.comparing.lock().await;
        let Some(crc) = self.to_compare(entry).then(|| entry.whole_crc()).flatten() else { return };
        let version = &entry.version;
        let told = match self.bucket.head(&version.key).await {
            Ok(info) if info.etag == version.etag => info.crc64nvme,
            _ => None,
        };
        self.catalog.counters.checked_objects.add(u64::from(told.is_some()));
        if told.is_none_or(|told| told == crc) {
            entry.set_compared();
            return;
        }
        tracing::error!(key = %version.key, "what came is not what the store has; fetching again");
        self.catalog.lose_all(entry);
    }

    /// Whether what the store says of the whole is yet to be seen.
    pub fn to_compare(&self, entry: &Entry) -> bool {
        entry.version.size > CHECKED_BYTES_MAX
            && !entry.is_compared()
            && self.bucket.capabilities().tells_crc
    }

    async fn acquire(&self, range: &Range<u64>) -> Permits {
        // Memory first: a fill that waits for it must not keep others from their requests.
        let need = permits(range.end - range.start);
        let memory = self.memory.clone().acquire_many_owned(need).await;
        let get = self.gets.clone().acquire_owned().await;
        let open = "the semaphores are never closed";
        Permits { get: get.expect(open), memory: memory.expect(open) }
    }

    /// Takes a body to its waiters and to the disk.
    async fn pull(
        &self,
        entry: &Entry,
        fill: &Fill,
        memory: OwnedSemaphorePermit,
        store: &mut Storing<'_>,
    ) -> Result<(), ReadError> {
        let mut body = self.get(&entry.version, fill.range()).await?;
        let bytes = fill.range().end - fill.range().start;
        fill.begin(self.catalog.pool.take(bytes as usize), memory);
        while let Some(frame) = body.next().await.transpose()? {
            self.catalog.counters.fetched_bytes.add(frame.len() as u64);
            fill.push(&frame);
            store.go_on();
        }
        Ok(())
    }

    /// The body of a GET of one version: exactly the range's bytes, or an error before its end.
    async fn get(&self, version: &Version, range: &Range<u64>) -> Result<Body, ReadError> {
        self.catalog.counters.requests.add(1);
        let etag = Some(&version.etag);
        let (info, body) = self.bucket.get(&version.key, range.clone(), etag).await?;
        // A store that ignores conditions answers with what there is now.
        if (info.size, &info.etag) != (version.size, &version.etag) {
            return Err(ReadError::Changed);
        }
        Ok(body)
    }

    /// A range fetched for one reader alone, past cache and fills.
    pub async fn fetch_uncached(
        &self,
        version: &Version,
        range: &Range<u64>,
    ) -> Result<Vec<Bytes>, ReadError> {
        let frames: Vec<Bytes> = self.get(version, range).await?.try_collect().await?;
        self.catalog.counters.fetched_bytes.add(frames.iter().map(|f| f.len() as u64).sum());
        Ok(frames)
    }
}

pub fn not_the_stores() -> ReadError {
    BucketError::Corrupt(NOT_THE_STORES.to_owned()).into()
}

fn permits(bytes: u64) -> u32 {
    bytes.div_ceil(PERMIT_BYTES) as u32
}

/// A fill whose task is alive. Dropping it ends the fill, whatever happened to the task.
struct Running {
    hold: Use,
    fill: Arc<Fill>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.hold.entry.remove_fill(&self.fill);
        let error = BucketError::Unavailable("the request was given up".into());
        self.fill.end(Err(error.into()));
    }
}

/// Hands what came to the disk, a stretch at a time and in order.
struct Storing<'a> {
    hold: &'a Use,
    fill: &'a Arc<Fill>,
    catalog: &'a Arc<Catalog>,
    /// Up to where it was handed over.
    stored: u64,
    before: Option<JoinHandle<()>>,
}

impl<'a> Storing<'a> {
    fn new(hold: &'a Use, fill: &'a Arc<Fill>, catalog: &'a Arc<Catalog>) -> Self {
        Self { hold, fill, catalog, stored: fill.range().start, before: None }
    }

    /// More came.
    fn go_on(&mut self) {
        let come = self.fill.come();
        let idle = self.before.as_ref().is_none_or(JoinHandle::is_finished);
        if come - self.stored >= STORE_BYTES && idle {
            self.store((come - self.stored) / GRANULE_BYTES * GRANULE_BYTES);
        }
    }

    /// Stores the first `len` bytes that wait.
    fn store(&mut self, len: u64) {
        let bytes = self.fill.slice(&(self.stored..self.stored + len));
        let (catalog, entry) = (self.catalog.clone(), self.hold.entry.clone());
        let (start, origin) = (self.stored, self.fill.origin());
        self.stored += len;
        let work = move || catalog.store(&entry, start, &bytes, origin);
        self.before = Some(tokio::task::spawn_blocking(work));
    }

    /// Stores the rest, but for a granule that came in part, and waits until all is stored.
    async fn finish(mut self) {
        self.wait().await;
        let come = self.fill.come();
        let is_all = come == self.fill.range().end;
        let until = if is_all { come } else { come / GRANULE_BYTES * GRANULE_BYTES };
        let len = until.saturating_sub(self.stored);
        if len > 0 {
            self.store(len);
            self.wait().await;
        }
    }

    async fn wait(&mut self) {
        if let Some(before) = self.before.take() {
            // A panic there was reported where it happened; what it had is just not cached.
            let _ = before.await;
        }
    }
}
