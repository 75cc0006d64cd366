//! One inode: what a file or directory is, and where each fact about it comes from.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use super::attrs::{AttrsRecord, Recorded};
use super::seen::{Makes, Seen, SeenEntry, Walk};
use super::{Asked, Defaults, Epoch};
use crate::types::{ETag, Ino, Key, Kind, Name};

/// Removed names remembered of a directory; past it all older answers about unknown names are void.
const REMOVED_NAMES_MAX: usize = 4096;

/// What stat and getxattr tell beyond kind and size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// Permission bits, 0o7777.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub rdev: u32,
    pub mtime: SystemTime,
    pub atime: SystemTime,
    pub ctime: SystemTime,
    pub xattrs: BTreeMap<String, Vec<u8>>,
}

impl Attributes {
    /// What an object has of which nobody recorded anything.
    pub fn of(kind: Kind, defaults: &Defaults, modified: SystemTime) -> Self {
        Self {
            mode: default_mode(kind, defaults.umask),
            uid: defaults.uid,
            gid: defaults.gid,
            rdev: 0,
            mtime: modified,
            atime: modified,
            ctime: modified,
            xattrs: BTreeMap::new(),
        }
    }

    /// Whether a listing alone would tell all of this but the times.
    pub fn is_default(&self, kind: Kind, defaults: &Defaults) -> bool {
        let plain = matches!(kind, Kind::File | Kind::Directory);
        plain
            && self.mode == default_mode(kind, defaults.umask)
            && (self.uid, self.gid) == (defaults.uid, defaults.gid)
            && self.xattrs.is_empty()
    }
}

fn default_mode(kind: Kind, umask: u32) -> u32 {
    match kind {
        Kind::Directory => 0o777 & !umask,
        Kind::Symlink => 0o777,
        _ => 0o666 & !umask,
    }
}

/// Whether a thing that only the store can tell of is there: a directory's marker, or its control
/// directory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Presence {
    Unknown,
    Absent,
    Present,
}

/// One mount's record of a directory's children, as loaded.
#[derive(Clone, Debug)]
pub struct LoadedRecord {
    pub key: String,
    pub etag: ETag,
    pub record: Arc<AttrsRecord>,
}

/// The part of an inode that only directories use.
#[derive(Debug)]
pub struct Directory {
    pub children: HashMap<Name, Ino>,
    /// Those of them that are directories.
    pub subdirectories: HashSet<Ino>,
    /// `<dir>/` as an object, by which the directory outlives its last file.
    pub marker: Presence,
    /// Anything under `<dir>/.trialfs/`.
    pub control: Presence,
    pub seen: Option<Seen>,
    /// The same of a page of one that has many.
    pub page: Option<Seen>,
    /// How many names were asked for one by one since `seen`.
    pub asked_singly: usize,
    pub walk: Walk,
    /// How many files were to be made since.
    pub made: usize,
    pub makes: Makes,
    /// The youngest child or marker the bucket showed.
    pub newest: SystemTime,
    /// `newest` when somebody set the mtime by hand; a younger child makes that void.
    pub mtime_set: Option<SystemTime>,
    /// Names that went, and when: an answer asked for before that does not bring them back.
    pub removed: HashMap<Name, Epoch>,
    /// Names that went up to here may not be in `removed` any more.
    pub removed_before: Epoch,
    /// Attribute records of the other mounts, and when they were asked for.
    pub records: Vec<LoadedRecord>,
    pub records_checked: Option<Instant>,
    /// The children that have transactions, as their names stand in keys.
    pub transactions: HashSet<String>,
    /// What our own record says, or will say once flushed.
    pub own: BTreeMap<String, Recorded>,
    pub own_loaded: bool,
    pub own_dirty: bool,
    /// The directory's mtime is not in its parent's record yet.
    pub times_dirty: bool,
}

impl Default for Directory {
    fn default() -> Self {
        Self {
            children: HashMap::new(),
            subdirectories: HashSet::new(),
            marker: Presence::Unknown,
            control: Presence::Unknown,
            seen: None,
            page: None,
            asked_singly: 0,
            walk: Walk::default(),
            made: 0,
            makes: Makes::default(),
            newest: SystemTime::UNIX_EPOCH,
            mtime_set: None,
            removed: HashMap::new(),
            removed_before: Epoch::default(),
            records: Vec::new(),
            records_checked: None,
            transactions: HashSet::new(),
            own: BTreeMap::new(),
            own_loaded: false,
            own_dirty: false,
            times_dirty: false,
        }
    }
}

impl Directory {
    /// What listings told of a name, where the time they were asked at is `fresh`.
    pub fn told(
        &self,
        name: &Name,
        fresh: impl Fn(Instant) -> bool,
    ) -> Option<(&SeenEntry, Asked)> {
        let told = [&self.seen, &self.page].into_iter().flatten();
        told.filter(|seen| fresh(seen.asked.at))
            .find_map(|seen| Some((seen.entries.get(name)?, seen.asked)))
    }

    /// The records were changed by other hands: they are loaded again at their next use.
    pub fn forget_records(&mut self) {
        (self.seen, self.page) = (None, None);
        self.records.clear();
        self.records_checked = None;
        self.own.clear();
        self.own_loaded = false;
        self.control = Presence::Unknown;
    }

