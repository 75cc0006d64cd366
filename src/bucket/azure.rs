//! The driver for Azure Blob Storage: every request raw and signed by `object_store`'s signer,
//! which also finds credentials.
//!
//! Owns which requests an operation is. Does not own retries, how a request is sent (`client`), nor
//! how an upload becomes a blob (`complete`).

mod account;
mod answer;
mod client;
mod complete;
mod credentials;
mod listing;
mod names;

use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use reqwest::Method;
use reqwest::header::{self, HeaderMap, HeaderName, HeaderValue};

use crate::bucket::error::BucketError;
use crate::bucket::http;
use crate::bucket::store::{
    Body, Capabilities, Condition, Metadata, ObjectInfo, Page, Store, Written,
};
use crate::clock::{Clock, ulid};
use crate::config::StoreOptions;
use crate::types::{ETag, Key};

use account::Account;
use client::{BLOB_TYPE, Client, Request, Source};
use complete::Completion;
use credentials::Credentials;
use names::Upload;

const BLOCK_BLOB: HeaderValue = HeaderValue::from_static("BlockBlob");
const REQUIRES_SYNC: HeaderName = HeaderName::from_static("x-ms-requires-sync");
/// The largest source of Copy Blob From URL, and of Put Blob From URL.
const COPY_FROM_URL_BYTES_MAX: u64 = 256 << 20;
const PUT_FROM_URL_BYTES_MAX: u64 = 5000 << 20;
/// Sent with a copy that has no metadata, which else would be given its source's.
const COPIED: &str = "trialfs-copied";
/// What stands for an empty part.
const EMPTY: &[u8] = b"\0";

struct Azure {
    client: Client,
    clock: Arc<dyn Clock>,
}

impl std::fmt::Debug for Azure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Azure").field("account", &self.client.account).finish_non_exhaustive()
    }
}

/// Opens the driver for `container`. No request. [`BucketError::Invalid`] if no account is told.
pub fn open(
    container: &str,
    options: &StoreOptions,
    clock: Arc<dyn Clock>,
) -> Result<Arc<dyn Store>, BucketError> {
    let connection = account::told(&|name| std::env::var(name).ok());
    let name = options.azure_account.clone().or_else(|| connection.account.clone());
    let endpoint = options.endpoint.clone().or_else(|| connection.endpoint.clone());
    let account = Account::new(container, name, endpoint.as_deref())?;
    let credentials = match options.anonymous {
        true => None,
        false => Some(Credentials::find(&account, &connection, clock.clone())?),
    };
    let http = http::client(options.ca_bundle.as_deref())?;
    let client = Client { http, account, credentials };
    Ok(Arc::new(Azure { client, clock }))
}

/// The account and the endpoint that the environment names, by themselves or in a connection
/// string: with the container they say what a cache belongs to.
pub fn told(env: &dyn Fn(&str) -> Option<String>) -> (Option<String>, Option<String>) {
    let connection = account::told(env);
    (connection.account, connection.endpoint)
}

/// The two requests that copy a blob at once, done when they answer.
#[derive(Debug, Clone, Copy)]
enum FromUrl {
    Copy,
    Put,
}

impl Azure {
    async fn copy_at_once(
        &self,
        mut headers: HeaderMap,
        to: &Key,
        from_url: FromUrl,
    ) -> Result<Written, BucketError> {
        match from_url {
            FromUrl::Copy => headers.insert(REQUIRES_SYNC, HeaderValue::from_static("true")),
            FromUrl::Put => headers.insert(BLOB_TYPE, BLOCK_BLOB),
        };
        let answer = self.client.send(Request { headers, ..Request::new(Method::PUT, to) }).await?;
        Ok(Written { etag: client::etag_of(answer.headers())? })
    }
}

#[async_trait]
impl Store for Azure {
    async fn head(&self, key: &Key) -> Result<ObjectInfo, BucketError> {
        self.client.head(key).await
    }

    async fn get(
        &self,
        key: &Key,
        range: Range<u64>,
        if_match: Option<&ETag>,
    ) -> Result<(ObjectInfo, Body), BucketError> {
        let mut request = Request::new(Method::GET, key);
        request.headers.insert(header::RANGE, http::range_value(&range));
        if let Some(etag) = if_match {
            request.headers.insert(header::IF_MATCH, client::quoted(etag)?);
        }
        let response = self.client.send(request).await?;
        let info = client::info(response.headers())?;
        http::check_range(response.headers(), &range, info.size)?;
        Ok((info, http::body(response)))
    }

