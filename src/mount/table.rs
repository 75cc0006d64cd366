//! The kernel's mount table, `/proc/self/mountinfo`, read without touching any mount.
//!
//! Parsing is pure; [`read`] is the one call that opens a file. Does not own what follows of it.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// The file system type under which the kernel lists our mounts.
pub const OUR_TYPE: &str = "fuse.trialfs";

/// One line of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mounted {
    /// `major:minor`, which no other file system has as long as this one lives, mounted or not.
    pub device: String,
    pub point: PathBuf,
    pub kind: String,
    /// For ours the URL.
    pub source: String,
    /// `user_id=` of a FUSE mount.
    pub user: Option<u32>,
}

impl Mounted {
    pub fn is_ours(&self) -> bool {
        self.kind == OUR_TYPE
    }
}

/// The mounts of this process's namespace, in the order they were made.
pub fn read() -> io::Result<Vec<Mounted>> {
    Ok(parse(&std::fs::read("/proc/self/mountinfo")?))
}

/// The topmost mount on exactly this path.
pub fn at<'a>(table: &'a [Mounted], point: &Path) -> Option<&'a Mounted> {
    table.iter().rev().find(|mounted| mounted.point == point)
}

fn parse(text: &[u8]) -> Vec<Mounted> {
    text.split(|b| *b == b'\n').filter_map(parse_line).collect()
}

/// `36 35 98:0 /root /point rw,noatime master:1 - type source options`
fn parse_line(line: &[u8]) -> Option<Mounted> {
    let mut words = line.split(|b| *b == b' ');
    let device = String::from_utf8_lossy(words.nth(2)?).into_owned();
    let point = PathBuf::from(unescape(words.nth(1)?));
    let mut words = words.skip_while(|word| *word != b"-").skip(1);
    let text = |word: &[u8]| unescape(word).to_string_lossy().into_owned();
    let (kind, source) = (text(words.next()?), text(words.next()?));
    let options = text(words.next().unwrap_or_default());
    let user = options.split(',').find_map(|o| o.strip_prefix("user_id=")?.parse().ok());
    Some(Mounted { device, point, kind, source, user })
}

/// Space, tab, newline and backslash are written as three octal digits.
fn unescape(word: &[u8]) -> OsString {
    let mut bytes = Vec::with_capacity(word.len());
    let mut rest = word;
    while let Some((first, after)) = rest.split_first() {
        let digits = after.get(..3).and_then(|d| std::str::from_utf8(d).ok());
        let octal = digits.and_then(|d| u8::from_str_radix(d, 8).ok()).filter(|_| *first == b'\\');
        bytes.push(octal.unwrap_or(*first));
        rest = if octal.is_some() { &after[3..] } else { after };
    }
    OsString::from_vec(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[u8] = br"22 1 259:1 / / rw,relatime - ext4 /dev/root rw
41 22 0:44 / /mnt/a\040b rw,nosuid shared:3 master:1 - fuse.trialfs s3://b/p rw,user_id=7,group_id=0
42 41 0:45 / /mnt/a\040b rw - tmpfs none rw
bad line
";

    #[test]
    fn the_topmost_mount_is_found_by_its_unescaped_path() {
        let table = parse(TABLE);
        assert_eq!(table.len(), 3);
        assert_eq!(at(&table, Path::new("/mnt/a b")).map(|m| m.kind.as_str()), Some("tmpfs"));
        assert_eq!(at(&table, Path::new("/mnt")), None);
        let ours = &table[1];
        assert!(ours.is_ours());
        assert_eq!(ours.device, "0:44");
        assert_eq!((ours.user, ours.source.as_str()), (Some(7), "s3://b/p"));
    }

    #[test]
    fn the_table_of_this_machine_has_a_root() {
        let table = read().expect("/proc is mounted");
        assert!(at(&table, Path::new("/")).is_some());
    }
}
