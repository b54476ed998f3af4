//! Deadlocks: waits that can only end by each other.
//!
//! A wait leads to those who stand between it and its end: to the handler that has the call in hand, if that waits
//! itself; to everything an actor waits for, if it can take no message before one of those ends; to the child that a
//! supervisor is starting. If every wait that can be reached leads on, none of them can end. Where something may go on
//! that is not known here (a handler that runs, a thread, an answer that was put off and that somebody else may give),
//! there is no deadlock (rule 10 of the design). It must not change anything.

use std::collections::HashSet;

use rebeam_protocol::address::{Caller, ReplyTo};
use rebeam_protocol::id::{ActorId, Seq};
use rebeam_protocol::message::Waits;
use rebeam_protocol::spec::SupervisorKind;

use super::Core;
use crate::actor::{Actor, Life};
use crate::router::On;
use crate::supervisor::ChildState;

impl Core {
    /// The cycle of waits, as it reads, that this one closes; `None` if it may end. `method` is the one it is about.
    pub(super) fn deadlock(&self, first: ReplyTo, method: &str) -> Option<Vec<String>> {
        let mut seen = HashSet::new();
        let mut reached = vec![first];
        while let Some(wait) = reached.pop() {
            if seen.insert(wait) {
                let next = self.what_it_waits_for(wait);
                if next.is_empty() {
                    return None;
                }
                reached.extend(next);
            }
        }
        let mut cycle = vec![first];
        while let Some(next) = self.what_it_waits_for(*cycle.last()?).first().copied() {
            if cycle.contains(&next) {
                break;
            }
            cycle.push(next);
        }
        // Handlers of one actor that wait alike are said once.
        let mut words: Vec<String> = Vec::new();
        for wait in cycle {
            let said = self.words(wait, (wait == first).then_some(method));
            let start = self.start_before(wait).map(|label| format!("start of {label}"));
            for said in [said].into_iter().chain(start) {
                if !words.contains(&said) {
                    words.push(said);
                }
            }
        }
        Some(words)
    }

    /// The waits that must end before this one can; none if something else may end it.
    fn what_it_waits_for(&self, wait: ReplyTo) -> Vec<ReplyTo> {
        let Some(open) = self.router.get(wait) else { return Vec::new() };
        if open.is_owed || open.deadline.is_some_and(|deadline| deadline <= self.now) {
            return Vec::new();
        }
        match &open.on {
            On::Supervisor(supervisor) => self.start_under_way(*supervisor, None),
            On::Up(to) => match self.member(to).and_then(|id| self.members.actor(id)) {
                Some(actor) if !matches!(actor.life, Life::Gone) => self.stand_still(actor),
                // Anybody may take a name that is free.
                _ => Vec::new(),
            },
            On::Room(callee, _) => self.members.actor(*callee).map_or_else(Vec::new, |actor| self.stand_still(actor)),
            On::Answer(callee) => {
                let Some(actor) = self.members.actor(*callee) else { return Vec::new() };
                match actor.mailbox.handed_call(wait).and_then(|seq| self.in_hand_of(actor, seq)) {
                    Some(waits) => waits,
                    None => self.stand_still(actor),
                }
            }
        }
    }

    /// What the handler waits for that has this message in hand; `None` if no handler that has it waits.
    fn in_hand_of(&self, actor: &Actor, seq: Seq) -> Option<Vec<ReplyTo>> {
        let pid = actor.pid()?;
        let mut is_any_deferred = false;
        let own = |waits: Waits| match waits {
            Waits::Handler { message, is_deferred } => (message == seq).then_some(is_deferred),
            Waits::Actor { message, is_deferred } => (message == Some(seq)).then_some(is_deferred),
            Waits::Nobody => None,
        };
        let mut found = Vec::new();
        for (wait, open) in self.router.waits_of(pid) {
            if let Some(is_deferred) = own(open.waits) {
                is_any_deferred |= is_deferred;
                found.push(wait);
            }
        }
        // Somebody else may have been told whom to answer.
        (!found.is_empty()).then(|| if is_any_deferred { Vec::new() } else { found })
    }

