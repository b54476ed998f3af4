//! The deaths that are remembered: what `rebeam why` shows, also of actors that are gone from the tree.
//!
//! Bounded per actor by count and for the whole node by bytes; the oldest go first. A certificate is shared with
//! whoever else holds it.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use rebeam_protocol::certificate::{Certificate, Next};
use rebeam_protocol::id::ActorId;
use rustc_hash::FxBuildHasher;

/// How many are kept of one actor.
const MOST_OF_ONE: usize = 10;

/// Bytes that all of them together may take.
const MOST_BYTES: usize = 16 * 1024 * 1024;

#[derive(Debug, Default)]
pub(crate) struct Deaths {
    kept: BTreeMap<u64, Death>,
    by_actor: HashMap<ActorId, VecDeque<u64>, FxBuildHasher>,
    last: u64,
    bytes: usize,
}

#[derive(Debug)]
struct Death {
    actor: ActorId,
    certificate: Arc<Certificate>,
    /// What followed: later than the certificate was written, if the supervisor had no time then.
    next: Next,
}

impl Deaths {
    pub(crate) fn add(&mut self, actor: ActorId, certificate: Arc<Certificate>) {
        self.last += 1;
        self.bytes += certificate.size();
        let next = certificate.next;
        self.kept.insert(self.last, Death { actor, certificate, next });
        let own = self.by_actor.entry(actor).or_default();
        own.push_back(self.last);
        if own.len() > MOST_OF_ONE
            && let Some(oldest) = own.front().copied()
        {
            self.remove(oldest);
        }
        while self.bytes > MOST_BYTES
            && let Some(oldest) = self.kept.keys().next().copied()
        {
            self.remove(oldest);
        }
    }

    fn remove(&mut self, number: u64) {
        let Some(death) = self.kept.remove(&number) else { return };
        self.bytes -= death.certificate.size();
        if let Some(own) = self.by_actor.get_mut(&death.actor) {
            own.retain(|other| *other != number);
            if own.is_empty() {
                self.by_actor.remove(&death.actor);
            }
        }
    }

    /// What followed the last death of an actor was decided.
    pub(crate) fn decided(&mut self, actor: ActorId, next: Next) {
        let last = self.by_actor.get(&actor).and_then(|own| own.back());
        if let Some(death) = last.and_then(|number| self.kept.get_mut(number)) {
            death.next = next;
        }
    }

    /// The last death of an actor.
    pub(crate) fn last_of(&self, actor: ActorId) -> Option<&Arc<Certificate>> {
        let number = self.by_actor.get(&actor)?.back()?;
        self.kept.get(number).map(|death| &death.certificate)
    }

    /// The deaths of an actor, oldest first, each with what followed.
    pub(crate) fn of(&self, actor: ActorId) -> Vec<(Arc<Certificate>, Next)> {
        let numbers = self.by_actor.get(&actor).into_iter().flatten();
        numbers.filter_map(|number| self.kept.get(number)).map(Death::told).collect()
    }

    /// The same, of whoever had this name or path.
    pub(crate) fn named(&self, label: &str) -> Vec<(Arc<Certificate>, Next)> {
        self.kept.values().filter(|death| death.certificate.actor == label).map(Death::told).collect()
    }
}

impl Death {
    fn told(&self) -> (Arc<Certificate>, Next) {
        (self.certificate.clone(), self.next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rebeam_protocol::certificate::Killer;
    use rebeam_protocol::exit::ExitReason;
    use rebeam_protocol::id::{NodeStart, Pid, Version};

    fn certificate(actor: &str, stacks: usize) -> Arc<Certificate> {
        Arc::new(Certificate {
            actor: actor.into(),
            pid: Pid { at: NodeStart::default(), serial: 1 },
            os_pid: 1,
            reason: ExitReason::Killed,
            in_hand: Vec::new(),
            killer: Killer::Nobody,
            stacks: "x".repeat(stacks),
            next: Next::Nothing,
            last_output: Vec::new(),
            code: Version::FIRST,
            age_ms: 0,
            restarts: 0,
            cpu_ms: 0,
            peak_kib: 0,
        })
    }

    #[test]
    fn the_oldest_deaths_go_first_by_count_and_by_bytes() {
        let mut deaths = Deaths::default();
        for number in 0..12 {
            deaths.add(ActorId(1), certificate(&format!("a{number}"), 0));
        }
        assert_eq!(deaths.of(ActorId(1)).len(), MOST_OF_ONE);
        assert_eq!(deaths.last_of(ActorId(1)).map(|it| it.actor.as_str()), Some("a11"));
        for id in 2..50 {
            deaths.add(ActorId(id), certificate("large", 1024 * 1024));
        }
        assert!(deaths.bytes <= MOST_BYTES, "{}", deaths.bytes);
        assert_eq!(deaths.of(ActorId(1)), [], "what is older made room");
        assert_eq!(deaths.named("large").len(), deaths.kept.len());
    }

    #[test]
    fn a_late_decision_changes_what_followed_and_not_the_certificate() {
        let mut deaths = Deaths::default();
        deaths.add(ActorId(1), certificate("a", 0));
        deaths.decided(ActorId(1), Next::StaysDown);
        let told = deaths.of(ActorId(1));
        assert_eq!((told[0].0.next, told[0].1), (Next::Nothing, Next::StaysDown));
    }
}
