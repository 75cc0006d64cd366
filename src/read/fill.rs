//! One GET in flight, and those who wait for its bytes.
//!
//! Owns the bytes that have come so far and how waiters learn of them. Does not own the request
//! (`fetch`), nor what becomes of the bytes.
//!
//! What must hold:
//! 1. A waiter is served when its own bytes have come, not when the last has.
//! 2. Every fill ends: with all of its bytes, or with an error that every waiter gets. Whoever
//!    makes one ends it, also when its task panics or is dropped.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, watch};

use crate::bucket::BucketError;
use crate::pool::Buffer;
use crate::read::growing::Growing;
use crate::read::presence::Origin;
use crate::read::version::ReadError;

#[derive(Debug)]
pub struct Fill {
    /// Of the object; begins at a granule, ends at one or at the object's end.
    range: Range<u64>,
    origin: Origin,
    progress: watch::Sender<Progress>,
    /// Where the bytes go, once there is room for them.
    room: OnceLock<Room>,
}

#[derive(Debug)]
struct Room {
    bytes: Arc<Growing>,
    /// Given back when the last waiter has let go of the fill.
    _memory: OwnedSemaphorePermit,
}

/// What a fill needs before it may begin.
#[derive(Debug)]
pub struct Permits {
    pub get: OwnedSemaphorePermit,
    pub memory: OwnedSemaphorePermit,
}

#[derive(Debug)]
struct Progress {
    /// Up to which offset of the object the bytes have come.
    come: u64,
    end: Option<Result<(), ReadError>>,
}

impl Fill {
    pub fn new(range: Range<u64>, origin: Origin) -> Self {
        let progress = watch::Sender::new(Progress { come: range.start, end: None });
        Self { range, origin, progress, room: OnceLock::new() }
    }

    /// Room for all of its bytes was had, once; `buffer` is as long.
    pub fn begin(&self, buffer: Buffer, memory: OwnedSemaphorePermit) {
        let room = Room { bytes: Growing::new(buffer), _memory: memory };
        self.room.set(room).expect("a fill begins once");
    }

    /// Up to where the bytes have come.
    pub fn come(&self) -> u64 {
        self.progress.borrow().come
    }

    pub fn range(&self) -> &Range<u64> {
        &self.range
    }

    pub fn origin(&self) -> Origin {
        self.origin
    }

    /// The next bytes came, after it began. What they came in is free again.
    pub fn push(&self, frame: &[u8]) {
        self.bytes_come().push(frame);
        self.progress.send_modify(|p| p.come += frame.len() as u64);
    }

    fn bytes_come(&self) -> &Arc<Growing> {
        &self.room.get().expect("nothing comes before it began").bytes
    }

    /// No more bytes will come. Only the first end counts, and without all bytes it is an error.
    pub fn end(&self, result: Result<(), ReadError>) {
        self.progress.send_if_modified(|p| {
            let first = p.end.is_none();
            let short = || BucketError::Unavailable("the body ended early".to_owned()).into();
            let all = p.come == self.range.end;
            p.end.get_or_insert(result.and_then(|()| if all { Ok(()) } else { Err(short()) }));
            first
        });
    }

    /// Until it has ended, well or not: its bytes are stored then. Who waits keeps none of its
    /// memory, for which another fill may be waiting.
    pub fn ended(&self) -> impl Future<Output = ()> + use<> {
        let mut progress = self.progress.subscribe();
        async move { drop(progress.wait_for(|p| p.end.is_some()).await) }
    }

    /// The bytes of `part`, which lies within the fill's range.
    pub async fn bytes(&self, part: &Range<u64>) -> Result<Bytes, ReadError> {
        let mut progress = self.progress.subscribe();
        let seen = progress.wait_for(|p| p.come >= part.end || p.end.is_some()).await;
        let seen = seen.expect("self holds the sender");
        if seen.come < part.end {
            let end = seen.end.clone().and_then(Result::err);
            return Err(end.expect("a fill ends well only when all of it has come"));
        }
        drop(seen);
        Ok(self.slice(part))
    }

    /// Of bytes that have come.
    pub fn slice(&self, part: &Range<u64>) -> Bytes {
        let (start, end) = (part.start - self.range.start, part.end - self.range.start);
        self.bytes_come().slice(start as usize..end as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::Pool;
    use futures::FutureExt;
    use tokio::runtime::Handle;
    use tokio::sync::Semaphore;

    fn fill() -> Fill {
        let fill = Fill::new(100..120, Origin::Wanted);
        let memory = Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
        fill.begin(Pool::new(0, Handle::current()).take(20), memory);
        fill
    }

    #[tokio::test]
    async fn an_early_part_is_served_before_the_end_has_come() {
        let fill = fill();
        let mut early = Box::pin(fill.bytes(&(102..108)));
        assert!(early.as_mut().now_or_never().is_none());
        fill.push(b"01234");
        let mut early = Box::pin(fill.bytes(&(102..108)));
        assert!(early.as_mut().now_or_never().is_none());
        fill.push(b"56789");
        assert_eq!(&early.now_or_never().unwrap().unwrap()[..], b"234567");
    }

    #[tokio::test]
    async fn an_error_reaches_every_waiter_whose_bytes_have_not_come() {
        let fill = fill();
        fill.push(b"0123456789");
        let error = ReadError::Bucket(BucketError::Unavailable("x".into()));
        fill.end(Err(error.clone()));
        fill.end(Ok(()));
        assert_eq!(fill.bytes(&(109..111)).now_or_never().unwrap(), Err(error));
        assert_eq!(&fill.bytes(&(109..110)).now_or_never().unwrap().unwrap()[..], b"9");
    }
}
