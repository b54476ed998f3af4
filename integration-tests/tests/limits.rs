//! What an actor may use, what happens at a limit, and what is known of an end.

use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use harness::{Node, Project, kill};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::tree;

fn one(options: &str) -> Project {
    tree(&format!(
        "None
class A(Actor):
    def init(self):
        self.n = 0
    def count(self):
        self.n += 1
        return self.n
    def process(self):
        return os.getpid()
    def incarnation(self):
        return str(rebeam.me().pid)
    def grow(self, mib):
        self.hoard = [os.urandom(1 << 20) for _ in range(mib)]
    def wait_and_grow(self, mib):
        time.sleep(0.5)
        self.grow(mib)
    def threads(self):
        import threading
        threading.Thread(target=time.sleep, args=(60,), daemon=True, name='helper').start()
    @deadline(0.3)
    def short(self):
        while True:
            time.sleep(0.01)
    def long(self, seconds):
        time.sleep(seconds)
        return 'done'
    def loop_in_c(self):
        sum(range(10**15))
    def segfault(self):
        import ctypes
        ctypes.string_at(0)
    def abort(self):
        os.abort()
    def bus(self):
        import mmap, tempfile
        with tempfile.TemporaryFile() as file:
            file.write(b'x' * mmap.PAGESIZE)
            file.flush()
            view = mmap.mmap(file.fileno(), mmap.PAGESIZE)
            os.ftruncate(file.fileno(), 0)
            view[0]
    def fpe(self):
        os.kill(os.getpid(), signal.SIGFPE)
        time.sleep(5)
    def crash(self):
        raise ValueError('boom')
    def environment(self):
        return [os.environ.get('FLAVOUR'), os.environ.get('OMP_NUM_THREADS'), os.getcwd()]
    def who(self):
        return [os.getuid(), os.getgid(), sorted(os.sched_getaffinity(0)), os.nice(0)]
    def checkpoint(self):
        return self.n
    def restore(self, n):
        self.n = n
tree = Supervisor([child(A, name='a', {options}), child(A, name='b')], max_restarts=5)"
    ))
}

fn last_death(node: &Node<'_>, name: &str) -> Value {
    node.eventually("there is a certificate", |node| {
        node.run(&["why", name, "--json"]).json().as_array().and_then(|all| all.last().cloned())
    })
}

#[test]
fn a_method_beyond_its_deadline_is_judged_hung_and_its_stack_is_in_the_certificate() {
    let project = one("restart='permanent'");
    let mut node = project.up();
    node.run(&["cast", "a", "threads"]);
    let ran = node.run(&["call", "a", "short", "--timeout", "30"]);
    assert_eq!(ran.code, Some(1));
    let block = node.wait_for("a died: heartbeat_timeout");
    assert!(block.contains("died"), "{block}");
    let death = last_death(&node, "a");
    assert_eq!((&death["kind"], &death["killer"]), (&json!("heartbeat_timeout"), &json!("rebeam: it was judged hung")));
    assert_eq!(death["in_hand"][0]["method"], "short");
    let stacks = death["stacks"].as_str().expect("text");
    assert!(
        stacks.contains("in short") && stacks.matches("Thread 0x").count() + stacks.matches("thread 0x").count() >= 2,
        "{stacks}"
    );
    assert_eq!(node.call("a", "count", &[]), json!(1), "it is back");
    node.down();
}

#[test]
fn map_07_a_deadline_of_the_actor_holds_inside_c_code_and_a_busy_one_without_is_left_alone() {
    let project = one("callback_deadline=0.3");
    let node = project.up();
    node.run(&["cast", "a", "loop_in_c"]);
    let death = last_death(&node, "a");
    assert_eq!(death["kind"], "heartbeat_timeout");
    assert!(death["stacks"].as_str().is_some_and(|stacks| stacks.contains("in loop_in_c")), "{death}");
    assert_eq!(node.call("b", "long", &["1.0"]), json!("done"));
    node.down();
}

