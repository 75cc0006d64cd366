//! Which bytes of one cached object are on disk, and what must be known of them.
//!
//! Pure. Owns the map from granule to (there, CRC, trusted, read) and the age of each block. Does
//! not own files, fills, or the decision what to evict.
//!
//! A *granule* is what is fetched, checked and stored at the least; a *block* is a run of granules,
//! cut at fixed offsets: the most that one GET fetches, and what is evicted at once.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::OnceLock;

use crc_fast::CrcAlgorithm::Crc64Nvme;
use crc_fast::checksum_combine;

/// The least that is fetched and checked, in bytes: at 15 ms a request costs as much as this many
/// bytes, and a page fault in a large file should not cost a block.
pub const GRANULE_BYTES: u64 = 256 << 10;
/// A block's granules are bits of a `u64`.
pub const BLOCK_BYTES_MAX: u64 = 64 * GRANULE_BYTES;

/// Rounds up to a granule's edge.
pub fn granule_up(offset: u64) -> u64 {
    offset.next_multiple_of(GRANULE_BYTES)
}

/// The granules that a byte range touches.
pub fn granules_of(bytes: &Range<u64>) -> Range<u64> {
    bytes.start / GRANULE_BYTES..bytes.end.div_ceil(GRANULE_BYTES)
}

/// Why a granule was stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// Fetched for a READ that waits, or written by ourselves.
    Wanted,
    /// Fetched ahead; counts as wasted if it goes before it was read.
    Ahead,
    /// Left on disk by an earlier process: believed only after its CRC was checked.
    Reopened,
}

/// How much a granule's bytes on disk may be believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    /// Not read back lately; must match this.
    Check(u64),
    /// Not read back yet, and its CRC was never computed: the first read computes it.
    Learn,
    /// Was read back a moment ago and matched.
    Checked,
}

/// What left with an evicted block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Left {
    pub bytes: u64,
    /// Of these, what was fetched ahead and never read.
    pub unread_bytes: u64,
}

/// The map of one object.
#[derive(Debug)]
pub struct Presence {
    size: u64,
    block_bytes: u64,
    blocks: BTreeMap<u64, Block>,
    bytes: u64,
}

#[derive(Debug, Default)]
struct Block {
    present: u64,
    /// Bits of granules whose CRC is in `crcs`.
    known: u64,
    /// Read back a moment ago, and matched.
    checked: u64,
    /// Not stored by this process, and never checked since.
    reopened: u64,
    unread: u64,
    crcs: Vec<u64>,
    used: u64,
    /// Its bytes are being punched out: nothing may be stored here until that is done.
    leaving: bool,
    /// How many are writing into it: it may not be punched until they are done.
    arriving: u32,
}

impl Presence {
    /// Of an object of `size` bytes, nothing there. `block_bytes` is a multiple of
    /// [`GRANULE_BYTES`].
    pub fn new(size: u64, block_bytes: u64) -> Self {
        assert!(block_bytes.is_multiple_of(GRANULE_BYTES) && block_bytes <= BLOCK_BYTES_MAX);
        assert!(block_bytes > 0);
        Self { size, block_bytes, blocks: BTreeMap::new(), bytes: 0 }
    }

