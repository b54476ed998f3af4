//! New code under actors that run: what moves, what is undone, and what harms nobody.

use std::os::unix::fs::symlink;
use std::process::Stdio;

use harness::{Node, Project};
use serde_json::json;

const MODELS: &str = "STEP = 1\n";

const APP: &str = r#"
import os
import time
import rebeam
from rebeam import Actor, Supervisor, child
import models

class Counter(Actor):
    def init(self):
        self.n = 0
    def incr(self):
        self.n += models.STEP
        return self.n
    def slow(self):
        time.sleep(1)
        return self.n
    def version(self):
        return rebeam.version()

tree = Supervisor([child(Counter, name="counter"), child("elsewhere" and __import__("elsewhere").Quiet, name="quiet")])
"#;

const ELSEWHERE: &str = r#"
from rebeam import Actor

class Quiet(Actor):
    def get(self):
        return "quiet"
"#;

/// A project of three modules: `quiet` runs code that `counter` does not.
fn project() -> Project {
    let project = Project::new(
        &APP.replace("\"elsewhere\" and __import__(\"elsewhere\")", "elsewhere")
            .replace("import models\n", "import elsewhere\nimport models\n"),
    );
    project.write("models.py", MODELS);
    project.write("elsewhere.py", ELSEWHERE);
    project
}

fn edit(project: &Project, name: &str, old: &str, new: &str) {
    let path = project.path().join(name);
    let text = std::fs::read_to_string(&path).expect("a file");
    assert!(text.contains(old), "`{old}` is not in {name}");
    project.write(name, &text.replace(old, new));
}

fn version_of(node: &Node<'_>, name: &str) -> i64 {
    node.ps(name)["version"].as_i64().expect("it runs")
}

#[test]
fn upg_003_a_saved_file_has_new_code_take_over_state_mail_and_nothing_else() {
    let project = project();
    let mut node = project.up();
    assert_eq!(node.call("counter", "incr", &[]), json!(1));
    let (pid, before) = (node.ps("counter")["pid"].clone(), node.ps("counter")["os_pid"].clone());
    let quiet = node.ps("quiet")["os_pid"].clone();
    project.write("models.py", "STEP = 10\n");
    let line = node.wait_for("reloaded to v2");
    assert!(line.contains("models.py; counter moved with state and mail (stood still for "), "{line}");
    assert_eq!(node.call("counter", "incr", &[]), json!(11));
    let counter = node.ps("counter");
    assert_eq!((&counter["pid"], &counter["version"], &counter["restarts"]), (&pid, &json!(2), &json!(0)));
    assert_ne!(counter["os_pid"], before);
    assert_eq!((node.ps("quiet")["os_pid"].clone(), version_of(&node, "quiet")), (quiet, 1));
    assert_eq!(node.call("counter", "version", &[]), json!(2));
    let tree = node.run(&["tree"]).stdout;
    assert!(tree.contains("counter (app.Counter) running") && tree.contains(", v2"), "{tree}");
    node.down();
    project.assert_nothing_left();
}

#[test]
fn two_saves_of_equal_length_are_two_versions() {
    let project = project();
    let mut node = project.up();
    let mut expected = 0;
    for (version, step) in (2..8).zip([3, 4, 5, 6, 7, 8]) {
        project.write("models.py", &format!("STEP = {step}\n"));
        node.wait_for(&format!("reloaded to v{version}"));
        expected += step;
        assert_eq!(node.call("counter", "incr", &[]), json!(expected));
    }
    node.down();
}

#[test]
fn code_that_cannot_be_loaded_is_shown_once_and_harms_nobody() {
    let project = project();
    let mut node = project.up();
    let before = node.ps("counter")["os_pid"].clone();
    let broken = [
        ("STEP = (\n", "SyntaxError"),
        ("import nothing_there\n", "No module named 'nothing_there'"),
        ("STEP = 1 / 0\n", "ZeroDivisionError"),
        ("import os\nos._exit(3)\n", "the interpreter ended while it imported the new code"),
        ("import app\nfrom app import tree\nSTEP = 2\n", "cannot import name 'tree'"),
    ];
    for (text, complaint) in broken {
        project.write("models.py", text);
        let line = node.wait_for("not reloaded, v1 goes on");
        if !line.contains(complaint) {
            node.wait_for(complaint);
        }
        assert_eq!(node.call("counter", "version", &[]), json!(1));
    }
    edit(&project, "app.py", "tree = Supervisor(", "tree = Supervisor(1, ");
    node.wait_for("not reloaded, v1 goes on");
    assert_eq!(node.ps("counter")["os_pid"], before);
    edit(&project, "app.py", "tree = Supervisor(1, ", "tree = Supervisor(");
    project.write("models.py", "STEP = 5\n");
    node.wait_for("reloaded to v2");
    assert_eq!(node.call("counter", "incr", &[]), json!(5));
    node.down();
}

/// An actor that is held over with `checkpoint`, and hooks.
const HOOKS: &str = r#"
import rebeam
from rebeam import Actor, Supervisor, child

class Held(Actor):
    def init(self, start):
        # in init
        self.n = start
    def before_move(self):
        # in before_move
        pass
    def checkpoint(self):
        # in checkpoint
        return self.n
    def code_change(self, old_version, state):
        # in code_change
        return state
    def restore(self, state):
        # in restore
        self.n = state
    def after_move(self, old_version):
        # in after_move
        pass
    def incr(self):
        self.n += 1
        return self.n

tree = Supervisor([child(Held, 100, name="held")])
"#;

fn raising(place: &str) -> String {
    HOOKS.replace(&format!("# in {place}"), &format!("raise ValueError('in {place}')"))
}

