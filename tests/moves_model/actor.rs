//! One mount: asks `moves` what to do, sends it, and hands the answers back.
//!
//! Owns what is between two requests. Does not own when a request arrives.

use std::collections::BTreeMap;

use trialfs::checkpoint::moves::{self, Action, Intent, Records, Reply, Seen, Shows, Stop, Survey};
use trialfs::checkpoint::record::{Nonce, Suffix};
use trialfs::types::ETag;

use crate::scenarios::{Cast, Mutant, Task};
use crate::store::{Answer, Object, Part, Place, Request, Tree, etag};

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Actor {
    pub id: usize,
    pub alive: bool,
    /// Requests under way; they arrive in any order.
    pub pending: Vec<Request>,
    pub seen: Seen,
    survey: Survey,
    stage: Stage,
    action: Option<Action>,
    /// Whether an answer to the present action was lost.
    lost: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Stage {
    Deciding,
    Finishing,
    /// Waits until a look says something else.
    Waiting(Shows),
    Acting,
    Collecting,
    /// What was read so far.
    Observing(Watch),
    Ended,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Watch {
    before: Option<Records>,
    source: Option<BTreeMap<Suffix, Object>>,
    destination: Option<BTreeMap<Suffix, Object>>,
    pub shown: Option<Tree>,
}

impl Actor {
    pub fn new(id: usize, cast: Cast, mutant: Option<Mutant>) -> Self {
        let stage = match cast.task {
            Task::Move => Stage::Deciding,
            Task::Help | Task::GiveUp => Stage::Finishing,
            Task::Unlink | Task::Overwrite => Stage::Waiting(Shows::Old),
            Task::MakeAgain => Stage::Waiting(Shows::Both),
            Task::WriteBlindly => Stage::Acting,
            Task::Collect => Stage::Collecting,
            Task::Observe => Stage::Observing(Watch::default()),
        };
        let mut actor = Self {
            id,
            alive: true,
            pending: Vec::new(),
            seen: Seen::default(),
            survey: Survey::default(),
            stage,
            action: None,
            lost: false,
        };
        actor.go_on(cast, mutant);
        actor
    }

    pub fn crash(&mut self) {
        self.alive = false;
        self.pending.clear();
        self.stage = Stage::Ended;
    }

    pub fn ended(&self) -> bool {
        self.stage == Stage::Ended
    }

    /// What an observer showed, once it did.
    pub fn watch(&self) -> Option<&Watch> {
        match &self.stage {
            Stage::Observing(watch) => Some(watch),
            _ => None,
        }
    }

    pub fn end_watch(&mut self) {
        self.stage = Stage::Ended;
    }

    fn go_on(&mut self, cast: Cast, mutant: Option<Mutant>) {
        let nonce = Nonce(self.id as u64 + 1);
        match self.stage.clone() {
            Stage::Deciding => self.ask(&Intent::Move { nonce }, cast, mutant),
            Stage::Finishing if cast.task == Task::GiveUp => {
                self.ask(&Intent::GiveUp { nonce }, cast, mutant);
            }
            Stage::Finishing => self.ask(&Intent::Finish, cast, mutant),
            Stage::Waiting(_) => self.pending = vec![Request::Look],
            Stage::Acting => self.act(cast, mutant),
            Stage::Collecting => {
                self.pending = vec![match mutant {
                    Some(Mutant::CollectsMovedFirst) => Request::CollectMoved,
                    _ => Request::CollectTo,
                }];
            }
            Stage::Observing(watch) => self.observe(watch, cast, mutant),
            Stage::Ended => {}
        }
    }

    fn ask(&mut self, intent: &Intent, cast: Cast, mutant: Option<Mutant>) {
        loop {
            let action = mutate(moves::next(intent, &self.seen), &self.seen, mutant);
            let version = |name: &Suffix| -> ETag {
                let decided = self.seen.records().and_then(|r| r.decided.as_ref());
                decided.map(|decided| decided.entries[name].clone()).expect("decided")
            };
            self.pending = match &action {
                Action::Look => vec![Request::Look],
                Action::Point => vec![Request::PutFrom, Request::PutInto],
                Action::Survey => {
                    self.survey = Survey::default();
                    // Directories are listed when no rival is there, and then none can be.
                    let parts = match mutant {
                        Some(Mutant::SurveysDataFirst) => vec![Part::Source, Part::Destination],
                        _ => vec![Part::Records],
                    };
                    parts.into_iter().map(Request::Survey).collect()
                }
                Action::Decide(ruling, nonce) => {
                    let entries = self.seen.survey().map(|survey| survey.entries.clone());
                    vec![Request::Decide(*ruling, *nonce, entries.unwrap_or_default())]
                }
                Action::Copy(names) => {
                    names.iter().map(|n| Request::Copy(n.clone(), version(n))).collect()
                }
                Action::Delete(names) => {
                    names.iter().map(|n| Request::Delete(n.clone(), version(n))).collect()
                }
                Action::Sweep => {
                    // Marks change nothing that is shown.
                    self.seen.answered(&action, &Reply::Done);
                    continue;
                }
                Action::Close => vec![Request::Close],
                Action::Unpoint => vec![Request::DeleteFrom, Request::DeleteInto],
                Action::Stop(stop) => return self.stopped(*stop, cast, mutant),
            };
            self.action = Some(action);
            self.lost = false;
            return;
        }
    }

    fn stopped(&mut self, stop: Stop, cast: Cast, mutant: Option<Mutant>) {
        self.pending.clear();
        match (&self.stage, stop) {
            (Stage::Deciding, Stop::Decided) => {
                self.stage = Stage::Finishing;
                self.go_on(cast, mutant);
            }
            (Stage::Acting, _) => self.pending = vec![self.change(cast)],
            // Looks again; nothing comes of it while nothing changes.
            (Stage::Finishing, Stop::Undecided) => {
                self.seen.forget();
                self.pending = vec![Request::Look];
                self.action = Some(Action::Look);
            }
            _ => self.stage = Stage::Ended,
        }
    }

    fn act(&mut self, cast: Cast, mutant: Option<Mutant>) {
        let unlinks = cast.task == Task::Unlink && mutant != Some(Mutant::UnlinksFirst);
        if unlinks {
            self.ask(&Intent::Settle(name("x")), cast, mutant);
        } else {
            self.pending = vec![self.change(cast)];
        }
    }

    fn change(&self, cast: Cast) -> Request {
        match cast.task {
            Task::Unlink => Request::Unlink((cast.rename.to, name("x"))),
            Task::Overwrite => Request::Write((cast.rename.to, name("x")), OVERWRITTEN),
            Task::MakeAgain => Request::Write((cast.rename.from, name("x")), MADE_AGAIN),
            _ => Request::Write((cast.rename.from, name("x")), WRITTEN_BLINDLY),
        }
    }

    fn observe(&mut self, watch: Watch, cast: Cast, mutant: Option<Mutant>) {
        let next = match (&watch.before, &watch.source, &watch.destination) {
            (None, ..) if mutant != Some(Mutant::LooksOnce) => Request::Look,
            (_, None, _) => Request::Read(cast.rename.from),
            (_, _, None) => Request::Read(cast.rename.to),
            _ => Request::Look,
        };
        self.pending = vec![next];
    }

    /// Takes the answer to a request that was under way.
    pub fn answered(
        &mut self,
        cast: Cast,
        request: &Request,
        answer: Answer,
        mutant: Option<Mutant>,
    ) {
        if let Some(at) = self.pending.iter().position(|pending| pending == request) {
            self.pending.remove(at);
        }
        match (self.stage.clone(), answer) {
            (Stage::Waiting(while_), Answer::Records(records)) => {
                let now = records.phase().shows();
                let early = mutant == Some(Mutant::MakesAgainEarly) && now == Shows::Both;
                let go = match cast.task {
                    Task::MakeAgain => now == Shows::New || early,
                    _ => now != while_,
                };
                if go {
                    self.seen.looked(records);
                    self.stage = Stage::Acting;
                }
            }
            (Stage::Observing(watch), answer) => self.observed(watch, cast, answer),
            (Stage::Collecting, _) => match request {
                Request::CollectTo if mutant != Some(Mutant::CollectsMovedFirst) => {
                    self.pending = vec![Request::CollectMoved];
                    return;
                }
                Request::CollectMoved if mutant == Some(Mutant::CollectsMovedFirst) => {
                    self.pending = vec![Request::CollectTo];
                    return;
                }
                _ => self.stage = Stage::Ended,
            },
            (_, Answer::Records(records)) => self.seen.looked(records),
            (_, Answer::Survey(part)) => {
                self.survey.rival |= part.rival;
                self.survey.taken |= part.taken;
                self.survey.entries.extend(part.entries);
                let data = matches!(request, Request::Survey(Part::Source | Part::Destination));
                let first = mutant == Some(Mutant::SurveysDataFirst);
                if !data && !first {
                    let parts = [Part::Source, Part::Destination];
                    self.pending = parts.map(Request::Survey).to_vec();
                } else if data && first && self.pending.is_empty() {
                    self.pending = vec![Request::Survey(Part::Records)];
                }
                if self.pending.is_empty() {
                    let mut survey = self.survey.clone();
                    survey.rival &= mutant != Some(Mutant::IgnoresRivals);
                    self.seen.surveyed(survey);
                }
            }
            (_, Answer::Plain(reply)) => self.replied(request, &reply),
            (_, Answer::Data(_)) => {}
        }
        if self.pending.is_empty() {
            self.go_on(cast, mutant);
        }
    }

    fn replied(&mut self, request: &Request, reply: &Reply) {
        match request {
            Request::Copy(name, _) => self.seen.copied(name, reply),
            Request::Delete(name, _) => self.seen.deleted(name, reply),
            Request::Write(..) | Request::Unlink(_) => self.stage = Stage::Ended,
            _ => {
                self.lost |= *reply == Reply::Lost;
                if !self.pending.is_empty() {
                    return;
                }
                let reply = if self.lost { &Reply::Lost } else { reply };
                if let Some(action) = self.action.take() {
                    self.seen.answered(&action, reply);
                }
            }
        }
    }

    fn observed(&mut self, mut watch: Watch, cast: Cast, answer: Answer) {
        let whole = watch.destination.is_some();
        match answer {
            Answer::Records(records) if whole => {
                let (before, after) = (watch.before.take(), records.phase().shows());
                // Where nothing was known before, nothing may have been decided.
                let same = before.is_none_or(|before| before.phase().shows() == after);
                let source = watch.source.take().unwrap_or_default();
                let destination = watch.destination.take().unwrap_or_default();
                watch.shown = same.then(|| shown(cast, &records, source, destination));
                if watch.shown.is_none() {
                    watch.before = Some(records);
                }
            }
            Answer::Records(records) => watch.before = Some(records),
            Answer::Data(data) if watch.source.is_none() => watch.source = Some(data),
            Answer::Data(data) => watch.destination = Some(data),
            _ => {}
        }
        self.stage = Stage::Observing(watch);
    }
}

pub const OVERWRITTEN: u8 = 9;
pub const WRITTEN_BLINDLY: u8 = 8;
pub const MADE_AGAIN: u8 = 7;

pub fn name(text: &str) -> Suffix {
    Suffix::new(text).expect("a name")
}

/// What an observer makes of its reads.
fn shown(
    cast: Cast,
    records: &Records,
    source: BTreeMap<Suffix, Object>,
    destination: BTreeMap<Suffix, Object>,
) -> Tree {
    let place =
        |dir, (name, object): (Suffix, Object)| -> (Place, u8) { ((dir, name), object.content) };
    let mut tree: Tree = destination.into_iter().map(|it| place(cast.rename.to, it)).collect();
    match (records.phase().shows(), &records.decided) {
        (Shows::Both, Some(decided)) => {
            for (name, object) in source {
                if decided.moves(name.as_str(), &etag(object)) {
                    tree.entry((cast.rename.to, name)).or_insert(object.content);
                }
            }
        }
        _ => tree.extend(source.into_iter().map(|it| place(cast.rename.from, it))),
    }
    tree
}

fn mutate(action: Action, seen: &Seen, mutant: Option<Mutant>) -> Action {
    match (action, mutant) {
        (Action::Delete(_), Some(Mutant::ClosesEarly)) => Action::Close,
        (Action::Copy(names), Some(Mutant::DeletesUncopied))
            if !names.iter().any(|name| seen.spent(name.as_str())) =>
        {
            Action::Delete(names)
        }
        (action, _) => action,
    }
}
