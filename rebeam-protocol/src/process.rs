//! What an actor may ask the supervisor about other actors, and about supervisors: OTP's process primitives and the
//! functions of its `supervisor` module. Pickles pass through some of these, so they are never asked from outside.

use serde::{Deserialize, Serialize};

use crate::address::{Address, Registry};
use crate::exit::ExitReason;
use crate::id::{ActorId, Pid};
use crate::message::Waits;
use crate::spec::ChildSpec;
use crate::table::{TableAnswer, TableRequest};

/// A request of an actor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProcessRequest {
    /// The incarnation behind an address.
    Resolve(Address),
    /// Ends this actor with that one, and the other way round.
    Link(Pid),
    /// Takes a link back.
    Unlink(Pid),
    /// Whether exit signals come as messages.
    TrapExits(bool),
    /// One message when an incarnation ends.
    Monitor(Address),
    /// Takes a monitor back.
    Demonitor {
        /// Its number.
        monitor: u64,
        /// Takes a message back, too, that waits in the mailbox.
        flush: bool,
    },
    /// An exit signal.
    Exit {
        /// To whom.
        to: Address,
        /// Why.
        reason: ExitReason,
    },
    /// SIGKILL.
    Kill {
        /// Whom.
        to: Address,
        /// Whether it is to write its stacks first, since it takes too long.
        is_hung: bool,
    },
    /// Stop, in turn; answered when it has ended.
    Stop {
        /// Whom.
        to: Address,
        /// The reason to end with.
        reason: ExitReason,
    },
    /// The actor that asks is about to stop because no message came. What comes from now on is not for this incarnation,
    /// unless there is mail already.
    StopIfIdle {
        /// The reason to end with.
        reason: ExitReason,
    },
    /// A message later, to the incarnation that is there now.
    SendAfter {
        /// The timer's number, chosen by whoever asks.
        timer: u64,
        /// To whom.
        to: Address,
        /// In how many milliseconds.
        after_ms: u64,
        /// Again and again, so many milliseconds apart.
        every_ms: Option<u64>,
        /// The method, or `handle_info`.
        method: String,
        /// Whether the payload is arguments of a method, rather than a message of free form.
        is_method: bool,
    },
    /// Takes a timer back.
    CancelTimer {
        /// Who set it.
        maker: Pid,
        /// Its number.
        timer: u64,
    },
    /// Something about a supervisor's children.
    Supervisor {
        /// Which supervisor.
        supervisor: Address,
        /// What.
        request: SupervisorRequest,
        /// Who waits for the answer.
        waits: Waits,
    },
    /// Start a child under the node's own dynamic supervisor.
    Spawn {
        /// What.
        child: Box<ChildSpec>,
        /// Whether it belongs to the actor that asks, and is stopped when that ends.
        is_owned: bool,
        /// Whether it is linked to the actor that asks before it runs.
        is_linked: bool,
        /// Who waits for the answer.
        waits: Waits,
    },
    /// Wait until there is a running incarnation behind an address; answered with none if there will never be, or if
    /// the time is over.
    WaitFor {
        /// Whom.
        to: Address,
        /// For so many milliseconds at most.
        timeout_ms: Option<u64>,
        /// Who waits for the answer.
        waits: Waits,
    },
    /// Something about the entries of a registry.
    Registry {
        /// Which registry.
        registry: Registry,
        /// What.
        request: RegistryRequest,
    },
    /// Something that the store of tables does; payload: what.
    Table(TableRequest),
    /// Whether a message comes for every dead letter.
    WatchDeadLetters(bool),
    /// Who has this name, alive or between two lives?
    Whereis(String),
    /// Stop the node.
    StopNode,
}

/// A request about entries. A key is an encoded [`crate::value::Value`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RegistryRequest {
    /// Make an entry; payload: its value.
    Enter {
        /// Under which key.
        key: Vec<u8>,
        /// For whom, if not for the actor that asks.
        who: Option<Address>,
    },
    /// Give the own entry another value; payload: that.
    Update {
        /// Under which key.
        key: Vec<u8>,
    },
    /// Take entries out: all under the key, or, in a group, the last one.
    Leave {
        /// Under which key.
        key: Vec<u8>,
        /// Whose, if not those of the actor that asks.
        who: Option<Address>,
    },
    /// Give a table to another actor; payload: what to say with it.
    Give {
        /// Which.
        key: Vec<u8>,
        /// To whom.
        to: Address,
    },
    /// Who is to have a table when its owner ends; payload: what to say with it.
    Heir {
        /// Which table.
        key: Vec<u8>,
        /// Whom; `None`: it ends with its owner.
        heir: Option<Address>,
    },
    /// The entries under a key.
    Look {
        /// Under which key.
        key: Vec<u8>,
    },
    /// The entries under a key, and a message for each change of them.
    Watch {
        /// Under which key.
        key: Vec<u8>,
    },
    /// A message whenever rows of a table change whose keys lie in a range. Answered by the store, as
    /// [`TableAnswer::Watching`], once it tells of all changes to come.
    WatchRows {
        /// Which table.
        key: Vec<u8>,
        /// The bytes of the first key.
        lower: Vec<u8>,
        /// Those of the key that is beyond them; `None`: there is none.
        upper: Option<Vec<u8>>,
    },
    /// No more messages of that watch, nor those that wait in the mailbox.
    Unwatch {
        /// Its number.
        watch: u64,
    },
    /// The member of a group for whom the fewest messages wait.
    LeastBusy {
        /// Which group.
        key: Vec<u8>,
    },
}

/// One entry of a registry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Who holds it.
    pub holder: Pid,
    /// Its value, which only workers understand.
    pub value: Vec<u8>,
}

