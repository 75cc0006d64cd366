//! The parts of a mount put together: store, read path, write path, file system.
//!
//! Owns which part gets what of the configuration. Does not own the parts.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use async_trait::async_trait;
use tokio::runtime::Handle;
use tokio::time::timeout;

use crate::bucket::{self, Bucket, BucketError, Capabilities, ReadOnly};
use crate::checkpoint::rules;
use crate::clock::Clock;
use crate::config::{Durability, Location, MountConfig};
use crate::fs::checkpoints::{Sweep, can_commit};
use crate::fs::{CheckpointConfig, Fs, FsConfig, NOBODY_IS_WATCHED, Recovered, can_be_watched};
use crate::fuse::run::Requests;
use crate::fuse::{self, Serving};
use crate::read::{self, ReadConfig, Reader};
use crate::telemetry;
use crate::write::quarantine::{self, Quarantined};
use crate::write::{self, WriteConfig, Writer};

use super::cachedir::CacheDir;
use super::control::Left;
use super::life::Tree;

/// While mounting a request is retried for so long at most: somebody waits, and a wrong address is
/// the likely reason.
const PROBE_REQUEST_S_MAX: Duration = Duration::from_secs(15);
/// The bound on reaching the store and finding out what it can do.
const PROBE_S_MAX: Duration = Duration::from_secs(60);
/// Threads that take requests from the kernel; past four they only contend.
const KERNEL_THREADS_MAX: usize = 4;
/// The shares of the memory limit for reads and for bodies of uploads, in parts of eight; the rest
/// is for names, requests and the program itself.
const READ_MEMORY_EIGHTHS: u64 = 3;
const WRITE_MEMORY_EIGHTHS: u64 = 3;
/// However few descriptors there are, so many files may be written: enough for a program that
/// copies a few.
const STAGED_FILES_MIN: usize = 64;
/// Files in quarantine that `status` names.
const QUARANTINE_NAMED_MAX: usize = 100;
/// Beyond the store's own bound an operation needs this for its own work.
const DEADLINE_SLACK: Duration = Duration::from_secs(10);

/// A file system over a store, not yet mounted.
pub struct Assembled {
    fs: Arc<Fs>,
    requests: OnceLock<Arc<Requests>>,
    capabilities: Capabilities,
    warnings: Vec<String>,
    cache_dir: PathBuf,
}

/// Reaches the store, probes it and builds the file system. The error is for the user.
pub async fn assemble(
    config: &MountConfig,
    cache: &CacheDir,
    clock: Arc<dyn Clock>,
) -> Result<Assembled> {
    let prefix = prefix_of(&config.location);
    let reach = reach(config, &prefix, clock.clone());
    let reached = timeout(PROBE_S_MAX, reach).await;
    let (bucket, mut warnings) =
        reached.map_err(|_| anyhow!("{}: no answer within {PROBE_S_MAX:?}", config.url))??;
    let capabilities = bucket.capabilities();
    cache.claim()?;
    let in_cache = |name: &str| cache.path().join(name);

    let reader =
        Reader::new(bucket.clone(), clock.clone(), read_config(config, in_cache("blocks")))
            .with_context(|| unusable(cache.path()))?;
    let writer =
        Writer::new(bucket.clone(), clock.clone(), write_config(config, in_cache("staged")))
            .with_context(|| unusable(cache.path()))?;
    let quarantined = writer.status().quarantined_files;
    if quarantined > 0 {
        let dir = cache.path().display();
        warnings.push(format!(
            "{quarantined} files of an earlier daemon never reached the bucket; they are in \
             {dir}/quarantine"
        ));
    }
    if !can_commit(&capabilities) {
        warnings.push(
            "the store lacks conditional writes or uploads by parts: checkpoint directories are \
             seen by other nodes file by file, while they are written"
                .to_owned(),
        );
    }
    let scratch_dir = in_cache("scratch");
    std::fs::create_dir_all(&scratch_dir).with_context(|| unusable(cache.path()))?;
    let fs_config = FsConfig {
        prefix,
        uid: config.uid,
        gid: config.gid,
        umask: config.umask,
        read_only: config.read_only,
        strict: config.strict,
        passthrough: config.passthrough,
        durability: config.durability,
        mount_id: cache.mount_id().to_owned(),
        scratch_dir,
        checkpoints: checkpoint_config(config)?,
        inodes_max: config.counts.inodes,
        wait_max: config.io_timeout / 2, // the rest is for the operation that waited
    };
    if config.durability == Durability::Local {
        writer.journal().with_context(|| unusable(cache.path()))?;
    }
    let fs = Fs::new(fs_config, bucket, reader, writer, clock);
    warnings.extend((!can_be_watched()).then(|| NOBODY_IS_WATCHED.to_owned()));
    warnings.extend(recovery_text(&fs.recover().await, cache.path()));
    let cache_dir = cache.path().to_owned();
    Ok(Assembled { fs, requests: OnceLock::new(), capabilities, warnings, cache_dir })
}

