//! A port's connection with the supervisor.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use rebeam_protocol::address::{Address, ReplyTo};
use rebeam_protocol::exit::ExitReason;
use rebeam_protocol::frame::HEAD_ROOM;
use rebeam_protocol::handshake::{Hello, MAGIC, VERSION, Welcome};
use rebeam_protocol::id::{ActorId, CallId, RequestId, Seq};
use rebeam_protocol::message::{Codec, Form, Head, Kind, Lane, LogRecord, Outcome, Waits};
use rebeam_protocol::process::ProcessRequest;
use rebeam_protocol::value::{self, Value};
use rebeam_protocol::worker::{Envelope, Gate, Reply, Started, ToSupervisor, ToWorker};
use rebeam_sys::frames::{FrameReader, Read, WriteQueue};
use rebeam_sys::socket;

use crate::marks::Marks;
use crate::pickle;

/// Until so many bytes wait to be written, more is taken from the program.
const MUCH: usize = 256 * 1024;

/// After so many messages the supervisor is asked something: before it answers it has said whose mailbox is full. It ends
/// who sends four times as many to one that it knows to be full.
const MANY: u32 = 1024;

pub(crate) struct Link {
    channel: OwnedFd,
    reader: FrameReader,
    out: WriteQueue,
    marks: Marks,
    most: usize,
    next: u64,
    /// Actors whose mailbox is full.
    shut: BTreeSet<ActorId>,
    /// How many messages were sent since the supervisor was last asked, and what it was asked and has not answered.
    sent: u32,
    asked: Option<RequestId>,
}

