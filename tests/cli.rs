//! The command line against the real kernel: what a user types, what is printed, and what is left
//! mounted afterwards, which after every failure is nothing.
//!
//! Wants root, `/dev/fuse` and fusermount3. Where they are missing a test says so and passes, but
//! not in CI (`CI=true`), where a skipped test would be a silent loss.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// How long a condition may take to come true.
const WAIT_S_MAX: Duration = Duration::from_secs(20);
/// What the help states for a store that can't be reached, and some time to start.
const UNREACHABLE_S_MAX: Duration = Duration::from_secs(15 + 5);
/// Nobody's, by convention.
const NOBODY: &str = "65534";

/// A place for one test: an export, a mount point and a cache, gone afterwards with all mounts.
struct Place {
    dir: tempfile::TempDir,
    /// Runs `trialfs` as `nobody`.
    unprivileged: bool,
}

impl Place {
    /// `None` where this machine can't mount.
    fn new() -> Option<Self> {
        // SAFETY: geteuid has no preconditions.
        let is_root = unsafe { libc::geteuid() } == 0;
        if !(is_root && Path::new("/dev/fuse").exists()) {
            assert!(std::env::var_os("CI").is_none(), "CI must run as root with /dev/fuse");
            eprintln!("skipped: wants root and /dev/fuse");
            return None;
        }
        let place = Self { dir: tempfile::tempdir().expect("a directory"), unprivileged: false };
        for name in ["mnt", "export", "run"] {
            fs::create_dir(place.path(name)).expect("a directory");
        }
        fs::set_permissions(place.path("run"), fs::Permissions::from_mode(0o700)).expect("chmod");
        Some(place)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().canonicalize().expect("the directory").join(name)
    }

    fn mnt(&self) -> PathBuf {
        self.path("mnt")
    }

    fn export(&self) -> String {
        format!("file://{}", self.path("export").display())
    }

    fn command(&self, words: &[&str]) -> Command {
        let program = match self.unprivileged {
            true => self.path("trialfs"),
            false => env!("CARGO_BIN_EXE_trialfs").into(),
        };
        let mut command = match self.unprivileged {
            true => {
                let mut command = Command::new("setpriv");
                command.args(["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups"]).arg(program);
                command
            }
            false => Command::new(program),
        };
        command.args(words).stdin(Stdio::null());
        for name in ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_PROFILE", "XDG_CACHE_HOME"] {
            command.env_remove(name);
        }
        command.env_remove("STORAGE_EMULATOR_HOST").env_remove("CLOUDSDK_CONFIG");
        command.env("HOME", self.dir.path()).env("XDG_RUNTIME_DIR", self.path("run"));
        command
    }

    fn run(&self, words: &[&str]) -> Output {
        self.command(words).output().expect("runs")
    }

    /// `trialfs mount URL mnt` with a cache of its own.
    fn mount(&self, url: &str, flags: &[&str]) -> Output {
        let (mnt, cache) = (self.mnt(), self.path("cache"));
        let words = ["mount", url, text(&mnt), "--cache-dir", text(&cache)];
        self.run(&[&words[..], flags].concat())
    }

    fn mounted(&self) -> bool {
        is_mounted(&self.mnt())
    }

    fn status(&self) -> serde_json::Value {
        let output = self.run(&["status", text(&self.mnt()), "--json"]);
        let json: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        json["mounts"][0].clone()
    }

    fn daemon(&self) -> u32 {
        self.status()["pid"].as_u64().expect("a pid") as u32
    }

    fn kill_daemon(&self) {
        let pid = self.daemon();
        signal(pid, libc::SIGKILL);
        until("the daemon is gone", || !is_running(pid));
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let left = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let dir = self.dir.path().display().to_string();
        for line in left.lines().filter(|line| line.contains(&dir)) {
            if let Some(point) = line.split(' ').nth(4) {
                let _ = Command::new("umount").args(["-l", point]).status();
            }
        }
        // One that a failed test left stopped would stay for ever.
        for pid in daemons_of(self.dir.path()) {
            // SAFETY: kill touches no memory; the pid is of a process that this test started.
            unsafe { libc::kill(pid as libc::pid_t, libc::SIGKILL) };
        }
    }
}

