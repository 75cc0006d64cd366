//! What all actors of one seed share: the bucket, the dice, the history, and what was counted.
//!
//! Owns the judgement of what a raw client sees after every request, and the first violation. Does
//! not own what requests suffer (`store`).

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use trialfs::bucket::memory::MemoryStore;

use super::clock::{Dice, SimClock, mix};
use super::content;
use super::oracle::Directory;

/// Lines of the story that a failing seed prints.
const STORY_LINES_MAX: usize = 400;
/// The directory that everything happens in.
pub const TOP: &str = "exp";

#[derive(Debug, Default)]
pub struct Counts {
    pub requests: AtomicU64,
    pub faults: AtomicU64,
    pub crashes: AtomicU64,
    pub operations: AtomicU64,
    pub refused: AtomicU64,
    pub observations: AtomicU64,
    pub raw: AtomicU64,
    pub rounds: AtomicU64,
}

impl Counts {
    pub fn one(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }

    pub fn of(counter: &AtomicU64) -> u64 {
        counter.load(Ordering::Relaxed)
    }
}

pub struct World {
    pub seed: u64,
    pub start: tokio::time::Instant,
    pub memory: Arc<MemoryStore>,
    pub dice: Dice,
    pub faults: AtomicBool,
    /// Of each directory below [`TOP`].
    pub directories: Mutex<BTreeMap<String, Directory>>,
    pub counts: Counts,
    /// Uploads by id: whose they are, as their first part tells, and which life made them.
    pub uploads: Mutex<BTreeMap<String, UploadOf>>,
    /// Of each version ever: its path below [`TOP`], and the round.
    pub versions: Mutex<BTreeMap<String, (String, u64)>>,
    story: Mutex<Vec<String>>,
    trace: AtomicU64,
    violation: Mutex<Option<String>>,
    instants: Mutex<HashSet<u64>>,
    processes: AtomicU32,
}

#[derive(Debug, Clone, Default)]
pub struct UploadOf {
    pub key: String,
    pub life: String,
    pub told: Option<(String, u64)>,
}

impl World {
    pub fn new(seed: u64) -> Arc<Self> {
        let start = tokio::time::Instant::now();
        let clock = Arc::new(SimClock::new(seed, "store", start));
        Arc::new(Self {
            seed,
            start,
            memory: MemoryStore::new(clock),
            dice: Dice::new(seed, "world"),
            faults: AtomicBool::new(true),
            directories: Mutex::default(),
            counts: Counts::default(),
            uploads: Mutex::default(),
            versions: Mutex::default(),
            story: Mutex::default(),
            trace: AtomicU64::new(seed),
            violation: Mutex::default(),
            instants: Mutex::default(),
            processes: AtomicU32::default(),
        })
    }

    pub fn next_process(&self) -> u32 {
        self.processes.fetch_add(1, Ordering::Relaxed)
    }

    pub fn uptime(&self) -> Duration {
        tokio::time::Instant::now() - self.start
    }

    /// A free millisecond at least `after` from now: what arrives does so one at a time, so that
    /// the order does not hang on who was woken first.
    pub fn instant(&self, after: Duration) -> tokio::time::Instant {
        let mut ms = (self.uptime() + after).as_millis() as u64 + 1;
        let mut taken = self.instants.lock();
        while !taken.insert(ms) {
            ms += 1;
        }
        self.start + Duration::from_millis(ms)
    }

    /// A line of the story. All lines together are what two runs of one seed must agree on.
    pub fn tell(&self, line: impl AsRef<str>) {
        let line = format!("{:>9.3} {}", self.uptime().as_secs_f64(), line.as_ref());
        let hash = line
            .bytes()
            .fold(self.trace.load(Ordering::Relaxed), |hash, byte| mix(hash ^ u64::from(byte)));
        self.trace.store(hash, Ordering::Relaxed);
        if std::env::var_os("TRIALFS_SIM_STORY").is_some() {
            eprintln!("{line}");
        }
        let mut story = self.story.lock();
        if story.len() >= 2 * STORY_LINES_MAX {
            story.drain(..STORY_LINES_MAX);
        }
        story.push(line);
    }

    pub fn trace(&self) -> u64 {
        self.trace.load(Ordering::Relaxed)
    }

    /// The contract is broken: the first time counts.
    pub fn violated(&self, what: impl AsRef<str>) {
        self.tell(format!("VIOLATED {}", what.as_ref()));
        let mut violation = self.violation.lock();
        if violation.is_none() {
            let story = self.story.lock();
            let from = story.len().saturating_sub(STORY_LINES_MAX);
            *violation = Some(format!("{}\n{}", what.as_ref(), story[from..].join("\n")));
        }
    }

    pub fn violation(&self) -> Option<String> {
        self.violation.lock().clone()
    }

    pub fn held(&self, who: &str, what: &str, result: Result<(), String>) {
        if let Err(error) = result {
            self.violated(format!("{who}: {what}: {error}"));
        }
    }

    /// With a directory's history.
    pub fn in_directory<T>(&self, name: &str, act: impl FnOnce(&mut Directory) -> T) -> T {
        act(self.directories.lock().entry(name.to_owned()).or_default())
    }

    /// After a request changed `key`: what a raw client sees of it.
    pub fn look_raw(&self, key: &str) {
        Counts::one(&self.counts.raw);
        let Some(rest) = key.strip_prefix(TOP).and_then(|rest| rest.strip_prefix('/')) else {
            return;
        };
        if let Some(record) = rest.strip_prefix(".trialfs/txn.") {
            return self.look_at_record(record);
        }
        let Some((directory, name)) = rest.split_once('/') else { return };
        if name.is_empty() || rest.contains(".trialfs/") || name.ends_with('/') {
            return;
        }
        let Some(bytes) = self.memory.objects().get(key).cloned() else { return };
        let told = content::round_of(directory, name, &bytes);
        let result = told.and_then(|round| {
            self.tell(format!("bucket: {directory}/{name} is of round {round}"));
            self.note_version(key, rest, round);
            self.in_directory(directory, |history| history.see_raw(name, round))
        });
        self.held("a raw client", key, result);
    }

    fn look_at_record(&self, record: &str) {
        let Some((child, kind)) = record.split_once('.') else { return };
        if kind.starts_with("seal.") {
            // Only `.` and the like are escaped in these names.
            let child = child.replace("%2E", ".");
            self.in_directory(&child, |history| history.sealed());
        }
    }
}
