//! Links, monitors, exit signals, alarms, limits: what the core decides about them, in virtual time.

use std::time::Duration;

use crate::world::{World, actor, actor_with, crash, inner, name, supervisor};
use rebeam_core::Event;
use rebeam_protocol::address::Address;
use rebeam_protocol::exit::ExitReason;
use rebeam_protocol::id::{ActorId, NodeStart};
use rebeam_protocol::message::{Kind, Waits};
use rebeam_protocol::outside::TreeRequest;
use rebeam_protocol::process::{ChildAddress, ChildError, ProcessAnswer, ProcessRequest, SupervisorRequest};
use rebeam_protocol::spec::{
    ActorSpec, Backoff, ChildKind, ChildSpec, Limits, OnGiveup, Pauses, Restart, Shutdown, Strategy, SupervisorKind,
    SupervisorSpec,
};

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn temporary(name: &str) -> ChildSpec {
    ChildSpec { restart: Restart::Temporary, ..actor(name) }
}

fn limited(name: &str, limits: Limits) -> ChildSpec {
    let child = actor(name);
    let ChildKind::Actor(spec) = child.kind else { unreachable!("an actor") };
    ChildSpec { kind: ChildKind::Actor(Box::new(ActorSpec { limits, ..*spec })), ..child }
}

fn world(children: Vec<ChildSpec>) -> World {
    World::up(SupervisorSpec { max_restarts: 3, ..supervisor(Strategy::OneForOne, children) })
}

fn abc() -> World {
    world(["a", "b", "c"].map(temporary).into())
}

#[test]
fn lnk_001_lnk_002_an_end_goes_along_the_links_unless_it_is_normal() {
    for (reason, goes) in [(crash(), true), (ExitReason::SHUTDOWN, true), (ExitReason::Normal, false)] {
        let mut world = abc();
        let (a, c) = (world.process("a").pid, world.process("c").pid);
        assert_eq!(world.asks("b", ProcessRequest::Link(a)), Some(ProcessAnswer::Ok));
        assert_eq!(world.asks("b", ProcessRequest::Link(c)), Some(ProcessAnswer::Ok));
        world.ends("a", reason.clone());
        assert_eq!(world.running().is_empty(), goes, "{reason}");
    }
}

#[test]
fn lnk_003_lnk_005_who_traps_exits_gets_one_message_each() {
    let mut world = abc();
    let (a, c) = (world.process("a").pid, world.process("c").pid);
    world.asks("b", ProcessRequest::TrapExits(true));
    world.asks("b", ProcessRequest::Link(a));
    world.asks("b", ProcessRequest::Link(a));
    world.asks("b", ProcessRequest::Link(c));
    world.asks("b", ProcessRequest::Unlink(c));
    world.ends("a", ExitReason::Normal);
    world.crashes("c");
    assert_eq!(world.signals("b"), ["EXIT normal"]);
}

#[test]
fn lnk_006_a_link_to_the_dead_is_an_error_or_a_message() {
    let mut world = abc();
    let a = world.process("a").pid;
    world.crashes("a");
    assert_eq!(world.asks("b", ProcessRequest::Link(a)), Some(ProcessAnswer::NoProc));
    world.asks("c", ProcessRequest::TrapExits(true));
    assert_eq!(world.asks("c", ProcessRequest::Link(a)), Some(ProcessAnswer::Ok));
    assert_eq!(world.signals("c"), ["EXIT noproc"]);
}

#[test]
fn map_04_who_does_not_unwind_in_time_is_killed_with_the_signals_reason() {
    let mut world = abc();
    world.stubborn = vec!["a".into()];
    let monitor = world.asks("b", ProcessRequest::Monitor(name("a")));
    assert_eq!(monitor, Some(ProcessAnswer::Monitor(1)));
    world.asks("b", ProcessRequest::Exit { to: name("a"), reason: ExitReason::Other("because".into()) });
    world.check(&["exit a"]);
    world.pass(ms(499));
    world.check(&[]);
    world.pass(ms(1));
    assert!(world.take_trace().contains(&"kill a".to_owned()));
    assert_eq!(world.signals("b"), ["DOWN 1 because"]);
}

