//! Requests to the supervisor itself: of the command line, and of actors about supervisors.

use bytes::Bytes;
use rebeam_protocol::control::{Answer, Request, Whereabouts};
use rebeam_protocol::exit::ExitReason;
use rebeam_protocol::id::{ActorId, CallId, Pid};
use rebeam_protocol::message::{Address, Caller, ReplyTo, Waits};
use rebeam_protocol::process::{
    ChildAddress, ChildEntry, ChildError, Counts, ProcessAnswer, ProcessRequest, SupervisorRequest,
};
use rebeam_protocol::spec::{ChildKind, ChildSpec};

use super::Core;
use super::tree::traits;
use crate::actor::Life;
use crate::event::{Action, Requester};
use crate::router::On;
use crate::spec;
use crate::supervisor::{ChildRef, ChildState, Done, RequestError, Verb};

/// A request that a supervisor's machine has not got to yet.
#[derive(Debug)]
pub(super) struct Pending {
    from: Requester,
    what: What,
}

/// What is answered once the machine is done.
#[derive(Debug)]
enum What {
    /// `rebeam stop` or `restart`, of that name.
    ByName(String),
    /// A child was started.
    Start,
    Done,
    Exit(ExitReason),
    Which,
    Count,
    Spec,
}

impl Core {
    pub(super) fn answer(&mut self, to: Requester, answer: Answer) {
        self.answer_with(to, answer, Bytes::new());
    }

    fn answer_with(&mut self, to: Requester, answer: Answer, payload: Bytes) {
        if let Some(wait) = wait_of(to) {
            self.router.close(wait);
        }
        if to != Requester::Nobody {
            self.actions.push_back(Action::Answer { to, answer, payload });
        }
    }

    pub(super) fn requested(&mut self, from: Requester, request: Request, payload: Bytes) {
        let answer = match request {
            Request::Whereis { name } => Answer::Whereis(self.member(&Address::Name(name)).and_then(|id| {
                let is_gone = self.actors.get(&id).is_some_and(|actor| matches!(actor.life, Life::Gone));
                (!is_gone).then(|| Whereabouts { actor: id, pid: self.pid_of(&Address::Actor(id)) })
            })),
            Request::Why { name } if self.find(&name).is_some_and(|id| self.supervisors.contains_key(&id)) => {
                Answer::Refused(format!("`{name}` is a supervisor: ask for one of its actors"))
            }
            Request::Why { name } => match self.find(&name).and_then(|id| self.actors.get(&id)) {
                Some(actor) => Answer::Why(actor.certificates.iter().cloned().collect()),
                None => match self.departed(&name) {
                    certificates if certificates.is_empty() => self.not_found(name),
                    certificates => Answer::Why(certificates),
                },
            },
            Request::StopChild { name } => return self.request_by_name(from, name, Verb::Terminate),
            Request::RestartChild { name } => return self.request_by_name(from, name, Verb::Cycle),
            Request::Down => {
                self.answer(from, Answer::Ok);
                return self.stop_node();
            }
            Request::DeadLetters(request) => {
                let (answer, content) = self.about_dead_letters(request);
                return self.answer_with(from, answer, content);
            }
            Request::Entries(registry) => Answer::Entries(self.entry_infos(&registry)),
            Request::Process(request) => match self.process_request(from, request, payload) {
                Some(answer) => Answer::Process(answer),
                None => return,
            },
            Request::LogLevel { name, level } => self.set_log_level(name, level),
            Request::Node
            | Request::List
            | Request::Call { .. }
            | Request::Cast { .. }
            | Request::Health
            | Request::Stacks { .. } => Answer::Refused("this is asked of the node, not of its core".into()),
        };
        self.answer(from, answer);
    }

    fn set_log_level(&mut self, name: String, level: u16) -> Answer {
        let Some(actor) = self.find(&name).and_then(|id| self.actors.get_mut(&id)) else { return self.not_found(name) };
        actor.log_level = Some(level);
        if let Some(incarnation) = actor.incarnation() {
            let process = incarnation.process;
            self.actions.push_back(Action::LogLevel { process, level });
        }
        Answer::Ok
    }

