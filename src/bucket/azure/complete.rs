//! How an upload becomes a blob, once. Azure has no uploads: it has blocks, of which each blob
//! keeps one list not yet committed, shared by all who write to that name and emptied by every
//! commit.
//!
//! Owns the protocol below. Does not own the names of blocks (`names`) nor requests (`client`).
//!
//! # Invariants
//!
//! 1. An upload's parts wait as blocks of a staging blob of its own: no other write touches them.
//! 2. The blob appears whole, in one Put Block List, which judges the condition.
//! 3. An upload is completed at most once, by whomever, however late.
//! 4. Any mount that holds the id may complete it, also after another died at it.
//!
//! # Protocol
//!
//! ```text
//!  1 commit the staging blob      if absent: one list of parts counts
//!  2 copy its bytes as blocks     onto the blob, under ids of this attempt, each sent once
//!  3 name the attempt in the      if it is unchanged: one attempt is ever named, and all its
//!    staging blob's metadata      blocks were there before it was
//!  4 commit the named blocks      under the condition, and only as uncommitted: Azure forgets
//!                                 them when it takes them, and when any other write is taken
//!  5 delete the staging blob
//! ```
//!
//! Whoever comes later finds the staging blob committed (goes on at 2), or an attempt named (goes
//! on at 4, with its blocks, not with others), or nothing (it is complete or aborted). 3 holds
//! since an attempt's blocks are never sent again once it is named: after they were taken, or
//! dropped by another write of the name, step 4 is refused for ever. A copy of step 2 that is late
//! finds the staging blob changed, or lands under ids that nobody commits. Dropped means that this
//! upload was overtaken: it counts as overwritten at once. Staging alone, then Copy Blob, would be
//! two requests less, but a completer that wakes after the file was made and deleted would bring it
//! back.
//!
//! Azure has no empty block. An empty part waits as one byte that stays in the staging blob, and
//! for an upload of no bytes at all 3 rests on the staging blob alone.
//!
//! Cost: 4 requests one after another and one for each 256 MiB, 8 of those at once.

use std::ops::Range;
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt, stream};

use crate::bucket::azure::client::{Client, Source};
use crate::bucket::azure::names::{self, Upload};
use crate::bucket::error::BucketError;
use crate::bucket::settle::NONCE;
use crate::bucket::store::{Condition, Metadata, Written};
use crate::clock::Clock;
use crate::types::{ETag, Key};

/// What one request copies: well within the time of a request, and 50,000 of them are 12 TiB.
const BLOCK_BYTES: u64 = 256 << 20;
/// Copies under way at once: the server moves the bytes, yet throttles an account that asks for
/// much.
const COPIES_MAX: usize = 8;
/// How often others may get ahead of a completion before it is given back to be asked again.
const ROUNDS_MAX: usize = 4;

/// Metadata of the staging blob: whose it is, the bytes of the blob to be, and the attempt that
/// counts.
const UPLOAD: &str = "trialfs-upload";
const SIZE: &str = "trialfs-size";
const ATTEMPT: &str = "trialfs-attempt";

/// An upload about to be completed.
pub struct Completion<'a> {
    pub client: &'a Client,
    pub clock: &'a Arc<dyn Clock>,
    pub key: &'a Key,
    pub upload: &'a Upload,
}

/// The staging blob as it was last seen.
struct Staged {
    etag: ETag,
    /// Of the blob to be.
    size: u64,
    attempt: Option<String>,
}

