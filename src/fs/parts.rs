//! A long directory, told page by page while the rest is asked for: `ls` of ten thousand names has
//! the first thousand after one round trip.
//!
//! Owns what of a page may be told before the others have come. Does not own the listing
//! (`directories`), nor the parts once told (`handles`).
//!
//! What must hold: no name is told twice, and none as a file that is a directory. Of `f` and `f/`
//! the directory counts, which comes behind `f` and all that begins with `f` and a byte less than
//! `/`: so a name waits while the last key begins with it. Where the directory has records nothing
//! is told before they are read: the page that would show them must have come. What a part tells
//! lasts from when its page was asked for, not the listing: of a hundred pages each is young when
//! it is read, as pages are asked for no faster than the reader takes them.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use futures::future::BoxFuture;
use tokio::sync::mpsc;

use super::Fs;
use super::checkpoints::Unsealed;
use super::error::Errno;
use super::handles::{Listed, Snapshot, SnapshotEntry};
use crate::bucket::{Page, PageReader};
use crate::namespace::Asked;
use crate::namespace::listing::Listing;
use crate::namespace::seen::SeenEntry;
use crate::types::{CONTROL_DIR, Ino, Name};

/// A first page with fewer entries is most likely the only one, and told at the end.
const PAGE_ENTRIES_MIN: usize = 500;

/// Parts that are told and not read yet before no more pages are asked for. One is read within
/// some 20 ms by `ls -l`, so what waits is far from a second old.
const PARTS_AHEAD_MAX: usize = 8;

/// Where the parts of a listing go.
pub(super) type Parts = mpsc::Sender<Result<Snapshot, Errno>>;

/// Tells the pages of one listing, beside it: the next page is asked for meanwhile.
pub(super) struct Teller {
    parts: Parts,
    pages: mpsc::UnboundedSender<(Page, Instant)>,
    telling: tokio::task::JoinHandle<Telling>,
}

/// A name that a page told, and when that was asked for.
#[derive(Debug)]
struct Held {
    seen: SeenEntry,
    asked: Instant,
}

#[derive(Debug)]
struct Telling {
    told: HashSet<Name>,
    /// How many of them have a place in the listing: not those that went meanwhile.
    placed: usize,
    /// What may turn out to be something else yet.
    held: HashMap<Name, Held>,
    /// The greatest key so far, without the prefix.
    last: String,
    /// The last file's key so far, as the store lists them.
    last_file: String,
    /// When it was asked last whether there are records.
    records_at: Instant,
    /// There are records that nobody has loaded, or the store does not list in the order of bytes
    /// (S3 directory buckets): the rest is told at the end.
    waits: bool,
}

impl Telling {
    fn new(now: Instant) -> Self {
        Self {
            told: HashSet::new(),
            placed: 0,
            held: HashMap::new(),
            last: String::new(),
            last_file: String::new(),
            records_at: now,
            waits: false,
        }
    }

    /// Takes a page; what of it and of what was held may be told.
    fn take(&mut self, prefix: &str, page: Page, asked: Instant) -> Vec<(Name, Held)> {
        let objects = page.objects.iter().map(|object| object.key.as_str());
        let keys = objects.chain(page.prefixes.iter().map(String::as_str));
        if let Some(last) = keys.filter_map(|key| key.strip_prefix(prefix)).max()
            && *last > *self.last
        {
            self.last = last.to_owned();
        }
        let files = page.objects.iter().filter(|object| !object.key.is_marker());
        let mut files = files.map(|object| object.key.as_str()).peekable();
        let ordered = files.peek().is_none_or(|first| *first >= self.last_file.as_str()) && {
            let mut files: Vec<&str> = files.collect();
            let sorted = files.is_sorted();
            self.last_file = files.pop().unwrap_or(&self.last_file).to_owned();
            sorted
        };
        let mut listing = Listing::default();
        listing.add(prefix, page);
        self.waits |= listing.control || !ordered;
        for (name, seen) in listing.entries {
            let is_file = matches!(seen, SeenEntry::File(_));
            if !(is_file && self.held.contains_key(&name)) {
                self.held.insert(name, Held { seen, asked });
            }
        }
        if self.waits || !passes_control(&self.last) {
            return Vec::new();
        }
        let last = std::mem::take(&mut self.last);
        let ready = self.held.extract_if(|name, held| {
            matches!(held.seen, SeenEntry::Directory) || !last.starts_with(name.as_str())
        });
        let ready: Vec<(Name, Held)> =
            ready.filter(|(name, _)| self.told.insert(name.clone())).collect();
        self.last = last;
        ready
    }
}

