//! Uploads in parts, staged as files in a directory of their own under the export's
//! `.trialfs/tmp/`.
//!
//! | file | what |
//! | --- | --- |
//! | `upload.json` | the key and metadata, written first |
//! | `part.<n>` | a part, fsynced before it has this name |
//! | `lock` | held alone by whoever completes |
//! | `whole` | all parts joined, with the upload's metadata |
//!
//! An upload is completed at most once. Under the lock, parts are joined into `whole`, then
//! removed, then `whole` is renamed to its key. So after a crash either parts are there (join
//! again), or `whole` (publish it), or neither: it was published, and completing answers "not
//! found".

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::ops::Range;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::bucket::dir::attributes::{self, error, read_error};
use crate::bucket::dir::beneath::Beneath;
use crate::bucket::dir::disk::{Disk, NewFile};
use crate::bucket::dir::lock::{self, Hold};
use crate::bucket::error::BucketError;
use crate::bucket::store::{Condition, Metadata, Written};
use crate::clock::ulid;
use crate::types::{ETag, Key};

const RECORD: &str = "upload.json";
const LOCK: &str = "lock";
/// All parts in one file, which publishing renames away.
const WHOLE: &str = "whole";
/// What is read of a part at once to check it.
const CHUNK_BYTES: usize = 1 << 20;

#[derive(Serialize, Deserialize)]
struct Record {
    format: u32,
    key: String,
    metadata: Metadata,
}

/// An upload's own directory.
struct Upload<'a> {
    disk: &'a Disk,
    dir: Beneath,
    record: Record,
}

impl Disk {
    pub fn create_upload(&self, key: &Key, metadata: &Metadata) -> Result<String, BucketError> {
        if super::disk::parts(key)?.is_marker {
            return Err(BucketError::WrongKind);
        }
        let id = ulid(&*self.clock);
        let tmp = self.tmp()?;
        fs::create_dir(tmp.entry(&id)).map_err(error)?;
        let dir = tmp.enter(&id).map_err(error)?;
        let record = Record { format: 1, key: key.as_str().into(), metadata: metadata.clone() };
        let bytes =
            serde_json::to_vec(&record).map_err(|error| BucketError::Invalid(error.to_string()))?;
        write_synced(&dir, RECORD, &bytes)?;
        tmp.sync().map_err(error)?;
        Ok(id)
    }

