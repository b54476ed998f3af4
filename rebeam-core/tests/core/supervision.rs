//! What the core decides about starts, deaths and stops, in virtual time.

use std::time::Duration;

use crate::world::{World, actor, crash, inner, supervisor};
use rebeam_core::Event;
use rebeam_protocol::exit::ExitReason;
use rebeam_protocol::outside::{Answer, TreeRequest};
use rebeam_protocol::spec::{AutoShutdown, ChildSpec, Restart, Shutdown, Strategy, SupervisorSpec};

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn abc(strategy: Strategy) -> SupervisorSpec {
    supervisor(strategy, ["a", "b", "c"].map(actor).into())
}

#[test]
fn sup_010_sup_011_children_start_one_after_another_and_only_then_the_tree_is_up() {
    let mut world = World::new(abc(Strategy::OneForOne));
    world.slow = vec!["b".into()];
    world.tell(Event::Boot);
    world.check(&["start a", "start b"]);
    world.starts("b");
    world.check(&["start c", "up"]);
}

#[test]
fn sup_012_a_failed_start_is_rolled_back_in_reverse_without_retry() {
    let mut world = World::new(supervisor(Strategy::OneForOne, ["a", "b", "c", "d"].map(actor).into()));
    world.fails.insert("c".into(), 1);
    world.tell(Event::Boot);
    let expected = ["start a", "start b", "start c", "stop b in turn", "stop a in turn", "failed c: ValueError: boom"];
    world.check(&expected);
    assert!(world.running().is_empty());
}

#[test]
fn sup_012_a_failure_deep_in_the_tree_names_the_innermost_child() {
    let deep = inner("deep", supervisor(Strategy::OneForOne, vec![actor("x"), actor("y")]));
    let mut world = World::new(supervisor(Strategy::OneForOne, vec![actor("a"), deep]));
    world.fails.insert("y".into(), 1);
    world.tell(Event::Boot);
    let expected = ["start a", "start x", "start y", "stop x in turn", "stop a in turn", "failed y: ValueError: boom"];
    world.check(&expected);
}

#[test]
fn sup_020_to_sup_023_who_comes_back_after_which_end() {
    let clean = [ExitReason::Normal, ExitReason::SHUTDOWN, ExitReason::Shutdown(Some("x".into()))];
    let abnormal = [crash(), ExitReason::ExitCode(2), ExitReason::Other("disk full".into())];
    for (restart, after_clean, after_abnormal) in
        [(Restart::Permanent, true, true), (Restart::Transient, false, true), (Restart::Temporary, false, false)]
    {
        for (reasons, comes_back) in [(&clean, after_clean), (&abnormal, after_abnormal)] {
            for reason in reasons {
                let child = ChildSpec { restart, ..actor("a") };
                let mut world = World::up(supervisor(Strategy::OneForOne, vec![child]));
                world.ends("a", reason.clone());
                assert_eq!(world.is_running("a"), comes_back, "{restart:?} after {reason}");
            }
        }
    }
}

#[test]
fn sup_023_temporary_children_do_not_count() {
    let names: Vec<String> = (0..10).map(|n| format!("t{n}")).collect();
    let child = |name: &String| ChildSpec { restart: Restart::Temporary, ..actor(name) };
    let spec = SupervisorSpec { max_restarts: 0, ..supervisor(Strategy::OneForAll, names.iter().map(child).collect()) };
    let mut world = World::up(spec);
    names.iter().for_each(|name| world.crashes(name));
    assert!(!world.take_trace().iter().any(|line| line.contains("ended") || line.contains("stop")));
}

#[test]
fn sup_025_who_is_reported() {
    let transient = ChildSpec { restart: Restart::Transient, ..actor("t") };
    let mut world = World::up(supervisor(Strategy::OneForOne, vec![actor("p"), transient]));
    world.ends("p", ExitReason::Normal);
    world.check(&["report p Restarts", "start p"]);
    world.crashes("t");
    world.check(&["report t Restarts", "start t"]);
    world.ends("t", ExitReason::Normal);
    world.check(&[]);
}

