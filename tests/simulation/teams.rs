//! Programs that save checkpoints, each as its trainer does it.
//!
//! Owns what is written, in which order, and who is killed when. Does not own what may be seen of
//! it (`oracle`).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use trialfs::fs::error::Errno;
use trialfs::types::Ino;

use super::clock::Dice;
use super::content;
use super::mounts::{Failure, Mount, Open, Process, Program};
use super::oracle::Fate;
use super::world::{Counts, TOP, World};

/// Names that rounds of one directory choose from.
const NAMES_MAX: u64 = 8;
/// Largest file, in bytes: some six parts.
const FILE_BYTES_MAX: u64 = 24 << 10;

/// How long a job of several ranks takes to start again.
const RESTART: Duration = Duration::from_secs(20);

/// How a directory is known and committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trainer {
    /// Quiet is the sign; handles overlap, as with Arrow's copying threads.
    Ray,
    /// Two ranks, then a snapshot that names the directory.
    RayTrain,
    /// Written under another name, then renamed; one directory for each round.
    Orbax,
    /// Two ranks, then `.metadata.tmp` is renamed.
    Dcp,
    /// One rank; `trainer_state.json` is closed last.
    Hf,
    /// As `Ray`, with a commit that is asked for.
    Explicit,
}

pub const TRAINERS: [Trainer; 6] =
    [Trainer::Ray, Trainer::RayTrain, Trainer::Orbax, Trainer::Dcp, Trainer::Hf, Trainer::Explicit];

/// One directory's writers.
pub struct Team {
    pub world: Arc<World>,
    pub trainer: Trainer,
    /// Which of the kind it is.
    pub number: u64,
    pub ranks: Vec<Arc<Mount>>,
    pub dice: Dice,
}

/// What one rank does in a round.
struct Part {
    files: Vec<(String, usize)>,
    removes: Vec<String>,
    /// The process is killed at this file.
    killed_at: Option<usize>,
    fsync: bool,
}

impl Team {
    pub fn ranks_wanted(trainer: Trainer) -> usize {
        match trainer {
            Trainer::RayTrain | Trainer::Dcp => 2,
            _ => 1,
        }
    }

    /// The directory of a round.
    pub fn directory(&self, round: u64) -> String {
        match self.trainer {
            Trainer::Ray | Trainer::Explicit => format!("checkpoint_{:06}", self.number),
            Trainer::RayTrain => {
                format!("checkpoint_2026-01-01_00-00-00.{:06}", self.number)
            }
            Trainer::Orbax => format!("step{}x{round}", self.number),
            Trainer::Dcp => format!("dcp{}", self.number),
            Trainer::Hf => format!("checkpoint-{}", self.number),
        }
    }

    pub async fn work(self: Arc<Self>, rounds: u64) {
        for round in 1..=rounds {
            let directory = self.directory(round);
            let removal = round > 1 && self.trainer == Trainer::Ray && self.dice.chance(15);
            if removal {
                self.remove(&directory).await;
            } else {
                self.save(&directory).await;
            }
            tokio::time::sleep(self.pause()).await;
        }
    }

    fn pause(&self) -> Duration {
        match self.dice.below(3) {
            0 => self.dice.ms(1, 50),
            1 => self.dice.ms(300, 5_000),
            _ => self.dice.ms(5_000, 40_000),
        }
    }

