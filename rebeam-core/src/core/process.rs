//! What incarnations do to each other: links, monitors, exit signals, stops, alarms.
//!
//! The rules are those of Erlang's processes. A notice travels as mail to the receiver's pid, in turn with other mail
//! (rule 4 of the design); an exit signal that is not trapped does not wait.

use std::time::Duration;

use bytes::Bytes;
use rebeam_protocol::certificate::Certificate;
use rebeam_protocol::control::Answer;
use rebeam_protocol::exit::ExitReason;
use rebeam_protocol::id::{ActorId, Pid, ProcessId};
use rebeam_protocol::message::{Address, Codec, Form, Lane, Signal};
use rebeam_protocol::process::{ChildError, ProcessAnswer, ProcessRequest};

use super::Core;
use crate::actor::Stage;
use crate::alarms::{Alarm, AlarmId};
use crate::event::{Action, Requester};
use crate::mailbox::{Message, Sender};
use crate::timers::Due;

/// How long an actor has to unwind after an exit signal that it does not trap, before it is killed (MAP-04).
const EXIT_GRACE: Duration = Duration::from_millis(500);

/// The method that gets what is neither a call nor a cast.
const HANDLE_INFO: &str = "handle_info";

impl Core {
    /// Answers a request of an actor about others; `None` if the answer comes later.
    pub(super) fn process_request(
        &mut self,
        from: Requester,
        request: ProcessRequest,
        payload: Bytes,
    ) -> Option<ProcessAnswer> {
        let Requester::Worker(process, _) = from else { return Some(ProcessAnswer::NoProc) };
        let own = self.serving_actor(process)?;
        let pid = process.pid;
        Some(match request {
            ProcessRequest::Resolve(to) => ProcessAnswer::Pid(self.pid_of(&to)),
            ProcessRequest::Link(other) => self.link(pid, other),
            ProcessRequest::Unlink(other) => {
                self.links.unlink(pid, other);
                ProcessAnswer::Ok
            }
            ProcessRequest::TrapExits(traps) => {
                if let Some(incarnation) = self.incarnation_mut(own) {
                    incarnation.traps_exits = traps;
                }
                ProcessAnswer::Ok
            }
            ProcessRequest::Monitor(to) => match self.pid_of(&to) {
                Some(watched) => ProcessAnswer::Monitor(self.links.monitor(pid, watched)),
                None => {
                    let monitor = self.links.next_monitor();
                    let gone = if let Address::Pid(gone) = to { Some(gone) } else { None };
                    self.send_down(pid, monitor, gone, ExitReason::NoProc, None);
                    ProcessAnswer::Monitor(monitor)
                }
            },
            ProcessRequest::Demonitor { monitor, flush } => {
                self.links.demonitor(pid, monitor);
                if flush && let Some(actor) = self.actors.get_mut(&own) {
                    actor.mailbox.take_back(monitor);
                }
                ProcessAnswer::Ok
            }
            ProcessRequest::Exit { to, reason } => {
                // As Erlang's `exit/2`: whether there was anybody is not told.
                if let Some(to) = self.pid_of(&to) {
                    self.exit_signal(to, pid, &reason);
                }
                ProcessAnswer::Ok
            }
            ProcessRequest::Kill(to) => {
                if let Some(id) = self.pid_of(&to).and_then(|pid| self.living.get(&pid).copied()) {
                    self.kill_member(id);
                }
                ProcessAnswer::Ok
            }
            ProcessRequest::Stop { to, reason } => {
                let Some(target) = self.pid_of(&to) else { return Some(ProcessAnswer::NoProc) };
                if self.living.get(&target).is_some_and(|id| self.is_below(own, *id)) {
                    return Some(ProcessAnswer::Child(ChildError::WaitingForYou));
                }
                self.stop_by_request(from, target, reason);
                return None;
            }
            ProcessRequest::SendAfter { timer, to, after_ms, every_ms, method, is_method } => {
                let form = if is_method { Form::Arguments } else { Form::Message };
                if let Some(to) = self.pid_of(&to) {
                    let id = AlarmId { maker: pid, number: timer };
                    let key = self.timers.set(self.now + Duration::from_millis(after_ms), Due::Alarm(id));
                    let every = every_ms.map(|ms| Duration::from_millis(ms.max(1)));
                    let sender = Sender::Process(process, own);
                    self.alarms.insert(id, Alarm { key, to, every, sender, method, form, payload });
                }
                ProcessAnswer::Ok
            }
            ProcessRequest::CancelTimer { maker, timer } => {
                let alarm = self.alarms.remove(AlarmId { maker, number: timer });
                ProcessAnswer::TimeLeft(alarm.map(|alarm| {
                    self.timers.cancel(Some(alarm.key));
                    alarm.key.0.saturating_sub(self.now).as_millis() as u64
                }))
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
            ProcessRequest::WatchDeadLetters(watches) => {
                if watches {
                    self.mourners.insert(pid);
                } else {
                    self.mourners.remove(&pid);
                }
                ProcessAnswer::Ok
            }
        })
    }

    fn link(&mut self, own: Pid, other: Pid) -> ProcessAnswer {
        if self.living.contains_key(&other) {
            if own != other {
                self.links.link(own, other);
            }
            return ProcessAnswer::Ok;
        }
        // To who traps exits it is a message; to who does not, an error of the caller's (LNK-006).
        let traps = |id: &ActorId| self.actors.get(id)?.incarnation().map(|incarnation| incarnation.traps_exits);
        if self.living.get(&own).and_then(traps) != Some(true) {
            return ProcessAnswer::NoProc;
        }
        self.send_signal(own, Signal::Exit { pid: other, reason: ExitReason::NoProc });
        ProcessAnswer::Ok
    }

    /// Tells everybody who wanted to know that an incarnation has ended.
    pub(super) fn notify_end(&mut self, pid: Pid, reason: &ExitReason, certificate: Option<&Certificate>) {
        for (requester, wanted) in self.stops.remove(&pid).unwrap_or_default() {
            let answer = match *reason == wanted {
                true => ProcessAnswer::Ok,
                false => ProcessAnswer::EndedWith(reason.clone()),
            };
            self.answer(requester, Answer::Process(answer));
        }
        self.stop_what_it_owns(pid);
        let notices = self.links.end(pid);
        for other in notices.linked {
            self.exit_signal(other, pid, reason);
        }
        for (monitor, watcher) in notices.monitors {
            self.send_down(watcher, monitor, Some(pid), reason.clone(), certificate.cloned().map(Box::new));
        }
    }

    fn send_down(
        &mut self,
        to: Pid,
        monitor: u64,
        pid: Option<Pid>,
        reason: ExitReason,
        certificate: Option<Box<Certificate>>,
    ) {
        self.send_signal(to, Signal::Down { monitor, pid, reason, certificate });
    }

    pub(super) fn send_signal(&mut self, to: Pid, signal: Signal) {
        self.post(to, Sender::Node, HANDLE_INFO, Form::Signal(Box::new(signal)), Bytes::new());
    }

    /// Puts a message that nobody answers into the mailbox of an incarnation.
    fn post(&mut self, to: Pid, sender: Sender, method: &str, form: Form, payload: Bytes) {
        let Some(&id) = self.living.get(&to) else { return };
        let Some(actor) = self.actors.get_mut(&id) else { return };
        actor.mailbox.push(Message {
            sender,
            for_pid: true,
            reply_to: None,
            at: self.now,
            form,
            codec: Codec::Pickle,
            lane: Lane::Normal,
            deliveries: 0,
            deadline: None,
            method: method.into(),
            payload,
            buffers: None,
            traced: None,
            deaths: Vec::new(),
        });
        self.pump(id);
    }

    /// An exit signal: a message to who traps exits, nothing if it is `normal`, else the end (LNK-001 to LNK-003).
    pub(super) fn exit_signal(&mut self, to: Pid, from: Pid, reason: &ExitReason) {
        let Some(&id) = self.living.get(&to) else { return };
        // Supervisors trap exits, and take no orders but their parent's.
        let Some(incarnation) = self.incarnation_mut(id) else { return };
        if incarnation.traps_exits {
            self.send_signal(to, Signal::Exit { pid: from, reason: reason.clone() });
        } else if *reason != ExitReason::Normal || to == from {
            let process = incarnation.process;
            self.order_exit(process, reason.clone());
        }
    }

    /// An exit signal from the parent: who traps exits runs `terminate` and ends with it (LNK-007).
    pub(super) fn exit_signal_from_parent(&mut self, id: ActorId, reason: ExitReason) {
        let Some(incarnation) = self.incarnation_mut(id) else { return };
        let process = incarnation.process;
        if incarnation.traps_exits {
            incarnation.stage = Stage::Stopping { asked: true };
            self.actions.push_back(Action::Stop { process, reason, urgent: true });
        } else if reason != ExitReason::Normal {
            self.order_exit(process, reason);
        }
    }

    /// Has a process unwind and end without `terminate`; it is killed if it does not.
    pub(super) fn order_exit(&mut self, process: ProcessId, reason: ExitReason) {
        let Some(incarnation) = self.serving(process) else { return };
        if incarnation.exit.is_some() {
            return;
        }
        incarnation.exit = Some(reason);
        self.timers.set(self.now + EXIT_GRACE, Due::Unwound(process));
        self.actions.push_back(Action::Exit(process));
    }

    pub(super) fn unwound(&mut self, process: ProcessId) {
        if let Some(reason) = self.serving(process).and_then(|incarnation| incarnation.exit.clone()) {
            self.kill_for(process, reason, "it did not unwind in time after an exit signal");
        }
    }

    /// A kill that nobody can trap; of a supervisor, with everything below it (LNK-004, SUP-088).
    fn kill_member(&mut self, id: ActorId) {
        if let Some(incarnation) = self.incarnation_mut(id) {
            let process = incarnation.process;
            self.kill_for(process, ExitReason::Killed, "an actor asked for it");
        } else if self.supervisors.contains_key(&id) {
            self.kill_below(id);
            self.stop_supervisor(id, ExitReason::Killed);
        }
    }

    fn stop_by_request(&mut self, from: Requester, target: Pid, reason: ExitReason) {
        let Some(&id) = self.living.get(&target) else { return };
        self.stops.entry(target).or_default().push((from, reason.clone()));
        if self.supervisors.contains_key(&id) {
            return self.stop_supervisor(id, reason);
        }
        let Some(incarnation) = self.incarnation_mut(id) else { return };
        match incarnation.stage {
            Stage::Running | Stage::Recycling => {
                incarnation.stage = Stage::Stopping { asked: false };
                incarnation.stop_reason = reason;
                self.stop_in_turn(id);
            }
            Stage::Starting => {
                incarnation.stage = Stage::Stopping { asked: true };
                let process = incarnation.process;
                self.actions.push_back(Action::Stop { process, reason, urgent: true });
            }
            Stage::Stopping { .. } => {}
        }
    }

    /// An alarm is due.
    pub(super) fn ring(&mut self, id: AlarmId, at: Duration) {
        let Some(alarm) = self.alarms.get_mut(id) else { return };
        let (to, sender, method, form, payload) =
            (alarm.to, alarm.sender, alarm.method.clone(), alarm.form.clone(), alarm.payload.clone());
        match alarm.every {
            Some(every) => alarm.key = self.timers.set(at + every, Due::Alarm(id)),
            None => drop(self.alarms.remove(id)),
        }
        let is_full = self.living.get(&to).and_then(|id| self.actors.get(id)).is_some_and(|it| it.mailbox.is_full());
        // A clock that ticks faster than it is heard is not to fill the mailbox.
        if !is_full {
            self.post(to, sender, &method, form, payload);
        }
    }
}
