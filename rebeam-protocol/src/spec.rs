//! The tree as the application declares it: plain data, made by the zygote, checked by the core.

use std::cell::Cell;

use serde::{Deserialize, Deserializer, Serialize};

use crate::table::Table;

/// What a supervisor is made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SupervisorSpec {
    /// Unique among its siblings; the root's is `root`.
    pub id: String,
    /// The name it is registered under.
    pub name: Option<String>,
    /// How its children are held.
    pub kind: SupervisorKind,
    /// Who is stopped and started with whom.
    pub strategy: Strategy,
    /// How many restarts are allowed within `max_ms`.
    pub max_restarts: u32,
    /// The window of the restart limit, in milliseconds.
    pub max_ms: u64,
    /// In start order.
    #[serde(deserialize_with = "at_most_so_deep")]
    pub children: Vec<ChildSpec>,
    /// Whether it ends with its significant children.
    pub auto_shutdown: AutoShutdown,
}

impl SupervisorSpec {
    /// A static one with these children and the defaults of `rebeam.Supervisor`.
    pub fn new(id: impl Into<String>, children: Vec<ChildSpec>) -> Self {
        SupervisorSpec {
            id: id.into(),
            name: None,
            kind: SupervisorKind::Static,
            strategy: Strategy::OneForOne,
            max_restarts: 3,
            max_ms: 5000,
            children,
            auto_shutdown: AutoShutdown::Never,
        }
    }
}

/// How many supervisors may stand above one another.
pub const MAX_DEPTH: usize = 32;

thread_local! {
    /// How deep in supervisors the decoder of this thread is.
    static DEPTH: Cell<usize> = const { Cell::new(0) };
}

/// Decodes children, and refuses what nests so deep that decoding it could use up the stack: these bytes come from
/// workers.
fn at_most_so_deep<'de, D: Deserializer<'de>>(decoder: D) -> Result<Vec<ChildSpec>, D::Error> {
    let depth = DEPTH.get();
    // One more than is valid, so that the core says which tree it is.
    if depth > MAX_DEPTH {
        return Err(serde::de::Error::custom("supervisors nest too deep"));
    }
    DEPTH.set(depth + 1);
    let children = Vec::deserialize(decoder);
    DEPTH.set(depth);
    children
}

/// One child of a supervisor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChildSpec {
    /// Unique among its siblings.
    pub id: String,
    /// When it is started again.
    pub restart: Restart,
    /// How it is stopped.
    pub shutdown: Shutdown,
    /// Whether `auto_shutdown` looks at it.
    pub significant: bool,
    /// How long to wait before it is started again.
    pub pauses: Pauses,
    /// What happens when it has used up its supervisor's restart limit.
    pub on_giveup: OnGiveup,
    /// What it is.
    pub kind: ChildKind,
}

impl ChildSpec {
    /// A permanent actor, known by its name.
    pub fn actor(name: impl Into<String>, spec: ActorSpec) -> Self {
        let id = name.into();
        let spec = ActorSpec { name: Some(id.clone()), ..spec };
        ChildSpec { shutdown: Shutdown::Timeout(5000), ..ChildSpec::new(id, ChildKind::Actor(Box::new(spec))) }
    }

    /// A permanent supervisor.
    pub fn supervisor(spec: SupervisorSpec) -> Self {
        ChildSpec::new(spec.id.clone(), ChildKind::Supervisor(spec))
    }

    fn new(id: String, kind: ChildKind) -> Self {
        ChildSpec {
            id,
            restart: Restart::Permanent,
            shutdown: Shutdown::Infinity,
            significant: false,
            pauses: Pauses::None,
            on_giveup: OnGiveup::Stop,
            kind,
        }
    }
}

/// How a supervisor holds its children.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum SupervisorKind {
    /// A list in start order, which may grow; children are known by id.
    #[default]
    Static,
    /// Empty at first; children have no order and are known by pid (OTP's `simple_one_for_one`, Elixir's
    /// `DynamicSupervisor`).
    Dynamic {
        /// How many there may be at once; `None`: no limit.
        max_children: Option<u64>,
    },
    /// The node's own, for what actors start without saying where: as a dynamic one, but its children start beside each
    /// other, so that one may start another in its `init`, and each has a restart limit of its own.
    Spawned,
    /// Copies of one child, among which mail is shared out by a key (Elixir's `PartitionSupervisor`).
    Partition,
    /// A registry. It has no children; its entries go with it. (Elixir's is a supervisor, too.)
    Registry {
        /// Whether a key has one holder at most.
        is_unique: bool,
    },
    /// A table, which is called as the child is. It has no children; its rows go with it.
    Table(Table),
}

