//! One file that is open for writing: its bytes on the staging disk and what is known of them.
//!
//! Owns what is known of the file, and whether it is dirty. Does not own reading and writing
//! (`contents`), nor how bytes come down (`fetch`) or go up (`uploader`, `ahead`).
//!
//! What must hold:
//! 1. `state` is locked while bytes of ours are written, so that a fetched block never lands on a
//!    byte that was written after it was asked for. It is never locked across an await.
//! 2. `version` grows after the bytes of a change are in the file. Whoever notes the version before
//!    reading knows that a later change shows.
//! 3. `clean` speaks of a version, a key and, where the kernel writes by itself, a mark of the
//!    file. All three hold, or the file is dirty. So does `ready`, of metadata too; else the file
//!    is not prepared.

use std::fmt;
use std::io;
use std::sync::{Arc, Weak};
use std::time::SystemTime;

use parking_lot::Mutex;

use super::extents::Extents;
use super::intent::Intent;
use super::parts::Grid;
use super::places::Place;
use super::quarantine::Why;
use super::shared::{Counters, Shared};
use super::staging::{Mark, StagedFile};
use super::state::{Ahead, Base, Clean, Mode, Stamp, State, Streak, Uploaded};
use super::transfer::{Multipart, Transfer};
use crate::bucket::Metadata;
use crate::types::{ETag, Key};

/// A larger file is closed where it holds nobody up: freeing its blocks and pages takes 50 ms a
/// GiB.
const CLOSE_IN_PLACE_BYTES_MAX: u64 = 8 << 20;

/// A file open for writing. Its methods that fetch cost one GET per missing block; all others ask
/// nothing of the store unless they say so.
pub struct Staged {
    pub(super) shared: Arc<Shared>,
    pub(super) me: Weak<Staged>,
    pub(super) disk: Arc<StagedFile>,
    _place: Place,
    pub(super) grid: Grid,
    pub(super) state: Mutex<State>,
    pub(super) fetching: tokio::sync::Mutex<Streak>,
    /// Held by whoever sends.
    pub(super) transfer: tokio::sync::Mutex<Transfer>,
}

impl Staged {
    pub(super) fn new(
        shared: Arc<Shared>,
        disk: StagedFile,
        key: Key,
        base: Option<Base>,
    ) -> io::Result<Arc<Self>> {
        let size = base.as_ref().map_or(0, |base| base.size);
        if size > 0
            && let Err(error) = disk.set_size(size)
        {
            disk.remove()?;
            return Err(error);
        }
        Ok(Self::of(shared, disk, key, base, size))
    }

    /// What a dead daemon acknowledged: all of it here, none of it in the bucket, but for parts of
    /// an upload that it had begun.
    pub(super) fn adopted(
        shared: Arc<Shared>,
        disk: StagedFile,
        intent: &Intent,
    ) -> io::Result<Arc<Self>> {
        let modified = disk.modified()?;
        let staged = Self::of(shared, disk, intent.key.clone(), None, 0);
        let mut state = staged.state.lock();
        state.extents.wrote(0..intent.size);
        // Only its bytes tell whether a part that was sent is what it has to be.
        state.extents.lose_track();
        state.version += 1;
        state.modified = modified;
        state.kept = Some((intent.id, intent.crc));
        staged.recharge(&mut state);
        drop(state);
        if let (Some(begun), Ok(mut transfer)) = (&intent.begun, staged.transfer.try_lock()) {
            let resumed = Multipart::resumed(intent.key.clone(), begun);
            if resumed.fits(&staged.grid, intent.size) {
                transfer.open = Some(resumed);
            } else {
                staged.abort(Some(resumed));
            }
        }
        Ok(staged)
    }

    fn of(
        shared: Arc<Shared>,
        disk: StagedFile,
        key: Key,
        base: Option<Base>,
        size: u64,
    ) -> Arc<Self> {
        shared.wrote(0);
        let modified = shared.clock.wall();
        let clean = base.as_ref().map(|base| Clean::of(base, 0, modified, Vec::new()));
        let state = State {
            key,
            metadata: Metadata::new(),
            base,
            extents: Extents::new(size),
            version: 0,
            mode: Mode::Own,
            clean,
            ready: None,
            published: None,
            discarded: false,
            tried_at: None,
            compared: None,
            kept: None,
            why: Why::NotUploaded,
            ahead: Ahead::default(),
            modified,
            modified_on_disk: None,
            charged: 0,
        };
        let store = shared.bucket.capabilities();
        let part_bytes = shared.part_bytes.max(store.part_min);
        let grid = Grid::new(part_bytes, shared.put_bytes_max, store.parts_max);
        Counters::add(&shared.counters.staged_files, 1);
        let place = shared.places.take();
        Arc::new_cyclic(|me| Self {
            shared,
            me: me.clone(),
            disk: Arc::new(disk),
            _place: place,
            grid,
            state: Mutex::new(state),
            fetching: tokio::sync::Mutex::default(),
            transfer: tokio::sync::Mutex::default(),
        })
    }

