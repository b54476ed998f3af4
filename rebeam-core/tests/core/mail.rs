//! Where mail goes, and what a death does to it, in virtual time.

use std::time::Duration;

use crate::world::{World, actor, call, died_of, envelope, name, supervisor};
use bytes::Bytes;
use rebeam_core::Event;
use rebeam_protocol::address::{Address, Caller};
use rebeam_protocol::exit::ExitReason;
use rebeam_protocol::id::{CallId, Seq};
use rebeam_protocol::message::{CallFailure, Kind, Lane, Outcome};
use rebeam_protocol::outside::TreeRequest;
use rebeam_protocol::spec::{ActorSpec, ChildKind, ChildSpec, MailboxOptions, Restart, Strategy, SupervisorSpec};

fn pair() -> World {
    World::up(SupervisorSpec { max_restarts: 100, ..supervisor(Strategy::OneForOne, vec![actor("a"), actor("b")]) })
}

#[test]
fn a_call_is_answered_once_and_what_comes_after_is_dropped() {
    let mut world = pair();
    world.sends("a", name("b"), call(1), "get");
    let (seq, to) = world.begins("b");
    let to = to.expect("a call");
    world.replies("b", to, Some(seq));
    world.replies("b", to, None);
    assert_eq!(world.replies.len(), 1);
    assert!(matches!(world.replies[0], (_, CallId(1), Outcome::Returned(_))));
}

#[test]
fn gen_007_the_death_of_the_callee_fails_the_call_in_hand_at_once_and_keeps_those_that_wait() {
    let mut world = pair();
    world.sends("a", name("b"), call(1), "in_hand");
    world.sends("a", name("b"), call(2), "waits");
    world.sends("a", name("b"), Kind::Cast, "also_waits");
    world.begins("b");
    world.is_shot("b");
    assert_eq!(world.replies.len(), 1);
    let (_, number, outcome) = &world.replies[0];
    assert_eq!((*number, died_of(outcome)), (CallId(1), Some(&ExitReason::Signal(9))));
    assert_eq!(world.delivered("b"), ["waits", "also_waits"]);
}

#[test]
fn msg_006_mail_to_a_pid_dies_with_it() {
    let mut world = pair();
    let pid = world.process("b").pid;
    world.sends("a", name("b"), Kind::Cast, "by_name");
    world.sends("a", Address::Pid(pid), Kind::Cast, "by_pid");
    world.sends("a", Address::Pid(pid), call(1), "call_by_pid");
    world.is_shot("b");
    assert_eq!(world.delivered("b"), ["by_name"]);
    assert!(died_of(&world.replies[0].2).is_some());
    assert!(world.take_trace().contains(&"dead letter by_pid to b PidDead".to_owned()));
    world.sends("a", Address::Pid(pid), call(2), "too_late");
    assert!(matches!(&world.replies[1].2, Outcome::Failed(CallFailure::NoProc { .. })));
    world.sends("a", Address::Pid(pid), Kind::Cast, "too_late");
    assert_eq!(world.delivered("b"), ["by_name"], "nothing sent to a pid reaches a later incarnation");
}

#[test]
fn a_cast_in_hand_at_a_death_is_a_dead_letter_and_never_silent() {
    let mut world = pair();
    world.sends("a", name("b"), Kind::Cast, "done");
    world.sends("a", name("b"), Kind::Cast, "in_hand");
    let (seq, _) = world.begins("b");
    world.finishes("b", seq);
    world.begins("b");
    world.is_shot("b");
    world.check(&["dead letter in_hand to b OutcomeUnknown", "report b Restarts", "start b"]);
    assert!(world.delivered("b").is_empty());
}

#[test]
fn an_answer_that_is_owed_fails_with_the_incarnation_that_owes_it() {
    let mut world = pair();
    world.sends("a", name("b"), call(1), "later");
    let (seq, _) = world.begins("b");
    world.finishes("b", seq);
    assert!(world.replies.is_empty(), "done without an answer: it may come later");
    world.crashes("b");
    assert!(died_of(&world.replies[0].2).is_some());
}

#[test]
fn mail_waits_through_a_restart_that_takes_several_tries_and_dies_when_the_tree_gives_up() {
    let mut world = World::up(supervisor(Strategy::OneForOne, vec![actor("a"), actor("b")]));
    world.slow = vec!["b".into()];
    world.is_shot("b");
    world.sends("a", name("b"), Kind::Cast, "first");
    world.sends("a", name("b"), call(1), "second");
    world.is_shot("b");
    world.starts("b");
    assert_eq!(world.delivered("b"), ["first", "second"]);
    for _ in 0..2 {
        world.is_shot("b");
    }
    assert!(world.take_trace().contains(&"dead letter first to b ReceiverGone".to_owned()));
    assert!(world.running().is_empty());
}

