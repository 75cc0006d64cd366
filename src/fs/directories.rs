//! Reading, making and removing directories.
//!
//! Cost: a read from the start is 1 LIST per page of 1000 (and what records cost); mkdir 1 PUT;
//! rmdir 2 LISTs and 1 DELETE, where only directories are left in it 2 LISTs more.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::sync::Arc;

use super::checkpoints::{Place, Sealed, Unsealed};
use super::error::Errno;
use super::handles::{Handle, OpenDirectory, Snapshot, SnapshotEntry};
use super::learning::{learn_directory, learn_file, learn_listing};
use super::parts::{Parts, Teller};
use super::records::transactions_in;
use super::tree::Range;
use super::{Caller, Entry, Fs, name_of};
use crate::bucket::{BucketError, Condition, Metadata, PageReader};
use crate::checkpoint::record::RelPath;
use crate::config::ATTRIBUTE_TTL;
use crate::namespace::Asked;
use crate::namespace::inode::{Attributes, Presence};
use crate::namespace::listing::Listing;
use crate::namespace::seen::{Seen, SeenEntry};
use crate::types::{CONTROL_DIR, Ino, Key, Kind, Name};

const SGID: u32 = 0o2000;
/// How often a directory is listed anew because a rename came between it and its records.
const LISTS_MAX: usize = 8;

/// One name of a directory, as readdir gives it.
#[derive(Clone, Debug)]
pub struct DirectoryEntry {
    pub ino: Ino,
    pub kind: Kind,
    pub name: String,
}

impl Fs {
    /// Lists the directory: that it is gone can only be told here, since readdir(3) takes ENOENT
    /// for the end. What others have not committed is waited for when it is read, not here: a rank
    /// opens the directory that another one made only to sync it.
    pub async fn opendir(&self, ino: Ino) -> Result<u64, Errno> {
        let listing = self.begin_listing(ino, Unsealed::Leave).await?;
        self.check_names_above(ino).await?;
        let mut namespace = self.namespace.lock();
        let inode = namespace.get_mut(ino).ok_or(Errno::ESTALE)?;
        inode.opens += 1;
        drop(namespace);
        let open = OpenDirectory { ino, listing: tokio::sync::Mutex::new(listing) };
        Ok(self.handles.add(Handle::Directory(Arc::new(open))))
    }

    pub fn releasedir(&self, handle: u64) {
        let Some(Handle::Directory(open)) = self.handles.remove(handle) else { return };
        let mut namespace = self.namespace.lock();
        if let Some(inode) = namespace.get_mut(open.ino) {
            inode.opens = inode.opens.saturating_sub(1);
        }
        namespace.drop_if_unused(open.ino);
    }

    /// The part of a handle's listing that has the entry behind an offset, or its last; asked for
    /// anew when it is read from the start again.
    pub async fn read_directory(&self, handle: u64, offset: u64) -> Result<Arc<Snapshot>, Errno> {
        let open = self.handles.directory(handle)?;
        let mut listing = open.listing.lock().await;
        if !listing.is_asked() || (offset == 0 && listing.read) {
            *listing = self.begin_listing(open.ino, Unsealed::Wait).await?;
            self.check_names_above(open.ino).await?;
        }
        listing.read = true;
        listing.part_with(offset.saturating_sub(2) as usize).await
    }

    pub(super) async fn list_directory(&self, ino: Ino) -> Result<Snapshot, Errno> {
        let listing = self.list_if_any(ino, Unsealed::Wait, None).await?;
        listing.ok_or(Errno::ETIMEDOUT)
    }

