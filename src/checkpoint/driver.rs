//! Carries the protocol out: sends what [`next`] says for one checkpoint directory, and hands the
//! answers back.
//!
//! Owns the requests of a directory's records and of its publishing, and when a lost answer is one.
//! Does not own any decision (`protocol`), when something is due (`rules`), nor what becomes of
//! staged files (`fs`).
//!
//! Cost: a look is 1 LIST and a GET for each record that is new; everything else as [`Action`]
//! says.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures::StreamExt;

use super::protocol::{
    Action, Intent, Me, Publish, Records, Removal, Reply, Seen, Stop, Unclear, Wait, Watch, Work,
    next, view,
};
use super::record::key::{child_prefix, control_prefix};
use super::record::{
    self, Escaped, Generation, KeyKind, Nonce, Record, RecordError, RecordKey, RelPath, State,
    TxnId, WriterId,
};
use crate::bucket::{Bucket, BucketError, Condition, ListedObject, Metadata, Page};
use crate::clock::Clock;
use crate::types::{ETag, Key, Name};

/// Requests of one directory under way at once.
const PARALLEL_MAX: usize = 16;
/// Actions of one round. A commit of three generations takes some twenty; a round that needs more
/// fights with somebody, and the caller comes again.
const ACTIONS_MAX: usize = 128;
/// How often a look begins again because records changed between its LIST and its GETs.
const LOOKS_MAX: usize = 8;

/// How a round ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    Stop(Stop),
    Wait(Wait),
}

/// One checkpoint directory, as this mount sees it.
#[derive(Debug)]
pub struct Driver {
    bucket: Arc<Bucket>,
    clock: Arc<dyn Clock>,
    start: Instant,
    me: Me,
    /// The directory's parent, without a `/` at its end.
    dir: String,
    seen: Seen,
    watch: Watch,
    looked: Option<Instant>,
    /// Whether the last look found a rename of the directory under way.
    moving: AtomicBool,
    /// What completions made since the caller last took it.
    made: HashMap<RelPath, (String, ETag)>,
}

impl Driver {
    /// No request. `dir` is the key of the directory's parent, without a `/` at its end.
    pub fn new(
        bucket: Arc<Bucket>,
        clock: Arc<dyn Clock>,
        dir: String,
        child: Name,
        writer: WriterId,
    ) -> Self {
        Self {
            bucket,
            start: clock.now(),
            clock,
            me: Me { child, writer },
            dir,
            seen: Seen::default(),
            watch: Watch::default(),
            looked: None,
            moving: AtomicBool::new(false),
            made: HashMap::new(),
        }
    }

    pub fn seen(&self) -> &Seen {
        &self.seen
    }

    /// When the last look at the records began.
    pub fn looked(&self) -> Option<Instant> {
        self.looked
    }

    /// The objects that completions made since the last call, and of which upload.
    pub fn take_made(&mut self) -> HashMap<RelPath, (String, ETag)> {
        std::mem::take(&mut self.made)
    }

    /// Asks the protocol until it waits or stops, on a look that begins now: what was seen before
    /// may be minutes old, and who decides by it misses ranks and losses. A transaction of ours
    /// that is open as far as we know needs none, since whatever it does is a swap from the version
    /// seen. An error is the store's: what was asked may or may not have happened, and the next
    /// round finds out.
    pub async fn run(&mut self, intent: &Intent<'_>) -> Result<Ended, BucketError> {
        if !self.is_guarded(intent) {
            self.seen.forget();
        }
        self.go_on(intent).await
    }

    fn is_guarded(&self, intent: &Intent<'_>) -> bool {
        let Intent::Write(work) = intent else { return false };
        let own = self.seen.records().heads.get(&work.txn);
        own.is_some_and(|head| head.record.state == State::Open)
    }

    /// The same on the look that the caller has just made under the same lock.
    pub async fn go_on(&mut self, intent: &Intent<'_>) -> Result<Ended, BucketError> {
        for _ in 0..ACTIONS_MAX {
            let nonce = Nonce(self.clock.random());
            match next(&self.me, intent, &self.seen, nonce) {
                Action::Stop(stop) => return Ok(Ended::Stop(stop)),
                Action::Wait(wait) => return Ok(Ended::Wait(wait)),
                action => self.act(action).await?,
            }
        }
        Err(BucketError::Unavailable("a checkpoint directory that others change as fast".into()))
    }

