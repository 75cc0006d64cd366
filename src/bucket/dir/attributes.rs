//! What an inode says of an object: its version, its user metadata; and what errnos mean to us.
//!
//! A version is the inode, its mtime in nanoseconds and its size: a rename keeps it, and every
//! rewrite changes it, since each object is a new file whose mtime is set from a clock that ticks
//! in nanoseconds (the kernel's own stamps tick in milliseconds). The ctime is left out: a rename
//! changes it.

use std::ffi::{CStr, CString};
use std::fs::Metadata as Stat;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::SystemTime;

use crate::bucket::error::BucketError;
use crate::bucket::store::{Metadata, ObjectInfo};
use crate::types::ETag;

/// Where user metadata is kept.
const XATTR_PREFIX: &str = "user.trialfs.";
/// The kernel's own limits on one attribute and on a list of their names.
const XATTR_BYTES_MAX: usize = 64 << 10;

/// The version of a file; of a directory, which has none, a constant.
pub fn etag(stat: &Stat) -> ETag {
    if stat.is_dir() {
        return ETag(format!("d{:x}", stat.ino()));
    }
    let nanos = i128::from(stat.mtime()) * 1_000_000_000 + i128::from(stat.mtime_nsec());
    ETag(format!("{:x}-{:x}-{:x}", stat.ino(), nanos, stat.len()))
}

/// What HEAD tells of a file or directory.
pub fn info(stat: &Stat, metadata: Metadata) -> ObjectInfo {
    let size = if stat.is_dir() { 0 } else { stat.len() };
    let modified = stat.modified().unwrap_or(SystemTime::UNIX_EPOCH);
    ObjectInfo { size, etag: etag(stat), modified, metadata, crc64nvme: None }
}

/// Whether files below `path` can carry metadata.
pub fn keeps_metadata(path: &Path) -> bool {
    match get_xattr(path, c"user.trialfs.probe") {
        Ok(_) => true,
        Err(error) => error.raw_os_error() != Some(libc::EOPNOTSUPP),
    }
}

/// The metadata of the file at `path`, which must not be a link.
pub fn metadata(path: &Path) -> io::Result<Metadata> {
    let mut names = vec![0u8; XATTR_BYTES_MAX];
    let c_path = c_string(path.as_os_str().as_bytes())?;
    // SAFETY: the path is a C string, and the buffer is as long as it is said to be.
    let length =
        unsafe { libc::llistxattr(c_path.as_ptr(), names.as_mut_ptr().cast(), names.len()) };
    names.truncate(match length {
        -1 => match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::EOPNOTSUPP) => 0,
            error => return Err(error),
        },
        length => length as usize,
    });
    let mut metadata = Metadata::new();
    for name in names.split_inclusive(|byte| *byte == 0) {
        let Ok(name) = CStr::from_bytes_with_nul(name) else { continue };
        let Some(short) = name.to_str().ok().and_then(|name| name.strip_prefix(XATTR_PREFIX))
        else {
            continue;
        };
        let value = get_xattr(path, name)?;
        metadata.insert(short.to_owned(), String::from_utf8_lossy(&value).into_owned());
    }
    Ok(metadata)
}

/// Gives the file at `path`, new and nobody else's yet, its metadata.
pub fn set_metadata(path: &Path, metadata: &Metadata) -> Result<(), BucketError> {
    let path = c_string(path.as_os_str().as_bytes()).map_err(error)?;
    for (name, value) in metadata {
        let name = c_string(format!("{XATTR_PREFIX}{name}").as_bytes()).map_err(error)?;
        // SAFETY: path and name are C strings; the value is as long as it is said to be.
        let result = unsafe {
            let (value, length) = (value.as_ptr().cast(), value.len());
            libc::lsetxattr(path.as_ptr(), name.as_ptr(), value, length, 0)
        };
        if result != 0 {
            let found = io::Error::last_os_error();
            return Err(match found.raw_os_error() {
                Some(libc::EOPNOTSUPP) => BucketError::Unsupported("keep metadata"),
                Some(libc::E2BIG | libc::ERANGE) => {
                    BucketError::Invalid("too much metadata".to_owned())
                }
                _ => error(found),
            });
        }
    }
    Ok(())
}

fn get_xattr(path: &Path, name: &CStr) -> io::Result<Vec<u8>> {
    let path = c_string(path.as_os_str().as_bytes())?;
    let mut value = vec![0u8; XATTR_BYTES_MAX];
    // SAFETY: path and name are C strings, and the buffer is as long as it is said to be.
    let length = unsafe {
        let buffer = value.as_mut_ptr().cast();
        libc::lgetxattr(path.as_ptr(), name.as_ptr(), buffer, value.len())
    };
    if length < 0 {
        return Err(io::Error::last_os_error());
    }
    value.truncate(length as usize);
    Ok(value)
}

fn c_string(bytes: &[u8]) -> io::Result<CString> {
    Ok(CString::new(bytes)?)
}

/// Names what the file system answered, where an absent directory means an absent object.
pub fn error(error: io::Error) -> BucketError {
    let text = error.to_string();
    match error.raw_os_error() {
        Some(libc::ENOENT) => BucketError::NotFound,
        Some(libc::EEXIST) => BucketError::Precondition,
        Some(libc::ENOTEMPTY) => BucketError::NotEmpty,
        Some(libc::ENOTDIR | libc::EISDIR | libc::ELOOP) => BucketError::WrongKind,
        Some(libc::ENAMETOOLONG) => BucketError::KeyTooLong,
        Some(libc::EACCES | libc::EPERM | libc::EROFS) => BucketError::Denied(text),
        Some(libc::ENOSPC) => BucketError::NoSpace(text),
        Some(libc::EDQUOT) => BucketError::Quota(text),
        Some(libc::ETIMEDOUT) => BucketError::TimedOut(text),
        // Out of descriptors or memory, a lost server, a failing disk: perhaps not for ever.
        Some(
            libc::EMFILE
            | libc::ENFILE
            | libc::ENOMEM
            | libc::EAGAIN
            | libc::EINTR
            | libc::EIO
            | libc::ESTALE
            | libc::EBUSY
            | libc::ENOLCK,
        ) => BucketError::Unavailable(text),
        Some(libc::EXDEV) => BucketError::Invalid(
            "a directory of the export is on another file system than its root".to_owned(),
        ),
        _ => BucketError::Invalid(text),
    }
}

/// The same for reads: what can't be there is not there.
pub fn read_error(found: io::Error) -> BucketError {
    match error(found) {
        BucketError::WrongKind => BucketError::NotFound,
        error => error,
    }
}
