//! A whole node in one process, for tests: the real core in virtual time, and a thread per actor instead of a process.
//!
//! It carries out the core's actions as the supervisor does ([`rebeam_core::shell`]), and frames go over socketpairs as they
//! do there, so that all of the worker's side is the real one, pickles included. A thread of Python's drives it ([`Node::step`]) and
//! starts the actors' threads; the test is an actor itself. Time passes only when the test says so. It must not decide
//! anything that the core decides.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, AsRawFd, IntoRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use rebeam_core::event::{Death, HandedOver, Launch, LaunchError, NewCode, NodeEnd, NodeEvent, State, Status};
use rebeam_core::shell::{self, Frame, Heard, Shell as _};
use rebeam_core::tracing::Span;
use rebeam_core::{Core, EntryChange, Event};
use rebeam_protocol::address::{Address, Caller};
use rebeam_protocol::certificate::{Certificate, Next};
use rebeam_protocol::frame::MAX_FRAME;
use rebeam_protocol::handshake::Secret;
use rebeam_protocol::id::{CallId, NodeStart, Pid, ProcessId, RequestId, Version};
use rebeam_protocol::message::{CallFailure, Callee, DeadLetter, Kind, Outcome};
use rebeam_protocol::outside::{Answer, Change, Fate, Reloaded};
use rebeam_protocol::page::{self, Snapshot};
use rebeam_protocol::process::ProcessAnswer;
use rebeam_protocol::state::MemberState;
use rebeam_protocol::table::{RowWatch, TableAnswer, TableError, TableRequest};
use rebeam_protocol::worker::{ToSupervisor, ToWorker};
use rebeam_store::{Request, Store, Tables, Told};

use rebeam_sys::{memory, socket};

use crate::clock;
use crate::convert;
use crate::ledger;
use crate::spec;
use crate::status_page::StatusPage;
use crate::tables;
use crate::wire::{NoRead, Reader, Writer};

/// What the thread that drives a node is to do.
#[pyclass(frozen, get_all, module = "rebeam._rebeam")]
pub(crate) struct Command {
    /// `launch`; `exit` for an exit signal or a kill; `over` when all is over.
    what: &'static str,
    process: u64,
    /// Descriptors of a `launch`, the thread's from then on; else -1.
    channel: RawFd,
    page: RawFd,
    /// The name or path of who is launched.
    label: String,
}

/// A node whose actors are threads.
#[pyclass(frozen, module = "rebeam._rebeam")]
pub(crate) struct Node {
    shell: Mutex<Shell>,
    changed: Condvar,
    /// Wakes [`Node::step`] from its poll.
    wake: EventFd,
}

struct Shell {
    core: Core,
    now: Duration,
    workers: BTreeMap<ProcessId, Worker>,
    commands: VecDeque<Command>,
    /// Calls, by when their time is over; with the process and the callee of those that got lost.
    deadlines: BTreeMap<(Duration, Pid, CallId), Option<(ProcessId, String)>>,
    /// How many of the next messages to an actor get lost, by its name or path.
    drops: HashMap<String, u32>,
    deaths: Vec<(Arc<Certificate>, Next)>,
    dead_letters: Vec<DeadLetter>,
    /// What became of the last reload.
    reloaded: Option<Reloaded>,
    /// Which version each class that was reloaded has.
    modules: HashMap<String, u64>,
    chance: Option<Chance>,
    /// The tables, once there was one.
    tables: Option<Tables>,
    /// Who waits for what of them.
    table_requests: HashMap<u64, (ProcessId, RequestId)>,
    last_tag: u64,
    is_up: bool,
    /// How it ended, once it has.
    ended: Option<String>,
}

/// How many bytes the rows of all tables may have.
const MOST_ROWS: u64 = 1 << 30;

