//! One seed, from its draw to the judgement of what is left.
//!
//! Owns the cast, the crashes, and what must hold at the end. Does not own actors.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::task::LocalSet;
use trialfs::fs::checkpoints::{Sweep, Swept};

use super::clock::Dice;
use super::mounts::{LEASE, Mount};
use super::observers::Observer;
use super::oracle::Fate;
use super::store::weather;
use super::teams::{TRAINERS, Team, Trainer};
use super::world::{Counts, World};

/// How long a world may take before it counts as hung, of its own time.
const WORLD_S_MAX: Duration = Duration::from_secs(4 * 3600);
/// After the last fault everything is to be settled within this.
const SETTLED_S: Duration = Duration::from_secs(200);
/// Between two looks of an observer, at most: while things happen, and while they settle.
const LOOK_MS_MAX: u64 = 700;
const LOOK_SETTLED_MS_MAX: u64 = 10_000;
/// Tries at the last round of a directory: others' leases must first be over.
const LAST_TRIES_MAX: usize = 6;

/// What one seed, or many, came to.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    pub violation: Option<String>,
    pub trace: u64,
    pub requests: u64,
    pub faults: u64,
    pub crashes: u64,
    pub operations: u64,
    pub refused: u64,
    pub observations: u64,
    pub raw: u64,
    pub rounds: u64,
    pub committed: u64,
    pub seconds: u64,
}

impl Outcome {
    pub fn add(&mut self, other: &Outcome) {
        self.requests += other.requests;
        self.faults += other.faults;
        self.crashes += other.crashes;
        self.operations += other.operations;
        self.refused += other.refused;
        self.observations += other.observations;
        self.raw += other.raw;
        self.rounds += other.rounds;
        self.committed += other.committed;
        self.seconds += other.seconds;
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} rounds ({} seen), {} operations ({} refused), {} requests, {} faults, {} crashes, \
             {} observations by mounts, {} by a raw client, {} s of virtual time",
            self.rounds,
            self.committed,
            self.operations,
            self.refused,
            self.requests,
            self.faults,
            self.crashes,
            self.observations,
            self.raw,
            self.seconds,
        )
    }
}

/// Plays a seed.
pub fn play(seed: u64) -> Outcome {
    super::entropy::seed_this_thread(seed);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .max_blocking_threads(1)
        .build()
        .unwrap();
    let local = LocalSet::new();
    local.block_on(&runtime, async move {
        let world = World::new(seed);
        let acted = tokio::time::timeout(WORLD_S_MAX, act(&world)).await;
        if acted.is_err() {
            world.violated("it hangs");
        }
        outcome(&world)
    })
}

fn outcome(world: &World) -> Outcome {
    let counts = &world.counts;
    let seen = world.directories.lock().values().map(|d| d.seen_rounds()).sum();
    Outcome {
        violation: world.violation(),
        trace: world.trace(),
        requests: Counts::of(&counts.requests),
        faults: Counts::of(&counts.faults),
        crashes: Counts::of(&counts.crashes),
        operations: Counts::of(&counts.operations),
        refused: Counts::of(&counts.refused),
        observations: Counts::of(&counts.observations),
        raw: Counts::of(&counts.raw),
        rounds: Counts::of(&counts.rounds),
        committed: seen,
        seconds: world.uptime().as_secs(),
    }
}

async fn act(world: &Arc<World>) {
    let weather = weather(&world.dice);
    world.tell(format!("seed {}: {} % faults, latency {:?}", world.seed, weather.0, weather.1));
    let writers: Vec<Arc<Mount>> =
        ["A", "B", "C"].iter().map(|name| Mount::new(world, name, weather)).collect();
    let observers: Vec<Observer> = (0..1 + world.dice.below(2))
        .map(|number| Observer {
            world: world.clone(),
            mount: Mount::new(world, &format!("O{number}"), weather),
            dice: Dice::new(world.seed, &format!("observer {number}")),
        })
        .collect();
    let teams = teams(world, &writers);
    let mut mounts = writers.clone();
    mounts.extend(observers.iter().map(|observer| observer.mount.clone()));
    let work = teams.iter().map(|team| team.clone().work(1 + world.dice.below(4)));
    let work = futures::future::join_all(work.collect::<Vec<_>>());
    let crashes = crashes(world, &mounts);
    let watch = async {
        let watching: Vec<_> =
            observers.iter().map(|observer| observer.watch(LOOK_MS_MAX)).collect();
        futures::future::join_all(watching).await
    };
    tokio::select! {
        biased;
        _ = async { tokio::join!(work, crashes) } => {}
        _ = watch => {}
    }
    world.tell("faults end");
    world.faults.store(false, Ordering::Relaxed);
    let watch = async {
        let watching: Vec<_> =
            observers.iter().map(|observer| observer.watch(LOOK_SETTLED_MS_MAX)).collect();
        futures::future::join_all(watching).await
    };
    tokio::select! {
        biased;
        _ = tokio::time::sleep(SETTLED_S) => {}
        _ = watch => {}
    }
    finish(world, &teams, &observers).await;
    settled(world, &mounts).await;
}

