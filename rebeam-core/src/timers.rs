//! What is due when. Ties fire in the order they were set.

use std::collections::BTreeMap;
use std::time::Duration;

use rebeam_protocol::id::{ActorId, Pid, ProcessId};

/// An alarm: who set it, and their number for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct AlarmId {
    pub(crate) maker: Pid,
    pub(crate) number: u64,
}

/// What a timer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Due {
    /// The life of the incarnation has lasted as long as it may, in whichever process.
    Limit(Pid),
    /// A supervisor was asked to stop and has had its shutdown time.
    SupervisorShutdown(ActorId),
    /// The pause before a child's restart is over, by its number.
    PauseOver(ActorId, u64),
    /// A message is to be sent.
    Alarm(AlarmId),
    /// It is time to see what the process does with its mail.
    Look(ProcessId),
    /// It is time to try again to make this process.
    Launch(ProcessId),
    /// The process was judged hung, and has had its time to write its stacks.
    Hung(ProcessId),
    /// The same, where an actor says that it takes too long.
    TakesTooLong(ProcessId),
    /// The process is as old as it may become.
    Aged(ProcessId),
    /// It is time to see who else can go over to new code.
    ReloadGoesOn,
    /// The code that this process runs has proved itself.
    ProbationOver(Pid),
    /// A process that another has taken over from should have ended by itself.
    Leaves(ProcessId),
    /// Somebody has waited long enough for an actor to come up.
    WaitOver(u64),
}

/// A handle to cancel a timer with.
pub(crate) type TimerKey = (Duration, u64);

#[derive(Debug, Default)]
pub(crate) struct Timers {
    set: BTreeMap<TimerKey, Due>,
    next: u64,
}

impl Timers {
    pub(crate) fn set(&mut self, at: Duration, due: Due) -> TimerKey {
        self.next += 1;
        self.set.insert((at, self.next), due);
        (at, self.next)
    }

    pub(crate) fn cancel(&mut self, key: Option<TimerKey>) {
        if let Some(key) = key {
            self.set.remove(&key);
        }
    }

    pub(crate) fn next_at(&self) -> Option<Duration> {
        self.set.keys().next().map(|&(at, _)| at)
    }

    /// Takes what is due, with the time it was due at.
    pub(crate) fn pop_due(&mut self, now: Duration) -> Option<(Duration, Due)> {
        let entry = self.set.first_entry()?;
        let at = entry.key().0;
        (at <= now).then(|| (at, entry.remove()))
    }
}
