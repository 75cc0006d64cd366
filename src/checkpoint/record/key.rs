//! The keys of control records: building, parsing, and the escaped name of a directory in them.
//!
//! Owns that two directories never share a record and that a key says of itself what it is. Does
//! not own what stands in a record.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use super::id::{Generation, TxnId};
use crate::types::{CONTROL_DIR, KEY_BYTES_MAX, Key, Name};

/// The longest escaped name that stands in a key in full, in bytes. It leaves 768 of a key's 1,024
/// for the directories above and for what follows the name, whatever that is.
pub const ESCAPED_BYTES_MAX: usize = 192;
/// How much of a longer one is kept for people to recognise.
const KEPT_BYTES: usize = 96;
/// Opens a shortened name; `~` is escaped in a plain one.
const SHORTENED: char = '~';
/// Every key of ours that belongs to a transaction opens so.
const PREFIX: &str = "txn";

/// What stands unescaped: no `.`, which separates, no `%` and `~`, which mark, nothing odd.
const ESCAPE: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'=');

/// The name of a checkpoint directory as it stands in keys.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Escaped(Box<str>);

impl Escaped {
    /// The same for every mount of the bucket, whatever its prefix.
    ///
    /// A name over the bound becomes `~<beginning>~<hash>`. Should two such ever meet, the `child`
    /// in each record tells them apart.
    pub fn of(child: &Name) -> Self {
        let full = utf8_percent_encode(child.as_str(), ESCAPE).to_string();
        if full.len() <= ESCAPED_BYTES_MAX {
            return Self(full.into());
        }
        let hash = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, child.as_str().as_bytes());
        let kept = &full[..KEPT_BYTES];
        Self(format!("{SHORTENED}{kept}{SHORTENED}{hash:016x}").into())
    }

    /// The name, unless it was shortened: then only a record's body tells it.
    pub fn name(&self) -> Option<Name> {
        let text = percent_decode_str(&self.0).decode_utf8().ok()?;
        let name = Name::new(&text).ok()?;
        (Self::of(&name) == *self).then_some(name)
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// A name as it stands in a key.
    pub fn parse(text: &str) -> Option<Self> {
        let escaped = Self(text.into());
        let shortened = || {
            let (kept, hash) = text.strip_prefix(SHORTENED)?.split_once(SHORTENED)?;
            let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_=%".contains(&b);
            let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
            let fits = kept.len() == KEPT_BYTES && hash.len() == 16;
            (fits && kept.bytes().all(plain) && hash.bytes().all(hex)).then_some(())
        };
        (escaped.name().is_some() || shortened().is_some()).then_some(escaped)
    }
}

/// What a key says its record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum KeyKind {
    Head(TxnId),
    Seq(TxnId, u32),
    Seal(Generation),
    Done(Generation),
    /// Of a move: beside its source, beside its destination, what it moves, its decision, its end.
    From(TxnId),
    Into(TxnId),
    List(TxnId, u32),
    To(TxnId),
    Moved(TxnId),
}

impl KeyKind {
    /// The move that it belongs to; `None`: it is of a transaction.
    pub fn of_move(self) -> Option<TxnId> {
        match self {
            KeyKind::Head(_) | KeyKind::Seq(..) | KeyKind::Seal(_) | KeyKind::Done(_) => None,
            KeyKind::From(id)
            | KeyKind::Into(id)
            | KeyKind::List(id, _)
            | KeyKind::To(id)
            | KeyKind::Moved(id) => Some(id),
        }
    }

    /// The word that stands in the body for it.
    pub fn word(self) -> &'static str {
        match self {
            KeyKind::Head(_) => "head",
            KeyKind::Seq(..) => "seq",
            KeyKind::Seal(_) => "seal",
            KeyKind::Done(_) => "done",
            KeyKind::From(_) => "from",
            KeyKind::Into(_) => "into",
            KeyKind::List(..) => "list",
            KeyKind::To(_) => "to",
            KeyKind::Moved(_) => "moved",
        }
    }
}