    /// `None` only with [`Unsealed::Leave`]. What `parts` was sent is left out.
    pub(super) async fn list_if_any(
        &self,
        ino: Ino,
        unsealed: Unsealed,
        parts: Option<&Parts>,
    ) -> Result<Option<Snapshot>, Errno> {
        self.end_dead_attempts().await;
        self.outlast_leaving(ino).await;
        let (prefix, asked) = {
            let namespace = self.namespace.lock();
            let key = namespace.key(ino).ok_or(Errno::ENOENT)?;
            (key.as_str().to_owned(), namespace.asked(self.clock.now()))
        };
        let place = self.place(ino);
        let _waiting = place.as_ref().map(|place| self.wait_in(&place.checkpoint));
        let teller = parts.and_then(|parts| Teller::new(self, parts, ino, asked, &prefix));
        let tells = teller.as_ref();
        let mut listing = self.list_and_records(ino, place.as_ref(), &prefix, tells).await?;
        if !listing.exists() && ino != Ino::ROOT {
            // Somebody may be writing it: what there is to read comes with the commit.
            let sealed = match &place {
                Some(place) => self.wait_for_seal(place, unsealed).await?,
                None => Sealed::Nothing,
            };
            match sealed {
                Sealed::NotYet => return Ok(None),
                Sealed::Something => {
                    listing = self.list_and_records(ino, place.as_ref(), &prefix, None).await?;
                }
                Sealed::Nothing => {}
            }
            if !listing.exists() {
                self.learn_removed(ino, asked)?;
            }
        }
        if let Some(place) = &place {
            self.hide_removed(place, &mut listing);
        }
        let all = self.learn_whole(ino, asked, listing)?;
        match teller {
            Some(teller) => Ok(Some(teller.rest(all).await?)),
            None => Ok(Some(all)),
        }
    }

    /// Learns a whole listing, and what it shows beside what only this node knows of.
    fn learn_whole(&self, ino: Ino, asked: Asked, mut listing: Listing) -> Result<Snapshot, Errno> {
        let leaving = self.leaving();
        let mut namespace = self.namespace.lock();
        if let (Some(newest), Some(inode)) = (listing.newest, namespace.get_mut(ino)) {
            inode.see_newest(newest);
        }
        let directory = &namespace.get(ino).ok_or(Errno::ESTALE)?.directory;
        let children = directory.children.iter();
        let local = children.filter(|(_, child)| namespace.is_local(**child, &leaving));
        let local = local.map(|(name, child)| (name.clone(), *child)).collect();
        // What went since the LIST was asked for is gone, whatever the LIST says.
        let removed = directory.removed.iter().filter(|(_, at)| **at > asked.epoch);
        for (name, _) in removed.filter(|(name, _)| !directory.children.contains_key(name)) {
            listing.entries.remove(name);
        }
        let odd = std::mem::take(&mut listing.odd);
        let entries = listing.entries.clone();
        let told = Listing { entries, odd: Vec::new(), ..listing };
        learn_listing(&mut namespace, ino, told, asked, true);
        drop(namespace);
        self.note_odd(odd);
        let listing = Listing { entries: listing.entries, ..Listing::default() };
        Ok(Snapshot::new(asked, listing, local))
    }

    /// One LIST; in a checkpoint directory of one commit.
    async fn list_page(
        &self,
        place: Option<&Place>,
        prefix: &str,
        teller: Option<&Teller>,
    ) -> Result<Listing, Errno> {
        if let (Some(place), true) = (place, self.config.read_only) {
            self.settle_sealed(place).await?; // which waits for a mount that may publish
        }
        let page = async {
            match place {
                Some(place) => self.list_whole(place, prefix).await,
                None => {
                    let reader: &dyn PageReader = teller.map_or(&(), |teller| teller);
                    match self.bucket.list_level(prefix, reader).await {
                        Err(BucketError::NotFound) => Ok(Default::default()),
                        other => other,
                    }
                }
            }
        };
        Ok(self.shown(prefix, page).await?)
    }