#[test]
fn upg_004_a_hook_of_new_code_that_raises_leaves_the_old_code_at_work() {
    let project = Project::new(HOOKS);
    let mut node = project.up();
    let mut count = 100;
    for (version, place) in (2..).step_by(2).zip(["init", "code_change", "restore", "after_move"]) {
        project.write("app.py", &raising(place));
        node.wait_for(&format!("reloaded to v{version} "));
        node.wait_for(&format!("ValueError: in {place}"));
        count += 1;
        assert_eq!(node.call("held", "incr", &[]), json!(count), "{place}");
        assert_eq!(node.ps("held")["restarts"], json!(0));
        project.write("app.py", HOOKS);
        node.wait_for(&format!("reloaded to v{} ", version + 1));
        count += 1;
        assert_eq!(node.call("held", "incr", &[]), json!(count), "{place}");
    }
    node.down();
}

#[test]
fn a_hook_of_the_old_code_that_raises_leaves_that_at_work() {
    for place in ["before_move", "checkpoint"] {
        let project = Project::new(&raising(place));
        let mut node = project.up();
        project.write("app.py", HOOKS);
        node.wait_for("`rebeam restart held` starts it over with the new code");
        node.wait_for(&format!("ValueError: in {place}"));
        assert_eq!(node.call("held", "incr", &[]), json!(101));
        node.run(&["restart", "held"]);
        assert_eq!(node.ps("held")["version"], json!(2));
        node.down();
    }
}

#[test]
fn new_code_that_dies_soon_is_undone_with_the_state_before_and_is_not_tried_again_by_itself() {
    let project = project();
    let mut node = project.up();
    for _ in 0..3 {
        node.call("counter", "incr", &[]);
    }
    project.write("models.py", "STEP = 'x'\n");
    node.wait_for("reloaded to v2");
    node.run(&["call", "counter", "incr"]).assert_error(1, &["TypeError"]);
    node.wait_for("it goes on with v1 and the state that it had then");
    // The file on the disk is another by now, and the old code is not there any more.
    assert_eq!(node.call("counter", "incr", &[]), json!(4));
    assert_eq!(version_of(&node, "counter"), 1);
    let why = node.run(&["why", "counter", "--json"]).json();
    assert_eq!(
        (&why[0]["version"], &why[0]["next"]),
        (&json!(2), &json!({"undone": {"version": 1, "lost": 0, "state": true}}))
    );
    // The same once more: saved with other code between, and again.
    project.write("models.py", "STEP = 2\n");
    node.wait_for("reloaded to v3");
    project.write("models.py", "STEP = 'x'\n");
    node.wait_for("counter not moved: this code of `app.Counter` has failed before");
    assert_eq!(node.call("counter", "incr", &[]), json!(6));
    let asked = node.run(&["reload"]).stdout;
    assert!(asked.starts_with("reloaded to v5: counter moved") && !asked.contains("quiet"), "{asked}");
    node.down();
}

/// Two actors whose code is in modules of their own.
fn two_modules() -> Project {
    let project = Project::new(
        r#"
import a, b
from rebeam import Supervisor, child

tree = Supervisor([child(a.A, name="a"), child(b.B, name="b")])
"#,
    );
    let source = |class: &str| {
        format!(
            "from rebeam import Actor\n\nclass {class}(Actor):\n    def init(self):\n        self.n = 0\n    def incr(self):\n        self.n += 1\n        return self.n\n"
        )
    };
    project.write("a.py", &source("A"));
    project.write("b.py", &source("B"));
    project
}

#[test]
fn bad_code_of_one_class_is_no_matter_of_another() {
    let project = two_modules();
    let mut node = project.up();
    edit(&project, "a.py", "return self.n", "raise ValueError(self.n)");
    node.wait_for("reloaded to v2");
    node.run(&["call", "a", "incr"]).assert_error(1, &["ValueError"]);
    node.wait_for("it goes on with v1");
    // Whatever else is saved, the class stays with what works, also when it starts again.
    edit(&project, "b.py", "return self.n", "return 10 * self.n");
    let line = node.wait_for("reloaded to v3");
    assert!(line.contains("b.py; b moved"), "{line}");
    harness::kill(node.os_pid_of("a"), nix::sys::signal::Signal::SIGKILL);
    node.eventually("it is back", |node| (node.ps("a")["restarts"] == json!(1)).then_some(()));
    assert_eq!((node.call("a", "incr", &[]), node.call("b", "incr", &[])), (json!(1), json!(10)));
    // Whoever asks for the bad code gets that, for this class.
    let asked = node.run(&["reload"]).stdout;
    assert!(asked.starts_with("reloaded to v4: a moved with state and mail ("), "{asked}");
    assert_eq!(node.run(&["reload"]).stdout, "no code has changed\n");
    node.down();
}

#[test]
fn a_fix_is_taken_though_the_code_before_has_not_failed_yet() {
    let project = two_modules();
    edit(
        &project,
        "a.py",
        "    def incr",
        "    def slowly(self):\n        import time\n        time.sleep(1)\n        return 0\n    def incr",
    );
    let mut node = project.up();
    edit(&project, "a.py", "        return 0", "        raise ValueError(0)");
    node.wait_for("reloaded to v2");
    let waits = std::thread::scope(|scope| {
        let called = scope.spawn(|| project.run(&["call", "a", "slowly"]));
        node.eventually("it has begun", |node| node.ps("a")["busy"].is_object().then_some(()));
        edit(&project, "a.py", "        raise ValueError(0)", "        return 7");
        called.join().expect("a call")
    });
    waits.assert_error(1, &["ValueError"]);
    let line = node.wait_for("reloaded to v3");
    assert!(line.contains("a moved with state and mail"), "{line}");
    assert_eq!(node.call("a", "slowly", &[]), json!(7));
    node.down();
}

