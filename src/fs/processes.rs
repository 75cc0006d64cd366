//! What `/proc` tells of the processes that open and close files.
//!
//! Owns reading it. Does not own what follows. Nothing here touches a file of a mount: that would
//! wait for ourselves.

use crate::types::Ino;

/// Descriptors of one process that are looked through; one that has more is not known to hold a
/// file. A look costs some 5 us a descriptor.
const DESCRIPTORS_MAX: usize = 4096;

/// Whether a process is being killed by a signal, or was and is not reaped: the flags in field 9 of
/// `/proc/<pid>/stat`. One whose flags can't be read (another pid namespace) counts as living.
pub fn killed_by_signal(pid: u32) -> bool {
    const PF_EXITING: u64 = 0x4;
    const PF_SIGNALED: u64 = 0x400;
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    // The name in field 2 may hold spaces and brackets: fields count from its last bracket.
    let after_name = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
    let flags = after_name.split(' ').nth(6).and_then(|field| field.parse::<u64>().ok());
    let killed = PF_EXITING | PF_SIGNALED;
    flags.is_some_and(|flags| flags & killed == killed)
}

/// Whether a process (or the one of this thread) has a descriptor to write an inode with. One that
/// can't be looked into holds none.
pub(super) fn holds_for_writing(pid: u32, ino: Ino) -> bool {
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
