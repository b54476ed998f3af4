//! Who a message is for, and who waits for its answer.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::id::{ActorId, CallId, Pid};
use crate::ledger::key_label;

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

/// The longest name, key or method that a message may be for, in bytes: they are kept beside what is bounded.
pub const LONGEST_NAME: usize = 4096;

impl Address {
    /// How many bytes the longest of the names in it has.
    pub fn name_length(&self) -> usize {
        match self {
            Address::Name(name) | Address::Partition { name, .. } | Address::Group(name) => name.len(),
            Address::Via { registry, key } => registry.len().max(key.len()),
            Address::Actor(_) | Address::Pid(_) => 0,
        }
    }

    /// The same address with one way to be written: the key of a partition is its place among that many copies.
    pub fn canonical(&self, copies: impl FnOnce(&str) -> Option<u64>) -> Address {
        match self {
            Address::Partition { name, key } => {
                let key = copies(name).filter(|copies| *copies > 0).map_or(*key, |copies| key % copies);
                Address::Partition { name: name.clone(), key }
            }
            other => other.clone(),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Name(name) | Address::Partition { name, .. } => f.write_str(name),
            Address::Actor(id) => write!(f, "actor {}", id.0),
            Address::Pid(pid) => write!(f, "{pid}"),
            Address::Via { registry, key } => write!(f, "{registry}[{}]", key_label(key)),
            Address::Group(name) => write!(f, "group {name}"),
        }
    }
}

/// Which registry.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Registry {
    /// The names of the node.
    Names,
    /// Its groups.
    Groups,
    /// Its tables.
    Tables,
    /// The registry of the tree with this name.
    Named(String),
}

impl fmt::Display for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Registry::Names => "names",
            Registry::Groups => "groups",
            Registry::Tables => "tables",
            Registry::Named(name) => name,
        })
    }
}
