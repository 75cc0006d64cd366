//! What is under way of a staged file: an upload by parts that is not complete.
//!
//! Owns the words for it. Does not own any request (`multipart`).

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;

use super::error::WriteError;
use super::intent::{Begun, BegunPart};
use super::parts::{Grid, SentPart};
use super::state::Sum;
use crate::bucket::Metadata;
use crate::types::Key;

/// What is under way of a file.
#[derive(Debug, Default)]
pub(super) struct Transfer {
    pub open: Option<Multipart>,
}

/// An upload by parts that is not complete.
#[derive(Debug)]
pub(super) struct Multipart {
    pub target: Arc<Target>,
    /// By part index, from 0.
    pub sent: Vec<Option<SentPart>>,
}

impl Multipart {
    /// An upload that a dead daemon had begun. What it had on its way may still arrive, but never
    /// other bytes: the content is the same, and so must be the grid ([`Multipart::fits`]).
    pub fn resumed(key: Key, begun: &Begun) -> Self {
        let (id, metadata) = (begun.upload.clone(), Metadata::new());
        let target = Target { key, metadata, id, unanswered: Mutex::default() };
        let count = begun.parts.keys().next_back().map_or(0, |last| *last as usize + 1);
        let mut sent = vec![None; count];
        for (index, part) in &begun.parts {
            let BegunPart { etag, len, crc } = part.clone();
            sent[*index as usize] = Some(SentPart { etag, len, crc: Some(crc) });
        }
        Self { target: Arc::new(target), sent }
    }

    /// Whether what was sent of a file of `size` bytes is cut as we would: an earlier version of
    /// this program had other parts.
    pub fn fits(&self, grid: &Grid, size: u64) -> bool {
        let len = |index| grid.part(index, size).map(|range| range.end - range.start);
        let mut sent = (0..).zip(&self.sent);
        sent.all(|(index, part)| part.as_ref().is_none_or(|part| len(index) == Some(part.len)))
    }

    /// Part `index` is about to be read anew: whatever becomes of it, the old one counts no more.
    pub fn forget(&mut self, index: u32) {
        self.sent.resize(self.sent.len().max(index as usize + 1), None);
        self.sent[index as usize] = None;
    }

    /// What the upload is made of once every part is sent: ETags, and the stretches they stand for.
    pub fn made_of(&self) -> (Vec<String>, Vec<Sum>) {
        let sum = |part: &SentPart| Sum { len: part.len, crc: part.crc };
        self.sent.iter().flatten().map(|part| (part.etag.clone(), sum(part))).unzip()
    }
}

/// Where parts go.
#[derive(Debug)]
pub(super) struct Target {
    pub key: Key,
    pub metadata: Metadata,
    pub id: String,
    /// The CRC of each part whose request has not been answered: it may still arrive, so that
    /// number must not be used for other bytes.
    pub unanswered: Mutex<BTreeMap<u32, u64>>,
}

/// Why an attempt came to nothing.
pub(super) enum Setback {
    /// The file was cut or renamed: what was read is no content that it had.
    Changed,
    /// The store does not know the upload any more.
    Gone,
    Failed(WriteError),
}

impl<E: Into<WriteError>> From<E> for Setback {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}
