//! The driver for `file:///`: a local directory or an NFS export, one file per object.
//!
//! Owns the threads that file calls are made on, and their bound. Does not own how objects are
//! files ([`disk`]), uploads ([`upload`]) or listings ([`listing`]).

mod attributes;
mod beneath;
mod disk;
mod listing;
mod lock;
mod upload;

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, stream};
use tokio::sync::Semaphore;

use crate::bucket::error::BucketError;
use crate::bucket::pages::Snapshots;
use crate::bucket::store::{
    Body, Capabilities, Condition, Metadata, ObjectInfo, Page, Store, Written,
};
use crate::clock::Clock;
use crate::types::{ETag, Key};

use beneath::Beneath;
use disk::Disk;

/// File calls at once: a server that hangs holds this many threads and no more.
const THREADS_MAX: usize = 64;
/// What one call reads.
const FRAME_BYTES: u64 = 1 << 20;
/// The largest body of one PUT: as much as a file holds.
const PUT_BYTES_MAX: u64 = 1 << 42;

#[derive(Debug)]
struct Directory {
    disk: Arc<Disk>,
    snapshots: Arc<Snapshots<String>>,
    threads: Arc<Semaphore>,
    keeps_metadata: bool,
}

/// Opens the driver for the directory `path`, which must exist.
pub async fn open(path: &Path, clock: Arc<dyn Clock>) -> Result<Arc<dyn Store>, BucketError> {
    let path = path.to_owned();
    let threads = Arc::new(Semaphore::new(THREADS_MAX));
    let (disk, keeps_metadata) = on_thread(&threads.clone(), move || {
        let root = Beneath::root(&path).map_err(|error| {
            let shown = path.display();
            BucketError::Invalid(match error.kind() {
                ErrorKind::NotFound => format!("there is no directory {shown}; make it first"),
                ErrorKind::NotADirectory => format!("{shown} is a file; give a directory"),
                ErrorKind::PermissionDenied => {
                    format!("this user may not open {shown}; check its owner and mode")
                }
                _ => format!("directory {shown}: {error}"),
            })
        })?;
        let keeps_metadata = attributes::keeps_metadata(&path);
        let disk = Disk { root, clock };
        disk.clean();
        Ok((disk, keeps_metadata))
    })
    .await?;
    let (disk, snapshots) = (Arc::new(disk), Arc::new(Snapshots::new(String::as_str)));
    Ok(Arc::new(Directory { disk, snapshots, threads, keeps_metadata }))
}

/// Runs `act` where it may block. Dropping the future does not stop what has begun.
async fn on_thread<T: Send + 'static>(
    threads: &Arc<Semaphore>,
    act: impl FnOnce() -> Result<T, BucketError> + Send + 'static,
) -> Result<T, BucketError> {
    let permit = threads.clone().acquire_owned().await;
    let joined = tokio::task::spawn_blocking(move || {
        let _permit = permit; // held until the call is over, whoever still waits for it
        act()
    });
    joined.await.unwrap_or_else(|_| Err(BucketError::Unavailable("a file call died".to_owned())))
}

impl Directory {
    async fn run<T: Send + 'static>(
        &self,
        act: impl FnOnce(&Disk) -> Result<T, BucketError> + Send + 'static,
    ) -> Result<T, BucketError> {
        let disk = self.disk.clone();
        on_thread(&self.threads, move || act(&disk)).await
    }
}

/// The bytes of an open file, which must stay the version it was when it was opened.
struct Reader {
    file: File,
    etag: ETag,
    left: u64,
}

impl Reader {
    fn frame(&mut self) -> Result<Bytes, BucketError> {
        let want = self.left.min(FRAME_BYTES);
        let mut bytes = Vec::with_capacity(want as usize);
        let read = Read::by_ref(&mut self.file).take(want).read_to_end(&mut bytes);
        read.map_err(attributes::error)?;
        let stat = self.file.metadata().map_err(attributes::error)?;
        if attributes::etag(&stat) != self.etag {
            return Err(BucketError::Precondition); // another program writes in place
        }
        if bytes.is_empty() {
            return Err(BucketError::Unavailable("the file ended early".to_owned()));
        }
        self.left -= bytes.len() as u64;
        Ok(bytes.into())
    }
}

fn frames(reader: Reader, threads: Arc<Semaphore>) -> Body {
    stream::unfold(Some(reader), move |reader| {
        let threads = threads.clone();
        async move {
            let mut reader = reader.filter(|reader| reader.left > 0)?;
            let read = on_thread(&threads, move || {
                let frame = reader.frame()?;
                Ok((frame, reader))
            });
            match read.await {
                Ok((frame, reader)) => Some((Ok(frame), Some(reader))),
                Err(error) => Some((Err(error), None)),
            }
        }
    })
    .boxed()
}

