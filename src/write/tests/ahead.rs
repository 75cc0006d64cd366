//! Parts that go up before the close.

use super::*;
use Condition::Always;

/// Ahead goes what is full and behind the front; here five parts of which the last is not.
const SIZE: usize = 4 * PART + PART / 2;

#[tokio::test]
async fn full_parts_go_up_while_the_file_is_written() {
    let rig = Rig::new();
    let staged = rig.create("k");
    for (at, piece) in bytes(1, SIZE).chunks(100).enumerate() {
        staged.write(at as u64 * 100, piece).await.unwrap();
    }
    until(|| rig.writer.status().parts_sent_ahead == 4).await;
    staged.settled().await;
    assert_eq!(rig.requests()[&Operation::Part], 4);
    assert_eq!(rig.object("k"), None, "nothing shows before the close");
    staged.upload(&Always).await.unwrap();
    assert_eq!(rig.requests()[&Operation::Part], 1, "at the close only the tail goes");
    assert_eq!(rig.object("k").unwrap(), bytes(1, SIZE));
    assert_eq!(rig.writer.status().dirty_bytes, 0);
}

#[tokio::test]
async fn nothing_goes_up_while_a_large_save_is_written_and_all_of_it_after() {
    const LARGE: usize = 17 << 20;
    let rig = Rig::giving_way();
    let syncing = rig.writer.shared.syncing(); // of a file before: the burst goes on
    let staged = rig.create("k");
    staged.set_passthrough();
    staged.disk.write(&bytes(1, LARGE), 0).1.unwrap();
    until(|| rig.writer.gives_way().is_some()).await;
    staged.settled().await;
    assert_eq!(rig.requests().get(&Operation::Part), None);
    drop(syncing);
    until(|| rig.writer.status().parts_sent_ahead > 0).await;
    staged.upload(&Always).await.unwrap();
    assert_eq!(rig.object("k").unwrap(), bytes(1, LARGE));
}

#[tokio::test]
async fn what_the_kernel_writes_is_noticed_and_goes_up_too() {
    let rig = Rig::new();
    let staged = rig.create("k");
    staged.set_passthrough();
    staged.disk.write(&bytes(2, SIZE), 0).1.unwrap();
    until(|| rig.writer.status().parts_sent_ahead == 4).await;
    assert!(rig.writer.status().dirty_bytes >= SIZE as u64);
    staged.upload(&Always).await.unwrap();
    assert_eq!(rig.requests()[&Operation::Part], 5);
    assert_eq!(rig.object("k").unwrap(), bytes(2, SIZE));
}

#[tokio::test]
async fn a_part_patched_after_it_was_sent_is_sent_again_and_no_other() {
    let rig = Rig::new();
    for passthrough in [false, true] {
        let staged = rig.create("k");
        if passthrough {
            staged.set_passthrough();
            staged.disk.write(&bytes(3, SIZE), 0).1.unwrap();
        } else {
            staged.write(0, &bytes(3, SIZE)).await.unwrap();
        }
        let before = if passthrough { 4 } else { 0 };
        until(|| rig.writer.status().parts_sent_ahead == before + 4).await;
        staged.settled().await;
        rig.requests();
        let at = PART as u64 + 5;
        if passthrough {
            staged.disk.write(b"patch", at).1.unwrap();
        } else {
            staged.write(at, b"patch").await.unwrap();
        }
        staged.upload(&Always).await.unwrap();
        let mut expected = bytes(3, SIZE);
        expected[PART + 5..PART + 10].copy_from_slice(b"patch");
        assert_eq!(rig.object("k").unwrap(), expected);
        assert_eq!(rig.requests()[&Operation::Part], 2, "the patched one and the tail");
    }
}

#[tokio::test]
async fn a_file_sized_first_and_filled_later_is_not_sent_as_zeros() {
    let rig = Rig::with(|store| store.part_min = 64 << 10);
    let part = 64 << 10;
    let staged = rig.create("k");
    staged.set_passthrough();
    staged.disk.set_size(4 * part as u64).unwrap();
    staged.look_ahead();
    staged.settled().await;
    staged.disk.write(&bytes(4, part + 4096), 0).1.unwrap();
    until(|| rig.writer.status().parts_sent_ahead == 1).await;
    staged.disk.write(&bytes(4, 4 * part), 0).1.unwrap();
    staged.upload(&Always).await.unwrap();
    assert_eq!(rig.object("k").unwrap(), bytes(4, 4 * part));
    assert_eq!(rig.requests()[&Operation::Part], 4, "each part once");
}

#[tokio::test]
async fn a_file_that_ends_within_its_first_part_is_still_one_put() {
    let rig = Rig::new();
    let staged = rig.create("k");
    staged.write(0, &bytes(5, 3 * PART)).await.unwrap();
    until(|| rig.writer.status().parts_sent_ahead == 2).await;
    staged.truncate(PART as u64).await.unwrap();
    rig.requests();
    staged.upload(&Always).await.unwrap();
    rig.writer.drained().await;
    let requests = rig.requests();
    assert_eq!((requests[&Operation::Put], requests[&Operation::Abort]), (1, 1));
    assert_eq!(rig.object("k").unwrap(), bytes(5, PART));
}

#[tokio::test]
async fn a_file_cut_and_written_anew_has_no_part_of_the_old_content() {
    let rig = Rig::new();
    let staged = rig.create("k");
    for round in 0..20 {
        staged.truncate(0).await.unwrap();
        staged.write(0, &bytes(round, SIZE)).await.unwrap();
        tokio::task::yield_now().await;
    }
    staged.upload(&Always).await.unwrap();
    assert_eq!(rig.object("k").unwrap(), bytes(19, SIZE));
}

#[tokio::test]
async fn a_failure_ahead_is_found_out_at_the_close_and_not_before() {
    let rig = Rig::new();
    let staged = rig.create("k");
    rig.store.fail(Operation::Part, BucketError::Denied("no".into()));
    staged.write(0, &bytes(6, SIZE)).await.unwrap();
    staged.settled().await;
    staged.write(0, &bytes(6, SIZE)).await.unwrap();
    assert!(staged.upload(&Always).await.is_err());
    rig.store.heal();
    staged.upload(&Always).await.unwrap();
    assert_eq!(rig.object("k").unwrap(), bytes(6, SIZE));
}

#[tokio::test]
async fn an_upload_that_the_store_forgot_begins_again() {
    let rig = Rig::new();
    let staged = rig.create("k");
    staged.write(0, &bytes(7, SIZE)).await.unwrap();
    until(|| rig.writer.status().parts_sent_ahead == 4).await;
    staged.settled().await;
    let id = staged.transfer.lock().await.open.as_ref().unwrap().target.id.clone();
    let bucket = &rig.writer.shared.bucket;
    bucket.abort_multipart(&Key::new("k"), &id).await.unwrap();
    staged.upload(&Always).await.unwrap();
    assert_eq!(rig.object("k").unwrap(), bytes(7, SIZE));
}
