//! Names, registries, groups: who is found, and for how long.

use crate::world::{World, actor, actor_with, inner, name, supervisor};
use bytes::Bytes;
use rebeam_core::Event;
use rebeam_protocol::address::{Address, Registry};
use rebeam_protocol::id::{Pid, RequestId};
use rebeam_protocol::ledger::text_key;
use rebeam_protocol::message::{CallFailure, Kind, Outcome, Waits};
use rebeam_protocol::process::{
    ChildError, ProcessAnswer, ProcessRequest, RegistryError, RegistryRequest, SupervisorRequest,
};
use rebeam_protocol::spec::{ChildSpec, Restart, Strategy, SupervisorKind};
use rebeam_protocol::table::{Access, Table, TableKind};
use rebeam_protocol::value::{self, Value};

fn world(mut children: Vec<ChildSpec>) -> World {
    children.insert(0, registry("rooms", true));
    children.insert(1, registry("tags", false));
    let mut spec = supervisor(Strategy::OneForOne, children);
    spec.max_restarts = 100;
    World::up(spec)
}

fn registry(name: &str, is_unique: bool) -> ChildSpec {
    let mut spec = supervisor(Strategy::OneForOne, Vec::new());
    spec.name = Some(name.into());
    spec.kind = SupervisorKind::Registry { is_unique };
    inner(name, spec)
}

fn rooms() -> Registry {
    Registry::Named("rooms".into())
}

fn tags() -> Registry {
    Registry::Named("tags".into())
}

fn ask(world: &mut World, who: &str, registry: Registry, request: RegistryRequest) -> ProcessAnswer {
    world.asks(who, ProcessRequest::Registry { registry, request }).expect("an answer at once")
}

pub(crate) fn enter(world: &mut World, who: &str, registry: Registry, key: &str) -> ProcessAnswer {
    ask(world, who, registry, RegistryRequest::Enter { key: text_key(key), who: None })
}

fn leave(world: &mut World, who: &str, registry: Registry, key: &str) -> ProcessAnswer {
    ask(world, who, registry, RegistryRequest::Leave { key: text_key(key), who: None })
}

fn holders(world: &mut World, registry: Registry, key: Vec<u8>) -> Vec<Pid> {
    match ask(world, "z", registry, RegistryRequest::Look { key }) {
        ProcessAnswer::Entries(entries) => entries.into_iter().map(|entry| entry.holder).collect(),
        other => panic!("{other:?}"),
    }
}

fn already(pid: Pid) -> ProcessAnswer {
    ProcessAnswer::Registry(RegistryError::AlreadyRegistered(Some(pid)))
}

#[test]
fn nam_001_a_name_has_one_holder_and_a_second_start_says_who() {
    let mut world = world(vec![actor("a"), actor("z")]);
    let holder = world.process("a").pid;
    assert_eq!(world.found("a"), Some(holder));
    let second = || Box::new(ChildSpec { id: "other".into(), ..actor("a") });
    let answer = world.asks_supervisor("z", "root", SupervisorRequest::Start(second()));
    assert_eq!(answer, Some(ProcessAnswer::Child(ChildError::AlreadyStarted(holder))));
    // The same by a name that was given at run time.
    assert_eq!(enter(&mut world, "z", Registry::Names, "b"), ProcessAnswer::Ok);
    let answer = world.asks_supervisor("z", "root", SupervisorRequest::Start(Box::new(actor("b"))));
    assert_eq!(answer, Some(ProcessAnswer::Child(ChildError::AlreadyStarted(world.process("z").pid))));
    assert_eq!(enter(&mut world, "a", Registry::Names, "b"), already(world.process("z").pid));
    assert_eq!(enter(&mut world, "z", Registry::Names, "a"), already(holder));
    world.check(&[]);
}

#[test]
fn nam_002_a_name_is_free_as_soon_as_its_holder_is_dead() {
    let mut world = world(vec![actor("a"), actor("z")]);
    for end in 0..4 {
        let holder = world.process("a").pid;
        assert_eq!(enter(&mut world, "a", Registry::Names, "n"), ProcessAnswer::Ok);
        world.asks("z", ProcessRequest::Monitor(name("n")));
        match end {
            0 => world.crashes("a"),
            1 => world.is_shot("a"),
            2 => world.ends("a", rebeam_protocol::exit::ExitReason::Normal),
            _ => drop(world.asks("z", ProcessRequest::Kill { to: Address::Pid(holder), is_hung: false })),
        }
        assert_eq!(world.signals("z").len(), 1, "it is down");
        assert_eq!(world.found("n"), None);
        assert_eq!(enter(&mut world, "z", Registry::Names, "n"), ProcessAnswer::Ok);
        assert_eq!(leave(&mut world, "z", Registry::Names, "n"), ProcessAnswer::Ok);
        // The name of the tree follows the actor.
        assert_eq!(world.found("a"), Some(world.process("a").pid));
    }
}

