//! The journal: which files were acknowledged and are not in the bucket yet, on the local disk.
//!
//! A commit is a record of a log (`log`), synced; a store (`store`) beside it takes over what the
//! log says when that is full, and at an unmount.
//!
//! Owns its making and opening, and the calls to its thread (`keeper`). Does not own what an entry
//! says (`intent`), the order of uploads (`queue`), nor the staged files.
//!
//! What must hold:
//! 1. When [`Journal::put`] has returned well, the intent survives kill -9 and power loss, and so
//!    does the name of the staged file it speaks of. The file's data is synced by the caller
//!    before.
//! 2. An entry goes only once its bytes are in the bucket, or a later one for the same file stands
//!    (which may take its number), or the file was removed by its user.
//! 3. What one commit says holds as a whole or not at all.
//! 4. After a failed commit nothing more is acknowledged here: every later call fails.
//! 5. A journal that can't be read whole is left as it is, and nobody goes on without it.
//!
//! Of the medium: a sync makes durable what was written before; a torn write is told from a whole
//! one by its checksum.

mod keeper;
mod log;
mod store;

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{self, Sender};
use std::thread::{self, JoinHandle};

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::intent::{BadIntent, Begun, CloseId, Intent};
use crate::types::ETag;
use keeper::Keeper;
use log::{Changes, Log, LogFile, Mark};
use store::Store;

/// The name of the store in the cache directory, and of its log.
pub const JOURNAL_FILE: &str = "journal.redb";
const LOG_FILE: &str = "journal.log";
/// While it is being made; a crash then leaves no half store under the name above.
const NEW_FILE: &str = "journal.new";
/// An empty store larger than this is made anew, in bytes; in tests every one.
const EMPTY_BYTES_MAX: u64 = if cfg!(test) { 0 } else { 64 << 20 };

