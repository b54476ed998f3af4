//! An actor's one connection to its supervisor, shared by all threads of the process.
//!
//! There is no reader thread (a native thread would make every `fork` in an actor warn): whoever waits for something
//! reads, one thread at a time, and files what comes for the others. The lock is never held while a thread waits in
//! the kernel or for the interpreter, so that neither can deadlock with it. It must not know Python objects: payloads
//! are bytes here, and [`crate::codec`] makes them.

use std::collections::{HashMap, HashSet, VecDeque};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use rebeam_protocol::control::Answer;
use rebeam_protocol::exit::ExitReason;
use rebeam_protocol::handshake::{Features, Hello, MAGIC, VERSION, Welcome};
use rebeam_protocol::id::{CallId, RequestId, Seq};
use rebeam_protocol::message::{Address, Delivery, Form, Lane, Outcome, Signal, ToSupervisor, ToWorker};
use rebeam_protocol::page::SIZE;

use crate::status_page::StatusPage;
use crate::wire::{NoRead, NoWrite, Payload, Reader, Wait, Writer};

/// Acknowledge casts after so many, or so many bytes: a quarter of the supervisor's window.
const ACK_AFTER: usize = 16;
const ACK_BYTES: usize = 128 * 1024;

/// The first frame's bound, before the supervisor has said its own.
const WELCOME_LIMIT: usize = 256 * 1024 * 1024;

/// What an actor's main loop takes next.
pub(crate) enum Letter {
    Message(Box<Delivery>, Payload),
    Stop(ExitReason),
    /// An exit signal that is not trapped.
    Exit,
    /// Hand the state over and end.
    Recycle,
}

/// Why a wait ended without what was waited for.
#[derive(Debug)]
pub(crate) enum Unmet {
    TimedOut,
    /// A signal came: let Python handle it and wait again.
    Interrupted,
    /// The supervisor is gone; so will this process be.
    Closed,
}

pub(crate) struct Channel {
    pub(crate) welcome: Welcome,
    pub(crate) page: StatusPage,
    /// Where the fault handler writes stacks: the room behind the page, by a descriptor with a place of its own.
    pub(crate) stacks: Option<OwnedFd>,
    lifeline: OwnedFd,
    socket: OwnedFd,
    /// `None` while a thread writes.
    writer: Mutex<Option<Writer>>,
    writer_free: Condvar,
    state: Mutex<State>,
    wake: Condvar,
    next_id: AtomicU64,
}

struct State {
    /// `None` while a thread reads.
    reader: Option<Reader>,
    /// What is for the process rather than for the actor, and does not wait while the actor is suspended.
    system: VecDeque<Letter>,
    high: VecDeque<Letter>,
    normal: VecDeque<Letter>,
    replies: HashMap<CallId, Option<(Outcome, Payload)>>,
    answers: HashMap<RequestId, Option<(Answer, Payload)>>,
    is_suspended: bool,
    shut: HashSet<Address>,
    is_closed: bool,
    done: Vec<Seq>,
    done_bytes: usize,
}

impl Channel {
    /// Shakes hands; gives the channel and the start payload.
    pub(crate) fn open(socket: OwnedFd, page: &OwnedFd, lifeline: OwnedFd) -> io::Result<(Self, Payload)> {
        crate::lifeline::tie(&lifeline)?;
        // Without /proc there are no stacks of faults; everything else works.
        let stacks = open_stacks(page).ok();
        let page = StatusPage::map(page)?;
        let mut reader = Reader::new(&socket, WELCOME_LIMIT);
        let frame = loop {
            match reader.next_frame::<ToWorker>().map_err(io::Error::other)? {
                Some(frame) => break frame,
                None => match reader.read(None) {
                    Ok(()) | Err(NoRead::Interrupted | NoRead::TimedOut) => {}
                    Err(NoRead::Closed(error)) => return Err(error),
                },
            }
        };
        let ToWorker::Welcome(welcome) = frame.header else {
            return Err(io::Error::other("the first frame is not a handshake"));
        };
        welcome.check().map_err(io::Error::other)?;
        reader.set_limit(welcome.max_frame as usize);
        let channel = Channel {
            page,
            stacks,
            lifeline,
            writer: Mutex::new(Some(Writer::new(&socket, welcome.max_frame as usize))),
            writer_free: Condvar::new(),
            socket,
            welcome,
            state: Mutex::new(State {
                reader: Some(reader),
                system: VecDeque::new(),
                high: VecDeque::new(),
                normal: VecDeque::new(),
                replies: HashMap::new(),
                answers: HashMap::new(),
                is_suspended: false,
                shut: HashSet::new(),
                is_closed: false,
                done: Vec::new(),
                done_bytes: 0,
            }),
            wake: Condvar::new(),
            next_id: AtomicU64::new(1),
        };
        let hello = Hello { magic: MAGIC, version: VERSION, features: Features::default(), os_pid: std::process::id() };
        channel.send(&ToSupervisor::Hello(hello), &[], |wait| wait()).map_err(|error| match error {
            NoWrite::Closed(error) => error,
            NoWrite::Frame(error) => io::Error::other(error),
        })?;
        Ok((channel, frame.payload))
    }

