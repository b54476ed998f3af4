//! Going over to new code: what moves, what goes back, and what may be ordered meanwhile.

use std::time::Duration;

use proptest::prelude::*;
use rebeam_core::Event;
use rebeam_core::event::Status;
use rebeam_protocol::address::{Address, Registry};
use rebeam_protocol::exit::ExitReason;
use rebeam_protocol::id::Version;
use rebeam_protocol::message::{Kind, Lane};
use rebeam_protocol::outside::{Failure, Fate};
use rebeam_protocol::process::ProcessRequest;
use rebeam_protocol::spec::{ActorSpec, Limits, Reload, Strategy as Group, SupervisorKind, SupervisorSpec};

use crate::names::enter;
use crate::world::{World, actor, actor_with, call, envelope, inner, name, supervisor};

/// Actors whose code is in a module of their own name, but for `b`'s, which is nowhere.
fn tree(names: &[&str]) -> SupervisorSpec {
    let of = |name: &&str| actor_with(name, |spec| spec.modules = vec![(*name).to_owned()]);
    supervisor(Group::OneForOne, names.iter().map(of).chain([actor("b")]).collect())
}

fn fates(world: &mut World) -> Vec<(String, Fate)> {
    let reloaded = world.reloads.pop().expect("a reload is over");
    assert!(world.reloads.is_empty());
    reloaded.changes.into_iter().map(|change| (change.actor, change.fate)).collect()
}

fn moved() -> Fate {
    Fate::Moved { still_us: 0 }
}

#[test]
fn upg_003_an_actor_goes_over_between_two_messages_with_its_mail_and_nobody_sees_a_down() {
    let mut world = World::up(tree(&["a"]));
    world.asks("b", ProcessRequest::Monitor(name("a")));
    let pid = world.process("a").pid;
    for method in ["1", "2", "3"] {
        world.sends("b", name("a"), Kind::Cast, method);
    }
    let (first, _) = world.begins("a");
    world.stubborn = vec!["a".into()];
    world.new_code(2, tree(&["a"]), &["a"]);
    world.check(&["move a"]);
    world.finishes("a", first);
    world.stubborn.clear();
    world.slow = vec!["a".into()];
    world.gives_its_state("a");
    world.check(&["start a"]);
    world.sends("b", name("a"), Kind::Cast, "4");
    world.starts("a");
    world.check(&["leave a"]);
    assert_eq!(world.delivered("a"), ["2", "3", "4"]);
    assert_eq!((world.process("a").pid, world.signals("b").len()), (pid, 0));
    assert_eq!(fates(&mut world), [("a".to_owned(), moved())]);
    assert_eq!(world.codes["a"], Version(2));
}

#[test]
fn only_who_has_changed_goes_over() {
    let mut world = World::up(tree(&["x", "y", "z"]));
    world.new_code(2, tree(&["x", "y", "z"]), &["x", "z"]);
    assert_eq!(fates(&mut world), [("x".to_owned(), moved()), ("z".to_owned(), moved())]);
    // Whoever dies comes back with the new version, changed or not.
    world.is_shot("y");
    assert_eq!(world.codes["y"], Version(2));
}

#[test]
fn a_process_that_cannot_take_over_harms_nobody() {
    for runs_init in [true, false] {
        let mut world = World::up(tree(&["a"]));
        world.runs_init = runs_init;
        world.fails.insert("a".into(), 1);
        world.sends("b", name("a"), Kind::Cast, "1");
        let records = world.core.records();
        world.new_code(2, tree(&["a"]), &["a"]);
        world.check(&["move a", "start a", "go on a"]);
        assert_eq!(world.delivered("a"), ["1"], "it is handed over anew");
        let fates = fates(&mut world);
        assert!(matches!(&fates[..], [(_, Fate::Failed { why, .. })] if why.contains("boom")), "{fates:?}");
        assert_eq!(world.core.records(), records);
        // Until there is other code, its class stays with the version that works.
        world.is_shot("a");
        assert_eq!(world.codes["a"], Version(1));
        assert_eq!(world.needed, [Version(1), Version(2)]);
        world.new_code(3, tree(&["a"]), &["a"]);
        assert_eq!(world.codes["a"], Version(3));
    }
}

#[test]
fn one_that_hangs_as_it_takes_over_is_killed_and_the_old_goes_on() {
    for (runs_init, limit) in [(false, 11), (true, 61)] {
        let mut world = World::up(tree(&["a"]));
        world.runs_init = runs_init;
        world.slow = vec!["a".into()];
        world.new_code(2, tree(&["a"]), &["a"]);
        world.check(&["move a", "start a"]);
        world.pass(Duration::from_secs(limit));
        let trace = world.take_trace();
        assert!(trace.ends_with(&["kill a".into(), "go on a".into()]), "{trace:?}");
        assert!(matches!(&fates(&mut world)[..], [(_, Fate::Failed { .. })]));
    }
}

