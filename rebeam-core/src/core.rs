//! The machine that nests supervisors, owns the actors and routes their mail.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rebeam_protocol::certificate::{Certificate, InHand};
use rebeam_protocol::control::{Answer, Request, Whereabouts};
use rebeam_protocol::exit::ExitReason;
use rebeam_protocol::id::{ActorId, CallId, Generation, NodeStart, Pid, ProcessId, Seq};
use rebeam_protocol::message::{
    Address, CallFailure, Callee, Caller, Delivery, Envelope, Kind, Outcome, Reply, ReplyTo, Started,
};
use rebeam_protocol::page::{Snapshot, Stage as MarkStage};
use rebeam_protocol::spec::{ChildKind, ChildSpec, Restart, Shutdown, SupervisorSpec};
use rustc_hash::FxBuildHasher;

use crate::actor::{Actor, Incarnation, Life, Stage};
use crate::event::{Action, Cause, DeadLetter, Death, Event, Launch, Requester, Status};
use crate::mailbox::{Fate, Mailbox, Message, Sender};
use crate::router::Router;
use crate::spec::{self, SpecError};
use crate::supervisor::{ChildKey, Command, Machine, Purpose, RequestError, Verb, Verdict};
use crate::timers::{Due, Timers};

/// The root supervisor's place in [`Core::supervisors`].
pub(crate) const ROOT: usize = 0;

/// A supervisor of the tree.
#[derive(Debug)]
pub(crate) struct SupervisorNode {
    pub(crate) path: String,
    pub(crate) spec: Arc<SupervisorSpec>,
    pub(crate) shutdown: Shutdown,
    pub(crate) parent: Option<(usize, ChildKey)>,
    pub(crate) machine: Machine,
    pub(crate) members: Vec<Member>,
    pub(crate) starts: u32,
    /// Its time to stop ran out: its children are killed as their turn comes.
    pub(crate) is_killing: bool,
}

/// What a child of a supervisor is.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Member {
    Actor(ActorId),
    Supervisor(usize),
}

