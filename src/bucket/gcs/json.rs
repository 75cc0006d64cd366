//! The bodies of the JSON API: objects, pages of a listing, copies under way.
//!
//! Pure: text in, values out. The text comes from a server that may lie; nothing here panics.

use std::time::{Duration, SystemTime};

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::bucket::date;
use crate::bucket::error::BucketError;
use crate::bucket::store::{ListedObject, Metadata, ObjectInfo, Page, Written};
use crate::types::{ETag, Key};

/// An object. Numbers come as text.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Resource {
    name: String,
    size: String,
    generation: String,
    updated: String,
    metadata: Metadata,
}

/// A page of a listing.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Listing {
    items: Vec<Resource>,
    prefixes: Vec<String>,
    next_page_token: Option<String>,
}

/// How far a copy is.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Rewrite {
    pub done: bool,
    pub rewrite_token: Option<String>,
    pub resource: Option<Resource>,
}

/// The body of an answer.
pub fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, BucketError> {
    serde_json::from_slice(body).map_err(|error| match error.is_eof() {
        true => BucketError::Corrupt("an answer was cut".to_owned()),
        false => BucketError::Invalid(format!("an answer that is not understood: {error}")),
    })
}

impl Resource {
    pub fn written(self) -> Result<Written, BucketError> {
        Ok(Written { etag: self.etag()? })
    }

    /// Names of metadata in lower case, as the XML API gives them.
    pub fn info(self) -> Result<ObjectInfo, BucketError> {
        let lower = |(name, value): (String, String)| (name.to_ascii_lowercase(), value);
        Ok(ObjectInfo {
            size: self.size()?,
            etag: self.etag()?,
            modified: self.modified(),
            metadata: self.metadata.into_iter().map(lower).collect(),
            crc64nvme: None,
        })
    }

    fn listed(self) -> Result<ListedObject, BucketError> {
        let (size, etag, modified) = (self.size()?, self.etag()?, self.modified());
        Ok(ListedObject { key: Key::new(self.name), size, etag, modified })
    }

    fn size(&self) -> Result<u64, BucketError> {
        let size = self.size.parse();
        size.map_err(|_| BucketError::Invalid("an object without a size".to_owned()))
    }

    fn etag(&self) -> Result<ETag, BucketError> {
        match self.generation.is_empty() {
            true => Err(BucketError::Invalid("an object without a generation".to_owned())),
            false => Ok(ETag(self.generation.clone())),
        }
    }

    /// In whole seconds, as Last-Modified has it: one object has one time, whoever tells it.
    fn modified(&self) -> SystemTime {
        let since =
            date::iso(&self.updated).and_then(|t| t.duration_since(SystemTime::UNIX_EPOCH).ok());
        SystemTime::UNIX_EPOCH + Duration::from_secs(since.map_or(0, |since| since.as_secs()))
    }
}

impl Listing {
    pub fn page(self) -> Result<Page, BucketError> {
        Ok(Page {
            objects: self.items.into_iter().map(Resource::listed).collect::<Result<_, _>>()?,
            prefixes: self.prefixes,
            next: self.next_page_token.filter(|token| !token.is_empty()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_keys_come_out_of_a_listing_as_they_are() {
        let body = br#"{"items": [{"name": "a//b\u0001", "size": "3", "generation": "17",
            "updated": "1970-01-01T00:00:01.999Z", "kind": "x"}],
            "prefixes": ["../"], "nextPageToken": "t"}"#;
        let page = read::<Listing>(body).unwrap().page().unwrap();
        let object = &page.objects[0];
        assert_eq!((object.key.as_str(), object.size), ("a//b\u{1}", 3));
        assert_eq!(object.etag, ETag("17".to_owned()));
        assert_eq!(object.modified, SystemTime::UNIX_EPOCH + Duration::from_secs(1));
        assert_eq!((page.prefixes, page.next.as_deref()), (vec!["../".to_owned()], Some("t")));
        assert_eq!(read::<Listing>(b"{}").unwrap().page().unwrap(), Page::default());
    }

    #[test]
    fn an_object_without_a_version_is_an_error() {
        assert!(read::<Resource>(br#"{"size": "3"}"#).unwrap().info().is_err());
        assert!(read::<Resource>(br#"{"generation": "3"}"#).unwrap().info().is_err());
        assert!(read::<Resource>(b"<html>").is_err());
    }
}
