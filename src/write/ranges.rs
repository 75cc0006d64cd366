//! A set of byte ranges: disjoint, not adjacent, in order.
//!
//! Owns set arithmetic alone. Does not own what the ranges mean (`extents`). Pure.

use std::collections::BTreeMap;
use std::ops::Range;

/// Byte ranges, merged where they touch. An operation costs O(log n) and what it removes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RangeSet {
    /// start -> end
    ranges: BTreeMap<u64, u64>,
    total: u64,
}

impl RangeSet {
    pub fn of(range: Range<u64>) -> Self {
        let mut set = Self::default();
        set.insert(range);
        set
    }

    pub fn insert(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let (mut start, mut end) = (range.start, range.end);
        // Everything that overlaps or touches is taken out and becomes one.
        while let Some((&from, &to)) = self.ranges.range(..=end).next_back() {
            if to < start {
                break;
            }
            (start, end) = (start.min(from), end.max(to));
            self.take(from, to);
        }
        self.put(start, end);
    }

    pub fn remove(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        while let Some((&from, &to)) = self.ranges.range(..range.end).next_back() {
            if to <= range.start {
                break;
            }
            self.take(from, to);
            self.put(from, range.start.min(to));
            self.put(range.end.max(from), to);
            if from <= range.start {
                break;
            }
        }
    }

    /// The part of `range` that is in the set, in order.
    pub fn within(&self, range: Range<u64>) -> impl Iterator<Item = Range<u64>> + '_ {
        let from = match self.ranges.range(..=range.start).next_back() {
            Some((&from, &to)) if to > range.start => from,
            _ => range.start,
        };
        let (low, high) = (range.start, range.end);
        self.ranges
            .range(from..high.max(from))
            .map(move |(&from, &to)| from.max(low)..to.min(high))
            .filter(|piece| !piece.is_empty())
    }

    pub fn overlaps(&self, range: Range<u64>) -> bool {
        self.within(range).next().is_some()
    }

    /// The whole piece that holds the byte at `at`.
    pub fn piece_at(&self, at: u64) -> Option<Range<u64>> {
        let (&from, &to) = self.ranges.range(..=at).next_back()?;
        (at < to).then_some(from..to)
    }

    /// From the first byte to the last, with what is between.
    pub fn hull(&self) -> Option<Range<u64>> {
        let (&start, _) = self.ranges.first_key_value()?;
        let (_, &end) = self.ranges.last_key_value()?;
        Some(start..end)
    }

    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// How many bytes are in the set.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// How many pieces it takes to say so.
    pub fn pieces(&self) -> usize {
        self.ranges.len()
    }

    fn put(&mut self, start: u64, end: u64) {
        if start < end {
            self.ranges.insert(start, end);
            self.total += end - start;
        }
    }

    fn take(&mut self, start: u64, end: u64) {
        self.ranges.remove(&start);
        self.total -= end - start;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNIVERSE: u64 = 8;

    fn set_of(mask: u64) -> RangeSet {
        let mut set = RangeSet::default();
        (0..UNIVERSE).filter(|i| mask >> i & 1 == 1).for_each(|i| set.insert(i..i + 1));
        set
    }

    fn mask_of(range: Range<u64>) -> u64 {
        range.fold(0, |mask, i| mask | 1 << i)
    }

    fn check(set: &RangeSet, mask: u64) {
        assert_eq!(set, &set_of(mask));
        assert_eq!(set.total(), u64::from(mask.count_ones()));
        let ends: Vec<_> = set.ranges.iter().map(|(&from, &to)| (from, to)).collect();
        assert!(ends.iter().all(|(from, to)| from < to), "{ends:?}");
        assert!(ends.windows(2).all(|pair| pair[0].1 < pair[1].0), "{ends:?}");
    }

    #[test]
    fn every_set_of_eight_bytes_agrees_with_a_bit_mask() {
        for mask in 0..1 << UNIVERSE {
            for start in 0..=UNIVERSE {
                for end in start..=UNIVERSE {
                    let bits = mask_of(start..end);
                    let mut set = set_of(mask);
                    set.insert(start..end);
                    check(&set, mask | bits);
                    let mut set = set_of(mask);
                    set.remove(start..end);
                    check(&set, mask & !bits);
                    let within = set_of(mask).within(start..end).fold(0, |m, r| m | mask_of(r));
                    assert_eq!(within, mask & bits);
                    assert_eq!(set_of(mask).overlaps(start..end), mask & bits != 0);
                }
                let piece = set_of(mask).piece_at(start);
                assert_eq!(piece.is_some(), mask >> start & 1 == 1);
                assert!(piece.is_none_or(|piece| piece.contains(&start)));
            }
        }
    }

    #[test]
    fn the_end_of_the_number_line_is_no_special_place() {
        let mut set = RangeSet::of(10..u64::MAX);
        set.insert(5..10);
        set.remove(7..u64::MAX);
        assert_eq!(set.hull(), Some(5..7));
        assert_eq!((set.pieces(), set.is_empty()), (1, false));
    }
}
