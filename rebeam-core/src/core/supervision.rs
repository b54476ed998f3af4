//! Starts, stops and deaths: what the supervisors' machines want, done to actors; what befalls actors, told to them.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rebeam_protocol::certificate::{Certificate, InHand, Killer, Next};
use rebeam_protocol::exit::ExitReason;
use rebeam_protocol::id::{ActorId, Generation, ProcessId};
use rebeam_protocol::message::{CallFailure, Caller, Cause, Started};
use rebeam_protocol::spec::{ActorSpec, Limits, Restart, Shutdown, SupervisorKind};

use super::tree::traits;
use super::{Core, ROOT};
use crate::actor::{Actor, Incarnation, Life, Stage};
use crate::core::mail::let_in;
use crate::event::{Action, Death, Launch, NodeEnd, Status};
use crate::mailbox::{Fate, Message};
use crate::supervisor::{Command, Machine, Purpose, Verdict};
use crate::timers::Due;

impl Core {
    /// Tells a supervisor something, then carries out what it and those it affects want.
    pub(super) fn command(&mut self, supervisor: ActorId, tell: impl FnOnce(&mut Machine, Duration)) {
        let now = self.now;
        if let Some(node) = self.supervisors.get_mut(&supervisor) {
            tell(&mut node.machine, now);
        }
        self.run(supervisor);
    }

    /// Carries out what a supervisor wants, and those it affects, until all are quiet.
    pub(super) fn run(&mut self, supervisor: ActorId) {
        let mut busy = VecDeque::from([supervisor]);
        while let Some(id) = busy.pop_front() {
            while let Some(command) = self.supervisors.get_mut(&id).and_then(|node| node.machine.poll_command()) {
                self.carry_out(id, command, &mut busy);
            }
        }
        if self.supervisors[&ROOT].machine.state_word() == "stopping" {
            self.node_stops();
        }
    }

    fn carry_out(&mut self, id: ActorId, command: Command, busy: &mut VecDeque<ActorId>) {
        match command {
            Command::Start(child) => self.start_child(id, child, busy),
            Command::Stop { child, purpose } => {
                let is_killing = self.supervisors[&id].is_killing;
                if self.supervisors.contains_key(&child) {
                    self.stop_inner(child, purpose, is_killing);
                    busy.push_back(child);
                } else {
                    self.stop_actor(child, purpose, is_killing);
                }
            }
            Command::Pause { child, time } => {
                self.timers.set(self.now + time, Due::PauseOver(child));
            }
            Command::Verdict { child, reason, verdict } => self.report(id, child, &reason, verdict),
            Command::Settled(child) => self.settle(child),
            Command::Removed(child) => {
                // The children of the initial list come back with their supervisor.
                if self.supervisors[&id].listed.contains(&child) {
                    self.settle(child);
                    self.release_name(child);
                } else {
                    self.remove(child);
                }
            }
            Command::Up => match self.supervisors[&id].parent {
                Some(parent) => {
                    self.tell_parent(parent, busy, |machine, now| machine.child_started(id, now));
                }
                None if id == ROOT => self.actions.push_back(Action::NodeUp),
                None => {}
            },
            Command::Failed { child, reason } => {
                self.supervisor_ended(id, &reason);
                match self.supervisors[&id].parent {
                    Some(parent) => self.tell_parent(parent, busy, |machine, now| machine.child_ended(id, reason, now)),
                    None => self.node_failed(child, reason, busy),
                }
            }
            Command::Ended(reason) => {
                self.supervisor_ended(id, &reason);
                match self.supervisors[&id].parent {
                    Some(parent) => self.tell_parent(parent, busy, |machine, now| machine.child_ended(id, reason, now)),
                    None if id == ROOT => {
                        self.settle(ROOT);
                        let certificate = self.last_gave_up.take();
                        let end = if self.has_given_up { NodeEnd::GaveUp { certificate } } else { NodeEnd::Clean };
                        self.root_is_down(Action::NodeEnded(end), busy);
                    }
                    None => self.spawner_is_down(busy),
                }
            }
            Command::Answer { request, result } => self.request_done(id, request, result),
        }
    }

