//! Files that go up and do not show until somebody completes them.

use std::collections::HashMap;

use super::*;
use crate::write::WriteError;
use Condition::Always;

async fn write(staged: &Staged, passthrough: bool, at: u64, data: &[u8]) {
    if passthrough {
        staged.disk.write(data, at).1.unwrap();
    } else {
        staged.write(at, data).await.unwrap();
    }
}

fn crc(content: &[u8]) -> Option<u64> {
    Some(crc_fast::crc64_nvme(content))
}

#[tokio::test]
async fn what_is_prepared_shows_nothing_until_it_is_completed() {
    use Operation::{MultipartCreate, Part};
    for passthrough in [false, true] {
        for size in [0, 1, PART, PART + 1, 4 * PART + PART / 2] {
            let rig = Rig::new();
            let staged = rig.create("k");
            if passthrough {
                staged.set_passthrough();
            }
            write(&staged, passthrough, 0, &bytes(1, size)).await;
            assert!(!staged.is_prepared());
            let prepared = staged.prepare().await.unwrap();
            let parts = size.div_ceil(PART).max(1);
            assert_eq!(rig.requests(), HashMap::from([(MultipartCreate, 1), (Part, parts)]));
            assert_eq!((prepared.size, prepared.parts.len()), (size as u64, parts));
            assert_eq!(prepared.crc, crc(&bytes(1, size)));
            assert!(staged.is_prepared() && staged.is_dirty());
            assert_eq!((rig.object("k"), staged.last_uploaded()), (None, None));
            assert_eq!(rig.writer.status().dirty_bytes, 0, "nobody waits for what is up");
            rig.complete(&prepared).await;
            assert_eq!(rig.object("k").unwrap(), bytes(1, size));
        }
    }
}

#[tokio::test]
async fn preparing_what_did_not_change_asks_for_nothing() {
    let rig = Rig::new();
    for passthrough in [false, true] {
        let staged = rig.create("k");
        if passthrough {
            staged.set_passthrough();
        }
        write(&staged, passthrough, 0, &bytes(2, 3 * PART)).await;
        let both = futures::future::join(staged.prepare(), staged.prepare()).await;
        let first = both.0.unwrap();
        assert_eq!(both.1.unwrap(), first);
        rig.requests();
        assert_eq!(staged.prepare().await.unwrap(), first);
        staged.set_passthrough();
        staged.look_ahead();
        staged.settled().await;
        assert_eq!(staged.prepare().await.unwrap(), first);
        assert_eq!(rig.requests(), HashMap::new());
    }
}

#[tokio::test]
async fn what_went_ahead_is_taken_over() {
    let rig = Rig::new();
    for (passthrough, before) in [(false, 0), (true, 4)] {
        let staged = rig.create("k");
        if passthrough {
            staged.set_passthrough();
        }
        write(&staged, passthrough, 0, &bytes(3, 4 * PART + 9)).await;
        until(|| rig.writer.status().parts_sent_ahead == before + 4).await;
        staged.settled().await;
        rig.requests();
        let prepared = staged.prepare().await.unwrap();
        assert_eq!(rig.requests(), HashMap::from([(Operation::Part, 1)]));
        assert_eq!(prepared.crc, crc(&bytes(3, 4 * PART + 9)));
        rig.complete(&prepared).await;
        assert_eq!(rig.object("k").unwrap(), bytes(3, 4 * PART + 9));
    }
}

#[tokio::test]
async fn a_change_makes_another_upload_and_the_old_one_still_completes_to_the_old_bytes() {
    for passthrough in [false, true] {
        let rig = Rig::new();
        let staged = rig.create("k");
        if passthrough {
            staged.set_passthrough();
        }
        let old = bytes(4, 2 * PART + 5);
        write(&staged, passthrough, 0, &old).await;
        let first = staged.prepare().await.unwrap();
        // Over the front of what was sent, so that parts go ahead into the next upload.
        let new = bytes(5, 6 * PART);
        write(&staged, passthrough, 0, &new).await;
        assert!(!staged.is_prepared());
        assert!(rig.writer.status().dirty_bytes > 0 || passthrough);
        let second = staged.prepare().await.unwrap();
        assert_ne!(second.upload, first.upload);
        rig.complete(&first).await;
        assert_eq!(rig.object("k").unwrap(), old);
        rig.complete(&second).await;
        assert_eq!(rig.object("k").unwrap(), new);
        assert_eq!(second.crc, crc(&new));
    }
}

