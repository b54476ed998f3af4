//! Mail: where it goes, when it is handed over, and what becomes of it when nobody will handle it.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rebeam_protocol::address::{Address, Caller, ReplyTo};
use rebeam_protocol::certificate::Certificate;
use rebeam_protocol::exit::ExitReason;
use rebeam_protocol::id::{ActorId, ProcessId, Seq};
use rebeam_protocol::message::{CallFailure, Callee, Cause, Form, Head, Kind, Lane, Outcome, Signal, Waits};
use rebeam_protocol::outside::{Answer, DeadLetters};
use rebeam_protocol::page::Snapshot;
use rebeam_protocol::spec::Overflow;
use rebeam_protocol::state::MemberState;
use rebeam_protocol::worker::{Delivery, Done, Envelope, Full, Gate, Reply};

use super::Core;
use super::bounds::MOST_OF_EACH;
use crate::actor::{Actor, Life};
use crate::dead_letters::End;
use crate::event::{Action, Recipient, Ticket};
use crate::incarnation::{LastAnswer, Machine, RESUME, SUSPEND};
use crate::mailbox::{Message, Sender};
use crate::resolve::Resolved;
use crate::router::{On, Open};
use crate::tracing::error_of;

impl Core {
    pub(super) fn sent(
        &mut self,
        sender: Sender,
        caller: Caller,
        envelope: Envelope,
        payload: Bytes,
        buffers: Option<Ticket>,
    ) {
        let Envelope { to, kind, head, .. } = envelope;
        let (reply_to, waits) = match kind {
            Kind::Call { call, waits } => (Some(ReplyTo { caller, call }), waits),
            Kind::Cast | Kind::Info => (None, Waits::Nobody),
        };
        if let (Form::Signal(_), Sender::Process(process, _)) = (&head.form, sender) {
            let complaint = "it sent what only the supervisor says".to_owned();
            return self.kill_for(process, ExitReason::BadProtocol(complaint), "it broke the protocol");
        }
        let mut traced = self.tracer.trace(head.trace.as_deref().copied());
        let traced_call = traced.as_mut().filter(|_| reply_to.is_some());
        let traced_call = traced_call.and_then(|traced| self.tracer.call(traced, &head.method, self.now));
        let message = Message { reply_to, buffers, traced, ..Message::new(sender, head, payload, self.now) };
        if let Address::Group(group) = &to
            && reply_to.is_none()
        {
            return self.sent_to_group(group, &Message { for_pid: true, ..message }, false);
        }
        let (id, for_pid) = match self.resolve(&to) {
            Resolved::Local { id, for_pid } => (id, for_pid),
            Resolved::Nobody => return self.sent_to_nobody(message, to),
        };
        let Some(actor) = self.members.actor_mut(id).filter(|actor| !matches!(actor.life, Life::Gone)) else {
            return self.sent_to_nobody(message, to);
        };
        let message = Message { for_pid, ..message };
        if let Some(call) = reply_to {
            if let Some(failure) = refusal(actor, call, message.head.lane) {
                return self.reply_failure(call, failure);
            }
            if !self.router.open(call, On::Answer(id), waits, message.deadline) {
                // Two calls with one number: the worker's bookkeeping is broken, and an answer could reach the wrong one.
                if let Sender::Process(process, _) = sender {
                    let complaint = format!("call {} was made twice", call.call.0);
                    self.kill_for(process, ExitReason::BadProtocol(complaint), "it broke the protocol");
                }
                return;
            }
            if let Sender::Process(process, _) = sender
                && self.router.count(call.caller) > MOST_OF_EACH
                && !self.may_hold_more(process)
            {
                return;
            }
            if let Some(traced) = traced_call {
                self.router.trace(call, traced);
            }
        }
        if message.head.lane == Lane::System {
            return self.send_to_process(id, &message);
        }
        if waits != Waits::Nobody
            && let Some(call) = reply_to
            && let Some(cycle) = self.deadlock(call, &message.head.method)
        {
            return self.fail_call(call, CallFailure::Deadlock { cycle });
        }
        self.deliver(id, message, &to);
    }