#[test]
fn new_code_that_dies_on_probation_is_undone_with_the_state_before() {
    let mut world = World::up(tree(&["a"]));
    let pid = world.process("a").pid;
    world.new_code(2, tree(&["a"]), &["a"]);
    world.take_trace();
    for method in ["1", "2"] {
        world.sends("b", name("a"), Kind::Cast, method);
        world.works("a");
    }
    world.take_trace();
    world.crashes("a");
    world.check(&["report a Undone to v1, 2 lost", "start a"]);
    assert_eq!((world.codes["a"], world.process("a").pid), (Version(1), pid));
    // Whatever befalls it from now on is an ordinary death.
    world.crashes("a");
    world.check(&["report a Restarts", "start a"]);
    assert_eq!(world.codes["a"], Version(1));
}

#[test]
fn new_code_has_proved_itself_by_messages_or_by_time() {
    for by_time in [true, false] {
        let mut world = World::up(tree(&["a"]));
        world.new_code(2, tree(&["a"]), &["a"]);
        assert_eq!(world.needed, [Version(1), Version(2)]);
        if by_time {
            world.pass(Duration::from_secs(10));
        } else {
            for _ in 0..10 {
                world.sends("b", name("a"), Kind::Cast, "work");
                world.works("a");
            }
        }
        assert_eq!(world.needed, [Version(2)]);
        world.take_trace();
        world.crashes("a");
        world.check(&["report a Restarts", "start a"]);
        assert_eq!(world.codes["a"], Version(2));
    }
}

#[test]
fn an_end_in_good_order_is_no_failure_of_the_new_code() {
    let mut world = World::up(tree(&["a"]));
    world.new_code(2, tree(&["a"]), &["a"]);
    world.take_trace();
    world.ends("a", ExitReason::Normal);
    world.check(&["report a Restarts", "start a"]);
    assert_eq!((world.codes["a"], &world.needed[..]), (Version(2), &[Version(2)][..]));
}

#[test]
fn one_that_is_killed_or_stopped_as_it_goes_over_is_gone_with_the_process_that_waits() {
    let requests = [
        ProcessRequest::Kill { to: name("a"), is_hung: false },
        ProcessRequest::Exit { to: name("a"), reason: ExitReason::Other("enough".into()) },
    ];
    for request in requests {
        let mut world = World::up(tree(&["a"]));
        world.slow = vec!["a".into()];
        world.new_code(2, tree(&["a"]), &["a"]);
        world.take_trace();
        world.slow.clear();
        world.asks("b", request);
        let trace = world.take_trace();
        assert!(trace.contains(&"kill the process before of a".to_owned()), "{trace:?}");
        assert_eq!((world.waiting(), world.codes["a"]), (0, Version(2)));
        assert!(matches!(&fates(&mut world)[..], [(_, Fate::StartedOver { why: Some(_), .. })]));
    }
}

#[test]
fn a_stop_as_it_goes_over_is_carried_out_by_whichever_process_goes_on() {
    for fails in [0, 1] {
        let mut world = World::up(tree(&["a"]));
        world.lazy = true;
        world.fails.insert("a".into(), fails);
        world.sends("b", name("a"), Kind::Cast, "before");
        world.new_code(2, tree(&["a"]), &["a"]);
        assert!(world.reacts(0), "it gives its state");
        world.asks("b", ProcessRequest::Stop { to: name("a"), reason: ExitReason::SHUTDOWN });
        world.sends("b", name("a"), Kind::Cast, "after");
        assert!(world.reacts(0), "the next one starts, or fails to");
        assert_eq!(world.delivered("a"), ["before"]);
        world.works("a");
        let trace = world.take_trace();
        assert_eq!(trace.last().map(String::as_str), Some("stop a in turn"), "{trace:?}");
    }
}

#[test]
fn if_the_process_that_waits_dies_its_state_is_there_all_the_same() {
    let mut world = World::up(tree(&["a"]));
    world.slow = vec!["a".into()];
    let before = world.process("a");
    world.new_code(2, tree(&["a"]), &["a"]);
    world.take_trace();
    world.kept_is_shot(before);
    world.slow.clear();
    world.crashes("a");
    world.check(&["report a Undone to v1, 0 lost", "start a"]);
    assert_eq!(world.codes["a"], Version(1));
    assert!(matches!(&fates(&mut world)[..], [(_, Fate::Failed { .. })]));
}

#[test]
fn one_whose_state_does_not_move_starts_over_and_says_why() {
    let mut world = World::up(tree(&["a"]));
    world.asks("b", ProcessRequest::Monitor(name("a")));
    world.stubborn = vec!["a".into()];
    world.new_code(2, tree(&["a"]), &["a"]);
    world.stubborn.clear();
    world.tell(Event::CannotMove { process: world.process("a"), why: "`lock`".into(), is_failure: false });
    world.check(&["move a", "stop a", "start a"]);
    assert_eq!(world.signals("b").len(), 0);
    assert_eq!(fates(&mut world), [("a".to_owned(), Fate::StartedOver { still_us: 0, why: Some("`lock`".into()) })]);
}

#[test]
fn one_that_starts_over_goes_back_to_the_old_code_if_the_new_does_not_start() {
    let restarts = || {
        let change = |spec: &mut ActorSpec| {
            spec.modules = vec!["a".into()];
            spec.reload = Reload::Restart;
        };
        supervisor(Group::OneForOne, vec![actor_with("a", change), actor("b")])
    };
    let mut world = World::up(restarts());
    world.fails.insert("a".into(), 1);
    world.new_code(2, restarts(), &["a"]);
    world.check(&["stop a", "start a", "report a Undone to v1, 0 lost", "start a"]);
    assert_eq!(world.codes["a"], Version(1));
}