#[test]
fn sup_034_an_end_that_leads_to_no_restart_leaves_the_group_alone() {
    let quiet = [
        ChildSpec { restart: Restart::Transient, ..actor("t") },
        ChildSpec { restart: Restart::Temporary, ..actor("x") },
    ];
    let mut world = World::up(supervisor(Strategy::OneForAll, [vec![actor("a")], quiet.into()].concat()));
    world.ends("t", ExitReason::Normal);
    world.crashes("x");
    world.check(&["report x StaysDown"]);
    assert!(world.is_running("a"));
}

#[test]
fn sup_033_who_is_late_in_a_group_restart_is_killed_and_the_group_comes_up() {
    let late = ChildSpec { shutdown: Shutdown::Timeout(200), ..actor("b") };
    let mut world = World::up(supervisor(Strategy::OneForAll, vec![actor("a"), late, actor("c")]));
    world.stubborn = vec!["b".into()];
    world.crashes("a");
    world.check(&["report a Restarts", "stop c", "stop b"]);
    world.pass(ms(199));
    world.check(&[]);
    world.pass(ms(1));
    world.check(&["kill b", "report b Restarts", "start a", "start b", "start c"]);
}

#[test]
fn sup_042_sup_044_every_try_counts_and_then_the_rest_is_stopped() {
    let mut world = World::up(abc(Strategy::OneForOne));
    world.fails.insert("a".into(), 100);
    world.crashes("a");
    let expected = [
        "report a Restarts",
        "start a",
        "report a Restarts",
        "start a",
        "report a Restarts",
        "start a",
        "report a GivesUp",
        "stop c in turn",
        "stop b in turn",
        "gave up",
    ];
    world.check(&expected);
}

#[test]
fn sup_043_requests_are_heard_between_two_tries() {
    let spec = SupervisorSpec { max_restarts: 1000, ..abc(Strategy::OneForOne) };
    let mut world = World::up(spec);
    world.slow = vec!["a".into()];
    world.crashes("a");
    world.requests(TreeRequest::Stop { name: "b".into() });
    assert!(world.is_running("b"), "it waits for the try under way");
    // The try fails; before the next one the request has its turn.
    world.is_shot("a");
    assert!(!world.is_running("b"));
    assert_eq!(world.outside, [Answer::Ok]);
    assert!(world.is_running("a"), "and the next try goes on");
}

#[test]
fn sup_041_sup_045_the_window_is_the_supervisors_and_slides() {
    let spec = SupervisorSpec { max_restarts: 1, max_ms: 1000, ..abc(Strategy::OneForOne) };
    let mut world = World::up(spec);
    for name in ["a", "b", "c", "a"] {
        world.crashes(name);
        world.pass(ms(1100));
    }
    assert_eq!(world.running().len(), 3);
    world.crashes("a");
    world.crashes("b");
    assert!(world.running().is_empty());
}

#[test]
fn sup_050_sup_055_sup_056_a_stop_goes_in_reverse_and_skips_the_dead() {
    let mut world = World::up(abc(Strategy::OneForOne));
    world.stubborn = vec!["c".into()];
    world.tell(Event::StopNode);
    world.check(&["stop c in turn"]);
    // B dies by itself meanwhile: not restarted, not waited for; its end is still reported (SUP-055).
    world.is_shot("b");
    world.check(&[]);
    world.is_shot("c");
    world.check(&["report c StaysDown", "report b StaysDown", "stop a in turn", "ended"]);
}

#[test]
fn sup_052_sup_053_sup_054_each_is_stopped_by_its_own_setting() {
    let children = vec![
        ChildSpec { shutdown: Shutdown::Infinity, ..actor("patient") },
        ChildSpec { shutdown: Shutdown::BrutalKill, ..actor("brutal") },
        ChildSpec { shutdown: Shutdown::Timeout(0), ..actor("zero") },
    ];
    let mut world = World::up(supervisor(Strategy::OneForOne, children));
    world.stubborn = vec!["patient".into(), "zero".into()];
    world.tell(Event::StopNode);
    world.pass(ms(0));
    world.check(&["stop zero in turn", "kill zero", "report zero StaysDown", "kill brutal", "stop patient in turn"]);
    world.pass(Duration::from_secs(100_000));
    world.check(&[]);
    world.is_shot("patient");
    world.check(&["report patient StaysDown", "ended"]);
}

