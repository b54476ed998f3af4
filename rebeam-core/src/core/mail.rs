//! Mail: where it goes, when it is handed over, and what becomes of it when nobody will handle it.

use std::time::Duration;

use bytes::Bytes;
use rebeam_protocol::certificate::Certificate;
use rebeam_protocol::exit::ExitReason;
use rebeam_protocol::id::{ActorId, CallId, ProcessId, Seq};
use rebeam_protocol::message::{
    Address, CallFailure, Callee, Caller, Delivery, Envelope, Form, Kind, Lane, Outcome, Reply, ReplyTo,
};
use rebeam_protocol::page::{Snapshot, Stage as MarkStage};

use super::Core;
use crate::actor::{Actor, Life, Stage};
use crate::event::{Action, Cause, DeadLetter, Recipient};
use crate::mailbox::{Message, Sender};

impl Core {
    pub(super) fn sent(&mut self, sender: Sender, caller: Caller, envelope: Envelope, payload: Bytes) {
        let reply_to = match envelope.kind {
            Kind::Call { call, .. } => Some(ReplyTo { caller, call }),
            Kind::Cast | Kind::Info => None,
        };
        if let (Form::Signal(_), Sender::Process(process, _)) = (&envelope.form, sender) {
            let complaint = "it sent what only the supervisor says".to_owned();
            return self.kill_for(process, ExitReason::BadProtocol(complaint), "it broke the protocol");
        }
        let Some(id) = self.receiver(&envelope.to) else {
            if let Some(ReplyTo { call, .. }) = reply_to {
                let is_supervisor = self.member(&envelope.to).is_some_and(|id| self.supervisors.contains_key(&id));
                let failure = match is_supervisor {
                    true => {
                        CallFailure::BadCall("a supervisor has neither methods nor state: see SupervisorRef".into())
                    }
                    false => self.no_proc(&envelope.to),
                };
                self.reply_failure(caller, call, failure);
            }
            return;
        };
        let Some(actor) = self.actors.get_mut(&id) else { return };
        // Only a handler that calls its own actor waits for itself; another thread of it may well call.
        if let (Some(ReplyTo { call, .. }), Sender::Process(_, own), Some(_)) = (reply_to, sender, envelope.parent)
            && own == id
        {
            let target = actor.label.clone();
            return self.reply_failure(caller, call, CallFailure::CallingSelf { target });
        }
        if let Some(ReplyTo { caller: Caller::Outside(_), call }) = reply_to
            && actor.mailbox.is_full()
        {
            let failure = CallFailure::MailboxFull { target: actor.label.clone(), waiting: actor.mailbox.len() as u64 };
            return self.reply_failure(caller, call, failure);
        }
        if let Some(call) = reply_to
            && !self.router.open(call, id)
        {
            // Two calls with one number: the worker's bookkeeping is broken, and an answer could reach the wrong one.
            if let Sender::Process(process, _) = sender {
                let complaint = format!("call {} was made twice", call.call.0);
                self.kill_for(process, ExitReason::BadProtocol(complaint), "it broke the protocol");
            }
            return;
        }
        let message = Message {
            sender,
            for_pid: matches!(envelope.to, Address::Pid(_)),
            reply_to,
            form: envelope.form,
            codec: envelope.codec,
            lane: envelope.lane,
            deliveries: 0,
            deadline: envelope.deadline_ms.map(|left| self.now + Duration::from_millis(left)),
            method: envelope.method.into_boxed_str(),
            payload,
            trace: envelope.trace.map(Box::new),
        };
        if message.lane == Lane::System {
            return self.send_to_process(id, message);
        }
        actor.mailbox.push(message);
        self.pump(id);
        if let Sender::Process(process, _) = sender
            && let Some(actor) = self.actors.get_mut(&id)
            && actor.mailbox.is_full()
            && actor.mailbox.shut_out(process, &envelope.to)
        {
            self.actions.push_back(Action::Gate { process, to: envelope.to, open: false });
        }
    }

    /// The actor behind an address, if mail to it can still arrive.
    fn receiver(&self, to: &Address) -> Option<ActorId> {
        let id = self.member(to)?;
        let actor = self.actors.get(&id)?;
        (!matches!(actor.life, Life::Gone)).then_some(id)
    }