#[test]
fn upg_001_one_that_is_suspended_goes_over_and_stays_suspended() {
    let mut world = World::up(tree(&["a"]));
    let process = world.process("b");
    let mut asked = envelope(name("a"), call(1), "suspend");
    asked.head.lane = Lane::System;
    world.tell(Event::Sent { process, envelope: asked, payload: bytes::Bytes::new(), buffers: None });
    let caller = rebeam_protocol::address::Caller::Actor(process.pid);
    world.replies("a", rebeam_protocol::address::ReplyTo { caller, call: rebeam_protocol::id::CallId(1) }, None);
    world.new_code(2, tree(&["a"]), &["a"]);
    assert_eq!(fates(&mut world), [("a".to_owned(), moved())]);
    assert!(world.launched_suspended("a"));
}

#[test]
fn two_stand_still_at_a_time_and_who_is_busy_holds_up_nobody() {
    let names = ["a1", "a2", "a3", "a4", "a5"];
    let mut world = World::up(tree(&names));
    world.stubborn = vec!["a1".into(), "a2".into()];
    world.new_code(2, tree(&names), &names);
    world.check(&["move a1", "move a2"]);
    world.pass(Duration::from_millis(50));
    let trace = world.take_trace();
    assert_eq!(trace.iter().filter(|line| line.starts_with("leave")).count(), 3, "{trace:?}");
    assert!(world.reloads.is_empty());
    for late in ["a1", "a2"] {
        world.gives_its_state(late);
    }
    assert_eq!(fates(&mut world).len(), 5);
}

#[test]
fn a_second_reload_takes_over_from_one_that_is_not_over() {
    let mut world = World::up(tree(&["x", "y"]));
    world.stubborn = vec!["x".into(), "y".into()];
    world.new_code(2, tree(&["x", "y"]), &["x", "y"]);
    world.new_code(3, tree(&["x", "y"]), &["y"]);
    world.stubborn.clear();
    for label in ["x", "y"] {
        world.gives_its_state(label);
    }
    assert_eq!(fates(&mut world), [("x".to_owned(), moved()), ("y".to_owned(), moved())]);
    assert_eq!((world.codes["x"], world.codes["y"]), (Version(3), Version(3)));
}

#[test]
fn a_process_that_does_not_leave_is_killed() {
    let mut world = World::up(tree(&["a"]));
    world.lazy = true;
    world.new_code(2, tree(&["a"]), &["a"]);
    assert!(world.reacts(0) && world.reacts(0));
    assert_eq!(world.waiting(), 1);
    world.pass(Duration::from_secs(5));
    assert_eq!(world.waiting(), 0);
    let status = Status::Exited(0);
    world.death_of("a", status);
}

/// The same tree, otherwise declared.
fn declared(names: &[&str], change: impl Fn(&str, &mut ActorSpec)) -> SupervisorSpec {
    let of = |name: &&str| {
        actor_with(name, |spec| {
            spec.modules = vec![(*name).to_owned()];
            change(name, spec);
        })
    };
    supervisor(Group::OneForOne, names.iter().map(of).chain([actor("b")]).collect())
}

fn sorted(world: &World) -> Vec<String> {
    let mut running = world.running();
    running.sort();
    running
}

#[test]
fn children_come_and_go_with_the_declaration() {
    let mut world = World::up(tree(&["x", "y"]));
    world.asks("b", ProcessRequest::Monitor(name("x")));
    world.new_code(2, tree(&["y", "z"]), &[]);
    assert_eq!(sorted(&world), ["b", "y", "z"]);
    assert_eq!(fates(&mut world), [("x".to_owned(), Fate::Removed), ("z".to_owned(), Fate::Added)]);
    assert_eq!(world.signals("b").len(), 1, "one that is removed has ended");
    // They come back with their supervisor, and the others do not.
    world.is_shot("z");
    assert_eq!((sorted(&world).len(), world.codes["z"]), (3, Version(2)));
    world.new_code(3, tree(&["x", "y"]), &[]);
    assert_eq!(sorted(&world), ["b", "x", "y"]);
}

#[test]
fn one_that_is_declared_otherwise_starts_over_alone_and_the_others_are_left_alone() {
    let mut world = World::up(tree(&["x", "y"]));
    world.asks("b", ProcessRequest::Monitor(name("x")));
    let pid = world.process("x").pid;
    world.take_trace();
    world.new_code(
        2,
        declared(&["x", "y"], |name, spec| spec.start = if name == "x" { vec![1] } else { Vec::new() }),
        &[],
    );
    world.check(&["stop x", "start x"]);
    assert_eq!(fates(&mut world), [("x".to_owned(), Fate::Respecified)]);
    assert_eq!((world.process("x").pid, world.signals("b").len()), (pid, 0));
}

