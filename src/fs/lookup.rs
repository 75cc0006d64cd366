//! Names and attributes: from memory while they are fresh, else by asking the store.
//!
//! Cost: a fresh name 0 requests; a known one whose time is up 1 (HEAD for a file, LIST for a
//! directory); an unknown one 2 in parallel. One LIST page of a directory answers for its children
//! for as long as it is fresh. Where a directory has records: 1 LIST more, and a GET per new
//! record.

use std::ffi::OsStr;
use std::time::SystemTime;

use bytes::Bytes;
use parking_lot::Mutex;

use super::checkpoints::{Place, Settled};
use super::error::Errno;
use super::{Entry, Fs, Stat, name_of};
use crate::bucket::{BucketError, ObjectInfo};
use crate::namespace::attrs::{OWN_ENTRY, Recorded, choose, time};
use crate::namespace::inode::{Inode, Presence, Seen, SeenEntry};
use crate::namespace::listing::{Listing, whole_seconds};
use crate::namespace::{Asked, Learnt, Namespace, Remote};
use crate::read::Version;
use crate::types::{ETag, Ino, Key, Kind, Name};

/// User metadata that says what a small object stands for: a symlink, a FIFO ...
pub(super) const KIND_METADATA: &str = "trialfs-kind";
/// A file up to this size comes whole with the answer at its open, in bytes: as much as a round
/// trip takes to transfer.
pub(super) const SMALL_BYTES_MAX: u64 = 128 << 10;
/// How often a name is asked for that changes here while it is.
const ASKS_MAX: usize = 8;
/// How many children one LIST page can tell of while a single name is asked for.
const LOOKUP_LIST_MAX: u16 = 1000;

/// What the store has at a name.
enum Found {
    File(Remote),
    Directory(Listing, /* whole */ bool),
    /// Nothing but records, which may tell of a directory on its way here.
    Records,
    Nothing,
}

impl Fs {
    /// Waits until the inode that a name leads to may be known, if it is not yet: before a lookup.
    pub async fn room_to_look_up(&self, parent: Ino, name: &OsStr) -> Result<(), Errno> {
        let Ok(name) = name_of(name) else { return Ok(()) };
        if self.namespace.lock().child(parent, &name).is_some() {
            return Ok(());
        }
        self.room_for_a_name().await
    }

    /// The inode a name leads to; the kernel gets a reference.
    pub async fn lookup(&self, parent: Ino, name: &OsStr) -> Result<Entry, Errno> {
        let name = match name_of(name) {
            Err(Errno::EINVAL) => return Err(Errno::ENOENT), // ours, and hidden
            other => other?,
        };
        let key = self.namespace.lock().child_key(parent, &name).ok_or(Errno::ESTALE)?;
        if !key.fits() {
            return Err(Errno::ENAMETOOLONG);
        }
        let ino = self.resolve(parent, &name).await?.ok_or(Errno::ENOENT)?;
        self.entry(ino)
    }

    /// A stat that is at most as old as contract 2 allows.
    pub async fn getattr(&self, ino: Ino) -> Result<Entry, Errno> {
        self.refresh(ino).await?;
        let stat = self.stat(ino)?;
        let namespace = self.namespace.lock();
        let ttl = namespace.age_left(ino, self.clock.now(), self.ttl()).unwrap_or_default();
        Ok(Entry { stat, ttl })
    }

    /// Asks again about an inode whose time is up. One that lost its name stays what its handles
    /// read, and is ESTALE for whoever has none.
    pub(super) async fn refresh(&self, ino: Ino) -> Result<(), Errno> {
        if ino == Ino::ROOT || self.namespace.lock().is_fresh(ino, self.clock.now(), self.ttl()) {
            return Ok(());
        }
        let (parent, name) = {
            let namespace = self.namespace.lock();
            let inode = namespace.get(ino).ok_or(Errno::ESTALE)?;
            (inode.parent, inode.name.clone().ok_or(Errno::ESTALE)?)
        };
        let found = self.ask(parent, &name).await?;
        if found == Some(ino) || self.namespace.lock().get(ino).is_some_and(|i| i.opens > 0) {
            return Ok(());
        }
        Err(Errno::ESTALE)
    }