/// A store of this process, which all actors here read from.
fn open_tables() -> Option<Tables> {
    let directory = nix::unistd::mkdtemp(&std::env::temp_dir().join("rebeam-XXXXXX")).ok()?;
    let store = Store::create(&directory, 4 << 30);
    let _ = std::fs::remove_dir(&directory);
    let mut store = store.ok()?;
    let (_, fds) = store.attach().ok()?;
    let reader = rebeam_store::Reader::open(fds, store.map_size()).ok()?;
    tables::open_here(Some(reader));
    Tables::new(store, MOST_ROWS, MAX_FRAME).ok()
}

struct Worker {
    label: String,
    socket: Arc<OwnedFd>,
    reader: Reader,
    writer: Writer,
    page: StatusPage,
    /// Frames written to it.
    written: u64,
    /// Frames that its socket did not take yet.
    waiting: VecDeque<(ToWorker, Bytes, Option<State>)>,
    is_over: bool,
    /// Whether frames that it has sent may be left unread on purpose.
    is_held: bool,
}

/// What a seed makes of the order of things: each socket keeps its order, and none is sure against another.
struct Chance(u64);

impl Chance {
    /// The next number below this one (xorshift64*).
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % end
    }

    /// How many frames of a socket pass before others have their turn: none, a few, or all.
    fn portion(&mut self) -> usize {
        [0, 1, 2, 3, usize::MAX][self.below(5)]
    }
}

#[pymethods]
impl Node {
    /// A node with this tree, which `rebeam._spec` describes. Nothing is started yet. With a seed, chance decides from
    /// which sockets is read first, and how far.
    #[new]
    #[pyo3(signature = (tree, seed = None))]
    fn new(tree: &Bound<'_, PyAny>, seed: Option<u64>) -> PyResult<Self> {
        let spec = spec::supervisor(tree, "root".into())?;
        let core = Core::new(spec, NodeStart::default())
            .map_err(|error| PyValueError::new_err(format!("{error}; hint: {}", error.hint())))?;
        clock::stop();
        ledger::tell_all(true);
        tables::open_here(None);
        let shell = Shell {
            core,
            now: Duration::ZERO,
            workers: BTreeMap::new(),
            commands: VecDeque::new(),
            deadlines: BTreeMap::new(),
            drops: HashMap::new(),
            deaths: Vec::new(),
            dead_letters: Vec::new(),
            reloaded: None,
            modules: HashMap::new(),
            chance: seed.map(|seed| Chance(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)),
            tables: None,
            table_requests: HashMap::new(),
            last_tag: 0,
            is_up: false,
            ended: None,
        };
        let wake = EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map_err(io::Error::from)?;
        Ok(Node { shell: Mutex::new(shell), changed: Condvar::new(), wake })
    }

    /// Starts the tree.
    fn boot(&self) {
        self.tell(Event::Boot);
    }

    /// Waits for actors to say something, does what follows, and gives what only Python can do.
    fn step(&self, py: Python<'_>) -> Vec<Command> {
        py.detach(|| {
            self.poll();
            let mut shell = self.shell();
            shell.read_all();
            shell.carry_out();
            let commands = shell.commands.drain(..).collect();
            drop(shell);
            self.changed.notify_all();
            commands
        })
    }

    /// The thread of an actor has ended.
    fn ended(&self, process: u64) {
        let mut shell = self.shell();
        shell.thread_ended(process);
        drop(shell);
        self.wake();
    }

    /// Waits until the tree is up, or has ended; `None`, or how it ended.
    fn wait_up(&self, py: Python<'_>, seconds: f64) -> PyResult<Option<String>> {
        self.wait(py, seconds, "the tree did not come up", |shell| shell.is_up || shell.ended.is_some())?;
        Ok(self.shell().ended.clone())
    }

    /// Waits until every actor waits for something that only time or the test can bring.
    fn idle(&self, py: Python<'_>, seconds: f64, but: &str) -> PyResult<()> {
        self.wait(py, seconds, "the node did not come to rest", |shell| shell.is_settled(but))
    }

