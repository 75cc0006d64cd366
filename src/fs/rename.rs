//! Renaming files and directories.
//!
//! Cost: where the store renames, 1 request (and 1 HEAD). Else a file is a server-side copy and a
//! DELETE; a dirty one is uploaded to its new key at once. A directory is a copy and a DELETE per
//! key below it, [`COPIES_MAX`] at a time: all copies first, so that a failure leaves the source as
//! it was.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsStr;
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};

use super::error::Errno;
use super::handles::OpenFile;
use super::names::kind_metadata;
use super::{Fs, name_of};
use crate::bucket::{BucketError, Condition, ListedObject, Metadata};
use crate::namespace::attrs::{AttrsRecord, RECORD_BYTES_MAX, RECORD_PREFIX};
use crate::types::{CONTROL_DIR, ETag, Ino, Key, Kind, Name};

/// Copies and deletes of one directory's rename under way at once.
const COPIES_MAX: usize = 16;

/// What to do about what stands at the new name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Replace {
    Allowed,
    /// RENAME_NOREPLACE
    Refused,
}

/// One rename, resolved.
struct Move {
    ino: Ino,
    from_parent: Ino,
    from_name: Name,
    from: Key,
    to_parent: Ino,
    to_name: Name,
    to: Key,
    target: Option<Ino>,
    condition: Condition,
}

impl Fs {
    pub async fn rename(
        &self,
        parent: Ino,
        name: &OsStr,
        new_parent: Ino,
        new_name: &OsStr,
        replace: Replace,
    ) -> Result<(), Errno> {
        self.writable()?;
        let from_name = name_of(name)?;
        let (to_name, _) = self.new_name(new_parent, new_name)?;
        let (source, target) =
            tokio::join!(self.resolve(parent, &from_name), self.resolve(new_parent, &to_name));
        let (ino, target) = (source?.ok_or(Errno::ENOENT)?, target?);
        if target.is_some() && replace == Replace::Refused {
            return Err(Errno::EEXIST);
        }
        if target == Some(ino) {
            return Ok(());
        }
        let condition = match replace {
            Replace::Refused if self.bucket.capabilities().create_if_absent => Condition::IfAbsent,
            _ => Condition::Always,
        };
        let (from_parent, to_parent) = (parent, new_parent);
        let (from, to) = (Key::new(""), Key::new(""));
        let plan =
            Move { ino, from_parent, from_name, from, to_parent, to_name, to, target, condition };
        match self.kind_of(ino)? {
            Kind::Directory => self.rename_directory(plan).await,
            _ => {
                self.rename_file(plan).await?;
                self.commit_at_rename(ino).await
            }
        }
    }

    fn kind_of(&self, ino: Ino) -> Result<Kind, Errno> {
        Ok(self.namespace.lock().get(ino).ok_or(Errno::ESTALE)?.kind)
    }

    /// The keys as they are now, under the locks that keep them so.
    fn with_keys(&self, plan: Move) -> Result<Move, Errno> {
        let namespace = self.namespace.lock();
        let from = namespace.key(plan.ino).ok_or(Errno::ENOENT)?;
        let to = namespace.child_key(plan.to_parent, &plan.to_name).ok_or(Errno::ENOENT)?;
        let to = if from.is_marker() { Key::new(format!("{to}/")) } else { to };
        Ok(Move { from, to, ..plan })
    }

    async fn rename_file(&self, plan: Move) -> Result<(), Errno> {
        let _tree = self.tree.read().await;
        let file = self.handles.shared(plan.ino);
        let target = plan.target.map(|ino| (ino, self.handles.shared(ino)));
        let result = self.rename_file_shared(plan, &file, target.as_ref()).await;
        if let Some((ino, shared)) = target {
            drop(shared);
            self.handles.tidy(ino);
        }
        result
    }

