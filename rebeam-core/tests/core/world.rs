//! A world for the core in virtual time: a script of what processes do, a trace of what the core decided.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use rebeam_core::event::{Death, Launch, NodeEnd, Recipient, Requester, Status};
use rebeam_core::meters::Figures;
use rebeam_core::{Action, Core, Event};
use rebeam_protocol::certificate::Next;
use rebeam_protocol::control::{Answer, Request};
use rebeam_protocol::exit::{ExitReason, Raised};
use rebeam_protocol::id::{CallId, NodeStart, Pid, ProcessId, RequestId, Seq};
use rebeam_protocol::ledger::{Record, RegistryId, key_label};
use rebeam_protocol::message::{
    Address, CallFailure, Codec, Delivery, Done, Envelope, Form, Kind, Lane, Outcome, Reply, ReplyTo, Signal, Started,
    Trace, Waits,
};
use rebeam_protocol::page::{OWN_MAIL, Snapshot, Stage};
use rebeam_protocol::process::{ProcessAnswer, ProcessRequest, SupervisorRequest};
use rebeam_protocol::spec::{
    ActorSpec, AutoShutdown, ChildKind, ChildSpec, Limits, MailboxOptions, OnGiveup, ProcessOptions, Restart, Shutdown,
    Strategy, SupervisorKind, SupervisorSpec,
};

/// An actor child with the defaults of `rebeam.child`.
pub(crate) fn actor(name: &str) -> ChildSpec {
    ChildSpec {
        id: name.into(),
        restart: Restart::Permanent,
        shutdown: Shutdown::Timeout(5000),
        significant: false,
        backoff: None,
        on_giveup: OnGiveup::Stop,
        kind: ChildKind::Actor(Box::new(ActorSpec {
            name: Some(name.into()),
            via: None,
            class: "app.A".into(),
            start: Vec::new(),
            start_ms: Some(60_000),
            mailbox: MailboxOptions::default(),
            concurrency: 1,
            redelivered: Vec::new(),
            terminate_on_shutdown: true,
            limits: Limits::default(),
            process: ProcessOptions::default(),
        })),
    }
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
    ChildSpec {
        id: id.into(),
        restart: Restart::Permanent,
        shutdown: Shutdown::Infinity,
        significant: false,
        backoff: None,
        on_giveup: OnGiveup::Stop,
        kind: ChildKind::Supervisor(SupervisorSpec { id: id.into(), ..spec }),
    }
}

/// A supervisor with the defaults of `rebeam.Supervisor`.
pub(crate) fn supervisor(strategy: Strategy, children: Vec<ChildSpec>) -> SupervisorSpec {
    SupervisorSpec {
        id: "root".into(),
        name: None,
        kind: SupervisorKind::Static,
        strategy,
        max_restarts: 3,
        max_ms: 5000,
        children,
        auto_shutdown: AutoShutdown::Never,
    }
}

/// One process as the world plays it.
#[derive(Debug)]
struct Process {
    label: String,
    page: Snapshot,
    delivered: Vec<(Delivery, Bytes)>,
}

/// A core, its clock, and processes that do what the test says.
pub(crate) struct World {
    pub(crate) core: Core,
    pub(crate) now: Duration,
    processes: BTreeMap<ProcessId, Process>,
    /// What the core decided, in words, since the last look.
    trace: Vec<String>,
    /// Labels whose next so many starts fail.
    pub(crate) fails: BTreeMap<String, u32>,
    /// Labels whose `init` does not return by itself.
    pub(crate) slow: Vec<String>,
    /// Labels whose `init` asks to be passed over.
    pub(crate) ignoring: Vec<String>,
    /// Labels that do not end when asked.
    pub(crate) stubborn: Vec<String>,
    pub(crate) replies: Vec<(Recipient, CallId, Outcome)>,
    pub(crate) answers: Vec<Answer>,
    /// Number, parent and words of what was traced.
    pub(crate) spans: Vec<(u64, u64, String)>,
    /// Entries by registry and key, as the ledger says it.
    ledger: BTreeMap<(RegistryId, String), BTreeMap<u64, Pid>>,
}