/// Where acknowledged files are noted. Dropping it ends its thread after what it was told.
pub struct Journal {
    keeper: Arc<Mutex<Keeper>>,
    calls: Option<Sender<Call>>,
    thread: Option<JoinHandle<()>>,
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
    TakePlace {
        earlier: CloseId,
        later: CloseId,
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

struct Call {
    what: What,
    /// Nobody waits where there is none.
    done: Option<Done>,
}

/// What follows a commit, on the journal's thread.
type Done = Box<dyn FnOnce(Result<(), Failure>) + Send>;

/// Why a commit failed, for each of those that waited.
#[derive(Debug, Clone)]
struct Failure {
    kind: io::ErrorKind,
    text: String,
}

impl Journal {
    /// Opens the journal beside the directory of staged files `staged`, and returns what stands in
    /// it, in the order of closes. `None`: there is none. Fails, and leaves it as it is, where it
    /// can't be read. A log that is made has `random` for its id.
    pub fn open(staged: &Path, random: u64) -> io::Result<Option<(Self, Vec<Intent>)>> {
        let dir = beside(staged)?;
        let path = dir.join(JOURNAL_FILE);
        if !path.try_exists()? {
            return Ok(None);
        }
        let store = Store::open(&path)?;
        let mark = match store.mark()? {
            Some(mark) => mark,
            None => {
                let mark = make_log(dir, random)?;
                store.commit(&Changes::new(), mark)?;
                mark
            }
        };
        let (log, changes) = Log::read(Box::new(open_log(dir)?), mark)?;
        let intents = read_all(&store, &changes)?;
        if intents.is_empty() && path.metadata()?.len() > EMPTY_BYTES_MAX {
            // First the store is empty by itself: the log that says so is made anew before it.
            store.commit(&changes, log.mark())?;
            drop((store, log));
            return Ok(Some((Self::create(staged, random)?, Vec::new())));
        }
        Ok(Some((Self::start((store, log, changes), staged, &intents)?, intents)))
    }

    /// An empty journal at the same place, whole or not at all.
    pub fn create(staged: &Path, random: u64) -> io::Result<Self> {
        let dir = beside(staged)?;
        let mark = make_log(dir, random)?;
        let new = dir.join(NEW_FILE);
        match std::fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        drop(Store::create(&new, mark)?);
        let path = dir.join(JOURNAL_FILE);
        std::fs::rename(&new, &path)?;
        File::open(dir)?.sync_all()?;
        let (log, changes) = Log::read(Box::new(open_log(dir)?), mark)?;
        Self::start((Store::open(&path)?, log, changes), staged, &[])
    }

    /// The same over any storage, for tests that count and cut its writes.
    #[cfg(test)]
    fn over(
        storage: impl redb::StorageBackend,
        log: impl log::Medium + 'static,
        staged: &Path,
    ) -> io::Result<(Self, Vec<Intent>)> {
        let store = Store::over(storage, Mark { id: 1, number: 0 })?;
        let mark = store.mark()?.ok_or(io::ErrorKind::NotFound)?;
        let (log, changes) = Log::read(Box::new(log), mark)?;
        let intents = read_all(&store, &changes)?;
        Ok((Self::start((store, log, changes), staged, &intents)?, intents))
    }

    fn start(parts: (Store, Log, Changes), staged: &Path, intents: &[Intent]) -> io::Result<Self> {
        let (sender, calls) = mpsc::channel();
        let keeper = Arc::new(Mutex::new(Keeper::new(parts, staged.to_owned(), intents)));
        let kept = keeper.clone();
        let thread = thread::Builder::new()
            .name("journal".to_owned())
            .spawn(move || keeper::keep(&kept, &calls))?;
        Ok(Self { keeper, calls: Some(sender), thread: Some(thread) })
    }

    /// Notes an acknowledged file; entries it replaces go with the same commit. Its data is synced.
    /// Once it is noted, `noted` is called, also if nobody waits any more.
    ///
    /// Outside of tokio's tasks, and while nobody else commits, this blocks for a write and a sync:
    /// two threads that wake each other up take half as long again. So one thread at a time.
    pub async fn put(
        &self,
        intent: Intent,
        name: FileName,
        replaces: Vec<CloseId>,
        noted: impl FnOnce() + Send + 'static,
    ) -> io::Result<()> {
        self.call(What::Put { intent: Box::new(intent), name, replaces }, noted).await
    }

    /// The entry of a later close stands from now on where that of an earlier one of the same file
    /// stood, under its number, and replaces what that was to replace. Durable when this returns.
    pub async fn take_place(&self, earlier: CloseId, later: CloseId) -> io::Result<()> {
        self.call(What::TakePlace { earlier, later }, || ()).await
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
        self.call(What::Remove(ids), || ()).await
    }

    /// The same; nobody waits.
    pub fn remove_soon(&self, ids: Vec<CloseId>) {
        if !ids.is_empty() {
            self.tell(What::Remove(ids));
        }
    }

    /// What was told before is durable when this returns.
    pub async fn settled(&self) -> io::Result<()> {
        self.call(What::Nothing, || ()).await
    }

    async fn call(&self, what: What, well: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let (tell, answer) = oneshot::channel();
        let done: Done = Box::new(move |result| {
            if result.is_ok() {
                well();
            }
            let _ = tell.send(result); // whoever does not wait any more was cancelled
        });
        let ended = || io::Error::other("the journal has ended");
        if !self.hand_over(Call { what, done: Some(done) }) {
            return Err(ended());
        }
        let answer = answer.await.map_err(|_| ended())?;
        answer.map_err(|failure| io::Error::new(failure.kind, failure.text))
    }

    /// False: nobody takes it any more.
    fn hand_over(&self, call: Call) -> bool {
        // What was told before may be on its way yet: only a put may overtake that.
        if matches!(call.what, What::Put { .. })
            && tokio::task::try_id().is_none()
            && let Some(mut keeper) = self.keeper.try_lock().filter(|keeper| keeper.is_quiet())
        {
            keeper.take(vec![call]);
            return true;
        }
        self.calls.as_ref().is_some_and(|calls| calls.send(call).is_ok())
    }

    fn tell(&self, what: What) {
        if !self.hand_over(Call { what, done: None }) {
            // A thread that ended has said why.
            tracing::debug!("the journal has ended; an entry is left to the next mount");
        }
    }
}

impl fmt::Debug for Journal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Journal").finish_non_exhaustive()
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.calls = None;
        // What it was told may have held the last of us: then it ends by itself.
        let itself = |thread: &JoinHandle<()>| thread.thread().id() == thread::current().id();
        if let Some(thread) = self.thread.take().filter(|thread| !itself(thread)) {
            let _ = thread.join(); // a panic in it was logged
        }
    }
}

