//! A store in memory with S3's semantics, whole: what tests run on, and what `memory://` mounts.
//!
//! Owns objects, uploads and a record of the requests made. Does not own faults: tests wrap it.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use futures::stream;
use parking_lot::Mutex;

use crate::bucket::count::Operation;
use crate::bucket::error::BucketError;
use crate::bucket::store::{
    Body, Capabilities, Condition, ListedObject, Metadata, ObjectInfo, Page, Store, Written,
};
use crate::clock::Clock;
use crate::types::{ETag, KEY_BYTES_MAX, Key};

/// Bodies come in frames of this size, so that readers meet more than one.
const FRAME_BYTES: usize = 256 << 10;

/// A bucket in memory.
#[derive(Debug)]
pub struct MemoryStore {
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    objects: BTreeMap<String, Object>,
    uploads: HashMap<String, Upload>,
    versions: u64,
    requests: Vec<(Operation, String)>,
}

#[derive(Debug, Clone)]
struct Object {
    bytes: Bytes,
    etag: ETag,
    modified: SystemTime,
    metadata: Metadata,
}

#[derive(Debug)]
struct Upload {
    key: Key,
    metadata: Metadata,
    parts: BTreeMap<u32, (String, Bytes)>,
}

impl MemoryStore {
    pub fn new(clock: Arc<dyn Clock>) -> Arc<Self> {
        Arc::new(Self { clock, state: Mutex::default() })
    }

    /// Every request so far, oldest first; a LIST counts under its prefix.
    pub fn requests(&self) -> Vec<(Operation, String)> {
        self.state.lock().requests.clone()
    }

    /// The requests since the last call of this.
    pub fn take_requests(&self) -> Vec<(Operation, String)> {
        std::mem::take(&mut self.state.lock().requests)
    }

    /// What any S3 client would see: every key with its bytes.
    pub fn objects(&self) -> BTreeMap<String, Bytes> {
        let state = self.state.lock();
        state.objects.iter().map(|(key, object)| (key.clone(), object.bytes.clone())).collect()
    }

    /// How many uploads are neither completed nor aborted.
    pub fn open_uploads(&self) -> usize {
        self.state.lock().uploads.len()
    }

    /// Runs one request on the state, recorded.
    fn request<T>(
        &self,
        operation: Operation,
        key: &str,
        act: impl FnOnce(&mut State) -> Result<T, BucketError>,
    ) -> Result<T, BucketError> {
        let mut state = self.state.lock();
        state.requests.push((operation, key.to_owned()));
        if key.len() > KEY_BYTES_MAX {
            return Err(BucketError::KeyTooLong);
        }
        act(&mut state)
    }
}

impl State {
    fn object(&self, key: &Key) -> Result<&Object, BucketError> {
        self.objects.get(key.as_str()).ok_or(BucketError::NotFound)
    }

    fn version(&self, key: &Key, etag: Option<&ETag>) -> Result<&Object, BucketError> {
        let object = self.object(key)?;
        match etag {
            Some(etag) if *etag != object.etag => Err(BucketError::Precondition),
            _ => Ok(object),
        }
    }

    fn check(&self, key: &Key, condition: &Condition) -> Result<(), BucketError> {
        let found = self.objects.get(key.as_str());
        let holds = match condition {
            Condition::Always => true,
            Condition::IfAbsent => found.is_none(),
            Condition::IfMatch(etag) => found.is_some_and(|object| object.etag == *etag),
        };
        if holds { Ok(()) } else { Err(BucketError::Precondition) }
    }

    fn next_version(&mut self) -> u64 {
        self.versions += 1;
        self.versions
    }

    fn write(
        &mut self,
        key: &Key,
        bytes: Bytes,
        metadata: Metadata,
        modified: SystemTime,
    ) -> Written {
        let etag = ETag(format!("m{}", self.next_version()));
        let object = Object { bytes, etag: etag.clone(), modified, metadata };
        self.objects.insert(key.as_str().to_owned(), object);
        Written { etag }
    }

    fn upload(&mut self, key: &Key, id: &str) -> Result<&mut Upload, BucketError> {
        self.uploads.get_mut(id).filter(|upload| upload.key == *key).ok_or(BucketError::NotFound)
    }

