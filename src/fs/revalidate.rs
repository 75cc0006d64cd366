//! An open of a file that others may have replaced since: the bucket says what it is now.
//!
//! Owns the questions of an open, and the answers that its lookup had already. Does not own what is
//! learnt of a name (`lookup`), nor the bytes (`read`).
//!
//! Cost: 1 HEAD, or in its place 1 GET that brings the content or begins to; nothing where the
//! lookup of the same open(2) asked.

use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;

use super::checkpoints::Settled;
use super::error::Errno;
use super::learning::{Content, Found, learn_file, remote};
use super::{Fs, Stat};
use crate::bucket::BucketError;
use crate::namespace::{Learnt, Remote};
use crate::read::Version;
use crate::types::{Ino, Key};

/// A file up to this size comes whole with the answer at its open, in bytes: as much as a round
/// trip takes to transfer.
pub(super) const SMALL_BYTES_MAX: u64 = 128 << 10;
/// An open follows its lookup within microseconds. What comes later may be another open, after a
/// lookup whose own open the kernel refused.
const ARRIVAL_MAX: Duration = Duration::from_millis(20);
/// Lookups that wait for their opens: no more than threads that open at a time, else the open asks.
const ARRIVALS_MAX: usize = 64;

/// What lookups were told of files that are about to be opened.
#[derive(Debug, Default)]
pub(super) struct Arrivals(Mutex<Vec<Arrival>>);

#[derive(Debug)]
struct Arrival {
    thread: u32,
    ino: Ino,
    at: Instant,
    content: Option<(Version, Bytes)>,
}

impl Arrivals {
    /// The bucket was asked for a file since a thread began to open it.
    pub fn put(&self, thread: u32, ino: Ino, at: Instant, content: Option<(Version, Bytes)>) {
        let mut all = self.0.lock();
        all.retain(|other| other.thread != thread && at.duration_since(other.at) <= ARRIVAL_MAX);
        if all.len() < ARRIVALS_MAX {
            all.push(Arrival { thread, ino, at, content });
        }
    }

    /// Whether it was, and what came with the answer.
    fn take(&self, thread: u32, ino: Ino, now: Instant) -> Option<Option<(Version, Bytes)>> {
        let mut all = self.0.lock();
        let index = all.iter().position(|one| one.thread == thread && one.ino == ino)?;
        let arrival = all.swap_remove(index);
        (now.duration_since(arrival.at) <= ARRIVAL_MAX).then_some(arrival.content)
    }
}

impl Fs {
    /// What the lookup of this very open was told of the file: whether that holds for the open.
    pub(super) fn was_asked_by_lookup(
        &self,
        ino: Ino,
        thread: u32,
    ) -> Result<Option<Option<(Version, Bytes)>>, Errno> {
        let Some(content) = self.arrivals.take(thread, ino, self.clock.now()) else {
            return Ok(None);
        };
        let known = self.version(ino)?;
        let still = content.as_ref().is_none_or(|(version, _)| known.as_ref() == Some(version));
        Ok(still.then_some(content))
    }

    /// What the bucket has of a file at this moment: 1 HEAD. Learns it, and makes the kernel drop
    /// what changed. ESTALE if the name means something else now: the kernel looks it up again.
    pub(super) async fn revalidate(&self, ino: Ino) -> Result<Stat, Errno> {
        let ask = |key: Key| async move { self.find_file(&key).await };
        self.revalidate_by(ino, ask).await
    }

    /// The same by a GET of a file that is known to be small: 1 request for the answer and, if it
    /// still is small, the content.
    pub(super) async fn revalidate_small(
        &self,
        ino: Ino,
    ) -> Result<Option<(Version, Bytes)>, Errno> {
        let content = Content::default();
        let slot = &content;
        let ask = |key: Key| async move { self.find_small(&key, slot).await };
        self.revalidate_by(ino, ask).await?;
        Ok(content.into_inner())
    }