#[test]
fn a_new_declaration_that_does_not_start_is_taken_back() {
    let mut world = World::up(tree(&["x"]));
    world.fails.insert("x".into(), 1);
    world.new_code(2, declared(&["x"], |_, spec| spec.start = vec![1]), &[]);
    world.check(&["stop x", "start x", "report x Undone to v2, 0 lost", "start x"]);
    assert_eq!(world.starts_of("x"), [vec![], vec![1], vec![]]);
}

#[test]
fn a_child_that_is_added_and_does_not_start_is_named() {
    let mut world = World::up(tree(&["x"]));
    world.fails.insert("y".into(), 1);
    world.new_code(2, tree(&["x", "y"]), &[]);
    let fates = fates(&mut world);
    assert!(matches!(&fates[..], [(name, Fate::Failed { .. })] if name == "y"), "{fates:?}");
    assert_eq!(sorted(&world), ["b", "x"]);
}

#[test]
fn a_name_may_pass_from_one_that_goes_to_one_that_comes() {
    let renamed = |id: &str| {
        let mut child = actor("same");
        child.id = id.into();
        supervisor(Group::OneForOne, vec![child, actor("b")])
    };
    let mut world = World::up(renamed("old"));
    world.new_code(2, renamed("new"), &[]);
    assert_eq!(fates(&mut world), [("same".to_owned(), Fate::Respecified)]);
    assert_eq!(sorted(&world), ["b", "same"]);
}

#[test]
fn a_supervisor_takes_new_flags_and_its_children_as_it_runs() {
    let nested = |most: u32, names: &[&str]| {
        let below = SupervisorSpec {
            max_restarts: most,
            ..supervisor(Group::OneForOne, names.iter().map(|it| actor(it)).collect())
        };
        supervisor(Group::OneForOne, vec![inner("pool", below), actor("b")])
    };
    let mut world = World::up(nested(0, &["x"]));
    world.new_code(2, nested(5, &["x", "y"]), &[]);
    assert_eq!(sorted(&world), ["b", "x", "y"]);
    world.take_trace();
    world.crashes("x");
    world.check(&["report x Restarts", "start x"]);
}

/// Handles so many messages.
fn handles(world: &mut World, label: &str, messages: usize) {
    for _ in 0..messages {
        world.sends("b", name(label), Kind::Cast, "work");
        world.works(label);
    }
}

#[test]
fn the_old_code_is_kept_for_whoever_still_runs_it() {
    let never = || {
        let change = |spec: &mut ActorSpec| {
            spec.modules = vec!["n".into()];
            spec.reload = Reload::Never;
            spec.limits = Limits { max_messages: Some(2), ..Limits::default() };
        };
        supervisor(Group::OneForOne, vec![actor_with("n", change), actor("b")])
    };
    let mut world = World::up(never());
    world.new_code(2, never(), &["n"]);
    assert_eq!(world.needed, [Version(1), Version(2)]);
    // One that only goes on in a new process keeps its code, and another incarnation has the newest.
    world.codes.clear();
    handles(&mut world, "n", 2);
    assert_eq!(world.codes["n"], Version(1));
    world.is_shot("n");
    assert_eq!((world.codes["n"], &world.needed[..]), (Version(2), &[Version(2)][..]));
}

#[test]
fn one_passes_its_probation_while_others_have_not_moved() {
    let mut world = World::up(tree(&["x", "y"]));
    world.stubborn = vec!["y".into()];
    world.new_code(2, tree(&["x", "y"]), &["x", "y"]);
    handles(&mut world, "x", 10);
    assert_eq!(world.needed, [Version(1), Version(2)]);
    world.stubborn.clear();
    world.gives_its_state("y");
    world.crashes("y");
    assert_eq!(world.codes["y"], Version(1));
}

#[test]
fn a_class_is_held_back_until_its_own_code_changes_and_not_for_the_code_of_others() {
    let all = ["x", "y"];
    let tree = |names: &[&str]| {
        declared(names, |name, spec| {
            spec.class = format!("app.{name}");
            spec.limits = Limits { max_messages: Some(20), ..Limits::default() };
        })
    };
    let mut world = World::up(tree(&all));
    world.new_code(2, tree(&all), &["x"]);
    world.crashes("x");
    assert_eq!(world.codes["x"], Version(1));
    fates(&mut world);
    // Other code has changed: `x` is not concerned, in whatever process.
    world.new_code(3, tree(&all), &["y"]);
    assert_eq!(fates(&mut world), [("y".to_owned(), moved())]);
    world.codes.remove("x");
    handles(&mut world, "x", 20);
    assert_eq!(world.codes["x"], Version(1));
    world.is_shot("x");
    assert_eq!((world.codes["x"], world.codes["y"]), (Version(1), Version(3)));
    // Good code, and then the same bad code again beside good code of another class.
    let bad = world.modules["x"];
    world.new_code(4, tree(&all), &["x"]);
    assert_eq!(fates(&mut world), [("x".to_owned(), moved())]);
    world.modules.insert("x".into(), bad);
    world.new_code(5, tree(&all), &["y"]);
    let of = fates(&mut world);
    assert!(
        matches!(&of[..], [(x, Fate::Stays { why }), (y, Fate::Moved { .. })]
        if x == "x" && y == "y" && why.contains("has failed before")),
        "{of:?}"
    );
    assert_eq!((world.codes["x"], world.codes["y"]), (Version(4), Version(5)));
    // Whoever asks for it gets it, and nobody else moves.
    assert!(world.core.is_anyone_behind());
    world.new_version(6, tree(&all), true);
    assert_eq!(fates(&mut world), [("x".to_owned(), moved())]);
    assert!(!world.core.is_anyone_behind());
}

