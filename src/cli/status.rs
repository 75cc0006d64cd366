//! `trialfs status`: one screen for people, one JSON document for programs.
//!
//! Owns how it looks. Does not own what there is to say (`mount::inventory`, the daemon).

use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::{Result, bail};
use serde_json::Value;

use crate::clock::Clock;
use crate::mount::inventory::{self, Found, State};
use crate::mount::point;

use super::args::StatusArgs;
use super::units;

/// Names and warnings beyond this are counted, not shown: a status fits a screen.
const LINES_SHOWN_MAX: usize = 8;

/// Prints; false if a mount that was asked about is not well.
pub fn run(args: &StatusArgs, clock: &dyn Clock) -> Result<bool> {
    let mounts = match &args.dir {
        Some(dir) => vec![find(dir)?],
        None => inventory::all()?,
    };
    if args.json {
        println!("{:#}", serde_json::json!({ "format": 1, "mounts": mounts }));
    } else if mounts.is_empty() {
        println!("nothing is mounted; see `trialfs mount --help`");
    } else {
        let now = clock.wall();
        let shown: Vec<String> = mounts.iter().map(|found| render(found, now)).collect();
        print!("{}", shown.join("\n"));
    }
    let well = |found: &Found| matches!(found.state, State::Mounted | State::Detached);
    Ok(args.dir.is_none() || mounts.iter().all(well))
}

fn find(dir: &Path) -> Result<Found> {
    let point = point::locate(dir)?;
    match inventory::at(&point)? {
        Some(found) => Ok(found),
        None => bail!("{} is not a trialfs mount; `trialfs status` lists them", point.display()),
    }
}

fn render(found: &Found, now: SystemTime) -> String {
    let mut out = String::new();
    let mut say = |label: &str, text: String| line(&mut out, label, &text);
    say("", state_line(found, now));
    if let Some(daemon) = &found.daemon {
        say("pending", pending_line(daemon));
        say("uploads", uploads_line(daemon));
        say("cache", cache_line(daemon));
        say("requests", requests_line(daemon));
        say("open", format!("{} handles", number(daemon, "/fs/handles")));
        let quarantined = number(daemon, "/fs/write/quarantined_files");
        if quarantined > 0 {
            say("quarantine", format!("{quarantined} files that never reached the bucket"));
        }
        list(&mut say, "", daemon.pointer("/quarantine"));
        list(&mut say, "failed", daemon.pointer("/fs/failed"));
        list(&mut say, "degraded", daemon.pointer("/fs/degraded"));
        list(&mut say, "odd keys", daemon.pointer("/fs/odd_key_names"));
        list(&mut say, "warnings", daemon.pointer("/warnings"));
    }
    if let Some(note) = &found.note {
        say("cache dir", note.cache_dir.display().to_string());
        if let Some(log) = &note.log_file {
            say("log", log.display().to_string());
        }
    }
    format!("{}  {}\n{out}", found.mount_point.display(), found.url)
}

fn pending_line(daemon: &Value) -> String {
    match number(daemon, "/fs/pending/files") {
        0 => "everything is in the bucket".to_owned(),
        files => {
            let bytes = units::size(number(daemon, "/fs/pending/bytes"));
            format!("{files} files, {bytes} not yet in the bucket")
        }
    }
}

fn uploads_line(daemon: &Value) -> String {
    format!(
        "{} done, {} running, {} failed; {} sent",
        number(daemon, "/fs/write/uploads_done"),
        number(daemon, "/fs/write/uploads_running"),
        number(daemon, "/fs/write/uploads_failed"),
        units::size(number(daemon, "/fs/write/bytes_sent"))
    )
}

fn cache_line(daemon: &Value) -> String {
    format!(
        "{} of {}; {} read, {} of it fetched",
        units::size(number(daemon, "/fs/read/cache_bytes")),
        units::size(number(daemon, "/fs/read/cache_bytes_max")),
        units::size(number(daemon, "/fs/read/read_bytes")),
        units::size(number(daemon, "/fs/read/fetched_bytes"))
    )
}

