//! The file system: one method per operation, composed of what is known ([`crate::namespace`]),
//! bytes down ([`crate::read`]) and bytes up ([`crate::write`]).
//!
//! # Consistency
//! Close-to-open: a name or attribute already known is believed for [`ATTRIBUTE_TTL`] (with
//! `strict`: never), "no such file" never, a file's version is asked for at each open, a directory
//! at each read from its start. An object is replaced at close.
//!
//!
//! # Durability
//! close returns when the file is in the bucket, or with [`Durability::Local`] when it is in the
//! journal (`acknowledge`); then it goes up in the background (`waiting`), or at the next mount
//! (`recovery`). fsync, rename and truncate wait for the bucket in both.
//!
//! # Errors
//! A failed upload sticks to its file: close, fsync, rename and the next open report it until the
//! file is written again. Until then nothing is tried but once more at unmount.
//!
//! # Cancellation
//! Dropping an operation's future leaves a consistent state: requests that change the bucket run in
//! the write path's own tasks or are followed by learning only what the store answered.
//!
//! Owns composition and errnos. Does not own the kernel's protocol (`fuse`).

pub mod checkpoints;
pub mod error;
pub mod handles;
pub mod moves;

mod acknowledge;
mod attributes;
mod copying;
mod creating;
mod crowd;
mod directories;
mod files;
mod known;
mod learning;
mod lookup;
mod names;
mod parts;
mod prefetch;
mod processes;
mod purpose;
mod records;
mod recovery;
mod release;
mod relist;
mod rename;
mod revalidate;
mod sync;
mod tree;
mod waiting;

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::time::timeout;

use crate::bucket::{Bucket, RequestCounts};
use crate::checkpoint::rules::pointers::CommitRecord;
use crate::clock::Clock;
use crate::config::{ATTRIBUTE_TTL, Durability};
use crate::namespace::inode::Attributes;
use crate::namespace::{DIRECTORY_BYTES, Defaults, Namespace};
use crate::read::{ReadStatus, Reader};
use crate::types::{Ino, Kind, Name};
use crate::write::{Intent, Staged, WriteStatus, Writer};

pub use attributes::{SetAttributes, SetMode};
use checkpoints::Checkpoints;
pub use checkpoints::{CheckpointConfig, CheckpointStatus};
pub use copying::CopyRange;
pub use directories::DirectoryEntry;
use error::Errno;
pub use files::{Closer, Opened};
use handles::Handles;
pub use handles::{IoMode, Snapshot};
use moves::Moves;
pub use processes::{NOBODY_IS_WATCHED, can_be_watched, killed_by_signal};
pub use purpose::{Purpose, Sought, purpose};
pub use recovery::Recovered;
pub use rename::Replace;
use waiting::Waiting;

/// Odd keys remembered by name for `status`; the rest are only counted.
const ODD_KEYS_MAX: usize = 100;
/// At unmount, for uploads and aborts that nobody waits for; every file was waited for before.
const SETTLE_S_MAX: Duration = Duration::from_secs(10);

/// What the file system asks of the kernel's side. Implemented above, by `fuse`.
#[async_trait]
pub trait Kernel: Send + Sync {
    /// Makes the kernel ask for the inode's attributes again. Returns when that holds.
    async fn invalidate_attributes(&self, ino: Ino);
    /// Makes the kernel let go of what it holds of a file's content, some time soon.
    fn drop_pages(&self, ino: Ino);
    /// Makes the kernel ask for a name again, some time soon.
    fn forget_name(&self, parent: Ino, name: &Name);
    /// Has the kernel let go of inodes, as far as nothing uses them, and returns once it was told:
    /// what it lets go of comes back by [`Fs::forget`], some time soon.
    async fn let_go(&self, idle: Vec<Idle>);
}

/// An inode that the kernel knows, which nobody uses as far as is seen from here.
#[derive(Clone, Debug)]
pub struct Idle {
    pub ino: Ino,
    pub parent: Ino,
    pub name: Name,
}

