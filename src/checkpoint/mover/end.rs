//! After the decision: objects copied and their sources deleted, what is left cleared away.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::Arc;

use futures::StreamExt;

use super::{Mover, PARALLEL_MAX};
use crate::bucket::{BucketError, Condition, ListedObject, Metadata};
use crate::checkpoint::moves::{Phase, Reply};
use crate::checkpoint::record::key::{MARK_PREFIX, control_prefix, mark_key};
use crate::checkpoint::record::moving::ATTRIBUTES_PREFIX;
use crate::checkpoint::record::{ENTRIES_MAX, KeyKind, Listed, RecordKey, Suffix};
use crate::types::{CONTROL_DIR, ETag, Key};

/// The most that the entries of one record may take, in bytes: half of the longest record.
const CHUNK_BYTES_MAX: usize = 2 << 20;
/// What an entry takes beside its name and its ETag, in bytes.
const ENTRY_BYTES: usize = 32;

/// Entries as they stand in records, each within its bounds; at least one.
pub(super) fn chunks(listed: impl Iterator<Item = Listed>) -> Vec<Vec<Listed>> {
    let (mut chunks, mut bytes) = (vec![Vec::new()], 0);
    for listed in listed {
        // A control character or a quote takes up to six bytes in JSON; names have no control ones.
        let more = ENTRY_BYTES + 2 * (listed.name.as_str().len() + listed.etag.0.len());
        let full = chunks.last().is_some_and(|chunk| chunk.len() >= ENTRIES_MAX);
        if full || bytes + more > CHUNK_BYTES_MAX {
            chunks.push(Vec::new());
            bytes = 0;
        }
        bytes += more;
        if let Some(chunk) = chunks.last_mut() {
            chunk.push(listed);
        }
    }
    chunks
}

impl Mover {
    /// The same for each name, some at a time. The first error, once all have ended.
    pub(super) async fn each<'a, F>(
        &'a self,
        names: Vec<Suffix>,
        one: impl Fn(&'a Self, Suffix, ETag) -> F,
    ) -> Result<(), BucketError>
    where
        F: Future<Output = Result<(), BucketError>>,
    {
        let Some(decided) = self.decided() else { return Ok(()) };
        let version = |name: &Suffix| decided.entries.get(name).cloned();
        let all = names.into_iter().filter_map(|name| version(&name).map(|etag| (name, etag)));
        let all = all.map(|(name, etag)| one(self, name, etag));
        let all: Vec<_> = futures::stream::iter(all).buffer_unordered(PARALLEL_MAX).collect().await;
        all.into_iter().collect()
    }

    pub(super) async fn copy_one(&self, name: Suffix, version: ETag) -> Result<(), BucketError> {
        let from = Key::new(format!("{}{}", self.ends.source(), name.as_str()));
        let to = Key::new(format!("{}{}", self.ends.target(), name.as_str()));
        let copied = self.copy(&name, &from, &version, &to).await;
        let reply = reply(&copied);
        let mut state = self.state.lock();
        if let Ok(made) = &copied {
            state.made.insert(name.clone(), made.clone());
        }
        state.seen.copied(&name, &reply);
        if reply == Reply::Lost { copied.map(drop) } else { Ok(()) }
    }

    async fn copy(
        &self,
        name: &Suffix,
        from: &Key,
        version: &ETag,
        to: &Key,
    ) -> Result<ETag, BucketError> {
        let none = Metadata::new();
        if name.is_marker() {
            // Whatever stands there: some stores take the directory that our mark is in for one.
            let nothing = bytes::Bytes::new();
            return Ok(self.bucket.put(to, nothing, &Condition::Always, &none).await?.etag);
        }
        let source = self.bucket.head(from).await?;
        if source.etag != *version {
            return Err(BucketError::Precondition);
        }
        // By parts it would not be one request, and could be late for what happened in between.
        // Whoever changes an object of the new directory settles it first, so that this look holds.
        let condition = match self.bucket.capabilities().copy_condition {
            true => Condition::IfAbsent,
            false => match self.bucket.head(to).await {
                Err(BucketError::NotFound) => Condition::Always,
                Ok(_) => return Err(BucketError::Precondition),
                Err(error) => return Err(error),
            },
        };
        let copied = self.bucket.copy(from, Some(version), to, &condition, &source.metadata).await;
        Ok(copied?.etag)
    }

