//! What a staged file knows of its bytes: which are not here yet, which differ from the object that
//! it started from, and which changed since they were read to be sent.
//!
//! Owns these sets and the rules between them. Does not own the bytes, nor when they move
//! (`staged`, `fetch`, `uploader`). Pure.
//!
//! What must hold:
//! 1. A missing byte is a byte of the base, and was never written here.
//! 2. A byte of the base that is not `modified` is, here or in the base, what it was.
//! 3. A byte that is not `touched` since `sending` is what was read then.
//! 4. A byte that is not in `since_prepared` is what was prepared last.
//! 5. `modified`, `touched` and `since_prepared` may say too much (that costs requests), never too
//!    little.

use std::ops::Range;

use super::ranges::RangeSet;

/// Past so many pieces a set of changes becomes its hull: 16,384 pieces take about half a MiB, and
/// a file so scattered has little left that could be copied.
const CHANGE_PIECES_MAX: usize = 16_384;
/// Past so many pieces of missing bytes those around a write are fetched, so that there are no
/// more.
const MISSING_PIECES_MAX: usize = 16_384;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Knowledge {
    /// Every change comes through us.
    Exact,
    /// The kernel writes by itself: only reading tells.
    Lost,
}

/// See the invariants above.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extents {
    knowledge: Knowledge,
    /// Bytes past this are not of the base: it was shorter, or was cut.
    base_end: u64,
    missing: RangeSet,
    modified: RangeSet,
    touched: RangeSet,
    since_prepared: RangeSet,
}

impl Extents {
    /// A file of `base_size` bytes, none of them here.
    pub fn new(base_size: u64) -> Self {
        Self {
            knowledge: Knowledge::Exact,
            base_end: base_size,
            missing: RangeSet::of(0..base_size),
            modified: RangeSet::default(),
            touched: RangeSet::default(),
            since_prepared: RangeSet::default(),
        }
    }

    /// `range` was written, or zeroed, here.
    pub fn wrote(&mut self, range: Range<u64>) {
        self.missing.remove(range.clone());
        insert_bounded(&mut self.modified, range.clone());
        insert_bounded(&mut self.touched, range.clone());
        insert_bounded(&mut self.since_prepared, range);
    }

    /// `range` of the base is here now.
    pub fn fetched(&mut self, range: Range<u64>) {
        self.missing.remove(range);
    }

    /// The file of `size` bytes was cut at `len`: what grows back there is zeros, not the base.
    pub fn cut(&mut self, len: u64, size: u64) {
        self.base_end = self.base_end.min(len);
        self.missing.remove(len..u64::MAX);
        self.modified.remove(len..u64::MAX);
        insert_bounded(&mut self.touched, len..size.max(len));
        insert_bounded(&mut self.since_prepared, len..size.max(len));
    }

    /// The file ended where what it has of the base ends, and goes on with `range` of the base.
    /// Nothing of it may be prepared.
    pub fn grow(&mut self, range: Range<u64>) {
        self.base_end = range.end;
        self.missing.insert(range);
    }

    /// From now on changes happen unseen.
    pub fn lose_track(&mut self) {
        self.knowledge = Knowledge::Lost;
    }

    /// `range` is about to be read, to be sent.
    pub fn sending(&mut self, range: Range<u64>) {
        self.touched.remove(range);
    }

    /// An object of `size` bytes was made of ranges that were each `sending` or left out because
    /// they were untouched: it is the base now.
    pub fn published(&mut self, size: u64) {
        self.base_end = size;
        self.modified = self.touched.clone();
    }

    /// The store has all ranges, as they were last `sending`, in an upload that may be completed at
    /// any time from now on.
    pub fn prepared(&mut self) {
        self.since_prepared = self.touched.clone();
    }

    /// What was prepared last, `size` bytes of it, is the base now. Every byte must be here.
    pub fn prepared_is_base(&mut self, size: u64) {
        self.base_end = size;
        self.modified = self.since_prepared.clone();
    }

    /// Something else is the base now, of which the file, `size` bytes long, may have nothing.
    /// Every byte must be here.
    pub fn other_base(&mut self, size: u64) {
        self.base_end = 0;
        self.modified = RangeSet::of(0..size);
    }

    /// Every byte is here.
    pub fn is_complete(&self) -> bool {
        self.missing.is_empty()
    }