    fn request_by_name(&mut self, from: Requester, name: String, verb: impl FnOnce(ChildRef) -> Verb) {
        let Some((id, parent)) = self.find(&name).and_then(|id| Some((id, self.parent_of(id)?))) else {
            let answer = self.not_found(name);
            return self.answer(from, answer);
        };
        self.revive(id);
        self.ask_supervisor(parent, from, What::ByName(name), verb(ChildRef::Key(id)));
    }

    /// What was settled may come back now: its mail is to wait again.
    fn revive(&mut self, id: ActorId) {
        if let Some(actor) = self.actors.get_mut(&id)
            && matches!(actor.life, Life::Gone)
        {
            actor.life = Life::Waiting;
        }
    }

    fn ask_supervisor(&mut self, supervisor: ActorId, from: Requester, what: What, verb: Verb) {
        self.next_request += 1;
        let request = self.next_request;
        self.requests.insert(request, Pending { from, what });
        self.command(supervisor, |machine, now| machine.request(request, verb, now));
    }

    /// A request of an actor about a supervisor's children; `None` if the answer comes later.
    pub(super) fn supervisor_request(
        &mut self,
        from: Requester,
        own: ActorId,
        supervisor: &Address,
        request: SupervisorRequest,
        waits: Waits,
    ) -> Option<ProcessAnswer> {
        let id = self.supervisor_at(supervisor).filter(|id| self.supervisors[id].pid.is_some());
        let Some(id) = id else { return Some(ProcessAnswer::NoProc) };
        if self.waits_for(id, own) {
            return Some(ProcessAnswer::Child(ChildError::WaitingForYou));
        }
        // What would have to end first would wait for the answer.
        if let SupervisorRequest::Terminate(child) | SupervisorRequest::Restart(child) = &request
            && self.key_of(id, child).is_some_and(|child| self.is_below(own, child))
        {
            return Some(ProcessAnswer::Child(ChildError::WaitingForYou));
        }
        let (what, verb) = match request {
            SupervisorRequest::Start(child) => match self.check_new(id, &child) {
                Ok(()) => {
                    let traits = traits(&child);
                    (What::Start, Verb::Start(self.add_child(*child, id), traits))
                }
                Err(error) => {
                    let again = || ProcessRequest::Supervisor {
                        supervisor: supervisor.clone(),
                        request: SupervisorRequest::Start(child),
                        waits,
                    };
                    let is_postponed = self.postpone(from, &error, again);
                    return (!is_postponed).then_some(ProcessAnswer::Child(error));
                }
            },
            SupervisorRequest::Terminate(child) => (What::Done, Verb::Terminate(self.child_ref(&child))),
            SupervisorRequest::Restart(child) => {
                if let Some(key) = self.key_of(id, &child) {
                    self.revive(key);
                }
                (What::Start, Verb::Restart(self.child_ref(&child)))
            }
            SupervisorRequest::Delete(child) => (What::Done, Verb::Delete(self.child_ref(&child))),
            SupervisorRequest::Exit(child, reason) => (What::Exit(reason), Verb::Look(Some(self.child_ref(&child)))),
            SupervisorRequest::Which => (What::Which, Verb::Look(None)),
            SupervisorRequest::Count => (What::Count, Verb::Look(None)),
            SupervisorRequest::Spec(child) => (What::Spec, Verb::Look(Some(self.child_ref(&child)))),
        };
        if let Some(cycle) = self.wait_for_supervisor(from, id, waits) {
            return Some(ProcessAnswer::Deadlock(cycle));
        }
        self.ask_supervisor(id, from, what, verb);
        None
    }

    /// Notes that an actor waits for a supervisor; the cycle, if that would be for ever.
    fn wait_for_supervisor(&mut self, from: Requester, supervisor: ActorId, waits: Waits) -> Option<Vec<String>> {
        let wait = wait_of(from)?;
        self.router.open(wait, On::Supervisor(supervisor), waits, None);
        let cycle = self.deadlock(wait, "");
        if cycle.is_some() {
            self.router.close(wait);
        }
        cycle
    }

