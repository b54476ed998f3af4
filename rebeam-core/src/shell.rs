//! Carrying out what the core wants: the same for processes and for the threads of a test.
//!
//! A [`Shell`] is what can start a worker, write to it and kill it. [`carry_out`] drains the actions of its core and says
//! which frame each of them is and whether the worker has to look at its channel at once; [`hear`] is the way back.
//! So a new message of the protocol is sent and understood here, once for all shells. No I/O stands here.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rebeam_protocol::address::{Address, Caller, LONGEST_NAME};
use rebeam_protocol::certificate::{Certificate, Next};
use rebeam_protocol::id::{CallId, ProcessId, RequestId, Version};
use rebeam_protocol::message::{DeadLetter, Lane, Outcome};
use rebeam_protocol::outside::{Answer, Reloaded};
use rebeam_protocol::page::{self, Snapshot};
use rebeam_protocol::process::ProcessRequest;
use rebeam_protocol::table::{RowWatch, TableRequest};
use rebeam_protocol::text::shortened;
use rebeam_protocol::worker::{Buffers, ToSupervisor, ToWorker};

use crate::core::Core;
use crate::event::{Action, Event, Launch, LaunchError, NodeEvent, Recipient, Ticket};
use crate::registries::EntryChange;
use crate::tracing::Span;

/// A frame on its way to a worker.
#[derive(Debug)]
pub struct Frame {
    /// The header.
    pub message: ToWorker,
    /// What follows it.
    pub payload: Bytes,
    /// Large buffers that go with it; where the worker finds them is filled in by the shell.
    pub buffers: Option<Ticket>,
    /// What the worker is asked to look at once the frame is there: bits of [`page`]'s `attention`, or 0.
    pub attention: u32,
}

impl Frame {
    /// Without a payload, in turn.
    pub fn of(message: ToWorker) -> Self {
        Frame { message, payload: Bytes::new(), buffers: None, attention: 0 }
    }

    fn urgent(message: ToWorker) -> Self {
        Frame { attention: page::LOOK, ..Frame::of(message) }
    }
}

/// What carries out the decisions of a core.
pub trait Shell {
    /// The core.
    fn core(&mut self) -> &mut Core;

    /// The time since the node's start.
    fn now(&self) -> Duration;

    /// Makes a worker.
    ///
    /// # Errors
    /// Why not; the core is told so.
    fn launch(&mut self, launch: Launch) -> Result<(), LaunchError>;

    /// Writes to a worker, without waiting for it.
    fn write(&mut self, process: ProcessId, frame: Frame);

    /// Kills a worker and its whole process group.
    fn kill(&mut self, process: ProcessId);

    /// The status page of a worker, and the time on its clock in nanoseconds.
    fn page(&self, process: ProcessId) -> Option<(Snapshot, u64)>;

    /// Has a worker write its stacks.
    fn dump_stacks(&mut self, process: ProcessId);

    /// Gives the answer to a call to the client that made it.
    fn reply_outside(&mut self, client: u64, call: CallId, outcome: Outcome, payload: Bytes);

    /// Answers the request with this number.
    fn answer_outside(&mut self, asker: u64, answer: Answer);

    /// Writes a record of the ledger, before anything that follows is done.
    fn note_entry(&mut self, change: &EntryChange);

    /// Has the store tell of rows that change, and answers this request of a worker by that.
    fn watch_rows(&mut self, from: Option<(ProcessId, RequestId)>, rows: RowWatch);

    /// Rows are watched no longer; see [`Action::UnwatchRows`].
    fn unwatch_rows(&mut self, watch: u64, heir: Option<u64>, has_missed: bool);

    /// Reports that an actor could not be started for want of a resource, and is tried again after that time.
    fn not_launched(&mut self, label: &str, error: &str, after: Duration);

    /// Reports what became of a reload.
    fn reloaded(&mut self, reloaded: Reloaded);

    /// Lets go of every version of the code but these.
    fn keep_versions(&mut self, needed: &[Version]);

    /// Reports an end that nobody ordered.
    fn report(&mut self, certificate: &Arc<Certificate>, next: Next);

