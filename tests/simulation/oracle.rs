//! What may be seen: the history of every checkpoint directory, and each observation held against
//! it.
//!
//! A directory is written in rounds, one after another; a round writes some names and removes
//! others. What must hold of everything that anybody sees who did not write it:
//!
//! 1. A file's bytes are whole and of one round, which wrote that name.
//! 2. No byte of a round that was killed or lost, nor of one that is not finished yet.
//! 3. In one listing a round shows whole or not at all, but for names of later rounds.
//! 4. What was seen once, or acknowledged as committed, everybody sees who looks later: nothing
//!    goes back.
//! 5. A name that was seen is gone only if something removed it, and then it stays so.
//! 6. A raw client sees no object of a round before a seal that came after the round began.

use std::collections::{BTreeMap, BTreeSet};

/// What became of a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// Under way: not to be seen.
    Writing,
    /// Whole: it may be seen from now on, and will be if nothing fails.
    Finished,
    /// Its writer was killed or its mount died before it was whole: never to be seen.
    Dead,
    /// Its writer was told of an error and gave up: what was closed of it may be seen, in parts.
    Failed,
    /// Names unlinked one by one, each at once or with the next commit.
    Removal,
}

#[derive(Debug, Clone)]
pub struct Round {
    pub fate: Fate,
    pub writes: BTreeSet<String>,
    pub removes: BTreeSet<String>,
    /// Seals of the directory when it began.
    seals: u64,
}

/// The least round of each name that somebody has surely seen, or that was acknowledged.
pub type Floor = BTreeMap<String, u64>;

#[derive(Debug, Default)]
pub struct Directory {
    /// From 1.
    pub rounds: Vec<Round>,
    pub floor: Floor,
    raw: Floor,
    seals: u64,
}

impl Directory {
    pub fn begin(
        &mut self,
        fate: Fate,
        writes: BTreeSet<String>,
        removes: BTreeSet<String>,
    ) -> u64 {
        self.rounds.push(Round { fate, writes, removes, seals: self.seals });
        self.rounds.len() as u64
    }

    pub fn round(&self, number: u64) -> Option<&Round> {
        self.rounds.get((number as usize).checked_sub(1)?)
    }

    /// Turns a round that is under way into something else; what is decided stays.
    pub fn decide(&mut self, number: u64, fate: Fate) {
        let round = &mut self.rounds[number as usize - 1];
        if round.fate == Fate::Writing {
            round.fate = fate;
        }
    }

    /// Its writer was told of an error: whatever was decided, parts of it may be seen.
    pub fn failed(&mut self, number: u64) {
        self.rounds[number as usize - 1].fate = Fate::Failed;
    }

    pub fn sealed(&mut self) {
        self.seals += 1;
    }

    /// A commit of this round was acknowledged, or a byte of it seen.
    pub fn committed(&mut self, number: u64) {
        let Some(round) = self.round(number).cloned() else { return };
        if round.fate == Fate::Failed {
            return;
        }
        for name in round.writes.iter().chain(&round.removes) {
            let floor = self.floor.entry(name.clone()).or_default();
            *floor = number.max(*floor);
        }
    }

    /// Rounds that somebody saw, or that were acknowledged.
    pub fn seen_rounds(&self) -> u64 {
        self.floor.values().collect::<BTreeSet<_>>().len() as u64
    }

    /// Whether any round may ever have been committed.
    pub fn may_be_there(&self) -> bool {
        self.rounds.iter().any(|round| matches!(round.fate, Fate::Finished | Fate::Failed))
    }

    /// Whether what is known can't be gone.
    pub fn must_be_there(&self, floor: &Floor) -> bool {
        floor.iter().any(|(name, least)| {
            self.round(*least).is_some_and(|round| round.writes.contains(name))
                && self.remover(name, *least).is_none()
        })
    }

    /// The first round from `least` on that removes the name.
    fn remover(&self, name: &str, least: u64) -> Option<u64> {
        let later =
            (least.max(1)..=self.rounds.len() as u64).filter_map(|n| Some((n, self.round(n)?)));
        let mut removers = later.filter(|(_, round)| {
            round.removes.contains(name) && !matches!(round.fate, Fate::Dead | Fate::Writing)
        });
        removers.next().map(|(number, _)| number)
    }

