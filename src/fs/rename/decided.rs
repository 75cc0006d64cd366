//! A directory's rename by one record: all of it has the new name at once, for everybody.
//!
//! Cost: 3 rounds of requests, however much is below it (see `checkpoint::mover`); copies and
//! deletes follow in the background.

use std::sync::Arc;

use super::{Move, Replace};
use crate::bucket::BucketError;
use crate::checkpoint::mover::{Ended, Ends, Mover, Surveyed};
use crate::checkpoint::moves::{Intent, Stop, Survey};
use crate::checkpoint::record::{Escaped, Suffix};
use crate::clock::ulid;
use crate::fs::Fs;
use crate::fs::checkpoints::{Place, Settled};
use crate::fs::error::Errno;
use crate::fs::learning::{learn_directory, learn_file, remote};
use crate::fs::lookup::LOOKUP_LIST_MAX;
use crate::fs::moves::Rename;
use crate::namespace::inode::Presence;
use crate::namespace::listing::Listing;
use crate::types::{Ino, Key, Kind};

/// How often a rename is tried that others were in the way of.
const TRIES_MAX: usize = 3;

/// How one try ended.
enum Tried {
    Renamed(Arc<Rename>),
    /// Something in the way may be gone by now.
    Again,
    /// A key below it is none that a record can name, or a record's own would be too long.
    Odd,
}

/// The checkpoint directories that are renamed, and renamed to.
type Places<'a> = (Option<&'a Place>, Option<&'a Place>);

impl Fs {
    pub(super) async fn rename_decided(
        &self,
        plan: Move,
        replace: Replace,
        places: Places<'_>,
    ) -> Result<(), Errno> {
        for _ in 0..TRIES_MAX {
            match self.try_rename(&plan, replace, places).await? {
                Tried::Renamed(rename) => return self.renamed(&plan, rename),
                Tried::Odd => {
                    return self.rename_undecided(&plan, replace).await;
                }
                Tried::Again => {
                    for parent in [plan.from_parent, plan.to_parent] {
                        self.load_records(parent).await?; // which may tell of another rename
                    }
                    self.finish_renames(plan.from.as_str()).await?;
                    self.finish_renames(plan.to.as_str()).await?;
                    self.ask(plan.to_parent, &plan.to_name).await?; // as it is after these
                    for place in [places.0, places.1].into_iter().flatten() {
                        self.settle_sealed(place).await?;
                    }
                }
            }
        }
        Err(Errno::EBUSY)
    }

    /// Key by key, where no record can decide it.
    async fn rename_undecided(&self, plan: &Move, replace: Replace) -> Result<(), Errno> {
        if self.ask(plan.from_parent, &plan.from_name).await? != Some(plan.ino) {
            return Err(Errno::ENOENT);
        }
        let target = self.resolve(plan.to_parent, &plan.to_name).await?;
        match target {
            Some(_) if replace == Replace::Refused => return Err(Errno::EEXIST),
            Some(target) => self.refuse_target(target)?,
            None => {}
        }
        self.keep_directory(plan.from_parent).await?;
        self.move_keys(plan, target).await?;
        self.record_attributes(plan.ino);
        Ok(())
    }

