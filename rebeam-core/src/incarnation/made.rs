//! What `init` has made, and the `init` of the next process of the same incarnation makes again.
//!
//! An actor that is recycled, or takes new code, keeps what it has made, and its `init` may run again. So that a timer, a
//! membership or a monitor is not there twice afterwards, and a name is not in its own way, what the last `init` made is
//! replaced once the next has returned: timers, monitors and watches are taken back; an entry of a registry stays, so that
//! others find it, unless `init` has returned without making it again.

use std::collections::HashSet;
use std::hash::Hash;

use rebeam_protocol::id::Pid;
use rebeam_protocol::ledger::RegistryId;

use crate::links::MonitorId;
use crate::registries::Key;
use crate::timers::AlarmId;

/// What there is to replace.
#[derive(Debug, Default)]
pub(crate) struct Made {
    pub(crate) alarms: Vec<AlarmId>,
    pub(crate) monitors: Vec<MonitorId>,
    pub(crate) watches: Vec<u64>,
    pub(crate) entries: Vec<MadeEntry>,
}

/// What a process had made, while the next one of its incarnation starts.
#[derive(Debug)]
pub(crate) struct MadeBefore {
    pub(crate) made: Made,
    /// Whether `init` runs in the next one, and makes it again.
    pub(crate) is_replaced: bool,
}

/// One entry of a registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MadeEntry {
    pub(crate) registry: RegistryId,
    pub(crate) key: Key,
    pub(crate) holder: Pid,
    pub(crate) number: u64,
}

impl Made {
    /// All of this, and then all of that.
    pub(crate) fn followed_by(mut self, later: Made) -> Made {
        self.alarms.extend(later.alarms);
        self.monitors.extend(later.monitors);
        self.watches.extend(later.watches);
        self.entries.extend(later.entries);
        self
    }

    /// What of this is not among that.
    pub(crate) fn without(mut self, known: &Made) -> Made {
        fn drop_known<T: Copy + Eq + Hash>(all: &mut Vec<T>, known: &[T]) {
            let known: HashSet<T> = known.iter().copied().collect();
            all.retain(|it| !known.contains(it));
        }
        drop_known(&mut self.alarms, &known.alarms);
        drop_known(&mut self.monitors, &known.monitors);
        drop_known(&mut self.watches, &known.watches);
        let numbers: HashSet<u64> = known.entries.iter().map(|entry| entry.number).collect();
        self.entries.retain(|entry| !numbers.contains(&entry.number));
        self
    }

    /// Of what there is most, whether or not it is still there. Entries are small, and are counted by the ten.
    pub(crate) fn most(&self) -> usize {
        self.alarms.len().max(self.monitors.len()).max(self.watches.len()).max(self.entries.len() / 10)
    }
}
