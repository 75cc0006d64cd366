//! The log that says what the files of the cache directory hold, so that a restart can use them.
//!
//! Pure: lines of JSON to and from records, and the fold of records into what survives. Owns the
//! format. Does not own the log file, nor whether the bytes are right.
//!
//! The log is written after the data and neither is synced: nothing in it is believed. A granule is
//! used only once its bytes match the CRC noted here, so a lost, torn or stale line costs a GET and
//! never a wrong byte.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};

use crate::read::presence::GRANULE_BYTES;
use crate::read::version::Version;
use crate::types::{ETag, Key};

/// Another format, or another granule, makes the whole directory void.
pub const FORMAT: u32 = 1;

/// The name of a cache file: random, and never used twice.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct FileId(pub u64);

impl FileId {
    pub fn file_name(self) -> String {
        format!("{:016x}.block", self.0)
    }

    pub fn parse(name: &str) -> Option<Self> {
        let digits = name.strip_suffix(".block").filter(|d| d.len() == 16)?;
        u64::from_str_radix(digits, 16).ok().map(Self)
    }
}

/// One line.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Record {
    /// The first line.
    Begin { format: u32, granule_bytes: u64 },
    /// A file is the cached copy of this version.
    File { file: FileId, key: String, etag: ETag, size: u64 },
    /// The granules from `first` on are there, with these CRCs.
    Filled { file: FileId, first: u64, crcs: Vec<u64> },
    /// So many granules from `first` on are there no more.
    Emptied { file: FileId, first: u64, count: u64 },
    /// The file is deleted.
    Gone { file: FileId },
}

impl Record {
    pub fn begin() -> Self {
        Self::Begin { format: FORMAT, granule_bytes: GRANULE_BYTES }
    }

    pub fn file(file: FileId, version: &Version) -> Self {
        let Version { key, etag, size } = version;
        Self::File { file, key: key.as_str().into(), etag: etag.clone(), size: *size }
    }

    /// The line, with its end.
    pub fn encode(&self) -> Vec<u8> {
        let mut line = serde_json::to_vec(self).expect("numbers and strings are always JSON");
        line.push(b'\n');
        line
    }
}

/// What a file holds according to the log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Saved {
    pub version: Version,
    pub granules: BTreeMap<u64, u64>,
    /// Files filled later have a greater one.
    pub age: u64,
}

/// Reads a log. Lines that make no sense are left out; a log of another format is empty.
pub fn fold(log: &[u8]) -> HashMap<FileId, Saved> {
    let mut lines = log.split(|b| *b == b'\n').map(serde_json::from_slice::<Record>);
    if !lines.next().is_some_and(|first| first.is_ok_and(|r| r == Record::begin())) {
        return HashMap::new();
    }
    let mut files = HashMap::new();
    for (age, record) in lines.enumerate() {
        if let Ok(record) = record {
            apply(&mut files, record, age as u64);
        }
    }
    files
}

fn apply(files: &mut HashMap<FileId, Saved>, record: Record, age: u64) {
    match record {
        Record::Begin { .. } => {}
        Record::File { file, key, etag, size } => {
            let version = Version { key: Key::new(key), etag, size };
            files.insert(file, Saved { version, granules: BTreeMap::new(), age });
        }
        Record::Filled { file, first, crcs } => {
            let Some(saved) = files.get_mut(&file) else { return };
            let granules = saved.version.size.div_ceil(GRANULE_BYTES);
            let numbered = (first..granules).zip(crcs);
            saved.granules.extend(numbered);
            saved.age = age;
        }
        Record::Emptied { file, first, count } => {
            let Some(saved) = files.get_mut(&file) else { return };
            saved.granules.retain(|g, _| *g < first || *g - first >= count);
        }
        Record::Gone { file } => {
            files.remove(&file);
        }
    }
}

