//! Recycling, and what is ordered or sent meanwhile. Each scenario of `fixtures/recycling.py` in a node of its own.

use harness::{Project, scenarios};
use serde_json::json;

scenarios! {
    in "fixtures/recycling.py";
    casts_are_done_once,
    a_stop_lets_the_state_pass_and_terminate_runs,
    a_kill_does_not_wait_for_the_checkpoint,
    an_exit_signal_ends_it_with_its_own_reason,
    what_the_process_is_asked_is_answered_by_the_next_one,
    a_second_reason_to_recycle_is_the_same_recycling,
    a_group_restart_begins_with_its_arguments,
    a_function_goes_on_in_a_new_process,
    a_full_partition_holds_its_senders_up,
}

#[test]
fn what_was_spawned_is_restarted_by_name_with_its_arguments() {
    let project = Project::new(
        r#"
import rebeam
from rebeam import Actor, Supervisor, child

class Spawned(Actor):
    def init(self, number):
        self.number = number
    def get(self):
        return self.number

class Spawner(Actor):
    def init(self):
        rebeam.spawn(Spawned, 5, name="spawned")

tree = Supervisor([child(Spawner, name="spawner")])
"#,
    );
    let node = project.up();
    let before = node.ps("spawned")["os_pid"].clone();
    assert_eq!(node.run(&["restart", "spawned"]).code, Some(0));
    assert_ne!(node.ps("spawned")["os_pid"], before);
    assert_eq!(node.call("spawned", "get", &[]), json!(5));
    node.down();
}

#[test]
fn a_message_of_any_size_around_the_limit_is_handled_or_refused() {
    let project = Project::new(
        r#"
import rebeam
from rebeam import Actor, Supervisor, child

class Sink(Actor):
    def init(self):
        self.count = 0
    def put(self, data):
        self.count += 1
    def get(self):
        return self.count

class Source(Actor):
    def run(self):
        sink, sent, refused = rebeam.ref(Sink, "sink"), 0, 0
        for size in range(2**20 - 300, 2**20 + 60, 3):
            try:
                sink.cast(Sink.put, b"x" * size)
                sent += 1
            except rebeam.MessageTooLarge:
                refused += 1
        return [sent, refused]

tree = Supervisor([child(Sink, name="sink"), child(Source, name="a-source-with-a-rather-long-name-" + "y" * 60)])
"#,
    );
    project.write("pyproject.toml", "[tool.rebeam]\nmax_message = \"1MiB\"\n");
    let node = project.up();
    let source = format!("a-source-with-a-rather-long-name-{}", "y".repeat(60));
    let counts = node.call(&source, "run", &[]);
    assert!(counts[0].as_u64() > Some(0) && counts[1].as_u64() > Some(0), "{counts}");
    assert_eq!(node.call("sink", "get", &[]), counts[0]);
    assert_eq!(node.ps("sink")["restarts"], json!(0));
    node.down();
}
