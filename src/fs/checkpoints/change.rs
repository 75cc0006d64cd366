//! Removals and renames in transactions.
//!
//! What a transaction made is simply not part of it any more; what the bucket has becomes a word of
//! the transaction, or, where none is open, goes at once, after what is sealed there is published.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::commit::Progress;
use super::waiting::Changed;
use super::{Checkpoint, Losses, Member, Place};
use crate::bucket::{BucketError, ListedObject};
use crate::checkpoint::driver::Ended;
use crate::checkpoint::protocol::{Goal, Intent, Stop};
use crate::checkpoint::record::{Entry, RecordKey, RelPath, Sign, What};
use crate::checkpoint::rules::{Event, Rule, WithoutSign};
use crate::fs::Fs;
use crate::fs::error::Errno;
use crate::fs::handles::OpenFile;
use crate::types::{CONTROL_DIR, ETag, Ino, Key, Kind};
use crate::write::Base;

/// How often a published name that changes is asked for again before it is removed.
const REMOVALS_MAX: usize = 4;

impl Fs {
    /// Takes a name out of a transaction that is open there; `version` is what the bucket has of
    /// it. `false`: none is open, the caller removes it from the bucket.
    pub(in crate::fs) async fn remove_in_transaction(
        &self,
        place: &Place,
        version: Option<ETag>,
    ) -> Result<bool, Errno> {
        if !place.checkpoint.is_busy() {
            return Ok(false);
        }
        let forgotten = {
            let mut state = place.checkpoint.state.lock();
            let now = Changed::at(self.uptime());
            let open = state.open.as_mut();
            open.is_some_and(|open| {
                open.changed = now;
                let Some(old) = open.members.remove(&place.rel) else { return false };
                if let Some((_, prepared)) = old.file {
                    open.spare.push((prepared.key, prepared.upload));
                }
                version.is_none()
            })
        };
        if forgotten {
            place.checkpoint.wake.notify_one();
            return Ok(true);
        }
        // What a frozen transaction makes has no version yet: the word of a later one is the last,
        // unless it is sealed by now.
        let frozen = version.is_none() && self.is_frozen(place);
        let mut version = version;
        if frozen {
            self.begin_holding_io(place, None).await?;
            if self.is_sealed(place).await? {
                version = self.published_version(place).await?;
            }
        }
        if frozen || version.is_some() {
            let entry = Entry::new(place.rel.clone(), What::Removed { version });
            self.add(place, Member { entry, file: None }, &[]).await?;
        }
        Ok(true)
    }

    fn is_frozen(&self, place: &Place) -> bool {
        let state = place.checkpoint.state.lock();
        state.frozen.iter().any(|txn| txn.members.contains_key(&place.rel))
    }

    /// What the bucket has of a name once what is sealed is published. 1 HEAD beside that.
    async fn published_version(&self, place: &Place) -> Result<Option<ETag>, Errno> {
        {
            let mut driver = place.checkpoint.driver.lock().await;
            driver.publish(self.publishing()).await?;
        }
        match self.bucket.head(&place.key()).await {
            Ok(info) => Ok(Some(info.etag)),
            Err(BucketError::NotFound) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether a frozen transaction that makes the name is committed. 1 LIST.
    async fn is_sealed(&self, place: &Place) -> Result<bool, Errno> {
        let makers: Vec<_> = {
            let state = place.checkpoint.state.lock();
            let makers = state.frozen.iter().filter(|txn| txn.members.contains_key(&place.rel));
            makers.map(|txn| txn.id).collect()
        };
        let mut driver = place.checkpoint.driver.lock().await;
        driver.look().await?;
        Ok(makers.iter().any(|id| driver.seen().is_committed(*id)))
    }

    /// Deletes a published name outside any transaction: what is sealed is published first, and
    /// only a version that was known before that goes.
    pub(in crate::fs) async fn remove_published(
        &self,
        place: &Place,
        key: &Key,
        version: Option<ETag>,
    ) -> Result<(), BucketError> {
        let mut version = version;
        for _ in 0..REMOVALS_MAX {
            let known = match version.take() {
                Some(known) => known,
                None => match self.bucket.head(key).await {
                    Ok(info) => info.etag,
                    Err(BucketError::NotFound) => return Ok(()),
                    Err(error) => return Err(error),
                },
            };
            {
                let mut driver = place.checkpoint.driver.lock().await;
                driver.look().await?;
                driver.publish(self.publishing()).await?;
            }
            match self.bucket.delete(key, self.condition(&known)).await {
                Err(BucketError::NotFound) => return Ok(()),
                Err(BucketError::Precondition) => {}
                other => return other,
            }
        }
        Err(BucketError::Precondition)
    }

    fn condition<'a>(&self, version: &'a ETag) -> Option<&'a ETag> {
        self.bucket.capabilities().delete_if_match.then_some(version)
    }

