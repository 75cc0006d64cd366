//! How far a READ shall fetch: finds sequential streams on one handle by offset alone.
//!
//! Pure. Owns the streams and their windows. Does not own what is cached, in flight or affordable:
//! the answer is a range that is worth having, and the driver fetches what of it is missing.
//!
//! What must hold:
//! 1. A READ that belongs to no stream fetches its own granules and nothing more, except at offset
//!    0, where most readers go on.
//! 2. A stream never has more ahead of it than [`AHEAD_RATIO`] times what it has read, or two
//!    blocks at the start: growth is exponential, and what is wasted by a reader that stops is
//!    bounded.
//! 3. All streams of a handle together have at most `window_bytes_max` ahead, or a granule each.

use std::ops::Range;

use crate::read::presence::{GRANULE_BYTES, granule_up};

/// Streams remembered on one handle; more readers than this on one handle look like random access.
const STREAMS_MAX: usize = 16;
/// A stream that was silent for this many READs of its handle no longer shares the window.
const SILENT_READS_MAX: u64 = 64;
/// The kernel sends READs concurrently, so they come out of order by a few; this many READs of the
/// same length, either way, still belong to the stream.
const REORDERED_READS_MAX: u64 = 8;
/// The bound on the same in bytes: two strangers farther apart are never one stream.
const REORDERED_BYTES_MAX: u64 = 8 << 20;
/// How much is fetched ahead of a stream, as a multiple of what it has read.
const AHEAD_RATIO: u64 = 8;
/// A READ at offset 0 of at least this comes of a program that copies or loads (the kernel asks for
/// less when one looks at a header of up to 16 KiB), and begins with [`START_BLOCKS`]: else the
/// second block would cost another round trip.
const LARGE_READ_BYTES: u64 = 128 << 10;
const START_BLOCKS: u64 = 2;
/// An object up to this long is fetched whole: a second request costs more than the bytes.
pub const WHOLE_BYTES_MAX: u64 = 1 << 20;

/// What the driver can afford at the moment.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// GETs are cut at multiples of this.
    pub block_bytes: u64,
    /// The most that may be ahead of the streams of one handle.
    pub window_bytes_max: u64,
}

/// The streams of one handle.
#[derive(Debug, Default)]
pub struct ReadAhead {
    streams: Vec<Stream>,
    reads: u64,
}

#[derive(Debug)]
struct Stream {
    /// What the stream spans so far; `end` is where the next READ is expected.
    start: u64,
    end: u64,
    /// Bytes asked for within the span; against its length: how dense the stream is.
    read: u64,
    /// Up to where fetching is worth while, and up to where it was advised and not refused.
    ahead: u64,
    advised: u64,
    /// The READ of the handle that touched it last.
    touched: u64,
}

impl ReadAhead {
    /// Notes a READ (not empty, within `size`) and says what to fetch if it is missing: more than
    /// the READ, within `size`. The same advice is not given twice, so that most READs of a stream
    /// look no further than themselves.
    pub fn on_read(&mut self, read: &Range<u64>, size: u64, limits: Limits) -> Range<u64> {
        self.reads += 1;
        if size <= WHOLE_BYTES_MAX {
            return 0..size;
        }
        let share = limits.window_bytes_max / self.active().max(1);
        let stream = match self.stream_of(read) {
            Some(stream) => {
                stream.go_on(read, Limits { window_bytes_max: share, ..limits });
                stream
            }
            None => self.begin(read, limits),
        };
        let until = if stream.ahead == stream.advised { 0 } else { stream.ahead };
        stream.advised = stream.ahead;
        read.start..until.max(granule_up(read.end)).min(size)
    }

    /// The advice to fetch up to `until` could not be followed: it is given again.
    pub fn refused(&mut self, until: u64) {
        for stream in self.streams.iter_mut().filter(|s| s.advised >= until) {
            stream.advised = 0;
        }
    }

    fn active(&self) -> u64 {
        let live = |s: &&Stream| self.reads - s.touched <= SILENT_READS_MAX && s.is_sequential();
        self.streams.iter().filter(live).count() as u64
    }