#[test]
fn nam_003_a_failed_or_ignored_start_leaves_no_name() {
    let mut world = world(vec![actor("z")]);
    world.fails.insert("f".into(), 100);
    world.ignoring.push("g".into());
    for round in 0..100 {
        for who in ["f", "g"] {
            let child = ChildSpec { restart: Restart::Temporary, id: format!("{who}{round}"), ..actor(who) };
            world.asks_supervisor("z", "root", SupervisorRequest::Start(Box::new(child)));
            assert_eq!(world.found(who), None);
        }
    }
    assert_eq!(enter(&mut world, "z", Registry::Names, "f"), ProcessAnswer::Ok);
}

#[test]
fn nam_004_an_actor_is_started_called_and_stopped_by_its_key() {
    let key = text_key("lobby");
    let via = || Address::Via { registry: "rooms".into(), key: text_key("lobby") };
    let room = || {
        let mut child = actor_with("room", |spec| {
            spec.name = None;
            spec.via = Some(("rooms".into(), text_key("lobby")));
        });
        child.restart = Restart::Transient;
        child
    };
    let mut world = world(vec![actor("z"), room()]);
    let holder = world.process("room").pid;
    assert_eq!(holders(&mut world, rooms(), key.clone()), [holder]);
    world.sends("z", via(), Kind::Cast, "greet");
    assert_eq!(world.delivered("room"), ["greet"]);
    assert_eq!(world.asks("z", ProcessRequest::Resolve(via())), Some(ProcessAnswer::Pid(Some(holder))));
    let second = Box::new(ChildSpec { id: "second".into(), ..room() });
    let answer = world.asks_supervisor("z", "root", SupervisorRequest::Start(second));
    assert_eq!(answer, Some(ProcessAnswer::Child(ChildError::AlreadyStarted(holder))));
    // Its next life is found under the key, too.
    world.crashes("room");
    let next = world.process("room").pid;
    assert_eq!(holders(&mut world, rooms(), key.clone()), [next]);
    let reason = rebeam_protocol::exit::ExitReason::Normal;
    world.asks("z", ProcessRequest::Stop { to: via(), reason });
    assert!(holders(&mut world, rooms(), key).is_empty());
    world.sends("z", via(), crate::world::call(9), "greet");
    assert!(
        matches!(&world.replies[..], [(_, _, Outcome::Failed(CallFailure::NoProc { target, .. }))] if target == "rooms[lobby]")
    );
}

#[test]
fn nam_005_006_unique_and_duplicate_keys() {
    let mut world = world(vec![actor("a"), actor("b"), actor("z")]);
    let (a, b) = (world.process("a").pid, world.process("b").pid);
    assert_eq!(enter(&mut world, "a", rooms(), "k"), ProcessAnswer::Ok);
    assert_eq!(enter(&mut world, "a", rooms(), "k"), already(a));
    assert_eq!(enter(&mut world, "b", rooms(), "k"), already(a));
    assert_eq!(enter(&mut world, "a", rooms(), "l"), ProcessAnswer::Ok);
    assert_eq!(leave(&mut world, "b", rooms(), "k"), ProcessAnswer::Registry(RegistryError::NotRegistered));
    for who in ["a", "b", "a"] {
        assert_eq!(enter(&mut world, who, tags(), "k"), ProcessAnswer::Ok);
    }
    assert_eq!(holders(&mut world, tags(), text_key("k")), [a, b, a]);
    assert_eq!(leave(&mut world, "a", tags(), "k"), ProcessAnswer::Ok);
    assert_eq!(holders(&mut world, tags(), text_key("k")), [b]);
    // Not an address: who would it be?
    let to = Address::Via { registry: "tags".into(), key: text_key("k") };
    world.sends("z", to, crate::world::call(1), "m");
    assert!(
        matches!(world.replies.last(), Some((_, _, Outcome::Failed(CallFailure::BadCall(text)))) if text.contains("duplicate"))
    );
    // An entry is made by nobody else.
    let other = RegistryRequest::Enter { key: text_key("x"), who: Some(Address::Pid(b)) };
    assert_eq!(ask(&mut world, "a", rooms(), other), ProcessAnswer::Registry(RegistryError::NotYours));
    let update = RegistryRequest::Update { key: text_key("k") };
    assert_eq!(ask(&mut world, "b", rooms(), update), ProcessAnswer::Registry(RegistryError::NotRegistered));
}

