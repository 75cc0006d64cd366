//! An emulator of Google Cloud Storage in this process: what its API reference says of the calls
//! that `trialfs` makes, as strictly as it says it. No driver code is used in it.
//!
//! Owns one bucket and the meaning of requests ([`json`](Reply::json), [`xml`](Reply::xml)). Does
//! not own the wire ([`http`]). Of what the reference leaves open the harder case is played: copies
//! take several calls, pages are cut where they may be, joined uploads are forgotten at once.

#[path = "gcs_emulator/bucket.rs"]
mod bucket;
#[path = "gcs_emulator/http.rs"]
mod http;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use serde_json::{Value, json};

use bucket::{Contents, Refusal, Upload, crc32c};
use http::{Reply, Request};

/// The smallest part but the last.
const PART_BYTES_MIN: usize = 5 << 20;
/// The most entries of a page.
const PAGE_ENTRIES_MAX: usize = 1000;

/// A running emulator; it ends with the runtime of its test.
#[derive(Clone)]
pub struct Emulator {
    state: Arc<Mutex<State>>,
    port: u16,
    bucket: String,
}

struct State {
    contents: Contents,
    /// Method and target of each request, oldest first.
    requests: Vec<String>,
    /// Of the next request whose target holds this, the answer is lost.
    losing: Option<String>,
}

impl Emulator {
    /// Listens on a free port of the loopback, with one empty bucket.
    pub async fn start(bucket: &str) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let state = State { contents: Contents::default(), requests: Vec::new(), losing: None };
        let state = Arc::new(Mutex::new(state));
        let emulator = Self { state, port, bucket: bucket.to_owned() };
        let answering = emulator.clone();
        tokio::spawn(http::serve(listener, move |request| answering.answer(&request)));
        emulator
    }

    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Every key with its bytes, as any client would see it.
    #[allow(dead_code)] // not every test that uses the emulator looks
    pub fn objects(&self) -> BTreeMap<String, Bytes> {
        let state = self.state.lock().expect("not poisoned");
        let object =
            |(key, object): (&String, &bucket::Object)| (key.clone(), object.bytes.clone());
        state.contents.objects.iter().map(object).collect()
    }

    #[allow(dead_code)]
    pub fn open_uploads(&self) -> usize {
        self.state.lock().expect("not poisoned").contents.uploads.len()
    }

    /// The requests since the last call of this, as `GET /path?query`.
    #[allow(dead_code)]
    pub fn take_requests(&self) -> Vec<String> {
        std::mem::take(&mut self.state.lock().expect("not poisoned").requests)
    }

    /// The next request whose target holds `part` is carried out and its answer lost.
    #[allow(dead_code)]
    pub fn lose_reply(&self, part: &str) {
        self.state.lock().expect("not poisoned").losing = Some(part.to_owned());
    }

    fn answer(&self, request: &Request) -> Reply {
        let mut state = self.state.lock().expect("not poisoned");
        state.requests.push(format!("{} {}", request.method, request.target));
        let reply = self.route(request, &mut state.contents);
        match state.losing.take_if(|part| request.target.contains(part.as_str())) {
            Some(_) => Reply::Lost,
            None => reply,
        }
    }

    fn route(&self, request: &Request, contents: &mut Contents) -> Reply {
        let objects = format!("/storage/v1/b/{}/o", self.bucket);
        let upload = format!("/upload{objects}");
        let xml = format!("/{}/", self.bucket);
        let path = request.path.as_str();
        let reply = if path == upload {
            json_upload(request, contents).map(Reply::json)
        } else if path == objects {
            list(request, contents).map(Reply::json)
        } else if let Some(rest) = path.strip_prefix(&format!("{objects}/")) {
            return self.json_object(request, rest, contents).unwrap_or_else(Reply::json_error);
        } else if let Some(key) = path.strip_prefix(&xml) {
            let key = http::decoded(key);
            return xml_object(request, &key, contents).unwrap_or_else(Reply::xml_error);
        } else if path.starts_with("/storage/") || path.starts_with("/upload/") {
            Err(Refusal::NoBucket)
        } else {
            return Reply::xml_error(Refusal::NoBucket);
        };
        reply.unwrap_or_else(Reply::json_error)
    }

    fn json_object(
        &self,
        request: &Request,
        rest: &str,
        contents: &mut Contents,
    ) -> Result<Reply, Refusal> {
        let words: Vec<_> = rest.split('/').collect();
        let key = http::decoded(words[0]);
        let expected = request.number("ifGenerationMatch")?;
        match (request.method.as_str(), &words[1..]) {
            ("GET", []) => Ok(Reply::json(contents.at(&key, expected)?.resource(&key))),
            ("DELETE", []) => {
                contents.at(&key, expected)?;
                contents.objects.remove(&key);
                Ok(Reply::empty(204))
            }
            ("POST", ["moveTo", "o", to]) => {
                let to = http::decoded(to);
                let source = contents.at(&key, request.number("ifSourceGenerationMatch")?)?.clone();
                if key == to {
                    return Err(Refusal::Invalid("one name".to_owned()));
                }
                contents.check(&to, expected)?;
                contents.objects.remove(&key);
                Ok(Reply::json(contents.write(&to, source.bytes, source.metadata)))
            }
            ("POST", ["rewriteTo", "b", bucket, "o", to]) if *bucket == self.bucket => {
                rewrite(request, &key, &http::decoded(to), contents).map(Reply::json)
            }
            _ => Err(Refusal::Invalid("no such method".to_owned())),
        }
    }
}

