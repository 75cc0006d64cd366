//! Who waits for uploads of acknowledged files: those give way to nobody meanwhile.
//!
//! Owns what is waited for. Does not own the uploads (`waiting`).

use super::{Job, JobState, State, Waiting};
use crate::fs::Fs;
use crate::fs::error::Errno;
use crate::fs::handles::OpenFile;
use crate::types::Ino;
use crate::write::CloseId;

/// While one lives, uploads give way to no writer.
pub(in crate::fs) struct Awaiting<'a>(&'a Waiting);

impl Drop for Awaiting<'_> {
    fn drop(&mut self) {
        self.0.state.lock().awaited -= 1;
    }
}

impl Fs {
    /// Waits until `done` says so: it is asked again whenever an upload has ended.
    async fn await_uploads(&self, mut done: impl FnMut() -> bool) {
        let mut changed = self.waiting.changed.subscribe();
        if done() {
            return;
        }
        let _awaiting = self.hurry_uploads();
        while !done() {
            let _ = changed.changed().await; // the sender is ours
        }
    }

    /// For whoever waits for uploads in another way.
    pub(in crate::fs) fn hurry_uploads(&self) -> Awaiting<'_> {
        self.waiting.state.lock().awaited += 1;
        let awaiting = Awaiting(&self.waiting);
        self.start_uploads();
        awaiting
    }

    /// Before a file goes to the bucket by itself: whatever was closed before it was opened has
    /// arrived, and so have its own earlier versions. Returns at once but under
    /// `--durability local`.
    pub(in crate::fs) async fn wait_turn(&self, file: &OpenFile) {
        let opened = file.state.lock().opened;
        self.await_uploads(|| self.waiting.state.lock().queue.is_published(opened)).await;
        let aside: Vec<CloseId> = file.state.lock().aside.iter().map(|(id, _)| *id).collect();
        self.await_uploads(|| {
            let state = self.waiting.state.lock();
            !aside.iter().any(|id| state.is_live(*id))
        })
        .await;
    }

    /// Waits until what was acknowledged below a directory has gone up; the error of the first that
    /// could not.
    pub(in crate::fs) async fn wait_below(&self, directory: Ino) -> Result<(), Errno> {
        let is_below = |job: &Job| self.namespace.lock().is_below(job.ino, directory);
        let mut failed = None;
        self.await_uploads(|| {
            // Taken out first: the locks of the namespace and of this are never held together.
            let jobs: Vec<Job> = self.waiting.state.lock().jobs.values().cloned().collect();
            let below: Vec<&Job> = jobs.iter().filter(|job| is_below(job)).collect();
            failed = below.iter().find(|job| job.has_failed()).map(|job| (*job).clone());
            failed.is_some() || !below.iter().any(|job| job.is_live())
        })
        .await;
        match failed {
            Some(job) => Err(job.file.state.lock().failed.map_or(Errno::EIO, |f| f.errno)),
            None => Ok(()),
        }
    }

    /// Whether something below a directory has yet to go up, or could not.
    pub(in crate::fs) fn waits_below(&self, directory: Ino) -> bool {
        let state = self.waiting.state.lock();
        let waits = state.jobs.values().filter(|job| job.is_live() || job.has_failed());
        let waits: Vec<Ino> = waits.map(|job| job.ino).collect();
        drop(state);
        let namespace = self.namespace.lock();
        waits.into_iter().any(|ino| namespace.is_below(ino, directory))
    }

    /// Waits for one close to be in the bucket or to fail.
    pub(in crate::fs) async fn wait_for(&self, id: CloseId) {
        self.await_uploads(|| !self.waiting.state.lock().is_live(id)).await;
    }

    /// Uploads all that waits; what failed once more. Returns how many files are left.
    pub(in crate::fs) async fn drain_waiting(&self) -> usize {
        self.await_uploads(|| self.waiting.state.lock().queue.is_idle()).await;
        self.retry_failed();
        self.await_uploads(|| self.waiting.state.lock().queue.is_idle()).await;
        self.waiting.len()
    }
}

impl State {
    fn is_live(&self, id: CloseId) -> bool {
        self.jobs.get(id).is_some_and(Job::is_live)
    }
}

impl Job {
    fn is_live(&self) -> bool {
        matches!(self.state, JobState::Queued | JobState::Running)
    }
}
