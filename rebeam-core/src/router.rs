//! Waits that are open: who waits for whom, until the one answer.
//!
//! A call is answered exactly once: by a reply, by the end of its callee, or by its caller giving up. Whatever comes
//! after finds no open call and is dropped (MAP-13). What else an actor waits for (room in a mailbox, a supervisor) is
//! kept here, too, since deadlocks run through all of them; [`crate::core`] looks for those.

use std::collections::{HashMap, HashSet};
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

/// What one caller has open.
#[derive(Debug, Default)]
struct Waiting {
    open: HashMap<CallId, Open, FxBuildHasher>,
    /// What its handlers wait for.
    handlers: HashSet<CallId, FxBuildHasher>,
}

#[derive(Debug, Default)]
pub(crate) struct Router {
    callers: HashMap<Caller, Waiting, FxBuildHasher>,
}

impl Router {
    /// A wait begins; false if its number is in use by its caller.
    pub(crate) fn open(&mut self, call: ReplyTo, on: On, waits: Waits, deadline: Option<Duration>) -> bool {
        let own = self.callers.entry(call.caller).or_default();
        let open = Open { on, waits, deadline, traced: None, is_owed: false };
        let is_new = own.open.insert(call.call, open).is_none();
        if is_new && waits != Waits::Nobody {
            own.handlers.insert(call.call);
        }
        is_new
    }

    /// Somebody waits from now on for a call that nobody waited for; false if it is not open.
    pub(crate) fn wait(&mut self, call: ReplyTo, waits: Waits) -> bool {
        let Some(own) = self.callers.get_mut(&call.caller) else { return false };
        let Some(open) = own.open.get_mut(&call.call) else { return false };
        if std::mem::replace(&mut open.waits, waits) == Waits::Nobody && waits != Waits::Nobody {
            own.handlers.insert(call.call);
        }
        true
    }

    /// A wait ends; gives it if it was open.
    pub(crate) fn close(&mut self, call: ReplyTo) -> Option<Open> {
        let own = self.callers.get_mut(&call.caller)?;
        let open = own.open.remove(&call.call)?;
        if open.waits != Waits::Nobody {
            own.handlers.remove(&call.call);
        }
        Some(open)
    }

    pub(crate) fn get(&self, call: ReplyTo) -> Option<&Open> {
        self.callers.get(&call.caller)?.open.get(&call.call)
    }

    fn get_mut(&mut self, call: ReplyTo) -> Option<&mut Open> {
        self.callers.get_mut(&call.caller)?.open.get_mut(&call.call)
    }

    pub(crate) fn is_open(&self, call: ReplyTo) -> bool {
        self.get(call).is_some()
    }

    /// How many waits a caller has open.
    pub(crate) fn count(&self, caller: Caller) -> usize {
        self.callers.get(&caller).map_or(0, |own| own.open.len())
    }

    /// The call is traced.
    pub(crate) fn trace(&mut self, call: ReplyTo, traced: TracedCall) {
        if let Some(open) = self.get_mut(call) {
            open.traced = Some(Box::new(traced));
        }
    }

    /// The callee will answer later.
    pub(crate) fn owe(&mut self, call: ReplyTo) {
        if let Some(open) = self.get_mut(call) {
            open.is_owed = true;
        }
    }

    /// What the handlers of an incarnation wait for, oldest first.
    pub(crate) fn waits_of(&self, pid: Pid) -> impl Iterator<Item = (ReplyTo, &Open)> {
        let caller = Caller::Actor(pid);
        let own = self.callers.get(&caller);
        let mut calls: Vec<CallId> = own.into_iter().flat_map(|own| own.handlers.iter().copied()).collect();
        calls.sort_unstable();
        calls.into_iter().filter_map(move |call| Some((ReplyTo { caller, call }, own?.open.get(&call)?)))
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
        let own = self.callers.remove(&caller).unwrap_or_default();
        let answers = own.open.into_iter().filter_map(|(call, open)| match open.on {
            On::Answer(callee) => Some((ReplyTo { caller, call }, callee)),
            On::Room(..) | On::Supervisor(_) | On::Up(_) => None,
        });
        let mut calls: Vec<(ReplyTo, ActorId)> = answers.collect();
        calls.sort();
        calls
    }

    /// How many of them wait for an actor's answer.
    pub(crate) fn answers(&self) -> usize {
        let open = self.callers.values().flat_map(|own| own.open.values());
        open.filter(|open| matches!(open.on, On::Answer(_))).count()
    }

    /// How many waits are open; for tests that nothing is left behind.
    pub(crate) fn len(&self) -> usize {
        self.callers.values().map(|own| own.open.len() + own.handlers.len()).sum()
    }
}
