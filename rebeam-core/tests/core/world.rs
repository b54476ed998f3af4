//! A world for the core in virtual time: a script of what processes do, a trace of what the core decided.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use bytes::Bytes;
use rebeam_core::event::{
    Death, HandedOver, Launch, LaunchError, NewCode, NodeEnd, NodeEvent, Recipient, State, Status,
};
use rebeam_core::meters::Figures;
use rebeam_core::{Action, Core, Event};
use rebeam_protocol::address::{Address, ReplyTo};
use rebeam_protocol::certificate::Next;
use rebeam_protocol::exit::{ExitReason, Raised};
use rebeam_protocol::id::{CallId, NodeStart, Pid, ProcessId, RequestId, Seq, Version};
use rebeam_protocol::ledger::{Record, RegistryId, key_label};
use rebeam_protocol::message::{CallFailure, Codec, Form, Head, Kind, Outcome, Signal, Trace, Waits};
use rebeam_protocol::outside::{Answer, Reloaded, TreeRequest};
use rebeam_protocol::page::{OWN_MAIL, Snapshot, Stage};
use rebeam_protocol::process::{ProcessAnswer, ProcessRequest, SupervisorRequest};
use rebeam_protocol::spec::{ActorSpec, ChildKind, ChildSpec, Strategy, SupervisorSpec};
use rebeam_protocol::worker::{Delivery, Done, Envelope, Gate, Reply, Started};

/// An actor child with the defaults of `rebeam.child`.
pub(crate) fn actor(name: &str) -> ChildSpec {
    ChildSpec::actor(name, ActorSpec::new("app.A"))
}

/// The same, otherwise specified.
pub(crate) fn actor_with(name: &str, change: impl FnOnce(&mut ActorSpec)) -> ChildSpec {
    let mut child = actor(name);
    if let ChildKind::Actor(spec) = &mut child.kind {
        change(spec);
    }
    child
}

/// A supervisor child.
pub(crate) fn inner(id: &str, spec: SupervisorSpec) -> ChildSpec {
    ChildSpec::supervisor(SupervisorSpec { id: id.into(), ..spec })
}

/// A supervisor with the defaults of `rebeam.Supervisor`.
pub(crate) fn supervisor(strategy: Strategy, children: Vec<ChildSpec>) -> SupervisorSpec {
    SupervisorSpec { strategy, ..SupervisorSpec::new("root", children) }
}

/// One process as the world plays it.
#[derive(Debug)]
struct Process {
    label: String,
    code: Version,
    page: Snapshot,
    delivered: Vec<(Delivery, Bytes)>,
    /// Done, and not acknowledged yet: a worker does that in batches, and before it waits.
    done: Vec<Done>,
}

impl Process {
    /// What a worker acknowledges now, if it is time for that: a batch of so many, or all before it waits.
    fn due(&mut self, batch: usize) -> Option<Vec<Done>> {
        let waits = !self.delivered.iter().any(|(delivery, _)| self.page.stage(delivery.seq.0) == Stage::Waiting);
        (waits || self.done.len() >= batch).then(|| std::mem::take(&mut self.done))
    }
}

/// What a process does in answer to an order, where it takes its time (see [`World::lazy`]).
#[derive(Debug)]
enum Reaction {
    Starts(Started),
    HandsOver,
    GivesState,
    Ends(Option<ExitReason>, Status),
}

