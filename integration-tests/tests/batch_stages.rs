//! `rebeam batch` while it waits: items in flight, attempts and pauses, and what a stage may be made of.

use std::process::Command;

use harness::{Project, Ran};
use serde_json::json;

use crate::batch::{dead, lines, pipelines, run, script_of, sorted};

fn count(project: &Project, file: &str) -> usize {
    std::fs::read_to_string(project.path().join(file)).unwrap_or_default().lines().count()
}

#[test]
fn coroutines_wait_beside_each_other() {
    let project = pipelines(
        "import asyncio, functools
now = most = 0
async def call(n):
    global now, most
    now += 1
    most = max(most, now)
    # Until as many are in flight as may be, or no more come.
    for _ in range(200):
        if now >= 20 or n >= 180: break
        await asyncio.sleep(0.01)
    now -= 1
    return most
def wrapped(function):
    @functools.wraps(function)
    def call(*args): return function(*args)
    return call
class Caller:
    async def __call__(self, n): return await call(n)
async def many(n):
    for k in range(2):
        await asyncio.sleep(0)
        yield k
async def load(): return {'base': 100}
async def add(n, state, item): return n + state['base'] + item.attempt
def make(name, function): return pipeline(name).source(range(200)).stage(function, in_flight=20).sink(sink.jsonl(f'{name}.jsonl'))
plain, deco, obj, part = (make(*it) for it in
    {'plain': call, 'deco': wrapped(call), 'obj': Caller, 'part': functools.partial(call)}.items())
gen = pipeline('gen').source(range(10)).stage(many).sink(sink.jsonl('gen.jsonl'))
state = pipeline('state').source(range(5)).stage(add, init=load).sink(sink.jsonl('state.jsonl'))
hides = pipeline('hides').source(range(5)).stage(lambda n: add(n, {'base': 0}, item=Item(n, 1))).sink(sink.jsonl('hides.jsonl'))
keep = pipeline('keep').source(range(10)).filter(lambda n: asyncio.sleep(0, n % 2)).sink(sink.jsonl('keep.jsonl'))",
    );
    let all = |name: &str| {
        let ran = project.run(&["batch", &format!("app.py:{name}")]);
        assert_eq!(ran.code, Some(0), "{name}: {ran:?}");
        sorted(lines(&project, &format!("{name}.jsonl")))
    };
    for name in ["plain", "deco", "obj", "part"] {
        let most = all(name);
        assert_eq!((most.len(), most.last()), (200, Some(&20)), "{name}: as many as may, and no more");
    }
    assert_eq!(all("gen").len(), 20);
    assert_eq!(all("state"), (101..106).collect::<Vec<i64>>());
    assert_eq!((all("hides"), all("keep")), ((1..6).collect(), vec![1, 3, 5, 7, 9]));
}

#[test]
fn one_coroutine_that_crashes_hangs_or_blocks_costs_no_other() {
    let project = pipelines(
        "import asyncio
async def work(n):
    await asyncio.sleep(0.01)
    if n == 20: ctypes.string_at(0)
    if n == 40: await asyncio.sleep(1000)
    if n == 60: time.sleep(1000)
    if n == 80: raise asyncio.CancelledError
    if n == 90: raise KeyboardInterrupt('ninety')
    return n
pipe = pipeline('p').source(range(100)).stage(work, timeout=0.5, in_flight=10, concurrency=2).sink(sink.jsonl('out.jsonl'))",
    );
    let (ran, _) = run(&project, &[]);
    assert_eq!(ran.code, Some(4), "{ran:?}");
    let bad = [20, 40, 60, 80, 90];
    assert_eq!(sorted(lines(&project, "out.jsonl")), (0..100).filter(|n| !bad.contains(n)).collect::<Vec<i64>>());
    let dead = dead(&project, "p");
    let cause = |id: &str| dead[id]["cause"].as_str().expect("words");
    assert_eq!(dead.keys().collect::<Vec<_>>(), ["20", "40", "60", "80", "90"]);
    assert_eq!((cause("20"), cause("40")), ("the worker died: signal(SIGSEGV)", "it took longer than 0.5 s"));
    assert_eq!((cause("60"), cause("90")), ("it took longer than 0.5 s", "KeyboardInterrupt: ninety"));
}

