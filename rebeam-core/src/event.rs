//! What the core is told, and what it wants done.

use std::any::Any;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rebeam_protocol::address::{Address, Caller};
use rebeam_protocol::certificate::{Certificate, Next};
use rebeam_protocol::exit::ExitReason;
use rebeam_protocol::handshake::{MAGIC, Secret, VERSION, Welcome};
use rebeam_protocol::id::{ActorId, CallId, ProcessId, RequestId, Seq, Version};
use rebeam_protocol::message::{DeadLetter, Outcome, Waits};
use rebeam_protocol::outside::{Answer, Reloaded, TreeRequest};
use rebeam_protocol::page::Snapshot;
use rebeam_protocol::process::{ProcessAnswer, ProcessRequest};
use rebeam_protocol::spec::{ActorSpec, ChildSpec, SupervisorSpec};
use rebeam_protocol::table::RowWatch;
use rebeam_protocol::worker::{Delivery, Done, Envelope, Gate, Reply, Started};

use crate::registries::EntryChange;
use crate::tracing::Span;

/// What happened.
#[derive(Debug)]
pub enum Event {
    /// Start the tree.
    Boot,
    /// A worker's `init` has returned.
    Started {
        /// Whose.
        process: ProcessId,
        /// How.
        started: Started,
        /// What it hands back for whoever starts it.
        info: Bytes,
    },
    /// A worker could not be made.
    LaunchFailed {
        /// The one that was asked for.
        process: ProcessId,
        /// Why not.
        error: LaunchError,
    },
    /// A worker sends a message.
    Sent {
        /// Who sends.
        process: ProcessId,
        /// The head.
        envelope: Envelope,
        /// The content.
        payload: Bytes,
        /// Its large buffers.
        buffers: Option<Ticket>,
    },
    /// A client of the control socket calls or casts.
    SentFromOutside {
        /// The client.
        client: u64,
        /// The head.
        envelope: Envelope,
        /// The content.
        payload: Bytes,
    },
    /// A client of the control socket has something to do that only an actor can.
    WantsGateway {
        /// Its number.
        client: u64,
    },
    /// A client of the control socket is gone, and with it whoever waited for answers.
    OutsideGone {
        /// The client.
        client: u64,
    },
    /// A worker answers a call.
    Replied {
        /// Who answers.
        process: ProcessId,
        /// The head.
        reply: Reply,
        /// The content.
        payload: Bytes,
        /// Its large buffers.
        buffers: Option<Ticket>,
    },
    /// A worker is done with messages that owe no answer.
    Acked {
        /// Who.
        process: ProcessId,
        /// Which.
        done: Vec<Done>,
    },
    /// A caller waits no longer.
    Abandoned {
        /// Who called.
        caller: Caller,
        /// Which call.
        call: CallId,
        /// The callee's page, if it has a process, and the time on its clock, in nanoseconds.
        page: Option<(Snapshot, u64)>,
    },
    /// A caller does not want its answer any more.
    Cancelled {
        /// Who called.
        caller: Caller,
        /// Which call.
        call: CallId,
    },
    /// A caller waits from now on for a call that it made without waiting.
    Awaited {
        /// Who.
        process: ProcessId,
        /// Which call.
        call: CallId,
        /// Who of it waits.
        waits: Waits,
    },
    /// A sender waits until there is room in a mailbox.
    AwaitsRoom {
        /// Who.
        process: ProcessId,
        /// Its number for the wait.
        call: CallId,
        /// Where there is none.
        to: Address,
        /// What is to be sent.
        method: String,
        /// Who of it waits.
        waits: Waits,
    },
    /// A worker's final report.
    Reported {
        /// Whose.
        process: ProcessId,
        /// Why it ends.
        reason: ExitReason,
        /// The message whose handler has failed, if that is why.
        message: Option<Seq>,
    },
    /// A worker has handed its state over, for the next process of its incarnation.
    HandedOver(Box<HandedOver>),
    /// A worker cannot hand its state over to other code, and goes on.
    CannotMove {
        /// Who.
        process: ProcessId,
        /// Why not.
        why: String,
        /// Whether a hook has failed: it stays with its code then, rather than start over.
        is_failure: bool,
    },
    /// There is a new version of the code: what runs the old one is to go over to it.
    NewCode(Box<NewCode>),
    /// A worker looks for a message that is not among those that were handed over.
    WantsMore {
        /// Who.
        process: ProcessId,
        /// How many more it wants to see.
        more: u64,
    },
    /// What [`Action::Look`] found.
    Looked {
        /// At whom.
        process: ProcessId,
        /// Its page.
        page: Snapshot,
        /// The time on the page's clock, in nanoseconds.
        clock_ns: u64,
    },
    /// A worker uses as much memory as it may, or more.
    OverMemory {
        /// Who.
        process: ProcessId,
        /// How much, in KiB of proportional set size.
        used_kib: u64,
    },
    /// The memory of the whole is nearly used up, and this worker uses the most of it.
    OutOfRoom {
        /// Who.
        process: ProcessId,
        /// How much, in KiB of proportional set size.
        used_kib: u64,
        /// How much all may use, in KiB.
        limit_kib: u64,
    },
    /// An actor says whether it is ready.
    Readiness {
        /// Who.
        process: ProcessId,
        /// Why it is not; `None`: it is.
        not_ready: Option<String>,
    },
    /// A message is too large to be handed over.
    Undeliverable {
        /// To whom.
        process: ProcessId,
        /// Its number.
        seq: Seq,
        /// How large it is.
        error: String,
    },
    /// A worker does not read, and more waits to be written to it than may.
    ReadsNothing {
        /// Who.
        process: ProcessId,
        /// How much.
        bytes: u64,
    },
    /// The store tells of rows that are watched.
    RowsChanged {
        /// The watch's number.
        watch: u64,
        /// Encoded [`RowChanges`](rebeam_protocol::table::RowChanges).
        changes: Bytes,
        /// Whether the table is gone.
        is_last: bool,
    },
    /// The store does not tell of these rows.
    RowWatchFailed {
        /// The watch's number.
        watch: u64,
    },
    /// A worker has more of something than it may, which the shell counts.
    HoldsTooMuch {
        /// Who.
        process: ProcessId,
        /// What, in words.
        what: String,
    },
    /// A worker broke the protocol.
    Misbehaved {
        /// Who.
        process: ProcessId,
        /// How.
        complaint: String,
    },
    /// A process is gone: reaped, its channel read to the end, its page read.
    Died(Box<Death>),
    /// A worker asks something of the supervisor itself.
    Asked {
        /// Who asks.
        process: ProcessId,
        /// Its number for the request.
        request: RequestId,
        /// What.
        body: ProcessRequest,
        /// What came with it.
        payload: Bytes,
    },
    /// A client of the control socket asks something of the tree.
    AskedFromOutside {
        /// A number for the request.
        asker: u64,
        /// What.
        request: TreeRequest,
    },
    /// Stop the tree, in order.
    StopNode,
    /// The tree is being stopped: from now on nobody is waited for longer than this, in milliseconds.
    Hurry {
        /// The limit.
        limit_ms: u64,
    },
    /// Kill what is left.
    KillAll,
}

