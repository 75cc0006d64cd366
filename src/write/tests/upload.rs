//! Whole files: what goes up, when, and what is left when it fails.

use std::collections::HashMap;

use super::*;
use crate::write::WriteError;
use Condition::Always;

#[tokio::test]
async fn a_small_file_is_exactly_one_put() {
    let rig = Rig::new();
    for size in [0, 1, PART] {
        let staged = rig.create("k");
        staged.write(0, &bytes(1, size)).await.unwrap();
        assert!(staged.is_dirty());
        let made = staged.upload(&Always).await.unwrap();
        assert_eq!(rig.object("k").unwrap(), bytes(1, size));
        assert_eq!(rig.requests(), HashMap::from([(Operation::Put, 1)]));
        assert_eq!(made.size, size as u64);
        assert_eq!(Some(made), staged.last_uploaded());
    }
}

#[tokio::test]
async fn a_large_file_is_created_sent_in_parts_and_completed() {
    let rig = Rig::new();
    let staged = rig.create("k");
    let hold = staged.hold_ahead();
    staged.write(0, &bytes(2, 4 * PART + 1)).await.unwrap();
    drop(hold);
    staged.upload(&Always).await.unwrap();
    assert_eq!(rig.object("k").unwrap(), bytes(2, 4 * PART + 1));
    use Operation::{Complete, MultipartCreate, Part};
    let expected = HashMap::from([(MultipartCreate, 1), (Part, 5), (Complete, 1)]);
    assert_eq!(rig.requests(), expected);
}

#[tokio::test]
async fn an_upload_of_what_did_not_change_asks_for_nothing() {
    let rig = Rig::new();
    let staged = rig.create("k");
    staged.write(0, &bytes(3, 3 * PART)).await.unwrap();
    let first = staged.upload(&Always).await.unwrap();
    rig.requests();
    assert!(!staged.is_dirty());
    assert_eq!(staged.upload(&Always).await.unwrap(), first);
    staged.set_passthrough();
    assert_eq!(staged.upload(&Always).await.unwrap(), first);
    let base = rig.open("base", b"content").await;
    assert_eq!(base.upload(&Always).await.unwrap().size, 7);
    assert_eq!(base.last_uploaded(), None);
    assert_eq!(rig.requests(), HashMap::new());
}

#[tokio::test]
async fn uploads_of_one_file_at_a_time_are_one_upload() {
    let rig = Rig::new();
    let staged = rig.create("k");
    staged.write(0, b"content").await.unwrap();
    let all = futures::future::join_all((0..8).map(|_| staged.upload(&Condition::IfAbsent)));
    let made: Vec<_> = all.await.into_iter().map(Result::unwrap).collect();
    assert!(made.iter().all(|one| *one == made[0]));
    assert_eq!(rig.requests(), HashMap::from([(Operation::Put, 1)]));
}

#[tokio::test]
async fn without_multipart_all_is_one_put_up_to_its_limit() {
    let rig = Rig::with(|store| {
        store.multipart = false;
        store.put_max = 5 * PART as u64;
    });
    let staged = rig.create("k");
    staged.write(0, &bytes(4, 5 * PART)).await.unwrap();
    staged.upload(&Always).await.unwrap();
    assert_eq!(rig.requests(), HashMap::from([(Operation::Put, 1)]));
    staged.write(5 * PART as u64, b"x").await.unwrap();
    let error = staged.upload(&Always).await.unwrap_err();
    assert!(matches!(error, WriteError::Disk { errno: libc::EFBIG, .. }), "{error:?}");
    assert!(staged.is_dirty());
}

#[tokio::test]
async fn one_put_of_more_than_the_memory_for_bodies_is_whole() {
    let rig = Rig::with(|store| store.multipart = false);
    let size = 1 << 20;
    assert!(size as u64 > rig.writer.shared.buffers.bytes_max());
    let staged = rig.create("k");
    staged.write(0, &bytes(4, size)).await.unwrap();
    staged.upload(&Always).await.unwrap();
    assert!(rig.object("k").unwrap() == bytes(4, size));
    assert_eq!(rig.requests(), HashMap::from([(Operation::Put, 1)]));
}

