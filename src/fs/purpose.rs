//! What a lookup is for: the system call that it is a part of.
//!
//! FUSE looks each name of a path up before it says what it wants there, and each lookup that asks
//! the store is a round trip. `/proc/<thread>/syscall` tells the call whose thread waits for our
//! answer, and its memory the path, so that a question whose answer can't matter is spared.
//!
//! Owns reading it. Does not own what is spared (`lookup`, `revalidate`, `creating`). What can't be
//! read, or is not understood, has the purpose [`Purpose::Unknown`]: then every name is asked for.
//! The cost is some 20 us.
//!
//! What must hold: nobody waits for us in a circle. `/proc/<thread>/mem` takes the lock of the
//! process's memory, which a page fault may hold that waits for a read of ours. So one thread at
//! most looks at a time, and others are left to answer that read; and nothing is looked at where
//! execve(2) holds what `/proc` waits for while it looks its program up.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use super::processes::{can_be_watched, read_start};

/// What is looked at of a path, its end included; a longer one is of an unknown purpose.
const PATH_BYTES_MAX: usize = 4096;
/// A number and eight words of 64 bits in hexadecimal take less.
const CALL_BYTES_MAX: usize = 256;
/// How often a thread is looked at that does not sleep yet: it has asked us, and is about to.
const LOOKS_MAX: usize = 8;
/// How long a look waits for another one.
const TURN_MAX: Duration = Duration::from_micros(500);
/// So often in a row `/proc` may refuse us; then it is not asked again, since each time may be a
/// line in a security log.
const REFUSALS_MAX: u32 = 16;
/// The kernel from which on execve(2) lets `/proc` tell of a process that looks its program up.
const LINUX_MIN: (u32, u32) = (5, 11);

/// Whoever looks.
static LOOKING: Mutex<()> = Mutex::new(());
static REFUSALS: AtomicU32 = AtomicU32::new(0);
static TELLS: LazyLock<bool> = LazyLock::new(|| {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    can_be_watched() && is_recent(&release) && std::fs::read("/proc/thread-self/syscall").is_ok()
});

fn is_recent(release: &str) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse().ok());
    let version = numbers.next().flatten().zip(numbers.next().flatten());
    version.is_some_and(|version: (u32, u32)| version >= LINUX_MIN)
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Purpose {
    Unknown,
    /// open(2) of what is there, to read it, by this thread.
    Read(u32),
    /// open(2) of this very name, that makes it where nothing is and empties a file that is there.
    Replace,
    /// rename(2) from this very name.
    RenameFrom,
    /// rename(2) to this very name.
    RenameTo,
}

/// A name that is looked up, and where.
#[derive(Clone, Copy, Debug)]
pub struct Sought<'a> {
    /// Where the mount is, absolute.
    pub point: &'a [u8],
    /// From its root, with a `/` before each name.
    pub path: &'a [u8],
}

/// What the thread does that looks a name up.
pub fn purpose(thread: u32, sought: Sought<'_>) -> Purpose {
    if thread == 0 || REFUSALS.load(Ordering::Relaxed) >= REFUSALS_MAX || !*TELLS {
        return Purpose::Unknown;
    }
    let Some(_turn) = LOOKING.try_lock_for(TURN_MAX) else { return Purpose::Unknown };
    match look(thread, sought) {
        Ok(purpose) => {
            REFUSALS.store(0, Ordering::Relaxed);
            purpose
        }
        Err(error) => {
            if error.kind() == ErrorKind::PermissionDenied {
                REFUSALS.fetch_add(1, Ordering::Relaxed);
            }
            Purpose::Unknown
        }
    }
}

fn look(thread: u32, sought: Sought<'_>) -> io::Result<Purpose> {
    let file = format!("/proc/{thread}/syscall");
    for _ in 0..LOOKS_MAX {
        let mut buffer = [0; CALL_BYTES_MAX];
        let text = std::str::from_utf8(read_start(&file, &mut buffer)?).unwrap_or_default();
        if text != "running\n" {
            let call = Call::parse(text);
            let of = |call: Call| call.purpose(thread, sought, |at| path_of(thread, at));
            return call.map_or(Ok(Purpose::Unknown), of);
        }
        std::thread::yield_now();
    }
    Ok(Purpose::Unknown)
}

/// A system call, as `/proc/<thread>/syscall` tells it.
struct Call {
    number: i64,
    args: [u64; 6],
}

impl Call {
    fn parse(text: &str) -> Option<Self> {
        let mut words = text.split_ascii_whitespace();
        let number = words.next()?.parse().ok()?;
        let mut args = [0; 6];
        for arg in &mut args {
            *arg = u64::from_str_radix(words.next()?.strip_prefix("0x")?, 16).ok()?;
        }
        Some(Self { number, args })
    }

