//! What this mount knows of the tree: inodes, names, how fresh each fact is.
//!
//! Pure: no I/O, no clock, no task. The driver asks the store and hands the answers in; facts carry
//! the moment they were asked for, so that an answer older than a local change is refused.
//!
//! Owns inode numbers, dentries, lookup counts and freshness. Does not own file contents (`read`,
//! `write`), open handles or requests (`fs`).
//!
//! Invariants:
//! 1. An inode number names one file or directory for as long as anybody may hold it (the kernel's
//!    lookups, an open handle, a local change not yet in the bucket).
//! 2. `children[name] == ino` if and only if `inode.parent`, `inode.name` say the same.
//! 3. An answer asked for before a local change of its inode is not learnt.

pub mod attrs;
pub mod inode;
pub mod listing;
pub mod seen;

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::{Duration, Instant, SystemTime};

use crate::types::{ETag, Ino, Key, Kind, Name};
use inode::{Attributes, Directory, Inode, Presence};
use listing::whole_seconds;

/// Counts local changes; an answer is stamped with the count at the time of its asking.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Epoch(u64);

/// A file, as the bucket tells of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remote {
    /// `None` where only a LIST was seen, which can't tell a symlink from a file.
    pub kind: Option<Kind>,
    pub etag: ETag,
    pub size: u64,
    pub modified: SystemTime,
    /// The key it lies at while its directory is being renamed, where that is not its own.
    pub at: Option<Key>,
    /// The version that it is a copy of, made by such a rename.
    pub copy_of: Option<ETag>,
}

/// When a question was asked: what its answer may overrule, and how long the answer lasts.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    pub epoch: Epoch,
    pub at: Instant,
}

/// What became of an answer about a name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Learnt {
    pub ino: Ino,
    /// The content is not what the inode had before: pages and attributes of it are stale.
    pub changed: bool,
}

/// Who owns what nobody said anything about.
#[derive(Clone, Copy, Debug)]
pub struct Defaults {
    pub uid: u32,
    pub gid: u32,
    pub umask: u32,
}

#[derive(Debug)]
pub struct Namespace {
    inodes: HashMap<Ino, Inode>,
    prefix: String,
    defaults: Defaults,
    epoch: Epoch,
}

/// Directories report a size that every tool takes as "not empty".
pub const DIRECTORY_BYTES: u64 = 4096;

impl Namespace {
    /// `prefix` is empty or ends in `/`.
    pub fn new(prefix: &str, defaults: Defaults, now: SystemTime) -> Self {
        let attributes = Attributes::of(Kind::Directory, &defaults, whole_seconds(now));
        let mut root = Inode::new(Ino::ROOT, Ino::ROOT, None, Kind::Directory, attributes);
        root.lookups = 1;
        root.directory.marker = Presence::Present; // the mount itself keeps it
        Self {
            inodes: HashMap::from([(Ino::ROOT, root)]),
            prefix: prefix.to_owned(),
            defaults,
            epoch: Epoch(1),
        }
    }

    pub fn defaults(&self) -> &Defaults {
        &self.defaults
    }

    pub fn len(&self) -> usize {
        self.inodes.len()
    }

    pub fn is_empty(&self) -> bool {
        self.inodes.is_empty()
    }

    pub fn get(&self, ino: Ino) -> Option<&Inode> {
        self.inodes.get(&ino)
    }

    pub fn get_mut(&mut self, ino: Ino) -> Option<&mut Inode> {
        self.inodes.get_mut(&ino)
    }

    pub fn inodes(&self) -> impl Iterator<Item = &Inode> {
        self.inodes.values()
    }

    pub fn child(&self, parent: Ino, name: &Name) -> Option<&Inode> {
        let ino = *self.inodes.get(&parent)?.directory.children.get(name)?;
        self.inodes.get(&ino)
    }

    /// The stamp for a question asked now.
    pub fn asked(&self, at: Instant) -> Asked {
        Asked { epoch: self.epoch, at }
    }

    /// The names that lead to an inode, each with its own, from below the root down. `None` once
    /// one of them is unlinked.
    pub fn path(&self, ino: Ino) -> Option<Vec<(Ino, Name)>> {
        let mut path = Vec::new();
        let mut inode = self.inodes.get(&ino)?;
        while inode.ino != Ino::ROOT {
            path.push((inode.ino, inode.name.clone().filter(|_| inode.linked)?));
            inode = self.inodes.get(&inode.parent)?;
        }
        path.reverse();
        Some(path)
    }

    /// Where an inode stands: its parent, and the name in it.
    pub fn name_of(&self, ino: Ino) -> Option<(Ino, Name)> {
        self.get(ino).and_then(|inode| Some((inode.parent, inode.name.clone()?)))
    }

