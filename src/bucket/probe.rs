//! What a store can really do, learnt at mount by doing it on a small key of our own: some servers
//! ignore conditions in silence, and say 200.
//!
//! Owns the trial and the words for what is missing. Does not own what a mount does without it.
//! Five round trips, each of independent requests at once; the trial key is removed again.

use bytes::Bytes;

use crate::bucket::error::BucketError;
use crate::bucket::store::{Capabilities, Condition, Metadata, ObjectInfo, Page, Written};
use crate::bucket::{Bucket, Operation};
use crate::clock::ulid;
use crate::types::{CONTROL_DIR, ETag, Key};

/// The mark that shows whether metadata is kept.
const MARK: &str = "trialfs-probe";
const BODY: &[u8] = b"trialfs probe: may be deleted";
/// The part of [`BODY`] that the ranged read asks for.
const RANGE: std::ops::Range<u64> = 3..7;
/// A lifecycle that ends uploads sooner is warned of.
const UPLOADS_DAYS_MIN: u32 = 7;
/// The most entries of the control directory that are looked through for the trial key.
const LOOK_ENTRIES_MAX: u16 = 1000;

/// Tries what `bucket` can do below `prefix` (which ends in `/` or is empty), and tells the bucket.
/// With it comes a line for each thing that is missing, and what follows from it.
///
/// Read-only, or where writing is refused, nothing is written. Errors say what to do:
/// [`BucketError::Denied`] also where the store may be read but not written.
pub async fn probe(
    bucket: &Bucket,
    prefix: &str,
    read_only: ReadOnly,
) -> Result<(Capabilities, Vec<String>), BucketError> {
    let trial = Trial::new(bucket, prefix);
    let can = bucket.capabilities();
    // Alone and first: some servers make a bucket of any name that something is put into, and a
    // write that gets no answer is asked after, for as long again.
    bucket.list(prefix, true, None, 1).await.map_err(advise)?;
    if read_only == ReadOnly::Yes {
        return Ok((can, Vec::new()));
    }
    let (created, _, _, _, _, upload, lifetime) = tokio::join!(
        trial.create(),
        trial.put(&trial.doomed, Condition::Always),
        trial.put(&trial.quiet, Condition::Always),
        trial.put(&trial.onto, Condition::Always),
        trial.mark(),
        trial.begin_upload(can),
        lifetime_of_uploads(bucket, prefix),
    );
    let found = match created {
        Ok(first) => Ok(trial.run(can, first, upload.as_deref()).await),
        Err(BucketError::Denied(text)) => Err(BucketError::Denied(format!(
            "{text}: the store can be read but not written; mount with --read-only"
        ))),
        Err(error) => Err(advise(error)),
    };
    if !matches!(found, Err(BucketError::Denied(_))) {
        let over = found.as_ref().ok().and_then(|found| found.created_over.as_ref());
        let over = over.is_some_and(|created| !refused(created));
        trial.clean(upload.as_deref(), over).await;
    }
    // The driver may have learnt of the server meanwhile.
    let can = found?.judge(bucket.caller.store.capabilities());
    bucket.set_capabilities(can);
    let lines = missing(can).into_iter().chain(lifetime);
    Ok((can, lines.collect()))
}

/// A line where the bucket ends uploads sooner than a save may be kept waiting for. Who may not ask
/// is told nothing.
async fn lifetime_of_uploads(bucket: &Bucket, prefix: &str) -> Option<String> {
    let days = match bucket.uploads_end_after_days(prefix).await {
        Ok(days) => days.filter(|days| *days < UPLOADS_DAYS_MIN)?,
        Err(error) => {
            tracing::debug!(%error, "the bucket's lifecycle is not known");
            return None;
        }
    };
    Some(format!(
        "the bucket's lifecycle ends uploads after {days} days: a checkpoint directory that is \
         being written or not yet published then is lost; make it {UPLOADS_DAYS_MIN} days or more"
    ))
}

/// Whether the mount may write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadOnly {
    Yes,
    No,
}

/// Adds to a refusal what the user can do about it, where the driver did not say.
fn advise(error: BucketError) -> BucketError {
    match error {
        BucketError::Denied(text) | BucketError::Unauthenticated(text)
            if !text.contains("check") =>
        {
            BucketError::Denied(format!("{text}; check the credentials and what they allow"))
        }
        error => error,
    }
}

