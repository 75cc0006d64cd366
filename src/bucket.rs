//! What we ask of a store, and the one way to ask it: [`Bucket`] adds deadlines, retries and
//! request counts to a [`Store`], the driver of one kind of storage.
//!
//! Owns: deadlines, retries, request counts, what a lost reply meant, and the choice of the driver.
//! Does not own: what keys mean, caching, or any state about objects.
//!
//! # Lost replies
//!
//! A conditional write whose reply was lost is asked again, and may then be refused because of
//! itself. So each carries a nonce in the object's metadata ([`NONCE`]); refused after a doubtful
//! attempt, the object is read back, and if it carries our nonce the write was ours. An upload's
//! nonce is part of the upload id that callers hold, so that any mount that completes it again
//! learns that it is complete.

mod body;
mod boundaries;
mod call;
mod compare;
mod copy;
mod count;
mod date;
mod error;
mod guess;
mod http;
mod lent;
mod listing;
mod pages;
mod probe;
mod progress;
mod retry;
mod settle;
mod store;

pub mod azure;
pub mod dav;
pub mod dir;
pub mod gcs;
pub mod memory;
pub mod s3;
pub mod xml;

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use parking_lot::RwLock;

use crate::clock::Clock;
use crate::config::{Location, StoreOptions};
use crate::types::{ETag, Key};

use boundaries::Boundaries;
use call::Caller;
use retry::Policy;

pub use count::{Operation, RequestCounts};
pub use error::BucketError;
pub use http::CHECKED_BYTES_MAX;
pub use listing::PageReader;
pub use probe::{ReadOnly, probe};
pub use settle::NONCE;
pub use store::{
    Body, Capabilities, Condition, ListedObject, Metadata, ObjectInfo, Page, Store, Written,
};

/// Opens the driver for `location`, without asking the store anything but, where an S3 region is
/// not told, that.
pub async fn open(
    location: &Location,
    options: &StoreOptions,
    clock: Arc<dyn Clock>,
) -> Result<Arc<dyn Store>, BucketError> {
    match location {
        Location::S3 { bucket, .. } => s3::open(bucket, options, clock).await,
        Location::WebDav { url } => dav::open(url, options, clock),
        Location::Directory { path } => dir::open(path, clock).await,
        Location::Memory => Ok(memory::MemoryStore::new(clock)),
        Location::Gcs { bucket, .. } => gcs::open(bucket, options, clock),
        Location::Azure { container, .. } => azure::open(container, options, clock),
    }
}

/// A store, asked with patience: the same methods as [`Store`], each retried while the store is
/// away.
///
/// Every method answers within `io_timeout` plus the time a slow link needs for the body (128
/// KiB/s), and two minutes more where the server itself moves bytes (copies, completions).
#[derive(Debug)]
pub struct Bucket {
    caller: Arc<Caller>,
    capabilities: RwLock<Capabilities>,
    boundaries: Arc<Boundaries>,
}

impl Bucket {
    pub fn new(store: Arc<dyn Store>, clock: Arc<dyn Clock>, io_timeout: Duration) -> Arc<Bucket> {
        let capabilities = RwLock::new(store.capabilities());
        let (policy, counters) = (Policy { io_timeout }, Arc::default());
        let admitted = Arc::default();
        let caller = Arc::new(Caller { store, clock, policy, counters, admitted });
        Arc::new(Self { caller, capabilities, boundaries: Arc::default() })
    }

    /// The same store asked with another patience; requests are counted together.
    pub fn with_timeout(&self, io_timeout: Duration) -> Arc<Bucket> {
        let Caller { store, clock, counters, admitted, .. } = &*self.caller;
        let caller = Arc::new(Caller {
            store: store.clone(),
            clock: clock.clone(),
            policy: Policy { io_timeout },
            counters: counters.clone(),
            admitted: admitted.clone(),
        });
        let capabilities = RwLock::new(self.capabilities());
        Arc::new(Self { caller, capabilities, boundaries: self.boundaries.clone() })
    }

    /// What the store can do: the driver's word, until the probe's is set.
    pub fn capabilities(&self) -> Capabilities {
        *self.capabilities.read()
    }