/// The pure core of a node. See the crate's documentation for the calling order.
#[derive(Debug)]
pub struct Core {
    pub(crate) supervisors: Vec<SupervisorNode>,
    pub(crate) actors: Vec<Actor>,
    pub(crate) names: HashMap<String, ActorId, FxBuildHasher>,
    living: HashMap<Pid, ActorId, FxBuildHasher>,
    router: Router,
    timers: Timers,
    actions: VecDeque<Action>,
    at: NodeStart,
    next_serial: u64,
    stop_limit: Option<Duration>,
    is_stop_ordered: bool,
    requests: HashMap<u64, (Requester, String)>,
    next_request: u64,
    last_gave_up: Option<Box<Certificate>>,
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
            supervisors: Vec::new(),
            actors: Vec::new(),
            names: HashMap::default(),
            living: HashMap::default(),
            router: Router::default(),
            timers: Timers::default(),
            actions: VecDeque::new(),
            at,
            next_serial: 0,
            stop_limit: None,
            is_stop_ordered: false,
            requests: HashMap::new(),
            next_request: 0,
            last_gave_up: None,
            now: Duration::ZERO,
        };
        core.add_supervisor(&Arc::new(root), "", Shutdown::Infinity, None);
        Ok(core)
    }

    /// Takes note of what happened at `now`, counted from the node's start.
    pub fn handle_event(&mut self, now: Duration, event: Event) {
        self.now = self.now.max(now);
        match event {
            Event::Boot => self.command(ROOT, |machine, now| machine.begin(now)),
            Event::Started { process, started } => self.started(process, started),
            Event::LaunchFailed { process, error } => self.launch_failed(process, error),
            Event::Sent { process, envelope, payload } => {
                if let Some(id) = self.serving_actor(process) {
                    self.sent(Sender::Process(process, id), Caller::Actor(process.pid), envelope, payload);
                }
            }
            Event::SentFromOutside { client, envelope, payload } => {
                self.sent(Sender::Outside, Caller::Outside(client), envelope, payload);
            }
            Event::OutsideGone { client } => self.router.forget_caller(Caller::Outside(client)),
            Event::Replied { process, reply, payload } => self.replied(process, reply, payload),
            Event::Acked { process, done } => self.acked(process, &done),
            Event::Abandoned { caller, call, page } => self.abandoned(ReplyTo { caller, call }, page),
            Event::Reported { process, reason } => {
                if let Some(incarnation) = self.serving(process) {
                    incarnation.report = Some(reason);
                }
            }
            Event::Misbehaved { process, complaint } => self.kill_for(process, ExitReason::BadProtocol(complaint)),
            Event::Died(death) => self.died(*death),
            Event::Requested { from, request } => self.requested(from, request),
            Event::StopNode => {
                self.is_stop_ordered = true;
                self.command(ROOT, |machine, now| machine.stop(ExitReason::SHUTDOWN, now));
            }
            Event::Hurry { limit_ms } => self.hurry(Duration::from_millis(limit_ms)),
            Event::KillAll => self.kill_all(),
        }
    }

    /// Does what has become due.
    pub fn handle_timeout(&mut self, now: Duration) {
        self.now = self.now.max(now);
        while let Some(due) = self.timers.pop_due(now) {
            match due {
                Due::Shutdown(process) => self.kill_for(process, ExitReason::Killed),
                Due::Start(process) => self.kill_for(process, ExitReason::StartTimeout),
                Due::SupervisorShutdown(supervisor) => self.kill_below(supervisor),
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
        let callee = self.router.callee(ReplyTo { caller, call })?;
        Some(self.actor(callee).incarnation()?.process)
    }

    /// Names of actors and paths of children that were told to stop or that are still up, for the last words of a node.
    pub fn alive(&self) -> Vec<String> {
        self.actors.iter().filter(|actor| actor.incarnation().is_some()).map(|actor| actor.label.clone()).collect()
    }

    /// Checks what must hold after every event.
    ///
    /// # Panics
    /// If it does not: that is a bug of this crate.
    pub fn check_invariants(&self) {
        for actor in &self.actors {
            let (supervisor, key) = actor.parent;
            let state = self.supervisors[supervisor].machine.child_state(key);
            if let Some(incarnation) = actor.incarnation() {
                use crate::supervisor::ChildState::{Running, Starting, Stopping};
                assert!(matches!(state, Starting | Running | Stopping), "{} is alive and {state:?}", actor.label);
                assert_eq!(self.living.get(&incarnation.process.pid), Some(&actor.id), "{} is not listed", actor.label);
            }
        }
        let alive = self.actors.iter().filter(|actor| actor.incarnation().is_some()).count();
        assert_eq!(self.living.len(), alive, "a dead incarnation is listed as living");
    }

    fn add_supervisor(
        &mut self,
        spec: &Arc<SupervisorSpec>,
        path: &str,
        shutdown: Shutdown,
        parent: Option<(usize, ChildKey)>,
    ) -> usize {
        let place = self.supervisors.len();
        self.supervisors.push(SupervisorNode {
            path: path.to_owned(),
            machine: Machine::new(spec),
            spec: spec.clone(),
            shutdown,
            parent,
            members: Vec::new(),
            starts: 0,
            is_killing: false,
        });
        for (index, child) in spec.children.iter().enumerate() {
            let path = if path.is_empty() { child.id.clone() } else { format!("{path}/{}", child.id) };
            let parent = (place, ChildKey(index));
            let member = self.add_child(child, path, parent);
            self.supervisors[place].members.push(member);
        }
        place
    }

    fn add_child(&mut self, child: &ChildSpec, path: String, parent: (usize, ChildKey)) -> Member {
        match &child.kind {
            ChildKind::Supervisor(inner) => {
                Member::Supervisor(self.add_supervisor(&Arc::new(inner.clone()), &path, child.shutdown, Some(parent)))
            }
            ChildKind::Actor(spec) => {
                let id = ActorId(self.actors.len() as u64);
                if let Some(name) = &spec.name {
                    self.names.insert(name.clone(), id);
                }
                self.actors.push(Actor {
                    id,
                    label: spec.name.clone().unwrap_or_else(|| path.clone()),
                    path,
                    spec: Arc::new(spec.clone()),
                    shutdown: child.shutdown,
                    parent,
                    mailbox: Mailbox::new(spec.mailbox),
                    life: Life::Waiting,
                    starts: 0,
                    certificates: VecDeque::new(),
                });
                Member::Actor(id)
            }
        }
    }

    pub(crate) fn actor(&self, id: ActorId) -> &Actor {
        &self.actors[id.0 as usize]
    }

    fn actor_mut(&mut self, id: ActorId) -> &mut Actor {
        &mut self.actors[id.0 as usize]
    }

    /// The incarnation that a process serves now; `None` for a stale one.
    fn serving(&mut self, process: ProcessId) -> Option<&mut Incarnation> {
        let id = *self.living.get(&process.pid)?;
        self.actor_mut(id).incarnation_mut().filter(|incarnation| incarnation.process == process)
    }

    fn serving_actor(&self, process: ProcessId) -> Option<ActorId> {
        let id = *self.living.get(&process.pid)?;
        (self.actor(id).incarnation()?.process == process).then_some(id)
    }

    // ---- supervision -------------------------------------------------------------------------------------------

    /// Tells a supervisor something, then carries out what it and those it affects want, until all are quiet.
    fn command(&mut self, supervisor: usize, tell: impl FnOnce(&mut Machine, Duration)) {
        tell(&mut self.supervisors[supervisor].machine, self.now);
        let mut busy = VecDeque::from([supervisor]);
        while let Some(place) = busy.pop_front() {
            while let Some(command) = self.supervisors[place].machine.poll_command() {
                self.carry_out(place, command, &mut busy);
            }
        }
    }

    fn carry_out(&mut self, place: usize, command: Command, busy: &mut VecDeque<usize>) {
        let now = self.now;
        match command {
            Command::Start(child) => match self.supervisors[place].members[child.0] {
                Member::Actor(id) => self.start_actor(id),
                Member::Supervisor(inner) => {
                    let node = &mut self.supervisors[inner];
                    node.machine = Machine::new(&node.spec);
                    node.starts += 1;
                    node.is_killing = false;
                    node.machine.begin(now);
                    busy.push_back(inner);
                }
            },
            Command::Stop { child, purpose } => match self.supervisors[place].members[child.0] {
                Member::Actor(id) => self.stop_actor(id, purpose, self.supervisors[place].is_killing),
                Member::Supervisor(inner) => {
                    if let Shutdown::Timeout(limit) = self.supervisors[inner].shutdown {
                        self.timers.set(now + Duration::from_millis(limit), Due::SupervisorShutdown(inner));
                    }
                    if self.supervisors[inner].shutdown == Shutdown::BrutalKill || self.supervisors[place].is_killing {
                        self.kill_below(inner);
                    }
                    self.supervisors[inner].machine.stop(ExitReason::SHUTDOWN, now);
                    busy.push_back(inner);
                }
            },
            Command::Verdict { child, reason, verdict } => self.report(place, child, &reason, verdict),
            Command::Settled(child) => self.settle(self.supervisors[place].members[child.0]),
            Command::Up => match self.supervisors[place].parent {
                Some((parent, child)) => {
                    self.supervisors[parent].machine.child_started(child, now);
                    busy.push_back(parent);
                }
                None => self.actions.push_back(Action::NodeUp),
            },
            Command::Failed { child, reason } => self.start_failed(place, child, reason, busy),
            Command::Ended(reason) => match self.supervisors[place].parent {
                Some((parent, child)) => {
                    self.supervisors[parent].machine.child_ended(child, reason, now);
                    busy.push_back(parent);
                }
                None => {
                    self.settle(Member::Supervisor(ROOT));
                    let certificate = self.last_gave_up.take();
                    self.actions.push_back(Action::NodeEnded { ordered: self.is_stop_ordered, certificate });
                }
            },
            Command::Answer { request, result } => {
                let Some((to, what)) = self.requests.remove(&request) else { return };
                let answer = match result {
                    Ok(()) => Answer::Ok,
                    Err(RequestError::StartFailed(reason)) => Answer::Failed { what, reason },
                    Err(RequestError::Ending) => Answer::Refused("its supervisor is stopping".into()),
                };
                self.actions.push_back(Action::Answer { to, answer });
            }
        }
    }

    /// The initial start of a supervisor failed and is rolled back: to its parent, a child that did not start.
    fn start_failed(&mut self, place: usize, child: ChildKey, reason: ExitReason, busy: &mut VecDeque<usize>) {
        if let Some((parent, own)) = self.supervisors[place].parent {
            self.supervisors[parent].machine.child_ended(own, reason, self.now);
            busy.push_back(parent);
            return;
        }
        let mut member = self.supervisors[place].members[child.0];
        // A supervisor that failed did so because of a child of its own: name the innermost.
        while let Member::Supervisor(inner) = member {
            let failed = self.supervisors[inner].members.iter().find(|member| match member {
                Member::Actor(id) => self.actor(*id).certificates.back().is_some_and(|last| last.reason == reason),
                Member::Supervisor(_) => true,
            });
            let Some(failed) = failed else { break };
            member = *failed;
        }
        let (child, certificate) = match member {
            Member::Actor(id) => {
                (self.actor(id).label.clone(), self.actor(id).certificates.back().cloned().map(Box::new))
            }
            Member::Supervisor(inner) => (self.supervisors[inner].path.clone(), None),
        };
        self.actions.push_back(Action::NodeFailed { child, reason, certificate });
    }

    fn report(&mut self, place: usize, child: ChildKey, reason: &ExitReason, verdict: Verdict) {
        let spec = &self.supervisors[place].spec.children[child.0];
        let Member::Actor(id) = self.supervisors[place].members[child.0] else { return };
        let Some(certificate) = self.actor(id).certificates.back() else { return };
        let certificate = Box::new(certificate.clone());
        if verdict == Verdict::GivesUp {
            self.last_gave_up = Some(certificate.clone());
        }
        // SUP-025: every abnormal end, and every end of a permanent child; but none that was ordered.
        let is_due = !reason.is_clean() || spec.restart == Restart::Permanent;
        if is_due && !self.supervisors[place].is_killing {
            self.actions.push_back(Action::Report { certificate, verdict });
        }
    }

    /// The child will not come back by itself: its mail is dead, and so is that of everything below it.
    fn settle(&mut self, member: Member) {
        match member {
            Member::Supervisor(inner) => {
                for member in self.supervisors[inner].members.clone() {
                    self.settle(member);
                }
            }
            Member::Actor(id) => match &mut self.actor_mut(id).life {
                Life::Alive(incarnation) => incarnation.is_last = true,
                Life::Waiting | Life::Gone => {
                    self.actor_mut(id).life = Life::Gone;
                    self.bury_mail(id);
                }
            },
        }
    }

    fn start_actor(&mut self, id: ActorId) {
        self.next_serial += 1;
        let pid = Pid { at: self.at, serial: self.next_serial };
        let process = ProcessId { pid, generation: Generation(0) };
        let since = self.now;
        let start_limit = self.actor(id).spec.start_ms.map(Duration::from_millis);
        let timer = start_limit.map(|limit| self.timers.set(since + limit, Due::Start(process)));
        let actor = self.actor_mut(id);
        actor.life = Life::Alive(Box::new(Incarnation {
            process,
            since,
            stage: Stage::Starting,
            timer,
            report: None,
            killed_for: None,
            owed: Vec::new(),
            is_last: false,
        }));
        let launch = Launch {
            process,
            actor: id,
            label: actor.label.clone(),
            named: actor.spec.name.is_some(),
            restarts: actor.starts,
            spec: actor.spec.clone(),
        };
        actor.starts += 1;
        self.living.insert(pid, id);
        self.actions.push_back(Action::Launch(launch));
    }

    fn stop_actor(&mut self, id: ActorId, purpose: Purpose, is_killing: bool) {
        let now = self.now;
        let stop_limit = self.stop_limit;
        let actor = self.actor_mut(id);
        let shutdown = actor.shutdown;
        let Some(incarnation) = actor.incarnation_mut() else { return };
        let process = incarnation.process;
        let old_timer = incarnation.timer.take();
        let is_starting = incarnation.stage == Stage::Starting;
        let urgent = purpose == Purpose::Restart || is_starting || stop_limit.is_some();
        incarnation.stage = Stage::Stopping { asked: urgent };
        self.timers.cancel(old_timer);
        if shutdown == Shutdown::BrutalKill || is_killing {
            self.kill_for(process, ExitReason::Killed);
            return;
        }
        let limit = match (shutdown, stop_limit) {
            (Shutdown::Timeout(limit), None) => Some(Duration::from_millis(limit)),
            (Shutdown::Timeout(limit), Some(most)) => Some(Duration::from_millis(limit).min(most)),
            (_, most) => most,
        };
        let timer = limit.map(|limit| self.timers.set(now + limit, Due::Shutdown(process)));
        if let Some(incarnation) = self.actor_mut(id).incarnation_mut() {
            incarnation.timer = timer;
        }
        if urgent {
            self.actions.push_back(Action::Stop { process, reason: ExitReason::SHUTDOWN, urgent });
        } else {
            self.actor_mut(id).mailbox.seal();
            self.pump(id);
        }
    }

    fn started(&mut self, process: ProcessId, started: Started) {
        let Some(id) = self.serving_actor(process) else { return };
        let (parent, child) = self.actor(id).parent;
        if started == Started::Ignore {
            return self.command(parent, |machine, now| machine.child_ignored(child, now));
        }
        let Some(incarnation) = self.actor_mut(id).incarnation_mut() else { return };
        if incarnation.stage != Stage::Starting {
            return;
        }
        incarnation.stage = Stage::Running;
        let timer = incarnation.timer.take();
        self.timers.cancel(timer);
        self.command(parent, |machine, now| machine.child_started(child, now));
        self.pump(id);
    }

    fn launch_failed(&mut self, process: ProcessId, error: String) {
        let Some(incarnation) = self.serving(process) else { return };
        incarnation.report = Some(ExitReason::NotStarted(error));
        self.died(Death {
            process,
            os_pid: 0,
            status: Status::Exited(0),
            page: Snapshot::default(),
            clock_ns: 0,
            last_output: Vec::new(),
            cpu_ms: 0,
            peak_kib: 0,
        });
    }

    /// Kills a process and remembers why, unless something else is its end already.
    fn kill_for(&mut self, process: ProcessId, reason: ExitReason) {
        let Some(incarnation) = self.serving(process) else { return };
        incarnation.killed_for.get_or_insert(reason);
        let timer = incarnation.timer.take();
        self.timers.cancel(timer);
        self.actions.push_back(Action::Kill(process));
    }

    /// A supervisor's time to stop is over: whatever lives below it is killed, and what is still to be stopped too.
    fn kill_below(&mut self, supervisor: usize) {
        self.supervisors[supervisor].is_killing = true;
        for member in self.supervisors[supervisor].members.clone() {
            match member {
                Member::Supervisor(inner) => self.kill_below(inner),
                Member::Actor(id) => {
                    if let Some(incarnation) = self.actor(id).incarnation() {
                        self.kill_for(incarnation.process, ExitReason::Killed);
                    }
                }
            }
        }
    }

    /// From now on no stop takes longer than `limit`, and mail that waits is not handled first.
    fn hurry(&mut self, limit: Duration) {
        self.stop_limit = Some(limit);
        for index in 0..self.actors.len() {
            let Some(incarnation) = self.actors[index].incarnation_mut() else { continue };
            let Stage::Stopping { asked } = &mut incarnation.stage else { continue };
            let process = incarnation.process;
            let was_asked = std::mem::replace(asked, true);
            let timer = incarnation.timer.take();
            self.timers.cancel(timer);
            let timer = self.timers.set(self.now + limit, Due::Shutdown(process));
            if let Some(incarnation) = self.actors[index].incarnation_mut() {
                incarnation.timer = Some(timer);
            }
            if !was_asked {
                self.actions.push_back(Action::Stop { process, reason: ExitReason::SHUTDOWN, urgent: true });
            }
        }
    }

    fn kill_all(&mut self) {
        self.is_stop_ordered = true;
        self.kill_below(ROOT);
        self.command(ROOT, |machine, now| machine.stop(ExitReason::SHUTDOWN, now));
    }

    fn died(&mut self, death: Death) {
        let Some(id) = self.serving_actor(death.process) else { return };
        self.living.remove(&death.process.pid);
        let actor = self.actor_mut(id);
        let Life::Alive(mut incarnation) = std::mem::replace(&mut actor.life, Life::Waiting) else { return };
        let timer = incarnation.timer.take();
        let reason = exit_reason(&incarnation, death.status);
        let fates = self.actor_mut(id).mailbox.process_died(&death.page);
        self.timers.cancel(timer);
        let age = self.now.saturating_sub(incarnation.since);
        let certificate = Certificate {
            actor: self.actor(id).label.clone(),
            pid: death.process.pid,
            os_pid: death.os_pid,
            reason: reason.clone(),
            in_hand: self.in_hand(&fates, death.clock_ns),
            last_output: death.last_output,
            age_ms: age.as_millis() as u64,
            restarts: self.actor(id).starts.saturating_sub(1),
            cpu_ms: death.cpu_ms,
            peak_kib: death.peak_kib,
        };
        self.actor_mut(id).keep_certificate(certificate.clone());
        self.router.forget_caller(Caller::Actor(death.process.pid));
        for fate in fates {
            match fate {
                Fate::InHand { message, .. } => self.bury(id, message, Cause::InHand, &certificate),
                Fate::ForPid(message) => self.bury(id, message, Cause::PidDead, &certificate),
            }
        }
        for call in incarnation.owed {
            self.fail_call(call, CallFailure::Died(Box::new(certificate.clone())));
        }
        if incarnation.is_last {
            self.settle(Member::Actor(id));
        }
        let (parent, child) = self.actor(id).parent;
        self.command(parent, |machine, now| machine.child_ended(child, reason, now));
    }

    fn in_hand(&self, fates: &[Fate], clock_ns: u64) -> Vec<InHand> {
        let in_hand = |fate: &Fate| match fate {
            Fate::InHand { message, since_ns } => Some(InHand {
                method: message.method.to_string(),
                sender: self.sender_label(message.sender),
                age_ms: clock_ns.saturating_sub(*since_ns) / 1_000_000,
                delivery: message.deliveries,
            }),
            Fate::ForPid(_) => None,
        };
        fates.iter().filter_map(in_hand).collect()
    }

    // ---- mail --------------------------------------------------------------------------------------------------

    fn sent(&mut self, sender: Sender, caller: Caller, envelope: Envelope, payload: Bytes) {
        let reply_to = match envelope.kind {
            Kind::Call { call, .. } => Some(ReplyTo { caller, call }),
            Kind::Cast => None,
        };
        let Some(id) = self.resolve(&envelope.to) else {
            if let Some(ReplyTo { call, .. }) = reply_to {
                let failure = self.no_proc(&envelope.to);
                self.reply_failure(caller, call, failure);
            }
            return;
        };
        // Only a handler that calls its own actor waits for itself; another thread of it may well call.
        if let (Some(ReplyTo { call, .. }), Sender::Process(_, own), Some(_)) = (reply_to, sender, envelope.parent)
            && own == id
        {
            let target = self.actor(id).label.clone();
            return self.reply_failure(caller, call, CallFailure::CallingSelf { target });
        }
        let is_full = self.actor(id).mailbox.is_full();
        if is_full && let Some(ReplyTo { caller: Caller::Outside(_), call }) = reply_to {
            let actor = self.actor(id);
            let failure = CallFailure::MailboxFull { target: actor.label.clone(), waiting: actor.mailbox.len() as u64 };
            return self.reply_failure(caller, call, failure);
        }
        if let Some(call) = reply_to
            && !self.router.open(call, id)
        {
            // Two calls with one number: the worker's bookkeeping is broken, and an answer could reach the wrong one.
            if let Sender::Process(process, _) = sender {
                self.kill_for(process, ExitReason::BadProtocol(format!("call {} was made twice", call.call.0)));
            }
            return;
        }
        let deadline = envelope.deadline_ms.map(|left| self.now + Duration::from_millis(left));
        let for_pid = matches!(envelope.to, Address::Pid(_));
        self.actor_mut(id).mailbox.push(Message {
            sender,
            for_pid,
            reply_to,
            codec: envelope.codec,
            lane: envelope.lane,
            deliveries: 0,
            deadline,
            method: envelope.method.into_boxed_str(),
            payload,
            trace: envelope.trace.map(Box::new),
        });
        self.pump(id);
        if let Sender::Process(process, _) = sender
            && self.actor(id).mailbox.is_full()
            && self.actor_mut(id).mailbox.shut_out(process, &envelope.to)
        {
            self.actions.push_back(Action::Gate { process, to: envelope.to, open: false });
        }
    }

    /// The actor behind an address, if mail to it can still arrive.
    fn resolve(&self, to: &Address) -> Option<ActorId> {
        let id = match to {
            Address::Name(name) => *self.names.get(name)?,
            Address::Actor(id) => *id,
            Address::Pid(pid) => *self.living.get(pid)?,
        };
        let actor = self.actors.get(id.0 as usize)?;
        (!matches!(actor.life, Life::Gone)).then_some(id)
    }

    /// Hands over what the window has room for; a stop that waits for its turn follows the last of it.
    fn pump(&mut self, id: ActorId) {
        let now = self.now;
        loop {
            let actor = &mut self.actors[id.0 as usize];
            let Life::Alive(incarnation) = &mut actor.life else { return };
            match incarnation.stage {
                Stage::Running | Stage::Stopping { asked: false } => {}
                Stage::Starting | Stage::Stopping { asked: true } => return,
            }
            let process = incarnation.process;
            let Some(mut message) = actor.mailbox.next() else {
                if incarnation.stage == (Stage::Stopping { asked: false }) && actor.mailbox.is_drained() {
                    incarnation.stage = Stage::Stopping { asked: true };
                    self.actions.push_back(Action::Stop { process, reason: ExitReason::SHUTDOWN, urgent: false });
                }
                break;
            };
            // Nobody waits for it any more: dropped before it costs anything.
            if message.reply_to.is_some_and(|call| !self.router.is_open(call)) {
                continue;
            }
            let deadline_ms = match message.deadline {
                Some(deadline) if deadline < now => continue,
                Some(deadline) => Some((deadline - now).as_millis() as u64),
                None => None,
            };
            message.deliveries += 1;
            let payload = message.payload.clone();
            let sender = self.sender_label(message.sender);
            let mut delivery = Delivery {
                seq: Seq(0),
                reply_to: message.reply_to,
                method: message.method.to_string(),
                codec: message.codec,
                lane: message.lane,
                deadline_ms,
                delivery: message.deliveries,
                sender,
                trace: message.trace.as_deref().copied(),
            };
            delivery.seq = self.actor_mut(id).mailbox.hand_over(message);
            self.actions.push_back(Action::Deliver { process, delivery, payload });
        }
        for (process, to) in self.actor_mut(id).mailbox.let_in() {
            self.actions.push_back(Action::Gate { process, to, open: true });
        }
    }

    fn replied(&mut self, process: ProcessId, reply: Reply, payload: Bytes) {
        let Some(id) = self.serving_actor(process) else { return };
        if let Some(seq) = reply.done {
            self.actor_mut(id).mailbox.settle(seq);
        }
        if self.router.close(reply.to).is_some() {
            let ReplyTo { caller, call } = reply.to;
            self.actions.push_back(Action::Reply { to: caller, call, outcome: reply.outcome, payload });
        }
        self.pump(id);
    }

    fn acked(&mut self, process: ProcessId, done: &[Seq]) {
        let Some(id) = self.serving_actor(process) else { return };
        for &seq in done {
            let Some(message) = self.actor_mut(id).mailbox.settle(seq) else { continue };
            // Done without an answer: it is owed, and fails with the incarnation that owes it.
            if let Some(call) = message.reply_to
                && self.router.is_open(call)
                && let Some(incarnation) = self.actor_mut(id).incarnation_mut()
            {
                incarnation.owed.push(call);
            }
        }
        self.pump(id);
    }

    fn abandoned(&mut self, call: ReplyTo, page: Option<(Snapshot, u64)>) {
        let Some(callee) = self.router.close(call) else { return };
        let state = self.state_word(callee).to_owned();
        let actor = self.actor(callee);
        let busy = page.and_then(|(page, now_ns)| busy_with(actor, &page, now_ns));
        let waiting = actor.mailbox.handed().filter(|(_, message)| message.reply_to != Some(call)).count();
        let waiting = (actor.mailbox.len() + waiting).saturating_sub(usize::from(busy.is_some()));
        let callee = Callee { target: actor.label.clone(), state, busy, waiting: waiting as u64 };
        self.reply_failure(call.caller, call.call, CallFailure::TimedOut(callee));
    }

    /// Nobody will come for the mail of this actor.
    fn bury_mail(&mut self, id: ActorId) {
        let certificate = self.actor(id).certificates.back().cloned();
        for message in self.actor_mut(id).mailbox.drain() {
            match &certificate {
                Some(certificate) => self.bury(id, message, Cause::ReceiverGone, certificate),
                None => {
                    if let Some(call) = message.reply_to {
                        let failure = self.no_proc(&Address::Actor(id));
                        self.fail_call(call, failure);
                    }
                }
            }
        }
    }

    fn bury(&mut self, id: ActorId, message: Message, cause: Cause, certificate: &Certificate) {
        match message.reply_to {
            Some(call) => self.fail_call(call, CallFailure::Died(Box::new(certificate.clone()))),
            None => self.actions.push_back(Action::DeadLetter(DeadLetter {
                to: self.actor(id).label.clone(),
                method: message.method.into(),
                sender: self.sender_label(message.sender),
                cause,
            })),
        }
    }

    fn fail_call(&mut self, call: ReplyTo, failure: CallFailure) {
        if self.router.close(call).is_some() {
            self.reply_failure(call.caller, call.call, failure);
        }
    }

    fn reply_failure(&mut self, to: Caller, call: CallId, failure: CallFailure) {
        self.actions.push_back(Action::Reply { to, call, outcome: Outcome::Failed(failure), payload: Bytes::new() });
    }

    fn no_proc(&self, to: &Address) -> CallFailure {
        let target = match to {
            Address::Actor(id) => self.actors.get(id.0 as usize).map(|actor| actor.label.clone()),
            _ => None,
        };
        let target = target.unwrap_or_else(|| rebeam_protocol::control::address_label(to));
        CallFailure::NoProc { similar: self.similar(&target), target }
    }

    fn sender_label(&self, sender: Sender) -> String {
        match sender {
            Sender::Outside => "outside".into(),
            Sender::Process(_, id) => self.actor(id).label.clone(),
        }
    }

    // ---- requests ----------------------------------------------------------------------------------------------

    fn requested(&mut self, from: Requester, request: Request) {
        let answer = match request {
            Request::Whereis { name } => Answer::Whereis(self.names.get(&name).and_then(|&id| {
                let actor = self.actor(id);
                let pid = actor.incarnation().map(|incarnation| incarnation.process.pid);
                (!matches!(actor.life, Life::Gone)).then_some(Whereabouts { actor: id, pid })
            })),
            Request::Why { name } => match self.find(&name) {
                Some((_, _, Member::Actor(id))) => Answer::Why(self.actor(id).certificates.iter().cloned().collect()),
                _ => self.not_found(name),
            },
            Request::StopChild { name } => return self.request_child(from, name, Verb::Terminate),
            Request::RestartChild { name } => return self.request_child(from, name, Verb::Cycle),
            Request::Down => {
                self.actions.push_back(Action::Answer { to: from, answer: Answer::Ok });
                return self.handle_event(self.now, Event::StopNode);
            }
            Request::Node | Request::List | Request::Call { .. } | Request::Cast { .. } => {
                Answer::Refused("this is asked of the node, not of its core".into())
            }
        };
        self.actions.push_back(Action::Answer { to: from, answer });
    }

    fn request_child(&mut self, from: Requester, name: String, verb: Verb) {
        let Some((supervisor, child, member)) = self.find(&name) else {
            let answer = self.not_found(name);
            self.actions.push_back(Action::Answer { to: from, answer });
            return;
        };
        if self.supervisors[supervisor].machine.state_word() == "stopped" {
            let answer = Answer::Refused("its supervisor is down".into());
            self.actions.push_back(Action::Answer { to: from, answer });
            return;
        }
        // What was settled may come back now: its mail is to wait again.
        if verb == Verb::Cycle
            && let Member::Actor(id) = member
            && matches!(self.actor(id).life, Life::Gone)
        {
            self.actor_mut(id).life = Life::Waiting;
        }
        self.next_request += 1;
        let request = self.next_request;
        self.requests.insert(request, (from, name));
        self.command(supervisor, |machine, now| machine.request(request, verb, child, now));
    }
}

/// The reason of an end: the first that applies of MAP-02.
fn exit_reason(incarnation: &Incarnation, status: Status) -> ExitReason {
    if let Some(report) = &incarnation.report {
        return report.clone();
    }
    match (&incarnation.killed_for, status) {
        (Some(reason), Status::Signalled(9)) => reason.clone(),
        (_, Status::Signalled(number)) => ExitReason::Signal(number),
        (_, Status::Exited(code)) => ExitReason::ExitCode(code),
    }
}

/// What an actor has in hand by its page: the oldest message begun and not done.
pub(crate) fn busy_with(actor: &Actor, page: &Snapshot, now_ns: u64) -> Option<(String, u64)> {
    let (Seq(seq), message) = actor.mailbox.handed().find(|(seq, _)| page.stage(seq.0) == MarkStage::Begun)?;
    Some((message.method.to_string(), now_ns.saturating_sub(page.since_ns(*seq)) / 1_000_000))
}
