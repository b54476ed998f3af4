//! What one actor may hold, what cannot be started or handed over, and how much is done in one turn.

use std::time::Duration;

use bytes::Bytes;
use rebeam_core::Event;
use rebeam_protocol::address::Registry;
use rebeam_protocol::exit::{ExitReason, Raised};
use rebeam_protocol::ledger::text_key;
use rebeam_protocol::message::{Cause, Kind, Outcome};
use rebeam_protocol::outside::TreeRequest;
use rebeam_protocol::process::{ProcessRequest, RegistryRequest};
use rebeam_protocol::spec::{MailboxOptions, Strategy};

use crate::world::{World, actor, actor_with, call, died_of, envelope, name, supervisor};

const MOST: u64 = 100_000;

fn two() -> World {
    World::up(supervisor(Strategy::OneForOne, vec![actor("a"), actor("b")]))
}

fn timer(number: u64, to: &str, after_ms: u64) -> ProcessRequest {
    let (to, method) = (name(to), "handle_info".into());
    ProcessRequest::SendAfter { timer: number, to, after_ms, every_ms: None, method, is_method: false }
}

/// How the first death of an actor is explained.
fn reason_of_death(world: &mut World, actor: &str) -> Option<ExitReason> {
    world.requests(TreeRequest::Why { name: actor.into() });
    match world.outside.pop() {
        Some(rebeam_protocol::outside::Answer::Why(deaths)) => Some(deaths.first()?.0.reason.clone()),
        other => panic!("{other:?}"),
    }
}

fn is_over_limit(world: &mut World, what: &str) {
    let reason = reason_of_death(world, "a");
    let is_it = matches!(&reason, Some(ExitReason::LimitExceeded(text)) if text.contains(what));
    assert!(is_it, "{what}: {reason:?}");
}

#[test]
fn an_actor_that_holds_more_than_it_may_ends_with_that_as_its_reason() {
    let watch = |_| ProcessRequest::Registry {
        registry: Registry::Groups,
        request: RegistryRequest::Watch { key: text_key("group") },
    };
    let stop = |_| ProcessRequest::Stop { to: name("b"), reason: ExitReason::Normal };
    type Request = Box<dyn Fn(u64) -> ProcessRequest>;
    let kinds: [(&str, Request); 4] = [
        ("100000 timers", Box::new(|number| timer(number, "b", 1_000_000))),
        ("100000 links and monitors", Box::new(|_| ProcessRequest::Monitor(name("b")))),
        ("100000 watches", Box::new(watch)),
        ("100000 calls without an answer", Box::new(stop)),
    ];
    for (what, request) in kinds {
        let mut world = two();
        world.stubborn = vec!["b".into()];
        let process = world.process("a");
        for number in 0..=MOST {
            let (request, body) = (rebeam_protocol::id::RequestId(number), request(number));
            world.core.handle_event(world.now, Event::Asked { process, request, body, payload: Bytes::new() });
            while world.core.poll_action().is_some() {}
        }
        // One more, for what follows from it to be done.
        world.asks("a", timer(MOST + 1, "b", 1));
        is_over_limit(&mut world, what);
    }
}

#[test]
fn an_actor_with_too_many_open_calls_ends() {
    let unbounded = |spec: &mut rebeam_protocol::spec::ActorSpec| {
        spec.mailbox = MailboxOptions { messages: None, ..MailboxOptions::default() };
    };
    let mut world = World::up(supervisor(Strategy::OneForOne, vec![actor("a"), actor_with("b", unbounded)]));
    let process = world.process("a");
    for number in 0..MOST + 2 {
        let envelope = envelope(name("b"), call(number), "work");
        world.core.handle_event(world.now, Event::Sent { process, envelope, payload: Bytes::new(), buffers: None });
    }
    world.settle();
    is_over_limit(&mut world, "calls without an answer");
}

#[test]
fn the_content_of_timers_is_bounded_in_bytes() {
    let mut world = two();
    let process = world.process("a");
    for number in 0..70 {
        let payload = Bytes::from(vec![0; 1024 * 1024]);
        let (request, body) = (rebeam_protocol::id::RequestId(number), timer(number, "b", 1_000_000));
        world.core.handle_event(world.now, Event::Asked { process, request, body, payload });
    }
    world.settle();
    is_over_limit(&mut world, "64 MiB in timers");
}

