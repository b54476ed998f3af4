//! For each client of the control socket that needs one, an actor that does what only an actor can: start others.
//!
//! It is started when it is first asked for, and ends with its client. What it does is written in Python.

use std::collections::HashMap;

use rebeam_protocol::id::{ActorId, Pid};
use rebeam_protocol::spec::ChildSpec;

use super::Core;
use crate::members::traits;
use crate::requests::{Requester, What};
use crate::supervisor::{ChildRef, Verb};

#[derive(Debug, Default)]
pub(super) struct Gateways {
    /// How one is started.
    spec: Option<ChildSpec>,
    by_client: HashMap<u64, ActorId>,
}

impl Core {
    /// Says how the gateway of a client is started; there are none without.
    pub fn set_gateway(&mut self, spec: ChildSpec) {
        self.gateways.spec = Some(spec);
    }

    /// The gateway of a client, if it has one, and its incarnation. Until it runs, its mail waits.
    pub fn gateway(&self, client: u64) -> Option<(ActorId, Pid)> {
        let id = *self.gateways.by_client.get(&client)?;
        Some((id, self.members.actor(id)?.pid()?))
    }

    /// Starts a client's gateway, unless it has one or the node is ending.
    pub(super) fn open_gateway(&mut self, client: u64) {
        let Some(spec) = self.gateways.spec.clone().filter(|_| self.gateway(client).is_none()) else { return };
        let Some(spawner) = self.spawner() else { return };
        let traits = traits(&spec);
        let id = self.add_child(spec, spawner);
        self.gateways.by_client.insert(client, id);
        self.ask_supervisor(spawner, Requester::Nobody, What::Done, Verb::Start(id, traits));
    }

    /// Stops what was started for a client.
    pub(super) fn close_gateway(&mut self, client: u64) {
        let gateway = self.gateway(client);
        self.gateways.by_client.remove(&client);
        if let (Some((id, _)), Some(spawner)) = (gateway, self.members.spawner()) {
            self.ask_supervisor(spawner, Requester::Nobody, What::Done, Verb::Terminate(ChildRef::Key(id)));
        }
    }
}
