//! What a death costs: at-least-once delivery, poison, mailboxes that keep nothing, dead letters.

use std::time::Duration;

use crate::world::{World, actor, actor_with, call, crash, died_of, envelope, name, supervisor};
use bytes::Bytes;
use rebeam_core::Event;
use rebeam_core::event::Status;
use rebeam_protocol::address::{Address, Caller};
use rebeam_protocol::exit::ExitReason;
use rebeam_protocol::id::{CallId, Seq};
use rebeam_protocol::message::{CallFailure, Cause, Codec, DeadLetter, Form, Kind, Outcome};
use rebeam_protocol::outside::{Answer, DeadLetters, TreeRequest, Which};
use rebeam_protocol::process::ProcessRequest;
use rebeam_protocol::spec::{ActorSpec, MailboxOptions, Overflow, Strategy};
use rebeam_protocol::worker::Reply;

fn with_b(change: impl FnOnce(&mut ActorSpec)) -> World {
    World::up(supervisor(Strategy::OneForOne, vec![actor("a"), actor_with("b", change)]))
}

fn with_mailbox(mailbox: MailboxOptions) -> World {
    with_b(|spec| spec.mailbox = mailbox)
}

fn letters(world: &mut World) -> Vec<DeadLetter> {
    world.requests(TreeRequest::DeadLetters(DeadLetters::List));
    match world.outside.pop() {
        Some(Answer::DeadLetters { letters, .. }) => letters,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_message_that_may_come_again_does_so_first_and_is_quarantined_in_the_end() {
    let mut world = with_b(|spec| spec.redelivered = vec![("work".into(), 3)]);
    world.sends("a", name("b"), Kind::Cast, "work");
    world.sends("a", name("b"), Kind::Cast, "other");
    for _ in 0..3 {
        world.begins("b");
        world.is_shot("b");
    }
    assert_eq!(world.delivered("b"), ["other"]);
    let letters = letters(&mut world);
    assert_eq!(letters.len(), 1);
    assert_eq!((letters[0].cause, letters[0].deliveries), (Cause::Poison, 3));
    world.requests(TreeRequest::DeadLetters(DeadLetters::Show(letters[0].id)));
    let Some(Answer::DeadLetters { letters, .. }) = world.outside.pop() else { panic!("no letter") };
    assert_eq!(letters[0].certificates.len(), 3, "one for each death");
}

#[test]
fn deaths_by_one_message_use_up_one_restart() {
    let mut tree = supervisor(
        Strategy::OneForOne,
        vec![
            actor("a"),
            actor_with("b", |spec| {
                spec.redelivered = vec![("work".into(), 5)];
            }),
        ],
    );
    tree.max_restarts = 1;
    let mut world = World::up(tree);
    world.sends("a", name("b"), Kind::Cast, "work");
    for _ in 0..5 {
        world.begins("b");
        world.is_shot("b");
    }
    assert!(world.is_running("b"));
    assert_eq!(letters(&mut world)[0].cause, Cause::Poison);
    world.is_shot("b");
    assert!(!world.is_running("b"), "the second restart that counts");
}

#[test]
fn an_ordered_death_is_not_the_message_s_fault() {
    let mut world = with_b(|spec| spec.redelivered = vec![("work".into(), 2)]);
    world.stubborn = vec!["b".into()];
    world.sends("a", name("b"), Kind::Cast, "work");
    for _ in 0..4 {
        world.begins("b");
        world.requests(TreeRequest::Restart { name: "b".into() });
        world.pass(Duration::from_millis(5000));
        assert_eq!(world.delivered("b"), ["work"]);
    }
    assert!(letters(&mut world).is_empty());
}

#[test]
fn a_call_that_may_come_again_is_answered_by_the_next_incarnation() {
    let mut world = with_b(|spec| spec.redelivered = vec![("work".into(), 2)]);
    world.sends("a", name("b"), call(1), "work");
    world.begins("b");
    world.is_shot("b");
    assert!(world.replies.is_empty());
    let (seq, to) = world.begins("b");
    world.replies("b", to.expect("a call"), Some(seq));
    assert!(matches!(world.replies[0], (_, CallId(1), Outcome::Returned(_))));
    // Sent to the pid it dies with the pid.
    let pid = world.process("b").pid;
    world.sends("a", Address::Pid(pid), call(2), "work");
    world.begins("b");
    world.is_shot("b");
    assert!(died_of(&world.replies[1].2).is_some());
}

#[test]
fn a_mailbox_that_keeps_nothing_makes_dead_letters_of_a_crash() {
    let mut world = with_mailbox(MailboxOptions { is_kept: false, ..MailboxOptions::default() });
    world.sends("a", name("b"), Kind::Cast, "waits");
    world.sends("a", name("b"), call(1), "asks");
    world.is_shot("b");
    assert!(world.delivered("b").is_empty());
    assert!(died_of(&world.replies[0].2).is_some());
    assert_eq!(letters(&mut world)[0].cause, Cause::NotKept);
}

#[test]
fn calls_fail_while_it_restarts_if_it_says_so() {
    let mut world = with_mailbox(MailboxOptions { fails_while_restarting: true, ..MailboxOptions::default() });
    world.sends("a", name("b"), call(1), "waits");
    world.sends("a", name("b"), Kind::Cast, "kept");
    world.slow = vec!["b".into()];
    world.is_shot("b");
    assert!(died_of(&world.replies[0].2).is_some());
    world.sends("a", name("b"), call(2), "too_early");
    assert!(matches!(&world.replies[1].2, Outcome::Failed(CallFailure::Restarting { target }) if target == "b"));
    world.starts("b");
    assert_eq!(world.delivered("b"), ["kept"]);
}

#[test]
fn a_full_mailbox_drops_the_oldest_or_the_newest_or_fails() {
    let full = |overflow| {
        let mut world = with_mailbox(MailboxOptions { messages: Some(2), overflow, ..MailboxOptions::default() });
        world.slow = vec!["b".into()];
        world.is_shot("b");
        for number in 1..=3 {
            world.sends("a", name("b"), Kind::Cast, &format!("m{number}"));
        }
        world.sends("a", name("b"), call(1), "m4");
        world
    };
    let mut world = full(Overflow::DropOldest);
    assert_eq!(letters(&mut world).iter().map(|letter| &letter.method).collect::<Vec<_>>(), ["m1", "m2"]);
    world.starts("b");
    assert_eq!(world.delivered("b"), ["m3", "m4"]);
    let mut world = full(Overflow::DropNew);
    assert_eq!(letters(&mut world).iter().map(|letter| &letter.method).collect::<Vec<_>>(), ["m3"]);
    assert!(matches!(&world.replies[0].2, Outcome::Failed(CallFailure::MailboxFull { .. })));
    let mut world = full(Overflow::Fail);
    assert!(world.take_trace().contains(&"gate of b Fail".to_owned()));
    assert!(matches!(&world.replies[0].2, Outcome::Failed(CallFailure::MailboxFull { waiting: 3, .. })));
}

#[test]
fn dead_letters_are_told_to_who_asked_and_sent_again() {
    let mut world = with_b(|_| {});
    world.asks("a", ProcessRequest::WatchDeadLetters(true));
    world.sends("a", name("nobody"), Kind::Cast, "lost");
    world.sends("a", name("b"), Kind::Cast, "in_hand");
    world.begins("b");
    world.is_shot("b");
    assert_eq!(world.signals("a"), ["DEAD lost Nobody", "DEAD in_hand OutcomeUnknown"]);
    world.requests(TreeRequest::DeadLetters(DeadLetters::Replay(Which::All)));
    assert_eq!(world.outside.pop(), Some(Answer::Count(1)), "there still is no `nobody`");
    assert_eq!(world.delivered("b"), ["in_hand"]);
    world.requests(TreeRequest::DeadLetters(DeadLetters::Drop(Which::To("nobody".into()))));
    assert_eq!(world.outside.pop(), Some(Answer::Count(1)));
    assert!(letters(&mut world).is_empty());
}

#[test]
fn dead_letters_are_bounded() {
    let mut world = with_b(|_| {});
    let process = world.process("a");
    for _ in 0..20 {
        let envelope = envelope(name("nobody"), Kind::Cast, "big");
        let payload = Bytes::from(vec![0; 1024 * 1024]);
        world.tell(Event::Sent { process, envelope, payload, buffers: None });
    }
    // What is known of each counts, too.
    assert_eq!(letters(&mut world).len(), 15);
    for _ in 0..2000 {
        world.sends("a", name("nobody"), Kind::Cast, "small");
    }
    assert_eq!(letters(&mut world).len(), 1000);
}

#[test]
fn a_cancelled_call_is_dropped_or_its_handler_told() {
    let mut world = with_b(|_| {});
    world.sends("a", name("b"), call(1), "begun");
    world.begins("b");
    let caller = Caller::Actor(world.process("a").pid);
    world.tell(Event::Cancelled { caller, call: CallId(1) });
    assert!(world.take_trace().contains(&"cancel b".to_owned()));
    world.slow = vec!["b".into()];
    world.is_shot("b");
    world.sends("a", name("b"), call(2), "waits");
    world.tell(Event::Cancelled { caller, call: CallId(2) });
    world.starts("b");
    assert!(world.delivered("b").is_empty());
    // So with the calls of a caller that has died.
    world.sends("a", name("b"), call(3), "of_the_dead");
    world.take_trace();
    world.is_shot("a");
    assert!(world.take_trace().contains(&"cancel b".to_owned()));
    assert!(world.replies.iter().all(|(_, _, outcome)| died_of(outcome) != Some(&ExitReason::Normal)));
}

#[test]
fn only_the_message_whose_handler_raised_is_told_as_failed() {
    let many = |spec: &mut ActorSpec| spec.concurrency = 8;
    let mut world = World::up(supervisor(Strategy::OneForOne, vec![actor("a"), actor_with("b", many)]));
    for method in ["innocent", "raises", "innocent too"] {
        world.sends("a", name("b"), Kind::Cast, method);
        world.begins("b");
    }
    let process = world.process("b");
    world.tell(Event::Reported { process, reason: crash(), message: Some(Seq(2)) });
    let death = world.death_of("b", Status::Exited(0));
    world.tell(Event::Died(Box::new(death)));
    let causes: Vec<(String, Cause)> = letters(&mut world).into_iter().map(|it| (it.method, it.cause)).collect();
    let expected =
        [("innocent", Cause::OutcomeUnknown), ("raises", Cause::Failed), ("innocent too", Cause::OutcomeUnknown)];
    assert_eq!(causes, expected.map(|(method, cause)| (method.to_owned(), cause)));
}

#[test]
fn gen_012_the_answer_of_an_actor_that_stops_with_it_comes_when_it_has_ended() {
    let mut world = with_b(|_| {});
    world.sends("a", name("b"), call(1), "stop");
    let (seq, to) = world.begins("b");
    let process = world.process("b");
    let to = to.expect("a call");
    let done = Some(seq.into());
    let reply = Reply { to, outcome: Outcome::Returned(Codec::Pickle), done, is_last: true, buffers: None };
    world.tell(Event::Replied { process, reply, payload: Bytes::from_static(b"bye"), buffers: None });
    assert!(world.replies.is_empty(), "`terminate` runs first");
    world.slow = vec!["b".into()];
    // However it ends after that: the answer stands.
    world.is_shot("b");
    assert_eq!(world.replies.len(), 1);
    assert!(matches!(world.replies[0].2, Outcome::Returned(_)), "{:?}", world.replies[0]);
}

#[test]
fn gen_005_a_call_that_nobody_waits_for_any_more_is_dropped_wherever_it_waits() {
    let mut world = with_b(|_| {});
    for number in 1..=100 {
        world.sends("a", name("b"), call(number), "work");
    }
    let caller = Caller::Actor(world.process("a").pid);
    let (seq, _) = world.begins("b");
    for number in [1, 2, 100] {
        world.tell(Event::Abandoned { caller, call: CallId(number), page: None });
    }
    // In hand, handed over and not begun, and not handed over: the worker drops the second and finishes the first.
    assert_eq!(world.take_trace(), ["drop b", "drop b"]);
    let process = world.process("b");
    world.tell(Event::Acked { process, done: vec![Seq(2).into()] });
    world.finishes_after("b", seq, Some(5));
    while world.works("b").is_some() {}
    let children = world.core.list(|_| None);
    let expired = children.iter().find(|it| it.id == "b").map(|it| it.expired);
    assert_eq!(expired, Some(2));
}

#[test]
fn the_close_of_a_stream_that_nobody_takes_is_no_dead_letter() {
    let mut world = with_b(|_| {});
    let process = world.process("a");
    let gone = world.process("b").pid;
    world.crashes("b");
    world.take_trace();
    for to in [Address::Pid(gone), name("nobody")] {
        let mut envelope = envelope(to, Kind::Info, rebeam_protocol::message::STREAM_CLOSE);
        envelope.head.form = Form::Message;
        world.tell(Event::Sent { process, envelope, payload: Bytes::new(), buffers: None });
    }
    assert!(letters(&mut world).iter().all(|it| it.method != "stream_close"));
}
