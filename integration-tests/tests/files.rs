//! Paths and names of files as people have them: not UTF-8, too long for a socket, of others, odd for a module.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Stdio;

use harness::Project;
use serde_json::json;

const APP: &str = r#"
import os
import rebeam
from rebeam import Actor, Supervisor, child
from rebeam.batch import pipeline, sink, source

class A(Actor):
    def ping(self):
        return "pong"
    def lose(self):
        raise FileNotFoundError(os.fsdecode(b"caf\xe9"))

tree = Supervisor([child(A, name="a"), child(A, name="fresh", env={"A": "1"})])
pipe = pipeline("p").source(source.lines("in.txt")).stage(len).sink(sink.jsonl("out.jsonl"))
"#;

const ODD: &[u8] = b"caf\xe9";

fn odd() -> &'static OsStr {
    OsStr::from_bytes(ODD)
}

#[test]
fn a_project_and_a_file_need_not_have_names_in_unicode() {
    let project = Project::new("");
    let directory = project.path().join(odd());
    std::fs::create_dir(&directory).expect("a directory");
    let file = directory.join(OsStr::from_bytes(b"caf\xe9.py"));
    std::fs::write(&file, APP).expect("a file");
    std::fs::write(directory.join("app.py"), APP).expect("a file");
    std::fs::write(directory.join("in.txt"), "hello\n").expect("a file");
    for target in [&b"app"[..], b"app.py", b"caf\xe9.py", b"caf\xe9.py:tree", b"../caf\xe9/app.py"] {
        let mut command = project.command(&["up"]);
        command.arg(OsStr::from_bytes(target)).current_dir(&directory);
        let mut node = project.adopt(command.stdout(Stdio::piped()).stderr(Stdio::piped()));
        node.wait_for("up with 2 actors");
        for (name, method) in [("a", "ping"), ("fresh", "ping")] {
            let called = project.command(&["call", name, method]).current_dir(&directory).output().expect("it runs");
            assert_eq!(String::from_utf8_lossy(&called.stdout), "pong\n", "{target:?}: {called:?}");
        }
        let lost = project.command(&["call", "a", "lose"]).current_dir(&directory).output().expect("it runs");
        let text = String::from_utf8_lossy(&lost.stderr);
        assert!(text.contains(r"FileNotFoundError: caf\udce9"), "{text}");
        let down = project.command(&["down"]).current_dir(&directory).status();
        assert!(down.is_ok_and(|status| status.success()));
        node.wait();
    }
    let journal = project.path().join(OsStr::from_bytes(b"journal-\xff"));
    for chosen in [None, Some(&journal)] {
        let mut command = project.command(&["batch", "app.py", "--fresh"]);
        command.args(chosen.iter().flat_map(|path| [OsStr::new("--journal"), path.as_os_str()]));
        let ran = command.current_dir(&directory).output().expect("it runs");
        assert!(ran.status.success(), "{ran:?}");
    }
    assert!(journal.join("p/report.html").exists());
    project.assert_nothing_left();
}

#[test]
fn a_runtime_directory_may_be_longer_than_a_socket_may_have_it() {
    let project = Project::new(APP);
    let long = ["d", "e", "f"].iter().fold(project.path(), |path, letter| path.join(letter.repeat(120)));
    std::fs::create_dir_all(&long).expect("directories");
    for variable in ["TMPDIR", "XDG_RUNTIME_DIR", "REBEAM_RUNTIME_DIR"] {
        let with = |args: &[&str]| {
            let mut command = project.command(args);
            for other in ["REBEAM_RUNTIME_DIR", "XDG_RUNTIME_DIR"] {
                command.env_remove(other);
            }
            command.env(variable, &long);
            command
        };
        let mut node = project.adopt(with(&["up", "app.py"]).stdout(Stdio::piped()).stderr(Stdio::piped()));
        node.wait_for("up with 2 actors");
        let called = with(&["call", "a", "ping"]).output().expect("it runs");
        assert_eq!(String::from_utf8_lossy(&called.stdout), "pong\n", "{variable}: {called:?}");
        let second = with(&["up", "app.py"]).output().expect("it runs");
        assert!(String::from_utf8_lossy(&second.stderr).contains("running already"), "{variable}: {second:?}");
        let code = "import app, rebeam\nwith rebeam.connect() as node:\n    print(node.ref(app.A, 'a').call.ping())\n";
        let mut python = project.command_of(harness::python());
        python.args(["-c", code]).env("PYTHONPATH", harness::root().join("pylib/src"));
        for other in ["REBEAM_RUNTIME_DIR", "XDG_RUNTIME_DIR"] {
            python.env_remove(other);
        }
        python.env(variable, &long);
        let said = python.output().expect("it runs");
        assert_eq!(String::from_utf8_lossy(&said.stdout), "pong\n", "{variable}: {said:?}");
        assert!(with(&["down"]).status().is_ok_and(|status| status.success()));
        node.wait();
    }
}

