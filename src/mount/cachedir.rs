//! The cache directory as a whole: that it is private, of one daemon, and of one URL.
//!
//! Owns the directory's mode, its lock, the id of the mount and the note of what it belongs to.
//! Does not own the staged files and blocks in it (`write`, `read`).

use std::fs::{DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::clock::{Clock, ulid};

const LOCK_FILE: &str = "lock";
const ID_FILE: &str = "mount-id";
const ORIGIN_FILE: &str = "origin";
/// More than any of these small files may hold; a larger one is not ours.
const SMALL_FILE_BYTES_MAX: u64 = 16 << 10;

/// A cache directory that this process holds until it drops it, or ends.
#[derive(Debug)]
pub struct CacheDir {
    path: PathBuf,
    origin: String,
    mount_id: String,
    _lock: File,
}

impl CacheDir {
    /// Makes it if need be, takes its lock, and sees that it belongs to `origin` or to nobody yet:
    /// staged bytes of one bucket must never be uploaded to another.
    pub fn open(path: &Path, origin: &str, clock: &dyn Clock) -> Result<Self> {
        let shown = path.display();
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .with_context(|| format!("can't make the cache directory {shown}"))?;
        let path = path.canonicalize().with_context(|| format!("can't look at {shown}"))?;
        make_private(&path)?;
        let lock = take_lock(&path)?;
        check_origin(&path, origin)?;
        let mount_id = mount_id(&path, clock)?;
        Ok(Self { path, origin: origin.to_owned(), mount_id, _lock: lock })
    }

    /// From now on it belongs to its origin. Before anything is staged in it, but not before the
    /// store was reached: a mistyped URL must not keep the right one out.
    pub fn claim(&self) -> Result<()> {
        match read_small(&self.path.join(ORIGIN_FILE))? {
            None => write_small(&self.path, ORIGIN_FILE, &self.origin),
            Some(_) => Ok(()),
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The random id under which this mount signs its records; it stays with the directory.
    pub fn mount_id(&self) -> &str {
        &self.mount_id
    }
}

/// 0700 and ours; a directory that holds other things is refused, so that no `--cache-dir /data`
/// shuts everybody else out of `/data`.
fn make_private(path: &Path) -> Result<()> {
    let shown = path.display();
    let metadata = path.metadata().with_context(|| format!("can't look at {shown}"))?;
    // SAFETY: geteuid has no preconditions and can't fail.
    if metadata.uid() != unsafe { libc::geteuid() } {
        bail!("the cache directory {shown} belongs to uid {}; give your own", metadata.uid());
    }
    let is_new = path.read_dir().with_context(|| format!("can't read {shown}"))?.next().is_none();
    if !is_new && !path.join(LOCK_FILE).exists() {
        bail!("{shown} is neither empty nor a cache directory; give --cache-dir one of its own");
    }
    if metadata.mode() & 0o077 != 0 {
        std::fs::set_permissions(path, Permissions::from_mode(0o700))
            .with_context(|| format!("can't make {shown} private"))?;
    }
    Ok(())
}

fn take_lock(path: &Path) -> Result<File> {
    let name = path.join(LOCK_FILE);
    let shown = path.display();
    let mut lock = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&name)
        .with_context(|| format!("can't write to the cache directory {shown}"))?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut pid = String::new();
            let _ = Read::take(&lock, SMALL_FILE_BYTES_MAX).read_to_string(&mut pid);
            bail!(
                "the cache directory {shown} is in use by trialfs process {}; unmount that first, \
                 or give another --cache-dir",
                pid.trim()
            );
        }
        Err(TryLockError::Error(e)) => Err(e).with_context(|| format!("can't lock {shown}"))?,
    }
    lock.set_len(0)
        .and_then(|()| writeln!(lock, "{}", std::process::id()))
        .with_context(|| format!("can't write to the cache directory {shown}"))?;
    Ok(lock)
}

fn check_origin(path: &Path, origin: &str) -> Result<()> {
    match read_small(&path.join(ORIGIN_FILE))? {
        None => Ok(()),
        Some(found) if found == origin => Ok(()),
        Some(found) => bail!(
            "the cache directory {} belongs to {}; give another --cache-dir for {}",
            path.display(),
            found.escape_debug(),
            origin.escape_debug()
        ),
    }
}

fn mount_id(path: &Path, clock: &dyn Clock) -> Result<String> {
    let valid = |id: &String| id.len() == 26 && id.bytes().all(|b| b.is_ascii_alphanumeric());
    if let Some(id) = read_small(&path.join(ID_FILE))?.filter(valid) {
        return Ok(id);
    }
    let id = ulid(clock);
    write_small(path, ID_FILE, &id)?;
    Ok(id)
}

fn read_small(path: &Path) -> Result<Option<String>> {
    let file = match File::open(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        other => other.with_context(|| format!("can't open {}", path.display()))?,
    };
    let mut text = String::new();
    let read = file.take(SMALL_FILE_BYTES_MAX).read_to_string(&mut text);
    read.with_context(|| format!("can't read {}", path.display()))?;
    Ok(Some(text.trim_end().to_owned()))
}

/// Whole or not at all, also over a power cut.
fn write_small(dir: &Path, name: &str, text: &str) -> Result<()> {
    let path = dir.join(name);
    let write = || -> std::io::Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(dir)?;
        writeln!(file, "{text}")?;
        file.as_file().sync_all()?;
        file.persist(&path)?;
        File::open(dir)?.sync_all()
    };
    write().with_context(|| format!("can't write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemClock;

    fn open(path: &Path, origin: &str) -> Result<CacheDir> {
        CacheDir::open(path, origin, &SystemClock)
    }

    #[test]
    fn the_mount_id_stays_with_the_directory() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("a/cache");
        let first = open(&path, "s3://b").expect("opens");
        assert_eq!(first.path().metadata().expect("exists").mode() & 0o777, 0o700);
        let id = first.mount_id().to_owned();
        drop(first);
        assert_eq!(open(&path, "s3://b").expect("opens again").mount_id(), id);
    }

    #[test]
    fn a_second_daemon_is_refused_with_the_pid_of_the_first() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let _first = open(dir.path(), "s3://b").expect("opens");
        let error = open(dir.path(), "s3://b").expect_err("locked").to_string();
        assert!(error.contains(&format!("process {};", std::process::id())), "{error}");
    }

    #[test]
    fn bytes_staged_for_one_bucket_never_reach_another() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        open(dir.path(), "s3://a").and_then(|cache| cache.claim()).expect("opens");
        let error = open(dir.path(), "s3://b").expect_err("belongs to another").to_string();
        assert!(error.contains("s3://a") && error.contains("--cache-dir"), "{error}");
    }

    #[test]
    fn a_mount_that_failed_does_not_keep_the_next_url_out() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        drop(open(dir.path(), "s3://mistyped").expect("opens"));
        open(dir.path(), "s3://b").and_then(|cache| cache.claim()).expect("belongs to nobody");
    }

    #[test]
    fn a_directory_of_other_things_is_left_as_it_is() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        std::fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).expect("chmod");
        std::fs::write(dir.path().join("data"), "x").expect("writes");
        assert!(open(dir.path(), "s3://b").is_err());
        assert_eq!(dir.path().metadata().expect("exists").mode() & 0o777, 0o755);
    }
}
