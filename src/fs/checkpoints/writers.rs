//! The processes that write in a transaction, and whether a signal killed one of them.
//!
//! A process that is killed between two files closes nothing that would tell: a descriptor of the
//! process itself (pidfd) says how it ended, also long after. Owns those descriptors. Does not own
//! what follows from a death.

use std::collections::HashMap;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// Writers of one transaction that are watched; a directory is filled by a few processes.
const WRITERS_MAX: usize = 256;

/// See above. A process that can't be seen from here (another pid namespace) has no descriptor, and
/// counts as living.
#[derive(Debug, Default)]
pub struct Writers(HashMap<u32, Option<OwnedFd>>);

/// How a process stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Life {
    Lives,
    Ended,
    Killed,
}

impl Writers {
    /// Watches the process of a thread.
    pub fn add(&mut self, thread: u32) {
        if thread == 0 || self.0.len() >= WRITERS_MAX {
            return;
        }
        let process = process_of(thread);
        if self.0.contains_key(&process) {
            return;
        }
        // SAFETY: a system call without pointers; the descriptor it returns is ours.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, process as libc::pid_t, 0) };
        let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0);
        // SAFETY: just opened, owned by nobody else.
        self.0.insert(process, fd.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
    }

    /// Whether the process of a thread is one of them, and still the same.
    pub fn includes(&self, thread: u32) -> bool {
        let process = if thread == 0 { 0 } else { process_of(thread) };
        let fd = self.0.get(&process);
        fd.is_some_and(|fd| life(process, fd.as_ref()) == Life::Lives)
    }

    /// Takes the process of a thread out.
    pub fn forget(&mut self, thread: u32) {
        self.0.remove(&process_of(thread));
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Those that a signal killed count no more.
    pub fn forget_killed(&mut self) {
        self.0.retain(|process, fd| life(*process, fd.as_ref()) != Life::Killed);
    }

    /// Whether a signal killed one of them. Those that ended well are forgotten.
    pub fn was_one_killed(&mut self) -> bool {
        let mut killed = false;
        self.0.retain(|process, fd| match life(*process, fd.as_ref()) {
            Life::Lives => true,
            Life::Ended => false,
            Life::Killed => {
                killed = true;
                true
            }
        });
        killed
    }
}

/// Whether the process of a thread was there before this one, a mount's daemon: it may have written
/// while another had the mount.
pub fn is_older_than_us(thread: u32) -> bool {
    let born = |process: &str| -> Option<u64> {
        let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
        // The name in field 2 may hold spaces and brackets; field 22 is when it began.
        stat.rsplit_once(") ")?.1.split(' ').nth(19)?.parse().ok()
    };
    let (theirs, ours) = (born(&process_of(thread).to_string()), born("self"));
    thread != 0 && theirs.zip(ours).is_some_and(|(theirs, ours)| theirs < ours)
}

fn process_of(thread: u32) -> u32 {
    let process = || {
        let status = std::fs::read_to_string(format!("/proc/{thread}/status")).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("Tgid:"))?;
        line.trim().parse().ok()
    };
    process().unwrap_or(thread)
}

fn life(process: u32, fd: Option<&OwnedFd>) -> Life {
    let Some(fd) = fd else { return Life::Lives };
    match exit_status(fd) {
        Some(status) if libc::WIFSIGNALED(status) => Life::Killed,
        Some(_) => Life::Ended,
        // Not reaped yet, or a kernel that does not tell: a dying process's flags do.
        None if is_alive(fd) => dying(process),
        None => dying(process).max_ended(),
    }
}

impl Life {
    /// What it is of a process that no longer runs.
    fn max_ended(self) -> Self {
        if self == Life::Killed { self } else { Life::Ended }
    }
}

fn is_alive(fd: &OwnedFd) -> bool {
    let mut poll = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one valid pollfd, no waiting.
    let ready = unsafe { libc::poll(&mut poll, 1, 0) };
    ready <= 0
}

/// Of a process that is being killed or is not yet reaped.
fn dying(process: u32) -> Life {
    if crate::fs::killed_by_signal(process) { Life::Killed } else { Life::Lives }
}

/// The wait status of a process that was reaped: PIDFD_GET_INFO with PIDFD_INFO_EXIT, Linux 6.15.
fn exit_status(fd: &OwnedFd) -> Option<i32> {
    const PIDFD_GET_INFO: libc::c_ulong = 0xC040_FF0B; // _IOWR(0xFF, 11, 64 bytes)
    const PIDFD_INFO_EXIT: u64 = 1 << 3;
    #[repr(C)]
    #[derive(Default)]
    struct Info {
        mask: u64,
        cgroup: u64,
        ids: [u32; 11],
        exit_code: i32,
    }
    let mut info = Info { mask: PIDFD_INFO_EXIT, ..Info::default() };
    // SAFETY: the descriptor is open and `info` is as large as the request's number says.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), PIDFD_GET_INFO as _, &mut info) };
    (result == 0 && info.mask & PIDFD_INFO_EXIT != 0).then_some(info.exit_code)
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    fn sleeper() -> std::process::Child {
        Command::new("sleep").arg("1000").stdin(Stdio::null()).spawn().unwrap()
    }

    #[test]
    fn a_killed_writer_is_known_before_and_after_it_is_reaped() {
        let mut child = sleeper();
        let mut writers = Writers::default();
        writers.add(child.id());
        assert!(!writers.was_one_killed() && writers.includes(child.id()));
        child.kill().unwrap();
        // Not reaped: poll until it is a zombie.
        while is_alive(writers.0.values().flatten().next().unwrap()) {
            std::thread::yield_now();
        }
        assert!(writers.was_one_killed());
        child.wait().unwrap();
        assert!(writers.was_one_killed(), "after it was reaped");
        assert!(!writers.includes(child.id()));
    }

    #[test]
    fn a_process_that_began_after_us_is_not_older() {
        let mut child = sleeper();
        assert!(!is_older_than_us(child.id()) && is_older_than_us(1) && !is_older_than_us(0));
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn a_writer_that_exits_by_itself_is_forgotten() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let mut writers = Writers::default();
        writers.add(child.id());
        drop(child.stdin.take());
        child.wait().unwrap();
        assert!(!writers.was_one_killed());
        assert!(writers.0.is_empty());
    }
}
