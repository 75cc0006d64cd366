//! What is asked of a store: [`Store`], and the words its methods speak in.
//!
//! Owns no behaviour. Drivers implement it, [`crate::bucket::Bucket`] calls it, nobody else does.

use std::collections::{BTreeMap, HashSet};
use std::ops::Range;
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;

use crate::bucket::error::BucketError;
use crate::types::{ETag, Key};

/// User metadata of an object (`x-amz-meta-*`); names in lower case, values in ASCII.
pub type Metadata = BTreeMap<String, String>;

/// The body of a GET, frame by frame as the network gives it.
pub type Body = BoxStream<'static, Result<Bytes, BucketError>>;

/// When a write may happen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    Always,
    /// Only where no object is (If-None-Match: *).
    IfAbsent,
    /// Only over this version (If-Match).
    IfMatch(ETag),
}

/// What HEAD tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectInfo {
    pub size: u64,
    pub etag: ETag,
    pub modified: SystemTime,
    pub metadata: Metadata,
    /// The CRC64NVME of the whole object, where the store tells it (see
    /// [`Capabilities::tells_crc`]).
    pub crc64nvme: Option<u64>,
}

/// One object of a LIST page. Keys are raw: they may be anything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedObject {
    pub key: Key,
    pub size: u64,
    pub etag: ETag,
    pub modified: SystemTime,
}

/// One page of a LIST. The order is the store's own and nobody may rely on it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Page {
    pub objects: Vec<ListedObject>,
    /// With a delimiter: the keys cut after the first `/` behind the prefix, that `/` included.
    pub prefixes: Vec<String>,
    /// Where to go on; `None` on the last page.
    pub next: Option<String>,
}

impl Page {
    /// Takes what another page has; where to go on stays unknown.
    pub fn extend(&mut self, other: Page) {
        self.objects.extend(other.objects);
        self.prefixes.extend(other.prefixes);
    }

    /// The same, without what is here already.
    pub fn extend_with_new(&mut self, other: Page) {
        let known: HashSet<&str> = self.objects.iter().map(|o| o.key.as_str()).collect();
        let is_new = |o: &ListedObject| !known.contains(o.key.as_str());
        let objects: Vec<_> = other.objects.into_iter().filter(is_new).collect();
        let prefixes: Vec<_> =
            other.prefixes.into_iter().filter(|p| !self.prefixes.contains(p)).collect();
        self.extend(Page { objects, prefixes, next: None });
    }

    pub fn entries(&self) -> usize {
        self.objects.len() + self.prefixes.len()
    }

    /// The last of the entries.
    pub fn last(&self) -> Option<Key> {
        let object = self.objects.last().map(|object| object.key.as_str());
        object.max(self.prefixes.last().map(String::as_str)).map(Key::new)
    }
}

/// What a completed write made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    pub etag: ETag,
}

/// What a store can do, learnt by the probe at mount; whoever needs a thing asks here first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Capabilities {
    /// PUT and complete-multipart honour If-None-Match.
    pub create_if_absent: bool,
    /// If-None-Match of a PUT also refuses where a directory has the name (SeaweedFS). Said by the
    /// trial at mount alone.
    pub create_sees_directories: bool,
    /// PUT honours If-Match.
    pub replace_if_match: bool,
    /// DELETE honours If-Match.
    pub delete_if_match: bool,
    pub multipart: bool,
    /// A part can be copied from an existing object, on the server.
    pub part_copy: bool,
    pub ranged_reads: bool,
    /// Copy honours a condition on its destination; else [`crate::bucket::Bucket`] goes by parts.
    pub copy_condition: bool,
    /// HEAD tells the CRC64NVME of an object that was written with one.
    pub tells_crc: bool,
    /// User metadata is kept.
    pub metadata: bool,
    /// A marker (`dir/`) keeps an empty directory.
    pub markers: bool,
    /// Directories exist by themselves (file, WebDAV): an emptied one stays, no marker is needed.
    pub real_directories: bool,
    /// [`Store::rename`] works and is atomic: of a file; and of a directory.
    pub rename_file: bool,
    pub rename_directory: bool,
    /// Whether a PUT object shows in the next LIST.
    pub list_after_write: bool,
    /// The largest object one PUT takes, and the smallest part but the last, in bytes.
    pub put_max: u64,
    pub part_min: u64,
    pub parts_max: u32,
}

