//! setattr, extended attributes, statfs.
//!
//! Attributes are kept without touching the object: a changed mode, owner, time or extended
//! attribute goes to the directory's record (see `records`), some hundred milliseconds later or at
//! the next fsync.

use std::time::SystemTime;

use super::checkpoints::{ACCEPT_TORN, COMMIT_XATTR, Losses, STATE_XATTR};
use super::error::Errno;
use super::{Entry, Fs};
use crate::types::{Ino, Key, Kind};
use crate::write::Base;

/// The longest value of an extended attribute, as on ext4 with its inline limit lifted, in bytes.
const XATTR_BYTES_MAX: usize = 64 << 10;
/// All values of one file together: they travel with the directory's record.
const XATTRS_BYTES_MAX: usize = 128 << 10;
/// Set-user-id and set-group-id.
const SUID: u32 = 0o4000;
const SGID: u32 = 0o2000;
const GROUP_EXECUTE: u32 = 0o010;

/// What setattr changes; `None` stays.
#[derive(Clone, Copy, Debug, Default)]
pub struct SetAttributes {
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub size: Option<u64>,
    pub atime: Option<SystemTime>,
    pub mtime: Option<SystemTime>,
    /// The caller may not keep set-user-id and set-group-id.
    pub kill_set_id: bool,
}

/// What becomes of a file's content as it is opened to be written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Content {
    Kept,
    /// Kept, and the bucket was just asked whether ours still is the newest.
    Checked,
    Emptied,
}

/// setxattr's flags.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SetMode {
    Any,
    Create,
    Replace,
}

impl Fs {
    pub async fn setattr(&self, ino: Ino, set: SetAttributes) -> Result<Entry, Errno> {
        self.writable()?;
        self.refuse_lasting(ino, &set)?;
        if let Some(size) = set.size {
            self.truncate(ino, size).await?;
        }
        if set.mtime.is_some() && self.stat(ino)?.kind == Kind::Directory {
            // What is in it now is older than the time set by hand, whatever the store's clock
            // says.
            let asked = self.namespace.lock().asked(self.clock.now());
            self.learn_first_page(ino, asked).await?;
        }
        self.change_attributes(ino, &set)?;
        self.record_attributes(ino);
        let stat = self.stat(ino)?;
        Ok(Entry { stat, ttl: self.ttl() })
    }

    /// ENAMETOOLONG if something is to change that only a record keeps, where none can be. A
    /// truncation sets the mtime as a write does: the object tells it.
    fn refuse_lasting(&self, ino: Ino, set: &SetAttributes) -> Result<(), Errno> {
        let namespace = self.namespace.lock();
        let now = &namespace.get(ino).ok_or(Errno::ESTALE)?.attributes;
        let differs = |set: Option<u32>, now| set.is_some_and(|set| set != now);
        let timed = set.size.is_none() && (set.atime.is_some() || set.mtime.is_some());
        let mode = set.mode.map(|mode| mode & 0o7777);
        let owned = differs(set.uid, now.uid) || differs(set.gid, now.gid);
        match timed || owned || differs(mode, now.mode) {
            true => self.refuse_unrecorded(&namespace, ino),
            false => Ok(()),
        }
    }

    fn change_attributes(&self, ino: Ino, set: &SetAttributes) -> Result<(), Errno> {
        let (now, wall) = (self.clock.now(), self.wall());
        let staged = self.handles.shared_if_any(ino).and_then(|f| f.state.lock().staged.clone());
        let staged_modified = staged.and_then(|staged| staged.modified().ok());
        let mut namespace = self.namespace.lock();
        let inode = namespace.get_mut(ino).ok_or(Errno::ESTALE)?;
        let written = staged_modified.filter(|at| inode.staged && inode.times_staged != Some(*at));
        let attributes = &mut inode.attributes;
        attributes.mtime = written.unwrap_or(attributes.mtime);
        if let Some(mode) = set.mode {
            attributes.mode = mode & 0o7777;
        }
        let owned = set.uid.is_some() || set.gid.is_some();
        if inode.kind == Kind::File && (owned || set.kill_set_id) {
            attributes.mode = without_set_id(attributes.mode);
        }
        attributes.uid = set.uid.unwrap_or(attributes.uid);
        attributes.gid = set.gid.unwrap_or(attributes.gid);
        attributes.atime = set.atime.unwrap_or(attributes.atime);
        attributes.ctime = wall;
        if let Some(mtime) = set.mtime {
            attributes.mtime = mtime;
        }
        if set.mtime.is_some() || set.atime.is_some() {
            match inode.kind {
                Kind::Directory => inode.directory.mtime_set = Some(inode.directory.newest),
                _ => {
                    inode.times_set = true;
                    inode.times_staged = staged_modified;
                }
            }
        }
        namespace.touch(ino, now);
        Ok(())
    }

