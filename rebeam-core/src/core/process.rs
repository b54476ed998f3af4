//! What incarnations do to each other: links, monitors, exit signals, stops, alarms.
//!
//! The rules are those of Erlang's processes. A notice travels as mail to the receiver's pid, in turn with other mail
//! (rule 4 of the design); an exit signal that is not trapped does not wait.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rebeam_protocol::address::Address;
use rebeam_protocol::certificate::Certificate;
use rebeam_protocol::exit::ExitReason;
use rebeam_protocol::id::{ActorId, Pid};
use rebeam_protocol::message::{Form, Head, Signal};
use rebeam_protocol::process::{ChildError, ProcessAnswer, ProcessRequest};
use rebeam_protocol::spec::Overflow;
use rebeam_protocol::table::{TableAnswer, TableError};

use super::Core;
use crate::actor::Life;
use crate::alarms::Alarm;
use crate::incarnation::{Manner, Stop};
use crate::mailbox::{Mailbox, Message, Sender};
use crate::requests::Requester;
use crate::resolve::Resolved;
use crate::timers::AlarmId;
use crate::timers::Due;

/// The method that gets what is neither a call nor a cast.
const HANDLE_INFO: &str = "handle_info";

/// Why an actor was killed, in words.
pub(super) const ACTOR_ASKED: &str = "an actor asked for it";