impl Link {
    /// Greets the supervisor; what it says, and the start payload.
    ///
    /// # Errors
    /// It is gone, or of another version.
    pub(crate) fn open(channel: OwnedFd, page: &OwnedFd) -> io::Result<(Self, Welcome, Bytes)> {
        let (reader, out) = (FrameReader::new(u32::MAX as usize), WriteQueue::default());
        let marks = Marks::new(page)?;
        let mut link = Link {
            channel,
            reader,
            out,
            marks,
            most: usize::MAX,
            next: 0,
            shut: BTreeSet::new(),
            sent: 0,
            asked: None,
        };
        link.say(&ToSupervisor::Hello(Hello { magic: MAGIC, version: VERSION, os_pid: std::process::id() }), &[]);
        link.flush()?;
        loop {
            if let Some((message, payload)) = link.reader.next_frame::<ToWorker>().map_err(io::Error::other)? {
                let ToWorker::Welcome(welcome) = message else { return Err(io::Error::other("no welcome")) };
                welcome.check().map_err(io::Error::other)?;
                link.most = usize::try_from(welcome.max_frame).unwrap_or(usize::MAX);
                link.reader.set_limit(link.most.saturating_add(HEAD_ROOM));
                return Ok((link, welcome, payload));
            }
            socket::wait_readable(link.channel.as_fd(), None)?;
            if matches!(link.reader.read(link.channel.as_fd()), Read::Closed | Read::Broken) {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }

    /// Bytes that a message may have.
    pub(crate) fn most(&self) -> usize {
        self.most
    }

    /// Whether something waits to be written.
    pub(crate) fn wants_room(&self) -> bool {
        !self.out.is_empty()
    }

    /// Whether what the program says is to wait: somebody's mailbox is full or may be, or the supervisor has much to read.
    pub(crate) fn is_full(&self) -> bool {
        !self.shut.is_empty() || self.asked.is_some() || self.out.bytes() > MUCH
    }

    /// Whether an exit signal came.
    pub(crate) fn is_exit_ordered(&self) -> bool {
        self.marks.is_exit_ordered()
    }

    /// Reads once.
    ///
    /// # Errors
    /// The supervisor is gone.
    pub(crate) fn read(&mut self) -> io::Result<()> {
        match self.reader.read(self.channel.as_fd()) {
            Read::Closed | Read::Broken => Err(io::ErrorKind::UnexpectedEof.into()),
            Read::Some { .. } | Read::Nothing => Ok(()),
        }
    }

    /// The next of what was read, but for what is about mailboxes.
    ///
    /// # Errors
    /// The supervisor says what is no frame.
    pub(crate) fn next(&mut self) -> io::Result<Option<(ToWorker, Bytes)>> {
        loop {
            match self.reader.next_frame::<ToWorker>().map_err(io::Error::other)? {
                Some((ToWorker::Gate(Gate::Shut { actor, .. }), _)) => drop(self.shut.insert(actor)),
                Some((ToWorker::Gate(Gate::Open { actor }), _)) => drop(self.shut.remove(&actor)),
                Some((ToWorker::Answer { request, .. }, _)) => {
                    self.asked = self.asked.filter(|asked| *asked != request);
                }
                other => return Ok(other),
            }
        }
    }

    fn say(&mut self, message: &ToSupervisor, payload: &[u8]) {
        let payload = Bytes::copy_from_slice(payload);
        let _ = self.out.push(message, &payload, self.most.saturating_add(HEAD_ROOM));
    }

    /// Writes what the socket takes; true if nothing is left.
    ///
    /// # Errors
    /// The supervisor is gone.
    pub(crate) fn flush(&mut self) -> io::Result<bool> {
        self.out.flush(self.channel.as_fd())
    }

    /// Writes all there is.
    pub(crate) fn flush_all(&mut self) {
        while matches!(self.flush(), Ok(false)) {
            if socket::wait_writable(self.channel.as_fd()).is_err() {
                return;
            }
        }
    }

    /// Says this, which has no content.
    pub(crate) fn say_raw(&mut self, message: &ToSupervisor) {
        self.say(message, &[]);
    }

    // ---- what is said -----------------------------------------------------------------------------------------------

    pub(crate) fn started(&mut self) {
        self.say(&ToSupervisor::Started(Started::Ready), &[]);
    }

    pub(crate) fn ends(&mut self, reason: ExitReason) {
        self.say(&ToSupervisor::Exit { reason, message: None }, &[]);
        self.flush_all();
    }

    pub(crate) fn log(&mut self, level: u16, message: String) {
        let time_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
        let logger = "rebeam.program".to_owned();
        let record = LogRecord { time_ms, level, logger, message, exception: None, extra: None };
        self.say(&ToSupervisor::Log(record), &[]);
    }

    pub(crate) fn begin(&mut self, seq: Seq) {
        self.marks.begin(seq);
    }

    /// A message is done that has no answer, or none from here.
    pub(crate) fn done(&mut self, seq: Seq) {
        let done = self.marks.done(seq);
        self.say(&ToSupervisor::Ack { done: vec![done] }, &[]);
        self.marks.settled(seq);
    }

    /// The answer to a call.
    pub(crate) fn answer(&mut self, seq: Seq, to: ReplyTo, outcome: Outcome, payload: &[u8]) {
        let done = Some(self.marks.done(seq));
        let reply = Reply { to, outcome, done, is_last: false, buffers: None };
        self.say(&ToSupervisor::Reply(reply), payload);
        self.marks.settled(seq);
    }

    /// A message to `handle_info`: what this function of `rebeam._programs` makes of the arguments.
    pub(crate) fn tell(&mut self, to: Address, function: &str, arguments: &[Value]) {
        let head = Head { form: Form::Message, ..Head::new("handle_info") };
        let envelope = Envelope { to, kind: Kind::Info, head, buffers: None };
        self.say(&ToSupervisor::Send(envelope), &pickle::call("rebeam._programs", function, arguments));
        self.has_sent();
    }

    /// A call of a method with plain arguments, or a cast; the call's number.
    pub(crate) fn send(&mut self, to: Address, method: &str, arguments: Vec<Value>, is_call: bool) -> CallId {
        self.next += 1;
        let call = CallId(self.next);
        let head = Head { codec: Codec::Data, lane: Lane::Normal, ..Head::new(method) };
        let kind = if is_call { Kind::Call { call, waits: Waits::Nobody } } else { Kind::Cast };
        let content = Value::Tuple(vec![Value::Tuple(arguments), Value::Dict(Vec::new())]);
        let envelope = Envelope { to, kind, head, buffers: None };
        self.say(&ToSupervisor::Send(envelope), &value::encode(&content));
        self.has_sent();
        call
    }

    fn has_sent(&mut self) {
        self.sent += 1;
        if self.sent >= MANY && self.asked.is_none() {
            self.sent = 0;
            self.asked = Some(self.ask(ProcessRequest::Whereis(String::new())));
        }
    }

    /// Asks the supervisor for something whose answer's content does not matter.
    pub(crate) fn ask(&mut self, body: ProcessRequest) -> RequestId {
        self.next += 1;
        let request = RequestId(self.next);
        self.say(&ToSupervisor::Request { request, body }, &[]);
        request
    }
}
