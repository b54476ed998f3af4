//! Going on in a new process, and what else may be ordered meanwhile.

use std::time::Duration;

use proptest::prelude::*;
use rebeam_core::Event;
use rebeam_core::event::{HandedOver, State, Status};
use rebeam_protocol::address::Registry;
use rebeam_protocol::exit::ExitReason;
use rebeam_protocol::ledger::text_key;
use rebeam_protocol::message::{CallFailure, Kind, Lane, Outcome, Waits};

use rebeam_protocol::outside::{Answer, TreeRequest};
use rebeam_protocol::page::Snapshot;
use rebeam_protocol::process::{ProcessAnswer, ProcessRequest, RegistryRequest};
use rebeam_protocol::spec::{ChildSpec, Limits, Restart, Strategy as Group};

use crate::world::{World, actor, actor_with, call, envelope, name, supervisor};

fn recycled(name: &str, max_messages: u64) -> ChildSpec {
    actor_with(name, |spec| spec.limits = Limits { max_messages: Some(max_messages), ..Limits::default() })
}

/// An actor `a` that was asked for its state and takes its time, and one beside it.
fn handing_over() -> World {
    let mut world = World::up(supervisor(Group::OneForOne, vec![recycled("a", 1), actor("b")]));
    world.stubborn = vec!["a".into()];
    world.sends("b", name("a"), Kind::Cast, "first");
    let (seq, _) = world.begins("a");
    world.finishes("a", seq);
    world.check(&["recycle a"]);
    world.stubborn.clear();
    world
}

#[test]
fn what_is_done_and_not_acknowledged_is_not_done_again_in_the_next_process() {
    let mut world = World::up(supervisor(Group::OneForOne, vec![recycled("a", 20), actor("b")]));
    for number in 0..40 {
        world.sends("b", name("a"), Kind::Cast, &number.to_string());
    }
    world.stubborn = vec!["a".into()];
    // The twentieth is told with a batch; some more are done before the order to recycle is read.
    for _ in 0..37 {
        let (seq, _) = world.begins("a");
        world.finishes("a", seq);
    }
    world.check(&["recycle a"]);
    world.stubborn.clear();
    world.hands_over("a");
    world.check(&["start a"]);
    assert_eq!(world.delivered("a"), ["37", "38", "39"]);
}

#[test]
fn a_stop_while_it_hands_over_is_carried_out_by_the_next_process_with_the_mail_that_came_before() {
    let mut world = handing_over();
    world.sends("b", name("a"), Kind::Cast, "before");
    world.asks("b", ProcessRequest::Stop { to: name("a"), reason: ExitReason::SHUTDOWN });
    world.sends("b", name("a"), Kind::Cast, "after");
    world.stubborn = vec!["a".into()];
    world.hands_over("a");
    world.check(&["start a", "stop a in turn"]);
    assert_eq!(world.delivered("a"), ["before"], "what came before is handled first, what came after is not");
}

#[test]
fn an_urgent_stop_while_it_hands_over_goes_before_all_mail_of_the_next_process() {
    let mut world = handing_over();
    world.sends("b", name("a"), Kind::Cast, "waits");
    world.requests(TreeRequest::Restart { name: "a".into() });
    world.stubborn = vec!["a".into()];
    world.hands_over("a");
    world.check(&["start a", "stop a"]);
    assert!(world.delivered("a").is_empty());
    world.stubborn.clear();
    world.ends("a", ExitReason::SHUTDOWN);
    assert_eq!(world.delivered("a"), ["waits"], "its mail waits for the next incarnation");
}

#[test]
fn a_node_that_goes_down_while_an_actor_hands_over_runs_its_end_and_reports_no_crash() {
    let mut world = handing_over();
    world.tell(Event::StopNode);
    world.take_trace();
    world.stubborn = vec!["a".into()];
    world.hands_over("a");
    world.check(&["start a", "stop a in turn"]);
    world.stubborn.clear();
    world.ends("a", ExitReason::SHUTDOWN);
    world.check(&["ended"]);
}

#[test]
fn a_stop_while_it_hands_over_ends_in_time() {
    let mut world = handing_over();
    world.tell(Event::StopNode);
    world.take_trace();
    world.pass(Duration::from_secs(5));
    world.check(&["kill a", "report a StaysDown", "ended"]);
}

