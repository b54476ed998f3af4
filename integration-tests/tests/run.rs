//! `rebeam run`: what it shows, to whom it answers, and what becomes of a node whose surroundings are narrow.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};
use std::time::Duration;

use harness::{Node, PATIENCE, Project, http, kill};
use nix::sys::signal::Signal;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use serde_json::{Value, json};

use crate::limits::Cgroup;

/// A project with two actors that do what they are told.
fn shop() -> Project {
    Project::new(
        "import logging, os, subprocess, sys, time
import rebeam
from rebeam import *

log = logging.getLogger('shop')

class Clerk(Actor):
    def say(self, text):
        print(text)
    def log(self, level, text):
        log.log(level, text, extra={'order': 7, 'odd': {1}})
    def fail_politely(self):
        try:
            1 / 0
        except ZeroDivisionError:
            log.exception('it went\\nwrong')
    def native(self):
        os.write(1, b'from a library\\n')
    def add(self, a, b):
        return a + b
    def boom(self):
        raise ValueError('boom')
    def sleep(self, seconds):
        time.sleep(seconds)
    def ready(self, ready, reason=''):
        rebeam.set_ready(ready, reason)
    def flood(self, count):
        for number in range(count):
            print('x' * 1000)
        return count
    def grow(self, mib):
        hoard = []
        for _ in range(mib):
            hoard.append(os.urandom(1 << 20))
            time.sleep(0.005)
    def orphan(self):
        return int(subprocess.check_output(['sh', '-c', 'setsid sleep 1000 > /dev/null & echo $!']))
    def short_lived_orphan(self):
        return int(subprocess.check_output(['sh', '-c', 'sleep 0.05 > /dev/null & echo $!']))
    def ask_on(self, name):
        return [rebeam.current_message().traceparent, rebeam.ref(Clerk, name).call.add(1, 2)]
    def variables(self):
        return sorted(os.environ)

tree = Supervisor([
    child(Clerk, name='a', on_giveup='park'),
    child(Clerk, name='b', restart='permanent'),
], max_restarts=2, max_seconds=60)
",
    )
}

/// A node in production, and where it answers over HTTP.
fn start<'a>(project: &'a Project, args: &[&str]) -> (Node<'a>, String) {
    let mut node = project.start(&[&["run", "app.py", "--http", "127.0.0.1:0"], args].concat());
    let line = record(&node.wait_for("health and metrics at"));
    node.wait_for("up with");
    let message = line["message"].as_str().expect("a message");
    let address = message.split_once("http://").expect("an address").1.to_owned();
    (node, address)
}

fn record(line: &str) -> Value {
    serde_json::from_str(line).unwrap_or_else(|error| panic!("no JSON ({error}): {line}"))
}

#[test]
fn every_line_is_one_json_object_with_all_that_is_known() {
    let project = shop();
    let (mut node, _) = start(&project, &[]);
    node.call("a", "say", &["\"hello\""]);
    let said = record(&node.wait_for("hello"));
    assert_eq!((&said["actor"], &said["logger"], &said["level"]), (&json!("a"), &json!("stdout"), &json!("info")));
    assert!(said["time"].as_str().is_some_and(|time| time.ends_with('Z')), "{said}");
    let incarnation = said["incarnation"].clone();
    assert!(incarnation.is_string(), "{said}");
    node.call("a", "native", &[]);
    assert_eq!(record(&node.wait_for("from a library"))["logger"], "stdout");
    node.call("a", "log", &["40", "\"with more\""]);
    let logged = record(&node.wait_for("with more"));
    assert_eq!((&logged["logger"], &logged["level"]), (&json!("shop"), &json!("error")));
    assert_eq!((&logged["extra"]["order"], &logged["extra"]["odd"]), (&json!(7), &json!("{1}")));
    node.call("a", "fail_politely", &[]);
    let failed = record(&node.wait_for("it went"));
    assert_eq!(failed["message"], "it went\nwrong");
    assert!(failed["exception"].as_str().is_some_and(|text| text.contains("ZeroDivisionError")), "{failed}");
    node.run(&["call", "a", "boom"]).assert_error(1, &["ValueError"]);
    let crash = record(&node.wait_for("rebeam.crash"));
    assert_eq!((&crash["level"], &crash["message"]), (&json!("error"), &json!("died: ValueError: boom")));
    assert_eq!((&crash["certificate"]["in_hand"][0]["method"], &crash["incarnation"]), (&json!("boom"), &incarnation));
    node.run(&["down"]);
    let (status, output) = node.wait();
    assert_eq!(status.code(), Some(0));
    output.lines().for_each(|line| drop(record(line)));
    project.assert_nothing_left();
}

