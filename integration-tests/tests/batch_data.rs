//! `rebeam batch` on any data: each item once whatever its id is, nothing overwritten, one bad record one dead item.

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use harness::{Project, Ran};
use serde_json::{Value, json};

use crate::batch::{dead, lines, pipelines, run, script_of};

/// Why items are dead, by their ids.
fn causes(project: &Project, name: &str) -> BTreeMap<String, String> {
    dead(project, name).into_iter().map(|(id, it)| (id, it["cause"].as_str().expect("words").to_owned())).collect()
}

/// Runs one of several pipelines: exit code and output.
fn run_one(project: &Project, name: &str, flags: &[&str]) -> Ran {
    let ran = project.run(&[&["batch", &format!("app.py:{name}")], flags].concat());
    project.assert_nothing_left();
    ran
}

fn count(project: &Project, file: &str) -> usize {
    std::fs::read_to_string(project.path().join(file)).unwrap_or_default().lines().count()
}

#[test]
fn a_journal_has_one_run_at_a_time_whoever_starts_it() {
    let project = pipelines(
        "def work(n):
    while n == 50 and not os.path.exists('go'): time.sleep(0.01)
    return n
pipe = pipeline('p').source(range(100)).stage(work).sink(sink.jsonl('out.jsonl'))",
    );
    let other = project.path().join("elsewhere");
    std::fs::create_dir(&other).expect("a folder");
    std::fs::set_permissions(&other, std::fs::Permissions::from_mode(0o700)).expect("it is ours");
    let mut first = project.start(&["batch", "app.py", "--journal", "j"]);
    first.wait_for("up with");
    // Under another runtime directory, as of cron beside a shell, it is another node.
    let mut second = project.command(&["batch", "app.py", "--journal", "j"]);
    second.env("REBEAM_RUNTIME_DIR", &other);
    let told = Ran::from(second.output().expect("it runs"));
    let who = format!("process {} of", first.os_pid());
    told.assert_error(2, &["another run has the journal", &who, "since 20", "rebeam batch app.py --journal j"]);
    // As is another project with the same journal.
    let third = pipelines("pipe = pipeline('p').source(range(3)).stage(abs).sink(sink.jsonl('out.jsonl'))");
    let journal = project.path().join("j").display().to_string();
    third.run(&["batch", "app.py", "--journal", &journal, "--fresh"]).assert_error(2, &["another run has the journal"]);
    project.write("go", "");
    let (status, output) = first.wait();
    assert_eq!((status.code(), count(&project, "out.jsonl")), (Some(0), 100), "{output}");
    // It is free again.
    assert_eq!(project.run(&["batch", "app.py", "--journal", "j"]).code, Some(0));
}

