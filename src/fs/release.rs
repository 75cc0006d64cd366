//! What becomes of a file when its descriptors go: published, torn, kept at hand for the next open.
//!
//! Owns the release of handles and what rests here after it. Does not own the upload (`sync`,
//! `acknowledge`).

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::Fs;
use super::acknowledge::Close;
use super::attributes::Content;
use super::checkpoints::CloseAs;
use super::error::Errno;
use super::handles::{FileHandle, Handle, IoMode, OpenFile};
use crate::bucket::BucketError;
use crate::types::{ETag, Ino, Key};
use crate::write::FilePlace;

/// Files whose staged content is kept after close, for the next open: how many, and how large each.
const RESTING_MAX: usize = 64;
const RESTING_BYTES_MAX: u64 = 256 << 20;
/// What the kernel holds of a smaller file is dropped at the next open in no time.
const PAGED_BYTES_MIN: u64 = 1 << 20;
/// The kernel releases a closed handle within milliseconds; what takes longer is held open.
const RELEASE_MAX: Duration = Duration::from_secs(1);

impl Fs {
    /// The last descriptor of a handle is gone.
    pub async fn release(&self, handle: u64) {
        let Some(Handle::File(open)) = self.handles.remove(handle) else { return };
        let (last_writer, last_reader) = {
            let mut state = open.file.state.lock();
            *state.count(open.mode) -= 1;
            state.writers -= u32::from(open.writable);
            if state.handles() == 0 {
                (state.small, state.passing) = (None, None);
            }
            let last_reader = open.mode == IoMode::Cached && state.handles() == 0;
            (open.writable && state.writers == 0, last_reader)
        };
        if last_writer {
            self.last_writer_gone(&open).await;
            self.writer_is_gone_from(open.ino);
        }
        let io = open.file.io.lock().await;
        self.settle(open.ino, &open.file);
        drop(io);
        open.file.released.notify_waiters();
        if last_reader {
            self.spare_pages(open.ino);
        }
        let mut namespace = self.namespace.lock();
        if let Some(inode) = namespace.get_mut(open.ino) {
            inode.opens = inode.opens.saturating_sub(1);
        }
        namespace.drop_if_unused(open.ino);
        drop(namespace);
        let ino = open.ino;
        drop(open);
        self.handles.tidy(ino);
        self.rest_less();
    }

    /// Once all of a file is cached, the kernel reads it from there by itself: what it holds beside
    /// that is memory taken twice, and would be dropped by the next open, whose reader would wait
    /// (512 MiB: 60 ms).
    fn spare_pages(&self, ino: Ino) {
        if !self.passthrough.load(Ordering::Relaxed) {
            return;
        }
        let version = self.version(ino).ok().flatten();
        let whole = version.filter(|version| version.size >= PAGED_BYTES_MIN);
        if whole.is_some_and(|version| self.reader.whole_file(&version).is_some())
            && let Some(kernel) = self.kernel.get()
        {
            kernel.drop_pages(ino);
        }
    }

    /// Before an open: what was written and closed here is this node's to tell until the kernel
    /// releases the handle, which it does in its own time, and another node may have replaced the
    /// file since. So the bucket is asked, 1 HEAD: `Checked` if it has what was uploaded here.
    /// Where it has another version the release is waited for; a descriptor that is still open
    /// after [`RELEASE_MAX`] keeps this node at its own version.
    pub(super) async fn outlive_closed(&self, ino: Ino, file: &OpenFile) -> Result<Content, Errno> {
        let Some((key, ours)) = self.closed_version(ino, file) else { return Ok(Content::Kept) };
        match self.bucket.head(&key).await {
            Ok(info) if info.etag == ours => return Ok(Content::Checked),
            Ok(_) | Err(BucketError::NotFound) => {}
            Err(error) => return Err(error.into()),
        }
        let gone = async {
            let mut released = std::pin::pin!(file.released.notified());
            loop {
                released.as_mut().enable();
                match self.closed_version(ino, file) {
                    Some((_, now)) if now == ours => {}
                    _ => return,
                }
                released.as_mut().await;
                released.set(file.released.notified());
            }
        };
        let _ = tokio::time::timeout(RELEASE_MAX, gone).await; // held longer: see above
        Ok(Content::Kept)
    }

    /// The key and version of a file that writers hold here and have nothing to add to.
    fn closed_version(&self, ino: Ino, file: &OpenFile) -> Option<(Key, ETag)> {
        let key = {
            let namespace = self.namespace.lock();
            let inode = namespace.get(ino).filter(|inode| inode.staged && inode.linked)?;
            inode.at.clone().or_else(|| namespace.key(ino))?
        };
        if self.writing_place(ino).is_some() {
            return None; // the commit says what it is
        }
        let state = file.state.lock();
        let staged = state.staged.as_ref().filter(|_| state.writers > 0 && state.uploading == 0)?;
        let uploaded = staged.last_uploaded().filter(|_| !staged.is_dirty())?;
        Some((key, uploaded.etag))
    }

    /// Waits for a place for one more file that is written; those that rest give theirs up for it.
    pub(super) async fn place_to_write(&self) -> Result<FilePlace, Errno> {
        self.rest_less();
        Ok(self.writer.place().await?)
    }

    /// Where places are short no file rests.
    fn rest_less(&self) {
        while self.writer.is_out_of_places() {
            let Some(oldest) = self.resting.lock().pop_front() else {
                return self.start_uploads(); // also of what waits to be added to
            };
            self.wake(oldest);
        }
    }