impl Core {
    /// Answers a request of an actor about others; `None` if the answer comes later.
    pub(super) fn process_request(
        &mut self,
        from: Requester,
        request: ProcessRequest,
        payload: Bytes,
    ) -> Option<ProcessAnswer> {
        let Requester::Worker(process, _) = from else { return Some(ProcessAnswer::NoProc) };
        let own = self.members.serving(process)?.id;
        let pid = process.pid;
        Some(match request {
            ProcessRequest::Resolve(to) => ProcessAnswer::Pid(self.pid_of(&to)),
            ProcessRequest::Link(other) => self.link(pid, other),
            ProcessRequest::Unlink(other) => {
                self.links.unlink(pid, other);
                ProcessAnswer::Ok
            }
            ProcessRequest::TrapExits(traps) => {
                if let Some(incarnation) = self.members.incarnation_mut(own) {
                    incarnation.traps_exits = traps;
                }
                ProcessAnswer::Ok
            }
            ProcessRequest::Monitor(to) => {
                let watched = self.pid_of(&to);
                let monitor = match watched {
                    Some(watched) => self.links.monitor(pid, watched),
                    None => self.links.next_monitor(),
                };
                self.note_made(pid, |made| made.monitors.push(monitor));
                if watched.is_none() {
                    let gone = if let Address::Pid(gone) = to { Some(gone) } else { None };
                    let certificate = None;
                    self.send_signal(pid, Signal::Down { monitor, pid: gone, reason: ExitReason::NoProc, certificate });
                }
                ProcessAnswer::Monitor(monitor)
            }
            ProcessRequest::Demonitor { monitor, flush } => {
                self.links.demonitor(pid, monitor);
                if flush && let Some(actor) = self.members.actor_mut(own) {
                    actor.mailbox.take_back(monitor);
                }
                ProcessAnswer::Ok
            }
            ProcessRequest::Exit { to, reason } => {
                // As Erlang's `exit/2`: whether there was anybody is not told.
                if let Some(to) = self.pid_of(&to) {
                    self.exit_signal(to, pid, &reason.bounded());
                }
                ProcessAnswer::Ok
            }
            ProcessRequest::Kill { to, is_hung } => {
                if let Some(id) = self.pid_of(&to).and_then(|pid| self.members.living(pid)) {
                    match self.members.actor(id).and_then(|actor| actor.process()).filter(|_| is_hung) {
                        Some(process) => drop(self.kill_after_stacks(process, Due::TakesTooLong(process))),
                        None => self.kill_member(id),
                    }
                }
                ProcessAnswer::Ok
            }
            ProcessRequest::Stop { to, reason } => {
                let Some(target) = self.pid_of(&to) else { return Some(ProcessAnswer::NoProc) };
                if self.members.living(target).is_some_and(|id| self.members.is_below(own, id)) {
                    return Some(ProcessAnswer::Child(ChildError::WaitingForYou));
                }
                self.stop_by_request(from, target, reason.bounded());
                return None;
            }
            ProcessRequest::StopIfIdle { reason } => {
                let is_idle = |mailbox: &Mailbox| mailbox.len() == 0 && mailbox.handed().next().is_none();
                if !self.members.actor(own).is_some_and(|actor| is_idle(&actor.mailbox)) {
                    return Some(ProcessAnswer::MailWaits);
                }
                if let Requester::Worker(process, _) = from {
                    let stop = Stop { reason: reason.bounded(), manner: Manner::InTurn, is_limited: false };
                    self.order(process, |machine| machine.stop(stop));
                }
                ProcessAnswer::Ok
            }
            ProcessRequest::SendAfter { timer, to, after_ms, every_ms, method, is_method } => {
                let id = AlarmId { maker: pid, number: timer };
                let form = if is_method { Form::Arguments } else { Form::Message };
                let every = every_ms.map(|ms| Duration::from_millis(ms.max(1)));
                let own_pid = self.pid_of(&to).filter(|target| *target == pid);
                let (to, ends_with) = match (to, own_pid) {
                    // Whoever sets one on itself means this life, however it says that (TMR-003).
                    (_, Some(own)) => (Address::Pid(own), Some(own)),
                    (Address::Pid(target), None) => (Address::Pid(target), Some(target)),
                    (name, None) => (name, every.map(|_| pid)),
                };
                if ends_with.is_some_and(|life| self.members.living(life).is_none()) {
                    return Some(ProcessAnswer::Ok);
                }
                // A number that is used again means the later one.
                let earlier = self.alarms.remove(id).map(|alarm| alarm.key);
                self.timers.cancel(earlier);
                let key = self.timers.set(self.now + Duration::from_millis(after_ms), Due::Alarm(id));
                let sender = Sender::Process(process, own);
                self.alarms.insert(id, Alarm { key, to, ends_with, every, last: None, sender, method, form, payload });
                self.note_made(pid, |made| made.alarms.push(id));
                ProcessAnswer::Ok
            }
            ProcessRequest::CancelTimer { maker, timer } => {
                let number = AlarmId { maker, number: timer };
                let alarm = self.alarms.remove(number);
                let left = alarm.as_ref().map(|alarm| alarm.key.0.saturating_sub(self.now).as_millis() as u64);
                if let Some(alarm) = alarm {
                    self.timers.cancel(Some(alarm.key));
                    // New code that fails leaves it as it was.
                    let incarnation = self.members.incarnation_mut(own);
                    if let Some(before) = incarnation.and_then(|incarnation| incarnation.before.as_mut()) {
                        before.cancelled.push((number, alarm));
                    }
                }
                ProcessAnswer::TimeLeft(left)
            }
            ProcessRequest::Supervisor { supervisor, request, waits } => {
                return self.supervisor_request(from, own, &supervisor, request, waits);
            }
            ProcessRequest::Spawn { child, is_owned, is_linked, waits } => {
                let owner = is_owned.then_some(process.pid);
                return self.spawn(from, owner, child, is_linked, waits);
            }
            ProcessRequest::WaitFor { to, timeout_ms, waits } => return self.wait_for(from, to, timeout_ms, waits),
            ProcessRequest::Registry { registry, request } => {
                return self.registry_request(from, pid, registry, request, payload);
            }
            // The shell knows who keeps the rows.
            ProcessRequest::Table(_) => {
                let text = "there are no tables here".to_owned();
                ProcessAnswer::Table(TableAnswer::Failed(TableError::Unavailable(text)))
            }
            ProcessRequest::WatchDeadLetters(watches) => {
                if watches {
                    self.dead_letters.subscribe(pid);
                } else {
                    self.dead_letters.unsubscribe(pid);
                }
                ProcessAnswer::Ok
            }
            ProcessRequest::Whereis(name) => ProcessAnswer::Whereis(self.whereabouts(name)),
            ProcessRequest::StopNode => {
                // Who orders it is told before it is stopped itself.
                self.answer(from, ProcessAnswer::Ok);
                self.stop_node();
                return None;
            }
        })
    }

