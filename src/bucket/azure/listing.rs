//! The XML of List Blobs.
//!
//! Pure: text in, a page out. The text comes from a server that may lie; nothing here panics.

use percent_encoding::percent_decode_str;
use serde::Deserialize;

use crate::bucket::error::BucketError;
use crate::bucket::store::{ListedObject, Page};
use crate::bucket::{date, xml};
use crate::types::Key;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Listing {
    blobs: Option<Blobs>,
    next_marker: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Blobs {
    #[serde(default)]
    blob: Vec<Blob>,
    #[serde(default)]
    blob_prefix: Vec<BlobPrefix>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Blob {
    name: Name,
    properties: Properties,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct BlobPrefix {
    name: Name,
}

/// Names that XML can't say come percent-encoded, and say so.
#[derive(Deserialize)]
struct Name {
    #[serde(rename = "@Encoded", default)]
    encoded: bool,
    #[serde(rename = "$text", default)]
    text: String,
}

impl Name {
    fn decoded(self) -> String {
        match self.encoded {
            true => percent_decode_str(&self.text).decode_utf8_lossy().into_owned(),
            false => self.text,
        }
    }
}

#[derive(Deserialize)]
struct Properties {
    #[serde(rename = "Last-Modified", default)]
    modified: String,
    #[serde(rename = "Etag", default)]
    etag: String,
    #[serde(rename = "Content-Length", default)]
    size: u64,
    /// `directory` in accounts with a hierarchical namespace.
    #[serde(rename = "ResourceType", default)]
    kind: String,
}

/// One page.
pub fn page(body: &[u8]) -> Result<Page, BucketError> {
    let text = std::str::from_utf8(body)
        .map_err(|_| BucketError::Invalid("the listing is not UTF-8".to_owned()))?;
    xml::check_whole(text, "listing")?;
    if !text.contains("EnumerationResults") {
        // Somebody's web page, which must not pass for an empty container.
        return Err(BucketError::Invalid("the listing is not understood".to_owned()));
    }
    let listing: Listing = xml::from_str(text.trim_start_matches('\u{feff}'))
        .map_err(|error| BucketError::Invalid(format!("the listing is not understood: {error}")))?;
    let blobs = listing.blobs.unwrap_or(Blobs { blob: vec![], blob_prefix: vec![] });
    Ok(Page {
        objects: blobs.blob.into_iter().map(object).collect(),
        prefixes: blobs.blob_prefix.into_iter().map(|prefix| prefix.name.decoded()).collect(),
        next: listing.next_marker.filter(|marker| !marker.is_empty()),
    })
}

fn object(blob: Blob) -> ListedObject {
    let Blob { name, properties } = blob;
    let mut key = name.decoded();
    if properties.kind == "directory" {
        key.push('/'); // what stands for a directory elsewhere
    }
    ListedObject {
        key: Key::new(key),
        size: properties.size,
        etag: xml::etag(&properties.etag),
        modified: date::http(&properties.modified).unwrap_or(std::time::SystemTime::UNIX_EPOCH),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::ETag;

    const PROPERTIES: &str = "<Properties><Creation-Time>x</Creation-Time>\
        <Last-Modified>Thu, 01 Jan 1970 00:00:01 GMT</Last-Modified><Etag>0x8D</Etag>\
        <Content-Length>3</Content-Length><BlobType>BlockBlob</BlobType></Properties><OrMetadata/>";

    fn listing(blobs: &str, marker: &str) -> Vec<u8> {
        format!(
            "\u{feff}<?xml version=\"1.0\" encoding=\"utf-8\"?>\n<EnumerationResults \
             ContainerName=\"c\"><Prefix>p/</Prefix><Blobs>{blobs}</Blobs>{marker}\
             </EnumerationResults>"
        )
        .into_bytes()
    }

    #[test]
    fn odd_keys_come_out_of_a_listing_as_they_are() {
        let names = ["a//b", "../x", " spaced ", "&amp;&lt;", "ü"];
        let blobs: String = names
            .iter()
            .map(|name| format!("<Blob><Name>{name}</Name>{PROPERTIES}</Blob>"))
            .chain([format!("<Blob><Name Encoded=\"true\">c%01%25</Name>{PROPERTIES}</Blob>")])
            .chain(["<BlobPrefix><Name>d e /</Name></BlobPrefix>".to_owned()])
            .collect();
        let page = page(&listing(&blobs, "<NextMarker>2!8!x</NextMarker>")).unwrap();
        let keys: Vec<_> = page.objects.iter().map(|o| o.key.as_str()).collect();
        assert_eq!(keys, ["a//b", "../x", " spaced ", "&<", "ü", "c\u{1}%"]);
        assert_eq!((page.objects[0].size, &page.objects[0].etag), (3, &ETag("0x8D".to_owned())));
        assert_eq!(page.prefixes, ["d e /"]);
        assert_eq!(page.next.as_deref(), Some("2!8!x"));
    }

    #[test]
    fn a_listing_ends_where_no_marker_follows_and_not_where_it_is_not_understood() {
        for end in ["", "<NextMarker/>", "<NextMarker></NextMarker>"] {
            assert_eq!(page(&listing("", end)).unwrap(), Page::default());
        }
        assert!(page(b"<html>").is_err());
        assert!(page(b"\xff").is_err());
        assert!(page(b"<EnumerationResults><Blobs><Blob>").is_err());
    }
}