    fn stream_of(&mut self, read: &Range<u64>) -> Option<&mut Stream> {
        let near = ((read.end - read.start) * REORDERED_READS_MAX).min(REORDERED_BYTES_MAX);
        let reads = self.reads;
        let stream = self
            .streams
            .iter_mut()
            .filter(|s| s.end.abs_diff(read.start) <= near)
            .min_by_key(|s| s.end.abs_diff(read.start))?;
        stream.touched = reads;
        Some(stream)
    }

    fn begin(&mut self, read: &Range<u64>, limits: Limits) -> &mut Stream {
        let len = read.end - read.start;
        let ahead = match read.start {
            0 if len >= LARGE_READ_BYTES => START_BLOCKS * limits.block_bytes,
            0 => limits.block_bytes,
            _ => 0,
        };
        let ahead = ahead.min(limits.window_bytes_max).max(granule_up(read.end));
        if self.streams.len() == STREAMS_MAX {
            let oldest = self.streams.iter().enumerate().min_by_key(|(_, s)| s.touched);
            let oldest = oldest.expect("STREAMS_MAX is not 0").0;
            self.streams.swap_remove(oldest);
        }
        self.streams.push(Stream {
            start: read.start,
            end: read.end,
            read: read.end - read.start,
            ahead,
            advised: 0,
            touched: self.reads,
        });
        self.streams.last_mut().expect("just pushed")
    }
}

impl Stream {
    /// At least half of what it spans was asked for, in more than one READ.
    fn is_sequential(&self) -> bool {
        self.read * 2 >= self.end - self.start
    }

    fn go_on(&mut self, read: &Range<u64>, limits: Limits) {
        self.start = self.start.min(read.start);
        self.end = self.end.max(read.end);
        self.read += read.end - read.start;
        if !self.is_sequential() {
            // Neighbours by chance, or strides: forget the past, fetch only what is asked for.
            *self = Stream {
                start: read.start,
                end: read.end,
                read: read.end - read.start,
                ahead: granule_up(read.end),
                advised: 0,
                touched: self.touched,
            };
            return;
        }
        let window = (self.read * AHEAD_RATIO).min(limits.window_bytes_max).max(GRANULE_BYTES);
        self.ahead = self.ahead.max(self.wanted(window, limits.block_bytes));
    }

