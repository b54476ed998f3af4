//! What a node says of itself: whether it is ready, and what it has counted.

use std::time::Duration;

use crate::world::{World, actor, actor_with, call, inner, name, supervisor};
use rebeam_core::Event;
use rebeam_protocol::message::Kind;
use rebeam_protocol::outside::{Answer, TreeRequest};
use rebeam_protocol::spec::{Backoff, ChildSpec, Limits, OnGiveup, Pauses, Strategy, SupervisorKind, SupervisorSpec};

const MINUTE: Duration = Duration::from_secs(60);

fn pair(b: ChildSpec) -> World {
    World::up(SupervisorSpec {
        max_restarts: 2,
        max_ms: 60_000,
        ..supervisor(Strategy::OneForOne, vec![actor("a"), b])
    })
}

#[test]
fn a_tree_in_which_all_is_well_has_no_troubles() {
    let mut world = pair(actor("b"));
    world.pass(10 * MINUTE);
    assert_eq!(world.troubles(MINUTE), Vec::<String>::new());
    // Stopped by hand is not trouble.
    world.requests(TreeRequest::Stop { name: "b".into() });
    world.pass(10 * MINUTE);
    assert_eq!(world.troubles(MINUTE), Vec::<String>::new());
}

#[test]
fn a_restart_is_no_trouble_unless_it_takes_its_time() {
    let backoff = Backoff { initial_ms: 5000, factor_milli: 1000, cap_ms: 5000, jitter_milli: 0 };
    let mut world = pair(ChildSpec { pauses: Pauses::Backoff(backoff), ..actor("b") });
    world.crashes("b");
    world.pass(Duration::from_millis(500));
    assert_eq!(world.troubles(MINUTE), Vec::<String>::new());
    world.pass(Duration::from_secs(2));
    assert_eq!(world.troubles(MINUTE), ["b Down: restarting for 2.5 s"]);
    world.pass(Duration::from_secs(3));
    assert_eq!(world.troubles(MINUTE), Vec::<String>::new());
}

#[test]
fn an_init_that_does_not_return_is_trouble() {
    let mut world = World::new(supervisor(Strategy::OneForOne, vec![actor("a")]));
    world.slow.push("a".into());
    world.tell(Event::Boot);
    world.pass(Duration::from_secs(3));
    assert_eq!(world.troubles(MINUTE), ["a Down: starting for 3.0 s"]);
    world.starts("a");
    assert_eq!(world.troubles(MINUTE), Vec::<String>::new());
}

#[test]
fn who_is_parked_waits_for_somebody() {
    let mut world = pair(ChildSpec { on_giveup: OnGiveup::Park, ..actor("b") });
    (0..3).for_each(|_| world.crashes("b"));
    assert_eq!(world.troubles(MINUTE), ["b Parked: its restarts are used up: `rebeam restart b`"]);
    world.requests(TreeRequest::Restart { name: "b".into() });
    assert_eq!(world.troubles(MINUTE), Vec::<String>::new());
}

#[test]
fn who_has_a_message_in_hand_for_too_long_hangs() {
    let limits = Limits { deadlines: vec![("short".into(), 1000)], ..Limits::default() };
    let mut world = pair(actor_with("b", |spec| spec.limits = limits));
    world.sends("a", name("b"), Kind::Cast, "short");
    world.begins("b");
    world.now += Duration::from_millis(900);
    assert_eq!(world.troubles(MINUTE), Vec::<String>::new());
    world.now += Duration::from_millis(200);
    assert_eq!(world.troubles(MINUTE), ["b Hung: `short` in hand for 1.1 s"]);
}

#[test]
fn a_message_that_waits_too_long_is_trouble_unless_its_receiver_takes_it_when_it_likes() {
    for takes_its_own in [false, true] {
        let mut world = pair(actor("b"));
        if takes_its_own {
            world.takes_own_mail("b");
        }
        world.sends("a", name("b"), Kind::Cast, "first");
        let (seq, _) = world.begins("b");
        world.sends("a", name("b"), Kind::Cast, "second");
        world.pass(Duration::from_secs(20));
        let expected: &[&str] = if takes_its_own { &[] } else { &["b OldMessage: the oldest of 1 waits 20.0 s"] };
        assert_eq!(world.troubles(Duration::from_secs(20)), expected);
        assert_eq!(world.troubles(Duration::from_secs(21)), Vec::<String>::new());
        let b = world.figures().actors.into_iter().find(|actor| actor.label == "b").expect("it is listed");
        assert_eq!((b.waiting, b.oldest), (1, Some(Duration::from_secs(20))));
        world.finishes("b", seq);
        let (seq, _) = world.begins("b");
        world.finishes("b", seq);
        assert_eq!(world.troubles(Duration::from_secs(1)), Vec::<String>::new());
    }
}

