//! Renames of directories that are under way, this mount's and others': what their names show
//! meanwhile.
//!
//! Owns which are known here, and what a question about a key comes to under them: nothing is at
//! the old name; at the new one is what is there, and else what moves there and still lies at its
//! old key. Does not own what a rename does next (`checkpoint::moves`).
//!
//! | file | what |
//! | --- | --- |
//! | `meet` | records of renames, met where a directory's records are read |
//! | `finish` | the work that a decision leaves, done in the background or waited for |
//!
//! Cost: nothing while no rename is known to be under way. Else 1 LIST or HEAD more for a question
//! about the new directory.

mod finish;
mod meet;

use std::collections::HashMap;
use std::future::Future;
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;

use super::Fs;
use crate::bucket::{BucketError, ObjectInfo, Page};
use crate::checkpoint::mover::Mover;
use crate::checkpoint::moves::Phase;
use crate::checkpoint::record::{Suffix, TxnId};
use crate::namespace::listing::Listing;
use crate::namespace::seen::SeenEntry;
use crate::types::{ETag, Key};

/// Renames that are over are remembered, so that their records are read once: so many.
const REMEMBERED_MAX: usize = 4096;

/// A rename that this mount knows of.
#[derive(Debug)]
pub(super) struct Rename {
    pub mover: Mover,
    /// Held by whoever does what is left to do.
    pub work: tokio::sync::Mutex<()>,
    /// The new name shows nothing but the rename's mark before it is decided.
    hides: AtomicBool,
}

impl Rename {
    pub fn new(mover: Mover, hides: bool) -> Self {
        Self { mover, work: Default::default(), hides: AtomicBool::new(hides) }
    }

    fn hides(&self) -> bool {
        self.hides.load(Ordering::Relaxed)
    }

    fn hide(&self) {
        self.hides.store(true, Ordering::Relaxed);
    }
}

#[derive(Debug, Clone)]
enum Known {
    UnderWay(Arc<Rename>),
    /// It is done, or nothing came of it: the keys speak for themselves.
    Over,
}

/// Every rename that this mount has met.
#[derive(Debug, Default)]
pub(super) struct Moves {
    known: Mutex<HashMap<TxnId, Known>>,
    under_way: AtomicUsize,
    epoch: AtomicU64,
}

/// What a key is under the renames that are under way.
enum Under {
    /// It is in an old directory.
    Gone,
    /// It is in a new one.
    Coming(Arc<Rename>),
}

impl Moves {
    /// Changes whenever a name may show something else than before: an answer that was asked for
    /// under another one is void.
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    pub fn is_idle(&self) -> bool {
        self.under_way.load(Ordering::Acquire) == 0
    }

    fn knows(&self, id: TxnId) -> Option<Known> {
        self.known.lock().get(&id).cloned()
    }

    fn all(&self) -> Vec<Arc<Rename>> {
        if self.is_idle() {
            return Vec::new();
        }
        let known = self.known.lock();
        let under_way = known.values().filter_map(|known| match known {
            Known::UnderWay(rename) => Some(rename.clone()),
            Known::Over => None,
        });
        under_way.collect()
    }

    fn decided(&self) -> impl Iterator<Item = Arc<Rename>> {
        self.all().into_iter().filter(|rename| rename.mover.phase() == Phase::Decided)
    }

    /// What is known from now on.
    pub(super) fn add(&self, rename: Arc<Rename>) {
        let old = self.known.lock().insert(rename.mover.id, Known::UnderWay(rename));
        if !matches!(old, Some(Known::UnderWay(_))) {
            self.under_way.fetch_add(1, Ordering::AcqRel);
        }
        self.changed();
    }

    fn changed(&self) {
        self.epoch.fetch_add(1, Ordering::AcqRel);
    }

    /// Nothing is to be thought of it any more.
    pub(super) fn end(&self, id: TxnId) {
        let mut known = self.known.lock();
        let old = known.insert(id, Known::Over);
        match old {
            Some(Known::UnderWay(_)) => drop(self.under_way.fetch_sub(1, Ordering::AcqRel)),
            Some(Known::Over) => return,
            None => {}
        }
        if known.len() > REMEMBERED_MAX {
            known.retain(|_, known| matches!(known, Known::UnderWay(_)));
        }
        drop(known);
        self.changed();
    }

    fn under(&self, key: &str) -> Option<Under> {
        let covers =
            |directory: String| format!("{key}/") == directory || key.starts_with(&directory);
        self.decided().find_map(|rename| match &rename.mover.ends {
            ends if covers(ends.source()) => Some(Under::Gone),
            ends if covers(ends.target()) => Some(Under::Coming(rename)),
            _ => None,
        })
    }

    /// Whether a key is in a directory that has another name by now.
    pub fn is_gone(&self, key: &str) -> bool {
        matches!(self.under(key), Some(Under::Gone))
    }

    /// Whether a key is in a directory that moves here.
    pub fn is_coming(&self, key: &str) -> bool {
        matches!(self.under(key), Some(Under::Coming(_)))
    }

