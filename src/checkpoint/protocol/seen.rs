//! What a mount has seen of one checkpoint directory, and how each answer of the store adds to it.
//!
//! Owns what is known, how old it is, and what was known before the last look began. Does not own
//! what it amounts to ([`facts`]), nor what is done about it.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use super::{Action, Publish, Removal};
use crate::checkpoint::record::{
    Escaped, Generation, Head, KeyKind, Record, RecordError, RecordKey, RelPath, Seal, Seq, State,
    TxnId,
};
use crate::types::ETag;

pub mod facts;

pub use facts::{Becomes, Content, Fate};

/// A record and the version of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Versioned<T> {
    pub etag: ETag,
    pub record: Arc<T>,
}

/// By the version alone: the nonces in records keep two from being alike.
impl<T> Hash for Versioned<T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.etag.hash(state);
    }
}

/// What one look at the records brought: a LIST of the child's prefix, all pages, and the bodies of
/// the heads and seals in it. A body that is newer than the LIST says is not to be used: look
/// again.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Records {
    pub heads: BTreeMap<TxnId, Versioned<Head>>,
    /// The seqs that the LIST names; [`Action::Fetch`] asks for the bodies that are needed.
    pub seqs: BTreeSet<(TxnId, u32)>,
    pub seals: BTreeMap<Generation, Versioned<Seal>>,
    pub dones: BTreeMap<Generation, ETag>,
    /// What stood there and could not be read.
    pub unreadable: BTreeMap<RecordKey, RecordError>,
}

/// The objects below the directory, by their path in it; the root is its marker.
pub type Listing = BTreeMap<RelPath, ETag>;

/// The commits that a look showed. As long as they are the same, so is what an observer may show.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Commits {
    pub done: Generation,
    pub seals: BTreeMap<Generation, ETag>,
}

/// What was known when a look began. Take it before the LIST is sent.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Known {
    settled: BTreeSet<TxnId>,
    seals: BTreeSet<Generation>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Data {
    listing: Listing,
    /// The commits known when the data look began.
    under: Commits,
    /// Whether a later look showed the same.
    confirmed: bool,
}

/// What was seen of one checkpoint directory.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Seen {
    records: Records,
    bodies: BTreeMap<(TxnId, u32), Arc<Seq>>,
    data: Option<Data>,
    /// Steps of publishing undone generations that are known to be spent.
    spent: BTreeSet<(Generation, Publish)>,
    /// Open heads whose lease is over by our own watching (see `lease`).
    expired: BTreeSet<TxnId>,
    before: Known,
    /// Whether the records were looked at, and nothing since said that they changed.
    current: bool,
}

/// How the store answered a request.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Reply {
    /// It was written, as this version.
    Stored(ETag),
    /// The condition did not hold.
    Conflict,
    /// There is no such object or upload: because a delete was done, too.
    Absent,
    /// No answer: done, not done, or yet to be done.
    Lost,
}

/// Why the content of a generation can't be told yet.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Unclear {
    /// The records: they may have changed, or a seal names what this look did not show.
    Look,
    /// The data.
    LookData,
    /// These seqs have not been read.
    Fetch(Vec<(TxnId, u32)>),
    /// A record that it hangs on can't be read. EIO.
    Unreadable,
}

impl Seen {
    /// What is known now; take it when a look begins, and hand it in when it ends.
    pub fn known(&self) -> Known {
        let settled = self.records.heads.iter();
        let settled = settled.filter(|(_, head)| head.record.state != State::Open);
        Known {
            settled: settled.map(|(txn, _)| *txn).collect(),
            seals: self.records.seals.keys().copied().collect(),
        }
    }

    /// A look at the records ended.
    pub fn looked(&mut self, before: Known, records: Records) {
        let same = |txn: &TxnId, records: &Records| {
            let etag = |records: &Records| records.heads.get(txn).map(|head| head.etag.clone());
            etag(records).is_some() && etag(records) == etag(&self.records)
        };
        let expired = self.expired.iter().copied().filter(|txn| same(txn, &records)).collect();
        self.expired = expired;
        self.bodies.retain(|id, _| records.seqs.contains(id));
        self.records = records;
        self.before = before;
        self.current = true;
        let commits = self.commits();
        self.spent.retain(|(generation, _)| *generation > commits.done);
        match &mut self.data {
            Some(data) if data.under == commits => data.confirmed = true,
            _ => self.data = None,
        }
    }