#[test]
fn code_that_is_as_it_was_needs_no_move() {
    let mut world = World::up(tree(&["a"]));
    world.stubborn = vec!["a".into()];
    let before = world.modules.clone();
    world.new_code(2, tree(&["a"]), &["a"]);
    world.modules = before;
    world.new_version(3, tree(&["a"]), false);
    world.stubborn.clear();
    // It was asked already, and moves for once.
    world.gives_its_state("a");
    assert_eq!((fates(&mut world).len(), world.codes["a"]), (1, Version(3)));
    world.new_version(4, tree(&["a"]), false);
    assert_eq!(fates(&mut world), []);
}

#[test]
fn a_fix_that_is_saved_before_the_code_before_fails_is_taken_over() {
    for dies_as_it_takes_over in [false, true] {
        let mut world = World::up(tree(&["a"]));
        world.lazy = true;
        world.new_code(2, tree(&["a"]), &["a"]);
        if dies_as_it_takes_over {
            world.fails.insert("a".into(), 1);
            assert!(world.reacts(0), "it gives its state");
            world.new_code(3, tree(&["a"]), &["a"]);
        } else {
            while world.reacts(0) {}
            world.sends("b", name("a"), Kind::Cast, "raises");
            world.begins("a");
            world.new_code(3, tree(&["a"]), &["a"]);
            world.crashes("a");
        }
        world.lazy = false;
        while world.reacts(0) {}
        let last = world.reloads.pop().expect("it is over");
        assert_eq!((last.version, &last.changes[0].fate), (Version(3), &moved()));
        assert_eq!(world.codes["a"], Version(3));
    }
}

#[test]
fn code_on_probation_that_is_followed_by_worse_code_is_undone_both_times() {
    let mut world = World::up(tree(&["a"]));
    for version in [2, 3, 4] {
        world.new_code(version, tree(&["a"]), &["a"]);
        handles(&mut world, "a", 1);
    }
    world.take_trace();
    world.crashes("a");
    world.check(&["report a Undone to v3, 1 lost", "start a"]);
    // Back to what has proved itself.
    world.crashes("a");
    world.check(&["report a Undone to v1, 1 lost", "start a"]);
    assert_eq!(world.codes["a"], Version(1));
    world.crashes("a");
    world.check(&["report a Restarts", "start a"]);
    assert_eq!(world.codes["a"], Version(1));
}

#[test]
fn a_move_that_fails_does_not_end_the_probation_of_the_code_before() {
    let mut world = World::up(tree(&["a"]));
    world.new_code(2, tree(&["a"]), &["a"]);
    world.fails.insert("a".into(), 1);
    world.new_code(3, tree(&["a"]), &["a"]);
    assert_eq!(world.codes["a"], Version(2));
    world.take_trace();
    world.crashes("a");
    world.check(&["report a Undone to v1, 0 lost", "start a"]);
    world.reloads.clear();
    // And it ends as if nothing had been.
    world.new_code(4, tree(&["a"]), &["a"]);
    world.fails.insert("a".into(), 1);
    world.new_code(5, tree(&["a"]), &["a"]);
    world.pass(Duration::from_secs(10));
    world.take_trace();
    world.crashes("a");
    world.check(&["report a Restarts", "start a"]);
}

#[test]
fn probation_ends_by_time_in_one_that_goes_on_in_a_new_process() {
    let tree = || declared(&["a"], |_, spec| spec.limits = Limits { max_messages: Some(2), ..Limits::default() });
    let mut world = World::up(tree());
    world.new_code(2, tree(), &["a"]);
    world.take_trace();
    handles(&mut world, "a", 2);
    world.check(&["recycle a", "start a"]);
    world.pass(Duration::from_secs(10));
    assert_eq!(world.needed, [Version(2)]);
    world.take_trace();
    world.crashes("a");
    world.check(&["report a Restarts", "start a"]);
}

#[test]
fn what_undone_code_has_made_and_put_off_goes_with_it() {
    let mut world = World::up(tree(&["a"]));
    world.new_code(2, tree(&["a"]), &["a"]);
    let records = world.core.records();
    world.asks("a", ProcessRequest::Monitor(name("b")));
    let own = Address::Pid(world.process("a").pid);
    let every = ProcessRequest::SendAfter {
        timer: 1,
        to: own,
        after_ms: 60_000,
        every_ms: Some(60_000),
        method: "tick".into(),
        is_method: true,
    };
    world.asks("a", every);
    enter(&mut world, "a", Registry::Names, "further");
    assert!(world.found("further").is_some());
    world.sends("b", name("a"), call(7), "put off");
    world.works("a");
    world.crashes("a");
    assert_eq!((world.codes["a"], world.core.records()), (Version(1), records));
    assert!(world.found("further").is_none());
    assert_eq!(world.replies.len(), 1, "its caller hears that nobody will answer");
}

