//! Files of one directory that are read one after another in their order, as the shards of a
//! checkpoint are: the next are fetched before they are opened, so that a reader waits for one
//! round trip at each, not for its bytes.
//!
//! Owns which files follow, and how much of them is worth it. Does not own the fetching (`read`),
//! nor what an open asks: it asks the store as ever, and what was fetched of another version is not
//! read.
//!
//! What must hold: nothing is fetched for whoever reads one file, or looks into many. A file counts
//! once all of it was read by READs of the kernel; what is fetched ahead is at most
//! [`AHEAD_RATIO`] times that, and never more than the window of a stream at a time.
//!
//! Cost: the GETs of what is fetched, which its readers are spared.

use parking_lot::Mutex;

use super::Fs;
use super::revalidate::SMALL_BYTES_MAX;
use crate::namespace::inode::SeenEntry;
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

/// A large file among those of its directory, in their order.
struct Neighbours {
    before: Option<Name>,
    behind: Vec<(Name, Version)>,
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
        let Some(neighbours) = self.neighbours(directory, &name) else { return };
        let mut run = self.runs.take(directory, neighbours.before.as_ref(), &name, &version);
        if run.last.0 != name {
            run.read += if self.reader.is_read(&run.last.1) { run.last.1.size } else { 0 };
            run.last = (name, version);
        }
        let mut window = self.reader.window_bytes_max();
        for (_, next) in &neighbours.behind {
            let room = window.min((run.read * AHEAD_RATIO).saturating_sub(run.fetched));
            if room == 0 {
                break;
            }
            run.fetched += self.reader.fetch_ahead(next, room);
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

    /// By the directory's last listing; those that are only here yet need no fetching.
    fn neighbours(&self, directory: Ino, name: &Name) -> Option<Neighbours> {
        let namespace = self.namespace.lock();
        let seen = namespace.get(directory)?.directory.seen.as_ref()?;
        if seen.entries.len() > ENTRIES_MAX {
            return None;
        }
        let (mut before, mut behind) = (None, Vec::new());
        for (other, entry) in &seen.entries {
            let SeenEntry::File(remote) = entry else { continue };
            // What is known of a name is no older than that.
            let child = namespace.child(directory, other);
            let (at, etag, size) = match child.map(|child| (child, &child.object)) {
                Some((child, Some(etag))) if !child.staged => (&child.at, etag, child.size),
                Some(_) => continue,
                None => (&remote.at, &remote.etag, remote.size),
            };
            if size <= SMALL_BYTES_MAX || other == name {
                continue;
            }
            if other < name {
                before = before.max(Some(other));
                continue;
            }
            let key = at.clone().or_else(|| namespace.child_key(directory, other))?;
            behind.push((other.clone(), Version { key, etag: etag.clone(), size }));
        }
        behind.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        Some(Neighbours { before: before.cloned(), behind })
    }
}
