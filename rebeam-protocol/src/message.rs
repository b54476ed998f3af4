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
use crate::process::Registry;

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
    /// End without `terminate`: an exit signal came and is not trapped (MAP-04).
    Exit,
    /// Hand your state over and end, to go on in a new process.
    Recycle,
    /// Nobody waits for the answer to this message any more: drop it if it was not begun, cancel its handler if that is
    /// one that can be.
    Cancel {
        /// Which message.
        seq: Seq,
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
        answer: Answer,
    },
    /// Whether there is room in the mailbox of an address that this worker sent to.
    Gate {
        /// The address as the worker wrote it.
        to: Address,
        /// What the next send is to do.
        gate: Gate,
    },
    /// Log from this of `logging`'s numbers on.
    LogLevel {
        /// The number.
        level: u16,
    },
    /// The stacks that it has written were read: the next may be written over them.
    StacksTaken,
}

/// Whether there is room in a mailbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Gate {
    /// Send.
    Open,
    /// Wait first.
    Shut,
    /// Fail at once.
    Refused,
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
        body: Request,
    },
    /// A record of the `logging` module.
    Log(LogRecord),
    /// The final report, sent right before the process ends.
    Exit(ExitReason),
    /// Hand over so many messages more than usual: what is looked for is not among those that were.
    WantMore {
        /// How many.
        more: u64,
    },
    /// The final report of a process that is recycled; payload: the state that it hands over.
    HandOver,
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
    /// Whoever holds a key of a registry of the tree.
    Via {
        /// The registry's name.
        registry: String,
        /// The key, an encoded [`crate::value::Value`].
        key: Vec<u8>,
    },
    /// Every member of this group; for what nobody answers.
    Group(String),
}

/// What a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// An answer is waited for.
    Call {
        /// The caller's number for it.
        call: CallId,
        /// Who waits for the answer.
        waits: Waits,
    },
    /// No answer; for a method, or for `handle_cast`.
    Cast,
    /// No answer; for `handle_info`.
    Info,
}

/// Who can do nothing else until an answer comes. Deadlocks are looked for between those.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Waits {
    /// Nobody that we know of: a thread of its own, or nobody yet.
    #[default]
    Nobody,
    /// The handler of this message, while others of its actor go on; none of this actor's calls is meant if the caller
    /// of that message may be answered by somebody else.
    Handler {
        /// Which message it has in hand.
        message: Seq,
        /// Whether the answer to that message was put off.
        is_deferred: bool,
    },
    /// The whole actor: its one thread.
    Actor {
        /// Which message it has in hand, if it is not in `init`, `terminate` or the like.
        message: Option<Seq>,
        /// Whether the answer to that message was put off.
        is_deferred: bool,
    },
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
    /// A message became a dead letter, to an actor that subscribed to them.
    DeadLetter(DeadLetter),
    /// An entry under a key that this actor watches.
    Entry {
        /// The watch's number.
        watch: u64,
        /// Where.
        registry: Registry,
        /// The key.
        key: Vec<u8>,
        /// Who.
        holder: Pid,
        /// Its value, which only workers understand, if the entry is there from now on; `None`: it is gone.
        value: Option<Vec<u8>>,
    },
}

impl Signal {
    /// Whether it comes of the monitor or watch with this number.
    pub fn is_of(&self, number: u64) -> bool {
        match self {
            Signal::Down { monitor, .. } => *monitor == number,
            Signal::Entry { watch, .. } => *watch == number,
            Signal::Exit { .. } | Signal::DeadLetter(_) => false,
        }
    }
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
    /// Where its large buffers are, if it has any.
    pub buffers: Option<Buffers>,
    /// Trace context.
    pub trace: Option<Trace>,
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
    /// Where its large buffers are, if it has any.
    pub buffers: Option<Lease>,
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
    pub done: Option<Done>,
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
    /// It closes a cycle of actors that wait for each other.
    Deadlock {
        /// Who waits for whom, as it reads, this call first.
        cycle: Vec<String>,
    },
    /// The callee is between two lives, and takes no calls then.
    Restarting {
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

impl CallFailure {
    /// A word for it.
    pub fn word(&self) -> &'static str {
        match self {
            CallFailure::NoProc { .. } => "noproc",
            CallFailure::Died(_) => "died",
            CallFailure::TimedOut(_) => "timed out",
            CallFailure::Deadlock { .. } => "deadlock",
            CallFailure::Restarting { .. } => "restarting",
            CallFailure::MailboxFull { .. } => "mailbox full",
            CallFailure::BadCall(_) => "bad call",
            CallFailure::BadResult(_) => "bad result",
        }
    }
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

/// A message that nobody handled and nobody will.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadLetter {
    /// Counts up within a node.
    pub id: u64,
    /// For whom it was: a name or a path, or the address as it was written if nobody had it.
    pub to: String,
    /// From whom.
    pub sender: String,
    /// The method.
    pub method: String,
    /// Why.
    pub cause: Cause,
    /// When, in milliseconds of the node's life.
    pub at_ms: u64,
    /// How often it was handed over.
    pub deliveries: u32,
    /// Bytes of its content, large buffers included.
    pub bytes: u64,
    /// Whether the content is kept, and so can be sent again.
    pub is_kept: bool,
    /// The deaths with it in hand, or the death that made it one; oldest first.
    pub certificates: Vec<Certificate>,
}

/// Why a message became a dead letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cause {
    /// Its handler raised, and the actor ended.
    Failed,
    /// Its receiver was killed with it in hand: how much of it was done is unknown.
    OutcomeUnknown,
    /// It was in hand at as many deaths as it may be.
    Poison,
    /// Its receiver is gone for good.
    ReceiverGone,
    /// It was for an incarnation that has ended.
    PidDead,
    /// Nobody has that name or pid.
    Nobody,
    /// There was no room, and the mailbox drops.
    Overflow,
    /// Its receiver keeps no mail over a restart.
    NotKept,
}

impl Cause {
    /// As data shows it.
    pub fn word(self) -> &'static str {
        match self {
            Cause::Failed => "failed",
            Cause::OutcomeUnknown => "outcome_unknown",
            Cause::Poison => "poison",
            Cause::ReceiverGone => "receiver_gone",
            Cause::PidDead => "pid_dead",
            Cause::Nobody => "nobody",
            Cause::Overflow => "overflow",
            Cause::NotKept => "not_kept",
        }
    }

    /// As a sentence goes on after "is lost:".
    pub fn words(self) -> &'static str {
        match self {
            Cause::Failed => "its handler raised",
            Cause::OutcomeUnknown => "it was in hand when its receiver was killed; how much of it was done is unknown",
            Cause::Poison => "it was in hand at as many deaths as it may be",
            Cause::ReceiverGone => "its receiver is down for good",
            Cause::PidDead => "it was for an incarnation that has ended",
            Cause::Nobody => "nobody is there",
            Cause::Overflow => "the mailbox is full, and drops",
            Cause::NotKept => "its receiver keeps no mail over a restart",
        }
    }
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
    /// What the record was given besides (`extra=…`), as a JSON object, if anything.
    pub extra: Option<String>,
}

impl LogRecord {
    /// The word for its level.
    pub fn level_word(&self) -> &'static str {
        match self.level {
            0..=19 => "debug",
            20..=29 => "info",
            30..=39 => "warning",
            40..=49 => "error",
            _ => "critical",
        }
    }
}