    /// Starts a child under the node's own dynamic supervisor; `None` if the answer comes later.
    pub(super) fn spawn(
        &mut self,
        from: Requester,
        owner: Option<Pid>,
        child: Box<ChildSpec>,
        is_linked: bool,
        waits: Waits,
    ) -> Option<ProcessAnswer> {
        let spawner = self.spawner();
        if self.supervisors[&spawner].pid.is_none() {
            return Some(ProcessAnswer::Child(ChildError::Ending));
        }
        if let Err(error) = self.check_new(spawner, &child) {
            let is_owned = owner.is_some();
            let is_postponed =
                self.postpone(from, &error, || ProcessRequest::Spawn { child, is_owned, is_linked, waits });
            return (!is_postponed).then_some(ProcessAnswer::Child(error));
        }
        let traits = traits(&child);
        let id = self.add_child(*child, spawner);
        if let Some(actor) = self.actors.get_mut(&id) {
            actor.owner = owner;
            actor.is_linked = is_linked;
        }
        self.wait_for_supervisor(from, spawner, waits);
        self.ask_supervisor(spawner, from, What::Start, Verb::Start(id, traits));
        None
    }

    /// Stops what an incarnation that has ended had spawned.
    pub(super) fn stop_what_it_owns(&mut self, owner: Pid) {
        let Some(spawner) = self.spawner else { return };
        let Some(node) = self.supervisors.get(&spawner) else { return };
        let is_owned = |id: &ActorId| self.actors.get(id).is_some_and(|actor| actor.owner == Some(owner));
        let owned: Vec<ActorId> = node.machine.children().map(|(child, ..)| child).filter(is_owned).collect();
        for child in owned {
            self.ask_supervisor(spawner, Requester::Nobody, What::Done, Verb::Terminate(ChildRef::Key(child)));
        }
    }

    /// Whether a supervisor, or one above an actor that it waits for, waits for the actor that asks (rule 10).
    fn waits_for(&self, supervisor: ActorId, own: ActorId) -> bool {
        let mut below = own;
        while let Some(parent) = self.parent_of(below) {
            if !self.supervisors[&parent].machine.waits_for(below) {
                return false;
            }
            if parent == supervisor {
                return true;
            }
            below = parent;
        }
        false
    }

    fn check_new(&self, supervisor: ActorId, child: &ChildSpec) -> Result<(), ChildError> {
        let node = &self.supervisors[&supervisor];
        let depth = 2 + node.path.split('/').count();
        spec::check_child(&node.spec, child, &node.path, depth)
            .map_err(|error| ChildError::BadSpec(error.to_string()))?;
        self.taken(child).map_or(Ok(()), Err)
    }

    fn key_of(&self, supervisor: ActorId, child: &ChildAddress) -> Option<ActorId> {
        match self.child_ref(child) {
            ChildRef::Key(key) => Some(key),
            ChildRef::Id(id) => self.supervisors.get(&supervisor)?.machine.child_by_id(&id),
        }
    }

    /// A child as its supervisor's machine knows it. One that is dead is not found, whoever it was.
    fn child_ref(&self, child: &ChildAddress) -> ChildRef {
        match child {
            ChildAddress::Id(id) => ChildRef::Id(id.clone()),
            ChildAddress::Actor(id) => ChildRef::Key(*id),
            ChildAddress::Pid(pid) => ChildRef::Key(self.living.get(pid).copied().unwrap_or(ActorId(u64::MAX))),
        }
    }

    /// A supervisor's machine is done with a request.
    pub(super) fn request_done(&mut self, supervisor: ActorId, request: u64, result: Result<Done, RequestError>) {
        let Some(Pending { from, what }) = self.requests.remove(&request) else { return };
        let (answer, payload) = match (what, result) {
            (What::ByName(name), result) => (self.answer_by_name(name, result), Bytes::new()),
            (_, Err(error)) => (Answer::Process(ProcessAnswer::Child(self.child_error(error))), Bytes::new()),
            (What::Start, Ok(Done::Child(child))) => {
                let pid = self.pid_of(&Address::Actor(child));
                let info = self.incarnation_mut(child).map(|incarnation| incarnation.info.clone());
                let started = ProcessAnswer::Started { actor: child, pid };
                (Answer::Process(started), info.unwrap_or_default())
            }
            (What::Exit(reason), Ok(Done::Child(child))) => {
                self.exit_signal_from_parent(child, reason);
                (Answer::Process(ProcessAnswer::Ok), Bytes::new())
            }
            (What::Which, Ok(Done::Children(children))) => {
                let children = self.entries(supervisor, children);
                (Answer::Process(ProcessAnswer::Children(children)), Bytes::new())
            }
            (What::Count, Ok(Done::Children(children))) => {
                let counts = counts(&self.entries(supervisor, children));
                (Answer::Process(ProcessAnswer::Counts(counts)), Bytes::new())
            }
            (What::Spec, Ok(Done::Child(child))) => {
                (Answer::Process(self.spec_answer(supervisor, child)), Bytes::new())
            }
            (What::Start | What::Done | What::Exit(_) | What::Spec | What::Which | What::Count, Ok(_)) => {
                (Answer::Process(ProcessAnswer::Ok), Bytes::new())
            }
        };
        self.answer_with(from, answer, payload);
    }

