//! The one owner of the core: turns what tasks see into events, and carries out the actions that follow.
//!
//! Tasks hold a [`Node`] and call it; each call handles its events, drains the actions, and writes what is to be
//! written before it returns, so that a message passes from socket to socket within one turn of the loop, without a
//! channel or a wake-up between two tasks. Nothing here waits.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet, VecDeque};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::rc::{Rc, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rebeam_core::event::{Death, Event, Launch, Requester, Status};
use rebeam_core::{Action, Core};
use rebeam_protocol::certificate::Certificate;
use rebeam_protocol::control::{Answer, ChildInfo, Request};
use rebeam_protocol::exit::ExitReason;
use rebeam_protocol::frame::MAX_FRAME;
use rebeam_protocol::handshake::{Features, MAGIC, VERSION, Welcome};
use rebeam_protocol::id::{CallId, ProcessId};
use rebeam_protocol::message::{Caller, Envelope, Outcome, ToSupervisor, ToWorker};
use rebeam_protocol::page::Snapshot;
use rebeam_protocol::zygote::{FromZygote, Target, ToZygote};
use tokio::sync::{Notify, oneshot};
use tokio::task::AbortHandle;

use crate::printer::Printer;
use crate::python::Python;
use crate::shell::connection::{Decoder, Read, WriteQueue};
use crate::shell::launcher::{self, Keeper, TheirEnds, Wiring};
use crate::shell::output::{LastLines, LineReader, Lines, Stream};
use crate::shell::reaper;
use crate::shell::status_page::{StatusPage, clock_ns};
use crate::shell::watched::{Watched, watch};
use crate::shell::zygote::Zygote;

/// A zygote that died more often than this in its first seconds is not started again: fresh interpreters serve.
const ZYGOTE_TRIES: u32 = 3;

/// A shared handle on the engine. Tasks borrow it for one call at a time, and never across an await.
#[derive(Clone)]
pub(crate) struct Node(Rc<RefCell<Engine>>);

/// How a node ended.
#[derive(Debug)]
pub(crate) enum Ended {
    /// As ordered.
    AsOrdered,
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
}

struct Engine {
    me: Weak<RefCell<Engine>>,
    core: Core,
    started: Instant,
    setup: Setup,
    printer: Printer,
    workers: HashMap<ProcessId, Worker>,
    by_os_pid: HashMap<i32, ProcessId>,
    zygote: ZygoteState,
    /// Outlives us by a moment; not a stray.
    keeper: Keeper,
    /// Launches that wait for the zygote.
    queue: VecDeque<(ProcessId, TheirEnds)>,
    /// The fork under way.
    forking: Option<ProcessId>,
    outside: HashMap<u64, HashMap<CallId, oneshot::Sender<(Outcome, Bytes)>>>,
    requests: HashMap<u64, oneshot::Sender<Answer>>,
    next_outside: u64,
    next_call: u64,
    dirty: Vec<ProcessId>,
    timer: Rc<Notify>,
    wakes_at: Option<Duration>,
    ended: Option<Ended>,
    on_end: Rc<Notify>,
    is_up: bool,
    dead_letters: u64,
}

