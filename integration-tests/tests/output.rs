//! What people see of actors: output, log records, names and reasons, on terminals and in logs.

use harness::{Project, http};
use serde_json::json;

const WRITES: &str = r#"
import os, sys, time
import rebeam
from rebeam import Actor, Supervisor, child

class A(Actor):
    def write(self, text):
        os.write(1, text.encode("latin-1"))

tree = Supervisor([child(A, name="a")])
"#;

#[test]
fn a_line_that_has_not_ended_is_shown_and_so_is_what_a_progress_bar_has_come_to() {
    let project = Project::new(WRITES);
    let mut node = project.up();
    node.call("a", "write", &["name? "]);
    node.wait_for("name?");
    node.call("a", "write", &["\"given\\n\""]);
    node.wait_for("given");
    node.call("a", "write", &["\"\\r10%\\r20%\""]);
    let line = node.wait_for("%");
    assert!(line.contains("20%") && !line.contains("10%"), "{line}");
    node.call("a", "write", &["\"\\r30%\\r100%\\n\""]);
    let line = node.wait_for("%");
    assert!(line.contains("100%") && !line.contains("30%"), "{line}");
    node.down();
}

#[test]
fn bytes_of_another_encoding_are_shown_and_said() {
    let project = Project::new(WRITES);
    let node = project.up();
    for _ in 0..3 {
        node.call("a", "write", &["\"caf\\u00e9\\n\""]);
    }
    assert_eq!(node.run(&["down"]).code, Some(0));
    // In whichever order: they go to different streams.
    let (_, output) = node.wait();
    assert_eq!(output.matches(r"caf\xe9").count(), 3, "{output}");
    assert_eq!(output.matches("`a` writes bytes that are no UTF-8").count(), 1, "{output}");
}

const ATTACKS: &str = r#"
import logging
import rebeam
from rebeam import Actor, Supervisor, child

ESC = "\x1b]0;pwned\x07\x1b[2J\x9b2J\u202e"
FORGED = "\n1  forged"

class Odd(Exception): pass
Odd.__qualname__ = "Odd" + ESC + FORGED

class A(Actor):
    def attack(self):
        for refused in (lambda: rebeam.group(A, "group" + ESC).join(), lambda: rebeam.register("name" + ESC, self.ref)):
            try:
                refused()
            except rebeam.SpecError:
                continue
        getattr(rebeam.ref(A, "down").cast, "method" + ESC + FORGED)()
        logging.getLogger("logger" + ESC + FORGED).warning("message %s", ESC)
        print("printed", ESC)
        raise Odd("reason" + ESC + FORGED)

tree = Supervisor([child(A, name="a"), child(A, name="down", restart="temporary"),
                   child(A, id="id")])
"#;

#[test]
fn nothing_that_an_actor_says_commands_a_terminal_or_forges_a_row() {
    for command in ["up", "run"] {
        let project = Project::new(ATTACKS);
        let mut node = project.start(&[command, "app.py"]);
        node.wait_for("up with 3 actors");
        assert_eq!(node.run(&["stop", "down"]).code, Some(0));
        let mut shown = vec![node.run(&["call", "a", "attack"])];
        for command in [
            &["why", "a"][..],
            &["ps"],
            &["tree"],
            &["names"],
            &["groups"],
            &["dead", "list"],
            &["dead", "show", "1"],
            &["stack"],
            &["health"],
        ] {
            shown.push(node.run(command));
        }
        assert_eq!(node.run(&["down"]).code, Some(0));
        let (_, output) = node.wait();
        assert!(output.contains("reason"), "{output}");
        let texts = shown.iter().flat_map(|ran| [&ran.stdout, &ran.stderr]).chain([&output]);
        for text in texts {
            let bad = text.chars().find(|it| (it.is_control() && *it != '\n') || *it == '\u{202e}');
            assert_eq!(bad, None, "{text:?}");
            assert!(text.lines().all(|line| !line.starts_with("1  forged")), "{text}");
        }
    }
}

const LOGS: &str = r#"
import logging, sys
import rebeam
from rebeam import Actor, Supervisor, child

class Console:
    file = sys.stdout
class RichHandler(logging.Handler):
    console = Console()
    def emit(self, record):
        print("rich", record.getMessage())

CONFIGURE

class A(Actor):
    def init(self):
        LATE
        logging.getLogger("app").debug("once, in debug")
        logging.getLogger("app").info("once, in info")
        logging.getLogger("other").warning("last")

tree = Supervisor([child(A, name="a")])
"#;

#[test]
fn a_record_is_shown_once_however_logging_is_configured() {
    let cases = [
        ("", "pass", 1),
        ("logging.basicConfig(level=logging.INFO, format='%(levelname)s %(message)s')", "pass", 1),
        ("logging.basicConfig(level=logging.DEBUG, stream=sys.stdout)", "pass", 2),
        ("logging.basicConfig(level=logging.DEBUG, handlers=[RichHandler()])", "pass", 2),
        ("", "logging.basicConfig(level=logging.DEBUG)", 2),
        ("logging.basicConfig(level=logging.DEBUG)", "logging.basicConfig(level=logging.DEBUG, force=True)", 2),
    ];
    for (at_import, in_init, records) in cases {
        let project = Project::new(&LOGS.replace("CONFIGURE", at_import).replace("LATE", in_init));
        let mut node = project.start(&["up", "app.py"]);
        node.wait_for("up with 1 actor");
        assert_eq!(node.run(&["down"]).code, Some(0));
        let (_, output) = node.wait();
        let lines: Vec<&str> = output.lines().filter(|line| line.contains("once") || line.contains("last")).collect();
        assert_eq!(lines.len(), records + 1, "{at_import} {in_init}: {output}");
    }
}

#[test]
fn figures_are_kept_of_methods_that_there_are() {
    let project = Project::new(
        "import rebeam\nfrom rebeam import *\nclass A(Actor):\n    def work(self): return 1\n    def spoil(self):\n        \
         for i in range(20):\n            getattr(self.ref.cast, f'typo{i}')()\n            self.ref.cast(A.work, 1, 2)\n\
         tree = Supervisor([child(A, name='a')])\n",
    );
    let mut node = project.start(&["run", "app.py", "--http", "127.0.0.1:0"]);
    let line = node.wait_for("metrics at http://");
    let address = line.split("http://").nth(1).expect("an address").trim_end_matches(['"', '}']).to_owned();
    let address: String = address.chars().take_while(|it| it.is_ascii_digit() || matches!(it, '.' | ':')).collect();
    node.wait_for("up with 1 actor");
    node.call("a", "spoil", &[]);
    assert!(node.run(&["call", "a", "no_such_method"]).code != Some(0));
    assert_eq!(node.call("a", "work", &[]), json!(1));
    let (_, metrics) = http(&address, "GET /metrics", &[]);
    let counted: Vec<&str> =
        metrics.lines().filter(|line| line.starts_with("rebeam_handler_duration_seconds_count")).collect();
    assert_eq!(
        counted,
        [
            r#"rebeam_handler_duration_seconds_count{class="app.A",method="spoil"} 1"#,
            r#"rebeam_handler_duration_seconds_count{class="app.A",method="work"} 1"#
        ],
    );
    node.down();
}