/// Processes that have a path below `dir` among their arguments.
fn daemons_of(dir: &Path) -> Vec<u32> {
    let start = format!("{}/", text(dir));
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let of_ours = |pid: &u32| {
        let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        words.split(|byte| *byte == 0).any(|word| word.starts_with(start.as_bytes()))
    };
    pids.filter(of_ours).collect()
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

fn is_mounted(point: &Path) -> bool {
    let table = fs::read_to_string("/proc/self/mountinfo").expect("the mount table");
    table.lines().any(|line| line.split(' ').nth(4) == Some(text(point)))
}

/// Neither gone nor a zombie that waits for its parent.
fn is_running(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with('Z'))
}

fn signal(pid: u32, signal: libc::c_int) {
    // SAFETY: kill touches no memory; the pid is of a process that this test started.
    assert_eq!(unsafe { libc::kill(pid as libc::pid_t, signal) }, 0);
}

#[allow(clippy::disallowed_methods)] // the bound of a test
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < WAIT_S_MAX, "never: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[track_caller]
fn succeeds(output: &Output) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{:?}: {said}", output.status.code());
}

/// With this code, and one line that holds each of these.
#[track_caller]
fn fails(output: &Output, code: i32, holds: &[&str]) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    for word in holds {
        assert!(said.contains(word), "`{word}` is not in: {said}");
    }
}

/// Ends with the test.
struct Holder(Child);

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A process that has its working directory there.
fn hold(dir: &Path) -> Holder {
    let child = Command::new("sleep").arg("600").current_dir(dir).spawn().expect("runs");
    Holder(child)
}

#[test]
fn help_and_version_are_there_for_a_stranger() {
    let trialfs = env!("CARGO_BIN_EXE_trialfs");
    let output = Command::new(trialfs).arg("--help").output().expect("runs");
    succeeds(&output);
    let help = String::from_utf8_lossy(&output.stdout);
    for word in ["s3://", "gs://", "https://", "file:///", "fstab", "unmount", "Exit codes"] {
        assert!(help.contains(word), "{word}");
    }
    succeeds(&Command::new(trialfs).arg("--version").output().expect("runs"));
    let output = Command::new(trialfs).args(["mount", "--help"]).output().expect("runs");
    let help = String::from_utf8_lossy(&output.stdout);
    for word in ["--cache-dir", "--io-timeout", "120s", "AWS_PROFILE", "10GiB"] {
        assert!(help.contains(word), "{word}");
    }
    for words in [&[][..], &["mount"], &["mount", "s3://b", "/m", "--frobnicate"], &["explode"]] {
        let output = Command::new(trialfs).args(words).output().expect("runs");
        assert_eq!(output.status.code(), Some(2), "{words:?}");
    }
}

#[test]
fn a_wrong_url_is_a_usage_error_on_one_line() {
    let Some(place) = Place::new() else { return };
    fails(&place.mount("s3//bucket", &[]), 2, &["no scheme", "s3://BUCKET"]);
    fails(&place.mount("ftp://h/x", &[]), 2, &["ftp"]);
    fails(&place.mount("s3://KEY:se/cret@bucket", &[]), 2, &["environment"]);
    fails(&place.mount("memory://", &["-o", "frobnicate"]), 2, &["frobnicate"]);
    fails(&place.mount("memory://", &["--durability", "never"]), 2, &["close", "local"]);
    assert!(!place.mounted());
}

#[test]
fn a_mount_point_that_is_none_is_refused() {
    let Some(place) = Place::new() else { return };
    fs::write(place.path("file"), "").expect("writes");
    let at = |name: &str| place.run(&["mount", "memory://", text(&place.path(name))]);
    fails(&at("missing"), 1, &["no such directory", "mkdir -p"]);
    fails(&at("file"), 1, &["not a directory"]);
    fs::write(place.path("export/thesis.tex"), "").expect("writes");
    fails(&at("export"), 1, &["not empty", "thesis.tex", "--nonempty"]);
    fails(&place.run(&["mount", "memory://", "/proc"]), 1, &["mount point of proc"]);
    assert!(!is_mounted(&place.path("export")));
}

#[test]
fn a_mount_never_waits_for_itself() {
    let Some(place) = Place::new() else { return };
    let mnt = place.mnt();
    let inside = mnt.join("cache");
    let words = ["mount", "memory://", text(&mnt), "--cache-dir", text(&inside)];
    fails(&place.run(&words), 1, &["cache directory", "one in the other"]);
    let around = format!("file://{}", place.dir.path().display());
    fails(&place.mount(&around, &[]), 1, &["one in the other"]);
    let log = mnt.join("log");
    fails(&place.mount("memory://", &["--log-file", text(&log)]), 1, &["one in the other"]);
    assert!(!place.mounted());
}

