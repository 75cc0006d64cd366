//! Which processes keep a mount busy: by open files, working directories and mappings.
//!
//! Reads `/proc` alone and never touches the mount itself. Sees only what this user may see.

use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

/// Of one process this many descriptors are looked at, and of its mappings so many bytes.
const DESCRIPTORS_MAX: usize = 65_536;
const MAPS_BYTES_MAX: u64 = 16 << 20;

/// A process that uses a mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    pub pid: u32,
    pub command: String,
    /// How it uses the mount.
    pub by: String,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (pid {}) has {}", self.command, self.pid, self.by)
    }
}

/// At most `max` processes that use the mount on `point`.
pub fn holders(point: &Path, max: usize) -> Vec<Holder> {
    let Ok(entries) = Path::new("/proc").read_dir() else { return Vec::new() };
    let names = entries.flatten().map(|entry| entry.file_name());
    let pids = names.filter_map(|name| name.to_str()?.parse::<u32>().ok());
    pids.filter_map(|pid| holder(pid, point)).take(max).collect()
}

fn holder(pid: u32, point: &Path) -> Option<Holder> {
    let process = Path::new("/proc").join(pid.to_string());
    let by = by_link(&process, point)
        .or_else(|| by_descriptor(&process, point))
        .or_else(|| by_mapping(&process, point))?;
    let command = std::fs::read_to_string(process.join("comm")).unwrap_or_default();
    Some(Holder { pid, command: command.trim_end().escape_debug().to_string(), by })
}

fn by_link(process: &Path, point: &Path) -> Option<String> {
    [
        ("cwd", "its working directory there"),
        ("root", "its root there"),
        ("exe", "its program there"),
    ]
    .into_iter()
    .find(|(link, _)| process.join(link).read_link().is_ok_and(|to| to.starts_with(point)))
    .map(|(_, by)| by.to_owned())
}

fn by_descriptor(process: &Path, point: &Path) -> Option<String> {
    let descriptors = process.join("fd").read_dir().ok()?.flatten().take(DESCRIPTORS_MAX);
    let files = descriptors.filter_map(|descriptor| descriptor.path().read_link().ok());
    let mut held = files.filter(|file| file.starts_with(point));
    Some(format!("{} open", held.next()?.display().to_string().escape_debug()))
}

fn by_mapping(process: &Path, point: &Path) -> Option<String> {
    let maps = BufReader::new(File::open(process.join("maps")).ok()?.take(MAPS_BYTES_MAX));
    let path = |line: String| line.find('/').map(|at| line[at..].to_owned());
    let mut files = maps.lines().map_while(Result::ok).filter_map(path);
    let mapped = files.find(|file| Path::new(file).starts_with(point))?;
    Some(format!("{} mapped", mapped.escape_debug()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_open_file_is_found_with_its_process() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let point = dir.path().canonicalize().expect("exists");
        assert_eq!(holders(&point, 8), []);
        let _open = File::create(point.join("a.pt")).expect("creates");
        let found = holders(&point, 8);
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].pid, std::process::id());
        assert!(found[0].by.ends_with("a.pt open"), "{found:?}");
    }
}
