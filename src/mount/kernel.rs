//! The two system calls, mount and unmount: by ourselves as root, through fusermount3 as an
//! ordinary user.
//!
//! Owns how the kernel is asked and how its refusals are told. Does not own whether it should be
//! asked (`point`), nor what is answered on the file descriptor (`fuse`).

use std::ffi::CString;
use std::fs::OpenOptions;
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, anyhow, bail};

const DEVICE: &str = "/dev/fuse";
const HELPER: &str = "fusermount3";
const HELPER_MISSING: &str =
    "fusermount3 is not installed; install the package fuse3, or run trialfs as root";
/// Where fusermount3 looks for the number of the socket that it sends the descriptor to.
const HELPER_SOCKET_ENV: &str = "_FUSE_COMMFD";

/// The largest READ there is. More would be fetched around each page of a mapped file that is read
/// here and there.
const READ_AHEAD_KIB: u32 = 1024;

/// What the kernel is told of a mount.
#[derive(Debug, Clone)]
pub struct MountOptions {
    /// Shown as the source in the mount table; holds no secret.
    pub source: String,
    pub access: Access,
    pub visibility: Visibility,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    ReadOnly,
    ReadWrite,
}

/// Who may enter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Visibility {
    OwnerOnly,
    /// Everybody, as far as the permission bits say.
    Everybody,
}

/// What to do about a mount that is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Busy {
    /// Fail with [`ErrorKind::ResourceBusy`].
    Refuse,
    /// Take it out of the tree now; it ends when the last file is closed.
    Detach,
}

/// Mounts on `point` and returns the descriptor on which the kernel will ask.
pub fn mount(point: &Path, options: &MountOptions) -> Result<OwnedFd> {
    if is_root() { mount_directly(point, options) } else { mount_by_helper(point, options) }
}

/// Unmounts the topmost mount on `point`; works on dead mounts too. [`ErrorKind::InvalidInput`]
/// where nothing is mounted.
pub fn unmount(point: &Path, busy: Busy) -> io::Result<()> {
    if is_root() { unmount_directly(point, busy) } else { unmount_by_helper(point, busy) }
}

/// Has the kernel read ahead in steps of the largest READ, of the file system with this number
/// (`major:minor`). Left to itself it asks for 128 KiB at a time, and each asking costs two wakes.
/// Only root may, and not where /sys is read-only: it stays as it is then, at some processor's
/// cost.
pub fn read_ahead(device: &str) {
    let file = format!("/sys/class/bdi/{device}/read_ahead_kb");
    if let Err(error) = std::fs::write(&file, READ_AHEAD_KIB.to_string()) {
        tracing::debug!(%error, file, "the kernel's read-ahead stays as it is");
    }
}

/// Whether whoever serves a mount point answers: by statfs(2), which the kernel always asks him.
/// What stat(2) tells of a root it may remember, a second longer than its daemon lives.
pub fn ask(point: &Path) -> io::Result<()> {
    let path = CString::new(point.as_os_str().as_bytes())?;
    // SAFETY: all zeros is a valid statfs, the path ends in zero and outlives the call.
    let mut answer: libc::statfs = unsafe { std::mem::zeroed() };
    match unsafe { libc::statfs(path.as_ptr(), &mut answer) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Whether this process may call mount(2) itself.
pub fn is_root() -> bool {
    // SAFETY: geteuid has no preconditions and can't fail.
    unsafe { libc::geteuid() == 0 }
}

fn mount_directly(point: &Path, options: &MountOptions) -> Result<OwnedFd> {
    let device = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_CLOEXEC)
        .open(DEVICE)
        .map_err(|e| device_error(&e))?;
    let device = OwnedFd::from(device);
    let mut data = format!(
        "fd={},rootmode=40000,user_id=0,group_id=0,default_permissions",
        device.as_raw_fd()
    );
    if options.visibility == Visibility::Everybody {
        data.push_str(",allow_other");
    }
    let mut flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOATIME;
    if options.access == Access::ReadOnly {
        flags |= libc::MS_RDONLY;
    }
    let source = CString::new(options.source.as_str())?;
    let target = CString::new(point.as_os_str().as_bytes())?;
    let kind = CString::new(super::table::OUR_TYPE)?;
    let data = CString::new(data)?;
    // SAFETY: all four pointers are to C strings that outlive the call.
    let failed = unsafe {
        libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, data.as_ptr().cast())
    };
    if failed != 0 {
        return Err(mount_error(point, &io::Error::last_os_error()));
    }
    Ok(device)
}

fn device_error(error: &io::Error) -> anyhow::Error {
    match error.kind() {
        ErrorKind::NotFound => anyhow!(
            "{DEVICE} is missing; load the module (modprobe fuse), or \
                                        give the container the device (--device {DEVICE})"
        ),
        ErrorKind::PermissionDenied => anyhow!(
            "{DEVICE} can't be opened: permission denied; in a \
                                                container add --device {DEVICE}"
        ),
        _ => anyhow!("{DEVICE} can't be opened: {error}; is the module loaded (modprobe fuse)?"),
    }
}

fn mount_error(point: &Path, error: &io::Error) -> anyhow::Error {
    let shown = point.display();
    match error.kind() {
        ErrorKind::PermissionDenied => anyhow!(
            "the kernel refuses to mount on {shown}: {error}; in \
                                                a container add --cap-add SYS_ADMIN"
        ),
        _ => anyhow!("the kernel refuses to mount on {shown}: {error}"),
    }
}

