//! Whose a directory marker is: some servers (SeaweedFS) keep no user metadata of one, but they do
//! keep its content type, so the nonce stands there as well.
//!
//! Owns that spelling. Does not own what a nonce is for (`settle`).

use reqwest::header::{self, HeaderMap};

use crate::bucket::error::BucketError;
use crate::bucket::http;
use crate::bucket::settle::NONCE;
use crate::bucket::store::Metadata;

/// What the S3 console calls a directory, and our parameter.
const KIND: &str = "application/x-directory; trialfs-nonce=";

/// Puts the nonce of `metadata`, if there is one, where it outlasts a server that drops metadata.
pub fn set_nonce(headers: &mut HeaderMap, metadata: &Metadata) -> Result<(), BucketError> {
    if let Some(nonce) = metadata.get(NONCE) {
        headers.insert(header::CONTENT_TYPE, http::value(&format!("{KIND}{nonce}"))?);
    }
    Ok(())
}

/// The metadata of an answer with the nonce of a marker, wherever that stands.
pub fn restore_nonce(headers: &HeaderMap, metadata: &mut Metadata) {
    let kind = http::text(headers, "content-type");
    if let Some(nonce) = kind.and_then(|kind| kind.strip_prefix(KIND)) {
        metadata.entry(NONCE.to_owned()).or_insert_with(|| nonce.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nonce_outlasts_a_server_that_keeps_no_metadata_of_markers() {
        let mut headers = HeaderMap::new();
        let metadata =
            Metadata::from([(NONCE.to_owned(), "01M890NTF67PQQEEH74J6GGH8N".to_owned())]);
        set_nonce(&mut headers, &metadata).unwrap();
        let mut found = Metadata::new();
        restore_nonce(&headers, &mut found);
        assert_eq!(found, metadata);
    }
}
