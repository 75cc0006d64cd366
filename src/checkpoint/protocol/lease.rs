//! Whose lease is over, by nobody's clock but our own.
//!
//! Owns the watch: a head counts as dead once the very same version of it was seen for a whole
//! lease. Does not own time, which comes in by argument, nor what is done to the dead
//! (`commit.rs`).

use std::collections::BTreeMap;
use std::time::Duration;

use super::Seen;
use crate::checkpoint::record::{State, TxnId};
use crate::types::ETag;

/// What a record may ask for: a shorter one would take over the merely slow, a longer one, which
/// only a hostile record has, would keep a directory hidden for ever.
pub const LEASE_MIN: Duration = Duration::from_millis(100);
pub const LEASE_MAX: Duration = Duration::from_secs(600);

/// Since when the version of each open head was watched.
#[derive(Debug, Clone, Default)]
pub struct Watch {
    since: BTreeMap<TxnId, (ETag, Duration)>,
}

impl Watch {
    /// After each look: starts, continues and ends watches, and marks in `seen` what is dead. Times
    /// are monotonic, from any fixed start of this process: a version was surely watched only from
    /// when the look that first showed it ended to when the one that still shows it began.
    pub fn observe(&mut self, began: Duration, ended: Duration, seen: &mut Seen) {
        let open = seen.live().filter(|(_, head)| head.record.state == State::Open);
        let open: Vec<_> =
            open.map(|(txn, head)| (txn, head.etag.clone(), head.record.lease_ms)).collect();
        let mut since = BTreeMap::new();
        for (txn, etag, lease_ms) in open {
            let lease = Duration::from_millis(lease_ms).clamp(LEASE_MIN, LEASE_MAX);
            let started = match self.since.get(&txn) {
                Some((watched, started)) if *watched == etag => *started,
                _ => ended,
            };
            if began.saturating_sub(started) >= lease {
                seen.expire(txn);
            }
            since.insert(txn, (etag, started));
        }
        self.since = since;
    }
}