    /// Ends the transaction of a directory that is removed. The caller saw that it is empty.
    pub(in crate::fs) async fn withdraw(&self, checkpoint: &Arc<Checkpoint>) -> Result<(), Errno> {
        let open = {
            let mut state = checkpoint.state.lock();
            match &state.open {
                None => return Ok(()),
                // Removals of what is published must be said before the directory goes.
                Some(open) if !open.members.is_empty() => None,
                Some(_) => state.open.take(),
            }
        };
        let Some(open) = open else {
            return match self.commit(checkpoint, Some(Sign::Explicit)).await? {
                Progress::Published(_) => Ok(()),
                _ => Err(Errno::ENOTEMPTY),
            };
        };
        let mut driver = checkpoint.driver.lock().await;
        let rule = checkpoint.state.lock().rule.clone();
        let work = self.work(&open, rule.as_ref(), Goal::Withdraw);
        let ended = driver.run(&Intent::Write(&work)).await?;
        drop(driver);
        for (key, upload) in &open.spare {
            self.writer.abort(key, upload);
        }
        match ended {
            Ended::Stop(Stop::Nothing | Stop::TakenOver | Stop::Dropped) => Ok(()),
            _ => Err(Errno::EIO),
        }
    }

    /// A file gets a new name, at least one of the two in a checkpoint directory. The caller holds
    /// `io` of the file, and of what it replaces. Returns what the bucket has of it now.
    pub(in crate::fs) async fn move_in_transaction(
        &self,
        ino: Ino,
        file: &OpenFile,
        from: (&Key, Option<&Place>),
        to: (&Key, Option<&Place>),
    ) -> Result<Option<ETag>, Errno> {
        let (object, size) = {
            let namespace = self.namespace.lock();
            let inode = namespace.get(ino).ok_or(Errno::ESTALE)?;
            (inode.object.clone(), inode.size)
        };
        let (staged, untold) = {
            let mut state = file.state.lock();
            (state.staged.clone(), state.may_be_in_bucket())
        };
        let staged = match staged {
            Some(staged) => staged,
            None => {
                let etag = object.clone().ok_or(Errno::ESTALE)?;
                let base = Base { key: from.0.clone(), etag, size };
                let staged = self.writer.stage(from.0.clone(), Some(base))?;
                file.state.lock().staged = Some(staged.clone());
                staged
            }
        };
        staged.complete().await?; // what it was begun from goes
        self.mark_staged(ino);
        let mut made = None;
        match to.1 {
            Some(place) => {
                let opened_in = file.state.lock().written_in;
                self.begin_holding_io(place, opened_in).await?;
                self.prepare_file(place, ino, file).await?;
            }
            None => {
                staged.set_key(to.0.clone());
                made = Some(staged.upload(&crate::bucket::Condition::Always).await?.etag);
            }
        }
        if let Some(place) = from.1 {
            let taken = self.remove_in_transaction(place, object.clone()).await?;
            if !taken {
                self.remove_published(place, from.0, object).await?;
            }
        } else if object.is_some() || untold {
            self.delete(from.0).await?;
        }
        file.state.lock().is_not_in_bucket();
        if let Some(place) = to.1
            && let Some(name) = place.direct()
        {
            self.hear(&place.checkpoint, &Event::Renamed { to: name });
        }
        Ok(made)
    }

