//! Renames of directories that are in the bucket: [`next`] says, of what a mount wants and has seen
//! of one rename, what to ask of the store now; [`Decided`] says what anybody may show.
//!
//! Owns every decision from the first record to the last. Does not own requests, waiting, ids, nor
//! what a directory looks like to programs (`fs`). Pure.
//!
//! # How
//!
//! ```text
//!  point                 survey                       decide            copy, delete        close
//!  from, into, mark ---> mark, LIST both ends  -----> TO: move -------> every object -----> moved
//!       |                     | rival, not empty       \                by anybody
//!       |                     +--> withdraw             TO: void
//!       +--- whoever began it is gone for a lease ----->+--> nothing moved
//! ```
//!
//! Until the `to` record there is the old directory; from it on there is the new one, with every
//! object that it lists: one that is not copied yet is read at its old key, under its ETag. Nothing
//! waits for the copies but who changes one of these objects or makes something at the old name.
//!
//! # Invariants
//!
//! Each with the interleaving that it is there for. `tests/moves_model.rs` runs them all.
//!
//! 1. **One `to` for each rename, by create-if-absent; only who began it writes `move`.** *Bad: a
//!    rescuer gives up what it finds undecided; the mover's own late request decides.*
//! 2. **Point, then survey, then decide; whoever finds another's pointer withdraws.** *Bad: two
//!    nodes rename one directory to two names; both list it; it has both.* The same between a
//!    rename and a transaction: the head is created before its look, the pointer before its survey.
//! 3. **A copy takes only the listed version of its source, and only a free name.** *Bad: copied
//!    late over a file that was written in the new directory since.*
//! 4. **A source goes only when its copy was made or refused, under its ETag.** *Bad: it was
//!    written meanwhile; the new content is deleted.* It stays under the old name then.
//! 5. **What is unlinked in the new directory goes after its source.** *Bad: unlinked, then copied
//!    again by a helper that was slow.*
//! 6. **`moved` comes when every source is spent, and pointers go after it.** Until then nothing is
//!    made at the old name. *Bad: the pointer goes first; an observer shows the rest of the old
//!    directory.*
//! 7. **Records that decide go an hour later: lists, then `to`, then `moved`.** *Bad: `moved` goes
//!    first, and the rename seems to be under way again.*
//! 8. **Sources go a while after the decision:** longer than any mount believes a name without
//!    asking. *Bad: it knows the old directory still, and lists what is left of it.*
//!
//! # Assumed of the store
//!
//! As in `protocol`; and a copy is one request that reads and writes at one time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::record::{Nonce, Ruling, Suffix};
use crate::types::ETag;

/// What a mount wants of a rename.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Intent {
    /// Decide it. Only of who began it; `nonce` is what its `to` has.
    Move { nonce: Nonce },
    /// Copy what a decision leaves to copy.
    Copies,
    /// Do all that it leaves to do. Anybody may at any time.
    Finish,
    /// Do that of one object, which is about to be changed or removed.
    Settle(Suffix),
    /// End what whoever began it will not.
    GiveUp { nonce: Nonce },
}

/// The one next thing. All names of one action in any order or at once.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Action {
    /// LIST the records at the destination, and GET the decision and its lists if they are new.
    Look,
    /// PUT if absent of `from` and `into`, and of the mark in the source.
    Point,
    /// PUT of the mark in the destination; LIST both directories and the records at both ends.
    Survey,
    /// PUT if absent of `to`, after its lists.
    Decide(Ruling, Nonce),
    /// Copy each, of its listed version, to where nothing is. 1 request each; 3 where a store
    /// copies under no condition.
    Copy(Vec<Suffix>),
    /// DELETE each source that still is its listed version; not before invariant 8 lets it.
    Delete(Vec<Suffix>),
    /// DELETE the marks, and what else the source is kept by. 1 LIST.
    Sweep,
    /// PUT if absent of `moved`.
    Close,
    /// DELETE the marks, then `from` and `into`.
    Unpoint,
    Stop(Stop),
}