#[test]
#[allow(clippy::disallowed_methods)] // the stated time is what is tested
fn an_unreachable_store_is_told_within_the_stated_time() {
    let Some(place) = Place::new() else { return };
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
    drop(listener);
    let start = Instant::now();
    let (mnt, cache) = (place.mnt(), place.path("cache"));
    let output = place
        .command(&["mount", "s3://bucket/prefix", text(&mnt), "--cache-dir", text(&cache)])
        .args(["--endpoint", &endpoint, "--region", "us-east-1"])
        .env("AWS_ACCESS_KEY_ID", "AKIATEST")
        .env("AWS_SECRET_ACCESS_KEY", "sEcReT")
        .output()
        .expect("runs");
    fails(&output, 1, &["s3://bucket/prefix", &endpoint, "can't be reached"]);
    assert!(start.elapsed() < UNREACHABLE_S_MAX, "{:?}", start.elapsed());
    assert!(!place.mounted());
    let log = fs::read_to_string(cache.join("trialfs.log")).expect("a log");
    assert!(log.contains("not mounted") && !log.contains("sEcReT"), "{log}");
}

#[test]
fn google_credentials_that_are_none_are_told_on_one_line() {
    let Some(place) = Place::new() else { return };
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let nobody = listener.local_addr().expect("an address").to_string();
    drop(listener);
    let (mnt, cache) = (place.mnt(), place.path("cache"));
    let words = ["mount", "gs://bucket/runs", text(&mnt), "--cache-dir", text(&cache)];
    let mut command = place.command(&words);
    command.env("GCE_METADATA_HOST", &nobody).env("GCE_METADATA_IP", &nobody);
    let none = command.env_remove("GOOGLE_APPLICATION_CREDENTIALS").output().expect("runs");
    let clue = "gcloud auth application-default login";
    fails(&none, 1, &["gs://bucket/runs", "no credentials found", clue]);
    fs::write(place.path("key.json"), r#"{"type": "external_account"}"#).expect("writes");
    for name in ["nowhere.json", "key.json"] {
        let path = place.path(name);
        let output = command.env("GOOGLE_APPLICATION_CREDENTIALS", &path).output().expect("runs");
        fails(&output, 1, &["gs://bucket/runs", text(&path), "can't be used"]);
    }
    assert!(!place.mounted());
}

#[test]
fn a_mount_lives_from_mount_to_unmount() {
    let Some(place) = Place::new() else { return };
    succeeds(&place.mount(&place.export(), &[]));
    assert!(place.mounted());
    fs::write(place.mnt().join("a"), "hello").expect("writes");
    assert_eq!(fs::read(place.path("export/a")).expect("is in the export"), b"hello");
    let status = place.status();
    assert_eq!(status["state"], "mounted");
    assert_eq!(status["url"], place.export());
    assert_eq!(status["daemon"]["fs"]["pending"]["files"], 0);
    let said = place.run(&["status"]);
    assert!(String::from_utf8_lossy(&said.stdout).contains(text(&place.mnt())));
    let pid = place.daemon();
    succeeds(&place.run(&["unmount", text(&place.mnt())]));
    assert!(!place.mounted() && !is_running(pid));
    fails(&place.run(&["unmount", text(&place.mnt())]), 1, &["is not mounted"]);
    fails(&place.run(&["status", text(&place.mnt())]), 1, &["not a trialfs mount"]);
    succeeds(&place.mount(&place.export(), &["--read-only"]));
    assert_eq!(fs::read(place.mnt().join("a")).expect("reads"), b"hello");
    let error = fs::write(place.mnt().join("b"), "x").expect_err("read-only");
    assert_eq!(error.raw_os_error(), Some(libc::EROFS));
    succeeds(&place.run(&["unmount", text(&place.mnt())]));
}

#[test]
fn the_daemon_keeps_nothing_of_the_terminal_and_its_files_to_itself() {
    let Some(place) = Place::new() else { return };
    succeeds(&place.mount("memory://", &[]));
    let process = PathBuf::from(format!("/proc/{}", place.daemon()));
    assert_eq!(process.join("cwd").read_link().expect("a link"), Path::new("/"));
    for standard in ["0", "1", "2"] {
        let file = process.join("fd").join(standard).read_link().expect("a link");
        assert_eq!(file, Path::new("/dev/null"));
    }
    let limits = fs::read_to_string(process.join("limits")).expect("limits");
    let core = limits.lines().find(|line| line.starts_with("Max core")).expect("a line");
    assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");
    assert_eq!(place.path("cache").metadata().expect("exists").mode() & 0o777, 0o700);
    for name in ["lock", "mount-id", "origin", "trialfs.log"] {
        let file = place.path("cache").join(name).metadata().expect(name);
        assert_eq!(file.mode() & 0o077, 0, "{name}");
    }
    succeeds(&place.run(&["unmount", text(&place.mnt())]));
}

#[test]
fn a_mount_point_or_cache_in_use_is_refused_with_its_pid() {
    let Some(place) = Place::new() else { return };
    succeeds(&place.mount("memory://", &[]));
    let pid = place.daemon();
    fails(&place.mount("memory://", &[]), 1, &["mounted already", &format!("pid {pid})")]);
    let (other, cache) = (place.path("export"), place.path("cache"));
    let words = ["mount", "memory://", text(&other), "--cache-dir", text(&cache)];
    fails(&place.run(&words), 1, &["in use", &format!("process {pid}")]);
    assert!(!is_mounted(&other) && place.mounted());
    succeeds(&place.run(&["unmount", text(&place.mnt())]));
    fails(&place.mount(&place.export(), &[]), 1, &["belongs to memory://", "--cache-dir"]);
}

#[test]
fn what_a_killed_daemon_leaves_is_taken_over_by_mount_and_cleared_by_unmount() {
    let Some(place) = Place::new() else { return };
    succeeds(&place.mount("memory://", &[]));
    place.kill_daemon();
    assert_eq!(place.status()["state"], "dead");
    succeeds(&place.mount("memory://", &[]));
    assert_eq!(place.status()["state"], "mounted");
    fs::write(place.mnt().join("a"), "x").expect("writes");
    place.kill_daemon();
    assert!(place.mnt().metadata().is_err(), "a dead mount");
    succeeds(&place.run(&["unmount", text(&place.mnt())]));
    assert!(!place.mounted());
}

#[test]
fn a_busy_mount_says_who_holds_it_and_stays() {
    let Some(place) = Place::new() else { return };
    succeeds(&place.mount("memory://", &[]));
    let holder = hold(&place.mnt());
    let who = format!("sleep (pid {}) has its working directory there", holder.0.id());
    fails(&place.run(&["unmount", text(&place.mnt())]), 1, &["busy", &who, "--lazy"]);
    assert_eq!(place.status()["state"], "mounted");
    let pid = place.daemon();
    succeeds(&place.run(&["unmount", "--lazy", text(&place.mnt())]));
    assert!(!place.mounted() && is_running(pid));
    assert_eq!(place.status()["state"], "detached");
    drop(holder);
    until("the daemon ends with the last user", || !is_running(pid));
}

#[test]
fn force_ends_a_busy_mount() {
    let Some(place) = Place::new() else { return };
    succeeds(&place.mount("memory://", &[]));
    let _holder = hold(&place.mnt());
    let pid = place.daemon();
    succeeds(&place.run(&["unmount", "--force", text(&place.mnt())]));
    assert!(!place.mounted() && !is_running(pid));
}

#[test]
fn sigterm_and_umount_end_the_daemon_with_everything_uploaded() {
    let Some(place) = Place::new() else { return };
    for by_signal in [true, false] {
        succeeds(&place.mount(&place.export(), &[]));
        let pid = place.daemon();
        fs::write(place.mnt().join("a"), format!("{by_signal}")).expect("writes");
        if by_signal {
            signal(pid, libc::SIGTERM);
        } else {
            let status = Command::new("umount").arg(place.mnt()).status().expect("runs");
            assert!(status.success());
        }
        until("the daemon ends", || !is_running(pid));
        assert!(!place.mounted());
        let kept = fs::read_to_string(place.path("export/a")).expect("is in the export");
        assert_eq!(kept, format!("{by_signal}"));
    }
}

#[test]
fn a_mount_in_the_foreground_ends_with_an_interrupt() {
    let Some(place) = Place::new() else { return };
    let (mnt, cache) = (place.mnt(), place.path("cache"));
    let words = ["mount", "memory://", text(&mnt), "--cache-dir", text(&cache), "--foreground"];
    let mut child = place.command(&words).stderr(Stdio::null()).spawn().expect("runs");
    until("it is mounted", || place.mounted());
    until("it answers", || place.run(&["status", text(&mnt)]).status.success());
    signal(child.id(), libc::SIGINT);
    assert!(child.wait().expect("ends").success());
    assert!(!place.mounted());
}

#[test]
fn a_hanging_daemon_hangs_neither_status_nor_unmount() {
    let Some(place) = Place::new() else { return };
    succeeds(&place.mount("memory://", &[]));
    let pid = place.daemon();
    signal(pid, libc::SIGSTOP);
    assert_eq!(place.status()["state"], "stuck");
    fails(&place.run(&["unmount", text(&place.mnt())]), 1, &["does not answer", "--force"]);
    fails(&place.mount("memory://", &[]), 1, &["does not answer", "--force"]);
    succeeds(&place.run(&["unmount", "--force", text(&place.mnt())]));
    assert!(!place.mounted());
    signal(pid, libc::SIGKILL);
    until("the daemon is gone", || !is_running(pid));
}

#[test]
fn fstab_options_and_a_missing_verb_are_understood() {
    let Some(place) = Place::new() else { return };
    let (mnt, cache) = (place.mnt(), place.path("cache"));
    let options =
        format!("rw,_netdev,nofail,allow_other,uid=7,umask=027,cache_dir={}", text(&cache));
    succeeds(&place.run(&["memory://", text(&mnt), "-o", &options]));
    let table = fs::read_to_string("/proc/mounts").expect("the mount table");
    let line = table.lines().find(|line| line.contains(text(&mnt))).expect("a line");
    assert!(line.contains("fuse.trialfs") && line.contains("allow_other"), "{line}");
    let root = mnt.metadata().expect("stat");
    assert_eq!((root.uid(), root.mode() & 0o777), (7, 0o750));
    succeeds(&place.run(&["umount", text(&mnt)]));
}

#[test]
fn no_secret_shows_in_arguments_messages_or_the_mount_table() {
    let Some(place) = Place::new() else { return };
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let at = listener.local_addr().expect("an address");
    // Never answers: the daemon waits, and its arguments can be read meanwhile.
    let url = format!("http://me:hunter2@{at}/dav");
    let (mnt, cache) = (place.mnt(), place.path("cache"));
    let words = ["mount", &url, text(&mnt), "--cache-dir", text(&cache), "--foreground"];
    let mut command = place.command(&words);
    let child = command.args(["--io-timeout", "2s"]).stderr(Stdio::piped()).spawn().expect("runs");
    let arguments = format!("/proc/{}/cmdline", child.id());
    until("the daemon starts over without the password", || {
        fs::read_to_string(&arguments).is_ok_and(|words| !words.contains("hunter2"))
    });
    let output = child.wait_with_output().expect("ends");
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!said.contains("hunter2") && said.contains("TRIALFS_WEBDAV_PASSWORD"), "{said}");
    assert!(!place.mounted());
}

