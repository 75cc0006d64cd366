//! Breadth first through every state of a scenario; the shortest way to a state that must not be.
//!
//! Owns which states were seen and how they were reached. Does not own what a state is.

use std::collections::{HashMap, VecDeque};

use crate::actor::Rules;
use crate::mutants::Mutant;
use crate::observer::Instants;
use crate::scenarios::Scenario;
use crate::world::{Step, World};

/// States of one scenario: past it the run would neither end in time nor fit into memory.
const STATES_MAX: usize = 3_000_000;

#[derive(Default)]
pub struct Explored {
    pub states: usize,
    pub steps: usize,
    /// The longest of the shortest ways to a state, in steps.
    pub depth: usize,
    /// States in which nothing more happens by itself.
    pub quiet: usize,
    /// Instants of store and truth, and the reads of observers at them.
    pub instants: usize,
    pub looks: usize,
    /// What must not be, and the way there.
    pub violation: Option<(String, Vec<String>)>,
}

pub fn explore(scenario: &Scenario, mutant: Option<Mutant>) -> Explored {
    let rules = Rules { scenario, mutant };
    let first = World::new(rules);
    let mut reached: HashMap<u128, (u128, u32)> = HashMap::new();
    reached.insert(first.fingerprint(), (0, 0));
    let mut queue = VecDeque::from([(first.clone(), 0)]);
    let mut instants = Instants::default();
    let mut samples = HashMap::from([(first.instant(), first.fingerprint())]);
    instants.add(first.instant(), &first.store, &first.truth);
    let mut explored = Explored::default();
    while let Some((world, depth)) = queue.pop_front() {
        explored.states += 1;
        explored.depth = depth;
        assert!(explored.states < STATES_MAX, "{}: too many states", scenario.name);
        let here = world.fingerprint();
        let mut moved = false;
        for (which, step) in world.steps(rules).into_iter().enumerate() {
            explored.steps += 1;
            let next = world.take(step, rules);
            let there = next.fingerprint();
            moved |= there != here && matches!(step, Step::Deliver(..));
            if reached.contains_key(&there) {
                instants.follows(world.instant(), next.instant());
                continue;
            }
            reached.insert(there, (here, which as u32));
            let instant = next.instant();
            instants.follows(world.instant(), instant);
            samples.entry(instant).or_insert(there);
            if instants.add(instant, &next.store, &next.truth)
                && let Some(violation) = next.violation()
            {
                explored.violation = Some((violation, retrace(rules, &reached, there)));
                return explored;
            }
            queue.push_back((next, depth + 1));
        }
        if moved {
            continue;
        }
        explored.quiet += 1;
        if let Some(violation) = world.quiet(rules) {
            explored.violation = Some((violation, retrace(rules, &reached, here)));
            return explored;
        }
    }
    explored.instants = instants.len();
    if let Some((violation, way)) = instants.observe(mutant, &mut explored.looks) {
        let mut told = retrace(rules, &reached, samples[&way[0]]);
        told.push("an observer begins to read here".into());
        told.extend(way[1..].iter().map(|instant| {
            let way = retrace(rules, &reached, samples[instant]);
            format!("then, for example by: {}", way.last().map_or("", String::as_str))
        }));
        told.push("it reads the last time here".into());
        explored.violation = Some((violation, told));
    }
    explored
}

fn retrace(rules: Rules<'_>, reached: &HashMap<u128, (u128, u32)>, mut to: u128) -> Vec<String> {
    let mut choices = Vec::new();
    while let Some((from, which)) = reached.get(&to).filter(|(from, _)| *from != 0) {
        choices.push(*which as usize);
        to = *from;
    }
    let mut world = World::new(rules);
    let mut told = Vec::new();
    for which in choices.into_iter().rev() {
        let step = world.steps(rules)[which];
        told.push(world.tell(step));
        world = world.take(step, rules);
    }
    told
}
