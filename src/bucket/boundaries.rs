//! Where the pages of a long listing end, so that the next listing asks for all of them at once.
//!
//! A page is asked for with the token of the one before, so a directory of 10,000 names costs ten
//! round trips in a row. Most stores list objects in the order of their keys' bytes and begin
//! behind any key ([`Store::list_behind`]): what one listing showed is cut into segments of a page
//! each, and the next listing asks for these side by side. No answer is older than the asking, and
//! no name is taken from memory: a boundary says only where to begin.
//!
//! What must hold: a segment is asked for until an object at or behind its end has come, so
//! whatever was made in it since is there. Prefixes and markers are never cut off at an end, as
//! stores differ on where they stand (`a/` before or behind `a-b`); two segments may both tell
//! them.
//!
//! [`Store::list_behind`]: crate::bucket::Store::list_behind

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use crate::bucket::store::{ListedObject, Page};
use crate::types::Key;

/// Directories of which boundaries are kept; past it all are learnt anew.
const KEPT_MAX: usize = 1_000;

/// A part of a listing: the objects behind `start`, up to and with `end`.
#[derive(Debug, Default)]
pub struct Segment {
    pub start: Option<Key>,
    pub end: Option<Key>,
}

impl Segment {
    /// Whether a page goes so far that nothing of this segment is left.
    pub fn ends_in(&self, page: &Page) -> bool {
        let reached = |o: &ListedObject| self.end.as_ref().is_some_and(|end| o.key >= *end);
        page.objects.iter().any(|object| is_file(object) && reached(object))
    }

    /// Leaves out what the next segment tells.
    pub fn cut(&self, page: &mut Page) {
        let is_ours = |o: &ListedObject| self.end.as_ref().is_none_or(|end| o.key <= *end);
        page.objects.retain(|object| !is_file(object) || is_ours(object));
    }
}

/// The segments behind a key, with these ends; the last has none.
pub fn segments(
    start: Option<Key>,
    ends: impl Iterator<Item = Key>,
) -> impl Iterator<Item = Segment> {
    ends.map(Some).chain([None]).scan(start, |next, end| {
        let start = std::mem::replace(next, end.clone());
        Some(Segment { start, end })
    })
}

/// The ends of the segments of each listing, but of its last.
#[derive(Debug, Default)]
pub struct Boundaries {
    kept: Mutex<HashMap<String, Arc<[Key]>>>,
    /// The store can't begin behind a key.
    unsupported: AtomicBool,
}

impl Boundaries {
    /// Of one level below `prefix`; `None`: it was not listed before, or had one page.
    pub fn ends(&self, prefix: &str) -> Option<Arc<[Key]>> {
        self.kept.lock().get(prefix).cloned()
    }

    /// Takes what a listing showed, in its order.
    pub fn learn(&self, prefix: &str, listed: &Page, page_entries: usize) {
        if self.is_unsupported() {
            return;
        }
        let ends = ends(listed, page_entries);
        let mut kept = self.kept.lock();
        let Some(ends) = ends else {
            kept.remove(prefix);
            return;
        };
        if kept.len() >= KEPT_MAX && !kept.contains_key(prefix) {
            kept.clear();
        }
        kept.insert(prefix.to_owned(), ends.into());
    }

    pub fn is_unsupported(&self) -> bool {
        self.unsupported.load(Ordering::Relaxed)
    }

    pub fn set_unsupported(&self) {
        self.unsupported.store(true, Ordering::Relaxed);
        self.kept.lock().clear();
    }
}

