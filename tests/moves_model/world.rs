//! The state of a run, every step that may come next, and what no step may do.
//!
//! What programs see ([`Store::shown`]) changes whole by the decision, and at one name by what a
//! program does there; by nothing else.

use std::collections::hash_map::DefaultHasher;
use std::collections::{HashMap, VecDeque};
use std::hash::{Hash, Hasher};

use trialfs::checkpoint::moves::{Reply, Shows};
use trialfs::checkpoint::record::Ruling;

use crate::actor::{Actor, WRITTEN_BLINDLY, name};
use crate::scenarios::{Cast, Mutant, Scenario, Task};
use crate::store::{Answer, Rename, Request, Store, Tree, etag};

/// States of one scenario.
const STATES_MAX: usize = 1_000_000;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct World {
    store: Store,
    actors: Vec<Actor>,
    ghosts: Vec<(usize, Request)>,
    faults: u8,
    crashes: u8,
    /// What was shown since the observer began.
    history: Vec<Tree>,
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Deliver(usize, usize),
    /// No answer comes; the request may arrive any time, or never.
    Lose(usize, usize),
    Late(usize),
    Crash(usize),
}

#[derive(Default)]
pub struct Explored {
    pub states: usize,
    pub steps: usize,
    pub quiet: usize,
    pub violation: Option<(String, Vec<String>)>,
}

struct Rules<'a> {
    scenario: &'a Scenario,
    renames: Vec<Rename>,
    mutant: Option<Mutant>,
}

pub fn explore(scenario: &Scenario, mutant: Option<Mutant>) -> Explored {
    let mut renames: Vec<Rename> = scenario.cast.iter().map(|cast| cast.rename).collect();
    renames.sort();
    renames.dedup();
    let rules = Rules { scenario, renames, mutant };
    let first = World::new(&rules);
    let mut explored = Explored::default();
    let mut reached = Reached::new();
    reached.insert(first.fingerprint(), None);
    let mut queue = VecDeque::from([first]);
    while let Some(world) = queue.pop_front() {
        explored.states += 1;
        assert!(explored.states < STATES_MAX, "{}: too many states", scenario.name);
        let here = world.fingerprint();
        let mut moved = false;
        for step in world.steps(&rules) {
            explored.steps += 1;
            let mut next = world.clone();
            let violation = next.take(step, &rules);
            let there = next.fingerprint();
            moved |= there != here && matches!(step, Step::Deliver(..));
            if let Some(violation) = violation {
                let mut way = retrace(&rules, &reached, here);
                way.push(world.tell(step));
                explored.violation = Some((violation, way));
                return explored;
            }
            if let std::collections::hash_map::Entry::Vacant(free) = reached.entry(there) {
                free.insert(Some((here, step)));
                queue.push_back(next);
            }
        }
        if !moved {
            explored.quiet += 1;
            if let Some(violation) = world.quiet(&rules) {
                explored.violation = Some((violation, retrace(&rules, &reached, here)));
                return explored;
            }
        }
    }
    explored
}

type Reached = HashMap<(u64, u64), Option<((u64, u64), Step)>>;

fn retrace(rules: &Rules<'_>, reached: &Reached, mut to: (u64, u64)) -> Vec<String> {
    let mut steps = Vec::new();
    while let Some((from, step)) = reached[&to] {
        steps.push(step);
        to = from;
    }
    let mut world = World::new(rules);
    let mut told = Vec::new();
    for step in steps.into_iter().rev() {
        told.push(world.tell(step));
        world.take(step, rules);
    }
    told
}

impl World {
    fn new(rules: &Rules<'_>) -> Self {
        let mut store = Store::default();
        for (dir, file) in rules.scenario.files {
            let content = *dir as u8 ^ file.len() as u8;
            store.put((*dir, name(file)), content);
        }
        let cast = rules.scenario.cast.iter().enumerate();
        let actors = cast.map(|(id, cast)| Actor::new(id, *cast, rules.mutant)).collect();
        let history = vec![store.shown(&rules.renames)];
        let (faults, crashes) = (rules.scenario.faults, rules.scenario.crashes);
        Self { store, actors, ghosts: Vec::new(), faults, crashes, history }
    }

