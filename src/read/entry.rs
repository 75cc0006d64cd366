//! One version in the cache: its map, its file, its fills, under one lock.
//!
//! Owns what may serve a byte range and who fetches what is missing (single flight). Does not own
//! requests (`fetch`), the set of entries or the limits (`catalog`).
//!
//! What must hold:
//! 1. At most one fill covers a granule at a time, and none a granule that is on disk.
//! 2. The lock is never held across an await, nor across a read, write or punch of file data.
//! 3. Bytes read without the lock count only if no bytes left the file meanwhile (`departures`),
//!    and only if their granules match their CRCs, or did within [`BELIEF_MS_MAX`].
//! 4. While somebody holds the whole file, none of its bytes are taken away.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};

use crate::pool::Pool;
use crate::read::disk::{self, Disk, Wait};
use crate::read::fill::Fill;
use crate::read::index::{self, FileId, Record, Saved};
use crate::read::plan::{Ask, Known, Plan};
use crate::read::presence::{GRANULE_BYTES, Left, Origin, Presence, Trust, granules_of};
use crate::read::version::Version;

/// How long checked bytes are believed without another look: a stream of small reads shall not
/// check the same granule at each, and what was just read is in the page cache.
const BELIEF_MS_MAX: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub struct Entry {
    pub version: Arc<Version>,
    /// Handles and operations that need it to stay; leaves 0 under the catalog's lock only.
    pub users: AtomicUsize,
    /// Somebody reads all of it in the background.
    pub learning: AtomicBool,
    /// Bytes that were read, by whomever.
    handed: AtomicU64,
    /// One at a time asks the store what the whole should be.
    pub comparing: tokio::sync::Mutex<()>,
    /// How often the whole turned out to be other than the store's.
    frauds: AtomicU64,
    /// When the whole was compared with the store's checksum: one more than `departures` was.
    compared: AtomicU64,
    departures: AtomicU64,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    presence: Presence,
    fills: Vec<Arc<Fill>>,
    file: Option<CacheFile>,
    /// Since when checked granules are believed.
    believed_since: Option<Instant>,
    /// Forgotten and freed: takes nothing any more.
    released: bool,
}

#[derive(Debug)]
struct CacheFile {
    id: FileId,
    /// Closed when nobody uses the entry.
    open: Option<Arc<File>>,
    /// What `whole_file` gave out.
    whole: Weak<File>,
    /// When the file last changed, as it was first given out so.
    stamp: Option<disk::Stamp>,
}

type OpenFile = (FileId, Arc<File>);

/// A reading of the cache file.
#[derive(Debug)]
pub enum DiskRead {
    Bytes(Bytes),
    /// Not in the page cache, and the caller would not wait.
    WouldBlock,
    /// Not there, or no longer, or not what it should be.
    Lost {
        gone_bytes: u64,
        corrupt_granules: u64,
    },
}

/// A granule to be checked against this CRC, or whose CRC is to be learnt.
type Unchecked = (u64, Option<u64>);

/// What became of an attempt to take bytes away.
#[derive(Debug, Default)]
pub struct Evicted {
    pub left: Left,
    /// A file that now holds nothing and is to be deleted.
    pub file: Option<FileId>,
    /// A range to be punched, after which [`Entry::punched`] must follow.
    pub punch: Option<(Arc<File>, Range<u64>)>,
}

impl Entry {
    pub fn new(version: Version, block_bytes: u64) -> Self {
        let presence = Presence::new(version.size, block_bytes);
        let state = State {
            presence,
            fills: Vec::new(),
            file: None,
            believed_since: None,
            released: false,
        };
        Self {
            version: Arc::new(version),
            users: AtomicUsize::new(0),
            learning: AtomicBool::new(false),
            handed: AtomicU64::new(0),
            comparing: tokio::sync::Mutex::default(),
            frauds: AtomicU64::new(0),
            compared: AtomicU64::new(0),
            departures: AtomicU64::new(0),
            state: Mutex::new(state),
        }
    }