    /// Reports a message that nobody handled.
    fn dead_letter(&mut self, letter: DeadLetter);

    /// Something that is traced was done.
    fn span(&mut self, span: Span);

    /// The node as a whole has come up or goes down.
    fn node(&mut self, event: NodeEvent);
}

/// Tells the core of a shell something. [`carry_out`] has to follow.
pub fn tell(shell: &mut (impl Shell + ?Sized), event: Event) {
    let now = shell.now();
    shell.core().handle_event(now, event);
}

/// Does what the core of a shell wants, until it wants nothing more.
pub fn carry_out(shell: &mut (impl Shell + ?Sized)) {
    while let Some(action) = shell.core().poll_action() {
        act(shell, action);
    }
}

fn act(shell: &mut (impl Shell + ?Sized), action: Action) {
    match action {
        Action::Launch(launch) => {
            let process = launch.process;
            if let Err(error) = shell.launch(launch) {
                tell(shell, Event::LaunchFailed { process, error });
            }
        }
        Action::Kill(process) => shell.kill(process),
        Action::Deliver { process, delivery, payload, buffers } => {
            let attention = if delivery.head.lane == Lane::Normal { 0 } else { page::LOOK };
            shell.write(process, Frame { message: ToWorker::Deliver(delivery), payload, buffers, attention });
        }
        Action::Reply { to: Recipient::Worker(process), call, outcome, payload, buffers } => {
            let message = ToWorker::Reply { call, outcome, buffers: None };
            shell.write(process, Frame { message, payload, buffers, attention: 0 });
        }
        Action::Reply { to: Recipient::Outside(client), call, outcome, payload, .. } => {
            shell.reply_outside(client, call, outcome, payload);
        }
        Action::Answer { process, request, answer, payload } => {
            let message = ToWorker::Answer { request, answer };
            shell.write(process, Frame { payload, ..Frame::of(message) });
        }
        Action::WatchRows { from, rows } => shell.watch_rows(from, rows),
        Action::UnwatchRows { watch, heir, has_missed } => shell.unwatch_rows(watch, heir, has_missed),
        Action::AnswerOutside { asker, answer } => shell.answer_outside(asker, answer),
        Action::Stop { process, reason, urgent } => {
            let message = ToWorker::Stop { reason, urgent };
            shell.write(process, if urgent { Frame::urgent(message) } else { Frame::of(message) });
        }
        Action::TimeLeft { process, time } => {
            shell.write(process, Frame::urgent(ToWorker::TimeLeft { ms: time.as_millis() as u64 }));
        }
        Action::Exit(process) => {
            let attention = page::LOOK | page::EXIT;
            shell.write(process, Frame { attention, ..Frame::of(ToWorker::Exit) });
        }
        Action::Recycle(process) => shell.write(process, Frame::urgent(ToWorker::Recycle)),
        Action::Move(process) => {
            let grace_ms = shell.core().move_grace().as_millis() as u64;
            shell.write(process, Frame::urgent(ToWorker::Move { grace_ms }));
        }
        Action::GoOn(process) => shell.write(process, Frame::urgent(ToWorker::GoOn)),
        Action::Leave(process) => shell.write(process, Frame::urgent(ToWorker::Leave)),
        Action::Reloaded(reloaded) => shell.reloaded(*reloaded),
        Action::Needed(versions) => shell.keep_versions(&versions),
        Action::Cancel { process, seq, even_if_begun } => {
            shell.write(process, Frame::urgent(ToWorker::Cancel { seq, even_if_begun }));
        }
        Action::Gate { process, gate } => shell.write(process, Frame::urgent(ToWorker::Gate(gate))),
        Action::LogLevel { process, level } => shell.write(process, Frame::of(ToWorker::LogLevel { level })),
        Action::Look(process) => {
            if let Some((page, clock_ns)) = shell.page(process) {
                tell(shell, Event::Looked { process, page, clock_ns });
            }
        }
        Action::DumpStacks(process) => shell.dump_stacks(process),
        Action::NotLaunched { label, error, after } => shell.not_launched(&label, &error, after),
        Action::Report { certificate, next } => shell.report(&certificate, next),
        Action::Entry(change) => shell.note_entry(&change),
        Action::DeadLetter(letter) => shell.dead_letter(letter),
        Action::Span(span) => shell.span(*span),
        Action::Node(event) => shell.node(event),
    }
}

