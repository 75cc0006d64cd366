//! Uploads by parts: begun, sent, copied, completed, aborted.
//!
//! Owns the requests of one upload and what is known of its parts. Does not own when an upload
//! begins and ends (`uploader`, `ahead`), nor which part needs what (`parts`).

use std::ops::Range;
use std::sync::Arc;

use futures::{StreamExt, stream};
use parking_lot::Mutex;

use super::bodies::PartBody;
use super::error::WriteError;
use super::parts::{self, Copying, SentPart, Step};
use super::shared::Counters;
use super::staged::Staged;
use super::state::{Snapshot, Sum};
use super::transfer::{Multipart, Setback, Target, Transfer};
use crate::bucket::{BucketError, Condition, Metadata};
use crate::types::{ETag, Key};

impl Staged {
    /// The upload that is under way, if it is the right one, or a new one.
    pub(super) async fn multipart<'a>(
        &self,
        transfer: &'a mut Transfer,
        key: &Key,
        metadata: &Metadata,
    ) -> Result<&'a mut Multipart, Setback> {
        let fits = |target: &Target| target.key == *key && target.metadata == *metadata;
        let open = match transfer.open.take() {
            Some(open) if fits(&open.target) => open,
            other => {
                self.abort(other);
                let id = self.shared.bucket.create_multipart(key, metadata).await?;
                let (key, metadata) = (key.clone(), metadata.clone());
                let target = Target { key, metadata, id, unanswered: Mutex::default() };
                Multipart { target: Arc::new(target), sent: Vec::new() }
            }
        };
        Ok(transfer.open.insert(open))
    }

    /// Sees to it that the store has every part of the snapshot.
    pub(super) async fn send_parts(
        &self,
        upload: &mut Multipart,
        snapshot: &Snapshot,
        count: u32,
    ) -> Result<(), Setback> {
        upload.sent.resize(count as usize, None);
        let target = upload.target.clone();
        let plan = self.plan(&upload.sent, snapshot);
        let kept = upload.sent.len() - plan.len();
        for (index, _, step) in &plan {
            if matches!(step, Step::Copy | Step::Send) {
                upload.forget(*index);
            }
        }
        Counters::add(&self.shared.counters.parts_kept, kept as u64);
        let parts = plan
            .into_iter()
            .map(|(index, range, step)| self.part(&target, snapshot, index, range, step));
        let mut parts = stream::iter(parts).buffer_unordered(self.shared.parallel_parts);
        while let Some(done) = parts.next().await {
            if let (index, Some(part)) = done? {
                upload.sent[index as usize] = Some(part);
                self.note_begun(upload);
            }
        }
        Ok(())
    }

    /// What has to be done about each part, but for those that need nothing.
    fn plan(&self, sent: &[Option<SentPart>], snapshot: &Snapshot) -> Vec<(u32, Range<u64>, Step)> {
        let copies = self.copies_from(snapshot);
        let mut state = self.state.lock();
        // What is known of the base must be known of the one that is copied from.
        let possible = copies && state.base == snapshot.base;
        let copying = if possible { Copying::Possible } else { Copying::Impossible };
        let mut plan = Vec::new();
        for (index, sent) in (0..).zip(sent) {
            // Only an empty file has a part where the grid has none.
            let range = self.grid.part(index, snapshot.size).unwrap_or_default();
            let step = parts::step(range.clone(), sent.as_ref(), &state.extents, copying);
            if step == Step::Copy {
                // Decided, so from here on a write into it is a change after the fact.
                state.extents.sending(range.clone());
            }
            if step != Step::Keep {
                plan.push((index, range, step));
            }
        }
        plan
    }

    /// Whether the store copies parts out of the snapshot's base: S3 does so of no small object.
    fn copies_from(&self, snapshot: &Snapshot) -> bool {
        let store = self.shared.bucket.capabilities();
        store.part_copy && snapshot.base.as_ref().is_some_and(|base| base.size > store.part_min)
    }

    /// Carries out one step; `None`: the store had the part already.
    async fn part(
        &self,
        target: &Target,
        snapshot: &Snapshot,
        index: u32,
        range: Range<u64>,
        step: Step,
    ) -> Result<(u32, Option<SentPart>), Setback> {
        if let Step::Check(crc) = step
            && self.checksum(range.clone()).await? == Some(crc)
        {
            Counters::add(&self.shared.counters.parts_kept, 1);
            return Ok((index, None));
        }
        if step == Step::Copy
            && let Some(part) = self.copy_part(target, snapshot, index, &range).await?
        {
            return Ok((index, Some(part)));
        }
        self.bring(range.clone()).await?;
        let body = self.read_part(range.clone()).await?;
        let sum = Sum { len: range.end - range.start, crc: Some(body.crc) };
        if self.copies_from(snapshot)
            && sum.len > 0
            && snapshot.sums.get(index as usize) == Some(&sum)
        {
            // The kernel wrote somewhere, not here: the last object has this very part.
            if let Some(copied) = self.copy_part(target, snapshot, index, &range).await? {
                return Ok((index, Some(SentPart { crc: sum.crc, ..copied })));
            }
        }
        Ok((index, Some(self.send_part(target, index, body).await?)))
    }

    /// A part out of the base. `None` if the base is gone but all its bytes are here, so that they
    /// can be sent.
    pub(super) async fn copy_part(
        &self,
        target: &Target,
        snapshot: &Snapshot,
        index: u32,
        range: &Range<u64>,
    ) -> Result<Option<SentPart>, Setback> {
        let Some(base) = &snapshot.base else { return Ok(None) };
        let (bucket, Target { key, id, .. }) = (&self.shared.bucket, target);
        let copied =
            bucket.upload_part_copy(key, id, index + 1, &base.key, &base.etag, range.clone());
        match copied.await {
            Ok(etag) => {
                Counters::add(&self.shared.counters.parts_copied, 1);
                Ok(Some(SentPart { etag, len: range.end - range.start, crc: None }))
            }
            Err(BucketError::Precondition | BucketError::NotFound) => {
                let here = self.state.lock().extents.missing(range.clone()).next().is_none();
                if here { Ok(None) } else { Err(BucketError::Precondition.into()) }
            }
            Err(error) => Err(error.into()),
        }
    }

    pub(super) async fn send_part(
        &self,
        target: &Target,
        index: u32,
        body: PartBody,
    ) -> Result<SentPart, Setback> {
        let (crc, len) = (body.crc, body.bytes.len() as u64);
        let other = target.unanswered.lock().insert(index, crc).is_some_and(|other| other != crc);
        if other {
            return Err(Setback::Gone); // rather than let a late request mix with this one
        }
        let (bucket, number) = (&self.shared.bucket, index + 1);
        match bucket.upload_part(&target.key, &target.id, number, body.bytes).await {
            Ok(etag) => {
                target.unanswered.lock().remove(&index);
                Counters::add(&self.shared.counters.parts_sent, 1);
                Counters::add(&self.shared.counters.bytes_sent, len);
                Ok(SentPart { etag, len, crc: Some(crc) })
            }
            Err(BucketError::NotFound) => Err(Setback::Gone),
            Err(error) => Err(error.into()),
        }
    }

    pub(super) async fn complete_parts(
        &self,
        transfer: &mut Transfer,
        snapshot: &Snapshot,
        condition: &Condition,
    ) -> Result<(ETag, Vec<Sum>), Setback> {
        let open = transfer.open.as_ref().ok_or(Setback::Gone)?;
        let (etags, sums) = open.made_of();
        self.check_wanted(snapshot)?;
        let (bucket, Target { key, id, .. }) = (&self.shared.bucket, &*open.target);
        match bucket.complete_multipart(key, id, &etags, condition).await {
            Ok(written) => {
                transfer.open = None;
                Ok((written.etag, sums))
            }
            Err(BucketError::NotFound) => Err(Setback::Gone),
            Err(error) => Err(error.into()),
        }
    }

    /// After a failure: parts that the store has are worth a retry, unless it said no.
    pub(super) fn keep_or_abort(&self, transfer: &mut Transfer, error: &WriteError) {
        let keep = match error {
            WriteError::Disk { .. } | WriteError::Bucket(BucketError::Precondition) => true,
            WriteError::Bucket(error) => error.is_transient(),
        };
        if !keep {
            self.abort(transfer.open.take());
        }
    }

    pub(super) fn abort(&self, open: Option<Multipart>) {
        let Some(Multipart { target, .. }) = open else { return };
        self.shared.abort(target.key.clone(), target.id.clone());
    }

    /// Aborts an upload that will not be completed: of a discarded file, or for an old key.
    pub(super) fn abort_stale(&self) {
        if self.transfer.try_lock().is_ok_and(|transfer| transfer.open.is_none()) {
            return;
        }
        let Some(me) = self.me.upgrade() else { return };
        self.shared.tasks.spawn(async move {
            let mut transfer = me.transfer.lock().await;
            let wanted = |open: &mut Multipart| {
                let state = me.state.lock();
                !state.discarded && state.key == open.target.key
            };
            let stale = transfer.open.take_if(|open| !wanted(open));
            me.abort(stale);
        });
    }

    pub(super) fn abort_at_drop(&mut self) {
        let open = self.transfer.get_mut().open.take();
        self.abort(open);
    }
}
