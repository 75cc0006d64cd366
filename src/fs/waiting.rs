//! Files that were acknowledged from the local disk and wait for the bucket
//! (`--durability local`).
//!
//! Owns their uploads: which run, and what follows of each. Does not own who waits for them
//! (`waiters`), which version stands for an earlier one (`superseding`), the order
//! (`write::Queue`, pure), the acknowledging (`acknowledge`), nor what a dead daemon left
//! (`recovery`).
//!
//! What must hold:
//! 1. An entry of the journal goes once its bytes are in the bucket, a later close of the file
//!    stands in it, or its user removed the file: whoever removes or renames a file waits until
//!    that is on the disk.
//! 2. What was acknowledged does not change before it is in the bucket: who opens such a file to
//!    write it gets a copy, or waits.
//! 3. An upload holds no inode's `io`. Whoever changes a name or an object takes it by
//!    [`OpenFile::quiet`], and so waits for the upload that runs.
//! 4. A failure sticks to its file, holds nobody else up, and is tried again while the store was
//!    only away, and at unmount: then only over what the file replaced.
//! 5. Uploads begin in a lull of local writing (`write`), or as soon as anybody waits for one. A
//!    file that is added to again and again rests in between.

mod jobs;
mod superseding;
mod waiters;

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;

use super::Fs;
use super::error::Errno;
use super::handles::OpenFile;
use super::sync::Sent;
use crate::bucket::Condition;
use crate::checkpoint::rules::pointers::CommitRecord;
use crate::types::{ETag, Ino, Key};
use crate::write::{Base, Before, CloseId, Next, Queue, Role, Staged, Uploaded, Why};
use jobs::Jobs;

/// Uploads of closed files at a time; parts have a bound of their own.
const UPLOADS_MAX: usize = 16;
/// With so many files waiting, a close waits for the bucket: each holds an inode and a descriptor.
pub(super) const FILES_MAX: usize = 10_000;
/// How long after a failure that may pass the files that failed are tried again.
const RETRY_S: Duration = Duration::from_secs(30);

/// What waits.
#[derive(Debug)]
pub(super) struct Waiting {
    state: Mutex<State>,
    /// Changes whenever something is done or has failed.
    changed: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    queue: Queue,
    jobs: Jobs,
    running: usize,
    retry_planned: bool,
    /// Those who wait for an upload: while there are any, none gives way.
    awaited: usize,
    look_planned: bool,
}

/// One closed file.
#[derive(Debug, Clone)]
pub(super) struct Job {
    pub ino: Ino,
    pub file: Arc<OpenFile>,
    /// The very version.
    pub staged: Arc<Staged>,
    pub before: Before,
    state: JobState,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum JobState {
    Queued,
    Running,
    /// It failed once: another node may have changed the object since.
    Failed,
    /// Its parts are in the store, and its checkpoint directory is not published yet.
    Prepared,
    /// A later close of the file stands for it; only its entry is left.
    Superseded,
}

/// How an upload ended.
enum Outcome {
    InBucket(ETag),
    Prepared,
    /// Nothing of it is wanted any more.
    Gone,
    /// While it waited for its file a later version came to stand for it.
    StoodFor,
}

impl Waiting {
    pub fn new() -> Self {
        Self { state: Mutex::default(), changed: watch::Sender::new(0) }
    }

    /// What a file that is opened now comes after.
    pub fn now(&self) -> CloseId {
        self.state.lock().queue.now()
    }

    pub fn number(&self) -> CloseId {
        self.state.lock().queue.number()
    }

    /// Before the first close: it comes after those an earlier daemon left.
    pub fn begin_after(&self, last: CloseId) {
        self.state.lock().queue = Queue::after(last);
    }

    pub fn len(&self) -> usize {
        self.state.lock().queue.len()
    }

    fn tell(&self) {
        self.changed.send_modify(|n| *n += 1);
    }

