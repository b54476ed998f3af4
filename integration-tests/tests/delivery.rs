//! What a crash costs, counted from outside with kills for real; dead letters on the command line; what outsiders can and
//! cannot send.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use harness::{Node, Project, fixture, kill};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::project;

const KILLS: u64 = 50;

/// How often each message of each sender was done: by sender and number.
type Done = BTreeMap<(String, u64), u64>;

fn read_log(project: &Project) -> (Done, bool) {
    let log = std::fs::read_to_string(project.path().join("log")).expect("a log");
    let mut done = Done::new();
    let mut last = BTreeMap::new();
    let mut is_in_order = true;
    for line in log.lines() {
        let (sender, number) = line.split_once(' ').expect("a sender and a number");
        let number: u64 = number.parse().expect("a number");
        is_in_order &= last.insert(sender.to_owned(), number).is_none_or(|before| before < number);
        *done.entry((sender.to_owned(), number)).or_default() += 1;
    }
    (done, is_in_order)
}

/// Kills actors of a node in turn, each as soon as it is up again, after so many steps of a pause of its own.
fn kill_again_and_again(node: &Node<'_>, victims: &[&str], seed: u64) {
    let mut chance = seed;
    for round in 0..KILLS {
        let victim = victims[round as usize % victims.len()];
        node.eventually("all are up", |node| {
            let is_up = |name: &&str| node.ps(name)["state"] == "running";
            victims.iter().all(is_up).then_some(())
        });
        chance = chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        // So the kill comes at some moment of the work, not always at its start.
        (0..chance >> 59).for_each(|_| drop(node.ps(victim)));
        // Another's death, which the node had not seen yet, may have taken it along.
        let os_pid = node.eventually("it has a process", |node| node.ps(victim)["os_pid"].as_i64());
        kill(os_pid as i32, Signal::SIGKILL);
    }
}

fn every_message_is_accounted_for(strategy: &str, victims: &[&str]) {
    let seed = u64::from(std::process::id());
    let project = Project::new(&fixture("fixtures/counts.py").replace("\"one_for_one\"", &format!("\"{strategy}\"")));
    let node = project.up();
    for sender in 0..4 {
        node.run(&["cast", &format!("s{sender}"), "go"]);
    }
    kill_again_and_again(&node, victims, seed);
    node.eventually("all is sent", |node| {
        (0..4).all(|sender| node.ps(&format!("s{sender}"))["busy"].is_null()).then_some(())
    });
    assert_eq!(node.call("sink", "ready", &[]), json!(true));
    let (done, is_in_order) = read_log(&project);
    assert!(is_in_order, "the order of each sender is kept");
    assert!(done.values().all(|times| *times == 1), "each is done at most once");
    let mut answered = 0;
    let mut died = 0;
    for sender in 0..4 {
        let tally = node.call(&format!("s{sender}"), "tally", &[]);
        let numbers = |place: usize| -> Vec<u64> {
            tally[place].as_array().expect("a list").iter().filter_map(Value::as_u64).collect()
        };
        for number in numbers(0) {
            assert!(done.contains_key(&(format!("s{sender}"), number)), "answered, so done");
        }
        answered += numbers(0).len();
        died += numbers(1).len();
    }
    assert_eq!(answered + died, 1000, "every call is answered or fails with ActorDied");
    let dead = node.run(&["dead", "list", "--json"]).json();
    let letters = dead["dead_letters"].as_array().expect("a list");
    assert!(letters.iter().all(|letter| letter["cause"] == "outcome_unknown" && letter["method"] == "note"), "{dead}");
    assert_eq!(dead["forgotten"], json!(0));
    let casts = |done: &Done| {
        (0..4)
            .flat_map(|sender| (0..2750u64).map(move |number| (format!("s{sender}"), number)))
            .filter(|(_, number)| number % 11 != 10)
            .map(|key| done.get(&key).copied().unwrap_or(0))
            .collect::<Vec<u64>>()
    };
    let missing = casts(&done).iter().filter(|times| **times == 0).count();
    assert!(missing <= letters.len(), "{missing} missing, {} dead letters", letters.len());
    // Sent again, each dead letter is one cast: what was missing is there, and nothing else has come twice.
    if !letters.is_empty() {
        let ran = node.run(&["dead", "replay", "--all"]);
        assert_eq!(ran.stdout.trim(), format!("{} sent again", letters.len()));
        assert_eq!(node.call("sink", "ready", &[]), json!(true));
        let after = casts(&read_log(&project).0);
        assert!(after.iter().all(|times| (1..=2).contains(times)));
        let twice = after.iter().filter(|times| **times == 2).count();
        assert_eq!(twice, letters.len() - missing, "those whose outcome was unknown, and that had been done");
    }
    node.down();
}

