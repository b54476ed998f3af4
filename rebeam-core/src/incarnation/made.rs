//! What `init` has made, and the `init` of the next process of the same incarnation makes again.
//!
//! An actor that is recycled keeps what it has made, and its `init` runs again. So that a timer, a membership or a
//! monitor is not there twice afterwards, and a name is not in its own way, what the last `init` made is replaced: timers,
//! monitors and watches are taken back before `init` runs; an entry of a registry stays, so that others find it, until
//! `init` has made it again or has returned without doing so.

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

/// One entry of a registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MadeEntry {
    pub(crate) registry: RegistryId,
    pub(crate) key: Key,
    pub(crate) holder: Pid,
    pub(crate) number: u64,
}

impl Made {
    /// Of what there is most, whether or not it is still there. Entries are small, and are counted by the ten.
    pub(crate) fn most(&self) -> usize {
        self.alarms.len().max(self.monitors.len()).max(self.watches.len()).max(self.entries.len() / 10)
    }
}