    /// What an earlier process left.
    pub fn reopened(id: FileId, saved: Saved, block_bytes: u64, tick: u64) -> Self {
        let entry = Self::new(saved.version, block_bytes);
        let mut state = entry.state.lock();
        state.file = Some(CacheFile { id, open: None, whole: Weak::new(), stamp: None });
        for (granule, crc) in saved.granules {
            state.presence.add(granule, Some(crc), Origin::Reopened, tick);
        }
        if state.presence.is_whole() {
            entry.set_compared();
        }
        drop(state);
        entry
    }

    pub fn bytes(&self) -> u64 {
        self.state.lock().presence.bytes()
    }

    pub fn is_whole(&self) -> bool {
        self.state.lock().presence.is_whole()
    }

    /// See the field: who began to read at another count may have been given wrong bytes.
    pub fn frauds(&self) -> u64 {
        self.frauds.load(Ordering::SeqCst)
    }

    /// Whether nothing came or went since the whole was compared with the store's checksum, or it
    /// needs no comparison, as it came from here.
    pub fn is_compared(&self) -> bool {
        self.compared.load(Ordering::SeqCst) == self.departures.load(Ordering::SeqCst) + 1
    }

    pub fn set_compared(&self) {
        self.compared.store(self.departures.load(Ordering::SeqCst) + 1, Ordering::SeqCst);
    }

    /// Notes that bytes were read; whether somebody may have all of them by now.
    pub fn hand_out(&self, bytes: u64) -> bool {
        self.handed.fetch_add(bytes, Ordering::SeqCst);
        self.is_handed_out()
    }

    /// Whether somebody may have all of its bytes.
    pub fn is_handed_out(&self) -> bool {
        self.handed.load(Ordering::SeqCst) >= self.version.size
    }

    /// The ends of the fills after which the object may be whole; none where more is lacking than
    /// they bring.
    pub fn completing(&self) -> Vec<impl Future<Output = ()> + use<>> {
        let state = self.state.lock();
        let coming: u64 = state.fills.iter().map(|f| f.range().end - f.range().start).sum();
        let nears_whole = self.version.size - state.presence.bytes() <= coming;
        let fills = state.fills.iter().filter(|_| nears_whole);
        fills.map(|fill| fill.ended()).collect()
    }

    /// The CRC64NVME of the whole, if every granule is here and its CRC known.
    pub fn whole_crc(&self) -> Option<u64> {
        self.state.lock().presence.whole_crc()
    }

    /// Nothing that is here is right, nobody knows where: all of it is to be fetched again. Returns
    /// the bytes that are gone.
    pub fn lose_all(&self) -> u64 {
        self.frauds.fetch_add(1, Ordering::SeqCst);
        self.lose(granules_of(&(0..self.version.size)))
    }

    /// Nothing cached and nothing on its way.
    pub fn is_idle(&self) -> bool {
        let state = self.state.lock();
        state.presence.bytes() == 0 && state.fills.is_empty()
    }

    pub fn ages(&self) -> Vec<(u64, u64)> {
        let state = self.state.lock();
        if state.is_pinned() { Vec::new() } else { state.presence.ages().collect() }
    }

    /// Says where each byte of the READ comes from, and makes fills for what is nowhere.
    pub fn plan(&self, ask: &Ask<'_>) -> Plan {
        let mut state = self.state.lock();
        let State { presence, fills, .. } = &mut *state;
        presence.touch(&ask.read, ask.tick);
        Known { version: &self.version, presence, fills }.plan(ask)
    }

    /// A fill has ended and will store nothing more.
    pub fn remove_fill(&self, fill: &Arc<Fill>) {
        self.state.lock().fills.retain(|f| !Arc::ptr_eq(f, fill));
    }