/// What became of an earlier daemon's acknowledged files, each on a line.
fn recovery_text(recovered: &Recovered, cache: &Path) -> Vec<String> {
    let Recovered { files, bytes, quarantined, left } = *recovered;
    let mut lines = Vec::new();
    if files > 0 {
        lines.push(format!(
            "{files} files, {bytes} bytes, that an earlier daemon had acknowledged and not \
             uploaded are in the bucket now"
        ));
    }
    if quarantined > 0 {
        lines.push(format!(
            "{quarantined} acknowledged files of an earlier daemon have no place in the bucket any \
             more; `trialfs recover --cache-dir {}` tells why and hands them out",
            cache.display()
        ));
    }
    if left > 0 {
        lines.push(format!(
            "{left} acknowledged files of an earlier daemon could not be uploaded; the next mount \
             tries again"
        ));
    }
    lines
}

impl Assembled {
    /// What the store can't do and what follows, each on one line.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Answers the kernel on `descriptor`; the mount answers when this returns.
    pub fn serve(
        &self,
        config: &MountConfig,
        descriptor: OwnedFd,
        runtime: Handle,
    ) -> io::Result<Serving> {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let options = fuse::Options {
            point: config.mount_point.as_path().into(),
            allow_other: config.allow_other,
            threads: threads.clamp(2, KERNEL_THREADS_MAX),
            deadline: config.io_timeout + DEADLINE_SLACK,
        };
        let requests = Requests::new(runtime, config.counts.requests);
        let _ = self.requests.set(requests.clone()); // served once
        fuse::serve(self.fs.clone(), descriptor, options, requests)
    }
}

#[async_trait]
impl Tree for Assembled {
    async fn drain(&self) -> u64 {
        self.fs.drain().await as u64
    }

    fn left(&self) -> Left {
        let pending = self.fs.pending();
        Left { files: pending.files, bytes: pending.bytes }
    }

    async fn sweep(
        &self,
        older_than: Duration,
        dry_run: bool,
    ) -> Result<serde_json::Value, String> {
        let sweep = if dry_run { Sweep::Tell } else { Sweep::Remove };
        let swept = self.fs.sweep(older_than, sweep).await.map_err(|error| error.to_string())?;
        Ok(serde_json::json!(swept))
    }

    fn status(&self) -> serde_json::Value {
        serde_json::json!({
            "warnings": self.warnings,
            "panics": telemetry::panics(),
            "capabilities": self.capabilities,
            "kernel_requests": self.requests.get().map(|requests| requests.status()),
            "fs": self.fs.status(),
            "quarantine": self.quarantine(),
        })
    }
}

impl Assembled {
    /// What is in quarantine, a line each, the oldest first.
    fn quarantine(&self) -> Vec<String> {
        let found = quarantine::list(&self.cache_dir).unwrap_or_else(|error| {
            tracing::warn!(%error, "the quarantine can't be read");
            Vec::new()
        });
        let why = |file: &Quarantined| file.why.map_or("", |why| why.text());
        let line =
            |file: &Quarantined| format!("{} ({} bytes): {}", file.key, file.size, why(file));
        found.iter().take(QUARANTINE_NAMED_MAX).map(line).collect()
    }
}

/// A bucket that knows what its store can do.
async fn reach(
    config: &MountConfig,
    prefix: &str,
    clock: Arc<dyn Clock>,
) -> Result<(Arc<Bucket>, Vec<String>)> {
    let store = bucket::open(&config.location, &config.store, clock.clone())
        .await
        .map_err(|e| refusal(config, &e))?;
    let patience = config.io_timeout.min(PROBE_REQUEST_S_MAX);
    let probed = Bucket::new(store.clone(), clock.clone(), patience);
    let read_only = if config.read_only { ReadOnly::Yes } else { ReadOnly::No };
    let (capabilities, warnings) =
        bucket::probe(&probed, prefix, read_only).await.map_err(|e| refusal(config, &e))?;
    let bucket = Bucket::new(store, clock, config.io_timeout);
    bucket.set_capabilities(capabilities);
    Ok((bucket, warnings))
}