    fn tell_parent(
        &mut self,
        parent: ActorId,
        busy: &mut VecDeque<ActorId>,
        tell: impl FnOnce(&mut Machine, Duration),
    ) {
        let now = self.now;
        if let Some(node) = self.supervisors.get_mut(&parent) {
            tell(&mut node.machine, now);
            busy.push_back(parent);
        }
    }

    fn start_child(&mut self, parent: ActorId, child: ActorId, busy: &mut VecDeque<ActorId>) {
        if let Err(reason) = self.claim(child) {
            self.tell_parent(parent, busy, |machine, now| machine.child_ended(child, reason, now));
        } else if self.supervisors.contains_key(&child) {
            self.start_supervisor(child);
            busy.push_back(child);
        } else {
            self.start_actor(child);
        }
    }

    /// Starts a supervisor anew, with the children of its initial list only and an empty history (SUP-087).
    pub(super) fn start_supervisor(&mut self, id: ActorId) {
        let pid = self.new_process().pid;
        let now = self.now;
        let Some(node) = self.supervisors.get_mut(&id) else { return };
        let children = node.listed.iter().copied().zip(node.spec.children.iter().map(traits));
        node.machine = Machine::new(&node.spec, children);
        node.pid = Some(pid);
        node.starts += 1;
        node.is_killing = false;
        node.machine.begin(now);
        self.living.insert(pid, id);
        for child in self.supervisors[&id].listed.clone() {
            self.reserve_name(child);
        }
        self.announce(id, pid);
        self.look_for_those_who_wait();
    }

    /// A supervisor has ended, and everything below it: children that were added at run time are gone with it.
    fn supervisor_ended(&mut self, id: ActorId, reason: &ExitReason) {
        let Some(node) = self.supervisors.get_mut(&id) else { return };
        let pid = node.pid.take();
        self.timers.cancel(node.timer.take());
        let added: Vec<ActorId> =
            node.machine.children().map(|(child, ..)| child).filter(|child| !node.listed.contains(child)).collect();
        added.into_iter().for_each(|child| self.remove(child));
        if let Some(pid) = pid {
            self.living.remove(&pid);
            self.withdraw(pid);
            self.notify_end(pid, reason, None);
        }
    }

    /// The initial start failed and was rolled back.
    fn node_failed(&mut self, child: ActorId, reason: ExitReason, busy: &mut VecDeque<ActorId>) {
        let mut failed = child;
        // A supervisor that failed did so because of a child of its own: name the innermost.
        while let Some(node) = self.supervisors.get(&failed) {
            let is_cause = |id: &&ActorId| match self.actors.get(id) {
                Some(actor) => actor.certificates.back().is_some_and(|last| last.reason == reason),
                None => true,
            };
            let Some(inner) = node.listed.iter().find(is_cause) else { break };
            failed = *inner;
        }
        let (child, certificate) = match self.actors.get(&failed) {
            Some(actor) => (actor.label.clone(), actor.certificates.back().cloned().map(Box::new)),
            None => (self.supervisors.get(&failed).map(|node| node.path.clone()).unwrap_or_default(), None),
        };
        self.root_is_down(Action::NodeFailed { child, reason, certificate }, busy);
    }

    /// Stops what was spawned, then the tree.
    pub(super) fn stop_node(&mut self) {
        match self.spawner.filter(|spawner| self.supervisors[spawner].pid.is_some()) {
            Some(spawner) => {
                self.node_stops();
                self.command(spawner, |machine, now| machine.stop(ExitReason::SHUTDOWN, Purpose::Final, now));
            }
            None => self.stop_supervisor(ROOT, ExitReason::SHUTDOWN),
        }
    }

    /// The tree is down. What was spawned goes before the node does.
    fn root_is_down(&mut self, last_word: Action, busy: &mut VecDeque<ActorId>) {
        let now = self.now;
        match self.spawner.and_then(|id| Some((id, self.supervisors.get_mut(&id)?))) {
            Some((id, node)) if node.pid.is_some() => {
                self.last_word = Some(last_word);
                node.machine.stop(ExitReason::SHUTDOWN, Purpose::Final, now);
                busy.push_back(id);
            }
            _ => self.actions.push_back(last_word),
        }
    }

