//! Which directories are checkpoints, and what says that one is complete: rules, as data.
//!
//! Owns the presets, the table that a mount goes by, which rule owns a path, and what is due of a
//! transaction given what happened in it. Does not own time (comes in by argument), handles, or
//! what the store is asked for (`protocol`).
//!
//! | file | what |
//! | --- | --- |
//! | [`pattern`] | names of directories and files, with `*`, `?` and `<n>` |
//! | [`parse`] | rules of a user, from a flag or a file |
//! | [`pointers`] | the checkpoints that a trainer's own commit record names |

use std::time::Duration;

use super::record::{Loss, Sign};

pub mod parse;
pub mod pattern;
pub mod pointers;

pub use parse::{RuleError, rule_from_flag, rules_from_file};
pub use pattern::Pattern;

/// How long a directory must be quiet before its transaction is frozen: `--commit-idle`.
pub const COMMIT_IDLE_DEFAULT: Duration = Duration::from_millis(250);
/// After how long without a write a directory whose sign never came is sealed: `--commit-max`.
pub const COMMIT_MAX_DEFAULT: Duration = Duration::from_secs(600);
/// How long a reader or a commit record waits for a commit: `--commit-wait`.
pub const COMMIT_WAIT_DEFAULT: Duration = Duration::from_secs(30);
/// What HF writes after its `trainer_state.json`: the random states of the other ranks.
const HF_QUIET: Duration = Duration::from_secs(2);
/// Rules of one table: every path is held against each.
pub const RULES_MAX: usize = 256;

/// One kind of checkpoint directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    pub name: String,
    pub known_by: KnownBy,
    pub fires: Fires,
    /// How long it must be quiet before it is frozen, or sealed where quiet is its sign.
    pub idle: Duration,
    pub without_sign: WithoutSign,
    /// Whether several mounts fill one such directory together.
    pub loss: Loss,
    pub directory_fsync: DirectoryFsync,
}

/// How a directory is known to be such a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KnownBy {
    /// Its own name.
    Name(Vec<Pattern>),
    /// The name of a file that is created in it.
    Content(Vec<Pattern>),
}

/// What says that it is complete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fires {
    /// Every handle closed, and quiet for `idle`.
    Quiet,
    /// One of these, inside of it; and then quiet for this long.
    Event { events: Vec<Inside>, quiet: Duration },
    /// A commit record that names it, on any mount.
    Named,
}

/// Something that happens inside of a checkpoint directory or to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Inside {
    /// A file directly in it, closed.
    Closed(Pattern),
    /// A file directly in it, renamed to this.
    RenamedTo(Pattern),
    /// The directory itself, renamed away from a name of the rule.
    DirectoryRenamed,
}

/// What becomes of one whose sign never comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WithoutSign {
    /// Sealed after `--commit-max` without a write, and at a clean unmount.
    Seal,
    /// The sign is exact: it stays hidden until `gc` or an explicit commit.
    StayHidden,
}

/// Whether fsync of the directory's descriptor commits it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DirectoryFsync {
    Commits,
    IsNoSign,
}

/// Every rule of a mount. The earlier wins where two match one name.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Table(Vec<Rule>);

/// A path below the mount's root, and the rule that owns it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner<'a> {
    /// How many components, from the root, make the checkpoint directory. At least 1.
    pub depth: usize,
    pub rule: &'a Rule,
}

impl Table {
    /// The user's rules before the presets.
    pub fn new(user: Vec<Rule>, idle: Duration) -> Self {
        let mut rules = user;
        rules.extend(presets(idle));
        rules.truncate(RULES_MAX);
        Self(rules)
    }

    pub fn rules(&self) -> &[Rule] {
        &self.0
    }

    /// Who owns a directory by its name or a name above it: the outermost. The root never is one.
    pub fn owner(&self, directory: &[&str]) -> Option<Owner<'_>> {
        (1..=directory.len()).find_map(|depth| {
            let rule = self.0.iter().find(|rule| rule.matches_name(directory[depth - 1]))?;
            Some(Owner { depth, rule })
        })
    }

    /// Who owns a file that is created: as above; else the directory it is created in, if the
    /// file's name gives that away.
    pub fn owner_of_new(&self, directory: &[&str], file: &str) -> Option<Owner<'_>> {
        let by_content = || {
            let rule = self.0.iter().find(|rule| rule.matches_content(file))?;
            (!directory.is_empty()).then_some(Owner { depth: directory.len(), rule })
        };
        self.owner(directory).or_else(by_content)
    }
}