/// The driver of one kind of storage. One call is one attempt and, where not said otherwise, one
/// request; [`crate::bucket::Bucket`] retries. Dropping a call's future cancels it.
#[async_trait]
pub trait Store: Send + Sync + std::fmt::Debug {
    /// HEAD.
    async fn head(&self, key: &Key) -> Result<ObjectInfo, BucketError>;

    /// GET of a non-empty range, which is cut at the end of the object. `if_match` pins the
    /// version: [`BucketError::Precondition`] if it changed. Not to be asked of an empty object.
    async fn get(
        &self,
        key: &Key,
        range: Range<u64>,
        if_match: Option<&ETag>,
    ) -> Result<(ObjectInfo, Body), BucketError>;

    /// PUT, whole or not at all. A key ending in `/` makes a directory marker (body empty).
    async fn put(
        &self,
        key: &Key,
        body: Bytes,
        condition: &Condition,
        metadata: &Metadata,
    ) -> Result<Written, BucketError>;

    /// DELETE; of what is not there: `Ok`, or `NotFound` where the store tells. Where directories
    /// are real, a marker key removes the directory and fails with [`BucketError::NotEmpty`].
    async fn delete(&self, key: &Key, if_match: Option<&ETag>) -> Result<(), BucketError>;

    /// One page of a LIST below `prefix`, which is raw and is empty, ends in `/` or, but for
    /// WebDAV, within a name; with `delimiter`, one level of it. `max` bounds the entries (at most
    /// 1000). The marker of the listed directory is one of its objects; where directories are real,
    /// every directory has its marker.
    async fn list(
        &self,
        prefix: &str,
        delimiter: bool,
        page: Option<&str>,
        max: u16,
    ) -> Result<Page, BucketError>;

    /// The page of a LIST that begins behind the key `start`, below which no prefix is left out.
    /// [`BucketError::Unsupported`], without a request, where the store begins at its own tokens
    /// only.
    async fn list_behind(
        &self,
        _prefix: &str,
        _delimiter: bool,
        _start: &Key,
        _max: u16,
    ) -> Result<Page, BucketError> {
        Err(BucketError::Unsupported("begin a listing behind a key"))
    }

    /// Server-side copy in one request; metadata is replaced. [`BucketError::Unsupported`] where
    /// the object is too large for that or the store has no copy: [`crate::bucket::Bucket`] copies
    /// by parts.
    async fn copy(
        &self,
        from: &Key,
        from_etag: Option<&ETag>,
        to: &Key,
        condition: &Condition,
        metadata: &Metadata,
    ) -> Result<Written, BucketError>;

    /// Atomic rename of a file (or, with keys ending in `/`, a directory) over what is there; with
    /// [`Condition::IfAbsent`] only onto nothing.
    async fn rename(&self, from: &Key, to: &Key, condition: &Condition) -> Result<(), BucketError>;

    async fn create_multipart(&self, key: &Key, metadata: &Metadata)
    -> Result<String, BucketError>;

    /// `number` counts from 1. Returns the part's ETag, to be handed to `complete_multipart`.
    async fn upload_part(
        &self,
        key: &Key,
        upload: &str,
        number: u32,
        body: Bytes,
    ) -> Result<String, BucketError>;

    /// A part taken from an existing object on the server.
    async fn upload_part_copy(
        &self,
        key: &Key,
        upload: &str,
        number: u32,
        from: &Key,
        from_etag: &ETag,
        range: Range<u64>,
    ) -> Result<String, BucketError>;

    /// `parts[i]` is the ETag of part `i + 1`.
    async fn complete_multipart(
        &self,
        key: &Key,
        upload: &str,
        parts: &[String],
        condition: &Condition,
    ) -> Result<Written, BucketError>;

    async fn abort_multipart(&self, key: &Key, upload: &str) -> Result<(), BucketError>;

    /// The fewest days after which the bucket ends an upload below `prefix` that was not completed;
    /// `None` where it says of none that it does. No request, but for S3: one.
    async fn uploads_end_after_days(&self, prefix: &str) -> Result<Option<u32>, BucketError> {
        let _ = prefix;
        Ok(None)
    }

    /// What this driver can do as far as it knows without asking; the probe refines it.
    fn capabilities(&self) -> Capabilities;
}
