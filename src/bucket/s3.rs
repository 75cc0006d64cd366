//! The driver for S3 and what speaks it: every request raw and signed by `object_store`'s signer,
//! which also finds credentials. Its own `list` and `Path` can't say the keys that buckets really
//! hold.
//!
//! Owns requests and their answers. Does not own retries, nor endpoints ([`endpoint`]), nor the
//! meaning of refusals ([`answer`]).

mod answer;
mod checksum;
mod credentials;
mod endpoint;
mod lifecycle;
mod marker;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use object_store::aws::AwsAuthorizer;
use object_store::client::{HttpRequest, HttpRequestBody};
use reqwest::header::{self, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Client, Method, Response, StatusCode};

use crate::bucket::error::BucketError;
use crate::bucket::store::{
    Body, Capabilities, Condition, Metadata, ObjectInfo, Page, Store, Written,
};
use crate::bucket::{http, progress, xml};
use crate::clock::Clock;
use crate::config::StoreOptions;
use crate::types::{ETag, KEY_BYTES_MAX, Key};

use credentials::{Credentials, Profile};
use endpoint::Endpoint;

const META: &str = "x-amz-meta-";
const CHECKSUM: HeaderName = HeaderName::from_static("x-amz-checksum-crc64nvme");
const CHECKSUM_MODE: HeaderName = HeaderName::from_static("x-amz-checksum-mode");
const CHECKSUM_KIND: HeaderName = HeaderName::from_static("x-amz-checksum-algorithm");
const COPY_SOURCE: HeaderName = HeaderName::from_static("x-amz-copy-source");
const COPY_RANGE: HeaderName = HeaderName::from_static("x-amz-copy-source-range");
const COPY_IF_MATCH: HeaderName = HeaderName::from_static("x-amz-copy-source-if-match");
const COPY_METADATA: HeaderName = HeaderName::from_static("x-amz-metadata-directive");
const SSE: HeaderName = HeaderName::from_static("x-amz-server-side-encryption");
const SSE_KEY: HeaderName = HeaderName::from_static("x-amz-server-side-encryption-aws-kms-key-id");

struct S3 {
    client: Client,
    bucket: String,
    endpoint: Endpoint,
    /// `None`: anonymous.
    credentials: Option<Credentials>,
    /// What is sent with every write: encryption.
    write_headers: HeaderMap,
    requester_pays: bool,
    /// Whether bodies carry a CRC64NVME; off once the server refused one.
    checksums: AtomicBool,
}

impl std::fmt::Debug for S3 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("S3").field("bucket", &self.bucket).finish_non_exhaustive()
    }
}

/// Opens the driver for `bucket`. Asks AWS for the bucket's region if none is told: one request.
pub async fn open(
    bucket: &str,
    options: &StoreOptions,
    clock: Arc<dyn Clock>,
) -> Result<Arc<dyn Store>, BucketError> {
    let client = http::client(options.ca_bundle.as_deref())?;
    let region = Endpoint::told_region(options);
    let (credentials, profile) = match options.anonymous {
        true => (None, Profile::default()),
        false => {
            let found = Credentials::find(options, region.as_deref(), clock).await?;
            (Some(found.0), found.1)
        }
    };
    let told = Endpoint::told(options).or(profile.endpoint);
    let region = match region.or(profile.region) {
        None if told.is_none() => Some(region_of(bucket, &client).await?),
        region => region,
    };
    let endpoint = Endpoint::new(bucket, told.as_deref(), region, options.path_style)?;
    Ok(Arc::new(S3 {
        client,
        bucket: bucket.to_owned(),
        endpoint,
        credentials,
        write_headers: write_headers(options)?,
        requester_pays: options.requester_pays,
        checksums: AtomicBool::new(true),
    }))
}

fn write_headers(options: &StoreOptions) -> Result<HeaderMap, BucketError> {
    let mut headers = HeaderMap::new();
    let kind = match (&options.sse, &options.sse_kms_key_id) {
        (None, Some(_)) => Some("aws:kms"),
        (kind, _) => kind.as_deref(),
    };
    if let Some(kind) = kind {
        headers.insert(SSE, http::value(kind)?);
    }
    if let Some(key) = &options.sse_kms_key_id {
        headers.insert(SSE_KEY, http::value(key)?);
    }
    Ok(headers)
}