#[async_trait]
impl Store for Directory {
    async fn head(&self, key: &Key) -> Result<ObjectInfo, BucketError> {
        let key = key.clone();
        self.run(move |disk| disk.head(&key)).await
    }

    async fn get(
        &self,
        key: &Key,
        range: Range<u64>,
        if_match: Option<&ETag>,
    ) -> Result<(ObjectInfo, Body), BucketError> {
        let (key, if_match, wanted) = (key.clone(), if_match.cloned(), range.clone());
        let open = self.run(move |disk| disk.open(&key, &wanted, if_match.as_ref()));
        let (info, file) = open.await?;
        let left = range.end.min(info.size) - range.start;
        let reader = Reader { file, etag: info.etag.clone(), left };
        Ok((info, frames(reader, self.threads.clone())))
    }

    async fn put(
        &self,
        key: &Key,
        body: Bytes,
        condition: &Condition,
        metadata: &Metadata,
    ) -> Result<Written, BucketError> {
        let (key, condition, metadata) = (key.clone(), condition.clone(), metadata.clone());
        self.run(move |disk| disk.put(&key, &body, &condition, &metadata)).await
    }

    async fn delete(&self, key: &Key, if_match: Option<&ETag>) -> Result<(), BucketError> {
        let (key, if_match) = (key.clone(), if_match.cloned());
        self.run(move |disk| disk.delete(&key, if_match.as_ref())).await
    }

    async fn list(
        &self,
        prefix: &str,
        delimiter: bool,
        page: Option<&str>,
        max: u16,
    ) -> Result<Page, BucketError> {
        let (snapshots, prefix) = (self.snapshots.clone(), prefix.to_owned());
        let page = page.map(str::to_owned);
        self.run(move |disk| {
            listing::page(&snapshots, disk, &prefix, delimiter, page.as_deref(), max)
        })
        .await
    }

    async fn copy(
        &self,
        from: &Key,
        from_etag: Option<&ETag>,
        to: &Key,
        condition: &Condition,
        metadata: &Metadata,
    ) -> Result<Written, BucketError> {
        let (from, from_etag, to) = (from.clone(), from_etag.cloned(), to.clone());
        let (condition, metadata) = (condition.clone(), metadata.clone());
        self.run(move |disk| disk.copy(&from, from_etag.as_ref(), &to, &condition, &metadata)).await
    }

    async fn rename(&self, from: &Key, to: &Key, condition: &Condition) -> Result<(), BucketError> {
        let (from, to, condition) = (from.clone(), to.clone(), condition.clone());
        self.run(move |disk| disk.rename(&from, &to, &condition)).await
    }

    async fn create_multipart(
        &self,
        key: &Key,
        metadata: &Metadata,
    ) -> Result<String, BucketError> {
        let (key, metadata) = (key.clone(), metadata.clone());
        self.run(move |disk| disk.create_upload(&key, &metadata)).await
    }

    async fn upload_part(
        &self,
        key: &Key,
        upload: &str,
        number: u32,
        body: Bytes,
    ) -> Result<String, BucketError> {
        let (key, upload) = (key.clone(), upload.to_owned());
        self.run(move |disk| disk.upload_part(&key, &upload, number, &body)).await
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
        let (key, upload) = (key.clone(), upload.to_owned());
        let (from, etag) = (from.clone(), from_etag.clone());
        self.run(move |disk| disk.copy_part(&key, &upload, number, &from, &etag, range)).await
    }

    async fn complete_multipart(
        &self,
        key: &Key,
        upload: &str,
        parts: &[String],
        condition: &Condition,
    ) -> Result<Written, BucketError> {
        let (key, upload) = (key.clone(), upload.to_owned());
        let (parts, condition) = (parts.to_vec(), condition.clone());
        self.run(move |disk| disk.complete_upload(&key, &upload, &parts, &condition)).await
    }

    async fn abort_multipart(&self, key: &Key, upload: &str) -> Result<(), BucketError> {
        let (key, upload) = (key.clone(), upload.to_owned());
        self.run(move |disk| disk.abort_upload(&key, &upload)).await
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            create_if_absent: true,
            replace_if_match: true,
            delete_if_match: true,
            multipart: true,
            part_copy: true,
            copy_condition: true,
            tells_crc: false,
            ranged_reads: true,
            metadata: self.keeps_metadata,
            markers: true,
            real_directories: true,
            rename_file: true,
            rename_directory: true,
            create_sees_directories: false,
            list_after_write: true,
            put_max: PUT_BYTES_MAX,
            part_min: 1,
            parts_max: 10_000,
        }
    }
}
