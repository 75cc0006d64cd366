//! What an observer may show: of records, data, and the records again.
//!
//! Owns invariant 11 and how sealed, unpublished generations lie over the data. Does not own what
//! is cached of it, nor waiting for somebody else's commit.

use std::collections::BTreeMap;

use super::seen::Becomes;
use super::{Fate, Seen, Unclear};
use crate::checkpoint::record::{Entry, Generation, Head, RelPath, State};
use crate::types::ETag;

/// What stands under a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shown<'a> {
    /// The object in the listing.
    Published(&'a ETag),
    /// What a sealed generation makes of it: stat is answered from the entry; before its bytes are
    /// read, [`super::Intent::Publish`].
    Sealed(Generation, &'a Entry),
}

/// A checkpoint directory, whole: the root's entry is its marker.
pub type View<'a> = BTreeMap<&'a RelPath, Shown<'a>>;

/// How the directory itself shows to other mounts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    Absent,
    /// stat says directory and one may enter; the parent's readdir omits it.
    Nameable,
    Listed,
}

/// The value of `user.trialfs.state`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    Open,
    Prepared,
    Torn,
    Sealed,
    Published,
}

impl Standing {
    pub fn word(self) -> &'static str {
        match self {
            Standing::Open => "open",
            Standing::Prepared => "prepared",
            Standing::Torn => "torn",
            Standing::Sealed => "sealed",
            Standing::Published => "published",
        }
    }
}

/// What may be shown; or what to ask for before ([`Unclear::action`]). 2 requests where the records
/// were known, else 3, and 1 for each record that is new.
///
/// Shows none of a generation before its seal and all of it from then on, whatever is completed:
/// the manifests of what is not done lie over the data. A removal hides only the version that it
/// names.
pub fn view(seen: &Seen) -> Result<View<'_>, Unclear> {
    if !seen.is_current() {
        return Err(Unclear::Look);
    }
    if !seen.records().unreadable.is_empty() {
        return Err(Unclear::Unreadable);
    }
    if !seen.has_data() {
        return Err(Unclear::LookData);
    }
    let listing = seen.confirmed_data().ok_or(Unclear::Look)?;
    let mut view: View<'_> =
        listing.iter().map(|(name, etag)| (name, Shown::Published(etag))).collect();
    for seal in seen.unpublished_all() {
        let content = seen.content(&seal.record)?;
        for (name, becomes) in content {
            lay_over(&mut view, seal.record.generation, name, becomes);
        }
    }
    Ok(view)
}

fn lay_over<'a>(view: &mut View<'a>, in_: Generation, name: &'a RelPath, becomes: Becomes<'a>) {
    match becomes {
        Becomes::Made(entry) => {
            view.insert(name, Shown::Sealed(in_, entry));
        }
        Becomes::Gone(versions) => {
            let shown = view.get(name);
            if matches!(shown, Some(Shown::Published(version)) if versions.contains(version)) {
                view.remove(name);
            }
        }
    }
}

/// How the directory itself shows, given what may be shown of it.
pub fn presence(seen: &Seen, view: &View<'_>) -> Presence {
    let undecided = seen.live().any(|(_, head)| {
        matches!(head.record.state, State::Open | State::Prepared { .. } | State::Torn { .. })
    });
    match (view.is_empty(), undecided) {
        (false, _) => Presence::Listed,
        (true, true) => Presence::Nameable,
        (true, false) => Presence::Absent,
    }
}

/// How far the directory's last change came.
pub fn standing(seen: &Seen) -> Standing {
    let state =
        |wanted: fn(&State) -> bool| seen.live().any(|(_, head)| wanted(&head.record.state));
    if state(|state| matches!(state, State::Torn { .. })) {
        return Standing::Torn;
    }
    if state(|state| matches!(state, State::Open)) {
        return Standing::Open;
    }
    if state(|state| matches!(state, State::Prepared { .. })) {
        return Standing::Prepared;
    }
    if seen.unpublished().is_some() { Standing::Sealed } else { Standing::Published }
}

impl Seen {
    /// Whether a transaction was committed, as far as its seal is still there.
    pub fn is_committed(&self, txn: crate::checkpoint::record::TxnId) -> bool {
        matches!(self.seal_of(txn), Some((_, Fate::Committed)))
    }

    /// Whether all that is left of the open generation are transactions whose owners were gone.
    pub fn is_lost(&self) -> bool {
        let gone = |head: &Head| head.was_lost();
        let mut live = self.live().peekable();
        live.peek().is_some() && live.all(|(_, head)| gone(&head.record))
    }
}
