//! From an answer of the bucket, and what records say beside it, to what is known of a name.
//!
//! Owns which of both speaks. Does not own the asking (`lookup`, `directories`).

use std::time::SystemTime;

use bytes::Bytes;
use parking_lot::Mutex;

use crate::bucket::ObjectInfo;
use crate::config::ATTRIBUTE_TTL;
use crate::namespace::attrs::{OWN_ENTRY, Recorded, choose, time};
use crate::namespace::inode::{Inode, Presence};
use crate::namespace::listing::{Listing, whole_seconds};
use crate::namespace::seen::{Seen, SeenEntry};
use crate::namespace::{Asked, Learnt, Namespace, Remote};
use crate::read::Version;
use crate::types::{ETag, Ino, Kind, Name};

/// User metadata that says what a small object stands for: a symlink, a FIFO ...
pub(super) const KIND_METADATA: &str = "trialfs-kind";

/// What the store has at a name.
pub(super) enum Found {
    File(Remote),
    Directory(Listing, /* whole */ bool),
    /// Nothing but records, which may tell of a directory on its way here.
    Records,
    Nothing,
}

/// A small file whole, with the version that it is, where it came along with an answer.
pub(super) type Content = Mutex<Option<(Version, Bytes)>>;

/// What a name most likely is: as this node knows it, or as the parent's last listing told.
pub(super) fn known_kind(namespace: &Namespace, parent: Ino, name: &Name) -> Option<Kind> {
    if let Some(child) = namespace.child(parent, name) {
        return Some(child.kind);
    }
    let seen = namespace.get(parent)?.directory.seen.as_ref()?;
    match seen.entries.get(name)? {
        SeenEntry::Directory => Some(Kind::Directory),
        SeenEntry::File(_) => Some(Kind::File),
    }
}

pub(super) fn remote(info: &ObjectInfo) -> Remote {
    let kind = match info.metadata.get(KIND_METADATA).map(String::as_str) {
        Some("symlink") => Kind::Symlink,
        Some("fifo") => Kind::Fifo,
        Some("socket") => Kind::Socket,
        Some("char_device") => Kind::CharDevice,
        Some("block_device") => Kind::BlockDevice,
        _ => Kind::File,
    };
    Remote {
        kind: Some(kind),
        etag: info.etag.clone(),
        size: info.size,
        modified: whole_seconds(info.modified),
        at: None,
        copy_of: None,
    }
}

/// What the records say of a child; the kind as well, which a LIST can't tell.
pub(super) fn recorded<'a>(
    namespace: &'a Namespace,
    parent: Ino,
    name: &str,
    etag: Option<&ETag>,
) -> Option<&'a Recorded> {
    let directory = &namespace.get(parent)?.directory;
    let others = directory.records.iter().map(|loaded| &loaded.record.entries);
    let entry = choose(std::iter::once(&directory.own).chain(others), name, etag)?;
    // Only a directory's entry has no version.
    Some(entry).filter(|entry| (entry.kind == Kind::Directory) == etag.is_none())
}

pub(super) fn learn_file(
    namespace: &mut Namespace,
    parent: Ino,
    name: &Name,
    remote: &Remote,
    asked: Asked,
) -> Option<Learnt> {
    let recorded = recorded(namespace, parent, name.as_str(), Some(&remote.etag));
    let kind = remote.kind.or(recorded.map(|entry| entry.kind));
    let attributes = recorded.map(|entry| entry.attributes(remote.modified));
    let remote = Remote { kind, ..remote.clone() };
    namespace.learn_file(parent, name, &remote, attributes, asked)
}

pub(super) fn learn_directory(
    namespace: &mut Namespace,
    parent: Ino,
    name: &Name,
    newest: Option<SystemTime>,
    asked: Asked,
) -> Option<Learnt> {
    let recorded = recorded(namespace, parent, name.as_str(), None).cloned();
    let attributes = recorded.as_ref().map(|entry| entry.attributes(SystemTime::UNIX_EPOCH));
    let learnt = namespace.learn_directory(parent, name, newest, attributes, asked)?;
    if let (Some(entry), Some(inode)) = (recorded, namespace.get_mut(learnt.ino)) {
        take_times(inode, &entry);
    }
    Some(learnt)
}

/// Takes what the root's records say of itself.
pub(super) fn learn_root(namespace: &mut Namespace) {
    let entry = recorded(namespace, Ino::ROOT, OWN_ENTRY, None).cloned();
    if let (Some(entry), Some(root)) = (entry, namespace.get_mut(Ino::ROOT)) {
        root.take_directory_attributes(entry.attributes(SystemTime::UNIX_EPOCH));
        take_times(root, &entry);
    }
}

fn take_times(directory: &mut Inode, recorded: &Recorded) {
    let Some(mtime) = recorded.mtime.map(time) else { return };
    match recorded.newest.map(time) {
        Some(newest) => directory.pin_mtime(mtime, newest),
        None => directory.no_older_than(mtime),
    }
}

/// Keeps what a listing told of a directory and its children. Returns its odd keys.
pub(super) fn learn_listing(
    namespace: &mut Namespace,
    ino: Ino,
    listing: Listing,
    asked: Asked,
    whole: bool,
) -> Vec<String> {
    let Some(inode) = namespace.get_mut(ino) else { return listing.odd };
    let directory = &mut inode.directory;
    let told = |seen: bool| match (seen, whole) {
        (true, _) => Presence::Present,
        (false, true) => Presence::Absent,
        (false, false) => Presence::Unknown,
    };
    if inode.changed <= asked.epoch {
        let before = directory.seen.as_ref();
        let is_newest = before.is_none_or(|before| before.asked.at <= asked.at);
        if is_newest {
            directory.marker = told(listing.marker);
        }
        if directory.records_checked.is_none_or(|checked| checked <= asked.at) {
            directory.control = told(listing.control || directory.own_dirty);
            if directory.control == Presence::Absent {
                directory.records.clear();
            }
        }
        let longer = before.is_some_and(|seen| seen.entries.len() > listing.entries.len());
        let seen = Some(Seen { asked, entries: listing.entries, whole, span: None });
        if longer && !whole {
            // The rest of it may be as it was, and another page be of use to somebody still.
            let lasts = |page: &Seen| page.asked.at + ATTRIBUTE_TTL > asked.at;
            if !directory.page.as_ref().is_some_and(lasts) {
                directory.page = seen;
            }
            directory.made = 0;
        } else if is_newest {
            directory.seen = seen;
            (directory.asked_singly, directory.made) = (0, 0);
        }
    }
    listing.odd
}