#[test]
fn nam_007_who_is_being_killed_blocks_no_key() {
    let mut world = world(vec![actor("a"), actor("b"), actor("z")]);
    assert_eq!(enter(&mut world, "a", rooms(), "k"), ProcessAnswer::Ok);
    // Between the kill and the news of the death.
    let process = world.process("a");
    let complaint = "test".to_owned();
    world.core.handle_event(world.now, Event::Misbehaved { process, complaint });
    let process = world.process("b");
    let request = RegistryRequest::Enter { key: text_key("k"), who: None };
    let body = ProcessRequest::Registry { registry: rooms(), request };
    let asked = Event::Asked { process, request: RequestId(1), body, payload: Bytes::new() };
    world.core.handle_event(world.now, asked);
    let before = world.answers.len();
    // Now the kill is carried out.
    world.tell(Event::OutsideGone { client: 1 });
    assert_eq!(world.answers[before..], [ProcessAnswer::Ok]);
    let b = world.process("b").pid;
    assert_eq!(holders(&mut world, rooms(), text_key("k")), [b]);
}

#[test]
fn nam_008_keys_compare_with_their_type() {
    let mut world = world(vec![actor("a"), actor("z")]);
    for key in [Value::Int(1), Value::Float(1.0), Value::Bool(true)] {
        let request = RegistryRequest::Enter { key: value::encode(&key), who: None };
        assert_eq!(ask(&mut world, "a", rooms(), request), ProcessAnswer::Ok);
    }
}

#[test]
fn a_registry_ends_with_its_entries_and_bad_keys_are_refused() {
    let mut world = world(vec![actor("a"), actor("z")]);
    assert_eq!(enter(&mut world, "a", rooms(), "k"), ProcessAnswer::Ok);
    let restart = SupervisorRequest::Terminate(rebeam_protocol::process::ChildAddress::Id("rooms".into()));
    assert_eq!(world.asks_supervisor("z", "root", restart), Some(ProcessAnswer::Ok));
    assert_eq!(enter(&mut world, "a", rooms(), "k"), ProcessAnswer::Registry(RegistryError::NoRegistry));
    let restart = SupervisorRequest::Restart(rebeam_protocol::process::ChildAddress::Id("rooms".into()));
    world.asks_supervisor("z", "root", restart);
    assert!(holders(&mut world, rooms(), text_key("k")).is_empty());
    for key in [vec![4, 200], text_key(&"x".repeat(5000))] {
        let answer = ask(&mut world, "a", rooms(), RegistryRequest::Enter { key, who: None });
        assert!(matches!(answer, ProcessAnswer::Registry(RegistryError::TooMuch(_))), "{answer:?}");
    }
    let child = Box::new(actor("child"));
    let answer = world.asks_supervisor("z", "rooms", SupervisorRequest::Start(child));
    assert_eq!(answer, Some(ProcessAnswer::Child(ChildError::Unsupported)));
}

#[test]
fn pgr_001_002_members_are_listed_once_per_join_and_gone_with_their_end() {
    let mut world = world(vec![actor("a"), actor("b"), actor("z")]);
    let (a, b) = (world.process("a").pid, world.process("b").pid);
    let group = || Registry::Groups;
    assert!(holders(&mut world, group(), text_key("g")).is_empty());
    (0..3).for_each(|_| assert_eq!(enter(&mut world, "a", group(), "g"), ProcessAnswer::Ok));
    enter(&mut world, "b", group(), "g");
    assert_eq!(holders(&mut world, group(), text_key("g")), [a, a, a, b]);
    (0..2).for_each(|_| assert_eq!(leave(&mut world, "a", group(), "g"), ProcessAnswer::Ok));
    assert_eq!(holders(&mut world, group(), text_key("g")), [a, b]);
    assert_eq!(leave(&mut world, "a", group(), "h"), ProcessAnswer::Registry(RegistryError::NotRegistered));
    // A message to all, and the one who has the least to do.
    world.sends("z", Address::Group("g".into()), Kind::Cast, "all");
    assert_eq!((world.delivered("a"), world.delivered("b")), (vec!["all".to_owned()], vec!["all".to_owned()]));
    world.sends("z", name("a"), Kind::Cast, "more");
    let least = ask(&mut world, "z", group(), RegistryRequest::LeastBusy { key: text_key("g") });
    assert_eq!(least, ProcessAnswer::Pid(Some(b)));
    world.is_shot("a");
    assert_eq!(holders(&mut world, group(), text_key("g")), [b]);
    let gone = RegistryRequest::Enter { key: text_key("g"), who: Some(Address::Pid(a)) };
    assert_eq!(ask(&mut world, "z", group(), gone), ProcessAnswer::Registry(RegistryError::NoProc));
}

