//! A staged file goes up and does not show: an upload with all its parts, for somebody else to
//! complete.
//!
//! Owns what is known of such an upload, and what becomes of the file once it is completed. Does
//! not own the sending (`multipart`), nor who completes or aborts it (the caller of
//! [`Staged::prepare`], from the moment that returns).
//!
//! What must hold:
//! 1. A prepared upload is never sent another part, reused or aborted from here: a record may name
//!    it.
//! 2. When an upload is prepared every byte of the file is here, and bytes that are here are never
//!    missing again. So the base may be replaced at any time without a read of the old one.
//! 3. What differs from the prepared content is noted apart from what was sent since, as more may
//!    be sent, ahead of the next upload, before this one is published.

use crc_fast::CrcAlgorithm;

use super::error::WriteError;
use super::staged::Staged;
use super::state::{Base, Clean, Prepared, Ready, Snapshot, State, Sum, Uploaded};
use super::transfer::{Setback, Transfer};
use super::uploader::ATTEMPTS_MAX;
use crate::bucket::BucketError;
use crate::types::ETag;

impl Staged {
    /// Sends what the store lacks as parts of one upload at the file's key, and does not complete
    /// it: nothing shows. Always by parts; an empty file is one empty part. If nothing changed
    /// since the last call: the same again, and no request.
    ///
    /// Create, and a request per part that was not sent ahead; before them a GET per missing part
    /// of the base. The file stays as dirty as it was, but no longer counts in the dirty bound. The
    /// upload belongs to the caller, who completes it or aborts it
    /// ([`Writer::abort`](super::Writer::abort)); after a change the next call makes another. A
    /// write that comes meanwhile may be in it or not: then [`Staged::is_prepared`] says no.
    ///
    /// Calls for one file, [`Staged::upload`] included, run one after another. Dropping the future
    /// stops the waiting, not the sending; the next call returns what was made. `NotFound`: it was
    /// discarded; `Unsupported`: the store has no uploads by parts; `Precondition`: bytes of the
    /// base are missing here, and gone there.
    pub async fn prepare(&self) -> Result<Prepared, WriteError> {
        if let Some(unchanged) = self.prepared_in(&self.state.lock()) {
            return Ok(unchanged);
        }
        let me = self.me.upgrade().ok_or(BucketError::NotFound)?;
        let died = Err(WriteError::disk(libc::EIO, "the upload's task died"));
        self.shared.tasks.spawn(async move { me.prepare_in_turn().await }).await.unwrap_or(died)
    }

    /// Whether the content, key and metadata are what the last [`Staged::prepare`] sent and nobody
    /// has published yet, as far as we know. No request.
    pub fn is_prepared(&self) -> bool {
        self.is_prepared_in(&self.state.lock())
    }

    /// The same, of one upload: whether the content is what was sent in it. No request.
    pub fn holds(&self, prepared: &Prepared) -> bool {
        self.awaits(prepared) && self.is_prepared()
    }

    /// Whether this is the last upload that was prepared, and nobody has published it yet, as far
    /// as we know. No request.
    pub fn awaits(&self, prepared: &Prepared) -> bool {
        let state = self.state.lock();
        state.ready.as_ref().is_some_and(|ready| ready.prepared.upload == prepared.upload)
    }

    /// The prepared upload was completed, by anyone, and is now the object `etag`: the new base. If
    /// the content is still what was prepared the file is clean, as after [`Staged::upload`]. No
    /// request.
    pub fn published(&self, prepared: &Prepared, etag: ETag) {
        let Prepared { key, size, modified, .. } = prepared.clone();
        let object = Uploaded { etag: etag.clone(), size, modified };
        let mut state = self.state.lock();
        match state.ready.take_if(|ready| ready.prepared.upload == prepared.upload) {
            Some(Ready { version, mark, sums, .. }) => {
                self.note_uploaded(&mut state, version, mark.as_ref());
                state.extents.prepared_is_base(size);
                let object = object.clone();
                state.clean = Some(Clean { version, key: key.clone(), mark, object, sums });
                if !state.ahead.running {
                    state.ahead.begin_again();
                }
            }
            // Of one that is not the last, it is not known any more what has changed since.
            None => {
                let now = self.disk.size().unwrap_or(size);
                state.extents.other_base(now);
                state.clean = None;
            }
        }
        state.base = Some(Base { key, etag, size });
        state.published = Some(object);
        self.recharge(&mut state);
    }