/// AWS tells anyone in which region a bucket is, in the answer to an unsigned HEAD.
async fn region_of(bucket: &str, client: &Client) -> Result<String, BucketError> {
    let anywhere = Endpoint::new(bucket, Some("https://s3.amazonaws.com"), None, Some(true))?;
    let sent = client.head(anywhere.url(None, &[])?).send().await;
    let answer = sent.map_err(http::transport_error)?;
    match http::text(answer.headers(), "x-amz-bucket-region") {
        Some(region) => Ok(region.to_owned()),
        None if answer.status() == StatusCode::NOT_FOUND => {
            Err(BucketError::Invalid(format!("there is no bucket {bucket} on AWS")))
        }
        None => Err(BucketError::Invalid("AWS did not tell the bucket's region".to_owned())),
    }
}

/// A request that is about to be signed.
struct Request<'a> {
    method: Method,
    key: Option<&'a Key>,
    query: &'a [(&'a str, &'a str)],
    headers: HeaderMap,
    body: Bytes,
}

impl<'a> Request<'a> {
    fn new(method: Method, key: &'a Key) -> Self {
        let headers = HeaderMap::new();
        Self { method, key: Some(key), query: &[], headers, body: Bytes::new() }
    }
}

fn quoted(etag: &ETag) -> Result<HeaderValue, BucketError> {
    http::value(&format!("\"{}\"", etag.0))
}

fn set_condition(headers: &mut HeaderMap, condition: &Condition) -> Result<(), BucketError> {
    match condition {
        Condition::Always => {}
        Condition::IfAbsent => {
            headers.insert(header::IF_NONE_MATCH, HeaderValue::from_static("*"));
        }
        Condition::IfMatch(etag) => {
            headers.insert(header::IF_MATCH, quoted(etag)?);
        }
    }
    Ok(())
}

fn info(headers: &HeaderMap) -> Result<ObjectInfo, BucketError> {
    let size = http::total_size(headers);
    let mut metadata = http::metadata(headers, META);
    marker::restore_nonce(headers, &mut metadata);
    Ok(ObjectInfo {
        size: size.ok_or_else(|| BucketError::Invalid("an answer without a size".to_owned()))?,
        etag: etag_of(headers)?,
        modified: http::modified(headers),
        metadata,
        crc64nvme: headers.get(CHECKSUM).and_then(checksum::of_header),
    })
}

fn info_of(response: &Response) -> Result<ObjectInfo, BucketError> {
    info(response.headers())
}

/// A GET; of the whole object without a range.
fn get_request<'a>(
    key: &'a Key,
    range: Option<&Range<u64>>,
    if_match: Option<&ETag>,
) -> Result<Request<'a>, BucketError> {
    let mut request = Request::new(Method::GET, key);
    request.headers.insert(CHECKSUM_MODE, HeaderValue::from_static("ENABLED"));
    if let Some(range) = range {
        request.headers.insert(header::RANGE, http::range_value(range));
    }
    if let Some(etag) = if_match {
        request.headers.insert(header::IF_MATCH, quoted(etag)?);
    }
    Ok(request)
}

fn etag_of(headers: &HeaderMap) -> Result<ETag, BucketError> {
    let etag = http::text(headers, "etag").map(xml::etag);
    etag.ok_or_else(|| BucketError::Invalid("an answer without an ETag".to_owned()))
}

impl S3 {
    /// A page of a LIST, from where `from` says.
    async fn list_from(
        &self,
        prefix: &str,
        delimiter: bool,
        from: Option<(&str, &str)>,
        max: u16,
    ) -> Result<Page, BucketError> {
        let max = max.to_string();
        let mut query = vec![("list-type", "2"), ("encoding-type", "url"), ("max-keys", &max)];
        query.push(("prefix", prefix));
        if delimiter {
            query.push(("delimiter", "/"));
        }
        query.extend(from);
        let (headers, body) = (HeaderMap::new(), Bytes::new());
        let request = Request { method: Method::GET, key: None, query: &query, headers, body };
        let answer = self.send(request).await.map_err(|error| match error {
            BucketError::NotFound => answer::no_bucket(),
            error => error,
        })?;
        xml::page(&http::collect(answer).await?)
    }

