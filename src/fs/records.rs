//! Attribute records: loading every mount's, flushing our own.
//!
//! Cost: loading is 1 LIST and a GET per record whose ETag is new; flushing is 1 LIST and 1 PUT for
//! all the changes of a directory that came within [`FLUSH_DELAY`].

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures::{StreamExt, stream};

use super::Fs;
use super::error::Errno;
use super::learning::learn_root;
use crate::bucket::{BucketError, Condition, ListedObject, Metadata};
use crate::checkpoint::record::RecordKey;
use crate::namespace::Namespace;
use crate::namespace::attrs::{
    AttrsRecord, OWN_ENTRY, RECORD_BYTES_MAX, RECORD_PREFIX, Recorded, nanos, record_key,
};
use crate::namespace::inode::{LoadedRecord, Presence};
use crate::namespace::listing::Listing;
use crate::types::{CONTROL_DIR, Ino, KEY_BYTES_MAX, Key, Kind};

/// How long changes of attributes are gathered before they are written.
const FLUSH_DELAY: Duration = Duration::from_millis(300);
/// How long to wait after a flush that failed.
const FLUSH_RETRY: Duration = Duration::from_secs(5);
/// How long changed mtimes of directories are gathered: a crash loses the fractions of a second of
/// those of the last half minute.
const DIRECTORY_TIMES_DELAY: Duration = Duration::from_secs(30);
/// Of so many names one is no record, where a directory is not empty.
const PRESENCE_LIST_MAX: u16 = 10;
/// Of all records of a directory together so many bytes are loaded: a hostile bucket may hold many
/// that are each as large as one may be.
const LOADED_BYTES_MAX: u64 = 2 * RECORD_BYTES_MAX;
/// Records fetched at once.
const FETCHES_MAX: usize = 16;
/// Records of different directories flushed at once.
const FLUSHES_MAX: usize = 16;

/// Flushes changed records until the file system is gone.
pub(super) async fn flush_now_and_then(fs: Weak<Fs>) {
    let Some(mut times_recorded) = fs.upgrade().map(|fs| fs.clock.now()) else { return };
    loop {
        let Some(strong) = fs.upgrade() else { return };
        let changed = tokio::time::timeout(FLUSH_RETRY, strong.records_dirty.notified()).await;
        drop(strong);
        if changed.is_ok() {
            tokio::time::sleep(FLUSH_DELAY).await;
        }
        let Some(strong) = fs.upgrade() else { return };
        let now = strong.clock.now();
        if now.saturating_duration_since(times_recorded) >= DIRECTORY_TIMES_DELAY {
            strong.record_directory_times();
            times_recorded = now;
        }
        strong.flush_records().await;
        strong.thin_out();
    }
}

/// Leaves out what is too much to be loaded, the largest first.
fn within_bytes(wanted: &mut Vec<ListedObject>) {
    wanted.sort_by_key(|object| object.size);
    let mut bytes = 0u64;
    let before = wanted.len();
    wanted.retain(|object| {
        bytes = bytes.saturating_add(object.size);
        bytes <= LOADED_BYTES_MAX
    });
    if wanted.len() < before {
        tracing::warn!(records = before - wanted.len(), "records of absurd size are left out");
    }
}

/// The children that have transactions, as their names stand in keys.
pub(super) fn transactions_in(objects: &[ListedObject], control: &str) -> HashSet<String> {
    let keys = record_keys(objects, control).filter(|key| key.kind.of_move().is_none());
    keys.map(|key| key.child.as_str().to_owned()).collect()
}

fn record_keys(objects: &[ListedObject], control: &str) -> impl Iterator<Item = RecordKey> {
    let records = objects.iter().filter_map(move |o| o.key.as_str().strip_prefix(control));
    records.filter_map(RecordKey::parse)
}

