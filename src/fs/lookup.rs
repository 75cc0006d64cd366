//! Names and attributes: from memory while they are fresh, else by asking the store.
//!
//! Cost: a fresh name 0 requests; a known one whose time is up 1 (HEAD for a file, LIST for a
//! directory); an unknown one 2 in parallel. One LIST page of a directory answers for its children
//! for as long as it is fresh. Where a directory has records: 1 LIST more, and a GET per new
//! record.

use std::ffi::OsStr;

use super::checkpoints::{Place, Settled};
use super::error::Errno;
use super::learning::{
    Content, Found, known_kind, learn_directory, learn_file, learn_listing, remote,
};
use super::purpose::Purpose;
use super::revalidate::SMALL_BYTES_MAX;
use super::{Entry, Fs, name_of};
use crate::bucket::{BucketError, Page};
use crate::namespace::inode::Presence;
use crate::namespace::listing::Listing;
use crate::namespace::seen::SeenEntry;
use crate::namespace::{Asked, Namespace, Remote};
use crate::types::{Ino, Key, Kind, Name};

/// How often a name is asked for that changes here while it is.
const ASKS_MAX: usize = 8;
/// How many children one LIST page can tell of while a single name is asked for.
pub(super) const LOOKUP_LIST_MAX: u16 = 1000;

impl Fs {
    /// Waits until the inode that a name leads to may be known, if it is not yet: before a lookup.
    pub async fn room_to_look_up(&self, parent: Ino, name: &OsStr) -> Result<(), Errno> {
        let Ok(name) = name_of(name) else { return Ok(()) };
        if self.namespace.lock().child(parent, &name).is_some() {
            return Ok(());
        }
        self.room_for_a_name().await
    }

    /// The inode a name leads to; the kernel gets a reference. `purpose` is asked for where memory
    /// can't answer, with the name's path from the mount's root.
    pub async fn lookup(
        &self,
        parent: Ino,
        name: &OsStr,
        purpose: impl FnOnce(&str) -> Purpose + Send,
    ) -> Result<Entry, Errno> {
        let name = match name_of(name) {
            Err(Errno::EINVAL) => return Err(Errno::ENOENT), // ours, and hidden
            other => other?,
        };
        let key = self.namespace.lock().child_key(parent, &name).ok_or(Errno::ESTALE)?;
        if !key.fits() {
            return Err(Errno::ENAMETOOLONG);
        }
        let ino = match self.known(parent, &name) {
            Some(ino) if !self.outlast_leaving(ino).await => Some(ino),
            _ => {
                let purpose = purpose(&self.path_below(parent, &name));
                self.ask_for(parent, &name, purpose).await?
            }
        };
        self.entry(ino.ok_or(Errno::ENOENT)?)
    }

    /// From the mount's root, with a `/` before each name.
    fn path_below(&self, parent: Ino, name: &Name) -> String {
        let above = self.namespace.lock().path(parent).unwrap_or_default();
        let above = above.into_iter().map(|(_, above)| format!("/{above}"));
        above.chain([format!("/{name}")]).collect()
    }

    /// Asks the store what is at a name, as far as that matters.
    async fn ask_for(
        &self,
        parent: Ino,
        name: &Name,
        purpose: Purpose,
    ) -> Result<Option<Ino>, Errno> {
        match purpose {
            Purpose::Read(thread) => self.ask_to_read(parent, name, thread).await,
            Purpose::Replace if self.is_free(parent, name).await => Ok(None),
            Purpose::RenameTo if self.is_asked_by_rename(parent, name) => Ok(None),
            Purpose::RenameFrom => match self.known_directory(parent, name) {
                Some(ino) => Ok(Some(ino)), // its rename lists it
                None => self.ask(parent, name).await,
            },
            _ => self.ask(parent, name).await,
        }
    }

    /// The same for an open, which then need not ask again; a small file comes with its content.
    async fn ask_to_read(
        &self,
        parent: Ino,
        name: &Name,
        thread: u32,
    ) -> Result<Option<Ino>, Errno> {
        let begun = self.clock.now();
        let content = Content::default();
        let wanted = self.is_content_wanted(parent, name).then_some(&content);
        let ino = self.ask_with(parent, name, wanted).await?;
        let Some(ino) = ino else { return Ok(None) };
        let (checked, size) = {
            let namespace = self.namespace.lock();
            let Some(inode) = namespace.get(ino) else { return Ok(Some(ino)) };
            (inode.checked, inode.size)
        };
        let content = content.into_inner();
        // An open of a large one asks by the GET that its reads want.
        let spares = content.is_some() || size <= SMALL_BYTES_MAX;
        if spares && checked.is_some_and(|checked| checked >= begun) {
            self.arrivals.put(thread, ino, self.clock.now(), content);
        }
        Ok(Some(ino))
    }

