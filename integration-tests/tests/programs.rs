//! Foreign programs: each scenario of `fixtures/programs.py` in a node of its own; and that nothing is left of them.

use std::time::{Duration, Instant};

use harness::{Project, kill, parent_of, scenarios};
use nix::sys::signal::Signal;

use crate::tree;

scenarios! {
    in "fixtures/programs.py";
    requests_are_answered,
    a_program_is_initialized_each_time_it_starts,
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

/// What of these words runs, whatever environment, group and session it has.
fn running(words: &str) -> Vec<i32> {
    let all = std::fs::read_dir("/proc").expect("/proc is there").flatten();
    let os_pids = all.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let line = |os_pid: &i32| std::fs::read_to_string(format!("/proc/{os_pid}/cmdline")).unwrap_or_default();
    os_pids.filter(|os_pid| line(os_pid).replace('\0', " ").contains(words)).collect()
}

fn eventually<T>(what: &str, mut wanted: impl FnMut() -> Option<T>) -> T {
    let since = Instant::now();
    loop {
        if let Some(found) = wanted() {
            return found;
        }
        assert!(since.elapsed() < Duration::from_secs(20), "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A program that ignores SIGTERM, and starts others: in its group, in sessions of their own, forked twice, with an empty
/// environment, and with all of that.
fn wild(seconds: u32) -> Project {
    let sleep = format!("sleep {seconds}");
    tree(&format!(
        "Supervisor([program(['sh', '-c', \"trap '' TERM; {sleep} & setsid {sleep} & (setsid sh -c '{sleep} & {sleep}' &); \
         env -i setsid sh -c '{sleep} & {sleep}' & wait; {sleep}\"], name='wild', shutdown=0.5, env={{'A': 'b'}})], \
         max_restarts=100)"
    ))
}

/// Of whom the processes of a program are, from the first to the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whom {
    Supervisor,
    Keeper,
    Port,
    Program,
}

#[test]
fn nothing_of_a_program_outlives_whatever_is_killed() {
    let rows = [
        (Whom::Supervisor, Signal::SIGKILL),
        (Whom::Supervisor, Signal::SIGTERM),
        (Whom::Keeper, Signal::SIGKILL),
        (Whom::Port, Signal::SIGKILL),
        (Whom::Port, Signal::SIGSTOP),
        (Whom::Program, Signal::SIGKILL),
    ];
    for (row, (whom, signal)) in (0..).zip(rows) {
        // So that it is told from what another test has started.
        let seconds = 1_000_000 + 10 * std::process::id() + row;
        let words = format!("sleep {seconds}");
        let project = wild(seconds);
        let node = project.up();
        let first = eventually("all have started", || Some(running(&words)).filter(|found| found.len() >= 8));
        let port = node.os_pid_of("wild");
        match whom {
            Whom::Supervisor => node.signal(signal),
            Whom::Keeper => crate::leftovers::keepers(&project).into_iter().for_each(|keeper| kill(keeper, signal)),
            Whom::Port => kill(port, signal),
            Whom::Program => {
                let program = first.iter().find(|os_pid| parent_of(**os_pid) == Some(port));
                kill(*program.expect("the port has a child"), signal);
            }
        }
        if matches!((whom, signal), (Whom::Port | Whom::Program, Signal::SIGKILL)) {
            eventually(&format!("{whom:?} {signal:?}: the first are gone"), || {
                let now = running(&words);
                first.iter().all(|os_pid| !now.contains(os_pid)).then_some(())
            });
        }
        if whom != Whom::Supervisor {
            node.signal(Signal::SIGKILL);
        }
        node.wait();
        eventually(&format!("{whom:?} {signal:?}: all are gone"), || running(&words).is_empty().then_some(()));
        project.assert_nothing_left();
    }
}

#[test]
fn programs_of_the_projects_file_run_before_its_actors_and_without_any() {
    let project = tree("Supervisor([child(Reads, name='reads')])");
    project.write(
        "app.py",
        "import os\nfrom rebeam import *\n\nclass Reads(Actor):\n    def init(self):\n        self.found = open('made').read()\n\n    \
         def get(self):\n        return [self.found, ProgramRef('echo').call('tools/list', {'a': 1})]\n\n\
         tree = Supervisor([child(Reads, name='reads')])\n",
    );
    let programs = "[programs.maker]\ncommand = ['sh', '-c', 'sleep 0.2; echo $WORD > new; mv new made; sleep 1000']\n\
                    ready = 'file:made'\nenv = { WORD = 'hello' }\nshutdown = 0.5\n\n\
                    [programs.echo]\ncommand = ['sed', '-u', 's/\"method\":\"tools.list\",\"params\"/\"result\"/']\n\
                    stdio = 'jsonrpc'\n";
    project.write("rebeam.toml", &format!("app = 'app'\n\n{programs}"));
    let node = project.up_with(&["up"]);
    assert_eq!(node.call("reads", "get", &[]), serde_json::json!(["hello\n", {"a": 1}]));
    assert_eq!(node.ps("maker")["id"], "programs/maker/maker");
    node.down();
    // One that ends again and again costs no other anything.
    let ends = "[programs.ends]\ncommand = ['sh', '-c', 'exit 1']\nbackoff = { initial = 0.01, cap = 0.01 }\n";
    project.write("rebeam.toml", &format!("{programs}{ends}"));
    let node = project.up_with(&["up"]);
    node.eventually("it is given up", |node| (node.ps("ends")["state"] == "parked").then_some(()));
    assert_eq!((&node.ps("echo")["state"], &node.ps("echo")["restarts"]), (&"running".into(), &0.into()));
    node.down();
    for (wrong, texts) in [
        ("command = 'sleep 5'", ["the program `it` of the project's file", "write ['sleep', '5']"]),
        ("comand = ['sleep']", ["the program `it` of the project's file", "did you mean that by `comand`"]),
        ("command = ['sleep']\nbackoff = { a = 1 }", ["the program `it` of the project's file", "backoff"]),
        ("command = ['sleep']\nreddy = 'x'", ["the program `it` of the project's file", "did you mean `ready`"]),
    ] {
        project.write("rebeam.toml", &format!("[programs.it]\n{wrong}\n"));
        project.run(&["up"]).assert_error(2, &texts);
    }
    project.write("rebeam.toml", "[programs]\nit = 5\n");
    project.run(&["up"]).assert_error(2, &["the program `it` of the project's file has no `command`"]);
    project.write("rebeam.toml", "programs = 5\n");
    project.run(&["up"]).assert_error(2, &["a value in", "rebeam.toml"]);
    project.write("rebeam.toml", "[programs.it]\ncommand = ['no-such-program']\n");
    project.run(&["up"]).assert_error(3, &["`it` did not start", "in none of the directories of `PATH`"]);
}

#[test]
fn mcp_servers_that_hang_or_crash_are_tool_errors_and_those_that_nobody_uses_end() {
    let example = |name: &str| {
        let path = harness::root().join("examples/mcp_host").join(name);
        std::fs::read_to_string(path).expect("the example is there")
    };
    let project = Project::new(&example("app.py").replace("idle=60", "idle=3").replace("timeout=30", "timeout=10"));
    project.write("server.py", &example("server.py"));
    let server = project.path().join("server.py").display().to_string();
    let node = project.up();
    let run = |args: &[&str]| project.run(&[&["call", "--json", "--timeout", "60", "host", "use"], args].concat());
    let sum = |server: &str| run(&[server, "add", r#"{"a": 1, "b": 2}"#]).json();
    let tools = project.run(&["call", "--json", "--timeout", "60", "host", "tools", "tools0"]);
    assert_eq!(tools.json(), serde_json::json!(["add", "hang", "crash"]));
    std::thread::scope(|scope| {
        let hanging = scope.spawn(|| run(&["tools1", "hang"]));
        for other in (0..20).filter(|other| *other != 1) {
            assert_eq!(sum(&format!("tools{other}")), "3");
        }
        hanging.join().expect("no panic").assert_error(1, &["ToolError", "`hang` hangs", "did not answer in time"]);
    });
    assert_eq!(sum("tools1"), "3", "it was started again");
    run(&["tools2", "crash"]).assert_error(1, &["ToolError", "has taken its server down", "signal(SIGSEGV)"]);
    assert_eq!(sum("tools2"), "3", "it was started again");
    assert_eq!(node.ps("host")["restarts"], 0);
    eventually("those that nobody uses have ended", || running(&server).is_empty().then_some(()));
    assert_eq!(sum("tools3"), "3");
    node.down();
    assert!(running(&server).is_empty());
}
