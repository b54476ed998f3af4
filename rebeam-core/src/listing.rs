//! Looking at the tree without changing it: lists, paths, names that look alike.

use rebeam_protocol::control::{Answer, ChildInfo};
use rebeam_protocol::id::{ActorId, ProcessId};
use rebeam_protocol::page::{Snapshot, Stage as MarkStage};
use rebeam_protocol::spec::{Strategy, SupervisorKind, SupervisorSpec};

use crate::actor::{Life, Stage};
use crate::core::{Core, ROOT, busy_with};
use crate::supervisor::ChildState;

impl Core {
    /// Every child of every supervisor, in tree order. `process` gives what the shell knows of a process: its id for
    /// the system, its page, and the time on the page's clock.
    pub fn list(&self, mut process: impl FnMut(ProcessId) -> Option<(u32, Snapshot, u64)>) -> Vec<ChildInfo> {
        let mut list = Vec::new();
        self.list_below(ROOT, 0, &mut process, &mut list);
        if let Some(spawner) = self.spawner {
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
        let Some(node) = self.supervisors.get(&supervisor) else { return };
        for (id, ..) in node.machine.children() {
            if self.actors.contains_key(&id) {
                list.push(self.describe_actor(id, depth, process));
                continue;
            }
            let Some(inner) = self.supervisors.get(&id) else { continue };
            list.push(ChildInfo {
                id: inner.path.clone(),
                name: inner.spec.name.clone(),
                supervisor: true,
                state: inner.machine.state_word().into(),
                class: sort_of(&inner.spec).into(),
                pid: inner.pid,
                os_pid: None,
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
        id: ActorId,
        depth: u32,
        process: &mut impl FnMut(ProcessId) -> Option<(u32, Snapshot, u64)>,
    ) -> ChildInfo {
        let actor = &self.actors[&id];
        let incarnation = actor.incarnation();
        let known = incarnation.and_then(|incarnation| process(incarnation.process));
        let not_begun = known.as_ref().map_or(0, |(_, page, _)| {
            actor.mailbox.handed().filter(|(seq, _)| page.stage(seq.0) == MarkStage::Waiting).count()
        });
        ChildInfo {
            id: actor.path.clone(),
            name: actor.spec.name.clone(),
            supervisor: false,
            state: self.state_word(id).into(),
            class: actor.spec.class.clone(),
            pid: incarnation.map(|incarnation| incarnation.process.pid),
            os_pid: known.as_ref().map(|(os_pid, ..)| *os_pid),
            restarts: actor.starts.saturating_sub(1),
            waiting: (actor.mailbox.len() + not_begun) as u64,
            age_ms: incarnation.map(|incarnation| self.now.saturating_sub(incarnation.since).as_millis() as u64),
            depth,
            memory_kib: None,
            busy: known.and_then(|(_, page, now_ns)| busy_with(actor, &page, now_ns)),
            expired: actor.expired,
        }
    }

    pub(crate) fn state_word(&self, id: ActorId) -> &'static str {
        let actor = &self.actors[&id];
        let state = self.supervisors.get(&actor.parent).and_then(|parent| parent.machine.state(id));
        match (&actor.life, state) {
            (Life::Alive(incarnation), _) => match incarnation.stage {
                Stage::Starting => "starting",
                Stage::Running => "running",
                Stage::Recycling => "recycling",
                Stage::Stopping { .. } => "stopping",
            },
            (_, Some(ChildState::Parked)) => "parked",
            (Life::Waiting, Some(ChildState::Restarting | ChildState::Ended(_))) => "restarting",
            (Life::Waiting | Life::Gone, _) => "stopped",
        }
    }

    /// The answer about a name that nobody has.
    pub fn not_found(&self, name: String) -> Answer {
        Answer::NotFound { similar: self.similar(&name), name }
    }

    /// Up to three names or paths that look like `name`, the nearest first.
    pub(crate) fn similar(&self, name: &str) -> Vec<String> {
        let labels = self.actors.values().map(|actor| &actor.label);
        let mut near: Vec<(f64, &String)> =
            labels.map(|label| (strsim::jaro_winkler(name, label), label)).filter(|(score, _)| *score > 0.8).collect();
        near.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| a.1.cmp(b.1)));
        near.into_iter().take(3).map(|(_, label)| label.clone()).collect()
    }
}

/// A word for what a supervisor does with its children.
pub(crate) fn sort_of(spec: &SupervisorSpec) -> &'static str {
    match (spec.kind, spec.strategy) {
        (SupervisorKind::Dynamic { .. } | SupervisorKind::Spawned, _) => "Dynamic",
        (SupervisorKind::Partition, _) => "Partition",
        (SupervisorKind::Registry { .. }, _) => "Registry",
        (SupervisorKind::Static, Strategy::OneForOne) => "OneForOne",
        (SupervisorKind::Static, Strategy::OneForAll) => "OneForAll",
        (SupervisorKind::Static, Strategy::RestForOne) => "RestForOne",
    }
}
