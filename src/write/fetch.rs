//! Bytes of the base that a staged file lacks, brought when they are needed.
//!
//! Owns which ranges are asked for and where their bytes land. Does not own retries (`bucket`),
//! which also resumes a body that broke off.
//!
//! Dropping a fetch is safe: each frame is noted when it is in the file.

use std::ops::Range;

use futures::{StreamExt, TryStreamExt, stream};

use super::error::WriteError;
use super::shared::Counters;
use super::staged::Staged;
use super::state::{Base, Streak};
use crate::bucket::BucketError;

/// Blocks of one file that are fetched at a time.
const FETCHES_PER_FILE: usize = 8;

impl Staged {
    /// Fetches every byte that is missing: a GET per part's size.
    pub async fn complete(&self) -> Result<(), WriteError> {
        self.bring(0..u64::MAX).await
    }

    /// Sees to it that `range` is here: one GET per missing block, none if nothing is missing.
    /// [`BucketError::Precondition`] if the base is gone or has changed.
    pub(super) async fn bring(&self, range: Range<u64>) -> Result<(), WriteError> {
        if self.state.lock().extents.missing(range.clone()).next().is_none() {
            return Ok(());
        }
        let mut streak = self.fetching.lock().await;
        // Ends: each round brings what it asked for, or the base was replaced by an upload of ours,
        // or it fails.
        while let Some((base, wanted)) = self.next_fetches(&range, &mut streak) {
            let fetches = stream::iter(wanted).map(|wanted| self.fetch(&base, wanted));
            match fetches.buffer_unordered(FETCHES_PER_FILE).try_collect().await {
                Ok(()) => {}
                Err(WriteError::Bucket(BucketError::Precondition | BucketError::NotFound)) => {
                    if self.is_base(&base) {
                        return Err(BucketError::Precondition.into());
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Before `range` is written into a file of which too many small pieces are missing: brings
    /// what is around it, so that the write leaves no more pieces than there were.
    pub(super) async fn gather(&self, range: Range<u64>) -> Result<(), WriteError> {
        if !self.state.lock().extents.is_scattered() {
            return Ok(());
        }
        let part = self.shared.part_bytes;
        self.bring(range.start / part * part..range.end.div_ceil(part) * part).await
    }

    /// The next blocks to ask for, and of which object.
    fn next_fetches(
        &self,
        range: &Range<u64>,
        streak: &mut Streak,
    ) -> Option<(Base, Vec<Range<u64>>)> {
        let state = self.state.lock();
        let first = state.extents.missing(range.clone()).next()?;
        let base = state.base.clone()?;
        // A range of many blocks takes the largest at once.
        let part_bytes = self.shared.part_bytes;
        let many = range.end.min(base.size) - first.start > part_bytes;
        let block = if many { part_bytes } else { streak.block_at(first.start, part_bytes) };
        let mut blocks = Vec::new();
        let mut at = first.start;
        while blocks.len() < FETCHES_PER_FILE
            && at < range.end
            && let Some(next) = state.extents.next_fetch(at..range.end, block)
        {
            at = next.end.min((next.start / block + 1) * block);
            blocks.push(next.start..at);
        }
        streak.next = at;
        Some((base, blocks))
    }

    fn is_base(&self, base: &Base) -> bool {
        self.state.lock().base.as_ref() == Some(base)
    }

    async fn fetch(&self, base: &Base, wanted: Range<u64>) -> Result<(), WriteError> {
        let _permit = self.shared.fetches.acquire().await.expect("never closed");
        let bucket = &self.shared.bucket;
        let (info, mut body) = bucket.get(&base.key, wanted.clone(), Some(&base.etag)).await?;
        if info.etag != base.etag {
            return Err(BucketError::Precondition.into()); // a store that ignores If-Match
        }
        let mut at = wanted.start;
        while let Some(frame) = body.next().await {
            let frame = frame?;
            let frame = frame.slice(..frame.len().min((wanted.end - at) as usize));
            self.place(at, &frame)?;
            at += frame.len() as u64;
            Counters::add(&self.shared.counters.bytes_fetched, frame.len() as u64);
        }
        if at < wanted.end {
            let text = format!("a body ended at {at} of {wanted:?}");
            return Err(BucketError::Corrupt(text).into());
        }
        Ok(())
    }

    /// Puts a frame of the base into the file, but for what was written or cut meanwhile.
    fn place(&self, offset: u64, frame: &[u8]) -> std::io::Result<()> {
        let mut state = self.state.lock();
        let range = offset..offset + frame.len() as u64;
        let pieces: Vec<_> = state.extents.missing(range).collect();
        for piece in pieces {
            let data = &frame[(piece.start - offset) as usize..(piece.end - offset) as usize];
            self.disk.write(data, piece.start).1?;
            state.extents.fetched(piece);
        }
        Ok(())
    }
}
