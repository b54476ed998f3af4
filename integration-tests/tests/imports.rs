//! What the application and its libraries do when they are imported, and what becomes of it in each actor.

use std::collections::BTreeSet;

use harness::{Node, Project, kill};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

/// Whatever was saved since, an actor is restarted as it was; each in its own way of being made.
const VERSIONS: &str = r#"
import os
from rebeam import Actor, Supervisor, child
import parts, parts.loaded

VERSION = 1

class A(Actor):
    def versions(self):
        import late, parts.lazy, space.inner.late
        return [VERSION, parts.loaded.VERSION, late.VERSION, parts.lazy.VERSION, space.inner.late.VERSION]
    def die(self):
        os._exit(1)
    def fail(self):
        raise ValueError("told")  # line of version 1

tree = Supervisor([child(A, name="fork"), child(A, name="fresh", env={"A": "1"})], max_restarts=100)
"#;

fn versions() -> Project {
    let project = Project::new(VERSIONS);
    for directory in ["parts", "space/inner"] {
        std::fs::create_dir_all(project.path().join(directory)).expect("a directory");
    }
    for file in ["parts/__init__.py", "parts/loaded.py", "parts/lazy.py", "late.py", "space/inner/late.py"] {
        project.write(file, "VERSION = 1\n");
    }
    project
}

fn assert_first_version(node: &Node<'_>) {
    for name in ["fork", "fresh"] {
        node.run(&["call", name, "die"]);
        assert_eq!(node.call(name, "versions", &[]), json!([1, 1, 1, 1, 1]), "{name}");
    }
}

#[test]
fn a_node_runs_one_version_of_the_code_whatever_is_saved_meanwhile() {
    let project = versions();
    let mut node = project.up_with(&["up", "--no-reload", "app.py"]);
    for file in ["app.py", "parts/loaded.py", "parts/lazy.py", "late.py", "space/inner/late.py"] {
        let text = std::fs::read_to_string(project.path().join(file)).expect("a file");
        project.write(file, &text.replace("VERSION = 1", "VERSION = 2").replace("version 1", "version 2"));
    }
    assert_first_version(&node);
    kill(node.zygote(), Signal::SIGKILL);
    node.wait_for("the zygote died");
    assert_first_version(&node);
    // Half written, and gone.
    project.write("app.py", "this is not Python (\n");
    for file in ["parts/__init__.py", "parts/loaded.py", "parts/lazy.py", "late.py", "space/inner/late.py"] {
        std::fs::remove_file(project.path().join(file)).expect("a file");
    }
    assert_first_version(&node);
    kill(node.zygote(), Signal::SIGKILL);
    node.wait_for("the zygote died");
    assert_first_version(&node);
    for name in ["fork", "fresh"] {
        let failed = node.run(&["call", name, "fail"]);
        assert!(failed.stderr.contains("line of version 1"), "{}", failed.stderr);
    }
    node.down();
}

#[test]
fn a_new_node_runs_what_was_saved_last() {
    let project = versions();
    project.up().down();
    // Of the same length and within the same second: bytecode of the first is on disk by now.
    for version in 2..5 {
        project.write("late.py", &format!("VERSION = {version}\n"));
        project.write("parts/loaded.py", &format!("VERSION = {version}\n"));
        let node = project.up();
        assert_eq!(node.call("fresh", "versions", &[]), json!([1, version, version, 1, 1]));
        node.down();
    }
}

const GENERATORS: &str = r#"
import random
from rebeam import Actor, Supervisor, child
try:
    import numpy as np
except ImportError:
    np = None

class Own(random.Random):
    def seed(self, a=None, version=2, *, keyword="asked for"):
        super().seed(a, version)

class Asks(random.Random):
    def __init__(self):
        super().__init__()
    def seed(self, a, version=2):
        super().seed(a, version)