#[test]
fn a_sender_that_does_not_stop_when_it_is_told_to_is_ended_and_one_that_is_a_little_late_is_not() {
    let small = |spec: &mut rebeam_protocol::spec::ActorSpec| {
        spec.mailbox = MailboxOptions { messages: Some(10), ..MailboxOptions::default() };
    };
    let mut world = World::up(supervisor(Strategy::OneForOne, vec![actor("a"), actor_with("b", small)]));
    let process = world.process("a");
    for number in 0..6000u32 {
        let envelope = envelope(name("b"), Kind::Cast, "work");
        world.core.handle_event(world.now, Event::Sent { process, envelope, payload: Bytes::new(), buffers: None });
        if number == 3000 {
            while let Some(action) = world.core.poll_action() {
                assert!(!matches!(action, rebeam_core::Action::Kill(_)), "what was under way is forgiven");
            }
        }
    }
    world.settle();
    is_over_limit(&mut world, "a mailbox that it knew was full");
}

#[test]
fn one_turn_fires_so_many_timers_and_leaves_the_rest_for_the_next() {
    let mut world = two();
    let process = world.process("a");
    for number in 0..5000 {
        let (request, body) = (rebeam_protocol::id::RequestId(number), timer(number, "b", 10));
        world.core.handle_event(world.now, Event::Asked { process, request, body, payload: Bytes::new() });
    }
    world.now = Duration::from_millis(10);
    for turn in 1..=5 {
        assert_eq!(world.core.poll_timeout(), Some(Duration::from_millis(10)), "turn {turn}");
        world.core.handle_timeout(world.now);
    }
    let next = world.core.poll_timeout();
    assert!(next.is_none_or(|at| at > world.now), "all have fired: {next:?}");
}

#[test]
fn ticks_that_were_missed_are_left_out_and_counted() {
    let mut world = two();
    world.asks(
        "a",
        ProcessRequest::SendAfter {
            timer: 1,
            to: name("b"),
            after_ms: 10,
            every_ms: Some(10),
            method: "handle_info".into(),
            is_method: false,
        },
    );
    // The node sleeps for an hour.
    world.now = Duration::from_secs(3600);
    world.core.handle_timeout(world.now);
    world.settle();
    assert_eq!(world.delivered("b").len(), 1);
    assert_eq!(world.figures().skipped_ticks, 359_999);
    for _ in 0..3 {
        assert!(world.works("b").is_some(), "and then it ticks on");
        assert!(world.works("b").is_none());
        world.pass(Duration::from_millis(10));
    }
}

#[test]
fn a_restart_that_lacks_a_resource_is_tried_again_and_is_no_crash() {
    let mut world = World::up(supervisor(Strategy::OneForOne, vec![actor("a"), actor("b")]));
    world.lacking = vec!["a".into()];
    world.sends("b", name("a"), Kind::Cast, "waits");
    world.crashes("a");
    world.check(&["report a Restarts", "start a", "not launched a: too many open files, again after 100 ms"]);
    // Pauses of 100, 200, 400, … ms, up to five seconds; far more than three tries, and the tree stands.
    world.pass(Duration::from_secs(30));
    assert_eq!(world.take_trace().iter().filter(|it| *it == "start a").count(), 10);
    world.lacking.clear();
    world.pass(Duration::from_secs(5));
    world.check(&["start a"]);
    assert!(world.is_running("b") && world.delivered("a") == ["waits"]);
    world.requests(TreeRequest::Why { name: "a".into() });
    let Some(rebeam_protocol::outside::Answer::Why(deaths)) = world.outside.pop() else { panic!("deaths") };
    assert_eq!(deaths.len(), 1, "the one crash");
}

#[test]
fn whoever_asks_for_a_first_start_is_told_what_is_lacking() {
    let mut world = World::new(supervisor(Strategy::OneForOne, vec![actor("a")]));
    world.lacking = vec!["a".into()];
    world.tell(Event::Boot);
    let trace = world.take_trace();
    assert!(trace.last().is_some_and(|it| it.starts_with("failed a: not_started(too many open files)")), "{trace:?}");
}

#[test]
fn a_stop_reaches_an_actor_that_cannot_be_started() {
    for stop in [Event::StopNode, Event::KillAll] {
        let mut world = World::up(supervisor(Strategy::OneForOne, vec![actor("a")]));
        world.lacking = vec!["a".into()];
        world.crashes("a");
        world.take_trace();
        world.tell(stop);
        let trace = world.take_trace();
        assert_eq!(trace.last().map(String::as_str), Some("ended"), "{trace:?}");
    }
}

#[test]
fn a_message_that_is_too_large_to_be_handed_over_is_its_own_fault() {
    let mut world = two();
    world.sends("a", name("b"), call(1), "large");
    world.sends("a", name("b"), Kind::Cast, "large too");
    world.sends("a", name("b"), Kind::Cast, "small");
    let process = world.process("b");
    for seq in [1, 2] {
        let (seq, error) = (rebeam_protocol::id::Seq(seq), "too large to be handed over".to_owned());
        world.tell(Event::Undeliverable { process, seq, error });
    }
    let (_, _, outcome) = &world.replies[0];
    assert!(matches!(outcome, Outcome::Failed(rebeam_protocol::message::CallFailure::BadCall(_))), "{outcome:?}");
    let letter = format!("dead letter large too to b {:?}", Cause::TooLarge);
    assert!(world.take_trace().contains(&letter));
    assert!(world.is_running("b"));
}