    /// Moves time on to the next moment at which something is due, at most by this many seconds; says how far.
    fn advance(&self, seconds: f64) -> PyResult<f64> {
        let most = Duration::try_from_secs_f64(seconds)
            .map_err(|_| PyValueError::new_err(format!("time cannot move on by {seconds} seconds")))?;
        let mut shell = self.shell();
        let target = shell.now + most;
        let next = shell.core.poll_timeout().into_iter().chain(shell.deadlines.keys().next().map(|key| key.0)).min();
        let now = next.map_or(target, |next| next.clamp(shell.now, target));
        let step = now - shell.now;
        clock::advance(step);
        shell.now = now;
        if let Some(tables) = &mut shell.tables {
            while tables.expire(tables::now_ms()).unwrap_or(false) {}
        }
        shell.tell_watchers();
        shell.core.handle_timeout(now);
        shell.expire();
        shell.carry_out();
        shell.wake_all();
        drop(shell);
        self.wake();
        Ok(step.as_secs_f64())
    }

    /// Whether everybody waits, the test too: only time can bring something.
    fn is_stuck(&self) -> bool {
        let shell = self.shell();
        shell.is_up && shell.ended.is_none() && shell.is_settled("")
    }

    /// Seconds of virtual time since the node's start.
    fn now(&self) -> f64 {
        self.shell().now.as_secs_f64()
    }

    /// Ends an actor as a signal would; false if it does not live.
    fn crash(&self, label: &str, signal: i32) -> bool {
        let mut shell = self.shell();
        let Some(process) = shell.alive(label) else { return false };
        shell.dies(process, Status::Signalled(signal));
        shell.carry_out();
        drop(shell);
        self.wake();
        true
    }

    /// Loses the next messages to an actor.
    fn drop_next(&self, label: String, count: u32) {
        *self.shell().drops.entry(label).or_default() += count;
    }

    /// The ends that nobody ordered, oldest first.
    fn deaths<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyDict>>> {
        let deaths = self.shell().deaths.clone();
        deaths.iter().map(|(certificate, next)| convert::certificate_then(py, certificate, *next)).collect()
    }

    /// The dead letters, oldest first.
    fn dead_letters<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyAny>>> {
        let letters = self.shell().dead_letters.clone();
        letters.iter().map(|letter| convert::dead_letter(py, letter)).collect()
    }

    /// Has the actors of a class go over to new code; the tree is as it was.
    fn reload(
        &self,
        py: Python<'_>,
        tree: &Bound<'_, PyAny>,
        class: String,
        seconds: f64,
    ) -> PyResult<Vec<(String, &'static str, String)>> {
        let tree = spec::supervisor(tree, "root".into())?;
        {
            let mut shell = self.shell();
            shell.reloaded = None;
            let version = Version(shell.core.version().0 + 1);
            shell.modules.insert(class, u64::from(version.0));
            let modules = shell.modules.clone();
            let new = NewCode { version, tree, gateway: None, modules, moves_all: false, retries: false };
            drop(shell);
            self.tell(Event::NewCode(Box::new(new)));
        }
        self.wait(py, seconds, "the reload did not come to an end", |shell| shell.reloaded.is_some())?;
        let reloaded = self.shell().reloaded.take();
        let change = |change: Change| {
            let (word, why) = match change.fate {
                Fate::Moved { .. } => ("moved", String::new()),
                Fate::StartedOver { why, .. } => ("restarted", why.unwrap_or_default()),
                Fate::Failed { why, .. } => ("failed", why),
                Fate::Stays { why } => ("stays", why),
                Fate::Added => ("added", String::new()),
                Fate::Removed => ("removed", String::new()),
                Fate::Respecified => ("changed", String::new()),
            };
            (change.actor, word, why)
        };
        Ok(reloaded.into_iter().flat_map(|it| it.changes).map(change).collect())
    }

    /// Orders the end of the node, in order, or at once.
    fn stop(&self, is_kill: bool) {
        self.tell(if is_kill { Event::KillAll } else { Event::StopNode });
    }