/// `uploadType=multipart`: the resource and then the bytes, between boundaries.
fn json_upload(request: &Request, contents: &mut Contents) -> Result<Value, Refusal> {
    let bad = |why: &str| Refusal::Invalid(why.to_owned());
    if request.method != "POST" || request.query("uploadType") != Some("multipart") {
        return Err(bad("invalid uploadType"));
    }
    let kind = request.header("content-type").unwrap_or_default();
    let boundary = kind.split_once("boundary=").ok_or_else(|| bad("no boundary"))?.1;
    let mut parts = http::related(&request.body, boundary).ok_or_else(|| bad("bad parts"))?;
    let bytes = parts.pop().ok_or_else(|| bad("no body"))?;
    let resource = parts.pop().ok_or_else(|| bad("no resource"))?;
    let resource: Value = serde_json::from_slice(&resource).map_err(|_| bad("no JSON"))?;
    let key = resource["name"].as_str().ok_or_else(|| bad("Required"))?;
    if let Some(told) = resource["crc32c"].as_str()
        && told != crc32c(&bytes)
    {
        let text = format!("Provided CRC32C \"{told}\" doesn't match calculated CRC32C.");
        return Err(Refusal::Invalid(text));
    }
    contents.check(key, request.number("ifGenerationMatch")?)?;
    Ok(contents.write(key, bytes, bucket::metadata_of(&resource["metadata"])))
}

fn list(request: &Request, contents: &Contents) -> Result<Value, Refusal> {
    let prefix = request.query("prefix").unwrap_or_default();
    let delimiter = request.query("delimiter");
    let max = request.number("maxResults")?.unwrap_or(u64::MAX) as usize;
    let after = request.query("pageToken").unwrap_or_default();
    let (mut items, mut prefixes, mut last) = (Vec::new(), Vec::new(), String::new());
    for (key, object) in contents.objects.range(prefix.to_owned()..) {
        let Some(rest) = key.strip_prefix(prefix) else { break };
        let group = delimiter.and_then(|d| Some(format!("{prefix}{}", &rest[..rest.find(d)? + 1])));
        let entry = group.as_ref().unwrap_or(key);
        if entry.as_str() <= after || *entry == last {
            continue;
        }
        if items.len() + prefixes.len() == max.min(PAGE_ENTRIES_MAX) {
            return Ok(json!({ "items": items, "prefixes": prefixes, "nextPageToken": last }));
        }
        last.clone_from(entry);
        match group {
            Some(group) => prefixes.push(group),
            None => items.push(object.resource(key)),
        }
    }
    Ok(json!({ "kind": "storage#objects", "items": items, "prefixes": prefixes }))
}

