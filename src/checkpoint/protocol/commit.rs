//! From settled transactions to a seal: who is waited for, who is taken over, what is dropped.
//!
//! Owns invariants 4 to 7. Anybody may run it, at any time, as often as they like.

use super::Versioned;
use super::{Accept, Action, Desk, Stop, Wait};
use crate::checkpoint::record::{Cause, Head, Seal, Sealed, Sign, State, TxnId, Verdict};

impl Desk<'_> {
    /// Whatever is due, by anybody.
    pub(super) fn advance(&self) -> Action {
        match self.commit(None, &Accept::nothing()) {
            waiting @ Action::Wait(_) | waiting @ Action::Stop(_) => {
                self.publish().unwrap_or(waiting)
            }
            due => due,
        }
    }

    /// Seals the open generation and publishes it.
    pub(super) fn commit(&self, sign: Option<Sign>, accept: &Accept) -> Action {
        let live: Vec<_> = self.seen.live().collect();
        let poison =
            live.iter().filter(|(txn, head)| head.record.poisons() && !accept.0.contains(txn));
        let poison: Vec<TxnId> = poison.map(|(txn, _)| *txn).collect();
        if !poison.is_empty() {
            return Action::Stop(Stop::Poisoned(poison));
        }
        if let Some(action) = self.wait_for_open(&live) {
            return action;
        }
        let mut records: Vec<_> = live.iter().filter(|(_, head)| has_content(head)).collect();
        if records.is_empty() {
            return self.publish().unwrap_or(Action::Stop(Stop::Published(None)));
        }
        if sign.is_none() && !records.iter().any(|(_, head)| is_signed(head)) {
            return Action::Wait(Wait::Sign);
        }
        if !records.iter().all(|(txn, _)| self.seen.settled_before_look(*txn)) {
            return Action::Look;
        }
        records.sort_by_key(|(txn, head)| (head.record.order, *txn));
        let sealed = |(txn, head): &&(TxnId, &Versioned<Head>)| Sealed {
            txn: *txn,
            etag: head.etag.clone(),
        };
        let dropped = live.iter().filter(|(_, head)| !has_content(head)).map(|(txn, _)| *txn);
        self.seal(Verdict::Commit, records.iter().map(sealed).collect(), dropped.collect())
    }

    /// Takes the dead over, one by one, and waits for the living.
    fn wait_for_open(&self, live: &[(TxnId, &Versioned<Head>)]) -> Option<Action> {
        let open = live.iter().filter(|(_, head)| head.record.state == State::Open);
        let open: Vec<_> = open.collect();
        if let Some((_, dead)) = open.iter().find(|(txn, _)| self.seen.is_expired(*txn)) {
            return Some(self.swap(&dead.record, State::Aborted { cause: Cause::Lease }));
        }
        let open: Vec<TxnId> = open.iter().map(|(txn, _)| *txn).collect();
        (!open.is_empty()).then_some(Action::Wait(Wait::Open(open)))
    }

    /// Gives the open generation up, with everything that is in it, whatever its state: what is
    /// left of a dead attempt must not join the next.
    pub(super) fn void(&self) -> Action {
        let dropped = self.seen.live().map(|(txn, _)| txn).collect();
        self.seal(Verdict::Void, Vec::new(), dropped)
    }

    /// For `gc`: gives up what is settled and was never committed, once no owner is alive in it.
    pub(super) fn abandon(&self) -> Action {
        let live: Vec<_> = self.seen.live().collect();
        match self.wait_for_open(&live) {
            Some(action) => action,
            None if live.is_empty() => Action::Stop(Stop::Nothing),
            None => self.void(),
        }
    }

    fn seal(&self, verdict: Verdict, records: Vec<Sealed>, dropped: Vec<TxnId>) -> Action {
        Action::CreateSeal(Seal {
            child: self.me.child.clone(),
            writer: self.me.writer.clone(),
            nonce: self.nonce,
            generation: self.seen.open_generation(),
            verdict,
            records,
            dropped,
            unknown: Default::default(),
        })
    }
}

/// Whether a settled transaction brings something. Torn ones get here only if that was accepted.
fn has_content(head: &Versioned<Head>) -> bool {
    head.record.state.manifest().is_some()
}

fn is_signed(head: &Versioned<Head>) -> bool {
    matches!(head.record.state, State::Prepared { sign: Some(_), .. })
}
