//! The one owner of the core: turns what tasks see into events, and carries out the actions that follow.
//!
//! Tasks hold a [`Node`] and call it; each call handles its events, drains the actions, and writes what is to be
//! written before it returns, so that a message passes from socket to socket within one turn of the loop, without a
//! channel or a wake-up between two tasks. Nothing here waits. [`launching`] makes processes and sees them die,
//! [`outside`] serves the control socket.

mod launching;
mod outside;

use std::cell::{OnceCell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::rc::{Rc, Weak};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rebeam_core::event::{Launch, NodeEnd, Recipient, Requester, Ticket};
use rebeam_core::{Action, Core, EntryChange, Event};
use rebeam_protocol::certificate::Certificate;
use rebeam_protocol::control::{Answer, Health, NodeState};
use rebeam_protocol::exit::ExitReason;
use rebeam_protocol::frame::{self, MAX_FRAME};
use rebeam_protocol::id::{CallId, ProcessId};
use rebeam_protocol::message::{Address, Caller, DeadLetter, Envelope, Lane, Lease, Outcome, ToSupervisor, ToWorker};
use rebeam_protocol::page;
use rebeam_protocol::zygote::{FromZygote, Target};
use rustc_hash::FxBuildHasher;
use tokio::sync::{Notify, oneshot};
use tokio::task::AbortHandle;

use crate::printer::{Printer, Speaker};
use crate::python::Python;
use crate::shell::arenas::{Freed, Memories};
use crate::shell::connection::{Decoder, Read, WriteQueue};
use crate::shell::launcher::{self, Keeper, TheirEnds, Wiring};
use crate::shell::ledger::Ledger;
use crate::shell::oom::OutOfMemory;
use crate::shell::otlp::Exporter;
use crate::shell::output::{LastLines, LineReader, Lines, Stream};
use crate::shell::reaper::{self, Strangers};
use crate::shell::service_manager;
use crate::shell::spin::{Traffic, spin};
use crate::shell::status_page::{StatusPage, clock_ns};
use crate::shell::watched::{Watched, watch, watch_for_room};
use crate::shell::zygote::Zygote;

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
    GaveUp(Option<Box<Certificate>>),
    /// The tree did not come up.
    NotStarted { child: String, reason: ExitReason, certificate: Option<Box<Certificate>> },
}

/// What is fixed for the life of a node.
#[derive(Debug)]
pub(crate) struct Setup {
    pub(crate) python: Python,
    pub(crate) directory: PathBuf,
    pub(crate) target: Target,
    /// As the user wrote it.
    pub(crate) target_text: String,
    /// The largest frame that a worker and the node may exchange, in bytes.
    pub(crate) max_frame: usize,
    /// From which of `logging`'s numbers on actors log, if somebody has said.
    pub(crate) log_level: Option<u16>,
    /// How long a message may wait before the node is not ready.
    pub(crate) longest_wait: Duration,
    /// Children of ours that are none of our business.
    pub(crate) strangers: Rc<Strangers>,
}

struct Engine {
    me: Weak<RefCell<Engine>>,
    core: Core,
    started: Instant,
    setup: Setup,
    printer: Printer,
    workers: HashMap<ProcessId, Worker, FxBuildHasher>,
    by_os_pid: HashMap<i32, ProcessId, FxBuildHasher>,
    zygote: ZygoteState,
    /// Outlives us by a moment; not a stray.
    keeper: Keeper,
    /// Launches that wait for the zygote.
    queue: VecDeque<(ProcessId, TheirEnds)>,
    /// The fork under way.
    forking: Option<Forking>,
    /// A worker that was forked ahead, and waits to be told who it is.
    standby: Option<Standby>,
    wants_standby: bool,
    /// Somebody has died since strays were last looked for.
    has_strays: bool,
    outside: HashMap<u64, HashMap<CallId, oneshot::Sender<(Outcome, Bytes)>>>,
    requests: HashMap<u64, oneshot::Sender<(Answer, Bytes)>>,
    next_outside: u64,
    next_call: u64,
    dirty: Vec<ProcessId>,
    timer: Rc<Notify>,
    on_stopping: Rc<Notify>,
    wakes_at: Option<Duration>,
    ended: Option<Ended>,
    on_end: Rc<Notify>,
    /// How many workers have a limit of memory.
    watched_memory: usize,
    oom: OutOfMemory,
    is_up: bool,
    is_stopping: bool,
    dead_letters: DeadLetterCount,
    freed: Freed,
    ledger: Ledger,
    traffic: Rc<Traffic>,
    /// Where spans go, if somebody traces.
    exporter: Option<Exporter>,
}

