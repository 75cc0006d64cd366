//! Names of files that are made: known to be free without asking, and what follows if one was not.
//!
//! open(2) that creates a file and empties one that is there needs to know little of what is there:
//! not a word of its content, nor "no such file". While it is asked for, the kernel holds the whole
//! directory. So where a listing of the directory that is under a second old lacks the name, the
//! file is begun at once, and its first upload asks: by its condition, and for a directory beside
//! it. What another node made there within that second is met then: a file is replaced and keeps
//! its mode, anything else makes the close fail, and stays.
//!
//! Owns when a listing pays, and that first upload. Does not own the listing (`lookup`).
//!
//! Cost, in place of a HEAD and a LIST for each file: of a directory of one page 2 LISTs a second
//! while files are made there; of a longer one 4, for the page in which the next names stand and
//! the directory's records, where names come about in their order, else 2 for each page, and past
//! 16 pages the names are asked for. A file's upload 1 LIST more, but for a small one where the
//! store's own condition sees directories.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::Fs;
use super::error::Errno;
use super::handles::{Access, OpenFile};
use super::learning::{Found, recorded};
use super::relist::{ASKS_PER_PAGE, PAGES_MAX, pages_of};
use crate::bucket::{BucketError, Condition};
use crate::namespace::Remote;
use crate::namespace::inode::{Attributes, Directory};
use crate::namespace::seen::Seen;
use crate::types::{Ino, Key, Kind, Name};
use crate::write::{Staged, Uploaded, Why, WriteError};

/// An open follows its lookup within microseconds; what is not taken by then was refused.
const UNASKED_MAX: Duration = Duration::from_secs(60);
const UNASKED_COUNT_MAX: usize = 1024;
/// A file up to this size goes up by one PUT, whose condition some stores hold against directories
/// too.
const PUT_BYTES_MAX: u64 = 1 << 20;

/// So many times a listing's, after a page that did not tell of the name it was asked for: names
/// come in no order.
const PAUSE_AFTER_MISS: u32 = 16;

/// Names that lookups called free unasked, until their files are made.
#[derive(Debug, Default)]
pub(super) struct Unasked(Mutex<HashMap<(Ino, Name), Instant>>);

impl Unasked {
    /// False: there are too many.
    fn put(&self, parent: Ino, name: &Name, now: Instant) -> bool {
        let mut all = self.0.lock();
        if all.len() >= UNASKED_COUNT_MAX {
            all.retain(|_, at| now.duration_since(*at) < UNASKED_MAX);
        }
        let room = all.len() < UNASKED_COUNT_MAX;
        if room {
            all.insert((parent, name.clone()), now);
        }
        room
    }

    /// Whether nobody asked for the name that a file is made at.
    pub fn take(&self, parent: Ino, name: &Name) -> bool {
        self.0.lock().remove(&(parent, name.clone())).is_some()
    }
}

/// What the last listing of a directory says of a name.
enum Told {
    Free {
        /// Files are made here, and the listing gets old.
        renew: Option<Relist>,
    },
    /// Ask for the name.
    Nothing,
    /// A new listing is worth it.
    Old(Relist),
}

/// What is listed to tell of names at which files are made.
enum Relist {
    /// So many pages from the first.
    Whole(usize),
    /// The page behind this name.
    Page(Name),
}

impl Fs {
    /// Whether a file may be begun at a name without asking for it.
    pub(super) async fn is_free(&self, parent: Ino, name: &Name) -> bool {
        let plain = |kind| self.place_of_new(parent, name, kind).is_none();
        let asks_later = self.bucket.capabilities().create_if_absent && !self.config.read_only;
        if !asks_later || !self.moves.is_idle() || !plain(Kind::File) || !plain(Kind::Directory) {
            return false;
        }
        let told = match self.told_of(parent, name) {
            Told::Old(_) => {
                let _turn = self.relisting.lock().await;
                // Whoever held the turn may have made it.
                match self.told_of(parent, name) {
                    Told::Old(what) => {
                        self.list_for_files(parent, what, Some(name)).await;
                        self.told_of(parent, name)
                    }
                    told => told,
                }
            }
            told => told,
        };
        let Told::Free { renew } = told else { return false };
        if let Some((what, me)) = renew.zip(self.me.upgrade()) {
            tokio::spawn(async move { me.renew_listing(parent, what).await });
        }
        self.unasked.put(parent, name, self.clock.now())
    }