    fn add_part(
        &mut self,
        key: &Key,
        id: &str,
        number: u32,
        body: Bytes,
    ) -> Result<String, BucketError> {
        let etag = format!("p{}", self.next_version());
        self.upload(key, id)?.parts.insert(number, (etag.clone(), body));
        Ok(etag)
    }

    fn list(&self, prefix: &str, delimiter: bool, after: Option<&str>, max: u16) -> Page {
        let mut page = Page::default();
        let mut last: Option<String> = None;
        let start = after.unwrap_or(prefix).to_owned();
        for (key, object) in self.objects.range(start..) {
            let Some(rest) = key.strip_prefix(prefix) else { break };
            let cut = rest.find('/').filter(|_| delimiter).map(|i| &key[..prefix.len() + i + 1]);
            let entry = cut.unwrap_or(key);
            if after.is_some_and(|after| entry <= after) || last.as_deref() == cut && cut.is_some()
            {
                continue;
            }
            if page.objects.len() + page.prefixes.len() == usize::from(max) {
                page.next = last;
                break;
            }
            match cut {
                Some(cut) => page.prefixes.push(cut.to_owned()),
                None => page.objects.push(object.listed(key)),
            }
            last = Some(entry.to_owned());
        }
        page
    }
}

impl Object {
    fn info(&self) -> ObjectInfo {
        ObjectInfo {
            size: self.bytes.len() as u64,
            etag: self.etag.clone(),
            modified: self.modified,
            metadata: self.metadata.clone(),
            crc64nvme: Some(crc_fast::crc64_nvme(&self.bytes)),
        }
    }

    fn listed(&self, key: &str) -> ListedObject {
        ListedObject {
            key: Key::new(key),
            size: self.bytes.len() as u64,
            etag: self.etag.clone(),
            modified: self.modified,
        }
    }

    fn slice(&self, range: Range<u64>) -> Result<Bytes, BucketError> {
        let end = range.end.min(self.bytes.len() as u64);
        if range.start >= end {
            return Err(BucketError::Invalid("a range outside the object".to_owned()));
        }
        Ok(self.bytes.slice(range.start as usize..end as usize))
    }
}

fn frames(mut bytes: Bytes) -> Body {
    let mut frames = Vec::new();
    while !bytes.is_empty() {
        frames.push(Ok(bytes.split_to(bytes.len().min(FRAME_BYTES))));
    }
    stream::iter(frames).boxed()
}

#[async_trait]
impl Store for MemoryStore {
    async fn head(&self, key: &Key) -> Result<ObjectInfo, BucketError> {
        self.request(Operation::Head, key.as_str(), |state| Ok(state.object(key)?.info()))
    }

    async fn get(
        &self,
        key: &Key,
        range: Range<u64>,
        if_match: Option<&ETag>,
    ) -> Result<(ObjectInfo, Body), BucketError> {
        self.request(Operation::Get, key.as_str(), |state| {
            let object = state.version(key, if_match)?;
            Ok((object.info(), frames(object.slice(range)?)))
        })
    }

    async fn put(
        &self,
        key: &Key,
        body: Bytes,
        condition: &Condition,
        metadata: &Metadata,
    ) -> Result<Written, BucketError> {
        let now = self.clock.wall();
        self.request(Operation::Put, key.as_str(), |state| {
            state.check(key, condition)?;
            Ok(state.write(key, body, metadata.clone(), now))
        })
    }

    async fn delete(&self, key: &Key, if_match: Option<&ETag>) -> Result<(), BucketError> {
        self.request(Operation::Delete, key.as_str(), |state| {
            if if_match.is_some() {
                state.version(key, if_match)?;
            }
            state.objects.remove(key.as_str());
            Ok(())
        })
    }

    async fn list(
        &self,
        prefix: &str,
        delimiter: bool,
        page: Option<&str>,
        max: u16,
    ) -> Result<Page, BucketError> {
        self.request(Operation::List, prefix, |state| Ok(state.list(prefix, delimiter, page, max)))
    }

    async fn list_behind(
        &self,
        prefix: &str,
        delimiter: bool,
        start: &Key,
        max: u16,
    ) -> Result<Page, BucketError> {
        self.list(prefix, delimiter, Some(start.as_str()), max).await
    }

    async fn copy(
        &self,
        from: &Key,
        from_etag: Option<&ETag>,
        to: &Key,
        condition: &Condition,
        metadata: &Metadata,
    ) -> Result<Written, BucketError> {
        let now = self.clock.wall();
        self.request(Operation::Copy, to.as_str(), |state| {
            let bytes = state.version(from, from_etag)?.bytes.clone();
            state.check(to, condition)?;
            Ok(state.write(to, bytes, metadata.clone(), now))
        })
    }