    fn spawner_is_down(&mut self, busy: &mut VecDeque<ActorId>) {
        match self.last_word.take() {
            Some(last_word) => self.actions.push_back(last_word),
            None => {
                let now = self.now;
                if let Some(root) = self.supervisors.get_mut(&ROOT) {
                    root.machine.stop(ExitReason::SHUTDOWN, Purpose::Final, now);
                    busy.push_back(ROOT);
                }
            }
        }
    }

    fn report(&mut self, supervisor: ActorId, child: ActorId, reason: &ExitReason, verdict: Verdict) {
        let is_killing = self.supervisors[&supervisor].is_killing;
        self.has_given_up |= supervisor == ROOT && verdict == Verdict::GivesUp;
        let Some(actor) = self.actors.get_mut(&child) else { return };
        let Some(certificate) = actor.certificates.back_mut() else { return };
        certificate.next = next_of(verdict);
        // SUP-025: every abnormal end, and every end of a permanent child; but none that was ordered.
        let is_brutal = actor.shutdown == Shutdown::BrutalKill && *reason == ExitReason::Killed;
        let is_due = (!reason.is_clean() || actor.restart == Restart::Permanent) && !is_brutal;
        let certificate = Box::new(certificate.clone());
        if verdict == Verdict::GivesUp {
            self.last_gave_up = Some(certificate.clone());
        }
        if is_due && !is_killing {
            self.actions.push_back(Action::Report(certificate));
        }
    }

    /// The child will not come back by itself: its mail is dead, and so is that of everything below it.
    fn settle(&mut self, id: ActorId) {
        if let Some(node) = self.supervisors.get(&id) {
            for child in node.listed.clone() {
                self.settle(child);
            }
        } else if let Some(actor) = self.actors.get_mut(&id) {
            match &mut actor.life {
                Life::Alive(incarnation) => incarnation.is_last = true,
                Life::Waiting | Life::Gone => {
                    actor.life = Life::Gone;
                    self.bury_mail(id);
                }
            }
        }
    }

    fn start_actor(&mut self, id: ActorId) {
        let process = self.new_process();
        let now = self.now;
        let Some(actor) = self.actors.get_mut(&id) else { return };
        let mut incarnation = Box::new(Incarnation::new(process, now));
        if let Some(limit) = actor.spec.start_ms {
            incarnation.timer = Some(self.timers.set(now + Duration::from_millis(limit), Due::Start(process)));
        }
        actor.life = Life::Alive(incarnation);
        let launch = launch(actor, process, None);
        actor.starts += 1;
        self.living.insert(process.pid, id);
        self.announce(id, process.pid);
        self.actions.push_back(Action::Launch(launch));
    }

    /// The node is on its way down, as ordered or because the root has given up: said once.
    fn node_stops(&mut self) {
        if !std::mem::replace(&mut self.is_stopping, true) {
            self.actions.push_back(Action::NodeStopping);
        }
    }

    /// Stops a supervisor that nobody above orders to stop: the root, or by request.
    pub(super) fn stop_supervisor(&mut self, id: ActorId, reason: ExitReason) {
        if id == ROOT {
            self.node_stops();
        }
        self.command(id, |machine, now| machine.stop(reason, Purpose::Final, now));
    }

    /// Stops a supervisor for its parent.
    fn stop_inner(&mut self, id: ActorId, purpose: Purpose, is_killing: bool) {
        let now = self.now;
        let shutdown = self.supervisors[&id].shutdown;
        let timer = self.stop_time(shutdown).map(|limit| self.timers.set(now + limit, Due::SupervisorShutdown(id)));
        if shutdown == Shutdown::BrutalKill || is_killing {
            self.kill_below(id);
        }
        if let Some(node) = self.supervisors.get_mut(&id) {
            node.timer = timer;
            node.machine.stop(ExitReason::SHUTDOWN, purpose, now);
        }
    }