/// How an intent ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stop {
    /// It is decided: the directory has its new name.
    Decided,
    /// Others write in it, or rename it or something in it. Nothing moved.
    Busy,
    /// The destination is not empty. Nothing moved.
    NotEmpty,
    /// It was given up by others. Nothing moved.
    Void,
    /// Nothing is left to do.
    Done,
    /// Nobody decided it yet.
    Undecided,
}

/// What a `to` says, with its lists.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Decided {
    pub ruling: Ruling,
    pub nonce: Nonce,
    pub entries: BTreeMap<Suffix, ETag>,
}

impl Decided {
    /// Whether an object of the old directory is shown in the new one while nothing stands there.
    pub fn moves(&self, name: &str, version: &ETag) -> bool {
        self.entries.get(name) == Some(version)
    }
}

/// What the records say.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Records {
    pub decided: Option<Arc<Decided>>,
    /// There is a `moved`.
    pub done: bool,
}

/// Where a rename stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Phase {
    /// The old directory is there.
    Undecided,
    /// It always will be.
    Void,
    /// The new directory is there, and the old one is not.
    Decided,
    /// The keys speak for themselves.
    Done,
}

/// What an observer makes of the keys in a phase. What was read of them holds if this was the same
/// before and after.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Shows {
    /// The keys as they stand.
    Old,
    /// Nothing of the old directory; of the new one also what [`Decided::moves`].
    Both,
    /// The keys as they stand.
    New,
}

impl Phase {
    pub fn shows(self) -> Shows {
        match self {
            Phase::Undecided | Phase::Void => Shows::Old,
            Phase::Decided => Shows::Both,
            Phase::Done => Shows::New,
        }
    }
}

impl Records {
    pub fn phase(&self) -> Phase {
        match &self.decided {
            _ if self.done => Phase::Done,
            None => Phase::Undecided,
            Some(decided) if decided.ruling == Ruling::Void => Phase::Void,
            Some(_) => Phase::Decided,
        }
    }
}

/// What a survey found.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Survey {
    pub entries: BTreeMap<Suffix, ETag>,
    /// Another rename, or a transaction, of anything here.
    pub rival: bool,
    /// Something is in the destination.
    pub taken: bool,
}

/// What became of a copy or a delete.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Reply {
    /// It is done.
    Done,
    /// It was refused: something stands there already, or is not what it was, or is gone.
    Refused,
    /// No answer.
    Lost,
}

/// What a mount has seen of one rename.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Seen {
    /// Of the last look; none after a request without an answer.
    records: Option<Records>,
    pointed: bool,
    survey: Option<Survey>,
    copied: BTreeSet<Suffix>,
    spent: BTreeSet<Suffix>,
    swept: bool,
    unpointed: bool,
}

impl Seen {
    pub fn records(&self) -> Option<&Records> {
        self.records.as_ref()
    }

    pub fn looked(&mut self, records: Records) {
        self.records = Some(records);
    }

    /// The next step looks first.
    pub fn forget(&mut self) {
        self.records = None;
    }

    /// Takes what a survey found; it tells as well that nothing is decided.
    pub fn surveyed(&mut self, survey: Survey) {
        self.survey = Some(survey);
        self.records.get_or_insert_default();
    }

    pub fn survey(&self) -> Option<&Survey> {
        self.survey.as_ref()
    }

    pub fn spent(&self, name: &str) -> bool {
        self.spent.contains(name)
    }

    /// Takes the answer to one object's copy.
    pub fn copied(&mut self, name: &Suffix, reply: &Reply) {
        if *reply != Reply::Lost {
            self.copied.insert(name.clone());
        }
    }

    /// Takes the answer to one source's delete.
    pub fn deleted(&mut self, name: &Suffix, reply: &Reply) {
        if *reply != Reply::Lost {
            self.spent.insert(name.clone());
        }
    }