#[derive(Clone, Debug)]
pub struct FsConfig {
    /// Empty, or ends in `/`.
    pub prefix: String,
    pub uid: u32,
    pub gid: u32,
    pub umask: u32,
    pub read_only: bool,
    pub strict: bool,
    pub passthrough: bool,
    pub durability: Durability,
    /// Random, kept in the cache directory; names our records.
    pub mount_id: String,
    /// For the content of unlinked files that are still open.
    pub scratch_dir: PathBuf,
    pub checkpoints: CheckpointConfig,
    /// Names that may be known at a time.
    pub inodes_max: usize,
    /// How long one more waits for others to go, before ENFILE.
    pub wait_max: Duration,
}

/// Who calls.
#[derive(Clone, Copy, Debug)]
pub struct Caller {
    pub uid: u32,
    pub gid: u32,
    pub pid: u32,
}

/// What stat tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stat {
    pub ino: Ino,
    pub kind: Kind,
    pub size: u64,
    /// Names that lead to it, none once it is unlinked; of a directory also those in it.
    pub links: u32,
    pub attributes: Attributes,
}

/// A stat, and for how long the kernel may believe it.
#[derive(Clone, Debug)]
pub struct Entry {
    pub stat: Stat,
    pub ttl: Duration,
}

/// What waits to be uploaded.
#[derive(Clone, Copy, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct Pending {
    pub files: u64,
    pub bytes: u64,
}

#[derive(Clone, Debug, serde::Serialize)]
pub struct FsStatus {
    pub inodes: usize,
    pub inodes_max: usize,
    pub handles: usize,
    /// Keys that POSIX can't name, met so far.
    pub odd_keys: u64,
    pub odd_key_names: Vec<String>,
    /// Files whose upload failed, by key.
    pub failed: Vec<String>,
    pub passthrough: bool,
    /// What of the promises this mount can't keep, and why, a line each.
    pub degraded: Vec<&'static str>,
    pub pending: Pending,
    /// What an earlier daemon had acknowledged and not uploaded.
    pub recovered: Recovered,
    pub checkpoints: CheckpointStatus,
    pub requests: RequestCounts,
    pub read: ReadStatus,
    pub write: WriteStatus,
}

pub struct Fs {
    config: FsConfig,
    bucket: Arc<Bucket>,
    reader: Arc<Reader>,
    writer: Arc<Writer>,
    clock: Arc<dyn Clock>,
    namespace: Mutex<Namespace>,
    handles: Handles,
    tree: tree::Tree,
    /// Files closed a moment ago whose staged content is still here, the oldest first.
    resting: Mutex<VecDeque<Ino>>,
    /// Open files that may still need bytes of the object they are a copy of.
    copies: Mutex<Vec<Weak<Staged>>>,
    known: Mutex<known::Known>,
    relisting: tokio::sync::Mutex<()>,
    arrivals: revalidate::Arrivals,
    runs: prefetch::Runs,
    unasked: creating::Unasked,
    checkpoints: Checkpoints,
    moves: Moves,
    waiting: Waiting,
    /// What of an earlier daemon's acknowledged files the store could not take.
    left: Mutex<Vec<Intent>>,
    recovered: Mutex<Recovered>,
    started: Instant,
    me: Weak<Fs>,
    records_dirty: tokio::sync::Notify,
    kernel: OnceLock<Arc<dyn Kernel>>,
    passthrough: AtomicBool,
    odd_keys: AtomicU64,
    odd_key_names: Mutex<Vec<String>>,
    unseen: processes::Unseen,
    crowd: crowd::Crowd,
}