#[tokio::test]
async fn another_key_or_other_metadata_make_another_upload_and_abort_none() {
    let rig = Rig::new();
    let staged = rig.create("a");
    staged.write(0, b"content").await.unwrap();
    let first = staged.prepare().await.unwrap();
    staged.set_key(Key::new("b"));
    assert!(!staged.is_prepared());
    let second = staged.prepare().await.unwrap();
    staged.set_metadata([("mode".to_owned(), "1".to_owned())].into());
    assert!(!staged.is_prepared());
    let third = staged.prepare().await.unwrap();
    assert_eq!(third.key, Key::new("b"));
    staged.discard();
    assert!(!staged.is_prepared());
    let error = staged.prepare().await.unwrap_err();
    assert_eq!(error, WriteError::Bucket(BucketError::NotFound));
    drop(staged);
    rig.writer.drained().await;
    assert_eq!(rig.store.memory.open_uploads(), 3);
    for prepared in [first, second, third] {
        rig.writer.abort(&prepared.key, &prepared.upload);
    }
    rig.writer.drained().await;
    assert_eq!(rig.store.memory.open_uploads(), 0);
}

#[tokio::test]
async fn what_is_dropped_unpublished_is_in_quarantine_and_its_upload_lives() {
    let rig = Rig::new();
    let staged = rig.create("k");
    staged.write(0, &bytes(6, 3 * PART)).await.unwrap();
    let prepared = staged.prepare().await.unwrap();
    drop(staged);
    rig.writer.drained().await;
    assert_eq!(rig.quarantined(), [bytes(6, 3 * PART)]);
    assert_eq!(rig.requests().get(&Operation::Abort), None);
    rig.complete(&prepared).await;
    assert_eq!(rig.object("k").unwrap(), bytes(6, 3 * PART));
}

#[tokio::test]
async fn what_was_published_is_clean_and_nothing_is_uploaded_again() {
    for passthrough in [false, true] {
        let rig = Rig::new();
        let staged = rig.create("k");
        if passthrough {
            staged.set_passthrough();
        }
        let mut expected = bytes(7, 5 * PART);
        write(&staged, passthrough, 0, &expected).await;
        let prepared = staged.prepare().await.unwrap();
        let etag = rig.complete(&prepared).await;
        staged.published(&prepared, etag.clone());
        rig.requests();
        assert!(!staged.is_dirty() && !staged.is_prepared());
        let made = staged.upload(&Always).await.unwrap();
        assert_eq!((made.etag, made.size), (etag, expected.len() as u64));
        staged.recheck().await.unwrap();
        assert!(!staged.is_dirty());
        assert_eq!(rig.requests(), HashMap::new());
        // The next change copies out of what was published.
        write(&staged, passthrough, 7, b"patch").await;
        expected[7..12].copy_from_slice(b"patch");
        staged.upload(&Always).await.unwrap();
        assert_eq!(rig.object("k").unwrap(), expected);
        let requests = rig.requests();
        assert_eq!((requests[&Operation::Part], requests[&Operation::PartCopy]), (1, 4));
        drop(staged);
        assert!(rig.quarantined().is_empty());
    }
}

#[tokio::test]
async fn what_changed_before_it_was_published_stays_dirty_and_goes_up_right() {
    for passthrough in [false, true] {
        let rig = Rig::new();
        let staged = rig.create("k");
        if passthrough {
            staged.set_passthrough();
        }
        let mut expected = bytes(8, 5 * PART);
        write(&staged, passthrough, 0, &expected).await;
        let prepared = staged.prepare().await.unwrap();
        write(&staged, passthrough, 2 * PART as u64, b"patch").await;
        expected[2 * PART..2 * PART + 5].copy_from_slice(b"patch");
        let etag = rig.complete(&prepared).await;
        staged.published(&prepared, etag.clone());
        assert!(staged.is_dirty());
        assert_eq!(staged.last_uploaded().unwrap().etag, etag);
        rig.requests();
        staged.upload(&Condition::IfMatch(etag)).await.unwrap();
        assert_eq!(rig.object("k").unwrap(), expected);
        let requests = rig.requests();
        assert_eq!((requests[&Operation::Part], requests[&Operation::PartCopy]), (1, 4));
    }
}