#[test]
fn what_is_asked_of_a_process_that_hands_over_is_asked_of_the_next_one() {
    let mut world = handing_over();
    let process = world.process("b");
    let mut asked = envelope(name("a"), call(7), "get_state");
    asked.head.lane = Lane::System;
    world.tell(Event::Sent { process, envelope: asked, payload: bytes::Bytes::new(), buffers: None });
    assert!(world.delivered("a").is_empty());
    world.hands_over("a");
    assert_eq!(world.delivered("a"), ["get_state"]);
    assert!(world.replies.is_empty(), "it is not answered yet");
}

#[test]
fn what_a_process_was_asked_and_has_not_answered_is_asked_of_the_next_one() {
    let mut world = World::up(supervisor(Group::OneForOne, vec![recycled("a", 1), actor("b")]));
    let process = world.process("b");
    for number in [7, 8] {
        let mut asked = envelope(name("a"), call(number), &format!("ask{number}"));
        asked.head.lane = Lane::System;
        world.tell(Event::Sent { process, envelope: asked, payload: bytes::Bytes::new(), buffers: None });
    }
    let (_, to) = world.begins("a");
    world.replies("a", to.expect("it is a call"), None);
    world.stubborn = vec!["a".into()];
    world.sends("b", name("a"), Kind::Cast, "x");
    world.finish_all("a", &["x"]);
    world.stubborn.clear();
    world.hands_over("a");
    assert_eq!(world.delivered("a"), ["ask8"], "one was answered, one was not");
    world.is_shot("a");
    let failed = |outcome: &Outcome| matches!(outcome, Outcome::Failed(CallFailure::Died { .. }));
    assert_eq!(world.replies.iter().filter(|(_, call, outcome)| call.0 == 8 && failed(outcome)).count(), 1);
}

#[test]
fn an_exit_signal_or_a_kill_while_it_hands_over_ends_the_incarnation() {
    for is_kill in [false, true] {
        let mut world = handing_over();
        let pid = world.process("a").pid;
        let request = match is_kill {
            true => ProcessRequest::Kill { to: name("a"), is_hung: false },
            false => ProcessRequest::Exit { to: name("a"), reason: ExitReason::Other("enough".into()) },
        };
        world.asks("b", request);
        let order = if is_kill { "kill a" } else { "exit a" };
        world.check(&[order, "report a Restarts", "start a"]);
        assert_ne!(world.process("a").pid, pid);
    }
}

#[test]
fn map_02_a_kill_is_the_reason_though_a_process_that_hands_over_has_ended_by_itself_before() {
    let mut world = handing_over();
    world.asks("b", ProcessRequest::Monitor(name("a")));
    let death = world.death_of("a", Status::Exited(0));
    let (process, state, took, page) = (death.process, State::new(()), Duration::ZERO, Snapshot::default());
    let handed = HandedOver { process, state, runs_init: true, took, page };
    world.core.handle_event(world.now, Event::HandedOver(Box::new(handed)));
    world.asks("b", ProcessRequest::Kill { to: name("a"), is_hung: false });
    world.tell(Event::Died(Box::new(death)));
    assert_eq!(world.signals("b").len(), 1);
    world.requests(TreeRequest::Why { name: "a".into() });
    let Some(Answer::Why(deaths)) = world.outside.pop() else { panic!("deaths") };
    assert_eq!(deaths[0].0.reason, ExitReason::Killed);
    assert!(matches!(deaths[0].0.killer, rebeam_protocol::certificate::Killer::Rebeam(_)), "{:?}", deaths[0].0.killer);
}

#[test]
fn whoever_does_not_give_its_state_is_judged_hung() {
    let mut world = handing_over();
    world.pass(Duration::from_secs(120));
    world.check(&["stacks of a", "kill a", "report a Restarts", "start a"]);
}

#[test]
fn an_init_that_is_passed_over_after_recycling_ends_the_incarnation() {
    let mut world = handing_over();
    world.ignoring = vec!["a".into()];
    world.hands_over("a");
    world.check(&["start a", "report a Restarts", "start a"]);
    assert!(!world.is_running("a"), "the next incarnation was passed over as well");
    world.ignoring.clear();
    world.requests(TreeRequest::Restart { name: "a".into() });
    assert!(world.is_running("a"));
}