    /// Puts a message into a mailbox, by its policy. `to` is the address by which its sender knows that.
    pub(super) fn deliver(&mut self, id: ActorId, message: Message, to: &Address) {
        let Some(actor) = self.members.actor_mut(id) else { return };
        let sender = message.sender;
        let overflow = actor.mailbox.overflow();
        if overflow == Overflow::DropNew && actor.mailbox.is_full() {
            return self.overflown(id, message);
        }
        actor.mailbox.push(message);
        self.drop_surplus(id);
        self.pump(id);
        let full = match overflow {
            Overflow::Block => Full::Wait,
            Overflow::Fail => Full::Fail,
            Overflow::DropOldest | Overflow::DropNew => return,
        };
        if let Sender::Process(process, _) = sender {
            self.shut_gate(process, id, to, full);
        }
    }

    /// Drops what a mailbox has too much, if it is one that drops the oldest.
    pub(super) fn drop_surplus(&mut self, id: ActorId) {
        let drops = |actor: &&mut Actor| actor.mailbox.overflow() == Overflow::DropOldest;
        while let Some(oldest) = self.members.actor_mut(id).filter(drops).and_then(|actor| actor.mailbox.take_surplus())
        {
            self.overflown(id, oldest);
        }
    }

    /// Tells a sender if the mailbox it has sent to is full now.
    fn shut_gate(&mut self, process: ProcessId, id: ActorId, to: &Address, full: Full) {
        // Of a group nobody waits for the slowest.
        let is_full = |actor: &Actor| actor.mailbox.is_full();
        if matches!(to, Address::Group(_)) || !self.members.actor(id).is_some_and(is_full) {
            return;
        }
        let copies = if let Address::Partition { name, .. } = to { self.copies(name) } else { None };
        let to = to.canonical(|_| copies);
        let times = self.members.actor_mut(id).map_or(0, |actor| actor.mailbox.count_sent_though_full(process, &to));
        self.sent_though_full(process, times);
        if self.members.actor_mut(id).is_some_and(|actor| actor.mailbox.shut_out(process, &to)) {
            let gate = Gate::Shut { actor: id, to, copies, full };
            self.actions.push_back(Action::Gate { process, gate });
        }
    }

    /// Lets senders go on who waited for room, if there is some.
    pub(super) fn let_in(&mut self, id: ActorId) {
        let senders = self.members.actor_mut(id).map(|actor| actor.mailbox.let_in()).unwrap_or_default();
        for process in senders {
            self.router.close_rooms(process.pid, id);
            self.actions.push_back(Action::Gate { process, gate: Gate::Open { actor: id } });
        }
    }

    pub(super) fn overflown(&mut self, id: ActorId, message: Message) {
        let Some(actor) = self.members.actor(id) else { return };
        match message.reply_to {
            Some(call) => {
                let failure = mailbox_full(actor);
                self.fail_call(call, failure);
            }
            None => {
                let end = End::of(actor, Cause::Overflow);
                self.lay_out(message, end);
            }
        }
    }

    pub(super) fn sent_to_nobody(&mut self, message: Message, to: Address) {
        if let Some(call) = message.reply_to {
            let is_supervisor = self.member(&to).is_some_and(|id| self.members.is_supervisor(id));
            let failure = match is_supervisor {
                true => CallFailure::BadCall("a supervisor has neither methods nor state: see SupervisorRef".into()),
                false => self.is_no_address(&to).unwrap_or_else(|| self.no_proc(&to)),
            };
            return self.reply_failure(call, failure);
        }
        let label = to.to_string();
        self.lay_out(message, End { to, label, cause: Cause::Nobody, certificates: Vec::new() });
    }