#[tokio::test]
async fn a_write_during_the_upload_leaves_the_file_dirty() {
    let rig = Rig::new();
    for passthrough in [false, true] {
        let staged = rig.create("k");
        if passthrough {
            staged.set_passthrough();
        }
        let kernel = |at: u64, data: &[u8]| staged.disk.write(data, at).1.unwrap();
        if passthrough {
            kernel(0, b"old")
        } else {
            staged.write(0, b"old").await.unwrap()
        }
        let gate = rig.store.hold(Operation::Put);
        let upload = tokio::spawn({
            let staged = staged.clone();
            async move { staged.upload(&Always).await }
        });
        until(|| rig.store.waiting(Operation::Put) == 1).await;
        if passthrough {
            kernel(0, b"new")
        } else {
            staged.write(0, b"new").await.unwrap()
        }
        gate.add_permits(100);
        let first = upload.await.unwrap().unwrap();
        assert!(staged.is_dirty(), "{passthrough}");
        assert_ne!(staged.upload(&Always).await.unwrap(), first);
        assert_eq!(rig.object("k").unwrap(), "new");
        assert!(!staged.is_dirty());
    }
}

#[tokio::test]
async fn a_failed_upload_keeps_the_file_dirty_and_its_parts() {
    let rig = Rig::new();
    let staged = rig.create("k");
    staged.write(0, &bytes(5, 6 * PART)).await.unwrap();
    rig.store.fail(Operation::Complete, BucketError::Precondition);
    for _ in 0..2 {
        let error = staged.upload(&Always).await.unwrap_err();
        assert_eq!(error, WriteError::Bucket(BucketError::Precondition));
        assert!(staged.is_dirty() && rig.object("k").is_none());
    }
    rig.store.heal();
    staged.write(0, b"patched").await.unwrap();
    staged.upload(&Always).await.unwrap();
    let mut expected = bytes(5, 6 * PART);
    expected[..7].copy_from_slice(b"patched");
    assert_eq!(rig.object("k").unwrap(), expected);
    let requests = rig.requests();
    assert_eq!(requests[&Operation::MultipartCreate], 1, "the parts were kept");
    assert_eq!(requests[&Operation::Part], 7, "only the patched one went again");
    assert_eq!(rig.writer.status().uploads_failed, 2);
}

#[tokio::test]
async fn a_store_that_says_no_is_left_no_parts() {
    let rig = Rig::new();
    let staged = rig.create("k");
    staged.write(0, &bytes(5, 6 * PART)).await.unwrap();
    rig.store.fail(Operation::Complete, BucketError::NoSpace("full".into()));
    let error = staged.upload(&Always).await.unwrap_err();
    assert_eq!(error, WriteError::Bucket(BucketError::NoSpace("full".into())));
    rig.writer.drained().await;
    assert_eq!(rig.store.memory.open_uploads(), 0);
    assert!(staged.is_dirty());
}

#[tokio::test]
async fn a_file_that_someone_else_replaced_is_refused_and_stays() {
    let rig = Rig::new();
    let staged = rig.open("k", b"base").await;
    staged.write(0, b"mine").await.unwrap();
    let other = rig.open("k", b"other").await;
    let condition = Condition::IfMatch(ETag("m1".into()));
    let error = staged.upload(&condition).await.unwrap_err();
    assert_eq!(error, WriteError::Bucket(BucketError::Precondition));
    assert_eq!(rig.object("k").unwrap(), "other");
    assert!(staged.is_dirty() && !other.is_dirty());
}

#[tokio::test]
async fn dropping_the_future_in_mid_upload_does_not_stop_or_break_it() {
    let rig = Rig::new();
    for (size, operation) in
        [(9, Operation::Put), (4 * PART, Operation::Part), (4 * PART, Operation::Complete)]
    {
        let staged = rig.create("k");
        staged.write(0, &bytes(6, size)).await.unwrap();
        let gate = rig.store.hold(operation);
        {
            let upload = staged.upload(&Always);
            let mut upload = std::pin::pin!(upload);
            let started = until(|| rig.store.waiting(operation) > 0);
            tokio::select! {
                _ = &mut upload => panic!("it is held"),
                () = started => {}
            }
        }
        assert!(staged.is_dirty());
        gate.add_permits(1000);
        let made = staged.upload(&Condition::IfAbsent).await.unwrap();
        assert_eq!(Some(made), staged.last_uploaded());
        assert!(!staged.is_dirty());
        assert_eq!(rig.object("k").unwrap(), bytes(6, size));
        rig.writer.drained().await;
        assert_eq!(rig.store.memory.open_uploads(), 0);
        rig.store.memory.delete(&Key::new("k"), None).await.unwrap();
    }
}