#[test]
fn every_id_is_one_and_the_same_again() {
    let project = pipelines(
        "import datetime, decimal, enum, pathlib, uuid
class Color(enum.Enum): RED = 1
D = decimal.Decimal
IDS = {
    'mixed': [1, '1', 2, '2', 3], 'none': [None, 'None', 1, 2, 3], 'float': [0.5, '0.5', float('nan'), 1.25, D('0.1')],
    'bytes': [b'a', 'a', b'', '', bytearray(b'b')], 'tuple': [(1, 'a'), (1, b'a'), ('1', 'a'), (), 'x'],
    'huge': [2**63, 2**70, -2**70, 2**63 - 1, -2**63], 'text': ['a\\nb', 'a\\rb', 'a\\0b', '\\udcff', 'x' * 100_000],
    'paths': ['1', '1/0', '1..2', '../x', '/abs'],
    'odd': [uuid.UUID(int=1), datetime.date(2026, 1, 1), Color.RED, pathlib.Path('p'), True],
}
def make(name, ids):
    return (pipeline(name).source(source.iterable(range(5), id=lambda n: ids[n])).stage(lambda n: n)
        .stage(lambda n: [n, n], name='two').sink(sink.jsonl(f'{name}.jsonl')))
for name, ids in IDS.items(): globals()[name] = make(name, ids)
table = pipeline('t').source(source.iterable(range(5), id=lambda n: IDS['mixed'][n])).stage(abs).sink(sink.sql('t.db', 't'))
equal = make('equal', [1, 1.0, True, D('1.0'), 2])
wrong = make('wrong', [object(), {}, 1, 2, 3])",
    );
    for name in ["mixed", "none", "float", "bytes", "tuple", "huge", "text", "paths", "odd"] {
        for _ in 0..2 {
            let ran = run_one(&project, name, &[]);
            assert_eq!((ran.code, count(&project, &format!("{name}.jsonl"))), (Some(0), 5), "{name}: {ran:?}");
        }
    }
    assert_eq!(run_one(&project, "table", &[]).code, Some(0));
    let rows = "import sqlite3; print(sqlite3.connect('t.db').execute('SELECT item_id, value FROM t ORDER BY value').fetchall())";
    let told = Ran::from(script_of(&project, &["-c", rows]).output().expect("it runs"));
    assert_eq!(told.stdout.trim(), "[(1, '0'), ('1', '1'), (2, '2'), ('2', '3'), (3, '4')]");
    // Values that are equal are one id, whatever their types: told, and kept.
    for _ in 0..2 {
        assert_eq!((run_one(&project, "equal", &[]).code, count(&project, "equal.jsonl")), (Some(4), 2));
    }
    let twice = causes(&project, "equal");
    assert_eq!(twice.keys().collect::<Vec<_>>(), ["1#2", "1#3", "1#4"]);
    assert_eq!(twice["1#2"], "its id `1` is that of an earlier item as well");
    assert_eq!(run_one(&project, "wrong", &[]).code, Some(4));
    let wrong = causes(&project, "wrong");
    assert_eq!(wrong.keys().collect::<Vec<_>>(), ["record 0", "record 1"]);
    assert!(wrong["record 0"].starts_with("its id: TypeError: a `object` tells no item from another"), "{wrong:?}");
}

#[test]
fn equal_keys_meet_in_one_worker_whatever_their_types() {
    let project = pipelines(
        "from decimal import Decimal
KEYS = [1, 1.0, True, Decimal(1), '1', None, float('nan'), ['a'], ('a',), {'x'}]
def where(n): return [n, os.getpid()]
staged = (pipeline('staged').source(range(100)).stage(where, key=lambda n: KEYS[n % 10], concurrency=3)
    .sink(sink.jsonl('staged.jsonl')))
gathered = (pipeline('gathered').source(range(100)).batch(10, key=lambda n: KEYS[n % 10]).stage(lambda l: l)
    .sink(sink.jsonl('gathered.jsonl')))
bad = pipeline('bad').source([1, 2, 3]).stage(abs, key=lambda n: {n: n} if n == 2 else n).sink(sink.jsonl('bad.jsonl'))",
    );
    assert_eq!(run_one(&project, "staged", &[]).code, Some(0));
    let mut workers: BTreeMap<i64, Vec<i64>> = BTreeMap::new();
    for it in lines(&project, "staged.jsonl") {
        let n = it[0].as_i64().expect("a number");
        // 1, 1.0, True and Decimal(1) are one; a list is as a tuple.
        let key = [0, 0, 0, 0, 4, 5, 6, 7, 7, 9][n as usize % 10];
        workers.entry(key).or_default().push(it[1].as_i64().expect("a process"));
    }
    assert!(workers.values().all(|pids| pids.iter().all(|pid| *pid == pids[0])), "{workers:?}");
    assert_eq!(run_one(&project, "gathered", &[]).code, Some(0));
    let sizes: usize = lines(&project, "gathered.jsonl").iter().map(|it| it.as_array().expect("a list").len()).sum();
    assert_eq!((sizes, count(&project, "gathered.jsonl")), (100, 10));
    assert_eq!(run_one(&project, "bad", &[]).code, Some(4));
    assert!(causes(&project, "bad")["1"].starts_with("the key of `abs`: TypeError: a `dict`"));
}

