//! Starts real nodes and looks at them from outside: the binaries, the processes, the command line.
//!
//! A node runs in a directory of its own with a scrubbed environment that carries a mark, by which every process of it
//! is found again, wherever it hides. What is waited for is an event with a deadline; nothing here asserts on a time.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

/// How long anything may take before a test fails: far beyond what it takes on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(40);

/// How long the processes of a dead node may be seen: the promise.
pub const GONE_WITHIN: Duration = Duration::from_secs(2);

/// A directory with an application, in which nodes run.
pub struct Project {
    directory: TempDir,
    runtime: TempDir,
    mark: String,
    python: PathBuf,
}

/// A running `rebeam up`.
pub struct Node<'a> {
    /// Where it runs.
    pub project: &'a Project,
    child: Child,
    lines: Receiver<String>,
    seen: Vec<String>,
}

/// What a command printed and how it ended.
#[derive(Debug)]
pub struct Ran {
    /// Its exit code; `None` if a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// The binary under test.
pub fn rebeam() -> PathBuf {
    if let Some(path) = std::env::var_os("REBEAM_TEST_BIN") {
        return path.into();
    }
    let test = std::env::current_exe().expect("a test has a path");
    let profile = test.parent().and_then(Path::parent).expect("tests stand in target/PROFILE/deps");
    profile.join("rebeam")
}

/// The repository.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the repository").to_owned()
}

/// The Python of the development environment.
pub fn python() -> PathBuf {
    std::env::var_os("REBEAM_TEST_PYTHON").map_or_else(|| root().join(".venv/bin/python"), Into::into)
}

