//! The journal: which files were acknowledged and are not in the bucket yet, on the local disk.
//!
//! Owns the store (`redb`), the thread that writes to it, and its group commits. Does not own what
//! an entry says (`intent`), the order of uploads (`queue`), nor the staged files.
//!
//! What must hold:
//! 1. When [`Journal::put`] has returned well, the intent survives kill -9 and power loss, and so
//!    does the name of the staged file it speaks of. The file's data is synced by the caller
//!    before.
//! 2. An entry goes only once its bytes are in the bucket, or a later one for the same file stands,
//!    or the file was removed by its user.
//! 3. What one commit says holds as a whole or not at all.
//! 4. After a failed commit nothing more is acknowledged here: every later call fails.
//!
//! Of the medium: a sync makes durable what was written before; a torn write is told from a whole
//! one by its checksum, which is redb's part.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::Duration;

use redb::{Database, Durability, ReadableDatabase, ReadableTable, TableDefinition};
use tokio::sync::oneshot;

use super::intent::{BadIntent, Before, Begun, CloseId, Intent};
use crate::types::ETag;

/// The name of the store in the cache directory.
pub const JOURNAL_FILE: &str = "journal.redb";
/// While it is being made; a crash then leaves no half store under the name above.
const NEW_FILE: &str = "journal.new";
const TABLE: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("closed-1");
/// Pages kept in memory, in bytes: what is committed is seldom read.
const CACHE_BYTES_MAX: usize = 8 << 20;
/// An empty store larger than this is made anew, in bytes.
const EMPTY_BYTES_MAX: u64 = 64 << 20;
/// Calls in one commit: more would hold up the first of them.
const BATCH_MAX: usize = 256;
/// What nobody waits for is written down after so long, with what came meanwhile.
const LAZY_MS_MAX: Duration = Duration::from_millis(20);

/// Where acknowledged files are noted. Dropping it ends its thread after what it was told.
#[derive(Debug)]
pub struct Journal {
    calls: Option<Sender<Call>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

/// What a staged file's name is to the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileName {
    /// The entry needs the file, whose name may not be synced yet.
    Needed,
    /// It has the bytes itself.
    Unneeded,
}

#[derive(Debug)]
enum What {
    Put {
        intent: Box<Intent>,
        name: FileName,
        replaces: Vec<CloseId>,
    },
    Published {
        id: CloseId,
        etag: ETag,
    },
    Remove(Vec<CloseId>),
    Begun {
        id: CloseId,
        begun: Begun,
    },
    /// Only waits for what was said before.
    Nothing,
}

#[derive(Debug)]
struct Call {
    what: What,
    /// Nobody waits where there is none.
    done: Option<oneshot::Sender<Result<(), Failure>>>,
}

/// Why a commit failed, for each of those that waited.
#[derive(Debug, Clone)]
struct Failure {
    kind: io::ErrorKind,
    text: String,
}

impl Journal {
    /// Opens the journal beside the directory of staged files `staged`, and returns what stands in
    /// it, in the order of closes. `None`: there is none. Fails, and leaves it as it is, where it
    /// can't be read.
    pub fn open(staged: &Path) -> io::Result<Option<(Self, Vec<Intent>)>> {
        let path = beside(staged)?.join(JOURNAL_FILE);
        if !path.try_exists()? {
            return Ok(None);
        }
        let store = builder().open(&path).map_err(io::Error::other)?;
        let intents = read_all(&store)?;
        if intents.is_empty() && path.metadata()?.len() > EMPTY_BYTES_MAX {
            drop(store);
            return Ok(Some((Self::create(staged)?, Vec::new())));
        }
        Ok(Some((Self::start(store, staged, &intents)?, intents)))
    }

    /// An empty journal at the same place, whole or not at all.
    pub fn create(staged: &Path) -> io::Result<Self> {
        let dir = beside(staged)?;
        let new = dir.join(NEW_FILE);
        match std::fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let store = builder().create(&new).map_err(io::Error::other)?;
        make_table(&store)?;
        drop(store);
        let path = dir.join(JOURNAL_FILE);
        std::fs::rename(&new, &path)?;
        File::open(dir)?.sync_all()?;
        let store = builder().open(&path).map_err(io::Error::other)?;
        Self::start(store, staged, &[])
    }

