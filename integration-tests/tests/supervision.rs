//! Strategies, restart types, limits and orders of going, with real processes. The core's decisions themselves are
//! tested in virtual time (`rebeam-core`); here is what a process could break.

use harness::{Node, kill};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::{project, tree};

fn events(node: &Node<'_>) -> Vec<String> {
    let all = node.call("recorder", "all", &[]);
    all.as_array().expect("a list").iter().map(|it| it.as_str().unwrap_or_default().to_owned()).collect()
}

fn pids(node: &Node<'_>, names: &[&str]) -> Vec<Value> {
    names.iter().map(|name| node.call(name, "pid", &[])).collect()
}

/// Three children under one strategy; `b` dies; gives what was recorded from then on, and who has a new incarnation.
fn after_death_of_b(strategy: &str) -> (Vec<String>, [bool; 3]) {
    let project = tree(&format!(
        "Supervisor([child(Recorder, name='recorder'), Supervisor([child(Child, name=n) for n in 'abc'], strategy='{strategy}')])"
    ));
    let node = project.up();
    let before = pids(&node, &["a", "b", "c"]);
    assert_eq!(node.run(&["cast", "recorder", "clear"]).code, Some(0));
    kill(node.os_pid_of("b"), Signal::SIGKILL);
    node.eventually("all are up again", |node| {
        let all = ["a", "b", "c"].map(|name| node.ps(name));
        (all[1]["restarts"] == 1 && all.iter().all(|it| it["state"] == "running")).then_some(())
    });
    let after = pids(&node, &["a", "b", "c"]);
    let recorded = events(&node);
    node.down();
    (recorded, [0, 1, 2].map(|place| before[place] != after[place]))
}

#[test]
fn sup_030_one_for_one_restarts_the_dead_alone() {
    assert_eq!(after_death_of_b("one_for_one"), (vec!["init b".into()], [false, true, false]));
}

#[test]
fn sup_031_one_for_all_stops_in_reverse_and_starts_in_order() {
    let expected = ["terminate c shutdown", "terminate a shutdown", "init a", "init b", "init c"];
    assert_eq!(after_death_of_b("one_for_all"), (expected.map(String::from).into(), [true; 3]));
}

#[test]
fn sup_032_rest_for_one_leaves_those_before_alone() {
    let expected = ["terminate c shutdown", "init b", "init c"];
    assert_eq!(after_death_of_b("rest_for_one"), (expected.map(String::from).into(), [false, true, true]));
}

#[test]
fn sup_020_sup_022_every_sort_of_end_restarts_and_has_its_own_reason() {
    let project = project("child(Child, name='p'), child(Child, name='t', restart='transient')");
    let node = project.up();
    let ends: [(&[&str], &str); 7] = [
        (&["raise_"], "exception"),
        (&["exit", "3"], "exit_code"),
        (&["exit", "0"], "exit_code"),
        (&["system_exit", "4"], "exit_code"),
        (&["segfault"], "signal"),
        (&["abort"], "signal"),
        (&["stop", "\"disk full\""], "other"),
    ];
    for name in ["p", "t"] {
        for (count, (call, kind)) in ends.iter().enumerate() {
            let before = node.call(name, "pid", &[]);
            assert_eq!(node.run(&[&["cast", name], *call].concat()).code, Some(0));
            node.eventually("it was restarted", |node| (node.ps(name)["restarts"] == count + 1).then_some(()));
            assert_ne!(node.call(name, "pid", &[]), before);
            let why = node.run(&["why", name, "--json"]).json();
            let last = why.as_array().and_then(|all| all.last()).expect("a death");
            assert_eq!(last["kind"], json!(kind), "{last}");
        }
    }
    let why = node.run(&["why", "p", "--json"]).json();
    let reasons: Vec<&str> = why.as_array().expect("a list").iter().filter_map(|it| it["reason"].as_str()).collect();
    let expected = [
        "ValueError: boom",
        "exit_code(3)",
        "exit_code(0)",
        "exit_code(4)",
        "signal(SIGSEGV)",
        "signal(SIGABRT)",
        "disk full",
    ];
    assert_eq!(reasons, expected);
    node.down();
}