    fn answer_by_name(&self, what: String, result: Result<Done, RequestError>) -> Answer {
        match result {
            Ok(_) => Answer::Ok,
            Err(RequestError::NotFound) => {
                let text = format!("`{what}` was temporary and has ended: it is started with its supervisor only");
                Answer::Refused(text)
            }
            Err(error) => Answer::Failed { what, reason: self.child_error(error) },
        }
    }

    fn child_error(&self, error: RequestError) -> ChildError {
        match error {
            RequestError::NotFound => ChildError::NotFound,
            RequestError::Running => ChildError::Running,
            RequestError::Restarting => ChildError::Restarting,
            RequestError::AlreadyStarted(other) => match self.pid_of(&Address::Actor(other)) {
                Some(pid) => ChildError::AlreadyStarted(pid),
                None => ChildError::AlreadyPresent,
            },
            RequestError::AlreadyPresent => ChildError::AlreadyPresent,
            RequestError::MaxChildren => ChildError::MaxChildren,
            RequestError::Unsupported => ChildError::Unsupported,
            RequestError::StartFailed(reason) => ChildError::StartFailed(reason),
            RequestError::Ending => ChildError::Ending,
        }
    }

    fn entries(&self, supervisor: ActorId, children: Vec<(ActorId, String, ChildState)>) -> Vec<ChildEntry> {
        let is_dynamic = self.is_dynamic(supervisor);
        let entry = |(child, id, state): (ActorId, String, ChildState)| {
            let actor = self.actors.get(&child);
            let is_up = matches!(state, ChildState::Running | ChildState::Starting | ChildState::Stopping);
            ChildEntry {
                id: if is_dynamic { String::new() } else { id },
                actor: child,
                pid: self.pid_of(&Address::Actor(child)).filter(|_| is_up),
                is_restarting: matches!(state, ChildState::Restarting | ChildState::Ended(_)),
                is_supervisor: actor.is_none(),
                class: actor.map_or_else(|| "rebeam.Supervisor".to_owned(), |actor| actor.spec.class.clone()),
            }
        };
        children.into_iter().map(entry).collect()
    }

    fn spec_answer(&self, supervisor: ActorId, child: ActorId) -> ProcessAnswer {
        let spec = || {
            let traits = self.supervisors.get(&supervisor)?.machine.traits(child)?;
            let (shutdown, kind) = match self.actors.get(&child) {
                Some(actor) => (actor.shutdown, ChildKind::Actor(Box::new((*actor.spec).clone()))),
                None => {
                    let node = self.supervisors.get(&child)?;
                    (node.shutdown, ChildKind::Supervisor((*node.spec).clone()))
                }
            };
            Some(ChildSpec {
                id: traits.id.clone(),
                restart: traits.restart,
                shutdown,
                significant: traits.significant,
                backoff: traits.backoff,
                on_giveup: traits.on_giveup,
                kind,
            })
        };
        match spec() {
            Some(spec) => ProcessAnswer::Spec(Box::new(spec)),
            None => ProcessAnswer::Child(ChildError::NotFound),
        }
    }
}

/// The wait of an actor that asks a supervisor for something. Its requests and its calls are counted together.
pub(super) fn wait_of(from: Requester) -> Option<ReplyTo> {
    match from {
        Requester::Worker(process, request) => {
            Some(ReplyTo { caller: Caller::Actor(process.pid), call: CallId(request.0) })
        }
        Requester::Outside(_) | Requester::Nobody => None,
    }
}

fn counts(children: &[ChildEntry]) -> Counts {
    let mut counts = Counts::default();
    for child in children {
        counts.specs += 1;
        counts.active += u64::from(child.pid.is_some());
        counts.supervisors += u64::from(child.is_supervisor);
        counts.workers += u64::from(!child.is_supervisor);
    }
    counts
}