    /// The rename that brings a key here, and how the key goes on behind the new name.
    fn bringing(&self, key: &str) -> Option<(Arc<Rename>, Suffix)> {
        let Some(Under::Coming(rename)) = self.under(key) else { return None };
        let suffix = Suffix::new(key.strip_prefix(&rename.mover.ends.target())?).ok()?;
        Some((rename, suffix))
    }

    /// Those that touch a directory, whose key ends in `/`: above it, below it, or itself.
    fn touching(&self, directory: &str) -> Vec<Arc<Rename>> {
        let mut all = self.all();
        all.retain(|rename| {
            let ends = [rename.mover.ends.source(), rename.mover.ends.target()];
            ends.iter().any(|end| end.starts_with(directory) || directory.starts_with(end.as_str()))
        });
        all
    }
}

impl Fs {
    /// HEAD of a key as it is shown, and where it lies if not there.
    pub(super) async fn head_shown(
        &self,
        key: &Key,
    ) -> Result<(ObjectInfo, Option<Key>), BucketError> {
        if self.moves.is_gone(key.as_str()) {
            return Err(BucketError::NotFound);
        }
        let missing = match self.bucket.head(key).await {
            Ok(info) => return Ok((info, None)),
            Err(error) => error,
        };
        let bringing =
            self.moves.bringing(key.as_str()).filter(|_| missing == BucketError::NotFound);
        let Some((rename, suffix)) = bringing else { return Err(missing) };
        let at = Key::new(format!("{}{}", rename.mover.ends.source(), suffix.as_str()));
        let decided = rename.mover.decided();
        let moves =
            |etag: &ETag| decided.is_some_and(|decided| decided.moves(suffix.as_str(), etag));
        match self.bucket.head(&at).await {
            Ok(info) if moves(&info.etag) => Ok((info, Some(at))),
            // It was copied in between, and its source is gone.
            Ok(_) | Err(BucketError::NotFound) => Ok((self.bucket.head(key).await?, None)),
            Err(error) => Err(error),
        }
    }

    /// The version that an object is a copy of, where a rename of this mount made it.
    pub(super) fn copy_of(&self, key: &Key, etag: &ETag) -> Option<ETag> {
        let (rename, suffix) = self.moves.bringing(key.as_str())?;
        rename.mover.made(suffix.as_str()).filter(|made| made == etag)?;
        rename.mover.decided()?.entries.get(&suffix).cloned()
    }

    /// One level of a directory as it is shown; `page` is the LIST of it.
    pub(super) async fn shown(
        &self,
        prefix: &str,
        page: impl Future<Output = Result<Page, BucketError>>,
    ) -> Result<Listing, BucketError> {
        let mut listing = Listing::default();
        if self.moves.is_idle() {
            listing.add(prefix, page.await?);
            return Ok(listing);
        }
        let bringing = match self.moves.under(prefix) {
            Some(Under::Gone) => return Ok(listing),
            Some(Under::Coming(rename)) => Some(rename),
            None => None,
        };
        // The old directory first: what is missing there is copied, and in the new one by then.
        let old = match &bringing {
            Some(rename) => {
                let ends = &rename.mover.ends;
                let rest = prefix.strip_prefix(&ends.target()).unwrap_or_default();
                let old = format!("{}{rest}", ends.source());
                let page = match self.bucket.list_all(&old, true).await {
                    Err(BucketError::NotFound) => Page::default(),
                    other => other?,
                };
                Some((old, page))
            }
            None => None,
        };
        listing.add(prefix, page.await?);
        if let (Some(rename), Some((old, page))) = (bringing, old)
            && let Some(decided) = rename.mover.decided()
        {
            let source = rename.mover.ends.source();
            listing.add_moved(&old, page, |key, etag| {
                let name = key.strip_prefix(&source).unwrap_or(key);
                match etag {
                    Some(etag) => decided.moves(name, etag),
                    None => {
                        let from = decided
                            .entries
                            .range::<str, _>((Bound::Included(name), Bound::Unbounded))
                            .next();
                        from.is_some_and(|(listed, _)| listed.as_str().starts_with(name))
                    }
                }
            });
        }
        self.show_names(prefix, &mut listing);
        Ok(listing)
    }

    /// Names in a directory that a rename takes away or gives.
    fn show_names(&self, prefix: &str, listing: &mut Listing) {
        let is_here = |dir: &str| dir == prefix.trim_end_matches('/');
        let all = self.moves.all();
        for rename in &all {
            let ends = &rename.mover.ends;
            match rename.mover.phase() {
                Phase::Decided if is_here(&ends.from_dir) => {
                    drop(listing.entries.remove(&ends.from))
                }
                Phase::Undecided if rename.hides() && is_here(&ends.to_dir) => {
                    listing.entries.remove(&ends.to);
                }
                _ => {}
            }
        }
        for rename in all {
            let ends = &rename.mover.ends;
            if rename.mover.phase() == Phase::Decided && is_here(&ends.to_dir) {
                listing.entries.insert(ends.to.clone(), SeenEntry::Directory);
            }
        }
    }
}
