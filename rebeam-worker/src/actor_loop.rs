//! What Python calls: the zygote's loop, an actor's loop, and the ways to send.

use std::cell::Cell;
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use pyo3::exceptions::{PyOSError, PyTypeError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PyDict, PyTuple};
use rebeam_protocol::control::{Answer, Request};
use rebeam_protocol::exit::Raised;
use rebeam_protocol::id::{CallId, RequestId, Seq};
use rebeam_protocol::message::{
    Address, CallFailure, Codec, Delivery, Envelope, Kind, Lane, LogRecord, Outcome, Reply, Started, ToSupervisor,
};

use crate::channel::{Channel, Letter, Unmet};
use crate::codec;
use crate::convert;
use crate::wire::{NoWrite, Payload, Wait};
use crate::zygote;

static CHANNEL: OnceLock<Channel> = OnceLock::new();

/// Set in a process that an actor forked: the channel is its parent's.
static IS_HELPER: AtomicBool = AtomicBool::new(false);

thread_local! {
    /// The message that this thread has in hand.
    static IN_HAND: Cell<Option<Seq>> = const { Cell::new(None) };
}

/// After a call's own deadline, how long to wait for the supervisor's word on what the callee does.
const LAST_WORD: Duration = Duration::from_secs(2);

/// Runs the zygote; comes back with the start payload in a new worker, with `None` when the supervisor is gone.
#[pyfunction]
pub(crate) fn attach_forked<'py>(
    py: Python<'py>,
    control: RawFd,
    lifeline: RawFd,
) -> PyResult<Option<Bound<'py, PyTuple>>> {
    match zygote::serve(py, owned(control), owned(lifeline))? {
        Some(birth) => open(py, birth.channel, &birth.page, birth.lifeline).map(Some),
        None => Ok(None),
    }
}

/// Shakes hands as a worker that was not forked; gives the start payload and who this actor is.
#[pyfunction]
pub(crate) fn attach<'py>(
    py: Python<'py>,
    channel: RawFd,
    page: RawFd,
    lifeline: RawFd,
) -> PyResult<Bound<'py, PyTuple>> {
    open(py, owned(channel), &owned(page), owned(lifeline))
}

fn owned(fd: RawFd) -> OwnedFd {
    // SAFETY: the supervisor started this process with these descriptors for this purpose, and `rebeam._boot` takes
    // each of them once.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: an open descriptor; a child that Python starts must not inherit it.
    unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFD, libc::FD_CLOEXEC) };
    fd
}

fn open<'py>(py: Python<'py>, socket: OwnedFd, page: &OwnedFd, lifeline: OwnedFd) -> PyResult<Bound<'py, PyTuple>> {
    let (channel, start) = py.detach(|| Channel::open(socket, page, lifeline))?;
    let welcome = channel.welcome.clone();
    if CHANNEL.set(channel).is_err() {
        return Err(PyOSError::new_err("this process is an actor already"));
    }
    let start = PyBytes::new(py, start.as_slice());
    let pid = convert::pid_numbers(welcome.process.pid);
    (start, pid, welcome.actor.0, welcome.label, welcome.named, welcome.restarts).into_pyobject(py)
}

/// Whether this process is an actor (and not a helper that one forked).
#[pyfunction]
pub(crate) fn is_attached() -> bool {
    CHANNEL.get().is_some() && !IS_HELPER.load(Ordering::Relaxed)
}

/// In a process that an actor forked: lets go of the actor's channel, so that nothing here speaks on it.
#[pyfunction]
pub(crate) fn detach_after_fork() {
    IS_HELPER.store(true, Ordering::Relaxed);
    if let Some(channel) = CHANNEL.get() {
        channel.close_descriptors();
    }
}

