//! What the control socket asks of a node, answered at once or by the core.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use rebeam_core::Event;
use rebeam_core::event::Requester;
use rebeam_protocol::control::{Answer, ChildInfo, Request};
use rebeam_protocol::id::{ActorId, CallId};
use rebeam_protocol::message::{Caller, Envelope, Outcome};
use tokio::sync::oneshot;

use super::Node;
use crate::shell::status_page::clock_ns;

impl Node {
    /// A new client of the control socket.
    pub(crate) fn add_client(&self) -> u64 {
        self.with(|engine| {
            engine.next_outside += 1;
            engine.outside.insert(engine.next_outside, HashMap::new());
            engine.next_outside
        })
    }

    pub(crate) fn remove_client(&self, client: u64) {
        self.with(|engine| {
            engine.outside.remove(&client);
            engine.tell(Event::OutsideGone { client });
        });
    }

    /// Calls or casts for a client; a call's answer comes through the receiver.
    pub(crate) fn send_from_outside(
        &self,
        client: u64,
        call: CallId,
        envelope: Envelope,
        payload: Bytes,
    ) -> oneshot::Receiver<(Outcome, Bytes)> {
        let (sender, receiver) = oneshot::channel();
        self.with(|engine| {
            engine.outside.entry(client).or_default().insert(call, sender);
            engine.tell(Event::SentFromOutside { client, envelope, payload });
        });
        receiver
    }

    pub(crate) fn next_call(&self) -> CallId {
        self.with(|engine| {
            engine.next_call += 1;
            CallId(engine.next_call)
        })
    }

    pub(crate) fn abandon(&self, client: u64, call: CallId) {
        self.with(|engine| engine.abandon(Caller::Outside(client), call));
    }

    /// Asks the core for a client; the answer comes through the receiver.
    pub(crate) fn ask(&self, request: Request) -> oneshot::Receiver<(Answer, Bytes)> {
        let (sender, receiver) = oneshot::channel();
        self.with(|engine| {
            engine.next_outside += 1;
            let asker = engine.next_outside;
            engine.requests.insert(asker, sender);
            engine.tell(Event::Requested { from: Requester::Outside(asker), request, payload: Bytes::new() });
        });
        receiver
    }

    pub(crate) fn list(&self) -> Vec<ChildInfo> {
        let engine = self.0.borrow();
        let mut children = engine.core.list(|process| {
            let worker = engine.workers.get(&process)?;
            Some((worker.os_pid? as u32, worker.page.snapshot(), clock_ns()))
        });
        add_memory(&mut children);
        children
    }

    /// The actor that a person means by a name or a path, if there is one, and whether it is down for good.
    pub(crate) fn actor_named(&self, name: &str) -> Option<(ActorId, bool)> {
        self.0.borrow().core.actor_named(name)
    }

    /// Names that look like one that nobody has.
    pub(crate) fn not_found(&self, name: &str) -> Answer {
        self.0.borrow().core.not_found(name.to_owned())
    }

    /// Who is still up, by name.
    pub(crate) fn alive(&self) -> Vec<String> {
        self.0.borrow().core.alive()
    }

    pub(crate) fn target_text(&self) -> String {
        self.0.borrow().setup.target_text.clone()
    }

    pub(crate) fn directory(&self) -> PathBuf {
        self.0.borrow().setup.directory.clone()
    }

    pub(crate) fn age(&self) -> Duration {
        self.0.borrow().started.elapsed()
    }

    pub(crate) fn dead_letters(&self) -> u64 {
        self.0.borrow().dead_letters.all
    }
}

fn add_memory(children: &mut [ChildInfo]) {
    use sysinfo::{Pid, ProcessRefreshKind, ProcessesToUpdate, System};
    let ids: Vec<Pid> = children.iter().filter_map(|child| child.os_pid).map(Pid::from_u32).collect();
    let Ok(mut system) = System::new() else { return };
    let kind = ProcessRefreshKind::nothing().with_memory();
    system.refresh_processes_specifics(ProcessesToUpdate::Some(&ids), false, kind);
    for child in children {
        let process = child.os_pid.and_then(|os_pid| system.process(Pid::from_u32(os_pid)));
        child.memory_kib = process.map(|process| process.memory() / 1024);
    }
}
