//! What the core keeps about one actor, over all its incarnations.

use std::sync::Arc;
use std::time::Duration;

use rebeam_protocol::address::Address;
use rebeam_protocol::id::{ActorId, Pid, ProcessId, Seq};
use rebeam_protocol::page::{Snapshot, Stage};
use rebeam_protocol::spec::{ActorSpec, Restart, Shutdown};

use crate::incarnation::Incarnation;
use crate::mailbox::{Mailbox, Message};

#[derive(Debug)]
pub(crate) struct Actor {
    pub(crate) id: ActorId,
    /// Its name, or its path in the tree.
    pub(crate) label: String,
    pub(crate) path: String,
    pub(crate) spec: Arc<ActorSpec>,
    pub(crate) restart: Restart,
    pub(crate) shutdown: Shutdown,
    /// The supervisor that holds it.
    pub(crate) parent: ActorId,
    pub(crate) mailbox: Mailbox,
    pub(crate) life: Life,
    /// How often it was started.
    pub(crate) starts: u32,
    /// Whether its arguments were let go, so that it cannot start over.
    pub(crate) has_no_arguments: bool,
    /// Its last incarnation, alive or not.
    pub(crate) last_pid: Option<Pid>,
    /// Calls that were dropped before they were handed over: nobody waited for them any more.
    pub(crate) expired: u64,
    /// Who had it spawned, and takes it along with its own end.
    pub(crate) owner: Option<Pid>,
    /// Whether it is linked to its owner from its first moment on.
    pub(crate) is_linked: bool,
    /// Since when it has had no running incarnation, if it has none.
    pub(crate) down_since: Option<Duration>,
    /// From which level on it logs, if somebody has said.
    pub(crate) log_level: Option<u16>,
}

/// Where an actor is between two incarnations, or in one.
#[derive(Debug)]
pub(crate) enum Life {
    /// Between incarnations: it may come back, and its mail waits.
    Waiting,
    /// It does not come back by itself: calls fail, casts are dropped.
    Gone,
    /// It has a process.
    Alive(Box<Incarnation>),
}

impl Actor {
    pub(crate) fn incarnation(&self) -> Option<&Incarnation> {
        match &self.life {
            Life::Alive(incarnation) => Some(incarnation),
            Life::Waiting | Life::Gone => None,
        }
    }

    pub(crate) fn incarnation_mut(&mut self) -> Option<&mut Incarnation> {
        match &mut self.life {
            Life::Alive(incarnation) => Some(incarnation),
            Life::Waiting | Life::Gone => None,
        }
    }

    /// The process that it has now.
    pub(crate) fn process(&self) -> Option<ProcessId> {
        Some(self.incarnation()?.process())
    }

    /// The incarnation that it has now.
    pub(crate) fn pid(&self) -> Option<Pid> {
        Some(self.process()?.pid)
    }

    /// Whether it was killed, and is only not known to be dead yet.
    pub(crate) fn is_being_killed(&self) -> bool {
        self.incarnation().is_some_and(|incarnation| incarnation.machine.is_being_killed())
    }

    /// The address by which mail to it outlives its incarnations.
    pub(crate) fn address(&self) -> Address {
        match &self.spec.name {
            Some(name) => Address::Name(name.clone()),
            None => Address::Actor(self.id),
        }
    }

    /// Messages that wait for it: in its mailbox, and those that its process was handed and has not begun.
    pub(crate) fn waiting(&self, page: Option<&Snapshot>) -> usize {
        let not_begun = |page: &Snapshot| self.handed_at(page, Stage::Waiting).count();
        self.mailbox.len() + page.map_or(0, not_begun)
    }

    /// Since when the oldest message waits for it, the process's own included.
    pub(crate) fn oldest(&self, page: Option<&Snapshot>) -> Option<Duration> {
        let handed = page.and_then(|page| self.handed_at(page, Stage::Waiting).map(|(_, message)| message.at).min());
        self.mailbox.oldest().into_iter().chain(handed).min()
    }

    /// What it has in hand by its page: the oldest message begun and not done, and for how many milliseconds.
    pub(crate) fn busy_with(&self, page: &Snapshot, now_ns: u64) -> Option<(String, u64)> {
        let (Seq(seq), message) = self.handed_at(page, Stage::Begun).next()?;
        Some((message.head.method.clone(), now_ns.saturating_sub(page.since_ns(*seq)) / 1_000_000))
    }

    fn handed_at<'a>(&'a self, page: &'a Snapshot, stage: Stage) -> impl Iterator<Item = &'a (Seq, Message)> {
        self.mailbox.handed().filter(move |(seq, _)| page.stage(seq.0) == stage)
    }
}
