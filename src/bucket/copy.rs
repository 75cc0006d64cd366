//! Server-side copies: in one request where the store can, else by parts.
//!
//! By parts is for objects over the store's limit on one copy, and for conditions on the
//! destination, which more stores honour on completing an upload than on copying.

use crate::bucket::error::BucketError;
use crate::bucket::store::{Condition, Metadata, ObjectInfo, Written};
use crate::bucket::{Bucket, Operation};
use crate::types::{ETag, Key};

/// The size of a copied part: nothing passes through us, and 10,000 of them are S3's 5 TiB.
const PART_BYTES: u64 = 512 << 20;

impl Bucket {
    /// Copies `from`, of the version `from_etag` if given, with new metadata. One request; by
    /// parts: 3 and one for each further 512 MiB. [`BucketError::Precondition`] if the condition on
    /// the destination failed or the source changed. [`BucketError::Unsupported`] if the store
    /// can't copy.
    pub async fn copy(
        &self,
        from: &Key,
        from_etag: Option<&ETag>,
        to: &Key,
        condition: &Condition,
        metadata: &Metadata,
    ) -> Result<Written, BucketError> {
        let can = self.capabilities();
        if *condition != Condition::Always && !can.copy_condition {
            return self.copy_by_parts(from, from_etag, to, condition, metadata).await;
        }
        if let (Some(etag), false) = (from_etag, can.replace_if_match) {
            // The best that such a store allows: it may still change between this look and the
            // copy.
            if self.head(from).await?.etag != *etag {
                return Err(BucketError::Precondition);
            }
        }
        let stamp = self.stamp(condition, metadata);
        let store = &self.caller.store;
        let ask = || store.copy(from, from_etag, to, condition, &stamp.metadata);
        let outcome = self.caller.call(Operation::Copy, 0, ask).await;
        match self.settle_copy(to, outcome, &stamp).await {
            Err(BucketError::Unsupported(_)) if can.part_copy => {
                self.copy_by_parts(from, from_etag, to, condition, metadata).await
            }
            result => result,
        }
    }

    async fn copy_by_parts(
        &self,
        from: &Key,
        from_etag: Option<&ETag>,
        to: &Key,
        condition: &Condition,
        metadata: &Metadata,
    ) -> Result<Written, BucketError> {
        let info = self.head(from).await?;
        if from_etag.is_some_and(|etag| *etag != info.etag) {
            return Err(BucketError::Precondition);
        }
        if info.size == 0 {
            return self.put(to, bytes::Bytes::new(), condition, metadata).await;
        }
        if !self.capabilities().part_copy {
            return Err(BucketError::Unsupported("copy under a condition"));
        }
        let upload = self.create_multipart(to, metadata).await?;
        let result = self.copy_parts(from, &info, to, &upload, condition).await;
        if matches!(&result, Err(error) if !error.is_transient()) {
            // Best effort: what stays behind is invisible, and aborted by the bucket's own rules.
            let _ = self.abort_multipart(to, &upload).await;
        }
        result
    }

    async fn copy_parts(
        &self,
        from: &Key,
        info: &ObjectInfo,
        to: &Key,
        upload: &str,
        condition: &Condition,
    ) -> Result<Written, BucketError> {
        let mut parts = Vec::new();
        for (start, number) in (0..info.size).step_by(PART_BYTES as usize).zip(1..) {
            let range = start..(start + PART_BYTES).min(info.size);
            let part = self.upload_part_copy(to, upload, number, from, &info.etag, range).await?;
            parts.push(part);
        }
        self.complete_multipart(to, upload, &parts, condition).await
    }
}
