//! Files of which only a part changes.

use super::*;
use crate::write::WriteError;
use Condition::Always;

const SIZE: usize = 64 * PART;

#[tokio::test]
async fn a_small_change_in_a_large_file_moves_two_parts_and_copies_the_rest() {
    let rig = Rig::new();
    let mut expected = bytes(1, SIZE);
    for at in [10 * PART as u64 + 3, 20 * PART as u64 - 2] {
        let staged = rig.open("k", &expected).await;
        staged.write(at, b"patch").await.unwrap();
        expected[at as usize..at as usize + 5].copy_from_slice(b"patch");
        staged.upload(&Always).await.unwrap();
        assert_eq!(rig.object("k").unwrap(), expected);
        let requests = rig.requests();
        assert!(requests[&Operation::Part] <= 2, "{requests:?}");
        assert!(requests[&Operation::PartCopy] >= 62, "{requests:?}");
    }
    assert!(rig.writer.status().bytes_fetched <= 3 * PART as u64);
}

#[tokio::test]
async fn the_next_change_copies_out_of_the_object_just_made() {
    let rig = Rig::new();
    let mut expected = bytes(2, SIZE);
    let staged = rig.open("k", &expected).await;
    for at in [5u64, 40 * PART as u64, SIZE as u64] {
        staged.write(at, b"patch").await.unwrap();
        expected.resize(expected.len().max(at as usize + 5), 0);
        expected[at as usize..at as usize + 5].copy_from_slice(b"patch");
        staged.upload(&Always).await.unwrap();
        assert_eq!(rig.object("k").unwrap(), expected);
        assert_eq!(rig.requests()[&Operation::Part], 1);
    }
    assert_eq!(staged.read(0, u32::MAX).await.unwrap(), expected);
}

#[tokio::test]
async fn what_the_kernel_left_alone_is_copied_by_its_checksum() {
    let rig = Rig::new();
    let staged = rig.create("k");
    let mut expected = bytes(3, SIZE);
    staged.set_passthrough();
    staged.disk.write(&expected, 0).1.unwrap();
    staged.upload(&Always).await.unwrap();
    rig.requests();
    staged.disk.write(b"patch", 7).1.unwrap();
    staged.disk.write(b"tail", SIZE as u64).1.unwrap();
    expected[7..12].copy_from_slice(b"patch");
    expected.extend_from_slice(b"tail");
    staged.upload(&Always).await.unwrap();
    assert_eq!(rig.object("k").unwrap(), expected);
    let requests = rig.requests();
    assert_eq!((requests[&Operation::Part], requests[&Operation::PartCopy]), (2, 63));
}

#[tokio::test]
async fn a_store_that_can_not_copy_gets_what_is_fetched() {
    let rig = Rig::with(|store| store.part_copy = false);
    let mut expected = bytes(4, 6 * PART);
    let staged = rig.open("k", &expected).await;
    staged.write(3, b"patch").await.unwrap();
    expected[3..8].copy_from_slice(b"patch");
    staged.upload(&Always).await.unwrap();
    assert_eq!(rig.object("k").unwrap(), expected);
    assert!(staged.is_complete());
}

#[tokio::test]
async fn reads_fetch_the_blocks_they_need_and_no_more() {
    let rig = Rig::new();
    let content = bytes(5, SIZE);
    let staged = rig.open("k", &content).await;
    let block = PART / 8;
    assert_eq!(staged.read(5, 10).await.unwrap(), content[5..15]);
    assert_eq!(rig.writer.status().bytes_fetched, block as u64);
    assert_eq!(staged.read(6, 10).await.unwrap(), content[6..16]);
    assert_eq!(rig.requests()[&Operation::Get], 1);
    assert_eq!(staged.read(SIZE as u64 - 3, 10).await.unwrap(), content[SIZE - 3..]);
    assert_eq!(staged.read(SIZE as u64, 10).await.unwrap(), Bytes::new());
    assert!(!staged.is_dirty());
    let mut at = block;
    rig.requests();
    while at < SIZE {
        assert_eq!(staged.read(at as u64, 16).await.unwrap(), content[at..at + 16]);
        at += 16;
    }
    let gets = rig.requests()[&Operation::Get];
    assert!(gets <= 8 + SIZE / PART, "blocks grow as the reader goes on: {gets}");
}

