//! Transactions begun and added to.
//!
//! Cost: the first write in a directory 1 LIST and 1 PUT; a file's close its upload, and for each
//! [`WRITTEN_DOWN_MIN`] of them 1 PUT more.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::commit::Root;
use super::observe::LOOK_AGAIN;
use super::waiting::Changed;
use super::{Checkpoint, Member, Place, State, Transaction, Writers};
use crate::checkpoint::driver::{Driver, Ended};
use crate::checkpoint::protocol::{Goal, Intent, Stop, Work};
use crate::checkpoint::record::{
    Cause, Entry, Head, Loss, RelPath, State as Standing, TxnId, Upload, What,
};
use crate::checkpoint::rules::{Event, Heard, Rule, Torn};
use crate::clock::ulid;
use crate::fs::Fs;
use crate::fs::error::Errno;
use crate::fs::handles::OpenFile;
use crate::types::{Ino, Kind};
use crate::write::Prepared;

/// So many closed files wait to be written down together: as many as a head takes by itself, so
/// that a small directory needs no record of its files before it is frozen.
const WRITTEN_DOWN_MIN: usize = 64;

/// Who begins a transaction.
#[derive(Debug, Clone, Copy)]
struct By {
    /// 0: not known.
    thread: u32,
    /// The transaction that what is written comes from.
    after: Option<TxnId>,
}

impl Fs {
    /// The place of an inode that is about to be written, if that is to be in a transaction.
    pub(in crate::fs) fn writing_place(&self, ino: Ino) -> Option<Place> {
        self.place_of_written(ino).filter(|place| self.takes_part(place))
    }

    /// The same for a name that is to be made.
    pub(in crate::fs) fn writing_place_of_new(
        &self,
        parent: Ino,
        name: &crate::types::Name,
        kind: Kind,
    ) -> Option<Place> {
        self.place_of_new(parent, name, kind).filter(|place| self.takes_part(place))
    }

    /// A directory that only records know takes part while a transaction is open in it.
    fn takes_part(&self, place: &Place) -> bool {
        place.rule.is_some() || place.checkpoint.is_busy()
    }

    /// Sees to it that a transaction of ours is open where `place` says, and that the process of
    /// `thread` counts as one of its writers. Returns the transaction.
    pub(in crate::fs) async fn begin(&self, place: &Place, thread: u32) -> Result<TxnId, Errno> {
        self.finish_renames_of(&place.checkpoint).await?;
        self.end_dead_attempt(&place.checkpoint).await?;
        self.end_complete(&place.checkpoint).await?;
        self.join(place, By { thread, after: None }).await
    }

    /// The same for whoever holds the `io` of an inode, and so can't end what a killed process
    /// left: that wants the `io` of everything in it. EIO where the directory must be torn first,
    /// and where the transaction that it comes `after` is lost.
    pub(super) async fn begin_holding_io(
        &self,
        place: &Place,
        after: Option<TxnId>,
    ) -> Result<TxnId, Errno> {
        if self.is_dead_attempt(&place.checkpoint) {
            place.checkpoint.wake.notify_one();
            return Err(Errno::EIO);
        }
        self.finish_renames_of(&place.checkpoint).await?;
        self.join(place, By { thread: 0, after }).await
    }

