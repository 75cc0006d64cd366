//! The ids that records carry: who wrote, which write, which transaction, which generation.
//!
//! Owns how each is spelled. Does not own how one is drawn: randomness comes in by argument.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// The longest id of a mount, in bytes; ours have 26.
const WRITER_BYTES_MAX: usize = 64;
const ULID_ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
const ULID_LENGTH: usize = 26;

/// A text that is not a valid id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a valid {0}")]
pub struct BadId(&'static str);

/// The id of a mount: ASCII letters, digits and `-`, drawn once for a cache directory.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct WriterId(Arc<str>);

impl WriterId {
    pub fn new(id: &str) -> Result<Self, BadId> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
        if id.is_empty() || id.len() > WRITER_BYTES_MAX || !id.bytes().all(plain) {
            return Err(BadId("writer id"));
        }
        Ok(Self(id.into()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for WriterId {
    type Error = BadId;

    fn try_from(id: String) -> Result<Self, BadId> {
        Self::new(&id)
    }
}

impl From<WriterId> for String {
    fn from(id: WriterId) -> String {
        id.0.as_ref().into()
    }
}

/// Tells two writes apart, also two of the same bytes by the same writer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Nonce(pub u64);

impl TryFrom<String> for Nonce {
    type Error = BadId;

    fn try_from(text: String) -> Result<Self, BadId> {
        let digits = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        if text.len() != 16 || !text.bytes().all(digits) {
            return Err(BadId("nonce"));
        }
        u64::from_str_radix(&text, 16).map(Nonce).map_err(|_| BadId("nonce"))
    }
}

impl From<Nonce> for String {
    fn from(nonce: Nonce) -> String {
        format!("{:016x}", nonce.0)
    }
}

/// The ULID of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TxnId(pub u128);

impl FromStr for TxnId {
    type Err = BadId;

    fn from_str(text: &str) -> Result<Self, BadId> {
        if text.len() != ULID_LENGTH || text.as_bytes()[0] > b'7' {
            return Err(BadId("transaction id"));
        }
        let digit = |b: u8| ULID_ALPHABET.iter().position(|&a| a == b);
        let mut id = 0u128;
        for byte in text.bytes() {
            id = id << 5 | digit(byte).ok_or(BadId("transaction id"))? as u128;
        }
        Ok(Self(id))
    }
}

impl fmt::Display for TxnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for i in (0..ULID_LENGTH).rev() {
            let digit = (self.0 >> (5 * i)) as usize & 31;
            write!(f, "{}", ULID_ALPHABET[digit] as char)?;
        }
        Ok(())
    }
}

impl TryFrom<String> for TxnId {
    type Error = BadId;

    fn try_from(text: String) -> Result<Self, BadId> {
        text.parse()
    }
}

impl From<TxnId> for String {
    fn from(id: TxnId) -> String {
        id.to_string()
    }
}

/// The number of a generation, from 1; 0 stands for "none yet".
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Generation(pub u64);

impl Generation {
    /// The next one. Hostile numbers stay where they are, which makes the next create fail.
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

/// A [`crate::types::Name`] as plain text.
pub mod plain {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    use crate::types::Name;

    pub fn serialize<S: Serializer>(name: &Name, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(name.as_str())
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Name, D::Error> {
        let text = String::deserialize(deserializer)?;
        Name::new(&text).map_err(|_| D::Error::custom("not a name that a directory can have"))
    }
}
