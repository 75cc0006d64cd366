//! Every interleaving of the commit protocol, within the bounds that `scenarios` states, and
//! mutants of it that must all be caught.
//!
//! Bounds: two or three mounts, one or two transactions each, of one to three files; observers
//! anywhere; at most two requests lost, late or twice, one mount dead at any step, one process
//! killed at any step. Stalls have no bound: whoever is about to send may sleep through everything
//! that others do. Within that the search is exhaustive. Each test prints its state space
//! (`--nocapture`); a violation is printed as the shortest way to it.

#[path = "protocol_model/actor.rs"]
mod actor;
#[path = "protocol_model/mutants.rs"]
mod mutants;
#[path = "protocol_model/observer.rs"]
mod observer;
#[path = "protocol_model/oracle.rs"]
mod oracle;
#[path = "protocol_model/scenarios.rs"]
mod scenarios;
#[path = "protocol_model/search.rs"]
mod search;
#[path = "protocol_model/store.rs"]
mod store;
#[path = "protocol_model/world.rs"]
mod world;

use scenarios::Scenario;
use search::explore;

fn holds(scenario: &Scenario) {
    let explored = explore(scenario, None);
    println!(
        "{}: {} states, {} steps, depth {}, {} quiet; {} instants, {} looks of observers",
        scenario.name,
        explored.states,
        explored.steps,
        explored.depth,
        explored.quiet,
        explored.instants,
        explored.looks,
    );
    if let Some((violation, way)) = explored.violation {
        panic!("{}: {violation}\n  {}", scenario.name, way.join("\n  "));
    }
}

#[test]
fn an_observer_sees_none_or_all_whatever_dies() {
    holds(&scenarios::everybody(0, 1));
}

#[test]
fn an_observer_sees_none_or_all_whatever_is_lost_late_or_twice() {
    holds(&scenarios::everybody(1, 0));
}

#[test]
fn ranks_that_take_each_other_over_are_never_half() {
    holds(&scenarios::two_writers());
}

#[test]
fn one_commit_survives_two_faults_and_a_crash() {
    holds(&scenarios::one_writer());
}

#[test]
fn a_late_publisher_never_undoes_a_later_commit() {
    holds(&scenarios::later_commit());
}

#[test]
fn a_late_publisher_never_brings_an_unlinked_file_back() {
    holds(&scenarios::later_unlink());
}

#[test]
fn an_unlink_beside_a_commit_is_before_or_after_it() {
    holds(&scenarios::unlink());
}

#[test]
fn an_unlink_does_not_miss_what_was_committed_before() {
    holds(&scenarios::unlink_of_new());
}

#[test]
fn a_killed_process_publishes_nothing_and_the_retry_is_clean() {
    holds(&scenarios::retry());
}

#[test]
fn a_killed_rank_leaves_no_half_directory() {
    holds(&scenarios::poison());
}

#[test]
fn an_explicit_commit_of_what_is_torn_or_a_retry_but_not_both() {
    holds(&scenarios::accept());
}

#[test]
fn a_sign_elsewhere_never_commits_without_a_dead_rank() {
    holds(&scenarios::sign_elsewhere());
}

#[test]
fn what_begins_after_the_sign_is_none_of_that_commit() {
    holds(&scenarios::next_round());
}

#[test]
fn a_removal_touches_only_what_it_names() {
    holds(&scenarios::removal());
}

#[test]
fn a_mount_that_comes_back_does_not_mix_its_lives() {
    holds(&scenarios::restart());
}

#[test]
fn a_file_closed_after_a_late_freeze_is_not_lost() {
    holds(&scenarios::reopened());
}

#[test]
fn a_list_that_is_not_one_instant_hides_no_sibling() {
    holds(&scenarios::paged());
}

#[test]
fn collecting_records_brings_nothing_back() {
    holds(&scenarios::collection(1));
}

#[test]
fn a_collector_that_dies_midway_brings_nothing_back() {
    holds(&scenarios::collection(0));
}

#[test]
fn what_was_given_up_stays_so_when_it_is_collected() {
    holds(&scenarios::collection_of_void());
}

/// Every mutant is caught, by the first of its scenarios that can.
#[test]
fn every_mutant_is_killed() {
    let mut alive = Vec::new();
    for (mutant, scenario) in mutants::all() {
        let explored = explore(&scenario, Some(mutant));
        match explored.violation {
            Some((violation, way)) => println!(
                "{mutant:?} is killed in `{}` after {} states: {violation}\n  {}",
                scenario.name,
                explored.states,
                way.join("\n  "),
            ),
            None => alive.push((mutant, explored.states)),
        }
    }
    assert!(alive.is_empty(), "wrong, and nobody sees it: {alive:?}");
}
