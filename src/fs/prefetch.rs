//! Files of one directory that are read one after another in their order, as the shards of a
//! checkpoint are: the next are fetched before they are opened, so that a reader waits for one
//! round trip at each, not for its bytes.
//!
//! Owns which files follow, and how much of them is worth it. Does not own the fetching (`read`),
//! nor what an open asks: it asks the store as ever, and what was fetched of another version is not
//! read.
//!
//! What must hold: nothing is fetched for whoever reads one file, or several in no order. A file
//! counts once all of it was read by READs of the kernel; what is fetched ahead of one reader is at
//! most [`AHEAD_RATIO`] times that in all, and never more than the window of a stream at a time.
//!
//! Cost: the GETs of what is fetched, which its readers are spared.

use parking_lot::Mutex;

use super::Fs;
use super::revalidate::SMALL_BYTES_MAX;
use crate::namespace::Namespace;
use crate::namespace::seen::SeenEntry;
use crate::read::Version;
use crate::types::{Ino, Name};

/// As for the streams of one file: see `read::readahead`.
const AHEAD_RATIO: u64 = 4;
/// Readers that are followed at a time; the oldest is forgotten first.
const RUNS_MAX: usize = 16;
/// In a larger directory to find what follows takes longer than it may spare.
const ENTRIES_MAX: usize = 1000;

/// Readers of directories.
#[derive(Debug, Default)]
pub(super) struct Runs(Mutex<Vec<Run>>);

/// One that reads file after file.
#[derive(Debug)]
struct Run {
    directory: Ino,
    last: (Name, Version),
    /// Bytes of the files that were read whole.
    read: u64,
    /// Bytes that were fetched ahead.
    fetched: u64,
}

impl Runs {
    /// The run that an open of a file goes on, or a new one.
    fn take(&self, directory: Ino, before: Option<&Name>, name: &Name, version: &Version) -> Run {
        let mut all = self.0.lock();
        let is_its = |run: &Run, last: Option<&Name>| {
            run.directory == directory && last == Some(&run.last.0)
        };
        let found = all.iter().position(|run| is_its(run, before) || is_its(run, Some(name)));
        let last = (name.clone(), version.clone());
        match found {
            Some(index) => all.remove(index),
            None => Run { directory, last, read: 0, fetched: 0 },
        }
    }

    fn put(&self, run: Run) {
        let mut all = self.0.lock();
        if all.len() >= RUNS_MAX {
            all.remove(0);
        }
        all.push(run);
    }
}

impl Fs {
    /// A file is about to be read: fetches what most likely is read next.
    pub(super) fn fetch_following(&self, ino: Ino) {
        let Some((directory, name, version)) = self.large_file(ino) else { return };
        let Some(before) = self.name_before(directory, &name) else { return };
        let mut run = self.runs.take(directory, before.as_ref(), &name, &version);
        if run.last.0 != name {
            run.read += if self.reader.is_read(&run.last.1) { run.last.1.size } else { 0 };
            run.last = (name, version);
        }
        let mut window = self.reader.window_bytes_max();
        let room = |run: &Run, window: u64| {
            window.min((run.read * AHEAD_RATIO).saturating_sub(run.fetched))
        };
        let following = match room(&run, window) {
            0 => Vec::new(),
            _ => self.following(directory, &run.last.0, window),
        };
        for next in following {
            run.fetched += self.reader.fetch_ahead(&next, room(&run, window));
            window = window.saturating_sub(next.size);
        }
        self.runs.put(run);
    }

    fn large_file(&self, ino: Ino) -> Option<(Ino, Name, Version)> {
        let version = self.version(ino).ok().flatten()?;
        let namespace = self.namespace.lock();
        let inode = namespace.get(ino).filter(|inode| inode.linked && !inode.staged)?;
        let name = inode.name.clone()?;
        (version.size > SMALL_BYTES_MAX).then_some((inode.parent, name, version))
    }

    /// The large file before one, by the directory's last listing; `None` without one of use.
    fn name_before(&self, directory: Ino, name: &Name) -> Option<Option<Name>> {
        let namespace = self.namespace.lock();
        let seen = namespace.get(directory)?.directory.seen.as_ref();
        seen.filter(|seen| seen.entries.len() <= ENTRIES_MAX)?;
        let before = large_files(&namespace, directory).filter(|(other, _)| *other < name);
        Some(before.map(|(other, _)| other).max().cloned())
    }

    /// The large files behind one, in their order, until they are so many bytes. Those that are
    /// only here yet need no fetching.
    fn following(&self, directory: Ino, name: &Name, bytes: u64) -> Vec<Version> {
        let namespace = self.namespace.lock();
        let mut behind: Vec<(&Name, u64)> =
            large_files(&namespace, directory).filter(|(other, _)| *other > name).collect();
        behind.sort_unstable();
        let mut left = bytes;
        let wanted = behind.into_iter().take_while(|(_, size)| {
            let more = left > 0;
            left = left.saturating_sub(*size);
            more
        });
        wanted.filter_map(|(other, _)| version_of(&namespace, directory, other)).collect()
    }
}

/// Files that do not come whole with the answer at their open, and their sizes.
fn large_files(namespace: &Namespace, directory: Ino) -> impl Iterator<Item = (&Name, u64)> {
    let seen = namespace.get(directory).and_then(|inode| inode.directory.seen.as_ref());
    seen.into_iter().flat_map(|seen| &seen.entries).filter_map(|(name, entry)| match entry {
        SeenEntry::File(remote) if remote.size > SMALL_BYTES_MAX => Some((name, remote.size)),
        _ => None,
    })
}

/// What is known of a name, which is no older than what the listing told.
fn version_of(namespace: &Namespace, directory: Ino, name: &Name) -> Option<Version> {
    let SeenEntry::File(remote) =
        namespace.get(directory)?.directory.seen.as_ref()?.entries.get(name)?
    else {
        return None;
    };
    let (at, etag, size) = match namespace.child(directory, name) {
        Some(child) if child.staged => return None,
        Some(child) => (&child.at, child.object.as_ref()?, child.size),
        None => (&remote.at, &remote.etag, remote.size),
    };
    let key = at.clone().or_else(|| namespace.child_key(directory, name))?;
    Some(Version { key, etag: etag.clone(), size })
}