    /// Sends a frame; when it returns, the frame is where a SIGKILL of this process cannot lose it (MAP-03).
    pub(crate) fn send(
        &self,
        message: &ToSupervisor,
        payload: &[u8],
        blocking: impl Fn(Wait<'_>) -> io::Result<()>,
    ) -> Result<(), NoWrite> {
        let mut writer = self.writer().take();
        if writer.is_none() {
            let mut wait = || {
                let free = self.writer_free.wait_while(self.writer(), |writer| writer.is_none());
                writer = free.unwrap_or_else(PoisonError::into_inner).take();
                Ok(())
            };
            blocking(&mut wait).map_err(NoWrite::Closed)?;
        }
        let Some(mut writer) = writer else { return Err(NoWrite::Closed(io::ErrorKind::BrokenPipe.into())) };
        let result = writer.write(message, payload, &blocking);
        *self.writer() = Some(writer);
        self.writer_free.notify_one();
        result
    }

    fn writer(&self) -> MutexGuard<'_, Option<Writer>> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A number for a new call or request.
    pub(crate) fn next_id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn expect_reply(&self, call: CallId) {
        self.state().replies.insert(call, None);
    }

    pub(crate) fn expect_answer(&self, request: RequestId) {
        self.state().answers.insert(request, None);
    }

    pub(crate) fn forget_reply(&self, call: CallId) {
        self.state().replies.remove(&call);
    }

    pub(crate) fn forget_answer(&self, request: RequestId) {
        self.state().answers.remove(&request);
    }

    pub(crate) fn wait_reply(&self, call: CallId, until: Option<Instant>) -> Result<(Outcome, Payload), Unmet> {
        self.wait(until, |state| state.replies.get_mut(&call).and_then(Option::take))
    }

    pub(crate) fn wait_answer(&self, request: RequestId, until: Option<Instant>) -> Result<(Answer, Payload), Unmet> {
        self.wait(until, |state| state.answers.get_mut(&request).and_then(Option::take))
    }

    pub(crate) fn wait_letter(&self, until: Option<Instant>) -> Result<Letter, Unmet> {
        self.wait(until, State::take_letter)
    }

    /// The next letter if one has come already; looks for more first if the supervisor asked for it.
    pub(crate) fn try_letter(&self) -> Option<Letter> {
        self.look_if_asked();
        self.state().take_letter()
    }

    /// From now on only what is for the process is taken, or everything again.
    pub(crate) fn set_suspended(&self, is_suspended: bool) {
        self.page.set_suspended(is_suspended);
        self.state().is_suspended = is_suspended;
    }

    /// Takes out the first plain message from place `from` on, to be looked at; gives its place, too.
    pub(crate) fn take_plain(&self, from: usize) -> Option<(usize, Box<Delivery>, Payload)> {
        self.look_if_asked();
        let mut state = self.state();
        let is_plain = |letter: &Letter| match letter {
            Letter::Message(delivery, _) => delivery.method == "handle_info" && delivery.form != Form::Arguments,
            _ => false,
        };
        let place = state.normal.iter().skip(from).position(is_plain)? + from;
        match state.normal.remove(place)? {
            Letter::Message(delivery, payload) => Some((place, delivery, payload)),
            _ => None,
        }
    }

    /// Puts a message back that was taken to be looked at.
    pub(crate) fn put_back(&self, place: usize, delivery: Box<Delivery>, payload: Payload) {
        self.state().normal.insert(place, Letter::Message(delivery, payload));
    }

    /// How many letters lie here in turn.
    pub(crate) fn waiting(&self) -> usize {
        self.state().normal.len()
    }

    /// Waits until more than so many letters lie here in turn.
    pub(crate) fn wait_more(&self, than: usize, until: Option<Instant>) -> Result<(), Unmet> {
        self.wait(until, |state| (state.normal.len() > than).then_some(()))
    }

    /// Takes notices of a monitor out of what waits here; gives their numbers.
    pub(crate) fn take_back_down(&self, of: u64) -> Vec<Seq> {
        let mut taken = Vec::new();
        self.state().normal.retain(|letter| {
            let Letter::Message(delivery, _) = letter else { return true };
            let Form::Signal(signal) = &delivery.form else { return true };
            let is_it = matches!(**signal, Signal::Down { monitor, .. } if monitor == of);
            if is_it {
                taken.push(delivery.seq);
            }
            !is_it
        });
        taken
    }

    fn look_if_asked(&self) {
        if !self.page.take_attention() {
            return;
        }
        let mut state = self.state();
        if let Some(mut reader) = state.reader.take() {
            if matches!(reader.read_now(), Err(NoRead::Closed(_))) {
                state.is_closed = true;
            }
            state.file(&mut reader);
            state.reader = Some(reader);
            self.wake.notify_all();
        }
    }

    /// Waits until mail to `to` is let in.
    pub(crate) fn wait_open(&self, to: &Address, until: Option<Instant>) -> Result<(), Unmet> {
        self.wait(until, |state| (!state.shut.contains(to)).then_some(()))
    }

    /// Whether mail to `to` has to wait; reads the channel first if the supervisor asked for it.
    pub(crate) fn is_shut(&self, to: &Address) -> bool {
        self.look_if_asked();
        self.state().shut.contains(to)
    }

    /// Notes a message done without an answer; gives what to acknowledge once it is worth a frame.
    pub(crate) fn note_done(&self, seq: Seq, bytes: usize) -> Option<Vec<Seq>> {
        let mut state = self.state();
        state.done.push(seq);
        state.done_bytes += bytes;
        let is_due = state.done.len() >= ACK_AFTER || state.done_bytes >= ACK_BYTES;
        is_due.then(|| {
            state.done_bytes = 0;
            std::mem::take(&mut state.done)
        })
    }

    /// What was done and not acknowledged yet.
    pub(crate) fn take_done(&self) -> Option<Vec<Seq>> {
        let mut state = self.state();
        state.done_bytes = 0;
        Some(std::mem::take(&mut state.done)).filter(|done| !done.is_empty())
    }

    /// Closes the descriptors of this process, whose channel is its parent's.
    pub(crate) fn close_descriptors(&self) {
        for fd in [&self.socket, &self.lifeline] {
            // SAFETY: nothing in this process uses them again: every way to them asks first whether it is a helper.
            unsafe { libc::close(fd.as_raw_fd()) };
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `take` gives something, reading the channel unless another thread does so already.
    fn wait<T>(&self, until: Option<Instant>, mut take: impl FnMut(&mut State) -> Option<T>) -> Result<T, Unmet> {
        let mut state = self.state();
        loop {
            if let Some(found) = take(&mut state) {
                return Ok(found);
            }
            if state.is_closed {
                return Err(Unmet::Closed);
            }
            if until.is_some_and(|until| Instant::now() >= until) {
                return Err(Unmet::TimedOut);
            }
            let Some(mut reader) = state.reader.take() else {
                state = match until {
                    None => self.wake.wait(state).unwrap_or_else(PoisonError::into_inner),
                    Some(until) => {
                        let left = until.saturating_duration_since(Instant::now());
                        self.wake.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
                    }
                };
                continue;
            };
            drop(state);
            let result = reader.read(until);
            state = self.state();
            state.file(&mut reader);
            state.reader = Some(reader);
            if matches!(result, Err(NoRead::Closed(_))) {
                state.is_closed = true;
            }
            // Others may have got what they wait for, or have to take over the reading.
            self.wake.notify_all();
            if matches!(result, Err(NoRead::Interrupted)) {
                return Err(Unmet::Interrupted);
            }
        }
    }
}

/// The file of the page once more, with a place of its own, behind the page.
fn open_stacks(page: &OwnedFd) -> io::Result<OwnedFd> {
    let mut file = std::fs::OpenOptions::new().write(true).open(format!("/proc/self/fd/{}", page.as_raw_fd()))?;
    file.seek(SeekFrom::Start(SIZE as u64))?;
    Ok(file.into())
}

impl State {
    fn take_letter(&mut self) -> Option<Letter> {
        if let Some(letter) = self.system.pop_front() {
            return Some(letter);
        }
        if self.is_suspended {
            // A stop in its turn comes through: nobody is to be killed for being suspended.
            let place = self.normal.iter().position(|letter| matches!(letter, Letter::Stop(_)))?;
            return self.normal.remove(place);
        }
        self.high.pop_front().or_else(|| self.normal.pop_front())
    }

    /// Files every whole frame that was read.
    fn file(&mut self, reader: &mut Reader) {
        loop {
            match reader.next_frame::<ToWorker>() {
                Ok(None) => return,
                Ok(Some(frame)) => self.file_one(frame.header, frame.payload),
                Err(_) => {
                    self.is_closed = true;
                    return;
                }
            }
        }
    }

    fn file_one(&mut self, message: ToWorker, payload: Payload) {
        match message {
            ToWorker::Deliver(delivery) => {
                let queue = match delivery.lane {
                    Lane::System => &mut self.system,
                    Lane::High => &mut self.high,
                    Lane::Normal => &mut self.normal,
                };
                queue.push_back(Letter::Message(Box::new(delivery), payload));
            }
            ToWorker::Reply { call, outcome } => {
                // A reply that nobody waits for any more is dropped here (MAP-13).
                if let Some(slot) = self.replies.get_mut(&call) {
                    *slot = Some((outcome, payload));
                }
            }
            ToWorker::Answer { request, answer } => {
                if let Some(slot) = self.answers.get_mut(&request) {
                    *slot = Some((answer, payload));
                }
            }
            ToWorker::Stop { reason, urgent: true } => self.system.push_back(Letter::Stop(reason)),
            ToWorker::Stop { reason, urgent: false } => self.normal.push_back(Letter::Stop(reason)),
            ToWorker::Exit => self.system.push_front(Letter::Exit),
            ToWorker::Recycle => self.system.push_back(Letter::Recycle),
            ToWorker::Gate { to, open: true } => {
                self.shut.remove(&to);
            }
            ToWorker::Gate { to, open: false } => {
                self.shut.insert(to);
            }
            ToWorker::Welcome(_) => {}
        }
    }
}
