//! Files that are written anew with what their object has already.

use super::*;
use Condition::Always;

/// Uploads `content` and stages the file anew, emptied, as an open with O_TRUNC does.
async fn again(rig: &Rig, content: &[u8]) -> Arc<Staged> {
    let first = rig.create("k");
    first.write(0, content).await.unwrap();
    let uploaded = first.upload(&Always).await.unwrap();
    let base = Base { key: Key::new("k"), etag: uploaded.etag, size: content.len() as u64 };
    let staged = rig.writer.stage_over(base.key.clone(), base, &first.content().unwrap()).unwrap();
    rig.requests();
    staged
}

#[tokio::test]
async fn an_identical_rewrite_costs_a_head_and_no_put() {
    let rig = Rig::new();
    for size in [1, PART, 5 * PART + 3] {
        let content = bytes(1, size);
        let staged = again(&rig, &content).await;
        assert!(staged.is_dirty());
        for piece in 0..size.div_ceil(PART) {
            let range = piece * PART..size.min((piece + 1) * PART);
            staged.write(range.start as u64, &content[range]).await.unwrap();
        }
        let uploaded = staged.upload(&Always).await.unwrap();
        assert!(!staged.is_dirty() && rig.object("k").unwrap() == content);
        assert_eq!(staged.last_uploaded(), Some(uploaded));
        rig.writer.drained().await;
        let requests = rig.requests();
        let sent: Vec<_> =
            [Operation::Put, Operation::Part, Operation::PartCopy, Operation::Complete]
                .into_iter()
                .filter(|operation| requests.contains_key(operation))
                .collect();
        assert!(sent.is_empty(), "{size}: {requests:?}");
        assert_eq!(requests[&Operation::Head], 1);
    }
}

#[tokio::test]
async fn an_identical_rewrite_after_another_node_wrote_wins() {
    let rig = Rig::new();
    let content = bytes(2, 300);
    let staged = again(&rig, &content).await;
    let other = Bytes::from_static(b"of another node");
    let memory = &rig.store.memory;
    memory.put(&Key::new("k"), other, &Always, &Metadata::new()).await.unwrap();
    staged.write(0, &content).await.unwrap();
    staged.upload(&Always).await.unwrap();
    assert_eq!(rig.object("k").unwrap(), content);
}

#[tokio::test]
async fn a_file_that_only_grew_sends_its_tail() {
    let rig = Rig::new();
    for size in [PART / 2, PART, 3 * PART + 5] {
        let mut content = bytes(3, size);
        let staged = again(&rig, &content).await;
        content.extend_from_slice(&bytes(4, 100));
        staged.write(0, &content).await.unwrap();
        staged.upload(&Always).await.unwrap();
        assert_eq!(rig.object("k").unwrap(), content, "{size}");
        let requests = rig.requests();
        let sent = rig.writer.status().bytes_sent;
        assert_eq!(
            (requests.get(&Operation::Put), requests.get(&Operation::Part)),
            (None, Some(&1))
        );
        assert_eq!(requests[&Operation::PartCopy], 1, "{size}: {requests:?}");
        content.extend_from_slice(b"more");
        staged.write(content.len() as u64 - 4, b"more").await.unwrap();
        staged.upload(&Always).await.unwrap();
        assert_eq!(rig.object("k").unwrap(), content);
        assert_eq!(rig.writer.status().bytes_sent, sent + 4);
    }
}

#[tokio::test]
async fn a_small_file_that_grew_goes_by_one_put() {
    let rig = Rig::new();
    let mut content = bytes(5, PART / 2 - 1);
    let staged = again(&rig, &content).await;
    content.extend_from_slice(b"tail");
    staged.write(0, &content).await.unwrap();
    staged.upload(&Always).await.unwrap();
    assert_eq!(rig.requests(), HashMap::from([(Operation::Put, 1)]));
}

#[tokio::test]
async fn a_rewrite_that_differs_or_ends_early_is_sent() {
    let rig = Rig::new();
    let old = bytes(6, 4 * PART);
    let mut other = old.clone();
    other[2 * PART + 9] ^= 1;
    let mut late = other.clone();
    late.extend_from_slice(b"tail");
    for content in [other, late, old[..2 * PART].to_vec(), Vec::new()] {
        let staged = again(&rig, &old).await;
        staged.write(0, &content).await.unwrap();
        staged.upload(&Always).await.unwrap();
        assert_eq!(rig.object("k").unwrap(), content);
    }
}

#[tokio::test]
async fn a_tail_behind_an_object_that_went_is_sent_with_all_before_it() {
    let rig = Rig::new();
    let mut content = bytes(7, 2 * PART);
    let staged = again(&rig, &content).await;
    content.extend_from_slice(b"tail");
    staged.write(0, &content).await.unwrap();
    rig.store.memory.delete(&Key::new("k"), None).await.unwrap();
    staged.upload(&Always).await.unwrap();
    assert_eq!(rig.object("k").unwrap(), content);
}
