//! Directories held open, and nothing outside them: every step of a path is taken without following
//! a symbolic link, so that none in the export leads out of it.
//!
//! Owns the walk and the few calls that `std` does not have. Names below a held directory are given
//! to `std::fs` as `/proc/self/fd/<n>/<name>`. The last step is the caller's: it must not follow
//! either.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// A directory, held open.
#[derive(Debug)]
pub struct Beneath {
    fd: OwnedFd,
}

/// Opens a directory below `at`, or anywhere with `AT_FDCWD`.
fn open_directory(at: i32, path: &Path, flags: i32) -> io::Result<OwnedFd> {
    let path = c_string(path)?;
    let flags = flags | libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC;
    // SAFETY: `path` is a C string that outlives the call; a result that is not negative is a new
    // descriptor that nobody else owns.
    unsafe {
        match libc::openat(at, path.as_ptr(), flags) {
            -1 => Err(io::Error::last_os_error()),
            fd => Ok(OwnedFd::from_raw_fd(fd)),
        }
    }
}

fn c_string(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

impl Beneath {
    /// The root of an export, which may itself be reached through links.
    pub fn root(path: &Path) -> io::Result<Self> {
        Ok(Self { fd: open_directory(libc::AT_FDCWD, path, 0)? })
    }

    /// The directory `name`, one step down. `ENOTDIR` if it is a link.
    pub fn enter(&self, name: &str) -> io::Result<Self> {
        Ok(Self { fd: open_directory(self.fd.as_raw_fd(), Path::new(name), libc::O_NOFOLLOW)? })
    }

    /// Enters `name`, making it first where it is missing.
    pub fn make(&self, name: &str) -> io::Result<Self> {
        match self.enter(name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            result => return result,
        }
        match std::fs::create_dir(self.entry(name)) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => self.sync()?,
        }
        self.enter(name)
    }

    /// A path to the entry `name`, good while `self` lives.
    pub fn entry(&self, name: &str) -> PathBuf {
        self.itself().join(name)
    }

    /// A path to the directory itself.
    pub fn itself(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.fd.as_raw_fd()))
    }

    /// Makes new, renamed and removed names outlive a power loss.
    pub fn sync(&self) -> io::Result<()> {
        match File::open(self.itself())?.sync_all() {
            // Some network file systems have no such call: they are synchronous by themselves.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
            result => result,
        }
    }
}

/// rename(2) that never replaces: `EEXIST` instead. `EINVAL` where the file system can't.
pub fn rename_no_replace(from: &Path, to: &Path) -> io::Result<()> {
    let (from, to) = (c_string(from)?, c_string(to)?);
    let (at, flags) = (libc::AT_FDCWD, libc::RENAME_NOREPLACE);
    // SAFETY: both paths are C strings that outlive the call.
    match unsafe { libc::renameat2(at, from.as_ptr(), at, to.as_ptr(), flags) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
