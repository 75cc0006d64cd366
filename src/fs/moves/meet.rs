//! Records of renames, met where a directory's records are read.
//!
//! Cost: 1 GET and 1 LIST for a rename not known yet, and 1 GET where it is decided; 1 LIST for one
//! that is under way.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use super::{Known, Rename};
use crate::bucket::BucketError;
use crate::checkpoint::mover::{Ends, Mover};
use crate::checkpoint::moves::Phase;
use crate::checkpoint::record::{self, KeyKind, Record, RecordKey, TxnId};
use crate::fs::Fs;
use crate::types::Key;

/// What the records of one directory say of a rename.
#[derive(Default)]
struct Met {
    pointer: Option<RecordKey>,
    decision: Option<RecordKey>,
    moved: bool,
}

impl Fs {
    /// Takes the records of renames that a LIST of `<dir>/.trialfs/` shows; `dir` has no `/` at its
    /// end.
    pub(in crate::fs) async fn meet_renames(
        &self,
        dir: &str,
        keys: Vec<RecordKey>,
    ) -> Result<(), BucketError> {
        let mut met: BTreeMap<TxnId, Met> = BTreeMap::new();
        for key in keys {
            let Some(id) = key.kind.of_move() else { continue };
            let met = met.entry(id).or_default();
            match key.kind {
                KeyKind::From(_) => drop(met.pointer.get_or_insert(key)),
                KeyKind::Into(_) => met.pointer = Some(key), // it tells more
                KeyKind::To(_) => met.decision = Some(key),
                KeyKind::Moved(_) => met.moved = true,
                _ => {}
            }
        }
        // What is known to be under way here and has no record here any more has come to its end.
        let here: HashSet<TxnId> = met.keys().copied().collect();
        for rename in self.moves.all() {
            let ends = &rename.mover.ends;
            let is_here = ends.from_dir == dir || ends.to_dir == dir;
            if is_here && !here.contains(&rename.mover.id) {
                self.refresh_rename(&rename, Pointers::Gone).await?;
            }
        }
        for (id, met) in met {
            match self.moves.knows(id) {
                Some(Known::Over) => {}
                Some(Known::UnderWay(rename)) => {
                    self.refresh_rename(&rename, Pointers::There).await?;
                    let undecided = rename.mover.phase() == Phase::Undecided;
                    let into = met.pointer.filter(|key| matches!(key.kind, KeyKind::Into(_)));
                    if let Some(key) = into.filter(|_| undecided && !rename.hides())
                        && let Some((_, over)) = self.follow(dir, &key).await?
                        && !over
                    {
                        rename.hide();
                        self.moves.changed();
                    }
                }
                None => self.meet_new(dir, id, met).await?,
            }
        }
        Ok(())
    }

    async fn meet_new(&self, dir: &str, id: TxnId, met: Met) -> Result<(), BucketError> {
        if met.moved {
            self.moves.end(id);
            self.collect_later(dir, id, met.decision);
            return Ok(());
        }
        let Some(key) = met.pointer.or(met.decision) else { return Ok(()) };
        let Some((ends, over)) = self.follow(dir, &key).await? else { return Ok(()) };
        let (bucket, clock) = (self.bucket.clone(), self.clock.clone());
        let writer = self.checkpoints.writer().clone();
        let mover = Mover::new(bucket, clock, writer, id, ends, over);
        mover.look().await?;
        match mover.phase() {
            Phase::Done | Phase::Void => self.moves.end(id),
            Phase::Undecided | Phase::Decided => {
                let rename = Arc::new(Rename::new(mover, !over));
                self.moves.add(rename.clone());
                if !self.config.read_only {
                    self.look_after(rename);
                }
            }
        }
        Ok(())
    }

    /// Whoever did it may be gone before its records are old enough to go.
    fn collect_later(&self, dir: &str, id: TxnId, decision: Option<RecordKey>) {
        let child = decision.and_then(|key| key.child.name());
        let Some(child) = child.filter(|_| !self.config.read_only) else { return };
        let (from_dir, to_dir) = (dir.to_owned(), dir.to_owned());
        let ends = Ends { from_dir, from: child.clone(), to_dir, to: child };
        let (bucket, clock) = (self.bucket.clone(), self.clock.clone());
        let mover = Mover::new(bucket, clock, self.checkpoints.writer().clone(), id, ends, true);
        self.collect_in_time(Arc::new(Rename::new(mover, false)));
    }

    /// The two names that a record tells of; `None`: it is gone or of no use.
    async fn follow(
        &self,
        dir: &str,
        key: &RecordKey,
    ) -> Result<Option<(Ends, bool)>, BucketError> {
        let Ok(at) = key.to_key(dir) else { return Ok(None) };
        let record = match self.read_control(&at, key).await? {
            Some(record) => record,
            None => return Ok(None),
        };
        let dir = dir.to_owned();
        Ok(match record {
            Record::From(pointer) => pointer.other.from(&dir).map(|to_dir| {
                let (from, to) = (pointer.child, pointer.other.name);
                // Whether it hides the new name stands beside that.
                (Ends { from_dir: dir, from, to_dir, to }, true)
            }),
            Record::Into(pointer) => pointer.other.from(&dir).map(|from_dir| {
                let (from, to) = (pointer.other.name, pointer.child);
                (Ends { from_dir, from, to_dir: dir, to }, pointer.over)
            }),
            Record::To(decision) => decision.other.from(&dir).map(|from_dir| {
                let (from, to) = (decision.other.name, decision.child);
                (Ends { from_dir, from, to_dir: dir, to }, true)
            }),
            _ => None,
        })
    }

    async fn read_control(&self, at: &Key, key: &RecordKey) -> Result<Option<Record>, BucketError> {
        let whole = 0..record::RECORD_BYTES_MAX as u64 + 1;
        let body = match self.bucket.get_bytes(at, whole, None).await {
            Ok((_, body)) => body,
            Err(BucketError::NotFound) => return Ok(None),
            Err(error) => return Err(error),
        };
        match record::parse(key, &body) {
            Ok(record) => Ok(Some(record)),
            Err(error) => {
                tracing::warn!(key = %at, %error, "a rename that can't be read");
                Ok(None)
            }
        }
    }

    async fn refresh_rename(
        &self,
        rename: &Arc<Rename>,
        pointers: Pointers,
    ) -> Result<(), BucketError> {
        let before = rename.mover.phase();
        rename.mover.look().await?;
        let now = rename.mover.phase();
        let withdrawn = now == Phase::Undecided && pointers == Pointers::Gone;
        if withdrawn || matches!(now, Phase::Done | Phase::Void) {
            self.moves.end(rename.mover.id);
        } else if before != now {
            self.moves.add(rename.clone());
        }
        Ok(())
    }
}

/// Whether the pointers of a rename were seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pointers {
    There,
    Gone,
}