    fn part(&self, rank: usize, doomed: bool) -> Part {
        let ranks = Self::ranks_wanted(self.trainer);
        let mut names: Vec<String> = match self.trainer {
            Trainer::Dcp => (0..3).map(|i| format!("__{rank}_{i}.distcp")).collect(),
            Trainer::RayTrain => (0..4).map(|i| format!("rank{rank}-{i}.pt")).collect(),
            _ => (0..NAMES_MAX).map(|i| format!("f{i}")).collect(),
        };
        let mut removes = Vec::new();
        if ranks == 1 {
            let kept = 1 + self.dice.below(NAMES_MAX) as usize;
            while names.len() > kept {
                let name = names.remove(self.dice.below(names.len() as u64) as usize);
                if self.dice.chance(40) && self.trainer != Trainer::Orbax {
                    removes.push(name);
                }
            }
        }
        if self.trainer == Trainer::Hf {
            names.push("trainer_state.json".to_owned());
        }
        let size = |_: &String| {
            let top = if self.dice.chance(30) { FILE_BYTES_MAX } else { 3_000 };
            100 + self.dice.below(top) as usize
        };
        let files: Vec<_> = names.iter().map(|name| (name.clone(), size(name))).collect();
        let killed_at = doomed.then(|| self.dice.below(files.len() as u64) as usize);
        Part { files, removes, killed_at, fsync: self.dice.chance(20) }
    }

    /// One round, to its end or its writers'.
    async fn save(&self, directory: &str) {
        Counts::one(&self.world.counts.rounds);
        let doomed = self.dice.chance(20).then(|| self.dice.below(self.ranks.len() as u64));
        let parts: Vec<Part> =
            (0..self.ranks.len()).map(|i| self.part(i, doomed == Some(i as u64))).collect();
        let mut writes: BTreeSet<String> =
            parts.iter().flat_map(|part| &part.files).map(|(name, _)| name.clone()).collect();
        if self.trainer == Trainer::Dcp {
            writes.insert(".metadata".to_owned());
        }
        let removes = parts.iter().flat_map(|part| part.removes.clone()).collect();
        let fate = if doomed.is_some() { Fate::Dead } else { Fate::Writing };
        let round = self.world.in_directory(directory, |d| d.begin(fate, writes, removes));
        self.world.tell(format!("{:?} {directory} round {round} begins, {fate:?}", self.trainer));
        let processes: Vec<Process> = self.ranks.iter().map(|mount| mount.process()).collect();
        let ranks = parts.iter().zip(&self.ranks).enumerate().map(async |(rank, (part, mount))| {
            let delay = self.dice.ms(1, 400);
            tokio::time::sleep(delay).await;
            let write =
                async |program: Program| self.rank(&program, directory, round, part, rank).await;
            mount.run_as(processes[rank], write).await
        });
        let ended = futures::future::join_all(ranks).await;
        let failure = ended.iter().find_map(|ended| ended.err());
        let result = match (failure, doomed) {
            (Some(failure), _) => Err(failure),
            (None, Some(_)) => Ok(()),
            (None, None) => self.sign(directory, round, &processes).await,
        };
        self.world.tell(format!("{:?} {directory} round {round} ends: {result:?}", self.trainer));
        self.world.in_directory(directory, |d| match result {
            Ok(()) => d.decide(round, Fate::Finished),
            Err(Failure::Error(_)) if doomed.is_none() => d.failed(round),
            Err(_) => d.decide(round, Fate::Dead),
        });
        if self.ranks.len() > 1 && (doomed.is_some() || result.is_err()) {
            // A job that lost a rank ends whole and is started again.
            tokio::time::sleep(RESTART).await;
        }
    }

    fn local(&self, directory: &str) -> String {
        match self.trainer {
            Trainer::Orbax => format!("{directory}.orbax-checkpoint-tmp-0"),
            _ => directory.to_owned(),
        }
    }

    /// One process of a round.
    async fn rank(
        &self,
        program: &Program,
        directory: &str,
        round: u64,
        part: &Part,
        rank: usize,
    ) -> Result<(), Errno> {
        let top = program.directory(Ino::ROOT, TOP).await?;
        let at = program.directory(top, &self.local(directory)).await?;
        let mut open: Vec<Open> = Vec::new();
        let result = self.write(program, (directory, at), round, part, &mut open, rank).await;
        if part.killed_at.is_some() {
            // Killed where it stood, whether or not it was told of an error before.
            if open.is_empty() {
                self.world.in_directory(directory, |d| d.failed(round));
            }
            program.killed(open).await;
        } else {
            for open in open {
                let _ = program.close(open).await;
            }
        }
        result
    }

