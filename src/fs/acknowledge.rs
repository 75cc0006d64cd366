//! close(2) under `--durability local`: it returns when the bytes are synced here.
//!
//! Owns which files are acknowledged so, and what a later open makes of them. Does not own what is
//! synced (`write`), nor the uploads (`waiting`).
//!
//! Cost: close of a file up to 64 KiB one sync of the journal, shared with all that close at the
//! time; of a larger one a sync of its data before. No request, but for a commit record's, which
//! first seals what it names.

use std::sync::Arc;

use super::Fs;
use super::checkpoints::CloseAs;
use super::error::Errno;
use super::handles::{Acknowledged, OpenFile};
use super::waiting::{FILES_MAX, Job, Superseded, role_of};
use crate::config::Durability;
use crate::namespace::attrs::Recorded;
use crate::types::Ino;
use crate::write::{Before, CloseId, Closing, Staged, Why};

/// A file up to this size that waits for the bucket is copied for whoever opens it to write it; of
/// a larger one that keeps its content the upload is waited for. With its sync a copy of 50 MiB
/// takes an eighth of the time that an upload near the store takes.
const COPY_BYTES_MAX: u64 = 64 << 20;

/// How a close came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Close {
    Acknowledged,
    /// Nothing changed, or the bucket has it.
    Nothing,
    /// It must go to the bucket before the close returns.
    Upload,
}

impl Fs {
    pub(super) fn acknowledges_locally(&self) -> bool {
        self.config.durability == Durability::Local
    }

    /// close(2). Where the local disk can't keep the file, or keeps too much already, it returns
    /// when the bucket has it, as without `--durability local`.
    pub(super) async fn close(&self, ino: Ino, file: &Arc<OpenFile>) -> Result<(), Errno> {
        let mut sealed = None;
        if self.acknowledges_locally() {
            let _held = self.close_at(ino, file, CloseAs::Local, &mut sealed).await?;
            if self.acknowledge(ino, file).await? != Close::Upload {
                return Ok(());
            }
        }
        self.sync(ino, file, sealed).await
    }

    /// At the release of the last writer of a file that may have been mapped: notes whether it was
    /// written since its close, of which nothing but the bytes may tell.
    pub(super) async fn note_stores(&self, file: &OpenFile) -> Result<(), Errno> {
        let staged = file.state.lock().staged.clone();
        let kept = staged.filter(|staged| file.is_acknowledged() && staged.kept().is_some());
        if let Some(staged) = kept
            && !staged.is_as_acknowledged().await?
            && let Some(now) = &mut file.state.lock().acknowledged
        {
            now.stale = true;
        }
        Ok(())
    }

    /// The caller works at the inode and holds its `io`.
    pub(super) async fn acknowledge(&self, ino: Ino, file: &Arc<OpenFile>) -> Result<Close, Errno> {
        if file.state.lock().lost {
            return Err(Errno::EIO); // its transaction is gone: nothing of it is kept by a close
        }
        let Some(staged) = self.to_upload(ino, file) else { return Ok(Close::Nothing) };
        {
            let state = file.state.lock();
            if let Some(errno) = state.stuck() {
                return Err(errno);
            }
            if state.holds_acknowledged() {
                return Ok(Close::Nothing);
            }
            if state.short {
                return Ok(Close::Upload);
            }
        }
        let place = self.writing_place(ino);
        if place.is_some() && (staged.is_prepared() || !staged.is_dirty()) {
            return Ok(Close::Upload); // which has nothing left to send
        }
        let full = self.waiting.len() >= FILES_MAX || self.writer.is_dirty_full();
        if full || !staged.is_complete() {
            return Ok(Close::Upload);
        }
        if let Some(place) = &place {
            staged.set_key(place.key());
        }
        match self.put_in_journal(ino, file, &staged, place.is_some()).await {
            Ok(()) => Ok(Close::Acknowledged),
            Err(error) => {
                tracing::error!(ino = ino.0, %error, "not kept here: closed when it is uploaded");
                Ok(Close::Upload)
            }
        }
    }

    async fn put_in_journal(
        &self,
        ino: Ino,
        file: &Arc<OpenFile>,
        staged: &Arc<Staged>,
        in_transaction: bool,
    ) -> Result<(), Errno> {
        let name = self.namespace.lock().key(ino).ok_or(Errno::ESTALE)?;
        self.give_up_left(&name).await?;
        let opened = file.state.lock().opened;
        let (before, superseded) = self.earlier_closes(ino, file, in_transaction);
        let gone = superseded.iter().filter(|(_, how)| *how == Superseded::EntryGone);
        let replaces: Vec<CloseId> = gone.map(|(id, _)| *id).collect();
        let id = self.waiting.number();
        let attributes = self.attributes_to_keep(ino);
        let before_now = before.clone();
        let closing =
            Closing { id, opened, before: before_now, in_transaction, attributes, replaces };
        let stamp = staged.acknowledge(closing).await?;
        let aside = {
            let mut state = file.state.lock();
            state.failed = None;
            let unprepared = in_transaction;
            state.acknowledged = Some(Acknowledged { id, stamp, unprepared, stale: false });
            let is_gone = |id: &CloseId| superseded.iter().any(|(old, _)| old == id);
            let (gone, stay): (Vec<_>, Vec<_>) =
                std::mem::take(&mut state.aside).into_iter().partition(|(id, _)| is_gone(id));
            state.aside = stay;
            gone
        };
        for (_, earlier) in aside {
            earlier.discard();
        }
        let key = self.namespace.lock().key(ino).ok_or(Errno::ESTALE)?;
        let role = role_of(&key, in_transaction);
        let job = Job::new(ino, file.clone(), staged.clone(), before);
        self.enter(id, opened, (key, role), job, &superseded);
        Ok(())
    }

