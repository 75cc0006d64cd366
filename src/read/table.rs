//! The set of entries, by key and version, and those that only wait for their last user.
//!
//! Owns who is in the set. Does not own limits or accounting (`catalog`).

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::read::entry::{Entry, Evicted};
use crate::read::version::Version;
use crate::types::Key;

#[derive(Debug, Default)]
pub struct Table {
    entries: HashMap<Key, Vec<Arc<Entry>>>,
    len: u64,
    /// Forgotten, but in use still: found by nobody any more.
    doomed: Vec<Arc<Entry>>,
}

impl Table {
    /// How many can be found.
    pub fn len(&self) -> u64 {
        self.len
    }

    pub fn find(&self, version: &Version) -> Option<Arc<Entry>> {
        self.entries.get(&version.key)?.iter().find(|e| *e.version == *version).cloned()
    }

    pub fn insert(&mut self, entry: Arc<Entry>) -> Arc<Entry> {
        self.entries.entry(entry.version.key.clone()).or_default().push(entry.clone());
        self.len += 1;
        entry
    }

    pub fn remove(&mut self, entry: &Arc<Entry>) {
        let Some(versions) = self.entries.get_mut(&entry.version.key) else { return };
        let before = versions.len();
        versions.retain(|e| !Arc::ptr_eq(e, entry));
        self.len -= (before - versions.len()) as u64;
        if versions.is_empty() {
            self.entries.remove(&entry.version.key);
        }
    }

    /// Every version of the key is to go.
    pub fn doom(&mut self, key: &Key) {
        let versions = self.entries.remove(key).unwrap_or_default();
        self.len -= versions.len() as u64;
        self.doomed.extend(versions);
    }

    /// Nobody will ask for these again: another version of the key is being opened.
    pub fn doom_idle_versions(&mut self, key: &Key) {
        let versions = self.entries.get(key).cloned().unwrap_or_default();
        for idle in versions.into_iter().filter(|e| !is_used(e)) {
            self.remove(&idle);
            self.doomed.push(idle);
        }
    }

    /// Empties those of the doomed that nobody uses any more.
    pub fn release_doomed(&mut self) -> Vec<(Arc<Entry>, Evicted)> {
        let mut released = Vec::new();
        self.doomed.retain(|entry| {
            let evicted = if is_used(entry) { None } else { entry.release() };
            let stays = evicted.is_none();
            released.extend(evicted.map(|e| (entry.clone(), e)));
            stays
        });
        released
    }

    /// All that hold bytes, the doomed too.
    pub fn all(&self) -> Vec<Arc<Entry>> {
        self.entries.values().flatten().chain(&self.doomed).cloned().collect()
    }
}

fn is_used(entry: &Entry) -> bool {
    entry.users.load(Ordering::SeqCst) > 0
}
