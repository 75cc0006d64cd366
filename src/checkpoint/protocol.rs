//! The commit protocol: [`next`] says, of what a mount wants and what it has seen of one checkpoint
//! directory, the one thing to ask of the store now.
//!
//! Owns every decision between mkdir and the last completed upload. Does not own requests, waiting,
//! time (the lease watch takes it by argument), ids (drawn by the caller) or rules (which only say
//! when a [`Goal`] becomes what). Retry, takeover and crash recovery have no code of their own:
//! they are the same call on a fresh observation.
//!
//! # How to drive it
//!
//! Keep one [`Seen`] for each directory. Ask [`next`]; send what it says with no retry inside; hand
//! the answer to [`Seen::answered`], [`Seen::looked`], [`Seen::listed`], [`Seen::fetched`],
//! [`Seen::published`] or [`Seen::removed`]; ask again. A request without an answer is
//! [`Reply::Lost`], after which a look comes by itself. [`Action::Wait`] and [`Action::Stop`] end
//! the round.
//!
//! # States
//!
//! ```text
//! create            create       swap            create            complete each    create
//! head ---> open ---> seq .. ---> prepared -----> SEAL: commit ---> upload --------> done
//!            |                       |
//!            +-swap-> torn ----------+----------> seal: void (poisoned, given up)
//!            +-swap-> aborted (withdrawn, or its owner is gone)
//! ```
//!
//! | transition | where |
//! | --- | --- |
//! | nothing -> open, open -> prepared, torn, aborted by its owner | `write.rs` |
//! | open -> aborted by others; generation -> sealed, void | `commit.rs` |
//! | sealed -> published -> done; unlink of what is published | `publish.rs` |
//! | records -> gone | `collect.rs` |
//! | records, data, records -> what an observer shows | `view.rs` |
//!
//! # Invariants
//!
//! Each with the interleaving that it is there for. `tests/protocol_model.rs` runs them all.
//!
//! 1. **Data before word.** A seq names uploads whose parts are all stored; a manifest names seqs
//!    that are. *Bad: seq, prepared, seal; the owner dies; the parts never came; a committed file
//!    has no bytes.*
//! 2. **Only an open head changes, only by a swap from the version seen, and only its owner
//!    prepares it; anybody else aborts.** *Bad: rescuer reads `open`; owner prepares; rescuer
//!    writes `aborted` over it without comparing; somebody sealed it in between; a committed record
//!    says aborted. Or: rescuer prepares what it finds; the owner, alive, had one more file to
//!    close.*
//! 3. **A manifest names its seqs by nonce; what comes after is not in it.** *Bad: the swap to
//!    prepared gets no answer and is late; the owner reads `open`, closes one more file and writes
//!    a seq; the swap arrives. The file is in no manifest: the owner learns it from the refused
//!    swap ([`Stop::Frozen`]) and puts it into its next transaction.*
//! 4. **One seal for each generation, by create-if-absent; its number is one more than the highest
//!    seal or done, and the highest done is kept,** so no number is used twice. *Bad: generation 1
//!    is published and collected; a new writer's generation is 1 again; a stalled mount creates the
//!    old seal 1.*
//! 5. **A commit seal lists all that is prepared and drops all that is aborted, of a look that
//!    began when each record it lists was already known to be settled; nothing is open in it.**
//!    Then whatever overlapped one of them is in the look. *Bad: LIST passes B's key; B begins; A
//!    prepares; LIST reads A; A is sealed without B, its sibling rank: half a directory.*
//! 6. **A torn record, or a lost one under [`Loss::Poison`], poisons its generation.** It is only
//!    sealed by who accepts that very loss, knowing it; else the next transaction begun there voids
//!    it, and drops all that is in it. Both are the same create-if-absent. *Bad: rank 0's explicit
//!    commit waits for rank 1; rank 1 is killed; the waiting commit takes the torn record along.*
//!    So what is accepted is named in the [`Accept`] of the request, not found while it waits.
//! 7. **A record belongs to the last seal that names it; else to a void seal of its own generation
//!    or a later one; else to the open generation.** *Bad: a seal that did not see it takes its
//!    generation away; it would wait for ever. Or: rank 1 looks; rank 0 is killed; rank 1 begins; a
//!    retry, which did not see rank 1, voids the generation; rank 1 is committed alone in the
//!    next.*
//! 8. **Only sealed generations are published, the oldest first, and a name of one only when every
//!    name of the ones before is spent.** An upload completes at most once, a removal names the
//!    version it removes. So a request that is late, twice, or sent by a mount that slept, finds
//!    nothing to do. *Bad: generation 2's file is in place; a sleeping publisher of generation 1
//!    wakes and puts the old one over it. Or: the file is unlinked, and the sleeper brings it
//!    back.*
//! 9. **A done is created only when every name of its generation, and of all before, is spent.**
//!    Until then observers lay the manifest over the data; afterwards the data speaks. *Bad: done,
//!    then the completion; in between the file is missing.*
//! 10. **Who changes a published key directly first finishes what is sealed, and changes the
//!     version it read before the look that said so.** *Bad: look (no seal); seal; completion;
//!     HEAD; delete: a file of an undone generation is gone, observers show it until done, then
//!     not. Or: unlinked while sealed and not completed: the completion brings it back.*
//! 11. **An observer reads records, data, records, and shows nothing if the commits differ.** *Bad:
//!     records (no seal); the generation is sealed and half of it completed; LIST shows half.*
//! 12. **Records go when published: seqs, then heads, then the seal, then older dones; the seal by
//!     its version; none while a look that began after the seal shows an undecided transaction as
//!     old.** *Bad: the seal goes first; its prepared records look undecided, are sealed again, and
//!     bring back what was deleted since. Or: the seal goes; a sleeper creates the one that it had
//!     decided on, which lists an undecided transaction too: that one counts as published, and
//!     never is.*
//! 13. **What begins when a generation has its sign begins only after its seal.** *Bad: rank 0's
//!     sign is prepared; rank 1 begins the next save before the seal; the seal waits for it and
//!     takes the first half of that save along.* Quiet is no such sign: a rank that pauses goes on.
//!
//! # Assumed of the store
//!
//! Read-after-write and list-after-write. PUT whole or not at all; If-None-Match and If-Match; an
//! uncompleted upload is invisible and completes at most once; DELETE with If-Match; ETags (with
//! our nonces) never alike for two versions of a record. A version of a *file* that was deleted
//! does not come back with the same ETag while a delete of it is still under way. No request
//! arrives an hour late.