    pub(super) async fn delete_one(&self, name: Suffix, version: ETag) -> Result<(), BucketError> {
        let key = Key::new(format!("{}{}", self.ends.source(), name.as_str()));
        let deleted = self.delete(&key, &version).await;
        let reply = reply(&deleted);
        self.state.lock().seen.deleted(&name, &reply);
        if reply == Reply::Lost { deleted } else { Ok(()) }
    }

    async fn delete(&self, key: &Key, version: &ETag) -> Result<(), BucketError> {
        if self.bucket.capabilities().delete_if_match {
            return self.bucket.delete(key, Some(version)).await;
        }
        if self.bucket.head(key).await?.etag != *version {
            return Err(BucketError::Precondition);
        }
        self.bucket.delete(key, None).await
    }

    /// Waits until sources may go.
    pub(super) async fn ripen(&self) {
        let left = {
            let mut state = self.state.lock();
            let now = self.clock.now();
            let ripe = *state.ripe.get_or_insert(now + super::GRACE);
            ripe.saturating_duration_since(now)
        };
        if !left.is_zero() {
            tokio::time::sleep(left).await;
        }
    }

    /// Takes the marks away, and what else keeps the old directory.
    pub(super) async fn sweep(&self) -> Result<(), BucketError> {
        let source = self.ends.source();
        let mut left = self.list_below(&source).await?.objects;
        // Some stores tell another version of a marker than they delete.
        let decided = self.decided();
        left.retain(|object| {
            let name = object.key.as_str().strip_prefix(&source).unwrap_or_default();
            let moved = decided.as_ref().is_some_and(|decided| decided.moves(name, &object.etag));
            !(object.key.is_marker() && moved)
        });
        let record = |object: &ListedObject| {
            let (dir, record) = object.key.as_str().rsplit_once('/')?;
            dir.ends_with(&format!("/{CONTROL_DIR}")).then(|| record.to_owned())
        };
        // Attributes of nothing go, too: they would show the directory where it is not.
        let nothing = left.iter().all(|object| record(object).is_some());
        let is_ours = |object: &ListedObject| {
            record(object).is_some_and(|record| {
                let attributes = nothing && record.starts_with(ATTRIBUTES_PREFIX);
                attributes || self.is_spent_record(&record)
            })
        };
        let (ours, others): (Vec<_>, Vec<_>) = left.into_iter().partition(is_ours);
        let deletes = ours
            .into_iter()
            .map(|object| async move { gone(self.delete(&object.key, &object.etag).await) });
        futures::future::try_join_all(deletes).await?;
        self.unmark_target().await?;
        if others.is_empty() {
            self.clear_directories(&source).await?;
        }
        Ok(())
    }

    /// A record in the old directory that nothing needs any more.
    fn is_spent_record(&self, record: &str) -> bool {
        let mark = record.strip_prefix(MARK_PREFIX).is_some_and(|id| id == self.id.to_string());
        let pending = |key: &RecordKey| matches!(key.kind, KeyKind::From(_) | KeyKind::Into(_));
        record.is_empty() || mark || RecordKey::parse(record).is_some_and(|key| !pending(&key))
    }

    /// The keys of directories that are empty by now, from the deepest up: some stores go on
    /// listing an emptied prefix until its own key is deleted.
    async fn clear_directories(&self, source: &str) -> Result<(), BucketError> {
        let mut by_depth: BTreeMap<usize, BTreeSet<String>> = BTreeMap::new();
        let mut add = |key: &str| {
            for (at, _) in key.match_indices('/') {
                let directory = &key[..=at];
                if directory.starts_with(source) {
                    let depth = directory.matches('/').count();
                    by_depth.entry(depth).or_default().insert(directory.to_owned());
                }
            }
        };
        let decided: Option<Arc<_>> = self.decided();
        for name in decided.iter().flat_map(|decided| decided.entries.keys()) {
            add(&format!("{source}{}", name.as_str()));
        }
        add(&format!("{source}{CONTROL_DIR}/"));
        for (_, level) in by_depth.into_iter().rev() {
            let deletes = level
                .into_iter()
                .map(|key| async move { gone(self.bucket.delete(&Key::new(key), None).await) });
            let deletes = futures::stream::iter(deletes).buffer_unordered(PARALLEL_MAX);
            deletes.collect::<Vec<_>>().await.into_iter().collect::<Result<Vec<()>, _>>()?;
        }
        Ok(())
    }