impl Fs {
    /// Must be called in a runtime: records are flushed by a task of its own.
    pub fn new(
        config: FsConfig,
        bucket: Arc<Bucket>,
        reader: Arc<Reader>,
        writer: Arc<Writer>,
        clock: Arc<dyn Clock>,
    ) -> Arc<Self> {
        let defaults = Defaults { uid: config.uid, gid: config.gid, umask: config.umask };
        let namespace = Namespace::new(&config.prefix, defaults, clock.wall());
        let passthrough = AtomicBool::new(config.passthrough);
        let checkpoints = Checkpoints::new(config.checkpoints.clone(), &config.mount_id);
        let fs = Arc::new_cyclic(|me| Self {
            checkpoints,
            moves: Moves::default(),
            waiting: Waiting::new(),
            left: Mutex::default(),
            recovered: Mutex::default(),
            started: clock.now(),
            me: me.clone(),
            config,
            bucket,
            reader,
            writer,
            clock,
            namespace: Mutex::new(namespace),
            handles: Handles::default(),
            tree: tree::Tree::new(),
            resting: Mutex::new(VecDeque::new()),
            copies: Mutex::new(Vec::new()),
            known: Mutex::default(),
            relisting: tokio::sync::Mutex::default(),
            arrivals: revalidate::Arrivals::default(),
            runs: prefetch::Runs::default(),
            unasked: creating::Unasked::default(),
            records_dirty: tokio::sync::Notify::new(),
            kernel: OnceLock::new(),
            passthrough,
            odd_keys: AtomicU64::new(0),
            odd_key_names: Mutex::new(Vec::new()),
            unseen: processes::Unseen::default(),
            crowd: crowd::Crowd::default(),
        });
        tokio::spawn(records::flush_now_and_then(Arc::downgrade(&fs)));
        fs
    }

    /// Names the kernel's side, once it is there.
    pub fn set_kernel(&self, kernel: Arc<dyn Kernel>) {
        let _ = self.kernel.set(kernel);
    }

    /// The kernel or the staging disk does not do passthrough: stop trying.
    pub fn disable_passthrough(&self) {
        self.passthrough.store(false, Ordering::Relaxed);
    }

    pub fn is_read_only(&self) -> bool {
        self.config.read_only
    }

    pub fn status(&self) -> FsStatus {
        // A guard in the struct's expression would live to its end, and `failed` locks it again.
        let inodes = self.namespace.lock().len();
        let odd_key_names = self.odd_key_names.lock().clone();
        FsStatus {
            inodes,
            inodes_max: self.config.inodes_max,
            handles: self.handles.len(),
            odd_keys: self.odd_keys.load(Ordering::Relaxed),
            odd_key_names,
            failed: self.failed(),
            passthrough: self.passthrough.load(Ordering::Relaxed),
            degraded: self.unseen.reasons(),
            pending: self.pending(),
            recovered: *self.recovered.lock(),
            checkpoints: self.checkpoints.status(),
            requests: self.bucket.counts(),
            read: self.reader.status(),
            write: self.writer.status(),
        }
    }

    fn failed(&self) -> Vec<String> {
        let failed = |file: &handles::OpenFile| file.state.lock().failed.is_some();
        let files = self.handles.all_files();
        let inos = files.iter().filter(|(_, file)| failed(file)).map(|(ino, _)| *ino);
        let namespace = self.namespace.lock();
        inos.filter_map(|ino| Some(namespace.key(ino)?.as_str().to_owned())).collect()
    }

    /// Files that hold bytes the bucket has not.
    pub fn pending(&self) -> Pending {
        let mut pending = Pending::default();
        for (ino, file) in self.handles.all_files() {
            let staged = file.state.lock().staged.clone();
            // An unlinked file goes nowhere, and of one that rests the bucket has all.
            let wanted = self.is_to_upload(ino);
            if let Some(staged) = staged.filter(|staged| wanted && staged.is_dirty()) {
                pending.files += 1;
                pending.bytes += staged.size().unwrap_or(0);
            }
        }
        pending
    }

    /// Whether this node says what the file is, and others are to see it.
    fn is_to_upload(&self, ino: Ino) -> bool {
        self.namespace.lock().get(ino).is_some_and(|inode| inode.staged && inode.linked)
    }

    fn is_commit_record(&self, ino: Ino) -> bool {
        let namespace = self.namespace.lock();
        let name = namespace.get(ino).and_then(|inode| inode.name.as_ref());
        name.is_some_and(|name| CommitRecord::of(name.as_str()).is_some())
    }

