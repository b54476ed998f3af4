//! A reload of the tree: children that are added, removed, or declared with other options.
//!
//! Specs are compared by path: a supervisor's children by their ids. Unchanged children are left alone. An actor whose
//! spec has changed starts over in place, with its name, pid and mail; a supervisor takes new flags while it runs.
//! Children that were added at run time are not touched.

use std::collections::HashMap;
use std::sync::Arc;

use rebeam_protocol::id::ActorId;
use rebeam_protocol::outside::{Change, Failure, Fate};
use rebeam_protocol::spec::{ActorSpec, ChildKind, ChildSpec, SupervisorKind, SupervisorSpec};

use super::Core;
use super::reload::{Addition, why_of};
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
                    if self.is_to_start_again(known) {
                        added.push((known, traits(child)));
                    }
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
        let is_up = supervisor.pid.is_some();
        if is_up {
            added.iter().for_each(|(child, traits)| supervisor.machine.add(*child, traits.clone()));
            supervisor.machine.reorder(&listed);
        }
        supervisor.listed = listed;
        let mut gone: Vec<ActorId> = old.into_values().collect();
        gone.sort_unstable();
        for child in gone {
            self.versions.not_started.remove(&child);
            self.versions.refused.remove(&child);
            if let Some(under_way) = &mut self.versions.under_way {
                under_way.additions.retain(|addition| addition.child != child);
            }
            if is_up {
                let change = self.change_of(child, Fate::Removed);
                self.ask_supervisor(id, Requester::Nobody, What::Done, Verb::Terminate(ChildRef::Key(child)));
                self.ask_for_removal(id, child, change);
            } else {
                self.remove(child);
            }
        }
        for (child, _) in added.into_iter().filter(|_| is_up) {
            let change = self.change_of(child, Fate::Added);
            if let Some(under_way) = &mut self.versions.under_way {
                under_way.additions.push(Addition { supervisor: id, child, change });
            }
        }
    }

    fn ask_for_removal(&mut self, supervisor: ActorId, child: ActorId, change: Change) {
        if let Some(under_way) = &mut self.versions.under_way {
            under_way.expected += 1;
            under_way.removals += 1;
        }
        let what = What::Change { change, child };
        self.ask_supervisor(supervisor, Requester::Nobody, what, Verb::Delete(ChildRef::Key(child)));
    }

    /// Whether a child was added by an earlier reload, has not started, and has got other code since.
    fn is_to_start_again(&self, child: ActorId) -> bool {
        let Some(failed) = self.versions.not_started.get(&child) else { return false };
        if self.versions.under_way.as_ref().is_some_and(|under_way| under_way.retries) {
            return true;
        }
        // What is below a supervisor is not looked at.
        self.members.actor(child).is_none_or(|actor| self.versions.digest(&actor.spec) != *failed)
    }

    /// Starts the children that are new in the tree, once those that are to go are gone: one may have the name of another.
    pub(super) fn start_what_is_added(&mut self) {
        let Some(under_way) = self.versions.under_way.as_mut().filter(|it| it.removals == 0) else { return };
        let mut additions = std::mem::take(&mut under_way.additions);
        // Those of a supervisor that is not up are started with it, if ever.
        let members = &self.members;
        let is_up = |id: ActorId| members.supervisor(id).is_some_and(|supervisor| supervisor.pid.is_some());
        additions.retain(|addition| is_up(addition.supervisor));
        under_way.expected += additions.len();
        for Addition { supervisor, child, change } in additions {
            self.versions.not_started.remove(&child);
            let what = What::Change { change, child };
            self.ask_supervisor(supervisor, Requester::Nobody, what, Verb::Restart(ChildRef::Key(child)));
        }
    }

    /// Whether a child can take the new spec in place. Otherwise it is removed, and another one added.
    fn is_alike(&self, id: ActorId, new: &ChildSpec) -> bool {
        match (&new.kind, self.members.actor(id), self.members.supervisor(id)) {
            (ChildKind::Actor(new), Some(actor), _) => new.name == actor.spec.name && new.via == actor.spec.via,
            (ChildKind::Supervisor(new), _, Some(supervisor)) => {
                let old = &supervisor.spec;
                let is_alike = match (old.kind, new.kind) {
                    (SupervisorKind::Dynamic { .. }, SupervisorKind::Dynamic { .. }) => true,
                    (old, new) => old == new,
                };
                old.name == new.name && is_alike
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
                let is_refused = self.versions.is_refused(id, |refused| is_same(refused, spec));
                let Some(actor) = self.members.actor_mut(id) else { return };
                (actor.restart, actor.shutdown) = (new.restart, new.shutdown);
                if is_refused {
                    return;
                }
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
    pub(super) fn change_is_done(&mut self, mut change: Change, child: ActorId, result: Result<Done, RequestError>) {
        let is_removal = change.fate == Fate::Removed;
        let is_refused = matches!(result, Err(RequestError::Ending));
        if let Err(RequestError::StartFailed(_, reason)) = result {
            let digest = self.members.actor(child).map_or(0, |actor| self.versions.digest(&actor.spec));
            self.versions.not_started.insert(child, digest);
            change.fate = Fate::Failed { what: Failure::Start, why: why_of(&reason) };
        }
        if let Some(under_way) = &mut self.versions.under_way {
            under_way.expected = under_way.expected.saturating_sub(1);
            under_way.removals = under_way.removals.saturating_sub(usize::from(is_removal));
            // One that cannot be found is gone: a temporary child goes with its end.
            under_way.changes.extend((!is_refused).then_some(change));
        }
        self.reload_goes_on();
    }
}

/// Whether two specs run an actor in the same way.
fn is_same(old: &ActorSpec, new: &ActorSpec) -> bool {
    // The other two matter to the next reload only.
    let new = ActorSpec { modules: old.modules.clone(), reload: old.reload, ..new.clone() };
    *old == new
}