    /// Whether a listing shows the inode whatever the bucket says: this node alone has it, and it
    /// is none of what is being taken away.
    pub fn is_local(&self, ino: Ino, leaving: &[Ino]) -> bool {
        !leaving.contains(&ino) && self.get(ino).is_some_and(|inode| inode.staged)
    }

    /// An inode and all that is known below it, parents first.
    pub fn below(&self, ino: Ino) -> Vec<Ino> {
        let mut below = vec![ino];
        let mut next = 0;
        while let Some(inode) = below.get(next).map(|ino| self.inodes.get(ino)) {
            next += 1;
            below.extend(inode.iter().flat_map(|inode| inode.directory.children.values()));
        }
        below
    }

    /// The path from the bucket's root, a directory's with its `/`. `None` once unlinked.
    pub fn key(&self, ino: Ino) -> Option<Key> {
        let mut names = Vec::new();
        let mut inode = self.inodes.get(&ino)?;
        let slash = inode.kind == Kind::Directory && ino != Ino::ROOT;
        while inode.ino != Ino::ROOT {
            names.push(inode.name.as_ref().filter(|_| inode.linked)?.as_str());
            inode = self.inodes.get(&inode.parent)?;
        }
        let mut key = self.prefix.clone();
        for (i, name) in names.iter().rev().enumerate() {
            if i > 0 {
                key.push('/');
            }
            key.push_str(name);
        }
        if slash {
            key.push('/');
        }
        Some(Key::new(key))
    }

    /// The key a child of `parent` has or would have, without a `/`; `None` if the parent is gone.
    pub fn child_key(&self, parent: Ino, name: &Name) -> Option<Key> {
        let directory = self.key(parent)?;
        Some(Key::new(format!("{directory}{name}")))
    }

    /// Whether what is known of the inode is at most `ttl` old, or is ours to say.
    pub fn is_fresh(&self, ino: Ino, now: Instant, ttl: Duration) -> bool {
        self.age_left(ino, now, ttl).is_some()
    }

    /// How much longer the kernel may believe what is known of the inode; `None`: ask again.
    pub fn age_left(&self, ino: Ino, now: Instant, ttl: Duration) -> Option<Duration> {
        let inode = self.inodes.get(&ino)?;
        if inode.staged || !inode.linked {
            return Some(ttl);
        }
        let age = now.saturating_duration_since(inode.checked?);
        ttl.checked_sub(age).filter(|left| !left.is_zero())
    }

    /// Takes an answer "a file is there" about a name.
    ///
    /// Where the content changed under open handles the name gets a new inode: the old one keeps
    /// what its handles read (contract: a handle never sees a mix).
    pub fn learn_file(
        &mut self,
        parent: Ino,
        name: &Name,
        remote: &Remote,
        attributes: Option<Attributes>,
        asked: Asked,
    ) -> Option<Learnt> {
        self.may_learn(parent, name, asked)?;
        if let Some(inode) = self.child(parent, name) {
            let ino = inode.ino;
            if inode.is_newer_than(asked) {
                return Some(Learnt { ino, changed: false });
            }
            let copied = remote.copy_of.is_some() && inode.object == remote.copy_of;
            let same_version = inode.object.as_ref() == Some(&remote.etag) || copied;
            let kind = remote.kind.unwrap_or(if same_version { inode.kind } else { Kind::File });
            let same = same_version && inode.kind == kind;
            // The kernel may hold pages for open handles, and caches a symlink's target.
            let held = inode.opens > 0 || inode.kind != Kind::File || kind != Kind::File;
            let replaced = !same && held;
            if !replaced {
                self.refresh_file(ino, remote, attributes, asked, same);
                return Some(Learnt { ino, changed: !same });
            }
            self.detach(ino);
        }
        let kind = remote.kind.unwrap_or(Kind::File);
        let fallback = Attributes::of(kind, &self.defaults, remote.modified);
        let ino = self.insert(parent, name, kind, attributes.unwrap_or(fallback))?;
        let inode = self.inodes.get_mut(&ino)?;
        inode.size = remote.size;
        inode.object = Some(remote.etag.clone());
        inode.at = remote.at.clone();
        inode.checked = Some(asked.at);
        Some(Learnt { ino, changed: false })
    }

    /// Takes an answer "the inode's object is this one". False: it is not what is known of it.
    pub fn confirm(&mut self, ino: Ino, etag: &ETag, asked: Asked) -> bool {
        let Some(inode) = self.inodes.get_mut(&ino) else { return false };
        let same = inode.linked && !inode.staged && inode.object.as_ref() == Some(etag);
        if same && inode.changed <= asked.epoch {
            inode.checked = inode.checked.max(Some(asked.at));
        }
        same
    }

