//! The members of the tree: supervisors and actors, who holds whom, what they are called, and which incarnations live.
//!
//! It keeps the books. Who may be called what is decided in [`crate::core`], with the registries beside it.

use std::collections::HashMap;
use std::sync::Arc;

use rebeam_protocol::id::{ActorId, Generation, NodeStart, Pid, ProcessId};
use rebeam_protocol::outside::SupervisorSort;
use rebeam_protocol::spec::{ChildSpec, Shutdown, Strategy, SupervisorKind, SupervisorSpec};
use rustc_hash::FxBuildHasher;

use crate::actor::Actor;
use crate::incarnation::Incarnation;
use crate::supervisor::{Machine, Traits};
use crate::timers::TimerKey;

/// The root supervisor.
pub(crate) const ROOT: ActorId = ActorId(0);

type ById<T> = HashMap<ActorId, T, FxBuildHasher>;

/// A supervisor of the tree.
#[derive(Debug)]
pub(crate) struct Supervisor {
    pub(crate) path: String,
    pub(crate) spec: Arc<SupervisorSpec>,
    pub(crate) shutdown: Shutdown,
    pub(crate) parent: Option<ActorId>,
    pub(crate) machine: Machine,
    /// The children of its initial list, in its order. They are kept over its own restarts, with their mail.
    pub(crate) listed: Vec<ActorId>,
    /// Its incarnation, while it has one.
    pub(crate) pid: Option<Pid>,
    /// Its last incarnation, alive or not.
    pub(crate) last_pid: Option<Pid>,
    pub(crate) starts: u32,
    /// When its time to stop is over.
    pub(crate) timer: Option<TimerKey>,
    /// Its time to stop ran out, or it was killed: its children are killed as their turn comes.
    pub(crate) is_killing: bool,
    /// Who had it spawned, and takes it along with its own end.
    pub(crate) owner: Option<Pid>,
    /// The path of the child that kept it from starting, when it last did not.
    pub(crate) failed: Option<String>,
}

impl Supervisor {
    /// Whether it holds its children by pid rather than by id.
    pub(crate) fn is_dynamic(&self) -> bool {
        matches!(self.spec.kind, SupervisorKind::Dynamic { .. } | SupervisorKind::Spawned)
    }

    /// What it does with its children.
    pub(crate) fn sort(&self) -> SupervisorSort {
        match (self.spec.kind, self.spec.strategy) {
            (SupervisorKind::Dynamic { .. } | SupervisorKind::Spawned, _) => SupervisorSort::Dynamic,
            (SupervisorKind::Partition, _) => SupervisorSort::Partition,
            (SupervisorKind::Registry { .. }, _) => SupervisorSort::Registry,
            (SupervisorKind::Table(_), _) => SupervisorSort::Table,
            (SupervisorKind::Static, Strategy::OneForOne) => SupervisorSort::OneForOne,
            (SupervisorKind::Static, Strategy::OneForAll) => SupervisorSort::OneForAll,
            (SupervisorKind::Static, Strategy::RestForOne) => SupervisorSort::RestForOne,
        }
    }

    /// The children that were added at run time.
    pub(crate) fn added(&self) -> Vec<ActorId> {
        self.machine.children().map(|(child, ..)| child).filter(|child| !self.listed.contains(child)).collect()
    }
}

#[derive(Debug)]
pub(crate) struct Members {
    supervisors: ById<Supervisor>,
    actors: ById<Actor>,
    /// Names that members were declared with, whether or not they live.
    names: HashMap<String, ActorId, FxBuildHasher>,
    /// Every incarnation that has not ended, of actors and of supervisors.
    living: HashMap<Pid, ActorId, FxBuildHasher>,
    /// The node's own dynamic supervisor, once it was needed.
    spawner: Option<ActorId>,
    at: NodeStart,
    next_id: u64,
    next_serial: u64,
}

impl Members {
    /// Of a node that was started so; there is nobody yet.
    pub(crate) fn new(at: NodeStart) -> Self {
        Members {
            supervisors: HashMap::default(),
            actors: HashMap::default(),
            names: HashMap::default(),
            living: HashMap::default(),
            spawner: None,
            at,
            next_id: 0,
            next_serial: 0,
        }
    }

