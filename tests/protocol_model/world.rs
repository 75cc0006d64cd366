//! The state of a run, and every step that may come next.
//!
//! Owns the interleaving: which request arrives, which answer is lost, who crashes, which process
//! is killed. Does not own what any of it leads to.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use trialfs::checkpoint::protocol::Reply;
use trialfs::checkpoint::record::WriterId;

use crate::actor::{Actor, Rules, initial, path};
use crate::mutants::Mutant;
use crate::oracle::Truth;
use crate::scenarios::Task;
use crate::store::{Answer, Request, Store};

/// A part of the state with its fingerprint, shared by the states in which it is the same.
#[derive(Debug)]
pub struct Part<T>(Arc<(u128, T)>);

impl<T> Clone for Part<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T: Hash> Part<T> {
    fn new(value: T) -> Self {
        Self(Arc::new((fingerprint(&value), value)))
    }
}

impl<T> std::ops::Deref for Part<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0.1
    }
}

/// A part that is copied when it is first changed.
pub struct Pen<'a, T> {
    part: &'a Part<T>,
    own: Option<T>,
}

impl<T> std::ops::Deref for Pen<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.own.as_ref().unwrap_or(self.part)
    }
}

impl<T: Clone> std::ops::DerefMut for Pen<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.own.get_or_insert_with(|| T::clone(self.part))
    }
}

#[derive(Debug, Clone)]
pub struct World {
    pub store: Part<Store>,
    pub actors: Vec<Part<Actor>>,
    pub truth: Part<Truth>,
    /// Requests that were given up by their sender and may still arrive.
    ghosts: Vec<(Request, WriterId)>,
    faults: u8,
    crashes: u8,
    kills: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The request of an actor arrives, and the answer at the actor. Which of several is the
    /// second.
    Deliver(usize, usize),
    /// The answer is lost; the request may arrive any time, or never.
    GiveUp(usize, usize),
    /// It arrives and is answered, and will arrive again.
    Twice(usize, usize),
    /// A request that was given up, or a second copy, arrives.
    Late(usize),
    Crash(usize),
    Kill(usize),
    Reopen(usize),
}

impl World {
    pub fn new(rules: Rules<'_>) -> Self {
        let scenario = rules.scenario;
        let mut store = Store::default();
        for name in scenario.initial {
            store.objects.insert(path(name), initial(name));
        }
        let history = vec![store.objects.clone()];
        let mut truth = Truth::default();
        truth.history = history;
        let truth = Part::new(truth);
        let mut pen = Pen { part: &truth, own: None };
        let actors = 0..scenario.cast.len();
        let actors = actors.map(|id| Part::new(Actor::new(id, rules, &mut pen))).collect();
        Self {
            store: Part::new(store),
            actors,
            truth,
            ghosts: Vec::new(),
            faults: scenario.faults,
            crashes: scenario.crashes,
            kills: scenario.kills,
        }
    }

    pub fn fingerprint(&self) -> u128 {
        let actors: Vec<u128> = self.actors.iter().map(|actor| actor.0.0).collect();
        let rest = (&self.ghosts, self.faults, self.crashes, self.kills);
        fingerprint(&(self.store.0.0, actors, self.truth.0.0, rest))
    }

    /// Every step that may come next.
    ///
    /// Storing parts and reading seqs (which never change) commute with everything that others do
    /// and are seen by nobody: if somebody is about to do that, only he takes a step.
    pub fn steps(&self, rules: Rules<'_>) -> Vec<Step> {
        let late_data = rules.mutant == Some(Mutant::SealBeforeData);
        let collecting = |actor: &Actor| matches!(actor.current(rules), Some(Task::Collect));
        let collected = self.actors.iter().any(|actor| collecting(actor));
        let private = |actor: &Part<Actor>| match actor.pending[..] {
            [Request::Parts(_)] => !late_data,
            [Request::Fetch(_)] => !collected,
            _ => false,
        };
        let mut steps = Vec::new();
        if let Some(actor) = self.actors.iter().find(|actor| private(actor)) {
            self.steps_of(actor, rules, &mut steps);
            return steps;
        }
        self.actors.iter().for_each(|actor| self.steps_of(actor, rules, &mut steps));
        steps.extend((0..self.ghosts.len()).map(Step::Late));
        steps
    }

