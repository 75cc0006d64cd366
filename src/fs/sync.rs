//! Uploading what is dirty: at close, at fsync, and at the end of the mount.
//!
//! Owns when a failure sticks and when an upload is tried again. Does not own the upload (`write`).

use std::sync::Arc;

use super::Fs;
use super::error::Errno;
use super::handles::OpenFile;
use crate::bucket::Condition;
use crate::types::{Ino, Key};
use crate::write::{Staged, Uploaded};

impl Fs {
    /// Uploads what is dirty. A failure sticks: it is repeated, without a request, until the file
    /// is written again.
    pub(super) async fn sync(&self, ino: Ino, file: &OpenFile) -> Result<(), Errno> {
        self.wait_turn(file).await;
        if let Err(errno) = self.seal_before_closing(ino, file).await {
            file.state.lock().fail(errno);
            return Err(errno);
        }
        let _tree = self.tree.read().await;
        let _io = file.quiet().await;
        self.sync_locked(ino, file).await
    }

    /// The same; the caller holds `tree` and the inode's `io`.
    pub(super) async fn sync_locked(&self, ino: Ino, file: &OpenFile) -> Result<(), Errno> {
        if file.state.lock().lost {
            return Err(Errno::EIO); // its transaction is gone: nothing of it is kept by a close
        }
        let Some(staged) = self.to_upload(ino, file) else { return Ok(()) };
        if let Some(errno) = file.state.lock().stuck() {
            return Err(errno);
        }
        let result = self.upload(ino, file, &staged, &Condition::Always).await;
        match result {
            Ok(()) => self.closed_went_up(file, &staged),
            Err(errno) => file.state.lock().fail(errno),
        }
        result
    }

    /// The same at the end of the mount, when nobody is left to write the file again: what failed
    /// is tried once more, unless another node changed the object since. A failure does not stick.
    pub(super) async fn sync_at_last(&self, ino: Ino, file: &OpenFile) -> Result<(), Errno> {
        let _tree = self.tree.read().await;
        let _io = file.quiet().await;
        let Some(staged) = self.to_upload(ino, file) else { return Ok(()) };
        let condition = match file.state.lock().failed {
            Some(_) => self.unless_changed(ino),
            None => Condition::Always,
        };
        self.upload(ino, file, &staged, &condition).await
    }

    /// That the bucket has what it had when the file was last in step with it, as far as the store
    /// can be held to that.
    pub(super) fn unless_changed(&self, ino: Ino) -> Condition {
        let store = self.bucket.capabilities();
        let object = self.namespace.lock().get(ino).and_then(|inode| inode.object.clone());
        match object {
            Some(etag) if store.replace_if_match => Condition::IfMatch(etag),
            None if store.create_if_absent => Condition::IfAbsent,
            _ => Condition::Always,
        }
    }

    /// The staged file, if it is what others are to see and don't yet.
    pub(super) fn to_upload(&self, ino: Ino, file: &OpenFile) -> Option<Arc<Staged>> {
        let staged = file.state.lock().staged.clone()?;
        // What rests from an earlier write may be older than what the bucket has now.
        if !self.is_to_upload(ino) {
            return None;
        }
        if self.writing_place(ino).is_some() {
            return Some(staged); // whether it is prepared is known there
        }
        let key = self.namespace.lock().key(ino)?;
        staged.set_key(key);
        staged.is_dirty().then_some(staged)
    }

    async fn upload(
        &self,
        ino: Ino,
        file: &OpenFile,
        staged: &Staged,
        condition: &Condition,
    ) -> Result<(), Errno> {
        let key = self.namespace.lock().key(ino);
        if let Some(key) = &key {
            self.free_name(key).await?;
            self.settle_key(key).await?;
        }
        self.complete_copies(|source| key.as_ref() == Some(source)).await;
        if let Some(place) = self.writing_place(ino) {
            return self.prepare_file(&place, ino, file).await;
        }
        self.seal_what_it_names(ino, file).await?;
        if file.state.lock().short {
            return Err(Errno::ENOSPC);
        }
        match self.upload_at(ino, file, staged, condition).await {
            Ok(uploaded) => {
                file.state.lock().failed = None;
                self.uploaded(ino, staged, uploaded);
                Ok(())
            }
            Err(error) => {
                let key = key.as_ref().map(Key::as_str).unwrap_or_default();
                tracing::error!(key, %error, "a file could not be uploaded");
                Err(error)
            }
        }
    }

    pub(super) fn uploaded(&self, ino: Ino, staged: &Staged, uploaded: Uploaded) {
        let mut namespace = self.namespace.lock();
        let before = namespace.get(ino).and_then(|inode| inode.object.clone());
        let replaced = before.is_some_and(|before| before != uploaded.etag);
        let key = namespace.key(ino);
        let etag = uploaded.etag.clone();
        let Some(inode) = namespace.get_mut(ino) else { return };
        inode.object = Some(uploaded.etag);
        inode.size = uploaded.size;
        let held = staged.modified().ok().is_some_and(|now| inode.times_staged == Some(now));
        if !held {
            inode.attributes.mtime = uploaded.modified;
            inode.attributes.ctime = inode.attributes.ctime.max(uploaded.modified);
            inode.times_set = false;
        }
        namespace.touch(ino, self.clock.now());
        drop(namespace);
        if let (Some(key), Some(content)) = (&key, staged.content()) {
            self.known.lock().learn(key.clone(), etag, content);
        }
        if let Some(key) = key.filter(|_| replaced) {
            self.reader.forget(&key);
        }
        self.record_attributes(ino);
    }
}
