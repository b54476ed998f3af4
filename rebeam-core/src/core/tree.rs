//! Members of the tree: supervisors and actors, who holds whom, and under which names.

use std::collections::VecDeque;
use std::sync::Arc;

use rebeam_protocol::certificate::Certificate;
use rebeam_protocol::id::{ActorId, Pid};
use rebeam_protocol::message::Address;
use rebeam_protocol::spec::{AutoShutdown, ChildKind, ChildSpec, Shutdown, Strategy, SupervisorKind, SupervisorSpec};

use super::{Core, ROOT};
use crate::actor::{Actor, Life};
use crate::mailbox::Mailbox;
use crate::supervisor::{Machine, Traits};
use crate::timers::TimerKey;

/// The path of the node's own dynamic supervisor.
const SPAWNER: &str = "spawned";

/// How many certificates are kept of actors that are gone for good.
const DEPARTED: usize = 100;

/// A supervisor of the tree.
#[derive(Debug)]
pub(crate) struct SupervisorNode {
    pub(crate) path: String,
    pub(crate) spec: Arc<SupervisorSpec>,
    pub(crate) shutdown: Shutdown,
    pub(crate) parent: Option<ActorId>,
    pub(crate) machine: Machine,
    /// The children of its initial list, in its order. They are kept over its own restarts, with their mail.
    pub(crate) listed: Vec<ActorId>,
    /// Its incarnation, while it has one.
    pub(crate) pid: Option<Pid>,
    pub(crate) starts: u32,
    /// When its time to stop is over.
    pub(crate) timer: Option<TimerKey>,
    /// Its time to stop ran out, or it was killed: its children are killed as their turn comes.
    pub(crate) is_killing: bool,
}

impl Core {
    pub(super) fn add_root(&mut self, spec: SupervisorSpec) {
        let root = self.new_id();
        debug_assert_eq!(root, ROOT, "the root comes first");
        self.add_supervisor(root, spec, "", Shutdown::Infinity, None);
    }

    /// Makes the record of a child and of everything below it; starts nothing.
    pub(super) fn add_child(&mut self, child: ChildSpec, parent: ActorId) -> ActorId {
        let id = self.new_id();
        let node = &self.supervisors[&parent];
        let own = match node.spec.kind {
            // Ids mean nothing there, and need not differ.
            SupervisorKind::Dynamic { .. } | SupervisorKind::Spawned => format!("{}.{}", child.id, id.0),
            SupervisorKind::Static | SupervisorKind::Partition | SupervisorKind::Registry { .. } => child.id,
        };
        let path = if node.path.is_empty() { own } else { format!("{}/{own}", node.path) };
        match child.kind {
            ChildKind::Supervisor(inner) => self.add_supervisor(id, inner, &path, child.shutdown, Some(parent)),
            ChildKind::Actor(spec) => {
                let actor = Actor {
                    id,
                    label: spec.name.clone().unwrap_or_else(|| path.clone()),
                    path,
                    restart: child.restart,
                    shutdown: child.shutdown,
                    parent,
                    mailbox: Mailbox::new(spec.mailbox, spec.concurrency),
                    life: Life::Waiting,
                    starts: 0,
                    certificates: VecDeque::new(),
                    expired: 0,
                    owner: None,
                    is_linked: false,
                    down_since: Some(self.now),
                    log_level: None,
                    spec: Arc::from(spec),
                };
                self.actors.insert(id, actor);
                self.reserve_name(id);
            }
        }
        id
    }

    /// The node's own dynamic supervisor, made when it is first asked for something.
    pub(super) fn spawner(&mut self) -> ActorId {
        if let Some(id) = self.spawner {
            return id;
        }
        let id = self.new_id();
        let spec = SupervisorSpec {
            id: SPAWNER.into(),
            name: None,
            kind: SupervisorKind::Spawned,
            strategy: Strategy::OneForOne,
            max_restarts: 3,
            max_ms: 5000,
            children: Vec::new(),
            auto_shutdown: AutoShutdown::Never,
        };
        self.add_supervisor(id, spec, SPAWNER, Shutdown::Infinity, None);
        self.spawner = Some(id);
        self.start_supervisor(id);
        self.run(id);
        id
    }

    fn add_supervisor(
        &mut self,
        id: ActorId,
        spec: SupervisorSpec,
        path: &str,
        shutdown: Shutdown,
        parent: Option<ActorId>,
    ) {
        let spec = Arc::new(spec);
        let node = SupervisorNode {
            path: path.to_owned(),
            machine: Machine::new(&spec, []),
            spec: spec.clone(),
            shutdown,
            parent,
            listed: Vec::new(),
            pid: None,
            starts: 0,
            timer: None,
            is_killing: false,
        };
        self.supervisors.insert(id, node);
        self.reserve_name(id);
        let listed = spec.children.iter().map(|child| self.add_child(child.clone(), id)).collect();
        if let Some(node) = self.supervisors.get_mut(&id) {
            node.listed = listed;
        }
    }