#[test]
fn every_message_is_accounted_for_under_one_for_one() {
    every_message_is_accounted_for("one_for_one", &["sink"]);
}

#[test]
fn every_message_is_accounted_for_under_one_for_all() {
    every_message_is_accounted_for("one_for_all", &["sink", "sibling"]);
}

#[test]
fn dead_letters_are_listed_shown_sent_again_and_dropped() {
    let project = project("child(Child, name='a')");
    let node = project.up();
    node.run(&["cast", "a", "exit", "9"]);
    node.eventually("it is back", |node| (node.ps("a")["restarts"] == 1).then_some(()));
    let list = node.run(&["dead", "list"]);
    let line = list.stdout.lines().nth(1).expect("one letter");
    assert!(line.starts_with("1   a   exit    outside"), "{}", list.stdout);
    let letter = node.run(&["dead", "show", "1", "--json"]).json();
    assert_eq!((&letter["to"], &letter["method"], &letter["deliveries"]), (&json!("a"), &json!("exit"), &json!(1)));
    assert_eq!(letter["certificates"][0]["in_hand"][0]["method"], json!("exit"));
    assert!(node.run(&["dead", "show", "1"]).stdout.contains("exit_code(9)"));
    let missing = node.run(&["dead", "show", "7"]);
    assert_eq!(missing.code, Some(1));
    assert!(missing.stderr.contains("dead letter 7"), "{}", missing.stderr);
    let ran = node.run(&["dead", "replay"]);
    assert_eq!(ran.code, Some(2), "{ran:?}");
    assert_eq!(node.run(&["dead", "replay", "1"]).code, Some(0));
    node.eventually("it has killed again", |node| (node.ps("a")["restarts"] == 2).then_some(()));
    assert_eq!(node.run(&["dead", "drop", "--to", "a"]).stdout.trim(), "1 forgotten");
    let nothing = node.run(&["dead", "drop", "--all"]);
    assert_eq!(nothing.code, Some(1), "{nothing:?}");
    node.down();
}

/// A connection that says what it likes.
fn attack(node: &Node<'_>, bytes: &[u8]) -> Vec<u8> {
    let socket = node.project.socket();
    let mut stream = UnixStream::connect(socket).expect("it is there");
    stream.set_read_timeout(Some(std::time::Duration::from_millis(500))).expect("a socket");
    // The other side may have closed at the first of these bytes.
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    answer
}

/// What comes back from a connection that says what it likes, and waits for that.
fn answer(node: &Node<'_>, bytes: &[u8]) -> Vec<u8> {
    let mut stream = UnixStream::connect(node.project.socket()).expect("it is there");
    stream.write_all(bytes).expect("it is taken");
    let mut found = Vec::new();
    // Two frames: a greeting, and the answer.
    for _ in 0..2 {
        let mut length = [0; 4];
        stream.read_exact(&mut length).expect("a frame");
        found.resize(u32::from_le_bytes(length) as usize, 0);
        stream.read_exact(&mut found).expect("a whole frame");
    }
    found
}

