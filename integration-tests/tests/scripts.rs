//! Programs that know nothing of actors, and scripts that are no actors: how they are stopped, and `rebeam.run`.

use std::process::{Command, Stdio};

use harness::{Node, Project, kill};
use nix::sys::signal::Signal;

const PROGRAMS: &str = r#"
import asyncio, os, signal, sys, time
import rebeam
from rebeam import Supervisor, child_options

def ready(name):
    print(f"{name} ready")

def handles():
    told = []
    signal.signal(signal.SIGTERM, lambda *_: told.append("told"))
    ready("handles")
    while not told:
        time.sleep(0.01)
    # Longer than an exit signal leaves.
    time.sleep(1.0)
    print("handles finished what it had in hand")

def unwinds():
    try:
        ready("unwinds")
        time.sleep(3600)
    finally:
        time.sleep(1.0)
        print("unwinds cleaned up")

def interrupted():
    try:
        ready("interrupted")
        time.sleep(3600)
    except KeyboardInterrupt:
        print("interrupted as by Ctrl-C")

def raises_again():
    # As servers do that take the signals of their caller for a while.
    told = []
    before = signal.signal(signal.SIGTERM, lambda *_: told.append("told"))
    try:
        ready("raises_again")
        while not told:
            time.sleep(0.01)
        signal.signal(signal.SIGTERM, before)
        signal.raise_signal(signal.SIGTERM)
    finally:
        print("raises_again unwound")

async def serves():
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    ready("serves")
    await stop.wait()
    await asyncio.sleep(0.6)
    print("serves closed")

async def lives():
    try:
        ready("lives")
        await asyncio.sleep(3600)
    finally:
        await asyncio.sleep(0.01)
        print("lives ended")

def asks():
    signal.signal(signal.SIGTERM, lambda *_: os.write(1, b"asks was told\n"))
    ready("asks")
    while True:
        rebeam.receive()

functions = [handles, unwinds, interrupted, raises_again, serves, lives, asks]
tree = Supervisor([
    *(child_options(rebeam.function(one), name=one.__name__, shutdown=1.0 if one is asks else 30.0) for one in functions),
    rebeam.script("exits.py", name="exits"),
])
"#;

const EXITS: &str = "
import os, signal, sys, time
def handler(*_):
    # It may interrupt a print.
    os.write(1, b'exits by itself\\n')
    sys.exit(0)
signal.signal(signal.SIGTERM, handler)
print('exits ready')
while True:
    time.sleep(3600)
";

const ALL: [&str; 8] = ["handles", "unwinds", "interrupted", "raises_again", "serves", "lives", "asks", "exits"];

fn wait_until_ready(node: &mut Node<'_>) {
    let mut output = String::new();
    for _ in ALL {
        output += &node.wait_for(" ready");
    }
    assert!(ALL.iter().all(|name| output.contains(&format!("{name} ready"))), "{output}");
}

#[test]
fn programs_are_stopped_by_sigterm_as_they_know_it_and_have_their_shutdown_time() {
    let project = Project::new(PROGRAMS);
    project.write("exits.py", EXITS);
    let mut node = project.start(&["up", "app.py", "--grace", "60"]);
    wait_until_ready(&mut node);
    assert_eq!(node.run(&["down"]).code, Some(0));
    let (status, output) = node.wait();
    assert_eq!(status.code(), Some(0), "{output}");
    for expected in [
        "handles finished what it had in hand",
        "unwinds cleaned up",
        "interrupted as by Ctrl-C",
        "raises_again unwound",
        "serves closed",
        "lives ended",
        "asks was told",
        "exits by itself",
    ] {
        assert!(output.contains(expected), "{expected}: {output}");
    }
    assert!(!output.contains("Traceback"), "{output}");
}

#[test]
fn a_sigterm_from_elsewhere_ends_a_function_as_any_process() {
    let project = Project::new(
        "import time, rebeam\n\
         def waits():\n    print('waits', flush=True)\n    time.sleep(3600)\n\
         tree = rebeam.Supervisor([rebeam.child_options(rebeam.function(waits), name='waits')])\n",
    );
    let mut node = project.up();
    let before = node.os_pid_of("waits");
    kill(before, Signal::SIGTERM);
    node.wait_for("died: signal(SIGTERM)");
    node.eventually("a new process", |node| {
        node.ps("waits")["os_pid"].as_i64().filter(|now| *now != i64::from(before))
    });
    node.down();
}