unseeded = [random, random.Random(), Own(), Asks()]
import copy, pickle
seeded = [random.Random(7), Own(8), copy.copy(random.Random(9)), pickle.loads(pickle.dumps(random.Random(9)))]
if np is not None:
    child_of_unseeded = np.random.default_rng().bit_generator.seed_seq.spawn(1)[0]
    unseeded += [np.random, np.random.default_rng(), np.random.RandomState(), np.random.default_rng(child_of_unseeded)]
    seeded += [np.random.default_rng(7), np.random.RandomState(8)]
again = random.Random(3)
again.seed()
unseeded.append(again)

class A(Actor):
    def draw(self):
        return [[g.random() for g in which] for which in (unseeded, seeded)]

tree = Supervisor([child(A, name=f"a{i}") for i in range(4)])
"#;

#[test]
fn generators_without_a_seed_give_each_actor_numbers_of_its_own_and_those_with_one_the_same() {
    let project = Project::new(GENERATORS);
    let node = project.up();
    let drawn: Vec<Value> = (0..4).map(|i| node.call(&format!("a{i}"), "draw", &[])).collect();
    let own: Vec<String> =
        drawn.iter().flat_map(|it| it[0].as_array().expect("a list")).map(Value::to_string).collect();
    assert_eq!(own.iter().collect::<BTreeSet<_>>().len(), own.len(), "{drawn:?}");
    assert!(drawn.iter().all(|it| it[1] == drawn[0][1]), "{drawn:?}");
    node.down();
}

const FILES: &str = r#"
import os
from rebeam import Actor, Supervisor, child

HERE = os.path.dirname(os.path.abspath(__file__)) + "/"
with open(HERE + "data", "w") as made:
    made.write("0123456789" * 10_000)
buffered = open(HERE + "data", "rb")
buffered.read(5)
raw = os.open(HERE + "data", os.O_RDONLY)
unlinked = open(HERE + "data2", "w+")
os.unlink(HERE + "data2")
log = open(HERE + "log", "a")
log.write("opened\n")

class A(Actor):
    def read(self, n):
        return [buffered.read(n).decode(), os.read(raw, n).decode()]
    def far(self):
        buffered.seek(50_000)
        return buffered.read(3).decode()
    def write(self, name):
        log.write(f"{name} was here\n")

tree = Supervisor([child(A, name="a"), child(A, name="b")])
"#;

#[test]
fn files_that_the_import_opened_are_read_by_each_actor_from_a_place_of_its_own() {
    let project = Project::new(FILES);
    let node = project.up();
    for (size, buffered, raw) in [("3", "567", "012"), ("4", "8901", "3456")] {
        for name in ["a", "b"] {
            assert_eq!(node.call(name, "read", &[size]), json!([buffered, raw]), "{name}");
        }
    }
    assert_eq!(node.call("a", "far", &[]), json!("012"));
    assert_eq!(node.call("b", "read", &["3"]), json!(["234", "789"]));
    // What nobody flushes is written at the end, and what the import had written stands there once.
    for name in ["a", "b"] {
        node.call(name, "write", &[name]);
    }
    node.down();
    let log = std::fs::read_to_string(project.path().join("log")).expect("a log");
    let mut lines: Vec<&str> = log.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["a was here", "b was here", "opened"]);
}

const EXITS: &str = r#"
import atexit, logging, logging.handlers, os, shutil, tempfile, weakref
import rebeam
from rebeam import Actor, Supervisor, child

HERE = os.path.dirname(os.path.abspath(__file__))
buffered = logging.getLogger("buffered")
buffered.addHandler(logging.handlers.MemoryHandler(1000, flushLevel=99, target=logging.FileHandler(f"{HERE}/memory")))

events = []
def report():
    with open(f"{HERE}/reported", "a") as file:
        file.writelines(f"{event}\n" for event in events)
atexit.register(report)

# Odd files, which must not keep others from being finished.
import gzip, io
packed = gzip.open(f"{HERE}/packed.gz", "wb")
packed.write(b"once")
detached = io.TextIOWrapper(open(f"{HERE}/detached", "wb"))
detached.detach()

shared = tempfile.TemporaryDirectory(dir=HERE, prefix="shared-")
by_hand = tempfile.mkdtemp(dir=HERE, prefix="by-hand-")
atexit.register(lambda: shutil.rmtree(by_hand))
marker = f"{HERE}/marker"
open(marker, "w").close()
@atexit.register
def remove_marker():
    os.remove(marker)

