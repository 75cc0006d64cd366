//! Logs to which each line is added by an open of its own, under `--durability local`: what goes up
//! of them, in which order, and what is left when a writer is killed.

#[path = "support/mounts.rs"]
mod mounts;
#[path = "support/steered.rs"]
mod steered;
#[path = "support/watched.rs"]
mod watched;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use trialfs::fs::Closer;
use trialfs::types::Ino;

use watched::{CALLER, LARGE, Node, Objects, PATIENCE, node};

/// Less than a log rests.
const AT_ONCE: Duration = Duration::from_secs(4);

/// One whose log has a line that is in the bucket.
async fn node_with_a_line(look: impl Fn(Objects) + Send + Sync + 'static) -> Node {
    let node = node(look);
    node.add("log", b"one").await;
    node.appears("log", b"one").await;
    node
}

impl Node {
    async fn add(&self, name: &str, line: &[u8]) {
        let handle = self.open(name).await;
        self.fs.write(handle, 0, line).await.unwrap();
        self.close(handle, Closer::Living(0)).await;
    }

    fn uploads(&self) -> u64 {
        self.fs.status().write.uploads_done
    }

    async fn appears(&self, name: &str, body: &[u8]) {
        let there = async {
            while self.object(name).as_deref() != Some(body) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(AT_ONCE, there).await.expect("it has not gone up");
    }
}

#[tokio::test]
async fn lines_that_are_added_to_a_log_go_up_together() {
    for size in [0, LARGE] {
        let node = node(|_| ());
        let mut log = vec![b'.'; size];
        node.add("log", &log).await;
        node.appears("log", &log).await;
        let before = node.uploads();
        for n in 0..50 {
            let line = format!("{n:063}\n");
            node.add("log", line.as_bytes()).await;
            log.extend(line.as_bytes());
        }
        assert_eq!(node.uploads(), before, "of {size} bytes");
        node.drain().await;
        assert_eq!(node.object("log"), Some(log), "of {size} bytes");
        assert_eq!(node.uploads(), before + 1, "of {size} bytes");
    }
}

/// The last line is added while the lines before it are on their way.
#[tokio::test]
async fn a_line_that_is_added_during_an_upload_is_all_that_goes_up_after_it() {
    let node = node(|_| ());
    let mut log = vec![b'.'; 12 << 20];
    node.add("log", &log).await;
    node.drain().await;
    node.add("log", b"one").await;
    let one = async {
        tokio::time::sleep(Duration::from_millis(2)).await;
        node.add("log", b"two").await;
    };
    let before = node.fs.status().write.bytes_sent;
    tokio::join!(node.drain(), one);
    node.drain().await;
    log.extend(b"onetwo");
    assert!(node.object("log").as_ref() == Some(&log));
    assert_eq!(node.fs.status().write.bytes_sent - before, 6);
}

#[tokio::test]
async fn a_log_that_rests_goes_up_by_itself() {
    let node = node_with_a_line(|_| ()).await;
    let began = tokio::time::Instant::now();
    node.add("log", b"two").await;
    node.add("log", b"three").await;
    while node.object("log").as_deref() != Some(b"onetwothree") {
        assert!(began.elapsed() < PATIENCE, "it rests for ever");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(began.elapsed() > AT_ONCE, "it did not rest");
}

#[tokio::test]
async fn whoever_is_closed_after_a_line_wakes_its_log() {
    let node = node_with_a_line(|objects| {
        if let (Some(log), true) = (objects.get("log"), objects.contains_key("x")) {
            assert!(log.starts_with(b"onetwo"), "x shows before the line that it came after");
        }
    })
    .await;
    node.add("log", b"two").await;
    node.add("x", b"x").await;
    node.add("log", b"three").await;
    node.appears("x", b"x").await;
    node.drain().await;
    assert_eq!(node.object("log").unwrap(), b"onetwothree");
}

#[tokio::test]
async fn an_fsync_of_another_file_waits_for_no_rest() {
    let node = node_with_a_line(|_| ()).await;
    node.add("log", b"two").await;
    let other = node.open("other").await;
    node.fs.write(other, 0, b"other").await.unwrap();
    let synced = tokio::time::timeout(AT_ONCE, node.fs.fsync(other)).await;
    assert_eq!(synced, Ok(Ok(())));
    assert_eq!(node.object("log").unwrap(), b"onetwo");
    node.close(other, Closer::Living(0)).await;
    node.drain().await;
}

/// A program with a child closes the log once in the child; what was acknowledged before either
/// came must be there should the program be killed then.
#[tokio::test]
async fn lines_that_were_acknowledged_outlive_a_writer_that_is_killed_after_a_close() {
    let node = node_with_a_line(|_| ()).await;
    node.add("log", b"two").await;
    node.add("log", b"three").await;
    let handle = node.open("log").await;
    node.fs.write(handle, 0, b"closed by a child").await.unwrap();
    node.fs.flush(handle, Closer::Living(0)).await.unwrap();
    node.fs.write(handle, 0, b"and torn").await.unwrap();
    node.close(handle, Closer::Killed).await;
    node.add("log", b"four").await;
    node.drain().await;
    assert_eq!(node.object("log").unwrap(), b"onetwothreefour");
}

/// Its upload had begun, and waited for the file as that was opened to be written anew: so it went
/// up under the file's own name.
#[tokio::test]
async fn a_file_of_a_checkpoint_that_is_written_anew_is_not_shown_before_its_checkpoint() {
    let shown: Arc<AtomicBool> = Arc::default();
    let sees = shown.clone();
    let node = node(move |objects| {
        let seen = objects.get("checkpoint_000001/rank0.pt").is_some_and(|body| **body == *b"half");
        sees.fetch_or(seen, Ordering::SeqCst);
    });
    let (fs, name) = (&node.fs, OsStr::new("rank0.pt"));
    let top = fs.mkdir(Ino::ROOT, OsStr::new("checkpoint_000001"), 0o755, CALLER).await.unwrap();
    let flags = libc::O_WRONLY | libc::O_CREAT;
    let (file, opened) = fs.create(top.stat.ino, name, 0o644, flags, CALLER).await.unwrap();
    fs.write(opened.handle, 0, b"half").await.unwrap();
    node.close(opened.handle, Closer::Living(0)).await;
    let anew = fs.open(file.stat.ino, libc::O_WRONLY | libc::O_TRUNC, 0).await.unwrap().handle;
    tokio::time::sleep(Duration::from_millis(100)).await; // whatever was begun goes on
    fs.write(anew, 0, b"whole").await.unwrap();
    node.close(anew, Closer::Living(0)).await;
    node.drain().await;
    assert_eq!(node.object("checkpoint_000001/rank0.pt").unwrap(), b"whole");
    assert!(!shown.load(Ordering::SeqCst), "half a checkpoint was shown");
}

/// Programs that write a few logs and other files, some of which are killed. Each line names how
/// much of every file was closed before it was opened: that much must show wherever it does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_line_shows_before_what_was_closed_before_it() {
    const FILES: [&str; 4] = ["a.log", "b.log", "c", "d"];
    type Closed = BTreeMap<&'static str, usize>;
    fn lines(body: &[u8]) -> Vec<Closed> {
        let text = std::str::from_utf8(body).unwrap();
        let read = |line: &str| -> Closed {
            let numbers = line.split(' ').map(|word| word.trim_start_matches('.').parse().unwrap());
            FILES.into_iter().zip(numbers).collect()
        };
        text.lines().map(read).collect()
    }
    for seed in 0..12 {
        let shows = |objects: Objects| {
            let shown: BTreeMap<&str, Vec<Closed>> = FILES
                .into_iter()
                .map(|name| (name, objects.get(name).map_or(Vec::new(), |body| lines(body))))
                .collect();
            for (name, line) in shown.iter().flat_map(|(n, all)| all.iter().map(move |l| (n, l))) {
                for (other, closed) in line {
                    assert!(shown[other].len() >= *closed, "{name} before {closed} of {other}");
                }
            }
        };
        let node = Arc::new(node(shows));
        let closed: Arc<Mutex<Closed>> = Arc::default();
        let turns: Arc<BTreeMap<&str, tokio::sync::Mutex<()>>> =
            Arc::new(FILES.into_iter().map(|name| (name, Default::default())).collect());
        let mut programs = Vec::new();
        for program in 0..3u64 {
            let (node, closed, turns) = (node.clone(), closed.clone(), turns.clone());
            programs.push(tokio::spawn(async move {
                let mut random = StdRng::seed_from_u64(seed * 10 + program);
                for _ in 0..60 {
                    // Mostly one log, as programs have it.
                    let name = FILES[random.random_range(0..12usize).saturating_sub(8)];
                    let _turn = turns[name].lock().await;
                    let before = closed.lock().clone();
                    let handle = node.open(name).await;
                    let count = |file: &&str| before.get(file).copied().unwrap_or(0).to_string();
                    let words: Vec<String> = FILES.iter().map(count).collect();
                    let dots =
                        if random.random_bool(0.1) { ".".repeat(LARGE) } else { String::new() };
                    let line = format!("{dots}{}\n", words.join(" "));
                    node.fs.write(handle, 0, line.as_bytes()).await.unwrap();
                    match random.random_range(0..10) {
                        0 => node.close(handle, Closer::Killed).await,
                        1 => {
                            node.fs.fsync(handle).await.unwrap();
                            *closed.lock().entry(name).or_default() += 1;
                            node.close(handle, Closer::Living(0)).await;
                        }
                        _ => {
                            node.fs.flush(handle, Closer::Living(0)).await.unwrap();
                            *closed.lock().entry(name).or_default() += 1;
                            node.fs.release(handle).await;
                        }
                    }
                    if random.random_bool(0.1) {
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                }
            }));
        }
        for program in programs {
            tokio::time::timeout(PATIENCE, program)
                .await
                .expect("they wait for each other")
                .unwrap();
        }
        node.drain().await;
        for (name, count) in closed.lock().iter() {
            let shown = lines(&node.object(name).unwrap_or_default()).len();
            assert_eq!(shown, *count, "{name}, seed {seed}");
        }
    }
}