/// How long to wait before a child is started again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Pauses {
    /// Not at all (OTP's rule).
    #[default]
    None,
    /// Not before the first restart, and then as long as the restart limit leaves room for: all restarts that it allows
    /// take half of its window, and none more than a second. Begun anew as with [`Backoff`].
    ByLimit,
    /// As somebody says.
    Backoff(Backoff),
}

/// Pauses before restarts: `initial`, then `factor` times the last one, up to `cap`; each shortened at random by up to
/// `jitter` of itself. Back to `initial` once the child has lived for `cap` and at least a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backoff {
    /// The first pause, in milliseconds.
    pub initial_ms: u64,
    /// By which the pause grows, in thousandths.
    pub factor_milli: u64,
    /// The longest pause, in milliseconds.
    pub cap_ms: u64,
    /// The share of a pause that chance may take away, in thousandths.
    pub jitter_milli: u64,
}

impl Backoff {
    /// How long a child must have lived for its next pause to be the first one again, in milliseconds.
    pub fn healthy_ms(&self) -> u64 {
        self.cap_ms.max(1000)
    }

    /// The pause before the restart of this number, from 0, before chance shortens it; in milliseconds.
    pub fn pause_ms(&self, attempt: u32) -> u64 {
        let mut pause = self.initial_ms;
        for _ in 0..attempt {
            if pause >= self.cap_ms {
                break;
            }
            pause = pause.saturating_mul(self.factor_milli) / 1000;
        }
        pause.min(self.cap_ms)
    }
}

/// What happens when a child has used up its supervisor's restart limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum OnGiveup {
    /// The supervisor ends (OTP's rule).
    #[default]
    Stop,
    /// The child stays down, to be seen and started again by hand; its siblings live.
    Park,
}

/// What a child is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ChildKind {
    /// An actor in a process of its own.
    Actor(Box<ActorSpec>),
    /// A supervisor with children of its own.
    Supervisor(SupervisorSpec),
}

/// How an actor is made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActorSpec {
    /// The name it is registered under.
    pub name: Option<String>,
    /// The registry and the key that it is registered under, an encoded [`crate::value::Value`].
    pub via: Option<(String, Vec<u8>)>,
    /// Module and class, for people.
    pub class: String,
    /// The modules that its class, its function and its arguments come from.
    pub modules: Vec<String>,
    /// What becomes of it when the code of one of them changes.
    pub reload: Reload,
    /// Whether its class defines what it hands over to its next process, before which `init` runs there.
    pub has_checkpoint: bool,
    /// Pickle of class, positional and keyword arguments; decoded only in its own process.
    pub start: Vec<u8>,
    /// How long `init` may take, in milliseconds; `None`: no limit.
    pub start_ms: Option<u64>,
    /// How much mail may wait, and what becomes of it.
    pub mailbox: MailboxOptions,
    /// How many messages it handles at once.
    pub concurrency: u32,
    /// Methods whose message comes again when the actor died with it in hand, and at how many such deaths it does not.
    pub redelivered: Vec<(String, u32)>,
    /// How it ends when its supervisor asks: false for OTP's rule, by which only who traps exits is heard (MAP-05).
    pub terminate_on_shutdown: bool,
    /// How much it may use.
    pub limits: Limits,
    /// What its process is like.
    pub process: ProcessOptions,
}

impl ActorSpec {
    /// Of a class, with the defaults of `rebeam.child`.
    pub fn new(class: impl Into<String>) -> Self {
        ActorSpec {
            name: None,
            via: None,
            class: class.into(),
            modules: Vec::new(),
            reload: Reload::State,
            has_checkpoint: false,
            start: Vec::new(),
            start_ms: Some(60_000),
            mailbox: MailboxOptions::default(),
            concurrency: 1,
            redelivered: Vec::new(),
            terminate_on_shutdown: true,
            limits: Limits::default(),
            process: ProcessOptions::default(),
        }
    }
}