    /// Somebody waits from now on for a call that nobody waited for.
    pub(super) fn awaited(&mut self, call: ReplyTo, waits: Waits) {
        let Some(On::Answer(callee)) = self.router.get(call).map(|open| open.on.clone()) else { return };
        self.router.wait(call, waits);
        let message = self.members.actor(callee).and_then(|actor| actor.mailbox.find_call(call));
        let method = message.map(|message| message.head.method.clone()).unwrap_or_default();
        if let Some(cycle) = self.deadlock(call, &method) {
            self.take_back_call(call, callee);
            self.fail_call(call, CallFailure::Deadlock { cycle });
        }
    }

    /// A sender waits for room; it is told so by its gate, and here only if it would wait forever.
    pub(super) fn awaits_room(&mut self, process: ProcessId, call: ReplyTo, to: &Address, method: &str, waits: Waits) {
        let Some(actor) = self.member(to).and_then(|id| self.members.actor(id)) else { return };
        let id = actor.id;
        let is_shut = actor.mailbox.is_shut_out(process);
        if self.router.count(call.caller) > MOST_OF_EACH && !self.may_hold_more(process) {
            return;
        }
        if !is_shut || !self.router.open(call, On::Room(id, method.into()), waits, None) {
            return;
        }
        if let Some(cycle) = self.deadlock(call, method) {
            self.fail_call(call, CallFailure::Deadlock { cycle });
        }
    }

    /// The caller does not want the answer any more.
    pub(super) fn cancelled(&mut self, call: ReplyTo) {
        match self.router.close(call).map(|open| open.on) {
            Some(On::Answer(callee)) => self.take_back_call(call, callee),
            Some(On::Up(_)) => {
                let timer = self.waiters.take_wait(call).and_then(|waiting| waiting.timer);
                self.timers.cancel(timer);
            }
            Some(On::Room(..) | On::Supervisor(_)) | None => {}
        }
    }

    /// Tells the callee, if it has the call already; else it is never handed over.
    fn take_back_call(&mut self, call: ReplyTo, callee: ActorId) {
        let Some(actor) = self.members.actor_mut(callee) else { return };
        let handed = actor.mailbox.handed_call(call);
        let Some(incarnation) = actor.incarnation_mut() else { return };
        match handed {
            Some(seq) => {
                let process = incarnation.process();
                self.actions.push_back(Action::Cancel { process, seq, even_if_begun: true });
            }
            None => incarnation.unwanted(call),
        }
    }

    /// Nobody waits for the answers to these calls any more.
    pub(super) fn forget_caller(&mut self, caller: Caller) {
        for (call, callee) in self.router.forget_caller(caller) {
            self.take_back_call(call, callee);
        }
    }

    /// The actor behind an address, if mail to it can still arrive.
    fn receiver(&self, to: &Address) -> Option<ActorId> {
        let actor = self.members.actor(self.member(to)?)?;
        (!matches!(actor.life, Life::Gone)).then_some(actor.id)
    }

    /// What is asked of an actor's process goes past its mailbox, and is owed from the moment it is asked. If the actor
    /// is between two processes, the next one is asked.
    fn send_to_process(&mut self, id: ActorId, message: &Message) {
        let Some(call) = message.reply_to else { return };
        let Some(actor) = self.members.actor_mut(id) else { return };
        let target = actor.label.clone();
        let Some(incarnation) =
            actor.incarnation_mut().filter(|it| !it.machine.is_starting() || it.machine.is_between_processes())
        else {
            return self.fail_call(call, CallFailure::NoProc { target, similar: Vec::new(), is_down: true });
        };
        incarnation.ask(message.clone());
        if !incarnation.machine.is_between_processes() {
            let process = incarnation.process();
            self.hand_to_process(process, message);
        }
    }

