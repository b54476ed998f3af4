//! What an incarnation goes back to if its new code fails while it is on probation.

use std::sync::Arc;

use rebeam_protocol::id::Version;
use rebeam_protocol::spec::ActorSpec;

use crate::event::State;
use crate::timers::TimerKey;

/// The code and the state before the last move.
#[derive(Debug)]
pub(crate) struct Before {
    /// The version of the code.
    pub(crate) code: Version,
    /// The state; `None` if the actor has started over.
    pub(crate) state: Option<State>,
    /// Whether `init` runs before the state is taken over.
    pub(crate) runs_init: bool,
    /// The spec, if that has changed, too.
    pub(crate) spec: Option<Arc<ActorSpec>>,
    /// Messages that the new code has handled.
    pub(crate) handled: u64,
    /// When the probation ends.
    pub(crate) timer: Option<TimerKey>,
}