    /// Waits until the node has ended.
    fn wait_ended(&self, py: Python<'_>, seconds: f64) -> PyResult<()> {
        self.wait(py, seconds, "the node did not end", |shell| shell.ended.is_some())?;
        ledger::tell_all(false);
        Ok(())
    }
}

impl Node {
    fn shell(&self) -> MutexGuard<'_, Shell> {
        self.shell.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        let _ = self.wake.write(1);
        self.changed.notify_all();
    }

    fn tell(&self, event: Event) {
        let mut shell = self.shell();
        let now = shell.now;
        shell.core.handle_event(now, event);
        shell.carry_out();
        drop(shell);
        self.wake();
    }

    /// Waits, in real time, until something holds.
    fn wait(&self, py: Python<'_>, seconds: f64, failure: &str, holds: impl Fn(&Shell) -> bool + Sync) -> PyResult<()> {
        let until = Instant::now() + Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX / 4);
        loop {
            let is_done = py.detach(|| {
                let shell = self.shell();
                // What actors write to their pages tells nobody: it is looked at now and then.
                let slice = Duration::from_millis(2);
                let (shell, _) = self
                    .changed
                    .wait_timeout_while(shell, slice, |shell| !holds(shell))
                    .unwrap_or_else(PoisonError::into_inner);
                holds(&shell)
            });
            if is_done {
                return Ok(());
            }
            py.check_signals()?;
            if Instant::now() >= until {
                let busy = self.shell().unsettled();
                return Err(PyRuntimeError::new_err(format!("{failure} within {seconds} s: {busy}")));
            }
        }
    }

    fn poll(&self) {
        let sockets: Vec<(Arc<OwnedFd>, PollFlags)> = {
            let shell = self.shell();
            let alive = shell.workers.values().filter(|worker| !worker.is_over);
            let room =
                |worker: &Worker| if worker.waiting.is_empty() { PollFlags::empty() } else { PollFlags::POLLOUT };
            alive.map(|worker| (worker.socket.clone(), PollFlags::POLLIN | room(worker))).collect()
        };
        let polled = sockets.iter().map(|(socket, events)| PollFd::new(socket.as_fd(), *events));
        let wake = PollFd::new(self.wake.as_fd(), PollFlags::POLLIN);
        let mut polled: Vec<PollFd<'_>> = polled.chain([wake]).collect();
        let is_held = self.shell().workers.values().any(|worker| worker.is_held);
        let _ = poll(&mut polled, if is_held { 0u16 } else { 100 });
        let _ = self.wake.read();
    }
}

impl Shell {
    fn tell(&mut self, event: Event) {
        self.core.handle_event(self.now, event);
    }

    fn alive(&self, label: &str) -> Option<ProcessId> {
        // The last one: one before it may wait until it has taken over.
        let found = self.workers.iter().rev().find(|(_, worker)| worker.label == label && !worker.is_over);
        found.map(|(process, _)| *process)
    }

    fn carry_out(&mut self) {
        shell::carry_out(self);
        self.flush();
    }

    fn end(&mut self, how: String) {
        self.ended.get_or_insert(how);
        self.commands.push_back(Command { what: "over", process: 0, channel: -1, page: -1, label: String::new() });
    }

    fn command(&mut self, what: &'static str, process: ProcessId) {
        let number = number_of(process);
        self.commands.push_back(Command { what, process: number, channel: -1, page: -1, label: String::new() });
    }

    fn start(&mut self, launch: Launch) -> io::Result<()> {
        let (ours, theirs) = socket::pair()?;
        let page = memory::create(c"rebeam-page", page::SIZE + page::STACKS)?;
        let mapped = StatusPage::map(&page)?;
        let process = launch.process;
        let (welcome, start) = launch.welcome(MAX_FRAME, Secret::default());
        let worker = Worker {
            label: launch.label.clone(),
            reader: Reader::new(MAX_FRAME),
            writer: Writer::new(u32::MAX as usize),
            socket: Arc::new(ours),
            page: mapped,
            written: 0,
            waiting: VecDeque::new(),
            is_over: false,
            is_held: false,
        };
        self.workers.insert(process, worker);
        self.push(process, ToWorker::Welcome(welcome), start, launch.takes_over.map(|(state, _)| state));
        // The handshake is read before anybody counts.
        if let Some(worker) = self.workers.get_mut(&process) {
            worker.written = 0;
        }
        let (channel, page) = (theirs.into_raw_fd(), page.into_raw_fd());
        let (what, process) = ("launch", number_of(process));
        self.commands.push_back(Command { what, process, channel, page, label: launch.label });
        Ok(())
    }

