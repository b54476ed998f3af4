//! Calls, casts, names, errors from far away, and what a crash does to mail.

use harness::{Project, kill};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::project;

fn shop() -> Project {
    Project::new(
        r#"
import os, threading, time
import rebeam
from rebeam import Actor, Supervisor, child

class ShopError(Exception):
    def __init__(self, item, left):
        super().__init__(f"{item}: {left} left")
        self.item, self.left = item, left
    def __reduce__(self):
        return ShopError, (self.item, self.left)

def local_error():
    class Local(Exception):
        pass
    return Local("nobody can import this")

class Shop(Actor):
    def init(self):
        self.log = []
    def note(self, value):
        self.log.append(value)
    def all(self):
        return self.log
    def pid(self):
        return os.getpid()
    def sleep(self, seconds):
        time.sleep(seconds)
    def wait_for(self, path):
        while not os.path.exists(path):
            time.sleep(0.01)
    def exit(self):
        os._exit(9)
    def buy(self, item):
        raise ShopError(item, 0)
    @rebeam.raises(ShopError, KeyError)
    def try_buy(self, item):
        raise ShopError(item, 1)
    def odd(self):
        raise local_error()
    def unsendable(self):
        return threading.Lock()
    def not_plain(self):
        return object()
    def echo(self, value, /, *, twice=False):
        return [value, value] if twice else value
    def call_me(self):
        return "called back"

shop = rebeam.ref(Shop, "shop")

class Customer(Actor):
    def init(self):
        self.kept = []

    def error_of(self, method, *args):
        try:
            return ["returned", shop.call(getattr(Shop, method), *args)]
        except BaseException as error:
            cause = str(error.__cause__)
            return [type(error).__name__, str(error), getattr(error, "item", None), cause]

    def send_lock(self):
        try:
            shop.call(Shop.echo, {"session": [1, threading.Lock()]})
        except rebeam.Unpicklable as error:
            return str(error)

    def timeout(self):
        shop.cast(Shop.sleep, 1.0)
        try:
            shop.options(timeout=0.2).call(Shop.pid)
        except rebeam.CallTimeout as error:
            return str(error)

    def no_such(self):
        try:
            rebeam.ref(Shop, "shoq").call(Shop.pid)
        except rebeam.NoProc as error:
            return str(error)

    def cast_to_nobody(self):
        rebeam.ref(Shop, "nobody").cast(Shop.pid)

    def myself(self):
        try:
            rebeam.me().ref.call.no_such()
        except rebeam.DeadlockError as error:
            return str(error)

    def flood(self, first, last):
        for n in range(first, last):
            shop.cast(Shop.note, n)

    def mixed(self, count):
        for n in range(count):
            if n % 3:
                shop.cast(Shop.note, n)
            else:
                shop.call(Shop.note, n)
        return shop.call(Shop.all) == list(range(count))

    def to_pid(self, count):
        pid = rebeam.whereis("shop")
        by_pid = rebeam.ref(Shop, pid)
        shop.cast(Shop.wait_for, "never")
        for n in range(count):
            by_pid.cast(Shop.note, ["pid", n])
            shop.cast(Shop.note, ["name", n])

    def big(self, size):
        data = os.urandom(size)
        return shop.call(Shop.echo, data) == data

    def from_threads(self, count):
        results = []
        def work(n):
            for i in range(count):
                results.append(shop.call(Shop.echo, (n, i)) == (n, i))
        threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
        [t.start() for t in threads]
        [t.join() for t in threads]
        return [len(results), all(results)]

    def whereis(self, name):
        return str(rebeam.whereis(name))

    def kinds(self):
        ref = rebeam.me().ref
        return [repr(ref), rebeam.me().name, rebeam.me().restarts]

    def give_ref(self):
        # A reference can be sent, and used by whoever gets it.
        return shop.call(Shop.echo, shop) == shop

    def taken(self):
        return self.kept

tree = Supervisor(
    [child(Shop, name="shop", max_messages_waiting=1000), child(Customer, name="customer")], max_restarts=200
)
"#,
    )
}

