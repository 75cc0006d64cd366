//! The words of the command line: commands, flags, defaults and the help text.
//!
//! Owns spelling and help. Does not own what follows of them: `resolve` makes the configuration.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use super::units::{parse_duration, parse_size, parse_umask};

const EXAMPLES: &str = "\
Examples:
  Amazon S3, with the keys, profile or role that the AWS tools would find
    trialfs mount s3://my-bucket/experiments /mnt/trials
  MinIO, SeaweedFS, Ceph: keys from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY
    trialfs mount s3://my-bucket /mnt/trials --endpoint http://minio:9000
  Google Cloud Storage, with application default credentials or those of the machine
    trialfs mount gs://my-bucket/experiments /mnt/trials
  Azure: the account by --azure-account or AZURE_STORAGE_ACCOUNT; a key, SAS, service principal,
  managed identity or `az login` as Azure's tools find them
    trialfs mount az://my-container/experiments /mnt/trials
  WebDAV; user and password from TRIALFS_WEBDAV_USER and TRIALFS_WEBDAV_PASSWORD
    trialfs mount https://dav.example.org/export /mnt/trials
  A local or NFS directory
    trialfs mount file:///exports/trials /mnt/trials
  In /etc/fstab
    s3://my-bucket/experiments /mnt/trials fuse.trialfs _netdev,nofail,allow_other 0 0

  trialfs status
  trialfs unmount /mnt/trials";

const EXIT_CODES: &str = "\
Exit codes: 0 done; 1 the mount, the storage or the machine failed; 2 the command line is wrong.";

/// Mounts experiment storage as an ordinary directory tree.
///
/// An S3 or GCS bucket, an Azure container, a WebDAV export or a directory, on every node of a
/// cluster. A file at DIR/a/b.pt is the object PREFIX/a/b.pt, readable by every other tool, and
/// when close() has returned it is in the bucket and every other node sees it.
#[derive(Debug, Parser)]
#[command(name = "trialfs", version, after_help = format!("{EXAMPLES}\n\n{EXIT_CODES}"))]
#[command(args_override_self = true, disable_help_subcommand = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Mount URL on DIR; returns when the mount answers
    #[command(after_help = format!("{EXAMPLES}\n\n{EXIT_CODES}"))]
    Mount(Box<MountArgs>),
    /// Finish the uploads of the mount on DIR, then unmount it
    #[command(visible_alias = "umount", after_help = EXIT_CODES)]
    Unmount(UnmountArgs),
    /// Commit the checkpoint directory DIR now; returns when every node sees it
    #[command(after_help = EXIT_CODES)]
    Commit(CommitArgs),
    /// Give up what dead nodes left of checkpoint directories below the mount on DIR
    #[command(after_help = EXIT_CODES)]
    Gc(GcArgs),
    /// List files that never reached the bucket, or hand out copies of them
    #[command(after_help = EXIT_CODES)]
    Recover(RecoverArgs),
    /// Tell how the mount on DIR, or every mount, is doing
    #[command(after_help = EXIT_CODES)]
    Status(StatusArgs),
}

#[derive(Debug, Args)]
#[command(args_override_self = true)]
pub struct MountArgs {
    /// What to mount: s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://CONTAINER/PREFIX,
    /// https://HOST/PATH (WebDAV), file:///DIR
    pub url: String,
    /// Where: an existing empty directory
    pub dir: PathBuf,

