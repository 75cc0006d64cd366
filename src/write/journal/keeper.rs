//! Calls come in, commits go out: on the journal's thread, or on that of a caller who is alone.
//!
//! Owns group commits, and when what the log says goes into the store: once the log is full, and at
//! the end. Does not own the forms of either (`log`, `store`).

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use parking_lot::Mutex;

use super::super::intent::{Before, CloseId, Intent};
use super::log::{Changes, Log};
use super::store::Store;
use super::{Call, Failure, FileName, What};

/// Calls in one commit: more would hold up the first of them.
const BATCH_MAX: usize = 256;
/// More than any close's record takes.
const QUIET_BYTES_MIN: usize = 128 << 10;
/// What nobody waits for is written down after so long, with what came meanwhile.
const LAZY_MS_MAX: Duration = Duration::from_millis(20);

pub struct Keeper {
    store: Store,
    log: Log,
    /// What the log says and the store does not.
    changes: Changes,
    /// Where the staged files are.
    staged: PathBuf,
    /// Which entry waits to replace what another makes.
    followers: HashMap<CloseId, CloseId>,
    /// How many waited for the last commit.
    waited: usize,
    failed: Option<Failure>,
}

/// Commits what comes, until nothing will any more.
pub fn keep(keeper: &Mutex<Keeper>, calls: &Receiver<Call>) {
    while let Ok(first) = calls.recv() {
        let batch = gather(first, calls);
        keeper.lock().take(batch);
    }
    keeper.lock().end();
}

impl Keeper {
    /// `intents` are what stands in the store and `changes` together.
    pub fn new(
        (store, log, changes): (Store, Log, Changes),
        staged: PathBuf,
        intents: &[Intent],
    ) -> Self {
        let follower = |intent: &Intent| match intent.before {
            Before::Closed(before) => Some((before, intent.id)),
            _ => None,
        };
        let followers = intents.iter().filter_map(follower).collect();
        Self { store, log, changes, staged, followers, waited: 0, failed: None }
    }

    /// Whether a commit is most likely one call's and no more than a write and a sync.
    pub fn is_quiet(&self) -> bool {
        self.waited <= 1 && self.log.room() >= QUIET_BYTES_MIN
    }

    /// Commits some calls, and says so to those who wait.
    pub fn take(&mut self, batch: Vec<Call>) {
        self.waited = batch.iter().filter(|call| call.done.is_some()).count();
        let result = match &self.failed {
            Some(failure) => Err(failure.clone()),
            None => self.commit(&batch).map_err(|error| Failure::of(&error)),
        };
        if let (Err(failure), None) = (&result, &self.failed) {
            tracing::error!(error = %failure.text, "the journal can't be written any more");
            self.failed = Some(failure.clone());
        }
        for done in batch.into_iter().filter_map(|call| call.done) {
            done(result.clone());
        }
    }

    fn end(&mut self) {
        if self.failed.is_none()
            && let Err(error) = self.store_changes()
        {
            tracing::warn!(%error, "the journal's log is left to the next mount");
        }
    }

    fn commit(&mut self, batch: &[Call]) -> io::Result<()> {
        let needs_name =
            |call: &Call| matches!(call.what, What::Put { name: FileName::Needed, .. });
        if batch.iter().any(needs_name) {
            File::open(&self.staged)?.sync_all()?;
        }
        let mut new = Changes::new();
        for call in batch {
            self.apply(&mut new, &call.what)?;
        }
        if new.is_empty() {
            return Ok(());
        }
        let logged = self.log.append(&new)?;
        self.changes.extend(new);
        if logged { Ok(()) } else { self.store_changes() }
    }

    fn store_changes(&mut self) -> io::Result<()> {
        if self.changes.is_empty() {
            return Ok(());
        }
        self.store.commit(&self.changes, self.log.mark())?;
        self.changes.clear();
        self.log.begin_anew();
        Ok(())
    }

    fn apply(&mut self, new: &mut Changes, what: &What) -> io::Result<()> {
        match what {
            What::Put { intent, replaces, .. } => {
                if let Before::Closed(before) = intent.before {
                    self.followers.insert(before, intent.id);
                }
                new.insert(intent.id, Some(intent.encode()));
                for id in replaces {
                    self.followers.remove(id);
                    new.insert(*id, None);
                }
            }
            What::TakePlace { earlier, later } => self.take_place(new, *earlier, *later)?,
            What::Published { id, etag } => {
                new.insert(*id, None);
                if let Some(follower) = self.followers.remove(id) {
                    let now = Before::Version(etag.clone());
                    self.rewrite(new, follower, |intent| intent.before = now)?;
                }
            }
            What::Remove(ids) => {
                for id in ids {
                    self.followers.remove(id);
                    new.insert(*id, None);
                }
            }
            What::Begun { id, begun } => {
                self.rewrite(new, *id, |intent| intent.begun = Some(begun.clone()))?;
            }
            What::Nothing => {}
        }
        Ok(())
    }

    /// The later entry stands where the earlier one stood, and replaces what that was to replace.
    fn take_place(
        &mut self,
        new: &mut Changes,
        earlier: CloseId,
        later: CloseId,
    ) -> io::Result<()> {
        let (old, intent) = (self.entry(new, earlier)?, self.entry(new, later)?);
        self.followers.remove(&earlier); // the later one followed it
        new.insert(later, None);
        // Where the earlier one was removed meanwhile it was with all that the file has here.
        if let (Some(old), Some(intent)) = (old, intent) {
            let before = old.before;
            new.insert(earlier, Some(Intent { before, ..intent }.encode()));
        }
        Ok(())
    }

    /// Changes an entry that still stands.
    fn rewrite(
        &self,
        new: &mut Changes,
        id: CloseId,
        change: impl FnOnce(&mut Intent),
    ) -> io::Result<()> {
        let Some(mut intent) = self.entry(new, id)? else { return Ok(()) };
        change(&mut intent);
        new.insert(id, Some(intent.encode()));
        Ok(())
    }

    /// An entry as it stands now.
    fn entry(&self, new: &Changes, id: CloseId) -> io::Result<Option<Intent>> {
        let value = match new.get(&id).or_else(|| self.changes.get(&id)) {
            Some(value) => value.clone(),
            None => self.store.get(id)?,
        };
        Ok(value.and_then(|value| Intent::decode(id, &value).ok()))
    }
}

/// The calls of one commit: all that wait by now. Where nobody waits for any, those of a moment.
fn gather(first: Call, calls: &Receiver<Call>) -> Vec<Call> {
    let mut batch = vec![first];
    while batch.len() < BATCH_MAX {
        let lazy = batch.iter().all(|call| call.done.is_none());
        let next = match lazy {
            true => calls.recv_timeout(LAZY_MS_MAX),
            false => calls.try_recv().map_err(|_| RecvTimeoutError::Timeout),
        };
        match next {
            Ok(call) => batch.push(call),
            Err(_) => break,
        }
    }
    batch
}
