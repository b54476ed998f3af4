//! What a client of the control socket may ask of a node: the command line, `rebeam.connect()`, tests.
//!
//! Nothing here is ever a pickle, and nothing of what workers say to the supervisor is here: it has a version of its own.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::address::Registry;
use crate::certificate::{Certificate, Next};
use crate::handshake::MAGIC;
use crate::id::{Pid, Version};
use crate::message::{DeadLetter, Outcome};
use crate::process::ChildError;
use crate::state::MemberState;
use crate::zygote::LoadError;

/// The version of what stands in this module. It changes on its own: a client may be older than the node.
pub const VERSION: u32 = 3;

/// The first frame each way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`MAGIC`].
    pub magic: u32,
    /// [`VERSION`].
    pub version: u32,
}

impl Hello {
    /// Of this version.
    pub fn new() -> Self {
        Hello { magic: MAGIC, version: VERSION }
    }

    /// Checks the first frame of the other side.
    ///
    /// # Errors
    /// A text that says what is wrong.
    pub fn check(&self) -> Result<(), String> {
        if self.magic != MAGIC {
            Err("the first frame is not a handshake".into())
        } else if self.version != VERSION {
            let versions = format!("it speaks version {} of the control protocol, expected {VERSION}", self.version);
            Err(format!("{versions}: use the `rebeam` of the node's own environment"))
        } else {
            Ok(())
        }
    }
}

impl Default for Hello {
    fn default() -> Self {
        Hello::new()
    }
}

/// A request with the client's number for it. Requests may follow one another without waiting for answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asked {
    /// Chosen by the client, repeated in the answer.
    pub number: u64,
    /// What is asked.
    pub request: Request,
}

/// An answer. It comes when it is ready, whatever was asked before or after.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Answered {
    /// The number of the request.
    pub number: u64,
    /// Whether no more answers to this request come; a subscription has many.
    pub is_last: bool,
    /// The answer.
    pub answer: Answer,
}

/// A request. The payload behind [`Request::Call`], [`Request::Cast`] and [`Request::Gateway`] is a plain
/// [`crate::value::Value`]: a tuple of a list of positional and a dictionary of keyword arguments.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Who are you?
    Node,
    /// Every child of every supervisor, in tree order.
    List,
    /// Call a method by name.
    Call {
        /// The actor's name.
        name: String,
        /// The method.
        method: String,
        /// How long to wait, in milliseconds.
        timeout_ms: u64,
    },
    /// Cast to a method by name.
    Cast {
        /// The actor's name.
        name: String,
        /// The method.
        method: String,
    },
    /// Open a streamed answer; the payload is a plain value, as `rebeam._stream` has it. It is closed when the client goes.
    StreamOpen {
        /// The actor's name.
        name: String,
        /// How long to wait, in milliseconds.
        timeout_ms: u64,
    },
    /// More of it.
    StreamNext {
        /// The incarnation that has opened it.
        pid: Pid,
        /// How long to wait, in milliseconds.
        timeout_ms: u64,
    },
    /// Call a method of the client's own gateway, an actor that is started for it and ends with it.
    Gateway {
        /// The method.
        method: String,
        /// How long to wait, in milliseconds.
        timeout_ms: u64,
    },
    /// How the node is.
    Health,
    /// What actors do right now, by their Python stacks.
    Stacks {
        /// Of whom, by name or path; `None`: of all.
        name: Option<String>,
    },
    /// What the tree itself answers.
    Tree(TreeRequest),
    /// Import the application anew, and have the actors whose code has changed go over to it.
    Reload,
}

/// A request to the tree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TreeRequest {
    /// Stop a child; its spec stays (OTP's `terminate_child`).
    Stop {
        /// Name or path.
        name: String,
    },
    /// Stop a child if it runs, and start it.
    Restart {
        /// Name or path.
        name: String,
    },
    /// Stop the node.
    Down,
    /// The last deaths of an actor, oldest first.
    Why {
        /// Name or path.
        name: String,
    },
    /// About messages that nobody handled.
    DeadLetters(DeadLetters),
    /// Every entry of a registry.
    Entries(Registry),
    /// Have an actor log from this level on, over its restarts too.
    LogLevel {
        /// Name or path.
        name: String,
        /// `logging`'s number.
        level: u16,
    },
}

