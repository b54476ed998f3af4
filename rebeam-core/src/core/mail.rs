//! Mail: where it goes, when it is handed over, and what becomes of it when nobody will handle it.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rebeam_protocol::certificate::Certificate;
use rebeam_protocol::control::{Answer, DeadLetters, address_label};
use rebeam_protocol::exit::ExitReason;
use rebeam_protocol::id::{ActorId, ProcessId, Seq};
use rebeam_protocol::message::{
    Address, CallFailure, Callee, Caller, Cause, Delivery, Done, Envelope, Form, Gate, Kind, Lane, Outcome, Reply,
    ReplyTo, Signal, Waits,
};
use rebeam_protocol::page::{Snapshot, Stage as MarkStage};
use rebeam_protocol::spec::Overflow;

use super::Core;
use crate::actor::{Actor, Life, Stage};
use crate::dead_letters::End;
use crate::event::{Action, Recipient, Ticket};
use crate::mailbox::{Message, Sender};
use crate::router::{On, Open, Router};
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
        let (reply_to, waits) = match envelope.kind {
            Kind::Call { call, waits } => (Some(ReplyTo { caller, call }), waits),
            Kind::Cast | Kind::Info => (None, Waits::Nobody),
        };
        if let (Form::Signal(_), Sender::Process(process, _)) = (&envelope.form, sender) {
            let complaint = "it sent what only the supervisor says".to_owned();
            return self.kill_for(process, ExitReason::BadProtocol(complaint), "it broke the protocol");
        }
        let to = envelope.to;
        let mut traced = self.tracer.trace(envelope.trace);
        let traced_call = traced.as_mut().filter(|_| reply_to.is_some());
        let traced_call = traced_call.and_then(|traced| self.tracer.call(traced, &envelope.method, self.now));
        let deadline = envelope.deadline_ms.map(|left| self.now + Duration::from_millis(left));
        let message = Message {
            sender,
            for_pid: self.is_for_pid(&to),
            reply_to,
            at: self.now,
            form: envelope.form,
            codec: envelope.codec,
            lane: envelope.lane,
            deliveries: 0,
            deadline,
            method: envelope.method.into_boxed_str(),
            payload,
            buffers,
            traced,
            deaths: Vec::new(),
        };
        if let Address::Group(group) = &to
            && message.reply_to.is_none()
        {
            return self.sent_to_group(group, &message);
        }
        let Some(id) = self.receiver(&to) else { return self.sent_to_nobody(message, to) };
        let Some(actor) = self.actors.get_mut(&id) else { return };
        if let Some(call) = reply_to {
            if let Some(failure) = refusal(actor, call, message.lane) {
                return self.reply_failure(call, failure);
            }
            if !self.router.open(call, On::Answer(id), waits, deadline) {
                // Two calls with one number: the worker's bookkeeping is broken, and an answer could reach the wrong one.
                if let Sender::Process(process, _) = sender {
                    let complaint = format!("call {} was made twice", call.call.0);
                    self.kill_for(process, ExitReason::BadProtocol(complaint), "it broke the protocol");
                }
                return;
            }
            if let Some(traced) = traced_call {
                self.router.trace(call, traced);
            }
        }
        if message.lane == Lane::System {
            return self.send_to_process(id, &message);
        }
        if waits != Waits::Nobody
            && let Some(call) = reply_to
            && let Some(cycle) = self.deadlock(call, &message.method)
        {
            return self.fail_call(call, CallFailure::Deadlock { cycle });
        }
        self.deliver(id, message, to);
    }

    /// Puts a message into a mailbox, by its policy.
    pub(super) fn deliver(&mut self, id: ActorId, message: Message, to: Address) {
        let Some(actor) = self.actors.get_mut(&id) else { return };
        let sender = message.sender;
        let overflow = actor.mailbox.overflow();
        if overflow == Overflow::DropNew && actor.mailbox.is_full() {
            return self.overflown(id, message);
        }
        actor.mailbox.push(message);
        if overflow == Overflow::DropOldest {
            while let Some(oldest) = self.actors.get_mut(&id).and_then(|actor| actor.mailbox.take_surplus()) {
                self.overflown(id, oldest);
            }
        }
        self.pump(id);
        let gate = match overflow {
            Overflow::Block => Gate::Shut,
            Overflow::Fail => Gate::Refused,
            Overflow::DropOldest | Overflow::DropNew => return,
        };
        // Of a group nobody waits for the slowest.
        if let Sender::Process(process, _) = sender
            && !matches!(to, Address::Group(_))
            && let Some(actor) = self.actors.get_mut(&id)
            && actor.mailbox.is_full()
            && actor.mailbox.shut_out(process, &to)
        {
            self.actions.push_back(Action::Gate { process, to, gate });
        }
    }

    pub(super) fn overflown(&mut self, id: ActorId, message: Message) {
        let Some(actor) = self.actors.get(&id) else { return };
        match message.reply_to {
            Some(call) => {
                let failure = mailbox_full(actor);
                self.fail_call(call, failure);
            }
            None => {
                let end = end_at(actor, Cause::Overflow);
                self.lay_out(message, end);
            }
        }
    }

    fn sent_to_nobody(&mut self, message: Message, to: Address) {
        if let Some(call) = message.reply_to {
            let is_supervisor = self.member(&to).is_some_and(|id| self.supervisors.contains_key(&id));
            let failure = match is_supervisor {
                true => CallFailure::BadCall("a supervisor has neither methods nor state: see SupervisorRef".into()),
                false => self.is_no_address(&to).unwrap_or_else(|| self.no_proc(&to)),
            };
            return self.reply_failure(call, failure);
        }
        let label = address_label(&to);
        self.lay_out(message, End { to, label, cause: Cause::Nobody, certificates: Vec::new() });
    }

    /// Somebody waits from now on for a call that nobody waited for.
    pub(super) fn awaited(&mut self, call: ReplyTo, waits: Waits) {
        let Some(On::Answer(callee)) = self.router.get(call).map(|open| open.on.clone()) else { return };
        self.router.wait(call, waits);
        let message = self.actors.get(&callee).and_then(|actor| actor.mailbox.find_call(call));
        let method = message.map(|message| message.method.clone()).unwrap_or_default();
        if let Some(cycle) = self.deadlock(call, &method) {
            self.take_back_call(call, callee);
            self.fail_call(call, CallFailure::Deadlock { cycle });
        }
    }

    /// A sender waits for room; it is told so by its gate, and here only if it would wait for ever.
    pub(super) fn awaits_room(&mut self, call: ReplyTo, to: &Address, method: &str, waits: Waits) {
        let Some(id) = self.receiver(to) else { return };
        let is_shut = self.actors.get(&id).is_some_and(|actor| actor.mailbox.is_shut_out(call.caller));
        if !is_shut || !self.router.open(call, On::Room(id, method.into()), waits, None) {
            return;
        }
        if let Some(cycle) = self.deadlock(call, method) {
            self.fail_call(call, CallFailure::Deadlock { cycle });
        }
    }

    /// The caller does not want the answer any more.
    pub(super) fn cancelled(&mut self, call: ReplyTo) {
        if let Some(On::Answer(callee)) = self.router.close(call).map(|open| open.on) {
            self.take_back_call(call, callee);
        }
    }

    /// Tells the callee, if it has the call already; else it is never handed over.
    fn take_back_call(&mut self, call: ReplyTo, callee: ActorId) {
        let Some(actor) = self.actors.get(&callee) else { return };
        let Some(incarnation) = actor.incarnation() else { return };
        if let Some(seq) = actor.mailbox.handed_call(call) {
            self.actions.push_back(Action::Cancel { process: incarnation.process, seq });
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
        let id = self.member(to)?;
        let actor = self.actors.get(&id)?;
        (!matches!(actor.life, Life::Gone)).then_some(id)
    }

    /// What is asked of an actor's process goes past its mailbox, and is owed from the moment it is handed over.
    fn send_to_process(&mut self, id: ActorId, message: &Message) {
        let sender = self.sender_label(message.sender);
        let label = self.actors.get(&id).map(|actor| actor.label.clone()).unwrap_or_default();
        let Some(call) = message.reply_to else { return };
        let Some(incarnation) = self.incarnation_mut(id).filter(|it| it.stage != Stage::Starting) else {
            return self.fail_call(call, CallFailure::NoProc { target: label, similar: Vec::new(), is_down: true });
        };
        incarnation.owed.push(call);
        let process = incarnation.process;
        let (payload, buffers) = (message.payload.clone(), message.buffers.clone());
        let delivery = delivery(message, sender, None);
        self.actions.push_back(Action::Deliver { process, delivery, payload, buffers });
    }

    /// Hands over what the window has room for; a stop that waits for its turn follows the last of it.
    pub(super) fn pump(&mut self, id: ActorId) {
        let now = self.now;
        let mut has_handed = false;
        loop {
            let Some(actor) = self.actors.get_mut(&id) else { return };
            let Life::Alive(incarnation) = &mut actor.life else { return };
            match incarnation.stage {
                Stage::Running | Stage::Stopping { asked: false } => {}
                Stage::Starting | Stage::Recycling | Stage::Stopping { asked: true } => return,
            }
            let process = incarnation.process;
            let Some(mut message) = actor.mailbox.next() else {
                if incarnation.stage == (Stage::Stopping { asked: false }) && actor.mailbox.is_drained() {
                    incarnation.stage = Stage::Stopping { asked: true };
                    let reason = incarnation.stop_reason.clone();
                    self.actions.push_back(Action::Stop { process, reason, urgent: false });
                }
                break;
            };
            // Nobody waits for it any more: dropped before it costs anything.
            let is_abandoned = message.reply_to.is_some_and(|call| !self.router.is_open(call));
            if is_abandoned || message.deadline.is_some_and(|deadline| deadline < now) {
                actor.expired += 1;
                if let Some(call) = message.reply_to.filter(|_| !is_abandoned) {
                    let (target, waiting) = (actor.label.clone(), actor.mailbox.len() as u64);
                    let callee = Callee { target, state: "running".into(), busy: None, waiting };
                    self.fail_call(call, CallFailure::TimedOut(callee));
                }
                continue;
            }
            let deadline_ms = message.deadline.map(|deadline| (deadline - now).as_millis() as u64);
            message.deliveries += 1;
            let (payload, buffers) = (message.payload.clone(), message.buffers.clone());
            let sender = self.sender_label(message.sender);
            let mut delivery = delivery(&message, sender, deadline_ms);
            if let Some(actor) = self.actors.get_mut(&id) {
                delivery.seq = actor.mailbox.hand_over(message);
            }
            has_handed = true;
            self.actions.push_back(Action::Deliver { process, delivery, payload, buffers });
        }
        if has_handed {
            self.watch(id);
        }
        let_in(&mut self.actions, self.actors.get_mut(&id), &mut self.router);
    }

    pub(super) fn replied(&mut self, process: ProcessId, reply: Reply, payload: Bytes, buffers: Option<Ticket>) {
        let Some(id) = self.serving_actor(process) else { return };
        if let Some(done) = reply.done
            && let Some(actor) = self.actors.get_mut(&id)
        {
            if let Some(message) = actor.mailbox.settle(done.seq) {
                self.note_handled(process, id, &message, done.took_us, || error_of(&reply.outcome));
            }
            self.count_handled(id, 1);
        }
        if let Some(Open { on: On::Answer(callee), traced, .. }) = self.router.close(reply.to) {
            self.call_ended(reply.to, traced, || error_of(&reply.outcome));
            // Answered later than it was handled: it is not owed any more.
            if reply.done.is_none()
                && let Some(incarnation) = self.incarnation_mut(callee)
            {
                incarnation.owed.retain(|call| *call != reply.to);
            }
            self.reply(reply.to, reply.outcome, payload, buffers);
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
        let Some(actor) = self.actors.get(&id) else { return };
        self.meters.handled(&actor.spec.class, message, took_us);
        if message.traced.is_some()
            && let Some(took_us) = took_us
        {
            self.handler_ended(process.pid, id, message, Duration::from_micros(took_us.into()), error);
        }
    }

    pub(super) fn acked(&mut self, process: ProcessId, done: &[Done]) {
        let Some(id) = self.serving_actor(process) else { return };
        for done in done {
            let Some(actor) = self.actors.get_mut(&id) else { return };
            let Some(message) = actor.mailbox.settle(done.seq) else { continue };
            self.note_handled(process, id, &message, done.took_us, || None);
            let Some(actor) = self.actors.get_mut(&id) else { return };
            // Done without an answer: it is owed, and fails with the incarnation that owes it.
            if let Some(call) = message.reply_to
                && self.router.is_open(call)
                && let Life::Alive(incarnation) = &mut actor.life
            {
                incarnation.owed.push(call);
                self.router.owe(call);
            }
        }
        self.count_handled(id, done.len() as u64);
        self.pump(id);
    }

    pub(super) fn abandoned(&mut self, call: ReplyTo, page: Option<(Snapshot, u64)>) {
        let Some(Open { on: On::Answer(callee), traced, .. }) = self.router.close(call) else { return };
        self.call_ended(call, traced, || Some("timed out".into()));
        let Some(actor) = self.actors.get(&callee) else { return };
        let state = self.state_word(callee).to_owned();
        let busy = page.and_then(|(page, now_ns)| busy_with(actor, &page, now_ns));
        let waiting = actor.mailbox.handed().filter(|(_, message)| message.reply_to != Some(call)).count();
        let waiting = (actor.mailbox.len() + waiting).saturating_sub(usize::from(busy.is_some()));
        let callee = Callee { target: actor.label.clone(), state, busy, waiting: waiting as u64 };
        self.reply_failure(call, CallFailure::TimedOut(callee));
    }

    /// Nobody will come for the mail of this actor.
    pub(super) fn bury_mail(&mut self, id: ActorId) {
        let Some(actor) = self.actors.get_mut(&id) else { return };
        let certificate = actor.certificates.back().cloned().map(Arc::new);
        let messages = actor.mailbox.drain();
        // Who waited for room learns with the next send that nobody is there.
        let_in(&mut self.actions, self.actors.get_mut(&id), &mut self.router);
        for message in messages {
            match (&certificate, message.reply_to) {
                (Some(certificate), _) => self.bury(message, Cause::ReceiverGone, certificate),
                (None, Some(call)) => {
                    let failure = self.no_proc(&Address::Actor(id));
                    self.fail_call(call, failure);
                }
                (None, None) => {
                    let Some(actor) = self.actors.get(&id) else { continue };
                    let end = end_at(actor, Cause::ReceiverGone);
                    self.lay_out(message, end);
                }
            }
        }
    }

    pub(super) fn bury(&mut self, message: Message, cause: Cause, certificate: &Arc<Certificate>) {
        if let Some(call) = message.reply_to {
            return self.fail_call(call, CallFailure::Died(Box::new((**certificate).clone())));
        }
        let certificates = match message.deaths.is_empty() {
            true => vec![certificate.clone()],
            false => message.deaths.clone(),
        };
        let to = match self.find(&certificate.actor).and_then(|id| self.actors.get(&id)) {
            Some(_) if message.for_pid => Address::Pid(certificate.pid),
            Some(actor) => address_of(actor),
            None => Address::Name(certificate.actor.clone()),
        };
        self.lay_out(message, End { to, label: certificate.actor.clone(), cause, certificates });
    }

    /// Keeps a message as a dead letter, and says so.
    fn lay_out(&mut self, message: Message, end: End) {
        // A notice of an end, or a clock's tick, is about the incarnation that is gone: nobody misses it.
        if matches!(message.form, Form::Signal(_)) {
            return;
        }
        let sender = self.sender_label(message.sender);
        self.meters.dead_letter(end.cause);
        let letter = self.dead_letters.add(message, sender, end, self.now);
        for mourner in self.mourners.clone() {
            let mailbox = self.living.get(&mourner).and_then(|id| self.actors.get(id)).map(|actor| &actor.mailbox);
            if mailbox.is_some_and(|mailbox| !mailbox.is_full()) {
                self.send_signal(mourner, Signal::DeadLetter(letter.clone()));
            }
        }
        self.actions.push_back(Action::DeadLetter(letter));
    }

    /// A request about dead letters; the content of one, if that is asked for.
    pub(super) fn about_dead_letters(&mut self, request: DeadLetters) -> (Answer, Bytes) {
        match request {
            DeadLetters::List => {
                let (letters, forgotten) = self.dead_letters.list();
                (Answer::DeadLetters { letters, forgotten }, Bytes::new())
            }
            DeadLetters::Show(id) => match self.dead_letters.show(id) {
                Some((letter, content)) => (Answer::DeadLetters { letters: vec![letter], forgotten: 0 }, content),
                None => {
                    (Answer::Refused(format!("there is no dead letter {id}: see `rebeam dead list`")), Bytes::new())
                }
            },
            DeadLetters::Drop(which) => {
                let count = self.dead_letters.take(&which, |_, _| true).len();
                (Answer::Count(count as u64), Bytes::new())
            }
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
                    self.deliver(id, message, to);
                }
                (Answer::Count(count as u64), Bytes::new())
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
                let incarnation = self.living.get(&pid).and_then(|id| self.actors.get(id)?.incarnation());
                let Some(incarnation) = incarnation else { return };
                Recipient::Worker(incarnation.process)
            }
        };
        self.actions.push_back(Action::Reply { to, call, outcome, payload, buffers });
    }

    fn no_proc(&self, to: &Address) -> CallFailure {
        let target = match to {
            Address::Actor(_) | Address::Partition { .. } => {
                self.member(to).and_then(|id| self.actors.get(&id)).map(|actor| actor.label.clone())
            }
            Address::Name(_) | Address::Pid(_) | Address::Via { .. } | Address::Group(_) => None,
        };
        let target = target.unwrap_or_else(|| address_label(to));
        let is_down = self.member(to).is_some();
        let similar = if is_down { Vec::new() } else { self.similar(&target) };
        CallFailure::NoProc { similar, target, is_down }
    }

    pub(super) fn sender_label(&self, sender: Sender) -> String {
        match sender {
            Sender::Outside => "outside".into(),
            Sender::Node => "rebeam".into(),
            Sender::Process(process, id) => {
                self.actors.get(&id).map_or_else(|| process.pid.to_string(), |actor| actor.label.clone())
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
        Life::Alive(incarnation) => incarnation.stage == Stage::Starting && actor.starts > 1,
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
    CallFailure::MailboxFull { target: actor.label.clone(), waiting: actor.mailbox.len() as u64 }
}

/// The address by which mail to an actor outlives its incarnations.
fn address_of(actor: &Actor) -> Address {
    match &actor.spec.name {
        Some(name) => Address::Name(name.clone()),
        None => Address::Actor(actor.id),
    }
}

/// The end of a message that is not anybody's fault.
fn end_at(actor: &Actor, cause: Cause) -> End {
    End { to: address_of(actor), label: actor.label.clone(), cause, certificates: Vec::new() }
}

/// Lets senders go on who waited for room, if there is some.
pub(super) fn let_in(actions: &mut VecDeque<Action>, actor: Option<&mut Actor>, router: &mut Router) {
    let Some(actor) = actor else { return };
    for (process, to) in actor.mailbox.let_in() {
        router.close_rooms(process.pid, actor.id);
        actions.push_back(Action::Gate { process, to, gate: Gate::Open });
    }
}

fn delivery(message: &Message, sender: String, deadline_ms: Option<u64>) -> Delivery {
    Delivery {
        seq: Seq(0),
        reply_to: message.reply_to,
        method: message.method.to_string(),
        form: message.form.clone(),
        codec: message.codec,
        lane: message.lane,
        deadline_ms,
        delivery: message.deliveries,
        sender,
        buffers: None,
        trace: message.traced.as_ref().map(|traced| traced.context()),
    }
}

/// What an actor has in hand by its page: the oldest message begun and not done.
pub(crate) fn busy_with(actor: &Actor, page: &Snapshot, now_ns: u64) -> Option<(String, u64)> {
    let (Seq(seq), message) = actor.mailbox.handed().find(|(seq, _)| page.stage(seq.0) == MarkStage::Begun)?;
    Some((message.method.to_string(), now_ns.saturating_sub(page.since_ns(*seq)) / 1_000_000))
}