fn mount_by_helper(point: &Path, options: &MountOptions) -> Result<OwnedFd> {
    let (ours, theirs) = UnixStream::pair().context("can't make a socket")?;
    inherit(&theirs)?;
    let output = Command::new(HELPER)
        .arg("-o")
        .arg(helper_options(options))
        .arg("--")
        .arg(point)
        .env(HELPER_SOCKET_ENV, theirs.as_raw_fd().to_string())
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output();
    drop(theirs); // else a helper that dies silently would leave us waiting for its message
    let output = match output {
        Err(e) if e.kind() == ErrorKind::NotFound => bail!(HELPER_MISSING),
        other => other.with_context(|| format!("can't run {HELPER}"))?,
    };
    if !output.status.success() {
        let said = one_line(&output.stderr);
        let hint = match &said {
            said if said.contains("user_allow_other") => {
                "; root must allow it, or mount without --allow-other"
            }
            said if said.contains(DEVICE) => "; root must allow it: chmod 666 /dev/fuse",
            _ => "",
        };
        bail!("can't mount on {}: {said}{hint}", point.display());
    }
    receive_descriptor(&ours).with_context(|| format!("{HELPER} sent no descriptor"))
}

fn helper_options(options: &MountOptions) -> String {
    let mut list = "nosuid,nodev,noatime,default_permissions,subtype=trialfs".to_owned();
    list.push_str(match options.access {
        Access::ReadOnly => ",ro",
        Access::ReadWrite => ",rw",
    });
    if options.visibility == Visibility::Everybody {
        list.push_str(",allow_other");
    }
    let source = options.source.replace('\\', "\\\\").replace(',', "\\,");
    format!("{list},fsname={source}")
}

/// Lets a child that is started next have the descriptor.
fn inherit(socket: &UnixStream) -> Result<()> {
    // SAFETY: the descriptor is open and fcntl with F_SETFD touches no memory.
    match unsafe { libc::fcntl(socket.as_raw_fd(), libc::F_SETFD, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()).context("can't pass a socket on"),
    }
}

/// One descriptor, sent as SCM_RIGHTS.
fn receive_descriptor(socket: &UnixStream) -> io::Result<OwnedFd> {
    let mut byte = 0u8;
    let mut part = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
    let mut control = [0u64; 8]; // of 64 bits, so that it is aligned as a cmsghdr
    // SAFETY: an all-zero msghdr is valid.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control) as _;
    // SAFETY: every pointer in `message` is to a local that outlives the call, with its true
    // length.
    let got =
        unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC) };
    if got < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: recvmsg filled `message` in; CMSG_FIRSTHDR gives null or a header inside `control`,
    // and a header of SCM_RIGHTS is followed by at least one descriptor, which is ours from now on.
    unsafe {
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        if header.is_null() || (*header).cmsg_type != libc::SCM_RIGHTS {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        let descriptor = libc::CMSG_DATA(header).cast::<RawFd>().read_unaligned();
        Ok(OwnedFd::from_raw_fd(descriptor))
    }
}

fn unmount_directly(point: &Path, busy: Busy) -> io::Result<()> {
    let target = CString::new(point.as_os_str().as_bytes())?;
    let flags = libc::UMOUNT_NOFOLLOW
        | match busy {
            Busy::Refuse => 0,
            Busy::Detach => libc::MNT_DETACH,
        };
    // SAFETY: the pointer is to a C string that outlives the call.
    match unsafe { libc::umount2(target.as_ptr(), flags) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn unmount_by_helper(point: &Path, busy: Busy) -> io::Result<()> {
    let mut helper = Command::new(HELPER);
    helper.arg("-u").args((busy == Busy::Detach).then_some("-z")).arg("--").arg(point);
    let output = helper.env("LC_ALL", "C").stdin(Stdio::null()).output();
    let output = match output {
        Err(e) if e.kind() == ErrorKind::NotFound => {
            return Err(io::Error::new(ErrorKind::NotFound, HELPER_MISSING));
        }
        other => other?,
    };
    if output.status.success() {
        return Ok(());
    }
    match one_line(&output.stderr) {
        said if said.ends_with("busy") => Err(ErrorKind::ResourceBusy.into()),
        said if said.contains("not found in") => {
            Err(io::Error::new(ErrorKind::InvalidInput, "it is no mount of this user"))
        }
        said => Err(io::Error::other(said)),
    }
}

fn one_line(said: &[u8]) -> String {
    String::from_utf8_lossy(said).split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comma_in_a_url_does_not_become_an_option() {
        let options = MountOptions {
            source: "s3://b/lr=0.1,allow_other\\".to_owned(),
            access: Access::ReadOnly,
            visibility: Visibility::OwnerOnly,
        };
        let list = helper_options(&options);
        assert!(list.ends_with(",fsname=s3://b/lr=0.1\\,allow_other\\\\"), "{list}");
        assert!(list.contains(",ro,") && !list.contains("s,allow_other"), "{list}");
    }

    #[test]
    fn a_helper_that_sends_nothing_is_an_error_and_no_wait() {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        drop(theirs);
        assert!(receive_descriptor(&ours).is_err());
    }

    #[test]
    fn unmounting_what_is_not_mounted_fails() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        assert!(unmount(dir.path(), Busy::Detach).is_err());
    }
}
