//! What one call decides, and what a commit costs. Interleavings are run by
//! `tests/protocol_model.rs`.

use std::time::Duration;

use super::*;
use crate::checkpoint::record::{Cause, Escaped, KeyKind, RecordError, RecordKey, State, What};

const TXN: TxnId = TxnId(7);

fn me() -> Me {
    Me { child: Name::new("c").unwrap(), writer: WriterId::new("m1").unwrap() }
}

fn file(name: &str) -> (RelPath, Entry) {
    let name = RelPath::new(name).unwrap();
    let upload = Upload { id: format!("u-{}", name.as_str()), parts: vec!["p".into()] };
    let what = What::File { size: 1, crc: None, upload, inline: None };
    (name.clone(), Entry::new(name, what))
}

fn work(goal: Goal, files: impl IntoIterator<Item = (RelPath, Entry)>) -> Work {
    Work {
        txn: TXN,
        begun: false,
        files: files.into_iter().collect(),
        goal,
        rule: "ray".into(),
        loss: Loss::Alone,
        lease_ms: 30_000,
        written_as: None,
    }
}

fn commit() -> Goal {
    Goal::Commit { sign: Some(Sign::Idle), accept: Accept::nothing() }
}

/// A bucket of one writer: every conditional write holds, and a look shows what was written.
#[derive(Default)]
struct Alone {
    seen: Seen,
    asked: Vec<&'static str>,
    writes: u64,
}

impl Alone {
    fn next(&self, work: &Work) -> Action {
        next(&me(), &Intent::Write(work), &self.seen, Nonce(self.writes))
    }

    /// Runs until the protocol waits or stops; the requests are in `asked`.
    fn run(&mut self, work: &Work) -> Action {
        loop {
            self.writes += 1;
            let action = self.next(work);
            let stored = Reply::Stored(ETag(format!("e{}", self.writes)));
            match &action {
                Action::Wait(_) | Action::Stop(_) => return action,
                Action::Look => {
                    self.asked.push("look");
                    self.seen.looked(self.seen.known(), self.seen.records().clone());
                }
                Action::Publish { generation, steps } => {
                    for step in steps {
                        self.asked.push("publish");
                        self.seen.published(*generation, step, &stored);
                    }
                }
                Action::CreateHead(_) => self.write("head", &action, stored),
                Action::SwapHead { .. } => self.write("swap", &action, stored),
                Action::CreateSeq(_) => self.write("seq", &action, stored),
                Action::CreateSeal(_) => self.write("seal", &action, stored),
                Action::CreateDone(_) => self.write("done", &action, stored),
                other => panic!("{other:?}"),
            }
        }
    }

    fn write(&mut self, what: &'static str, action: &Action, reply: Reply) {
        self.asked.push(what);
        self.seen.answered(action, reply);
    }

    fn head(&self) -> State {
        self.seen.records().heads[&TXN].record.state.clone()
    }
}

#[test]
fn from_the_last_close_to_the_seal_are_four_requests() {
    let mut alone = Alone::default();
    alone.run(&work(Goal::Hold, []));
    assert_eq!(alone.asked, ["look", "head"], "what mkdir costs");
    let names: Vec<String> = (0..20).map(|i| format!("f{i}")).collect();
    let files = || names.iter().map(|name| file(name));
    alone.asked.clear();
    assert_eq!(alone.run(&work(Goal::Hold, files())), Action::Stop(Stop::Held));
    let published = Action::Stop(Stop::Published(Some(Generation(1))));
    assert_eq!(alone.run(&work(commit(), files())), published);
    assert_eq!(alone.asked[..4], ["seq", "swap", "look", "seal"], "visible from here on");
    assert_eq!(alone.asked[4..24], ["publish"; 20]);
    assert_eq!(alone.asked[24..], ["done"]);
}

#[test]
fn what_is_not_yet_written_down_goes_into_the_head() {
    let mut alone = Alone::default();
    alone.run(&work(commit(), [file("a"), file("b")]));
    assert_eq!(alone.asked[..5], ["look", "head", "swap", "look", "seal"]);
}

#[test]
fn an_empty_transaction_never_commits() {
    let mut alone = Alone::default();
    assert_eq!(alone.run(&work(commit(), [])), Action::Stop(Stop::Nothing));
    assert_eq!(alone.head(), State::Open);
}

#[test]
fn an_empty_directory_commits_as_its_marker() {
    let root = Entry::new(RelPath::root(), What::Directory);
    let mut alone = Alone::default();
    let work = work(commit(), [(RelPath::root(), root)]);
    assert_eq!(alone.run(&work), Action::Stop(Stop::Published(Some(Generation(1)))));
    assert_eq!(standing(&alone.seen), Standing::Published);
}

#[test]
fn a_withdrawn_transaction_poisons_nothing() {
    let mut alone = Alone::default();
    alone.run(&work(Goal::Hold, [file("a")]));
    assert_eq!(alone.run(&work(Goal::Withdraw, [])), Action::Stop(Stop::Nothing));
    assert_eq!(alone.head(), State::Aborted { cause: Cause::Withdrawn });
    let again = Work { txn: TxnId(8), ..work(commit(), [file("b")]) };
    let published = alone.run(&again);
    assert_eq!(published, Action::Stop(Stop::Published(Some(Generation(1)))));
}

#[test]
fn a_file_that_is_gone_again_leaves_no_trace_in_the_commit() {
    let mut alone = Alone::default();
    alone.run(&work(Goal::Hold, [file("a"), file("b")]));
    alone.asked.clear();
    alone.run(&work(commit(), [file("b")]));
    assert_eq!(alone.asked, ["swap", "look", "seal", "publish", "done"]);
}