    fn link(&mut self, own: Pid, other: Pid) -> ProcessAnswer {
        if self.members.living(other).is_some() {
            if own != other {
                let is_new = self.links.link(own, other);
                let incarnation = self.members.living(own).and_then(|id| self.members.incarnation_mut(id));
                if let Some(before) = incarnation.filter(|_| is_new).and_then(|incarnation| incarnation.before.as_mut())
                {
                    before.linked.push(other);
                }
            }
            return ProcessAnswer::Ok;
        }
        // To who traps exits it is a message; to who does not, an error of the caller's (LNK-006).
        let own_incarnation = self.members.living_actor(own).and_then(|actor| actor.incarnation());
        if !own_incarnation.is_some_and(|incarnation| incarnation.traps_exits) {
            return ProcessAnswer::NoProc;
        }
        self.send_signal(own, Signal::Exit { pid: other, reason: ExitReason::NoProc });
        ProcessAnswer::Ok
    }

    /// Tells everybody who wanted to know that an incarnation has ended.
    pub(super) fn notify_end(&mut self, pid: Pid, reason: &ExitReason, certificate: Option<&Arc<Certificate>>) {
        for (requester, wanted) in self.waiters.take_for_end(pid) {
            let answer = match *reason == wanted {
                true => ProcessAnswer::Ok,
                false => ProcessAnswer::EndedWith(reason.clone()),
            };
            self.answer(requester, answer);
        }
        self.stop_what_it_owns(pid);
        let notices = self.links.end(pid);
        for other in notices.linked {
            self.exit_signal(other, pid, reason);
        }
        for (monitor, watcher) in notices.monitors {
            let (pid, reason, certificate) = (Some(pid), reason.clone(), certificate.cloned());
            self.send_signal(watcher, Signal::Down { monitor, pid, reason, certificate });
        }
    }

    pub(super) fn send_signal(&mut self, to: Pid, signal: Signal) {
        self.post(to, Sender::Node, HANDLE_INFO, Form::Signal(Box::new(signal)), Bytes::new());
    }

    /// Puts a message that nobody answers into the mailbox of an incarnation.
    fn post(&mut self, to: Pid, sender: Sender, method: &str, form: Form, payload: Bytes) {
        let Some(id) = self.members.living(to) else { return };
        let Some(actor) = self.members.actor_mut(id) else { return };
        let head = Head { form, ..Head::new(method) };
        actor.mailbox.push(Message { for_pid: true, ..Message::new(sender, head, payload, self.now) });
        self.pump(id);
    }

    /// An exit signal: a message to who traps exits, nothing if it is `normal`, else the end (LNK-001 to LNK-003).
    ///
    /// The parent of what was spawned is the actor that had it spawned (LNK-007); all others have the supervisor that holds
    /// them.
    pub(super) fn exit_signal(&mut self, to: Pid, from: Pid, reason: &ExitReason) {
        if let Some(id) = self.members.living(to)
            && self.members.owner(id) == Some(from)
        {
            return self.exit_signal_from_parent(id, reason.clone());
        }
        // Supervisors trap exits, and take no orders but their parent's.
        let Some(incarnation) = self.members.living_actor(to).and_then(|actor| actor.incarnation()) else { return };
        if incarnation.traps_exits {
            self.send_signal(to, Signal::Exit { pid: from, reason: reason.clone() });
        } else if *reason != ExitReason::Normal || to == from {
            let process = incarnation.process();
            self.order_exit(process, reason.clone());
        }
    }

    /// An exit signal from the parent: who traps exits, as supervisors do, ends with it, and an actor runs `terminate`
    /// first (LNK-007, SUP-058). `kill` cannot be trapped (LNK-004).
    pub(super) fn exit_signal_from_parent(&mut self, id: ActorId, reason: ExitReason) {
        if reason == ExitReason::Other("kill".into()) {
            return self.kill_member(id);
        }
        if self.members.is_supervisor(id) {
            return self.stop_supervisor(id, reason);
        }
        let Some(incarnation) = self.members.incarnation_mut(id) else { return };
        let process = incarnation.process();
        if incarnation.traps_exits {
            self.order(process, |machine| machine.stop(Stop { reason, manner: Manner::Urgent, is_limited: false }));
        } else if reason != ExitReason::Normal {
            self.order_exit(process, reason);
        }
    }

