//! Locks between nodes: flock(2) on files under the export's own `.trialfs/tmp/`, which NFS
//! carries too.
//!
//! Who compares a version and then replaces it holds a key's lock alone; who replaces without
//! looking shares it, so that no such write falls between the two steps. Keys share a fixed set of
//! lock files.

use std::fs::{File, OpenOptions, TryLockError};
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::io;
use std::path::Path;
use std::time::Duration;

use crate::bucket::dir::attributes;
use crate::bucket::dir::beneath::Beneath;
use crate::bucket::error::BucketError;

/// Lock files: enough that strangers seldom meet, few enough to be left lying about.
const LOCK_FILES: u64 = 64;
/// How often and how long a lock is tried for: ten seconds, then its holder counts as stalled.
const TRIES_MAX: u32 = 2_000;
const TRY_INTERVAL: Duration = Duration::from_millis(5);

/// How a lock is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hold {
    Shared,
    Alone,
}

/// A lock, held until it is dropped; `None` inside where the file system has none and none is
/// needed.
#[derive(Debug)]
pub struct Held(#[allow(dead_code)] Option<File>);

/// The lock file of `key` in `locks`.
pub fn of_key(locks: &Beneath, key: &str, hold: Hold) -> Result<Held, BucketError> {
    let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(key);
    of_file(&locks.entry(&format!("lock.{}", hash % LOCK_FILES)), hold)
}

/// The lock file at `path`.
pub fn of_file(path: &Path, hold: Hold) -> Result<Held, BucketError> {
    let open = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(path);
    let file = open.map_err(attributes::error)?;
    for _ in 0..TRIES_MAX {
        let tried = match hold {
            Hold::Shared => file.try_lock_shared(),
            Hold::Alone => file.try_lock(),
        };
        match tried {
            Ok(()) => return Ok(Held(Some(file))),
            Err(TryLockError::WouldBlock) => std::thread::sleep(TRY_INTERVAL),
            Err(TryLockError::Error(error)) => return without(error, hold),
        }
    }
    Err(BucketError::TimedOut("another node holds a lock".to_owned()))
}

/// A file system without locks: replacing blindly needs none, comparing can't do without.
fn without(error: io::Error, hold: Hold) -> Result<Held, BucketError> {
    let none = [libc::ENOLCK, libc::EOPNOTSUPP, libc::EINVAL, libc::ENOSYS];
    match (error.raw_os_error().filter(|errno| none.contains(errno)), hold) {
        (Some(_), Hold::Shared) => Ok(Held(None)),
        (Some(_), Hold::Alone) => Err(BucketError::Unsupported("replace under a condition")),
        (None, _) => Err(attributes::error(error)),
    }
}