#[test]
fn the_end_of_a_tree_that_gives_up_is_a_record_and_an_exit_code() {
    let project = shop();
    let (node, _) = start(&project, &[]);
    for _ in 0..3 {
        node.run(&["call", "b", "boom"]);
    }
    let (status, output) = node.wait();
    assert_eq!(status.code(), Some(1), "{output}");
    let last = record(output.lines().last().expect("lines"));
    assert_eq!((&last["level"], &last["exit_code"]), (&json!("critical"), &json!(1)), "{output}");
    assert_eq!(
        last["causes"],
        json!(["`b` died: ValueError: boom; more than 2 restarts within 1 m 00 s: its supervisor gives up"])
    );
}

#[test]
fn a_log_level_holds_from_now_on_and_over_restarts() {
    let project = shop();
    let (mut node, _) = start(&project, &["--log-level", "warning"]);
    node.call("a", "log", &["20", "\"unseen\""]);
    assert_eq!(node.run(&["log-level", "a", "debug"]).code, Some(0));
    node.call("a", "log", &["10", "\"seen\""]);
    node.wait_for("\"seen\"");
    kill(node.os_pid_of("a"), Signal::SIGKILL);
    node.eventually("it is back", |node| (node.ps("a")["restarts"] == 1).then_some(()));
    node.call("a", "log", &["10", "\"seen again\""]);
    node.wait_for("seen again");
    node.call("b", "log", &["30", "\"and a warning\""]);
    node.call("b", "log", &["20", "\"unseen\""]);
    node.wait_for("and a warning");
    node.run(&["log-level", "a", "debgu"]).assert_error(2, &["`debgu`", "did you mean `debug`?"]);
    node.run(&["log-level", "c", "debug"]).assert_error(1, &["no actor `c`"]);
    node.run(&["down"]);
    assert!(!node.wait().1.contains("unseen"));
}

#[test]
fn readiness_says_what_is_wrong() {
    let project = shop();
    let (node, address) = start(&project, &["--longest-wait", "0.2"]);
    assert_eq!(http(&address, "GET /livez", &[]), (200, "{\"alive\":true}\n".into()));
    assert_eq!(http(&address, "GET /readyz", &[]).0, 200);
    assert_eq!(node.run(&["health"]).stdout, "ready\n");
    node.call("a", "ready", &["false", "\"warming up\""]);
    let (status, body) = http(&address, "GET /readyz", &[]);
    let told = json!([{ "actor": "a", "kind": "not_ready", "detail": "warming up" }]);
    assert_eq!((status, &record(&body)["troubles"]), (503, &told));
    node.run(&["health"]).assert_error(1, &["not ready", "a: warming up"]);
    assert_eq!(node.run(&["health", "--json"]).json()["troubles"], told);
    node.call("a", "ready", &["true"]);
    assert_eq!(http(&address, "GET /readyz", &[]).0, 200);

    node.run(&["cast", "b", "sleep", "2"]);
    node.run(&["cast", "b", "sleep", "0"]);
    let old = node.eventually("a message is old", |_| {
        let body = record(&http(&address, "GET /readyz", &[]).1);
        (body["ready"] == false).then(|| body["troubles"][0].clone())
    });
    assert_eq!((&old["actor"], &old["kind"]), (&json!("b"), &json!("old_message")), "{old}");
    node.eventually("it was handled", |_| (http(&address, "GET /readyz", &[]).0 == 200).then_some(()));

    for _ in 0..3 {
        node.run(&["call", "a", "boom"]);
    }
    let trouble = node.eventually("it is not started again", |_| {
        let body = record(&http(&address, "GET /readyz", &[]).1);
        (body["ready"] == false).then(|| body["troubles"][0].clone())
    });
    assert_eq!((&trouble["actor"], &trouble["kind"]), (&json!("a"), &json!("parked")), "{trouble}");
    node.run(&["restart", "a"]);
    assert_eq!(http(&address, "GET /readyz", &[]).0, 200);
    node.down();
}

