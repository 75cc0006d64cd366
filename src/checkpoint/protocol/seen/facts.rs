//! What follows at once from what was seen: the open generation, who is undecided, what a seal
//! holds.
//!
//! Owns how records are read together. Does not own what is done about it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{Commits, Listing, Records, Seen, Unclear, Versioned};
use crate::checkpoint::protocol::Publish;
use crate::checkpoint::record::{
    Entry, Generation, Head, RelPath, Seal, Seq, TxnId, Verdict, What,
};
use crate::types::ETag;

impl Seen {
    /// Whether the records are as the last look showed them, as far as we know.
    pub fn is_current(&self) -> bool {
        self.current
    }

    pub fn records(&self) -> &Records {
        &self.records
    }

    /// Everything up to and including this generation is published.
    pub fn done(&self) -> Generation {
        self.records.dones.keys().next_back().copied().unwrap_or_default()
    }

    /// The generation that the next seal makes.
    pub fn open_generation(&self) -> Generation {
        let sealed = self.records.seals.keys().next_back().copied().unwrap_or_default();
        sealed.max(self.done()).next()
    }

    /// The commits, as far as they decide what an observer may show.
    pub fn commits(&self) -> Commits {
        let seals = self.records.seals.iter().map(|(generation, seal)| (*generation, &seal.etag));
        let done = self.done();
        let seals = seals.filter(|(generation, _)| *generation > done);
        Commits {
            done,
            seals: seals.map(|(generation, etag)| (generation, etag.clone())).collect(),
        }
    }

    /// Every transaction that was begun in this generation or an earlier one, and that no seal
    /// committed, was given up with it: also one whose head came while the void seal was under way.
    pub fn voided(&self) -> Generation {
        let mut seals = self.records.seals.iter().rev();
        let void = seals.find(|(_, seal)| seal.record.verdict == Verdict::Void);
        void.map(|(generation, _)| *generation).unwrap_or_default()
    }

    /// The last seal that decided on a transaction, and what it does with it.
    pub fn seal_of(&self, txn: TxnId) -> Option<(Generation, Fate)> {
        let fate = |seal: &Seal| {
            if seal.records.iter().any(|sealed| sealed.txn == txn) {
                return Some(Fate::Committed);
            }
            seal.dropped.contains(&txn).then_some(Fate::Dropped)
        };
        let mut seals = self.records.seals.iter().rev();
        let named = seals.find_map(|(generation, seal)| Some((*generation, fate(&seal.record)?)));
        let begun = self.records.heads.get(&txn).map(|head| head.record.generation);
        let voided = begun.is_some_and(|begun| begun <= self.voided());
        named.or(voided.then(|| (self.voided(), Fate::Dropped)))
    }

    /// The transactions that no seal decided on yet: they belong to the open generation.
    pub fn live(&self) -> impl Iterator<Item = (TxnId, &Versioned<Head>)> {
        let named: BTreeSet<TxnId> = self.records.seals.values().flat_map(named).collect();
        let voided = self.voided();
        let heads = self.records.heads.iter().map(|(txn, head)| (*txn, head));
        heads.filter(move |(txn, head)| head.record.generation > voided && !named.contains(txn))
    }

    pub fn is_expired(&self, txn: TxnId) -> bool {
        self.expired.contains(&txn)
    }

    /// Whether this transaction was known to be settled before the last look began, so that
    /// whatever overlapped with it was shown by that look.
    pub fn settled_before_look(&self, txn: TxnId) -> bool {
        self.before.settled.contains(&txn)
    }

    /// Whether this seal was known before the last look began, so that whatever it might have
    /// listed was shown by that look.
    pub fn sealed_before_look(&self, generation: Generation) -> bool {
        self.before.seals.contains(&generation)
    }

    /// The oldest seal that is not yet published. Void ones need no publishing.
    pub fn unpublished(&self) -> Option<&Versioned<Seal>> {
        self.unpublished_all().next()
    }

    /// Every seal that is not yet published, oldest first.
    pub fn unpublished_all(&self) -> impl Iterator<Item = &Versioned<Seal>> {
        let done = self.done();
        let seals = self.records.seals.iter().filter(move |(generation, _)| **generation > done);
        seals.map(|(_, seal)| seal).filter(|seal| {
            seal.record.verdict == Verdict::Commit && !self.is_collected(&seal.record)
        })
    }

    /// A seal that came back after its records were collected: a request that was more than an hour
    /// late. Records go only once they are published, so it says nothing.
    fn is_collected(&self, seal: &Seal) -> bool {
        let gone = |txn: &TxnId| !self.records.heads.contains_key(txn);
        let all_gone = seal.records.iter().all(|sealed| gone(&sealed.txn));
        self.sealed_before_look(seal.generation) && all_gone
    }