    /// Bytes there.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    pub fn is_whole(&self) -> bool {
        self.bytes == self.size
    }

    /// Whole, and every granule either stored by this process or checked since it was reopened.
    pub fn is_whole_and_trusted(&self) -> bool {
        self.is_whole() && self.blocks.values().all(|b| b.reopened & !b.checked == 0)
    }

    /// Somebody else may have written into the file: every granule is to be checked again before
    /// the whole is trusted.
    pub fn distrust(&mut self) {
        for block in self.blocks.values_mut() {
            (block.reopened, block.checked) = (block.present, 0);
        }
    }

    /// The CRC64NVME of the whole object, of those of its granules; `None` where one is not known.
    /// Looks at no granule of an object that is not whole: a store may tell of 2^64 bytes.
    pub fn whole_crc(&self) -> Option<u64> {
        if !self.is_whole() {
            return None;
        }
        let crcs = granules_of(&(0..self.size)).map(|granule| {
            let bit = self.bit(granule);
            let block = self.blocks.get(&self.block_of(granule))?;
            let known = block.present & block.known & bit != 0;
            known.then(|| (block.crcs[bit.trailing_zeros() as usize], self.granule_bytes(granule)))
        });
        let joined = crcs.reduce(|before, next| {
            let ((before, start), (next, range)) = (before?, next?);
            Some((join(before, next, range.end - range.start), start))
        })?;
        joined.map(|(crc, _)| crc)
    }

    pub fn granule_bytes(&self, granule: u64) -> Range<u64> {
        let start = granule * GRANULE_BYTES;
        start..start.saturating_add(GRANULE_BYTES).min(self.size)
    }

    pub fn block_range(&self, block: u64) -> Range<u64> {
        let start = block * self.block_bytes;
        start..start.saturating_add(self.block_bytes).min(self.size)
    }

    pub fn block_of(&self, granule: u64) -> u64 {
        granule * GRANULE_BYTES / self.block_bytes
    }

    fn bit(&self, granule: u64) -> u64 {
        1 << (granule % (self.block_bytes / GRANULE_BYTES))
    }

    pub fn has(&self, granule: u64) -> bool {
        let bit = self.bit(granule);
        self.blocks.get(&self.block_of(granule)).is_some_and(|b| b.present & bit != 0)
    }

    /// Whether all granules that `bytes` touches are there.
    pub fn has_all(&self, bytes: &Range<u64>) -> bool {
        self.is_whole() || granules_of(bytes).all(|g| self.has(g))
    }

    /// Granules are about to be written: their blocks stay until [`Presence::arrived`], which must
    /// follow. False, and nothing noted, where one of them is leaving.
    pub fn arrive(&mut self, granules: Range<u64>) -> bool {
        let blocks = self.blocks_of(granules);
        if blocks.clone().any(|index| self.blocks.get(&index).is_some_and(|b| b.leaving)) {
            return false;
        }
        blocks.for_each(|index| self.blocks.entry(index).or_default().arriving += 1);
        true
    }

    /// The writing of granules is over, whatever became of it.
    pub fn arrived(&mut self, granules: Range<u64>) {
        for index in self.blocks_of(granules) {
            let block = self.blocks.get_mut(&index).expect("a block stays while bytes arrive");
            block.arriving -= 1;
            if block.arriving == 0 && block.present == 0 {
                self.blocks.remove(&index);
            }
        }
    }

    fn blocks_of(&self, granules: Range<u64>) -> Range<u64> {
        match granules.is_empty() {
            true => 0..0,
            false => self.block_of(granules.start)..self.block_of(granules.end - 1) + 1,
        }
    }

    /// Notes a granule as stored; returns the bytes by which the object grew (0 if it was there).
    pub fn add(&mut self, granule: u64, crc: Option<u64>, origin: Origin, tick: u64) -> u64 {
        let (bit, index) = (self.bit(granule), self.block_of(granule));
        let range = self.granule_bytes(granule);
        let block = self.blocks.entry(index).or_default();
        debug_assert!(!block.leaving, "stored into a block that is being punched");
        let grown = if block.present & bit == 0 { range.end - range.start } else { 0 };
        block.present |= bit;
        block.used = tick;
        block.checked &= !bit;
        block.known &= !bit;
        set(&mut block.unread, bit, origin == Origin::Ahead);
        set(&mut block.reopened, bit, origin == Origin::Reopened);
        if let Some(crc) = crc {
            block.note_crc(bit, crc);
        }
        self.bytes += grown;
        grown
    }

    /// How a granule that is there may be believed.
    pub fn trust(&self, granule: u64) -> Trust {
        let bit = self.bit(granule);
        match self.blocks.get(&self.block_of(granule)) {
            Some(b) if b.checked & bit != 0 => Trust::Checked,
            Some(b) if b.known & bit != 0 => Trust::Check(b.crcs[bit.trailing_zeros() as usize]),
            _ => Trust::Learn,
        }
    }

    /// A granule was read back and is right; `crc` is what it has.
    pub fn confirm(&mut self, granule: u64, crc: u64) {
        let (bit, index) = (self.bit(granule), self.block_of(granule));
        if let Some(block) = self.blocks.get_mut(&index).filter(|b| b.present & bit != 0) {
            block.note_crc(bit, crc);
            block.checked |= bit;
        }
    }

    /// What was checked is to be checked again at its next reading.
    pub fn doubt(&mut self) {
        for block in self.blocks.values_mut() {
            block.reopened &= !block.checked;
            block.checked = 0;
        }
    }

    /// A granule is not what it should be; returns the bytes that are gone.
    pub fn drop_granule(&mut self, granule: u64) -> u64 {
        let (bit, index) = (self.bit(granule), self.block_of(granule));
        let range = self.granule_bytes(granule);
        let Some(block) = self.blocks.get_mut(&index).filter(|b| b.present & bit != 0) else {
            return 0;
        };
        block.present &= !bit;
        self.bytes -= range.end - range.start;
        range.end - range.start
    }

    /// A READ of `bytes`: they are young again, and no longer unread.
    pub fn touch(&mut self, bytes: &Range<u64>, tick: u64) {
        for granule in granules_of(bytes) {
            let (bit, index) = (self.bit(granule), self.block_of(granule));
            if let Some(block) = self.blocks.get_mut(&index) {
                block.used = tick;
                block.unread &= !bit;
            }
        }
    }

    /// Blocks that hold something and may be evicted, with the tick of their last use.
    pub fn ages(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let there = self.blocks.iter().filter(|(_, b)| b.present != 0 && b.is_still());
        there.map(|(index, b)| (b.used, *index))
    }

    /// Takes a block out; [`Presence::left`] must follow when its bytes are off the disk. `None`:
    /// there is none, or it is leaving already, or being written into; its bytes must stay.
    pub fn leave(&mut self, index: u64) -> Option<Left> {
        self.blocks.get_mut(&index).filter(|b| b.is_still())?.leaving = true;
        Some(self.empty(index))
    }

    /// Whether the file would hold nothing without this block.
    pub fn is_only(&self, index: u64) -> bool {
        let mut others = self.blocks.iter().filter(|(i, _)| **i != index);
        others.all(|(_, b)| b.present == 0 && b.is_still())
    }

    /// Takes out what a block has; who arrives or leaves there goes on.
    fn empty(&mut self, index: u64) -> Left {
        let granules = self.block_range(index);
        let Some(block) = self.blocks.get_mut(&index) else { return Left::default() };
        let (present, unread) = (block.present, block.unread);
        *block = Block { leaving: block.leaving, arriving: block.arriving, ..Block::default() };
        let first = granules.start / GRANULE_BYTES;
        let sum = |mask: u64| -> u64 {
            let there = granules_of(&granules).filter(|g| mask & 1 << (g - first) != 0);
            there.map(|g| self.granule_bytes(g)).map(|r| r.end - r.start).sum()
        };
        let left = Left { bytes: sum(present), unread_bytes: sum(present & unread) };
        self.bytes -= left.bytes;
        left
    }

    /// The bytes of a block that left are off the disk: it may be filled again.
    pub fn left(&mut self, index: u64) {
        if self.blocks.get(&index).is_some_and(|b| b.leaving) {
            self.blocks.remove(&index);
        }
    }

    /// Everything goes at once, with the file: who was writing into it has written in vain.
    pub fn clear(&mut self) -> Left {
        let blocks: Vec<u64> = self.blocks.keys().copied().collect();
        let mut all = Left::default();
        for index in blocks {
            let left = self.empty(index);
            all.bytes += left.bytes;
            all.unread_bytes += left.unread_bytes;
        }
        self.blocks.retain(|_, b| b.leaving || b.arriving > 0);
        all
    }
}