    /// `path` reads a path at an address of the thread's.
    fn purpose(
        &self,
        thread: u32,
        sought: Sought<'_>,
        path: impl Fn(u64) -> io::Result<Vec<u8>>,
    ) -> io::Result<Purpose> {
        let args = &self.args;
        match self.number {
            libc::SYS_openat => opening(thread, sought, args[2], || path(args[1])),
            #[cfg(target_arch = "x86_64")]
            libc::SYS_open => opening(thread, sought, args[1], || path(args[0])),
            libc::SYS_renameat | libc::SYS_renameat2 => {
                Ok(renaming(sought, &path(args[1])?, &path(args[3])?))
            }
            #[cfg(target_arch = "x86_64")]
            libc::SYS_rename => Ok(renaming(sought, &path(args[0])?, &path(args[1])?)),
            _ => Ok(Purpose::Unknown),
        }
    }
}

fn opening(
    thread: u32,
    sought: Sought<'_>,
    flags: u64,
    path: impl Fn() -> io::Result<Vec<u8>>,
) -> io::Result<Purpose> {
    let flags = flags as i32;
    let has = |flag| flags & flag != 0;
    // O_TMPFILE has the bit of O_DIRECTORY.
    if has(libc::O_PATH) || has(libc::O_DIRECTORY) {
        return Ok(Purpose::Unknown);
    }
    let reads = flags & libc::O_ACCMODE == libc::O_RDONLY;
    let replaces = !reads && has(libc::O_TRUNC) && !has(libc::O_EXCL);
    match has(libc::O_CREAT) {
        false if reads => Ok(Purpose::Read(thread)),
        true if replaces => {
            // A directory on the way there is no file to be replaced.
            let very = sought.is_end_of(&path()?);
            Ok(if very { Purpose::Replace } else { Purpose::Unknown })
        }
        _ => Ok(Purpose::Unknown),
    }
}

fn renaming(sought: Sought<'_>, from: &[u8], to: &[u8]) -> Purpose {
    match (sought.is_end_of(from), sought.is_end_of(to)) {
        (true, false) => Purpose::RenameFrom,
        (false, true) => Purpose::RenameTo,
        _ => Purpose::Unknown,
    }
}

impl Sought<'_> {
    /// Whether a program's path ends here, and does not come by on the way: a symbolic link may
    /// lead a path anywhere, so only one counts that can have gone through none.
    fn is_end_of(&self, path: &[u8]) -> bool {
        match path.strip_prefix(self.point) {
            Some(below) if path.starts_with(b"/") => below == self.path,
            // From the directory that the program is in.
            _ if path.is_empty() => false,
            _ => !path.contains(&b'/') && self.path.strip_suffix(path).is_some_and(ends_a_name),
        }
    }
}

fn ends_a_name(above: &[u8]) -> bool {
    above.ends_with(b"/")
}

/// A path in a thread's memory, without its NUL.
fn path_of(thread: u32, at: u64) -> io::Result<Vec<u8>> {
    let memory = File::open(format!("/proc/{thread}/mem"))?;
    let mut path = vec![0; PATH_BYTES_MAX];
    let read = memory.read_at(&mut path, at)?; // what lies behind its last page is not read
    let end = path[..read].iter().position(|byte| *byte == 0);
    path.truncate(end.ok_or(ErrorKind::InvalidData)?);
    Ok(path)
}

#[cfg(test)]
mod tests {
    use std::ffi::CString;
    use std::os::fd::AsRawFd;

    use super::*;

    const THREAD: u32 = 7;
    const AT: u64 = 0x1000;

