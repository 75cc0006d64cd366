//! A staged file becomes an object, whole.
//!
//! Owns the order of an upload's steps, and what is kept of one that failed. Does not own which
//! parts are sent and which not (`parts`), nor how they are (`multipart`). What holds and why is
//! told in `write`.

use std::io;

use super::error::WriteError;
use super::parts::{self, Way};
use super::shared::Counters;
use super::staged::Staged;
use super::staging::Mark;
use super::state::{Base, Clean, Mode, Snapshot, State, Sum, Uploaded};
use super::transfer::{Setback, Transfer};
use crate::bucket::{BucketError, Condition};
use crate::types::ETag;

/// How often an upload begins again because the file was cut or renamed under it, or the store lost
/// its parts. Each time has its own cause, so more than a few means a fight nobody wins.
pub(super) const ATTEMPTS_MAX: usize = 4;

/// Whether an upload failed before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Try {
    First,
    Again,
}

impl Staged {
    /// Makes the staged file the object at its key, whole or not at all, and returns what it made.
    /// If the file is not dirty: the last result, and no request. Calls for one file run one after
    /// another.
    ///
    /// One PUT of a small file; else create, a request per part that the store lacks, complete.
    /// Dropping the future stops the waiting, not the upload; [`Staged::last_uploaded`] tells
    /// later. A conditional call that waited for another upload of this file asks for that one's
    /// version. After an error the file is dirty as before. `NotFound`: it was discarded.
    pub async fn upload(&self, condition: &Condition) -> Result<Uploaded, WriteError> {
        self.upload_as(condition, Try::First).await
    }

    /// The same after an upload that failed. What refuses it may be what that one made, whose
    /// answer was lost: it is found by its bytes. Cost of a refusal: 1 HEAD; a GET of the object if
    /// its size is the same, once for each version.
    pub async fn upload_again(&self, condition: &Condition) -> Result<Uploaded, WriteError> {
        self.upload_as(condition, Try::Again).await
    }

    async fn upload_as(&self, condition: &Condition, a: Try) -> Result<Uploaded, WriteError> {
        let gone = || WriteError::from(BucketError::NotFound);
        let before = self.last_uploaded().map(|uploaded| uploaded.etag);
        if let Some(unchanged) = self.unchanged(&self.state.lock()) {
            return Ok(unchanged);
        }
        let (me, condition) = (self.me.upgrade().ok_or_else(gone)?, condition.clone());
        let work = async move { me.upload_in_turn(condition, before, a).await };
        let died = Err(WriteError::disk(libc::EIO, "the upload's task died"));
        self.shared.tasks.spawn(work).await.unwrap_or(died)
    }

    /// Waits for whatever is being sent of this file. Together with [`Staged::discard`] or
    /// [`Staged::set_key`] before it: nothing more of the old key arrives in the bucket afterwards.
    pub async fn settled(&self) {
        drop(self.transfer.lock().await);
    }

    /// Compares a file that the kernel wrote with what was uploaded or prepared, byte for byte by
    /// checksum; where they differ it is dirty and not prepared. Needed once the last descriptor is
    /// gone: a store to a shared mapping may leave no other sign. Reads what was uploaded since the
    /// kernel writes; no request.
    pub async fn recheck(&self) -> Result<(), WriteError> {
        let _turn = self.transfer.lock().await;
        let Some(sums) = self.sums_to_check(&self.state.lock()) else { return Ok(()) };
        let mut start = 0;
        for sum in sums {
            let range = start..start + sum.len;
            start = range.end;
            // Without a checksum it was copied before the kernel wrote: its first store shows.
            if sum.crc.is_some() && self.checksum(range).await? != sum.crc {
                let mut state = self.state.lock();
                state.version += 1;
                self.recharge(&mut state);
                return Ok(());
            }
        }
        Ok(())
    }

    /// What a file that the kernel writes is made of, if that is in the store as far as we know.
    fn sums_to_check(&self, state: &State) -> Option<Vec<Sum>> {
        let prepared = state.ready.as_ref().filter(|_| self.is_prepared_in(state));
        let clean = state.clean.as_ref().filter(|_| !self.is_dirty_in(state));
        let sums = prepared.map(|ready| &ready.sums).or(clean.map(|clean| &clean.sums));
        sums.filter(|_| state.mode == Mode::Passthrough).cloned()
    }