#[test]
fn a_node_that_drains_is_not_ready_and_finishes_what_is_in_hand() {
    let project = shop();
    let (node, address) = start(&project, &[]);
    node.run(&["cast", "a", "sleep", "1"]);
    node.signal(Signal::SIGTERM);
    let state = node.eventually("it is stopping", |_| {
        let body = record(&http(&address, "GET /readyz", &[]).1);
        (body["ready"] == false).then(|| body["state"].clone())
    });
    assert_eq!(state, "stopping");
    let (status, output) = node.wait();
    assert_eq!(status.code(), Some(0), "{output}");
    assert!(!output.contains("lost"), "{output}");
    project.assert_nothing_left();
}

#[test]
fn http_is_read_only_and_for_those_who_know_our_name() {
    let project = shop();
    let (node, address) = start(&project, &["--http-host", "shop.internal"]);
    for host in ["localhost:1", "shop.internal", "10.1.2.3:80"] {
        assert_eq!(http(&address, "GET /readyz", &[&format!("Host: {host}")]).0, 200, "{host}");
    }
    let (status, body) = http(&address, "GET /metrics", &["Host: evil.example"]);
    assert!(status == 403 && body.contains("--http-host evil.example"), "{body}");
    assert_eq!(http(&address, "GET /metrics", &["Origin: http://evil.example"]).0, 403);
    assert_eq!(http(&address, "POST /readyz", &[]).0, 405);
    assert_eq!(http(&address, "DELETE /metrics", &[]).0, 405);
    assert_eq!(http(&address, "GET /", &[]).0, 404);
    node.down();
    let quiet = project.up_with(&["run", "app.py"]);
    let open = std::fs::read_to_string(format!("/proc/{}/net/tcp", quiet.os_pid())).expect("a list");
    let sockets: Vec<String> = std::fs::read_dir(format!("/proc/{}/fd", quiet.os_pid()))
        .expect("a list")
        .filter_map(|entry| Some(std::fs::read_link(entry.ok()?.path()).ok()?.to_string_lossy().into_owned()))
        .filter_map(|link| Some(link.strip_prefix("socket:[")?.trim_end_matches(']').to_owned()))
        .collect();
    let is_ours = |line: &str| line.split_whitespace().nth(9).is_some_and(|inode| sockets.iter().any(|it| it == inode));
    assert!(!open.lines().any(is_ours), "nobody asked for a port");
    quiet.down();
}