impl World {
    pub(crate) fn new(spec: SupervisorSpec) -> Self {
        World {
            core: Core::new(spec, NodeStart::default()).expect("a valid tree"),
            now: Duration::ZERO,
            processes: BTreeMap::new(),
            trace: Vec::new(),
            fails: BTreeMap::new(),
            slow: Vec::new(),
            ignoring: Vec::new(),
            stubborn: Vec::new(),
            replies: Vec::new(),
            answers: Vec::new(),
            spans: Vec::new(),
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

    /// A process ends by itself, with a final report.
    pub(crate) fn ends(&mut self, label: &str, reason: ExitReason) {
        let process = self.process(label);
        self.core.handle_event(self.now, Event::Reported { process, reason });
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

    fn dies(&mut self, process: ProcessId, status: Status) {
        let Some(dead) = self.processes.remove(&process) else { return };
        let death = Death { os_pid: 1, page: dead.page, ..Death::without_trace(process, status) };
        self.core.handle_event(self.now, Event::Died(Box::new(death)));
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
        let envelope = Envelope { trace: Some(within), ..envelope(to, kind, method) };
        self.tell(Event::Sent { process, envelope, payload: Bytes::new(), buffers: None });
    }

    /// The trace of the last message that was delivered.
    pub(crate) fn trace_of(&self, label: &str) -> Trace {
        let process = &self.processes[&self.process(label)];
        process.delivered.last().and_then(|(delivery, _)| delivery.trace).expect("it is traced")
    }

    /// What was delivered to the process that serves now and not begun.
    pub(crate) fn delivered(&self, label: &str) -> Vec<String> {
        let process = &self.processes[&self.process(label)];
        let waiting = |(delivery, _): &&(Delivery, Bytes)| process.page.stage(delivery.seq.0) == Stage::Waiting;
        process.delivered.iter().filter(waiting).map(|(delivery, _)| delivery.method.clone()).collect()
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
        self.processes.get_mut(&process).expect("it runs").page.note(seq.0, Stage::Done, 1);
        self.tell(Event::Acked { process, done: vec![Done { seq, took_us }] });
    }

    /// Answers a call.
    pub(crate) fn replies(&mut self, label: &str, to: ReplyTo, done: Option<Seq>) {
        let process = self.process(label);
        if let Some(seq) = done {
            self.processes.get_mut(&process).expect("it runs").page.note(seq.0, Stage::Done, 1);
        }
        let done = done.map(Done::from);
        let reply = Reply { to, outcome: Outcome::Returned(Codec::Pickle), done, buffers: None };
        self.tell(Event::Replied { process, reply, payload: Bytes::new(), buffers: None });
    }

    pub(crate) fn requests(&mut self, request: Request) {
        self.tell(Event::Requested { from: Requester::Outside(1), request, payload: Bytes::new() });
    }

    /// An actor asks for something about others; gives the answer, if it came at once.
    pub(crate) fn asks(&mut self, from: &str, request: ProcessRequest) -> Option<ProcessAnswer> {
        let process = self.process(from);
        let request = Request::Process(request);
        let before = self.answers.len();
        let from = Requester::Worker(process, RequestId(1));
        self.tell(Event::Requested { from, request, payload: Bytes::new() });
        match self.answers.get(before) {
            Some(Answer::Process(answer)) => Some(answer.clone()),
            _ => None,
        }
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
            let Form::Signal(signal) = &delivery.form else { continue };
            words.push(match &**signal {
                Signal::Down { monitor, reason, .. } => format!("DOWN {monitor} {reason}"),
                Signal::Exit { reason, .. } => format!("EXIT {reason}"),
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

    fn settle(&mut self) {
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
            Action::LogLevel { process, level } => {
                let label = self.label(process).unwrap_or_default();
                self.trace.push(format!("log level {level} {label}"));
            }
            Action::Kill(process) => {
                if let Some(label) = self.label(process) {
                    self.trace.push(format!("kill {label}"));
                    self.dies(process, Status::Signalled(9));
                }
            }
            Action::Exit(process) => {
                let Some(label) = self.label(process) else { return };
                self.trace.push(format!("exit {label}"));
                if !self.stubborn.contains(&label) {
                    self.dies(process, Status::Exited(0));
                }
            }
            Action::Recycle(process) => {
                let Some(label) = self.label(process) else { return };
                self.trace.push(format!("recycle {label}"));
                if !self.stubborn.contains(&label) {
                    let state = Bytes::from_static(b"state");
                    self.core.handle_event(self.now, Event::HandedOver { process, state });
                    self.dies(process, Status::Exited(0));
                }
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
                    self.core.handle_event(self.now, Event::Reported { process, reason });
                    self.dies(process, Status::Exited(0));
                }
            }
            Action::Deliver { process, delivery, payload, .. } => {
                if let Some(process) = self.processes.get_mut(&process) {
                    process.delivered.push((delivery, payload));
                }
            }
            Action::Reply { to, call, outcome, .. } => self.replies.push((to, call, outcome)),
            Action::Answer { answer, .. } => self.answers.push(answer),
            Action::Gate { to, gate, .. } => self.trace.push(format!("gate {to:?} {gate:?}")),
            Action::Cancel { process, .. } => {
                let label = self.label(process).unwrap_or_default();
                self.trace.push(format!("cancel {label}"));
            }
            Action::Report(certificate) => {
                let next = match certificate.next {
                    Next::Restarts { after_ms: 0 } => "Restarts".to_owned(),
                    next => format!("{next:?}"),
                };
                self.trace.push(format!("report {} {next}", certificate.actor));
            }
            Action::DeadLetter(letter) => {
                self.trace.push(format!("dead letter {} to {} {:?}", letter.method, letter.to, letter.cause));
            }
            Action::Entry(change) => self.note(&change.record()),
            Action::NodeUp => self.trace.push("up".into()),
            Action::NodeFailed { child, reason, .. } => self.trace.push(format!("failed {child}: {reason}")),
            Action::NodeStopping => {}
            Action::NodeEnded(NodeEnd::Clean) => self.trace.push("ended".into()),
            Action::NodeEnded(NodeEnd::GaveUp { .. }) => self.trace.push("gave up".into()),
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
        let process = Process { label: label.clone(), page: Snapshot::default(), delivered: Vec::new() };
        assert!(!self.is_running(&label), "two incarnations of {label} at once");
        self.processes.insert(launch.process, process);
        if self.slow.contains(&label) {
            return;
        }
        match self.fails.get_mut(&label) {
            Some(left) if *left > 0 => {
                *left -= 1;
                let report = Event::Reported { process: launch.process, reason: crash() };
                self.core.handle_event(self.now, report);
                self.dies(launch.process, Status::Exited(0));
            }
            _ => {
                let started = if self.ignoring.contains(&label) { Started::Ignore } else { Started::Ready };
                let event = Event::Started { process: launch.process, started, info: Bytes::new() };
                self.core.handle_event(self.now, event);
                if started == Started::Ignore {
                    let report = Event::Reported { process: launch.process, reason: ExitReason::Normal };
                    self.core.handle_event(self.now, report);
                    self.dies(launch.process, Status::Exited(0));
                }
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
    Envelope {
        to,
        kind,
        method: method.into(),
        form: Form::Arguments,
        codec: Codec::Pickle,
        lane: Lane::Normal,
        deadline_ms: None,
        buffers: None,
        trace: None,
    }
}

/// The reason of a call that failed with the death of its callee.
pub(crate) fn died_of(outcome: &Outcome) -> Option<&ExitReason> {
    match outcome {
        Outcome::Failed(CallFailure::Died(certificate)) => Some(&certificate.reason),
        _ => None,
    }
}
