//! A staged file is acknowledged: its bytes and what is to become of them are on the local disk,
//! whatever happens to the daemon and the machine. And what a dead daemon acknowledged is taken up
//! again.
//!
//! Owns what is synced, in which order, and what of a dead daemon's files is still what was
//! acknowledged. Does not own the journal (`journal`), nor when and under which condition a file
//! goes up (`fs`).

use std::io;
use std::sync::Arc;

use super::error::WriteError;
use super::intent::{Before, Begun, BegunPart, CloseId, FORMAT, INLINE_BYTES_MAX, Intent};
use super::journal::FileName;
use super::quarantine::Why;
use super::staged::Staged;
use super::staging::StagedFile;
use super::state::{Mode, Stamp};
use super::transfer::Multipart;
use super::{Journal, Writer};
use crate::bucket::BucketError;

/// What the file system knows of a close.
#[derive(Debug, Clone)]
pub struct Closing {
    pub id: CloseId,
    /// The last close before the file was opened.
    pub opened: CloseId,
    pub before: Before,
    pub in_transaction: bool,
    pub attributes: serde_json::Value,
    /// Entries that this one stands for from now on.
    pub replaces: Vec<CloseId>,
}

/// What became of a file that a dead daemon acknowledged.
#[derive(Debug)]
pub enum Adopted {
    /// It is here as it was: dirty, and kept by its entry.
    Here(Arc<Staged>),
    /// The bucket had it before that daemon died.
    InBucket,
    /// It was being written again, and what is left is not what was acknowledged: in quarantine.
    Changed,
}

impl Staged {
    /// Makes the content, as it is now, survive kill -9 and power loss: up to 64 KiB in the
    /// journal itself, one sync shared with whoever acknowledges at the time; else the file's data
    /// first. No request. The file must be complete. From now on a file that is dropped dirty
    /// stays where it is, for the next mount.
    ///
    /// Returns the state that was acknowledged. An error acknowledges nothing.
    pub async fn acknowledge(&self, closing: Closing) -> Result<Stamp, WriteError> {
        let _syncing = self.shared.syncing();
        let stamp = self.stamp();
        let size = self.size()?;
        if size <= INLINE_BYTES_MAX {
            let mut bytes = vec![0; size as usize];
            let read = self.disk.read(&mut bytes, 0)?;
            bytes.truncate(read);
            let crc = crc_fast::crc64_nvme(&bytes);
            self.put_in_journal(closing, (read as u64, crc), Some(bytes)).await?;
            return Ok(stamp);
        }
        let me = self.me.upgrade().ok_or(BucketError::NotFound)?;
        let died = Err(WriteError::disk(libc::EIO, "the acknowledging task died"));
        let large = async move {
            let (synced, crc) = tokio::join!(me.sync_data(), me.checksum(0..size));
            synced?;
            let cut = || WriteError::disk(libc::EIO, "cut while it was closed");
            me.put_in_journal(closing, (size, crc?.ok_or_else(cut)?), None).await
        };
        self.shared.tasks.spawn(large).await.unwrap_or(died)?;
        Ok(stamp)
    }

    /// Once it stands there the entry stands for the content, whether anybody waits or not.
    async fn put_in_journal(
        &self,
        closing: Closing,
        (size, crc): (u64, u64),
        bytes: Option<Vec<u8>>,
    ) -> Result<(), WriteError> {
        let me = self.me.upgrade().ok_or(BucketError::NotFound)?;
        let journal = self
            .shared
            .journal
            .get()
            .ok_or(BucketError::Unsupported("acknowledge without a journal"))?;
        let name = if bytes.is_some() { FileName::Unneeded } else { FileName::Needed };
        let Closing { id, opened, before, in_transaction, attributes, replaces } = closing;
        let intent = Intent {
            format: FORMAT,
            id,
            opened,
            key: self.state.lock().key.clone(),
            file: self.disk.name(),
            size,
            crc,
            before,
            in_transaction,
            attributes,
            begun: self.transfer.try_lock().ok().and_then(|t| begun(t.open.as_ref()?)),
            bytes,
        };
        let noted = move || me.state.lock().kept = Some((id, crc));
        Ok(journal.put(intent, name, replaces, noted).await?)
    }