#[test]
fn what_does_not_move_is_named_and_starts_over_with_its_mail() {
    let project = Project::new(
        r#"
import threading
import rebeam
from rebeam import Actor, Supervisor, child

class Locked(Actor):
    def init(self):
        self.made = {"deep": [threading.Lock()]}
        self.n = 0
    def incr(self):
        self.n += 1
        return self.n

class Threaded(Actor):
    def init(self):
        threading.Thread(target=threading.Event().wait, name="my-thread", daemon=True).start()

class Asks(Actor, reload="restart"):
    def init(self):
        self.n = 0
    def incr(self):
        self.n += 1
        return self.n

class Stays(Actor, reload="never"):
    def version(self):
        return rebeam.version()

def work():
    while True:
        rebeam.receive()

tree = Supervisor([
    child(Locked, name="locked"), child(Threaded, name="threaded"), child(Asks, name="asks"),
    child(Stays, name="stays"), rebeam.function(work),
])
"#,
    );
    let mut node = project.up();
    for name in ["locked", "asks"] {
        node.call(name, "incr", &[]);
    }
    edit(&project, "app.py", "def work", "# new\ndef work");
    let line = node.wait_for("reloaded to v2");
    assert!(line.contains("asks, locked, threaded, work started over") && line.contains("stays not moved"), "{line}");
    node.wait_for("stays not moved: `reload=\"never\"`");
    node.wait_for("locked started over without its state: `self.made['deep'][0]` cannot be moved: _thread.lock");
    node.wait_for("threaded started over without its state: it has threads of its own: my-thread");
    for name in ["locked", "asks"] {
        assert_eq!(node.call(name, "incr", &[]), json!(1));
        assert_eq!(node.ps(name)["restarts"], json!(0));
    }
    assert_eq!(node.call("stays", "version", &[]), json!(1));
    node.down();
}

#[test]
fn what_two_processes_cannot_hold_is_let_go_and_opened_again() {
    let project = Project::new(
        r#"
import fcntl
import socket
import sqlite3
from rebeam import Actor, Supervisor, child

class Holder(Actor):
    def init(self):
        self.open(0)
        self.db.execute("create table t (n)")
    def open(self, port):
        self.socket = socket.create_server(("127.0.0.1", port))
        self.port = self.socket.getsockname()[1]
        self.lock = open("lock", "w")
        fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self.db = sqlite3.connect("db", isolation_level=None)
    def before_move(self):
        self.socket.close()
        self.lock.close()
        self.db.close()
        del self.socket, self.lock, self.db
    def after_move(self, old_version):
        self.open(self.port)
    def work(self):
        self.db.execute("insert into t values (1)")
        rows = self.db.execute("select count(*) from t").fetchone()[0]
        return [self.port, rows, "first"]

tree = Supervisor([child(Holder, name="holder")])
"#,
    );
    let mut node = project.up();
    let before = node.call("holder", "work", &[]);
    edit(&project, "app.py", "\"first\"", "\"second\"");
    node.wait_for("holder moved with state and mail");
    assert_eq!(node.call("holder", "work", &[]), json!([before[0], 2, "second"]));
    // Whoever fails to take over lets the old one open them again.
    edit(&project, "app.py", "self.open(self.port)", "1 / 0");
    node.wait_for("holder not moved, since code has failed");
    assert_eq!(node.call("holder", "work", &[]), json!([before[0], 3, "second"]));
    node.down();
}

#[test]
fn children_come_go_and_change_with_the_tree() {
    let project = Project::new(
        r#"
from rebeam import Actor, Supervisor, child

class A(Actor):
    def init(self, number=0):
        self.number = number
    def get(self):
        return self.number
    def set(self, number):
        self.number = number

tree = Supervisor([child(A, name="same"), child(A, 1, name="other"), child(A, name="gone")])
"#,
    );
    let mut node = project.up();
    for name in ["same", "other"] {
        node.call(name, "set", &["7"]);
    }
    edit(
        &project,
        "app.py",
        "child(A, 1, name=\"other\"), child(A, name=\"gone\")",
        "child(A, 2, name=\"other\"), child(A, 3, name=\"new\")",
    );
    let line = node.wait_for("reloaded to v2");
    for said in ["same moved", "new added", "gone removed", "other restarted with new options"] {
        assert!(line.contains(said), "{line}");
    }
    assert_eq!(["same", "other", "new"].map(|name| node.call(name, "get", &[])), [json!(7), json!(2), json!(3)]);
    node.run(&["call", "gone", "get"]).assert_error(1, &["gone"]);
    assert_eq!(node.ps("other")["restarts"], json!(0));
    node.down();
}

#[test]
fn every_process_imports_from_the_snapshot_of_its_version() {
    let project = project();
    edit(
        &project,
        "app.py",
        "child(Counter, name=\"counter\")",
        "child(Counter, name=\"counter\"), child(Counter, name=\"fresh\", env={\"A\": \"1\"})",
    );
    edit(
        &project,
        "app.py",
        "    def version(self):",
        "    def lazily(self):\n        import lazy\n        return lazy.VALUE\n    def version(self):",
    );
    project.write("lazy.py", "VALUE = 'v1'\n");
    // New code has proved itself at once, so that a kill is an ordinary death.
    project.write("rebeam.toml", "probation = { seconds = 0 }\n");
    let mut node = project.up();
    project.write("lazy.py", "VALUE = 'v2'\n");
    let line = node.wait_for("reloaded to v2");
    assert!(line.contains("lazy.py; counter, fresh moved"), "{line}");
    project.write("models.py", "STEP = 2\n");
    node.wait_for("reloaded to v3");
    // What is on the disk is broken, and then gone.
    project.write("app.py", "1 / 0\n");
    node.wait_for("not reloaded, v3 goes on");
    std::fs::remove_file(project.path().join("lazy.py")).expect("a file");
    for name in ["counter", "fresh"] {
        assert_eq!(node.call(name, "lazily", &[]), json!("v2"), "{name}");
        assert_eq!(node.call(name, "incr", &[]), json!(2));
        harness::kill(node.os_pid_of(name), nix::sys::signal::Signal::SIGKILL);
        node.eventually("it is back", |node| (node.ps(name)["restarts"] == json!(1)).then_some(()));
        assert_eq!(node.call(name, "lazily", &[]), json!("v2"), "{name}");
    }
    // The zygote of the version, too.
    harness::kill(node.zygote(), nix::sys::signal::Signal::SIGKILL);
    node.wait_for("the zygote died; it is started again");
    node.run(&["restart", "counter"]);
    assert_eq!(node.call("counter", "incr", &[]), json!(2));
    node.down();
}

