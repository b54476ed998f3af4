//! Random deaths, requests and time against a naive model of one OTP supervisor, written independently of the machine.

use std::time::Duration;

use crate::world::{World, actor, inner, name, supervisor};
use proptest::prelude::*;
use rebeam_protocol::exit::ExitReason;
use rebeam_protocol::process::{ChildAddress, ChildError, ProcessAnswer, ProcessRequest, SupervisorRequest};
use rebeam_protocol::spec::{ChildSpec, Restart, Strategy as Group, SupervisorSpec};

/// What happens to the tree.
#[derive(Clone, Debug)]
enum Step {
    /// The child of this number ends so, if it runs; its next so many starts fail.
    End {
        child: usize,
        is_clean: bool,
        fails: u32,
    },
    Pass {
        ms: u64,
    },
    /// terminate_child
    Terminate {
        child: usize,
    },
    /// restart_child; the start fails if it is told to.
    Restart {
        child: usize,
        is_failing: bool,
    },
    /// delete_child
    Delete {
        child: usize,
    },
    /// start_child
    Add {
        restart: Restart,
        is_failing: bool,
    },
    Stop,
}

/// The model: a plain list of who runs, and the restarts with their times, oldest first.
struct Model {
    group: Group,
    restarts: Vec<Restart>,
    running: Vec<bool>,
    /// Temporary children are forgotten with their end.
    forgotten: Vec<bool>,
    times: Vec<u64>,
    max: usize,
    period: u64,
    now: u64,
    is_over: bool,
    starts: Vec<String>,
}

impl Model {
    fn label(child: usize) -> String {
        format!("c{child}")
    }

    fn is_known(&self, child: usize) -> bool {
        child < self.running.len() && !self.forgotten[child]
    }

    /// What the supervisor answers, in a word.
    fn terminate(&mut self, child: usize) -> &'static str {
        if !self.is_known(child) {
            return "not_found";
        }
        self.running[child] = false;
        self.forgotten[child] |= self.restarts[child] == Restart::Temporary;
        "ok"
    }

    fn restart_child(&mut self, child: usize, is_failing: bool) -> &'static str {
        if !self.is_known(child) {
            return "not_found";
        }
        if self.running[child] {
            return "running";
        }
        self.starts.push(Self::label(child));
        self.running[child] = !is_failing;
        if is_failing { "start_failed" } else { "ok" }
    }

    fn delete(&mut self, child: usize) -> &'static str {
        if !self.is_known(child) {
            return "not_found";
        }
        if self.running[child] {
            return "running";
        }
        self.forgotten[child] = true;
        "ok"
    }

    fn add(&mut self, restart: Restart, is_failing: bool) -> &'static str {
        self.starts.push(Self::label(self.running.len()));
        self.restarts.push(restart);
        self.running.push(!is_failing);
        self.forgotten.push(is_failing);
        if is_failing { "start_failed" } else { "ok" }
    }

    fn end(&mut self, child: usize, is_clean: bool, mut fails: u32) {
        if self.is_over || !self.is_known(child) || !self.running[child] {
            return;
        }
        self.running[child] = false;
        let stays_down = match self.restarts[child] {
            Restart::Permanent => false,
            Restart::Transient => is_clean,
            Restart::Temporary => true,
        };
        if stays_down {
            self.forgotten[child] |= self.restarts[child] == Restart::Temporary;
            return;
        }
        // Each try counts; the tries of one child follow each other at once.
        loop {
            self.times.push(self.now);
            let within = self.times.iter().filter(|then| self.now - **then <= self.period).count();
            if within > self.max {
                self.running.fill(false);
                self.is_over = true;
                return;
            }
            let first = match self.group {
                Group::OneForOne => child,
                Group::OneForAll => 0,
                Group::RestForOne => child,
            };
            let last = if self.group == Group::OneForOne { child } else { self.running.len() - 1 };
            for other in (first..=last).rev() {
                if self.running[other] && self.restarts[other] == Restart::Temporary {
                    self.forgotten[other] = true;
                }
                self.running[other] = false;
            }
            let mut has_failed = false;
            for other in first..=last {
                if self.restarts[other] == Restart::Temporary || self.forgotten[other] {
                    continue;
                }
                self.starts.push(Self::label(other));
                if other == child && fails > 0 {
                    fails -= 1;
                    has_failed = true;
                    break;
                }
                self.running[other] = true;
            }
            if !has_failed {
                return;
            }
        }
    }
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0usize..7, any::<bool>(), 0u32..3).prop_map(|(child, is_clean, fails)| Step::End { child, is_clean, fails }),
        3 => (1u64..3000).prop_map(|ms| Step::Pass { ms }),
        2 => (0usize..7).prop_map(|child| Step::Terminate { child }),
        2 => (0usize..7, any::<bool>()).prop_map(|(child, is_failing)| Step::Restart { child, is_failing }),
        1 => (0usize..7).prop_map(|child| Step::Delete { child }),
        1 => (restart(), any::<bool>()).prop_map(|(restart, is_failing)| Step::Add { restart, is_failing }),
        1 => Just(Step::Stop),
    ];
    proptest::collection::vec(step, 1..60)
}