    /// The inode at a name, from memory if that is fresh enough.
    pub(super) async fn resolve(&self, parent: Ino, name: &Name) -> Result<Option<Ino>, Errno> {
        match self.known(parent, name) {
            Some(ino) => Ok(Some(ino)),
            None => self.ask(parent, name).await,
        }
    }

    pub(super) fn known(&self, parent: Ino, name: &Name) -> Option<Ino> {
        let mut namespace = self.namespace.lock();
        let (now, ttl) = (self.clock.now(), self.ttl());
        if let Some(child) = namespace.child(parent, name) {
            let ino = child.ino;
            if child.kind == Kind::Symlink && !child.staged {
                return None; // an open goes through it: where it leads is asked each time
            }
            if namespace.is_fresh(ino, now, ttl) {
                return Some(ino);
            }
        }
        let directory = &namespace.get(parent)?.directory;
        let fresh = |at| now.saturating_duration_since(at) < ttl;
        let seen = directory.seen.as_ref().filter(|seen| fresh(seen.asked.at))?;
        let records =
            directory.control == Presence::Absent || directory.records_checked.is_some_and(fresh);
        // Of a directory the parent's listing does not tell the times.
        let SeenEntry::File(remote) = seen.entries.get(name).filter(|_| records)?.clone() else {
            return None;
        };
        let asked = seen.asked;
        let ino = learn_file(&mut namespace, parent, name, &remote, asked)?.ino;
        namespace.get(ino).filter(|inode| inode.kind != Kind::Symlink).map(|inode| inode.ino)
    }

    /// The root is never looked up, so nothing refreshes what is known of it: one LIST does, once
    /// its time is up, and answers for most of its names as well. `None`: ask for the name itself.
    async fn ask_root(&self, name: &Name) -> Result<Option<Option<Ino>>, Errno> {
        let asked = {
            let namespace = self.namespace.lock();
            if namespace.is_fresh(Ino::ROOT, self.clock.now(), self.ttl()) {
                return Ok(None);
            }
            namespace.asked(self.clock.now())
        };
        let whole = self.learn_first_page(Ino::ROOT, asked).await?;
        let mut namespace = self.namespace.lock();
        let seen = namespace.get(Ino::ROOT).and_then(|root| root.directory.seen.as_ref());
        if whole && seen.is_some_and(|seen| !seen.entries.contains_key(name)) {
            namespace.learn_absent(Ino::ROOT, name, asked);
            return Ok(Some(namespace.child(Ino::ROOT, name).map(|child| child.ino)));
        }
        drop(namespace);
        Ok(self.known(Ino::ROOT, name).map(Some))
    }

    /// Asks for what one LIST page tells of a directory; whether that was all.
    pub(super) async fn learn_first_page(&self, ino: Ino, asked: Asked) -> Result<bool, Errno> {
        let (prefix, stale_records) = {
            let namespace = self.namespace.lock();
            let stale_records = self.records_stale(&namespace, ino);
            (namespace.key(ino).ok_or(Errno::ESTALE)?, stale_records)
        };
        let (mut listing, mut whole) = self.first_page(&prefix).await?;
        if listing.control && stale_records {
            let renames = self.moves.epoch();
            self.load_records(ino).await?;
            if self.moves.epoch() != renames {
                (listing, whole) = self.first_page(&prefix).await?;
            }
        }
        let mut namespace = self.namespace.lock();
        if let Some(inode) = namespace.get_mut(ino) {
            inode.checked = Some(asked.at);
            listing.newest.into_iter().for_each(|newest| inode.see_newest(newest));
        }
        let odd = learn_listing(&mut namespace, ino, listing, asked, whole);
        drop(namespace);
        self.note_odd(odd);
        Ok(whole)
    }

    /// Asks the store what is at a name, and learns it.
    pub(super) async fn ask(&self, parent: Ino, name: &Name) -> Result<Option<Ino>, Errno> {
        for _ in 0..ASKS_MAX {
            if let Some(answer) = self.ask_once(parent, name).await? {
                return Ok(answer);
            }
        }
        Err(Errno::ESTALE)
    }

