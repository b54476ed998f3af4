//! Messages to be sent later: alarms, as the core calls the timers that actors set.
//!
//! One that is set on an incarnation goes with it (TMR-003), but outlives its maker (TMR-004). One that is set on a name
//! goes to whoever holds the name when it is due; if it is to be sent again and again, it ends with its maker, since
//! nobody else could end it.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use bytes::Bytes;
use rebeam_protocol::address::Address;
use rebeam_protocol::id::{NodeStart, Pid};
use rebeam_protocol::message::Form;
use rustc_hash::FxBuildHasher;

use crate::mailbox::Sender;
use crate::timers::{AlarmId, TimerKey};

#[derive(Debug)]
pub(crate) struct Alarm {
    pub(crate) key: TimerKey,
    pub(crate) to: Address,
    /// The incarnation with which it ends; `None`: it is due whoever lives then.
    pub(crate) ends_with: Option<Pid>,
    pub(crate) every: Option<Duration>,
    /// When the last one was sent, if it is sent again and again.
    pub(crate) last: Option<Duration>,
    pub(crate) sender: Sender,
    pub(crate) method: String,
    pub(crate) form: Form,
    pub(crate) payload: Bytes,
}

/// What one incarnation has set and is not due yet.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Held {
    pub(crate) count: usize,
    /// Of their content.
    pub(crate) bytes: usize,
}

#[derive(Debug, Default)]
pub(crate) struct Alarms {
    set: HashMap<AlarmId, Alarm, FxBuildHasher>,
    by_life: BTreeSet<(Pid, AlarmId)>,
    held: HashMap<Pid, Held, FxBuildHasher>,
    /// Ticks that were left out: the node was late for them, or the mailbox was full.
    skipped: u64,
}

impl Alarms {
    pub(crate) fn insert(&mut self, id: AlarmId, alarm: Alarm) {
        if let Some(pid) = alarm.ends_with {
            self.by_life.insert((pid, id));
        }
        let held = self.held.entry(id.maker).or_default();
        held.count += 1;
        held.bytes += alarm.payload.len();
        self.set.insert(id, alarm);
    }

    pub(crate) fn get_mut(&mut self, id: AlarmId) -> Option<&mut Alarm> {
        self.set.get_mut(&id)
    }

    pub(crate) fn remove(&mut self, id: AlarmId) -> Option<Alarm> {
        let alarm = self.set.remove(&id)?;
        if let Some(pid) = alarm.ends_with {
            self.by_life.remove(&(pid, id));
        }
        if let Some(held) = self.held.get_mut(&id.maker) {
            held.count -= 1;
            held.bytes -= alarm.payload.len();
            if held.count == 0 {
                self.held.remove(&id.maker);
            }
        }
        Some(alarm)
    }

    /// Takes out all that end with an incarnation; gives their timers.
    pub(crate) fn ended(&mut self, pid: Pid) -> Vec<TimerKey> {
        let least = AlarmId { maker: Pid { at: NodeStart { node: 0, started: 0 }, serial: 0 }, number: 0 };
        let own = self.by_life.range((pid, least)..).take_while(|(life, _)| *life == pid);
        let ids: Vec<AlarmId> = own.map(|(_, id)| *id).collect();
        ids.into_iter().filter_map(|id| Some(self.remove(id)?.key)).collect()
    }

    /// What an incarnation has set.
    pub(crate) fn held(&self, maker: Pid) -> Held {
        self.held.get(&maker).copied().unwrap_or_default()
    }

    /// The alarms that an incarnation has set, as far as they are wanted.
    pub(crate) fn of(&self, maker: Pid, wanted: impl Fn(&Alarm) -> bool) -> Vec<AlarmId> {
        let own = self.set.iter().filter(|(id, alarm)| id.maker == maker && wanted(alarm));
        own.map(|(id, _)| *id).collect()
    }

    /// So many ticks are left out.
    pub(crate) fn skip(&mut self, ticks: u64) {
        self.skipped += ticks;
    }

    /// How many ticks were left out so far.
    pub(crate) fn skipped(&self) -> u64 {
        self.skipped
    }

    /// How many there are; for tests that nothing is left behind.
    pub(crate) fn len(&self) -> usize {
        self.set.len() + self.by_life.len() + self.held.len()
    }
}