use std::collections::{BTreeMap, BTreeSet};

use super::record::{
    Done, Entry, Generation, Head, Loss, Nonce, RelPath, Seal, Seq, Sign, TxnId, Upload, WriterId,
};
use crate::types::{ETag, Name};

mod collect;
mod commit;
pub mod lease;
mod publish;
pub mod seen;
mod view;
mod write;

pub use lease::Watch;
pub use seen::{
    Becomes, Commits, Content, Fate, Known, Listing, Records, Reply, Seen, Unclear, Versioned,
};
pub use view::{Presence, Shown, Standing, View, presence, standing, view};

/// Who asks, and about which directory.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Me {
    pub child: Name,
    pub writer: WriterId,
}

/// What a mount wants of a checkpoint directory.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Intent<'a> {
    /// Carry its own transaction on.
    Write(&'a Work),
    /// Commit what others wrote: the sign came here, or somebody asked.
    Commit { sign: Sign, accept: &'a Accept },
    /// Whatever is due: abort the dead, seal what has its sign, publish. Anybody may at any time.
    Advance,
    /// Publish what is sealed: before reading, overwriting or renaming a name in it.
    Publish,
    /// Remove a published name at once, outside any transaction.
    Unlink { name: &'a RelPath },
    /// Abort what an earlier life of this mount left open.
    Recover,
    /// Give the open generation up: `gc`, long after the last write.
    Abandon,
    /// Remove records of generations up to this one, all done for an hour.
    Collect { upto: Generation },
}

/// A transaction of ours, as we want it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Work {
    /// Drawn anew for each transaction.
    pub txn: TxnId,
    /// Whether its head was once seen in the bucket (it is in [`Records::heads`]).
    pub begun: bool,
    /// What it makes of each name. Uploads have all their parts in the store.
    pub files: BTreeMap<RelPath, Entry>,
    pub goal: Goal,
    /// The name of its rule, and what that rule says of losses.
    pub rule: String,
    pub loss: Loss,
    pub lease_ms: u64,
    /// The name that the directory has until it is complete, where that is another.
    pub written_as: Option<Name>,
}

/// How far a transaction is to go.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Goal {
    /// Begin it, and write down what is closed.
    Hold,
    /// Renew its lease, once for each call.
    Renew,
    /// Freeze it; seal it as soon as it has a sign, its own or another's; publish.
    Commit { sign: Option<Sign>, accept: Accept },
    /// A process was killed in the midst of it.
    Tear,
    /// Nothing is left in it.
    Withdraw,
}

/// The losses that whoever asks for a commit knows of and takes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Accept(pub BTreeSet<TxnId>);

impl Accept {
    pub fn nothing() -> Self {
        Self::default()
    }

    /// Everything that is lost as far as was seen.
    pub fn what_is_lost(seen: &Seen) -> Self {
        let lost = seen.live().filter(|(_, head)| head.record.poisons());
        Self(lost.map(|(txn, _)| txn).collect())
    }
}