/// All that is known about the end of a process, in one event (design: "death is one event").
#[derive(Debug)]
pub struct Death {
    /// Which process.
    pub process: ProcessId,
    /// Its id for the system.
    pub os_pid: u32,
    /// What the system says about the end.
    pub status: Status,
    /// Whether the kernel's out-of-memory killer did it, by its own count.
    pub out_of_memory: bool,
    /// What it wrote about its stacks.
    pub stacks: String,
    /// What it had begun and done.
    pub page: Snapshot,
    /// The time on the page's clock, in nanoseconds.
    pub clock_ns: u64,
    /// The last lines of its output.
    pub last_output: Vec<String>,
    /// User and system time, in milliseconds.
    pub cpu_ms: u64,
    /// Largest resident size, in KiB.
    pub peak_kib: u64,
}

impl Death {
    /// An end of which nothing is known but how the system puts it: of a process that never was, or that left no trace.
    pub fn without_trace(process: ProcessId, status: Status) -> Self {
        Death {
            process,
            os_pid: 0,
            status,
            out_of_memory: false,
            stacks: String::new(),
            page: Snapshot::default(),
            clock_ns: 0,
            last_output: Vec::new(),
            cpu_ms: 0,
            peak_kib: 0,
        }
    }
}

/// Why a process could not be made.
#[derive(Debug)]
pub struct LaunchError {
    /// In words.
    pub text: String,
    /// What was to be made, if it failed for want of a resource (descriptors, processes, memory), and so may succeed later.
    pub again: Option<Box<Launch>>,
}

