//! Starts, stops and deaths: what the supervisors' machines want, done to actors; what befalls actors, told to them.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rebeam_protocol::address::Caller;
use rebeam_protocol::certificate::{Certificate, InHand, Killer, Next};
use rebeam_protocol::exit::ExitReason;
use rebeam_protocol::id::{ActorId, Generation, Pid, ProcessId, Seq, Version};
use rebeam_protocol::message::{CallFailure, Cause};
use rebeam_protocol::page::Snapshot;
use rebeam_protocol::spec::{ActorSpec, Limits, Restart, Shutdown};
use rebeam_protocol::text::shortened;
use rebeam_protocol::worker::Started;

use super::Core;
use crate::actor::{Actor, Life};
use crate::dead_letters;
use crate::event::{Action, Death, Launch, NodeEvent, State, Status};
use crate::incarnation::{self, End, Incarnation, Limit, Manner, Stop};
use crate::mailbox::{Fate, Message};
use crate::members::{ROOT, traits};
use crate::supervisor::{Command, Machine, Purpose, Verdict};
use crate::timers::Due;

/// How long an actor has to unwind after an exit signal that it does not trap, before it is killed (MAP-04).
const EXIT_GRACE: Duration = Duration::from_millis(500);

/// How long a process may take to take over a state where `init` does not run.
const TAKE_OVER_TIME: Duration = Duration::from_secs(10);

/// How many bytes of a method's name, of stacks and of last lines a certificate keeps.
const MOST_METHOD: usize = 200;
const MOST_STACKS: usize = 32 * 1024;
const MOST_OUTPUT: usize = 16 * 1024;

/// Up to how many bytes the arguments of a temporary child are kept once it has started.
const KEPT_ARGUMENTS: usize = 16 * 1024;

/// What is known of the end of a process, beside what the system says.
struct Ended {
    /// Since when its incarnation has lived.
    since: Duration,
    /// The version of the code that it ran.
    code: Version,
    reason: ExitReason,
    killer: Killer,
}

/// An incarnation that has ended, for whoever decides about its mail.
struct Over {
    id: ActorId,
    pid: Pid,
    /// The time on the page's clock, in nanoseconds.
    clock_ns: u64,
    /// The message in hand whose handler has raised.
    failed: Option<Seq>,
    /// Whether its end was asked for.
    is_ordered: bool,
    certificate: Arc<Certificate>,
}

impl Core {
    /// Tells a supervisor something, then carries out what it and those it affects want.
    pub(super) fn command(&mut self, supervisor: ActorId, tell: impl FnOnce(&mut Machine, Duration)) {
        let now = self.now;
        if let Some(supervisor) = self.members.supervisor_mut(supervisor) {
            tell(&mut supervisor.machine, now);
        }
        self.run(supervisor);
    }

    /// Carries out what a supervisor wants, and those it affects, until all are quiet.
    pub(super) fn run(&mut self, supervisor: ActorId) {
        let mut busy = VecDeque::from([supervisor]);
        while let Some(id) = busy.pop_front() {
            while let Some(command) = self.members.supervisor_mut(id).and_then(|it| it.machine.poll_command()) {
                self.carry_out(id, command, &mut busy);
            }
        }
        if self.members.supervisor(ROOT).is_some_and(|root| root.machine.is_ending()) {
            self.node_stops();
        }
    }

