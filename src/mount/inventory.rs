//! The trialfs mounts of this machine, as far as this user may see, each with how it stands.
//!
//! Puts together what the mount table says, what daemons noted and what they answer. Does not own
//! any of the three (`table`, `registry`, `client`).

use std::collections::BTreeSet;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Serialize;

use super::client;
use super::point::{self, Standing};
use super::registry::{self, Note};
use super::table::{self, Mounted};

/// How a mount stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It is mounted and its daemon answers.
    Mounted,
    /// Out of the tree; its daemon lives until the last open file is closed and uploaded.
    Detached,
    /// Mounted, but the daemon is gone.
    Dead,
    /// The daemon lives but does not answer in time.
    Stuck,
    /// Mounted by another user, whose daemon we may not ask.
    Foreign,
}

/// One mount.
#[derive(Debug, Clone, Serialize)]
pub struct Found {
    pub mount_point: PathBuf,
    pub url: String,
    pub state: State,
    #[serde(flatten)]
    pub note: Option<Noted>,
    /// What the daemon itself says.
    pub daemon: Option<serde_json::Value>,
}

/// The part of a note that the mount table does not say.
#[derive(Debug, Clone, Serialize)]
pub struct Noted {
    pub pid: u32,
    pub since: u64,
    pub version: String,
    pub cache_dir: PathBuf,
    pub log_file: Option<PathBuf>,
}

/// Every mount, asked in parallel; the answer takes no longer than the slowest may.
pub fn all() -> Result<Vec<Found>> {
    let table = table::read().context("can't read /proc/self/mountinfo")?;
    let mut users: BTreeSet<u32> = [registry::own_uid()].into();
    if registry::own_uid() == 0 {
        users.extend(table.iter().filter(|m| m.is_ours()).filter_map(|m| m.user));
    }
    let notes: Vec<(u32, Note)> = users
        .into_iter()
        .flat_map(|uid| registry::notes_of(uid).into_iter().map(move |note| (uid, note)))
        .collect();
    let noted = |mounted: &Mounted| notes.iter().any(|(_, n)| n.mount_point == mounted.point);
    let bare = table.iter().filter(|m| m.is_ours() && !noted(m));
    Ok(std::thread::scope(|scope| {
        let asked: Vec<_> =
            notes.iter().map(|(uid, note)| scope.spawn(|| ask(&table, *uid, note))).collect();
        let looked: Vec<_> = bare.map(|mounted| scope.spawn(|| look(mounted))).collect();
        let found = asked.into_iter().chain(looked);
        found.filter_map(|thread| thread.join().ok().flatten()).collect()
    }))
}

/// The mount on `mount_point`, if it is one of ours.
pub fn at(mount_point: &Path) -> Result<Option<Found>> {
    let table = table::read().context("can't read /proc/self/mountinfo")?;
    let mounted = table::at(&table, mount_point).filter(|m| m.is_ours());
    let uids = [mounted.and_then(|m| m.user), Some(registry::own_uid())];
    let note = uids
        .into_iter()
        .flatten()
        .find_map(|uid| Some((uid, registry::note_of(uid, mount_point)?)));
    Ok(match (note, mounted) {
        (Some((uid, note)), _) => ask(&table, uid, &note),
        (None, Some(mounted)) => look(mounted),
        (None, None) => None,
    })
}

/// What a note's daemon says; a note of neither mount nor daemon is taken away.
fn ask(table: &[Mounted], uid: u32, note: &Note) -> Option<Found> {
    let mounted = table::at(table, &note.mount_point).filter(|m| m.is_ours());
    let answer = client::status(&note.socket);
    let state = match (&answer, mounted) {
        (Ok(_), Some(_)) => State::Mounted,
        (Ok(_), None) => State::Detached,
        (Err(e), Some(_)) if is_gone(e) => State::Dead,
        (Err(e), None) if is_gone(e) => {
            registry::forget(uid, note);
            return None;
        }
        (Err(_), _) => State::Stuck,
    };
    Some(Found {
        mount_point: note.mount_point.clone(),
        url: note.url.clone(),
        state,
        note: Some(Noted {
            pid: note.pid,
            since: note.since,
            version: note.version.clone(),
            cache_dir: note.cache_dir.clone(),
            log_file: note.log_file.clone(),
        }),
        daemon: answer.ok(),
    })
}

/// A mount without a note: another user's, or one whose note is lost.
fn look(mounted: &Mounted) -> Option<Found> {
    let state = match point::standing(&mounted.point).ok()? {
        Standing::Dead(_) => State::Dead,
        Standing::Stuck(_) => State::Stuck,
        Standing::Alive(_) => State::Foreign,
        Standing::Bare | Standing::Foreign(_) => return None,
    };
    Some(Found {
        mount_point: mounted.point.clone(),
        url: mounted.source.clone(),
        state,
        note: None,
        daemon: None,
    })
}

/// Whether this says that no daemon listens any more.
fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::NotFound)
}
