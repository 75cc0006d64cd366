//! Files that never reached the bucket, put aside in the cache directory for a person to look at.
//!
//! Owns the directory, what is noted of a file in it, and how it is listed. Does not own when a
//! file goes there; nothing here ever deletes one.
//!
//! A file's name begins with the id it was staged under and ends with its key, escaped, or the last
//! [`KEY_IN_NAME_BYTES_MAX`] bytes of that. Why it is there, and a key too long for the name, stand
//! in extended attributes, where the file system has them.

use std::ffi::{CStr, CString};
use std::fs::{DirBuilder, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use crate::types::{KEY_BYTES_MAX, Key};

/// The directory's name in the cache directory.
pub const QUARANTINE_DIR: &str = "quarantine";
/// How much of a key, escaped, stands in the name of its staged file, so that a person finds what
/// is in quarantine; names end at 255 bytes.
pub const KEY_IN_NAME_BYTES_MAX: usize = 200;
const WHY_XATTR: &CStr = c"user.trialfs.why";
const KEY_XATTR: &CStr = c"user.trialfs.key";

/// Why a file is in quarantine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// The daemon ended before it was closed.
    NotClosed,
    /// Its writer was killed by a signal.
    Torn,
    /// It was being written again, in place, when the daemon ended.
    Overwritten,
    /// The file in the bucket was changed or removed meanwhile, most likely by another node.
    ChangedElsewhere,
    /// The checkpoint directory that it was written in was not committed.
    NotCommitted,
    /// The store refused it, or did not answer.
    NotUploaded,
}

const WHYS: [(Why, &str, &str); 6] = [
    (Why::NotClosed, "not-closed", "the daemon ended before it was closed"),
    (Why::Torn, "torn", "the process that wrote it was killed"),
    (Why::Overwritten, "overwritten", "the daemon ended while it was written again in place"),
    (Why::ChangedElsewhere, "changed-elsewhere", "the file in the bucket was changed meanwhile"),
    (Why::NotCommitted, "not-committed", "its checkpoint directory was not committed"),
    (Why::NotUploaded, "not-uploaded", "the store did not take it"),
];

impl Why {
    fn word(self) -> &'static str {
        WHYS.iter().find(|(why, ..)| *why == self).map_or("", |(_, word, _)| word)
    }

    /// In a person's words.
    pub fn text(self) -> &'static str {
        WHYS.iter().find(|(why, ..)| *why == self).map_or("", |(.., text)| text)
    }
}

/// A file in quarantine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quarantined {
    pub path: PathBuf,
    /// Its key, or as much of its end as is known.
    pub key: String,
    pub size: u64,
    /// When it was put there.
    pub since: SystemTime,
    /// `None`: not noted.
    pub why: Option<Why>,
}

/// The name of a staged file.
pub fn name_of(id: &str, key: &Key) -> String {
    let escaped = utf8_percent_encode(key.as_str(), NON_ALPHANUMERIC).to_string();
    let tail = &escaped[escaped.len().saturating_sub(KEY_IN_NAME_BYTES_MAX)..];
    format!("{id}.{tail}")
}

/// What [`name_of`] leaves out of a long key stands beside the file's bytes.
pub fn note_key(file: &File, key: &Key) {
    let escaped = utf8_percent_encode(key.as_str(), NON_ALPHANUMERIC).map(str::len);
    if escaped.sum::<usize>() > KEY_IN_NAME_BYTES_MAX {
        set(file, KEY_XATTR, key.as_str().as_bytes());
    }
}

/// Takes the note of a key off a file that is used for another one.
pub fn forget_key(file: &File) -> io::Result<()> {
    forget(file, KEY_XATTR)
}

/// Takes an extended attribute off a file, if it has it.
pub fn forget(file: &File, name: &CStr) -> io::Result<()> {
    // SAFETY: the descriptor is open, the name ends in zero.
    if unsafe { libc::fremovexattr(file.as_raw_fd(), name.as_ptr()) } == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::ENODATA | libc::EOPNOTSUPP) => Ok(()),
        _ => Err(error),
    }
}

