//! What can go wrong with a store, sorted by what the caller must do about it.
//!
//! Owns the error kinds. Does not own how a store's answers map to them (each driver) nor errnos
//! (`fs`).

use std::time::Duration;

/// What went wrong, by what the caller must do about it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BucketError {
    /// There is no such object, bucket or upload. The caller believes it.
    #[error("no such object")]
    NotFound,
    /// The condition did not hold (If-None-Match: it exists; If-Match: it changed). The caller
    /// looks again.
    #[error("the object exists or has changed")]
    Precondition,
    /// Credentials missing, wrong or without the right. Not retried. The caller answers EIO, never
    /// EACCES.
    #[error("the store refused: {0}")]
    Denied(String),
    /// The store does not know the credentials: they are wrong, have ended, or were exchanged and
    /// the new ones are not known everywhere yet. An answer to whoever never got in; to others
    /// [`Bucket`] makes it [`BucketError::Unavailable`]. The caller answers EIO.
    #[error("the store refused: {0}")]
    Unauthenticated(String),
    /// The store is full. The caller answers ENOSPC.
    #[error("the store is full: {0}")]
    NoSpace(String),
    /// A quota is used up. The caller answers EDQUOT.
    #[error("quota exceeded: {0}")]
    Quota(String),
    /// No answer within the bound, retries included. The caller answers ETIMEDOUT.
    #[error("no answer in time: {0}")]
    TimedOut(String),
    /// It answers with 5xx or 429, or can't do it just now. Retried by [`Bucket`]; past the bound
    /// the caller answers EIO.
    #[error("the store is unavailable: {0}")]
    Unavailable(String),
    /// Nobody answers: refused, reset, a name that is not known. As [`BucketError::Unavailable`] to
    /// all but those who tell a user why.
    #[error("the store can't be reached: {0}")]
    Unreachable(String),
    /// 429 or 503 that says when to come back. Retried by [`Bucket`] no sooner than that, within
    /// the bound; past it the caller answers EIO.
    #[error("the store is busy for {after:?} more: {why}")]
    Busy { why: String, after: Duration },
    /// The store can't do this; the caller uses another way (see [`Capabilities`]).
    #[error("the store can not {0}")]
    Unsupported(&'static str),
    /// A directory that must be empty is not (stores with real directories).
    #[error("the directory is not empty")]
    NotEmpty,
    /// A parent is not a directory, or the name is one (stores with real directories).
    #[error("a file stands where a directory must be, or the reverse")]
    WrongKind,
    /// The name is too long for the store.
    #[error("the key is too long for the store")]
    KeyTooLong,
    /// The bytes are not what their checksum says. Retried by [`Bucket`]; past the bound EIO.
    #[error("checksum mismatch: {0}")]
    Corrupt(String),
    /// The request makes no sense to the store, or its answer none to us. Not retried.
    #[error("{0}")]
    Invalid(String),
}

impl BucketError {
    /// Whether asking the same again may help. Everything else is an answer.
    pub fn is_transient(&self) -> bool {
        matches!(
            self,
            Self::TimedOut(_)
                | Self::Unavailable(_)
                | Self::Unreachable(_)
                | Self::Busy { .. }
                | Self::Corrupt(_)
        )
    }
}
