//! What a worker and the supervisor say to each other, one enum per direction.
//!
//! Payloads (pickles, plain values) are not in these types: they follow the header in the same frame (see
//! [`crate::frame`]), and the supervisor never looks into them. What is said of a message itself stands in
//! [`crate::message`]; what a worker may ask of the supervisor stands in [`crate::process`].

use serde::{Deserialize, Serialize};

use crate::address::{Address, ReplyTo};
use crate::exit::ExitReason;
use crate::handshake::{Hello, Welcome};
use crate::id::{ActorId, CallId, RequestId, Seq};
use crate::message::{Head, Kind, LogRecord, Outcome, Waits};
use crate::process::{ProcessAnswer, ProcessRequest};

/// From the supervisor to a worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ToWorker {
    /// The handshake; payload: the start payload.
    Welcome(Welcome),
    /// A message for the mailbox; payload: its content.
    Deliver(Delivery),
    /// The answer to a call; payload: the result or the exception.
    Reply {
        /// Which call.
        call: CallId,
        /// How it went.
        outcome: Outcome,
        /// Where the large buffers of the answer are, if it has any.
        buffers: Option<Lease>,
    },
    /// End yourself with this reason, after `terminate`.
    Stop {
        /// The reason to end with.
        reason: ExitReason,
        /// Before what waits (a group restart) rather than in turn (a final stop).
        urgent: bool,
    },
    /// You are being stopped, and have so much time from now on; it may be said again, with less.
    TimeLeft {
        /// Milliseconds.
        ms: u64,
    },
    /// End without `terminate`: an exit signal came and is not trapped (MAP-04).
    Exit,
    /// Hand your state over and end, to go on in a new process.
    Recycle,
    /// Hand your state over and wait: a process with other code is to go on. [`ToWorker::GoOn`] or [`ToWorker::Leave`]
    /// follows.
    Move {
        /// How long handlers that overlap may take to finish, in milliseconds, before they are cancelled.
        grace_ms: u64,
    },
    /// The process that was to take over has failed: handle mail again. What was handed over before this was taken back.
    GoOn,
    /// Another process has taken over: end.
    Leave,
    /// Nobody waits for the answer to this message any more: drop it if it was not begun.
    Cancel {
        /// Which message.
        seq: Seq,
        /// Whether its handler is cancelled if it was begun, where a handler can be.
        even_if_begun: bool,
    },
    /// Nothing: virtual time has moved on.
    Wake,
    /// Nobody has this arena any more: it may be written to again.
    ArenaFree {
        /// Which.
        arena: u64,
    },
    /// The answer to a request to the supervisor itself; payload: what a child's `init` handed back, if it is asked for.
    Answer {
        /// Which request.
        request: RequestId,
        /// The answer.
        answer: ProcessAnswer,
    },
    /// Whether there is room in the mailbox of an actor that this worker sent to.
    Gate(Gate),
    /// Log from this of `logging`'s numbers on.
    LogLevel {
        /// The number.
        level: u16,
    },
    /// Snapshots of tables that are open were so for too long: they end.
    EndSnapshots,
    /// The stacks that it has written were read: the next may be written over them.
    StacksTaken,
}

/// Whether there is room in a mailbox. It is about an actor, however it is addressed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Gate {
    /// There is room again.
    Open {
        /// Whose mailbox.
        actor: ActorId,
    },
    /// There is none.
    Shut {
        /// Whose mailbox.
        actor: ActorId,
        /// By which address the worker knows it. A partition's key is its place among the copies.
        to: Address,
        /// Among how many copies the keys of a partition supervisor choose, if `to` is one of them.
        copies: Option<u64>,
        /// What the next send is to do.
        full: Full,
    },
}

/// What a send to a full mailbox does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Full {
    /// It waits.
    Wait,
    /// It fails at once.
    Fail,
}