    /// What is asked of an actor's process goes past its mailbox, and is owed from the moment it is handed over.
    fn send_to_process(&mut self, id: ActorId, message: Message) {
        let sender = self.sender_label(message.sender);
        let label = self.actors.get(&id).map(|actor| actor.label.clone()).unwrap_or_default();
        let Some(call) = message.reply_to else { return };
        let Some(incarnation) = self.incarnation_mut(id).filter(|it| it.stage != Stage::Starting) else {
            return self.fail_call(call, CallFailure::NoProc { target: label, similar: Vec::new(), is_down: true });
        };
        incarnation.owed.push(call);
        let process = incarnation.process;
        let payload = message.payload.clone();
        let delivery = delivery(message, sender, None);
        self.actions.push_back(Action::Deliver { process, delivery, payload });
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
            let mut delivery = delivery(message.clone(), sender, deadline_ms);
            if let Some(actor) = self.actors.get_mut(&id) {
                delivery.seq = actor.mailbox.hand_over(message);
            }
            has_handed = true;
            self.actions.push_back(Action::Deliver { process, delivery, payload });
        }
        if has_handed {
            self.watch(id);
        }
        let Some(actor) = self.actors.get_mut(&id) else { return };
        for (process, to) in actor.mailbox.let_in() {
            self.actions.push_back(Action::Gate { process, to, open: true });
        }
    }

    pub(super) fn replied(&mut self, process: ProcessId, reply: Reply, payload: Bytes) {
        let Some(id) = self.serving_actor(process) else { return };
        if let Some(seq) = reply.done
            && let Some(actor) = self.actors.get_mut(&id)
        {
            actor.mailbox.settle(seq);
            self.count_handled(id, 1);
        }
        if let Some(callee) = self.router.close(reply.to) {
            // Answered later than it was handled: it is not owed any more.
            if reply.done.is_none()
                && let Some(incarnation) = self.incarnation_mut(callee)
            {
                incarnation.owed.retain(|call| *call != reply.to);
            }
            self.reply(reply.to, reply.outcome, payload);
        }
        self.pump(id);
    }

    pub(super) fn acked(&mut self, process: ProcessId, done: &[Seq]) {
        let Some(id) = self.serving_actor(process) else { return };
        let Some(actor) = self.actors.get_mut(&id) else { return };
        for &seq in done {
            let Some(message) = actor.mailbox.settle(seq) else { continue };
            // Done without an answer: it is owed, and fails with the incarnation that owes it.
            if let Some(call) = message.reply_to
                && self.router.is_open(call)
                && let Life::Alive(incarnation) = &mut actor.life
            {
                incarnation.owed.push(call);
            }
        }
        self.count_handled(id, done.len() as u64);
        self.pump(id);
    }

    pub(super) fn abandoned(&mut self, call: ReplyTo, page: Option<(Snapshot, u64)>) {
        let Some(callee) = self.router.close(call) else { return };
        let Some(actor) = self.actors.get(&callee) else { return };
        let state = self.state_word(callee).to_owned();
        let busy = page.and_then(|(page, now_ns)| busy_with(actor, &page, now_ns));
        let waiting = actor.mailbox.handed().filter(|(_, message)| message.reply_to != Some(call)).count();
        let waiting = (actor.mailbox.len() + waiting).saturating_sub(usize::from(busy.is_some()));
        let callee = Callee { target: actor.label.clone(), state, busy, waiting: waiting as u64 };
        self.reply_failure(call.caller, call.call, CallFailure::TimedOut(callee));
    }

    /// Nobody will come for the mail of this actor.
    pub(super) fn bury_mail(&mut self, id: ActorId) {
        let Some(actor) = self.actors.get_mut(&id) else { return };
        let certificate = actor.certificates.back().cloned();
        let messages = actor.mailbox.drain();
        // Who waited for room learns with the next send that nobody is there.
        for (process, to) in actor.mailbox.let_in() {
            self.actions.push_back(Action::Gate { process, to, open: true });
        }
        for message in messages {
            match &certificate {
                Some(certificate) => self.bury(message, Cause::ReceiverGone, certificate),
                None => {
                    if let Some(call) = message.reply_to {
                        let failure = self.no_proc(&Address::Actor(id));
                        self.fail_call(call, failure);
                    }
                }
            }
        }
    }

    pub(super) fn bury(&mut self, message: Message, cause: Cause, certificate: &Certificate) {
        if let Some(call) = message.reply_to {
            return self.fail_call(call, CallFailure::Died(Box::new(certificate.clone())));
        }
        // A notice of an end, or a clock's tick, is about the incarnation that is gone: nobody misses it.
        if matches!(message.form, Form::Signal(_)) {
            return;
        }
        self.actions.push_back(Action::DeadLetter(DeadLetter {
            to: certificate.actor.clone(),
            method: message.method.into(),
            sender: self.sender_label(message.sender),
            cause,
        }));
    }

    pub(super) fn fail_call(&mut self, call: ReplyTo, failure: CallFailure) {
        if self.router.close(call).is_some() {
            self.reply_failure(call.caller, call.call, failure);
        }
    }

    fn reply_failure(&mut self, caller: Caller, call: CallId, failure: CallFailure) {
        self.reply(ReplyTo { caller, call }, Outcome::Failed(failure), Bytes::new());
    }

    fn reply(&mut self, ReplyTo { caller, call }: ReplyTo, outcome: Outcome, payload: Bytes) {
        let to = match caller {
            Caller::Outside(client) => Recipient::Outside(client),
            Caller::Actor(pid) => {
                let incarnation = self.living.get(&pid).and_then(|id| self.actors.get(id)?.incarnation());
                let Some(incarnation) = incarnation else { return };
                Recipient::Worker(incarnation.process)
            }
        };
        self.actions.push_back(Action::Reply { to, call, outcome, payload });
    }

    fn no_proc(&self, to: &Address) -> CallFailure {
        let target = match to {
            Address::Actor(_) | Address::Partition { .. } => {
                self.member(to).and_then(|id| self.actors.get(&id)).map(|actor| actor.label.clone())
            }
            Address::Name(_) | Address::Pid(_) => None,
        };
        let target = target.unwrap_or_else(|| rebeam_protocol::control::address_label(to));
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

fn delivery(message: Message, sender: String, deadline_ms: Option<u64>) -> Delivery {
    Delivery {
        seq: Seq(0),
        reply_to: message.reply_to,
        method: message.method.into(),
        form: message.form,
        codec: message.codec,
        lane: message.lane,
        deadline_ms,
        delivery: message.deliveries,
        sender,
        trace: message.trace.as_deref().copied(),
    }
}

/// What an actor has in hand by its page: the oldest message begun and not done.
pub(crate) fn busy_with(actor: &Actor, page: &Snapshot, now_ns: u64) -> Option<(String, u64)> {
    let (Seq(seq), message) = actor.mailbox.handed().find(|(seq, _)| page.stage(seq.0) == MarkStage::Begun)?;
    Some((message.method.to_string(), now_ns.saturating_sub(page.since_ns(*seq)) / 1_000_000))
}
