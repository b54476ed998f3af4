//! The tree as the application declares it: plain data, made by the zygote, checked by the core.

use serde::{Deserialize, Serialize};

/// What a supervisor is made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SupervisorSpec {
    /// Unique among its siblings; the root's is `root`.
    pub id: String,
    /// Who is stopped and started with whom.
    pub strategy: Strategy,
    /// How many restarts are allowed within `max_ms`.
    pub max_restarts: u32,
    /// The window of the restart limit, in milliseconds.
    pub max_ms: u64,
    /// In start order.
    pub children: Vec<ChildSpec>,
    /// Whether it ends with its significant children.
    pub auto_shutdown: AutoShutdown,
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
    /// What it is.
    pub kind: ChildKind,
}

/// What a child is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ChildKind {
    /// An actor in a process of its own.
    Actor(ActorSpec),
    /// A supervisor with children of its own.
    Supervisor(SupervisorSpec),
}

/// How an actor is made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActorSpec {
    /// The name it is registered under.
    pub name: Option<String>,
    /// Module and class, for people.
    pub class: String,
    /// Pickle of class, positional and keyword arguments; decoded only in its own process.
    pub start: Vec<u8>,
    /// How long `init` may take, in milliseconds; `None`: no limit.
    pub start_ms: Option<u64>,
    /// How much mail may wait.
    pub mailbox: MailboxLimits,
}

/// How much mail may wait for an actor, and what happens to more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MailboxLimits {
    /// Messages; `None`: no limit.
    pub messages: Option<u64>,
    /// Bytes of payload; `None`: no limit.
    pub bytes: Option<u64>,
}

impl Default for MailboxLimits {
    /// 10,000 messages and 64 MiB (MAP-13).
    fn default() -> Self {
        MailboxLimits { messages: Some(10_000), bytes: Some(64 * 1024 * 1024) }
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