    async fn rename_file_shared(
        &self,
        plan: Move,
        file: &OpenFile,
        target: Option<&(Ino, Arc<OpenFile>)>,
    ) -> Result<(), Errno> {
        // In the order of inode numbers, so that two renames can't wait for each other.
        let (mut _first, mut _second) = (None, None);
        match target {
            Some((ino, other)) if *ino < plan.ino => {
                _first = Some(other.io.lock().await);
                _second = Some(file.io.lock().await);
            }
            Some((_, other)) => {
                _first = Some(file.io.lock().await);
                _second = Some(other.io.lock().await);
            }
            None => _first = Some(file.io.lock().await),
        }
        let plan = self.with_keys(plan)?;
        if let Some(errno) = file.state.lock().stuck() {
            return Err(errno);
        }
        if let Some((ino, other)) = target {
            if self.kind_of(*ino)? == Kind::Directory {
                return Err(Errno::EISDIR);
            }
            self.preserve(*ino, other).await?;
        }
        self.complete_copies(|source| *source == plan.from || *source == plan.to).await;
        let from = self.place(plan.ino);
        let to = self.writing_place_of_new(plan.to_parent, &plan.to_name, Kind::File);
        let etag = match (&from, &to) {
            (None, None) => Some(self.move_file(&plan, file).await?),
            _ => {
                let (from, to) = ((&plan.from, from.as_ref()), (&plan.to, to.as_ref()));
                self.move_in_transaction(plan.ino, file, from, to).await?
            }
        };
        if let Some((ino, other)) = target {
            self.forget_content(*ino, other, &plan.to);
        }
        self.reader.forget(&plan.from);
        self.moved(&plan);
        if let Some(inode) = self.namespace.lock().get_mut(plan.ino) {
            inode.object = etag;
        }
        self.record_attributes(plan.ino);
        Ok(())
    }

    /// Makes the bucket have the file at its new key and not at its old one.
    async fn move_file(&self, plan: &Move, file: &OpenFile) -> Result<ETag, Errno> {
        let staged = file.state.lock().staged.clone();
        let (object, kind) = {
            let namespace = self.namespace.lock();
            let inode = namespace.get(plan.ino).ok_or(Errno::ESTALE)?;
            (inode.object.clone(), inode.kind)
        };
        if let Some(staged) = staged {
            staged.complete().await?; // what it was begun from goes
            if staged.is_dirty() || object.is_none() {
                staged.set_key(plan.to.clone());
                let uploaded = match staged.upload(&plan.condition).await {
                    Ok(uploaded) => uploaded,
                    Err(error) => {
                        staged.set_key(plan.from.clone());
                        return Err(error.into());
                    }
                };
                if object.is_some() {
                    self.keep_directory(plan.from_parent).await?;
                    self.delete(&plan.from).await?;
                }
                file.state.lock().failed = None;
                return Ok(uploaded.etag);
            }
        }
        let etag = object.ok_or(Errno::ESTALE)?;
        self.keep_directory(plan.from_parent).await?;
        let etag = self.move_object(plan, &etag, &kind_metadata(kind)).await?;
        if let Some(staged) = &file.state.lock().staged {
            staged.moved(plan.to.clone(), etag.clone());
        }
        Ok(etag)
    }

    async fn move_object(
        &self,
        plan: &Move,
        etag: &ETag,
        metadata: &Metadata,
    ) -> Result<ETag, Errno> {
        let refused = |error| match error {
            BucketError::Precondition if plan.condition == Condition::IfAbsent => Errno::EEXIST,
            other => Errno::from(other),
        };
        if self.bucket.capabilities().rename_file {
            let renamed = self.bucket.rename(&plan.from, &plan.to, &plan.condition).await;
            renamed.map_err(refused)?;
            return Ok(self.bucket.head(&plan.to).await?.etag);
        }
        let (from, to) = (&plan.from, &plan.to);
        let copied = self.bucket.copy(from, Some(etag), to, &plan.condition, metadata).await;
        let copied = copied.map_err(refused)?;
        self.delete(from).await?;
        Ok(copied.etag)
    }

    /// The tree here follows the bucket.
    fn moved(&self, plan: &Move) {
        let (now, wall) = (self.clock.now(), self.wall());
        self.unrecord(plan.from_parent, plan.from_name.as_str());
        self.unrecord(plan.to_parent, plan.to_name.as_str());
        let mut namespace = self.namespace.lock();
        if let Some(old) = namespace.child(plan.to_parent, &plan.to_name).map(|child| child.ino) {
            namespace.detach(old);
        }
        namespace.rename(plan.ino, plan.to_parent, &plan.to_name);
        namespace.touch(plan.ino, now);
        if let Some(inode) = namespace.get_mut(plan.ino) {
            inode.attributes.ctime = wall;
        }
        namespace.touch_directory(plan.from_parent, wall);
        namespace.touch_directory(plan.to_parent, wall);
    }