#[test]
fn the_figures_are_what_was_done() {
    let project = shop();
    let (node, address) = start(&project, &[]);
    for _ in 0..3 {
        node.call("a", "add", &["1", "2"]);
    }
    node.run(&["call", "b", "boom"]);
    node.eventually("it is back", |node| {
        let b = node.ps("b");
        (b["restarts"] == 1 && b["state"] == "running").then_some(())
    });
    let page = http(&address, "GET /metrics", &[]).1;
    let value = |series: &str| {
        let line =
            page.lines().find(|line| line.starts_with(series) && line.as_bytes().get(series.len()) == Some(&b' '));
        let value = line.and_then(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok());
        value.unwrap_or_else(|| panic!("no `{series}` in:\n{page}"))
    };
    let of = "class=\"app.Clerk\",method=\"add\"";
    assert_eq!(value(&format!("rebeam_handler_duration_seconds_count{{{of}}}")), 3.0);
    assert_eq!(value(&format!("rebeam_handler_duration_seconds_bucket{{le=\"+Inf\",{of}}}")), 3.0);
    assert_eq!(value("rebeam_actors{state=\"running\"}"), 2.0);
    assert_eq!(value("rebeam_actor_ends_total{class=\"app.Clerk\",reason=\"exception\"}"), 1.0);
    assert_eq!(value("rebeam_actor_restarts_total{actor=\"b\",class=\"app.Clerk\"}"), 1.0);
    assert_eq!(value("rebeam_actor_start_seconds_count"), 3.0);
    assert_eq!(value("rebeam_ready"), 1.0);
    assert!(value("rebeam_actor_memory_bytes{actor=\"a\",class=\"app.Clerk\"}") > 100_000.0);
    assert!(value("rebeam_own_memory_bytes{process=\"supervisor\"}") > 100_000.0);
    assert!(value("rebeam_supervisor_descriptors") > 10.0);
    assert!(page.ends_with("# EOF\n"));
    node.down();
}

#[test]
fn stacks_are_shown_as_often_as_somebody_asks() {
    let project = shop();
    let (mut node, _) = start(&project, &[]);
    node.run(&["cast", "a", "sleep", "20"]);
    node.eventually("it sleeps", |node| node.ps("a")["busy"].is_object().then_some(()));
    for _ in 0..3 {
        let shown = node.run(&["stack", "a"]).stdout;
        assert_eq!(shown.matches("in sleep").count(), 1, "{shown}");
        assert_eq!(node.run(&["stack", "b"]).stdout, "b\n  it waits for a message\n");
    }
    assert_eq!(node.run(&["stack", "--json"]).json().as_array().map(Vec::len), Some(2));
    node.run(&["stack", "c"]).assert_error(1, &["no actor `c`"]);
    node.signal(Signal::SIGQUIT);
    let shown = record(&node.wait_for("in sleep"));
    assert_eq!((&shown["actor"], &shown["logger"]), (&json!("a"), &json!("rebeam.stacks")));
    // What was shown is not part of what is known of a later death.
    kill(node.os_pid_of("a"), Signal::SIGSEGV);
    let crash = record(&node.wait_for("rebeam.crash"));
    let stacks = crash["certificate"]["stacks"].as_str().expect("stacks");
    assert_eq!(stacks.matches("in sleep").count(), 1, "{stacks}");
    node.down();
}

#[test]
fn a_log_that_was_moved_away_is_opened_anew() {
    let project = shop();
    let node = project.start(&["run", "app.py", "--log-file", "shop.log"]);
    let log = project.path().join("shop.log");
    let read = |path: &std::path::Path| std::fs::read_to_string(path).unwrap_or_default();
    node.eventually("it is up", |_| read(&log).contains("up with").then_some(()));
    let moved = project.path().join("shop.log.1");
    std::fs::rename(&log, &moved).expect("it is there");
    node.signal(Signal::SIGHUP);
    node.eventually("a new one is there", |_| log.exists().then_some(()));
    node.call("a", "say", &["\"into the new one\""]);
    node.eventually("it is written", |_| read(&log).contains("into the new one").then_some(()));
    assert!(!read(&moved).contains("into the new one"));
    read(&log).lines().chain(read(&moved).lines()).for_each(|line| drop(record(line)));
    node.down();
}