/// Takes two calls, the second with the token of the first; each judges the conditions.
fn rewrite(
    request: &Request,
    from: &str,
    to: &str,
    contents: &mut Contents,
) -> Result<Value, Refusal> {
    let source = contents.at(from, request.number("ifSourceGenerationMatch")?)?.clone();
    contents.check(to, request.number("ifGenerationMatch")?)?;
    let token = format!("{from} {}", source.generation);
    if request.query("rewriteToken") != Some(token.as_str()) {
        return Ok(json!({ "done": false, "rewriteToken": token }));
    }
    let resource: Value = serde_json::from_slice(&request.body).unwrap_or_default();
    let metadata = bucket::metadata_of(&resource["metadata"]);
    Ok(json!({ "done": true, "resource": contents.write(to, source.bytes, metadata) }))
}

/// An object of the XML API. Uploads know no preconditions.
fn xml_object(request: &Request, key: &str, contents: &mut Contents) -> Result<Reply, Refusal> {
    let upload = request.query("uploadId");
    match (request.method.as_str(), upload) {
        ("GET", None) => {
            let expected = request.header("x-goog-if-generation-match");
            let expected = expected
                .map(|text| text.parse().map_err(|_| Refusal::Invalid("generation".to_owned())));
            let object = contents.at(key, expected.transpose()?)?;
            Ok(Reply::object(object, request.header("range")))
        }
        ("POST", None) if request.query("uploads").is_some() => {
            let metadata = request.headers.iter().filter_map(|(name, value)| {
                Some((name.strip_prefix("x-goog-meta-")?.to_owned(), value.clone()))
            });
            let upload =
                Upload { key: key.to_owned(), metadata: metadata.collect(), ..Upload::default() };
            let id = contents.begin(upload);
            Ok(Reply::xml(format!(
                "<InitiateMultipartUploadResult><UploadId>{id}</UploadId>\
                 </InitiateMultipartUploadResult>"
            )))
        }
        ("PUT", Some(id)) => {
            let number = request.number("partNumber")?.unwrap_or(0);
            let crc = format!("crc32c={}", crc32c(&request.body));
            if request.header("x-goog-hash").is_some_and(|told| told != crc) {
                return Err(Refusal::BadDigest);
            }
            let etag = format!("{number}-{}-{}", request.body.len(), &crc[7..]);
            let part = (etag.clone(), request.body.clone());
            contents.upload(key, id)?.parts.insert(number, part);
            let headers = vec![("ETag", format!("\"{etag}\"")), ("x-goog-hash", crc)];
            Ok(Reply::with(200, headers, Bytes::new()))
        }
        ("POST", Some(id)) => {
            let bytes = joined(contents.upload(key, id)?, &request.body)?;
            let metadata = contents.uploads.remove(id).expect("just seen").metadata;
            contents.write(key, bytes, metadata);
            Ok(Reply::xml("<CompleteMultipartUploadResult/>".to_owned()))
        }
        ("DELETE", Some(id)) => {
            contents.upload(key, id)?;
            contents.uploads.remove(id);
            Ok(Reply::empty(204))
        }
        _ => Err(Refusal::Invalid("no such method".to_owned())),
    }
}

/// The bytes of the parts that `list` names, `<PartNumber>` and `<ETag>` of each in order.
fn joined(upload: &Upload, list: &[u8]) -> Result<Bytes, Refusal> {
    let text = String::from_utf8_lossy(list);
    let parts: Vec<_> = text.split("<Part>").skip(1).collect();
    let mut bytes = Vec::new();
    for (i, part) in parts.iter().enumerate() {
        let between = |open: &str, close: &str| Some(part.split_once(open)?.1.split_once(close)?.0);
        let number = between("<PartNumber>", "</PartNumber>").and_then(|n| n.parse::<u64>().ok());
        let etag = between("<ETag>", "</ETag>").unwrap_or_default().replace("&quot;", "");
        let found = number.and_then(|number| upload.parts.get(&number));
        let (_, body) = found.filter(|(told, _)| *told == etag).ok_or(Refusal::InvalidPart)?;
        if body.len() < PART_BYTES_MIN && i + 1 < parts.len() {
            return Err(Refusal::TooSmall);
        }
        bytes.extend_from_slice(body);
    }
    if parts.is_empty() { Err(Refusal::InvalidPart) } else { Ok(Bytes::from(bytes)) }
}