#[test]
fn who_sends_to_a_group_waits_for_no_member() {
    let small = |spec: &mut rebeam_protocol::spec::ActorSpec| spec.mailbox.messages = Some(2);
    let mut world = world(vec![actor_with("a", small), actor("b"), actor("z")]);
    enter(&mut world, "a", Registry::Groups, "g");
    enter(&mut world, "b", Registry::Groups, "g");
    (0..9).for_each(|_| world.sends("z", Address::Group("g".into()), Kind::Cast, "all"));
    assert_eq!(world.delivered("b").len(), 9);
    let trace = world.take_trace();
    assert!(
        !trace.is_empty() && trace.iter().all(|line| line.starts_with("dead letter all to a Overflow")),
        "{trace:?}"
    );
}

#[test]
fn pgr_004_a_watcher_gets_what_there_is_and_then_each_change() {
    let mut world = world(vec![actor("a"), actor("b"), actor("z")]);
    enter(&mut world, "a", Registry::Groups, "g");
    let watch = ask(&mut world, "z", Registry::Groups, RegistryRequest::Watch { key: text_key("g") });
    let ProcessAnswer::Watching { watch, entries } = watch else { panic!("{watch:?}") };
    assert_eq!(entries.len(), 1);
    enter(&mut world, "b", Registry::Groups, "g");
    enter(&mut world, "b", Registry::Groups, "other");
    world.is_shot("a");
    assert_eq!(world.signals("z"), ["+groups[g]", "-groups[g]"]);
    leave(&mut world, "b", Registry::Groups, "g");
    let request = RegistryRequest::Unwatch { watch };
    ask(&mut world, "z", Registry::Groups, request);
    enter(&mut world, "b", Registry::Groups, "g");
    // What was handed over already is the worker's to take back.
    assert_eq!(world.signals("z"), ["-groups[g]"]);
}

#[test]
fn waiting_for_somebody_who_comes_up_or_does_not() {
    let mut world = world(vec![actor("a"), actor("z")]);
    world.slow.push("late".into());
    let wait = |to: Address, timeout_ms| ProcessRequest::WaitFor { to, timeout_ms, waits: Waits::Nobody };
    let up = world.process("a").pid;
    assert_eq!(world.asks("z", wait(name("a"), None)), Some(ProcessAnswer::Pid(Some(up))));
    world.answers.clear();
    assert_eq!(world.asks("z", wait(name("late"), Some(100_000))), None);
    let child = ChildSpec { restart: Restart::Temporary, ..actor("late") };
    world.asks_supervisor("a", "root", SupervisorRequest::Start(Box::new(child)));
    assert!(world.answers.is_empty(), "it is not up yet");
    world.starts("late");
    let pid = world.process("late").pid;
    assert!(world.answers.contains(&ProcessAnswer::Pid(Some(pid))));
    // In person: the end of the one is the end of the wait.
    world.answers.clear();
    world.asks("a", ProcessRequest::Kill { to: Address::Pid(pid), is_hung: false });
    assert_eq!(world.asks("z", wait(Address::Pid(pid), None)), Some(ProcessAnswer::Pid(None)));
    world.answers.clear();
    assert_eq!(world.asks("z", wait(name("nobody"), Some(1000))), None);
    world.pass(std::time::Duration::from_secs(2));
    assert_eq!(world.answers, [ProcessAnswer::Pid(None)]);
    // Who waits and dies is forgotten.
    let before = world.core.records();
    world.asks("a", wait(name("nobody"), None));
    world.is_shot("a");
    assert_eq!(world.core.records(), before);
}