    /// A look at the data ended. `under` was taken from [`Seen::commits`] when it began.
    pub fn listed(&mut self, under: Commits, listing: Listing) {
        self.data = Some(Data { listing, under, confirmed: false });
    }

    /// The body of a seq came; `None`: it is gone, which a look will explain.
    pub fn fetched(&mut self, id: (TxnId, u32), seq: Result<Option<Seq>, RecordError>) {
        match seq {
            Ok(Some(seq)) => {
                self.bodies.insert(id, Arc::new(seq));
            }
            Ok(None) => self.current = false,
            Err(error) => {
                let child = self.records.heads.get(&id.0).map(|head| head.record.child.clone());
                if let Some(child) = child {
                    let child = Escaped::of(&child);
                    let kind = KeyKind::Seq(id.0, id.1);
                    self.records.unreadable.insert(RecordKey { child, kind }, error);
                }
            }
        }
    }

    /// The lease of this head is over, by our own clock and watching.
    pub fn expire(&mut self, txn: TxnId) {
        self.expired.insert(txn);
    }

    /// A request that `next` asked for was answered. Looks, fetches and the steps of a
    /// [`Action::Publish`] have functions of their own.
    pub fn answered(&mut self, action: &Action, reply: Reply) {
        let Reply::Stored(etag) = reply else {
            return self.refused(action);
        };
        match action {
            Action::CreateHead(head) | Action::SwapHead { head, .. } => {
                let record = Arc::new(head.clone());
                self.records.heads.insert(head.txn, Versioned { etag, record });
            }
            Action::CreateSeq(seq) => {
                self.records.seqs.insert((seq.txn, seq.seq));
                self.bodies.insert((seq.txn, seq.seq), Arc::new(seq.clone()));
            }
            Action::CreateSeal(seal) => {
                let record = Arc::new(seal.clone());
                self.records.seals.insert(seal.generation, Versioned { etag, record });
            }
            Action::CreateDone(done) => {
                self.records.dones.insert(done.generation, etag);
                self.spent.retain(|(generation, _)| *generation > done.generation);
            }
            _ => {}
        }
    }

    fn refused(&mut self, action: &Action) {
        match action {
            Action::DeleteFile { .. } => self.data = None,
            _ => self.current = false,
        }
    }

    /// One step of publishing a generation was answered. But for a lost answer, it is spent: it
    /// can't happen (again) from now on, whoever tries.
    pub fn published(&mut self, generation: Generation, step: &Publish, reply: &Reply) {
        match reply {
            Reply::Stored(_) | Reply::Conflict | Reply::Absent => {
                self.spent.insert((generation, step.clone()));
            }
            Reply::Lost => {}
        }
    }

    /// The data may have changed since it was listed: list it again before it is shown.
    pub fn forget_data(&mut self) {
        self.data = None;
    }

    /// What is known may be old: look before anything else is decided.
    pub fn forget(&mut self) {
        self.current = false;
    }

    /// A record was removed, or was not there.
    pub fn removed(&mut self, removal: &Removal) {
        match removal {
            Removal::Seq { txn, seq, .. } => {
                self.records.seqs.remove(&(*txn, *seq));
                self.bodies.remove(&(*txn, *seq));
            }
            Removal::Head { txn, .. } => {
                self.records.heads.remove(txn);
            }
            Removal::Seal { generation, .. } => {
                self.records.seals.remove(generation);
            }
            Removal::Done { generation, .. } => {
                self.records.dones.remove(generation);
            }
        }
    }
}

/// Sorts what a look read into [`Records`].
impl Records {
    pub fn add(&mut self, etag: ETag, record: Record) {
        match record {
            Record::Head(head) => {
                self.heads.insert(head.txn, Versioned { etag, record: Arc::new(head) });
            }
            Record::Seal(seal) => {
                self.seals.insert(seal.generation, Versioned { etag, record: Arc::new(seal) });
            }
            Record::Seq(seq) => {
                self.seqs.insert((seq.txn, seq.seq));
            }
            Record::Done(done) => {
                self.dones.insert(done.generation, etag);
            }
            // Renames have their own look.
            Record::From(_)
            | Record::Into(_)
            | Record::List(_)
            | Record::To(_)
            | Record::Moved(_) => {}
        }
    }
}
