//! What a worker and the supervisor say, one enum per direction.
//!
//! Payloads (pickles, plain values) are not in these types: they follow the header in the same frame (see
//! [`crate::frame`]), and the supervisor never looks into them.

use serde::{Deserialize, Serialize};

use crate::certificate::Certificate;
use crate::control::{Answer, Request};
use crate::exit::{ExitReason, Raised};
use crate::handshake::{Hello, Welcome};
use crate::id::{ActorId, CallId, Pid, RequestId, Seq};

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
    },
    /// End yourself with this reason, after `terminate`.
    Stop {
        /// The reason to end with.
        reason: ExitReason,
        /// Before what waits (a group restart) rather than in turn (a final stop).
        urgent: bool,
    },
    /// End without `terminate`: an exit signal came and is not trapped (MAP-04).
    Exit,
    /// Hand your state over and end, to go on in a new process.
    Recycle,
    /// The answer to a request to the supervisor itself; payload: what a child's `init` handed back, if it is asked for.
    Answer {
        /// Which request.
        request: RequestId,
        /// The answer.
        answer: Answer,
    },
    /// Whether there is room in the mailbox of an address that this worker sent to.
    Gate {
        /// The address as the worker wrote it.
        to: Address,
        /// False: wait before the next send; true: go on.
        open: bool,
    },
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
        done: Vec<Seq>,
    },
    /// The caller's deadline has passed: drop the call if it was not begun, and say what the callee does.
    Abandon {
        /// Which call.
        call: CallId,
    },
    /// A request to the supervisor itself; payload: the content of a message that is to be sent later.
    Request {
        /// Chosen by the worker, repeated in the answer.
        request: RequestId,
        /// What is asked.
        body: Request,
    },
    /// A record of the `logging` module.
    Log(LogRecord),
    /// The final report, sent right before the process ends.
    Exit(ExitReason),
    /// Hand over so many messages more than usual: what is looked for is not among those that were. From now on the
    /// worker acknowledges each message before it begins the next, so that no two share a mark.
    WantMore {
        /// How many.
        more: u64,
    },
    /// The final report of a process that is recycled; payload: the state that it hands over.
    HandOver,
}

/// How `init` ended when it did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Started {
    /// The actor serves.
    Ready,
    /// It does not want to run; its process ends by itself now.
    Ignore,
}

/// Who a message is for.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Address {
    /// Whoever holds this name; waits for the next incarnation.
    Name(String),
    /// This actor in whichever incarnation.
    Actor(ActorId),
    /// This incarnation and no other.
    Pid(Pid),
    /// The copy that a key falls to, of the partition supervisor with this name.
    Partition {
        /// The supervisor's name.
        name: String,
        /// A whole number that stands for the key.
        key: u64,
    },
}

/// What a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// An answer is waited for.
    Call {
        /// The caller's number for it.
        call: CallId,
        /// Whether the calling handler can do nothing else meanwhile (deadlocks are looked for between such calls).
        blocking: bool,
    },
    /// No answer; for a method, or for `handle_cast`.
    Cast,
    /// No answer; for `handle_info`.
    Info,
}

/// What the payload of a message is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Form {
    /// The arguments of a method.
    Arguments,
    /// A message of free form, for `handle_call`, `handle_cast` or `handle_info`.
    Message,
    /// Nothing: the supervisor says this itself. Never from a worker.
    Signal(Box<Signal>),
}

/// What the supervisor tells an actor about others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Signal {
    /// A monitored incarnation has ended.
    Down {
        /// The monitor's number.
        monitor: u64,
        /// Who; `None` if nobody was there.
        pid: Option<Pid>,
        /// Why.
        reason: ExitReason,
        /// What is known about its end.
        certificate: Option<Box<Certificate>>,
    },
    /// An exit signal, from a link or sent by hand, to an actor that traps exits.
    Exit {
        /// From whom.
        pid: Pid,
        /// Why.
        reason: ExitReason,
    },
}

/// Which queue of a mailbox.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Lane {
    /// Before everything, and while suspended too: what is asked of the actor's process rather than of the actor.
    System,
    /// Overtakes normal mail, nothing else.
    High,
    /// In turn.
    #[default]
    Normal,
}

