//! What an earlier daemon acknowledged and did not upload: it goes to the bucket before the mount
//! answers, so that nobody sees a tree without it.
//!
//! Owns the conditions under which it goes, and what becomes of what has no place any more. Does
//! not own what is still there of it (`write`), nor the order (`write::Queue`).
//!
//! What must hold:
//! 1. Nothing newer is overwritten: a file goes up only over what it replaced. Where the bucket has
//!    something else, it is ours after all (its answer was lost) if size and CRC64NVME are the
//!    same; else the file goes to quarantine.
//! 2. No file shows before what was closed before it was opened; no commit record before what it
//!    may point to.
//! 3. A file of a checkpoint directory that was not committed goes to quarantine: the transaction
//!    is lost as a whole.
//! 4. What the store can't take now stays in the journal, for the next mount; once its name is used
//!    anew or removed it goes to quarantine, since it would replace that, or come back.
//!
//! Cost: an upload for each file; a HEAD and a GET more where the bucket has something else.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use futures::StreamExt;
use futures::stream::FuturesUnordered;

use super::Fs;
use super::error::Errno;
use super::waiting::role_of;
use crate::bucket::{BucketError, Condition, Metadata};
use crate::namespace::attrs::{AttrsRecord, RECORD_BYTES_MAX, Recorded, record_key};
use crate::types::{ETag, Key};
use crate::write::{Adopted, Before, CloseId, Intent, Next, Queue, Staged, Why, WriteError};

/// Files on their way at a time.
const UPLOADS_MAX: usize = 16;

/// What became of what an earlier daemon left.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Recovered {
    /// Uploaded now, or found to be in the bucket.
    pub files: u64,
    pub bytes: u64,
    /// Put in quarantine: they had no place any more.
    pub quarantined: u64,
    /// Still in the journal: the store could not take them now.
    pub left: u64,
}

/// What a file is to replace.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Base {
    Absent,
    Version(ETag),
    /// What it was written over is not what the bucket has.
    Conflict,
}

/// How one file came out.
enum Outcome {
    InBucket(ETag),
    /// It is here no more; what the next version of it is to replace.
    Gone(Base),
    Quarantined,
    Left,
}

impl Fs {
    /// Uploads what the journal has. To be called once, before anything else is asked of the file
    /// system.
    pub async fn recover(&self) -> Recovered {
        let intents = self.writer.left();
        let mut done = Recovered::default();
        if let Some(last) = intents.last() {
            self.waiting.begin_after(last.id);
            done = self.recover_all(intents).await;
            tracing::info!(?done, "an earlier daemon's acknowledged files");
        }
        *self.recovered.lock() = done;
        done
    }

    async fn recover_all(&self, intents: Vec<Intent>) -> Recovered {
        let mut done = Recovered::default();
        if self.config.read_only {
            done.left = intents.len() as u64;
            return done;
        }
        let mut queue = Queue::default();
        let mut all: BTreeMap<CloseId, Intent> = BTreeMap::new();
        for intent in intents {
            let role = role_of(&intent.key, intent.in_transaction);
            queue.closed(intent.id, intent.key.clone(), intent.opened, role);
            all.insert(intent.id, intent);
        }
        // The later of two closes that share a file has all that the file holds.
        let last: HashMap<&str, CloseId> =
            all.values().map(|intent| (intent.file.as_str(), intent.id)).collect();
        let mut bases: HashMap<CloseId, Base> = HashMap::new();
        let mut left: HashSet<CloseId> = HashSet::new();
        let mut attributes = Vec::new();
        let mut running = FuturesUnordered::new();
        loop {
            while running.len() < UPLOADS_MAX
                && let Some(next) = queue.next_ready()
            {
                match next {
                    Next::Refuse(id) => drop(left.insert(id)),
                    // It would go up before what it is to replace, which would then replace it.
                    Next::Upload(id) if replaces_one_of(&all[&id], &left) => {
                        queue.failed(id);
                        left.insert(id);
                    }
                    Next::Upload(id) => {
                        let intent = &all[&id];
                        let base = base_of(intent, &bases);
                        let is_last = last[intent.file.as_str()] == id;
                        running.push(async move {
                            (intent, self.recover_one(intent, base, is_last).await)
                        });
                    }
                }
            }
            let Some((intent, outcome)) = running.next().await else {
                done.left = left.len() as u64;
                let left = all.values().filter(|intent| left.contains(&intent.id));
                *self.left.lock() = left.cloned().collect();
                return self.end(done, attributes).await;
            };
            match outcome {
                Outcome::InBucket(etag) => {
                    (done.files, done.bytes) = (done.files + 1, done.bytes + intent.size);
                    attributes.push((intent.key.clone(), etag.clone(), intent.attributes.clone()));
                    bases.insert(intent.id, Base::Version(etag));
                }
                Outcome::Gone(base) => drop(bases.insert(intent.id, base)),
                Outcome::Quarantined => {
                    done.quarantined += 1;
                    bases.insert(intent.id, Base::Conflict);
                }
                Outcome::Left => {
                    queue.failed(intent.id);
                    left.insert(intent.id);
                    continue;
                }
            }
            queue.done(intent.id);
        }
    }