    /// What to say of the file should it go to quarantine.
    pub fn give_up(&self, why: Why) {
        self.state.lock().why = why;
    }

    /// The staged file, open for reading and writing; what passthrough is given.
    pub fn file(&self) -> &std::fs::File {
        self.disk.file()
    }

    /// While what it returns lives, the file is no other one's.
    pub fn hold(&self) -> Arc<dyn Send + Sync> {
        self.disk.clone()
    }

    pub fn size(&self) -> io::Result<u64> {
        self.disk.size()
    }

    /// When the content last changed, or what was set since. Before the first change it is the time
    /// of staging: the caller sets what the base had.
    pub fn modified(&self) -> io::Result<SystemTime> {
        self.modified_of(&self.state.lock())
    }

    /// utimens(2): shown until the next change; no byte of the file becomes dirty.
    pub fn set_modified(&self, modified: SystemTime) -> io::Result<()> {
        let mut state = self.state.lock();
        state.modified = modified;
        if state.mode == Mode::Passthrough {
            state.modified_on_disk = Some(self.disk.modified()?);
        }
        Ok(())
    }

    /// Every byte is here, so the kernel may read and write by itself.
    pub fn is_complete(&self) -> bool {
        self.state.lock().extents.is_complete()
    }

    /// Whether the file may differ from what was last uploaded, or from its base. A file that was
    /// created or emptied is dirty until it was uploaded once; so is one under a new key.
    pub fn is_dirty(&self) -> bool {
        self.is_dirty_in(&self.state.lock())
    }

    /// What the file is now; the times it shows stay.
    pub fn stamp(&self) -> Stamp {
        let mut state = self.state.lock();
        let mark = self.mark_in(&mut state).ok().flatten();
        Stamp { version: state.version, mark }
    }

    /// Whether the file was, or may have been, written since `stamp` was taken.
    pub fn is_written_since(&self, stamp: &Stamp) -> bool {
        let state = self.state.lock();
        let marked = stamp.mark.as_ref().is_some_and(|mark| self.disk.is_as_marked(mark));
        state.version != stamp.version || (state.mode == Mode::Passthrough && !marked)
    }

    /// From now on the kernel writes by itself. The file must be complete.
    pub fn set_passthrough(&self) {
        let mut state = self.state.lock();
        assert!(state.extents.is_complete(), "the kernel can't fetch what is missing");
        if state.mode == Mode::Passthrough {
            return;
        }
        // Nobody but us wrote so far. Where the mark fails the file is dirty, which is safe.
        let mark = self.disk.mark().ok().flatten();
        let version = state.version;
        if let Some(clean) = state.clean.as_mut().filter(|clean| clean.version == version) {
            clean.mark = mark;
            if let Some(mark) = &mark {
                let _ = self.disk.note_uploaded(mark); // without a note it is kept
            }
        }
        if let Some(ready) = state.ready.as_mut().filter(|ready| ready.version == version) {
            ready.mark = mark;
        }
        state.modified_on_disk = self.disk.modified().ok();
        state.mode = Mode::Passthrough;
        state.extents.lose_track();
        drop(state);
        self.shared.watch(self.me.clone());
    }

    /// Renamed: what is uploaded from now on goes to `key`, and the whole file is dirty there. An
    /// upload that runs for the old key may still be completed there: see [`Staged::settled`].
    pub fn set_key(&self, key: Key) {
        let mut state = self.state.lock();
        if state.key != key {
            state.key = key;
            drop(state);
            self.abort_stale();
        }
    }

    /// The object itself was renamed in the store: the same content is now `etag` at `key`.
    pub fn moved(&self, key: Key, etag: ETag) {
        let mut state = self.state.lock();
        state.key = key.clone();
        if let Some(base) = &mut state.base {
            (base.key, base.etag) = (key.clone(), etag.clone());
        }
        if let Some(published) = &mut state.published {
            published.etag = etag.clone();
        }
        if let Some(clean) = &mut state.clean {
            (clean.key, clean.object.etag) = (key, etag);
        }
        drop(state);
        self.abort_stale();
    }

    /// What the next upload's object carries; it makes nothing dirty. Set it before the first
    /// bytes: what was sent ahead under other metadata is sent again.
    pub fn set_metadata(&self, metadata: Metadata) {
        self.state.lock().metadata = metadata;
    }

    /// The last object that an upload of this file made.
    pub fn last_uploaded(&self) -> Option<Uploaded> {
        self.state.lock().published.clone()
    }

    /// Whether the bucket may have content of it that no answer told of.
    pub fn may_have_gone_up(&self) -> bool {
        self.state.lock().tried_at.is_some()
    }