/// Why the store can't be mounted, and what to do about it, on one line.
fn refusal(config: &MountConfig, error: &BucketError) -> anyhow::Error {
    let url = &config.url;
    let at = match &config.store.endpoint {
        Some(endpoint) => format!(" at {endpoint}"),
        None => String::new(),
    };
    let (server, place, endpoint) = match config.location {
        Location::WebDav { .. } => ("WebDAV server", "directory", "the URL"),
        Location::Azure { .. } => ("server of this kind", "container", "--endpoint"),
        _ => ("server of this kind", "bucket", "--endpoint"),
    };
    match error {
        BucketError::NotFound => {
            anyhow!("{url}{at}: there is no such {place}; create it first, or check {endpoint}")
        }
        BucketError::Denied(why) | BucketError::Unauthenticated(why) => {
            anyhow!("{url}{at}: access denied: {why}")
        }
        BucketError::TimedOut(_) => {
            let waited = config.io_timeout.min(PROBE_REQUEST_S_MAX);
            anyhow!("{url}{at}: no answer within {waited:?}; check {endpoint} and the network")
        }
        BucketError::Unreachable(why) => {
            anyhow!("{url}{at}: can't be reached: {why}; check {endpoint} and the network")
        }
        BucketError::Unavailable(why) | BucketError::Busy { why, .. } => {
            anyhow!("{url}{at}: it answers, but fails: {why}; try again later, or check {endpoint}")
        }
        BucketError::Unsupported(_) => {
            anyhow!("{url}{at}: no {server} answers there ({error}); check {endpoint}")
        }
        BucketError::Invalid(why) if why.contains("not understood") => {
            anyhow!("{url}{at}: no {server} answers there; check {endpoint}")
        }
        other => anyhow!("{url}{at}: {other}"),
    }
}

/// The rules that were given, before the presets.
fn checkpoint_config(config: &MountConfig) -> Result<CheckpointConfig> {
    let options = &config.checkpoints;
    let rules = options.rules.iter().map(|text| rules::rule_from_flag(text, options.idle));
    let rules: Vec<_> = rules.collect::<Result<_, _>>()?;
    Ok(CheckpointConfig {
        table: rules::Table::new(rules, options.idle),
        lease: options.lease,
        commit_max: options.max,
        commit_wait: options.wait,
        is_older: crate::fs::checkpoints::is_older_than_us,
    })
}

/// The part of every key that the mount does not show: empty, or with a slash at its end.
fn prefix_of(location: &Location) -> String {
    let prefix = match location {
        Location::S3 { prefix, .. }
        | Location::Gcs { prefix, .. }
        | Location::Azure { prefix, .. } => prefix.as_str(),
        Location::WebDav { .. } | Location::Directory { .. } | Location::Memory => "",
    };
    if prefix.is_empty() { String::new() } else { format!("{prefix}/") }
}

fn read_config(config: &MountConfig, dir: std::path::PathBuf) -> ReadConfig {
    ReadConfig {
        dir,
        cache_bytes_max: config.cache_bytes_max,
        memory_bytes_max: config.memory_bytes_max / 8 * READ_MEMORY_EIGHTHS,
        block_bytes: read::BLOCK_BYTES_DEFAULT,
        parallel_gets: read::PARALLEL_GETS_DEFAULT,
    }
}

fn write_config(config: &MountConfig, dir: std::path::PathBuf) -> WriteConfig {
    let memory = config.memory_bytes_max / 8 * WRITE_MEMORY_EIGHTHS;
    let parts = (memory / write::PART_BYTES_DEFAULT) as usize;
    let parallel_parts = parts.clamp(1, write::PARALLEL_PARTS_DEFAULT);
    WriteConfig {
        dir,
        part_bytes: write::PART_BYTES_DEFAULT,
        put_bytes_max: write::PUT_BYTES_MAX_DEFAULT,
        parallel_parts,
        bodies_bytes_max: memory.min(write::PUT_BYTES_MAX_DEFAULT * parallel_parts as u64),
        dirty_bytes_max: config.dirty_bytes_max,
        staged_files_max: config.counts.staged_files.unwrap_or_else(staged_files_max),
        uploads_max: config.counts.uploads,
        gives_way: config.durability == Durability::Local,
        wait_max: config.io_timeout,
    }
}

/// Three quarters of the descriptors: the rest is for sockets, cached files and the program itself.
fn staged_files_max() -> usize {
    (super::daemon::descriptors_max() / 4 * 3).max(STAGED_FILES_MIN)
}

fn unusable(cache: &Path) -> String {
    format!("the cache directory {} can't be used", cache.display())
}
