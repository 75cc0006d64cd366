//! The table of the presets as trainers meet it, a user's rules, and hostile commit records.

use proptest::prelude::*;

use super::parse::RULES_BYTES_MAX;
use super::pointers::{CommitRecord, NotUnderstood, POINTER_BYTES_MAX};
use super::*;

const IDLE: Duration = COMMIT_IDLE_DEFAULT;
const MAX: Duration = COMMIT_MAX_DEFAULT;

fn table() -> Table {
    Table::new(vec![rule_from_flag("orbax", IDLE).unwrap()], IDLE)
}

fn rule(name: &str) -> Rule {
    table().rules().iter().find(|rule| rule.name == name).unwrap().clone()
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// One file, closed at one second.
fn quiet_since_1s() -> Activity {
    Activity { files: 1, open_handles: 0, changed: ms(1000), heard: None, torn: Torn::No }
}

#[test]
fn every_trainers_directory_is_known() {
    let table = table();
    let owner = |path: &[&str]| table.owner(path).map(|o| (o.depth, o.rule.name.clone()));
    let is = |depth, name: &str| Some((depth, name.to_owned()));
    assert_eq!(owner(&["exp", "trial_lr=0.1", "checkpoint_000001"]), is(3, "ray"));
    let train = "checkpoint_2024-01-02_03-04-05.123456";
    assert_eq!(owner(&["exp", train, "rank0"]), is(2, "ray-train"));
    assert_eq!(owner(&["out", "checkpoint-500"]), is(2, "hf"));
    assert_eq!(owner(&["out", "tmp-checkpoint-500"]), is(2, "hf"));
    assert_eq!(owner(&["12.orbax-checkpoint-tmp-1700"]), is(1, "orbax"));
    for not in ["checkpoint_", "checkpoint_1a", "checkpoints", "checkpoint-", "checkpoint_x-1"] {
        assert_eq!(owner(&["exp", not]), None, "{not}");
    }
    assert_eq!(owner(&[]), None, "the root is never a checkpoint");
}

#[test]
fn torch_dcp_is_known_by_what_is_created_in_it() {
    let table = table();
    let owner = |path: &[&str], file| table.owner_of_new(path, file).map(|o| o.rule.name.clone());
    assert_eq!(owner(&["run", "step_5"], "__0_0.distcp"), Some("dcp".into()));
    assert_eq!(owner(&["run", "step_5"], ".metadata.tmp"), Some("dcp".into()));
    assert_eq!(owner(&["run", "step_5"], "model.pt"), None);
    assert_eq!(owner(&[], "__0_0.distcp"), None, "the root is never a checkpoint");
    assert_eq!(owner(&["checkpoint_1"], "__0_0.distcp"), Some("ray".into()), "the outermost");
}

#[test]
fn the_outermost_match_owns_and_the_users_rule_is_first() {
    let own = rule_from_flag("mine:checkpoint_<n>,idle=1s", IDLE).unwrap();
    let table = Table::new(vec![own], IDLE);
    let owner = table.owner(&["checkpoint_1", "checkpoint-2"]).unwrap();
    assert_eq!((owner.depth, owner.rule.name.as_str()), (1, "mine"));
}

#[test]
fn ray_seals_when_all_is_closed_and_quiet_and_never_empty_or_torn() {
    let rule = rule("ray");
    let due = |activity: Activity, now| rule.due(&activity, MAX, ms(now));
    let quiet = quiet_since_1s();
    assert_eq!(due(quiet, 1100), Due::Later(ms(1250)));
    assert_eq!(due(quiet, 1250), Due::Seal(Sign::Idle));
    assert_eq!(due(Activity { open_handles: 1, ..quiet }, 9000), Due::Nothing);
    assert_eq!(due(Activity { files: 0, ..quiet }, 9_000_000), Due::Nothing);
    assert_eq!(due(Activity { torn: Torn::Yes, ..quiet }, 9_000_000), Due::Nothing);
    assert!(rule.is_sign(&Event::DirectoryFsync));
}

#[test]
fn exact_signs_fire_at_once_and_nothing_else_does() {
    let quiet = quiet_since_1s();
    let heard = Activity { heard: Some(Heard { sign: Sign::Sign }), ..quiet };
    for name in ["ray-train", "dcp", "orbax"] {
        let rule = rule(name);
        assert_eq!(rule.due(&quiet, MAX, ms(1100)), Due::Later(ms(1250)), "{name}");
        assert_eq!(rule.due(&quiet, MAX, ms(900_000_000)), Due::Freeze, "{name}");
        assert_eq!(rule.due(&heard, MAX, ms(1000)), Due::Seal(Sign::Sign), "{name}");
        assert_eq!(rule.due_at_unmount(&quiet), Due::Freeze, "{name}");
        assert!(!rule.is_sign(&Event::DirectoryFsync), "{name}");
        assert!(rule.is_sign(&Event::Explicit), "{name}");
    }
    assert!(rule("ray-train").is_sign(&Event::Named));
    assert!(rule("dcp").is_sign(&Event::Renamed { to: ".metadata" }));
    assert!(!rule("dcp").is_sign(&Event::Closed(".metadata")));
    assert!(rule("orbax").is_sign(&Event::DirectoryRenamed));
    assert!(!rule("orbax").is_sign(&Event::Closed("commit_success.txt")), "the rename follows");
    assert!(!rule("ray").is_sign(&Event::Named));
}

#[test]
fn orbax_is_gone_by_only_where_it_is_asked_for() {
    let directory = ["5.orbax-checkpoint-tmp"];
    assert!(Table::new(Vec::new(), IDLE).owner(&directory).is_none());
    assert!(table().owner(&directory).is_some());
}

#[test]
fn hf_waits_two_seconds_after_its_state_for_the_other_ranks() {
    let (rule, exact) = (rule("hf"), rule("dcp"));
    assert!(rule.is_sign(&Event::Closed("trainer_state.json")));
    let heard = Activity { heard: Some(Heard { sign: Sign::Sign }), ..quiet_since_1s() };
    assert_eq!(rule.due(&heard, MAX, ms(2999)), Due::Later(ms(3000)));
    assert_eq!(rule.due(&heard, MAX, ms(3000)), Due::Seal(Sign::Sign));
    let quiet = quiet_since_1s();
    assert_eq!(rule.due(&quiet, MAX, ms(2999)), Due::Later(ms(3000)));
    assert_eq!(rule.due(&quiet, MAX, ms(3000)), Due::FreezeBesideOthers(ms(601_000)));
    assert!(!rule.outlasts_its_sign(ms(1000), MAX, ms(600_999)));
    assert!(rule.outlasts_its_sign(ms(1000), MAX, ms(601_000)));
    assert!(!exact.outlasts_its_sign(ms(1000), MAX, ms(900_000_000)));
    assert_eq!(rule.due(&quiet_since_1s(), MAX, ms(601_000)), Due::Seal(Sign::Idle));
    assert_eq!(rule.due_at_unmount(&quiet_since_1s()), Due::Seal(Sign::Idle));
}

#[test]
fn an_explicit_commit_waits_for_nothing_but_open_handles() {
    let heard = Some(Heard { sign: Sign::Explicit });
    let asked = Activity { heard, files: 0, torn: Torn::Yes, ..quiet_since_1s() };
    assert_eq!(rule("dcp").due(&asked, MAX, ms(1000)), Due::Seal(Sign::Explicit));
    let open = Activity { open_handles: 1, ..asked };
    assert_eq!(rule("dcp").due(&open, MAX, ms(1000)), Due::Nothing);
}

#[test]
fn a_directory_written_under_another_name_goes_up_under_its_final_one() {
    assert_eq!(rule("orbax").final_name("5.orbax-checkpoint-tmp-17"), Some("5"));
    assert_eq!(rule("hf").final_name("tmp-checkpoint-5"), Some("checkpoint-5"));
    assert_eq!(rule("hf").final_name("checkpoint-5"), None);
    assert_eq!(rule("ray").final_name("checkpoint_5"), None);
    assert_eq!(rule("orbax").final_name(".orbax-checkpoint-tmp"), None);
}

#[test]
fn a_users_rules_are_read_from_flag_and_file() {
    let rule = rule_from_flag("steps:step_<n>,idle=2s,sign=DONE,without-sign=hide", IDLE).unwrap();
    assert_eq!((rule.idle, rule.without_sign), (ms(2000), WithoutSign::StayHidden));
    assert!(rule.is_sign(&Event::Closed("DONE")) && rule.is_sign(&Event::Renamed { to: "DONE" }));
    let file = "# ours\nsteps:step_<n>\n\n  best:best*,loss=poison # both ranks\n";
    let rules = rules_from_file(file, IDLE).unwrap();
    let names: Vec<_> = rules.iter().map(|rule| rule.name.as_str()).collect();
    assert_eq!(names, ["steps", "best"]);
    assert_eq!(rules[1].loss, Loss::Poison);
}

#[test]
fn a_wrong_rule_says_what_was_expected() {
    let error = |text: &str| rule_from_flag(text, IDLE).unwrap_err();
    assert!(matches!(error("step_<n>"), RuleError::Form(_)));
    assert!(matches!(error(":step"), RuleError::Form(_)));
    assert!(matches!(error("a:b/c"), RuleError::Pattern(_)));
    assert!(matches!(error("a:b,speed=9"), RuleError::Key(_)));
    assert!(matches!(error("a:b,idle=9"), RuleError::Duration(_)));
    assert!(matches!(error("a:b,idle=99999999999999999h"), RuleError::Duration(_)));
    let file = rules_from_file("a:b\nwrong\n", IDLE).unwrap_err();
    assert!(file.to_string().starts_with("line 2: `wrong`"), "{file}");
    let long = "a:b\n".repeat(RULES_MAX + 1);
    assert_eq!(rules_from_file(&long, IDLE), Err(RuleError::TooMany));
    assert!(rules_from_file(&"#".repeat(RULES_BYTES_MAX + 1), IDLE).is_err());
}

fn pointers(file: &str, bytes: &[u8]) -> Result<Vec<String>, NotUnderstood> {
    let found = CommitRecord::of(file).unwrap().pointers(bytes)?;
    Ok(found.iter().map(|path| path.as_str().to_owned()).collect())
}

#[test]
fn a_train_snapshot_names_the_directories_beside_it() {
    let snapshot = br#"{"ray_version": "2.60", "checkpoint_results": [
        {"checkpoint_dir_name": "checkpoint_2024-01-02_03-04-05.1", "metrics": {"loss": 1}},
        {"checkpoint_dir_name": "../../etc"}, {"checkpoint_dir_name": "a/b"}]}"#;
    let found = pointers("checkpoint_manager_snapshot.json", snapshot).unwrap();
    assert_eq!(found, ["checkpoint_2024-01-02_03-04-05.1"]);
    assert!(pointers("checkpoint_manager_snapshot.json", b"{}").is_err());
}