    /// A name is gone.
    pub fn remove_name(&mut self, name: Name, at: Epoch) {
        self.forget_name(&name);
        if self.removed.len() >= REMOVED_NAMES_MAX {
            self.removed.clear();
            self.removed_before = at;
        }
        self.removed.insert(name, at);
    }

    /// A name leads to an inode from here on.
    pub fn add_child(&mut self, name: Name, ino: Ino, kind: Kind) {
        if kind == Kind::Directory {
            self.subdirectories.insert(ino);
        }
        self.children.insert(name, ino);
    }

    /// What a name leads to is not known any more.
    pub fn drop_child(&mut self, name: &Name) {
        if let Some(ino) = self.children.remove(name) {
            self.subdirectories.remove(&ino);
        }
    }

    /// A name means something else from here on.
    pub fn forget_name(&mut self, name: &Name) {
        self.drop_child(name);
        for seen in [&mut self.seen, &mut self.page].into_iter().flatten() {
            seen.entries.remove(name);
        }
    }
}

#[derive(Debug)]
pub struct Inode {
    pub ino: Ino,
    pub parent: Ino,
    pub name: Option<Name>,
    /// Whether the name still leads here.
    pub linked: bool,
    pub kind: Kind,
    /// References the kernel holds.
    pub lookups: u64,
    /// Open handles, of files and of directories.
    pub opens: u32,
    pub attributes: Attributes,
    /// Somebody set the times by hand; they hold until the content changes.
    pub times_set: bool,
    /// While the staged file's own mtime is this, nothing was written since the times were right.
    pub times_staged: Option<SystemTime>,
    pub size: u64,
    /// The version in the bucket; `None` for directories and for files not there yet.
    pub object: Option<ETag>,
    /// Where that version lies, if not at the inode's own key: its directory is being renamed.
    pub at: Option<Key>,
    /// A staged file holds the content: this node says what it is.
    pub staged: bool,
    pub changed: Epoch,
    /// When the bucket was last asked about it.
    pub checked: Option<Instant>,
    /// The version whose pages the kernel may still hold.
    pub paged: Option<ETag>,
    /// A symlink's target, once read.
    pub target: Option<String>,
    pub directory: Directory,
}

impl Inode {
    /// Whether an answer to this question is not to be learnt: it is this node's alone, was changed
    /// or touched here since, or a later question was answered. So no answer that comes late, as of
    /// a long listing, overrules what is newer.
    pub fn is_newer_than(&self, asked: Asked) -> bool {
        let checked_after = self.checked.is_some_and(|checked| checked > asked.at);
        self.staged || self.changed > asked.epoch || checked_after
    }

    pub fn new(
        ino: Ino,
        parent: Ino,
        name: Option<Name>,
        kind: Kind,
        attributes: Attributes,
    ) -> Self {
        Self {
            ino,
            parent,
            name,
            linked: true,
            kind,
            lookups: 0,
            opens: 0,
            attributes,
            times_set: false,
            times_staged: None,
            size: 0,
            object: None,
            at: None,
            staged: false,
            changed: Epoch::default(),
            checked: None,
            paged: None,
            target: None,
            directory: Directory::default(),
        }
    }

    /// Whether the kernel has more to ask of who removes or replaces a name in this directory.
    pub fn is_sticky(&self) -> bool {
        const STICKY: u32 = 0o1000;
        self.attributes.mode & STICKY != 0
    }

    /// What stat tells as the number of links: of a directory its name, its `.`, and the `..` of
    /// each directory in it that is known here.
    pub fn links(&self) -> u32 {
        match self.kind {
            _ if !self.linked => 0,
            Kind::Directory => 2 + self.directory.subdirectories.len() as u32,
            _ => 1,
        }
    }

    /// Takes a directory's recorded attributes; the record says nothing of its times.
    pub fn take_directory_attributes(&mut self, recorded: Attributes) {
        let now = &self.attributes;
        let (mtime, atime, ctime) = (now.mtime, now.atime, now.ctime);
        self.attributes = Attributes { mtime, atime, ctime, ..recorded };
    }

    /// A directory's mtime was set by hand when `newest` was the youngest thing in it.
    pub fn pin_mtime(&mut self, mtime: SystemTime, newest: SystemTime) {
        if self.directory.newest <= newest {
            self.attributes.mtime = mtime;
            self.directory.mtime_set = Some(newest);
        }
    }

    /// A child or marker of this age is in the directory: its mtime is no older.
    pub fn see_newest(&mut self, newest: SystemTime) {
        let directory = &mut self.directory;
        directory.newest = directory.newest.max(newest);
        if directory.mtime_set.is_some_and(|set| directory.newest <= set) {
            return;
        }
        directory.mtime_set = None;
        self.no_older_than(newest);
    }

    /// Something happened in the directory at this time.
    pub fn no_older_than(&mut self, time: SystemTime) {
        if self.directory.mtime_set.is_some() {
            return;
        }
        self.attributes.mtime = self.attributes.mtime.max(time);
        self.attributes.ctime = self.attributes.ctime.max(self.attributes.mtime);
    }
}
