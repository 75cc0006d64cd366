//! As much of HTTP/1.1 as one well-behaved client needs: requests with a length, kept connections.
//!
//! Owns the wire. Does not own what a request means.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::bucket::{Object, Refusal, crc32c};

/// The longest head of a request: 1 KiB of key, escaped, twice, and metadata.
const HEAD_BYTES_MAX: usize = 64 << 10;

pub struct Request {
    pub method: String,
    /// As it was sent.
    pub target: String,
    /// Not yet decoded: a `/` in a name differs from one between names.
    pub path: String,
    query: BTreeMap<String, String>,
    /// Names in lower case.
    pub headers: BTreeMap<String, String>,
    pub body: Bytes,
}

/// What is answered.
pub enum Reply {
    /// The connection ends instead.
    Lost,
    Sent {
        status: u16,
        headers: Vec<(&'static str, String)>,
        body: Bytes,
    },
}

impl Request {
    pub fn query(&self, name: &str) -> Option<&str> {
        self.query.get(name).map(String::as_str)
    }

    pub fn number(&self, name: &str) -> Result<Option<u64>, Refusal> {
        let number = self.query(name).map(|text| text.parse());
        number.transpose().map_err(|_| Refusal::Invalid(format!("Invalid value for {name}")))
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }
}

impl Reply {
    pub fn with(status: u16, headers: Vec<(&'static str, String)>, body: Bytes) -> Self {
        Self::Sent { status, headers, body }
    }

    pub fn empty(status: u16) -> Self {
        Self::with(status, Vec::new(), Bytes::new())
    }

    fn typed(status: u16, kind: &str, body: String) -> Self {
        Self::with(status, vec![("Content-Type", kind.to_owned())], Bytes::from(body))
    }

    pub fn json(value: Value) -> Self {
        Self::typed(200, "application/json; charset=UTF-8", value.to_string())
    }

    pub fn xml(body: String) -> Self {
        let body = format!("<?xml version='1.0' encoding='UTF-8'?>{body}");
        Self::typed(200, "application/xml; charset=UTF-8", body)
    }

    pub fn json_error(refusal: Refusal) -> Self {
        let (code, _, reason, message) = refusal.words();
        let errors = json!([{ "message": message, "domain": "global", "reason": reason }]);
        let body = json!({ "error": { "code": code, "message": message, "errors": errors } });
        Self::typed(code, "application/json; charset=UTF-8", body.to_string())
    }

    pub fn xml_error(refusal: Refusal) -> Self {
        let (status, code, _, message) = refusal.words();
        let body = format!("<Error><Code>{code}</Code><Message>{message}</Message></Error>");
        let body = format!("<?xml version='1.0' encoding='UTF-8'?>{body}");
        Self::typed(status, "application/xml; charset=UTF-8", body)
    }

    /// The bytes of an object, or those of `range` (`bytes=FIRST-LAST`).
    pub fn object(object: &Object, range: Option<&str>) -> Self {
        let size = object.bytes.len();
        let mut headers = vec![
            ("x-goog-generation", object.generation.to_string()),
            ("x-goog-hash", format!("crc32c={}", crc32c(&object.bytes))),
            ("Last-Modified", "Thu, 29 Feb 2024 12:00:00 GMT".to_owned()),
        ];
        for (name, value) in &object.metadata {
            headers.push(("", format!("x-goog-meta-{name}: {value}")));
        }
        let Some(range) = range else { return Self::with(200, headers, object.bytes.clone()) };
        let ends = range.strip_prefix("bytes=").and_then(|range| range.split_once('-'));
        let ends =
            ends.and_then(|(first, last)| Some((first.parse().ok()?, last.parse::<usize>().ok()?)));
        match ends {
            Some((first, last)) if first < size => {
                let last = size.min(last + 1) - 1;
                headers.push(("Content-Range", format!("bytes {first}-{last}/{size}")));
                Self::with(206, headers, object.bytes.slice(first..=last))
            }
            _ => Self::empty(416),
        }
    }
}

/// Answers until the runtime ends.
pub async fn serve(
    listener: TcpListener,
    answer: impl Fn(Request) -> Reply + Send + Sync + 'static,
) {
    let answer = Arc::new(answer);
    while let Ok((stream, _)) = listener.accept().await {
        let answer = answer.clone();
        tokio::spawn(async move {
            let _ = connection(stream, &*answer).await; // a client may go at any time
        });
    }
}

async fn connection(
    mut stream: TcpStream,
    answer: &(dyn Fn(Request) -> Reply + Send + Sync),
) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = BytesMut::new();
    while let Some(request) = read(&mut stream, &mut buffer).await? {
        let Reply::Sent { status, headers, body } = answer(request) else { return Ok(()) };
        let mut head = format!("HTTP/1.1 {status} .\r\nContent-Length: {}\r\n", body.len());
        for (name, value) in headers {
            let colon = if name.is_empty() { "" } else { ": " };
            head.push_str(&format!("{name}{colon}{value}\r\n"));
        }
        stream.write_all(format!("{head}\r\n").as_bytes()).await?;
        stream.write_all(&body).await?;
    }
    Ok(())
}

/// The next request; `None` where the client has ended or speaks what is not understood.
async fn read(stream: &mut TcpStream, buffer: &mut BytesMut) -> std::io::Result<Option<Request>> {
    let end = loop {
        if let Some(end) = find(buffer, b"\r\n\r\n") {
            break end;
        }
        if buffer.len() > HEAD_BYTES_MAX || stream.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    };
    let head = buffer.split_to(end + 4);
    let Some(mut request) = parse(&String::from_utf8_lossy(&head[..end])) else { return Ok(None) };
    let length = request.header("content-length").and_then(|text| text.parse().ok()).unwrap_or(0);
    while buffer.len() < length {
        if stream.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    }
    request.body = buffer.split_to(length).freeze();
    Ok(Some(request))
}

fn parse(head: &str) -> Option<Request> {
    let mut lines = head.split("\r\n");
    let mut words = lines.next()?.split(' ');
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let pair = |pair: &str| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decoded(name), decoded(value))
    };
    let query = query.split('&').filter(|pair| !pair.is_empty()).map(pair).collect();
    let header = |line: &str| {
        let (name, value) = line.split_once(':')?;
        Some((name.to_ascii_lowercase(), value.trim().to_owned()))
    };
    let (path, headers) = (path.to_owned(), lines.filter_map(header).collect());
    Some(Request { method, target, path, query, headers, body: Bytes::new() })
}

/// The parts of a `multipart/related` body.
pub fn related(body: &Bytes, boundary: &str) -> Option<Vec<Bytes>> {
    let mark = format!("\r\n--{boundary}");
    let mut at = body.starts_with(&mark.as_bytes()[2..]).then_some(mark.len() - 2)?;
    let mut parts = Vec::new();
    while !body[at..].starts_with(b"--") {
        let start = at + find(&body[at..], b"\r\n\r\n")? + 4;
        let end = start + find(&body[start..], mark.as_bytes())?;
        parts.push(body.slice(start..end));
        at = end + mark.len();
    }
    Some(parts)
}

pub fn decoded(text: &str) -> String {
    percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned()
}

fn find(text: &[u8], what: &[u8]) -> Option<usize> {
    text.windows(what.len()).position(|window| window == what)
}