/// Dead letters so far, and what was said of them.
#[derive(Default)]
struct DeadLetterCount {
    all: u64,
    /// When the current second of saying began, how many were said in it, and how many were not.
    since: Duration,
    said: u32,
    unsaid: u64,
}

/// The longest name or method that a message may be for, in bytes.
const LONGEST_NAME: usize = 4096;

/// The longest reason why an actor is not ready, in characters: it is kept and shown.
const LONGEST_REASON: usize = 1000;

/// Dead letters that are said within a second; more are only counted.
const SAID_PER_SECOND: u32 = 20;

enum ZygoteState {
    /// The application is not to be forked: every actor gets a fresh interpreter.
    NotUsed,
    /// It imports the application.
    Loading { zygote: Zygote, tries: u32 },
    Ready {
        zygote: Zygote,
        since: Instant,
        /// How often it died shortly after it was ready.
        tries: u32,
    },
}

/// What the zygote is forking.
enum Forking {
    Worker(ProcessId),
    /// One that is not anybody yet.
    Standby(Wiring),
}

struct Standby {
    wiring: Wiring,
    os_pid: i32,
}

struct Worker {
    label: String,
    os_pid: Option<i32>,
    channel: Rc<Watched>,
    decoder: Decoder,
    out: WriteQueue,
    is_blocked: bool,
    is_dirty: bool,
    has_said_hello: bool,
    is_killed: bool,
    /// It broke the protocol: what it says from then on is not listened to.
    has_misbehaved: bool,
    /// What to have it look at, once everything is written.
    wants_attention: u32,
    /// From which size on its memory matters, in KiB.
    memory_limit: Option<u64>,
    /// Large buffers that it has made or was handed.
    memories: Memories,
    /// What was said to it while it was not born.
    said: Vec<(ToWorker, Bytes)>,
    /// Why its stacks cannot be had, if they were asked for and cannot.
    no_stacks: Option<&'static str>,
    page: StatusPage,
    _lifeline: OwnedFd,
    stdout: Output,
    stderr: Output,
    last_lines: LastLines,
    tasks: Vec<AbortHandle>,
    /// To be made again, should the zygote die while it is being forked; `None` once it is born.
    launch: Option<Launch>,
}

struct Output {
    pipe: Rc<Watched>,
    lines: LineReader,
}