    fn carry_out(&mut self, id: ActorId, command: Command, busy: &mut VecDeque<ActorId>) {
        let Some(supervisor) = self.members.supervisor(id) else { return };
        let parent = supervisor.parent;
        match command {
            Command::Start(child) => self.start_child(id, child, busy),
            Command::Stop { child, purpose } => {
                let is_killing = supervisor.is_killing;
                if self.members.is_supervisor(child) {
                    self.stop_inner(child, purpose, is_killing);
                    busy.push_back(child);
                } else {
                    self.stop_actor(child, purpose, is_killing);
                }
            }
            Command::Pause { child, time, number } => {
                self.timers.set(self.now + time, Due::PauseOver(child, number));
            }
            Command::Verdict { child, reason, verdict } => {
                let report = self.decided(id, child, &reason, verdict);
                self.actions.extend(report);
            }
            Command::Settled(child) => self.settle(child),
            Command::Removed(child) => {
                // The children of the initial list come back with their supervisor.
                if supervisor.listed.contains(&child) {
                    self.settle(child);
                    self.members.release_name(child);
                } else {
                    self.remove(child);
                }
            }
            Command::Up => match parent {
                Some(parent) => {
                    self.tell_parent(parent, busy, |machine, now| machine.child_started(id, now));
                }
                None if id == ROOT => self.actions.push_back(Action::Node(NodeEvent::Up)),
                None => {}
            },
            Command::Failed { child, reason } => {
                let failed = self.failed_child(child);
                if let Some(supervisor) = self.members.supervisor_mut(id) {
                    supervisor.failed = Some(failed);
                }
                self.supervisor_ended(id, &reason);
                match parent {
                    Some(parent) => self.tell_end(parent, id, &reason, busy),
                    None => self.node_failed(child, reason, busy),
                }
            }
            Command::Ended(reason) => {
                self.supervisor_ended(id, &reason);
                match parent {
                    Some(parent) => self.tell_end(parent, id, &reason, busy),
                    None if id == ROOT => {
                        self.settle(ROOT);
                        let end = self.shutdown.end();
                        self.root_is_down(NodeEvent::Ended(end), busy);
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
        if let Some(supervisor) = self.members.supervisor_mut(parent) {
            tell(&mut supervisor.machine, now);
            busy.push_back(parent);
        }
    }

    /// Tells a supervisor that a child of it has ended of which there is no certificate.
    fn tell_end(&mut self, parent: ActorId, child: ActorId, reason: &ExitReason, busy: &mut VecDeque<ActorId>) {
        let mut verdict = None;
        let told = reason.clone();
        self.tell_parent(parent, busy, |machine, now| verdict = machine.child_ended(child, told, now));
        if let Some(verdict) = verdict {
            let report = self.decided(parent, child, reason, verdict);
            self.actions.extend(report);
        }
    }

    fn start_child(&mut self, parent: ActorId, child: ActorId, busy: &mut VecDeque<ActorId>) {
        if let Err(reason) = self.claim(child) {
            self.tell_end(parent, child, &reason, busy);
        } else if self.members.is_supervisor(child) {
            self.start_supervisor(child);
            busy.push_back(child);
        } else {
            self.start_actor(child);
        }
    }

    /// Starts a supervisor anew, with the children of its initial list only and an empty history (SUP-087).
    pub(super) fn start_supervisor(&mut self, id: ActorId) {
        let pid = self.members.new_process().pid;
        let now = self.now;
        let Some(supervisor) = self.members.supervisor_mut(id) else { return };
        let listed = supervisor.listed.clone();
        let children = listed.iter().copied().zip(supervisor.spec.children.iter().map(traits));
        supervisor.machine = Machine::new(&supervisor.spec, children);
        supervisor.machine.reorder(&listed);
        supervisor.pid = Some(pid);
        supervisor.last_pid = Some(pid);
        supervisor.starts += 1;
        supervisor.is_killing = false;
        supervisor.machine.begin(now);
        self.members.born(pid, id);
        for child in listed {
            self.reserve_name(child);
            self.will_start(child);
        }
        self.announce(id, pid);
        self.look_for_those_who_wait();
    }

    /// A supervisor has ended, and everything below it: children that were added at run time are gone with it.
    fn supervisor_ended(&mut self, id: ActorId, reason: &ExitReason) {
        let Some(supervisor) = self.members.supervisor_mut(id) else { return };
        let pid = supervisor.pid.take();
        let added = supervisor.added();
        self.timers.cancel(supervisor.timer.take());
        added.into_iter().for_each(|child| self.remove(child));
        if let Some(pid) = pid {
            self.members.ended(pid);
            self.withdraw(pid);
            self.notify_end(pid, reason, None);
        }
    }

    /// The initial start failed and was rolled back.
    fn node_failed(&mut self, child: ActorId, reason: ExitReason, busy: &mut VecDeque<ActorId>) {
        let mut failed = child;
        // A supervisor that failed did so because of a child of its own: name the innermost.
        while let Some(supervisor) = self.members.supervisor(failed) {
            let is_cause = |id: &&ActorId| match self.members.actor(**id) {
                Some(actor) => self.deaths.last_of(actor.id).is_some_and(|last| last.reason == reason),
                None => true,
            };
            let Some(inner) = supervisor.listed.iter().find(is_cause) else { break };
            failed = *inner;
        }
        let path = |id| self.members.supervisor(id).map(|supervisor| supervisor.path.clone()).unwrap_or_default();
        let child = self.members.actor(failed).map_or_else(|| path(failed), |actor| actor.label.clone());
        let certificate = self.deaths.last_of(failed).cloned();
        self.root_is_down(NodeEvent::Failed { child, reason, certificate }, busy);
    }

    /// Stops what was spawned, then the tree.
    pub(super) fn stop_node(&mut self) {
        let is_up = |id: &ActorId| self.members.supervisor(*id).is_some_and(|spawner| spawner.pid.is_some());
        match self.members.spawner().filter(is_up) {
            Some(spawner) => {
                self.node_stops();
                self.command(spawner, |machine, now| machine.stop(ExitReason::SHUTDOWN, Purpose::Final, now));
            }
            None => self.stop_supervisor(ROOT, ExitReason::SHUTDOWN),
        }
    }

    /// The tree is down. What was spawned goes before the node does.
    fn root_is_down(&mut self, last_word: NodeEvent, busy: &mut VecDeque<ActorId>) {
        let now = self.now;
        match self.members.spawner().and_then(|id| Some((id, self.members.supervisor_mut(id)?))) {
            Some((id, spawner)) if spawner.pid.is_some() => {
                self.shutdown.say_last(last_word);
                spawner.machine.stop(ExitReason::SHUTDOWN, Purpose::Final, now);
                busy.push_back(id);
            }
            _ => self.actions.push_back(Action::Node(last_word)),
        }
    }

    fn spawner_is_down(&mut self, busy: &mut VecDeque<ActorId>) {
        match self.shutdown.take_last_word() {
            Some(last_word) => self.actions.push_back(Action::Node(last_word)),
            None => {
                self.tell_parent(ROOT, busy, |root, now| root.stop(ExitReason::SHUTDOWN, Purpose::Final, now));
            }
        }
    }

    /// A supervisor has decided what follows from the end of a child: it is remembered with that death. Gives the report.
    fn decided(
        &mut self,
        supervisor: ActorId,
        child: ActorId,
        reason: &ExitReason,
        verdict: Verdict,
    ) -> Option<Action> {
        let certificate = self.members.actor(child).and_then(|_| self.deaths.last_of(child)).cloned();
        let next = self.next_of(child, verdict);
        if verdict == Verdict::GivesUp {
            self.shutdown.gives_up(supervisor == ROOT, certificate.clone().map(|certificate| (certificate, next)));
        }
        let (certificate, actor) = (certificate?, self.members.actor(child)?);
        self.deaths.decided(child, next);
        // SUP-025: every abnormal end, and every end of a permanent child; but none that was ordered.
        let is_brutal = actor.shutdown == Shutdown::BrutalKill && *reason == ExitReason::Killed;
        let is_due = (!reason.is_clean() || actor.restart == Restart::Permanent) && !is_brutal;
        let is_killing = self.members.supervisor(supervisor).is_some_and(|supervisor| supervisor.is_killing);
        (is_due && !is_killing).then_some(Action::Report { certificate, next })
    }

    /// What a supervisor has decided about a child, as a certificate says it.
    fn next_of(&self, child: ActorId, verdict: Verdict) -> Next {
        match verdict {
            Verdict::Restarts(after) => Next::Restarts { after_ms: after.as_millis() as u64 },
            Verdict::StaysDown => Next::StaysDown,
            Verdict::GivesUp => {
                let supervisor = self.members.parent_of(child).and_then(|parent| self.members.supervisor(parent));
                let (restarts, within_ms) =
                    supervisor.map(|node| (node.spec.max_restarts, node.spec.max_ms)).unwrap_or_default();
                Next::GivesUp { restarts, within_ms }
            }
            Verdict::Parks => Next::Parked,
        }
    }

    /// The child will not come back by itself: its mail is dead, and so is that of everything below it.
    fn settle(&mut self, id: ActorId) {
        if let Some(supervisor) = self.members.supervisor(id) {
            for child in supervisor.listed.clone() {
                self.settle(child);
            }
        } else if let Some(actor) = self.members.actor_mut(id) {
            match &mut actor.life {
                Life::Alive(incarnation) => incarnation.is_last = true,
                Life::Waiting | Life::Gone => {
                    actor.life = Life::Gone;
                    self.bury_mail(id);
                }
            }
        }
    }

    /// A member's supervisor starts, so it will be started: its mail waits from now on.
    fn will_start(&mut self, id: ActorId) {
        if let Some(supervisor) = self.members.supervisor(id) {
            for child in supervisor.listed.clone() {
                self.will_start(child);
            }
        } else if let Some(actor) = self.members.actor_mut(id)
            && matches!(actor.life, Life::Gone)
        {
            actor.life = Life::Waiting;
        }
    }

    fn start_actor(&mut self, id: ActorId) {
        let process = self.members.new_process();
        let now = self.now;
        let Some(code) = self.members.actor(id).map(|actor| self.code_of(&actor.spec)) else { return };
        let Some(actor) = self.members.actor_mut(id) else { return };
        actor.last_pid = Some(process.pid);
        actor.life = Life::Alive(Box::new(Incarnation::new(process, code, now)));
        let launch = launch(actor, process, code.version, None);
        actor.starts += 1;
        self.members.born(process.pid, id);
        self.runs(id, code);
        self.announce(id, process.pid);
        self.actions.push_back(Action::Launch(launch));
        self.obey(id, vec![incarnation::Command::Limit(Limit::Start)]);
    }

    /// Carries out what the machine of an incarnation commands.
    pub(super) fn obey(&mut self, id: ActorId, commands: Vec<incarnation::Command>) {
        use incarnation::Command;
        for command in commands {
            if self.end_unlaunched(id, &command) {
                return;
            }
            let Some(actor) = self.members.actor_mut(id) else { return };
            let (shutdown, start_ms) = (actor.shutdown, actor.spec.start_ms);
            let Life::Alive(incarnation) = &mut actor.life else { return };
            let process = incarnation.process();
            match command {
                Command::Stop { reason, urgent } => self.actions.push_back(Action::Stop { process, reason, urgent }),
                Command::Exit => self.actions.push_back(Action::Exit(process)),
                Command::Kill => self.actions.push_back(Action::Kill(process)),
                Command::Recycle => self.actions.push_back(Action::Recycle(process)),
                Command::Move => self.actions.push_back(Action::Move(process)),
                Command::Limit(limit) => {
                    let time = match limit {
                        Limit::None => None,
                        Limit::Start => start_ms.map(Duration::from_millis),
                        Limit::TakeOver => Some(TAKE_OVER_TIME),
                        Limit::Shutdown => self.shutdown.stop_time(shutdown),
                        Limit::Unwind => Some(EXIT_GRACE),
                    };
                    let timer = time.map(|time| self.timers.set(self.now + time, Due::Limit(process.pid)));
                    let is_told = limit == Limit::Shutdown && incarnation.machine.can_be_told_to_hurry();
                    if let Some(time) = time.filter(|_| is_told) {
                        self.actions.push_back(Action::TimeLeft { process, time });
                    }
                    let old = std::mem::replace(&mut incarnation.limit, timer);
                    self.timers.cancel(old);
                }
                Command::Seal => actor.mailbox.seal(),
                Command::Pump => self.pump(id),
            }
        }
    }

    /// Tells the machine of the incarnation that a process serves something, and does what it commands.
    pub(super) fn order(
        &mut self,
        process: ProcessId,
        tell: impl FnOnce(&mut incarnation::Machine) -> Vec<incarnation::Command>,
    ) {
        let Some(actor) = self.members.serving_mut(process) else { return };
        let id = actor.id;
        if let Some(incarnation) = actor.incarnation_mut() {
            let commands = tell(&mut incarnation.machine);
            self.obey(id, commands);
            self.end_unlaunched_if_ordered(id);
        }
    }

    /// The node is on its way down, as ordered or because the root has given up: said once.
    fn node_stops(&mut self) {
        if self.shutdown.begin() {
            self.actions.push_back(Action::Node(NodeEvent::Stopping));
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
        let Some(supervisor) = self.members.supervisor(id) else { return };
        let shutdown = supervisor.shutdown;
        let limit = self.shutdown.stop_time(shutdown);
        let timer = limit.map(|limit| self.timers.set(now + limit, Due::SupervisorShutdown(id)));
        if shutdown == Shutdown::BrutalKill || is_killing {
            self.kill_below(id);
        }
        if let Some(supervisor) = self.members.supervisor_mut(id) {
            supervisor.timer = timer;
            supervisor.machine.stop(ExitReason::SHUTDOWN, purpose, now);
        }
    }

    /// Stops an actor for its supervisor.
    fn stop_actor(&mut self, id: ActorId, purpose: Purpose, is_killing: bool) {
        let Some(actor) = self.members.actor(id) else { return };
        let Some(incarnation) = actor.incarnation() else { return };
        let process = incarnation.process();
        if actor.shutdown == Shutdown::BrutalKill || is_killing {
            let why = if is_killing { "its supervisor was killed, or out of time" } else { "by `brutal_kill`" };
            return self.kill_for(process, ExitReason::Killed, why);
        }
        // OTP's rule: who does not trap exits is not asked (MAP-05).
        if !actor.spec.terminate_on_shutdown && !incarnation.traps_exits {
            return self.order(process, |machine| machine.exit(ExitReason::SHUTDOWN, Limit::Shutdown));
        }
        let is_urgent = purpose == Purpose::Restart || self.shutdown.is_hurried() || incarnation.is_suspended;
        let manner = if is_urgent { Manner::Urgent } else { Manner::InTurn };
        self.order(process, |machine| machine.stop(Stop { reason: ExitReason::SHUTDOWN, manner, is_limited: true }));
    }

    pub(super) fn started(&mut self, process: ProcessId, started: Started, info: Bytes) {
        let now = self.now;
        let Some(id) = self.members.serving(process).map(|actor| actor.id) else { return };
        self.forget_arguments(id);
        let Some(actor) = self.members.actor_mut(id) else { return };
        let (parent, max_age) = (actor.parent, actor.spec.limits.max_age_ms);
        let linked = actor.owner.filter(|_| actor.is_linked);
        let Life::Alive(incarnation) = &mut actor.life else { return };
        incarnation.is_function = started == Started::Function;
        if started == Started::Ignore {
            // Its process ends by itself now; only then it is over.
            return incarnation.machine.ignored();
        }
        let Some(commands) = incarnation.machine.started() else { return };
        incarnation.info = info;
        incarnation.got_on = now;
        incarnation.failed_launches = 0;
        let took = now.saturating_sub(incarnation.since);
        incarnation.aged = max_age.map(|limit| self.timers.set(now + Duration::from_millis(limit), Due::Aged(process)));
        let asked = incarnation.asked().to_vec();
        actor.down_since = None;
        self.obey(id, commands);
        if process.generation == Generation(0) {
            self.versions.not_started.remove(&id);
            self.meters.started(took);
            // Not before: a start that fails is an error of its starter's, and no exit signal.
            if let Some(owner) = linked.filter(|owner| self.members.living(*owner).is_some()) {
                self.links.link(owner, process.pid);
            }
            self.command(parent, |machine, now| machine.child_started(id, now));
        }
        self.replace_what_was_made_before(id, process.pid);
        for message in &asked {
            self.hand_to_process(process, message);
        }
        if started != Started::Function {
            self.let_go_what_was_not_made_again(id);
        }
        self.has_taken_over(id);
        self.look_for_those_who_wait();
        self.pump(id);
        self.reload_goes_on();
    }

    /// What never starts again by itself, not even with its supervisor, keeps its arguments only if they are small
    /// (SUP-036): for whoever restarts it by hand.
    fn forget_arguments(&mut self, id: ActorId) {
        let is_listed = self.members.is_listed(id);
        let Some(actor) = self.members.actor_mut(id) else { return };
        // One that `init` runs in again: when it is recycled, or moves to new code.
        let is_recycled = actor.spec.limits != Limits::default() || actor.spec.has_checkpoint;
        if actor.restart == Restart::Temporary && !is_listed && !is_recycled && actor.spec.start.len() > KEPT_ARGUMENTS
        {
            actor.has_no_arguments = true;
            actor.spec = Arc::new(ActorSpec { start: Vec::new(), ..(*actor.spec).clone() });
        }
    }

    /// A worker has said its last word.
    pub(super) fn reported(&mut self, process: ProcessId, reason: ExitReason, message: Option<Seq>) {
        if let Some(incarnation) = self.members.serving_mut(process).and_then(Actor::incarnation_mut) {
            incarnation.failed = message;
        }
        self.order(process, |machine| machine.reported(reason));
    }

    /// Kills a process and remembers why, unless something else is its end already.
    pub(super) fn kill_for(&mut self, process: ProcessId, reason: ExitReason, why: &'static str) {
        self.order(process, |machine| machine.kill(reason, why));
    }

    /// Has a process unwind and end without `terminate`; it is killed if it does not.
    pub(super) fn order_exit(&mut self, process: ProcessId, reason: ExitReason) {
        self.order(process, |machine| machine.exit(reason, Limit::Unwind));
    }

    /// What a process is doing has taken as long as it may.
    pub(super) fn time_is_over(&mut self, pid: Pid) {
        let Some(id) = self.members.living(pid) else { return };
        let Some(incarnation) = self.members.incarnation_mut(id) else { return };
        let process = incarnation.process();
        if incarnation.machine.is_in_init() && !std::mem::replace(&mut incarnation.has_shown_stacks, true) {
            let limit = self.kill_after_stacks(process, Due::Limit(pid));
            if let Some(incarnation) = self.members.incarnation_mut(id) {
                incarnation.limit = Some(limit);
            }
            return;
        }
        self.order(process, incarnation::Machine::time_is_over);
    }

    /// A supervisor's time to stop is over: whatever lives below it is killed, and what is still to be stopped too.
    pub(super) fn kill_below(&mut self, supervisor: ActorId) {
        let Some(node) = self.members.supervisor_mut(supervisor) else { return };
        node.is_killing = true;
        let children: Vec<ActorId> = node.machine.children().map(|(child, ..)| child).collect();
        for child in children {
            if self.members.is_supervisor(child) {
                self.kill_below(child);
            } else if let Some(process) = self.members.actor(child).and_then(|actor| actor.process()) {
                self.kill_for(process, ExitReason::Killed, "its supervisor was killed, or out of time");
            }
        }
    }

    /// From now on no stop takes longer than `limit`, and mail that waits is not handled first.
    pub(super) fn hurry(&mut self, limit: Duration) {
        self.shutdown.hurry(limit);
        let alive = self.members.actors().filter_map(|actor| Some((actor.id, actor.process()?)));
        let mut alive: Vec<(ActorId, ProcessId)> = alive.collect();
        alive.sort();
        for (_, process) in alive {
            self.order(process, incarnation::Machine::hurry);
        }
    }

    pub(super) fn pause_over(&mut self, child: ActorId, number: u64) {
        if let Some(parent) = self.members.parent_of(child) {
            self.command(parent, |machine, now| machine.pause_over(child, number, now));
        }
    }

    /// A process is gone. What it held is released first, then its supervisor decides, then others are told, and then
    /// the decision is carried out (MAP-03, MON-005).
    pub(super) fn died(&mut self, death: Death) {
        let Some(actor) = self.members.serving_mut(death.process) else { return self.kept_died(death.process) };
        let (id, pid) = (actor.id, death.process.pid);
        let Life::Alive(mut incarnation) = std::mem::replace(&mut actor.life, Life::Waiting) else { return };
        let reason = incarnation.machine.exit_reason(death.status);
        let killer = killer(&incarnation.machine, &death);
        let has_reported = incarnation.machine.has_reported();
        let end = incarnation.machine.died(death.status);
        for timer in incarnation.process_ended() {
            self.timers.cancel(timer);
        }
        let end = match end {
            End::NextGeneration { state, commands } => {
                actor.life = Life::Alive(incarnation);
                return self.next_generation(id, &death.page, state, commands);
            }
            end @ (End::GoesBack { .. } | End::Undone { .. }) => {
                actor.life = Life::Alive(incarnation);
                return self.new_code_failed(id, death, reason, killer, end);
            }
            end => end,
        };
        self.timers.cancel(incarnation.limit.take());
        self.forget_before(id, &reason, &mut incarnation);
        let is_ordered = incarnation.machine.is_ordered();
        let fates = self.release(id, pid, &death.page);
        let verdict = self.ask_for_verdict(id, &reason, &end, !is_ordered && is_poisoned(&fates));
        let clock_ns = death.clock_ns;
        let next = verdict.map_or(Next::Nothing, |verdict| self.next_of(id, verdict));
        let code = incarnation.version;
        let cause = Ended { since: incarnation.since, code, reason: reason.clone(), killer };
        let certificate = Arc::new(self.certificate(id, cause, &fates, next, death));
        self.remember(id, &reason, certificate.clone());
        self.forget_caller(Caller::Actor(pid));
        self.forget_waiter(pid);
        self.dead_letters.unsubscribe(pid);
        let failed = failed(&incarnation, has_reported, &fates);
        self.share_out(fates, &Over { id, pid, clock_ns, failed, is_ordered, certificate: certificate.clone() });
        for answer in std::mem::take(&mut incarnation.last_answers) {
            self.pass_on(answer);
        }
        for call in incarnation.take_owed() {
            self.fail_call(call, CallFailure::Died { certificate: certificate.clone(), begun: true });
        }
        self.let_go_what_is_not_kept(id, &certificate);
        if incarnation.is_last {
            self.settle(id);
        }
        let parent = self.members.parent_of(id);
        // Before others are told: one of them may be its owner, whose end has it forgotten.
        let report = parent.zip(verdict).and_then(|(parent, verdict)| self.decided(parent, id, &reason, verdict));
        self.notify_end(pid, &reason, Some(&certificate));
        self.actions.extend(report);
        if let Some(parent) = parent {
            self.run(parent);
        }
        self.reload_goes_on();
    }

    /// A process that waited for the next one of its incarnation is gone: there is nothing to go back to but its state.
    fn kept_died(&mut self, process: ProcessId) {
        if let Some(id) = self.members.living(process.pid)
            && let Some(incarnation) = self.members.incarnation_mut(id)
        {
            incarnation.machine.kept_died(process);
        }
    }

    /// Releases what an incarnation held that has ended; gives what becomes of the mail that it was handed.
    fn release(&mut self, id: ActorId, pid: Pid, page: &Snapshot) -> Vec<Fate> {
        self.members.ended(pid);
        self.withdraw(pid);
        let mut fates = Vec::new();
        if let Some(actor) = self.members.actor_mut(id) {
            fates = actor.mailbox.process_died(page);
            if actor.restart == Restart::Temporary {
                self.members.release_name(id);
            }
        }
        self.ask_again();
        for timer in self.alarms.ended(pid) {
            self.timers.cancel(Some(timer));
        }
        fates
    }

    /// Has the supervisor of an actor decide what follows from its end; `None` if it has something else to do.
    fn ask_for_verdict(&mut self, id: ActorId, reason: &ExitReason, end: &End, is_poisoned: bool) -> Option<Verdict> {
        let now = self.now;
        let parent = self.members.parent_of(id)?;
        let machine = &mut self.members.supervisor_mut(parent)?.machine;
        if is_poisoned {
            machine.do_not_count(id);
        }
        if *end == End::Ignored {
            machine.child_ignored(id, now);
            return None;
        }
        machine.child_ended(id, reason.clone(), now)
    }

    fn certificate(&self, id: ActorId, cause: Ended, fates: &[Fate], next: Next, death: Death) -> Certificate {
        let Ended { since, code, reason, killer } = cause;
        let actor = self.members.actor(id);
        Certificate {
            actor: actor.map(|actor| actor.label.clone()).unwrap_or_default(),
            pid: death.process.pid,
            os_pid: death.os_pid,
            reason,
            in_hand: self.in_hand(fates, death.clock_ns),
            killer,
            stacks: shortened(death.stacks, MOST_STACKS),
            next,
            last_output: last_of(death.last_output),
            code,
            age_ms: self.now.saturating_sub(since).as_millis() as u64,
            restarts: actor.map_or(0, |actor| actor.starts.saturating_sub(1)),
            cpu_ms: death.cpu_ms,
            peak_kib: death.peak_kib,
        }
    }

    fn remember(&mut self, id: ActorId, reason: &ExitReason, certificate: Arc<Certificate>) {
        self.deaths.add(id, certificate);
        let now = self.now;
        if let Some(actor) = self.members.actor_mut(id) {
            actor.down_since = Some(now);
            self.meters.ended(&actor.spec.class, reason);
        }
    }

    /// Carries out what becomes of the mail that a process was handed.
    fn share_out(&mut self, fates: Vec<Fate>, over: &Over) {
        let mut again = Vec::new();
        for fate in fates {
            match fate {
                Fate::InHand { seq, message, since_ns } => {
                    let took = Duration::from_nanos(over.clock_ns.saturating_sub(since_ns));
                    let error = || Some(over.certificate.reason.to_string());
                    self.handler_ended(over.pid, over.id, &message, took, error);
                    let cause = if over.failed == Some(seq) { Cause::Failed } else { Cause::OutcomeUnknown };
                    again.extend(self.after_death_in_hand(message, cause, over));
                }
                Fate::ForPid(message) => self.bury(message, Cause::PidDead, over.id, &over.certificate),
                Fate::Done(message) => {
                    // Its answer would have come before the end.
                    if let Some(call) = message.reply_to {
                        self.fail_call(call, CallFailure::Died { certificate: over.certificate.clone(), begun: true });
                    }
                }
            }
        }
        if let Some(actor) = self.members.actor_mut(over.id) {
            again.into_iter().rev().for_each(|message| actor.mailbox.put_back(message));
        }
    }

    /// What becomes of a message that was in hand at a death; gives it back if it is to come again.
    fn after_death_in_hand(&mut self, mut message: Message, cause: Cause, over: &Over) -> Option<Message> {
        let redelivered = &self.members.actor(over.id)?.spec.redelivered;
        let most = redelivered.iter().find(|(method, _)| *method == message.head.method).map(|(_, most)| *most);
        let is_answered = message.reply_to.is_some_and(|call| !self.router.is_open(call));
        let (Some(most), false, false) = (most, message.for_pid, is_answered) else {
            self.bury(message, cause, over.id, &over.certificate);
            return None;
        };
        if !over.is_ordered {
            message.deaths.push(over.certificate.clone());
        }
        if (message.deaths.len() as u64) < u64::from(most) {
            return Some(message);
        }
        if let Some(call) = message.reply_to.take() {
            self.fail_call(call, CallFailure::Died { certificate: over.certificate.clone(), begun: true });
        }
        self.bury(message, Cause::Poison, over.id, &over.certificate);
        None
    }

    /// The mail that an actor does not keep over its own end.
    fn let_go_what_is_not_kept(&mut self, id: ActorId, certificate: &Arc<Certificate>) {
        let Some(actor) = self.members.actor_mut(id) else { return };
        let options = actor.spec.mailbox;
        let dead = match (options.is_kept, options.fails_while_restarting) {
            (false, _) => actor.mailbox.drain(),
            (true, true) => actor.mailbox.take_calls(),
            (true, false) => return,
        };
        for message in dead {
            self.bury(message, Cause::NotKept, id, certificate);
        }
        self.let_in(id);
    }

    /// The process has ended as it was asked to, and a new one takes its place in the same incarnation.
    fn next_generation(
        &mut self,
        id: ActorId,
        page: &Snapshot,
        state: Option<State>,
        commands: Vec<incarnation::Command>,
    ) {
        self.take_mail_back(id, page);
        match state {
            Some(state) => {
                let code = self.next_code(id);
                if let Some(code) = code {
                    self.runs(id, code);
                }
                self.next_process(id, code.map(|code| (state, code.version)), true, commands);
            }
            None => self.starts_over(id, commands),
        }
    }

    /// What a process was handed and has not begun waits again; what it had begun is not begun twice.
    pub(super) fn take_mail_back(&mut self, id: ActorId, page: &Snapshot) {
        let Some(actor) = self.members.actor_mut(id) else { return };
        let rest = actor.mailbox.process_recycled(page);
        let end = dead_letters::End::of(actor, Cause::OutcomeUnknown);
        // Done without an answer, which the next process may still give: its state may say to whom.
        let unanswered = rest.done.iter().filter_map(|message| message.reply_to);
        for call in unanswered.filter(|call| self.router.is_open(*call)).collect::<Vec<_>>() {
            if let Some(incarnation) = self.members.incarnation_mut(id) {
                incarnation.owe(call);
            }
            self.router.owe(call);
        }
        for message in rest.begun {
            if let Some(call) = message.reply_to {
                self.fail_call(call, CallFailure::Restarting { target: end.label.clone() });
            }
            self.lay_out(message, end.clone());
        }
    }

    /// Has the next process of an incarnation made, which goes on with this state, of this version of the code.
    pub(super) fn next_process(
        &mut self,
        id: ActorId,
        takes_over: Option<(State, Version)>,
        runs_init: bool,
        commands: Vec<incarnation::Command>,
    ) {
        let Some(actor) = self.members.actor_mut(id) else { return };
        let Life::Alive(mut incarnation) = std::mem::replace(&mut actor.life, Life::Waiting) else { return };
        let process = incarnation.process();
        // Its open calls end with the process that made them.
        self.forget_caller(Caller::Actor(process.pid));
        let is_all = incarnation.is_function || takes_over.is_none();
        self.keep_what_it_made(id, &mut incarnation, runs_init, is_all);
        let owed = if takes_over.is_none() { incarnation.take_owed_answers() } else { Vec::new() };
        let (code, is_suspended) = (incarnation.code.version, incarnation.is_suspended);
        incarnation.version = code;
        let Some(actor) = self.members.actor_mut(id) else { return };
        actor.life = Life::Alive(incarnation);
        let mut launch = launch(actor, process, code, takes_over);
        launch.is_suspended = is_suspended;
        let label = actor.label.clone();
        self.actions.push_back(Action::Launch(launch));
        // Nobody is left who knows to whom.
        for call in owed {
            self.fail_call(call, CallFailure::Restarting { target: label.clone() });
        }
        self.obey(id, commands);
    }

    /// New code has failed as it was taken over, or soon after: the actor goes on with what was before.
    fn new_code_failed(&mut self, id: ActorId, death: Death, reason: ExitReason, killer: Killer, end: End) {
        let pid = death.process.pid;
        let Some(next) = self.goes_back_to(id) else { return };
        let Some(actor) = self.members.actor_mut(id) else { return };
        // One that was not up yet was handed nothing, and a stop that was ordered meanwhile holds.
        let has_mail = actor.mailbox.handed().next().is_some();
        let fates = if has_mail { actor.mailbox.process_died(&death.page) } else { Vec::new() };
        let clock_ns = death.clock_ns;
        let Some(incarnation) = actor.incarnation() else { return };
        let cause = Ended { since: incarnation.since, code: incarnation.version, reason, killer };
        let certificate = Arc::new(self.certificate(id, cause, &fates, next, death));
        self.deaths.add(id, certificate.clone());
        self.deaths.decided(id, next);
        self.forget_caller(Caller::Actor(pid));
        let Some(incarnation) = self.members.incarnation_mut(id) else { return };
        let failed = failed(incarnation, incarnation.failed.is_some(), &fates);
        incarnation.failed = None;
        let answers = std::mem::take(&mut incarnation.last_answers);
        self.share_out(fates, &Over { id, pid, clock_ns, failed, is_ordered: false, certificate: certificate.clone() });
        answers.into_iter().for_each(|answer| self.pass_on(answer));
        match end {
            End::GoesBack { commands } => self.goes_back(id, &certificate, commands),
            End::Undone { commands } => {
                self.actions.push_back(Action::Report { certificate: certificate.clone(), next });
                self.is_undone(id, &certificate, commands);
            }
            End::NextGeneration { .. } | End::Ignored | End::Over => {}
        }
        self.reload_goes_on();
    }

    fn in_hand(&self, fates: &[Fate], clock_ns: u64) -> Vec<InHand> {
        let in_hand = |fate: &Fate| match fate {
            Fate::InHand { message, since_ns, .. } => Some(InHand {
                method: shortened(message.head.method.clone(), MOST_METHOD),
                sender: self.sender_label(message.sender),
                age_ms: clock_ns.saturating_sub(*since_ns) / 1_000_000,
                delivery: message.deliveries,
            }),
            Fate::ForPid(_) | Fate::Done(_) => None,
        };
        fates.iter().filter_map(in_hand).collect()
    }
}

fn launch(actor: &Actor, process: ProcessId, code: Version, takes_over: Option<(State, Version)>) -> Launch {
    Launch {
        process,
        actor: actor.id,
        label: actor.label.clone(),
        named: actor.spec.name.is_some(),
        // Of a further process of the same incarnation, which is counted already.
        restarts: actor.starts - u32::from(process.generation != Generation(0)),
        spec: actor.spec.clone(),
        code,
        takes_over,
        is_suspended: false,
        log_level: actor.log_level,
    }
}

/// The last lines, as many as are kept.
fn last_of(lines: Vec<String>) -> Vec<String> {
    let mut left = MOST_OUTPUT;
    let fits = |line: &String| {
        let is_first = left == MOST_OUTPUT;
        let fits = line.len() <= left;
        left = left.saturating_sub(line.len());
        fits || is_first
    };
    let mut kept: Vec<String> = lines.into_iter().rev().take_while(fits).collect();
    kept.reverse();
    kept
}

/// The deaths by one message, beyond the first, are its fault and not the actor's.
fn is_poisoned(fates: &[Fate]) -> bool {
    fates.iter().any(|fate| matches!(fate, Fate::InHand { message, .. } if !message.deaths.is_empty()))
}

/// The message whose handler has raised, if one is why it ends.
fn failed(incarnation: &Incarnation, has_reported: bool, fates: &[Fate]) -> Option<Seq> {
    if !has_reported {
        return None;
    }
    let mut in_hand = fates.iter().filter_map(|fate| match fate {
        Fate::InHand { seq, .. } => Some(*seq),
        Fate::ForPid(_) | Fate::Done(_) => None,
    });
    // A function does not say so, and has one message at most.
    let only = in_hand.next().filter(|_| incarnation.is_function && in_hand.next().is_none());
    incarnation.failed.or(only)
}

/// Who ended it, where a signal did.
fn killer(machine: &incarnation::Machine, death: &Death) -> Killer {
    match (death.status, machine.killed_because(death.status)) {
        (_, Some(why)) => Killer::Rebeam(why.to_owned()),
        (Status::Exited(_), _) => Killer::Nobody,
        // There never was a process.
        (Status::Signalled(_), _) if death.os_pid == 0 => Killer::Nobody,
        (Status::Signalled(_), _) if death.out_of_memory => Killer::OutOfMemory,
        (Status::Signalled(_), _) => Killer::Unknown,
    }
}