/// The objects behind which a page is full; `None` if there is none, or if the store does not list
/// in the order of bytes.
fn ends(listed: &Page, page_entries: usize) -> Option<Vec<Key>> {
    let files: Vec<&Key> = listed.objects.iter().filter(|o| is_file(o)).map(|o| &o.key).collect();
    if listed.objects.len() + listed.prefixes.len() <= page_entries || !files.is_sorted() {
        return None;
    }
    let mut prefixes: Vec<&str> = listed.prefixes.iter().map(String::as_str).collect();
    prefixes.sort_unstable();
    let mut prefixes = prefixes.into_iter().peekable();
    let (mut ends, mut count) = (Vec::new(), 0);
    let mut last: Option<&Key> = None;
    for file in files {
        count += 1;
        while prefixes.next_if(|prefix| *prefix < file.as_str()).is_some() {
            count += 1;
        }
        if count > page_entries {
            ends.extend(last.cloned());
            count = 1;
        }
        last = Some(file);
    }
    (!ends.is_empty()).then_some(ends)
}

/// Whether a store that was asked to begin behind a key has done so: some know nothing of it.
pub fn is_behind(page: &Page, start: &Key) -> bool {
    page.objects.iter().filter(|object| is_file(object)).all(|object| object.key > *start)
}

/// Of a store that lists in the order of bytes.
pub fn last_file(page: &Page) -> Option<Key> {
    page.objects.iter().rfind(|object| is_file(object)).map(|object| object.key.clone())
}

