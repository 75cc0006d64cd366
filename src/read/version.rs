//! The words of the read path: what is read ([`Version`]) and how it fails ([`ReadError`]).
//!
//! Owns no behaviour beyond the mapping of a store's errors. Does not own errnos (`fs`).

use std::io;

use crate::bucket::BucketError;
use crate::types::{ETag, Key};

/// One version of an object: what a handle reads, for ever.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Version {
    pub key: Key,
    pub etag: ETag,
    /// In bytes.
    pub size: u64,
}

/// Why bytes could not be had.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ReadError {
    /// The version is no longer in the store. The caller answers ESTALE: never another version's
    /// bytes.
    #[error("the object was replaced or removed")]
    Changed,
    /// The store failed, retries included. The caller answers as for any failure of the store.
    #[error(transparent)]
    Bucket(BucketError),
    /// A file of the caller's own could not be written or read. Never said of the cache disk, which
    /// is done without when it fails.
    #[error("{text}")]
    Disk { errno: Option<i32>, text: String },
}

impl From<BucketError> for ReadError {
    fn from(error: BucketError) -> Self {
        match error {
            BucketError::Precondition | BucketError::NotFound => Self::Changed,
            other => Self::Bucket(other),
        }
    }
}

impl From<io::Error> for ReadError {
    fn from(error: io::Error) -> Self {
        Self::Disk { errno: error.raw_os_error(), text: error.to_string() }
    }
}
