//! The bucket as one life of one mount reaches it: late, sometimes not, sometimes twice.
//!
//! Owns what happens to requests: latency, 503, timeouts before and after they are applied, late
//! and duplicated ones, and that nothing passes after a crash. Does not own objects
//! (`bucket::memory`).

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::FutureExt;
use parking_lot::Mutex;
use trialfs::bucket::memory::MemoryStore;
use trialfs::bucket::{
    Body, BucketError, Capabilities, Condition, Metadata, ObjectInfo, Page, Store, Written,
};
use trialfs::types::{ETag, Key};

use super::clock::{Dice, drawn};
use super::content;
use super::world::{Counts, UploadOf, World};

/// How late a request may arrive that its sender gave up.
const LATE_MS_MAX: u64 = 20_000;

/// What becomes of one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Served,
    /// 503, not applied.
    Refused,
    /// No answer, not applied.
    Lost,
    /// Applied; the answer is a 500.
    ReplyLost,
    /// Applied; no answer.
    ReplyNever,
    /// No answer; applied long after.
    Late,
    /// Applied, and once more long after.
    Twice,
}

/// Which faults a request may suffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Read,
    /// Applied at once or never: what is late of these is the sender's own risk, on any store.
    Write,
    /// What the protocol promises to bear late and twice.
    Hardened,
}

/// One life's line to the bucket.
pub struct Line {
    world: Arc<World>,
    name: String,
    seed: u64,
    dead: Arc<AtomicBool>,
    /// Of a hundred requests so many fail.
    faults: u64,
    latency_ms: u64,
    sent: Mutex<std::collections::BTreeMap<String, u64>>,
}

impl Line {
    pub fn new(
        world: &Arc<World>,
        name: &str,
        dead: &Arc<AtomicBool>,
        faults: u64,
        latency_ms: u64,
    ) -> Arc<Self> {
        Arc::new(Self {
            world: world.clone(),
            name: name.to_owned(),
            seed: drawn(world.seed, &[name]),
            dead: dead.clone(),
            faults,
            latency_ms,
            sent: Mutex::default(),
        })
    }

    /// What becomes of a request follows from who sends what for the how-manieth time, and not from
    /// what else happens.
    fn dice(&self, request: &str) -> Dice {
        let mut sent = self.sent.lock();
        let count = sent.entry(request.to_owned()).or_default();
        *count += 1;
        Dice::new(drawn(self.seed, &[request, &count.to_string()]), "request")
    }

    fn fate(&self, dice: &Dice, kind: Kind) -> Fate {
        if !self.world.faults.load(Ordering::Relaxed) || !dice.chance(self.faults) {
            return Fate::Served;
        }
        Counts::one(&self.world.counts.faults);
        let fates: &[Fate] = match kind {
            Kind::Read => &[Fate::Refused, Fate::Lost, Fate::ReplyLost],
            Kind::Write => &[Fate::Refused, Fate::Lost, Fate::ReplyLost, Fate::ReplyNever],
            Kind::Hardened => &[
                Fate::Refused,
                Fate::Lost,
                Fate::ReplyLost,
                Fate::ReplyNever,
                Fate::Late,
                Fate::Twice,
            ],
        };
        fates[dice.below(fates.len() as u64) as usize]
    }