/// Whether it stands where its key's bytes say, in every store.
fn is_file(object: &ListedObject) -> bool {
    !object.key.is_marker()
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use bytes::Bytes;

    use super::*;
    use crate::bucket::memory::MemoryStore;
    use crate::bucket::{Bucket, Condition, Metadata};
    use crate::clock::SystemClock;
    use crate::types::ETag;

    fn listed(objects: &[&str], prefixes: &[&str]) -> Page {
        let object = |key: &&str| ListedObject {
            key: Key::new(*key),
            size: 1,
            etag: ETag("e".to_owned()),
            modified: SystemTime::UNIX_EPOCH,
        };
        let objects = objects.iter().map(object).collect();
        let prefixes = prefixes.iter().map(|prefix| (*prefix).to_owned()).collect();
        Page { objects, prefixes, next: None }
    }

    fn cut(objects: &[&str], prefixes: &[&str]) -> Option<Vec<String>> {
        let ends = ends(&listed(objects, prefixes), 3)?;
        Some(ends.iter().map(|key| key.as_str().to_owned()).collect())
    }

    #[test]
    fn a_segment_holds_what_a_page_does() {
        assert_eq!(cut(&["a", "b", "c"], &[]), None);
        assert_eq!(cut(&["a", "b", "c", "d"], &[]), Some(vec!["c".to_owned()]));
        let seven = cut(&["a", "b", "c", "d", "e", "f", "g"], &[]);
        assert_eq!(seven, Some(vec!["c".to_owned(), "f".to_owned()]));
        assert_eq!(cut(&["a", "c", "d"], &["b/"]), Some(vec!["c".to_owned()]));
        assert_eq!(cut(&["z"], &["a/", "b/", "c/"]), None, "there is no object to begin behind");
    }

    #[test]
    fn a_store_that_begins_elsewhere_than_it_was_asked_is_found_out() {
        let key = Key::new("c");
        assert!(is_behind(&listed(&["d", "e"], &["a/"]), &key));
        assert!(!is_behind(&listed(&["a", "b"], &[]), &key));
        assert!(!is_behind(&listed(&["c", "d"], &[]), &key));
    }

    #[test]
    fn a_store_that_does_not_sort_is_asked_page_by_page() {
        assert_eq!(cut(&["b", "a", "c", "d"], &[]), None);
        assert_eq!(cut(&["a", "b/", "a2", "c", "d", "e"], &[]), Some(vec!["c".to_owned()]));
    }

    struct Listed {
        bucket: Arc<Bucket>,
        there: std::collections::BTreeSet<String>,
    }

    impl Listed {
        fn new() -> Self {
            let clock = Arc::new(SystemClock);
            let store = MemoryStore::new(clock.clone());
            let bucket = Bucket::new(store, clock, Duration::from_secs(1));
            Self { bucket, there: Default::default() }
        }

        async fn with_files(count: usize) -> Self {
            let mut here = Self::new();
            for i in 0..count {
                here.put(format!("d/f{i:05}")).await;
            }
            here
        }

        async fn put(&mut self, key: String) {
            let (body, condition) = (Bytes::from_static(b"x"), Condition::Always);
            let (at, metadata) = (Key::new(&*key), Metadata::new());
            self.bucket.put(&at, body, &condition, &metadata).await.unwrap();
            self.there.insert(key);
        }

        async fn delete(&mut self, key: String) {
            self.bucket.delete(&Key::new(&*key), None).await.unwrap();
            assert!(self.there.remove(&key), "{key} was there");
        }

        /// Lists, compares, and returns the requests it took.
        async fn list(&self) -> u64 {
            let before = self.bucket.counts().list;
            let page = self.bucket.list_all("d/", true).await.unwrap();
            let objects: Vec<&str> = page.objects.iter().map(|o| o.key.as_str()).collect();
            let files: Vec<&str> =
                self.there.iter().map(|k| &**k).filter(|k| k.matches('/').count() == 1).collect();
            assert_eq!(objects, files);
            let told: std::collections::BTreeSet<&str> =
                page.prefixes.iter().map(String::as_str).collect();
            let below = |k: &String| k.match_indices('/').nth(1).map(|(at, _)| k[..=at].to_owned());
            let directories: std::collections::BTreeSet<String> =
                self.there.iter().filter_map(below).collect();
            assert!(directories.iter().map(String::as_str).eq(told));
            self.bucket.counts().list - before
        }
    }

    /// What its first page says of the others is not so.
    #[tokio::test]
    async fn a_listing_that_is_guessed_wrongly_is_complete_and_costs_no_more_than_a_few_requests() {
        let few = |n: u64| if n < 1100 { n } else { 900_000_000_000 + n };
        let sparse = |n: u64| if n < 1500 { n } else { 1_000_000 * n };
        let dense = |n: u64| if n < 1500 { 1_000_000 * n } else { 1_500_000_000 + n };
        let third = |n: u64| if n < 1000 { n } else { 3 * n };
        for (count, number) in [
            (1200, few as fn(u64) -> u64),
            (4500, sparse),
            (4500, dense),
            (4500, third),
            (4500, |n| n * n),
            (4500, |n| n),
        ] {
            let mut here = Listed::new();
            for n in 0..count {
                here.put(format!("d/{:012}.pt", number(n))).await;
                if n % 50 == 0 {
                    here.put(format!("d/{:012}.pt/below", number(n))).await;
                }
            }
            let (first, second) = (here.list().await, here.list().await);
            assert!(first <= second + 5, "{first} and then {second}");
        }
    }

    /// What was left of a directory stood behind the end of a segment, whose page was the last:
    /// nothing of it was listed, and rmdir removed it.
    #[tokio::test]
    async fn a_listing_of_which_little_is_left_tells_that() {
        let mut here = Listed::with_files(3500).await;
        here.list().await;
        for i in (0..2000).chain(2600..3500) {
            here.delete(format!("d/f{i:05}")).await;
        }
        here.list().await;
    }

    #[tokio::test]
    async fn a_listing_in_segments_is_complete_whatever_changed_since_the_last() {
        let mut here = Listed::with_files(3500).await;
        assert!((4..=7).contains(&here.list().await), "three guesses more at most");
        assert_eq!(here.list().await, 4, "a request a page, side by side");
        here.put("d/f00500a".to_owned()).await;
        assert_eq!(here.list().await, 5, "the first segment has more than a page");
        assert_eq!(here.list().await, 4);
        for i in 900..2100 {
            here.delete(format!("d/f{i:05}")).await; // ends of segments, and a whole one
        }
        here.list().await;
        assert_eq!(here.list().await, 3);
        for i in 0..1300 {
            here.put(format!("d/f00{i:04}/below")).await; // directories between the files
        }
        for i in 0..1500 {
            here.put(format!("d/g{i:05}")).await; // behind the last end
        }
        here.list().await;
        here.list().await;
        for i in 2100..3500 {
            here.delete(format!("d/f{i:05}")).await;
        }
        here.list().await;
        here.list().await;
    }
}