fn channel(py: Python<'_>) -> PyResult<&'static Channel> {
    match CHANNEL.get() {
        Some(channel) if !IS_HELPER.load(Ordering::Relaxed) => Ok(channel),
        _ => {
            let is_helper = IS_HELPER.load(Ordering::Relaxed);
            Err(PyErr::from_value(py.import("rebeam._errors")?.call_method1("not_an_actor", (is_helper,))?))
        }
    }
}

fn send(py: Python<'_>, channel: &Channel, message: &ToSupervisor, payload: &[u8]) -> PyResult<()> {
    let blocking = |wait: Wait<'_>| -> io::Result<()> { py.detach(wait) };
    channel.send(message, payload, blocking).map_err(|error| match error {
        NoWrite::Frame(error) => pyo3::exceptions::PyValueError::new_err(format!("failed to send: {error}")),
        NoWrite::Closed(error) => PyOSError::new_err(format!("the supervisor is gone: {error}")),
    })
}

/// Waits with the interpreter left to other threads, and lets Python handle signals.
fn wait<T: Send>(py: Python<'_>, mut attempt: impl FnMut() -> Result<T, Unmet> + Send) -> PyResult<Option<T>> {
    loop {
        match py.detach(&mut attempt) {
            Ok(found) => return Ok(Some(found)),
            Err(Unmet::TimedOut) => return Ok(None),
            Err(Unmet::Interrupted) => py.check_signals()?,
            Err(Unmet::Closed) => {
                // Nobody is left to work for, and the lifeline is about to say so.
                // SAFETY: ends the process without running anything of it.
                unsafe { libc::_exit(1) }
            }
        }
    }
}

/// What is common to calls and casts: waits for room, encodes, sends.
struct Outgoing<'a, 'py> {
    to: Address,
    kind: Kind,
    method: &'a str,
    payload: Bound<'py, PyBytes>,
    lane: Lane,
    until: Option<Instant>,
}

impl Outgoing<'_, '_> {
    fn send(self, py: Python<'_>, channel: &Channel) -> PyResult<()> {
        if channel.is_shut(&self.to) && wait(py, || channel.wait_open(&self.to, self.until))?.is_none() {
            let label = rebeam_protocol::control::address_label(&self.to);
            return Err(convert::failure(py, &CallFailure::MailboxFull { target: label, waiting: 0 }));
        }
        let left = |until: Instant| until.saturating_duration_since(Instant::now()).as_millis() as u64;
        let envelope = Envelope {
            to: self.to,
            kind: self.kind,
            method: self.method.to_owned(),
            codec: Codec::Pickle,
            lane: self.lane,
            deadline_ms: match self.kind {
                Kind::Call { .. } => self.until.map(left),
                Kind::Cast => None,
            },
            parent: IN_HAND.get(),
            trace: None,
        };
        send(py, channel, &ToSupervisor::Send(envelope), self.payload.as_bytes())
    }
}

fn lane(is_high: bool) -> Lane {
    if is_high { Lane::High } else { Lane::Normal }
}

fn dumps<'py>(content: &Bound<'py, PyTuple>, method: &str) -> PyResult<Bound<'py, PyBytes>> {
    codec::dumps(content).map_err(|error| {
        let py = content.py();
        let explained = py
            .import("rebeam._pickling")
            .and_then(|module| module.call_method1("explain", (content, method, error.value(py))));
        explained.map_or_else(|error| error, PyErr::from_value)
    })
}

fn until(timeout: Option<f64>) -> PyResult<Option<Instant>> {
    match timeout {
        None => Ok(None),
        Some(seconds) => match Duration::try_from_secs_f64(seconds) {
            Ok(timeout) => Ok(Instant::now().checked_add(timeout)),
            Err(_) => Err(pyo3::exceptions::PyValueError::new_err(format!("a timeout of {seconds} seconds"))),
        },
    }
}