    /// Reads from the cache file and checks what was not checked yet.
    pub fn read_disk(
        &self,
        disk: &Disk,
        pool: &Arc<Pool>,
        range: &Range<u64>,
        wait: Wait,
    ) -> DiskRead {
        let lost = |gone_bytes| DiskRead::Lost { gone_bytes, corrupt_granules: 0 };
        let (id, file, check, departures) = {
            let mut state = self.state.lock();
            if !state.presence.has_all(range) {
                return lost(0);
            }
            state.doubt_what_is_old(disk.now());
            match state.open_file(disk) {
                Ok(Some((id, file))) => {
                    (id, file, state.unchecked(range), self.departures.load(Ordering::SeqCst))
                }
                Err(e) if e.kind() != ErrorKind::NotFound => return lost(0),
                _ => return lost(self.lose_file(state, disk)),
            }
        };
        let span = if check.is_empty() { range.clone() } else { self.granules(range) };
        let mut buffer = pool.take((span.end - span.start) as usize);
        let bytes = match disk::read_range(&file, span.start, &mut buffer.bytes, wait) {
            Ok(()) => buffer.freeze(),
            Err(e) if e.kind() == ErrorKind::WouldBlock => return DiskRead::WouldBlock,
            Err(error) => {
                tracing::warn!(%error, key = %self.version.key, "the cache disk can't be read");
                return lost(self.lose(granules_of(&span)));
            }
        };
        let crcs = check
            .iter()
            .map(|(granule, _)| crc_fast::crc64_nvme(piece(&bytes, span.start, *granule)));
        let crcs: Vec<u64> = crcs.collect();
        let Some(wrong) = self.confirm(&check, &crcs, departures) else { return lost(0) };
        if !wrong.is_empty() {
            let corrupt_granules = wrong.len() as u64;
            return DiskRead::Lost { gone_bytes: self.lose(wrong), corrupt_granules };
        }
        let learnt = check.iter().zip(&crcs).filter(|((_, known), _)| known.is_none());
        let learnt = learnt.map(|((granule, _), crc)| (*granule, *crc)).collect();
        for (first, crcs) in index::runs(&learnt) {
            disk.note(&Record::Filled { file: id, first, crcs });
        }
        let skip = (range.start - span.start) as usize;
        DiskRead::Bytes(bytes.slice(skip..skip + (range.end - range.start) as usize))
    }

    /// Compares what was read with what it should be; returns the granules that are wrong, or
    /// `None` if bytes left the file meanwhile, so that nothing can be said.
    fn confirm(&self, check: &[Unchecked], crcs: &[u64], departures: u64) -> Option<Vec<u64>> {
        if check.is_empty() {
            let same = self.departures.load(Ordering::SeqCst) == departures;
            return same.then(Vec::new);
        }
        let mut state = self.state.lock();
        if self.departures.load(Ordering::SeqCst) != departures {
            return None;
        }
        let mut wrong = Vec::new();
        for ((granule, expected), crc) in check.iter().zip(crcs) {
            match expected {
                Some(expected) if expected != crc => wrong.push(*granule),
                _ => state.presence.confirm(*granule, *crc),
            }
        }
        Some(wrong)
    }

    /// The range, widened to whole granules.
    fn granules(&self, range: &Range<u64>) -> Range<u64> {
        let granules = granules_of(range);
        granules.start * GRANULE_BYTES..(granules.end * GRANULE_BYTES).min(self.version.size)
    }

    fn lose(&self, granules: impl IntoIterator<Item = u64>) -> u64 {
        let mut state = self.state.lock();
        self.departures.fetch_add(1, Ordering::SeqCst);
        granules.into_iter().map(|g| state.presence.drop_granule(g)).sum()
    }

    /// Somebody deleted the file under us.
    fn lose_file(&self, state: MutexGuard<'_, State>, disk: &Disk) -> u64 {
        let Evicted { left, file, .. } = self.empty(state);
        file.inspect(|id| disk.remove(*id));
        left.bytes
    }

