//! What listings told of a directory's names: what stands at them, and at which nothing does. And
//! in which order names are asked for and made, by which a page is chosen that tells of the next.
//!
//! Pure. Owns which names a page tells of. Does not own how long that lasts (`fs`).

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use super::{Asked, Remote};
use crate::types::Name;

/// Names remembered at which files were made: twice as many as threads are likely to make at once.
const MAKES_KEPT: usize = 32;

/// What one fresh LIST of a directory told of its children, for the lookups that follow it.
#[derive(Debug)]
pub struct Seen {
    pub asked: Asked,
    pub entries: HashMap<Name, SeenEntry>,
    /// That was all there was.
    pub whole: bool,
    /// Where it was not, what else is told: that nothing stands at other names of this.
    pub span: Option<Span>,
}

impl Seen {
    pub fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.asked.at)
    }

    /// Whether something stands at a name; `None`: it does not tell.
    pub fn tells(&self, name: &Name) -> Option<bool> {
        let told = self.whole || self.span.as_ref().is_some_and(|span| span.covers(name));
        told.then(|| self.entries.contains_key(name))
    }
}

/// What a page of a listing was asked for: what is behind a name, up to the page's last key.
#[derive(Debug)]
pub struct Span {
    pub behind: Option<Name>,
    /// Without the directory's own key. `None`: there was no more.
    pub last: Option<String>,
}

impl Span {
    /// Whether the page has both keys of a name: that of a file, and that of a directory, which
    /// stands behind all that begins with the name and a byte less than `/`, or, as some stores
    /// list it, where a file of that name would.
    fn covers(&self, name: &Name) -> bool {
        let begins = self.behind.as_ref().is_none_or(|behind| name > behind);
        begins
            && self.last.as_ref().is_none_or(|last| {
                let by_key = format!("{name}/").as_str() <= last.as_str();
                let by_name = name.as_str() < last.trim_end_matches('/');
                by_key && by_name && !last.starts_with(name.as_str())
            })
    }
}

/// Names at which files were made of late, and when a page of the listing may be asked for them.
#[derive(Debug, Default)]
pub struct Makes {
    recent: VecDeque<Name>,
    pub next: Option<Instant>,
}

impl Makes {
    /// Takes a name.
    pub fn note(&mut self, name: &Name) {
        if self.recent.back() == Some(name) {
            return;
        }
        if self.recent.len() == MAKES_KEPT {
            self.recent.pop_front();
        }
        self.recent.push_back(name.clone());
    }

    /// The name behind which those are that come next, if they come about in their order: some
    /// before this one, since several threads make them.
    pub fn behind(&self, name: &Name) -> Option<Name> {
        let mut before: Vec<&Name> = self.recent.iter().filter(|other| *other < name).collect();
        before.sort_unstable();
        let back = before.len().saturating_sub(MAKES_KEPT / 2);
        before.get(back).map(|name| Name::clone(name))
    }
}

#[derive(Clone, Debug)]
pub enum SeenEntry {
    File(Remote),
    Directory,
}

/// Names that are asked for one after another in their order, as a listing has them.
#[derive(Debug, Default)]
pub struct Walk {
    last: Option<Name>,
    steps: usize,
}

impl Walk {
    /// Takes the next name; how many have come in order.
    pub fn step(&mut self, name: &Name) -> usize {
        let goes_on = self.last.as_ref().is_some_and(|last| name > last);
        self.steps = if goes_on { self.steps + 1 } else { 0 };
        self.last = Some(name.clone());
        self.steps
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        Name::new(text).unwrap()
    }

    fn covers(behind: Option<&str>, last: Option<&str>, asked: &str) -> bool {
        Span { behind: behind.map(name), last: last.map(str::to_owned) }.covers(&name(asked))
    }

    #[test]
    fn a_page_tells_of_what_is_behind_its_start() {
        assert!(covers(Some("f10"), None, "f11"));
        assert!(covers(Some("f10"), None, "f100"));
        assert!(!covers(Some("f10"), None, "f10"));
        assert!(!covers(Some("f10"), None, "f1"));
        assert!(covers(None, None, "a"));
    }

    #[test]
    fn a_page_that_is_cut_tells_of_what_both_keys_of_a_name_are_in() {
        assert!(covers(None, Some("f10"), "f0"));
        assert!(!covers(None, Some("f10"), "f11"));
        // `f1/` would have been behind it, or is before it where `f1` itself is.
        assert!(!covers(None, Some("f1!"), "f1"));
        assert!(!covers(None, Some("f10"), "f1"));
        assert!(!covers(None, Some("f10"), "f10"));
        // A directory is told by its prefix, before `f1-x` or behind it.
        assert!(!covers(None, Some("f1/"), "f1"));
        assert!(!covers(None, Some("f1/"), "f1-x"));
        assert!(!covers(None, Some("f1/"), "f10"));
        assert!(covers(None, Some("f1/"), "f0"));
    }

    #[test]
    fn the_page_to_ask_for_begins_some_names_before() {
        let mut makes = Makes::default();
        assert_eq!(makes.behind(&name("f00")), None);
        for i in 0..100 {
            makes.note(&name(&format!("f{i:02}")));
        }
        assert_eq!(makes.behind(&name("f99")), Some(name("f83")));
        assert_eq!(makes.behind(&name("f70")), Some(name("f68")));
        assert_eq!(makes.behind(&name("f68")), None);
    }
}