    async fn sync_data(&self) -> Result<(), WriteError> {
        let disk = self.disk.clone();
        let synced = tokio::task::spawn_blocking(move || disk.file().sync_data()).await;
        Ok(synced.map_err(|_| WriteError::disk(libc::EIO, "a sync of the staged file died"))??)
    }

    /// The entry of the journal that stands for the content.
    pub fn kept(&self) -> Option<CloseId> {
        self.state.lock().kept.map(|(id, _)| id)
    }

    /// The entry goes, or stands for another file: what is dropped dirty goes to quarantine again.
    pub fn keep_no_more(&self) {
        self.state.lock().kept = None;
    }

    /// The same, if it is this entry that stands for it.
    pub fn kept_no_more(&self, id: CloseId) {
        self.state.lock().kept.take_if(|(kept, _)| *kept == id);
    }

    /// Another entry of the journal stands for it from now on, with the same content.
    pub fn kept_as(&self, id: CloseId, now: CloseId) {
        if let Some((kept, _)) = self.state.lock().kept.as_mut().filter(|(kept, _)| *kept == id) {
            *kept = now;
        }
    }

    /// Whether the bytes are those that were acknowledged last, whatever the file's times say: a
    /// store to a shared mapping may leave no other sign. Reads a file that the kernel writes.
    pub async fn is_as_acknowledged(&self) -> Result<bool, WriteError> {
        let (kept, mode) = {
            let state = self.state.lock();
            (state.kept, state.mode)
        };
        let Some((_, crc)) = kept else { return Ok(false) };
        if mode == Mode::Own {
            return Ok(true);
        }
        Ok(self.checksum(0..self.size()?).await? == Some(crc))
    }

    /// Makes an empty file the copy of another one, which must be complete and at rest.
    pub async fn copy_staged(&self, from: &Staged) -> Result<(), WriteError> {
        let (to, from) = (self.disk.clone(), from.disk.clone());
        let copy = move || {
            let mut source = from.file().try_clone()?;
            io::Seek::rewind(&mut source)?;
            io::copy(&mut source, &mut to.file().try_clone()?)
        };
        let copied = tokio::task::spawn_blocking(copy).await;
        let died = |_| WriteError::disk(libc::EIO, "a copy of a staged file died");
        let size = copied.map_err(died)??;
        let mut state = self.state.lock();
        state.ahead.stopped = true; // most of it is in the bucket: the close tells what is not
        self.changed(&mut state, 0..size);
        Ok(())
    }

    /// Notes how far the upload by parts of an acknowledged file has come.
    pub(super) fn note_begun(&self, upload: &Multipart) {
        let Some(id) = self.kept() else { return };
        if let (Some(journal), Some(begun)) = (self.shared.journal.get(), begun(upload)) {
            journal.begun(id, begun);
        }
    }
}

/// What the journal keeps of an upload; parts that the store copied are copied again.
fn begun(upload: &Multipart) -> Option<Begun> {
    let parts = (0..).zip(&upload.sent).filter_map(|(index, part)| {
        let part = part.as_ref()?;
        let (etag, len, crc) = (part.etag.clone(), part.len, part.crc?);
        Some((index, BegunPart { etag, len, crc }))
    });
    let parts: std::collections::BTreeMap<u32, BegunPart> = parts.collect();
    let upload = upload.target.id.clone();
    (!parts.is_empty()).then_some(Begun { upload, parts })
}

impl Writer {
    /// What stands in the journal from an earlier daemon, in the order of closes. Empty from the
    /// second call on.
    pub fn left(&self) -> Vec<Intent> {
        std::mem::take(&mut *self.left.lock())
    }

    /// The journal; made if there is none.
    pub fn journal(&self) -> io::Result<&Journal> {
        if let Some(journal) = self.shared.journal.get() {
            return Ok(journal);
        }
        let made = Journal::create(self.shared.staging.dir(), self.shared.clock.random())?;
        Ok(self.shared.journal.get_or_init(|| made))
    }