#[test]
fn a_changed_argument_is_not_lost_in_one_that_is_moving() {
    let changed = || declared(&["a"], |_, spec| spec.start = vec![1]);
    let mut world = World::up(tree(&["a"]));
    world.stubborn = vec!["a".into()];
    world.new_code(2, tree(&["a"]), &["a"]);
    world.new_code(3, changed(), &["a"]);
    world.stubborn.clear();
    world.gives_its_state("a");
    assert_eq!(world.starts_of("a").last(), Some(&vec![1]));
    assert_eq!(fates(&mut world), [("a".to_owned(), Fate::Respecified)]);
    // Nor if another version comes before its turn.
    let mut world = World::up(tree(&["a"]));
    world.lazy = true;
    world.new_code(2, changed(), &[]);
    world.new_code(3, changed(), &["a"]);
    while world.reacts(0) {}
    assert_eq!((world.starts_of("a").last(), world.codes["a"]), (Some(&vec![1]), Version(3)));
    assert_eq!(fates(&mut world), [("a".to_owned(), Fate::Respecified)]);
}

#[test]
fn a_child_that_has_not_started_is_tried_again_when_its_code_changes() {
    let with_y = || declared(&["x", "y"], |_, _| ());
    let mut world = World::up(tree(&["x"]));
    world.fails.insert("y".into(), 1);
    world.new_code(2, with_y(), &[]);
    assert!(matches!(&fates(&mut world)[..], [(_, Fate::Failed { what: Failure::Start, .. })]));
    world.new_code(3, with_y(), &["x"]);
    assert_eq!(fates(&mut world), [("x".to_owned(), moved())]);
    world.new_code(4, with_y(), &["y"]);
    assert_eq!(fates(&mut world), [("y".to_owned(), Fate::Added)]);
    assert_eq!((sorted(&world).len(), world.codes["y"]), (3, Version(4)));
}

#[test]
fn a_name_may_pass_from_one_supervisor_to_a_later_or_an_earlier_one() {
    let nested = |first: &[&str], second: &[&str]| {
        let below = |names: &[&str]| supervisor(Group::OneForOne, names.iter().map(|it| actor(it)).collect());
        supervisor(Group::OneForOne, vec![inner("one", below(first)), inner("two", below(second)), actor("b")])
    };
    for (from, to) in [(["x"].as_slice(), [].as_slice()), (&[], &["x"])] {
        let mut world = World::up(nested(from, to));
        world.lazy = true;
        world.new_code(2, nested(to, from), &[]);
        while world.reacts(0) {}
        assert_eq!(sorted(&world), ["b", "x"]);
        assert_eq!(fates(&mut world), [("x".to_owned(), Fate::Respecified)]);
    }
}

#[test]
fn children_have_the_order_of_the_declaration() {
    let of = |names: &[&str]| supervisor(Group::RestForOne, names.iter().map(|it| actor(it)).collect());
    let mut world = World::up(of(&["a", "c"]));
    world.new_code(2, of(&["a", "b", "c"]), &[]);
    world.take_trace();
    world.crashes("b");
    world.check(&["report b Restarts", "stop c", "start b", "start c"]);
    world.new_code(3, of(&["c", "b", "a"]), &[]);
    world.crashes("c");
    let trace = world.take_trace();
    assert_eq!(trace[trace.len() - 3..], ["start c", "start b", "start a"]);
}

#[test]
fn partitions_and_a_limit_of_children_may_change() {
    let pool = |kind, names: &[&str]| {
        let below = SupervisorSpec { kind, ..supervisor(Group::OneForOne, names.iter().map(|it| actor(it)).collect()) };
        supervisor(Group::OneForOne, vec![inner("pool", below), actor("b")])
    };
    let mut world = World::up(pool(SupervisorKind::Partition, &["p0", "p1"]));
    world.new_code(2, pool(SupervisorKind::Partition, &["p0", "p1", "p2"]), &[]);
    assert_eq!(sorted(&world), ["b", "p0", "p1", "p2"]);
    let mut world = World::up(pool(SupervisorKind::Dynamic { max_children: Some(1) }, &[]));
    world.take_trace();
    world.new_code(2, pool(SupervisorKind::Dynamic { max_children: None }, &[]), &[]);
    assert_eq!(fates(&mut world), []);
}

#[test]
fn a_hook_of_the_old_code_that_fails_holds_nothing_back() {
    let mut world = World::up(tree(&["a"]));
    world.stubborn = vec!["a".into()];
    world.new_code(2, tree(&["a"]), &["a"]);
    world.stubborn.clear();
    world.tell(Event::CannotMove { process: world.process("a"), why: "boom".into(), is_failure: true });
    assert!(matches!(&fates(&mut world)[..], [(_, Fate::Failed { what: Failure::OldCode, .. })]));
    assert!(world.core.is_anyone_behind());
    world.is_shot("a");
    assert_eq!(world.codes["a"], Version(2));
}