    /// Sends one request. It travels by itself: who stops waiting does not stop it, but a crash
    /// stops half of what is on its way.
    async fn send<T: Send + 'static>(
        &self,
        request: String,
        kind: Kind,
        act: impl Fn(&MemoryStore) -> Result<T, BucketError> + Send + Sync + 'static,
    ) -> Result<T, BucketError> {
        if self.dead.load(Ordering::Relaxed) {
            return futures::future::pending().await;
        }
        Counts::one(&self.world.counts.requests);
        let dice = self.dice(&request);
        let fate = self.fate(&dice, kind);
        let (there, back) = (dice.ms(1, self.latency_ms), dice.ms(1, self.latency_ms));
        let survives_crash = dice.chance(50);
        let (world, dead) = (self.world.clone(), self.dead.clone());
        let name = self.name.clone();
        let arrive = move |again: &str| {
            if dead.load(Ordering::Relaxed) && !survives_crash {
                world.tell(format!("{name} {request} lost with its mount"));
                return Err(BucketError::Unavailable("crashed".into()));
            }
            let result = act(&world.memory);
            let word = result.as_ref().map_or_else(ToString::to_string, |_| "ok".to_owned());
            world.tell(format!("{name} {request}{again}: {word} ({fate:?})"));
            if kind != Kind::Read && result.is_ok() {
                world.look_raw(key_of(&request));
            }
            result
        };
        let world = &self.world;
        let late = world.instant(there + dice.ms(1_000, LATE_MS_MAX));
        let now = world.instant(there);
        let gone = || BucketError::Unavailable(format!("{fate:?}"));
        match fate {
            Fate::Refused => {
                tokio::time::sleep_until(now).await;
                return Err(gone());
            }
            Fate::Lost => return futures::future::pending().await,
            Fate::Late => {
                tokio::spawn(async move {
                    tokio::time::sleep_until(late).await;
                    let _ = arrive(" late");
                });
                return futures::future::pending().await;
            }
            _ => {}
        }
        let travels = tokio::spawn(async move {
            tokio::time::sleep_until(now).await;
            let result = arrive("");
            if fate == Fate::Twice {
                tokio::spawn(async move {
                    tokio::time::sleep_until(late).await;
                    let _ = arrive(" again");
                });
            }
            result
        });
        let result = travels.await.unwrap_or_else(|_| Err(gone()));
        tokio::time::sleep_until(world.instant(back)).await;
        if self.dead.load(Ordering::Relaxed) {
            return futures::future::pending().await;
        }
        match fate {
            Fate::ReplyLost => Err(gone()),
            Fate::ReplyNever => futures::future::pending().await,
            _ => result,
        }
    }
}

/// The key in `PUT exp/a`.
fn key_of(request: &str) -> &str {
    request.split(' ').nth(1).unwrap_or("")
}

fn is_record(key: &Key) -> bool {
    key.as_str().contains(".trialfs/txn.")
}

fn kind_of(key: &Key, condition: &Condition) -> Kind {
    match condition {
        Condition::Always => Kind::Write,
        _ if is_record(key) => Kind::Hardened,
        _ => Kind::Write,
    }
}

/// The memory store answers at once.
fn at_once<T>(answer: impl Future<Output = Result<T, BucketError>>) -> Result<T, BucketError> {
    answer.now_or_never().unwrap_or_else(|| Err(BucketError::Invalid("it waits".into())))
}

impl fmt::Debug for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Line").field("name", &self.name).finish_non_exhaustive()
    }
}

#[async_trait]
impl Store for Line {
    async fn head(&self, key: &Key) -> Result<ObjectInfo, BucketError> {
        let (request, key) = (format!("HEAD {key}"), key.clone());
        self.send(request, Kind::Read, move |memory| at_once(memory.head(&key))).await
    }

    async fn get(
        &self,
        key: &Key,
        range: Range<u64>,
        if_match: Option<&ETag>,
    ) -> Result<(ObjectInfo, Body), BucketError> {
        let (request, key) = (format!("GET {key}"), key.clone());
        let etag = if_match.cloned();
        let got = self.send(request, Kind::Read, move |memory| {
            let (info, body) = at_once(memory.get(&key, range.clone(), etag.as_ref()))?;
            Ok((info, Mutex::new(body)))
        });
        got.await.map(|(info, body)| (info, body.into_inner()))
    }

    async fn put(
        &self,
        key: &Key,
        body: Bytes,
        condition: &Condition,
        metadata: &Metadata,
    ) -> Result<Written, BucketError> {
        let state = serde_json::from_slice::<serde_json::Value>(&body).ok();
        let word = |v: &serde_json::Value| Some(format!(" {}", v.get("state")?.as_str()?));
        let state = state.as_ref().and_then(word).unwrap_or_default();
        let request = format!("PUT {key}{state}");
        let kind = kind_of(key, condition);
        let (key, condition, metadata) = (key.clone(), condition.clone(), metadata.clone());
        self.send(request, kind, move |memory| {
            at_once(memory.put(&key, body.clone(), &condition, &metadata))
        })
        .await
    }

    async fn delete(&self, key: &Key, if_match: Option<&ETag>) -> Result<(), BucketError> {
        let kind = if if_match.is_some() { Kind::Hardened } else { Kind::Write };
        let (request, key, etag) = (format!("DELETE {key}"), key.clone(), if_match.cloned());
        self.send(request, kind, move |memory| at_once(memory.delete(&key, etag.as_ref()))).await
    }

