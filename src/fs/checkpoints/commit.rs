//! Transactions frozen, sealed and published; or lost.
//!
//! Cost: from the decision to the seal 1 swap, 1 LIST and 1 PUT; then a completion per file, in
//! parallel, and 1 PUT. Other mounts see the directory from the seal on.

use std::collections::HashMap;
use std::sync::Arc;
use std::task::Poll;

use super::{Checkpoint, Member, Transaction};
use crate::checkpoint::driver::Ended;
use crate::checkpoint::protocol::{Accept, Goal, Intent, Stop};
use crate::checkpoint::record::{Generation, RelPath, Sign, TxnId};
use crate::checkpoint::rules::Torn;
use crate::fs::Fs;
use crate::fs::error::Errno;
use crate::fs::sync::Sent;
use crate::types::{ETag, Ino, Kind};
use crate::write::{Prepared, Why};

/// How a round of commits ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Nothing of this mount is left to be published; the last generation that was.
    Published(Option<Generation>),
    /// Others' transactions are open, or a sign is missing.
    Waits,
    /// A loss keeps the generation from being committed, but by who accepts it.
    Poisoned,
    /// It is lost: what was written is in the quarantine.
    Lost,
}

/// What becomes of the directory of a transaction that is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Root {
    /// It is what it was before.
    Goes,
    /// Somebody is about to write in it again.
    Stays,
}

/// What becomes of a loser's uploads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Uploads {
    Abort,
    /// An explicit commit may still want them.
    Keep,
}

impl Fs {
    /// Freezes what is open and carries it as far as it goes. A writer that a signal killed tears
    /// it.
    pub(super) async fn commit(
        &self,
        checkpoint: &Arc<Checkpoint>,
        sign: Option<Sign>,
    ) -> Result<Progress, Errno> {
        let torn = {
            let mut state = checkpoint.state.lock();
            let explicit = sign == Some(Sign::Explicit);
            state.open.as_mut().is_some_and(|open| !explicit && open.is_torn())
        };
        if torn {
            self.tear_transaction(checkpoint, Root::Goes).await?;
            return Ok(Progress::Lost);
        }
        self.add_empty_directories(checkpoint);
        {
            let mut state = checkpoint.state.lock();
            if let Some(open) = state.open.take() {
                state.frozen.push(open);
            }
            // A sign is one for all that was frozen before it, too.
            for txn in &mut state.frozen {
                txn.heard = txn.heard.max(sign);
            }
        }
        self.advance(checkpoint).await
    }

    /// Carries every frozen transaction as far as it goes.
    pub(super) async fn advance(&self, checkpoint: &Arc<Checkpoint>) -> Result<Progress, Errno> {
        let mut progress = Progress::Published(None);
        let frozen: Vec<TxnId> = checkpoint.state.lock().frozen.iter().map(|txn| txn.id).collect();
        for id in frozen {
            progress = self.advance_one(checkpoint, id).await?;
        }
        Ok(progress)
    }

    async fn advance_one(
        &self,
        checkpoint: &Arc<Checkpoint>,
        id: TxnId,
    ) -> Result<Progress, Errno> {
        let (ended, made) = {
            let mut driver = checkpoint.driver.lock().await;
            let Some(work) = self.frozen_work(checkpoint, id) else {
                return Ok(Progress::Published(None));
            };
            let ended = driver.run(&Intent::Write(&work)).await?;
            (ended, driver.take_made())
        };
        let stop = match ended {
            Ended::Wait(_) => return Ok(Progress::Waits),
            Ended::Stop(stop) => stop,
        };
        match stop {
            Stop::Published(Some(generation)) => {
                self.published(checkpoint, id, made).await?;
                tracing::info!(name = %checkpoint.name(), generation = generation.0, "committed");
                Ok(Progress::Published(Some(generation)))
            }
            Stop::Nothing | Stop::Held | Stop::Published(None) => {
                let txn = checkpoint.state.lock().take_frozen(id);
                self.release_directories(txn.as_ref().map(|txn| txn.root));
                Ok(Progress::Published(None))
            }
            Stop::Poisoned(_) => Ok(Progress::Poisoned),
            Stop::Unreadable => Ok(Progress::Waits),
            Stop::TakenOver
            | Stop::Dropped
            | Stop::Forgotten
            | Stop::Torn
            | Stop::Frozen
            | Stop::Absent => {
                tracing::error!(name = %checkpoint.name(), ?stop, "a checkpoint was not committed");
                let lost = {
                    let mut state = checkpoint.state.lock();
                    state.lost.insert(id);
                    state.take_frozen(id)
                };
                if let Some(txn) = lost {
                    self.lose(checkpoint, txn, Uploads::Abort, Root::Goes).await;
                }
                Ok(Progress::Lost)
            }
        }
    }

