//! Objects as files of a directory, synchronously: the natural key is the path.
//!
//! Owns: a write is a new file, fsynced, then renamed or linked to its name, and the directory
//! fsynced. Nothing is ever written in place, so a reader's open file stays one version. Does not
//! own uploads, listings or threads.

use std::fs::{self, File, FileTimes, Metadata as Stat, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::ops::Range;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::bucket::dir::attributes::{self, error, read_error};
use crate::bucket::dir::beneath::{Beneath, rename_no_replace};
use crate::bucket::dir::lock::{self, Hold};
use crate::bucket::error::BucketError;
use crate::bucket::store::{Condition, Metadata, ObjectInfo, Written};
use crate::clock::{Clock, ulid};
use crate::types::{CONTROL_DIR, ETag, KEY_BYTES_MAX, Key};

/// Beside [`CONTROL_DIR`] at the root: files that are not objects yet, uploads, locks.
pub const TMP_DIR: &str = "tmp";
/// New files that are still being written; what a crash leaves of them is nobody's.
const NEW_PREFIX: &str = "new.";
/// How often a file is placed in a directory that others remove meanwhile.
const PLACE_TRIES_MAX: u32 = 4;
/// After this such a file is removed: nothing is written for so long.
const NEW_AGE_MAX: Duration = Duration::from_secs(24 * 3600);

/// An export.
#[derive(Debug)]
pub struct Disk {
    pub root: Beneath,
    pub clock: Arc<dyn Clock>,
}

/// A key, taken apart.
#[derive(Debug, PartialEq, Eq)]
pub struct Parts<'a> {
    pub dirs: Vec<&'a str>,
    pub name: &'a str,
    pub is_marker: bool,
}

/// Takes `key` apart; [`BucketError::Invalid`] if no path can say it, or if it is under our own
/// `tmp`.
pub fn parts(key: &Key) -> Result<Parts<'_>, BucketError> {
    let path = key.as_str().strip_suffix('/').unwrap_or(key.as_str());
    if path.len() > KEY_BYTES_MAX {
        return Err(BucketError::KeyTooLong);
    }
    let odd = |part: &str| matches!(part, "" | "." | "..") || part.contains('\0');
    let mut dirs: Vec<&str> = path.split('/').collect();
    let reserved = dirs.starts_with(&[CONTROL_DIR, TMP_DIR]);
    if reserved || dirs.iter().any(|part| odd(part)) {
        return Err(BucketError::Invalid(format!("no file can be named {:?}", key.as_str())));
    }
    let name = dirs.pop().unwrap_or_default();
    Ok(Parts { dirs, name, is_marker: key.is_marker() })
}

impl Disk {
    /// The directory of `dirs`, which must exist.
    pub fn walk(&self, dirs: &[&str]) -> io::Result<Beneath> {
        let mut at = self.root.enter(".")?;
        for name in dirs {
            at = at.enter(name)?;
        }
        Ok(at)
    }

    /// The directory of `dirs`, made where it is missing.
    pub fn make(&self, dirs: &[&str]) -> io::Result<Beneath> {
        let mut at = self.root.enter(".")?;
        for name in dirs {
            at = at.make(name)?;
        }
        Ok(at)
    }

    /// Where our own files are, made where it is missing.
    pub fn tmp(&self) -> Result<Beneath, BucketError> {
        self.make(&[CONTROL_DIR, TMP_DIR]).map_err(error)
    }