#[test]
fn who_does_not_read_our_output_holds_up_nobody() {
    let project = shop();
    let mut command = project.command(&["run", "app.py"]);
    // Nobody ever reads this pipe.
    let (unread, theirs) = nix::unistd::pipe().expect("a pipe");
    let mut child = command.stdout(theirs).stderr(Stdio::piped()).spawn().expect("it starts");
    drop(command);
    let deadline = std::time::Instant::now() + PATIENCE;
    while project.run(&["health"]).code != Some(0) {
        assert!(std::time::Instant::now() < deadline, "it does not come up");
    }
    let flooded = project.run(&["call", "--timeout", "60", "a", "flood", "30000"]);
    assert_eq!(flooded.stdout.trim(), "30000", "{flooded:?}");
    assert_eq!(project.run(&["call", "a", "add", "1", "2"]).stdout, "3\n");
    assert_eq!(project.run(&["down", "--no-wait"]).code, Some(0));
    while child.try_wait().expect("it is ours").is_none() {
        assert!(std::time::Instant::now() < deadline, "it does not end");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(child.wait().expect("it has ended").code(), Some(0));
    drop(unread);
    project.assert_nothing_left();
}

#[test]
fn slips_do_not_pass() {
    let project = shop();
    let with = |name: &str, value: &str| {
        harness::Ran::from(project.command(&["run", "app.py"]).env(name, value).output().expect("it runs"))
    };
    with("REBEAM_GRAZE", "3").assert_error(2, &["`REBEAM_GRAZE`", "did you mean `REBEAM_GRACE`?"]);
    with("REBEAM_LOG_LEVEL", "loud").assert_error(2, &["there is no log level `loud`", "levels: debug"]);
    with("REBEAM_HTTP", "8080").assert_error(2, &["HTTP cannot be served at `8080`", "0.0.0.0:8080"]);
    with("REBEAM_HTTP", "systemd").assert_error(2, &["no socket was handed over"]);
    with("REBEAM_OTLP", "collector").assert_error(2, &["spans cannot be sent to `collector`", "http://localhost:4318"]);
    with("REBEAM_TRACE_SHARE", "7").assert_error(2, &["a trace share of `7`"]);
    with("REBEAM_LOG_FILE", "no/such/folder").assert_error(2, &["no/such/folder", "cannot be opened"]);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address").to_string();
    with("REBEAM_HTTP", &address).assert_error(3, &[&address, "in use"]);
    let told = with("REBEAM_GRAZE", "3").stdout;
    assert_eq!(record(told.trim_end())["exit_code"], 2, "the log says it, too");
    nix::unistd::mkfifo(&project.path().join("fifo"), nix::sys::stat::Mode::S_IRWXU).expect("a fifo");
    with("REBEAM_LOG_FILE", "fifo").assert_error(2, &["fifo", "cannot be opened"]);
    with("REBEAM_OTLP", "https://collector").assert_error(2, &["there is no TLS"]);
    project.write("rebeam.toml", "htpp = \"x\"\n");
    project.run(&["run", "app.py"]).assert_error(2, &["unknown key `htpp`", "did you mean `http`?"]);
    project.assert_nothing_left();
}

#[test]
fn where_nothing_can_be_written_the_socket_has_a_name() {
    let project = shop();
    let command = |args: &[&str]| {
        let mut command = project.command(args);
        command.env_remove("REBEAM_RUNTIME_DIR").env("XDG_RUNTIME_DIR", "/proc/nowhere");
        command
    };
    let mut node = project.adopt(command(&["run", "app.py"]).stdout(Stdio::piped()).stderr(Stdio::piped()));
    node.wait_for("up with");
    let run = |args: &[&str]| harness::Ran::from(command(args).output().expect("it runs"));
    assert_eq!(run(&["call", "a", "add", "1", "2"]).stdout, "3\n");
    run(&["run", "app.py"]).assert_error(3, &[]);
    let script = "import rebeam\nwith rebeam.connect() as node: print(len(node.actors()))";
    let mut python = Command::new(harness::python());
    python.args(["-c", script]).current_dir(project.path()).env_remove("REBEAM_RUNTIME_DIR");
    let asked = harness::Ran::from(python.env("XDG_RUNTIME_DIR", "/proc/nowhere").output().expect("it runs"));
    assert_eq!(asked.stdout, "2\n", "{asked:?}");
    assert_eq!(run(&["down"]).code, Some(0));
    assert_eq!(node.wait().0.code(), Some(0));
    project.assert_nothing_left();
    // Somebody who has chosen a place wants that place.
    let mut chosen = project.command(&["run", "app.py"]);
    let chosen = harness::Ran::from(chosen.env("REBEAM_RUNTIME_DIR", "/proc/nowhere").output().expect("it runs"));
    assert!(chosen.code == Some(3) && chosen.stdout.contains("/proc/nowhere"), "{chosen:?}");
}

/// Runs a command as process 1 of a namespace of its own; `None` where this machine lets nobody make one.
fn as_process_1<'a>(project: &'a Project, args: &str) -> Option<Node<'a>> {
    let probe = Command::new("unshare").args(["--pid", "--fork", "--mount-proc", "true"]).output().ok()?;
    if !probe.status.success() {
        crate::not_tested("a process 1");
        return None;
    }
    let mut command = project.command_of("unshare");
    command.args(["--pid", "--fork", "--mount-proc", "--kill-child", "sh", "-c", &format!("exec \"$0\" {args}")]);
    command.arg(harness::rebeam()).stdout(Stdio::piped()).stderr(Stdio::piped());
    Some(project.adopt(&mut command))
}