    /// Renews a lease: 1 swap. Something else if the transaction is not open any more.
    pub async fn renew(&mut self, work: &Work) -> Result<Option<Ended>, BucketError> {
        for _ in 0..LOOKS_MAX {
            let nonce = Nonce(self.clock.random());
            match next(&self.me, &Intent::Write(work), &self.seen, nonce) {
                Action::Stop(stop) => return Ok(Some(Ended::Stop(stop))),
                Action::Wait(wait) => return Ok(Some(Ended::Wait(wait))),
                swap @ Action::SwapHead { .. } => {
                    self.act(swap).await?;
                    if self.seen.is_current() {
                        return Ok(None);
                    }
                }
                action => self.act(action).await?,
            }
        }
        Ok(None)
    }

    /// One LIST with delimiter of `prefix`, a key at or below the directory, as an observer may
    /// show it: records, data, records, so that it is of one commit. 2 requests where the records
    /// are known, else 3; publishes first what is sealed.
    pub async fn observe(
        &mut self,
        publishing: Publishing,
        prefix: &str,
    ) -> Result<Page, BucketError> {
        let mut listed = None;
        for _ in 0..ACTIONS_MAX {
            let published = self.seen.unpublished().is_none();
            match (view(&self.seen).err(), listed.take()) {
                (None, Some(page)) if published => return Ok(page),
                (None, _) if published => self.seen.forget_data(),
                (None, _) => self.publish(publishing).await?,
                (Some(Unclear::LookData), _) => {
                    let under = self.seen.commits();
                    let page = match self.bucket.list_all(prefix, true).await {
                        Err(BucketError::NotFound) => Page::default(),
                        other => other?,
                    };
                    listed = Some(page);
                    self.seen.listed(under, BTreeMap::new());
                }
                (Some(Unclear::Unreadable), _) => return Err(unreadable()),
                (Some(unclear), page) => {
                    self.act(unclear.action()).await?;
                    listed = page.filter(|_| self.seen.has_data());
                }
            }
        }
        Err(BucketError::Unavailable("a checkpoint directory that others change as fast".into()))
    }

    /// Finishes what is sealed; on a mount that may not write: [`BucketError::TimedOut`].
    pub async fn publish(&mut self, publishing: Publishing) -> Result<(), BucketError> {
        if publishing == Publishing::Refused && self.seen.unpublished().is_some() {
            self.seen.forget();
            return Err(BucketError::TimedOut("a commit waits for a mount that may write".into()));
        }
        match self.go_on(&Intent::Publish).await? {
            Ended::Stop(Stop::Unreadable) => Err(unreadable()),
            _ => Ok(()),
        }
    }

    /// Gives the open generation up. `dead`: open transactions whose owners are known to be gone
    /// otherwise than by watching their leases.
    pub async fn abandon(&mut self, dead: &BTreeSet<TxnId>) -> Result<Ended, BucketError> {
        for _ in 0..LOOKS_MAX {
            self.look().await?;
            dead.iter().for_each(|txn| self.seen.expire(*txn));
            match self.go_on(&Intent::Abandon).await? {
                Ended::Wait(Wait::Open(open)) if open.iter().all(|txn| dead.contains(txn)) => {}
                ended => return Ok(ended),
            }
        }
        Err(BucketError::Unavailable("a checkpoint directory that others change as fast".into()))
    }

    /// Looks at the records, whatever is known of them.
    pub async fn look(&mut self) -> Result<(), BucketError> {
        for _ in 0..LOOKS_MAX {
            let (began, known) = (self.clock.now(), self.seen.known());
            let Some(records) = self.read_records().await? else { continue };
            self.seen.looked(known, records);
            self.looked = Some(began);
            let ended = self.clock.now();
            let since = |at: Instant| at.saturating_duration_since(self.start);
            self.watch.observe(since(began), since(ended), &mut self.seen);
            return Ok(());
        }
        Err(BucketError::Unavailable("control records that change as fast as they are read".into()))
    }

