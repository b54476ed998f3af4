//! What members of the tree are doing, as the command line, metrics and errors say it.

use serde::{Deserialize, Serialize};

/// What an actor or a supervisor is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MemberState {
    /// Its `init` runs, or its children start.
    Starting,
    /// It is up.
    Running,
    /// It hands its state over to a new process.
    Recycling,
    /// It goes over to new code.
    Reloading,
    /// It was told to end.
    Stopping,
    /// It has ended and is about to be started again.
    Restarting,
    /// It has used up its restart limit, and stays down until it is started by hand.
    Parked,
    /// It is down.
    Stopped,
}

impl MemberState {
    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            MemberState::Starting => "starting",
            MemberState::Running => "running",
            MemberState::Recycling => "recycling",
            MemberState::Reloading => "reloading",
            MemberState::Stopping => "stopping",
            MemberState::Restarting => "restarting",
            MemberState::Parked => "parked",
            MemberState::Stopped => "stopped",
        }
    }
}

impl std::fmt::Display for MemberState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.word())
    }
}
