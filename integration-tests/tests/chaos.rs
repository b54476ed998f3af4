//! A minute of chaos: seventy actors killed in every way at random moments, and what must hold all the same.
//!
//! `REBEAM_CHAOS_SECONDS` makes it longer, `REBEAM_CHAOS_SEED` repeats the decisions of a run that failed.

use std::collections::BTreeSet;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use harness::{Node, Project, root};
use serde_json::{Value, json};

fn fixture(name: &str) -> String {
    std::fs::read_to_string(root().join("integration-tests/fixtures").join(name)).expect("it is there")
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

#[expect(clippy::print_stderr, reason = "the seed of a run that fails, and figures")]
fn say(text: &str) {
    eprintln!("{text}");
}

fn descriptors(node: &Node<'_>) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", node.os_pid())).map_or(0, Iterator::count)
}

/// Resident memory of the supervisor, in KiB.
fn resident(node: &Node<'_>) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", node.os_pid())).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("it has a size");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

#[test]
fn chaos() {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |since| since.as_secs());
    let (seed, seconds) = (number("REBEAM_CHAOS_SEED", now), number("REBEAM_CHAOS_SECONDS", 60));
    say(&format!("REBEAM_CHAOS_SEED={seed}"));
    let project = Project::new(&fixture("chaos.py"));
    let mut command = project.command(&["up", "app.py", "--grace", "20"]);
    // A group of its own, as a terminal would give it.
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    command.env("REBEAM_CHAOS_SEED", seed.to_string());
    command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let mut node = project.adopt(&mut command);
    node.wait_for("up with");
    let before = descriptors(&node);
    let timeout = (seconds + 60).to_string();
    let seconds_text = seconds.to_string();
    node.run(&["cast", "wrecker", "run", &seconds_text]);
    let drive = |driver: &str| {
        let ran = project.run(&["call", "--json", "--timeout", &timeout, driver, "run", &seconds_text]);
        assert_eq!(ran.code, Some(0), "seed {seed}: {ran:?}");
        ran.json()
    };
    let drivers = ["driver0", "driver1", "driver2"];
    let (counts, half): (Vec<Value>, u64) = std::thread::scope(|scope| {
        let threads = drivers.map(|driver| scope.spawn(move || drive(driver)));
        std::thread::sleep(Duration::from_secs(seconds / 2));
        let half = resident(&node);
        (threads.into_iter().map(|thread| thread.join().expect("it drives")).collect(), half)
    });
    let end = resident(&node);
    let sum = |of: &dyn Fn(&Value) -> &Value| counts.iter().filter_map(|count| of(count).as_u64()).sum::<u64>();
    let [answered, told, timed_out] = ["answered", "told", "timed out"].map(|how| sum(&|count: &Value| &count[0][how]));
    let listed = node.run(&["ps", "--json"]).json();
    let restarts_of = |label: &str| -> u64 {
        let all = listed.as_array().expect("a list").iter();
        all.filter(|actor| actor["name"] == label).filter_map(|actor| actor["restarts"].as_u64()).sum()
    };
    let restarts: u64 = listed.as_array().map_or(0, |all| all.iter().filter_map(|it| it["restarts"].as_u64()).sum());
    say(&format!(
        "seed {seed}: {answered} calls answered, {told} told, {timed_out} timed out, {restarts} restarts, \
         {half} KiB after half of the time, {end} KiB at the end"
    ));
    assert!(answered > 0 && restarts > 0, "seed {seed}: nothing happened");
    assert!(end < half + 32 * 1024, "seed {seed}: the supervisor grew from {half} to {end} KiB");

    // It heals: everybody answers again.
    let sent_to: Vec<String> = counts[0][1].as_object().expect("by label").keys().cloned().collect();
    let is_leaf = |label: &&String| label.len() == 3 && !label.starts_with("fn");
    let labels: Vec<String> = sent_to.iter().filter(is_leaf).cloned().collect();
    assert_eq!((labels.len(), sent_to.len()), (54, 58));
    for label in &labels {
        node.eventually(&format!("seed {seed}: {label} answers"), |node| {
            let ran = node.run(&["call", "--timeout", "5", label, "echo", "1"]);
            (ran.code == Some(0)).then_some(())
        });
    }
    node.eventually("what runs is as many as before", |node| {
        let running = node.run(&["ps", "--json"]).json();
        let running = running.as_array().expect("a list").iter().filter(|it| it["state"] == "running").count();
        (running > labels.len() + drivers.len() + 1).then_some(())
    });
    // What waits for the others is handled, too; the last casts may have been to hang.
    for label in (0..4).map(|number| format!("parts/{number}")).chain((0..3).map(|number| format!("fn{number}"))) {
        node.eventually(&format!("seed {seed}: {label} has handled what it was sent"), |node| {
            let listed = node.ps(&label);
            let is_idle = label.starts_with("fn") || listed["busy"].is_null();
            (listed["state"] == "running" && listed["waiting"] == 0 && is_idle).then_some(())
        });
    }
    for n in 0..6 {
        // Temporary ones of the pool, if they live.
        node.run(&["stop", &format!("d{n}")]);
    }
    let told_lost = node.call("observer", "tally", &[]);
    node.eventually("no descriptor is left over", |node| (descriptors(node) <= before).then_some(()));

    let ran = node.run(&["down"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let (status, output) = node.wait();
    assert_eq!(status.code(), Some(0), "seed {seed}: {output}");
    project.assert_nothing_left();
    project.assert_socket_gone();
    let violations = std::fs::read_to_string(project.path().join("violations")).unwrap_or_default();
    assert_eq!(violations, "", "seed {seed}");

    // Each cast was handled once, or is told to be lost; what was in hand at a death may be both.
    for label in sent_to.iter().filter(|label| !label.ends_with('5')) {
        let sent = sum(&|count: &Value| &count[1][label]);
        let files: Vec<String> = match label.as_str() {
            "parts" => (0..4).map(|number| format!("handled-parts-{number}")).collect(),
            label => vec![format!("handled-{label}")],
        };
        let read = |file: &String| std::fs::read_to_string(project.path().join(file)).unwrap_or_default();
        let text: String = files.iter().map(read).collect();
        let handled: Vec<&str> = text.lines().collect();
        let distinct: BTreeSet<&str> = handled.iter().copied().collect();
        assert_eq!(distinct.len(), handled.len(), "seed {seed}: {label} handled something twice");
        // What a function has received is its own affair: a death may cost one message.
        let untold = if label.starts_with("fn") { restarts_of(label) + 1 } else { 0 };
        let lost = told_lost[label].as_u64().unwrap_or(0) + untold;
        assert!(
            distinct.len() as u64 + lost >= sent,
            "seed {seed}: of {sent} casts to {label} {} were handled and {lost} told lost",
            distinct.len()
        );
    }
}

#[test]
fn the_supervisors_memory_is_flat_over_ten_thousand_restarts() {
    let project = Project::new(
        "import time, rebeam\nfrom rebeam import *\n\
         class A(Actor):\n    pass\n\
         class Driver(Actor):\n    \
         def run(self, count):\n        \
         for _ in range(count):\n            \
         monitor = rebeam.monitor('a')\n            rebeam.kill('a')\n            \
         rebeam.receive(lambda m: isinstance(m, Down) and m.monitor == monitor, 60)\n            \
         while rebeam.whereis('a') is None:\n                time.sleep(0.0005)\n\
         tree = Supervisor([child(A, name='a'), child(Driver, name='driver')], max_restarts=1_000_000, max_seconds=1)\n",
    );
    let restarts = number("REBEAM_RESTARTS", 10_000);
    let node = project.up();
    let run = |count: u64| {
        let ran = node.run(&["call", "--timeout", "600", "driver", "run", &count.to_string()]);
        assert_eq!(ran.code, Some(0), "{ran:?}");
        resident(&node)
    };
    let first = run(restarts / 10);
    let last = run(restarts - restarts / 10);
    say(&format!("{first} KiB after a tenth of {restarts} restarts, {last} KiB after all"));
    assert!(last <= first + 2048, "{first} KiB, then {last} KiB");
    node.down();
}

/// One actor takes a millisecond for each message and another sends without end: the sender waits, the supervisor holds
/// no more than the mailbox may, and others are answered meanwhile (`make bench` says how fast).
#[test]
fn a_flood_of_a_minute_at_a_slow_actor_stays_within_the_mailbox() {
    let project = Project::new(FLOOD);
    let node = project.up();
    let before = resident(&node);
    node.run(&["cast", "flooder", "flood", "60"]);
    let mut most = 0;
    let mut answered = 0;
    node.eventually("the mailbox is full", |node| {
        node.ps("slow")["waiting"].as_u64().filter(|waiting| *waiting >= 10_000)
    });
    let until = Instant::now() + Duration::from_secs(58);
    while Instant::now() < until {
        assert_eq!(node.call("echo", "echo", &["1"]), json!(1));
        answered += 1;
        most = most.max(resident(&node));
        std::thread::sleep(Duration::from_millis(200));
    }
    assert!(answered > 100, "{answered}");
    // 10,064 messages of 1 KiB, each with its envelope: 1.3 KiB by the target of the benchmarks.
    let grown = most - before;
    assert!(grown < 24 * 1024, "the supervisor grew by {grown} KiB");
    node.down();
}

const FLOOD: &str = r#"
import time
import rebeam
from rebeam import Actor, Supervisor, child

class Slow(Actor):
    def note(self, message):
        time.sleep(0.001)

class Echo(Actor):
    def echo(self, value):
        return value

class Flooder(Actor):
    def flood(self, seconds):
        slow = rebeam.ref(Slow, "slow").options(timeout=None)
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            slow.cast(Slow.note, b"x" * 1024)

tree = Supervisor([child(Slow, name="slow", shutdown="brutal_kill"), child(Echo, name="echo"), child(Flooder, name="flooder")])
"#;

/// NAM-001, NAM-002, NAM-007, MON-005: eight actors register, unregister, die and look up for a minute; an observer finds
/// no name with two holders, none that stays taken, and nobody is found whose end was seen.
#[test]
fn names_are_never_torn_while_actors_race_and_die() {
    let seconds = number("REBEAM_CHAOS_SECONDS", 60);
    let project = Project::new(&fixture("race.py"));
    let node = project.up();
    let timeout = (seconds + 60).to_string();
    let ran = node.run(&["call", "--timeout", &timeout, "observer", "run", &seconds.to_string()]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let looks: u64 = ran.stdout.trim().parse().expect("a number");
    let restarts: u64 = node
        .run(&["ps", "--json"])
        .json()
        .as_array()
        .map_or(0, |all| all.iter().filter_map(|actor| actor["restarts"].as_u64()).sum());
    assert_eq!(node.run(&["stop", "racers"]).code, Some(0));
    let registered = node.call("observer", "total", &[]);
    say(&format!("{registered} times registered, {restarts} restarts, {looks} looks"));
    assert!(registered.as_u64() > Some(0) && restarts > 0 && looks > 0, "nothing happened");
    let violations = std::fs::read_to_string(project.path().join("violations")).unwrap_or_default();
    assert_eq!(violations, "");
    assert_eq!(node.call("observer", "take_all", &[]), json!(5));
    node.down();
}
