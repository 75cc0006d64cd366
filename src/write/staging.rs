//! Staged files on the local disk, and where those go whose bytes never reached the bucket.
//!
//! Owns the staging directory and the system calls on a staged file. Does not own what the bytes
//! mean. A directory is used by one daemon at a time; its lock is the caller's.

use std::collections::HashSet;
use std::ffi::{CStr, CString, OsStr};
use std::fs::{DirBuilder, File, FileTimes, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::quarantine::{self, QUARANTINE_DIR, Why};
use super::unused::{Unused, is_unused};
use crate::types::Key;

/// Below so much free space no file is staged: writes by passthrough are not seen, so they can't be
/// held back, and a full disk would fail those that are half done.
const FREE_BYTES_MIN: u64 = 64 << 20;
/// With less room than the kernel's largest single write, one may have failed.
const ROOM_BYTES_MIN: u64 = 2 << 20;
/// Of a small disk only this part is kept free.
const FREE_PART_MIN: u64 = 16;

/// Says of a staged file's size and modification time that the bucket has what was in it then.
const UPLOADED_XATTR: &CStr = c"user.trialfs.uploaded";
/// More than its value ever takes: two numbers and a blank.
const UPLOADED_BYTES_MAX: usize = 64;

/// The directory of staged files.
#[derive(Debug)]
pub struct StagingDir {
    dir: PathBuf,
    quarantine: PathBuf,
    unused: Unused,
}

impl StagingDir {
    /// Makes the directory (0700). What a dead daemon left in it moves to `quarantine` beside it,
    /// but for what is empty or in the bucket already, and for what the journal speaks of by these
    /// names; returns how many files did.
    pub fn open(dir: &Path, kept: &HashSet<&str>) -> io::Result<(Self, u64)> {
        let parent = dir.parent().ok_or(io::ErrorKind::InvalidInput)?;
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let quarantine = parent.join(QUARANTINE_DIR);
        let unused = Unused::new(dir);
        let staging = Self { dir: dir.to_owned(), quarantine, unused };
        let mut moved = 0;
        for entry in std::fs::read_dir(dir)? {
            let entry = entry?;
            let name = entry.file_name();
            let name = name.to_str().unwrap_or_default(); // no other is ours
            if kept.contains(name) || !entry.file_type()?.is_file() {
                continue;
            }
            if is_unused(name) {
                std::fs::remove_file(entry.path())?;
                continue;
            }
            let file = File::open(entry.path())?;
            if is_spent(&file)? {
                std::fs::remove_file(entry.path())?;
            } else {
                quarantine::note_why(&file, Why::NotClosed);
                quarantine::put(&entry.path(), &staging.quarantine)?;
                moved += 1;
            }
        }
        Ok((staging, moved))
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Whether nothing more can be counted on to fit; also where that can't be told.
    pub fn is_full(&self) -> bool {
        free_and_all_bytes(&self.dir).map_or(true, |(free, _)| free < ROOM_BYTES_MIN)
    }

    /// An empty staged file (0600). ENOSPC where the disk is all but full.
    pub fn create(&self, id: &str, key: &Key) -> io::Result<StagedFile> {
        let path = self.path_for(id, key)?;
        let make =
            || OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path);
        let file = self.unused.take(&path).map_or_else(make, Ok)?;
        quarantine::note_key(&file, key);
        Ok(StagedFile { file, path, quarantine: self.quarantine.clone() })
    }

    /// A file whose bytes nobody needs any more: it goes, or becomes the next one. Its user has
    /// nothing more to do with it.
    pub fn done_with(&self, file: &mut StagedFile) -> io::Result<()> {
        if self.unused.put(file)? { Ok(()) } else { file.remove() }
    }

    /// A file that `bring` moves to the path it is given, as a staged one.
    pub fn take_over(
        &self,
        id: &str,
        key: &Key,
        bring: impl FnOnce(&Path) -> io::Result<()>,
    ) -> io::Result<StagedFile> {
        let path = self.path_for(id, key)?;
        bring(&path)?;
        let file = OpenOptions::new().read(true).write(true).open(&path)?;
        quarantine::note_key(&file, key);
        Ok(StagedFile { file, path, quarantine: self.quarantine.clone() })
    }

    fn path_for(&self, id: &str, key: &Key) -> io::Result<PathBuf> {
        let (free, all) = free_and_all_bytes(&self.dir)?;
        if free < FREE_BYTES_MIN.min(all / FREE_PART_MIN) {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        Ok(self.dir.join(quarantine::name_of(id, key)))
    }

    /// A staged file that an earlier daemon made, if it is still there.
    pub fn reopen(&self, name: &str) -> io::Result<Option<StagedFile>> {
        if Path::new(name).file_name() != Some(OsStr::new(name)) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let path = self.dir.join(name);
        match OpenOptions::new().read(true).write(true).open(&path) {
            Ok(file) => Ok(Some(StagedFile { file, path, quarantine: self.quarantine.clone() })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl Drop for StagingDir {
    fn drop(&mut self) {
        self.unused.clear();
    }
}

/// A modification time that the kernel will not give to any later write; see [`StagedFile::mark`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    size: u64,
    modified: SystemTime,
}

impl Mark {
    /// The time that the mark left on the file.
    pub fn modified(&self) -> SystemTime {
        self.modified
    }
}

/// A file on the staging disk. Its calls go to the page cache and block only where that does.
#[derive(Debug)]
pub struct StagedFile {
    file: File,
    path: PathBuf,
    quarantine: PathBuf,
}

impl StagedFile {
    pub fn file(&self) -> &File {
        &self.file
    }

    pub fn size(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    pub fn modified(&self) -> io::Result<SystemTime> {
        self.file.metadata()?.modified()
    }

    /// What the file takes on the disk, in bytes; less than its size where it has holes.
    pub fn allocated(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.blocks() * 512)
    }

    /// Fills `buffer` from `offset` on; fewer bytes than asked for mean the end of the file.
    pub fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.file.read_at(&mut buffer[filled..], offset + filled as u64) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }

    /// Writes all of `data`, or says how much of it was written before the error.
    pub fn write(&self, data: &[u8], offset: u64) -> (usize, io::Result<()>) {
        let mut written = 0;
        while written < data.len() {
            match self.file.write_at(&data[written..], offset + written as u64) {
                Ok(0) => return (written, Err(io::ErrorKind::WriteZero.into())),
                Ok(more) => written += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return (written, Err(error)),
            }
        }
        (written, Ok(()))
    }

    pub fn set_size(&self, size: u64) -> io::Result<()> {
        self.file.set_len(size)
    }

    /// fallocate(2) with `mode`. `offset` and `len` fit i64: the kernel saw to it.
    pub fn allocate(&self, mode: i32, offset: u64, len: u64) -> io::Result<()> {
        let (offset, len) = (offset as libc::off_t, len as libc::off_t);
        // SAFETY: the descriptor is open, the call touches no memory of ours.
        check(unsafe { libc::fallocate(self.file.as_raw_fd(), mode, offset, len) }.into()).map(drop)
    }

    /// Makes `offset..offset + len` read as zeros without changing the size.
    pub fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        self.allocate(libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, offset, len)
    }

    /// How far there is data without a hole from `offset` on; `offset` itself in a hole or past the
    /// end. A file system without SEEK_HOLE says: to the end.
    pub fn data_end(&self, offset: u64) -> io::Result<u64> {
        // SAFETY: as above. The file position that this moves is used by nobody.
        let hole =
            unsafe { libc::lseek(self.file.as_raw_fd(), offset as libc::off_t, libc::SEEK_HOLE) };
        match check(hole) {
            Err(error) if error.raw_os_error() == Some(libc::ENXIO) => Ok(offset),
            other => other.map(|end| end as u64),
        }
    }

    /// Marks the file so that [`StagedFile::is_as_marked`] tells whether the kernel wrote into it
    /// since, however coarse its clock. `None`: it wrote while we marked.
    ///
    /// The modification time is set one nanosecond back, to before any time that the clock will
    /// ever give a write again. A write takes the inode's lock, stamps the time and copies, then
    /// unlocks; setting the time takes the same lock. So a write that is under way is over when
    /// this returns, its bytes readable, and one that begins later leaves another time. What is not
    /// seen: a store to a shared mapping whose page was dirty already.
    pub fn mark(&self) -> io::Result<Option<Mark>> {
        let wanted = self.modified()? - Duration::from_nanos(1);
        self.file.set_times(FileTimes::new().set_modified(wanted))?;
        let after = self.file.metadata()?;
        // Earlier than wanted is well: the file system keeps coarser times.
        let mark = Mark { size: after.len(), modified: after.modified()? };
        Ok((mark.modified <= wanted).then_some(mark))
    }

    pub fn is_as_marked(&self, mark: &Mark) -> bool {
        self.seen().is_ok_and(|now| now == (mark.size, mark.modified))
    }

    /// Notes on the file that the bucket has it as it was at `mark`, for a daemon that finds it
    /// after ours was killed. Nothing is synced: whoever finds no note, or another time or size on
    /// the file, keeps it. On a file system without extended attributes there is never a note.
    pub fn note_uploaded(&self, mark: &Mark) -> io::Result<()> {
        let note = note_of(mark.size, mark.modified);
        // SAFETY: the descriptor is open, the name ends in zero, the value is as long as it says.
        let result = unsafe {
            let name = UPLOADED_XATTR.as_ptr();
            libc::fsetxattr(self.file.as_raw_fd(), name, note.as_ptr().cast(), note.len(), 0)
        };
        match check(result.into()) {
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(()),
            other => other.map(drop),
        }
    }

    /// Size and modification time: what a look from outside tells.
    pub fn seen(&self) -> io::Result<(u64, SystemTime)> {
        let now = self.file.metadata()?;
        Ok((now.len(), now.modified()?))
    }

    /// Gives it another name in its directory.
    pub fn rename(&mut self, name: &str) -> io::Result<PathBuf> {
        let path = self.path.with_file_name(name);
        std::fs::rename(&self.path, &path)?;
        self.path = path.clone();
        Ok(path)
    }

    /// Takes off it what was noted of its content.
    pub fn forget_notes(&self) -> io::Result<()> {
        quarantine::forget_key(&self.file)?;
        quarantine::forget(&self.file, UPLOADED_XATTR)
    }

    /// Deletes the file's name; the bytes go with the last descriptor.
    pub fn remove(&self) -> io::Result<()> {
        std::fs::remove_file(&self.path)
    }

    /// Moves the file to where a person will look for it.
    pub fn quarantine(&self, why: Why) -> io::Result<PathBuf> {
        quarantine::note_why(&self.file, why);
        quarantine::put(&self.path, &self.quarantine)
    }

    /// Puts a copy of it there.
    pub fn quarantine_copy(&self, why: Why) -> io::Result<PathBuf> {
        let copy = self.path.with_file_name(self.name() + "~");
        std::fs::copy(&self.path, &copy)?;
        quarantine::note_why(&OpenOptions::new().write(true).open(&copy)?, why);
        quarantine::put(&copy, &self.quarantine)
    }

    /// The name in the staging directory.
    pub fn name(&self) -> String {
        let name = self.path.file_name().unwrap_or_default();
        name.to_string_lossy().into_owned()
    }

    /// Whether a note says that the bucket has it as it is.
    pub fn is_uploaded(&self) -> io::Result<bool> {
        is_noted(&self.file)
    }
}

/// Whether nothing is lost with a file that a dead daemon left.
fn is_spent(file: &File) -> io::Result<bool> {
    Ok(file.metadata()?.len() == 0 || is_noted(file)?)
}

fn is_noted(file: &File) -> io::Result<bool> {
    let metadata = file.metadata()?;
    let mut value = [0u8; UPLOADED_BYTES_MAX];
    // SAFETY: as in `note_uploaded`; the kernel writes no more than the length it is told.
    let result = unsafe {
        let name = UPLOADED_XATTR.as_ptr();
        libc::fgetxattr(file.as_raw_fd(), name, value.as_mut_ptr().cast(), value.len())
    };
    // Whatever is the matter with the note, without one the file is kept.
    let note = usize::try_from(result).map_or(&[][..], |len| &value[..len]);
    Ok(note == note_of(metadata.len(), metadata.modified()?).as_bytes())
}

fn note_of(size: u64, modified: SystemTime) -> String {
    let since = modified.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    format!("{size} {}", since.as_nanos())
}

fn free_and_all_bytes(dir: &Path) -> io::Result<(u64, u64)> {
    let path = CString::new(dir.as_os_str().as_bytes())?;
    // SAFETY: all zeros is a valid statvfs, the path ends in zero and outlives the call.
    let mut stat: libc::statvfs = unsafe { std::mem::zeroed() };
    check(unsafe { libc::statvfs(path.as_ptr(), &mut stat) }.into())?;
    Ok((stat.f_bavail * stat.f_frsize, stat.f_blocks * stat.f_frsize))
}

fn check(result: i64) -> io::Result<i64> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn staged() -> (tempfile::TempDir, StagedFile) {
        let root = tempfile::tempdir().unwrap();
        let (staging, _) = StagingDir::open(&root.path().join("staging"), &HashSet::new()).unwrap();
        let file = staging.create("ID", &Key::new("a/b=1.pt")).unwrap();
        (root, file)
    }

    #[test]
    fn what_a_dead_daemon_left_is_moved_and_never_deleted() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("staging");
        for content in ["one", "two"] {
            StagingDir::open(&dir, &HashSet::new()).unwrap();
            std::fs::write(dir.join("ID.k"), content).unwrap();
        }
        assert_eq!(StagingDir::open(&dir, &HashSet::new()).unwrap().1, 1);
        let read = |name| std::fs::read_to_string(root.path().join("quarantine").join(name));
        assert_eq!((read("ID.k").unwrap(), read("ID.k~").unwrap()), ("one".into(), "two".into()));
    }

    #[test]
    fn what_a_dead_daemon_had_uploaded_is_not_said_to_be_lost() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("staging");
        let (staging, _) = StagingDir::open(&dir, &HashSet::new()).unwrap();
        let written = |name| {
            let file = staging.create(name, &Key::new("k")).unwrap();
            file.write(b"content", 0).1.unwrap();
            file
        };
        let noted = |name| {
            let file = written(name);
            file.note_uploaded(&file.mark().unwrap().unwrap()).unwrap();
            file
        };
        staging.create("EMPTY", &Key::new("k")).unwrap();
        noted("UPLOADED");
        written("DIRTY");
        noted("AGAIN").write(b"CONTENT", 0).1.unwrap();
        noted("GROWN").set_size(100).unwrap();
        assert_eq!(StagingDir::open(&dir, &HashSet::new()).unwrap().1, 3);
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 0);
        let kept = std::fs::read_dir(root.path().join("quarantine")).unwrap();
        let mut kept: Vec<_> = kept.map(|entry| entry.unwrap().file_name()).collect();
        kept.sort();
        assert_eq!(kept, ["AGAIN.k", "DIRTY.k", "GROWN.k"]);
    }

    /// Were it told by the time alone, writes within one tick of the clock (4 ms) would be lost.
    #[test]
    fn a_write_at_once_after_a_mark_is_always_seen() {
        let (_root, staged) = staged();
        for round in 0..2000u32 {
            staged.write(&round.to_le_bytes(), 0).1.unwrap();
            let mark = staged.mark().unwrap().unwrap();
            assert!(staged.is_as_marked(&mark), "{round}");
            staged.write(&round.to_le_bytes(), 0).1.unwrap();
            assert!(!staged.is_as_marked(&mark), "{round}");
        }
    }

    /// The bad interleaving: a write has stamped the time and copies; we mark and read the old
    /// bytes; it ends, and the file is as we marked it.
    #[test]
    fn a_mark_waits_for_the_write_that_is_under_way() {
        const LEN: usize = 16 << 20;
        let (_root, staged) = staged();
        staged.write(&vec![0; LEN], 0).1.unwrap();
        let mut overtaken = 0;
        for round in 1..=10 {
            let before = staged.modified().unwrap();
            let last = std::thread::scope(|threads| {
                let writer = threads.spawn(|| staged.write(&vec![round; LEN], 0).1.unwrap());
                while staged.modified().unwrap() == before {
                    std::hint::spin_loop();
                }
                overtaken += u32::from(!writer.is_finished());
                let mark = staged.mark().unwrap();
                let mut last = [0];
                staged.read(&mut last, LEN as u64 - 1).unwrap();
                writer.join().unwrap();
                mark.filter(|mark| staged.is_as_marked(mark)).map(|_| last[0])
            });
            assert!(last.is_none_or(|last| last == round), "{last:?} in round {round}");
        }
        assert!(overtaken > 0, "no write was ever under way");
    }

    #[test]
    fn a_hole_ends_the_data() {
        let (_root, staged) = staged();
        staged.set_size(1 << 20).unwrap();
        staged.write(&[1; 8192], 0).1.unwrap();
        assert_eq!(staged.data_end(0).unwrap(), 8192);
        assert_eq!(staged.data_end(1 << 19).unwrap(), 1 << 19);
        assert_eq!(staged.data_end(1 << 21).unwrap(), 1 << 21);
    }
}
