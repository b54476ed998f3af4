//! What the core keeps about one actor, over all its incarnations.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use rebeam_protocol::certificate::Certificate;
use rebeam_protocol::exit::ExitReason;
use rebeam_protocol::id::{ActorId, ProcessId};
use rebeam_protocol::message::ReplyTo;
use rebeam_protocol::spec::{ActorSpec, Shutdown};

use crate::mailbox::Mailbox;
use crate::supervisor::ChildKey;
use crate::timers::TimerKey;

/// How many certificates are kept per actor.
const CERTIFICATES: usize = 10;

#[derive(Debug)]
pub(crate) struct Actor {
    pub(crate) id: ActorId,
    /// Its name, or its path in the tree.
    pub(crate) label: String,
    pub(crate) path: String,
    pub(crate) spec: Arc<ActorSpec>,
    pub(crate) shutdown: Shutdown,
    /// The supervisor that holds it, and as which child.
    pub(crate) parent: (usize, ChildKey),
    pub(crate) mailbox: Mailbox,
    pub(crate) life: Life,
    /// How often it was started.
    pub(crate) starts: u32,
    pub(crate) certificates: VecDeque<Certificate>,
}

/// Where an actor is between two incarnations, or in one.
#[derive(Debug)]
pub(crate) enum Life {
    /// Between incarnations: it may come back, and its mail waits.
    Waiting,
    /// It does not come back by itself: calls fail, casts are dropped.
    Gone,
    /// It has a process.
    Alive(Box<Incarnation>),
}

#[derive(Debug)]
pub(crate) struct Incarnation {
    pub(crate) process: ProcessId,
    pub(crate) since: Duration,
    pub(crate) stage: Stage,
    pub(crate) timer: Option<TimerKey>,
    /// The worker's own last word.
    pub(crate) report: Option<ExitReason>,
    /// What we killed it for.
    pub(crate) killed_for: Option<ExitReason>,
    /// Calls it has taken and will answer later.
    pub(crate) owed: Vec<ReplyTo>,
    /// Nobody will start the actor again after this incarnation.
    pub(crate) is_last: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    Starting,
    Running,
    /// Asked to stop, or about to be once the mail before it is handed over.
    Stopping {
        asked: bool,
    },
}

impl Actor {
    pub(crate) fn incarnation(&self) -> Option<&Incarnation> {
        match &self.life {
            Life::Alive(incarnation) => Some(incarnation),
            Life::Waiting | Life::Gone => None,
        }
    }

    pub(crate) fn incarnation_mut(&mut self) -> Option<&mut Incarnation> {
        match &mut self.life {
            Life::Alive(incarnation) => Some(incarnation),
            Life::Waiting | Life::Gone => None,
        }
    }

    pub(crate) fn keep_certificate(&mut self, certificate: Certificate) {
        self.certificates.push_back(certificate);
        if self.certificates.len() > CERTIFICATES {
            self.certificates.pop_front();
        }
    }
}