    async fn upload_in_turn(
        &self,
        condition: Condition,
        before: Option<ETag>,
        a: Try,
    ) -> Result<Uploaded, WriteError> {
        let _closing = self.hold_ahead();
        let mut transfer = self.transfer.lock().await;
        let condition = self.condition_now(condition, before);
        self.counted(self.upload_now(&mut transfer, &condition, a)).await
    }

    pub(super) async fn counted<T>(
        &self,
        work: impl Future<Output = Result<T, WriteError>>,
    ) -> Result<T, WriteError> {
        let _turn = self.shared.uploads.acquire().await; // never closed
        let counters = &self.shared.counters;
        Counters::add(&counters.uploads_running, 1);
        let result = work.await;
        Counters::sub(&counters.uploads_running, 1);
        let outcome =
            if result.is_ok() { &counters.uploads_done } else { &counters.uploads_failed };
        Counters::add(outcome, 1);
        result
    }

    async fn upload_now(
        &self,
        transfer: &mut Transfer,
        condition: &Condition,
        a: Try,
    ) -> Result<Uploaded, WriteError> {
        let tried_at = self.state.lock().tried_at.clone();
        for _ in 0..ATTEMPTS_MAX {
            let snapshot = match self.snapshot()? {
                Ok(snapshot) => snapshot,
                Err(unchanged) => return Ok(unchanged),
            };
            match self.attempt(transfer, &snapshot, condition).await {
                Ok((etag, sums)) => return Ok(self.publish(snapshot, etag, sums)),
                Err(Setback::Changed) => {}
                Err(Setback::Gone) => self.abort(transfer.open.take()),
                Err(Setback::Failed(error)) => {
                    let may_be_made = a == Try::Again && tried_at.as_ref() == Some(&snapshot.key);
                    if may_be_made
                        && error.is_refusal()
                        && let Ok(Some((etag, sums))) = self.find_made(&snapshot).await
                    {
                        self.abort(transfer.open.take());
                        return Ok(self.publish(snapshot, etag, sums));
                    }
                    self.keep_or_abort(transfer, &error);
                    return Err(error);
                }
            }
        }
        Err(WriteError::disk(libc::EBUSY, "the file changed under every attempt to upload it"))
    }

    async fn attempt(
        &self,
        transfer: &mut Transfer,
        snapshot: &Snapshot,
        condition: &Condition,
    ) -> Result<(ETag, Vec<Sum>), Setback> {
        if let Some(done) = self.spare(transfer, snapshot, condition).await? {
            return Ok(done);
        }
        match parts::way(snapshot.size, &self.grid, &self.shared.bucket.capabilities()) {
            Way::Put => {
                self.abort(transfer.open.take());
                self.put(snapshot, condition).await
            }
            Way::Parts(count) => {
                let upload = self.multipart(transfer, &snapshot.key, &snapshot.metadata).await?;
                self.send_parts(upload, snapshot, count).await?;
                self.complete_parts(transfer, snapshot, condition).await
            }
            Way::TooLarge => {
                Err(WriteError::disk(libc::EFBIG, "no object can be so large here").into())
            }
        }
    }

    async fn put(
        &self,
        snapshot: &Snapshot,
        condition: &Condition,
    ) -> Result<(ETag, Vec<Sum>), Setback> {
        let Snapshot { key, metadata, size, .. } = snapshot;
        self.bring(0..*size).await?;
        let body = self.read_whole(*size).await?;
        self.check_wanted(snapshot)?;
        let written = self.shared.bucket.put(key, body.bytes, condition, metadata).await?;
        Counters::add(&self.shared.counters.bytes_sent, *size);
        Ok((written.etag, vec![Sum { len: *size, crc: Some(body.crc) }]))
    }

    /// The object that has the very bytes, if there is one.
    async fn find_made(&self, snapshot: &Snapshot) -> Result<Option<(ETag, Vec<Sum>)>, WriteError> {
        let Snapshot { key, size, .. } = snapshot;
        self.check_wanted(snapshot).map_err(|_| BucketError::NotFound)?;
        let bucket = &self.shared.bucket;
        let there = bucket.head(key).await?;
        let other = self.state.lock().compared.clone();
        if there.size != *size || other.as_ref() == Some(&there.etag) || !self.is_complete() {
            return Ok(None);
        }
        let Some(crc) = self.checksum(0..*size).await? else { return Ok(None) };
        let Some(etag) = bucket.find_same(key, *size, crc).await? else {
            self.state.lock().compared = Some(there.etag);
            return Ok(None);
        };
        Ok(Some((etag, vec![Sum { len: *size, crc: Some(crc) }])))
    }

