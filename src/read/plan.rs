//! What a READ is made of: which part comes from memory, disk or a fill, and which fills are
//! missing.
//!
//! Owns the decision. Does not own the lock under which it is made, nor the running of fills: it
//! sees a map and a list, and gives back a list.
//!
//! What must hold: new fills cover exactly what is nowhere, overlap neither each other nor those in
//! flight, and none crosses the edge of a block.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use crate::read::cache::{MemoryTier, SMALL_BYTES_MAX};
use crate::read::fill::{Fill, Permits};
use crate::read::presence::{GRANULE_BYTES, Origin, Presence, granules_of};
use crate::read::version::Version;

/// What a READ asks for, and what may be fetched for it.
pub struct Ask<'a> {
    pub read: Range<u64>,
    /// Fetch what is missing in this, which holds the READ.
    pub fetch: Range<u64>,
    pub fill_bytes_max: u64,
    pub memory: &'a MemoryTier,
    /// Permits for a fill of so many bytes that no READ waits for, if it can be afforded at once.
    pub admit: &'a dyn Fn(u64) -> Option<Permits>,
    pub tick: u64,
}

/// What a READ is made of, in order, and the fills that the caller must now run.
#[derive(Debug)]
pub struct Plan {
    pub parts: Vec<(Range<u64>, Source)>,
    pub fills: Vec<NewFill>,
    /// Something ahead could not be afforded: worth asking again at the next READ.
    pub refused: bool,
}

/// Where a part of a READ comes from.
#[derive(Debug)]
pub enum Source {
    Memory(Bytes),
    Disk,
    Fill(Arc<Fill>),
}

/// A fill to be run; those that no READ waits for come with their permits.
pub type NewFill = (Arc<Fill>, Option<Permits>);

/// What is known of an object at the moment.
pub struct Known<'a> {
    pub version: &'a Arc<Version>,
    pub presence: &'a Presence,
    pub fills: &'a mut Vec<Arc<Fill>>,
}

impl Known<'_> {
    /// Says where each byte of the READ comes from; what is nowhere, from new fills, which are
    /// among `fills` afterwards.
    pub fn plan(&mut self, ask: &Ask<'_>) -> Plan {
        let (fills, refused) = self.missing(ask);
        self.fills.extend(fills.iter().map(|(fill, _)| fill.clone()));
        let mut parts: Vec<(Range<u64>, Source)> = Vec::new();
        for granule in granules_of(&ask.read) {
            let bytes = self.presence.granule_bytes(granule);
            let part = bytes.start.max(ask.read.start)..bytes.end.min(ask.read.end);
            let source = self.source(granule, ask.memory, &part);
            match parts.last_mut() {
                Some((before, last)) if last.is_same(&source) => before.end = part.end,
                _ => parts.push((part, source)),
            }
        }
        Plan { parts, fills, refused }
    }

    fn source(&self, granule: u64, memory: &MemoryTier, part: &Range<u64>) -> Source {
        if let Some(fill) = self.fill_of(granule) {
            return Source::Fill(fill.clone()); // also what it has stored already: no system call
        }
        if self.presence.has(granule) && self.version.size > SMALL_BYTES_MAX {
            return Source::Disk;
        }
        let base = granule * GRANULE_BYTES;
        let within = (part.start - base) as usize..(part.end - base) as usize;
        match memory.get(self.version, granule).filter(|b| b.len() >= within.end) {
            Some(bytes) => Source::Memory(bytes.slice(within)),
            // If it left memory just now, the reading finds nothing and the caller plans again.
            None => Source::Disk,
        }
    }

    fn fill_of(&self, granule: u64) -> Option<&Arc<Fill>> {
        let start = granule * GRANULE_BYTES;
        self.fills.iter().find(|f| f.range().contains(&start))
    }

    /// New fills for what of `ask.fetch` is nowhere; and whether any that nobody waits for was
    /// refused.
    fn missing(&self, ask: &Ask<'_>) -> (Vec<NewFill>, bool) {
        let mut fills = Vec::new();
        if self.presence.is_whole() {
            return (fills, false);
        }
        let mut run: Option<Range<u64>> = None;
        for granule in granules_of(&ask.fetch).filter(|g| !self.is_somewhere(*g, ask.memory)) {
            let bytes = self.presence.granule_bytes(granule);
            match &mut run {
                Some(run) if self.continues(run, granule, ask) => run.end = bytes.end,
                _ => {
                    if !close_run(&mut fills, run.replace(bytes), ask) {
                        return (fills, true);
                    }
                }
            }
        }
        let refused = !close_run(&mut fills, run, ask);
        (fills, refused)
    }

    fn is_somewhere(&self, granule: u64, memory: &MemoryTier) -> bool {
        self.presence.has(granule)
            || self.fill_of(granule).is_some()
            || memory.has(self.version, granule)
    }

    /// Whether a granule may be fetched by the same GET as the run before it.
    fn continues(&self, run: &Range<u64>, granule: u64, ask: &Ask<'_>) -> bool {
        let block = |granule| self.presence.block_of(granule);
        run.end == granule * GRANULE_BYTES
            && block(granule) == block(granule - 1)
            && run.end - run.start + GRANULE_BYTES <= ask.fill_bytes_max
    }
}