    /// The same of a file that is not cached at all, by the GET that its first reads want: they
    /// find their bytes on the way. False: not so; ask for it. Whatever is so large is a file.
    pub(super) async fn revalidate_by_reading(
        &self,
        ino: Ino,
        version: &Version,
    ) -> Result<bool, Errno> {
        let asked = self.namespace.lock().asked(self.clock.now());
        let place = self.place(ino);
        let _waiting = place.as_ref().map(|place| self.wait_in(&place.checkpoint));
        let (settled, begun) =
            tokio::join!(self.settle_if_any(place.as_ref()), self.reader.begin(version));
        if settled? == Settled::Now || !begun {
            return Ok(false);
        }
        Ok(self.namespace.lock().confirm(ino, &version.etag, asked))
    }

    /// What is at a key, and if that is a small file its content.
    pub(super) async fn find_small(
        &self,
        key: &Key,
        content: &Content,
    ) -> Result<Found, BucketError> {
        let (info, body) = match self.bucket.get_bytes(key, 0..SMALL_BYTES_MAX, None).await {
            Err(BucketError::WrongKind) => return Ok(Found::Nothing),
            Err(BucketError::NotFound) => return self.find_missing(key).await,
            // Empty, or changed in mid-answer: ask in the other way.
            Err(BucketError::Invalid(_) | BucketError::Precondition) => {
                return self.find_file(key).await;
            }
            other => other?,
        };
        if self.moves.is_gone(key.as_str()) {
            return Ok(Found::Nothing);
        }
        let copy_of = self.copy_of(key, &info.etag);
        if body.len() as u64 == info.size {
            let version = Version { key: key.clone(), etag: info.etag.clone(), size: info.size };
            *content.lock() = Some((version, body));
        }
        Ok(Found::File(Remote { copy_of, ..remote(&info) }))
    }

    /// A file that has no object at its own key: it may be on its way there.
    async fn find_missing(&self, key: &Key) -> Result<Found, BucketError> {
        match self.moves.is_idle() {
            true => Ok(Found::Nothing),
            false => self.find_file(key).await,
        }
    }

    async fn revalidate_by<F>(&self, ino: Ino, ask: impl Fn(Key) -> F) -> Result<Stat, Errno>
    where
        F: Future<Output = Result<Found, BucketError>>,
    {
        let _waiting = self.wait_at(ino);
        let mut renames = self.moves.epoch();
        let (parent, name, asked, found) = loop {
            let (parent, name, key, asked) = {
                let namespace = self.namespace.lock();
                let inode = namespace.get(ino).filter(|inode| inode.linked).ok_or(Errno::ESTALE)?;
                let name = inode.name.clone().ok_or(Errno::ESTALE)?;
                let key = namespace.key(ino).ok_or(Errno::ESTALE)?;
                (inode.parent, name, key, namespace.asked(self.clock.now()))
            };
            let place = self.place(ino);
            let (mut found, settled) =
                tokio::join!(ask(key.clone()), self.settle_if_any(place.as_ref()));
            if settled? == Settled::Now {
                found = ask(key).await;
            }
            // An answer about a name that a rename changed meanwhile is none.
            let before = std::mem::replace(&mut renames, self.moves.epoch());
            if before == renames {
                break (parent, name, asked, found);
            }
        };
        let learnt = match found? {
            Found::File(remote) => {
                let mut namespace = self.namespace.lock();
                learn_file(&mut namespace, parent, &name, &remote, asked)
            }
            _ => {
                self.namespace.lock().learn_absent(parent, &name, asked);
                None
            }
        };
        match learnt {
            Some(Learnt { ino: now, changed }) if now == ino => {
                if changed && let Some(kernel) = self.kernel.get() {
                    kernel.invalidate_attributes(ino).await;
                }
                self.stat(ino)
            }
            _ => Err(Errno::ESTALE),
        }
    }
}