/// Notes why a file goes to quarantine; where that can't be noted it goes all the same.
pub fn note_why(file: &File, why: Why) {
    set(file, WHY_XATTR, why.word().as_bytes());
}

/// Moves `path` into `dir`, over nothing.
pub fn put(path: &Path, dir: &Path) -> io::Result<PathBuf> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let mut target = dir.join(name);
    // A name is taken only if somebody put it there by hand; the loop ends with those names.
    while target.try_exists()? {
        target.as_mut_os_string().push("~");
    }
    std::fs::rename(path, &target)?;
    Ok(target)
}

/// What is in the quarantine of a cache directory, the oldest first.
pub fn list(cache: &Path) -> io::Result<Vec<Quarantined>> {
    let entries = match std::fs::read_dir(cache.join(QUARANTINE_DIR)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        let metadata = entry.metadata()?;
        if !metadata.is_file() {
            continue;
        }
        let since = Duration::new(metadata.ctime().max(0) as u64, metadata.ctime_nsec() as u32);
        let word = get(&entry.path(), WHY_XATTR);
        found.push(Quarantined {
            key: key_of(&entry.path()),
            path: entry.path(),
            size: metadata.len(),
            since: SystemTime::UNIX_EPOCH + since,
            why: WHYS
                .iter()
                .find(|(_, known, _)| Some(*known) == word.as_deref())
                .map(|(w, ..)| *w),
        });
    }
    found.sort_by(|a, b| (a.since, &a.path).cmp(&(b.since, &b.path)));
    Ok(found)
}

fn key_of(path: &Path) -> String {
    if let Some(key) = get(path, KEY_XATTR) {
        return key;
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let name = name.trim_end_matches('~');
    let tail = name.split_once('.').map_or(name, |(_, tail)| tail);
    percent_decode_str(tail).decode_utf8_lossy().into_owned()
}

fn set(file: &File, name: &CStr, value: &[u8]) {
    // SAFETY: the descriptor is open, the name ends in zero, the value is as long as it says.
    let result = unsafe {
        libc::fsetxattr(file.as_raw_fd(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0)
    };
    if result < 0 {
        let error = io::Error::last_os_error();
        tracing::debug!(%error, "nothing can be noted on a staged file");
    }
}

fn get(path: &Path, name: &CStr) -> Option<String> {
    let path = CString::new(path.as_os_str().as_bytes()).ok()?;
    let mut value = vec![0u8; KEY_BYTES_MAX];
    // SAFETY: path and name end in zero; the kernel writes no more than the length it is told.
    let result = unsafe {
        libc::lgetxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len())
    };
    value.truncate(usize::try_from(result).ok()?);
    String::from_utf8(value).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_person_sees_what_is_there_and_why() {
        let cache = tempfile::tempdir().unwrap();
        assert!(list(cache.path()).unwrap().is_empty());
        let long = format!("deep/{}", "ü".repeat(200));
        for (id, key, why) in [("A", "a/b=1.pt", Some(Why::Torn)), ("B", long.as_str(), None)] {
            let key = Key::new(key);
            let path = cache.path().join(name_of(id, &key));
            let file = File::create(&path).unwrap();
            note_key(&file, &key);
            why.into_iter().for_each(|why| note_why(&file, why));
            put(&path, &cache.path().join(QUARANTINE_DIR)).unwrap();
        }
        let found = list(cache.path()).unwrap();
        let seen: Vec<_> = found.iter().map(|file| (file.key.as_str(), file.why)).collect();
        assert_eq!(seen, [("a/b=1.pt", Some(Why::Torn)), (long.as_str(), None)]);
    }

    #[test]
    fn names_tell_the_key_and_fit() {
        assert_eq!(name_of("ID", &Key::new("a/b=1.pt")), "ID.a%2Fb%3D1%2Ept");
        assert!(name_of("ID", &Key::new("ü/".repeat(300))).len() <= 255);
    }
}
