//! Whole mounts over a bucket that fails, in virtual time, from one seed each.
//!
//! A seed draws a network, some checkpoint directories with the trainers that write them, the
//! observers, and who is killed or crashes when. Everything else follows, so that a seed that
//! breaks the contract does so again: `TRIALFS_SIM_SEED=n` runs one, with its story if
//! `TRIALFS_SIM_STORY` is set. `TRIALFS_SIM_COUNT` of them run from `TRIALFS_SIM_FIRST` on, more
//! under `TRIALFS_TEST_FULL`; `TRIALFS_SIM_TRAINER` (0 to 5) draws one kind of trainer alone.
//!
//! Time passes only when nothing is left to do at an instant, and requests arrive at instants of
//! their own. What is not drawn is the order in which blocking threads end, of which
//! there is one; files here are small enough to be read in place.

#[path = "simulation/clock.rs"]
mod clock;
#[path = "simulation/content.rs"]
mod content;
#[path = "simulation/entropy.rs"]
mod entropy;
#[path = "simulation/mounts.rs"]
mod mounts;
#[path = "simulation/observers.rs"]
mod observers;
#[path = "simulation/oracle.rs"]
mod oracle;
#[path = "simulation/play.rs"]
mod play;
#[path = "support/mounts.rs"]
mod setup;
#[path = "simulation/store.rs"]
mod store;
#[path = "simulation/teams.rs"]
mod teams;
#[path = "simulation/world.rs"]
mod world;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use play::{Outcome, play};

/// Seeds of an ordinary run, and of a full one.
const SEEDS: u64 = 2_000;
const SEEDS_FULL: u64 = 20_000;
/// Worlds at a time; each is one thread.
const THREADS: usize = 2;

fn seeds() -> Vec<u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    if let Some(one) = number("TRIALFS_SIM_SEED") {
        return vec![one];
    }
    let full = std::env::var_os("TRIALFS_TEST_FULL").is_some();
    let count = number("TRIALFS_SIM_COUNT").unwrap_or(if full { SEEDS_FULL } else { SEEDS });
    let first = number("TRIALFS_SIM_FIRST").unwrap_or(1);
    (first..first + count).collect()
}

/// Plays one seed on a thread of its own: its maps hash as the seed says.
fn on_its_own(seed: u64) -> Outcome {
    let thread = std::thread::Builder::new().stack_size(16 << 20);
    thread.spawn(move || play(seed)).unwrap().join().unwrap_or_else(|panic| {
        let what = panic.downcast_ref::<String>().cloned().unwrap_or_else(|| "a panic".to_owned());
        Outcome { violation: Some(what), ..Outcome::default() }
    })
}

#[test]
fn nobody_ever_sees_a_part_of_a_checkpoint() {
    #[allow(clippy::disallowed_methods)] // how long the test takes
    let started = Instant::now();
    let seeds = seeds();
    let next = AtomicU64::new(0);
    let all = parking_lot::Mutex::new((Outcome::default(), Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                while let Some(seed) = seeds.get(next.fetch_add(1, Ordering::Relaxed) as usize) {
                    let outcome = on_its_own(*seed);
                    let mut all = all.lock();
                    if let Some(violation) = &outcome.violation {
                        println!("seed {seed}: {}", violation.lines().next().unwrap_or(""));
                        all.1.push((*seed, violation.clone()));
                    }
                    all.0.add(&outcome);
                }
            });
        }
    });
    let (sum, mut failed) = all.into_inner();
    failed.sort();
    println!("{} seeds in {:?}: {sum}", seeds.len(), round(started.elapsed()));
    if let Some((seed, violation)) = failed.first() {
        panic!("{} seeds failed; TRIALFS_SIM_SEED={seed} reproduces: {violation}", failed.len());
    }
}

fn round(time: Duration) -> Duration {
    Duration::from_millis(time.as_millis() as u64)
}

#[test]
fn a_seed_plays_the_same_twice() {
    for seed in [3, 14, 159] {
        let (once, again) = (on_its_own(seed), on_its_own(seed));
        assert_eq!(once.trace, again.trace, "seed {seed}");
    }
}

#[test]
fn what_a_dead_node_left_for_good_goes_when_somebody_asks() {
    play::left_over(1).unwrap();
}
