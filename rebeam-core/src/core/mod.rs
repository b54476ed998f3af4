//! The machine that nests supervisors, owns the actors and routes their mail.
//!
//! This module holds what there is and where events go; what they do stands in the modules below, one per theme:
//! [`tree`] (members and their names), [`supervision`] (starts, stops, deaths), [`process`] (links, monitors, signals,
//! alarms), [`names`] (names, registries, groups), [`mail`], [`waits`] (deadlocks), [`watch`] (hangs, limits, recycling) and [`request`].

mod mail;
mod names;
mod process;
mod request;
mod supervision;
mod tree;
mod waits;
mod watch;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use rebeam_protocol::certificate::Certificate;
use rebeam_protocol::exit::ExitReason;
use rebeam_protocol::id::{ActorId, CallId, Generation, NodeStart, Pid, ProcessId};
use rebeam_protocol::message::{Caller, ReplyTo};
use rebeam_protocol::spec::{Shutdown, SupervisorSpec};
use rustc_hash::FxBuildHasher;

use crate::actor::{Actor, Incarnation};
use crate::alarms::Alarms;
use crate::dead_letters::DeadLetters;
use crate::event::{Action, Event, Requester};
use crate::links::Links;
use crate::mailbox::Sender;
use crate::meters::Meters;
use crate::registries::Registries;
use crate::router::{On, Router};
use crate::spec::{self, SpecError};
use crate::timers::{Due, Timers};
use crate::tracing::Tracer;

pub(crate) use mail::busy_with;
pub(crate) use tree::SupervisorNode;

/// The root supervisor.
pub(crate) const ROOT: ActorId = ActorId(0);

type ById<T> = HashMap<ActorId, T, FxBuildHasher>;

/// The pure core of a node. See the crate's documentation for the calling order.
#[derive(Debug)]
pub struct Core {
    pub(crate) supervisors: ById<SupervisorNode>,
    pub(crate) actors: ById<Actor>,
    pub(crate) names: HashMap<String, ActorId, FxBuildHasher>,
    /// Every incarnation that has not ended, of actors and of supervisors.
    living: HashMap<Pid, ActorId, FxBuildHasher>,
    /// The last deaths of actors that are no children of anybody any more, oldest first.
    departed: VecDeque<Certificate>,
    pub(crate) router: Router,
    links: Links,
    registries: Registries,
    /// Who waits for an actor to come up, oldest first.
    waiting: Vec<names::Waiting>,
    /// Who asks for a key whose holder is being killed.
    postponed: Vec<names::Postponed>,
    next_wait: u64,
    alarms: Alarms,
    pub(crate) meters: Meters,
    pub(crate) tracer: Tracer,
    timers: Timers,
    dead_letters: DeadLetters,
    /// Who gets a message for every dead letter.
    mourners: BTreeSet<Pid>,
    /// The node's own dynamic supervisor, once it was needed.
    pub(crate) spawner: Option<ActorId>,
    /// What is left to say when the last of what was spawned is down, too.
    last_word: Option<Action>,
    pub(crate) actions: VecDeque<Action>,
    at: NodeStart,
    next_id: u64,
    next_serial: u64,
    stop_limit: Option<Duration>,
    requests: HashMap<u64, request::Pending>,
    next_request: u64,
    /// Who waits for the end of an incarnation that was told to stop.
    stops: HashMap<Pid, Vec<(Requester, ExitReason)>, FxBuildHasher>,
    last_gave_up: Option<Box<Certificate>>,
    /// Whether the node is on its way down.
    is_stopping: bool,
    /// Whether the root's own limit is used up.
    has_given_up: bool,
    pub(crate) now: Duration,
}