    async fn write(
        &self,
        program: &Program,
        (directory, at): (&str, Ino),
        round: u64,
        part: &Part,
        open: &mut Vec<Open>,
        rank: usize,
    ) -> Result<(), Errno> {
        let last = part.files.len() - 1;
        for (i, (name, size)) in part.files.iter().enumerate() {
            let bytes = content::make(directory, round, name, *size);
            // The next is open before the last is closed: the directory is never quiet.
            open.push(program.create(at, name).await?);
            if i == 0 {
                for name in &part.removes {
                    program.unlink(at, name).await?;
                }
            }
            if self.dice.chance(30) {
                tokio::time::sleep(self.dice.ms(1, 2_000)).await;
            }
            if part.killed_at == Some(i) {
                let half = self.dice.below(bytes.len() as u64) as usize;
                return program.write(&open[open.len() - 1], &bytes[..half]).await;
            }
            program.write(&open[open.len() - 1], &bytes).await?;
            if part.fsync {
                program.fsync(&open[open.len() - 1]).await?;
            }
            if open.len() > 1 {
                program.close(open.remove(0)).await?;
            }
            let whole = i == last && self.ranks.len() == 1 && self.trainer != Trainer::Orbax;
            if whole && rank == 0 {
                self.world.in_directory(directory, |d| d.decide(round, Fate::Finished));
            }
        }
        match open.pop() {
            Some(last) => program.close(last).await,
            None => Ok(()),
        }
    }

    /// Half a round whose sign never comes: one with all files closed, then one with a file open.
    pub async fn begin_and_stop(&self, name: &str, number: u64) {
        let wrote = self.ranks[0].run(async |program| {
            let top = program.directory(Ino::ROOT, TOP).await?;
            let at = program.directory(top, &format!("{name}{number}")).await?;
            let open = program.create(at, "__0_0.distcp").await?;
            program.write(&open, &[b'x'; 100]).await?;
            program.close(open).await?;
            if number > 1 {
                program.create(at, "__0_1.distcp").await?;
            }
            Ok(())
        });
        assert_eq!(wrote.await, Ok(()));
    }

    /// What says that the round is complete.
    async fn sign(
        &self,
        directory: &str,
        round: u64,
        processes: &[Process],
    ) -> Result<(), Failure> {
        let finished = || self.world.in_directory(directory, |d| d.decide(round, Fate::Finished));
        let acknowledged = match self.trainer {
            Trainer::Ray | Trainer::Hf => return Ok(()),
            Trainer::Explicit => {
                let commit = async |program: Program| {
                    let at = self.walk(&program, directory).await?;
                    program.commit(at).await
                };
                self.ranks[0].run_as(processes[0], commit).await
            }
            Trainer::Orbax => {
                finished();
                let rename = async |program: Program| {
                    let top = program.directory(Ino::ROOT, TOP).await?;
                    program.rename(top, &self.local(directory), directory).await
                };
                return self.ranks[0].run_as(processes[0], rename).await;
            }
            Trainer::Dcp => {
                let rename = async |program: Program| {
                    let at = self.walk(&program, directory).await?;
                    let bytes = content::make(directory, round, ".metadata", 200);
                    let open = program.create(at, ".metadata.tmp").await?;
                    program.write(&open, &bytes).await?;
                    program.close(open).await?;
                    finished();
                    program.rename(at, ".metadata.tmp", ".metadata").await
                };
                return self.ranks[0].run_as(processes[0], rename).await;
            }
            Trainer::RayTrain => {
                finished();
                let last = self.ranks.len() as u64;
                let at = self.dice.below(last) as usize;
                let snapshot = async |program: Program| self.snapshot(&program, directory).await;
                self.ranks[at].run_as(processes[at], snapshot).await
            }
        };
        if acknowledged.is_ok() {
            self.world.tell(format!("{directory} round {round} is acknowledged"));
            self.world.in_directory(directory, |d| d.committed(round));
        }
        acknowledged
    }