    /// The same, and the directory's records where there are any: until no rename comes between.
    async fn list_and_records(
        &self,
        ino: Ino,
        place: Option<&Place>,
        prefix: &str,
        teller: Option<&Teller>,
    ) -> Result<Listing, Errno> {
        for _ in 0..LISTS_MAX {
            let renames = self.moves.epoch();
            let listing = self.list_page(place, prefix, teller).await?;
            if listing.control {
                self.load_records(ino).await?;
            }
            if self.moves.epoch() == renames {
                return Ok(listing);
            }
        }
        Err(Errno::EIO)
    }

    /// A directory whose names were not asked for in a while may be below one that was renamed
    /// since: they are asked for again. ENOENT if one is another directory now.
    async fn check_names_above(&self, ino: Ino) -> Result<(), Errno> {
        let stale: Vec<(Ino, Ino, Name)> = {
            let namespace = self.namespace.lock();
            let now = self.clock.now();
            let path = namespace.path(ino).ok_or(Errno::ENOENT)?;
            let stale = path.into_iter().filter(|(ino, _)| {
                let kept = namespace.has_local_below(*ino);
                !kept && !namespace.is_fresh(*ino, now, ATTRIBUTE_TTL)
            });
            stale.filter_map(|(ino, name)| Some((ino, namespace.get(ino)?.parent, name))).collect()
        };
        for (ino, parent, name) in stale {
            if self.ask(parent, &name).await? != Some(ino) {
                return Err(Errno::ENOENT);
            }
        }
        Ok(())
    }

    /// Leaves out what a transaction of ours removes and the bucket still has.
    fn hide_removed(&self, place: &Place, listing: &mut Listing) {
        if !place.checkpoint.is_busy() {
            return;
        }
        listing.entries.retain(|name, _| {
            let slash = if place.rel.is_root() { "" } else { "/" };
            let rel = RelPath::new(&format!("{}{slash}{name}", place.rel.as_str()));
            rel.is_ok_and(|rel| !self.hides(&Place { rel, ..place.clone() }))
        });
    }

    /// A directory of which the bucket has nothing: ENOENT, unless something of it is only here
    /// yet.
    fn learn_removed(&self, ino: Ino, asked: Asked) -> Result<(), Errno> {
        let mut namespace = self.namespace.lock();
        let inode = namespace.get(ino).ok_or(Errno::ENOENT)?;
        let (parent, name) = (inode.parent, inode.name.clone().ok_or(Errno::ENOENT)?);
        match namespace.learn_absent(parent, &name, asked) {
            Some(_) => Err(Errno::ENOENT),
            None => Ok(()),
        }
    }

    /// One entry for readdir; `None` if it is gone.
    pub fn directory_entry(
        &self,
        parent: Ino,
        snapshot: &Snapshot,
        index: usize,
    ) -> Option<DirectoryEntry> {
        let (name, entry) = snapshot.entries.get(index)?;
        let namespace = self.namespace.lock();
        let known = namespace.child(parent, name);
        let kind = match (known, entry) {
            (Some(known), _) => known.kind,
            (None, SnapshotEntry::Seen(SeenEntry::Directory)) => Kind::Directory,
            (None, SnapshotEntry::Seen(SeenEntry::File(_))) => Kind::File,
            (None, SnapshotEntry::Local(_)) => return None,
        };
        let ino = match known {
            Some(known) => known.ino,
            None => namespace.number_for(parent, name, kind)?,
        };
        Some(DirectoryEntry { ino, kind, name: name.as_str().to_owned() })
    }

    /// One entry for readdirplus, by which the kernel takes a reference; `None` if it is gone.
    pub fn directory_entry_plus(
        &self,
        parent: Ino,
        snapshot: &Snapshot,
        index: usize,
    ) -> Option<(String, Entry)> {
        let (name, entry) = snapshot.entries.get(index)?;
        let ino = match entry {
            SnapshotEntry::Local(_) => self.namespace.lock().child(parent, name)?.ino,
            SnapshotEntry::Seen(seen) => self.learn_seen(parent, name, seen, snapshot)?,
        };
        let entry = self.entry(ino).ok()?;
        Some((name.as_str().to_owned(), entry))
    }

