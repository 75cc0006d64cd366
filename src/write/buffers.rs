//! Buffers for the bodies of uploads, bounded in bytes over all files.
//!
//! Owns the bound. Does not own their reuse (`pool`), nor what is read into them.

use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::pool::{Buffer, Pool};

/// The bound is counted in such units; also what the smallest request counts for, so that with the
/// default of 128 MiB at most 512 small files go up at a time.
const UNIT_BYTES: u64 = 256 << 10;

/// Hands out buffers while they fit into the bound; then they are waited for, in turn.
#[derive(Debug)]
pub struct Buffers {
    free: Arc<Semaphore>,
    units: u32,
    pool: Arc<Pool>,
}

impl Buffers {
    pub fn new(bytes_max: u64, runtime: Handle) -> Arc<Self> {
        let units = bytes_max.div_ceil(UNIT_BYTES).clamp(1, u64::from(u32::MAX)) as u32;
        let free = Arc::new(Semaphore::new(units as usize));
        let pool = Pool::new(u64::from(units) * UNIT_BYTES, runtime);
        Arc::new(Self { free, units, pool })
    }

    pub fn bytes_max(&self) -> u64 {
        u64::from(self.units) * UNIT_BYTES
    }

    /// A buffer of `len` bytes with anything in it. One larger than the bound waits for all the
    /// others and is then had alone.
    pub async fn take(self: &Arc<Self>, len: usize) -> (Buffer, Room) {
        let room = self.room(len).await;
        (self.pool.take(len), room)
    }

    /// Only the place, for a request whose body takes `len` bytes of memory.
    pub async fn room(self: &Arc<Self>, len: usize) -> Room {
        let units = (len as u64).div_ceil(UNIT_BYTES).clamp(1, u64::from(self.units)) as u32;
        let permit = self.free.clone().acquire_many_owned(units).await;
        Room { _permit: permit.expect("the semaphore is never closed") }
    }
}

/// A place within the bound, kept while the request lasts. It is not part of the body: a store that
/// keeps bodies for itself must not stop all others from being sent.
#[derive(Debug)]
pub struct Room {
    _permit: OwnedSemaphorePermit,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_bound_holds_until_the_request_is_over() {
        let pool = Buffers::new(2 << 20, Handle::current());
        let (first, room) = pool.take(1 << 20).await;
        let second = pool.take(1 << 20).await;
        let body = first.freeze();
        let third = pool.take(1);
        tokio::pin!(third);
        assert!(futures::poll!(third.as_mut()).is_pending());
        drop(room);
        assert!(futures::poll!(third.as_mut()).is_ready(), "whoever still holds the body");
        drop((second, body));
    }

    #[tokio::test]
    async fn what_is_larger_than_the_bound_is_had_alone() {
        let pool = Buffers::new(1 << 20, Handle::current());
        let large = pool.take(5 << 20).await;
        assert_eq!(large.0.bytes.len(), 5 << 20);
        assert!(futures::poll!(std::pin::pin!(pool.take(1))).is_pending());
        drop(large);
        assert_eq!(pool.free.available_permits(), 4);
    }
}
