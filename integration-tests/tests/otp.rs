//! The rows of the OTP conformance table that need real processes: each scenario of `fixtures/otp.py` in a node of its
//! own.

use harness::{Project, root};

/// Runs one scenario inside the actor `tester`, which asserts for itself.
fn run(scenario: &str) {
    let source = std::fs::read_to_string(root().join("integration-tests/fixtures/otp.py")).expect("it is there");
    let project = Project::new(&source);
    let node = project.up();
    let ran = node.run(&["call", "--timeout", "60", "tester", "run", scenario]);
    assert_eq!((ran.code, ran.stdout.trim()), (Some(0), "ok"), "{}", ran.stderr);
    node.down();
}

macro_rules! scenarios {
    ($($name:ident,)*) => {
        $(
            #[test]
            fn $name() {
                run(stringify!($name));
            }
        )*

        /// A scenario that nobody runs would show nothing.
        #[test]
        fn every_scenario_is_run() {
            let source = std::fs::read_to_string(root().join("integration-tests/fixtures/otp.py")).expect("it is there");
            let defined = source.lines().filter_map(|line| line.strip_prefix("def ")?.strip_suffix("(t):"));
            let listed = [$(stringify!($name)),*];
            let missing: Vec<&str> = defined.filter(|name| !listed.contains(name)).collect();
            assert!(missing.is_empty(), "not run: {missing:?}");
        }
    };
}

scenarios! {
    sup_001_defaults_can_be_read_back,
    sup_002_sup_005_sup_060_start_child_checks_as_the_tree_does,
    sup_006_a_class_carries_settings_and_a_caller_overrides_them,
    sup_013_a_child_that_ignores_is_passed_over,
    sup_015_gen_001_a_failed_start_leaves_nothing_behind,
    sup_016_init_hands_something_to_whoever_starts_it,
    sup_024_map_01_a_restart_is_a_fresh_start,
    sup_035_sup_036_dynamic_children_are_known_by_pid_and_keep_their_arguments,
    sup_036_arguments_of_temporary_children_are_not_kept,
    sup_037_a_partition_keeps_its_slot,
    sup_057_a_dynamic_supervisor_stops_all_at_once,
    sup_058_a_supervisor_is_stopped_with_a_reason,
    sup_070_sup_071_start_child_appends_and_refuses_a_taken_id,
    sup_070_an_added_child_takes_its_place_in_the_group,
    sup_072_sup_073_sup_074_a_child_is_stopped_started_and_forgotten,
    sup_073_a_restart_that_fails_leaves_it_stopped,
    sup_075_a_start_that_fails_keeps_no_spec,
    sup_043_sup_076_sup_077_children_are_listed_and_counted_while_one_fails_its_restarts,
    sup_078_a_dynamic_supervisor_holds_by_pid_and_up_to_its_limit,
    sup_079_requests_wait_their_turn_and_a_dead_supervisor_says_so,
    sup_079_a_request_that_waits_for_the_asker_is_refused,
    sup_061_sup_064_a_significant_child_takes_its_supervisor_along,
    sup_086_sup_087_a_restarted_supervisor_begins_anew,
    sup_087_a_temporary_child_of_the_list_comes_back_with_its_supervisor,
    sup_088_a_killed_supervisor_takes_its_subtree_along_and_comes_back,
    a_thousand_dynamic_children,
    sup_010_sup_011_a_supervisor_is_up_when_its_last_child_is,
    sup_023_temporary_children_do_not_count,
    sup_033_siblings_end_by_their_own_setting,
    sup_034_a_quiet_end_leaves_the_group_alone,
    sup_040_sup_042_sup_044_sup_045_every_try_counts_for_all_and_then_it_gives_up,
    sup_041_map_12_the_window_slides,
    sup_054_infinity_waits,
    sup_055_sup_056_who_dies_by_itself_during_the_stop_is_passed_over,
    sup_062_sup_063_only_ends_of_their_own_count_and_the_last_takes_it_along,
    gen_003_each_lands_in_its_own_handler,
    gen_004_answers_come_later_and_from_others,
    gen_005_gen_006_a_timeout_is_the_callers_and_a_late_answer_is_dropped,
    gen_007_calls_fail_at_once,
    gen_008_a_cast_to_nobody_is_ok,
    gen_009_gen_013_an_exception_runs_terminate_and_fails_the_caller,
    gen_010_a_return_value_that_none_may_give_ends_it,
    gen_011_what_is_not_handled,
    gen_012_a_callback_may_stop_with_an_answer_or_without,
    gen_012_a_raised_stop_has_an_answer_too,
    gen_007_nobody_waits_for_oneself,
    gen_013_map_05_when_terminate_runs_and_when_not,
    gen_014_stop_waits_for_the_end,
    gen_015_continue_comes_before_any_message,
    gen_016_idle_time,
    gen_017_map_14_hibernate_changes_nothing,
    gen_018_a_stop_takes_its_turn,
    upg_001_upg_002_state_is_read_and_replaced_between_messages,
    lnk_001_an_end_goes_along_the_chain,
    lnk_001_map_04_a_busy_one_unwinds_and_one_in_c_code_is_killed,
    lnk_002_a_normal_end_takes_nobody_along,
    lnk_003_who_traps_gets_messages,
    lnk_004_a_kill_cannot_be_trapped,
    lnk_005_links_are_single_and_can_be_taken_back,
    lnk_006_a_link_to_the_dead,
    lnk_007_the_parent_orders_and_a_stranger_only_says,
    mon_001_map_02_one_down_with_the_true_reason_for_every_end,
    mon_002_a_monitor_of_the_dead,
    mon_003_monitors_are_independent,
    mon_004_demonitor_flushes_on_demand,
    mon_005_with_the_down_the_name_is_free,
    tmr_001_a_timer_is_a_message_in_turn,
    tmr_002_cancel_says_what_was_left,
    tmr_003_a_timer_goes_with_the_incarnation,
    tmr_004_a_timer_outlives_its_maker,
    tmr_001_send_every_repeats_until_cancelled,
    msg_001_order_is_kept_between_two,
    msg_002_map_03_what_was_sent_comes_before_the_end,
    msg_004_an_answer_is_picked_out_of_turn,
    msg_005_selective_receive_leaves_the_others,
    msg_006_the_address_decides,
}
