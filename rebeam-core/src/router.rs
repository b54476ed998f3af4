//! Waits that are open: who waits for whom, until the one answer.
//!
//! A call is answered exactly once: by a reply, by the end of its callee, or by its caller giving up. Whatever comes
//! after finds no open call and is dropped (MAP-13). What else an actor waits for (room in a mailbox, a supervisor) is
//! kept here, too, since deadlocks run through all of them; [`crate::core`] looks for those.

use std::collections::HashMap;
use std::time::Duration;

use rebeam_protocol::address::{Address, Caller, ReplyTo};
use rebeam_protocol::id::{ActorId, CallId, Pid};
use rebeam_protocol::message::Waits;
use rustc_hash::FxBuildHasher;

use crate::tracing::TracedCall;

/// One wait.
#[derive(Debug)]
pub(crate) struct Open {
    pub(crate) on: On,
    pub(crate) waits: Waits,
    pub(crate) deadline: Option<Duration>,
    /// How it is traced, if it is.
    pub(crate) traced: Option<Box<TracedCall>>,
    /// The callee has taken the call and answers later, or has somebody else answer.
    pub(crate) is_owed: bool,
}

/// What is waited for.
#[derive(Clone, Debug)]
pub(crate) enum On {
    /// The answer of an actor.
    Answer(ActorId),
    /// Room in the mailbox of an actor, for a message to this method.
    Room(ActorId, Box<str>),
    /// A supervisor.
    Supervisor(ActorId),
    /// An incarnation behind an address that runs.
    Up(Address),
}

#[derive(Debug, Default)]
pub(crate) struct Router {
    open: HashMap<ReplyTo, Open, FxBuildHasher>,
    /// Per incarnation, what its handlers wait for.
    waiting: HashMap<Pid, Vec<CallId>, FxBuildHasher>,
}

impl Router {
    /// A wait begins; false if its number is in use by its caller.
    pub(crate) fn open(&mut self, call: ReplyTo, on: On, waits: Waits, deadline: Option<Duration>) -> bool {
        let is_new = self.open.insert(call, Open { on, waits, deadline, traced: None, is_owed: false }).is_none();
        if is_new {
            self.note(call, waits);
        }
        is_new
    }

    fn note(&mut self, call: ReplyTo, waits: Waits) {
        if let (Caller::Actor(pid), false) = (call.caller, waits == Waits::Nobody) {
            self.waiting.entry(pid).or_default().push(call.call);
        }
    }

    /// Somebody waits from now on for a call that nobody waited for; false if it is not open.
    pub(crate) fn wait(&mut self, call: ReplyTo, waits: Waits) -> bool {
        let Some(open) = self.open.get_mut(&call) else { return false };
        if std::mem::replace(&mut open.waits, waits) == Waits::Nobody {
            self.note(call, waits);
        }
        true
    }

    /// A wait ends; gives it if it was open.
    pub(crate) fn close(&mut self, call: ReplyTo) -> Option<Open> {
        let open = self.open.remove(&call)?;
        if let (Caller::Actor(pid), false) = (call.caller, open.waits == Waits::Nobody)
            && let Some(calls) = self.waiting.get_mut(&pid)
        {
            calls.retain(|other| *other != call.call);
            if calls.is_empty() {
                self.waiting.remove(&pid);
            }
        }
        Some(open)
    }

    pub(crate) fn get(&self, call: ReplyTo) -> Option<&Open> {
        self.open.get(&call)
    }

    pub(crate) fn is_open(&self, call: ReplyTo) -> bool {
        self.open.contains_key(&call)
    }

    /// The call is traced.
    pub(crate) fn trace(&mut self, call: ReplyTo, traced: TracedCall) {
        if let Some(open) = self.open.get_mut(&call) {
            open.traced = Some(Box::new(traced));
        }
    }

    /// The callee will answer later.
    pub(crate) fn owe(&mut self, call: ReplyTo) {
        if let Some(open) = self.open.get_mut(&call) {
            open.is_owed = true;
        }
    }

    /// What the handlers of an incarnation wait for.
    pub(crate) fn waits_of(&self, pid: Pid) -> impl Iterator<Item = (ReplyTo, &Open)> {
        let calls = self.waiting.get(&pid).into_iter().flatten();
        calls.filter_map(move |call| {
            let key = ReplyTo { caller: Caller::Actor(pid), call: *call };
            Some((key, self.open.get(&key)?))
        })
    }

    /// There is room in the mailbox of an actor, for one who waited for it.
    pub(crate) fn close_rooms(&mut self, waiting: Pid, of: ActorId) {
        let is_it = |open: &Open| matches!(open.on, On::Room(actor, _) if actor == of);
        let rooms: Vec<ReplyTo> =
            self.waits_of(waiting).filter(|(_, open)| is_it(open)).map(|(wait, _)| wait).collect();
        for room in rooms {
            self.close(room);
        }
    }

    /// A caller is gone: nobody waits for its calls any more. Gives the calls that actors still have.
    pub(crate) fn forget_caller(&mut self, caller: Caller) -> Vec<(ReplyTo, ActorId)> {
        if let Caller::Actor(pid) = caller {
            self.waiting.remove(&pid);
        }
        let mut calls = Vec::new();
        self.open.retain(|call, open| {
            if call.caller == caller
                && let On::Answer(callee) = open.on
            {
                calls.push((*call, callee));
            }
            call.caller != caller
        });
        calls.sort();
        calls
    }

    /// How many of them wait for an actor's answer.
    pub(crate) fn answers(&self) -> usize {
        self.open.values().filter(|open| matches!(open.on, On::Answer(_))).count()
    }

    /// How many waits are open; for tests that nothing is left behind.
    pub(crate) fn len(&self) -> usize {
        self.open.len() + self.waiting.len()
    }
}
