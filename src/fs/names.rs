//! Unlinking files; making symlinks and special files.
//!
//! Cost: unlink 1 DELETE (and once per directory that some other tool made, 1 PUT of its marker);
//! a symlink 2 PUTs, the object and its record, before it returns.

use std::ffi::OsStr;

use bytes::Bytes;

use super::checkpoints::Place;
use super::error::Errno;
use super::handles::OpenFile;
use super::learning::KIND_METADATA;
use super::{Caller, Entry, Fs, name_of};
use crate::bucket::{BucketError, Condition, Metadata};
use crate::namespace::inode::Attributes;
use crate::types::{ETag, Ino, Key, Kind, Name};
use crate::write::{HeldBack, Staged};

/// The longest target of a symlink, as Linux has it, in bytes.
const TARGET_BYTES_MAX: u64 = 4095;

impl Fs {
    pub async fn unlink(&self, parent: Ino, name: &OsStr) -> Result<(), Errno> {
        self.writable()?;
        let _waiting = self.wait_at(parent);
        let name = name_of(name)?;
        let ino = self.resolve(parent, &name).await?.ok_or(Errno::ENOENT)?;
        let file = self.handles.shared(ino);
        let result = self.unlink_shared(parent, ino, &file).await;
        drop(file);
        self.handles.tidy(ino);
        result?;
        self.unrecord(parent, name.as_str());
        Ok(())
    }

    async fn unlink_shared(&self, parent: Ino, ino: Ino, file: &OpenFile) -> Result<(), Errno> {
        let _work = self.work_at(parent).await;
        let _io = file.quiet().await;
        let (key, in_bucket) = {
            let namespace = self.namespace.lock();
            let inode = namespace.get(ino).ok_or(Errno::ENOENT)?;
            if inode.kind == Kind::Directory {
                return Err(Errno::EISDIR);
            }
            (namespace.key(ino).ok_or(Errno::ENOENT)?, inode.object.clone())
        };
        self.settle_inode(ino).await?;
        let in_bucket = match in_bucket {
            Some(_) => self.namespace.lock().get(ino).and_then(|inode| inode.object.clone()),
            None => None,
        };
        let place = self.place(ino);
        self.preserve(ino, file).await?;
        self.complete_copies(|source| *source == key).await;
        let (staged, unasked) = {
            let mut state = file.state.lock();
            (state.staged.clone(), state.may_be_in_bucket())
        };
        let held = staged.as_deref().map(Staged::hold_back);
        if let Some(staged) = &staged {
            staged.settled().await; // what was on its way arrives before the DELETE, or never
        }
        // After an error it is what it was, with what was acknowledged of it and waits.
        match (place, in_bucket) {
            (Some(place), version) => self.unlink_in(parent, &key, &place, version).await,
            (None, Some(_)) => self.remove_object(parent, &key).await,
            // Another node may have made one that nobody asked for, or we ourselves one that no
            // answer told of.
            (None, None) if unasked => self.remove_object(parent, &key).await,
            (None, None) => Ok(()),
        }?;
        held.into_iter().for_each(HeldBack::for_good);
        let _ = self.give_up_left(&key).await; // said there
        self.forget_content(ino, file, &key);
        self.leave_journal(file).await?;
        let wall = self.wall();
        let mut namespace = self.namespace.lock();
        namespace.detach(ino);
        namespace.touch_directory(parent, wall);
        Ok(())
    }

    /// In a checkpoint directory: out of its transaction, or of the bucket.
    async fn unlink_in(
        &self,
        parent: Ino,
        key: &Key,
        place: &Place,
        version: Option<ETag>,
    ) -> Result<(), Errno> {
        if self.remove_in_transaction(place, version.clone()).await? {
            return Ok(());
        }
        self.keep_directory(parent).await?;
        Ok(self.remove_published(place, key, version).await?)
    }

    async fn remove_object(&self, parent: Ino, key: &Key) -> Result<(), Errno> {
        self.keep_directory(parent).await?;
        Ok(self.delete(key).await?)
    }

    pub(super) async fn delete(&self, key: &Key) -> Result<(), BucketError> {
        match self.bucket.delete(key, None).await {
            Err(BucketError::NotFound) => Ok(()),
            other => other,
        }
    }