#[test]
fn texts_of_a_reason_are_bounded_where_they_are_heard() {
    let mut world = two();
    world.sends("a", name("b"), call(1), "work");
    world.begins("b");
    let raised = Raised { kind: "E".repeat(9000), message: "x".repeat(500_000), traceback: "y".repeat(500_000) };
    world.ends("b", ExitReason::Exception(raised).bounded());
    let died = died_of(&world.replies[0].2).cloned();
    let Some(ExitReason::Exception(raised)) = died else { panic!("{died:?}") };
    assert!(raised.kind.len() + raised.message.len() + raised.traceback.len() < 26 * 1024, "{}", raised.message.len());
    assert!(raised.message.contains("more bytes"));
}

#[test]
fn a_timer_that_finds_a_full_mailbox_makes_a_dead_letter_and_does_not_end_whoever_set_it() {
    let small = |spec: &mut rebeam_protocol::spec::ActorSpec| {
        spec.mailbox = MailboxOptions { messages: Some(2), ..MailboxOptions::default() };
    };
    let mut world = World::up(supervisor(Strategy::OneForOne, vec![actor("a"), actor_with("b", small)]));
    for number in 0..6000 {
        world.asks("a", timer(number, "b", 10));
    }
    world.pass(Duration::from_millis(20));
    assert!(world.is_running("a"), "it cannot know that there is no room");
    let letter = format!("dead letter handle_info to b {:?}", Cause::Overflow);
    let letters = world.take_trace().iter().filter(|it| **it == letter).count();
    let handled = std::iter::from_fn(|| world.works("b")).count();
    assert_eq!(letters + handled, 6000);
}

#[test]
fn an_actor_whose_next_process_waits_for_a_resource_can_be_stopped() {
    let mut world = World::up(supervisor(Strategy::OneForOne, vec![actor("a"), actor("b")]));
    world.lacking = vec!["a".into()];
    world.crashes("a");
    let answers = world.answers.len();
    world.asks("b", ProcessRequest::Stop { to: name("a"), reason: ExitReason::Normal });
    world.pass(Duration::from_secs(1));
    assert_eq!(world.answers.len(), answers + 1, "whoever stopped it is answered");
    world.lacking.clear();
    world.take_trace();
    world.pass(Duration::from_secs(10));
    // It is permanent: it starts anew, once.
    assert_eq!(world.take_trace().iter().filter(|it| *it == "start a").count(), 1);
    assert!(world.is_running("a"));
}

#[test]
fn a_timer_keeps_to_the_policy_of_a_full_mailbox_and_what_an_actor_tells_itself_is_put_in() {
    use rebeam_protocol::spec::Overflow;
    for (overflow, handled) in [
        (Overflow::DropOldest, vec!["m2", "handle_info"]),
        (Overflow::DropNew, vec!["m1", "m2"]),
        (Overflow::Block, vec!["m1", "m2"]),
    ] {
        let small = |spec: &mut rebeam_protocol::spec::ActorSpec| {
            spec.mailbox = MailboxOptions { messages: Some(2), overflow, ..MailboxOptions::default() };
        };
        let mut world = World::up(supervisor(Strategy::OneForOne, vec![actor("a"), actor_with("b", small)]));
        world.slow = vec!["b".into()];
        world.is_shot("b");
        for method in ["m1", "m2"] {
            world.sends("a", name("b"), Kind::Cast, method);
        }
        world.asks("a", timer(1, "b", 10));
        world.pass(Duration::from_millis(20));
        world.starts("b");
        let got: Vec<String> = std::iter::from_fn(|| world.works("b")).collect();
        assert_eq!(got, handled, "{overflow:?}");
    }
    let small = |spec: &mut rebeam_protocol::spec::ActorSpec| {
        spec.mailbox = MailboxOptions { messages: Some(2), ..MailboxOptions::default() };
    };
    let mut world = World::up(supervisor(Strategy::OneForOne, vec![actor("a"), actor_with("b", small)]));
    world.asks("b", timer(1, "b", 10));
    for _ in 0..20 {
        world.sends("a", name("b"), Kind::Cast, "work");
    }
    world.pass(Duration::from_millis(20));
    let got: Vec<String> = std::iter::from_fn(|| world.works("b")).collect();
    assert_eq!(got.iter().filter(|method| *method == "handle_info").count(), 1, "its clock goes on");
}
