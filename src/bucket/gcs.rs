//! The driver for Google Cloud Storage: raw requests to its JSON API, and to its XML API where only
//! that one will do. An ETag here is a generation, so conditions are on generations.
//!
//! Owns requests and their answers. Does not own retries, nor URLs ([`endpoint`]), tokens
//! ([`credentials`]), bodies ([`json`]), the meaning of refusals ([`answer`]) and where an upload
//! waits ([`staging`]).
//!
//! # Which API for what
//!
//! | operation | request | why |
//! | --- | --- | --- |
//! | put | JSON `uploadType=multipart` | body, metadata, CRC32C and condition in one request |
//! | head, delete, list | JSON | keys that XML 1.0 can't hold; heads never from an edge cache |
//! | get | XML | JSON gives no user metadata with the bytes |
//! | copy | JSON `rewriteTo` | conditions on both ends |
//! | rename | JSON `moveTo` | one atomic transaction |
//! | uploads | XML multipart, then JSON `moveTo` | see below |
//!
//! # Uploads
//!
//! 1. XML multipart takes no preconditions. So an upload is begun on a staging key, which
//!    `complete_multipart` completes (invisible to mounts, under `.trialfs/`) and then moves to its
//!    key: the move judges the condition, and the object appears whole.
//! 2. A move takes its source away in the same transaction. So an upload becomes an object at most
//!    once, however often and by however many mounts it is completed.
//! 3. The staging key follows from the key and the upload id, so any mount may complete: one that
//!    finds the parts already joined goes on with the move.
//! 4. A moved source is neither kept by soft delete nor charged for early deletion, as deleted
//!    parts of a composed object would be.
//!
//! Parts can't be copied from objects. One key takes about a write a second; past that the store
//! answers 429, which is retried.
//!
//! # What was tried
//!
//! Never the real service. The emulator in `tests/support` stands for: generation preconditions on
//! every call, XML multipart that ignores preconditions, moves, rewrites in several calls, pages of
//! a listing, and both kinds of error bodies; fake-gcs-server for the JSON API without most of
//! that.

mod account;
mod answer;
mod credentials;
mod endpoint;
mod external;
mod json;
mod staging;

use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::{StreamExt, stream};
use reqwest::header::{self, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Body as RequestBody, Client, Method, Response, StatusCode, Url};

use crate::bucket::error::BucketError;
use crate::bucket::store::{
    Body, Capabilities, Condition, Metadata, ObjectInfo, Page, Store, Written,
};
use crate::bucket::{http, xml};
use crate::clock::{Clock, ulid};
use crate::config::StoreOptions;
use crate::types::{ETag, Key};

use credentials::Credentials;
use endpoint::Endpoint;
use staging::Staging;

const META: &str = "x-goog-meta-";
const IF_GENERATION: HeaderName = HeaderName::from_static("x-goog-if-generation-match");
const HASH: HeaderName = HeaderName::from_static("x-goog-hash");
const OCTETS: &str = "application/octet-stream";
/// The calls of one copy: each moves 1 GiB at least where bytes must move at all, and 5 TiB is the
/// largest object.
const REWRITE_CALLS_MAX: u32 = 5 << 10;

struct Gcs {
    client: Client,
    endpoint: Endpoint,
    /// `None`: anonymous, or an emulator.
    credentials: Option<Credentials>,
    clock: Arc<dyn Clock>,
}

impl std::fmt::Debug for Gcs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gcs").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

/// Opens the driver for `bucket`. Reads credential files, makes no request. What is asked over
/// plain HTTP is an emulator and gets no token: one sent in the clear would be anybody's.
pub fn open(
    bucket: &str,
    options: &StoreOptions,
    clock: Arc<dyn Clock>,
) -> Result<Arc<dyn Store>, BucketError> {
    let endpoint = Endpoint::new(bucket, options.endpoint.as_deref())?;
    let client = http::client(options.ca_bundle.as_deref())?;
    let credentials = match options.anonymous || endpoint.is_plain() {
        true => None,
        false => Some(Credentials::find(client.clone(), clock.clone())?),
    };
    Ok(Arc::new(Gcs { client, endpoint, credentials, clock }))
}

