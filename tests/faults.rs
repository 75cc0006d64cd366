//! What [`Bucket`] makes of a store that fails: retries within the bound, bodies that go on where
//! they broke, and writes whose reply was lost.

#[path = "support/clock.rs"]
mod clock;
#[path = "faults/scripted.rs"]
mod scripted;
#[path = "support/steered.rs"]
mod steered;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;
use trialfs::bucket::{Bucket, BucketError, Condition, Metadata, NONCE};
use trialfs::types::Key;

use clock::TestClock;
use scripted::{Fault, Scripted};
use steered::Steered;

const IO_TIMEOUT: Duration = Duration::from_secs(120);

fn bucket(faults: impl IntoIterator<Item = Fault>) -> (Arc<Bucket>, Arc<Steered<Scripted>>) {
    let clock = Arc::new(TestClock::default());
    let store = Scripted::new(clock.clone(), faults);
    (Bucket::new(store.clone(), clock, IO_TIMEOUT), store)
}

async fn put(bucket: &Bucket, body: &'static str, condition: Condition) -> Result<(), BucketError> {
    let body = Bytes::from_static(body.as_bytes());
    bucket.put(&Key::new("k"), body, &condition, &Metadata::new()).await.map(drop)
}

#[tokio::test(start_paused = true)]
async fn a_store_that_comes_back_is_asked_until_it_answers() {
    let (bucket, _) = bucket([Fault::Unavailable, Fault::Stall, Fault::Unavailable]);
    put(&bucket, "body", Condition::Always).await.unwrap();
    let counts = bucket.counts();
    assert_eq!((counts.put, counts.retries, counts.errors), (4, 3, 3));
}