/// A request about dead letters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeadLetters {
    /// All that are kept, without certificates; oldest first.
    List,
    /// One, whole; the payload of the answer is its content.
    Show(u64),
    /// Send them again, as casts; those that cannot be sent stay.
    Replay(Which),
    /// Forget them.
    Drop(Which),
}

/// Which dead letters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Which {
    /// All.
    All,
    /// Those with these numbers.
    Ids(Vec<u64>),
    /// Those that were for this actor.
    To(String),
}

/// An answer. The payload behind [`Answer::Outcome`] is the result.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Answer {
    /// Done.
    Ok,
    /// About the node.
    Node(NodeInfo),
    /// One entry per child, in tree order.
    List(Vec<ChildInfo>),
    /// How a call went.
    Outcome(Outcome),
    /// The last deaths, each with what followed.
    Why(Vec<(Arc<Certificate>, Next)>),
    /// Nobody has that name; with names that look like it.
    NotFound {
        /// What was asked for.
        name: String,
        /// Names that look like it.
        similar: Vec<String>,
    },
    /// It was tried and failed.
    Failed {
        /// What was asked.
        what: String,
        /// Why not.
        reason: ChildError,
    },
    /// The request makes no sense here.
    Refused(String),
    /// Dead letters, oldest first, and how many more there were than are kept.
    DeadLetters {
        /// What is kept.
        letters: Vec<DeadLetter>,
        /// How many were forgotten for want of room.
        forgotten: u64,
    },
    /// So many were dealt with.
    Count(u64),
    /// Entries, by key; `None`: there is no such registry.
    Entries(Option<Vec<EntryInfo>>),
    /// How the node is.
    Health(Health),
    /// What became of a reload; `None`: no code has changed.
    Reloaded(Option<Reloaded>),
    /// The new code could not be imported: the old goes on.
    NotReloaded(LoadError),
    /// The actor's label, and its stacks or why they cannot be had.
    Stacks(Vec<(String, Result<String, String>)>),
}

/// How a node is: what readiness probes ask for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// `starting`, `up` or `stopping`.
    pub state: NodeState,
    /// What is wrong, in tree order.
    pub troubles: Vec<Trouble>,
}

impl Health {
    /// Whether it is up, and nothing is wrong.
    pub fn is_ready(&self) -> bool {
        self.state == NodeState::Up && self.troubles.is_empty()
    }
}

/// Where a node is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeState {
    /// The tree is coming up.
    Starting,
    /// It is up.
    Up,
    /// It is being stopped.
    Stopping,
}

impl NodeState {
    /// A word for it.
    pub fn word(self) -> &'static str {
        match self {
            NodeState::Starting => "starting",
            NodeState::Up => "up",
            NodeState::Stopping => "stopping",
        }
    }
}

/// Why a node is not ready.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trouble {
    /// Whose trouble: name or path.
    pub actor: String,
    /// What sort.
    pub kind: TroubleKind,
    /// More about it, in words.
    pub detail: String,
}

/// A sort of trouble.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TroubleKind {
    /// It has used up its restarts, and waits for somebody to start it.
    Parked,
    /// It has no running incarnation for some time.
    Down,
    /// It has had a message in hand for longer than it may.
    Hung,
    /// A message waits too long.
    OldMessage,
    /// It says so itself.
    NotReady,
}

/// What became of a reload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reloaded {
    /// The version of the code that the node runs now.
    pub version: Version,
    /// Members of the tree that this was about, by name or path.
    pub changes: Vec<Change>,
}

/// What a reload was to one member of the tree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Its name or path.
    pub actor: String,
    /// Its class.
    pub class: String,
    /// What became of it.
    pub fate: Fate,
}

