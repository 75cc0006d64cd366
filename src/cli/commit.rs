//! `trialfs commit`: has the mount commit a checkpoint directory, and says what was committed.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, Result, anyhow};

use crate::fs::checkpoints::{ACCEPT_TORN, COMMIT_XATTR};
use crate::mount::table;

use super::args::CommitArgs;
use super::units;

/// Returns when every node sees the directory.
pub fn run(args: &CommitArgs) -> Result<()> {
    let dir = &args.dir;
    let shown = dir.display();
    let kind = std::fs::metadata(dir).with_context(|| format!("{shown}"))?;
    if !kind.is_dir() {
        return Err(anyhow!("{shown} is not a directory"));
    }
    // Elsewhere the kernel would keep the attribute, and nothing would be committed.
    if !is_ours(kind.dev()).context("can't read /proc/self/mountinfo")? {
        return Err(not_ours(dir));
    }
    let value: &[u8] = if args.accept_torn { ACCEPT_TORN } else { b"1" };
    set(dir, value).map_err(|error| why(dir, &error))?;
    let (files, bytes) = content(dir).with_context(|| format!("{shown} is committed, but"))?;
    println!("{shown}: committed, {files} files, {}", units::size(bytes));
    Ok(())
}

/// Whether a device is one of our mounts.
fn is_ours(device: u64) -> io::Result<bool> {
    let device = format!("{}:{}", libc::major(device), libc::minor(device));
    Ok(table::read()?.iter().any(|mounted| mounted.is_ours() && mounted.device == device))
}

fn not_ours(dir: &Path) -> anyhow::Error {
    anyhow!("{} is not on a trialfs mount", dir.display())
}

fn set(dir: &Path, value: &[u8]) -> io::Result<()> {
    let path = CString::new(dir.as_os_str().as_bytes())?;
    let name = CString::new(COMMIT_XATTR)?;
    // SAFETY: both strings end in zero, the value is as long as told; all outlive the call.
    let result = unsafe {
        libc::setxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn why(dir: &Path, error: &io::Error) -> anyhow::Error {
    let shown = dir.display();
    match error.raw_os_error() {
        Some(libc::EOPNOTSUPP) => not_ours(dir),
        Some(libc::EINVAL) => anyhow!(
            "{shown} is no checkpoint directory: no rule knows its name, and nothing was begun in \
             it; mount with --rule to add one"
        ),
        Some(libc::ETIMEDOUT) => anyhow!(
            "{shown} is not committed: files in it are still open, here or on another node; try \
             again when they are closed"
        ),
        Some(libc::EIO) => anyhow!(
            "{shown} is not committed: a process that wrote in it was killed, its mount is gone, \
             or the store failed (see the log); --accept-torn commits what is whole"
        ),
        _ => anyhow!("{shown} is not committed: {error}"),
    }
}

/// Files and bytes below a directory.
fn content(dir: &Path) -> io::Result<(u64, u64)> {
    let (mut files, mut bytes) = (0, 0);
    let mut directories = vec![dir.to_owned()];
    while let Some(next) = directories.pop() {
        for entry in std::fs::read_dir(next)? {
            let entry = entry?;
            let metadata = entry.metadata()?;
            if metadata.is_dir() {
                directories.push(entry.path());
            } else {
                (files, bytes) = (files + 1, bytes + metadata.len());
            }
        }
    }
    Ok((files, bytes))
}