    /// `None`: the name went or came here meanwhile, so that the answer is void.
    async fn ask_once(&self, parent: Ino, name: &Name) -> Result<Option<Option<Ino>>, Errno> {
        let place = self.place_of_new(parent, name, Kind::Directory);
        let at_root = parent == Ino::ROOT && place.is_none();
        // Of a directory the root's listing does not tell enough: it is asked for beside that.
        let beside_root =
            at_root && known_kind(&self.namespace.lock(), parent, name) == Some(Kind::Directory);
        if at_root
            && !beside_root
            && let Some(found) = self.ask_root(name).await?
        {
            return Ok(Some(found));
        }
        if place.is_none()
            && let Some(ino) = self.answer_by_listing(parent, name).await
        {
            return Ok(Some(Some(ino)));
        }
        let (key, known, asked, stale_records) = {
            let namespace = self.namespace.lock();
            let key = namespace.child_key(parent, name).ok_or(Errno::ESTALE)?;
            let known = known_kind(&namespace, parent, name);
            (key, known, namespace.asked(self.clock.now()), self.records_stale(&namespace, parent))
        };
        let renames = self.moves.epoch();
        let _waiting = place.as_ref().map(|place| self.wait_in(&place.checkpoint));
        let records = async {
            match stale_records {
                _ if beside_root => self.ask_root(name).await.map(drop),
                true => Ok(self.load_records(parent).await?),
                false => Ok(()),
            }
        };
        let settling = self.settle_if_any(place.as_ref());
        let (found, records, settled) = tokio::join!(self.find(&key, known), records, settling);
        records?;
        let mut found = found?;
        // A mark of a rename may be among a directory's records: what it says stands beside it.
        let told = match &found {
            Found::Directory(listing, _) => listing.control,
            Found::Records => true,
            Found::File(_) | Found::Nothing => false,
        };
        if told && !stale_records {
            self.load_records(parent).await?;
        }
        if self.moves.epoch() != renames {
            return Ok(None);
        }
        if settled? == Settled::Now {
            found = self.find(&key, known).await?;
        }
        if let Some(place) = &place {
            found = self.found_in(place, found).await;
        }
        let mut namespace = self.namespace.lock();
        let learnt = match found {
            Found::File(remote) => learn_file(&mut namespace, parent, name, &remote, asked),
            Found::Directory(listing, whole) => {
                let newest = listing.newest;
                let learnt = learn_directory(&mut namespace, parent, name, newest, asked);
                if let Some(learnt) = learnt {
                    let odd = learn_listing(&mut namespace, learnt.ino, listing, asked, whole);
                    self.note_odd(odd);
                }
                learnt
            }
            Found::Records | Found::Nothing => {
                namespace.learn_absent(parent, name, asked);
                // Still there: something that only this node knows of.
                return Ok(Some(namespace.child(parent, name).map(|child| child.ino)));
            }
        };
        Ok(learnt.map(|learnt| Some(learnt.ino)))
    }

    async fn settle_if_any(&self, place: Option<&Place>) -> Result<Settled, Errno> {
        match place {
            Some(place) => self.settle_sealed(place).await,
            None => Ok(Settled::Already),
        }
    }

    /// What a name in a checkpoint directory is to this node, of what the bucket has.
    async fn found_in(&self, place: &Place, found: Found) -> Found {
        match found {
            Found::Records | Found::Nothing
                if place.rel.is_root() && self.is_nameable(place).await =>
            {
                Found::Directory(Listing::default(), true)
            }
            Found::File(_) if self.hides(place) => Found::Nothing,
            found => found,
        }
    }

    fn records_stale(&self, namespace: &Namespace, directory: Ino) -> bool {
        let Some(inode) = namespace.get(directory) else { return false };
        let directory = &inode.directory;
        let now = self.clock.now();
        let fresh = |at| now.saturating_duration_since(at) < self.ttl();
        directory.control != Presence::Absent && !directory.records_checked.is_some_and(fresh)
    }