    /// Asks a process something.
    pub(super) fn hand_to_process(&mut self, process: ProcessId, message: &Message) {
        let does_anyway = matches!(message.head.method.as_str(), SUSPEND | RESUME);
        if !does_anyway && message.reply_to.is_none_or(|call| !self.router.is_open(call)) {
            return;
        }
        let sender = self.sender_label(message.sender);
        let delivery = delivery(message, sender, None);
        let (payload, buffers) = (message.payload.clone(), message.buffers.clone());
        self.actions.push_back(Action::Deliver { process, delivery, payload, buffers });
    }

    /// Hands over what the window has room for; a stop that waits for its turn follows the last of it.
    pub(super) fn pump(&mut self, id: ActorId) {
        let now = self.now;
        let mut has_handed = false;
        loop {
            let Some(actor) = self.members.actor_mut(id) else { return };
            let Life::Alive(incarnation) = &mut actor.life else { return };
            if !incarnation.machine.takes_mail() {
                return;
            }
            let process = incarnation.process();
            let Some(mut message) = actor.mailbox.next() else {
                if actor.mailbox.is_drained() {
                    let commands = incarnation.machine.drained();
                    self.obey(id, commands);
                }
                break;
            };
            // Nobody waits for it any more: dropped before it costs anything.
            let is_abandoned = message.reply_to.is_some_and(|call| !self.router.is_open(call));
            if is_abandoned || message.deadline.is_some_and(|deadline| deadline < now) {
                actor.expired += 1;
                if let Some(call) = message.reply_to.filter(|_| !is_abandoned) {
                    let (target, waiting) = (actor.label.clone(), actor.mailbox.len() as u64);
                    let callee = Callee { target, state: MemberState::Running, busy: None, waiting };
                    self.fail_call(call, CallFailure::TimedOut(callee));
                }
                continue;
            }
            let deadline_ms = message.deadline.map(|deadline| (deadline - now).as_millis() as u64);
            message.deliveries += 1;
            let (payload, buffers) = (message.payload.clone(), message.buffers.clone());
            let sender = self.sender_label(message.sender);
            let mut delivery = delivery(&message, sender, deadline_ms);
            if let Some(actor) = self.members.actor_mut(id) {
                let is_first = actor.mailbox.handed().next().is_none();
                delivery.seq = actor.mailbox.hand_over(message);
                if let Some(incarnation) = actor.incarnation_mut().filter(|_| is_first) {
                    incarnation.got_on = now;
                }
            }
            has_handed = true;
            self.actions.push_back(Action::Deliver { process, delivery, payload, buffers });
        }
        if has_handed {
            self.watch(id);
        }
        self.let_in(id);
    }

    pub(super) fn replied(&mut self, process: ProcessId, reply: Reply, payload: Bytes, buffers: Option<Ticket>) {
        let Some(id) = self.members.serving(process).map(|actor| actor.id) else { return };
        if let Some(done) = reply.done
            && let Some(actor) = self.members.actor_mut(id)
        {
            if let Some(message) = actor.mailbox.settle(done.seq) {
                self.note_handled(process, id, &message, done.took_us, || error_of(&reply.outcome));
            }
            self.got_on(process);
            self.count_handled(id, 1);
        }
        // Whoever asked may have gone.
        self.note_suspended(id, reply.to, &reply.outcome);
        if reply.is_last {
            let answer = LastAnswer { to: reply.to, outcome: reply.outcome, payload, buffers };
            if self.router.is_open(reply.to)
                && let Some(incarnation) = self.members.incarnation_mut(id)
                && !incarnation.last_answers.iter().any(|other| other.to == reply.to)
            {
                incarnation.last_answers.push(answer);
            }
        } else if let Some(Open { on: On::Answer(callee), traced, .. }) = self.router.close(reply.to) {
            self.call_ended(reply.to, traced, || error_of(&reply.outcome));
            // Answered later than it was handled: it is not owed any more.
            if reply.done.is_none()
                && let Some(incarnation) = self.members.incarnation_mut(callee)
            {
                incarnation.answered(reply.to);
            }
            self.reply(reply.to, reply.outcome, payload, buffers);
        }
        self.pump(id);
    }