#[test]
fn mon_001_mon_002_mon_003_mon_004_each_monitor_fires_once() {
    let mut world = abc();
    let a = world.process("a").pid;
    for _ in 0..3 {
        world.asks("b", ProcessRequest::Monitor(Address::Pid(a)));
    }
    world.asks("b", ProcessRequest::Demonitor { monitor: 2, flush: false });
    world.is_shot("a");
    assert_eq!(world.signals("b"), ["DOWN 1 signal(SIGKILL)", "DOWN 3 signal(SIGKILL)"]);
    world.asks("b", ProcessRequest::Monitor(Address::Pid(a)));
    world.asks("b", ProcessRequest::Monitor(name("nobody")));
    assert_eq!(world.signals("b"), ["DOWN 4 noproc", "DOWN 5 noproc"]);
}

#[test]
fn mon_004_a_notice_that_waits_is_flushed() {
    let mut world = abc();
    let a = world.process("a").pid;
    // More than are handed over at once, so that the notice waits here.
    for _ in 0..100 {
        world.sends("c", name("b"), Kind::Cast, "x");
    }
    world.asks("b", ProcessRequest::Monitor(Address::Pid(a)));
    world.crashes("a");
    world.asks("b", ProcessRequest::Demonitor { monitor: 1, flush: true });
    for _ in 0..100 {
        let (seq, _) = world.begins("b");
        world.finishes("b", seq);
    }
    assert_eq!(world.signals("b"), Vec::<String>::new());
}

#[test]
fn mon_005_with_the_notice_the_name_is_free() {
    let mut world = abc();
    world.asks("b", ProcessRequest::Monitor(name("a")));
    world.crashes("a");
    assert_eq!(world.signals("b").len(), 1);
    assert_eq!(world.asks("b", ProcessRequest::Resolve(name("a"))), Some(ProcessAnswer::Pid(None)));
}

#[test]
fn a_watched_supervisor_ends_with_shutdown_when_it_gives_up() {
    let spec = SupervisorSpec {
        max_restarts: 0,
        name: Some("in".into()),
        ..supervisor(Strategy::OneForOne, vec![actor("x"), actor("y")])
    };
    let mut world = world(vec![inner("in", spec), actor("b")]);
    world.asks("b", ProcessRequest::Monitor(name("in")));
    world.crashes("x");
    assert_eq!(world.signals("b"), ["DOWN 1 shutdown"]);
}

fn alarm(timer: u64, to: Address, after_ms: u64) -> ProcessRequest {
    let method = "handle_info".into();
    ProcessRequest::SendAfter { timer, to, after_ms, every_ms: None, method, is_method: false }
}

fn interval(timer: u64, to: Address, every: u64) -> ProcessRequest {
    let method = "handle_info".into();
    ProcessRequest::SendAfter { timer, to, after_ms: every, every_ms: Some(every), method, is_method: false }
}

#[test]
fn tmr_001_tmr_003_tmr_004_an_alarm_on_a_pid_goes_with_it_and_outlives_its_maker() {
    let mut world = world(vec![actor("a"), actor("b")]);
    let (a, b) = (Address::Pid(world.process("a").pid), Address::Pid(world.process("b").pid));
    world.asks("a", alarm(1, b.clone(), 100));
    world.asks("b", alarm(1, a.clone(), 100));
    world.asks("b", interval(2, a, 100));
    world.asks("a", interval(3, b, 150));
    world.crashes("a");
    world.pass(ms(99));
    assert!(world.delivered("b").is_empty());
    world.pass(ms(101));
    assert_eq!((world.delivered("a").len(), world.delivered("b").len()), (0, 2));
    assert!(world.works("b").is_some() && world.works("b").is_some());
    world.pass(ms(100));
    assert_eq!((world.delivered("a").len(), world.delivered("b").len()), (0, 1));
}