#[test]
fn a_renewal_changes_the_version_and_nothing_else() {
    let mut alone = Alone::default();
    alone.run(&work(Goal::Hold, [file("a")]));
    let etag = |alone: &Alone| alone.seen.records().heads[&TXN].etag.clone();
    let before = etag(&alone);
    let renew = alone.next(&work(Goal::Renew, [file("a")]));
    let Action::SwapHead { over, head } = &renew else { panic!("{renew:?}") };
    assert_eq!((over, &head.state), (&before, &State::Open));
    alone.seen.answered(&renew, Reply::Stored(ETag("renewed".into())));
    assert_ne!(etag(&alone), before);
}

#[test]
fn a_lost_answer_is_looked_after_before_anything_else() {
    let mut alone = Alone::default();
    alone.run(&work(Goal::Hold, [file("a")]));
    let swap = alone.next(&work(commit(), [file("a")]));
    alone.seen.answered(&swap, Reply::Lost);
    assert_eq!(alone.next(&work(commit(), [file("a")])), Action::Look);
}

#[test]
fn a_lease_is_over_only_after_the_same_version_was_watched_for_all_of_it() {
    let mut alone = Alone::default();
    alone.run(&work(Goal::Hold, []));
    let (mut watch, s) = (Watch::default(), Duration::from_secs);
    let mut dead = |alone: &mut Alone, began: u64, ended: u64| {
        watch.observe(s(began), s(ended), &mut alone.seen);
        alone.seen.is_expired(TXN)
    };
    assert!(!dead(&mut alone, 100, 110), "whatever stood there before, nobody watched it");
    assert!(!dead(&mut alone, 139, 145), "29 s of 30");
    let renew = alone.next(&work(Goal::Renew, []));
    alone.seen.answered(&renew, Reply::Stored(ETag("renewed".into())));
    assert!(!dead(&mut alone, 150, 151), "another version");
    assert!(dead(&mut alone, 181, 182));
    let swap = next(&me(), &Intent::Advance, &alone.seen, Nonce(1));
    let Action::SwapHead { head, .. } = swap else { panic!("{swap:?}") };
    assert_eq!(head.state, State::Aborted { cause: Cause::Lease });
    alone.seen.looked(alone.seen.known(), Records::default());
    assert!(!alone.seen.is_expired(TXN));
}

#[test]
fn a_hostile_lease_is_cut_to_the_bound() {
    let mut alone = Alone::default();
    alone.run(&Work { lease_ms: u64::MAX, ..work(Goal::Hold, []) });
    let mut watch = Watch::default();
    watch.observe(Duration::ZERO, Duration::ZERO, &mut alone.seen);
    watch.observe(lease::LEASE_MAX, lease::LEASE_MAX, &mut alone.seen);
    assert!(alone.seen.is_expired(TXN));
}

#[test]
fn a_record_that_can_not_be_read_stops_everything() {
    let mut records = Records::default();
    let child = Escaped::of(&me().child);
    let key = RecordKey { child, kind: KeyKind::Seal(Generation(1)) };
    records.unreadable.insert(key, RecordError::Future(2));
    let mut seen = Seen::default();
    seen.looked(seen.known(), records);
    for intent in [Intent::Advance, Intent::Publish, Intent::Abandon, Intent::Recover] {
        let action = next(&me(), &intent, &seen, Nonce(1));
        assert_eq!(action, Action::Stop(Stop::Unreadable), "{intent:?}");
    }
    assert_eq!(view(&seen), Err(Unclear::Unreadable));
}

#[test]
fn to_others_an_open_directory_is_nameable_and_a_sealed_one_is_listed() {
    let mut alone = Alone::default();
    let show = |seen: &Seen| {
        let mut seen = seen.clone();
        seen.listed(seen.commits(), Listing::new());
        seen.looked(seen.known(), seen.records().clone());
        (presence(&seen, &view(&seen).unwrap()), standing(&seen))
    };
    alone.run(&work(Goal::Hold, [file("a")]));
    assert_eq!(show(&alone.seen), (Presence::Nameable, Standing::Open));
    let swap = alone.next(&work(commit(), [file("a")]));
    alone.seen.answered(&swap, Reply::Stored(ETag("prepared".into())));
    assert_eq!(show(&alone.seen), (Presence::Nameable, Standing::Prepared));
    while !matches!(alone.next(&work(commit(), [file("a")])), Action::Publish { .. }) {
        let action = alone.next(&work(commit(), [file("a")]));
        match action {
            Action::Look => alone.seen.looked(alone.seen.known(), alone.seen.records().clone()),
            act => alone.seen.answered(&act, Reply::Stored(ETag("sealed".into()))),
        }
    }
    assert_eq!(show(&alone.seen), (Presence::Listed, Standing::Sealed));
}

#[test]
fn what_nobody_commits_is_given_up_by_gc_and_its_writer_is_told() {
    let mut alone = Alone::default();
    let unsigned = Goal::Commit { sign: None, accept: Accept::nothing() };
    let work = work(unsigned, [file("a")]);
    assert_eq!(alone.run(&work), Action::Wait(Wait::Sign));
    let void = next(&me(), &Intent::Abandon, &alone.seen, Nonce(99));
    assert!(matches!(void, Action::CreateSeal(_)), "{void:?}");
    alone.seen.answered(&void, Reply::Stored(ETag("void".into())));
    assert_eq!(alone.run(&work), Action::Stop(Stop::Dropped));
}