    /// Stay in the foreground, with the log on standard error
    #[arg(long, short = 'f')]
    pub foreground: bool,
    /// Refuse every change
    #[arg(long)]
    pub read_only: bool,
    /// Let other users in, as far as the permissions allow; without it only you (not even root) may
    #[arg(long)]
    pub allow_other: bool,
    /// Mount over a directory that is not empty, hiding what is in it
    #[arg(long)]
    pub nonempty: bool,
    /// Owner of what has no recorded owner [default: you]
    #[arg(long, value_name = "UID")]
    pub uid: Option<u32>,
    /// Group of what has no recorded group [default: yours]
    #[arg(long, value_name = "GID")]
    pub gid: Option<u32>,
    /// Permission bits that what has no recorded mode lacks, in octal [default: your umask]
    #[arg(long, value_name = "MASK", value_parser = parse_umask)]
    pub umask: Option<u32>,
    /// Neither names nor attributes may be older than the call; without it up to 1 s
    #[arg(long)]
    pub strict: bool,
    /// When close() may return: `close` means when the file is in the bucket; `local` when it is
    /// synced in the cache directory, from where it is uploaded in the background and, after a
    /// crash, by the next mount with the same --cache-dir
    #[arg(long, value_name = "WHEN", default_value = "close")]
    pub durability: Durability,
    /// Retry a request for so long, then report an I/O error
    #[arg(long, value_name = "TIME", default_value = "120s", value_parser = parse_duration)]
    pub io_timeout: Duration,
    /// Don't use FUSE passthrough, even where the kernel grants it
    #[arg(long)]
    pub no_passthrough: bool,
    /// Options as mount(8) and fstab write them: ro, allow_other, uid=N, cache_dir=DIR, ...
    #[arg(short = 'o', value_name = "OPTIONS")]
    pub options: Vec<String>,

    #[command(flatten)]
    pub checkpoints: CheckpointArgs,
    #[command(flatten)]
    pub limits: LimitArgs,
    #[command(flatten)]
    pub store: StoreArgs,
    #[command(flatten)]
    pub log: LogArgs,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Checkpoint directories")]
pub struct CheckpointArgs {
    /// One more kind of directory that appears whole or not at all: NAME:PATTERN[,KEY=VALUE...],
    /// as mine:ckpt-<n>,sign=DONE, or `orbax` for Orbax on one host; may be given again
    #[arg(long, value_name = "RULE")]
    pub rule: Vec<String>,
    /// A file of such rules, one to a line
    #[arg(long, value_name = "FILE")]
    pub rules: Option<PathBuf>,
    /// A directory is complete when it was quiet for so long, where nothing else tells
    #[arg(long, value_name = "TIME", default_value = "250ms", value_parser = parse_duration)]
    pub commit_idle: Duration,
    /// One whose sign never comes is complete after so long without a write
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = parse_duration)]
    pub commit_max: Duration,
    /// Readers and commit records wait so long for a commit
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = parse_duration)]
    pub commit_wait: Duration,
    /// A mount that gives no sign of life for so long counts as dead
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = parse_duration)]
    pub lease: Duration,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Cache and limits")]
