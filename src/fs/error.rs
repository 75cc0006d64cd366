//! The one errno table: what a failure below becomes for the program above.
//!
//! A storage failure is never EPERM or EACCES (Lightning, for one, takes those for success and
//! keeps a stale checkpoint), and a timeout or 5xx is never ENOENT.

use crate::bucket::BucketError;
use crate::read::ReadError;
use crate::types::BadName;
use crate::write::WriteError;

/// A Linux errno.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{}", std::io::Error::from_raw_os_error(*.0))]
pub struct Errno(pub i32);

macro_rules! errnos {
    ($($name:ident),*) => {
        impl Errno { $(pub const $name: Errno = Errno(libc::$name);)* }
    };
}

errnos!(
    EBADF,
    EBUSY,
    EDQUOT,
    EEXIST,
    EILSEQ,
    EINVAL,
    EIO,
    EISDIR,
    ENAMETOOLONG,
    ENFILE,
    ENODATA,
    ENOENT,
    ENOSPC,
    ENOTDIR,
    ENOTEMPTY,
    ENXIO,
    EOPNOTSUPP,
    EPERM,
    ERANGE,
    EROFS,
    ESTALE,
    EXDEV,
    ETIMEDOUT
);

impl From<BucketError> for Errno {
    fn from(error: BucketError) -> Self {
        match error {
            BucketError::NotFound => Self::ENOENT,
            BucketError::Precondition => Self::ESTALE,
            BucketError::Denied(_) | BucketError::Unauthenticated(_) => Self::EIO,
            BucketError::NoSpace(_) => Self::ENOSPC,
            BucketError::Quota(_) => Self::EDQUOT,
            BucketError::TimedOut(_) => Self::ETIMEDOUT,
            BucketError::Unavailable(_)
            | BucketError::Unreachable(_)
            | BucketError::Busy { .. } => Self::EIO,
            BucketError::Unsupported(_) => Self::EOPNOTSUPP,
            BucketError::NotEmpty => Self::ENOTEMPTY,
            BucketError::WrongKind => Self::ENOTDIR,
            BucketError::KeyTooLong => Self::ENAMETOOLONG,
            BucketError::Corrupt(_) => Self::EIO,
            BucketError::Invalid(why) => {
                tracing::warn!(
                    why,
                    "the store gave an answer that makes no sense, or took ours for such"
                );
                Self::EIO
            }
        }
    }
}

impl From<ReadError> for Errno {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Changed => Self::ESTALE,
            ReadError::Bucket(error) => error.into(),
            ReadError::Disk { .. } => Self::EIO,
        }
    }
}

impl From<WriteError> for Errno {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::Disk { errno, .. } => match errno {
                libc::ENOSPC
                | libc::EDQUOT
                | libc::ENFILE
                | libc::EOPNOTSUPP
                | libc::EFBIG
                | libc::EINVAL => Errno(errno),
                _ => Self::EIO,
            },
            WriteError::Bucket(error) => error.into(),
        }
    }
}

impl From<BadName> for Errno {
    fn from(bad: BadName) -> Self {
        match bad {
            BadName::Unnameable => Self::EILSEQ,
            BadName::TooLong => Self::ENAMETOOLONG,
            BadName::Reserved => Self::EINVAL,
        }
    }
}
