//! The head of a transaction: its states, and what each carries.
//!
//! Owns that a head says nothing that its state can't say (a manifest while open, a cause while
//! prepared). Does not own which state may follow which (`protocol`).

use serde::{Deserialize, Serialize};

use super::id::plain;
use super::{Entry, Generation, Nonce, RecordError, TxnId, Unknown, WriterId};
use crate::types::Name;

/// The longest name of a rule that is kept, in bytes.
const RULE_BYTES_MAX: usize = 255;

/// One mount's transaction on one checkpoint directory.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Wire", into = "Wire")]
pub struct Head {
    pub child: Name,
    /// Who wrote this version: the owner, but for a takeover.
    pub writer: WriterId,
    pub nonce: Nonce,
    pub txn: TxnId,
    pub generation: Generation,
    pub order: u64,
    pub lease_ms: u64,
    /// The name that the directory has until it is complete, where that is another.
    pub written_as: Option<Name>,
    pub rule: String,
    pub loss: Loss,
    pub state: State,
    pub unknown: Unknown,
}

/// What becomes of a generation when the owner of one of its records dies before preparing it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Loss {
    /// The others commit without it: one writer fills such a directory, another is its retry.
    Alone,
    /// They may not: ranks fill such a directory together.
    Poison,
}

/// Where a transaction stands. All but the first are final.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum State {
    /// Files are being written.
    Open,
    /// Whole; never changed again. Without a sign it waits for somebody else's.
    Prepared { manifest: Manifest, sign: Option<Sign> },
    /// A process was killed in the midst of it. The manifest names what is whole.
    Torn { manifest: Manifest },
    /// Never to be committed.
    Aborted { cause: Cause },
}

/// What a transaction is made of: the seqs in order, then the entries; the last wins a name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Manifest {
    pub seqs: Vec<SeqRef>,
    pub entries: Vec<Entry>,
}

/// A seq that is part of a manifest. The nonce keeps out a late one of the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SeqRef {
    pub seq: u32,
    pub nonce: Nonce,
}

/// Why a prepared transaction may be sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sign {
    /// Its rule commits when it is quiet, or at a clean unmount.
    Idle,
    /// The sign of its rule came.
    Sign,
    /// Somebody asked for it.
    Explicit,
}

/// Why a transaction was aborted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// Its own mount gave it up: nothing is left in it.
    Withdrawn,
    /// Its own mount was restarted and doesn't know what was left.
    Restart,
    /// Its lease was over.
    Lease,
}

impl State {
    pub fn manifest(&self) -> Option<&Manifest> {
        match self {
            State::Prepared { manifest, .. } | State::Torn { manifest } => Some(manifest),
            State::Open | State::Aborted { .. } => None,
        }
    }
}

impl Head {
    /// Whether its owner was gone before it was whole.
    pub fn was_lost(&self) -> bool {
        matches!(self.state, State::Aborted { cause: Cause::Lease | Cause::Restart })
    }

    /// Whether it keeps its generation from being sealed (but by who accepts that).
    pub fn poisons(&self) -> bool {
        match self.state {
            State::Torn { .. } => true,
            State::Aborted { .. } => self.was_lost() && self.loss == Loss::Poison,
            State::Open | State::Prepared { .. } => false,
        }
    }
}

/// A head's fields as they stand in JSON.
#[derive(Serialize, Deserialize)]
struct Wire {
    #[serde(with = "plain")]
    child: Name,
    writer: WriterId,
    nonce: Nonce,
    txn: TxnId,
    generation: Generation,
    order: u64,
    lease_ms: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    written_as: Option<PlainName>,
    #[serde(default)]
    rule: String,
    loss: Loss,
    state: WireState,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    manifest: Option<Manifest>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sign: Option<Sign>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cause: Option<Cause>,
    #[serde(flatten)]
    unknown: Unknown,
}

#[derive(Serialize, Deserialize)]
struct PlainName(#[serde(with = "plain")] Name);

#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum WireState {
    Open,
    Prepared,
    Torn,
    Aborted,
}

impl TryFrom<Wire> for Head {
    type Error = RecordError;

    fn try_from(wire: Wire) -> Result<Self, RecordError> {
        let state = match (wire.state, wire.manifest, wire.sign, wire.cause) {
            (WireState::Open, None, None, None) => State::Open,
            (WireState::Prepared, Some(manifest), sign, None) => State::Prepared { manifest, sign },
            (WireState::Torn, Some(manifest), None, None) => State::Torn { manifest },
            (WireState::Aborted, None, None, Some(cause)) => State::Aborted { cause },
            _ => return Err(RecordError::Invalid("a head that contradicts its state".into())),
        };
        if wire.rule.len() > RULE_BYTES_MAX {
            return Err(RecordError::Invalid("a rule with too long a name".into()));
        }
        Ok(Self {
            child: wire.child,
            writer: wire.writer,
            nonce: wire.nonce,
            txn: wire.txn,
            generation: wire.generation,
            order: wire.order,
            lease_ms: wire.lease_ms,
            written_as: wire.written_as.map(|name| name.0),
            rule: wire.rule,
            loss: wire.loss,
            state,
            unknown: wire.unknown,
        })
    }
}

impl From<Head> for Wire {
    fn from(head: Head) -> Wire {
        let (state, manifest, sign, cause) = match head.state {
            State::Open => (WireState::Open, None, None, None),
            State::Prepared { manifest, sign } => (WireState::Prepared, Some(manifest), sign, None),
            State::Torn { manifest } => (WireState::Torn, Some(manifest), None, None),
            State::Aborted { cause } => (WireState::Aborted, None, None, Some(cause)),
        };
        Wire {
            child: head.child,
            writer: head.writer,
            nonce: head.nonce,
            txn: head.txn,
            generation: head.generation,
            order: head.order,
            lease_ms: head.lease_ms,
            written_as: head.written_as.map(PlainName),
            rule: head.rule,
            loss: head.loss,
            state,
            manifest,
            sign,
            cause,
            unknown: head.unknown,
        }
    }
}
