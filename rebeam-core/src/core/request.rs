//! Requests to the supervisor itself: of clients of the control socket, and of actors about supervisors.

use std::sync::Arc;

use bytes::Bytes;
use rebeam_protocol::address::Address;
use rebeam_protocol::certificate::{Certificate, Next};
use rebeam_protocol::id::{ActorId, Pid};
use rebeam_protocol::message::Waits;
use rebeam_protocol::outside::{Answer, TreeRequest};
use rebeam_protocol::process::{
    ChildAddress, ChildEntry, ChildError, Counts, ProcessAnswer, ProcessRequest, SupervisorRequest,
};
use rebeam_protocol::spec::{ChildKind, ChildSpec, Restart};

use super::Core;
use crate::event::Action;
use crate::members::{Supervisor, traits};
use crate::requests::{Pending, Requester, What};
use crate::router::On;
use crate::spec;
use crate::supervisor::{ChildRef, ChildState, Done, RequestError, Verb};

impl Core {
    pub(super) fn answer(&mut self, to: Requester, answer: ProcessAnswer) {
        self.answer_with(to, answer, Bytes::new());
    }

    fn answer_with(&mut self, to: Requester, answer: ProcessAnswer, payload: Bytes) {
        if let Some(wait) = to.wait() {
            self.router.close(wait);
        }
        if let Requester::Worker(process, request) = to {
            self.actions.push_back(Action::Answer { process, request, answer, payload });
        }
    }

    fn answer_outside(&mut self, asker: u64, answer: Answer) {
        self.actions.push_back(Action::AnswerOutside { asker, answer });
    }

    /// A worker asks something, or did so before and is heard now.
    pub(super) fn asked(&mut self, from: Requester, request: ProcessRequest, payload: Bytes) {
        if let Requester::Worker(process, _) = from
            && !self.may_hold_more(process)
        {
            return;
        }
        if let Some(answer) = self.process_request(from, request, payload) {
            self.answer(from, answer);
        }
    }

    pub(super) fn asked_from_outside(&mut self, asker: u64, request: TreeRequest) {
        let answer = match request {
            TreeRequest::Why { name } => self.why(name),
            TreeRequest::Stop { name } => return self.request_by_name(asker, name, Verb::Terminate),
            TreeRequest::Restart { name } => match self.cannot_be_restarted(&name) {
                Some(why) => Answer::Refused(why),
                None => return self.request_by_name(asker, name, Verb::Cycle),
            },
            TreeRequest::Down => {
                self.answer_outside(asker, Answer::Ok);
                return self.stop_node();
            }
            TreeRequest::DeadLetters(request) => self.about_dead_letters(request),
            TreeRequest::Entries(registry) => Answer::Entries(self.entry_infos(&registry)),
            TreeRequest::LogLevel { name, level } => self.set_log_level(name, level),
        };
        self.answer_outside(asker, answer);
    }

    fn why(&self, name: String) -> Answer {
        let id = self.find(&name);
        if id.is_some_and(|id| self.members.is_supervisor(id)) {
            return Answer::Refused(format!("`{name}` is a supervisor: ask for one of its actors"));
        }
        let deaths: Vec<(Arc<Certificate>, Next)> = match id {
            Some(id) => self.deaths.of(id),
            None => self.deaths.named(&name),
        };
        if id.is_none() && deaths.is_empty() { self.not_found(name) } else { Answer::Why(deaths) }
    }

    /// Why an actor must not be stopped to be started again.
    fn cannot_be_restarted(&self, name: &str) -> Option<String> {
        let actor = self.members.actor(self.find(name)?)?;
        let is_forgotten = actor.restart == Restart::Temporary && actor.spec.start.is_empty() && actor.starts > 0;
        (is_forgotten && actor.incarnation().is_some()).then(|| {
            format!("`{name}` is temporary, and its arguments were too large to be kept: stop it, and start it anew")
        })
    }

    fn set_log_level(&mut self, name: String, level: u16) -> Answer {
        let Some(actor) = self.find(&name).and_then(|id| self.members.actor_mut(id)) else {
            return self.not_found(name);
        };
        actor.log_level = Some(level);
        if let Some(process) = actor.process() {
            self.actions.push_back(Action::LogLevel { process, level });
        }
        Answer::Ok
    }

    fn request_by_name(&mut self, asker: u64, name: String, verb: impl FnOnce(ChildRef) -> Verb) {
        let Some((id, parent)) = self.find(&name).and_then(|id| Some((id, self.members.parent_of(id)?))) else {
            let answer = self.not_found(name);
            return self.answer_outside(asker, answer);
        };
        self.ask_supervisor(parent, Requester::Outside(asker), What::ByName(name), verb(ChildRef::Key(id)));
    }