    async fn find(&self, key: &Key, known: Option<Kind>) -> Result<Found, BucketError> {
        match known {
            Some(Kind::Directory) => match self.find_directory(key).await? {
                nothing @ (Found::Records | Found::Nothing) => match self.find_file(key).await? {
                    Found::Nothing => Ok(nothing),
                    found => Ok(found),
                },
                found => Ok(found),
            },
            Some(_) => match self.find_file(key).await? {
                Found::Nothing => self.find_directory(key).await,
                found => Ok(found),
            },
            None => {
                let (directory, file) = tokio::join!(self.find_directory(key), self.find_file(key));
                match (directory?, file) {
                    (Found::Nothing, file) => file,
                    (Found::Records, file) => match file? {
                        Found::Nothing => Ok(Found::Records),
                        found => Ok(found),
                    },
                    (found, _) => Ok(found),
                }
            }
        }
    }

    async fn find_file(&self, key: &Key) -> Result<Found, BucketError> {
        match self.head_shown(key).await {
            Ok((info, at)) => {
                let copy_of = self.copy_of(key, &info.etag);
                Ok(Found::File(Remote { at, copy_of, ..remote(&info) }))
            }
            Err(BucketError::NotFound | BucketError::WrongKind) => Ok(Found::Nothing),
            Err(error) => Err(error),
        }
    }

    async fn find_directory(&self, key: &Key) -> Result<Found, BucketError> {
        let prefix = Key::new(format!("{key}/"));
        let (mut listing, mut whole) = self.first_page(&prefix).await?;
        if !listing.exists() && listing.control && !self.config.read_only {
            match self.bury(&prefix).await {
                // A store may show an empty directory in the place of what it was full of.
                Ok(true) => (listing, whole) = self.first_page(&prefix).await?,
                Ok(false) => {}
                Err(error) => tracing::debug!(%key, %error, "its records stay"),
            }
        }
        Ok(match listing.exists() {
            true => Found::Directory(listing, whole),
            false if listing.control => Found::Records,
            false => Found::Nothing,
        })
    }

    /// What one LIST page tells of a directory, and whether that is all of it.
    async fn first_page(&self, prefix: &Key) -> Result<(Listing, bool), BucketError> {
        let whole = std::sync::atomic::AtomicBool::new(true);
        let page = async {
            let page = match self.bucket.list(prefix.as_str(), true, None, LOOKUP_LIST_MAX).await {
                Err(BucketError::NotFound | BucketError::WrongKind) => Default::default(),
                other => other?,
            };
            whole.store(page.next.is_none(), std::sync::atomic::Ordering::Relaxed);
            Ok(page)
        };
        let listing = self.shown(prefix.as_str(), page).await?;
        Ok((listing, whole.into_inner()))
    }

    /// What the bucket has of a file at this moment: 1 HEAD. Learns it, and makes the kernel drop
    /// what changed. ESTALE if the name means something else now: the kernel looks it up again.
    pub(super) async fn revalidate(&self, ino: Ino) -> Result<Stat, Errno> {
        let ask = |key: Key| async move { self.find_file(&key).await };
        self.revalidate_by(ino, ask).await
    }

    /// The same by a GET of a file that is known to be small: 1 request for the answer and, if it
    /// still is small, the content.
    pub(super) async fn revalidate_small(
        &self,
        ino: Ino,
    ) -> Result<Option<(Version, Bytes)>, Errno> {
        let content = Mutex::new(None);
        let slot = &content;
        let ask = |key: Key| async move {
            let (info, body) = match self.bucket.get_bytes(&key, 0..SMALL_BYTES_MAX, None).await {
                Err(BucketError::WrongKind) => return Ok(Found::Nothing),
                Err(BucketError::NotFound) => return self.find_missing(&key).await,
                // Empty by now, or changed in mid-answer: ask in the other way.
                Err(BucketError::Invalid(_) | BucketError::Precondition) => {
                    return self.find_file(&key).await;
                }
                other => other?,
            };
            if self.moves.is_gone(key.as_str()) {
                return Ok(Found::Nothing);
            }
            let copy_of = self.copy_of(&key, &info.etag);
            if body.len() as u64 == info.size {
                let version = Version { key, etag: info.etag.clone(), size: info.size };
                *slot.lock() = Some((version, body));
            }
            Ok(Found::File(Remote { copy_of, ..remote(&info) }))
        };
        self.revalidate_by(ino, ask).await?;
        Ok(content.into_inner())
    }

