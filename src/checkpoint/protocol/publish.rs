//! From a seal to objects under their natural keys, and direct changes of those.
//!
//! Owns invariants 8 to 10. Anybody may run it: every step counts at most once, whoever takes it.

use super::seen::Becomes;
use super::{Action, Desk, Publish, Stop};
use crate::checkpoint::record::{Done, RelPath, What};
use crate::types::ETag;

impl Desk<'_> {
    /// The next step of publishing what is sealed, the oldest generation first; `None`: all is
    /// done.
    pub(super) fn publish(&self) -> Option<Action> {
        let seal = &self.seen.unpublished()?.record;
        let content = match self.seen.content(seal) {
            Ok(content) => content,
            Err(unclear) => return Some(unclear.action()),
        };
        let generation = seal.generation;
        let unspent = |step: &Publish| !self.seen.is_spent(generation, step);
        let steps = content.into_iter().flat_map(|(name, becomes)| steps(name, &becomes));
        let steps: Vec<Publish> = steps.filter(unspent).collect();
        if !steps.is_empty() {
            return Some(Action::Publish { generation, steps });
        }
        Some(Action::CreateDone(Done {
            child: self.me.child.clone(),
            writer: self.me.writer.clone(),
            nonce: self.nonce,
            generation,
            unknown: Default::default(),
        }))
    }

    /// Removes a published file. The version is read first, then the records: if those say that all
    /// is done, the version is none that a publisher could still replace or bring back.
    pub(super) fn unlink(&self, name: &RelPath) -> Action {
        if !self.seen.has_data() {
            return Action::LookData;
        }
        let Some(listing) = self.seen.confirmed_data() else { return Action::Look };
        if let Some(publish) = self.publish() {
            return publish;
        }
        match listing.get(name) {
            Some(version) => Action::DeleteFile { name: name.clone(), version: version.clone() },
            None => Action::Stop(Stop::Absent),
        }
    }
}

/// What is asked of the store for one name. A removal of nothing asks nothing.
fn steps(name: &RelPath, becomes: &Becomes<'_>) -> Vec<Publish> {
    match becomes {
        Becomes::Made(entry) => {
            let upload = entry.upload().cloned();
            if entry.what == What::Directory {
                return vec![Publish::Mark { name: name.clone() }];
            }
            let complete = |upload| Publish::Complete { name: name.clone(), upload };
            upload.map(complete).into_iter().collect()
        }
        Becomes::Gone(versions) => {
            let delete = |version: &&ETag| Publish::Delete {
                name: name.clone(),
                version: (*version).clone(),
            };
            versions.iter().map(delete).collect()
        }
    }
}
