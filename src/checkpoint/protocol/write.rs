//! What the owner of a transaction does: begin, write down, freeze, tear, withdraw.
//!
//! Owns every change that only an owner makes. Does not own what follows once it is settled.

use std::collections::BTreeMap;

use super::{Accept, Action, Desk, Fate, Goal, Stop, Unclear, Work};
use crate::checkpoint::record::entry::INLINE_BYTES_MAX;
use crate::checkpoint::record::{
    Cause, ENTRIES_MAX, Entry, Head, Manifest, Nonce, RelPath, Seq, SeqRef, Sign, State, What,
};

/// What is not yet written down goes into the head itself if it is at most this many entries: one
/// request less, and a head stays small enough to be read by everybody.
const HEAD_ENTRIES_MAX: usize = 64;
/// What one seq may take, in bytes as estimated: half of a record, for what the estimate misses.
const SEQ_BYTES_MAX: usize = crate::checkpoint::record::RECORD_BYTES_MAX / 2;

impl Desk<'_> {
    pub(super) fn write(&self, work: &Work) -> Action {
        let Some(own) = self.seen.records().heads.get(&work.txn) else {
            return self.without_head(work);
        };
        match &own.record.state {
            State::Open => self.open(work, &own.record),
            State::Prepared { manifest, .. } => match self.seen.manifest(&own.record) {
                Ok(folded) if self.rest(work, &folded).is_empty() => self.prepared(work),
                Ok(_) => Action::Stop(Stop::Frozen),
                Err(Unclear::Fetch(_)) if manifest.seqs.is_empty() => Action::Look,
                Err(unclear) => unclear.action(),
            },
            State::Torn { .. } => self.torn(work),
            State::Aborted { cause: Cause::Withdrawn } => Action::Stop(Stop::Nothing),
            State::Aborted { .. } => Action::Stop(Stop::TakenOver),
        }
    }

    fn without_head(&self, work: &Work) -> Action {
        if work.begun {
            return Action::Stop(Stop::Forgotten);
        }
        if matches!(work.goal, Goal::Withdraw | Goal::Tear) {
            return Action::Stop(Stop::Nothing);
        }
        if let Some(recover) = self.recover() {
            return recover;
        }
        let poisoned = self.seen.live().any(|(_, head)| head.record.poisons());
        if poisoned {
            return self.void();
        }
        // What has its sign is complete: what begins now is of the next generation.
        if self.seen.live().any(|(_, head)| is_complete(&head.record.state)) {
            return self.commit(None, &Accept::nothing());
        }
        Action::CreateHead(self.new_head(work))
    }

    fn new_head(&self, work: &Work) -> Head {
        let orders = self.seen.records().heads.values().map(|head| head.record.order);
        Head {
            child: self.me.child.clone(),
            writer: self.me.writer.clone(),
            nonce: self.nonce,
            txn: work.txn,
            generation: self.seen.open_generation(),
            order: orders.max().unwrap_or(0).saturating_add(1),
            lease_ms: work.lease_ms,
            rule: work.rule.clone(),
            written_as: work.written_as.clone(),
            loss: work.loss,
            state: State::Open,
            unknown: Default::default(),
        }
    }

    fn open(&self, work: &Work, head: &Head) -> Action {
        if let Some((_, Fate::Dropped)) = self.seen.seal_of(work.txn) {
            return Action::Stop(Stop::Dropped);
        }
        let written = match self.seen.written(work.txn) {
            Ok(written) => written,
            Err(unclear) => return unclear.action(),
        };
        let rest = self.rest(work, &written);
        let settling = matches!(work.goal, Goal::Commit { .. } | Goal::Tear);
        let inline = settling && rest.len() <= HEAD_ENTRIES_MAX;
        match &work.goal {
            Goal::Withdraw => self.swap(head, State::Aborted { cause: Cause::Withdrawn }),
            Goal::Renew => self.swap(head, State::Open),
            Goal::Commit { .. } if work.files.is_empty() => Action::Stop(Stop::Nothing),
            _ if !rest.is_empty() && !inline => self.seq(work, rest),
            Goal::Hold => Action::Stop(Stop::Held),
            Goal::Commit { sign, .. } => {
                let manifest = self.frozen(work, rest);
                self.swap(head, State::Prepared { manifest, sign: *sign })
            }
            Goal::Tear => {
                let manifest = self.frozen(work, rest);
                self.swap(head, State::Torn { manifest })
            }
        }
    }

    fn prepared(&self, work: &Work) -> Action {
        match self.seen.seal_of(work.txn) {
            Some((_, Fate::Dropped)) => Action::Stop(Stop::Dropped),
            Some((generation, Fate::Committed)) => {
                let published = Action::Stop(Stop::Published(Some(generation)));
                self.publish().unwrap_or(published)
            }
            None => match &work.goal {
                Goal::Commit { sign, accept } => self.commit(*sign, accept),
                _ => self.commit(None, &Accept::nothing()),
            },
        }
    }

    /// A torn transaction is settled; whoever accepts that commits what is whole of it.
    fn torn(&self, work: &Work) -> Action {
        match (&work.goal, self.seen.seal_of(work.txn)) {
            (_, Some((_, Fate::Dropped))) => Action::Stop(Stop::Dropped),
            (_, Some((_, Fate::Committed))) => self.prepared(work),
            (Goal::Commit { sign, accept }, None) => self.commit(*sign, accept),
            (_, None) => Action::Stop(Stop::Torn),
        }
    }

    /// What is wanted and not in `written`. A name that was written and is no longer wanted becomes
    /// a removal of nothing.
    fn rest(&self, work: &Work, written: &BTreeMap<&RelPath, &Entry>) -> Vec<Entry> {
        let differs = |entry: &&Entry| written.get(&entry.name) != Some(entry);
        let mut rest: Vec<Entry> = work.files.values().filter(differs).cloned().collect();
        let removed = What::Removed { version: None };
        let unwanted = written.iter().filter(|(name, _)| !work.files.contains_key(**name));
        let unwanted = unwanted.filter(|(_, entry)| entry.what != removed);
        rest.extend(unwanted.map(|(name, _)| Entry::new((*name).clone(), removed.clone())));
        rest
    }

    fn seq(&self, work: &Work, rest: Vec<Entry>) -> Action {
        let last = self.seen.seqs_of(work.txn).map(|(_, seq)| seq).last();
        let mut bytes = 0;
        let fits = |entry: &Entry| {
            bytes += estimate(entry);
            bytes <= SEQ_BYTES_MAX
        };
        let entries = rest.into_iter().take(ENTRIES_MAX).take_while(fits).collect();
        Action::CreateSeq(Seq {
            child: self.me.child.clone(),
            writer: self.me.writer.clone(),
            nonce: self.nonce,
            txn: work.txn,
            seq: last.map_or(0, |seq| seq + 1),
            entries,
            unknown: Default::default(),
        })
    }

    fn frozen(&self, work: &Work, entries: Vec<Entry>) -> Manifest {
        let nonce = |id| self.seen.body(id).map_or(Nonce(0), |body| body.nonce);
        let seqs = self.seen.seqs_of(work.txn);
        let seqs = seqs.map(|id| SeqRef { seq: id.1, nonce: nonce(id) }).collect();
        Manifest { seqs, entries }
    }

    /// The one way a head changes: from the version seen, keeping what is not understood.
    pub(super) fn swap(&self, head: &Head, state: State) -> Action {
        let Some(seen) = self.seen.records().heads.get(&head.txn) else { return Action::Look };
        let writer = self.me.writer.clone();
        let head = Head { writer, nonce: self.nonce, state, ..head.clone() };
        Action::SwapHead { over: seen.etag.clone(), head }
    }

    /// What an earlier life of this mount left open can't be whole: nobody here knows what it held.
    pub(super) fn recover(&self) -> Option<Action> {
        let open = |head: &Head| head.state == State::Open && head.writer == self.me.writer;
        let (_, left) = self.seen.live().find(|(_, head)| open(&head.record))?;
        Some(self.swap(&left.record, State::Aborted { cause: Cause::Restart }))
    }
}

/// Whether somebody said that the generation is complete. That one mount was quiet says so of its
/// own part alone.
fn is_complete(state: &State) -> bool {
    matches!(state, State::Prepared { sign: Some(Sign::Sign | Sign::Explicit), .. })
}

/// About how many bytes an entry takes in a record.
fn estimate(entry: &Entry) -> usize {
    let inline = match &entry.what {
        What::File { inline: Some(_), .. } => INLINE_BYTES_MAX * 4 / 3,
        _ => 0,
    };
    let upload = entry.upload().map_or(0, |upload| {
        upload.id.len() + upload.parts.iter().map(|part| part.len() + 6).sum::<usize>()
    });
    200 + entry.name.as_str().len() * 2 + upload + inline
}
