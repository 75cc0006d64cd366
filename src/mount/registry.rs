//! The note that each daemon leaves of its mount, by which `status` and `unmount` find it.
//!
//! Owns where the notes lie and that nobody else can write there. Does not own whether a daemon
//! still lives: only its socket (`client`) tells. A note is a hint, the mount table is the truth.

use std::fs::{DirBuilder, File};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

const ROOT_DIR: &str = "/run/trialfs";
/// More than a note can be; a larger file is not one.
const NOTE_BYTES_MAX: u64 = 64 << 10;
/// More notes than any machine has mounts of one user.
const NOTES_MAX: usize = 4096;

/// What a daemon says of its mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    pub format: u32,
    pub mount_point: PathBuf,
    /// Without secrets.
    pub url: String,
    pub pid: u32,
    pub cache_dir: PathBuf,
    pub socket: PathBuf,
    pub log_file: Option<PathBuf>,
    /// Seconds since 1970.
    pub since: u64,
    pub version: String,
}

/// The directory of this user's notes, made if need be: 0700 and owned, or an error.
pub fn own_dir() -> Result<PathBuf> {
    let candidates = dirs_of(own_uid());
    let dir = candidates.into_iter().find(|dir| dir.parent().is_some_and(Path::is_dir));
    let dir = dir.unwrap_or_else(|| temporary_dir(own_uid()));
    let made = DirBuilder::new().mode(0o700).create(&dir);
    match made {
        Err(e) if e.kind() != ErrorKind::AlreadyExists => {
            Err(e).with_context(|| format!("can't make {}", dir.display()))
        }
        _ if is_private(&dir, own_uid()) => Ok(dir),
        _ => bail!("{} is not a private directory of yours; remove it", dir.display()),
    }
}

/// Where notes of `uid` may lie, best first.
pub fn dirs_of(uid: u32) -> Vec<PathBuf> {
    let mut dirs = Vec::new();
    if uid == 0 {
        dirs.push(PathBuf::from(ROOT_DIR));
    } else {
        let own = (uid == own_uid()).then(|| std::env::var_os("XDG_RUNTIME_DIR")).flatten();
        dirs.extend(own.map(PathBuf::from).filter(|d| d.is_absolute()).map(|d| d.join("trialfs")));
        dirs.push(PathBuf::from(format!("/run/user/{uid}/trialfs")));
    }
    dirs.push(temporary_dir(uid));
    dirs.dedup();
    dirs
}

/// The file name, without extension, of the note and the socket of a mount point.
pub fn name_of(mount_point: &Path) -> String {
    use std::os::unix::ffi::OsStrExt;
    hash(&[mount_point.as_os_str().as_bytes()])
}

/// 16 hex digits that stand for these words; the same in every version.
pub fn hash(words: &[&[u8]]) -> String {
    let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc64Nvme);
    for word in words {
        digest.update(word);
        digest.update(&[0]);
    }
    format!("{:016x}", digest.finalize())
}

/// Leaves a note in `dir`, whole or not at all, over one of the same mount point.
pub fn leave(dir: &Path, note: &Note) -> Result<()> {
    let path = note_path(dir, &note.mount_point);
    let write = || -> io::Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(dir)?;
        serde_json::to_writer(&mut file, note)?;
        file.write_all(b"\n")?;
        file.persist(&path)?;
        Ok(())
    };
    write().with_context(|| format!("can't write {}", path.display()))
}

/// Takes note and socket of a mount point away, if they are of the daemon `pid`: another may have
/// mounted there meanwhile.
pub fn remove(dir: &Path, mount_point: &Path, pid: u32) {
    let note = note_path(dir, mount_point);
    if read(&note).is_ok_and(|note| note.pid != pid) {
        return;
    }
    for path in [note.with_extension("sock"), note] {
        let _ = std::fs::remove_file(path); // a note left over is only a hint gone stale
    }
}

/// All notes of `uid` that can be read.
pub fn notes_of(uid: u32) -> Vec<Note> {
    let dirs = dirs_of(uid).into_iter().filter(|dir| is_private(dir, uid));
    let entries = dirs.flat_map(|dir| dir.read_dir().into_iter().flatten().flatten());
    let paths = entries.map(|entry| entry.path());
    let notes = paths.filter(|path| path.extension().is_some_and(|e| e == "json"));
    notes.take(NOTES_MAX).filter_map(|path| read(&path).ok()).collect()
}

/// The note of `uid` about the mount on `mount_point`.
pub fn note_of(uid: u32, mount_point: &Path) -> Option<Note> {
    let dirs = dirs_of(uid).into_iter().filter(|dir| is_private(dir, uid));
    let mut notes = dirs.filter_map(|dir| read(&note_path(&dir, mount_point)).ok());
    notes.find(|note| note.mount_point == mount_point)
}

/// Takes note and socket of a dead daemon away, in whichever directory of `uid` they are.
pub fn forget(uid: u32, note: &Note) {
    for dir in dirs_of(uid).into_iter().filter(|dir| is_private(dir, uid)) {
        remove(&dir, &note.mount_point, note.pid);
    }
}

pub fn own_uid() -> u32 {
    // SAFETY: geteuid has no preconditions and can't fail.
    unsafe { libc::geteuid() }
}

fn temporary_dir(uid: u32) -> PathBuf {
    PathBuf::from(format!("/tmp/trialfs-{uid}"))
}

fn note_path(dir: &Path, mount_point: &Path) -> PathBuf {
    dir.join(name_of(mount_point)).with_extension("json")
}

fn is_private(dir: &Path, uid: u32) -> bool {
    let metadata = dir.symlink_metadata();
    metadata.is_ok_and(|m| m.is_dir() && m.uid() == uid && m.mode() & 0o077 == 0)
}

fn read(path: &Path) -> Result<Note> {
    let mut text = String::new();
    File::open(path)?.take(NOTE_BYTES_MAX).read_to_string(&mut text)?;
    Ok(serde_json::from_str(&text)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(mount_point: &str) -> Note {
        Note {
            format: 1,
            mount_point: mount_point.into(),
            url: "s3://b".to_owned(),
            pid: 7,
            cache_dir: "/c".into(),
            socket: "/s".into(),
            log_file: None,
            since: 0,
            version: "0".to_owned(),
        }
    }

    #[test]
    fn a_note_is_read_as_it_was_left_and_removed_by_its_daemon_alone() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let note = note("/mnt/a");
        leave(dir.path(), &note).expect("leaves");
        assert_eq!(read(&note_path(dir.path(), &note.mount_point)).expect("reads"), note);
        remove(dir.path(), &note.mount_point, note.pid + 1);
        assert_eq!(dir.path().read_dir().expect("lists").count(), 1);
        remove(dir.path(), &note.mount_point, note.pid);
        assert_eq!(dir.path().read_dir().expect("lists").count(), 0);
    }

    #[test]
    fn a_directory_that_others_may_enter_is_not_trusted() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().expect("a temporary directory");
        let chmod = |mode| {
            let mode = std::fs::Permissions::from_mode(mode);
            std::fs::set_permissions(dir.path(), mode).expect("chmod");
        };
        chmod(0o700);
        assert!(is_private(dir.path(), own_uid()));
        assert!(!is_private(dir.path(), own_uid() + 1));
        chmod(0o755);
        assert!(!is_private(dir.path(), own_uid()));
    }

    #[test]
    fn names_are_the_same_in_every_version() {
        assert_eq!(name_of(Path::new("/mnt/trials")), "6e2644b2d6cf487e");
        assert_ne!(hash(&[b"ab", b"c"]), hash(&[b"a", b"bc"]));
    }
}