#[test]
fn map_07_of_a_stopped_process_there_are_no_stacks() {
    let project = one("callback_deadline=0.5");
    let node = project.up();
    node.run(&["cast", "a", "long", "60"]);
    node.eventually("it is busy", |node| (!node.ps("a")["busy"].is_null()).then_some(()));
    kill(node.os_pid_of("a"), Signal::SIGSTOP);
    let death = last_death(&node, "a");
    assert_eq!((&death["kind"], &death["stacks"]), (&json!("heartbeat_timeout"), &json!("unavailable: stopped")));
    node.down();
}

#[test]
fn faults_leave_the_stacks_of_all_threads() {
    let project = one("restart='permanent', backoff=None");
    let node = project.up();
    for (method, reason, text) in [
        ("segfault", "signal(SIGSEGV)", "Segmentation fault"),
        ("abort", "signal(SIGABRT)", "Aborted"),
        ("bus", "signal(SIGBUS)", "Bus error"),
        ("fpe", "signal(SIGFPE)", "Floating"),
    ] {
        node.run(&["cast", "a", "threads"]);
        assert_eq!(node.run(&["call", "a", method]).code, Some(1));
        let death =
            node.eventually("it is told", |node| Some(last_death(node, "a")).filter(|death| death["reason"] == reason));
        let stacks = death["stacks"].as_str().expect("text");
        assert!(stacks.contains(text) && stacks.contains(&format!("in {method}")), "{stacks}");
        assert_eq!(death["killer"], "unknown", "nobody proved who sent it");
        assert_eq!(death["next"], json!({ "restarts_after_s": 0.0 }));
        node.eventually("it is back", |node| (node.ps("a")["state"] == "running").then_some(()));
    }
    node.down();
}

#[test]
fn memory_beyond_the_hard_limit_kills_and_the_certificate_proves_it() {
    let project = one("memory=('300MB', '300MB')");
    let node = project.up();
    node.run(&["cast", "a", "grow", "400"]);
    let death = last_death(&node, "a");
    assert_eq!(death["kind"], "memory_limit");
    assert!(death["reason"].as_str().is_some_and(|text| text.contains(" of 286 MiB")), "{death}");
    assert_eq!(death["killer"], "rebeam: it used more memory than it may");
    node.down();
}

#[test]
fn memory_beyond_the_soft_limit_recycles_unseen() {
    let project = one("memory=('100MB', '4GB')");
    let node = project.up();
    let (process, incarnation) = (node.call("a", "process", &[]), node.call("a", "incarnation", &[]));
    node.call("a", "count", &[]);
    node.run(&["call", "a", "grow", "200"]);
    node.eventually("it is another process", |node| {
        let ps = node.ps("a");
        (ps["os_pid"] != process && ps["state"] == "running").then_some(())
    });
    assert_eq!(node.call("a", "incarnation", &[]), incarnation, "the same incarnation");
    assert_eq!(node.call("a", "count", &[]), json!(2), "its state came along");
    assert_eq!(node.ps("a")["restarts"], json!(0));
    assert!(node.run(&["why", "a"]).stdout.contains("has not died"));
    node.down();
}

#[test]
fn an_actor_is_recycled_after_so_many_messages_and_callers_do_not_notice() {
    let project = one("max_messages=3");
    let node = project.up();
    let mut processes = std::collections::BTreeSet::new();
    for n in 1..=20 {
        assert_eq!(node.call("a", "count", &[]), json!(n));
        processes.insert(node.ps("a")["os_pid"].as_i64());
    }
    assert!(processes.len() >= 4, "{processes:?}");
    assert_eq!(node.ps("a")["restarts"], json!(0));
    node.down();
}

#[test]
fn an_actor_is_recycled_at_an_age() {
    let project = one("max_age=0.3");
    let node = project.up();
    let process = node.call("a", "process", &[]);
    node.eventually("it is another process", |node| (node.call("a", "process", &[]) != process).then_some(()));
    node.down();
}