#[test]
fn a_reload_may_be_switched_off_and_asked_for_by_hand() {
    for arguments in [&["up", "app.py", "--no-reload"][..], &["run", "app.py"]] {
        let project = project();
        let node = project.up_with(arguments);
        assert_eq!(node.run(&["reload"]).stdout, "no code has changed\n");
        project.write("models.py", "STEP = 4\n");
        let ran = node.run(&["reload"]);
        assert_eq!(ran.code, Some(0), "{ran:?}");
        assert!(ran.stdout.starts_with("reloaded to v2: counter moved with state and mail"), "{ran:?}");
        assert_eq!(node.call("counter", "incr", &[]), json!(4));
        project.write("models.py", "STEP = (\n");
        node.run(&["reload"]).assert_error(1, &["not reloaded, the old code goes on", "SyntaxError"]);
        project.write("models.py", "STEP = 5\n");
        let ran = node.run(&["reload", "--json"]).json();
        assert_eq!((&ran["version"], &ran["changes"][0]["fate"]), (&json!(3), &json!("moved")));
        node.down();
        project.assert_nothing_left();
    }
}

#[test]
fn files_that_are_no_modules_may_be_watched_and_what_the_application_writes_is_no_loop() {
    let project = project();
    project.write("rebeam.toml", "app = \"app.py\"\nwatch = [\"*.html\"]\n");
    std::fs::create_dir(project.path().join("templates")).expect("a directory");
    project.write("templates/page.html", "one");
    let mut node = project.up();
    project.write("templates/page.html", "two");
    let line = node.wait_for("reloaded to v2");
    assert!(line.contains("templates/page.html; counter, quiet moved"), "{line}");
    // One that is written whenever the application is imported.
    edit(
        &project,
        "app.py",
        "import os\n",
        "import os, time\nopen('templates/own.html', 'w').write(str(time.time()))\n",
    );
    node.wait_for("`templates/own.html` changes again and again: it is reloaded once it has not changed for 5.0 s");
    project.write("models.py", "STEP = 6\n");
    node.wait_for("models.py");
    assert_eq!(node.call("counter", "incr", &[]), json!(6));
    node.down();
}

#[test]
fn imports_that_take_most_of_a_reload_are_named() {
    let project = project();
    edit(&project, "app.py", "import os\n", "import os\nimport slow_library\n");
    // Beside the project's modules, and none of them.
    let directory = project.path().join("lib/site-packages/slow_library");
    std::fs::create_dir_all(&directory).expect("a directory");
    project.write("lib/site-packages/slow_library/__init__.py", "import time\ntime.sleep(0.2)\n");
    let path = project.path().join("lib/site-packages");
    let start = |project: &Project| {
        let mut command = project.command(&["up", "app.py"]);
        command.env("PYTHONPATH", &path).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    };
    let mut node = project.adopt(&mut start(&project));
    node.wait_for("up with 2 actors");
    project.write("models.py", "STEP = 2\n");
    let line = node.wait_for("hint: `preload = [\"slow_library\"]` in the project's file saves 2");
    assert!(line.ends_with(" ms of every reload"), "{line}");
    node.wait_for("reloaded to v2");
    node.down();
    project.write("rebeam.toml", "preload = [\"slow_library\"]\n");
    let mut node = project.adopt(&mut start(&project));
    node.wait_for("up with 2 actors");
    project.write("models.py", "STEP = 3\n");
    node.wait_for("reloaded to v2");
    assert_eq!(node.call("counter", "incr", &[]), json!(3));
    node.down();
}

#[test]
fn polling_does_where_the_system_tells_nothing() {
    let project = project();
    project.write("rebeam.toml", "app = \"app.py\"\nreload = \"poll\"\n");
    let mut node = project.up();
    project.write("models.py", "STEP = 9\n");
    node.wait_for("reloaded to v2");
    assert_eq!(node.call("counter", "incr", &[]), json!(9));
    node.down();
}

/// Starts a node of a user who may have that much of inotify; `None` where this machine has no user namespaces.
fn limited<'a>(project: &'a Project, limit: &str) -> Option<Node<'a>> {
    let in_a_namespace = |script: &str| {
        let mut command = project.command_of("unshare");
        command.args(["--user", "--map-root-user", "sh", "-c", &format!("{limit} && {script}")]).arg(harness::rebeam());
        command
    };
    if !in_a_namespace("true").output().ok()?.status.success() {
        crate::not_tested("limits of inotify");
        return None;
    }
    let mut command = in_a_namespace("exec \"$0\" up app.py");
    Some(project.adopt(command.env_remove("REBEAM_NO_RELOAD").stdout(Stdio::piped()).stderr(Stdio::piped())))
}

#[test]
fn where_the_system_watches_no_more_it_is_said_and_reloads_by_hand_work() {
    let limits = [
        ("echo 2 > /proc/sys/user/max_inotify_watches", "no more directories", "fs.inotify.max_user_watches"),
        ("echo 0 > /proc/sys/user/max_inotify_instances", "too many watchers", "fs.inotify.max_user_instances"),
    ];
    for (limit, complaint, hint) in limits {
        let project = project();
        project.write("rebeam.toml", "app = \"app.py\"\nwatch = [\"*.html\"]\n");
        for name in ["a", "b", "c"] {
            std::fs::create_dir_all(project.path().join("templates").join(name)).expect("a directory");
        }
        let Some(mut node) = limited(&project, limit) else { return };
        node.wait_for(complaint);
        node.wait_for(hint);
        node.wait_for("up with");
        project.write("models.py", "STEP = 5\n");
        // Where one directory is watched, that alone may have had it reloaded.
        let reloaded = node.run(&["reload"]);
        assert_eq!(reloaded.code, Some(0), "{reloaded:?}");
        node.wait_for("reloaded to v2");
        assert_eq!(node.call("counter", "incr", &[]), json!(5));
        node.down();
    }
}

