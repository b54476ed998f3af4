//! Who waits for somebody else: for an actor to come up, for a key whose holder is being killed, for an end.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use bytes::Bytes;
use rebeam_protocol::address::{Address, Caller, Registry, ReplyTo};
use rebeam_protocol::exit::ExitReason;
use rebeam_protocol::id::Pid;
use rebeam_protocol::process::{ProcessRequest, RegistryRequest};
use rustc_hash::FxBuildHasher;

use crate::requests::Requester;
use crate::tally::Tally;
use crate::timers::TimerKey;

/// Somebody who waits for an actor to come up.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) number: u64,
    pub(crate) from: Requester,
    pub(crate) to: Address,
    pub(crate) timer: Option<TimerKey>,
}

/// A request that is made again once the holder of its key is gone.
#[derive(Debug)]
pub(crate) struct Postponed {
    pub(crate) from: Requester,
    pub(crate) what: Late,
}

/// What is done once the holder is gone.
#[derive(Debug)]
pub(crate) enum Late {
    Enter(Registry, RegistryRequest, Bytes),
    /// A start under that key, or the name.
    Start(Box<ProcessRequest>),
}

#[derive(Debug, Default)]
pub(crate) struct Waiters {
    /// Who waits for an actor to come up, by where it would be found, and by number, so oldest first.
    for_start: BTreeMap<Address, BTreeMap<u64, Waiting>>,
    /// Where each of them waits.
    by_number: HashMap<u64, Address, FxBuildHasher>,
    /// Those of each incarnation.
    by_waiter: BTreeSet<(Pid, u64)>,
    last: u64,
    postponed: Vec<Postponed>,
    /// Who waits for the end of an incarnation that was told to stop, with the reason that it was given.
    for_end: HashMap<Pid, Vec<(Requester, ExitReason)>, FxBuildHasher>,
    /// How many of those of the last two sorts are an incarnation's.
    counts: Tally,
}

impl Waiters {
    /// A number for one who is about to wait.
    pub(crate) fn next_number(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    pub(crate) fn wait_for_start(&mut self, waiting: Waiting) {
        let (number, to) = (waiting.number, waiting.to.clone());
        if let Requester::Worker(process, _) = waiting.from {
            self.by_waiter.insert((process.pid, number));
        }
        self.by_number.insert(number, to.clone());
        self.for_start.entry(to).or_default().insert(number, waiting);
    }

    /// Where somebody is waited for.
    pub(crate) fn addresses(&self) -> Vec<Address> {
        self.for_start.keys().cloned().collect()
    }

    /// Takes out all who wait for whoever is to be found there.
    pub(crate) fn take_for_start(&mut self, to: &Address) -> Vec<Waiting> {
        let numbers: Vec<u64> = self.for_start.get(to).into_iter().flat_map(BTreeMap::keys).copied().collect();
        numbers.into_iter().filter_map(|number| self.take_number(number)).collect()
    }

    /// Takes out the one with this number.
    pub(crate) fn take_number(&mut self, number: u64) -> Option<Waiting> {
        let to = self.by_number.remove(&number)?;
        let same = self.for_start.get_mut(&to)?;
        let waiting = same.remove(&number)?;
        if same.is_empty() {
            self.for_start.remove(&to);
        }
        if let Requester::Worker(process, _) = waiting.from {
            self.by_waiter.remove(&(process.pid, number));
        }
        Some(waiting)
    }

    /// Takes out the one whose wait this is.
    pub(crate) fn take_wait(&mut self, wait: ReplyTo) -> Option<Waiting> {
        let Caller::Actor(pid) = wait.caller else { return None };
        let mut own = self.by_waiter.range((pid, 0)..=(pid, u64::MAX)).map(|(_, number)| *number);
        let number = own.find(|number| {
            let waiting = self.by_number.get(number).and_then(|to| self.for_start.get(to)?.get(number));
            waiting.is_some_and(|waiting| waiting.from.wait() == Some(wait))
        });
        self.take_number(number?)
    }

    /// Takes out those who wait as this incarnation; gives their timers.
    pub(crate) fn forget(&mut self, pid: Pid) -> Vec<Option<TimerKey>> {
        let own: Vec<u64> = self.by_waiter.range((pid, 0)..=(pid, u64::MAX)).map(|(_, number)| *number).collect();
        own.into_iter().filter_map(|number| Some(self.take_number(number)?.timer)).collect()
    }

    pub(crate) fn postpone(&mut self, from: Requester, what: Late) {
        self.count_one(from);
        self.postponed.push(Postponed { from, what });
    }

    pub(crate) fn take_postponed(&mut self) -> Vec<Postponed> {
        let postponed = std::mem::take(&mut self.postponed);
        postponed.iter().for_each(|it| self.uncount(it.from));
        postponed
    }

    fn count_one(&mut self, from: Requester) {
        if let Requester::Worker(process, _) = from {
            self.counts.add(process.pid);
        }
    }

    fn uncount(&mut self, from: Requester) {
        if let Requester::Worker(process, _) = from {
            self.counts.take(process.pid);
        }
    }

    pub(crate) fn wait_for_end(&mut self, of: Pid, from: Requester, wanted: ExitReason) {
        self.count_one(from);
        self.for_end.entry(of).or_default().push((from, wanted));
    }

    pub(crate) fn take_for_end(&mut self, of: Pid) -> Vec<(Requester, ExitReason)> {
        let waiting = self.for_end.remove(&of).unwrap_or_default();
        waiting.iter().for_each(|(from, _)| self.uncount(*from));
        waiting
    }

    /// How many requests of an incarnation wait for an end or a key. Who waits for a start has a wait in the router.
    pub(crate) fn count(&self, pid: Pid) -> usize {
        self.counts.of(pid)
    }

    /// How many wait; for tests that nothing is left behind.
    pub(crate) fn len(&self) -> usize {
        self.by_number.len() + self.by_waiter.len() + self.postponed.len() + self.for_end.len() + self.counts.len()
    }
}
