//! One mount in the model: what it wants now, what it has seen, and the request it waits for.
//!
//! Owns the driver's part as the protocol asks for it: ask `next`, send, hand the answer back, ask
//! again. Does not own when a request arrives, nor whether its answer does.

use std::collections::BTreeMap;

use trialfs::checkpoint::protocol::{
    Accept, Action, Commits, Goal, Intent, Me, Records, Reply, Seen, Stop, Work,
};
use trialfs::checkpoint::record::{
    Entry, Nonce, RelPath, Sign, State, TxnId, Upload, What, WriterId,
};
use trialfs::types::{ETag, Name};

use crate::mutants::{Mutant, decide, misread};
use crate::oracle::Truth;
use crate::scenarios::{Attempt, Cast, Scenario, Task};
use crate::store::{Answer, Page, Request, writer_number};
use crate::world::Pen;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Actor {
    pub id: usize,
    pub life: usize,
    pub alive: bool,
    task: usize,
    pub seen: Seen,
    /// What was sent and not answered: one of these, whichever arrives.
    pub pending: Vec<Request>,
    writes: u64,
    pub work: Option<Work>,
    /// How many files of the attempt are closed.
    closed: usize,
    pub killed: bool,
    /// Whether the extra file was opened.
    pub reopened: bool,
    accept: Option<Accept>,
    watched: BTreeMap<TxnId, ETag>,
    page: Option<Records>,
    /// Looks at which nothing was due.
    idle: usize,
    under: Option<Commits>,
    /// Since which state of the truth its data may speak.
    window: usize,
}

/// What all decisions of a run share.
#[derive(Clone, Copy)]
pub struct Rules<'a> {
    pub scenario: &'a Scenario,
    pub mutant: Option<Mutant>,
}

impl Actor {
    pub fn new(id: usize, rules: Rules<'_>, truth: &mut Pen<'_, Truth>) -> Self {
        let mut actor = Self::blank(id);
        actor.decide(rules, truth);
        actor
    }

    fn blank(id: usize) -> Self {
        Self {
            id,
            life: 0,
            alive: true,
            task: 0,
            seen: Seen::default(),
            pending: Vec::new(),
            writes: 0,
            work: None,
            closed: 0,
            killed: false,
            reopened: false,
            accept: None,
            watched: BTreeMap::new(),
            page: None,
            idle: 0,
            under: None,
            window: 0,
        }
    }

    pub fn writer(&self) -> WriterId {
        WriterId::new(&format!("m{}", self.id + 1)).unwrap()
    }