    /// Passes on the answer of an actor that has ended with it.
    pub(super) fn pass_on(&mut self, LastAnswer { to, outcome, payload, buffers }: LastAnswer) {
        if let Some(open) = self.router.close(to) {
            self.call_ended(to, open.traced, || error_of(&outcome));
            self.reply(to, outcome, payload, buffers);
        }
    }

    /// A process has done what it was asked; of interest is whether it takes mail now.
    fn note_suspended(&mut self, id: ActorId, call: ReplyTo, outcome: &Outcome) {
        let Some(incarnation) = self.members.incarnation_mut(id) else { return };
        let is_suspended = match incarnation.asked_method(call).filter(|_| matches!(outcome, Outcome::Returned(_))) {
            Some(SUSPEND) => true,
            Some(RESUME) => false,
            _ => return,
        };
        incarnation.answered(call);
        incarnation.is_suspended = is_suspended;
        let process = incarnation.process();
        let recycles = !is_suspended && std::mem::take(&mut incarnation.recycles_later);
        if is_suspended {
            self.order(process, Machine::suspended);
            return;
        }
        self.got_on(process);
        if recycles {
            self.recycle(process);
        }
    }

    /// A message was too large to be handed over: that is its own fault, and not its receiver's.
    pub(super) fn undeliverable(&mut self, process: ProcessId, seq: Seq, error: String) {
        let Some(actor) = self.members.serving_mut(process) else { return };
        let id = actor.id;
        let Some(message) = actor.mailbox.settle(seq) else { return };
        match message.reply_to {
            Some(call) => self.fail_call(call, CallFailure::BadCall(error)),
            None => {
                let Some(actor) = self.members.actor(id) else { return };
                let end = End::of(actor, Cause::TooLarge);
                self.lay_out(message, end);
            }
        }
        self.pump(id);
    }

    /// A message is done, after so many microseconds if a handler ran.
    fn note_handled(
        &mut self,
        process: ProcessId,
        id: ActorId,
        message: &Message,
        took_us: Option<u32>,
        error: impl FnOnce() -> Option<String>,
    ) {
        let Some(actor) = self.members.actor(id) else { return };
        self.meters.handled(&actor.spec.class, &message.head.method, took_us);
        if message.traced.is_some()
            && let Some(took_us) = took_us
        {
            self.handler_ended(process.pid, id, message, Duration::from_micros(took_us.into()), error);
        }
    }

    pub(super) fn acked(&mut self, process: ProcessId, done: &[Done]) {
        let Some(id) = self.members.serving(process).map(|actor| actor.id) else { return };
        for done in done {
            let Some(actor) = self.members.actor_mut(id) else { return };
            let Some(message) = actor.mailbox.settle(done.seq) else { continue };
            self.note_handled(process, id, &message, done.took_us, || None);
            let Some(actor) = self.members.actor_mut(id) else { return };
            // Dropped there, as it would have been here.
            let is_dropped = done.took_us.is_none() && message.reply_to.is_some_and(|call| !self.router.is_open(call));
            actor.expired += u64::from(is_dropped);
            // Done without an answer: it is owed, and fails with the incarnation that owes it.
            if let Some(call) = message.reply_to
                && self.router.is_open(call)
                && let Life::Alive(incarnation) = &mut actor.life
            {
                incarnation.owe(call);
                self.router.owe(call);
            }
        }
        self.got_on(process);
        self.count_handled(id, done.len() as u64);
        self.pump(id);
    }

