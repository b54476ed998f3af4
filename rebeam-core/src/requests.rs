//! Requests to the supervisor itself that are not answered yet.

use std::collections::HashMap;

use rebeam_protocol::address::{Caller, ReplyTo};
use rebeam_protocol::exit::ExitReason;
use rebeam_protocol::id::{ActorId, CallId, ProcessId, RequestId};
use rebeam_protocol::outside::Change;

/// Who asks the supervisor itself for something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Requester {
    /// A worker.
    Worker(ProcessId, RequestId),
    /// A client of the control socket.
    Outside(u64),
    /// The core itself, which wants no answer.
    Nobody,
}

impl Requester {
    /// The process that asks, and its number for the request.
    pub(crate) fn worker(self) -> Option<(ProcessId, RequestId)> {
        match self {
            Requester::Worker(process, request) => Some((process, request)),
            Requester::Outside(_) | Requester::Nobody => None,
        }
    }

    /// The wait of an actor that asks. Its requests and its calls are counted together.
    pub(crate) fn wait(self) -> Option<ReplyTo> {
        match self {
            Requester::Worker(process, request) => {
                Some(ReplyTo { caller: Caller::Actor(process.pid), call: CallId(request.0) })
            }
            Requester::Outside(_) | Requester::Nobody => None,
        }
    }
}

/// A request that a supervisor's machine has not got to yet.
#[derive(Debug)]
pub(crate) struct Pending {
    pub(crate) from: Requester,
    pub(crate) what: What,
}

/// What is answered once the machine is done.
#[derive(Debug)]
pub(crate) enum What {
    /// `rebeam stop` or `restart`, of that name.
    ByName(String),
    /// A child was started.
    Start,
    Done,
    Exit(ExitReason),
    Which,
    Count,
    Spec,
    /// A change of the tree is carried out.
    Change {
        change: Change,
        child: ActorId,
    },
}

#[derive(Debug, Default)]
pub(crate) struct Requests {
    pending: HashMap<u64, Pending>,
    last: u64,
}

impl Requests {
    /// Keeps a request until its machine is done with it; gives its number.
    pub(crate) fn add(&mut self, from: Requester, what: What) -> u64 {
        self.last += 1;
        self.pending.insert(self.last, Pending { from, what });
        self.last
    }

    pub(crate) fn take(&mut self, number: u64) -> Option<Pending> {
        self.pending.remove(&number)
    }

    /// How many there are; for tests that nothing is left behind.
    pub(crate) fn len(&self) -> usize {
        self.pending.len()
    }
}
