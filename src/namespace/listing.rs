//! From a LIST page to the entries of a directory: which keys POSIX can name, and what else the
//! page tells of the directory.
//!
//! Pure. What can't be named is left out and reported, never an error: one odd key must not hide
//! its siblings.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::time::{Duration, SystemTime};

use super::Remote;
use super::seen::SeenEntry;
use crate::bucket::{ListedObject, Page};
use crate::types::{BadName, CONTROL_DIR, ETag, Key, Name};

/// One level of a bucket, below a prefix that ends in `/` or is empty.
#[derive(Debug, Default)]
pub struct Listing {
    pub entries: HashMap<Name, SeenEntry>,
    /// Whether `<dir>/` itself is an object.
    pub marker: bool,
    /// Whether anything lies under `<dir>/.trialfs/`.
    pub control: bool,
    /// The youngest file or marker.
    pub newest: Option<SystemTime>,
    /// Keys that POSIX can't name, and objects that a directory of the same name hides.
    pub odd: Vec<String>,
}

impl Listing {
    /// Takes one page of a LIST with delimiter below `prefix`.
    pub fn add(&mut self, prefix: &str, page: Page) {
        for object in page.objects {
            self.add_object(prefix, object);
        }
        for directory in page.prefixes {
            self.add_prefix(prefix, directory);
        }
    }

    fn add_object(&mut self, prefix: &str, object: ListedObject) {
        let Some(rest) = object.key.as_str().strip_prefix(prefix) else {
            return self.odd.push(object.key.as_str().to_owned());
        };
        let modified = whole_seconds(object.modified);
        if rest.is_empty() {
            self.marker = true;
            self.newest = self.newest.max(Some(modified));
            return;
        }
        if let Some(directory) = rest.strip_suffix('/') {
            // Some stores list the marker of an empty directory as an object of the parent.
            return self.add_directory(object.key.as_str(), directory);
        }
        let name = match Name::new(rest) {
            Ok(name) => name,
            Err(BadName::Reserved) => return self.control = true,
            Err(_) => return self.odd.push(object.key.as_str().to_owned()),
        };
        self.newest = self.newest.max(Some(modified));
        let remote = listed(&object, modified, None);
        match self.entries.entry(name) {
            Entry::Occupied(_) => self.odd.push(object.key.as_str().to_owned()),
            Entry::Vacant(free) => drop(free.insert(SeenEntry::File(remote))),
        }
    }

    fn add_prefix(&mut self, prefix: &str, key: String) {
        let rest = key.strip_prefix(prefix).and_then(|rest| rest.strip_suffix('/'));
        match rest {
            Some(name) => self.add_directory(&key, name),
            None => self.odd.push(key),
        }
    }

    fn add_directory(&mut self, key: &str, name: &str) {
        match Name::new(name) {
            Ok(name) => {
                let hidden = self.entries.insert(name, SeenEntry::Directory);
                if let Some(SeenEntry::File(_)) = hidden {
                    self.odd.push(key.trim_end_matches('/').to_owned());
                }
            }
            Err(BadName::Reserved) => self.control |= name == CONTROL_DIR,
            Err(_) => self.odd.push(key.to_owned()),
        }
    }

    /// Takes a page of the directory that this one is the new name of: what `moves` of it is here
    /// where nothing stands yet. `moves` is asked with a key and its version, none for a directory.
    pub fn add_moved(
        &mut self,
        prefix: &str,
        page: Page,
        moves: impl Fn(&str, Option<&ETag>) -> bool,
    ) {
        for object in page.objects {
            let key = object.key.as_str().to_owned();
            let Some(rest) = key.strip_prefix(prefix) else { continue };
            if !moves(&key, Some(&object.etag)) {
                continue;
            }
            let modified = whole_seconds(object.modified);
            self.newest = self.newest.max(Some(modified));
            if rest.is_empty() {
                self.marker = true;
            } else if let Ok(name) = Name::new(rest.trim_end_matches('/')) {
                let seen = match rest.ends_with('/') {
                    true => SeenEntry::Directory,
                    false => {
                        SeenEntry::File(listed(&object, modified, Some(Key::new(key.clone()))))
                    }
                };
                self.entries.entry(name).or_insert(seen);
            }
        }
        for key in page.prefixes {
            let rest = key.strip_prefix(prefix).and_then(|rest| rest.strip_suffix('/'));
            let name = rest.filter(|_| moves(&key, None)).map(Name::new);
            match name {
                Some(Ok(name)) => drop(self.entries.entry(name).or_insert(SeenEntry::Directory)),
                Some(Err(BadName::Reserved)) => self.control = true,
                _ => {}
            }
        }
    }

    /// Whether there is such a directory at all. Records alone are none: one may arrive late, after
    /// another node removed the directory.
    pub fn exists(&self) -> bool {
        self.marker || !self.entries.is_empty() || !self.odd.is_empty()
    }
}

fn listed(object: &ListedObject, modified: SystemTime, at: Option<Key>) -> Remote {
    Remote { kind: None, etag: object.etag.clone(), size: object.size, modified, at, copy_of: None }
}

/// HEAD tells times in seconds where LIST may tell milliseconds; both must tell the same.
pub fn whole_seconds(time: SystemTime) -> SystemTime {
    match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(age) => SystemTime::UNIX_EPOCH + Duration::from_secs(age.as_secs()),
        Err(_) => SystemTime::UNIX_EPOCH,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(key: &str) -> ListedObject {
        let modified = SystemTime::UNIX_EPOCH + Duration::from_millis(1_500);
        ListedObject { key: Key::new(key), size: 3, etag: ETag("e".into()), modified }
    }

    fn listing(prefix: &str, objects: &[&str], prefixes: &[&str]) -> Listing {
        let page = Page {
            objects: objects.iter().map(|key| object(key)).collect(),
            prefixes: prefixes.iter().map(|p| p.to_string()).collect(),
            next: None,
        };
        let mut listing = Listing::default();
        listing.add(prefix, page);
        listing
    }

    fn names(listing: &Listing) -> Vec<&str> {
        let mut names: Vec<_> = listing.entries.keys().map(Name::as_str).collect();
        names.sort();
        names
    }

    #[test]
    fn odd_keys_never_hide_their_siblings() {
        let keys = ["d/ok", "d/new\nline", "d/.."];
        let read = listing("d/", &keys, &["d//", "d/sub/", "d/./"]);
        assert_eq!(names(&read), ["ok", "sub"]);
        assert_eq!(read.odd.len(), 4);
    }

    #[test]
    fn a_directory_hides_the_object_of_its_name_in_either_order() {
        let read = listing("", &["f", "g"], &["f/"]);
        assert!(matches!(read.entries[&Name::new("f").unwrap()], SeenEntry::Directory));
        assert_eq!(read.odd, ["f"]);
        let mut reverse = listing("", &[], &["f/"]);
        reverse.add("", Page { objects: vec![object("f")], ..Page::default() });
        assert!(matches!(reverse.entries[&Name::new("f").unwrap()], SeenEntry::Directory));
        assert_eq!(reverse.odd, ["f"]);
    }

    #[test]
    fn markers_and_control_directories_are_known_and_not_shown() {
        let read = listing("d/", &["d/", "d/x"], &["d/.trialfs/"]);
        assert!(read.marker && read.control && read.exists());
        assert_eq!(names(&read), ["x"]);
        assert_eq!(read.newest, Some(SystemTime::UNIX_EPOCH + Duration::from_secs(1)));
        assert!(!Listing::default().exists());
    }
}