    /// Removes what crashes left of files that were never published, best effort.
    pub fn clean(&self) {
        let Ok(dir) = self.walk(&[CONTROL_DIR, TMP_DIR]) else { return };
        let Ok(entries) = fs::read_dir(dir.itself()) else { return };
        for entry in entries.flatten() {
            let is_new = entry.file_name().to_string_lossy().starts_with(NEW_PREFIX);
            let modified = entry.metadata().and_then(|stat| stat.modified());
            let age = modified.ok().and_then(|at| self.clock.wall().duration_since(at).ok());
            if is_new && age.is_some_and(|age| age > NEW_AGE_MAX) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    fn lock(&self, key: &Key, hold: Hold) -> Result<lock::Held, BucketError> {
        lock::of_key(&self.tmp()?, key.as_str(), hold)
    }

    /// The object or directory that `key` names, with a path to it.
    fn find(&self, key: &Key) -> Result<(Beneath, PathBuf, Stat), BucketError> {
        let parts = parts(key)?;
        let dir = self.walk(&parts.dirs).map_err(read_error)?;
        let path = dir.entry(parts.name);
        let stat = fs::symlink_metadata(&path).map_err(read_error)?;
        let fits = if parts.is_marker { stat.is_dir() } else { stat.is_file() };
        if fits { Ok((dir, path, stat)) } else { Err(BucketError::NotFound) }
    }

    pub fn head(&self, key: &Key) -> Result<ObjectInfo, BucketError> {
        let (_dir, path, stat) = self.find(key)?;
        let metadata = match stat.is_dir() {
            true => Metadata::new(),
            false => attributes::metadata(&path).map_err(read_error)?,
        };
        Ok(attributes::info(&stat, metadata))
    }

    /// Opens an object for reading, at the start of `range`.
    pub fn open(
        &self,
        key: &Key,
        range: &Range<u64>,
        if_match: Option<&ETag>,
    ) -> Result<(ObjectInfo, File), BucketError> {
        let (_dir, path, _) = self.find(key)?;
        // Not blocking: what was a file a moment ago may be a FIFO now.
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
        let mut file =
            OpenOptions::new().read(true).custom_flags(flags).open(&path).map_err(read_error)?;
        let stat = file.metadata().map_err(error)?;
        if !stat.is_file() {
            return Err(BucketError::NotFound);
        }
        let metadata = attributes::metadata(&path).map_err(read_error)?;
        let info = attributes::info(&stat, metadata);
        if if_match.is_some_and(|etag| *etag != info.etag) {
            return Err(BucketError::Precondition);
        }
        if range.start >= info.size.min(range.end) {
            return Err(BucketError::Invalid("a range outside the object".to_owned()));
        }
        file.seek(SeekFrom::Start(range.start)).map_err(error)?;
        Ok((info, file))
    }

    pub fn put(
        &self,
        key: &Key,
        body: &[u8],
        condition: &Condition,
        metadata: &Metadata,
    ) -> Result<Written, BucketError> {
        let parts = parts(key)?;
        if parts.is_marker {
            return self.put_marker(key, &parts, condition);
        }
        let mut new = self.new_file(metadata)?;
        new.file.write_all(body).map_err(error)?;
        self.publish(new, key, condition)
    }

    fn put_marker(
        &self,
        key: &Key,
        parts: &Parts<'_>,
        condition: &Condition,
    ) -> Result<Written, BucketError> {
        let dir = self.make(&parts.dirs).map_err(error)?;
        match fs::create_dir(dir.entry(parts.name)) {
            Ok(()) => dir.sync().map_err(error)?,
            Err(found) if found.kind() != io::ErrorKind::AlreadyExists => return Err(error(found)),
            Err(_) if *condition == Condition::IfAbsent => return Err(BucketError::Precondition),
            Err(_) => {}
        }
        let (.., stat) = self.find(key).map_err(|error| match error {
            BucketError::NotFound => BucketError::WrongKind,
            error => error,
        })?;
        Ok(Written { etag: attributes::etag(&stat) })
    }

    /// A file that is no object yet, and goes away if it never becomes one.
    pub fn new_file(&self, metadata: &Metadata) -> Result<NewFile, BucketError> {
        let dir = self.tmp()?;
        let path = dir.entry(&format!("{NEW_PREFIX}{}", ulid(&*self.clock)));
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path);
        let new = NewFile { file: file.map_err(error)?, path, _dir: dir, stays: false };
        attributes::set_metadata(&new.path, metadata)?;
        Ok(new)
    }

    /// Makes a written file the object at `key`, at once.
    pub fn publish(
        &self,
        mut new: NewFile,
        key: &Key,
        condition: &Condition,
    ) -> Result<Written, BucketError> {
        // Two writes in one nanosecond must still be two versions.
        let jitter = Duration::from_nanos(self.clock.random() % 1000);
        let times = FileTimes::new().set_modified(self.clock.wall() + jitter);
        new.file.set_times(times).map_err(error)?;
        new.file.sync_all().map_err(error)?;
        let stat = new.file.metadata().map_err(error)?;
        for _ in 0..PLACE_TRIES_MAX {
            match self.place_at(&new.path, &stat, key, condition) {
                Err(BucketError::NotFound) => {} // the directory was removed just now
                result => {
                    new.stays |= result.is_ok();
                    return result;
                }
            }
        }
        Err(BucketError::Unavailable("the directory is removed again and again".to_owned()))
    }

    fn place_at(
        &self,
        from: &Path,
        stat: &Stat,
        key: &Key,
        condition: &Condition,
    ) -> Result<Written, BucketError> {
        let parts = parts(key)?;
        let dir = self.make(&parts.dirs).map_err(error)?;
        let to = dir.entry(parts.name);
        let _held = match condition {
            Condition::IfMatch(_) => self.lock(key, Hold::Alone)?,
            Condition::Always | Condition::IfAbsent => self.lock(key, Hold::Shared)?,
        };
        match condition {
            Condition::IfAbsent => place(from, stat, &to)?,
            Condition::IfMatch(etag) => {
                self.check(key, etag)?;
                fs::rename(from, &to).map_err(error)?;
            }
            Condition::Always => fs::rename(from, &to).map_err(error)?,
        }
        dir.sync().map_err(error)?;
        Ok(Written { etag: attributes::etag(stat) })
    }

    /// Whether `key` is still the version `etag`; only worth asking while holding its lock alone.
    fn check(&self, key: &Key, etag: &ETag) -> Result<(), BucketError> {
        match self.find(key) {
            Ok((.., stat)) if attributes::etag(&stat) == *etag => Ok(()),
            Ok(_) | Err(BucketError::NotFound) => Err(BucketError::Precondition),
            Err(error) => Err(error),
        }
    }

    pub fn delete(&self, key: &Key, if_match: Option<&ETag>) -> Result<(), BucketError> {
        let (dir, path, stat) = self.find(key)?;
        if stat.is_dir() {
            fs::remove_dir(&path).map_err(error)?;
            return dir.sync().map_err(error);
        }
        let hold = if if_match.is_some() { Hold::Alone } else { Hold::Shared };
        let _held = self.lock(key, hold)?;
        if let Some(etag) = if_match {
            self.check(key, etag)?;
        }
        fs::remove_file(&path).map_err(read_error)?;
        dir.sync().map_err(error)
    }

    pub fn copy(
        &self,
        from: &Key,
        from_etag: Option<&ETag>,
        to: &Key,
        condition: &Condition,
        metadata: &Metadata,
    ) -> Result<Written, BucketError> {
        let (_dir, path, stat) = self.find(from)?;
        if from_etag.is_some_and(|etag| *etag != attributes::etag(&stat)) {
            return Err(BucketError::Precondition);
        }
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
        let open = OpenOptions::new().read(true).custom_flags(flags).open(&path);
        let mut source = open.map_err(read_error)?;
        let mut new = self.new_file(metadata)?;
        io::copy(&mut source, &mut new.file).map_err(error)?;
        let after = attributes::etag(&source.metadata().map_err(error)?);
        if after != attributes::etag(&stat) {
            return Err(BucketError::Precondition);
        }
        self.publish(new, to, condition)
    }

    pub fn rename(&self, from: &Key, to: &Key, condition: &Condition) -> Result<(), BucketError> {
        let (from_dir, from_path, stat) = self.find(from)?;
        let parts = parts(to)?;
        if parts.is_marker != from.is_marker() {
            return Err(BucketError::WrongKind);
        }
        let to_dir = self.make(&parts.dirs).map_err(error)?;
        let to_path = to_dir.entry(parts.name);
        let _held = match condition {
            Condition::IfMatch(etag) => {
                let held = self.lock(to, Hold::Alone)?;
                self.check(to, etag)?;
                held
            }
            _ => self.lock(to, Hold::Shared)?,
        };
        match condition {
            Condition::IfAbsent if stat.is_dir() => place_directory(&from_path, &to_path)?,
            Condition::IfAbsent => place(&from_path, &stat, &to_path)?,
            _ => fs::rename(&from_path, &to_path).map_err(error)?,
        }
        to_dir.sync().and_then(|()| from_dir.sync()).map_err(error)
    }
}

/// Renames a file onto nothing. Where the file system has no such rename (NFS) by link and unlink;
/// there the reply to a link may be lost, and "exists" mean ourselves, which the inode tells.
fn place(from: &Path, stat: &Stat, to: &Path) -> Result<(), BucketError> {
    match rename_no_replace(from, to) {
        Err(found) if cannot(&found) => {}
        result => return result.map_err(error),
    }
    if let Err(found) = fs::hard_link(from, to) {
        let same = |there: Stat| there.ino() == stat.ino() && there.dev() == stat.dev();
        let ours = found.kind() == io::ErrorKind::AlreadyExists
            && fs::symlink_metadata(to).is_ok_and(same);
        if !ours {
            return Err(error(found));
        }
    }
    fs::remove_file(from).map_err(error)
}

/// The same for a directory: the name is taken by making it, and then replaced while it is empty.
fn place_directory(from: &Path, to: &Path) -> Result<(), BucketError> {
    match rename_no_replace(from, to) {
        Err(found) if cannot(&found) => {}
        result => return result.map_err(error),
    }
    fs::create_dir(to).map_err(error)?;
    fs::rename(from, to).map_err(|found| match error(found) {
        BucketError::NotEmpty => BucketError::Precondition,
        error => error,
    })
}

fn cannot(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOSYS | libc::EOPNOTSUPP))
}

