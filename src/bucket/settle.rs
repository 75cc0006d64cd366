//! What a refusal means when the reply to an earlier attempt was lost: perhaps that we had won.
//!
//! Owns the nonces and the reading back. Does not own retries.

use bytes::Bytes;

use crate::bucket::call::{Doubt, Outcome};
use crate::bucket::error::BucketError;
use crate::bucket::store::{Condition, Metadata, Written};
use crate::bucket::{Bucket, Operation};
use crate::clock::ulid;
use crate::types::{ETag, Key};

/// The user metadata that tells one conditional write from another.
pub const NONCE: &str = "trialfs-nonce";

/// A nonce is a ULID, and so is the head of an upload id that carries one.
const NONCE_BYTES: usize = 26;
/// The largest body that is read back to compare it where metadata is not kept.
const COMPARE_BYTES_MAX: u64 = 1 << 20;

/// The metadata of a write, with the nonce it carries if it does.
#[derive(Debug)]
pub(super) struct Stamp {
    pub metadata: Metadata,
    nonce: Option<String>,
}

impl Stamp {
    /// The upload id that callers hold: the store's, behind our nonce.
    pub fn sign_upload(&self, upload: String) -> String {
        match &self.nonce {
            Some(nonce) => format!("{nonce}/{upload}"),
            None => upload,
        }
    }
}

/// The store's own id of an upload.
pub(super) fn upload_id(upload: &str) -> &str {
    split_upload(upload).1
}

fn split_upload(upload: &str) -> (Option<&str>, &str) {
    let is_nonce = |s: &str| s.bytes().all(|b| b.is_ascii_digit() || b.is_ascii_uppercase());
    match upload.split_once('/') {
        Some((nonce, id)) if nonce.len() == NONCE_BYTES && is_nonce(nonce) => (Some(nonce), id),
        _ => (None, upload),
    }
}

impl Bucket {
    /// Metadata for a write under `condition`; only a conditional one needs a nonce.
    pub(super) fn stamp(&self, condition: &Condition, metadata: &Metadata) -> Stamp {
        match condition {
            Condition::Always => self.stamp_with(None, metadata),
            Condition::IfAbsent | Condition::IfMatch(_) => self.stamp_always(metadata),
        }
    }

    /// Metadata with a nonce, if the store keeps metadata at all.
    pub(super) fn stamp_always(&self, metadata: &Metadata) -> Stamp {
        let nonce = self.capabilities().metadata.then(|| ulid(&*self.caller.clock));
        self.stamp_with(nonce, metadata)
    }

    fn stamp_with(&self, nonce: Option<String>, metadata: &Metadata) -> Stamp {
        let mut metadata = metadata.clone();
        metadata.remove(NONCE); // another write's, if it was copied along
        metadata.extend(nonce.iter().map(|nonce| (NONCE.to_owned(), nonce.clone())));
        Stamp { metadata, nonce }
    }

