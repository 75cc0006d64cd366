//! The work that a decided rename leaves: done in the background, or waited for by whoever changes
//! what is moving.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Weak};
use std::time::Duration;

use super::Rename;
use crate::bucket::{BucketError, ListedObject};
use crate::checkpoint::moves::{Intent, Phase};
use crate::checkpoint::record::Suffix;
use crate::fs::Fs;
use crate::fs::checkpoints::Checkpoint;
use crate::fs::error::Errno;
use crate::types::{CONTROL_DIR, ETag, Ino, Key};

/// How long another mount's rename is left to that mount, before this one helps.
const HELP_AFTER: Duration = Duration::from_secs(5);
/// Between two tries while the store is away.
const RETRY: Duration = Duration::from_secs(1);
/// The records of a rename go so long after it was done.
const RECORDS_KEPT: Duration = Duration::from_secs(3600);

/// Whose rename it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whose {
    Ours,
    Others,
}

impl Fs {
    /// Does in the background what this mount's own decision leaves.
    pub(in crate::fs) fn finish_in_background(&self, rename: Arc<Rename>) {
        tokio::spawn(tend(self.me.clone(), rename, Whose::Ours));
    }

    /// Sees to it that another mount's rename comes to an end, should that mount be gone.
    pub(super) fn look_after(&self, rename: Arc<Rename>) {
        tokio::spawn(tend(self.me.clone(), rename, Whose::Others));
    }

    /// Does all that is left of a rename. Whoever waits meanwhile finds it done.
    async fn finish_rename(&self, rename: &Arc<Rename>) -> Result<(), BucketError> {
        let _work = rename.work.lock().await;
        if rename.mover.phase() == Phase::Decided {
            rename.mover.run(&Intent::Copies).await?;
            self.copies_made(rename).await;
        }
        rename.mover.run(&Intent::Finish).await?;
        if matches!(rename.mover.phase(), Phase::Done | Phase::Void) {
            self.moves.end(rename.mover.id);
            self.collect_in_time(rename.clone());
        }
        Ok(())
    }

    pub(super) fn collect_in_time(&self, rename: Arc<Rename>) {
        tokio::spawn(collect(self.me.clone(), rename));
    }

    /// Every object has its copy: inodes are of the copies, and attribute records speak of them.
    async fn copies_made(&self, rename: &Arc<Rename>) {
        let Some(decided) = rename.mover.decided() else { return };
        let target = rename.mover.ends.target();
        let mut made = rename.mover.all_made();
        if decided.entries.keys().any(|name| !made.contains_key(name)) {
            // Others made some.
            let Ok(page) = self.bucket.list_all(&target, false).await else { return };
            for object in page.objects {
                let name = object.key.as_str().strip_prefix(&target).map(Suffix::new);
                if let Some(Ok(name)) = name {
                    made.entry(name).or_insert(object.etag);
                }
            }
        }
        let versions: HashMap<Key, (ETag, ETag)> = made
            .into_iter()
            .filter_map(|(name, new)| {
                let key = Key::new(format!("{target}{}", name.as_str()));
                Some((key, (decided.entries.get(&name)?.clone(), new)))
            })
            .collect();
        let changed = versions.iter().any(|(key, (old, new))| old != new && !key.is_marker());
        if changed && let Err(error) = self.mend_records(&versions).await {
            tracing::warn!(%error, "attributes of a renamed directory could not be recorded");
        }
        let source = rename.mover.ends.source();
        let is_below = |key: &Key| key.as_str().starts_with(&source);
        let below: Vec<Ino> = {
            let namespace = self.namespace.lock();
            let below = namespace.inodes().filter(|inode| inode.at.as_ref().is_some_and(is_below));
            below.map(|inode| inode.ino).collect()
        };
        self.learn_etags(&below, &versions);
    }

    /// Waits until nothing moves in, above or below a directory. ETIMEDOUT after `--commit-wait`.
    pub(in crate::fs) async fn finish_renames(&self, directory: &str) -> Result<(), Errno> {
        for rename in self.moves.touching(directory) {
            if rename.mover.phase() != Phase::Decided {
                continue;
            }
            let wait = self.checkpoints.config().commit_wait;
            match tokio::time::timeout(wait, self.finish_rename(&rename)).await {
                Ok(done) => done?,
                Err(_) => return Err(Errno::ETIMEDOUT),
            }
        }
        Ok(())
    }

    pub(in crate::fs) async fn finish_renames_at(&self, ino: Ino) -> Result<(), Errno> {
        if self.moves.is_idle() {
            return Ok(());
        }
        let key = self.namespace.lock().key(ino);
        match key {
            Some(key) => self.finish_renames(key.as_str()).await,
            None => Ok(()),
        }
    }

    /// Nothing is written in a checkpoint directory that moves.
    pub(in crate::fs) async fn finish_renames_of(
        &self,
        checkpoint: &Checkpoint,
    ) -> Result<(), Errno> {
        if self.moves.is_idle() || checkpoint.is_busy() {
            return Ok(());
        }
        self.finish_renames(&format!("{}/", checkpoint.name())).await
    }

    /// Before something is made at a key: nothing is left of a directory that had the name.
    pub(in crate::fs) async fn free_name(&self, key: &Key) -> Result<(), Errno> {
        if !self.moves.is_gone(key.as_str()) {
            return Ok(());
        }
        self.finish_renames(&format!("{}/", key.as_str().trim_end_matches('/'))).await
    }

