//! Whole mounts over any store, with what a test needs of caches and bounds.
//!
//! Owns the configuration that tests have in common. Does not own the store, the clock, nor what
//! programs do.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use trialfs::bucket::{Bucket, Store};
use trialfs::clock::Clock;
use trialfs::config::Durability;
use trialfs::fs::{CheckpointConfig, Fs, FsConfig};
use trialfs::read::{ReadConfig, Reader};
use trialfs::write::{WriteConfig, Writer};

/// One mount, to be changed before it [begins](Setup::mount).
pub struct Setup {
    pub store: Arc<dyn Store>,
    pub clock: Arc<dyn Clock>,
    pub io_timeout: Duration,
    pub read: ReadConfig,
    pub write: WriteConfig,
    pub fs: FsConfig,
}

impl Setup {
    /// With its cache in `dir`.
    pub fn new(
        store: Arc<dyn Store>,
        clock: Arc<dyn Clock>,
        dir: &Path,
        mount_id: String,
        io_timeout: Duration,
    ) -> Self {
        let read = ReadConfig {
            dir: dir.join("blocks"),
            cache_bytes_max: 16 << 20,
            memory_bytes_max: 8 << 20,
            block_bytes: 1 << 20,
            parallel_gets: 4,
        };
        let write = WriteConfig {
            dir: dir.join("staged"),
            part_bytes: 8 << 20,
            put_bytes_max: 0,
            parallel_parts: 4,
            bodies_bytes_max: 32 << 20,
            dirty_bytes_max: 1 << 30,
            staged_files_max: 1024,
            uploads_max: 64,
            gives_way: false,
            wait_max: io_timeout,
        };
        let fs = FsConfig {
            prefix: String::new(),
            uid: 0,
            gid: 0,
            umask: 0o022,
            read_only: false,
            strict: false,
            passthrough: false,
            durability: Durability::Close,
            inodes_max: 1 << 20,
            wait_max: io_timeout,
            mount_id,
            scratch_dir: dir.join("scratch"),
            checkpoints: CheckpointConfig::default(),
        };
        Self { store, clock, io_timeout, read, write, fs }
    }

    /// The file system, and its own way to the store. An error if another mount has the directory.
    pub fn mount(self) -> std::io::Result<(Arc<Fs>, Arc<Bucket>)> {
        let Self { store, clock, io_timeout, read, write, fs } = self;
        std::fs::create_dir_all(&fs.scratch_dir)?;
        let bucket = Bucket::new(store, clock.clone(), io_timeout);
        let writer = Writer::new(bucket.clone(), clock.clone(), write)?;
        if fs.durability == Durability::Local {
            writer.journal()?;
        }
        let reader = Reader::new(bucket.clone(), clock.clone(), read)?;
        Ok((Fs::new(fs, bucket.clone(), reader, writer, clock), bucket))
    }
}
