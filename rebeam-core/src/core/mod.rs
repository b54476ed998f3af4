//! The machine that nests supervisors, owns the actors and routes their mail.
//!
//! This module holds what there is and where events go. What an event does stands in the modules below, one per theme:
//! [`tree`] (members and their names), [`supervision`] (starts, stops, deaths), [`launching`] (starts that fail),
//! [`process`] (links, monitors, signals, alarms), [`recycling`], [`reload`], [`retree`], [`bounds`] (what one actor may hold), [`names`] (names,
//! registries, groups), [`mail`], [`waits`] (deadlocks), [`watch`] (hangs, limits), [`request`], and three that only look:
//! [`listing`], [`health`] and [`figures`]. Each part of the state belongs to a machine of its own, which alone writes its
//! fields; the themes tell those machines what to do, and know nothing of each other but what is a method of [`Core`].

mod bounds;
mod figures;
mod gateways;
mod health;
mod launching;
mod listing;
mod mail;
mod names;
mod process;
mod recycling;
mod reload;
mod request;
mod retree;
mod supervision;
mod tree;
mod waits;
mod watch;

use std::collections::VecDeque;
use std::time::Duration;

use rebeam_protocol::address::{Caller, ReplyTo};
use rebeam_protocol::exit::ExitReason;
use rebeam_protocol::id::{ActorId, CallId, NodeStart, ProcessId};
use rebeam_protocol::spec::SupervisorSpec;

use self::bounds::MOST_TIMERS_PER_TURN;
use self::gateways::Gateways;
pub use self::reload::{Probation, ReloadOptions};

use self::reload::Versions;
use crate::alarms::Alarms;
use crate::dead_letters::DeadLetters;
use crate::deaths::Deaths;
use crate::event::{Action, Event};
use crate::links::Links;
use crate::mailbox::Sender;
use crate::members::{Members, ROOT};
use crate::meters::Meters;
use crate::registries::Registries;
use crate::requests::{Requester, Requests};
use crate::router::{On, Router};
use crate::shutdown::NodeShutdown;
use crate::spec::{self, SpecError};
use crate::timers::{Due, Timers};
use crate::tracing::Tracer;
use crate::waiters::Waiters;

/// The pure core of a node.
///
/// Calling order: tell it what happened with [`Core::handle_event`] and what time it is with [`Core::handle_timeout`];
/// after either, take [`Core::poll_action`] until it is empty, do what it says in that order, then ask
/// [`Core::poll_timeout`] when to come back.
#[derive(Debug)]
pub struct Core {
    members: Members,
    router: Router,
    links: Links,
    registries: Registries,
    waiters: Waiters,
    alarms: Alarms,
    timers: Timers,
    requests: Requests,
    dead_letters: DeadLetters,
    deaths: Deaths,
    meters: Meters,
    tracer: Tracer,
    shutdown: NodeShutdown,
    gateways: Gateways,
    versions: Versions,
    actions: VecDeque<Action>,
    /// Incarnations that are over without ever having had a process, and why.
    unlaunched: VecDeque<(ProcessId, Option<ExitReason>)>,
    now: Duration,
}

impl Core {
    /// A node whose tree has not been started.
    ///
    /// # Errors
    /// The first fault of the tree; nothing is started then.
    pub fn new(root: SupervisorSpec, at: NodeStart) -> Result<Self, SpecError> {
        spec::check(&root)?;
        let mut core = Core {
            members: Members::new(at),
            router: Router::default(),
            links: Links::default(),
            registries: Registries::default(),
            waiters: Waiters::default(),
            alarms: Alarms::default(),
            timers: Timers::default(),
            requests: Requests::default(),
            dead_letters: DeadLetters::default(),
            deaths: Deaths::default(),
            meters: Meters::default(),
            tracer: Tracer::default(),
            shutdown: NodeShutdown::default(),
            gateways: Gateways::default(),
            versions: Versions::default(),
            actions: VecDeque::new(),
            unlaunched: VecDeque::new(),
            now: Duration::ZERO,
        };
        core.add_root(root);
        Ok(core)
    }