    fn refresh_file(
        &mut self,
        ino: Ino,
        remote: &Remote,
        attributes: Option<Attributes>,
        asked: Asked,
        same: bool,
    ) {
        let Some(inode) = self.inodes.get_mut(&ino) else { return };
        let fallback = Attributes::of(inode.kind, &self.defaults, remote.modified);
        inode.checked = inode.checked.max(Some(asked.at));
        inode.size = remote.size;
        inode.object = Some(remote.etag.clone());
        inode.at = remote.at.clone();
        match attributes {
            Some(attributes) => inode.attributes = attributes,
            // No record, same object: what we know of it (its true mtime, say) still holds.
            None if same => {}
            None => inode.attributes = fallback,
        }
    }

    /// Takes an answer "a directory is there" about a name. `newest` is the youngest thing seen in
    /// it.
    pub fn learn_directory(
        &mut self,
        parent: Ino,
        name: &Name,
        newest: Option<SystemTime>,
        attributes: Option<Attributes>,
        asked: Asked,
    ) -> Option<Learnt> {
        self.may_learn(parent, name, asked)?;
        let now = newest.unwrap_or(SystemTime::UNIX_EPOCH);
        let ino = match self.child(parent, name) {
            Some(inode) if inode.kind == Kind::Directory => {
                if inode.changed > asked.epoch {
                    return Some(Learnt { ino: inode.ino, changed: false });
                }
                inode.ino
            }
            Some(inode) if inode.is_newer_than(asked) => {
                return Some(Learnt { ino: inode.ino, changed: false });
            }
            other => {
                if let Some(ino) = other.map(|inode| inode.ino) {
                    self.detach(ino);
                }
                let fallback = Attributes::of(Kind::Directory, &self.defaults, now);
                self.insert(parent, name, Kind::Directory, fallback)?
            }
        };
        let inode = self.inodes.get_mut(&ino)?;
        inode.checked = inode.checked.max(Some(asked.at));
        if let Some(attributes) = attributes {
            inode.take_directory_attributes(attributes);
        }
        if let Some(newest) = newest {
            inode.see_newest(newest);
        }
        Some(Learnt { ino, changed: false })
    }

    /// Whether an answer that something is there may be true still: not if the name went since it
    /// was asked for.
    fn may_learn(&self, parent: Ino, name: &Name, asked: Asked) -> Option<()> {
        let directory = &self.inodes.get(&parent).filter(|p| p.linked)?.directory;
        let went = directory.removed.get(name).copied().unwrap_or_default();
        let known = directory.children.contains_key(name);
        let outdated = !known && went.max(directory.removed_before) > asked.epoch;
        (!outdated).then_some(())
    }

    /// Takes an answer "nothing is there". Returns the inode that lost its name.
    pub fn learn_absent(&mut self, parent: Ino, name: &Name, asked: Asked) -> Option<Ino> {
        let inode = self.child(parent, name)?;
        let ino = inode.ino;
        if inode.is_newer_than(asked) || self.has_local_below(ino) {
            return None;
        }
        self.detach(ino);
        Some(ino)
    }

    /// Whether something below a directory exists only here: then the directory does too.
    pub fn has_local_below(&self, ino: Ino) -> bool {
        let Some(inode) = self.inodes.get(&ino) else { return false };
        inode.directory.children.values().any(|child| {
            self.inodes.get(child).is_some_and(|c| c.staged) || self.has_local_below(*child)
        })
    }

    /// Makes a new inode at a free name. `None` if the parent is gone.
    pub fn insert(
        &mut self,
        parent: Ino,
        name: &Name,
        kind: Kind,
        attributes: Attributes,
    ) -> Option<Ino> {
        let key = self.child_key(parent, name)?;
        let ino = self.free_number(&key, kind);
        debug_assert!(!self.inodes[&parent].directory.children.contains_key(name));
        let inode = Inode::new(ino, parent, Some(name.clone()), kind, attributes);
        self.inodes.insert(ino, inode);
        self.inodes.get_mut(&parent)?.directory.add_child(name.clone(), ino, kind);
        Some(ino)
    }

    /// Marks a local change of the inode: older answers about it are void from here on.
    pub fn touch(&mut self, ino: Ino, now: Instant) {
        self.epoch.0 += 1;
        let epoch = self.epoch;
        if let Some(inode) = self.inodes.get_mut(&ino) {
            inode.changed = epoch;
            inode.checked = Some(now);
        }
    }