    pub(super) fn is_prepared_in(&self, state: &State) -> bool {
        state.ready.as_ref().is_some_and(|ready| {
            let target = (&ready.prepared.key, &ready.metadata) == (&state.key, &state.metadata);
            !state.discarded && target && self.is_still(state, ready.version, ready.mark.as_ref())
        })
    }

    fn prepared_in(&self, state: &State) -> Option<Prepared> {
        let ready = state.ready.as_ref().filter(|_| self.is_prepared_in(state))?;
        Some(ready.prepared.clone())
    }

    async fn prepare_in_turn(&self) -> Result<Prepared, WriteError> {
        let _closing = self.hold_ahead();
        let mut transfer = self.transfer.lock().await;
        self.counted(self.prepare_now(&mut transfer)).await
    }

    async fn prepare_now(&self, transfer: &mut Transfer) -> Result<Prepared, WriteError> {
        self.complete().await?;
        for _ in 0..ATTEMPTS_MAX {
            let snapshot = {
                let mut state = self.state.lock();
                if state.discarded {
                    return Err(BucketError::NotFound.into());
                }
                if let Some(unchanged) = self.prepared_in(&state) {
                    return Ok(unchanged);
                }
                self.snapshot_of(&mut state)?
            };
            match self.send_all(transfer, &snapshot).await {
                Ok((upload, sums)) => return Ok(self.note_prepared(snapshot, upload, sums)),
                Err(Setback::Changed) => {}
                Err(Setback::Gone) => self.abort(transfer.open.take()),
                Err(Setback::Failed(error)) => {
                    self.keep_or_abort(transfer, &error);
                    return Err(error);
                }
            }
        }
        Err(WriteError::disk(libc::EBUSY, "the file changed under every attempt to send it"))
    }

    /// The upload that then has all parts of the snapshot, and is nobody's until it is noted.
    async fn send_all(
        &self,
        transfer: &mut Transfer,
        snapshot: &Snapshot,
    ) -> Result<(Upload, Vec<Sum>), Setback> {
        if !self.shared.bucket.capabilities().multipart {
            return Err(BucketError::Unsupported("hold what does not show yet").into());
        }
        let too_large = || WriteError::disk(libc::EFBIG, "no object can be so large here");
        let count = self.grid.count(snapshot.size).ok_or_else(too_large)?.max(1);
        let open = self.multipart(transfer, &snapshot.key, &snapshot.metadata).await?;
        self.send_parts(open, snapshot, count).await?;
        let (parts, sums) = open.made_of();
        let upload = Upload { id: open.target.id.clone(), parts };
        self.check_wanted(snapshot)?;
        transfer.open = None;
        Ok((upload, sums))
    }

    /// From here on the upload is the caller's.
    fn note_prepared(&self, snapshot: Snapshot, upload: Upload, sums: Vec<Sum>) -> Prepared {
        let Snapshot { version, mark, modified, size, key, metadata, .. } = snapshot;
        let Upload { id, parts } = upload;
        let crc = whole_crc(&sums);
        let prepared = Prepared { key, upload: id, parts, size, crc, modified };
        let mut state = self.state.lock();
        state.extents.prepared();
        state.ready = Some(Ready { version, metadata, mark, prepared: prepared.clone(), sums });
        self.recharge(&mut state);
        prepared
    }
}

struct Upload {
    id: String,
    parts: Vec<String>,
}

/// The CRC64NVME of all stretches together, if that of each is known.
pub(super) fn whole_crc(sums: &[Sum]) -> Option<u64> {
    let join = |whole, sum: &Sum| {
        Some(crc_fast::checksum_combine(CrcAlgorithm::Crc64Nvme, whole, sum.crc?, sum.len))
    };
    // Joining takes 0.1 ms, and most files are one stretch.
    let Some((first, rest)) = sums.split_first() else { return Some(crc_fast::crc64_nvme(&[])) };
    rest.iter().try_fold(first.crc?, join)
}
