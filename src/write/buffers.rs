//! Buffers for the bodies of uploads, bounded in bytes over all files.
//!
//! Owns the bound and the reuse. Does not own what is read into them.

use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::sleep;

/// The bound is counted in such units; also what the smallest request counts for, so that with the
/// default of 128 MiB at most 512 small files go up at a time.
const UNIT_BYTES: u64 = 256 << 10;
/// Smaller buffers are left to the allocator.
const REUSED_BYTES_MIN: usize = 1 << 20;
/// Idle buffers are kept for so long: new ones, touched page by page, cost as much processor as
/// reading and sending what goes into them.
const KEPT: Duration = Duration::from_secs(2);

/// Hands out buffers while they fit into the bound; then they are waited for, in turn.
#[derive(Debug)]
pub struct Buffers {
    free: Arc<Semaphore>,
    units: u32,
    idle: Mutex<Idle>,
    runtime: Handle,
}

#[derive(Debug, Default)]
struct Idle {
    buffers: Vec<Vec<u8>>,
    /// What those in use take.
    used_bytes: u64,
    /// Somebody will look whether they are still wanted.
    look_planned: bool,
}

impl Idle {
    fn reuse(&mut self, len: usize) -> Option<Vec<u8>> {
        let fits = |buffer: &Vec<u8>| (len..=2 * len).contains(&buffer.capacity());
        let found = self.buffers.iter().position(fits)?;
        let mut buffer = self.buffers.swap_remove(found);
        buffer.resize(len, 0);
        Some(buffer)
    }
}

impl Buffers {
    pub fn new(bytes_max: u64, runtime: Handle) -> Arc<Self> {
        let units = bytes_max.div_ceil(UNIT_BYTES).clamp(1, u64::from(u32::MAX)) as u32;
        let free = Arc::new(Semaphore::new(units as usize));
        Arc::new(Self { free, units, idle: Mutex::default(), runtime })
    }

    pub fn bytes_max(&self) -> u64 {
        u64::from(self.units) * UNIT_BYTES
    }

    /// A buffer of `len` bytes with anything in it. One larger than the bound waits for all the
    /// others and is then had alone.
    pub async fn take(self: &Arc<Self>, len: usize) -> (Buffer, Room) {
        let room = self.room(len).await;
        let mut idle = self.idle.lock();
        let bytes = idle.reuse(len).unwrap_or_else(|| vec![0; len]);
        idle.used_bytes += bytes.capacity() as u64;
        self.trim(&mut idle);
        drop(idle);
        (Buffer { bytes, pool: self.clone() }, room)
    }

    /// Only the place, for a request whose body takes `len` bytes of memory.
    pub async fn room(self: &Arc<Self>, len: usize) -> Room {
        let units = (len as u64).div_ceil(UNIT_BYTES).clamp(1, u64::from(self.units)) as u32;
        let permit = self.free.clone().acquire_many_owned(units).await;
        Room { _permit: permit.expect("the semaphore is never closed") }
    }

    /// Idle buffers stand within the bound too, together with those in use.
    fn trim(&self, idle: &mut Idle) {
        let mut kept = self.bytes_max().saturating_sub(idle.used_bytes);
        idle.buffers.retain(|buffer| {
            let left = kept.checked_sub(buffer.capacity() as u64);
            kept = left.unwrap_or(kept);
            left.is_some()
        });
    }

    fn put_back(self: &Arc<Self>, buffer: Vec<u8>) {
        let mut idle = self.idle.lock();
        idle.used_bytes -= buffer.capacity() as u64;
        if buffer.capacity() >= REUSED_BYTES_MIN {
            idle.buffers.push(buffer);
        }
        self.trim(&mut idle);
        if idle.used_bytes == 0
            && !idle.buffers.is_empty()
            && !std::mem::replace(&mut idle.look_planned, true)
        {
            self.runtime.spawn(give_back(Arc::downgrade(self)));
        }
    }
}

/// Gives idle buffers back to the system once nothing goes up.
async fn give_back(pool: Weak<Buffers>) {
    loop {
        sleep(KEPT).await;
        let Some(pool) = pool.upgrade() else { return };
        let mut idle = pool.idle.lock();
        if idle.used_bytes == 0 {
            *idle = Idle::default();
            return;
        }
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
        self.pool.put_back(std::mem::take(&mut self.bytes));
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

    #[tokio::test(start_paused = true)]
    async fn buffers_are_used_again_within_the_bound_and_given_back_at_the_end() {
        let pool = Buffers::new(4 << 20, Handle::current());
        let busy = pool.take(1 << 20).await;
        let first = pool.take(2 << 20).await;
        let place = first.0.bytes.as_ptr();
        let second = pool.take(1 << 20).await;
        drop((second, first));
        let again = pool.take((2 << 20) - 5).await;
        assert_eq!((again.0.bytes.as_ptr(), again.0.bytes.len()), (place, (2 << 20) - 5));
        drop(again);
        drop(pool.take(3 << 20).await);
        let idle = || pool.idle.lock().buffers.iter().map(Vec::capacity).sum::<usize>();
        assert!(idle() <= 3 << 20);
        drop(busy);
        assert!(idle() >= 3 << 20, "kept for the next file");
        sleep(KEPT * 2).await;
        assert_eq!(idle(), 0);
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