    fn fingerprint(&self) -> (u64, u64) {
        let of = |salt: u64| {
            let mut hasher = DefaultHasher::new();
            salt.hash(&mut hasher);
            self.hash(&mut hasher);
            hasher.finish()
        };
        (of(1), of(2))
    }

    fn steps(&self, rules: &Rules<'_>) -> Vec<Step> {
        let mut steps = Vec::new();
        for actor in &self.actors {
            let task = rules.scenario.cast[actor.id].task;
            if task == Task::Collect && !self.is_over(rules) {
                continue;
            }
            let alternatives = if rules.scenario.any_order { actor.pending.len() } else { 1 };
            for (which, request) in actor.pending.iter().enumerate().take(alternatives) {
                steps.push(Step::Deliver(actor.id, which));
                let reads =
                    matches!(request, Request::Look | Request::Read(_) | Request::Survey(_));
                let program = matches!(request, Request::Write(..) | Request::Unlink(_));
                if self.faults > 0 && !reads && !program && task != Task::Collect {
                    steps.push(Step::Lose(actor.id, which));
                }
            }
            let mortal = matches!(task, Task::Move | Task::Help | Task::GiveUp);
            if self.crashes > 0 && mortal && !actor.pending.is_empty() {
                steps.push(Step::Crash(actor.id));
            }
        }
        steps.extend((0..self.ghosts.len()).map(Step::Late));
        steps
    }

    /// Whether an hour may have passed: nothing is under way that could come late.
    fn is_over(&self, rules: &Rules<'_>) -> bool {
        let idle =
            |actor: &Actor| actor.ended() || rules.scenario.cast[actor.id].task == Task::Collect;
        self.ghosts.is_empty() && self.actors.iter().all(idle)
    }

    /// Takes a step; what must not be, if it came to be.
    fn take(&mut self, step: Step, rules: &Rules<'_>) -> Option<String> {
        match step {
            Step::Deliver(id, which) => {
                let request = self.actors[id].pending[which].clone();
                let (answer, violation) = self.arrive(id, &request, rules);
                let cast = rules.scenario.cast[id];
                self.actors[id].answered(cast, &request, answer, rules.mutant);
                return violation.or_else(|| self.judge(id));
            }
            Step::Lose(id, which) => {
                self.faults -= 1;
                let request = self.actors[id].pending[which].clone();
                self.haunt(id, request.clone());
                let cast = rules.scenario.cast[id];
                let lost = Answer::Plain(Reply::Lost);
                self.actors[id].answered(cast, &request, lost, rules.mutant);
            }
            Step::Late(which) => {
                let (id, request) = self.ghosts.remove(which);
                return self.arrive(id, &request, rules).1;
            }
            Step::Crash(id) => {
                self.crashes -= 1;
                for request in self.actors[id].pending.clone() {
                    if !matches!(request, Request::Look | Request::Survey(_)) {
                        self.haunt(id, request);
                    }
                }
                self.actors[id].crash();
            }
        }
        None
    }

    fn haunt(&mut self, id: usize, request: Request) {
        self.ghosts.push((id, request));
        self.ghosts.sort_by_cached_key(|ghost| format!("{ghost:?}"));
    }

    fn arrive(
        &mut self,
        id: usize,
        request: &Request,
        rules: &Rules<'_>,
    ) -> (Answer, Option<String>) {
        let cast = rules.scenario.cast[id];
        let before = self.store.clone();
        let answer = self.store.apply(cast.rename, request, rules.mutant);
        if before == self.store {
            return (answer, None);
        }
        let (was, is) = (before.shown(&rules.renames), self.store.shown(&rules.renames));
        let violation = (is != expected(cast, request, &before, &was, &is))
            .then(|| format!("{request:?} made of {was:?} this: {is:?}"));
        let observed = rules.scenario.cast.iter().any(|cast| cast.task == Task::Observe);
        if observed && self.history.last() != Some(&is) {
            self.history.push(is);
        }
        (answer, violation)
    }

