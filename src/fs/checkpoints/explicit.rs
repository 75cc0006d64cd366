//! Commits that somebody asks for: `trialfs commit`, an extended attribute, fsync of a directory,
//! a trainer's own commit record; and `user.trialfs.state`.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use tokio::sync::MutexGuard;

use super::commit::{Progress, Root};
use super::{Checkpoint, Place};
use crate::checkpoint::driver::Ended;
use crate::checkpoint::protocol::{Accept, Intent, Stop, standing};
use crate::checkpoint::record::{RelPath, Sign};
use crate::checkpoint::rules::Event;
use crate::checkpoint::rules::pointers::{CommitRecord, POINTER_BYTES_MAX};
use crate::fs::Fs;
use crate::fs::error::Errno;
use crate::fs::handles::{Failure, OpenFile};
use crate::fs::tree::Working;
use crate::types::{Ino, Key, Kind, Name};
use crate::write::Staged;

/// Set on a directory: commit it. The value [`ACCEPT_TORN`] takes losses along.
pub const COMMIT_XATTR: &str = "user.trialfs.commit";
/// Read of a file or directory: how far it came.
pub const STATE_XATTR: &str = "user.trialfs.state";
/// Commit what is whole, though a process that wrote was killed or a mount is gone.
pub const ACCEPT_TORN: &[u8] = b"accept-torn";
/// Between two tries while other ranks' parts are open.
const AGAIN: Duration = Duration::from_millis(100);
/// Directories that one commit record names, sealed at a time.
const SEALS_MAX: usize = 16;
/// How often what a record names is sealed while it is being written.
const SEAL_TRIES_MAX: usize = 8;

/// What follows of a close.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::fs) enum CloseAs {
    /// It is acknowledged here.
    Local,
    /// It goes to the bucket; no upload of it may be running.
    Upload,
    /// The same, at the end of the mount, though it failed before.
    Last,
}

/// What a commit record names: its directory, and the CRC64NVME of its content.
#[derive(Debug)]
pub(in crate::fs) struct Named {
    parent: Key,
    crc: u64,
}

/// A commit record that is being closed.
pub(in crate::fs) struct ToSeal {
    record: CommitRecord,
    staged: Arc<Staged>,
    /// The key of its directory.
    parent: Key,
}

/// Which losses a commit takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Losses {
    Refused,
    Accepted,
}

impl Fs {
    /// Commits the checkpoint directory that an inode is or is in, and returns when it is
    /// published. ETIMEDOUT after `--commit-wait` while others still write; EIO if it is torn and
    /// that was not accepted; EINVAL if it is no checkpoint.
    pub(in crate::fs) async fn commit_now(&self, ino: Ino, losses: Losses) -> Result<(), Errno> {
        let place = self.place(ino).ok_or(Errno::EINVAL)?;
        let checkpoint = &place.checkpoint;
        let deadline = self.clock.now() + self.checkpoints.config().commit_wait;
        if losses == Losses::Accepted {
            let mut driver = checkpoint.driver.lock().await;
            driver.look().await?;
            let accept = Accept::what_is_lost(driver.seen());
            checkpoint.state.lock().accept = accept;
        }
        if !self.lacks_a_file(checkpoint, losses) {
            self.hear(checkpoint, &Event::Explicit);
        }
        let result = self.commit_until(checkpoint, (Sign::Explicit, losses), deadline).await;
        checkpoint.state.lock().accept = Accept::nothing();
        result
    }

    /// After a file got the name that says that its directory is complete: the rename returns when
    /// every node sees that, so that what is written next, here or by another rank, is of the next
    /// commit. Where a file of it is still open here the sign holds from its close on.
    pub(in crate::fs) async fn commit_at_rename(&self, ino: Ino) -> Result<(), Errno> {
        let Some(place) = self.place(ino) else { return Ok(()) };
        let sign = {
            let state = place.checkpoint.state.lock();
            let rule = state.rule.as_ref().filter(|rule| rule.is_immediate());
            let named = place.direct().map(|to| Event::Renamed { to });
            let is_sign = rule.zip(named).is_some_and(|(rule, event)| rule.is_sign(&event));
            state.open.as_ref().filter(|_| is_sign).map(|open| open.root)
        };
        match sign {
            Some(root) if self.writers_below(root).0 == 0 => {
                let deadline = self.clock.now() + self.checkpoints.config().commit_wait;
                self.commit_until(&place.checkpoint, (Sign::Sign, Losses::Refused), deadline).await
            }
            _ => Ok(()),
        }
    }

    /// Whether a file of it could not be closed, and is to be part of it. It may be tried again.
    fn lacks_a_file(&self, checkpoint: &Checkpoint, losses: Losses) -> bool {
        let root = checkpoint.state.lock().open.as_ref().map(|open| open.root);
        losses == Losses::Refused && root.is_some_and(|root| self.writers_below(root).1)
    }