/// What became of a member of the tree in a reload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fate {
    /// New code has taken over its state and its mail.
    Moved {
        /// For how long it took no mail, in microseconds.
        still_us: u64,
    },
    /// It has started over with the new code.
    StartedOver {
        /// For how long it took no mail, in microseconds.
        still_us: u64,
        /// Why its state could not be moved; `None`: its class says that it is not to be, or it is a function.
        why: Option<String>,
    },
    /// Something has failed: it stays as it is.
    Failed {
        /// What.
        what: Failure,
        /// The traceback, or the reason.
        why: String,
    },
    /// It stays with its code.
    Stays {
        /// Why.
        why: String,
    },
    /// It is new in the tree.
    Added,
    /// It is not in the tree any more.
    Removed,
    /// The tree declares it otherwise: it has started over.
    Respecified,
}

/// What has failed in a reload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Failure {
    /// The new code, as it took over or soon after.
    NewCode,
    /// The old code, as it handed over its state.
    OldCode,
    /// The start of a child that is new in the tree.
    Start,
}

/// One entry of a registry, as `rebeam names` and `rebeam groups` show it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EntryInfo {
    /// Its key as it reads.
    pub key: String,
    /// Its holder's name or path.
    pub holder: String,
    /// Its holder.
    pub pid: Pid,
    /// What its holder is.
    pub kind: MemberKind,
}

/// About the node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeInfo {
    /// The program's version.
    pub version: String,
    /// The supervisor's process.
    pub os_pid: u32,
    /// The project directory.
    pub project: String,
    /// What it runs.
    pub target: String,
    /// The version of its code.
    pub code: Version,
    /// Since when, in milliseconds.
    pub age_ms: u64,
}

/// What a member of the tree is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MemberKind {
    /// An actor of this module and class.
    Actor(String),
    /// A supervisor.
    Supervisor(SupervisorSort),
}

impl MemberKind {
    /// Whether it is an actor.
    pub fn is_actor(&self) -> bool {
        matches!(self, MemberKind::Actor(_))
    }
}

/// What a supervisor does with its children.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SupervisorSort {
    /// Restarts the one that ended.
    OneForOne,
    /// Restarts all of them.
    OneForAll,
    /// Restarts it and those after it.
    RestForOne,
    /// Has children that come and go.
    Dynamic,
    /// Has copies of one child.
    Partition,
    /// Is a registry.
    Registry,
    /// Is a table.
    Table,
}

impl SupervisorSort {
    /// The word for it, as in Python.
    pub fn word(self) -> &'static str {
        match self {
            SupervisorSort::OneForOne => "one_for_one",
            SupervisorSort::OneForAll => "one_for_all",
            SupervisorSort::RestForOne => "rest_for_one",
            SupervisorSort::Dynamic => "dynamic",
            SupervisorSort::Partition => "partition",
            SupervisorSort::Registry => "registry",
            SupervisorSort::Table => "table",
        }
    }
}

/// One child of a supervisor, as `rebeam ps` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChildInfo {
    /// Its path in the tree, the root's id left out: `pool/parser-1`.
    pub id: String,
    /// Its registered name.
    pub name: Option<String>,
    /// What it is.
    pub kind: MemberKind,
    /// What it is doing.
    pub state: MemberState,
    /// Its incarnation.
    pub pid: Option<Pid>,
    /// Its process, while it has one.
    pub os_pid: Option<u32>,
    /// The version of the code that its process runs, while it has one.
    pub code: Option<Version>,
    /// How often it was started again.
    pub restarts: u32,
    /// Messages that wait: in the mailbox, or handed over and not begun.
    pub waiting: u64,
    /// How long this incarnation has lived, in milliseconds.
    pub age_ms: Option<u64>,
    /// How deep in the tree, from 0.
    pub depth: u32,
    /// Resident memory, shared pages included, in KiB; filled in by the shell.
    pub memory_kib: Option<u64>,
    /// The method in hand, and since how many milliseconds.
    pub busy: Option<(String, u64)>,
    /// Calls that were dropped before they were handed over, because nobody waited for them any more.
    pub expired: u64,
}