    async fn rename_directory(&self, plan: Move) -> Result<(), Errno> {
        self.flush_records().await; // the records move as objects
        let _tree = self.tree.write().await;
        let plan = self.with_keys(plan)?;
        if self.namespace.lock().is_below(plan.to_parent, plan.ino) {
            return Err(Errno::EINVAL);
        }
        if let Some(target) = plan.target {
            if self.kind_of(target)? != Kind::Directory {
                return Err(Errno::ENOTDIR);
            }
            self.remove_empty(target).await?;
        }
        self.settle_below(plan.ino).await?;
        if let Some(from) = self.place(plan.ino) {
            let to = self.place_of_new(plan.to_parent, &plan.to_name, Kind::Directory);
            if self.move_directory_in_transaction(plan.ino, &from, to.as_ref()).await? {
                self.moved(&plan);
                let Some(to) = to else { return Ok(()) };
                return self.directory_renamed(plan.ino, &from, &to).await;
            }
        }
        self.complete_below(plan.ino).await?;
        self.complete_copies(|source| source.as_str().starts_with(plan.from.as_str())).await;
        self.keep_directory(plan.from_parent).await?;
        if self.bucket.capabilities().rename_directory {
            self.bucket.rename(&plan.from, &plan.to, &Condition::Always).await?;
            self.moved(&plan);
            self.let_go_below(plan.ino);
        } else {
            self.move_keys(&plan).await?;
        }
        self.record_attributes(plan.ino);
        Ok(())
    }

    /// What staged files below a directory were begun from comes here before it goes.
    async fn complete_below(&self, directory: Ino) -> Result<(), Errno> {
        for (ino, file) in self.handles.all_files() {
            let below = self.namespace.lock().is_below(ino, directory);
            let staged = file.state.lock().staged.clone();
            if let Some(staged) = staged.filter(|_| below) {
                staged.complete().await?;
            }
        }
        Ok(())
    }

    /// Versions below a renamed directory may have new names: they are asked for at their next use.
    /// Staged files that are not dirty speak of the old ones: those at rest go, the others follow.
    fn let_go_below(&self, directory: Ino) {
        let mut namespace = self.namespace.lock();
        let all: Vec<Ino> = namespace.inodes().map(|inode| inode.ino).collect();
        for ino in all {
            if ino == directory || !namespace.is_below(ino, directory) {
                continue;
            }
            let key = namespace.key(ino);
            let Some(inode) = namespace.get_mut(ino) else { continue };
            inode.checked = None;
            let Some(file) = self.handles.shared_if_any(ino) else { continue };
            let mut state = file.state.lock();
            let Some(staged) = state.staged.clone().filter(|staged| !staged.is_dirty()) else {
                continue;
            };
            match (key, inode.object.clone()) {
                (Some(key), Some(etag)) if state.handles() > 0 => staged.moved(key, etag),
                _ => state.staged = None,
            }
        }
    }

    async fn move_keys(&self, plan: &Move) -> Result<(), Errno> {
        let (from, to) = (plan.from.as_str(), plan.to.as_str());
        let objects = self.bucket.list_all(from, false).await?.objects;
        self.refuse_moving_undecided(&objects).await?;
        let moves: Vec<(ListedObject, Key)> = objects
            .into_iter()
            .map(|object| {
                let key = Key::new(object.key.as_str().replacen(from, to, 1));
                (object, key)
            })
            .collect();
        let copies = moves.clone().into_iter().map(|(object, key)| self.copy_below(object, key));
        let copies = futures::stream::iter(copies).buffer_unordered(COPIES_MAX);
        let etags: HashMap<Key, (ETag, ETag)> = match copies.try_collect().await {
            Ok(etags) => etags,
            Err(error) => {
                self.delete_all(moves.into_iter().map(|(_, made)| made)).await?;
                return Err(Errno::from(error));
            }
        };
        self.mend_records(&etags).await?;
        // From here on the new name has it all: only the old one is left to clear.
        self.moved(plan);
        self.learn_etags(plan.ino, &etags);
        let keys = moves.into_iter().map(|(object, _)| object.key).collect();
        self.delete_below(&plan.from, keys).await
    }