/// The bad interleaving: prepared; patched; the patch goes ahead into the next upload, so that it
/// counts as sent; the first is published. The patch is not in that one.
#[tokio::test]
async fn what_was_sent_since_is_not_taken_for_published() {
    let rig = Rig::new();
    let staged = rig.create("k");
    let mut expected = bytes(9, 5 * PART);
    staged.write(0, &expected).await.unwrap();
    let prepared = staged.prepare().await.unwrap();
    staged.write(0, b"patch").await.unwrap();
    expected[..5].copy_from_slice(b"patch");
    rig.store.fail(Operation::Complete, BucketError::Denied("no".into()));
    staged.upload(&Always).await.unwrap_err();
    rig.store.heal();
    let etag = rig.complete(&prepared).await;
    staged.published(&prepared, etag);
    staged.upload(&Always).await.unwrap();
    assert_eq!(rig.object("k").unwrap(), expected);
}

#[tokio::test]
async fn publishing_one_that_is_not_the_last_leaves_the_last_prepared() {
    for passthrough in [false, true] {
        let rig = Rig::new();
        let staged = rig.create("k");
        if passthrough {
            staged.set_passthrough();
        }
        write(&staged, passthrough, 0, &bytes(1, 3 * PART)).await;
        let first = staged.prepare().await.unwrap();
        write(&staged, passthrough, 0, &bytes(2, PART)).await;
        let second = staged.prepare().await.unwrap();
        staged.published(&first, rig.complete(&first).await);
        assert!(staged.is_dirty() && staged.is_prepared());
        let expected = [bytes(2, PART), bytes(1, 3 * PART)[PART..].to_vec()].concat();
        staged.upload(&Always).await.unwrap();
        assert_eq!(rig.object("k").unwrap(), expected);
        staged.published(&second, rig.complete(&second).await);
        assert!(staged.is_dirty(), "an upload of ours came between");
        staged.upload(&Always).await.unwrap();
        assert_eq!(rig.object("k").unwrap(), expected);
        assert!(!staged.is_dirty());
    }
}

#[tokio::test]
async fn a_base_is_here_as_a_whole_before_its_file_is_prepared() {
    for part_copy in [true, false] {
        let rig = Rig::with(|store| store.part_copy = part_copy);
        let mut expected = bytes(3, 20 * PART);
        let staged = rig.open("k", &expected).await;
        staged.write(9, b"patch").await.unwrap();
        expected[9..14].copy_from_slice(b"patch");
        let prepared = staged.prepare().await.unwrap();
        assert!(staged.is_complete());
        assert_eq!(prepared.crc.is_some(), !part_copy);
        rig.complete(&prepared).await;
        assert_eq!(rig.object("k").unwrap(), expected);
        // Nothing is asked of the old base, which is gone.
        assert_eq!(staged.read(0, u32::MAX).await.unwrap(), expected);
        staged.write(5 * PART as u64, b"more").await.unwrap();
        expected[5 * PART..5 * PART + 4].copy_from_slice(b"more");
        let again = staged.prepare().await.unwrap();
        rig.complete(&again).await;
        assert_eq!(rig.object("k").unwrap(), expected);
    }
}

/// The bad interleaving: an upload begins while the old base is still the base; then the prepared
/// object becomes it. What that one holds is not copied out of the old one.
#[tokio::test]
async fn a_base_replaced_under_an_upload_is_not_mixed_with_the_new_one() {
    let rig = Rig::new();
    let mut expected = bytes(7, 8 * PART);
    let staged = rig.open("old", &expected).await;
    staged.set_key(Key::new("new"));
    staged.write(0, b"one").await.unwrap();
    let prepared = staged.prepare().await.unwrap();
    staged.write(PART as u64, b"two").await.unwrap();
    expected[..3].copy_from_slice(b"one");
    expected[PART..PART + 3].copy_from_slice(b"two");
    let gate = rig.store.hold(Operation::MultipartCreate);
    let upload = tokio::spawn({
        let staged = staged.clone();
        async move { staged.upload(&Always).await }
    });
    until(|| rig.store.waiting(Operation::MultipartCreate) == 1).await;
    staged.published(&prepared, rig.complete(&prepared).await);
    gate.add_permits(100);
    upload.await.unwrap().unwrap();
    assert_eq!(rig.object("new").unwrap(), expected);
    assert!(!staged.is_dirty());
}