#[test]
fn tunes_state_names_checkpoints_in_plain_and_in_pickles() {
    let path = "\u{8c}X/mnt/exp/trial_lr=0.1,b=[3]/checkpoint_000007\u{94}";
    let hex: String = path.bytes().map(|byte| format!("{byte:02x}")).collect();
    let state = format!(
        r#"{{"trial_data": [["{{\"value\": \"{hex}\"}}", "/x/exp/t2/checkpoint_000001"],
        "checkpoint_9 /checkpoint_", "exp/checkpoint_3"]}}"#
    );
    let found = pointers("experiment_state-2024-01-02_03-04-05.json", state.as_bytes()).unwrap();
    assert_eq!(found, ["t2/checkpoint_000001", "trial_lr=0.1,b=[3]/checkpoint_000007"]);
}

#[test]
fn other_files_are_no_commit_records_and_huge_ones_are_not_read() {
    for other in ["experiment_state.json", "result.json", "checkpoint_manager_snapshot.json.tmp"] {
        assert_eq!(CommitRecord::of(other), None);
    }
    let huge = vec![b'1'; POINTER_BYTES_MAX + 1];
    assert!(pointers("experiment_state-1.json", &huge).is_err());
}

proptest! {
    #[test]
    fn commit_records_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = CommitRecord::TrainSnapshot.pointers(&bytes);
        let _ = CommitRecord::TuneState.pointers(&bytes);
    }

    #[test]
    fn pieces_of_paths_never_lead_elsewhere(
        text in "([/.a]|checkpoint_1|2f636865636b706f696e745f31){0,12}",
    ) {
        for path in CommitRecord::TuneState.pointers(text.as_bytes()).unwrap() {
            let parts: Vec<&str> = path.as_str().split('/').collect();
            prop_assert!(parts.len() == 2 && parts[0] != "..", "{path:?}");
        }
    }

    #[test]
    fn rules_never_panic(text in "\\PC{0,80}", name in "\\PC{0,40}") {
        if let Ok(rule) = rule_from_flag(&text, IDLE) {
            Table::new(vec![rule], IDLE).owner(&[&name]);
        }
    }
}
