//! What the next daemon takes up of a file that was acknowledged before the power went.

use std::fs::FileTimes;

use super::*;
use crate::write::intent::{Begun, BegunPart, INLINE_BYTES_MAX};
use crate::write::{Adopted, Before, CloseId, Closing, Intent};

/// `earlier` goes to the bucket; `acknowledged` is written over it in the same staged file and
/// acknowledged; the power goes. Returns the next daemon's writer, with its entry of the journal.
async fn after_a_power_loss(earlier: &[u8], acknowledged: &[u8]) -> (Rig, Intent) {
    let mut rig = Rig::new();
    rig.writer.journal().unwrap();
    let staged = rig.create("k");
    staged.write(0, earlier).await.unwrap();
    let uploaded = staged.upload(&Condition::Always).await.unwrap();
    let path = rig.staging().join(staged.disk.name());
    let noted = staged.disk.modified().unwrap();
    assert!(staged.disk.is_uploaded().unwrap(), "this test wants extended attributes in /tmp");
    staged.truncate(0).await.unwrap();
    staged.write(0, acknowledged).await.unwrap();
    let closing = Closing {
        id: CloseId(1),
        opened: CloseId(0),
        before: Before::Version(uploaded.etag),
        in_transaction: false,
        attributes: serde_json::Value::Null,
        replaces: Vec::new(),
    };
    staged.acknowledge(closing).await.unwrap();
    drop(staged);
    rig.writer.drained().await;
    let aside = rig.writer_in(&rig.root.path().join("other").join("staging"));
    drop(std::mem::replace(&mut rig.writer, aside)); // its journal is closed

    // Only the data was synced of what was acknowledged; nothing, where the journal has it.
    if acknowledged.len() as u64 <= INLINE_BYTES_MAX {
        std::fs::write(&path, earlier).unwrap();
    }
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_times(FileTimes::new().set_modified(noted)).unwrap();

    rig.writer = rig.writer_in(&rig.staging());
    let [intent] = rig.writer.left().try_into().unwrap();
    let found = rig.writer.shared.staging.reopen(&intent.file).unwrap().unwrap();
    assert!(found.is_uploaded().unwrap(), "the earlier version's note is there, and fits");
    (rig, intent)
}

#[tokio::test]
async fn the_note_of_an_earlier_version_loses_no_acknowledged_one_to_a_power_loss() {
    let large = INLINE_BYTES_MAX as usize + 1;
    for (earlier, acknowledged) in [(3, 4), (3, 3), (large, 4), (large, large)] {
        let (earlier, acknowledged) = (bytes(1, earlier), bytes(2, acknowledged));
        let (rig, intent) = after_a_power_loss(&earlier, &acknowledged).await;
        let Adopted::Here(staged) = rig.writer.adopt(&intent).await.unwrap() else {
            panic!("acknowledged, and taken for uploaded")
        };
        staged.upload(&Condition::Always).await.unwrap();
        assert_eq!(rig.object("k").unwrap(), acknowledged);
        let aside = rig.staging().with_file_name("quarantine");
        assert!(!aside.exists(), "the bucket had the earlier version: nobody looks for it");
    }
}

#[tokio::test]
async fn an_upload_that_an_earlier_version_cut_otherwise_is_begun_anew() {
    let large = INLINE_BYTES_MAX as usize + 1;
    let (earlier, acknowledged) = (bytes(1, large), bytes(2, large));
    let (rig, mut intent) = after_a_power_loss(&earlier, &acknowledged).await;
    let (bucket, key, metadata) = (&rig.writer.shared.bucket, Key::new("k"), Metadata::new());
    let upload = bucket.create_multipart(&key, &metadata).await.unwrap();
    let part = Bytes::copy_from_slice(&acknowledged[2 * PART..4 * PART]);
    let (len, crc) = (part.len() as u64, crc_fast::crc64_nvme(&part));
    let etag = bucket.upload_part(&key, &upload, 2, part).await.unwrap();
    let parts = [(1, BegunPart { etag, len, crc })].into();
    intent.begun = Some(Begun { upload, parts });
    rig.requests();
    let Adopted::Here(staged) = rig.writer.adopt(&intent).await.unwrap() else {
        panic!("acknowledged, and taken for uploaded")
    };
    staged.upload(&Condition::Always).await.unwrap();
    assert_eq!(rig.object("k").unwrap(), acknowledged);
    rig.writer.drained().await;
    let requests = rig.requests();
    assert_eq!((requests[&Operation::MultipartCreate], requests[&Operation::Abort]), (1, 1));
    assert_eq!(rig.store.memory.open_uploads(), 0);
}
