//! A reload of the tree: children that are added, removed, or declared with other options.
//!
//! Specs are compared by path: a supervisor's children by their ids. Unchanged children are left alone. An actor whose
//! spec has changed starts over in place, with its name, pid and mail; a supervisor takes new flags while it runs.
//! Children that were added at run time are not touched.

use std::collections::HashMap;
use std::sync::Arc;

use rebeam_protocol::id::ActorId;
use rebeam_protocol::outside::{Change, Fate};
use rebeam_protocol::spec::{ActorSpec, ChildKind, ChildSpec, SupervisorSpec};

use super::Core;
use crate::members::{ROOT, traits};
use crate::requests::{Requester, What};
use crate::supervisor::{ChildRef, Done, RequestError, Verb};

/// An actor whose spec has changed, and what it was.
type Respecified = (ActorId, Arc<ActorSpec>);

impl Core {
    /// Applies the new declaration. Returns the actors whose spec has changed, with the spec before.
    pub(super) fn change_tree(&mut self, tree: SupervisorSpec) -> Vec<Respecified> {
        let mut respecified = Vec::new();
        self.change_supervisor(ROOT, tree, &mut respecified);
        respecified
    }

    fn change_supervisor(&mut self, id: ActorId, new: SupervisorSpec, respecified: &mut Vec<Respecified>) {
        let Some(supervisor) = self.members.supervisor(id) else { return };
        let old_children = supervisor.spec.children.iter().map(|child| child.id.clone());
        let mut old: HashMap<String, ActorId> = old_children.zip(supervisor.listed.iter().copied()).collect();
        let mut listed = Vec::new();
        let mut added = Vec::new();
        for child in &new.children {
            let known = old.get(&child.id).copied().filter(|known| self.is_alike(*known, child));
            match known {
                Some(known) => {
                    old.remove(&child.id);
                    listed.push(known);
                    self.change_child(id, known, child, respecified);
                }
                None => {
                    let new = self.add_child(child.clone(), id);
                    listed.push(new);
                    added.push((new, traits(child)));
                }
            }
        }
        let Some(supervisor) = self.members.supervisor_mut(id) else { return };
        supervisor.machine.respecify(&new);
        supervisor.spec = Arc::new(new);
        supervisor.listed = listed;
        let is_up = supervisor.pid.is_some();
        let mut gone: Vec<ActorId> = old.into_values().collect();
        gone.sort_unstable();
        // Removals first: an added child may have the name of a removed one.
        for child in gone {
            let change = self.change_of(child, Fate::Removed);
            if is_up {
                self.ask_supervisor(id, Requester::Nobody, What::Done, Verb::Terminate(ChildRef::Key(child)));
                self.ask_for_change(id, change, Verb::Delete(ChildRef::Key(child)));
            } else {
                self.remove(child);
            }
        }
        for (child, traits) in added.into_iter().filter(|_| is_up) {
            let change = self.change_of(child, Fate::Added);
            self.ask_for_change(id, change, Verb::Start(child, traits));
        }
    }

    fn ask_for_change(&mut self, supervisor: ActorId, change: Change, verb: Verb) {
        self.versions.expect_change();
        self.ask_supervisor(supervisor, Requester::Nobody, What::Change(change), verb);
    }

    /// Whether a child can take the new spec in place. Otherwise it is removed, and another one added.
    fn is_alike(&self, id: ActorId, new: &ChildSpec) -> bool {
        match (&new.kind, self.members.actor(id), self.members.supervisor(id)) {
            (ChildKind::Actor(new), Some(actor), _) => new.name == actor.spec.name && new.via == actor.spec.via,
            (ChildKind::Supervisor(new), _, Some(supervisor)) => {
                new.name == supervisor.spec.name && new.kind == supervisor.spec.kind
            }
            _ => false,
        }
    }

    fn change_child(&mut self, parent: ActorId, id: ActorId, new: &ChildSpec, respecified: &mut Vec<Respecified>) {
        if let Some(supervisor) = self.members.supervisor_mut(parent) {
            supervisor.machine.set_traits(id, traits(new));
        }
        match &new.kind {
            ChildKind::Supervisor(spec) => {
                if let Some(supervisor) = self.members.supervisor_mut(id) {
                    supervisor.shutdown = new.shutdown;
                }
                self.change_supervisor(id, spec.clone(), respecified);
            }
            ChildKind::Actor(spec) => {
                let Some(actor) = self.members.actor_mut(id) else { return };
                (actor.restart, actor.shutdown) = (new.restart, new.shutdown);
                let old = std::mem::replace(&mut actor.spec, Arc::from(spec.clone()));
                if !is_same(&old, spec) {
                    actor.mailbox.respecify(spec.mailbox, spec.concurrency);
                    respecified.push((id, old));
                }
            }
        }
    }

    fn change_of(&self, id: ActorId, fate: Fate) -> Change {
        let (actor, class) = match (self.members.actor(id), self.members.supervisor(id)) {
            (Some(actor), _) => (actor.label.clone(), actor.spec.class.clone()),
            (None, Some(supervisor)) => (supervisor.path.clone(), "rebeam.Supervisor".into()),
            (None, None) => (String::new(), String::new()),
        };
        Change { actor, class, fate }
    }

    /// A supervisor has carried out, or refused, a change of the tree.
    pub(super) fn change_is_done(&mut self, mut change: Change, result: Result<Done, RequestError>) {
        match result {
            Err(RequestError::StartFailed(_, reason)) => change.fate = Fate::Failed { why: reason.to_string() },
            Err(RequestError::Ending) => return self.versions.changed(None),
            // A temporary child is gone with its end.
            _ => {}
        }
        self.versions.changed(Some(change));
        self.reload_goes_on();
    }
}

/// Whether two specs run an actor in the same way.
fn is_same(old: &ActorSpec, new: &ActorSpec) -> bool {
    // The other two matter to the next reload only.
    let new = ActorSpec { modules: old.modules.clone(), reload: old.reload, ..new.clone() };
    *old == new
}