#[test]
fn who_waits_for_a_start_that_waits_for_him_learns_it_at_once() {
    let mut world = world(vec![actor("a"), actor("z")]);
    world.slow.push("b".into());
    let child = ChildSpec { restart: Restart::Temporary, ..actor("b") };
    world.asks_supervisor("z", "root", SupervisorRequest::Start(Box::new(child)));
    let waits = Waits::Actor { message: None, is_deferred: false };
    world.asks("a", ProcessRequest::WaitFor { to: name("b"), timeout_ms: None, waits });
    let kind = crate::world::waiting_call(7, None);
    world.sends("b", name("a"), kind, "m");
    assert!(
        matches!(world.replies.last(), Some((_, _, Outcome::Failed(CallFailure::Deadlock { cycle }))) if cycle.len() == 2),
        "{:?}",
        world.replies
    );
}

// ---- tables --------------------------------------------------------------------------------------------------------

/// What an actor asks of the table `t`.
fn of_table(world: &mut World, who: &str, request: RegistryRequest, content: Vec<u8>) -> ProcessAnswer {
    let request = ProcessRequest::Registry { registry: Registry::Tables, request };
    world.asks_with(who, request, content.into()).expect("an answer")
}

fn makes_table(world: &mut World, who: &str, access: Access) -> ProcessAnswer {
    let table = Table::new(TableKind::Set, access);
    of_table(world, who, RegistryRequest::Enter { key: text_key("t"), who: None }, table.encode())
}

#[test]
fn ets_001_a_table_has_one_owner_and_goes_with_it_before_down() {
    let mut world = world(vec![actor("a"), actor("b"), actor("z")]);
    let a = world.process("a").pid;
    assert_eq!(makes_table(&mut world, "a", Access::Protected), ProcessAnswer::Ok);
    assert_eq!(
        makes_table(&mut world, "b", Access::Protected),
        ProcessAnswer::Registry(RegistryError::AlreadyRegistered(Some(a)))
    );
    world.asks("z", ProcessRequest::Monitor(Address::Pid(a)));
    world.is_shot("a");
    assert_eq!(holders(&mut world, Registry::Tables, text_key("t")), []);
    assert_eq!(world.signals("z").len(), 1);
    assert_eq!(makes_table(&mut world, "b", Access::Public), ProcessAnswer::Ok);
    // What is no description is refused, and so is another's deletion, unless the table is public.
    let bad = of_table(&mut world, "z", RegistryRequest::Enter { key: text_key("u"), who: None }, b"\xff".to_vec());
    assert!(matches!(bad, ProcessAnswer::Registry(RegistryError::TooMuch(_))), "{bad:?}");
    let leave = || RegistryRequest::Leave { key: text_key("t"), who: None };
    assert_eq!(of_table(&mut world, "z", leave(), Vec::new()), ProcessAnswer::Ok);
    makes_table(&mut world, "b", Access::Private);
    assert_eq!(of_table(&mut world, "z", leave(), Vec::new()), ProcessAnswer::Registry(RegistryError::NotYours));
}

#[test]
fn ets_006_a_table_goes_to_its_heir_or_is_given() {
    let mut world = world(vec![actor("a"), actor("b"), actor("z")]);
    let (a, b, z) = (world.process("a").pid, world.process("b").pid, world.process("z").pid);
    let heir = |to: Option<Pid>| RegistryRequest::Heir { key: text_key("t"), heir: to.map(Address::Pid) };
    let give = |to: Pid| RegistryRequest::Give { key: text_key("t"), to: Address::Pid(to) };
    makes_table(&mut world, "a", Access::Protected);
    let not_yours = ProcessAnswer::Registry(RegistryError::NotYours);
    assert_eq!(of_table(&mut world, "b", give(z), Vec::new()), not_yours);
    assert_eq!(of_table(&mut world, "b", heir(Some(b)), Vec::new()), not_yours);
    assert_eq!(of_table(&mut world, "a", heir(Some(b)), b"data".to_vec()), ProcessAnswer::Ok);
    world.is_shot("a");
    assert_eq!(holders(&mut world, Registry::Tables, text_key("t")), [b]);
    assert_eq!(world.signals("b"), [format!("table t from {a}")]);
    // The new owner has no heir, and gives it to somebody who is there.
    let no_proc = ProcessAnswer::Registry(RegistryError::NoProc);
    assert_eq!(of_table(&mut world, "b", give(a), Vec::new()), no_proc);
    assert_eq!(of_table(&mut world, "b", give(b), Vec::new()), no_proc);
    assert_eq!(of_table(&mut world, "b", give(z), Vec::new()), ProcessAnswer::Ok);
    assert_eq!(world.signals("z"), [format!("table t from {b}")]);
    // An heir that is gone.
    let (a, b) = (world.process("a").pid, world.process("b").pid);
    assert_eq!(of_table(&mut world, "z", heir(Some(a)), Vec::new()), ProcessAnswer::Ok);
    world.is_shot("a");
    world.is_shot("z");
    assert_eq!(holders(&mut world, Registry::Tables, text_key("t")), []);
    assert_eq!(world.signals("b"), [] as [String; 0], "{b}");
}