    /// Marks a local change in a directory's names.
    pub fn touch_directory(&mut self, ino: Ino, wall: SystemTime) {
        if let Some(inode) = self.inodes.get_mut(&ino) {
            inode.attributes.mtime = wall;
            inode.attributes.ctime = wall;
            inode.directory.mtime_set = None;
            inode.directory.times_dirty = true;
        }
    }

    /// Takes the name from an inode (unlinked, replaced, or gone elsewhere). Its handles go on.
    pub fn detach(&mut self, ino: Ino) {
        self.epoch.0 += 1;
        let epoch = self.epoch;
        let Some(inode) = self.inodes.get_mut(&ino) else { return };
        if !inode.linked || ino == Ino::ROOT {
            return;
        }
        inode.linked = false;
        inode.changed = epoch;
        let (parent, name) = (inode.parent, inode.name.clone());
        let children: Vec<Ino> = inode.directory.children.values().copied().collect();
        for child in children {
            self.detach(child);
        }
        if let (Some(directory), Some(name)) = (self.inodes.get_mut(&parent), name) {
            directory.directory.remove_name(name, epoch);
        }
        self.drop_if_unused(ino);
    }

    /// Moves an inode to another name, which must be free.
    pub fn rename(&mut self, ino: Ino, parent: Ino, name: &Name) {
        self.epoch.0 += 1;
        let epoch = self.epoch;
        let Some(inode) = self.inodes.get_mut(&ino) else { return };
        let (old_parent, old_name, kind) = (inode.parent, inode.name.clone(), inode.kind);
        inode.parent = parent;
        inode.name = Some(name.clone());
        inode.changed = epoch;
        if let (Some(directory), Some(old)) = (self.inodes.get_mut(&old_parent), old_name) {
            directory.directory.remove_name(old, epoch);
        }
        if let Some(directory) = self.inodes.get_mut(&parent) {
            directory.directory.forget_name(name);
            directory.directory.removed.remove(name);
            directory.directory.add_child(name.clone(), ino, kind);
        }
    }

    /// Whether `ino` is `ancestor` or lies below it.
    pub fn is_below(&self, mut ino: Ino, ancestor: Ino) -> bool {
        loop {
            if ino == ancestor {
                return true;
            }
            match self.inodes.get(&ino) {
                Some(inode) if ino != Ino::ROOT => ino = inode.parent,
                _ => return false,
            }
        }
    }

    /// The kernel holds one more reference, given with an entry.
    pub fn looked_up(&mut self, ino: Ino) {
        if let Some(inode) = self.inodes.get_mut(&ino) {
            inode.lookups += 1;
        }
    }

    /// The kernel gave references back.
    pub fn forget(&mut self, ino: Ino, lookups: u64) {
        if let Some(inode) = self.inodes.get_mut(&ino) {
            inode.lookups = inode.lookups.saturating_sub(lookups);
        }
        self.drop_if_unused(ino);
    }

    /// Drops an inode that nobody can name any more, and then its parent if that was its last use.
    pub fn drop_if_unused(&mut self, mut ino: Ino) {
        while let Some(inode) = self.inodes.get(&ino) {
            let used = inode.lookups > 0
                || inode.opens > 0
                || inode.staged
                || inode.directory.own_dirty
                || (inode.directory.times_dirty && inode.linked)
                || !inode.directory.children.is_empty();
            if used || ino == Ino::ROOT {
                return;
            }
            let (parent, name, linked) = (inode.parent, inode.name.clone(), inode.linked);
            self.inodes.remove(&ino);
            if !linked {
                return;
            }
            if let (Some(directory), Some(name)) = (self.inodes.get_mut(&parent), name) {
                directory.directory.drop_child(&name);
            }
            ino = parent;
        }
    }

    /// A number for a new inode: a hash of its key, so that it is the same after a remount and on
    /// every node, moved on where a living inode (renamed or unlinked) still has it.
    fn free_number(&self, key: &Key, kind: Kind) -> Ino {
        let mut hasher = DefaultHasher::new();
        (key.as_str(), kind == Kind::Directory).hash(&mut hasher);
        let mut number = hasher.finish() >> 1;
        while number <= Ino::ROOT.0 || self.inodes.contains_key(&Ino(number)) {
            number = (number + 2) & (u64::MAX >> 1);
        }
        Ino(number)
    }

    /// The number a name not known here would get; what readdir tells without a reference.
    pub fn number_for(&self, parent: Ino, name: &Name, kind: Kind) -> Option<Ino> {
        Some(self.free_number(&self.child_key(parent, name)?, kind))
    }

    pub fn directory_mut(&mut self, ino: Ino) -> Option<&mut Directory> {
        self.inodes.get_mut(&ino).map(|inode| &mut inode.directory)
    }
}
