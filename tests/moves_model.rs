//! Every interleaving of a directory's rename, within the bounds that `scenarios` states, and
//! mutants of it that must all be caught.
//!
//! Bounds: a directory of two files; a mover, and beside it a helper, a rescuer, a rival, somebody
//! who writes or unlinks in the old or the new directory, and an observer that reads records, data
//! and records at any instants; at most two requests lost or late, two mounts dead at any step.
//! Stalls have no bound. A violation is printed as the shortest way to it.

#[path = "moves_model/actor.rs"]
mod actor;
#[path = "moves_model/scenarios.rs"]
mod scenarios;
#[path = "moves_model/store.rs"]
mod store;
#[path = "moves_model/world.rs"]
mod world;

use scenarios::Scenario;
use world::explore;

fn holds(scenario: &Scenario) {
    let explored = explore(scenario, None);
    println!(
        "{}: {} states, {} steps, {} quiet",
        scenario.name, explored.states, explored.steps, explored.quiet
    );
    if let Some((violation, way)) = explored.violation {
        panic!("{}: {violation}\n  {}", scenario.name, way.join("\n  "));
    }
}

#[test]
fn an_observer_sees_the_old_or_the_new_whatever_is_lost_or_late() {
    holds(&scenarios::observed());
}

#[test]
fn an_observer_sees_the_old_or_the_new_whoever_dies() {
    holds(&scenarios::deadly());
}

#[test]
fn a_mover_that_is_given_up_decides_no_more() {
    holds(&scenarios::given_up());
}

#[test]
fn two_renames_of_one_directory_make_one() {
    holds(&scenarios::rivals());
}

#[test]
fn two_renames_to_one_name_make_one() {
    holds(&scenarios::rivals_for_the_name());
}

#[test]
fn what_is_unlinked_in_the_new_directory_stays_so() {
    holds(&scenarios::unlinked());
}

#[test]
fn what_is_written_in_the_new_directory_stays_so() {
    holds(&scenarios::overwritten());
}

#[test]
fn what_is_made_at_the_old_name_afterwards_stays_so() {
    holds(&scenarios::made_again());
}

#[test]
fn what_a_blind_writer_writes_at_the_old_name_is_kept() {
    holds(&scenarios::written_blindly());
}

#[test]
fn records_collected_later_bring_nothing_back() {
    holds(&scenarios::collected());
}

#[test]
fn every_mutant_is_killed() {
    let mut alive = Vec::new();
    for (mutant, scenario) in scenarios::mutants() {
        match explore(&scenario, Some(mutant)).violation {
            Some((violation, way)) => println!(
                "{mutant:?} is killed in `{}`: {violation}\n  {}",
                scenario.name,
                way.join("\n  ")
            ),
            None => alive.push(mutant),
        }
    }
    assert!(alive.is_empty(), "wrong, and nobody sees it: {alive:?}");
}
