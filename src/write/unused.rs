//! Staged files that are done with, kept empty for the next ones: a file system that has just
//! removed many files takes its time to find a number for a new one (ext4 goes through those that
//! it freed within minutes, 1 us each), and to free one.
//!
//! Owns their names and whether a file may be used again. Does not own what is staged (`staging`).
//!
//! What must hold: nobody else sees what becomes of a file that is used again. The kernel may have
//! it open, or mapped, for a program that read or wrote it by itself (passthrough), long after it
//! told us that the file was closed. A write lease is granted to whoever is the only one who has
//! the file open or mapped. Whoever of us uses it holds the [`StagedFile`] itself.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;

use super::staging::StagedFile;

/// How a name begins here; no staged file's does.
const PREFIX: &str = "unused.";
/// As many as a burst of small files leaves.
const UNUSED_MAX: usize = 1024;
/// What a larger one takes on the disk is better freed by who has time, in bytes.
const BYTES_MAX: u64 = 1 << 20;

/// Of fcntl(2), on every architecture of Linux; libc does not name it.
const F_SETSIG: libc::c_int = 10;

/// The files at hand.
#[derive(Debug)]
pub struct Unused {
    names: Mutex<Names>,
    /// Whether leases tell here who else has a file.
    leases_tell: bool,
}

#[derive(Debug, Default)]
struct Names {
    free: Vec<PathBuf>,
    made: u64,
}

/// Whether a file in the directory of staged files is none, whatever is in it.
pub fn is_unused(name: &str) -> bool {
    name.starts_with(PREFIX)
}

impl Unused {
    /// For files in `dir`. Where a lease does not tell of an open file, or of a mapping, none is
    /// used again: not on overlayfs, which maps another inode than it opens.
    pub fn new(dir: &Path) -> Self {
        let leases_tell = leases_tell(dir).unwrap_or_else(|error| {
            tracing::debug!(%error, "no staged file is used again");
            false
        });
        Self { names: Mutex::default(), leases_tell }
    }

    /// A file at `path`, empty, as new; `None`: there is none at hand.
    pub fn take(&self, path: &Path) -> Option<File> {
        let name = self.names.lock().free.pop()?;
        let file = OpenOptions::new().read(true).write(true).open(&name).ok()?;
        std::fs::rename(&name, path).ok()?; // what is in the way here is in nobody's
        Some(file)
    }

    /// Takes a file that is done with, its name too. False: it stays as it is.
    pub fn put(&self, file: &mut StagedFile) -> io::Result<bool> {
        if !self.leases_tell || file.allocated()? > BYTES_MAX || !is_ours_alone(file.file()) {
            return Ok(false);
        }
        let name = {
            let mut names = self.names.lock();
            if names.free.len() >= UNUSED_MAX {
                return Ok(false);
            }
            names.made += 1;
            format!("{PREFIX}{}", names.made)
        };
        // First the name: under the old one it would be a staged file that was cut.
        let path = file.rename(&name)?;
        file.forget_notes()?;
        file.set_size(0)?;
        self.names.lock().free.push(path);
        Ok(true)
    }

    /// Nothing is at hand any more.
    pub fn clear(&self) {
        for name in self.names.lock().free.drain(..) {
            let _ = std::fs::remove_file(name); // or else the next mount does
        }
    }
}

/// Whether no other open file and no mapping is of this one's inode. False too where the file
/// system has no leases.
fn is_ours_alone(file: &File) -> bool {
    let fd = file.as_raw_fd();
    // SAFETY: the descriptor is open, and the calls touch no memory of ours. Should somebody open
    // the file this very moment, SIGURG is sent, which does nothing, in place of SIGIO.
    unsafe {
        libc::fcntl(fd, F_SETSIG, libc::SIGURG) == 0
            && libc::fcntl(fd, libc::F_SETLEASE, libc::F_WRLCK) == 0
            && libc::fcntl(fd, libc::F_SETLEASE, libc::F_UNLCK) == 0
    }
}

