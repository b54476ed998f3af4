//! Requests to the supervisor itself and their answers: the control socket's, and those that workers may ask too.

use serde::{Deserialize, Serialize};

use crate::certificate::Certificate;
use crate::id::{ActorId, Pid};
use crate::ledger::key_label;
use crate::message::{Address, DeadLetter, Outcome};
use crate::process::{ChildError, ProcessAnswer, ProcessRequest, Registry};

/// A request. On the control socket the payload behind [`Request::Call`] and [`Request::Cast`] is a plain
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
    /// Stop a child; its spec stays (OTP's `terminate_child`).
    StopChild {
        /// Name or path.
        name: String,
    },
    /// Stop a child if it runs, and start it.
    RestartChild {
        /// Name or path.
        name: String,
    },
    /// Stop the node.
    Down,
    /// Who has this name?
    Whereis {
        /// The name.
        name: String,
    },
    /// The last deaths of an actor, oldest first.
    Why {
        /// Name or path.
        name: String,
    },
    /// What only an actor may ask.
    Process(ProcessRequest),
    /// About messages that nobody handled.
    DeadLetters(DeadLetters),
    /// Every entry of a registry.
    Entries(Registry),
    /// How the node is.
    Health,
    /// Have an actor log from this level on, over its restarts too.
    LogLevel {
        /// Name or path.
        name: String,
        /// `logging`'s number.
        level: u16,
    },
    /// What actors do right now, by their Python stacks.
    Stacks {
        /// Of whom, by name or path; `None`: of all.
        name: Option<String>,
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
    /// Who holds the name.
    Whereis(Option<Whereabouts>),
    /// The last deaths.
    Why(Vec<Certificate>),
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
    /// To a [`Request::Process`].
    Process(ProcessAnswer),
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

/// One entry of a registry, as `rebeam names` and `rebeam groups` show it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EntryInfo {
    /// Its key as it reads.
    pub key: String,
    /// Its holder's name or path.
    pub holder: String,
    /// Its holder.
    pub pid: Pid,
    /// Module and class; the strategy of a supervisor.
    pub class: String,
}

/// Who holds a name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Whereabouts {
    /// The actor.
    pub actor: ActorId,
    /// Its living incarnation, if there is one.
    pub pid: Option<Pid>,
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
    /// Since when, in milliseconds.
    pub age_ms: u64,
}

/// One child of a supervisor, as `rebeam ps` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChildInfo {
    /// Its path in the tree, the root's id left out: `pool/parser-1`.
    pub id: String,
    /// Its registered name.
    pub name: Option<String>,
    /// Whether it is a supervisor.
    pub supervisor: bool,
    /// `starting`, `running`, `stopping`, `restarting` or `stopped`.
    pub state: String,
    /// Module and class; the strategy of a supervisor.
    pub class: String,
    /// Its incarnation.
    pub pid: Option<Pid>,
    /// Its process, while it has one.
    pub os_pid: Option<u32>,
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

/// The name of a node's socket where there is no directory to put one: in Linux's abstract namespace. `namespace` is that of
/// process ids, since several containers may share a network; the last part is that of the node's directory.
pub fn abstract_socket(uid: u32, namespace: &str, node: &str) -> String {
    format!("rebeam/{uid}/{namespace}/{node}")
}

/// The name of an address for people.
pub fn address_label(to: &Address) -> String {
    match to {
        Address::Name(name) => name.clone(),
        Address::Actor(id) => format!("actor {}", id.0),
        Address::Pid(pid) => pid.to_string(),
        Address::Partition { name, .. } => name.clone(),
        Address::Via { registry, key } => format!("{registry}[{}]", key_label(key)),
        Address::Group(name) => format!("group {name}"),
    }
}
