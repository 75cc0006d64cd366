//! Where log lines go: one subscriber for the process, to standard error or to a file that is
//! turned over when it grows.
//!
//! Owns the format, the filter and the file. Does not own what is logged; it keeps libraries below
//! `warn` at every level, since their debug lines may hold request headers, credentials among them.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::panic::PanicHookInfo;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use tracing::Level;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// A log file is renamed to `<name>.1` past this; a mount lives for weeks and a cache disk is
/// finite.
pub const LOG_FILE_BYTES_MAX: u64 = 32 << 20;

static PANICS: AtomicU64 = AtomicU64::new(0);

/// Where the log goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    StandardError,
    File(PathBuf),
}

/// Sets up logging for this process, and a panic hook that logs. To be called once; a second call
/// is an error, as is a log file that can't be opened.
pub fn init(level: Level, target: &Target) -> io::Result<()> {
    let filter = EnvFilter::new(format!("warn,trialfs={}", level.as_str().to_lowercase()));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_target(false);
    let set = match target {
        Target::StandardError => log.with_writer(io::stderr).with_ansi(false).try_init(),
        Target::File(path) => log.with_writer(LogFile::open(path)?).with_ansi(false).try_init(),
    };
    set.map_err(|e| io::Error::other(e.to_string()))?;
    std::panic::set_hook(Box::new(log_panic));
    Ok(())
}

/// Panics of this process so far. Each was logged; a request that panics is answered EIO.
pub fn panics() -> u64 {
    PANICS.load(Ordering::Relaxed)
}

fn log_panic(info: &PanicHookInfo<'_>) {
    PANICS.fetch_add(1, Ordering::Relaxed);
    let payload = info.payload();
    let message = payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message");
    let place = info.location().map(ToString::to_string).unwrap_or_default();
    let thread = std::thread::current().name().unwrap_or("unnamed").to_owned();
    tracing::error!(%place, %thread, "panic: {message}");
}

/// A file that is turned over past [`LOG_FILE_BYTES_MAX`].
struct LogFile {
    path: PathBuf,
    open: Mutex<Open>,
}

struct Open {
    file: File,
    bytes: u64,
}

impl LogFile {
    fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), open: Mutex::new(Open::append(path)?) })
    }

    fn write_line(&self, line: &[u8]) -> io::Result<()> {
        let mut open = self.open.lock();
        if open.bytes + line.len() as u64 > LOG_FILE_BYTES_MAX && open.bytes > 0 {
            let mut old = self.path.clone().into_os_string();
            old.push(".1");
            std::fs::rename(&self.path, old)?;
            *open = Open::append(&self.path)?;
        }
        open.bytes += line.len() as u64;
        open.file.write_all(line)
    }
}

impl Open {
    fn append(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
        let bytes = file.metadata()?.len();
        Ok(Self { file, bytes })
    }
}

/// One log line: the subscriber formats a whole event and writes it at once.
struct Line<'a>(&'a LogFile);

impl Write for Line<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.write_line(line).map(|()| line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for LogFile {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_file_is_turned_over_and_never_grows_past_its_bound() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("log");
        let log = LogFile::open(&path).expect("opens");
        let line = vec![b'x'; 8 << 20];
        for _ in 0..6 {
            log.write_line(&line).expect("writes");
        }
        let bytes = |name: &str| std::fs::metadata(dir.path().join(name)).expect(name).len();
        assert_eq!((bytes("log.1"), bytes("log")), (32 << 20, 16 << 20));
    }
}