/// The trial key and what is done with it.
struct Trial<'a> {
    bucket: &'a Bucket,
    key: Key,
    /// A second key, for what may take it away.
    doomed: Key,
    /// A third, which nothing disturbs while it is read; renamed to the fourth at the end.
    quiet: Key,
    moved: Key,
    /// A fifth, for what may be copied or uploaded onto it.
    onto: Key,
    marker: Key,
    /// The marker's name, as a file.
    over: Key,
    dir: String,
    mark: String,
}

/// What the trial showed: `None` where it was not tried.
struct Findings {
    created_again: Result<Written, BucketError>,
    created_over: Option<Result<Written, BucketError>>,
    replaced_stale: Result<Written, BucketError>,
    replaced: Result<Written, BucketError>,
    deleted_stale: Result<(), BucketError>,
    read: Result<(ObjectInfo, Bytes), BucketError>,
    listed: Result<Page, BucketError>,
    copied_onto: Result<Written, BucketError>,
    part: Option<Result<String, BucketError>>,
    part_copy: Option<Result<String, BucketError>>,
    completed_onto: Option<Result<Written, BucketError>>,
    renamed: Option<Result<(), BucketError>>,
    key: Key,
    marker: Key,
    mark: String,
}

impl<'a> Trial<'a> {
    fn new(bucket: &'a Bucket, prefix: &str) -> Self {
        let mark = ulid(&*bucket.caller.clock);
        let dir = format!("{prefix}{CONTROL_DIR}/");
        let key = format!("{dir}probe.{mark}");
        Self {
            bucket,
            doomed: Key::new(format!("{key}.doomed")),
            quiet: Key::new(format!("{key}.quiet")),
            moved: Key::new(format!("{key}.moved")),
            onto: Key::new(format!("{key}.onto")),
            marker: Key::new(format!("{key}.dir/")),
            over: Key::new(format!("{key}.dir")),
            key: Key::new(key),
            dir,
            mark,
        }
    }

    fn metadata(&self) -> Metadata {
        match self.bucket.capabilities().metadata {
            true => [(MARK.to_owned(), self.mark.clone())].into(),
            false => Metadata::new(),
        }
    }

    async fn put(&self, key: &Key, condition: Condition) -> Result<Written, BucketError> {
        let body = Bytes::from_static(BODY);
        self.bucket.put(key, body, &condition, &self.metadata()).await
    }

    /// Creates the trial key; where the store knows no such condition, without one.
    async fn create(&self) -> Result<Written, BucketError> {
        match self.put(&self.key, Condition::IfAbsent).await {
            Err(BucketError::Unsupported(_)) => self.put(&self.key, Condition::Always).await,
            result => result,
        }
    }

    async fn mark(&self) -> Result<Written, BucketError> {
        let metadata = Metadata::new();
        self.bucket.put(&self.marker, Bytes::new(), &Condition::Always, &metadata).await
    }

    async fn begin_upload(&self, can: Capabilities) -> Option<String> {
        match can.multipart {
            true => self.bucket.create_multipart(&self.onto, &self.metadata()).await.ok(),
            false => None,
        }
    }

    /// Everything else, in two rounds: what completes or replaces comes when all others have
    /// looked.
    async fn run(&self, can: Capabilities, first: Written, upload: Option<&str>) -> Findings {
        let (bucket, key, body) = (self.bucket, &self.key, Bytes::from_static(BODY));
        let stale = ETag("1".to_owned());
        let metadata = self.metadata();
        let caller = &bucket.caller;
        let copy = || caller.store.copy(key, None, &self.onto, &Condition::IfAbsent, &metadata);
        let part_copy = async {
            let upload = upload.filter(|_| can.part_copy)?;
            let whole = 0..BODY.len() as u64;
            Some(bucket.upload_part_copy(&self.onto, upload, 2, key, &first.etag, whole).await)
        };
        let part = async { Some(bucket.upload_part(&self.onto, upload?, 1, body).await) };
        let conditions = async {
            tokio::join!(
                self.put(key, Condition::IfAbsent),
                self.put(key, Condition::IfMatch(stale.clone())),
                bucket.delete(&self.doomed, Some(&stale)),
                async { caller.call(Operation::Copy, 0, copy).await.result },
            )
        };
        let (conditions, read, listed, part, part_copy) = tokio::join!(
            conditions,
            bucket.get_bytes(&self.quiet, RANGE, None),
            bucket.list(&self.dir, true, None, LOOK_ENTRIES_MAX),
            part,
            part_copy,
        );
        let (created_again, replaced_stale, deleted_stale, copied_onto) = conditions;
        let parts = part.as_ref().and_then(|part| part.as_ref().ok()).cloned();
        let completed_onto = async {
            let condition = &Condition::IfAbsent;
            Some(bucket.complete_multipart(&self.onto, upload?, &[parts?], condition).await)
        };
        let replace = self.put(key, Condition::IfMatch(first.etag.clone()));
        let rename = async {
            let to = can.rename_file.then_some(&self.moved)?;
            Some(bucket.rename(&self.quiet, to, &Condition::Always).await)
        };
        // A server that ignores the condition may lose its directory by this.
        let over = async {
            match refused(&created_again) {
                true => Some(self.put(&self.over, Condition::IfAbsent).await),
                false => None,
            }
        };
        let (completed_onto, replaced, renamed, created_over) =
            tokio::join!(completed_onto, replace, rename, over);
        Findings {
            created_again,
            created_over,
            replaced_stale,
            replaced,
            deleted_stale,
            read,
            listed,
            copied_onto,
            part,
            part_copy,
            completed_onto,
            renamed,
            key: key.clone(),
            marker: self.marker.clone(),
            mark: self.mark.clone(),
        }
    }

