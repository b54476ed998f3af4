//! Death certificates: what is known, and proven, about one end.

use serde::{Deserialize, Serialize};

use crate::exit::ExitReason;
use crate::id::{Pid, Version};

/// What is known about one end of one incarnation. Nothing in it is a guess.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificate {
    /// The actor's name, or its path in the tree.
    pub actor: String,
    /// The incarnation that ended.
    pub pid: Pid,
    /// Its process.
    pub os_pid: u32,
    /// Why.
    pub reason: ExitReason,
    /// The messages it had in hand, oldest first.
    pub in_hand: Vec<InHand>,
    /// Who sent the signal that ended it, if one did.
    pub killer: Killer,
    /// The Python stacks of all its threads at the end, as `faulthandler` writes them; or why there are none.
    pub stacks: String,
    /// What follows, as far as it was decided when this was written.
    pub next: Next,
    /// The last lines it wrote to stdout and stderr, oldest first.
    pub last_output: Vec<String>,
    /// The version of the code that it ran.
    pub code: Version,
    /// How long it lived, in milliseconds.
    pub age_ms: u64,
    /// How often this actor had been started before.
    pub restarts: u32,
    /// User and system time it used, in milliseconds.
    pub cpu_ms: u64,
    /// The largest resident size it had, in KiB.
    pub peak_kib: u64,
}

impl Certificate {
    /// About how many bytes of memory it takes.
    pub fn size(&self) -> usize {
        let reason = match &self.reason {
            ExitReason::Exception(raised) => raised.kind.len() + raised.message.len() + raised.traceback.len(),
            ExitReason::Shutdown(detail) => detail.as_ref().map_or(0, String::len),
            ExitReason::Other(text)
            | ExitReason::BadProtocol(text)
            | ExitReason::NotStarted(text)
            | ExitReason::NameTaken(text)
            | ExitReason::BadReturn(text)
            | ExitReason::LimitExceeded(text) => text.len(),
            _ => 0,
        };
        let in_hand = self.in_hand.iter().map(|it| size_of::<InHand>() + it.method.len() + it.sender.len());
        let output = self.last_output.iter().map(|line| size_of::<String>() + line.len());
        size_of::<Self>() + self.actor.len() + reason + self.stacks.len() + in_hand.chain(output).sum::<usize>()
    }
}

/// Who ended a process by a signal.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Killer {
    /// No signal ended it.
    #[default]
    Nobody,
    /// Re:BEAM did, for the reason given in words.
    Rebeam(String),
    /// The kernel's out-of-memory killer, by its own count.
    OutOfMemory,
    /// Not known.
    Unknown,
}

impl Killer {
    /// As data shows it: `rebeam: why`, `out of memory`, `unknown`; `None` if no signal ended it.
    pub fn words(&self) -> Option<String> {
        match self {
            Killer::Nobody => None,
            Killer::Rebeam(why) => Some(format!("rebeam: {why}")),
            Killer::OutOfMemory => Some("out of memory".into()),
            Killer::Unknown => Some("unknown".into()),
        }
    }
}

/// What follows an end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Next {
    /// Not decided yet, or nothing: the end was ordered.
    #[default]
    Nothing,
    /// It is started again, after so many milliseconds.
    Restarts {
        /// The pause.
        after_ms: u64,
    },
    /// It stays down, by its restart type.
    StaysDown,
    /// The restart limit is used up: its supervisor ends.
    GivesUp {
        /// How many restarts are allowed,
        restarts: u32,
        /// within so many milliseconds.
        within_ms: u64,
    },
    /// The restart limit is used up: it stays down until it is started by hand, and its siblings live.
    Parked,
    /// It died soon after it had taken new code: it goes on with the code before, and with the state that it had then.
    Undone {
        /// The version of the code that it goes back to.
        to: Version,
        /// How many messages the new code had handled, of which nothing is left.
        lost: u64,
        /// Whether it has the state of then; else it has started over.
        has_state: bool,
    },
}

/// A message that an actor had begun and not finished when it died.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InHand {
    /// The method.
    pub method: String,
    /// The label of the sender.
    pub sender: String,
    /// Since how many milliseconds the handler ran.
    pub age_ms: u64,
    /// Which delivery it was, from 1.
    pub delivery: u32,
}