    /// Moves in steps, so that a GET is never for the few bytes by which one READ advanced.
    fn wanted(&self, window: u64, block_bytes: u64) -> u64 {
        let target = self.end + window;
        if window >= block_bytes {
            return target / block_bytes * block_bytes;
        }
        let left = self.ahead.saturating_sub(self.end);
        if left < window / 2 { granule_up(target) } else { self.ahead }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: u64 = 1 << 10;
    const MIB: u64 = 1 << 20;
    const SIZE: u64 = 512 * MIB;
    const LIMITS: Limits = Limits { block_bytes: 8 * MIB, window_bytes_max: 128 * MIB };

    fn reads(offsets: impl IntoIterator<Item = u64>, len: u64) -> Vec<u64> {
        let mut ahead = ReadAhead::default();
        offsets.into_iter().map(|o| ahead.on_read(&(o..o + len), SIZE, LIMITS).end).collect()
    }

    /// How far fetching went after each READ.
    fn furthest(until: &[u64]) -> Vec<u64> {
        let mut most = 0;
        let further = |until: &u64| {
            most = most.max(*until);
            most
        };
        until.iter().map(further).collect()
    }

    #[test]
    fn a_small_object_is_wanted_whole() {
        let mut ahead = ReadAhead::default();
        assert_eq!(ahead.on_read(&(4096..8192), MIB, LIMITS), 0..MIB);
    }

    #[test]
    fn the_first_read_at_the_start_wants_blocks_and_elsewhere_its_granules() {
        for (offset, len, want) in [
            (0, 16 * KIB, 8 * MIB),
            (0, 128 * KIB, 16 * MIB),
            (100 * MIB, 128 * KIB, 100 * MIB + 256 * KIB),
            (100 * MIB + 200 * KIB, 128 * KIB, 100 * MIB + 512 * KIB),
            (SIZE - 128 * KIB, 128 * KIB, SIZE),
        ] {
            assert_eq!(reads([offset], len), [want], "at {offset}");
        }
    }

    #[test]
    fn the_window_of_a_stream_grows_with_what_it_read_up_to_the_limit() {
        let until = furthest(&reads((0..64 * 8).map(|i| i * 128 * KIB), 128 * KIB));
        for (i, until) in until.iter().enumerate() {
            let end = (i as u64 + 1) * 128 * KIB;
            let most = (AHEAD_RATIO * end).clamp(16 * MIB, 128 * MIB);
            assert!(*until <= end + most, "READ {i}: {until}");
            assert!(*until >= end, "READ {i}");
        }
        let end = 64 * MIB;
        assert_eq!(*until.last().unwrap(), end + 128 * MIB);
    }

    #[test]
    fn advice_is_given_once_unless_it_was_refused() {
        let mut ahead = ReadAhead::default();
        let read = |ahead: &mut ReadAhead, i: u64| {
            ahead.on_read(&(i * 4 * KIB..(i + 1) * 4 * KIB), SIZE, LIMITS).end
        };
        assert_eq!(read(&mut ahead, 0), 8 * MIB);
        assert_eq!(read(&mut ahead, 1), GRANULE_BYTES);
        ahead.refused(8 * MIB);
        assert_eq!(read(&mut ahead, 2), 8 * MIB);
        assert_eq!(read(&mut ahead, 3), GRANULE_BYTES);
    }

    #[test]
    fn reads_out_of_order_by_a_few_are_still_one_stream() {
        let order = (0..512u64).map(|i| (i ^ 5) * 128 * KIB);
        assert_eq!(*furthest(&reads(order, 128 * KIB)).last().unwrap(), 192 * MIB);
    }

    #[test]
    fn eight_interleaved_streams_each_have_their_share_of_the_window() {
        let mut ahead = ReadAhead::default();
        let mut until = [0; 8];
        for i in 0..256 {
            for (s, until) in until.iter_mut().enumerate() {
                let at = s as u64 * 64 * MIB + i * 128 * KIB;
                *until = ahead.on_read(&(at..at + 128 * KIB), SIZE, LIMITS).end.max(*until);
            }
        }
        for (s, until) in until.iter().enumerate() {
            let end = s as u64 * 64 * MIB + 32 * MIB;
            assert_eq!(*until, (end + 16 * MIB).min(SIZE), "stream {s}");
        }
    }

    #[test]
    fn random_reads_want_their_granules_only() {
        let mut x = 1u64;
        let offsets = std::iter::repeat_with(|| {
            x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (x >> 33) % (SIZE / 4096 - 1) * 4096 + 4096
        });
        let offsets: Vec<u64> = offsets.take(1000).collect();
        for (o, until) in offsets.iter().zip(reads(offsets.clone(), 4096)) {
            assert!(until - o <= 2 * GRANULE_BYTES, "{until} at {o}");
        }
    }

    #[test]
    fn strides_are_not_a_stream() {
        let offsets: Vec<u64> = (1..200).map(|i| i * 20 * KIB).collect();
        for (o, until) in offsets.iter().zip(reads(offsets.clone(), 4096)) {
            assert!(until - o <= GRANULE_BYTES + 4096, "{until} at {o}");
        }
    }

    #[test]
    fn a_stream_that_jumps_starts_again_small() {
        let until = reads((0..100).map(|i| i * MIB).chain([300 * MIB]), MIB);
        assert_eq!(*until.last().unwrap(), 301 * MIB);
    }

    #[test]
    fn the_window_obeys_a_limit_smaller_than_a_block() {
        let mut ahead = ReadAhead::default();
        let limits = Limits { block_bytes: 8 * MIB, window_bytes_max: MIB };
        for i in 0..512 {
            let end = (i + 1) * 128 * KIB;
            let until = ahead.on_read(&(end - 128 * KIB..end), SIZE, limits).end;
            assert!(until - end <= MIB + GRANULE_BYTES, "{until} at {end}");
        }
    }
}