/// Which record of which directory.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RecordKey {
    pub child: Escaped,
    pub kind: KeyKind,
}

/// The key would be longer than stores take: the directory can't be a checkpoint. ENAMETOOLONG.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the control records of this directory would have keys over {KEY_BYTES_MAX} bytes")]
pub struct KeyTooLong;

impl RecordKey {
    /// Parses what follows `.trialfs/` in a key. `None`: not a record of a transaction, and not
    /// ours to touch.
    pub fn parse(text: &str) -> Option<Self> {
        let mut words = text.split('.');
        if words.next()? != PREFIX {
            return None;
        }
        let child = Escaped::parse(words.next()?)?;
        let kind = match (words.next()?, words.next()) {
            ("seal", number) => KeyKind::Seal(Generation(canonical(number?)?)),
            ("done", number) => KeyKind::Done(Generation(canonical(number?)?)),
            ("from", id) => KeyKind::From(id?.parse().ok()?),
            ("into", id) => KeyKind::Into(id?.parse().ok()?),
            ("to", id) => KeyKind::To(id?.parse().ok()?),
            ("moved", id) => KeyKind::Moved(id?.parse().ok()?),
            ("list", id) => {
                let number = u32::try_from(canonical(words.next()?)?).ok()?;
                KeyKind::List(id?.parse().ok()?, number)
            }
            (txn, None) => KeyKind::Head(txn.parse().ok()?),
            (txn, Some(seq)) => {
                KeyKind::Seq(txn.parse().ok()?, u32::try_from(canonical(seq)?).ok()?)
            }
        };
        words.next().is_none().then_some(Self { child, kind })
    }

    /// The whole key, for a child of `dir` (`""` for the root, no `/` at the end).
    pub fn to_key(&self, dir: &str) -> Result<Key, KeyTooLong> {
        let key = format!("{}{self}", control_prefix(dir));
        if key.len() > KEY_BYTES_MAX {
            return Err(KeyTooLong);
        }
        Ok(Key::new(key))
    }
}

impl std::fmt::Display for RecordKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let child = self.child.as_str();
        match self.kind {
            KeyKind::Head(txn) => write!(f, "{PREFIX}.{child}.{txn}"),
            KeyKind::Seq(txn, seq) => write!(f, "{PREFIX}.{child}.{txn}.{seq}"),
            KeyKind::Seal(generation) => write!(f, "{PREFIX}.{child}.seal.{}", generation.0),
            KeyKind::Done(generation) => write!(f, "{PREFIX}.{child}.done.{}", generation.0),
            KeyKind::List(id, number) => write!(f, "{PREFIX}.{child}.list.{id}.{number}"),
            KeyKind::From(id) | KeyKind::Into(id) | KeyKind::To(id) | KeyKind::Moved(id) => {
                write!(f, "{PREFIX}.{child}.{}.{id}", self.kind.word())
            }
        }
    }
}

/// What the keys of every record of `dir`'s children open with.
pub fn control_prefix(dir: &str) -> String {
    let slash = if dir.is_empty() { "" } else { "/" };
    format!("{dir}{slash}{CONTROL_DIR}/")
}

/// What the keys of every record of one child open with: one LIST finds them all.
pub fn child_prefix(dir: &str, child: &Escaped) -> String {
    format!("{}{PREFIX}.{}.", control_prefix(dir), child.as_str())
}

/// What the name of a mark opens with: a mark lies in the source and in the destination of a move
/// while it is under way, so that whoever lists one of the two looks for its records.
pub const MARK_PREFIX: &str = "moving.";

/// The key of a move's mark in `directory`, which ends in `/`.
pub fn mark_key(directory: &str, id: TxnId) -> Key {
    Key::new(format!("{directory}{CONTROL_DIR}/{MARK_PREFIX}{id}"))
}

/// A decimal number in the one way we write it.
fn canonical(text: &str) -> Option<u64> {
    let number: u64 = text.parse().ok()?;
    (number.to_string() == text).then_some(number)
}
