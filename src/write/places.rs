//! The bound on files being written at a time: each takes a descriptor.
//!
//! Owns who waits and for how long. Does not own the files.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{Mutex, Notify};
use tokio::time::timeout;

use super::error::WriteError;

/// See above.
#[derive(Debug)]
pub struct Places {
    max: usize,
    wait_max: Duration,
    /// Staged files, and those that are about to be.
    taken: AtomicUsize,
    freed: Notify,
    /// Whose turn it is among those who wait.
    turn: Mutex<()>,
}

/// A place for one file, until it is dropped.
#[derive(Debug)]
pub struct Place(Arc<Places>);

impl Places {
    pub fn new(max: usize, wait_max: Duration) -> Arc<Self> {
        let (taken, freed, turn) = (AtomicUsize::new(0), Notify::new(), Mutex::default());
        Arc::new(Self { max, wait_max, taken, freed, turn })
    }

    pub fn max(&self) -> usize {
        self.max
    }

    /// Whether the next has to wait.
    pub fn is_full(&self) -> bool {
        self.taken.load(Ordering::SeqCst) >= self.max
    }

    /// A place, whether there is room or not: for what can't wait.
    pub fn take(self: &Arc<Self>) -> Place {
        self.taken.fetch_add(1, Ordering::SeqCst);
        Place(self.clone())
    }

    /// A place once there is room; ENFILE if that takes too long.
    pub async fn wait(self: &Arc<Self>) -> Result<Place, WriteError> {
        if let Some(place) = self.take_free() {
            return Ok(place);
        }
        let free = async {
            let _turn = self.turn.lock().await;
            loop {
                // Made before the look, so that what is freed in between wakes us.
                let freed = self.freed.notified();
                if let Some(place) = self.take_free() {
                    return place;
                }
                freed.await;
            }
        };
        let full = |_| WriteError::disk(libc::ENFILE, "too many files are being written");
        timeout(self.wait_max, free).await.map_err(full)
    }

    fn take_free(self: &Arc<Self>) -> Option<Place> {
        let more = |taken| (taken < self.max).then_some(taken + 1);
        let taken = self.taken.fetch_update(Ordering::SeqCst, Ordering::SeqCst, more);
        taken.ok().map(|_| Place(self.clone()))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(1, Ordering::SeqCst);
        self.0.freed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn ten_thousand_writers_at_once_wait_and_none_is_refused() {
        let places = Places::new(10, Duration::from_secs(60));
        let mut tasks = Vec::new();
        for _ in 0..10_000 {
            let places = places.clone();
            tasks.push(tokio::spawn(async move {
                let _place = places.wait().await.expect("a turn");
                assert!(places.taken.load(Ordering::SeqCst) <= 10);
                tokio::task::yield_now().await;
            }));
        }
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(places.taken.load(Ordering::SeqCst), 0);
    }

    #[tokio::test]
    async fn who_waits_too_long_is_told() {
        let places = Places::new(1, Duration::from_millis(20));
        let first = places.wait().await.unwrap();
        let second = places.wait().await;
        assert!(matches!(second, Err(WriteError::Disk { errno: libc::ENFILE, .. })), "{second:?}");
        drop(first);
        places.wait().await.unwrap();
    }
}
