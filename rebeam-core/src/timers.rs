//! What is due when. Ties fire in the order they were set.

use std::collections::BTreeMap;
use std::time::Duration;

use rebeam_protocol::id::ProcessId;

/// What a timer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Due {
    /// The process was asked to stop and has had its shutdown time.
    Shutdown(ProcessId),
    /// The process has had its time for `init`.
    Start(ProcessId),
    /// A supervisor was asked to stop and has had its shutdown time.
    SupervisorShutdown(usize),
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

    pub(crate) fn pop_due(&mut self, now: Duration) -> Option<Due> {
        let entry = self.set.first_entry()?;
        (entry.key().0 <= now).then(|| entry.remove())
    }
}