#[test]
fn slow_starts_do_not_hold_up_the_others() {
    let names = ["a1", "a2", "a3", "a4"];
    let mut world = World::up(tree(&names));
    world.slow = vec!["a1".into(), "a2".into()];
    world.new_code(2, tree(&names), &names);
    world.pass(Duration::from_millis(300));
    assert_eq!((world.codes["a3"], world.codes["a4"]), (Version(2), Version(2)));
}

#[test]
fn one_that_dies_as_it_is_to_move_is_named() {
    let mut world = World::up(tree(&["a"]));
    world.stubborn = vec!["a".into()];
    world.new_code(2, tree(&["a"]), &["a"]);
    world.stubborn.clear();
    world.is_shot("a");
    let of = fates(&mut world);
    assert!(matches!(&of[..], [(_, Fate::StartedOver { why: Some(why), .. })] if why.contains("it ended")), "{of:?}");
}

#[test]
fn a_child_that_is_new_below_a_supervisor_that_goes_keeps_no_reload_open() {
    let one = |names: &[&str]| inner("one", supervisor(Group::OneForOne, names.iter().map(|it| actor(it)).collect()));
    let mut world = World::up(supervisor(Group::OneForOne, vec![one(&["x"]), actor("slow"), actor("b")]));
    world.lazy = true;
    world.new_code(2, supervisor(Group::OneForOne, vec![one(&["x", "n"]), actor("b")]), &[]);
    world.new_code(3, supervisor(Group::OneForOne, vec![actor("b")]), &[]);
    while world.reacts(0) {}
    assert_eq!((sorted(&world), world.reloads.len()), (vec!["b".to_owned()], 1));
    assert_eq!(world.needed, [Version(3)]);
}

#[test]
fn one_that_is_still_starting_keeps_its_version() {
    let mut world = World::up(tree(&["x", "y"]));
    world.lacking = vec!["x".into()];
    world.is_shot("x");
    for version in [2, 3] {
        world.new_code(version, tree(&["x", "y"]), &["y"]);
    }
    world.lacking.clear();
    // The world refuses versions that are let go.
    world.pass(Duration::from_secs(5));
    assert!(world.is_running("x"));
}

#[test]
fn arguments_that_are_refused_are_tried_again_when_they_or_the_code_change() {
    let with = |start: u8| declared(&["x"], move |_, spec| spec.start = vec![start]);
    let mut world = World::up(with(0));
    world.fails.insert("x".into(), 1);
    world.new_code(2, with(1), &[]);
    assert_eq!(world.starts_of("x"), [[0], [1], [0]]);
    assert!(world.core.is_anyone_behind());
    fates(&mut world);
    // Not by itself.
    world.new_code(3, with(1), &[]);
    assert_eq!((fates(&mut world), world.starts_of("x").len()), (vec![], 3));
    world.new_code(4, with(1), &["x"]);
    assert_eq!(fates(&mut world), [("x".to_owned(), Fate::Respecified)]);
    world.new_code(5, with(2), &[]);
    assert_eq!(world.starts_of("x"), [[0], [1], [0], [1], [2]]);
    // What has started has proved itself: a death is an ordinary one, and keeps the arguments.
    world.take_trace();
    world.crashes("x");
    world.check(&["report x Restarts", "start x"]);
    assert_eq!(world.starts_of("x").last(), Some(&vec![2]));
}

#[test]
fn other_options_are_taken_with_a_move() {
    let with = |concurrency| declared(&["x"], move |_, spec| spec.concurrency = concurrency);
    let mut world = World::up(with(1));
    world.take_trace();
    world.new_code(2, with(5), &[]);
    world.check(&["move x", "start x", "leave x"]);
    assert_eq!((fates(&mut world), world.codes["x"]), (vec![("x".to_owned(), moved())], Version(2)));
}

#[test]
fn actors_of_one_class_whose_arguments_come_from_other_modules_are_held_back_apart() {
    let tree = || {
        declared(&["p", "q"], |name, spec| {
            spec.class = "app.C".into();
            spec.modules = vec!["app".into(), format!("of_{name}")];
        })
    };
    let mut world = World::up(tree());
    world.new_code(2, tree(), &["of_p"]);
    world.crashes("p");
    assert_eq!(world.codes["p"], Version(1));
    fates(&mut world);
    world.new_code(3, tree(), &["of_q"]);
    assert_eq!(fates(&mut world), [("q".to_owned(), moved())]);
    world.new_code(4, tree(), &["of_p"]);
    assert_eq!(fates(&mut world), [("p".to_owned(), moved())]);
    assert!(!world.core.is_anyone_behind());
}

#[test]
fn one_that_is_busy_keeps_its_version_and_none_between() {
    let mut world = World::up(tree(&["a"]));
    world.stubborn = vec!["a".into()];
    for version in 2..20 {
        world.new_code(version, tree(&["a"]), &["a"]);
    }
    assert_eq!(world.needed, [Version(1), Version(19)]);
    assert_eq!(world.core.reload_waits_for(), ["a"]);
}

