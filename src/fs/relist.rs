//! Many known names of one directory that are asked for one after another, as `ls -l` of a large
//! one does once their time is up: a listing answers for all of them, or a page of it for the next
//! thousand.
//!
//! Owns when that pays, and the page; of two that walk through one directory at a time it serves
//! neither. Does not own the whole listing (`directories`).

use super::Fs;
use crate::namespace::inode::Inode;
use crate::namespace::listing::Listing;
use crate::namespace::seen::{Seen, SeenEntry, Span, Walk};
use crate::types::{Ino, Key, Kind, Name};

/// Names asked for singly, for each page that a listing takes, before it is made: with fewer the
/// listing costs more than it spares.
pub(super) const ASKS_PER_PAGE: usize = 4;
/// Pages of a whole listing that is made for single names: a longer one is old before it has come.
pub(super) const PAGES_MAX: usize = 16;
/// Entries of a page.
const PAGE_ENTRIES: u16 = 1000;
/// Names asked for in their order before a page is: at random so many never come so.
const STEPS_MIN: usize = 16;

/// Pages that a listing of so many entries takes.
pub(super) fn pages_of(entries: usize) -> usize {
    entries / usize::from(PAGE_ENTRIES) + 1
}

/// What answers for a name at the least cost.
enum Pays {
    Asking,
    Whole,
    /// The page behind this name; without one the first.
    Page(Option<Name>),
}

impl Fs {
    /// The inode at a name that the last listing had, out of a new one; `None`: ask for the name
    /// itself. One LIST at a time is made so, and whoever waited takes its answer.
    pub(super) async fn answer_by_listing(&self, parent: Ino, name: &Name) -> Option<Ino> {
        let pays = self.what_pays(parent, name);
        if matches!(pays, Pays::Asking) {
            return None;
        }
        let _turn = self.relisting.lock().await;
        if let Some(ino) = self.known(parent, name) {
            return Some(ino);
        }
        // What fails here is asked for again, and answered, by the name itself.
        match pays {
            Pays::Asking => return None,
            Pays::Whole => drop(self.list_directory(parent).await),
            Pays::Page(before) => drop(self.learn_page(parent, before).await),
        }
        let found = self.known(parent, name);
        if found.is_none()
            && let Some(directory) = self.namespace.lock().directory_mut(parent)
        {
            directory.walk = Walk::default(); // it did not pay: not at the very next name again
        }
        found
    }

    fn what_pays(&self, parent: Ino, name: &Name) -> Pays {
        let pages_pay = self.bucket.lists_behind() && self.moves.is_idle();
        if self.ttl().is_zero() {
            return Pays::Asking; // an answer is for one question alone
        }
        let mut namespace = self.namespace.lock();
        let is_link = |child: &Inode| child.kind == Kind::Symlink;
        if namespace.child(parent, name).is_some_and(is_link) {
            return Pays::Asking; // which is always asked for
        }
        let Some(directory) = namespace.directory_mut(parent) else { return Pays::Asking };
        let Some(seen) = &directory.seen else { return Pays::Asking };
        if !matches!(seen.entries.get(name), Some(SeenEntry::File(_))) {
            return Pays::Asking;
        }
        let pages = pages_of(seen.entries.len());
        if pages <= PAGES_MAX {
            directory.asked_singly += 1;
            return match directory.asked_singly > ASKS_PER_PAGE * pages {
                true => Pays::Whole,
                false => Pays::Asking,
            };
        }
        if !pages_pay || directory.walk.step(name) < STEPS_MIN {
            return Pays::Asking;
        }
        let files = seen.entries.iter().filter(|(_, seen)| matches!(seen, SeenEntry::File(_)));
        Pays::Page(files.map(|(other, _)| other).filter(|other| *other < name).max().cloned())
    }

    /// Learns the page of a directory that begins behind a name: 2 LISTs, and what new records
    /// cost. `None`: it can't be had, or a rename on its way may bring names from elsewhere.
    pub(super) async fn learn_page(&self, ino: Ino, before: Option<Name>) -> Option<()> {
        let (prefix, asked) = {
            let namespace = self.namespace.lock();
            (namespace.key(ino)?, namespace.asked(self.clock.now()))
        };
        let renames = self.moves.epoch();
        let below = prefix.as_str();
        let page = async {
            match &before {
                Some(name) => {
                    let start = Key::new(format!("{below}{name}"));
                    self.bucket.list_behind(below, true, &start, PAGE_ENTRIES).await
                }
                None => self.bucket.list(below, true, None, PAGE_ENTRIES).await,
            }
        };
        // It does not show whether there are records: one may say since that a name is a link.
        let (page, records) = tokio::join!(page, self.load_records(ino));
        let (page, ()) = (page.ok()?, records.ok()?);
        if !self.moves.is_idle() || self.moves.epoch() != renames {
            return None;
        }
        // A full one may be cut, whatever it says.
        let cut = page.next.is_some() || page.entries() >= usize::from(PAGE_ENTRIES);
        let last = match cut {
            true => Some(page.last()?.as_str().strip_prefix(below)?.to_owned()),
            false => None,
        };
        let mut listing = Listing::default();
        listing.add(below, page);
        if let Some(last) = &last {
            // `f/`, which hides `f`, stands behind all that begins with `f` and a lesser byte.
            listing.entries.retain(|name, _| !last.starts_with(name.as_str()));
        }
        let span = Some(Span { behind: before, last });
        let mut namespace = self.namespace.lock();
        let inode = namespace.get_mut(ino)?;
        if listing.exists() {
            inode.checked = inode.checked.max(Some(asked.at)); // it is there, and need not be asked
        }
        listing.newest.into_iter().for_each(|newest| inode.see_newest(newest));
        if inode.changed > asked.epoch {
            return None;
        }
        inode.directory.page = Some(Seen { asked, entries: listing.entries, whole: false, span });
        Some(())
    }
}