impl Project {
    /// A project whose `app.py` is `source`.
    pub fn new(source: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let project = Project {
            directory: TempDir::with_prefix("rebeam-test-").expect("a directory"),
            runtime: TempDir::with_prefix("rb-").expect("a directory"),
            mark: format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)),
            python: python(),
        };
        project.write("app.py", source);
        project
    }

    /// The same, run by another Python.
    pub fn with_python(mut self, python: &Path) -> Self {
        self.python = python.to_owned();
        self
    }

    /// Writes a file of the project.
    pub fn write(&self, name: &str, text: &str) {
        let path = self.path().join(name);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("folders can be made");
        std::fs::write(path, text).expect("the directory can be written to");
    }

    /// Its directory.
    pub fn path(&self) -> PathBuf {
        self.directory.path().canonicalize().expect("it is there")
    }

    /// Where the sockets of its nodes are kept.
    pub fn runtime(&self) -> &Path {
        self.runtime.path()
    }

    /// The control socket of its node.
    pub fn socket(&self) -> PathBuf {
        let entries = std::fs::read_dir(self.runtime()).expect("it is there").filter_map(Result::ok);
        let mut sockets = entries.map(|entry| entry.path().join("control.sock"));
        sockets.find(|socket| socket.exists()).expect("a node runs")
    }

    /// A `rebeam` command in this project, its environment scrubbed.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = self.command_of(rebeam());
        command.args(args);
        command
    }

    /// Any other program in this project, its environment scrubbed alike.
    pub fn command_of(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command
            .current_dir(self.path())
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            .env("HOME", self.runtime())
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .env("MARK_OF_THE_TEST", &self.mark)
            .env("REBEAM_RUNTIME_DIR", self.runtime())
            .env("REBEAM_PYTHON", &self.python)
            .stdin(Stdio::null());
        command
    }

    /// Runs a command to its end.
    pub fn run(&self, args: &[&str]) -> Ran {
        Ran::from(self.command(args).output().expect("rebeam runs"))
    }

    /// Starts a node and waits until it is up.
    pub fn up(&self) -> Node<'_> {
        self.up_with(&["up", "app.py", "--grace", "20"])
    }

    /// Starts a node by other arguments.
    pub fn up_with(&self, args: &[&str]) -> Node<'_> {
        let mut node = self.start(args);
        node.wait_for("up with");
        node
    }

    /// Starts a node and does not wait.
    pub fn start(&self, args: &[&str]) -> Node<'_> {
        // A group of its own: a test that sends Ctrl-C sends it as a terminal would.
        self.adopt(self.command(args).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0))
    }

    /// Starts a node by a command of the test's own making.
    pub fn adopt(&self, command: &mut Command) -> Node<'_> {
        let mut child = command.spawn().expect("rebeam starts");
        let (sender, lines) = channel();
        let streams: [Option<Box<dyn Read + Send>>; 2] =
            [child.stdout.take().map(|it| Box::new(it) as _), child.stderr.take().map(|it| Box::new(it) as _)];
        for stream in streams.into_iter().flatten() {
            let sender = sender.clone();
            std::thread::spawn(move || {
                for line in BufReader::new(stream).lines().map_while(Result::ok) {
                    if sender.send(line).is_err() {
                        return;
                    }
                }
            });
        }
        Node { project: self, child, lines, seen: Vec::new() }
    }

    /// Every process that carries the project's mark: the supervisor, zygotes, actors and whatever those started.
    pub fn processes(&self) -> BTreeSet<i32> {
        let wanted = format!("MARK_OF_THE_TEST={}\0", self.mark).into_bytes();
        let mut found = BTreeSet::new();
        for entry in std::fs::read_dir("/proc").expect("/proc is there").flatten() {
            let Some(os_pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            let environment = std::fs::read(entry.path().join("environ")).unwrap_or_default();
            if environment.windows(wanted.len()).any(|window| window == wanted) {
                found.insert(os_pid);
            }
        }
        found
    }

    /// Fails unless every process of the project is gone in time.
    pub fn assert_nothing_left(&self) {
        let deadline = Instant::now() + GONE_WITHIN;
        loop {
            let left = self.processes();
            if left.is_empty() {
                return;
            }
            let show = |os_pid: &i32| {
                let line = std::fs::read(format!("/proc/{os_pid}/cmdline")).unwrap_or_default();
                format!("{os_pid} {}", String::from_utf8_lossy(&line).replace('\0', " "))
            };
            assert!(Instant::now() < deadline, "left running: {:?}", left.iter().map(show).collect::<Vec<_>>());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Fails if the directory of the node's socket is not empty.
    pub fn assert_socket_gone(&self) {
        let left: Vec<_> = std::fs::read_dir(self.runtime()).expect("it is there").flatten().collect();
        let names: Vec<_> = left.iter().map(|entry| entry.file_name()).filter(|name| name != ".cache").collect();
        assert!(names.is_empty(), "left in the runtime directory: {names:?}");
    }
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Ran {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl Ran {
    /// Its standard output as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("no JSON ({error}): {self:?}"))
    }

    /// Fails unless it ended with this code and its standard error contains every text.
    pub fn assert_error(&self, code: i32, texts: &[&str]) {
        assert_eq!(self.code, Some(code), "{self:?}");
        for text in texts {
            assert!(self.stderr.contains(text), "`{text}` is not in the error: {self:?}");
        }
        assert!(!self.stderr.contains("panicked"), "{self:?}");
    }
}

impl Node<'_> {
    /// The supervisor's process.
    pub fn os_pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// Waits for a line of its output that contains `text`, and gives it.
    pub fn wait_for(&mut self, text: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    self.seen.push(line.clone());
                    if line.contains(text) {
                        return line;
                    }
                }
                Err(RecvTimeoutError::Timeout) => panic!("`{text}` never came; so far:\n{}", self.seen.join("\n")),
                Err(RecvTimeoutError::Disconnected) => {
                    panic!("it ended without `{text}`; its output:\n{}", self.seen.join("\n"))
                }
            }
        }
    }

    /// Runs a command beside it.
    pub fn run(&self, args: &[&str]) -> Ran {
        self.project.run(args)
    }

    /// Calls a method and gives its result; the call must succeed.
    pub fn call(&self, name: &str, method: &str, args: &[&str]) -> Value {
        let ran = self.run(&[&["call", "--json", "--timeout", "30", name, method], args].concat());
        assert_eq!(ran.code, Some(0), "{ran:?}");
        ran.json()
    }

    /// Asks again until `wanted` says yes; for what can be seen from outside only by looking.
    pub fn eventually<T>(&self, what: &str, mut wanted: impl FnMut(&Self) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(found) = wanted(self) {
                return found;
            }
            assert!(Instant::now() < deadline, "never came true: {what}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// What `ps --json` says of one actor.
    pub fn ps(&self, name: &str) -> Value {
        let list = self.run(&["ps", "--json"]).json();
        let found = list.as_array().and_then(|list| list.iter().find(|it| it["name"] == name || it["id"] == name));
        found.cloned().unwrap_or_else(|| panic!("`{name}` is not in {list}"))
    }

    /// The process of an actor.
    pub fn os_pid_of(&self, name: &str) -> i32 {
        self.ps(name)["os_pid"].as_i64().unwrap_or_else(|| panic!("`{name}` has no process")) as i32
    }

    /// The process of an actor whose supervisor, by our numbers `supervisor`, is process 1 of a namespace of its own.
    pub fn os_pid_in(&self, name: &str, supervisor: i32) -> i32 {
        let inner = self.os_pid_of(name).to_string();
        let is_it = |os_pid: &i32| {
            let status = std::fs::read_to_string(format!("/proc/{os_pid}/status")).unwrap_or_default();
            let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default();
            parent_of(*os_pid) == Some(supervisor) && numbers.split_whitespace().last() == Some(inner.as_str())
        };
        self.project.processes().into_iter().find(is_it).expect("it runs")
    }

    /// The zygote: the child of the supervisor that is no actor, not the keeper, and not what zygotes are forked from.
    pub fn zygote(&self) -> i32 {
        self.find_zygote().expect("there is a zygote")
    }

    /// The same, of a node that may be on its way down, or between two zygotes.
    pub fn find_zygote(&self) -> Option<i32> {
        let ran = self.run(&["ps", "--json"]);
        let list = if ran.code == Some(0) { ran.json() } else { return None };
        let actors: Vec<i64> = list.as_array().expect("a list").iter().filter_map(|it| it["os_pid"].as_i64()).collect();
        let is_zygote = |os_pid: &i32| {
            let line = std::fs::read(format!("/proc/{os_pid}/cmdline")).unwrap_or_default();
            let is_keeper = line.split(|byte| *byte == 0).any(|word| word == b"keeper");
            let name = std::fs::read_to_string(format!("/proc/{os_pid}/comm")).unwrap_or_default();
            let is_base = name.trim_end() == "rebeam-base";
            !is_keeper && !is_base && parent_of(*os_pid) == Some(self.os_pid()) && !actors.contains(&i64::from(*os_pid))
        };
        // What actors have left to the supervisor looks like it, but is younger; process ids tell nothing of age.
        let candidates = self.project.processes().into_iter().filter(is_zygote);
        candidates.min_by_key(|os_pid| started_at(*os_pid))
    }

    /// Sends a signal to the supervisor alone.
    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        kill(self.os_pid(), signal);
    }

    /// Waits for its end; gives its exit status and all its output.
    pub fn wait(mut self) -> (ExitStatus, String) {
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("it is ours") {
                break status;
            }
            assert!(Instant::now() < deadline, "it does not end; so far:\n{}", self.seen.join("\n"));
            if let Ok(line) = self.lines.recv_timeout(Duration::from_millis(5)) {
                self.seen.push(line);
            }
        };
        // A stray process may hold the pipes open: what is there by then is enough.
        while let Ok(line) = self.lines.recv_timeout(Duration::from_millis(500)) {
            self.seen.push(line);
        }
        (status, self.seen.join("\n"))
    }

    /// Stops it in good order and checks that nothing is left.
    pub fn down(self) {
        let project = self.project;
        let ran = self.run(&["down"]);
        assert_eq!(ran.code, Some(0), "{ran:?}");
        let (status, output) = self.wait();
        assert_eq!(status.code(), Some(0), "{output}");
        project.assert_nothing_left();
        project.assert_socket_gone();
    }
}

