//! The command line: what it prints, and what it says to bad input. Each error is one error, with its exit code, and
//! leaves nothing running.

use harness::Project;
use nix::sys::signal::Signal;
use serde_json::json;

use crate::{project, tree};

#[test]
fn data_is_on_stdout_as_tables_or_json() {
    let project =
        project("child(Child, name='a'), Supervisor([child(Child, id='unnamed')], id='deep', strategy='rest_for_one')");
    let node = project.up();
    let list = node.run(&["ps", "--json"]).json();
    let a = list.as_array().and_then(|all| all.iter().find(|it| it["name"] == "a")).expect("a");
    assert_eq!(
        (&a["id"], &a["state"], &a["restarts"], &a["waiting"]),
        (&json!("s/a"), &json!("running"), &json!(0), &json!(0))
    );
    assert!(a["os_pid"].is_u64() && a["age_s"].is_f64(), "{a}");
    let table = node.run(&["ps"]);
    assert!(table.stdout.starts_with("NAME"), "{table:?}");
    assert!(table.stdout.contains("s/deep/unnamed") && table.stderr.is_empty(), "{table:?}");
    let drawn = node.run(&["tree"]).stdout;
    assert!(drawn.contains("└─ deep (rest_for_one) running"), "{drawn}");
    let nested = node.run(&["tree", "--json"]).json();
    assert_eq!(nested["children"][1]["children"][1]["children"][0]["id"], json!("s/deep/unnamed"));
    assert_eq!(node.run(&["call", "a", "sleep", "0"]).stdout, "slept\n");
    assert_eq!(node.run(&["call", "--json", "a", "sleep", "seconds=0"]).stdout, "\"slept\"\n");
    assert_eq!(node.run(&["cast", "a", "take", "{\"k\": [1, -2.5, null, true]}"]).code, Some(0));
    assert_eq!(node.run(&["call", "--json", "a", "taken"]).json(), json!([{"k": [1, -2.5, null, true]}]));
    assert_eq!(node.run(&["why", "a"]).stdout, "`a` has not died\n");
    node.down();
}

#[test]
fn version_and_help_need_nothing() {
    let project = project("");
    let ran = project.run(&["version"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(0), "rebeam 0.1.0\n"));
    assert_eq!(project.run(&["--version"]).stdout, "rebeam 0.1.0\n");
    assert_eq!(project.run(&["version", "--json"]).json(), json!({ "version": "0.1.0" }));
    assert!(project.run(&["--help"]).stdout.contains("Exit codes"));
    project.run(&["upp"]).assert_error(2, &["unrecognized subcommand", "up"]);
}

/// What `rebeam up` says of a target or an application that is wrong.
fn check(source: &str, target: &str, code: i32, texts: &[&str]) {
    let project = tree("Supervisor([child(Recorder, name='recorder')])");
    project.write("bad.py", &format!("import os\nfrom rebeam import *\nfrom actors import *\n{source}\n"));
    let ran = project.run(&["up", target]);
    ran.assert_error(code, texts);
    assert_eq!(ran.stderr.matches("error:").count(), 1, "one error: {ran:?}");
    project.assert_nothing_left();
    project.assert_socket_gone();
}

#[test]
fn a_target_that_is_not_there_is_named_with_its_nearest() {
    check("", "nope.py", 2, &["there is no file", "nope.py"]);
    check("", "ap.py", 2, &["ap.py", "did you mean `app.py`?"]);
    check("", "appp", 2, &["there is no module `appp`", "did you mean `app`?"]);
    check("tree = Supervisor([])", "bad:treee", 2, &["no attribute `treee`", "did you mean `tree`?"]);
    check("x = 1", "bad.py", 2, &["no attribute `tree`", "rebeam.Supervisor"]);
    check("tree = [1]", "bad", 2, &["of type `list`, not a `rebeam.Supervisor`"]);
    check("", "bad:", 2, &["`bad:` is no target"]);
}