    /// Before an object goes: its content comes here, for the handles that still read it.
    pub(super) async fn preserve(&self, ino: Ino, file: &OpenFile) -> Result<(), Errno> {
        let (staged, handles) = {
            let state = file.state.lock();
            (state.staged.clone(), state.handles())
        };
        if handles == 0 {
            return Ok(());
        }
        if let Some(staged) = staged {
            return Ok(staged.complete().await?);
        }
        let Some(version) = self.version(ino)? else { return Ok(()) };
        let orphan = tempfile::tempfile_in(&self.config.scratch_dir).map_err(|_| Errno::EIO)?;
        if version.size > 0 {
            self.reader.fetch_all(&version, &orphan).await?;
        }
        file.state.lock().orphan = Some(orphan.into());
        Ok(())
    }

    /// After an object went or was replaced: nothing of it is uploaded or served any more.
    pub(super) fn forget_content(&self, ino: Ino, file: &OpenFile, key: &Key) {
        let mut state = file.state.lock();
        if let Some(staged) = state.staged.clone() {
            staged.discard();
            if state.handles() == 0 {
                state.staged = None;
            }
        }
        state.failed = None;
        drop(state);
        if let Some(inode) = self.namespace.lock().get_mut(ino) {
            inode.staged = false;
        }
        self.reader.forget(key);
    }

    pub async fn symlink(
        &self,
        parent: Ino,
        name: &OsStr,
        target: &OsStr,
        caller: Caller,
    ) -> Result<Entry, Errno> {
        let target = target.to_str().ok_or(Errno::EILSEQ)?;
        let ino = self.make(parent, name, Kind::Symlink, 0o777, 0, target, caller).await?;
        if let Some(inode) = self.namespace.lock().get_mut(ino) {
            inode.target = Some(target.to_owned());
        }
        self.entry(ino)
    }

    pub async fn readlink(&self, ino: Ino) -> Result<String, Errno> {
        let known = self.namespace.lock().get(ino).ok_or(Errno::ESTALE)?.target.clone();
        if let Some(target) = known {
            return Ok(target);
        }
        let version = self.version(ino)?.ok_or(Errno::ESTALE)?;
        if version.size == 0 || version.size > TARGET_BYTES_MAX {
            return Err(Errno::EIO);
        }
        let whole = 0..version.size;
        let got = self.bucket.get_bytes(&version.key, whole, Some(&version.etag)).await;
        let (_, body) = got.map_err(|error| match error {
            BucketError::NotFound => Errno::ESTALE,
            other => other.into(),
        })?;
        let target = String::from_utf8(body.into()).map_err(|_| Errno::EIO)?;
        if let Some(inode) = self.namespace.lock().get_mut(ino) {
            inode.target = Some(target.clone());
        }
        Ok(target)
    }

    pub async fn mknod(
        &self,
        parent: Ino,
        name: &OsStr,
        mode: u32,
        rdev: u32,
        caller: Caller,
    ) -> Result<Entry, Errno> {
        let kind = match mode & libc::S_IFMT {
            0 | libc::S_IFREG => Kind::File,
            libc::S_IFIFO => Kind::Fifo,
            libc::S_IFSOCK => Kind::Socket,
            libc::S_IFCHR => Kind::CharDevice,
            libc::S_IFBLK => Kind::BlockDevice,
            _ => return Err(Errno::EINVAL),
        };
        let ino = self.make(parent, name, kind, mode, rdev, "", caller).await?;
        self.entry(ino)
    }