    pub(super) fn abandoned(&mut self, call: ReplyTo, page: Option<(Snapshot, u64)>) {
        let Some(Open { on: On::Answer(callee), traced, .. }) = self.router.close(call) else { return };
        self.call_ended(call, traced, || Some("timed out".into()));
        let state = self.state_of(callee);
        let Some(actor) = self.members.actor_mut(callee) else { return };
        let handed = actor.mailbox.handed_call(call);
        if let Some(incarnation) = actor.incarnation_mut() {
            incarnation.unwanted(call);
            // What was handed over and not begun is dropped like what was not handed over; the rest is finished (GEN-005).
            if let Some(seq) = handed {
                let process = incarnation.process();
                self.actions.push_back(Action::Cancel { process, seq, even_if_begun: false });
            }
        }
        let busy = page.and_then(|(page, now_ns)| actor.busy_with(&page, now_ns));
        let waiting = actor.mailbox.handed().filter(|(_, message)| message.reply_to != Some(call)).count();
        let waiting = (actor.mailbox.len() + waiting).saturating_sub(usize::from(busy.is_some()));
        let callee = Callee { target: actor.label.clone(), state, busy, waiting: waiting as u64 };
        self.reply_failure(call, CallFailure::TimedOut(callee));
    }

    /// Nobody will come for the mail of this actor.
    pub(super) fn bury_mail(&mut self, id: ActorId) {
        let certificate = self.deaths.last_of(id).cloned();
        let Some(actor) = self.members.actor_mut(id) else { return };
        let messages = actor.mailbox.drain();
        // Who waited for room learns with the next send that nobody is there.
        self.let_in(id);
        for message in messages {
            match (&certificate, message.reply_to) {
                (Some(certificate), _) => self.bury(message, Cause::ReceiverGone, id, certificate),
                (None, Some(call)) => {
                    let failure = self.no_proc(&Address::Actor(id));
                    self.fail_call(call, failure);
                }
                (None, None) => {
                    let Some(actor) = self.members.actor(id) else { continue };
                    let end = End::of(actor, Cause::ReceiverGone);
                    self.lay_out(message, end);
                }
            }
        }
    }

    pub(super) fn bury(&mut self, message: Message, cause: Cause, of: ActorId, certificate: &Arc<Certificate>) {
        if let Some(call) = message.reply_to {
            let begun = !matches!(cause, Cause::ReceiverGone | Cause::NotKept | Cause::PidDead);
            return self.fail_call(call, CallFailure::Died { certificate: certificate.clone(), begun });
        }
        let certificates = match message.deaths.is_empty() {
            true => vec![certificate.clone()],
            false => message.deaths.clone(),
        };
        let to = match self.members.actor(of) {
            Some(_) if message.for_pid => Address::Pid(certificate.pid),
            Some(actor) => actor.address(),
            None => Address::Name(certificate.actor.clone()),
        };
        self.lay_out(message, End { to, label: certificate.actor.clone(), cause, certificates });
    }

    /// Keeps a message as a dead letter, and says so.
    pub(super) fn lay_out(&mut self, message: Message, end: End) {
        if message.head.is_pointless_alone() {
            return;
        }
        let sender = self.sender_label(message.sender);
        self.meters.dead_letter(end.cause);
        let letter = self.dead_letters.add(message, sender, end, self.now);
        for subscriber in self.dead_letters.subscribed() {
            if self.members.living_actor(subscriber).is_some_and(|actor| !actor.mailbox.is_full()) {
                self.send_signal(subscriber, Signal::DeadLetter(letter.clone()));
            }
        }
        self.actions.push_back(Action::DeadLetter(letter));
    }

    /// A request about dead letters. Their content may be a pickle, and does not leave the tree.
    pub(super) fn about_dead_letters(&mut self, request: DeadLetters) -> Answer {
        match request {
            DeadLetters::List => {
                let (letters, forgotten) = self.dead_letters.list();
                Answer::DeadLetters { letters, forgotten }
            }
            DeadLetters::Show(id) => match self.dead_letters.show(id) {
                Some(letter) => Answer::DeadLetters { letters: vec![letter], forgotten: 0 },
                None => Answer::Refused(format!("there is no dead letter {id}: see `rebeam dead list`")),
            },
            DeadLetters::Drop(which) => Answer::Count(self.dead_letters.take(&which, |_, _| true).len() as u64),
            DeadLetters::Replay(which) => {
                let there: HashSet<Address> =
                    self.dead_letters.addresses().filter(|to| self.receiver(to).is_some()).cloned().collect();
                let taken = self.dead_letters.take(&which, |to, is_kept| is_kept && there.contains(to));
                let count = taken.len();
                for (to, message) in taken {
                    let (Some(mut message), Some(id)) = (message, self.receiver(&to)) else { continue };
                    message.deliveries = 0;
                    message.deaths.clear();
                    message.deadline = None;
                    self.deliver(id, message, &to);
                }
                Answer::Count(count as u64)
            }
        }
    }