#[test]
fn sup_021_sup_025_a_clean_end_of_a_transient_child_is_left_alone_and_makes_no_report() {
    let project = project("child(Child, name='t', restart='transient'), child(Child, name='x')");
    let node = project.up();
    let sibling = node.call("x", "pid", &[]);
    node.run(&["cast", "t", "stop"]);
    node.eventually("it has stopped", |node| (node.ps("t")["state"] == "stopped").then_some(()));
    assert_eq!(node.call("x", "pid", &[]), sibling);
    node.run(&["call", "t", "pid"]).assert_error(1, &["`t` is down"]);
    // It can be brought back.
    assert_eq!(node.run(&["restart", "t"]).code, Some(0));
    node.call("t", "pid", &[]);
    assert_eq!(node.run(&["down"]).code, Some(0));
    let (_, output) = node.wait();
    assert!(!output.contains("died:"), "{output}");
}

#[test]
fn sup_024_a_restart_begins_with_the_first_arguments_and_the_old_pid_stays_dead() {
    let project = tree(
        "None\n\nclass Keeper(Actor):\n    def init(self, start):\n        self.n = start\n    def add(self):\n        self.n += 1\n        return self.n\n    def pid(self):\n        return tuple(rebeam.me().pid)\n    def ask_old(self, pid):\n        try:\n            rebeam.ref(Keeper, Pid(*pid)).call(Keeper.add)\n        except NoProc as error:\n            return 'noproc'\n    def crash(self):\n        os._exit(1)\n\n\
         tree = Supervisor([child(Keeper, 5, name='k'), child(Keeper, 0, name='asker')])",
    );
    let node = project.up();
    assert_eq!(node.call("k", "add", &[]), json!(6));
    let old = node.call("k", "pid", &[]);
    node.run(&["call", "k", "crash"]).assert_error(1, &["`k` died", "exit_code(1)"]);
    assert_eq!(node.call("k", "add", &[]), json!(6), "not 7: it began anew");
    assert_eq!(node.call("asker", "ask_old", &[&old.to_string()]), json!("noproc"));
    node.down();
}

#[test]
fn sup_012_a_failed_start_is_rolled_back_in_reverse_and_names_the_cause() {
    let project = tree(
        "None\n\ndef log(text):\n    with open('log', 'a') as file:\n        file.write(text + '\\n')\n\n\
         class L(Actor):\n    def init(self, name):\n        self.name = name\n        log('init ' + name)\n        if name == 'c':\n            raise OSError('no such printer')\n    def terminate(self, reason):\n        log('terminate ' + self.name + ' ' + reason.kind)\n\n\
         tree = Supervisor([child(L, n, name=n) for n in 'abcd'], max_restarts=10)",
    );
    let ran = project.run(&["up", "app.py"]);
    ran.assert_error(3, &["`c` did not start", "OSError: no such printer", "app.py", "raise OSError"]);
    let log = std::fs::read_to_string(project.path().join("log")).expect("a log");
    let expected = ["init a", "init b", "init c", "terminate b shutdown", "terminate a shutdown"];
    assert_eq!(log.lines().collect::<Vec<_>>(), expected);
    project.assert_nothing_left();
    project.assert_socket_gone();
}