/// The shortest log with the same meaning, oldest file first.
pub fn compact(files: &HashMap<FileId, Saved>) -> Vec<u8> {
    let mut log = Record::begin().encode();
    let mut files: Vec<_> = files.iter().collect();
    files.sort_by_key(|(_, saved)| saved.age);
    for (file, saved) in files {
        log.extend(Record::file(*file, &saved.version).encode());
        for (first, crcs) in runs(&saved.granules) {
            log.extend(Record::Filled { file: *file, first, crcs }.encode());
        }
    }
    log
}

/// Granules and their CRCs, as runs of neighbours.
pub fn runs(granules: &BTreeMap<u64, u64>) -> Vec<(u64, Vec<u64>)> {
    let mut runs: Vec<(u64, Vec<u64>)> = Vec::new();
    for (granule, crc) in granules {
        match runs.last_mut() {
            Some((first, crcs)) if *first + crcs.len() as u64 == *granule => crcs.push(*crc),
            _ => runs.push((*granule, vec![*crc])),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(key: &str) -> Version {
        Version { key: Key::new(key), etag: ETag("\"e\"".into()), size: 10 * GRANULE_BYTES }
    }

    fn log(records: &[Record]) -> Vec<u8> {
        records.iter().flat_map(Record::encode).collect()
    }

    fn sample() -> Vec<Record> {
        let (a, b) = (FileId(1), FileId(u64::MAX));
        vec![
            Record::begin(),
            Record::file(a, &version("a\n\"")),
            Record::file(b, &version("b")),
            Record::Filled { file: b, first: 0, crcs: vec![5] },
            Record::Filled { file: a, first: 2, crcs: vec![1, 2, u64::MAX] },
            Record::Emptied { file: a, first: 3, count: 1 },
        ]
    }

    #[test]
    fn a_log_says_what_is_left() {
        let files = fold(&log(&sample()));
        assert_eq!(files[&FileId(1)].version, version("a\n\""));
        assert_eq!(files[&FileId(1)].granules, BTreeMap::from([(2, 1), (4, u64::MAX)]));
        let mut records = sample();
        records.push(Record::Gone { file: FileId(1) });
        assert_eq!(fold(&log(&records)).into_keys().collect::<Vec<_>>(), [FileId(u64::MAX)]);
    }

    #[test]
    fn compacting_changes_no_meaning() {
        let files = fold(&log(&sample()));
        let again = fold(&compact(&files));
        for (id, saved) in files {
            assert_eq!(
                (&saved.version, &saved.granules),
                (&again[&id].version, &again[&id].granules)
            );
        }
    }

    #[test]
    fn a_torn_or_broken_line_costs_itself_only() {
        let mut bytes = log(&sample()[..4]);
        bytes.extend(b"{\"filled\":{\"file\":1,\n\xff\n");
        bytes.extend(Record::Filled { file: FileId(1), first: 9, crcs: vec![4, 4, 4] }.encode());
        bytes.extend(b"{\"gone\":{\"fi");
        let files = fold(&bytes);
        assert_eq!(files[&FileId(1)].granules, BTreeMap::from([(9, 4)]), "and none past the end");
        assert_eq!(files.len(), 2);
    }

    #[test]
    fn a_log_of_another_format_is_empty() {
        let other = Record::Begin { format: FORMAT + 1, granule_bytes: GRANULE_BYTES };
        assert!(fold(&log(&[other, Record::file(FileId(1), &version("a"))])).is_empty());
        assert!(fold(b"").is_empty());
    }

    #[test]
    fn file_names_are_read_back_and_nothing_else_is_one() {
        for id in [0, 1, u64::MAX] {
            assert_eq!(FileId::parse(&FileId(id).file_name()), Some(FileId(id)));
        }
        for other in ["index", "1.block", "zzzzzzzzzzzzzzzz.block", "0000000000000001"] {
            assert_eq!(FileId::parse(other), None, "{other}");
        }
    }
}
