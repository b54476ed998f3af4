//! An actor's one connection to its supervisor, shared by all threads of the process.
//!
//! There is no reader thread (a native thread would make every `fork` in an actor warn): whoever waits for something
//! reads, one thread at a time, and files what comes for the others. The lock is never held while a thread waits in
//! the kernel or for the interpreter, so that neither can deadlock with it. It must not know Python objects: payloads
//! are bytes here, and [`crate::codec`] makes them.

use std::collections::{HashMap, HashSet, VecDeque};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use rebeam_protocol::control::Answer;
use rebeam_protocol::exit::ExitReason;
use rebeam_protocol::handshake::{Features, Hello, MAGIC, VERSION, Welcome};
use rebeam_protocol::id::{CallId, RequestId, Seq};
use rebeam_protocol::message::{Address, Delivery, Lane, Outcome, ToSupervisor, ToWorker};

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
    high: VecDeque<Letter>,
    normal: VecDeque<Letter>,
    replies: HashMap<CallId, Option<(Outcome, Payload)>>,
    answers: HashMap<RequestId, Option<Answer>>,
    shut: HashSet<Address>,
    is_closed: bool,
    done: Vec<Seq>,
    done_bytes: usize,
}

impl Channel {
    /// Shakes hands; gives the channel and the start payload.
    pub(crate) fn open(socket: OwnedFd, page: &OwnedFd, lifeline: OwnedFd) -> io::Result<(Self, Payload)> {
        crate::lifeline::tie(&lifeline)?;
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
            lifeline,
            writer: Mutex::new(Some(Writer::new(&socket, welcome.max_frame as usize))),
            writer_free: Condvar::new(),
            socket,
            welcome,
            state: Mutex::new(State {
                reader: Some(reader),
                high: VecDeque::new(),
                normal: VecDeque::new(),
                replies: HashMap::new(),
                answers: HashMap::new(),
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

    pub(crate) fn wait_answer(&self, request: RequestId, until: Option<Instant>) -> Result<Answer, Unmet> {
        self.wait(until, |state| state.answers.get_mut(&request).and_then(Option::take))
    }

    pub(crate) fn wait_letter(&self) -> Result<Letter, Unmet> {
        self.wait(None, State::take_letter)
    }

    /// The next letter if one has come already.
    pub(crate) fn try_letter(&self) -> Option<Letter> {
        self.state().take_letter()
    }

    /// Waits until mail to `to` is let in.
    pub(crate) fn wait_open(&self, to: &Address, until: Option<Instant>) -> Result<(), Unmet> {
        self.wait(until, |state| (!state.shut.contains(to)).then_some(()))
    }

    /// Whether mail to `to` has to wait; reads the channel first if the supervisor asked for it.
    pub(crate) fn is_shut(&self, to: &Address) -> bool {
        if self.page.take_attention() {
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

impl State {
    fn take_letter(&mut self) -> Option<Letter> {
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
                let queue = if delivery.lane == Lane::High { &mut self.high } else { &mut self.normal };
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
                    *slot = Some(answer);
                }
            }
            ToWorker::Stop { reason, urgent: true } => self.high.push_front(Letter::Stop(reason)),
            ToWorker::Stop { reason, urgent: false } => self.normal.push_back(Letter::Stop(reason)),
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