/// What was asked of the store, the most frequent first.
fn requests_line(daemon: &Value) -> String {
    let counts = daemon.pointer("/fs/requests").and_then(Value::as_object);
    let counts = counts.into_iter().flatten().filter_map(|(name, n)| Some((name, n.as_u64()?)));
    let (faults, mut asked): (Vec<_>, Vec<_>) = counts
        .filter(|(_, n)| *n > 0)
        .partition(|(name, _)| matches!(name.as_str(), "errors" | "retries"));
    asked.sort_by_key(|(_, n)| std::cmp::Reverse(*n));
    asked.extend(faults);
    let words = asked.iter().map(|(name, n)| format!("{n} {}", name.replace('_', " ")));
    let words = words.collect::<Vec<_>>().join(", ");
    if words.is_empty() { "none yet".to_owned() } else { words }
}

fn state_line(found: &Found, now: SystemTime) -> String {
    let shown = found.mount_point.display();
    let text = match found.state {
        State::Mounted => "mounted".to_owned(),
        State::Detached => "unmounted; waits for open files and uploads".to_owned(),
        State::Dead => format!("dead (its daemon is gone; trialfs unmount {shown} clears it)"),
        State::Stuck => format!("stuck (trialfs unmount --force {shown} ends it)"),
        State::Foreign => "mounted by another user".to_owned(),
    };
    let Some(note) = &found.note else { return text };
    let since = SystemTime::UNIX_EPOCH + Duration::from_secs(note.since);
    let age = now.duration_since(since).unwrap_or_default();
    format!("{text}, pid {}, for {}", note.pid, units::duration(age))
}

/// The first few of a list of texts; nothing of an empty one.
fn list(say: &mut impl FnMut(&str, String), label: &str, texts: Option<&Value>) {
    let texts = texts.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    for (at, text) in texts.iter().take(LINES_SHOWN_MAX).enumerate() {
        let text = text.as_str().unwrap_or_default().escape_debug().to_string();
        say(if at == 0 { label } else { "" }, text);
    }
    if texts.len() > LINES_SHOWN_MAX {
        say("", format!("and {} more (--json shows all)", texts.len() - LINES_SHOWN_MAX));
    }
}

/// What a daemon of another version does not say counts as none.
fn number(daemon: &Value, pointer: &str) -> u64 {
    daemon.pointer(pointer).and_then(Value::as_u64).unwrap_or(0)
}

fn line(out: &mut String, label: &str, text: &str) {
    let _ = writeln!(out, "  {label:<11}{text}"); // writing to a String can't fail
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mount::inventory::Noted;

    fn found(state: State) -> Found {
        Found {
            mount_point: "/mnt/a".into(),
            url: "s3://b/p".to_owned(),
            state,
            note: Some(Noted {
                pid: 7,
                since: 100,
                version: "1".to_owned(),
                cache_dir: "/c".into(),
                log_file: None,
            }),
            daemon: Some(serde_json::json!({
                "warnings": ["no If-Match"],
                "fs": {
                    "pending": { "files": 2, "bytes": 1536 },
                    "failed": (0..10).map(|n| format!("a/{n}\n")).collect::<Vec<_>>(),
                    "odd_key_names": [],
                    "requests": { "get": 2, "put": 7, "head": 0, "errors": 9 },
                },
            })),
        }
    }

    #[test]
    fn a_person_sees_what_matters_at_a_glance() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(165);
        let text = render(&found(State::Mounted), now);
        assert!(text.starts_with("/mnt/a  s3://b/p\n"), "{text}");
        assert!(text.contains("mounted, pid 7, for 1m 5s"), "{text}");
        assert!(text.contains("2 files, 1.5 KiB not yet in the bucket"), "{text}");
        assert!(text.contains("7 put, 2 get, 9 errors\n"), "{text}");
        assert!(text.contains("failed     a/0\\n\n") && text.contains("and 2 more"), "{text}");
        assert!(text.contains("no If-Match") && !text.contains("odd keys"), "{text}");
        let dead = render(&found(State::Dead), now);
        assert!(dead.contains("trialfs unmount /mnt/a"), "{dead}");
    }

    #[test]
    fn a_daemon_of_another_version_is_shown_all_the_same() {
        let mut found = found(State::Mounted);
        found.daemon = Some(serde_json::json!({ "format": 9 }));
        assert!(render(&found, SystemTime::UNIX_EPOCH).contains("everything is in the bucket"));
    }

    #[test]
    fn a_program_finds_stable_keys() {
        let json = serde_json::to_value(found(State::Dead)).expect("encodes");
        for key in ["mount_point", "url", "state", "pid", "since", "cache_dir", "daemon"] {
            assert!(json.get(key).is_some(), "{key}");
        }
        assert_eq!(json["state"], "dead");
    }
}