    /// Signs, sends, and names a refusal.
    async fn send(&self, request: Request<'_>) -> Result<Response, BucketError> {
        if request.key.is_some_and(|key| key.as_str().len() > KEY_BYTES_MAX) {
            return Err(BucketError::KeyTooLong);
        }
        let url = self.endpoint.url(request.key, request.query)?;
        let mut headers = self.sign(&request.method, &url, request.headers).await?;
        http::set_length(&mut headers, &request.method, &request.body);
        let head = request.method == Method::HEAD;
        let sent = self
            .client
            .request(request.method, url)
            .headers(headers)
            .body(progress::watched(request.body));
        let response = sent.send().await.map_err(http::transport_error)?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status().as_u16();
        if head && status == 400 {
            // No body says why; a token that expired early is the one reason that passes.
            if let Some(credentials) = &self.credentials {
                credentials.expire();
            }
            return Err(BucketError::Unavailable("HTTP 400 to HEAD".to_owned()));
        }
        let region = http::text(response.headers(), "x-amz-bucket-region").map(str::to_owned);
        let told = response.headers().clone();
        let body = http::collect(response).await?; // without it a refusal says too little
        let mut error = xml::error(&body).unwrap_or_default();
        if let Some(region) = region.filter(|_| status == 301) {
            (error.code, error.region) = ("PermanentRedirect".to_owned(), region);
        }
        if let Some(credentials) = self.credentials.as_ref().filter(|_| answer::expired(&error)) {
            credentials.expire();
        }
        Err(http::hold_off(answer::error(status, &error), &told))
    }

    /// Adds the signature to `headers`; the payload itself is not signed, TLS and the CRC guard it.
    async fn sign(
        &self,
        method: &Method,
        url: &url::Url,
        headers: HeaderMap,
    ) -> Result<HeaderMap, BucketError> {
        let Some(credentials) = &self.credentials else {
            return Ok(headers);
        };
        let credential = credentials.get().await?;
        let mut unsigned = HttpRequest::new(HttpRequestBody::empty());
        *unsigned.method_mut() = method.clone();
        *unsigned.headers_mut() = headers;
        *unsigned.uri_mut() = url
            .as_str()
            .parse()
            .map_err(|_| BucketError::Invalid("a key that no URL can say".to_owned()))?;
        AwsAuthorizer::new(&credential, "s3", &self.endpoint.region)
            .with_sign_payload(false)
            .with_request_payer(self.requester_pays)
            .try_authorize(&mut unsigned, None)
            .map_err(|_| BucketError::Invalid("the request can't be signed".to_owned()))?;
        Ok(std::mem::take(unsigned.headers_mut()))
    }

    /// Why a HEAD was refused, which has no body that says it: asks for a byte. One request.
    async fn why_denied(&self, key: &Key) -> BucketError {
        let mut request = Request::new(Method::GET, key);
        request.headers.insert(header::RANGE, http::range_value(&(0..1)));
        match self.send(request).await {
            // Of an empty object there is no byte to refuse.
            Ok(_) | Err(BucketError::Invalid(_)) => {
                BucketError::Unavailable("HTTP 403 to HEAD and none to GET".to_owned())
            }
            Err(error) => error,
        }
    }

    /// Sends a body with its checksum, and once more without if the server knows none.
    async fn send_body(&self, request: Request<'_>) -> Result<Response, BucketError> {
        let Request { method, key, query, headers, body } = request;
        let again =
            |headers| Request { method: method.clone(), key, query, headers, body: body.clone() };
        if !self.checksums.load(Ordering::Relaxed) {
            return self.send(again(headers)).await;
        }
        let mut checked = headers.clone();
        checked.insert(CHECKSUM, checksum::header_of(&body));
        match self.send(again(checked)).await {
            Err(error) if refuses_checksums(&error) => {
                tracing::info!("the store takes no CRC64NVME; going on without");
                self.checksums.store(false, Ordering::Relaxed);
                self.send(again(headers)).await
            }
            result => result,
        }
    }

