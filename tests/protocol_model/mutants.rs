//! Protocols that are wrong in one thing each. Every one must be caught.
//!
//! Owns how a mutant differs in what an actor decides; what differs in the store stands there.

use std::sync::Arc;

use trialfs::checkpoint::protocol::{
    Accept, Action, Becomes, Intent, Listing, Me, Publish, Records, Removal, Seen, Stop, Versioned,
    next,
};
use trialfs::checkpoint::record::{
    Cause, Done, Head, Manifest, Nonce, SeqRef, Sign, State, TxnId, Verdict,
};

use crate::scenarios::{self, Scenario};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mutant {
    /// A file is in the manifest before its parts are stored.
    SealBeforeData,
    TakeoverWithoutCompare,
    PublishBeforeSeal,
    /// The newest generation is published first.
    GenerationIgnored,
    TornIgnored,
    /// Publishing writes the object, however often, in place of completing an upload.
    PublishByPut,
    /// A rescuer prepares what a dead owner had written down.
    TakeoverCommits,
    /// An observer reads the records once, before the data.
    OneList,
    /// A seal is made of a look that began before its records were settled.
    SealWithoutFreshLook,
    /// A rescuer seals what it first saw settled in the very look it seals from.
    SealOfOneLook,
    /// The done is created while something of its generation is not in place.
    DoneEarly,
    /// An unlink does not finish what is sealed.
    UnlinkWithoutFinishing,
    /// An unlink reads the version after the records.
    UnlinkReadsLast,
    RemovalWithoutCompare,
    /// A seal is written whether one stands there or not.
    SealOverSeal,
    /// A void seal drops what it names, not all that was begun before it.
    VoidForgetsTheUnnamed,
    /// An explicit commit takes losses that it comes to know while it waits.
    AcceptsWhatComes,
    /// The seal is collected before its heads.
    SealCollectedFirst,
    /// Records are collected by what was seen before they were sealed.
    CollectedUnseen,
    /// What begins when the sign of a generation has come still joins it.
    JoinsTheComplete,
    /// Nothing keeps the number of the last generation.
    NumberForgotten,
}

