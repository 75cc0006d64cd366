//! What every store behind HTTP shares: one kind of client, how its failures are named, how headers
//! are read and keys written into URLs.
//!
//! Owns connections. Does not own signing, nor what a status means to a store. No URL and no header
//! is ever put into an error: both may carry credentials.

use std::error::Error;
use std::ops::Range;
use std::path::Path;
use std::time::{Duration, SystemTime};

use bytes::{Bytes, BytesMut};
use futures::{StreamExt, TryStreamExt};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::header::{self, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Certificate, Client, Method, Response};

use crate::bucket::date;
use crate::bucket::error::BucketError;
use crate::bucket::store::{Body, Metadata};

/// A store that does not accept a connection in this time is away; the attempt is made again.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Idle connections are dropped before servers do (S3 after some 20 s), so that few requests meet a
/// connection that is just being closed.
const IDLE_TIMEOUT: Duration = Duration::from_secs(15);
/// Connections kept for the next request: as many as are ever busy at once.
const IDLE_CONNECTIONS_MAX: usize = 64;
/// The largest answer that is read into memory whole: a LIST of 1000 keys of 1 KiB, all escaped, is
/// under 4 MiB.
const ANSWER_BYTES_MAX: usize = 16 << 20;
/// Up to this size an object that is read whole is compared with its checksum before a byte of it
/// is handed on; stores give none for a part of one. On the slowest link that counts as one it
/// comes within the time of an attempt.
pub const CHECKED_BYTES_MAX: u64 = 4 << 20;
/// How much of a server's message goes into ours.
const MESSAGE_CHARS_MAX: usize = 200;

/// What RFC 3986 leaves as it is, and `/`.
const PATH: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~').remove(b'/');
const QUERY: &AsciiSet = &PATH.add(b'/');

/// The client for one store.
pub fn client(ca_bundle: Option<&Path>) -> Result<Client, BucketError> {
    let mut builder = Client::builder()
        .user_agent(concat!("trialfs/", env!("CARGO_PKG_VERSION")))
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(CONNECT_TIMEOUT)
        .pool_idle_timeout(IDLE_TIMEOUT)
        .pool_max_idle_per_host(IDLE_CONNECTIONS_MAX)
        .tcp_keepalive(Duration::from_secs(30))
        .retry(reqwest::retry::never())
        .referer(false)
        .http1_only();
    if let Some(path) = ca_bundle {
        builder = builder.tls_certs_merge(certificates(path)?);
    }
    builder.build().map_err(|error| BucketError::Invalid(format!("no HTTP client: {error}")))
}

fn certificates(path: &Path) -> Result<Vec<Certificate>, BucketError> {
    let bad = |error: &dyn std::fmt::Display| {
        BucketError::Invalid(format!("CA bundle {}: {error}", path.display()))
    };
    let pem = std::fs::read(path).map_err(|error| bad(&error))?;
    let found = Certificate::from_pem_bundle(&pem).map_err(|error| bad(&error))?;
    if found.is_empty() { Err(bad(&"it holds no certificate")) } else { Ok(found) }
}

/// Names a failure below HTTP: no answer came.
pub fn transport_error(error: reqwest::Error) -> BucketError {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    if let Some(plain) = in_plain_words(&text).filter(|_| error.is_connect()) {
        text = plain.to_owned();
    }
    if error.is_builder() {
        BucketError::Invalid(text)
    } else if error.is_timeout() {
        BucketError::TimedOut(text)
    } else {
        BucketError::Unreachable(text)
    }
}

/// The usual reasons why there is no connection, said so that somebody can act on them.
fn in_plain_words(text: &str) -> Option<&'static str> {
    let known = [
        ("Connection refused", "nobody listens there (connection refused)"),
        ("dns error", "the name of the host is not known"),
        ("InvalidContentType", "no TLS is spoken there; write http:// for https://"),
        ("UnknownIssuer", "its certificate is not trusted; give --ca-bundle"),
        (
            "CaUsedAsEndEntity",
            "its certificate is that of a CA, which no server may show; make one with \
             basicConstraints=CA:FALSE",
        ),
    ];
    known.iter().find(|(sign, _)| text.contains(sign)).map(|(_, plain)| *plain)
}

