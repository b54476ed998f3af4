//! `rebeam batch`: pipelines that lose nothing, whatever is killed, and do nothing twice.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use harness::{Node, Project, Ran, kill};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

/// A project with pipelines.
pub(crate) fn pipelines(source: &str) -> Project {
    Project::new(&format!(
        "import ctypes, os, time\nimport rebeam\nfrom rebeam.batch import Item, pipeline, sink, source\n\n{source}\n"
    ))
}

pub(crate) fn lines(project: &Project, name: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(project.path().join(name)).unwrap_or_default();
    assert!(text.is_empty() || text.ends_with('\n'), "the last line is not whole");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

pub(crate) fn sorted(mut values: Vec<Value>) -> Vec<i64> {
    let mut numbers: Vec<i64> = values.drain(..).map(|value| value.as_i64().expect("a number")).collect();
    numbers.sort_unstable();
    numbers
}

/// Runs a pipeline to its end; gives its report as well.
pub(crate) fn run(project: &Project, args: &[&str]) -> (Ran, Value) {
    let report = project.path().join("report.json");
    let _ = std::fs::remove_file(&report);
    let path = report.display().to_string();
    let ran = project.run(&[&["batch", "app.py", "--report", &path], args].concat());
    let report = std::fs::read_to_string(report).ok().and_then(|text| serde_json::from_str(&text).ok());
    project.assert_nothing_left();
    (ran, report.unwrap_or_default())
}

pub(crate) fn dead(project: &Project, name: &str) -> BTreeMap<String, Value> {
    let ran = project.run(&["batch", "dead", name, "--json"]);
    let list = ran.json().as_array().cloned().unwrap_or_default();
    let id = |it: &Value| it["id"].as_str().map_or_else(|| it["id"].to_string(), str::to_owned);
    list.into_iter().map(|it| (id(&it), it)).collect()
}

#[test]
fn a_crash_costs_one_item_and_every_death_is_explained() {
    let project = pipelines(
        "def work(n):
    if n == 13: ctypes.string_at(0)
    if n == 17: raise ValueError('seventeen')
    if n == 19: os._exit(4)
    if n == 23: time.sleep(100)
    if n == 29: return lambda: n
    return n * 2
def many(n):
    yield n
    yield -n
pipe = (pipeline('numbers').source(range(300))
    .stage(work, concurrency=2, timeout=1, retries=1, backoff=0.01)
    .filter(lambda n: n % 3 == 0, name='threes').stage(many).sink(sink.jsonl('out.jsonl')))",
    );
    let (ran, report) = run(&project, &[]);
    assert_eq!(ran.code, Some(4), "{ran:?}");
    let bad = [13, 17, 19, 23, 29];
    let kept: Vec<i64> = (0..300).filter(|n| !bad.contains(n)).map(|n| n * 2).filter(|n| n % 3 == 0).collect();
    let mut expected: Vec<i64> = kept.iter().flat_map(|n| [*n, -*n]).collect();
    expected.sort_unstable();
    assert_eq!(sorted(lines(&project, "out.jsonl")), expected);
    let dead = dead(&project, "numbers");
    let cause = |id: &str| dead[id]["cause"].as_str().expect("words").to_owned();
    assert_eq!(dead.keys().collect::<Vec<_>>(), ["13", "17", "19", "23", "29"]);
    assert_eq!(cause("13"), "the worker died: signal(SIGSEGV)");
    assert!(dead["13"]["detail"].as_str().is_some_and(|text| text.contains("in work")), "the stack is there");
    assert_eq!((cause("17"), &dead["17"]["attempts"]), ("ValueError: seventeen".into(), &json!(2)));
    assert_eq!((cause("19"), cause("23")), ("the worker died: exit_code(4)".into(), "it took longer than 1 s".into()));
    assert!(cause("29").contains("cannot be pickled") && dead["29"]["attempts"] == 1, "{}", dead["29"]);
    assert_eq!((&report["code"], &report["counts"]["dead"]), (&json!(4), &json!(5)));
    assert!(ran.stdout.contains("--retry-failed"), "{ran:?}");
    let page = project.path().join(".rebeam/batch/numbers/report.html");
    assert!(std::fs::read_to_string(page).expect("a page").contains("<svg"));
    // Again: nothing is left to do, and nothing changes.
    let (ran, report) = run(&project, &[]);
    assert_eq!((ran.code, &report["counts"]["done"]), (Some(4), &json!(0)));
    assert_eq!(sorted(lines(&project, "out.jsonl")), expected);
    assert_eq!(project.run(&["batch", "status", "numbers", "--json"]).json()["taken"], 300);
}

#[test]
fn the_dead_are_tried_again_when_somebody_says_so() {
    let project = pipelines(
        "def work(n):
    if n % 10 == 3 and not os.path.exists('mended'): raise ValueError('not yet')
    with open('log', 'a') as log: log.write(f'{n}\\n')
    return n
pipe = pipeline('p').source(range(50)).stage(work).sink(sink.jsonl('out.jsonl'))",
    );
    assert_eq!(run(&project, &[]).0.code, Some(4));
    project.write("mended", "");
    let (ran, report) = run(&project, &["--only", "13"]);
    assert_eq!((ran.code, &report["counts"]["done"]), (Some(4), &json!(1)), "{ran:?}");
    assert_eq!(project.run(&["batch", "replay", "p", "--json"]).json(), json!({ "waiting again": 4 }));
    let (ran, _) = run(&project, &[]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert_eq!(sorted(lines(&project, "out.jsonl")), (0..50).collect::<Vec<i64>>());
    let log = std::fs::read_to_string(project.path().join("log")).expect("a log");
    assert_eq!(log.lines().count(), 50, "nothing was done twice");
    // And all of it anew.
    assert_eq!(run(&project, &["--fresh"]).0.code, Some(0));
    assert_eq!(sorted(lines(&project, "out.jsonl")), (0..50).collect::<Vec<i64>>());
}

#[test]
fn an_order_to_stop_finishes_what_is_in_hand_and_says_how_it_goes_on() {
    let project = pipelines(
        "def work(n):
    time.sleep(0.02)
    return n
pipe = pipeline('p').source(range(400)).stage(work, concurrency=2).sink(sink.jsonl('out.jsonl'))",
    );
    let mut node = project.start(&["batch", "app.py"]);
    node.wait_for("up with");
    node.eventually("some are done", |_| (lines(&project, "out.jsonl").len() > 20).then_some(()));
    node.signal(Signal::SIGTERM);
    let (status, output) = node.wait();
    assert_eq!(status.code(), Some(5), "{output}");
    assert!(output.contains("it goes on with: rebeam batch app.py"), "{output}");
    let before = lines(&project, "out.jsonl").len();
    assert!(before < 400, "{before}");
    let (ran, report) = run(&project, &[]);
    assert_eq!((ran.code, &report["counts"]["done"]), (Some(0), &json!(400 - before)), "{ran:?}");
    assert_eq!(sorted(lines(&project, "out.jsonl")), (0..400).collect::<Vec<i64>>());
}

#[test]
fn a_stop_does_not_wait_for_a_source_that_has_nothing_to_say() {
    let project = pipelines("pipe = pipeline('p').source(source.stdin()).stage(int).sink(sink.jsonl('out.jsonl'))");
    let mut command = project.command(&["batch", "app.py"]);
    // Nobody ever writes into this pipe but two lines.
    let (theirs, ours) = nix::unistd::pipe().expect("a pipe");
    nix::unistd::write(&ours, b"1\n2\n").expect("there is room");
    command.stdin(theirs).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut node = project.adopt(&mut command);
    drop(command);
    node.wait_for("up with");
    node.eventually("the first is done", |_| (!lines(&project, "out.jsonl").is_empty()).then_some(()));
    node.signal(Signal::SIGINT);
    let (status, output) = node.wait();
    assert_eq!(status.code(), Some(5), "{output}");
    drop(ours);
}

#[test]
fn batches_are_split_to_find_the_culprit() {
    let project = pipelines(
        "def total(numbers):
    if 37 in numbers: os._exit(3)
    if 61 in numbers: raise ValueError('sixty-one')
    return numbers
pipe = pipeline('p').source(range(100)).batch(10).stage(total).sink(sink.jsonl('out.jsonl'))",
    );
    let (ran, _) = run(&project, &[]);
    assert_eq!(ran.code, Some(4), "{ran:?}");
    let all: Vec<Value> =
        lines(&project, "out.jsonl").iter().flat_map(|it| it.as_array().cloned().expect("a list")).collect();
    assert_eq!(sorted(all), (0..100).filter(|n| ![37, 61].contains(n)).collect::<Vec<i64>>());
    assert_eq!(dead(&project, "p").into_keys().collect::<Vec<_>>(), ["37", "61"]);
}

#[test]
fn equal_keys_keep_their_order_also_over_a_retry() {
    let project = pipelines(
        "def work(pair, item):
    if pair[1] == 7 and item.attempt == 1: raise ValueError('once')
    return pair
pipe = (pipeline('p').source([(k, n) for n in range(40) for k in 'abc'])
    .stage(work, concurrency=3, key=lambda pair: pair[0], retries=2, backoff=0.01).sink(sink.jsonl('out.jsonl')))",
    );
    let (ran, _) = run(&project, &[]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    for key in ["a", "b", "c"] {
        let of = lines(&project, "out.jsonl");
        let order: Vec<i64> = of.iter().filter(|it| it[0] == key).map(|it| it[1].as_i64().expect("a number")).collect();
        assert_eq!(order, (0..40).collect::<Vec<i64>>(), "{key}");
    }
}

#[test]
fn what_stages_are_made_of() {
    let project = pipelines(
        "class Model:
    def __init__(self): self.offset = 100
    def __call__(self, n): return n + self.offset
def load(): return {'factor': 2}
def scale(n, model): return n * model['factor']
async def later(n):
    return n + 1
def store(n, item):
    with open('stored', 'a') as file: file.write(f'{item.id} {item.attempt} {n}\\n')
pipe = (pipeline('p', resources={'gpu': 1}).source(source.lines('numbers.txt')).stage(int).stage(Model)
    .stage(scale, init=load, uses={'gpu': 1}, concurrency=2).stage(later, rate=1000).sink(store))",
    );
    project.write("numbers.txt", "1\n2\n3\n");
    let (ran, _) = run(&project, &[]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let stored = std::fs::read_to_string(project.path().join("stored")).expect("it was stored");
    let mut stored: Vec<&str> = stored.lines().collect();
    stored.sort_unstable();
    assert_eq!(stored, ["0 1 203", "1 1 205", "2 1 207"]);
}

#[test]
fn what_does_not_come_again_is_written_down_before_it_is_worked_at() {
    let project = pipelines(
        "def work(n):
    time.sleep(0.01)
    return int(n)
pipe = pipeline('p').source(source.stdin()).stage(work).sink(sink.jsonl('out.jsonl'))",
    );
    let numbers = (0..200).map(|n| format!("{n}\n")).collect::<String>();
    project.write("in.txt", &numbers);
    let input = || std::fs::File::open(project.path().join("in.txt")).expect("it is there");
    let mut command = project.command(&["batch", "app.py"]);
    command.stdin(input()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let node = project.adopt(&mut command);
    node.eventually("some are done", |_| (lines(&project, "out.jsonl").len() > 5).then_some(()));
    kill(node.os_pid(), Signal::SIGKILL);
    drop(node);
    project.assert_nothing_left();
    // What was read is there, whoever feeds it now; the rest is still with whoever fed it.
    let taken = lines(&project, "out.jsonl").len();
    assert_eq!(run(&project, &[]).0.code, Some(0));
    let held = lines(&project, "out.jsonl").len();
    assert!(held >= taken, "{taken} {held}");
    let ran = Ran::from(project.command(&["batch", "app.py"]).stdin(input()).output().expect("it runs"));
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert_eq!(sorted(lines(&project, "out.jsonl")), (0..200).collect::<Vec<i64>>());
}

#[test]
fn a_run_that_is_clearly_broken_is_stopped() {
    let project = pipelines(
        "def work(n):
    raise ValueError('always')
pipe = pipeline('p').source(range(100_000)).stage(work).sink(sink.jsonl('out.jsonl'))",
    );
    let (ran, report) = run(&project, &["--max-failures", "5%"]);
    assert_eq!(ran.code, Some(5), "{ran:?}");
    assert!(report["why"].as_str().is_some_and(|why| why.contains("--max-failures 5%")), "{report}");
    assert!(report["counts"]["dead"].as_u64().is_some_and(|dead| dead < 50_000), "{report}");
    run(&project, &["--max-failures", "many"]).0.assert_error(2, &["--max-failures many", "5%"]);
}

#[test]
fn bad_input_has_a_clear_error_and_loses_nothing() {
    let raising = "def items():
    yield from range(50)
    if not os.path.exists('mended'): raise OSError('the disk is gone')
    yield from range(50, 60)
def work(n): return n
pipe = pipeline('p').source(items).stage(work).sink(sink.jsonl('out.jsonl'))";
    let project = pipelines(raising);
    let (ran, report) = run(&project, &[]);
    assert_eq!(ran.code, Some(5), "{ran:?}");
    assert!(report["why"].as_str().is_some_and(|why| why.contains("the disk is gone")), "{report}");
    project.write("mended", "");
    assert_eq!(run(&project, &[]).0.code, Some(0));
    assert_eq!(sorted(lines(&project, "out.jsonl")), (0..60).collect::<Vec<i64>>());

    let twice = "pipe = (pipeline('p').source(source.iterable(['a', 'b', 'a'], id=str)).stage(str.upper)
    .sink(sink.jsonl('out.jsonl')))";
    let project = pipelines(twice);
    // Once or again, it is told and kept.
    for _ in 0..2 {
        let (ran, _) = run(&project, &[]);
        assert_eq!((ran.code, lines(&project, "out.jsonl").len()), (Some(4), 2), "{ran:?}");
        assert_eq!(dead(&project, "p")["a#2"]["cause"], "its id `a` is that of an earlier item as well");
    }
    assert_eq!(run(&project, &["--retry-failed"]).0.code, Some(0));
    assert_eq!(lines(&project, "out.jsonl"), [json!("A"), json!("B"), json!("A")]);

    let failing = "def store(n): raise OSError('no room')
pipe = pipeline('p').source(range(5)).stage(abs).sink(store, retries=1, backoff=0.01)";
    let project = pipelines(failing);
    let (ran, _) = run(&project, &[]);
    assert_eq!((ran.code, dead(&project, "p").len()), (Some(4), 5), "{ran:?}");

    let odd = "pipe = pipeline('p').source([1, 2]).stage(complex).sink(sink.jsonl('out.jsonl'))";
    let project = pipelines(odd);
    let (ran, _) = run(&project, &[]);
    assert_eq!(ran.code, Some(4), "{ran:?}");
    assert!(
        dead(&project, "p")["0"]["cause"].as_str().is_some_and(|why| why.contains("complex is not JSON serializable"))
    );

    let loading = "def load(): raise RuntimeError('no model')
pipe = pipeline('p').source([1]).stage(abs, init=load).sink(sink.jsonl('out.jsonl'))";
    let ran = pipelines(loading).run(&["batch", "app.py"]);
    assert!(ran.code == Some(3) && ran.stderr.contains("`init` of `abs` failed: RuntimeError: no model"), "{ran:?}");
}

#[test]
fn a_journal_that_does_not_fit_is_named_and_left_alone() {
    let source = |name: &str, body: &str| {
        format!(
            "def work(n): {body}\npipe = pipeline('{name}').source(range(5)).stage(work).sink(sink.jsonl('out.jsonl'))"
        )
    };
    let head = "from rebeam.batch import pipeline, sink\n";
    let project = pipelines(&source("p", "return n"));
    assert_eq!(run(&project, &[]).0.code, Some(0));
    project.write("app.py", &format!("{head}{}", source("p", "return n + 1")));
    let changed = ["this has changed", "step 1, `work`", "--accept-changes", "--fresh"];
    project.run(&["batch", "app.py"]).assert_error(2, &changed);
    assert_eq!(run(&project, &["--accept-changes"]).0.code, Some(0));
    let journal = project.path().join(".rebeam/batch");
    let whole = std::fs::read(journal.join("p/journal.db")).expect("a journal");
    std::fs::write(journal.join("p/journal.db"), &whole[..whole.len() / 2]).expect("it is written");
    project.run(&["batch", "app.py"]).assert_error(2, &["is broken", "--fresh"]);
    std::fs::write(journal.join("p/journal.db"), whole).expect("it is written");
    std::fs::rename(journal.join("p"), journal.join("q")).expect("it is there");
    project.write("app.py", &format!("{head}{}", source("q", "return n + 1")));
    project.run(&["batch", "app.py"]).assert_error(2, &["is that of the pipeline `p`, not of `q`"]);
    assert_eq!(run(&project, &["--fresh"]).0.code, Some(0));
    let newer = "import sqlite3
with sqlite3.connect('.rebeam/batch/q/journal.db') as it: it.execute(\"UPDATE meta SET value = '99' WHERE key = 'format'\")";
    assert!(script_of(&project, &["-c", newer]).status().expect("it runs").success());
    project.run(&["batch", "app.py"]).assert_error(2, &["is of a newer version (99, this knows"]);
    std::fs::write(journal.join("q/journal.db"), "this is no database, and was never meant to be one")
        .expect("it is written");
    project.run(&["batch", "app.py"]).assert_error(2, &["is broken", "--fresh"]);
    project.run(&["batch", "status", "nobody"]).assert_error(1, &["no journal of `nobody`", "there are: q"]);
    project.write("app.py", &format!("{head}pipe = pipeline('r').source([1]).stage(abs)\n"));
    project.run(&["batch", "app.py"]).assert_error(2, &["has no sink"]);
    project.write("app.py", &format!("{head}pipe = 1\n"));
    project.run(&["batch", "app.py"]).assert_error(2, &["has 0 pipelines"]);
    project.run(&["batch", "app.py:pipe"]).assert_error(2, &["is no pipeline"]);
    project.write("app.py", &format!("{head}{}", source("q", "return n")));
    project.run(&["up", "app.py:pipe"]).assert_error(2, &["is a pipeline", "rebeam batch"]);
    project
        .run(&["batch", "app.py", "--journal", "/proc/nowhere"])
        .assert_error(2, &["cannot be written", "--journal DIR"]);
    project.assert_nothing_left();
}

#[test]
fn a_full_disk_stops_the_run_and_loses_nothing() {
    let project = pipelines(
        // The output alone is larger than the file system, however fast the journal is drained.
        "def work(n): return 'x' * 2000
pipe = pipeline('p').source(range(2000)).stage(work).sink(sink.jsonl('small/out.jsonl'))",
    );
    let small = project.path().join("small");
    std::fs::create_dir(&small).expect("a folder");
    let mount = |size: &str, flags: &str| {
        let args = ["-t", "tmpfs", "-o", &format!("{flags}size={size}"), "none"];
        Command::new("mount").args(args).arg(&small).output().is_ok_and(|it| it.status.success())
    };
    if !mount("600k", "") {
        return crate::not_tested("a small file system");
    }
    let unmount = Unmount(&small);
    let journal = small.join("journal").display().to_string();
    let (ran, report) = run(&project, &["--journal", &journal]);
    assert_eq!(ran.code, Some(5), "{ran:?}");
    assert_eq!(report["command"], format!("rebeam batch app.py --journal {journal}"));
    assert!(report["why"].as_str().is_some_and(|why| why.contains("no room") || why.contains("No space")), "{report}");
    assert!(mount("50M", "remount,"), "it grows");
    let (ran, _) = run(&project, &["--journal", &journal]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert_eq!(lines(&project, "small/out.jsonl"), vec![json!("x".repeat(2000)); 2000]);
    assert!(mount("50M", "remount,ro,"), "nobody may write");
    let read_only = ["cannot be written", "--journal DIR"];
    project.run(&["batch", "app.py", "--journal", &journal]).assert_error(2, &read_only);
    drop(unmount);
}

#[test]
fn what_is_large_stands_beside_the_journal_until_nobody_needs_it() {
    let project = pipelines(
        "def large(n): return [n] * 200_000
def check(values):
    if values[0] == 2 and not os.path.exists('mended'): raise ValueError('not yet')
    return len(values)
pipe = pipeline('p').source(range(4)).stage(large).stage(check).sink(sink.jsonl('out.jsonl'))",
    );
    assert_eq!(run(&project, &[]).0.code, Some(4));
    let beside = || std::fs::read_dir(project.path().join(".rebeam/batch/p/values")).expect("a folder").count();
    assert_eq!((dead(&project, "p")["2"]["cause"].clone(), beside()), (json!("ValueError: not yet"), 1));
    project.write("mended", "");
    assert_eq!(run(&project, &["--retry-failed"]).0.code, Some(0));
    assert_eq!((sorted(lines(&project, "out.jsonl")), beside()), (vec![200_000; 4], 0));
}

#[test]
fn what_a_sink_refuses_is_dead_and_can_be_offered_again() {
    let project = pipelines(
        "def name(n):
    if n == 3 and not os.path.exists('mended'): raise KeyError('no name')
    return f'{n}.txt'
def big(numbers): return len(numbers) > 0
pipe = pipeline('p').source(range(6)).stage(abs).sink(sink.files('out', name=name, content=str))
gathered = (pipeline('q').source(range(30)).batch(10).filter(big).sink(sink.jsonl('q.jsonl')))",
    );
    let report = project.path().join("r.json").display().to_string();
    let ran = project.run(&["batch", "app.py:pipe", "--report", &report]);
    assert_eq!(ran.code, Some(4), "{ran:?}");
    assert!(dead(&project, "p")["3"]["cause"].as_str().is_some_and(|why| why.contains("KeyError")));
    project.write("mended", "");
    assert_eq!(project.run(&["batch", "app.py:pipe", "--retry-failed"]).code, Some(0));
    let files = std::fs::read_dir(project.path().join("out")).expect("a folder").count();
    assert_eq!(files, 6);
    let ran = project.run(&["batch", "app.py:gathered"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let all: Vec<Value> =
        lines(&project, "q.jsonl").iter().flat_map(|it| it.as_array().cloned().expect("a list")).collect();
    assert_eq!(sorted(all), (0..30).collect::<Vec<i64>>());
}

#[test]
fn a_key_that_cannot_be_made_costs_its_item_alone() {
    let project = pipelines(
        "def key(n): return 100 // (n - 7)
pipe = (pipeline('p').source(range(20)).stage(abs, key=key, concurrency=2).batch(5)
    .stage(sum, key=len, name='sum').sink(sink.jsonl('out.jsonl')))",
    );
    let (ran, _) = run(&project, &[]);
    assert_eq!(ran.code, Some(4), "{ran:?}");
    assert_eq!(dead(&project, "p").into_keys().collect::<Vec<_>>(), ["7"]);
    assert_eq!(sorted(lines(&project, "out.jsonl")).iter().sum::<i64>(), (0..20).sum::<i64>() - 7);
}

#[test]
fn rows_of_a_table_go_in_and_out() {
    let project = pipelines(
        "import sqlite3
if not os.path.exists('in.db'):
    with sqlite3.connect('in.db') as db:
        db.execute('CREATE TABLE t (n INTEGER)')
        db.executemany('INSERT INTO t VALUES (?)', [(n,) for n in range(5000)])
def twice(row): return row['n'] * 2
pipe = (pipeline('p').source(source.sql('in.db', 'SELECT n FROM t ORDER BY n')).stage(twice, concurrency=2)
    .sink(sink.sql('out.db', 'results')))",
    );
    let (ran, _) = run(&project, &[]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let script = "import sqlite3; print(sqlite3.connect('out.db').execute('SELECT count(*), sum(value) FROM results').fetchone())";
    let mut python = Command::new(harness::python());
    let told = Ran::from(python.args(["-c", script]).current_dir(project.path()).output().expect("it runs"));
    assert_eq!(told.stdout.trim(), format!("(5000, {})", (0..5000).map(|n| n * 2).sum::<i64>()));
}

#[test]
fn a_new_zygote_in_the_middle_of_a_run_begins_nothing_anew() {
    let project = pipelines(
        "def work(n):
    time.sleep(0.01)
    if n == 150: time.sleep(100)
    return n
pipe = pipeline('p').source(range(300)).stage(work, concurrency=2, timeout=1).sink(sink.jsonl('out.jsonl'))",
    );
    assert_eq!(run(&project, &["--fresh"]).0.code, Some(4));
    let node = project.start(&["batch", "app.py", "--fresh"]);
    node.eventually("some are done", |_| {
        let count = lines(&project, "out.jsonl").len();
        (count > 20 && count < 100).then_some(())
    });
    kill(node.zygote(), Signal::SIGKILL);
    let (status, output) = node.wait();
    assert_eq!(status.code(), Some(4), "{output}");
    assert_eq!(sorted(lines(&project, "out.jsonl")), (0..300).filter(|n| *n != 150).collect::<Vec<i64>>());
    assert_eq!(project.run(&["batch", "status", "p", "--json"]).json()["taken"], 300);
}

#[test]
fn a_worker_killed_by_name_costs_no_item() {
    let project = pipelines(
        "def work(n):
    if n % 10 == 3 and not os.path.exists(f'{n}.killed'):
        open(f'{n}.killed', 'w').close()
        rebeam.kill(rebeam.me().pid)
        time.sleep(100)
    return n
pipe = pipeline('p').source(range(50)).stage(work, concurrency=2, retries=0, timeout=60).sink(sink.jsonl('out.jsonl'))",
    );
    let (ran, report) = run(&project, &[]);
    assert_eq!((ran.code, &report["stages"][0]["deaths"]), (Some(0), &json!(5)), "{ran:?}");
    assert_eq!(sorted(lines(&project, "out.jsonl")), (0..50).collect::<Vec<i64>>());
}

#[test]
fn odd_words_and_names_cost_their_item_alone_if_that() {
    let project = pipelines(
        "class Odd(Exception):
    def __str__(self): raise RuntimeError('no words')
def work(n):
    if n == 3: raise ValueError('caf\\udce9 \\x1b[31mred')
    if n == 5: raise Odd
    if n == 7: raise ValueError('x' * 5_000_000)
    return 'caf\\udce9' if n == 9 else str(n)
pipe = pipeline('p').source(range(10)).stage(work).stage(lambda text: text).sink(sink.jsonl('out.jsonl'))
def name(n): return {'0': 'x' * 400, '1': '', '2': 'a\\0b'}.get(n, n)
files = pipeline('q').source(range(5)).stage(str).sink(sink.files('out', name=name))
raw = pipeline('r').source(source.files('in/*')).stage(len).sink(sink.jsonl('r.jsonl'))",
    );
    let report = project.path().join("r.json").display().to_string();
    let ran = project.run(&["batch", "app.py:pipe", "--report", &report]);
    assert_eq!(ran.code, Some(4), "{ran:?}");
    let dead_of = dead(&project, "p");
    let cause = |id: &str| dead_of[id]["cause"].as_str().expect("words").to_owned();
    assert_eq!(cause("3"), "ValueError: caf\\udce9 \\x1b[31mred");
    assert_eq!((cause("5"), cause("7").len()), ("Odd, whose str() raises RuntimeError".into(), 1000));
    let text = std::fs::read_to_string(project.path().join("out.jsonl")).expect("valid UTF-8");
    assert!(text.contains("caf\\udce9") && text.lines().count() == 7, "{text}");
    assert_eq!(project.run(&["batch", "app.py:files"]).code, Some(4));
    assert_eq!(dead(&project, "q").into_keys().collect::<Vec<_>>(), ["0", "1", "2"]);
    project.write("in/ok", "");
    std::fs::write(project.path().join("in").join(std::ffi::OsStr::from_bytes(b"caf\xe9")), "").expect("a file");
    assert_eq!(project.run(&["batch", "app.py:raw"]).code, Some(0));
    assert_eq!(sorted(lines(&project, "r.jsonl")), [5, 7]);
}

#[test]
fn what_was_there_before_is_not_replaced() {
    let project = pipelines("pipe = pipeline('p').source(range(3)).stage(abs).sink(sink.jsonl('out.jsonl'))");
    project.write("out.jsonl", "\"precious\"\n");
    let ran = project.run(&["batch", "app.py"]);
    ran.assert_error(3, &["out.jsonl", "not of this pipeline's journal", "--fresh"]);
    assert_eq!(lines(&project, "out.jsonl"), [json!("precious")]);
    assert_eq!(run(&project, &["--fresh"]).0.code, Some(0));
    assert_eq!(sorted(lines(&project, "out.jsonl")), [0, 1, 2]);
    assert_eq!(run(&project, &["--only", "1"]).0.code, Some(0), "it is done");
    run(&project, &["--only", "7"]).0.assert_error(5, &["there is no item `7`"]);
}

#[test]
fn options_that_make_no_sense_are_refused_where_they_stand() {
    let check = |stage: &str, text: &str| {
        let project = pipelines(&format!("pipe = pipeline('p').source([1]).stage(abs, {stage}).sink(print)"));
        let ran = project.run(&["batch", "app.py"]);
        assert!(matches!(ran.code, Some(2 | 3)) && ran.stderr.contains(text), "{stage}: {ran:?}");
    };
    check("timeout=-1", "`abs` has a timeout of -1");
    check("rate='fast'", "`abs` has a rate of 'fast'");
    check("key='user'", "`key` of `abs` is 'user', which is no function");
    check("concurrency=0", "`abs` has concurrency=0");
    check("retires=2", "retires");
    check("uses={'gpu': 1}", "uses 1 of `gpu`, of which there are 0");
}

/// Python itself, as a script of a user's is run.
pub(crate) fn script_of(project: &Project, args: &[&str]) -> Command {
    let mut command = project.command_of(harness::python());
    let path = harness::rebeam().parent().expect("a folder").display().to_string();
    command.env("PATH", format!("{path}:/usr/bin:/bin")).args(args);
    command
}

#[test]
fn a_script_that_runs_a_pipeline_gets_its_report_and_is_not_survived_by_it() {
    let project = pipelines(
        "def work(n):
    time.sleep(0.02)
    return n
pipe = pipeline('p').source(range(200)).stage(work).sink(sink.jsonl('out.jsonl'))
if __name__ == '__main__':
    report = pipe.run()
    print('ended', report['code'], report['counts']['done'])",
    );
    let script = || script_of(&project, &["app.py"]);
    let mut child = script().stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts");
    let deadline = Instant::now() + harness::PATIENCE;
    while lines(&project, "out.jsonl").len() < 5 {
        assert!(Instant::now() < deadline, "nothing is done");
        std::thread::sleep(Duration::from_millis(10));
    }
    child.kill().expect("it runs");
    child.wait().expect("it has ended");
    while !project.processes().is_empty() {
        assert!(Instant::now() < deadline, "it goes on: {:?}", project.processes());
        std::thread::sleep(Duration::from_millis(10));
    }
    let before = lines(&project, "out.jsonl").len();
    assert!(before < 200, "{before}");
    let ran = Ran::from(script().output().expect("it runs"));
    assert!(ran.stdout.contains(&format!("ended 0 {}", 200 - before)), "{ran:?}");
    assert_eq!(sorted(lines(&project, "out.jsonl")), (0..200).collect::<Vec<i64>>());
}

#[test]
fn a_pipeline_that_stands_in_no_file_is_run_as_well() {
    let project = pipelines("");
    let script = "from rebeam.batch import pipeline, sink
factor = 3
def work(n): return n * factor
report = (pipeline('p').source(range(20)).stage(work).stage(lambda n: n + 1)
    .sink(sink.jsonl('out.jsonl'))).run(no_journal=True)
print('ended', report['code'])
report = pipeline('q').source(range(3)).stage(lambda n: 1 / n, retries=0).sink(sink.jsonl('q.jsonl')).run()
print('again', report['code'], report['command'])";
    let ran = Ran::from(script_of(&project, &["-c", script]).output().expect("it runs"));
    assert!(ran.stdout.contains("ended 0"), "{ran:?}");
    assert!(ran.stdout.contains("again 4 run(retry_failed=True)"), "{ran:?}");
    assert_eq!(sorted(lines(&project, "out.jsonl")), (0..20).map(|n| n * 3 + 1).collect::<Vec<i64>>());
    project.assert_nothing_left();
}

#[test]
fn in_a_notebook_one_place_shows_how_far_it_is_and_errors_say_why() {
    let project = pipelines("");
    // What a kernel has, as far as it is asked for it.
    let script = "import sys, time, types
from rebeam.batch import pipeline, sink, source
shown = []
class Place:
    def update(self, what, raw): shown.append(('updated', what['text/plain']))
def display(what, raw, display_id):
    shown.append(('new', what['text/plain']))
    return Place()
sys.modules['ipykernel'] = types.ModuleType('ipykernel')
sys.modules['IPython'] = types.ModuleType('IPython')
sys.modules['IPython.display'] = types.SimpleNamespace(display=display)
def work(n):
    time.sleep(0.02)
    if n == 7: raise ValueError('seven')
pipeline('p').source(range(60)).stage(work, retries=0).sink(sink.jsonl('out.jsonl')).run()
print([how for how, _ in shown].count('new'), len(shown) > 2, 'run(retry_failed=True)' in shown[-1][1])
pipeline('q').source(source.lines('nowhere')).stage(len).sink(sink.jsonl('q.jsonl')).run()";
    let ran = Ran::from(script_of(&project, &["-c", script]).output().expect("it runs"));
    assert_eq!(ran.stdout.trim(), "1 True True", "{ran:?}");
    assert!(ran.stderr.contains("ValueError: seven"), "{ran:?}");
    let last = ran.stderr.lines().rfind(|line| line.contains("PipelineError"));
    assert!(last.is_some_and(|line| line.contains("exit code 3") && line.contains("'nowhere'")), "{ran:?}");
    project.assert_nothing_left();
}

#[test]
fn on_a_terminal_the_lines_of_progress_are_replaced() {
    let project = pipelines(
        "def work(n):
    time.sleep(0.05)
    return n
pipe = pipeline('p').source(range(60)).stage(work).sink(sink.jsonl('out.jsonl'))",
    );
    let terminal = nix::pty::openpty(None, None).expect("a terminal");
    let mut command = project.command(&["batch", "app.py"]);
    command.env("TERM", "xterm").stdout(Stdio::null()).stderr(terminal.slave);
    let mut child = command.spawn().expect("it starts");
    drop(command);
    let mut shown = Vec::new();
    let mut chunk = [0; 4096];
    // A terminal that nobody has open any more gives an error.
    while let Ok(count @ 1..) = nix::unistd::read(&terminal.master, &mut chunk) {
        shown.extend_from_slice(&chunk[..count]);
    }
    assert_eq!(child.wait().expect("it has ended").code(), Some(0));
    let shown = String::from_utf8_lossy(&shown);
    assert!(shown.contains("\x1b[1A\x1b[J") && shown.contains("/60 done"), "{shown}");
    project.assert_nothing_left();
}

struct Unmount<'a>(&'a Path);

impl Drop for Unmount<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0).status();
    }
}

/// Ends somebody of a run: a worker, the zygote, or all of it at once.
fn torment(node: &Node<'_>, number: u64) {
    let list = node.run(&["ps", "--json"]);
    if list.code != Some(0) {
        return;
    }
    let list = list.json();
    let workers: Vec<i32> = list
        .as_array()
        .expect("a list")
        .iter()
        .filter(|it| it["name"] != "conductor")
        .filter_map(|it| it["os_pid"].as_i64())
        .map(|os_pid| os_pid as i32)
        .collect();
    if !workers.is_empty() {
        kill(workers[number as usize % workers.len()], Signal::SIGKILL);
    }
    if number.is_multiple_of(4)
        && let Some(zygote) = node.find_zygote()
    {
        kill(zygote, Signal::SIGKILL);
    }
}

/// Fifteen thousand records, some of which cannot be read, through a function that crashes, a generator and a coroutine,
/// while workers, the reader, the zygote and, twenty times, the whole program are killed, and others want the journal.
#[test]
fn torture() {
    let project = pipelines(
        "import asyncio
def first(row):
    if row['n'] % 4999 == 4998: os._exit(9)
    return row['n'] + 1
def spread(n):
    yield n
    if n % 10 == 0: yield -n
async def second(n):
    await asyncio.sleep(0)
    if n % 7000 == 0: raise ValueError('seven thousand')
    return n * 3
def third(n): return n - 1
pipe = (pipeline('torture').source(source.jsonl('in.jsonl')).stage(first, concurrency=2, retries=1, backoff=0.01).stage(spread)
    .stage(second, retries=1, backoff=0.01).stage(third, concurrency=2).sink(sink.jsonl('out.jsonl')))",
    );
    let is_broken = |n: i64| n % 3001 == 3000;
    let rows: String = (0..15_000)
        .map(|n| if is_broken(n) { format!("{{\"n\": {n}\n") } else { format!("{{\"n\": {n}}}\n") })
        .collect();
    project.write("in.jsonl", &rows);
    let other = tempfile::tempdir().expect("a folder");
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = move || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    for _ in 0..20 {
        let mut command = project.command(&["batch", "app.py"]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut node = project.adopt(&mut command);
        node.wait_for("up with");
        let until = Instant::now() + Duration::from_millis(200 + next() % 700);
        while Instant::now() < until {
            torment(&node, next());
            std::thread::sleep(Duration::from_millis(next() % 60));
        }
        if next() % 3 == 0 {
            let mut second = project.command(&["batch", "app.py"]);
            let refused = Ran::from(second.env("REBEAM_RUNTIME_DIR", other.path()).output().expect("it runs"));
            if refused.code == Some(4) {
                // The first has come to its end before, and left nothing to do.
                assert!(refused.stdout.contains("0 done in this run"), "{refused:?}");
                assert_eq!(node.wait().0.code(), Some(4));
                project.assert_nothing_left();
                continue;
            }
            refused.assert_error(2, &["another run has the journal"]);
        }
        kill(node.os_pid(), Signal::SIGKILL);
        drop(node);
        project.assert_nothing_left();
    }
    let (ran, _) = run(&project, &[]);
    assert_eq!(ran.code, Some(4), "{ran:?}");
    let dead: BTreeSet<String> = dead(&project, "torture").into_keys().collect();
    let mut doomed = BTreeSet::new();
    let mut expected = Vec::new();
    for n in 0..15_000 {
        if is_broken(n) || n % 4999 == 4998 {
            doomed.insert(n.to_string());
            continue;
        }
        let several = if (n + 1) % 10 == 0 { vec![n + 1, -(n + 1)] } else { vec![n + 1] };
        for (place, value) in several.into_iter().enumerate() {
            if value % 7000 == 0 {
                doomed.insert(format!("{n}/{place}"));
            } else {
                expected.push(value * 3 - 1);
            }
        }
    }
    expected.sort_unstable();
    assert_eq!(dead, doomed, "who is dead is who deserves it");
    assert_eq!(sorted(lines(&project, "out.jsonl")), expected);
}
