//! Who takes part in a run, what they want, and how much may go wrong: the bounds of the model.

use trialfs::checkpoint::record::{Loss, Sign};

use Task::{Advance, Collect, Commit, Rescue, Unlink, Write};

#[derive(Debug, Clone)]
pub struct Scenario {
    pub name: &'static str,
    /// Names that stand in the bucket from the start.
    pub initial: &'static [&'static str],
    pub cast: Vec<Cast>,
    /// Writes whose answer is lost and that arrive at any later time or never, or that arrive
    /// twice.
    pub faults: u8,
    /// Mounts that die; what they last sent may still arrive.
    pub crashes: u8,
    /// Processes that are killed while their mount lives.
    pub kills: u8,
    /// LIST is not atomic: two pages, with anything in between.
    pub paged: bool,
    /// The steps of publishing one generation arrive in any order.
    pub any_order: bool,
}

/// One mount. It starts at the first of its lives; a crash leads to the next, or to none.
#[derive(Debug, Clone)]
pub struct Cast {
    pub lives: Vec<Vec<Task>>,
    /// It may crash.
    pub mortal: bool,
    /// It watches leases: whatever did not change between two of its looks counts as dead, which is
    /// any stall at all.
    pub watches: bool,
    /// It leaves publishing to others. A mount that sleeps there for ever does the same; this keeps
    /// the number of states down where several publishers are not the point.
    pub lazy: bool,
}

#[derive(Debug, Clone)]
pub enum Task {
    Write(Attempt),
    /// A sign on another mount, or a person's explicit commit that accepts what is lost by then.
    Commit {
        sign: Sign,
    },
    /// Whatever is due, for ever.
    Advance,
    /// Whatever is due, until nothing is at a second look.
    Rescue,
    Unlink(&'static str),
    Collect,
}

#[derive(Debug, Clone)]
pub struct Attempt {
    pub files: &'static [&'static str],
    /// Names that stood from the start, and that it removes.
    pub removed: &'static [&'static str],
    /// The first file is written down before the others are closed.
    pub first_apart: bool,
    /// A file that may be opened and closed after the commit was decided.
    pub extra: Option<&'static str>,
    pub sign: Option<Sign>,
    pub loss: Loss,
}

pub fn attempt(files: &'static [&'static str]) -> Attempt {
    Attempt {
        files,
        removed: &[],
        first_apart: false,
        extra: None,
        sign: Some(Sign::Idle),
        loss: Loss::Alone,
    }
}

pub fn mount(tasks: Vec<Task>) -> Cast {
    Cast { lives: vec![tasks], mortal: false, watches: false, lazy: false }
}

pub fn mortal(lives: Vec<Vec<Task>>) -> Cast {
    Cast { lives, mortal: true, watches: false, lazy: false }
}

pub fn lazy(cast: Cast) -> Cast {
    Cast { lazy: true, ..cast }
}

pub fn watcher(tasks: Vec<Task>) -> Cast {
    Cast { watches: true, ..mount(tasks) }
}