    async fn walk(&self, program: &Program, directory: &str) -> Result<Ino, Errno> {
        let top = program.directory(Ino::ROOT, TOP).await?;
        Ok(program.find(top, directory).await?.ok_or(Errno::ENOENT)?.0)
    }

    async fn snapshot(&self, program: &Program, directory: &str) -> Result<(), Errno> {
        let top = program.directory(Ino::ROOT, TOP).await?;
        let result = serde_json::json!({ "checkpoint_dir_name": directory });
        let json = serde_json::json!({ "checkpoint_results": [result] }).to_string();
        let open = program.create(top, "checkpoint_manager_snapshot.json").await?;
        let written = program.write(&open, json.as_bytes()).await;
        program.close(open).await?;
        written
    }

    /// Deletes the checkpoint as Ray does: every name, then the directory.
    async fn remove(&self, directory: &str) {
        let names: BTreeSet<String> = (0..NAMES_MAX).map(|i| format!("f{i}")).collect();
        let begin = |d: &mut super::oracle::Directory| {
            d.begin(Fate::Removal, BTreeSet::new(), names.clone())
        };
        let round = self.world.in_directory(directory, begin);
        self.world.tell(format!("{directory} round {round}: removal"));
        let removed = self.ranks[0].run(async |program| {
            let at = self.walk(&program, directory).await?;
            for name in &names {
                program.unlink(at, name).await?;
            }
            let top = program.directory(Ino::ROOT, TOP).await?;
            program.rmdir(top, directory).await
        });
        let removed = removed.await;
        self.world.tell(format!("{directory} round {round}: removed {removed:?}"));
    }

    /// The last round, without faults: every name is written, and the commit is asked for.
    pub async fn finish(&self, directory: &str) -> Result<u64, Failure> {
        let mut parts: Vec<Part> = (0..self.ranks.len()).map(|i| self.part(i, false)).collect();
        if self.ranks.len() == 1 && self.trainer != Trainer::Orbax {
            let mut names: Vec<String> = (0..NAMES_MAX).map(|i| format!("f{i}")).collect();
            names.push("trainer_state.json".to_owned());
            parts[0].files = names.into_iter().map(|name| (name, 500)).collect();
            parts[0].removes.clear();
        }
        let mut writes: BTreeSet<String> =
            parts.iter().flat_map(|part| &part.files).map(|(name, _)| name.clone()).collect();
        if self.trainer == Trainer::Dcp {
            writes.insert(".metadata".to_owned());
        }
        let round =
            self.world.in_directory(directory, |d| d.begin(Fate::Writing, writes, BTreeSet::new()));
        self.world.tell(format!("{directory} round {round}: the last"));
        let processes: Vec<Process> = self.ranks.iter().map(|mount| mount.process()).collect();
        for (rank, (part, mount)) in parts.iter().zip(&self.ranks).enumerate() {
            let write =
                async |program: Program| self.rank(&program, directory, round, part, rank).await;
            if let Err(failure) = mount.run_as(processes[rank], write).await {
                self.world.in_directory(directory, |d| d.decide(round, Fate::Failed));
                return Err(failure);
            }
        }
        let signed = match self.trainer {
            Trainer::Ray | Trainer::Hf => {
                let commit = async |program: Program| {
                    let at = self.walk(&program, directory).await?;
                    program.commit(at).await
                };
                self.ranks[0].run_as(processes[0], commit).await
            }
            _ => self.sign(directory, round, &processes).await,
        };
        let fate = if signed.is_ok() { Fate::Finished } else { Fate::Failed };
        self.world.in_directory(directory, |d| {
            d.decide(round, fate);
            if signed.is_ok() {
                d.committed(round);
            }
        });
        signed.map(|()| round)
    }
}