enum ZygoteState {
    /// The application is not to be forked: every actor gets a fresh interpreter.
    NotUsed,
    /// It imports the application.
    Loading {
        zygote: Zygote,
        tries: u32,
    },
    Ready {
        zygote: Zygote,
        since: Instant,
    },
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
        started: Instant,
    ) -> Self {
        let zygote = match zygote {
            Some(zygote) => ZygoteState::Ready { zygote, since: Instant::now() },
            None => ZygoteState::NotUsed,
        };
        Node(Rc::new_cyclic(|me| {
            RefCell::new(Engine {
                me: me.clone(),
                core,
                started,
                setup,
                printer,
                workers: HashMap::new(),
                by_os_pid: HashMap::new(),
                zygote,
                keeper,
                queue: VecDeque::new(),
                forking: None,
                outside: HashMap::new(),
                requests: HashMap::new(),
                next_outside: 0,
                next_call: 0,
                dirty: Vec::new(),
                timer: Rc::new(Notify::new()),
                wakes_at: None,
                ended: None,
                on_end: Rc::new(Notify::new()),
                is_up: false,
                dead_letters: 0,
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
        self.handle(Event::Boot);
    }

    /// Tells the core something and does what follows.
    pub(crate) fn handle(&self, event: Event) {
        self.with(|engine| engine.tell(event));
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

    /// Reads what the zygote says, as long as there is one.
    async fn listen_to_zygote(self, control: OwnedFd) {
        let Ok(control) = watch(control) else { return };
        let mut decoder = Decoder::new(MAX_FRAME);
        loop {
            let Ok(mut guard) = control.readable().await else { return };
            match decoder.read(control.get_ref()) {
                Read::Closed => return,
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

    // ---- for the control socket --------------------------------------------------------------------------------

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
    pub(crate) fn ask(&self, request: Request) -> oneshot::Receiver<Answer> {
        let (sender, receiver) = oneshot::channel();
        self.with(|engine| {
            engine.next_outside += 1;
            let asker = engine.next_outside;
            engine.requests.insert(asker, sender);
            engine.tell(Event::Requested { from: Requester::Outside(asker), request });
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
        self.0.borrow().dead_letters
    }

    // ---- tasks of one worker -----------------------------------------------------------------------------------

    async fn read_worker(self, process: ProcessId, channel: Rc<Watched>) {
        loop {
            let Ok(mut guard) = channel.readable().await else { return };
            match self.with(|engine| engine.read_worker(process)) {
                Read::Some { is_all: false } => tokio::task::yield_now().await,
                Read::Some { is_all: true } | Read::Nothing => guard.clear_ready(),
                // The death itself comes from the reaper.
                Read::Closed => return,
            }
        }
    }

    async fn write_worker(self, process: ProcessId, channel: Rc<Watched>) {
        loop {
            let Ok(mut guard) = channel.writable().await else { return };
            if self.0.borrow_mut().write_more(process) {
                return;
            }
            guard.clear_ready();
        }
    }

    async fn read_output(self, process: ProcessId, pipe: Rc<Watched>, stream: Stream) {
        loop {
            let Ok(mut guard) = pipe.readable().await else { return };
            match self.0.borrow_mut().read_output(process, stream) {
                Read::Some { .. } => {}
                Read::Nothing => guard.clear_ready(),
                Read::Closed => return,
            }
        }
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

/// What the system says, and what to do about it where that is known.
fn explain(error: &std::io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::EMFILE | libc::ENFILE) => {
            format!("{error}: each actor takes {FDS_PER_ACTOR} descriptors of the supervisor; raise `ulimit -n`")
        }
        Some(libc::EAGAIN) => format!("{error}: the limit of processes is reached; see `ulimit -u`"),
        _ => error.to_string(),
    }
}

/// Descriptors of the supervisor per actor: channel, lifeline, stdout, stderr.
const FDS_PER_ACTOR: u32 = 4;

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
        for process in std::mem::take(&mut self.dirty) {
            self.flush(process);
        }
        let wakes_at = self.core.poll_timeout();
        if wakes_at != self.wakes_at {
            self.wakes_at = wakes_at;
            self.timer.notify_one();
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Deliver { process, delivery, payload } => {
                self.write(process, &ToWorker::Deliver(delivery), &payload);
            }
            Action::Reply { to: Caller::Actor(pid), call, outcome, payload } => {
                // A caller lives in its first generation as long as there is no recycling.
                let process = ProcessId { pid, generation: rebeam_protocol::id::Generation(0) };
                self.write(process, &ToWorker::Reply { call, outcome }, &payload);
            }
            Action::Reply { to: Caller::Outside(client), call, outcome, payload } => {
                let waiting = self.outside.get_mut(&client).and_then(|calls| calls.remove(&call));
                if let Some(waiting) = waiting {
                    let _ = waiting.send((outcome, payload));
                }
            }
            Action::Stop { process, reason, urgent } => {
                self.write(process, &ToWorker::Stop { reason, urgent }, &Bytes::new());
            }
            Action::Gate { process, to, open } => {
                self.write(process, &ToWorker::Gate { to, open }, &Bytes::new());
                if let Some(worker) = self.workers.get(&process) {
                    worker.page.ask_for_attention();
                }
            }
            Action::Answer { to: Requester::Worker(process, request), answer } => {
                self.write(process, &ToWorker::Answer { request, answer }, &Bytes::new());
            }
            Action::Answer { to: Requester::Outside(asker), answer } => {
                if let Some(waiting) = self.requests.remove(&asker) {
                    let _ = waiting.send(answer);
                }
            }
            Action::Answer { to: Requester::Nobody, .. } => {}
            Action::Launch(launch) => self.launch(launch),
            Action::Kill(process) => self.kill(process),
            Action::Report { certificate, verdict } => self.printer.crash(&certificate, verdict),
            Action::DeadLetter(letter) => {
                self.dead_letters += 1;
                self.printer.dead_letter(&letter);
            }
            Action::NodeUp => {
                self.is_up = true;
                self.printer.up(self.core.alive().len(), self.started.elapsed());
            }
            Action::NodeFailed { child, reason, certificate } => {
                self.end(Ended::NotStarted { child, reason, certificate });
            }
            Action::NodeEnded { ordered: true, .. } => self.end(Ended::AsOrdered),
            Action::NodeEnded { ordered: false, certificate } => self.end(Ended::GaveUp(certificate)),
        }
    }

    fn end(&mut self, ended: Ended) {
        self.ended = Some(ended);
        self.on_end.notify_one();
    }

    // ---- writing -----------------------------------------------------------------------------------------------

    fn write(&mut self, process: ProcessId, message: &ToWorker, payload: &Bytes) {
        let Some(worker) = self.workers.get_mut(&process) else { return };
        if worker.out.push(message, payload, MAX_FRAME).is_err() {
            return;
        }
        if !worker.is_dirty && !worker.is_blocked {
            worker.is_dirty = true;
            self.dirty.push(process);
        }
    }

    fn flush(&mut self, process: ProcessId) {
        let Some(worker) = self.workers.get_mut(&process) else { return };
        worker.is_dirty = false;
        if let Ok(false) = worker.out.flush(worker.channel.get_ref()) {
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
        let is_done = worker.out.flush(worker.channel.get_ref()).unwrap_or(true);
        worker.is_blocked = !is_done;
        is_done
    }

    // ---- reading -----------------------------------------------------------------------------------------------

    fn read_worker(&mut self, process: ProcessId) -> Read {
        let Some(worker) = self.workers.get_mut(&process) else { return Read::Closed };
        let result = worker.decoder.read(worker.channel.get_ref());
        if matches!(result, Read::Some { .. }) {
            self.handle_frames(process);
        }
        result
    }

    fn handle_frames(&mut self, process: ProcessId) {
        loop {
            let Some(worker) = self.workers.get_mut(&process) else { return };
            match worker.decoder.next::<ToSupervisor>() {
                Ok(Some((message, payload))) => {
                    if let Err(complaint) = self.handle_frame(process, message, payload) {
                        return self.tell(Event::Misbehaved { process, complaint });
                    }
                }
                Ok(None) => return,
                Err(error) => return self.tell(Event::Misbehaved { process, complaint: error.to_string() }),
            }
        }
    }

    fn handle_frame(&mut self, process: ProcessId, message: ToSupervisor, payload: Bytes) -> Result<(), String> {
        let Some(worker) = self.workers.get_mut(&process) else { return Ok(()) };
        if worker.is_killed {
            // What a worker said before it was killed for rubbish counts; what follows the rubbish does not.
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
            ToSupervisor::Send(envelope) => Event::Sent { process, envelope, payload },
            ToSupervisor::Reply(reply) => Event::Replied { process, reply, payload },
            ToSupervisor::Ack { done } => Event::Acked { process, done },
            ToSupervisor::Started(started) => Event::Started { process, started },
            ToSupervisor::Exit(reason) => Event::Reported { process, reason },
            ToSupervisor::Abandon { call } => {
                self.abandon(Caller::Actor(process.pid), call);
                return Ok(());
            }
            ToSupervisor::Request { request, body } => {
                Event::Requested { from: Requester::Worker(process, request), request: body }
            }
            ToSupervisor::Log(record) => {
                self.printer.log(&worker.label, &record);
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
                for line in lines {
                    self.printer.output(&worker.label, stream, &line);
                    worker.last_lines.push(line);
                }
                Read::Some { is_all: false }
            }
        }
    }

    // ---- processes ---------------------------------------------------------------------------------------------

    fn launch(&mut self, launch: Launch) {
        let process = launch.process;
        match self.wire(launch) {
            Ok(theirs) => {
                self.dirty.push(process);
                self.queue.push_back((process, theirs));
                self.launch_next();
            }
            Err(error) => self.tell(Event::LaunchFailed { process, error: explain(&error) }),
        }
    }

    /// Makes a worker's descriptors and tasks, and queues its first frame.
    fn wire(&mut self, launch: Launch) -> std::io::Result<TheirEnds> {
        let process = launch.process;
        let node = self.me.upgrade().map(Node).ok_or(std::io::ErrorKind::Other)?;
        let wiring = Wiring::new()?;
        let output = |pipe| -> std::io::Result<Output> {
            Ok(Output { pipe: Rc::new(watch(pipe)?), lines: LineReader::default() })
        };
        let mut worker = Worker {
            label: launch.label.clone(),
            os_pid: None,
            channel: Rc::new(watch(wiring.channel)?),
            decoder: Decoder::new(MAX_FRAME),
            out: WriteQueue::default(),
            is_blocked: false,
            is_dirty: true,
            has_said_hello: false,
            is_killed: false,
            page: wiring.page,
            _lifeline: wiring.lifeline,
            stdout: output(wiring.outputs.stdout)?,
            stderr: output(wiring.outputs.stderr)?,
            last_lines: LastLines::default(),
            tasks: Vec::with_capacity(4),
            launch: None,
        };
        let welcome = Welcome {
            magic: MAGIC,
            version: VERSION,
            features: Features::default(),
            process,
            actor: launch.actor,
            label: launch.label.clone(),
            named: launch.named,
            restarts: launch.restarts,
            max_frame: MAX_FRAME as u64,
        };
        let start = Bytes::copy_from_slice(&launch.spec.start);
        worker.out.push(&ToWorker::Welcome(welcome), &start, MAX_FRAME).map_err(std::io::Error::other)?;
        worker.tasks.extend([
            tokio::task::spawn_local(node.clone().read_worker(process, worker.channel.clone())).abort_handle(),
            tokio::task::spawn_local(node.clone().read_output(process, worker.stdout.pipe.clone(), Stream::Stdout))
                .abort_handle(),
            tokio::task::spawn_local(node.read_output(process, worker.stderr.pipe.clone(), Stream::Stderr))
                .abort_handle(),
        ]);
        worker.launch = Some(launch);
        self.workers.insert(process, worker);
        Ok(wiring.theirs)
    }

    /// Hands the next waiting launch to the zygote, or to a fresh interpreter where there is none.
    fn launch_next(&mut self) {
        while self.forking.is_none()
            && let Some((process, theirs)) = self.queue.pop_front()
        {
            if !self.workers.contains_key(&process) {
                continue;
            }
            if self.workers.get(&process).is_some_and(|worker| worker.is_killed) {
                // Killed before it was born.
                self.bury_unborn(process);
                continue;
            }
            match &self.zygote {
                ZygoteState::Loading { .. } => {
                    self.queue.push_front((process, theirs));
                    return;
                }
                ZygoteState::Ready { zygote, .. } => {
                    let request = process.pid.serial;
                    match zygote.send(&ToZygote::Fork { request }, &theirs.as_raw()) {
                        Ok(()) => self.forking = Some(process),
                        Err(error) => self.launch_failed(process, explain(&error)),
                    }
                }
                ZygoteState::NotUsed => match theirs.spawn(&self.setup.python, &self.setup.directory) {
                    Ok(os_pid) => self.born(process, os_pid),
                    Err(error) => self.launch_failed(process, explain(&error)),
                },
            }
        }
    }

    fn born(&mut self, process: ProcessId, os_pid: i32) {
        self.by_os_pid.insert(os_pid, process);
        match self.workers.get_mut(&process) {
            Some(worker) => {
                worker.os_pid = Some(os_pid);
                worker.launch = None;
                if worker.is_killed {
                    reaper::kill_group(os_pid);
                }
            }
            None => reaper::kill_group(os_pid),
        }
    }

    fn launch_failed(&mut self, process: ProcessId, error: String) {
        self.workers.remove(&process);
        self.tell(Event::LaunchFailed { process, error });
    }

    fn bury_unborn(&mut self, process: ProcessId) {
        self.workers.remove(&process);
        self.tell(Event::Died(Box::new(Death {
            process,
            os_pid: 0,
            status: Status::Signalled(libc::SIGKILL),
            page: Snapshot::default(),
            clock_ns: 0,
            last_output: Vec::new(),
            cpu_ms: 0,
            peak_kib: 0,
        })));
    }

    fn kill(&mut self, process: ProcessId) {
        let Some(worker) = self.workers.get_mut(&process) else { return };
        worker.is_killed = true;
        match worker.os_pid {
            Some(os_pid) => reaper::kill_group(os_pid),
            None if self.forking != Some(process) => self.launch_next_without(process),
            // Its fork is under way: it is killed when it is born.
            None => {}
        }
    }

    fn launch_next_without(&mut self, process: ProcessId) {
        self.queue.retain(|(waiting, _)| *waiting != process);
        self.bury_unborn(process);
    }

    fn zygote_said(&mut self, message: FromZygote) {
        match message {
            FromZygote::Ready { .. } => {}
            FromZygote::Forked { os_pid, .. } => {
                if let Some(process) = self.forking.take() {
                    self.born(process, os_pid as i32);
                }
                self.launch_next();
                // It may have died already, unknown to the reaper until now.
                self.reap();
            }
            FromZygote::ForkFailed { error, .. } => {
                if let Some(process) = self.forking.take() {
                    self.launch_failed(process, format!("failed to fork: {error}"));
                }
                self.launch_next();
            }
            FromZygote::Loaded { unforkable, .. } => {
                self.zygote = match (std::mem::replace(&mut self.zygote, ZygoteState::NotUsed), unforkable) {
                    (ZygoteState::Loading { zygote, .. }, None) => ZygoteState::Ready { zygote, since: Instant::now() },
                    (ZygoteState::Loading { zygote, .. }, Some(reason)) => {
                        self.printer.unforkable(&reason);
                        reaper::kill_group(zygote.os_pid);
                        ZygoteState::NotUsed
                    }
                    (other, _) => other,
                };
                self.launch_next();
            }
            FromZygote::LoadFailed(error) => {
                self.printer.warn(&format!("the application could not be imported again: {}", error.message));
                self.kill_zygote();
                self.zygote = ZygoteState::NotUsed;
                self.launch_next();
            }
        }
    }

    fn kill_zygote(&mut self) {
        if let ZygoteState::Loading { zygote, .. } | ZygoteState::Ready { zygote, .. } = &self.zygote {
            reaper::kill_group(zygote.os_pid);
        }
    }

    fn reap(&mut self) {
        let mut has_reaped = false;
        while let Some(os_pid) = reaper::next_dead() {
            if let Some(process) = self.by_os_pid.remove(&os_pid) {
                let reaped = reaper::reap(os_pid);
                self.worker_died(process, os_pid, &reaped);
            } else if self.zygote_os_pid() == Some(os_pid) {
                reaper::reap(os_pid);
                self.zygote_died();
            } else if self.keeper.os_pid == os_pid {
                reaper::reap(os_pid);
                if let Some(mark) = &self.setup.python.mark
                    && let Ok(keeper) = launcher::spawn_keeper(mark)
                {
                    self.keeper = keeper;
                }
            } else if self.forking.is_some() {
                // Perhaps the newborn that the zygote is about to tell of: looked at again then.
                return;
            } else {
                reaper::reap(os_pid);
            }
            has_reaped = true;
        }
        if has_reaped && self.forking.is_none() {
            let mut known: HashSet<i32> = self.by_os_pid.keys().copied().collect();
            known.extend(self.zygote_os_pid());
            known.insert(self.keeper.os_pid);
            reaper::kill_strays(&known);
        }
    }

    /// Listens to a zygote and prints its output.
    fn attend(&self, zygote: &Zygote) {
        let Some(node) = self.me.upgrade().map(Node) else { return };
        if let Ok(control) = zygote.control.try_clone() {
            tokio::task::spawn_local(node.listen_to_zygote(control));
        }
        zygote.print_output(&self.printer, None);
    }

    fn zygote_os_pid(&self) -> Option<i32> {
        match &self.zygote {
            ZygoteState::Loading { zygote, .. } | ZygoteState::Ready { zygote, .. } => Some(zygote.os_pid),
            ZygoteState::NotUsed => None,
        }
    }

    /// Everything a worker left behind is taken in, and only then its death is told (MAP-03).
    fn worker_died(&mut self, process: ProcessId, os_pid: i32, reaped: &reaper::Reaped) {
        while matches!(self.read_worker(process), Read::Some { .. }) {}
        for stream in [Stream::Stdout, Stream::Stderr] {
            while matches!(self.read_output(process, stream), Read::Some { .. }) {}
        }
        let Some(mut worker) = self.workers.remove(&process) else { return };
        for (output, stream) in [(&mut worker.stdout, Stream::Stdout), (&mut worker.stderr, Stream::Stderr)] {
            if let Some(line) = output.lines.take_partial() {
                self.printer.output(&worker.label, stream, &line);
                worker.last_lines.push(line);
            }
        }
        let death = Death {
            process,
            os_pid: os_pid as u32,
            status: reaped.status,
            page: worker.page.snapshot(),
            clock_ns: clock_ns(),
            last_output: worker.last_lines.take(),
            cpu_ms: reaped.cpu_ms,
            peak_kib: reaped.peak_kib,
        };
        self.tell(Event::Died(Box::new(death)));
    }

    /// Running actors do not notice. What was being forked is made again, by the next zygote or by a fresh interpreter.
    fn zygote_died(&mut self) {
        let tries = match &self.zygote {
            ZygoteState::Loading { tries, .. } => tries + 1,
            ZygoteState::Ready { since, .. } if since.elapsed() < Duration::from_secs(5) => 1,
            ZygoteState::Ready { .. } | ZygoteState::NotUsed => 0,
        };
        // What was being forked may have been made, unknown to us: dropping its descriptors ends it by its lifeline.
        let unborn = self.forking.take().and_then(|process| self.workers.remove(&process));
        self.replace_zygote(tries);
        if let Some(launch) = unborn.and_then(|mut worker| worker.launch.take()) {
            self.launch(launch);
        }
    }

    fn replace_zygote(&mut self, tries: u32) {
        if self.ended.is_some() {
            return;
        }
        if tries > ZYGOTE_TRIES {
            self.printer.warn("the zygote died again and again: actors are started in fresh interpreters");
            self.zygote = ZygoteState::NotUsed;
            return self.launch_next();
        }
        self.printer.warn("the zygote died; it is started again, running actors go on");
        match Zygote::start(&self.setup.python, &self.setup.directory) {
            Ok(zygote) => {
                let _ = zygote.send(&ToZygote::Load(self.setup.target.clone()), &[]);
                self.attend(&zygote);
                self.zygote = ZygoteState::Loading { zygote, tries };
            }
            Err(error) => {
                self.printer.warn(&format!("the zygote could not be started: {error}"));
                self.zygote = ZygoteState::NotUsed;
                self.launch_next();
            }
        }
    }
}