    async fn act(&mut self, action: Action) -> Result<(), BucketError> {
        match action {
            Action::Look => self.look().await,
            Action::LookData => self.look_at_data().await,
            Action::Fetch(ids) => self.fetch(ids).await,
            // What was begun before the rename looked for it, or after: it comes when that is done.
            Action::CreateSeal(_) | Action::Publish { .. }
                if self.moving.load(Ordering::Relaxed) =>
            {
                self.seen.forget();
                Err(BucketError::Unavailable("a rename of the directory is under way".into()))
            }
            Action::Publish { generation, steps } => self.take_steps(generation, steps).await,
            Action::Collect(removals) => self.remove(removals).await,
            Action::DeleteFile { ref name, ref version } => {
                let reply = reply(self.delete(&self.key_of(name), version).await.map(|()| None))?;
                let reply = if let Reply::Stored(_) = reply { Reply::Absent } else { reply };
                self.seen.answered(&action, reply);
                Ok(())
            }
            Action::Wait(_) | Action::Stop(_) => Ok(()),
            action => self.write(action).await,
        }
    }

    /// `None`: a record changed after the LIST.
    async fn read_records(&self) -> Result<Option<Records>, BucketError> {
        let child = Escaped::of(&self.me.child);
        let prefix = child_prefix(&self.dir, &child);
        let page = match self.bucket.list_all(&prefix, false).await {
            Err(BucketError::NotFound) => Default::default(),
            other => other?,
        };
        let (mut records, mut wanted) = (Records::default(), Vec::new());
        self.moving.store(false, Ordering::Relaxed);
        for object in page.objects {
            let text = object.key.as_str().strip_prefix(&control_prefix(&self.dir)).unwrap_or("");
            let Some(key) = RecordKey::parse(text).filter(|key| key.child == child) else {
                continue;
            };
            self.sort(key, object, &mut records, &mut wanted);
        }
        let fetches = wanted.into_iter().map(|(key, object)| async move {
            let body = self.bucket.get_bytes(&object.key, 0..object.size, Some(&object.etag)).await;
            (key, object.etag, body)
        });
        let mut fetches = futures::stream::iter(fetches).buffer_unordered(PARALLEL_MAX);
        while let Some((key, etag, body)) = fetches.next().await {
            let body = match body {
                Ok((_, body)) => body,
                Err(BucketError::Precondition | BucketError::NotFound) => return Ok(None),
                Err(error) => return Err(error),
            };
            match record::parse(&key, &body) {
                Ok(record) if *record.child() == self.me.child => records.add(etag, record),
                Ok(_) => {} // of another directory, whose shortened name is the same
                Err(error) => {
                    tracing::warn!(%key, %error, "a control record that can't be used");
                    records.unreadable.insert(key, error);
                }
            }
        }
        Ok(Some(records))
    }

    /// What a LIST alone tells, and what is known already, goes to `records`; the rest is wanted.
    fn sort(
        &self,
        key: RecordKey,
        object: ListedObject,
        records: &mut Records,
        wanted: &mut Vec<(RecordKey, ListedObject)>,
    ) {
        let known = self.seen.records();
        let size = match object.size {
            0 => Err(RecordError::Invalid("an empty record".into())),
            size => record::check_size(size),
        };
        if let Err(error) = size {
            records.unreadable.insert(key, error);
            return;
        }
        match key.kind {
            KeyKind::Seq(txn, seq) => {
                records.seqs.insert((txn, seq));
            }
            KeyKind::Done(generation) => {
                records.dones.insert(generation, object.etag);
            }
            KeyKind::Head(txn) => match known.heads.get(&txn) {
                Some(head) if head.etag == object.etag => {
                    records.heads.insert(txn, head.clone());
                }
                _ => wanted.push((key, object)),
            },
            KeyKind::Seal(generation) => match known.seals.get(&generation) {
                Some(seal) if seal.etag == object.etag => {
                    records.seals.insert(generation, seal.clone());
                }
                _ => wanted.push((key, object)),
            },
            KeyKind::From(_) | KeyKind::Into(_) => self.moving.store(true, Ordering::Relaxed),
            // Renames have their own look.
            KeyKind::List(..) | KeyKind::To(_) | KeyKind::Moved(_) => {}
        }
    }

