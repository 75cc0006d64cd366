//! When something is due in a checkpoint directory: a sign of life, a commit, somebody else's
//! leftovers.
//!
//! One task for each directory in which this mount writes or waits; it ends when nothing is left to
//! look after. Cost: 1 PUT each third of a lease while a transaction is open, 1 LIST each third
//! while somebody else's is watched.

use std::sync::{Arc, Weak};
use std::time::Duration;

use super::commit::Progress;
use super::write::{files, heard};
use super::{Checkpoint, Transaction};
use crate::checkpoint::driver::{Ended, patience};
use crate::checkpoint::protocol::{Goal, Intent, Stop, Wait};
use crate::checkpoint::record::{Generation, Sign};
use crate::checkpoint::rules::{Activity, Due, Torn};
use crate::fs::Fs;
use crate::fs::error::Errno;
use crate::types::Ino;

/// Between two tries while the store is away.
const RETRY: Duration = Duration::from_secs(1);
/// Between two looks while other ranks' parts are waited for: first, and at most.
const POLL_MIN: Duration = Duration::from_millis(100);
const POLL_MAX: Duration = Duration::from_secs(2);
/// A dead owner is found within one lease and a look; one that lives is somebody's care after this
/// many looks.
const WATCH_LOOKS_MAX: u32 = 12;
/// Records go so long after everything they name was published.
pub(super) const RECORDS_KEPT: Duration = Duration::from_secs(3600);

/// What a task keeps between two rounds.
struct Care {
    poll: Duration,
    looks: u32,
    /// The last published generation, and when it was first seen to be.
    done: Option<(Generation, Duration)>,
}

impl Fs {
    /// Has a directory looked after from now on.
    pub(super) fn tend_to(&self, checkpoint: &Arc<Checkpoint>) {
        let new = !std::mem::replace(&mut checkpoint.state.lock().tended, true);
        if new {
            tokio::spawn(tend(self.me.clone(), checkpoint.clone()));
        } else {
            checkpoint.wake.notify_one();
        }
    }

    /// Watches others' transactions, so that the dead do not hide a directory for ever.
    pub(super) fn watch(&self, checkpoint: &Arc<Checkpoint>) {
        let tended = checkpoint.state.lock().tended;
        if !tended && !self.config.read_only {
            self.tend_to(checkpoint);
        }
    }