#[test]
fn as_process_1_it_reaps_what_is_left_to_it_and_drains() {
    let project = shop();
    let Some(mut node) = as_process_1(&project, "run app.py") else { return };
    node.wait_for("up with");
    let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", node.os_pid())).expect("a list");
    let supervisor: i32 = children.trim().parse().expect("one child");
    let zombies = || {
        let found = project.processes().into_iter().filter(|os_pid| harness::is_zombie(*os_pid));
        found.count()
    };
    // It ends while its parent lives on, and nobody but process 1 could reap it.
    for _ in 0..20 {
        node.call("a", "short_lived_orphan", &[]);
    }
    let of_supervisor = || {
        let path = format!("/proc/{supervisor}/task/{supervisor}/children");
        std::fs::read_to_string(path).unwrap_or_default().split_whitespace().count()
    };
    // Zygote, keeper, two actors, and one forked ahead.
    node.eventually("all orphans are reaped", |_| (zombies() == 0 && of_supervisor() <= 5).then_some(()));
    // What an actor has left behind goes with the actor.
    let before = of_supervisor();
    node.call("a", "orphan", &[]);
    kill(node.os_pid_in("a", supervisor), Signal::SIGKILL);
    node.eventually("it is back", |node| (node.ps("a")["restarts"] == 1).then_some(()));
    node.eventually("its orphan is gone", |_| (of_supervisor() <= before).then_some(()));
    node.run(&["cast", "a", "sleep", "0.3"]);
    kill(supervisor, Signal::SIGTERM);
    let (status, output) = node.wait();
    assert_eq!(status.code(), Some(0), "{output}");
    assert!(!output.contains("lost"), "{output}");
    project.assert_nothing_left();
}