impl Rule {
    fn matches_name(&self, name: &str) -> bool {
        match &self.known_by {
            KnownBy::Name(patterns) => patterns.iter().any(|pattern| pattern.matches(name)),
            KnownBy::Content(_) => false,
        }
    }

    fn matches_content(&self, file: &str) -> bool {
        match &self.known_by {
            KnownBy::Name(_) => false,
            KnownBy::Content(patterns) => patterns.iter().any(|pattern| pattern.matches(file)),
        }
    }

    /// The name that a directory will have once it is complete, where it is written under another:
    /// its files go up under that.
    pub fn final_name<'a>(&self, name: &'a str) -> Option<&'a str> {
        match self.name.as_str() {
            ORBAX => name.split_once(ORBAX_TMP).map(|(stem, _)| stem),
            "hf" => name.strip_prefix("tmp-"),
            _ => None,
        }
        .filter(|stem| !stem.is_empty())
    }

    /// Whether this is the sign that the rule waits for.
    pub fn is_sign(&self, event: &Event<'_>) -> bool {
        match (event, &self.fires) {
            (Event::Explicit, _) | (Event::Named, Fires::Named) => true,
            (Event::DirectoryFsync, _) => self.directory_fsync == DirectoryFsync::Commits,
            (event, Fires::Event { events, .. }) => events.iter().any(|inside| match inside {
                Inside::Closed(pattern) => {
                    matches!(event, Event::Closed(name) if pattern.matches(name))
                }
                Inside::RenamedTo(pattern) => {
                    matches!(event, Event::Renamed { to } if pattern.matches(to))
                }
                Inside::DirectoryRenamed => matches!(event, Event::DirectoryRenamed),
            }),
            (_, Fires::Quiet | Fires::Named) => false,
        }
    }

    /// Whether its sign commits at once, and not only after a while of quiet.
    pub fn is_immediate(&self) -> bool {
        !matches!(&self.fires, Fires::Event { quiet, .. } if !quiet.is_zero())
    }

    /// What is due of a transaction. `now` and the times in `activity` are of one monotonic clock.
    pub fn due(&self, activity: &Activity, commit_max: Duration, now: Duration) -> Due {
        if let Some(Heard { sign: Sign::Explicit, .. }) = activity.heard {
            return if activity.open_handles == 0 {
                Due::Seal(Sign::Explicit)
            } else {
                Due::Nothing
            };
        }
        if activity.open_handles > 0 || activity.files == 0 || activity.torn == Torn::Yes {
            return Due::Nothing;
        }
        let quiet_for = now.saturating_sub(activity.changed);
        let wait = |quiet: Duration, then: Due| match quiet_for >= quiet {
            true => then,
            false => Due::Later(activity.changed + quiet),
        };
        match (&self.fires, activity.heard) {
            (Fires::Event { quiet, .. }, Some(heard)) => wait(*quiet, Due::Seal(heard.sign)),
            (_, Some(heard)) => Due::Seal(heard.sign),
            (Fires::Quiet, None) => wait(self.idle, Due::Seal(Sign::Idle)),
            (_, None) => self.due_without_sign(activity, commit_max, quiet_for),
        }
    }

    fn due_without_sign(&self, activity: &Activity, max: Duration, quiet_for: Duration) -> Due {
        match self.without_sign {
            _ if quiet_for < self.idle => Due::Later(activity.changed + self.idle),
            WithoutSign::Seal if quiet_for >= max => Due::Seal(Sign::Idle),
            WithoutSign::Seal if quiet_for >= self.quiet() => {
                Due::FreezeBesideOthers(activity.changed + max)
            }
            WithoutSign::Seal => Due::Later(activity.changed + self.quiet()),
            WithoutSign::StayHidden => Due::Freeze,
        }
    }

    /// How long it must be quiet for that nothing more is expected.
    fn quiet(&self) -> Duration {
        match self.fires {
            Fires::Event { quiet, .. } => quiet.max(self.idle),
            Fires::Quiet | Fires::Named => self.idle,
        }
    }

    /// Whether what was frozen and has no sign, last changed at `changed`, is sealed all the same.
    pub fn outlasts_its_sign(&self, changed: Duration, max: Duration, now: Duration) -> bool {
        self.without_sign == WithoutSign::Seal && now.saturating_sub(changed) >= max
    }

    /// What is due of it when the mount is cleanly unmounted, every handle closed.
    pub fn due_at_unmount(&self, activity: &Activity) -> Due {
        if activity.files == 0 || activity.torn == Torn::Yes {
            return Due::Nothing;
        }
        match (activity.heard, self.without_sign) {
            (Some(heard), _) => Due::Seal(heard.sign),
            (None, WithoutSign::Seal) => Due::Seal(Sign::Idle),
            (None, WithoutSign::StayHidden) => Due::Freeze,
        }
    }
}