#[test]
fn an_import_that_raises_shows_the_users_own_frames() {
    check("import missing_thing", "bad", 3, &["ModuleNotFoundError", "missing_thing", "bad.py\", line 4"]);
    let project = tree("None");
    project.write("bad.py", "def inner():\n    1 / 0\n\ninner()\n");
    let ran = project.run(&["up", "bad"]);
    ran.assert_error(3, &["ZeroDivisionError", "line 4", "in inner"]);
    assert!(!ran.stderr.contains("rebeam/_"), "frames of ours are left out: {ran:?}");
    check("os._exit(7)", "bad", 3, &["the interpreter ended with exit code 7"]);
    check("def f(:", "bad", 3, &["SyntaxError"]);
}

#[test]
fn a_tree_that_makes_no_sense_is_refused_by_name() {
    let bad = |tree: &str, texts: &[&str]| check(&format!("tree = {tree}"), "bad", 2, texts);
    bad("Supervisor([child(Child, id='x'), child(Recorder, id='x')])", &["two children with the id `x`", "hint:"]);
    bad("Supervisor([child(Child, name='x'), Supervisor([child(Child, name='x')])])", &["have the name `x`"]);
    bad("Supervisor([child(Child, restart='alwys')])", &["restart='alwys'", "line 4"]);
    bad("Supervisor([child(Child, restart='permanant')])", &["did you mean 'permanent'?"]);
    bad("Supervisor([child(Child, restrat='transient')])", &["no option `restrat`", "did you mean `restart`?"]);
    bad("Supervisor([], strategy='none')", &["strategy='none'"]);
    bad("Supervisor([], max_restart=3)", &["no option `max_restart`", "`max_restarts`"]);
    bad("Supervisor([], max_restarts=-1)", &["max_restarts=-1"]);
    bad("Supervisor([], max_restarts=float('inf'))", &["max_restarts=inf"]);
    bad("Supervisor([], max_seconds=0)", &["max_seconds=0"]);
    bad("Supervisor([child(Child, shutdown=-1)])", &["shutdown=-1"]);
    bad("Supervisor([child(Child, 1, 2, 3, 4)])", &["`Child.init`", "too many positional arguments"]);
    bad("Supervisor([child(Child())])", &["an instance; give the class"]);
    bad("Supervisor([3])", &["3 cannot be a child"]);
    bad("Supervisor([child(Child, significant=True, restart='temporary')])", &["is significant", "auto_shutdown"]);
    bad("Supervisor([child(Child, lambda: 1)])", &["pickle"]);
}

#[test]
fn requests_to_a_running_node_that_make_no_sense_are_answered() {
    let project = project("child(Child, name='counter')");
    let node = project.up();
    node.run(&["call", "countr", "taken"]).assert_error(1, &["no actor `countr`", "did you mean `counter`?"]);
    node.run(&["cast", "countr", "taken"]).assert_error(1, &["no actor `countr`", "did you mean `counter`?"]);
    node.run(&["restart", "countr"]).assert_error(1, &["no actor `countr`"]);
    node.run(&["call", "counter", "takn"]).assert_error(1, &["no public method `takn`", "did you mean `taken`?"]);
    node.run(&["call", "counter", "taken", "1"]).assert_error(1, &["positional argument"]);
    node.run(&["call", "--timeout", "0.1", "counter", "sleep", "0.5"])
        .assert_error(1, &["did not answer in time", "--timeout"]);
    node.run(&["call", "--timeout", "-1", "counter", "sleep", "0"]).assert_error(2, &[]);
    assert_eq!(node.ps("counter")["restarts"], json!(0), "it was not harmed");
    node.run(&["call", "counter", "raise_"]).assert_error(1, &["raised ValueError: boom", "actors.py"]);
    node.down();
    for command in [&["ps"][..], &["down"], &["call", "a", "b"]] {
        project.run(command).assert_error(1, &["nothing is running in", "rebeam up"]);
    }
}

#[test]
fn a_second_up_is_refused_and_a_stale_socket_taken_over() {
    let project = project("");
    let node = project.up();
    project.run(&["up", "app.py"]).assert_error(3, &["running already, as process", "rebeam down"]);
    assert_eq!(node.run(&["ps"]).code, Some(0));
    node.signal(Signal::SIGKILL);
    node.wait();
    project.assert_nothing_left();
    // Lock and socket of the dead are still there.
    project.up().down();
}