/// Whether a key stands at or behind where the records of its directory are listed.
fn passes_control(key: &str) -> bool {
    *key >= *format!("{CONTROL_DIR}/")
}

impl Teller {
    /// `None`: the mount is going.
    pub fn new(fs: &Fs, parts: &Parts, ino: Ino, asked: Asked, prefix: &str) -> Option<Self> {
        let (pages, mut to_come) = mpsc::unbounded_channel::<(Page, Instant)>();
        let (fs, to, prefix) = (fs.me.upgrade()?, parts.clone(), prefix.to_owned());
        let telling = tokio::spawn(async move {
            let mut telling = Telling::new(asked.at);
            while let Some((page, at)) = to_come.recv().await {
                telling.waits |= telling.told.is_empty() && page.entries() < PAGE_ENTRIES_MIN;
                fs.look_for_records(ino, &mut telling, at).await;
                let ready = telling.take(&prefix, page, at);
                let oldest = ready.iter().map(|(_, held)| held.asked).min().unwrap_or(at);
                let asked = Asked { at: oldest.min(telling.records_at), ..asked };
                let entries = fs.shown_of_page(ino, asked, ready);
                if !entries.is_empty() {
                    let first = telling.placed;
                    telling.placed += entries.len();
                    // Nobody may want it any more.
                    let _ = to.send(Ok(Snapshot { asked, first, entries })).await;
                }
            }
            telling
        });
        Some(Self { parts: parts.clone(), pages, telling })
    }

    /// What of a whole listing was not told yet.
    pub async fn rest(self, mut all: Snapshot) -> Result<Snapshot, Errno> {
        drop(self.pages);
        let telling = self.telling.await.map_err(|_| Errno::EIO)?;
        all.entries.retain(|(name, _)| !telling.told.contains(name));
        let asked = all.entries.iter().filter_map(|(name, entry)| match entry {
            SnapshotEntry::Local(_) => None,
            SnapshotEntry::Seen(_) => Some(telling.held.get(name).map(|held| held.asked)),
        });
        // As old as the oldest of them; one that no page told is as old as the listing.
        let oldest = asked.min().flatten().unwrap_or(all.asked.at);
        let at = oldest.max(all.asked.at).min(telling.records_at);
        let asked = Asked { at, ..all.asked };
        Ok(Snapshot { asked, first: telling.placed, ..all })
    }
}

impl PageReader for Teller {
    fn page(&self, page: &Page, asked: Instant) {
        let _ = self.pages.send((page.clone(), asked));
    }

    fn room(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            let _ = self.parts.reserve().await; // nobody reads: the listing ends by itself
        })
    }
}

impl Fs {
    /// Only the page that began the listing showed whether there are records, which tell a link
    /// from a file: for a page that is much younger that is asked for again. 1 LIST, and a GET for
    /// each new record.
    async fn look_for_records(&self, directory: Ino, telling: &mut Telling, page_at: Instant) {
        let age = page_at.saturating_duration_since(telling.records_at);
        if telling.waits || self.ttl().is_zero() || age < self.ttl() / 2 {
            return;
        }
        let (now, renames) = (self.clock.now(), self.moves.epoch());
        let loaded = self.load_records(directory).await;
        // A rename makes the listing begin anew.
        telling.waits = loaded.is_err() || self.moves.epoch() != renames;
        if !telling.waits {
            telling.records_at = now;
        }
    }

    /// What is shown of names that a page told, in their order.
    fn shown_of_page(
        &self,
        directory: Ino,
        asked: Asked,
        ready: Vec<(Name, Held)>,
    ) -> Vec<(Name, SnapshotEntry)> {
        let leaving = self.leaving();
        let namespace = self.namespace.lock();
        let Some(inode) = namespace.get(directory) else { return Vec::new() };
        let directory = &inode.directory;
        let entry = |(name, held): (Name, Held)| {
            let child = directory.children.get(&name).copied();
            let removed = directory.removed.get(&name).is_some_and(|at| *at > asked.epoch);
            match child.filter(|ino| namespace.is_local(*ino, &leaving)) {
                Some(ino) => Some((name, SnapshotEntry::Local(ino))),
                None if removed && child.is_none() => None,
                None => Some((name, SnapshotEntry::Seen(held.seen))),
            }
        };
        let mut entries: Vec<_> = ready.into_iter().filter_map(entry).collect();
        entries.sort_by(|a, b| a.0.cmp(&b.0));
        entries
    }