#[test]
fn tmr_003_an_alarm_on_a_name_goes_to_whoever_has_it_when_it_is_due() {
    let mut world = world(vec![actor("a"), actor("b")]);
    world.asks("b", alarm(1, name("a"), 100));
    world.asks("b", interval(2, name("a"), 70));
    world.crashes("a");
    world.pass(ms(100));
    assert_eq!(world.delivered("a").len(), 2, "the next life has the name");
    // One that goes on and on ends with its maker: nobody else could end it.
    world.crashes("b");
    world.pass(ms(1000));
    assert_eq!(world.delivered("a").len(), 2);
    world.asks("b", alarm(3, name("later"), 100));
    world.pass(ms(100));
    let letters = world.take_trace();
    assert!(letters.contains(&"dead letter handle_info to later Nobody".to_owned()), "{letters:?}");
}

#[test]
fn tmr_003_whoever_sets_an_alarm_on_itself_means_this_life() {
    let mut world = world(vec![actor("a"), actor("b")]);
    world.asks("a", alarm(1, name("a"), 100));
    world.asks("a", interval(2, name("a"), 100));
    world.crashes("a");
    world.pass(ms(1000));
    assert!(world.delivered("a").is_empty());
}

#[test]
fn lnk_007_sup_058_the_parent_of_what_was_spawned_is_who_had_it_spawned() {
    for (from, ends) in [("owner", true), ("b", false)] {
        let mut world = world(vec![temporary("owner"), temporary("b")]);
        let child = |name: &str| Box::new(temporary(name));
        let group = inner("group", supervisor(Strategy::OneForOne, vec![actor("x")]));
        for child in [child("trapping"), Box::new(group)] {
            let waits = Waits::Nobody;
            world.asks("owner", ProcessRequest::Spawn { child, is_owned: true, is_linked: false, waits });
        }
        world.asks("trapping", ProcessRequest::TrapExits(true));
        world.take_trace();
        let reason = ExitReason::Other("hello".into());
        world.asks(from, ProcessRequest::Exit { to: name("trapping"), reason: reason.clone() });
        assert_eq!(world.is_running("trapping"), !ends, "`terminate` runs for the parent only");
        if !ends {
            assert_eq!(world.signals("trapping"), ["EXIT hello"]);
        }
        // A supervisor ends with its parent, whatever the reason.
        world.ends("owner", ExitReason::Normal);
        assert!(!world.is_running("x"));
    }
}

#[test]
fn lnk_004_sup_058_a_supervisor_takes_the_exit_signal_of_its_parent_and_kill_cannot_be_trapped() {
    let group = inner("in", supervisor(Strategy::OneForOne, vec![actor("x")]));
    for (reason, stop) in [("done", "stop x in turn"), ("kill", "kill x")] {
        let mut world = world(vec![ChildSpec { restart: Restart::Temporary, ..group.clone() }, temporary("a")]);
        world.asks("a", ProcessRequest::TrapExits(true));
        let exit = |id: &str| SupervisorRequest::Exit(ChildAddress::Id(id.into()), ExitReason::Other(reason.into()));
        assert_eq!(world.asks_supervisor("a", "root", exit("in")), Some(ProcessAnswer::Ok));
        let trace = world.take_trace();
        assert_eq!(trace.first().map(String::as_str), Some(stop), "{trace:?}");
        assert!(!world.is_running("x"));
        world.asks_supervisor("a", "root", exit("a"));
        assert!(!world.is_running("a"));
    }
}