    async fn put(
        &self,
        key: &Key,
        body: Bytes,
        condition: &Condition,
        metadata: &Metadata,
    ) -> Result<Written, BucketError> {
        let mut request = Request { body, ..Request::new(Method::PUT, key) };
        request.headers.insert(BLOB_TYPE, BLOCK_BLOB);
        client::set_checksum(&mut request.headers, &request.body);
        client::set_condition(&mut request.headers, condition)?;
        client::set_metadata(&mut request.headers, metadata)?;
        Ok(Written { etag: client::etag_of(self.client.send(request).await?.headers())? })
    }

    async fn delete(&self, key: &Key, if_match: Option<&ETag>) -> Result<(), BucketError> {
        self.client.delete(key, if_match).await
    }

    async fn list(
        &self,
        prefix: &str,
        delimiter: bool,
        page: Option<&str>,
        max: u16,
    ) -> Result<Page, BucketError> {
        let max = max.to_string();
        let mut query = vec![("restype", "container"), ("comp", "list"), ("maxresults", &max)];
        if !prefix.is_empty() {
            query.push(("prefix", prefix));
        }
        if delimiter {
            query.push(("delimiter", "/"));
        }
        query.extend(page.map(|marker| ("marker", marker)));
        let (headers, body) = (HeaderMap::new(), Bytes::new());
        let request = Request { method: Method::GET, key: None, query: &query, headers, body };
        let answer = self.client.send(request).await.map_err(|error| match error {
            BucketError::NotFound => BucketError::Invalid("there is no such container".to_owned()),
            error => error,
        })?;
        listing::page(&http::collect(answer).await?)
    }

    /// One request; three for more than 256 MiB.
    async fn copy(
        &self,
        from: &Key,
        from_etag: Option<&ETag>,
        to: &Key,
        condition: &Condition,
        metadata: &Metadata,
    ) -> Result<Written, BucketError> {
        let mut headers = self.client.source_headers(from, from_etag).await?;
        client::set_condition(&mut headers, condition)?;
        client::set_metadata(&mut headers, metadata)?;
        if metadata.is_empty() {
            client::set_metadata(&mut headers, &[(COPIED.to_owned(), "1".to_owned())].into())?;
        }
        let refused = match self.copy_at_once(headers.clone(), to, FromUrl::Copy).await {
            Err(BucketError::Invalid(text)) => BucketError::Invalid(text),
            result => return result,
        };
        // Too large is said in several ways; so it is looked at.
        match self.client.head(from).await?.size {
            0..=COPY_FROM_URL_BYTES_MAX => Err(refused),
            size if size <= PUT_FROM_URL_BYTES_MAX => {
                self.copy_at_once(headers, to, FromUrl::Put).await
            }
            _ => Err(BucketError::Unsupported("copy so large an object at once")),
        }
    }

    async fn rename(&self, _: &Key, _: &Key, _: &Condition) -> Result<(), BucketError> {
        Err(BucketError::Unsupported("rename"))
    }

    /// No request: there is nothing to begin.
    async fn create_multipart(&self, _: &Key, metadata: &Metadata) -> Result<String, BucketError> {
        Ok(Upload { ulid: ulid(&*self.clock), metadata: metadata.clone() }.id())
    }

    async fn upload_part(
        &self,
        key: &Key,
        upload: &str,
        number: u32,
        body: Bytes,
    ) -> Result<String, BucketError> {
        let staging = Upload::parse(upload)?.staging_key(key);
        let id = names::part_id(number, body.len() as u64, client::crc64(&body));
        let body = if body.is_empty() { Bytes::from_static(EMPTY) } else { body };
        self.client.put_block(&staging, &id, body).await?;
        Ok(id)
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
        let staging = Upload::parse(upload)?.staging_key(key);
        let id = names::part_id(number, range.end - range.start, self.clock.random());
        let source = Source { key: from, etag: from_etag, range };
        self.client.copy_block(&staging, &id, &source).await?;
        Ok(id)
    }

    /// Four requests and one for each 256 MiB.
    async fn complete_multipart(
        &self,
        key: &Key,
        upload: &str,
        parts: &[String],
        condition: &Condition,
    ) -> Result<Written, BucketError> {
        let upload = &Upload::parse(upload)?;
        let (client, clock) = (&self.client, &self.clock);
        Completion { client, clock, key, upload }.run(parts, condition).await
    }

    /// Two requests, three if it was not being completed.
    async fn abort_multipart(&self, key: &Key, upload: &str) -> Result<(), BucketError> {
        complete::abort(&self.client, key, &Upload::parse(upload)?).await
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
            metadata: true,
            markers: true,
            real_directories: false,
            rename_file: false,
            rename_directory: false,
            create_sees_directories: false,
            list_after_write: true,
            put_max: 5000 << 20,
            part_min: 1,
            parts_max: 50_000,
        }
    }
}