    /// Best effort: a probe key that stays is hidden, and says in its body what it is.
    async fn clean(&self, upload: Option<&str>, over: bool) {
        let abort = async {
            match upload {
                Some(upload) => self.bucket.abort_multipart(&self.onto, upload).await,
                None => Ok(()),
            }
        };
        let keys = [&self.key, &self.doomed, &self.quiet, &self.moved, &self.onto, &self.marker];
        let keys = keys.into_iter().chain(over.then_some(&self.over));
        let delete = keys.map(|key| self.bucket.delete(key, None));
        let _ = tokio::join!(futures::future::join_all(delete), abort);
        // Where directories are real, and where an emptied prefix is listed until its own key is
        // deleted.
        let _ = self.bucket.delete(&Key::new(self.dir.as_str()), None).await;
    }
}

fn refused<T>(result: &Result<T, BucketError>) -> bool {
    matches!(result, Err(BucketError::Precondition))
}

impl Findings {
    /// What the store can do: what the driver says and the trial did not disprove.
    fn judge(&self, can: Capabilities) -> Capabilities {
        let completes = !matches!(
            self.completed_onto,
            Some(Err(BucketError::Unsupported(_) | BucketError::Denied(_) | BucketError::NotFound))
        );
        let part = matches!(self.part, Some(Ok(_))) && completes;
        let read = self.read.as_ref().ok();
        let marked = |info: &ObjectInfo| info.metadata.get(MARK) == Some(&self.mark);
        let expected = &BODY[RANGE.start as usize..RANGE.end as usize];
        let listed = self.listed.as_ref();
        let create_if_absent = can.create_if_absent
            && refused(&self.created_again)
            && (!completes || self.completed_onto.as_ref().is_none_or(refused));
        Capabilities {
            create_if_absent,
            create_sees_directories: create_if_absent
                && self.created_over.as_ref().is_some_and(refused),
            replace_if_match: can.replace_if_match
                && refused(&self.replaced_stale)
                && self.replaced.is_ok(),
            delete_if_match: can.delete_if_match && refused(&self.deleted_stale),
            multipart: can.multipart && part,
            part_copy: can.part_copy && matches!(self.part_copy, Some(Ok(_))),
            copy_condition: refused(&self.copied_onto),
            ranged_reads: can.ranged_reads && read.is_some_and(|(_, bytes)| bytes == expected),
            metadata: can.metadata && read.is_some_and(|(info, _)| marked(info)),
            rename_file: can.rename_file && matches!(self.renamed, Some(Ok(()))),
            list_after_write: can.list_after_write
                && listed.is_ok_and(|page| {
                    page.next.is_some() || page.objects.iter().any(|o| o.key == self.key)
                }),
            markers: can.markers
                && listed.is_ok_and(|page| {
                    page.next.is_some() || page.prefixes.iter().any(|p| p == self.marker.as_str())
                }),
            ..can
        }
    }
}