    /// The same over any storage, for tests that count and cut its writes.
    #[cfg(test)]
    pub fn over(
        storage: impl redb::StorageBackend,
        staged: &Path,
    ) -> io::Result<(Self, Vec<Intent>)> {
        let store = builder().create_with_backend(storage).map_err(io::Error::other)?;
        make_table(&store)?;
        let intents = read_all(&store)?;
        Ok((Self::start(store, staged, &intents)?, intents))
    }

    fn start(store: Database, staged: &Path, intents: &[Intent]) -> io::Result<Self> {
        let (sender, calls) = mpsc::channel();
        let follower = |intent: &Intent| match intent.before {
            Before::Closed(before) => Some((before, intent.id)),
            _ => None,
        };
        let keeper = Keeper {
            store,
            staged: staged.to_owned(),
            followers: intents.iter().filter_map(follower).collect(),
            failed: None,
        };
        let thread = std::thread::Builder::new()
            .name("journal".to_owned())
            .spawn(move || keeper.keep(&calls))?;
        Ok(Self { calls: Some(sender), thread: Some(thread) })
    }

    /// Notes an acknowledged file; entries it replaces go with the same commit. Its data is synced.
    pub async fn put(
        &self,
        intent: Intent,
        name: FileName,
        replaces: Vec<CloseId>,
    ) -> io::Result<()> {
        self.call(What::Put { intent: Box::new(intent), name, replaces }).await
    }

    /// The file is in the bucket as `etag`: the entry goes, and one that was to replace it now
    /// replaces that version. Nobody waits: a crash before it is written down finds the object.
    pub fn published(&self, id: CloseId, etag: ETag) {
        self.tell(What::Published { id, etag });
    }

    /// An upload by parts came so far. Nobody waits: what is lost of it is sent again.
    pub fn begun(&self, id: CloseId, begun: Begun) {
        self.tell(What::Begun { id, begun });
    }

    /// These are gone for good when this returns.
    pub async fn remove(&self, ids: Vec<CloseId>) -> io::Result<()> {
        self.call(What::Remove(ids)).await
    }

    /// The same; nobody waits.
    pub fn remove_soon(&self, ids: Vec<CloseId>) {
        if !ids.is_empty() {
            self.tell(What::Remove(ids));
        }
    }

    /// What was told before is durable when this returns.
    pub async fn settled(&self) -> io::Result<()> {
        self.call(What::Nothing).await
    }

    async fn call(&self, what: What) -> io::Result<()> {
        let (done, answer) = oneshot::channel();
        let ended = || io::Error::other("the journal has ended");
        let calls = self.calls.as_ref().ok_or_else(ended)?;
        calls.send(Call { what, done: Some(done) }).map_err(|_| ended())?;
        let answer = answer.await.map_err(|_| ended())?;
        answer.map_err(|failure| io::Error::new(failure.kind, failure.text))
    }

    fn tell(&self, what: What) {
        let sent = self.calls.as_ref().is_some_and(|calls| {
            calls.send(Call { what, done: None }).is_ok() // a thread that ended has said why
        });
        if !sent {
            tracing::debug!("the journal has ended; an entry is left to the next mount");
        }
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.calls = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // a panic in it was logged
        }
    }
}

fn beside(staged: &Path) -> io::Result<&Path> {
    staged.parent().ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

fn builder() -> redb::Builder {
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE_BYTES_MAX);
    builder
}

fn make_table(store: &Database) -> io::Result<()> {
    let make = || -> Result<(), redb::Error> {
        let begun = store.begin_write()?;
        begun.open_table(TABLE)?;
        Ok(begun.commit()?)
    };
    make().map_err(io::Error::other)
}