fn teams(world: &Arc<World>, writers: &[Arc<Mount>]) -> Vec<Arc<Team>> {
    let count = 1 + world.dice.below(3);
    let team = |number| {
        let only = std::env::var("TRIALFS_SIM_TRAINER").ok().and_then(|n| n.parse::<u64>().ok());
        let drawn = world.dice.below(TRAINERS.len() as u64);
        let trainer = TRAINERS[only.unwrap_or(drawn) as usize];
        let first = world.dice.below(writers.len() as u64) as usize;
        let ranks = (0..Team::ranks_wanted(trainer))
            .map(|rank| writers[(first + rank) % writers.len()].clone());
        Arc::new(Team {
            world: world.clone(),
            trainer,
            number,
            ranks: ranks.collect(),
            dice: Dice::new(world.seed, &format!("team {number}")),
        })
    };
    (1..=count).map(team).collect()
}

async fn crashes(world: &World, mounts: &[Arc<Mount>]) {
    let count = [0, 0, 1, 3][world.dice.below(4) as usize];
    for _ in 0..count {
        tokio::time::sleep(world.dice.ms(100, 40_000)).await;
        mounts[world.dice.below(mounts.len() as u64) as usize].crash();
    }
}

/// Writes every directory once more, without faults, and has every observer see exactly that.
async fn finish(world: &Arc<World>, teams: &[Arc<Team>], observers: &[Observer]) {
    for team in teams {
        let directories: Vec<String> = match team.trainer {
            Trainer::Orbax => vec![team.directory(99)],
            _ => vec![team.directory(1)],
        };
        for directory in directories {
            let mut last = Err("never tried".to_owned());
            for _ in 0..LAST_TRIES_MAX {
                last = team.finish(&directory).await.map_err(|failure| format!("{failure:?}"));
                if last.is_ok() {
                    break;
                }
                tokio::time::sleep(LEASE).await;
            }
            let round = match last {
                Ok(round) => round,
                Err(error) => {
                    world.violated(format!("{directory} can't be written any more: {error}"));
                    continue;
                }
            };
            // A rename's commit may follow it.
            tokio::time::sleep(Duration::from_secs(5)).await;
            for observer in observers {
                match observer.look(&directory).await {
                    Err(failure) => {
                        world.violated(format!("{directory} can't be read: {failure:?}"));
                    }
                    Ok(seen) if !seen.values().any(|number| *number == round) => {
                        let found = format!("{seen:?} and not the last round, {round}");
                        world.violated(format!("{directory}: {found}"));
                    }
                    Ok(_) => {}
                }
            }
        }
    }
}

/// Nothing is left over.
async fn settled(world: &Arc<World>, mounts: &[Arc<Mount>]) {
    tokio::time::sleep(2 * LEASE).await;
    let mut lives = Vec::new();
    for mount in mounts {
        let status = mount.fs().status();
        lives.push(mount.life_name());
        // What a program was told of stays, and is named.
        let told = status.failed.len() as u64;
        if status.pending.files > told || (told == 0 && status.write.dirty_bytes > 0) {
            world.violated(format!(
                "{} still has {:?}, {} dirty bytes",
                mount.name(),
                status.pending,
                status.write.dirty_bytes
            ));
        }
    }
    for key in undecided(world) {
        world.violated(format!("{key} is still open"));
    }
    // What a record names is aborted with that record.
    let records: Vec<_> = world.memory.objects().into_iter().collect();
    let named = |id: &str| {
        let id = format!("/{id}\"");
        records.iter().any(|(key, body)| {
            key.contains("/.trialfs/txn.") && String::from_utf8_lossy(body).contains(&id)
        })
    };
    let uploads = world.uploads.lock().clone();
    for (id, upload) in uploads.into_iter().filter(|(id, _)| !named(id)) {
        let Some((directory, round)) = upload.told.filter(|_| lives.contains(&upload.life)) else {
            continue;
        };
        let fate = world.in_directory(&directory, |d| d.round(round).map(|round| round.fate));
        if fate == Some(Fate::Finished) {
            let of = format!("{} of round {round} by {}", upload.key, upload.life);
            world.violated(format!("upload {id} for {of} is still open"));
        }
    }
}