    pub(crate) fn new_id(&mut self) -> ActorId {
        self.next_id += 1;
        ActorId(self.next_id - 1)
    }

    /// A new incarnation, with its first process.
    pub(crate) fn new_process(&mut self) -> ProcessId {
        self.next_serial += 1;
        let pid = Pid { at: self.at, serial: self.next_serial };
        ProcessId { pid, generation: Generation(0) }
    }

    // ---- who there is ------------------------------------------------------------------------------------------

    pub(crate) fn actor(&self, id: ActorId) -> Option<&Actor> {
        self.actors.get(&id)
    }

    pub(crate) fn actor_mut(&mut self, id: ActorId) -> Option<&mut Actor> {
        self.actors.get_mut(&id)
    }

    pub(crate) fn supervisor(&self, id: ActorId) -> Option<&Supervisor> {
        self.supervisors.get(&id)
    }

    pub(crate) fn supervisor_mut(&mut self, id: ActorId) -> Option<&mut Supervisor> {
        self.supervisors.get_mut(&id)
    }

    pub(crate) fn is_supervisor(&self, id: ActorId) -> bool {
        self.supervisors.contains_key(&id)
    }

    /// Whether anybody has this id.
    pub(crate) fn is_there(&self, id: ActorId) -> bool {
        self.actors.contains_key(&id) || self.supervisors.contains_key(&id)
    }

    /// All actors, in no order.
    pub(crate) fn actors(&self) -> impl Iterator<Item = &Actor> {
        self.actors.values()
    }

    /// All supervisors, in no order.
    pub(crate) fn supervisors(&self) -> impl Iterator<Item = (ActorId, &Supervisor)> {
        self.supervisors.iter().map(|(id, supervisor)| (*id, supervisor))
    }

    pub(crate) fn add_actor(&mut self, actor: Actor) {
        self.actors.insert(actor.id, actor);
    }

    pub(crate) fn add_supervisor(&mut self, id: ActorId, supervisor: Supervisor) {
        self.supervisors.insert(id, supervisor);
    }

    pub(crate) fn remove(&mut self, id: ActorId) {
        self.supervisors.remove(&id);
        self.actors.remove(&id);
    }

    /// The start of the node.
    pub(crate) fn at(&self) -> NodeStart {
        self.at
    }

    pub(crate) fn spawner(&self) -> Option<ActorId> {
        self.spawner
    }

    pub(crate) fn set_spawner(&mut self, id: ActorId) {
        self.spawner = Some(id);
    }

    // ---- incarnations ------------------------------------------------------------------------------------------

    /// An incarnation begins.
    pub(crate) fn born(&mut self, pid: Pid, id: ActorId) {
        self.living.insert(pid, id);
    }

    /// An incarnation has ended.
    pub(crate) fn ended(&mut self, pid: Pid) {
        self.living.remove(&pid);
    }

    /// The member whose incarnation this is, while it lives.
    pub(crate) fn living(&self, pid: Pid) -> Option<ActorId> {
        self.living.get(&pid).copied()
    }

    /// The same, if that is an actor.
    pub(crate) fn living_actor(&self, pid: Pid) -> Option<&Actor> {
        self.actor(self.living(pid)?)
    }

    /// The actor that a process serves now; `None` for a stale one.
    pub(crate) fn serving(&self, process: ProcessId) -> Option<&Actor> {
        self.living_actor(process.pid).filter(|actor| actor.process() == Some(process))
    }

    /// The same, to be changed.
    pub(crate) fn serving_mut(&mut self, process: ProcessId) -> Option<&mut Actor> {
        let id = self.living(process.pid)?;
        self.actor_mut(id).filter(|actor| actor.process() == Some(process))
    }

    pub(crate) fn incarnation_mut(&mut self, id: ActorId) -> Option<&mut Incarnation> {
        self.actor_mut(id)?.incarnation_mut()
    }

    /// The living incarnation of a member.
    pub(crate) fn pid(&self, id: ActorId) -> Option<Pid> {
        match self.actor(id) {
            Some(actor) => actor.pid(),
            None => self.supervisor(id)?.pid,
        }
    }

