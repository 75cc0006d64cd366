//! The control records of checkpoint directories: format 1, in this one place.
//!
//! Owns what stands in a record, its bytes, its bounds and its key ([`key`]), what a manifest says
//! of one name ([`entry`]). Does not own what follows from a record (`protocol`), nor
//! `attrs.<mount>`.
//!
//! # Keys
//!
//! All lie beside the checkpoint directory `<dir>/<child>/`, under `<dir>/.trialfs/`:
//!
//! | key | type | written |
//! | --- | --- | --- |
//! | `txn.<child>.<ulid>` | [`Head`] | created if absent, then by compare-and-swap only |
//! | `txn.<child>.<ulid>.<seq>` | [`Seq`] | created if absent, never changed |
//! | `txn.<child>.seal.<generation>` | [`Seal`] | as a seq: **the commit** |
//! | `txn.<child>.done.<generation>` | [`Done`] | as a seq |
//! | `txn.<child>.from.<ulid>` | [`Pointer`] | as a seq, beside the source of a rename |
//! | `txn.<child>.into.<ulid>` | [`Pointer`] | as a seq, beside its destination |
//! | `txn.<child>.list.<ulid>.<number>` | [`MoveList`] | as a seq, beside its destination |
//! | `txn.<child>.to.<ulid>` | [`Decision`] | as a seq, beside it: **the rename** |
//! | `txn.<child>.moved.<ulid>` | [`Moved`] | as a seq, beside it |
//!
//! `<child>` is the directory's name, percent-escaped but for ASCII letters, digits, `-`, `_` and
//! `=`; one whose escaped form is over [`key::ESCAPED_BYTES_MAX`] is `~`, its beginning, `~`, and a
//! hash. `<ulid>` is 26 characters, `<seq>` and `<generation>` are decimal without leading zeros.
//!
//! # Bodies
//!
//! JSON objects. Every one has:
//!
//! | field | what |
//! | --- | --- |
//! | `format` | 1. Another number is [`RecordError::Future`]: the reader must touch nothing of it |
//! | `record` | `head`, `seq`, `seal` or `done`; agrees with the key |
//! | `child` | the directory's name, plain; agrees with the key |
//! | `writer` | the id of the mount that wrote this version |
//! | `nonce` | 16 hexadecimal digits, new with every write: no two bodies (and ETags) are alike |
//!
//! Fields that a reader doesn't know are kept when it writes the record again. A head has further:
//!
//! | field | what |
//! | --- | --- |
//! | `txn` | the ulid of its key |
//! | `generation` | the one open when it began; it is committed in that one or a later one |
//! | `order` | one more than the largest its writer had seen here: a later word wins a name |
//! | `lease_ms` | after how long without a new version its owner counts as dead |
//! | `written_as` | the directory's name until it is complete, where that is not `child` |
//! | `rule` | the commit rule it was begun under; for people |
//! | `loss` | `alone`: if its owner dies, others may commit without it; `poison`: they may not |
//! | `state` | `open`, `prepared`, `torn`, `aborted`; all but the first are final |
//! | `manifest` | with `prepared`, `torn`: `seqs` (number and nonce of each), then `entries` |
//! | `sign` | with `prepared`: why it may be sealed, `idle`, `sign`, `explicit`; absent: it waits |
//! | `cause` | with `aborted`: `withdrawn` by its writer, `restart` of its mount, `lease` over |
//!
//! A seq has `txn`, `seq` and `entries`. A seal has `generation`, `verdict` (`commit` or `void`),
//! `records` (`txn` and `etag`, in order: what the generation is made of) and `dropped`
//! (transactions that belong to it and bring nothing); a void one drops, named or not, all that was
//! begun in its generation or before and is in no commit. A done has `generation`: everything up to
//! and including it is published. The highest done outlives its seal, so that no generation's
//! number is used twice.
//!
//! # Renames
//!
//! A directory's rename ([`moves`](super::moves)) has a ulid of its own, `id`. `child` is the
//! directory's old name in a `from` and its new one in the others.
//!
//! | field | what |
//! | --- | --- |
//! | `other` | in `from`, `into` and `to`: the other end, `up`, `down` and `name`; see below |
//! | `over` | in `into`: an empty directory has the name, and is to be replaced |
//! | `verdict` | of a `to`: `move`, or `void`: given up, everything stays |
//! | `entries` | of a `to` and its `list`s: `name` and `etag` of each object that moves |
//! | `lists` | of a `to`: the nonce of each `list`, in the order of their numbers |
//!
//! The other end of a rename is told from the directory that the record lies in: `up` so many
//! levels, `down` this path, and there `name`. An entry's name is what its key has behind the
//! directory's (`""` is the directory's marker).
//!
//! While it is under way an empty-bodied mark `.trialfs/moving.<ulid>` lies in the old directory
//! and in the new. What moves beside files and markers is `attrs.*` and `txn.*.done.*`.
//!
//! # Hostile input
//!
//! A record over [`RECORD_BYTES_MAX`] is refused before it is read, lists over their bounds and
//! names that lead out of the directory while it is. Parsing never panics and recurses at most 128
//! deep.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::types::{ETag, Name};