#[test]
fn what_new_code_has_cancelled_and_linked_is_as_it_was_if_it_fails() {
    for takes_over in [false, true] {
        let mut world = World::up(tree(&["a", "p"]));
        let (own, other) = (world.process("a").pid, world.process("p").pid);
        let every = ProcessRequest::SendAfter {
            timer: 1,
            to: Address::Pid(own),
            after_ms: 1000,
            every_ms: Some(1000),
            method: "tick".into(),
            is_method: true,
        };
        world.asks("a", every);
        let records = world.core.records();
        world.slow = vec!["a".into()];
        world.new_code(2, tree(&["a", "p"]), &["a"]);
        world.slow.clear();
        if takes_over {
            world.starts("a");
        }
        world.asks("a", ProcessRequest::CancelTimer { maker: own, timer: 1 });
        world.asks("a", ProcessRequest::Link(other));
        world.asks("a", ProcessRequest::TrapExits(true));
        world.crashes("a");
        assert_eq!((world.codes["a"], world.core.records()), (Version(1), records));
        world.pass(Duration::from_secs(1));
        assert_eq!(world.delivered("a"), ["tick"]);
        world.is_shot("p");
        assert_eq!(world.process("a").pid, own);
    }
}

/// What a new version has for `a`.
#[derive(Clone, Copy, Debug)]
enum Edit {
    /// Other code.
    Change,
    /// The same code: something else has changed.
    Other,
    /// The code that the node has begun with.
    Restore,
}

/// What befalls an actor `a` while its code changes again and again.
#[derive(Clone, Debug)]
enum Step {
    Send,
    /// The next message is handled, if the process has one and is up.
    Work,
    NewCode(Edit),
    /// A process does the next thing that it was told.
    React(usize),
    /// The next start fails.
    Fail,
    /// Its process dies, or the one that waits.
    Shoot {
        is_kept: bool,
    },
    Stop,
    Pass(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => Just(Step::Send),
        6 => Just(Step::Work),
        3 => prop_oneof![3 => Just(Edit::Change), 1 => Just(Edit::Other), 1 => Just(Edit::Restore)].prop_map(Step::NewCode),
        12 => (0usize..8).prop_map(Step::React),
        1 => Just(Step::Fail),
        2 => any::<bool>().prop_map(|is_kept| Step::Shoot { is_kept }),
        1 => Just(Step::Stop),
        1 => (1u64..12_000).prop_map(Step::Pass),
    ];
    proptest::collection::vec(step, 1..120)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    /// Messages are handled once, in order, or not at all if a death found them in hand; no process is left over; and when
    /// all is quiet, `a` runs the last version, or one that was held back for it.
    #[test]
    fn whatever_befalls_it_mail_is_kept_and_no_process_is_left(steps in steps(), runs_init in any::<bool>()) {
        let spec = || SupervisorSpec { max_restarts: 1000, ..tree(&["a"]) };
        let mut world = World::up(spec());
        let records = world.core.records();
        world.runs_init = runs_init;
        world.lazy = true;
        let (mut sent, mut version, mut handled) = (0, 1, Vec::new());
        for step in steps {
            match step {
                Step::Send => {
                    world.sends("b", name("a"), Kind::Cast, &sent.to_string());
                    sent += 1;
                }
                Step::Work => handled.extend(world.is_running("a").then(|| world.works("a")).flatten()),
                Step::NewCode(edit) => {
                    version += 1;
                    match edit {
                        Edit::Change => drop(world.modules.insert("a".into(), u64::from(version))),
                        Edit::Other => {}
                        Edit::Restore => drop(world.modules.remove("a")),
                    }
                    world.new_version(version, spec(), false);
                }
                Step::React(choice) => drop(world.reacts(choice)),
                Step::Fail => drop(world.fails.insert("a".into(), 1)),
                Step::Shoot { is_kept: true } => {
                    if let Some(kept) = world.a_waiting_process() {
                        world.kept_is_shot(kept);
                    }
                }
                Step::Shoot { is_kept: false } => if world.is_running("a") {
                    world.is_shot("a");
                },
                Step::Stop => {
                    world.asks("b", ProcessRequest::Stop { to: name("a"), reason: ExitReason::SHUTDOWN });
                }
                Step::Pass(ms) => world.pass(Duration::from_millis(ms)),
            }
            prop_assert!(world.waiting() <= 1 + world.leaving());
        }
        world.fails.clear();
        for _ in 0..10_000 {
            let has_reacted = world.reacts(0);
            let worked = world.is_running("a").then(|| world.works("a")).flatten();
            if !has_reacted && worked.is_none() {
                break;
            }
            handled.extend(worked);
        }
        let numbers: Vec<u32> = handled.iter().map(|it| it.parse().expect("a number")).collect();
        prop_assert!(numbers.is_sorted_by(|a, b| a < b), "twice, or out of order: {:?}", numbers);
        prop_assert_eq!(numbers.len(), sent as usize, "lost: {:?} of {}", numbers, sent);
        world.pass(Duration::from_secs(60));
        while world.reacts(0) {}
        prop_assert_eq!(world.waiting(), 0);
        prop_assert_eq!(world.core.records(), records);
        prop_assert!(world.needed.contains(&Version(version)) && world.needed.len() <= 2, "{:?}", world.needed);
        if world.is_running("a") {
            // The world has every version that is needed now.
            world.lazy = false;
            world.is_shot("a");
        }
    }
}
