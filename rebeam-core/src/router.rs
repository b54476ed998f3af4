//! Calls that are open: who waits for whom, until the one answer.
//!
//! A call is answered exactly once: by a reply, by the end of its callee, or by its caller giving up. Whatever comes
//! after finds no open call and is dropped (MAP-13).

use std::collections::HashMap;

use rebeam_protocol::id::ActorId;
use rebeam_protocol::message::{Caller, ReplyTo};
use rustc_hash::FxBuildHasher;

#[derive(Debug, Default)]
pub(crate) struct Router {
    open: HashMap<ReplyTo, ActorId, FxBuildHasher>,
}

impl Router {
    /// A call begins; false if its number is in use by its caller.
    pub(crate) fn open(&mut self, call: ReplyTo, callee: ActorId) -> bool {
        self.open.insert(call, callee).is_none()
    }

    /// A call ends; says whom it was to, if it was open.
    pub(crate) fn close(&mut self, call: ReplyTo) -> Option<ActorId> {
        self.open.remove(&call)
    }

    pub(crate) fn callee(&self, call: ReplyTo) -> Option<ActorId> {
        self.open.get(&call).copied()
    }

    pub(crate) fn is_open(&self, call: ReplyTo) -> bool {
        self.open.contains_key(&call)
    }

    /// A caller is gone: nobody waits for its calls any more.
    pub(crate) fn forget_caller(&mut self, caller: Caller) {
        self.open.retain(|call, _| call.caller != caller);
    }
}