/// A request that is about to be sent; its body in pieces, so that none is copied.
struct Request {
    method: Method,
    url: Url,
    headers: HeaderMap,
    body: Vec<Bytes>,
}

impl Request {
    fn new(method: Method, url: Url) -> Self {
        Self { method, url, headers: HeaderMap::new(), body: Vec::new() }
    }

    fn json(method: Method, url: Url, body: &serde_json::Value) -> Self {
        let mut request = Self::new(method, url);
        request.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        request.body.push(Bytes::from(body.to_string()));
        request
    }
}

/// The generation that `etag` names. What is no generation names no version that exists (and 0
/// would mean "where nothing is").
fn generation(etag: &ETag) -> Result<String, BucketError> {
    match etag.0.parse::<u64>() {
        Ok(number) if number > 0 => Ok(number.to_string()),
        _ => Err(BucketError::Precondition),
    }
}

/// The generation that must be at the destination; 0: none.
fn expected(condition: &Condition) -> Result<Option<String>, BucketError> {
    match condition {
        Condition::Always => Ok(None),
        Condition::IfAbsent => Ok(Some("0".to_owned())),
        Condition::IfMatch(etag) => generation(etag).map(Some),
    }
}

/// A query with conditions in it, where there are some.
fn with_conditions<'a>(
    fixed: &[(&'a str, &'a str)],
    conditions: &'a [(&'a str, Option<String>)],
) -> Vec<(&'a str, &'a str)> {
    let given = conditions.iter().filter_map(|(name, value)| Some((*name, value.as_deref()?)));
    fixed.iter().copied().chain(given).collect()
}

fn info(headers: &HeaderMap) -> Result<ObjectInfo, BucketError> {
    let lacking = |what: &str| BucketError::Invalid(format!("an answer without a {what}"));
    let etag = http::text(headers, "x-goog-generation").ok_or_else(|| lacking("generation"))?;
    Ok(ObjectInfo {
        size: http::total_size(headers).ok_or_else(|| lacking("size"))?,
        etag: ETag(etag.to_owned()),
        modified: http::modified(headers),
        metadata: http::metadata(headers, META),
        crc64nvme: None,
    })
}

/// CRC32C as Google writes it.
fn crc32c(body: &[u8]) -> String {
    let crc = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, body) as u32;
    STANDARD.encode(crc.to_be_bytes())
}

/// Whether the store counted another CRC than we did; where it tells none, it did not.
fn check_crc(headers: &HeaderMap, sent: &str) -> Result<(), BucketError> {
    let told = headers.get_all(HASH).iter().filter_map(|value| value.to_str().ok());
    let mut told = told
        .flat_map(|line| line.split(','))
        .filter_map(|hash| hash.trim().strip_prefix("crc32c="));
    match told.next() {
        Some(other) if other != sent => Err(BucketError::Corrupt("another CRC32C".to_owned())),
        _ => Ok(()),
    }
}

impl Gcs {
    /// Adds the token, sends, and names a refusal.
    async fn send(&self, request: Request) -> Result<Response, BucketError> {
        let Request { method, url, mut headers, mut body } = request;
        let mut login = None;
        if let Some(credentials) = &self.credentials {
            let (bearer, epoch) = credentials.bearer().await?;
            headers.insert(header::AUTHORIZATION, bearer);
            login = Some((credentials, epoch));
        }
        if matches!(method, Method::PUT | Method::POST) {
            let length: usize = body.iter().map(Bytes::len).sum();
            headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
        }
        let body = match body.len() {
            0 | 1 => RequestBody::from(body.pop().unwrap_or_default()),
            _ => RequestBody::wrap_stream(stream::iter(body.into_iter().map(Ok::<_, BucketError>))),
        };
        let sent = self.client.request(method, url).headers(headers).body(body).send().await;
        let response = sent.map_err(http::transport_error)?;
        let status = response.status();
        if status.is_success() {
            if let Some((credentials, epoch)) = login {
                credentials.accepted(epoch);
            }
            return Ok(response);
        }
        let body = http::collect(response).await.unwrap_or_default();
        let error = answer::error(status.as_u16(), &body);
        Err(match login {
            Some((credentials, epoch)) if status == StatusCode::UNAUTHORIZED => {
                credentials.refused(epoch, error)
            }
            _ => error,
        })
    }