    /// Whether a directory's rename stays within what this node alone knows, and does it: the
    /// directory of an open transaction, or one in it. `false`: it is the bucket's.
    pub(in crate::fs) async fn move_directory_in_transaction(
        &self,
        ino: Ino,
        from: &Place,
        to: Option<&Place>,
    ) -> Result<bool, Errno> {
        let (open, frozen) = {
            let mut state = from.checkpoint.state.lock();
            let frozen = state.frozen.iter().any(|txn| txn.root == from.root);
            (state.open_at(from.root).is_some(), frozen)
        };
        let same = to.is_some_and(|to| to.key() == from.key());
        if open || frozen {
            if same {
                return Ok(true); // its files go where they were to go from the start
            }
        } else {
            return self.seal_at_rename(from, same).await;
        }
        let to = match to {
            // What is frozen is promised to others under this name, and what is published is there.
            Some(to) if !frozen && !self.is_published(from).await? => to,
            _ if self.settle_before_move(&from.checkpoint).await? => return Ok(false),
            _ => return Err(Errno::EBUSY),
        };
        self.begin(to, 0).await?;
        let below = self.namespace.lock().below(ino);
        for below in below {
            self.move_below(below, from, to).await?;
        }
        Ok(true)
    }

    /// The rename of a directory that others wrote, or an earlier life of this mount: to its own
    /// name it is the sign that it is complete; to another it would take from them what they write.
    async fn seal_at_rename(&self, from: &Place, same: bool) -> Result<bool, Errno> {
        if !from.rel.is_root() {
            return Ok(false);
        }
        match (self.others_write(&from.checkpoint).await?, same) {
            (false, _) => Ok(false),
            (true, false) => Err(Errno::EBUSY),
            (true, true) => {
                let deadline = self.clock.now() + self.checkpoints.config().commit_wait;
                let why = (Sign::Sign, Losses::Refused);
                self.commit_until(&from.checkpoint, why, deadline).await?;
                Ok(true)
            }
        }
    }

    /// Whether the bucket has anything of a directory. 1 LIST.
    async fn is_published(&self, place: &Place) -> Result<bool, Errno> {
        let key = format!("{}/", place.key().as_str().trim_end_matches('/'));
        match self.bucket.list(&key, false, None, 1).await {
            Err(BucketError::NotFound) => Ok(false),
            page => Ok(!page?.objects.is_empty()),
        }
    }

    /// Commits what is complete, so that it moves as objects do. `false`: it is still being
    /// written.
    async fn settle_before_move(&self, checkpoint: &Arc<Checkpoint>) -> Result<bool, Errno> {
        let root = checkpoint.state.lock().open.as_ref().map(|open| open.root);
        if let Some(root) = root {
            let (handles, failed) = self.writers_below(root);
            if handles > 0 || failed {
                return Ok(false);
            }
            let empty = {
                let state = checkpoint.state.lock();
                state.open.as_ref().is_some_and(|open| open.members.is_empty())
            };
            if empty {
                self.add_marker(checkpoint, root);
            }
            let hides = |rule: &Rule| rule.without_sign == WithoutSign::StayHidden;
            if checkpoint.state.lock().rule.as_ref().is_some_and(hides) {
                return Ok(false); // its sign may still come
            }
            self.commit(checkpoint, Some(Sign::Idle)).await?;
        } else {
            self.advance(checkpoint).await?;
        }
        Ok(!checkpoint.is_busy())
    }

    /// Before a directory is renamed: what this mount writes in checkpoints below it is committed
    /// if it is complete. EBUSY if it is not: it would be lost.
    pub(in crate::fs) async fn settle_below(&self, directory: Ino) -> Result<(), Errno> {
        for checkpoint in self.checkpoints.busy() {
            let roots: Vec<Ino> = {
                let state = checkpoint.state.lock();
                state.frozen.iter().chain(&state.open).map(|txn| txn.root).collect()
            };
            let is_below = {
                let namespace = self.namespace.lock();
                roots.iter().any(|root| *root != directory && namespace.is_below(*root, directory))
            };
            if is_below && !self.settle_before_move(&checkpoint).await? {
                return Err(Errno::EBUSY);
            }
        }
        Ok(())
    }

