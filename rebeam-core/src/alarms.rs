//! Messages to be sent later. They belong to the incarnation they are for and go with it (TMR-003), but outlive their
//! maker (TMR-004).

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use bytes::Bytes;
use rebeam_protocol::id::{NodeStart, Pid};
use rebeam_protocol::message::Form;
use rustc_hash::FxBuildHasher;

use crate::mailbox::Sender;
use crate::timers::{AlarmId, TimerKey};

#[derive(Debug)]
pub(crate) struct Alarm {
    pub(crate) key: TimerKey,
    pub(crate) to: Pid,
    pub(crate) every: Option<Duration>,
    pub(crate) sender: Sender,
    pub(crate) method: String,
    pub(crate) form: Form,
    pub(crate) payload: Bytes,
}

#[derive(Debug, Default)]
pub(crate) struct Alarms {
    set: HashMap<AlarmId, Alarm, FxBuildHasher>,
    by_target: BTreeSet<(Pid, AlarmId)>,
}

impl Alarms {
    pub(crate) fn insert(&mut self, id: AlarmId, alarm: Alarm) {
        self.by_target.insert((alarm.to, id));
        self.set.insert(id, alarm);
    }

    pub(crate) fn get_mut(&mut self, id: AlarmId) -> Option<&mut Alarm> {
        self.set.get_mut(&id)
    }

    pub(crate) fn remove(&mut self, id: AlarmId) -> Option<Alarm> {
        let alarm = self.set.remove(&id)?;
        self.by_target.remove(&(alarm.to, id));
        Some(alarm)
    }

    /// Takes out all that were for one who has ended; gives their timers.
    pub(crate) fn target_ended(&mut self, to: Pid) -> Vec<TimerKey> {
        let least = AlarmId { maker: Pid { at: NodeStart { node: 0, started: 0 }, serial: 0 }, number: 0 };
        let own = self.by_target.range((to, least)..).take_while(|(target, _)| *target == to);
        let ids: Vec<AlarmId> = own.map(|(_, id)| *id).collect();
        ids.into_iter().filter_map(|id| Some(self.remove(id)?.key)).collect()
    }
}