    /// Sends a request whose 200 may hold an error, since S3 begins to answer before it is done.
    async fn send_slow(&self, request: Request<'_>) -> Result<Bytes, BucketError> {
        let body = http::collect(self.send(request).await?).await?;
        match xml::error(&body) {
            Some(error) => Err(answer::error(500, &error)),
            None => Ok(body),
        }
    }

    /// The headers that name the source of a copy.
    fn copy_headers(&self, from: &Key, etag: Option<&ETag>) -> Result<HeaderMap, BucketError> {
        let mut headers = HeaderMap::new();
        let source = format!("/{}/{}", self.bucket, http::encode_path(from.as_str()));
        headers.insert(COPY_SOURCE, http::value(&source)?);
        if let Some(etag) = etag {
            headers.insert(COPY_IF_MATCH, quoted(etag)?);
        }
        Ok(headers)
    }
}

fn refuses_checksums(error: &BucketError) -> bool {
    match error {
        BucketError::Invalid(text) => text.to_ascii_lowercase().contains("checksum"),
        BucketError::Unsupported(_) => true,
        _ => false,
    }
}

#[async_trait]
impl Store for S3 {
    async fn head(&self, key: &Key) -> Result<ObjectInfo, BucketError> {
        let mut request = Request::new(Method::HEAD, key);
        request.headers.insert(CHECKSUM_MODE, HeaderValue::from_static("ENABLED"));
        match self.send(request).await {
            Ok(response) => info(response.headers()),
            Err(BucketError::Denied(_)) => Err(self.why_denied(key).await),
            Err(error) => Err(error),
        }
    }

    async fn get(
        &self,
        key: &Key,
        range: Range<u64>,
        if_match: Option<&ETag>,
    ) -> Result<(ObjectInfo, Body), BucketError> {
        // Checksums come with whole objects alone, and whole is what is asked for without a range.
        let whole = range.start == 0 && range.end <= http::CHECKED_BYTES_MAX;
        let mut response =
            self.send(get_request(key, (!whole).then_some(&range), if_match)?).await?;
        let mut info = info_of(&response)?;
        if whole && info.size > range.end {
            response = self.send(get_request(key, Some(&range), if_match)?).await?;
            info = info_of(&response)?;
        }
        http::check_range(response.headers(), &range, info.size)?;
        let whole = whole && info.size <= range.end;
        let Some(sum) = response.headers().get(CHECKSUM).filter(|_| whole).cloned() else {
            return Ok((info, http::body(response)));
        };
        let bytes = http::collect(response).await?;
        if checksum::header_of(&bytes) != sum {
            return Err(BucketError::Corrupt("a GET's body has another CRC64NVME".to_owned()));
        }
        Ok((info, futures::stream::iter([Ok(bytes)]).boxed()))
    }

    async fn put(
        &self,
        key: &Key,
        body: Bytes,
        condition: &Condition,
        metadata: &Metadata,
    ) -> Result<Written, BucketError> {
        let headers = self.write_headers.clone();
        let mut request = Request { body, headers, ..Request::new(Method::PUT, key) };
        set_condition(&mut request.headers, condition)?;
        http::set_metadata(&mut request.headers, META, metadata)?;
        if key.is_marker() {
            marker::set_nonce(&mut request.headers, metadata)?;
        }
        Ok(Written { etag: etag_of(self.send_body(request).await?.headers())? })
    }

    async fn delete(&self, key: &Key, if_match: Option<&ETag>) -> Result<(), BucketError> {
        let mut request = Request::new(Method::DELETE, key);
        if let Some(etag) = if_match {
            request.headers.insert(header::IF_MATCH, quoted(etag)?);
        }
        self.send(request).await.map(drop)
    }

    async fn list(
        &self,
        prefix: &str,
        delimiter: bool,
        page: Option<&str>,
        max: u16,
    ) -> Result<Page, BucketError> {
        let from = page.map(|token| ("continuation-token", token));
        self.list_from(prefix, delimiter, from, max).await
    }

    async fn list_behind(
        &self,
        prefix: &str,
        delimiter: bool,
        start: &Key,
        max: u16,
    ) -> Result<Page, BucketError> {
        self.list_from(prefix, delimiter, Some(("start-after", start.as_str())), max).await
    }