    /// The file as it is now; or what was uploaded, if that is the same.
    fn snapshot(&self) -> Result<Result<Snapshot, Uploaded>, WriteError> {
        let mut state = self.state.lock();
        if state.discarded {
            return Err(BucketError::NotFound.into());
        }
        if let Some(unchanged) = self.unchanged(&state) {
            return Ok(Err(unchanged));
        }
        state.tried_at = Some(state.key.clone());
        self.snapshot_of(&mut state).map(Ok)
    }

    pub(super) fn snapshot_of(&self, state: &mut State) -> Result<Snapshot, WriteError> {
        let modified = self.modified_of(state)?;
        let mark = self.mark_in(state)?;
        Ok(Snapshot {
            version: state.version,
            mark,
            modified,
            size: self.disk.size()?,
            key: state.key.clone(),
            metadata: state.metadata.clone(),
            base: state.base.clone(),
            sums: state.clean.as_ref().map(|clean| clean.sums.clone()).unwrap_or_default(),
        })
    }

    /// Marks the file, so that what the kernel writes from now on shows. `None` in our own mode,
    /// and where the kernel wrote meanwhile.
    pub(super) fn mark_in(&self, state: &mut State) -> io::Result<Option<Mark>> {
        if state.mode == Mode::Own {
            return Ok(None);
        }
        // A mark that stands is worth keeping: what was noted under it stays known.
        if let Some(mark) = self.standing_mark(state) {
            return Ok(Some(mark));
        }
        // Within one tick of the clock the new mark may be the same as one that no longer stood:
        // from here on the version tells.
        state.version += 1;
        let modified = self.modified_of(state)?;
        let mark = self.disk.mark()?;
        if let Some(mark) = &mark {
            (state.modified, state.modified_on_disk) = (modified, Some(mark.modified()));
        }
        Ok(mark)
    }

    fn standing_mark(&self, state: &State) -> Option<Mark> {
        let clean = state.clean.as_ref().and_then(|clean| clean.mark);
        let ready = state.ready.as_ref().and_then(|ready| ready.mark);
        [clean, ready].into_iter().flatten().find(|mark| self.disk.is_as_marked(mark))
    }

    fn unchanged(&self, state: &State) -> Option<Uploaded> {
        let clean = state.clean.as_ref().filter(|_| !state.discarded)?;
        (!self.is_dirty_in(state)).then(|| clean.object.clone())
    }

    /// The object is made: what the snapshot knew is clean now.
    fn publish(&self, snapshot: Snapshot, etag: ETag, sums: Vec<Sum>) -> Uploaded {
        let Snapshot { version, mark, modified, size, key, .. } = snapshot;
        let object = Uploaded { etag: etag.clone(), size, modified };
        let mut state = self.state.lock();
        self.note_uploaded(&mut state, version, mark.as_ref());
        state.base = Some(Base { key: key.clone(), etag, size });
        state.extents.published(size);
        state.clean = Some(Clean { version, key, mark, object: object.clone(), sums });
        state.published = Some(object.clone());
        state.tried_at = None;
        state.ready = None;
        state.ahead.begin_again();
        self.recharge(&mut state);
        object
    }

    /// So that the next daemon knows, should this one be killed.
    pub(super) fn note_uploaded(&self, state: &mut State, version: u64, mark: Option<&Mark>) {
        let noted = match (state.mode, mark) {
            (Mode::Passthrough, Some(mark)) => self.disk.note_uploaded(mark),
            // Our own writes hold the lock, as we do: of this version it is whole.
            (Mode::Own, _) if state.version == version && state.extents.is_complete() => {
                let mark = self.disk.mark();
                mark.and_then(|mark| mark.map_or(Ok(()), |mark| self.disk.note_uploaded(&mark)))
            }
            _ => return,
        };
        if let Err(error) = noted {
            tracing::warn!(%error, "a staged file could not be marked as uploaded");
        }
    }

    pub(super) fn check_wanted(&self, snapshot: &Snapshot) -> Result<(), Setback> {
        let state = self.state.lock();
        if state.discarded {
            return Err(BucketError::NotFound.into());
        }
        if state.key == snapshot.key { Ok(()) } else { Err(Setback::Changed) }
    }

    fn condition_now(&self, condition: Condition, before: Option<ETag>) -> Condition {
        let now = self.last_uploaded().map(|uploaded| uploaded.etag);
        match now {
            Some(now) if condition != Condition::Always && before.as_ref() != Some(&now) => {
                Condition::IfMatch(now)
            }
            _ => condition,
        }
    }
}
