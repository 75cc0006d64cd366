//! What can go wrong with bytes on their way up.
//!
//! Owns the two kinds. Does not own errnos for the kernel (`fs`).

use std::io;

use crate::bucket::BucketError;

/// Why bytes could not be taken, kept or sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// The staging disk: `errno` as the system gave it (ENOSPC also past the dirty bound). The
    /// caller hands it on.
    #[error("staging: {text}")]
    Disk { errno: i32, text: String },
    /// The store, after all retries. The staged file keeps its bytes, and stays dirty.
    #[error(transparent)]
    Bucket(#[from] BucketError),
}

impl WriteError {
    pub fn disk(errno: i32, text: &str) -> Self {
        Self::Disk { errno, text: text.to_owned() }
    }

    /// Whether the store has not what the condition of an upload asked for.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Bucket(BucketError::Precondition | BucketError::NotFound))
    }
}

impl From<io::Error> for WriteError {
    fn from(error: io::Error) -> Self {
        Self::Disk { errno: error.raw_os_error().unwrap_or(libc::EIO), text: error.to_string() }
    }
}