impl Core {
    /// A node whose tree has not been started.
    ///
    /// # Errors
    /// The first fault of the tree; nothing is started then.
    pub fn new(root: SupervisorSpec, at: NodeStart) -> Result<Self, SpecError> {
        spec::check(&root)?;
        let mut core = Core {
            supervisors: HashMap::default(),
            actors: HashMap::default(),
            names: HashMap::default(),
            living: HashMap::default(),
            departed: VecDeque::new(),
            router: Router::default(),
            links: Links::default(),
            registries: Registries::default(),
            waiting: Vec::new(),
            postponed: Vec::new(),
            next_wait: 0,
            alarms: Alarms::default(),
            meters: Meters::default(),
            tracer: Tracer::default(),
            timers: Timers::default(),
            dead_letters: DeadLetters::default(),
            mourners: BTreeSet::new(),
            spawner: None,
            last_word: None,
            actions: VecDeque::new(),
            at,
            next_id: 0,
            next_serial: 0,
            stop_limit: None,
            requests: HashMap::new(),
            next_request: 0,
            stops: HashMap::default(),
            last_gave_up: None,
            is_stopping: false,
            has_given_up: false,
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
                if let Some(id) = self.serving_actor(process) {
                    self.sent(Sender::Process(process, id), Caller::Actor(process.pid), envelope, payload, buffers);
                }
            }
            Event::SentFromOutside { client, envelope, payload } => {
                self.sent(Sender::Outside, Caller::Outside(client), envelope, payload, None);
            }
            Event::OutsideGone { client } => self.forget_caller(Caller::Outside(client)),
            Event::Replied { process, reply, payload, buffers } => self.replied(process, reply, payload, buffers),
            Event::Cancelled { caller, call } => self.cancelled(ReplyTo { caller, call }),
            Event::Awaited { process, call, waits } => {
                let caller = Caller::Actor(process.pid);
                self.awaited(ReplyTo { caller, call }, waits);
            }
            Event::AwaitsRoom { process, call, to, method, waits } => {
                let caller = Caller::Actor(process.pid);
                self.awaits_room(ReplyTo { caller, call }, &to, &method, waits);
            }
            Event::Acked { process, done } => self.acked(process, &done),
            Event::Abandoned { caller, call, page } => self.abandoned(ReplyTo { caller, call }, page),
            Event::Reported { process, reason } => self.reported(process, reason),
            Event::HandedOver { process, state } => {
                if let Some(incarnation) = self.serving(process) {
                    incarnation.handed_over = Some(state);
                }
            }
            Event::WantsMore { process, more } => {
                if let Some(id) = self.serving_actor(process)
                    && let Some(actor) = self.actors.get_mut(&id)
                {
                    actor.mailbox.widen(more);
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
                if let Some(incarnation) = self.serving(process) {
                    incarnation.not_ready = not_ready;
                }
            }
            Event::Misbehaved { process, complaint } => {
                self.kill_for(process, ExitReason::BadProtocol(complaint), "it broke the protocol");
            }
            Event::Died(death) => self.died(*death),
            Event::Requested { from, request, payload } => self.requested(from, request, payload),
            Event::StopNode => self.stop_node(),
            Event::Hurry { limit_ms } => self.hurry(Duration::from_millis(limit_ms)),
            Event::KillAll => {
                self.kill_below(ROOT);
                if let Some(spawner) = self.spawner {
                    self.kill_below(spawner);
                }
                self.stop_node();
                // Nothing that is killed is to come back meanwhile.
                self.stop_supervisor(ROOT, ExitReason::SHUTDOWN);
            }
        }
    }

    /// Does what has become due.
    pub fn handle_timeout(&mut self, now: Duration) {
        self.now = self.now.max(now);
        while let Some((at, due)) = self.timers.pop_due(now) {
            match due {
                Due::Shutdown(process) => self.kill_for(process, ExitReason::Killed, "its time to stop was over"),
                Due::Start(process) => {
                    self.kill_for(process, ExitReason::StartTimeout, "its `init` took longer than `start_timeout`");
                }
                Due::SupervisorShutdown(supervisor) => self.kill_below(supervisor),
                Due::Unwound(process) => self.unwound(process),
                Due::PauseOver(child) => self.pause_over(child),
                Due::Alarm(alarm) => self.ring(alarm, at),
                Due::Look(process) => self.look(process, at),
                Due::Hung(process) => {
                    self.kill_for(process, ExitReason::HeartbeatTimeout, "it was judged hung");
                }
                Due::Aged(process) => self.recycle(process),
                Due::WaitOver(wait) => self.wait_over(wait),
            }
        }
    }