#[tokio::test]
async fn a_discarded_file_is_never_uploaded_nor_kept() {
    let rig = Rig::new();
    let staged = rig.create("k");
    staged.write(0, &bytes(7, 5 * PART)).await.unwrap();
    staged.discard();
    staged.settled().await;
    assert!(!staged.is_dirty());
    let error = staged.upload(&Always).await.unwrap_err();
    assert_eq!(error, WriteError::Bucket(BucketError::NotFound));
    assert_eq!(staged.read(0, 5).await.unwrap(), bytes(7, 5), "an open file survives unlink");
    drop(staged);
    rig.writer.drained().await;
    assert_eq!((rig.store.memory.open_uploads(), rig.object("k")), (0, None));
    assert_eq!((rig.staged_names(), rig.quarantined().len()), (0, 0));
    assert_eq!(rig.writer.status().dirty_bytes, 0);
}

#[tokio::test]
async fn a_discard_during_the_upload_stops_it_before_it_shows() {
    let rig = Rig::new();
    let staged = rig.create("k");
    staged.write(0, &bytes(7, 5 * PART)).await.unwrap();
    let gate = rig.store.hold(Operation::Part);
    let upload = tokio::spawn({
        let staged = staged.clone();
        async move { staged.upload(&Always).await }
    });
    until(|| rig.store.waiting(Operation::Part) == 4).await;
    staged.discard();
    gate.add_permits(1000);
    staged.settled().await;
    assert!(upload.await.unwrap().is_err());
    rig.writer.drained().await;
    assert_eq!((rig.store.memory.open_uploads(), rig.object("k")), (0, None));
}

#[tokio::test]
async fn what_is_dropped_dirty_is_in_quarantine_and_what_is_clean_is_gone() {
    let rig = Rig::new();
    let lost = rig.create("lost");
    lost.write(0, b"never uploaded").await.unwrap();
    drop(lost);
    let clean = rig.create("clean");
    clean.write(0, b"uploaded").await.unwrap();
    clean.upload(&Always).await.unwrap();
    drop(clean);
    drop(rig.create("empty"));
    assert_eq!(rig.quarantined(), [b"never uploaded"]);
    assert_eq!(rig.staged_names(), 0);
    let status = rig.writer.status();
    assert_eq!((status.quarantined_files, status.staged_files, status.dirty_bytes), (1, 0, 0));
}

#[tokio::test]
async fn a_renamed_file_goes_up_under_its_new_key_alone() {
    let rig = Rig::new();
    let staged = rig.create("old");
    staged.write(0, &bytes(8, 5 * PART)).await.unwrap();
    until(|| rig.writer.status().parts_sent_ahead == 4).await;
    staged.set_key(Key::new("new"));
    staged.upload(&Always).await.unwrap();
    rig.writer.drained().await;
    assert_eq!(rig.object("new").unwrap(), bytes(8, 5 * PART));
    assert_eq!((rig.object("old"), rig.store.memory.open_uploads()), (None, 0));
    // Clean, then renamed by the store itself: nothing is to be done.
    rig.requests();
    staged.moved(Key::new("newer"), ETag("x".into()));
    assert!(!staged.is_dirty());
    assert_eq!(staged.upload(&Always).await.unwrap().etag, ETag("x".into()));
    assert_eq!(rig.requests(), HashMap::new());
}