    /// Whether a file's content is to come with the answer about its name: not where it is known to
    /// be cached, or may be more than comes at once. What a listing had not is new, and small for
    /// all that is known.
    fn is_content_wanted(&self, parent: Ino, name: &Name) -> bool {
        let (ino, kind, size) = {
            let namespace = self.namespace.lock();
            let Some(directory) = namespace.get(parent) else { return false };
            match (namespace.child(parent, name), &directory.directory.seen) {
                (Some(child), _) => (child.ino, child.kind, child.size),
                (None, None) => return false,
                (None, Some(seen)) => match seen.entries.get(name) {
                    Some(SeenEntry::File(there)) => {
                        return (1..=SMALL_BYTES_MAX).contains(&there.size);
                    }
                    Some(SeenEntry::Directory) => return false,
                    None => return seen.whole,
                },
            }
        };
        if kind != Kind::File || !(1..=SMALL_BYTES_MAX).contains(&size) {
            return false;
        }
        let version = self.version(ino).ok().flatten();
        version.is_none_or(|version| self.reader.whole_file(&version).is_none())
    }

    /// A directory at a name, however long ago it was asked for.
    pub(super) fn known_directory(&self, parent: Ino, name: &Name) -> Option<Ino> {
        let namespace = self.namespace.lock();
        let child = namespace.child(parent, name)?;
        (child.kind == Kind::Directory).then_some(child.ino)
    }

    /// A stat that is at most as old as contract 2 allows.
    pub async fn getattr(&self, ino: Ino) -> Result<Entry, Errno> {
        self.refresh(ino).await?;
        let stat = self.stat(ino)?;
        let namespace = self.namespace.lock();
        // The root is there, whoever asks; the kernel would ask at each path through it.
        let ttl = match ino {
            Ino::ROOT => self.ttl(),
            _ => namespace.age_left(ino, self.clock.now(), self.ttl()).unwrap_or_default(),
        };
        Ok(Entry { stat, ttl })
    }

    /// Asks again about an inode whose time is up. One that lost its name stays what its handles
    /// read, and is ESTALE for whoever has none.
    pub(super) async fn refresh(&self, ino: Ino) -> Result<(), Errno> {
        if ino == Ino::ROOT || self.namespace.lock().is_fresh(ino, self.clock.now(), self.ttl()) {
            return Ok(());
        }
        let (parent, name) = self.namespace.lock().name_of(ino).ok_or(Errno::ESTALE)?;
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
        let (seen, asked) = directory.told(name, fresh)?;
        // Of a directory the parent's listing does not tell the times.
        let SeenEntry::File(remote) = seen.clone() else { return None };
        if self.records_stale(&namespace, parent) {
            return None;
        }
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
        let told = seen.filter(|seen| seen.whole && seen.asked.at >= asked.at);
        if whole && told.is_some_and(|seen| !seen.entries.contains_key(name)) {
            namespace.learn_absent(Ino::ROOT, name, asked);
            return Ok(Some(namespace.child(Ino::ROOT, name).map(|child| child.ino)));
        }
        drop(namespace);
        Ok(self.known(Ino::ROOT, name).map(Some))
    }

    /// Asks for what one LIST page tells of a directory; whether that was all.
    pub(super) async fn learn_first_page(&self, ino: Ino, asked: Asked) -> Result<bool, Errno> {
        self.learn_first_pages(ino, asked, 1).await
    }

    /// The same of some pages.
    pub(super) async fn learn_first_pages(
        &self,
        ino: Ino,
        asked: Asked,
        pages: usize,
    ) -> Result<bool, Errno> {
        let (prefix, stale_records) = {
            let namespace = self.namespace.lock();
            let stale_records = self.records_stale(&namespace, ino);
            (namespace.key(ino).ok_or(Errno::ESTALE)?, stale_records)
        };
        let (mut listing, mut whole) = self.first_pages(&prefix, pages).await?;
        if listing.control && stale_records {
            let renames = self.moves.epoch();
            self.load_records(ino).await?;
            if self.moves.epoch() != renames {
                (listing, whole) = self.first_pages(&prefix, pages).await?;
            }
        }
        let mut namespace = self.namespace.lock();
        if let Some(inode) = namespace.get_mut(ino) {
            if ino == Ino::ROOT || listing.exists() {
                inode.checked = inode.checked.max(Some(asked.at));
            }
            listing.newest.into_iter().for_each(|newest| inode.see_newest(newest));
        }
        let odd = learn_listing(&mut namespace, ino, listing, asked, whole);
        drop(namespace);
        self.note_odd(odd);
        Ok(whole)
    }