#[test]
fn the_fattest_ends_before_the_container_is_full() {
    let Some(cgroup) = Cgroup::new("200M") else { return };
    let project = shop();
    let mut node = project.adopt(&mut cgroup.command(&project, "run app.py"));
    let fits = record(&node.wait_for("of memory in all"));
    assert!(fits["message"].as_str().is_some_and(|text| text.starts_with("200.0 MiB")), "{fits}");
    node.wait_for("up with");
    let other = node.os_pid_of("b");
    node.run(&["cast", "a", "grow", "1000"]);
    let crash = record(&node.wait_for("rebeam.crash"));
    let certificate = &crash["certificate"];
    assert_eq!((&crash["actor"], &certificate["kind"]), (&json!("a"), &json!("memory_limit")), "{crash}");
    let killer = certificate["killer"].as_str().expect("words");
    assert!(killer.contains("nearly used up"), "{killer}");
    node.eventually("it is back", |node| (node.ps("a")["restarts"] == 1).then_some(()));
    assert_eq!(node.os_pid_of("b"), other, "nobody else was touched");
    node.down();
}

#[test]
fn a_tree_that_cannot_fit_is_told_before_it_starts() {
    let Some(cgroup) = Cgroup::new("100M") else { return };
    let project = shop();
    project.write(
        "app.py",
        "import rebeam\nfrom rebeam import *\nclass A(Actor): ...\n\
         tree = Supervisor([child(A, id=str(n), memory='60MB') for n in range(3)])\n",
    );
    let mut node = project.adopt(&mut cgroup.command(&project, "run app.py"));
    let warned = record(&node.wait_for("of memory, and there are"));
    let text = warned["message"].as_str().expect("words");
    assert!(warned["level"] == "warning" && text.contains("memory.limit_in_bytes"), "{warned}");
    node.wait_for("up with");
    node.down();
}

#[test]
fn the_doctor_says_where_each_number_is_from() {
    let Some(cgroup) = Cgroup::new("128M") else { return };
    let project = shop();
    let found = harness::Ran::from(cgroup.command(&project, "doctor --json").output().expect("it runs"));
    assert_eq!(found.code, Some(0), "{found:?}");
    let found = found.json();
    let of = |what: &str| {
        let all = found.as_array().expect("a list");
        all.iter().find(|it| it["what"] == what).unwrap_or_else(|| panic!("no `{what}` in {found}")).clone()
    };
    assert_eq!(of("memory")["value"], "128.0 MiB");
    assert!(of("memory")["from"].as_str().is_some_and(|from| from.ends_with("memory.limit_in_bytes")), "{found}");
    assert_eq!(of("threads per actor")["value"], "1");
    assert_eq!(of("tables")["value"], "at most 32.0 MiB");
    assert_eq!(of("idle actors that fit")["from"], "bounded by memory");
    let mut bad = project.command(&["doctor"]);
    let bad = harness::Ran::from(bad.env("REBEAM_PYTHON", "/no/python").output().expect("it runs"));
    bad.assert_error(1, &["python"]);
    assert!(bad.stdout.contains("there is no Python at `/no/python`"), "{bad:?}");
}

#[test]
fn a_service_manager_is_told_when_it_is_up_that_it_lives_and_when_it_goes() {
    let project = shop();
    let path = project.runtime().join("notify");
    let socket = UnixDatagram::bind(&path).expect("a socket");
    socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let mut command = project.command(&["run", "app.py"]);
    command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "200000");
    let mut node = project.adopt(command.stdout(Stdio::piped()).stderr(Stdio::piped()));
    let told = |wanted: &str| loop {
        let mut message = [0; 4096];
        let length = socket.recv(&mut message).unwrap_or_else(|error| panic!("`{wanted}` never came: {error}"));
        let message = String::from_utf8_lossy(&message[..length]).into_owned();
        if message.contains(wanted) {
            return message;
        }
    };
    assert!(told("READY=1").contains("STATUS=up with 2 actors"));
    node.wait_for("up with");
    told("WATCHDOG=1");
    told("WATCHDOG=1");
    let variables = node.call("a", "variables", &[]);
    assert!(!variables.to_string().contains("NOTIFY_SOCKET"), "{variables}");
    node.signal(Signal::SIGTERM);
    told("STOPPING=1");
    assert_eq!(node.wait().0.code(), Some(0));
}