#[test]
fn sup_072_sup_078_a_child_between_two_tries_is_still_the_child_of_its_last_pid() {
    let pauses = Pauses::Backoff(Backoff { initial_ms: 1000, factor_milli: 1000, cap_ms: 1000, jitter_milli: 0 });
    let kinds = [SupervisorKind::Static, SupervisorKind::Dynamic { max_children: None }, SupervisorKind::Spawned];
    for kind in kinds {
        let child = Box::new(ChildSpec { pauses, ..actor("x") });
        let mut world =
            world(vec![actor("a"), inner("in", SupervisorSpec { kind, ..supervisor(Strategy::OneForOne, vec![]) })]);
        let started = match kind {
            SupervisorKind::Spawned => {
                let waits = Waits::Nobody;
                world.asks("a", ProcessRequest::Spawn { child, is_owned: false, is_linked: false, waits })
            }
            _ => world.asks_supervisor("a", "in", SupervisorRequest::Start(child)),
        };
        let Some(ProcessAnswer::Started { pid: Some(pid), .. }) = started else { panic!("{started:?}") };
        let of = if kind == SupervisorKind::Spawned { "spawned" } else { "in" };
        world.crashes("x");
        let counts = world.asks_supervisor("a", of, SupervisorRequest::Count);
        assert!(matches!(&counts, Some(ProcessAnswer::Counts(counts)) if counts.specs == 1), "{kind:?}: {counts:?}");
        let restart = SupervisorRequest::Restart(ChildAddress::Pid(pid));
        let expected = if kind == SupervisorKind::Static { ChildError::Restarting } else { ChildError::Unsupported };
        assert_eq!(world.asks_supervisor("a", of, restart), Some(ProcessAnswer::Child(expected)), "{kind:?}");
        let terminate = SupervisorRequest::Terminate(ChildAddress::Pid(pid));
        assert_eq!(world.asks_supervisor("a", of, terminate), Some(ProcessAnswer::Ok), "{kind:?}");
        world.pass(ms(5000));
        assert!(!world.is_running("x"), "{kind:?}: it stays down");
    }
}

#[test]
fn a_pause_before_a_restart_is_not_cut_short_by_an_earlier_one() {
    let pauses = Pauses::Backoff(Backoff { initial_ms: 1000, factor_milli: 1000, cap_ms: 1000, jitter_milli: 0 });
    let child = ChildSpec { pauses, ..actor("a") };
    let mut world = World::up(SupervisorSpec { max_restarts: 4, ..supervisor(Strategy::OneForOne, vec![child]) });
    world.crashes("a");
    world.pass(ms(900));
    world.requests(TreeRequest::Restart { name: "a".into() });
    world.crashes("a");
    world.take_trace();
    world.pass(ms(900));
    world.check(&[]);
    world.pass(ms(100));
    world.check(&["start a"]);
}

#[test]
fn mail_to_an_actor_whose_supervisor_is_down_finds_nobody_also_after_a_refused_restart() {
    let mut world = world(vec![inner("group", supervisor(Strategy::OneForOne, vec![actor("x")])), actor("b")]);
    world.requests(TreeRequest::Stop { name: "group".into() });
    world.requests(TreeRequest::Restart { name: "x".into() });
    world.take_trace();
    world.sends("b", name("x"), Kind::Cast, "lost");
    world.check(&["dead letter lost to x Nobody"]);
    // Its supervisor comes back, and with it the mail waits again.
    world.slow = vec!["x".into()];
    world.requests(TreeRequest::Restart { name: "group".into() });
    world.sends("b", name("x"), Kind::Cast, "waits");
    world.starts("x");
    assert_eq!(world.delivered("x"), ["waits"]);
}

#[test]
fn tmr_002_cancelling_says_what_was_left() {
    let mut world = abc();
    let maker = world.process("a").pid;
    let request = ProcessRequest::SendAfter {
        timer: 7,
        to: name("b"),
        after_ms: 1000,
        every_ms: Some(1000),
        method: "handle_info".into(),
        is_method: false,
    };
    world.asks("a", request);
    world.pass(ms(2300));
    assert_eq!(world.delivered("b").len(), 2);
    let cancel = ProcessRequest::CancelTimer { maker, timer: 7 };
    assert_eq!(world.asks("a", cancel.clone()), Some(ProcessAnswer::TimeLeft(Some(700))));
    assert_eq!(world.asks("a", cancel), Some(ProcessAnswer::TimeLeft(None)));
}