    fn told_of(&self, parent: Ino, name: &Name) -> Told {
        let (now, ttl) = (self.clock.now(), self.ttl());
        let mut namespace = self.namespace.lock();
        let known = namespace.child(parent, name).is_some();
        let records = !self.records_stale(&namespace, parent);
        let Some(inode) = namespace.get_mut(parent) else { return Told::Nothing };
        // There the kernel has more to check of a file that is there.
        if known || ttl.is_zero() || inode.is_sticky() {
            return Told::Nothing;
        }
        let directory = &mut inode.directory;
        directory.made += 1;
        directory.makes.note(name);
        let directory = &inode.directory;
        let pays = || self.listing_that_pays(directory, name);
        let young = [&directory.seen, &directory.page].into_iter().flatten();
        let young: Vec<&Seen> = young.filter(|seen| records && seen.age(now) < ttl).collect();
        let told = young.iter().filter_map(|seen| Some((seen.tells(name)?, seen.age(now))));
        match told.min_by_key(|(_, age)| *age) {
            Some((true, _)) => Told::Nothing,
            Some((false, age)) => Told::Free { renew: (age > ttl / 2).then(pays).flatten() },
            None => match pays() {
                // Before its time is half up a listing that was cut is not had longer.
                Some(Relist::Whole(_)) if young.iter().any(|seen| seen.age(now) <= ttl / 2) => {
                    Told::Nothing
                }
                Some(what) => Told::Old(what),
                None => Told::Nothing,
            },
        }
    }

    /// What to list while files are made in a directory: where there is more than a page, and names
    /// come about in their order, the page in which those stand that come next.
    fn listing_that_pays(&self, directory: &Directory, name: &Name) -> Option<Relist> {
        let listed = directory.seen.as_ref().map_or(0, |seen| seen.entries.len());
        let pages = pages_of(listed.max(directory.children.len()));
        let now = self.clock.now();
        let in_time = directory.makes.next.is_none_or(|next| next <= now);
        if pages > 1
            && in_time
            && directory.made > ASKS_PER_PAGE
            && self.bucket.lists_behind()
            && let Some(behind) = directory.makes.behind(name)
        {
            return Some(Relist::Page(behind));
        }
        // One that was cut tells little: there may be a page more.
        let cut = directory.seen.as_ref().is_some_and(|seen| !seen.whole);
        let pays = directory.made > ASKS_PER_PAGE * pages && pages <= PAGES_MAX;
        pays.then_some(Relist::Whole(pages + usize::from(cut)))
    }

    async fn renew_listing(&self, parent: Ino, what: Relist) {
        let Ok(_turn) = self.relisting.try_lock() else { return };
        // Several were told to before the first of them had.
        let due = self.namespace.lock().get(parent).is_some_and(|inode| {
            let now = self.clock.now();
            let old = |seen: &Seen| seen.age(now) > self.ttl() / 2;
            match what {
                Relist::Whole(_) => inode.directory.seen.as_ref().is_none_or(old),
                Relist::Page(_) => inode.directory.page.as_ref().is_none_or(old),
            }
        });
        if due {
            self.list_for_files(parent, what, None).await;
        }
    }

    /// What fails here is asked for by each name.
    async fn list_for_files(&self, parent: Ino, what: Relist, wanted: Option<&Name>) {
        match what {
            Relist::Whole(pages) => {
                let asked = self.namespace.lock().asked(self.clock.now());
                let pages = pages.min(PAGES_MAX);
                if let Err(error) = self.learn_first_pages(parent, asked, pages).await {
                    tracing::debug!(parent = parent.0, %error, "no listing for new files");
                }
            }
            Relist::Page(behind) => {
                let asked = self.clock.now();
                let learnt = self.learn_page(parent, Some(behind)).await;
                let mut namespace = self.namespace.lock();
                let Some(directory) = namespace.directory_mut(parent) else { return };
                let tells = |name| directory.page.as_ref().is_some_and(|p| p.tells(name).is_some());
                let helps = learnt.is_some() && wanted.is_none_or(tells);
                // Due again when it is due to be renewed.
                let pause = if helps { self.ttl() / 2 } else { self.ttl() * PAUSE_AFTER_MISS };
                directory.makes.next = Some(asked + pause);
            }
        }
    }