    pub(super) fn ask_supervisor(&mut self, supervisor: ActorId, from: Requester, what: What, verb: Verb) {
        let request = self.requests.add(from, what);
        if self.members.supervisor(supervisor).is_none() {
            return self.request_done(supervisor, request, Err(RequestError::Ending));
        }
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
        let is_up = |id: &ActorId| self.members.supervisor(*id).is_some_and(|supervisor| supervisor.pid.is_some());
        let id = self.supervisor_at(supervisor).filter(is_up);
        let Some(id) = id else { return Some(ProcessAnswer::NoProc) };
        if self.waits_for(id, own) {
            return Some(ProcessAnswer::Child(ChildError::WaitingForYou));
        }
        // What would have to end first would wait for the answer.
        if let SupervisorRequest::Terminate(child) | SupervisorRequest::Restart(child) = &request
            && self.key_of(id, child).is_some_and(|child| self.members.is_below(own, child))
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
            SupervisorRequest::Terminate(child) => (What::Done, Verb::Terminate(self.child_ref(id, &child))),
            SupervisorRequest::Restart(child) => (What::Start, Verb::Restart(self.child_ref(id, &child))),
            SupervisorRequest::Delete(child) => (What::Done, Verb::Delete(self.child_ref(id, &child))),
            SupervisorRequest::Exit(child, reason) => {
                (What::Exit(reason), Verb::Look(Some(self.child_ref(id, &child))))
            }
            SupervisorRequest::Which => (What::Which, Verb::Look(None)),
            SupervisorRequest::Count => (What::Count, Verb::Look(None)),
            SupervisorRequest::Spec(child) => (What::Spec, Verb::Look(Some(self.child_ref(id, &child)))),
        };
        if let Some(cycle) = self.wait_for_supervisor(from, id, waits) {
            return Some(ProcessAnswer::Deadlock(cycle));
        }
        self.ask_supervisor(id, from, what, verb);
        None
    }

    /// Notes that an actor waits for a supervisor; the cycle, if that would be forever.
    fn wait_for_supervisor(&mut self, from: Requester, supervisor: ActorId, waits: Waits) -> Option<Vec<String>> {
        let wait = from.wait()?;
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
        let Some(spawner) = self.spawner() else { return Some(ProcessAnswer::Child(ChildError::Ending)) };
        if let Err(error) = self.check_new(spawner, &child) {
            let is_owned = owner.is_some();
            let is_postponed =
                self.postpone(from, &error, || ProcessRequest::Spawn { child, is_owned, is_linked, waits });
            return (!is_postponed).then_some(ProcessAnswer::Child(error));
        }
        let traits = traits(&child);
        let id = self.add_child(*child, spawner);
        if let Some(actor) = self.members.actor_mut(id) {
            actor.owner = owner;
            actor.is_linked = is_linked;
        } else if let Some(supervisor) = self.members.supervisor_mut(id) {
            supervisor.owner = owner;
        }
        self.wait_for_supervisor(from, spawner, waits);
        self.ask_supervisor(spawner, from, What::Start, Verb::Start(id, traits));
        None
    }

    /// Stops what an incarnation that has ended had spawned.
    pub(super) fn stop_what_it_owns(&mut self, owner: Pid) {
        let Some(spawner) = self.members.spawner() else { return };
        let Some(node) = self.members.supervisor(spawner) else { return };
        let is_owned = |id: &ActorId| self.members.owner(*id) == Some(owner);
        let owned: Vec<ActorId> = node.machine.children().map(|(child, ..)| child).filter(is_owned).collect();
        for child in owned {
            self.ask_supervisor(spawner, Requester::Nobody, What::Done, Verb::Terminate(ChildRef::Key(child)));
        }
    }

    /// Whether a supervisor, or one above an actor that it waits for, waits for the actor that asks (rule 10).
    fn waits_for(&self, supervisor: ActorId, own: ActorId) -> bool {
        let mut below = own;
        while let Some(parent) = self.members.parent_of(below) {
            if !self.members.supervisor(parent).is_some_and(|supervisor| supervisor.machine.waits_for(below)) {
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
        let Some(node) = self.members.supervisor(supervisor) else { return Err(ChildError::Ending) };
        let depth = 2 + node.path.split('/').count();
        spec::check_child(&node.spec, child, &node.path, depth)
            .map_err(|error| ChildError::BadSpec(error.to_string()))?;
        self.taken(child).map_or(Ok(()), Err)
    }

    fn key_of(&self, supervisor: ActorId, child: &ChildAddress) -> Option<ActorId> {
        match self.child_ref(supervisor, child) {
            ChildRef::Key(key) => Some(key),
            ChildRef::Id(id) => self.members.supervisor(supervisor)?.machine.child_by_id(&id),
        }
    }

    /// A child as its supervisor's machine knows it. One that is dead is not found, whoever it was; but one that is to be
    /// started again is still the child of its last pid (SUP-072, SUP-078).
    fn child_ref(&self, supervisor: ActorId, child: &ChildAddress) -> ChildRef {
        match child {
            ChildAddress::Id(id) => ChildRef::Id(id.clone()),
            ChildAddress::Actor(id) => ChildRef::Key(*id),
            ChildAddress::Pid(pid) => {
                let found = self.members.living(*pid).or_else(|| self.to_be_restarted(supervisor, *pid));
                ChildRef::Key(found.unwrap_or(ActorId(u64::MAX)))
            }
        }
    }

    /// The child between two lives whose last one this was.
    fn to_be_restarted(&self, supervisor: ActorId, pid: Pid) -> Option<ActorId> {
        let children = self.members.supervisor(supervisor)?.machine.children();
        let waiting = children.filter(|(.., state)| matches!(state, ChildState::Restarting | ChildState::Ended(_)));
        waiting.map(|(child, ..)| child).find(|child| self.members.last_pid(*child) == Some(pid))
    }

    /// A supervisor's machine is done with a request.
    pub(super) fn request_done(&mut self, supervisor: ActorId, request: u64, result: Result<Done, RequestError>) {
        let Some(Pending { from, what }) = self.requests.take(request) else { return };
        let (answer, payload) = match (what, result) {
            (What::ByName(name), result) => {
                let answer = self.answer_by_name(name, result);
                if let Requester::Outside(asker) = from {
                    self.answer_outside(asker, answer);
                }
                return;
            }
            (What::Change { change, child }, result) => return self.change_is_done(change, child, result),
            (_, Err(error)) => (ProcessAnswer::Child(self.child_error(error)), Bytes::new()),
            (What::Start, Ok(Done::Child(child))) => {
                let pid = self.members.pid(child);
                let info = self.members.incarnation_mut(child).map(|incarnation| incarnation.info.clone());
                (ProcessAnswer::Started { actor: child, pid }, info.unwrap_or_default())
            }
            (What::Exit(reason), Ok(Done::Child(child))) => {
                self.exit_signal_from_parent(child, reason.bounded());
                (ProcessAnswer::Ok, Bytes::new())
            }
            (What::Which, Ok(Done::Children(children))) => {
                (ProcessAnswer::Children(self.entries(supervisor, children)), Bytes::new())
            }
            (What::Count, Ok(Done::Children(children))) => {
                (ProcessAnswer::Counts(counts(&self.entries(supervisor, children))), Bytes::new())
            }
            (What::Spec, Ok(Done::Child(child))) => (self.spec_answer(supervisor, child), Bytes::new()),
            (What::Start | What::Done | What::Exit(_) | What::Spec | What::Which | What::Count, Ok(_)) => {
                (ProcessAnswer::Ok, Bytes::new())
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
            RequestError::AlreadyStarted(other) => match self.members.pid(other) {
                Some(pid) => ChildError::AlreadyStarted(pid),
                None => ChildError::AlreadyPresent,
            },
            RequestError::AlreadyPresent => ChildError::AlreadyPresent,
            RequestError::MaxChildren => ChildError::MaxChildren,
            RequestError::Unsupported => ChildError::Unsupported,
            RequestError::StartFailed(child, reason) => {
                ChildError::StartFailed { child: self.failed_child(child), reason }
            }
            RequestError::Ending => ChildError::Ending,
        }
    }

    /// The path of the child that kept another from starting: itself, or one below it (SUP-012).
    pub(super) fn failed_child(&self, child: ActorId) -> String {
        match (self.members.actor(child), self.members.supervisor(child)) {
            (Some(actor), _) => actor.path.clone(),
            (None, Some(supervisor)) => supervisor.failed.clone().unwrap_or_else(|| supervisor.path.clone()),
            (None, None) => String::new(),
        }
    }

    fn entries(&self, supervisor: ActorId, children: Vec<(ActorId, String, ChildState)>) -> Vec<ChildEntry> {
        let is_dynamic = self.members.supervisor(supervisor).is_some_and(Supervisor::is_dynamic);
        let entry = |(child, id, state): (ActorId, String, ChildState)| {
            let actor = self.members.actor(child);
            let is_up = matches!(state, ChildState::Running | ChildState::Starting | ChildState::Stopping);
            ChildEntry {
                id: if is_dynamic { String::new() } else { id },
                actor: child,
                pid: self.members.pid(child).filter(|_| is_up),
                is_restarting: matches!(state, ChildState::Restarting | ChildState::Ended(_)),
                is_supervisor: actor.is_none(),
                class: actor.map_or_else(|| "rebeam.Supervisor".to_owned(), |actor| actor.spec.class.clone()),
            }
        };
        children.into_iter().map(entry).collect()
    }

    fn spec_answer(&self, supervisor: ActorId, child: ActorId) -> ProcessAnswer {
        let spec = || {
            let traits = self.members.supervisor(supervisor)?.machine.traits(child)?;
            let (shutdown, kind) = match self.members.actor(child) {
                Some(actor) => (actor.shutdown, ChildKind::Actor(Box::new((*actor.spec).clone()))),
                None => {
                    let node = self.members.supervisor(child)?;
                    (node.shutdown, ChildKind::Supervisor((*node.spec).clone()))
                }
            };
            Some(ChildSpec {
                id: traits.id.clone(),
                restart: traits.restart,
                shutdown,
                significant: traits.significant,
                pauses: traits.pauses,
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
