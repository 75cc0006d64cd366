//! What others wrote: shown whole or not at all.
//!
//! Whoever looks into a checkpoint directory first finishes what is sealed there, so that an answer
//! about one name is of the same commit as the answer about the next.
//!
//! Cost: 1 LIST beside each question about a name in a checkpoint directory; a directory read 2
//! LISTs more, 1 where its records are known.

use std::time::Duration;

use super::{Checkpoint, Place};
use crate::bucket::{BucketError, Page};
use crate::checkpoint::driver::{Driver, Publishing};
use crate::checkpoint::protocol::Intent;
use crate::checkpoint::record::{Escaped, State, TxnId};
use crate::fs::Fs;
use crate::fs::error::Errno;
use crate::types::Key;

/// Between two looks while somebody else's commit is waited for.
pub(super) const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// Whether a look changed what the bucket shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::fs) enum Settled {
    /// Nothing was sealed and unpublished when the look began.
    Already,
    /// It was published by this: what was asked of the bucket before is void.
    Now,
}

/// What is done about a directory of which there is nothing to show until others commit it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::fs) enum Unsealed {
    Wait,
    Leave,
}

/// What there is of a directory that a listing did not show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::fs) enum Sealed {
    /// Something may be there now.
    Something,
    Nothing,
    /// What others write; only with [`Unsealed::Leave`].
    NotYet,
}

impl Fs {
    /// Finishes what is sealed in a checkpoint directory. 1 LIST where nothing is.
    pub(in crate::fs) async fn settle_sealed(&self, place: &Place) -> Result<Settled, Errno> {
        let asked = self.clock.now();
        let checkpoint = &place.checkpoint;
        let deadline = asked + self.checkpoints.config().commit_wait;
        loop {
            let mut driver = checkpoint.driver.lock().await;
            // Whoever waited for the lock may find that another's look began after it asked.
            if driver.looked().is_none_or(|at| at < asked) {
                driver.look().await?;
                self.clear_own_leftovers(checkpoint, &mut driver).await?;
            }
            let watch = self.has_others(checkpoint, &driver);
            let result = match driver.seen().unpublished() {
                None => Ok(Settled::Already),
                Some(_) => driver.publish(self.publishing()).await.map(|()| Settled::Now),
            };
            drop(driver);
            if watch {
                self.watch(checkpoint);
            }
            match result {
                Err(BucketError::TimedOut(_))
                    if self.config.read_only && self.clock.now() < deadline =>
                {
                    tokio::time::sleep(LOOK_AGAIN).await;
                }
                other => return Ok(other?),
            }
        }
    }

    /// One LIST with delimiter of a key at or below a checkpoint directory, of one commit.
    pub(in crate::fs) async fn list_whole(
        &self,
        place: &Place,
        prefix: &str,
    ) -> Result<Page, BucketError> {
        let mut driver = place.checkpoint.driver.lock().await;
        driver.observe(self.publishing(), prefix).await
    }

    /// Waits until somebody else's transaction is decided, where nothing else is to be shown, or
    /// tells that there is one. ETIMEDOUT after `--commit-wait`.
    pub(in crate::fs) async fn wait_for_seal(
        &self,
        place: &Place,
        unsealed: Unsealed,
    ) -> Result<Sealed, Errno> {
        let deadline = self.clock.now() + self.checkpoints.config().commit_wait;
        loop {
            let (others, committed) = {
                let mut driver = place.checkpoint.driver.lock().await;
                driver.look().await?;
                let seals = driver.seen().commits();
                (self.has_others(&place.checkpoint, &driver), seals)
            };
            if place.checkpoint.is_busy() {
                return Ok(Sealed::Nothing);
            }
            if !others {
                let something = committed.done.0 > 0 || !committed.seals.is_empty();
                return Ok(if something { Sealed::Something } else { Sealed::Nothing });
            }
            if unsealed == Unsealed::Leave {
                return Ok(Sealed::NotYet);
            }
            self.watch(&place.checkpoint);
            if self.clock.now() >= deadline {
                return Err(Errno::ETIMEDOUT);
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// Whether others may enter the directory by this name, though no listing shows it: as the last
    /// look told.
    pub(in crate::fs) async fn is_nameable(&self, place: &Place) -> bool {
        let driver = place.checkpoint.driver.lock().await;
        driver.seen().live().any(|(_, head)| {
            let undecided = matches!(head.record.state, State::Open | State::Prepared { .. });
            undecided && head.record.written_as == place.written_as
        })
    }

    /// A directory in which another node writes is not empty, whatever a listing shows.
    pub(in crate::fs) async fn refuse_undecided(&self, place: &Place) -> Result<(), Errno> {
        if !place.rel.is_root() || place.checkpoint.is_busy() {
            return Ok(());
        }
        match self.others_write(&place.checkpoint).await? {
            true => Err(Errno::ENOTEMPTY),
            false => Ok(()),
        }
    }

    /// Whether somebody writes in a child of a directory, of which no listing tells. 1 LIST.
    pub(in crate::fs) async fn is_undecided(
        &self,
        directory: &Key,
        child: &str,
    ) -> Result<bool, BucketError> {
        // A shortened name stands for nobody knows which: its transactions may be anything.
        let Some(child) = Escaped::parse(child).and_then(|child| child.name()) else {
            return Ok(true);
        };
        let dir = directory.as_str().trim_end_matches('/');
        let checkpoint = self.checkpoints.at(&self.bucket, &self.clock, dir, &child);
        let others = self.others_write(&checkpoint).await?;
        Ok(checkpoint.is_busy() || others)
    }

    /// A transaction that an earlier life of this mount left can't be whole.
    async fn clear_own_leftovers(
        &self,
        checkpoint: &Checkpoint,
        driver: &mut Driver,
    ) -> Result<(), BucketError> {
        let own = self.own(checkpoint);
        let left = driver.seen().live().any(|(txn, head)| {
            let ours = head.record.writer == *self.checkpoints.writer();
            ours && head.record.state == State::Open && !own.contains(&txn)
        });
        // `Recover` takes every open one of ours, so it waits until none of those is wanted.
        if left && own.is_empty() && !self.config.read_only {
            driver.go_on(&Intent::Recover).await?;
        }
        Ok(())
    }

    pub(super) fn own(&self, checkpoint: &Checkpoint) -> Vec<TxnId> {
        let state = checkpoint.state.lock();
        state.frozen.iter().chain(&state.open).map(|txn| txn.id).collect()
    }

    /// Whether somebody else's transaction is undecided here.
    pub(super) fn has_others(&self, checkpoint: &Checkpoint, driver: &Driver) -> bool {
        let own = self.own(checkpoint);
        driver.seen().live().any(|(txn, head)| {
            let undecided = matches!(head.record.state, State::Open | State::Prepared { .. });
            undecided && !own.contains(&txn)
        })
    }

    /// The same after a look at the records: 1 LIST, and a GET for each that changed.
    pub(super) async fn others_write(&self, checkpoint: &Checkpoint) -> Result<bool, BucketError> {
        let mut driver = checkpoint.driver.lock().await;
        driver.look().await?;
        Ok(self.has_others(checkpoint, &driver))
    }

    pub(super) fn publishing(&self) -> Publishing {
        if self.config.read_only { Publishing::Refused } else { Publishing::Allowed }
    }

    /// Names that the bucket has and a transaction of ours takes away.
    pub(in crate::fs) fn hides(&self, place: &Place) -> bool {
        place.checkpoint.state.lock().hides(&place.rel)
    }
}