impl Fs {
    /// Loads the records of a directory that are new.
    pub(super) async fn load_records(&self, directory: Ino) -> Result<(), BucketError> {
        let Some((prefix, own_key, have, own_loaded)) = self.records_of(directory) else {
            return Ok(());
        };
        let checked = self.clock.now();
        let control = format!("{prefix}{CONTROL_DIR}/");
        let mut page = match control.len() < KEY_BYTES_MAX {
            true => match self.bucket.list_all(&control, true).await {
                Err(BucketError::NotFound) => Default::default(),
                other => other?,
            },
            false => Default::default(), // no key is below it, and stores refuse to look
        };
        let renames =
            record_keys(&page.objects, &control).filter(|key| key.kind.of_move().is_some());
        self.meet_renames(prefix.trim_end_matches('/'), renames.collect()).await?;
        page.objects.extend(self.records_coming(&control, &page.objects).await?);
        let present = !page.objects.is_empty() || !page.prefixes.is_empty();
        let start = format!("{prefix}{CONTROL_DIR}/{RECORD_PREFIX}");
        let is_record = |object: &ListedObject| self.key_shown(&object.key).starts_with(&start);
        let (mut records, mut wanted) = (Vec::new(), Vec::new());
        let transactions = transactions_in(&page.objects, &format!("{prefix}{CONTROL_DIR}/"));
        for object in page.objects.into_iter().filter(is_record) {
            let key = self.key_shown(&object.key);
            match have.iter().find(|r| r.key == key && r.etag == object.etag) {
                Some(loaded) => records.push(loaded.clone()),
                None if key == own_key && own_loaded => {}
                None => wanted.push(object),
            }
        }
        within_bytes(&mut wanted);
        let fetches = wanted.into_iter().map(|object| self.fetch_record(object));
        let mut fetches = futures::stream::iter(fetches).buffer_unordered(FETCHES_MAX);
        let mut own = None;
        while let Some(loaded) = fetches.next().await {
            match loaded? {
                Some(loaded) if loaded.key == own_key => own = Some(loaded.record),
                Some(loaded) => records.push(loaded),
                None => {}
            }
        }
        drop(fetches);
        if let Some(directory) = self.namespace.lock().directory_mut(directory) {
            directory.control = if present { Presence::Present } else { Presence::Absent };
            directory.records = records;
            directory.transactions = transactions;
            directory.records_checked = Some(checked);
            directory.own_loaded = true;
            for (name, entry) in own.iter().flat_map(|record| &record.entries) {
                directory.own.entry(name.clone()).or_insert_with(|| entry.clone());
            }
        }
        if directory == Ino::ROOT {
            learn_root(&mut self.namespace.lock());
        }
        Ok(())
    }

    fn records_of(&self, directory: Ino) -> Option<(String, String, Vec<LoadedRecord>, bool)> {
        let namespace = self.namespace.lock();
        let prefix = namespace.key(directory)?.as_str().to_owned();
        let own_key = record_key(&prefix, &self.config.mount_id);
        let state = &namespace.get(directory)?.directory;
        Some((prefix, own_key, state.records.clone(), state.own_loaded))
    }

    /// One record; `None` if it went meanwhile or can't be used, which is logged.
    async fn fetch_record(
        &self,
        object: ListedObject,
    ) -> Result<Option<LoadedRecord>, BucketError> {
        if object.size == 0 || object.size > RECORD_BYTES_MAX {
            tracing::warn!(key = %object.key, bytes = object.size, "a record of absurd size");
            return Ok(None);
        }
        let (info, body) = match self.bucket.get_bytes(&object.key, 0..object.size, None).await {
            Err(BucketError::NotFound) => return Ok(None),
            other => other?,
        };
        match AttrsRecord::parse(&body) {
            Ok(record) => Ok(Some(LoadedRecord {
                key: self.key_shown(&object.key),
                etag: info.etag,
                record: Arc::new(record),
            })),
            Err(error) => {
                tracing::warn!(key = %object.key, %error, "a record that can't be used");
                Ok(None)
            }
        }
    }

