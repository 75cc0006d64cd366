//! The log in front of the journal's store: what was committed last, one record after another, in
//! a file whose blocks are all written before it is used. So a commit is one write of adjacent
//! blocks and one sync of data alone: a third of what a tree of pages takes, whose every commit
//! writes eight of them in eight places (0.13 ms to 0.35).
//!
//! A record is a head of 32 bytes (the log's id, its number, the length of what follows, a
//! CRC64NVME of all that) and changes, each an entry's id, a length and its value; all of it up to
//! a whole block. Numbers go up by one and are never used again. Whoever reads takes the records
//! that follow the mark of the store, from the front, up to the first that is none.
//!
//! Owns the file's form and what of it counts. Does not own what an entry says (`intent`), nor when
//! the log begins anew (`keeper`).
//!
//! Of the medium: a write that no sync followed may be there in part, by blocks; what was synced
//! stays, whatever is written beside it. So no two records share a block.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use super::super::intent::CloseId;

/// Once around: some thousand closes of small files.
const LOG_BYTES: usize = 8 << 20;
const BLOCK_BYTES: usize = 4096;
const HEAD_BYTES: usize = 32;
/// In place of a length: the entry goes.
const GONE: u32 = u32::MAX;

/// Entries that changed, and what they say now; `None`: they are gone.
pub type Changes = BTreeMap<CloseId, Option<Vec<u8>>>;

/// How far the store has taken over what a log said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// The log's: random, so that no file's content can pass for a record of it.
    pub id: u64,
    /// The number of the last record whose changes the store has.
    pub number: u64,
}

/// Where a log lies: a file, but for tests.
pub trait Medium: Send {
    /// All of it.
    fn load(&self) -> io::Result<Vec<u8>>;
    /// Durable when it returns. Whole blocks at a whole block.
    fn write(&self, at: u64, data: &[u8]) -> io::Result<()>;
}

/// A log's file. Where the file system can, writes go past the page cache, which takes a third of
/// their time: the bytes are read again only after a crash.
pub struct LogFile {
    file: File,
    /// The same, with O_DIRECT and O_DSYNC.
    direct: Option<File>,
}

impl LogFile {
    /// A log as it was made. Fails where that was cut: what was cut off may have been acknowledged.
    pub fn open(path: &Path) -> io::Result<Self> {
        match path.metadata()?.len() {
            bytes if bytes == LOG_BYTES as u64 => Self::of_any_length(path),
            bytes => {
                let text = format!("{bytes} bytes long in place of {LOG_BYTES}");
                Err(io::Error::new(io::ErrorKind::InvalidData, text))
            }
        }
    }

    fn of_any_length(path: &Path) -> io::Result<Self> {
        let open = |flags| OpenOptions::new().read(true).write(true).custom_flags(flags).open(path);
        let direct = open(libc::O_DIRECT | libc::O_DSYNC).ok();
        // Some file systems take the flags, and then fail.
        let works =
            |file: &File| file.read_exact_at(bytes_of(&mut [Block([0; BLOCK_BYTES])]), 0).is_ok();
        Ok(Self { file: open(0)?, direct: direct.filter(works) })
    }
}

impl Medium for LogFile {
    fn load(&self) -> io::Result<Vec<u8>> {
        let mut all = vec![0; self.file.metadata()?.len() as usize];
        self.file.read_exact_at(&mut all, 0)?;
        Ok(all)
    }

    fn write(&self, at: u64, data: &[u8]) -> io::Result<()> {
        let Some(direct) = &self.direct else {
            self.file.write_all_at(data, at)?;
            return self.file.sync_data();
        };
        let mut blocks = vec![Block([0; BLOCK_BYTES]); data.len().div_ceil(BLOCK_BYTES)];
        let bytes = bytes_of(&mut blocks);
        bytes[..data.len()].copy_from_slice(data);
        direct.write_all_at(bytes, at)
    }
}

/// Memory as direct I/O wants it.
#[derive(Clone)]
#[repr(C, align(4096))]
struct Block([u8; BLOCK_BYTES]);

fn bytes_of(blocks: &mut [Block]) -> &mut [u8] {
    // SAFETY: a block is its bytes, without padding, and the slice is borrowed as long as these.
    unsafe { std::slice::from_raw_parts_mut(blocks.as_mut_ptr().cast(), size_of_val(blocks)) }
}

/// Makes a log with no record in it, in place of what is there: whole or not at all. Its name is
/// not synced.
pub fn make(path: &Path) -> io::Result<()> {
    let new = path.with_extension("log-new");
    let mut options = OpenOptions::new();
    let file = options.write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all_at(&vec![0; LOG_BYTES], 0)?;
    file.sync_all()?;
    std::fs::rename(&new, path)
}

