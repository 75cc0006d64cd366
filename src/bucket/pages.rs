//! Listings that come whole, handed out in pages: the snapshots that the pages of one listing are
//! cut from.
//!
//! For stores that have no pages of their own (directories, WebDAV). A listing that takes longer
//! than its snapshot is kept is made again, and goes on behind the last name given.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::clock::Clock;

/// Listings in progress at once; the oldest is forgotten first.
const SNAPSHOTS_MAX: usize = 8;

/// Snapshots of entries, each sorted by what `name` says of it.
#[derive(Debug)]
pub struct Snapshots<T> {
    kept: Mutex<VecDeque<(String, Arc<Vec<T>>)>>,
    name: fn(&T) -> &str,
}

/// Where in which listing a page begins.
#[derive(Debug)]
pub struct Token<'a> {
    id: &'a str,
    last: &'a str,
}

impl<'a> Token<'a> {
    /// `None` for a token that is not ours: the listing begins anew.
    pub fn parse(token: &'a str) -> Option<Self> {
        let (id, last) = token.split_once(' ')?;
        Some(Self { id, last })
    }
}

impl<T> Snapshots<T> {
    pub fn new(name: fn(&T) -> &str) -> Self {
        Self { kept: Mutex::default(), name }
    }

    /// The snapshot that `token` was cut from, if it is still kept.
    pub fn kept(&self, token: Option<&Token<'_>>) -> Option<Arc<Vec<T>>> {
        let id = token?.id;
        self.kept.lock().iter().find(|(found, _)| found == id).map(|(_, entries)| entries.clone())
    }

    /// The indices of a page of `entries`, and the token of the next.
    pub fn cut(
        &self,
        entries: &Arc<Vec<T>>,
        token: Option<&Token<'_>>,
        max: u16,
        clock: &dyn Clock,
    ) -> (std::ops::Range<usize>, Option<String>) {
        let start = token
            .map_or(0, |token| entries.partition_point(|entry| (self.name)(entry) <= token.last));
        let end = entries.len().min(start + usize::from(max.max(1)));
        if end == entries.len() {
            return (start..end, None);
        }
        let id = match token.filter(|_| self.kept(token).is_some()) {
            Some(token) => token.id.to_owned(),
            None => self.keep(clock.random(), entries.clone()),
        };
        let last = (self.name)(&entries[end - 1]);
        (start..end, Some(format!("{id} {last}")))
    }

    fn keep(&self, random: u64, entries: Arc<Vec<T>>) -> String {
        let id = format!("{random:x}");
        let mut kept = self.kept.lock();
        kept.truncate(SNAPSHOTS_MAX - 1);
        kept.push_front((id.clone(), entries));
        id
    }
}
