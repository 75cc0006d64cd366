//! A directory's rename where no record can decide it: key by key.
//!
//! A copy and a DELETE per key below it, [`COPIES_MAX`] at a time: all copies first, so that a
//! failure leaves the source as it was. Others see both names meanwhile. What follows from other
//! versions at the new keys is here for renames that are decided, too.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use futures::{StreamExt, TryStreamExt};

use super::Move;
use crate::bucket::{BucketError, Condition, ListedObject, Metadata};
use crate::fs::Fs;
use crate::fs::error::Errno;
use crate::namespace::attrs::{AttrsRecord, RECORD_BYTES_MAX, RECORD_PREFIX};
use crate::types::{CONTROL_DIR, ETag, Ino, Key};

/// Copies and deletes of one directory's rename under way at once.
const COPIES_MAX: usize = 16;

impl Fs {
    /// `target`: what stands at the new name, which goes if it is empty.
    pub(super) async fn move_keys(&self, plan: &Move, target: Option<Ino>) -> Result<(), Errno> {
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
        if !moves.iter().all(|(_, to)| to.fits()) {
            return Err(Errno::ENAMETOOLONG);
        }
        if let Some(target) = target {
            self.remove_empty(target).await?;
        }
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
        let below = self.below(plan.ino);
        self.learn_etags(&below, &etags);
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
        // The mark of a rename that no record could decide was in it, and is gone since.
        directories.insert(Key::new(format!("{from}{CONTROL_DIR}/")));
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
    pub(in crate::fs) async fn mend_records(
        &self,
        etags: &HashMap<Key, (ETag, ETag)>,
    ) -> Result<(), Errno> {
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

    /// Inodes of a moved directory are of the copies' versions now.
    pub(in crate::fs) fn learn_etags(&self, inos: &[Ino], etags: &HashMap<Key, (ETag, ETag)>) {
        let mut namespace = self.namespace.lock();
        for ino in inos.iter().copied() {
            let Some(key) = namespace.key(ino) else { continue };
            let Some(inode) = namespace.get_mut(ino) else { continue };
            match etags.get(&key) {
                Some((old, new)) if inode.object.as_ref() == Some(old) => {
                    if inode.paged.as_ref() == Some(old) {
                        inode.paged = Some(new.clone());
                    }
                    inode.object = Some(new.clone());
                    inode.at = None;
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