    /// Writes bytes that are the granules from `first` on, whose CRCs are `crcs`, to the file,
    /// which is made if there is none. Returns the bytes by which the cache grew, or `None` where
    /// nothing may be stored. Waits for the disk.
    pub fn write(
        &self,
        disk: &Disk,
        (first, bytes): (u64, &[u8]),
        crcs: &[u64],
        origin: Origin,
        tick: u64,
    ) -> io::Result<Option<u64>> {
        let granules = first..first + crcs.len() as u64;
        let Some((id, file)) = self.begin_write(disk, granules.clone())? else { return Ok(None) };
        let written = file.write_all_at(bytes, first * GRANULE_BYTES);
        let mut state = self.state.lock();
        state.presence.arrived(granules.clone());
        written?;
        if state.file.as_ref().is_none_or(|f| f.id != id) {
            return Ok(None);
        }
        let add = |(g, crc): (u64, &u64)| state.presence.add(g, Some(*crc), origin, tick);
        let grown = granules.zip(crcs).map(add).sum();
        drop(state);
        disk.note(&Record::Filled { file: id, first, crcs: crcs.to_vec() });
        Ok(Some(grown))
    }

    fn begin_write(&self, disk: &Disk, granules: Range<u64>) -> io::Result<Option<OpenFile>> {
        let mut state = self.state.lock();
        if state.released {
            return Ok(None);
        }
        if state.file.is_none() {
            let (id, file) = disk.create()?;
            disk.note(&Record::file(id, &self.version));
            let open = Some(Arc::new(file));
            state.file = Some(CacheFile { id, open, whole: Weak::new(), stamp: None });
        }
        let file = state.open_file(disk)?;
        Ok(if state.presence.arrive(granules) { file } else { None })
    }

    /// Takes over a finished file; its CRCs are learnt when it is read. `None`: there is one
    /// already.
    pub fn adopt(&self, disk: &Disk, id: FileId, file: File, tick: u64) -> Option<u64> {
        let mut state = self.state.lock();
        if state.file.is_some() || state.released {
            return None;
        }
        disk.note(&Record::file(id, &self.version));
        state.file =
            Some(CacheFile { id, open: Some(Arc::new(file)), whole: Weak::new(), stamp: None });
        self.set_compared();
        let granules = granules_of(&(0..self.version.size));
        Some(granules.map(|g| state.presence.add(g, None, Origin::Wanted, tick)).sum())
    }

    /// All of the object as a read-only file, if it is there and trusted. Whoever reads it checks
    /// nothing, so it is given out only while memory holds what was checked: all of it in the page
    /// cache, and nobody wrote into the file since it was first given out.
    pub fn whole_file(&self, disk: &Disk, tick: u64) -> Option<Arc<File>> {
        let mut state = self.state.lock();
        if self.version.size == 0 || !state.presence.is_whole_and_trusted() {
            return None;
        }
        state.presence.touch(&(0..self.version.size), tick);
        let file = state.file.as_mut()?;
        let whole = match file.whole.upgrade() {
            Some(whole) => whole,
            None => Arc::new(disk.open_read_only(file.id).ok()?),
        };
        let stamp = disk::Stamp::of(&whole).ok()?;
        if *file.stamp.get_or_insert(stamp) != stamp {
            file.stamp = None;
            state.presence.distrust();
            return None;
        }
        if stamp.len() != self.version.size || !disk::is_resident(&whole, stamp.len()) {
            return None;
        }
        file.whole = Arc::downgrade(&whole);
        Some(whole)
    }

    /// Takes the whole file out of the cache for whoever holds it, if nobody else does.
    pub fn give_away(&self, held: &Arc<File>) -> Option<Evicted> {
        let state = self.state.lock();
        let whole = &state.file.as_ref()?.whole;
        let only = whole.strong_count() == 1 && std::ptr::eq(whole.as_ptr(), Arc::as_ptr(held));
        only.then(|| self.empty(state))
    }