/// Why a registry did not do what was asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RegistryError {
    /// There is no such registry, or it is not running.
    NoRegistry,
    /// The key is held, by this incarnation; `None`: by an actor that is between two lives.
    AlreadyRegistered(Option<Pid>),
    /// There is no such entry to leave or to change.
    NotRegistered,
    /// There is no such actor to be entered.
    NoProc,
    /// Others' entries in a registry are their own affair.
    NotYours,
    /// A key or a value is too large or none, or there are too many entries; in words.
    TooMuch(String),
}

/// A request about the children of one supervisor. Carried out in order of arrival (SUP-079).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SupervisorRequest {
    /// Start a child and append it.
    Start(Box<ChildSpec>),
    /// Stop a child.
    Terminate(ChildAddress),
    /// Start a stopped child.
    Restart(ChildAddress),
    /// Forget a stopped child.
    Delete(ChildAddress),
    /// Send a child an exit signal as its parent.
    Exit(ChildAddress, ExitReason),
    /// All children.
    Which,
    /// How many children.
    Count,
    /// The spec of a child.
    Spec(ChildAddress),
}

/// How a child is named to its supervisor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ChildAddress {
    /// By its id.
    Id(String),
    /// By its incarnation.
    Pid(Pid),
    /// By the actor.
    Actor(ActorId),
}

/// An answer to an actor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProcessAnswer {
    /// The answer is larger than a frame may be; the text says how large.
    TooLarge(String),
    /// Done.
    Ok,
    /// There is no such actor.
    NoProc,
    /// There is mail: nothing was done.
    MailWaits,
    /// An incarnation, if there is one.
    Pid(Option<Pid>),
    /// The number of a monitor.
    Monitor(u64),
    /// The answer would be waited for in a cycle, which reads so; nothing was done.
    Deadlock(Vec<String>),
    /// It ended for another reason than the one asked for.
    EndedWith(ExitReason),
    /// Milliseconds that a timer had left; `None` if there is no such timer any more.
    TimeLeft(Option<u64>),
    /// A child was started; the payload is what its `init` handed back.
    Started {
        /// The actor.
        actor: ActorId,
        /// Its incarnation; `None` if its `init` asked to be passed over.
        pid: Option<Pid>,
    },
    /// The children, in start order.
    Children(Vec<ChildEntry>),
    /// How many children there are.
    Counts(Counts),
    /// A child's spec.
    Spec(Box<ChildSpec>),
    /// A supervisor says no.
    Child(ChildError),
    /// The entries under a key, oldest first.
    Entries(Vec<Entry>),
    /// The same, with the number of the watch that begins with them.
    Watching {
        /// The number.
        watch: u64,
        /// What there is.
        entries: Vec<Entry>,
    },
    /// A registry says no.
    Registry(RegistryError),
    /// The store of tables answers.
    Table(TableAnswer),
    /// Who holds the name.
    Whereis(Option<Whereabouts>),
}

/// Who holds a name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Whereabouts {
    /// The actor.
    pub actor: ActorId,
    /// Its living incarnation, if there is one.
    pub pid: Option<Pid>,
}

/// One child, as its supervisor lists it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChildEntry {
    /// Its id; empty under a dynamic supervisor.
    pub id: String,
    /// The actor.
    pub actor: ActorId,
    /// Its incarnation, while it is alive.
    pub pid: Option<Pid>,
    /// Whether it is between two tries of a restart.
    pub is_restarting: bool,
    /// Whether it is a supervisor.
    pub is_supervisor: bool,
    /// Module and class.
    pub class: String,
}

/// How many children a supervisor has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// All specs.
    pub specs: u64,
    /// Alive now.
    pub active: u64,
    /// Supervisors, alive or not.
    pub supervisors: u64,
    /// Actors, alive or not.
    pub workers: u64,
}

/// Why a supervisor did not do what was asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ChildError {
    /// There is no such child.
    NotFound,
    /// The child runs already.
    Running,
    /// The child is between two tries of a restart; or whoever has its name is, or waits for its first start.
    Restarting,
    /// A child with that id runs already, or somebody has its name.
    AlreadyStarted(Pid),
    /// There is a child with that id or name, and it is stopped.
    AlreadyPresent,
    /// The child's start failed.
    StartFailed {
        /// The path of the child that did not start: the one that was asked for, or one below it.
        child: String,
        /// Why not.
        reason: ExitReason,
    },
    /// There are as many children as there may be.
    MaxChildren,
    /// This sort of supervisor cannot do that.
    Unsupported,
    /// The supervisor is ending.
    Ending,
    /// The spec makes no sense.
    BadSpec(String),
    /// The supervisor waits for the asking actor itself, and so would wait forever.
    WaitingForYou,
}

impl std::fmt::Display for ChildError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ChildError::NotFound => f.write_str("there is no such child"),
            ChildError::Running => f.write_str("it is running"),
            ChildError::Restarting => f.write_str("it is being restarted"),
            ChildError::AlreadyStarted(pid) => write!(f, "a child with that id or name runs as {pid}"),
            ChildError::AlreadyPresent => f.write_str("there is a stopped child with that id or name"),
            ChildError::StartFailed { child, reason } => write!(f, "`{child}` did not start: {reason}"),
            ChildError::MaxChildren => f.write_str("there are as many children as there may be"),
            ChildError::Unsupported => f.write_str("this sort of supervisor cannot do that"),
            ChildError::Ending => f.write_str("its supervisor is stopping"),
            ChildError::BadSpec(text) => f.write_str(text),
            ChildError::WaitingForYou => f.write_str("its supervisor waits for the actor that asks"),
        }
    }
}
