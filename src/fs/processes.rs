//! What `/proc` tells of the processes that open and close files.
//!
//! Owns reading it. Does not own what follows. Nothing here touches a file of a mount: that would
//! wait for ourselves.

use std::fs::File;
use std::io::{self, Read};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::types::Ino;

/// Descriptors of one process that are looked through; one that has more is not known to hold a
/// file. A look costs some 5 us a descriptor.
const DESCRIPTORS_MAX: usize = 4096;

/// Whether `/proc` speaks of the processes by the numbers that the kernel gives us: not where it
/// was mounted in another pid namespace than ours, nor where there is none.
static SPEAKS_OF_OURS: LazyLock<bool> = LazyLock::new(|| {
    let myself = std::fs::read_link("/proc/self").ok();
    myself.is_some_and(|link| link.as_os_str() == std::process::id().to_string().as_str())
});

/// Said at mount and in `status` where nobody can be watched.
pub const NOBODY_IS_WATCHED: &str = "/proc is not of this pid namespace: a killed writer is taken \
     for one that closed its files; mount proc beside the daemon";
const SOME_ARE_UNSEEN: &str = "processes of another pid namespace write here: a killed one is \
     taken for one that closed its files; run the daemon in theirs or in a parent of it";

/// Whether a killed process can be told from one that ends by itself.
pub fn can_be_watched() -> bool {
    *SPEAKS_OF_OURS
}

/// Whether a process wrote that has no number here.
#[derive(Debug, Default)]
pub(super) struct Unseen(AtomicBool);

impl Unseen {
    /// The kernel names the process of a request 0 where it is of a pid namespace that ours does
    /// not contain.
    pub fn meet(&self, thread: u32) {
        if thread == 0 && !self.0.swap(true, Ordering::Relaxed) {
            tracing::warn!("{SOME_ARE_UNSEEN}");
        }
    }

    /// Why not every killed writer is known for one, for `status`.
    pub fn reasons(&self) -> Vec<&'static str> {
        let unseen = self.0.load(Ordering::Relaxed).then_some(SOME_ARE_UNSEEN);
        let nobody = (!can_be_watched()).then_some(NOBODY_IS_WATCHED);
        nobody.into_iter().chain(unseen).collect()
    }
}

/// Whether a process is being killed by a signal, or was and is not reaped: the flags in field 9 of
/// `/proc/<pid>/stat`. One whose flags can't be read (another pid namespace) counts as living.
///
/// Reading that file waits while the process is within execve(2), which closes descriptors and so
/// may be waiting for us. So it is read only of one that has no memory any more: on its way out a
/// process gives that up before its descriptors, and whoever execs has some.
pub fn killed_by_signal(pid: u32) -> bool {
    const PF_EXITING: u64 = 0x4;
    const PF_SIGNALED: u64 = 0x400;
    if !can_be_watched() || has_memory(pid) {
        return false;
    }
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    // The name in field 2 may hold spaces and brackets: fields count from its last bracket.
    let after_name = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
    let flags = after_name.split(' ').nth(6).and_then(|field| field.parse::<u64>().ok());
    let killed = PF_EXITING | PF_SIGNALED;
    flags.is_some_and(|flags| flags & killed == killed)
}

/// Of `/proc/<pid>/statm`, which waits for nobody; also where it can't be read. All zeros of a
/// process that has none.
fn has_memory(pid: u32) -> bool {
    let mut buffer = [0; 32];
    let sizes = read_start(&format!("/proc/{pid}/statm"), &mut buffer);
    sizes.map_or(true, |sizes| !sizes.starts_with(b"0 "))
}

/// What fits of a file that the kernel makes up while it is read: in one look, whose cost is that
/// of making it up.
pub(super) fn read_start<'a>(path: &str, buffer: &'a mut [u8]) -> io::Result<&'a [u8]> {
    let read = File::open(path)?.read(buffer)?;
    Ok(&buffer[..read])
}

/// Whether a process (or the one of this thread) has a descriptor to write an inode with. One that
/// can't be looked into holds none.
pub(super) fn holds_for_writing(pid: u32, ino: Ino) -> bool {
    if !can_be_watched() {
        return false;
    }
    let directory = format!("/proc/{pid}/fdinfo");
    let Ok(entries) = std::fs::read_dir(directory) else { return false };
    let mut texts = entries
        .take(DESCRIPTORS_MAX)
        .filter_map(|entry| std::fs::read_to_string(entry.ok()?.path()).ok());
    texts.any(|text| writes(&text, ino))
}

/// Of one `/proc/<pid>/fdinfo/<n>`.
fn writes(text: &str, ino: Ino) -> bool {
    let field = |name| text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let flags = field("flags:").and_then(|octal| i32::from_str_radix(octal, 8).ok());
    let same = field("ino:").and_then(|ino| ino.parse().ok()) == Some(ino.0);
    same && flags.is_some_and(|flags| flags & libc::O_ACCMODE != libc::O_RDONLY)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn a_process_holds_what_it_has_open_for_writing() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let ino = Ino(file.as_file().metadata().unwrap().ino());
        let me = std::process::id();
        assert!(holds_for_writing(me, ino));
        let path = file.into_temp_path();
        assert!(!holds_for_writing(me, ino));
        let _reading = std::fs::File::open(&path).unwrap();
        assert!(!holds_for_writing(me, ino));
        assert!(!holds_for_writing(0, ino));
    }
}