    /// A kill that nobody can trap; of a supervisor, with everything below it (LNK-004, SUP-088).
    fn kill_member(&mut self, id: ActorId) {
        if let Some(incarnation) = self.members.incarnation_mut(id) {
            let process = incarnation.process();
            self.kill_for(process, ExitReason::Killed, ACTOR_ASKED);
        } else if self.members.is_supervisor(id) {
            self.kill_below(id);
            self.stop_supervisor(id, ExitReason::Killed);
        }
    }

    fn stop_by_request(&mut self, from: Requester, target: Pid, reason: ExitReason) {
        let Some(id) = self.members.living(target) else { return };
        self.waiters.wait_for_end(target, from, reason.clone());
        if self.members.is_supervisor(id) {
            return self.stop_supervisor(id, reason);
        }
        let Some(process) = self.members.actor(id).and_then(|actor| actor.process()) else { return };
        let is_suspended = self.members.incarnation_mut(id).is_some_and(|incarnation| incarnation.is_suspended);
        let manner = if is_suspended { Manner::Urgent } else { Manner::InTurn };
        self.order(process, |machine| machine.stop(Stop { reason, manner, is_limited: false }));
    }

    /// An alarm is due.
    pub(super) fn ring(&mut self, alarm_id: AlarmId, at: Duration) {
        let Some(alarm) = self.alarms.get_mut(alarm_id) else { return };
        let to = alarm.to.clone();
        let head = Head { form: alarm.form.clone(), ..Head::new(alarm.method.clone()) };
        let message = Message::new(alarm.sender, head, alarm.payload.clone(), self.now);
        let is_repeated = alarm.every.is_some();
        let last = alarm.last.replace(self.now);
        match alarm.every {
            // Ticks that were missed, because the node was stopped for a while or has too much to do, are left out.
            Some(every) => {
                let missed = self.now.saturating_sub(at).as_nanos() / every.as_nanos().max(1);
                let missed = u32::try_from(missed).unwrap_or(u32::MAX - 1);
                alarm.key = self.timers.set((at + every * (missed + 1)).max(self.now), Due::Alarm(alarm_id));
                self.alarms.skip(missed.into());
            }
            None => drop(self.alarms.remove(alarm_id)),
        }
        if let Address::Group(group) = &to {
            return self.sent_to_group(group, &Message { for_pid: true, ..message }, is_repeated);
        }
        let found = match self.resolve(&to) {
            Resolved::Local { id, for_pid } => Some((id, for_pid)),
            _ => None,
        };
        let is_there =
            |(id, _): &(ActorId, bool)| self.members.actor(*id).is_some_and(|actor| !matches!(actor.life, Life::Gone));
        let Some((id, for_pid)) = found.filter(is_there) else {
            // Nobody misses a tick.
            return if is_repeated { self.alarms.skip(1) } else { self.sent_to_nobody(message, to) };
        };
        let Some(actor) = self.members.actor_mut(id) else { return };
        // A clock that ticks faster than it is heard is not to fill the mailbox.
        if is_repeated && (actor.mailbox.is_full() || last.is_some_and(|at| actor.mailbox.waits(alarm_id, at))) {
            // The one that waits counts on.
            if let Some(alarm) = self.alarms.get_mut(alarm_id) {
                alarm.last = last;
            }
            return self.alarms.skip(1);
        }
        if actor.mailbox.is_full() {
            // Nobody waits for room here. What an actor tells itself is put in: its timers are bounded.
            let is_own = actor.process().is_some_and(|process| process.pid == alarm_id.maker);
            if !is_own && actor.mailbox.overflow() != Overflow::DropOldest {
                return self.overflown(id, message);
            }
        }
        actor.mailbox.push(Message { for_pid, tick_of: is_repeated.then(|| Box::new(alarm_id)), ..message });
        self.drop_surplus(id);
        self.pump(id);
    }
}
