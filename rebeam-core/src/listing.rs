//! Looking at the tree without changing it: lists, paths, names that look alike.

use rebeam_protocol::control::{Answer, ChildInfo};
use rebeam_protocol::id::{ActorId, ProcessId};
use rebeam_protocol::page::{Snapshot, Stage as MarkStage};

use crate::actor::{Life, Stage};
use crate::core::{Core, Member, ROOT, busy_with};
use crate::supervisor::{ChildKey, ChildState};

impl Core {
    /// Every child of every supervisor, in tree order. `process` gives what the shell knows of a process: its id for
    /// the system, its page, and the time on the page's clock.
    pub fn list(&self, mut process: impl FnMut(ProcessId) -> Option<(u32, Snapshot, u64)>) -> Vec<ChildInfo> {
        let mut list = Vec::new();
        self.list_below(ROOT, 0, &mut process, &mut list);
        list
    }

    fn list_below(
        &self,
        supervisor: usize,
        depth: u32,
        process: &mut impl FnMut(ProcessId) -> Option<(u32, Snapshot, u64)>,
        list: &mut Vec<ChildInfo>,
    ) {
        for member in &self.supervisors[supervisor].members {
            match *member {
                Member::Actor(id) => list.push(self.describe_actor(id, depth, process)),
                Member::Supervisor(inner) => {
                    let node = &self.supervisors[inner];
                    list.push(ChildInfo {
                        id: node.path.clone(),
                        name: None,
                        supervisor: true,
                        state: node.machine.state_word().into(),
                        class: format!("{:?}", node.spec.strategy),
                        pid: None,
                        os_pid: None,
                        restarts: node.starts.saturating_sub(1),
                        waiting: 0,
                        age_ms: None,
                        depth,
                        memory_kib: None,
                        busy: None,
                    });
                    self.list_below(inner, depth + 1, process, list);
                }
            }
        }
    }

    fn describe_actor(
        &self,
        id: ActorId,
        depth: u32,
        process: &mut impl FnMut(ProcessId) -> Option<(u32, Snapshot, u64)>,
    ) -> ChildInfo {
        let actor = self.actor(id);
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
        }
    }

    pub(crate) fn state_word(&self, id: ActorId) -> &'static str {
        let actor = self.actor(id);
        match &actor.life {
            Life::Alive(incarnation) => match incarnation.stage {
                Stage::Starting => "starting",
                Stage::Running => "running",
                Stage::Stopping { .. } => "stopping",
            },
            Life::Gone => "stopped",
            Life::Waiting => match self.supervisors[actor.parent.0].machine.child_state(actor.parent.1) {
                ChildState::Restarting | ChildState::Ended(_) => "restarting",
                _ => "stopped",
            },
        }
    }

    /// A child by its name or path.
    pub(crate) fn find(&self, name: &str) -> Option<(usize, ChildKey, Member)> {
        let by_name = self.names.get(name).map(|&id| self.actor(id));
        let actor = by_name.or_else(|| self.actors.iter().find(|actor| actor.path == name));
        if let Some(actor) = actor {
            return Some((actor.parent.0, actor.parent.1, Member::Actor(actor.id)));
        }
        let place = self.supervisors.iter().position(|node| node.path == name && node.parent.is_some())?;
        let (parent, child) = self.supervisors[place].parent?;
        Some((parent, child, Member::Supervisor(place)))
    }

    pub(crate) fn not_found(&self, name: String) -> Answer {
        Answer::NotFound { similar: self.similar(&name), name }
    }

    /// Up to three names or paths that look like `name`, the nearest first.
    pub(crate) fn similar(&self, name: &str) -> Vec<String> {
        let labels = self.actors.iter().map(|actor| &actor.label);
        let mut near: Vec<(f64, &String)> =
            labels.map(|label| (strsim::jaro_winkler(name, label), label)).filter(|(score, _)| *score > 0.8).collect();
        near.sort_by(|a, b| b.0.total_cmp(&a.0));
        near.into_iter().take(3).map(|(_, label)| label.clone()).collect()
    }
}