    /// Takes note of what happened at `now`, counted from the node's start.
    pub fn handle_event(&mut self, now: Duration, event: Event) {
        self.now = self.now.max(now);
        match event {
            Event::Boot => {
                self.start_supervisor(ROOT);
                self.run(ROOT);
            }
            Event::Started { process, started, info } => self.started(process, started, info),
            Event::LaunchFailed { process, error } => self.launch_failed(process, error),
            Event::Sent { process, envelope, payload, buffers } => {
                if let Some(id) = self.members.serving(process).map(|actor| actor.id) {
                    self.sent(Sender::Process(process, id), Caller::Actor(process.pid), envelope, payload, buffers);
                }
            }
            Event::SentFromOutside { client, envelope, payload } => {
                self.sent(Sender::Outside, Caller::Outside(client), envelope, payload, None);
            }
            Event::OutsideGone { client } => {
                self.forget_caller(Caller::Outside(client));
                self.close_gateway(client);
            }
            Event::WantsGateway { client } => self.open_gateway(client),
            Event::Replied { process, reply, payload, buffers } => self.replied(process, reply, payload, buffers),
            Event::Cancelled { caller, call } => self.cancelled(ReplyTo { caller, call }),
            Event::Awaited { process, call, waits } => {
                let caller = Caller::Actor(process.pid);
                self.awaited(ReplyTo { caller, call }, waits);
            }
            Event::AwaitsRoom { process, call, to, method, waits } => {
                let caller = Caller::Actor(process.pid);
                self.awaits_room(process, ReplyTo { caller, call }, &to, &method, waits);
            }
            Event::Acked { process, done } => self.acked(process, &done),
            Event::Abandoned { caller, call, page } => self.abandoned(ReplyTo { caller, call }, page),
            Event::Reported { process, reason, message } => self.reported(process, reason, message),
            Event::HandedOver(handed) => self.handed_over(*handed),
            Event::CannotMove { process, why, is_failure } => self.cannot_move(process, why, is_failure),
            Event::NewCode(new) => self.new_code(*new),
            Event::WantsMore { process, more } => {
                if let Some(actor) = self.members.serving_mut(process) {
                    actor.mailbox.widen(more);
                    let id = actor.id;
                    self.pump(id);
                }
            }
            Event::Looked { process, page, clock_ns } => self.looked(process, &page, clock_ns),
            Event::OverMemory { process, used_kib } => self.over_memory(process, used_kib),
            Event::OutOfRoom { process, used_kib, limit_kib } => {
                let reason = ExitReason::MemoryLimit(used_kib, limit_kib);
                let why = "the memory of the whole was nearly used up, and it used the most of it";
                self.kill_for(process, reason, why);
            }
            Event::Readiness { process, not_ready } => {
                if let Some(incarnation) = self.members.serving_mut(process).and_then(|actor| actor.incarnation_mut()) {
                    incarnation.not_ready = not_ready;
                }
            }
            Event::Undeliverable { process, seq, error } => self.undeliverable(process, seq, error),
            Event::RowsChanged { watch, changes, is_last } => self.rows_changed(watch, &changes, is_last),
            Event::RowWatchFailed { watch } => self.row_watch_failed(watch),
            Event::HoldsTooMuch { process, what } => self.holds_too_much(process, what),
            Event::ReadsNothing { process, bytes } => self.reads_nothing(process, bytes),
            Event::Misbehaved { process, complaint } => {
                self.kill_for(process, ExitReason::BadProtocol(complaint), "it broke the protocol");
            }
            Event::Died(death) => self.died(*death),
            Event::Asked { process, request, body, payload } => {
                self.asked(Requester::Worker(process, request), body, payload);
            }
            Event::AskedFromOutside { asker, request } => self.asked_from_outside(asker, request),
            Event::StopNode => self.stop_node(),
            Event::Hurry { limit_ms } => self.hurry(Duration::from_millis(limit_ms)),
            Event::KillAll => {
                self.kill_below(ROOT);
                if let Some(spawner) = self.members.spawner() {
                    self.kill_below(spawner);
                }
                self.stop_node();
                // Nothing that is killed is to come back meanwhile.
                self.stop_supervisor(ROOT, ExitReason::SHUTDOWN);
            }
        }
        self.bury_unlaunched();
        self.tell_what_is_needed();
    }

    /// Does what has become due, up to a bound: [`Core::poll_timeout`] says whether there is more.
    pub fn handle_timeout(&mut self, now: Duration) {
        self.now = self.now.max(now);
        for _ in 0..MOST_TIMERS_PER_TURN {
            let Some((at, due)) = self.timers.pop_due(now) else { break };
            match due {
                Due::Limit(process) => self.time_is_over(process),
                Due::SupervisorShutdown(supervisor) => self.kill_below(supervisor),
                Due::PauseOver(child, number) => self.pause_over(child, number),
                Due::Alarm(alarm) => self.ring(alarm, at),
                Due::Launch(process) => self.launch_again(process),
                Due::Look(process) => self.look(process, at),
                Due::Hung(process) => {
                    self.kill_for(process, ExitReason::HeartbeatTimeout, "it was judged hung");
                }
                Due::TakesTooLong(process) => self.kill_for(process, ExitReason::Killed, process::ACTOR_ASKED),
                Due::Aged(process) => self.recycle(process),
                Due::WaitOver(wait) => self.wait_over(wait),
                Due::ReloadGoesOn => self.reload_goes_on(),
                Due::ProbationOver(pid) => self.probation_over(pid),
                Due::Leaves(process) => self.actions.push_back(Action::Kill(process)),
            }
        }
        self.bury_unlaunched();
        self.tell_what_is_needed();
    }

    /// What is to be done next, in order.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// How much is to be done, so far.
    pub fn pending_actions(&self) -> usize {
        self.actions.len()
    }

    /// When [`Core::handle_timeout`] is to be called, if at all.
    pub fn poll_timeout(&self) -> Option<Duration> {
        self.timers.next_at()
    }

    /// The process that a call waits for, if its callee has one.
    pub fn callee_of(&self, caller: Caller, call: CallId) -> Option<ProcessId> {
        match self.router.get(ReplyTo { caller, call })?.on {
            On::Answer(callee) => self.process_of(callee),
            On::Room(..) | On::Supervisor(_) | On::Up(_) => None,
        }
    }

    /// The process that an actor has now.
    pub fn process_of(&self, actor: ActorId) -> Option<ProcessId> {
        self.members.actor(actor)?.process()
    }

    /// Labels of the actors that have a process, for the last words of a node.
    pub fn alive(&self) -> Vec<String> {
        let alive = self.members.actors().filter(|actor| actor.incarnation().is_some());
        let mut alive: Vec<(ActorId, String)> = alive.map(|actor| (actor.id, actor.label.clone())).collect();
        alive.sort();
        alive.into_iter().map(|(_, label)| label).collect()
    }

    /// Checks what must hold after every event.
    ///
    /// # Panics
    /// If it does not: that is a bug of this crate.
    pub fn check_invariants(&self) {
        self.members.check();
        self.registries.check(|pid| self.members.living(pid).is_some());
    }

    /// How many records of any sort are kept; for tests that nothing is left behind.
    pub fn records(&self) -> usize {
        self.members.len()
            + self.links.len()
            + self.registries.len()
            + self.waiters.len()
            + self.router.len()
            + self.dead_letters.subscribers()
            + self.requests.len()
            + self.alarms.len()
    }
}