#[test]
fn gen_014_sup_058_a_stop_is_answered_at_the_end_and_says_what_it_was() {
    let mut world = abc();
    let stop = |to: &str| ProcessRequest::Stop { to: name(to), reason: ExitReason::Other("done".into()) };
    assert_eq!(world.asks("b", stop("a")), Some(ProcessAnswer::Ok));
    assert_eq!(world.asks("b", stop("a")), Some(ProcessAnswer::NoProc));
    world.stubborn = vec!["c".into()];
    assert_eq!(world.asks("b", stop("c")), None, "it takes its time");
    world.is_shot("c");
    let last = world.answers.last().cloned();
    assert!(matches!(last, Some(ProcessAnswer::EndedWith(ExitReason::Signal(9)))));
}

#[test]
fn sup_013_an_ignoring_child_is_passed_over_once_its_process_has_ended() {
    let mut world = World::new(supervisor(Strategy::OneForOne, vec![actor("a"), temporary("t"), actor("b")]));
    world.ignoring = vec!["a".into(), "t".into()];
    world.tell(Event::Boot);
    world.check(&["start a", "start t", "start b", "up"]);
    let listed = world.core.list(|_| None);
    assert_eq!(listed.iter().map(|child| child.id.as_str()).collect::<Vec<_>>(), ["a", "b"]);
}

#[test]
fn sup_070_to_sup_074_children_come_and_go_and_leave_nothing_behind() {
    let mut world = abc();
    let records = world.core.records();
    for round in 0..100 {
        let child = Box::new(temporary(&format!("d{round}")));
        let started = world.asks_supervisor("a", "root", SupervisorRequest::Start(child));
        let Some(ProcessAnswer::Started { pid: Some(pid), .. }) = started else { panic!("{started:?}") };
        world.asks("b", ProcessRequest::Monitor(Address::Pid(pid)));
        world.asks("b", ProcessRequest::Link(pid));
        let end = SupervisorRequest::Terminate(ChildAddress::Id(format!("d{round}")));
        world.asks("b", ProcessRequest::Unlink(pid));
        assert_eq!(world.asks_supervisor("a", "root", end), Some(ProcessAnswer::Ok));
        world.signals("b");
    }
    assert_eq!(world.core.records(), records);
    let again = SupervisorRequest::Start(Box::new(temporary("a")));
    let refused = world.asks_supervisor("a", "root", again);
    assert!(matches!(refused, Some(ProcessAnswer::Child(ChildError::AlreadyStarted(_)))), "{refused:?}");
}

#[test]
fn sup_057_sup_078_a_dynamic_supervisor_stops_all_at_once_and_each_by_its_own_time() {
    let kind = SupervisorKind::Dynamic { max_children: Some(3) };
    let dynamic = SupervisorSpec { kind, name: Some("dyn".into()), ..supervisor(Strategy::OneForOne, Vec::new()) };
    let mut world = world(vec![actor("a"), inner("dyn", dynamic)]);
    for n in 0..3 {
        let child = ChildSpec { shutdown: Shutdown::Timeout(100 * (n + 1)), ..actor(&format!("d{n}")) };
        world.asks_supervisor("a", "dyn", SupervisorRequest::Start(Box::new(child)));
    }
    let more = world.asks_supervisor("a", "dyn", SupervisorRequest::Start(Box::new(actor("more"))));
    assert_eq!(more, Some(ProcessAnswer::Child(ChildError::MaxChildren)));
    world.stubborn = (0..3).map(|n| format!("d{n}")).collect();
    world.take_trace();
    world.tell(Event::StopNode);
    world.check(&["stop d2 in turn", "stop d1 in turn", "stop d0 in turn"]);
    world.pass(ms(300));
    let kills: Vec<String> = world.take_trace().into_iter().filter(|line| line.starts_with("kill")).collect();
    assert_eq!(kills, ["kill d0", "kill d1", "kill d2"]);
    assert!(world.running().is_empty());
}