    fn push(&mut self, process: ProcessId, message: ToWorker, payload: Bytes, state: Option<State>) {
        if let Some(worker) = self.workers.get_mut(&process)
            && !worker.is_over
        {
            worker.written += 1;
            worker.waiting.push_back((message, payload, state));
        }
    }

    /// Writes what sockets take, and waits for none: an actor that does not read has its frames kept here.
    fn flush(&mut self) {
        for worker in self.workers.values_mut().filter(|worker| !worker.is_over) {
            let most = self.chance.as_mut().map_or(usize::MAX, Chance::portion);
            worker.flush(most);
        }
    }

    fn attend(&mut self, process: ProcessId, bits: u32) {
        if let Some(worker) = self.workers.get_mut(&process) {
            // What it is to look at lies before it.
            worker.flush(usize::MAX);
            worker.page.ask_for_attention(bits);
        }
    }

    fn wake_all(&mut self) {
        let alive: Vec<ProcessId> = self.workers.keys().copied().collect();
        for process in alive {
            self.push(process, ToWorker::Wake, Bytes::new(), None);
        }
        self.flush();
    }

    /// Whether every actor but one waits for something that only time or the test can bring.
    fn is_settled(&self, but: &str) -> bool {
        self.workers.values().filter(|worker| worker.label != but && !worker.is_over).all(Worker::is_settled)
            && self.commands.is_empty()
            && self.workers.values().all(|worker| {
                worker.is_over || !(worker.is_held || socket::is_ready(worker.socket.as_fd(), PollFlags::POLLIN))
            })
    }

    fn unsettled(&self) -> String {
        let busy = self.workers.values().filter(|worker| !worker.is_over && !worker.is_settled());
        let labels: Vec<&str> = busy.map(|worker| worker.label.as_str()).collect();
        if labels.is_empty() { "nobody is busy".into() } else { format!("busy: {}", labels.join(", ")) }
    }

    fn expire(&mut self) {
        while self.deadlines.first_key_value().is_some_and(|((at, ..), _)| *at <= self.now) {
            let Some(((_, pid, call), lost)) = self.deadlines.pop_first() else { return };
            if let Some((process, target)) = lost {
                let callee = Callee { target, state: MemberState::Running, busy: None, waiting: 0 };
                let outcome = Outcome::Failed(CallFailure::TimedOut(callee));
                self.push(process, ToWorker::Reply { call, outcome, buffers: None }, Bytes::new(), None);
                continue;
            }
            let caller = Caller::Actor(pid);
            let page = self.core.callee_of(caller, call).and_then(|process| self.page(process));
            self.tell(Event::Abandoned { caller, call, page });
        }
    }

    fn read_all(&mut self) {
        let mut alive: Vec<ProcessId> = self.workers.keys().copied().collect();
        if let Some(chance) = &mut self.chance {
            (1..alive.len()).rev().for_each(|place| alive.swap(place, chance.below(place + 1)));
        }
        for process in alive {
            let most = self.chance.as_mut().map_or(usize::MAX, Chance::portion);
            self.read(process, most);
            self.carry_out();
        }
    }