    /// What an observer showed must have been so at some instant since it began.
    fn judge(&mut self, id: usize) -> Option<String> {
        let shown = self.actors[id].watch()?.shown.clone()?;
        self.actors[id].end_watch();
        self.actors[id].pending.clear();
        (!self.history.contains(&shown)).then(|| format!("an observer was shown {shown:?}"))
    }

    /// Called where nothing more happens by itself.
    fn quiet(&self, rules: &Rules<'_>) -> Option<String> {
        if self.store.objects.values().all(|object| object.content != WRITTEN_BLINDLY)
            && rules.scenario.cast.iter().any(|cast| cast.task == Task::WriteBlindly)
        {
            return Some("what was written is gone".into());
        }
        let served = |of: &Rename| {
            self.actors
                .iter()
                .any(|actor| actor.alive && rules.scenario.cast[actor.id].rename == *of)
        };
        let pending =
            rules.renames.iter().find(|of| served(of) && self.store.phase(**of) == Shows::Both);
        let helped = rules
            .scenario
            .cast
            .iter()
            .zip(&self.actors)
            .any(|(cast, actor)| actor.alive && matches!(cast.task, Task::Help | Task::Move));
        match pending {
            Some(of) if helped => Some(format!("{of:?} is never done")),
            _ => None,
        }
    }

    fn tell(&self, step: Step) -> String {
        match step {
            Step::Deliver(id, which) => format!("{id}: {:?}", self.actors[id].pending[which]),
            Step::Lose(id, which) => {
                format!("{id}: {:?} - no answer, maybe later", self.actors[id].pending[which])
            }
            Step::Late(which) => format!("late: {:?}", self.ghosts[which]),
            Step::Crash(id) => format!("{id} dies"),
        }
    }
}

/// What programs must see after a request that changed the store.
fn expected(cast: Cast, request: &Request, before: &Store, was: &Tree, is: &Tree) -> Tree {
    let of = cast.rename;
    let mut tree = was.clone();
    match request {
        Request::Decide(Ruling::Move, _, entries) => {
            if !before.froms.contains(&of) || !before.intos.contains(&of) {
                return Tree::new(); // nobody could find it
            }
            tree.retain(|(dir, _), _| *dir != of.from);
            if was.keys().any(|(dir, _)| *dir == of.to) {
                return Tree::new(); // over what is there
            }
            for (name, version) in entries {
                let place = (of.from, name.clone());
                let now = before.objects.get(&place).map(|object| etag(*object));
                match was.get(&place) {
                    // Written since the survey: it stays, and is back when all is done.
                    Some(&WRITTEN_BLINDLY) if now.as_ref() != Some(version) => {}
                    Some(content) => drop(tree.insert((of.to, name.clone()), *content)),
                    None => return Tree::new(), // it was not there to be renamed
                }
            }
        }
        Request::Write(place, content) => {
            let hidden = place.0 == of.from && before.phase(of) == Shows::Both;
            if !hidden {
                tree.insert(place.clone(), *content);
            } else if *content == WRITTEN_BLINDLY
                && !before.objects.contains_key(&(of.to, place.1.clone()))
            {
                tree.remove(&(of.to, place.1.clone())); // overwritten before it was copied
            }
        }
        Request::Unlink(place) => drop(tree.remove(place)),
        // What a blind writer left at the old name is there again.
        Request::Close => {
            let left = is.iter().filter(|(_, content)| **content == WRITTEN_BLINDLY);
            tree.extend(left.map(|(place, content)| (place.clone(), *content)));
        }
        _ => {}
    }
    tree
}
