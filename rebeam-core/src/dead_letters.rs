//! Messages that nobody handled and nobody will: kept within bounds, to be looked at and sent again.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use rebeam_protocol::address::Address;
use rebeam_protocol::certificate::Certificate;
use rebeam_protocol::id::Pid;
use rebeam_protocol::message::{Cause, DeadLetter};
use rebeam_protocol::outside::Which;

use crate::actor::Actor;
use crate::mailbox::Message;

/// How many are kept, and how many bytes, with the deaths that made them dead letters. One whose content alone is larger is
/// kept without it.
const MOST: usize = 1000;
const MOST_BYTES: usize = 16 * 1024 * 1024;

#[derive(Debug, Default)]
pub(crate) struct DeadLetters {
    kept: VecDeque<Kept>,
    bytes: usize,
    /// How many there were.
    count: u64,
    forgotten: u64,
    /// Who gets a message for every one.
    subscribers: BTreeSet<Pid>,
}

/// Why a message ends here.
#[derive(Clone, Debug)]
pub(crate) struct End {
    /// Where it would go if it were sent again.
    pub(crate) to: Address,
    /// The same, for people.
    pub(crate) label: String,
    pub(crate) cause: Cause,
    pub(crate) certificates: Vec<Arc<Certificate>>,
}

impl End {
    /// Of a message to an actor, that is not anybody's fault.
    pub(crate) fn of(actor: &Actor, cause: Cause) -> Self {
        End { to: actor.address(), label: actor.label.clone(), cause, certificates: Vec::new() }
    }
}

#[derive(Debug)]
struct Kept {
    letter: DeadLetter,
    certificates: Vec<Arc<Certificate>>,
    to: Address,
    /// Its content, unless it is too large.
    message: Option<Message>,
}

impl Kept {
    /// About how many bytes of memory it takes.
    fn size(&self) -> usize {
        let certificates = self.certificates.iter().map(|certificate| certificate.size()).sum::<usize>();
        self.letter.size() + certificates + self.message.as_ref().map_or(0, Message::size)
    }
}

impl DeadLetters {
    /// An incarnation wants a message for every one from now on.
    pub(crate) fn subscribe(&mut self, pid: Pid) {
        self.subscribers.insert(pid);
    }

    /// It wants them no more, or has ended.
    pub(crate) fn unsubscribe(&mut self, pid: Pid) {
        self.subscribers.remove(&pid);
    }

    pub(crate) fn subscribed(&self) -> Vec<Pid> {
        self.subscribers.iter().copied().collect()
    }

    /// How many incarnations subscribe; for tests that nothing is left behind.
    pub(crate) fn subscribers(&self) -> usize {
        self.subscribers.len()
    }

    /// Keeps one; gives what is to be said of it.
    pub(crate) fn add(&mut self, message: Message, sender: String, end: End, now: Duration) -> DeadLetter {
        let End { to, label, cause, certificates } = end;
        self.count += 1;
        let bytes = message.size();
        let is_kept = bytes <= MOST_BYTES;
        let letter = DeadLetter {
            id: self.count,
            to: label,
            sender,
            method: message.head.method.clone(),
            cause,
            at_ms: now.as_millis() as u64,
            deliveries: message.deliveries,
            bytes: bytes as u64,
            is_kept,
            certificates: Vec::new(),
        };
        let kept = Kept { letter: letter.clone(), certificates, to, message: is_kept.then_some(message) };
        self.bytes += kept.size();
        self.kept.push_back(kept);
        while self.kept.len() > MOST || self.bytes > MOST_BYTES {
            self.forgotten += 1;
            self.remove(0);
        }
        letter
    }

    fn remove(&mut self, place: usize) -> Option<Kept> {
        let kept = self.kept.remove(place)?;
        self.bytes -= kept.size();
        Some(kept)
    }

    /// All that are kept, oldest first, without certificates; and how many are kept no more.
    pub(crate) fn list(&self) -> (Vec<DeadLetter>, u64) {
        (self.kept.iter().map(|kept| kept.letter.clone()).collect(), self.forgotten)
    }

    /// One, with its certificates.
    pub(crate) fn show(&self, id: u64) -> Option<DeadLetter> {
        let kept = self.kept.iter().find(|kept| kept.letter.id == id)?;
        Some(DeadLetter { certificates: kept.certificates.clone(), ..kept.letter.clone() })
    }

    /// Takes out those that are meant and that `wanted` accepts by their address; gives what is kept of their content.
    pub(crate) fn take(
        &mut self,
        which: &Which,
        wanted: impl Fn(&Address, bool) -> bool,
    ) -> Vec<(Address, Option<Message>)> {
        let is_meant = |letter: &DeadLetter| match which {
            Which::All => true,
            Which::Ids(ids) => ids.contains(&letter.id),
            Which::To(label) => letter.to == *label,
        };
        let places: Vec<usize> = (0..self.kept.len())
            .filter(|place| {
                is_meant(&self.kept[*place].letter) && wanted(&self.kept[*place].to, self.kept[*place].letter.is_kept)
            })
            .collect();
        let mut taken: Vec<Kept> = places.into_iter().rev().filter_map(|place| self.remove(place)).collect();
        taken.reverse();
        taken.into_iter().map(|kept| (kept.to, kept.message)).collect()
    }

    /// For whom those were that are kept.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = &Address> {
        self.kept.iter().map(|kept| &kept.to)
    }
}