    async fn unmark_target(&self) -> Result<(), BucketError> {
        let target = self.ends.target();
        gone(self.bucket.delete(&mark_key(&target, self.id), None).await)?;
        let control = control_prefix(target.trim_end_matches('/'));
        let left = self.bucket.list(&control, false, None, 2).await;
        match left {
            Ok(page) if page.objects.iter().any(|object| !object.key.is_marker()) => Ok(()),
            Err(error) if error != BucketError::NotFound => Err(error),
            _ => gone(self.bucket.delete(&Key::new(control), None).await),
        }
    }

    /// Takes away what a rename that came to nothing left at the new name. Where no mark is, that
    /// may be a file's, which some stores would delete for a directory.
    async fn clear_target(&self) -> Result<(), BucketError> {
        let target = self.ends.target();
        let mark = mark_key(&target, self.id);
        let there = self.list_below(&target).await?.objects;
        if !there.iter().any(|object| object.key == mark) {
            return Ok(());
        }
        self.unmark_target().await?;
        let control = control_prefix(target.trim_end_matches('/'));
        let ours = |object: &ListedObject| object.key == mark || object.key.as_str() == control;
        if !self.over && there.iter().all(ours) {
            gone(self.bucket.delete(&Key::new(target), None).await)?;
        }
        Ok(())
    }

    /// Takes away what was written before the decision: the marks first, since without `into` the
    /// one in the destination would show that as a directory.
    pub(super) async fn unpoint(&self) -> Result<(), BucketError> {
        gone(self.bucket.delete(&mark_key(&self.ends.source(), self.id), None).await)?;
        if self.phase() != Phase::Done {
            self.clear_target().await?;
        }
        let from = self.key(&self.ends.from_dir, &self.ends.from, KeyKind::From(self.id))?;
        let into = self.key(&self.ends.to_dir, &self.ends.to, KeyKind::Into(self.id))?;
        gone(self.bucket.delete(&from, None).await)?;
        gone(self.bucket.delete(&into, None).await)
    }

    /// An hour after all was done: takes the last records away, the decision before what says that
    /// it is done.
    pub async fn collect(&self) -> Result<(), BucketError> {
        let Self { id, .. } = self;
        let (dir, child) = (&self.ends.to_dir, &self.ends.to);
        let decided = KeyKind::To(*id);
        let mut lists = Vec::new();
        let prefix = crate::checkpoint::record::key::child_prefix(
            dir,
            &crate::checkpoint::record::Escaped::of(child),
        );
        for object in self.list_below(&prefix).await?.objects {
            let record = object.key.as_str().rsplit('/').next().and_then(RecordKey::parse);
            if record.is_some_and(|key| matches!(key.kind, KeyKind::List(of, _) if of == *id)) {
                lists.push(object.key);
            }
        }
        for key in lists {
            gone(self.bucket.delete(&key, None).await)?;
        }
        gone(self.bucket.delete(&self.key(dir, child, decided)?, None).await)?;
        gone(self.bucket.delete(&self.key(dir, child, KeyKind::Moved(*id))?, None).await)
    }
}

/// What an answer about one object means to `moves`.
fn reply<T>(result: &Result<T, BucketError>) -> Reply {
    match result {
        Ok(_) => Reply::Done,
        Err(BucketError::Precondition | BucketError::NotFound) => Reply::Refused,
        Err(_) => Reply::Lost,
    }
}

fn gone(result: Result<(), BucketError>) -> Result<(), BucketError> {
    match result {
        Err(BucketError::NotFound | BucketError::Precondition) => Ok(()),
        other => other,
    }
}