#[test]
fn a_runtime_directory_that_others_made_or_may_change_is_refused_at_every_level() {
    let project = Project::new(APP);
    let temporary = project.path().join("tmp");
    let base = temporary.join(format!("rebeam-{}", nix::unistd::getuid()));
    let up = || {
        let mut command = project.command(&["up", "app.py"]);
        command.env_remove("REBEAM_RUNTIME_DIR").env_remove("XDG_RUNTIME_DIR").env("TMPDIR", &temporary);
        let ran = command.output().expect("it runs");
        (ran.status.code(), String::from_utf8_lossy(&ran.stderr).into_owned())
    };
    let fresh = || {
        let _ = std::fs::remove_dir_all(&temporary);
        std::fs::create_dir_all(&temporary).expect("a directory");
    };
    let mode = |path: &Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("a mode");
    };
    let elsewhere = project.path().join("elsewhere");
    std::fs::create_dir(&elsewhere).expect("a directory");
    mode(&elsewhere, 0o700);
    std::fs::write(elsewhere.join("lock"), "precious").expect("a file");

    fresh();
    symlink(&elsewhere, &base).expect("a link");
    let (code, said) = up();
    assert!(code == Some(3) && said.contains("is a link"), "{said}");

    fresh();
    std::fs::create_dir(&base).expect("a directory");
    mode(&base, 0o777);
    let (code, said) = up();
    assert!(code == Some(3) && said.contains("can be changed by other users"), "{said}");

    fresh();
    std::fs::create_dir(&base).expect("a directory");
    mode(&base, 0o700);
    let key = {
        let _node = project.up();
        project.socket().parent().and_then(Path::file_name).expect("a name").to_owned()
    };
    symlink(&elsewhere, base.join(key)).expect("a link");
    let (code, said) = up();
    assert!(code == Some(3) && said.contains("is a link"), "{said}");
    assert_eq!(std::fs::read_to_string(elsewhere.join("lock")).expect("a file"), "precious");

    if nix::unistd::getuid().is_root() {
        fresh();
        std::fs::create_dir(&base).expect("a directory");
        mode(&base, 0o700);
        std::os::unix::fs::chown(&base, Some(65534), None).expect("another owner");
        let (code, said) = up();
        assert!(code == Some(3) && said.contains("belongs to another user"), "{said}");
    }
}

#[test]
fn an_application_is_found_under_odd_names_or_told_what_to_call_it() {
    let app = "import dataclasses\nimport rebeam\nfrom rebeam import *\n\n@dataclasses.dataclass\nclass P:\n    x: int\n\n\
        def square(x):\n    return x * x\n\n\
        class A(Actor):\n    def take(self, p):\n        return p == P(2)\n    def work(self):\n        \
        return [rebeam.ref(A, 'b').call(A.take, P(2)), rebeam.Executor(1).submit(square, 3).result(10)]\n\n\
        tree = Supervisor([child(A, name='a'), child(A, name='b', env={'A': '1'})])\n";
    for name in [
        "my-app.py",
        "2app.py",
        "my app.py",
        "class.py",
        "naïve.py",
        "test.py",
        "__main__.py",
        "__init__.py",
        "numpy.py",
    ] {
        let project = Project::new("");
        project.write(name, app);
        let node = {
            let mut node = project.start(&["up", name]);
            node.wait_for("up with 2 actors");
            node
        };
        assert_eq!(node.call("a", "work", &[]), json!([true, 9]), "{name}");
        node.down();
    }
    let project = Project::new("");
    project.write("rebeam.py", app);
    project.run(&["up", "rebeam.py"]).assert_error(2, &["`rebeam.py` has the name of the package", "rename"]);
    project.write("my.app.py", app);
    project.run(&["up", "my.app.py"]).assert_error(2, &["has a dot in its name", "my_app.py"]);
    for directory in ["pkg", "pkg/sub"] {
        std::fs::create_dir(project.path().join(directory)).expect("a directory");
        project.write(&format!("{directory}/__init__.py"), "");
    }
    project.write("pkg/sub/main.py", "from .other import tree\n");
    project.run(&["up", "pkg/sub/main.py"]).assert_error(3, &["relative import", "`pkg.sub.main`"]);
}