    /// Sends a request of the JSON API and reads its answer.
    async fn ask<T: serde::de::DeserializeOwned>(
        &self,
        request: Request,
    ) -> Result<T, BucketError> {
        json::read(&http::collect(self.send(request).await?).await?)
    }

    /// Sends a request whose 200 may hold an error, as completions of S3 do.
    async fn send_xml(&self, request: Request) -> Result<Bytes, BucketError> {
        let body = http::collect(self.send(request).await?).await?;
        match xml::error(&body) {
            Some(_) => Err(answer::error(500, &body)),
            None => Ok(body),
        }
    }

    /// Moves an object to another key, in one transaction.
    async fn move_object(
        &self,
        from: &Key,
        to: &Key,
        condition: &Condition,
    ) -> Result<Written, BucketError> {
        let conditions = [("ifGenerationMatch", expected(condition)?)];
        let query = with_conditions(&[("fields", "generation")], &conditions);
        let url = self.endpoint.move_to(from, to, &query)?;
        let moved: json::Resource = self.ask(Request::new(Method::POST, url)).await?;
        moved.written()
    }
}

fn check_length(key: &Key) -> Result<(), BucketError> {
    if key.fits() { Ok(()) } else { Err(BucketError::KeyTooLong) }
}

#[async_trait]
impl Store for Gcs {
    async fn head(&self, key: &Key) -> Result<ObjectInfo, BucketError> {
        check_length(key)?;
        let query = [("fields", "size,generation,updated,metadata")];
        let url = self.endpoint.object(key, &query)?;
        self.ask::<json::Resource>(Request::new(Method::GET, url)).await?.info()
    }

