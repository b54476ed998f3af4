//! `make bench`: figures of the release build beside floors measured in the same run, as ratios.
//!
//! The floor of a call is three plain processes that relay 64 bytes over socketpairs; of a cast, a bare
//! `multiprocessing.Pipe` in the same Python. Latencies depend on where the scheduler puts the processes, so calls are
//! measured on one CPU and free. Medians of five runs with minimum and maximum; nothing here passes or fails.

#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "a program that prints figures, and stops if it cannot")]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

const RUNS: usize = 5;

fn main() {
    let rebeam = PathBuf::from(std::env::args().nth(1).expect("the path of the release build's `rebeam`"));
    let python = std::env::var("VIRTUAL_ENV").expect("VIRTUAL_ENV") + "/bin/python";
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut table = Table::default();
    let load = std::fs::read_to_string("/proc/loadavg").unwrap();
    println!("load before: {}", load.trim());

    latencies(&mut table, &rebeam, here);
    throughput(&mut table, &rebeam, here, &python);
    beside_work(&mut table, &rebeam, here, &python);
    growth(&mut table, &rebeam, here);
    names(&mut table, &rebeam, here);
    starts(&mut table, &rebeam, here, &python);
    script(&mut table, &rebeam, &here.join("reload.py"), &python);
    script(&mut table, &rebeam, &here.join("tables.py"), &python);
    script(&mut table, &rebeam, &here.join("programs.py"), &python);

    println!("load after: {}", std::fs::read_to_string("/proc/loadavg").unwrap().trim());
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap();
    let cpu = cpu.lines().find_map(|line| line.strip_prefix("model name\t: ")).unwrap_or("?").to_owned();
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let date = output(Command::new("date").arg("+%Y-%m-%d")).trim().to_owned();
    let results = json!({ "date": date, "cpu": cpu, "cpus": cpus, "load": load.trim(), "rows": table.rows });
    std::fs::write(here.join("results.json"), format!("{results:#}\n")).unwrap();
}

/// Calls, by where the scheduler may put whom; the floor is a relay in this very program.
fn latencies(table: &mut Table, rebeam: &Path, here: &Path) {
    for (label, place) in [("one CPU", Place::One), ("two CPUs", Place::Two), ("free", Place::Free)] {
        calm();
        let floors: Vec<[f64; 2]> = (0..RUNS).map(|_| relay(place)).collect();
        let node = Node::up(rebeam, here, place, &[("IDLE", 10)]);
        let calls: Vec<[f64; 2]> = (0..RUNS).map(|_| pair(&node.call("bench", "calls", &["20000"]))).collect();
        node.down();
        for (which, name) in ["p50", "p99"].iter().enumerate() {
            let of = |values: &[[f64; 2]]| values.iter().map(|it| it[which]).collect::<Vec<_>>();
            table.row(&format!("call {name}, {label}"), "µs", &of(&calls), &of(&floors));
        }
    }
}

fn throughput(table: &mut Table, rebeam: &Path, here: &Path, python: &str) {
    calm();
    let node = Node::up(rebeam, here, Place::Free, &[("IDLE", 10), ("PAIRS", 8)]);
    let pipe = runs(|| number(&output(Command::new(python).arg(here.join("pipe.py")))));
    let casts = runs(|| number(&node.call("bench", "casts", &["200000"]).to_string()));
    table.row("casts, one to one", "/s", &casts, &pipe);
    let pairs = runs(|| number(&node.call("bench", "pairs", &["20000"]).to_string()));
    table.row("casts, eight pairs together", "/s", &pairs, &casts);
    let kills = pair(&node.call("bench", "kills", &["100"]));
    table.row("killed to answering by name", "ms", &kills[..1], &[]);
    table.row("… the worst of 100", "ms", &kills[1..], &[]);
    let big = (64 << 20).to_string();
    let buffers: Vec<[f64; 2]> = (0..RUNS).map(|_| pair(&node.call("bench", "buffers", &[&big]))).collect();
    let of = |which: usize| buffers.iter().map(|it| it[which]).collect::<Vec<_>>();
    table.row("64 MiB to an actor, its sender", "GB/s", &of(0), &of(1));
    let shared = |size: &str| number(&node.call("bench", "shared", &[size]).to_string());
    let small = runs(|| shared("65536"));
    table.row("call with 64 MiB shared before", "µs", &runs(|| shared(&big)), &small);
    let calls = || pair(&node.call("bench", "calls", &["20000"]))[0];
    let calm = runs(calls);
    let (before, _, _) = node.memory();
    node.command(&["cast", "flooder", "flood", "20"]).status().unwrap();
    table.row("call p50 beside a flood of casts", "µs", &runs(calls), &calm);
    table.row("PSS of the supervisor in the flood", "MiB", &[node.memory().0], &[before]);
    node.down();
}