    async fn try_rename(
        &self,
        plan: &Move,
        replace: Replace,
        places: Places<'_>,
    ) -> Result<Tried, Errno> {
        let known = self.namespace.lock().child(plan.to_parent, &plan.to_name).map(|c| c.kind);
        let over = known == Some(Kind::Directory);
        let mover = self.mover(plan, over)?;
        if !mover.fits() {
            return Ok(Tried::Odd);
        }
        let nonce = mover.nonce();
        let intent = Intent::Move { nonce };
        let (pointed, target, kept) = tokio::join!(
            mover.run(&intent),
            self.target_of(plan, places.1),
            self.keep_directory(plan.from_parent),
        );
        let ended = pointed?;
        debug_assert_eq!(ended, Ended::Survey);
        let refused = match (kept, target) {
            (Err(errno), _) | (_, Err(errno)) => Some(errno),
            (_, Ok(Some(_))) if replace == Replace::Refused => Some(Errno::EEXIST),
            (_, Ok(Some(target))) => self.refuse_target(target).err(),
            (_, Ok(None)) => None,
        };
        // What was not known of yet may be on its way to another name: the next try knows.
        let unforeseen = !over && target.is_ok_and(|target| target.is_some());
        if refused.is_some() || unforeseen {
            self.withdraw_rename(&mover, &intent).await?;
            return match refused {
                Some(errno) if !unforeseen || known.is_some() => Err(errno),
                _ => Ok(Tried::Again),
            };
        }
        let (surveyed, undecided) = tokio::join!(mover.survey(), self.is_either_undecided(places));
        let Surveyed { mut survey, nested, odd, long } = surveyed?;
        if long {
            // Decided, it would show names below it that no request can be made for.
            self.withdraw_rename(&mover, &intent).await?;
            return Err(Errno::ENAMETOOLONG);
        }
        survey.rival |= undecided?;
        for (dir, child) in nested {
            survey.rival |= self.is_undecided(&Key::new(dir), &child).await?;
        }
        if odd {
            self.withdraw_rename(&mover, &intent).await?;
            return Ok(Tried::Odd);
        }
        if survey.entries.is_empty() && !survey.rival {
            let now = self.ask(plan.from_parent, &plan.from_name).await?;
            if now != Some(plan.ino) {
                self.withdraw_rename(&mover, &intent).await?;
                // What another node put in its place is looked up again.
                return Err(now.map_or(Errno::ENOENT, |_| Errno::ESTALE));
            }
            survey.entries.extend(self.marker_of_nothing(plan).await?);
        }
        mover.surveyed(survey);
        match mover.run(&intent).await? {
            Ended::Stop(Stop::Decided) => Ok(Tried::Renamed(Arc::new(Rename::new(mover, false)))),
            Ended::Stop(Stop::NotEmpty) => Err(Errno::ENOTEMPTY),
            _ => Ok(Tried::Again),
        }
    }

    /// What stands at the new name: by its own keys alone, since the records that are written
    /// meanwhile are of this very rename, and hide what is there.
    async fn target_of(&self, plan: &Move, place: Option<&Place>) -> Result<Option<Ino>, Errno> {
        let (parent, name) = (plan.to_parent, &plan.to_name);
        if let Some(ino) = self.known(parent, name) {
            return Ok(Some(ino));
        }
        let key = self.namespace.lock().child_key(parent, name).ok_or(Errno::ESTALE)?;
        let below = Key::new(format!("{key}/"));
        let (file, page, asked) = loop {
            let asked = self.namespace.lock().asked(self.clock.now());
            let list = self.bucket.list(below.as_str(), true, None, LOOKUP_LIST_MAX);
            let settling = self.settle_if_any(place);
            let (file, page, settled) = tokio::join!(self.bucket.head(&key), list, settling);
            if settled? == Settled::Already {
                break (file, page, asked);
            }
        };
        let file = match file {
            Err(BucketError::NotFound | BucketError::WrongKind) => None,
            other => Some(remote(&other?)),
        };
        // What a transaction of ours removes is gone.
        let file = file.filter(|_| !place.is_some_and(|place| self.hides(place)));
        let mut listing = Listing::default();
        match page {
            Err(BucketError::NotFound | BucketError::WrongKind) => {}
            other => listing.add(below.as_str(), other?),
        }
        if !listing.exists() && listing.control {
            self.bury(&below).await?; // a former directory's, which would speak of the new one
        }
        let mut namespace = self.namespace.lock();
        let learnt = match file {
            _ if listing.exists() => {
                learn_directory(&mut namespace, parent, name, listing.newest, asked)
            }
            Some(file) => learn_file(&mut namespace, parent, name, &file, asked),
            None => {
                namespace.learn_absent(parent, name, asked);
                return Ok(namespace.child(parent, name).map(|child| child.ino)); // only here yet
            }
        };
        // It is there, whatever changed here meanwhile.
        learnt.map(|learnt| Some(learnt.ino)).ok_or(Errno::ESTALE)
    }

