//! A mount from the first check to the last upload: the one place where the parts are put together.
//!
//! Owns the order of the beginning, and that a beginning that fails leaves nothing behind. Does not
//! own the parts; the end is `life`.
//!
//! ```text
//! look at the mount point --> lock the cache directory --> reach and probe the store
//!   --> mount --> answer the kernel --> listen on the control socket --> ready
//! ```

pub mod assemble;
pub mod cachedir;
pub mod client;
pub mod control;
pub mod daemon;
pub mod holders;
pub mod inventory;
pub mod kernel;
pub mod life;
pub mod point;
pub mod registry;
pub mod server;
pub mod table;

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};
use tokio::net::UnixListener;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};

use crate::clock::{self, Clock};
use crate::config::{Location, MountConfig, origin};
use crate::fuse::Serving;
use crate::telemetry::{self, Target};

use cachedir::CacheDir;
use daemon::Announcer;
use kernel::{Access, Busy, MountOptions, Visibility};
use life::{Life, Tree, Wish};
use point::{Covering, Standing};
use registry::Note;

/// Tasks wait for the network most of the time; more threads than this only take turns.
const WORKER_THREADS_MAX: usize = 4;
/// Arenas of the allocator: two threads in three find one free, and little is kept in them.
const ARENAS_MAX: libc::c_int = 2;
/// Larger allocations, in bytes, go back to the kernel when they are freed: bodies of parts are
/// larger, what is made for each request is not.
const MAPPED_BYTES_MIN: libc::c_int = 4 << 20;
/// Several wishes to unmount at a time are as good as one.
const WISHES_MAX: usize = 4;
/// Signals that have not been seen yet; beyond the second none says more.
const STOPS_MAX: usize = 4;
/// What still runs when all is uploaded is of no use to anybody.
const SHUTDOWN_MS_MAX: Duration = Duration::from_millis(500);
const LOG_FILE: &str = "trialfs.log";

/// Where the daemon runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stay {
    Foreground,
    Background,
}

/// How to start, beside what to mount.
#[derive(Debug, Clone)]
pub struct Launch {
    pub stay: Stay,
    pub covering: Covering,
    pub log_level: tracing::Level,
    pub log_file: Option<PathBuf>,
}

/// Mounts and stays until the mount is gone. `announcer` hears of the success or of the error,
/// which is returned as well; nothing stays mounted after one.
pub fn run(config: &MountConfig, launch: &Launch, mut announcer: Announcer) -> Result<()> {
    daemon::harden(umask_of(config));
    let mount = match Mount::begin(config, launch, &mut announcer) {
        Ok(mount) => mount,
        Err(error) => {
            let text = format!("{error:#}");
            tracing::error!("not mounted: {text}");
            announcer.fail(&text);
            return Err(error);
        }
    };
    let ready = format!("{} is mounted on {}", config.url, config.mount_point.display());
    tracing::info!("{ready}");
    if announcer.ready(&ready).is_err() {
        bail!("whoever asked for the mount is gone; unmounted again");
    }
    match mount.live() {
        0 => Ok(()),
        left => bail!("{left} files are not uploaded; they are kept in the cache directory"),
    }
}

/// Files in a directory that others use too are as open as the user wants; all others are our own.
fn umask_of(config: &MountConfig) -> u32 {
    match config.location {
        Location::Directory { .. } => config.umask,
        _ => 0o077,
    }
}

/// A mount that answers. Dropping it takes it out of the tree.
struct Mount {
    runtime: Option<Runtime>,
    tree: Arc<dyn Tree>,
    serving: Option<Serving>,
    listener: Option<UnixListener>,
    mounted: Arc<Mounted>,
    _noted: Noted,
    _cache: CacheDir,
}