    /// Files first, then directories from the deepest up: a store that lists an emptied prefix goes
    /// on to do so until its own key is deleted last.
    async fn delete_below(&self, from: &Key, keys: Vec<Key>) -> Result<(), Errno> {
        let control = format!("/{CONTROL_DIR}/");
        let control_of = |key: &Key| {
            let end = key.as_str().rfind(&control)? + control.len();
            Some(Key::new(&key.as_str()[..end]))
        };
        let mut directories: BTreeSet<Key> = keys.iter().filter_map(control_of).collect();
        // Implied ones as well: such a store lists those, too.
        for key in &keys {
            let below = key.as_str().match_indices('/').map(|(at, _)| &key.as_str()[..=at]);
            let below = below.filter(|directory| directory.starts_with(from.as_str()));
            directories.extend(below.map(Key::new));
        }
        let (markers, files): (Vec<Key>, Vec<Key>) = keys.into_iter().partition(Key::is_marker);
        directories.extend(markers);
        self.delete_all(files.into_iter()).await?;
        let mut by_depth: BTreeMap<usize, Vec<Key>> = BTreeMap::new();
        for directory in directories {
            by_depth.entry(directory.as_str().matches('/').count()).or_default().push(directory);
        }
        for (_, level) in by_depth.into_iter().rev() {
            self.delete_all(level.into_iter()).await?;
        }
        Ok(())
    }

    async fn copy_below(
        &self,
        object: ListedObject,
        to: Key,
    ) -> Result<(Key, (ETag, ETag)), BucketError> {
        let old = object.etag;
        if to.is_marker() {
            let (nothing, none) = (Default::default(), Metadata::new());
            let made = self.bucket.put(&to, nothing, &Condition::Always, &none).await?;
            return Ok((to, (old, made.etag)));
        }
        let metadata = self.bucket.head(&object.key).await?.metadata;
        let copied =
            self.bucket.copy(&object.key, Some(&old), &to, &Condition::Always, &metadata).await?;
        Ok((to, (old, copied.etag)))
    }

    async fn delete_all(&self, keys: impl Iterator<Item = Key>) -> Result<(), Errno> {
        let deletes = keys.map(|key| async move { self.delete(&key).await });
        let deletes = futures::stream::iter(deletes).buffer_unordered(COPIES_MAX);
        let results: Vec<Result<(), BucketError>> = deletes.collect().await;
        for result in results {
            result?;
        }
        Ok(())
    }

    /// A copy may have another ETag than its source: copied records must speak of the copies.
    async fn mend_records(&self, etags: &HashMap<Key, (ETag, ETag)>) -> Result<(), Errno> {
        let control = format!("{CONTROL_DIR}/{RECORD_PREFIX}");
        for key in etags.keys() {
            let Some((directory, _)) = key.as_str().rsplit_once(control.as_str()) else { continue };
            let (info, body) = self.bucket.get_bytes(key, 0..RECORD_BYTES_MAX, None).await?;
            let Ok(mut record) = AttrsRecord::parse(&body) else { continue };
            let mut mended = false;
            for (name, entry) in &mut record.entries {
                let Some((old, new)) = etags.get(&Key::new(format!("{directory}{name}"))) else {
                    continue;
                };
                if old != new && entry.etag.as_ref() == Some(old) {
                    entry.etag = Some(new.clone());
                    mended = true;
                }
            }
            if mended {
                let body = record.to_json().into();
                self.bucket
                    .put(key, body, &Condition::IfMatch(info.etag), &Metadata::new())
                    .await?;
            }
        }
        Ok(())
    }

    /// The inodes below a moved directory are of the copies' versions now.
    fn learn_etags(&self, directory: Ino, etags: &HashMap<Key, (ETag, ETag)>) {
        let mut namespace = self.namespace.lock();
        let all: Vec<Ino> = namespace.inodes().map(|inode| inode.ino).collect();
        for ino in all {
            if !namespace.is_below(ino, directory) {
                continue;
            }
            let Some(key) = namespace.key(ino) else { continue };
            let Some(inode) = namespace.get_mut(ino) else { continue };
            match etags.get(&key) {
                Some((old, new)) if inode.object.as_ref() == Some(old) => {
                    inode.object = Some(new.clone());
                    let file = self.handles.shared_if_any(ino);
                    let staged = file.and_then(|file| file.state.lock().staged.clone());
                    if let Some(staged) = staged.filter(|staged| !staged.is_dirty()) {
                        staged.moved(key, new.clone());
                    }
                }
                _ => inode.checked = None,
            }
            inode.directory.forget_records();
        }
    }
}