#[tokio::test]
async fn a_cut_base_never_comes_back() {
    let rig = Rig::new();
    let mut expected = bytes(6, 8 * PART);
    let staged = rig.open("k", &expected).await;
    staged.truncate(3 * PART as u64 + 7).await.unwrap();
    staged.truncate(6 * PART as u64).await.unwrap();
    expected.truncate(3 * PART + 7);
    expected.resize(6 * PART, 0);
    assert_eq!(staged.read(0, u32::MAX).await.unwrap(), expected);
    staged.upload(&Always).await.unwrap();
    assert_eq!(rig.object("k").unwrap(), expected);
}

#[tokio::test]
async fn a_base_that_changed_is_an_error_where_its_bytes_are_needed_and_else_is_not() {
    let rig = Rig::new();
    let lacking = rig.open("k", &bytes(7, 8 * PART)).await;
    let complete = rig.writer.stage(Key::new("k"), lacking.state.lock().base.clone()).unwrap();
    complete.complete().await.unwrap();
    rig.open("k", b"by someone else").await;
    lacking.write(0, b"mine").await.unwrap();
    let changed = WriteError::Bucket(BucketError::Precondition);
    assert_eq!(lacking.upload(&Always).await.unwrap_err(), changed);
    assert_eq!(lacking.read(PART as u64, 1).await.unwrap_err(), changed);
    assert_eq!(rig.object("k").unwrap(), "by someone else");
    complete.write(0, b"mine").await.unwrap();
    complete.upload(&Always).await.unwrap();
    let mut expected = bytes(7, 8 * PART);
    expected[..4].copy_from_slice(b"mine");
    assert_eq!(rig.object("k").unwrap(), expected, "the last close wins");
}

#[tokio::test]
async fn a_write_while_the_block_is_fetched_is_not_overwritten() {
    let rig = Rig::new();
    let mut expected = bytes(8, 2 * PART);
    let staged = rig.open("k", &expected).await;
    let gate = rig.store.hold(Operation::Get);
    let reader = tokio::spawn({
        let staged = staged.clone();
        async move { staged.complete().await }
    });
    until(|| rig.store.waiting(Operation::Get) > 0).await;
    staged.write(100, b"written").await.unwrap();
    staged.truncate(PART as u64).await.unwrap();
    expected.truncate(PART);
    expected[100..107].copy_from_slice(b"written");
    gate.add_permits(100);
    reader.await.unwrap().unwrap();
    assert_eq!(staged.read(0, u32::MAX).await.unwrap(), expected);
}

#[tokio::test]
async fn fallocate_does_what_it_says() {
    let rig = Rig::new();
    let staged = rig.open("k", &bytes(9, 100)).await;
    let (keep, punch, zero) =
        (libc::FALLOC_FL_KEEP_SIZE, libc::FALLOC_FL_PUNCH_HOLE, libc::FALLOC_FL_ZERO_RANGE);
    staged.allocate(0, 5000, keep).await.unwrap();
    assert!(!staged.is_dirty());
    let mut expected = bytes(9, 100);
    staged.allocate(10, 20, punch | keep).await.unwrap();
    expected[10..30].fill(0);
    staged.allocate(90, 20, zero | keep).await.unwrap();
    expected[90..].fill(0);
    assert_eq!(staged.read(0, 1000).await.unwrap(), expected);
    staged.allocate(50, 100, zero).await.unwrap();
    expected.resize(150, 0);
    expected[50..].fill(0);
    staged.allocate(0, 200, 0).await.unwrap();
    expected.resize(200, 0);
    assert_eq!(staged.read(0, 1000).await.unwrap(), expected);
    assert!(staged.is_dirty());
    let refused = staged.allocate(0, 10, libc::FALLOC_FL_COLLAPSE_RANGE).await.unwrap_err();
    assert!(matches!(refused, WriteError::Disk { errno: libc::EOPNOTSUPP, .. }), "{refused:?}");
}