    fn mover(&self, plan: &Move, over: bool) -> Result<Mover, Errno> {
        let parent = |key: &Key| {
            let key = key.as_str().trim_end_matches('/');
            key.rsplit_once('/').map_or(String::new(), |(dir, _)| dir.to_owned())
        };
        let (from_dir, to_dir) = (parent(&plan.from), parent(&plan.to));
        let (from, to) = (plan.from_name.clone(), plan.to_name.clone());
        let id = ulid(&*self.clock).parse().map_err(|_| Errno::EIO)?;
        let writer = self.checkpoints.writer().clone();
        let (bucket, clock) = (self.bucket.clone(), self.clock.clone());
        Ok(Mover::new(bucket, clock, writer, id, Ends { from_dir, from, to_dir, to }, over))
    }

    /// What stands at the new name may be replaced, as far as this node knows: a LIST tells the
    /// rest.
    fn refuse_target(&self, target: Ino) -> Result<(), Errno> {
        if self.kind_of(target)? != Kind::Directory {
            return Err(Errno::ENOTDIR);
        }
        match self.namespace.lock().has_local_below(target) {
            true => Err(Errno::ENOTEMPTY),
            false => Ok(()),
        }
    }

    async fn is_either_undecided(&self, places: Places<'_>) -> Result<bool, BucketError> {
        for place in [places.0, places.1].into_iter().flatten() {
            if !place.rel.is_root() {
                continue;
            }
            let (dir, child) = (&place.checkpoint.dir, Escaped::of(&place.checkpoint.child));
            if self.is_undecided(&Key::new(format!("{dir}/")), child.as_str()).await? {
                return Ok(true);
            }
            let driver = place.checkpoint.driver.lock().await;
            if driver.seen().unpublished().is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// A directory of which the bucket has nothing is this node's alone, or an implied one that was
    /// emptied: a marker makes it one that can move.
    async fn marker_of_nothing(
        &self,
        plan: &Move,
    ) -> Result<Option<(Suffix, crate::types::ETag)>, Errno> {
        let Ok(root) = Suffix::new("") else { return Ok(None) };
        let (nothing, none) = (bytes::Bytes::new(), Default::default());
        let made = self.bucket.put(&plan.from, nothing, &plan.condition, &none).await?;
        Ok(Some((root, made.etag)))
    }

    /// Takes back what was written before the decision.
    async fn withdraw_rename(&self, mover: &Mover, intent: &Intent) -> Result<(), Errno> {
        mover.surveyed(Survey { rival: true, ..Survey::default() });
        mover.run(intent).await?;
        Ok(())
    }

    /// The tree here follows the record; the rest is done in the background.
    fn renamed(&self, plan: &Move, rename: Arc<Rename>) -> Result<(), Errno> {
        self.moves.add(rename.clone());
        self.moved(plan);
        let decided = rename.mover.decided().ok_or(Errno::EIO)?;
        let (source, target) = (rename.mover.ends.source(), rename.mover.ends.target());
        let mut namespace = self.namespace.lock();
        for ino in namespace.below(plan.ino) {
            let Some(key) = namespace.key(ino) else { continue };
            let Some(inode) = namespace.get_mut(ino) else { continue };
            inode.directory.forget_records();
            if inode.kind == Kind::Directory {
                inode.directory.marker = Presence::Unknown;
            }
            let Some(name) = key.as_str().strip_prefix(&target) else { continue };
            match &inode.object {
                Some(etag) if decided.moves(name, etag) => {
                    inode.at = Some(Key::new(format!("{source}{name}")));
                }
                _ => inode.checked = None,
            }
        }
        if let Some(inode) = namespace.get_mut(plan.ino) {
            inode.checked = Some(self.clock.now());
            inode.staged = false;
        }
        drop(namespace);
        self.record_attributes(plan.ino);
        self.finish_in_background(rename);
        Ok(())
    }
}