fn read_all(store: &Database) -> io::Result<Vec<Intent>> {
    let read = || -> Result<Vec<(u64, Vec<u8>)>, redb::Error> {
        let table = store.begin_read()?.open_table(TABLE)?;
        let mut values = Vec::new();
        for entry in table.iter()? {
            let (id, value) = entry?;
            values.push((id.value(), value.value().to_vec()));
        }
        Ok(values)
    };
    let decode = |(id, value): (u64, Vec<u8>)| {
        let say =
            |error: BadIntent| io::Error::other(format!("entry {id} of the journal: {error}"));
        Intent::decode(CloseId(id), &value).map_err(say)
    };
    read().map_err(io::Error::other)?.into_iter().map(decode).collect()
}

/// The thread's side.
struct Keeper {
    store: Database,
    /// Where the staged files are.
    staged: PathBuf,
    /// Which entry waits to replace what another makes.
    followers: HashMap<CloseId, CloseId>,
    failed: Option<Failure>,
}

impl Keeper {
    fn keep(mut self, calls: &Receiver<Call>) {
        while let Ok(first) = calls.recv() {
            let batch = gather(first, calls);
            let result = match &self.failed {
                Some(failure) => Err(failure.clone()),
                None => self.commit(&batch).map_err(|error| Failure::of(&error)),
            };
            if let (Err(failure), None) = (&result, &self.failed) {
                tracing::error!(error = %failure.text, "the journal can't be written any more");
                self.failed = Some(failure.clone());
            }
            for done in batch.into_iter().filter_map(|call| call.done) {
                let _ = done.send(result.clone()); // whoever does not wait any more was cancelled
            }
        }
    }

    fn commit(&mut self, batch: &[Call]) -> Result<(), redb::Error> {
        if batch.iter().all(|call| matches!(call.what, What::Nothing)) {
            return Ok(());
        }
        let needs_name =
            |call: &Call| matches!(call.what, What::Put { name: FileName::Needed, .. });
        if batch.iter().any(needs_name) {
            File::open(&self.staged)?.sync_all()?;
        }
        let mut begun = self.store.begin_write()?;
        begun.set_durability(Durability::Immediate).map_err(redb::Error::from)?;
        {
            let mut table = begun.open_table(TABLE)?;
            for call in batch {
                self.apply(&mut table, &call.what)?;
            }
        }
        Ok(begun.commit()?)
    }

    fn apply(
        &mut self,
        table: &mut redb::Table<'_, u64, &'static [u8]>,
        what: &What,
    ) -> Result<(), redb::Error> {
        match what {
            What::Put { intent, replaces, .. } => {
                if let Before::Closed(before) = intent.before {
                    self.followers.insert(before, intent.id);
                }
                table.insert(intent.id.0, intent.encode().as_slice())?;
                for id in replaces {
                    self.followers.remove(id);
                    table.remove(id.0)?;
                }
            }
            What::Published { id, etag } => {
                table.remove(id.0)?;
                if let Some(follower) = self.followers.remove(id) {
                    let now = Before::Version(etag.clone());
                    rewrite(table, follower, |intent| intent.before = now)?;
                }
            }
            What::Remove(ids) => {
                for id in ids {
                    self.followers.remove(id);
                    table.remove(id.0)?;
                }
            }
            What::Begun { id, begun } => {
                rewrite(table, *id, |intent| intent.begun = Some(begun.clone()))?;
            }
            What::Nothing => {}
        }
        Ok(())
    }
}

/// Changes an entry that still stands.
fn rewrite(
    table: &mut redb::Table<'_, u64, &'static [u8]>,
    id: CloseId,
    change: impl FnOnce(&mut Intent),
) -> Result<(), redb::Error> {
    let Some(value) = table.get(id.0)?.map(|value| value.value().to_vec()) else { return Ok(()) };
    let Ok(mut intent) = Intent::decode(id, &value) else { return Ok(()) };
    change(&mut intent);
    table.insert(id.0, intent.encode().as_slice())?;
    Ok(())
}