/// Calls a method and waits for its answer.
#[pyfunction]
pub(crate) fn call<'py>(
    py: Python<'py>,
    to: &Bound<'py, PyAny>,
    method: &str,
    args: &Bound<'py, PyTuple>,
    kwargs: &Bound<'py, PyDict>,
    timeout: Option<f64>,
    is_high: bool,
) -> PyResult<Bound<'py, PyAny>> {
    let channel = channel(py)?;
    let to = convert::address(to)?;
    let payload = dumps(&PyTuple::new(py, [args.as_any(), kwargs.as_any()])?, method)?;
    let until = until(timeout)?;
    let call = CallId(channel.next_id());
    channel.expect_reply(call);
    let kind = Kind::Call { call, blocking: true };
    let result = (|| {
        Outgoing { to, kind, method, payload, lane: lane(is_high), until }.send(py, channel)?;
        if let Some(reply) = wait(py, || channel.wait_reply(call, until))? {
            return Ok(Some(reply));
        }
        // Settles the race with a reply under way, and brings word of what the callee does.
        send(py, channel, &ToSupervisor::Abandon { call }, &[])?;
        let last = Instant::now() + LAST_WORD;
        wait(py, || channel.wait_reply(call, Some(last)))
    })();
    channel.forget_reply(call);
    match result? {
        Some((Outcome::Returned(Codec::Pickle), payload)) => codec::loads(py, payload.as_slice()),
        Some((Outcome::Returned(Codec::Data), payload)) => codec::load_value(py, payload.as_slice()),
        Some((Outcome::Raised(raised), payload)) => Err(remote_error(py, &raised, &payload)?),
        Some((Outcome::Failed(failure), _)) => Err(convert::failure(py, &failure)),
        None => Err(PyOSError::new_err("the supervisor does not answer")),
    }
}

fn remote_error(py: Python<'_>, raised: &Raised, payload: &Payload) -> PyResult<PyErr> {
    let errors = py.import("rebeam._errors")?;
    let pickled = PyBytes::new(py, payload.as_slice());
    let error = errors.call_method1("remote", (&raised.kind, &raised.message, &raised.traceback, pickled))?;
    Ok(PyErr::from_value(error))
}

/// Casts to a method.
#[pyfunction]
pub(crate) fn cast(
    py: Python<'_>,
    to: &Bound<'_, PyAny>,
    method: &str,
    args: &Bound<'_, PyTuple>,
    kwargs: &Bound<'_, PyDict>,
    timeout: Option<f64>,
    is_high: bool,
) -> PyResult<()> {
    let channel = channel(py)?;
    let to = convert::address(to)?;
    let payload = dumps(&PyTuple::new(py, [args.as_any(), kwargs.as_any()])?, method)?;
    let until = until(timeout)?;
    Outgoing { to, kind: Kind::Cast, method, payload, lane: lane(is_high), until }.send(py, channel)
}

/// An actor's number and the three numbers of its living incarnation.
type Found = (u64, Option<(u32, u32, u64)>);

/// Who holds a name.
#[pyfunction]
pub(crate) fn whereis(py: Python<'_>, name: String) -> PyResult<Option<Found>> {
    match request(py, Request::Whereis { name })? {
        Answer::Whereis(found) => Ok(found.map(|it| (it.actor.0, it.pid.map(convert::pid_numbers)))),
        other => Err(PyOSError::new_err(format!("an answer that does not fit: {other:?}"))),
    }
}

/// Asks for the node to be stopped.
#[pyfunction]
pub(crate) fn request_down(py: Python<'_>) -> PyResult<()> {
    request(py, Request::Down).map(drop)
}

fn request(py: Python<'_>, body: Request) -> PyResult<Answer> {
    let channel = channel(py)?;
    let request = RequestId(channel.next_id());
    channel.expect_answer(request);
    let answer = send(py, channel, &ToSupervisor::Request { request, body }, &[])
        .and_then(|()| wait(py, || channel.wait_answer(request, None)));
    channel.forget_answer(request);
    answer?.ok_or_else(|| PyOSError::new_err("the supervisor does not answer"))
}

/// Sends a log record.
#[pyfunction]
pub(crate) fn log(
    py: Python<'_>,
    time: f64,
    level: u16,
    logger: String,
    message: String,
    exception: Option<String>,
) -> PyResult<()> {
    let record = LogRecord { time_ms: (time * 1000.0) as u64, level, logger, message, exception };
    send(py, channel(py)?, &ToSupervisor::Log(record), &[])
}

/// Says that `init` has returned.
#[pyfunction]
pub(crate) fn started(py: Python<'_>, ignored: bool) -> PyResult<()> {
    let started = if ignored { Started::Ignore } else { Started::Ready };
    send(py, channel(py)?, &ToSupervisor::Started(started), &[])
}