#[test]
fn who_says_that_it_is_not_ready_is_believed_until_it_ends() {
    let mut world = pair(actor("b"));
    let process = world.process("b");
    world.tell(Event::Readiness { process, not_ready: Some("warming up".into()) });
    assert_eq!(world.troubles(MINUTE), ["b NotReady: warming up"]);
    world.crashes("b");
    assert_eq!(world.troubles(MINUTE), Vec::<String>::new());
    // The word of a process that is gone says nothing of the next.
    world.tell(Event::Readiness { process, not_ready: Some("too late".into()) });
    assert_eq!(world.troubles(MINUTE), Vec::<String>::new());
}

#[test]
fn what_was_done_is_counted() {
    let mut world = pair(actor("b"));
    for took_us in [90, 200_000] {
        world.sends("a", name("b"), Kind::Cast, "work");
        let (seq, _) = world.begins("b");
        world.finishes_after("b", seq, Some(took_us));
    }
    world.sends("a", name("b"), call(1), "ask");
    world.crashes("b");
    world.is_shot("b");
    let figures = world.figures();
    let (class, method, times) = &figures.handled[0];
    assert_eq!((class.as_str(), method.as_str(), times.count(), times.sum_us), ("app.A", "work", 2, 200_090));
    assert_eq!(figures.ended, [("app.A".into(), "exception", 1), ("app.A".into(), "signal", 1)]);
    assert_eq!((figures.calls_in_flight, figures.starts.count()), (1, 4));
    assert!(figures.actors.iter().all(|actor| actor.is_lasting && actor.os_pid == Some(7)));
}

#[test]
fn who_comes_and_goes_has_no_figures_of_its_own() {
    let dynamic = SupervisorKind::Dynamic { max_children: None };
    let pool = SupervisorSpec { kind: dynamic, ..supervisor(Strategy::OneForOne, vec![]) };
    let pool = SupervisorSpec { name: Some("pool".into()), ..pool };
    let mut world = World::up(supervisor(Strategy::OneForOne, vec![actor("a"), inner("pool", pool)]));
    let mut child = actor("guest");
    if let rebeam_protocol::spec::ChildKind::Actor(spec) = &mut child.kind {
        spec.name = None;
    }
    world.asks_supervisor("a", "pool", rebeam_protocol::process::SupervisorRequest::Start(Box::new(child)));
    let lasting: Vec<bool> = world.figures().actors.iter().map(|actor| actor.is_lasting).collect();
    assert_eq!(lasting, [true, false]);
}

#[test]
fn a_log_level_is_told_at_once_and_to_every_later_process() {
    let mut world = pair(actor("b"));
    world.requests(TreeRequest::LogLevel { name: "b".into(), level: 10 });
    world.check(&["log level 10 b"]);
}

#[test]
fn the_fattest_is_killed_with_the_reason() {
    let mut world = pair(actor("b"));
    let process = world.process("b");
    world.tell(Event::OutOfRoom { process, used_kib: 5000, limit_kib: 6000 });
    assert!(world.take_trace().contains(&"kill b".to_owned()));
    world.requests(TreeRequest::Why { name: "b".into() });
    let Some(Answer::Why(deaths)) = world.outside.last() else { panic!("no answer") };
    assert_eq!(deaths[0].0.reason, rebeam_protocol::exit::ExitReason::MemoryLimit(5000, 6000));
}

#[test]
fn a_call_and_what_its_handler_sends_are_one_trace() {
    let mut world = World::new(supervisor(Strategy::OneForOne, vec![actor("a"), actor("b"), actor("c")]));
    world.core.trace(7, 1.0);
    world.tell(Event::Boot);
    world.sends("a", name("b"), call(1), "ask");
    let context = world.trace_of("b");
    let (seq, to) = world.begins("b");
    world.sends_within("b", context, name("c"), Kind::Cast, "note");
    let (note, _) = world.begins("c");
    world.finishes_after("c", note, Some(50));
    world.replies("b", to.expect("a call"), Some(seq));
    // Without a time no handler ran, as far as anybody knows; the call was answered all the same.
    let words: Vec<&str> = world.spans.iter().map(|(_, _, words)| words.as_str()).collect();
    assert_eq!(words, ["Consumer c A.note", "Call a ask"]);
    let (consumer, call) = (&world.spans[0], &world.spans[1]);
    assert_eq!((consumer.1, call.1), (context.span, 0));
}

#[test]
fn a_handler_that_dies_is_a_span_that_says_so() {
    let mut world = World::new(supervisor(Strategy::OneForOne, vec![actor("a"), actor("b")]));
    world.core.trace(7, 1.0);
    world.tell(Event::Boot);
    world.sends("a", name("b"), call(1), "ask");
    world.begins("b");
    world.is_shot("b");
    let words: Vec<&str> = world.spans.iter().map(|(_, _, words)| words.as_str()).collect();
    assert_eq!(words, ["Handler b A.ask failed: signal(SIGKILL)", "Call a ask failed: died"]);
    assert_eq!(world.spans[0].1, world.spans[1].0, "the handler is within the call");
}

#[test]
fn where_nobody_traces_nothing_is_traced() {
    let mut world = pair(actor("b"));
    world.sends("a", name("b"), call(1), "ask");
    let (seq, to) = world.begins("b");
    world.replies("b", to.expect("a call"), Some(seq));
    assert!(world.spans.is_empty());
}