/// A log that is written on.
pub struct Log {
    medium: Box<dyn Medium>,
    id: u64,
    /// The number of the next record, and where it comes.
    number: u64,
    at: usize,
    bytes: usize,
}

impl Log {
    /// Reads what was written after `mark`. Fails where there is more than can be read.
    pub fn read(medium: Box<dyn Medium>, mark: Mark) -> io::Result<(Self, Changes)> {
        let image = medium.load()?;
        let Mark { id, number } = mark;
        let mut log = Self { medium, id, number: number + 1, at: 0, bytes: image.len() };
        let mut changes = Changes::new();
        while let Some(record) = Record::at(&image, log.at, id).filter(|r| r.number == log.number) {
            record.changes_into(&mut changes)?;
            log.number += 1;
            log.at += whole_blocks(HEAD_BYTES + record.payload.len());
        }
        // Each was synced before the next was written: where a later one stands, this one did.
        let mut rest = (log.at..image.len()).step_by(BLOCK_BYTES);
        if rest.any(|at| Record::at(&image, at, id).is_some_and(|r| r.number >= log.number)) {
            let text = format!("record {} of the journal's log is damaged", log.number);
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        Ok((log, changes))
    }

    /// Adds a record; it is durable when this returns. False: there is no room, and nothing
    /// happened. After an error nothing may be added any more.
    pub fn append(&mut self, changes: &Changes) -> io::Result<bool> {
        let record = encode(self.id, self.number, changes);
        if self.at + record.len() > self.bytes {
            return Ok(false);
        }
        self.medium.write(self.at as u64, &record)?;
        self.at += record.len();
        self.number += 1;
        Ok(true)
    }

    /// What it takes yet, in bytes.
    pub fn room(&self) -> usize {
        self.bytes - self.at
    }

    /// What the store is to note with all changes so far.
    pub fn mark(&self) -> Mark {
        Mark { id: self.id, number: self.number - 1 }
    }

    /// The store has noted the mark: what stands here counts no more.
    pub fn begin_anew(&mut self) {
        self.at = 0;
    }
}

struct Record<'a> {
    number: u64,
    payload: &'a [u8],
}

impl<'a> Record<'a> {
    /// `None`: there is none, or not all of it.
    fn at(image: &'a [u8], at: usize, id: u64) -> Option<Self> {
        let (head, rest) = image.get(at..)?.split_first_chunk::<HEAD_BYTES>()?;
        let word = |n: usize| head[8 * n..8 * n + 8].try_into().map(u64::from_le_bytes).ok();
        let (length, sum) = (word(2)?, word(3)?);
        if word(0)? != id {
            return None;
        }
        let payload = rest.get(..usize::try_from(length).ok()?)?;
        (checksum(&head[..24], payload) == sum).then_some(Self { number: word(1)?, payload })
    }

    fn changes_into(&self, changes: &mut Changes) -> io::Result<()> {
        let mut rest = self.payload;
        while !rest.is_empty() {
            let ((id, value), after) = change(rest).ok_or(io::ErrorKind::InvalidData)?;
            changes.insert(id, value.map(<[u8]>::to_vec));
            rest = after;
        }
        Ok(())
    }
}

/// An entry's id, and what it says.
type Change<'a> = (CloseId, Option<&'a [u8]>);

/// The first of some changes, and the others.
fn change(from: &[u8]) -> Option<(Change<'_>, &[u8])> {
    let (id, rest) = from.split_first_chunk()?;
    let (length, rest) = rest.split_first_chunk()?;
    let id = CloseId(u64::from_le_bytes(*id));
    match u32::from_le_bytes(*length) {
        GONE => Some(((id, None), rest)),
        length => {
            let (value, rest) = rest.split_at_checked(length as usize)?;
            Some(((id, Some(value)), rest))
        }
    }
}

fn encode(id: u64, number: u64, changes: &Changes) -> Vec<u8> {
    let mut record = vec![0; HEAD_BYTES];
    for (id, value) in changes {
        record.extend_from_slice(&id.0.to_le_bytes());
        let length = value.as_ref().map_or(GONE, |value| value.len() as u32);
        record.extend_from_slice(&length.to_le_bytes());
        record.extend_from_slice(value.as_deref().unwrap_or_default());
    }
    let length = (record.len() - HEAD_BYTES) as u64;
    for (n, word) in [id, number, length].into_iter().enumerate() {
        record[8 * n..8 * n + 8].copy_from_slice(&word.to_le_bytes());
    }
    let sum = checksum(&record[..24], &record[HEAD_BYTES..]);
    record[24..HEAD_BYTES].copy_from_slice(&sum.to_le_bytes());
    record.resize(whole_blocks(record.len()), 0);
    record
}