#[test]
fn slow_new_code_lets_the_old_serve_and_gives_way_to_a_second_save() {
    let project = project();
    let mut node = project.up();
    project.write("models.py", "import time\nprint('slowly', flush=True)\ntime.sleep(600)\n");
    node.wait_for("slowly");
    assert_eq!(node.call("counter", "incr", &[]), json!(1));
    project.write("models.py", "STEP = 7\n");
    node.wait_for("reloaded to v2");
    assert_eq!(node.call("counter", "incr", &[]), json!(8));
    // An order to stop does not wait for it either.
    project.write("models.py", "import time\nprint('slowly', flush=True)\ntime.sleep(600)\n");
    node.wait_for("slowly");
    node.down();
    project.assert_nothing_left();
}

#[test]
fn modules_come_go_and_change_their_sort() {
    let project = project();
    let mut node = project.up();
    // A module becomes a package, and a package a module.
    std::fs::remove_file(project.path().join("models.py")).expect("a file");
    std::fs::create_dir(project.path().join("models")).expect("a directory");
    project.write("models/__init__.py", "from models.steps import STEP\n");
    project.write("models/steps.py", "STEP = 2\n");
    node.wait_for("reloaded to v2");
    assert_eq!(node.call("counter", "incr", &[]), json!(2));
    project.write("models/steps.py", "STEP = 3\n");
    node.wait_for("reloaded to v3");
    assert_eq!(node.call("counter", "incr", &[]), json!(5));
    std::fs::remove_dir_all(project.path().join("models")).expect("a directory");
    node.wait_for("not reloaded, v3 goes on");
    project.write("models.py", "STEP = 4\n");
    node.wait_for("reloaded to v4");
    assert_eq!(node.call("counter", "incr", &[]), json!(9));
    // A class by another name, with nobody to take over from the old one.
    edit(&project, "app.py", "class Counter", "class Renamed");
    edit(&project, "app.py", "child(Counter, name=\"counter\")", "child(Renamed, name=\"counter\")");
    node.eventually("it is another class", |node| (node.ps("counter")["class"] == "app.Renamed").then_some(()));
    assert_eq!(node.call("counter", "incr", &[]), json!(4));
    node.down();
}

#[test]
fn a_module_that_was_missing_may_come_while_the_import_fails_or_later_and_in_a_new_directory() {
    let project = project();
    let mut node = project.up();
    project.write(
        "models.py",
        "import pathlib, time\ntry:\n    from late import STEP\nexcept ImportError:\n    \
         pathlib.Path('failing').touch()\n    while not pathlib.Path('go').exists():\n        time.sleep(0.01)\n    raise\n",
    );
    node.eventually("the import is about to fail", |_| project.path().join("failing").exists().then_some(()));
    project.write("late.py", "STEP = 2\n");
    // A name that is not a module's is not watched.
    project.write("go", "");
    node.wait_for("not reloaded, v1 goes on");
    node.wait_for("reloaded to v2");
    assert_eq!(node.call("counter", "incr", &[]), json!(2));
    project.write("models.py", "from package.below.inner import STEP\n");
    node.wait_for("No module named 'package'");
    std::fs::create_dir_all(project.path().join("package/below")).expect("directories");
    project.write("package/__init__.py", "");
    project.write("package/below/inner.py", "STEP = 3\n");
    node.wait_for("reloaded to v3");
    assert_eq!(node.call("counter", "incr", &[]), json!(5));
    node.down();
}

#[test]
fn a_project_behind_a_symbolic_link_is_watched() {
    let project = project();
    let real = project.path().join("real");
    std::fs::create_dir(&real).expect("a directory");
    for name in ["app.py", "models.py", "elsewhere.py"] {
        std::fs::rename(project.path().join(name), real.join(name)).expect("a file");
        symlink(real.join(name), project.path().join(name)).expect("a link");
    }
    let mut node = project.up();
    project.write("real/models.py", "STEP = 8\n");
    node.wait_for("reloaded to v2");
    assert_eq!(node.call("counter", "incr", &[]), json!(8));
    node.down();
}

#[test]
fn asynchronous_handlers_finish_or_are_cancelled_and_streams_end_with_an_error() {
    let project = Project::new(
        r#"
import asyncio
import rebeam
from rebeam import Actor, Supervisor, child

class Async(Actor):
    async def init(self):
        self.n = 0
        self.told = []
        # The thread that this makes waits for more.
        await asyncio.to_thread(len, "")
    def handle_info(self, message):
        self.told.append(repr(message))
    def get_told(self):
        return self.told
    async def brief(self):
        await asyncio.sleep(0.3)
        self.n += 1
        return self.n
    async def long(self):
        await asyncio.sleep(600)
    def values(self):
        for number in range(1000000):
            yield number

class Caller(Actor):
    def init(self):
        self.log = []
    async def call(self, method):
        try:
            self.log.append(await rebeam.ref(Async, "async").acall(getattr(Async, method)))
        except Exception as error:
            self.log.append(type(error).__name__)
    async def stream(self):
        try:
            async for value in rebeam.ref(Async, "async").stream(Async.values):
                if value == 0:
                    self.log.append("streaming")
                await asyncio.sleep(0.01)
        except Exception as error:
            self.log.append(f"{type(error).__name__}: {error}")
    async def get(self):
        return self.log

tree = Supervisor([child(Async, name="async"), child(Caller, name="caller", reload="never")])
"#,
    );
    let mut node = project.up();
    for (method, arguments) in [("stream", &[][..]), ("call", &["\"brief\""]), ("call", &["\"long\""])] {
        node.run(&[&["cast", "caller", method], arguments].concat());
    }
    node.eventually("it streams", |node| (node.call("caller", "get", &[]) == json!(["streaming"])).then_some(()));
    edit(&project, "app.py", "self.n += 1", "self.n += 10");
    node.wait_for("async moved with state and mail");
    let log = node.eventually("all have ended", |node| {
        let log = node.call("caller", "get", &[]);
        (log.as_array().map(Vec::len) == Some(4)).then_some(log)
    });
    let log: Vec<&str> = log.as_array().expect("a list").iter().filter_map(|it| it.as_str()).collect();
    assert!(log.contains(&"Restarting"), "{log:?}");
    assert!(log.iter().any(|it| it.contains("stream")), "{log:?}");
    assert_eq!(node.call("async", "brief", &[]), json!(11));
    // Nobody is told of the end of whoever read the stream.
    node.run(&["stop", "caller"]);
    assert_eq!(node.call("async", "get_told", &[]), json!([]));
    node.down();
}