class A(Actor):
    def init(self, name):
        self.name = name
        atexit.register(events.append, f"own hook of {name}")
        self.directory = tempfile.TemporaryDirectory(dir=HERE, prefix=f"own-{name}-")
        self.file = tempfile.NamedTemporaryFile(dir=HERE, prefix=f"own-{name}-")
        self.text = gzip.open(f"{HERE}/text-{name}.gz", "wt")
        self.text.write("not flushed")
        self.closed = gzip.open(f"{HERE}/closed-{name}.gz", "wb")
        self.closed.close()
        self.written = open(f"{HERE}/written-{name}", "w")
        self.written.write("not flushed")
    def work(self):
        events.append(f"event of {self.name}")
        buffered.warning("line of %s", self.name)
    def end(self):
        raise {"stop": rebeam.Stop, "exits": SystemExit, "raises": ValueError}[self.name]
    def things(self):
        return sorted(os.listdir(HERE))

def script():
    events.append("event of script")
    rebeam.receive()

NAMES = ["stop", "exits", "raises", "stays"]
tree = Supervisor([*(child(A, name, name=name, restart="temporary") for name in NAMES),
                   rebeam.child_options(rebeam.function(script), name="script")])
"#;

#[test]
fn what_the_import_wants_done_at_exit_is_done_by_each_actor_and_what_it_has_made_goes_with_the_node() {
    let project = Project::new(EXITS);
    let node = project.up();
    for name in ["stop", "exits", "raises", "stays"] {
        node.call(name, "work", &[]);
    }
    for name in ["stop", "exits", "raises"] {
        node.run(&["call", name, "end"]);
    }
    let things = node.eventually("the ends of three", |node| {
        let things: Vec<String> = serde_json::from_value(node.call("stays", "things", &[])).expect("names");
        (things.iter().filter(|it| it.starts_with("own-")).count() == 2).then_some(things)
    });
    for made in ["shared-", "by-hand-", "marker"] {
        assert!(things.iter().any(|it| it.starts_with(made)), "`{made}` is still there: {things:?}");
    }
    assert_eq!(node.run(&["down"]).code, Some(0));
    let (_, output) = node.wait();
    assert!(!output.contains("Exception ignored"), "{output}");
    let read = |name: &str| std::fs::read_to_string(project.path().join(name)).expect("a file");
    let (reported, memory) = (read("reported"), read("memory"));
    assert!(reported.contains("event of script"), "{reported}");
    for name in ["stop", "exits", "raises", "stays"] {
        assert!(reported.contains(&format!("event of {name}\nown hook of {name}\n")), "{reported}");
        assert!(memory.contains(&format!("line of {name}\n")), "{memory}");
        assert_eq!(read(&format!("written-{name}")), "not flushed");
    }
    // Its end was written once.
    let unpack = "import gzip; print(gzip.open('packed.gz').read(), gzip.open('text-raises.gz').read())";
    let unpacked = project.command_of(harness::python()).args(["-c", unpack]).output().expect("it runs");
    assert_eq!(String::from_utf8_lossy(&unpacked.stdout), "b'once' b'not flushed'\n", "{unpacked:?}");
    let left: Vec<String> = std::fs::read_dir(project.path())
        .expect("a directory")
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .filter(|name| ["own-", "shared-", "by-hand-", "marker"].iter().any(|made| name.starts_with(made)))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

fn app_that_imports(library: &str) -> Project {
    let project = Project::new(
        "import threading\nfrom rebeam import *\nimport library\n\nclass A(Actor):\n    def threads(self):\n        return threading.active_count()\n\n\
         tree = Supervisor([child(A, name='a')])\n",
    );
    project.write("library.py", library);
    project
}

#[test]
fn the_module_that_keeps_an_application_from_being_forked_is_named() {
    let cases = [
        ("import json, inner.thread, socket", "the import of `inner.thread` started 1 thread (collector)"),
        ("import inner.file, json", "the import of `inner.file` opened `"),
        ("import json, socket\ns = socket.socket()", "the import of `library` opened a socket"),
        ("import selectors, json\ns = selectors.EpollSelector()", "the import of `library` opened an eventpoll"),
    ];
    for (library, named) in cases {
        let project = app_that_imports(library);
        std::fs::create_dir(project.path().join("inner")).expect("a directory");
        project.write("inner/__init__.py", "");
        project.write(
            "inner/thread.py",
            "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True, name='collector').start()\n",
        );
        project.write("inner/file.py", "import os\nfile = open(os.path.dirname(__file__) + '/data', 'w+')\n");
        let mut node = project.start(&["up", "app.py"]);
        let line = node.wait_for("cannot be forked");
        assert!(line.contains(named), "{line}");
        node.wait_for("up with 1 actor");
        node.down();
    }
}

#[test]
fn whether_actors_are_forks_can_be_said_in_the_projects_file() {
    let starts_a_thread = "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()";
    for (fork, library, threads) in [("always", starts_a_thread, 1), ("never", "", 1)] {
        let project = app_that_imports(library);
        project.write("rebeam.toml", &format!("fork = \"{fork}\"\n"));
        let node = project.up();
        // Of a thread that the import has started, a fork has nothing; what counts them knows that.
        assert_eq!(node.call("a", "threads", &[]), json!(threads), "{fork}");
        assert_eq!(node.find_zygote().is_some(), fork == "always");
        node.down();
    }
    let project = app_that_imports("");
    project.write("rebeam.toml", "fork = \"sometimes\"\n");
    project.run(&["up", "app.py"]).assert_error(2, &["sometimes", "always"]);
}

#[test]
fn hooks_of_other_libraries_on_imports_work() {
    let project = app_that_imports(
        "import importlib.abc, importlib.util, pkgutil, sys\nexecuted = []\n\n\
         class Wrapper:\n    def __init__(self, loader):\n        self.loader = loader\n    def create_module(self, spec):\n        \
         return self.loader.create_module(spec)\n    def exec_module(self, module):\n        self.loader.exec_module(module)\n        executed.append(module.__name__)\n\n\
         class Finder:\n    busy = False\n    def find_spec(self, name, path=None, target=None):\n        if name != 'hooked' or self.busy:\n            return None\n        \
         self.busy = True\n        try:\n            spec = importlib.util.find_spec(name)\n        finally:\n            self.busy = False\n        \
         spec.loader = Wrapper(spec.loader)\n        return spec\n\n\
         sys.meta_path.insert(0, Finder())\nimport hooked\nassert executed == ['hooked'], executed\n\
         assert pkgutil.get_data('data', 'text') == b'text'\n",
    );
    project.write("hooked.py", "");
    std::fs::create_dir(project.path().join("data")).expect("a directory");
    project.write("data/__init__.py", "");
    project.write("data/text", "text");
    std::os::unix::fs::symlink("loop.py", project.path().join("loop.py")).expect("a link");
    project.up().down();
}

#[test]
fn a_script_runs_as_python_runs_it_and_as_it_was() {
    let project = Project::new(
        "import rebeam\nfrom rebeam import *\ntree = Supervisor([rebeam.script('scripts/job.py', name='job', restart='permanent')])\n",
    );
    std::fs::create_dir(project.path().join("scripts")).expect("a directory");
    project.write(
        "scripts/job.py",
        "import dataclasses, sys\nimport rebeam\n\n@dataclasses.dataclass\nclass P:\n    x: int\n\n\
         print('first', P.__annotations__['x'] is int, __name__, sys.argv[0].endswith('job.py'))\nrebeam.receive()\n",
    );
    let mut node = project.start(&["up", "app.py"]);
    node.wait_for("first True __main__ True");
    project.write("scripts/job.py", "print('second')\n");
    // It may still be on its way up.
    node.eventually("it is restarted", |node| (node.run(&["restart", "job"]).code == Some(0)).then_some(()));
    node.wait_for("first True __main__ True");
    node.down();
}