    /// The entries of one file, with what each replaced.
    pub fn of(&self, file: &OpenFile) -> Vec<(CloseId, Job)> {
        let state = self.state.lock();
        state.jobs.of(file).map(|(id, job)| (id, job.clone())).collect()
    }
}

impl State {
    /// Takes a close out: its entry of the journal is to go.
    fn take(&mut self, id: CloseId) -> Option<Job> {
        self.queue.done(id);
        let job = self.jobs.remove(id)?;
        job.staged.kept_no_more(id);
        Some(job)
    }

    /// Takes out all closes of a file up to one, but for what waits for its checkpoint directory.
    fn take_past(&mut self, file: &OpenFile, last: CloseId) -> Vec<CloseId> {
        let past = self.jobs.of(file).filter(|(id, _)| *id <= last);
        let past = past.filter(|(_, job)| job.state != JobState::Prepared);
        let past: Vec<CloseId> = past.map(|(id, _)| id).collect();
        past.iter().for_each(|id| drop(self.take(*id)));
        past
    }
}

impl Job {
    pub fn new(ino: Ino, file: Arc<OpenFile>, staged: Arc<Staged>, before: Before) -> Self {
        Self { ino, file, staged, before, state: JobState::Queued }
    }

    pub fn was_begun(&self) -> bool {
        matches!(self.state, JobState::Running | JobState::Failed)
    }

    pub fn has_failed(&self) -> bool {
        self.state == JobState::Failed
    }

    pub fn is_superseded(&self) -> bool {
        self.state == JobState::Superseded
    }
}

impl Fs {
    /// Enters an acknowledged file; earlier closes of the file in `superseded` go up no more.
    pub(super) fn enter(
        &self,
        id: CloseId,
        opened: CloseId,
        (key, role): (Key, Role),
        job: Job,
        superseded: &[(CloseId, Superseded)],
    ) {
        let rest = self.rest_of(&job.file);
        let mut state = self.waiting.state.lock();
        for (old, how) in superseded {
            state.queue.done(*old);
            match (how, state.jobs.get_mut(*old)) {
                (Superseded::EntryStays, Some(job)) => job.state = JobState::Superseded,
                (Superseded::EntryGone, _) => drop(state.jobs.remove(*old)),
                (Superseded::EntryStays, None) => {}
            }
        }
        state.queue.closed(id, key, opened, role);
        let rest = rest.filter(|_| state.queue.rest(id));
        state.jobs.insert(id, job);
        drop(state);
        rest.into_iter().for_each(|wait| self.wake_later(id, wait));
        self.waiting.tell();
        self.start_uploads();
    }

    /// Starts what may go up now.
    pub(super) fn start_uploads(&self) {
        loop {
            let (next, job, again) = {
                let mut state = self.waiting.state.lock();
                if state.running >= UPLOADS_MAX || self.gives_way(&mut state) {
                    return;
                }
                if state.awaited > 0 || self.writer.is_pressed() {
                    state.queue.wake_all();
                }
                let Some(next) = state.queue.next_ready() else { return };
                let (Next::Upload(id) | Next::Refuse(id)) = next;
                let Some(job) = state.jobs.get_mut(id) else {
                    state.queue.done(id);
                    continue;
                };
                let again = job.state == JobState::Failed;
                job.state = JobState::Running;
                let job = job.clone();
                state.running += 1;
                (next, job, again)
            };
            let Some(me) = self.me.upgrade() else { return };
            tokio::spawn(async move {
                let (id, result) = match next {
                    Next::Upload(id) => (id, me.upload_closed(id, &job, again).await),
                    Next::Refuse(id) => (id, Err(Errno::EIO)),
                };
                me.ended(id, &job, result).await;
            });
        }
    }

    /// Whether uploads give way to writers; then somebody looks again by itself.
    fn gives_way(&self, state: &mut State) -> bool {
        let Some(wait) = self.writer.gives_way().filter(|_| state.awaited == 0) else {
            return false;
        };
        if !std::mem::replace(&mut state.look_planned, true) {
            self.later(wait, |fs| {
                fs.waiting.state.lock().look_planned = false;
                fs.start_uploads();
            });
        }
        true
    }