#[test]
fn sup_044_sup_086_sup_089_limits_escalate_and_the_node_ends_with_1() {
    // Two levels, one restart each: at most (1 + 1)^2 starts of a leaf that always crashes after its init.
    let project = tree(
        "None\n\nclass Crash(Actor):\n    def init(self):\n        with open('log', 'a') as file:\n            file.write('init\\n')\n        rebeam.me().ref.cast(Crash.crash)\n    def crash(self):\n        os._exit(1)\n\n\
         tree = Supervisor([Supervisor([child(Crash, name='leaf')], id='inner', max_restarts=1)], max_restarts=1)",
    );
    let ran = project.run(&["up", "app.py"]);
    ran.assert_error(1, &["the tree gave up", "leaf", "exit_code(1)"]);
    let log = std::fs::read_to_string(project.path().join("log")).expect("a log");
    assert_eq!(log.lines().count(), 4);
    project.assert_nothing_left();
}

#[test]
fn sup_050_sup_051_sup_085_a_stop_goes_in_reverse_one_at_a_time_and_runs_terminate() {
    let project = tree(
        "None\n\nclass L(Actor):\n    def init(self, name):\n        self.name = name\n    def terminate(self, reason):\n        with open('log', 'a') as file:\n            file.write('begin ' + self.name + '\\n')\n        time.sleep(0.1)\n        with open('log', 'a') as file:\n            file.write('end ' + self.name + '\\n')\n\n\
         tree = Supervisor([child(L, 'a', name='a'), Supervisor([child(L, 'x', name='x'), child(L, 'y', name='y')], id='inner'), child(L, 'b', name='b')])",
    );
    let node = project.up();
    node.signal(Signal::SIGTERM);
    let (status, output) = node.wait();
    assert_eq!(status.code(), Some(0), "{output}");
    let log = std::fs::read_to_string(project.path().join("log")).expect("a log");
    let expected = ["b", "y", "x", "a"].map(|name| format!("begin {name}\nend {name}\n")).concat();
    assert_eq!(log, expected);
    project.assert_nothing_left();
}

#[test]
fn sup_052_sup_053_gen_018_who_is_late_is_killed_and_who_is_brutal_is_not_asked() {
    let project = project(
        "child(Child, name='late', shutdown=0.2), child(Child, name='brutal', shutdown='brutal_kill'), child(Child, name='polite')",
    );
    let node = project.up();
    node.run(&["cast", "late", "loop"]);
    node.eventually("it is busy", |node| (!node.ps("late")["busy"].is_null()).then_some(()));
    for (name, kind) in [("late", "killed"), ("brutal", "killed"), ("polite", "shutdown")] {
        assert_eq!(node.run(&["stop", name]).code, Some(0));
        assert_eq!(node.ps(name)["state"], json!("stopped"));
        let why = node.run(&["why", name, "--json"]).json();
        assert_eq!(why[0]["kind"], json!(kind), "{name}");
    }
    let told: Vec<String> = events(&node).into_iter().filter(|event| event.starts_with("terminate")).collect();
    assert_eq!(told, ["terminate polite shutdown"]);
    node.down();
}

#[test]
fn the_first_signal_drains_the_second_hurries_the_third_kills() {
    let project = project("child(Child, name='a', shutdown='infinity')");
    let mut node = project.up();
    node.run(&["cast", "a", "loop"]);
    node.eventually("it is busy", |node| (!node.ps("a")["busy"].is_null()).then_some(()));
    node.signal(Signal::SIGINT);
    node.wait_for("stopping, within 20 s");
    node.signal(Signal::SIGINT);
    node.wait_for("hurrying");
    node.signal(Signal::SIGINT);
    let (status, output) = node.wait();
    assert_eq!(status.code(), Some(0), "{output}");
    project.assert_nothing_left();
    project.assert_socket_gone();
}