    /// Forgets a child and everything below it. Nothing of it may be alive.
    pub(super) fn remove(&mut self, id: ActorId) {
        if let Some(node) = self.supervisors.get(&id) {
            for child in node.listed.clone() {
                self.remove(child);
            }
        } else {
            self.bury_mail(id);
        }
        self.release_name(id);
        self.supervisors.remove(&id);
        if let Some(actor) = self.actors.remove(&id) {
            self.departed.extend(actor.certificates);
            let surplus = self.departed.len().saturating_sub(DEPARTED);
            self.departed.drain(..surplus);
        }
    }

    /// The last deaths under a label of actors that are gone for good.
    pub(super) fn departed(&self, label: &str) -> Vec<Certificate> {
        self.departed.iter().filter(|certificate| certificate.actor == label).cloned().collect()
    }

    pub(super) fn name_of(&self, id: ActorId) -> Option<&String> {
        match self.actors.get(&id) {
            Some(actor) => actor.spec.name.as_ref(),
            None => self.supervisors.get(&id)?.spec.name.as_ref(),
        }
    }

    /// Keeps a member's name for it, if it has one that is free.
    pub(super) fn reserve_name(&mut self, id: ActorId) {
        if let Some(name) = self.name_of(id).cloned()
            && self.registered(&name).is_none()
        {
            self.names.entry(name).or_insert(id);
        }
    }

    /// Frees the name of a member, if it holds one.
    pub(super) fn release_name(&mut self, id: ActorId) {
        if let Some(name) = self.name_of(id).cloned()
            && self.names.get(&name) == Some(&id)
        {
            self.names.remove(&name);
        }
    }

    /// The member behind an address, alive or not.
    pub(super) fn member(&self, to: &Address) -> Option<ActorId> {
        match to {
            Address::Name(name) => self.names.get(name).copied().or_else(|| self.registered(name)),
            Address::Actor(id) => Some(*id),
            Address::Pid(pid) => self.living.get(pid).copied(),
            Address::Partition { name, key } => {
                let node = self.supervisors.get(self.names.get(name)?)?;
                let count = node.listed.len() as u64;
                (node.spec.kind == SupervisorKind::Partition && count > 0)
                    .then(|| node.listed[(key % count.max(1)) as usize])
            }
            Address::Via { registry, key } => self.holder(registry, key),
            Address::Group(_) => None,
        }
    }

    /// The living incarnation behind an address.
    pub(super) fn pid_of(&self, to: &Address) -> Option<Pid> {
        let id = self.member(to)?;
        match self.actors.get(&id) {
            Some(actor) => Some(actor.incarnation()?.process.pid),
            None => self.supervisors.get(&id)?.pid,
        }
    }

    /// The name or path of the actor behind an address.
    pub fn label_of(&self, to: &Address) -> Option<String> {
        Some(self.actors.get(&self.member(to)?)?.label.clone())
    }

    /// A member by its name or path, for people.
    pub(crate) fn find(&self, name: &str) -> Option<ActorId> {
        let by_path = || {
            let actor = self.actors.values().find(|actor| actor.path == name).map(|actor| actor.id);
            let node = || self.supervisors.iter().find(|(_, node)| node.path == name).map(|(id, _)| *id);
            actor.or_else(node).filter(|id| *id != ROOT)
        };
        self.names.get(name).copied().or_else(|| self.registered(name)).or_else(by_path)
    }

    /// The actor that a person means by a name or a path, and whether it is down for good.
    pub fn actor_named(&self, name: &str) -> Option<(ActorId, bool)> {
        let actor = self.actors.get(&self.find(name)?)?;
        Some((actor.id, matches!(actor.life, Life::Gone)))
    }

    pub(crate) fn parent_of(&self, id: ActorId) -> Option<ActorId> {
        match self.actors.get(&id) {
            Some(actor) => Some(actor.parent),
            None => self.supervisors.get(&id)?.parent,
        }
    }

    /// Whether a member is another one, or stands somewhere below it.
    pub(super) fn is_below(&self, own: ActorId, above: ActorId) -> bool {
        let mut member = Some(own);
        while let Some(id) = member {
            if id == above {
                return true;
            }
            member = self.parent_of(id);
        }
        false
    }

    /// A supervisor by an address, or by its path.
    pub(super) fn supervisor_at(&self, to: &Address) -> Option<ActorId> {
        let found = self.member(to).or_else(|| match to {
            Address::Name(name) if name == "root" => Some(ROOT),
            Address::Name(path) => self.find(path),
            _ => None,
        });
        found.filter(|id| self.supervisors.contains_key(id))
    }
}

/// What a supervisor's machine has to know about a child.
pub(super) fn traits(child: &ChildSpec) -> Traits {
    Traits {
        id: child.id.clone(),
        restart: child.restart,
        significant: child.significant,
        backoff: child.backoff,
        on_giveup: child.on_giveup,
    }
}