/// Heads that are open and that no seal gave up.
fn undecided(world: &World) -> Vec<String> {
    let objects = world.memory.objects();
    let records = objects.iter().filter_map(|(key, body)| {
        let child = key.split_once("/.trialfs/txn.")?.1.split('.').next()?;
        let record: serde_json::Value = serde_json::from_slice(body).ok()?;
        Some((key, child.to_owned(), record))
    });
    let records: Vec<_> = records.collect();
    let given_up = |child: &str, head: &serde_json::Value| {
        records.iter().filter(|(_, of, seal)| of == child && seal["record"] == "seal").any(
            |(_, _, seal)| {
                let void = seal["verdict"] == "void";
                let named = seal["dropped"].as_array().is_some_and(|d| d.contains(&head["txn"]));
                named || void && seal["generation"].as_u64() >= head["generation"].as_u64()
            },
        )
    };
    let open = records
        .iter()
        .filter(|(_, child, record)| record["state"] == "open" && !given_up(child, record));
    open.map(|(key, ..)| (*key).clone()).collect()
}

/// A node dies in the midst of a save whose sign never comes; what it left goes by `gc`, when it is
/// old, and no sooner.
pub fn left_over(seed: u64) -> Result<(), String> {
    super::entropy::seed_this_thread(seed);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .max_blocking_threads(1)
        .build()
        .unwrap();
    LocalSet::new().block_on(&runtime, async move {
        let world = World::new(seed);
        let clear = (0, Duration::from_millis(10));
        let (dead, other) = (Mount::new(&world, "A", clear), Mount::new(&world, "B", clear));
        let dcp = |number| Team {
            world: world.clone(),
            trainer: Trainer::Dcp,
            number,
            ranks: vec![dead.clone()],
            dice: Dice::new(seed, "team"),
        };
        for number in 1..=2 {
            dcp(number).begin_and_stop("dcp", number).await;
        }
        tokio::time::sleep(Duration::from_secs(2)).await; // the first is prepared by then
        dead.crash();
        let sweep = async |mode| {
            let day = Duration::from_secs(24 * 3600);
            other.fs().sweep(day, mode).await.map_err(|error| error.to_string())
        };
        let young = sweep(Sweep::Remove).await?;
        ensure(young.given_up.is_empty() && young.undecided == 2, format!("young: {young:?}"))?;
        tokio::time::sleep(Duration::from_secs(25 * 3600)).await;
        let records = |world: &World| {
            let objects = world.memory.objects();
            objects.keys().filter(|key| key.contains(".trialfs/txn.")).cloned().collect::<Vec<_>>()
        };
        let before = records(&world);
        let told = sweep(Sweep::Tell).await?;
        ensure(told.given_up == ["exp/dcp1", "exp/dcp2"], format!("told: {told:?}"))?;
        ensure(records(&world) == before, "a dry run changed something")?;
        let swept = sweep(Sweep::Remove).await?;
        ensure(swept == told, format!("swept: {swept:?}"))?;
        let left = records(&world);
        let only_numbers = left.iter().all(|key| key.contains(".done."));
        ensure(only_numbers, format!("records stay: {left:?}"))?;
        // Of the second no record names them: the bucket's own rule ends those.
        let uploads = world.uploads.lock().clone();
        let stay = uploads.values().any(|upload| upload.key.contains("dcp1/"));
        ensure(!stay, format!("uploads stay: {uploads:?}"))?;
        let again = sweep(Sweep::Remove).await?;
        ensure(again == Swept::default(), format!("again: {again:?}"))
    })
}

fn ensure(holds: bool, or: impl Into<String>) -> Result<(), String> {
    if holds { Ok(()) } else { Err(or.into()) }
}