/// A line for each thing that is missing, and what follows.
fn missing(can: Capabilities) -> Vec<String> {
    let lines = [
        (
            can.create_if_absent,
            "the store has no safe exclusive create: two nodes can both win one",
        ),
        (
            can.replace_if_match,
            "the store ignores If-Match: of two nodes that replace a file at once the last wins \
             unseen",
        ),
        (
            can.delete_if_match,
            "the store deletes without looking: a file that another node rewrites at the same \
             moment may go with the old one",
        ),
        (
            can.multipart,
            "the store takes no uploads in parts: a file goes up whole when it is closed",
        ),
        (
            can.part_copy,
            "the store copies no parts: a large file that changed a little goes up whole again",
        ),
        (can.ranged_reads, "the store ignores ranges: files larger than one block can not be read"),
        (
            can.metadata,
            "the store keeps no metadata: symbolic links are refused, and after a lost reply a \
             write may be reported as failed that was done",
        ),
        (
            can.markers,
            "the store keeps no empty objects named `dir/`: a directory that is empty is gone",
        ),
        (
            can.list_after_write,
            "the store's listings lag behind: a new file may be missing from ls for a while",
        ),
    ];
    lines.into_iter().filter(|(can, _)| !can).map(|(_, line)| line.to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::bucket::memory::MemoryStore;
    use crate::bucket::store::{ListedObject, Store};
    use crate::clock;

    #[tokio::test]
    async fn a_whole_store_is_found_whole_and_left_clean() {
        let store = MemoryStore::new(clock::system());
        let bucket = Bucket::new(store.clone(), clock::system(), Duration::from_secs(9));
        let (can, lines) = probe(&bucket, "runs/", ReadOnly::No).await.unwrap();
        assert_eq!((can, lines), (bucket.capabilities(), vec![]));
        assert!(can.create_if_absent && can.replace_if_match && can.copy_condition);
        assert!(store.objects().is_empty());
        assert_eq!(store.open_uploads(), 0);
    }

    #[tokio::test]
    async fn read_only_asks_and_writes_nothing() {
        let store = MemoryStore::new(clock::system());
        let bucket = Bucket::new(store.clone(), clock::system(), Duration::from_secs(9));
        probe(&bucket, "runs/", ReadOnly::Yes).await.unwrap();
        assert_eq!(store.requests(), [(Operation::List, "runs/".to_owned())]);
    }

    fn whole(etag: &ETag) -> Findings {
        let written = || Ok(Written { etag: etag.clone() });
        let (key, marker) = (Key::new("k"), Key::new("k/"));
        let (size, modified) = (BODY.len() as u64, std::time::SystemTime::UNIX_EPOCH);
        let metadata = [(MARK.to_owned(), "m".to_owned())].into();
        let info = ObjectInfo { size, etag: etag.clone(), modified, metadata, crc64nvme: None };
        let bytes = Bytes::from_static(&BODY[RANGE.start as usize..RANGE.end as usize]);
        let listed = ListedObject { key: key.clone(), size, etag: etag.clone(), modified };
        let prefixes = vec![marker.as_str().to_owned()];
        Findings {
            created_again: Err(BucketError::Precondition),
            created_over: Some(written()),
            replaced_stale: Err(BucketError::Precondition),
            replaced: written(),
            deleted_stale: Err(BucketError::Precondition),
            read: Ok((info, bytes)),
            listed: Ok(Page { objects: vec![listed], prefixes, next: None }),
            copied_onto: Err(BucketError::Precondition),
            part: Some(Ok("part".to_owned())),
            part_copy: Some(Ok("part".to_owned())),
            completed_onto: Some(Err(BucketError::Precondition)),
            renamed: Some(Ok(())),
            key,
            marker,
            mark: "m".to_owned(),
        }
    }

    #[test]
    fn a_store_sees_directories_only_if_it_refused_a_file_over_one() {
        let can = MemoryStore::new(clock::system()).capabilities();
        let found = |created_over| {
            let whole = whole(&ETag("1".to_owned()));
            Findings { created_over: Some(created_over), ..whole }
                .judge(can)
                .create_sees_directories
        };
        assert!(found(Err(BucketError::Precondition)));
        assert!(!found(Err(BucketError::NotFound)));
        assert!(!found(Ok(Written { etag: ETag("2".to_owned()) })));
    }

    #[test]
    fn uploads_that_can_not_be_completed_are_not_begun() {
        let store = MemoryStore::new(clock::system()).capabilities();
        let can = Capabilities { rename_file: true, ..store };
        let whole = || whole(&ETag("1".to_owned()));
        assert_eq!(whole().judge(can), can);
        for error in [BucketError::Unsupported("move"), BucketError::NotFound] {
            let found = Findings { completed_onto: Some(Err(error)), ..whole() }.judge(can);
            assert_eq!(found, Capabilities { multipart: false, ..can });
        }
        let ignored = Some(Ok(Written { etag: ETag("2".to_owned()) }));
        let found = Findings { completed_onto: ignored, ..whole() }.judge(can);
        assert_eq!(found, Capabilities { create_if_absent: false, ..can });
        let renamed = Some(Err(BucketError::Invalid("no such method".to_owned())));
        let found = Findings { renamed, ..whole() }.judge(can);
        assert_eq!(found, Capabilities { rename_file: false, ..can });
    }
}