/// A file that is no object yet.
#[derive(Debug)]
pub struct NewFile {
    pub file: File,
    path: PathBuf,
    /// Keeps `path` good.
    _dir: Beneath,
    stays: bool,
}

impl NewFile {
    /// Gives the file a name in `dir`, where it stays until it is published or removed.
    pub fn keep_as(mut self, dir: &Beneath, name: &str) -> io::Result<()> {
        fs::rename(&self.path, dir.entry(name))?;
        self.stays = true;
        dir.sync()
    }

    /// A file that was kept; publishing moves it away, and a refusal leaves it.
    pub fn kept(dir: Beneath, name: &str) -> io::Result<Self> {
        let path = dir.entry(name);
        let file = OpenOptions::new().read(true).write(true).open(&path)?;
        Ok(Self { file, path, _dir: dir, stays: true })
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if !self.stays {
            // Best effort: what stays is hidden, and removed by age.
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_key_leaves_the_export_or_enters_our_own_directory() {
        for bad in [
            "",
            "/",
            "a//b",
            "..",
            "../x",
            "a/../b",
            "a/.",
            "a\0b",
            ".trialfs/tmp/x",
            "/etc/passwd",
        ] {
            assert!(parts(&Key::new(bad)).is_err(), "{bad:?}");
        }
        let found = Key::new("a/.trialfs/tmp/");
        let expected = Parts { dirs: vec!["a", ".trialfs"], name: "tmp", is_marker: true };
        assert_eq!(parts(&found), Ok(expected));
    }
}