/// The calls of one commit: all that wait by now. Where nobody waits for any, those of a moment.
fn gather(first: Call, calls: &Receiver<Call>) -> Vec<Call> {
    let mut batch = vec![first];
    while batch.len() < BATCH_MAX {
        let lazy = batch.iter().all(|call| call.done.is_none());
        let next = match lazy {
            true => calls.recv_timeout(LAZY_MS_MAX),
            false => calls.try_recv().map_err(|_| RecvTimeoutError::Timeout),
        };
        match next {
            Ok(call) => batch.push(call),
            Err(_) => break,
        }
    }
    batch
}

impl Failure {
    fn of(error: &redb::Error) -> Self {
        let kind = match error {
            redb::Error::Io(error) => error.kind(),
            _ => io::ErrorKind::Other,
        };
        Self { kind, text: error.to_string() }
    }
}

#[cfg(test)]
mod power;

#[cfg(test)]
mod tests {
    use super::super::intent::tests::intent;
    use super::*;

    fn place() -> (tempfile::TempDir, PathBuf) {
        let root = tempfile::tempdir().unwrap();
        let staged = root.path().join("staged");
        std::fs::create_dir(&staged).unwrap();
        (root, staged)
    }

    fn open(dir: &Path) -> (Journal, Vec<Intent>) {
        Journal::open(dir).unwrap().unwrap()
    }

    fn ids(intents: &[Intent]) -> Vec<u64> {
        intents.iter().map(|intent| intent.id.0).collect()
    }

    #[tokio::test]
    async fn what_was_put_is_found_again_and_what_is_published_is_not() {
        let (_root, dir) = place();
        assert!(Journal::open(&dir).unwrap().is_none());
        let journal = Journal::create(&dir).unwrap();
        let all: Vec<Intent> = (1..=4).map(|id| intent(id, "k", &[id as u8; 9])).collect();
        for intent in &all {
            journal.put(intent.clone(), FileName::Unneeded, Vec::new()).await.unwrap();
        }
        journal.published(CloseId(1), ETag("e".to_owned()));
        journal.remove(vec![CloseId(3)]).await.unwrap();
        drop(journal);
        let (_, found) = open(&dir);
        assert_eq!(found, [all[1].clone(), all[3].clone()]);
    }

    #[tokio::test]
    async fn a_later_version_replaces_what_the_earlier_became() {
        let (_root, dir) = place();
        let journal = Journal::create(&dir).unwrap();
        let second = Intent { before: Before::Closed(CloseId(1)), ..intent(2, "k", b"two") };
        journal.put(intent(1, "k", b"one"), FileName::Unneeded, Vec::new()).await.unwrap();
        journal.put(second, FileName::Unneeded, Vec::new()).await.unwrap();
        drop(journal);
        let (journal, _) = open(&dir);
        journal.published(CloseId(1), ETag("e1".to_owned()));
        drop(journal);
        let (journal, found) = open(&dir);
        assert_eq!(ids(&found), [2]);
        assert_eq!(found[0].before, Before::Version(ETag("e1".to_owned())));
        journal.put(intent(3, "k", b"3"), FileName::Unneeded, vec![CloseId(2)]).await.unwrap();
        drop(journal);
        assert_eq!(ids(&open(&dir).1), [3]);
    }

    #[tokio::test]
    async fn an_upload_that_was_begun_is_found_again() {
        let (_root, dir) = place();
        let journal = Journal::create(&dir).unwrap();
        journal.put(intent(1, "k", b"one"), FileName::Unneeded, Vec::new()).await.unwrap();
        let begun = Begun { upload: "u".to_owned(), parts: Default::default() };
        journal.begun(CloseId(1), begun.clone());
        journal.begun(CloseId(9), begun.clone());
        journal.settled().await.unwrap();
        drop(journal);
        assert_eq!(open(&dir).1[0].begun, Some(begun));
    }

    #[test]
    fn a_store_that_is_no_journal_is_left_as_it_is() {
        let (_root, dir) = place();
        std::fs::write(dir.with_file_name(JOURNAL_FILE), b"something else").unwrap();
        assert!(Journal::open(&dir).is_err());
        assert_eq!(std::fs::read(dir.with_file_name(JOURNAL_FILE)).unwrap(), b"something else");
    }
}
