//! What the journal keeps of a file that was acknowledged and is not in the bucket yet.
//!
//! Owns the words and their encoding: four bytes with the length of a JSON object, that object, and
//! behind it the file's bytes where they are few. Does not own where it is kept (`journal`). Pure.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::types::{ETag, Key};

/// The one format so far. A journal of a later one is left alone.
pub const FORMAT: u32 = 1;
/// Up to this size a file's bytes stand in the journal itself, so that one sync acknowledges it: a
/// file of its own would take two, and a data sync of a new file costs more than these bytes.
pub const INLINE_BYTES_MAX: u64 = 64 << 10;
const LENGTH_BYTES: usize = 4;

/// The place of a close in the order of all closes of this cache directory; the journal's key.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct CloseId(pub u64);

/// What the file replaces.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Before {
    /// Nothing: as far as this node knew there was no such object.
    Absent,
    Version(ETag),
    /// What an earlier close makes, once it is in the bucket.
    Closed(CloseId),
}

/// An upload by parts that was begun for the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Begun {
    pub upload: String,
    /// The parts that the store has, by index from 0.
    pub parts: BTreeMap<u32, BegunPart>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BegunPart {
    pub etag: String,
    pub len: u64,
    /// CRC64NVME of its bytes.
    pub crc: u64,
}

/// An acknowledged file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Intent {
    pub format: u32,
    #[serde(skip)]
    pub id: CloseId,
    /// The last close that came before the file was opened to be written: what was closed up to
    /// then shows before this does.
    pub opened: CloseId,
    #[serde(with = "key_as_text")]
    pub key: Key,
    /// The name of the staged file.
    pub file: String,
    pub size: u64,
    /// CRC64NVME of the content.
    pub crc: u64,
    pub before: Before,
    /// It belongs to the transaction of a checkpoint directory, which alone may show it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub in_transaction: bool,
    /// Whatever the file system wants to find again.
    #[serde(default, skip_serializing_if = "serde_json::Value::is_null")]
    pub attributes: serde_json::Value,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub begun: Option<Begun>,
    /// The content, if it has at most [`INLINE_BYTES_MAX`].
    #[serde(skip)]
    pub bytes: Option<Vec<u8>>,
}

/// Why a value of the journal is no intent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadIntent {
    #[error("cut short")]
    Short,
    #[error("of format {0}, which this version does not know")]
    Format(u32),
    #[error("not understood: {0}")]
    Json(String),
    #[error("the bytes in it are not those that were put in")]
    Bytes,
}

impl Intent {
    pub fn encode(&self) -> Vec<u8> {
        let json = serde_json::to_vec(self).unwrap_or_default(); // our own types always encode
        let bytes = self.bytes.as_deref().unwrap_or_default();
        let mut value = Vec::with_capacity(LENGTH_BYTES + json.len() + bytes.len());
        value.extend_from_slice(&(json.len() as u32).to_le_bytes());
        value.extend_from_slice(&json);
        value.extend_from_slice(bytes);
        value
    }

    pub fn decode(id: CloseId, value: &[u8]) -> Result<Self, BadIntent> {
        let (length, rest) = value.split_first_chunk::<LENGTH_BYTES>().ok_or(BadIntent::Short)?;
        let length = u32::from_le_bytes(*length) as usize;
        let (json, bytes) = rest.split_at_checked(length).ok_or(BadIntent::Short)?;
        let not_json = |error: serde_json::Error| BadIntent::Json(error.to_string());
        let Format { format } = serde_json::from_slice(json).map_err(not_json)?;
        if format != FORMAT {
            return Err(BadIntent::Format(format));
        }
        let mut intent: Self = serde_json::from_slice(json).map_err(not_json)?;
        intent.id = id;
        if intent.size > 0 && bytes.is_empty() {
            return Ok(intent);
        }
        if bytes.len() as u64 != intent.size || crc_fast::crc64_nvme(bytes) != intent.crc {
            return Err(BadIntent::Bytes);
        }
        intent.bytes = Some(bytes.to_vec());
        Ok(intent)
    }
}

#[derive(Deserialize)]
struct Format {
    format: u32,
}

mod key_as_text {
    use super::Key;
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(key: &Key, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(key.as_str())
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Key, D::Error> {
        String::deserialize(deserializer).map(Key::new)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    pub fn intent(id: u64, key: &str, bytes: &[u8]) -> Intent {
        Intent {
            format: FORMAT,
            id: CloseId(id),
            opened: CloseId(id - 1),
            key: Key::new(key),
            file: format!("{id}.staged"),
            size: bytes.len() as u64,
            crc: crc_fast::crc64_nvme(bytes),
            before: Before::Absent,
            in_transaction: false,
            attributes: serde_json::Value::Null,
            begun: None,
            bytes: Some(bytes.to_vec()),
        }
    }

    #[test]
    fn what_goes_in_comes_out() {
        let small = intent(7, "a/ü\n", b"bytes");
        let part = BegunPart { etag: "e".to_owned(), len: 5, crc: u64::MAX };
        let begun = Begun { upload: "u".to_owned(), parts: BTreeMap::from([(3, part)]) };
        let large = Intent {
            bytes: None,
            size: 1 << 40,
            before: Before::Version(ETag("x".to_owned())),
            begun: Some(begun),
            attributes: serde_json::json!({ "mode": 0o600 }),
            ..small.clone()
        };
        let empty = intent(7, "k", b"");
        for intent in [small, large, empty] {
            assert_eq!(Intent::decode(CloseId(7), &intent.encode()), Ok(intent));
        }
    }

    #[test]
    fn what_a_later_version_wrote_is_not_guessed_at() {
        let intent = Intent { format: 2, ..intent(1, "k", b"x") };
        assert_eq!(Intent::decode(CloseId(1), &intent.encode()), Err(BadIntent::Format(2)));
    }

    proptest! {
        #[test]
        fn no_damage_goes_unnoticed(at in 0usize..400, change in 1u8.., len in 1usize..200) {
            let bytes: Vec<u8> = (0..len).map(|n| n as u8).collect();
            let whole = intent(1, "k", &bytes);
            let mut value = whole.encode();
            let json = value.len() - len;
            let at = json + at % len;
            value[at] ^= change;
            prop_assert_eq!(Intent::decode(CloseId(1), &value), Err(BadIntent::Bytes));
            value.truncate(at);
            let decoded = Intent::decode(CloseId(1), &value);
            prop_assert!(decoded.map(|intent| intent.bytes.is_none()) != Ok(false));
        }

        #[test]
        fn no_value_is_a_panic(value in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Intent::decode(CloseId(1), &value);
        }
    }
}