/// How the system says a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// By itself, with this code.
    Exited(i32),
    /// By this signal.
    Signalled(i32),
}

/// The state that a process has handed over.
#[derive(Debug)]
pub struct HandedOver {
    /// Whose.
    pub process: ProcessId,
    /// What the next one is to know.
    pub state: State,
    /// Whether `init` runs in the next one, too.
    pub runs_init: bool,
    /// How long it has taken no mail for that.
    pub took: Duration,
    /// Its page.
    pub page: Snapshot,
}

/// A new version of the application's code.
#[derive(Debug)]
pub struct NewCode {
    /// Which.
    pub version: Version,
    /// The tree as it declares it.
    pub tree: SupervisorSpec,
    /// How the gateway of a client is started; `None`: there is none.
    pub gateway: Option<ChildSpec>,
    /// Digests of all modules, each with what it imports. A test may name a class instead of a module.
    pub modules: HashMap<String, u64>,
    /// Whether all actors move, because something else has changed that belongs to the application.
    pub moves_all: bool,
    /// Whether code that has failed before is tried again.
    pub retries: bool,
}

/// What a process hands over to the next one of its incarnation. What it is, only the shell knows.
#[derive(Clone)]
pub struct State(Arc<dyn Any + Send + Sync>);

impl State {
    /// Of something that the shell keeps.
    pub fn new(hold: impl Any + Send + Sync) -> Self {
        State(Arc::new(hold))
    }

    /// What the shell keeps, if it is of this type.
    pub fn get<T: Any>(&self) -> Option<&T> {
        self.0.downcast_ref()
    }
}

impl PartialEq for State {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for State {}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("State")
    }
}

/// Large buffers of a message, which only the shell knows. They are held as long as the message is kept anywhere.
#[derive(Clone)]
pub struct Ticket {
    /// How many bytes they take.
    pub bytes: u64,
    /// What is let go with the last copy of this.
    pub hold: Arc<dyn Any + Send + Sync>,
}

impl std::fmt::Debug for Ticket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Ticket({} bytes)", self.bytes)
    }
}

/// What is to be done.
#[derive(Debug)]
pub enum Action {
    /// Make a worker for an incarnation.
    Launch(Launch),
    /// SIGKILL to the whole group of a process.
    Kill(ProcessId),
    /// Hand a message over.
    Deliver {
        /// To whom.
        process: ProcessId,
        /// The head.
        delivery: Delivery,
        /// The content.
        payload: Bytes,
        /// Its large buffers.
        buffers: Option<Ticket>,
    },
    /// Pass an answer on.
    Reply {
        /// To whom.
        to: Recipient,
        /// Their number for the call.
        call: CallId,
        /// How it went.
        outcome: Outcome,
        /// The content.
        payload: Bytes,
        /// Its large buffers.
        buffers: Option<Ticket>,
    },
    /// Ask a worker to end.
    Stop {
        /// Whom.
        process: ProcessId,
        /// The reason to end with.
        reason: ExitReason,
        /// Before what waits.
        urgent: bool,
    },
    /// Tell a worker that is being stopped how much time it has.
    TimeLeft {
        /// Whom.
        process: ProcessId,
        /// How much.
        time: Duration,
    },
    /// Tell a worker of an exit signal: it ends without `terminate`.
    Exit(ProcessId),
    /// Ask a worker to hand its state over and end.
    Recycle(ProcessId),
    /// Ask a worker to hand its state over and wait.
    Move(ProcessId),
    /// A worker that waits is to go on.
    GoOn(ProcessId),
    /// A worker that waits is to end: another has taken over.
    Leave(ProcessId),
    /// A reload is over.
    Reloaded(Box<Reloaded>),
    /// Of all versions of the code, these may still be needed.
    Needed(Vec<Version>),
    /// Tell a worker that nobody waits for the answer to a message any more.
    Cancel {
        /// Whom.
        process: ProcessId,
        /// Which message.
        seq: Seq,
        /// Whether its handler is cancelled if it was begun.
        even_if_begun: bool,
    },
    /// Read a worker's page and tell what is on it.
    Look(ProcessId),
    /// Have a worker write its stacks.
    DumpStacks(ProcessId),
    /// Have a worker log from this level on.
    LogLevel {
        /// Whom.
        process: ProcessId,
        /// `logging`'s number.
        level: u16,
    },
    /// Tell a sender whether there is room.
    Gate {
        /// The sender.
        process: ProcessId,
        /// Where, and whether there is.
        gate: Gate,
    },
    /// Answer a worker's request.
    Answer {
        /// To whom.
        process: ProcessId,
        /// Its number for the request.
        request: RequestId,
        /// What.
        answer: ProcessAnswer,
        /// What goes with it.
        payload: Bytes,
    },
    /// Have the store tell of rows that change, and answer a worker's request by that.
    WatchRows {
        /// Whose request, with its number.
        from: Option<(ProcessId, RequestId)>,
        /// Which rows.
        rows: RowWatch,
    },
    /// Rows are watched no longer.
    UnwatchRows {
        /// The watch's number.
        watch: u64,
        /// The watch that takes its place, of the same rows, and tells what this one has not.
        heir: Option<u64>,
        /// Whether what this one has told last was not seen.
        has_missed: bool,
    },
    /// Answer a client's request.
    AnswerOutside {
        /// The number of the request.
        asker: u64,
        /// What.
        answer: Answer,
    },
    /// Report that an actor could not be started for want of a resource.
    NotLaunched {
        /// Its name or path.
        label: String,
        /// What there was too little of.
        error: String,
        /// When it is tried again.
        after: Duration,
    },
    /// Report an end that nobody ordered, and what follows.
    Report {
        /// What is known about the end.
        certificate: Arc<Certificate>,
        /// What its supervisor made of it.
        next: Next,
    },
    /// The ledger is to say this, before anything that follows is done.
    Entry(EntryChange),
    /// A message was not handled by anyone and never will be.
    DeadLetter(DeadLetter),
    /// Something that is traced was done.
    Span(Box<Span>),
    /// The node as a whole comes up or goes down.
    Node(NodeEvent),
}

