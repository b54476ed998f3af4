//! Looking at the tree without changing it: lists, paths, names that look alike.

use rebeam_protocol::id::{ActorId, ProcessId};
use rebeam_protocol::outside::{Answer, ChildInfo, MemberKind};
use rebeam_protocol::page::Snapshot;
use rebeam_protocol::state::MemberState;

use super::Core;
use crate::actor::{Actor, Life};
use crate::members::ROOT;
use crate::supervisor::ChildState;

impl Core {
    /// Every child of every supervisor, in tree order. `process` gives what the shell knows of a process: its id for
    /// the system, its page, and the time on the page's clock.
    pub fn list(&self, mut process: impl FnMut(ProcessId) -> Option<(u32, Snapshot, u64)>) -> Vec<ChildInfo> {
        let mut list = Vec::new();
        self.list_below(ROOT, 0, &mut process, &mut list);
        if let Some(spawner) = self.members.spawner() {
            self.list_below(spawner, 0, &mut process, &mut list);
        }
        list
    }

    fn list_below(
        &self,
        supervisor: ActorId,
        depth: u32,
        process: &mut impl FnMut(ProcessId) -> Option<(u32, Snapshot, u64)>,
        list: &mut Vec<ChildInfo>,
    ) {
        let Some(supervisor) = self.members.supervisor(supervisor) else { return };
        for (id, ..) in supervisor.machine.children() {
            if let Some(actor) = self.members.actor(id) {
                list.push(self.describe_actor(actor, depth, process));
                continue;
            }
            let Some(inner) = self.members.supervisor(id) else { continue };
            list.push(ChildInfo {
                id: inner.path.clone(),
                name: inner.spec.name.clone(),
                kind: MemberKind::Supervisor(inner.sort()),
                state: inner.machine.member_state(),
                pid: inner.pid,
                os_pid: None,
                code: None,
                restarts: inner.starts.saturating_sub(1),
                waiting: 0,
                age_ms: None,
                depth,
                memory_kib: None,
                busy: None,
                expired: 0,
            });
            self.list_below(id, depth + 1, process, list);
        }
    }

    fn describe_actor(
        &self,
        actor: &Actor,
        depth: u32,
        process: &mut impl FnMut(ProcessId) -> Option<(u32, Snapshot, u64)>,
    ) -> ChildInfo {
        let incarnation = actor.incarnation();
        let known = actor.process().and_then(process);
        ChildInfo {
            id: actor.path.clone(),
            name: actor.spec.name.clone(),
            kind: MemberKind::Actor(actor.spec.class.clone()),
            state: self.state_of(actor.id),
            pid: actor.pid(),
            os_pid: known.as_ref().map(|(os_pid, ..)| *os_pid),
            code: incarnation.map(|incarnation| incarnation.version),
            restarts: actor.starts.saturating_sub(1),
            waiting: actor.waiting(known.as_ref().map(|(_, page, _)| page)) as u64,
            age_ms: incarnation.map(|incarnation| self.now.saturating_sub(incarnation.since).as_millis() as u64),
            depth,
            memory_kib: None,
            busy: known.and_then(|(_, page, now_ns)| actor.busy_with(&page, now_ns)),
            expired: actor.expired,
        }
    }

    /// What an actor is doing.
    pub(super) fn state_of(&self, id: ActorId) -> MemberState {
        let Some(actor) = self.members.actor(id) else { return MemberState::Stopped };
        let state = self.members.supervisor(actor.parent).and_then(|parent| parent.machine.state(id));
        match (&actor.life, state) {
            (Life::Alive(incarnation), _) => incarnation.machine.state(),
            (_, Some(ChildState::Parked)) => MemberState::Parked,
            (Life::Waiting, Some(ChildState::Restarting | ChildState::Ended(_))) => MemberState::Restarting,
            (Life::Waiting | Life::Gone, _) => MemberState::Stopped,
        }
    }

    /// The answer about a name that nobody has.
    pub fn not_found(&self, name: String) -> Answer {
        Answer::NotFound { similar: self.similar(&name), name }
    }

    /// Up to three names or paths that look like `name`, the nearest first.
    pub(super) fn similar(&self, name: &str) -> Vec<String> {
        let labels = self.members.actors().map(|actor| &actor.label);
        let mut near: Vec<(f64, &String)> =
            labels.map(|label| (strsim::jaro_winkler(name, label), label)).filter(|(score, _)| *score > 0.8).collect();
        near.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| a.1.cmp(b.1)));
        near.into_iter().take(3).map(|(_, label)| label.clone()).collect()
    }
}
