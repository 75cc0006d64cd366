//! Whole mounts, as programs use them, and their deaths.
//!
//! Owns lives: a mount that crashes loses its line to the bucket and every operation under way, and
//! begins again with the same id. Does not own what programs do (`teams`, `observers`).

use std::ffi::OsStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;
use trialfs::checkpoint::rules::{self, Table};
use trialfs::clock::{Clock, ulid};
use trialfs::fs::error::Errno;
use trialfs::fs::{Caller, CheckpointConfig, Closer, Fs, Purpose, Replace, SetMode};
use trialfs::types::{Ino, Kind};

use super::clock::SimClock;
use super::setup::Setup;
use super::store::Line;
use super::world::{Counts, World};

pub const LEASE: Duration = Duration::from_secs(9);
pub const IDLE: Duration = Duration::from_millis(250);
pub const COMMIT_WAIT: Duration = Duration::from_secs(30);
const IO_TIMEOUT: Duration = Duration::from_secs(6);
/// Small, so that a file of some KiB has several.
const PART_BYTES: u64 = 4 << 10;
/// A program's writes, in bytes.
const WRITE_BYTES: usize = 3000;
const READ_BYTES: u32 = 1 << 20;
/// Ids of processes that no system has, so that none of this machine's is asked about. Whether one
/// was killed is told at its close.
const PIDS_FROM: u32 = 1 << 30;

/// Why a program did not get on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// Its mount died.
    Crashed,
    /// It was told.
    Error(Errno),
}

impl From<Errno> for Failure {
    fn from(errno: Errno) -> Self {
        Self::Error(errno)
    }
}

pub struct Mount {
    world: Arc<World>,
    name: String,
    id: String,
    faults: u64,
    latency: Duration,
    disk: tempfile::TempDir,
    life: Mutex<Option<Life>>,
    /// How many lives ended.
    ended: watch::Sender<u64>,
}

/// One process on a mount.
#[derive(Debug, Clone, Copy)]
pub struct Process {
    pid: u32,
    /// Lives of its mount that had ended when it began.
    lives: u64,
}

struct Life {
    fs: Arc<Fs>,
    dead: Arc<AtomicBool>,
}

impl Mount {
    pub fn new(world: &Arc<World>, name: &str, (faults, latency): (u64, Duration)) -> Arc<Self> {
        let clock = SimClock::new(world.seed, name, world.start);
        let mount = Arc::new(Self {
            world: world.clone(),
            name: name.to_owned(),
            id: ulid(&clock),
            faults,
            latency,
            disk: disk(),
            life: Mutex::default(),
            ended: watch::channel(0).0,
        });
        mount.begin();
        mount
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn lives(&self) -> u64 {
        *self.ended.borrow()
    }

    pub fn fs(&self) -> Arc<Fs> {
        self.life.lock().as_ref().unwrap().fs.clone()
    }

    pub fn life_name(&self) -> String {
        format!("{}.{}", self.name, self.lives())
    }

    fn begin(&self) {
        let name = self.life_name();
        let dead = Arc::new(AtomicBool::new(false));
        let clock: Arc<dyn Clock> =
            Arc::new(SimClock::new(self.world.seed, &name, self.world.start));
        let latency = self.latency.as_millis() as u64;
        let line = Line::new(&self.world, &name, &dead, self.faults, latency);
        let dir = self.disk.path().join(&name);
        let mut setup = Setup::new(line, clock, &dir, self.id.clone(), IO_TIMEOUT);
        setup.write.part_bytes = PART_BYTES;
        setup.write.bodies_bytes_max = 4 * PART_BYTES;
        setup.fs.checkpoints = CheckpointConfig {
            table: Table::new(vec![rules::orbax(IDLE)], IDLE),
            lease: LEASE,
            commit_max: Duration::from_secs(120),
            commit_wait: COMMIT_WAIT,
            is_older: |pid| pid % 2 == 1,
        };
        let (fs, _) = setup.mount().unwrap();
        *self.life.lock() = Some(Life { fs, dead });
    }

    /// The daemon dies, at whatever it is doing, and another begins with the same id.
    pub fn crash(&self) {
        self.world.tell(format!("{} crashes", self.life_name()));
        Counts::one(&self.world.counts.crashes);
        let life = self.life.lock().take();
        if let Some(life) = life {
            life.dead.store(true, Ordering::Relaxed);
        }
        self.ended.send_modify(|ended| *ended += 1);
        self.begin();
    }

    /// A process that begins now.
    pub fn process(&self) -> Process {
        Process { pid: PIDS_FROM + 2 * self.world.next_process(), lives: self.lives() }
    }

    /// Runs a program on the mount until its end or the mount's.
    pub async fn run<T>(
        &self,
        program: impl AsyncFnOnce(Program) -> Result<T, Errno>,
    ) -> Result<T, Failure> {
        self.run_as(self.process(), program).await
    }

    /// What a process does next.
    pub async fn run_as<T>(
        &self,
        process: Process,
        program: impl AsyncFnOnce(Program) -> Result<T, Errno>,
    ) -> Result<T, Failure> {
        let mut ended = self.ended.subscribe();
        // An odd id: it began before this life of the mount.
        let pid = process.pid + u32::from(process.lives != self.lives());
        let program = program(Program { fs: self.fs(), world: self.world.clone(), pid });
        tokio::select! {
            biased;
            _ = ended.changed() => Err(Failure::Crashed),
            result = program => Ok(result?),
        }
    }
}

/// Where a mount stages: in memory where the machine has such a place, so that thousands of seeds
/// don't wait for a disk.
fn disk() -> tempfile::TempDir {
    let mut builder = tempfile::Builder::new();
    builder.prefix("trialfs-sim");
    builder.tempdir_in("/dev/shm").or_else(|_| builder.tempdir()).unwrap()
}

/// What a program asks of its mount, as the kernel does for it.
pub struct Program {
    pub fs: Arc<Fs>,
    world: Arc<World>,
    pid: u32,
}

/// A file open for writing.
pub struct Open {
    pub handle: u64,
}

impl Program {
    fn caller(&self) -> Caller {
        Caller { uid: 0, gid: 0, pid: self.pid }
    }

