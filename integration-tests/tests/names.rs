//! Names, registries, groups: each scenario of `fixtures/names.py` in a node of its own, and what the command line shows.

use harness::{scenario_project, scenarios};
use serde_json::json;

scenarios! {
    in "fixtures/names.py";
    nam_001_of_twenty_starts_at_once_one_wins_and_the_others_know_who,
    nam_002_a_name_is_free_right_after_down_however_its_holder_ended,
    nam_003_a_failed_or_ignored_start_leaves_no_name_behind,
    nam_004_every_kind_of_name_does_the_same,
    nam_005_unique_keys_have_one_holder_each,
    nam_006_duplicate_keys_have_many,
    nam_007_a_dead_holder_blocks_no_key,
    nam_007_what_is_asked_for_at_a_kill_is_had_a_moment_later,
    nam_008_dispatch_runs_here_and_values_are_their_holders,
    nam_009_a_send_to_a_free_name_fails_and_one_to_the_dead_does_not,
    names_are_given_and_taken_at_run_time,
    a_name_of_the_tree_follows_its_actor_through_restarts,
    waiting_for_a_name_waits_for_init,
    waiting_goes_on_over_a_recycling,
    a_start_that_is_under_way_elsewhere_is_waited_for,
    mail_by_what_is_given_is_for_its_holders_present_life,
    what_was_started_is_visible_to_all_at_once,
    the_view_is_a_mapping_that_was_there_before_the_first_line,
    an_iterator_made_before_a_change_raises,
    what_a_view_holds_is_had_at_one_moment,
    views_stay_right_while_the_ledger_is_written_anew,
    a_fresh_interpreter_sees_the_same,
    who_is_no_actor_sees_nothing_and_says_so,
    registries_end_with_their_entries,
    who_has_a_key_of_the_tree_has_it_again_when_the_registry_is_back,
    what_names_no_actor_is_refused_and_says_why,
    a_process_that_a_handler_forked_ends_as_any_other,
    changes_under_a_key_are_told,
    an_actor_of_the_tree_has_a_key,
    pgr_001_groups_exist_while_they_have_members,
    nobody_waits_for_the_slowest_of_a_group,
    pgr_002_a_dead_member_is_gone_from_all_its_groups,
    pgr_004_a_watcher_gets_the_members_and_then_each_change,
}

#[test]
fn names_registries_and_groups_on_the_command_line() {
    let project = scenario_project("fixtures/names.py");
    let node = project.up();
    node.call("tester", "prepare", &[]);
    let names = node.run(&["names"]);
    assert!(names.stdout.starts_with("NAME"), "{}", names.stdout);
    for name in ["log", "tester", "nick", "rooms", "dyn"] {
        assert!(names.stdout.lines().any(|line| line.starts_with(&format!("{name} "))), "{name}: {}", names.stdout);
    }
    let all = node.run(&["names", "--json"]).json();
    let of = |key: &str| all.as_array().and_then(|all| all.iter().find(|entry| entry["key"] == key)).cloned();
    let (nick, tester) = (of("nick").expect("it is there"), of("tester").expect("it is there"));
    assert_eq!((&nick["holder"], &nick["pid"]), (&json!("tester"), &tester["pid"]));
    assert_eq!(tester["class"], json!("app.Tester"));
    let keys = node.run(&["names", "rooms"]);
    assert!(keys.stdout.contains("KEY") && keys.stdout.contains("(1, \"a\")"), "{}", keys.stdout);
    let absent = node.run(&["names", "absent"]);
    assert_eq!(absent.code, Some(1));
    assert!(absent.stderr.contains("no registry `absent`") && absent.stderr.contains("hint"), "{}", absent.stderr);
    let groups = node.run(&["groups"]);
    assert!(
        groups.stdout.lines().any(|line| line.starts_with("g ") && line.ends_with("tester tester")),
        "{}",
        groups.stdout
    );
    assert_eq!(node.run(&["groups", "--json"]).json()["g"].as_array().map(Vec::len), Some(2));
    // A name that was given at run time is as good as any.
    assert_eq!(node.call("nick", "whoami", &[]), json!("tester"));
    // What a shell is told when it asks what may come after `rebeam why t`.
    let mut command = project.command(&["--", "rebeam", "why", "t"]);
    command.env("COMPLETE", "bash").env("_CLAP_COMPLETE_INDEX", "2").env("_CLAP_IFS", "\n");
    let output = command.output().expect("it runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.lines().any(|line| line == "tester") && text.lines().any(|line| line == "tags"), "{text}{output:?}");
    assert!(!text.contains("nick"), "{text}");
    node.down();
}