fn checksum(head: &[u8], payload: &[u8]) -> u64 {
    let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc64Nvme);
    digest.update(head);
    digest.update(payload);
    digest.finalize()
}

fn whole_blocks(bytes: usize) -> usize {
    bytes.next_multiple_of(BLOCK_BYTES)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MARK: Mark = Mark { id: 77, number: 0 };

    fn value(id: u64, bytes: &[u8]) -> Changes {
        Changes::from([(CloseId(id), Some(bytes.to_vec()))])
    }

    fn file() -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().write_all_at(&[0; 8 * BLOCK_BYTES], 0).unwrap();
        file
    }

    fn read(file: &tempfile::NamedTempFile, mark: Mark) -> io::Result<(Log, Changes)> {
        Log::read(Box::new(LogFile::of_any_length(file.path()).unwrap()), mark)
    }

    #[test]
    fn past_the_page_cache_or_through_it_a_log_is_the_same() {
        for direct in [true, false] {
            let file = file();
            let mut medium = LogFile::of_any_length(file.path()).unwrap();
            medium.direct = medium.direct.filter(|_| direct);
            let mut log = Log::read(Box::new(medium), MARK).unwrap().0;
            assert!(log.append(&value(1, &[1; 5000])).unwrap());
            assert!(log.append(&value(2, b"two")).unwrap());
            let both = Changes::from_iter(value(1, &[1; 5000]).into_iter().chain(value(2, b"two")));
            assert_eq!(read(&file, MARK).unwrap().1, both);
        }
    }

    #[test]
    fn what_was_added_is_read_again_and_written_on() {
        let file = file();
        let (mut log, none) = read(&file, MARK).unwrap();
        assert!(none.is_empty());
        assert!(log.append(&value(1, b"one")).unwrap());
        assert!(
            log.append(&Changes::from([(CloseId(1), None), (CloseId(2), Some(vec![]))])).unwrap()
        );
        let (mut log, changes) = read(&file, MARK).unwrap();
        assert_eq!(changes, Changes::from([(CloseId(1), None), (CloseId(2), Some(vec![]))]));
        assert!(log.append(&value(3, &[3; BLOCK_BYTES])).unwrap());
        assert_eq!(read(&file, MARK).unwrap().1.len(), 3);
    }

    #[test]
    fn a_full_log_takes_nothing_and_begins_anew() {
        let file = file();
        let (mut log, _) = read(&file, MARK).unwrap();
        for id in 1..=4 {
            assert!(log.append(&value(id, &[1; BLOCK_BYTES])).unwrap());
        }
        assert!(!log.append(&value(5, b"x")).unwrap());
        let mark = log.mark();
        log.begin_anew();
        assert!(read(&file, mark).unwrap().1.is_empty());
        assert!(log.append(&value(5, b"five")).unwrap());
        assert_eq!(read(&file, mark).unwrap().1, value(5, b"five"));
    }

    #[test]
    fn a_record_that_is_damaged_before_others_is_not_passed_over() {
        let file = file();
        let (mut log, _) = read(&file, MARK).unwrap();
        for id in 1..=3 {
            assert!(log.append(&value(id, b"x")).unwrap());
        }
        file.as_file().write_all_at(b"?", (BLOCK_BYTES + 40) as u64).unwrap();
        let error = read(&file, MARK).err().unwrap();
        assert!(error.to_string().contains("record 2"), "{error}");
        file.as_file().write_all_at(b"?", (2 * BLOCK_BYTES + 40) as u64).unwrap();
        assert_eq!(read(&file, MARK).unwrap().1, value(1, b"x"));
    }

    #[test]
    fn another_logs_records_are_none() {
        let file = file();
        let (mut log, _) = read(&file, MARK).unwrap();
        assert!(log.append(&value(1, b"x")).unwrap());
        assert!(read(&file, Mark { id: 78, number: 0 }).unwrap().1.is_empty());
    }

    proptest! {
        #[test]
        fn no_image_is_a_panic(image in proptest::collection::vec(any::<u8>(), 0..200), id: u64) {
            let mut image = image;
            if image.len() >= 8 {
                image[..8].copy_from_slice(&id.to_le_bytes());
            }
            prop_assert!(Record::at(&image, 0, id).is_none_or(|record| record.payload.len() < 200));
        }

        #[test]
        fn no_change_is_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = Record { number: 1, payload: &bytes }.changes_into(&mut Changes::new());
        }
    }
}