fn scenario(name: &'static str, initial: &'static [&'static str], cast: Vec<Cast>) -> Scenario {
    let (faults, crashes, kills) = (0, 0, 0);
    Scenario { name, initial, cast, faults, crashes, kills, paged: false, any_order: false }
}

/// All of them: ranks that overlap, a mount that dies at any step, a request that is lost or late
/// or comes twice, a rescuer that takes over whoever is slow, and observers.
pub fn everybody(faults: u8, crashes: u8) -> Scenario {
    let cast = vec![
        lazy(mortal(vec![vec![Write(attempt(&["a", "b"]))]])),
        lazy(mount(vec![Write(attempt(&["b"]))])),
        watcher(vec![Rescue]),
    ];
    let bounds = scenario("two writers, a rescuer, observers", &["a"], cast);
    Scenario { faults, crashes, ..bounds }
}

/// Ranks that watch each other; each may be late, twice, or dead.
pub fn two_writers() -> Scenario {
    let rank = |files| Cast { watches: true, ..mount(vec![Write(attempt(files))]) };
    let cast = vec![rank(&["a", "b"]), lazy(rank(&["b", "c"]))];
    Scenario { faults: 1, ..scenario("two writers that take each other over", &["a"], cast) }
}

/// One writer, any order of publishing, two faults at once.
pub fn one_writer() -> Scenario {
    let first_apart = Attempt { first_apart: true, ..attempt(&["a", "b"]) };
    let cast = vec![mortal(vec![vec![Write(first_apart)]]), watcher(vec![Advance])];
    let bounds = scenario("one writer and a rescuer, two faults", &["a"], cast);
    Scenario { faults: 2, crashes: 1, any_order: true, ..bounds }
}

/// A commit, a later one over the same names, an unlink of one; everybody publishes, late too.
pub fn later_commit() -> Scenario {
    let cast = vec![
        mount(vec![Write(attempt(&["a", "b"]))]),
        mount(vec![Write(attempt(&["a"])), Unlink("b")]),
    ];
    Scenario { faults: 1, ..scenario("a later commit, an unlink, late publishers", &["a"], cast) }
}

/// What is committed is unlinked, while a publisher sleeps.
pub fn later_unlink() -> Scenario {
    let cast = vec![mount(vec![Write(attempt(&["a", "b"]))]), mount(vec![Rescue, Unlink("b")])];
    Scenario { faults: 1, ..scenario("an unlink while a publisher sleeps", &["a"], cast) }
}

/// An unlink races with a commit over the same name.
pub fn unlink() -> Scenario {
    let cast = vec![mount(vec![Write(attempt(&["a", "b"]))]), mount(vec![Unlink("a")])];
    Scenario { faults: 1, ..scenario("an unlink beside a commit", &["a"], cast) }
}

/// The same where the commit makes the name.
pub fn unlink_of_new() -> Scenario {
    let cast = vec![mount(vec![Write(attempt(&["a", "b"]))]), mount(vec![Unlink("b")])];
    Scenario { faults: 1, ..scenario("an unlink beside the commit of the name", &["a"], cast) }
}

/// A process is killed; its directory is written again from another mount.
pub fn retry() -> Scenario {
    let first_apart = Attempt { first_apart: true, ..attempt(&["a", "b"]) };
    let cast = vec![
        lazy(mount(vec![Write(first_apart)])),
        lazy(mount(vec![Write(attempt(&["b"]))])),
        watcher(vec![Rescue]),
    ];
    Scenario { kills: 1, ..scenario("a killed process and the retry", &["a"], cast) }
}

/// A rank is killed; another is explicit about its own; a third mount tries again.
pub fn poison() -> Scenario {
    let explicit = Attempt { sign: Some(Sign::Explicit), ..attempt(&["b"]) };
    let cast = vec![
        lazy(mount(vec![Write(attempt(&["a"]))])),
        lazy(mount(vec![Write(explicit)])),
        lazy(mount(vec![Write(attempt(&["c"]))])),
    ];
    Scenario {
        kills: 1,
        ..scenario("a killed rank beside an explicit one, and a retry", &[], cast)
    }
}

/// Somebody accepts what is torn while somebody else begins anew.
pub fn accept() -> Scenario {
    let first_apart = Attempt { first_apart: true, ..attempt(&["a", "b"]) };
    let cast = vec![
        lazy(mount(vec![Write(first_apart)])),
        mount(vec![Commit { sign: Sign::Explicit }]),
        lazy(mount(vec![Write(attempt(&["b"]))])),
    ];
    let bounds = scenario("an explicit commit of what is torn, and a retry", &["a"], cast);
    Scenario { kills: 1, ..bounds }
}

/// Ranks without a sign of their own, one of which may die; the sign comes on a third mount.
pub fn sign_elsewhere() -> Scenario {
    let rank = |files| Attempt { sign: None, loss: Loss::Poison, ..attempt(files) };
    let cast = vec![
        lazy(mortal(vec![vec![Write(rank(&["a"]))]])),
        lazy(mount(vec![Write(rank(&["b"]))])),
        watcher(vec![Commit { sign: Sign::Sign }]),
    ];
    Scenario { crashes: 1, ..scenario("the sign comes on another mount", &["a"], cast) }
}

/// The sign comes with one rank's part; the other begins its next before it is sealed.
pub fn next_round() -> Scenario {
    let rank = |files, sign| Write(Attempt { sign, loss: Loss::Poison, ..attempt(files) });
    let cast = vec![
        lazy(mount(vec![rank(&["a"], Some(Sign::Sign))])),
        lazy(mount(vec![rank(&["b"], Some(Sign::Idle))])),
        lazy(mount(vec![Rescue])),
    ];
    scenario("the next round begins before the seal", &["a"], cast)
}

/// Files that stood before are removed by a transaction; somebody writes them again.
pub fn removal() -> Scenario {
    let removing = Attempt { removed: &["a", "z"], ..attempt(&["b"]) };
    let cast = vec![mount(vec![Write(removing)]), mount(vec![Write(attempt(&["a"]))])];
    Scenario { faults: 1, ..scenario("removals inside a transaction", &["a", "z"], cast) }
}

/// A mount dies and comes back, and writes again what it had begun.
pub fn restart() -> Scenario {
    let lives = vec![
        vec![Write(Attempt { first_apart: true, ..attempt(&["a", "b"]) })],
        vec![Write(attempt(&["b", "c"]))],
    ];
    let cast = vec![lazy(mortal(lives)), watcher(vec![Rescue])];
    Scenario { crashes: 1, faults: 1, ..scenario("a mount comes back", &["a"], cast) }
}

/// One more file is closed while the swap to prepared is late.
pub fn reopened() -> Scenario {
    let extra = Attempt { extra: Some("c"), ..attempt(&["a", "b"]) };
    let cast = vec![lazy(mount(vec![Write(extra)])), mount(vec![Advance])];
    Scenario { faults: 2, ..scenario("a file closed while the freeze is late", &["a"], cast) }
}

/// LIST reads one key after the other.
pub fn paged() -> Scenario {
    let cast = vec![
        lazy(mount(vec![Write(attempt(&["a"]))])),
        lazy(mount(vec![Write(attempt(&["b"]))])),
        lazy(mount(vec![Rescue])),
    ];
    Scenario { paged: true, ..scenario("a LIST that is not one instant", &[], cast) }
}

/// Records are collected while a mount sleeps over what it had decided; the collector may die
/// midway and go on.
pub fn collection(faults: u8) -> Scenario {
    let write = || Write(attempt(&["c"]));
    let lives = vec![vec![Unlink("b"), Collect, write()], vec![Collect, write()]];
    let cast = vec![mount(vec![Write(attempt(&["a", "b"]))]), mortal(lives)];
    let crashes = 1 - faults;
    Scenario { faults, crashes, ..scenario("records are collected", &["a"], cast) }
}

/// What a killed process left is given up, and collected.
pub fn collection_of_void() -> Scenario {
    let first_apart = Attempt { first_apart: true, ..attempt(&["a", "b"]) };
    let cast = vec![
        lazy(mount(vec![Write(first_apart)])),
        mount(vec![Write(attempt(&["b"])), Collect, Write(attempt(&["c"]))]),
    ];
    Scenario { kills: 1, ..scenario("what was given up is collected", &["a"], cast) }
}