/// Sends the final report.
#[pyfunction]
#[pyo3(signature = (kind, text, traceback=None))]
pub(crate) fn report(py: Python<'_>, kind: &str, text: String, traceback: Option<String>) -> PyResult<()> {
    let reason = convert::reason(kind, text, traceback)?;
    send(py, channel(py)?, &ToSupervisor::Exit(reason), &[])
}

/// Handles messages until a stop is ordered, whose reason it gives, or a handler raises, which it lets through after
/// the caller has been told.
///
/// `resolve(method)` gives the function for a method, or raises `BadCall`.
#[pyfunction]
pub(crate) fn serve<'py>(
    py: Python<'py>,
    resolve: &Bound<'py, PyAny>,
) -> PyResult<(&'static str, String, Option<String>)> {
    let channel = channel(py)?;
    let mut methods: HashMap<String, Bound<'py, PyAny>> = HashMap::new();
    loop {
        let letter = match channel.try_letter() {
            Some(letter) => letter,
            None => match wait(py, || channel.wait_letter())? {
                Some(letter) => letter,
                None => continue,
            },
        };
        match letter {
            Letter::Stop(reason) => return Ok(convert::reason_fields(&reason)),
            Letter::Message(delivery, payload) => {
                let seq = delivery.seq;
                channel.page.begin(seq.0);
                IN_HAND.set(Some(seq));
                let result = handle(py, channel, &delivery, &payload, resolve, &mut methods);
                IN_HAND.set(None);
                if IS_HELPER.load(Ordering::Relaxed) {
                    // A handler forked, and its child came back here: it has no business with the actor's mail.
                    // SAFETY: ends the process without running anything of it.
                    unsafe { libc::_exit(0) }
                }
                // After an exception the mark stays: the certificate names the message in hand.
                result?;
                channel.page.done(seq.0);
                // The signal handlers of a busy actor run between two messages at the latest.
                py.check_signals()?;
            }
        }
    }
}

/// Handles one message. An error is the handler's own: the actor ends with it.
fn handle<'py>(
    py: Python<'py>,
    channel: &Channel,
    delivery: &Delivery,
    payload: &Payload,
    resolve: &Bound<'py, PyAny>,
    methods: &mut HashMap<String, Bound<'py, PyAny>>,
) -> PyResult<()> {
    let result = match prepare(py, delivery, payload, resolve, methods) {
        Ok((function, args, kwargs)) => invoke(py, delivery, &function, &args, &kwargs),
        Err(error) => Err(Refusal::Bad(CallFailure::BadCall(error.value(py).to_string()))),
    };
    let (outcome, content, error) = match result {
        Ok(result) => match delivery.reply_to.map(|_| encode(&result, delivery)) {
            None => return acknowledge(py, channel, delivery, payload),
            Some(Ok(content)) => (Outcome::Returned(delivery.codec), content, None),
            Some(Err(failure)) => (Outcome::Failed(failure), Vec::new(), None),
        },
        Err(Refusal::Bad(failure)) => {
            if delivery.reply_to.is_none()
                && let CallFailure::BadCall(text) = &failure
            {
                py.import("rebeam._logging")?.call_method1("warn_bad_cast", (text, &delivery.sender))?;
            }
            (Outcome::Failed(failure), Vec::new(), None)
        }
        Err(Refusal::Raised(error)) => {
            let failure = py.import("rebeam._failure")?;
            // Before Python 3.12 an error that is on its way keeps its traceback beside it.
            error.value(py).setattr("__traceback__", error.traceback(py))?;
            let described = failure.call_method1("describe", (error.value(py),))?;
            let (kind, message, traceback, pickled): (String, String, String, Option<Vec<u8>>) = described.extract()?;
            let content = pickled.filter(|_| delivery.codec == Codec::Pickle).unwrap_or_default();
            let is_answer = failure.call_method1("is_answer", (&delivery.method, error.value(py), resolve))?;
            let outcome = Outcome::Raised(Raised { kind, message, traceback });
            (outcome, content, (!is_answer.is_truthy()?).then_some(error))
        }
    };
    match delivery.reply_to {
        Some(to) => {
            let reply = Reply { to, outcome, done: error.is_none().then_some(delivery.seq) };
            send(py, channel, &ToSupervisor::Reply(reply), &content)?;
        }
        None if error.is_none() => acknowledge(py, channel, delivery, payload)?,
        None => {}
    }
    error.map_or(Ok(()), Err)
}

