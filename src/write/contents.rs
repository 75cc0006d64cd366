//! Reading, writing, cutting and allocating a staged file: what the kernel asks of it.
//!
//! Owns the changes that come through us. Does not own those that the kernel makes by itself, nor
//! where missing bytes come from (`fetch`).

use std::io;
use std::ops::Range;

use bytes::Bytes;

use super::error::WriteError;
use super::staged::Staged;
use super::state::{Mode, State};

/// Our own writes hold the state's lock for so many bytes at a time.
const WRITE_BYTES_MAX: usize = 1 << 20;

impl Staged {
    /// Up to `len` bytes from `offset` on, fewer at the end of the file. One GET per missing block.
    pub async fn read(&self, offset: u64, len: u32) -> Result<Bytes, WriteError> {
        let end = offset.saturating_add(u64::from(len)).min(self.size()?);
        if end <= offset {
            return Ok(Bytes::new());
        }
        self.bring(offset..end).await?;
        let mut buffer = vec![0; (end - offset) as usize];
        let read = self.disk.read(&mut buffer, offset)?;
        buffer.truncate(read);
        Ok(buffer.into())
    }

    /// Writes `data` at `offset`. Waits while too many bytes wait for their upload, then ENOSPC.
    pub async fn write(&self, offset: u64, data: &[u8]) -> Result<(), WriteError> {
        let end = in_file(offset, data.len() as u64)?;
        self.shared.dirty.room().await?;
        self.gather(offset..end).await?;
        let mut at = offset;
        for piece in data.chunks(WRITE_BYTES_MAX) {
            let mut state = self.state.lock();
            let (written, result) = self.disk.write(piece, at);
            self.changed(&mut state, at..at + written as u64);
            result?;
            at += written as u64;
        }
        self.look_ahead();
        Ok(())
    }

    /// ftruncate(2). What is cut off the base never comes back: growing again reads zeros.
    pub async fn truncate(&self, len: u64) -> Result<(), WriteError> {
        in_file(len, 0)?;
        Ok(self.truncate_in(&mut self.state.lock(), len)?)
    }

    pub(super) fn truncate_in(&self, state: &mut State, len: u64) -> io::Result<()> {
        let size = self.disk.size()?;
        self.disk.set_size(len)?;
        if len < size {
            state.extents.cut(len, size);
            state.ahead.cut(len);
        }
        self.changed(state, len..len);
        Ok(())
    }

    /// fallocate(2) with mode 0, KEEP_SIZE, PUNCH_HOLE | KEEP_SIZE or ZERO_RANGE (with or without
    /// KEEP_SIZE); else EOPNOTSUPP.
    pub async fn allocate(&self, offset: u64, len: u64, mode: i32) -> Result<(), WriteError> {
        const KEEP: i32 = libc::FALLOC_FL_KEEP_SIZE;
        const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | KEEP;
        const ZERO: i32 = libc::FALLOC_FL_ZERO_RANGE;
        const ZERO_KEEP: i32 = ZERO | KEEP;
        let end = in_file(offset, len)?;
        let mut state = self.state.lock();
        let size = self.disk.size()?;
        match mode {
            // Space is made sure of, the content stays.
            KEEP => return Ok(self.disk.allocate(KEEP, offset, len)?),
            0 => self.disk.allocate(0, offset, len)?,
            PUNCH | ZERO | ZERO_KEEP => {
                // A hole reads as zeros, on more file systems than ZERO_RANGE works on.
                self.disk.punch(offset, len)?;
                if mode == ZERO && end > size {
                    self.disk.set_size(end)?;
                }
            }
            _ => return Err(WriteError::disk(libc::EOPNOTSUPP, "this kind of fallocate")),
        }
        let zeroed = if mode == 0 { offset..offset } else { offset.min(size)..end.min(size) };
        self.changed(&mut state, zeroed);
        Ok(())
    }

    /// Notes a change of ours. The bytes of `range` are in the file; an empty one for other
    /// changes.
    pub(super) fn changed(&self, state: &mut State, range: Range<u64>) {
        state.extents.wrote(range);
        state.version += 1;
        state.modified = self.shared.clock.wall();
        if state.mode == Mode::Passthrough {
            state.modified_on_disk = self.disk.modified().ok();
        }
        self.recharge(state);
    }
}

/// The end of a range, if files can be so large; else EFBIG.
fn in_file(offset: u64, len: u64) -> Result<u64, WriteError> {
    let end = offset.checked_add(len).filter(|end| *end <= i64::MAX as u64);
    end.ok_or_else(|| WriteError::disk(libc::EFBIG, "past the largest offset"))
}