    /// What is to be done next, in order.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When [`Core::handle_timeout`] is to be called, if at all.
    pub fn poll_timeout(&self) -> Option<Duration> {
        self.timers.next_at()
    }

    /// The process that a call waits for, if its callee has one.
    pub fn callee_of(&self, caller: Caller, call: CallId) -> Option<ProcessId> {
        match self.router.get(ReplyTo { caller, call })?.on {
            On::Answer(callee) => Some(self.actors.get(&callee)?.incarnation()?.process),
            On::Room(..) | On::Supervisor(_) | On::Up(_) => None,
        }
    }

    /// The process that an actor has now.
    pub fn process_of(&self, actor: ActorId) -> Option<ProcessId> {
        Some(self.actors.get(&actor)?.incarnation()?.process)
    }

    /// Labels of the actors that have a process, for the last words of a node.
    pub fn alive(&self) -> Vec<String> {
        let mut alive: Vec<(ActorId, String)> = self
            .actors
            .values()
            .filter(|actor| actor.incarnation().is_some())
            .map(|actor| (actor.id, actor.label.clone()))
            .collect();
        alive.sort();
        alive.into_iter().map(|(_, label)| label).collect()
    }

    /// Checks what must hold after every event.
    ///
    /// # Panics
    /// If it does not: that is a bug of this crate.
    pub fn check_invariants(&self) {
        use crate::supervisor::ChildState::{Running, Starting, Stopping};
        let mut alive = 0;
        for actor in self.actors.values() {
            let Some(incarnation) = actor.incarnation() else { continue };
            alive += 1;
            let state = self.supervisors.get(&actor.parent).and_then(|parent| parent.machine.state(actor.id));
            assert!(matches!(state, Some(Starting | Running | Stopping)), "{} is alive and {state:?}", actor.label);
            assert_eq!(self.living.get(&incarnation.process.pid), Some(&actor.id), "{} is not listed", actor.label);
        }
        alive += self.supervisors.values().filter(|node| node.pid.is_some()).count();
        assert_eq!(self.living.len(), alive, "a dead incarnation is listed as living");
        self.registries.check(|pid| self.living.contains_key(&pid));
        for (name, id) in &self.names {
            assert!(self.actors.contains_key(id) || self.supervisors.contains_key(id), "nobody has the name {name}");
        }
    }

    /// How many records of any sort are kept; for tests that nothing is left behind.
    pub fn records(&self) -> usize {
        self.supervisors.len()
            + self.actors.len()
            + self.names.len()
            + self.living.len()
            + self.links.len()
            + self.registries.len()
            + self.waiting.len()
            + self.postponed.len()
            + self.router.len()
            + self.mourners.len()
            + self.requests.len()
            + self.stops.len()
    }

    fn new_id(&mut self) -> ActorId {
        self.next_id += 1;
        ActorId(self.next_id - 1)
    }

    fn new_process(&mut self) -> ProcessId {
        self.next_serial += 1;
        let pid = Pid { at: self.at, serial: self.next_serial };
        ProcessId { pid, generation: Generation(0) }
    }

    /// The incarnation that a process serves now; `None` for a stale one.
    fn serving(&mut self, process: ProcessId) -> Option<&mut Incarnation> {
        let id = self.living.get(&process.pid)?;
        let incarnation = self.actors.get_mut(id)?.incarnation_mut()?;
        (incarnation.process == process).then_some(incarnation)
    }

    fn serving_actor(&self, process: ProcessId) -> Option<ActorId> {
        let id = *self.living.get(&process.pid)?;
        (self.actors.get(&id)?.incarnation()?.process == process).then_some(id)
    }

    fn incarnation_mut(&mut self, id: ActorId) -> Option<&mut Incarnation> {
        self.actors.get_mut(&id)?.incarnation_mut()
    }

    /// How long a stop may take by its own setting and by the node's hurry; `None`: for ever.
    fn stop_time(&self, shutdown: Shutdown) -> Option<Duration> {
        match (shutdown, self.stop_limit) {
            (Shutdown::Timeout(limit), None) => Some(Duration::from_millis(limit)),
            (Shutdown::Timeout(limit), Some(most)) => Some(Duration::from_millis(limit).min(most)),
            (_, most) => most,
        }
    }
}