pub struct LimitArgs {
    /// Where staged and cached files are kept; one mount at a time uses it
    /// [default: one for this URL and DIR in ~/.cache/trialfs, for root in /var/cache/trialfs]
    #[arg(long, value_name = "DIR")]
    pub cache_dir: Option<PathBuf>,
    /// Disk space for cached data
    #[arg(long, value_name = "SIZE", default_value = "10GiB", value_parser = parse_size)]
    pub cache_size: u64,
    /// Memory for buffers and caches
    #[arg(long, value_name = "SIZE", default_value = "512MiB", value_parser = parse_size)]
    pub memory_limit: u64,
    /// Bytes written but not yet in the bucket; past it writers wait
    #[arg(long, value_name = "SIZE", default_value = "32GiB", value_parser = parse_size)]
    pub dirty_limit: u64,
    /// Files being written at a time; past it an open for writing waits
    /// [default: three quarters of the descriptors that the daemon may have]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub file_limit: Option<u32>,
    /// Uploads that run at a time; past it a close waits for its turn
    #[arg(long, value_name = "N", default_value = "256")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    pub upload_limit: u32,
    /// Reads and look-ups that wait for the store at a time; past it the next wait to begin
    #[arg(long, value_name = "N", default_value = "16384")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    pub request_limit: u32,
    /// Names known at a time; from three quarters on those not in use are forgotten, past all one
    /// more waits, and ENFILE where all are in use
    #[arg(long, value_name = "N", default_value = "1000000")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    pub inode_limit: u32,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Store")]
pub struct StoreArgs {
    /// Address of an S3, GCS or Azure service that is not the cloud's own
    /// [env: AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL, STORAGE_EMULATOR_HOST, AZURE_STORAGE_ENDPOINT]
    #[arg(long, value_name = "URL")]
    pub endpoint: Option<String>,
    /// Region of an S3 bucket [env: AWS_REGION, AWS_DEFAULT_REGION]
    #[arg(long)]
    pub region: Option<String>,
    /// Profile in the AWS configuration files [env: AWS_PROFILE]
    #[arg(long)]
    pub profile: Option<String>,
    /// Address buckets as HOST/BUCKET [default where an endpoint is given]
    #[arg(long, overrides_with = "virtual_hosted")]
    pub path_style: bool,
    /// Address buckets as BUCKET.HOST [default at Amazon]
    #[arg(long)]
    pub virtual_hosted: bool,
    /// Send no credentials, for public buckets
    #[arg(long)]
    pub anonymous: bool,
    /// Encryption at rest in S3: AES256 or aws:kms [default: the bucket's own]
    #[arg(long, value_name = "KIND", value_parser = ["AES256", "aws:kms"])]
    pub sse: Option<String>,
    /// Key for --sse aws:kms
    #[arg(long, value_name = "KEY")]
    pub sse_kms_key_id: Option<String>,
    /// Pay for requests to a requester-pays bucket
    #[arg(long)]
    pub requester_pays: bool,
    /// PEM file of certificates to trust beside the system's [env: AWS_CA_BUNDLE, SSL_CERT_FILE]
    #[arg(long, value_name = "FILE")]
    pub ca_bundle: Option<PathBuf>,
    /// Azure storage account [env: AZURE_STORAGE_ACCOUNT, AZURE_STORAGE_CONNECTION_STRING]
    #[arg(long, value_name = "NAME")]
    pub azure_account: Option<String>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Log")]
pub struct LogArgs {
    /// How much is logged
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    pub log_level: LogLevel,
    /// Where to [default: trialfs.log in the cache directory, standard error in the foreground]
    #[arg(long, value_name = "FILE")]
    pub log_file: Option<PathBuf>,
}

/// When close() may return.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Durability {
    Close,
    Local,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

#[derive(Debug, Args)]
pub struct UnmountArgs {
    /// The mounted directory
    pub dir: PathBuf,
    /// Unmount though files are open; those stay usable until they are closed
    #[arg(long, short = 'l')]
    pub lazy: bool,
    /// Unmount within seconds, whatever is open (it gives errors from then on) or not uploaded (it
    /// stays in the cache directory)
    #[arg(long, short = 'f')]
    pub force: bool,
}

#[derive(Debug, Args)]
pub struct CommitArgs {
    /// A checkpoint directory on a mount
    pub dir: PathBuf,
    /// Commit what is whole, though a process that wrote was killed or a mount is gone
    #[arg(long)]
    pub accept_torn: bool,
}

#[derive(Debug, Args)]
pub struct GcArgs {
    /// The mounted directory
    pub dir: PathBuf,
    /// Only what nobody touched for so long, by the store's clock; 1h at least
    #[arg(long, value_name = "TIME", default_value = "7d", value_parser = parse_duration)]
    pub older_than: Duration,
    /// Say what would go, and remove nothing
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(Debug, Args)]
pub struct RecoverArgs {
    /// The mounted directory
    pub dir: Option<PathBuf>,
    /// The cache directory, of a mount that is there or not
    #[arg(long, value_name = "DIR", conflicts_with = "dir")]
    pub cache_dir: Option<PathBuf>,
    /// Copy them below this directory, each at its key; without it they are listed
    #[arg(long, value_name = "DIR")]
    pub to: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct StatusArgs {
    /// The mounted directory; every mount if left out
    pub dir: Option<PathBuf>,
    /// One JSON document, for programs
    #[arg(long)]
    pub json: bool,
}