#[test]
fn a_supervisors_shutdown_time_is_over_with_its_stop() {
    let spec = supervisor(Strategy::OneForOne, vec![actor("x")]);
    let child = ChildSpec { shutdown: Shutdown::Timeout(5000), ..inner("in", spec) };
    let mut world = world(vec![child, actor("b")]);
    world.requests(TreeRequest::Restart { name: "in".into() });
    world.check(&["stop x", "start x"]);
    world.pass(Duration::from_secs(100));
    world.check(&[]);
}

#[test]
fn sup_079_an_actor_is_refused_by_a_supervisor_that_waits_for_it() {
    let mut world = World::new(supervisor(Strategy::OneForOne, vec![actor("a"), actor("b")]));
    world.slow = vec!["a".into()];
    world.tell(Event::Boot);
    let answer = world.asks_supervisor("a", "root", SupervisorRequest::Which);
    assert_eq!(answer, Some(ProcessAnswer::Child(ChildError::WaitingForYou)));
}

#[test]
fn map_11_a_backoff_grows_to_its_cap_and_begins_anew_after_a_healthy_time() {
    let backoff = Backoff { initial_ms: 100, factor_milli: 2000, cap_ms: 300, jitter_milli: 0 };
    let child = ChildSpec { pauses: Pauses::Backoff(backoff), ..actor("a") };
    let spec = SupervisorSpec { max_restarts: 100, max_ms: 1_000_000, ..supervisor(Strategy::OneForOne, vec![child]) };
    let mut world = World::up(spec);
    for pause in [100, 200, 300, 300] {
        world.crashes("a");
        world.pass(ms(pause - 1));
        assert!(!world.is_running("a"), "{pause}");
        world.pass(ms(1));
        assert!(world.is_running("a"), "{pause}");
    }
    world.pass(ms(1000));
    world.crashes("a");
    world.pass(ms(100));
    assert!(world.is_running("a"));
}

#[test]
fn map_11_by_default_the_first_restart_is_immediate_and_an_outage_of_a_second_is_survived() {
    let child = ChildSpec { pauses: Pauses::ByLimit, ..actor("a") };
    let mut world = World::up(supervisor(Strategy::OneForOne, vec![child.clone()]));
    // At the very beginning, too.
    world.crashes("a");
    assert!(world.is_running("a"));
    world.pass(ms(60_000));
    world.crashes("a");
    assert!(world.is_running("a"));
    // Whatever it does within the outage ends it; all restarts but the last are used up in it.
    world.fails.insert("a".into(), 1);
    world.crashes("a");
    world.pass(ms(416));
    assert!(!world.is_running("a"));
    world.pass(ms(1));
    assert!(!world.is_running("a"), "its start has failed");
    world.pass(ms(834));
    assert!(world.is_running("a"));
    // Who is healthy for a while begins anew.
    world.pass(ms(6000));
    world.crashes("a");
    assert!(world.is_running("a"));
    // Who never is, uses the limit up, however large that is.
    for max_restarts in [1, 3, 10, 1000] {
        let spec = SupervisorSpec { max_restarts, ..supervisor(Strategy::OneForOne, vec![child.clone()]) };
        let mut world = World::up(spec);
        world.fails.insert("a".into(), u32::MAX);
        world.crashes("a");
        world.pass(ms(2501));
        assert!(world.take_trace().contains(&"gave up".to_owned()), "{max_restarts}");
    }
}