/// How long the server wants to be left alone: `Retry-After`, in seconds, or as a date, which
/// counts from the server's own clock.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let told = text(headers, "retry-after")?.trim();
    if let Ok(seconds) = told.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let now = date::http(text(headers, "date")?)?;
    Some(date::http(told)?.duration_since(now).unwrap_or_default())
}

/// The same refusal, with the server's word on when to ask again.
pub fn hold_off(error: BucketError, headers: &HeaderMap) -> BucketError {
    match (error, retry_after(headers)) {
        (BucketError::Unavailable(why), Some(after)) => BucketError::Busy { why, after },
        (error, _) => error,
    }
}

/// A server's own words, cut to a length that fits a line.
pub fn message(text: &str) -> String {
    let line: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(MESSAGE_CHARS_MAX)
        .collect();
    line.trim().to_owned()
}

/// The whole of an answer that is known to be small.
pub async fn collect(response: Response) -> Result<Bytes, BucketError> {
    let mut frames = response.bytes_stream();
    let mut bytes = BytesMut::new();
    while let Some(frame) = frames.next().await {
        bytes.extend_from_slice(&frame.map_err(transport_error)?);
        if bytes.len() > ANSWER_BYTES_MAX {
            return Err(BucketError::Invalid("the store's answer is too long".to_owned()));
        }
    }
    Ok(bytes.freeze())
}

/// The body of an answer, as it comes.
pub fn body(response: Response) -> Body {
    response.bytes_stream().map_err(transport_error).boxed()
}

/// A header as text.
pub fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// Last-Modified; the epoch where there is none.
pub fn modified(headers: &HeaderMap) -> SystemTime {
    text(headers, "last-modified").and_then(date::http).unwrap_or(SystemTime::UNIX_EPOCH)
}

/// The size of the whole object: of Content-Range in a 206, else the length of the answer.
pub fn total_size(headers: &HeaderMap) -> Option<u64> {
    match text(headers, "content-range") {
        Some(range) => range.rsplit_once('/')?.1.parse().ok(),
        None => text(headers, "content-length")?.parse().ok(),
    }
}

/// Whether an answer holds exactly the bytes asked for; some servers say 200 to a range and still
/// send it, others send the whole.
pub fn check_range(headers: &HeaderMap, asked: &Range<u64>, size: u64) -> Result<(), BucketError> {
    let end = asked.end.min(size);
    let sent = match text(headers, "content-range") {
        Some(range) => range.strip_prefix("bytes ").and_then(parse_range),
        None => Some(0..size),
    };
    match sent == Some(asked.start..end) {
        true => Ok(()),
        false => Err(BucketError::Unsupported("read a range")),
    }
}

/// `3-6/11`: the bytes 3 up to 7.
fn parse_range(text: &str) -> Option<Range<u64>> {
    let (first, last) = text.split_once('/')?.0.split_once('-')?;
    Some(first.parse().ok()?..last.parse::<u64>().ok()?.checked_add(1)?)
}

/// The user metadata under `prefix` (`x-amz-meta-`).
pub fn metadata(headers: &HeaderMap, prefix: &str) -> Metadata {
    let pairs = headers.iter().filter_map(|(name, value)| {
        let name = name.as_str().strip_prefix(prefix)?;
        Some((name.to_owned(), value.to_str().ok()?.to_owned()))
    });
    pairs.collect()
}

/// Puts user metadata under `prefix`.
pub fn set_metadata(
    headers: &mut HeaderMap,
    prefix: &str,
    metadata: &Metadata,
) -> Result<(), BucketError> {
    for (name, text) in metadata {
        let name = HeaderName::from_bytes(format!("{prefix}{name}").as_bytes())
            .map_err(|_| BucketError::Invalid(format!("metadata name {name:?}")))?;
        headers.insert(name, value(text)?);
    }
    Ok(())
}

