//! Uploads that nobody waits for give way to writers of the same machine, which share its disk and
//! its processors with them: they go on in the next lull.
//!
//! Owns the decision. Does not own the uploads that ask, nor what they do meanwhile. Pure.

use std::time::{Duration, Instant};

/// With so much written the writers' time is the disk's and the processors'; less leaves room for
/// both.
const BURST_BYTES_MIN: u64 = 16 << 20;
/// So many files are as much, however small they are.
const BURST_CLOSES_MIN: u32 = 32;
/// Nothing written for so long is a lull: more than two looks at the files that the kernel writes
/// by itself (`shared`).
const LULL: Duration = Duration::from_millis(120);
/// The same where the last thing that happened is a close: who has more to write opens it by then.
const CLOSED_LULL: Duration = Duration::from_millis(30);
/// A burst that lasts longer is how things are: uploads go on beside it.
const BURST_MAX: Duration = Duration::from_secs(5);

/// What was written lately.
#[derive(Debug, Default)]
pub struct Lull {
    burst: Option<Burst>,
    /// Closed files that are being synced.
    syncing: usize,
}

#[derive(Debug)]
struct Burst {
    began: Instant,
    last: Instant,
    bytes: u64,
    closes: u32,
    is_closed: bool,
}

impl Lull {
    /// So many bytes were written, or none yet to a file that is opened to be written.
    pub fn wrote(&mut self, bytes: u64, now: Instant) {
        let syncing = self.syncing > 0;
        self.burst.take_if(|burst| !syncing && now >= burst.last + LULL);
        let none = || Burst { began: now, last: now, bytes: 0, closes: 0, is_closed: false };
        let burst = self.burst.get_or_insert_with(none);
        burst.bytes = burst.bytes.saturating_add(bytes);
        (burst.last, burst.is_closed) = (now, false);
    }

    pub fn begin_sync(&mut self) {
        self.syncing += 1;
    }

    pub fn end_sync(&mut self, now: Instant) {
        self.syncing -= 1;
        if let Some(burst) = &mut self.burst {
            (burst.last, burst.is_closed) = (now, true);
            burst.closes = burst.closes.saturating_add(1);
        }
    }

    /// How long to wait before the next look; `None`: uploads may go.
    pub fn wait(&self, now: Instant) -> Option<Duration> {
        let is_large = |b: &&Burst| b.bytes >= BURST_BYTES_MIN || b.closes >= BURST_CLOSES_MIN;
        let burst = self.burst.as_ref().filter(is_large)?;
        let until = match (self.syncing, burst.is_closed) {
            (0, true) => burst.last + CLOSED_LULL,
            (0, false) => burst.last + LULL,
            _ => now + LULL,
        };
        let until = until.min(burst.began + BURST_MAX);
        until.checked_duration_since(now).filter(|wait| !wait.is_zero())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn after(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn small_writes_hold_no_upload_up() {
        let (mut lull, start) = (Lull::default(), crate::clock::system().now());
        for ms in 0..10 {
            lull.wrote(MIB, start + after(ms));
        }
        assert_eq!(lull.wait(start + after(10)), None);
    }

    #[test]
    fn a_large_save_is_waited_for_until_it_ends() {
        let (mut lull, start) = (Lull::default(), crate::clock::system().now());
        lull.wrote(512 * MIB, start);
        assert_eq!(lull.wait(start + after(20)), Some(after(100)));
        lull.wrote(4096, start + after(110)); // the small files behind it belong to it
        assert_eq!(lull.wait(start + after(130)), Some(after(100)));
        assert_eq!(lull.wait(start + after(230)), None);
        lull.wrote(4096, start + after(500)); // and those of later do not
        assert_eq!(lull.wait(start + after(501)), None);
    }

    #[test]
    fn many_small_files_are_waited_for_and_a_few_are_not() {
        let (mut lull, start) = (Lull::default(), crate::clock::system().now());
        for file in 0..40 {
            let now = start + after(2 * file);
            lull.wrote(4096, now);
            lull.begin_sync();
            lull.end_sync(now);
            assert_eq!(lull.wait(now).is_some(), file >= 31, "{file}");
        }
    }

    #[test]
    fn a_sync_is_waited_for() {
        let (mut lull, start) = (Lull::default(), crate::clock::system().now());
        lull.wrote(512 * MIB, start);
        lull.begin_sync();
        assert!(lull.wait(start + after(900)).is_some());
        lull.end_sync(start + after(1000));
        assert_eq!(lull.wait(start + after(1010)), Some(after(20)));
        lull.wrote(0, start + after(1020)); // the next file is opened
        assert_eq!(lull.wait(start + after(1040)), Some(after(100)));
    }

    #[test]
    fn who_never_stops_writing_does_not_stop_the_uploads() {
        let (mut lull, start) = (Lull::default(), crate::clock::system().now());
        lull.begin_sync();
        for ms in (0..6_000).step_by(50) {
            lull.wrote(32 * MIB, start + after(ms));
        }
        assert!(lull.wait(start + after(4_999)).is_some());
        assert_eq!(lull.wait(start + after(5_990)), None);
    }
}