#[tokio::test]
async fn the_modification_time_is_of_the_content_and_not_of_our_doings() {
    let rig = Rig::new();
    let staged = rig.create("k");
    staged.set_passthrough();
    staged.disk.write(b"content", 0).1.unwrap();
    let written = staged.disk.modified().unwrap();
    assert_eq!(staged.upload(&Always).await.unwrap().modified, written);
    assert_eq!(staged.modified().unwrap(), written);
    let set = std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(7);
    staged.set_modified(set).unwrap();
    assert_eq!((staged.modified().unwrap(), staged.is_dirty()), (set, false));
    staged.disk.write(b"C", 0).1.unwrap();
    assert!(staged.modified().unwrap() >= written && staged.is_dirty());
}

#[tokio::test]
async fn a_store_to_a_shared_mapping_is_found_by_the_recheck() {
    let rig = Rig::new();
    let staged = rig.create("k");
    staged.set_passthrough();
    staged.disk.write(&bytes(9, 3 * PART), 0).1.unwrap();
    staged.upload(&Always).await.unwrap();
    staged.recheck().await.unwrap();
    assert!(!staged.is_dirty());
    // As a mapping whose page was dirty already: other bytes, the same time.
    let (modified, file) = (staged.disk.modified().unwrap(), staged.file());
    staged.disk.write(b"x", PART as u64).1.unwrap();
    file.set_times(std::fs::FileTimes::new().set_modified(modified)).unwrap();
    assert!(!staged.is_dirty(), "only the bytes can tell");
    staged.recheck().await.unwrap();
    assert!(staged.is_dirty());
    staged.upload(&Always).await.unwrap();
    let mut expected = bytes(9, 3 * PART);
    expected[PART] = b'x';
    assert_eq!(rig.object("k").unwrap(), expected);
}

#[tokio::test]
async fn a_recheck_finds_nothing_where_nothing_was_changed() {
    let rig = Rig::new();
    let staged = rig.open("k", &bytes(1, 8 * PART)).await;
    staged.write(0, b"patch").await.unwrap();
    staged.upload(&Always).await.unwrap();
    staged.complete().await.unwrap();
    staged.set_passthrough();
    staged.recheck().await.unwrap();
    assert!(!staged.is_dirty(), "parts that the store copied have no checksum");
}

#[tokio::test]
async fn a_file_cut_while_it_is_read_is_read_again() {
    let rig = Rig::new();
    let staged = rig.create("k");
    staged.set_passthrough();
    staged.disk.write(&bytes(1, 8 * PART), 0).1.unwrap();
    let gate = rig.store.hold(Operation::MultipartCreate);
    let upload = tokio::spawn({
        let staged = staged.clone();
        async move { staged.upload(&Always).await }
    });
    until(|| rig.store.waiting(Operation::MultipartCreate) == 1).await;
    staged.disk.set_size(PART as u64 / 2).unwrap();
    gate.add_permits(100);
    assert_eq!(upload.await.unwrap().unwrap().size, PART as u64 / 2);
    assert_eq!(rig.object("k").unwrap(), bytes(1, PART / 2));
    assert!(!staged.is_dirty());
}

/// A program writes through the kernel, in large pieces, while uploads of the file run: whatever
/// they saw, once it has stopped the next upload leaves exactly what it wrote.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_write_of_the_kernel_is_lost_between_two_uploads() {
    const PIECE: usize = 96 << 10;
    let rig = Rig::with(|store| store.part_min = 128 << 10);
    let staged = rig.create("k");
    staged.set_passthrough();
    let mut clean = 0;
    for round in 0..200u32 {
        let writer = std::thread::spawn({
            let staged = staged.clone();
            move || {
                for step in 0..4 {
                    let at = u64::from(round.wrapping_mul(7919).wrapping_add(step * 31) % 5);
                    let data = vec![(round * 4 + step) as u8; PIECE];
                    staged.disk.write(&data, at * PIECE as u64).1.unwrap();
                }
            }
        });
        while !writer.is_finished() {
            staged.upload(&Always).await.unwrap();
        }
        writer.join().unwrap();
        clean += u32::from(!staged.is_dirty());
        staged.upload(&Always).await.unwrap();
        let mut content = vec![0; staged.size().unwrap() as usize];
        staged.disk.read(&mut content, 0).unwrap();
        assert!(rig.object("k").unwrap() == content, "round {round}");
        assert!(!staged.is_dirty());
    }
    println!("in {clean} of 200 rounds the file was clean when its writer had stopped");
}