/// uvloop runs Python's signal handlers where it reports errors and goes on.
#[test]
fn a_stop_reaches_programs_on_uvloop_with_and_without_a_handler_of_their_own() {
    let python = harness::python();
    let is_there = Command::new(python).args(["-c", "import uvloop"]).output().expect("it runs");
    if !is_there.status.success() {
        return crate::not_tested("uvloop");
    }
    let project = Project::new(
        r#"
import asyncio, signal
import rebeam, uvloop
from rebeam import Supervisor, child_options

async def lives():
    try:
        print("lives ready")
        await asyncio.sleep(3600)
    finally:
        await asyncio.sleep(0.01)
        print("lives ended")

async def serves():
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    print("serves ready")
    await stop.wait()
    print("serves closed")

def on_uvloop(program):
    uvloop.run(program())

tree = Supervisor([
    child_options(rebeam.function(on_uvloop, program), name=program.__name__) for program in (lives, serves)
])
"#,
    );
    let mut node = project.start(&["up", "app.py"]);
    node.wait_for(" ready");
    node.wait_for(" ready");
    assert_eq!(node.run(&["down"]).code, Some(0));
    let (_, output) = node.wait();
    assert!(output.contains("lives ended") && output.contains("serves closed"), "{output}");
    assert!(!output.contains("Traceback"), "{output}");
}

const SCRIPT: &str = r#"
import asyncio, multiprocessing, os, pickle, signal, sys, time
import rebeam

class Point:
    def __init__(self, x):
        self.x = x

class Keeper(rebeam.Actor):
    def init(self):
        print("the keeper is up")
        self.ref.cast(Keeper.end)

    def end(self):
        rebeam.shutdown()

def square(n):
    return n * n

def main(n, *, name):
    print(f"in {name}, {os.getcwd() == os.path.dirname(os.path.abspath(__file__))}")
    print("to stderr", file=sys.stderr)
    with rebeam.Executor(2) as pool:
        point = Point(sum(pool.map(square, range(n))))
    return point

def fails():
    raise KeyError("gone")

def exits():
    sys.exit(3)

def dies():
    os.kill(os.getpid(), signal.SIGKILL)

async def awaits(n):
    await asyncio.sleep(0)
    return n

def finds():
    return "argv", sys.argv[1:], "stdin", repr(sys.stdin.read())

def loads():
    with open("point", "rb") as file:
        return pickle.load(file).x

def spawns():
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.map(square, range(3))

def shares(shared):
    shared["key"] = 1
    return dict(shared)

def within():
    return rebeam.run(square, 5), rebeam.me().name

def waits():
    try:
        print("waits now", flush=True)
        time.sleep(3600)
    finally:
        open("cleaned", "w").close()

def outcome(function, *args):
    try:
        return rebeam.run(function, *args)
    except BaseException as error:
        return f"{type(error).__name__}: {error}"

if __name__ == "__main__":
    match sys.argv[1]:
        case "function":
            point = rebeam.run(main, 10, name="main")
            print(type(point) is Point, point.x)
            print("awaited", rebeam.run(awaits, 3))
            print(*rebeam.run(finds))
            with open("point", "wb") as file:
                pickle.dump(Point(2), file)
            print("found", rebeam.run(loads))
            print("spawned", rebeam.run(spawns))
            with multiprocessing.Manager() as manager:
                print("shared", rebeam.run(shares, manager.dict()))
            for function in (fails, exits, dies, within, lambda: 1):
                print("outcome", outcome(function))
        case "tree":
            rebeam.run(rebeam.Supervisor([rebeam.child(Keeper, name="keeper")]))
            print("after the tree")
        case "waits":
            rebeam.run(waits)
"#;

