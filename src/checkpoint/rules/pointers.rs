//! Which checkpoint directories a trainer's own commit record names.
//!
//! Owns what is read of such a file, and that this is bounded. Does not own what is done about it:
//! the named ones are sealed before the record goes up.

use serde::Deserialize;

use crate::checkpoint::record::RelPath;

/// The longest record that is looked into, in bytes. Ray's have some hundred bytes for each
/// checkpoint, and some ten KiB for each trial.
pub const POINTER_BYTES_MAX: usize = 64 << 20;
/// Names taken from one record: more than it can have trials.
pub const POINTERS_MAX: usize = 100_000;

/// What kind of commit record a file is, by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CommitRecord {
    /// Ray Train's: names directories beside it.
    TrainSnapshot,
    /// Ray Tune's: names directories one level below.
    TuneState,
}

/// Too long, or not what it should be: the caller seals what it knows of below the record's
/// directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a commit record that can be understood")]
pub struct NotUnderstood;

impl CommitRecord {
    pub fn of(file: &str) -> Option<Self> {
        if file == "checkpoint_manager_snapshot.json" {
            return Some(Self::TrainSnapshot);
        }
        let tune = file.starts_with("experiment_state-") && file.ends_with(".json");
        tune.then_some(Self::TuneState)
    }

    /// The directories that it names, relative to its own, each once. Names that lead elsewhere are
    /// left out.
    pub fn pointers(self, bytes: &[u8]) -> Result<Vec<RelPath>, NotUnderstood> {
        if bytes.len() > POINTER_BYTES_MAX {
            return Err(NotUnderstood);
        }
        let mut found = match self {
            Self::TrainSnapshot => train(bytes)?,
            Self::TuneState => tune(bytes),
        };
        found.sort();
        found.dedup();
        found.truncate(POINTERS_MAX);
        Ok(found)
    }
}

fn train(bytes: &[u8]) -> Result<Vec<RelPath>, NotUnderstood> {
    #[derive(Deserialize)]
    struct Snapshot {
        checkpoint_results: Vec<Named>,
    }
    #[derive(Deserialize)]
    struct Named {
        checkpoint_dir_name: String,
    }
    let snapshot: Snapshot = serde_json::from_slice(bytes).map_err(|_| NotUnderstood)?;
    let names = snapshot.checkpoint_results.into_iter().take(POINTERS_MAX);
    let beside = |named: Named| {
        let name = named.checkpoint_dir_name;
        RelPath::new(&name).ok().filter(|path| !path.is_root() && !name.contains('/'))
    };
    Ok(names.filter_map(beside).collect())
}

/// The name that every checkpoint directory of Tune begins with.
const STEM: &[u8] = b"checkpoint_";

/// Tune's state is JSON in JSON strings, with pickles in hexadecimal digits in those: what looks
/// like the path of a checkpoint is looked for in the bytes, plain and in hexadecimal. One too many
/// does no harm: what has no transaction needs no sealing.
fn tune(bytes: &[u8]) -> Vec<RelPath> {
    let mut found = paths(bytes);
    for run in bytes.split(|byte| !byte.is_ascii_hexdigit()) {
        if run.len() >= 2 * STEM.len() {
            found.extend(paths(&unhex(run)));
        }
    }
    found
}

fn unhex(run: &[u8]) -> Vec<u8> {
    let digit = |byte: u8| (byte as char).to_digit(16).unwrap_or(0) as u8;
    run.chunks_exact(2).map(|pair| digit(pair[0]) << 4 | digit(pair[1])).collect()
}

/// Every `<trial>/checkpoint_<digits>` that follows a `/`.
fn paths(bytes: &[u8]) -> Vec<RelPath> {
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(next) = find(&bytes[at..], STEM) {
        let start = at + next;
        let digits = bytes[start + STEM.len()..].iter().take_while(|b| b.is_ascii_digit()).count();
        let end = start + STEM.len() + digits;
        at = end;
        if digits > 0 && found.len() < POINTERS_MAX {
            found.extend(trial_before(bytes, start, end));
        }
    }
    found
}

fn trial_before(bytes: &[u8], start: usize, end: usize) -> Option<RelPath> {
    let parent = bytes[..start].strip_suffix(b"/")?;
    let begin = parent.iter().rev().take(crate::types::NAME_BYTES_MAX + 1);
    let length = begin.take_while(|byte| **byte != b'/').count();
    parent.len().checked_sub(length + 1)?;
    let text = std::str::from_utf8(&bytes[parent.len() - length..end]).ok()?;
    let quoted = text.contains(['"', '\\']);
    RelPath::new(text).ok().filter(|_| !quoted)
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    // The first byte is found by a fast search; the rest is compared where it stands.
    let mut at = 0;
    loop {
        let next = bytes[at..].iter().position(|byte| *byte == wanted[0])?;
        at += next;
        if bytes[at..].starts_with(wanted) {
            return Some(at);
        }
        at += 1;
    }
}