/// What it costs that there is more of everything.
/// Calls beside processes that use their CPUs all the time; the floor is a pipe, taken turn and turn about, since what the
/// scheduler does there differs from second to second.
fn beside_work(table: &mut Table, rebeam: &Path, here: &Path, python: &str) {
    const TURNS: usize = 15;
    for count in [2, 4, 8] {
        calm();
        let node = Node::up(rebeam, here, Place::Free, &[]);
        let busy = || Command::new(python).args(["-c", "while True: pass"]).spawn().unwrap();
        let busy: Vec<Child> = std::iter::repeat_with(busy).take(count).collect();
        let (mut calls, mut pipe) = (Vec::new(), Vec::new());
        for _ in 0..TURNS {
            calls.push(number(&node.call("bench", "calls_within", &["1"]).to_string()));
            pipe.push(number(&output(Command::new(python).arg(here.join("pipe.py")).arg("1"))));
        }
        for mut one in busy {
            one.kill().and_then(|()| one.wait()).unwrap();
        }
        node.down();
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
        table.row(&format!("calls beside {count} busy loops, mean"), "/s", &[mean(&calls)], &[mean(&pipe)]);
    }
}

fn growth(table: &mut Table, rebeam: &Path, here: &Path) {
    calm();
    let few = Node::up(rebeam, here, Place::Free, &[("IDLE", 10)]);
    let many = Node::up(rebeam, here, Place::Free, &[("IDLE", 1000)]);
    let calls = |node: &Node| pair(&node.call("bench", "calls", &["10000"]))[0];
    // In turns, since the machine drifts.
    let (mut beside_few, mut beside_many) = (Vec::new(), Vec::new());
    for _ in 0..RUNS {
        beside_few.push(calls(&few));
        beside_many.push(calls(&many));
    }
    table.row("call p50 beside 1,000 idle actors", "µs", &beside_many, &beside_few);
    many.down();
    let calm = runs(|| calls(&few));
    let (before, _, _) = few.memory();
    few.call("bench", "pile_up", &["100000"]);
    let each = (few.memory().0 - before) * 1024.0 / 100_000.0;
    table.row("PSS of the supervisor per waiting 1 KiB", "KiB", &[each], &[]);
    table.row("call p50 beside 100,000 waiting elsewhere", "µs", &runs(|| calls(&few)), &calm);
    few.down();

    let node = Node::up(rebeam, here, Place::Free, &[("IDLE", 100)]);
    let (supervisor, zygote, actors) = node.memory();
    table.row("PSS of an idle actor of 100", "MiB", &actors, &[]);
    table.row("PSS of supervisor, zygote and keeper", "MiB", &[supervisor + zygote], &[]);
    table.row("CPU of 100 idle actors", "ms/s", &[node.idle_cpu()], &[]);
    table.row("`rebeam ps` of 100", "ms", &runs(|| timed(&mut node.command(&["ps", "--json"]))), &[]);
    table.row("`rebeam version`", "ms", &runs(|| timed(&mut node.command(&["version"]))), &[]);
    node.down();
}

/// What a script measures by itself. The floor of a save is `uvicorn --reload` of the same imports; of what a node holds after
/// 100 reloads, the same after 5; of what is done to a table, what its name says.
fn script(table: &mut Table, rebeam: &Path, script: &Path, python: &str) {
    calm();
    let rows = output(Command::new(python).arg(script).arg(rebeam));
    for row in serde_json::from_str::<Vec<Value>>(&rows).unwrap() {
        let values =
            |key: &str| -> Vec<f64> { row[key].as_array().unwrap().iter().filter_map(Value::as_f64).collect() };
        let text = |key: &str| row[key].as_str().unwrap().to_owned();
        table.row(&text("name"), &text("unit"), &values("values"), &values("floor"));
    }
}