    /// Closes the descriptor; the next reading opens it again.
    pub fn close_file(&self) {
        let closed = self.state.lock().file.as_mut().and_then(|f| f.open.take());
        drop(closed);
    }

    /// Takes a block away, or nothing if the whole file is held or the block is being written.
    pub fn evict(&self, disk: &Disk, block: u64) -> Evicted {
        let mut state = self.state.lock();
        if state.is_pinned() {
            return Evicted::default();
        }
        let open = if state.presence.is_only(block) { None } else { state.file_to_punch(disk) };
        let Some(open) = open else { return self.empty(state) };
        let Some(left) = state.presence.leave(block) else { return Evicted::default() };
        self.departures.fetch_add(1, Ordering::SeqCst);
        let range = state.presence.block_range(block);
        Evicted { left, file: None, punch: Some((open, range)) }
    }

    /// The bytes of a block that was evicted are off the disk.
    pub fn punched(&self, disk: &Disk, block: u64) {
        let mut state = self.state.lock();
        if let Some(file) = state.file.as_ref().map(|f| f.id) {
            let granules = granules_of(&state.presence.block_range(block));
            let count = granules.end - granules.start;
            disk.note(&Record::Emptied { file, first: granules.start, count });
        }
        state.presence.left(block);
    }

    /// Takes everything away for good, or nothing if the whole file is held.
    pub fn release(&self) -> Option<Evicted> {
        let mut state = self.state.lock();
        if state.is_pinned() {
            return None;
        }
        state.released = true;
        Some(self.empty(state))
    }

    /// Takes everything away, where single blocks can't be.
    pub fn evict_all(&self) -> Evicted {
        let state = self.state.lock();
        if state.is_pinned() { Evicted::default() } else { self.empty(state) }
    }

    fn empty(&self, mut state: MutexGuard<'_, State>) -> Evicted {
        self.departures.fetch_add(1, Ordering::SeqCst);
        let file = state.file.take().map(|f| f.id);
        Evicted { left: state.presence.clear(), file, punch: None }
    }
}

impl State {
    fn is_pinned(&self) -> bool {
        self.file.as_ref().is_some_and(|f| f.whole.strong_count() > 0)
    }

    fn open_file(&mut self, disk: &Disk) -> io::Result<Option<OpenFile>> {
        let Some(file) = self.file.as_mut() else { return Ok(None) };
        let open = match &file.open {
            Some(open) => open.clone(),
            None => file.open.insert(Arc::new(disk.reopen(file.id)?)).clone(),
        };
        Ok(Some((file.id, open)))
    }

    /// Without keeping it open: what is evicted is seldom in use.
    fn file_to_punch(&self, disk: &Disk) -> Option<Arc<File>> {
        let file = self.file.as_ref()?;
        file.open.clone().or_else(|| disk.reopen(file.id).ok().map(Arc::new))
    }

    /// What was checked comes from memory for a moment; later it may come from the disk anew.
    fn doubt_what_is_old(&mut self, now: Instant) {
        let since = *self.believed_since.get_or_insert(now);
        if now.saturating_duration_since(since) >= BELIEF_MS_MAX {
            self.presence.doubt();
            self.believed_since = Some(now);
        }
    }

    /// What of a range is to be checked.
    fn unchecked(&self, range: &Range<u64>) -> Vec<Unchecked> {
        let what = |granule| match self.presence.trust(granule) {
            Trust::Checked => None,
            Trust::Check(crc) => Some((granule, Some(crc))),
            Trust::Learn => Some((granule, None)),
        };
        granules_of(range).filter_map(what).collect()
    }
}

/// A granule's bytes, in bytes that were read from `start` on.
fn piece(bytes: &[u8], start: u64, granule: u64) -> &[u8] {
    let from = (granule * GRANULE_BYTES - start) as usize;
    &bytes[from..bytes.len().min(from + GRANULE_BYTES as usize)]
}
