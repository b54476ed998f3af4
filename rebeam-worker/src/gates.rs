//! Which mailboxes are full, as far as this worker was told: whoever sends to one waits, or fails at once.
//!
//! A mailbox belongs to an actor, and an actor may be known by several addresses; the keys of a partition supervisor are
//! as many as there are numbers. So a gate is about an actor, and addresses lead to it.

use std::collections::HashMap;

use rebeam_protocol::address::Address;
use rebeam_protocol::id::ActorId;
use rebeam_protocol::worker::{Full, Gate};

#[derive(Default)]
pub(crate) struct Gates {
    full: HashMap<ActorId, Full>,
    /// By which addresses this worker has sent to those.
    known: HashMap<Address, ActorId>,
    /// Among how many copies the keys of a partition supervisor choose.
    copies: HashMap<String, u64>,
}

impl Gates {
    pub(crate) fn note(&mut self, gate: Gate) {
        match gate {
            Gate::Open { actor } => {
                self.full.remove(&actor);
                // Somebody else may have one of the addresses by the time it is full again.
                self.known.retain(|_, known| *known != actor);
            }
            Gate::Shut { actor, to, copies, full } => {
                if let (Address::Partition { name, .. }, Some(copies)) = (&to, copies) {
                    self.copies.insert(name.clone(), copies);
                }
                self.full.insert(actor, full);
                self.known.insert(to, actor);
            }
        }
    }

    /// What a send to an address has to do first, if anything.
    pub(crate) fn blocked(&self, to: &Address) -> Option<Full> {
        if self.full.is_empty() {
            return None;
        }
        let canonical = to.canonical(|name| self.copies.get(name).copied());
        self.full.get(self.known.get(&canonical)?).copied()
    }
}