    /// Does what is due; how long until something may be again. `None`: nothing ever.
    async fn tend_once(&self, checkpoint: &Arc<Checkpoint>, care: &mut Care) -> Option<Duration> {
        match self.tend_own(checkpoint, care).await {
            Ok(Some(wait)) => return Some(wait),
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(name = %checkpoint.name(), %error, "a commit is tried again");
                return Some(RETRY);
            }
        }
        let others = self.tend_others(checkpoint, care).await.unwrap_or(Some(RETRY));
        let mut state = checkpoint.state.lock();
        if state.open.is_some() || !state.frozen.is_empty() {
            return Some(Duration::ZERO);
        }
        state.tended = others.is_some();
        others
    }

    async fn tend_own(
        &self,
        checkpoint: &Arc<Checkpoint>,
        care: &mut Care,
    ) -> Result<Option<Duration>, Errno> {
        self.drop_if_dead_and_empty(checkpoint).await?;
        self.renew(checkpoint).await?;
        let due = self.due(checkpoint);
        let due = match due {
            Some(Due::FreezeBesideOthers(at)) => Some(if self.others_write(checkpoint).await? {
                Due::Freeze
            } else {
                Due::Later(at)
            }),
            due => due,
        };
        let progress = match due {
            Some(Due::Seal(sign)) => self.commit(checkpoint, Some(sign)).await?,
            Some(Due::Freeze) => self.commit(checkpoint, None).await?,
            _ if self.sign_never_came(checkpoint) => {
                self.commit(checkpoint, Some(Sign::Idle)).await?
            }
            _ => self.advance(checkpoint).await?,
        };
        let renewal = patience(self.checkpoints.config().lease);
        let waits = matches!(progress, Progress::Waits | Progress::Poisoned);
        care.poll = if waits { (care.poll * 2).min(POLL_MAX) } else { POLL_MIN };
        let state = checkpoint.state.lock();
        Ok(match (&state.open, due) {
            _ if waits => Some(care.poll),
            (Some(_), Some(Due::Later(at))) => Some(at.saturating_sub(self.uptime()).min(renewal)),
            (Some(_), _) => Some(renewal),
            (None, _) if !state.frozen.is_empty() => Some(care.poll),
            (None, _) => None,
        })
    }

    /// Whether all that this mount has here is frozen, and no mount gave a sign for so long that
    /// none is waited for.
    fn sign_never_came(&self, checkpoint: &Checkpoint) -> bool {
        let (max, now) = (self.checkpoints.config().commit_max, self.uptime());
        let state = checkpoint.state.lock();
        let changed = state.frozen.iter().map(|txn| txn.changed.quiet_since(now, max)).max();
        let Some(changed) = changed else { return false };
        let unsigned = state.frozen.iter().all(|txn| txn.heard.is_none());
        let rule = state.rule.as_ref();
        state.open.is_none()
            && unsigned
            && rule.is_some_and(|rule| rule.outlasts_its_sign(changed, max, now))
    }

    /// What a process began and was killed in before it made anything would hide the name for ever.
    async fn drop_if_dead_and_empty(&self, checkpoint: &Arc<Checkpoint>) -> Result<(), Errno> {
        let root = {
            let mut state = checkpoint.state.lock();
            let Some(open) = &mut state.open else { return Ok(()) };
            (open.members.is_empty() && open.is_torn()).then_some(open.root)
        };
        match root {
            Some(root) if self.writers_below(root).0 == 0 => {
                self.withdraw(checkpoint).await?;
                self.forget_directory(root);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// A sign of life, where the last is a third of a lease old.
    async fn renew(&self, checkpoint: &Arc<Checkpoint>) -> Result<(), Errno> {
        let now = self.clock.now();
        let due = patience(self.checkpoints.config().lease);
        let work = {
            let mut state = checkpoint.state.lock();
            let rule = state.rule.clone();
            let Some(open) = &mut state.open else { return Ok(()) };
            if now.saturating_duration_since(open.renewed) < due {
                return Ok(());
            }
            open.renewed = now;
            self.work(open, rule.as_ref(), Goal::Renew)
        };
        let ended = {
            let mut driver = checkpoint.driver.lock().await;
            // One swap: what the protocol says after it is not asked.
            driver.renew(&work).await?
        };
        match ended {
            Some(Ended::Stop(stop @ (Stop::TakenOver | Stop::Dropped | Stop::Forgotten))) => {
                tracing::error!(name = %checkpoint.name(), ?stop, "a transaction was taken over");
                self.lose_open(checkpoint).await;
            }
            Some(Ended::Stop(Stop::Torn)) => self.lose_open(checkpoint).await,
            _ => {}
        }
        Ok(())
    }

    fn due(&self, checkpoint: &Checkpoint) -> Option<Due> {
        let root = checkpoint.state.lock().open.as_ref()?.root;
        let (open_handles, failed) = self.writers_below(root);
        let state = checkpoint.state.lock();
        let open = state.open.as_ref()?;
        let (max, now) = (self.checkpoints.config().commit_max, self.uptime());
        // Who waits for a slow store is about to write: that is no quiet.
        let waits = if open.changed.is_held(now, max) { state.waits.count() } else { 0 };
        let activity = self.activity(open, open_handles + waits, failed);
        state.rule.as_ref().map(|rule| rule.due(&activity, max, now))
    }

    pub(super) fn activity(
        &self,
        txn: &Transaction,
        open_handles: usize,
        failed: bool,
    ) -> Activity {
        // A directory in which a close failed is not whole until that file is written again.
        let torn = if failed { Torn::Yes } else { txn.torn };
        let max = self.checkpoints.config().commit_max;
        let changed = txn.changed.quiet_since(self.uptime(), max);
        let (files, heard) = (files(txn), heard(txn));
        Activity { files, open_handles, changed, heard, torn }
    }

    /// Handles open for writing below a directory, and whether an upload there failed.
    pub(super) fn writers_below(&self, root: Ino) -> (usize, bool) {
        let (mut open, mut failed) = (0, false);
        for (ino, file) in self.handles.all_files() {
            let (writers, bad) = {
                let state = file.state.lock();
                // What was closed here and is not in the store yet is not whole there.
                let unprepared = state.acknowledged.is_some_and(|now| now.unprepared);
                (state.writers as usize + usize::from(unprepared), state.failed.is_some())
            };
            if writers == 0 && !bad {
                continue;
            }
            let namespace = self.namespace.lock();
            if namespace.is_below(ino, root) {
                open += writers;
                // One that lost its name is missed by nobody.
                failed |= bad && namespace.get(ino).is_some_and(|inode| inode.linked);
            }
        }
        (open, failed)
    }

    /// Ends what the dead left, and publishes what others sealed; later: removes old records.
    async fn tend_others(
        &self,
        checkpoint: &Arc<Checkpoint>,
        care: &mut Care,
    ) -> Result<Option<Duration>, Errno> {
        if self.config.read_only {
            return Ok(None);
        }
        let mut driver = checkpoint.driver.lock().await;
        driver.look().await?;
        if self.has_others(checkpoint, &driver) {
            let ended = driver.go_on(&Intent::Advance).await?;
            care.looks += 1;
            let open = matches!(ended, Ended::Wait(Wait::Open(_)));
            let lease = self.checkpoints.config().lease;
            return Ok((open && care.looks < WATCH_LOOKS_MAX).then(|| patience(lease)));
        }
        let done = driver.seen().done();
        let now = self.uptime();
        let since = match care.done {
            Some((generation, since)) if generation == done => since,
            _ => now,
        };
        care.done = Some((done, since));
        let kept = now.saturating_sub(since);
        if done == Generation::default() || driver.seen().records().heads.is_empty() {
            return Ok(None);
        }
        if kept < RECORDS_KEPT {
            return Ok(Some(RECORDS_KEPT - kept));
        }
        driver.go_on(&Intent::Collect { upto: done }).await?;
        Ok(None)
    }

    /// Before a clean unmount: everything is closed, so what may be committed is, now.
    pub(in crate::fs) async fn drain_checkpoints(&self) -> usize {
        let mut failures = 0;
        for checkpoint in self.checkpoints.busy() {
            let done = self.drain_checkpoint(&checkpoint);
            match tokio::time::timeout(self.checkpoints.config().commit_wait, done).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tracing::error!(name = %checkpoint.name(), %error, "not committed at unmount");
                    failures += 1;
                }
                Err(_) => {
                    tracing::error!(name = %checkpoint.name(), "not committed in time at unmount");
                    failures += 1;
                }
            }
        }
        failures
    }

    async fn drain_checkpoint(&self, checkpoint: &Arc<Checkpoint>) -> Result<(), Errno> {
        let due = {
            let root = checkpoint.state.lock().open.as_ref().map(|open| open.root);
            let (handles, failed) = root.map_or((0, false), |root| self.writers_below(root));
            let state = checkpoint.state.lock();
            let open = state.open.as_ref();
            let activity = open.map(|open| self.activity(open, handles, failed));
            let rule = state.rule.as_ref();
            activity.and_then(|activity| rule.map(|rule| rule.due_at_unmount(&activity)))
        };
        match due {
            Some(Due::Seal(sign)) => drop(self.commit(checkpoint, Some(sign)).await?),
            Some(Due::Freeze) => drop(self.commit(checkpoint, None).await?),
            _ => drop(self.advance(checkpoint).await?),
        }
        if checkpoint.state.lock().open.is_some() {
            self.commit_nothing(checkpoint, Sign::Idle).await?;
        }
        Ok(())
    }
}

async fn tend(fs: Weak<Fs>, checkpoint: Arc<Checkpoint>) {
    let mut care = Care { poll: POLL_MIN, looks: 0, done: None };
    loop {
        let Some(strong) = fs.upgrade() else { return };
        let wait = strong.tend_once(&checkpoint, &mut care).await;
        drop(strong);
        let Some(wait) = wait else { return };
        let woken = tokio::time::timeout(wait, checkpoint.wake.notified()).await;
        if woken.is_ok() {
            care.looks = 0;
        }
    }
}