    /// Carries a commit on until all is published.
    pub(super) async fn commit_until(
        &self,
        checkpoint: &Arc<Checkpoint>,
        (sign, losses): (Sign, Losses),
        deadline: std::time::Instant,
    ) -> Result<(), Errno> {
        loop {
            let handles = {
                let root = checkpoint.state.lock().open.as_ref().map(|open| open.root);
                root.map_or(0, |root| self.writers_below(root).0)
            };
            let lacks = self.lacks_a_file(checkpoint, losses);
            let progress = match handles {
                0 if !lacks => self.commit(checkpoint, Some(sign)).await?,
                _ => Progress::Waits,
            };
            match progress {
                Progress::Lost | Progress::Poisoned => return Err(Errno::EIO),
                Progress::Waits => {}
                Progress::Published(_) if self.commit_others(checkpoint, sign).await? => {
                    return Ok(());
                }
                Progress::Published(_) => {}
            }
            if self.clock.now() >= deadline {
                return Err(if lacks { Errno::EIO } else { Errno::ETIMEDOUT });
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// Commits what others prepared; whether nothing is left to wait for.
    async fn commit_others(&self, checkpoint: &Checkpoint, sign: Sign) -> Result<bool, Errno> {
        let accept = checkpoint.state.lock().accept.clone();
        let mut driver = checkpoint.driver.lock().await;
        driver.look().await?;
        // What was asked for is not there, whatever was committed before.
        if accept == Accept::nothing() && driver.seen().is_lost() {
            return Err(Errno::EIO);
        }
        match driver.go_on(&Intent::Commit { sign, accept: &accept }).await? {
            Ended::Wait(_) => Ok(false),
            Ended::Stop(Stop::Poisoned(_) | Stop::Unreadable) => Err(Errno::EIO),
            Ended::Stop(_) => Ok(true),
        }
    }

    /// Before a file is closed: works at it and takes its `io`. Of a trainer's commit record what
    /// it names was sealed and published then, so that a pointer is never visible before what it
    /// points to; an error sticks to the file. `sealed`: what was sealed in this very close, and is
    /// not to be sealed again.
    pub(in crate::fs) async fn close_at<'a>(
        &'a self,
        ino: Ino,
        file: &'a OpenFile,
        why: CloseAs,
        sealed: &mut Option<Named>,
    ) -> Result<(Working<'a>, MutexGuard<'a, ()>), Errno> {
        for _ in 0..SEAL_TRIES_MAX {
            let record = self.to_seal(ino, file, why, sealed.as_ref()).await;
            if let Some(record) = record.inspect_err(|errno| self.close_failed(file, *errno))? {
                *sealed = Some(self.seal_what_it_names(file, record).await?);
            }
            let work = self.work_at(ino).await;
            let io = match why {
                CloseAs::Local => file.io.lock().await,
                CloseAs::Upload | CloseAs::Last => file.quiet().await,
            };
            // It may have been written meanwhile, or moved.
            let record = self.to_seal(ino, file, why, sealed.as_ref()).await;
            if record.inspect_err(|errno| self.close_failed(file, *errno))?.is_none() {
                return Ok((work, io));
            }
        }
        self.close_failed(file, Errno::EIO);
        Err(Errno::EIO)
    }

    fn close_failed(&self, file: &OpenFile, errno: Errno) {
        let mut state = file.state.lock();
        if state.stuck().is_none() {
            state.fail(errno);
        }
    }

    /// Nothing may be held meanwhile: it waits for uploads and for other programs' closes. An error
    /// sticks to what was tried.
    async fn seal_what_it_names(&self, file: &OpenFile, record: ToSeal) -> Result<Named, Errno> {
        let ToSeal { record, staged, parent } = record;
        let stamp = staged.stamp();
        let size = staged.size().map_err(|_| Errno::EIO)?.min(POINTER_BYTES_MAX as u64);
        let bytes = staged.read(0, size as u32).await?;
        let named = Named { parent, crc: crc_fast::crc64_nvme(&bytes) };
        let paths = record.pointers(&bytes).unwrap_or_default(); // not understood: it names none
        let all = paths.into_iter().filter_map(|path| self.named(&named.parent, &path));
        let all: Vec<_> = all.filter(|checkpoint| !checkpoint.is_settled()).collect();
        let seals = all.into_iter().map(|checkpoint| async move {
            self.seal_named(&checkpoint).await.inspect_err(|error| {
                let name = checkpoint.name();
                tracing::error!(%name, %error, "a commit record names what can't be committed");
            })
        });
        let mut seals = futures::stream::iter(seals).buffer_unordered(SEALS_MAX);
        while let Some(done) = seals.next().await {
            if done.is_err() {
                let mut state = file.state.lock();
                let is_same = |now: &Arc<Staged>| Arc::ptr_eq(now, &staged);
                if state.staged.as_ref().is_some_and(is_same) && state.stuck().is_none() {
                    state.failed = Some(Failure { errno: Errno::EIO, stamp: Some(stamp) });
                }
                return Err(Errno::EIO);
            }
        }
        Ok(named)
    }

    /// What a close of a commit record would show, if what it names is not sealed yet.
    pub(in crate::fs) async fn to_seal(
        &self,
        ino: Ino,
        file: &OpenFile,
        why: CloseAs,
        sealed: Option<&Named>,
    ) -> Result<Option<ToSeal>, Errno> {
        let (record, parent) = {
            let namespace = self.namespace.lock();
            let Some(inode) = namespace.get(ino) else { return Ok(None) };
            let record = inode.name.as_ref().and_then(|name| CommitRecord::of(name.as_str()));
            let Some(record) = record else { return Ok(None) };
            let Some(parent) = namespace.key(inode.parent) else { return Ok(None) };
            (record, parent)
        };
        let staged = {
            let state = file.state.lock();
            let is_stuck = why != CloseAs::Last && state.stuck().is_some();
            let ends = state.lost || is_stuck || state.holds_acknowledged();
            state.staged.clone().filter(|staged| !ends && staged.is_dirty())
        };
        let Some(staged) = staged else { return Ok(None) };
        if self.writing_place(ino).is_some() || !self.is_to_upload(ino) {
            return Ok(None);
        }
        let size = staged.size().map_err(|_| Errno::EIO)?;
        if size == 0 || size > POINTER_BYTES_MAX as u64 {
            return Ok(None);
        }
        let bytes = staged.read(0, size as u32).await?;
        let crc = crc_fast::crc64_nvme(&bytes);
        let is_new = sealed.is_none_or(|sealed| sealed.crc != crc || sealed.parent != parent);
        Ok(is_new.then_some(ToSeal { record, staged, parent }))
    }

    /// The checkpoint directory at a path below a key.
    fn named(&self, parent: &Key, path: &RelPath) -> Option<Arc<Checkpoint>> {
        let whole = format!("{parent}{}", path.as_str());
        let (dir, child) = whole.rsplit_once('/').unwrap_or(("", &whole));
        Some(self.checkpoints.at(&self.bucket, &self.clock, dir, &Name::new(child).ok()?))
    }

    async fn seal_named(&self, checkpoint: &Arc<Checkpoint>) -> Result<(), Errno> {
        let deadline = self.clock.now() + self.checkpoints.config().commit_wait;
        self.hear(checkpoint, &Event::Named);
        let _awaiting = self.hurry_uploads();
        self.commit_until(checkpoint, (Sign::Sign, Losses::Refused), deadline).await
    }

    /// The value of `user.trialfs.state`.
    pub(in crate::fs) async fn state_of(&self, ino: Ino) -> Result<&'static str, Errno> {
        let staged = self.handles.shared_if_any(ino).and_then(|f| f.state.lock().staged.clone());
        let (local, kind) = {
            let namespace = self.namespace.lock();
            let inode = namespace.get(ino).ok_or(Errno::ESTALE)?;
            (inode.staged, inode.kind)
        };
        let written = staged.filter(|staged| local && staged.is_dirty() && !staged.is_prepared());
        if written.is_some() && kind != Kind::Directory {
            return Ok("dirty");
        }
        let Some(place) = self.place(ino) else { return Ok("published") };
        if place.checkpoint.state.lock().open.is_some() {
            return Ok("open");
        }
        let mut driver = place.checkpoint.driver.lock().await;
        driver.look().await?;
        Ok(standing(driver.seen()).word())
    }

    /// Before a clean unmount: an empty directory is kept as such, what is not whole is torn.
    pub(super) async fn commit_nothing(
        &self,
        checkpoint: &Arc<Checkpoint>,
        sign: Sign,
    ) -> Result<(), Errno> {
        let root = {
            let state = checkpoint.state.lock();
            let Some(open) = &state.open else { return Ok(()) };
            if open.members.is_empty() { Some(open.root) } else { None }
        };
        match root {
            Some(root) => {
                self.add_marker(checkpoint, root);
                self.commit(checkpoint, Some(sign)).await.map(drop)
            }
            None => self.tear_transaction(checkpoint, Root::Goes).await,
        }
    }

    /// fsync of a directory commits it where its rule says so.
    pub(in crate::fs) async fn fsync_commits(&self, ino: Ino) -> Result<(), Errno> {
        let Some(Place { checkpoint, rel, .. }) = self.place(ino) else { return Ok(()) };
        let is_sign = {
            let state = checkpoint.state.lock();
            let rule = state.rule.as_ref();
            let open = state.open.as_ref().is_some_and(|open| !open.members.is_empty());
            open && rel.is_root() && rule.is_some_and(|rule| rule.is_sign(&Event::DirectoryFsync))
        };
        if is_sign { self.commit_now(ino, Losses::Refused).await } else { Ok(()) }
    }
}

impl Checkpoint {
    /// Published as far as was ever seen, and nothing of ours is on its way: a commit record that
    /// names it again need not ask.
    fn is_settled(&self) -> bool {
        let settled = |driver: tokio::sync::MutexGuard<'_, super::Driver>| {
            let seen = driver.seen();
            seen.done().0 > 0 && seen.unpublished().is_none() && seen.live().next().is_none()
        };
        !self.is_busy() && self.driver.try_lock().is_ok_and(settled)
    }
}
