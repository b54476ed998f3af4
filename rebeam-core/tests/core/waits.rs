//! Deadlocks: found when the last wait closes the cycle, and only then.

use crate::world::{World, actor, actor_with, name, supervisor, waiting_call};
use rebeam_core::Event;
use rebeam_protocol::address::Address;
use rebeam_protocol::id::{CallId, Seq};
use rebeam_protocol::message::{CallFailure, Kind, Outcome, Waits};
use rebeam_protocol::spec::{MailboxOptions, Strategy};

fn world(names: &[&str]) -> World {
    World::up(supervisor(Strategy::OneForOne, names.iter().map(|name| actor(name)).collect()))
}

/// The cycle of the last answer, if that is a deadlock.
fn cycle(world: &World) -> Option<Vec<String>> {
    match world.replies.last() {
        Some((_, _, Outcome::Failed(CallFailure::Deadlock { cycle }))) => Some(cycle.clone()),
        _ => None,
    }
}

/// Each of these calls the next one, out of the handler that the one before has called.
fn chain(world: &mut World, names: &[&str]) -> Seq {
    world.sends(names[0], name(names[1]), waiting_call(1, None), "m");
    let mut in_hand = world.begins(names[1]).0;
    for pair in names[1..].windows(2) {
        world.sends(pair[0], name(pair[1]), waiting_call(1, Some(in_hand)), "m");
        in_hand = world.begins(pair[1]).0;
    }
    in_hand
}

#[test]
fn two_that_call_each_other() {
    let mut world = world(&["a", "b"]);
    let in_hand = chain(&mut world, &["a", "b"]);
    assert!(world.replies.is_empty());
    world.sends("b", name("a"), waiting_call(2, Some(in_hand)), "back");
    assert_eq!(cycle(&world).expect("a deadlock"), ["b.call(A.back)", "a.call(A.m)"]);
    // The other one gets its answer.
    let reply_to = world.reply_address("b", in_hand).expect("a call");
    world.replies("b", reply_to, Some(in_hand));
    assert!(matches!(world.replies.last(), Some((_, CallId(1), Outcome::Returned(_)))));
}

#[test]
fn a_ring_of_five_and_one_that_calls_itself() {
    let names = ["a", "b", "c", "d", "e"];
    let mut world = world(&names);
    let in_hand = chain(&mut world, &names);
    world.sends("e", name("a"), waiting_call(2, Some(in_hand)), "x");
    assert_eq!(cycle(&world).expect("a deadlock").len(), 5);
    let mut world = self::world(&["a"]);
    world.sends("a", name("a"), waiting_call(1, Some(Seq(1))), "x");
    assert_eq!(cycle(&world).expect("a deadlock"), ["a.call(A.x)"]);
}

#[test]
fn a_thread_of_its_own_is_nobody_that_waits() {
    let mut world = world(&["a", "b"]);
    let in_hand = chain(&mut world, &["a", "b"]);
    world.sends("b", name("a"), Kind::Call { call: CallId(2), waits: Waits::Nobody }, "back");
    assert!(world.replies.is_empty());
    // Now the handler waits for that thread's call, too.
    let process = world.process("b");
    let waits = Waits::Actor { message: Some(in_hand), is_deferred: false };
    world.tell(Event::Awaited { process, call: CallId(2), waits });
    assert_eq!(cycle(&world).expect("a deadlock"), ["b.call(A.back)", "a.call(A.m)"]);
}

#[test]
fn no_alarm_where_a_third_party_can_still_answer() {
    // b has put the answer to a off, and somebody else may know whom to answer.
    let mut world = world(&["a", "b"]);
    let in_hand = chain(&mut world, &["a", "b"]);
    let waits = Waits::Actor { message: Some(in_hand), is_deferred: true };
    world.sends("b", name("a"), Kind::Call { call: CallId(2), waits }, "back");
    assert!(world.replies.is_empty());
    // The same after b's handler has returned.
    let mut world = self::world(&["a", "b"]);
    let in_hand = chain(&mut world, &["a", "b"]);
    world.finishes("b", in_hand);
    world.sends("b", name("a"), waiting_call(2, None), "back");
    assert!(world.replies.is_empty());
}

#[test]
fn an_actor_with_a_free_handler_can_still_answer() {
    let two_at_once = |name: &str| actor_with(name, |spec| spec.concurrency = 2);
    let mut world = World::up(supervisor(Strategy::OneForOne, vec![two_at_once("a"), actor("b")]));
    let handler = |message| Waits::Handler { message, is_deferred: false };
    for number in 1..=2 {
        world.sends("b", name("a"), Kind::Cast, "work");
        let (seq, _) = world.begins("a");
        world.sends("a", name("b"), Kind::Call { call: CallId(number), waits: handler(seq) }, "m");
    }
    let in_hand = world.begins("b").0;
    // Both handlers of a wait, and b, which has the call of one in hand, waits for a free one.
    world.sends("b", name("a"), waiting_call(9, Some(in_hand)), "back");
    assert!(cycle(&world).is_some());
    let mut world = World::up(supervisor(Strategy::OneForOne, vec![two_at_once("a"), actor("b")]));
    world.sends("b", name("a"), Kind::Cast, "work");
    let (seq, _) = world.begins("a");
    world.sends("a", name("b"), Kind::Call { call: CallId(1), waits: handler(seq) }, "m");
    let in_hand = world.begins("b").0;
    world.sends("b", name("a"), waiting_call(9, Some(in_hand)), "back");
    assert!(world.replies.is_empty(), "the second handler of a is free");
}

#[test]
fn a_ring_through_a_full_mailbox() {
    let small = |name: &str| {
        let mailbox = MailboxOptions { messages: Some(1), ..MailboxOptions::default() };
        actor_with(name, |spec| spec.mailbox = mailbox)
    };
    let mut world = World::up(supervisor(Strategy::OneForOne, vec![small("a"), actor("b")]));
    for _ in 0..70 {
        world.sends("b", name("a"), Kind::Cast, "fill");
    }
    world.take_trace();
    let in_hand = chain(&mut world, &["a", "b"]);
    let (process, waits) = (world.process("b"), Waits::Actor { message: Some(in_hand), is_deferred: false });
    let (call, to, method) = (CallId(5), name("a"), "fill".to_owned());
    world.tell(Event::AwaitsRoom { process, call, to, method, waits });
    assert_eq!(cycle(&world).expect("a deadlock"), ["b.cast(A.fill)", "a.call(A.m)"]);
}

#[test]
fn an_init_that_calls_a_sibling_which_is_started_after_it() {
    let mut world = World::new(supervisor(Strategy::OneForAll, vec![actor("a"), actor("b")]));
    world.tell(Event::Boot);
    world.slow = vec!["a".into()];
    world.crashes("b");
    world.is_shot("a");
    // Both go down; a comes up first, and its init asks b.
    world.sends("a", name("b"), waiting_call(1, None), "hello");
    assert_eq!(cycle(&world).expect("a deadlock"), ["a.call(A.hello)", "start of b"]);
}

#[test]
fn an_actor_that_has_died_waits_for_nothing() {
    let mut world = world(&["a", "b"]);
    let in_hand = chain(&mut world, &["a", "b"]);
    world.is_shot("a");
    world.sends("b", name("a"), waiting_call(2, Some(in_hand)), "back");
    assert!(cycle(&world).is_none());
    let pid = world.process("b").pid;
    world.sends("a", Address::Pid(pid), waiting_call(1, None), "new");
    assert!(cycle(&world).is_some_and(|cycle| cycle.len() == 2));
}
