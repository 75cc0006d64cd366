//! What this node uploaded lately, by checksum: so that a file that is written anew with the same
//! content is not uploaded anew.
//!
//! Owns the memory of it. Does not own the comparison (`write`).

use std::collections::{HashMap, VecDeque};

use crate::types::{ETag, Key};
use crate::write::{Base, Content};

/// Objects remembered, the oldest forgotten first: some 200 bytes each, as many as an experiment of
/// a thousand trials has files that are written again and again.
const CONTENTS_MAX: usize = 65_536;

#[derive(Debug, Default)]
pub struct Known {
    contents: HashMap<Key, (ETag, Content)>,
    order: VecDeque<Key>,
}

impl Known {
    pub fn learn(&mut self, key: Key, etag: ETag, content: Content) {
        if self.contents.insert(key.clone(), (etag, content)).is_none() {
            self.order.push_back(key);
        }
        if self.order.len() > CONTENTS_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.contents.remove(&oldest);
        }
    }

    /// The content of this very object.
    pub fn content(&self, base: &Base) -> Option<Content> {
        let (etag, content) = self.contents.get(&base.key)?;
        (*etag == base.etag).then(|| content.clone())
    }
}
