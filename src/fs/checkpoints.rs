//! Checkpoint directories: which inodes belong to one, and what this mount writes in them.
//!
//! What is written below a directory that a rule names goes up as uploads that show nothing
//! ([`Staged::prepare`](crate::write::Staged::prepare)), and becomes visible when the directory's
//! transaction is sealed (`checkpoint::protocol`). Until then the files are staged here, so that
//! this node sees everything at once.
//!
//! | file | what |
//! | --- | --- |
//! | `place` | from an inode to its checkpoint directory and the path in it |
//! | `write` | transactions begun and added to |
//! | `change` | removals and renames in them |
//! | `commit` | transactions frozen, sealed, published, lost |
//! | `tend` | when something is due: leases, rules, others' leftovers |
//! | `observe` | what others wrote, shown whole or not at all |
//! | `leave` | what is lost, not shown while it is taken away |
//! | `explicit` | commits that somebody asks for, and `user.trialfs.state` |
//! | `gc` | what the dead left for good |
//! | `waiting` | programs that wait for the store, which is no quiet |
//! | `writers` | processes that write, and whether a signal killed one |
//!
//! # Locks
//! A driver's lock is taken under an inode's `io` (a write begins a transaction), so whoever holds
//! a driver takes no `io`: what follows from a commit is done after the driver is let go.

mod change;
pub(in crate::fs) mod commit;
mod explicit;
mod gc;
mod leave;
mod observe;
mod place;
mod tend;
mod waiting;
mod write;
mod writers;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::bucket::{Bucket, Capabilities};
use crate::checkpoint::driver::Driver;
use crate::checkpoint::protocol::Accept;
use crate::checkpoint::record::{Entry, RelPath, Sign, TxnId, What, WriterId};
use crate::checkpoint::rules::{self, Rule, Table, Torn};
use crate::clock::Clock;
use crate::types::{Ino, Key, Name};
use crate::write::Prepared;

pub use explicit::{ACCEPT_TORN, COMMIT_XATTR, Losses, STATE_XATTR};
pub(in crate::fs) use explicit::{CloseAs, Named};
pub use gc::{LEFT_OVER_MIN, Sweep, Swept};
pub(in crate::fs) use observe::{Sealed, Settled, Unsealed};
pub use place::Place;
use waiting::{Changed, Waits};
use writers::Writers;

pub use writers::is_older_than_us;

/// Directories kept in mind that this mount writes nothing in; past it the idle ones are forgotten.
const REMEMBERED_MAX: usize = 4096;

/// Lost transactions of one directory whose writers may still write on; more are told nothing.
const UNTOLD_MAX: usize = 64;

/// Directories that `status` names.
const NAMED_MAX: usize = 100;

/// How checkpoint directories are known and committed.
#[derive(Clone, Debug)]
pub struct CheckpointConfig {
    pub table: Table,
    /// After how long without a sign of life others take a transaction over.
    pub lease: Duration,
    /// After how long without a write a directory whose sign never came is sealed.
    pub commit_max: Duration,
    /// How long a reader or a commit record waits for a commit.
    pub commit_wait: Duration,
    /// Whether the process of a thread began before this mount did.
    pub is_older: fn(u32) -> bool,
}

impl Default for CheckpointConfig {
    fn default() -> Self {
        Self {
            table: Table::new(Vec::new(), rules::COMMIT_IDLE_DEFAULT),
            lease: LEASE_DEFAULT,
            commit_max: rules::COMMIT_MAX_DEFAULT,
            commit_wait: rules::COMMIT_WAIT_DEFAULT,
            is_older: is_older_than_us,
        }
    }
}

/// How long a transaction lives without a sign of life.
pub const LEASE_DEFAULT: Duration = Duration::from_secs(30);

/// What `status` tells of this mount's transactions.
#[derive(Debug, Clone, Default, serde::Serialize)]
pub struct CheckpointStatus {
    pub open: u64,
    /// Complete here, and waiting for other nodes or a sign.
    pub waiting: u64,
    pub committed: u64,
    /// Torn, or taken over: what was written is in the quarantine.
    pub lost: u64,
    /// Those that are open or wait.
    pub names: Vec<String>,
}

/// Every checkpoint directory that this mount has met.
pub(super) struct Checkpoints {
    config: CheckpointConfig,
    writer: WriterId,
    met: Mutex<HashMap<String, Arc<Checkpoint>>>,
    /// By their directory's inode, those whose content is lost and still here.
    leaving: leave::AllLeaving,
}

/// One checkpoint directory.
#[derive(Debug)]
pub struct Checkpoint {
    /// The key of its parent, without a `/` at its end.
    pub dir: String,
    /// Its name once it is complete.
    pub child: Name,
    pub driver: tokio::sync::Mutex<Driver>,
    pub state: Mutex<State>,
    /// Something happened that may make something due.
    pub wake: Notify,
}

/// What this mount does in it.
#[derive(Debug, Default)]
pub struct State {
    pub rule: Option<Rule>,
    /// What is being written.
    pub open: Option<Transaction>,
    /// What only waits to be sealed and published. Never changed.
    pub frozen: Vec<Transaction>,
    /// Whether a task looks after it.
    pub tended: bool,
    /// Programs that wait for what the store says of a name here.
    pub waits: Waits,
    /// The losses that somebody who asked for a commit takes.
    pub accept: Accept,
    /// How many transactions were committed.
    pub committed: u64,
    /// Those that are lost: what was opened in one of them joins no later one, however long its
    /// upload takes.
    pub lost: BTreeSet<TxnId>,
    /// Losses that a process which writes on was told of, or will be.
    pub told: BTreeSet<TxnId>,
    /// Who wrote in what is lost and does not know yet.
    pub untold: Vec<Writers>,
}

