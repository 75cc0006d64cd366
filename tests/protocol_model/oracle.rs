//! What must hold, told without the protocol: contract points 3, 4 and 5, at every instant.
//!
//! Owns the truth of a run: what each process closed, which commits happened, what the directory
//! holds after each. Does not own how the protocol gets there.

use std::collections::{BTreeMap, BTreeSet};

use trialfs::checkpoint::protocol::{Action, Records, Reply, Seen, Shown, View, view};
use trialfs::checkpoint::record::{
    Cause, Entry, Generation, Loss, Nonce, RelPath, Seal, Sign, State, TxnId, Verdict, What,
};
use trialfs::types::ETag;

use crate::store::{Request, Store};

pub type Content = BTreeMap<RelPath, ETag>;

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Truth {
    /// What the directory held after each commit and each unlink, the first from the start.
    pub history: Vec<Content>,
    /// What was closed when an owner decided to freeze, by the version it wrote for it.
    pub frozen: BTreeMap<Nonce, BTreeMap<RelPath, Entry>>,
    pub killed: BTreeSet<TxnId>,
    /// Losses that somebody knew of and accepted.
    pub accepted: BTreeSet<TxnId>,
    /// Uploads that were stored while no request of the model said so.
    pub stored_aside: BTreeSet<String>,
    fates: BTreeMap<TxnId, Verdict>,
    lost: BTreeSet<TxnId>,
    /// The last generation that was given up: with it goes whatever was begun in it or before.
    voided: Generation,
    /// What was undecided when a transaction was prepared.
    overlapped: BTreeMap<TxnId, BTreeSet<TxnId>>,
    /// What its owner knew to be complete when it began a transaction.
    complete: BTreeMap<TxnId, BTreeSet<TxnId>>,
    pub violation: Option<String>,
}

impl Truth {
    pub fn complain(&mut self, what: impl Into<String>) {
        self.violation.get_or_insert(what.into());
    }

    /// Somebody who has seen this begins a transaction.
    pub fn begins(&mut self, txn: TxnId, seen: &Seen) {
        let signed = |state: &State| {
            matches!(state, State::Prepared { sign: Some(Sign::Sign | Sign::Explicit), .. })
        };
        let complete = seen.live().filter(|(_, head)| signed(&head.record.state));
        let complete: BTreeSet<TxnId> = complete.map(|(txn, _)| txn).collect();
        if !complete.is_empty() {
            self.complete.insert(txn, complete);
        }
    }

    /// A write arrived at the store and this is what it did.
    pub fn wrote(&mut self, before: &Store, after: &Store, request: &Request, reply: &Reply) {
        match (request, reply) {
            (Request::Act(Action::SwapHead { head, .. }), Reply::Stored(_)) => {
                if let State::Prepared { .. } = head.state {
                    self.prepared(head.txn, after);
                }
            }
            (Request::Act(Action::CreateSeal(seal)), Reply::Stored(_)) => self.sealed(seal, after),
            (Request::Act(Action::DeleteFile { name, version }), Reply::Absent) => {
                let mut now = self.history.last().unwrap().clone();
                let deleted = before.objects.get(name) == Some(version);
                if deleted && now.get(name) == Some(version) {
                    now.remove(name);
                    self.history.push(now);
                }
            }
            _ => {}
        }
        let heads = after.heads.iter();
        for (txn, _) in heads.filter(|(_, head)| head.record.generation <= self.voided) {
            self.fates.entry(*txn).or_insert(Verdict::Void);
        }
    }

    fn prepared(&mut self, txn: TxnId, store: &Store) {
        let undecided = store.heads.iter().filter(|(other, head)| {
            let aborted = matches!(head.record.state, State::Aborted { .. });
            **other != txn && !aborted && !self.fates.contains_key(other)
        });
        let undecided = undecided.map(|(txn, _)| *txn).collect();
        self.overlapped.insert(txn, undecided);
    }

    fn sealed(&mut self, seal: &Seal, store: &Store) {
        let records: Vec<TxnId> = seal.records.iter().map(|sealed| sealed.txn).collect();
        let collected = records
            .iter()
            .chain(&seal.dropped)
            .all(|txn| self.fates.contains_key(txn) && !store.heads.contains_key(txn));
        if collected {
            return; // An old seal that came back: nothing may follow from it.
        }
        let mut now = self.history.last().unwrap().clone();
        for txn in &records {
            self.check_whole(*txn, store);
            self.check_siblings(*txn, &records, store);
            let before = self.complete.get(txn);
            if before.is_some_and(|before| records.iter().any(|other| before.contains(other))) {
                self.complain("contract 4: what was begun after the sign is of that commit");
            }
            let nonce = store.heads.get(txn).map(|head| head.record.nonce);
            let files = nonce.and_then(|nonce| self.frozen.get(&nonce)).cloned();
            for (name, entry) in files.unwrap_or_default() {
                lay(&mut now, name, &entry);
            }
        }
        for txn in records {
            if self.fates.insert(txn, Verdict::Commit).is_some() {
                self.complain("a transaction was decided twice");
            }
        }
        for txn in &seal.dropped {
            self.fates.insert(*txn, Verdict::Void);
        }
        match seal.verdict {
            Verdict::Commit => self.history.push(now),
            Verdict::Void => self.voided = seal.generation,
        }
    }