#[test]
fn a_caller_whose_handler_was_cancelled_is_told_though_the_move_fails() {
    let project = Project::new(
        r#"
import asyncio
from rebeam import Actor, Supervisor, child

class Async(Actor):
    async def long(self):
        await asyncio.sleep(600)
    async def get(self):
        return 1
    async def before_move(self):
        1 / 0

tree = Supervisor([child(Async, name="async")])
"#,
    );
    let mut node = project.up();
    node.run(&["cast", "async", "long"]);
    let called = std::thread::scope(|scope| {
        let called = scope.spawn(|| project.run(&["call", "async", "long", "--timeout", "30"]));
        node.eventually("both have begun", |node| node.ps("async")["busy"].is_object().then_some(()));
        edit(&project, "app.py", "return 1", "return 2");
        called.join().expect("a call")
    });
    called.assert_error(1, &["is being restarted"]);
    node.wait_for("`long` was cancelled: it had not ended when the actor was to move to new code");
    node.wait_for("ZeroDivisionError");
    assert_eq!(node.call("async", "get", &[]), json!(1));
    assert!(node.ps("async")["busy"].is_null());
    node.down();
}

#[test]
fn idle_times_and_what_is_finalized_go_along() {
    let project = Project::new(
        r#"
import os
import tempfile
import rebeam
from rebeam import Actor, Supervisor, child

class Idles(Actor):
    def init(self):
        self.told = 0
        self.directory = tempfile.TemporaryDirectory()
        rebeam.idle(1.5)
    def handle_info(self, message):
        self.told += 1
        open(f"told-{rebeam.me().name}", "w").write(f"{rebeam.version()} {os.path.isdir(self.directory.name)}")

class Overlaps(Idles):
    async def overlap(self):
        pass

tree = Supervisor([child(Idles, name="plain"), child(Overlaps, name="overlaps")])
"#,
    );
    let mut node = project.up();
    edit(&project, "app.py", "self.told += 1", "self.told += 2");
    node.wait_for("overlaps, plain moved with state and mail");
    for name in ["plain", "overlaps"] {
        let told = node.eventually("it is told", |_| {
            let told = std::fs::read_to_string(project.path().join(format!("told-{name}"))).ok()?;
            (!told.is_empty()).then_some(told)
        });
        assert_eq!(told, "2 True", "{name}");
    }
    node.down();
}

#[test]
fn a_child_that_is_new_and_does_not_start_is_started_once_its_code_is_mended() {
    let project = two_modules();
    let mut node = project.up();
    project.write("c.py", "from rebeam import Actor\n\nclass C(Actor):\n    def init(self):\n        1 / 0\n    def get(self):\n        return 3\n");
    edit(&project, "app.py", "import a, b", "import a, b, c");
    edit(&project, "app.py", "child(b.B, name=\"b\")", "child(b.B, name=\"b\"), child(c.C, name=\"c\")");
    node.wait_for("c did not start");
    node.wait_for("line 5, in init");
    assert_eq!(node.ps("c")["state"], json!("stopped"));
    edit(&project, "c.py", "1 / 0", "pass");
    node.wait_for("c added");
    assert_eq!(node.call("c", "get", &[]), json!(3));
    node.down();
}

#[test]
fn options_that_follow_from_the_code_are_taken_with_a_move() {
    let project = two_modules();
    let mut node = project.up();
    node.call("a", "incr", &[]);
    // The first handler that overlaps, a deadline, a checkpoint: each is an option of the actor.
    edit(&project, "a.py", "from rebeam import Actor", "import rebeam\nfrom rebeam import Actor");
    node.wait_for("a moved with state");
    edit(
        &project,
        "a.py",
        "    def incr",
        "    async def overlap(self):\n        pass\n    @rebeam.deadline(3)\n    def incr",
    );
    node.wait_for("a moved with state");
    let hooks = "    def checkpoint(self):\n        return self.n\n    def restore(self, n):\n        self.n = n\n";
    edit(&project, "a.py", "    async def overlap", &format!("{hooks}    async def overlap"));
    node.wait_for("a moved with state");
    edit(&project, "app.py", "child(a.A,", "child(a.A, max_messages=100,");
    node.wait_for("a moved with state");
    assert_eq!(node.call("a", "incr", &[]), json!(2));
    // A `checkpoint` that nobody takes is not lost without a word.
    edit(&project, "a.py", hooks, "");
    node.wait_for("`A` has no `restore` for what `checkpoint` of the code before has returned");
    assert_eq!(node.call("a", "incr", &[]), json!(3));
    node.down();
}

#[test]
fn arguments_that_fail_are_said_to_and_tried_again_when_somebody_asks() {
    let project = two_modules();
    edit(&project, "a.py", "    def init(self):", "    def init(self, divisor=1):\n        1 / divisor");
    let mut node = project.up();
    edit(&project, "app.py", "child(a.A,", "child(a.A, 0,");
    node.wait_for("it starts over, as it was declared and with what v2 has");
    node.wait_for("ZeroDivisionError");
    edit(&project, "b.py", "return self.n", "return 10 * self.n");
    let line = node.wait_for("reloaded to v3");
    assert!(line.contains("b moved") && !line.contains("a "), "{line}");
    node.run(&["reload"]).assert_error(1, &["ZeroDivisionError"]);
    edit(&project, "app.py", "child(a.A, 0,", "child(a.A, 2,");
    node.wait_for("a restarted with new options");
    node.down();
}