impl Completion<'_> {
    /// `parts` are the ids of the parts in their order. [`BucketError::NotFound`] if the upload is
    /// complete, overtaken, aborted, or lacks one of `parts`.
    pub async fn run(
        &self,
        parts: &[String],
        condition: &Condition,
    ) -> Result<Written, BucketError> {
        let staging = self.upload.staging_key(self.key);
        let mut staged = self.commit_staging(&staging, parts).await?;
        for _ in 0..ROUNDS_MAX {
            if let Some(attempt) = &staged.attempt {
                let ids = blocks(attempt, staged.size).map(|(id, _)| id).collect::<Vec<_>>();
                return self.commit(&staging, &ids, condition).await;
            }
            match self.attempt(&staging, &staged).await {
                Ok(attempt) => staged.attempt = Some(attempt),
                // Another completion named its own attempt, or is done.
                Err(BucketError::Precondition) => staged = self.look(&staging).await?,
                Err(error) => return Err(error),
            }
        }
        Err(BucketError::Unavailable("others are at this upload".to_owned()))
    }

    /// Step 1.
    async fn commit_staging(&self, staging: &Key, parts: &[String]) -> Result<Staged, BucketError> {
        if parts.is_empty() {
            return Err(BucketError::Invalid("an upload of no parts".to_owned()));
        }
        let lengths = parts.iter().map(|part| names::part_len(part));
        let lengths = lengths.collect::<Result<Vec<_>, _>>()?;
        let size = lengths.iter().sum();
        let filled = parts.iter().zip(&lengths).filter(|(_, len)| **len > 0 || size == 0);
        let ids: Vec<_> = filled.map(|(part, _)| part.clone()).collect();
        let (absent, mark) = (Condition::IfAbsent, self.marked(size, None));
        match self.client.commit_blocks(staging, &ids, &absent, &mark).await {
            Ok(etag) => Ok(Staged { etag, size, attempt: None }),
            Err(BucketError::Precondition) => self.look(staging).await,
            Err(error) => Err(error),
        }
    }

    /// The upload's own metadata and what we must remember of it.
    fn marked(&self, size: u64, attempt: Option<&str>) -> Metadata {
        let mut metadata = self.upload.metadata.clone();
        metadata.insert(UPLOAD.to_owned(), self.upload.ulid.clone());
        metadata.insert(SIZE.to_owned(), size.to_string());
        metadata.extend(attempt.map(|attempt| (ATTEMPT.to_owned(), attempt.to_owned())));
        metadata
    }

    async fn look(&self, staging: &Key) -> Result<Staged, BucketError> {
        let info = self.client.head(staging).await?;
        if info.metadata.get(UPLOAD) != Some(&self.upload.ulid) {
            return Err(BucketError::NotFound); // it is being aborted
        }
        let size = info.metadata.get(SIZE).and_then(|size| size.parse().ok());
        let size = size.ok_or_else(|| BucketError::Invalid("a staging blob's size".to_owned()))?;
        let attempt = info.metadata.get(ATTEMPT).cloned();
        Ok(Staged { etag: info.etag, size, attempt })
    }

    /// Steps 2 and 3.
    async fn attempt(&self, staging: &Key, staged: &Staged) -> Result<String, BucketError> {
        let attempt = format!("{:016x}", self.clock.random());
        let copy = |(id, range): (String, Range<u64>)| async move {
            let source = Source { key: staging, etag: &staged.etag, range };
            self.client.copy_block(self.key, &id, &source).await
        };
        let copies = stream::iter(blocks(&attempt, staged.size)).map(copy);
        copies.buffer_unordered(COPIES_MAX).try_collect::<()>().await?;
        let mark = self.marked(staged.size, Some(&attempt));
        self.client.set_metadata(staging, &staged.etag, &mark).await?;
        Ok(attempt)
    }

    /// Steps 4 and 5.
    async fn commit(
        &self,
        staging: &Key,
        ids: &[String],
        condition: &Condition,
    ) -> Result<Written, BucketError> {
        let metadata = &self.upload.metadata;
        let result = self.client.commit_blocks(self.key, ids, condition, metadata).await;
        let result = match result {
            Err(BucketError::Precondition) if self.is_there().await? => Err(BucketError::NotFound),
            result => result,
        };
        if matches!(result, Ok(_) | Err(BucketError::NotFound))
            && let Err(error) = self.client.delete(staging, None).await
            && error != BucketError::NotFound
        {
            tracing::warn!(key = %staging, %error, "what was staged for an upload is left over");
        }
        result.map(|etag| Written { etag })
    }

    /// Whether what stands in the way is this very upload, completed by another.
    async fn is_there(&self) -> Result<bool, BucketError> {
        let Some(nonce) = self.upload.metadata.get(NONCE) else { return Ok(false) };
        match self.client.head(self.key).await {
            Ok(info) => Ok(info.metadata.get(NONCE) == Some(nonce)),
            Err(BucketError::NotFound) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// The blocks of an attempt, with what each holds of the staging blob.
fn blocks(attempt: &str, size: u64) -> impl Iterator<Item = (String, Range<u64>)> {
    let starts = (0..size).step_by(BLOCK_BYTES as usize).zip(0..);
    let end = move |start: u64| (start + BLOCK_BYTES).min(size);
    starts.map(move |(start, index)| (names::final_id(attempt, index), start..end(start)))
}

/// Has Azure forget the parts of an upload. Two requests, three if none was committed.
pub async fn abort(client: &Client, key: &Key, upload: &Upload) -> Result<(), BucketError> {
    let staging = upload.staging_key(key);
    match client.delete(&staging, None).await {
        Err(BucketError::NotFound) => {}
        result => return result,
    }
    // Blocks that no list named go when an empty list is committed.
    match client.commit_blocks(&staging, &[], &Condition::IfAbsent, &Metadata::new()).await {
        Ok(_) | Err(BucketError::Precondition) => client.delete(&staging, None).await,
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_blocks_of_an_attempt_are_the_whole_blob_in_order() {
        for size in [0, 1, BLOCK_BYTES, BLOCK_BYTES + 1, 5 * BLOCK_BYTES - 1] {
            let mut end = 0;
            for (id, range) in blocks("a", size) {
                assert_eq!(
                    (id, range.start),
                    (names::final_id("a", (end / BLOCK_BYTES) as u32), end)
                );
                assert!(range.start < range.end && range.end - range.start <= BLOCK_BYTES);
                end = range.end;
            }
            assert_eq!(end, size);
        }
    }
}