#[test]
fn gen_009_an_exception_reaches_the_caller_as_itself_with_its_traceback_and_ends_the_actor() {
    let project = shop();
    let node = project.up();
    let before = node.call("shop", "pid", &[]);
    let error = node.call("customer", "error_of", &["buy", "tea"]);
    assert_eq!((&error[0], &error[1], &error[2]), (&json!("ShopError"), &json!("tea: 0 left"), &json!("tea")));
    let cause = error[3].as_str().expect("a traceback");
    assert!(cause.contains("in buy") && cause.contains("raise ShopError(item, 0)"), "{cause}");
    assert!(!cause.contains("rebeam/_"), "frames of ours are left out: {cause}");
    assert_ne!(node.call("shop", "pid", &[]), before, "it died of it");
    // A class that cannot be imported here arrives in words.
    let odd = node.call("customer", "error_of", &["odd"]);
    assert_eq!(odd[0], json!("RemoteError"));
    assert!(odd[1].as_str().is_some_and(|text| text.contains("Local: nobody can import this")), "{odd}");
    node.down();
}

#[test]
fn declared_errors_and_faults_of_the_caller_do_not_end_the_actor() {
    let project = shop();
    let node = project.up();
    let before = node.call("shop", "pid", &[]);
    assert_eq!(node.call("customer", "error_of", &["try_buy", "tea"])[0], json!("ShopError"));
    for (call, kind, text) in [
        (vec!["echo"], "BadCall", "missing 1 required positional argument"),
        (vec!["echo", "1", "2"], "BadCall", "positional argument"),
        (vec!["init"], "BadCall", "no public method `init`"),
        (vec!["unsendable"], "BadResult", "the result of `unsendable` cannot be sent"),
    ] {
        let error = node.call("customer", "error_of", &call);
        assert_eq!(error[0], json!(kind), "{error}");
        assert!(error[1].as_str().is_some_and(|it| it.contains(text)), "{error}");
    }
    let text = node.call("customer", "send_lock", &[]);
    assert!(text.as_str().is_some_and(|it| it.contains("args[0]['session'][1]: _thread.lock")), "{text}");
    assert_eq!(node.call("shop", "pid", &[]), before);
    node.down();
}

#[test]
fn gen_005_gen_007_calls_that_cannot_be_answered_say_why() {
    let project = shop();
    let node = project.up();
    let text = node.call("customer", "timeout", &[]);
    assert!(text.as_str().is_some_and(|it| it.contains("`shop` did not answer in time: busy 0.")), "{text}");
    assert!(text.as_str().is_some_and(|it| it.contains("in `sleep`")), "{text}");
    let text = node.call("customer", "no_such", &[]);
    assert_eq!(text, json!("there is no actor `shoq`; did you mean `shop`?"));
    assert!(
        node.call("customer", "myself", &[]).as_str().is_some_and(|it| it.contains("customer.call(Customer.no_such)"))
    );
    assert_eq!(node.call("customer", "cast_to_nobody", &[]), Value::Null, "GEN-008: a cast is always fine");
    // The callee dies with the call in hand: the caller learns it at once, long before the deadline.
    let error = node.call("customer", "error_of", &["exit"]);
    assert_eq!(error[0], json!("ActorDied"));
    assert_eq!(error[1], json!("`shop` died: exit_code(9), with `exit` in hand"));
    node.down();
}

#[test]
fn msg_001_order_is_kept_between_two_actors_in_any_mix() {
    let project = shop();
    let node = project.up();
    assert_eq!(node.call("customer", "mixed", &["10000"]), json!(true));
    node.down();
}

#[test]
fn msg_006_mail_to_a_name_survives_a_crash_in_order_and_mail_to_a_pid_does_not() {
    let project = shop();
    let node = project.up();
    assert_eq!(node.call("customer", "to_pid", &["100"]), Value::Null);
    node.eventually("it waits", |node| (node.ps("shop")["busy"]["method"] == "wait_for").then_some(()));
    assert!(node.ps("shop")["waiting"].as_i64().is_some_and(|waiting| waiting == 200), "{}", node.ps("shop"));
    kill(node.os_pid_of("shop"), Signal::SIGKILL);
    node.eventually("it is back", |node| (node.ps("shop")["restarts"] == 1).then_some(()));
    let expected: Vec<Value> = (0..100).map(|n| json!(["name", n])).collect();
    assert_eq!(node.call("shop", "all", &[]), json!(expected));
    node.down();
}