/// The one next thing.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Action {
    /// LIST the records and GET what is new. 1 request, and 1 for each new head and seal.
    Look,
    /// LIST the data below the directory. 1 request a page.
    LookData,
    /// GET these seqs, in parallel. 1 request each.
    Fetch(Vec<(TxnId, u32)>),
    /// PUT if absent. 1 request each.
    CreateHead(Head),
    CreateSeq(Seq),
    CreateSeal(Seal),
    CreateDone(Done),
    /// PUT if it still is this version. 1 request.
    SwapHead {
        over: ETag,
        head: Head,
    },
    /// Any of these, in any order or all at once. 1 request each.
    Publish {
        generation: Generation,
        steps: Vec<Publish>,
    },
    /// DELETE of a published file, if it still is this version. [`Reply::Absent`] ends the unlink.
    DeleteFile {
        name: RelPath,
        version: ETag,
    },
    /// All of these, in any order or all at once. 1 request each, and 1 for each upload.
    Collect(Vec<Removal>),
    /// Ask again when something changed: poll, or when a lease is over.
    Wait(Wait),
    Stop(Stop),
}

/// One step of publishing.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Publish {
    /// Complete the upload, unconditionally: at most one completion of it ever counts.
    Complete { name: RelPath, upload: Upload },
    /// PUT of a directory's marker, if absent. Not at most once: one that is an hour late makes an
    /// empty directory that was removed since.
    Mark { name: RelPath },
    /// DELETE if it still is this version.
    Delete { name: RelPath, version: ETag },
}

impl Publish {
    pub fn name(&self) -> &RelPath {
        match self {
            Publish::Complete { name, .. }
            | Publish::Mark { name }
            | Publish::Delete { name, .. } => name,
        }
    }
}

/// A record to delete.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Removal {
    /// First abort these uploads, which nothing will ever complete.
    Seq {
        txn: TxnId,
        seq: u32,
        abort: Vec<(RelPath, Upload)>,
    },
    Head {
        txn: TxnId,
        abort: Vec<(RelPath, Upload)>,
    },
    /// If it still is this version.
    Seal {
        generation: Generation,
        version: ETag,
    },
    Done {
        generation: Generation,
    },
}

/// What is waited for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Wait {
    /// These transactions are open elsewhere.
    Open(Vec<TxnId>),
    /// All is prepared, and no sign came yet.
    Sign,
}

/// How an intent ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Stop {
    /// The transaction is open and all its files are written down.
    Held,
    /// Everything sealed is published; for a transaction: the generation that it was committed in.
    Published(Option<Generation>),
    /// Prepared before some of its files: those need another transaction.
    Frozen,
    /// It is written down that it is torn.
    Torn,
    /// Withdrawn by ourselves; or there is nothing to do.
    Nothing,
    /// Taken over: others saw no sign of life for a whole lease. Its files go to quarantine. EIO.
    TakenOver,
    /// Its generation was poisoned and then given up. Its files go to quarantine. EIO.
    Dropped,
    /// Its records are gone, an hour after it was decided: the data tells how.
    Forgotten,
    /// These losses keep the generation from being committed, and were not accepted.
    Poisoned(Vec<TxnId>),
    /// To unlink: there is no such file.
    Absent,
    /// A record is broken, or of a later format. EIO.
    Unreadable,
}

/// What to do next. Costs nothing by itself; each [`Action`] says what it costs.
///
/// `nonce` is drawn anew for each call and used if a record is to be written.
pub fn next(me: &Me, intent: &Intent<'_>, seen: &Seen, nonce: Nonce) -> Action {
    if !seen.is_current() {
        return Action::Look;
    }
    if !seen.records().unreadable.is_empty() {
        return Action::Stop(Stop::Unreadable);
    }
    let desk = Desk { me, seen, nonce };
    match intent {
        Intent::Write(work) => desk.write(work),
        Intent::Commit { sign, accept } => desk.commit(Some(*sign), accept),
        Intent::Advance => desk.advance(),
        Intent::Publish => desk.publish().unwrap_or(Action::Stop(Stop::Published(None))),
        Intent::Unlink { name } => desk.unlink(name),
        Intent::Recover => desk.recover().unwrap_or(Action::Stop(Stop::Nothing)),
        Intent::Abandon => desk.abandon(),
        Intent::Collect { upto } => desk.collect(*upto),
    }
}

/// What every decision is made on.
#[derive(Clone, Copy)]
struct Desk<'a> {
    me: &'a Me,
    seen: &'a Seen,
    nonce: Nonce,
}

impl Unclear {
    /// What clears it up.
    pub fn action(self) -> Action {
        match self {
            Unclear::Look => Action::Look,
            Unclear::LookData => Action::LookData,
            Unclear::Fetch(seqs) => Action::Fetch(seqs),
            Unclear::Unreadable => Action::Stop(Stop::Unreadable),
        }
    }
}

#[cfg(test)]
mod tests;
