//! The order in which acknowledged files become visible: which may go to the bucket now.
//!
//! Owns the decision. Does not own the uploads, their number, nor what is durable (`journal`).
//! Pure.
//!
//! What must hold:
//! 1. A file shows after everything that was closed before it was opened to be written. Files that
//!    were open at the same time show in any order.
//! 2. A commit record (a pointer to other files) shows after everything that was closed before it
//!    was closed.
//! 3. Two versions of one key show in the order of their closes.
//! 4. What goes up hidden, for a checkpoint directory to show, neither waits nor is waited for.
//! 5. What can't be uploaded holds nobody up, for its user has been told; but a commit record does
//!    not pass a failed file below its own directory, as it may point there: it fails as well.
//! 6. A later version of a file goes up in the place of an earlier one only where nothing was
//!    closed between them: whoever waits for the earlier one waits for it, and it for nobody who
//!    does. So every file waits for earlier places alone, and no two for each other.
//! 7. What rests goes up as soon as another file waits for it.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use super::intent::CloseId;
use crate::types::Key;

/// What a file is to others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Data,
    /// A trainer's commit record: it points to other files.
    Pointer,
    /// It goes up without being seen, whenever: its checkpoint directory shows it.
    Hidden,
}

/// What may be done now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    Upload(CloseId),
    /// What it may point to failed.
    Refuse(CloseId),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Waiting,
    /// Not yet, lest every line that is added to a log goes up by itself.
    Resting,
    Running,
    Failed,
}

#[derive(Debug, Clone)]
struct Entry {
    key: Key,
    /// Everything closed up to here shows before.
    after: CloseId,
    role: Role,
    state: State,
}

impl Entry {
    fn is_awaited(&self) -> bool {
        self.state != State::Failed && self.role != Role::Hidden
    }
}

/// Closed files that are not in the bucket, by the order of their closes.
#[derive(Debug, Default)]
pub struct Queue {
    entries: BTreeMap<CloseId, Entry>,
    /// Those that rest, and those that run: a few of each.
    resting: BTreeSet<CloseId>,
    running: BTreeSet<CloseId>,
    last: CloseId,
}

impl Queue {
    /// An empty queue whose closes come after `last`.
    pub fn after(last: CloseId) -> Self {
        Self { last, ..Self::default() }
    }

    /// The last close so far: what a file that is opened now comes after.
    pub fn now(&self) -> CloseId {
        self.last
    }

    /// The number of a close that happens now.
    pub fn number(&mut self) -> CloseId {
        self.last = CloseId(self.last.0 + 1);
        self.last
    }

    /// A file is acknowledged as `id`; it was opened when `opened` was the last close.
    pub fn closed(&mut self, id: CloseId, key: Key, opened: CloseId, role: Role) {
        let before = CloseId(id.0.saturating_sub(1));
        let after = if role == Role::Pointer { before } else { opened.min(before) };
        self.last = self.last.max(id);
        if role != Role::Hidden {
            let resting = self.resting.range(..=after).copied();
            let awaited: Vec<CloseId> = resting.filter(|id| self.entries[id].key != key).collect();
            awaited.into_iter().for_each(|id| self.wake(id));
        }
        self.entries.insert(id, Entry { key, after, role, state: State::Waiting });
    }

    /// Lets a file rest that was not begun, until [`Queue::wake`] or until another waits for it.
    /// False: another does.
    pub fn rest(&mut self, id: CloseId) -> bool {
        let Some(entry) = self.entries.get(&id) else { return false };
        let waits = |other: &Entry| other.after >= id && other.role != Role::Hidden;
        let may = entry.state == State::Waiting && entry.role != Role::Hidden;
        if !may || self.entries.range(id..).any(|(_, other)| waits(other)) {
            return false;
        }
        self.set(id, State::Resting);
        true
    }

    pub fn wake(&mut self, id: CloseId) {
        if self.resting.contains(&id) {
            self.set(id, State::Waiting);
        }
    }

    /// Somebody waits for an upload.
    pub fn wake_all(&mut self) {
        std::mem::take(&mut self.resting).into_iter().for_each(|id| self.set(id, State::Waiting));
    }

