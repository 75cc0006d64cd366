//! The record `<dir>/.trialfs/attrs.<mount>`: what one mount knows of a directory's children that a
//! listing can't say. Format 1.
//!
//! Owns its parsing, its bounds and the rule by which the records of several mounts are merged.
//! An entry speaks of one version of an object and is void once that changed; a directory's entry
//! has no version. Of several valid ones the one made last (by its writer's clock) counts.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use super::inode::Attributes;
use crate::types::{CONTROL_DIR, ETag, Kind, Name};

/// The only format this version writes and reads.
pub const FORMAT: u32 = 1;
/// A larger record is refused: a hostile bucket must not exhaust memory. 100,000 entries take 30
/// MiB.
pub const RECORD_BYTES_MAX: u64 = 64 << 20;
/// What a record's name begins with.
pub const RECORD_PREFIX: &str = "attrs.";

/// What is wrong with a record. The caller leaves it out, counts it and goes on.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    #[error("not a record: {0}")]
    Malformed(#[from] serde_json::Error),
    #[error("format {0} is newer than this version understands")]
    Future(u32),
}

/// The entry of the mount's root, which has no parent to record it, in the root's own records.
pub const OWN_ENTRY: &str = ".";

/// Attributes of one child, in the record's form. Times are nanoseconds since 1970.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Recorded {
    /// The version spoken of; absent for a directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub etag: Option<ETag>,
    pub kind: Kind,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub rdev: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtime: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub atime: Option<i64>,
    /// Of a directory whose mtime was set by hand: the youngest thing in it then. A younger one
    /// voids the mtime. Without this a directory's mtime is only the least it can be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub newest: Option<i64>,
    /// Values in base 16.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub xattrs: BTreeMap<String, String>,
    /// When the entry was made, by the writer's clock.
    pub at: i64,
    /// What later versions add.
    #[serde(flatten)]
    pub rest: serde_json::Map<String, serde_json::Value>,
}

#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct AttrsRecord {
    pub format: u32,
    pub writer: String,
    pub nonce: String,
    pub entries: BTreeMap<String, Recorded>,
    #[serde(flatten)]
    pub rest: serde_json::Map<String, serde_json::Value>,
}

fn is_zero(n: &u32) -> bool {
    *n == 0
}

impl AttrsRecord {
    pub fn new(writer: &str, nonce: u64, entries: BTreeMap<String, Recorded>) -> Self {
        let nonce = format!("{nonce:016x}");
        Self { format: FORMAT, writer: writer.to_owned(), nonce, entries, rest: Default::default() }
    }

    /// Reads a record; entries of impossible names are left out.
    pub fn parse(bytes: &[u8]) -> Result<Self, RecordError> {
        #[derive(serde::Deserialize)]
        struct Head {
            format: u32,
        }
        let head: Head = serde_json::from_slice(bytes)?;
        if head.format != FORMAT {
            return Err(RecordError::Future(head.format));
        }
        let mut record: Self = serde_json::from_slice(bytes)?;
        record.entries.retain(|name, _| name == OWN_ENTRY || Name::new(name).is_ok());
        Ok(record)
    }

    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("strings, numbers and maps with string keys")
    }
}

/// The key of a mount's record; `directory` is empty or ends in `/`.
pub fn record_key(directory: &str, mount: &str) -> String {
    format!("{directory}{CONTROL_DIR}/{RECORD_PREFIX}{mount}")
}

/// The entry that counts for a child, of all mounts' records. `etag` is `None` for a directory.
pub fn choose<'a>(
    records: impl Iterator<Item = &'a BTreeMap<String, Recorded>>,
    name: &str,
    etag: Option<&ETag>,
) -> Option<&'a Recorded> {
    records
        .filter_map(|entries| entries.get(name))
        .filter(|entry| entry.etag.as_ref() == etag)
        .max_by_key(|entry| entry.at)
}