    async fn rename(&self, from: &Key, _: &Key, _: &Condition) -> Result<(), BucketError> {
        self.request(Operation::Rename, from.as_str(), |_| Err(BucketError::Unsupported("rename")))
    }

    async fn create_multipart(
        &self,
        key: &Key,
        metadata: &Metadata,
    ) -> Result<String, BucketError> {
        let upload =
            Upload { key: key.clone(), metadata: metadata.clone(), parts: BTreeMap::new() };
        self.request(Operation::MultipartCreate, key.as_str(), |state| {
            let id = format!("u{}", state.next_version());
            state.uploads.insert(id.clone(), upload);
            Ok(id)
        })
    }

    async fn upload_part(
        &self,
        key: &Key,
        upload: &str,
        number: u32,
        body: Bytes,
    ) -> Result<String, BucketError> {
        self.request(Operation::Part, key.as_str(), |state| {
            state.add_part(key, upload, number, body)
        })
    }

    async fn upload_part_copy(
        &self,
        key: &Key,
        upload: &str,
        number: u32,
        from: &Key,
        from_etag: &ETag,
        range: Range<u64>,
    ) -> Result<String, BucketError> {
        self.request(Operation::PartCopy, key.as_str(), |state| {
            let body = state.version(from, Some(from_etag))?.slice(range)?;
            state.add_part(key, upload, number, body)
        })
    }

    async fn complete_multipart(
        &self,
        key: &Key,
        upload: &str,
        parts: &[String],
        condition: &Condition,
    ) -> Result<Written, BucketError> {
        let now = self.clock.wall();
        self.request(Operation::Complete, key.as_str(), |state| {
            let found = state.upload(key, upload)?;
            let mut bytes = BytesMut::new();
            for (number, etag) in (1..).zip(parts) {
                match found.parts.get(&number) {
                    Some((made, body)) if made == etag => bytes.extend_from_slice(body),
                    _ => return Err(BucketError::Invalid(format!("no such part {number}"))),
                }
            }
            let metadata = found.metadata.clone();
            state.check(key, condition)?;
            state.uploads.remove(upload);
            Ok(state.write(key, bytes.freeze(), metadata, now))
        })
    }

    async fn abort_multipart(&self, key: &Key, upload: &str) -> Result<(), BucketError> {
        self.request(Operation::Abort, key.as_str(), |state| {
            state.upload(key, upload)?;
            state.uploads.remove(upload);
            Ok(())
        })
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            create_if_absent: true,
            replace_if_match: true,
            delete_if_match: true,
            multipart: true,
            part_copy: true,
            ranged_reads: true,
            copy_condition: true,
            tells_crc: true,
            metadata: true,
            markers: true,
            real_directories: false,
            rename_file: false,
            rename_directory: false,
            create_sees_directories: false,
            list_after_write: true,
            put_max: 5 << 30,
            part_min: 1,
            parts_max: 10_000,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_listing_in_pages_of_any_size_is_the_listing() {
        let store = MemoryStore::new(crate::clock::system());
        let keys = ["a", "a/", "a/b", "a/c/d", "a/c/e", "a//x", "a0", "b/x", "b/y", "c"];
        for key in keys {
            store
                .put(&Key::new(key), Bytes::new(), &Condition::Always, &Metadata::new())
                .await
                .unwrap();
        }
        for (prefix, delimiter) in [("", true), ("", false), ("a/", true), ("a/", false)] {
            let whole = store.list(prefix, delimiter, None, 1000).await.unwrap();
            for max in 1..5 {
                let (mut pages, mut next) = (Page::default(), None);
                loop {
                    let page = store.list(prefix, delimiter, next.as_deref(), max).await.unwrap();
                    pages.objects.extend(page.objects);
                    pages.prefixes.extend(page.prefixes);
                    next = page.next;
                    if next.is_none() {
                        break;
                    }
                }
                assert_eq!(pages, whole, "{prefix} {delimiter} {max}");
            }
        }
        let top = store.list("", true, None, 1000).await.unwrap();
        assert_eq!(top.prefixes, ["a/", "b/"]);
        assert_eq!(top.objects.len(), 3);
    }
}