    fn cast<'a>(&self, rules: Rules<'a>) -> &'a Cast {
        &rules.scenario.cast[self.id]
    }

    pub fn current<'a>(&self, rules: Rules<'a>) -> Option<&'a Task> {
        self.cast(rules).lives[self.life].get(self.task)
    }

    /// Forgets everything but who it is; `false` if there is no further life.
    pub fn crash(&mut self, rules: Rules<'_>, truth: &mut Pen<'_, Truth>) {
        let writes = self.writes;
        let life = self.life + 1;
        let alive = life < self.cast(rules).lives.len();
        *self = Self { life: self.life, alive: false, ..Self::blank(self.id) };
        if alive {
            *self = Self { life, alive, writes, ..Self::blank(self.id) };
            self.decide(rules, truth);
        }
    }

    /// The process that writes is killed. Only before its last close: later it makes no difference.
    pub fn can_be_killed(&self, rules: Rules<'_>) -> bool {
        let writing = matches!(self.current(rules), Some(Task::Write(_)));
        let early = |work: &Work| matches!(work.goal, Goal::Hold);
        writing && self.alive && !self.killed && self.work.as_ref().is_some_and(early)
    }

    pub fn kill(&mut self, rules: Rules<'_>, truth: &mut Pen<'_, Truth>) {
        self.killed = true;
        let Some(work) = &mut self.work else { return };
        work.goal = Goal::Tear;
        truth.killed.insert(work.txn);
        if matches!(self.pending[..], [Request::Parts(_)]) {
            self.decide(rules, truth);
        }
    }

    /// One more file is opened and closed after the commit was decided, and before it is known.
    pub fn can_reopen(&self, rules: Rules<'_>) -> bool {
        let Some(Task::Write(attempt)) = self.current(rules) else { return false };
        let Some(work) = &self.work else { return false };
        let head = self.seen.records().heads.get(&work.txn);
        let open = head.is_some_and(|head| head.record.state == State::Open);
        let committing = matches!(work.goal, Goal::Commit { .. });
        attempt.extra.is_some() && !self.reopened && open && committing && !self.seen.is_current()
    }

    pub fn reopen(&mut self, rules: Rules<'_>, truth: &mut Pen<'_, Truth>) {
        let Some(Task::Write(attempt)) = self.current(rules) else { return };
        self.reopened = true;
        let work = self.work.as_mut().unwrap();
        let name = attempt.extra.unwrap();
        truth.stored_aside.insert(upload_id(work.txn, name));
        work.files.insert(path(name), file(work.txn, name));
        self.decide(rules, truth);
    }

    /// An answer came (or was lost); what follows is decided at once.
    pub fn answered(
        &mut self,
        rules: Rules<'_>,
        request: &Request,
        answer: Answer,
        truth: &mut Pen<'_, Truth>,
    ) {
        match (request, answer) {
            (Request::Look(Page::First), Answer::Records(records)) => {
                self.page = Some(records);
                self.pending = vec![Request::Look(Page::Second)];
                return;
            }
            (Request::Look(_), Answer::Records(mut records)) => {
                if let Some(first) = self.page.take() {
                    records.heads.extend(first.heads);
                    records.seqs.extend(first.seqs);
                }
                misread(rules.mutant, &mut records);
                self.looked(rules, records);
            }
            (Request::LookData, Answer::Data(listing)) => self.listed(rules, listing, truth),
            (Request::Fetch(_), Answer::Bodies(bodies)) => {
                for (id, body) in bodies {
                    self.seen.fetched(id, Ok(body));
                }
            }
            (Request::Parts(_), _) => self.close_files(rules),
            (Request::Act(action), Answer::Plain(reply)) => self.act_answered(rules, action, reply),
            (Request::Step(generation, step), Answer::Plain(reply)) => {
                self.seen.published(*generation, step, &reply);
            }
            (Request::Remove(removal), Answer::Plain(Reply::Absent)) => self.seen.removed(removal),
            (Request::Remove(_), _) => self.seen.forget(),
            (request, answer) => panic!("{answer:?} to {request:?}"),
        }
        self.decide(rules, truth);
    }

    fn act_answered(&mut self, rules: Rules<'_>, action: &Action, reply: Reply) {
        let unlinked = matches!(action, Action::DeleteFile { .. }) && reply == Reply::Absent;
        self.seen.answered(action, reply);
        if unlinked {
            self.finish(rules);
        }
    }

    fn looked(&mut self, rules: Rules<'_>, records: Records) {
        self.seen.looked(self.seen.known(), records);
        if !self.cast(rules).watches {
            return;
        }
        let open = self.seen.live().filter(|(_, head)| head.record.state == State::Open);
        let open: BTreeMap<_, _> = open.map(|(txn, head)| (txn, head.etag.clone())).collect();
        for (txn, etag) in &open {
            if self.watched.get(txn) == Some(etag) {
                self.seen.expire(*txn);
            }
        }
        self.watched = open;
    }

    fn listed(&mut self, rules: Rules<'_>, listing: BTreeMap<RelPath, ETag>, truth: &Truth) {
        let under = self.under.take().unwrap();
        self.seen.listed(under, listing);
        self.window = truth.history.len() - 1;
        let blind = rules.mutant == Some(Mutant::UnlinkReadsLast);
        if blind {
            self.seen.looked(self.seen.known(), self.seen.records().clone());
        }
    }

    fn finish(&mut self, rules: Rules<'_>) {
        let cast = self.cast(rules);
        let more = self.task + 1 < cast.lives[self.life].len();
        let task = self.task + 1;
        let (life, writes) = (self.life, self.writes);
        // A later task goes on with what was seen, as a mount does; a finished one forgets.
        let seen = if more { self.seen.clone() } else { Seen::default() };
        *self = Self { life, task, writes, seen, ..Self::blank(self.id) };
    }
}