#[test]
fn nothing_from_outside_is_ever_unpickled() {
    use rebeam_protocol::address::Address;
    use rebeam_protocol::frame::{self, MAX_FRAME};
    use rebeam_protocol::id::RequestId;
    use rebeam_protocol::message::Waits;
    use rebeam_protocol::outside::{Asked, Hello, Request};
    use rebeam_protocol::process::{ProcessRequest, SupervisorRequest};
    use rebeam_protocol::value::{self, Value};
    use rebeam_protocol::worker::ToSupervisor;

    let project = project("child(Child, name='a')");
    let node = project.up();
    let before = node.call("a", "pid", &[]);
    // A pickle that makes a file where it is loaded.
    let canary = project.path().join("owned");
    let pickle = format!("cos\nsystem\n(S'touch {}'\ntR.", canary.display()).into_bytes();
    let encoded = |request: &Request, payload: &[u8]| {
        let mut bytes = Vec::new();
        frame::encode(&Hello::new(), &[], MAX_FRAME, &mut bytes).expect("below the limit");
        let asked = Asked { number: 1, request: request.clone() };
        frame::encode(&asked, payload, MAX_FRAME, &mut bytes).expect("below the limit");
        bytes
    };
    let requests = [
        Request::Call { name: "a".into(), method: "take".into(), timeout_ms: 2000 },
        Request::Cast { name: "a".into(), method: "take".into() },
    ];
    for request in &requests {
        attack(&node, &encoded(request, &pickle));
    }
    // What only an actor may ask, with and without a handshake.
    let of_actors = [
        ProcessRequest::SendAfter {
            timer: 1,
            to: Address::Name("a".into()),
            after_ms: 0,
            every_ms: None,
            method: "take".into(),
            is_method: true,
        },
        ProcessRequest::Supervisor {
            supervisor: Address::Name("root".into()),
            request: SupervisorRequest::Which,
            waits: Waits::Nobody,
        },
        ProcessRequest::Kill { to: Address::Name("a".into()), is_hung: false },
    ];
    for body in of_actors {
        let mut bytes = Vec::new();
        frame::encode(&Hello::new(), &[], MAX_FRAME, &mut bytes).expect("below the limit");
        let handshake = bytes.len();
        let message = ToSupervisor::Request { request: RequestId(1), body };
        frame::encode(&message, &pickle, MAX_FRAME, &mut bytes).expect("below the limit");
        attack(&node, &bytes);
        attack(&node, &bytes[handshake..]);
    }
    // Values that nest without end, in each way that a value can, and rubbish.
    for byte in 0..16 {
        attack(&node, &encoded(&requests[0], &[byte; 65536]));
    }
    // What opens no stream.
    let open = Request::StreamOpen { name: "a".into(), timeout_ms: 2000 };
    let odd =
        [Value::Int(5), Value::Tuple(vec![]), Value::Tuple(vec![Value::Int(1), Value::None, Value::Str("x".into())])];
    for value in odd {
        let bytes = encoded(&open, &value::encode(&value));
        let told = String::from_utf8_lossy(&answer(&node, &bytes)).into_owned();
        assert!(told.contains("`stream_open` with something else than it takes"), "{told}");
    }
    // Bytes that are nothing at all: too long, too short, a length that lies.
    for bytes in [&[0xff; 64][..], &[3, 0, 0, 0, 1], &[1, 0, 0, 0, 0xff], &[]] {
        attack(&node, bytes);
    }
    assert_eq!(node.call("a", "pid", &[]), before, "nobody was harmed");
    assert_eq!(node.call("a", "taken", &[]), json!([]));
    assert!(!canary.exists(), "a pickle from outside was loaded");
    node.down();
}

