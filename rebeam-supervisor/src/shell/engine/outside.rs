//! What the control socket asks of a node, answered at once or by the core.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use rebeam_core::Event;
use rebeam_core::meters::Figures;
use rebeam_core::shell::{Frame, Shell as _};
use rebeam_protocol::address::Caller;
use rebeam_protocol::id::{ActorId, CallId, Pid, ProcessId, Version};
use rebeam_protocol::message::Outcome;
use rebeam_protocol::outside::{Answer, ChildInfo, Health, NodeState, TreeRequest};
use rebeam_protocol::worker::{Envelope, ToWorker};
use tokio::sync::oneshot;

use super::tables::TableFigures;
use super::worker::{Trust, Worker};
use super::{Engine, Node};
use crate::shell::sampler::{self, Measured, look};
use rebeam_sys::clock::monotonic_ns;

/// How long processes may take to write their stacks.
const WRITING: Duration = Duration::from_millis(200);

/// All figures of a node that it knows itself.
#[derive(Debug)]
pub(crate) struct NodeFigures {
    pub(crate) core: Figures,
    /// The process of the zygote, if there is one.
    pub(crate) zygote: Option<i32>,
    /// The processes of the actors.
    pub(crate) measured: Vec<Measured>,
    /// The version of the code.
    pub(crate) code: Version,
    /// How long the node runs.
    pub(crate) age: Duration,
    /// Lines of output that were read too slowly, and so dropped.
    pub(crate) dropped_lines: u64,
    pub(crate) tables: TableFigures,
    pub(crate) is_ready: bool,
}

/// Clients of the control socket, and what they wait for.
#[derive(Default)]
pub(super) struct Clients {
    calls: HashMap<u64, HashMap<CallId, oneshot::Sender<(Outcome, Bytes)>>>,
    requests: HashMap<u64, oneshot::Sender<Answer>>,
    /// The last number that was given to a client or a request.
    last: u64,
    last_call: u64,
}

impl Clients {
    fn next(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    /// Gives a client the answer to its call, if it waits for that.
    pub(super) fn reply(&mut self, client: u64, call: CallId, outcome: Outcome, payload: Bytes) {
        let waiting = self.calls.get_mut(&client).and_then(|calls| calls.remove(&call));
        if let Some(waiting) = waiting {
            let _ = waiting.send((outcome, payload));
        }
    }

    /// Answers a request.
    pub(super) fn answer(&mut self, asker: u64, answer: Answer) {
        if let Some(waiting) = self.requests.remove(&asker) {
            let _ = waiting.send(answer);
        }
    }
}

impl Node {
    /// A new client of the control socket.
    pub(crate) fn add_client(&self) -> u64 {
        let clients = &mut self.0.borrow_mut().clients;
        let client = clients.next();
        clients.calls.insert(client, HashMap::new());
        client
    }

    pub(crate) fn remove_client(&self, client: u64) {
        self.with(|engine| {
            engine.clients.calls.remove(&client);
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
            engine.clients.calls.entry(client).or_default().insert(call, sender);
            engine.tell(Event::SentFromOutside { client, envelope, payload });
        });
        receiver
    }

    /// The gateway of a client, started if it has none; `None` if the node is ending.
    pub(crate) fn gateway(&self, client: u64) -> Option<(ActorId, Pid)> {
        self.with(|engine| {
            engine.tell(Event::WantsGateway { client });
            engine.core.gateway(client)
        })
    }

    pub(crate) fn next_call(&self) -> CallId {
        let clients = &mut self.0.borrow_mut().clients;
        clients.last_call += 1;
        CallId(clients.last_call)
    }

    pub(crate) fn abandon(&self, client: u64, call: CallId) {
        self.with(|engine| engine.abandon(Caller::Outside(client), call));
    }

    /// Asks the core for a client; the answer comes through the receiver.
    pub(crate) fn ask(&self, request: TreeRequest) -> oneshot::Receiver<Answer> {
        let (sender, receiver) = oneshot::channel();
        self.with(|engine| {
            let asker = engine.clients.next();
            engine.clients.requests.insert(asker, sender);
            engine.tell(Event::AskedFromOutside { asker, request });
        });
        receiver
    }

    /// The whole tree, with the resident memory of each actor's process.
    pub(crate) async fn list(&self) -> Vec<ChildInfo> {
        self.with(Engine::catch_up);
        let mut children = {
            let engine = self.0.borrow();
            engine.core.list(|process| {
                let worker = engine.workers.get(&process)?;
                Some((worker.os_pid? as u32, worker.page.snapshot(), monotonic_ns()))
            })
        };
        let measured: Vec<Measured> = self.0.borrow().workers.values().filter_map(Worker::measured).collect();
        let sizes = look(move || sampler::resident_sizes(&measured)).await.unwrap_or_default();
        for child in &mut children {
            child.memory_kib = child.os_pid.and_then(|os_pid| sizes.get(&os_pid).copied());
        }
        children
    }