#[test]
fn a_child_that_gives_up_is_parked_and_brought_back_by_hand() {
    let project = one("on_giveup='park'");
    let mut node = project.up();
    for _ in 0..6 {
        node.eventually("it runs", |node| (node.ps("a")["state"] == "running").then_some(()));
        node.run(&["call", "a", "crash"]);
    }
    node.wait_for("it stays down until `rebeam restart a`");
    assert_eq!(node.ps("a")["state"], "parked");
    assert_eq!(node.call("b", "count", &[]), json!(1), "its siblings live");
    node.run(&["call", "a", "count"]).assert_error(1, &["`a` is down", "rebeam restart a"]);
    assert_eq!(node.run(&["restart", "a"]).code, Some(0));
    assert_eq!(node.call("a", "count", &[]), json!(1));
    node.down();
}

#[test]
fn map_11_a_backoff_pauses_and_one_that_could_never_give_up_is_refused() {
    let project = one("backoff=Backoff(1, 2, 4, 0)");
    project.run(&["up", "app.py"]).assert_error(2, &["could crash forever", "max_seconds=", "15000 ms"]);
    let project = one("backoff=Backoff(0.2, 2.0, 0.4, 0.0)");
    let mut node = project.up();
    node.run(&["call", "a", "crash"]);
    node.wait_for("it is started again after 200 ms");
    assert_eq!(node.ps("a")["state"], "restarting");
    assert_eq!(node.call("a", "count", &[]), json!(1), "calls wait meanwhile");
    node.down();
}

#[test]
fn a_process_is_as_its_child_says() {
    let project = one("env={'FLAVOUR': 'mint'}, threads=2, directory='sub', cpus=[0], nice=3");
    project.write("sub/x", "");
    let node = project.up();
    let sub = project.path().join("sub").display().to_string();
    assert_eq!(node.call("a", "environment", &[]), json!(["mint", "2", sub]));
    assert_eq!(node.call("b", "environment", &[]), json!([null, "1", project.path().display().to_string()]));
    assert_eq!(node.call("a", "who", &[])[2], json!([0]));
    let nice = |name: &str| node.call(name, "who", &[])[3].as_i64();
    assert_eq!(nice("a"), nice("b").map(|others| others + 3));
    node.down();
    let is_open = |path: &std::path::Path| path.metadata().is_ok_and(|it| it.permissions().mode() & 0o005 == 0o005);
    if nix::unistd::getuid().is_root() && harness::root().join("pylib/src/rebeam").ancestors().all(is_open) {
        // A Python that others may read, too.
        let directory = tempfile::TempDir::new().expect("a directory");
        let Some(python) = crate::python::system_venv(&directory.path().join("venv")) else { return };
        let project = one("uid=65534, gid=65534").with_python(&python);
        for path in [directory.path(), &project.path()] {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).expect("it is ours");
        }
        let node = project.up();
        assert_eq!(node.call("a", "who", &[]).as_array().map(|who| who[..2].to_vec()), Some(vec![json!(65534); 2]));
        node.signal(Signal::SIGKILL);
        node.wait();
        project.assert_nothing_left();
    }
}

#[test]
fn who_is_told_to_use_what_is_not_there_says_so() {
    let project = one("directory='nowhere'");
    let there = format!("directory='{}/nowhere': No such file or directory", project.path().display());
    project.run(&["up", "app.py"]).assert_error(3, &["`a` did not start", &there, "without a process"]);
    let project = one("directory='app.py'");
    project.run(&["up", "app.py"]).assert_error(3, &["`a` did not start", "app.py': Not a directory"]);
    let project = one("cpus=[4000]");
    project
        .run(&["up", "app.py"])
        .assert_error(3, &["`a` did not start", "cpus=[4000]: Invalid argument; this process may"]);
}

/// A memory cgroup (version 1) of the test's own, gone with it.
pub(crate) struct Cgroup(std::path::PathBuf);

