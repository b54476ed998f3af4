//! What an incarnation goes back to if its new code fails while it is on probation.

use std::collections::BTreeSet;
use std::sync::Arc;

use rebeam_protocol::address::ReplyTo;
use rebeam_protocol::id::{Pid, Version};
use rebeam_protocol::spec::ActorSpec;

use super::Made;
use crate::alarms::Alarm;
use crate::event::State;
use crate::timers::{AlarmId, TimerKey};

/// The code of an actor: which version it comes from, and what it is.
///
/// The same code in two versions has one digest: a process of the older version need not move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Code {
    pub(crate) version: Version,
    /// Of the modules of its class, with what they import.
    pub(crate) digest: u64,
}

/// The code and the state before the last move.
#[derive(Debug)]
pub(crate) struct Before {
    /// The version that the process before runs.
    pub(crate) version: Version,
    /// Its code, and the version that another process gets that from.
    pub(crate) code: Code,
    /// The state; `None` if the actor has started over.
    pub(crate) state: Option<State>,
    /// Whether `init` runs before the state is taken over.
    pub(crate) runs_init: bool,
    /// The spec, if that has changed, too.
    pub(crate) spec: Option<Arc<ActorSpec>>,
    /// Messages that the new code has handled.
    pub(crate) handled: u64,
    /// When the probation ends; only set while the new code is up.
    pub(crate) timer: Option<TimerKey>,
    /// What the actor had made until then, in all of its life.
    pub(crate) made: Made,
    /// The calls that it had put off until then.
    pub(crate) owed: BTreeSet<ReplyTo>,
    /// Whether it trapped exits.
    pub(crate) traps_exits: bool,
    /// Whom the new code has linked itself to.
    pub(crate) linked: Vec<Pid>,
    /// Timers that the new code has cancelled.
    pub(crate) cancelled: Vec<(AlarmId, Alarm)>,
    /// What was before this code, if that was still on probation.
    pub(crate) earlier: Option<Box<Before>>,
}

impl Before {
    /// What a further move keeps of this: how to go back one step, or to the last code that has proved itself.
    pub(crate) fn into_earlier(self) -> Box<Before> {
        match self.earlier {
            Some(proved) => proved,
            None => Box::new(self),
        }
    }
}