#[test]
fn http_is_served_at_a_socket_that_was_handed_over() {
    let project = shop();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    let mut command = project.command_of("sh");
    let script = "exec 3<&0 </dev/null; LISTEN_FDS=1 LISTEN_PID=$$ exec \"$0\" run app.py --http systemd";
    command.args(["-c", script]).arg(harness::rebeam());
    command.stdin(std::os::fd::OwnedFd::from(listener)).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut node = project.adopt(&mut command);
    drop(command);
    node.wait_for("up with");
    assert_eq!(http(&address, "GET /readyz", &[]).0, 200);
    node.down();
}

/// Takes what is sent to a collector until the connection ends.
fn collected(listener: &std::net::TcpListener) -> Vec<Span> {
    let (mut stream, _) = listener.accept().expect("somebody sends");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let mut spans = Vec::new();
    let mut reader = BufReader::new(stream.try_clone().expect("a descriptor"));
    loop {
        let mut length = 0;
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).unwrap_or(0) == 0 {
                return spans;
            }
            let line = line.trim_end().to_ascii_lowercase();
            if let Some(value) = line.strip_prefix("content-length: ") {
                length = value.parse().expect("a number");
            }
            if line.is_empty() {
                break;
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).expect("a body");
        let request = ExportTraceServiceRequest::decode(body.as_slice()).expect("OTLP");
        let scopes = request.resource_spans.into_iter().flat_map(|resource| resource.scope_spans);
        spans.extend(scopes.flat_map(|scope| scope.spans));
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").expect("it listens");
    }
}

#[test]
fn a_request_is_one_trace_however_many_actors_it_passes() {
    let project = shop();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let collector = format!("http://{}", listener.local_addr().expect("an address"));
    let mut node = project.start(&["run", "app.py", "--otlp", &collector]);
    node.wait_for("up with");
    let collecting = std::thread::spawn(move || collected(&listener));
    let answer = node.call("a", "ask_on", &["b"]);
    assert_eq!(answer[1], 3);
    node.run(&["call", "b", "boom"]);
    node.down();
    let spans = collecting.join().expect("it collects");
    let of = |name: &str, kind: i32| {
        let found = spans.iter().find(|span| span.name == name && span.kind == kind);
        found.unwrap_or_else(|| panic!("no {name} in {:?}", spans.iter().map(|it| &it.name).collect::<Vec<_>>()))
    };
    // By OTLP: 2 is a server, 3 a client.
    let chain = [of("ask_on", 3), of("Clerk.ask_on", 2), of("add", 3), of("Clerk.add", 2)];
    for pair in chain.windows(2) {
        assert_eq!(pair[1].trace_id, pair[0].trace_id);
        assert_eq!(pair[1].parent_span_id, pair[0].span_id);
        assert!(pair[0].start_time_unix_nano <= pair[1].start_time_unix_nano, "{chain:?}");
        assert!(pair[0].end_time_unix_nano >= pair[1].end_time_unix_nano, "{chain:?}");
    }
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let context = format!("00-{}-{}-01", hex(&chain[1].trace_id), hex(&chain[1].span_id));
    assert_eq!(answer[0], json!(context));
    let failed = of("Clerk.boom", 2).status.as_ref().expect("a status");
    assert_eq!((failed.code, failed.message.as_str()), (2, "ValueError: boom"));
    assert_ne!(of("Clerk.boom", 2).trace_id, chain[0].trace_id);
}

#[test]
fn a_collector_that_is_gone_costs_a_warning() {
    let project = shop();
    let closed = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let collector = format!("http://{}", closed.local_addr().expect("an address"));
    drop(closed);
    let mut node = project.start(&["run", "app.py", "--otlp", &collector]);
    node.wait_for("up with");
    assert_eq!(node.call("a", "add", &["1", "2"]), 3);
    let warned = record(&node.wait_for("spans were not taken"));
    assert_eq!(warned["level"], "warning");
    node.down();
}