    fn sought(path: &str) -> Sought<'_> {
        Sought { point: b"/m", path: path.as_bytes() }
    }

    fn openat(path: &str, name: &str, flags: i32) -> Purpose {
        let text = format!(
            "{} 0xffffffffffffff9c {AT:#x} {flags:#x} 0x1b6 0x0 0x0 0x7ffd1 0x7f0a\n",
            libc::SYS_openat
        );
        let path = |at| if at == AT { Ok(path.into()) } else { Err(ErrorKind::Other.into()) };
        Call::parse(&text).unwrap().purpose(THREAD, sought(name), path).unwrap()
    }

    fn rename(from: &str, to: &str, name: &str) -> Purpose {
        let text = format!("{} 0x3 {AT:#x} 0x4 0x2000 0x0 0x0 0x7ffd1 0x7f0a", libc::SYS_renameat2);
        let path = |at| Ok(if at == AT { from } else { to }.into());
        Call::parse(&text).unwrap().purpose(THREAD, sought(name), path).unwrap()
    }

    const REPLACE: i32 = libc::O_WRONLY | libc::O_CREAT | libc::O_TRUNC;

    #[test]
    fn only_the_very_name_of_a_path_is_replaced_never_a_directory_on_the_way() {
        assert_eq!(openat("/m/d/f", "/d/f", REPLACE), Purpose::Replace);
        assert_eq!(openat("/m/f/f", "/f/f", REPLACE), Purpose::Replace);
        assert_eq!(openat("f", "/d/f", REPLACE | libc::O_CLOEXEC), Purpose::Replace);
        for (path, name) in [
            ("/m/d/f", "/d"),
            ("/m/f/f", "/f"),
            ("/m/link/f", "/d/f"),
            ("/m/link", "/f"),
            ("/m/f/", "/f"),
            ("/elsewhere/m/f", "/f"),
            ("d/f", "/d/f"),
            ("../f", "/f"),
            ("f", "/ff"),
            ("", "/"),
        ] {
            assert_eq!(openat(path, name, REPLACE), Purpose::Unknown, "{path} {name}");
        }
    }

    #[test]
    fn whoever_wants_what_a_file_holds_replaces_nothing() {
        let kept = [
            libc::O_WRONLY | libc::O_CREAT,
            libc::O_WRONLY | libc::O_CREAT | libc::O_APPEND,
            libc::O_WRONLY | libc::O_TRUNC,
            REPLACE | libc::O_EXCL,
            libc::O_CREAT | libc::O_TRUNC,
            libc::O_RDWR | libc::O_TMPFILE,
            libc::O_PATH,
            libc::O_DIRECTORY,
        ];
        for flags in kept {
            assert_eq!(openat("/m/f", "/f", flags), Purpose::Unknown, "{flags:#o}");
        }
        assert_eq!(openat("/m/f", "/f", libc::O_RDONLY | libc::O_CLOEXEC), Purpose::Read(THREAD));
    }

    #[test]
    fn a_rename_goes_to_the_end_of_its_second_path_whatever_links_lead_through() {
        assert_eq!(rename("/m/a", "/m/b", "/b"), Purpose::RenameTo);
        assert_eq!(rename("/m/a", "/m/b", "/a"), Purpose::RenameFrom);
        assert_eq!(rename("/m/x/b", "/m/y/b", "/y/b"), Purpose::RenameTo);
        assert_eq!(rename("a", "b", "/d/b"), Purpose::RenameTo);
        for (from, to, name) in [
            // `latest` is a link to `model`, a directory that the second path goes through.
            ("/m/t.bin", "/m/latest/model", "/model"),
            ("/m/latest/x", "/m/out/model", "/model"),
            ("b", "b", "/d/b"),
            ("/m/a", "/m/b/b", "/b"),
            ("/m/a", "/m/b/", "/b"),
        ] {
            assert_eq!(rename(from, to, name), Purpose::Unknown, "{from} {to} {name}");
        }
    }

    #[test]
    fn what_is_not_understood_is_unknown() {
        for text in ["", "running\n", "-1 0x7f 0x0\n", "257 0x1\n", "x 0x1 0x1 0x1 0x1 0x1 0x1"] {
            assert!(Call::parse(text).is_none(), "{text}");
        }
        assert!(is_recent("6.18.44\n") && is_recent("5.11.0-rc1") && !is_recent("5.10.200"));
        assert!(!is_recent("") && !is_recent("linux"));
        assert_eq!(purpose(0, sought("/f")), Purpose::Unknown);
        assert_eq!(purpose(u32::MAX >> 1, sought("/f")), Purpose::Unknown);
    }

    /// A thread that hangs in open(2), as one does whose lookup we answer: of a FIFO that nobody
    /// reads.
    #[test]
    fn a_thread_that_waits_in_open_is_seen_through() {
        let directory = tempfile::tempdir().unwrap();
        let fifo = directory.path().join("fifo");
        let path = CString::new(fifo.as_os_str().as_encoded_bytes()).unwrap();
        make_fifo(&path);
        let (tell, told) = std::sync::mpsc::channel();
        let opens = fifo.clone();
        let opener = std::thread::spawn(move || {
            let me = std::fs::read_link("/proc/thread-self").unwrap();
            tell.send(me.file_name().unwrap().to_str().unwrap().parse::<u32>().unwrap()).unwrap();
            File::create(opens).unwrap().as_raw_fd()
        });
        let thread = told.recv().unwrap();
        let point = directory.path().as_os_str().as_encoded_bytes();
        let told = |path| purpose(thread, Sought { point, path });
        let mut looks = 0..100_000; // until it sleeps in the call
        while told(b"/fifo") != Purpose::Replace {
            assert!(looks.next().is_some(), "{:?}", told(b"/fifo"));
            std::thread::yield_now();
        }
        assert_eq!(told(b"/other"), Purpose::Unknown);
        let _reader = File::open(&fifo).unwrap();
        opener.join().unwrap();
    }

    fn make_fifo(path: &std::ffi::CStr) {
        // SAFETY: the path is a NUL-terminated string that outlives the call.
        assert_eq!(unsafe { libc::mkfifo(path.as_ptr(), 0o600) }, 0);
    }
}