    /// Takes the answer to any other request.
    pub fn answered(&mut self, action: &Action, reply: &Reply) {
        match action {
            Action::Point => self.pointed |= *reply != Reply::Lost,
            Action::Decide(ruling, nonce) if *reply == Reply::Done => {
                let survey = self.survey.take().unwrap_or_default();
                let decided =
                    Decided { ruling: *ruling, nonce: *nonce, entries: survey.entries.clone() };
                self.survey = Some(Survey { entries: BTreeMap::new(), ..survey });
                self.records = Some(Records { decided: Some(Arc::new(decided)), done: false });
            }
            Action::Close if *reply != Reply::Lost => {
                self.records.get_or_insert_default().done = true;
            }
            // Whether it is decided, and by whom, a look tells.
            Action::Decide(..) | Action::Close => self.records = None,
            Action::Sweep => self.swept |= *reply != Reply::Lost,
            Action::Unpoint => self.unpointed |= *reply != Reply::Lost,
            _ => {}
        }
    }
}

/// What to do next. Costs nothing by itself.
pub fn next(intent: &Intent, seen: &Seen) -> Action {
    match intent {
        Intent::Move { nonce } => decide(seen, *nonce),
        Intent::Finish => match &seen.records {
            None => Action::Look,
            Some(records) => finish(seen, records),
        },
        Intent::Copies => match &seen.records {
            None => Action::Look,
            Some(records) => match finish(seen, records) {
                copy @ Action::Copy(_) => copy,
                _ => Action::Stop(Stop::Done),
            },
        },
        Intent::Settle(name) => settle(seen, name),
        Intent::GiveUp { nonce } => match &seen.records {
            None => Action::Look,
            Some(records) if records.phase() == Phase::Undecided => {
                Action::Decide(Ruling::Void, *nonce)
            }
            Some(records) => finish(seen, records),
        },
    }
}

fn decide(seen: &Seen, nonce: Nonce) -> Action {
    if !seen.pointed {
        return Action::Point;
    }
    let Some(survey) = &seen.survey else { return Action::Survey };
    let refused = match (survey.rival, survey.taken) {
        (true, _) => Some(Stop::Busy),
        (false, true) => Some(Stop::NotEmpty),
        (false, false) => None,
    };
    if let Some(stop) = refused {
        return withdraw(seen, stop);
    }
    match &seen.records {
        None => Action::Look,
        Some(records) => match &records.decided {
            None if records.done => withdraw(seen, Stop::Void),
            None => Action::Decide(Ruling::Move, nonce),
            Some(decided) if decided.nonce == nonce => Action::Stop(Stop::Decided),
            Some(_) => withdraw(seen, Stop::Void),
        },
    }
}

fn withdraw(seen: &Seen, stop: Stop) -> Action {
    if seen.unpointed { Action::Stop(stop) } else { Action::Unpoint }
}

fn finish(seen: &Seen, records: &Records) -> Action {
    match (records.phase(), &records.decided) {
        (Phase::Decided, Some(decided)) => finish_decided(seen, decided),
        (Phase::Void, _) => withdraw(seen, Stop::Void),
        (Phase::Done, _) => withdraw(seen, Stop::Done),
        _ => Action::Stop(Stop::Undecided),
    }
}

fn finish_decided(seen: &Seen, decided: &Decided) -> Action {
    let left = |done: &BTreeSet<Suffix>| -> Vec<Suffix> {
        decided.entries.keys().filter(|name| !done.contains(*name)).cloned().collect()
    };
    let uncopied: Vec<Suffix> =
        left(&seen.copied).into_iter().filter(|name| !seen.spent.contains(name)).collect();
    if !uncopied.is_empty() {
        return Action::Copy(uncopied);
    }
    let unspent = left(&seen.spent);
    if !unspent.is_empty() {
        return Action::Delete(unspent);
    }
    if seen.swept { Action::Close } else { Action::Sweep }
}

fn settle(seen: &Seen, name: &Suffix) -> Action {
    let Some(records) = &seen.records else { return Action::Look };
    let decided = match (records.phase(), &records.decided) {
        (Phase::Decided, Some(decided)) => decided,
        _ => return Action::Stop(Stop::Done),
    };
    if !decided.entries.contains_key(name) || seen.spent.contains(name) {
        return Action::Stop(Stop::Done);
    }
    match seen.copied.contains(name) {
        true => Action::Delete(vec![name.clone()]),
        false => Action::Copy(vec![name.clone()]),
    }
}