    /// Whether readdirplus has all that stat would tell. Of a directory that is not known the
    /// listing does not tell the times: the kernel is to ask for it by itself. So it is where many
    /// names are known: a listing is no reason to know more.
    pub fn is_told(&self, parent: Ino, snapshot: &Snapshot, index: usize) -> bool {
        let Some((name, entry)) = snapshot.entries.get(index) else { return false };
        let (now, ttl, crowded) = (self.clock.now(), self.ttl(), self.is_crowded());
        let namespace = self.namespace.lock();
        match (namespace.child(parent, name), entry) {
            (Some(child), _) if child.kind == Kind::Directory => {
                namespace.is_fresh(child.ino, now, ttl)
            }
            (None, SnapshotEntry::Seen(SeenEntry::Directory)) => false,
            (None, _) => !crowded,
            _ => true,
        }
    }

    fn learn_seen(
        &self,
        parent: Ino,
        name: &Name,
        seen: &SeenEntry,
        from: &Snapshot,
    ) -> Option<Ino> {
        let mut namespace = self.namespace.lock();
        let removed = namespace.get(parent)?.directory.removed.get(name);
        if removed.is_some_and(|at| *at > from.asked.epoch) {
            return namespace.child(parent, name).map(|child| child.ino);
        }
        let asked = from.asked;
        let learnt = match seen {
            SeenEntry::File(remote) => learn_file(&mut namespace, parent, name, remote, asked),
            SeenEntry::Directory => learn_directory(&mut namespace, parent, name, None, asked),
        };
        learnt.map(|learnt| learnt.ino)
    }

    pub async fn mkdir(
        &self,
        parent: Ino,
        name: &OsStr,
        mode: u32,
        caller: Caller,
    ) -> Result<Entry, Errno> {
        let _waiting = self.wait_at(parent);
        let (name, marker, place, _work) = loop {
            let (name, key) = self.free_new_name(parent, name).await?;
            self.room_for_a_name().await?;
            let marker = Key::new(format!("{key}/"));
            if !marker.fits() {
                return Err(Errno::ENAMETOOLONG);
            }
            let place = self.writing_place_of_new(parent, &name, Kind::Directory);
            if let Some(place) = &place {
                self.begin(place, caller.pid).await?;
            }
            let work = self.work_at(parent).await;
            if self.is_key_of(parent, &name, &key) {
                break (name, marker, place, work);
            }
        };
        // In a transaction nothing shows before the commit.
        let keeps_markers = self.bucket.capabilities().markers && place.is_none();
        let asked = self.namespace.lock().asked(self.clock.now());
        if keeps_markers {
            self.create_object(&marker, bytes::Bytes::new(), &Metadata::new()).await?;
        }
        let ino = {
            let attributes = self.new_attributes(parent, Kind::Directory, mode, caller);
            let mut namespace = self.namespace.lock();
            let (now, wall) = (self.clock.now(), self.wall());
            let known = namespace.child(parent, &name).map(|child| (child.ino, child.kind));
            let ino = match known {
                // Found by others before its maker heard that it was made: they may write in it.
                Some((ino, Kind::Directory)) => ino,
                other => {
                    if let Some((ino, _)) = other {
                        namespace.detach(ino);
                    }
                    let ino = namespace.insert(parent, &name, Kind::Directory, attributes);
                    let ino = ino.ok_or(Errno::ENOENT)?;
                    let directory = namespace.directory_mut(ino).ok_or(Errno::ESTALE)?;
                    directory.control = Presence::Absent;
                    directory.own_loaded = true;
                    if keeps_markers {
                        directory.seen =
                            Some(Seen { asked, entries: HashMap::new(), whole: true, span: None });
                    }
                    ino
                }
            };
            namespace.touch(ino, now);
            namespace.touch_directory(parent, wall);
            let directory = namespace.directory_mut(ino).ok_or(Errno::ESTALE)?;
            directory.marker = if place.is_none() { Presence::Present } else { Presence::Absent };
            if let Some(inode) = namespace.get_mut(ino) {
                // Without markers an empty directory is this node's alone.
                // So is one in a transaction.
                inode.staged |= !keeps_markers;
            }
            ino
        };
        let _ = self.give_up_left(&marker).await; // said there
        if let Some(place) = place.filter(|place| place.rel.is_root()) {
            self.root_is(&place.checkpoint, ino);
        }
        self.record_attributes(ino);
        self.entry(ino)
    }