/// Tries it on a file that is open twice, that is mapped, and that is neither.
fn leases_tell(dir: &Path) -> io::Result<bool> {
    let path = dir.join(format!("{PREFIX}try"));
    let mut options = OpenOptions::new();
    let file =
        options.read(true).write(true).create(true).truncate(true).mode(0o600).open(&path)?;
    let other = File::open(&path);
    std::fs::remove_file(&path)?;
    let other = other?;
    file.set_len(1)?;
    let told_of_open = !is_ours_alone(&file);
    // SAFETY: a new mapping at an address of the kernel's choice, which nobody reads.
    let mapped = unsafe {
        let (read, shared) = (libc::PROT_READ, libc::MAP_SHARED);
        libc::mmap(std::ptr::null_mut(), 1, read, shared, other.as_raw_fd(), 0)
    };
    if mapped == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    drop(other);
    let told_of_mapped = !is_ours_alone(&file);
    // SAFETY: it is our mapping, and nobody has a reference into it.
    unsafe { libc::munmap(mapped, 1) };
    Ok(told_of_open && told_of_mapped && is_ours_alone(&file))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::super::staging::StagingDir;
    use super::*;
    use crate::types::Key;

    fn staging() -> (tempfile::TempDir, StagingDir) {
        let root = tempfile::tempdir().unwrap();
        let staging = StagingDir::open(&root.path().join("staging"), &HashSet::new()).unwrap().0;
        (root, staging)
    }

    fn names(staging: &StagingDir) -> Vec<String> {
        let entries = std::fs::read_dir(staging.dir()).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_that_is_done_with_becomes_the_next_one_and_nothing_of_it_is_left() {
        let (_root, staging) = staging();
        let long = Key::new(format!("{}/end", "d".repeat(300)));
        let mut first = staging.create("ONE", &long).unwrap();
        first.write(b"content", 0).1.unwrap();
        first.note_uploaded(&first.mark().unwrap().unwrap()).unwrap();
        staging.done_with(&mut first).unwrap();
        assert_eq!(names(&staging), ["unused.1"]);
        let second = staging.create("TWO", &Key::new("k")).unwrap();
        assert_eq!(names(&staging), ["TWO.k"]);
        assert_eq!((second.size().unwrap(), second.is_uploaded().unwrap()), (0, false));
        second.write(b"new", 0).1.unwrap();
        let mut old = [0; 8];
        assert_eq!(first.read(&mut old, 0).unwrap(), 3, "the same file");
        drop(second);
        drop(staging);
    }

    /// Else a program that maps a file would see another one's bytes in it, or die of SIGBUS.
    #[test]
    fn a_file_that_somebody_has_open_or_mapped_is_not_used_again() {
        let (_root, staging) = staging();
        let fresh = |id: &str| {
            let file = staging.create(id, &Key::new("k")).unwrap();
            file.write(&[7; 4096], 0).1.unwrap();
            let path = staging.dir().join(format!("{id}.k"));
            (file, path)
        };
        let reads = |path: &Path| File::open(path).unwrap();
        let writes = |path: &Path| OpenOptions::new().write(true).open(path).unwrap();
        for open in [reads, writes] {
            let (mut file, path) = fresh("OPEN");
            let other = open(&path);
            staging.done_with(&mut file).unwrap();
            assert!(names(&staging).is_empty(), "removed");
            drop(other);
        }
        let (mut file, path) = fresh("MAPPED");
        let other = reads(&path);
        // SAFETY: a new mapping of a file of 4096 bytes that nobody cuts.
        let mapped = unsafe {
            let (read, shared) = (libc::PROT_READ, libc::MAP_SHARED);
            let at = libc::mmap(std::ptr::null_mut(), 4096, read, shared, other.as_raw_fd(), 0);
            assert_ne!(at, libc::MAP_FAILED);
            drop(other);
            at
        };
        staging.done_with(&mut file).unwrap();
        assert!(names(&staging).is_empty(), "removed");
        // SAFETY: mapped above, and as long as that.
        unsafe {
            assert_eq!(*mapped.cast::<u8>(), 7);
            libc::munmap(mapped, 4096);
        }
    }

    #[test]
    fn what_a_dead_daemon_was_done_with_is_not_said_to_be_lost() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("staging");
        StagingDir::open(&dir, &HashSet::new()).unwrap();
        std::fs::write(dir.join("unused.3"), "uploaded, and not cut yet").unwrap();
        let (staging, moved) = StagingDir::open(&dir, &HashSet::new()).unwrap();
        assert_eq!((moved, names(&staging).len()), (0, 0));
    }
}