/// A core, its clock, and processes that do what the test says.
pub(crate) struct World {
    pub(crate) core: Core,
    pub(crate) now: Duration,
    processes: BTreeMap<ProcessId, Process>,
    /// Those that were told to handle no mail at first.
    suspended: BTreeSet<ProcessId>,
    /// Those that were asked to move.
    moving: BTreeSet<ProcessId>,
    /// Those that have given their state and wait.
    kept: BTreeMap<ProcessId, Process>,
    /// Whether `init` runs in a process that takes over.
    pub(crate) runs_init: bool,
    /// What became of reloads.
    pub(crate) reloads: Vec<Reloaded>,
    /// The versions of the code that may still be needed.
    pub(crate) needed: Vec<Version>,
    /// Those that are kept.
    versions: BTreeSet<Version>,
    /// Digests of the modules of the current version.
    pub(crate) modules: HashMap<String, u64>,
    /// What each process was started from.
    starts: Vec<(String, Vec<u8>)>,
    /// The version that each process runs.
    pub(crate) codes: BTreeMap<String, Version>,
    /// What the core decided, in words, since the last look.
    trace: Vec<String>,
    /// Labels whose next so many starts fail.
    pub(crate) fails: BTreeMap<String, u32>,
    /// Labels whose `init` does not return by itself.
    pub(crate) slow: Vec<String>,
    /// Labels whose `init` asks to be passed over.
    pub(crate) ignoring: Vec<String>,
    /// Labels whose processes cannot be made, for want of a resource.
    pub(crate) lacking: Vec<String>,
    /// Labels that do not end when asked.
    pub(crate) stubborn: Vec<String>,
    pub(crate) replies: Vec<(Recipient, CallId, Outcome)>,
    pub(crate) answers: Vec<ProcessAnswer>,
    /// What clients of the control socket were answered.
    pub(crate) outside: Vec<Answer>,
    /// Number, parent and words of what was traced.
    pub(crate) spans: Vec<(u64, u64, String)>,
    /// After how many messages a worker acknowledges: 16, as `rebeam-worker/src/channel.rs` has it, unless told otherwise.
    pub(crate) acks_after: usize,
    /// Processes do what they are told only when [`World::reacts`] says so, each in its own order.
    pub(crate) lazy: bool,
    reactions: Vec<(ProcessId, Reaction)>,
    /// Entries by registry and key, as the ledger says it.
    ledger: BTreeMap<(RegistryId, String), BTreeMap<u64, Pid>>,
}

impl World {
    pub(crate) fn new(spec: SupervisorSpec) -> Self {
        World {
            core: Core::new(spec, NodeStart::default()).expect("a valid tree"),
            now: Duration::ZERO,
            processes: BTreeMap::new(),
            suspended: BTreeSet::new(),
            moving: BTreeSet::new(),
            kept: BTreeMap::new(),
            runs_init: false,
            reloads: Vec::new(),
            needed: vec![Version::FIRST],
            versions: BTreeSet::from([Version::FIRST]),
            modules: HashMap::new(),
            codes: BTreeMap::new(),
            starts: Vec::new(),
            trace: Vec::new(),
            fails: BTreeMap::new(),
            slow: Vec::new(),
            ignoring: Vec::new(),
            lacking: Vec::new(),
            stubborn: Vec::new(),
            replies: Vec::new(),
            answers: Vec::new(),
            outside: Vec::new(),
            spans: Vec::new(),
            acks_after: 16,
            lazy: false,
            reactions: Vec::new(),
            ledger: BTreeMap::new(),
        }
    }

    /// A world whose tree is up.
    pub(crate) fn up(spec: SupervisorSpec) -> Self {
        let mut world = World::new(spec);
        world.tell(Event::Boot);
        world.trace.clear();
        world
    }

    pub(crate) fn tell(&mut self, event: Event) {
        self.core.handle_event(self.now, event);
        self.settle();
    }