    pub(super) fn frozen_work(
        &self,
        checkpoint: &Checkpoint,
        id: TxnId,
    ) -> Option<crate::checkpoint::protocol::Work> {
        let state = checkpoint.state.lock();
        let txn = state.frozen.iter().find(|txn| txn.id == id)?;
        let accept: Accept = state.accept.clone();
        let goal = Goal::Commit { sign: txn.heard, accept };
        Some(self.work(txn, state.rule.as_ref(), goal))
    }

    /// The objects are there: staged files are no longer what the mount goes by. Until each of them
    /// knows its object the transaction counts as frozen: whoever unlinks one of them must not find
    /// that nobody has it.
    async fn published(
        &self,
        checkpoint: &Arc<Checkpoint>,
        id: TxnId,
        made: HashMap<RelPath, (String, ETag)>,
    ) -> Result<(), Errno> {
        let files: Vec<(RelPath, Ino, Prepared)> = {
            let state = checkpoint.state.lock();
            let Some(txn) = state.frozen.iter().find(|txn| txn.id == id) else { return Ok(()) };
            let file = |(rel, member): (&RelPath, &Member)| {
                let (ino, prepared) = member.file.clone()?;
                Some((rel.clone(), ino, prepared))
            };
            txn.members.iter().filter_map(file).collect()
        };
        for (rel, ino, prepared) in files {
            // Another rank's word may have won the name: then its object is not what is staged
            // here.
            let etag = match made.get(&rel) {
                Some((upload, etag)) if *upload == prepared.upload => Some(etag.clone()),
                Some(_) => None,
                None => self.bucket.made_by(&prepared.key, &prepared.upload).await?,
            };
            if etag.is_none() {
                self.writer.abort(&prepared.key, &prepared.upload);
            }
            self.file_published(ino, &prepared, etag.as_ref()).await;
        }
        let Some(txn) = ({
            let mut state = checkpoint.state.lock();
            let txn = state.take_frozen(id);
            state.committed += u64::from(txn.is_some());
            txn
        }) else {
            return Ok(());
        };
        for (key, upload) in &txn.spare {
            self.writer.abort(key, upload);
        }
        self.release_directories(Some(txn.root));
        Ok(())
    }

