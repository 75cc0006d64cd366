//! Carries a directory's rename out: sends what `moves` says, and hands the answers back.
//!
//! Owns the requests of one rename. Does not own any decision (`moves`), when somebody helps, nor
//! what programs are shown meanwhile (`fs`). What it does for one object may run beside all the
//! rest of it.
//!
//! Cost: 3 rounds of requests until it is decided: 4 PUTs and a LIST page for each 1000 objects,
//! a LIST for each directory above, and 1 PUT (one more for each [`record::ENTRIES_MAX`] objects
//! past the first). Then 1 HEAD, 1 copy and 1 DELETE for each object, and some ten at the end.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use parking_lot::Mutex;

use super::moves::{Action, Decided, Intent, Phase, Records, Reply, Seen, Stop, next};
use super::record::key::{child_prefix, mark_key};
use super::record::{
    self, Decision, Escaped, KeyKind, Listed, MoveList, Moved, Nonce, Pointer, Record, RecordKey,
    Ruling, Suffix, TxnId, Way, WriterId,
};
use crate::bucket::{Bucket, BucketError, Condition, Metadata};
use crate::clock::Clock;
use crate::types::{ETag, Key, Name};

mod end;
mod survey;

pub use survey::Surveyed;

/// Requests of one rename under way at once.
const PARALLEL_MAX: usize = 16;
/// Actions of one round: it takes eight.
const ACTIONS_MAX: usize = 32;
/// How long after a decision, as its mount saw it, the first source goes: longer than any mount
/// believes a name without asking ([`crate::config::ATTRIBUTE_TTL`]).
pub const GRACE: Duration = Duration::from_millis(1250);

/// The two names of a rename; the directories are keys without a `/` at their end.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Ends {
    pub from_dir: String,
    pub from: Name,
    pub to_dir: String,
    pub to: Name,
}

impl Ends {
    /// What the keys in the old directory open with.
    pub fn source(&self) -> String {
        directory(&self.from_dir, &self.from)
    }

    /// What the keys in the new directory open with.
    pub fn target(&self) -> String {
        directory(&self.to_dir, &self.to)
    }
}

fn directory(dir: &str, child: &Name) -> String {
    let slash = if dir.is_empty() { "" } else { "/" };
    format!("{dir}{slash}{child}/")
}

/// How a round ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// The caller is to survey, and to add what it alone can tell.
    Survey,
    Stop(Stop),
}

/// One rename.
#[derive(Debug)]
pub struct Mover {
    bucket: Arc<Bucket>,
    clock: Arc<dyn Clock>,
    writer: WriterId,
    pub id: TxnId,
    pub ends: Ends,
    /// The caller saw an empty directory at the new name.
    over: bool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    seen: Seen,
    /// When sources may go.
    ripe: Option<Instant>,
    /// The versions that copies of ours made.
    made: BTreeMap<Suffix, ETag>,
    /// When a look for rivals began that ended before the survey, and whether it found one.
    first_look: Option<(Instant, bool)>,
}

impl Mover {
    /// No request.
    pub fn new(
        bucket: Arc<Bucket>,
        clock: Arc<dyn Clock>,
        writer: WriterId,
        id: TxnId,
        ends: Ends,
        over: bool,
    ) -> Self {
        Self { bucket, clock, writer, id, ends, over, state: Mutex::default() }
    }

    /// Whether stores take the keys of all that it would write beside and in both directories. No
    /// request.
    pub fn fits(&self) -> bool {
        let Ends { from_dir, from, to_dir, to } = &self.ends;
        let marks = [self.ends.source(), self.ends.target()].map(|end| mark_key(&end, self.id));
        let last = KeyKind::List(self.id, record::LISTS_MAX as u32);
        let there = [KeyKind::Into(self.id), KeyKind::Moved(self.id), last];
        marks.iter().all(Key::fits)
            && self.key(from_dir, from, KeyKind::From(self.id)).is_ok()
            && there.into_iter().all(|kind| self.key(to_dir, to, kind).is_ok())
    }