    /// Handles so many frames of a worker at most.
    fn read(&mut self, process: ProcessId, most: usize) {
        for left in (0..=most).rev() {
            let Some(worker) = self.workers.get_mut(&process).filter(|worker| !worker.is_over) else { return };
            worker.is_held = left == 0;
            if worker.is_held {
                return;
            }
            match worker.reader.next_frame::<ToSupervisor>() {
                Ok(Some((header, payload))) => {
                    let payload = Bytes::copy_from_slice(payload.as_slice());
                    self.handle(process, header, payload);
                }
                Ok(None) => match worker.reader.read_now(worker.socket.as_fd()) {
                    Ok(()) => {}
                    // Its end is told by its thread.
                    Err(NoRead::TimedOut | NoRead::Interrupted | NoRead::Closed) => return,
                },
                Err(error) => return self.tell(Event::Misbehaved { process, complaint: error.to_string() }),
            }
        }
    }

    fn handle(&mut self, process: ProcessId, message: ToSupervisor, payload: Bytes) {
        if let ToSupervisor::Send(envelope) = &message {
            let lost = self.is_lost(&envelope.to).map(|label| (process, label));
            let is_lost = lost.is_some();
            if let (Kind::Call { call, .. }, Some(ms)) = (envelope.kind, envelope.head.deadline_ms) {
                let at = self.now + Duration::from_millis(ms);
                self.deadlines.insert((at, process.pid, call), lost);
            }
            if is_lost {
                return;
            }
        }
        let no_arenas = |_| Err("actors of a test have no arenas".to_owned());
        match shell::hear(process, message, payload, no_arenas) {
            Ok(Heard::Event(event)) => self.tell(event),
            Ok(Heard::Abandon(call)) => {
                self.tell(Event::Abandoned { caller: Caller::Actor(process.pid), call, page: None });
            }
            Ok(Heard::Shell(ToSupervisor::HandOver { runs_init, took_us })) => {
                let taken = self
                    .workers
                    .get_mut(&process)
                    .and_then(|worker| Some((worker.reader.frames.take_descriptor()?, worker.page.snapshot())));
                if let Some((memory, page)) = taken {
                    let (state, took) = (State::new(memory), Duration::from_micros(took_us));
                    self.tell(Event::HandedOver(Box::new(HandedOver { process, state, runs_init, took, page })));
                }
            }
            Ok(Heard::Table { request, body, payload }) => {
                let arrays = match (body, self.workers.get_mut(&process)) {
                    (TableRequest::Operate { has_arrays: true, .. }, Some(worker)) => {
                        worker.reader.frames.take_descriptor()
                    }
                    _ => None,
                };
                self.operate(process, request, body, &payload, arrays.as_ref());
            }
            Ok(Heard::Shell(_)) => {}
            Err(complaint) => self.tell(Event::Misbehaved { process, complaint }),
        }
    }

    /// What the store of a node would do. Everybody here reads with what this process has opened.
    fn operate(
        &mut self,
        process: ProcessId,
        request: RequestId,
        body: TableRequest,
        operation: &[u8],
        arrays: Option<&OwnedFd>,
    ) {
        if let TableRequest::Seen { watch } = body {
            if let Some(tables) = &mut self.tables {
                tables.seen(watch, process.pid);
            }
            return self.answer_waiters();
        }
        let Some(tables) = &mut self.tables else {
            return self.answer_table(process, request, Err(TableError::NoTable));
        };
        let (by, now) = (process.pid, tables::now_ms());
        self.last_tag += 1;
        let tag = self.last_tag;
        self.table_requests.insert(tag, (process, request));
        let done = match body {
            TableRequest::Operate { id, .. } => {
                let results = tables.operate(&[Request { id, by, operation, arrays }], now);
                let done = results.map_or_else(
                    |error| Err(TableError::Unavailable(error.to_string())),
                    |mut results| results.pop().unwrap_or(Err(TableError::NoTable)),
                );
                self.table_requests.remove(&tag);
                self.answer_table(process, request, done);
                Ok(())
            }
            TableRequest::Claim(id) => tables.claim(tag, id, (process, request), operation, now),
            TableRequest::Release { id, claim } => {
                tables.release(tag, id, (process, claim), operation);
                Ok(())
            }
            TableRequest::Attach | TableRequest::Seen { .. } => Ok(()),
        };
        if let Err(error) = done {
            self.answer_table(process, request, Err(TableError::Unavailable(error.to_string())));
        }
        self.answer_waiters();
    }