    async fn last_writer_gone(&self, open: &FileHandle) {
        if open.file.state.lock().torn {
            return self.tear(open.ino, &open.file).await;
        }
        if let Err(error) = self.close_at_last(open).await {
            tracing::error!(ino = open.ino.0, %error, "not uploaded at its release");
        }
    }

    async fn close_at_last(&self, open: &FileHandle) -> Result<(), Errno> {
        if open.file.state.lock().writers > 0 {
            return Ok(()); // see below
        }
        let why = match self.acknowledges_locally() {
            true => CloseAs::Local,
            false => CloseAs::Upload,
        };
        let (mut sealed, mut checked) = (None, Ok(()));
        let held = loop {
            let held = self.close_at(open.ino, &open.file, why, &mut sealed).await?;
            // Somebody may have opened it since, and emptied it: what that makes of it is published
            // at its own close.
            let (mapped, staged) = {
                let mut state = open.file.state.lock();
                if state.writers > 0 {
                    return Ok(());
                }
                (std::mem::take(&mut state.mapped), state.staged.clone())
            };
            let Some(staged) = staged.filter(|_| mapped) else { break held };
            // What waits for the bucket is compared with what was acknowledged.
            checked = match open.file.is_acknowledged() {
                true => self.note_stores(&open.file).await,
                false => staged.recheck().await.map_err(Errno::from),
            };
            drop(held); // it may be dirty now
        };
        if !self.acknowledges_locally() {
            return checked.and(self.sync_locked(open.ino, &open.file).await);
        }
        let closed = self.acknowledge(open.ino, &open.file).await?;
        self.supersede_earlier(open.ino, &open.file).await;
        checked?;
        if closed != Close::Upload {
            return Ok(());
        }
        if self.writing_place(open.ino).is_some() {
            return self.sync_locked(open.ino, &open.file).await; // which shows nothing
        }
        drop(held); // its earlier versions go up before it
        self.wait_turn(&open.file).await;
        let _held = self.close_at(open.ino, &open.file, CloseAs::Upload, &mut sealed).await?;
        let is_anothers = {
            let state = open.file.state.lock();
            state.writers > 0 || state.holds_acknowledged()
        };
        match is_anothers {
            true => Ok(()),
            false => self.sync_locked(open.ino, &open.file).await,
        }
    }

    /// What a killed process left of a file goes to the quarantine; the file is what it was before.
    async fn tear(&self, ino: Ino, file: &OpenFile) {
        if let Some(place) = self.writing_place(ino) {
            let staged = {
                let mut state = file.state.lock();
                state.torn = false;
                if state.holds_acknowledged() {
                    return;
                }
                state.staged.clone()
            };
            // A killed child that had inherited the descriptor tears nothing that was closed well.
            if staged.is_none_or(|staged| staged.is_prepared() || !staged.is_dirty()) {
                return;
            }
            return self.tear_untold(&place.checkpoint).await;
        }
        let _io = file.quiet().await;
        let Some(staged) = self.take_torn(file) else { return };
        let mut namespace = self.namespace.lock();
        tracing::warn!(ino = ino.0, key = ?namespace.key(ino), "torn: its writer was killed");
        drop(staged); // dirty and let go: the write path quarantines it
        if file.state.lock().staged.is_some() {
            return; // an acknowledged version waits for the bucket
        }
        let Some(inode) = namespace.get_mut(ino) else { return };
        inode.staged = false;
        inode.checked = None;
        let (in_bucket, parent) = (inode.object.is_some(), inode.parent);
        if !in_bucket {
            namespace.detach(ino);
            namespace.touch_directory(parent, self.wall());
        }
    }

    /// When nobody writes a file any more and the bucket has it, the bucket says what it is. The
    /// staged content rests a while for the next open. The caller holds `io`.
    pub(super) fn settle(&self, ino: Ino, file: &OpenFile) {
        let mut namespace = self.namespace.lock();
        let mut state = file.state.lock();
        let Some(staged) = state.staged.clone() else { return };
        let Some(inode) = namespace.get_mut(ino) else {
            return state.staged = None;
        };
        if !inode.linked {
            if state.handles() == 0 {
                if !state.lost {
                    staged.discard();
                }
                state.staged = None;
                inode.staged = false;
            }
            return;
        }
        // What a running upload makes is known to the inode before the bucket says what it is.
        if state.writers > 0 || state.uploading > 0 || staged.is_dirty() {
            return;
        }
        inode.staged = false;
        let small = staged.size().is_ok_and(|size| size <= RESTING_BYTES_MAX);
        if state.handles() == 0 && !(small && staged.is_complete()) {
            state.staged = None;
        }
        drop((state, namespace));
        self.rest(ino);
    }

    fn rest(&self, ino: Ino) {
        let oldest = {
            let mut resting = self.resting.lock();
            resting.retain(|other| *other != ino);
            resting.push_back(ino);
            if resting.len() > RESTING_MAX { resting.pop_front() } else { None }
        };
        if let Some(oldest) = oldest {
            self.wake(oldest);
        }
    }

    /// Lets go of what rests of a file, if nobody uses it.
    fn wake(&self, oldest: Ino) {
        let Some(file) = self.handles.shared_if_any(oldest) else { return };
        let mut state = file.state.lock();
        let idle = state.handles() == 0 && file.io.try_lock().is_ok();
        if idle && state.staged.as_ref().is_some_and(|staged| !staged.is_dirty()) {
            state.staged = None;
        }
        drop(state);
        drop(file);
        self.handles.tidy(oldest);
    }
}