    /// Asks the store what is at a name, and learns it.
    pub(super) async fn ask(&self, parent: Ino, name: &Name) -> Result<Option<Ino>, Errno> {
        self.ask_with(parent, name, None).await
    }

    /// The same; where `content` is given that of a small file comes along.
    async fn ask_with(
        &self,
        parent: Ino,
        name: &Name,
        content: Option<&Content>,
    ) -> Result<Option<Ino>, Errno> {
        for _ in 0..ASKS_MAX {
            if let Some(answer) = self.ask_once(parent, name, content).await? {
                return Ok(answer);
            }
        }
        Err(Errno::ESTALE)
    }

    /// `None`: the name went or came here meanwhile, so that the answer is void.
    async fn ask_once(
        &self,
        parent: Ino,
        name: &Name,
        content: Option<&Content>,
    ) -> Result<Option<Option<Ino>>, Errno> {
        let place = self.place_of_new(parent, name, Kind::Directory);
        let at_root = parent == Ino::ROOT && place.is_none();
        // Of a directory the root's listing does not tell enough, nor of a file that is read: such
        // is asked for beside that.
        let kind = known_kind(&self.namespace.lock(), parent, name);
        let beside_root = at_root && (kind == Some(Kind::Directory) || content.is_some());
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
        let (found, records, settled) =
            tokio::join!(self.find(&key, known, content), records, settling);
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
            found = self.find(&key, known, content).await?;
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

    pub(super) async fn settle_if_any(&self, place: Option<&Place>) -> Result<Settled, Errno> {
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

    pub(super) fn records_stale(&self, namespace: &Namespace, directory: Ino) -> bool {
        let Some(inode) = namespace.get(directory) else { return false };
        let directory = &inode.directory;
        let now = self.clock.now();
        let fresh = |at| now.saturating_duration_since(at) < self.ttl();
        directory.control != Presence::Absent && !directory.records_checked.is_some_and(fresh)
    }

    pub(super) async fn find(
        &self,
        key: &Key,
        known: Option<Kind>,
        content: Option<&Content>,
    ) -> Result<Found, BucketError> {
        let find_file = || async {
            match content {
                Some(content) => self.find_small(key, content).await,
                None => self.find_file(key).await,
            }
        };
        match known {
            Some(Kind::Directory) => match self.find_directory(key).await? {
                nothing @ (Found::Records | Found::Nothing) => match find_file().await? {
                    Found::Nothing => Ok(nothing),
                    found => Ok(found),
                },
                found => Ok(found),
            },
            Some(_) => match find_file().await? {
                Found::Nothing => self.find_directory(key).await,
                found => Ok(found),
            },
            None => {
                let (directory, file) = tokio::join!(self.find_directory(key), find_file());
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

    pub(super) async fn find_file(&self, key: &Key) -> Result<Found, BucketError> {
        match self.head_shown(key).await {
            Ok((info, at)) => {
                let copy_of = self.copy_of(key, &info.etag);
                Ok(Found::File(Remote { at, copy_of, ..remote(&info) }))
            }
            Err(BucketError::NotFound | BucketError::WrongKind) => Ok(Found::Nothing),
            Err(error) => Err(error),
        }
    }

    pub(super) async fn find_directory(&self, key: &Key) -> Result<Found, BucketError> {
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
        self.first_pages(prefix, 1).await
    }

    async fn first_pages(
        &self,
        prefix: &Key,
        pages: usize,
    ) -> Result<(Listing, bool), BucketError> {
        let whole = std::sync::atomic::AtomicBool::new(true);
        let page = async {
            let mut all = Page::default();
            for _ in 0..pages {
                let (prefix, next) = (prefix.as_str(), all.next.take());
                let page = self.bucket.list(prefix, true, next.as_deref(), LOOKUP_LIST_MAX).await;
                let page = match page {
                    Err(BucketError::NotFound | BucketError::WrongKind) => Page::default(),
                    other => other?,
                };
                all.objects.extend(page.objects);
                all.prefixes.extend(page.prefixes);
                all.next = page.next;
                if all.next.is_none() {
                    break;
                }
            }
            whole.store(all.next.is_none(), std::sync::atomic::Ordering::Relaxed);
            Ok(all)
        };
        let listing = self.shown(prefix.as_str(), page).await?;
        Ok((listing, whole.into_inner()))
    }
}