    fn steps_of(&self, actor: &Actor, rules: Rules<'_>, steps: &mut Vec<Step>) {
        let id = actor.id;
        let alternatives = if rules.scenario.any_order { actor.pending.len() } else { 1 };
        for (which, request) in actor.pending.iter().enumerate().take(alternatives) {
            // Records are collected an hour after the last request that could be late.
            if matches!(request, Request::Remove(_)) && self.haunted() {
                continue;
            }
            steps.push(Step::Deliver(id, which));
            if self.faults > 0 && request.is_write() {
                steps.push(Step::GiveUp(id, which));
                steps.push(Step::Twice(id, which));
            }
        }
        let busy = !actor.pending.is_empty();
        if busy && actor.alive && self.crashes > 0 && rules.scenario.cast[id].mortal {
            steps.push(Step::Crash(id));
        }
        if self.kills > 0 && actor.can_be_killed(rules) {
            steps.push(Step::Kill(id));
        }
        if actor.can_reopen(rules) {
            steps.push(Step::Reopen(id));
        }
    }

    pub fn take(&self, step: Step, rules: Rules<'_>) -> World {
        let mut world = self.clone();
        match step {
            Step::Deliver(id, which) => world.deliver(id, which, false, rules),
            Step::Twice(id, which) => {
                world.faults -= 1;
                world.deliver(id, which, true, rules);
            }
            Step::GiveUp(id, which) => {
                world.faults -= 1;
                let request = world.actors[id].pending[which].clone();
                world.haunt(request.clone(), id);
                let lost = Answer::Plain(Reply::Lost);
                world.change(id, |actor, truth| {
                    actor.answered(rules, &request, lost, truth);
                });
            }
            Step::Late(ghost) => {
                let (request, by) = world.ghosts.remove(ghost);
                world.arrive(&request, &by, rules);
            }
            Step::Crash(id) => {
                world.crashes -= 1;
                for request in world.actors[id].pending.clone() {
                    if request.is_write() {
                        world.haunt(request, id);
                    }
                }
                world.change(id, |actor, truth| actor.crash(rules, truth));
            }
            Step::Kill(id) => {
                world.kills -= 1;
                world.change(id, |actor, truth| actor.kill(rules, truth));
            }
            Step::Reopen(id) => {
                world.change(id, |actor, truth| actor.reopen(rules, truth));
            }
        }
        world
    }

    fn deliver(&mut self, id: usize, which: usize, again: bool, rules: Rules<'_>) {
        let request = self.actors[id].pending[which].clone();
        let writer = self.actors[id].writer();
        let answer = self.arrive(&request, &writer, rules);
        if again {
            self.haunt(request.clone(), id);
        }
        self.change(id, |actor, truth| actor.answered(rules, &request, answer, truth));
    }

    fn arrive(&mut self, request: &Request, by: &WriterId, rules: Rules<'_>) -> Answer {
        if let Some(answer) = self.store.read(request) {
            return answer;
        }
        let mut store = Store::clone(&self.store);
        let reply = store.apply(request, by, rules.mutant);
        if store != *self.store {
            let mut truth = Truth::clone(&self.truth);
            truth.wrote(&self.store, &store, request, &reply);
            self.truth = Part::new(truth);
            self.store = Part::new(store);
        }
        Answer::Plain(reply)
    }

    fn haunted(&self) -> bool {
        self.ghosts.iter().any(|(request, _)| !matches!(request, Request::Remove(_)))
    }

    fn haunt(&mut self, request: Request, by: usize) {
        self.ghosts.push((request, self.actors[by].writer()));
        self.ghosts.sort_by_cached_key(fingerprint);
    }

