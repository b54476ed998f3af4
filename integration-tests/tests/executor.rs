//! `rebeam.Executor`. Each scenario of `fixtures/executor.py` in a node of its own.

use std::process::Command;

use harness::{Project, fixture, scenarios};

scenarios! {
    in "fixtures/executor.py";
    what_fails_fails_alone_and_what_cannot_be_sent_says_so,
    whatever_a_function_raises_its_worker_goes_on,
    what_a_killed_worker_had_not_begun_is_run_by_another,
    a_shutdown_does_not_wait_for_what_was_cancelled,
    an_executor_that_nobody_holds_does_what_it_has_and_goes,
    nobody_waits_for_a_worker_to_start,
    initializers_run_once_in_each_worker_and_break_the_pool_if_they_fail,
    workers_are_replaced_after_so_many_functions,
    map_reads_what_has_no_end_as_its_results_are_taken,
    many_failures_at_once_and_callbacks_that_submit_and_shut_down,
    whoever_waits_for_several_is_told_what_was_cancelled,
    idle_workers_that_were_all_killed_cost_nobody_a_try,
    an_error_that_cannot_be_described_is_an_answer,
    what_makes_no_sense_is_refused,
    an_exit_that_comes_in_a_finalizer_is_raised_behind_it,
    deaths_and_what_cannot_be_sent_are_errors_that_users_of_other_pools_catch,
    results_of_map_are_kept_by_nobody_but_who_has_got_them,
}

/// `test_concurrent_futures` of the interpreter's `test` package, from 3.12 on a package. Its differences stand in the
/// fixture.
#[test]
fn cpythons_own_tests_pass_but_for_the_differences_that_are_listed() {
    let python = harness::python();
    let is_there = ["-c", "import test.test_concurrent_futures.util"];
    if !Command::new(&python).args(is_there).output().expect("it runs").status.success() {
        return crate::not_tested("CPython's package `test.test_concurrent_futures`");
    }
    let project = Project::new(
        "import rebeam\n\
         tree = rebeam.Supervisor([rebeam.script('cpython.py', restart='temporary', significant=True)],\n    \
         auto_shutdown='any_significant')\n",
    );
    project.write("cpython.py", &fixture("fixtures/cpython_futures.py"));
    let output = project.command(&["up", "app.py"]).output().expect("it runs");
    let output = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.contains(" differences, 0 not as listed"), "{output}");
}

#[test]
fn a_script_sends_what_others_find_in_it_and_is_told_of_what_they_do_not() {
    let project = Project::new(
        "import rebeam\n\
         tree = rebeam.Supervisor([rebeam.script('job.py', restart='temporary', significant=True)],\n    \
         auto_shutdown='any_significant')\n",
    );
    let job = r#"
import rebeam

def double(n):
    return 2 * n

class Settings:
    def __init__(self, n):
        self.n = n

def number_of(settings):
    return settings.n

def main():
    def inner():
        return 1

    with rebeam.Executor(1) as pool:
        print("double", pool.submit(double, 4).result())
        print("instance", pool.submit(number_of, Settings(5)).result())
        for function in (inner, lambda: 1):
            print(pool.submit(function).exception())

if __name__ == "__main__":
    main()
"#;
    project.write("job.py", job);
    let (status, output) = project.start(&["up", "app.py"]).wait();
    assert_eq!(status.code(), Some(0), "{output}");
    for expected in
        ["double 8", "instance 5", "`main.<locals>.inner` cannot be sent", "`main.<locals>.<lambda>` cannot be"]
    {
        assert!(output.contains(expected), "{expected}: {output}");
    }
}