fn restart() -> impl Strategy<Value = Restart> {
    prop_oneof![3 => Just(Restart::Permanent), 2 => Just(Restart::Transient), 1 => Just(Restart::Temporary)]
}

fn group() -> impl Strategy<Value = Group> {
    prop_oneof![Just(Group::OneForOne), Just(Group::OneForAll), Just(Group::RestForOne)]
}

fn id(child: usize) -> ChildAddress {
    ChildAddress::Id(Model::label(child))
}

fn word(answer: Option<&ProcessAnswer>) -> &'static str {
    match answer {
        Some(ProcessAnswer::Ok | ProcessAnswer::Started { .. }) => "ok",
        Some(ProcessAnswer::NoProc) => "no_supervisor",
        Some(ProcessAnswer::Child(ChildError::NotFound)) => "not_found",
        Some(ProcessAnswer::Child(ChildError::Running)) => "running",
        Some(ProcessAnswer::Child(ChildError::StartFailed { .. })) => "start_failed",
        _ => "something else",
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn the_core_agrees_with_a_naive_model(
        group in group(),
        restarts in proptest::collection::vec(restart(), 1..5),
        max in 0u32..6,
        period in 500u64..5000,
        steps in steps(),
    ) {
        let child = |(n, restart): (usize, &Restart)| ChildSpec { restart: *restart, ..actor(&Model::label(n)) };
        // Somebody outside of it asks it.
        let children = restarts.iter().enumerate().map(child).collect();
        let spec = SupervisorSpec {
            max_restarts: max,
            max_ms: period,
            name: Some("s".into()),
            ..supervisor(group, children)
        };
        let inner = ChildSpec { restart: Restart::Temporary, ..inner("s", spec) };
        let mut world = World::up(supervisor(Group::OneForOne, vec![actor("asker"), inner]));
        let count = restarts.len();
        let mut model = Model {
            group,
            restarts,
            running: vec![true; count],
            forgotten: vec![false; count],
            times: Vec::new(),
            max: max as usize,
            period,
            now: 0,
            is_over: false,
            starts: Vec::new(),
        };
        for step in steps {
            match step {
                Step::End { child, is_clean, fails } => {
                    let label = Model::label(child);
                    if world.is_running(&label) {
                        world.fails.insert(label.clone(), fails);
                        world.ends(&label, if is_clean { ExitReason::Normal } else { ExitReason::ExitCode(1) });
                        world.fails.clear();
                    }
                    model.end(child, is_clean, fails);
                }
                Step::Pass { ms } => {
                    world.pass(Duration::from_millis(ms));
                    model.now += ms;
                }
                Step::Stop => {
                    let stop = ProcessRequest::Stop { to: name("s"), reason: ExitReason::SHUTDOWN };
                    world.asks("asker", stop);
                    model.running.fill(false);
                    model.is_over = true;
                }
                Step::Terminate { .. } | Step::Restart { .. } | Step::Delete { .. } | Step::Add { .. } => {
                    let (request, expected) = match step {
                        _ if model.is_over => (SupervisorRequest::Which, "no_supervisor"),
                        Step::Terminate { child } => {
                            (SupervisorRequest::Terminate(id(child)), model.terminate(child))
                        }
                        Step::Restart { child, is_failing } => {
                            world.fails.insert(Model::label(child), u32::from(is_failing));
                            (SupervisorRequest::Restart(id(child)), model.restart_child(child, is_failing))
                        }
                        Step::Delete { child } => (SupervisorRequest::Delete(id(child)), model.delete(child)),
                        Step::Add { restart, is_failing } => {
                            let label = Model::label(model.running.len());
                            world.fails.insert(label.clone(), u32::from(is_failing));
                            let child = Box::new(ChildSpec { restart, ..actor(&label) });
                            (SupervisorRequest::Start(child), model.add(restart, is_failing))
                        }
                        _ => unreachable!("matched above"),
                    };
                    let answer = world.asks_supervisor("asker", "s", request);
                    world.fails.clear();
                    prop_assert_eq!(word(answer.as_ref()), expected);
                }
            }
            let labels = 0..model.running.len();
            let running: Vec<bool> = labels.map(|n| world.is_running(&Model::label(n))).collect();
            prop_assert_eq!(&running, &model.running);
            let starts: Vec<String> =
                world.take_trace().into_iter().filter_map(|line| line.strip_prefix("start ").map(String::from)).collect();
            prop_assert_eq!(starts, std::mem::take(&mut model.starts));
        }
    }
}