    /// The same, if there is one.
    pub fn journal_if_any(&self) -> Option<&Journal> {
        self.shared.journal.get()
    }

    /// Takes up a file that a dead daemon acknowledged.
    ///
    /// That the bucket has it is not believed to the note on the staged file: after a power loss
    /// that may be the note of an earlier version, which the file held before, and which was in the
    /// bucket. Nothing of an acknowledged file is synced but its data, or, where the journal has
    /// the bytes, nothing at all.
    pub async fn adopt(&self, intent: &Intent) -> Result<Adopted, WriteError> {
        let staging = &self.shared.staging;
        let found = staging.reopen(&intent.file)?;
        let disk = match (&intent.bytes, found) {
            // Its name was synced before it was acknowledged: whoever removed it had uploaded it.
            (None, None) => return Ok(Adopted::InBucket),
            (None, Some(file)) => match cut_to_acknowledged(file, intent).await? {
                Some(file) => file,
                None => return Ok(Adopted::Changed),
            },
            (Some(bytes), found) => {
                let same = found.map_or(Ok(None), |file| if_the_same(file, bytes))?;
                let make = || {
                    let id = crate::clock::ulid(&*self.shared.clock);
                    let file = staging.create(&id, &intent.key)?;
                    file.write(bytes, 0).1?;
                    Ok::<_, io::Error>(file)
                };
                same.map_or_else(make, Ok)?
            }
        };
        Ok(Adopted::Here(Staged::adopted(self.shared.clone(), disk, intent)?))
    }

    /// An adopted file has no place in the bucket: to quarantine, and its entry goes.
    pub async fn set_aside(&self, staged: Arc<Staged>, why: Why) -> Result<(), WriteError> {
        let id = staged.kept();
        staged.keep_no_more();
        staged.give_up(why);
        drop(staged); // dirty and let go
        match (id, self.journal_if_any()) {
            (Some(id), Some(journal)) => Ok(journal.remove(vec![id]).await?),
            _ => Ok(()),
        }
    }
}

/// The file as it was acknowledged; `None`: it is not any more, and went to quarantine.
async fn cut_to_acknowledged(
    file: StagedFile,
    intent: &Intent,
) -> Result<Option<StagedFile>, WriteError> {
    let (size, crc) = (intent.size, intent.crc);
    let work = move || -> io::Result<Option<StagedFile>> {
        let now = file.size()?;
        if now < size || crc64_of(&file, size)? != crc {
            file.quarantine(Why::Overwritten)?;
            return Ok(None);
        }
        if now > size {
            file.quarantine_copy(Why::NotClosed)?;
            file.set_size(size)?;
        }
        Ok(Some(file))
    };
    let done = tokio::task::spawn_blocking(work).await;
    Ok(done.map_err(|_| WriteError::disk(libc::EIO, "a check of a staged file died"))??)
}

/// A staged file whose acknowledged bytes are in the journal, if it still holds them. Else it is
/// put away: what was written since and never closed is kept, what the bucket had before is not.
fn if_the_same(file: StagedFile, acknowledged: &[u8]) -> io::Result<Option<StagedFile>> {
    let size = file.size()?;
    let same = size == acknowledged.len() as u64 && {
        let mut bytes = vec![0; acknowledged.len()];
        file.read(&mut bytes, 0)? == bytes.len() && bytes == acknowledged
    };
    if same {
        return Ok(Some(file));
    }
    if size == 0 || file.is_uploaded()? {
        file.remove()?;
    } else {
        file.quarantine(Why::NotClosed)?;
    }
    Ok(None)
}

fn crc64_of(file: &StagedFile, size: u64) -> io::Result<u64> {
    const PIECE_BYTES: usize = 256 << 10;
    let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc64Nvme);
    let mut buffer = vec![0; PIECE_BYTES];
    let mut at = 0;
    while at < size {
        let piece = &mut buffer[..PIECE_BYTES.min((size - at) as usize)];
        let read = file.read(piece, at)?;
        if read == 0 {
            break;
        }
        digest.update(&piece[..read]);
        at += read as u64;
    }
    Ok(digest.finalize())
}