fn beside(staged: &Path) -> io::Result<&Path> {
    staged.parent().ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

/// A log that is empty and whole, its name too, before any store speaks of it.
fn make_log(dir: &Path, random: u64) -> io::Result<Mark> {
    log::make(&dir.join(LOG_FILE))?;
    File::open(dir)?.sync_all()?;
    Ok(Mark { id: random, number: 0 })
}

fn open_log(dir: &Path) -> io::Result<LogFile> {
    let path = dir.join(LOG_FILE);
    LogFile::open(&path).map_err(|error| {
        io::Error::new(error.kind(), format!("{}, which belongs to it: {error}", path.display()))
    })
}

/// What stands in the store, and what the log changed of that.
fn read_all(store: &Store, changes: &Changes) -> io::Result<Vec<Intent>> {
    let mut all: BTreeMap<CloseId, Vec<u8>> = store.all()?;
    for (id, value) in changes {
        match value {
            Some(value) => drop(all.insert(*id, value.clone())),
            None => drop(all.remove(id)),
        }
    }
    let decode = |(id, value): (CloseId, Vec<u8>)| {
        let say =
            |error: BadIntent| io::Error::other(format!("entry {} of the journal: {error}", id.0));
        Intent::decode(id, &value).map_err(say)
    };
    all.into_iter().map(decode).collect()
}

impl Failure {
    fn of(error: &io::Error) -> Self {
        Self { kind: error.kind(), text: error.to_string() }
    }
}

#[cfg(test)]
mod power;

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::super::intent::Before;
    use super::super::intent::tests::intent;
    use super::*;

    fn place() -> (tempfile::TempDir, PathBuf) {
        let root = tempfile::tempdir().unwrap();
        let staged = root.path().join("staged");
        std::fs::create_dir(&staged).unwrap();
        (root, staged)
    }

    fn open(dir: &Path) -> (Journal, Vec<Intent>) {
        Journal::open(dir, 7).unwrap().unwrap()
    }

    async fn put(journal: &Journal, intent: Intent, replaces: &[u64]) {
        let replaces = replaces.iter().map(|id| CloseId(*id)).collect();
        journal.put(intent, FileName::Unneeded, replaces, || ()).await.unwrap();
    }

    /// What a daemon leaves that is killed now, which no drop precedes: a copy of it.
    fn killed(dir: &Path) -> (tempfile::TempDir, PathBuf) {
        let (root, copy) = place();
        for file in [JOURNAL_FILE, LOG_FILE] {
            std::fs::copy(dir.with_file_name(file), copy.with_file_name(file)).unwrap();
        }
        (root, copy)
    }

    fn ids(intents: &[Intent]) -> Vec<u64> {
        intents.iter().map(|intent| intent.id.0).collect()
    }

    #[tokio::test]
    async fn what_was_put_is_found_again_and_what_is_published_is_not() {
        let (_root, dir) = place();
        assert!(Journal::open(&dir, 7).unwrap().is_none());
        let journal = Journal::create(&dir, 7).unwrap();
        let all: Vec<Intent> = (1..=4).map(|id| intent(id, "k", &[id as u8; 9])).collect();
        for intent in &all {
            put(&journal, intent.clone(), &[]).await;
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
        let journal = Journal::create(&dir, 7).unwrap();
        let second = Intent { before: Before::Closed(CloseId(1)), ..intent(2, "k", b"two") };
        put(&journal, intent(1, "k", b"one"), &[]).await;
        put(&journal, second, &[]).await;
        drop(journal);
        let (journal, _) = open(&dir);
        journal.published(CloseId(1), ETag("e1".to_owned()));
        drop(journal);
        let (journal, found) = open(&dir);
        assert_eq!(ids(&found), [2]);
        assert_eq!(found[0].before, Before::Version(ETag("e1".to_owned())));
        put(&journal, intent(3, "k", b"3"), &[2]).await;
        drop(journal);
        assert_eq!(ids(&open(&dir).1), [3]);
    }

    /// Whatever the later one was told to replace: what the earlier one was to replace may be in
    /// the bucket by then.
    #[tokio::test]
    async fn a_later_version_takes_the_place_of_one_that_never_went_up() {
        let (_root, dir) = place();
        let journal = Journal::create(&dir, 7).unwrap();
        let after = |id: u64, bytes: &[u8]| Intent {
            before: Before::Closed(CloseId(id - 1)),
            ..intent(id, "k", bytes)
        };
        put(&journal, intent(1, "k", b"one"), &[]).await;
        put(&journal, after(2, b"two"), &[]).await;
        put(&journal, after(3, b"three"), &[]).await;
        journal.published(CloseId(1), ETag("e1".to_owned()));
        journal.take_place(CloseId(2), CloseId(3)).await.unwrap();
        let (_copy, killed) = killed(&dir);
        let (after_kill, found) = open(&killed);
        assert_eq!(ids(&found), [2]);
        assert_eq!(found[0].before, Before::Version(ETag("e1".to_owned())));
        assert_eq!(
            (&found[0].file[..], found[0].bytes.as_deref()),
            ("3.staged", Some(&b"three"[..]))
        );
        // Whoever was to replace it replaces what it makes.
        put(&after_kill, after(3, b"four"), &[]).await;
        after_kill.published(CloseId(2), ETag("e2".to_owned()));
        drop(after_kill);
        assert_eq!(open(&killed).1[0].before, Before::Version(ETag("e2".to_owned())));
    }

    #[tokio::test]
    async fn an_upload_that_was_begun_is_found_again() {
        let (_root, dir) = place();
        let journal = Journal::create(&dir, 7).unwrap();
        put(&journal, intent(1, "k", b"one"), &[]).await;
        let begun = Begun { upload: "u".to_owned(), parts: Default::default() };
        journal.begun(CloseId(1), begun.clone());
        journal.begun(CloseId(9), begun.clone());
        journal.settled().await.unwrap();
        drop(journal);
        assert_eq!(open(&dir).1[0].begun, Some(begun));
    }

    /// What was acknowledged before an update of the program goes up after it.
    #[tokio::test]
    async fn a_journal_of_a_version_without_a_log_is_taken_over() {
        let (_root, dir) = place();
        let old = redb::Database::create(dir.with_file_name(JOURNAL_FILE)).unwrap();
        let begun = old.begin_write().unwrap();
        let table = redb::TableDefinition::<u64, &[u8]>::new("closed-1");
        begun
            .open_table(table)
            .unwrap()
            .insert(1, intent(1, "k", b"one").encode().as_slice())
            .unwrap();
        begun.commit().unwrap();
        drop(old);
        let (journal, found) = open(&dir);
        assert_eq!(ids(&found), [1]);
        put(&journal, intent(2, "k", b"2"), &[1]).await;
        drop(journal);
        assert_eq!(ids(&open(&dir).1), [2]);
    }

    #[tokio::test]
    async fn a_journal_is_not_opened_without_its_log() {
        let (_root, dir) = place();
        let journal = Journal::create(&dir, 7).unwrap();
        put(&journal, intent(1, "k", b"one"), &[]).await;
        drop(journal);
        let log = dir.with_file_name(LOG_FILE);
        std::fs::rename(&log, log.with_extension("away")).unwrap();
        let error = Journal::open(&dir, 7).unwrap_err();
        assert!(error.to_string().contains(LOG_FILE), "{error}");
        std::fs::rename(log.with_extension("away"), &log).unwrap();
        assert_eq!(ids(&open(&dir).1), [1]);
    }

    /// The log is read again after a kill.
    #[tokio::test]
    async fn what_only_the_log_says_is_found_again() {
        let (_root, dir) = place();
        let journal = Journal::create(&dir, 7).unwrap();
        for id in 1..=3 {
            put(&journal, intent(id, "k", &[id as u8; 99]), &[]).await;
        }
        journal.remove(vec![CloseId(2)]).await.unwrap();
        let (_copy, killed) = killed(&dir);
        let (after, found) = open(&killed);
        assert_eq!(ids(&found), [1, 3]);
        put(&after, intent(4, "k", b"4"), &[1]).await;
        drop(after);
        assert_eq!(ids(&open(&killed).1), [3, 4]);
    }

    /// Files that were removed came back: the store still had what only the log had removed, and
    /// that log was replaced before the store was.
    #[tokio::test]
    async fn what_was_removed_does_not_come_back_with_a_journal_that_is_made_anew() {
        let (_root, dir) = place();
        let journal = Journal::create(&dir, 7).unwrap();
        put(&journal, intent(1, "k", b"one"), &[]).await;
        drop(journal); // it is in the store now
        let journal = open(&dir).0;
        journal.remove(vec![CloseId(1)]).await.unwrap();
        let (_copy, killed) = killed(&dir);
        let in_the_way = killed.with_file_name(NEW_FILE);
        std::fs::create_dir(&in_the_way).unwrap();
        Journal::open(&killed, 8).unwrap_err();
        std::fs::remove_dir(&in_the_way).unwrap();
        assert!(open(&killed).1.is_empty());
    }

    #[test]
    fn a_log_that_was_cut_is_not_taken_for_an_empty_one() {
        let (_root, dir) = place();
        drop(Journal::create(&dir, 7).unwrap());
        let log = File::options().write(true).open(dir.with_file_name(LOG_FILE)).unwrap();
        log.set_len(8192).unwrap();
        assert!(Journal::open(&dir, 7).unwrap_err().to_string().contains(LOG_FILE));
    }

    #[test]
    fn a_store_that_is_no_journal_is_left_as_it_is() {
        let (_root, dir) = place();
        std::fs::write(dir.with_file_name(JOURNAL_FILE), b"something else").unwrap();
        assert!(Journal::open(&dir, 7).is_err());
        assert_eq!(std::fs::read(dir.with_file_name(JOURNAL_FILE)).unwrap(), b"something else");
    }
}