    /// What has to end before an actor can take a message that it has not begun; nothing if it can.
    fn stand_still(&self, actor: &Actor) -> Vec<ReplyTo> {
        match &actor.life {
            Life::Gone => Vec::new(),
            Life::Waiting => self.start_under_way(actor.parent, Some(actor.id)),
            // Its waits end with it.
            Life::Alive(incarnation) if incarnation.machine.is_ending() => Vec::new(),
            Life::Alive(incarnation) => {
                let pid = incarnation.process().pid;
                let waits = || self.router.waits_of(pid);
                let whole: Vec<ReplyTo> = waits()
                    .filter(|(_, open)| matches!(open.waits, Waits::Actor { .. }))
                    .map(|(wait, _)| wait)
                    .collect();
                if !whole.is_empty() || incarnation.machine.is_starting() {
                    return whole;
                }
                let handlers: HashSet<Seq> = waits()
                    .filter_map(|(_, open)| match open.waits {
                        Waits::Handler { message, .. } => Some(message),
                        Waits::Actor { .. } | Waits::Nobody => None,
                    })
                    .collect();
                let is_full = handlers.len() as u64 >= u64::from(actor.spec.concurrency);
                if is_full { waits().map(|(wait, _)| wait).collect() } else { Vec::new() }
            }
        }
    }

    /// What the child waits for that a supervisor is starting, and before which it does nothing else; of interest to a
    /// child that is to be started after it, or to whoever asked the supervisor.
    fn start_under_way(&self, supervisor: ActorId, later: Option<ActorId>) -> Vec<ReplyTo> {
        match self.starting_child(supervisor) {
            Some(child) if Some(child) != later => match self.members.actor(child) {
                Some(actor) => self.stand_still(actor),
                None => self.start_under_way(child, None),
            },
            _ => Vec::new(),
        }
    }

    /// The child that a supervisor is starting, and before which it does nothing else.
    fn starting_child(&self, supervisor: ActorId) -> Option<ActorId> {
        let node = self.members.supervisor(supervisor).filter(|node| node.spec.kind != SupervisorKind::Spawned)?;
        node.machine.children().find(|(_, _, state)| **state == ChildState::Starting).map(|(child, ..)| child)
    }

    /// Whose start comes before a wait can end.
    fn start_before(&self, wait: ReplyTo) -> Option<&str> {
        let callee = match &self.router.get(wait)?.on {
            On::Supervisor(supervisor) => {
                return self.members.actor(self.starting_child(*supervisor)?).map(|actor| &*actor.label);
            }
            On::Answer(callee) | On::Room(callee, _) => *callee,
            On::Up(to) => self.member(to)?,
        };
        let actor = self.members.actor(callee)?;
        matches!(actor.life, Life::Waiting).then_some(&*actor.label)
    }

    /// A wait as it reads: `a.call(B.x)`.
    fn words(&self, wait: ReplyTo, method: Option<&str>) -> String {
        let who = match wait.caller {
            Caller::Outside(_) => "outside".to_owned(),
            Caller::Actor(pid) => match self.members.living_actor(pid) {
                Some(actor) => actor.label.clone(),
                None => pid.to_string(),
            },
        };
        let class = |id: &ActorId| {
            let class = self.members.actor(*id).map_or("", |actor| actor.spec.class.as_str());
            class.rsplit('.').next().unwrap_or(class).to_owned()
        };
        match self.router.get(wait).map(|open| &open.on) {
            Some(On::Answer(callee)) => {
                let message = || self.members.actor(*callee).and_then(|actor| actor.mailbox.find_call(wait));
                let method = method.unwrap_or_else(|| message().map_or("?", |message| &message.head.method));
                format!("{who}.call({}.{method})", class(callee))
            }
            Some(On::Room(callee, method)) => format!("{who}.cast({}.{method})", class(callee)),
            Some(On::Supervisor(supervisor)) => {
                let path = self.members.supervisor(*supervisor).map_or("", |node| node.path.as_str());
                format!("{who}.supervisor({})", if path.is_empty() { "root" } else { path })
            }
            Some(On::Up(to)) => format!("{who}.wait_for({})", to),
            None => who,
        }
    }
}