impl Mount {
    fn begin(config: &MountConfig, launch: &Launch, announcer: &mut Announcer) -> Result<Self> {
        let point = &config.mount_point;
        let standing = check_point(point)?;
        if standing == Standing::Bare {
            point::check_bare(point, launch.covering)?;
        }
        check_places(config, launch)?;
        let clock = clock::system();
        let cache =
            CacheDir::open(&config.cache_dir, &origin(&config.url, &config.store), clock.as_ref())?;
        let log_file = start_log(launch, cache.path())?;
        if let Standing::Dead(_) = standing {
            kernel::unmount(point, Busy::Detach)
                .with_context(|| format!("can't clear the dead mount on {}", point.display()))?;
            tracing::warn!("took {} over from a dead daemon", point.display());
            announcer.warn("took the mount point over from a dead daemon");
            point::check_bare(point, launch.covering)?;
        }

        let runtime = start_runtime().context("can't start threads")?;
        let assembled = runtime.block_on(assemble::assemble(config, &cache, clock.clone()))?;
        for warning in assembled.warnings() {
            tracing::warn!("{warning}");
            announcer.warn(warning);
        }
        // Before anybody can see the mount: whoever does, and asks, waits in the socket's queue,
        // and is not told of the daemon that was here before.
        let (noted, listener) =
            announce(config, cache.path(), log_file, clock.as_ref(), runtime.handle())?;
        let descriptor = kernel::mount(point, &kernel_options(config))?;
        let mounted = Mounted::on(point).inspect_err(|_| {
            let _ = kernel::unmount(point, Busy::Detach); // the error says enough
        })?;
        let mounted = Arc::new(mounted);
        let serving = assembled
            .serve(config, descriptor, runtime.handle().clone())
            .context("the kernel does not start the mount")?;
        kernel::read_ahead(&mounted.device); // after the handshake, which sets what it was before
        Ok(Self {
            tree: Arc::new(assembled),
            runtime: Some(runtime),
            serving: Some(serving),
            listener: Some(listener),
            mounted,
            _noted: noted,
            _cache: cache,
        })
    }

    /// Until it is gone; how many files are left in the cache directory.
    fn live(mut self) -> u64 {
        let (Some(runtime), Some(serving), Some(listener)) =
            (self.runtime.take(), self.serving.take(), self.listener.take())
        else {
            return 0;
        };
        let (wishes, wished) = mpsc::channel::<Wish>(WISHES_MAX);
        let mounted = self.mounted.clone();
        let left = runtime.block_on(async {
            tokio::spawn(server::serve(listener, self.tree.clone(), wishes));
            let life = Life {
                tree: self.tree.clone(),
                detach: Arc::new(move |busy| mounted.detach(busy)),
                ended: watch_kernel(serving),
                stops: stops(),
            };
            life.live(wished).await
        });
        tracing::info!("the mount has ended, {left} files left to upload");
        runtime.shutdown_timeout(SHUTDOWN_MS_MAX);
        left
    }
}

/// Our mount on a directory, which may have left the tree without our doing.
struct Mounted {
    point: PathBuf,
    device: String,
}

impl Mounted {
    fn on(point: &Path) -> Result<Self> {
        let table = table::read().context("can't read /proc/self/mountinfo")?;
        let mounted = table::at(&table, point).context("the mount is not in the mount table")?;
        Ok(Self { point: point.to_owned(), device: mounted.device.clone() })
    }

    /// Never unmounts what somebody else has mounted there meanwhile.
    fn detach(&self, busy: Busy) -> io::Result<()> {
        let table = table::read()?;
        match table::at(&table, &self.point) {
            Some(mounted) if mounted.device == self.device => kernel::unmount(&self.point, busy),
            _ => Err(ErrorKind::InvalidInput.into()),
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = self.detach(Busy::Detach); // out of the tree already, unless something failed
    }
}

/// A note in the registry.
struct Noted {
    dir: PathBuf,
    mount_point: PathBuf,
}

impl Drop for Noted {
    fn drop(&mut self) {
        registry::remove(&self.dir, &self.mount_point, std::process::id());
    }
}

fn check_point(point: &Path) -> Result<Standing> {
    let shown = point.display();
    let standing = point::standing(point)?;
    match &standing {
        Standing::Bare | Standing::Dead(_) => {}
        Standing::Alive(mounted) => {
            let note = registry::note_of(mounted.user.unwrap_or_default(), point);
            let whose = match (note, mounted.user) {
                (Some(note), _) => format!("pid {}", note.pid),
                (None, Some(user)) => format!("uid {user}"),
                (None, None) => "another process".to_owned(),
            };
            bail!(
                "{shown} is mounted already ({}, {whose}); unmount it first: trialfs unmount \
                 {shown}",
                mounted.source
            );
        }
        Standing::Stuck(mounted) => bail!(
            "{shown} is a mount of {} that does not answer; trialfs unmount --force {shown}",
            mounted.source
        ),
        Standing::Foreign(mounted) => bail!(
            "{shown} is a mount point of {} already; mount on an empty directory",
            mounted.kind
        ),
    }
    Ok(standing)
}

/// The daemon must never wait for its own mount: neither its cache, its log nor its source may lie
/// in it, nor it in one of them.
fn check_places(config: &MountConfig, launch: &Launch) -> Result<()> {
    let point = &config.mount_point;
    let refuse = |what: &str, place: &Path| -> Result<()> {
        let place = real_path(place);
        if point::nested(&place, point) {
            bail!(
                "{what} {} and the mount point {} lie one in the other; use separate directories",
                place.display(),
                point.display()
            );
        }
        Ok(())
    };
    refuse("the cache directory", &config.cache_dir)?;
    if let Some(log) = &launch.log_file {
        refuse("the log file", log)?;
    }
    if let Location::Directory { path } = &config.location {
        refuse("the directory", path)?;
        if point::nested(&real_path(path), &real_path(&config.cache_dir)) {
            bail!(
                "the cache directory {} and the directory {} lie one in the other; give another \
                 --cache-dir",
                config.cache_dir.display(),
                path.display()
            );
        }
    }
    Ok(())
}

/// The path without links, as far as it exists.
fn real_path(path: &Path) -> PathBuf {
    for ancestor in path.ancestors() {
        if let (Ok(real), Ok(rest)) = (ancestor.canonicalize(), path.strip_prefix(ancestor)) {
            return if rest.as_os_str().is_empty() { real } else { real.join(rest) };
        }
    }
    path.to_owned()
}

/// Where the log goes, if to a file.
fn start_log(launch: &Launch, cache: &Path) -> Result<Option<PathBuf>> {
    let file = match (&launch.log_file, launch.stay) {
        (Some(file), _) => Some(file.clone()),
        (None, Stay::Background) => Some(cache.join(LOG_FILE)),
        (None, Stay::Foreground) => None,
    };
    let target = file.clone().map_or(Target::StandardError, Target::File);
    telemetry::init(launch.log_level, &target).with_context(|| match &file {
        Some(file) => format!("can't write the log file {}", file.display()),
        None => "can't log".to_owned(),
    })?;
    Ok(file)
}

/// Buffers of parts and bodies come and go on many threads. Left to itself glibc keeps what was
/// freed, in an arena for each thread: with all bounds kept 276 MiB stayed where 150 were in use.
fn bound_the_allocator() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt(3) takes two integers; what it does not know it refuses.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, ARENAS_MAX);
        libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED_BYTES_MIN);
    }
}

