//! What the core keeps about one actor, over all its incarnations.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rebeam_protocol::certificate::Certificate;
use rebeam_protocol::exit::ExitReason;
use rebeam_protocol::id::{ActorId, Pid, ProcessId, Seq};
use rebeam_protocol::message::ReplyTo;
use rebeam_protocol::spec::{ActorSpec, Restart, Shutdown};

use crate::mailbox::Mailbox;
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
    pub(crate) restart: Restart,
    pub(crate) shutdown: Shutdown,
    /// The supervisor that holds it.
    pub(crate) parent: ActorId,
    pub(crate) mailbox: Mailbox,
    pub(crate) life: Life,
    /// How often it was started.
    pub(crate) starts: u32,
    pub(crate) certificates: VecDeque<Certificate>,
    /// Calls that were dropped before they were handed over: nobody waited for them any more.
    pub(crate) expired: u64,
    /// Who had it spawned, and takes it along with its own end.
    pub(crate) owner: Option<Pid>,
    /// Whether it is linked to its owner from its first moment on.
    pub(crate) is_linked: bool,
    /// Since when it has had no running incarnation, if it has none.
    pub(crate) down_since: Option<Duration>,
    /// From which level on it logs, if somebody has said.
    pub(crate) log_level: Option<u16>,
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
    /// What we killed it for, and in words why.
    pub(crate) killed_for: Option<(ExitReason, &'static str)>,
    /// The exit signal that it has to end with.
    pub(crate) exit: Option<ExitReason>,
    /// The reason that a stop gives it.
    pub(crate) stop_reason: ExitReason,
    /// Its `init` asked to be passed over.
    pub(crate) is_ignored: bool,
    /// Calls it has taken and will answer later.
    pub(crate) owed: Vec<ReplyTo>,
    /// Whether exit signals come to it as messages.
    pub(crate) traps_exits: bool,
    /// What its `init` handed back for whoever starts it.
    pub(crate) info: Bytes,
    /// The state it has handed over, to go on in a new process.
    pub(crate) handed_over: Option<Bytes>,
    /// Messages it has handled in this process.
    pub(crate) handled: u64,
    /// When it is looked at next.
    pub(crate) look: Option<TimerKey>,
    /// The message that waited longest when it was last looked at, and since when it did.
    pub(crate) waited: Option<(Seq, Duration)>,
    /// When this process is too old.
    pub(crate) aged: Option<TimerKey>,
    /// Nobody will start the actor again after this incarnation.
    pub(crate) is_last: bool,
    /// Why it is not ready, if it says so.
    pub(crate) not_ready: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    Starting,
    Running,
    /// Asked to hand its state over to a new process.
    Recycling,
    /// Asked to stop, or about to be once the mail before it is handed over.
    Stopping {
        asked: bool,
    },
}

impl Incarnation {
    pub(crate) fn new(process: ProcessId, since: Duration) -> Self {
        Incarnation {
            process,
            since,
            stage: Stage::Starting,
            timer: None,
            report: None,
            killed_for: None,
            exit: None,
            stop_reason: ExitReason::SHUTDOWN,
            is_ignored: false,
            owed: Vec::new(),
            traps_exits: false,
            info: Bytes::new(),
            handed_over: None,
            handled: 0,
            look: None,
            waited: None,
            aged: None,
            is_last: false,
            not_ready: None,
        }
    }
}

impl Actor {
    /// Whether it was killed, and is only not known to be dead yet.
    pub(crate) fn is_being_killed(&self) -> bool {
        self.incarnation().is_some_and(|incarnation| incarnation.killed_for.is_some())
    }

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
