//! A directory's entries in the kernel's form, as many as its buffer takes.
//!
//! Offsets: 1 is behind `.`, 2 behind `..`, and `i + 3` behind entry `i` of the whole listing, of
//! which a snapshot may be a part.

use std::time::Duration;

use fuser::{FileAttr, FileType, Generation, INodeNo, ReplyDirectory, ReplyDirectoryPlus};

use super::convert::{attr, file_type};
use crate::fs::{Fs, Snapshot};
use crate::types::Ino;

const DOTS: [&str; 2] = [".", ".."];

/// The entries of the snapshot from an offset on, each with the offset behind it.
fn rest(snapshot: &Snapshot, offset: u64) -> impl Iterator<Item = (usize, u64)> {
    let first = (offset.saturating_sub(2) as usize).saturating_sub(snapshot.first);
    (first..snapshot.entries.len()).map(|index| (index, (snapshot.first + index) as u64 + 3))
}

/// Answers readdir.
pub(super) fn names(
    fs: &Fs,
    ino: INodeNo,
    snapshot: &Snapshot,
    offset: u64,
    mut reply: ReplyDirectory,
) {
    for (i, name) in DOTS.iter().enumerate().skip(offset as usize) {
        if reply.add(ino, i as u64 + 1, FileType::Directory, name) {
            return reply.ok();
        }
    }
    for (index, next) in rest(snapshot, offset) {
        let Some(entry) = fs.directory_entry(Ino(ino.0), snapshot, index) else { continue };
        let kind = file_type(entry.kind);
        if reply.add(INodeNo(entry.ino.0), next, kind, &entry.name) {
            break;
        }
    }
    reply.ok();
}

/// Answers readdirplus; `own` is the directory's own stat.
pub(super) fn entries(
    fs: &Fs,
    own: &FileAttr,
    snapshot: &Snapshot,
    offset: u64,
    mut reply: ReplyDirectoryPlus,
) {
    let none = Duration::ZERO;
    for (i, name) in DOTS.iter().enumerate().skip(offset as usize) {
        if reply.add(own.ino, i as u64 + 1, name, &none, own, Generation(0)) {
            return reply.ok();
        }
    }
    let parent = Ino(own.ino.0);
    for (index, next) in rest(snapshot, offset) {
        if !fs.is_told(parent, snapshot, index) {
            let Some(entry) = fs.directory_entry(parent, snapshot, index) else { continue };
            let kind = file_type(entry.kind);
            let bare = FileAttr { ino: INodeNo(entry.ino.0), kind, ..*own };
            // Without a node number the kernel takes no reference, and asks when it wants more.
            if reply.add(INodeNo(0), next, &entry.name, &none, &bare, Generation(0)) {
                break;
            }
            continue;
        }
        let found = fs.directory_entry_plus(parent, snapshot, index);
        let Some((name, entry)) = found else { continue };
        let attr = attr(&entry.stat);
        if reply.add(attr.ino, next, &name, &entry.ttl, &attr, Generation(0)) {
            fs.forget(entry.stat.ino, 1); // it did not fit: no reference was given
            break;
        }
    }
    reply.ok();
}