    /// A later version of a file goes up in the place of an earlier one, which is not begun, and
    /// has its number from now on. False, and nothing changes: others come between them, or one of
    /// the two was begun.
    pub fn take_place(&mut self, earlier: CloseId, later: CloseId) -> bool {
        let (Some(old), Some(new)) = (self.entries.get(&earlier), self.entries.get(&later)) else {
            return false;
        };
        let is_begun = |entry: &Entry| matches!(entry.state, State::Running | State::Failed);
        let alike = old.key == new.key && old.role == new.role && old.role != Role::Hidden;
        let between = (Bound::Excluded(earlier), Bound::Excluded(later));
        if earlier >= later || !alike || is_begun(old) || is_begun(new) {
            return false;
        }
        if self.entries.range(between).any(|(_, other)| other.role != Role::Hidden) {
            return false;
        }
        self.done(later);
        // What was closed before the later one was opened is before the earlier one, or gone.
        if let Some(old) = self.entries.get_mut(&earlier) {
            old.after = CloseId(earlier.0.saturating_sub(1));
        }
        true
    }

    fn set(&mut self, id: CloseId, state: State) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        entry.state = state;
        self.resting.remove(&id);
        self.running.remove(&id);
        match state {
            State::Resting => drop(self.resting.insert(id)),
            State::Running => drop(self.running.insert(id)),
            State::Waiting | State::Failed => {}
        }
    }

    /// The next file that may go up, the oldest first. It counts as running from now on.
    pub fn next_ready(&mut self) -> Option<Next> {
        let oldest = self.oldest().unwrap_or(self.last);
        let (id, next) = self.entries.iter().find_map(|(id, entry)| {
            let next = self.verdict(*id, entry, oldest)?;
            Some((*id, next))
        })?;
        let state = match next {
            Next::Upload(_) => State::Running,
            Next::Refuse(_) => State::Failed,
        };
        self.set(id, state);
        Some(next)
    }

    /// The oldest that others wait for.
    fn oldest(&self) -> Option<CloseId> {
        let mut entries = self.entries.iter();
        entries.find(|(_, entry)| entry.is_awaited()).map(|(id, _)| *id)
    }

    fn verdict(&self, id: CloseId, entry: &Entry, oldest: CloseId) -> Option<Next> {
        let waits = entry.role != Role::Hidden && oldest <= entry.after && oldest < id;
        if entry.state != State::Waiting || waits {
            return None;
        }
        // Seldom looked at for long: of those that need not wait, few are in the queue at a time.
        let mut older = self.entries.range(..id).map(|(_, other)| other);
        if older.any(|other| other.key == entry.key && other.state != State::Failed) {
            return None;
        }
        // One that failed before is tried again: once a later one is in the bucket it never is.
        if self.running.range(id..).any(|later| self.entries[later].key == entry.key) {
            return None;
        }
        let points_at = |other: &Entry| {
            let dir = entry.key.as_str().rsplit_once('/').map_or("", |(dir, _)| dir);
            let other = other.key.as_str();
            dir.is_empty() || other.strip_prefix(dir).is_some_and(|rest| rest.starts_with('/'))
        };
        let mut before = self.entries.range(..=entry.after).map(|(_, other)| other);
        let refused = entry.role == Role::Pointer
            && before.any(|other| {
                other.state == State::Failed && other.role == Role::Data && points_at(other)
            });
        Some(if refused { Next::Refuse(id) } else { Next::Upload(id) })
    }

    /// Whether everything that was closed up to `opened` is in the bucket or has failed.
    pub fn is_published(&self, opened: CloseId) -> bool {
        !self.entries.range(..=opened).any(|(_, entry)| entry.is_awaited())
    }

    /// It is in the bucket, replaced by a later close, or gone.
    pub fn done(&mut self, id: CloseId) {
        self.entries.remove(&id);
        self.resting.remove(&id);
        self.running.remove(&id);
    }

    /// It could not be uploaded.
    pub fn failed(&mut self, id: CloseId) {
        self.set(id, State::Failed);
    }

    /// Every failed file is worth another try. Returns whether there is one.
    pub fn retry(&mut self) -> bool {
        let mut any = false;
        for entry in self.entries.values_mut().filter(|entry| entry.state == State::Failed) {
            entry.state = State::Waiting;
            any = true;
        }
        any
    }

    /// Whether nothing waits or runs.
    pub fn is_idle(&self) -> bool {
        self.entries.values().all(|entry| entry.state == State::Failed)
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::Next::{Refuse, Upload};
    use super::*;

    struct Case {
        queue: Queue,
    }

    impl Case {
        fn new() -> Self {
            Self { queue: Queue::default() }
        }

        /// Opens and closes a file with nothing in between.
        fn write(&mut self, key: &str) -> CloseId {
            let opened = self.queue.now();
            self.close(key, opened)
        }

        fn close(&mut self, key: &str, opened: CloseId) -> CloseId {
            let id = self.queue.number();
            self.queue.closed(id, Key::new(key), opened, Role::Data);
            id
        }

        fn point(&mut self, key: &str, opened: CloseId) -> CloseId {
            let id = self.queue.number();
            self.queue.closed(id, Key::new(key), opened, Role::Pointer);
            id
        }

        fn ready(&mut self) -> Vec<Next> {
            std::iter::from_fn(|| self.queue.next_ready()).collect()
        }
    }

    #[test]
    fn what_was_closed_before_another_was_opened_shows_first() {
        let mut case = Case::new();
        let (a, b) = (case.write("a"), case.write("b"));
        assert_eq!(case.ready(), [Upload(a)]);
        case.queue.done(a);
        assert_eq!(case.ready(), [Upload(b)]);
    }

    #[test]
    fn files_that_were_open_together_go_in_parallel() {
        let mut case = Case::new();
        let opened = case.queue.now();
        let (a, b) = (case.close("a", opened), case.close("b", opened));
        let c = case.write("c");
        assert_eq!(case.ready(), [Upload(a), Upload(b)]);
        case.queue.done(b);
        assert_eq!(case.ready(), []);
        case.queue.done(a);
        assert_eq!(case.ready(), [Upload(c)]);
    }

    #[test]
    fn versions_of_one_file_show_in_the_order_of_their_closes() {
        let mut case = Case::new();
        let opened = case.queue.now();
        let (old, new) = (case.close("k", opened), case.close("k", opened));
        assert_eq!(case.ready(), [Upload(old)]);
        case.queue.done(old);
        assert_eq!(case.ready(), [Upload(new)]);
    }

    #[test]
    fn a_pointer_shows_after_all_that_was_closed_before_it_whenever_it_was_opened() {
        let mut case = Case::new();
        let opened = case.queue.now();
        let target = case.write("run/ckpt/weights");
        let pointer = case.point("run/experiment_state-1.json", opened);
        assert_eq!(case.ready(), [Upload(target)]);
        case.queue.done(target);
        assert_eq!(case.ready(), [Upload(pointer)]);
    }

    #[test]
    fn what_a_checkpoint_directory_shows_neither_waits_nor_is_waited_for() {
        let mut case = Case::new();
        let a = case.write("a");
        let hidden = case.queue.number();
        case.queue.closed(hidden, Key::new("checkpoint_1/x"), a, Role::Hidden);
        let b = case.write("b");
        assert_eq!(case.ready(), [Upload(a), Upload(hidden)]);
        case.queue.done(a);
        assert_eq!(case.ready(), [Upload(b)]);
    }

    #[test]
    fn what_failed_for_good_holds_nobody_up() {
        let mut case = Case::new();
        let (bad, next) = (case.write("a"), case.write("b"));
        assert_eq!(case.ready(), [Upload(bad)]);
        case.queue.failed(bad);
        assert_eq!(case.ready(), [Upload(next)]);
        assert!(!case.queue.is_published(next) && case.queue.is_published(bad));
    }

    #[test]
    fn a_pointer_never_passes_what_it_may_point_to() {
        let mut case = Case::new();
        let bad = case.write("run/ckpt/weights");
        assert_eq!(case.ready(), [Upload(bad)]);
        case.queue.failed(bad);
        let pointer = case.point("run/experiment_state-1.json", bad);
        let other = case.point("other/experiment_state-1.json", bad);
        assert_eq!(case.ready(), [Refuse(pointer), Upload(other)]);
        // Another round: the file goes up after all, and then the pointer.
        assert!(case.queue.retry());
        assert_eq!(case.ready(), [Upload(bad)]);
        case.queue.done(bad);
        assert_eq!(case.ready(), [Upload(pointer)]);
    }

    #[test]
    fn a_file_that_is_written_again_no_longer_holds_its_failure_against_pointers() {
        let mut case = Case::new();
        let bad = case.write("run/weights");
        case.ready();
        case.queue.failed(bad);
        case.queue.done(bad); // replaced by the next close
        let again = case.write("run/weights");
        let pointer = case.point("run/experiment_state-1.json", again);
        assert_eq!(case.ready(), [Upload(again)]);
        case.queue.done(again);
        assert_eq!(case.ready(), [Upload(pointer)]);
        case.queue.done(pointer);
        assert!(case.queue.is_idle() && case.queue.is_empty());
    }

    #[test]
    fn a_later_version_takes_the_place_of_the_one_before_and_shows_before_who_waits_for_that() {
        let mut case = Case::new();
        let (other, old, new) = (case.write("o"), case.write("k"), case.write("k"));
        let opened = case.queue.now();
        assert!(case.queue.take_place(old, new));
        let x = case.close("x", opened);
        assert_eq!(case.ready(), [Upload(other)]);
        assert!(!case.queue.is_published(old));
        case.queue.done(other);
        assert_eq!(case.ready(), [Upload(old)]);
        case.queue.done(old);
        assert_eq!(case.ready(), [Upload(x)]);
    }

    #[test]
    fn no_place_is_taken_past_another_file_nor_from_what_was_begun() {
        let mut case = Case::new();
        let (old, _between, new) = (case.write("k"), case.write("x"), case.write("k"));
        assert!(!case.queue.take_place(old, new));
        let newer = case.write("k");
        assert!(case.queue.take_place(new, newer) && !case.queue.take_place(new, newer));
        assert_eq!(case.ready(), [Upload(old)]);
        let mut case = Case::new();
        let old = case.write("k");
        assert_eq!(case.ready(), [Upload(old)]);
        let new = case.write("k");
        assert!(!case.queue.take_place(old, new));
        case.queue.failed(old);
        assert!(!case.queue.take_place(old, new));
    }

    #[test]
    fn what_failed_is_not_tried_again_beside_a_later_version() {
        let mut case = Case::new();
        let opened = case.queue.now();
        let (old, new) = (case.close("k", opened), case.close("k", opened));
        assert_eq!(case.ready(), [Upload(old)]);
        case.queue.failed(old);
        assert_eq!(case.ready(), [Upload(new)]);
        case.queue.retry();
        assert_eq!(case.ready(), []);
        case.queue.failed(new);
        assert_eq!(case.ready(), [Upload(old)]);
    }

    #[test]
    fn what_rests_goes_once_another_file_waits_for_it_or_somebody_wakes_it() {
        let mut case = Case::new();
        let log = case.write("log");
        assert!(case.queue.rest(log) && !case.queue.is_idle());
        let again = case.write("log");
        assert!(case.queue.rest(again), "nobody waits for it");
        assert!(case.queue.take_place(log, again), "the file itself waits for its last version");
        assert_eq!(case.ready(), []);
        let x = case.write("x");
        assert!(!case.queue.rest(log), "another waits");
        assert_eq!(case.ready(), [Upload(log)]);
        case.queue.done(log);
        assert_eq!(case.ready(), [Upload(x)]);
        let more = case.write("log");
        assert!(case.queue.rest(more));
        case.queue.wake_all();
        case.queue.done(x);
        assert_eq!(case.ready(), [Upload(more)]);
    }

    /// Every order of four closes, each opened after any earlier one, with uploads that end in any
    /// order: what was closed before an open always shows first, and all show in the end.
    #[test]
    fn no_schedule_shows_a_later_file_before_an_earlier_one() {
        for opens in 0..2 * 3 * 4u64 {
            let opened = [0, opens % 2, opens / 2 % 3, opens / 6 % 4];
            for picks in 0..81u32 {
                let mut case = Case::new();
                let ids: Vec<CloseId> = opened
                    .iter()
                    .enumerate()
                    .map(|(at, opened)| case.close(&at.to_string(), CloseId(*opened)))
                    .collect();
                let (mut running, mut shown, mut picks) = (Vec::new(), Vec::new(), picks);
                loop {
                    running.extend(case.ready());
                    if running.is_empty() {
                        break;
                    }
                    let Upload(id) = running.swap_remove(picks as usize % 3 % running.len()) else {
                        panic!("nothing failed")
                    };
                    picks /= 3;
                    let after = opened[(id.0 - 1) as usize];
                    assert!((1..=after).all(|before| shown.contains(&CloseId(before))));
                    shown.push(id);
                    case.queue.done(id);
                }
                assert_eq!(shown.len(), ids.len());
            }
        }
    }
}