/// A program writes through the kernel while the file is prepared and published: whatever they saw,
/// what is said to be clean is what is in the store.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_write_of_the_kernel_is_lost_between_prepared_and_published() {
    const PIECE: usize = 96 << 10;
    let rig = Rig::with(|store| store.part_min = 128 << 10);
    let staged = rig.create("k");
    staged.set_passthrough();
    for round in 0..100u32 {
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
        loop {
            let over = writer.is_finished();
            let prepared = staged.prepare().await.unwrap();
            staged.published(&prepared, rig.complete(&prepared).await);
            if over {
                break;
            }
        }
        writer.join().unwrap();
        assert!(!staged.is_dirty(), "round {round}");
        let mut content = vec![0; staged.size().unwrap() as usize];
        staged.disk.read(&mut content, 0).unwrap();
        assert!(rig.object("k").unwrap() == content, "round {round}");
    }
}

/// A clean file may be prepared too, and is no less clean for it.
#[tokio::test]
async fn preparing_what_is_clean_leaves_it_clean() {
    let rig = Rig::new();
    let staged = rig.open("k", &bytes(4, 2 * PART)).await;
    staged.complete().await.unwrap();
    staged.set_passthrough();
    staged.prepare().await.unwrap();
    assert!(staged.is_prepared() && !staged.is_dirty());
}

#[tokio::test]
async fn a_store_to_a_mapping_after_the_last_sign_is_found_by_the_recheck() {
    let rig = Rig::new();
    let staged = rig.create("k");
    staged.set_passthrough();
    staged.disk.write(&bytes(5, 3 * PART), 0).1.unwrap();
    let first = staged.prepare().await.unwrap();
    staged.recheck().await.unwrap();
    assert!(staged.is_prepared());
    let (modified, file) = (staged.disk.modified().unwrap(), staged.file());
    staged.disk.write(b"x", PART as u64).1.unwrap();
    file.set_times(std::fs::FileTimes::new().set_modified(modified)).unwrap();
    assert!(staged.is_prepared(), "only the bytes can tell");
    staged.recheck().await.unwrap();
    assert!(!staged.is_prepared());
    let second = staged.prepare().await.unwrap();
    assert_ne!(second.upload, first.upload);
    rig.complete(&second).await;
    let mut expected = bytes(5, 3 * PART);
    expected[PART] = b'x';
    assert_eq!(rig.object("k").unwrap(), expected);
}

#[tokio::test]
async fn a_write_while_it_is_sent_is_not_prepared() {
    for passthrough in [false, true] {
        let rig = Rig::new();
        let staged = rig.create("k");
        if passthrough {
            staged.set_passthrough();
        }
        write(&staged, passthrough, 0, b"old").await;
        let gate = rig.store.hold(Operation::Part);
        let prepare = tokio::spawn({
            let staged = staged.clone();
            async move { staged.prepare().await }
        });
        until(|| rig.store.waiting(Operation::Part) == 1).await;
        write(&staged, passthrough, 0, b"new").await;
        gate.add_permits(100);
        let first = prepare.await.unwrap().unwrap();
        assert!(!staged.is_prepared());
        let second = staged.prepare().await.unwrap();
        assert_ne!(second.upload, first.upload);
        rig.complete(&second).await;
        assert_eq!(rig.object("k").unwrap(), "new");
    }
}

#[tokio::test]
async fn a_failure_leaves_the_file_unprepared_and_the_parts_for_the_next_try() {
    let rig = Rig::new();
    let staged = rig.create("k");
    staged.write(0, b"content").await.unwrap();
    rig.store.fail(Operation::Part, BucketError::Denied("no".into()));
    staged.prepare().await.unwrap_err();
    assert!(!staged.is_prepared() && staged.is_dirty());
    rig.writer.drained().await;
    assert_eq!(rig.store.memory.open_uploads(), 0);
    rig.store.heal();
    rig.complete(&staged.prepare().await.unwrap()).await;
    assert_eq!(rig.object("k").unwrap(), "content");
}

#[tokio::test]
async fn a_store_without_uploads_by_parts_says_so() {
    let rig = Rig::with(|store| store.multipart = false);
    let staged = rig.create("k");
    staged.write(0, b"content").await.unwrap();
    let error = staged.prepare().await.unwrap_err();
    assert!(matches!(error, WriteError::Bucket(BucketError::Unsupported(_))), "{error:?}");
    assert_eq!(rig.object("k"), None);
}