    /// Cuts or grows a file. Of one that nobody has open for writing the object is rewritten at
    /// once: 1 HEAD, what must be fetched or copied, and the upload.
    async fn truncate(&self, ino: Ino, size: u64) -> Result<(), Errno> {
        let _waiting = self.wait_at(ino);
        let file = self.handles.shared(ino);
        let result = self.truncate_shared(ino, &file, size).await;
        drop(file);
        self.handles.tidy(ino);
        result
    }

    async fn truncate_shared(
        &self,
        ino: Ino,
        file: &std::sync::Arc<super::handles::OpenFile>,
        size: u64,
    ) -> Result<(), Errno> {
        if let Some(place) = self.writing_place(ino) {
            self.begin(&place, 0).await?;
        }
        let content = match size {
            0 => Content::Emptied,
            _ => self.outlive_closed(ino, file).await?,
        };
        let open = {
            let _io = self.io_to_write(ino, file, size == 0).await?;
            let writers = file.state.lock().writers;
            self.settle_inode(ino).await?;
            let staged = self.staged_for_writing(ino, file, content).await?;
            staged.truncate(size).await?;
            self.namespace.lock().get_mut(ino).ok_or(Errno::ESTALE)?.times_set = false;
            writers > 0
        };
        if open {
            return Ok(());
        }
        let synced = self.sync(ino, file, None).await;
        let _io = file.io.lock().await;
        self.settle(ino, file);
        synced
    }

    /// Drops set-user-id and set-group-id of a file that was written by somebody not privileged.
    pub fn kill_set_id(&self, ino: Ino) {
        let mut namespace = self.namespace.lock();
        let Some(inode) = namespace.get_mut(ino) else { return };
        let mode = without_set_id(inode.attributes.mode);
        if mode == inode.attributes.mode {
            return;
        }
        inode.attributes.mode = mode;
        drop(namespace);
        self.record_attributes(ino);
    }

    /// Of [`COMMIT_XATTR`]: commits, and keeps nothing.
    pub async fn setxattr(
        &self,
        ino: Ino,
        name: &str,
        value: &[u8],
        how: SetMode,
    ) -> Result<(), Errno> {
        self.writable()?;
        if name == COMMIT_XATTR {
            let accepted = value == ACCEPT_TORN;
            let losses = if accepted { Losses::Accepted } else { Losses::Refused };
            return self.commit_now(ino, losses).await;
        }
        if name == STATE_XATTR {
            return Err(Errno::EPERM);
        }
        if !name.starts_with("user.") {
            return Err(Errno::EOPNOTSUPP);
        }
        let mut namespace = self.namespace.lock();
        self.refuse_unrecorded(&namespace, ino)?;
        let inode = namespace.get_mut(ino).ok_or(Errno::ESTALE)?;
        let xattrs = &mut inode.attributes.xattrs;
        match (how, xattrs.contains_key(name)) {
            (SetMode::Create, true) => return Err(Errno::EEXIST),
            (SetMode::Replace, false) => return Err(Errno::ENODATA),
            _ => {}
        }
        let all: usize = xattrs.iter().filter(|(k, _)| *k != name).map(|(_, v)| v.len()).sum();
        if value.len() > XATTR_BYTES_MAX || all + value.len() > XATTRS_BYTES_MAX {
            return Err(Errno::ENOSPC);
        }
        xattrs.insert(name.to_owned(), value.to_vec());
        inode.attributes.ctime = self.wall();
        namespace.touch(ino, self.clock.now());
        drop(namespace);
        self.record_attributes(ino);
        Ok(())
    }

    pub async fn getxattr(&self, ino: Ino, name: &str) -> Result<Vec<u8>, Errno> {
        if !name.starts_with("user.") {
            return Err(Errno::EOPNOTSUPP);
        }
        if name == STATE_XATTR {
            return Ok(self.state_of(ino).await?.as_bytes().to_vec());
        }
        self.refresh(ino).await?;
        let namespace = self.namespace.lock();
        let inode = namespace.get(ino).ok_or(Errno::ESTALE)?;
        inode.attributes.xattrs.get(name).cloned().ok_or(Errno::ENODATA)
    }

    /// The names, each closed by a NUL.
    pub async fn listxattr(&self, ino: Ino) -> Result<Vec<u8>, Errno> {
        self.refresh(ino).await?;
        let namespace = self.namespace.lock();
        let inode = namespace.get(ino).ok_or(Errno::ESTALE)?;
        let mut names = Vec::new();
        for name in inode.attributes.xattrs.keys() {
            names.extend_from_slice(name.as_bytes());
            names.push(0);
        }
        Ok(names)
    }

    pub fn removexattr(&self, ino: Ino, name: &str) -> Result<(), Errno> {
        self.writable()?;
        let mut namespace = self.namespace.lock();
        let inode = namespace.get(ino).ok_or(Errno::ESTALE)?;
        if !inode.attributes.xattrs.contains_key(name) {
            return Err(Errno::ENODATA);
        }
        self.refuse_unrecorded(&namespace, ino)?;
        let inode = namespace.get_mut(ino).ok_or(Errno::ESTALE)?;
        inode.attributes.xattrs.remove(name);
        inode.attributes.ctime = self.wall();
        namespace.touch(ino, self.clock.now());
        drop(namespace);
        self.record_attributes(ino);
        Ok(())
    }

