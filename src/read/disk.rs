//! The cache directory: its files, its log, and the system calls on them.
//!
//! Owns the directory's content while the process lives (one daemon at a time, which the mount sees
//! to), and the decision to leave a failing disk alone for a while. Does not own what a file holds
//! in memory's view (`entry`), nor eviction (`catalog`).

use std::collections::HashMap;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Write};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::clock::Clock;
use crate::read::index::{self, FileId, Record, Saved};

/// After an error of the disk nothing is stored for so long: a full disk is not asked at each
/// block.
const PAUSE: Duration = Duration::from_secs(10);
/// The log is rewritten when it is longer than this and four times what it must be: it is read at
/// once when mounting, which should take no longer than a few requests.
const LOG_BYTES_MAX: u64 = 4 << 20;
const LOG_NAME: &str = "index";
const LOG_NEW_NAME: &str = "index.new";

/// How a new cache file is made; tests put a full disk here.
pub type Create = fn(&Path) -> io::Result<File>;

#[derive(Debug)]
pub struct Disk {
    dir: PathBuf,
    create: Create,
    clock: Arc<dyn Clock>,
    log: Mutex<Log>,
    paused_until: Mutex<Option<Instant>>,
}

#[derive(Debug)]
struct Log {
    file: File,
    bytes: u64,
    compact_at_bytes: u64,
}

impl Disk {
    /// Takes a directory over, 0700. What an earlier process left there and logged is returned;
    /// anything else in it is deleted.
    pub fn open(
        dir: PathBuf,
        clock: Arc<dyn Clock>,
        create: Create,
    ) -> io::Result<(Self, HashMap<FileId, Saved>)> {
        DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
        fs::set_permissions(&dir, Permissions::from_mode(0o700))?;
        let mut saved = index::fold(&fs::read(dir.join(LOG_NAME)).unwrap_or_default());
        let kept = sweep(&dir, &saved)?;
        saved.retain(|id, _| kept.contains(id));
        let log = Mutex::new(Log::write(&dir, &saved)?);
        Ok((Self { dir, create, clock, log, paused_until: Mutex::new(None) }, saved))
    }

    pub fn now(&self) -> Instant {
        self.clock.now()
    }

    /// Whether it makes sense to store anything now.
    pub fn is_usable(&self) -> bool {
        let mut until = self.paused_until.lock();
        if until.is_some_and(|t| self.clock.now() < t) {
            return false;
        }
        *until = None;
        true
    }

    /// The disk failed: nothing is stored for [`PAUSE`].
    pub fn pause(&self) {
        *self.paused_until.lock() = Some(self.clock.now() + PAUSE);
    }

    pub fn create(&self) -> io::Result<(FileId, File)> {
        let id = FileId(self.clock.random());
        (self.create)(&self.path(id)).map(|file| (id, file))
    }

    pub fn reopen(&self, id: FileId) -> io::Result<File> {
        OpenOptions::new().read(true).write(true).open(self.path(id))
    }

    pub fn open_read_only(&self, id: FileId) -> io::Result<File> {
        File::open(self.path(id))
    }

    /// Moves a finished file into the directory. `EXDEV` where it lies on another file system.
    pub fn adopt(&self, path: &Path) -> io::Result<FileId> {
        let id = FileId(self.clock.random());
        fs::set_permissions(path, Permissions::from_mode(0o600))?;
        fs::rename(path, self.path(id)).map(|()| id)
    }

    /// Moves a file out of the directory. On error it is where it was.
    pub fn give(&self, id: FileId, to: &Path) -> io::Result<()> {
        fs::rename(self.path(id), to)?;
        self.note(&Record::Gone { file: id });
        Ok(())
    }

    /// Deletes a file; open descriptors keep its bytes.
    pub fn remove(&self, id: FileId) {
        if let Err(error) = fs::remove_file(self.path(id))
            && error.kind() != ErrorKind::NotFound
        {
            tracing::warn!(%error, file = id.file_name(), "a cache file can't be deleted");
        }
        self.note(&Record::Gone { file: id });
    }

    /// Appends to the log. An error is forgotten: it costs GETs after a restart, see `index`.
    pub fn note(&self, record: &Record) {
        let mut log = self.log.lock();
        let line = record.encode();
        log.bytes += line.len() as u64;
        let _ = log.file.write_all(&line);
        if log.bytes > log.compact_at_bytes {
            let saved = index::fold(&fs::read(self.dir.join(LOG_NAME)).unwrap_or_default());
            match Log::write(&self.dir, &saved) {
                Ok(shorter) => *log = shorter,
                Err(_) => log.compact_at_bytes *= 2,
            }
        }
    }

    fn path(&self, id: FileId) -> PathBuf {
        self.dir.join(id.file_name())
    }
}

