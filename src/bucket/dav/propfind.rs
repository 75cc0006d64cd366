//! What WebDAV says of resources: the question, and its answer read into entries. Pure.

use std::time::SystemTime;

use percent_encoding::percent_decode_str;
use serde::Deserialize;

use crate::bucket::error::BucketError;
use crate::bucket::store::{ListedObject, Metadata, ObjectInfo};
use crate::bucket::{date, xml};
use crate::types::{ETag, Key};

/// Asks for no more than what is read.
pub const BODY: &str = r#"<?xml version="1.0" encoding="utf-8"?>
<D:propfind xmlns:D="DAV:"><D:prop>
<D:resourcetype/><D:getcontentlength/><D:getetag/><D:getlastmodified/>
</D:prop></D:propfind>"#;

/// One resource; its key is relative to the export, and ends in `/` for a collection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub key: String,
    pub size: u64,
    pub etag: ETag,
    pub modified: SystemTime,
}

impl Entry {
    pub fn is_collection(&self) -> bool {
        self.key.is_empty() || self.key.ends_with('/')
    }

    pub fn info(&self) -> ObjectInfo {
        info(self.size, self.etag.clone(), self.modified)
    }

    pub fn listed(&self) -> ListedObject {
        let (size, etag, modified) = (self.size, self.etag.clone(), self.modified);
        ListedObject { key: Key::new(self.key.as_str()), size, etag, modified }
    }
}

#[derive(Deserialize)]
struct Multistatus {
    #[serde(default)]
    response: Vec<Response>,
}

#[derive(Deserialize)]
struct Response {
    #[serde(default)]
    href: String,
    #[serde(default)]
    propstat: Vec<Propstat>,
}

#[derive(Deserialize)]
struct Propstat {
    #[serde(default)]
    status: String,
    #[serde(default)]
    prop: Prop,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Prop {
    getcontentlength: Option<String>,
    getetag: Option<String>,
    getlastmodified: Option<String>,
    resourcetype: Option<ResourceType>,
}

#[derive(Deserialize)]
struct ResourceType {
    collection: Option<Empty>,
}

#[derive(Deserialize)]
struct Empty {}

/// What a server without user metadata tells of a file.
pub fn info(size: u64, etag: ETag, modified: SystemTime) -> ObjectInfo {
    ObjectInfo { size, etag, modified, metadata: Metadata::new(), crc64nvme: None }
}

/// The entries of an answer. `base` is the decoded path of the export, with `/` at its end; what is
/// not below it is left out.
pub fn entries(body: &[u8], base: &str) -> Result<Vec<Entry>, BucketError> {
    let not_understood = |error: &dyn std::fmt::Display| {
        BucketError::Invalid(format!("the server's PROPFIND is not understood: {error}"))
    };
    let text = std::str::from_utf8(body).map_err(|error| not_understood(&error))?;
    xml::check_whole(text, "server's PROPFIND")?;
    if !text.contains("multistatus") {
        return Err(not_understood(&"it is no multistatus")); // a web page is no empty directory
    }
    let found: Multistatus = xml::from_str(text).map_err(|error| not_understood(&error))?;
    Ok(found.response.into_iter().filter_map(|response| entry(response, base)).collect())
}

fn entry(response: Response, base: &str) -> Option<Entry> {
    let path = match response.href.split_once("://") {
        Some((_, rest)) => rest.find('/').map_or("/", |start| &rest[start..]).to_owned(),
        None => response.href,
    };
    let path = percent_decode_str(&path).decode_utf8().ok()?.into_owned();
    let inside = format!("{}/", path.trim_end_matches('/'));
    let relative = inside.strip_prefix(base)?.trim_end_matches('/');
    let is_ok = |propstat: &Propstat| propstat.status.contains(" 200");
    let prop = response.propstat.into_iter().find(is_ok)?.prop;
    let is_collection = prop.resourcetype.is_some_and(|kind| kind.collection.is_some());
    let key = match is_collection && !relative.is_empty() {
        true => format!("{relative}/"),
        false => relative.to_owned(),
    };
    let modified = prop.getlastmodified.as_deref().and_then(date::http);
    let size = prop.getcontentlength.and_then(|size| size.trim().parse().ok()).unwrap_or(0);
    let size = if is_collection { 0 } else { size };
    let modified = modified.unwrap_or(SystemTime::UNIX_EPOCH);
    let etag = match prop.getetag.filter(|_| !is_collection) {
        Some(found) => etag(&found),
        None => without_etag(size, modified),
    };
    Some(Entry { key, size, etag, modified })
}

/// An ETag as an identity: Apache calls one weak for two seconds and then strong, with the same
/// text.
pub fn etag(text: &str) -> ETag {
    let text = text.trim();
    ETag(text.strip_prefix("W/").unwrap_or(text).trim_matches('"').to_owned())
}

/// The best there is of a server that gives none.
fn without_etag(size: u64, modified: SystemTime) -> ETag {
    let since = modified.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    ETag(format!("{:x}-{size:x}", since.as_nanos()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANSWER: &str = r#"<?xml version="1.0" encoding="utf-8"?>
<D:multistatus xmlns:D="DAV:" xmlns:ns0="DAV:">
<D:response xmlns:lp1="DAV:" xmlns:lp2="http://apache.org/dav/props/"><D:href>/dav/runs/</D:href>
<D:propstat><D:prop><lp1:resourcetype><D:collection/></lp1:resourcetype>
<lp1:getlastmodified>Wed, 21 Oct 2015 07:28:00 GMT</lp1:getlastmodified></D:prop>
<D:status>HTTP/1.1 200 OK</D:status></D:propstat>
<D:propstat><D:prop><D:getcontentlength/></D:prop>
<D:status>HTTP/1.1 404 Not Found</D:status></D:propstat>
</D:response>
<D:response><D:href>http://h/dav/runs/a%20b%26.txt</D:href>
<D:propstat><D:prop><D:resourcetype/><D:getcontentlength>12</D:getcontentlength>
<D:getetag>W/"x-1"</D:getetag></D:prop>
<D:status>HTTP/1.1 200 OK</D:status></D:propstat></D:response>
<D:response><D:href>/elsewhere/x</D:href><D:propstat><D:prop/><D:status>HTTP/1.1 200 OK</D:status>
</D:propstat></D:response>
</D:multistatus>"#;

    #[test]
    fn resources_are_read_whatever_the_prefixes() {
        let found = entries(ANSWER.as_bytes(), "/dav/").unwrap();
        let keys: Vec<_> = found.iter().map(|entry| entry.key.as_str()).collect();
        assert_eq!(keys, ["runs/", "runs/a b&.txt"]);
        assert_eq!((found[1].size, &found[1].etag), (12, &ETag("x-1".to_owned())));
        assert!(found[0].is_collection() && !found[1].is_collection());
    }

    #[test]
    fn the_export_itself_has_the_empty_key() {
        let found = entries(ANSWER.as_bytes(), "/dav/runs/").unwrap();
        assert_eq!((found[0].key.as_str(), found[0].is_collection()), ("", true));
    }

    #[test]
    fn a_web_page_is_no_empty_directory() {
        assert!(entries(b"<html>", "/").is_err());
        assert!(entries(b"<html><body>Log in</body></html>", "/").is_err());
        assert!(entries(br#"<D:multistatus xmlns:D="DAV:"/>"#, "/").unwrap().is_empty());
    }
}
