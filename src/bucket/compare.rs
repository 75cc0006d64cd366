//! Whether an object has certain bytes: an upload whose answer was lost is found again by them.
//!
//! Owns the comparison. Does not own what follows of it. Cost: 1 HEAD; if the size is the same a
//! GET for each [`COMPARE_BYTES`] too.

use super::{Bucket, BucketError};
use crate::types::{ETag, Key};

/// An object is compared in pieces of this size.
const COMPARE_BYTES: u64 = 8 << 20;

impl Bucket {
    /// The object's version, if it has `size` bytes with this CRC64NVME.
    pub async fn find_same(
        &self,
        key: &Key,
        size: u64,
        crc: u64,
    ) -> Result<Option<ETag>, BucketError> {
        let info = match self.head(key).await {
            Ok(info) if info.size == size => info,
            Ok(_) | Err(BucketError::NotFound | BucketError::WrongKind) => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc64Nvme);
        let mut at = 0;
        while at < info.size {
            let range = at..(at + COMPARE_BYTES).min(info.size);
            match self.get_bytes(key, range, Some(&info.etag)).await {
                Ok((_, body)) if !body.is_empty() => {
                    digest.update(&body);
                    at += body.len() as u64;
                }
                Ok(_) | Err(BucketError::NotFound | BucketError::Precondition) => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        Ok((digest.finalize() == crc).then_some(info.etag))
    }
}
