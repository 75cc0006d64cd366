//! Bytes of a staged file read to be sent, or only to be compared.
//!
//! Owns how they are read without holding anybody up, and their checksums. Does not own the bound
//! on their memory (`buffers`), nor where they go.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use super::buffers::Room;
use super::error::WriteError;
use super::mapped::Mapped;
use super::staged::Staged;
use super::staging::StagedFile;
use super::transfer::Setback;

/// Reads up to this size are made in place: a thread's hop costs as much as copying them.
const READ_IN_PLACE_BYTES_MAX: usize = 256 << 10;
/// Checksums alone are taken in pieces that stay in the processor's cache.
const CHECK_BYTES: usize = 256 << 10;

/// Bytes read to be sent.
pub(super) struct PartBody {
    pub bytes: Bytes,
    pub crc: u64,
    _room: Room,
}

impl PartBody {
    fn new(bytes: Bytes, room: Room) -> Self {
        let crc = crc_fast::crc64_nvme(&bytes);
        Self { bytes, crc, _room: room }
    }
}

impl Staged {
    /// Reads `range` to send it: what is written into it from here on is a change after the fact.
    pub(super) async fn read_part(&self, range: Range<u64>) -> Result<PartBody, Setback> {
        let len = (range.end - range.start) as usize;
        let (mut buffer, room) = self.shared.buffers.take(len).await;
        self.state.lock().extents.sending(range.clone());
        let read = move |disk: &StagedFile| {
            let whole = disk.read(&mut buffer.bytes, range.start)? == len;
            Ok(whole.then(|| PartBody::new(buffer.freeze(), room)))
        };
        self.on_disk(len, read).await?.ok_or(Setback::Changed)
    }

    /// The same for the whole of a file of `size` bytes, of any size.
    pub(super) async fn read_whole(&self, size: u64) -> Result<PartBody, Setback> {
        if size <= self.shared.buffers.bytes_max() {
            return self.read_part(0..size).await;
        }
        let room = self.shared.buffers.room(0).await;
        self.state.lock().extents.sending(0..size);
        let (len, dir) = (size as usize, self.shared.staging.dir().to_owned());
        let read = move |disk: &StagedFile| {
            let mapped = Mapped::copy_of(disk.file(), len, &dir)?;
            Ok(mapped.map(|mapped| PartBody::new(Bytes::from_owner(mapped), room)))
        };
        self.on_disk(len, read).await?.ok_or(Setback::Changed)
    }

    /// The CRC64NVME of `range`; `None` if the file ends before it does.
    pub(super) async fn checksum(&self, range: Range<u64>) -> Result<Option<u64>, WriteError> {
        let len = (range.end - range.start) as usize;
        let check = move |disk: &StagedFile| {
            let mut buffer = vec![0; CHECK_BYTES.min(len)];
            let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc64Nvme);
            for start in range.clone().step_by(CHECK_BYTES) {
                let piece = &mut buffer[..CHECK_BYTES.min((range.end - start) as usize)];
                if disk.read(piece, start)? < piece.len() {
                    return Ok(None);
                }
                digest.update(piece);
            }
            Ok(Some(digest.finalize()))
        };
        self.on_disk(len, check).await
    }

    /// Runs `work`, which moves `len` bytes, where it holds nobody up.
    async fn on_disk<T: Send + 'static>(
        &self,
        len: usize,
        work: impl FnOnce(&StagedFile) -> io::Result<T> + Send + 'static,
    ) -> Result<T, WriteError> {
        if len <= READ_IN_PLACE_BYTES_MAX {
            return Ok(work(&self.disk)?);
        }
        let disk = Arc::clone(&self.disk);
        let done = tokio::task::spawn_blocking(move || work(&disk)).await;
        Ok(done.map_err(|_| WriteError::disk(libc::EIO, "a read of the staged file died"))??)
    }
}