impl Log {
    fn write(dir: &Path, saved: &HashMap<FileId, Saved>) -> io::Result<Self> {
        let (new, path) = (dir.join(LOG_NEW_NAME), dir.join(LOG_NAME));
        let content = index::compact(saved);
        let mut options = OpenOptions::new();
        let mut file = options.create(true).truncate(true).write(true).mode(0o600).open(&new)?;
        file.write_all(&content)?;
        fs::rename(&new, &path)?;
        let file = OpenOptions::new().append(true).open(&path)?;
        let bytes = content.len() as u64;
        Ok(Self { file, bytes, compact_at_bytes: LOG_BYTES_MAX.max(bytes * 4) })
    }
}

/// Deletes what the log does not speak of; returns the files that stay.
fn sweep(
    dir: &Path,
    saved: &HashMap<FileId, Saved>,
) -> io::Result<std::collections::HashSet<FileId>> {
    let mut kept = std::collections::HashSet::new();
    for item in fs::read_dir(dir)? {
        let item = item?;
        let id = item.file_name().to_str().and_then(FileId::parse);
        let known = id.and_then(|id| saved.get(&id).map(|s| (id, s)));
        match known {
            Some((id, s)) if !s.granules.is_empty() && item.metadata()?.len() <= s.version.size => {
                kept.insert(id);
            }
            _ if id.is_some() => fs::remove_file(item.path())?,
            _ => {}
        }
    }
    Ok(kept)
}

/// Makes a cache file, 0600.
pub fn create_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)
}

/// Whether a read may wait for the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    Yes,
    /// Only what is in the page cache: [`ErrorKind::WouldBlock`] where it is not.
    No,
}

/// Fills a buffer with what stands from `start` on.
pub fn read_range(file: &File, start: u64, buffer: &mut [u8], wait: Wait) -> io::Result<()> {
    let mut done = 0;
    let mut flags = if wait == Wait::No { libc::RWF_NOWAIT } else { 0 };
    while done < buffer.len() {
        let rest = &mut buffer[done..];
        let iov = libc::iovec { iov_base: rest.as_mut_ptr().cast(), iov_len: rest.len() };
        let at = (start + done as u64) as libc::off_t;
        // SAFETY: `iov` describes `rest`, which nothing else touches meanwhile.
        let n = unsafe { libc::preadv2(file.as_raw_fd(), &iov, 1, at, flags) };
        match n {
            1.. => done += n as usize,
            0 => return Err(ErrorKind::UnexpectedEof.into()),
            _ => match io::Error::last_os_error() {
                e if e.kind() == ErrorKind::Interrupted => {}
                // A file system that does not know the flag: its reads wait.
                e if flags != 0 && e.raw_os_error() == Some(libc::EOPNOTSUPP) => flags = 0,
                e => return Err(e),
            },
        }
    }
    Ok(())
}

/// A file's length and the time of its last change of any kind, to tell whether it changed since.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    len: u64,
    changed: (i64, i64),
}

impl Stamp {
    pub fn of(file: &File) -> io::Result<Self> {
        let now = file.metadata()?;
        Ok(Self { len: now.len(), changed: (now.ctime(), now.ctime_nsec()) })
    }

    pub fn len(&self) -> u64 {
        self.len
    }
}

/// Whether the first `len` bytes are all in the page cache, so that the disk is not asked for them.
/// `false` where the kernel can't tell (before Linux 6.5).
pub fn is_resident(file: &File, len: u64) -> bool {
    /// `struct cachestat_range` and `struct cachestat` of linux/mman.h, in which pages are counted.
    #[repr(C)]
    struct Asked {
        offset: u64,
        len: u64,
    }
    #[repr(C)]
    #[derive(Default)]
    struct Counted {
        cached: u64,
        others: [u64; 4],
    }
    const CACHESTAT: libc::c_long = 451; // the same number on every architecture
    let (asked, mut counted) = (Asked { offset: 0, len }, Counted::default());
    // SAFETY: the descriptor is open, both structs are the kernel's and outlive the call.
    let result = unsafe { libc::syscall(CACHESTAT, file.as_raw_fd(), &asked, &mut counted, 0) };
    // SAFETY: sysconf has no preconditions.
    let page = u64::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096);
    result == 0 && counted.cached >= len.div_ceil(page)
}

/// Gives a range's space back; it reads as zeros afterwards.
pub fn punch(file: &File, range: &Range<u64>) -> io::Result<()> {
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    let (start, len) = (range.start as libc::off_t, (range.end - range.start) as libc::off_t);
    // SAFETY: plain integers and a descriptor that is open as long as `file` is borrowed.
    match unsafe { libc::fallocate(file.as_raw_fd(), mode, start, len) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Copies the first `bytes` of a file to the start of another, inside the kernel.
pub fn copy(from: &File, to: &File, bytes: u64) -> io::Result<()> {
    let (mut source, mut target) = (0, 0);
    while (source as u64) < bytes {
        let left = (bytes - source as u64) as usize;
        let (a, b) = (from.as_raw_fd(), to.as_raw_fd());
        // SAFETY: both descriptors are open, both offsets are ours.
        let n = unsafe { libc::copy_file_range(a, &mut source, b, &mut target, left, 0) };
        match n {
            1.. => {}
            0 => return Err(ErrorKind::UnexpectedEof.into()),
            _ => return Err(io::Error::last_os_error()),
        }
    }
    Ok(())
}
