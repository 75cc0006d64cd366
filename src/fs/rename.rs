//! Renaming files and directories.
//!
//! Cost: where the store renames, 1 request (and 1 HEAD). Else a file is a server-side copy and a
//! DELETE; a dirty one is uploaded to its new key at once. A directory: see `decided`.
//!
//! | file | what |
//! | --- | --- |
//! | `directory` | which way a directory goes |
//! | `decided` | by one record, on stores with conditional writes |
//! | `copied` | key by key, on others |

use std::ffi::OsStr;
use std::sync::Arc;

use super::error::Errno;
use super::handles::OpenFile;
use super::names::kind_metadata;
use super::{Fs, name_of};
use crate::bucket::{BucketError, Condition, Metadata};
use crate::types::{ETag, Ino, Key, Kind, Name};

mod copied;
mod decided;
mod directory;

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
        let _waiting = (self.wait_at(parent), self.wait_at(new_parent));
        let from_name = name_of(name)?;
        let (to_name, to) = self.new_name(new_parent, new_name)?;
        let (from_parent, to_parent) = (parent, new_parent);
        // A directory's target is asked for beside the first requests of its rename.
        if let Some(ino) = self.resolve_known_directory(parent, &from_name).await?
            && self.can_decide_rename()
        {
            let (from, condition) = (Key::new(""), Condition::Always);
            let plan = Move {
                ino,
                from_parent,
                from_name,
                from,
                to_parent,
                to_name,
                to,
                target: None,
                condition,
            };
            return self.rename_directory(plan, Some(replace)).await;
        }
        self.free_name(&to).await?;
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
        let (from, to) = (Key::new(""), Key::new(""));
        let plan =
            Move { ino, from_parent, from_name, from, to_parent, to_name, to, target, condition };
        match self.kind_of(ino)? {
            Kind::Directory => self.rename_directory(plan, None).await,
            _ => {
                self.rename_file(plan).await?;
                self.commit_at_rename(ino).await
            }
        }
    }

    /// Whether what stands at a new name need not be asked for before: [`Self::rename`] does. Where
    /// the kernel has checks of its own to make of it, it must know.
    pub(super) fn is_asked_by_rename(&self, parent: Ino, name: &Name) -> bool {
        let namespace = self.namespace.lock();
        let known = namespace.child(parent, name).is_some();
        !known && namespace.get(parent).is_some_and(|parent| !parent.is_sticky())
    }

    /// The source, if it is a directory. One that is known is not asked for: its rename lists it.
    async fn resolve_known_directory(
        &self,
        parent: Ino,
        name: &Name,
    ) -> Result<Option<Ino>, Errno> {
        if let Some(ino) = self.known_directory(parent, name) {
            return Ok(Some(ino));
        }
        if self.namespace.lock().child(parent, name).is_some() {
            return Ok(None);
        }
        let ino = self.resolve(parent, name).await?.ok_or(Errno::ENOENT)?;
        Ok((self.kind_of(ino)? == Kind::Directory).then_some(ino))
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

    /// ENAMETOOLONG where what is recorded at the old name can't be at the new one. Of a plain file
    /// where no record can be nothing was promised.
    fn refuse_losing(&self, plan: &Move) -> Result<(), Errno> {
        let namespace = self.namespace.lock();
        let inode = namespace.get(plan.ino).ok_or(Errno::ESTALE)?;
        let default = inode.attributes.is_default(inode.kind, namespace.defaults());
        let plain = matches!(inode.kind, Kind::File | Kind::Directory);
        let recorded = !plain || self.can_record_in(&namespace, plan.from_parent);
        let loses = recorded && (!default || inode.times_set);
        match loses && !self.can_record_in(&namespace, plan.to_parent) {
            true => Err(Errno::ENAMETOOLONG),
            false => Ok(()),
        }
    }

    async fn rename_file(&self, plan: Move) -> Result<(), Errno> {
        let file = self.handles.shared(plan.ino);
        self.wait_turn(&file).await;
        let _work = self.work_at_both(plan.from_parent, plan.to_parent).await;
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
                _first = Some(other.quiet().await);
                _second = Some(file.quiet().await);
            }
            Some((_, other)) => {
                _first = Some(file.quiet().await);
                _second = Some(other.quiet().await);
            }
            None => _first = Some(file.quiet().await),
        }
        let plan = self.with_keys(plan)?;
        self.refuse_losing(&plan)?;
        self.settle_inode(plan.ino).await?;
        self.settle_key(&plan.to).await?;
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
        for key in [&plan.from, &plan.to] {
            let _ = self.give_up_left(key).await; // said there
        }
        self.leave_journal(file).await?;
        if let Some((ino, other)) = target {
            self.forget_content(*ino, other, &plan.to);
            self.leave_journal(other).await?;
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
        let (staged, untold) = {
            let mut state = file.state.lock();
            (state.staged.clone(), state.may_be_in_bucket())
        };
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
                if object.is_some() || untold {
                    self.keep_directory(plan.from_parent).await?;
                    self.delete(&plan.from).await?;
                }
                let mut state = file.state.lock();
                state.is_not_in_bucket();
                state.failed = None;
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
}