    /// Unlinked: from now on nothing is uploaded, and nothing is kept when the file is dropped. An
    /// upload that runs may still be completed: see [`Staged::settled`]. A base that is not
    /// complete must be fetched before its object is deleted if the file is still to be read.
    pub fn discard(&self) {
        self.stop(true);
        match self.disk.remove() {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%error, "a staged file could not be removed");
            }
            _ => {}
        }
    }

    /// It is about to be unlinked: from now on nothing is uploaded, as after [`Staged::discard`],
    /// which is to follow; else all is as before once what this returns is dropped.
    pub fn hold_back(&self) -> HeldBack<'_> {
        HeldBack(self.stop(true).then_some(self))
    }

    /// Whether that is a change.
    fn stop(&self, stopped: bool) -> bool {
        let mut state = self.state.lock();
        let changes = std::mem::replace(&mut state.discarded, stopped) != stopped;
        if changes {
            self.recharge(&mut state);
            drop(state);
            self.abort_stale();
        }
        changes
    }

    pub(super) fn modified_of(&self, state: &State) -> io::Result<SystemTime> {
        if state.mode == Mode::Own {
            return Ok(state.modified);
        }
        let on_disk = self.disk.modified()?;
        Ok(if state.modified_on_disk == Some(on_disk) { state.modified } else { on_disk })
    }

    pub(super) fn is_dirty_in(&self, state: &State) -> bool {
        if state.discarded {
            return false;
        }
        let Some(clean) = &state.clean else { return true };
        clean.key != state.key || !self.is_still(state, clean.version, clean.mark.as_ref())
    }

    /// Whether the content is what it was at `version`, and in passthrough mode under `mark`.
    pub(super) fn is_still(&self, state: &State, version: u64, mark: Option<&Mark>) -> bool {
        let unchanged = match (state.mode, mark) {
            (Mode::Own, _) => true,
            (Mode::Passthrough, Some(mark)) => self.disk.is_as_marked(mark),
            (Mode::Passthrough, None) => false,
        };
        unchanged && version == state.version
    }

    /// Counts the file anew in the dirty bound.
    pub(super) fn recharge(&self, state: &mut State) {
        let dirty = match state.mode {
            _ if !self.is_dirty_in(state) || self.is_prepared_in(state) => 0,
            Mode::Own => state.extents.changed_bytes(),
            Mode::Passthrough => self.disk.allocated().unwrap_or(state.charged),
        };
        self.shared.recount(state.charged, dirty);
        state.charged = dirty;
    }
}

/// A file of which nothing goes up meanwhile.
#[must_use]
pub struct HeldBack<'a>(Option<&'a Staged>);

impl HeldBack<'_> {
    /// It was unlinked; whoever says so discards it.
    pub fn for_good(mut self) {
        self.0 = None;
    }
}

impl Drop for HeldBack<'_> {
    fn drop(&mut self) {
        if let Some(staged) = self.0 {
            staged.stop(false);
        }
    }
}

impl fmt::Debug for Staged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Staged").field("disk", &self.disk).finish_non_exhaustive()
    }
}

impl Drop for Staged {
    /// Deletes the staged file, unless its bytes are nowhere else: then it goes to quarantine, or
    /// stays for the next mount if the journal speaks of it.
    fn drop(&mut self) {
        let (dirty, charged) = {
            let state = self.state.lock();
            (self.is_dirty_in(&state), state.charged)
        };
        self.shared.recount(charged, 0);
        Counters::sub(&self.shared.counters.staged_files, 1);
        self.abort_at_drop();
        let empty = self.disk.size().is_ok_and(|size| size == 0);
        let (discarded, kept) = {
            let state = self.state.get_mut();
            (state.discarded, state.kept)
        };
        let put_away = match discarded {
            true => Ok(()),                             // removed already
            false if dirty && kept.is_some() => Ok(()), // for the next mount
            false if dirty && !empty => self.quarantine(),
            false => match Arc::get_mut(&mut self.disk) {
                Some(disk) => self.shared.staging.done_with(disk),
                None => self.disk.remove(), // somebody still reads it
            },
        };
        if let Err(error) = put_away {
            tracing::error!(file = ?self.disk, %error, "a staged file could not be put away");
        }
        if self.disk.allocated().is_ok_and(|bytes| bytes > CLOSE_IN_PLACE_BYTES_MAX) {
            // Whoever closes a removed file frees its blocks. This one is most likely the last.
            let disk = self.disk.clone();
            self.shared.tasks.spawn_blocking(move || drop(disk));
        }
    }
}

impl Staged {
    fn quarantine(&mut self) -> io::Result<()> {
        let state = self.state.get_mut();
        let path = self.disk.quarantine(state.why)?;
        Counters::add(&self.shared.counters.quarantined_files, 1);
        let (key, why) = (&state.key, state.why.text());
        tracing::warn!(%key, ?path, why, "never uploaded, kept in quarantine");
        Ok(())
    }
}