    fn stop_actor(&mut self, id: ActorId, purpose: Purpose, is_killing: bool) {
        let is_hurried = self.stop_limit.is_some();
        let Some(actor) = self.actors.get_mut(&id) else { return };
        let shutdown = actor.shutdown;
        let asks = actor.spec.terminate_on_shutdown;
        let Some(incarnation) = actor.incarnation_mut() else { return };
        let process = incarnation.process;
        let is_starting = incarnation.stage == Stage::Starting;
        let urgent = purpose == Purpose::Restart || is_starting || is_hurried;
        let is_heard = asks || incarnation.traps_exits;
        incarnation.stage = Stage::Stopping { asked: urgent };
        incarnation.stop_reason = ExitReason::SHUTDOWN;
        let old_timer = incarnation.timer.take();
        self.timers.cancel(old_timer);
        if shutdown == Shutdown::BrutalKill || is_killing {
            let why = if is_killing { "its supervisor was killed, or out of time" } else { "by `brutal_kill`" };
            return self.kill_for(process, ExitReason::Killed, why);
        }
        let timer = self.stop_time(shutdown).map(|limit| self.timers.set(self.now + limit, Due::Shutdown(process)));
        if let Some(incarnation) = self.incarnation_mut(id) {
            incarnation.timer = timer;
        }
        if !is_heard {
            self.order_exit(process, ExitReason::SHUTDOWN);
        } else if urgent {
            self.actions.push_back(Action::Stop { process, reason: ExitReason::SHUTDOWN, urgent });
        } else {
            self.stop_in_turn(id);
        }
    }

    /// Lets the mail that waits be handled, and nothing after it; then the stop goes out.
    pub(super) fn stop_in_turn(&mut self, id: ActorId) {
        if let Some(actor) = self.actors.get_mut(&id) {
            actor.mailbox.seal();
        }
        self.pump(id);
    }

    pub(super) fn started(&mut self, process: ProcessId, started: Started, info: Bytes) {
        let Some(id) = self.serving_actor(process) else { return };
        let now = self.now;
        let Some(actor) = self.actors.get_mut(&id) else { return };
        let parent = actor.parent;
        let is_listed = self.supervisors.get(&parent).is_some_and(|parent| parent.listed.contains(&id));
        if actor.restart == Restart::Temporary && !is_listed && actor.spec.limits == Limits::default() {
            // It never starts again, not even with its supervisor, so its arguments are not kept (SUP-036).
            actor.spec = Arc::new(ActorSpec { start: Vec::new(), ..(*actor.spec).clone() });
        }
        let max_age = actor.spec.limits.max_age_ms;
        let linked = actor.owner.filter(|_| actor.is_linked);
        let Some(incarnation) = actor.incarnation_mut() else { return };
        if incarnation.stage != Stage::Starting {
            return;
        }
        if started == Started::Ignore {
            // Its process ends by itself now; only then it is over.
            incarnation.is_ignored = true;
            return;
        }
        let is_first = process.generation == Generation(0);
        let took = now.saturating_sub(incarnation.since);
        incarnation.stage = Stage::Running;
        incarnation.info = info;
        let timer = incarnation.timer.take();
        self.timers.cancel(timer);
        if let Some(limit) = max_age {
            let timer = self.timers.set(now + Duration::from_millis(limit), Due::Aged(process));
            if let Some(incarnation) = self.incarnation_mut(id) {
                incarnation.aged = Some(timer);
            }
        }
        if let Some(actor) = self.actors.get_mut(&id) {
            actor.down_since = None;
        }
        if is_first {
            self.meters.started(took);
            // Not before: a start that fails is an error of its starter's, and no exit signal.
            if let Some(owner) = linked.filter(|owner| self.living.contains_key(owner)) {
                self.links.link(owner, process.pid);
            }
            self.command(parent, |machine, now| machine.child_started(id, now));
        }
        self.look_for_those_who_wait();
        self.pump(id);
    }

    /// A worker has said its last word: what it still has to do may take as long as a stop.
    pub(super) fn reported(&mut self, process: ProcessId, reason: ExitReason) {
        let Some(id) = self.serving_actor(process) else { return };
        let limit = self.stop_time(self.actors[&id].shutdown);
        let Some(incarnation) = self.incarnation_mut(id) else { return };
        incarnation.report.get_or_insert(reason);
        if !matches!(incarnation.stage, Stage::Stopping { .. })
            && let Some(limit) = limit
        {
            let old_timer = incarnation.timer.take();
            self.timers.cancel(old_timer);
            let timer = self.timers.set(self.now + limit, Due::Shutdown(process));
            if let Some(incarnation) = self.incarnation_mut(id) {
                incarnation.timer = Some(timer);
            }
        }
    }

