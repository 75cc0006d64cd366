//! Content that a staged file takes from an object, copied on the server: nothing comes down or
//! goes up.
//!
//! Owns when that is possible, and what the file is meanwhile. Does not own the requests
//! (`multipart`), nor which object is the content of which file (`fs`).
//!
//! What must hold:
//! 1. Bytes taken are bytes of the base that are missing here, as in a file staged with one: a read
//!    fetches them, a write replaces them, an upload copies them.
//! 2. Nothing that was known of other content counts for them: no part, no checksum, no fetch.
//! 3. Once they are copied, every part of them is in an upload of ours. What becomes of the source
//!    then matters only to who reads or changes the file before its close.

use std::ops::Range;

use super::error::WriteError;
use super::extents::Extents;
use super::parts::{self, Way};
use super::staged::Staged;
use super::state::{Base, Mode, State};
use super::transfer::{Setback, Transfer};
use crate::bucket::BucketError;
use crate::types::Key;

/// Bytes that [`Staged::take`] made the file's.
#[derive(Debug)]
pub struct Taken {
    range: Range<u64>,
    /// Of the file, right after.
    version: u64,
}

/// What became of a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Copied {
    Done,
    /// The file is as it was before; other ways are open.
    Refused,
}

impl Staged {
    /// Makes `range` of `source` the same range of the file, which ends where it begins: an empty
    /// one, or the copy of what comes before. `None`, and nothing is done, where a copy on the
    /// server is not possible or would not pay: of what goes up by one PUT, or piece by small
    /// piece. No request; call [`Staged::copy_taken`] next.
    pub fn take(&self, source: &Base, range: Range<u64>) -> Result<Option<Taken>, WriteError> {
        // Whatever still moves bytes of the old content would take the new one's for its own.
        let (Ok(mut transfer), Ok(_fetching)) =
            (self.transfer.try_lock(), self.fetching.try_lock())
        else {
            return Ok(None);
        };
        let mut state = self.state.lock();
        if self.disk.size()? != range.start || !self.may_take(&state, source, &range) {
            return Ok(None);
        }
        self.disk.set_size(range.end)?;
        if range.start == 0 {
            self.abort(transfer.open.take());
            state.base = Some(source.clone());
            state.extents = Extents::new(range.end);
            state.clean = None;
            state.ahead.begin_again();
        } else {
            state.extents.grow(range.clone());
        }
        self.changed(&mut state, range.end..range.end);
        Ok(Some(Taken { range, version: state.version }))
    }

    fn may_take(&self, state: &State, source: &Base, range: &Range<u64>) -> bool {
        let store = self.shared.bucket.capabilities();
        let by_parts = matches!(parts::way(range.end, &self.grid, &store), Way::Parts(_));
        let large = range.end - range.start >= self.shared.part_bytes || range.end == source.size;
        let goes_on =
            state.base.as_ref() == Some(source) && state.extents.ends_with_base(range.start);
        let free = state.mode == Mode::Own
            && !state.discarded
            && state.ready.is_none()
            && !state.ahead.running;
        store.part_copy && by_parts && large && free && (range.start == 0 || goes_on)
    }

    /// Copies what was just taken into an upload of ours, which the next [`Staged::upload`]
    /// completes. Create, a request per part, and a HEAD of the source for stores that don't hold
    /// copies of parts to its ETag.
    ///
    /// Dropping the future stops the waiting, not the copying. An error: the copy failed, and the
    /// file was written meanwhile, so that it could not be made what it was.
    pub async fn copy_taken(&self, taken: Taken) -> Result<Copied, WriteError> {
        let me = self.me.upgrade().ok_or(BucketError::NotFound)?;
        let died = Err(WriteError::disk(libc::EIO, "the copy's task died"));
        let work = async move {
            match me.copy_in_turn().await {
                Ok(()) => Ok(Copied::Done),
                Err(error) => me.give_back(&taken, error),
            }
        };
        self.shared.tasks.spawn(work).await.unwrap_or(died)
    }

    /// The object of another key of which bytes are still missing here.
    pub fn source(&self) -> Option<Key> {
        let state = self.state.lock();
        let base = state.base.as_ref().filter(|base| base.key != state.key)?;
        (!state.extents.is_complete()).then(|| base.key.clone())
    }

    async fn copy_in_turn(&self) -> Result<(), WriteError> {
        let _closing = self.hold_ahead();
        let mut transfer = self.transfer.lock().await;
        let copied = self.copy_parts(&mut transfer).await;
        copied.map_err(|setback| {
            // A late copy must not mix with what is sent instead.
            self.abort(transfer.open.take());
            match setback {
                Setback::Failed(error) => error,
                Setback::Changed | Setback::Gone => {
                    WriteError::disk(libc::EBUSY, "the file changed while it was copied")
                }
            }
        })
    }

    async fn copy_parts(&self, transfer: &mut Transfer) -> Result<(), Setback> {
        let snapshot = self.snapshot_of(&mut self.state.lock())?;
        let Some(source) = snapshot.base.clone() else { return Err(Setback::Changed) };
        let count = self.grid.count(snapshot.size).ok_or(Setback::Changed)?;
        let upload = self.multipart(transfer, &snapshot.key, &snapshot.metadata).await?;
        self.send_parts(upload, &snapshot, count).await?;
        let now = self.shared.bucket.head(&source.key).await?;
        if now.etag == source.etag { Ok(()) } else { Err(BucketError::Precondition.into()) }
    }

    fn give_back(&self, taken: &Taken, error: WriteError) -> Result<Copied, WriteError> {
        let mut state = self.state.lock();
        if state.version != taken.version || state.discarded {
            return Err(error);
        }
        tracing::info!(key = %state.key, %error, "not copied on the server");
        self.truncate_in(&mut state, taken.range.start)?;
        Ok(Copied::Refused)
    }
}