#[test]
fn a_second_order_hurries_and_a_third_kills() {
    let mut world = World::up(abc(Strategy::OneForOne));
    world.stubborn = vec!["b".into(), "c".into()];
    world.tell(Event::StopNode);
    world.tell(Event::Hurry { limit_ms: 100 });
    world.check(&["stop c in turn"]);
    world.pass(ms(100));
    world.check(&["kill c", "report c StaysDown", "stop b"]);
    world.tell(Event::KillAll);
    let mut rest = world.take_trace();
    rest.sort();
    assert_eq!(rest, ["ended", "kill a", "kill b"]);
}

#[test]
fn sup_061_sup_062_sup_063_auto_shutdown() {
    let significant = |name| ChildSpec { significant: true, restart: Restart::Transient, ..actor(name) };
    let spec = |auto_shutdown| SupervisorSpec {
        auto_shutdown,
        ..supervisor(Strategy::OneForOne, vec![actor("plain"), significant("s"), significant("t")])
    };
    let mut world = World::up(spec(AutoShutdown::AnySignificant));
    world.crashes("s");
    world.check(&["report s Restarts", "start s"]);
    world.requests(TreeRequest::Stop { name: "t".into() });
    world.check(&["stop t in turn"]);
    world.ends("s", ExitReason::Normal);
    world.check(&["stop plain in turn", "ended"]);

    let mut world = World::up(spec(AutoShutdown::AllSignificant));
    world.ends("s", ExitReason::Normal);
    world.check(&[]);
    world.ends("t", ExitReason::Normal);
    world.check(&["stop plain in turn", "ended"]);
}

#[test]
fn sup_085_sup_086_sup_087_an_inner_supervisor_is_a_child_like_another() {
    let spec = SupervisorSpec { max_restarts: 1, ..supervisor(Strategy::OneForOne, vec![actor("x"), actor("y")]) };
    let root = supervisor(Strategy::OneForOne, vec![actor("a"), inner("in", spec), actor("b")]);
    let mut world = World::up(root);
    world.crashes("x");
    world.check(&["report x Restarts", "start x"]);
    world.crashes("x");
    world.check(&["report x GivesUp", "stop y in turn", "start x", "start y"]);
    // Its history is empty again.
    world.crashes("x");
    world.check(&["report x Restarts", "start x"]);
    world.tell(Event::StopNode);
    world.check(&["stop b in turn", "stop y in turn", "stop x in turn", "stop a in turn", "ended"]);
}

#[test]
fn sup_089_limits_multiply_up_the_tree() {
    let spec = |children| SupervisorSpec { max_restarts: 2, ..supervisor(Strategy::OneForOne, children) };
    let mut world = World::up(spec(vec![inner("in", spec(vec![actor("leaf")]))]));
    let mut starts = 1;
    while world.is_running("leaf") {
        world.crashes("leaf");
        starts += world.take_trace().iter().filter(|line| *line == "start leaf").count();
    }
    assert_eq!(starts, 9);
}

#[test]
fn gen_002_an_init_that_takes_too_long_is_killed() {
    let mut world = World::new(supervisor(Strategy::OneForOne, vec![actor("a")]));
    world.slow = vec!["a".into()];
    world.tell(Event::Boot);
    world.pass(Duration::from_secs(59));
    world.check(&["start a"]);
    world.pass(Duration::from_secs(1));
    world.check(&["stacks of a"]);
    world.pass(Duration::from_millis(300));
    world.check(&["kill a", "failed a: start_timeout"]);
}

#[test]
fn sup_072_sup_073_a_child_is_stopped_and_brought_back_by_request() {
    let mut world = World::up(abc(Strategy::RestForOne));
    world.requests(TreeRequest::Stop { name: "b".into() });
    world.requests(TreeRequest::Stop { name: "b".into() });
    world.check(&["stop b in turn"]);
    world.requests(TreeRequest::Restart { name: "b".into() });
    world.check(&["start b"]);
    world.requests(TreeRequest::Restart { name: "b".into() });
    world.check(&["stop b", "start b"]);
    assert_eq!(world.outside, vec![Answer::Ok; 4]);
    world.requests(TreeRequest::Stop { name: "d".into() });
    assert!(matches!(world.outside.pop(), Some(Answer::NotFound { .. })));
    world.fails.insert("b".into(), 1);
    world.requests(TreeRequest::Restart { name: "b".into() });
    assert!(matches!(world.outside.pop(), Some(Answer::Failed { .. })));
    assert!(!world.is_running("b"));
}