    /// Who had a member spawned.
    pub(crate) fn owner(&self, id: ActorId) -> Option<Pid> {
        match self.actor(id) {
            Some(actor) => actor.owner,
            None => self.supervisor(id)?.owner,
        }
    }

    /// The last incarnation of a member, alive or not.
    pub(crate) fn last_pid(&self, id: ActorId) -> Option<Pid> {
        match self.actor(id) {
            Some(actor) => actor.last_pid,
            None => self.supervisor(id)?.last_pid,
        }
    }

    // ---- names -------------------------------------------------------------------------------------------------

    /// The name that a member was declared with.
    pub(crate) fn name_of(&self, id: ActorId) -> Option<&String> {
        match self.actor(id) {
            Some(actor) => actor.spec.name.as_ref(),
            None => self.supervisor(id)?.spec.name.as_ref(),
        }
    }

    /// Who was declared with this name.
    pub(crate) fn named(&self, name: &str) -> Option<ActorId> {
        self.names.get(name).copied()
    }

    /// Keeps a name for a member, unless somebody has it; gives who has it then.
    pub(crate) fn reserve(&mut self, name: &str, id: ActorId) -> ActorId {
        *self.names.entry(name.to_owned()).or_insert(id)
    }

    /// Frees the name of a member, if it holds one.
    pub(crate) fn release_name(&mut self, id: ActorId) {
        if let Some(name) = self.name_of(id).cloned()
            && self.named(&name) == Some(id)
        {
            self.names.remove(&name);
        }
    }

    /// Who stands at this path of the tree; the root has none.
    pub(crate) fn at_path(&self, path: &str) -> Option<ActorId> {
        let actor = self.actors().find(|actor| actor.path == path).map(|actor| actor.id);
        let supervisor = || self.supervisors().find(|(_, it)| it.path == path).map(|(id, _)| id);
        actor.or_else(supervisor).filter(|id| *id != ROOT)
    }

    // ---- the tree ----------------------------------------------------------------------------------------------

    pub(crate) fn parent_of(&self, id: ActorId) -> Option<ActorId> {
        match self.actor(id) {
            Some(actor) => Some(actor.parent),
            None => self.supervisor(id)?.parent,
        }
    }

    /// Whether a member is another one, or stands somewhere below it.
    pub(crate) fn is_below(&self, own: ActorId, above: ActorId) -> bool {
        let mut member = Some(own);
        while let Some(id) = member {
            if id == above {
                return true;
            }
            member = self.parent_of(id);
        }
        false
    }

    /// Whether a member was declared with its supervisor, rather than added at run time.
    pub(crate) fn is_listed(&self, id: ActorId) -> bool {
        let parent = self.parent_of(id).and_then(|parent| self.supervisor(parent));
        parent.is_some_and(|parent| parent.listed.contains(&id))
    }

    // ---- for tests ---------------------------------------------------------------------------------------------

    /// Checks what must hold after every event.
    pub(crate) fn check(&self) {
        use crate::supervisor::ChildState::{Running, Starting, Stopping};
        let mut alive = 0;
        for actor in self.actors.values() {
            let Some(pid) = actor.pid() else { continue };
            alive += 1;
            let state = self.supervisor(actor.parent).and_then(|parent| parent.machine.state(actor.id));
            assert!(matches!(state, Some(Starting | Running | Stopping)), "{} is alive and {state:?}", actor.label);
            assert_eq!(self.living(pid), Some(actor.id), "{} is not listed", actor.label);
        }
        alive += self.supervisors.values().filter(|supervisor| supervisor.pid.is_some()).count();
        assert_eq!(self.living.len(), alive, "a dead incarnation is listed as living");
        for (name, id) in &self.names {
            assert!(self.is_there(*id), "nobody has the name {name}");
        }
    }

    /// How many records there are; for tests that nothing is left behind.
    pub(crate) fn len(&self) -> usize {
        self.supervisors.len() + self.actors.len() + self.names.len() + self.living.len()
    }
}

/// What a supervisor's machine has to know about a child.
pub(crate) fn traits(child: &ChildSpec) -> Traits {
    Traits {
        id: child.id.clone(),
        restart: child.restart,
        significant: child.significant,
        pauses: child.pauses,
        on_giveup: child.on_giveup,
    }
}