    /// What the probe found; whoever asks from now on sees it.
    pub fn set_capabilities(&self, capabilities: Capabilities) {
        *self.capabilities.write() = capabilities;
    }

    /// Requests so far.
    pub fn counts(&self) -> RequestCounts {
        self.caller.counters.snapshot()
    }

    /// HEAD. One request.
    pub async fn head(&self, key: &Key) -> Result<ObjectInfo, BucketError> {
        self.caller.call(Operation::Head, 0, || self.caller.store.head(key)).await.result
    }

    /// GET of a non-empty range of a non-empty object, cut at its end. One request, and one more
    /// each time the connection breaks: the body goes on where it broke, with If-Match, so it is
    /// one version.
    pub async fn get(
        &self,
        key: &Key,
        range: Range<u64>,
        if_match: Option<&ETag>,
    ) -> Result<(ObjectInfo, Body), BucketError> {
        let ask = || self.caller.store.get(key, range.clone(), if_match);
        let (info, body) = self.caller.call(Operation::Get, 0, ask).await.result?;
        if if_match.is_some_and(|etag| *etag != info.etag) {
            return Err(BucketError::Precondition); // a server that ignores If-Match
        }
        let end = range.end.min(info.size).max(range.start);
        let body = body::resuming(self.caller.clone(), key.clone(), &info, range.start, end, body);
        Ok((info, body))
    }

    /// [`Bucket::get`], collected: exactly the bytes of the range, cut at the end of the object.
    pub async fn get_bytes(
        &self,
        key: &Key,
        range: Range<u64>,
        if_match: Option<&ETag>,
    ) -> Result<(ObjectInfo, Bytes), BucketError> {
        let (info, mut body) = self.get(key, range.clone(), if_match).await?;
        let length = range.end.min(info.size).saturating_sub(range.start);
        let first = body.next().await.transpose()?.unwrap_or_default();
        if first.len() as u64 == length {
            return Ok((info, first));
        }
        let mut bytes = BytesMut::with_capacity(length as usize);
        bytes.extend_from_slice(&first);
        while let Some(frame) = body.next().await {
            bytes.extend_from_slice(&frame?);
        }
        if bytes.len() as u64 != length {
            return Err(BucketError::Corrupt(format!("{} bytes of {length}", bytes.len())));
        }
        Ok((info, bytes.freeze()))
    }

    /// PUT. One request; one more if a reply was lost and the condition then failed.
    pub async fn put(
        &self,
        key: &Key,
        body: Bytes,
        condition: &Condition,
        metadata: &Metadata,
    ) -> Result<Written, BucketError> {
        let stamp = self.stamp(condition, metadata);
        let ask = || self.caller.store.put(key, body.clone(), condition, &stamp.metadata);
        let outcome = self.caller.call(Operation::Put, body.len() as u64, ask).await;
        self.settle_put(key, outcome, &stamp, &body).await
    }

    /// DELETE. One request. What is gone already is well deleted where the first reply was lost.
    pub async fn delete(&self, key: &Key, if_match: Option<&ETag>) -> Result<(), BucketError> {
        let ask = || self.caller.store.delete(key, if_match);
        let outcome = self.caller.call(Operation::Delete, 0, ask).await;
        self.settle_delete(key, outcome).await
    }

    /// One page of a LIST. One request.
    pub async fn list(
        &self,
        prefix: &str,
        delimiter: bool,
        page: Option<&str>,
        max: u16,
    ) -> Result<Page, BucketError> {
        let ask = || self.caller.store.list(prefix, delimiter, page, max);
        self.caller.call(Operation::List, 0, ask).await.result
    }

    /// Whether [`Bucket::list_behind`] may work, for all that is known.
    pub fn lists_behind(&self) -> bool {
        !self.boundaries.is_unsupported()
    }

