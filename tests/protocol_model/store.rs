//! A store as the protocol assumes it: conditional writes, atomic requests, uploads that complete
//! once.
//!
//! Owns what a request does when it arrives. Does not own when, how often, or who is told.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use trialfs::checkpoint::protocol::{Action, Listing, Publish, Records, Removal, Reply, Versioned};
use trialfs::checkpoint::record::{
    Generation, Head, Nonce, RelPath, Seal, Seq, TxnId, Upload, WriterId,
};
use trialfs::types::ETag;

use crate::mutants::Mutant;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Request {
    /// The records; in pages where the scenario says so.
    Look(Page),
    LookData,
    Fetch(Vec<(TxnId, u32)>),
    /// The parts of these uploads.
    Parts(Vec<String>),
    /// Any conditional write of a record, or the delete of a file.
    Act(Action),
    Step(Generation, Publish),
    Remove(Removal),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Page {
    Whole,
    /// The heads of every transaction but the first.
    First,
    /// The rest.
    Second,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    Records(Records),
    Data(Listing),
    Bodies(Vec<((TxnId, u32), Option<Seq>)>),
    Plain(Reply),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Store {
    pub heads: BTreeMap<TxnId, Versioned<Head>>,
    pub seqs: BTreeMap<(TxnId, u32), Arc<Seq>>,
    pub seals: BTreeMap<Generation, Versioned<Seal>>,
    pub dones: BTreeMap<Generation, ETag>,
    /// The natural keys. An object's ETag is the id of the upload that made it.
    pub objects: BTreeMap<RelPath, ETag>,
    /// Uploads whose parts are stored, and those that are completed.
    pub parts: BTreeSet<String>,
    pub spent: BTreeSet<String>,
}

impl Request {
    pub fn is_write(&self) -> bool {
        match self {
            Request::Look(_) | Request::LookData | Request::Fetch(_) | Request::Parts(_) => false,
            Request::Act(_) | Request::Step(..) | Request::Remove(_) => true,
        }
    }
}

fn etag(nonce: Nonce) -> ETag {
    ETag(format!("{:x}", nonce.0))
}

impl Store {
    /// The answer to a read.
    pub fn read(&self, request: &Request) -> Option<Answer> {
        match request {
            Request::Look(page) => Some(Answer::Records(self.records(*page))),
            Request::LookData => Some(Answer::Data(self.objects.clone())),
            Request::Fetch(ids) => {
                let body = |id| (id, self.seqs.get(&id).map(|seq| (**seq).clone()));
                Some(Answer::Bodies(ids.iter().copied().map(body).collect()))
            }
            Request::Parts(_) | Request::Act(_) | Request::Step(..) | Request::Remove(_) => None,
        }
    }

    pub fn apply(&mut self, request: &Request, by: &WriterId, mutant: Option<Mutant>) -> Reply {
        match request {
            Request::Parts(ids) => {
                self.parts.extend(ids.iter().cloned());
                Reply::Absent
            }
            Request::Act(action) => self.act(action, by, mutant),
            Request::Step(_, step) => self.step(step, mutant),
            Request::Remove(removal) => self.remove(removal),
            Request::Look(_) | Request::LookData | Request::Fetch(_) => Reply::Absent,
        }
    }

    fn records(&self, page: Page) -> Records {
        let first = self.heads.keys().next().copied();
        let on_page = |txn: &TxnId| match page {
            Page::Whole => true,
            Page::First => Some(*txn) != first,
            Page::Second => Some(*txn) == first,
        };
        let heads = self.heads.iter().filter(|(txn, _)| on_page(txn));
        let mut records = Records {
            heads: heads.map(|(txn, head)| (*txn, head.clone())).collect(),
            seqs: self.seqs.keys().filter(|(txn, _)| on_page(txn)).copied().collect(),
            ..Records::default()
        };
        if page != Page::First {
            records.seals = self.seals.clone();
            records.dones = self.dones.clone();
        }
        records
    }

    fn act(&mut self, action: &Action, by: &WriterId, mutant: Option<Mutant>) -> Reply {
        match action {
            Action::CreateHead(head) if !self.heads.contains_key(&head.txn) => self.put_head(head),
            Action::SwapHead { over, head } => {
                let theirs = head.txn.0 >> 8 != writer_number(by);
                let blind = mutant == Some(Mutant::TakeoverWithoutCompare) && theirs;
                match self.heads.get(&head.txn) {
                    None => Reply::Absent,
                    Some(found) if found.etag == *over || blind => self.put_head(head),
                    Some(_) => Reply::Conflict,
                }
            }
            Action::CreateSeq(seq) if !self.seqs.contains_key(&(seq.txn, seq.seq)) => {
                self.seqs.insert((seq.txn, seq.seq), Arc::new(seq.clone()));
                Reply::Stored(etag(seq.nonce))
            }
            Action::CreateSeal(seal) => {
                let blind = mutant == Some(Mutant::SealOverSeal);
                if self.seals.contains_key(&seal.generation) && !blind {
                    return Reply::Conflict;
                }
                let (etag, record) = (etag(seal.nonce), Arc::new(seal.clone()));
                self.seals.insert(seal.generation, Versioned { etag: etag.clone(), record });
                Reply::Stored(etag)
            }
            Action::CreateDone(done) if !self.dones.contains_key(&done.generation) => {
                self.dones.insert(done.generation, etag(done.nonce));
                Reply::Stored(etag(done.nonce))
            }
            Action::DeleteFile { name, version } => self.delete(name, version, false),
            _ => Reply::Conflict,
        }
    }

    fn put_head(&mut self, head: &Head) -> Reply {
        let (etag, record) = (etag(head.nonce), Arc::new(head.clone()));
        self.heads.insert(head.txn, Versioned { etag: etag.clone(), record });
        Reply::Stored(etag)
    }

    fn step(&mut self, step: &Publish, mutant: Option<Mutant>) -> Reply {
        match step {
            Publish::Mark { .. } => panic!("no scenario has an empty directory"),
            Publish::Complete { name, upload } => {
                let again = mutant == Some(Mutant::PublishByPut);
                if !self.spent.insert(upload.id.clone()) && !again {
                    return Reply::Absent;
                }
                let etag = ETag(upload.id.clone());
                self.objects.insert(name.clone(), etag.clone());
                Reply::Stored(etag)
            }
            Publish::Delete { name, version } => {
                self.delete(name, version, mutant == Some(Mutant::RemovalWithoutCompare))
            }
        }
    }

    fn delete(&mut self, name: &RelPath, version: &ETag, blind: bool) -> Reply {
        match self.objects.get(name) {
            Some(found) if found != version && !blind => Reply::Conflict,
            _ => {
                self.objects.remove(name);
                Reply::Absent
            }
        }
    }

    fn remove(&mut self, removal: &Removal) -> Reply {
        match removal {
            Removal::Seq { txn, seq, abort } => {
                self.abort(abort);
                self.seqs.remove(&(*txn, *seq));
            }
            Removal::Head { txn, abort } => {
                self.abort(abort);
                self.heads.remove(txn);
            }
            Removal::Seal { generation, version } => match self.seals.get(generation) {
                Some(seal) if seal.etag != *version => return Reply::Conflict,
                _ => {
                    self.seals.remove(generation);
                }
            },
            Removal::Done { generation } => {
                self.dones.remove(generation);
            }
        }
        Reply::Absent
    }

    fn abort(&mut self, uploads: &[(RelPath, Upload)]) {
        self.spent.extend(uploads.iter().map(|(_, upload)| upload.id.clone()));
    }
}

/// Which mount a transaction of the model belongs to: the upper bits of its id.
pub fn writer_number(writer: &WriterId) -> u128 {
    u128::from(writer.as_str().as_bytes()[1] - b'0')
}