    pub async fn rmdir(&self, parent: Ino, name: &OsStr) -> Result<(), Errno> {
        let _waiting = self.wait_at(parent);
        self.writable()?;
        let name = name_of(name)?;
        let ino = self.resolve(parent, &name).await?.ok_or(Errno::ENOENT)?;
        let _alone = self.have_alone(Range { directory: ino, parent, to: None }).await;
        if self.namespace.lock().get(ino).is_none_or(|inode| inode.kind != Kind::Directory) {
            return Err(Errno::ENOTDIR);
        }
        let key = self.namespace.lock().key(ino).ok_or(Errno::ENOENT)?;
        self.finish_renames_at(ino).await?;
        let place = self.place(ino);
        if let Some(place) = &place {
            self.refuse_undecided(place).await?;
        }
        self.remove_empty(ino).await?;
        if let Some(place) = place.filter(|place| place.rel.is_root()) {
            self.withdraw(&place.checkpoint).await?;
        }
        self.keep_directory(parent).await?;
        let wall = self.wall();
        {
            let mut namespace = self.namespace.lock();
            namespace.detach(ino);
            namespace.touch_directory(parent, wall);
        }
        self.unrecord(parent, name.as_str());
        let _ = self.give_up_left(&key).await; // said there
        Ok(())
    }

    /// Removes what keeps an empty directory in the bucket. ENOTEMPTY if it is not. The caller
    /// has it alone.
    pub(super) async fn remove_empty(&self, ino: Ino) -> Result<(), Errno> {
        let key = {
            let namespace = self.namespace.lock();
            let key = namespace.key(ino).ok_or(Errno::ESTALE)?;
            let children = &namespace.get(ino).ok_or(Errno::ESTALE)?.directory.children;
            if children.values().any(|child| namespace.is_local(*child, &[])) {
                return Err(Errno::ENOTEMPTY);
            }
            key
        };
        let page = match self.bucket.list_all(key.as_str(), true).await {
            Err(BucketError::NotFound) => Default::default(),
            other => other?,
        };
        let mut listing = Listing::default();
        listing.add(key.as_str(), page);
        if let Some(place) = self.place(ino) {
            self.hide_removed(&place, &mut listing);
        }
        self.bury_in(&key, &mut listing).await?;
        if !listing.entries.is_empty() || !listing.odd.is_empty() {
            return Err(Errno::ENOTEMPTY);
        }
        if let Some(directory) = self.namespace.lock().directory_mut(ino) {
            directory.own_dirty = false; // nothing is left to speak of
        }
        self.remove_control(&key, listing.control).await?;
        Ok(self.delete(&key).await?)
    }

    /// Takes names out of a listing that only the records of former directories keep in it.
    async fn bury_in(&self, directory: &Key, listing: &mut Listing) -> Result<(), BucketError> {
        let is_directory = |entry: &SeenEntry| matches!(entry, SeenEntry::Directory);
        if !listing.entries.values().all(is_directory) {
            return Ok(());
        }
        let names: Vec<Name> = listing.entries.keys().cloned().collect();
        for name in names {
            let former = Key::new(format!("{directory}{name}/"));
            if !self.bury(&former).await? {
                return Ok(());
            }
            self.delete(&former).await?; // some stores list it on
            listing.entries.remove(&name);
        }
        Ok(())
    }

