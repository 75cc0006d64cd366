//! Becoming a daemon: the fork, the wait of the parent for one clear answer, and what the process
//! gives up.
//!
//! Owns process state. Must run before any thread exists: a fork copies only the thread that calls
//! it. Does not own what the daemon does then.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use anyhow::{Context, Result};

const WARNING: &str = "warning ";
const READY: &str = "ready ";
const FAILED: &str = "failed ";

/// Which of the two processes this is after [`split`].
pub enum Side {
    /// Waits for the daemon's answer.
    Parent(Waiter),
    /// Is the daemon.
    Daemon(Announcer),
}

/// The parent's end.
pub struct Waiter {
    pipe: File,
    daemon: libc::pid_t,
}

/// Tells whoever started the mount how it went.
pub struct Announcer {
    /// `None`: in the foreground, where standard error is at hand.
    pipe: Option<File>,
}

/// Forks. In the daemon: a session of its own, `/` as working directory, nothing of the terminal,
/// and no descriptor of whoever started it but 0 to 2.
pub fn split() -> Result<Side> {
    let (read, write) = pipe().context("can't make a pipe")?;
    // SAFETY: the process has one thread (the caller's promise), so that no lock is held by
    // another.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()).context("can't start the daemon"),
        0 => {
            drop(read);
            close_inherited(write.as_raw_fd());
            leave_terminal().context("can't leave the terminal")?;
            Ok(Side::Daemon(Announcer { pipe: Some(File::from(write)) }))
        }
        daemon => Ok(Side::Parent(Waiter { pipe: File::from(read), daemon })),
    }
}

impl Waiter {
    /// Until the daemon says that the mount answers, or why it does not; `warn` gets its warnings.
    pub fn wait(self, mut warn: impl FnMut(&str)) -> Result<String, String> {
        for line in BufReader::new(self.pipe).lines().map_while(Result::ok) {
            if let Some(text) = line.strip_prefix(WARNING) {
                warn(text);
            } else if let Some(text) = line.strip_prefix(READY) {
                return Ok(text.to_owned());
            } else if let Some(text) = line.strip_prefix(FAILED) {
                return Err(text.to_owned());
            }
        }
        Err(format!("the daemon ended before the mount answered ({})", ending_of(self.daemon)))
    }
}

impl Announcer {
    pub fn foreground() -> Self {
        Self { pipe: None }
    }

    /// A warning to the terminal. In the foreground the log is there already.
    pub fn warn(&mut self, text: &str) {
        let _ = self.tell(WARNING, text); // the parent may be gone; `ready` will tell
    }

    /// The mount answers. An error means that whoever asked for it is gone.
    pub fn ready(mut self, text: &str) -> io::Result<()> {
        self.tell(READY, text)
    }

    /// It does not. In the foreground the caller prints the error itself.
    pub fn fail(mut self, text: &str) {
        let _ = self.tell(FAILED, text); // nobody is left to be told
    }

    fn tell(&mut self, kind: &str, text: &str) -> io::Result<()> {
        match &mut self.pipe {
            Some(pipe) => {
                let text = text.replace('\n', " ");
                pipe.write_all(format!("{kind}{text}\n").as_bytes())
            }
            None => Ok(()),
        }
    }
}

/// What every daemon does to itself, in the foreground too: as many descriptors as it may have, and
/// no memory image, since its memory holds credentials. Files that it makes without saying a mode
/// get what `umask` leaves.
pub fn harden(umask: u32) {
    // SAFETY: umask, prctl with these arguments and setrlimit touch no memory but the given struct;
    // each may fail, and then the limit stays as it was, which is no reason not to mount.
    unsafe {
        libc::umask(umask);
        libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0);
        let mut files = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut files) == 0 {
            files.rlim_cur = files.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const files);
        }
        let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        libc::setrlimit(libc::RLIMIT_CORE, &raw const none);
    }
}

/// How many descriptors this process may have.
pub fn descriptors_max() -> usize {
    let mut files = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `files` outlives the call; where it fails the limit reads 0.
    unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut files) };
    usize::try_from(files.rlim_cur).unwrap_or(usize::MAX)
}

fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut ends = [0; 2];
    // SAFETY: `ends` has room for the two descriptors, which are ours alone afterwards.
    unsafe {
        if libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok((OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])))
    }
}

/// A script's lock (`exec 9>lock; flock 9; trialfs mount ...`) or pipe must not be held for as long
/// as the mount lives.
fn close_inherited(ours: RawFd) {
    let ours = ours.unsigned_abs();
    for (first, last) in [(3, ours.saturating_sub(1)), (ours + 1, u32::MAX)] {
        if first <= last {
            // SAFETY: three numbers; in this process, just forked, nothing else owns those
            // descriptors. A kernel without the call (before 5.9) leaves them open, as before.
            unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
        }
    }
}

fn leave_terminal() -> io::Result<()> {
    let null = File::options().read(true).write(true).open("/dev/null")?;
    std::env::set_current_dir("/")?;
    // SAFETY: neither call touches memory; the descriptors 0 to 2 are nobody's in a single thread.
    unsafe {
        libc::setsid();
        for standard in 0..=2 {
            if libc::dup2(null.as_raw_fd(), standard) < 0 {
                return Err(io::Error::last_os_error());
            }
        }
    }
    Ok(())
}

fn ending_of(daemon: libc::pid_t) -> String {
    let mut status = 0;
    // SAFETY: `status` outlives the call.
    let waited = unsafe { libc::waitpid(daemon, &raw mut status, 0) };
    match waited {
        -1 => "how is not known".to_owned(),
        _ if libc::WIFSIGNALED(status) => format!("killed by signal {}", libc::WTERMSIG(status)),
        _ => format!("exit code {}", libc::WEXITSTATUS(status)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (Waiter, Announcer) {
        let (read, write) = pipe().expect("a pipe");
        // No such child: `ending_of` must cope.
        let waiter = Waiter { pipe: File::from(read), daemon: libc::pid_t::MAX };
        (waiter, Announcer { pipe: Some(File::from(write)) })
    }

    #[test]
    fn the_parent_hears_warnings_and_then_that_the_mount_answers() {
        let (waiter, mut announcer) = pair();
        announcer.warn("no conditional\nwrites");
        announcer.ready("mounted").expect("heard");
        let mut warnings = Vec::new();
        assert_eq!(waiter.wait(|text| warnings.push(text.to_owned())), Ok("mounted".to_owned()));
        assert_eq!(warnings, ["no conditional writes"]);
    }

    #[test]
    fn the_parent_hears_why_not() {
        let (waiter, announcer) = pair();
        announcer.fail("no such bucket");
        assert_eq!(waiter.wait(|_| ()), Err("no such bucket".to_owned()));
    }

    #[test]
    fn a_daemon_that_dies_silently_is_a_failure() {
        let (waiter, announcer) = pair();
        drop(announcer);
        assert!(waiter.wait(|_| ()).expect_err("died").contains("ended before"));
    }

    #[test]
    fn a_parent_that_was_interrupted_is_noticed() {
        let (waiter, announcer) = pair();
        drop(waiter);
        assert!(announcer.ready("mounted").is_err());
    }
}