    fn change(&mut self, id: usize, with: impl FnOnce(&mut Actor, &mut Pen<'_, Truth>)) {
        let mut actor = Actor::clone(&self.actors[id]);
        let mut truth = Pen { part: &self.truth, own: None };
        with(&mut actor, &mut truth);
        self.actors[id] = Part::new(actor);
        if let Some(truth) = truth.own {
            self.truth = Part::new(truth);
        }
    }

    /// What store and truth are together, which is all that an instant is judged by.
    pub fn instant(&self) -> u128 {
        fingerprint(&(self.store.0.0, self.truth.0.0))
    }

    /// What must not be at this instant.
    pub fn violation(&self) -> Option<String> {
        let mut truth = Truth::clone(&self.truth);
        truth.check(&self.store);
        truth.violation
    }

    /// Called where no actor's own step leads anywhere else: nothing more happens by itself.
    pub fn quiet(&self, rules: Rules<'_>) -> Option<String> {
        let tasks = |actor: &Actor| actor.current(rules);
        let served = self.actors.iter().any(|actor| matches!(tasks(actor), Some(Task::Advance)));
        if !served && rules.scenario.crashes + rules.scenario.faults > 0 {
            return None; // Nobody is left to finish what a dead mount or a late request began.
        }
        let mut truth = Truth::clone(&self.truth);
        for actor in self.actors.iter().filter(|actor| actor.alive) {
            match tasks(actor) {
                None | Some(Task::Advance) => {}
                Some(Task::Collect) if self.haunted() => {}
                Some(task) => truth.complain(format!("mount {} hangs in {task:?}", actor.id + 1)),
            }
        }
        if !rules.scenario.cast.iter().any(|cast| cast.lazy) || served {
            truth.check_quiet(&self.store);
        }
        truth.violation
    }

    pub fn tell(&self, step: Step) -> String {
        let sent = |id: usize, which: usize| tell(&self.actors[id].pending[which]);
        match step {
            Step::Deliver(id, which) => format!("mount {}: {}", id + 1, sent(id, which)),
            Step::GiveUp(id, which) => {
                format!("mount {}: {} - without an answer, maybe later", id + 1, sent(id, which))
            }
            Step::Twice(id, which) => format!("mount {}: {} - and again", id + 1, sent(id, which)),
            Step::Late(ghost) => {
                let (request, by) = &self.ghosts[ghost];
                format!("late, of {}: {}", by.as_str(), tell(request))
            }
            Step::Crash(id) => format!("mount {} dies, its request under way", id + 1),
            Step::Kill(id) => format!("the process on mount {} is killed", id + 1),
            Step::Reopen(id) => format!("on mount {} one more file is closed", id + 1),
        }
    }
}

fn tell(request: &Request) -> String {
    use trialfs::checkpoint::protocol::Action;
    match request {
        Request::Act(Action::CreateHead(head)) => format!("create head {:x}", head.txn.0),
        Request::Act(Action::SwapHead { over, head }) => {
            format!("swap head {:x} over {} to {:?}", head.txn.0, over.0, head.state)
        }
        Request::Act(Action::CreateSeq(seq)) => format!("create seq {:x}.{}", seq.txn.0, seq.seq),
        Request::Act(Action::CreateSeal(seal)) => format!(
            "create seal {} ({:?}) of {:x?}, dropping {:x?}",
            seal.generation.0,
            seal.verdict,
            seal.records.iter().map(|sealed| sealed.txn.0).collect::<Vec<_>>(),
            seal.dropped.iter().map(|txn| txn.0).collect::<Vec<_>>(),
        ),
        Request::Act(Action::CreateDone(done)) => format!("create done {}", done.generation.0),
        other => format!("{other:?}"),
    }
}

/// 128 bits of a value: enough that no two of a hundred million states share them.
pub fn fingerprint<T: Hash + ?Sized>(value: &T) -> u128 {
    let mut hasher = Wide(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
    value.hash(&mut hasher);
    let mixed = hasher.0 ^ hasher.0 >> 67;
    mixed.wrapping_mul(0xda94_2042_e4dd_58b5_2b9f_5cc9_2b8e_4e35) ^ mixed >> 61
}

struct Wide(u128);

impl Hasher for Wide {
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_le_bytes(word));
        }
    }

    fn write_u8(&mut self, n: u8) {
        self.write_u64(n.into());
    }

    fn write_u32(&mut self, n: u32) {
        self.write_u64(n.into());
    }

    fn write_usize(&mut self, n: usize) {
        self.write_u64(n as u64);
    }

    fn write_u64(&mut self, n: u64) {
        let mixed =
            (self.0 ^ u128::from(n)).wrapping_mul(0x2360_ed05_1fc6_5da4_4385_df64_9fcc_f645);
        self.0 = mixed ^ mixed >> 59;
    }

    fn finish(&self) -> u64 {
        self.0 as u64
    }
}
