//! A file that is closed again and again, as a log to which each line is added by an open of its
//! own: of its versions that wait only the last goes up, and not at once.
//!
//! Owns when a version stands for the one before it, and how long one rests. Does not own the order
//! (`write::Queue`), nor how the journal notes it.
//!
//! What must hold:
//! 1. The earlier version stays until the later one is closed for good: until then its writer may
//!    be killed, and what was acknowledged before is the file again.
//! 2. Its bytes go once the journal speaks of the later version in its place, and of no other entry
//!    that has them.
//! 3. Nobody who waits waits longer because a file rests.
//!
//! Cost: a sync of the journal for each version that takes another's place; no request.

use std::sync::Arc;
use std::time::Duration;

use super::{Job, JobState, State, Waiting};
use crate::fs::Fs;
use crate::fs::handles::OpenFile;
use crate::types::Ino;
use crate::write::{CloseId, Staged};

/// After a version of a file went up, the next one that was added to it waits for others so long:
/// as long as rclone's `--vfs-write-back` waits with every file.
const REST: Duration = Duration::from_secs(5);

impl Fs {
    /// At the release of the last writer: what was closed goes up in the place of the version that
    /// was closed before it, if nothing was begun of either. The caller holds the inode's `io`.
    pub(in crate::fs) async fn supersede_earlier(&self, ino: Ino, file: &OpenFile) {
        let now = {
            let state = file.state.lock();
            state.acknowledged.filter(|_| state.holds_acknowledged() && !state.aside.is_empty())
        };
        let (Some(now), Some(journal)) = (now, self.writer.journal_if_any()) else { return };
        if self.writing_place(ino).is_some() {
            return; // the commit shows the last one alone
        }
        let Some((earlier, staged)) = self.waiting.take_place(file, now.id) else { return };
        {
            let mut state = file.state.lock();
            state.acknowledged.iter_mut().for_each(|now| now.id = earlier);
            state.aside.retain(|(id, _)| *id != earlier);
        }
        self.waiting.tell();
        match journal.take_place(earlier, now.id).await {
            Ok(()) => staged.discard(),
            // Both entries stand, and the bytes of both.
            Err(error) => tracing::error!(ino = ino.0, %error, "a version is kept that is old"),
        }
    }

    /// How long what is closed now rests: its file's last version went up a moment ago, or is going
    /// up, and the next one can then be what that made and a tail.
    pub(super) fn rest_of(&self, file: &OpenFile) -> Option<Duration> {
        let state = file.state.lock();
        if !state.is_added_to {
            return None;
        }
        if state.uploading > 0 {
            return Some(REST);
        }
        let until = state.went_up? + REST;
        until.checked_duration_since(self.clock.now()).filter(|wait| !wait.is_zero())
    }

    pub(super) fn wake_later(&self, id: CloseId, wait: Duration) {
        self.later(wait, move |fs| {
            fs.waiting.state.lock().queue.wake(id);
            fs.start_uploads();
        });
    }
}

impl Waiting {
    /// The close before `later` of the file, whose number is the later one's from now on, and its
    /// bytes.
    fn take_place(&self, file: &OpenFile, later: CloseId) -> Option<(CloseId, Arc<Staged>)> {
        let mut state = self.state.lock();
        let State { queue, jobs, .. } = &mut *state;
        let new = jobs.get(later)?.clone();
        let (earlier, old) = jobs.of(file).filter(|(id, _)| *id < later).last()?;
        let old = old.clone();
        let is_queued = |job: &Job| job.state == JobState::Queued && !job.staged.may_have_gone_up();
        let shares = |job: &Job| Arc::ptr_eq(&job.staged, &old.staged);
        let alone = jobs.of(file).filter(|(_, job)| shares(job)).count() == 1;
        let sound = is_queued(&old) && is_queued(&new) && alone;
        if !sound || !queue.take_place(earlier, later) {
            return None;
        }
        jobs.remove(later);
        new.staged.kept_as(later, earlier);
        jobs.insert(earlier, Job { before: old.before, ..new });
        Some((earlier, old.staged))
    }
}
