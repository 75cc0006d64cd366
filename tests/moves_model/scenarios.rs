//! Who takes part in a run, and how the protocol may be wrong.

use crate::store::{Dir, Rename};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mutant {
    /// A `to` is written over a `to`.
    DecidesOver,
    /// A copy is made over what stands there.
    CopiesOver,
    /// A copy is made of whatever is at the source.
    CopiesAnyVersion,
    /// A source goes whatever it is.
    DeletesBlindly,
    /// What is unlinked in the new directory goes before its source.
    UnlinksFirst,
    /// Others' pointers are not looked for; or after the directories are listed.
    IgnoresRivals,
    SurveysDataFirst,
    /// `moved` comes before the sources are gone.
    ClosesEarly,
    /// A source goes before it is copied.
    DeletesUncopied,
    /// The old name is used again before `moved`.
    MakesAgainEarly,
    /// An observer reads the data, and then the records.
    LooksOnce,
    /// `moved` is collected before `to`.
    CollectsMovedFirst,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Task {
    Move,
    Help,
    GiveUp,
    /// In the new directory, once it is there.
    Unlink,
    Overwrite,
    /// At the old name, once nothing is in the way.
    MakeAgain,
    /// At the old name, without looking.
    WriteBlindly,
    Observe,
    /// An hour later: once nothing else is under way.
    Collect,
}

#[derive(Debug, Clone, Copy)]
pub struct Cast {
    pub task: Task,
    pub rename: Rename,
}

#[derive(Debug, Clone)]
pub struct Scenario {
    pub name: &'static str,
    pub cast: Vec<Cast>,
    pub files: &'static [(Dir, &'static str)],
    pub faults: u8,
    pub crashes: u8,
    /// Requests that are under way together arrive in any order; else as they were sent.
    pub any_order: bool,
}

const RENAME: Rename = Rename { from: 's', to: 'd' };
const FILES: &[(Dir, &str)] = &[('s', "x"), ('s', "sub/y")];

fn scenario(name: &'static str, tasks: &[Task], faults: u8, crashes: u8) -> Scenario {
    let cast = tasks.iter().map(|task| Cast { task: *task, rename: RENAME }).collect();
    Scenario { name, cast, files: FILES, faults, crashes, any_order: false }
}

pub fn observed() -> Scenario {
    scenario("lost and late", &[Task::Move, Task::Help, Task::Observe], 1, 0)
}

pub fn deadly() -> Scenario {
    scenario("deadly", &[Task::Move, Task::Help, Task::Observe], 0, 1)
}

pub fn given_up() -> Scenario {
    scenario("given up", &[Task::Move, Task::GiveUp, Task::Observe], 1, 1)
}

fn against(name: &'static str, other: Rename) -> Scenario {
    let mut scenario = scenario(name, &[Task::Move], 1, 1);
    scenario.cast.push(Cast { task: Task::Move, rename: other });
    scenario.any_order = true;
    scenario
}

pub fn rivals() -> Scenario {
    against("rivals", Rename { from: 's', to: 'e' })
}

pub fn rivals_for_the_name() -> Scenario {
    let files = &[('s', "x"), ('e', "x")];
    Scenario { files, ..against("rivals for the name", Rename { from: 'e', to: 'd' }) }
}

pub fn unlinked() -> Scenario {
    scenario("unlinked", &[Task::Move, Task::Help, Task::Unlink], 1, 1)
}

pub fn overwritten() -> Scenario {
    scenario("overwritten", &[Task::Move, Task::Help, Task::Overwrite, Task::Observe], 1, 0)
}

pub fn made_again() -> Scenario {
    scenario("made again", &[Task::Move, Task::Help, Task::MakeAgain, Task::Observe], 1, 0)
}

pub fn written_blindly() -> Scenario {
    scenario("written blindly", &[Task::Move, Task::Help, Task::WriteBlindly], 1, 1)
}

pub fn collected() -> Scenario {
    scenario("collected", &[Task::Move, Task::Help, Task::MakeAgain, Task::Collect], 1, 0)
}

/// Every mutant, and where it shows.
pub fn mutants() -> Vec<(Mutant, Scenario)> {
    vec![
        (Mutant::DecidesOver, given_up()),
        (Mutant::CopiesOver, overwritten()),
        (Mutant::CopiesAnyVersion, written_blindly()),
        (Mutant::DeletesBlindly, written_blindly()),
        (Mutant::UnlinksFirst, unlinked()),
        (Mutant::IgnoresRivals, rivals()),
        (Mutant::IgnoresRivals, rivals_for_the_name()),
        (Mutant::SurveysDataFirst, rivals_for_the_name()),
        (Mutant::ClosesEarly, observed()),
        (Mutant::DeletesUncopied, observed()),
        (Mutant::MakesAgainEarly, made_again()),
        (Mutant::LooksOnce, observed()),
        (Mutant::CollectsMovedFirst, collected()),
    ]
}