    async fn copy(
        &self,
        from: &Key,
        from_etag: Option<&ETag>,
        to: &Key,
        condition: &Condition,
        metadata: &Metadata,
    ) -> Result<Written, BucketError> {
        let mut request = Request::new(Method::PUT, to);
        request.headers = self.copy_headers(from, from_etag)?;
        request.headers.extend(self.write_headers.clone());
        request.headers.insert(COPY_METADATA, HeaderValue::from_static("REPLACE"));
        set_condition(&mut request.headers, condition)?;
        http::set_metadata(&mut request.headers, META, metadata)?;
        let body = self.send_slow(request).await.map_err(|error| match error {
            BucketError::Invalid(text) if text.contains("maximum allowable size") => {
                BucketError::Unsupported("copy so large an object at once")
            }
            error => error,
        })?;
        Ok(Written { etag: xml::written(&body)? })
    }

    async fn rename(&self, _: &Key, _: &Key, _: &Condition) -> Result<(), BucketError> {
        Err(BucketError::Unsupported("rename"))
    }

    async fn create_multipart(
        &self,
        key: &Key,
        metadata: &Metadata,
    ) -> Result<String, BucketError> {
        let headers = self.write_headers.clone();
        let query = &[("uploads", "")];
        let mut request = Request { headers, query, ..Request::new(Method::POST, key) };
        if self.checksums.load(Ordering::Relaxed) {
            request.headers.insert(CHECKSUM_KIND, HeaderValue::from_static("CRC64NVME"));
        }
        http::set_metadata(&mut request.headers, META, metadata)?;
        xml::upload_id(&http::collect(self.send(request).await?).await?)
    }

    async fn upload_part(
        &self,
        key: &Key,
        upload: &str,
        number: u32,
        body: Bytes,
    ) -> Result<String, BucketError> {
        let number = number.to_string();
        let query = &[("partNumber", number.as_str()), ("uploadId", upload)];
        let request = Request { query, body, ..Request::new(Method::PUT, key) };
        Ok(etag_of(self.send_body(request).await?.headers())?.0)
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
        let number = number.to_string();
        let query = &[("partNumber", number.as_str()), ("uploadId", upload)];
        let mut headers = self.copy_headers(from, Some(from_etag))?;
        headers.insert(COPY_RANGE, http::range_value(&range));
        let request = Request { query, headers, ..Request::new(Method::PUT, key) };
        Ok(xml::written(&self.send_slow(request).await?)?.0)
    }

    async fn complete_multipart(
        &self,
        key: &Key,
        upload: &str,
        parts: &[String],
        condition: &Condition,
    ) -> Result<Written, BucketError> {
        let query = &[("uploadId", upload)];
        let body = Bytes::from(xml::complete(parts));
        let mut request = Request { query, body, ..Request::new(Method::POST, key) };
        set_condition(&mut request.headers, condition)?;
        Ok(Written { etag: xml::written(&self.send_slow(request).await?)? })
    }

    async fn abort_multipart(&self, key: &Key, upload: &str) -> Result<(), BucketError> {
        let query = &[("uploadId", upload)];
        let request = Request { query, ..Request::new(Method::DELETE, key) };
        self.send(request).await.map(drop)
    }

    async fn uploads_end_after_days(&self, prefix: &str) -> Result<Option<u32>, BucketError> {
        let (query, headers, body) = ([("lifecycle", "")], HeaderMap::new(), Bytes::new());
        let request = Request { method: Method::GET, key: None, query: &query, headers, body };
        let answer = self.send(request).await?;
        Ok(lifecycle::uploads_end_after_days(&http::collect(answer).await?, prefix))
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            create_if_absent: true,
            replace_if_match: true,
            delete_if_match: true,
            multipart: true,
            part_copy: true,
            copy_condition: false, // the probe looks
            tells_crc: true,
            ranged_reads: true,
            metadata: true,
            markers: true,
            real_directories: false,
            rename_file: false,
            rename_directory: false,
            create_sees_directories: false,
            list_after_write: true,
            put_max: 5 << 30,
            part_min: 5 << 20,
            parts_max: 10_000,
        }
    }
}
