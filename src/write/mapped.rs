//! A private copy of a staged file, mapped as one body: for stores that take a file only by a
//! single PUT, however large it is.
//!
//! Owns the copy and the mapping. Does not own when it is used (`bodies`).
//!
//! The staged file itself must not be mapped: who cuts it while we send would kill us with SIGBUS.
//! The copy has no name and no other owner. Its bytes are in the page cache or on the disk, so it
//! takes disk space (none where the file system shares blocks) instead of memory.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::ptr::NonNull;

/// The bytes, until they are dropped.
#[derive(Debug)]
pub struct Mapped {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping is read-only, and nobody can write to or cut the file below it.
unsafe impl Send for Mapped {}
unsafe impl Sync for Mapped {}

impl Mapped {
    /// Copies the first `len` bytes of `file`, which are not none, into `dir` and maps them; `None`
    /// if the file has become shorter.
    pub fn copy_of(file: &File, len: usize, dir: &Path) -> io::Result<Option<Self>> {
        let copy = tempfile::tempfile_in(dir)?;
        let mut copied = 0;
        while copied < len {
            match copy_range(file, &copy, copied, len - copied)? {
                0 => return Ok(None),
                more => copied += more,
            }
        }
        Self::map(&copy, len).map(Some)
    }

    fn map(file: &File, len: usize) -> io::Result<Self> {
        let (read, shared) = (libc::PROT_READ, libc::MAP_SHARED);
        // SAFETY: a new mapping at an address of the kernel's choice, of a file of `len` bytes.
        let start =
            unsafe { libc::mmap(std::ptr::null_mut(), len, read, shared, file.as_raw_fd(), 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { start, len })
    }
}

impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: `len` bytes are mapped from `start` on until `self` is dropped.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: it is our mapping, and nobody has a reference into it any more.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

/// copy_file_range(2) at the same offset in both files; 0 at the end of `from`.
fn copy_range(from: &File, to: &File, offset: usize, len: usize) -> io::Result<usize> {
    let (mut read_at, mut write_at) = (offset as libc::off64_t, offset as libc::off64_t);
    let (from, to) = (from.as_raw_fd(), to.as_raw_fd());
    // SAFETY: both descriptors are open, both offsets are ours for the length of the call.
    let copied = unsafe { libc::copy_file_range(from, &mut read_at, to, &mut write_at, len, 0) };
    if copied < 0 { Err(io::Error::last_os_error()) } else { Ok(copied as usize) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn the_copy_is_whole_and_stays_when_the_file_is_cut() {
        let mut file = tempfile::tempfile().unwrap();
        let bytes: Vec<u8> = (0..100_000u32).map(|at| at as u8).collect();
        file.write_all(&bytes).unwrap();
        let dir = std::env::temp_dir();
        let mapped = Mapped::copy_of(&file, 99_999, &dir).unwrap().unwrap();
        file.set_len(0).unwrap();
        assert!(mapped.as_ref() == &bytes[..99_999]);
        assert!(Mapped::copy_of(&file, 1, &dir).unwrap().is_none());
    }
}