impl Recorded {
    pub fn of(kind: Kind, etag: Option<&ETag>, attributes: &Attributes, at: SystemTime) -> Self {
        Self {
            etag: etag.cloned(),
            kind,
            mode: attributes.mode,
            uid: attributes.uid,
            gid: attributes.gid,
            rdev: attributes.rdev,
            mtime: Some(nanos(attributes.mtime)),
            atime: Some(nanos(attributes.atime)),
            newest: None,
            xattrs: attributes.xattrs.iter().map(|(k, v)| (k.clone(), hex(v))).collect(),
            at: nanos(at),
            rest: Default::default(),
        }
    }

    /// What the entry says; `modified` stands in where it does not say when.
    pub fn attributes(&self, modified: SystemTime) -> Attributes {
        let mtime = self.mtime.map_or(modified, time);
        let unhexed = |(k, v): (&String, &String)| Some((k.clone(), unhex(v)?));
        Attributes {
            mode: self.mode & 0o7777,
            uid: self.uid,
            gid: self.gid,
            rdev: self.rdev,
            mtime,
            atime: self.atime.map_or(mtime, time),
            ctime: mtime.max(time(self.at)),
            xattrs: self.xattrs.iter().filter_map(unhexed).collect(),
        }
    }
}

/// Nanoseconds since 1970, negative before; saturates in the years 1677 and 2262.
pub fn nanos(time: SystemTime) -> i64 {
    match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(after) => i64::try_from(after.as_nanos()).unwrap_or(i64::MAX),
        Err(before) => i64::try_from(before.duration().as_nanos()).map_or(i64::MIN, |n| -n),
    }
}

pub fn time(nanos: i64) -> SystemTime {
    let distance = Duration::from_nanos(nanos.unsigned_abs());
    match nanos >= 0 {
        true => SystemTime::UNIX_EPOCH + distance,
        false => SystemTime::UNIX_EPOCH - distance,
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes().chunks_exact(2);
    if !digits.remainder().is_empty() {
        return None;
    }
    digits.map(|d| u8::from_str_radix(std::str::from_utf8(d).ok()?, 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(etag: &str, mode: u32, at: i64) -> Recorded {
        let json = serde_json::json!({"etag": etag, "kind": "file", "mode": mode, "uid": 1,
            "gid": 2, "mtime": -5, "xattrs": {"user.a": "00ff"}, "at": at, "later": [1]});
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn a_record_survives_the_journey_with_what_later_versions_add() {
        let record = AttrsRecord::new("m", 7, BTreeMap::from([("f".into(), entry("e", 0o600, 9))]));
        assert_eq!(AttrsRecord::parse(&record.to_json()).unwrap(), record);
        let attributes = record.entries["f"].attributes(SystemTime::UNIX_EPOCH);
        assert_eq!(attributes.mtime, time(-5));
        assert_eq!(attributes.xattrs["user.a"], [0, 255]);
    }

    #[test]
    fn a_changed_object_voids_the_entry_and_the_latest_valid_one_counts() {
        let a = BTreeMap::from([("f".to_owned(), entry("e", 0o600, 1))]);
        let b = BTreeMap::from([("f".to_owned(), entry("e", 0o640, 2))]);
        let c = BTreeMap::from([("f".to_owned(), entry("old", 0o777, 3))]);
        let all = [a, b, c];
        let chosen = |etag: &str| choose(all.iter(), "f", Some(&ETag(etag.into())));
        assert_eq!(chosen("e").unwrap().mode, 0o640);
        assert!(chosen("new").is_none());
    }

    #[test]
    fn hostile_records_are_refused_and_hostile_names_left_out() {
        assert!(matches!(AttrsRecord::parse(br#"{"format": 2}"#), Err(RecordError::Future(2))));
        assert!(AttrsRecord::parse(b"[[[[").is_err());
        let mut record = AttrsRecord::new("m", 0, BTreeMap::new());
        for name in ["../up", "..", "a/b", "", "ok", OWN_ENTRY] {
            record.entries.insert(name.into(), entry("e", 0o600, 1));
        }
        let read = AttrsRecord::parse(&record.to_json()).unwrap();
        assert_eq!(read.entries.keys().collect::<Vec<_>>(), [OWN_ENTRY, "ok"]);
    }
}
