//! A buffer that is filled from its start while what has come is read.
//!
//! Owns the rule by which that is sound. Does not own the memory's reuse (`pool`), nor who waits.
//!
//! What must hold: bytes are written once, before they are told of, and never after: whoever has a
//! slice shares it with nobody who writes.

use std::mem::ManuallyDrop;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;

use crate::pool::Buffer;

#[derive(Debug)]
pub struct Growing {
    start: *mut u8,
    len: usize,
    capacity: usize,
    /// How far it is filled, and told of.
    filled: AtomicUsize,
    /// One fills at a time.
    filling: Mutex<()>,
    /// Without its bytes, which are put back at the end.
    buffer: Buffer,
}

// SAFETY: the memory behind `start` is this value's alone. It is written under `filling` and only
// from `filled` on, and read only before `filled`, which is raised after the writing.
unsafe impl Send for Growing {}
// SAFETY: as above.
unsafe impl Sync for Growing {}

impl Growing {
    /// Nothing of it counts as filled.
    pub fn new(mut buffer: Buffer) -> Arc<Self> {
        let mut bytes = ManuallyDrop::new(std::mem::take(&mut buffer.bytes));
        Arc::new(Self {
            start: bytes.as_mut_ptr(),
            len: bytes.len(),
            capacity: bytes.capacity(),
            filled: AtomicUsize::new(0),
            filling: Mutex::new(()),
            buffer,
        })
    }

    /// Appends. Panics past the end of the buffer.
    pub fn push(&self, bytes: &[u8]) {
        let _one = self.filling.lock();
        let filled = self.filled.load(Ordering::Relaxed);
        assert!(bytes.len() <= self.len - filled, "more came than was asked for");
        // SAFETY: the target lies within the buffer, as asserted, and from `filled` on, where
        // nobody reads; nobody else writes while `filling` is held.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.start.add(filled), bytes.len());
        }
        self.filled.store(filled + bytes.len(), Ordering::Release);
    }

    /// A part of what was filled. Panics where it was not.
    pub fn slice(self: &Arc<Self>, range: Range<usize>) -> Bytes {
        assert!(range.start <= range.end && range.end <= self.filled.load(Ordering::Acquire));
        Bytes::from_owner(Slice { of: self.clone(), range })
    }
}

impl Drop for Growing {
    fn drop(&mut self) {
        // SAFETY: the parts of the vector that `new` took apart; nobody has a slice any more, as
        // each keeps this value.
        self.buffer.bytes = unsafe { Vec::from_raw_parts(self.start, self.len, self.capacity) };
    }
}

struct Slice {
    of: Arc<Growing>,
    range: Range<usize>,
}

impl AsRef<[u8]> for Slice {
    fn as_ref(&self) -> &[u8] {
        let Range { start, end } = self.range;
        // SAFETY: within what was filled, as `slice` asserted, which is not written again.
        unsafe { std::slice::from_raw_parts(self.of.start.add(start), end - start) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::Pool;
    use tokio::runtime::Handle;

    #[tokio::test]
    async fn what_has_come_is_read_while_more_comes() {
        let pool = Pool::new(4 << 20, Handle::current());
        let growing = Growing::new(pool.take(1 << 20));
        growing.push(b"0123");
        let first = growing.slice(1..3);
        growing.push(b"4567");
        assert_eq!((&first[..], &growing.slice(2..8)[..]), (&b"12"[..], &b"234567"[..]));
        drop(growing);
        assert_eq!(&first[..], b"12");
        let place = first.as_ptr() as usize - 1;
        drop(first);
        assert_eq!(pool.take(1 << 20).bytes.as_ptr() as usize, place, "the buffer went back");
    }

    #[tokio::test]
    #[should_panic(expected = "more came")]
    async fn nothing_is_written_past_the_end() {
        Growing::new(Pool::new(0, Handle::current()).take(3)).push(b"0123");
    }

    #[tokio::test]
    #[should_panic(expected = "range.end")]
    async fn nothing_is_shown_before_it_came() {
        let growing = Growing::new(Pool::new(0, Handle::current()).take(3));
        growing.push(b"0");
        growing.slice(0..2);
    }
}
