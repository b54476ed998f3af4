//! Tables: each scenario of `fixtures/tables.py` in a node of its own.

use harness::scenarios;

scenarios! {
    in "fixtures/tables.py";
    ets_001_a_table_goes_with_its_owner_before_anybody_hears_of_its_end,
    ets_001_a_name_has_one_table,
    ets_002_who_may_read_and_write_is_the_owner_s_choice,
    an_owner_may_be_another_actor_or_a_supervisor,
    ets_006_a_table_passes_to_its_heir_or_is_given_away,
    a_table_of_the_tree_outlives_the_actors_that_use_it,
    ets_003_how_many_values_a_key_has,
    ets_004_map_15_which_keys_are_the_same,
    what_is_no_key_or_no_value_is_named,
    values_are_copies_of_whatever_can_be_pickled,
    ets_005_every_change_is_done_whole_and_alone,
    changes_that_look_first,
    a_table_is_a_dictionary,
    ordered_keys_are_found_by_what_they_lie_between,
    ets_007_a_walk_shows_what_was_there_throughout_once,
    a_snapshot_shows_one_moment,
    a_store_that_is_killed_is_replaced_and_nothing_is_lost,
    what_was_acknowledged_is_there_after_a_kill,
    a_process_that_an_actor_forked_has_no_tables,
    a_reader_that_is_killed_again_and_again_harms_nobody,
    a_snapshot_that_is_open_for_too_long_ends,
    nothing_of_a_table_is_in_a_directory,
}