/// Runs a Python program outside the tree.
fn outside(project: &Project, program: &str) -> String {
    let mut command = std::process::Command::new(harness::python());
    command.args(["-c", program]).current_dir(project.path());
    command.env("REBEAM_RUNTIME_DIR", project.runtime()).env("REBEAM_PROJECT", project.path());
    let output = command.output().expect("python runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

#[test]
fn an_ordinary_python_process_connects_with_plain_data() {
    let project = project("child(Child, name='a')");
    let node = project.up();
    let answer = outside(
        &project,
        r#"
import asyncio, rebeam, threading
from actors import Child
with rebeam.connect() as node:
    a = node.ref(Child, "a")
    a.call(Child.take, {"list": [1, 2.5, None, b"x"], "set": {1}})
    a.cast(Child.take, "cast")
    assert a.call.taken() == [{"list": [1, 2.5, None, b"x"], "set": {1}}, "cast"], a.call.taken()
    async def both():
        return await asyncio.gather(*(a.acall(Child.taken) for _ in range(20)))
    assert len(asyncio.run(both())) == 20
    for timeout in (float("inf"), 1e300, 1e15):
        assert len(a.options(timeout=timeout).call(Child.taken)) == 2
    for wrong, kind in [
        (lambda: a.call(Child.take, object()), TypeError),
        (lambda: node.ref(Child, "b").call(Child.taken), rebeam.NoProc),
        (lambda: a.call.no_such(), rebeam.BadCall),
        (lambda: a.call(Child.exit, 3), rebeam.ActorDied),
        (lambda: a.options(timeout=0.1).call(Child.sleep, 0.5), rebeam.CallTimeout),
        (lambda: a.options(timeout=-1).call(Child.taken), ValueError),
        (lambda: a.options(timeout="3"), rebeam.SpecError),
        (lambda: a.request(Child.taken), TypeError),
    ]:
        try:
            wrong()
        except kind as error:
            print(type(error).__name__, error)
        else:
            raise AssertionError(kind)
    assert [one.name for one in node.actors()] == ["recorder", "a"]
try:
    rebeam.connect("/tmp")
except ConnectionError as error:
    assert "nothing is running in `/tmp`" in str(error), error
"#,
    );
    assert!(answer.contains("`object` is not plain data"), "{answer}");
    node.down();
}

/// What a client outside starts, and how it iterates.
const STARTED: &str = r#"
import asyncio, sys, rebeam
from app import Bad, Rows

def fails(what, kind, *words):
    try:
        what()
    except kind as error:
        assert all(word in str(error) for word in words), error
        return error
    raise AssertionError(kind)

def paths(node):
    return [actor.path for actor in node.actors() if "client" not in actor.path]

def soon(holds):
    while not holds():
        pass

with rebeam.connect() as node:
    one = node.start(Rows, 10)
    two = node.start("app:Rows", 20, name="two", supervisor="dyn", restart="transient")
    assert one.call.start() == 10 and two.call(Rows.start) == 20
    assert any(path.startswith("dyn/") for path in paths(node)), paths(node)
    assert fails(lambda: node.start(Rows, 1, name="two"), rebeam.ChildError).kind == "already_started"
    failed = fails(lambda: node.start(Bad), rebeam.ChildError)
    assert failed.kind == "start_failed" and failed.reason.detail == "RuntimeError: no way", failed
    fails(lambda: node.start("app:Nobody"), rebeam.SpecError, "no `Nobody` in the module `app`")
    fails(lambda: node.start("nowhere:X"), rebeam.SpecError, "`nowhere:X` cannot be imported")
    fails(lambda: node.start("Rows"), rebeam.SpecError, "`module:Class`")
    fails(lambda: node.start(fails), rebeam.SpecError, "`fails` is defined in the program that runs here")
    fails(lambda: node.start(Rows, 1, restart="never"), rebeam.SpecError, "'never'")
    fails(lambda: node.start(Rows, 1, 2, 3, 4), rebeam.SpecError, "positional")
    fails(lambda: node.start(Rows, 1, supervisor="no"), rebeam.NoProc, "`no`")
    fails(lambda: node.start(Rows, object()), TypeError, "is not plain data")
    fails(lambda: node.get_or_start(3, Rows), TypeError, "3 is no name")

    assert list(two.stream.rows(5)) == list(range(20, 25))
    assert list(two.stream(Rows.rows, 1000)) == list(range(20, 1020))
    got = []
    error = fails(lambda: got.extend(two.stream.rows(9, 4)), rebeam.RemoteError, "KeyError")
    assert error.kind == "KeyError" and "in rows" in error.remote_traceback, error
    assert got == [20, 21, 22, 23], got
    for row in two.stream.rows(10**6):
        if row == 25:
            break
    soon(lambda: two.call.closed() == 4)
    fails(lambda: list(two.stream.start()), rebeam.BadCall, "no generator")
    fails(lambda: list(two.stream.nope()), rebeam.BadCall, "`nope`")
    fails(lambda: list(two.stream.odd()), rebeam.BadResult, "`object` is not plain data")
    fails(lambda: list(node.ref(Rows, "nobody").stream.rows(1)), rebeam.NoProc, "`nobody`")
    fails(lambda: list(one.stream.crashes()), rebeam.ActorDied, "exit_code(3)")

    keyed = node.get_or_start("keyed", Rows, 7, restart="temporary")
    assert keyed.call.start() == 7 == node.get_or_start("keyed", "app:Rows", 8).call.start()
    for use in [lambda: keyed.call.start() == 7, lambda: list(keyed.stream.rows(1)) == [7]]:
        fails(keyed.call.crash, rebeam.ActorDied)
        assert use()
    fails(keyed.call.crash, rebeam.ActorDied)
    keyed.cast.close("cast")
    soon(lambda: node.ref(Rows, "keyed").call.closed() == "cast")
    node.start(Rows, 1, backoff=rebeam.Backoff(initial=0.5))
    fails(lambda: node.start(Rows, 1, name=rebeam.via("reg", "x")), TypeError, "`name` is a key of a registry")
    for module, words in [("broken", "AttributeError: not there"), ("exits", "SystemExit: 3"), (".app", "TypeError")]:
        fails(lambda: node.start(f"{module}:Rows"), rebeam.SpecError, words)

    async def awaits():
        three = await node.astart("app:Rows", 30)
        four = await node.aget_or_start("four", Rows, 40)
        rows = [row async for row in three.stream(Rows.later, 100)]
        async for row in four.stream.rows(10**6):
            rows.append(row)
            if row == 42:
                break
        return rows
    assert asyncio.run(awaits()) == [*range(30, 130), 40, 41, 42]

    async def leaves():
        # A task that is cancelled while it waits for a value holds up no other.
        async def reads():
            async for _ in two.stream.slow():
                pass
        reading = asyncio.create_task(reads())
        while await two.acall.opened() == two.call.closed():
            await asyncio.sleep(0)
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        while await two.acall.opened() != two.call.closed():
            await asyncio.sleep(0)
    asyncio.run(leaves())

    # What is no request of a stream does no harm.
    client = node.take()
    pid, key = client.stream_open("two", "rows", (1,), {}, 5.0)
    assert client.stream_next(pid, (0, 0), 1, 5.0)[2][0] == "rebeam.BadCall"
    for content in [(5,), ("rows", 5, {})]:
        fails(lambda: client.stream_open("two", *content[:1], (), {}, 5.0), (rebeam.BadCall, TypeError))
    client.close()
    held = iter(two.stream.rows(10**6))
    assert next(held) == 20
# What was started stays; what a connection needed goes with it, and a stream with whoever iterates.
with rebeam.connect() as other:
    two = other.ref(Rows, "two")
    assert two.call.start() == 20
    open_before = two.call.opened() - two.call.closed()
    held.close()
    soon(lambda: open_before - (two.call.opened() - two.call.closed()) == 1)
    soon(lambda: not any("client" in actor.path for actor in other.actors()))
    held = iter(two.stream.rows(10**6))
    next(held)
    sys.stdout.flush()
    import os
    os._exit(0)
"#;

#[test]
fn a_client_outside_starts_actors_and_iterates_over_streams() {
    let project = Project::new(
        r#"
import asyncio, os
import rebeam
from rebeam import Actor, DynamicSupervisor, Supervisor, child

class Rows(Actor):
    def init(self, start):
        self.n, self.o, self.c = start, 0, 0
    def start(self):
        return self.n
    def opened(self):
        return self.o
    def closed(self):
        return self.c
    @rebeam.raises(KeyError)
    def rows(self, count, fails_at=None):
        self.o += 1
        try:
            for row in range(self.n, self.n + count):
                if row - self.n == fails_at:
                    raise KeyError("done")
                yield row
        finally:
            self.c += 1
    async def later(self, count):
        for row in range(self.n, self.n + count):
            await asyncio.sleep(0)
            yield row
    async def slow(self):
        self.o += 1
        try:
            while True:
                yield "row"
                await asyncio.sleep(60)
        finally:
            self.c += 1
    def close(self, c):
        self.c = c
    def odd(self):
        yield object()
    def crash(self):
        os._exit(3)
    def crashes(self):
        yield 1
        os._exit(3)

class Bad(Actor):
    def init(self):
        raise RuntimeError("no way")

tree = Supervisor([DynamicSupervisor(name="dyn")])
"#,
    );
    project.write("broken.py", "raise AttributeError('not there')");
    project.write("exits.py", "raise SystemExit(3)");
    let node = project.up();
    outside(&project, STARTED);
    // The client has ended amid a stream.
    let rows = |method: &str| node.call("two", method, &[]).as_u64();
    node.eventually("the generator is closed", |_| (rows("opened") == rows("closed")).then_some(()));
    node.down();
}

/// What a client outside sees of a node that ends and is started again.
const OUTSIDE: &str = r#"
import datetime, decimal, subprocess, sys, uuid
import rebeam
from app import A

def up():
    process = subprocess.Popen([sys.argv[1], "up", "app.py"], stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if "up with" in line:
            return process

node_process = up()
sys.excepthook = lambda *error: (node_process.kill(), sys.__excepthook__(*error))
with rebeam.connect() as node:
    a = node.ref(A, "a")
    values = [datetime.datetime(2026, 1, 2, 3, 4, 5, 6, datetime.timezone.utc), datetime.date(2026, 1, 2), datetime.time(3, 4),
              datetime.timedelta(days=-1, microseconds=3), decimal.Decimal("0.10"), uuid.UUID(int=7), 2**63, -10**50]
    assert a.call.echo([bytearray(b"x"), memoryview(b"y")]) == [b"x", b"y"]
    assert a.call.echo(values) == values and [type(it) for it in a.call.echo(values)] == [type(it) for it in values]
    try:
        import numpy
        assert a.call.echo([numpy.int64(3), numpy.float32(0.5), numpy.arange(4).reshape(2, 2)]) == [3, 0.5, [[0, 1], [2, 3]]]
    except ImportError:
        pass
    else:
        time = numpy.datetime64
        given = [time("2026-01-02"), time("2026-01-02T03:04:05.000006000"), time("NaT"), numpy.array(["2026", "2027"], "M8[Y]"),
                 numpy.timedelta64(3, "h"), numpy.array([1, 2], "m8[ns]").astype("m8[us]") + numpy.timedelta64(5, "us")]
        day, micro = datetime.date, datetime.timedelta(microseconds=5)
        assert a.call.echo(given) == [day(2026, 1, 2), datetime.datetime(2026, 1, 2, 3, 4, 5, 6), None,
                                      [day(2026, 1, 1), day(2027, 1, 1)], datetime.timedelta(hours=3), [micro, micro]]
        for lossy in [time("2026-01-02T03:04:05.000000006"), time("20000-01-01"), numpy.timedelta64(3, "M"), numpy.timedelta64(3)]:
            try:
                a.call.echo(lossy)
            except TypeError as error:
                assert "is not plain data" in str(error), error
            else:
                raise AssertionError(lossy)
    names = node.names()
    assert list(names) == ["a"] and str(names["a"]).startswith("<0."), names
    assert node.why("a") == []
    try:
        a.call.fail()
    except rebeam.RemoteError as error:
        assert "ValueError" in str(error)
    # The answer goes before the end.
    while not (deaths := node.why("a")):
        pass
    (death,) = deaths
    assert death.reason.kind == "exception" and death.next == "restarts" and death.actor == "a", death
    try:
        node.why("b")
    except rebeam.NoProc as error:
        assert "`b`" in str(error)
    subprocess.run([sys.argv[1], "down"], check=True)
    node_process.wait()
    try:
        a.call.echo(1)
    except ConnectionError as error:
        assert "nothing is running" in str(error), error
    node_process = up()
    assert a.call.echo(2) == 2
    assert node.names().keys() == {"a"}
    subprocess.run([sys.argv[1], "down"], check=True)
    node_process.wait()
print("done")
"#;

#[test]
fn a_client_outside_finds_a_node_that_was_started_again_and_sends_plain_data_of_all_sorts() {
    let project = Project::new(
        "from rebeam import *\nclass A(Actor):\n    def echo(self, it):\n        return it\n    def fail(self):\n        raise ValueError('no')\n\
         tree = Supervisor([child(A, name='a')])\n",
    );
    project.write("client.py", OUTSIDE);
    let mut client = project.command_of(harness::python());
    client.args(["client.py".as_ref(), harness::rebeam().as_os_str()]);
    let ran = client.env("PYTHONPATH", harness::root().join("pylib/src")).output().expect("it runs");
    assert_eq!(String::from_utf8_lossy(&ran.stdout).trim(), "done", "{}", String::from_utf8_lossy(&ran.stderr));
    project.assert_nothing_left();
}
