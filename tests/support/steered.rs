//! A store in memory each request to which goes by a test's own hand.
//!
//! Owns that every method goes there. Does not own what becomes of a request: the test's [`Steer`].

use std::fmt::Debug;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use trialfs::bucket::memory::MemoryStore;
use trialfs::bucket::{
    Body, BucketError, Capabilities, Condition, Metadata, ObjectInfo, Page, Store, Written,
};
use trialfs::types::{ETag, Key};

/// What becomes of requests.
pub trait Steer: Debug + Send + Sync + 'static {
    /// One request; `act` applies it and answers.
    fn run<T: Send>(
        &self,
        act: impl Future<Output = Result<T, BucketError>> + Send,
    ) -> impl Future<Output = Result<T, BucketError>> + Send;

    /// The same; of requests about one key, a prefix, or where something is copied from.
    fn run_at<T: Send>(
        &self,
        _at: &str,
        act: impl Future<Output = Result<T, BucketError>> + Send,
    ) -> impl Future<Output = Result<T, BucketError>> + Send {
        self.run(act)
    }

    /// The same of a GET, whose body may break.
    fn get(
        &self,
        act: impl Future<Output = Result<(ObjectInfo, Body), BucketError>> + Send,
    ) -> impl Future<Output = Result<(ObjectInfo, Body), BucketError>> + Send {
        self.run(act)
    }
}

#[derive(Debug)]
pub struct Steered<S> {
    pub memory: Arc<MemoryStore>,
    pub hand: S,
}

impl<S: Steer> Steered<S> {
    pub fn new(memory: Arc<MemoryStore>, hand: S) -> Arc<Self> {
        Arc::new(Self { memory, hand })
    }
}

macro_rules! steered {
    ($($name:ident($at:ident: $at_type:ty $(, $arg:ident: $type:ty)*) -> $out:ty;)*) => {
        #[async_trait]
        impl<S: Steer> Store for Steered<S> {
            $(async fn $name(&self, $at: $at_type $(, $arg: $type)*) -> Result<$out, BucketError> {
                self.hand.run_at(&$at.to_string(), self.memory.$name($at $(, $arg)*)).await
            })*

            async fn get(
                &self,
                key: &Key,
                range: Range<u64>,
                if_match: Option<&ETag>,
            ) -> Result<(ObjectInfo, Body), BucketError> {
                self.hand.get(self.memory.get(key, range, if_match)).await
            }

            fn capabilities(&self) -> Capabilities {
                self.memory.capabilities()
            }
        }
    };
}

steered! {
    head(key: &Key) -> ObjectInfo;
    put(key: &Key, body: Bytes, condition: &Condition, metadata: &Metadata) -> Written;
    delete(key: &Key, if_match: Option<&ETag>) -> ();
    list(prefix: &str, delimiter: bool, page: Option<&str>, max: u16) -> Page;
    list_behind(prefix: &str, delimiter: bool, start: &Key, max: u16) -> Page;
    copy(from: &Key, etag: Option<&ETag>, to: &Key, c: &Condition, m: &Metadata) -> Written;
    rename(from: &Key, to: &Key, condition: &Condition) -> ();
    create_multipart(key: &Key, metadata: &Metadata) -> String;
    upload_part(key: &Key, upload: &str, number: u32, body: Bytes) -> String;
    upload_part_copy(
        key: &Key, upload: &str, number: u32, from: &Key, etag: &ETag, range: Range<u64>
    ) -> String;
    complete_multipart(key: &Key, upload: &str, parts: &[String], c: &Condition) -> Written;
    abort_multipart(key: &Key, upload: &str) -> ();
}