#[test]
fn coroutines_with_equal_keys_keep_their_order() {
    let project = pipelines(
        "import asyncio
async def work(pair, item):
    await asyncio.sleep(0.002 * (pair[1] % 3))
    if pair[1] == 7 and item.attempt == 1: raise ValueError('once')
    return pair
pipe = (pipeline('p').source([(k, n) for n in range(30) for k in 'abcd'])
    .stage(work, concurrency=2, key=lambda pair: pair[0], retries=2, backoff=0.01).sink(sink.jsonl('out.jsonl')))",
    );
    let (ran, _) = run(&project, &[]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    for key in ["a", "b", "c", "d"] {
        let of = lines(&project, "out.jsonl");
        let order: Vec<i64> = of.iter().filter(|it| it[0] == key).map(|it| it[1].as_i64().expect("a number")).collect();
        assert_eq!(order, (0..30).collect::<Vec<i64>>(), "{key}");
    }
}

#[test]
fn exceptions_say_whether_and_when_an_item_is_tried_again() {
    let project = pipelines(
        "from rebeam.batch import Dead, Retry, Skip
class Later(Exception): retry_after = 0.5
class Response: headers = {'Retry-After': '0.5'}
class HttpError(Exception): response = Response()
began = {}
def work(n, item):
    with open('tries', 'a') as file: file.write(f'{n} {time.monotonic()}\\n')
    match n:
        case 0: raise ConnectionError('worth it')
        case 1: raise ValueError('not worth it')
        case 2: raise TimeoutError('never')
        case 3: raise Dead('for good')
        case 4: raise Skip
        case 5 if item.attempt < 3: raise Retry('again', after=0.5)
        case 6 if item.attempt < 2: raise Later
        case 7 if item.attempt < 2: raise HttpError
        case 8 if item.attempt < 3: raise SystemExit('bye')
        case 9 if item.attempt < 3: raise GeneratorExit
    return n
pipe = (pipeline('p').source(range(10))
    .stage(work, retries=2, backoff=0.01, retry_on=(OSError, Later, HttpError, SystemExit, GeneratorExit), never_retry=TimeoutError)
    .sink(sink.jsonl('out.jsonl')))",
    );
    let (ran, report) = run(&project, &[]);
    assert_eq!(ran.code, Some(4), "{ran:?}");
    assert_eq!(sorted(lines(&project, "out.jsonl")), [5, 6, 7, 8, 9]);
    let text = std::fs::read_to_string(project.path().join("tries")).expect("it was tried");
    let mut tries = vec![Vec::new(); 10];
    for line in text.lines() {
        let (n, at) = line.split_once(' ').expect("two");
        tries[n.parse::<usize>().expect("a number")].push(at.parse::<f64>().expect("a time"));
    }
    assert_eq!(tries.iter().map(Vec::len).collect::<Vec<_>>(), [3, 1, 1, 1, 1, 3, 2, 2, 3, 3]);
    for n in [5, 6, 7] {
        assert!(tries[n][1] - tries[n][0] >= 0.5, "{n} waits as long as it was told: {:?}", tries[n]);
    }
    let dead = dead(&project, "p");
    assert_eq!(dead.keys().collect::<Vec<_>>(), ["0", "1", "2", "3"]);
    assert_eq!((&dead["3"]["cause"], &dead["0"]["attempts"]), (&json!("for good"), &json!(3)));
    assert_eq!(report["counts"]["dead"], 4);
}

#[test]
fn items_with_keys_wait_for_their_next_attempt_as_others_do() {
    let project = pipelines(
        "def work(n):
    with open('tries', 'a') as file: file.write(f'{n} {time.monotonic()}\\n')
    if n == 1: raise ValueError
    return n
pipe = pipeline('p').source(range(4)).stage(work, key=lambda n: n % 2, retries=2, backoff=0.4, jitter=0).sink(sink.jsonl('out.jsonl'))",
    );
    let (ran, _) = run(&project, &[]);
    assert_eq!(ran.code, Some(4), "{ran:?}");
    let text = std::fs::read_to_string(project.path().join("tries")).expect("it was tried");
    let tries: Vec<(i64, f64)> = text
        .lines()
        .filter_map(|line| line.split_once(' '))
        .map(|(n, at)| (n.parse().expect("a number"), at.parse().expect("a time")))
        .collect();
    let order: Vec<i64> = tries.iter().map(|(n, _)| *n).collect();
    // The other key goes on meanwhile; 3 has the key of 1 and waits for it.
    assert_eq!(order, [0, 1, 2, 1, 1, 3]);
    assert!(tries[3].1 - tries[1].1 >= 0.4 && tries[4].1 - tries[3].1 >= 0.8, "{tries:?}");
}

#[test]
fn a_batch_that_fails_is_tried_again_whole_and_split_at_last() {
    let project = pipelines(
        "def load(rows):
    with open('calls', 'a') as file: file.write(f'{len(rows)}\\n')
    if not os.path.exists('up'):
        if os.path.getsize('calls') >= 40: open('up', 'w').close()
        raise ConnectionError('503')
    return rows
def picky(rows):
    with open('picky', 'a') as file: file.write(f'{len(rows)}\\n')
    if 13 in rows: raise ValueError('thirteen')
    return rows
outage = pipeline('outage').source(range(100)).batch(50).stage(load, retries=50, backoff=0.01).sink(sink.jsonl('o.jsonl'))
culprit = pipeline('culprit').source(range(64)).batch(64).stage(picky, retries=2, backoff=0.01).sink(sink.jsonl('c.jsonl'))",
    );
    assert_eq!(project.run(&["batch", "app.py:outage"]).code, Some(0));
    let calls = std::fs::read_to_string(project.path().join("calls")).expect("it was called");
    assert!(calls.lines().all(|size| size == "50"), "none was split: {calls}");
    assert_eq!(project.run(&["batch", "app.py:culprit"]).code, Some(4));
    let calls = std::fs::read_to_string(project.path().join("picky")).expect("it was called");
    // Three attempts of the whole; then two halves, of which one fails, six times.
    assert_eq!(calls.lines().count(), 3 + 2 * 6, "{calls}");
    assert_eq!(dead(&project, "culprit").into_keys().collect::<Vec<_>>(), ["13"]);
}

#[test]
fn a_stage_of_which_many_in_a_row_fail_pauses_and_says_so() {
    let project = pipelines(
        "def work(n):
    time.sleep(0.02)
    with open('tries', 'a') as file: file.write('x')
    if not os.path.exists('up'):
        if os.path.getsize('tries') >= 12: open('up', 'w').close()
        raise ConnectionError('503')
    return n
pipe = (pipeline('p').source(range(50)).stage(work, retries=5, backoff=0.01, pause_after=10, concurrency=2)
    .sink(sink.jsonl('out.jsonl')))",
    );
    let (ran, report) = run(&project, &[]);
    assert_eq!((ran.code, count(&project, "out.jsonl")), (Some(0), 50), "{ran:?}");
    let said = "`work` pauses for 1 s: 10 attempts in a row have failed, the last by ConnectionError: 503";
    assert!(ran.stderr.contains(said) && ran.stderr.contains("`work` works again"), "{ran:?}");
    // While it pauses nobody is tried but one at a time.
    assert!(report["stages"][0]["retries"].as_u64().is_some_and(|it| it <= 16), "{}", report["stages"]);
}

#[test]
fn a_stage_that_cannot_be_prepared_again_ends_the_run_and_does_not_loop() {
    let stage = |how: &str| {
        pipelines(&format!(
            "def load():
    if os.path.exists('second'):
        with open('tries', 'a') as file: file.write('x')
        {how}
def work(n):
    if n == 50 and not os.path.exists('second'):
        open('second', 'w').close()
        os._exit(1)
    return n
pipe = pipeline('p').source(range(400)).stage(work, init=load, retries=1).sink(sink.jsonl('out.jsonl'))"
        ))
    };
    for (how, cause) in
        [("raise FileNotFoundError('model.bin')", "FileNotFoundError: model.bin"), ("os._exit(3)", "exit_code(3)")]
    {
        let project = stage(how);
        let (ran, report) = run(&project, &[]);
        assert_eq!(ran.code, Some(5), "{ran:?}");
        let why = report["why"].as_str().unwrap_or_default();
        assert!(why.starts_with("`init` of `work` failed 5 times: ") && why.contains(cause), "{report}");
        assert_eq!(std::fs::read_to_string(project.path().join("tries")).expect("it was tried").len(), 5);
        // Nothing is lost by it.
        std::fs::remove_file(project.path().join("second")).expect("it is there");
        project.write(
            "app.py",
            &std::fs::read_to_string(project.path().join("app.py")).expect("it is there").replace("n == 50", "n < 0"),
        );
        assert_eq!(run(&project, &["--accept-changes"]).0.code, Some(0));
        assert_eq!(sorted(lines(&project, "out.jsonl")), (0..400).collect::<Vec<i64>>());
    }
}

#[test]
fn a_stage_may_have_any_signature() {
    let project = pipelines(
        "import functools
def double(item): return 2 * item
async def adouble(item): return 2 * item
def scaled(item, state): return item * state
def told(value, state, item): return value * state * item.attempt
def only(value, *, item): return value * 2 * item.attempt
class Doubler:
    def __call__(self, item): return 2 * item
class Method:
    def double(self, value, item): return value * 2 * item.attempt
def gen(item): yield 2 * item
def spread(*args, **kwargs): return args[0] * 2
def bound(value, factor, item=None): return value * factor
def keyed(factor, item): return item * factor
def decorated(function):
    @functools.wraps(function)
    def inner(*args, **kwargs): return function(*args, **kwargs)
    return inner
@decorated
def wrapped(value, item): return value * 2 * item.attempt
def narrow(function):
    @functools.wraps(function)
    def inner(value): return function(value, None)
    return inner
@narrow
def hidden(value, item): return value * 2
two = lambda: 2
stages = {'plain': (double, {}), 'coro': (adouble, {}), 'state': (scaled, {'init': two}), 'told': (told, {'init': two}),
    'only': (only, {}), 'object': (Doubler, {}), 'instance': (Doubler(), {}), 'method': (Method().double, {}), 'gen': (gen, {}),
    'spread': (spread, {}), 'part': (functools.partial(bound, factor=2), {}), 'first': (functools.partial(keyed, 2), {}),
    'set': (functools.partial(bound, factor=2, item=None), {}), 'wrapped': (wrapped, {}), 'hidden': (hidden, {}),
    'lambda_': (lambda item: 2 * item, {}), 'built': ((2).__mul__, {})}
for name, (f, o) in stages.items():
    globals()[name + '_pipe'] = pipeline(name).source(range(5)).stage(f, name='w', **o).sink(sink.jsonl(name + '.jsonl'))
filter_pipe = pipeline('filter').source(range(0, 10, 2)).filter(lambda item: item >= 0).sink(sink.jsonl('filter.jsonl'))",
    );
    let names = "plain coro state told only object instance method gen spread part first set wrapped hidden lambda_ built filter";
    for name in names.split(' ') {
        let ran = project.run(&["batch", &format!("app.py:{name}_pipe")]);
        assert_eq!(ran.code, Some(0), "{name}: {ran:?}");
        assert_eq!(sorted(lines(&project, &format!("{name}.jsonl"))), [0, 2, 4, 6, 8], "{name}");
    }
}

#[test]
fn each_item_begins_where_the_run_does() {
    let project = pipelines(
        "import tempfile
def work(n):
    assert os.path.exists('here'), os.getcwd()
    if n % 3 == 0:
        with tempfile.TemporaryDirectory() as place: os.chdir(place)
    return n
pipe = pipeline('p').source(range(10)).stage(work).sink(sink.jsonl('out.jsonl'))",
    );
    project.write("here", "");
    assert_eq!((run(&project, &[]).0.code, count(&project, "out.jsonl")), (Some(0), 10));
}

#[test]
fn a_script_makes_its_pipeline_from_its_arguments_wherever_it_does() {
    let project = pipelines("");
    let body = "p = argparse.ArgumentParser(); p.add_argument('--n', type=int, default=5); args = p.parse_args()
pipe = pipeline(NAME).source(range(args.n)).stage(abs).sink(sink.jsonl('out.jsonl'))";
    let head = "import argparse\nfrom rebeam.batch import pipeline, sink\n";
    let indented = body.replace('\n', "\n    ");
    let forms = [
        (
            "guarded",
            format!("{head}if __name__ == '__main__':\n    {indented}\n    print(pipe.run()['counts']['done'])\n"),
        ),
        ("above", format!("{head}{body}\nif __name__ == '__main__':\n    print(pipe.run()['counts']['done'])\n")),
        (
            "inside",
            format!(
                "{head}def main():\n    {indented}\n    print(pipe.run()['counts']['done'])\nif __name__ == '__main__':\n    main()\n"
            ),
        ),
    ];
    for (name, text) in forms {
        project.write("script.py", &text.replace("NAME", &format!("'{name}'")));
        let _ = std::fs::remove_file(project.path().join("out.jsonl"));
        let ran = Ran::from(script_of(&project, &["script.py", "--n", "9"]).output().expect("it runs"));
        assert!(ran.stdout.lines().any(|line| line == "9") && ran.code == Some(0), "{name}: {ran:?}");
        assert_eq!(count(&project, "out.jsonl"), 9);
    }
    // Without a guard it is told what to write.
    project
        .write("script.py", &format!("{head}pipe = pipeline('bare').source([1]).stage(abs).sink(print)\npipe.run()\n"));
    let mut script: Command = script_of(&project, &["script.py"]);
    let ran = Ran::from(script.output().expect("it runs"));
    assert!(ran.code == Some(1) && ran.stderr.contains("if __name__ == \"__main__\":"), "{ran:?}");
    project.assert_nothing_left();
}

#[test]
fn options_of_attempts_that_make_no_sense_are_refused() {
    for (stage, text) in [
        ("abs, in_flight=5", "`abs` has in_flight=5, and is no `async def`"),
        ("abs, retry_on='OSError'", "`retry_on` of `abs` is 'OSError'; it is an exception's class"),
        ("abs, jitter=2", "`abs` has jitter=2; it is a share"),
        ("abs, pause_after=0", "`abs` has pause_after=0"),
        ("abs, never_retry=(1,)", "`never_retry` of `abs` is (1,)"),
    ] {
        let project = pipelines(&format!("pipe = pipeline('p').source([1]).stage({stage}).sink(print)"));
        let ran = project.run(&["batch", "app.py"]);
        assert!(matches!(ran.code, Some(2 | 3)) && ran.stderr.contains(text), "{stage}: {ran:?}");
    }
    for source in
        ["lines('x', encoding='no')", "lines('x', errors='no')", "files('x', changed='often')", "csv('x', id=3)"]
    {
        let project = pipelines(&format!("pipe = pipeline('p').source(source.{source}).stage(abs).sink(print)"));
        let ran = project.run(&["batch", "app.py"]);
        assert!(
            matches!(ran.code, Some(2 | 3)) && ran.stderr.contains("PipelineError") | ran.stderr.contains("error"),
            "{ran:?}"
        );
    }
}

#[test]
fn whatever_befalls_an_item_in_flight_the_run_comes_to_its_end() {
    let project = pipelines(
        "import asyncio
from rebeam.batch import Dead
def one(n): return n
async def crashes(n):
    await asyncio.sleep(0.01)
    if n == 3: os._exit(1)
    return n
def ends():
    time.sleep(0.05)
    os._exit(1)
async def elsewhere(n):
    if n == 3: await asyncio.to_thread(ends)
    return n
async def stubborn(n):
    while n == 3:
        try: await asyncio.sleep(1000)
        except asyncio.CancelledError: pass
    return n
def load():
    with open('loads', 'a') as file: file.write('x')
    if os.path.getsize('loads') == 2: raise RuntimeError('once')
async def after_that(n):
    await asyncio.sleep(0.01)
    if n == 3 and not os.path.exists('crashed'):
        open('crashed', 'w').close()
        os._exit(1)
    return n
class Odd(Dead):
    def __str__(self): raise ValueError
def dies(n):
    if n == 3: raise Odd
    return n
def circle(n):
    if n != 3: return n
    it = []
    it.append(it)
    return it
def huge(n): return n if n != 3 else b'x' * 300_000_000
class Unsized:
    def __iter__(self): return iter(range(10))
    def __len__(self): raise TypeError
def stores(n):
    with open('stored', 'a') as file: file.write('x')
    yield
def kills(): os.kill(os.getpid(), 9)
def make(name, function, items=range(10), **options):
    return pipeline(name).source(items).stage(function, **options).sink(sink.jsonl(f'{name}.jsonl'))
keyed = make('keyed', crashes, key=lambda n: n % 2)
thread, stays = make('thread', elsewhere), make('stays', stubborn, timeout=0.3)
again = make('again', after_that, init=load, retries=1, key=lambda n: n % 2)
odd, round_, big, unsized = make('odd', dies), make('round', circle), make('big', huge), make('unsized', one, Unsized())
nested = (pipeline('nested').source(range(8)).batch(2).filter(lambda v: True).batch(2).stage(one)
    .sink(sink.jsonl('nested.jsonl')))
deeper = (pipeline('deeper').source(range(8)).batch(2).filter(lambda v: True).batch(2).filter(lambda v: True, name='again')
    .stage(one).sink(sink.jsonl('deeper.jsonl')))
patient = make('patient', dies, retries=1500, backoff=0, pause_after=None)
generator = pipeline('generator').source(range(10)).stage(one).sink(stores)
ended = make('ended', one, init=kills)
many = make('many', crashes, range(600), in_flight=300)
async def first(n):
    # The first waits for all the others.
    while n == 0 and most < 9: await asyncio.sleep(0.01)
    count()
    return n
most = 0
def count():
    global most
    most += 1
heads = make('heads', first)",
    );
    for (name, code, count_of) in [
        ("keyed", 4, 9),
        ("thread", 4, 9),
        ("stays", 4, 9),
        ("again", 0, 10),
        ("odd", 4, 9),
        ("round_", 4, 9),
        ("big", 4, 9),
        ("unsized", 0, 10),
        ("nested", 0, 2),
        ("deeper", 0, 2),
        ("patient", 4, 9),
        ("ended", 3, 0),
        ("many", 4, 599),
        ("heads", 0, 10),
    ] {
        let ran = project.run(&["batch", &format!("app.py:{name}")]);
        let file = format!("{}.jsonl", name.trim_end_matches('_'));
        assert_eq!((ran.code, count(&project, &file)), (Some(code), count_of), "{name}: {ran:?}");
    }
    assert_eq!(project.run(&["batch", "app.py:generator"]).code, Some(0));
    assert_eq!(std::fs::read_to_string(project.path().join("stored")).expect("it was stored").len(), 10);
}

#[test]
fn the_halves_of_a_batch_with_a_key_keep_their_order() {
    let project = pipelines(
        "def work(rows):
    with open('order', 'a') as file: file.write(f'{rows}\\n')
    if len(rows) > 1: raise ValueError
    return rows
pipe = pipeline('p').source(range(4)).batch(4).stage(work, key=lambda rows: 0).sink(sink.jsonl('out.jsonl'))",
    );
    assert_eq!(run(&project, &[]).0.code, Some(0));
    let order = std::fs::read_to_string(project.path().join("order")).expect("it was done");
    assert_eq!(order.lines().collect::<Vec<_>>(), ["[0, 1, 2, 3]", "[0, 1]", "[0]", "[1]", "[2, 3]", "[2]", "[3]"]);
}

#[test]
fn input_that_does_not_come_again_is_not_lost_with_whoever_reads_it() {
    let project = pipelines(
        "def work(n):
    time.sleep(0.005)
    return int(n)
pipe = pipeline('p').source(source.stdin()).stage(work).sink(sink.jsonl('out.jsonl'))",
    );
    let numbers: String = (0..1500).map(|n| format!("{n}\n")).collect();
    project.write("in.txt", &numbers);
    let killed = |name: &str| {
        let mut shell = project.command_of("/bin/sh");
        let program = harness::rebeam().display().to_string();
        // A pipe, as it would be: a file could be read again.
        shell.args(["-c", "cat in.txt | exec \"$0\" batch app.py --fresh", &program]);
        shell.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        let mut node = project.adopt(&mut shell);
        node.wait_for("up with");
        node.eventually("some are done", |_| (count(&project, "out.jsonl") > 5).then_some(()));
        let os_pid = node.ps(name)["os_pid"].as_i64().expect("it runs");
        harness::kill(os_pid as i32, nix::sys::signal::Signal::SIGKILL);
        let (status, output) = node.wait();
        (status.code(), output)
    };
    let (code, output) = killed("conductor");
    assert_eq!((code, sorted(lines(&project, "out.jsonl"))), (Some(0), (0..1500).collect()), "{output}");
    let (code, output) = killed("source");
    assert!(code == Some(5) && output.contains("what it had read is lost"), "{output}");
}