    /// The missing pieces within `range`, in order.
    pub fn missing(&self, range: Range<u64>) -> impl Iterator<Item = Range<u64>> + '_ {
        self.missing.within(range)
    }

    /// Whether the missing bytes are too scattered to be remembered for long.
    pub fn is_scattered(&self) -> bool {
        self.missing.pieces() > MISSING_PIECES_MAX
    }

    /// The first stretch to fetch so that `range` becomes whole: missing throughout, widened to
    /// `block` bytes where that is missing too.
    pub fn next_fetch(&self, range: Range<u64>, block: u64) -> Option<Range<u64>> {
        let first = self.missing.within(range.clone()).next()?;
        let piece = self.missing.piece_at(first.start)?;
        let start = (first.start / block * block).max(piece.start);
        let end = first.end.div_ceil(block).saturating_mul(block).min(piece.end);
        Some(start..end)
    }

    /// Whether some of the file may be the base's: not once it was emptied.
    pub fn keeps_base(&self) -> bool {
        self.base_end > 0
    }

    /// Whether the base still has `range` as the file has it.
    pub fn is_of_base(&self, range: Range<u64>) -> bool {
        self.knowledge == Knowledge::Exact
            && range.end <= self.base_end
            && !self.modified.overlaps(range)
    }

    /// Whether a file that ends at `end` may [`Extents::grow`] there.
    pub fn ends_with_base(&self, end: u64) -> bool {
        let exact = self.knowledge == Knowledge::Exact;
        exact && self.base_end == end && !self.modified.overlaps(end..u64::MAX)
    }

    /// Whether `range` is what was read when it was last sent; `None`: only its bytes can tell.
    pub fn is_as_sent(&self, range: Range<u64>) -> Option<bool> {
        match self.knowledge {
            Knowledge::Exact => Some(!self.touched.overlaps(range)),
            Knowledge::Lost => None,
        }
    }

    /// How far the file is written without a gap from `at` on.
    pub fn written_to(&self, at: u64) -> u64 {
        self.modified.piece_at(at).map_or(at, |piece| piece.end)
    }

    /// How many bytes differ from the base, at most.
    pub fn changed_bytes(&self) -> u64 {
        self.modified.total()
    }
}