fn start_runtime() -> io::Result<Runtime> {
    bound_the_allocator();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads.clamp(2, WORKER_THREADS_MAX))
        .thread_name("trialfs")
        .enable_all()
        .build()
}

fn kernel_options(config: &MountConfig) -> MountOptions {
    MountOptions {
        source: config.url.clone(),
        access: if config.read_only { Access::ReadOnly } else { Access::ReadWrite },
        visibility: match config.allow_other {
            true => Visibility::Everybody,
            false => Visibility::OwnerOnly,
        },
    }
}

/// Listens on the control socket and leaves a note of it.
fn announce(
    config: &MountConfig,
    cache: &Path,
    log_file: Option<PathBuf>,
    clock: &dyn Clock,
    runtime: &tokio::runtime::Handle,
) -> Result<(Noted, UnixListener)> {
    let dir = registry::own_dir()?;
    let mount_point = config.mount_point.clone();
    let socket = dir.join(registry::name_of(&mount_point)).with_extension("sock");
    let noted = Noted { dir: dir.clone(), mount_point: mount_point.clone() };
    let listener = {
        let _guard = runtime.enter();
        server::listen(&socket).with_context(|| format!("can't listen on {}", socket.display()))?
    };
    let since = clock.wall().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let note = Note {
        format: 1,
        mount_point,
        url: config.url.clone(),
        pid: std::process::id(),
        cache_dir: cache.to_owned(),
        socket,
        log_file,
        since: since.as_secs(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    registry::leave(&dir, &note)?;
    Ok((noted, listener))
}

/// True once the kernel's side is gone: by umount(8), by ourselves, or by an error.
fn watch_kernel(serving: Serving) -> watch::Receiver<bool> {
    let (sender, ended) = watch::channel(false);
    let wait = move || {
        if let Err(e) = serving.join() {
            tracing::error!("the kernel's side ended: {e}");
        }
        let _ = sender.send(true); // nobody listens any more: it ends anyway
    };
    if let Err(e) = std::thread::Builder::new().name("session".to_owned()).spawn(wait) {
        tracing::error!("can't watch the kernel's side: {e}"); // the sender is gone: it has ended
    }
    ended
}

/// One message for each SIGTERM, SIGINT and SIGHUP.
fn stops() -> mpsc::Receiver<()> {
    let (sender, stops) = mpsc::channel(STOPS_MAX);
    for kind in [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()] {
        let sender = sender.clone();
        match signal(kind) {
            Ok(mut signals) => {
                tokio::spawn(async move {
                    while signals.recv().await.is_some() {
                        let _ = sender.try_send(()); // full: enough of them wait
                    }
                });
            }
            Err(e) => tracing::warn!("can't watch for a signal: {e}"),
        }
    }
    stops
}
