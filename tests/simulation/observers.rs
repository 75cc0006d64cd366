//! Mounts that read what others write, without pause.
//!
//! Owns what is looked at, and that each answer is held against what was known before it was asked
//! for. Does not own the judgement (`oracle`).

use std::collections::BTreeMap;
use std::sync::Arc;

use trialfs::bucket::Store;
use trialfs::fs::error::Errno;
use trialfs::fs::handles::SnapshotEntry;
use trialfs::namespace::seen::SeenEntry;
use trialfs::types::{Ino, Key, Kind};

use super::clock::Dice;
use super::content;
use super::mounts::{Failure, Mount, Program};
use super::oracle::Floor;
use super::world::{Counts, TOP, World};

pub struct Observer {
    pub world: Arc<World>,
    pub mount: Arc<Mount>,
    pub dice: Dice,
}

impl Observer {
    /// Looks until it is dropped, `pause_ms` apart at most.
    pub async fn watch(&self, pause_ms: u64) {
        loop {
            let directories: Vec<String> = self.world.directories.lock().keys().cloned().collect();
            if !directories.is_empty() {
                let at = self.dice.below(directories.len() as u64) as usize;
                let _ = self.look(&directories[at]).await;
            }
            tokio::time::sleep(self.dice.ms(1, pause_ms)).await;
        }
    }

    /// Looks at one directory: at its parent's listing, its own, and into every file.
    pub async fn look(&self, directory: &str) -> Result<Floor, Failure> {
        let looked = self.mount.run(async |program| self.look_by(&program, directory).await).await;
        if let Err(Failure::Error(errno)) = &looked {
            self.world
                .tell(format!("{} could not look at {directory}: {errno}", self.mount.name()));
        }
        looked
    }

    fn floor(&self, directory: &str) -> Floor {
        self.world.in_directory(directory, |d| d.floor.clone())
    }

    fn held(&self, directory: &str, result: Result<(), String>) {
        Counts::one(&self.world.counts.observations);
        self.world.held(self.mount.name(), directory, result);
    }

    async fn look_by(&self, program: &Program, directory: &str) -> Result<Floor, Errno> {
        let floor = self.floor(directory);
        let Some((top, _)) = program.find(Ino::ROOT, TOP).await? else {
            self.held(directory, self.all_missing(directory, &floor));
            return Ok(Floor::new());
        };
        self.look_from_above(program, top, directory).await?;
        let floor = self.floor(directory);
        let Some((at, kind)) = program.find(top, directory).await? else {
            self.held(directory, self.all_missing(directory, &floor));
            return Ok(Floor::new());
        };
        if kind != Kind::Directory {
            self.held(directory, Err("it is no directory".to_owned()));
        }
        let floor = self.floor(directory);
        let seen = match program.list(at).await {
            Err(Errno::ENOENT) => BTreeMap::new(),
            snapshot => self.versions(directory, &snapshot?.entries),
        };
        let told = format!("{} sees {directory}: {seen:?}", self.mount.name());
        self.world.tell(told);
        let result = self.world.in_directory(directory, |d| d.see_all(&seen, &floor));
        self.held(directory, result);
        for name in seen.keys() {
            self.read(program, directory, at, name).await?;
        }
        Ok(seen)
    }

    fn all_missing(&self, directory: &str, floor: &Floor) -> Result<(), String> {
        self.world.in_directory(directory, |d| d.see_all(&BTreeMap::new(), floor))
    }

    /// Whether the parent lists it only if something of it may be there.
    async fn look_from_above(
        &self,
        program: &Program,
        top: Ino,
        directory: &str,
    ) -> Result<(), Errno> {
        let floor = self.floor(directory);
        let snapshot = program.list(top).await?;
        let listed = snapshot.entries.iter().any(|(name, _)| name.as_str() == directory);
        let (may, must) = self.world.in_directory(directory, |d| {
            // A directory that only its content makes a checkpoint is there from its mkdir on.
            (directory.starts_with("dcp") || d.may_be_there(), d.must_be_there(&floor))
        });
        let result = match listed {
            true if !may => Err("its parent lists it before any commit".to_owned()),
            false if must => Err("its parent does not list it after a commit".to_owned()),
            _ => Ok(()),
        };
        self.held(directory, result);
        Ok(())
    }

    /// The round that each version in a listing is of, as the bucket knows.
    fn versions(
        &self,
        directory: &str,
        entries: &[(trialfs::types::Name, SnapshotEntry)],
    ) -> BTreeMap<String, u64> {
        let mut seen = BTreeMap::new();
        for (name, entry) in entries {
            let name = name.as_str().to_owned();
            let round = match entry {
                SnapshotEntry::Seen(SeenEntry::File(remote)) => {
                    self.world.round_of_version(&remote.etag)
                }
                _ => None,
            };
            match round {
                Some((of, round)) if of == format!("{directory}/{name}") => {
                    seen.insert(name, round);
                }
                other => self.held(directory, Err(format!("{name} is listed as {other:?}"))),
            }
        }
        seen
    }

    async fn read(
        &self,
        program: &Program,
        directory: &str,
        at: Ino,
        name: &str,
    ) -> Result<(), Errno> {
        let floor = self.floor(directory);
        let missing = |result: Result<(), String>| self.held(directory, result);
        let Some((file, _)) = program.find(at, name).await? else {
            missing(self.world.in_directory(directory, |d| d.miss(name, &floor)));
            return Ok(());
        };
        let bytes = match program.read(file).await {
            Ok(bytes) => bytes,
            Err(Errno::ENOENT) => {
                missing(self.world.in_directory(directory, |d| d.miss(name, &floor)));
                return Ok(());
            }
            Err(errno) => return Err(errno),
        };
        let result = content::round_of(directory, name, &bytes)
            .and_then(|round| self.world.in_directory(directory, |d| d.see(name, round, &floor)));
        self.held(directory, result);
        Ok(())
    }
}

impl World {
    /// Where a version was written, and in which round.
    pub fn round_of_version(&self, etag: &trialfs::types::ETag) -> Option<(String, u64)> {
        self.versions.lock().get(&etag.0).cloned()
    }

    /// Notes which version an object has now.
    pub fn note_version(&self, key: &str, path: &str, round: u64) {
        let info = futures::FutureExt::now_or_never(self.memory.head(&Key::new(key)));
        if let Some(Ok(info)) = info {
            self.versions.lock().insert(info.etag.0, (path.to_owned(), round));
        }
    }
}
