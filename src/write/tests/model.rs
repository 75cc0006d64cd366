//! Thousands of random steps against a vector of bytes.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;
use crate::write::Prepared;

const SIZE_MAX: usize = 12 * PART;
const STEPS: usize = 3_000;

struct Run {
    rig: Rig,
    staged: Arc<Staged>,
    expected: Vec<u8>,
    random: StdRng,
    kernel_writes: bool,
    /// Uploads that are not complete, each with the content that it must make.
    prepared: Vec<(Prepared, Vec<u8>)>,
}

impl Run {
    async fn new(seed: u64, rig: Rig, kernel_writes: bool) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let expected = bytes(seed as u8, random.random_range(0..SIZE_MAX));
        let staged = rig.open("k", &expected).await;
        if kernel_writes {
            staged.complete().await.unwrap();
            staged.set_passthrough();
        }
        Self { rig, staged, expected, random, kernel_writes, prepared: Vec::new() }
    }

    fn range(&mut self) -> (usize, usize) {
        let start = self.random.random_range(0..SIZE_MAX - 1);
        let longest = if self.random.random_bool(0.2) { SIZE_MAX } else { 300 };
        (start, self.random.random_range(start + 1..=SIZE_MAX.min(start + longest)))
    }

    async fn step(&mut self) {
        let (start, end) = self.range();
        let (offset, len) = (start as u64, (end - start) as u64);
        match self.random.random_range(0..23) {
            0..8 => self.write(start, end).await,
            8..10 => {
                let len = if self.random.random_bool(0.1) { 0 } else { start };
                self.staged.truncate(len as u64).await.unwrap();
                self.expected.resize(len, 0);
            }
            10 => {
                let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
                self.staged.allocate(offset, len, punch).await.unwrap();
                let size = self.expected.len();
                self.expected[start.min(size)..end.min(size)].fill(0);
            }
            11 => {
                let zero = libc::FALLOC_FL_ZERO_RANGE;
                self.staged.allocate(offset, len, zero).await.unwrap();
                self.expected.resize(self.expected.len().max(end), 0);
                self.expected[start..end].fill(0);
            }
            12..16 => {
                let read = self.staged.read(offset, len as u32).await.unwrap();
                let size = self.expected.len();
                assert_eq!(read, self.expected[start.min(size)..end.min(size)]);
            }
            16 => self.write_in_order().await,
            17 => self.staged.look_ahead(),
            18 => self.fail_an_upload().await,
            19..21 => self.prepare().await,
            21 => self.publish().await,
            _ => self.upload().await,
        }
        assert_eq!(self.staged.size().unwrap(), self.expected.len() as u64);
    }

    async fn write(&mut self, start: usize, end: usize) {
        let data = bytes(self.random.random(), end - start);
        self.expected.resize(self.expected.len().max(end), 0);
        self.expected[start..end].copy_from_slice(&data);
        if self.kernel_writes {
            self.staged.disk.write(&data, start as u64).1.unwrap();
        } else {
            self.staged.write(start as u64, &data).await.unwrap();
        }
    }

    async fn write_in_order(&mut self) {
        let (mut at, end) = (0, self.random.random_range(0..SIZE_MAX));
        while at < end {
            self.write(at, (at + 500).min(end)).await;
            at += 500;
            if self.random.random_bool(0.3) {
                tokio::task::yield_now().await;
            }
        }
    }

    async fn fail_an_upload(&mut self) {
        let operations =
            [Operation::Part, Operation::PartCopy, Operation::Complete, Operation::Put];
        let operation = operations[self.random.random_range(0..operations.len())];
        let errors =
            [BucketError::Precondition, BucketError::NotFound, BucketError::Invalid("".into())];
        let error = errors[self.random.random_range(0..errors.len())].clone();
        let before = self.rig.object("k");
        self.rig.store.fail(operation, error);
        let failed = self.staged.upload(&Condition::Always).await.is_err();
        self.rig.store.heal();
        if failed {
            assert!(self.staged.is_dirty());
            assert_eq!(self.rig.object("k"), before);
        }
    }

    async fn prepare(&mut self) {
        if !self.rig.store.capabilities.multipart {
            return;
        }
        let before = self.rig.object("k");
        let prepared = self.staged.prepare().await.unwrap();
        assert!(self.staged.is_prepared());
        assert_eq!(self.rig.object("k"), before);
        let crc = crc_fast::crc64_nvme(&self.expected);
        assert!(prepared.crc.is_none_or(|found| found == crc));
        if self.prepared.iter().all(|(known, _)| *known != prepared) {
            self.prepared.push((prepared, self.expected.clone()));
        }
    }

    async fn publish(&mut self) {
        if self.prepared.is_empty() {
            return;
        }
        let at = self.random.random_range(0..self.prepared.len());
        let (prepared, content) = self.prepared.swap_remove(at);
        let unchanged =
            self.staged.is_prepared() && prepared == self.staged.prepare().await.unwrap();
        let etag = self.rig.complete(&prepared).await;
        assert_eq!(self.rig.object("k").unwrap(), content);
        self.staged.published(&prepared, etag);
        assert_eq!(self.staged.is_dirty(), !unchanged);
    }

    async fn upload(&mut self) {
        let made = self.staged.upload(&Condition::Always).await.unwrap();
        assert_eq!(made.size, self.expected.len() as u64);
        assert!(!self.staged.is_dirty());
        let object = self.rig.object("k").unwrap();
        let wrong = object.iter().zip(&self.expected).position(|(is, should)| is != should);
        assert_eq!((wrong, object.len()), (None, self.expected.len()), "where they differ first");
    }
}

async fn run(seed: u64, rig: Rig, kernel_writes: bool) {
    let mut run = Run::new(seed, rig, kernel_writes).await;
    for _ in 0..STEPS {
        run.step().await;
    }
    run.upload().await;
    for (prepared, _) in run.prepared.drain(..) {
        run.rig.writer.abort(&prepared.key, &prepared.upload);
    }
    run.rig.writer.drained().await;
    assert_eq!(run.rig.writer.status().dirty_bytes, 0);
    let Run { rig, staged, .. } = run;
    drop(staged);
    rig.writer.drained().await;
    assert_eq!((rig.store.memory.open_uploads(), rig.staged_names()), (0, 0));
    assert!(rig.quarantined().is_empty());
}

#[tokio::test]
async fn random_steps_agree_with_bytes() {
    for seed in 0..4 {
        println!("seed {seed}");
        run(seed, Rig::new(), false).await;
    }
}

#[tokio::test]
async fn random_steps_agree_with_bytes_where_the_kernel_writes() {
    for seed in 10..13 {
        println!("seed {seed}");
        run(seed, Rig::new(), true).await;
    }
}

#[tokio::test]
async fn random_steps_agree_with_bytes_on_a_store_that_can_do_less() {
    println!("seeds 20, 21");
    run(20, Rig::with(|store| store.part_copy = false), false).await;
    run(21, Rig::with(|store| store.multipart = false), false).await;
}