    /// Removes what is under `<dir>/.trialfs/`, and that itself: where directories are real, and on
    /// stores (SeaweedFS) that go on listing an emptied prefix until its own key is deleted.
    /// `shown`: a LIST shows it, if only by its name.
    async fn remove_control(&self, directory: &Key, shown: bool) -> Result<(), BucketError> {
        let control = Key::new(format!("{directory}{CONTROL_DIR}/"));
        if !control.fits() {
            return Ok(());
        }
        let page = match self.bucket.list_all(control.as_str(), false).await {
            Err(BucketError::NotFound) => return Ok(()),
            other => other?,
        };
        if page.objects.is_empty() && !shown {
            return Ok(());
        }
        for child in transactions_in(&page.objects, control.as_str()) {
            if self.is_undecided(directory, &child).await? {
                return Err(BucketError::NotEmpty);
            }
        }
        for object in page.objects.iter().filter(|object| !object.key.is_marker()) {
            self.delete(&object.key).await?;
        }
        self.delete(&control).await
    }

    /// Makes sure that a directory outlives its last child: puts its marker if it may have none.
    pub(super) async fn keep_directory(&self, ino: Ino) -> Result<(), Errno> {
        let key = {
            let namespace = self.namespace.lock();
            let inode = namespace.get(ino).ok_or(Errno::ESTALE)?;
            // One that only this node has needs nothing to be kept by.
            let local = inode.staged || inode.directory.marker == Presence::Present;
            if ino == Ino::ROOT || local {
                return Ok(());
            }
            namespace.key(ino).ok_or(Errno::ESTALE)?
        };
        let can = self.bucket.capabilities();
        if can.markers && !can.real_directories {
            let nothing = bytes::Bytes::new();
            self.bucket.put(&key, nothing, &Condition::Always, &Metadata::new()).await?;
        }
        if let Some(directory) = self.namespace.lock().directory_mut(ino) {
            directory.marker = Presence::Present;
        }
        Ok(())
    }

    /// A name to be made, and its key.
    pub(super) fn new_name(&self, parent: Ino, name: &OsStr) -> Result<(Name, Key), Errno> {
        self.writable()?;
        let name = name_of(name)?;
        let namespace = self.namespace.lock();
        let key = namespace.child_key(parent, &name).ok_or(Errno::ENOENT)?;
        if !key.fits() {
            return Err(Errno::ENAMETOOLONG);
        }
        Ok((name, key))
    }

    /// The same, of what is made: no directory above it is being renamed, and nothing that is on
    /// its way to another name keeps it from being made. Whether the key is still the name's must
    /// be asked once work at the parent began.
    pub(super) async fn free_new_name(
        &self,
        parent: Ino,
        name: &OsStr,
    ) -> Result<(Name, Key), Errno> {
        drop(self.work_at(parent).await);
        let (name, key) = self.new_name(parent, name)?;
        self.free_name(&key).await?;
        Ok((name, key))
    }

    /// Whether a name that is made has the key that it had before: else a directory above it was
    /// renamed.
    pub(super) fn is_key_of(&self, parent: Ino, name: &Name, key: &Key) -> bool {
        self.namespace.lock().child_key(parent, name).as_ref() == Some(key)
    }

    /// Attributes of what a caller makes.
    pub(super) fn new_attributes(
        &self,
        parent: Ino,
        kind: Kind,
        mode: u32,
        caller: Caller,
    ) -> Attributes {
        let namespace = self.namespace.lock();
        let mut attributes = Attributes::of(kind, namespace.defaults(), self.wall());
        attributes.mode = mode & 0o7777;
        (attributes.uid, attributes.gid) = (caller.uid, caller.gid);
        let Some(directory) = namespace.get(parent) else { return attributes };
        if directory.attributes.mode & SGID != 0 {
            attributes.gid = directory.attributes.gid;
            if kind == Kind::Directory {
                attributes.mode |= SGID;
            }
        }
        attributes
    }
}