#[test]
fn casts_survive_many_kills_at_any_moment_each_done_once_or_said_to_be_lost() {
    let project = shop();
    // What is done is on disk before the next message is taken; the actor's memory dies with it.
    project.write(
        "app.py",
        "import os\nimport rebeam\nfrom rebeam import *\n\
         class Disk(Actor):\n    def init(self):\n        self.fd = os.open('log', os.O_WRONLY | os.O_APPEND | os.O_CREAT)\n    def note(self, n):\n        os.write(self.fd, b'%d\\n' % n)\n    def ready(self):\n        return True\n\
         class Feeder(Actor):\n    def feed(self, count):\n        disk = rebeam.ref(Disk, 'disk')\n        for n in range(count):\n            disk.cast(Disk.note, n)\n\
         tree = Supervisor([child(Disk, name='disk'), child(Feeder, name='feeder')], max_restarts=1000)\n",
    );
    let node = project.up();
    node.run(&["cast", "feeder", "feed", "20000"]);
    for kills in 1..=20 {
        kill(node.os_pid_of("disk"), Signal::SIGKILL);
        node.eventually("it is back", |node| {
            let disk = node.ps("disk");
            (disk["restarts"] == kills && disk["state"] == "running").then_some(())
        });
    }
    node.eventually("all is fed", |node| node.ps("feeder")["busy"].is_null().then_some(()));
    assert_eq!(node.call("disk", "ready", &[]), json!(true));
    assert_eq!(node.run(&["down"]).code, Some(0));
    let (_, output) = node.wait();
    let log = std::fs::read_to_string(project.path().join("log")).expect("a log");
    let done: Vec<u64> = log.lines().map(|line| line.parse().expect("a number")).collect();
    assert!(done.windows(2).all(|pair| pair[0] < pair[1]), "each at most once, and in order");
    let lost = output.matches("`note` from feeder to disk: it was in hand").count();
    // A kill between the work and its mark leaves a message that was done and is said to be in hand.
    let missing = 20_000 - done.len();
    assert!(missing <= lost && lost <= 20, "{missing} missing, {lost} said to be lost:\n{output}");
}

#[test]
fn map_13_a_flood_at_a_slow_actor_makes_the_sender_wait_and_loses_nothing() {
    let project = shop();
    let node = project.up();
    node.run(&["cast", "shop", "sleep", "0.5"]);
    assert_eq!(node.call("customer", "flood", &["0", "30000"]), Value::Null);
    node.eventually("there is room for a call from outside", |node| (node.ps("shop")["waiting"] == 0).then_some(()));
    let all = node.call("shop", "all", &[]);
    assert_eq!(all.as_array().map(Vec::len), Some(30000));
    node.down();
}

#[test]
fn large_payloads_threads_and_references_come_through() {
    let project = shop();
    let node = project.up();
    for size in ["1", "16384", "65536", "3000000", "40000000"] {
        assert_eq!(node.call("customer", "big", &[size]), json!(true), "{size}");
    }
    assert_eq!(node.call("customer", "from_threads", &["500"]), json!([2000, true]));
    assert_eq!(node.call("customer", "give_ref", &[]), json!(true));
    assert_eq!(node.call("customer", "kinds", &[]), json!(["<ActorRef customer>", "customer", 0]));
    assert_eq!(node.call("customer", "whereis", &["shop"]), json!("<0.2>"));
    assert_eq!(node.call("customer", "whereis", &["nobody"]), json!("None"));
    node.down();
}

#[test]
fn a_stop_lets_earlier_mail_be_handled_first_and_a_restart_keeps_it() {
    let project = project("child(Child, name='a', shutdown=30)");
    let node = project.up();
    node.run(&["cast", "a", "wait_for", "go"]);
    for n in ["1", "2", "3"] {
        node.run(&["cast", "a", "take", n]);
    }
    // A restart goes before what waits; the next incarnation handles it.
    let mut restart = project.command(&["restart", "a"]).spawn().expect("it runs");
    node.eventually("it was asked to stop", |node| (node.ps("a")["state"] == "stopping").then_some(()));
    project.write("go", "");
    assert!(restart.wait().expect("it ends").success());
    assert_eq!(node.call("a", "taken", &[]), json!([1, 2, 3]));
    node.down();
}