    fn upload(&self, key: &Key, id: &str) -> Result<Upload<'_>, BucketError> {
        let is_id = id.len() == 26 && id.bytes().all(|b| b.is_ascii_alphanumeric());
        if !is_id {
            return Err(BucketError::NotFound);
        }
        let dir = self.tmp()?.enter(id).map_err(read_error)?;
        let bytes = fs::read(dir.entry(RECORD)).map_err(read_error)?;
        let record: Record = serde_json::from_slice(&bytes)
            .map_err(|error| BucketError::Invalid(format!("upload {id}: {error}")))?;
        if record.key != key.as_str() {
            return Err(BucketError::NotFound);
        }
        Ok(Upload { disk: self, dir, record })
    }

    /// Stages a part; its ETag is a checksum of it.
    pub fn upload_part(
        &self,
        key: &Key,
        id: &str,
        number: u32,
        body: &[u8],
    ) -> Result<String, BucketError> {
        let upload = self.upload(key, id)?;
        write_synced(&upload.dir, &part_name(number), body)?;
        Ok(part_etag(crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, body)))
    }

    /// Stages a range of an object as a part.
    pub fn copy_part(
        &self,
        key: &Key,
        id: &str,
        number: u32,
        from: &Key,
        from_etag: &ETag,
        range: Range<u64>,
    ) -> Result<String, BucketError> {
        let (info, mut source) = self.open(from, &range, Some(from_etag))?;
        let upload = self.upload(key, id)?;
        let length = range.end.min(info.size) - range.start;
        let mut new = self.new_file(&Metadata::new())?;
        io::copy(&mut Read::by_ref(&mut source).take(length), &mut new.file).map_err(error)?;
        new.file.sync_all().map_err(error)?;
        let stat = source.metadata().map_err(error)?;
        let whole = new.file.metadata().map_err(error)?.len() == length;
        if !whole || attributes::etag(&stat) != *from_etag {
            return Err(BucketError::Precondition);
        }
        io::Seek::rewind(&mut new.file).map_err(error)?;
        let crc = checksum(&mut new.file).map_err(error)?;
        new.keep_as(&upload.dir, &part_name(number)).map_err(error)?;
        Ok(part_etag(crc))
    }

    pub fn complete_upload(
        &self,
        key: &Key,
        id: &str,
        parts: &[String],
        condition: &Condition,
    ) -> Result<Written, BucketError> {
        let upload = self.upload(key, id)?;
        let _alone = lock::of_file(&upload.dir.entry(LOCK), Hold::Alone)?;
        let whole = upload.whole(parts)?;
        let written = self.publish(whole, key, condition)?;
        self.remove_upload(id);
        Ok(written)
    }

    pub fn abort_upload(&self, key: &Key, id: &str) -> Result<(), BucketError> {
        self.upload(key, id)?;
        let tmp = self.tmp()?;
        // The record goes first: from then on the upload is gone, whatever else stays.
        fs::remove_file(tmp.entry(id).join(RECORD)).map_err(read_error)?;
        self.remove_upload(id);
        Ok(())
    }

    /// Best effort: the joined file is gone already, so that nothing of it can be published again.
    fn remove_upload(&self, id: &str) {
        if let Ok(tmp) = self.tmp() {
            let _ = fs::remove_dir_all(tmp.entry(id));
        }
    }
}

impl Upload<'_> {
    /// The joined file: made now, or by an attempt that was refused or cut off before it published.
    fn whole(&self, parts: &[String]) -> Result<NewFile, BucketError> {
        let path = self.dir.entry(WHOLE);
        match fs::symlink_metadata(&path).map_err(read_error) {
            Ok(_) => {}
            Err(BucketError::NotFound) => {
                self.join(parts)?;
                for number in (1..).zip(parts).map(|(number, _)| number) {
                    fs::remove_file(self.dir.entry(&part_name(number))).map_err(error)?;
                }
            }
            Err(error) => return Err(error),
        }
        let dir = self.dir.enter(".").map_err(error)?;
        NewFile::kept(dir, WHOLE).map_err(error)
    }

    fn join(&self, parts: &[String]) -> Result<(), BucketError> {
        let mut new = self.disk.new_file(&self.record.metadata)?;
        for (number, etag) in (1..).zip(parts) {
            let mut part = File::open(self.dir.entry(&part_name(number))).map_err(read_error)?;
            if part_etag(checksum(&mut part).map_err(error)?) != *etag {
                return Err(BucketError::Invalid(format!("part {number} is another")));
            }
            io::Seek::rewind(&mut part).map_err(error)?;
            io::copy(&mut part, &mut new.file).map_err(error)?;
        }
        new.file.sync_all().map_err(error)?;
        new.keep_as(&self.dir, WHOLE).map_err(error)
    }
}

fn part_name(number: u32) -> String {
    format!("part.{number}")
}

fn part_etag(crc: u64) -> String {
    format!("{crc:016x}")
}

fn checksum(file: &mut File) -> io::Result<u64> {
    let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc64Nvme);
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        match file.read(&mut chunk)? {
            0 => return Ok(digest.finalize()),
            length => digest.update(&chunk[..length]),
        }
    }
}

/// Writes a file that is there whole or not at all.
fn write_synced(dir: &Beneath, name: &str, bytes: &[u8]) -> Result<(), BucketError> {
    let new = dir.entry(&format!("{name}.new"));
    let write = |path: &Path| {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).open(path)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(path, dir.entry(name))?;
        dir.sync()
    };
    write(&new).map_err(error)
}
