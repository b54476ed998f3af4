//! How many of something each incarnation has. Only numbers: who has none takes no room.

use std::collections::HashMap;

use rebeam_protocol::id::Pid;
use rustc_hash::FxBuildHasher;

#[derive(Debug, Default)]
pub(crate) struct Tally {
    counts: HashMap<Pid, usize, FxBuildHasher>,
}

impl Tally {
    pub(crate) fn add(&mut self, pid: Pid) {
        *self.counts.entry(pid).or_default() += 1;
    }

    pub(crate) fn take(&mut self, pid: Pid) {
        if let Some(count) = self.counts.get_mut(&pid) {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&pid);
            }
        }
    }

    pub(crate) fn of(&self, pid: Pid) -> usize {
        self.counts.get(&pid).copied().unwrap_or(0)
    }

    /// How many incarnations have any; for tests that nothing is left behind.
    pub(crate) fn len(&self) -> usize {
        self.counts.len()
    }
}