    /// Notes that an inode's attributes must be found by other mounts and later ones. What has no
    /// version in the bucket yet is noted again when it has.
    pub(super) fn record_attributes(&self, ino: Ino) {
        let mut namespace = self.namespace.lock();
        let defaults = *namespace.defaults();
        let at = self.wall();
        let Some(inode) = namespace.get(ino).filter(|inode| inode.linked) else { return };
        let is_root = ino == Ino::ROOT;
        let name = match &inode.name {
            Some(name) => name.as_str().to_owned(),
            None if is_root => OWN_ENTRY.to_owned(),
            None => return,
        };
        let is_directory = inode.kind == Kind::Directory;
        if inode.object.is_none() && !is_directory {
            return;
        }
        // Of the root only what was set: its times move with every name made in it.
        let timed = inode.times_set || inode.directory.times_dirty && !is_root;
        let plain = inode.attributes.is_default(inode.kind, &defaults) && !timed;
        let mut entry = Recorded::of(inode.kind, inode.object.as_ref(), &inode.attributes, at);
        if let Some(newest) = inode.directory.mtime_set {
            entry.newest = Some(nanos(newest));
        }
        let parent = inode.parent;
        if let Some(directory) = namespace.directory_mut(ino) {
            directory.times_dirty = false; // they are in the entry
        }
        let Some(directory) = namespace.directory_mut(parent) else { return };
        // A default that overrules what a record said before must be written too.
        let said = directory.own.contains_key(&name)
            || directory.records.iter().any(|r| r.record.entries.contains_key(&name));
        if plain && !said {
            return;
        }
        if !self.can_record_in(&namespace, parent) {
            return; // what nobody asked for: it lasts as long as this node knows the inode
        }
        let Some(directory) = namespace.directory_mut(parent) else { return };
        directory.own.insert(name, entry);
        directory.own_dirty = true;
        drop(namespace);
        self.records_dirty.notify_one();
    }

    /// Whether our record of what is in a directory has a key that stores take.
    pub(super) fn can_record_in(&self, namespace: &Namespace, directory: Ino) -> bool {
        let key = namespace.key(directory);
        let record = key.map(|key| record_key(key.as_str(), &self.config.mount_id));
        record.is_none_or(|record| record.len() <= KEY_BYTES_MAX)
    }

    /// ENAMETOOLONG where no record can keep what somebody asks to be kept of an inode.
    pub(super) fn refuse_unrecorded(&self, namespace: &Namespace, ino: Ino) -> Result<(), Errno> {
        let named = namespace.get(ino).filter(|inode| inode.linked && ino != Ino::ROOT);
        match named.is_none_or(|inode| self.can_record_in(namespace, inode.parent)) {
            true => Ok(()),
            false => Err(Errno::ENAMETOOLONG),
        }
    }

    /// Takes a name out of our record: it is gone or means something new.
    pub(super) fn unrecord(&self, directory: Ino, name: &str) {
        let mut namespace = self.namespace.lock();
        let Some(directory) = namespace.directory_mut(directory) else { return };
        if directory.own.remove(name).is_some() {
            directory.own_dirty = true;
            drop(namespace);
            self.records_dirty.notify_one();
        }
    }

    /// Notes the mtime of every directory that changed. Apart from [`Fs::record_attributes`] and
    /// much more seldom: directories change with every file, and a listing tells their times to a
    /// second.
    pub(super) fn record_directory_times(&self) {
        let changed: Vec<Ino> = {
            let namespace = self.namespace.lock();
            let inodes = namespace.inodes().filter(|inode| inode.ino != Ino::ROOT);
            let changed = inodes.filter(|inode| inode.directory.times_dirty);
            changed.map(|inode| inode.ino).collect()
        };
        for directory in changed {
            self.record_attributes(directory);
        }
    }

    /// Flushes the record of every directory that changed. Returns how many could not be.
    pub(super) async fn flush_records(&self) -> usize {
        let all = self.namespace.lock().inodes().map(|inode| inode.ino).collect();
        self.flush_records_of(all).await
    }

    /// The same of a directory and all below it.
    pub(super) async fn flush_records_below(&self, directory: Ino) -> usize {
        let all = self.namespace.lock().below(directory);
        self.flush_records_of(all).await
    }

    async fn flush_records_of(&self, mut directories: Vec<Ino>) -> usize {
        {
            let namespace = self.namespace.lock();
            directories.retain(|ino| namespace.get(*ino).is_some_and(|it| it.directory.own_dirty));
        }
        let flushed = directories.into_iter().map(|directory| self.flush_record(directory));
        let flushed = stream::iter(flushed).buffer_unordered(FLUSHES_MAX);
        let failed = flushed.filter_map(|result| std::future::ready(result.err()));
        let failed: Vec<Errno> = failed.collect().await;
        for error in &failed {
            tracing::warn!(%error, "attributes could not be recorded; trying again");
        }
        failed.len()
    }

