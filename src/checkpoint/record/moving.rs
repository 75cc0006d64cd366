//! The records of a directory's rename.
//!
//! Owns their fields, and that no name in one leads out of the directory that moves. Does not own
//! what follows from them (`moves`).

use std::borrow::Borrow;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{KeyKind, Nonce, RecordError, RecordKey, RelPath, TxnId, Unknown, WriterId, id};
use crate::types::{CONTROL_DIR, ETag, KEY_BYTES_MAX, Name};

/// Directories that a way leads up: as deep as a key can be.
const UP_MAX: u32 = KEY_BYTES_MAX as u32 / 2;
/// What an attribute record's name begins with (`namespace::attrs` owns what stands in one).
pub const ATTRIBUTES_PREFIX: &str = "attrs.";

/// How the key of an object goes on behind that of the directory that moves: `a/b` is a file, `a/`
/// a marker, nothing the directory's own marker.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Suffix(Arc<str>);

impl Suffix {
    /// Refused: what no file or marker below a directory may be called, and what is not
    /// [control](Suffix::is_control) under `.trialfs/`.
    pub fn new(text: &str) -> Result<Self, RecordError> {
        let mut names = text.strip_suffix('/').unwrap_or(text).split('/');
        let sound = |name: &str| Name::new(name).is_ok();
        let well = if text.is_empty() {
            true
        } else if names.clone().any(|name| name == CONTROL_DIR) {
            names.by_ref().take_while(|name| *name != CONTROL_DIR).all(sound) && {
                let record = text.rsplit('/').next().unwrap_or_default();
                names.count() == 1 && moves(record)
            }
        } else {
            names.all(sound)
        };
        if !well || text.len() > KEY_BYTES_MAX {
            return Err(RecordError::Invalid("a name that leads out of its directory".into()));
        }
        Ok(Self(text.into()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub fn is_marker(&self) -> bool {
        self.0.is_empty() || self.0.ends_with('/')
    }

    /// Whether it is a record of ours that moves along.
    pub fn is_control(&self) -> bool {
        self.0.split('/').any(|name| name == CONTROL_DIR)
    }
}

/// Whether a record of a directory's children moves with the directory: attributes, and the numbers
/// of the generations that are done. Of the rest everything is done.
fn moves(record: &str) -> bool {
    let done = |key: RecordKey| matches!(key.kind, KeyKind::Done(_));
    record.strip_prefix(ATTRIBUTES_PREFIX).is_some_and(|mount| Name::new(mount).is_ok())
        || RecordKey::parse(record).is_some_and(done)
}

impl Borrow<str> for Suffix {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Suffix {
    type Error = RecordError;

    fn try_from(text: String) -> Result<Self, RecordError> {
        Self::new(&text)
    }
}

impl From<Suffix> for String {
    fn from(suffix: Suffix) -> String {
        suffix.0.as_ref().into()
    }
}

/// From a directory to a child of another one, whatever the bucket's prefix is to a mount.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Way {
    pub up: u32,
    pub down: RelPath,
    #[serde(with = "id::plain")]
    pub name: Name,
}

impl Way {
    /// From `from` to `name` in `to`; both are keys without a `/` at the end, the root is empty.
    /// [`RecordError`]: the keys are none that a mount makes.
    pub fn new(from: &str, to: &str, name: Name) -> Result<Self, RecordError> {
        let names = |dir: &'_ str| -> Vec<String> {
            dir.split('/').filter(|name| !name.is_empty()).map(str::to_owned).collect()
        };
        let (from, to) = (names(from), names(to));
        let common = from.iter().zip(&to).take_while(|(a, b)| a == b).count();
        let down = RelPath::new(&to[common..].join("/"))?;
        Ok(Self { up: (from.len() - common) as u32, down, name })
    }

    /// Where it leads: the key of the directory there. `None`: out of the bucket.
    pub fn from(&self, dir: &str) -> Option<String> {
        let mut names: Vec<&str> = dir.split('/').filter(|name| !name.is_empty()).collect();
        let kept = names.len().checked_sub(self.up.min(UP_MAX + 1) as usize)?;
        names.truncate(kept);
        names.extend(self.down.as_str().split('/').filter(|name| !name.is_empty()));
        Some(names.join("/"))
    }
}

/// Says beside one end of a rename that is under way where the other is.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Pointer {
    #[serde(with = "id::plain")]
    pub child: Name,
    pub writer: WriterId,
    pub nonce: Nonce,
    pub id: TxnId,
    pub other: Way,
    /// Beside the destination: an empty directory stands there.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub over: bool,
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// One object that moves.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Listed {
    pub name: Suffix,
    pub etag: ETag,
}

/// What moves, where it is too much for the decision.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct MoveList {
    #[serde(with = "id::plain")]
    pub child: Name,
    pub writer: WriterId,
    pub nonce: Nonce,
    pub id: TxnId,
    pub number: u32,
    pub entries: Vec<Listed>,
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// What a decision says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ruling {
    Move,
    /// Whoever began it is gone: nothing moves.
    Void,
}

/// The rename: from here on the directory has its new name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Decision {
    #[serde(with = "id::plain")]
    pub child: Name,
    pub writer: WriterId,
    pub nonce: Nonce,
    pub id: TxnId,
    pub verdict: Ruling,
    pub other: Way,
    pub lists: Vec<Nonce>,
    pub entries: Vec<Listed>,
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// Says that nothing of a rename is left to do.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Moved {
    #[serde(with = "id::plain")]
    pub child: Name,
    pub writer: WriterId,
    pub nonce: Nonce,
    pub id: TxnId,
    #[serde(flatten)]
    pub unknown: Unknown,
}