fn script(project: &Project, args: &[&str]) -> Command {
    let mut command = project.command_of(harness::python());
    command.arg("script.py").args(args).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

#[test]
fn an_ordinary_script_runs_a_function_as_an_actor_and_gets_what_came_of_it() {
    let project = Project::new("");
    project.write("script.py", SCRIPT);
    project.write("piped", "piped");
    let piped = std::fs::File::open(project.path().join("piped")).expect("it was written");
    let output = script(&project, &["function"]).stdin(piped).output().expect("it runs");
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let lines: Vec<&str> = stdout.lines().collect();
    let expected = [
        "in main, True",
        "True 285",
        "awaited 3",
        "argv ['function'] stdin 'piped'",
        "found 2",
        "spawned [0, 1, 4]",
        "shared {'key': 1}",
        "outcome KeyError: 'gone'",
        "outcome SystemExit: 3",
        "outcome RuntimeError: the process of `dies` died: signal(SIGKILL)",
        "outcome (25, 'main')",
    ];
    assert_eq!(lines[..11], expected, "{stdout}{stderr}");
    assert!(lines[11].starts_with("outcome Unpicklable: the function `<lambda>` cannot be sent"), "{stdout}");
    assert!(stderr.contains("to stderr") && stderr.contains("main | died: signal(SIGKILL)"), "{stderr}");
    project.assert_nothing_left();
}

#[test]
fn an_ordinary_script_runs_a_tree_and_goes_on_when_it_is_down() {
    let project = Project::new("");
    project.write("script.py", SCRIPT);
    let output = script(&project, &["tree"]).output().expect("it runs");
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(stdout.contains("the keeper is up") && stdout.ends_with("after the tree\n"), "{stdout}");
    assert_eq!(output.status.code(), Some(0));
    project.assert_nothing_left();
}

#[test]
fn what_a_script_runs_ends_with_it_however_it_ends() {
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGKILL] {
        let project = Project::new("");
        project.write("script.py", SCRIPT);
        let mut node = project.adopt(script(&project, &["waits"]).env("TMPDIR", project.path()));
        node.wait_for("waits now");
        node.signal(signal);
        let unwound = format!("the function to have unwound after {signal}");
        node.eventually(&unwound, |_| project.path().join("cleaned").exists().then_some(()));
        let (status, output) = node.wait();
        assert!(!status.success(), "{signal}: {output}");
        project.assert_nothing_left();
    }
}

#[test]
fn a_script_without_a_guard_is_told_what_to_write_instead_of_running_itself_again_and_again() {
    let project = Project::new("");
    project.write("script.py", "import rebeam\ndef f():\n    return 1\nprint('once')\nrebeam.run(f)\n");
    let output = script(&project, &[]).output().expect("it runs");
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    // Once by itself, and once as it is imported.
    assert!(stdout.lines().filter(|line| *line == "once").count() <= 2, "{stdout}");
    assert!(stderr.contains("put it under `if __name__ == \"__main__\":`"), "{stderr}");
    assert!(!output.status.success());
    project.assert_nothing_left();
}

#[test]
fn proxies_of_a_multiprocessing_manager_can_be_sent_to_any_actor_of_the_node() {
    let project = Project::new(
        r#"
import rebeam
from rebeam import Actor, Supervisor, child

class Holder(Actor):
    def init(self):
        import multiprocessing
        self.manager = multiprocessing.Manager()
        self.shared = self.manager.dict()

    def proxy(self):
        return self.shared

class User(Actor):
    def set(self, key):
        rebeam.ref(Holder, "holder").call(Holder.proxy)[key] = key
        return sorted(rebeam.ref(Holder, "holder").call(Holder.proxy).items())

def put(shared, n):
    shared[n] = n

class Pools(Actor):
    def run(self):
        shared = rebeam.ref(Holder, "holder").call(Holder.proxy)
        with rebeam.Executor(2) as pool:
            list(pool.map(put, [shared] * 3, range(3)))
        return len(shared)

tree = Supervisor([
    child(Holder, name="holder"),
    child(User, name="forked"),
    child(User, name="fresh", env={"ANYTHING": "1"}),
    child(Pools, name="pools"),
])
"#,
    );
    let node = project.up();
    assert_eq!(node.call("forked", "set", &["\"a\""]), serde_json::json!([["a", "a"]]));
    assert_eq!(node.call("fresh", "set", &["\"b\""]), serde_json::json!([["a", "a"], ["b", "b"]]));
    assert_eq!(node.call("pools", "run", &[]), serde_json::json!(5));
    node.down();
}

#[test]
fn a_function_of_a_script_may_end_itself_or_its_node_in_good_order() {
    let project = Project::new("");
    project.write(
        "script.py",
        "import rebeam\n\ndef stops():\n    raise rebeam.Stop()\n\ndef shuts_down():\n    rebeam.shutdown()\n    rebeam.receive(timeout=20)\n\n\
         if __name__ == '__main__':\n    print([rebeam.run(stops), rebeam.run(shuts_down)])\n",
    );
    let mut command = project.command_of(harness::python());
    command.arg("script.py").env("PYTHONPATH", harness::root().join("pylib/src"));
    let bin = harness::rebeam();
    command.env("PATH", format!("{}:/usr/bin:/bin", bin.parent().expect("a directory").display()));
    let ran = command.output().expect("it runs");
    assert_eq!(String::from_utf8_lossy(&ran.stdout).trim(), "[None, None]", "{}", String::from_utf8_lossy(&ran.stderr));
    project.assert_nothing_left();
}