    /// One name, seen by somebody who knew `floor` before: the round that wrote it.
    pub fn see(&mut self, name: &str, number: u64, floor: &Floor) -> Result<(), String> {
        self.may_show(name, number)?;
        let least = floor.get(name).copied().unwrap_or(0);
        if number < least {
            return Err(format!("{name} shows round {number} after {least} was seen"));
        }
        self.committed(number);
        Ok(())
    }

    /// One name, not found by somebody who knew `floor` before.
    pub fn miss(&mut self, name: &str, floor: &Floor) -> Result<(), String> {
        let Some(least) = floor.get(name).copied() else { return Ok(()) };
        let Some(remover) = self.remover(name, least) else {
            return Err(format!("{name} is gone after round {least} of it was seen"));
        };
        let floor = self.floor.entry(name.to_owned()).or_default();
        *floor = remover.max(*floor);
        Ok(())
    }

    fn may_show(&self, name: &str, number: u64) -> Result<(), String> {
        let Some(round) = self.round(number) else {
            return Err(format!("{name} is of round {number}, which never was"));
        };
        if !round.writes.contains(name) {
            return Err(format!("{name} is of round {number}, which did not write it"));
        }
        match round.fate {
            Fate::Writing => Err(format!("{name} shows round {number} before it is finished")),
            Fate::Dead => Err(format!("{name} shows round {number}, which was killed or lost")),
            Fate::Removal => Err(format!("{name} shows round {number}, a removal")),
            Fate::Finished | Fate::Failed => Ok(()),
        }
    }

    /// A whole directory in one listing, seen by somebody who knew `floor` before.
    pub fn see_all(&mut self, seen: &BTreeMap<String, u64>, floor: &Floor) -> Result<(), String> {
        for (name, number) in seen {
            self.may_show(name, *number)?;
        }
        self.whole_rounds(seen)?;
        let known: Vec<String> = floor.keys().cloned().collect();
        for name in known.iter().filter(|name| !seen.contains_key(*name)) {
            self.miss(name, floor)?;
        }
        for (name, number) in seen {
            self.see(name, *number, floor)?;
        }
        Ok(())
    }

    fn whole_rounds(&self, seen: &BTreeMap<String, u64>) -> Result<(), String> {
        let shown: BTreeSet<u64> = seen.values().copied().collect();
        let mut covered: BTreeSet<&String> = BTreeSet::new();
        // Removals that are no part of any round may hide any name of the rounds before them.
        for number in (1..=self.rounds.len() as u64).rev() {
            let Some(round) = self.round(number) else { continue };
            if matches!(round.fate, Fate::Removal | Fate::Failed) {
                covered.extend(round.removes.iter().filter(|name| !seen.contains_key(*name)));
                let shows = |name: &&String| seen.get(*name) == Some(&number);
                covered.extend(round.writes.iter().filter(shows));
            }
            if !shown.contains(&number) && round.fate == Fate::Finished {
                // Nothing tells it from one that was committed before what covers all of it.
                if round.writes.iter().all(|name| covered.contains(name)) {
                    covered.extend(round.removes.iter().filter(|name| !seen.contains_key(*name)));
                }
            }
            if !shown.contains(&number) || round.fate == Fate::Failed {
                continue;
            }
            for name in round.writes.iter().filter(|name| !covered.contains(name)) {
                if seen.get(name) != Some(&number) {
                    return Err(format!(
                        "round {number} shows without its {name}, which is {:?}: {seen:?}",
                        seen.get(name)
                    ));
                }
            }
            for name in round.removes.iter().filter(|name| !covered.contains(name)) {
                if seen.contains_key(name) {
                    return Err(format!("round {number} shows, and {name}, which it removed"));
                }
            }
            covered.extend(round.writes.iter().chain(&round.removes));
        }
        Ok(())
    }

    /// A natural key was written in the bucket.
    pub fn see_raw(&mut self, name: &str, number: u64) -> Result<(), String> {
        self.may_show(name, number)?;
        let least = self.raw.get(name).copied().unwrap_or(0);
        if number < least {
            return Err(format!("the object {name} of round {number} came after that of {least}"));
        }
        if self.round(number).is_some_and(|round| round.seals >= self.seals) {
            return Err(format!("the object {name} of round {number} came before any seal of it"));
        }
        self.raw.insert(name.to_owned(), number);
        Ok(())
    }
}