    /// Uploads every dirty file and flushes every record. Returns how many files could not be.
    pub async fn drain(&self) -> usize {
        let waiting = self.drain_waiting().await;
        let mut failed = Vec::new();
        let mut files = self.handles.all_files();
        files.sort_by_key(|(ino, _)| self.is_commit_record(*ino)); // after what they name
        for (ino, file) in files {
            if self.is_kept_for_later(&file) {
                continue; // it was tried twice, and is one of those that wait
            }
            if let Err(error) = self.sync_at_last(ino, &file).await {
                tracing::error!(ino = ino.0, %error, "a file could not be uploaded at unmount");
                failed.push((ino, file));
            }
        }
        // An upload goes on when its caller was interrupted, and may have done what ours could not.
        if timeout(SETTLE_S_MAX, self.writer.drained()).await.is_err() {
            tracing::warn!("requests still run {SETTLE_S_MAX:?} after the last upload");
        }
        failed.retain(|(ino, file)| self.to_upload(*ino, file).is_some());
        let checkpoints = self.drain_checkpoints().await;
        self.drain_moves().await;
        self.record_directory_times();
        failed.len() + waiting + checkpoints + self.flush_records().await
    }

    fn ttl(&self) -> Duration {
        if self.config.strict { Duration::ZERO } else { ATTRIBUTE_TTL }
    }

    /// What stat tells of an inode now, from memory and the staged file.
    fn stat(&self, ino: Ino) -> Result<Stat, Errno> {
        let staged = self.handles.shared_if_any(ino).and_then(|f| f.state.lock().staged.clone());
        let namespace = self.namespace.lock();
        let inode = namespace.get(ino).ok_or(Errno::ESTALE)?;
        let links = inode.links();
        let mut stat = Stat {
            ino,
            kind: inode.kind,
            size: inode.size,
            links,
            attributes: inode.attributes.clone(),
        };
        if inode.kind == Kind::Directory {
            stat.size = DIRECTORY_BYTES;
        }
        // Of a file that lost its name the staged one is all there is.
        if let Some(staged) = staged.filter(|_| inode.staged || !inode.linked) {
            stat.size = staged.size().map_err(|_| Errno::EIO)?;
            let modified = staged.modified().map_err(|_| Errno::EIO)?;
            if inode.times_staged != Some(modified) {
                stat.attributes.mtime = modified;
                stat.attributes.ctime = stat.attributes.ctime.max(stat.attributes.mtime);
            }
        }
        Ok(stat)
    }

    /// A stat that the kernel takes a reference by.
    fn entry(&self, ino: Ino) -> Result<Entry, Errno> {
        let stat = self.stat(ino)?;
        let mut namespace = self.namespace.lock();
        namespace.get(ino).ok_or(Errno::ESTALE)?;
        namespace.looked_up(ino);
        let ttl = namespace.age_left(ino, self.clock.now(), self.ttl()).unwrap_or_default();
        // An open goes through a symlink by its name: where that leads is never from memory.
        let ttl = if stat.kind == Kind::Symlink { Duration::ZERO } else { ttl };
        Ok(Entry { stat, ttl })
    }

    fn note_odd(&self, keys: Vec<String>) {
        if keys.is_empty() {
            return;
        }
        let mut names = self.odd_key_names.lock();
        for key in keys {
            if names.contains(&key) {
                continue;
            }
            self.odd_keys.fetch_add(1, Ordering::Relaxed);
            if names.len() < ODD_KEYS_MAX {
                tracing::warn!(?key, "a key that the mount can't show");
                names.push(key);
            }
        }
    }

    fn writable(&self) -> Result<(), Errno> {
        if self.config.read_only { Err(Errno::EROFS) } else { Ok(()) }
    }

    /// The wall clock, for times that are to be "now".
    pub fn now(&self) -> SystemTime {
        self.clock.wall()
    }

    /// Whether the kernel reads and writes the handle's staged file by itself.
    pub fn passes_through(&self, handle: u64) -> bool {
        self.handles.file(handle).is_ok_and(|open| open.mode == IoMode::Passthrough)
    }

    fn wall(&self) -> SystemTime {
        self.clock.wall()
    }
}

/// A name from the kernel, to be looked for or made.
fn name_of(name: &OsStr) -> Result<Name, Errno> {
    let name = name.to_str().ok_or(Errno::EILSEQ)?;
    Ok(Name::new(name)?)
}