/// What a frame of a worker is.
#[derive(Debug)]
pub enum Heard {
    /// For the core.
    Event(Event),
    /// A caller waits no longer: what its callee is doing has to be looked up for [`Event::Abandoned`].
    Abandon(CallId),
    /// For the store of tables.
    Table {
        /// The worker's number for the request.
        request: RequestId,
        /// What it wants.
        body: TableRequest,
        /// An operation.
        payload: Bytes,
    },
    /// For the shell alone: the handshake, log records, and what comes with memory.
    Shell(ToSupervisor),
}

/// What a frame of a worker is. `ticket` looks up its large buffers.
///
/// # Errors
/// How the worker broke the protocol.
pub fn hear(
    process: ProcessId,
    message: ToSupervisor,
    payload: Bytes,
    ticket: impl FnOnce(Buffers) -> Result<Ticket, String>,
) -> Result<Heard, String> {
    let caller = Caller::Actor(process.pid);
    Ok(Heard::Event(match message {
        ToSupervisor::Send(envelope) => {
            check_length(&envelope.to, &envelope.head.method)?;
            let buffers = envelope.buffers.map(ticket).transpose()?;
            Event::Sent { process, envelope, payload, buffers }
        }
        ToSupervisor::Reply(reply) => {
            let buffers = reply.buffers.map(ticket).transpose()?;
            Event::Replied { process, reply, payload, buffers }
        }
        ToSupervisor::Ack { done } => Event::Acked { process, done },
        ToSupervisor::Cancel { call } => Event::Cancelled { caller, call },
        ToSupervisor::Await { call, waits } => Event::Awaited { process, call, waits },
        ToSupervisor::AwaitRoom { call, to, method, waits } => {
            check_length(&to, &method)?;
            Event::AwaitsRoom { process, call, to, method, waits }
        }
        ToSupervisor::Started(started) => Event::Started { process, started, info: payload },
        ToSupervisor::WantMore { more } => Event::WantsMore { process, more },
        ToSupervisor::CannotMove { why, is_failure } => {
            Event::CannotMove { process, why: shortened(why, LONGEST_WHY), is_failure }
        }
        ToSupervisor::Exit { reason, message } => Event::Reported { process, reason: reason.bounded(), message },
        ToSupervisor::Readiness { not_ready } => {
            let not_ready = not_ready.map(|why| why.chars().take(LONGEST_REASON).collect());
            Event::Readiness { process, not_ready }
        }
        ToSupervisor::Request { request, body: ProcessRequest::Table(body) } => {
            return Ok(Heard::Table { request, body, payload });
        }
        ToSupervisor::Request { request, body } => {
            match &body {
                ProcessRequest::SendAfter { to, method, .. } => check_length(to, method)?,
                ProcessRequest::WaitFor { to, .. } => check_length(to, "")?,
                _ => {}
            }
            Event::Asked { process, request, body, payload }
        }
        ToSupervisor::Abandon { call } => return Ok(Heard::Abandon(call)),
        other @ (ToSupervisor::Hello(_)
        | ToSupervisor::HandOver { .. }
        | ToSupervisor::Log(_)
        | ToSupervisor::Arena { .. }
        | ToSupervisor::ArenaGone { .. }
        | ToSupervisor::Released { .. }) => return Ok(Heard::Shell(other)),
    }))
}

/// The longest reason why an actor cannot go over to other code, in bytes.
const LONGEST_WHY: usize = 4000;

/// The longest reason why an actor is not ready, in characters: it is kept and shown.
const LONGEST_REASON: usize = 1000;

fn check_length(to: &Address, method: &str) -> Result<(), String> {
    match to.name_length().max(method.len()) {
        longest if longest > LONGEST_NAME => Err(format!("a name or method of {longest} bytes")),
        _ => Ok(()),
    }
}
