//! The three levels of identity: actor, incarnation, generation.
//!
//! An *actor* is the logical thing and outlives crashes; a [`Pid`] is one life of it; a [`Generation`] is one OS
//! process of that life. An OS process id is never called "pid" here but `os_pid`, and nothing is keyed by it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The logical actor or supervisor: its place in the tree, its mailbox, its name. Never reused within a node's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ActorId(pub u64);

/// One start of one node, so that the pids of two runs, or two machines, never collide.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NodeStart {
    /// The node's number in its cluster; 0 while there is one node.
    pub node: u32,
    /// When this node was started, in seconds of the Unix epoch.
    pub started: u32,
}

/// One incarnation of an actor: OTP's pid. Dead forever once it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Pid {
    /// Which start of which node made it.
    pub at: NodeStart,
    /// Counts up over all incarnations of that node start.
    pub serial: u64,
}

impl fmt::Display for Pid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<{}.{}>", self.at.node, self.serial)
    }
}

/// One OS process of an incarnation: a recycle or an upgrade changes the process but not the [`Pid`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Generation(pub u32);

/// Who reports: an incarnation in one of its generations. The core drops what comes from any but the serving one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ProcessId {
    /// The incarnation.
    pub pid: Pid,
    /// The process of that incarnation.
    pub generation: Generation,
}

/// A version of the application's code: 1 is what the node has started with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Version(pub u32);

impl Version {
    /// What a node has started with.
    pub const FIRST: Version = Version(1);
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "v{}", self.0)
    }
}

/// A call, numbered by its caller's incarnation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct CallId(pub u64);

/// A request of a worker to the supervisor itself, numbered by the worker's incarnation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RequestId(pub u64);

/// A message handed to a process: counts up from 1 per actor, in the order of the hand-over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Seq(pub u64);