impl Drop for Node<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends a signal to a process that the test started.
pub fn kill(os_pid: i32, signal: nix::sys::signal::Signal) {
    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(os_pid), signal);
}

/// The parent of a process, if it is alive.
pub fn parent_of(os_pid: i32) -> Option<i32> {
    let stat = std::fs::read_to_string(format!("/proc/{os_pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

/// Whether a process has ended and was not reaped.
pub fn is_zombie(os_pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{os_pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, state)| state.starts_with('Z'))
}

/// Asks over HTTP, with further headers; gives the status and the body.
pub fn http(address: &str, request: &str, headers: &[&str]) -> (u16, String) {
    let mut stream = std::net::TcpStream::connect(address).expect("somebody listens");
    let head: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
    let head = if head.contains("Host:") { head } else { format!("Host: {address}\r\n{head}") };
    write!(stream, "{request} HTTP/1.1\r\n{head}Connection: close\r\n\r\n").expect("it listens");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    (status, body.to_owned())
}

/// When a process was started, in ticks since the machine was.
fn started_at(os_pid: i32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{os_pid}/stat")).unwrap_or_default();
    // The name in brackets may hold anything; the 20th word behind it is the time.
    let behind = stat.rsplit_once(')').map_or("", |(_, behind)| behind);
    behind.split_whitespace().nth(19).and_then(|ticks| ticks.parse().ok()).unwrap_or(u64::MAX)
}

/// Runs one scenario of a fixture inside its actor `tester`, which asserts for itself, in a node of its own.
pub fn run_scenario(file: &str, scenario: &str) {
    let project = scenario_project(file);
    project.write("rebeam.toml", "max_message = \"16MiB\"\n");
    let node = project.up();
    let ran = node.run(&["call", "--timeout", "120", "tester", "run", scenario]);
    assert_eq!((ran.code, ran.stdout.trim()), (Some(0), "ok"), "{}", ran.stderr);
    node.down();
}

/// A project whose application is a fixture with scenarios.
pub fn scenario_project(file: &str) -> Project {
    let project = Project::new(&fixture(file));
    project.write("scenario.py", &fixture("fixtures/scenario.py"));
    project
}

/// The text of a file beside the tests.
pub fn fixture(file: &str) -> String {
    std::fs::read_to_string(root().join("integration-tests").join(file)).expect("the fixture is there")
}

/// One test for each scenario of a fixture: the functions of one argument `t`. They are listed, so that each is a test of
/// its own, and a test checks that the list is whole.
#[macro_export]
macro_rules! scenarios {
    (in $file:literal; $($name:ident,)*) => {
        $(
            #[test]
            fn $name() {
                $crate::run_scenario($file, stringify!($name));
            }
        )*

        /// A scenario that nobody runs would show nothing.
        #[test]
        fn every_scenario_is_run() {
            let source = $crate::fixture($file);
            let defined = source.lines().filter_map(|line| line.strip_prefix("def ")?.strip_suffix("(t):"));
            let listed = [$(stringify!($name)),*];
            let missing: Vec<&str> = defined.filter(|name| !listed.contains(name)).collect();
            assert!(missing.is_empty(), "not run: {missing:?}");
        }
    };
}
