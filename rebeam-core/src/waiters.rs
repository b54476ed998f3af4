//! Who waits for somebody else: for an actor to come up, for a key whose holder is being killed, for an end.

use std::collections::HashMap;

use bytes::Bytes;
use rebeam_protocol::address::{Address, Registry};
use rebeam_protocol::exit::ExitReason;
use rebeam_protocol::id::Pid;
use rebeam_protocol::process::{ProcessRequest, RegistryRequest};
use rustc_hash::FxBuildHasher;

use crate::requests::Requester;
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
    /// Who waits for an actor to come up, oldest first.
    for_start: Vec<Waiting>,
    last: u64,
    postponed: Vec<Postponed>,
    /// Who waits for the end of an incarnation that was told to stop, with the reason that it was given.
    for_end: HashMap<Pid, Vec<(Requester, ExitReason)>, FxBuildHasher>,
}

impl Waiters {
    /// A number for one who is about to wait.
    pub(crate) fn next_number(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    pub(crate) fn wait_for_start(&mut self, waiting: Waiting) {
        self.for_start.push(waiting);
    }

    /// Takes out all who wait for a start; who goes on waiting is put back.
    pub(crate) fn take_for_start(&mut self) -> Vec<Waiting> {
        std::mem::take(&mut self.for_start)
    }

    /// Takes out the one with this number.
    pub(crate) fn take_number(&mut self, number: u64) -> Option<Waiting> {
        let place = self.for_start.iter().position(|waiting| waiting.number == number)?;
        Some(self.for_start.remove(place))
    }

    /// Takes out those who wait as this incarnation; gives their timers.
    pub(crate) fn forget(&mut self, pid: Pid) -> Vec<Option<TimerKey>> {
        let is_own =
            |waiting: &mut Waiting| matches!(waiting.from, Requester::Worker(process, _) if process.pid == pid);
        self.for_start.extract_if(.., is_own).map(|waiting| waiting.timer).collect()
    }

    pub(crate) fn postpone(&mut self, from: Requester, what: Late) {
        self.postponed.push(Postponed { from, what });
    }

    pub(crate) fn take_postponed(&mut self) -> Vec<Postponed> {
        std::mem::take(&mut self.postponed)
    }

    pub(crate) fn wait_for_end(&mut self, of: Pid, from: Requester, wanted: ExitReason) {
        self.for_end.entry(of).or_default().push((from, wanted));
    }

    pub(crate) fn take_for_end(&mut self, of: Pid) -> Vec<(Requester, ExitReason)> {
        self.for_end.remove(&of).unwrap_or_default()
    }

    /// How many wait; for tests that nothing is left behind.
    pub(crate) fn len(&self) -> usize {
        self.for_start.len() + self.postponed.len() + self.for_end.len()
    }
}