impl Block {
    fn is_still(&self) -> bool {
        !self.leaving && self.arriving == 0
    }

    fn note_crc(&mut self, bit: u64, crc: u64) {
        let index = bit.trailing_zeros() as usize;
        if self.crcs.len() <= index {
            self.crcs.resize(index + 1, 0);
        }
        self.crcs[index] = crc;
        self.known |= bit;
    }
}

/// The CRC of two pieces one after the other. The library squares matrices for 0.1 ms each time,
/// a third of what it takes to fetch a granule; but the CRC of what comes before only goes through
/// a linear map that depends on nothing but the length behind, so for whole granules that map is
/// kept: what the library makes of each single bit.
fn join(before: u64, next: u64, next_bytes: u64) -> u64 {
    static BEFORE_A_GRANULE: OnceLock<[u64; 64]> = OnceLock::new();
    if next_bytes != GRANULE_BYTES {
        return checksum_combine(Crc64Nvme, before, next, next_bytes);
    }
    let map = BEFORE_A_GRANULE.get_or_init(|| {
        std::array::from_fn(|bit| checksum_combine(Crc64Nvme, 1 << bit, 0, GRANULE_BYTES))
    });
    let bits = (0..64).filter(|bit| before >> bit & 1 == 1);
    bits.fold(next, |crc, bit| crc ^ map[bit])
}