    pub(super) fn launch_failed(&mut self, process: ProcessId, error: String) {
        let Some(incarnation) = self.serving(process) else { return };
        incarnation.report = Some(ExitReason::NotStarted(error));
        self.died(Death::without_trace(process, Status::Exited(0)));
    }

    /// Kills a process and remembers why, unless something else is its end already.
    pub(super) fn kill_for(&mut self, process: ProcessId, reason: ExitReason, why: &'static str) {
        let Some(incarnation) = self.serving(process) else { return };
        incarnation.killed_for.get_or_insert((reason, why));
        let timer = incarnation.timer.take();
        self.timers.cancel(timer);
        self.actions.push_back(Action::Kill(process));
    }

    /// A supervisor's time to stop is over: whatever lives below it is killed, and what is still to be stopped too.
    pub(super) fn kill_below(&mut self, supervisor: ActorId) {
        let Some(node) = self.supervisors.get_mut(&supervisor) else { return };
        node.is_killing = true;
        let children: Vec<ActorId> = node.machine.children().map(|(child, ..)| child).collect();
        for child in children {
            if self.supervisors.contains_key(&child) {
                self.kill_below(child);
            } else if let Some(incarnation) = self.incarnation_mut(child) {
                let process = incarnation.process;
                self.kill_for(process, ExitReason::Killed, "its supervisor was killed, or out of time");
            }
        }
    }

    /// From now on no stop takes longer than `limit`, and mail that waits is not handled first.
    pub(super) fn hurry(&mut self, limit: Duration) {
        self.stop_limit = Some(limit);
        let mut ids: Vec<ActorId> = self.actors.keys().copied().collect();
        ids.sort();
        for id in ids {
            let Some(incarnation) = self.incarnation_mut(id) else { continue };
            let Stage::Stopping { asked } = &mut incarnation.stage else { continue };
            let was_asked = std::mem::replace(asked, true);
            let process = incarnation.process;
            let reason = incarnation.stop_reason.clone();
            let old_timer = incarnation.timer.take();
            self.timers.cancel(old_timer);
            let timer = self.timers.set(self.now + limit, Due::Shutdown(process));
            if let Some(incarnation) = self.incarnation_mut(id) {
                incarnation.timer = Some(timer);
            }
            if !was_asked {
                self.actions.push_back(Action::Stop { process, reason, urgent: true });
            }
        }
    }

    pub(super) fn pause_over(&mut self, child: ActorId) {
        if let Some(parent) = self.parent_of(child) {
            self.command(parent, |machine, now| machine.pause_over(child, now));
        }
    }

