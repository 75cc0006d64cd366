//! What all staged files of one mount share: the bucket, the disk, bounds, counters and tasks.
//!
//! Owns the bounds and the accounting. Does not own any file.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::buffers::Buffers;
use super::error::WriteError;
use super::journal::Journal;
use super::lull::Lull;
use super::places::Places;
use super::staging::StagingDir;
use crate::bucket::Bucket;
use crate::clock::Clock;
use crate::types::Key;

/// Ranged GETs that fill staged files, over all files: enough for one link, few enough for a store.
pub const FETCHES_MAX: usize = 32;
/// How often files that the kernel writes by itself are looked at: a part takes longer than that to
/// send.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);
/// So much longer for each such file: a look takes about 1 us, so all of them a fiftieth of a core.
const LOOK_INTERVAL_PER_FILE: Duration = Duration::from_micros(50);

/// A file that must be looked at, since nobody tells when it is written.
pub trait Watched: Send + Sync {
    fn look(&self);
}

/// See above.
pub struct Shared {
    pub bucket: Arc<Bucket>,
    pub clock: Arc<dyn Clock>,
    pub staging: StagingDir,
    /// There once a file is to be acknowledged before it is in the bucket, or was.
    pub journal: OnceLock<Journal>,
    pub part_bytes: u64,
    /// See [`Grid::new`](super::parts::Grid::new).
    pub put_bytes_max: u64,
    pub parallel_parts: usize,
    pub buffers: Arc<Buffers>,
    pub fetches: Semaphore,
    pub dirty: DirtyBound,
    pub places: Arc<Places>,
    /// A turn for each upload that may run.
    pub uploads: Semaphore,
    pub uploads_max: usize,
    /// `None`: uploads give way to nobody.
    lull: Option<Mutex<Lull>>,
    pub counters: Counters,
    pub tasks: Tasks,
    watched: Mutex<Watchlist>,
}

impl Shared {
    pub fn new(parts: SharedParts) -> Arc<Self> {
        Arc::new(Self {
            bucket: parts.bucket,
            clock: parts.clock,
            staging: parts.staging,
            journal: OnceLock::new(),
            part_bytes: parts.part_bytes,
            put_bytes_max: parts.put_bytes_max,
            parallel_parts: parts.parallel_parts.max(1),
            buffers: Buffers::new(parts.bodies_bytes_max, parts.runtime.clone()),
            fetches: Semaphore::new(FETCHES_MAX),
            dirty: parts.dirty,
            places: parts.places,
            uploads: Semaphore::new(parts.uploads_max),
            uploads_max: parts.uploads_max,
            lull: parts.gives_way.then(Mutex::default),
            counters: Counters::default(),
            tasks: Tasks::new(parts.runtime),
            watched: Mutex::default(),
        })
    }

    /// Has `file` looked at from now on, until it is dropped.
    pub fn watch(self: &Arc<Self>, file: std::sync::Weak<dyn Watched>) {
        let mut watched = self.watched.lock();
        watched.files.push(file);
        if !std::mem::replace(&mut watched.running, true) {
            self.tasks.runtime.spawn(look_around(Arc::downgrade(self)));
        }
    }

    /// A file that counted for `before` in the dirty bound counts for `now`.
    pub fn recount(&self, before: u64, now: u64) {
        self.dirty.recount(before, now);
        if now > before {
            self.wrote(now - before);
        }
    }

    /// So many bytes were written, or none yet to a file that is opened to be written.
    pub fn wrote(&self, bytes: u64) {
        if let Some(lull) = &self.lull {
            lull.lock().wrote(bytes, self.clock.now());
        }
    }

    /// While what it returns lives, a closed file is being synced.
    pub fn syncing(&self) -> Syncing<'_> {
        if let Some(lull) = &self.lull {
            lull.lock().begin_sync();
        }
        Syncing(self)
    }

    /// How long uploads that nobody waits for give way before they look again; `None`: they may go.
    pub fn gives_way(&self) -> Option<Duration> {
        let lull = self.lull.as_ref().filter(|_| !self.dirty.is_half_full())?;
        lull.lock().wait(self.clock.now())
    }

    /// Has the store forget an upload; nobody waits for it, and what fails is left to the store's
    /// own clearing of old uploads.
    pub fn abort(&self, key: Key, upload: String) {
        let bucket = self.bucket.clone();
        self.tasks.spawn(async move {
            if let Err(error) = bucket.abort_multipart(&key, &upload).await {
                tracing::warn!(%key, %error, "parts of an upload may be left over");
            }
        });
    }

    /// Looks at every watched file and says how many there still are.
    fn look(&self) -> usize {
        let files = self.watched.lock().files.clone();
        files.iter().filter_map(std::sync::Weak::upgrade).for_each(|file| file.look());
        let mut watched = self.watched.lock();
        watched.files.retain(|file| file.strong_count() > 0);
        watched.running = !watched.files.is_empty();
        watched.files.len()
    }
}

/// See [`Shared::syncing`].
pub struct Syncing<'a>(&'a Shared);

impl Drop for Syncing<'_> {
    fn drop(&mut self) {
        if let Some(lull) = &self.0.lull {
            lull.lock().end_sync(self.0.clock.now());
        }
    }
}