pub mod entry;
pub mod head;
pub mod id;
pub mod key;
pub mod moving;

pub use entry::{Entry, RelPath, Upload, What};
pub use head::{Cause, Head, Loss, Manifest, SeqRef, Sign, State};
pub use id::{Generation, Nonce, TxnId, WriterId};
pub use key::{Escaped, KeyKind, RecordKey};
pub use moving::{Decision, Listed, MoveList, Moved, Pointer, Ruling, Suffix, Way};

/// The format this code writes, and the only one it reads.
pub const FORMAT: u64 = 1;
/// The longest record, in bytes. JSON takes up to 16 times its length in memory, and a few records
/// are parsed at a time, within the mount's 512 MiB.
pub const RECORD_BYTES_MAX: usize = 4 << 20;
/// Entries in one record: at their usual 250 bytes they fill half of it.
pub const ENTRIES_MAX: usize = 8192;
/// Seqs of one transaction, and transactions of one seal: both are listed in one record.
pub const REFERENCES_MAX: usize = 8192;
/// Lists of one move: 8 million objects, each list read in a GET of its own.
pub const LISTS_MAX: usize = 1024;
/// No directory is committed so often; a hostile record must not use the numbers up.
pub const GENERATION_MAX: Generation = Generation(1 << 48);

/// Fields that this version does not know, kept for the one that does.
pub type Unknown = Map<String, Value>;

/// Why a record was not read.
#[derive(Debug, Clone, PartialEq, Eq, Hash, thiserror::Error)]
pub enum RecordError {
    /// Written by a later version. The caller touches nothing in that directory and says so.
    #[error("written in format {0}, which needs a later version of trialfs")]
    Future(u64),
    /// Over [`RECORD_BYTES_MAX`]. The caller treats it as [`RecordError::Invalid`].
    #[error("a control record of {0} bytes")]
    TooLarge(u64),
    /// Not a record, or one that contradicts its key or its bounds. The caller shows nothing that
    /// depends on it, counts it, and names it in `status`.
    #[error("not a valid control record: {0}")]
    Invalid(String),
}

/// One group commit of a transaction: the files closed since the one before.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Seq {
    #[serde(with = "id::plain")]
    pub child: Name,
    pub writer: WriterId,
    pub nonce: Nonce,
    pub txn: TxnId,
    pub seq: u32,
    pub entries: Vec<Entry>,
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// What a seal does with its generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Its records are committed.
    Commit,
    /// The generation was poisoned and given up; everything it names is dropped.
    Void,
}

/// A record that a seal makes part of its generation.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Sealed {
    pub txn: TxnId,
    /// The version that was prepared, which is its last.
    pub etag: ETag,
}

/// The commit point of a generation.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Seal {
    #[serde(with = "id::plain")]
    pub child: Name,
    pub writer: WriterId,
    pub nonce: Nonce,
    pub generation: Generation,
    pub verdict: Verdict,
    /// What it is made of, in order: the last wins a name.
    pub records: Vec<Sealed>,
    /// What belongs to it and brings nothing: aborted, or poisoned.
    pub dropped: Vec<TxnId>,
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// Says that everything up to and including a generation is published.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Done {
    #[serde(with = "id::plain")]
    pub child: Name,
    pub writer: WriterId,
    pub nonce: Nonce,
    pub generation: Generation,
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// Any record.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Record {
    Head(Head),
    Seq(Seq),
    Seal(Seal),
    Done(Done),
    From(Pointer),
    Into(Pointer),
    List(MoveList),
    To(Decision),
    Moved(Moved),
}

/// What every body opens with.
#[derive(Serialize, Deserialize)]
struct Envelope<T> {
    format: u64,
    record: String,
    #[serde(flatten)]
    body: T,
}

/// Reads a record found at `key`, in no request.
pub fn parse(key: &RecordKey, bytes: &[u8]) -> Result<Record, RecordError> {
    #[derive(Deserialize)]
    struct Peek {
        format: u64,
        record: String,
    }
    if bytes.len() > RECORD_BYTES_MAX {
        return Err(RecordError::TooLarge(bytes.len() as u64));
    }
    let peek: Peek = serde_json::from_slice(bytes).map_err(invalid)?;
    if peek.format > FORMAT {
        return Err(RecordError::Future(peek.format));
    }
    if peek.format != FORMAT || peek.record != key.kind.word() {
        return Err(RecordError::Invalid(format!(
            "a {} where the key says otherwise",
            peek.record
        )));
    }
    let record = match key.kind {
        KeyKind::Head(_) => Record::Head(body(bytes)?),
        KeyKind::Seq(..) => Record::Seq(body(bytes)?),
        KeyKind::Seal(_) => Record::Seal(body(bytes)?),
        KeyKind::Done(_) => Record::Done(body(bytes)?),
        KeyKind::From(_) => Record::From(body(bytes)?),
        KeyKind::Into(_) => Record::Into(body(bytes)?),
        KeyKind::List(..) => Record::List(body(bytes)?),
        KeyKind::To(_) => Record::To(body(bytes)?),
        KeyKind::Moved(_) => Record::Moved(body(bytes)?),
    };
    record.check()?;
    if record.key() != *key {
        return Err(RecordError::Invalid("it belongs under another key".into()));
    }
    Ok(record)
}