    async fn list(
        &self,
        prefix: &str,
        delimiter: bool,
        page: Option<&str>,
        max: u16,
    ) -> Result<Page, BucketError> {
        let (prefix, page) = (prefix.to_owned(), page.map(str::to_owned));
        let request = format!("LIST {prefix}");
        self.send(request, Kind::Read, move |memory| {
            at_once(memory.list(&prefix, delimiter, page.as_deref(), max))
        })
        .await
    }

    async fn copy(
        &self,
        from: &Key,
        from_etag: Option<&ETag>,
        to: &Key,
        condition: &Condition,
        metadata: &Metadata,
    ) -> Result<Written, BucketError> {
        let request = format!("COPY {to}");
        let (from, etag, to) = (from.clone(), from_etag.cloned(), to.clone());
        let (condition, metadata) = (condition.clone(), metadata.clone());
        self.send(request, Kind::Write, move |memory| {
            at_once(memory.copy(&from, etag.as_ref(), &to, &condition, &metadata))
        })
        .await
    }

    async fn rename(&self, _: &Key, _: &Key, _: &Condition) -> Result<(), BucketError> {
        Err(BucketError::Unsupported("rename"))
    }

    async fn create_multipart(
        &self,
        key: &Key,
        metadata: &Metadata,
    ) -> Result<String, BucketError> {
        let (request, key, metadata) = (format!("CREATE {key}"), key.clone(), metadata.clone());
        let (world, life) = (self.world.clone(), self.name.clone());
        self.send(request, Kind::Write, move |memory| {
            let id = at_once(memory.create_multipart(&key, &metadata))?;
            let of = UploadOf { key: key.to_string(), life: life.clone(), told: None };
            world.uploads.lock().insert(id.clone(), of);
            Ok(id)
        })
        .await
    }

    async fn upload_part(
        &self,
        key: &Key,
        upload: &str,
        number: u32,
        body: Bytes,
    ) -> Result<String, BucketError> {
        let (key, upload) = (key.clone(), upload.to_owned());
        let request = format!("PART {key} {upload} {number}");
        let world = self.world.clone();
        self.send(request, Kind::Write, move |memory| {
            if number == 1
                && let Some(of) = world.uploads.lock().get_mut(&upload)
            {
                of.told = content::told_by(&body);
            }
            at_once(memory.upload_part(&key, &upload, number, body.clone()))
        })
        .await
    }

    async fn upload_part_copy(
        &self,
        key: &Key,
        upload: &str,
        number: u32,
        from: &Key,
        from_etag: &ETag,
        range: Range<u64>,
    ) -> Result<String, BucketError> {
        let (key, upload) = (key.clone(), upload.to_owned());
        let (from, etag) = (from.clone(), from_etag.clone());
        let request = format!("PARTCOPY {key} {upload} {number}");
        self.send(request, Kind::Write, move |memory| {
            at_once(memory.upload_part_copy(&key, &upload, number, &from, &etag, range.clone()))
        })
        .await
    }

    async fn complete_multipart(
        &self,
        key: &Key,
        upload: &str,
        parts: &[String],
        condition: &Condition,
    ) -> Result<Written, BucketError> {
        let (key, upload) = (key.clone(), upload.to_owned());
        let (parts, condition) = (parts.to_vec(), condition.clone());
        let request = format!("COMPLETE {key} {upload}");
        let world = self.world.clone();
        self.send(request, Kind::Hardened, move |memory| {
            let made = at_once(memory.complete_multipart(&key, &upload, &parts, &condition))?;
            world.uploads.lock().remove(&upload);
            Ok(made)
        })
        .await
    }

    async fn abort_multipart(&self, key: &Key, upload: &str) -> Result<(), BucketError> {
        let (key, upload) = (key.clone(), upload.to_owned());
        let request = format!("ABORT {key} {upload}");
        let world = self.world.clone();
        self.send(request, Kind::Write, move |memory| {
            at_once(memory.abort_multipart(&key, &upload))?;
            world.uploads.lock().remove(&upload);
            Ok(())
        })
        .await
    }

    fn capabilities(&self) -> Capabilities {
        self.world.memory.capabilities()
    }
}

/// How slow and how broken a seed's network is.
pub fn weather(dice: &Dice) -> (u64, Duration) {
    let faults = [0, 2, 5, 10][dice.below(4) as usize];
    let latency = [10, 60, 300][dice.below(3) as usize];
    (faults, Duration::from_millis(latency))
}
