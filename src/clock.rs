//! Time and randomness, taken in by argument everywhere so that a test owns both.
//!
//! The only file that may ask the system for either.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

/// Where time and random numbers come from.
pub trait Clock: Send + Sync + std::fmt::Debug {
    /// Monotonic time; what leases, deadlines and cache ages are measured with.
    fn now(&self) -> Instant;
    /// Wall time; what files are stamped with, and never compared between nodes.
    fn wall(&self) -> SystemTime;
    /// 64 random bits, for ids, nonces and jitter.
    fn random(&self) -> u64;
}

/// The system's own clock and generator.
#[derive(Debug, Default, Clone, Copy)]
pub struct SystemClock;

#[allow(clippy::disallowed_methods)] // the one place that may
impl Clock for SystemClock {
    fn now(&self) -> Instant {
        Instant::now()
    }

    fn wall(&self) -> SystemTime {
        SystemTime::now()
    }

    fn random(&self) -> u64 {
        rand::random()
    }
}

/// The system clock, shared.
pub fn system() -> Arc<dyn Clock> {
    Arc::new(SystemClock)
}

/// A random id of 26 characters that sorts by the time it was made (a ULID: 48 bits of ms, 80
/// random).
pub fn ulid(clock: &dyn Clock) -> String {
    const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
    let ms = clock.wall().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let high = u128::from(ms.as_millis() as u64 & 0xffff_ffff_ffff) << 80;
    let low =
        (u128::from(clock.random()) << 16 | u128::from(clock.random() as u16)) & ((1 << 80) - 1);
    let id = high | low;
    (0..26).rev().map(|i| ALPHABET[(id >> (5 * i)) as usize & 31] as char).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ulids_are_distinct_and_26_long() {
        let (a, b) = (ulid(&SystemClock), ulid(&SystemClock));
        assert_eq!(a.len(), 26);
        assert_ne!(a, b);
    }
}