    /// What is decided, as far as was seen.
    pub fn decided(&self) -> Option<Arc<Decided>> {
        self.state.lock().seen.records().and_then(|records| records.decided.clone())
    }

    pub fn phase(&self) -> Phase {
        self.state.lock().seen.records().map_or(Phase::Undecided, Records::phase)
    }

    /// The version that a copy of ours made of an object.
    pub fn made(&self, name: &str) -> Option<ETag> {
        self.state.lock().made.get(name).cloned()
    }

    /// Whether an object's source is known to be gone, or to be another by now.
    pub fn is_settled(&self, name: &Suffix) -> bool {
        self.state.lock().seen.spent(name.as_str())
    }

    /// Whether its pointers are still there. 2 LISTs.
    pub async fn is_pointed(&self) -> Result<bool, BucketError> {
        let Ends { from_dir, from, to_dir, to } = &self.ends;
        for (dir, child) in [(from_dir, from), (to_dir, to)] {
            let page = self.list_below(&child_prefix(dir, &Escaped::of(child))).await?;
            let kinds = [KeyKind::From(self.id), KeyKind::Into(self.id)];
            let keys = kinds.map(|kind| self.key(dir, child, kind));
            let is_pointer = |key: &Key| keys.iter().flatten().any(|pointer| pointer == key);
            if page.objects.iter().any(|object| is_pointer(&object.key)) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    pub fn all_made(&self) -> BTreeMap<Suffix, ETag> {
        self.state.lock().made.clone()
    }

    /// Asks `moves` until it stops. An error is the store's: the next round finds out what came of
    /// it.
    pub async fn run(&self, intent: &Intent) -> Result<Ended, BucketError> {
        for _ in 0..ACTIONS_MAX {
            let action = next(intent, &self.state.lock().seen);
            match action {
                Action::Stop(stop) => return Ok(Ended::Stop(stop)),
                Action::Survey => return Ok(Ended::Survey),
                action => self.act(action).await?,
            }
        }
        Err(BucketError::Unavailable("a rename that goes on and on".into()))
    }

    /// Takes the caller's survey.
    pub fn surveyed(&self, survey: super::moves::Survey) {
        self.state.lock().seen.surveyed(survey);
    }

    async fn act(&self, action: Action) -> Result<(), BucketError> {
        match action {
            Action::Look => self.look().await,
            Action::Copy(names) => self.each(names, Self::copy_one).await,
            Action::Delete(names) => {
                self.ripen().await;
                // Where directories are keys of their own, what is in one goes before it.
                let (markers, files): (Vec<_>, Vec<_>) =
                    names.into_iter().partition(Suffix::is_marker);
                self.each(files, Self::delete_one).await?;
                let depth = |name: &Suffix| name.as_str().matches('/').count();
                let deepest = markers.iter().map(depth).max().unwrap_or(0);
                for level in (0..=deepest).rev() {
                    let level = markers.iter().filter(|name| depth(name) == level);
                    self.each(level.cloned().collect(), Self::delete_one).await?;
                }
                Ok(())
            }
            Action::Survey | Action::Stop(_) => Ok(()),
            action => {
                let done = match &action {
                    Action::Point => self.point().await,
                    Action::Decide(ruling, nonce) => self.decide(*ruling, *nonce).await,
                    Action::Sweep => self.sweep().await,
                    Action::Close => self.close().await,
                    _ => self.unpoint().await,
                };
                let reply = match &done {
                    Ok(()) => Reply::Done,
                    Err(BucketError::Precondition | BucketError::NotFound) => Reply::Refused,
                    Err(_) => Reply::Lost,
                };
                let mut state = self.state.lock();
                state.seen.answered(&action, &reply);
                if matches!(action, Action::Decide(..)) {
                    state.ripe = Some(self.clock.now() + GRACE);
                }
                match done {
                    Err(error) if reply == Reply::Lost => Err(error),
                    _ => Ok(()),
                }
            }
        }
    }

    /// LISTs the records at the new name; 1 GET for a decision not known yet, and for each of its
    /// lists.
    pub async fn look(&self) -> Result<(), BucketError> {
        let prefix = child_prefix(&self.ends.to_dir, &Escaped::of(&self.ends.to));
        let began = self.clock.now();
        let page = match self.bucket.list_all(&prefix, false).await {
            Err(BucketError::NotFound) => Default::default(),
            other => other?,
        };
        let has = |kind| {
            let key = self.key(&self.ends.to_dir, &self.ends.to, kind);
            key.is_ok_and(|key| page.objects.iter().any(|object| object.key == key))
        };
        let (to, done) = (has(KeyKind::To(self.id)), has(KeyKind::Moved(self.id)));
        let decided = match self.decided() {
            Some(known) => Some(known),
            None if to && !done => Some(Arc::new(self.fetch().await?)),
            None => None,
        };
        // Collected an hour after it was done.
        let done = done || (decided.is_some() && !to);
        let mut state = self.state.lock();
        state.seen.looked(Records { decided, done });
        state.ripe.get_or_insert(began + GRACE);
        Ok(())
    }

    async fn fetch(&self) -> Result<Decided, BucketError> {
        let Record::To(decision) = self.fetch_one(KeyKind::To(self.id)).await? else {
            return Err(unreadable());
        };
        let mut entries: BTreeMap<Suffix, ETag> = BTreeMap::new();
        let mut add = |listed: Vec<Listed>| {
            entries.extend(listed.into_iter().map(|listed| (listed.name, listed.etag)));
        };
        add(decision.entries);
        if decision.lists.len() > record::LISTS_MAX {
            return Err(unreadable());
        }
        let lists = decision.lists.into_iter().zip(0..);
        let lists = lists.map(|(nonce, number)| async move {
            match self.fetch_one(KeyKind::List(self.id, number)).await? {
                Record::List(list) if list.nonce == nonce => Ok(list.entries),
                _ => Err(unreadable()),
            }
        });
        let mut lists = futures::stream::iter(lists).buffer_unordered(PARALLEL_MAX);
        while let Some(list) = lists.next().await {
            add(list?);
        }
        Ok(Decided { ruling: decision.verdict, nonce: decision.nonce, entries })
    }

    async fn fetch_one(&self, kind: KeyKind) -> Result<Record, BucketError> {
        let key = self.key(&self.ends.to_dir, &self.ends.to, kind)?;
        let whole = 0..record::RECORD_BYTES_MAX as u64 + 1;
        let (_, body) = self.bucket.get_bytes(&key, whole, None).await?;
        let record_key = RecordKey { child: Escaped::of(&self.ends.to), kind };
        match record::parse(&record_key, &body) {
            Ok(record) if *record.child() == self.ends.to => Ok(record),
            Ok(_) => Err(unreadable()),
            Err(error) => {
                tracing::warn!(%key, %error, "a rename that can't be read");
                Err(unreadable())
            }
        }
    }

    async fn point(&self) -> Result<(), BucketError> {
        let Ends { from_dir, from, to_dir, to } = &self.ends;
        let pointer = |child: &Name, here: &str, there: &str, other: &Name, over| {
            let other = Way::new(here, there, other.clone()).map_err(invalid)?;
            let (child, writer, nonce) = (child.clone(), self.writer.clone(), self.nonce());
            let unknown = Default::default();
            Ok::<_, BucketError>(Pointer {
                child,
                writer,
                nonce,
                id: self.id,
                other,
                over,
                unknown,
            })
        };
        let out = Record::From(pointer(from, from_dir, to_dir, to, false)?);
        let into = Record::Into(pointer(to, to_dir, from_dir, from, self.over)?);
        let mark = mark_key(&self.ends.source(), self.id);
        let began = self.clock.now();
        let (out, into, mark, rival) = tokio::join!(
            self.create(&self.ends.from_dir, &out),
            self.create(&self.ends.to_dir, &into),
            self.mark(&mark),
            self.has_rival(),
        );
        self.state.lock().first_look = Some((began, rival?));
        // Refused: a request of ours that had no answer was not lost.
        for created in [out, into] {
            match created {
                Err(BucketError::Precondition) => {}
                other => other?,
            }
        }
        mark
    }

    async fn mark(&self, key: &Key) -> Result<(), BucketError> {
        let body = bytes::Bytes::from_static(b"{}");
        self.bucket.put(key, body, &Condition::Always, &Metadata::new()).await.map(drop)
    }

    async fn decide(&self, ruling: Ruling, nonce: Nonce) -> Result<(), BucketError> {
        let surveyed = {
            let state = self.state.lock();
            state.seen.survey().map(|survey| survey.entries.clone()).unwrap_or_default()
        };
        let listed = surveyed.into_iter().map(|(name, etag)| Listed { name, etag });
        let mut chunks = end::chunks(listed);
        if chunks.len() > record::LISTS_MAX {
            return Err(BucketError::Invalid("a rename of too many objects".into()));
        }
        let Ends { from_dir, from, to_dir, to } = &self.ends;
        let entries = if chunks.len() == 1 { chunks.remove(0) } else { Vec::new() };
        let lists: Vec<MoveList> = chunks
            .into_iter()
            .zip(0..)
            .map(|(entries, number)| MoveList {
                child: to.clone(),
                writer: self.writer.clone(),
                nonce: self.nonce(),
                id: self.id,
                number,
                entries,
                unknown: Default::default(),
            })
            .collect();
        let nonces = lists.iter().map(|list| list.nonce).collect();
        let puts = lists.into_iter().map(|list| self.create_list(list));
        let mut puts = futures::stream::iter(puts).buffer_unordered(PARALLEL_MAX);
        while let Some(put) = puts.next().await {
            put?;
        }
        let decision = Decision {
            child: to.clone(),
            writer: self.writer.clone(),
            nonce,
            id: self.id,
            verdict: ruling,
            other: Way::new(to_dir, from_dir, from.clone()).map_err(invalid)?,
            lists: nonces,
            entries,
            unknown: Default::default(),
        };
        self.create(&self.ends.to_dir, &Record::To(decision)).await
    }

    async fn create_list(&self, list: MoveList) -> Result<(), BucketError> {
        // One of an earlier round that had no answer has another nonce: it is written over, which
        // nobody reads before the decision names it.
        let key =
            self.key(&self.ends.to_dir, &self.ends.to, KeyKind::List(self.id, list.number))?;
        let body = Record::List(list).encode().map_err(invalid)?;
        self.bucket.put(&key, body.into(), &Condition::Always, &Metadata::new()).await.map(drop)
    }

    async fn create(&self, dir: &str, record: &Record) -> Result<(), BucketError> {
        let key = record.key().to_key(dir).map_err(|_| BucketError::KeyTooLong)?;
        let body = record.encode().map_err(invalid)?;
        self.bucket.put(&key, body.into(), &Condition::IfAbsent, &Metadata::new()).await.map(drop)
    }

    async fn close(&self) -> Result<(), BucketError> {
        let child = self.ends.to.clone();
        let (writer, nonce, unknown) = (self.writer.clone(), self.nonce(), Default::default());
        let moved = Moved { child, writer, nonce, id: self.id, unknown };
        self.create(&self.ends.to_dir, &Record::Moved(moved)).await
    }

    fn key(&self, dir: &str, child: &Name, kind: KeyKind) -> Result<Key, BucketError> {
        let key = RecordKey { child: Escaped::of(child), kind };
        key.to_key(dir).map_err(|_| BucketError::KeyTooLong)
    }

    /// A nonce for what is written next.
    pub fn nonce(&self) -> Nonce {
        Nonce(self.clock.random())
    }
}

fn unreadable() -> BucketError {
    BucketError::Invalid("a control record that can't be read".into())
}

fn invalid(error: record::RecordError) -> BucketError {
    BucketError::Invalid(error.to_string())
}