/// The floors are a bare interpreter, and the fork of a warm one.
fn starts(table: &mut Table, rebeam: &Path, here: &Path, python: &str) {
    calm();
    let bare = runs(|| timed(Command::new(python).args(["-c", "pass"])));
    let cold = runs(|| {
        let started = Instant::now();
        let node = Node::up(rebeam, here, Place::Free, &[]);
        let took = started.elapsed().as_secs_f64() * 1000.0;
        node.down();
        took
    });
    table.row("`up` of a small app until it serves", "ms", &cold, &bare);
    let alone = median(&cold);
    let fork = runs(|| number(&output(Command::new(python).arg(here.join("fork.py")))));
    let node = Node::up(rebeam, here, Place::Free, &[]);
    let started: Vec<[f64; 2]> = (0..RUNS).map(|_| pair(&node.call("bench", "starts", &["40"]))).collect();
    node.down();
    table.row("an actor, asked for to first answer", "ms", &started.iter().map(|it| it[0]).collect::<Vec<_>>(), &fork);
    for count in [100, 1000] {
        let each = runs(|| {
            let node = Node::up(rebeam, here, Place::Free, &[("IDLE", count)]);
            let took = (node.took_ms - alone) / count as f64;
            node.down();
            took
        });
        table.row(&format!("start of each of {count} actors"), "ms", &each, &fork);
    }
}

/// Which CPUs who may run on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// All on one.
    One,
    /// Who relays on one, the two who talk on another.
    Two,
    Free,
}

impl Place {
    fn of_relay(self) -> Option<&'static str> {
        match self {
            Place::One => Some("0"),
            Place::Two => Some("1"),
            Place::Free => None,
        }
    }

    fn of_ends(self) -> Option<&'static str> {
        if self == Place::Free { None } else { Some("0") }
    }
}

/// Waits for the machine to have little else to do, half a minute at most.
fn calm() {
    let busy = || {
        let text = std::fs::read_to_string("/proc/stat").unwrap();
        let fields: Vec<f64> = text.lines().next().unwrap().split_whitespace().skip(1).map(number).collect();
        (fields.iter().sum::<f64>() - fields[3] - fields[4], fields.iter().sum::<f64>())
    };
    for _ in 0..30 {
        let before = busy();
        std::thread::sleep(Duration::from_secs(1));
        let after = busy();
        if (after.0 - before.0) / (after.1 - before.1) < 0.05 {
            return;
        }
    }
    println!("(the machine is not calm)");
}

/// What names cost: a look, a change beside so many actors that have looked, and ten thousand of them.
fn names(table: &mut Table, rebeam: &Path, here: &Path) {
    for count in [10, 100, 1000] {
        let node = Node::up(rebeam, here, Place::Free, &[("IDLE", count)]);
        if count == 10 {
            let looks: Vec<[f64; 2]> = (0..RUNS).map(|_| pair(&node.call("bench", "lookups", &["1000"]))).collect();
            let dictionary: Vec<f64> = looks.iter().map(|it| it[1]).collect();
            table.row("look-up of a name", "ns", &looks.iter().map(|it| it[0]).collect::<Vec<_>>(), &dictionary);
        }
        assert_eq!(node.call("bench", "look_all", &[]), json!(count));
        let own = u64::from(node.child.id());
        let before = cpu_ns(own);
        let changes = runs(|| number(&node.call("bench", "changes", &["1000"]).to_string()));
        let each = (cpu_ns(own) - before) / (RUNS * 2000) as f64 / 1000.0;
        table.row(&format!("a name changes, {count} have looked"), "µs", &changes, &[]);
        table.row("… in the supervisor", "µs", &[each], &[]);
        if count == 100 {
            let (supervisor_before, _, before) = node.memory();
            node.call("bench", "fill", &["10000"]);
            let (supervisor, _, after) = node.memory();
            let grown = |who: usize| (after[who] - before[who]) * 1024.0;
            table.row("10,000 names, in one that does not look", "KiB", &[grown(after.len() - 1)], &[]);
            node.call("bench", "look_all", &[]);
            let (_, _, after) = node.memory();
            let grown = |who: usize| (after[who] - before[who]) * 1024.0;
            table.row("… in one that has looked", "KiB", &[grown(after.len() - 1)], &[]);
            table.row("… in the supervisor", "KiB", &[(supervisor - supervisor_before) * 1024.0], &[]);
        }
        node.down();
    }
}

fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

#[derive(Default)]
struct Table {
    rows: Vec<Value>,
}

impl Table {
    fn row(&mut self, name: &str, unit: &str, ours: &[f64], floor: &[f64]) {
        let sorted = |values: &[f64]| {
            let mut values = values.to_vec();
            values.sort_by(f64::total_cmp);
            values
        };
        let ours = sorted(ours);
        let median = ours[ours.len() / 2];
        let mut line = format!("{name:<36} {median:>10.2} {unit:<5} ({:.2} … {:.2})", ours[0], ours[ours.len() - 1]);
        let mut row = json!({ "name": name, "unit": unit, "median": median, "all": ours });
        if !floor.is_empty() {
            let floor = sorted(floor);
            let floor = floor[floor.len() / 2];
            line += &format!("   floor {floor:.2}, ratio {:.2}", median / floor);
            row["floor"] = json!(floor);
            row["ratio"] = json!(median / floor);
        }
        println!("{line}");
        self.rows.push(row);
    }
}

fn runs(measure: impl FnMut() -> f64) -> Vec<f64> {
    std::iter::repeat_with(measure).take(RUNS).collect()
}

fn output(command: &mut Command) -> String {
    let output = command.stderr(Stdio::inherit()).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

fn number(text: &str) -> f64 {
    text.trim().parse().unwrap()
}

fn pair(value: &Value) -> [f64; 2] {
    [value[0].as_f64().unwrap(), value[1].as_f64().unwrap()]
}

fn timed(command: &mut Command) -> f64 {
    let started = Instant::now();
    assert!(command.stdout(Stdio::null()).status().unwrap().success());
    started.elapsed().as_secs_f64() * 1000.0
}

/// The round trip of 64 bytes through a relay, between three processes, in µs: its median, and its 99th percentile.
fn relay(place: Place) -> [f64; 2] {
    let (mut client, left) = UnixStream::pair().unwrap();
    let (right, server) = UnixStream::pair().unwrap();
    let children = [fork(place.of_relay(), || pump_both(&left, &right)), fork(place.of_ends(), || echo(&server))];
    drop((left, right, server));
    pin(place.of_ends());
    let mut buffer = [7; 64];
    let mut times: Vec<f64> = (0..20_000)
        .map(|_| {
            let started = Instant::now();
            client.write_all(&buffer).unwrap();
            client.read_exact(&mut buffer).unwrap();
            started.elapsed().as_secs_f64() * 1e6
        })
        .collect();
    drop(client);
    for child in children {
        // They hold each other's ends, so none of them sees an end of file.
        // SAFETY: ends and waits for a child of ours.
        unsafe {
            libc::kill(child, libc::SIGKILL);
            libc::waitpid(child, std::ptr::null_mut(), 0);
        }
    }
    unpin();
    times.sort_by(f64::total_cmp);
    [times[times.len() / 2], times[times.len() * 99 / 100]]
}

fn fork(cpus: Option<&str>, work: impl FnOnce()) -> i32 {
    // SAFETY: this program has one thread; the child only reads and writes, and ends without coming back.
    match unsafe { libc::fork() } {
        0 => {
            pin(cpus);
            work();
            // SAFETY: ends the child.
            unsafe { libc::_exit(0) }
        }
        child => child,
    }
}

fn pin(cpus: Option<&str>) {
    if let Some(cpu) = cpus {
        let mut set = nix::sched::CpuSet::new();
        set.set(cpu.parse().unwrap()).unwrap();
        nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set).unwrap();
    }
}

fn unpin() {
    let mut set = nix::sched::CpuSet::new();
    let count = std::thread::available_parallelism().map_or(1, usize::from).max(2);
    (0..count).for_each(|cpu| set.set(cpu).unwrap());
    let _ = nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set);
}