/// From a worker to the supervisor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ToSupervisor {
    /// The handshake.
    Hello(Hello),
    /// `init` returned; payload: what it handed back for whoever starts it, if anything (SUP-016).
    Started(Started),
    /// A call, cast or plain send; payload: its content.
    Send(Envelope),
    /// An answer to a call; payload: the result or the exception.
    Reply(Reply),
    /// Messages done that owe no answer (or owe it later).
    Ack {
        /// Which ones.
        done: Vec<Done>,
    },
    /// The caller's deadline has passed: drop the call if it was not begun, and say what the callee does.
    Abandon {
        /// Which call.
        call: CallId,
    },
    /// The caller does not want the answer any more: no answer comes.
    Cancel {
        /// Which call.
        call: CallId,
    },
    /// From now on somebody waits for the answer to this call, which was made without waiting.
    Await {
        /// Which call.
        call: CallId,
        /// Who waits.
        waits: Waits,
    },
    /// A send waits until there is room. No answer comes but [`CallFailure::Deadlock`]; [`ToWorker::Gate`] ends it.
    AwaitRoom {
        /// A number for this wait, as for a call.
        call: CallId,
        /// Where there is none.
        to: Address,
        /// What is to be sent.
        method: String,
        /// Who waits.
        waits: Waits,
    },
    /// An arena for large buffers; its descriptor comes with this frame.
    Arena {
        /// The worker's number for it.
        arena: u64,
        /// Bytes.
        size: u64,
    },
    /// The arena is not used any more.
    ArenaGone {
        /// Which.
        arena: u64,
    },
    /// Buffers that were handed over are not looked at any more.
    Released {
        /// Which leases.
        leases: Vec<u64>,
    },
    /// A request to the supervisor itself; payload: the content of a message that is to be sent later.
    Request {
        /// Chosen by the worker, repeated in the answer.
        request: RequestId,
        /// What is asked.
        body: ProcessRequest,
    },
    /// A record of the `logging` module.
    Log(LogRecord),
    /// The final report, sent right before the process ends.
    Exit {
        /// Why it ends.
        reason: ExitReason,
        /// The message whose handler has failed, if that is why.
        message: Option<Seq>,
    },
    /// Hand over so many messages more than usual: what is looked for is not among those that were.
    WantMore {
        /// How many.
        more: u64,
    },
    /// The state for the next process of this incarnation: the answer to [`ToWorker::Recycle`] and [`ToWorker::Move`]. The
    /// descriptor of the memory that it is in comes with this frame.
    HandOver {
        /// Whether `init` runs in the next process, too, before the state is taken over.
        runs_init: bool,
        /// How long it has taken no mail for that, in microseconds.
        took_us: u64,
    },
    /// The state cannot be moved to another process: this one goes on.
    CannotMove {
        /// Why not.
        why: String,
        /// Whether a hook has failed, rather than that the state is of a sort that does not move.
        is_failure: bool,
    },
    /// Whether the actor is ready for what it is there for, as it sees it; until it says so, it is.
    Readiness {
        /// Why it is not; `None`: it is.
        not_ready: Option<String>,
    },
}

/// How `init` ended when it did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Started {
    /// The actor serves.
    Ready,
    /// The same; it is a function, and takes its own mail.
    Function,
    /// It does not want to run; its process ends by itself now.
    Ignore,
}

/// The head of a message on its way to the supervisor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope {
    /// For whom.
    pub to: Address,
    /// What it is.
    pub kind: Kind,
    /// What is known of it everywhere.
    pub head: Head,
    /// Where its large buffers are, if it has any.
    pub buffers: Option<Buffers>,
}

/// Where large buffers of a payload are, on their way to the supervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Buffers {
    /// The memory.
    pub from: Memory,
    /// How many bytes of it they take; counted as part of the message.
    pub bytes: u64,
}

/// Memory that a worker has and passes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Memory {
    /// An arena of its own.
    Arena(u64),
    /// What was handed to it, and is still held.
    Lease(u64),
}

/// Memory that is handed to a worker. The descriptor comes with the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// Its number in this process, for [`ToSupervisor::Released`].
    pub lease: u64,
    /// Bytes that may be mapped.
    pub size: u64,
}

/// The head of a message handed to a worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delivery {
    /// Its number in this process; the mark on the status page carries it.
    pub seq: Seq,
    /// Who waits for the answer, if it is a call.
    pub reply_to: Option<ReplyTo>,
    /// What is known of it everywhere.
    pub head: Head,
    /// Which delivery of this message it is, from 1.
    pub delivery: u32,
    /// The label of the sender.
    pub sender: String,
    /// Where its large buffers are, if it has any.
    pub buffers: Option<Lease>,
}

/// The head of an answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    /// To whom, and to which call.
    pub to: ReplyTo,
    /// How it went.
    pub outcome: Outcome,
    /// The message that is done with this answer, if it is the one in hand.
    pub done: Option<Done>,
    /// Whether the actor ends with it: it is passed on when the actor has ended, and its name is free (GEN-012).
    pub is_last: bool,
    /// Where the large buffers of the answer are, if it has any.
    pub buffers: Option<Buffers>,
}

/// A message that is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// Which.
    pub seq: Seq,
    /// How long its handler took, in microseconds; `None` if none ran.
    pub took_us: Option<u32>,
}

impl From<Seq> for Done {
    fn from(seq: Seq) -> Self {
        Done { seq, took_us: None }
    }
}