/// Whether an object that a listing shows is worth a GET at all.
pub fn check_size(bytes: u64) -> Result<(), RecordError> {
    if bytes > RECORD_BYTES_MAX as u64 {
        return Err(RecordError::TooLarge(bytes));
    }
    Ok(())
}

impl Record {
    /// The body to store; [`RecordError`] if a reader would refuse it.
    pub fn encode(&self) -> Result<Vec<u8>, RecordError> {
        self.check()?;
        let bytes = match self {
            Record::Head(head) => wrapped("head", head),
            Record::Seq(seq) => wrapped("seq", seq),
            Record::Seal(seal) => wrapped("seal", seal),
            Record::Done(done) => wrapped("done", done),
            Record::From(pointer) => wrapped("from", pointer),
            Record::Into(pointer) => wrapped("into", pointer),
            Record::List(list) => wrapped("list", list),
            Record::To(decision) => wrapped("to", decision),
            Record::Moved(moved) => wrapped("moved", moved),
        }?;
        check_size(bytes.len() as u64)?;
        Ok(bytes)
    }

    /// The name of the directory that it speaks of.
    pub fn child(&self) -> &Name {
        match self {
            Record::Head(head) => &head.child,
            Record::Seq(seq) => &seq.child,
            Record::Seal(seal) => &seal.child,
            Record::Done(done) => &done.child,
            Record::From(pointer) | Record::Into(pointer) => &pointer.child,
            Record::List(list) => &list.child,
            Record::To(decision) => &decision.child,
            Record::Moved(moved) => &moved.child,
        }
    }

    /// The key that it belongs under.
    pub fn key(&self) -> RecordKey {
        let kind = match self {
            Record::Head(head) => KeyKind::Head(head.txn),
            Record::Seq(seq) => KeyKind::Seq(seq.txn, seq.seq),
            Record::Seal(seal) => KeyKind::Seal(seal.generation),
            Record::Done(done) => KeyKind::Done(done.generation),
            Record::From(pointer) => KeyKind::From(pointer.id),
            Record::Into(pointer) => KeyKind::Into(pointer.id),
            Record::List(list) => KeyKind::List(list.id, list.number),
            Record::To(decision) => KeyKind::To(decision.id),
            Record::Moved(moved) => KeyKind::Moved(moved.id),
        };
        RecordKey { child: Escaped::of(self.child()), kind }
    }

    fn generation(&self) -> Option<Generation> {
        match self {
            Record::Head(head) => Some(head.generation),
            Record::Seq(_) => None,
            Record::Seal(seal) => Some(seal.generation),
            Record::Done(done) => Some(done.generation),
            Record::From(_)
            | Record::Into(_)
            | Record::List(_)
            | Record::To(_)
            | Record::Moved(_) => None,
        }
    }

    fn check(&self) -> Result<(), RecordError> {
        let (entries, references) = match self {
            Record::Head(head) => match head.state.manifest() {
                Some(manifest) => (manifest.entries.as_slice(), manifest.seqs.len()),
                None => (&[][..], 0),
            },
            Record::Seq(seq) => (seq.entries.as_slice(), 0),
            Record::Seal(seal) => (&[][..], seal.records.len() + seal.dropped.len()),
            Record::To(decision) => (&[][..], decision.entries.len() + decision.lists.len()),
            Record::List(list) => (&[][..], list.entries.len()),
            Record::Done(_) | Record::From(_) | Record::Into(_) | Record::Moved(_) => (&[][..], 0),
        };
        if entries.len() > ENTRIES_MAX || references > REFERENCES_MAX {
            return Err(RecordError::Invalid("more entries than a record may have".into()));
        }
        if let Record::Seal(seal) = self
            && seal.verdict == Verdict::Void
            && !seal.records.is_empty()
        {
            return Err(RecordError::Invalid("a void seal that commits".into()));
        }
        if self.generation().is_some_and(|generation| generation > GENERATION_MAX) {
            return Err(RecordError::Invalid("a generation that leaves none after it".into()));
        }
        entries.iter().try_for_each(Entry::check)
    }
}

fn wrapped<T: Serialize>(word: &str, body: &T) -> Result<Vec<u8>, RecordError> {
    let envelope = Envelope { format: FORMAT, record: word.into(), body };
    serde_json::to_vec(&envelope).map_err(invalid)
}

fn body<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, RecordError> {
    Ok(serde_json::from_slice::<Envelope<T>>(bytes).map_err(invalid)?.body)
}

fn invalid(error: serde_json::Error) -> RecordError {
    RecordError::Invalid(error.to_string())
}

#[cfg(test)]
mod tests;