/// Something that happened to a checkpoint directory. Names are of files directly in it: what
/// happens deeper is a change, and no sign, also where another rule knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event<'a> {
    Closed(&'a str),
    Renamed { to: &'a str },
    DirectoryRenamed,
    DirectoryFsync,
    Named,
    Explicit,
}

/// What happened in a transaction so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Activity {
    /// Names that it makes something of.
    pub files: usize,
    /// Handles open for writing.
    pub open_handles: usize,
    /// When its last file was written, closed, renamed or removed.
    pub changed: Duration,
    pub heard: Option<Heard>,
    pub torn: Torn,
}

/// A sign that came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heard {
    pub sign: Sign,
}

/// Whether a process was killed in the midst of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Torn {
    Yes,
    No,
}

/// What is to be done with a transaction now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// Until something changes.
    Nothing,
    /// Ask again at this time.
    Later(Duration),
    /// Prepare it without a sign; it is sealed when the sign comes, here or elsewhere.
    Freeze,
    /// The same where another mount writes in the directory too, whose sign is then one for all;
    /// else ask again, at this time at the latest.
    FreezeBesideOthers(Duration),
    /// Prepare it with this sign.
    Seal(Sign),
}

/// What a user says for [`orbax`].
const ORBAX: &str = "orbax";
const ORBAX_TMP: &str = ".orbax-checkpoint-tmp";

fn patterns<const N: usize>(texts: [&str; N]) -> Vec<Pattern> {
    texts.iter().map(|text| Pattern::known(text)).collect()
}

fn exact(name: &str, known_by: KnownBy, fires: Fires, idle: Duration) -> Rule {
    Rule {
        name: name.into(),
        known_by,
        fires,
        idle,
        without_sign: WithoutSign::StayHidden,
        loss: Loss::Poison,
        directory_fsync: DirectoryFsync::IsNoSign,
    }
}

/// The presets, in the order in which they are tried.
pub fn presets(idle: Duration) -> Vec<Rule> {
    let ray = KnownBy::Name(patterns(["checkpoint_<n>"]));
    let ray_train = KnownBy::Name(patterns(["checkpoint_<n>-<n>-<n>_<n>-<n>-<n>.<n>"]));
    let dcp = KnownBy::Content(patterns(["*.distcp", ".metadata.tmp"]));
    let hf = KnownBy::Name(patterns(["checkpoint-<n>", "tmp-checkpoint-<n>"]));
    let renamed = Inside::RenamedTo(Pattern::known(".metadata"));
    let renamed = Fires::Event { events: vec![renamed], quiet: Duration::ZERO };
    let state = Inside::Closed(Pattern::known("trainer_state.json"));
    let state = vec![state, Inside::DirectoryRenamed];
    let state = Fires::Event { events: state, quiet: HF_QUIET };
    vec![
        Rule {
            without_sign: WithoutSign::Seal,
            loss: Loss::Alone,
            directory_fsync: DirectoryFsync::Commits,
            ..exact("ray", ray, Fires::Quiet, idle)
        },
        exact("ray-train", ray_train, Fires::Named, idle),
        exact("dcp", dcp, renamed, idle),
        Rule { without_sign: WithoutSign::Seal, ..exact("hf", hf, state, idle) },
    ]
}

/// The preset that is gone by only where a user names it: of Orbax on one host. On several, each
/// reads what the others wrote before the directory is complete, so nobody may hide it; Orbax's own
/// temporary name and the rename of a directory, which is one step, do without a rule.
///
/// The rename alone is the sign: Orbax closes its `commit_success.txt` in the directory of the
/// temporary name, and renames that then.
pub fn orbax(idle: Duration) -> Rule {
    let known_by = KnownBy::Name(patterns(["*.orbax-checkpoint-tmp*"]));
    let fires = Fires::Event { events: vec![Inside::DirectoryRenamed], quiet: Duration::ZERO };
    exact(ORBAX, known_by, fires, idle)
}

#[cfg(test)]
mod tests;