    /// The staged file of an inode, made if there is none.
    /// The caller holds the inode's `io`.
    pub(super) async fn staged_for_writing(
        &self,
        ino: Ino,
        file: &super::handles::OpenFile,
        content: Content,
    ) -> Result<std::sync::Arc<crate::write::Staged>, Errno> {
        if let Some(staged) = self.reusable(ino, file, content).await? {
            return Ok(staged);
        }
        let base = self.base_of(ino, content != Content::Emptied)?;
        let place = self.writing_place(ino);
        let key = match &place {
            Some(place) => place.key(),
            None => self.namespace.lock().key(ino).ok_or(Errno::ESTALE)?,
        };
        let staged = match self.stage_what_passes(ino, file, &key)? {
            Some(staged) => staged,
            None => self.stage_anew(ino, key, base)?,
        };
        file.state.lock().staged = Some(staged.clone());
        self.mark_staged(ino);
        Ok(staged)
    }

    /// A new staged file; of one that is emptied the content before is remembered, if it is known.
    pub(super) fn stage_anew(
        &self,
        ino: Ino,
        key: Key,
        base: Option<Base>,
    ) -> Result<std::sync::Arc<crate::write::Staged>, Errno> {
        let emptied = if base.is_none() { self.base_of(ino, true)? } else { None };
        let content = emptied.as_ref().and_then(|emptied| self.known.lock().content(emptied));
        Ok(match (emptied, content) {
            (Some(emptied), Some(content)) => {
                let base = Base { size: content.size(), ..emptied };
                self.writer.stage_over(key, base, &content)?
            }
            _ => self.writer.stage(key, base)?,
        })
    }

    /// The cached file that readers pass through to, taken out of the cache: the kernel takes no
    /// other for the writer's handle, and so they see what is written. No request.
    fn stage_what_passes(
        &self,
        ino: Ino,
        file: &super::handles::OpenFile,
        key: &Key,
    ) -> Result<Option<std::sync::Arc<crate::write::Staged>>, Errno> {
        let base = self.base_of(ino, true)?;
        let mut state = file.state.lock();
        let (Some(passing), Some(base)) = (state.passing.take(), base) else { return Ok(None) };
        let take = |to: &std::path::Path| self.reader.take(&passing.reading, &passing.file, to);
        match self.writer.stage_whole(key.clone(), base, take) {
            Ok(staged) => Ok(Some(staged)),
            Err(error) => {
                state.passing = Some(passing);
                Err(error.into())
            }
        }
    }

    /// The staged file at hand, if it is the content to go on from.
    pub(super) async fn reusable(
        &self,
        ino: Ino,
        file: &super::handles::OpenFile,
        content: Content,
    ) -> Result<Option<std::sync::Arc<crate::write::Staged>>, Errno> {
        let (local, linked) = {
            let namespace = self.namespace.lock();
            let inode = namespace.get(ino).ok_or(Errno::ESTALE)?;
            (inode.staged, inode.linked)
        };
        if !local && content == Content::Kept && linked {
            self.revalidate(ino).await?;
        }
        let staged = file.state.lock().staged.clone();
        let Some(staged) = staged else { return Ok(None) };
        if local || !linked {
            return Ok(Some(staged));
        }
        // It rests from an earlier write: good if the bucket still has what it was uploaded as.
        let current = self.namespace.lock().get(ino).and_then(|inode| inode.object.clone());
        let good = staged.last_uploaded().is_some_and(|up| Some(up.etag) == current);
        if good {
            self.mark_staged(ino);
            return Ok(Some(staged));
        }
        if file.state.lock().handles() > 0 {
            return Err(Errno::ESTALE);
        }
        file.state.lock().staged = None;
        Ok(None)
    }

    fn base_of(&self, ino: Ino, keep: bool) -> Result<Option<Base>, Errno> {
        let namespace = self.namespace.lock();
        let inode = namespace.get(ino).ok_or(Errno::ESTALE)?;
        if !keep {
            return Ok(None);
        }
        let key = namespace.key(ino).ok_or(Errno::ESTALE)?;
        Ok(inode.object.clone().map(|etag| Base { key, etag, size: inode.size }))
    }

    pub(super) fn mark_staged(&self, ino: Ino) {
        let now = self.clock.now();
        let mut namespace = self.namespace.lock();
        if let Some(inode) = namespace.get_mut(ino) {
            inode.staged = true;
            inode.paged = None;
        }
        namespace.touch(ino, now);
    }
}

fn without_set_id(mode: u32) -> u32 {
    let group = if mode & GROUP_EXECUTE != 0 { SGID } else { 0 };
    mode & !(SUID | group)
}
