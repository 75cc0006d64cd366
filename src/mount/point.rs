//! Whether a directory can be a mount point, and what is on it already.
//!
//! Owns finding the path and looking at it without ever hanging on a dead or stuck mount. Does not
//! mount or unmount (`kernel`).

use std::ffi::OsString;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};

use super::kernel;
use super::table::{self, Mounted};

/// How long a look at a directory may take before its mount counts as stuck.
pub const LOOK_MS_MAX: Duration = Duration::from_millis(3000);
/// As many symbolic links as the kernel itself follows.
const LINKS_MAX: usize = 40;
/// Counting what is in a directory stops here: the message needs no more.
const ENTRIES_COUNTED_MAX: usize = 1000;

/// What the mount table and a look say of a mount point.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// Nothing is mounted there.
    Bare,
    /// A trialfs mount whose daemon is gone.
    Dead(Mounted),
    /// A trialfs mount that answers.
    Alive(Mounted),
    /// A trialfs mount that gives no answer within [`LOOK_MS_MAX`].
    Stuck(Mounted),
    /// A mount of something else.
    Foreign(Mounted),
}

/// What to do where a directory holds entries that a mount would hide.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Covering {
    Refuse,
    Allow,
}

/// The absolute path of `dir` without symbolic links. A mount point is recognised in the mount
/// table before it is looked at, so that a dead mount is found, not stumbled over.
pub fn locate(dir: &Path) -> Result<PathBuf> {
    let table = table::read().context("can't read /proc/self/mountinfo")?;
    let mut path = std::path::absolute(dir).map_err(|e| unreachable(dir, &e))?;
    for _ in 0..LINKS_MAX {
        let Some(name) = last_name(&path) else {
            return path.canonicalize().map_err(|e| unreachable(dir, &e));
        };
        let parent = path.parent().unwrap_or(Path::new("/"));
        let found = parent.canonicalize().map_err(|e| unreachable(dir, &e))?.join(name);
        if table::at(&table, &found).is_some() {
            return Ok(found);
        }
        match found.read_link() {
            Ok(target) => path = found.parent().unwrap_or(Path::new("/")).join(target),
            Err(_) => return Ok(found),
        }
    }
    bail!("{}: too many symbolic links", dir.display())
}

/// What is on `point`, which [`locate`] gave.
pub fn standing(point: &Path) -> Result<Standing> {
    let table = table::read().context("can't read /proc/self/mountinfo")?;
    let Some(mounted) = table::at(&table, point).cloned() else { return Ok(Standing::Bare) };
    if !mounted.is_ours() {
        return Ok(Standing::Foreign(mounted));
    }
    let path = point.to_owned();
    Ok(match bounded(LOOK_MS_MAX, move || kernel::ask(&path)) {
        None => Standing::Stuck(mounted),
        Some(Err(e)) if is_dead(&e) => Standing::Dead(mounted),
        Some(_) => Standing::Alive(mounted),
    })
}

/// Whether something can be mounted on the bare directory `point`.
pub fn check_bare(point: &Path, covering: Covering) -> Result<()> {
    let shown = point.display();
    let metadata = point.metadata().map_err(|e| unreachable(point, &e))?;
    if !metadata.is_dir() {
        bail!("{shown} is not a directory; give an empty directory to mount on");
    }
    if covering == Covering::Allow {
        return Ok(());
    }
    let entries = point.read_dir().with_context(|| format!("can't read {shown}"))?;
    let names: Vec<OsString> =
        entries.take(ENTRIES_COUNTED_MAX).flatten().map(|entry| entry.file_name()).collect();
    match names.first() {
        None => Ok(()),
        Some(first) => bail!(
            "{shown} is not empty ({} {}, `{}` among them); use an empty directory, or --nonempty \
             to hide them while it is mounted",
            names.len(),
            if names.len() == 1 { "entry" } else { "entries" },
            first.to_string_lossy().escape_debug()
        ),
    }
}

/// Whether one of two directories lies inside the other, or both are one.
pub fn nested(a: &Path, b: &Path) -> bool {
    a.starts_with(b) || b.starts_with(a)
}

/// Runs `look` on a thread of its own; `None` if it takes longer than `wait`. The thread is left
/// behind then: what it hangs in can't be interrupted.
pub fn bounded<T: Send + 'static>(
    wait: Duration,
    look: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let (sender, receiver) = mpsc::sync_channel(1);
    std::thread::spawn(move || {
        let _ = sender.send(look()); // nobody waits any more: then the answer is of no use
    });
    receiver.recv_timeout(wait).ok()
}

fn unreachable(dir: &Path, error: &io::Error) -> anyhow::Error {
    let shown = dir.display();
    match error.kind() {
        ErrorKind::NotFound => anyhow!("no such directory: {shown}; make it: mkdir -p {shown}"),
        _ if is_dead(error) => {
            anyhow!("{shown} lies below a dead mount; unmount that first: trialfs unmount")
        }
        _ => anyhow!("can't look at {shown}: {error}"),
    }
}

fn is_dead(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOTCONN | libc::ECONNABORTED))
}

/// The last component, unless it is `.`, `..` or the root.
fn last_name(path: &Path) -> Option<OsString> {
    path.file_name().map(ToOwned::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_found_through_links_and_dots() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let root = dir.path().canonicalize().expect("exists");
        std::fs::create_dir_all(root.join("a/b")).expect("makes directories");
        std::os::unix::fs::symlink("a/b", root.join("link")).expect("links");
        std::os::unix::fs::symlink("loop", root.join("loop")).expect("links");
        assert_eq!(locate(&root.join("link")).expect("found"), root.join("a/b"));
        assert_eq!(locate(&root.join("a/./b/..")).expect("found"), root.join("a"));
        assert_eq!(locate(&root.join("new")).expect("parent found"), root.join("new"));
        assert!(locate(&root.join("no/such")).expect_err("missing").to_string().contains("mkdir"));
        assert!(locate(&root.join("loop")).is_err());
    }

    #[test]
    fn a_full_directory_is_not_covered_by_accident() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        assert!(check_bare(dir.path(), Covering::Refuse).is_ok());
        std::fs::write(dir.path().join("thesis.tex"), "").expect("writes");
        let error = check_bare(dir.path(), Covering::Refuse).expect_err("not empty").to_string();
        assert!(error.contains("1 entry") && error.contains("thesis.tex"), "{error}");
        assert!(check_bare(dir.path(), Covering::Allow).is_ok());
        let file = dir.path().join("thesis.tex");
        assert!(check_bare(&file, Covering::Allow).is_err());
    }

    #[test]
    fn a_look_that_hangs_is_given_up() {
        let (_keep, never) = mpsc::channel::<()>();
        assert_eq!(bounded(Duration::from_millis(10), move || never.recv()), None);
        assert_eq!(bounded(Duration::from_secs(60), || 7), Some(7));
    }

    #[test]
    fn nesting_is_by_component() {
        assert!(nested(Path::new("/a/b"), Path::new("/a")));
        assert!(nested(Path::new("/a"), Path::new("/a")));
        assert!(!nested(Path::new("/ab"), Path::new("/a")));
    }
}