    /// See [`Store::list_behind`]; so is a store taken that begins elsewhere. One request.
    pub async fn list_behind(
        &self,
        prefix: &str,
        delimiter: bool,
        start: &Key,
        max: u16,
    ) -> Result<Page, BucketError> {
        const WHAT: &str = "begin a listing behind a key";
        if !self.lists_behind() {
            return Err(BucketError::Unsupported(WHAT));
        }
        let store = &self.caller.store;
        let ask = || store.list_behind(prefix, delimiter, start, max);
        let answer = match self.caller.call(Operation::List, 0, ask).await.result {
            Ok(page) if !boundaries::is_behind(&page, start) => Err(BucketError::Unsupported(WHAT)),
            answer => answer,
        };
        if matches!(answer, Err(BucketError::Unsupported(_))) {
            tracing::info!("listings are asked for page by page: no key can be begun behind");
            self.boundaries.set_unsupported();
        }
        answer
    }

    /// Atomic rename, where [`Capabilities::rename_file`] or `rename_directory` says so. One
    /// request.
    pub async fn rename(
        &self,
        from: &Key,
        to: &Key,
        condition: &Condition,
    ) -> Result<(), BucketError> {
        let ask = || self.caller.store.rename(from, to, condition);
        let outcome = self.caller.call(Operation::Rename, 0, ask).await;
        self.settle_rename(from, to, outcome).await
    }

    /// Begins an upload that shows nothing until it is completed. One request. The id may be kept
    /// and used by any mount. A marker is never made so, but by PUT: [`BucketError::WrongKind`], as
    /// SeaweedFS would make another key.
    pub async fn create_multipart(
        &self,
        key: &Key,
        metadata: &Metadata,
    ) -> Result<String, BucketError> {
        if key.is_marker() {
            return Err(BucketError::WrongKind);
        }
        let stamp = self.stamp_always(metadata);
        let ask = || self.caller.store.create_multipart(key, &stamp.metadata);
        let upload = self.caller.call(Operation::MultipartCreate, 0, ask).await.result?;
        Ok(stamp.sign_upload(upload))
    }

    /// One part. One request.
    pub async fn upload_part(
        &self,
        key: &Key,
        upload: &str,
        number: u32,
        body: Bytes,
    ) -> Result<String, BucketError> {
        let upload = settle::upload_id(upload);
        let ask = || self.caller.store.upload_part(key, upload, number, body.clone());
        self.caller.call(Operation::Part, body.len() as u64, ask).await.result
    }

    /// One part from an existing object. One request.
    pub async fn upload_part_copy(
        &self,
        key: &Key,
        upload: &str,
        number: u32,
        from: &Key,
        from_etag: &ETag,
        range: Range<u64>,
    ) -> Result<String, BucketError> {
        let upload = settle::upload_id(upload);
        let store = &self.caller.store;
        let ask = || store.upload_part_copy(key, upload, number, from, from_etag, range.clone());
        self.caller.call(Operation::PartCopy, 0, ask).await.result
    }

    /// Makes the upload the object, at once. One request; one more where the upload turns out to be
    /// gone or the condition failed after a lost reply: `Ok` if the object at `key` is this very
    /// upload.
    pub async fn complete_multipart(
        &self,
        key: &Key,
        upload: &str,
        parts: &[String],
        condition: &Condition,
    ) -> Result<Written, BucketError> {
        let id = settle::upload_id(upload);
        let ask = || self.caller.store.complete_multipart(key, id, parts, condition);
        let outcome = self.caller.call(Operation::Complete, 0, ask).await;
        self.settle_complete(key, outcome, upload).await
    }

    /// See [`Store::uploads_end_after_days`]. At most one request, counted as a LIST.
    pub async fn uploads_end_after_days(&self, prefix: &str) -> Result<Option<u32>, BucketError> {
        let ask = || self.caller.store.uploads_end_after_days(prefix);
        self.caller.call(Operation::List, 0, ask).await.result
    }

    /// Throws an upload and its parts away. One request. One that is gone already is `Ok`.
    pub async fn abort_multipart(&self, key: &Key, upload: &str) -> Result<(), BucketError> {
        let upload = settle::upload_id(upload);
        let ask = || self.caller.store.abort_multipart(key, upload);
        match self.caller.call(Operation::Abort, 0, ask).await.result {
            Err(BucketError::NotFound) => Ok(()),
            result => result,
        }
    }
}