impl Cgroup {
    /// `None` where this machine lets nobody make one, which is said.
    pub(crate) fn new(limit: &str) -> Option<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("rebeam-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let made = [("memory", "memory.limit_in_bytes"), ("", "memory.max")].into_iter().find_map(|(root, file)| {
            let cgroup = Cgroup(std::path::Path::new("/sys/fs/cgroup").join(root).join(&name));
            std::fs::create_dir(&cgroup.0).ok()?;
            std::fs::write(cgroup.0.join(file), limit).ok()?;
            Some(cgroup)
        });
        if made.is_none() {
            crate::not_tested("a control group of a test's own");
        }
        made
    }

    /// A command of a project that runs in it: the shell enters the cgroup and becomes the supervisor, whose children
    /// are in it from the start.
    pub(crate) fn command(&self, project: &Project, args: &str) -> Command {
        let mut command = project.command_of("sh");
        let script = format!("echo $$ > {}/cgroup.procs && exec \"$0\" {args}", self.0.display());
        command.args(["-c", &script]).arg(harness::rebeam());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.0);
    }
}

#[test]
fn an_actor_that_the_kernel_kills_for_memory_has_the_proof_in_its_certificate() {
    let Some(cgroup) = Cgroup::new("300M") else { return };
    let project = one("restart='permanent'");
    let mut node = project.adopt(&mut cgroup.command(&project, "up app.py"));
    node.wait_for("up with");
    let supervisor = std::fs::read_to_string(format!("/proc/{}/oom_score_adj", node.os_pid())).expect("it runs");
    let actor = std::fs::read_to_string(format!("/proc/{}/oom_score_adj", node.os_pid_of("a"))).expect("it runs");
    let number = |text: &str| text.trim().parse::<i32>().expect("a number");
    assert!(number(&supervisor) < number(&actor), "{supervisor} {actor}");
    // A supervisor that is awake ends it before the kernel does.
    let before = node.os_pid_of("a");
    node.run(&["cast", "a", "wait_and_grow", "500"]);
    kill(node.os_pid(), Signal::SIGSTOP);
    node.eventually("the kernel kills it", |_| harness::is_zombie(before).then_some(()));
    kill(node.os_pid(), Signal::SIGCONT);
    node.eventually("its end is seen", |node| (node.ps("a")["restarts"] == 1).then_some(()));
    let death = last_death(&node, "a");
    assert_eq!((&death["reason"], &death["killer"]), (&json!("signal(SIGKILL)"), &json!("out of memory")), "{death}");
    // One that somebody else kills has no such proof.
    node.eventually("it is back", |node| (node.ps("a")["state"] == "running").then_some(()));
    kill(node.os_pid_of("b"), Signal::SIGKILL);
    assert_eq!(last_death(&node, "b")["killer"], "unknown");
    node.down();
}

#[test]
fn an_outage_of_a_second_is_survived_with_the_defaults() {
    let project = Project::new(
        "import os, time\nimport rebeam\nfrom rebeam import *\n\nAWAY = os.path.join(os.path.dirname(__file__), 'away')\n\n\
         class Database(Actor):\n    def init(self):\n        self.look()\n        self.timer = rebeam.cast_every(0.01, self.ref, Database.look)\n    \
         def look(self):\n        if os.path.exists(AWAY) and time.time() < float(open(AWAY).read()):\n            raise ConnectionError('the database is away')\n    \
         def go_away(self):\n        with open(AWAY + '.new', 'w') as file:\n            file.write(str(time.time() + 1.0))\n        os.rename(AWAY + '.new', AWAY)\n\n\
         tree = Supervisor([child(Database, name='database')])\n",
    );
    let mut node = project.up();
    node.call("database", "go_away", &[]);
    node.wait_for("died: ConnectionError");
    let database = node.eventually("it is back for good", |node| {
        let row = node.ps("database");
        (row["state"] == "running" && row["age_s"].as_f64().is_some_and(|age| age > 0.2)).then_some(row)
    });
    assert!(database["restarts"].as_u64().is_some_and(|restarts| restarts > 0), "{database}");
    node.down();
}