    pub(super) fn died(&mut self, death: Death) {
        let Some(id) = self.serving_actor(death.process) else { return };
        let Some(actor) = self.actors.get_mut(&id) else { return };
        let Life::Alive(mut incarnation) = std::mem::replace(&mut actor.life, Life::Waiting) else { return };
        for timer in [incarnation.timer.take(), incarnation.look.take(), incarnation.aged.take()] {
            self.timers.cancel(timer);
        }
        if incarnation.stage == Stage::Recycling
            && let Some(state) = incarnation.handed_over.take()
        {
            return self.recycled(id, incarnation, state);
        }
        let pid = death.process.pid;
        let parent = actor.parent;
        let reason = exit_reason(&incarnation, death.status);
        let is_ordered = is_ordered(&incarnation);
        let fates = actor.mailbox.process_died(&death.page);
        // The deaths by one message, beyond the first, are its fault and not the actor's.
        let is_again = |fate: &Fate| matches!(fate, Fate::InHand { message, .. } if !message.deaths.is_empty());
        let is_poisoned = !is_ordered && fates.iter().any(is_again);
        // First what it held is released, then its supervisor decides, then others are told, then the decision is
        // carried out (MAP-03, MON-005).
        self.living.remove(&pid);
        self.withdraw(pid);
        if self.actors[&id].restart == Restart::Temporary {
            self.release_name(id);
        }
        self.ask_again();
        for timer in self.alarms.target_ended(pid) {
            self.timers.cancel(Some(timer));
        }
        let now = self.now;
        let mut verdict = None;
        if let Some(node) = self.supervisors.get_mut(&parent) {
            if is_poisoned {
                node.machine.do_not_count(id);
            }
            if incarnation.is_ignored {
                node.machine.child_ignored(id, now);
            } else {
                node.machine.child_ended(id, reason.clone(), now);
            }
            verdict = node.machine.pending_verdict(id);
        }
        let killer = killer(&incarnation, &death);
        let certificate = Certificate {
            actor: self.actors[&id].label.clone(),
            pid,
            os_pid: death.os_pid,
            reason: reason.clone(),
            in_hand: self.in_hand(&fates, death.clock_ns),
            killer,
            stacks: death.stacks,
            next: verdict.map_or(Next::Nothing, next_of),
            last_output: death.last_output,
            age_ms: now.saturating_sub(incarnation.since).as_millis() as u64,
            restarts: self.actors[&id].starts.saturating_sub(1),
            cpu_ms: death.cpu_ms,
            peak_kib: death.peak_kib,
        };
        if let Some(actor) = self.actors.get_mut(&id) {
            actor.keep_certificate(certificate.clone());
            actor.down_since = Some(now);
            self.meters.ended(&actor.spec.class, &reason);
        }
        self.forget_caller(Caller::Actor(pid));
        self.forget_waiter(pid);
        self.mourners.remove(&pid);
        let certificate = Arc::new(certificate);
        let cause = if incarnation.report.is_some() { Cause::Failed } else { Cause::OutcomeUnknown };
        let mut again = Vec::new();
        for fate in fates {
            match fate {
                Fate::InHand { message, since_ns } => {
                    let took = Duration::from_nanos(death.clock_ns.saturating_sub(since_ns));
                    self.handler_ended(pid, id, &message, took, || Some(reason.to_string()));
                    again.extend(self.after_death_in_hand(id, message, cause, is_ordered, &certificate));
                }
                Fate::ForPid(message) => self.bury(message, Cause::PidDead, &certificate),
                Fate::Done(message) => {
                    // Its answer would have come before the end.
                    if let Some(call) = message.reply_to {
                        self.fail_call(call, CallFailure::Died(Box::new((*certificate).clone())));
                    }
                }
            }
        }
        if let Some(actor) = self.actors.get_mut(&id) {
            again.into_iter().rev().for_each(|message| actor.mailbox.put_back(message));
        }
        for call in std::mem::take(&mut incarnation.owed) {
            self.fail_call(call, CallFailure::Died(Box::new((*certificate).clone())));
        }
        self.let_go_what_is_not_kept(id, &certificate);
        if incarnation.is_last {
            self.settle(id);
        }
        self.notify_end(pid, &reason, Some(&certificate));
        self.run(parent);
    }

    /// What becomes of a message that was in hand at a death; gives it back if it is to come again.
    fn after_death_in_hand(
        &mut self,
        id: ActorId,
        mut message: Message,
        cause: Cause,
        is_ordered: bool,
        certificate: &Arc<Certificate>,
    ) -> Option<Message> {
        let redelivered = &self.actors.get(&id)?.spec.redelivered;
        let most = redelivered.iter().find(|(method, _)| **method == *message.method).map(|(_, most)| *most);
        let is_answered = message.reply_to.is_some_and(|call| !self.router.is_open(call));
        let (Some(most), false, false) = (most, message.for_pid, is_answered) else {
            self.bury(message, cause, certificate);
            return None;
        };
        if !is_ordered {
            message.deaths.push(certificate.clone());
        }
        if (message.deaths.len() as u64) < u64::from(most) {
            return Some(message);
        }
        if let Some(call) = message.reply_to.take() {
            self.fail_call(call, CallFailure::Died(Box::new((**certificate).clone())));
        }
        self.bury(message, Cause::Poison, certificate);
        None
    }

    /// The mail that an actor does not keep over its own end.
    fn let_go_what_is_not_kept(&mut self, id: ActorId, certificate: &Arc<Certificate>) {
        let Some(actor) = self.actors.get_mut(&id) else { return };
        let options = actor.spec.mailbox;
        let dead = match (options.is_kept, options.fails_while_restarting) {
            (false, _) => actor.mailbox.drain(),
            (true, true) => actor.mailbox.take_calls(),
            (true, false) => return,
        };
        for message in dead {
            self.bury(message, Cause::NotKept, certificate);
        }
        let_in(&mut self.actions, self.actors.get_mut(&id), &mut self.router);
    }