#[test]
fn an_ignoring_child_that_is_stopped_before_its_process_has_ended_hangs_nothing() {
    let mut world = World::new(supervisor(Group::OneForOne, vec![actor("a"), actor("b")]));
    world.ignoring = vec!["a".into()];
    world.lazy = true;
    world.tell(Event::Boot);
    assert!(world.reacts(0), "it says that it is to be passed over");
    world.tell(Event::StopNode);
    while world.reacts(0) {}
    assert_eq!(world.take_trace().last().map(String::as_str), Some("ended"));
}

#[test]
fn sup_036_a_temporary_child_can_be_restarted_by_hand_unless_its_arguments_are_large() {
    let spawn = |name: &str, start: Vec<u8>| {
        let mut child = actor_with(name, |spec| spec.start = start);
        child.restart = Restart::Temporary;
        let waits = Waits::Nobody;
        ProcessRequest::Spawn { child: Box::new(child), is_owned: false, is_linked: false, waits }
    };
    let mut world = World::up(supervisor(Group::OneForOne, vec![actor("b")]));
    world.asks("b", spawn("small", vec![1; 100]));
    world.asks("b", spawn("large", vec![1; 1_000_000]));
    world.take_trace();
    world.requests(TreeRequest::Restart { name: "small".into() });
    world.check(&["stop small", "start small"]);
    world.requests(TreeRequest::Restart { name: "large".into() });
    world.check(&[]);
    let refused = world.outside.pop();
    let is_named = |answer: &Answer| format!("{answer:?}").contains("`large` is temporary");
    assert!(refused.as_ref().is_some_and(is_named), "{refused:?}");
    assert!(world.is_running("large"));
}

/// What is done to a tree while its processes take their time.
#[derive(Clone, Debug)]
enum Step {
    React(usize),
    Send(usize),
    Work(usize),
    Stop(usize),
    Restart(usize),
    Exit(usize),
    Kill(usize),
    Shoot(usize),
    Pass(u64),
}

fn steps() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..9usize).prop_map(Step::React),
        4 => (0..3usize).prop_map(Step::Send),
        4 => (0..3usize).prop_map(Step::Work),
        1 => (0..3usize).prop_map(Step::Stop),
        1 => (0..3usize).prop_map(Step::Restart),
        1 => (0..3usize).prop_map(Step::Exit),
        1 => (0..3usize).prop_map(Step::Kill),
        1 => (0..3usize).prop_map(Step::Shoot),
        1 => (0..400u64).prop_map(Step::Pass),
    ]
}

proptest! {
    /// Whatever is ordered while processes start, hand over, stop and die in any order: every message is handled or
    /// accounted for once, in order, and the node comes down.
    #[test]
    fn no_message_and_no_order_is_lost_whatever_comes_first(steps in proptest::collection::vec(steps(), 0..120)) {
        let labels = ["a", "c", "d"];
        let mut children: Vec<ChildSpec> = labels.iter().map(|label| recycled(label, 3)).collect();
        children.push(actor("b"));
        let mut spec = supervisor(Group::RestForOne, children);
        spec.max_restarts = 1000;
        let mut world = World::up(spec);
        world.lazy = true;
        let mut sent = 0u32;
        let mut handled: Vec<u32> = Vec::new();
        for step in steps {
            match step {
                Step::React(choice) => { world.reacts(choice); }
                Step::Send(to) => if world.is_running("b") {
                    sent += 1;
                    world.sends("b", name(labels[to]), Kind::Cast, &format!("m{sent}"));
                },
                Step::Work(of) => handled.extend(world.works(labels[of]).iter().map(|method| method[1..].parse::<u32>().expect("a number"))),
                Step::Stop(of) => if world.is_running("b") && world.is_running(labels[of]) {
                    world.asks("b", ProcessRequest::Stop { to: name(labels[of]), reason: ExitReason::Normal });
                },
                Step::Restart(of) => world.requests(TreeRequest::Restart { name: labels[of].into() }),
                Step::Exit(of) => if world.is_running("b") {
                    let answer = world.asks("b", ProcessRequest::Exit { to: name(labels[of]), reason: ExitReason::Other("x".into()) });
                    prop_assert_eq!(answer, Some(ProcessAnswer::Ok));
                },
                Step::Kill(of) => if world.is_running("b") {
                    world.asks("b", ProcessRequest::Kill { to: name(labels[of]), is_hung: false });
                },
                Step::Shoot(of) => if world.is_running(labels[of]) { world.is_shot(labels[of]); },
                Step::Pass(ms) => world.pass(Duration::from_millis(ms)),
            }
        }
        world.tell(Event::StopNode);
        for _ in 0..500 {
            for label in labels {
                handled.extend(world.works(label).iter().map(|method| method[1..].parse::<u32>().expect("a number")));
            }
            if !world.reacts(0) {
                world.pass(Duration::from_secs(1));
            }
        }
        let trace = world.take_trace();
        prop_assert_eq!(trace.last().map(String::as_str), Some("ended"), "{:?}", trace);
        let lost: Vec<u32> = trace.iter().filter_map(|line| line.strip_prefix("dead letter m")?.split(' ').next()?.parse().ok()).collect();
        let mut all: Vec<u32> = handled.iter().chain(&lost).copied().collect();
        all.sort_unstable();
        prop_assert_eq!(all, (1..=sent).collect::<Vec<u32>>(), "handled {:?}, lost {:?}", handled, lost);
        prop_assert_eq!(world.running(), Vec::<String>::new());
    }
}