#[test]
fn directories_that_will_not_do_are_named() {
    let project = project("");
    let ran = project.run(&["up", "app.py", "--runtime-dir", "/proc/self/nothing"]);
    ran.assert_error(3, &["failed to create the directory `/proc/self/nothing", "caused by:", "REBEAM_RUNTIME_DIR"]);
    project.assert_nothing_left();
}

#[test]
fn the_projects_file_says_what_to_run() {
    let project = Project::new(
        "from rebeam import *\nclass A(Actor):\n    def n(self):\n        return 1\nmine = Supervisor([child(A, name='a')])\n",
    );
    project.run(&["up"]).assert_error(2, &["there is nothing to run", "[tool.rebeam]"]);
    project.write("pyproject.toml", "[tool.rebeam]\napp = \"app:mine\"\n");
    let node = project.up_with(&["up"]);
    assert_eq!(node.call("a", "n", &[]), json!(1));
    node.down();
    project.write("pyproject.toml", "[tool.rebeam]\napp = \"app:mine\"\ngrase = 3\n");
    project.run(&["up"]).assert_error(2, &["unknown key `grase`", "did you mean `grace`?"]);
    project.write("pyproject.toml", "[tool.rebeam\n");
    project.run(&["up"]).assert_error(2, &["is not valid TOML"]);
}

#[test]
fn output_of_actors_is_prefixed_and_logging_is_carried_whole() {
    let project = Project::new(
        "import logging, sys, os\nfrom rebeam import *\nlog = logging.getLogger('shop')\n\
         class A(Actor):\n    def speak(self):\n        print('to stdout')\n        print('to stderr', file=sys.stderr)\n        os.write(1, b'raw\\n')\n        log.warning('low on %s', 'tea')\n        try:\n            1 / 0\n        except ZeroDivisionError:\n            log.exception('sums')\n\
         tree = Supervisor([child(A, name='a')])\n",
    );
    let mut node = project.up();
    assert_eq!(node.run(&["call", "a", "speak"]).code, Some(0));
    node.wait_for("ZeroDivisionError: division by zero");
    node.run(&["down"]);
    let (_, output) = node.wait();
    for line in [
        "a      | to stdout",
        "a      | to stderr",
        "a      | raw",
        "a      | warning shop: low on tea",
        "a      | error shop: sums",
    ] {
        assert!(output.lines().any(|it| it == line), "`{line}` is not in:\n{output}");
    }
    assert!(!output.contains('\x1b'), "no colour where there is no terminal");
}

#[test]
fn an_error_on_import_shows_the_users_line() {
    let project = Project::new("import helper\n");
    project.write("helper.py", "def broken():\n    return 1 / 0\nbroken()\n");
    let ran = project.run(&["up", "app.py"]);
    ran.assert_error(3, &["raised on import: ZeroDivisionError", "app.py\", line 1", "helper.py\", line 2, in broken"]);
    let project = Project::new(
        "from rebeam import *\n\nclass A(Actor):\n    pass\n\ntree = Supervisor([child(A, restrat='x')])\n",
    );
    project
        .run(&["up", "app.py"])
        .assert_error(2, &["no option `restrat`", "did you mean `restart`?", "app.py\", line 6"]);
    project.run(&["up", "."]).assert_error(2, &["`.` is a directory"]);
}

#[test]
fn a_slip_in_the_projects_file_does_not_keep_a_node_from_being_stopped() {
    let project = Project::new("from rebeam import *\nclass A(Actor):\n    pass\ntree = Supervisor([A])\n");
    let node = project.up();
    project.write("rebeam.toml", "grase = 3\n");
    assert_eq!(node.run(&["ps"]).code, Some(0));
    node.down();
}

#[test]
fn a_stopped_node_is_told_from_one_that_takes_its_time() {
    let project = Project::new("from rebeam import *\nclass A(Actor):\n    pass\ntree = Supervisor([A])\n");
    let node = project.up();
    node.signal(Signal::SIGSTOP);
    project.run(&["ps"]).assert_error(1, &["the node does not answer", "is its process stopped?"]);
    node.signal(Signal::SIGCONT);
    node.down();
}
