//! Buffers for the bodies of uploads, bounded in bytes over all files.
//!
//! Owns the bound and the reuse. Does not own what is read into them.

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The bound is counted in such units; also what the smallest request counts for, so that with the
/// default of 128 MiB at most 512 small files go up at a time.
const UNIT_BYTES: u64 = 256 << 10;
/// Smaller buffers are left to the allocator.
const REUSED_BYTES_MIN: usize = 1 << 20;

/// Hands out buffers while they fit into the bound; then they are waited for, in turn.
#[derive(Debug)]
pub struct Buffers {
    free: Arc<Semaphore>,
    units: u32,
    idle: Mutex<Vec<Vec<u8>>>,
}

impl Buffers {
    pub fn new(bytes_max: u64) -> Arc<Self> {
        let units = bytes_max.div_ceil(UNIT_BYTES).clamp(1, u64::from(u32::MAX)) as u32;
        let free = Arc::new(Semaphore::new(units as usize));
        Arc::new(Self { free, units, idle: Mutex::default() })
    }

    pub fn bytes_max(&self) -> u64 {
        u64::from(self.units) * UNIT_BYTES
    }

    /// A buffer of `len` bytes with anything in it. One larger than the bound waits for all the
    /// others and is then had alone.
    pub async fn take(self: &Arc<Self>, len: usize) -> (Buffer, Room) {
        let room = self.room(len).await;
        let bytes = self.reuse(len).unwrap_or_else(|| vec![0; len]);
        (Buffer { bytes, pool: self.clone() }, room)
    }

    /// Only the place, for a request whose body takes `len` bytes of memory.
    pub async fn room(self: &Arc<Self>, len: usize) -> Room {
        let units = (len as u64).div_ceil(UNIT_BYTES).clamp(1, u64::from(self.units)) as u32;
        let permit = self.free.clone().acquire_many_owned(units).await;
        let permit = Some(permit.expect("the semaphore is never closed"));
        Room { permit, pool: self.clone() }
    }

    fn reuse(&self, len: usize) -> Option<Vec<u8>> {
        let mut idle = self.idle.lock();
        let fits = |buffer: &Vec<u8>| (len..=2 * len).contains(&buffer.capacity());
        let found = idle.iter().position(fits).map(|at| idle.swap_remove(at));
        self.trim(&mut idle);
        found.map(|mut buffer| {
            buffer.resize(len, 0);
            buffer
        })
    }

    /// Idle buffers stand within the bound too: they are never more than what is free of it, and
    /// none once nothing goes up.
    fn trim(&self, idle: &mut Vec<Vec<u8>>) {
        let free = self.free.available_permits();
        let mut kept = if free == self.units as usize { 0 } else { free as u64 * UNIT_BYTES };
        idle.retain(|buffer| {
            let left = kept.checked_sub(buffer.capacity() as u64);
            kept = left.unwrap_or(kept);
            left.is_some()
        });
    }
}

/// A buffer that goes back when it, or the last copy of the body made of it, is dropped.
#[derive(Debug)]
pub struct Buffer {
    pub bytes: Vec<u8>,
    pool: Arc<Buffers>,
}

impl Buffer {
    /// The same bytes as a body.
    pub fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        let mut idle = self.pool.idle.lock();
        if bytes.capacity() >= REUSED_BYTES_MIN {
            idle.push(bytes);
        }
        self.pool.trim(&mut idle);
    }
}

/// A place within the bound, kept while the request lasts. It is not part of the body: a store that
/// keeps bodies for itself must not stop all others from being sent.
#[derive(Debug)]
pub struct Room {
    permit: Option<OwnedSemaphorePermit>,
    pool: Arc<Buffers>,
}

impl Drop for Room {
    fn drop(&mut self) {
        drop(self.permit.take());
        self.pool.trim(&mut self.pool.idle.lock());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_bound_holds_until_the_request_is_over() {
        let pool = Buffers::new(2 << 20);
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
    async fn buffers_are_used_again_within_the_bound_and_given_back_at_the_end() {
        let pool = Buffers::new(4 << 20);
        let busy = pool.take(1 << 20).await;
        let first = pool.take(2 << 20).await;
        let place = first.0.bytes.as_ptr();
        let second = pool.take(1 << 20).await;
        drop((second.1, second.0));
        drop((first.1, first.0));
        let again = pool.take((2 << 20) - 5).await;
        assert_eq!((again.0.bytes.as_ptr(), again.0.bytes.len()), (place, (2 << 20) - 5));
        drop(again);
        drop(pool.take(3 << 20).await);
        let idle = || pool.idle.lock().iter().map(Vec::capacity).sum::<usize>();
        assert!(idle() <= 3 << 20);
        drop(busy);
        assert_eq!(idle(), 0);
    }

    #[tokio::test]
    async fn what_is_larger_than_the_bound_is_had_alone() {
        let pool = Buffers::new(1 << 20);
        let large = pool.take(5 << 20).await;
        assert_eq!(large.0.bytes.len(), 5 << 20);
        assert!(futures::poll!(std::pin::pin!(pool.take(1))).is_pending());
        drop(large);
        assert_eq!(pool.free.available_permits(), 4);
    }
}