#[test]
fn a_stop_keeps_its_time_over_the_next_process() {
    let mut world = handing_over();
    world.tell(Event::StopNode);
    world.take_trace();
    world.pass(Duration::from_secs(3));
    world.stubborn = vec!["a".into()];
    world.hands_over("a");
    world.check(&["start a", "stop a in turn"]);
    world.pass(Duration::from_millis(1900));
    world.check(&[]);
    world.pass(Duration::from_millis(200));
    world.check(&["kill a", "report a StaysDown", "ended"]);
}

#[test]
fn the_end_of_what_was_spawned_is_reported_although_it_has_spawned_others() {
    let mut world = World::up(supervisor(Group::OneForOne, vec![actor("b")]));
    let spawn = |name: &str| {
        let mut child = actor(name);
        child.restart = Restart::Temporary;
        ProcessRequest::Spawn { child: Box::new(child), is_owned: true, is_linked: false, waits: Waits::Nobody }
    };
    world.asks("b", spawn("owner"));
    world.asks("owner", spawn("owned"));
    world.take_trace();
    world.crashes("owner");
    let trace = world.take_trace();
    assert!(trace.iter().any(|line| line.starts_with("report owner")), "{trace:?}");
}

/// An actor `a` whose `init` is under way in the second process of its incarnation, after the first one's did `before`.
fn in_its_second_init(before: impl Fn(&mut World)) -> World {
    let mut world = World::new(supervisor(Group::OneForOne, vec![actor("b"), recycled("a", 1)]));
    world.slow = vec!["a".into()];
    world.tell(Event::Boot);
    before(&mut world);
    world.starts("a");
    world.sends("b", name("a"), Kind::Cast, "work");
    let (seq, _) = world.begins("a");
    world.finishes("a", seq);
    world.take_trace();
    world
}

fn enter(registry: Registry, key: &str) -> ProcessRequest {
    let request = RegistryRequest::Enter { key: text_key(key), who: None };
    ProcessRequest::Registry { registry, request }
}

#[test]
fn what_init_has_made_is_replaced_by_what_the_init_of_the_next_process_makes() {
    // Each process numbers its timers from another number on.
    let numbers = std::cell::Cell::new(0);
    let makes = |world: &mut World| {
        let method = "handle_info".into();
        let (to, every_ms) = (name("a"), Some(100));
        let timer = numbers.replace(numbers.get() + 1);
        world.asks("a", ProcessRequest::SendAfter { timer, to, after_ms: 100, every_ms, method, is_method: false });
        assert_eq!(world.asks("a", enter(Registry::Names, "leader")), Some(ProcessAnswer::Ok));
        assert_eq!(world.asks("a", enter(Registry::Groups, "members")), Some(ProcessAnswer::Ok));
        world.asks("a", ProcessRequest::Monitor(name("b")));
    };
    let mut world = in_its_second_init(makes);
    let mut records = None;
    for _ in 0..5 {
        assert!(world.found("leader").is_some(), "others find it meanwhile");
        makes(&mut world);
        world.starts("a");
        let now = world.core.records();
        assert_eq!(*records.get_or_insert(now), now, "nothing is there twice");
        world.pass(Duration::from_millis(150));
        assert_eq!(world.delivered("a").len(), 1, "one clock ticks");
        world.works("a");
    }
}