fn set(mask: &mut u64, bit: u64, on: bool) {
    *mask = if on { *mask | bit } else { *mask & !bit };
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: u64 = 4 * GRANULE_BYTES;

    fn presence() -> Presence {
        Presence::new(9 * GRANULE_BYTES + 1, BLOCK)
    }

    #[test]
    fn bytes_count_the_short_last_granule_as_it_is() {
        let mut p = presence();
        assert_eq!(p.add(9, Some(1), Origin::Wanted, 1), 1);
        assert_eq!(p.add(9, Some(1), Origin::Wanted, 2), 0);
        assert_eq!(p.bytes(), 1);
        for g in 0..9 {
            assert!(!p.is_whole());
            p.add(g, None, Origin::Wanted, 3);
        }
        assert!(p.is_whole() && p.is_whole_and_trusted());
    }

    #[test]
    fn what_an_earlier_process_left_is_not_trusted_before_it_was_checked() {
        let mut p = Presence::new(GRANULE_BYTES + 5, BLOCK);
        p.add(0, Some(7), Origin::Reopened, 1);
        p.add(1, Some(8), Origin::Wanted, 1);
        assert_eq!(p.trust(0), Trust::Check(7));
        assert!(!p.is_whole_and_trusted());
        p.confirm(0, 7);
        assert_eq!(p.trust(0), Trust::Checked);
        assert!(p.is_whole_and_trusted());
        p.doubt();
        assert_eq!(p.trust(0), Trust::Check(7), "the disk may give something else next time");
        assert!(p.is_whole_and_trusted());
        p.add(0, Some(9), Origin::Wanted, 2);
        assert_eq!(p.trust(0), Trust::Check(9), "stored anew: to be checked anew");
        p.distrust();
        assert!(!p.is_whole_and_trusted(), "another's write into the file voids what was checked");
        p.confirm(0, 9);
        p.confirm(1, 8);
        assert!(p.is_whole_and_trusted());
    }

    #[test]
    fn a_block_that_leaves_takes_nothing_until_it_has_left() {
        let mut p = presence();
        p.add(4, Some(1), Origin::Ahead, 1);
        p.add(5, Some(1), Origin::Wanted, 1);
        p.add(0, Some(1), Origin::Wanted, 9);
        assert_eq!(p.ages().collect::<Vec<_>>(), [(9, 0), (1, 1)]);
        let left = p.leave(1);
        assert_eq!(left, Some(Left { bytes: 2 * GRANULE_BYTES, unread_bytes: GRANULE_BYTES }));
        assert!(!p.has(4) && !p.arrive(4..5) && !p.arrive(0..9) && p.arrive(8..9));
        assert_eq!(p.leave(1), None);
        p.left(1);
        assert!(p.arrive(4..5));
        assert_eq!(p.bytes(), GRANULE_BYTES);
    }

    #[test]
    fn a_block_into_which_bytes_are_written_does_not_leave() {
        let mut p = presence();
        p.add(0, Some(1), Origin::Wanted, 1);
        assert!(p.arrive(1..2) && p.arrive(2..5));
        assert_eq!((p.ages().count(), p.leave(0)), (0, None));
        p.arrived(1..2);
        assert_eq!(p.leave(0), None);
        p.arrived(2..5);
        assert_eq!(p.leave(0).unwrap().bytes, GRANULE_BYTES);
    }

    #[test]
    fn clearing_leaves_those_who_write_their_count() {
        let mut p = presence();
        p.add(0, Some(1), Origin::Wanted, 1);
        assert!(p.arrive(1..2));
        assert_eq!(p.clear().bytes, GRANULE_BYTES);
        assert!(p.arrive(2..3));
        p.arrived(1..2);
        p.add(2, Some(1), Origin::Wanted, 1);
        assert_eq!(p.leave(0), None, "the second is writing still");
        p.arrived(2..3);
        assert_eq!(p.leave(0).unwrap().bytes, GRANULE_BYTES);
    }

    #[test]
    fn a_read_makes_young_and_read() {
        let mut p = presence();
        p.add(4, Some(1), Origin::Ahead, 1);
        p.touch(&(BLOCK + 10..BLOCK + 11), 5);
        assert_eq!(p.ages().collect::<Vec<_>>(), [(5, 1)]);
        assert_eq!(p.leave(1).unwrap().unread_bytes, 0);
    }

    #[test]
    fn the_sum_of_the_whole_is_that_of_its_granules_in_order() {
        let body: Vec<u8> = (0..9 * GRANULE_BYTES + 1).map(|i| (i / 7) as u8).collect();
        let mut p = presence();
        for g in (0..10).rev() {
            assert!(p.whole_crc().is_none());
            let bytes = p.granule_bytes(g);
            let crc = crc_fast::crc64_nvme(&body[bytes.start as usize..bytes.end as usize]);
            p.add(g, Some(crc), Origin::Wanted, 1);
        }
        assert_eq!(p.whole_crc(), Some(crc_fast::crc64_nvme(&body)));
        p.add(4, None, Origin::Wanted, 1);
        assert_eq!(p.whole_crc(), None);
    }

    /// A test that hangs if each of 2^46 granules is looked at.
    #[test]
    fn an_object_of_nearly_two_to_the_64_bytes_holds_nobody_up() {
        let mut p = Presence::new(u64::MAX, BLOCK);
        p.add(7, Some(1), Origin::Wanted, 1);
        assert_eq!(p.whole_crc(), None);
        assert!(!p.is_whole() && !p.is_whole_and_trusted());
        assert_eq!(p.granule_bytes(u64::MAX / GRANULE_BYTES).end, u64::MAX);
        assert_eq!(p.clear().bytes, GRANULE_BYTES);
    }

    #[test]
    fn a_granule_found_wrong_is_gone() {
        let mut p = presence();
        p.add(3, Some(1), Origin::Wanted, 1);
        assert_eq!(p.drop_granule(3), GRANULE_BYTES);
        assert_eq!(p.drop_granule(3), 0);
        assert!(!p.has(3) && p.bytes() == 0);
        p.confirm(3, 1);
        assert!(!p.has(3));
    }
}