#[test]
fn a_child_that_is_down_for_good_has_no_mailbox() {
    let child = ChildSpec { restart: Restart::Transient, ..actor("t") };
    let mut world = World::up(supervisor(Strategy::OneForOne, vec![actor("a"), child]));
    world.sends("a", name("t"), call(1), "waits");
    world.ends("t", ExitReason::Normal);
    assert_eq!(died_of(&world.replies[0].2), Some(&ExitReason::Normal));
    world.sends("a", name("t"), call(2), "late");
    assert!(matches!(&world.replies[1].2, Outcome::Failed(CallFailure::NoProc { target, .. }) if target == "t"));
    world.requests(TreeRequest::Restart { name: "t".into() });
    world.sends("a", name("t"), Kind::Cast, "again");
    assert_eq!(world.delivered("t"), ["again"]);
}

#[test]
fn gen_018_a_final_stop_takes_its_turn_and_a_group_restart_goes_first() {
    let mut world = World::up(supervisor(Strategy::OneForAll, vec![actor("a"), actor("b")]));
    world.acks_after = 1;
    world.stubborn = vec!["b".into()];
    for n in 0..70 {
        world.sends("a", name("b"), Kind::Cast, &format!("m{n}"));
    }
    assert_eq!(world.delivered("b").len(), 64, "the window");
    world.requests(TreeRequest::Stop { name: "b".into() });
    world.check(&[]);
    for _ in 0..6 {
        let (seq, _) = world.begins("b");
        world.finishes("b", seq);
    }
    world.check(&["stop b in turn"]);

    let mut world = World::up(supervisor(Strategy::OneForAll, vec![actor("a"), actor("b")]));
    world.sends("a", name("b"), Kind::Cast, "kept");
    world.crashes("a");
    world.check(&["report a Restarts", "stop b", "start a", "start b"]);
    assert_eq!(world.delivered("b"), ["kept"]);
}

#[test]
fn a_call_whose_caller_gave_up_or_died_is_dropped_before_it_is_handed_over() {
    let mut world = pair();
    world.slow = vec!["b".into()];
    world.is_shot("b");
    world.sends("a", name("b"), call(1), "abandoned");
    let caller = Caller::Actor(world.process("a").pid);
    world.tell(Event::Abandoned { caller, call: CallId(1), page: None });
    assert!(
        matches!(&world.replies[0].2, Outcome::Failed(CallFailure::TimedOut(callee)) if callee.state == rebeam_protocol::state::MemberState::Starting)
    );
    let process = world.process("a");
    let mut expiring = envelope(name("b"), call(2), "expired");
    expiring.head.deadline_ms = Some(100);
    world.tell(Event::Sent { process, envelope: expiring, payload: Bytes::new(), buffers: None });
    world.sends("a", name("b"), call(3), "of_the_dead");
    world.is_shot("a");
    world.pass(Duration::from_millis(101));
    world.starts("b");
    assert!(world.delivered("b").is_empty());
    assert!(world.is_running("a"), "its own restart waited for that of b");
}

#[test]
fn high_mail_overtakes_normal_mail_that_waits() {
    let mut world = pair();
    world.slow = vec!["b".into()];
    world.is_shot("b");
    let process = world.process("a");
    for (lane, method) in [(Lane::Normal, "n1"), (Lane::High, "h1"), (Lane::Normal, "n2"), (Lane::High, "h2")] {
        let mut envelope = envelope(name("b"), Kind::Cast, method);
        envelope.head.lane = lane;
        world.tell(Event::Sent { process, envelope, payload: Bytes::new(), buffers: None });
    }
    world.starts("b");
    assert_eq!(world.delivered("b"), ["h1", "h2", "n1", "n2"]);
}

#[test]
fn map_13_a_full_mailbox_is_announced_once_and_opened_at_half() {
    let ChildKind::Actor(spec) = actor("b").kind else { unreachable!("it is an actor") };
    let limits = MailboxOptions { messages: Some(10), bytes: None, ..MailboxOptions::default() };
    let spec = Box::new(ActorSpec { mailbox: limits, ..*spec });
    let small = ChildSpec { kind: ChildKind::Actor(spec), ..actor("b") };
    let mut world = World::up(supervisor(Strategy::OneForOne, vec![actor("a"), small]));
    world.acks_after = 1;
    for n in 0..12 {
        world.sends("a", name("b"), Kind::Cast, &format!("m{n}"));
    }
    world.check(&["gate of b Wait"]);
    for _ in 0..5 {
        let (seq, _) = world.begins("b");
        world.finishes("b", seq);
    }
    world.check(&[]);
    let (seq, _) = world.begins("b");
    world.finishes("b", seq);
    world.check(&["gate of b Open"]);
}

#[test]
fn what_a_stale_process_says_is_dropped() {
    let mut world = pair();
    let stale = world.process("b");
    world.is_shot("b");
    world.tell(Event::Sent {
        process: stale,
        envelope: envelope(name("a"), Kind::Cast, "ghost"),
        payload: Bytes::new(),
        buffers: None,
    });
    world.tell(Event::Acked { process: stale, done: vec![Seq(1).into()] });
    world.tell(Event::Reported { process: stale, reason: ExitReason::Normal, message: None });
    assert!(world.delivered("a").is_empty());
    assert!(world.is_running("b"));
}