/// The watch of rows that `who` begins; the store answers.
fn watches_rows(world: &mut World, who: &str) -> u64 {
    let request = RegistryRequest::WatchRows { key: text_key("t"), lower: b"a".to_vec(), upper: Some(b"b".to_vec()) };
    let request = ProcessRequest::Registry { registry: Registry::Tables, request };
    assert_eq!(world.asks(who, request), None);
    assert_eq!(world.take_trace(), ["watch a..1"]);
    world.core.row_watches().last().expect("it watches").watch
}

fn rows_change(world: &mut World, watch: u64, changes: &'static str, is_last: bool) {
    world.tell(Event::RowsChanged { watch, changes: Bytes::from_static(changes.as_bytes()), is_last });
}

#[test]
fn who_watches_rows_is_told_until_it_ends_or_the_table_does() {
    let mut world = world(vec![actor("a"), actor("z")]);
    makes_table(&mut world, "a", Access::Public);
    world.take_trace();
    let watch = watches_rows(&mut world, "z");
    rows_change(&mut world, watch, "first", false);
    rows_change(&mut world, watch + 1, "of nobody's", false);
    assert_eq!(world.take_trace(), ["unwatch"]);
    assert_eq!(world.signals("z"), ["rows first"]);
    // Of messages that wait, one takes the place of the other: it is not said any more what has changed.
    for number in 0..100 {
        world.sends("a", name("z"), Kind::Cast, &number.to_string());
    }
    rows_change(&mut world, watch, "second", false);
    rows_change(&mut world, watch, "third", false);
    while world.delivered("z").first().is_some_and(|method| method != "handle_info") {
        world.works("z");
    }
    assert_eq!(world.signals("z"), ["rows "]);
    let unwatch = RegistryRequest::Unwatch { watch };
    ask(&mut world, "z", Registry::Tables, unwatch);
    assert_eq!(world.take_trace(), ["unwatch"]);
    rows_change(&mut world, watch, "late", false);
    assert_eq!(world.take_trace(), ["unwatch"]);

    let watch = watches_rows(&mut world, "a");
    rows_change(&mut world, watch, "gone", true);
    assert_eq!((world.signals("a"), world.core.row_watches().len()), (vec!["rows gone".to_owned()], 0));
    let before = world.core.records();
    watches_rows(&mut world, "z");
    world.is_shot("z");
    assert!(world.take_trace().contains(&"unwatch".to_owned()));
    assert_eq!(world.core.records(), before);
    // One that does not begin is forgotten; so many may begin.
    let watch = watches_rows(&mut world, "a");
    world.tell(Event::RowWatchFailed { watch });
    assert_eq!(world.core.records(), before);
    for _ in 0..1000 {
        watches_rows(&mut world, "a");
    }
    let request = RegistryRequest::WatchRows { key: text_key("t"), lower: Vec::new(), upper: None };
    let many = of_table(&mut world, "a", request, Vec::new());
    assert!(matches!(many, ProcessAnswer::Registry(RegistryError::TooMuch(_))), "{many:?}");
    // There is no such table, or no such rows.
    let request = |key: &str, lower| RegistryRequest::WatchRows { key: text_key(key), lower, upper: None };
    let absent = of_table(&mut world, "z", request("absent", Vec::new()), Vec::new());
    assert_eq!(absent, ProcessAnswer::Registry(RegistryError::NotRegistered));
    let long = of_table(&mut world, "z", request("t", vec![1; 1 << 20]), Vec::new());
    assert!(matches!(long, ProcessAnswer::Registry(RegistryError::TooMuch(_))), "{long:?}");
}