    async fn file_published(&self, ino: Ino, prepared: &Prepared, etag: Option<&ETag>) {
        let file = self.handles.shared(ino);
        let io = file.io.lock().await;
        let staged = file.state.lock().staged.clone();
        let current = staged.as_ref().is_some_and(|staged| staged.holds(prepared));
        match (&staged, etag) {
            // What a later transaction prepared since is that one's to settle.
            (Some(staged), Some(etag)) if staged.awaits(prepared) => {
                staged.published(prepared, etag.clone());
            }
            // Replaced since, by others: what they made is asked for at the next use.
            (Some(staged), None) if current => staged.discard(),
            _ => {}
        }
        let mut namespace = self.namespace.lock();
        if let Some(inode) = namespace.get_mut(ino).filter(|inode| inode.linked) {
            inode.object = etag.cloned();
            inode.size = if current { prepared.size } else { inode.size };
            inode.staged = staged.as_ref().is_some_and(|staged| staged.is_dirty());
            namespace.touch(ino, self.clock.now());
            if etag.is_none()
                && let Some(inode) = namespace.get_mut(ino)
            {
                inode.checked = None;
            }
        }
        drop(namespace);
        if etag.is_none() && current {
            self.leave_journal_soon(&file);
            file.state.lock().staged = None;
        } else if let (Some(staged), Some(_)) = (&staged, etag) {
            let sent = match current || !staged.is_dirty() {
                true => Sent::InBucket,
                false => Sent::Prepared,
            };
            self.closed_was_sent(&file, staged, sent);
        }
        self.reader.forget(&prepared.key);
        self.settle(ino, &file);
        drop(io);
        self.record_attributes(ino);
        drop(file);
        self.handles.tidy(ino);
    }

    /// Directories of a transaction that ended are the bucket's again, but for those that still
    /// hold something that only this node has.
    pub(super) fn release_directories(&self, root: Option<Ino>) {
        let Some(root) = root else { return };
        let now = self.clock.now();
        let mut namespace = self.namespace.lock();
        let mut below: Vec<Ino> = namespace.below(root);
        below.retain(|ino| namespace.get(*ino).is_some_and(|i| i.kind == Kind::Directory));
        // The deepest first, so that one whose children are free is free.
        for ino in below.into_iter().rev() {
            if !namespace.has_local_below(ino)
                && let Some(inode) = namespace.get_mut(ino)
            {
                inode.staged = false;
                namespace.touch(ino, now);
            }
        }
    }

    /// A process was killed in the midst of it: nothing of it is ever shown, but by an explicit
    /// commit.
    pub(super) async fn tear_transaction(
        &self,
        checkpoint: &Arc<Checkpoint>,
        root: Root,
    ) -> Result<(), Errno> {
        let me = self.me.upgrade().ok_or(Errno::EIO)?;
        // Nothing is awaited before: with its last writer gone it is due otherwise.
        let Some((txn, leaving)) = self.take_lost(checkpoint, root) else { return Ok(()) };
        tracing::warn!(name = %checkpoint.name(), "torn: a process that wrote it was killed");
        let checkpoint = checkpoint.clone();
        let mut tearing = Box::pin(async move {
            let torn = me.take_away(&checkpoint, txn, root).await;
            drop(leaving);
            torn
        });
        // Begun here, to be the next at the driver: a look before would take it for what an earlier
        // life left. Goes on if nobody waits for it any more: half taken away it would stay.
        match futures::poll!(&mut tearing) {
            Poll::Ready(torn) => torn,
            Poll::Pending => tokio::spawn(tearing).await.unwrap_or(Err(Errno::EIO)),
        }
    }

    /// The same where nobody can be told that the store has not heard of it.
    pub(in crate::fs) async fn tear_untold(&self, checkpoint: &Arc<Checkpoint>) {
        if let Err(error) = self.tear_transaction(checkpoint, Root::Goes).await {
            let name = checkpoint.name();
            tracing::warn!(%name, %error, "others will see by its lease that it is torn");
        }
    }

    async fn take_away(
        &self,
        checkpoint: &Checkpoint,
        txn: Transaction,
        root: Root,
    ) -> Result<(), Errno> {
        let result = {
            let mut driver = checkpoint.driver.lock().await;
            let rule = checkpoint.state.lock().rule.clone();
            let work = self.work(&txn, rule.as_ref(), Goal::Tear);
            driver.run(&Intent::Write(&work)).await
        };
        let uploads = match &result {
            Ok(Ended::Stop(Stop::Torn)) => Uploads::Keep,
            _ => Uploads::Abort,
        };
        self.lose(checkpoint, txn, uploads, root).await;
        // Where the store is away the lease will end it: it was never prepared.
        result?;
        Ok(())
    }

