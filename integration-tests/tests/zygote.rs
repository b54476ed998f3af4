//! Actors come from a warm interpreter, as the supervisor's own children, and do not need it afterwards.

use harness::{Project, kill, parent_of};
use nix::sys::signal::Signal;
use serde_json::json;

use crate::project;

#[test]
fn actors_are_children_of_the_supervisor_and_lead_their_own_groups() {
    let project = project("child(Child, name='a'), child(Child, name='b')");
    let node = project.up();
    for name in ["a", "b"] {
        let os_pid = node.os_pid_of(name);
        assert_eq!(parent_of(os_pid), Some(node.os_pid()));
        let group = nix::unistd::getpgid(Some(nix::unistd::Pid::from_raw(os_pid)));
        assert_eq!(group.map(nix::unistd::Pid::as_raw), Ok(os_pid));
    }
    node.down();
}

#[test]
fn running_actors_do_not_notice_the_death_of_the_zygote_and_new_ones_come_from_the_next() {
    let project = project("child(Child, name='a'), child(Child, name='b')");
    let mut node = project.up();
    for _ in 0..3 {
        let before = node.call("a", "pid", &[]);
        let zygote = node.zygote();
        kill(zygote, Signal::SIGKILL);
        node.wait_for("the zygote died; it is started again");
        assert_eq!(node.call("a", "pid", &[]), before);
        assert_eq!(node.run(&["restart", "b"]).code, Some(0));
        assert_ne!(node.zygote(), zygote);
    }
    assert_eq!(node.ps("a")["restarts"], json!(0));
    node.down();
}

fn app_that(does: &str) -> Project {
    Project::new(&format!(
        "import threading, socket, time, os\nfrom rebeam import *\n\n{does}\n\n\
         class A(Actor):\n    def threads(self):\n        return threading.active_count()\n    def pid(self):\n        return os.getpid()\n\n\
         tree = Supervisor([child(A, name='a'), child(A, name='b')])\n"
    ))
}

#[test]
fn an_import_that_starts_a_thread_is_named_and_served_by_fresh_interpreters() {
    let project = app_that("threading.Thread(target=threading.Event().wait, daemon=True, name='collector').start()");
    let mut node = project.start(&["up", "app.py"]);
    let line = node.wait_for("cannot be forked");
    assert!(line.contains("started 1 thread (collector)"), "{line}");
    node.wait_for("up with 2 actors");
    // Each has a thread of its own making, alive: a fork would have lost it.
    assert_eq!(node.call("a", "threads", &[]), json!(2));
    assert_ne!(node.call("a", "pid", &[]), node.call("b", "pid", &[]));
    node.down();
}

#[test]
fn an_import_that_opens_a_socket_is_named() {
    let project = app_that("connection = socket.socketpair()");
    let mut node = project.start(&["up", "app.py"]);
    let line = node.wait_for("cannot be forked");
    assert!(line.contains("opened a socket"), "{line}");
    node.wait_for("up with 2 actors");
    node.down();
}

#[test]
fn what_a_fork_copies_and_must_not_is_reseeded() {
    let project = Project::new(
        "import random, os\nimport rebeam\nfrom rebeam import *\n\
         hooked = []\n\
         @rebeam.after_fork\ndef hook():\n    hooked.append(os.getpid())\n\
         class A(Actor):\n    def draw(self):\n        return random.random()\n    def hooks(self):\n        return hooked == [os.getpid()]\n\
         tree = Supervisor([child(A, name='a'), child(A, name='b')])\n",
    );
    let node = project.up();
    assert_ne!(node.call("a", "draw", &[]), node.call("b", "draw", &[]));
    assert_eq!(node.call("a", "hooks", &[]), json!(true));
    node.down();
}

#[test]
fn libraries_with_fork_handlers_are_forked_so_that_they_run() {
    // A library that registers with pthread_atfork, made here: its child handler sets a flag.
    let project = Project::new(
        "import ctypes, os\nfrom rebeam import *\n\
         lib = ctypes.CDLL(os.path.abspath('libhandler.so'))\nlib.setup()\n\
         class A(Actor):\n    def ran(self):\n        return lib.ran()\n    def parent(self):\n        return os.getppid()\n\
         tree = Supervisor([child(A, name='a')])\n",
    );
    project.write(
        "handler.c",
        "#include <pthread.h>\nstatic int flag;\nstatic void in_child(void) { flag += 1; }\n\
         void setup(void) { pthread_atfork(0, 0, in_child); }\nint ran(void) { return flag; }\n",
    );
    let built = std::process::Command::new("cc")
        .args(["-shared", "-fPIC", "-o", "libhandler.so", "handler.c"])
        .current_dir(project.path())
        .status();
    assert!(built.is_ok_and(|status| status.success()), "a C compiler is one of the requirements");
    let node = project.up();
    // Forked twice, and inherited by the supervisor.
    assert_eq!(node.call("a", "ran", &[]), json!(2));
    assert_eq!(node.call("a", "parent", &[]), json!(node.os_pid()));
    node.down();
}