    /// The object at `key`, if it carries `nonce`.
    async fn written_by(&self, key: &Key, nonce: &str) -> Result<Option<Written>, BucketError> {
        match self.head(key).await {
            Ok(info) => {
                let ours = info.metadata.get(NONCE).is_some_and(|found| found == nonce);
                Ok(ours.then_some(Written { etag: info.etag }))
            }
            Err(BucketError::NotFound) => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(super) async fn settle_put(
        &self,
        key: &Key,
        outcome: Outcome<Written>,
        stamp: &Stamp,
        body: &Bytes,
    ) -> Result<Written, BucketError> {
        match (outcome.result, outcome.doubt) {
            (Err(BucketError::Precondition), Doubt::LostReply) => {}
            (result, _) => return result,
        }
        let found = match &stamp.nonce {
            Some(nonce) => self.written_by(key, nonce).await?,
            None => self.written_as(key, body).await?,
        };
        found.ok_or(BucketError::Precondition)
    }

    /// The object at `key`, if its bytes are `body`: for stores that keep no metadata. Records
    /// carry a nonce of their own, so equal bytes are the same write; an empty body proves nothing.
    async fn written_as(&self, key: &Key, body: &Bytes) -> Result<Option<Written>, BucketError> {
        let length = body.len() as u64;
        if length == 0 || length > COMPARE_BYTES_MAX {
            return Ok(None);
        }
        match self.get_bytes(key, 0..length, None).await {
            Ok((info, bytes)) => {
                Ok((info.size == length && bytes == *body).then_some(Written { etag: info.etag }))
            }
            Err(BucketError::NotFound) => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(super) async fn settle_copy(
        &self,
        key: &Key,
        outcome: Outcome<Written>,
        stamp: &Stamp,
    ) -> Result<Written, BucketError> {
        match (outcome.result, outcome.doubt, &stamp.nonce) {
            (Err(error @ BucketError::Precondition), Doubt::LostReply, Some(nonce)) => {
                self.written_by(key, nonce).await?.ok_or(error)
            }
            (result, ..) => result,
        }
    }

    /// The version of the object at `key`, if this very upload made it. 1 HEAD.
    pub async fn made_by(&self, key: &Key, upload: &str) -> Result<Option<ETag>, BucketError> {
        match split_upload(upload).0 {
            Some(nonce) => Ok(self.written_by(key, nonce).await?.map(|written| written.etag)),
            None => Ok(None),
        }
    }

    pub(super) async fn settle_complete(
        &self,
        key: &Key,
        outcome: Outcome<Written>,
        upload: &str,
    ) -> Result<Written, BucketError> {
        let refused = match (outcome.result, outcome.doubt) {
            (Err(error @ BucketError::NotFound), _) => error,
            (Err(error @ BucketError::Precondition), Doubt::LostReply) => error,
            (result, _) => return result,
        };
        match split_upload(upload).0 {
            Some(nonce) => self.written_by(key, nonce).await?.ok_or(refused),
            None => Err(refused),
        }
    }

    pub(super) async fn settle_delete(
        &self,
        key: &Key,
        outcome: Outcome<()>,
    ) -> Result<(), BucketError> {
        match (outcome.result, outcome.doubt) {
            (Err(BucketError::NotFound), Doubt::LostReply) => Ok(()),
            (Err(BucketError::Precondition), Doubt::LostReply) => match self.head(key).await {
                Err(BucketError::NotFound) => Ok(()),
                Err(error) => Err(error),
                Ok(_) => Err(BucketError::Precondition),
            },
            (result, _) => result,
        }
    }

    /// A rename can carry no nonce. That the source is gone and the destination there is as good a
    /// proof as there is: the callers rename what they own.
    pub(super) async fn settle_rename(
        &self,
        from: &Key,
        to: &Key,
        outcome: Outcome<()>,
    ) -> Result<(), BucketError> {
        let refused = match (outcome.result, outcome.doubt) {
            (Err(error), Doubt::LostReply) if !error.is_transient() => error,
            (result, _) => return result,
        };
        let gone = |key| async move {
            self.caller.call(Operation::Head, 0, || self.caller.store.head(key)).await.result
                == Err(BucketError::NotFound)
        };
        if gone(from).await && !gone(to).await { Ok(()) } else { Err(refused) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upload_id_gives_back_the_stores_own() {
        let nonce = "01ARZ3NDEKTSV4RRFFQ69G5FAV";
        let stamp = Stamp { metadata: Metadata::new(), nonce: Some(nonce.to_owned()) };
        for id in ["abc", "a/b", "", "01ARZ3NDEKTSV4RRFFQ69G5FAV/x"] {
            let signed = stamp.sign_upload(id.to_owned());
            assert_eq!(split_upload(&signed), (Some(nonce), id));
        }
        assert_eq!(split_upload("2~abc/def"), (None, "2~abc/def"));
    }
}
