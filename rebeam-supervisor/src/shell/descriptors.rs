//! The descriptors of the supervisor, and who may take how many: actors, memory for large buffers, clients.
//!
//! An actor that cannot be started for want of descriptors is worse off than a buffer that is copied, or a client that waits.
//! So each of those has a share, and memory for buffers gives way to actors.

use std::sync::atomic::Ordering;

use nix::sys::resource::{Resource, getrlimit};

use crate::shell::arenas::Count;

/// Descriptors of the supervisor per actor: channel, lifeline, stdout, stderr.
pub(crate) const PER_ACTOR: u64 = 4;

/// What the supervisor takes for itself.
pub(crate) const OWN: u64 = 64;

/// How many descriptors we may have at most.
pub(crate) fn limit() -> u64 {
    getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(_, hard)| hard)
}

/// How many clients there may be at once of a sort of which there should be no more than `most`.
pub(crate) fn clients(most: usize) -> usize {
    most.min(usize::try_from(limit() / 16).unwrap_or(most)).max(4)
}

/// What is used, as far as it is counted.
#[derive(Debug)]
pub(crate) struct Descriptors {
    limit: u64,
    /// Memory for large buffers that is kept.
    pub(crate) arenas: Count,
    are_few: bool,
}

impl Descriptors {
    /// Of this process, whose limit stays as it is now.
    pub(crate) fn new() -> Self {
        Descriptors { limit: limit(), arenas: Count::default(), are_few: false }
    }

    /// Whether a worker may have one more memory for large buffers. One that makes more although descriptors are few does
    /// not do as it is told.
    pub(crate) fn has_room_for_arena(&self) -> bool {
        (self.arenas.load(Ordering::Relaxed) as u64) < self.limit / 2
    }

    /// Whether memory for large buffers is to be made no more, or again, if that has changed; by how many workers there are,
    /// and readers of tables among them.
    pub(crate) fn look(&mut self, workers: usize, readers: usize) -> Option<bool> {
        let arenas = self.arenas.load(Ordering::Relaxed) as u64;
        let actors = OWN + workers as u64 * PER_ACTOR + readers as u64;
        // An eighth is kept for what was not counted, and for actors to come. Nothing is decided back and forth.
        let most = (self.limit / 4).min((self.limit - self.limit / 8).saturating_sub(actors));
        let most = if self.are_few { most / 4 * 3 } else { most };
        let are_few = arenas >= most;
        (std::mem::replace(&mut self.are_few, are_few) != are_few).then_some(are_few)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_for_buffers_gives_way_to_actors() {
        let mut descriptors = Descriptors { limit: 1024, arenas: Count::default(), are_few: false };
        let mut look = |arenas, workers| {
            descriptors.arenas.store(arenas, Ordering::Relaxed);
            descriptors.look(workers, 0)
        };
        assert_eq!(look(255, 10), None);
        assert_eq!(look(256, 10), Some(true), "a quarter of all");
        assert_eq!(look(200, 10), None, "nothing flutters");
        assert_eq!(look(191, 10), Some(false));
        assert_eq!(look(40, 200), Some(true), "832 of 896 are the actors'");
        assert_eq!(look(40, 10), Some(false));
    }
}