#[test]
fn a_tick_is_left_out_while_the_one_before_waits() {
    let mut world = world(vec![actor("a"), actor("b")]);
    world.asks("b", interval(1, name("a"), 100));
    // The first is in hand all the time, the second waits behind it.
    world.pass(ms(1000));
    assert_eq!(world.delivered("a").len(), 2);
    world.asks("b", interval(2, name("a"), 100));
    world.pass(ms(1000));
    assert_eq!(world.delivered("a").len(), 3, "another timer's tick is another's");
}

#[test]
fn a_parked_child_leaves_its_siblings_alone_and_their_limit_too() {
    let child = ChildSpec { on_giveup: OnGiveup::Park, ..actor("a") };
    let mut world = world(vec![child, actor("b")]);
    for _ in 0..4 {
        world.crashes("a");
    }
    assert_eq!(world.running(), ["b"]);
    assert!(world.take_trace().contains(&"report a Parked".to_owned()));
    for _ in 0..3 {
        world.crashes("b");
    }
    assert_eq!(world.running(), ["b"]);
    world.requests(TreeRequest::Restart { name: "a".into() });
    assert!(world.is_running("a"));
}

#[test]
fn map_07_a_deadline_is_looked_at_when_it_may_have_passed_and_not_before() {
    let limits = Limits { deadline_ms: Some(1000), deadlines: vec![("long".into(), 5000)], ..Limits::default() };
    let mut world = world(vec![limited("a", limits), actor("b")]);
    world.sends("b", name("a"), Kind::Cast, "long");
    world.begins("a");
    world.pass(ms(4900));
    world.check(&[]);
    world.pass(ms(200));
    world.check(&["stacks of a"]);
    world.pass(ms(300));
    let expected = ["kill a", "dead letter long to a OutcomeUnknown", "report a Restarts", "start a"];
    world.check(&expected);
    // Without a deadline a busy actor is left alone, however long it takes.
    world.sends("a", name("b"), Kind::Cast, "hours");
    world.begins("b");
    world.pass(Duration::from_secs(3600));
    world.check(&[]);
}

#[test]
fn map_07_who_has_mail_and_does_not_take_it_is_judged_hung_after_half_a_minute() {
    let mut world = world(vec![actor("a"), actor("b")]);
    world.pass(Duration::from_secs(100));
    world.sends("b", name("a"), Kind::Cast, "x");
    world.pass(ms(30_099));
    world.check(&[]);
    world.pass(ms(500));
    assert_eq!(world.take_trace()[..2], ["stacks of a", "kill a"]);
    assert!(world.is_running("a"), "it is back, and its mail waits");
    assert_eq!(world.delivered("a"), ["x"]);
}

#[test]
fn half_a_minute_counts_from_when_an_actor_last_got_on() {
    let mut world = world(vec![actor("a"), actor("b")]);
    world.acks_after = 1;
    for method in ["one", "two", "three"] {
        world.sends("b", name("a"), Kind::Cast, method);
    }
    // A handler that takes long is no silence, nor is the moment between two of them.
    for _ in 0..2 {
        let (seq, _) = world.begins("a");
        world.pass(Duration::from_secs(100));
        world.finishes("a", seq);
        world.pass(Duration::from_secs(20));
        world.check(&[]);
    }
    let troubles = world.troubles(Duration::from_secs(3600));
    assert_eq!(troubles.len(), 1, "{troubles:?}");
    assert!(troubles[0].starts_with("a Hung: it takes no mail for"), "{troubles:?}");
    world.pass(Duration::from_secs(11));
    assert_eq!(world.take_trace()[..2], ["stacks of a", "kill a"]);
}

#[test]
fn who_takes_its_mail_itself_may_let_it_lie() {
    let mut world = world(vec![actor("a"), actor("b")]);
    world.takes_own_mail("a");
    world.sends("b", name("a"), Kind::Cast, "x");
    world.pass(Duration::from_secs(3600));
    world.check(&[]);
}

