//! From an inode to its checkpoint directory.
//!
//! Owns the mapping of paths: a directory that is written under another name has its own from the
//! start here (`tmp-checkpoint-5` is `checkpoint-5`), so that nothing is uploaded twice. Does not
//! own rules.

use std::sync::Arc;

use super::{Checkpoint, can_commit};
use crate::checkpoint::record::{Escaped, RelPath};
use crate::checkpoint::rules::Rule;
use crate::fs::Fs;
use crate::types::{Ino, Key, Kind, Name};

/// Where a name stands in a checkpoint directory.
#[derive(Debug, Clone)]
pub struct Place {
    pub checkpoint: Arc<Checkpoint>,
    /// The inode of the checkpoint directory; of one that is to be made, its parent's.
    pub root: Ino,
    /// The name that the directory has now, where that is not its own.
    pub written_as: Option<Name>,
    /// The path in it; the root for the directory itself.
    pub rel: RelPath,
    /// The rule that says it is a checkpoint; none where only its records do.
    pub rule: Option<Rule>,
}

impl Place {
    /// The key that the name has once the directory is complete.
    pub fn key(&self) -> Key {
        self.checkpoint.key_of(&self.rel)
    }

    /// The name, where it stands directly in the directory.
    pub fn direct(&self) -> Option<&str> {
        let rel = self.rel.as_str();
        (!rel.is_empty() && !rel.contains('/')).then_some(rel)
    }
}

/// The directories of a path, from below the root down, and where its own inode is one of them.
struct Path {
    directories: Vec<(Ino, Name)>,
    file: Option<Name>,
}

/// What may say that a directory is a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Known {
    ByDirectory,
    /// The file, too.
    ByFile,
}

impl Fs {
    /// Where an inode stands; `None`: in no checkpoint directory.
    pub(in crate::fs) fn place(&self, ino: Ino) -> Option<Place> {
        self.place_of(self.path_of(ino)?, Known::ByDirectory)
    }

    /// Where an inode stands that is about to be written: a file that gives its directory away does
    /// so each time, not only when it is made.
    pub(super) fn place_of_written(&self, ino: Ino) -> Option<Place> {
        self.place_of(self.path_of(ino)?, Known::ByFile)
    }

    fn path_of(&self, ino: Ino) -> Option<Path> {
        let namespace = self.namespace.lock();
        let mut directories = namespace.path(ino)?;
        let is_directory = namespace.get(ino)?.kind == Kind::Directory;
        let file = if is_directory { None } else { directories.pop().map(|(_, name)| name) };
        Some(Path { directories, file })
    }

    /// Where a name that is to be made would stand.
    pub(in crate::fs) fn place_of_new(
        &self,
        parent: Ino,
        name: &Name,
        kind: Kind,
    ) -> Option<Place> {
        let mut directories = self.namespace.lock().path(parent)?;
        if kind == Kind::Directory {
            directories.push((parent, name.clone()));
            return self.place_of(Path { directories, file: None }, Known::ByDirectory);
        }
        self.place_of(Path { directories, file: Some(name.clone()) }, Known::ByFile)
    }

    fn place_of(&self, path: Path, known: Known) -> Option<Place> {
        if !can_commit(&self.bucket.capabilities()) {
            return None;
        }
        let names: Vec<&str> = path.directories.iter().map(|(_, name)| name.as_str()).collect();
        let table = &self.checkpoints.config().table;
        let file = path.file.as_ref().filter(|_| known == Known::ByFile);
        let owner = match file {
            Some(file) => table.owner_of_new(&names, file.as_str()),
            None => table.owner(&names),
        };
        let by_rule = owner.map(|owner| (owner.depth, Some(owner.rule.clone())));
        let by_records = self.depth_by_records(&path.directories).map(|depth| (depth, None));
        let (depth, rule) = match (by_rule, by_records) {
            (Some(rule), Some(records)) if records.0 < rule.0 => records,
            (Some(rule), _) => rule,
            (None, records) => records?,
        };
        let (root, local) = path.directories[depth - 1].clone();
        let own = |name: &str| -> Option<Name> {
            let renamed = rule.as_ref()?.final_name(name)?;
            Name::new(renamed).ok()
        };
        let child = own(local.as_str()).unwrap_or_else(|| local.clone());
        let dir = self.key_of_names(&path.directories[..depth - 1]);
        let mut rel = String::new();
        let inside = path.directories[depth..].iter().map(|(_, name)| name).chain(&path.file);
        for name in inside {
            let name = own(name.as_str()).unwrap_or_else(|| name.clone());
            rel.push_str(if rel.is_empty() { "" } else { "/" });
            rel.push_str(name.as_str());
        }
        let checkpoint = self.checkpoints.at(&self.bucket, &self.clock, &dir, &child);
        let written_as = (local != child).then_some(local);
        Some(Place { checkpoint, root, written_as, rel: RelPath::new(&rel).ok()?, rule })
    }

    /// The outermost directory that has a transaction without a rule that knows it by name.
    fn depth_by_records(&self, directories: &[(Ino, Name)]) -> Option<usize> {
        let namespace = self.namespace.lock();
        (1..=directories.len()).find(|depth| {
            let parent = match depth {
                1 => Ino::ROOT,
                depth => directories[depth - 2].0,
            };
            let name = &directories[depth - 1].1;
            let told = namespace.get(parent).is_some_and(|parent| {
                let told = &parent.directory.transactions;
                !told.is_empty() && told.contains(Escaped::of(name).as_str())
            });
            told || {
                let dir = self.key_of_names(&directories[..depth - 1]);
                self.checkpoints.find(&dir, name).is_some_and(|met| met.is_busy())
            }
        })
    }

    /// The key of a directory, without a `/` at its end.
    fn key_of_names(&self, directories: &[(Ino, Name)]) -> String {
        let mut key = self.config.prefix.clone();
        for (_, name) in directories {
            key.push_str(name.as_str());
            key.push('/');
        }
        key.pop();
        key
    }
}