#[test]
fn what_is_in_hand_is_finished_when_the_node_is_stopped_and_grace_bounds_it() {
    let project = project("child(Child, name='a', shutdown=30)");
    let node = project.up();
    let mut call = project.command(&["call", "a", "sleep", "0.5"]);
    let call = call.stdout(std::process::Stdio::piped()).spawn().expect("it runs");
    node.eventually("it is busy", |node| (!node.ps("a")["busy"].is_null()).then_some(()));
    node.signal(Signal::SIGTERM);
    let answer = call.wait_with_output().expect("it ends");
    assert_eq!(String::from_utf8_lossy(&answer.stdout).trim(), "slept");
    assert_eq!(node.wait().0.code(), Some(0));

    let mut node = project.up_with(&["up", "app.py", "--grace", "0.3"]);
    node.run(&["cast", "a", "loop"]);
    node.eventually("it is busy", |node| (!node.ps("a")["busy"].is_null()).then_some(()));
    node.signal(Signal::SIGTERM);
    node.wait_for("killed without having ended by themselves");
    assert_eq!(node.wait().0.code(), Some(0));
    project.assert_nothing_left();
}

#[test]
fn gen_002_map_09_an_init_that_takes_too_long_is_killed() {
    let project = tree(
        "None\nclass Slow(Actor):\n    def init(self):\n        time.sleep(60)\ntree = Supervisor([child(Slow, name='slow', start_timeout=0.2)])",
    );
    project.run(&["up", "app.py"]).assert_error(3, &["`slow` did not start", "start_timeout"]);
    project.assert_nothing_left();
}

#[test]
fn an_actor_ends_the_node_with_shutdown() {
    let project = tree(
        "None\nclass Once(Actor):\n    def init(self):\n        rebeam.me().ref.cast(Once.run)\n    def run(self):\n        print('done')\n        rebeam.shutdown()\ntree = Supervisor([child(Once)])",
    );
    let ran = project.run(&["up", "app.py"]);
    assert_eq!((ran.code, ran.stdout.contains("| done")), (Some(0), true), "{ran:?}");
}

#[test]
fn ctrl_z_stops_all_of_it_and_lets_all_of_it_go_on() {
    let project = project("child(Child, name='a')");
    let node = project.up();
    let os_pid = node.os_pid_of("a");
    let state = |os_pid: i32| {
        let stat = std::fs::read_to_string(format!("/proc/{os_pid}/stat")).unwrap_or_default();
        stat.rsplit_once(") ").map(|(_, rest)| rest.chars().next())
    };
    node.signal(Signal::SIGTSTP);
    node.eventually("both are stopped", |node| {
        (state(os_pid) == Some(Some('T')) && state(node.os_pid()) == Some(Some('T'))).then_some(())
    });
    node.signal(Signal::SIGCONT);
    assert_eq!(node.call("a", "sleep", &["0.01"]), "slept");
    node.down();
}

#[test]
fn an_exit_signal_is_raised_once_and_finally_runs() {
    let project = tree("Supervisor([child(Starter, name='starter')], max_restarts=100)");
    project.write(
        "actors.py",
        r#"
import rebeam
from rebeam import Actor

def note():
    # Long enough for a second signal to come in between.
    for _ in range(100):
        with open("finally.txt", "a") as file:
            pass
    with open("finally.txt", "a") as file:
        file.write("done\n")

def receives():
    try:
        with open("begun.txt", "a") as file:
            file.write("begun\n")
        while True:
            rebeam.receive()
    finally:
        note()

class Starter(Actor):
    def init(self):
        rebeam.spawn(receives, name="function")
"#,
    );
    let lines = |file: &str| std::fs::read_to_string(project.path().join(file)).unwrap_or_default().lines().count();
    let noted = || lines("finally.txt");
    let node = project.up();
    for restarts in 1..=8 {
        node.eventually("it has begun", |_| (lines("begun.txt") == restarts).then_some(()));
        assert_eq!(node.run(&["restart", "function"]).code, Some(0));
        node.eventually("`finally` has run", |_| (noted() == restarts).then_some(()));
    }
    node.eventually("it has begun", |_| (lines("begun.txt") == 9).then_some(()));
    node.signal(Signal::SIGTERM);
    let (_, stderr) = node.wait();
    assert!(!stderr.contains("Traceback"), "{stderr}");
    assert_eq!(noted(), 9);
}