fn insert_bounded(set: &mut RangeSet, range: Range<u64>) {
    set.insert(range);
    if set.pieces() > CHANGE_PIECES_MAX
        && let Some(hull) = set.hull()
    {
        set.insert(hull);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: u64 = 4;
    const UNIVERSE: u64 = 5;

    #[derive(Debug, Clone, Copy)]
    enum Op {
        Wrote(u64, u64),
        Fetched(u64, u64),
        Resize(u64),
        Grow(u64, u64),
        Sending(u64, u64),
        Published,
        Prepared,
        PreparedIsBase,
        OtherBase,
    }

    /// The same file, byte by byte: every write makes a content that never was before.
    #[derive(Debug, Clone)]
    struct Model {
        next: u32,
        /// What a reader must see, whether it is here or not.
        file: Vec<u32>,
        here: Vec<bool>,
        base: Vec<u32>,
        sent: Vec<Option<u32>>,
        prepared: Option<Vec<u32>>,
    }

    impl Model {
        fn new() -> Self {
            let base: Vec<u32> = (1..=BASE as u32).collect();
            let here = vec![false; UNIVERSE as usize];
            Self {
                next: 100,
                file: base.clone(),
                here,
                base,
                sent: vec![None; UNIVERSE as usize],
                prepared: None,
            }
        }

        /// Applies `op` to both; `None` where the driver would not do it.
        fn apply(&mut self, extents: &mut Extents, op: Op) -> Option<()> {
            let size = self.file.len() as u64;
            match op {
                Op::Wrote(from, to) => {
                    self.file.resize(size.max(to) as usize, 0);
                    for at in from..to {
                        self.next += 1;
                        self.file[at as usize] = self.next;
                        self.here[at as usize] = true;
                    }
                    extents.wrote(from..to);
                }
                Op::Fetched(from, to) => {
                    (from..to).for_each(|at| self.here[at as usize] = true);
                    extents.fetched(from..to);
                }
                Op::Resize(len) => {
                    if len < size {
                        extents.cut(len, size);
                    }
                    self.file.truncate(len as usize);
                    self.file.resize(len as usize, 0);
                    (len..UNIVERSE).for_each(|at| self.here[at as usize] = true);
                }
                Op::Grow(from, to) => {
                    let fits = from == size && to <= self.base.len() as u64;
                    let may = fits && self.prepared.is_none() && extents.ends_with_base(from);
                    may.then_some(())?;
                    self.file.extend(&self.base[from as usize..to as usize]);
                    (from..to).for_each(|at| self.here[at as usize] = false);
                    extents.grow(from..to);
                }
                Op::Sending(from, to) => {
                    (to <= size).then_some(())?;
                    let of_base = extents.is_of_base(from..to);
                    let here = (from..to).all(|at| self.here[at as usize]);
                    (of_base || here).then_some(())?;
                    for at in from as usize..to as usize {
                        self.sent[at] = Some(self.file[at]);
                    }
                    extents.sending(from..to);
                }
                Op::Published => {
                    let all = (0..size).all(|at| {
                        self.sent[at as usize].is_some()
                            && extents.is_as_sent(at..at + 1) == Some(true)
                    });
                    all.then_some(())?;
                    self.base = self.sent.iter().take(size as usize).flatten().copied().collect();
                    self.prepared = None;
                    extents.published(size);
                }
                // The file may have changed since it was sent: `is_as_sent` is not asked.
                Op::Prepared => {
                    let sent: Option<Vec<u32>> =
                        self.sent.iter().take(size as usize).copied().collect();
                    extents.is_complete().then_some(())?;
                    self.prepared = Some(sent?);
                    extents.prepared();
                }
                Op::PreparedIsBase => {
                    self.base = self.prepared.take()?;
                    extents.prepared_is_base(self.base.len() as u64);
                }
                Op::OtherBase => {
                    extents.is_complete().then_some(())?;
                    self.base = vec![0; UNIVERSE as usize];
                    extents.other_base(size);
                }
            }
            Some(())
        }

        fn check(&self, extents: &Extents, ops: &[Op]) {
            for at in 0..UNIVERSE {
                let content = self.file.get(at as usize).copied();
                let base = self.base.get(at as usize).copied();
                if extents.missing(at..at + 1).next().is_some() {
                    assert!(content.is_some() && content == base, "missing {at} {ops:?}");
                } else if content.is_some() && !self.here[at as usize] {
                    // Never written nor fetched: past the base there are only zeros of the hole.
                    assert_eq!(content, Some(0), "lost {at} {ops:?}");
                }
                if content.is_some() && extents.is_of_base(at..at + 1) {
                    assert_eq!(content, base, "of base {at} {ops:?}");
                }
                let sent = self.sent[at as usize];
                if content.is_some() && sent.is_some() && sent != content {
                    assert_eq!(extents.is_as_sent(at..at + 1), Some(false), "sent {at} {ops:?}");
                }
            }
        }
    }

    fn every_op() -> Vec<Op> {
        let mut ops = vec![Op::Published, Op::Prepared, Op::PreparedIsBase, Op::OtherBase];
        for from in 0..UNIVERSE {
            for to in from + 1..=UNIVERSE {
                ops.push(Op::Wrote(from, to));
                ops.push(Op::Sending(from, to));
                if to <= BASE {
                    ops.push(Op::Fetched(from, to));
                    ops.push(Op::Grow(from, to));
                }
            }
            ops.push(Op::Resize(from));
        }
        ops.push(Op::Resize(UNIVERSE));
        ops
    }

    fn explore(depth: usize, model: &Model, extents: &Extents, ops: &mut Vec<Op>) -> u64 {
        let mut visited = 0;
        for op in every_op() {
            let (mut model, mut extents) = (model.clone(), extents.clone());
            if model.apply(&mut extents, op).is_none() {
                continue;
            }
            ops.push(op);
            model.check(&extents, ops);
            visited += 1;
            if depth > 1 {
                visited += explore(depth - 1, &model, &extents, ops);
            }
            ops.pop();
        }
        visited
    }

    #[test]
    fn every_history_of_four_steps_agrees_with_bytes() {
        let visited = explore(4, &Model::new(), &Extents::new(BASE), &mut Vec::new());
        assert!(visited > 1_000_000, "{visited}");
    }

    #[test]
    fn every_history_of_four_steps_after_a_prepare_agrees_with_bytes() {
        let (mut model, mut extents) = (Model::new(), Extents::new(BASE));
        let mut ops = vec![Op::Fetched(0, BASE), Op::Sending(0, BASE), Op::Prepared];
        for op in &ops {
            model.apply(&mut extents, *op).unwrap();
        }
        let visited = explore(4, &model, &extents, &mut ops);
        assert!(visited > 1_000_000, "{visited}");
    }

    #[test]
    fn what_was_published_is_the_base_but_for_what_changed_meanwhile() {
        let mut extents = Extents::new(0);
        extents.wrote(0..10);
        extents.sending(0..10);
        extents.wrote(4..5);
        extents.published(10);
        assert!(extents.is_of_base(0..4) && extents.is_of_base(5..10));
        assert!(!extents.is_of_base(4..5) && !extents.is_of_base(5..11));
        assert_eq!(extents.changed_bytes(), 1);
    }

    #[test]
    fn fetches_are_widened_to_blocks_but_never_over_what_is_here() {
        let mut extents = Extents::new(100);
        extents.wrote(12..14);
        assert_eq!(extents.next_fetch(9..11, 10), Some(0..12));
        assert_eq!(extents.next_fetch(13..15, 10), Some(14..20));
        assert_eq!(extents.next_fetch(12..14, 10), None);
        assert_eq!(extents.next_fetch(95..200, 64), Some(64..100));
    }

    #[test]
    fn sets_are_bounded_and_err_towards_sending() {
        let mut extents = Extents::new(1 << 40);
        for at in 0..CHANGE_PIECES_MAX as u64 + 1 {
            extents.wrote(at * 10..at * 10 + 1);
        }
        assert!(extents.is_scattered());
        assert!(!extents.is_of_base(5..6), "too much is said, not too little");
        assert_eq!(extents.modified.pieces(), 1);
    }

    #[test]
    fn once_the_kernel_writes_nothing_is_taken_for_granted() {
        let mut extents = Extents::new(10);
        extents.fetched(0..10);
        extents.lose_track();
        assert!(!extents.is_of_base(0..1));
        assert_eq!(extents.is_as_sent(0..1), None);
    }
}