    /// Answers those who have waited for others, and need not any more.
    fn answer_waiters(&mut self) {
        let answers = self.tables.as_mut().map(Tables::take_answers).unwrap_or_default();
        self.tell_watchers();
        for (tag, result) in answers {
            if let Some((process, request)) = self.table_requests.remove(&tag) {
                self.answer_table(process, request, result);
            }
        }
    }

    /// Tells of rows that have changed.
    fn tell_watchers(&mut self) {
        for Told { watch, changes } in self.tables.as_mut().map(Tables::take_told).unwrap_or_default() {
            let is_last = changes.is_gone;
            let changes = postcard::to_stdvec(&changes).unwrap_or_default().into();
            self.tell(Event::RowsChanged { watch, changes, is_last });
        }
    }

    fn answer_table(&mut self, process: ProcessId, request: RequestId, result: Result<Vec<u8>, TableError>) {
        let (answer, outcome) = match result {
            Ok(outcome) => (TableAnswer::Done, outcome.into()),
            Err(error) => (TableAnswer::Failed(error), Bytes::new()),
        };
        self.push(process, ToWorker::Answer { request, answer: ProcessAnswer::Table(answer) }, outcome, None);
    }

    /// A table has come, has another owner, or is gone.
    fn note_table(&mut self, change: &EntryChange) {
        let Some((id, there)) = change.table() else { return };
        if self.tables.is_none() {
            self.tables = open_tables();
        }
        let Some(tables) = &mut self.tables else { return };
        match there {
            Some((owner, table)) => tables.note(id, owner, table),
            None => {
                tables.forget(id);
                while tables.clear_up().unwrap_or(false) {}
            }
        }
        self.answer_waiters();
    }

    /// The name behind this address, if a test wants its next message to get lost.
    fn is_lost(&mut self, to: &Address) -> Option<String> {
        let label = match to {
            Address::Name(name) => Some(name.clone()),
            Address::Actor(_) | Address::Pid(_) | Address::Partition { .. } | Address::Via { .. } => {
                self.core.label_of(to)
            }
            Address::Group(_) => None,
        };
        let label = label?;
        let left = self.drops.get_mut(&label).filter(|left| **left > 0)?;
        *left -= 1;
        Some(label)
    }

    fn thread_ended(&mut self, number: u64) {
        let found = self.workers.iter().find(|(process, worker)| number_of(**process) == number && !worker.is_over);
        if let Some(process) = found.map(|(process, _)| *process) {
            self.dies(process, Status::Exited(0));
            self.carry_out();
        }
    }

    fn dies(&mut self, process: ProcessId, status: Status) {
        self.read(process, usize::MAX);
        let Some(worker) = self.workers.get_mut(&process).filter(|worker| !worker.is_over) else { return };
        worker.is_over = true;
        // Whatever the thread still says is said to nobody.
        let _ = nix::sys::socket::shutdown(worker.socket.as_raw_fd(), nix::sys::socket::Shutdown::Both);
        let page = worker.page.snapshot();
        self.workers.remove(&process);
        if let Some(tables) = &mut self.tables {
            tables.ended(process);
        }
        self.answer_waiters();
        if matches!(status, Status::Signalled(_)) {
            self.command("exit", process);
        }
        let clock_ns = crate::status_page::clock_ns();
        self.tell(Event::Died(Box::new(Death { page, clock_ns, ..Death::without_trace(process, status) })));
    }
}

impl shell::Shell for Shell {
    fn core(&mut self) -> &mut Core {
        &mut self.core
    }

    fn now(&self) -> Duration {
        self.now
    }

    fn launch(&mut self, launch: Launch) -> Result<(), LaunchError> {
        self.start(launch).map_err(|error| LaunchError { text: error.to_string(), again: None })
    }