#[test]
fn modules_that_come_and_changes_of_other_files_are_not_forgotten() {
    let project = two_modules();
    project.write("rebeam.toml", "app = \"app.py\"\nwatch = [\"*.txt\"]\n");
    project.write("data.txt", "1");
    edit(
        &project,
        "a.py",
        "    def incr",
        "    def late(self):\n        import late\n        return late.VALUE\n    def incr",
    );
    let mut node = project.up();
    project.write("late.py", "VALUE = 1\n");
    let line = node.wait_for("reloaded to v2");
    assert!(line.contains("late.py; a moved"), "{line}");
    assert_eq!(node.call("a", "late", &[]), json!(1));
    // A file that is watched changes while the code is broken.
    edit(&project, "b.py", "return self.n", "return self.n +");
    node.wait_for("not reloaded, v2 goes on");
    project.write("data.txt", "2");
    node.wait_for("not reloaded, v2 goes on");
    edit(&project, "b.py", "return self.n +", "return self.n");
    let line = node.wait_for("reloaded to v3");
    assert!(line.contains("data.txt; a, b moved"), "{line}");
    node.down();
}

#[test]
fn a_tree_that_is_made_of_something_else_is_compared_when_somebody_asks() {
    let project = Project::new(
        r#"
from rebeam import Actor, Supervisor, child

class A(Actor):
    pass

def tree():
    return Supervisor([child(A, name=name) for name in open("names").read().split()])
"#,
    );
    project.write("names", "one");
    let node = project.up();
    project.write("names", "one two");
    let asked = node.run(&["reload"]).stdout;
    assert!(asked.contains("two added"), "{asked}");
    assert_eq!(node.run(&["reload"]).stdout, "no code has changed\n");
    node.down();
}

#[test]
fn a_directory_that_is_replaced_by_another_is_watched_on() {
    let project = Project::new(
        &APP.replace("import models", "from package import models")
            .replace(", child(\"elsewhere\" and __import__(\"elsewhere\").Quiet, name=\"quiet\")", ""),
    );
    let package = |name: &str, step: u32| {
        std::fs::create_dir(project.path().join(name)).expect("a directory");
        project.write(&format!("{name}/__init__.py"), "");
        project.write(&format!("{name}/models.py"), &format!("STEP = {step}\n"));
    };
    package("package", 1);
    package("other", 2);
    let mut node = project.up();
    let rename =
        |from: &str, to: &str| std::fs::rename(project.path().join(from), project.path().join(to)).expect("a rename");
    rename("package", "old");
    rename("other", "package");
    node.wait_for("reloaded to v2");
    assert_eq!(node.call("counter", "incr", &[]), json!(2));
    project.write("package/models.py", "STEP = 3\n");
    node.wait_for("reloaded to v3");
    assert_eq!(node.call("counter", "incr", &[]), json!(5));
    node.down();
}

#[test]
fn it_is_said_for_whom_a_reload_waits_and_a_second_one_is_answered_for_itself() {
    let project = project();
    edit(&project, "app.py", "time.sleep(1)", "time.sleep(3)");
    let mut node = project.up();
    node.run(&["cast", "counter", "slow"]);
    node.eventually("it has begun", |node| node.ps("counter")["busy"].is_object().then_some(()));
    project.write("models.py", "STEP = 7\n");
    node.wait_for("v2 is loaded; not moved yet: counter");
    edit(&project, "elsewhere.py", "\"quiet\"", "\"loud\"");
    let asked = node.run(&["reload"]).stdout;
    assert!(asked.starts_with("reloaded to v3: counter, quiet moved"), "{asked}");
    let line = node.wait_for("reloaded to v3");
    assert!(line.contains("elsewhere.py, models.py"), "{line}");
    node.down();
}