/// What becomes of a running actor when its code changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reload {
    /// New code takes over its state; where that cannot be, it starts over.
    #[default]
    State,
    /// It is stopped and starts over with the new code.
    Restart,
    /// It stays with its code as long as it lives.
    Never,
}

/// What an actor may use before something is done about it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// How long a handler may run, in milliseconds; `None`: as long as it likes.
    pub deadline_ms: Option<u64>,
    /// The same for single methods.
    pub deadlines: Vec<(String, u64)>,
    /// Memory, in KiB of proportional set size, from which on it is recycled between two messages.
    pub memory_soft_kib: Option<u64>,
    /// Memory at which it is killed.
    pub memory_hard_kib: Option<u64>,
    /// Messages after which it is recycled.
    pub max_messages: Option<u64>,
    /// Age at which it is recycled, in milliseconds.
    pub max_age_ms: Option<u64>,
}

impl Limits {
    /// How long a handler of `method` may run, in milliseconds.
    pub fn deadline_of(&self, method: &str) -> Option<u64> {
        let own = self.deadlines.iter().find(|(name, _)| name == method);
        own.map(|(_, limit)| *limit).or(self.deadline_ms)
    }
}

/// How the process of an actor differs from the others.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessOptions {
    /// The CPUs it may run on; empty: all.
    pub cpus: Vec<u32>,
    /// Added to its niceness.
    pub nice: Option<i32>,
    /// Variables of its environment.
    pub env: Vec<(String, String)>,
    /// Its working directory; `None`: the project's.
    pub directory: Option<String>,
    /// The user it runs as; `None`: ours.
    pub uid: Option<u32>,
    /// The group it runs as; `None`: ours.
    pub gid: Option<u32>,
    /// Whether it is the port of a program, whose start payload is a [`Program`](crate::program::Program).
    pub is_port: bool,
}

impl ProcessOptions {
    /// Whether it must not be forked off the application: they could matter to its import, or it is no Python.
    pub fn need_fresh_process(&self) -> bool {
        self.is_port || !self.env.is_empty() || self.directory.is_some() || self.uid.is_some() || self.gid.is_some()
    }
}

/// How much mail may wait for an actor, what happens to more, and what a restart does to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MailboxOptions {
    /// Messages; `None`: no limit.
    pub messages: Option<u64>,
    /// Bytes of content, large buffers included; `None`: no limit.
    pub bytes: Option<u64>,
    /// What happens to more.
    pub overflow: Overflow,
    /// Whether what waits outlives the actor's crash; else it becomes dead letters.
    pub is_kept: bool,
    /// Whether calls fail while the actor is between two lives, rather than wait.
    pub fails_while_restarting: bool,
}

/// What happens to mail for a mailbox that is full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Overflow {
    /// Its sender waits.
    #[default]
    Block,
    /// Its sender gets an error.
    Fail,
    /// It takes the place of the oldest.
    DropOldest,
    /// It becomes a dead letter itself.
    DropNew,
}

impl Default for MailboxOptions {
    /// 10,000 messages and 64 MiB, senders wait, everything is kept (MAP-13).
    fn default() -> Self {
        MailboxOptions {
            messages: Some(10_000),
            bytes: Some(64 * 1024 * 1024),
            overflow: Overflow::Block,
            is_kept: true,
            fails_while_restarting: false,
        }
    }
}

/// Who is stopped and started with a child that ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Strategy {
    /// The ended one alone.
    OneForOne,
    /// All of them.
    OneForAll,
    /// It and those after it in start order.
    RestForOne,
}

/// When a child is started again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Restart {
    /// Always.
    Permanent,
    /// After an abnormal end.
    Transient,
    /// Never.
    Temporary,
}

/// How a child is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Shutdown {
    /// Killed without being asked.
    BrutalKill,
    /// Asked, and killed after so many milliseconds.
    Timeout(u64),
    /// Asked, and waited for.
    Infinity,
}

/// Whether a supervisor ends with its significant children.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum AutoShutdown {
    /// It does not.
    #[default]
    Never,
    /// With the first one.
    AnySignificant,
    /// With the last one.
    AllSignificant,
}