    /// Begins a listing; the parts of a long one come when they are told.
    pub(super) async fn begin_listing(
        &self,
        ino: Ino,
        unsealed: Unsealed,
    ) -> Result<Listed, Errno> {
        // A checkpoint directory is one commit, and what is being renamed comes from two places.
        let told_in_one = self.place(ino).is_some() || !self.moves.is_idle();
        let Some(me) = self.me.upgrade().filter(|_| !told_in_one) else {
            return match self.list_if_any(ino, unsealed, None).await? {
                Some(whole) => Ok(Listed::whole(whole)),
                None if unsealed == Unsealed::Wait => Err(Errno::ETIMEDOUT),
                None => Ok(Listed::default()),
            };
        };
        let (parts, mut to_come) = mpsc::channel(PARTS_AHEAD_MAX);
        tokio::spawn(async move {
            tokio::select! {
                () = parts.closed() => {} // nobody wants it any more
                rest = me.list_if_any(ino, unsealed, Some(&parts)) => {
                    if let Some(rest) = rest.transpose() {
                        let _ = parts.send(rest).await;
                    }
                }
            }
        });
        match to_come.recv().await {
            Some(first) => {
                let to_come = Some(to_come);
                Ok(Listed { told: vec![Arc::new(first?)], to_come, ..Listed::default() })
            }
            None => Err(Errno::EIO),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::bucket::ListedObject;
    use crate::types::{ETag, Key};

    fn page(objects: &[&str], prefixes: &[&str]) -> Page {
        let (etag, modified) = (ETag("e".to_owned()), SystemTime::UNIX_EPOCH);
        let object = |key: &&str| ListedObject {
            key: Key::new(format!("d/{key}")),
            size: 1,
            etag: etag.clone(),
            modified,
        };
        Page {
            objects: objects.iter().map(object).collect(),
            prefixes: prefixes.iter().map(|prefix| format!("d/{prefix}")).collect(),
            next: None,
        }
    }

    fn told(telling: &mut Telling, objects: &[&str], prefixes: &[&str]) -> Vec<String> {
        let now = crate::clock::system().now();
        let ready = telling.take("d/", page(objects, prefixes), now);
        let kind = |held: Held| if matches!(held.seen, SeenEntry::Directory) { "/" } else { "" };
        let mut names: Vec<String> =
            ready.into_iter().map(|(name, held)| format!("{name}{}", kind(held))).collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_whose_directory_is_in_the_next_page_is_not_told_as_a_file() {
        let mut telling = Telling::new(crate::clock::system().now());
        assert_eq!(told(&mut telling, &["a", "f", "f-x", "f."], &[]), ["a", "f-x"]);
        assert_eq!(told(&mut telling, &["g"], &["f/"]), ["f.", "f/"]);
        assert_eq!(told(&mut telling, &["h"], &[]), ["g"]);
    }

    #[test]
    fn no_name_is_told_twice_whatever_two_segments_tell() {
        let mut telling = Telling::new(crate::clock::system().now());
        assert_eq!(told(&mut telling, &["a", "b"], &["sub/"]), ["a", "b", "sub/"]);
        assert_eq!(told(&mut telling, &["b", "t"], &["sub/"]), Vec::<String>::new());
        assert_eq!(told(&mut telling, &["u"], &[]), ["t"]);
    }

    #[test]
    fn nothing_is_told_before_the_records_would_have_come() {
        let mut telling = Telling::new(crate::clock::system().now());
        assert!(told(&mut telling, &["#1", "+2"], &[]).is_empty());
        assert_eq!(told(&mut telling, &["a", "b"], &[]), ["#1", "+2", "a"]);
        let mut telling = Telling::new(crate::clock::system().now());
        assert!(told(&mut telling, &["#1"], &[]).is_empty());
        assert!(told(&mut telling, &["a", "b"], &[".trialfs/"]).is_empty());
        assert!(told(&mut telling, &["c"], &[]).is_empty());
    }
}
