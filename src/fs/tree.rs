//! Who works where in the tree. A directory that gets another name or goes waits for what goes on
//! below it, and what comes there meanwhile waits for that; the rest of the tree goes on.
//!
//! Owns who waits for whom. Does not own what is below what (`namespace`).
//!
//! What must hold:
//! 1. While somebody works at an inode its key stays: no directory above it is renamed or removed.
//! 2. While a directory is renamed or removed nobody else makes or removes names in its parents,
//!    nor anything below it or below what it replaces.
//! 3. Nobody who works elsewhere waits, however long an upload takes.
//! 4. One directory is renamed at a time: with each, listings of all others are looked at again.
//! 5. Who came first goes first: nobody at work waits for another's work, and no directory that
//!    moves for one that came after it.
//!
//! Cost: no request. Two short locks for each piece of work; while a directory moves, a look at the
//! inodes above.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;

use super::Fs;
use crate::namespace::Namespace;
use crate::types::{Ino, Name};

#[derive(Debug)]
pub(super) struct Tree {
    state: Mutex<State>,
    /// Changes whenever somebody who waits has to look again.
    changed: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct State {
    work: HashMap<Ino, u32>,
    /// The directories that move or wait to, in the order in which they came.
    moving: BTreeMap<u64, Arc<Range>>,
    /// The one that is being renamed.
    renamed: Option<u64>,
    last: u64,
    /// Grows with every change while a directory moves: what was looked at before may be over.
    version: u64,
}

/// What a directory's rename or removal must have for itself.
#[derive(Debug)]
pub(super) struct Range {
    pub directory: Ino,
    pub parent: Ino,
    /// Its new parent and name.
    pub to: Option<(Ino, Name)>,
}

impl Range {
    fn has(&self, namespace: &Namespace, at: Ino) -> bool {
        // Of one that was forgotten meanwhile nobody knows where it was.
        let forgotten = namespace.get(at).is_none();
        if forgotten || at == self.parent || namespace.is_below(at, self.directory) {
            return true;
        }
        let Some((parent, name)) = &self.to else { return false };
        let replaced = namespace.child(*parent, name).map(|child| child.ino);
        at == *parent || replaced.is_some_and(|replaced| namespace.is_below(at, replaced))
    }

    fn meets(&self, namespace: &Namespace, other: &Self) -> bool {
        let has_part_of = |one: &Self, other: &Self| {
            let to = other.to.as_ref().map(|(parent, _)| *parent);
            let parts = [other.directory, other.parent].into_iter().chain(to);
            parts.into_iter().any(|part| one.has(namespace, part))
        };
        has_part_of(self, other) || has_part_of(other, self)
    }
}

impl State {
    fn add(&mut self, at: [Ino; 2]) {
        at.into_iter().for_each(|ino| *self.work.entry(ino).or_default() += 1);
    }

    fn remove(&mut self, at: [Ino; 2]) {
        for ino in at {
            let count = self.work.get_mut(&ino);
            let left = count.map(|count| {
                *count -= 1;
                *count
            });
            if left == Some(0) {
                self.work.remove(&ino);
            }
        }
    }
}

impl Tree {
    pub fn new() -> Self {
        Self { state: Mutex::default(), changed: watch::Sender::new(()) }
    }

    /// Whoever waits looks again.
    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.state.lock();
        let moved = !state.moving.is_empty();
        change(&mut state);
        state.version += u64::from(moved);
        drop(state);
        if moved {
            self.changed.send_replace(());
        }
    }
}

impl Fs {
    /// Works at an inode: one that is written, uploaded or recorded, or the directory in which a
    /// name is made or goes. Must not be asked for by one that works already.
    pub(super) async fn work_at(&self, ino: Ino) -> Working<'_> {
        self.work_at_both(ino, ino).await
    }

    /// The same at two inodes at once.
    pub(super) async fn work_at_both(&self, one: Ino, other: Ino) -> Working<'_> {
        let tree = &self.tree;
        let at = [one, other];
        let mut changed = tree.changed.subscribe();
        loop {
            changed.mark_unchanged();
            let (version, moving) = {
                let mut state = tree.state.lock();
                if state.moving.is_empty() {
                    state.add(at);
                    return Working { tree, at };
                }
                (state.version, state.moving.values().cloned().collect::<Vec<_>>())
            };
            let waits = {
                let namespace = self.namespace.lock();
                let in_one = |ino: Ino| moving.iter().any(|range| range.has(&namespace, ino));
                at.into_iter().any(in_one)
            };
            if waits {
                let _ = changed.changed().await; // the sender is ours
                continue;
            }
            let mut state = tree.state.lock();
            if state.version == version {
                state.version += 1;
                state.add(at);
                return Working { tree, at };
            }
        }
    }

    /// Waits until nobody works in a range; nobody does while what it returns lives. Must not be
    /// asked for by one that works.
    pub(super) async fn have_alone(&self, range: Range) -> Alone<'_> {
        let tree = &self.tree;
        let range = Arc::new(range);
        let mut changed = tree.changed.subscribe();
        let turn = {
            let mut state = tree.state.lock();
            state.last += 1;
            state.version += 1;
            let turn = state.last;
            state.moving.insert(turn, range.clone());
            turn
        };
        let alone = Alone { tree, turn };
        loop {
            changed.mark_unchanged();
            let (version, work, earlier, is_free) = {
                let state = tree.state.lock();
                let work: Vec<Ino> = state.work.keys().copied().collect();
                let earlier = state.moving.range(..turn).map(|(_, range)| range.clone());
                let is_free = range.to.is_none() || state.renamed.is_none();
                (state.version, work, earlier.collect::<Vec<_>>(), is_free)
            };
            let is_free = is_free && {
                let namespace = self.namespace.lock();
                !work.iter().any(|ino| range.has(&namespace, *ino))
                    && !earlier.iter().any(|earlier| range.meets(&namespace, earlier))
            };
            if !is_free {
                let _ = changed.changed().await; // the sender is ours
                continue;
            }
            let mut state = tree.state.lock();
            if state.version == version {
                state.version += 1;
                state.renamed = state.renamed.or(range.to.as_ref().map(|_| turn));
                return alone;
            }
        }
    }
}

/// See [`Fs::work_at`].
#[must_use]
pub(super) struct Working<'a> {
    tree: &'a Tree,
    at: [Ino; 2],
}

impl Drop for Working<'_> {
    fn drop(&mut self) {
        self.tree.change(|state| state.remove(self.at));
    }
}

/// See [`Fs::have_alone`].
#[must_use]
pub(super) struct Alone<'a> {
    tree: &'a Tree,
    turn: u64,
}

impl Drop for Alone<'_> {
    fn drop(&mut self) {
        self.tree.change(|state| {
            state.moving.remove(&self.turn);
            state.renamed.take_if(|renamed| *renamed == self.turn);
        });
    }
}
