//! Single requests to one container: signed, sent, and their refusals named.
//!
//! Owns how Azure is asked. Does not own retries, nor what an upload is made of (`complete`).

use std::sync::Arc;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use object_store::azure::{AzureAuthorizer, AzureCredential};
use object_store::client::{HttpRequest, HttpRequestBody};
use reqwest::header::{self, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Method, Response};

use crate::bucket::azure::account::Account;
use crate::bucket::azure::credentials::{Credentials, VERSION};
use crate::bucket::azure::{answer, names};
use crate::bucket::error::BucketError;
use crate::bucket::store::{Condition, Metadata, ObjectInfo};
use crate::bucket::{http, xml};
use crate::types::{ETag, KEY_BYTES_MAX, Key};

const META: &str = "x-ms-meta-";
const API_VERSION: HeaderName = HeaderName::from_static("x-ms-version");
pub const BLOB_TYPE: HeaderName = HeaderName::from_static("x-ms-blob-type");
const CRC64: HeaderName = HeaderName::from_static("x-ms-content-crc64");
const COPY_SOURCE: HeaderName = HeaderName::from_static("x-ms-copy-source");
const COPY_AUTHORIZATION: HeaderName = HeaderName::from_static("x-ms-copy-source-authorization");
const SOURCE_IF_MATCH: HeaderName = HeaderName::from_static("x-ms-source-if-match");
const SOURCE_RANGE: HeaderName = HeaderName::from_static("x-ms-source-range");

pub struct Client {
    pub http: reqwest::Client,
    pub account: Account,
    /// `None`: anonymous.
    pub credentials: Option<Credentials>,
}

/// A request that is about to be signed.
pub struct Request<'a> {
    pub method: Method,
    pub key: Option<&'a Key>,
    pub query: &'a [(&'a str, &'a str)],
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl<'a> Request<'a> {
    pub fn new(method: Method, key: &'a Key) -> Self {
        let headers = HeaderMap::new();
        Self { method, key: Some(key), query: &[], headers, body: Bytes::new() }
    }
}

/// What a block is copied from.
pub struct Source<'a> {
    pub key: &'a Key,
    pub etag: &'a ETag,
    pub range: std::ops::Range<u64>,
}

impl Client {
    /// Signs, sends, and names a refusal.
    pub async fn send(&self, mut request: Request<'_>) -> Result<Response, BucketError> {
        if request.key.is_some_and(|key| key.as_str().len() > KEY_BYTES_MAX) {
            return Err(BucketError::KeyTooLong);
        }
        let url = self.account.url(request.key, request.query);
        request.headers.insert(API_VERSION, HeaderValue::from_static(VERSION));
        http::set_length(&mut request.headers, &request.method, &request.body);
        let (url, headers) = self.sign(&request.method, &url, request.headers).await?;
        let sent = self.http.request(request.method, url).headers(headers).body(request.body);
        let response = sent.send().await.map_err(http::transport_error)?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status().as_u16();
        let code = http::text(response.headers(), "x-ms-error-code").map(str::to_owned);
        let body = http::collect(response).await.unwrap_or_default();
        Err(answer::error(status, &answer::refusal(&body, code.as_deref())))
    }

    async fn credential(&self) -> Result<Option<Arc<AzureCredential>>, BucketError> {
        match &self.credentials {
            Some(credentials) => Ok(Some(credentials.get().await?)),
            None => Ok(None),
        }
    }

    /// Adds the signature, to the headers or, of a SAS, to the URL.
    async fn sign(
        &self,
        method: &Method,
        url: &str,
        headers: HeaderMap,
    ) -> Result<(String, HeaderMap), BucketError> {
        let Some(credential) = self.credential().await? else {
            return Ok((url.to_owned(), headers));
        };
        let mut unsigned = HttpRequest::new(HttpRequestBody::empty());
        *unsigned.method_mut() = method.clone();
        *unsigned.headers_mut() = headers;
        *unsigned.uri_mut() = url
            .parse()
            .map_err(|_| BucketError::Invalid("a key that no URL can say".to_owned()))?;
        AzureAuthorizer::new(&credential, &self.account.name)
            .try_authorize(&mut unsigned)
            .map_err(|_| BucketError::Invalid("the request can't be signed".to_owned()))?;
        Ok((unsigned.uri().to_string(), std::mem::take(unsigned.headers_mut())))
    }

    /// HEAD.
    pub async fn head(&self, key: &Key) -> Result<ObjectInfo, BucketError> {
        info(self.send(Request::new(Method::HEAD, key)).await?.headers())
    }

    pub async fn delete(&self, key: &Key, if_match: Option<&ETag>) -> Result<(), BucketError> {
        let mut request = Request::new(Method::DELETE, key);
        if let Some(etag) = if_match {
            request.headers.insert(header::IF_MATCH, quoted(etag)?);
        }
        self.send(request).await.map(drop)
    }