impl Actor {
    /// Asks the protocol until it wants something of the store, or all is done.
    pub fn decide(&mut self, rules: Rules<'_>, truth: &mut Pen<'_, Truth>) {
        loop {
            self.pending.clear();
            let Some(task) = self.current(rules) else { return };
            let action = match task {
                Task::Write(attempt) => self.write(rules, attempt, truth),
                Task::Commit { sign } => self.commit(rules, *sign, truth),
                Task::Advance | Task::Rescue => self.ask(rules, &Intent::Advance),
                Task::Unlink(name) => self.ask(rules, &Intent::Unlink { name: &path(name) }),
                Task::Collect => self.ask(rules, &Intent::Collect { upto: self.seen.done() }),
            };
            let action = self.lazily(rules, action);
            match self.send(rules, action, truth) {
                Sent::Waits => return,
                Sent::Decided => {}
                Sent::Finished => self.finish(rules),
            }
        }
    }

    fn me(&self) -> Me {
        Me { child: Name::new("c").unwrap(), writer: self.writer() }
    }

    fn nonce(&self) -> Nonce {
        Nonce((self.id as u64 + 1) << 8 | self.writes)
    }

    fn ask(&self, rules: Rules<'_>, intent: &Intent<'_>) -> Action {
        decide(rules.mutant, &self.me(), intent, &self.seen, self.nonce())
    }

    fn write(&mut self, rules: Rules<'_>, attempt: &Attempt, truth: &mut Pen<'_, Truth>) -> Action {
        let id = writer_number(&self.writer()) << 8 | (self.life as u128) << 6;
        let id = id | (self.task as u128) << 1;
        let work = self.work.get_or_insert_with(|| Work {
            txn: TxnId(id),
            begun: false,
            files: BTreeMap::new(),
            goal: Goal::Hold,
            rule: String::new(),
            loss: attempt.loss,
            lease_ms: 1,
            written_as: None,
        });
        let head = self.seen.records().heads.get(&work.txn);
        work.begun |= head.is_some();
        let work = work.clone();
        let action = self.ask(rules, &Intent::Write(&work));
        if let Action::SwapHead { head, .. } = &action
            && head.txn == work.txn
            && head.state.manifest().is_some()
        {
            truth.frozen.insert(head.nonce, work.files.clone());
        }
        if let Action::CreateHead(head) = &action {
            truth.begins(head.txn, &self.seen);
        }
        action
    }

    fn commit(&mut self, rules: Rules<'_>, sign: Sign, truth: &mut Pen<'_, Truth>) -> Action {
        if !self.seen.is_current() && self.accept.is_none() {
            return Action::Look;
        }
        let explicit = sign == Sign::Explicit;
        let accept = self.accept.get_or_insert_with(|| match explicit {
            true => Accept::what_is_lost(&self.seen),
            false => Accept::nothing(),
        });
        if !accept.0.is_subset(&truth.accepted) {
            truth.accepted.extend(accept.0.iter().copied());
        }
        let accept = accept.clone();
        self.ask(rules, &Intent::Commit { sign, accept: &accept })
    }

    fn lazily(&self, rules: Rules<'_>, action: Action) -> Action {
        let publishing = matches!(action, Action::Publish { .. } | Action::CreateDone(_));
        if !publishing || !self.cast(rules).lazy {
            return action;
        }
        let txn = self.work.as_ref().map(|work| work.txn);
        let seal = txn.and_then(|txn| self.seen.seal_of(txn));
        Action::Stop(Stop::Published(seal.map(|(generation, _)| generation)))
    }

    fn send(&mut self, rules: Rules<'_>, action: Action, truth: &mut Pen<'_, Truth>) -> Sent {
        let paged = rules.scenario.paged;
        let look = Request::Look(if paged { Page::First } else { Page::Whole });
        self.pending = match action {
            Action::Look => vec![look],
            Action::LookData => {
                self.under = Some(self.seen.commits());
                vec![Request::LookData]
            }
            Action::Fetch(ids) => vec![Request::Fetch(ids)],
            Action::Publish { generation, steps } => {
                steps.into_iter().map(|step| Request::Step(generation, step)).collect()
            }
            Action::Collect(removals) => removals.into_iter().map(Request::Remove).collect(),
            Action::Wait(_) if self.is_rescued(rules) => return Sent::Finished,
            Action::Wait(_) => vec![look],
            Action::Stop(stop) => return self.stopped(rules, stop, look, truth),
            act => {
                self.writes += 1;
                vec![Request::Act(act)]
            }
        };
        Sent::Waits
    }