/// What [`Shared`] is made of.
pub struct SharedParts {
    pub bucket: Arc<Bucket>,
    pub clock: Arc<dyn Clock>,
    pub staging: StagingDir,
    pub part_bytes: u64,
    pub put_bytes_max: u64,
    pub parallel_parts: usize,
    pub bodies_bytes_max: u64,
    pub dirty: DirtyBound,
    pub places: Arc<Places>,
    pub uploads_max: usize,
    pub gives_way: bool,
    pub runtime: Handle,
}

#[derive(Default)]
struct Watchlist {
    files: Vec<std::sync::Weak<dyn Watched>>,
    running: bool,
}

/// Runs while there is a file to look at.
async fn look_around(shared: std::sync::Weak<Shared>) {
    let mut wait = LOOK_INTERVAL;
    loop {
        sleep(wait).await;
        match shared.upgrade().map_or(0, |shared| shared.look()) {
            0 => return,
            files => wait = LOOK_INTERVAL + LOOK_INTERVAL_PER_FILE * files as u32,
        }
    }
}

/// The bound on staged bytes that are not yet in the bucket.
#[derive(Debug)]
pub struct DirtyBound {
    max: u64,
    wait_max: Duration,
    bytes: AtomicU64,
    freed: Notify,
}

impl DirtyBound {
    pub fn new(max: u64, wait_max: Duration) -> Self {
        Self { max, wait_max, bytes: AtomicU64::new(0), freed: Notify::new() }
    }

    pub fn max(&self) -> u64 {
        self.max
    }

    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    pub fn is_full(&self) -> bool {
        self.bytes() >= self.max
    }

    pub fn is_half_full(&self) -> bool {
        self.bytes() >= self.max / 2
    }

    fn recount(&self, before: u64, now: u64) {
        if now >= before {
            self.bytes.fetch_add(now - before, Ordering::Relaxed);
        } else {
            self.bytes.fetch_sub(before - now, Ordering::Relaxed);
            self.freed.notify_waiters();
        }
    }

    /// Waits until a writer may go on; ENOSPC if that takes too long. A writer goes over the bound
    /// by one write at most.
    pub async fn room(&self) -> Result<(), WriteError> {
        if self.bytes() < self.max {
            return Ok(());
        }
        let freed = async {
            loop {
                // Made before the look, so that what is freed in between wakes us.
                let freed = self.freed.notified();
                if self.bytes() < self.max {
                    return;
                }
                freed.await;
            }
        };
        let full = |_| WriteError::disk(libc::ENOSPC, "too many bytes wait for their upload");
        timeout(self.wait_max, freed).await.map_err(full)
    }
}

/// Counts for `status`.
#[derive(Debug, Default)]
pub struct Counters {
    pub staged_files: AtomicU64,
    pub uploads_running: AtomicU64,
    pub uploads_done: AtomicU64,
    pub uploads_failed: AtomicU64,
    pub parts_sent: AtomicU64,
    pub parts_sent_ahead: AtomicU64,
    pub parts_copied: AtomicU64,
    pub parts_kept: AtomicU64,
    pub uploads_spared: AtomicU64,
    pub bytes_sent: AtomicU64,
    pub bytes_fetched: AtomicU64,
    pub quarantined_files: AtomicU64,
}

impl Counters {
    pub fn add(counter: &AtomicU64, more: u64) {
        counter.fetch_add(more, Ordering::Relaxed);
    }

    pub fn sub(counter: &AtomicU64, less: u64) {
        counter.fetch_sub(less, Ordering::Relaxed);
    }
}

/// Work that goes on when nobody waits for it any more.
#[derive(Debug)]
pub struct Tasks {
    runtime: Handle,
    running: watch::Sender<usize>,
}

impl Tasks {
    fn new(runtime: Handle) -> Self {
        Self { runtime, running: watch::Sender::new(0) }
    }

    pub fn spawn<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<T> {
        let running = Running::new(self.running.clone());
        self.runtime.spawn(async move {
            let _running = running;
            work.await
        })
    }

    /// The same for work that blocks.
    pub fn spawn_blocking(&self, work: impl FnOnce() + Send + 'static) {
        let running = Running::new(self.running.clone());
        self.runtime.spawn_blocking(move || {
            let _running = running;
            work();
        });
    }

    /// Waits until nothing runs.
    pub async fn finished(&self) {
        // The sender is ours, so this can't fail.
        let _ = self.running.subscribe().wait_for(|running| *running == 0).await;
    }
}

struct Running(watch::Sender<usize>);

impl Running {
    fn new(count: watch::Sender<usize>) -> Self {
        count.send_modify(|running| *running += 1);
        Self(count)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.send_modify(|running| *running -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn writers_over_the_bound_wait_for_an_upload_and_then_get_enospc() {
        let bound = Arc::new(DirtyBound::new(10, Duration::from_millis(20)));
        bound.recount(0, 10);
        let full = bound.room().await;
        assert!(matches!(full, Err(WriteError::Disk { errno: libc::ENOSPC, .. })), "{full:?}");
        let bound = Arc::new(DirtyBound::new(10, Duration::from_secs(60)));
        bound.recount(0, 10);
        let waiting = tokio::spawn({
            let bound = bound.clone();
            async move { bound.room().await }
        });
        tokio::task::yield_now().await;
        bound.recount(10, 3);
        waiting.await.unwrap().unwrap();
        assert_eq!(bound.bytes(), 3);
    }
}