    /// What a close of the file replaces, and the earlier ones of it that it stands for.
    fn earlier_closes(
        &self,
        ino: Ino,
        file: &Arc<OpenFile>,
        in_transaction: bool,
    ) -> (Before, Vec<(CloseId, Superseded)>) {
        let object = self.namespace.lock().get(ino).and_then(|inode| inode.object.clone());
        let mut before = object.map_or(Before::Absent, Before::Version);
        let staged = file.state.lock().staged.clone();
        let mut superseded = Vec::new();
        for (id, job) in self.waiting.of(file) {
            let same = staged.as_ref().is_some_and(|staged| Arc::ptr_eq(staged, &job.staged));
            if in_transaction {
                superseded.push((id, Superseded::EntryGone));
            } else if job.is_superseded() || !same {
                before = Before::Closed(id); // it goes up before, or may have
            } else if job.was_begun() || job.staged.may_have_gone_up() {
                before = Before::Closed(id);
                superseded.extend(job.has_failed().then_some((id, Superseded::EntryStays)));
            } else {
                before = job.before.clone();
                superseded.push((id, Superseded::EntryGone));
            }
        }
        (before, superseded)
    }

    fn attributes_to_keep(&self, ino: Ino) -> serde_json::Value {
        let namespace = self.namespace.lock();
        let Some(inode) = namespace.get(ino) else { return serde_json::Value::Null };
        let default = inode.attributes.is_default(inode.kind, namespace.defaults());
        if default && !inode.times_set {
            return serde_json::Value::Null;
        }
        let recorded = Recorded::of(inode.kind, None, &inode.attributes, self.wall());
        serde_json::to_value(recorded).unwrap_or_default()
    }

    /// Before a file is opened to be written, or cut: what was acknowledged of it is not touched.
    /// Returns with the inode's `io`.
    pub(super) async fn io_to_write<'a>(
        &self,
        ino: Ino,
        file: &'a Arc<OpenFile>,
        truncate: bool,
    ) -> Result<tokio::sync::MutexGuard<'a, ()>, Errno> {
        loop {
            let io = file.io.lock().await;
            let (waits, writers, handles) = {
                let state = file.state.lock();
                (state.acknowledged.zip(state.staged.clone()), state.writers, state.handles())
            };
            let Some((now, staged)) = waits.filter(|(_, staged)| staged.is_dirty()) else {
                return Ok(io);
            };
            if writers > 0 || !self.is_to_upload(ino) {
                return Ok(io); // it shares what is being written
            }
            let size = staged.size().map_err(|_| Errno::EIO)?;
            if handles == 0 && (truncate || size <= COPY_BYTES_MAX) {
                match self.write_beside(ino, file, (now.id, staged), truncate).await {
                    // It is written over once it went up.
                    Err(Errno::ENOSPC) if !truncate && self.writing_place(ino).is_none() => {}
                    other => return other.map(|()| io),
                }
            }
            if let Some(failed) = file.state.lock().failed {
                return Err(failed.errno);
            }
            drop(io);
            self.wait_for(now.id).await;
        }
    }

    /// Takes out what a killed process left of a file, to be let go. `None`: nothing; what was
    /// acknowledged stands, and a version that was being written over is the file's content again.
    /// The caller holds `io` and no upload runs.
    pub(super) fn take_torn(&self, file: &OpenFile) -> Option<Arc<Staged>> {
        let waiting = self.waiting.of(file);
        let mut state = file.state.lock();
        state.torn = false;
        if state.holds_acknowledged() {
            return None;
        }
        let staged = state.staged.take_if(|staged| staged.is_dirty())?;
        staged.give_up(Why::Torn);
        state.failed = None;
        let written_over = state.acknowledged.take();
        if let Some((id, earlier)) = state.aside.pop() {
            let waits = waiting.iter().any(|(other, job)| *other == id && !job.is_superseded());
            if waits {
                let (stamp, unprepared, stale) = (earlier.stamp(), false, false);
                state.acknowledged = Some(Acknowledged { id, stamp, unprepared, stale });
                state.staged = Some(earlier);
            }
        }
        drop(state);
        if let Some(now) = written_over {
            self.forget_closed(now.id);
        }
        Some(staged)
    }

    /// The acknowledged version waits on its own, and what is written is another file.
    async fn write_beside(
        &self,
        ino: Ino,
        file: &Arc<OpenFile>,
        acknowledged: (CloseId, Arc<Staged>),
        truncate: bool,
    ) -> Result<(), Errno> {
        let place = self.writing_place(ino);
        let staged = match &place {
            Some(place) => self.writer.stage(place.key(), None)?,
            None => {
                let key = self.namespace.lock().key(ino).ok_or(Errno::ESTALE)?;
                self.stage_anew(ino, key, None)?
            }
        };
        if !truncate && let Err(error) = staged.copy_staged(&acknowledged.1).await {
            staged.discard();
            return Err(error.into());
        }
        if place.is_some() {
            self.hold_back(acknowledged.0); // what is written now is shown in its place
        }
        let mut state = file.state.lock();
        state.staged = Some(staged);
        state.acknowledged = None;
        state.aside.push(acknowledged);
        Ok(())
    }
}
