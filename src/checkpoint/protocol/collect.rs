//! Removing the records of what is long published.
//!
//! Owns invariant 12: the order in which records go. Does not own how long is long: the caller
//! watched the done of that generation for an hour of its own time.

use std::collections::BTreeSet;

use super::{Action, Desk, Removal, Stop, Versioned};
use crate::checkpoint::record::{
    Entry, Generation, Head, RelPath, Seal, State, TxnId, Upload, Verdict,
};

type Uploads = Vec<(RelPath, Upload)>;

impl Desk<'_> {
    pub(super) fn collect(&self, upto: Generation) -> Action {
        let Some((generation, seal)) = self.seen.records().seals.iter().next() else {
            return self.collect_rest();
        };
        let published = *generation <= self.seen.done();
        let young = self.seen.live().any(|(_, head)| head.record.generation <= *generation);
        if *generation > upto || young {
            return Action::Stop(Stop::Nothing);
        }
        if !published {
            return self.number_is_used(seal);
        }
        if !self.seen.sealed_before_look(*generation) {
            return Action::Look;
        }
        self.collect_generation(*generation, seal)
    }

    /// A void seal has nothing to publish, but before it goes a done must keep its number.
    fn number_is_used(&self, seal: &Versioned<Seal>) -> Action {
        match seal.record.verdict {
            Verdict::Commit => Action::Stop(Stop::Nothing),
            Verdict::Void => Action::CreateDone(crate::checkpoint::record::Done {
                child: self.me.child.clone(),
                writer: self.me.writer.clone(),
                nonce: self.nonce,
                generation: seal.record.generation,
                unknown: Default::default(),
            }),
        }
    }

    /// Seqs with the uploads that never completed, then heads, then the seal.
    fn collect_generation(&self, generation: Generation, seal: &Versioned<Seal>) -> Action {
        let committed: BTreeSet<TxnId> = seal.record.records.iter().map(|s| s.txn).collect();
        let mut txns = committed.clone();
        txns.extend(&seal.record.dropped);
        txns.extend(self.given_up(generation, seal));
        let ids: Vec<_> = txns.iter().flat_map(|txn| self.seen.seqs_of(*txn)).collect();
        let unread =
            |id: &&(TxnId, u32)| !committed.contains(&id.0) && self.seen.body(**id).is_none();
        let unread: Vec<_> = ids.iter().filter(unread).copied().collect();
        if !unread.is_empty() {
            return Action::Fetch(unread);
        }
        let lost = |txn: &TxnId, entries: Option<&Vec<Entry>>| match committed.contains(txn) {
            true => Uploads::new(),
            false => uploads(entries),
        };
        let seqs = ids.iter().map(|id| {
            let entries = self.seen.body(*id).map(|body| &body.entries);
            Removal::Seq { txn: id.0, seq: id.1, abort: lost(&id.0, entries) }
        });
        let heads = txns.iter().filter_map(|txn| {
            let head = self.seen.records().heads.get(txn)?;
            let entries = head.record.state.manifest().map(|manifest| &manifest.entries);
            Some(Removal::Head { txn: *txn, abort: lost(txn, entries) })
        });
        let version = seal.etag.clone();
        first_of([seqs.collect(), heads.collect(), vec![Removal::Seal { generation, version }]])
    }

    /// What a void seal does not name and yet gives up.
    fn given_up(&self, generation: Generation, seal: &Versioned<Seal>) -> Vec<TxnId> {
        let void = seal.record.verdict == Verdict::Void;
        let heads = self.seen.records().heads.iter();
        let heads = heads.filter(|(_, head)| void && head.record.generation <= generation);
        let seal_of = |txn: &TxnId| self.seen.seal_of(*txn).map(|(generation, _)| generation);
        heads.map(|(txn, _)| *txn).filter(|txn| seal_of(txn) == Some(generation)).collect()
    }

    /// What no seal will ever name: harmless aborted heads, and dones but the last.
    fn collect_rest(&self) -> Action {
        let records = self.seen.records();
        let harmless = |head: &Head| {
            let aborted = matches!(head.state, State::Aborted { .. });
            aborted && !head.poisons()
        };
        let heads = records.heads.iter().filter(|(_, head)| harmless(&head.record));
        let heads: Vec<TxnId> = heads.map(|(txn, _)| *txn).collect();
        let ids: Vec<_> = heads.iter().flat_map(|txn| self.seen.seqs_of(*txn)).collect();
        let unread: Vec<_> =
            ids.iter().filter(|id| self.seen.body(**id).is_none()).copied().collect();
        if !unread.is_empty() {
            return Action::Fetch(unread);
        }
        let seqs = ids.iter().map(|id| Removal::Seq {
            txn: id.0,
            seq: id.1,
            abort: uploads(self.seen.body(*id).map(|body| &body.entries)),
        });
        let heads = heads.iter().map(|txn| Removal::Head { txn: *txn, abort: Vec::new() });
        let last = self.seen.done();
        let dones = records.dones.keys().filter(|generation| **generation < last);
        let dones = dones.map(|generation| Removal::Done { generation: *generation });
        first_of([seqs.collect(), heads.collect(), dones.collect()])
    }
}

fn first_of(batches: [Vec<Removal>; 3]) -> Action {
    let batch = batches.into_iter().find(|batch| !batch.is_empty());
    batch.map_or(Action::Stop(Stop::Nothing), Action::Collect)
}

fn uploads(entries: Option<&Vec<Entry>>) -> Uploads {
    let entries = entries.into_iter().flatten();
    entries.filter_map(|entry| Some((entry.name.clone(), entry.upload()?.clone()))).collect()
}