/// Why a message was not handled to its end.
enum Refusal {
    /// The message was at fault, or its result: the actor is none the worse.
    Bad(CallFailure),
    /// The handler raised.
    Raised(PyErr),
}

type Prepared<'py> = (Bound<'py, PyAny>, Bound<'py, PyTuple>, Bound<'py, PyDict>);

fn prepare<'py>(
    py: Python<'py>,
    delivery: &Delivery,
    payload: &Payload,
    resolve: &Bound<'py, PyAny>,
    methods: &mut HashMap<String, Bound<'py, PyAny>>,
) -> PyResult<Prepared<'py>> {
    let function = match methods.get(&delivery.method) {
        Some(function) => function.clone(),
        None => {
            let function = resolve.call1((&delivery.method,))?;
            methods.insert(delivery.method.clone(), function.clone());
            function
        }
    };
    let content = match delivery.codec {
        Codec::Pickle => codec::loads(py, payload.as_slice())?,
        Codec::Data => codec::load_value(py, payload.as_slice())?,
    };
    let content = content.cast::<PyTuple>().map_err(|_| PyTypeError::new_err("the message is no pair of arguments"))?;
    let args = content.get_item(0)?;
    let args = match args.cast::<PyTuple>() {
        Ok(args) => args.clone(),
        Err(_) => PyTuple::new(py, args.try_iter()?.collect::<PyResult<Vec<_>>>()?)?,
    };
    Ok((function, args, content.get_item(1)?.cast_into::<PyDict>()?))
}

fn invoke<'py>(
    py: Python<'py>,
    delivery: &Delivery,
    function: &Bound<'py, PyAny>,
    args: &Bound<'py, PyTuple>,
    kwargs: &Bound<'py, PyDict>,
) -> Result<Bound<'py, PyAny>, Refusal> {
    static COROUTINE: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let result = function.call(args, Some(kwargs)).map_err(|error| {
        // A TypeError without a traceback was raised by the call itself: the arguments do not fit.
        if error.is_instance_of::<PyTypeError>(py) && error.traceback(py).is_none() {
            return Refusal::Bad(CallFailure::BadCall(error.value(py).to_string()));
        }
        Refusal::Raised(error)
    })?;
    let coroutine = COROUTINE.import(py, "types", "CoroutineType").map_err(Refusal::Raised)?;
    if !result.get_type().is(coroutine) {
        return Ok(result);
    }
    let run = || py.import("rebeam._dispatch")?.call_method1("run_coroutine", (&delivery.method, &result));
    run().map_err(Refusal::Raised)
}

/// Encodes a result as its caller wants it.
fn encode(result: &Bound<'_, PyAny>, delivery: &Delivery) -> Result<Vec<u8>, CallFailure> {
    let encoded = match delivery.codec {
        Codec::Pickle => codec::dumps(result).map(|bytes| bytes.as_bytes().to_vec()),
        Codec::Data => codec::dump_value(result),
    };
    encoded.map_err(|error| {
        let text = format!("the result of `{}` cannot be sent: {}", delivery.method, error.value(result.py()));
        CallFailure::BadResult(text)
    })
}

fn acknowledge(py: Python<'_>, channel: &Channel, delivery: &Delivery, payload: &Payload) -> PyResult<()> {
    match channel.note_done(delivery.seq, payload.as_slice().len()) {
        // The marks must say so first: what is acknowledged may be overwritten.
        Some(done) => {
            channel.page.done(delivery.seq.0);
            send(py, channel, &ToSupervisor::Ack { done }, &[])
        }
        None => Ok(()),
    }
}