    /// Does something after a while, if the mount is still there.
    fn later(&self, wait: Duration, act: impl FnOnce(&Self) + Send + 'static) {
        let me = self.me.clone();
        tokio::spawn(async move {
            tokio::time::sleep(wait).await;
            if let Some(fs) = me.upgrade() {
                act(&fs);
            }
        });
    }

    async fn upload_closed(&self, id: CloseId, job: &Job, again: bool) -> Result<Outcome, Errno> {
        let _work = self.work_at(job.ino).await;
        let io = job.file.io.lock().await;
        match self.waiting.state.lock().jobs.get(id) {
            None => return Ok(Outcome::Gone),
            Some(job) if job.is_superseded() => return Ok(Outcome::StoodFor),
            Some(_) => {}
        }
        let current = job.is_current();
        if current && self.writing_place(job.ino).is_some() {
            if again {
                job.file.state.lock().failed = None;
            }
            self.sync_locked(job.ino, &job.file).await?;
            return Ok(Outcome::Prepared);
        }
        if current && self.to_upload(job.ino, &job.file).is_none() {
            let made = job.staged.last_uploaded();
            return Ok(made.map_or(Outcome::Gone, |made| Outcome::InBucket(made.etag)));
        }
        if current && job.file.state.lock().short {
            return Err(Errno::ENOSPC);
        }
        let condition = if again { self.unless_changed(job.ino) } else { Condition::Always };
        job.file.state.lock().uploading += 1;
        // Let go after what follows of the upload is known: else who waits for it would find the
        // object in the bucket and not in the inode, and leave it there under the old name.
        let uploading = Uploading(&job.file);
        drop(io);
        let key = self.namespace.lock().key(job.ino);
        self.complete_copies(|source| key.as_ref() == Some(source)).await;
        let result = self.upload_at(job.ino, &job.file, &job.staged, &condition).await;
        let io = job.file.io.lock().await;
        let outcome = self.learn_upload(job, key.as_ref(), result);
        drop(uploading);
        drop(io);
        outcome
    }

    /// The caller holds the inode's `io`.
    fn learn_upload(
        &self,
        job: &Job,
        key: Option<&Key>,
        result: Result<Uploaded, Errno>,
    ) -> Result<Outcome, Errno> {
        match result {
            Ok(uploaded) => {
                let etag = uploaded.etag.clone();
                if job.is_current() {
                    job.file.state.lock().failed = None;
                    self.uploaded(job.ino, &job.staged, uploaded);
                } else {
                    self.earlier_version_uploaded(job, uploaded);
                }
                Ok(Outcome::InBucket(etag))
            }
            Err(error) => {
                let key = key.map(Key::as_str).unwrap_or_default();
                tracing::error!(key, %error, "an acknowledged file could not be uploaded");
                Err(error)
            }
        }
    }

    /// The bucket has a version that is being written over here.
    fn earlier_version_uploaded(&self, job: &Job, uploaded: Uploaded) {
        let mut namespace = self.namespace.lock();
        let key = namespace.key(job.ino);
        if let Some(inode) = namespace.get_mut(job.ino).filter(|inode| inode.linked) {
            inode.object = Some(uploaded.etag.clone());
        }
        namespace.touch(job.ino, self.clock.now());
        drop(namespace);
        let Some(key) = key else { return };
        self.reader.forget(&key);
        let Some(content) = job.staged.content() else { return };
        if let Some(now) = job.file.state.lock().staged.clone() {
            let Uploaded { etag, size, .. } = uploaded.clone();
            now.follow(Base { key: key.clone(), etag, size }, &content);
        }
        self.known.lock().learn(key, uploaded.etag, content);
    }