    /// How the node is.
    pub(crate) fn health(&self) -> Health {
        self.with(Engine::catch_up);
        let engine = self.0.borrow();
        let state = match (engine.life.is_stopping, engine.life.is_up) {
            (true, _) => NodeState::Stopping,
            (false, true) => NodeState::Up,
            (false, false) => NodeState::Starting,
        };
        let mut troubles = engine.core.troubles(engine.setup.longest_wait, |process| engine.page(process));
        troubles.extend(engine.tables.trouble());
        Health { state, troubles }
    }

    /// All figures that the node knows itself.
    pub(crate) fn figures(&self) -> NodeFigures {
        let is_ready = self.health().is_ready();
        let engine = self.0.borrow();
        let core = engine.core.figures(|process| {
            let worker = engine.workers.get(&process)?;
            Some((worker.os_pid? as u32, worker.page.snapshot()))
        });
        NodeFigures {
            core,
            zygote: engine.versions.zygote(engine.versions.current()).and_then(|zygote| zygote.os_pid()),
            measured: engine.workers.values().filter_map(Worker::measured).collect(),
            code: engine.core.version(),
            age: engine.started.elapsed(),
            dropped_lines: engine.printer.dropped(),
            tables: engine.tables.figures(engine.core.table_count()),
            is_ready,
        }
    }

    /// What actors do right now, by their Python stacks: of all, or of one by its name or path. `None`: there is no such
    /// actor.
    pub(crate) async fn stacks(&self, name: Option<&str>) -> Option<Vec<(String, Result<String, String>)>> {
        let asked = self.with(|engine| engine.ask_for_stacks(name))?;
        tokio::time::sleep(WRITING).await;
        Some(self.with(|engine| asked.into_iter().map(|process| engine.take_stacks(process)).collect()))
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

    /// The version of the code that it runs.
    pub(crate) fn code(&self) -> Version {
        self.0.borrow().core.version()
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

    /// What is said of dead letters when the node ends, if there were any.
    pub(crate) fn dead_letters(&self) -> Option<String> {
        self.0.borrow().dead_letters.summary()
    }
}

impl Engine {
    /// The core's time stands still between events: before somebody looks, it moves on.
    fn catch_up(&mut self) {
        let now = self.now();
        self.core.handle_timeout(now);
    }

    /// Has processes write their stacks: gives those that were asked.
    fn ask_for_stacks(&mut self, name: Option<&str>) -> Option<Vec<ProcessId>> {
        let mut asked: Vec<ProcessId> = match name {
            // Who has not said anything yet may not know the signal: it would end it.
            None => {
                self.workers.iter().filter(|(_, it)| it.trust == Trust::Attached).map(|(process, _)| *process).collect()
            }
            Some(name) => {
                let (actor, _) = self.core.actor_named(name)?;
                let process = self.core.process_of(actor);
                let is_up = |it: &ProcessId| self.workers.get(it).is_some_and(|worker| worker.trust == Trust::Attached);
                process.into_iter().filter(is_up).collect()
            }
        };
        asked.sort();
        for process in &asked {
            self.dump_stacks(*process);
        }
        Some(asked)
    }

    /// What a process has written, under its actor's name.
    fn take_stacks(&mut self, process: ProcessId) -> (String, Result<String, String>) {
        let Some(worker) = self.workers.get_mut(&process) else {
            return (process.pid.to_string(), Err("it has just ended".into()));
        };
        let label = worker.label.clone();
        let no_stacks = worker.no_stacks.take();
        let stacks = worker.page.take_stacks();
        self.push(process, Frame::of(ToWorker::StacksTaken));
        match (no_stacks, stacks) {
            (Some(why), _) => (label, Err(why.to_owned())),
            (None, None) => (label, Err("they were asked for too often while it did one thing".into())),
            (None, Some(stacks)) if stacks.is_empty() => {
                (label, Err("it has written none: it may not have begun yet".into()))
            }
            // Of an actor without anything in hand nothing is left but our own frames, which are not shown.
            (None, Some(stacks)) if !stacks.contains("File \"") => (label, Ok("it waits for a message".into())),
            (None, Some(stacks)) => (label, Ok(stacks)),
        }
    }
}