    async fn join(&self, place: &Place, by: By) -> Result<TxnId, Errno> {
        let deadline = self.clock.now() + self.checkpoints.config().commit_wait;
        loop {
            if let Some(id) = self.joined(place, by.thread) {
                return Ok(id);
            }
            if let Some(id) = self.begin_new(place, by).await? {
                return Ok(id);
            }
            if self.clock.now() >= deadline {
                return Err(Errno::ETIMEDOUT);
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// `None`: the generation before has its sign, and others' parts of it are still open.
    async fn begin_new(&self, place: &Place, by: By) -> Result<Option<TxnId>, Errno> {
        let checkpoint = &place.checkpoint;
        let mut driver = checkpoint.driver.lock().await;
        if let Some(id) = self.joined(place, by.thread) {
            return Ok(Some(id));
        }
        let id = ulid(&*self.clock).parse().map_err(|_| Errno::EIO)?;
        let mut open = Transaction {
            id,
            begun: false,
            root: place.root,
            written_as: place.written_as.clone(),
            members: BTreeMap::new(),
            changed: Changed::at(self.uptime()),
            heard: None,
            torn: Torn::No,
            renewed: self.clock.now(),
            writers: Writers::default(),
            spare: Vec::new(),
        };
        open.writers.add(by.thread);
        let rule = place.rule.clone().or_else(|| checkpoint.state.lock().rule.clone());
        let rule = rule.or_else(|| self.checkpoints.rule_without_name());
        self.freeze_first(checkpoint, &mut driver).await?;
        driver.look().await?;
        if self.is_part_of_a_loss(checkpoint, &driver, by) {
            tracing::error!(name = %checkpoint.name(), "a save that lost a part writes on");
            return Err(Errno::EIO);
        }
        let work = self.work(&open, rule.as_ref(), Goal::Hold);
        match driver.go_on(&Intent::Write(&work)).await? {
            Ended::Stop(Stop::Held) => open.begun = true,
            Ended::Wait(_) => return Ok(None),
            ended => {
                tracing::error!(name = %checkpoint.name(), ?ended, "no transaction was begun");
                return Err(Errno::EIO);
            }
        }
        {
            let mut state = checkpoint.state.lock();
            state.rule = rule;
            state.open = Some(open);
        }
        drop(driver);
        if !place.rel.is_root() {
            self.mark_staged(place.root); // this node sees what it writes at once
        }
        self.tend_to(checkpoint);
        Ok(Some(id))
    }

    /// Whether somebody writes on in a save of which a part is lost. What comes from now on would
    /// be committed without that part, so he is told, once: EIO. Whoever wrote none of it is a
    /// retry, and begins anew.
    fn is_part_of_a_loss(&self, checkpoint: &Checkpoint, driver: &Driver, by: By) -> bool {
        let lost = |head: &Head| head.poisons() || head.was_lost();
        let live = driver.seen().live().filter(|(_, head)| lost(&head.record));
        let losses: Vec<(TxnId, &Head)> = live.map(|(txn, head)| (txn, &*head.record)).collect();
        let mut state = checkpoint.state.lock();
        if let Some(untold) = state.untold.iter_mut().find(|w| w.includes(by.thread)) {
            untold.forget(by.thread);
            return true;
        }
        if losses.iter().all(|(loss, _)| state.told.contains(loss)) {
            return false;
        }
        // Nobody knows who wrote before this mount came back: whoever was there then may have.
        let ours = |head: &Head| {
            let restart = head.state == Standing::Aborted { cause: Cause::Restart };
            restart && head.writer == *self.checkpoints.writer()
        };
        let left = losses.iter().any(|(_, head)| ours(head));
        let frozen = state.frozen.iter();
        let wrote = frozen.clone().any(|txn| Some(txn.id) == by.after)
            || frozen.clone().any(|txn| txn.writers.includes(by.thread))
            || (left && (self.checkpoints.config().is_older)(by.thread));
        if wrote {
            state.told.extend(losses.iter().map(|(loss, _)| *loss));
        }
        wrote
    }

    /// Nothing of a process that was killed is listed, here either, once its parent knows.
    pub(in crate::fs) async fn end_dead_attempts(&self) {
        for checkpoint in self.checkpoints.busy() {
            let torn = {
                let mut state = checkpoint.state.lock();
                let open = state.open.as_mut();
                open.is_some_and(|open| open.is_torn() && !open.members.is_empty())
            };
            if torn {
                self.tear_untold(&checkpoint).await;
            }
        }
    }

    /// What is frozen here is so in the bucket, too, before the next begins: an open transaction of
    /// ours that is not the one that begins counts there as left by an earlier life.
    async fn freeze_first(
        &self,
        checkpoint: &Checkpoint,
        driver: &mut Driver,
    ) -> Result<(), Errno> {
        for id in self.own(checkpoint) {
            let heads = &driver.seen().records().heads;
            let open = heads.get(&id).is_some_and(|head| head.record.state == Standing::Open);
            if let Some(work) = self.frozen_work(checkpoint, id).filter(|_| open) {
                driver.run(&Intent::Write(&work)).await?;
            }
        }
        Ok(())
    }

    /// A retry must not join what a killed process left: that is torn first.
    async fn end_dead_attempt(&self, checkpoint: &Arc<Checkpoint>) -> Result<(), Errno> {
        if self.is_dead_attempt(checkpoint) {
            self.tear_transaction(checkpoint, Root::Stays).await?;
        }
        Ok(())
    }

    /// What has its sign is complete: what is written from now on is of the next.
    async fn end_complete(&self, checkpoint: &Arc<Checkpoint>) -> Result<(), Errno> {
        let signed = {
            let state = checkpoint.state.lock();
            let immediate = state.rule.as_ref().is_some_and(Rule::is_immediate);
            let open = state.open.as_ref().filter(|_| immediate);
            open.and_then(|open| Some((open.root, open.heard?)))
        };
        match signed {
            Some((root, sign)) if self.writers_below(root) == (0, false) => {
                self.commit(checkpoint, Some(sign)).await.map(drop)
            }
            _ => Ok(()),
        }
    }

    /// Whether a killed process wrote in what is open. One that made nothing tears nothing.
    fn is_dead_attempt(&self, checkpoint: &Checkpoint) -> bool {
        let mut state = checkpoint.state.lock();
        let Some(open) = &mut state.open else { return false };
        if !open.is_torn() {
            return false;
        }
        if open.members.is_empty() {
            open.torn = Torn::No;
            open.writers.forget_killed();
        }
        !open.members.is_empty()
    }

    fn joined(&self, place: &Place, thread: u32) -> Option<TxnId> {
        let mut state = place.checkpoint.state.lock();
        let open = state.open.as_mut()?;
        open.writers.add(thread);
        open.changed = Changed::at(self.uptime());
        Some(open.id)
    }

    /// A directory may be complete now that nobody writes a file of it any more.
    pub(in crate::fs) fn writer_is_gone_from(&self, ino: Ino) {
        if let Some(place) = self.place(ino).filter(|place| place.checkpoint.is_busy()) {
            place.checkpoint.wake.notify_one();
        }
    }

    /// What the protocol is told of a transaction.
    pub(super) fn work(&self, txn: &Transaction, rule: Option<&Rule>, goal: Goal) -> Work {
        let files = txn.members.iter().map(|(rel, member)| (rel.clone(), member.entry.clone()));
        Work {
            txn: txn.id,
            begun: txn.begun,
            files: files.collect(),
            goal,
            rule: rule.map(|rule| rule.name.clone()).unwrap_or_default(),
            loss: rule.map_or(Loss::Poison, |rule| rule.loss),
            lease_ms: self.checkpoints.config().lease.as_millis() as u64,
            written_as: txn.written_as.clone(),
        }
    }

    /// Makes an inode the directory of the transaction that was begun for it.
    pub(in crate::fs) fn root_is(&self, checkpoint: &Checkpoint, root: Ino) {
        if let Some(open) = &mut checkpoint.state.lock().open {
            open.root = root;
        }
    }

    /// A file's bytes go to the store, and what it becomes into the transaction. The caller holds
    /// the inode's `io`.
    pub(in crate::fs) async fn prepare_file(
        &self,
        place: &Place,
        ino: Ino,
        file: &OpenFile,
    ) -> Result<(), Errno> {
        let Some(staged) = file.state.lock().staged.clone() else { return Ok(()) };
        staged.set_key(place.key());
        if staged.is_prepared() && self.is_member(place, ino) {
            return Ok(());
        }
        if file.state.lock().short {
            file.state.lock().fail(Errno::ENOSPC);
            return Err(Errno::ENOSPC);
        }
        // The upload may outlive the transaction: a file of one that is lost meanwhile must not be
        // the first of the next, which would be committed with that file alone.
        let opened_in = file.state.lock().written_in;
        let within = self.begin_holding_io(place, opened_in).await?;
        let opened_in = *file.state.lock().written_in.get_or_insert(within);
        match staged.prepare().await {
            Ok(prepared) => {
                file.state.lock().failed = None;
                self.add_file(place, ino, prepared, &[opened_in, within]).await
            }
            Err(error) => {
                tracing::error!(ino = ino.0, %error, "an upload failed");
                let errno = Errno::from(error);
                file.state.lock().fail(errno);
                Err(errno)
            }
        }
    }

    fn is_member(&self, place: &Place, ino: Ino) -> bool {
        let state = place.checkpoint.state.lock();
        let mut all = state.frozen.iter().chain(&state.open);
        all.any(|txn| {
            let member = txn.members.get(&place.rel).and_then(|member| member.file.as_ref());
            member.is_some_and(|(of, _)| *of == ino)
        })
    }

    /// `after`: the transactions that the file's content comes from.
    async fn add_file(
        &self,
        place: &Place,
        ino: Ino,
        prepared: Prepared,
        after: &[TxnId],
    ) -> Result<(), Errno> {
        let entry = self.entry_of(place, ino, &prepared)?;
        let upload = (prepared.key.clone(), prepared.upload.clone());
        let member = Member { entry, file: Some((ino, prepared)) };
        if let Err(error) = self.add(place, member, after).await {
            self.writer.abort(&upload.0, &upload.1);
            return Err(error);
        }
        if let Some(name) = place.direct() {
            self.hear(&place.checkpoint, &Event::Closed(name));
        }
        Ok(())
    }

    fn entry_of(&self, place: &Place, ino: Ino, prepared: &Prepared) -> Result<Entry, Errno> {
        let namespace = self.namespace.lock();
        let inode = namespace.get(ino).ok_or(Errno::ESTALE)?;
        let upload = Upload { id: prepared.upload.clone(), parts: prepared.parts.clone() };
        let what = match inode.kind {
            Kind::Symlink => What::Symlink { upload },
            _ => What::File { size: prepared.size, crc: prepared.crc, upload, inline: None },
        };
        let mtime = crate::namespace::attrs::nanos(prepared.modified);
        Ok(Entry {
            mode: Some(inode.attributes.mode),
            mtime_ns: Some(mtime),
            ..Entry::new(place.rel.clone(), what)
        })
    }

    /// A word on one name, in the transaction that is open there or a new one. EIO if one that it
    /// comes `after` is lost.
    pub(super) async fn add(
        &self,
        place: &Place,
        member: Member,
        after: &[TxnId],
    ) -> Result<(), Errno> {
        let is_lost = |state: &State| after.iter().any(|id| state.lost.contains(id));
        if is_lost(&place.checkpoint.state.lock()) {
            return Err(Errno::EIO);
        }
        self.begin_holding_io(place, after.first().copied()).await?;
        let unwritten = {
            let mut state = place.checkpoint.state.lock();
            if is_lost(&state) {
                return Err(Errno::EIO);
            }
            let Some(open) = &mut state.open else { return Err(Errno::EIO) };
            open.changed = Changed::at(self.uptime());
            let old = open.members.insert(place.rel.clone(), member);
            if let Some((_, prepared)) = old.and_then(|old| old.file) {
                open.spare.push((prepared.key, prepared.upload));
            }
            open.members.len()
        };
        place.checkpoint.wake.notify_one();
        if unwritten.is_multiple_of(WRITTEN_DOWN_MIN) {
            self.write_down(&place.checkpoint).await?;
        }
        Ok(())
    }

    /// Writes down what is closed: for a directory of many files, so that freezing it is quick.
    async fn write_down(&self, checkpoint: &Arc<Checkpoint>) -> Result<(), Errno> {
        let mut driver = checkpoint.driver.lock().await;
        let work = {
            let state = checkpoint.state.lock();
            let Some(open) = &state.open else { return Ok(()) };
            self.work(open, state.rule.as_ref(), Goal::Hold)
        };
        driver.run(&Intent::Write(&work)).await?;
        Ok(())
    }

    /// Something happened that may be the sign that the directory is complete.
    pub(super) fn hear(&self, checkpoint: &Checkpoint, event: &Event<'_>) {
        let mut state = checkpoint.state.lock();
        let sign = match event {
            Event::Explicit => crate::checkpoint::record::Sign::Explicit,
            _ => crate::checkpoint::record::Sign::Sign,
        };
        let is_sign = state.rule.as_ref().is_none_or(|rule| rule.is_sign(event));
        let explicit = *event == Event::Explicit;
        if !explicit && !is_sign {
            return;
        }
        // Of what is frozen, too: a pause before the sign does not make it another's.
        let State { open, frozen, .. } = &mut *state;
        for txn in frozen.iter_mut().chain(open) {
            txn.heard = txn.heard.max(Some(sign));
        }
        drop(state);
        checkpoint.wake.notify_one();
    }

    /// Time since the mount, by which transactions count.
    pub(super) fn uptime(&self) -> std::time::Duration {
        self.clock.now().saturating_duration_since(self.started)
    }
}

/// What a rule is told of a sign that came.
pub(super) fn heard(txn: &Transaction) -> Option<Heard> {
    txn.heard.map(|sign| Heard { sign })
}

/// The names a transaction has something to say of.
pub(super) fn files(txn: &Transaction) -> usize {
    txn.members.keys().filter(|rel: &&RelPath| !rel.is_root()).count()
}