    pub fn is_spent(&self, generation: Generation, step: &Publish) -> bool {
        self.spent.contains(&(generation, step.clone()))
    }

    /// The data, if no commit came between, nor since by ourselves.
    pub fn confirmed_data(&self) -> Option<&Listing> {
        let data = self.data.as_ref()?;
        (data.confirmed && data.under == self.commits()).then_some(&data.listing)
    }

    /// Whether there is data that another look may confirm, or has.
    pub fn has_data(&self) -> bool {
        self.data.as_ref().is_some_and(|data| data.under == self.commits())
    }

    /// The data as last listed, whether or not it may be used.
    pub fn data_seen(&self) -> Option<&Listing> {
        self.data.as_ref().map(|data| &data.listing)
    }

    /// What a transaction has written down so far, the last of each name, and by which seqs.
    pub fn written(&self, txn: TxnId) -> Result<BTreeMap<&RelPath, &Entry>, Unclear> {
        let ids: Vec<_> = self.seqs_of(txn).collect();
        let missing = ids.iter().filter(|id| !self.bodies.contains_key(id));
        let missing: Vec<_> = missing.copied().collect();
        if !missing.is_empty() {
            return Err(Unclear::Fetch(missing));
        }
        let entries = ids.iter().flat_map(|id| &self.bodies[id].entries);
        Ok(entries.map(|entry| (&entry.name, entry)).collect())
    }

    pub fn seqs_of(&self, txn: TxnId) -> impl Iterator<Item = (TxnId, u32)> {
        self.records.seqs.range((txn, 0)..=(txn, u32::MAX)).copied()
    }

    pub fn body(&self, id: (TxnId, u32)) -> Option<&Arc<Seq>> {
        self.bodies.get(&id)
    }

    /// What a settled transaction is made of, the last of each name.
    pub fn manifest(&self, head: &Head) -> Result<BTreeMap<&RelPath, &Entry>, Unclear> {
        let Some(found) = self.records.heads.get(&head.txn) else { return Err(Unclear::Look) };
        let Some(manifest) = found.record.state.manifest() else { return Err(Unclear::Look) };
        let ids = manifest.seqs.iter().map(|seq| (head.txn, seq.seq));
        let missing: Vec<_> = ids.filter(|id| !self.bodies.contains_key(id)).collect();
        if !missing.is_empty() {
            return Err(Unclear::Fetch(missing));
        }
        let mut folded = BTreeMap::new();
        for seq in &manifest.seqs {
            let body = &self.bodies[&(head.txn, seq.seq)];
            if body.nonce != seq.nonce {
                return Err(Unclear::Unreadable);
            }
            folded.extend(body.entries.iter().map(|entry| (&entry.name, entry)));
        }
        folded.extend(manifest.entries.iter().map(|entry| (&entry.name, entry)));
        Ok(folded)
    }

    /// What a generation does to each name. Within a transaction the last word on a name counts; of
    /// several transactions the last that makes something of it. A removal takes back what the same
    /// mount made before; of what another made it touches only the version that it names.
    pub fn content(&self, seal: &Seal) -> Result<Content<'_>, Unclear> {
        let (mut content, mut makers) = (Content::new(), BTreeMap::new());
        for sealed in &seal.records {
            let Some(head) = self.records.heads.get(&sealed.txn) else {
                return Err(Unclear::Look);
            };
            if head.etag != sealed.etag {
                return Err(Unclear::Look);
            }
            for (name, entry) in self.manifest(&head.record)? {
                let what = content.entry(name).or_insert_with(Becomes::nothing);
                let own = makers.get(name) == Some(&&head.record.writer);
                match (&entry.what, what) {
                    (What::Removed { version }, what @ Becomes::Made(_)) if own => {
                        *what = Becomes::Gone(version.iter().collect());
                    }
                    (What::Removed { version }, Becomes::Gone(versions)) => {
                        versions.extend(version);
                    }
                    (What::Removed { .. }, Becomes::Made(_)) => {}
                    (_, what) => {
                        makers.insert(name, &head.record.writer);
                        *what = Becomes::Made(entry);
                    }
                }
            }
        }
        Ok(content)
    }
}

/// What a generation does to each name.
pub type Content<'a> = BTreeMap<&'a RelPath, Becomes<'a>>;

/// What a generation makes of one name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Becomes<'a> {
    Made(&'a Entry),
    /// Gone, if it still is one of these versions.
    Gone(BTreeSet<&'a ETag>),
}

impl Becomes<'_> {
    fn nothing() -> Self {
        Becomes::Gone(BTreeSet::new())
    }
}

/// What a seal does with a transaction that it names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fate {
    Committed,
    Dropped,
}

fn named(seal: &Versioned<Seal>) -> impl Iterator<Item = TxnId> + '_ {
    let records = seal.record.records.iter().map(|sealed| sealed.txn);
    records.chain(seal.record.dropped.iter().copied())
}