/// How a payload is coded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Codec {
    /// Pickle protocol 5: only ever between workers of one tree.
    Pickle,
    /// A plain [`crate::value::Value`]: what comes from outside, and answers to it.
    Data,
}

/// The trace context of W3C, carried and not interpreted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trace {
    /// Trace id.
    pub trace: u128,
    /// The parent span.
    pub span: u64,
    /// Flags, bit 0: sampled.
    pub flags: u8,
}

/// The head of a message on its way to the supervisor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope {
    /// For whom.
    pub to: Address,
    /// What it is.
    pub kind: Kind,
    /// The method asked for.
    pub method: String,
    /// What the payload is.
    pub form: Form,
    /// How the payload is coded.
    pub codec: Codec,
    /// Which lane it waits in.
    pub lane: Lane,
    /// Time left until nobody waits any more, in milliseconds from when it was sent; `None`: no limit.
    pub deadline_ms: Option<u64>,
    /// The message that the sending handler has in hand, if it is sent from a handler.
    pub parent: Option<Seq>,
    /// Trace context.
    pub trace: Option<Trace>,
}

/// The head of a message handed to a worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delivery {
    /// Its number in this process; the mark on the status page carries it.
    pub seq: Seq,
    /// Who waits for the answer, if it is a call.
    pub reply_to: Option<ReplyTo>,
    /// The method asked for.
    pub method: String,
    /// What the payload is.
    pub form: Form,
    /// How the payload is coded, and the answer is to be.
    pub codec: Codec,
    /// Which lane it waits in.
    pub lane: Lane,
    /// Time left until nobody waits any more, in milliseconds; `None`: no limit.
    pub deadline_ms: Option<u64>,
    /// Which delivery of this message it is, from 1.
    pub delivery: u32,
    /// The label of the sender.
    pub sender: String,
    /// Trace context.
    pub trace: Option<Trace>,
}

/// Where the answer to a call goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ReplyTo {
    /// Who called.
    pub caller: Caller,
    /// The caller's number for the call.
    pub call: CallId,
}

/// Who waits for an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Caller {
    /// An actor's incarnation.
    Actor(Pid),
    /// A client of the control socket, by connection number.
    Outside(u64),
}

/// The head of an answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    /// To whom, and to which call.
    pub to: ReplyTo,
    /// How it went.
    pub outcome: Outcome,
    /// The message that is done with this answer, if it is the one in hand.
    pub done: Option<Seq>,
}

/// How a call went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// The payload is the result.
    Returned(Codec),
    /// The handler raised; the payload is the exception, pickled, or empty if it could not be.
    Raised(Raised),
    /// The call never reached a handler, or its answer never came.
    Failed(CallFailure),
}

/// Why a call has no answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CallFailure {
    /// Nobody has that name or pid; with names that look like it.
    NoProc {
        /// What was called, as it reads.
        target: String,
        /// Names that look like it.
        similar: Vec<String>,
        /// There is such an actor, and it is down for good.
        is_down: bool,
    },
    /// The callee ended with the call in hand, or before it could take it.
    Died(Box<Certificate>),
    /// The deadline passed.
    TimedOut(Callee),
    /// The calling actor is the callee.
    CallingSelf {
        /// Its label.
        target: String,
    },
    /// The callee's mailbox is full.
    MailboxFull {
        /// Its label.
        target: String,
        /// How many messages wait in it.
        waiting: u64,
    },
    /// The arguments do not fit the method, or there is no such method: the callee was not harmed.
    BadCall(String),
    /// The result could not be encoded; the callee lives on.
    BadResult(String),
}

/// What a callee was doing when a call to it ran out of time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Callee {
    /// Its label.
    pub target: String,
    /// The state it was in, in a word.
    pub state: String,
    /// The method it has in hand, and since how many milliseconds.
    pub busy: Option<(String, u64)>,
    /// How many messages wait.
    pub waiting: u64,
}

/// One record of Python's `logging`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogRecord {
    /// Wall time, in milliseconds of the Unix epoch.
    pub time_ms: u64,
    /// `logging`'s number: 10 debug, 20 info, 30 warning, 40 error, 50 critical.
    pub level: u16,
    /// The logger's name.
    pub logger: String,
    /// The formatted message.
    pub message: String,
    /// The formatted exception, if there is one.
    pub exception: Option<String>,
}
