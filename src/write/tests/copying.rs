//! Files that are copies of objects.

use super::*;
use crate::write::Copied;
use Condition::Always;

const SIZE: usize = 8 * PART;

/// Puts an object into the store, without a request that is counted.
async fn put(rig: &Rig, key: &str, content: &[u8]) -> Base {
    let (key, body) = (Key::new(key), Bytes::copy_from_slice(content));
    let memory = &rig.store.memory;
    let written = memory.put(&key, body, &Always, &Metadata::new()).await.unwrap();
    memory.take_requests();
    Base { key, etag: written.etag, size: content.len() as u64 }
}

async fn copy(staged: &Staged, source: &Base, range: Range<u64>) -> Copied {
    match staged.take(source, range).unwrap() {
        Some(taken) => staged.copy_taken(taken).await.unwrap(),
        None => Copied::Refused,
    }
}

async fn copied(rig: &Rig, source: &Base) -> Arc<Staged> {
    let staged = rig.create("copy");
    assert_eq!(copy(&staged, source, 0..source.size).await, Copied::Done);
    staged
}

#[tokio::test]
async fn a_copy_moves_no_byte_and_outlives_its_source() {
    let rig = Rig::new();
    let content = bytes(1, SIZE + 5);
    let source = put(&rig, "source", &content).await;
    let staged = copied(&rig, &source).await;
    assert_eq!(staged.size().unwrap(), source.size);
    assert!(staged.is_dirty() && rig.object("copy").is_none(), "seen before its close");
    rig.store.memory.delete(&source.key, None).await.unwrap();
    staged.upload(&Always).await.unwrap();
    assert_eq!(rig.object("copy").unwrap(), content);
    let requests = rig.requests();
    assert_eq!(requests[&Operation::PartCopy], 9, "{requests:?}");
    assert!(!requests.contains_key(&Operation::Part) && !requests.contains_key(&Operation::Get));
    assert_eq!(staged.read(0, u32::MAX).await.unwrap(), content, "out of its own object");
}

#[tokio::test]
async fn a_copy_that_is_changed_before_its_close_sends_what_changed() {
    let rig = Rig::new();
    let mut expected = bytes(2, SIZE);
    let staged = copied(&rig, &put(&rig, "source", &expected).await).await;
    let at = 3 * PART + 7;
    staged.write(at as u64, b"patch").await.unwrap();
    staged.write(SIZE as u64, b"tail").await.unwrap();
    expected[at..at + 5].copy_from_slice(b"patch");
    expected.extend_from_slice(b"tail");
    staged.upload(&Always).await.unwrap();
    assert_eq!(rig.object("copy").unwrap(), expected);
    assert_eq!(rig.requests()[&Operation::Part], 2);
    assert!(rig.writer.status().bytes_fetched <= PART as u64);
}

#[tokio::test]
async fn a_copy_goes_on_where_it_ended_and_nowhere_else() {
    let rig = Rig::new();
    let content = bytes(3, SIZE);
    let source = put(&rig, "source", &content).await;
    let staged = rig.create("copy");
    let (middle, end) = (2 * PART as u64 + 100, source.size);
    assert_eq!(copy(&staged, &source, 0..middle).await, Copied::Done);
    assert_eq!(copy(&staged, &source, middle + 1..end).await, Copied::Refused);
    assert_eq!(
        copy(&staged, &source, middle..middle + 10).await,
        Copied::Refused,
        "piece by piece"
    );
    let other = put(&rig, "other", &bytes(4, SIZE)).await;
    assert_eq!(copy(&staged, &other, middle..end).await, Copied::Refused);
    assert_eq!(copy(&staged, &source, middle..end).await, Copied::Done);
    staged.upload(&Always).await.unwrap();
    assert_eq!(rig.object("copy").unwrap(), content);
}

#[tokio::test]
async fn what_a_file_held_before_it_was_emptied_is_no_part_of_a_copy() {
    let rig = Rig::new();
    let staged = rig.open("copy", &bytes(5, SIZE)).await;
    staged.write(0, &bytes(6, SIZE)).await.unwrap();
    rig.store.fail(Operation::Complete, BucketError::Invalid("not now".into()));
    staged.upload(&Always).await.unwrap_err();
    rig.store.heal();
    staged.truncate(0).await.unwrap();
    let content = bytes(7, SIZE);
    let source = put(&rig, "source", &content).await;
    assert_eq!(copy(&staged, &source, 0..source.size).await, Copied::Done);
    staged.upload(&Always).await.unwrap();
    assert_eq!(rig.object("copy").unwrap(), content);
}

#[tokio::test]
async fn a_source_that_was_replaced_is_not_copied_and_the_file_stays_empty() {
    let rig = Rig::new();
    let stale = put(&rig, "source", &bytes(8, SIZE)).await;
    put(&rig, "source", &bytes(9, SIZE)).await;
    let staged = rig.create("copy");
    assert_eq!(copy(&staged, &stale, 0..stale.size).await, Copied::Refused);
    assert_eq!(staged.size().unwrap(), 0);
    staged.write(0, b"by other ways").await.unwrap();
    staged.upload(&Always).await.unwrap();
    assert_eq!(rig.object("copy").unwrap(), b"by other ways"[..]);
}

#[tokio::test]
async fn a_source_replaced_under_the_copy_is_noticed_where_the_store_does_not() {
    let rig = Rig::new();
    let source = put(&rig, "source", &bytes(10, SIZE)).await;
    let staged = rig.create("copy");
    let gate = rig.store.hold(Operation::Head);
    let taken = staged.take(&source, 0..source.size).unwrap().unwrap();
    let copying = tokio::spawn({
        let staged = staged.clone();
        async move { staged.copy_taken(taken).await }
    });
    until(|| rig.store.waiting(Operation::Head) == 1).await;
    put(&rig, "source", &bytes(11, SIZE)).await;
    gate.add_permits(1);
    assert_eq!(copying.await.unwrap().unwrap(), Copied::Refused);
    assert_eq!(staged.size().unwrap(), 0);
}

#[tokio::test]
async fn a_file_that_holds_something_or_is_small_is_not_made_a_copy() {
    let rig = Rig::new();
    let source = put(&rig, "source", &bytes(12, SIZE)).await;
    let small = put(&rig, "small", &bytes(13, PART)).await;
    let staged = rig.create("copy");
    assert!(staged.take(&small, 0..small.size).unwrap().is_none());
    staged.write(0, b"something").await.unwrap();
    assert!(staged.take(&source, 0..source.size).unwrap().is_none());
    let plain = Rig::with(|store| store.part_copy = false);
    assert!(plain.create("copy").take(&source, 0..source.size).unwrap().is_none());
}

#[tokio::test]
async fn what_a_copy_lacks_of_its_source_can_be_had_before_that_goes() {
    let rig = Rig::new();
    let content = bytes(14, SIZE);
    let source = put(&rig, "source", &content).await;
    let staged = copied(&rig, &source).await;
    assert_eq!(staged.source(), Some(source.key.clone()));
    staged.complete().await.unwrap();
    assert_eq!(staged.source(), None);
    rig.store.memory.delete(&source.key, None).await.unwrap();
    assert_eq!(staged.read(0, u32::MAX).await.unwrap(), content);
    staged.write(PART as u64, b"patch").await.unwrap();
    staged.upload(&Always).await.unwrap();
    assert_eq!(rig.object("copy").unwrap()[PART..PART + 5], b"patch"[..]);
}
