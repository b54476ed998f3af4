//! Who wants to know of whose end: links, which go both ways, and monitors, which go one.
//!
//! Only bookkeeping: what a notice does to its receiver is decided in [`crate::core`].

use std::collections::{BTreeMap, BTreeSet};

use rebeam_protocol::id::Pid;

use crate::tally::Tally;

/// A monitor's number. Never reused within a node's life.
pub(crate) type MonitorId = u64;

#[derive(Debug, Default)]
pub(crate) struct Links {
    /// Each link from both of its ends.
    links: BTreeSet<(Pid, Pid)>,
    monitors: BTreeMap<MonitorId, Monitor>,
    by_watched: BTreeSet<(Pid, MonitorId)>,
    by_watcher: BTreeSet<(Pid, MonitorId)>,
    /// How many links and monitors an incarnation has; not those by which others watch it.
    counts: Tally,
    next: MonitorId,
}

#[derive(Clone, Copy, Debug)]
struct Monitor {
    watcher: Pid,
    watched: Pid,
}

/// Who is to be told of an end.
#[derive(Debug)]
pub(crate) struct Notices {
    /// Ends of links.
    pub(crate) linked: Vec<Pid>,
    /// Monitors, with their watchers.
    pub(crate) monitors: Vec<(MonitorId, Pid)>,
}

impl Links {
    /// Links two; nothing changes, and it gives false, if they are linked already (LNK-005).
    pub(crate) fn link(&mut self, one: Pid, other: Pid) -> bool {
        let mut is_new = false;
        for (own, other) in [(one, other), (other, one)] {
            if self.links.insert((own, other)) {
                self.counts.add(own);
                is_new = true;
            }
        }
        is_new
    }

    pub(crate) fn unlink(&mut self, one: Pid, other: Pid) {
        for (own, other) in [(one, other), (other, one)] {
            if self.links.remove(&(own, other)) {
                self.counts.take(own);
            }
        }
    }

    /// A number for a monitor that will never fire: whom it is about is dead.
    pub(crate) fn next_monitor(&mut self) -> MonitorId {
        self.next += 1;
        self.next
    }

    pub(crate) fn monitor(&mut self, watcher: Pid, watched: Pid) -> MonitorId {
        let monitor = self.next_monitor();
        self.monitors.insert(monitor, Monitor { watcher, watched });
        self.by_watched.insert((watched, monitor));
        self.by_watcher.insert((watcher, monitor));
        self.counts.add(watcher);
        monitor
    }

    /// How many links and monitors an incarnation has.
    pub(crate) fn count(&self, pid: Pid) -> usize {
        self.counts.of(pid)
    }

    /// The monitors that an incarnation has made.
    pub(crate) fn monitors_of(&self, pid: Pid) -> Vec<MonitorId> {
        pairs(&self.by_watcher, pid, 0, u64::MAX).map(|(_, monitor)| *monitor).collect()
    }

    pub(crate) fn demonitor(&mut self, watcher: Pid, monitor: MonitorId) {
        if self.monitors.get(&monitor).is_some_and(|found| found.watcher == watcher) {
            self.forget(monitor);
        }
    }

    /// Takes out everything about one who has ended; says who is to be told, in the order in which they asked.
    pub(crate) fn end(&mut self, pid: Pid) -> Notices {
        let linked: Vec<Pid> = pairs(&self.links, pid, LEAST, MOST).map(|(_, other)| *other).collect();
        linked.iter().for_each(|other| self.unlink(pid, *other));
        for monitor in self.monitors_of(pid) {
            self.forget(monitor);
        }
        let about: Vec<MonitorId> = pairs(&self.by_watched, pid, 0, u64::MAX).map(|(_, monitor)| *monitor).collect();
        let monitors = about.into_iter().filter_map(|monitor| Some((monitor, self.forget(monitor)?.watcher))).collect();
        Notices { linked, monitors }
    }

    fn forget(&mut self, monitor: MonitorId) -> Option<Monitor> {
        let found = self.monitors.remove(&monitor)?;
        self.by_watched.remove(&(found.watched, monitor));
        self.by_watcher.remove(&(found.watcher, monitor));
        self.counts.take(found.watcher);
        Some(found)
    }

    /// How many links and monitors there are; for tests that nothing is left behind.
    pub(crate) fn len(&self) -> usize {
        self.links.len() / 2 + self.monitors.len() + self.counts.len()
    }
}

const LEAST: Pid = Pid { at: rebeam_protocol::id::NodeStart { node: 0, started: 0 }, serial: 0 };
const MOST: Pid = Pid { at: rebeam_protocol::id::NodeStart { node: u32::MAX, started: u32::MAX }, serial: u64::MAX };

fn pairs<T: Ord + Copy>(set: &BTreeSet<(Pid, T)>, pid: Pid, least: T, most: T) -> impl Iterator<Item = &(Pid, T)> {
    set.range((pid, least)..=(pid, most))
}
