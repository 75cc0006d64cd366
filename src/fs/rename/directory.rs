//! Which way a directory is renamed: in a transaction that is open, by the store, by one record, or
//! key by key.

use super::{Move, Replace};
use crate::bucket::Condition;
use crate::fs::Fs;
use crate::fs::checkpoints::can_commit;
use crate::fs::error::Errno;
use crate::fs::tree::Range;
use crate::namespace::attrs::record_key;
use crate::types::{Ino, KEY_BYTES_MAX, Kind};

impl Fs {
    /// Whether one record can decide a directory's rename here.
    pub(super) fn can_decide_rename(&self) -> bool {
        let can = self.bucket.capabilities();
        can_commit(&can) && !can.rename_directory
    }

    /// `unasked`: nobody asked yet what stands at the new name.
    pub(super) async fn rename_directory(
        &self,
        plan: Move,
        unasked: Option<Replace>,
    ) -> Result<(), Errno> {
        self.flush_records_below(plan.ino).await; // the records move as objects
        let _alone = loop {
            self.wait_below(plan.ino).await?;
            let (directory, parent) = (plan.ino, plan.from_parent);
            let to = Some((plan.to_parent, plan.to_name.clone()));
            let alone = self.have_alone(Range { directory, parent, to }).await;
            // What was being closed meanwhile stands in the journal under its old name, and would
            // come back there after a crash.
            if !self.waits_below(plan.ino) {
                break alone;
            }
        };
        let plan = self.with_keys(plan)?;
        let (ino, from, to) = (plan.ino, plan.from.clone(), plan.to.clone());
        let renamed = self.rename_directory_alone(plan, unasked).await;
        if renamed.is_ok() || self.namespace.lock().key(ino).as_ref() != Some(&from) {
            for key in [from, to] {
                let _ = self.give_up_left(&key).await; // said there
            }
        }
        renamed
    }

    async fn rename_directory_alone(
        &self,
        mut plan: Move,
        unasked: Option<Replace>,
    ) -> Result<(), Errno> {
        if plan.from == plan.to {
            return Ok(());
        }
        if self.namespace.lock().is_below(plan.to_parent, plan.ino) {
            return Err(Errno::EINVAL);
        }
        self.refuse_long_keys(&plan)?;
        self.refuse_losing(&plan)?;
        if !self.moves.is_idle() {
            self.finish_renames(plan.from.as_str()).await?;
            self.finish_renames(plan.to.as_str()).await?;
        }
        let renames = self.bucket.capabilities().rename_directory;
        let from = self.place(plan.ino);
        let to = self.place_of_new(plan.to_parent, &plan.to_name, Kind::Directory);
        // What is open here, or is to become what it was written for, goes as transactions do.
        let busy = from.as_ref().is_some_and(|from| {
            let same = to.as_ref().is_some_and(|to| to.key() == from.key());
            same || from.checkpoint.is_busy()
        });
        if let Some(replace) = unasked {
            if !busy {
                self.settle_below(plan.ino).await?;
                self.complete_below(plan.ino).await?;
                self.complete_copies(|it| it.as_str().starts_with(plan.from.as_str())).await;
                return self.rename_decided(plan, replace, (from.as_ref(), to.as_ref())).await;
            }
            plan.target = self.resolve(plan.to_parent, &plan.to_name).await?;
            if plan.target.is_some() && replace == Replace::Refused {
                return Err(Errno::EEXIST);
            }
        }
        if let Some(target) = plan.target {
            if self.kind_of(target)? != Kind::Directory {
                return Err(Errno::ENOTDIR);
            }
            // Where a LIST comes first that may refuse it all, it goes after that.
            if from.is_some() || self.can_decide_rename() || renames {
                self.remove_empty(target).await?;
                plan.target = None;
            }
        }
        self.settle_below(plan.ino).await?;
        if let Some(from) = from
            && self.move_directory_in_transaction(plan.ino, &from, to.as_ref()).await?
        {
            self.moved(&plan);
            let Some(to) = to else { return Ok(()) };
            return self.directory_renamed(plan.ino, &from, &to).await;
        }
        self.complete_below(plan.ino).await?;
        self.complete_copies(|source| source.as_str().starts_with(plan.from.as_str())).await;
        if self.can_decide_rename() {
            let places = (self.place(plan.ino), to);
            let places = (places.0.as_ref(), places.1.as_ref());
            return self.rename_decided(plan, Replace::Allowed, places).await;
        }
        self.keep_directory(plan.from_parent).await?;
        if renames {
            self.bucket.rename(&plan.from, &plan.to, &Condition::Always).await?;
            self.moved(&plan);
            self.let_go_below(plan.ino);
        } else {
            self.move_keys(&plan, plan.target).await?;
        }
        self.record_attributes(plan.ino);
        Ok(())
    }

    /// Under its new name all that is known here below a directory must have a key that stores
    /// take, and so must our records of it: what is not in the bucket yet no LIST tells of.
    fn refuse_long_keys(&self, plan: &Move) -> Result<(), Errno> {
        let (from, to) = (plan.from.as_str(), plan.to.as_str());
        if to.len() <= from.len() {
            return Ok(()); // as it did before
        }
        let namespace = self.namespace.lock();
        let fits = |ino: Ino| {
            let Some(key) = namespace.key(ino) else { return true };
            let below = key.as_str().strip_prefix(from).unwrap_or_default();
            let key = format!("{to}{below}");
            let recorded = namespace.get(ino).is_some_and(|it| !it.directory.own.is_empty());
            let last = if recorded { record_key(&key, &self.config.mount_id) } else { key };
            last.len() <= KEY_BYTES_MAX
        };
        match namespace.below(plan.ino).into_iter().all(fits) {
            true => Ok(()),
            false => Err(Errno::ENAMETOOLONG),
        }
    }

    /// A directory and all that is known below it.
    pub(super) fn below(&self, directory: Ino) -> Vec<Ino> {
        self.namespace.lock().below(directory)
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
}