    /// The same for what other nodes write: their records are among the objects.
    pub(in crate::fs) async fn refuse_moving_undecided(
        &self,
        objects: &[ListedObject],
    ) -> Result<(), Errno> {
        let control = format!("/{CONTROL_DIR}/");
        let mut children = BTreeSet::new();
        for object in objects {
            let Some((dir, record)) = object.key.as_str().split_once(&control) else { continue };
            if let Some(key) = RecordKey::parse(record) {
                children.insert((dir.to_owned(), key.child.as_str().to_owned()));
            }
        }
        for (dir, child) in children {
            if self.is_undecided(&Key::new(dir), &child).await? {
                return Err(Errno::EBUSY);
            }
        }
        Ok(())
    }

    async fn move_below(&self, ino: Ino, from: &Place, to: &Place) -> Result<(), Errno> {
        let Some(old) = self.place(ino) else { return Ok(()) };
        let Some(file) = self.handles.shared_if_any(ino) else { return Ok(()) };
        let rest = old.rel.as_str().strip_prefix(from.rel.as_str()).unwrap_or(old.rel.as_str());
        let rest = rest.trim_start_matches('/');
        let slash = if to.rel.is_root() || rest.is_empty() { "" } else { "/" };
        let rel = RelPath::new(&format!("{}{slash}{rest}", to.rel.as_str()));
        let place = Place { rel: rel.map_err(|_| Errno::ENAMETOOLONG)?, ..to.clone() };
        let _io = file.io.lock().await;
        let closed = file.state.lock().writers == 0;
        if closed {
            self.prepare_file(&place, ino, &file).await?;
        }
        self.remove_in_transaction(&old, None).await?;
        Ok(())
    }

    /// After the directory of a transaction got its last name: the sign that some rules wait for.
    pub(in crate::fs) async fn directory_renamed(
        &self,
        ino: Ino,
        from: &Place,
        to: &Place,
    ) -> Result<(), Errno> {
        {
            let mut state = to.checkpoint.state.lock();
            if let Some(open) = &mut state.open {
                if to.rel.is_root() {
                    open.root = ino;
                    open.written_as = to.written_as.clone();
                }
                open.changed = Changed::at(self.uptime());
            }
        }
        if !to.rel.is_root() {
            return Ok(());
        }
        if !Arc::ptr_eq(&from.checkpoint, &to.checkpoint) {
            self.withdraw(&from.checkpoint).await?;
        }
        self.hear(&to.checkpoint, &Event::DirectoryRenamed);
        // Done by the time that rename returns, unless other ranks still write.
        let sign = {
            let state = to.checkpoint.state.lock();
            let all = state.frozen.iter().chain(&state.open);
            let heard = all.filter_map(|txn| txn.heard).max();
            heard.filter(|_| state.rule.as_ref().is_none_or(|rule| rule.is_immediate()))
        };
        if sign.is_some() && self.writers_below(ino) == (0, false) {
            let progress = self.commit(&to.checkpoint, sign).await?;
            if matches!(progress, Progress::Lost | Progress::Poisoned) {
                return Err(Errno::EIO);
            }
        }
        Ok(())
    }

    /// Directories that hold nothing become markers.
    pub(super) fn add_empty_directories(&self, checkpoint: &Checkpoint) {
        let Some(root) = checkpoint.state.lock().open.as_ref().map(|open| open.root) else {
            return;
        };
        let empty: Vec<Ino> = {
            let namespace = self.namespace.lock();
            let is_empty = |ino: &Ino| {
                namespace.get(*ino).is_some_and(|inode| {
                    let local = inode.kind == Kind::Directory && inode.staged;
                    local && inode.directory.children.is_empty()
                })
            };
            namespace.below(root).into_iter().filter(|ino| *ino != root && is_empty(ino)).collect()
        };
        for ino in empty {
            self.add_marker(checkpoint, ino);
        }
    }

    pub(super) fn add_marker(&self, checkpoint: &Checkpoint, ino: Ino) {
        let Some(place) = self.place(ino) else { return };
        let entry = Entry::new(place.rel.clone(), What::Directory);
        if let Some(open) = &mut checkpoint.state.lock().open {
            open.members.insert(place.rel, Member { entry, file: None });
        }
    }
}
