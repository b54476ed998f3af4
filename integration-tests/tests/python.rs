//! The worker is the user's own Python, embedded or executed.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use harness::{Node, Project, root};
use serde_json::json;

const APP: &str = r#"
import os, sys, multiprocessing, subprocess, asyncio
import rebeam
from rebeam import Actor, Supervisor, child

def square(n):
    return n * n

def try_to_speak():
    try:
        rebeam.ref(Probe, "probe").call(Probe.where)
    except rebeam.NotAnActor as error:
        return str(error)

class Probe(Actor):
    def where(self):
        return {"executable": sys.executable, "prefix": sys.prefix, "path": sys.path, "argv": sys.argv}

    def processes(self):
        with multiprocessing.Pool(2) as pool:
            return pool.map(square, [1, 2, 3])

    def spawned(self):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            return pool.map(square, [4])

    def subprocess(self):
        code = "import sys; print(sys.prefix)"
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()

    def asyncio(self):
        async def main():
            await asyncio.sleep(0)
            return "ran"
        return asyncio.run(main())

    async def coroutine(self):
        await asyncio.sleep(0)
        return "awaited"

    def helper_is_refused(self):
        with multiprocessing.get_context("fork").Pool(1) as pool:
            return pool.apply(try_to_speak)

    def fork_and_return(self):
        # The child comes back into the actor's loop, where it has no business.
        return "child" if os.fork() == 0 else "parent"

    def executable_of_process(self):
        return os.readlink("/proc/self/exe")

    def libpython(self):
        with open("/proc/self/maps") as maps:
            return "libpython" in maps.read()

tree = Supervisor([child(Probe, name="probe")])
"#;

/// Everything that must hold in an actor, whichever way its interpreter was started.
fn check_environment(node: &Node<'_>, python: &Path) {
    let prefix = python.parent().and_then(Path::parent).expect("bin/python").display().to_string();
    let found = node.call("probe", "where", &[]);
    assert_eq!(found["executable"], json!(python.display().to_string()));
    assert_eq!(found["prefix"], json!(prefix));
    let path = found["path"].as_array().expect("a list");
    assert!(path.iter().any(|it| it.as_str().is_some_and(|it| it.starts_with(&prefix))), "{path:?}");
    assert_eq!(node.call("probe", "processes", &[]), json!([1, 4, 9]));
    assert_eq!(node.call("probe", "spawned", &[]), json!([16]));
    assert_eq!(node.call("probe", "subprocess", &[]), json!(prefix));
    assert_eq!(node.call("probe", "asyncio", &[]), json!("ran"));
    assert_eq!(node.call("probe", "coroutine", &[]), json!("awaited"));
    assert_eq!(node.call("probe", "fork_and_return", &[]), json!("parent"));
    let refused = node.call("probe", "helper_is_refused", &[]);
    assert!(refused.as_str().is_some_and(|it| it.contains("forked by an actor")), "{refused}");
    assert_eq!(node.ps("probe")["restarts"], json!(0));
}

/// A virtual environment of the system's Python with the package in reach; `None` where there is no other Python.
pub(crate) fn system_venv(directory: &Path) -> Option<PathBuf> {
    let python = Path::new("/usr/bin/python3");
    let is_new_enough = Command::new(python).args(["-c", "import sys; sys.exit(sys.version_info < (3, 11))"]).status();
    if !is_new_enough.is_ok_and(|status| status.success()) {
        return None;
    }
    let made = Command::new(python).args(["-m", "venv", "--without-pip"]).arg(directory).status();
    assert!(made.is_ok_and(|status| status.success()), "a virtual environment can be made");
    let site = std::fs::read_dir(directory.join("lib")).ok()?.flatten().next()?.path().join("site-packages");
    std::fs::write(site.join("rebeam.pth"), root().join("pylib/src").display().to_string()).ok()?;
    Some(directory.join("bin/python"))
}

#[test]
fn an_actor_lives_in_the_users_own_environment() {
    let project = Project::new(APP);
    let node = project.up();
    check_environment(&node, &harness::python());
    node.down();
}

#[test]
fn an_interpreter_linked_to_a_shared_libpython_is_embedded_and_another_executed() {
    let project = Project::new(APP);
    for (embed, is_embedded) in [("always", true), ("never", false)] {
        let node = project.up_with(&["up", "app.py", "--embed", embed]);
        check_environment(&node, &harness::python());
        let program = node.call("probe", "executable_of_process", &[]);
        let program = program.as_str().expect("a path");
        assert_eq!(program.ends_with("/rebeam-worker"), is_embedded, "{embed}: {program}");
        node.down();
    }
}