    async fn look_at_data(&mut self) -> Result<(), BucketError> {
        let under = self.seen.commits();
        let prefix = self.prefix();
        let page = match self.bucket.list_all(&prefix, false).await {
            Err(BucketError::NotFound) => Default::default(),
            other => other?,
        };
        let name = |object: &ListedObject| {
            let rest = object.key.as_str().strip_prefix(&prefix)?;
            RelPath::new(rest.strip_suffix('/').unwrap_or(rest)).ok()
        };
        let listing = page.objects.into_iter().filter_map(|o| Some((name(&o)?, o.etag)));
        self.seen.listed(under, listing.collect());
        Ok(())
    }

    async fn fetch(&mut self, ids: Vec<(TxnId, u32)>) -> Result<(), BucketError> {
        let child = Escaped::of(&self.me.child);
        let this = &*self;
        let fetches = ids.into_iter().map(|id| {
            let key = RecordKey { child: child.clone(), kind: KeyKind::Seq(id.0, id.1) };
            async move { (id, this.fetch_one(&key).await) }
        });
        let fetches = futures::stream::iter(fetches).buffer_unordered(PARALLEL_MAX);
        let fetched: Vec<_> = fetches.collect().await;
        for (id, result) in fetched {
            let seq = result?.map(|record| match record {
                Some(Record::Seq(seq)) => Some(seq),
                _ => None,
            });
            self.seen.fetched(id, seq);
        }
        Ok(())
    }

    async fn fetch_one(
        &self,
        key: &RecordKey,
    ) -> Result<Result<Option<Record>, RecordError>, BucketError> {
        let at = key.to_key(&self.dir).map_err(|_| BucketError::KeyTooLong)?;
        let whole = 0..record::RECORD_BYTES_MAX as u64 + 1;
        match self.bucket.get_bytes(&at, whole, None).await {
            Ok((_, body)) => Ok(record::parse(key, &body).map(Some)),
            Err(BucketError::NotFound) => Ok(Ok(None)),
            Err(error) => Err(error),
        }
    }

    /// One of the conditional writes.
    async fn write(&mut self, action: Action) -> Result<(), BucketError> {
        let (record, condition) = match &action {
            Action::CreateHead(head) => (Record::Head(head.clone()), Condition::IfAbsent),
            Action::CreateSeq(seq) => (Record::Seq(seq.clone()), Condition::IfAbsent),
            Action::CreateSeal(seal) => (Record::Seal(seal.clone()), Condition::IfAbsent),
            Action::CreateDone(done) => (Record::Done(done.clone()), Condition::IfAbsent),
            Action::SwapHead { over, head } => {
                (Record::Head(head.clone()), Condition::IfMatch(over.clone()))
            }
            _ => return Ok(()),
        };
        let key = record.key().to_key(&self.dir).map_err(|_| BucketError::KeyTooLong)?;
        let body = record.encode().map_err(|error| BucketError::Invalid(error.to_string()))?;
        let written = self.bucket.put(&key, body.into(), &condition, &Metadata::new()).await;
        let lost = matches!(&written, Err(error) if error.is_transient());
        let reply = reply(written.map(|written| Some(written.etag)))?;
        self.seen.answered(&action, reply);
        if matches!(&action, Action::SwapHead { head, .. } if head.state != State::Open) {
            self.seen.forget(); // what follows of it is decided by what others did meanwhile
        }
        // What became of it a look will tell; one that fails too ends the round.
        if lost { self.look().await } else { Ok(()) }
    }

    async fn take_steps(
        &mut self,
        generation: Generation,
        steps: Vec<Publish>,
    ) -> Result<(), BucketError> {
        let taken = steps.into_iter().map(|step| async {
            let result = self.take_step(&step).await;
            (step, result)
        });
        let taken = futures::stream::iter(taken).buffer_unordered(PARALLEL_MAX);
        let taken: Vec<_> = taken.collect().await;
        let mut failed = None;
        for (step, result) in taken {
            if let (Ok(Some(etag)), Publish::Complete { name, upload }) = (&result, &step) {
                self.made.insert(name.clone(), (upload.id.clone(), etag.clone()));
            }
            let etag = result.map(|etag| Some(etag.unwrap_or(ETag(String::new()))));
            match &etag {
                Err(error) if error.is_transient() => failed = Some(error.clone()),
                _ => {}
            }
            self.seen.published(generation, &step, &reply(etag)?);
        }
        failed.map_or(Ok(()), Err)
    }

