//! `trialfs unmount`: asks the daemon to finish, shows how far it is, and clears what a dead one
//! left.
//!
//! Owns the conversation with the user. Does not own the order of the end (`mount::life`).

use std::io::{ErrorKind, IsTerminal, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::mount::client::{Client, Heard};
use crate::mount::control::{Event, How, Left, Request};
use crate::mount::holders::holders;
use crate::mount::inventory::{self, Found, State};
use crate::mount::kernel::{self, Busy};
use crate::mount::{point, registry, table};

use super::args::UnmountArgs;
use super::units;

/// How often the wait looks for Ctrl-C.
const LOOK_MS: Duration = Duration::from_millis(100);
/// After the unmount the daemon only closes its files.
const EXIT_MS_MAX: libc::c_int = 10_000;
/// More processes than this are not named.
const HOLDERS_MAX: usize = 5;

/// Ctrl-C so far; the handler can do no more than count.
static INTERRUPTS: AtomicU32 = AtomicU32::new(0);

/// Unmounts; true if nothing is left to upload.
pub fn run(args: &UnmountArgs) -> Result<bool> {
    let point = point::locate(&args.dir)?;
    std::env::set_current_dir("/").context("can't go to /")?; // called inside it, we would hold it
    let how = match (args.force, args.lazy) {
        (true, _) => How::Force,
        (_, true) => How::Lazy,
        _ => How::Clean,
    };
    if let Some(owner) = others(&point)? {
        bail!(
            "{0} was mounted by {owner}; as that user or as root: trialfs unmount {0}",
            point.display()
        );
    }
    let Some(found) = inventory::at(&point)? else { bail!(not_ours(&point)?) };
    match found.state {
        State::Mounted => converse(&found, how),
        State::Detached if how == How::Force => converse(&found, how),
        State::Detached => bail!(
            "{} is unmounted already; its daemon waits for open files, which --force ends",
            found.mount_point.display()
        ),
        State::Dead => clear(&found),
        State::Stuck if how == How::Force => clear(&found),
        State::Stuck => bail!(
            "the daemon of {} does not answer; --force unmounts without it",
            found.mount_point.display()
        ),
        State::Foreign => without_daemon(&found, how),
    }
}

/// Who mounted it, where that is somebody whose mounts this user may not end.
fn others(point: &Path) -> Result<Option<String>> {
    let table = table::read().context("can't read /proc/self/mountinfo")?;
    let owner = table::at(&table, point).filter(|mounted| mounted.is_ours()).and_then(|m| m.user);
    let me = registry::own_uid();
    Ok(owner.filter(|owner| me != 0 && *owner != me).map(|owner| match owner {
        0 => "root".to_owned(),
        uid => format!("the user with uid {uid}"),
    }))
}

fn not_ours(point: &Path) -> Result<String> {
    let table = table::read().context("can't read /proc/self/mountinfo")?;
    let shown = point.display();
    Ok(match table::at(&table, point) {
        Some(other) => format!("{shown} is a mount of {}, not of trialfs", other.kind),
        None => format!("{shown} is not mounted; `trialfs status` lists what is"),
    })
}

/// Takes a mount away whose daemon is gone.
fn clear(found: &Found) -> Result<bool> {
    let shown = found.mount_point.display();
    kernel::unmount(&found.mount_point, Busy::Detach)
        .with_context(|| format!("can't unmount {shown}"))?;
    inventory::at(&found.mount_point)?; // looking again takes the dead daemon's note away
    match &found.note {
        Some(note) if found.state == State::Stuck => eprintln!(
            "trialfs: {shown} is unmounted; its daemon hangs: end it with kill -9 {}",
            note.pid
        ),
        _ => eprintln!("trialfs: {shown} was left by a dead daemon; it is cleared"),
    }
    Ok(true)
}

/// Another user's mount, or one without a note: the kernel decides, and the daemon drains by
/// itself.
fn without_daemon(found: &Found, how: How) -> Result<bool> {
    let busy = if how == How::Clean { Busy::Refuse } else { Busy::Detach };
    match kernel::unmount(&found.mount_point, busy) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == ErrorKind::ResourceBusy => bail!(busy_text(&found.mount_point)),
        Err(e) => Err(e).with_context(|| format!("can't unmount {}", found.mount_point.display())),
    }
}

