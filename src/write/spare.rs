//! What need not go up again: a file that was written anew with the content that its object has, or
//! with that and more behind it.
//!
//! Owns the comparison, by checksums of what was uploaded before, and the requests that follow:
//! HEAD alone where nothing changed, a copy on the server and the tail where the file only grew.
//! Does not own the way that all other uploads go (`uploader`).
//!
//! What must hold:
//! 1. Nothing is taken for unchanged without a HEAD of this upload that shows the very object.
//! 2. The object's content is known by a checksum of every byte, as it went through our hands.
//! 3. A part copied out of the base is copied under its ETag; if that is gone, all is sent.

use std::sync::Arc;

use super::prepare::whole_crc;
use super::shared::Counters;
use super::staged::Staged;
use super::state::{Base, Clean, Snapshot, Sum};
use super::transfer::{Multipart, Setback, Target, Transfer};
use crate::bucket::{BucketError, Condition};
use crate::types::ETag;

/// Behind a base of at least this part of what one PUT takes (8 MiB) only the tail is sent: below,
/// one PUT takes no longer than the four requests.
const GROWN_PART: u64 = 2;
/// The most that stores copy as one part, in bytes.
const COPY_BYTES_MAX: u64 = 5 << 30;

/// The content of an object that an upload of ours made: its length and checksums.
#[derive(Debug, Clone)]
pub struct Content(Arc<[Sum]>);

impl Content {
    /// In bytes.
    pub fn size(&self) -> u64 {
        self.0.iter().map(|sum| sum.len).sum()
    }

    pub(super) fn sums(&self) -> Vec<Sum> {
        self.0.to_vec()
    }
}

impl Staged {
    /// What the last object that an upload of this file made holds; `None` where the store copied
    /// some of it, unseen.
    pub fn content(&self) -> Option<Content> {
        let state = self.state.lock();
        let sums = &state.clean.as_ref()?.sums;
        whole_crc(sums).filter(|_| !sums.is_empty()).map(|_| Content(sums.clone().into()))
    }

    /// The bucket has an earlier version of the file, as `base` now: what of that this one begins
    /// with is not sent. Of a file that has bytes of another base nothing changes.
    pub fn follow(&self, base: Base, content: &Content) {
        let mut state = self.state.lock();
        if state.extents.keeps_base() || !state.extents.is_complete() || base.key != state.key {
            return;
        }
        let no_more = state.version.wrapping_sub(1); // it is dirty, and stays so
        state.clean = Some(Clean::of(&base, no_more, state.modified, content.sums()));
        state.base = Some(base);
    }

    /// Makes the snapshot the object without sending what the store has, if that is possible: then
    /// the ETag, and what the object is made of.
    pub(super) async fn spare(
        &self,
        transfer: &mut Transfer,
        snapshot: &Snapshot,
        condition: &Condition,
    ) -> Result<Option<(ETag, Vec<Sum>)>, Setback> {
        let sent = |open: &Multipart| open.sent.iter().any(Option::is_some);
        let (Some(base), Some(crc)) = (&snapshot.base, whole_crc(&snapshot.sums)) else {
            return Ok(None);
        };
        let known: u64 = snapshot.sums.iter().map(|sum| sum.len).sum();
        let comparable = known == base.size && base.size > 0 && base.size <= snapshot.size;
        let same_name = base.key == snapshot.key && snapshot.metadata.is_empty();
        // A part is sent ahead only if it is not the object's: then the file has changed.
        if !comparable || !same_name || transfer.open.as_ref().is_some_and(sent) {
            return Ok(None);
        }
        let grown = snapshot.size > base.size;
        if grown && !self.pays_to_copy(base, snapshot.size) {
            return Ok(None);
        }
        if !self.begins_as(&snapshot.sums).await? {
            return Ok(None);
        }
        if grown {
            return self.send_tail(transfer, snapshot, base, crc, condition).await;
        }
        self.is_there(transfer, snapshot, base, condition).await
    }

    fn pays_to_copy(&self, base: &Base, size: u64) -> bool {
        let (store, put) = (self.shared.bucket.capabilities(), self.grid.put_bytes_max());
        let least = (put / GROWN_PART).max(store.part_min + 1);
        let copies = store.multipart && store.part_copy;
        copies && (least..=COPY_BYTES_MAX).contains(&base.size) && size - base.size <= put
    }

    /// Whether the file's first bytes have these checksums; reads up to the first difference.
    async fn begins_as(&self, sums: &[Sum]) -> Result<bool, Setback> {
        let mut start = 0;
        for sum in sums {
            let range = start..start + sum.len;
            start = range.end;
            {
                let mut state = self.state.lock();
                if state.extents.missing(range.clone()).next().is_some() {
                    return Ok(false);
                }
                state.extents.sending(range.clone());
            }
            if self.checksum(range).await? != sum.crc {
                return Ok(false);
            }
        }
        Ok(true)
    }

    async fn is_there(
        &self,
        transfer: &mut Transfer,
        snapshot: &Snapshot,
        base: &Base,
        condition: &Condition,
    ) -> Result<Option<(ETag, Vec<Sum>)>, Setback> {
        if *condition != Condition::Always {
            return Ok(None);
        }
        let there = match self.shared.bucket.head(&base.key).await {
            Ok(info) => info.etag == base.etag && info.size == base.size,
            Err(BucketError::NotFound | BucketError::WrongKind) => false,
            Err(error) => return Err(error.into()),
        };
        if !there {
            return Ok(None);
        }
        self.check_wanted(snapshot)?;
        self.abort(transfer.open.take());
        Counters::add(&self.shared.counters.uploads_spared, 1);
        Ok(Some((base.etag.clone(), snapshot.sums.clone())))
    }

    /// The base copied as one part, the tail sent as another. `None`: the base is gone.
    async fn send_tail(
        &self,
        transfer: &mut Transfer,
        snapshot: &Snapshot,
        base: &Base,
        crc: u64,
        condition: &Condition,
    ) -> Result<Option<(ETag, Vec<Sum>)>, Setback> {
        let body = self.read_part(base.size..snapshot.size).await?;
        self.abort(transfer.open.take()); // its numbers may be on their way with other bytes
        let open = self.multipart(transfer, &snapshot.key, &snapshot.metadata).await?;
        let target: Arc<Target> = open.target.clone();
        let tail = Sum { len: snapshot.size - base.size, crc: Some(body.crc) };
        let whole = Sum { len: base.size, crc: Some(crc) };
        let front = 0..base.size;
        let (copied, sent) = tokio::join!(
            self.copy_part(&target, snapshot, 0, &front),
            self.send_part(&target, 1, body),
        );
        let sums = vec![whole, tail];
        let (Ok(Some(copied)), Ok(sent)) = (copied, sent) else {
            self.abort(transfer.open.take());
            return Ok(None); // whatever it was, sending all of it meets it again, or not
        };
        open.sent = vec![Some(copied), Some(sent)];
        let (etag, _) = match self.complete_parts(transfer, snapshot, condition).await {
            Ok(done) => done,
            Err(setback) => {
                self.abort(transfer.open.take()); // cut otherwise than the grid: no use to others
                return Err(setback);
            }
        };
        // As one stretch: others are cut at the grid, and compared by their place in it.
        let whole = Sum { len: snapshot.size, crc: whole_crc(&sums) };
        Ok(Some((etag, vec![whole])))
    }
}
