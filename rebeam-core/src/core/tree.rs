//! Members of the tree: how they come and go, and who is behind an address.

use std::sync::Arc;

use rebeam_protocol::address::Address;
use rebeam_protocol::id::{ActorId, Pid};
use rebeam_protocol::process::Whereabouts;
use rebeam_protocol::spec::{ChildKind, ChildSpec, Shutdown, SupervisorKind, SupervisorSpec};

use super::Core;
use crate::actor::{Actor, Life};
use crate::mailbox::Mailbox;
use crate::members::{ROOT, Supervisor};
use crate::resolve::Resolved;
use crate::supervisor::Machine;

/// The path of the node's own dynamic supervisor.
const SPAWNER: &str = "spawned";

impl Core {
    pub(super) fn add_root(&mut self, spec: SupervisorSpec) {
        let root = self.members.new_id();
        debug_assert_eq!(root, ROOT, "the root comes first");
        self.add_supervisor(root, spec, "", Shutdown::Infinity, None);
    }

    /// Makes the record of a child and of everything below it; starts nothing.
    pub(super) fn add_child(&mut self, child: ChildSpec, parent: ActorId) -> ActorId {
        let id = self.members.new_id();
        let Some(node) = self.members.supervisor(parent) else { return id };
        let own = match node.spec.kind {
            // Ids mean nothing there, and need not differ.
            SupervisorKind::Dynamic { .. } | SupervisorKind::Spawned => format!("{}.{}", child.id, id.0),
            SupervisorKind::Static
            | SupervisorKind::Partition
            | SupervisorKind::Registry { .. }
            | SupervisorKind::Table(_) => child.id,
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
                    has_no_arguments: false,
                    last_pid: None,
                    expired: 0,
                    owner: None,
                    is_linked: false,
                    down_since: Some(self.now),
                    log_level: None,
                    spec: Arc::from(spec),
                };
                self.members.add_actor(actor);
                self.reserve_name(id);
            }
        }
        id
    }

    /// The node's own dynamic supervisor, made when it is first asked for something; `None` if it is not running, or the
    /// node is ending.
    pub(super) fn spawner(&mut self) -> Option<ActorId> {
        if let Some(id) = self.members.spawner() {
            return self.members.supervisor(id).is_some_and(|spawner| spawner.pid.is_some()).then_some(id);
        }
        if self.shutdown.is_stopping() {
            return None;
        }
        let id = self.members.new_id();
        let spec = SupervisorSpec { kind: SupervisorKind::Spawned, ..SupervisorSpec::new(SPAWNER, Vec::new()) };
        self.add_supervisor(id, spec, SPAWNER, Shutdown::Infinity, None);
        self.members.set_spawner(id);
        self.start_supervisor(id);
        self.run(id);
        Some(id)
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
        let supervisor = Supervisor {
            path: path.to_owned(),
            machine: Machine::new(&spec, []),
            spec: spec.clone(),
            shutdown,
            parent,
            listed: Vec::new(),
            pid: None,
            last_pid: None,
            starts: 0,
            timer: None,
            is_killing: false,
            owner: None,
            failed: None,
        };
        self.members.add_supervisor(id, supervisor);
        self.reserve_name(id);
        let listed = spec.children.iter().map(|child| self.add_child(child.clone(), id)).collect();
        if let Some(node) = self.members.supervisor_mut(id) {
            node.listed = listed;
        }
    }

    /// Forgets a child and everything below it. Nothing of it may be alive.
    pub(super) fn remove(&mut self, id: ActorId) {
        if let Some(supervisor) = self.members.supervisor(id) {
            for child in supervisor.listed.clone() {
                self.remove(child);
            }
        } else {
            self.bury_mail(id);
        }
        self.members.release_name(id);
        self.members.remove(id);
    }

    /// Keeps a member's name for it, if it has one that is free.
    pub(super) fn reserve_name(&mut self, id: ActorId) {
        if let Some(name) = self.members.name_of(id).cloned()
            && self.registered(&name).is_none()
        {
            self.members.reserve(&name, id);
        }
    }

    /// Who is behind an address.
    pub(super) fn resolve(&self, to: &Address) -> Resolved {
        match to {
            Address::Name(name) => match self.members.named(name) {
                Some(id) => Resolved::member(id),
                None => Resolved::incarnation(self.registered(name)),
            },
            Address::Actor(id) => Resolved::member(*id),
            Address::Pid(pid) => Resolved::incarnation(self.members.living(*pid)),
            Address::Partition { name, key } => {
                let supervisor = self.members.named(name).and_then(|id| self.members.supervisor(id));
                let copies = supervisor.filter(|it| it.spec.kind == SupervisorKind::Partition).map(|it| &it.listed);
                match copies.filter(|copies| !copies.is_empty()) {
                    Some(copies) => Resolved::member(copies[(key % copies.len() as u64) as usize]),
                    None => Resolved::Nobody,
                }
            }
            Address::Via { registry, key } => {
                let holder = self.holder(registry, key);
                let own = holder.and_then(|id| self.members.actor(id)?.spec.via.as_ref());
                match (holder, own) {
                    (Some(id), Some((own, own_key))) if own == registry && own_key == key => Resolved::member(id),
                    _ => Resolved::incarnation(holder),
                }
            }
            Address::Group(_) => Resolved::Nobody,
        }
    }

    /// The member behind an address, alive or not.
    pub(super) fn member(&self, to: &Address) -> Option<ActorId> {
        self.resolve(to).id()
    }

    /// Among how many copies the keys of a partition supervisor choose.
    pub(super) fn copies(&self, supervisor: &str) -> Option<u64> {
        let supervisor = self.members.named(supervisor).and_then(|id| self.members.supervisor(id))?;
        (supervisor.spec.kind == SupervisorKind::Partition).then_some(supervisor.listed.len() as u64)
    }

    /// The living incarnation behind an address.
    pub(super) fn pid_of(&self, to: &Address) -> Option<Pid> {
        self.members.pid(self.member(to)?)
    }

    /// Who holds a name, unless that is down for good.
    pub(super) fn whereabouts(&self, name: String) -> Option<Whereabouts> {
        let id = self.member(&Address::Name(name))?;
        let is_gone = self.members.actor(id).is_some_and(|actor| matches!(actor.life, Life::Gone));
        (!is_gone).then(|| Whereabouts { actor: id, pid: self.members.pid(id) })
    }

    /// The name or path of the actor behind an address.
    pub fn label_of(&self, to: &Address) -> Option<String> {
        Some(self.members.actor(self.member(to)?)?.label.clone())
    }

    /// A member by its name or path, for people.
    pub(super) fn find(&self, name: &str) -> Option<ActorId> {
        let declared = self.members.named(name).or_else(|| self.registered(name));
        declared.or_else(|| self.members.at_path(name)).or_else(|| self.numbered(name))
    }

    /// The actor that is named by its number and the start of its node, as `actor 7@1795827568`: numbers start over with
    /// each node.
    fn numbered(&self, text: &str) -> Option<ActorId> {
        let (number, started) = text.strip_prefix("actor ")?.split_once('@')?;
        let is_ours = started.parse() == Ok(self.members.at().started);
        let id = ActorId(number.parse().ok()?);
        self.members.actor(id).map(|actor| actor.id).filter(|_| is_ours)
    }

    /// The actor that a person means by a name or a path, and whether it is down for good.
    pub fn actor_named(&self, name: &str) -> Option<(ActorId, bool)> {
        let actor = self.members.actor(self.find(name)?)?;
        Some((actor.id, matches!(actor.life, Life::Gone)))
    }

    /// A supervisor by an address, or by its path.
    pub(super) fn supervisor_at(&self, to: &Address) -> Option<ActorId> {
        let found = self.member(to).or_else(|| match to {
            Address::Name(name) if name == "root" => Some(ROOT),
            Address::Name(path) => self.find(path),
            _ => None,
        });
        found.filter(|id| self.members.is_supervisor(*id))
    }
}
