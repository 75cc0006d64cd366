//! Names that Azure makes us choose: of metadata, of an upload and where it is staged, of blocks.
//!
//! Pure.
//!
//! # Metadata
//!
//! Its names are identifiers of C#: no dash. So `-` is written `_` and `_` is written `__`, and
//! read back the same way: `trialfs-nonce` is `trialfs_nonce` on the wire, and what other tools
//! named comes back, copied along, under the name that it had.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use percent_encoding::percent_decode_str;

use crate::bucket::error::BucketError;
use crate::bucket::http;
use crate::bucket::store::Metadata;
use crate::types::{CONTROL_DIR, KEY_BYTES_MAX, Key};

/// Metadata as its names are on the wire.
pub fn escaped(metadata: &Metadata) -> Metadata {
    let escape = |name: &str| name.replace('_', "__").replace('-', "_");
    metadata.iter().map(|(name, value)| (escape(name), value.clone())).collect()
}

/// The reverse of [`escaped`].
pub fn unescaped(metadata: Metadata) -> Metadata {
    let unescape = |name: &str| {
        let words: Vec<_> = name.split("__").map(|word| word.replace('_', "-")).collect();
        words.join("_")
    };
    metadata.into_iter().map(|(name, value)| (unescape(&name), value)).collect()
}

/// An upload, all of which is in its id: Azure knows none, and takes metadata at the end alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upload {
    pub ulid: String,
    pub metadata: Metadata,
}

const ULID_BYTES: usize = 26;

impl Upload {
    pub fn id(&self) -> String {
        let pairs: Vec<_> = self.metadata.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        format!("{}?{}", self.ulid, http::encode_query(&pairs))
    }

    pub fn parse(id: &str) -> Result<Self, BucketError> {
        let bad = || BucketError::Invalid("an upload id that is not of this store".to_owned());
        let (ulid, query) = id.split_once('?').ok_or_else(bad)?;
        if ulid.len() != ULID_BYTES || !ulid.bytes().all(|b| b.is_ascii_alphanumeric()) {
            return Err(bad());
        }
        let decode = |text: &str| percent_decode_str(text).decode_utf8().map(|s| s.into_owned());
        let mut metadata = Metadata::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').ok_or_else(bad)?;
            metadata.insert(decode(name).map_err(|_| bad())?, decode(value).map_err(|_| bad())?);
        }
        Ok(Self { ulid: ulid.to_owned(), metadata })
    }

    /// Where the parts of an upload to `key` wait: `.trialfs/data.<ulid>` in its directory, or in
    /// the nearest above it where that name is short enough.
    pub fn staging_key(&self, key: &Key) -> Key {
        let mut dir = key.as_str();
        loop {
            dir = dir.rfind('/').map_or("", |at| &dir[..at]);
            let slash = if dir.is_empty() { "" } else { "/" };
            let name = format!("{dir}{slash}{CONTROL_DIR}/data.{}", self.ulid);
            if name.len() <= KEY_BYTES_MAX || dir.is_empty() {
                return Key::new(name);
            }
        }
    }
}

/// A block that waits in the staging blob; its id is the part's ETag. It holds the content's sum
/// (of a copied part, something random), so that of two requests for one part the late one replaces
/// nothing; and its length, so that nobody has to ask.
pub fn part_id(number: u32, len: u64, sum: u64) -> String {
    format!("{number:05}-{len:012x}-{sum:016x}")
}

/// The length of the part that `id` stands for.
pub fn part_len(id: &str) -> Result<u64, BucketError> {
    let len = id.split('-').nth(1).and_then(|len| u64::from_str_radix(len, 16).ok());
    len.ok_or_else(|| BucketError::Invalid("a part that is not of this store".to_owned()))
}

/// A block of `attempt` to complete an upload.
pub fn final_id(attempt: &str, index: u32) -> String {
    format!("{attempt}-{index:05}")
}

/// A block id as it is sent.
pub fn encoded(id: &str) -> String {
    BASE64_STANDARD.encode(id)
}

/// The body of Put Block List. Only blocks that no earlier list took: so a list is taken once.
pub fn block_list(ids: &[String]) -> String {
    let block = |id: &String| format!("<Uncommitted>{}</Uncommitted>", encoded(id));
    let blocks: String = ids.iter().map(block).collect();
    format!("<?xml version=\"1.0\" encoding=\"utf-8\"?><BlockList>{blocks}</BlockList>")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata(pairs: &[(&str, &str)]) -> Metadata {
        pairs.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn metadata_has_legal_names_and_comes_back() {
        let ours = metadata(&[("trialfs-nonce", "1"), ("a_b", "2"), ("plain", "3")]);
        let wire = escaped(&ours);
        assert_eq!(wire, metadata(&[("trialfs_nonce", "1"), ("a__b", "2"), ("plain", "3")]));
        assert_eq!(unescaped(wire), ours);
        let foreign = metadata(&[("hdi_isfolder", "true"), ("a___b", ""), ("_x_", ""), ("__", "")]);
        assert_eq!(escaped(&unescaped(foreign.clone())), foreign);
    }

    #[test]
    fn an_upload_is_in_its_id() {
        let ulid = "01ARZ3NDEKTSV4RRFFQ69G5FAV".to_owned();
        for pairs in [&[][..], &[("trialfs-kind", "symlink"), ("x", "a=b&c?d/ü %")][..]] {
            let upload = Upload { ulid: ulid.clone(), metadata: metadata(pairs) };
            assert_eq!(Upload::parse(&upload.id()), Ok(upload));
        }
        for bad in ["", "2~abc", "01ARZ3NDEKTSV4RRFFQ69G5FAV", "x?y=z", "../../x?"] {
            assert!(Upload::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_upload_waits_in_the_directory_of_its_key_if_the_name_fits() {
        let ulid = "01ARZ3NDEKTSV4RRFFQ69G5FAV".to_owned();
        let upload = Upload { ulid, metadata: Metadata::new() };
        let staged = |key: &str| upload.staging_key(&Key::new(key)).as_str().to_owned();
        assert_eq!(staged("a/b/c"), "a/b/.trialfs/data.01ARZ3NDEKTSV4RRFFQ69G5FAV");
        assert_eq!(staged("c"), ".trialfs/data.01ARZ3NDEKTSV4RRFFQ69G5FAV");
        let deep = format!("p/{}/{}", "d".repeat(1000), "f");
        assert_eq!(staged(&deep), "p/.trialfs/data.01ARZ3NDEKTSV4RRFFQ69G5FAV");
    }

    #[test]
    fn ids_of_blocks_of_one_blob_have_one_length() {
        let (small, large) = (part_id(1, 0, 0), part_id(50_000, 4000 << 20, u64::MAX));
        assert_eq!((small.len(), part_len(&large)), (large.len(), Ok(4000 << 20)));
        assert!(part_len("0x8D").is_err());
        assert_eq!(final_id("a", 0).len(), final_id("a", 49_999).len());
        let list = block_list(&["x".to_owned()]);
        assert!(list.ends_with("<BlockList><Uncommitted>eA==</Uncommitted></BlockList>"), "{list}");
    }
}