#[test]
fn a_file_that_has_changed_is_done_again() {
    let project = pipelines(
        "def read(path): return open(path).read()
def make(name, **options):
    return pipeline(name).source(source.files('in/*.txt', **options)).stage(read).sink(sink.jsonl(f'{name}.jsonl'))
time_, content, never = make('time'), make('content', changed='content'), make('never', changed='never')
rows = pipeline('rows').source(source.jsonl('in/*.jsonl')).stage(lambda row: row).sink(sink.jsonl('rows.jsonl'))",
    );
    let all = || {
        for name in ["time_", "content", "never", "rows"] {
            let ran = run_one(&project, name, &[]);
            assert_eq!(ran.code, Some(0), "{ran:?}");
        }
        ["time", "content", "never", "rows"].map(|name| count(&project, &format!("{name}.jsonl")))
    };
    project.write("in/a.txt", "old");
    project.write("in/b.txt", "same");
    project.write("in/a.jsonl", "1\n2\n");
    assert_eq!(all(), [2, 2, 2, 2]);
    assert_eq!(all(), [2, 2, 2, 2], "nothing has changed");
    project.write("in/a.txt", "newer");
    // Written again, as it was: another time, the same content.
    let path = project.path().join("in/b.txt");
    let later = std::time::SystemTime::now() + std::time::Duration::from_secs(5);
    std::fs::File::open(&path).and_then(|file| file.set_modified(later)).expect("it is there");
    project.write("in/a.jsonl", "1\n3\n4\n");
    assert_eq!(all(), [4, 3, 2, 4], "by time; by content; never; rows one by one");
    assert_eq!(lines(&project, "rows.jsonl"), [json!(1), json!(2), json!(3), json!(4)]);
    assert_eq!(all(), [4, 3, 2, 4]);
}

#[test]
fn nothing_is_overwritten_that_is_not_the_items_own() {
    let project = pipelines(
        "names = ['film.part', 'film', 'x' * 255, '\\u00fc' * 127, '..cache', '...', 'a/b', 'ok']
own = pipeline('own').source(source.iterable(names, id=str)).stage(lambda v: 'of ' + v).sink(sink.files('own'))
same = pipeline('same').source(['a/x', 'b/x', 'c/y']).stage(str).sink(sink.files('same', name=os.path.basename))
before = pipeline('before').source(['1', '2']).stage(str).sink(sink.files('before', name=str))
bad = ['', '.', '..', '../x', '/x', 'a/', 'a\\0b', '.rebeam.part', 'fine']
refused = pipeline('refused').source(bad).stage(str).sink(sink.files('refused', name=str))
absolute = pipeline('absolute').source(source.files(os.path.abspath('in/*'))).stage(str).sink(sink.files('absolute'))",
    );
    let read = |name: &str| std::fs::read_to_string(project.path().join(name)).expect("it is there");
    assert_eq!(run_one(&project, "own", &[]).code, Some(0));
    let long = "x".repeat(255);
    for name in ["film.part", "film", &long, "..cache", "...", "a/b", "ok"] {
        assert_eq!(read(&format!("own/{name}")), format!("of {name}"));
    }
    assert_eq!(run_one(&project, "same", &[]).code, Some(4));
    assert_eq!(
        causes(&project, "same").into_values().collect::<Vec<_>>(),
        ["its name `x` is that of the result of `0`"]
    );
    assert_eq!((read("same/x"), read("same/y")), ("a/x".into(), "c/y".into()));
    project.write("before/1", "precious");
    assert_eq!(run_one(&project, "before", &[]).code, Some(4));
    assert_eq!((read("before/1"), read("before/2")), ("precious".into(), "2".into()));
    assert!(causes(&project, "before")["0"].contains("`before/1` was there before"));
    // What somebody else has put there stays; what the journal knows of goes.
    project.write("before/3", "another's");
    std::fs::remove_file(project.path().join("before/1")).expect("it is there");
    project.write("app.py", &read("app.py").replace("['1', '2']", "['1']"));
    assert_eq!(run_one(&project, "before", &["--fresh"]).code, Some(0));
    let left = std::fs::read_dir(project.path().join("before")).expect("a folder").filter_map(Result::ok);
    let mut left: Vec<_> = left.map(|it| it.file_name().into_string().expect("text")).collect();
    left.sort();
    assert_eq!(left, ["1", "3"]);
    assert_eq!(run_one(&project, "refused", &[]).code, Some(4));
    assert_eq!(causes(&project, "refused").len(), 8);
    assert!(!project.path().join("x").exists() && read("refused/fine") == "fine");
    project.write("in/one", "");
    assert_eq!(run_one(&project, "absolute", &[]).code, Some(0));
    let below = project.path().join("in/one").display().to_string();
    assert!(project.path().join(format!("absolute{below}")).exists());
}

