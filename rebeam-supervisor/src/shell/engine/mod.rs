//! The one owner of the core: turns what tasks see into events, and carries out the actions that follow.
//!
//! Tasks hold a [`Node`] and call it; each call handles its events, drains the actions, and writes what is to be
//! written before it returns, so that a message passes from socket to socket within one turn of the loop, without a
//! channel or a wake-up between two tasks. Nothing here waits. [`launching`] makes processes and sees them die,
//! [`outside`] serves the control socket.

mod act;
mod births;
mod launching;
mod outside;
mod reload;
mod tables;
#[cfg(test)]
mod tests;
mod worker;

use std::cell::{OnceCell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::rc::{Rc, Weak};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rebeam_core::event::{HandedOver, State};
use rebeam_core::shell::{self, Frame, Heard, Shell as _};
use rebeam_core::{Core, Event};
use rebeam_protocol::address::Caller;
use rebeam_protocol::certificate::{Certificate, Next};
use rebeam_protocol::exit::ExitReason;
use rebeam_protocol::frame;
use rebeam_protocol::handshake::Secret;
use rebeam_protocol::id::{CallId, ProcessId, Version};
use rebeam_protocol::message::{CallFailure, Outcome};
use rebeam_protocol::outside::{Health, NodeState};
use rebeam_protocol::page;
use rebeam_protocol::process::ProcessAnswer;
use rebeam_protocol::spec::ProcessOptions;
use rebeam_protocol::table::TableRequest;
use rebeam_protocol::worker::{ToSupervisor, ToWorker};
use rebeam_protocol::zygote::{FromZygote, Target};
use rustc_hash::FxBuildHasher;
use tokio::sync::Notify;

use self::act::DeadLetterReports;
use self::births::Births;
pub(crate) use self::outside::NodeFigures;

use self::outside::Clients;
use self::reload::Reloading;
pub(crate) use self::reload::{Import, Trigger};
use self::tables::Tables;
use self::worker::{Trust, Worker, Writing};
use crate::printer::{Printer, Speaker, Stream};
use crate::python::Python;
use crate::shell::arenas::Freed;
use crate::shell::descriptors::Descriptors;
use crate::shell::launcher::{Inherited, TheirEnds, Wiring};
use crate::shell::ledger::Ledger;
use crate::shell::memory;
use crate::shell::oom::OutOfMemory;
use crate::shell::otlp::Exporter;
use crate::shell::output::Lines;
use crate::shell::reaper::{self, Strangers};
use crate::shell::sampler::Measured;
use crate::shell::service::{Frames, Service};
use crate::shell::spin::{Traffic, spin};
use crate::shell::versions::Versions;
use crate::shell::watched::{Watched, readable_until, watch_for_room};
use crate::shell::zygote::{self, Base};
use rebeam_sys::frames::Read;

/// A shared handle on the engine. Tasks borrow it for one call at a time, and never across an await.
#[derive(Clone)]
pub(crate) struct Node(Rc<RefCell<Engine>>);

/// The node that there will be, once the application is imported: whoever asks meanwhile is told so.
#[derive(Clone, Default)]
pub(crate) struct Loading(Rc<OnceCell<Node>>);

impl Loading {
    /// From now on there is one.
    pub(crate) fn done(&self, node: Node) {
        let _ = self.0.set(node);
    }

    pub(crate) fn node(&self) -> Option<&Node> {
        self.0.get()
    }

    /// How it is.
    pub(crate) fn health(&self) -> Health {
        let loading = || Health { state: NodeState::Starting, troubles: Vec::new() };
        self.node().map_or_else(loading, Node::health)
    }
}

/// How a node ended.
#[derive(Debug)]
pub(crate) enum Ended {
    /// As ordered, or with its significant children.
    Clean,
    /// The root supervisor gave up.
    GaveUp(Option<(Arc<Certificate>, Next)>),
    /// The tree did not come up.
    NotStarted { child: String, reason: ExitReason, certificate: Option<Arc<Certificate>> },
}

/// What is fixed for the life of a node.
#[derive(Debug)]
pub(crate) struct Setup {
    pub(crate) python: Python,
    pub(crate) directory: PathBuf,
    /// The node's own directory, where its sockets are; known when the node has taken it.
    pub(crate) node_dir: PathBuf,
    pub(crate) target: Target,
    /// As the user wrote it.
    pub(crate) target_text: String,
    /// The largest frame that a worker and the node may exchange, in bytes.
    pub(crate) max_frame: usize,
    /// What its processes know each other by.
    pub(crate) secret: Secret,
    /// From which of `logging`'s numbers on actors log, if somebody has said.
    pub(crate) log_level: Option<u16>,
    /// How long a message may wait before the node is not ready.
    pub(crate) longest_wait: Duration,
    /// Children of ours that are none of our business.
    pub(crate) strangers: Arc<Strangers>,
}

/// How many bytes may wait to be written to a worker that does not read; one frame more in any case.
const MOST_UNREAD: usize = 256 * 1024 * 1024;

/// How much one worker may have the engine do before others have their turn: a message to a group is one frame, and as
/// many actions as the group has members.
const MOST_ACTIONS: usize = 4096;

/// From how many bytes on a worker is asked to read between two things that it does.
const MUCH_UNREAD: usize = 1024 * 1024;

struct Engine {
    me: Weak<RefCell<Engine>>,
    core: Core,
    started: Instant,
    setup: Setup,
    printer: Printer,
    workers: HashMap<ProcessId, Worker, FxBuildHasher>,
    by_os_pid: HashMap<i32, ProcessId, FxBuildHasher>,
    keeper: Service,
    /// Launches that wait for the zygote.
    queue: VecDeque<(ProcessId, TheirEnds)>,
    spawn: Spawn,
    /// The fork under way.
    forking: Option<Forking>,
    /// How many forks were asked for.
    forks: u64,
    /// A worker that was forked ahead, and waits to be told who it is.
    standby: Option<Standby>,
    wants_standby: bool,
    /// Somebody has died since strays were last looked for.
    has_strays: bool,
    is_looking_for_strays: bool,
    births: Births,
    descriptors: Descriptors,
    clients: Clients,
    dirty: Vec<ProcessId>,
    timer: Rc<Notify>,
    wakes_at: Option<Duration>,
    life: Life,
    /// How many workers have a limit of memory.
    watched_memory: usize,
    /// Whether somebody looks at them.
    watches_memory: bool,
    oom: OutOfMemory,
    dead_letters: DeadLetterReports,
    freed: Freed,
    ledger: Ledger,
    versions: Versions,
    reloading: Reloading,
    tables: Tables,
    traffic: Rc<Traffic>,
    /// Where spans go, if somebody traces.
    exporter: Option<Exporter>,
}

/// How far the node is in its life, and who waits for what of it.
#[derive(Default)]
struct Life {
    is_up: bool,
    is_stopping: bool,
    on_stopping: Rc<Notify>,
    /// How it ended, until somebody has asked.
    ended: Option<Ended>,
    has_ended: bool,
    on_end: Rc<Notify>,
}

impl Life {
    fn end(&mut self, ended: Ended) {
        self.ended = Some(ended);
        self.has_ended = true;
        self.on_end.notify_one();
    }
}

/// The processes of the node that are no actors.
#[derive(Debug)]
pub(crate) struct Services {
    pub(crate) keeper: Service,
    /// Where zygotes are forked from, if they are.
    pub(crate) base: Option<Base>,
}

/// Starts a fresh interpreter as a worker with these ends; gives its process id.
type Spawn = fn(TheirEnds, &Setup, &ProcessOptions, Inherited<'_>) -> io::Result<i32>;

/// A fork that a zygote was asked for and has not reported.
struct Forking {
    /// Of which version of the code.
    code: Version,
    /// The number of the request.
    request: u64,
    of: Forked,
}

/// What is being forked.
enum Forked {
    Worker(ProcessId),
    /// One that is not anybody yet.
    Standby(Wiring),
}

struct Standby {
    /// Of which version of the code.
    code: Version,
    wiring: Wiring,
    os_pid: i32,
}

impl Node {
    /// A node whose zygote has loaded the application.
    pub(crate) fn new(
        core: Core,
        setup: Setup,
        printer: Printer,
        services: Services,
        (ledger, versions): (Ledger, Versions),
        started: Instant,
    ) -> Self {
        let mut reloading = Reloading::default();
        if let Some(base) = services.base {
            reloading.set_base(base);
        }
        Node(Rc::new_cyclic(|me| {
            RefCell::new(Engine {
                me: me.clone(),
                core,
                started,
                setup,
                printer,
                workers: HashMap::default(),
                by_os_pid: HashMap::default(),
                keeper: services.keeper,
                queue: VecDeque::new(),
                spawn: |theirs, setup, options, inherited| {
                    theirs.spawn(&setup.python, &setup.directory, options, inherited)
                },
                forking: None,
                forks: 0,
                standby: None,
                wants_standby: false,
                has_strays: false,
                is_looking_for_strays: false,
                births: Births::default(),
                descriptors: Descriptors::new(),
                clients: Clients::default(),
                dirty: Vec::new(),
                timer: Rc::new(Notify::new()),
                watched_memory: 0,
                watches_memory: false,
                wakes_at: None,
                life: Life::default(),
                oom: OutOfMemory::new(),
                dead_letters: DeadLetterReports::default(),
                freed: Freed::default(),
                ledger,
                versions,
                reloading,
                tables: Tables::default(),
                traffic: Rc::new(Traffic::new()),
                exporter: None,
            })
        }))
    }

    /// Takes over from the loader, and starts the tree.
    pub(crate) fn boot(&self) {
        self.0.borrow().listen_to_zygote(Version::FIRST);
        tokio::task::spawn_local(self.clone().keep_time());
        tokio::task::spawn_local(spin(self.0.borrow().traffic.clone()));
        self.handle(Event::Boot);
    }

    /// Tells the core something and does what follows.
    pub(crate) fn handle(&self, event: Event) {
        self.with(|engine| engine.tell(event));
    }

    /// From now on traces this share of what begins here.
    pub(crate) fn trace(&self, exporter: Exporter, share: f64) {
        let engine = &mut *self.0.borrow_mut();
        engine.core.trace(seed(), share);
        engine.exporter = Some(exporter);
    }

    /// Has what was traced sent.
    pub(crate) async fn finish_tracing(&self) {
        let exporter = self.0.borrow_mut().exporter.take();
        if let Some(exporter) = exporter {
            exporter.finish().await;
        }
    }

    /// Ends the zygote with the node. It stays the node's until it has ended: strays are still looked for, and are killed.
    pub(crate) async fn end_zygote(&self) {
        let current = self.0.borrow().versions.current();
        let ended = self.0.borrow().versions.zygote(current).and_then(Service::process).map(zygote::order_end);
        if let Some(ended) = ended {
            ended.await;
        }
        let mut engine = self.0.borrow_mut();
        engine.versions.retire_all();
        engine.tables.service.retire();
        engine.reloading.base_os_pid.into_iter().for_each(reaper::kill_group);
    }

    /// The process of the keeper.
    pub(crate) fn keeper(&self) -> Option<i32> {
        self.0.borrow().keeper.os_pid()
    }

    /// Borrows the engine for one call, then carries out all actions and writes what is to be written.
    fn with<T>(&self, call: impl FnOnce(&mut Engine) -> T) -> T {
        let mut engine = self.0.borrow_mut();
        let result = call(&mut engine);
        engine.carry_out();
        result
    }

    /// Waits until the node has ended.
    pub(crate) async fn ended(&self) -> Ended {
        loop {
            if let Some(ended) = self.0.borrow_mut().life.ended.take() {
                return ended;
            }
            let on_end = self.0.borrow().life.on_end.clone();
            on_end.notified().await;
        }
    }

    /// Waits until the tree is being stopped, by whomever.
    pub(crate) async fn stopping(&self) {
        let on_stopping = self.0.borrow().life.on_stopping.clone();
        on_stopping.notified().await;
    }

    /// Fires the core's timers when they are due.
    async fn keep_time(self) {
        let (timer, started) = (self.0.borrow().timer.clone(), self.0.borrow().started);
        loop {
            let due = self.0.borrow().wakes_at;
            let sleep = async {
                match due {
                    Some(due) => tokio::time::sleep_until((started + due).into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = timer.notified() => {}
                () = sleep => {
                    self.with(|engine| {
                        let now = engine.now();
                        engine.core.handle_timeout(now);
                    });
                    // However much is due, signals and sockets have their turn between.
                    tokio::task::yield_now().await;
                }
            }
        }
    }

    /// Reaps every child that has died.
    pub(crate) fn reap(&self) {
        self.with(Engine::reap);
    }

    /// Sends a signal to every process of the tree, and to those they started.
    pub(crate) fn signal_all(&self, signal: nix::sys::signal::Signal) {
        let engine = self.0.borrow();
        engine
            .by_os_pid
            .keys()
            .copied()
            .chain(engine.other_os_pids())
            .for_each(|os_pid| reaper::signal_group(os_pid, signal));
    }

    /// Reads what the zygote says, as long as there is one.
    async fn hear_zygote(self, version: Version, mut frames: Frames) {
        loop {
            match frames.next::<FromZygote>().await {
                Ok(Some((message, _))) => self.with(|engine| engine.zygote_said(version, message)),
                // The end itself comes from the reaper.
                Ok(None) => return,
                Err(_) => return self.0.borrow().versions.zygote(version).into_iter().for_each(Service::kill),
            }
        }
    }

    // ---- tasks of one worker -----------------------------------------------------------------------------------

    async fn read_worker(self, process: ProcessId, channel: Rc<Watched>) {
        loop {
            let Ok(mut guard) = channel.readable().await else { return };
            match self.with(|engine| engine.read_worker(process, MOST_ACTIONS)) {
                Read::Some { is_all: false } => tokio::task::yield_now().await,
                Read::Some { is_all: true } | Read::Nothing => guard.clear_ready(),
                // The death itself comes from the reaper.
                Read::Closed | Read::Broken => return,
            }
        }
    }

    async fn write_worker(self, process: ProcessId, channel: Rc<Watched>) {
        let room = loop {
            match watch_for_room(channel.get_ref()) {
                Ok(room) => break room,
                // Out of descriptors, most likely: others may go.
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        };
        loop {
            let Ok(mut guard) = room.writable().await else { return };
            if self.0.borrow_mut().write_more(process) {
                return;
            }
            guard.clear_ready();
        }
    }

    async fn read_output(self, process: ProcessId, pipe: Rc<Watched>, stream: Stream) {
        loop {
            let due = self.0.borrow_mut().show_due(process, stream);
            let Some(ready) = readable_until(&pipe, due).await else { continue };
            let Ok(mut guard) = ready else { return };
            let read = self.0.borrow_mut().read_output(process, stream);
            match read {
                // An actor that writes without end is not to keep the others waiting.
                Read::Some { .. } => tokio::task::yield_now().await,
                Read::Nothing => guard.clear_ready(),
                Read::Closed | Read::Broken => return,
            }
        }
    }
}

impl memory::Actors for Node {
    fn processes(&self) -> Vec<(ProcessId, Measured)> {
        let engine = self.0.borrow();
        engine.workers.iter().filter_map(|(process, worker)| Some((*process, worker.measured()?))).collect()
    }

    fn limited(&self) -> Option<Vec<(ProcessId, Measured, u64)>> {
        let engine = self.0.borrow();
        let limit =
            |(process, worker): (&ProcessId, &Worker)| Some((*process, worker.measured()?, worker.memory_limit?));
        (engine.watched_memory > 0).then(|| engine.workers.iter().filter_map(limit).collect())
    }

    fn table_bytes(&self) -> u64 {
        self.0.borrow().tables.figures(0).bytes
    }

    fn tell(&self, event: Event) {
        self.handle(event);
    }
}

impl Engine {
    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    fn tell(&mut self, event: Event) {
        let now = self.now();
        self.core.handle_event(now, event);
    }

    fn carry_out(&mut self) {
        shell::carry_out(self);
        self.give_arenas_back();
        for process in std::mem::take(&mut self.dirty) {
            self.flush(process);
        }
        self.write_to_store();
        if let Some(are_few) = self.descriptors.look(self.workers.len(), self.tables.readers()) {
            self.ledger.set_few_descriptors(are_few);
        }
        // Last: nobody waits for it.
        self.fork_ahead();
        let wakes_at = self.core.poll_timeout();
        if wakes_at != self.wakes_at {
            self.wakes_at = wakes_at;
            self.timer.notify_one();
        }
    }

    // ---- writing -----------------------------------------------------------------------------------------------

    /// Queues a frame for a worker; it goes out at the end of this turn.
    fn push(&mut self, process: ProcessId, frame: Frame) {
        let Frame { mut message, payload, buffers, attention } = frame;
        let Some(worker) = self.workers.get_mut(&process) else { return };
        let lent = buffers.as_ref().and_then(|ticket| worker.memories.lend(ticket));
        let descriptor = lent.map(|(lease, descriptor)| {
            match &mut message {
                ToWorker::Deliver(delivery) => delivery.buffers = Some(lease),
                ToWorker::Reply { buffers, .. } => *buffers = Some(lease),
                _ => {}
            }
            descriptor
        });
        worker.wants_attention |= attention;
        if worker.writing == Writing::Blocked {
            // It need not wait for room: an exit is a bit on the page, too, and room is made by a look.
            worker.get_attention();
        }
        // What a worker may send is bounded where it is read; on its way on it may get a longer head.
        let limit = self.setup.max_frame + frame::HEAD_ROOM;
        let unread = worker.out.bytes();
        // Two of the largest messages may be on their way.
        if unread > MOST_UNREAD.max(2 * limit) {
            return self.tell(Event::ReadsNothing { process, bytes: unread as u64 });
        }
        let pushed = match descriptor {
            None => worker.out.push(&message, &payload, limit),
            Some(descriptor) => worker.out.push_with(&message, &payload, limit, vec![descriptor]),
        };
        if let Err(error) = pushed {
            // What stands in its place is small.
            return self.push_instead(process, message, &error.to_string());
        }
        if worker.out.bytes() > MUCH_UNREAD {
            worker.wants_attention |= page::LOOK;
        }
        if let Some(unborn) = &mut worker.unborn {
            unborn.said.push((message, payload));
        }
        if worker.writing == Writing::Idle {
            worker.writing = Writing::Queued;
            self.dirty.push(process);
        }
    }

    /// Queues a small frame with descriptors.
    fn push_with(&mut self, process: ProcessId, message: &ToWorker, descriptors: Vec<Arc<OwnedFd>>) {
        let Some(worker) = self.workers.get_mut(&process) else { return };
        let _ = worker.out.push_with(message, &Bytes::new(), frame::MAX_FRAME, descriptors);
        if worker.writing == Writing::Idle {
            worker.writing = Writing::Queued;
            self.dirty.push(process);
        }
    }

    /// A frame is larger than any may be: whoever waits for it is told so.
    fn push_instead(&mut self, process: ProcessId, message: ToWorker, error: &str) {
        let text = format!("too large to be handed over: {error}");
        match message {
            ToWorker::Deliver(delivery) => self.tell(Event::Undeliverable { process, seq: delivery.seq, error: text }),
            ToWorker::Reply { call, .. } => {
                let outcome = Outcome::Failed(CallFailure::BadResult(text));
                self.push(process, Frame::of(ToWorker::Reply { call, outcome, buffers: None }));
            }
            ToWorker::Answer { request, .. } => {
                self.push(process, Frame::of(ToWorker::Answer { request, answer: ProcessAnswer::TooLarge(text) }));
            }
            // The others have a bound of their own.
            _ => {}
        }
    }

    /// Tells the makers of arenas which of them nobody holds any more.
    fn give_arenas_back(&mut self) {
        let freed = std::mem::take(&mut *self.freed.lock().unwrap_or_else(PoisonError::into_inner));
        for (process, arena) in freed {
            self.push(process, Frame { attention: page::LOOK, ..Frame::of(ToWorker::ArenaFree { arena }) });
        }
    }

    fn flush(&mut self, process: ProcessId) {
        let Some(worker) = self.workers.get_mut(&process) else { return };
        worker.writing = Writing::Idle;
        if worker.flush() == Ok(false) {
            worker.writing = Writing::Blocked;
            let channel = worker.channel.clone();
            let Some(node) = self.me.upgrade().map(Node) else { return };
            let task = tokio::task::spawn_local(node.write_worker(process, channel));
            worker.tasks.truncate(3);
            worker.tasks.push(task.abort_handle());
        }
        // A broken socket is a dead worker: the reaper tells.
    }

    /// Writes more to a worker whose socket was full; true if nothing is left.
    fn write_more(&mut self, process: ProcessId) -> bool {
        let Some(worker) = self.workers.get_mut(&process) else { return true };
        let is_done = worker.flush().unwrap_or(true);
        worker.writing = if is_done { Writing::Idle } else { Writing::Blocked };
        is_done
    }

    // ---- reading -----------------------------------------------------------------------------------------------

    /// Reads once, and handles what has come until so much is to be done; the rest is handled by the next call, before it
    /// reads.
    fn read_worker(&mut self, process: ProcessId, most: usize) -> Read {
        let Some(worker) = self.workers.get_mut(&process) else { return Read::Closed };
        if std::mem::take(&mut worker.has_frames) {
            self.handle_frames(process, most);
            return Read::Some { is_all: false };
        }
        let result = worker.decoder.read(worker.channel.get_ref());
        match result {
            Read::Some { .. } => {
                self.traffic.note();
                self.handle_frames(process, most);
                if self.workers.get(&process).is_some_and(|worker| worker.has_frames) {
                    return Read::Some { is_all: false };
                }
            }
            Read::Broken => self.misbehaved(process, "descriptors were cut off, or too many of them sent".into()),
            Read::Nothing | Read::Closed => {}
        }
        result
    }

    fn handle_frames(&mut self, process: ProcessId, most: usize) {
        loop {
            let Some(worker) = self.workers.get_mut(&process) else { return };
            if self.core.pending_actions() > most {
                worker.has_frames = true;
                return;
            }
            match worker.decoder.next_frame::<ToSupervisor>() {
                Ok(Some((message, payload))) => {
                    if let Err(complaint) = self.handle_frame(process, message, payload) {
                        return self.misbehaved(process, complaint);
                    }
                }
                Ok(None) => return,
                Err(error) => return self.misbehaved(process, error.to_string()),
            }
        }
    }

    fn misbehaved(&mut self, process: ProcessId, complaint: String) {
        if let Some(worker) = self.workers.get_mut(&process) {
            worker.trust = Trust::Distrusted;
        }
        self.tell(Event::Misbehaved { process, complaint });
    }

    fn handle_frame(&mut self, process: ProcessId, message: ToSupervisor, payload: Bytes) -> Result<(), String> {
        let Some(worker) = self.workers.get_mut(&process) else { return Ok(()) };
        match worker.trust {
            Trust::Distrusted => return Ok(()),
            Trust::Unknown => {
                let ToSupervisor::Hello(hello) = &message else {
                    return Err("the first frame is not a handshake".into());
                };
                hello.check()?;
                worker.trust = Trust::Attached;
                worker.unborn = None;
                let os_pid = hello.os_pid as i32;
                // It may be faster than the zygote, which was to tell of it.
                if worker.os_pid.is_none() && !self.is_known(os_pid) && reaper::is_child(os_pid) {
                    self.born(process, os_pid);
                }
                return Ok(());
            }
            Trust::Attached => {}
        }
        match shell::hear(process, message, payload, |buffers| worker.memories.ticket(buffers, &self.freed))? {
            Heard::Event(event) => self.tell(event),
            Heard::Abandon(call) => self.abandon(Caller::Actor(process.pid), call),
            Heard::Table { request, body, payload } => {
                let arrays = match body {
                    TableRequest::Operate { has_arrays: true, .. } => {
                        Some(worker.decoder.take_descriptor().ok_or("arrays without their memory")?)
                    }
                    _ => None,
                };
                self.table_asked(process, request, body, &payload, arrays);
            }
            Heard::Shell(ToSupervisor::Arena { arena, size }) => {
                let descriptor = worker.decoder.take_descriptor();
                if !self.descriptors.has_room_for_arena() {
                    return Err("an arena, although descriptors are few".into());
                }
                worker.memories.add(process, arena, size, descriptor, &self.descriptors.arenas)?;
            }
            Heard::Shell(ToSupervisor::HandOver { runs_init, took_us }) => {
                let memory = worker.decoder.take_descriptor().ok_or("a state without its memory")?;
                let page = worker.page.snapshot();
                let (state, took) = (State::new(Arc::new(memory)), Duration::from_micros(took_us));
                self.tell(Event::HandedOver(Box::new(HandedOver { process, state, runs_init, took, page })));
            }
            Heard::Shell(ToSupervisor::ArenaGone { arena }) => worker.memories.remove(arena),
            Heard::Shell(ToSupervisor::Released { leases }) => worker.memories.release(&leases),
            Heard::Shell(ToSupervisor::Log(record)) => {
                self.printer
                    .log(Speaker { label: &worker.label, pid: Some(process.pid), code: Some(worker.code) }, &record);
            }
            Heard::Shell(_) => return Err("a second handshake".into()),
        }
        Ok(())
    }

    fn abandon(&mut self, caller: Caller, call: CallId) {
        let page = self.core.callee_of(caller, call).and_then(|process| self.page(process));
        self.tell(Event::Abandoned { caller, call, page });
    }

    /// Reads a worker's pipe once.
    fn read_output(&mut self, process: ProcessId, stream: Stream) -> Read {
        let Some(worker) = self.workers.get_mut(&process) else { return Read::Closed };
        let output = if stream == Stream::Stdout { &mut worker.stdout } else { &mut worker.stderr };
        match output.lines.read(output.pipe.get_ref()) {
            Lines::Closed => Read::Closed,
            Lines::Nothing => Read::Nothing,
            Lines::Some(lines) => {
                let who = Speaker { label: &worker.label, pid: Some(process.pid), code: Some(worker.code) };
                for line in lines {
                    self.printer.output(who, stream, &line);
                    worker.last_lines.push(line);
                }
                if output.lines.take_is_foreign() {
                    let label = &worker.label;
                    self.printer.warn(&format!("`{label}` writes bytes that are no UTF-8: they are shown as `\\xff`"));
                }
                Read::Some { is_all: false }
            }
        }
    }

    /// Shows a line that has not ended, if it is time for that; says when it will be.
    fn show_due(&mut self, process: ProcessId, stream: Stream) -> Option<Instant> {
        let worker = self.workers.get_mut(&process)?;
        let output = if stream == Stream::Stdout { &mut worker.stdout } else { &mut worker.stderr };
        if let Some(line) = output.lines.take_due(Instant::now()) {
            self.printer.output(
                Speaker { label: &worker.label, pid: Some(process.pid), code: Some(worker.code) },
                stream,
                &line,
            );
            worker.last_lines.push(line);
        }
        output.lines.due()
    }
}

/// A number that no other node has, for what must not be mistaken for another's.
fn seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    // Keyed by the system's random numbers.
    RandomState::new().hash_one(std::process::id())
}