    /// Put Block: not seen by anybody until a list names it.
    pub async fn put_block(&self, key: &Key, id: &str, body: Bytes) -> Result<(), BucketError> {
        let id = names::encoded(id);
        let query = &[("comp", "block"), ("blockid", id.as_str())];
        let mut request = Request { query, body, ..Request::new(Method::PUT, key) };
        request.headers.insert(CRC64, checksum(crc64(&request.body)));
        self.send(request).await.map(drop)
    }

    /// Put Block From URL: the same, copied on the server.
    pub async fn copy_block(
        &self,
        key: &Key,
        id: &str,
        source: &Source<'_>,
    ) -> Result<(), BucketError> {
        let id = names::encoded(id);
        let query = &[("comp", "block"), ("blockid", id.as_str())];
        let mut headers = self.source_headers(source.key, Some(source.etag)).await?;
        headers.insert(SOURCE_RANGE, http::range_value(&source.range));
        self.send(Request { query, headers, ..Request::new(Method::PUT, key) }).await.map(drop)
    }

    /// Put Block List: the blocks `ids` become the blob, at once.
    pub async fn commit_blocks(
        &self,
        key: &Key,
        ids: &[String],
        condition: &Condition,
        metadata: &Metadata,
    ) -> Result<ETag, BucketError> {
        let body = Bytes::from(names::block_list(ids));
        let query = &[("comp", "blocklist")];
        let mut request = Request { query, body, ..Request::new(Method::PUT, key) };
        set_condition(&mut request.headers, condition)?;
        set_metadata(&mut request.headers, metadata)?;
        etag_of(self.send(request).await?.headers())
    }

    /// Set Blob Metadata, over this version alone.
    pub async fn set_metadata(
        &self,
        key: &Key,
        if_match: &ETag,
        metadata: &Metadata,
    ) -> Result<(), BucketError> {
        let query = &[("comp", "metadata")];
        let mut request = Request { query, ..Request::new(Method::PUT, key) };
        set_condition(&mut request.headers, &Condition::IfMatch(if_match.clone()))?;
        set_metadata(&mut request.headers, metadata)?;
        self.send(request).await.map(drop)
    }

    /// The headers that name the source of a copy, and let the server read it.
    pub async fn source_headers(
        &self,
        from: &Key,
        etag: Option<&ETag>,
    ) -> Result<HeaderMap, BucketError> {
        let mut headers = HeaderMap::new();
        let mut url = self.account.url(Some(from), &[]);
        if let (Some(credentials), Some(credential)) = (&self.credentials, self.credential().await?)
        {
            let access = credentials.source_access(&self.account, &credential)?;
            url.push_str(&access.query);
            if let Some(authorization) = access.authorization {
                headers.insert(COPY_AUTHORIZATION, http::value(&authorization)?);
            }
        }
        headers.insert(COPY_SOURCE, http::value(&url)?);
        if let Some(etag) = etag {
            headers.insert(SOURCE_IF_MATCH, quoted(etag)?);
        }
        Ok(headers)
    }
}

pub fn quoted(etag: &ETag) -> Result<HeaderValue, BucketError> {
    http::value(&format!("\"{}\"", etag.0))
}

pub fn set_condition(headers: &mut HeaderMap, condition: &Condition) -> Result<(), BucketError> {
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

pub fn set_metadata(headers: &mut HeaderMap, metadata: &Metadata) -> Result<(), BucketError> {
    http::set_metadata(headers, META, &names::escaped(metadata))
}

pub fn info(headers: &HeaderMap) -> Result<ObjectInfo, BucketError> {
    let size = http::total_size(headers);
    Ok(ObjectInfo {
        size: size.ok_or_else(|| BucketError::Invalid("an answer without a size".to_owned()))?,
        etag: etag_of(headers)?,
        modified: http::modified(headers),
        metadata: names::unescaped(http::metadata(headers, META)),
        crc64nvme: None,
    })
}

pub fn etag_of(headers: &HeaderMap) -> Result<ETag, BucketError> {
    let etag = http::text(headers, "etag").map(xml::etag);
    etag.ok_or_else(|| BucketError::Invalid("an answer without an ETag".to_owned()))
}

/// The sum that Azure checks bodies by.
pub fn crc64(body: &[u8]) -> u64 {
    crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, body)
}

fn checksum(crc: u64) -> HeaderValue {
    let text = BASE64_STANDARD.encode(crc.to_le_bytes());
    HeaderValue::from_str(&text).unwrap_or(HeaderValue::from_static(""))
}

/// The header that has the server check `body`.
pub fn set_checksum(headers: &mut HeaderMap, body: &[u8]) {
    headers.insert(CRC64, checksum(crc64(body)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_written_as_azure_answers_them() {
        assert_eq!(checksum(crc64(b"Hello World")), "YeJLfssylmU=");
        assert_eq!(checksum(crc64(b"")), "AAAAAAAAAAA=");
    }
}