    async fn take_step(&self, step: &Publish) -> Result<Option<ETag>, BucketError> {
        match step {
            Publish::Complete { name, upload } => {
                let key = self.key_of(name);
                let (id, parts) = (&upload.id, &upload.parts);
                let done = self.bucket.complete_multipart(&key, id, parts, &Condition::Always);
                Ok(Some(done.await?.etag))
            }
            Publish::Mark { name } => {
                let (key, nothing) = (marker(self.key_of(name)), bytes::Bytes::new());
                self.bucket.put(&key, nothing, &Condition::IfAbsent, &Metadata::new()).await?;
                Ok(None)
            }
            Publish::Delete { name, version } => {
                self.delete(&self.key_of(name), version).await.map(|()| None)
            }
        }
    }

    /// Deletes an object if it still is this version.
    async fn delete(&self, key: &Key, version: &ETag) -> Result<(), BucketError> {
        if self.bucket.capabilities().delete_if_match {
            return self.bucket.delete(key, Some(version)).await;
        }
        if self.bucket.head(key).await?.etag != *version {
            return Err(BucketError::Precondition);
        }
        self.bucket.delete(key, None).await
    }

    async fn remove(&mut self, removals: Vec<Removal>) -> Result<(), BucketError> {
        let removed = removals.into_iter().map(|removal| async {
            let result = self.remove_one(&removal).await;
            (removal, result)
        });
        let removed = futures::stream::iter(removed).buffer_unordered(PARALLEL_MAX);
        let removed: Vec<_> = removed.collect().await;
        for (removal, result) in removed {
            match result {
                Ok(()) | Err(BucketError::NotFound) => self.seen.removed(&removal),
                Err(BucketError::Precondition) => self.seen.forget(),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    async fn remove_one(&self, removal: &Removal) -> Result<(), BucketError> {
        let (kind, abort, version) = match removal {
            Removal::Seq { txn, seq, abort } => (KeyKind::Seq(*txn, *seq), &abort[..], None),
            Removal::Head { txn, abort } => (KeyKind::Head(*txn), &abort[..], None),
            Removal::Seal { generation, version } => {
                (KeyKind::Seal(*generation), &[][..], Some(version))
            }
            Removal::Done { generation } => (KeyKind::Done(*generation), &[][..], None),
        };
        for (name, upload) in abort {
            self.bucket.abort_multipart(&self.key_of(name), &upload.id).await?;
        }
        let key = RecordKey { child: Escaped::of(&self.me.child), kind };
        let key = key.to_key(&self.dir).map_err(|_| BucketError::KeyTooLong)?;
        match version {
            Some(version) => self.delete(&key, version).await,
            None => self.bucket.delete(&key, None).await,
        }
    }

    /// What the keys of everything in the directory open with.
    fn prefix(&self) -> String {
        let slash = if self.dir.is_empty() { "" } else { "/" };
        format!("{}{slash}{}/", self.dir, self.me.child)
    }

    fn key_of(&self, name: &RelPath) -> Key {
        Key::new(format!("{}{}", self.prefix(), name.as_str()))
    }
}

/// Whether this mount may finish what others sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Publishing {
    Allowed,
    /// Mounted read-only.
    Refused,
}

/// How long until the next look is due where somebody else's transaction is waited for.
pub fn patience(lease: Duration) -> Duration {
    lease / 3
}

/// The key of a directory's marker.
fn marker(key: Key) -> Key {
    if key.is_marker() { key } else { Key::new(format!("{key}/")) }
}

fn unreadable() -> BucketError {
    BucketError::Invalid("a control record that can't be read".into())
}

/// What an answer means to the protocol; an error that is no answer about the object is passed on.
fn reply(result: Result<Option<ETag>, BucketError>) -> Result<Reply, BucketError> {
    match result {
        Ok(Some(etag)) => Ok(Reply::Stored(etag)),
        Ok(None) | Err(BucketError::NotFound) => Ok(Reply::Absent),
        Err(BucketError::Precondition) => Ok(Reply::Conflict),
        Err(error) if error.is_transient() => Ok(Reply::Lost),
        Err(error) => Err(error),
    }
}