    pub(super) fn fail_call(&mut self, call: ReplyTo, failure: CallFailure) {
        if let Some(open) = self.router.close(call) {
            self.call_ended(call, open.traced, || Some(failure.word().to_owned()));
            self.reply_failure(call, failure);
        }
    }

    fn reply_failure(&mut self, call: ReplyTo, failure: CallFailure) {
        self.reply(call, Outcome::Failed(failure), Bytes::new(), None);
    }

    fn reply(&mut self, ReplyTo { caller, call }: ReplyTo, outcome: Outcome, payload: Bytes, buffers: Option<Ticket>) {
        let to = match caller {
            Caller::Outside(client) => Recipient::Outside(client),
            Caller::Actor(pid) => {
                let Some(process) = self.members.living_actor(pid).and_then(|actor| actor.process()) else { return };
                Recipient::Worker(process)
            }
        };
        self.actions.push_back(Action::Reply { to, call, outcome, payload, buffers });
    }

    fn no_proc(&self, to: &Address) -> CallFailure {
        let target = match to {
            Address::Actor(_) | Address::Partition { .. } => {
                self.member(to).and_then(|id| self.members.actor(id)).map(|actor| actor.label.clone())
            }
            Address::Name(_) | Address::Pid(_) | Address::Via { .. } | Address::Group(_) => None,
        };
        let target = target.unwrap_or_else(|| to.to_string());
        let is_down = self.member(to).is_some();
        // Names that look like it are looked for where the error is raised: a worker knows them, too.
        CallFailure::NoProc { similar: Vec::new(), target, is_down }
    }

    pub(super) fn sender_label(&self, sender: Sender) -> String {
        match sender {
            Sender::Outside => "outside".into(),
            Sender::Node => "rebeam".into(),
            Sender::Process(process, id) => {
                self.members.actor(id).map_or_else(|| process.pid.to_string(), |actor| actor.label.clone())
            }
        }
    }
}

/// Why a call is not even opened.
fn refusal(actor: &Actor, call: ReplyTo, lane: Lane) -> Option<CallFailure> {
    if lane == Lane::System {
        return None;
    }
    let is_between = match &actor.life {
        Life::Alive(incarnation) => incarnation.machine.is_starting() && actor.starts > 1,
        Life::Waiting => actor.starts > 0,
        Life::Gone => false,
    };
    if is_between && actor.spec.mailbox.fails_while_restarting {
        return Some(CallFailure::Restarting { target: actor.label.clone() });
    }
    // Who is outside cannot be made to wait.
    let is_refused = matches!(call.caller, Caller::Outside(_)) || actor.mailbox.overflow() == Overflow::Fail;
    (is_refused && actor.mailbox.is_full()).then(|| mailbox_full(actor))
}

fn mailbox_full(actor: &Actor) -> CallFailure {
    CallFailure::MailboxFull { target: actor.label.clone(), waiting: actor.mailbox.used() as u64 }
}

fn delivery(message: &Message, sender: String, deadline_ms: Option<u64>) -> Delivery {
    let trace = message.traced.as_ref().map(|traced| traced.context());
    Delivery {
        seq: Seq(0),
        reply_to: message.reply_to,
        head: Head { deadline_ms, trace: trace.map(Box::new), ..message.head.clone() },
        delivery: message.deliveries,
        sender,
        buffers: None,
    }
}