#[test]
fn what_json_has_no_word_for_is_refused() {
    let project = pipelines(
        "VALUES = [float('nan'), {'a': [float('-inf')]}, {1: 'a', '1': 'b'}, {(1,): 2}, b'x', 10**5000, 'fine', {1: 2}, None]
pipe = pipeline('p').source(range(9)).stage(lambda n: VALUES[n]).sink(sink.jsonl('out.jsonl'))
table = pipeline('t').source(range(9)).stage(lambda n: VALUES[n]).sink(sink.sql('sub/t.db', 't'))",
    );
    assert_eq!(run_one(&project, "pipe", &[]).code, Some(4));
    assert_eq!(lines(&project, "out.jsonl"), [json!("fine"), json!({"1": 2}), json!(null)]);
    let why = causes(&project, "p");
    assert_eq!(
        (why["0"].as_str(), why["1"].as_str()),
        (
            "the sink: ValueError: nan is no number that JSON knows",
            "the sink: ValueError: -inf is no number that JSON knows",
        )
    );
    assert_eq!(why["2"], "the sink: ValueError: two keys of a dictionary are the same in JSON");
    assert_eq!((run_one(&project, "table", &[]).code, causes(&project, "t").len()), (Some(4), 6));
}

#[test]
fn a_bad_record_is_a_dead_item_named_by_file_and_line() {
    let project = pipelines(
        "def width(value): return len(value)
def make(name, source, stage=width):
    return pipeline(name).source(source).stage(stage).sink(sink.jsonl(f'{name}.jsonl'))
text, records = make('text', source.lines('bad.txt')), make('records', source.jsonl('bad.jsonl'), lambda v: 1)
replaced = make('replaced', source.lines('bad.txt', errors='replace'))
latin = make('latin', source.csv('bad.csv', encoding='latin-1'), lambda row: row['b'])
cells = make('cells', source.csv('bad.csv'), lambda row: row['b'])
marked = make('marked', source.jsonl('bom.jsonl', id='n'), lambda row: row['n'])
packed = make('packed', source.lines('*.txt.*'))
broken = make('broken', source.lines('broken.gz'))
sqlite = make('sqlite', source.sql('bad.db', 'SELECT id, t FROM t', id='id'), lambda row: row['t'])
wrong = make('wrong', source.sql('bad.db', 'SELECT id, t FROM t', id='no'), lambda row: row['t'])",
    );
    let make = "import gzip, bz2, json, sqlite3
lines = [b'line %d\\n' % n for n in range(3000)]
lines[1500] = b'caf\\xe9\\n'
open('bad.txt', 'wb').writelines(lines)
good = [json.dumps({'n': n}).encode() for n in range(10)]
bad = [b'{\"n\":', b'\\0\\0', b'{\"t\": \"caf\\xe9\"}', b'{\"n\": ' + b'9' * 5000 + b'}', b'1 2']
open('bad.jsonl', 'wb').write(b'\\n'.join([*good[:5], *bad, b'', b'[' * 900 + b']' * 900, *good[5:]]))
open('bom.jsonl', 'wb').write(b'\\xef\\xbb\\xbf' + b'\\r\\n'.join(good))
open('bad.csv', 'wb').write(b'a,b\\n' + b'1,2\\n' * 10 + b'1,M\\xfcnchen\\n1,\"' + b'x' * 200_000 + b'\"\\n1,2\\n')
gzip.open('a.txt.gz', 'wb').write(b'one\\ntwo\\n')
bz2.open('b.txt.bz2', 'wb').write(b'three\\n')
open('broken.gz', 'wb').write(gzip.compress(b'one\\n' * 100_000)[:200])
db = sqlite3.connect('bad.db')
db.execute('CREATE TABLE t (id, t TEXT)')
db.execute(\"INSERT INTO t VALUES ('a', 'fine'), ('b', CAST(x'ff' AS TEXT)), ('c', 'good')\")
db.commit()";
    assert!(script_of(&project, &["-c", make]).status().expect("it runs").success());
    assert_eq!((run_one(&project, "text", &[]).code, count(&project, "text.jsonl")), (Some(4), 2999));
    assert_eq!(causes(&project, "text"), [("1500".into(), "bad.txt:1501: the byte 0xe9 is no utf-8".into())].into());
    assert_eq!((run_one(&project, "replaced", &[]).code, count(&project, "replaced.jsonl")), (Some(0), 3000));
    assert_eq!((run_one(&project, "records", &[]).code, count(&project, "records.jsonl")), (Some(4), 11));
    let why = causes(&project, "records");
    assert_eq!(why.keys().collect::<Vec<_>>(), ["5", "6", "7", "8", "9"]);
    assert!(why["5"].starts_with("bad.jsonl:6: JSONDecodeError"), "{why:?}");
    assert_eq!((run_one(&project, "latin", &[]).code, count(&project, "latin.jsonl")), (Some(0), 13));
    assert_eq!((run_one(&project, "cells", &[]).code, count(&project, "cells.jsonl")), (Some(4), 12));
    assert!(
        causes(&project, "cells")["10"].starts_with("bad.csv:12: the byte 0xfc"),
        "{:?}",
        causes(&project, "cells")
    );
    assert_eq!(run_one(&project, "marked", &[]).code, Some(0));
    assert_eq!(lines(&project, "marked.jsonl"), (0..10).map(Value::from).collect::<Vec<_>>());
    assert_eq!(run_one(&project, "packed", &[]).code, Some(0));
    assert_eq!(lines(&project, "packed.jsonl"), [json!(3), json!(3), json!(5)]);
    let ran = run_one(&project, "broken", &[]);
    assert!(
        ran.code == Some(5) && ran.stdout.contains("the source failed") && ran.stdout.contains("EOFError"),
        "{ran:?}"
    );
    assert_eq!((run_one(&project, "sqlite", &[]).code, causes(&project, "sqlite").len()), (Some(4), 1));
    let ran = run_one(&project, "wrong", &[]);
    assert!(ran.code == Some(5) && ran.stdout.contains("the query gives no column `no`, but id, t"), "{ran:?}");
    // A line that is mended is read again.
    let text = std::fs::read(project.path().join("bad.txt")).expect("it is there");
    let mended: Vec<u8> = text.into_iter().map(|byte| if byte == 0xe9 { b'e' } else { byte }).collect();
    std::fs::write(project.path().join("bad.txt"), mended).expect("it is written");
    assert_eq!(run_one(&project, "text", &["--accept-changes", "--retry-failed"]).code, Some(0));
    assert_eq!(count(&project, "text.jsonl"), 3000);
}

#[test]
fn a_function_that_raises_crashes_or_hangs_costs_its_item_wherever_it_runs() {
    let project = pipelines(
        "import threading
def bad(n):
    if n == 5: raise KeyError('five')
    if n == 7: ctypes.string_at(0)
    return n
def slow(n):
    if n == 3: time.sleep(1000)
    return n
class Odd:
    def __init__(self, n): self.n = n
    def __reduce__(self): return (Odd, (bad(self.n),))
class Late(Odd):
    def __reduce__(self): return (bad, (self.n,))
items = range(20)
key = pipeline('key').source(items).stage(abs, key=bad, concurrency=2).sink(sink.jsonl('key.jsonl'))
hang = pipeline('hang').source(items).stage(abs, key=slow, timeout=0.5).sink(sink.jsonl('hang.jsonl'))
later = pipeline('later').source(items).stage(abs).stage(str, key=bad, name='two').sink(sink.jsonl('later.jsonl'))
batch = pipeline('batch').source(items).stage(abs).batch(3, key=lambda n: bad(n) % 2).stage(sum).sink(sink.jsonl('batch.jsonl'))
ids = pipeline('ids').source(source.iterable(items, id=bad)).stage(abs).sink(sink.jsonl('ids.jsonl'))
content = pipeline('content').source(items).stage(abs).sink(sink.files('content', content=lambda n: str(bad(n))))
name = pipeline('name').source(items).stage(abs).sink(sink.files('name', name=lambda n: str(bad(n)), content=str))
default = pipeline('default').source(items).stage(complex).sink(sink.jsonl('default.jsonl', default=lambda c: bad(c.real)))
values = pipeline('values').source([1, threading.Lock(), 3]).stage(lambda n: 1).sink(sink.jsonl('values.jsonl'))
sends = pipeline('sends').source([Odd(n) for n in items]).stage(lambda it: it.n).sink(sink.jsonl('sends.jsonl'))
loads = pipeline('loads').source([Late(n) for n in items]).stage(lambda it: it).sink(sink.jsonl('loads.jsonl'))",
    );
    for (name, first) in [
        ("key", "the key of `abs`: KeyError: 'five'"),
        ("later", "the key of `two`: KeyError: 'five'"),
        ("batch", "the key of `batch`: KeyError: 'five'"),
        ("ids", "its id: KeyError: 'five'"),
        ("content", "the sink: KeyError: 'five'"),
        ("name", "the sink: KeyError: 'five'"),
        ("default", "the sink: KeyError: 'five'"),
        ("sends", "it cannot be pickled: KeyError: 'five'"),
        ("loads", "KeyError: 'five'"),
    ] {
        for _ in 0..2 {
            let ran = run_one(&project, name, &[]);
            assert_eq!(ran.code, Some(4), "{name}: {ran:?}");
        }
        let why = causes(&project, name);
        let found: Vec<&String> = why.values().collect();
        assert!(why.len() == 2 && found.iter().any(|it| *it == first), "{name}: {why:?}");
        assert!(found.iter().any(|it| it.contains("died: signal(SIGSEGV)")), "{name}: {why:?}");
    }
    for file in ["key.jsonl", "later.jsonl", "ids.jsonl", "default.jsonl", "sends.jsonl", "loads.jsonl"] {
        assert_eq!(count(&project, file), 18, "{file}");
    }
    assert_eq!(run_one(&project, "hang", &[]).code, Some(4));
    assert_eq!(causes(&project, "hang")["3"], "its key: it took longer than 0.5 s");
    assert_eq!((run_one(&project, "values", &[]).code, count(&project, "values.jsonl")), (Some(4), 2));
    assert!(causes(&project, "values")["1"].starts_with("it cannot be pickled: TypeError"));
}

#[test]
fn every_file_is_found_once_and_what_is_left_out_is_said() {
    let project = pipelines(
        "name = lambda path: os.fsencode(path).hex()
every = pipeline('every').source(source.directory('in')).stage(name).sink(sink.jsonl('every.jsonl'))
shown = pipeline('shown').source(source.files('in/**/*')).stage(name).sink(sink.jsonl('shown.jsonl'))
hidden = pipeline('hidden').source(source.files('in/**/*', hidden=True)).stage(name).sink(sink.jsonl('hidden.jsonl'))",
    );
    let inside = project.path().join("in");
    std::fs::create_dir_all(inside.join("sub/.hidden")).expect("folders");
    for name in [&b"a"[..], b"new\nline", b"caf\xe9", b"-rf", b"[x]", b".dot", b"sub/b", b"sub/.hidden/c"] {
        std::fs::write(inside.join(std::ffi::OsStr::from_bytes(name)), "").expect("it is made");
    }
    std::os::unix::fs::symlink("..", inside.join("sub/circle")).expect("a link");
    std::fs::create_dir(project.path().join("beside")).expect("a folder");
    std::fs::write(project.path().join("beside/d"), "").expect("it is made");
    std::os::unix::fs::symlink("../beside", inside.join("link")).expect("a link");
    for (name, expected) in [("every", 9), ("hidden", 9), ("shown", 7)] {
        let ran = run_one(&project, name, &[]);
        assert_eq!((ran.code, count(&project, &format!("{name}.jsonl"))), (Some(0), expected), "{name}: {ran:?}");
        let says = ran.stderr.contains("2 hidden files of `in/**/*` are left out; `hidden=True` takes them");
        assert_eq!(says, name == "shown", "{ran:?}");
    }
}

#[test]
fn a_journal_of_somebody_else_is_not_unpickled() {
    let project = pipelines(
        "def slow(n):
    if not os.path.exists('go'): os.kill(os.getppid(), 9); time.sleep(100)
    return n
pipe = pipeline('p').source(range(5)).stage(abs).stage(slow).sink(sink.jsonl('out.jsonl'))",
    );
    let journal = project.path().join(".rebeam/batch/p");
    let mut command = project.command(&["batch", "app.py"]);
    assert!(!command.stderr(Stdio::null()).stdout(Stdio::null()).status().expect("it runs").success());
    project.write("go", "");
    let evil = "import pickle, sqlite3
class P:
    def __reduce__(self): return (open, ('owned', 'w'))
db = sqlite3.connect('.rebeam/batch/p/journal.db')
db.execute('INSERT INTO waiting (id, step, attempts, value, root) VALUES (99, 1, 0, ?, 99)', (pickle.dumps(P(), 5),))
db.commit()";
    assert!(script_of(&project, &["-c", evil]).status().expect("it runs").success());
    std::fs::set_permissions(&journal, std::fs::Permissions::from_mode(0o777)).expect("it is ours");
    let refused = ["everybody may write to", "--trust-journal"];
    project.run(&["batch", "app.py"]).assert_error(2, &refused);
    std::fs::set_permissions(&journal, std::fs::Permissions::from_mode(0o755)).expect("it is ours");
    let is_root = nix::unistd::getuid().is_root();
    if is_root {
        let chown = |user: &str| Command::new("chown").args(["-R", user]).arg(&journal).status();
        assert!(chown("65534:65534").is_ok_and(|it| it.success()));
        project.run(&["batch", "app.py"]).assert_error(2, &["belongs to user 65534", "--trust-journal"]);
        assert!(!project.path().join("owned").exists(), "it was unpickled");
    }
    // Whoever says so, gets it.
    let ran = project.run(&["batch", "app.py", "--trust-journal"]);
    assert!(ran.code == Some(4) && project.path().join("owned").exists(), "{ran:?}");
    assert_eq!(count(&project, "out.jsonl"), 5);
}

#[test]
fn journal_and_outputs_go_by_the_umask() {
    let project = pipelines(
        "lines = pipeline('l').source(['a']).stage(str).sink(sink.jsonl('out.jsonl'))
files = pipeline('f').source(['a']).stage(str).sink(sink.files('out'))
table = pipeline('t').source(['a']).stage(str).sink(sink.sql('out.db', 't'))",
    );
    let command = "umask 002; for it in lines files table; do rebeam batch app.py:$it || exit 1; done";
    let mut shell = project.command_of("/bin/sh");
    let path = harness::rebeam().parent().expect("a folder").display().to_string();
    let ran =
        Ran::from(shell.env("PATH", format!("{path}:/usr/bin:/bin")).args(["-c", command]).output().expect("it runs"));
    assert_eq!(ran.code, Some(0), "{ran:?}");
    for (name, mode) in [
        ("out.jsonl", 0o664),
        ("out/0", 0o664),
        ("out.db", 0o664),
        (".rebeam/batch/l/journal.db", 0o664),
        ("out", 0o775),
        (".rebeam", 0o775),
        (".rebeam/batch/f", 0o775),
    ] {
        let found = std::fs::metadata(project.path().join(name)).expect("it is there").permissions().mode() & 0o777;
        assert_eq!(format!("{found:o}"), format!("{mode:o}"), "{name}");
    }
}

#[test]
fn who_takes_everything_down_is_tried_last_and_blamed_at_last() {
    let project = pipelines(
        "import signal
def work(n):
    if n == 30:
        with open('tries', 'a') as file: file.write('x')
        os.kill(int(open('supervisor').read()), signal.SIGKILL)
        time.sleep(100)
    return n
pipe = pipeline('p').source(range(60)).stage(work, retries=1).sink(sink.jsonl('out.jsonl'))",
    );
    let mut ends = Vec::new();
    for _ in 0..6 {
        // The shell's own process becomes the supervisor.
        let mut shell = project.command_of("/bin/sh");
        let program = harness::rebeam().display().to_string();
        shell.args(["-c", "echo $$ > supervisor; exec \"$0\" batch app.py", &program]);
        let status = shell.stdout(Stdio::null()).stderr(Stdio::null()).status().expect("it runs");
        project.assert_nothing_left();
        ends.push((status.code(), count(&project, "out.jsonl")));
    }
    let tries = std::fs::read_to_string(project.path().join("tries")).expect("it was tried").len();
    assert_eq!((ends[5], tries), ((Some(4), 59), 4), "{ends:?}");
    assert!(ends[1].1 == 59, "what is not to blame is done by the second run: {ends:?}");
    assert_eq!(causes(&project, "p")["30"], "it was in hand, alone, in 3 runs that ended without a word");
    assert_eq!(run(&project, &["--max-failures", "5"]).0.code, Some(4));
}

#[test]
fn an_item_that_changes_takes_nothing_of_others_along() {
    let project = pipelines(
        "def read(path):
    if 'b' in path: raise ValueError('not yet')
    return path
def parts(n):
    yield n
    yield n
files = pipeline('f').source(source.files('in/**/*.txt', id=lambda path: path[3:-4])).stage(read).sink(sink.jsonl('f.jsonl'))
ids = pipeline('i').source(source.iterable(['x#2', 'x', 'x', 'a', 'a/0'], id=str)).stage(parts).stage(str).sink(sink.jsonl('i.jsonl'))",
    );
    project.write("in/a.txt", "old");
    project.write("in/a/b.txt", "");
    assert_eq!(run_one(&project, "files", &[]).code, Some(4));
    project.write("in/a.txt", "newer");
    assert_eq!(run_one(&project, "files", &[]).code, Some(4));
    // `a/b` is no part of `a`.
    assert_eq!(
        (causes(&project, "f").into_keys().collect::<Vec<_>>(), count(&project, "f.jsonl")),
        (vec!["a/b".into()], 2)
    );
    for _ in 0..2 {
        assert_eq!((run_one(&project, "ids", &[]).code, count(&project, "i.jsonl")), (Some(4), 8));
    }
    assert_eq!(causes(&project, "i").into_keys().collect::<Vec<_>>(), ["x#3"]);
}