    /// Lets time pass, firing timers on the way.
    pub(crate) fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(due) = self.core.poll_timeout().filter(|due| *due <= end) {
            self.now = due;
            self.core.handle_timeout(due);
            self.settle();
        }
        self.now = end;
    }

    /// What was decided since the last look.
    pub(crate) fn take_trace(&mut self) -> Vec<String> {
        std::mem::take(&mut self.trace)
    }

    pub(crate) fn check(&mut self, expected: &[&str]) {
        assert_eq!(self.take_trace(), expected);
    }

    pub(crate) fn process(&self, label: &str) -> ProcessId {
        let found = self.processes.iter().find(|(_, process)| process.label == label);
        *found.unwrap_or_else(|| panic!("`{label}` is not running")).0
    }

    pub(crate) fn is_running(&self, label: &str) -> bool {
        self.processes.values().any(|process| process.label == label)
    }

    pub(crate) fn running(&self) -> Vec<String> {
        self.processes.values().map(|process| process.label.clone()).collect()
    }

    /// From now on an actor takes its mail when it likes, as a function does.
    pub(crate) fn takes_own_mail(&mut self, label: &str) {
        let process = self.process(label);
        self.processes.get_mut(&process).expect("it runs").page.set_condition(OWN_MAIL);
    }

    /// The process of an actor that was asked for its state gives it and ends.
    pub(crate) fn hands_over(&mut self, label: &str) {
        let process = self.process(label);
        self.carry_out(process, Reaction::HandsOver);
        self.settle();
    }

    /// A process ends by itself, with a final report.
    pub(crate) fn ends(&mut self, label: &str, reason: ExitReason) {
        let process = self.process(label);
        self.core.handle_event(self.now, Event::Reported { process, reason, message: None });
        self.dies(process, Status::Exited(0));
        self.settle();
    }

    /// A process crashes with an exception.
    pub(crate) fn crashes(&mut self, label: &str) {
        self.ends(label, crash());
    }

    /// A process is killed from outside.
    pub(crate) fn is_shot(&mut self, label: &str) {
        let process = self.process(label);
        self.dies(process, Status::Signalled(9));
        self.settle();
    }

    /// What is known of the end of the process that an actor has.
    pub(crate) fn death_of(&mut self, label: &str, status: Status) -> Death {
        let process = self.process(label);
        let dead = self.processes.remove(&process).expect("it runs");
        Death { os_pid: 1, page: dead.page, ..Death::without_trace(process, status) }
    }

    fn dies(&mut self, process: ProcessId, status: Status) {
        self.reactions.retain(|(other, _)| *other != process);
        let Some(dead) = self.processes.remove(&process).or_else(|| self.kept.remove(&process)) else { return };
        let death = Death { os_pid: 1, page: dead.page, ..Death::without_trace(process, status) };
        self.core.handle_event(self.now, Event::Died(Box::new(death)));
    }

    /// A process does something in answer to an order: at once, or when [`World::reacts`] says so.
    fn react(&mut self, process: ProcessId, reaction: Reaction) {
        if self.lazy {
            self.reactions.push((process, reaction));
        } else {
            self.carry_out(process, reaction);
        }
    }

    fn carry_out(&mut self, process: ProcessId, reaction: Reaction) {
        match reaction {
            Reaction::Starts(started) => {
                self.core.handle_event(self.now, Event::Started { process, started, info: Bytes::new() });
                if started == Started::Ignore {
                    self.react(process, Reaction::Ends(Some(ExitReason::Normal), Status::Exited(0)));
                }
            }
            Reaction::HandsOver => {
                self.gives_state(process);
                self.react(process, Reaction::Ends(None, Status::Exited(0)));
            }
            Reaction::GivesState => self.gives_state(process),
            Reaction::Ends(report, status) => {
                if let Some(reason) = report {
                    self.core.handle_event(self.now, Event::Reported { process, reason, message: None });
                }
                self.dies(process, status);
            }
        }
    }

    /// There is a new version of the code of these modules.
    pub(crate) fn new_code(&mut self, version: u32, tree: SupervisorSpec, modules: &[&str]) {
        self.modules.extend(modules.iter().map(|name| ((*name).to_owned(), u64::from(version))));
        self.new_version(version, tree, false);
    }

    /// There is a new version, of the code that `modules` tells of.
    pub(crate) fn new_version(&mut self, version: u32, tree: SupervisorSpec, retries: bool) {
        let modules = self.modules.clone();
        self.versions.insert(Version(version));
        let new = NewCode { version: Version(version), tree, gateway: None, modules, moves_all: false, retries };
        self.tell(Event::NewCode(Box::new(new)));
    }

    /// How many processes have given their state and wait.
    pub(crate) fn waiting(&self) -> usize {
        self.kept.len()
    }

    /// The process of an actor that was asked to move gives its state and waits.
    pub(crate) fn gives_its_state(&mut self, label: &str) {
        let process = self.process(label);
        self.gives_state(process);
        self.settle();
    }

    /// What the processes of an actor were started from.
    pub(crate) fn starts_of(&self, label: &str) -> Vec<Vec<u8>> {
        self.starts.iter().filter(|(of, _)| of == label).map(|(_, start)| start.clone()).collect()
    }

    /// A process that has given its state and was not told what became of that.
    pub(crate) fn a_waiting_process(&self) -> Option<ProcessId> {
        let is_leaving = |process: &ProcessId| self.reactions.iter().any(|(other, _)| other == process);
        self.kept.keys().find(|process| !is_leaving(process)).copied()
    }

    /// How many such processes were told to leave, and have not.
    pub(crate) fn leaving(&self) -> usize {
        self.reactions.iter().filter(|(process, _)| self.kept.contains_key(process)).count()
    }

    /// A process that waits is killed from outside.
    pub(crate) fn kept_is_shot(&mut self, process: ProcessId) {
        assert!(self.kept.contains_key(&process), "it does not wait");
        self.dies(process, Status::Signalled(9));
        self.settle();
    }

    /// Whether the process of an actor was told to handle no mail at first.
    pub(crate) fn launched_suspended(&self, label: &str) -> bool {
        self.suspended.contains(&self.process(label))
    }

    fn gives_state(&mut self, process: ProcessId) {
        let page = self.processes.get(&process).map(|it| it.page.clone()).unwrap_or_default();
        let (state, runs_init, took) = (State::new("state"), self.runs_init, Duration::ZERO);
        let handed = HandedOver { process, state, runs_init, took, page };
        if self.moving.remove(&process)
            && let Some(kept) = self.processes.remove(&process)
        {
            self.kept.insert(process, kept);
        }
        self.core.handle_event(self.now, Event::HandedOver(Box::new(handed)));
    }

    /// One of the lazy processes does the next thing that it was told; false if none has anything to do.
    pub(crate) fn reacts(&mut self, choice: usize) -> bool {
        let mut busy: Vec<ProcessId> = self.reactions.iter().map(|(process, _)| *process).collect();
        busy.sort_unstable();
        busy.dedup();
        if busy.is_empty() {
            return false;
        }
        let chosen = busy[choice % busy.len()];
        let place = self.reactions.iter().position(|(process, _)| *process == chosen).expect("it has something to do");
        let (process, reaction) = self.reactions.remove(place);
        self.carry_out(process, reaction);
        self.settle();
        true
    }

    /// `init` of a slow one returns.
    pub(crate) fn starts(&mut self, label: &str) {
        let process = self.process(label);
        self.tell(Event::Started { process, started: Started::Ready, info: Bytes::new() });
    }

    /// A cast or call from one actor to a name.
    pub(crate) fn sends(&mut self, from: &str, to: Address, kind: Kind, method: &str) {
        let process = self.process(from);
        let envelope = envelope(to, kind, method);
        self.tell(Event::Sent { process, envelope, payload: Bytes::new(), buffers: None });
    }

    /// The same, within a span.
    pub(crate) fn sends_within(&mut self, from: &str, within: Trace, to: Address, kind: Kind, method: &str) {
        let process = self.process(from);
        let mut envelope = envelope(to, kind, method);
        envelope.head.trace = Some(Box::new(within));
        self.tell(Event::Sent { process, envelope, payload: Bytes::new(), buffers: None });
    }

    /// The trace of the last message that was delivered.
    pub(crate) fn trace_of(&self, label: &str) -> Trace {
        let process = &self.processes[&self.process(label)];
        process
            .delivered
            .last()
            .and_then(|(delivery, _)| delivery.head.trace.as_deref().copied())
            .expect("it is traced")
    }

    /// What was delivered to the process that serves now and not begun.
    pub(crate) fn delivered(&self, label: &str) -> Vec<String> {
        let process = &self.processes[&self.process(label)];
        let waiting = |(delivery, _): &&(Delivery, Bytes)| process.page.stage(delivery.seq.0) == Stage::Waiting;
        process.delivered.iter().filter(waiting).map(|(delivery, _)| delivery.head.method.clone()).collect()
    }

    /// Begins the first message that was not begun; gives where an answer goes.
    pub(crate) fn begins(&mut self, label: &str) -> (Seq, Option<ReplyTo>) {
        let id = self.process(label);
        let process = self.processes.get_mut(&id).expect("it runs");
        let next = process.delivered.iter().find(|(delivery, _)| process.page.stage(delivery.seq.0) == Stage::Waiting);
        let (delivery, _) = next.expect("there is a message");
        let found = (delivery.seq, delivery.reply_to);
        process.page.note(found.0.0, Stage::Begun, self.now.as_nanos() as u64);
        found
    }

    /// Begins and finishes the first message that an actor has, if it runs and has one; gives its method.
    pub(crate) fn works(&mut self, label: &str) -> Option<String> {
        if !self.is_running(label) || self.delivered(label).is_empty() {
            return None;
        }
        let method = self.delivered(label).remove(0);
        let (seq, _) = self.begins(label);
        self.finishes(label, seq);
        Some(method)
    }

    /// Begins and finishes the messages with these methods.
    pub(crate) fn finish_all(&mut self, label: &str, methods: &[&str]) {
        let id = self.process(label);
        let process = self.processes.get_mut(&id).expect("it runs");
        let is_meant = |delivery: &Delivery| methods.contains(&delivery.head.method.as_str());
        let done: Vec<Done> =
            process.delivered.iter().filter(|(it, _)| is_meant(it)).map(|(it, _)| it.seq.into()).collect();
        done.iter().for_each(|done| process.page.note(done.seq.0, Stage::Done, 1));
        self.tell(Event::Acked { process: id, done });
    }

    /// What is wrong, in words, where no message should wait longer than that.
    pub(crate) fn troubles(&mut self, longest_wait: Duration) -> Vec<String> {
        self.core.handle_timeout(self.now);
        let clock_ns = self.now.as_nanos() as u64;
        let page = |process| Some((self.processes.get(&process)?.page.clone(), clock_ns));
        let troubles = self.core.troubles(longest_wait, page);
        troubles.iter().map(|it| format!("{} {:?}: {}", it.actor, it.kind, it.detail)).collect()
    }

    /// How everything stands.
    pub(crate) fn figures(&mut self) -> Figures {
        self.core.handle_timeout(self.now);
        self.core.figures(|process| Some((7, self.processes.get(&process)?.page.clone())))
    }

    /// Where the answer to a message goes.
    pub(crate) fn reply_address(&self, label: &str, seq: Seq) -> Option<ReplyTo> {
        let process = &self.processes[&self.process(label)];
        process.delivered.iter().find(|(delivery, _)| delivery.seq == seq)?.0.reply_to
    }

    /// Finishes a message without an answer.
    pub(crate) fn finishes(&mut self, label: &str, seq: Seq) {
        self.finishes_after(label, seq, None);
    }

    /// The same, of a handler that took so many microseconds.
    pub(crate) fn finishes_after(&mut self, label: &str, seq: Seq, took_us: Option<u32>) {
        let process = self.process(label);
        let worker = self.processes.get_mut(&process).expect("it runs");
        worker.page.note(seq.0, Stage::Done, 1);
        worker.done.push(Done { seq, took_us });
        if let Some(done) = worker.due(self.acks_after) {
            self.tell(Event::Acked { process, done });
        }
    }

    /// Answers a call.
    pub(crate) fn replies(&mut self, label: &str, to: ReplyTo, done: Option<Seq>) {
        let process = self.process(label);
        if let Some(seq) = done {
            self.processes.get_mut(&process).expect("it runs").page.note(seq.0, Stage::Done, 1);
        }
        let done = done.map(Done::from);
        let reply = Reply { to, outcome: Outcome::Returned(Codec::Pickle), done, is_last: false, buffers: None };
        self.tell(Event::Replied { process, reply, payload: Bytes::new(), buffers: None });
    }

    /// A client of the control socket asks something.
    pub(crate) fn requests(&mut self, request: TreeRequest) {
        self.tell(Event::AskedFromOutside { asker: 1, request });
    }

    /// An actor asks for something about others; gives the answer, if it came at once.
    pub(crate) fn asks(&mut self, from: &str, body: ProcessRequest) -> Option<ProcessAnswer> {
        self.asks_with(from, body, Bytes::new())
    }

    pub(crate) fn asks_with(&mut self, from: &str, body: ProcessRequest, payload: Bytes) -> Option<ProcessAnswer> {
        let process = self.process(from);
        let before = self.answers.len();
        self.tell(Event::Asked { process, request: RequestId(1), body, payload });
        self.answers.get(before).cloned()
    }

    /// An actor asks a supervisor something.
    pub(crate) fn asks_supervisor(
        &mut self,
        from: &str,
        supervisor: &str,
        request: SupervisorRequest,
    ) -> Option<ProcessAnswer> {
        self.asks(from, ProcessRequest::Supervisor { supervisor: name(supervisor), request, waits: Waits::Nobody })
    }

    /// The signals that were delivered to an actor and not begun, in words; each is begun and done with.
    pub(crate) fn signals(&mut self, label: &str) -> Vec<String> {
        let id = self.process(label);
        let process = self.processes.get_mut(&id).expect("it runs");
        let mut words = Vec::new();
        let mut done = Vec::new();
        for (delivery, _) in &process.delivered {
            if process.page.stage(delivery.seq.0) != Stage::Waiting {
                continue;
            }
            let Form::Signal(signal) = &delivery.head.form else { continue };
            words.push(match &**signal {
                Signal::Down { monitor, reason, .. } => format!("DOWN {monitor} {reason}"),
                Signal::Exit { reason, .. } => format!("EXIT {reason}"),
                Signal::Table { key, from, .. } => format!("table {} from {from}", key_label(key)),
                Signal::Rows { changes, .. } => format!("rows {}", String::from_utf8_lossy(changes)),
                Signal::DeadLetter(letter) => format!("DEAD {} {:?}", letter.method, letter.cause),
                Signal::Entry { registry, key, value, .. } => {
                    format!("{}{registry}[{}]", if value.is_some() { "+" } else { "-" }, key_label(key))
                }
            });
            done.push(delivery.seq.into());
        }
        for Done { seq, .. } in &done {
            process.page.note(seq.0, Stage::Done, 1);
        }
        self.tell(Event::Acked { process: id, done });
        words
    }

    pub(crate) fn settle(&mut self) {
        while let Some(action) = self.core.poll_action() {
            self.act(action);
        }
        let entries: usize = self.ledger.values().map(BTreeMap::len).sum();
        assert_eq!(entries, self.core.ledger().len(), "the ledger says what is not so");
        self.core.check_invariants();
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Launch(launch) => self.launch(&launch),
            Action::Span(span) => {
                let error = span.error.map_or(String::new(), |error| format!(" failed: {error}"));
                self.spans.push((
                    span.span,
                    span.parent,
                    format!("{:?} {} {}{error}", span.kind, span.actor, span.name),
                ));
            }
            Action::NotLaunched { label, error, after } => {
                self.trace.push(format!("not launched {label}: {error}, again after {} ms", after.as_millis()));
            }
            Action::LogLevel { process, level } => {
                let label = self.label(process).unwrap_or_default();
                self.trace.push(format!("log level {level} {label}"));
            }
            Action::Kill(process) => {
                if let Some(label) = self.label(process) {
                    self.trace.push(format!("kill {label}"));
                    self.dies(process, Status::Signalled(9));
                } else if let Some(kept) = self.kept.get(&process) {
                    self.trace.push(format!("kill the process before of {}", kept.label));
                    self.dies(process, Status::Signalled(9));
                }
            }
            Action::TimeLeft { .. } => {}
            Action::Exit(process) => {
                let Some(label) = self.label(process) else { return };
                self.trace.push(format!("exit {label}"));
                if !self.stubborn.contains(&label) {
                    self.react(process, Reaction::Ends(None, Status::Exited(0)));
                }
            }
            Action::Recycle(process) => {
                let Some(label) = self.label(process) else { return };
                self.trace.push(format!("recycle {label}"));
                if !self.stubborn.contains(&label) {
                    self.react(process, Reaction::HandsOver);
                }
            }
            Action::Move(process) => {
                let Some(label) = self.label(process) else { return };
                self.trace.push(format!("move {label}"));
                self.moving.insert(process);
                if !self.stubborn.contains(&label) {
                    self.react(process, Reaction::GivesState);
                }
            }
            Action::GoOn(process) => {
                let mut kept = self.kept.remove(&process).expect("it waits");
                self.trace.push(format!("go on {}", kept.label));
                kept.delivered.retain(|(delivery, _)| kept.page.stage(delivery.seq.0) != Stage::Waiting);
                self.codes.insert(kept.label.clone(), kept.code);
                self.processes.insert(process, kept);
            }
            Action::Leave(process) => {
                let kept = self.kept.get(&process).expect("it waits");
                self.trace.push(format!("leave {}", kept.label));
                self.react(process, Reaction::Ends(None, Status::Exited(0)));
            }
            Action::Reloaded(reloaded) => self.reloads.push(*reloaded),
            Action::Needed(versions) => {
                let current = self.core.version();
                self.versions.retain(|version| *version == current || versions.contains(version));
                self.needed = versions;
            }
            Action::Look(process) => {
                let Some(found) = self.processes.get(&process) else { return };
                let (page, clock_ns) = (found.page.clone(), self.now.as_nanos() as u64);
                self.core.handle_event(self.now, Event::Looked { process, page, clock_ns });
            }
            Action::DumpStacks(process) => {
                let label = self.label(process).unwrap_or_default();
                self.trace.push(format!("stacks of {label}"));
            }
            Action::Stop { process, reason, urgent } => {
                let Some(label) = self.label(process) else { return };
                self.trace.push(format!("stop {label}{}", if urgent { "" } else { " in turn" }));
                if !self.stubborn.contains(&label) && !self.slow.contains(&label) {
                    self.react(process, Reaction::Ends(Some(reason), Status::Exited(0)));
                }
            }
            Action::Deliver { process, delivery, payload, .. } => {
                if let Some(process) = self.processes.get_mut(&process) {
                    process.delivered.push((delivery, payload));
                }
            }
            Action::Reply { to, call, outcome, .. } => self.replies.push((to, call, outcome)),
            Action::Answer { answer, .. } => self.answers.push(answer),
            Action::AnswerOutside { answer, .. } => self.outside.push(answer),
            Action::Gate { gate: Gate::Shut { to, full, .. }, .. } => self.trace.push(format!("gate of {to} {full:?}")),
            Action::Gate { gate: Gate::Open { actor }, .. } => {
                let label = self.core.label_of(&Address::Actor(actor)).unwrap_or_default();
                self.trace.push(format!("gate of {label} Open"));
            }
            Action::Cancel { process, even_if_begun, .. } => {
                let label = self.label(process).unwrap_or_default();
                self.trace.push(format!("{} {label}", if even_if_begun { "cancel" } else { "drop" }));
            }
            Action::Report { certificate, next } => {
                let next = match next {
                    Next::Undone { to, lost, .. } => format!("Undone to {to}, {lost} lost"),
                    Next::Restarts { after_ms: 0 } => "Restarts".to_owned(),
                    Next::GivesUp { .. } => "GivesUp".to_owned(),
                    next => format!("{next:?}"),
                };
                self.trace.push(format!("report {} {next}", certificate.actor));
            }
            Action::DeadLetter(letter) => {
                self.trace.push(format!("dead letter {} to {} {:?}", letter.method, letter.to, letter.cause));
            }
            Action::Entry(change) => self.note(&change.record()),
            Action::WatchRows { rows, .. } => {
                self.trace.push(format!(
                    "watch {}..{}",
                    String::from_utf8_lossy(&rows.lower),
                    rows.upper.map_or(0, |it| it.len())
                ));
            }
            Action::UnwatchRows { heir: Some(_), has_missed, .. } => self.trace.push(format!("heir {has_missed}")),
            Action::UnwatchRows { .. } => self.trace.push("unwatch".into()),
            Action::Node(NodeEvent::Up) => self.trace.push("up".into()),
            Action::Node(NodeEvent::Failed { child, reason, .. }) => {
                self.trace.push(format!("failed {child}: {reason}"));
            }
            Action::Node(NodeEvent::Stopping) => {}
            Action::Node(NodeEvent::Ended(NodeEnd::Clean)) => self.trace.push("ended".into()),
            Action::Node(NodeEvent::Ended(NodeEnd::GaveUp { .. })) => self.trace.push("gave up".into()),
        }
    }

    /// What a reader of the ledger does.
    fn note(&mut self, record: &Record<'_>) {
        let place = (record.registry, key_label(record.key));
        let entries = self.ledger.entry(place.clone()).or_default();
        match record.entry {
            Some((pid, _)) => drop(entries.insert(record.number, pid)),
            None => drop(entries.remove(&record.number)),
        }
        let count = entries.len();
        assert!(record.registry != RegistryId::NAMES || count < 2, "two holders of the name {}", place.1);
        if count == 0 {
            self.ledger.remove(&place);
        }
    }

    /// Who holds a name by the ledger.
    pub(crate) fn found(&self, name: &str) -> Option<Pid> {
        self.ledger.get(&(RegistryId::NAMES, name.to_owned()))?.values().next().copied()
    }

    fn launch(&mut self, launch: &Launch) {
        let label = launch.label.clone();
        self.trace.push(format!("start {label}"));
        if self.lacking.contains(&label) {
            let error = LaunchError { text: "too many open files".into(), again: Some(Box::new(launch.clone())) };
            return self.core.handle_event(self.now, Event::LaunchFailed { process: launch.process, error });
        }
        let process = Process {
            label: label.clone(),
            code: launch.code,
            page: Snapshot::default(),
            delivered: Vec::new(),
            done: Vec::new(),
        };
        assert!(self.versions.contains(&launch.code), "{label} needs {}, which is let go", launch.code);
        assert!(!self.is_running(&label), "two incarnations of {label} at once");
        self.codes.insert(label.clone(), launch.code);
        self.starts.push((label.clone(), launch.spec.start.clone()));
        if launch.is_suspended {
            self.suspended.insert(launch.process);
        }
        self.processes.insert(launch.process, process);
        if self.slow.contains(&label) {
            return;
        }
        match self.fails.get_mut(&label) {
            Some(left) if *left > 0 => {
                *left -= 1;
                self.react(launch.process, Reaction::Ends(Some(crash()), Status::Exited(0)));
            }
            _ => {
                let started = if self.ignoring.contains(&label) { Started::Ignore } else { Started::Ready };
                self.react(launch.process, Reaction::Starts(started));
            }
        }
    }

    fn label(&self, process: ProcessId) -> Option<String> {
        Some(self.processes.get(&process)?.label.clone())
    }
}

pub(crate) fn crash() -> ExitReason {
    ExitReason::Exception(Raised { kind: "ValueError".into(), message: "boom".into(), traceback: String::new() })
}

pub(crate) fn call(number: u64) -> Kind {
    Kind::Call { call: CallId(number), waits: Waits::Nobody }
}

/// A call by a handler that can do nothing else until it has its answer.
pub(crate) fn waiting_call(number: u64, in_hand: Option<Seq>) -> Kind {
    Kind::Call { call: CallId(number), waits: Waits::Actor { message: in_hand, is_deferred: false } }
}

pub(crate) fn name(name: &str) -> Address {
    Address::Name(name.into())
}

pub(crate) fn envelope(to: Address, kind: Kind, method: &str) -> Envelope {
    Envelope { to, kind, head: Head::new(method), buffers: None }
}

/// The reason of a call that failed with the death of its callee.
pub(crate) fn died_of(outcome: &Outcome) -> Option<&ExitReason> {
    match outcome {
        Outcome::Failed(CallFailure::Died { certificate, .. }) => Some(&certificate.reason),
        _ => None,
    }
}
