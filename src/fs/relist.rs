//! Many known names of one directory that are asked for one after another, as `ls -l` of a large
//! one does once their time is up: a listing answers for all of them.
//!
//! Owns when that pays. Does not own the listing (`directories`).

use super::Fs;
use crate::types::{Ino, Name};

/// Names asked for singly, for each page that a listing takes, before it is made: with fewer the
/// listing costs more than it spares.
pub(super) const ASKS_PER_PAGE: usize = 4;
/// Entries of a page.
const PAGE_ENTRIES: usize = 1000;

/// Pages that a listing of so many entries takes.
pub(super) fn pages_of(entries: usize) -> usize {
    entries / PAGE_ENTRIES + 1
}

impl Fs {
    /// The inode at a name that the last listing had, out of a new one; `None`: ask for the name
    /// itself. One LIST at a time is made so, and whoever waited takes its answer.
    pub(super) async fn answer_by_listing(&self, parent: Ino, name: &Name) -> Option<Ino> {
        if !self.listing_pays(parent, name) {
            return None;
        }
        let _turn = self.relisting.lock().await;
        if let Some(ino) = self.known(parent, name) {
            return Some(ino);
        }
        // What fails here is asked for again, and answered, by the name itself.
        self.list_directory(parent).await.ok()?;
        self.known(parent, name)
    }

    fn listing_pays(&self, parent: Ino, name: &Name) -> bool {
        let mut namespace = self.namespace.lock();
        let Some(directory) = namespace.directory_mut(parent) else { return false };
        let Some(seen) = &directory.seen else { return false };
        if !seen.entries.contains_key(name) {
            return false;
        }
        let pages = pages_of(seen.entries.len());
        directory.asked_singly += 1;
        directory.asked_singly > ASKS_PER_PAGE * pages
    }
}