    /// Writes our record of one directory if it changed.
    pub(super) async fn flush_record(&self, directory: Ino) -> Result<(), Errno> {
        let _work = self.work_at(directory).await;
        let (must_load, dirty) = {
            let namespace = self.namespace.lock();
            let Some(inode) = namespace.get(directory) else { return Ok(()) };
            let state = &inode.directory;
            (!state.own_loaded && state.control != Presence::Absent, state.own_dirty)
        };
        if !dirty {
            return Ok(());
        }
        if must_load {
            self.load_records(directory).await?;
        }
        if !self.is_there(directory).await? {
            if let Some(state) = self.namespace.lock().directory_mut(directory) {
                state.own_dirty = false;
            }
            return Ok(());
        }
        let Some((key, entries)) = self.take_dirty_record(directory) else { return Ok(()) };
        let result = self.write_record(&key, entries).await;
        let mut namespace = self.namespace.lock();
        if let Some(state) = namespace.directory_mut(directory) {
            match &result {
                Ok(()) => state.control = Presence::Present,
                Err(_) => state.own_dirty = true,
            }
        }
        namespace.drop_if_unused(directory);
        Ok(result?)
    }

    /// Whether the bucket still has a directory: a record must not bring back one that another node
    /// removed.
    async fn is_there(&self, directory: Ino) -> Result<bool, BucketError> {
        if directory == Ino::ROOT {
            return Ok(true);
        }
        let Some(key) = self.namespace.lock().key(directory) else { return Ok(false) };
        if self.moves.is_gone(key.as_str()) {
            return Ok(false);
        }
        if self.moves.is_coming(key.as_str()) {
            return Ok(true);
        }
        self.holds_names(&key).await
    }

    async fn holds_names(&self, key: &Key) -> Result<bool, BucketError> {
        let page = match self.bucket.list(key.as_str(), true, None, PRESENCE_LIST_MAX).await {
            Err(BucketError::NotFound) => return Ok(false),
            other => other?,
        };
        let mut listing = Listing::default();
        listing.add(key.as_str(), page);
        Ok(listing.exists())
    }

    /// Removes the records of a directory that is no more: an S3 client deleted its objects, or a
    /// record came late. LIST goes on showing it among its parent's names, for everybody. False,
    /// with nothing removed, if it is one, or more than attributes is recorded in it. 2 LISTs, and
    /// a DELETE for each record.
    pub(super) async fn bury(&self, directory: &Key) -> Result<bool, BucketError> {
        let control = Key::new(format!("{directory}{CONTROL_DIR}/"));
        let page = match self.bucket.list_all(control.as_str(), false).await {
            Err(BucketError::NotFound) => Default::default(),
            other => other?,
        };
        let start = format!("{control}{RECORD_PREFIX}");
        let mut records = page.objects.iter().filter(|object| !object.key.is_marker());
        if !records.all(|object| object.key.as_str().starts_with(&start)) {
            return Ok(false);
        }
        // Only now, and each as it was listed: a directory that another node makes meanwhile keeps
        // its records.
        if self.holds_names(directory).await? {
            return Ok(false);
        }
        let conditional = self.bucket.capabilities().delete_if_match;
        for object in page.objects {
            let seen = Some(&object.etag).filter(|_| conditional && !object.key.is_marker());
            match self.bucket.delete(&object.key, seen).await {
                Ok(()) | Err(BucketError::NotFound) => {}
                Err(BucketError::Precondition) => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        match self.bucket.delete(&control, None).await {
            Ok(()) | Err(BucketError::NotFound) => Ok(true),
            Err(error) => Err(error),
        }
    }

    fn take_dirty_record(&self, directory: Ino) -> Option<(Key, BTreeMap<String, Recorded>)> {
        let mut namespace = self.namespace.lock();
        let prefix = namespace.key(directory);
        let state = namespace.directory_mut(directory)?;
        if !std::mem::take(&mut state.own_dirty) {
            return None;
        }
        state.own_loaded = true;
        let entries = state.own.clone();
        Some((Key::new(record_key(prefix?.as_str(), &self.config.mount_id)), entries))
    }

    async fn write_record(
        &self,
        key: &Key,
        entries: BTreeMap<String, Recorded>,
    ) -> Result<(), BucketError> {
        if entries.is_empty() {
            return match self.bucket.delete(key, None).await {
                Err(BucketError::NotFound) => Ok(()),
                other => other,
            };
        }
        let record = AttrsRecord::new(&self.config.mount_id, self.clock.random(), entries);
        let body = record.to_json().into();
        self.bucket.put(key, body, &Condition::Always, &Metadata::new()).await?;
        Ok(())
    }
}