#[test]
fn a_sleep_of_the_node_itself_is_nobodys_hang() {
    let limits = Limits { deadline_ms: Some(1000), ..Limits::default() };
    let mut world = world(vec![limited("a", limits), actor("b")]);
    world.sends("b", name("a"), Kind::Cast, "x");
    world.begins("a");
    // The clock jumps by an hour before the core is asked again.
    world.now += Duration::from_secs(3600);
    world.core.handle_timeout(world.now);
    world.tell(Event::OutsideGone { client: 1 });
    world.check(&[]);
}

#[test]
fn a_client_has_one_gateway_which_ends_with_it_and_is_replaced_if_it_dies() {
    let mut world = world(vec![]);
    world.tell(Event::WantsGateway { client: 1 });
    assert_eq!(world.core.gateway(1), None, "nobody has said how one is started");
    let gateway = actor_with("client", |spec| spec.name = None);
    world.core.set_gateway(ChildSpec { restart: Restart::Temporary, ..gateway });
    for client in [1, 1, 2] {
        world.tell(Event::WantsGateway { client });
    }
    let gateway = |world: &World, client| world.core.gateway(client).map(|(id, _)| id);
    let (first, second) = (gateway(&world, 1).unwrap(), gateway(&world, 2).unwrap());
    let path = |id: ActorId| format!("spawned/client.{}", id.0);
    world.check(&[&format!("start {}", path(first)), &format!("start {}", path(second))]);
    let started = NodeStart::default().started;
    assert_eq!(world.core.actor_named(&format!("actor {}@{started}", first.0)), Some((first, false)));
    for other in [format!("actor {}@{}", first.0, started + 1), format!("actor {}", first.0), "actor @".into()] {
        assert_eq!(world.core.actor_named(&other), None, "{other}");
    }
    world.crashes(&path(first));
    assert_eq!(world.core.gateway(1), None);
    world.tell(Event::WantsGateway { client: 1 });
    let third = gateway(&world, 1).unwrap();
    world.take_trace();
    for client in [1, 2] {
        world.tell(Event::OutsideGone { client });
    }
    world.check(&[&format!("stop {} in turn", path(third)), &format!("stop {} in turn", path(second))]);
    assert_eq!(world.core.gateway(1).or(world.core.gateway(2)), None);
    world.tell(Event::StopNode);
    world.tell(Event::WantsGateway { client: 3 });
    assert_eq!(world.core.gateway(3), None, "nothing is started in a node that ends");
}

#[test]
fn nothing_is_started_in_a_node_that_ends_though_nothing_was_before() {
    let mut world = world(vec![actor("a")]);
    world.core.set_gateway(temporary("client"));
    world.lazy = true;
    world.tell(Event::StopNode);
    world.tell(Event::WantsGateway { client: 1 });
    assert_eq!(world.core.gateway(1), None);
    let child = Box::new(temporary("b"));
    let request = ProcessRequest::Spawn { child, is_owned: false, is_linked: false, waits: Waits::Nobody };
    assert_eq!(world.asks("a", request), Some(ProcessAnswer::Child(ChildError::Ending)));
}

#[test]
fn a_recycled_actor_keeps_its_incarnation_and_its_mail() {
    let limits = Limits { max_messages: Some(2), ..Limits::default() };
    let mut world = world(vec![limited("a", limits), actor("b")]);
    world.acks_after = 1;
    let pid = world.process("a").pid;
    for method in ["one", "two", "three"] {
        world.sends("b", Address::Pid(pid), Kind::Cast, method);
    }
    world.asks("b", ProcessRequest::Monitor(name("a")));
    for _ in 0..2 {
        let (seq, _) = world.begins("a");
        world.finishes("a", seq);
    }
    world.check(&["recycle a", "start a"]);
    assert_eq!(world.process("a").pid, pid);
    assert_eq!(world.process("a").generation.0, 1);
    assert_eq!(world.delivered("a"), ["three"], "mail to the pid is kept, too");
    assert_eq!(world.signals("b"), Vec::<String>::new());
}
