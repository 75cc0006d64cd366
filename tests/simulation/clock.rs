//! Virtual time and seeded chance.
//!
//! Owns the clock that mounts get and the dice of the world. Does not own what they decide.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use trialfs::clock::Clock;

/// 2026-01-01 in seconds since the epoch: when every world begins.
const BEGINNING_S: u64 = 1_767_225_600;

/// One step of splitmix64.
pub fn mix(state: u64) -> u64 {
    let z = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A number that follows from a seed and words, the same in every run.
pub fn drawn(seed: u64, words: &[&str]) -> u64 {
    let mut state = mix(seed);
    for byte in words.iter().flat_map(|word| word.bytes().chain([0])) {
        state = mix(state ^ u64::from(byte));
    }
    state
}

/// A seeded stream of numbers.
#[derive(Debug)]
pub struct Dice(AtomicU64);

impl Dice {
    pub fn new(seed: u64, name: &str) -> Self {
        Self(AtomicU64::new(drawn(seed, &[name])))
    }

    pub fn number(&self) -> u64 {
        mix(self.0.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed))
    }

    /// From 0 to `n` - 1.
    pub fn below(&self, n: u64) -> u64 {
        self.number() % n.max(1)
    }

    pub fn chance(&self, percent: u64) -> bool {
        self.below(100) < percent
    }

    pub fn ms(&self, from: u64, to: u64) -> Duration {
        Duration::from_millis(from + self.below(to - from))
    }
}

/// The runtime's paused time, and random numbers of one mount's life.
#[derive(Debug)]
pub struct SimClock {
    dice: Dice,
    start: tokio::time::Instant,
}

impl SimClock {
    pub fn new(seed: u64, name: &str, start: tokio::time::Instant) -> Self {
        Self { dice: Dice::new(seed, name), start }
    }
}

impl Clock for SimClock {
    fn now(&self) -> Instant {
        tokio::time::Instant::now().into_std()
    }

    fn wall(&self) -> SystemTime {
        let passed = tokio::time::Instant::now() - self.start;
        SystemTime::UNIX_EPOCH + Duration::from_secs(BEGINNING_S) + passed
    }

    fn random(&self) -> u64 {
        self.dice.number()
    }
}