/// What the protocol says, or what a mutant makes of it.
pub fn decide(
    mutant: Option<Mutant>,
    me: &Me,
    intent: &Intent<'_>,
    seen: &Seen,
    nonce: Nonce,
) -> Action {
    let right = || next(me, intent, seen, nonce);
    let Some(mutant) = mutant else { return right() };
    match mutant {
        Mutant::PublishBeforeSeal => publish_before_seal(intent, seen).unwrap_or_else(right),
        Mutant::GenerationIgnored => newest_first(right(), me, seen, nonce),
        Mutant::TakeoverCommits => match right() {
            Action::SwapHead { over, head } if is_takeover(&head) => {
                let state = prepared_for_it(seen, head.txn);
                Action::SwapHead { over, head: Head { state, ..head } }
            }
            action => action,
        },
        Mutant::SealOfOneLook if !matches!(intent, Intent::Advance) => right(),
        Mutant::SealWithoutFreshLook | Mutant::SealOfOneLook => match right() {
            Action::Look if seen.is_current() => {
                let mut blind = seen.clone();
                blind.looked(seen.known(), seen.records().clone());
                next(me, intent, &blind, nonce)
            }
            action => action,
        },
        Mutant::DoneEarly => match right() {
            Action::Publish { generation, steps } if steps.len() == 1 => {
                let (child, writer) = (me.child.clone(), me.writer.clone());
                Action::CreateDone(Done {
                    child,
                    writer,
                    nonce,
                    generation,
                    unknown: <_>::default(),
                })
            }
            action => action,
        },
        Mutant::UnlinkWithoutFinishing => match (right(), intent, seen.confirmed_data()) {
            (
                Action::Publish { .. } | Action::CreateDone(_),
                Intent::Unlink { name },
                Some(data),
            ) => delete(name, data),
            (action, ..) => action,
        },
        Mutant::AcceptsWhatComes => match intent {
            Intent::Write(work) => {
                use trialfs::checkpoint::protocol::{Goal, Work};
                let Goal::Commit { sign: Some(Sign::Explicit), .. } = work.goal else {
                    return right();
                };
                let accept = Accept::what_is_lost(seen);
                let goal = Goal::Commit { sign: Some(Sign::Explicit), accept };
                next(me, &Intent::Write(&Work { goal, ..(*work).clone() }), seen, nonce)
            }
            _ => right(),
        },
        Mutant::SealCollectedFirst => match right() {
            Action::Collect(batch) => match seen.records().seals.iter().next() {
                Some((generation, seal)) => {
                    let (generation, version) = (*generation, seal.etag.clone());
                    Action::Collect(vec![Removal::Seal { generation, version }])
                }
                None => Action::Collect(batch),
            },
            action => action,
        },
        Mutant::CollectedUnseen => match (right(), intent) {
            (Action::Look, Intent::Collect { .. }) if seen.is_current() => {
                let mut blind = seen.clone();
                blind.looked(seen.known(), seen.records().clone());
                next(me, intent, &blind, nonce)
            }
            (action, _) => action,
        },
        Mutant::JoinsTheComplete => match intent {
            Intent::Write(work) if !seen.records().heads.contains_key(&work.txn) => {
                let mut blind = seen.clone();
                let mut records = seen.records().clone();
                records.heads.values_mut().for_each(take_sign_away);
                if seen.is_current() {
                    blind.looked(seen.known(), records);
                }
                next(me, intent, &blind, nonce)
            }
            _ => right(),
        },
        Mutant::NumberForgotten => match (right(), intent) {
            (Action::Stop(Stop::Nothing), Intent::Collect { .. })
                if seen.records().seals.is_empty() && seen.done().0 > 0 =>
            {
                Action::Collect(vec![Removal::Done { generation: seen.done() }])
            }
            (action, _) => action,
        },
        // These differ in what is read, in the store, in what a process does, or in how one looks.
        Mutant::TornIgnored | Mutant::VoidForgetsTheUnnamed => right(),
        Mutant::SealBeforeData
        | Mutant::TakeoverWithoutCompare
        | Mutant::PublishByPut
        | Mutant::OneList
        | Mutant::UnlinkReadsLast
        | Mutant::RemovalWithoutCompare
        | Mutant::SealOverSeal => right(),
    }
}

/// What a mutant makes of the records that a look shows.
pub fn misread(mutant: Option<Mutant>, records: &mut Records) {
    let mut seals = records.seals.values();
    let void = seals.rfind(|seal| seal.record.verdict == Verdict::Void);
    let voided = void.map(|seal| seal.record.generation).unwrap_or_default();
    for head in records.heads.values_mut() {
        let now = Head::clone(&head.record);
        let misread = match (mutant, &now.state) {
            (Some(Mutant::TornIgnored), State::Torn { manifest }) => {
                let (manifest, sign) = (manifest.clone(), Some(Sign::Idle));
                Head { state: State::Prepared { manifest, sign }, ..now }
            }
            (Some(Mutant::VoidForgetsTheUnnamed), _) => {
                Head { generation: now.generation.max(voided.next()), ..now }
            }
            _ => continue,
        };
        head.record = Arc::new(misread);
    }
}

fn publish_before_seal(intent: &Intent<'_>, seen: &Seen) -> Option<Action> {
    let Intent::Write(work) = intent else { return None };
    let head = seen.live().find(|(txn, _)| *txn == work.txn)?.1;
    let content = match &head.record.state {
        State::Prepared { .. } => seen.manifest(&head.record).ok()?,
        _ => return None,
    };
    let generation = seen.open_generation();
    let steps = content.into_values().filter_map(|entry| {
        let (name, upload) = (entry.name.clone(), entry.upload()?.clone());
        Some(Publish::Complete { name, upload })
    });
    let steps: Vec<_> = steps.filter(|step| !seen.is_spent(generation, step)).collect();
    (!steps.is_empty()).then_some(Action::Publish { generation, steps })
}

