//! Uploading what is dirty: at close, at fsync, and at the end of the mount.
//!
//! Owns when a failure sticks and when an upload is tried again. Does not own the upload (`write`).

use std::sync::Arc;

use super::Fs;
use super::checkpoints::{CloseAs, Named};
use super::error::Errno;
use super::handles::OpenFile;
use crate::bucket::Condition;
use crate::types::{Ino, Key};
use crate::write::{Staged, Uploaded};

/// How far a file came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sent {
    InBucket,
    /// Its parts are in the store: its checkpoint directory shows it.
    Prepared,
}

impl Fs {
    /// Uploads what is dirty. A failure sticks: it is repeated, without a request, until the file
    /// is written again. `sealed`: see [`Self::close_at`].
    pub(super) async fn sync(
        &self,
        ino: Ino,
        file: &OpenFile,
        mut sealed: Option<Named>,
    ) -> Result<(), Errno> {
        self.wait_turn(file).await;
        let _held = self.close_at(ino, file, CloseAs::Upload, &mut sealed).await?;
        self.sync_locked(ino, file).await
    }

    /// The same; the caller works at the inode and holds its `io`.
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
            Ok(sent) => self.closed_was_sent(file, &staged, sent),
            Err(errno) => file.state.lock().fail(errno),
        }
        result.map(drop)
    }

    /// The same at the end of the mount, when nobody is left to write the file again: what failed
    /// is tried once more, unless another node changed the object since. A failure does not stick.
    pub(super) async fn sync_at_last(&self, ino: Ino, file: &OpenFile) -> Result<(), Errno> {
        let _held = self.close_at(ino, file, CloseAs::Last, &mut None).await?;
        let Some(staged) = self.to_upload(ino, file) else { return Ok(()) };
        let condition = match file.state.lock().failed {
            Some(_) => self.unless_changed(ino),
            None => Condition::Always,
        };
        let sent = self.upload(ino, file, &staged, &condition).await?;
        self.closed_was_sent(file, &staged, sent);
        Ok(())
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
    ) -> Result<Sent, Errno> {
        let key = self.namespace.lock().key(ino);
        if let Some(key) = &key {
            self.free_name(key).await?;
            self.settle_key(key).await?;
        }
        self.complete_copies(|source| key.as_ref() == Some(source)).await;
        if let Some(place) = self.writing_place(ino) {
            self.prepare_file(&place, ino, file).await?;
            return Ok(Sent::Prepared);
        }
        if file.state.lock().short {
            return Err(Errno::ENOSPC);
        }
        match self.upload_at(ino, file, staged, condition).await {
            Ok(uploaded) => {
                file.state.lock().failed = None;
                self.uploaded(ino, staged, uploaded);
                if let Some(key) = &key {
                    let _ = self.give_up_left(key).await; // said there
                }
                Ok(Sent::InBucket)
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