#[tokio::test(start_paused = true)]
async fn a_store_that_stays_away_is_given_up_within_the_bound() {
    for fault in [Fault::Unavailable, Fault::Stall] {
        let (bucket, _) = bucket(std::iter::repeat_n(fault, 10_000));
        let started = Instant::now();
        let error = put(&bucket, "body", Condition::Always).await.unwrap_err();
        assert!(error.is_transient(), "{error:?}");
        assert!(started.elapsed() <= IO_TIMEOUT + Duration::from_secs(1), "{fault:?}");
        assert!(started.elapsed() >= IO_TIMEOUT / 2, "{fault:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_busy_store_is_not_asked_before_it_wants_to_be() {
    let (bucket, _) = bucket([Fault::Busy(30), Fault::Busy(40)]);
    let started = Instant::now();
    put(&bucket, "body", Condition::Always).await.unwrap();
    assert_eq!(bucket.counts().put, 3);
    assert!(started.elapsed() >= Duration::from_secs(70), "{:?}", started.elapsed());
    assert!(started.elapsed() <= Duration::from_secs(71), "{:?}", started.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_store_that_wants_more_patience_than_there_is_is_asked_once_more_in_time() {
    let (once, _) = bucket([Fault::Busy(86_400)]);
    put(&once, "body", Condition::Always).await.unwrap();
    assert_eq!(once.counts().put, 2);
    let (bucket, _) = bucket(std::iter::repeat_n(Fault::Busy(86_400), 10_000));
    let started = Instant::now();
    let error = put(&bucket, "body", Condition::Always).await.unwrap_err();
    assert!(matches!(error, BucketError::Busy { .. }), "{error:?}");
    assert!(started.elapsed() <= IO_TIMEOUT + Duration::from_secs(1));
    assert!(bucket.counts().put < 20, "{}", bucket.counts().put);
}

#[tokio::test(start_paused = true)]
async fn an_answer_is_not_asked_for_again() {
    let (bucket, _) = bucket([Fault::Denied]);
    let error = put(&bucket, "body", Condition::Always).await.unwrap_err();
    assert!(matches!(error, BucketError::Denied(_)));
    assert_eq!(bucket.counts().put, 1);
}

#[tokio::test(start_paused = true)]
async fn a_create_whose_reply_was_lost_has_won() {
    for fault in [Fault::LostReply, Fault::LateTimeout] {
        let (bucket, store) = bucket([fault]);
        put(&bucket, "", Condition::IfAbsent).await.unwrap();
        assert_eq!(bucket.counts().put, 2);
        assert!(store.memory.objects().contains_key("k"));
        let again = put(&bucket, "", Condition::IfAbsent).await;
        assert_eq!(again, Err(BucketError::Precondition), "another create is another");
    }
}

#[tokio::test(start_paused = true)]
async fn a_create_that_lost_against_another_node_after_a_lost_reply_has_lost() {
    let (bucket, store) = bucket([Fault::Unavailable]);
    let clock = Arc::new(TestClock::from(77));
    let other = Bucket::new(store.memory.clone(), clock, IO_TIMEOUT);
    put(&other, "theirs", Condition::IfAbsent).await.unwrap();
    let ours = put(&bucket, "ours", Condition::IfAbsent).await;
    assert_eq!(ours, Err(BucketError::Precondition));
    assert_eq!(store.memory.objects()["k"], "theirs");
}

#[tokio::test(start_paused = true)]
async fn a_swap_whose_reply_was_lost_has_won() {
    let (bucket, store) = bucket([]);
    put(&bucket, "one", Condition::Always).await.unwrap();
    let etag = bucket.head(&Key::new("k")).await.unwrap().etag;
    store.hand.script([Fault::LostReply]);
    put(&bucket, "two", Condition::IfMatch(etag)).await.unwrap();
    assert_eq!(store.memory.objects()["k"], "two");
}

#[tokio::test(start_paused = true)]
async fn a_delete_whose_reply_was_lost_has_deleted() {
    let (bucket, store) = bucket([]);
    put(&bucket, "one", Condition::Always).await.unwrap();
    let etag = bucket.head(&Key::new("k")).await.unwrap().etag;
    store.hand.script([Fault::LostReply]);
    bucket.delete(&Key::new("k"), Some(&etag)).await.unwrap();
    assert!(store.memory.objects().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_completion_whose_reply_was_lost_has_won() {
    for condition in [Condition::Always, Condition::IfAbsent] {
        let (bucket, store) = bucket([]);
        let key = Key::new("k");
        let upload = bucket.create_multipart(&key, &Metadata::new()).await.unwrap();
        let part = bucket.upload_part(&key, &upload, 1, Bytes::from_static(b"part")).await;
        let parts = [part.unwrap()];
        store.hand.script([Fault::LostReply]);
        let written = bucket.complete_multipart(&key, &upload, &parts, &condition).await;
        assert_eq!(written.unwrap().etag, bucket.head(&key).await.unwrap().etag);
        // Any later mount that completes it again learns the same, until the object is another.
        bucket.complete_multipart(&key, &upload, &parts, &condition).await.unwrap();
        put(&bucket, "newer", Condition::Always).await.unwrap();
        let late = bucket.complete_multipart(&key, &upload, &parts, &condition).await;
        assert_eq!(late, Err(BucketError::NotFound));
        assert_eq!(store.memory.objects()["k"], "newer", "a late completion changes nothing");
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_to_a_completion_or_copy_that_never_comes_costs_one_attempt() {
    for fault in [Fault::Stall, Fault::LateTimeout] {
        let (bucket, store) = bucket([]);
        let key = Key::new("k");
        let upload = bucket.create_multipart(&key, &Metadata::new()).await.unwrap();
        let part = bucket.upload_part(&key, &upload, 1, Bytes::from_static(b"part")).await;
        let started = Instant::now();
        store.hand.script([fault]);
        let always = Condition::Always;
        bucket.complete_multipart(&key, &upload, &[part.unwrap()], &always).await.unwrap();
        store.hand.script([fault]);
        bucket.copy(&key, None, &Key::new("other"), &always, &Metadata::new()).await.unwrap();
        let took = started.elapsed();
        assert!(took <= IO_TIMEOUT / 2 + Duration::from_secs(1), "{fault:?}: {took:?}");
        assert_eq!(store.memory.objects()["other"], "part");
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_that_breaks_goes_on_where_it_broke() {
    let (bucket, store) = bucket([]);
    let body: Bytes = (0..3_000_000u32).map(|i| (i / 7) as u8).collect::<Vec<_>>().into();
    let key = Key::new("k");
    bucket.put(&key, body.clone(), &Condition::Always, &Metadata::new()).await.unwrap();
    store.hand.script([Fault::BreakBody, Fault::BreakBody, Fault::Unavailable, Fault::StallBody]);
    let (info, bytes) = bucket.get_bytes(&key, 5..2_900_000, None).await.unwrap();
    assert_eq!(info.size, 3_000_000);
    assert!(bytes == body.slice(5..2_900_000));
    assert_eq!(bucket.counts().get, 5);
}

#[tokio::test(start_paused = true)]
async fn a_read_never_mixes_two_versions() {
    let (bucket, store) = bucket([]);
    let key = Key::new("k");
    let old = Bytes::from(vec![1; 1_000_000]);
    bucket.put(&key, old, &Condition::Always, &Metadata::new()).await.unwrap();
    store.hand.script([Fault::BreakBody]);
    let (_, mut body) = bucket.get(&key, 0..1_000_000, None).await.unwrap();
    let new = Bytes::from(vec![2; 1_000_000]);
    bucket.put(&key, new, &Condition::Always, &Metadata::new()).await.unwrap();
    let mut end = None;
    while let Some(frame) = futures::StreamExt::next(&mut body).await {
        match frame {
            Ok(frame) => assert!(frame.iter().all(|byte| *byte == 1)),
            Err(error) => end = Some(error),
        }
    }
    assert_eq!(end, Some(BucketError::Precondition));
}

#[tokio::test(start_paused = true)]
async fn a_body_that_never_ends_its_stall_is_given_up() {
    let (bucket, store) = bucket([]);
    put(&bucket, "0123456789", Condition::Always).await.unwrap();
    store.hand.script(std::iter::repeat_n(Fault::StallBody, 10_000));
    let started = Instant::now();
    let error = bucket.get_bytes(&Key::new("k"), 0..10, None).await.unwrap_err();
    assert!(matches!(error, BucketError::TimedOut(_)), "{error:?}");
    assert!(started.elapsed() <= IO_TIMEOUT * 2);
}

#[tokio::test(start_paused = true)]
async fn only_conditional_writes_carry_a_nonce() {
    let (bucket, _) = bucket([]);
    put(&bucket, "x", Condition::Always).await.unwrap();
    let info = bucket.head(&Key::new("k")).await.unwrap();
    assert!(!info.metadata.contains_key(NONCE));
    put(&bucket, "y", Condition::IfMatch(info.etag)).await.unwrap();
    let info = bucket.head(&Key::new("k")).await.unwrap();
    assert_eq!(info.metadata[NONCE].len(), 26);
}