    /// Makes something that exists at once, and on one node only: a conditional PUT.
    #[allow(clippy::too_many_arguments)] // what mknod(2) and symlink(2) say together
    async fn make(
        &self,
        parent: Ino,
        name: &OsStr,
        kind: Kind,
        mode: u32,
        rdev: u32,
        body: &str,
        caller: Caller,
    ) -> Result<Ino, Errno> {
        let _waiting = self.wait_at(parent);
        let (name, key, place, work) = loop {
            let (name, key) = self.free_new_name(parent, name).await?;
            if kind != Kind::File && !self.can_record_in(&self.namespace.lock(), parent) {
                return Err(Errno::ENAMETOOLONG); // a listing would show a file
            }
            let place = self.writing_place_of_new(parent, &name, kind);
            if let Some(place) = &place {
                self.begin(place, caller.pid).await?;
            }
            let work = self.work_at(parent).await;
            if self.is_key_of(parent, &name, &key) {
                break (name, key, place, work);
            }
        };
        if let Some(place) = place {
            let mut attributes = self.new_attributes(parent, kind, mode, caller);
            attributes.rdev = rdev;
            return self.make_in(parent, &name, &place, kind, attributes, body).await;
        }
        let metadata = kind_metadata(kind);
        let body = Bytes::copy_from_slice(body.as_bytes());
        let size = body.len() as u64;
        let etag = self.create_object(&key, body, &metadata).await?;
        let mut attributes = self.new_attributes(parent, kind, mode, caller);
        attributes.rdev = rdev;
        let ino = {
            let mut namespace = self.namespace.lock();
            if let Some(old) = namespace.child(parent, &name).map(|child| child.ino) {
                namespace.detach(old);
            }
            let ino = namespace.insert(parent, &name, kind, attributes).ok_or(Errno::ENOENT)?;
            let inode = namespace.get_mut(ino).ok_or(Errno::ESTALE)?;
            inode.object = Some(etag);
            inode.size = size;
            namespace.touch(ino, self.clock.now());
            namespace.touch_directory(parent, self.wall());
            ino
        };
        drop(work);
        self.record_attributes(ino);
        if kind != Kind::File {
            // Other nodes' listings can't tell it from a file without the record.
            self.flush_record(parent).await?;
        }
        Ok(ino)
    }

    /// The same in a transaction: it exists on this node at once, for others from the commit on.
    /// The caller works at the parent.
    async fn make_in(
        &self,
        parent: Ino,
        name: &Name,
        place: &Place,
        kind: Kind,
        attributes: Attributes,
        body: &str,
    ) -> Result<Ino, Errno> {
        let staged = self.writer.stage(place.key(), None)?;
        staged.set_metadata(kind_metadata(kind));
        staged.write(0, body.as_bytes()).await?;
        let ino = {
            let mut namespace = self.namespace.lock();
            if let Some(old) = namespace.child(parent, name).map(|child| child.ino) {
                namespace.detach(old);
            }
            let ino = namespace.insert(parent, name, kind, attributes).ok_or(Errno::ENOENT)?;
            let inode = namespace.get_mut(ino).ok_or(Errno::ESTALE)?;
            inode.size = body.len() as u64;
            inode.staged = true;
            namespace.touch(ino, self.clock.now());
            namespace.touch_directory(parent, self.wall());
            ino
        };
        let file = self.handles.shared(ino);
        file.state.lock().staged = Some(staged);
        let _io = file.io.lock().await;
        self.prepare_file(place, ino, &file).await?;
        Ok(ino)
    }

    /// Creates an object that must not be there: EEXIST if it is, and for one node only.
    pub(super) async fn create_object(
        &self,
        key: &Key,
        body: Bytes,
        metadata: &Metadata,
    ) -> Result<ETag, Errno> {
        let condition = match self.bucket.capabilities().create_if_absent {
            true => Condition::IfAbsent,
            false => match self.bucket.head(key).await {
                Err(BucketError::NotFound) => Condition::Always,
                Err(error) => return Err(error.into()),
                Ok(_) => return Err(Errno::EEXIST),
            },
        };
        match self.bucket.put(key, body, &condition, metadata).await {
            Ok(written) => {
                let _ = self.give_up_left(key).await; // said there
                Ok(written.etag)
            }
            Err(BucketError::Precondition) => Err(Errno::EEXIST),
            Err(error) => Err(error.into()),
        }
    }
}

/// What an object's metadata says it is; nothing for a file.
pub(super) fn kind_metadata(kind: Kind) -> Metadata {
    let word = match kind {
        Kind::Symlink => "symlink",
        Kind::Fifo => "fifo",
        Kind::Socket => "socket",
        Kind::CharDevice => "char_device",
        Kind::BlockDevice => "block_device",
        Kind::File | Kind::Directory => return Metadata::new(),
    };
    Metadata::from([(KIND_METADATA.to_owned(), word.to_owned())])
}