/// Asks the daemon, and tells the user what it answers.
fn converse(found: &Found, how: How) -> Result<bool> {
    let note = registry::note_of(registry::own_uid(), &found.mount_point)
        .or_else(|| owner_note(&found.mount_point))
        .context("the mount vanished meanwhile")?;
    let shown = found.mount_point.display();
    let mut client = Client::connect(&note.socket).context("the daemon does not answer")?;
    client.send(&Request::Unmount { how }).context("the daemon does not listen")?;
    watch_interrupts();
    let mut screen = Screen::default();
    let mut left = Left::default();
    let mut interrupts_seen = 0;
    let last = loop {
        match client.hear(LOOK_MS).context("the daemon can't be understood")? {
            Heard::Event(Event::Progress { left: now }) => {
                left = now;
                screen.show(left);
            }
            Heard::Event(event) => break event,
            Heard::Silence => {}
            Heard::End => break Event::Unmounted { files_left: left.files },
        }
        let interrupts = INTERRUPTS.load(Ordering::Relaxed);
        if interrupts > interrupts_seen {
            screen.end();
            if interrupts == 1 {
                eprintln!("trialfs: {}", waiting_text(left, &note.cache_dir));
            } else {
                client.send(&Request::Abandon).context("the daemon does not listen")?;
            }
            interrupts_seen = interrupts;
        }
    };
    screen.end();
    match last {
        Event::Busy => bail!(busy_text(&found.mount_point)),
        Event::NotUploaded { files } => bail!(
            "{shown} stays mounted: {files} {} could not be uploaded (trialfs status {shown} names \
             them, {} says why); --force unmounts and keeps them in {}",
            files_word(files),
            note.log_file.as_ref().map_or("its log".to_owned(), |log| log.display().to_string()),
            note.cache_dir.display()
        ),
        Event::Failed { reason } => bail!("can't unmount {shown}: {reason}"),
        Event::Detached => {
            eprintln!("trialfs: {shown} is unmounted; open files stay usable until closed");
            Ok(true)
        }
        Event::Unmounted { files_left } => {
            wait_for_exit(note.pid);
            if files_left == 0 {
                return Ok(true);
            }
            eprintln!(
                "trialfs: {shown} is unmounted; {files_left} {} not uploaded, kept in {}",
                files_word(files_left),
                note.cache_dir.display()
            );
            Ok(false)
        }
        Event::Status { .. } | Event::Swept { .. } | Event::Progress { .. } => {
            bail!("the daemon can't be understood")
        }
    }
}

/// The note of whoever mounted it; root may unmount for others.
fn owner_note(mount_point: &Path) -> Option<registry::Note> {
    let table = table::read().ok()?;
    registry::note_of(table::at(&table, mount_point)?.user?, mount_point)
}

fn busy_text(mount_point: &Path) -> String {
    let shown = mount_point.display();
    let named: Vec<String> =
        holders(mount_point, HOLDERS_MAX).iter().map(ToString::to_string).collect();
    let who = match named.is_empty() {
        true => "a process that you may not see has a file open".to_owned(),
        false => named.join("; "),
    };
    format!("{shown} is busy: {who}. End it, or use --lazy (open files stay usable) or --force")
}

fn waiting_text(left: Left, cache_dir: &Path) -> String {
    format!(
        "still uploading {} {} ({}); Ctrl-C again leaves them in {}",
        left.files,
        files_word(left.files),
        units::size(left.bytes),
        cache_dir.display()
    )
}

fn files_word(files: u64) -> &'static str {
    if files == 1 { "file" } else { "files" }
}

fn watch_interrupts() {
    extern "C" fn count(_: libc::c_int) {
        INTERRUPTS.fetch_add(1, Ordering::Relaxed);
    }
    // SAFETY: the handler only adds to an atomic, which is allowed in a signal handler.
    unsafe {
        libc::signal(libc::SIGINT, count as *const () as libc::sighandler_t);
    }
}

/// The unmount is done; what the daemon still holds (the lock of the cache directory) goes with it.
fn wait_for_exit(pid: u32) {
    // SAFETY: pidfd_open takes two numbers; a negative result is an error, else a new descriptor.
    let process = unsafe {
        match libc::syscall(libc::SYS_pidfd_open, pid, 0) {
            process @ 0.. => OwnedFd::from_raw_fd(process as RawFd),
            _ => return, // it has ended
        }
    };
    let mut wait = libc::pollfd { fd: process.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: `wait` is one pollfd and outlives the call.
    if unsafe { libc::poll(&raw mut wait, 1, EXIT_MS_MAX) } == 0 {
        eprintln!("trialfs: the daemon (pid {pid}) still runs; its log says what it waits for");
    }
}

/// One line that is written over, on a terminal only.
#[derive(Default)]
struct Screen {
    dirty: bool,
}

impl Screen {
    fn show(&mut self, left: Left) {
        let mut terminal = std::io::stderr();
        if left.files > 0 && terminal.is_terminal() {
            let (files, bytes) = (left.files, units::size(left.bytes));
            let word = files_word(files);
            // A terminal that is gone needs no progress.
            let _ = write!(terminal, "\r\x1b[Kuploading: {files} {word}, {bytes} left");
            self.dirty = true;
        }
    }

    fn end(&mut self) {
        if std::mem::take(&mut self.dirty) {
            eprint!("\r\x1b[K");
        }
    }
}
