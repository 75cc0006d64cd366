//! Commits that somebody asks for: `trialfs commit`, an extended attribute, fsync of a directory,
//! a trainer's own commit record; and `user.trialfs.state`.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;

use super::commit::{Progress, Root};
use super::{Checkpoint, Place};
use crate::checkpoint::driver::Ended;
use crate::checkpoint::protocol::{Accept, Intent, Stop, standing};
use crate::checkpoint::record::{RelPath, Sign};
use crate::checkpoint::rules::Event;
use crate::checkpoint::rules::pointers::{CommitRecord, POINTER_BYTES_MAX};
use crate::fs::Fs;
use crate::fs::error::Errno;
use crate::fs::handles::OpenFile;
use crate::types::{Ino, Key, Kind, Name};

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
        self.hear(checkpoint, &Event::Explicit);
        let result = self.commit_until(checkpoint, Sign::Explicit, deadline).await;
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
                self.commit_until(&place.checkpoint, Sign::Sign, deadline).await
            }
            _ => Ok(()),
        }
    }

    /// Carries a commit on until all is published.
    pub(super) async fn commit_until(
        &self,
        checkpoint: &Arc<Checkpoint>,
        sign: Sign,
        deadline: std::time::Instant,
    ) -> Result<(), Errno> {
        loop {
            let handles = {
                let root = checkpoint.state.lock().open.as_ref().map(|open| open.root);
                root.map_or(0, |root| self.writers_below(root).0)
            };
            let progress = match handles {
                0 => self.commit(checkpoint, Some(sign)).await?,
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
                return Err(Errno::ETIMEDOUT);
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

    /// Before a close takes `tree` and the inode's `io`, what it would seal with them: sealing
    /// waits for uploads and other programs' closes, which take `tree` too. Behind somebody who
    /// asked for `tree` alone they would wait for us, as he would.
    pub(in crate::fs) async fn seal_before_closing(
        &self,
        ino: Ino,
        file: &OpenFile,
    ) -> Result<(), Errno> {
        let hidden = self.writing_place(ino).is_some();
        if hidden || !self.closes_something(ino, file) {
            return Ok(());
        }
        self.seal_what_it_names(ino, file).await
    }

    /// Whether a close has anything to do. It changes nothing: a rename may hold the file's `io`.
    fn closes_something(&self, ino: Ino, file: &OpenFile) -> bool {
        let staged = {
            let state = file.state.lock();
            let fails = state.lost || state.stuck().is_some();
            state.staged.clone().filter(|_| !fails && !state.holds_acknowledged())
        };
        staged.is_some_and(|staged| staged.is_dirty()) && self.is_to_upload(ino)
    }

    /// At the close of a trainer's commit record: what it names is sealed and published first, so
    /// that a pointer is never visible before what it points to.
    pub(in crate::fs) async fn seal_what_it_names(
        &self,
        ino: Ino,
        file: &OpenFile,
    ) -> Result<(), Errno> {
        let (record, parent) = {
            let namespace = self.namespace.lock();
            let Some(inode) = namespace.get(ino) else { return Ok(()) };
            let record = inode.name.as_ref().and_then(|name| CommitRecord::of(name.as_str()));
            let Some(record) = record else { return Ok(()) };
            (record, namespace.key(inode.parent).ok_or(Errno::ESTALE)?)
        };
        let Some(staged) = file.state.lock().staged.clone() else { return Ok(()) };
        let size = staged.size().map_err(|_| Errno::EIO)?;
        if size == 0 || size > POINTER_BYTES_MAX as u64 {
            return Ok(());
        }
        let bytes = staged.read(0, size as u32).await?;
        let Ok(named) = record.pointers(&bytes) else { return Ok(()) };
        let named = named.into_iter().filter_map(|path| self.named(&parent, &path));
        let named: Vec<_> = named.filter(|checkpoint| !checkpoint.is_settled()).collect();
        let seals = named.into_iter().map(|checkpoint| async move {
            self.seal_named(&checkpoint).await.inspect_err(|error| {
                let name = checkpoint.name();
                tracing::error!(%name, %error, "a commit record names what can't be committed");
            })
        });
        let mut seals = futures::stream::iter(seals).buffer_unordered(SEALS_MAX);
        while let Some(sealed) = seals.next().await {
            sealed.map_err(|_| Errno::EIO)?;
        }
        Ok(())
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
        self.commit_until(checkpoint, Sign::Sign, deadline).await
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