/// A transaction of this mount.
#[derive(Debug)]
pub struct Transaction {
    pub id: TxnId,
    pub begun: bool,
    /// The directory's inode here.
    pub root: Ino,
    /// The name it is written under, where that is not its own yet.
    pub written_as: Option<Name>,
    pub members: BTreeMap<RelPath, Member>,
    pub changed: Changed,
    pub heard: Option<Sign>,
    pub torn: Torn,
    pub renewed: Instant,
    pub writers: Writers,
    /// Uploads that a later word made useless.
    pub spare: Vec<(Key, String)>,
}

/// What a transaction makes of one name.
#[derive(Debug, Clone)]
pub struct Member {
    pub entry: Entry,
    /// The staged file it is made of; none for a removal.
    pub file: Option<(Ino, Prepared)>,
}

/// What a store must do for transactions: without it directories appear file by file.
pub fn can_commit(can: &Capabilities) -> bool {
    can.create_if_absent && can.replace_if_match && can.multipart && can.list_after_write
}

impl Checkpoints {
    pub fn new(config: CheckpointConfig, mount_id: &str) -> Self {
        let writer = WriterId::new(mount_id).expect("a mount id is a ULID");
        Self { config, writer, met: Mutex::default(), leaving: leave::AllLeaving::default() }
    }

    pub fn config(&self) -> &CheckpointConfig {
        &self.config
    }

    pub fn writer(&self) -> &WriterId {
        &self.writer
    }

    /// The directory `child` of `dir`, met before or now.
    pub fn at(
        &self,
        bucket: &Arc<Bucket>,
        clock: &Arc<dyn Clock>,
        dir: &str,
        child: &Name,
    ) -> Arc<Checkpoint> {
        let key = format!("{dir}/{child}");
        let mut met = self.met.lock();
        if let Some(found) = met.get(&key) {
            return found.clone();
        }
        if met.len() >= REMEMBERED_MAX {
            met.retain(|_, met| Arc::strong_count(met) > 1 || met.is_busy());
        }
        let (dir, writer) = (dir.to_owned(), self.writer.clone());
        let driver = Driver::new(bucket.clone(), clock.clone(), dir.clone(), child.clone(), writer);
        let checkpoint = Arc::new(Checkpoint {
            dir,
            child: child.clone(),
            driver: tokio::sync::Mutex::new(driver),
            state: Mutex::default(),
            wake: Notify::new(),
        });
        met.insert(key, checkpoint.clone());
        checkpoint
    }

    /// What a directory goes by that only its records say to be a checkpoint: a rule that knows
    /// them by content, and so stays hidden until its sign.
    pub fn rule_without_name(&self) -> Option<Rule> {
        let by_content = |rule: &&Rule| matches!(rule.known_by, rules::KnownBy::Content(_));
        self.config.table.rules().iter().find(by_content).cloned()
    }

    pub fn find(&self, dir: &str, child: &Name) -> Option<Arc<Checkpoint>> {
        self.met.lock().get(&format!("{dir}/{child}")).cloned()
    }

    pub fn status(&self) -> CheckpointStatus {
        let mut status = CheckpointStatus::default();
        for met in self.met.lock().values() {
            let state = met.state.lock();
            status.open += u64::from(state.open.is_some());
            status.waiting += state.frozen.len() as u64;
            status.committed += state.committed;
            status.lost += state.lost.len() as u64;
            if (state.open.is_some() || !state.frozen.is_empty()) && status.names.len() < NAMED_MAX
            {
                status.names.push(met.name());
            }
        }
        status
    }

    /// Those in which this mount writes.
    pub fn busy(&self) -> Vec<Arc<Checkpoint>> {
        self.met.lock().values().filter(|met| met.is_busy()).cloned().collect()
    }
}

impl Checkpoint {
    /// Whether something of this mount is not published yet.
    pub fn is_busy(&self) -> bool {
        let state = self.state.lock();
        state.open.is_some() || !state.frozen.is_empty()
    }

    /// The key of a name in it.
    pub fn key_of(&self, rel: &RelPath) -> Key {
        let slash = if self.dir.is_empty() { "" } else { "/" };
        Key::new(format!("{}{slash}{}/{}", self.dir, self.child, rel.as_str()))
    }

    /// For messages.
    pub fn name(&self) -> String {
        self.key_of(&RelPath::root()).as_str().trim_end_matches('/').to_owned()
    }
}

impl State {
    /// What is being written, if the inode `root` is the directory of that.
    pub fn open_at(&mut self, root: Ino) -> Option<&mut Transaction> {
        self.open.as_mut().filter(|open| open.root == root)
    }

    /// Takes out what is open: it is lost.
    pub fn lose_open(&mut self) -> Option<Transaction> {
        let open = self.open.take()?;
        self.lost.insert(open.id);
        Some(open)
    }

    /// Those who wrote in what is lost are to hear of it if they write on.
    pub fn will_tell(&mut self, mut writers: Writers) {
        writers.forget_killed();
        self.untold.retain(|writers| !writers.is_empty());
        if !writers.is_empty() && self.untold.len() < UNTOLD_MAX {
            self.untold.push(writers);
        }
    }

    /// Takes a frozen one out.
    pub fn take_frozen(&mut self, id: TxnId) -> Option<Transaction> {
        let at = self.frozen.iter().position(|txn| txn.id == id)?;
        Some(self.frozen.remove(at))
    }

    /// Whether a name that the bucket has is gone by a word that is not sealed yet.
    pub fn hides(&self, rel: &RelPath) -> bool {
        let all = self.frozen.iter().chain(&self.open);
        let last = all.filter_map(|txn| txn.members.get(rel)).next_back();
        last.is_some_and(|member| matches!(member.entry.what, What::Removed { .. }))
    }
}