    /// What is open is lost: others took it over.
    pub(super) async fn lose_open(&self, checkpoint: &Checkpoint) {
        if let Some((open, _leaving)) = self.take_lost(checkpoint, Root::Goes) {
            self.lose(checkpoint, open, Uploads::Abort, Root::Goes).await;
        }
    }

    /// What was written goes to the quarantine; the directory is what it was before. What a later
    /// transaction here wrote since is none of it.
    async fn lose(
        &self,
        checkpoint: &Checkpoint,
        mut txn: Transaction,
        uploads: Uploads,
        root: Root,
    ) {
        let later = checkpoint.is_busy();
        let told = checkpoint.state.lock().told.contains(&txn.id);
        if !txn.members.is_empty() && !told {
            checkpoint.state.lock().will_tell(std::mem::take(&mut txn.writers));
        }
        for (ino, prepared) in txn.members.values().filter_map(|member| member.file.as_ref()) {
            if uploads == Uploads::Abort {
                self.writer.abort(&prepared.key, &prepared.upload);
            }
            if !later || self.holds(*ino, prepared) {
                self.lose_file(*ino).await;
            }
        }
        for (key, upload) in &txn.spare {
            self.writer.abort(key, upload);
        }
        // What is open and never was closed has no word in the transaction yet.
        let below = self.namespace.lock().below(txn.root);
        for ino in below {
            let staged = self.namespace.lock().get(ino).is_some_and(|inode| inode.staged);
            if staged && (!later || self.was_opened_in(ino, txn.id)) {
                self.lose_file(ino).await;
            }
        }
        if later {
            return;
        }
        match root {
            Root::Goes => self.forget_directory(txn.root),
            Root::Stays => self.release_directories(Some(txn.root)),
        }
    }

    fn was_opened_in(&self, ino: Ino, id: TxnId) -> bool {
        let file = self.handles.shared_if_any(ino);
        file.is_some_and(|file| file.state.lock().written_in == Some(id))
    }

    /// Whether the content of a staged file is still what was prepared so.
    fn holds(&self, ino: Ino, prepared: &Prepared) -> bool {
        let Some(file) = self.handles.shared_if_any(ino) else { return false };
        let state = file.state.lock();
        state.writers == 0 && state.staged.as_ref().is_some_and(|staged| staged.holds(prepared))
    }

    async fn lose_file(&self, ino: Ino) {
        let file = self.handles.shared(ino);
        let io = file.io.lock().await;
        self.give_up_closed(&file, Why::NotCommitted);
        {
            let mut namespace = self.namespace.lock();
            let mut state = file.state.lock();
            if let Some(inode) = namespace.get_mut(ino) {
                if inode.kind == Kind::Directory {
                    return;
                }
                let held = state.handles() > 0;
                if held {
                    state.fail(Errno::EIO);
                    state.lost = true;
                }
                let lost = state.staged.take_if(|_| !held);
                drop(state);
                drop(lost); // dirty and let go: the write path quarantines it
                inode.staged = false;
                inode.checked = None;
                if inode.object.is_none() || held {
                    namespace.detach(ino);
                }
            }
        }
        drop(io);
        drop(file);
        self.handles.tidy(ino);
    }

    /// A directory of which the bucket may have nothing is asked for at its next use.
    pub(super) fn forget_directory(&self, root: Ino) {
        self.release_directories(Some(root));
        let mut namespace = self.namespace.lock();
        if namespace.has_local_below(root) {
            return;
        }
        let name = namespace.name_of(root);
        namespace.detach(root);
        drop(namespace);
        self.kernel_forgets(name);
    }
}

impl Transaction {
    /// Whether a process that wrote in it was killed.
    pub fn is_torn(&mut self) -> bool {
        if self.writers.was_one_killed() {
            self.torn = Torn::Yes;
        }
        self.torn == Torn::Yes
    }
}