    /// Before an object of a directory that moves here is changed or removed: its source is gone,
    /// so that no copy of that comes later.
    pub(in crate::fs) async fn settle_key(&self, key: &Key) -> Result<(), Errno> {
        let Some((rename, suffix)) = self.moves.bringing(key.as_str()) else { return Ok(()) };
        if rename.mover.is_settled(&suffix) {
            return Ok(());
        }
        rename.mover.run(&Intent::Settle(suffix)).await?;
        Ok(())
    }

    pub(in crate::fs) async fn settle_inode(&self, ino: Ino) -> Result<(), Errno> {
        if self.moves.is_idle() {
            return Ok(());
        }
        let (key, old) = {
            let namespace = self.namespace.lock();
            let Some(inode) = namespace.get(ino) else { return Ok(()) };
            (namespace.key(ino), inode.object.clone())
        };
        let (Some(key), Some(old)) = (key, old) else { return Ok(()) };
        let Some((rename, suffix)) = self.moves.bringing(key.as_str()) else { return Ok(()) };
        self.settle_key(&key).await?;
        let new = match rename.mover.made(suffix.as_str()) {
            Some(new) => new,
            None => self.bucket.head(&key).await?.etag,
        };
        self.learn_etags(&[ino], &HashMap::from([(key, (old, new))]));
        Ok(())
    }

    /// After a read found its version gone: whether the inode's object lies at its own key by now.
    pub(in crate::fs) async fn follow_moved(&self, ino: Ino) -> bool {
        let moved = self.namespace.lock().get(ino).is_some_and(|inode| inode.at.is_some());
        if moved {
            return self.revalidate(ino).await.is_ok();
        }
        // It was learnt while the read was under way.
        self.moves.epoch() > 0 && self.version(ino).is_ok_and(|version| version.is_some())
    }

    /// The attribute records that are on their way to a control directory.
    pub(in crate::fs) async fn records_coming(
        &self,
        control: &str,
        here: &[ListedObject],
    ) -> Result<Vec<ListedObject>, BucketError> {
        let directory = control.strip_suffix(&format!("{CONTROL_DIR}/")).unwrap_or(control);
        let rename =
            self.moves.decided().find(|rename| directory.starts_with(&rename.mover.ends.target()));
        let Some((rename, decided)) = rename.and_then(|r| Some((r.clone(), r.mover.decided()?)))
        else {
            return Ok(Vec::new());
        };
        let (source, target) = (rename.mover.ends.source(), rename.mover.ends.target());
        let old = format!("{source}{}", control.strip_prefix(&target).unwrap_or(control));
        let page = match self.bucket.list_all(&old, true).await {
            Err(BucketError::NotFound) => Default::default(),
            other => other?,
        };
        let have: HashSet<&str> = here.iter().map(|object| object.key.as_str()).collect();
        let comes = |object: &ListedObject| {
            let name = object.key.as_str().strip_prefix(&source).unwrap_or_default();
            decided.moves(name, &object.etag) && !have.contains(format!("{target}{name}").as_str())
        };
        Ok(page.objects.into_iter().filter(comes).collect())
    }

    /// The key that an object has once its directory has its new name.
    pub(in crate::fs) fn key_shown(&self, key: &Key) -> String {
        let rename = self.moves.decided().find_map(|rename| {
            let rest = key.as_str().strip_prefix(&rename.mover.ends.source())?;
            Some(format!("{}{rest}", rename.mover.ends.target()))
        });
        rename.unwrap_or_else(|| key.as_str().to_owned())
    }

    /// Before a clean unmount: what this mount knows to be decided is done, if that is soon.
    pub(in crate::fs) async fn drain_moves(&self) {
        if self.config.read_only {
            return;
        }
        if let Err(error) = self.finish_renames("").await {
            tracing::warn!(%error, "a rename is left to be finished by other mounts");
        }
    }
}

async fn tend(fs: Weak<Fs>, rename: Arc<Rename>, whose: Whose) {
    if whose == Whose::Others {
        tokio::time::sleep(HELP_AFTER).await;
    }
    loop {
        let Some(fs) = fs.upgrade() else { return };
        let Ok(()) = rename.mover.look().await else {
            drop(fs);
            tokio::time::sleep(RETRY).await;
            continue;
        };
        if rename.mover.phase() == Phase::Undecided {
            let lease = fs.checkpoints.config().lease;
            drop(fs);
            if !end_undecided(&rename, lease).await {
                return;
            }
            continue;
        }
        match fs.finish_rename(&rename).await {
            Ok(()) if rename.mover.phase() != Phase::Decided => return,
            Ok(()) => {}
            Err(error) => {
                let name = rename.mover.ends.target();
                tracing::warn!(%name, %error, "what a rename leaves to do is tried again");
            }
        }
        drop(fs);
        tokio::time::sleep(RETRY).await;
    }
}

/// Whoever began it has a lease to decide it. `false`: it was withdrawn.
async fn end_undecided(rename: &Rename, lease: Duration) -> bool {
    tokio::time::sleep(lease).await;
    match rename.mover.is_pointed().await {
        Ok(false) => return false,
        Ok(true) => {
            let nonce = rename.mover.nonce();
            if let Err(error) = rename.mover.run(&Intent::GiveUp { nonce }).await {
                tracing::warn!(%error, "a rename that nobody decided could not be given up");
            }
        }
        Err(_) => {}
    }
    true
}

async fn collect(fs: Weak<Fs>, rename: Arc<Rename>) {
    tokio::time::sleep(RECORDS_KEPT).await;
    if fs.upgrade().is_some()
        && let Err(error) = rename.mover.collect().await
    {
        tracing::debug!(%error, "records of a rename stay");
    }
}