    /// Uploads a file. The first time of one at whose name nobody asked what is there, that is
    /// asked beside it, or before it where nobody waits: what is no file stays, and bytes that were
    /// acknowledged go to the quarantine.
    pub(super) async fn upload_at(
        &self,
        ino: Ino,
        file: &OpenFile,
        staged: &Staged,
        condition: &Condition,
    ) -> Result<Uploaded, Errno> {
        let unasked = file.state.lock().unasked;
        let key = self.namespace.lock().key(ino);
        let send = async || match condition {
            Condition::Always => staged.upload(condition).await,
            _ => staged.upload_again(condition).await, // it failed before
        };
        let Some((made, key)) = unasked.zip(key) else {
            return send().await.map_err(Errno::from);
        };
        let small = staged.size().is_ok_and(|size| size <= PUT_BYTES_MAX);
        let told = small && self.bucket.capabilities().create_sees_directories;
        let beside = async {
            match told {
                true => Ok(Found::Nothing),
                false => self.find_directory(&key).await,
            }
        };
        let (uploaded, beside) = match self.acknowledges_locally() {
            true => {
                if let Found::Directory(..) = beside.await? {
                    return Err(self.refuse_made(ino, file, Errno::EISDIR));
                }
                (staged.upload(&Condition::IfAbsent).await, Ok(Found::Nothing))
            }
            false => tokio::join!(staged.upload(&Condition::IfAbsent), beside),
        };
        let hidden = match &beside {
            Ok(Found::Directory(..)) => true,
            Ok(_) => false,
            Err(error) => {
                if let Ok(uploaded) = uploaded {
                    self.uploaded(ino, staged, uploaded); // it is there, whatever hides it
                }
                return Err(error.clone().into());
            }
        };
        let uploaded = match uploaded {
            Ok(uploaded) if hidden => {
                let can = self.bucket.capabilities().delete_if_match;
                let deleted = self.bucket.delete(&key, can.then_some(&uploaded.etag)).await;
                if let Err(error) = deleted {
                    tracing::error!(%key, %error, "a file stays under another node's directory");
                }
                return Err(self.refuse_made(ino, file, Errno::EISDIR));
            }
            Err(_) if hidden => return Err(self.refuse_made(ino, file, Errno::EISDIR)),
            Ok(uploaded) => uploaded,
            Err(WriteError::Bucket(BucketError::Precondition)) => {
                match self.find(&key, None, None).await? {
                    Found::Directory(..) => {
                        return Err(self.refuse_made(ino, file, Errno::EISDIR));
                    }
                    Found::File(there) if !is_file(&there) => {
                        return Err(self.refuse_made(ino, file, Errno::ESTALE));
                    }
                    // After a failure nobody knows who came first, and the condition is to tell.
                    Found::File(there) if *condition == Condition::Always => {
                        self.take_access(ino, &there, made).await?;
                    }
                    Found::File(_) | Found::Records | Found::Nothing => {}
                }
                send().await?
            }
            Err(error) => return Err(error.into()),
        };
        file.state.lock().unasked = None;
        Ok(uploaded)
    }

    /// What an open of the file that was there would have kept of it, but for what was set since.
    async fn take_access(&self, ino: Ino, there: &Remote, made: Access) -> Result<(), Errno> {
        let (parent, name) = {
            let namespace = self.namespace.lock();
            let inode = namespace.get(ino).ok_or(Errno::ESTALE)?;
            if inode.object.as_ref() == Some(&there.etag) {
                return Ok(()); // our own
            }
            (inode.parent, inode.name.clone().ok_or(Errno::ESTALE)?)
        };
        self.load_records(parent).await?;
        let mut namespace = self.namespace.lock();
        let recorded = recorded(&namespace, parent, name.as_str(), Some(&there.etag));
        let kept = match recorded {
            Some(entry) => entry.attributes(there.modified),
            None => Attributes::of(Kind::File, namespace.defaults(), there.modified),
        };
        let Some(inode) = namespace.get_mut(ino) else { return Ok(()) };
        let now = &mut inode.attributes;
        if (now.mode, now.uid, now.gid) == made {
            (now.mode, now.uid, now.gid) = (kept.mode, kept.uid, kept.gid);
        }
        Ok(())
    }

    /// The name is another thing's: the file has none any more, and its users hear of it.
    fn refuse_made(&self, ino: Ino, file: &OpenFile, errno: Errno) -> Errno {
        let namespace = self.namespace.lock();
        let key = namespace.key(ino);
        let key = key.as_ref().map(Key::as_str).unwrap_or_default();
        tracing::error!(key, %errno, "another node made something else at a new file's name");
        drop(namespace);
        self.give_up_closed(file, Why::ChangedElsewhere);
        file.state.lock().lost = true;
        self.namespace.lock().detach(ino);
        errno
    }
}

fn is_file(remote: &Remote) -> bool {
    remote.kind.is_none_or(|kind| kind == Kind::File)
}