impl Worker {
    /// Writes what the socket takes; true if everything is out.
    fn flush(&mut self) -> Result<bool, ()> {
        let is_all = self.out.flush(self.channel.get_ref()).map_err(drop)?;
        if self.wants_attention != 0 && (is_all || self.wants_attention & page::EXIT != 0) {
            let bits = std::mem::take(&mut self.wants_attention);
            self.page.ask_for_attention(bits);
            if bits & page::EXIT != 0
                && let Some(os_pid) = self.os_pid
            {
                launcher::signal_main_thread(os_pid, launcher::exit_signal());
            }
        }
        Ok(is_all)
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

impl Node {
    /// A node whose zygote has loaded the application.
    pub(crate) fn new(
        core: Core,
        setup: Setup,
        printer: Printer,
        zygote: Option<Zygote>,
        keeper: Keeper,
        ledger: Ledger,
        started: Instant,
    ) -> Self {
        let zygote = match zygote {
            Some(zygote) => ZygoteState::Ready { zygote, since: Instant::now(), tries: 0 },
            None => ZygoteState::NotUsed,
        };
        Node(Rc::new_cyclic(|me| {
            RefCell::new(Engine {
                me: me.clone(),
                core,
                started,
                setup,
                printer,
                workers: HashMap::default(),
                by_os_pid: HashMap::default(),
                zygote,
                keeper,
                queue: VecDeque::new(),
                forking: None,
                standby: None,
                wants_standby: false,
                has_strays: false,
                outside: HashMap::new(),
                requests: HashMap::new(),
                next_outside: 0,
                next_call: 0,
                dirty: Vec::new(),
                timer: Rc::new(Notify::new()),
                on_stopping: Rc::new(Notify::new()),
                watched_memory: 0,
                wakes_at: None,
                ended: None,
                on_end: Rc::new(Notify::new()),
                oom: OutOfMemory::new(),
                is_up: false,
                is_stopping: false,
                dead_letters: DeadLetterCount::default(),
                freed: Freed::default(),
                ledger,
                traffic: Rc::new(Traffic::new()),
                exporter: None,
            })
        }))
    }

    /// Takes over from the loader, and starts the tree.
    pub(crate) fn boot(&self) {
        if let ZygoteState::Ready { zygote, .. } = &self.0.borrow().zygote
            && let Ok(control) = zygote.control.try_clone()
        {
            tokio::task::spawn_local(self.clone().listen_to_zygote(control));
        }
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

    /// Ends the zygote with the node.
    pub(crate) fn end_zygote(&self) {
        self.0.borrow_mut().kill_zygote();
    }

    /// The process of the keeper.
    pub(crate) fn keeper(&self) -> i32 {
        self.0.borrow().keeper.os_pid
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
            if let Some(ended) = self.0.borrow_mut().ended.take() {
                return ended;
            }
            let on_end = self.0.borrow().on_end.clone();
            on_end.notified().await;
        }
    }

    /// Waits until the tree is being stopped, by whomever.
    pub(crate) async fn stopping(&self) {
        let on_stopping = self.0.borrow().on_stopping.clone();
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
                () = sleep => self.with(|engine| {
                    let now = engine.now();
                    engine.core.handle_timeout(now);
                }),
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
            .chain(engine.zygote_os_pid())
            .chain(engine.standby_os_pid())
            .for_each(|os_pid| reaper::signal_group(os_pid, signal));
    }

    /// Who has a limit of memory: the process, and the least that matters, in KiB. `None` if nobody has.
    pub(crate) fn memory_limits(&self) -> Option<Vec<(ProcessId, i32, u64)>> {
        let engine = self.0.borrow();
        let limit = |(process, worker): (&ProcessId, &Worker)| Some((*process, worker.os_pid?, worker.memory_limit?));
        (engine.watched_memory > 0).then(|| engine.workers.iter().filter_map(limit).collect())
    }

    /// Reads what the zygote says, as long as there is one.
    async fn listen_to_zygote(self, control: OwnedFd) {
        let Ok(control) = watch(control) else { return };
        let mut decoder = Decoder::new(MAX_FRAME);
        loop {
            let Ok(mut guard) = control.readable().await else { return };
            match decoder.read(control.get_ref()) {
                Read::Closed | Read::Broken => return,
                Read::Nothing => guard.clear_ready(),
                Read::Some { .. } => loop {
                    match decoder.next::<FromZygote>() {
                        Ok(Some((message, _))) => self.with(|engine| engine.zygote_said(message)),
                        Ok(None) => break,
                        Err(_) => return self.with(Engine::kill_zygote),
                    }
                },
            }
        }
    }

    // ---- tasks of one worker -----------------------------------------------------------------------------------

    async fn read_worker(self, process: ProcessId, channel: Rc<Watched>) {
        loop {
            let Ok(mut guard) = channel.readable().await else { return };
            match self.with(|engine| engine.read_worker(process)) {
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
            let Ok(mut guard) = pipe.readable().await else { return };
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

impl Engine {
    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    fn tell(&mut self, event: Event) {
        let now = self.now();
        self.core.handle_event(now, event);
    }

    fn carry_out(&mut self) {
        while let Some(action) = self.core.poll_action() {
            self.act(action);
        }
        self.give_arenas_back();
        for process in std::mem::take(&mut self.dirty) {
            self.flush(process);
        }
        // Last: nobody waits for it.
        self.fork_ahead();
        let wakes_at = self.core.poll_timeout();
        if wakes_at != self.wakes_at {
            self.wakes_at = wakes_at;
            self.timer.notify_one();
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Deliver { process, mut delivery, payload, buffers } => {
                let is_urgent = delivery.lane != Lane::Normal;
                let lent = self.lend(process, buffers.as_ref());
                delivery.buffers = lent.as_ref().map(|(lease, _)| *lease);
                self.write_with(process, &ToWorker::Deliver(delivery), &payload, lent.map(|(_, fd)| fd));
                if is_urgent {
                    self.want_attention(process, page::LOOK);
                }
            }
            Action::Reply { to: Recipient::Worker(process), call, outcome, payload, buffers } => {
                let lent = self.lend(process, buffers.as_ref());
                let reply = ToWorker::Reply { call, outcome, buffers: lent.as_ref().map(|(lease, _)| *lease) };
                self.write_with(process, &reply, &payload, lent.map(|(_, fd)| fd));
            }
            Action::Cancel { process, seq } => {
                self.write(process, &ToWorker::Cancel { seq }, &Bytes::new());
                self.want_attention(process, page::LOOK);
            }
            Action::Reply { to: Recipient::Outside(client), call, outcome, payload, .. } => {
                let waiting = self.outside.get_mut(&client).and_then(|calls| calls.remove(&call));
                if let Some(waiting) = waiting {
                    let _ = waiting.send((outcome, payload));
                }
            }
            Action::Stop { process, reason, urgent } => {
                self.write(process, &ToWorker::Stop { reason, urgent }, &Bytes::new());
                if urgent {
                    self.want_attention(process, page::LOOK);
                }
            }
            Action::Exit(process) => {
                self.write(process, &ToWorker::Exit, &Bytes::new());
                self.want_attention(process, page::LOOK | page::EXIT);
            }
            Action::Recycle(process) => {
                self.write(process, &ToWorker::Recycle, &Bytes::new());
                self.want_attention(process, page::LOOK);
            }
            Action::Look(process) => {
                if let Some(worker) = self.workers.get(&process) {
                    let page = worker.page.snapshot();
                    self.tell(Event::Looked { process, page, clock_ns: clock_ns() });
                }
            }
            Action::DumpStacks(process) => self.dump_stacks(process),
            Action::LogLevel { process, level } => {
                self.write(process, &ToWorker::LogLevel { level }, &Bytes::new());
            }
            Action::Gate { process, to, gate } => {
                self.write(process, &ToWorker::Gate { to, gate }, &Bytes::new());
                self.want_attention(process, page::LOOK);
            }
            Action::Answer { to: Requester::Worker(process, request), answer, payload } => {
                self.write(process, &ToWorker::Answer { request, answer }, &payload);
            }
            Action::Answer { to: Requester::Outside(asker), answer, payload } => {
                if let Some(waiting) = self.requests.remove(&asker) {
                    let _ = waiting.send((answer, payload));
                }
            }
            Action::Answer { to: Requester::Nobody, .. } => {}
            Action::Launch(launch) => self.launch(launch),
            Action::Kill(process) => self.kill(process),
            Action::Report(certificate) => self.printer.crash(&certificate),
            Action::Entry(change) => {
                if !self.ledger.write(&change.record()) {
                    let all = self.core.ledger();
                    self.ledger.begin_anew(all.iter().map(EntryChange::record));
                }
            }
            Action::Span(span) => {
                if let Some(exporter) = &mut self.exporter {
                    exporter.send(*span);
                }
            }
            Action::DeadLetter(letter) => self.say_dead_letter(&letter),
            Action::NodeUp => {
                self.is_up = true;
                let actors = self.core.alive().len();
                self.printer.up(actors, self.started.elapsed());
                service_manager::ready(actors);
            }
            Action::NodeFailed { child, reason, certificate } => {
                self.end(Ended::NotStarted { child, reason, certificate });
            }
            Action::NodeStopping => {
                self.is_stopping = true;
                service_manager::stopping();
                self.on_stopping.notify_one();
            }
            Action::NodeEnded(NodeEnd::Clean) => self.end(Ended::Clean),
            Action::NodeEnded(NodeEnd::GaveUp { certificate }) => self.end(Ended::GaveUp(certificate)),
        }
    }

    fn say_dead_letter(&mut self, letter: &DeadLetter) {
        let now = self.now();
        let count = &mut self.dead_letters;
        count.all += 1;
        if now.saturating_sub(count.since) >= Duration::from_secs(1) {
            if count.unsaid > 0 {
                self.printer.warn(&format!("{} more dead letters: see `rebeam dead list`", count.unsaid));
            }
            (count.since, count.said, count.unsaid) = (now, 0, 0);
        }
        if count.said < SAID_PER_SECOND {
            count.said += 1;
            self.printer.dead_letter(letter);
        } else {
            count.unsaid += 1;
        }
    }

    fn end(&mut self, ended: Ended) {
        self.ended = Some(ended);
        self.on_end.notify_one();
    }

    // ---- writing -----------------------------------------------------------------------------------------------

    fn write(&mut self, process: ProcessId, message: &ToWorker, payload: &Bytes) {
        self.write_with(process, message, payload, None);
    }

    fn write_with(
        &mut self,
        process: ProcessId,
        message: &ToWorker,
        payload: &Bytes,
        descriptor: Option<Arc<OwnedFd>>,
    ) {
        let Some(worker) = self.workers.get_mut(&process) else { return };
        // What a worker may send is bounded where it is read; on its way on it may get a longer head.
        let limit = self.setup.max_frame + frame::HEAD_ROOM;
        let pushed = match descriptor {
            None => worker.out.push(message, payload, limit),
            Some(descriptor) => worker.out.push_with(message, payload, limit, descriptor),
        };
        if pushed.is_err() {
            return;
        }
        if worker.launch.is_some() {
            worker.said.push((message.clone(), payload.clone()));
        }
        if !worker.is_dirty && !worker.is_blocked {
            worker.is_dirty = true;
            self.dirty.push(process);
        }
    }

    /// Hands large buffers to a worker.
    fn lend(&mut self, process: ProcessId, ticket: Option<&Ticket>) -> Option<(Lease, Arc<OwnedFd>)> {
        self.workers.get_mut(&process)?.memories.lend(ticket?)
    }

    /// Tells the makers of arenas which of them nobody holds any more.
    fn give_arenas_back(&mut self) {
        let freed = std::mem::take(&mut *self.freed.lock().unwrap_or_else(PoisonError::into_inner));
        for (process, arena) in freed {
            self.write(process, &ToWorker::ArenaFree { arena }, &Bytes::new());
            self.want_attention(process, page::LOOK);
        }
    }

    /// Has a worker look at its channel, once what was written to it before is there.
    fn want_attention(&mut self, process: ProcessId, bits: u32) {
        if let Some(worker) = self.workers.get_mut(&process) {
            worker.wants_attention |= bits;
        }
    }

    fn flush(&mut self, process: ProcessId) {
        let Some(worker) = self.workers.get_mut(&process) else { return };
        worker.is_dirty = false;
        if worker.flush() == Ok(false) {
            worker.is_blocked = true;
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
        worker.is_blocked = !is_done;
        is_done
    }

    // ---- reading -----------------------------------------------------------------------------------------------

    fn read_worker(&mut self, process: ProcessId) -> Read {
        let Some(worker) = self.workers.get_mut(&process) else { return Read::Closed };
        let result = worker.decoder.read(worker.channel.get_ref());
        match result {
            Read::Some { .. } => {
                self.traffic.note();
                self.handle_frames(process);
            }
            Read::Broken => self.misbehaved(process, "descriptors were cut off, or too many of them sent".into()),
            Read::Nothing | Read::Closed => {}
        }
        result
    }

    fn handle_frames(&mut self, process: ProcessId) {
        loop {
            let Some(worker) = self.workers.get_mut(&process) else { return };
            match worker.decoder.next::<ToSupervisor>() {
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
            worker.has_misbehaved = true;
        }
        self.tell(Event::Misbehaved { process, complaint });
    }

    fn handle_frame(&mut self, process: ProcessId, message: ToSupervisor, payload: Bytes) -> Result<(), String> {
        let Some(worker) = self.workers.get_mut(&process) else { return Ok(()) };
        if worker.has_misbehaved {
            return Ok(());
        }
        if !worker.has_said_hello {
            let ToSupervisor::Hello(hello) = &message else {
                return Err("the first frame is not a handshake".into());
            };
            hello.check()?;
            worker.has_said_hello = true;
            return Ok(());
        }
        let event = match message {
            ToSupervisor::Send(envelope) => {
                check_names(&envelope)?;
                let ticket = |buffers| worker.memories.ticket(buffers, &self.freed);
                let buffers = envelope.buffers.map(ticket).transpose()?;
                Event::Sent { process, envelope, payload, buffers }
            }
            ToSupervisor::Reply(reply) => {
                let ticket = |buffers| worker.memories.ticket(buffers, &self.freed);
                let buffers = reply.buffers.map(ticket).transpose()?;
                Event::Replied { process, reply, payload, buffers }
            }
            ToSupervisor::Arena { arena, size } => {
                let descriptor = worker.decoder.take_descriptor();
                return worker.memories.add(process, arena, size, descriptor);
            }
            ToSupervisor::ArenaGone { arena } => {
                worker.memories.remove(arena);
                return Ok(());
            }
            ToSupervisor::Released { leases } => {
                worker.memories.release(&leases);
                return Ok(());
            }
            ToSupervisor::Cancel { call } => Event::Cancelled { caller: Caller::Actor(process.pid), call },
            ToSupervisor::Await { call, waits } => Event::Awaited { process, call, waits },
            ToSupervisor::AwaitRoom { call, to, method, waits } => {
                Event::AwaitsRoom { process, call, to, method, waits }
            }
            ToSupervisor::Ack { done } => Event::Acked { process, done },
            ToSupervisor::Started(started) => Event::Started { process, started, info: payload },
            ToSupervisor::WantMore { more } => Event::WantsMore { process, more },
            ToSupervisor::HandOver => Event::HandedOver { process, state: payload },
            ToSupervisor::Exit(reason) => Event::Reported { process, reason },
            ToSupervisor::Readiness { not_ready } => {
                let not_ready = not_ready.map(|why| why.chars().take(LONGEST_REASON).collect());
                Event::Readiness { process, not_ready }
            }
            ToSupervisor::Abandon { call } => {
                self.abandon(Caller::Actor(process.pid), call);
                return Ok(());
            }
            ToSupervisor::Request { request, body } => {
                Event::Requested { from: Requester::Worker(process, request), request: body, payload }
            }
            ToSupervisor::Log(record) => {
                self.printer.log(Speaker { label: &worker.label, pid: Some(process.pid) }, &record);
                return Ok(());
            }
            ToSupervisor::Hello(_) => return Err("a second handshake".into()),
        };
        self.tell(event);
        Ok(())
    }

    fn abandon(&mut self, caller: Caller, call: CallId) {
        let callee = self.core.callee_of(caller, call).and_then(|process| self.workers.get(&process));
        let page = callee.map(|worker| (worker.page.snapshot(), clock_ns()));
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
                let who = Speaker { label: &worker.label, pid: Some(process.pid) };
                for line in lines {
                    self.printer.output(who, stream, &line);
                    worker.last_lines.push(line);
                }
                Read::Some { is_all: false }
            }
        }
    }
}

/// A number that no other node has, for what must not be mistaken for another's.
fn seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    // Keyed by the system's random numbers.
    RandomState::new().hash_one(std::process::id())
}

/// Names and methods are kept beside what is bounded, and so are bounded, too.
fn check_names(envelope: &Envelope) -> Result<(), String> {
    let name = match &envelope.to {
        Address::Name(name) | Address::Partition { name, .. } | Address::Group(name) => name.len(),
        // A key has room of its own.
        Address::Via { registry, key } => registry.len().max(key.len()),
        Address::Actor(_) | Address::Pid(_) => 0,
    };
    let longest = name.max(envelope.method.len());
    if longest > LONGEST_NAME { Err(format!("a name or method of {longest} bytes")) } else { Ok(()) }
}
