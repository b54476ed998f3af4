//! Messages between actors: what is known of one wherever it is, how a call ends, what becomes of what nobody handled.
//!
//! It must not know how a message travels: the frames that carry it stand in [`crate::worker`].

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::address::Registry;
use crate::certificate::Certificate;
use crate::exit::{ExitReason, Raised};
use crate::id::{CallId, Pid, Seq};
use crate::state::MemberState;

/// What is known of a message wherever it is: on its way to the supervisor, in a mailbox, on its way to its receiver.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// The method asked for.
    pub method: String,
    /// What the payload is.
    pub form: Form,
    /// How the payload is coded, and the answer is to be.
    pub codec: Codec,
    /// Which lane it waits in.
    pub lane: Lane,
    /// Time left until nobody waits any more, in milliseconds from when this was written; `None`: no limit.
    pub deadline_ms: Option<u64>,
    /// Trace context: of the sender on its way to the supervisor, of the handler on its way to the receiver.
    pub trace: Option<Box<Trace>>,
}

/// What somebody who has iterated over a stream says last. Nobody misses it.
pub const STREAM_CLOSE: &str = "stream_close";

impl Head {
    /// Whether nobody is told if it is not handled: a notice of the supervisor's, or the close of a stream, is about an
    /// incarnation, and pointless without it.
    pub fn is_pointless_alone(&self) -> bool {
        match self.form {
            Form::Signal(_) => true,
            Form::Message => self.method == STREAM_CLOSE,
            Form::Arguments => false,
        }
    }

    /// Of a message to a method, with pickled arguments, in turn, without a deadline.
    pub fn new(method: impl Into<String>) -> Self {
        Head {
            method: method.into(),
            form: Form::Arguments,
            codec: Codec::Pickle,
            lane: Lane::Normal,
            deadline_ms: None,
            trace: None,
        }
    }
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
        certificate: Option<Arc<Certificate>>,
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
    /// Rows of a table that this actor watches.
    Rows {
        /// The watch's number.
        watch: u64,
        /// The table's key in the ledger.
        key: Vec<u8>,
        /// Encoded [`RowChanges`](crate::table::RowChanges); empty: whatever may have changed.
        changes: Vec<u8>,
    },
    /// This actor owns a table from now on: it was given away, or its owner has ended (ETS-006).
    Table {
        /// Its key in the ledger.
        key: Vec<u8>,
        /// Whose it was.
        from: Pid,
        /// What was to be said with it, which only workers understand.
        data: Vec<u8>,
    },
}

impl Signal {
    /// About how many bytes of memory it takes beside the message that it is in.
    pub fn size(&self) -> usize {
        let told = |certificate: &Arc<Certificate>| certificate.size();
        match self {
            Signal::Down { certificate, .. } => certificate.as_ref().map_or(0, told),
            Signal::Exit { .. } => 0,
            Signal::DeadLetter(letter) => letter.size(),
            Signal::Entry { key, value, .. } => key.len() + value.as_ref().map_or(0, Vec::len),
            Signal::Rows { key, changes, .. } => key.len() + changes.len(),
            Signal::Table { key, data, .. } => key.len() + data.len(),
        }
    }

    /// Whether it comes of the monitor or watch with this number.
    pub fn is_of(&self, number: u64) -> bool {
        match self {
            Signal::Down { monitor, .. } => *monitor == number,
            Signal::Entry { watch, .. } | Signal::Rows { watch, .. } => *watch == number,
            Signal::Exit { .. } | Signal::DeadLetter(_) | Signal::Table { .. } => false,
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
    Died {
        /// What is known about its end.
        certificate: Arc<Certificate>,
        /// Whether its handler had begun: what was not begun can be asked again.
        begun: bool,
    },
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
            CallFailure::Died { .. } => "died",
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
    /// The state it was in.
    pub state: MemberState,
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
    pub certificates: Vec<Arc<Certificate>>,
}

impl DeadLetter {
    /// About how many bytes of memory it takes, without the content of the message.
    pub fn size(&self) -> usize {
        let certificates = self.certificates.iter().map(|certificate| certificate.size()).sum::<usize>();
        size_of::<Self>() + self.to.len() + self.sender.len() + self.method.len() + certificates
    }
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
    /// It is larger than a frame may be, with what its receiver is told beside it.
    TooLarge,
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
            Cause::TooLarge => "too_large",
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
            Cause::TooLarge => "it is too large to be handed over",
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
