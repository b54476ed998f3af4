//! What the core is told, and what it wants done.

use std::sync::Arc;

use bytes::Bytes;
use rebeam_protocol::certificate::Certificate;
use rebeam_protocol::control::{Answer, Request};
use rebeam_protocol::exit::ExitReason;
use rebeam_protocol::id::{ActorId, CallId, ProcessId, RequestId, Seq};
use rebeam_protocol::message::{Address, Caller, Delivery, Envelope, Outcome, Reply, Started};
use rebeam_protocol::page::Snapshot;
use rebeam_protocol::spec::ActorSpec;

use crate::supervisor::Verdict;

/// What happened.
#[derive(Debug)]
pub enum Event {
    /// Start the tree.
    Boot,
    /// A worker's `init` has returned.
    Started {
        /// Whose.
        process: ProcessId,
        /// How.
        started: Started,
    },
    /// A worker could not be made.
    LaunchFailed {
        /// The one that was asked for.
        process: ProcessId,
        /// The system's words.
        error: String,
    },
    /// A worker sends a message.
    Sent {
        /// Who sends.
        process: ProcessId,
        /// The head.
        envelope: Envelope,
        /// The content.
        payload: Bytes,
    },
    /// A client of the control socket calls or casts.
    SentFromOutside {
        /// The client.
        client: u64,
        /// The head.
        envelope: Envelope,
        /// The content.
        payload: Bytes,
    },
    /// A client of the control socket is gone, and with it whoever waited for answers.
    OutsideGone {
        /// The client.
        client: u64,
    },
    /// A worker answers a call.
    Replied {
        /// Who answers.
        process: ProcessId,
        /// The head.
        reply: Reply,
        /// The content.
        payload: Bytes,
    },
    /// A worker is done with messages that owe no answer.
    Acked {
        /// Who.
        process: ProcessId,
        /// Which.
        done: Vec<Seq>,
    },
    /// A caller waits no longer.
    Abandoned {
        /// Who called.
        caller: Caller,
        /// Which call.
        call: CallId,
        /// The callee's page, if it has a process, and the time on its clock, in nanoseconds.
        page: Option<(Snapshot, u64)>,
    },
    /// A worker's final report.
    Reported {
        /// Whose.
        process: ProcessId,
        /// Why it ends.
        reason: ExitReason,
    },
    /// A worker broke the protocol.
    Misbehaved {
        /// Who.
        process: ProcessId,
        /// How.
        complaint: String,
    },
    /// A process is gone: reaped, its channel read to the end, its page read.
    Died(Box<Death>),
    /// A request to the supervisor itself.
    Requested {
        /// Who asks.
        from: Requester,
        /// What.
        request: Request,
    },
    /// Stop the tree, in order.
    StopNode,
    /// The tree is being stopped: from now on nobody is waited for longer than this, in milliseconds.
    Hurry {
        /// The limit.
        limit_ms: u64,
    },
    /// Kill what is left.
    KillAll,
}

/// All that is known about the end of a process, in one event (design: "death is one event").
#[derive(Debug)]
pub struct Death {
    /// Which process.
    pub process: ProcessId,
    /// Its id for the system.
    pub os_pid: u32,
    /// What the system says about the end.
    pub status: Status,
    /// What it had begun and done.
    pub page: Snapshot,
    /// The time on the page's clock, in nanoseconds.
    pub clock_ns: u64,
    /// The last lines of its output.
    pub last_output: Vec<String>,
    /// User and system time, in milliseconds.
    pub cpu_ms: u64,
    /// Largest resident size, in KiB.
    pub peak_kib: u64,
}

/// How the system says a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// By itself, with this code.
    Exited(i32),
    /// By this signal.
    Signalled(i32),
}

/// Who asks the supervisor itself for something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Requester {
    /// A worker.
    Worker(ProcessId, RequestId),
    /// A client of the control socket.
    Outside(u64),
    /// Nobody waits.
    Nobody,
}

/// What is to be done.
#[derive(Debug)]
pub enum Action {
    /// Make a worker for an incarnation.
    Launch(Launch),
    /// SIGKILL to the whole group of a process.
    Kill(ProcessId),
    /// Hand a message over.
    Deliver {
        /// To whom.
        process: ProcessId,
        /// The head.
        delivery: Delivery,
        /// The content.
        payload: Bytes,
    },
    /// Pass an answer on.
    Reply {
        /// To whom.
        to: Caller,
        /// Their number for the call.
        call: CallId,
        /// How it went.
        outcome: Outcome,
        /// The content.
        payload: Bytes,
    },
    /// Ask a worker to end.
    Stop {
        /// Whom.
        process: ProcessId,
        /// The reason to end with.
        reason: ExitReason,
        /// Before what waits.
        urgent: bool,
    },
    /// Tell a sender whether there is room.
    Gate {
        /// The sender.
        process: ProcessId,
        /// The address as the sender wrote it.
        to: Address,
        /// Whether there is.
        open: bool,
    },
    /// Answer a request to the supervisor itself.
    Answer {
        /// To whom.
        to: Requester,
        /// What.
        answer: Answer,
    },
    /// Report an end that nobody ordered, and what follows.
    Report {
        /// What is known.
        certificate: Box<Certificate>,
        /// What now.
        verdict: Verdict,
    },
    /// A message was not handled by anyone and never will be.
    DeadLetter(DeadLetter),
    /// Every supervisor and actor of the tree is up.
    NodeUp,
    /// The tree did not come up; everything is down again.
    NodeFailed {
        /// Path of the child that failed.
        child: String,
        /// Why.
        reason: ExitReason,
        /// What is known about its end.
        certificate: Option<Box<Certificate>>,
    },
    /// The root supervisor has ended; everything is down.
    NodeEnded {
        /// Whether that was ordered.
        ordered: bool,
        /// What is known about the end that used up the root's limit.
        certificate: Option<Box<Certificate>>,
    },
}

/// What a launcher has to know.
#[derive(Clone, Debug)]
pub struct Launch {
    /// The process to make.
    pub process: ProcessId,
    /// Of which actor.
    pub actor: ActorId,
    /// Its name or path.
    pub label: String,
    /// Whether that is a registered name.
    pub named: bool,
    /// How often it was started before.
    pub restarts: u32,
    /// What to run.
    pub spec: Arc<ActorSpec>,
}

/// A message nobody will handle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    /// For whom it was.
    pub to: String,
    /// The method.
    pub method: String,
    /// From whom.
    pub sender: String,
    /// Why.
    pub cause: Cause,
}

/// Why a message became a dead letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Its receiver died with it in hand.
    InHand,
    /// Its receiver is gone for good.
    ReceiverGone,
    /// It was for an incarnation that has ended.
    PidDead,
}