/// What becomes of a node as a whole.
#[derive(Debug)]
pub enum NodeEvent {
    /// Every supervisor and actor of the tree is up.
    Up,
    /// The tree did not come up; everything is down again.
    Failed {
        /// Path of the child that failed.
        child: String,
        /// Why.
        reason: ExitReason,
        /// What is known about its end.
        certificate: Option<Arc<Certificate>>,
    },
    /// The tree is being stopped, as ordered.
    Stopping,
    /// The root supervisor has ended; everything is down.
    Ended(NodeEnd),
}

/// How the root supervisor ended.
#[derive(Debug)]
pub enum NodeEnd {
    /// As ordered, or with its significant children.
    Clean,
    /// Its restart limit was used up.
    GaveUp {
        /// What is known about the end that used it up, or the limit of a supervisor below; and which limit that was.
        last: Option<(Arc<Certificate>, Next)>,
    },
}

/// Who gets an answer to a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recipient {
    /// A worker.
    Worker(ProcessId),
    /// A client of the control socket.
    Outside(u64),
}

/// What a launcher has to know.
#[derive(Clone, Debug)]
pub struct Launch {
    /// The process to make.
    pub process: ProcessId,
    /// Of which actor.
    pub actor: ActorId,
    /// Its name or path.
    pub label: String,
    /// Whether that is a registered name.
    pub named: bool,
    /// How often it was started before.
    pub restarts: u32,
    /// What to run.
    pub spec: Arc<ActorSpec>,
    /// The version of the code that it is to run.
    pub code: Version,
    /// The state that the last process of this incarnation handed over, and the version of its code.
    pub takes_over: Option<(State, Version)>,
    /// Whether it is to handle no mail until it is told to.
    pub is_suspended: bool,
    /// From which of `logging`'s numbers on it logs, if somebody has said.
    pub log_level: Option<u16>,
}

impl Launch {
    /// What the new process is told first, with what it starts from.
    pub fn welcome(&self, max_frame: usize, secret: Secret) -> (Welcome, Bytes) {
        let welcome = Welcome {
            magic: MAGIC,
            version: VERSION,
            process: self.process,
            actor: self.actor,
            label: self.label.clone(),
            named: self.named,
            restarts: self.restarts,
            code: self.code,
            is_suspended: self.is_suspended,
            takes_over: self.takes_over.as_ref().map(|(_, version)| *version),
            options: self.spec.process.clone(),
            concurrency: self.spec.concurrency,
            max_frame: max_frame as u64,
            log_level: self.log_level,
            secret,
        };
        (welcome, Bytes::copy_from_slice(&self.spec.start))
    }
}