    /// The same of a file that is not cached at all, by the GET that its first reads want: they
    /// find their bytes on the way. False: not so; ask for it. Whatever is so large is a file.
    pub(super) async fn revalidate_by_reading(
        &self,
        ino: Ino,
        version: &Version,
    ) -> Result<bool, Errno> {
        let asked = self.namespace.lock().asked(self.clock.now());
        let place = self.place(ino);
        let _waiting = place.as_ref().map(|place| self.wait_in(&place.checkpoint));
        let (settled, begun) =
            tokio::join!(self.settle_if_any(place.as_ref()), self.reader.begin(version));
        if settled? == Settled::Now || !begun {
            return Ok(false);
        }
        Ok(self.namespace.lock().confirm(ino, &version.etag, asked))
    }

    /// A file that has no object at its own key: it may be on its way there.
    async fn find_missing(&self, key: &Key) -> Result<Found, BucketError> {
        match self.moves.is_idle() {
            true => Ok(Found::Nothing),
            false => self.find_file(key).await,
        }
    }

    async fn revalidate_by<F>(&self, ino: Ino, ask: impl Fn(Key) -> F) -> Result<Stat, Errno>
    where
        F: Future<Output = Result<Found, BucketError>>,
    {
        let _waiting = self.wait_at(ino);
        let mut renames = self.moves.epoch();
        let (parent, name, asked, found) = loop {
            let (parent, name, key, asked) = {
                let namespace = self.namespace.lock();
                let inode = namespace.get(ino).filter(|inode| inode.linked).ok_or(Errno::ESTALE)?;
                let name = inode.name.clone().ok_or(Errno::ESTALE)?;
                let key = namespace.key(ino).ok_or(Errno::ESTALE)?;
                (inode.parent, name, key, namespace.asked(self.clock.now()))
            };
            let place = self.place(ino);
            let (mut found, settled) =
                tokio::join!(ask(key.clone()), self.settle_if_any(place.as_ref()));
            if settled? == Settled::Now {
                found = ask(key).await;
            }
            // An answer about a name that a rename changed meanwhile is none.
            let before = std::mem::replace(&mut renames, self.moves.epoch());
            if before == renames {
                break (parent, name, asked, found);
            }
        };
        let learnt = match found? {
            Found::File(remote) => {
                let mut namespace = self.namespace.lock();
                learn_file(&mut namespace, parent, &name, &remote, asked)
            }
            _ => {
                self.namespace.lock().learn_absent(parent, &name, asked);
                None
            }
        };
        match learnt {
            Some(Learnt { ino: now, changed }) if now == ino => {
                if changed && let Some(kernel) = self.kernel.get() {
                    kernel.invalidate_attributes(ino).await;
                }
                self.stat(ino)
            }
            _ => Err(Errno::ESTALE),
        }
    }
}

/// What a name most likely is: as this node knows it, or as the parent's last listing told.
fn known_kind(namespace: &Namespace, parent: Ino, name: &Name) -> Option<Kind> {
    if let Some(child) = namespace.child(parent, name) {
        return Some(child.kind);
    }
    let seen = namespace.get(parent)?.directory.seen.as_ref()?;
    match seen.entries.get(name)? {
        SeenEntry::Directory => Some(Kind::Directory),
        SeenEntry::File(_) => Some(Kind::File),
    }
}

fn remote(info: &ObjectInfo) -> Remote {
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
fn recorded<'a>(
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
        directory.marker = told(listing.marker);
        directory.control = told(listing.control || directory.own_dirty);
        if directory.control == Presence::Absent {
            directory.records.clear();
        }
        directory.seen = Some(Seen { asked, entries: listing.entries });
        directory.asked_singly = 0;
    }
    listing.odd
}