    async fn get(
        &self,
        key: &Key,
        range: Range<u64>,
        if_match: Option<&ETag>,
    ) -> Result<(ObjectInfo, Body), BucketError> {
        check_length(key)?;
        let mut request = Request::new(Method::GET, self.endpoint.xml(key, &[])?);
        request.headers.insert(header::RANGE, http::range_value(&range));
        // As it is stored: what was uploaded compressed would else be inflated on the way, whole.
        request.headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("gzip"));
        if let Some(etag) = if_match {
            request.headers.insert(IF_GENERATION, http::value(&generation(etag)?)?);
        }
        let response = self.send(request).await?;
        let info = info(response.headers())?;
        http::check_range(response.headers(), &range, info.size)?;
        let whole =
            range.start == 0 && range.end >= info.size && info.size <= http::CHECKED_BYTES_MAX;
        if !whole {
            return Ok((info, http::body(response)));
        }
        let told = response.headers().clone();
        let bytes = http::collect(response).await?;
        check_crc(&told, &crc32c(&bytes))?;
        Ok((info, stream::iter([Ok(bytes)]).boxed()))
    }

    async fn put(
        &self,
        key: &Key,
        body: Bytes,
        condition: &Condition,
        metadata: &Metadata,
    ) -> Result<Written, BucketError> {
        check_length(key)?;
        let conditions = [("ifGenerationMatch", expected(condition)?)];
        let fixed = [("uploadType", "multipart"), ("fields", "generation")];
        let url = self.endpoint.upload(&with_conditions(&fixed, &conditions))?;
        let resource = serde_json::json!({
            "name": key.as_str(),
            "contentType": OCTETS,
            "crc32c": crc32c(&body),
            "metadata": metadata,
        });
        let boundary = ulid(&*self.clock); // 80 random bits: no body holds it
        let head = format!(
            "--{boundary}\r\nContent-Type: application/json; charset=UTF-8\r\n\r\n{resource}\r\n\
             --{boundary}\r\nContent-Type: {OCTETS}\r\n\r\n"
        );
        let mut request = Request::new(Method::POST, url);
        let kind = format!("multipart/related; boundary={boundary}");
        request.headers.insert(header::CONTENT_TYPE, http::value(&kind)?);
        request.body = vec![head.into(), body, format!("\r\n--{boundary}--\r\n").into()];
        self.ask::<json::Resource>(request).await?.written()
    }

    async fn delete(&self, key: &Key, if_match: Option<&ETag>) -> Result<(), BucketError> {
        check_length(key)?;
        let conditions = [("ifGenerationMatch", if_match.map(generation).transpose()?)];
        let url = self.endpoint.object(key, &with_conditions(&[], &conditions))?;
        self.send(Request::new(Method::DELETE, url)).await.map(drop)
    }

    async fn list(
        &self,
        prefix: &str,
        delimiter: bool,
        page: Option<&str>,
        max: u16,
    ) -> Result<Page, BucketError> {
        let max = max.to_string();
        let fields = "items(name,size,generation,updated),prefixes,nextPageToken";
        let mut query = vec![("prefix", prefix), ("maxResults", &max), ("fields", fields)];
        if delimiter {
            query.push(("delimiter", "/"));
        }
        query.extend(page.map(|token| ("pageToken", token)));
        let url = self.endpoint.objects(&query)?;
        let listed = self.ask::<json::Listing>(Request::new(Method::GET, url)).await;
        match listed {
            Ok(listed) => listed.page(),
            Err(BucketError::NotFound) => {
                Err(BucketError::Invalid("there is no such bucket".to_owned()))
            }
            Err(error) => Err(error),
        }
    }

    async fn copy(
        &self,
        from: &Key,
        from_etag: Option<&ETag>,
        to: &Key,
        condition: &Condition,
        metadata: &Metadata,
    ) -> Result<Written, BucketError> {
        check_length(to)?;
        let mut conditions = [
            ("ifGenerationMatch", expected(condition)?),
            ("ifSourceGenerationMatch", from_etag.map(generation).transpose()?),
            ("rewriteToken", None),
        ];
        let resource = serde_json::json!({ "contentType": OCTETS, "metadata": metadata });
        for _ in 0..REWRITE_CALLS_MAX {
            let fixed = [("fields", "done,rewriteToken,resource(generation)")];
            let query = with_conditions(&fixed, &conditions);
            let url = self.endpoint.rewrite_to(from, to, &query)?;
            match self.ask::<json::Rewrite>(Request::json(Method::POST, url, &resource)).await? {
                json::Rewrite { done: true, resource: Some(made), .. } => return made.written(),
                json::Rewrite { rewrite_token: Some(token), .. } => conditions[2].1 = Some(token),
                _ => return Err(BucketError::Invalid("a copy that does not go on".to_owned())),
            }
        }
        Err(BucketError::Invalid(format!("a copy of more than {REWRITE_CALLS_MAX} calls")))
    }

    async fn rename(&self, from: &Key, to: &Key, condition: &Condition) -> Result<(), BucketError> {
        check_length(to)?;
        self.move_object(from, to, condition).await.map(drop)
    }

    async fn create_multipart(
        &self,
        key: &Key,
        metadata: &Metadata,
    ) -> Result<String, BucketError> {
        check_length(key)?;
        let id = ulid(&*self.clock);
        let staged = staging::key(key, &id);
        let mut request =
            Request::new(Method::POST, self.endpoint.xml(&staged, &[("uploads", "")])?);
        request.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(OCTETS));
        http::set_metadata(&mut request.headers, META, metadata)?;
        let upload = xml::upload_id(&http::collect(self.send(request).await?).await?)?;
        Ok(staging::upload_id(&id, &upload))
    }

    async fn upload_part(
        &self,
        key: &Key,
        upload: &str,
        number: u32,
        body: Bytes,
    ) -> Result<String, BucketError> {
        let Staging { key, upload } = Staging::of(key, upload)?;
        let number = number.to_string();
        let query = [("partNumber", number.as_str()), ("uploadId", upload)];
        let crc = crc32c(&body);
        let mut request = Request::new(Method::PUT, self.endpoint.xml(&key, &query)?);
        request.headers.insert(HASH, http::value(&format!("crc32c={crc}"))?);
        request.body.push(body);
        let response = self.send(request).await?;
        check_crc(response.headers(), &crc)?;
        let etag = http::text(response.headers(), "etag").map(xml::etag);
        etag.map(|etag| etag.0)
            .ok_or_else(|| BucketError::Invalid("a part without an ETag".to_owned()))
    }

    async fn upload_part_copy(
        &self,
        _: &Key,
        _: &str,
        _: u32,
        _: &Key,
        _: &ETag,
        _: Range<u64>,
    ) -> Result<String, BucketError> {
        Err(BucketError::Unsupported("copy a part"))
    }

    /// Two requests. [`BucketError::Precondition`] leaves the joined parts staged, to be completed
    /// under another condition or aborted.
    async fn complete_multipart(
        &self,
        key: &Key,
        upload: &str,
        parts: &[String],
        condition: &Condition,
    ) -> Result<Written, BucketError> {
        let staged = Staging::of(key, upload)?;
        expected(condition)?;
        let url = self.endpoint.xml(&staged.key, &[("uploadId", staged.upload)])?;
        let mut request = Request::new(Method::POST, url);
        request.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/xml"));
        request.body.push(Bytes::from(xml::complete(parts)));
        match self.send_xml(request).await {
            // Joined before, by us or another mount: whether it was moved too, the move tells.
            Ok(_) | Err(BucketError::NotFound) => {}
            Err(error) => return Err(error),
        }
        self.move_object(&staged.key, key, condition).await
    }

    /// One request; two where the parts are joined already.
    async fn abort_multipart(&self, key: &Key, upload: &str) -> Result<(), BucketError> {
        let Staging { key, upload } = Staging::of(key, upload)?;
        let url = self.endpoint.xml(&key, &[("uploadId", upload)])?;
        match self.send(Request::new(Method::DELETE, url)).await {
            Err(BucketError::NotFound) => self.delete(&key, None).await,
            result => result.map(drop),
        }
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            create_if_absent: true,
            replace_if_match: true,
            delete_if_match: true,
            multipart: true,
            part_copy: false,
            copy_condition: true,
            tells_crc: false,
            ranged_reads: true,
            metadata: true,
            markers: true,
            real_directories: false,
            rename_file: true,
            rename_directory: false,
            create_sees_directories: false,
            list_after_write: true,
            put_max: 5 << 40,
            part_min: 5 << 20,
            parts_max: 10_000,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_written_as_google_wants_them() {
        // The check value of CRC-32/ISCSI, of the catalogue of CRCs.
        assert_eq!(crc32c(b"123456789"), STANDARD.encode(0xe306_9283u32.to_be_bytes()));
    }

    #[test]
    fn what_is_no_generation_matches_nothing_rather_than_an_absent_object() {
        for etag in ["0", "0000", "", "-1", "abc", "1.5"] {
            let etag = ETag(etag.to_owned());
            assert_eq!(generation(&etag), Err(BucketError::Precondition), "{etag:?}");
            assert_eq!(expected(&Condition::IfMatch(etag)), Err(BucketError::Precondition));
        }
        let right = Condition::IfMatch(ETag("17".to_owned()));
        assert_eq!(expected(&right), Ok(Some("17".to_owned())));
        assert_eq!(expected(&Condition::IfAbsent), Ok(Some("0".to_owned())));
    }

    #[test]
    fn a_part_that_arrived_otherwise_is_sent_again() {
        let mut headers = HeaderMap::new();
        assert!(check_crc(&headers, "AAAAAA==").is_ok());
        headers.insert(HASH, HeaderValue::from_static("md5=x==, crc32c=AAAAAA=="));
        assert!(check_crc(&headers, "AAAAAA==").is_ok());
        assert!(check_crc(&headers, "BBBBBB==").is_err_and(|error| error.is_transient()));
    }
}