    fn write(&mut self, process: ProcessId, frame: Frame) {
        let is_exit = frame.message == ToWorker::Exit;
        self.push(process, frame.message, frame.payload, None);
        if frame.attention != 0 {
            self.attend(process, frame.attention);
        }
        if is_exit {
            self.command("exit", process);
        }
    }

    fn kill(&mut self, process: ProcessId) {
        self.dies(process, Status::Signalled(libc::SIGKILL));
    }

    fn page(&self, process: ProcessId) -> Option<(Snapshot, u64)> {
        Some((self.workers.get(&process)?.page.snapshot(), crate::status_page::clock_ns()))
    }

    fn note_entry(&mut self, change: &EntryChange) {
        ledger::tell(&change.record());
        self.note_table(change);
    }

    fn watch_rows(&mut self, from: Option<(ProcessId, RequestId)>, rows: RowWatch) {
        let watch = rows.watch;
        let watched = self.tables.as_mut().map_or(Err(TableError::NoTable), |tables| tables.watch(rows, false));
        if let Some((process, request)) = from {
            let answer = watched.map_or_else(TableAnswer::Failed, |()| TableAnswer::Watching(watch));
            let answer = ToWorker::Answer { request, answer: ProcessAnswer::Table(answer) };
            self.push(process, answer, Bytes::new(), None);
        }
    }

    fn unwatch_rows(&mut self, watch: u64, heir: Option<u64>, has_missed: bool) {
        if let Some(tables) = &mut self.tables {
            tables.unwatch(watch, heir, has_missed);
        }
    }

    fn report(&mut self, certificate: &Arc<Certificate>, next: Next) {
        self.deaths.push((certificate.clone(), next));
    }

    fn dead_letter(&mut self, letter: DeadLetter) {
        self.dead_letters.push(letter);
    }

    fn node(&mut self, event: NodeEvent) {
        match event {
            NodeEvent::Up => self.is_up = true,
            NodeEvent::Failed { child, reason, .. } => self.end(format!("`{child}` did not start: {reason}")),
            NodeEvent::Ended(NodeEnd::Clean) => self.end("stopped".into()),
            NodeEvent::Ended(NodeEnd::GaveUp { .. }) => self.end("gave up".into()),
            NodeEvent::Stopping => {}
        }
    }

    // A test has no command line, no traces, and asks Python itself for stacks.

    fn dump_stacks(&mut self, _: ProcessId) {}

    fn not_launched(&mut self, _: &str, _: &str, _: Duration) {}

    fn reply_outside(&mut self, _: u64, _: CallId, _: Outcome, _: Bytes) {}

    fn answer_outside(&mut self, _: u64, _: Answer) {}

    fn span(&mut self, _: Span) {}

    fn keep_versions(&mut self, _: &[Version]) {}

    fn reloaded(&mut self, reloaded: Reloaded) {
        self.reloaded = Some(reloaded);
    }
}

impl Worker {
    fn is_settled(&self) -> bool {
        let (filed, is_waiting) = self.page.progress();
        is_waiting && filed >= self.written && self.waiting.is_empty() && !self.is_held
    }

    /// Writes so many frames at most, and no more than the socket takes.
    fn flush(&mut self, most: usize) {
        for _ in 0..most.min(self.waiting.len()) {
            // A frame is written whole or not at all: there is room as long as the actor reads now and then.
            let is_ready = socket::is_ready(self.socket.as_fd(), PollFlags::POLLOUT);
            let Some((message, payload, state)) = self.waiting.pop_front_if(|_| is_ready) else { return };
            let memory = state.as_ref().and_then(State::get::<OwnedFd>).map(AsFd::as_fd);
            if self.writer.write(self.socket.as_fd(), &message, &payload, memory, &|wait| wait()).is_err() {
                return;
            }
        }
    }
}

/// One number for a process of an incarnation.
fn number_of(process: ProcessId) -> u64 {
    (process.pid.serial << 16) | u64::from(process.generation.0 as u16)
}
