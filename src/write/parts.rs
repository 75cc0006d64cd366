//! Which parts an object is made of, and what has to be done about each.
//!
//! Owns the part grid and the decision put/send/copy/keep. Does not own any request (`uploader`).
//! Pure.

use std::ops::Range;

use super::extents::Extents;
use crate::bucket::Capabilities;

/// How much larger parts are in each tenth of the part numbers. The grid does not depend on the
/// size of the file, so parts that went up while it grew stay valid; with 8 MiB and 10,000 parts it
/// ends at 5.6 TiB, past what any store takes. A store that wants all parts alike (R2) gets them up
/// to 16 GiB.
const TIERS: [u64; 10] = [1, 1, 2, 4, 8, 16, 64, 128, 256, 256];

/// Where parts begin and end, and which files have some.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grid {
    part_bytes: u64,
    parts_per_tier: u32,
    put_bytes_max: u64,
}

impl Grid {
    /// Parts of `part_bytes` at first, at most `parts_max` of them; none for a file of up to
    /// `put_bytes_max`, or up to a part.
    pub fn new(part_bytes: u64, put_bytes_max: u64, parts_max: u32) -> Self {
        let parts_per_tier = (parts_max / TIERS.len() as u32).max(1);
        Self { part_bytes, parts_per_tier, put_bytes_max: put_bytes_max.max(part_bytes) }
    }

    /// The largest file that goes by one PUT.
    pub fn put_bytes_max(&self) -> u64 {
        self.put_bytes_max
    }

    /// The bytes of part `index`, counted from 0, were the file endless. Past the grid: `None`.
    pub fn span(&self, index: u32) -> Option<Range<u64>> {
        let tier = (index / self.parts_per_tier) as usize;
        let factor = *TIERS.get(tier)?;
        let before: u64 = TIERS[..tier].iter().sum();
        let inside = u64::from(index % self.parts_per_tier);
        let start = before * u64::from(self.parts_per_tier) + inside * factor;
        Some(start * self.part_bytes..(start + factor) * self.part_bytes)
    }

    /// The bytes of part `index` of a file of `size` bytes; `None` past its end.
    pub fn part(&self, index: u32, size: u64) -> Option<Range<u64>> {
        let span = self.span(index)?;
        (span.start < size).then(|| span.start..span.end.min(size))
    }

    /// How many parts a file of `size` bytes has; `None`: more than there are.
    pub fn count(&self, size: u64) -> Option<u32> {
        let mut before = 0;
        for (tier, factor) in TIERS.iter().enumerate() {
            let bytes = factor * self.part_bytes * u64::from(self.parts_per_tier);
            if size <= before + bytes {
                let inside = (size - before).div_ceil(factor * self.part_bytes) as u32;
                return Some(tier as u32 * self.parts_per_tier + inside);
            }
            before += bytes;
        }
        None
    }
}

/// A part that the store has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SentPart {
    pub etag: String,
    pub len: u64,
    /// CRC64NVME of the bytes sent; `None` for a part copied on the server.
    pub crc: Option<u64>,
}

/// How an object goes up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    Put,
    Parts(u32),
    /// The store takes no object of this size.
    TooLarge,
}

/// One PUT for what is small enough or where there is nothing else.
pub fn way(size: u64, grid: &Grid, store: &Capabilities) -> Way {
    let put = if size <= store.put_max { Way::Put } else { Way::TooLarge };
    let small = size <= grid.put_bytes_max;
    if !store.multipart || (small && put == Way::Put) {
        return put;
    }
    grid.count(size).map_or(Way::TooLarge, Way::Parts)
}

/// What to do about one part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The store has it as it is.
    Keep,
    /// The store has it if its bytes still have this CRC; else send it.
    Check(u64),
    /// The base has it as it is: the store copies.
    Copy,
    Send,
}

/// Whether parts may be copied out of the base.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Copying {
    Possible,
    Impossible,
}

/// What to do about the part with the bytes `range`, of which the store has `sent`.
pub fn step(
    range: Range<u64>,
    sent: Option<&SentPart>,
    extents: &Extents,
    copying: Copying,
) -> Step {
    if let Some(sent) = sent.filter(|sent| sent.len == range.end - range.start) {
        match (extents.is_as_sent(range.clone()), sent.crc) {
            (Some(true), _) => return Step::Keep,
            (None, Some(crc)) => return Step::Check(crc),
            (Some(false), _) | (None, None) => {}
        }
    }
    // There is no copy of nothing.
    let copies = copying == Copying::Possible && !range.is_empty();
    if copies && extents.is_of_base(range) { Step::Copy } else { Step::Send }
}

/// The next part, from number `from` on, that lies wholly behind the write front `written_to`. None
/// of a file that may yet go by one PUT. The part that ends at the front waits: most files end
/// there.
pub fn next_behind(grid: &Grid, from: u32, written_to: u64) -> Option<(u32, Range<u64>)> {
    let span = grid.span(from)?;
    (span.end.max(grid.put_bytes_max) < written_to).then_some((from, span))
}