#[test]
fn the_same_build_serves_the_systems_python() {
    let directory = tempfile::tempdir().expect("a directory");
    let Some(python) = system_venv(&directory.path().canonicalize().expect("it is there").join("venv")) else {
        return; // This machine has one Python only.
    };
    let project = Project::new(APP).with_python(&python);
    let node = project.up();
    check_environment(&node, &python);
    let program = node.call("probe", "executable_of_process", &[]);
    let is_embedded = program.as_str().is_some_and(|it| it.ends_with("/rebeam-worker"));
    assert_eq!(json!(is_embedded), node.call("probe", "libpython", &[]), "embedded if and only if it is linked so");
    node.down();
}

#[test]
fn a_missing_broken_or_bare_python_is_told_apart() {
    let project = Project::new(APP);
    project.run(&["up", "app.py", "--python", "/no/such/python"]).assert_error(3, &["/no/such/python", "hint:"]);
    project.write("broken", "#!/bin/sh\necho it is broken >&2\nexit 1\n");
    let broken = project.path().join("broken");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&broken, mode).expect("ours");
    let ran = project.run(&["up", "app.py", "--python", "./broken"]);
    ran.assert_error(3, &["no working Python", "it is broken", "hint:"]);
    let directory = tempfile::tempdir().expect("a directory");
    let bare = directory.path().join("venv");
    let made = Command::new(harness::python()).args(["-m", "venv", "--without-pip"]).arg(&bare).status();
    assert!(made.is_ok_and(|status| status.success()));
    let bare = bare.join("bin/python").display().to_string();
    let ran = project.run(&["up", "app.py", "--python", &bare]);
    ran.assert_error(3, &["has no package `rebeam`", "pip install rebeam", "hint:"]);
    project.assert_nothing_left();
    project.assert_socket_gone();
}

#[test]
fn scripts_and_modules_have_arguments() {
    let project = Project::new(
        "import rebeam\n\
         from rebeam import Supervisor, child_options\n\
         def wrong():\n    \
         try:\n        \
         rebeam.script('job.py', 8080)\n    \
         except rebeam.SpecError as error:\n        \
         print(error)\n\
         options = {'restart': 'temporary', 'significant': True}\n\
         tree = Supervisor([\n    \
         rebeam.script('job.py', '--port', '8080', **options),\n    \
         rebeam.module('jobs.one', 'a b', '', **options),\n    \
         child_options(rebeam.function(wrong), **options),\n\
         ], auto_shutdown='all_significant')\n",
    );
    project.write("job.py", "import sys\nprint('script', sys.argv[0].rpartition('/')[2], sys.argv[1:])\n");
    std::fs::create_dir(project.path().join("jobs")).expect("a directory");
    project.write("jobs/one.py", "import sys\nprint('module', sys.argv[0].rpartition('/')[2], sys.argv[1:])\n");
    let (_, output) = project.start(&["up", "app.py"]).wait();
    for expected in
        ["script job.py ['--port', '8080']", "module one.py ['a b', '']", "`job.py`: the argument 8080 is no text"]
    {
        assert!(output.contains(expected), "{expected}: {output}");
    }
}

#[test]
fn a_breakpoint_is_passed_over_with_a_word_unless_a_debugger_is_named() {
    let project = Project::new(
        "import rebeam\n\
         from rebeam import *\n\
         class A(Actor):\n    \
         def stops(self):\n        \
         breakpoint()\n        \
         return 'on'\n\
         tree = Supervisor([child(A, name='a')])\n",
    );
    let mut node = project.up();
    assert_eq!(node.call("a", "stops", &[]), json!("on"));
    node.wait_for("app.py:5 is passed over");
    node.down();
    let mut command = project.command(&["up", "app.py"]);
    command.env("PYTHONBREAKPOINT", "builtins.print").stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut node = project.adopt(&mut command);
    node.wait_for("up with");
    assert_eq!(node.call("a", "stops", &[]), json!("on"));
    assert_eq!(node.run(&["down"]).code, Some(0));
    let (_, output) = node.wait();
    assert!(!output.contains("is passed over"), "{output}");
}
