//! Large buffers that are used again: memory that is new is touched page by page, and that costs
//! as much processor as reading and sending what goes into it.
//!
//! Owns the buffers that nobody uses. Does not own how many may be in use, which its users bound.
//!
//! What must hold: idle buffers stand within the bound together with those in use, and go back to
//! the system soon after the last was given back.

use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::time::sleep;

/// Smaller buffers are left to the allocator.
const REUSED_BYTES_MIN: usize = 1 << 20;
/// Idle buffers are kept for so long.
const KEPT: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub struct Pool {
    bytes_max: u64,
    idle: Mutex<Idle>,
    runtime: Handle,
}

#[derive(Debug, Default)]
struct Idle {
    /// The one that came back last is the last: most of it still is in the processor's cache.
    buffers: Vec<Vec<u8>>,
    /// What those in use take.
    used_bytes: u64,
    /// Somebody will look whether they are still wanted.
    look_planned: bool,
}

impl Idle {
    /// One that is hardly larger: those who use it were allowed so much memory as they asked for.
    fn reuse(&mut self, len: usize) -> Option<Vec<u8>> {
        let fits = |buffer: &Vec<u8>| (len..=len + len / 4).contains(&buffer.capacity());
        let found = self.buffers.iter().rposition(fits)?;
        Some(self.buffers.remove(found))
    }
}

impl Pool {
    /// Keeps idle buffers while they and those in use are within `bytes_max`. `runtime` runs the
    /// look after them.
    pub fn new(bytes_max: u64, runtime: Handle) -> Arc<Self> {
        Arc::new(Self { bytes_max, idle: Mutex::default(), runtime })
    }

    /// A buffer of `len` bytes with anything in it.
    pub fn take(self: &Arc<Self>, len: usize) -> Buffer {
        let reused = if len < REUSED_BYTES_MIN { None } else { self.reuse(len) };
        let mut bytes = reused.unwrap_or_else(|| vec![0; len]);
        bytes.resize(len, 0);
        Buffer { bytes, pool: self.clone() }
    }

    fn reuse(&self, len: usize) -> Option<Vec<u8>> {
        let mut idle = self.idle.lock();
        let reused = idle.reuse(len);
        idle.used_bytes += reused.as_ref().map_or(len, Vec::capacity) as u64;
        self.trim(&mut idle);
        reused
    }

    /// Of several that are idle those stay that came back last.
    fn trim(&self, idle: &mut Idle) {
        let mut kept = self.bytes_max.saturating_sub(idle.used_bytes);
        let mut first = idle.buffers.len();
        for buffer in idle.buffers.iter().rev() {
            let Some(left) = kept.checked_sub(buffer.capacity() as u64) else { break };
            kept = left;
            first -= 1;
        }
        idle.buffers.drain(..first);
    }

    fn put_back(self: &Arc<Self>, buffer: Vec<u8>) {
        if buffer.capacity() < REUSED_BYTES_MIN {
            return;
        }
        let mut idle = self.idle.lock();
        idle.used_bytes -= buffer.capacity() as u64;
        idle.buffers.push(buffer);
        self.trim(&mut idle);
        if idle.used_bytes == 0
            && !idle.buffers.is_empty()
            && !std::mem::replace(&mut idle.look_planned, true)
        {
            self.runtime.spawn(give_back(Arc::downgrade(self)));
        }
    }
}

/// Gives idle buffers back to the system once none is used.
async fn give_back(pool: Weak<Pool>) {
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

/// A buffer that goes back when it, or the last copy of what was made of it, is dropped.
#[derive(Debug)]
pub struct Buffer {
    pub bytes: Vec<u8>,
    pool: Arc<Pool>,
}

impl Buffer {
    /// The same bytes, shared.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn buffers_are_used_again_within_the_bound_and_given_back_at_the_end() {
        let pool = Pool::new(4 << 20, Handle::current());
        let busy = pool.take(1 << 20);
        let first = pool.take(2 << 20);
        let place = first.bytes.as_ptr();
        let second = pool.take(1 << 20);
        drop((second, first));
        let again = pool.take((2 << 20) - 5);
        assert_eq!((again.bytes.as_ptr(), again.bytes.len()), (place, (2 << 20) - 5));
        drop(again);
        drop(pool.take(3 << 20));
        let idle = || pool.idle.lock().buffers.iter().map(Vec::capacity).sum::<usize>();
        assert_eq!(idle(), 3 << 20, "the last that came back");
        drop(busy);
        assert!(idle() >= 3 << 20, "kept for the next file");
        sleep(KEPT * 2).await;
        assert_eq!(idle(), 0);
    }
}