#[cfg(test)]
mod tests {
    use super::*;

    const STORE: Capabilities = Capabilities {
        create_if_absent: true,
        replace_if_match: true,
        delete_if_match: true,
        multipart: true,
        part_copy: true,
        ranged_reads: true,
        copy_condition: true,
        tells_crc: true,
        metadata: true,
        markers: true,
        real_directories: false,
        rename_file: false,
        rename_directory: false,
        create_sees_directories: false,
        list_after_write: true,
        put_max: 1000,
        part_min: 5,
        parts_max: 20,
    };

    #[test]
    fn the_grid_has_no_gap_and_counts_as_it_spans() {
        for parts_max in [1, 9, 10, 25, 40] {
            let grid = Grid::new(3, 0, parts_max);
            let mut end = 0;
            let mut index = 0;
            while let Some(span) = grid.span(index) {
                assert_eq!(span.start, end);
                for size in span.start + 1..=span.end {
                    assert_eq!(grid.count(size), Some(index + 1));
                    assert_eq!(grid.part(index, size), Some(span.start..size));
                }
                assert_eq!(grid.part(index, span.start), None);
                end = span.end;
                index += 1;
            }
            assert!(index <= parts_max.max(10));
            assert_eq!((grid.count(0), grid.count(end + 1)), (Some(0), None));
        }
    }

    #[test]
    fn ten_thousand_parts_of_8_mib_hold_what_s3_holds() {
        let grid = Grid::new(8 << 20, 16 << 20, 10_000);
        assert!(grid.count(5 << 40).is_some_and(|parts| parts <= 10_000));
    }

    #[test]
    fn a_store_that_wants_parts_alike_gets_them_up_to_16_gib() {
        let grid = Grid::new(8 << 20, 16 << 20, 10_000);
        let lens = (0..2000).map(|i| grid.span(i).map(|span| span.end - span.start));
        assert!(lens.eq(std::iter::repeat_n(Some(8 << 20), 2000)));
    }

    #[test]
    fn a_small_file_is_one_put() {
        let grid = Grid::new(10, 20, 20);
        assert_eq!(way(0, &grid, &STORE), Way::Put);
        assert_eq!(way(20, &grid, &STORE), Way::Put);
        assert_eq!(way(21, &grid, &STORE), Way::Parts(3));
        assert_eq!(way(11, &Grid::new(10, 0, 20), &STORE), Way::Parts(2));
        assert_eq!(way(u64::MAX, &grid, &STORE), Way::TooLarge);
        let plain = Capabilities { multipart: false, ..STORE };
        assert_eq!(way(1000, &grid, &plain), Way::Put);
        assert_eq!(way(1001, &grid, &plain), Way::TooLarge);
    }

    #[test]
    fn a_part_is_kept_checked_copied_or_sent() {
        let sent = SentPart { etag: "e".into(), len: 10, crc: Some(7) };
        let copied = SentPart { crc: None, ..sent.clone() };
        let mut extents = Extents::new(100);
        let copy = Copying::Possible;
        assert_eq!(step(0..10, None, &extents, copy), Step::Copy);
        assert_eq!(step(0..10, None, &extents, Copying::Impossible), Step::Send);
        assert_eq!(step(90..101, None, &extents, copy), Step::Send);
        assert_eq!(step(0..0, None, &extents, copy), Step::Send);
        extents.wrote(0..10);
        assert_eq!(step(0..10, None, &extents, copy), Step::Send);
        extents.sending(0..10);
        assert_eq!(step(0..10, Some(&sent), &extents, copy), Step::Keep);
        assert_eq!(step(0..9, Some(&sent), &extents, copy), Step::Send);
        extents.wrote(9..10);
        assert_eq!(step(0..10, Some(&sent), &extents, copy), Step::Send);
        extents.lose_track();
        assert_eq!(step(0..10, Some(&sent), &extents, copy), Step::Check(7));
        assert_eq!(step(0..10, Some(&copied), &extents, copy), Step::Send);
    }

    #[test]
    fn a_part_that_ends_at_the_front_waits() {
        let grid = Grid::new(10, 0, 20);
        assert_eq!(next_behind(&grid, 0, 10), None);
        assert_eq!(next_behind(&grid, 0, 11), Some((0, 0..10)));
        assert_eq!(next_behind(&grid, 1, 20), None);
    }

    #[test]
    fn nothing_of_a_file_that_may_go_by_one_put_is_sent_ahead() {
        let grid = Grid::new(10, 25, 20);
        assert_eq!(next_behind(&grid, 0, 25), None);
        assert_eq!(next_behind(&grid, 0, 26), Some((0, 0..10)));
        assert_eq!(next_behind(&grid, 1, 26), Some((1, 10..20)));
        assert_eq!(next_behind(&grid, 2, 30), None);
    }
}