    fn stopped(
        &mut self,
        rules: Rules<'_>,
        stop: Stop,
        look: Request,
        truth: &mut Pen<'_, Truth>,
    ) -> Sent {
        let attempt = match self.current(rules) {
            Some(Task::Write(attempt)) => attempt,
            Some(Task::Rescue) if self.is_rescued(rules) => return Sent::Finished,
            Some(Task::Advance | Task::Rescue) => {
                self.pending = vec![look];
                return Sent::Waits;
            }
            Some(Task::Unlink(name)) if stop == Stop::Absent => {
                let held = &truth.history[self.window..];
                if held.iter().all(|held| held.contains_key(&path(name))) {
                    truth.complain("contract 2: an unlink says that a file is not there");
                }
                return Sent::Finished;
            }
            _ => return Sent::Finished,
        };
        let txn = self.work.as_ref().unwrap().txn;
        match stop {
            Stop::Held => return self.close_more(rules, attempt),
            Stop::Frozen => {
                self.begin_follow_up();
                return Sent::Decided;
            }
            Stop::Published(Some(_)) => truth.told_committed(txn),
            Stop::TakenOver | Stop::Dropped => truth.told_lost(txn),
            Stop::Unreadable => truth.complain("a record that nobody can read"),
            _ => {}
        }
        match late_parts(rules, self.work.as_ref().unwrap()) {
            Some(parts) if self.closed <= attempt.files.len() => {
                // The mutant's data comes when all is over.
                self.closed = usize::MAX;
                self.pending = vec![parts];
                Sent::Waits
            }
            _ => Sent::Finished,
        }
    }

    fn is_rescued(&mut self, rules: Rules<'_>) -> bool {
        self.idle += usize::from(matches!(self.current(rules), Some(Task::Rescue)));
        self.idle >= 2
    }

    /// The process closes its next files; when none is left, the mount decides to commit.
    fn close_more(&mut self, rules: Rules<'_>, attempt: &Attempt) -> Sent {
        let work = self.work.as_ref().unwrap();
        let next = match (self.closed, attempt.first_apart) {
            (0, true) => &attempt.files[..1],
            (closed, _) => &attempt.files[closed..],
        };
        let ids = next.iter().map(|name| upload_id(work.txn, name)).collect();
        if rules.mutant == Some(Mutant::SealBeforeData) {
            self.close_files(rules);
            return Sent::Decided;
        }
        self.pending = vec![Request::Parts(ids)];
        Sent::Waits
    }

    fn close_files(&mut self, rules: Rules<'_>) {
        let Some(Task::Write(attempt)) = self.current(rules) else { return };
        let Some(work) = self.work.as_mut().filter(|_| self.closed != usize::MAX) else { return };
        let upto = match (self.closed, attempt.first_apart) {
            (0, true) => 1,
            _ => attempt.files.len(),
        };
        for name in &attempt.files[self.closed..upto] {
            work.files.insert(path(name), file(work.txn, name));
        }
        self.closed = upto;
        if upto < attempt.files.len() {
            return;
        }
        for name in attempt.removed {
            let what = What::Removed { version: Some(initial(name)) };
            work.files.insert(path(name), Entry::new(path(name), what));
        }
        let accept = Accept::nothing();
        work.goal = Goal::Commit { sign: attempt.sign, accept };
    }

    /// What the frozen transaction does not hold goes into another.
    fn begin_follow_up(&mut self) {
        let work = self.work.as_mut().unwrap();
        let head = self.seen.records().heads[&work.txn].record.clone();
        let held = self.seen.manifest(&head).unwrap();
        work.files.retain(|name, entry| held.get(name) != Some(&&*entry));
        work.txn = TxnId(work.txn.0 | 1);
        work.begun = false;
    }
}

enum Sent {
    Waits,
    Decided,
    Finished,
}

fn late_parts(rules: Rules<'_>, work: &Work) -> Option<Request> {
    let ids = work.files.values().filter_map(|entry| Some(entry.upload()?.id.clone()));
    (rules.mutant == Some(Mutant::SealBeforeData)).then(|| Request::Parts(ids.collect()))
}

pub fn path(name: &str) -> RelPath {
    RelPath::new(name).unwrap()
}

/// The version of a name that stands from the start.
pub fn initial(name: &str) -> ETag {
    ETag(format!("start-{name}"))
}

fn upload_id(txn: TxnId, name: &str) -> String {
    format!("{:x}-{name}", txn.0)
}

fn file(txn: TxnId, name: &str) -> Entry {
    let upload = Upload { id: upload_id(txn, name), parts: Vec::new() };
    Entry::new(path(name), What::File { size: 1, crc: None, upload, inline: None })
}
