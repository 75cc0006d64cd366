//! What dead nodes left of checkpoint directories, and records that nobody needs any more.
//!
//! Owns the walk over all records below the mount, and what counts as left over: a transaction that
//! never got its sign and that nobody touched for a long time, by the store's own clock. Does not
//! own how it is given up (`checkpoint::protocol`). Uploads that no record names are not known:
//! those are for the bucket's own rule that aborts old uploads.
//!
//! Cost: 1 LIST for each 1,000 keys below the mount; for each directory with records 2 LISTs and a
//! GET for each record that is new, then what is removed.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::Checkpoint;
use super::tend::RECORDS_KEPT;
use crate::bucket::{BucketError, ListedObject};
use crate::checkpoint::driver::Driver;
use crate::checkpoint::protocol::Intent;
use crate::checkpoint::record::{Escaped, Generation, KeyKind, RecordKey, TxnId};
use crate::fs::Fs;
use crate::types::CONTROL_DIR;

/// The least age of what is given up: whoever lives gives a sign of life far more often, and no
/// request is so late.
pub const LEFT_OVER_MIN: Duration = RECORDS_KEPT;
/// Directories that a report names; more are counted.
const NAMED_MAX: usize = 1000;

/// Whether anything is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sweep {
    Tell,
    Remove,
}

/// What was found, or done.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Swept {
    /// Directories of which something was given up that was never committed.
    pub given_up: Vec<String>,
    /// Directories whose old records were removed.
    pub cleared: Vec<String>,
    /// Undecided ones that are too young, or are being written.
    pub undecided: u64,
    /// Whose records could not be read, or whose name only a record tells.
    pub skipped: u64,
}

/// The records of one directory as the walk saw them: how long ago each was written.
type Ages = HashMap<KeyKind, Duration>;

impl Fs {
    /// Gives up what nobody touched for `older_than` ([`LEFT_OVER_MIN`] at least), and removes
    /// records that are no longer needed.
    pub async fn sweep(&self, older_than: Duration, sweep: Sweep) -> Result<Swept, BucketError> {
        let older_than = older_than.max(LEFT_OVER_MIN);
        let mut swept = Swept::default();
        let page = match self.bucket.list_all(&self.config.prefix, false).await {
            Err(BucketError::NotFound) => Default::default(),
            page => page?,
        };
        for ((dir, child), ages) in by_directory(&page.objects, self.wall()) {
            let Some(name) = child.name() else {
                swept.skipped += 1;
                continue;
            };
            let checkpoint = self.checkpoints.at(&self.bucket, &self.clock, &dir, &name);
            if self.config.read_only && sweep == Sweep::Remove {
                return Err(BucketError::Denied("mounted read-only".into()));
            }
            self.sweep_one(&checkpoint, &ages, (older_than, sweep), &mut swept).await?;
        }
        Ok(swept)
    }

    async fn sweep_one(
        &self,
        checkpoint: &Arc<Checkpoint>,
        ages: &Ages,
        (older_than, sweep): (Duration, Sweep),
        swept: &mut Swept,
    ) -> Result<(), BucketError> {
        let mut driver = checkpoint.driver.lock().await;
        driver.look().await?;
        if sweep == Sweep::Remove && !checkpoint.is_busy() {
            driver.go_on(&Intent::Advance).await?; // what is complete is not given up
        }
        if !driver.seen().records().unreadable.is_empty() {
            swept.skipped += 1;
            return Ok(());
        }
        let live: BTreeSet<TxnId> = driver.seen().live().map(|(txn, _)| txn).collect();
        let is_old = |kind: KeyKind, than| ages.get(&kind).is_some_and(|age| *age >= than);
        if !live.is_empty() {
            let old = live.iter().all(|txn| is_old(KeyKind::Head(*txn), older_than));
            if !old || checkpoint.is_busy() {
                swept.undecided += 1;
                return Ok(());
            }
            if sweep == Sweep::Remove {
                driver.abandon(&live).await?;
            }
            name_in(&mut swept.given_up, checkpoint);
        }
        let done = driver.seen().done();
        let settled = match driver.seen().records().seals.keys().next() {
            Some(_) if !live.is_empty() => true,
            Some(first) => is_old(KeyKind::Seal(*first), RECORDS_KEPT) && self.decided(&driver),
            None => driver.seen().records().heads.keys().next().is_some(),
        };
        if settled {
            if sweep == Sweep::Remove {
                let upto = driver.seen().voided().max(done);
                driver.go_on(&Intent::Collect { upto }).await?;
            }
            if live.is_empty() {
                name_in(&mut swept.cleared, checkpoint);
            }
        }
        Ok(())
    }

    fn decided(&self, driver: &Driver) -> bool {
        driver.seen().unpublished().is_none() && driver.seen().done() > Generation::default()
            || driver.seen().voided() > Generation::default()
    }
}

fn name_in(names: &mut Vec<String>, checkpoint: &Checkpoint) {
    if names.len() < NAMED_MAX {
        names.push(checkpoint.name());
    }
}

fn by_directory(objects: &[ListedObject], now: SystemTime) -> BTreeMap<(String, Escaped), Ages> {
    let control = format!("{CONTROL_DIR}/");
    let mut found: BTreeMap<(String, Escaped), Ages> = BTreeMap::new();
    for object in objects {
        let Some((dir, record)) = object.key.as_str().rsplit_once(&control) else { continue };
        let Some(key) = RecordKey::parse(record) else { continue };
        let age = now.duration_since(object.modified).unwrap_or_default();
        let dir = dir.trim_end_matches('/').to_owned();
        found.entry((dir, key.child)).or_default().insert(key.kind, age);
    }
    found
}