/// Where a process is killed, and which: the old one before it gives its state, the new one before it serves, the old one
/// while that waits, the new one on probation, the zygote.
const STEPS: [&str; 9] =
    ["before_move", "checkpoint", "init", "code_change", "restore", "giver", "after_move", "probation", "zygote"];

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// The next of a row of numbers that a seed makes (SplitMix64).
fn next(seed: &mut u64) -> u64 {
    *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = *seed;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

fn fixture(name: &str) -> String {
    std::fs::read_to_string(harness::root().join("integration-tests/fixtures").join(name)).expect("it is there")
}

/// Four senders, calls and casts in turn, and a kill in a step of each second reload. Gives how often each step was hit.
fn under_load(seed: u64, reloads: u64, messages: u64) -> [u32; STEPS.len()] {
    let project = Project::new(&fixture("reload.py"));
    project.write("senders.py", &fixture("senders.py"));
    project.write("version.py", "VERSION = 1\n");
    let mut node = project.up();
    let mut chance = seed;
    let mut hits = [0; STEPS.len()];
    let count = (messages / 4).to_string();
    std::thread::scope(|scope| {
        let senders: Vec<_> = (0..4)
            .map(|number| {
                let (project, count) = (&project, &count);
                scope.spawn(move || {
                    let (sender, name) = (format!("sender{number}"), format!("\"{number}\""));
                    let ran = project.run(&["call", "--json", "--timeout", "600", &sender, "run", &name, count]);
                    assert_eq!(ran.code, Some(0), "seed {seed}: {ran:?}");
                    assert_eq!(ran.json(), json!([]), "seed {seed}");
                })
            })
            .collect();
        for version in 2..reloads + 2 {
            // Each step has its turn, from one on that the seed says.
            let step = ((version / 2 + chance) % STEPS.len() as u64) as usize;
            let kills = version % 2 == 0;
            let mark = project.path().join(format!("kill-{}", STEPS[step]));
            if kills && STEPS[step] == "zygote" {
                harness::kill(node.zygote(), nix::sys::signal::Signal::SIGKILL);
                hits[step] += 1;
            } else if kills {
                std::fs::write(&mark, "").expect("a mark");
            }
            // A chance of its own for how far the senders get meanwhile.
            std::thread::sleep(std::time::Duration::from_millis(next(&mut chance) % 20));
            chance = seed;
            project.write("version.py", &format!("VERSION = {version}\n"));
            node.wait_for(&format!("reloaded to v{version} "));
            if kills && STEPS[step] != "zygote" {
                node.eventually(&format!("seed {seed}: {} is hit", STEPS[step]), |_| (!mark.exists()).then_some(()));
                hits[step] += 1;
            }
        }
        for sender in senders {
            sender.join().expect("it sends");
        }
    });
    // What was cast last may still wait.
    let record = node.eventually("all is handled", |node| {
        let record = std::fs::read_to_string(node.project.path().join("record")).unwrap_or_default();
        (record.lines().count() as u64 >= messages / 4 * 4).then_some(record)
    });
    for sender in 0..4 {
        let prefix = format!("{sender} ");
        let numbers: Vec<u64> = record
            .lines()
            .filter_map(|line| line.strip_prefix(&prefix))
            .map(|it| it.parse().expect("a number"))
            .collect();
        assert_eq!(numbers, (0..messages / 4).collect::<Vec<u64>>(), "seed {seed}: lost, twice or out of order");
    }
    node.down();
    project.assert_nothing_left();
    hits
}

#[test]
fn nothing_is_lost_or_doubled_under_load_whichever_step_of_a_reload_is_killed() {
    let (seeds, reloads) = (number("REBEAM_RELOAD_SEEDS", 1), number("REBEAM_RELOADS", 20));
    let messages = number("REBEAM_RELOAD_MESSAGES", 4000);
    let first = number("REBEAM_RELOAD_SEED", 1);
    let mut hits = [0; STEPS.len()];
    for seed in first..first + seeds {
        for (all, hit) in hits.iter_mut().zip(under_load(seed, reloads, messages)) {
            *all += hit;
        }
    }
    assert!(hits.iter().all(|hit| *hit > 0), "not every step was hit: {STEPS:?} {hits:?}");
}

#[test]
fn map_17_large_state_moves_and_state_that_does_not_unpickle_stays() {
    let project = Project::new(
        r#"
import rebeam
from rebeam import Actor, Supervisor, child

class Odd:
    """Pickles, and does not unpickle."""
    def __reduce__(self):
        return int, ("no number",)

class Held(Actor):
    def init(self, is_odd):
        self.large = [b"x" * 100_000_000 for _ in range(3)]
        self.same = self.large[0]
        if is_odd:
            self.odd = Odd()
    def size(self):
        return [sum(map(len, self.large)), self.same is self.large[0], "old"]

tree = Supervisor([child(Held, False, name="large"), child(Held, True, name="odd")])
"#,
    );
    let mut node = project.up();
    edit(&project, "app.py", "\"old\"", "\"new\"");
    let line = node.wait_for("reloaded to v2");
    assert!(line.contains("large moved with state and mail; odd not moved, since code has failed"), "{line}");
    node.wait_for("ValueError: invalid literal for int() with base 10: 'no number'");
    assert_eq!(node.call("large", "size", &[]), json!([300_000_000, true, "new"]));
    assert_eq!(node.call("odd", "size", &[]), json!([300_000_000, true, "old"]));
    node.down();
}

#[test]
fn upg_001_a_suspended_actor_moves_and_handles_its_mail_when_it_is_resumed() {
    let project = Project::new(
        r#"
import rebeam
from rebeam import Actor, Supervisor, child
import counter

class Driver(Actor, reload="never"):
    def suspend(self):
        ref = rebeam.ref(counter.Counter, "counter")
        rebeam.suspend(ref)
        for _ in range(3):
            ref.cast.incr()
        return rebeam.get_state(ref)["n"]
    def look(self):
        return rebeam.get_state(rebeam.ref(counter.Counter, "counter"))["n"]
    def resume(self):
        ref = rebeam.ref(counter.Counter, "counter")
        rebeam.resume(ref)
        return ref.call.incr()

tree = Supervisor([child(counter.Counter, name="counter"), child(Driver, name="driver")])
"#,
    );
    project.write(
        "counter.py",
        "from rebeam import Actor\nclass Counter(Actor):\n    def init(self):\n        self.n = 0\n    def incr(self):\n        self.n += 1\n        return self.n\n",
    );
    let mut node = project.up();
    assert_eq!(node.call("driver", "suspend", &[]), json!(0));
    edit(&project, "counter.py", "+= 1", "+= 10");
    node.wait_for("counter moved with state and mail");
    assert_eq!(node.call("driver", "look", &[]), json!(0));
    assert_eq!(node.call("driver", "resume", &[]), json!(40));
    node.down();
}

#[test]
fn scripts_and_functions_start_over_when_their_code_changes() {
    let project = Project::new(
        r#"
import rebeam
from rebeam import Supervisor
import job

tree = Supervisor([rebeam.script("script.py", id="script"), rebeam.function(job.run)])
"#,
    );
    let body = "import time\nprint('runs one', flush=True)\ntime.sleep(600)\n";
    project.write("script.py", body);
    project.write("job.py", "import time\ndef run():\n    print('job one', flush=True)\n    time.sleep(600)\n");
    let mut node = project.start(&["up", "app.py"]);
    node.wait_for("up with 2 actors");
    edit(&project, "script.py", "one", "two");
    node.wait_for("runs two");
    edit(&project, "job.py", "one", "two");
    node.wait_for("job two");
    assert_eq!(node.ps("script")["restarts"], json!(0));
    node.down();
    project.assert_nothing_left();
}