/// Relays between two sockets, waiting for either as a supervisor must.
fn pump_both(left: &UnixStream, right: &UnixStream) {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use std::os::fd::AsFd;
    let mut buffer = [0; 64];
    loop {
        let mut fds = [PollFd::new(left.as_fd(), PollFlags::POLLIN), PollFd::new(right.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::NONE).unwrap();
        let is_left = fds[0].any() == Some(true);
        let (mut from, mut to) = if is_left { (left, right) } else { (right, left) };
        if from.read_exact(&mut buffer).is_err() || to.write_all(&buffer).is_err() {
            return;
        }
    }
}

fn echo(mut server: &UnixStream) {
    let mut buffer = [0; 64];
    while server.read_exact(&mut buffer).is_ok() && server.write_all(&buffer).is_ok() {}
}

/// A running node of `app.py`.
struct Node {
    rebeam: PathBuf,
    directory: PathBuf,
    runtime: tempfile::TempDir,
    child: Child,
    took_ms: f64,
}

impl Node {
    fn up(rebeam: &Path, directory: &Path, place: Place, settings: &[(&str, usize)]) -> Self {
        let runtime = tempfile::tempdir().unwrap();
        let mut command = match place.of_relay() {
            Some(cpus) => {
                let mut command = Command::new("taskset");
                command.args(["-c", cpus]).arg(rebeam);
                command
            }
            None => Command::new(rebeam),
        };
        let started = Instant::now();
        let mut child = command
            .args(["up", "app.py"])
            .current_dir(directory)
            .env("REBEAM_RUNTIME_DIR", runtime.path())
            .envs(settings.iter().map(|(name, value)| (name, value.to_string())))
            .env("ACTOR_CPUS", place.of_ends().unwrap_or_default())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut seen = String::new();
        let mut stderr = child.stderr.take().unwrap();
        let mut chunk = [0; 4096];
        while !seen.contains("up with") {
            let count = stderr.read(&mut chunk).unwrap();
            assert!(count > 0, "the node did not come up: {seen}");
            seen.push_str(&String::from_utf8_lossy(&chunk[..count]));
        }
        let took_ms = started.elapsed().as_secs_f64() * 1000.0;
        std::thread::spawn(move || while stderr.read(&mut chunk).is_ok_and(|count| count > 0) {});
        Node { rebeam: rebeam.into(), directory: directory.into(), runtime, child, took_ms }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.rebeam);
        command.args(args).current_dir(&self.directory).env("REBEAM_RUNTIME_DIR", self.runtime.path());
        command
    }

    fn call(&self, name: &str, method: &str, args: &[&str]) -> Value {
        let all = [&["call", "--json", "--timeout", "100", name, method], args].concat();
        serde_json::from_str(&output(&mut self.command(&all))).unwrap()
    }

    fn memory(&self) -> (f64, f64, Vec<f64>) {
        let list: Value = serde_json::from_str(&output(&mut self.command(&["ps", "--json"]))).unwrap();
        let actors: Vec<u64> = list.as_array().unwrap().iter().filter_map(|it| it["os_pid"].as_u64()).collect();
        let own = u64::from(self.child.id());
        let children = std::fs::read_to_string(format!("/proc/{own}/task/{own}/children")).unwrap();
        // The zygote, what it has forked ahead of need, and the keeper.
        let others = children.split_whitespace().filter_map(|it| it.parse().ok()).filter(|it| !actors.contains(it));
        (pss(own), others.map(pss).sum(), actors.into_iter().map(pss).collect())
    }

    /// CPU that all processes of the node use in a second of doing nothing, in ms.
    fn idle_cpu(&self) -> f64 {
        let own = u64::from(self.child.id());
        let children = std::fs::read_to_string(format!("/proc/{own}/task/{own}/children")).unwrap();
        let all: Vec<u64> = children.split_whitespace().filter_map(|it| it.parse().ok()).chain([own]).collect();
        let used = || all.iter().map(|os_pid| cpu_ns(*os_pid)).sum::<f64>();
        let before = used();
        std::thread::sleep(Duration::from_secs(3));
        (used() - before) / 3e6
    }

    fn down(mut self) {
        assert!(self.command(&["down"]).status().unwrap().success());
        self.child.wait().unwrap();
    }
}

fn pss(os_pid: u64) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{os_pid}/smaps_rollup")).unwrap();
    let line = text.lines().find(|line| line.starts_with("Pss:")).unwrap();
    number(line.split_whitespace().nth(1).unwrap()) / 1024.0
}

fn cpu_ns(os_pid: u64) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{os_pid}/schedstat")).unwrap();
    number(text.split_whitespace().next().unwrap())
}
