//! How a node stands in numbers, and the spans of what is traced.

use std::time::Duration;

use rebeam_protocol::address::{Address, Caller, ReplyTo};
use rebeam_protocol::id::{ActorId, Pid, ProcessId};
use rebeam_protocol::page::Snapshot;

use super::Core;
use crate::actor::Actor;
use crate::event::Action;
use crate::mailbox::Message;
use crate::meters::{ActorFigures, Figures};
use crate::tracing::{SpanKind, TracedCall, Tracer, Work};

impl Core {
    /// How everything stands. `process` gives what the shell knows of a process: its id for the system, and its page.
    pub fn figures(&self, mut process: impl FnMut(ProcessId) -> Option<(u32, Snapshot)>) -> Figures {
        let mut actors: Vec<&Actor> = self.members.actors().collect();
        actors.sort_by_key(|actor| actor.id);
        let actors = actors.into_iter().map(|actor| {
            let known = actor.process().and_then(&mut process);
            let page = known.as_ref().map(|(_, page)| page);
            ActorFigures {
                label: actor.label.clone(),
                is_lasting: self.members.is_listed(actor.id),
                class: actor.spec.class.clone(),
                state: self.state_of(actor.id),
                waiting: actor.waiting(page) as u64,
                waiting_bytes: actor.mailbox.bytes() as u64,
                oldest: actor.oldest(page).map(|at| self.now.saturating_sub(at)),
                restarts: actor.starts.saturating_sub(1),
                os_pid: known.map(|(os_pid, _)| os_pid),
            }
        });
        Figures {
            handled: self.meters.handlers(),
            ended: self.meters.ends(),
            dead_letters: self.meters.letters(),
            starts: self.meters.starts().clone(),
            calls_in_flight: self.router.answers() as u64,
            skipped_ticks: self.alarms.skipped(),
            actors: actors.collect(),
        }
    }

    /// From now on traces this share of what begins here, from 0 to 1. Numbers come from the seed.
    pub fn trace(&mut self, seed: u64, share: f64) {
        self.tracer = Tracer::new(seed, share);
    }

    /// The handler of a message has ended after that time.
    pub(super) fn handler_ended(
        &mut self,
        pid: Pid,
        id: ActorId,
        message: &Message,
        took: Duration,
        error: impl FnOnce() -> Option<String>,
    ) {
        let (Some(traced), Some(actor)) = (message.traced.as_deref(), self.members.actor(id)) else { return };
        let class = actor.spec.class.rsplit('.').next().unwrap_or_default();
        let kind = if message.reply_to.is_some() { SpanKind::Handler } else { SpanKind::Consumer };
        let work = || Work {
            kind,
            name: format!("{class}.{}", message.head.method),
            actor: actor.label.clone(),
            pid: Some(pid),
            from: self.now.saturating_sub(took),
            until: self.now,
            error: error(),
        };
        if let Some(span) = traced.span(work) {
            self.actions.push_back(Action::Span(Box::new(span)));
        }
    }

    /// A call has its answer, or will have none.
    pub(super) fn call_ended(
        &mut self,
        call: ReplyTo,
        traced: Option<Box<TracedCall>>,
        error: impl FnOnce() -> Option<String>,
    ) {
        let Some(traced) = traced else { return };
        let (actor, pid) = match call.caller {
            Caller::Actor(pid) => (self.label_of(&Address::Pid(pid)).unwrap_or_else(|| pid.to_string()), Some(pid)),
            Caller::Outside(_) => ("outside".to_owned(), None),
        };
        let span = traced.span(actor, pid, self.now, error());
        self.actions.push_back(Action::Span(Box::new(span)));
    }
}