fn newest_first(right: Action, me: &Me, seen: &Seen, nonce: Nonce) -> Action {
    if !matches!(right, Action::Publish { .. } | Action::CreateDone(_)) {
        return right;
    }
    let Some(newest) = seen.unpublished_all().last() else { return right };
    let (seal, generation) = (&newest.record, newest.record.generation);
    let Ok(content) = seen.content(seal) else { return right };
    let steps = content.into_values().filter_map(|becomes| {
        let Becomes::Made(entry) = becomes else { return None };
        let (name, upload) = (entry.name.clone(), entry.upload()?.clone());
        Some(Publish::Complete { name, upload })
    });
    let steps: Vec<_> = steps.filter(|step| !seen.is_spent(generation, step)).collect();
    if !steps.is_empty() {
        return Action::Publish { generation, steps };
    }
    let oldest = seen.unpublished_all().next().map(|seal| seal.record.generation);
    if oldest != Some(generation) {
        // The newest is in place; go on with the oldest.
        return right;
    }
    let (child, writer) = (me.child.clone(), me.writer.clone());
    Action::CreateDone(Done { child, writer, nonce, generation, unknown: <_>::default() })
}

fn take_sign_away(head: &mut Versioned<Head>) {
    if let State::Prepared { manifest, .. } = &head.record.state {
        let state = State::Prepared { manifest: manifest.clone(), sign: None };
        head.record = Arc::new(Head { state, ..Head::clone(&head.record) });
    }
}

fn is_takeover(head: &Head) -> bool {
    head.state == State::Aborted { cause: Cause::Lease }
}

fn prepared_for_it(seen: &Seen, txn: TxnId) -> State {
    let nonce = |id| seen.body(id).map_or(Nonce(0), |body| body.nonce);
    let seqs = seen.seqs_of(txn).map(|id| SeqRef { seq: id.1, nonce: nonce(id) }).collect();
    let manifest = Manifest { seqs, entries: Vec::new() };
    State::Prepared { manifest, sign: Some(Sign::Idle) }
}

fn delete(name: &trialfs::checkpoint::record::RelPath, data: &Listing) -> Action {
    match data.get(name) {
        Some(version) => Action::DeleteFile { name: name.clone(), version: version.clone() },
        None => Action::Stop(Stop::Absent),
    }
}

/// Every mutant, and where it shows.
pub fn all() -> Vec<(Mutant, Scenario)> {
    vec![
        (Mutant::SealBeforeData, scenarios::one_writer()),
        (Mutant::TakeoverWithoutCompare, scenarios::one_writer()),
        (Mutant::PublishBeforeSeal, scenarios::one_writer()),
        (Mutant::GenerationIgnored, scenarios::later_commit()),
        (Mutant::TornIgnored, scenarios::retry()),
        (Mutant::PublishByPut, scenarios::later_commit()),
        (Mutant::PublishByPut, scenarios::later_unlink()),
        (Mutant::TakeoverCommits, scenarios::one_writer()),
        (Mutant::OneList, scenarios::unlink()),
        (Mutant::SealWithoutFreshLook, scenarios::two_writers()),
        (Mutant::SealOfOneLook, scenarios::paged()),
        (Mutant::DoneEarly, scenarios::one_writer()),
        (Mutant::UnlinkWithoutFinishing, scenarios::unlink()),
        (Mutant::UnlinkReadsLast, scenarios::unlink()),
        (Mutant::RemovalWithoutCompare, scenarios::removal()),
        (Mutant::SealOverSeal, scenarios::two_writers()),
        (Mutant::VoidForgetsTheUnnamed, scenarios::poison()),
        (Mutant::AcceptsWhatComes, scenarios::poison()),
        (Mutant::SealCollectedFirst, scenarios::collection(1)),
        (Mutant::CollectedUnseen, scenarios::collection_of_void()),
        (Mutant::JoinsTheComplete, scenarios::next_round()),
        (Mutant::NumberForgotten, scenarios::collection(1)),
    ]
}