    /// What follows of an upload.
    async fn ended(&self, id: CloseId, job: &Job, result: Result<Outcome, Errno>) {
        let io = job.file.io.lock().await;
        match result {
            Ok(Outcome::InBucket(etag)) => self.closed_is_in_bucket(id, &job.file, etag),
            Ok(Outcome::Prepared) => {
                self.closed_is_prepared(id, &job.file);
                self.writer_is_gone_from(job.ino); // as far as its directory is concerned
            }
            Ok(Outcome::Gone) => self.forget_closed(id),
            Ok(Outcome::StoodFor) => {} // its entry goes with the later one's
            Err(errno) => {
                let mut state = self.waiting.state.lock();
                state.queue.failed(id);
                let wanted = state.jobs.get_mut(id).filter(|job| !job.is_superseded());
                let is_wanted = wanted.map(|job| job.state = JobState::Failed).is_some();
                drop(state);
                let mut state = job.file.state.lock();
                if state.acknowledged.is_some_and(|now| now.id == id) {
                    state.fail(errno);
                }
                drop(state);
                if is_wanted {
                    self.plan_retry(); // also of a version that is being written over
                }
            }
        }
        self.waiting.state.lock().running -= 1;
        self.waiting.tell();
        self.settle(job.ino, &job.file);
        drop(io);
        self.start_uploads();
        self.handles.tidy(job.ino);
    }

    /// The entry goes, and with it those of all earlier closes of the file: none of them may come
    /// again. The caller holds the inode's `io`, and no upload of the file runs without it.
    fn closed_is_in_bucket(&self, id: CloseId, file: &OpenFile, etag: ETag) {
        let past = {
            let mut state = self.waiting.state.lock();
            state.take(id);
            state.jobs.went_up(file, id, &etag);
            state.take_past(file, id)
        };
        if let Some(journal) = self.writer.journal_if_any() {
            journal.published(id, etag);
        }
        {
            let mut state = file.state.lock();
            state.went_up = Some(self.clock.now());
            state.acknowledged.take_if(|now| now.id == id);
            state.aside.retain(|(aside, _)| *aside != id);
        }
        self.let_past_go(file, past);
    }

    /// A content that is later than all that stand aside is in the bucket.
    fn later_is_in_bucket(&self, file: &OpenFile) {
        let last = file.state.lock().aside.last().map(|(id, _)| *id);
        let Some(last) = last else { return };
        let past = self.waiting.state.lock().take_past(file, last);
        self.let_past_go(file, past);
    }

    fn let_past_go(&self, file: &OpenFile, past: Vec<CloseId>) {
        let mut state = file.state.lock();
        let aside: Vec<_> = state.aside.extract_if(.., |(id, _)| past.contains(id)).collect();
        drop(state);
        aside.iter().for_each(|(_, staged)| staged.discard());
        if let Some(journal) = self.writer.journal_if_any() {
            journal.remove_soon(past);
        }
        self.waiting.tell();
    }

    /// What is there of a file now was sent, whoever asked for it. The caller holds `io`.
    pub(super) fn closed_was_sent(&self, file: &OpenFile, staged: &Staged, sent: Sent) {
        let now = file.state.lock().acknowledged;
        if sent == Sent::Prepared {
            let now = now.filter(|_| staged.is_prepared());
            return now.into_iter().for_each(|now| self.closed_is_prepared(now.id, file));
        }
        // It may be dirty again: what is older than what went up must not replace it all the same.
        self.later_is_in_bucket(file);
        let made = staged.last_uploaded().filter(|_| !staged.is_dirty());
        if let Some((made, now)) = made.zip(now) {
            self.closed_is_in_bucket(now.id, file, made.etag);
        }
    }

    /// It goes up no more, but its entry stays until a later close of the file is entered.
    pub(super) fn hold_back(&self, id: CloseId) {
        let mut state = self.waiting.state.lock();
        state.queue.done(id);
        if let Some(job) = state.jobs.get_mut(id) {
            job.state = JobState::Superseded;
        }
        drop(state);
        self.waiting.tell();
    }

    fn closed_is_prepared(&self, id: CloseId, file: &OpenFile) {
        let mut waiting = self.waiting.state.lock();
        waiting.queue.done(id);
        if let Some(job) = waiting.jobs.get_mut(id) {
            job.state = JobState::Prepared;
        }
        drop(waiting);
        if let Some(now) = file.state.lock().acknowledged.as_mut().filter(|now| now.id == id) {
            now.unprepared = false;
        }
    }

    pub(super) fn forget_closed(&self, id: CloseId) {
        let job = self.waiting.state.lock().take(id);
        if let Some(job) = job {
            job.file.state.lock().acknowledged.take_if(|now| now.id == id);
        }
        if let Some(journal) = self.writer.journal_if_any() {
            journal.remove_soon(vec![id]);
        }
    }