    /// What is committed was prepared by its owner, is whole, and nobody was told that it was lost.
    fn check_whole(&mut self, txn: TxnId, store: &Store) {
        let head = store.heads.get(&txn).map(|head| head.record.clone());
        let files = head.and_then(|head| self.frozen.get(&head.nonce)).cloned();
        let Some(files) = files else {
            return self.complain("contract 4: committed what its owner had not prepared");
        };
        if self.killed.contains(&txn) && !self.accepted.contains(&txn) {
            self.complain("contract 5: a killed process published something");
        }
        if self.lost.contains(&txn) {
            self.complain("committed what its writer was told is lost");
        }
        let uploads = files.values().filter_map(|entry| entry.upload());
        let stored = |id: &String| store.parts.contains(id) || self.stored_aside.contains(id);
        if !uploads.map(|upload| &upload.id).all(stored) {
            self.complain("contract 4: a committed file has no bytes");
        }
    }

    /// What overlapped is committed with it, or is legally lost.
    fn check_siblings(&mut self, txn: TxnId, records: &[TxnId], store: &Store) {
        for other in self.overlapped.get(&txn).cloned().unwrap_or_default() {
            let committed = self.fates.get(&other) == Some(&Verdict::Commit);
            if committed || records.contains(&other) {
                continue;
            }
            let Some(head) = store.heads.get(&other) else { continue };
            let half = match &head.record.state {
                State::Open | State::Prepared { .. } => true,
                State::Torn { .. } => !self.accepted.contains(&other),
                State::Aborted { cause: Cause::Withdrawn } => false,
                State::Aborted { .. } => {
                    head.record.loss == Loss::Poison && !self.accepted.contains(&other)
                }
            };
            if half {
                self.complain("contract 4: committed without what overlapped with it");
            }
        }
    }

    pub fn told_committed(&mut self, txn: TxnId) {
        if self.fates.get(&txn) != Some(&Verdict::Commit) {
            self.complain("acknowledged a commit that did not happen");
        }
    }

    pub fn told_lost(&mut self, txn: TxnId) {
        self.lost.insert(txn);
        if self.fates.get(&txn) == Some(&Verdict::Commit) {
            self.complain("called lost what was committed");
        }
    }

    /// What an observer shows is what the directory held at one instant while it looked.
    pub fn judge(&self, since: usize, shown: &View<'_>) -> Option<String> {
        let shown = contents(shown);
        let held = &self.history[since..];
        let right = held.contains(&shown);
        (!right).then(|| format!("contract 4: an observer shows {shown:?}; it held {held:?}"))
    }

    /// At every instant: an observer who sees all at once, and an S3 client.
    pub fn check(&mut self, store: &Store) {
        let now = self.history.last().unwrap();
        for (name, version) in &store.objects {
            if !self.history.iter().any(|held| held.get(name) == Some(version)) {
                let what = format!("an S3 client sees {name:?} {version:?} before its commit");
                return self.complain(format!("contract 4: {what}"));
            }
        }
        let seen = instant(store);
        match view(&seen) {
            Ok(shown) if contents(&shown) == *now => {}
            Ok(shown) => {
                let shown = contents(&shown);
                self.complain(format!("contract 4: shown {shown:?}, committed {now:?}"));
            }
            Err(unclear) => self.complain(format!("nothing can be shown: {unclear:?}")),
        }
    }

    /// Nobody has anything left to do: everything that is sealed is in place.
    pub fn check_quiet(&mut self, store: &Store) {
        if store.objects != *self.history.last().unwrap() {
            self.complain("all is quiet, and an S3 client does not see what was committed");
        }
    }
}

/// What somebody sees who reads everything in one instant.
pub fn instant(store: &Store) -> Seen {
    let mut seen = Seen::default();
    seen.looked(seen.known(), records(store));
    seen.listed(seen.commits(), store.objects.clone());
    look_again(&mut seen, store);
    seen
}

pub fn records(store: &Store) -> Records {
    Records {
        heads: store.heads.clone(),
        seqs: store.seqs.keys().copied().collect(),
        seals: store.seals.clone(),
        dones: store.dones.clone(),
        unreadable: BTreeMap::new(),
    }
}

pub fn look_again(seen: &mut Seen, store: &Store) {
    seen.looked(seen.known(), records(store));
    for (id, seq) in &store.seqs {
        seen.fetched(*id, Ok(Some((**seq).clone())));
    }
}

fn contents(view: &View<'_>) -> Content {
    let version = |shown: &Shown<'_>| match shown {
        Shown::Published(etag) => (*etag).clone(),
        Shown::Sealed(_, entry) => ETag(entry.upload().unwrap().id.clone()),
    };
    view.iter().map(|(name, shown)| ((*name).clone(), version(shown))).collect()
}

fn lay(now: &mut Content, name: RelPath, entry: &Entry) {
    match &entry.what {
        What::Removed { version } => {
            if now.get(&name) == version.as_ref() {
                now.remove(&name);
            }
        }
        What::File { upload, .. } | What::Symlink { upload } => {
            now.insert(name, ETag(upload.id.clone()));
        }
        What::Directory => panic!("no scenario has an empty directory"),
    }
}