/// Makes a fill of a run of missing granules; false where nothing ahead can be afforded any more.
fn close_run(fills: &mut Vec<NewFill>, run: Option<Range<u64>>, ask: &Ask<'_>) -> bool {
    let Some(run) = run else { return true };
    if run.start < ask.read.end {
        fills.push((Arc::new(Fill::new(run, Origin::Wanted)), None));
        return true;
    }
    let permits = (ask.admit)(run.end - run.start);
    let admitted = permits.is_some();
    fills.extend(permits.map(|p| (Arc::new(Fill::new(run, Origin::Ahead)), Some(p))));
    admitted
}

impl Source {
    /// Whether the bytes of `part` have yet to come from the store.
    pub fn comes_later(&self, part: &Range<u64>) -> bool {
        matches!(self, Self::Fill(fill) if fill.come() < part.end)
    }

    fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Disk, Self::Disk) => true,
            (Self::Fill(a), Self::Fill(b)) => Arc::ptr_eq(a, b),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{ETag, Key};
    use tokio::sync::Semaphore;

    const G: u64 = GRANULE_BYTES;
    const SIZE: u64 = 20 * G + 10;

    struct Case {
        presence: Presence,
        fills: Vec<Arc<Fill>>,
        memory: MemoryTier,
        admitted: usize,
    }

    impl Case {
        /// Blocks of 4 granules, of which these are on disk.
        fn with(present: &[u64]) -> Self {
            let mut presence = Presence::new(SIZE, 4 * G);
            for granule in present {
                presence.add(*granule, Some(0), Origin::Wanted, 0);
            }
            let memory = MemoryTier::new(1 << 20);
            Self { presence, fills: Vec::new(), memory, admitted: 100 }
        }

        fn plan(&mut self, read: Range<u64>, fetch: Range<u64>) -> Plan {
            let permits = Arc::new(Semaphore::new(self.admitted));
            let take = || permits.clone().try_acquire_owned().ok();
            let spare = Arc::new(Semaphore::new(100));
            let admit = |_| {
                let get = take()?;
                Some(Permits { get, memory: spare.clone().try_acquire_owned().ok()? })
            };
            let version = Version { key: Key::new("k"), etag: ETag("e".into()), size: SIZE };
            let (presence, memory) = (&self.presence, &self.memory);
            let mut known = Known { version: &Arc::new(version), presence, fills: &mut self.fills };
            known.plan(&Ask { read, fetch, fill_bytes_max: 4 * G, memory, admit: &admit, tick: 0 })
        }
    }

    fn ranges(plan: &Plan) -> Vec<(u64, u64, Origin)> {
        let granules = |f: &Fill| (f.range().start / G, f.range().end.div_ceil(G), f.origin());
        plan.fills.iter().map(|(fill, _)| granules(fill)).collect()
    }

    #[test]
    fn gets_are_runs_of_missing_granules_cut_at_blocks() {
        use Origin::{Ahead, Wanted};
        for (present, read, fetch, want) in [
            (vec![], 0..10, 0..1, vec![(0, 1, Wanted)]),
            (
                vec![],
                0..10,
                0..21,
                vec![
                    (0, 4, Wanted),
                    (4, 8, Ahead),
                    (8, 12, Ahead),
                    (12, 16, Ahead),
                    (16, 20, Ahead),
                    (20, 21, Ahead),
                ],
            ),
            (vec![1, 5], 0..3 * G, 0..6, vec![(0, 1, Wanted), (2, 4, Wanted), (4, 5, Ahead)]),
            (vec![0, 1, 2], 0..3 * G, 0..3, vec![]),
            (vec![], 20 * G + 5..SIZE, 20..21, vec![(20, 21, Wanted)]),
        ] {
            let plan = Case::with(&present).plan(read, fetch.start * G..(fetch.end * G).min(SIZE));
            assert_eq!(ranges(&plan), want, "with {present:?}");
        }
    }

    #[test]
    fn what_is_in_flight_is_waited_for_and_not_fetched_again() {
        let mut case = Case::with(&[]);
        case.plan(0..10, 0..2 * G);
        let plan = case.plan(G..4 * G, G..4 * G);
        assert_eq!(ranges(&plan), [(2, 4, Origin::Wanted)]);
        let parts: Vec<_> = plan.parts.iter().map(|(part, _)| part.clone()).collect();
        assert_eq!(parts, [G..2 * G, 2 * G..4 * G]);
        assert!(plan.parts.iter().all(|(part, source)| source.comes_later(part)));
    }

    #[test]
    fn what_is_ahead_stops_at_the_first_refusal_and_a_read_is_never_refused() {
        let mut case = Case::with(&[]);
        case.admitted = 1;
        let plan = case.plan(0..5 * G, 0..20 * G);
        assert!(plan.refused);
        let want = [(0, 4, Origin::Wanted), (4, 8, Origin::Wanted), (8, 12, Origin::Ahead)];
        assert_eq!(ranges(&plan), want);
    }
}
