//! What a mount is told: parsed options, with their defaults and units.
//!
//! Owns defaults and bounds. Does not own how options are spelled on a command line (`cli`).

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// Where the tree lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// `s3://bucket/prefix`
    S3 { bucket: String, prefix: String },
    /// `gs://bucket/prefix`
    Gcs { bucket: String, prefix: String },
    /// `az://container/prefix` (account from flag or environment)
    Azure { container: String, prefix: String },
    /// `http(s)://host/path`, a WebDAV export; user and password are in [`StoreOptions`]
    WebDav { url: String },
    /// `file:///dir`
    Directory { path: PathBuf },
    /// `memory://`, for tests
    Memory,
}

/// A word that no log, message or status may show.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub fn new(secret: impl Into<String>) -> Self {
        Self(secret.into())
    }

    /// The word itself, for the request that needs it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// How to reach the store; every field is optional and defaults to what the cloud's own tools find.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StoreOptions {
    pub endpoint: Option<String>,
    pub region: Option<String>,
    pub profile: Option<String>,
    /// `Some(false)` forces virtual-hosted style; `None`: path style when an endpoint is given.
    pub path_style: Option<bool>,
    pub anonymous: bool,
    /// `AES256` or `aws:kms`
    pub sse: Option<String>,
    pub sse_kms_key_id: Option<String>,
    pub requester_pays: bool,
    /// A PEM file of certificates to trust beside the system's.
    pub ca_bundle: Option<PathBuf>,
    pub azure_account: Option<String>,
    /// Basic authentication at a WebDAV server.
    pub webdav_user: Option<String>,
    pub webdav_password: Option<Secret>,
}

/// Everything a mount is told.
#[derive(Debug, Clone)]
pub struct MountConfig {
    /// The URL as given, without secrets; for messages.
    pub url: String,
    pub location: Location,
    pub store: StoreOptions,
    pub mount_point: PathBuf,
    pub cache_dir: PathBuf,
    /// Clean cached blocks on disk, in bytes.
    pub cache_bytes_max: u64,
    /// What the daemon's own buffers and caches may take, in bytes.
    pub memory_bytes_max: u64,
    /// Staged bytes not yet in the bucket; past it writers wait.
    pub dirty_bytes_max: u64,
    pub counts: CountLimits,
    pub read_only: bool,
    pub allow_other: bool,
    pub uid: u32,
    pub gid: u32,
    pub umask: u32,
    /// Attributes and names are never older than the call.
    pub strict: bool,
    pub durability: Durability,
    /// The bound on one operation of the store, retries included.
    pub io_timeout: Duration,
    /// Use FUSE passthrough where the kernel grants it.
    pub passthrough: bool,
    pub checkpoints: CheckpointOptions,
}

/// How many of a kind there may be at a time. Past each, whoever wants one more waits for the bound
/// on one operation, and then gets ENFILE.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CountLimits {
    /// Files being written, each with a descriptor here. `None`: what descriptors allow.
    pub staged_files: Option<usize>,
    /// Uploads that run; a file that is closed past them waits.
    pub uploads: usize,
    /// Requests that only read and wait for the store.
    pub requests: usize,
    /// Names that the kernel may know; past most of them it is asked to forget those not in use.
    pub inodes: usize,
}

/// When close() may return.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Durability {
    /// When the file is in the bucket.
    #[default]
    Close,
    /// When it is synced in the cache directory.
    Local,
}

/// How checkpoint directories are known and committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckpointOptions {
    /// Rules beside the presets, each as a flag has it.
    pub rules: Vec<String>,
    pub idle: Duration,
    pub max: Duration,
    pub wait: Duration,
    pub lease: Duration,
}

/// What a cache directory belongs to: the store in words, wherever it is mounted.
pub fn origin(url: &str, store: &StoreOptions) -> String {
    let mut origin = url.to_owned();
    for (word, value) in [(" at ", &store.endpoint), (" of ", &store.azure_account)] {
        if let Some(value) = value {
            origin.push_str(word);
            origin.push_str(value.trim_end_matches('/'));
        }
    }
    origin
}

/// How long the kernel and we may believe a name or attribute without `--strict`.
pub const ATTRIBUTE_TTL: Duration = Duration::from_secs(1);
pub const CACHE_BYTES_DEFAULT: u64 = 10 << 30;
pub const MEMORY_BYTES_DEFAULT: u64 = 512 << 20;
pub const DIRTY_BYTES_DEFAULT: u64 = 32 << 30;
/// As many small files as go up at a time before a server slows down; large ones share the memory.
pub const UPLOADS_DEFAULT: usize = 256;
/// More than programs of one machine have threads; each takes some KiB.
pub const REQUESTS_DEFAULT: usize = 16_384;
/// Each takes about 1 KiB, and half of them are soon forgotten where memory is short.
pub const INODES_DEFAULT: usize = 1_000_000;
pub const IO_TIMEOUT_DEFAULT: Duration = Duration::from_secs(120);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_never_printed() {
        let options =
            StoreOptions { webdav_password: Some(Secret::new("hunter2")), ..Default::default() };
        assert!(!format!("{options:?}").contains("hunter2"));
    }
}
