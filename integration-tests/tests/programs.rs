//! Foreign programs: each scenario of `fixtures/programs.py` in a node of its own; and that nothing is left of them.

use harness::scenarios;

scenarios! {
    in "fixtures/programs.py";
    requests_are_answered,
    the_program_asks_too,
    lines_go_in_and_out,
    bytes_go_in_and_out_as_fast_as_they_are_taken,
    how_a_program_ends_is_said,
    what_cannot_be_started_is_said,
    a_program_is_up_when_it_is_ready,
    a_program_is_asked_to_stop_and_then_killed,
    an_unused_program_rests_until_it_is_needed,
    nothing_of_a_program_is_left,
    a_program_has_no_terminal,
    a_program_has_a_limit_of_memory_with_all_that_it_starts,
    programs_take_their_options,
}