    fn told<T>(&self, what: impl Fn() -> String, result: Result<T, Errno>) -> Result<T, Errno> {
        Counts::one(&self.world.counts.operations);
        if let Err(errno) = &result {
            Counts::one(&self.world.counts.refused);
            self.world.tell(format!("  {}: {errno}", what()));
        }
        result
    }

    pub async fn find(&self, parent: Ino, name: &str) -> Result<Option<(Ino, Kind)>, Errno> {
        match self.fs.lookup(parent, OsStr::new(name), |_| Purpose::Unknown).await {
            Ok(entry) => Ok(Some((entry.stat.ino, entry.stat.kind))),
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => self.told(|| format!("lookup {name}"), Err(errno)),
        }
    }

    /// `mkdir -p` of one component.
    pub async fn directory(&self, parent: Ino, name: &str) -> Result<Ino, Errno> {
        if let Some((ino, _)) = self.find(parent, name).await? {
            return Ok(ino);
        }
        let made = self.fs.mkdir(parent, OsStr::new(name), 0o755, self.caller()).await;
        match self.told(|| format!("mkdir {name}"), made) {
            Ok(entry) => Ok(entry.stat.ino),
            Err(Errno::EEXIST) => Ok(self.find(parent, name).await?.ok_or(Errno::ENOENT)?.0),
            Err(errno) => Err(errno),
        }
    }

    /// open(O_WRONLY | O_CREAT | O_TRUNC).
    pub async fn create(&self, parent: Ino, name: &str) -> Result<Open, Errno> {
        let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_TRUNC;
        let opened = match self.find(parent, name).await? {
            Some((ino, _)) => self.fs.open(ino, flags, self.pid).await,
            None => {
                let name = OsStr::new(name);
                let made = self.fs.create(parent, name, 0o644, flags, self.caller()).await;
                made.map(|(_, opened)| opened)
            }
        };
        let opened = self.told(|| format!("create {name}"), opened)?;
        Ok(Open { handle: opened.handle })
    }

    pub async fn write(&self, open: &Open, bytes: &[u8]) -> Result<(), Errno> {
        for (at, piece) in bytes.chunks(WRITE_BYTES).enumerate() {
            let at = (at * WRITE_BYTES) as u64;
            let written = self.fs.write(open.handle, at, piece).await;
            self.told(|| "write".to_owned(), written)?;
        }
        Ok(())
    }

    /// close(2) by a living program: its error is the program's. The descriptor is gone either way.
    pub async fn close(&self, open: Open) -> Result<(), Errno> {
        let flushed = self.fs.flush(open.handle, Closer::Living(0)).await;
        self.fs.release(open.handle).await;
        self.told(|| "close".to_owned(), flushed)
    }

    /// The kernel closes what a killed process had open.
    pub async fn killed(&self, open: Vec<Open>) {
        for open in open {
            let _ = self.fs.flush(open.handle, Closer::Killed).await;
            self.fs.release(open.handle).await;
        }
    }

    pub async fn fsync(&self, open: &Open) -> Result<(), Errno> {
        let synced = self.fs.fsync(open.handle).await;
        self.told(|| "fsync".to_owned(), synced)
    }

    pub async fn unlink(&self, parent: Ino, name: &str) -> Result<(), Errno> {
        match self.fs.unlink(parent, OsStr::new(name)).await {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(errno) => self.told(|| format!("unlink {name}"), Err(errno)),
        }
    }

    pub async fn rmdir(&self, parent: Ino, name: &str) -> Result<(), Errno> {
        let removed = self.fs.rmdir(parent, OsStr::new(name)).await;
        self.told(|| format!("rmdir {name}"), removed)
    }

    pub async fn rename(&self, parent: Ino, from: &str, to: &str) -> Result<(), Errno> {
        let (from, to) = (OsStr::new(from), OsStr::new(to));
        let renamed = self.fs.rename(parent, from, parent, to, Replace::Allowed).await;
        self.told(|| format!("rename to {to:?}"), renamed)
    }

    pub async fn commit(&self, directory: Ino) -> Result<(), Errno> {
        let name = trialfs::fs::checkpoints::COMMIT_XATTR;
        let committed = self.fs.setxattr(directory, name, b"1", SetMode::Any).await;
        self.told(|| "commit".to_owned(), committed)
    }

    /// The names of a directory with the versions that one listing tells.
    pub async fn list(&self, directory: Ino) -> Result<Arc<trialfs::fs::Snapshot>, Errno> {
        let handle = self.fs.opendir(directory).await?;
        let snapshot = self.fs.read_directory(handle, 0).await;
        self.fs.releasedir(handle);
        snapshot
    }

    /// Opens a file and reads all of it.
    pub async fn read(&self, file: Ino) -> Result<Vec<u8>, Errno> {
        let opened = self.fs.open(file, libc::O_RDONLY, 0).await?;
        let bytes = self.fs.read(opened.handle, 0, READ_BYTES).await;
        self.fs.release(opened.handle).await;
        bytes.map(|bytes| bytes.to_vec())
    }
}