#[test]
fn an_ordinary_user_mounts_through_fusermount3() {
    let Some(mut place) = Place::new() else { return };
    if Command::new("fusermount3").arg("-V").output().is_err() {
        assert!(std::env::var_os("CI").is_none(), "CI must have fusermount3");
        eprintln!("skipped: fusermount3 is not installed");
        return;
    }
    // As udev does everywhere; a bare container has it for root alone.
    fs::set_permissions("/dev/fuse", fs::Permissions::from_mode(0o666)).expect("chmod");
    fs::copy(env!("CARGO_BIN_EXE_trialfs"), place.path("trialfs")).expect("copies");
    fs::set_permissions(place.dir.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
    let nobody = NOBODY.parse().ok();
    for path in [place.dir.path().to_owned(), place.mnt(), place.path("run"), place.path("export")]
    {
        std::os::unix::fs::chown(path, nobody, nobody).expect("chown");
    }
    place.unprivileged = true;
    succeeds(&place.mount("memory://", &[]));
    assert!(place.mounted());
    assert_eq!(place.status()["state"], "mounted");
    fails(&place.mount("memory://", &[]), 1, &["mounted already"]);
    fails(&place.run(&["mount", "memory://", "/proc"]), 1, &["mount point of proc"]);
    place.kill_daemon();
    assert_eq!(place.status()["state"], "dead");
    succeeds(&place.mount("memory://", &[]));
    succeeds(&place.run(&["unmount", text(&place.mnt())]));
    assert!(!place.mounted());
}