#[test]
fn what_init_does_not_make_again_is_gone_and_what_handlers_made_stays() {
    let mut world = in_its_second_init(|world| {
        world.asks("a", enter(Registry::Names, "from init"));
    });
    assert!(world.found("from init").is_some());
    world.starts("a");
    assert_eq!(world.found("from init"), None);
    world.asks("a", enter(Registry::Names, "from a handler"));
    world.sends("b", name("a"), Kind::Cast, "work");
    world.works("a");
    world.starts("a");
    assert!(world.found("from a handler").is_some());
}

#[test]
fn a_suspended_actor_is_recycled_when_it_goes_on() {
    let mut world = World::up(supervisor(Group::OneForOne, vec![recycled("a", 2), actor("b")]));
    let process = world.process("b");
    let ask = |world: &mut World, method: &str, number| {
        let mut asked = envelope(name("a"), call(number), method);
        asked.head.lane = Lane::System;
        world.tell(Event::Sent { process, envelope: asked, payload: bytes::Bytes::new(), buffers: None });
        let caller = rebeam_protocol::address::Caller::Actor(process.pid);
        let to = rebeam_protocol::address::ReplyTo { caller, call: rebeam_protocol::id::CallId(number) };
        world.replies("a", to, None);
    };
    ask(&mut world, "suspend", 1);
    for method in ["one", "two"] {
        world.sends("b", name("a"), Kind::Cast, method);
        world.finish_all("a", &[method]);
    }
    world.check(&[]);
    ask(&mut world, "resume", 2);
    world.check(&["recycle a", "start a"]);
}

#[test]
fn a_stop_does_not_wait_for_the_mail_of_a_suspended_actor() {
    for suspended_first in [true, false] {
        let mut world = World::up(supervisor(Group::OneForOne, vec![actor("a"), actor("b")]));
        let process = world.process("b");
        for number in 0..100 {
            world.sends("b", name("a"), Kind::Cast, &number.to_string());
        }
        let suspend = |world: &mut World| {
            let mut asked = envelope(name("a"), call(1), "suspend");
            asked.head.lane = Lane::System;
            world.tell(Event::Sent { process, envelope: asked, payload: bytes::Bytes::new(), buffers: None });
            let caller = rebeam_protocol::address::Caller::Actor(process.pid);
            let to = rebeam_protocol::address::ReplyTo { caller, call: rebeam_protocol::id::CallId(1) };
            world.replies("a", to, None);
        };
        let stop = |world: &mut World| {
            world.asks("b", ProcessRequest::Stop { to: name("a"), reason: ExitReason::Normal });
        };
        if suspended_first {
            suspend(&mut world);
            stop(&mut world);
        } else {
            stop(&mut world);
            suspend(&mut world);
        }
        assert_eq!(world.take_trace().first().map(String::as_str), Some("stop a"), "{suspended_first}");
    }
}

#[test]
fn an_actor_stays_suspended_whoever_asked_for_it_is_gone() {
    let mut world = World::up(supervisor(Group::OneForOne, vec![recycled("a", 2), actor("b"), actor("c")]));
    let process = world.process("b");
    let mut asked = envelope(name("a"), call(1), "suspend");
    asked.head.lane = Lane::System;
    world.tell(Event::Sent { process, envelope: asked, payload: bytes::Bytes::new(), buffers: None });
    let caller = rebeam_protocol::address::Caller::Actor(process.pid);
    world.is_shot("b");
    world.replies("a", rebeam_protocol::address::ReplyTo { caller, call: rebeam_protocol::id::CallId(1) }, None);
    world.take_trace();
    for method in ["one", "two"] {
        world.sends("c", name("a"), Kind::Cast, method);
        world.finish_all("a", &[method]);
    }
    world.check(&[]);
}