    /// The file has no place in the journal any more: it was removed, renamed or uploaded by other
    /// means, or is lost with its checkpoint. Returns once that is on the disk; at once if it had
    /// none. The caller holds the inode's `io`.
    pub(super) async fn leave_journal(&self, file: &OpenFile) -> Result<(), Errno> {
        let ids = self.take_out(file);
        match self.writer.journal_if_any() {
            Some(journal) if !ids.is_empty() => journal.remove(ids).await.map_err(|_| Errno::EIO),
            // What was uploaded a moment ago may stand there still, and must not come back.
            Some(journal) => journal.settled().await.map_err(|_| Errno::EIO),
            None => Ok(()),
        }
    }

    /// The same; nobody waits.
    pub(super) fn leave_journal_soon(&self, file: &OpenFile) {
        let ids = self.take_out(file);
        if let Some(journal) = self.writer.journal_if_any() {
            journal.remove_soon(ids);
        }
    }

    /// What was acknowledged of a file is lost with its checkpoint directory: it goes to quarantine
    /// once it is let go.
    pub(super) fn give_up_closed(&self, file: &OpenFile, why: Why) {
        let jobs = self.waiting.of(file);
        jobs.iter().for_each(|(_, job)| job.staged.give_up(why));
        let mut state = file.state.lock();
        state.staged.iter().for_each(|staged| staged.give_up(why));
        let aside = std::mem::take(&mut state.aside);
        drop(state);
        self.leave_journal_soon(file);
        drop((jobs, aside));
    }

    fn take_out(&self, file: &OpenFile) -> Vec<CloseId> {
        let jobs = self.waiting.of(file);
        let mut waiting = self.waiting.state.lock();
        jobs.iter().for_each(|(id, _)| drop(waiting.take(*id)));
        drop(waiting);
        let mut state = file.state.lock();
        state.acknowledged = None;
        let aside = std::mem::take(&mut state.aside);
        drop(state);
        aside.iter().for_each(|(_, staged)| staged.discard());
        if !jobs.is_empty() {
            self.waiting.tell();
            self.start_uploads();
        }
        jobs.into_iter().map(|(id, _)| id).collect()
    }

    fn plan_retry(&self) {
        if std::mem::replace(&mut self.waiting.state.lock().retry_planned, true) {
            return;
        }
        self.later(RETRY_S, |fs| {
            fs.waiting.state.lock().retry_planned = false;
            fs.retry_failed();
        });
    }

    fn retry_failed(&self) {
        self.waiting.state.lock().queue.retry();
        self.start_uploads();
    }

    /// Whether the file's content waits, as an entry of the journal that is tried at the next
    /// mount.
    pub(super) fn is_kept_for_later(&self, file: &OpenFile) -> bool {
        let acknowledged = file.state.lock().acknowledged;
        acknowledged.is_some_and(|now| self.waiting.state.lock().jobs.contains(now.id))
    }
}

/// What becomes of the entry of a close that a later one stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Superseded {
    /// It was removed as the later one was put.
    EntryGone,
    /// It was begun, and may be in the bucket: the later one replaces what it made.
    EntryStays,
}

impl Job {
    fn is_current(&self) -> bool {
        let state = self.file.state.lock();
        state.staged.as_ref().is_some_and(|staged| Arc::ptr_eq(staged, &self.staged))
    }
}

/// While one lives, nobody else changes the object.
struct Uploading<'a>(&'a OpenFile);

impl Drop for Uploading<'_> {
    fn drop(&mut self) {
        self.0.state.lock().uploading -= 1;
        self.0.idle.notify_waiters();
    }
}

/// What a closed file is to others.
pub(super) fn role_of(key: &Key, in_transaction: bool) -> Role {
    let name = key.as_str().rsplit('/').next().unwrap_or_default();
    match CommitRecord::of(name) {
        _ if in_transaction => Role::Hidden,
        Some(_) => Role::Pointer,
        None => Role::Data,
    }
}