/// Says the length of a body even where it is empty, which the client leaves out and servers
/// insist on.
pub fn set_length(headers: &mut HeaderMap, method: &Method, body: &Bytes) {
    if matches!(*method, Method::PUT | Method::POST) {
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
    }
}

/// A header value, or why it can't be one.
pub fn value(text: &str) -> Result<HeaderValue, BucketError> {
    HeaderValue::from_str(text).map_err(|_| BucketError::Invalid("header value".to_owned()))
}

/// The range of a GET.
pub fn range_value(range: &Range<u64>) -> HeaderValue {
    let text = format!("bytes={}-{}", range.start, range.end.saturating_sub(1));
    HeaderValue::from_str(&text).unwrap_or(header::HeaderValue::from_static("bytes=0-"))
}

/// A key as the path of a URL.
pub fn encode_path(key: &str) -> String {
    utf8_percent_encode(key, PATH).to_string()
}

/// A key as one component of the path of a URL.
pub fn encode_component(key: &str) -> String {
    utf8_percent_encode(key, QUERY).to_string()
}

/// Pairs as the query of a URL.
pub fn encode_query(pairs: &[(&str, &str)]) -> String {
    let pair = |(name, value): &(&str, &str)| {
        let (name, value) = (utf8_percent_encode(name, QUERY), utf8_percent_encode(value, QUERY));
        format!("{name}={value}")
    };
    pairs.iter().map(pair).collect::<Vec<_>>().join("&")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_that_of_the_whole_object() {
        let mut headers = HeaderMap::new();
        headers.insert("content-length", HeaderValue::from_static("10"));
        assert_eq!(total_size(&headers), Some(10));
        headers.insert("content-range", HeaderValue::from_static("bytes 0-9/5000"));
        assert_eq!(total_size(&headers), Some(5000));
    }

    #[test]
    fn a_server_says_in_seconds_or_by_its_own_clock_when_to_come_back() {
        let told = |after: &'static str, date: Option<&'static str>| {
            let mut headers = HeaderMap::new();
            headers.insert("retry-after", HeaderValue::from_static(after));
            date.map(|date| headers.insert("date", HeaderValue::from_static(date)));
            retry_after(&headers)
        };
        let now = Some("Wed, 21 Oct 2015 07:28:00 GMT");
        assert_eq!(told("7", None), Some(Duration::from_secs(7)));
        assert_eq!(told("Wed, 21 Oct 2015 07:28:30 GMT", now), Some(Duration::from_secs(30)));
        assert_eq!(told("Wed, 21 Oct 2015 07:27:00 GMT", now), Some(Duration::ZERO));
        assert_eq!(told("Wed, 21 Oct 2015 07:28:30 GMT", None), None);
        assert_eq!(told("soon", now), None);
        assert_eq!(retry_after(&HeaderMap::new()), None);
    }

    #[test]
    fn bytes_other_than_those_asked_for_are_refused() {
        let mut headers = HeaderMap::new();
        assert!(check_range(&headers, &(0..100), 11).is_ok());
        assert!(check_range(&headers, &(0..5), 11).is_err());
        assert!(check_range(&headers, &(3..100), 11).is_err());
        headers.insert("content-range", HeaderValue::from_static("bytes 3-6/11"));
        assert!(check_range(&headers, &(3..7), 11).is_ok());
        assert!(check_range(&headers, &(2..7), 11).is_err());
        headers.insert("content-range", HeaderValue::from_static("bytes 0-18446744073709551615/1"));
        assert!(check_range(&headers, &(0..1), 1).is_err());
    }

    #[test]
    fn nothing_in_a_key_ends_its_url() {
        assert_eq!(encode_path("a b/ü?#%+=[]"), "a%20b/%C3%BC%3F%23%25%2B%3D%5B%5D");
        assert_eq!(encode_query(&[("prefix", "a/b&c"), ("x", "")]), "prefix=a%2Fb%26c&x=");
    }
}