    async fn end(
        &self,
        done: Recovered,
        attributes: Vec<(Key, ETag, serde_json::Value)>,
    ) -> Recovered {
        let mut by_directory: HashMap<String, BTreeMap<String, Recorded>> = HashMap::new();
        for (key, etag, value) in attributes {
            let Ok(recorded) = serde_json::from_value::<Recorded>(value) else { continue };
            let at = key.as_str().rfind('/').map_or(0, |slash| slash + 1);
            let (directory, name) = key.as_str().split_at(at);
            let entry = Recorded { etag: Some(etag), ..recorded };
            by_directory.entry(directory.to_owned()).or_default().insert(name.to_owned(), entry);
        }
        for (directory, entries) in by_directory {
            if let Err(error) = self.add_to_record(&directory, entries).await {
                tracing::warn!(directory, %error, "attributes of recovered files are lost");
            }
        }
        done
    }

    async fn add_to_record(
        &self,
        directory: &str,
        entries: BTreeMap<String, Recorded>,
    ) -> Result<(), BucketError> {
        let key = Key::new(record_key(directory, &self.config.mount_id));
        let mut all = match self.bucket.get_bytes(&key, 0..RECORD_BYTES_MAX, None).await {
            Ok((_, body)) => AttrsRecord::parse(&body).map(|r| r.entries).unwrap_or_default(),
            Err(BucketError::NotFound) => BTreeMap::new(),
            Err(error) => return Err(error),
        };
        all.extend(entries);
        let record = AttrsRecord::new(&self.config.mount_id, self.clock.random(), all);
        let body = record.to_json().into();
        self.bucket.put(&key, body, &Condition::Always, &Metadata::new()).await.map(drop)
    }

    /// Of a close whose file holds what was closed later only that goes up.
    async fn recover_one(&self, intent: &Intent, base: Base, is_last: bool) -> Outcome {
        let adopted = match is_last {
            true => self.writer.adopt(intent).await,
            false => Ok(Adopted::Changed),
        };
        let result = match adopted {
            Ok(Adopted::Here(staged)) if intent.in_transaction => {
                self.recover_hidden(intent, staged).await
            }
            Ok(Adopted::Here(staged)) => self.recover_file(intent, staged, base).await,
            Ok(Adopted::InBucket | Adopted::Changed) => self.recover_base(intent, base).await,
            Err(error) => Err(error),
        };
        result.unwrap_or_else(|error| {
            tracing::error!(key = %intent.key, %error, "not recovered; it stays in the journal");
            Outcome::Left
        })
    }

    async fn recover_file(
        &self,
        intent: &Intent,
        staged: Arc<Staged>,
        base: Base,
    ) -> Result<Outcome, WriteError> {
        let can = self.bucket.capabilities();
        let condition = match base {
            Base::Absent if can.create_if_absent => Some(Condition::IfAbsent),
            Base::Version(etag) if can.replace_if_match => Some(Condition::IfMatch(etag)),
            // Without conditions it is asked before: better than never.
            base => (self.base_now(&intent.key).await? == base).then_some(Condition::Always),
        };
        let uploaded = match &condition {
            Some(condition) => staged.upload(condition).await.map(|uploaded| uploaded.etag),
            None => Err(BucketError::Precondition.into()),
        };
        let etag = match uploaded {
            Ok(etag) => etag,
            Err(error) if error.is_refusal() => {
                match self.bucket.find_same(&intent.key, intent.size, intent.crc).await? {
                    Some(etag) => etag,
                    None => {
                        self.writer.set_aside(staged, Why::ChangedElsewhere).await?;
                        return Ok(Outcome::Quarantined);
                    }
                }
            }
            Err(error) => return Err(error),
        };
        self.spent(intent, staged, etag.clone());
        Ok(Outcome::InBucket(etag))
    }