    /// The process has ended as it was asked to, and a new one takes its place in the same incarnation.
    fn recycled(&mut self, id: ActorId, mut incarnation: Box<Incarnation>, state: Bytes) {
        let now = self.now;
        let process =
            ProcessId { pid: incarnation.process.pid, generation: Generation(incarnation.process.generation.0 + 1) };
        // Its open calls end with the process that made them.
        self.forget_caller(Caller::Actor(process.pid));
        let Some(actor) = self.actors.get_mut(&id) else { return };
        actor.mailbox.process_recycled();
        incarnation.process = process;
        incarnation.stage = Stage::Starting;
        incarnation.report = None;
        incarnation.handled = 0;
        incarnation.waited = None;
        incarnation.not_ready = None;
        if let Some(limit) = actor.spec.start_ms {
            incarnation.timer = Some(self.timers.set(now + Duration::from_millis(limit), Due::Start(process)));
        }
        actor.life = Life::Alive(incarnation);
        let launch = launch(actor, process, Some(state));
        self.actions.push_back(Action::Launch(launch));
    }

    fn in_hand(&self, fates: &[Fate], clock_ns: u64) -> Vec<InHand> {
        let in_hand = |fate: &Fate| match fate {
            Fate::InHand { message, since_ns } => Some(InHand {
                method: message.method.to_string(),
                sender: self.sender_label(message.sender),
                age_ms: clock_ns.saturating_sub(*since_ns) / 1_000_000,
                delivery: message.deliveries,
            }),
            Fate::ForPid(_) | Fate::Done(_) => None,
        };
        fates.iter().filter_map(in_hand).collect()
    }

    /// Whether a supervisor holds its children by pid rather than by id.
    pub(crate) fn is_dynamic(&self, id: ActorId) -> bool {
        self.supervisors
            .get(&id)
            .is_some_and(|node| matches!(node.spec.kind, SupervisorKind::Dynamic { .. } | SupervisorKind::Spawned))
    }
}

fn launch(actor: &Actor, process: ProcessId, state: Option<Bytes>) -> Launch {
    Launch {
        process,
        actor: actor.id,
        label: actor.label.clone(),
        named: actor.spec.name.is_some(),
        restarts: actor.starts - u32::from(state.is_some()),
        spec: actor.spec.clone(),
        state,
        log_level: actor.log_level,
    }
}

fn next_of(verdict: Verdict) -> Next {
    match verdict {
        Verdict::Restarts(after) => Next::Restarts { after_ms: after.as_millis() as u64 },
        Verdict::StaysDown => Next::StaysDown,
        Verdict::GivesUp => Next::GivesUp,
        Verdict::Parks => Next::Parked,
    }
}

/// The reason of an end: the first that applies of MAP-02.
fn exit_reason(incarnation: &Incarnation, status: Status) -> ExitReason {
    if let Some(report) = &incarnation.report {
        return report.clone();
    }
    match (&incarnation.killed_for, &incarnation.exit, status) {
        (Some((reason, _)), _, Status::Signalled(9)) => reason.clone(),
        (_, Some(reason), _) => reason.clone(),
        (_, None, Status::Signalled(number)) => ExitReason::Signal(number),
        (_, None, Status::Exited(code)) => ExitReason::ExitCode(code),
    }
}

/// Whether the end was asked for, rather than caused by what the actor did.
fn is_ordered(incarnation: &Incarnation) -> bool {
    matches!(incarnation.stage, Stage::Stopping { .. })
        || incarnation.exit.is_some()
        || matches!(incarnation.killed_for, Some((ExitReason::Killed, _)))
}

/// Who ended it, where a signal did.
fn killer(incarnation: &Incarnation, death: &Death) -> Killer {
    match (death.status, &incarnation.killed_for) {
        (Status::Exited(_), _) => Killer::Nobody,
        (Status::Signalled(9), Some((_, why))) => Killer::Rebeam((*why).to_owned()),
        (Status::Signalled(_), _) if death.out_of_memory => Killer::OutOfMemory,
        (Status::Signalled(_), _) => Killer::Unknown,
    }
}
