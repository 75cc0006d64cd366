//! Observers, any number of them, beside everything that a scenario does.
//!
//! An observer changes nothing, so it needs no place among the actors: it walks over the graph of
//! the instants (store and truth) that the search found, reading records, data, and records again
//! at any three of them. Owns what an observer may show. Does not own how the instants come about.

use std::collections::{HashMap, HashSet, VecDeque};

use trialfs::checkpoint::protocol::{Seen, view};

use crate::mutants::Mutant;
use crate::oracle::{self, Truth};
use crate::store::Store;
use crate::world::{Part, fingerprint};

/// The instants of a scenario, and which may follow which.
#[derive(Default)]
pub struct Instants {
    nodes: HashMap<u128, (Part<Store>, Part<Truth>)>,
    edges: HashMap<u128, HashSet<u128>>,
}

/// What an observer holds between two of its reads.
#[derive(Clone)]
struct Watch {
    at: u128,
    seen: Seen,
    since: usize,
    way: Vec<u128>,
}

impl Instants {
    /// `true` if it is new.
    pub fn add(&mut self, id: u128, store: &Part<Store>, truth: &Part<Truth>) -> bool {
        self.nodes.insert(id, (store.clone(), truth.clone())).is_none()
    }

    pub fn follows(&mut self, from: u128, to: u128) {
        if from != to {
            self.edges.entry(from).or_default().insert(to);
        }
    }

    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Lets observers start at every instant, and read the last time at every later one. The
    /// instants from the first read to the last, where one shows what it must not. `looks` counts
    /// them.
    ///
    /// The first look at the records may lie as early as it likes: if the commits did not change up
    /// to the last, it says what one at the instant of the data would say.
    pub fn observe(
        &self,
        mutant: Option<Mutant>,
        looks: &mut usize,
    ) -> Option<(String, Vec<u128>)> {
        let mut known = HashSet::new();
        let mut queue = VecDeque::new();
        for (id, (store, truth)) in &self.nodes {
            let mut seen = Seen::default();
            oracle::look_again(&mut seen, store);
            if mutant != Some(Mutant::OneList) {
                seen.listed(seen.commits(), store.objects.clone());
            }
            let since = truth.history.len() - 1;
            self.go_to(Watch { at: *id, seen, since, way: vec![*id] }, &mut known, &mut queue);
        }
        while let Some(watch) = queue.pop_front() {
            let (store, truth) = &self.nodes[&watch.at];
            *looks += 1;
            let mut seen = watch.seen.clone();
            if mutant == Some(Mutant::OneList) {
                seen.listed(seen.commits(), store.objects.clone());
                seen.looked(seen.known(), seen.records().clone());
            } else {
                oracle::look_again(&mut seen, store);
            }
            // An observer that sees other commits than before starts again: another watch.
            let Ok(shown) = view(&seen) else { continue };
            if let Some(violation) = truth.judge(watch.since, &shown) {
                return Some((violation, watch.way));
            }
            for next in self.edges.get(&watch.at).into_iter().flatten() {
                let way = watch.way.iter().copied().chain([*next]).collect();
                self.go_to(Watch { at: *next, way, ..watch.clone() }, &mut known, &mut queue);
            }
        }
        None
    }

    fn go_to(&self, watch: Watch, known: &mut HashSet<u128>, queue: &mut VecDeque<Watch>) {
        // Of what it has seen, the data and the commits decide what it will show.
        let held = match watch.seen.has_data() {
            true => fingerprint(&(watch.seen.data_seen(), watch.seen.commits())),
            false => fingerprint(&watch.seen),
        };
        if known.insert(fingerprint(&(watch.at, held, watch.since))) {
            queue.push_back(watch);
        }
    }
}