    /// The entry goes, and so does the staged file.
    fn spent(&self, intent: &Intent, staged: Arc<Staged>, etag: ETag) {
        staged.keep_no_more();
        staged.discard();
        if let Some(journal) = self.writer.journal_if_any() {
            journal.published(intent.id, etag);
        }
    }

    /// A file of a checkpoint directory: it was published with it, or is lost with it.
    async fn recover_hidden(
        &self,
        intent: &Intent,
        staged: Arc<Staged>,
    ) -> Result<Outcome, WriteError> {
        match self.bucket.find_same(&intent.key, intent.size, intent.crc).await? {
            Some(etag) => {
                self.spent(intent, staged, etag.clone());
                Ok(Outcome::Gone(Base::Version(etag)))
            }
            None => {
                self.writer.set_aside(staged, Why::NotCommitted).await?;
                Ok(Outcome::Quarantined)
            }
        }
    }

    /// What the next version of a file is to replace, of which this one is here no more: what this
    /// one made if it went up, else what it was to replace.
    async fn recover_base(&self, intent: &Intent, base: Base) -> Result<Outcome, WriteError> {
        let base = match self.bucket.find_same(&intent.key, intent.size, intent.crc).await? {
            Some(etag) => Base::Version(etag),
            None if self.base_now(&intent.key).await? == base => base,
            None => Base::Conflict,
        };
        if let Some(journal) = self.writer.journal_if_any() {
            journal.remove_soon(vec![intent.id]);
        }
        Ok(Outcome::Gone(base))
    }

    /// Something was made of a name, or it went: what is left of it, and of what was below it, has
    /// no place any more.
    pub(super) async fn give_up_left(&self, key: &Key) -> Result<(), Errno> {
        let path = key.as_str().trim_end_matches('/');
        let is_used = |left: &Key| {
            let below = left.as_str().strip_prefix(path);
            below.is_some_and(|below| below.is_empty() || below.starts_with('/'))
        };
        loop {
            // Of two that share a file the later one, which has all that it holds, goes first.
            let last = {
                let mut left = self.left.lock();
                let at = left.iter().rposition(|intent| is_used(&intent.key));
                at.map(|at| left.remove(at))
            };
            let Some(intent) = last else { return Ok(()) };
            tracing::warn!(key = %intent.key, "its name was used before it was recovered");
            if let Err(error) = self.set_left_aside(&intent).await {
                tracing::error!(key = %intent.key, %error, "it may come back at the next mount");
                let mut left = self.left.lock();
                left.push(intent);
                left.sort_by_key(|intent| intent.id);
                return Err(error.into());
            }
        }
    }

    async fn set_left_aside(&self, intent: &Intent) -> Result<(), WriteError> {
        match self.writer.adopt(intent).await? {
            Adopted::Here(staged) => self.writer.set_aside(staged, Why::ChangedElsewhere).await,
            Adopted::InBucket | Adopted::Changed => {
                let journal = self.writer.journal_if_any();
                journal.into_iter().for_each(|journal| journal.remove_soon(vec![intent.id]));
                Ok(())
            }
        }
    }

    async fn base_now(&self, key: &Key) -> Result<Base, BucketError> {
        match self.bucket.head(key).await {
            Ok(info) => Ok(Base::Version(info.etag)),
            Err(BucketError::NotFound) => Ok(Base::Absent),
            Err(error) => Err(error),
        }
    }
}

fn replaces_one_of(intent: &Intent, left: &HashSet<CloseId>) -> bool {
    matches!(intent.before, Before::Closed(earlier) if left.contains(&earlier))
}

fn base_of(intent: &Intent, bases: &HashMap<CloseId, Base>) -> Base {
    match &intent.before {
        Before::Absent => Base::Absent,
        Before::Version(etag) => Base::Version(etag.clone()),
        Before::Closed(id) => bases.get(id).cloned().unwrap_or(Base::Absent),
    }
}
