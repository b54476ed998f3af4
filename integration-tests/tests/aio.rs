//! Asynchronous actors: tasks of their own, and how they end. Each scenario of `fixtures/aio.py` in a node of its own.

use harness::{scenario_project, scenarios};
use serde_json::json;

scenarios! {
    in "fixtures/aio.py";
    tasks_that_init_has_started_wait_for_answers_and_mail_is_taken_all_the_same,
    a_stop_lets_handlers_finish_cancels_those_that_do_not_and_then_runs_terminate,
    what_is_left_on_the_loop_is_cancelled_after_terminate_as_asyncio_run_does,
    the_failure_of_a_background_task_is_the_actors,
    an_awaited_task_that_is_cancelled_is_stopped,
    fails_tasks,
    what_waits_has_a_form_that_is_awaited_and_leaves_the_loop_alone,
    a_full_mailbox_holds_back_the_task_that_sends_and_not_its_loop,
    waits_that_are_cancelled_leave_nothing_behind,
    tasks_receive_what_fits_them_before_handlers_do,
    blocks_its_loop,
    an_actor_per_key_that_stops_when_idle_loses_no_call,
    a_call_that_was_not_begun_says_so,
    a_handle_that_starts_its_actor_again_gives_up_at_last,
}

#[test]
fn each_blocking_form_is_warned_of_once_on_an_event_loop_and_names_the_awaitable_one() {
    let project = scenario_project("fixtures/aio.py");
    let node = project.up();
    assert_eq!(node.call("tester", "run", &["\"blocks_its_loop\""]), json!("ok"));
    assert_eq!(node.run(&["down"]).code, Some(0));
    let (_, output) = node.wait();
    for (form, better) in
        [("start", "`astart`"), ("call", "`acall`"), ("result", "`await` the pending call"), ("stop", "`astop`")]
    {
        let warning = format!("RuntimeWarning: `{form}` blocks this event loop");
        let lines: Vec<&str> = output.lines().filter(|line| line.contains(&warning)).collect();
        assert!(lines.len() == 1 && lines[0].contains(better) && lines[0].contains("app.py:"), "{form}: {output}");
    }
}

#[test]
fn a_task_that_fails_is_reported_whether_or_not_somebody_holds_it_and_not_if_somebody_has_looked() {
    let project = scenario_project("fixtures/aio.py");
    let mut node = project.up();
    assert_eq!(node.call("tester", "run", &["\"fails_tasks\""]), json!("ok"));
    let mut output = String::new();
    for _ in 0..2 {
        output += &node.wait_for("has failed, and nobody has looked at it");
    }
    node.down();
    for (how, is_told) in [("kept", true), ("dropped", true), ("awaited", false), ("gathered", false)] {
        let text = format!("the broker is gone ({how})");
        // The second of the two may be followed by its traceback.
        assert!(is_told || !output.contains(&text), "{output}");
    }
}
