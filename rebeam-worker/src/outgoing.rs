//! The ways to send: calls, casts, plain messages, answers.

use std::time::{Duration, Instant};

use pyo3::exceptions::{PyOSError, PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyEllipsis, PyTuple};
use rebeam_protocol::address::{Address, ReplyTo};
use rebeam_protocol::exit::Raised;
use rebeam_protocol::hash::fnv1a;
use rebeam_protocol::id::CallId;
use rebeam_protocol::message::{CallFailure, Codec, Form, Head, Kind, Lane, Outcome, Waits};
use rebeam_protocol::worker::{Envelope, Full, Reply, ToSupervisor};

use crate::arenas;
use crate::asked::Asked;
use crate::channel::{Channel, Filed};
use crate::clock;
use crate::codec::{self, Content};
use crate::context::{self, PyCaller};
use crate::convert;
use crate::session::{acknowledge_noted, channel, closed, send, wait};
use crate::wire::Payload;

/// After a call's own deadline, how long to wait for the supervisor's word on what the callee does.
const LAST_WORD: Duration = Duration::from_secs(2);

/// How long a call waits if nobody says otherwise and it is made out of no other call, as OTP's.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);

/// What is common to all that is sent: waits for room, then sends.
struct Outgoing<'a, 'py> {
    to: Address,
    kind: Kind,
    form: Form,
    method: &'a str,
    codec: Codec,
    content: Content<'py>,
    lane: Lane,
    until: Option<Instant>,
    /// Whether its sender has waited for room already.
    has_room: bool,
    /// The function that the user has called.
    way: &'a str,
}

impl Outgoing<'_, '_> {
    fn send(self, py: Python<'_>, channel: &Channel) -> PyResult<()> {
        let buffers = self.content.buffers;
        let sent = self.send_all(py, channel);
        if let (Err(_), Some(buffers)) = (&sent, buffers) {
            arenas::take_back(buffers);
        }
        sent
    }

    fn send_all(self, py: Python<'_>, channel: &Channel) -> PyResult<()> {
        convert::check_length("method", self.method.len())?;
        if self.lane != Lane::System && !self.has_room {
            let wait = room_in(py, channel, &self.to, self.method, self.until)?;
            if let Some(mut wait) = wait {
                wait.wait(py, Some(self.way))?;
            }
        }
        let left = |until: Instant| until.saturating_duration_since(clock::now()).as_millis() as u64;
        let head = Head {
            method: self.method.to_owned(),
            form: self.form,
            codec: self.codec,
            lane: self.lane,
            deadline_ms: match self.kind {
                Kind::Call { .. } => self.until.map(left),
                Kind::Cast | Kind::Info => None,
            },
            trace: context::trace(py).map(Box::new),
        };
        let envelope = Envelope { to: self.to, kind: self.kind, head, buffers: self.content.buffers };
        send(py, channel, &ToSupervisor::Send(envelope), self.content.as_bytes())
    }

    /// Sends a call and waits for its answer.
    fn call<'py>(self, py: Python<'py>, channel: &Channel, call: CallId) -> PyResult<Bound<'py, PyAny>> {
        let until = self.until;
        context::warn_of_blocking(py, self.way)?;
        channel.expect(call.0);
        let result = self.send(py, channel).and_then(|()| answer_to(py, channel, call, until));
        channel.forget(call.0);
        result
    }
}

/// What to wait for before a message is sent, if its receiver's mailbox is full.
///
/// # Errors
///
/// It is full, and senders are to fail.
fn room_in(
    py: Python<'_>,
    channel: &Channel,
    to: &Address,
    method: &str,
    until: Option<Instant>,
) -> PyResult<Option<Asked>> {
    let Some(full) = channel.is_blocked(to) else { return Ok(None) };
    let target = to.to_string();
    let is_full = move |py: Python<'_>| convert::failure(py, &CallFailure::MailboxFull { target, waiting: 0 });
    match full {
        Full::Fail => Err(is_full(py)),
        Full::Wait => Ok(Some(Asked::room(to.clone(), method.to_owned(), until, |py, filed| match filed {
            Some(Filed::Room) => Ok(py.None()),
            // It would wait forever.
            Some(Filed::Reply(Outcome::Failed(failure), _)) => Err(convert::failure(py, &failure)),
            Some(_) => Err(PyOSError::new_err("an unexpected answer")),
            None => Err(is_full(py)),
        }))),
    }
}

/// Waits for the answer to a call until its deadline, and then for the supervisor's word on what the callee does.
fn answer_to<'py>(
    py: Python<'py>,
    channel: &Channel,
    call: CallId,
    until: Option<Instant>,
) -> PyResult<Bound<'py, PyAny>> {
    match wait(py, || channel.wait_filed(call.0, until)) {
        Ok(Some(filed)) => return unpack(py, filed),
        Ok(None) => {}
        // A signal handler has raised: nobody waits any more.
        Err(error) => {
            send(py, channel, &ToSupervisor::Cancel { call }, &[])?;
            return Err(error);
        }
    }
    // Settles the race with a reply under way, and brings word of what the callee does.
    send(py, channel, &ToSupervisor::Abandon { call }, &[])?;
    let last = clock::now() + LAST_WORD;
    match wait(py, || channel.wait_filed(call.0, Some(last)))? {
        Some(filed) => unpack(py, filed),
        // The node has too much to do.
        None => Err(PyErr::from_value(py.import("rebeam._errors")?.call_method0("no_last_word")?)),
    }
}

fn unpack(py: Python<'_>, filed: Filed) -> PyResult<Bound<'_, PyAny>> {
    let Filed::Reply(outcome, mut payload) = filed else {
        return Err(PyOSError::new_err("an unexpected answer"));
    };
    match outcome {
        Outcome::Returned(Codec::Pickle) => codec::load_content(py, &mut payload),
        Outcome::Returned(Codec::Data) => codec::load_value(py, payload.as_slice()),
        Outcome::Raised(raised) => Err(remote_error(py, &raised, &payload)?),
        Outcome::Failed(failure) => Err(convert::failure(py, &failure)),
    }
}

/// `rebeam._ref.Target`: how a reference is used.
#[derive(FromPyObject)]
pub(crate) struct Target<'py> {
    /// Seconds; `None`: forever; `...`: nobody says.
    timeout: Bound<'py, PyAny>,
    is_high: bool,
    is_plain: bool,
}

impl Target<'_> {
    /// How what is sent is encoded.
    fn codec(&self) -> Codec {
        if self.is_plain { Codec::Data } else { Codec::Pickle }
    }

    /// When the wait ends, and the lane.
    fn read(self) -> PyResult<(Option<Instant>, Lane)> {
        let lane = if self.is_high { Lane::High } else { Lane::Normal };
        Ok((deadline(&self.timeout)?, lane))
    }
}

/// Replaces the error of a pickle that failed by one that names the culprit.
pub(crate) fn explained<'py, T>(
    py: Python<'py>,
    result: PyResult<T>,
    explain: impl FnOnce(&Bound<'py, PyModule>, &PyErr) -> PyResult<Bound<'py, PyAny>>,
) -> PyResult<T> {
    result.map_err(|error| {
        if !convert::is_fault(py, &error) {
            return error;
        }
        let made = py.import("rebeam._pickling").and_then(|module| explain(&module, &error));
        made.map_or_else(|error| error, PyErr::from_value)
    })
}

/// The content of a message to a method.
fn arguments<'py>(
    channel: &Channel,
    method: &str,
    args: &Bound<'py, PyTuple>,
    kwargs: &Bound<'py, PyDict>,
    codec: Codec,
) -> PyResult<Content<'py>> {
    let py = args.py();
    let content = PyTuple::new(py, [args.as_any(), kwargs.as_any()])?;
    if codec == Codec::Data {
        return Ok(Content { bytes: PyBytes::new(py, &codec::dump_value(&content)?), buffers: None, held: None });
    }
    let dumped = codec::dump_content(channel, &content);
    explained(py, dumped, |module, error| module.call_method1("explain", (content, method, error.value(py))))
}

/// The content of a message of free form.
fn message_content<'py>(channel: &Channel, message: &Bound<'py, PyAny>) -> PyResult<Content<'py>> {
    let py = message.py();
    let dumped = codec::dump_content(channel, message);
    explained(py, dumped, |module, error| module.call_method1("explain_message", (message, error.value(py))))
}

/// The payload of what an alarm is to send: a method's arguments, or a message of free form. It stays with the
/// supervisor, buffers and all.
pub(crate) fn alarm_payload<'py>(
    py: Python<'py>,
    method: &str,
    is_method: bool,
    content: &Bound<'py, PyAny>,
) -> PyResult<Bound<'py, PyBytes>> {
    explained(py, codec::dumps(content), |module, error| match is_method {
        true => module.call_method1("explain", (content, method, error.value(py))),
        false => module.call_method1("explain_message", (content, error.value(py))),
    })
}

/// When a wait of this many seconds ends; `None`: never.
pub(crate) fn until(timeout: Option<f64>) -> PyResult<Option<Instant>> {
    Ok(limited(timeout)?.and_then(|timeout| clock::now().checked_add(timeout)))
}

/// How long somebody waits who gave this many seconds; `None`: forever, as for seconds that no clock counts and for
/// infinity.
///
/// # Errors
/// It is below 0, or NaN.
pub(crate) fn limited(timeout: Option<f64>) -> PyResult<Option<Duration>> {
    match timeout {
        Some(seconds) if seconds.is_nan() || seconds < 0.0 => {
            Err(PyValueError::new_err(format!("timeout={seconds}: it must be 0 seconds or more, or None")))
        }
        seconds => Ok(seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())),
    }
}

/// When a call or a wait for room ends: after this many seconds, never (`None`), or, if nobody says (`...`), when the call
/// in hand does, and in 5 s if there is none.
fn deadline(timeout: &Bound<'_, PyAny>) -> PyResult<Option<Instant>> {
    if !timeout.is_instance_of::<PyEllipsis>() {
        return until(timeout.extract()?);
    }
    let inherited = context::current(timeout.py()).and_then(|message| message.get().deadline);
    Ok(inherited.or_else(|| clock::now().checked_add(DEFAULT_TIMEOUT)))
}

/// Calls a method and waits for its answer.
#[pyfunction]
pub(crate) fn call<'py>(
    py: Python<'py>,
    to: &Bound<'py, PyAny>,
    method: &str,
    args: &Bound<'py, PyTuple>,
    kwargs: &Bound<'py, PyDict>,
    target: Target<'py>,
) -> PyResult<Bound<'py, PyAny>> {
    let channel = channel(py)?;
    let codec = target.codec();
    let (to, (until, lane)) = (convert::address(to)?, target.read()?);
    let content = arguments(channel, method, args, kwargs, codec)?;
    let call = CallId(channel.next_id());
    let kind = Kind::Call { call, waits: context::waits(py, false) };
    let (form, way) = (Form::Arguments, "call");
    Outgoing { to, kind, form, method, codec, content, lane, until, has_room: false, way }.call(py, channel, call)
}

/// What to wait for before a message is sent to this method, or `None`; and the seconds that are then left.
#[pyfunction]
pub(crate) fn room(
    py: Python<'_>,
    to: &Bound<'_, PyAny>,
    method: &str,
    target: Target<'_>,
) -> PyResult<(Option<Asked>, Option<f64>)> {
    let (to, (until, _)) = (convert::address(to)?, target.read()?);
    Ok((room_in(py, channel(py)?, &to, method, until)?, time_left(until)))
}

fn time_left(until: Option<Instant>) -> Option<f64> {
    until.map(|until| until.saturating_duration_since(clock::now()).as_secs_f64())
}

/// Casts to a method. `has_room`: whoever sends has waited for that.
#[pyfunction]
#[pyo3(signature = (to, method, args, kwargs, target, *, has_room = false))]
pub(crate) fn cast(
    py: Python<'_>,
    to: &Bound<'_, PyAny>,
    method: &str,
    args: &Bound<'_, PyTuple>,
    kwargs: &Bound<'_, PyDict>,
    target: Target<'_>,
    has_room: bool,
) -> PyResult<()> {
    let channel = channel(py)?;
    let codec = target.codec();
    let (to, (until, lane)) = (convert::address(to)?, target.read()?);
    let content = arguments(channel, method, args, kwargs, codec)?;
    let (kind, form, way) = (Kind::Cast, Form::Arguments, "cast");
    Outgoing { to, kind, form, method, codec, content, lane, until, has_room, way }.send(py, channel)
}

/// Calls with a message of free form, for `handle_call`; on the system lane, with what is asked of the process.
#[pyfunction]
#[pyo3(signature = (to, method, message, timeout, *, is_system = false))]
pub(crate) fn call_message<'py>(
    py: Python<'py>,
    to: &Bound<'py, PyAny>,
    method: &str,
    message: &Bound<'py, PyAny>,
    timeout: &Bound<'py, PyAny>,
    is_system: bool,
) -> PyResult<Bound<'py, PyAny>> {
    let channel = channel(py)?;
    let (to, until) = (convert::address(to)?, deadline(timeout)?);
    let content = message_content(channel, message)?;
    let call = CallId(channel.next_id());
    // What is for the process is answered past the mail: it is no wait of that sort.
    let waits = if is_system { Waits::Nobody } else { context::waits(py, false) };
    let kind = Kind::Call { call, waits };
    let lane = if is_system { Lane::System } else { Lane::Normal };
    let way = match method {
        _ if is_system => method,
        _ if method.starts_with("stream_") => "stream",
        _ => "call",
    };
    let codec = Codec::Pickle;
    Outgoing { to, kind, form: Form::Message, method, codec, content, lane, until, has_room: false, way }
        .call(py, channel, call)
}

/// Sends a message of free form: to `handle_info`, or to another method as a cast.
#[pyfunction]
#[pyo3(signature = (to, method, message, timeout, *, has_room = false))]
pub(crate) fn send_message(
    py: Python<'_>,
    to: &Bound<'_, PyAny>,
    method: &str,
    message: &Bound<'_, PyAny>,
    timeout: &Bound<'_, PyAny>,
    has_room: bool,
) -> PyResult<()> {
    let channel = channel(py)?;
    let (to, until) = (convert::address(to)?, deadline(timeout)?);
    let content = message_content(channel, message)?;
    let kind = if method == "handle_info" { Kind::Info } else { Kind::Cast };
    let (lane, way) = (Lane::Normal, if kind == Kind::Info { "send" } else { "cast" });
    let codec = Codec::Pickle;
    Outgoing { to, kind, form: Form::Message, method, codec, content, lane, until, has_room, way }.send(py, channel)
}

/// Calls without waiting; gives the call's number, and the seconds until its deadline. `message` is a method's
/// arguments, or, without `is_method`, of free form; with `is_system`, it is for the process. Of an `is_task` it is known
/// that the handler waits at once; `has_room`: it has waited for that.
#[pyfunction]
#[pyo3(signature = (to, method, message, target, *, is_method, is_task, is_system = false, has_room = false))]
#[expect(clippy::too_many_arguments, reason = "they are named where it is called")]
pub(crate) fn request(
    py: Python<'_>,
    to: &Bound<'_, PyAny>,
    method: &str,
    message: &Bound<'_, PyAny>,
    target: Target<'_>,
    is_method: bool,
    is_task: bool,
    is_system: bool,
    has_room: bool,
) -> PyResult<(u64, Option<f64>)> {
    let channel = channel(py)?;
    let codec = if is_method { target.codec() } else { Codec::Pickle };
    let (to, (until, lane)) = (convert::address(to)?, target.read()?);
    let (form, content) = match is_method {
        true => {
            let (args, kwargs): (Bound<'_, PyTuple>, Bound<'_, PyDict>) = message.extract()?;
            (Form::Arguments, arguments(channel, method, &args, &kwargs, codec)?)
        }
        false => (Form::Message, message_content(channel, message)?),
    };
    let call = CallId(channel.next_id());
    let waits = if is_task && !is_system { context::waits(py, true) } else { Waits::Nobody };
    let lane = if is_system { Lane::System } else { lane };
    channel.expect(call.0);
    let kind = Kind::Call { call, waits };
    let outgoing = Outgoing { to, kind, form, method, codec, content, lane, until, has_room, way: "request" };
    if let Err(error) = outgoing.send(py, channel) {
        channel.forget(call.0);
        return Err(error);
    }
    Ok((call.0, time_left(until)))
}

/// Whether the answer to such a call, or to what was asked, is there.
#[pyfunction]
pub(crate) fn has_answer(py: Python<'_>, call: u64) -> PyResult<bool> {
    Ok(channel(py)?.has_filed(call))
}

/// Has such a call noted as ready when its answer comes.
#[pyfunction]
pub(crate) fn note_answer(py: Python<'_>, call: u64) -> PyResult<()> {
    channel(py)?.note(call);
    Ok(())
}

/// Nobody will ask for the answer to such a call.
#[pyfunction]
pub(crate) fn forget_call(py: Python<'_>, call: u64) {
    if let Ok(channel) = channel(py) {
        channel.forget(call);
    }
}

/// Waits for the answer to such a call for this many seconds, and then, with `is_last`, gives up on it; else `None` says
/// that there is none yet, a tuple with the result that there is.
#[pyfunction]
#[pyo3(signature = (call, seconds, *, is_last))]
pub(crate) fn wait_answer<'py>(
    py: Python<'py>,
    call: u64,
    seconds: Option<f64>,
    is_last: bool,
) -> PyResult<Option<Bound<'py, PyTuple>>> {
    let (channel, call, until) = (channel(py)?, CallId(call), until(seconds)?);
    if !channel.has_filed(call.0) {
        // Who only looks does not wait.
        if seconds == Some(0.0) && !is_last {
            return Ok(None);
        }
        context::warn_of_blocking(py, "result")?;
        send(py, channel, &ToSupervisor::Await { call, waits: context::waits(py, false) }, &[])?;
    }
    let result = match is_last {
        true => answer_to(py, channel, call, until),
        false => match wait(py, || channel.wait_filed(call.0, until)) {
            Ok(Some(filed)) => unpack(py, filed),
            not_yet => {
                send(py, channel, &ToSupervisor::Await { call, waits: Waits::Nobody }, &[])?;
                return not_yet.map(|_| None);
            }
        },
    };
    channel.forget(call.0);
    Ok(Some(PyTuple::new(py, [result?])?))
}

/// The answer to such a call, which has come.
#[pyfunction]
pub(crate) fn take_answer(py: Python<'_>, call: u64) -> PyResult<Bound<'_, PyAny>> {
    let channel = channel(py)?;
    let found = channel.take_filed(call);
    channel.forget(call);
    match found {
        Some(filed) => unpack(py, filed),
        None => Err(PyRuntimeError::new_err("the answer was taken already")),
    }
}

/// Says that a task of the message in hand waits for such a call from now on.
#[pyfunction]
pub(crate) fn await_answer(py: Python<'_>, call: u64) -> PyResult<()> {
    let waits = context::waits(py, true);
    send(py, channel(py)?, &ToSupervisor::Await { call: CallId(call), waits }, &[])
}

/// Gives up on such a call: its answer is then that it took too long, and what the callee does.
#[pyfunction]
pub(crate) fn abandon(py: Python<'_>, call: u64) -> PyResult<()> {
    send(py, channel(py)?, &ToSupervisor::Abandon { call: CallId(call) }, &[])
}

/// Takes such a call back: no answer comes.
#[pyfunction]
pub(crate) fn cancel_call(py: Python<'_>, call: u64) -> PyResult<()> {
    let channel = channel(py)?;
    channel.forget(call);
    send(py, channel, &ToSupervisor::Cancel { call: CallId(call) }, &[])
}

/// Such calls whose answers have come and that nobody has taken note of; waits for one for this many seconds.
#[pyfunction]
pub(crate) fn wait_ready(py: Python<'_>, seconds: Option<f64>) -> PyResult<Vec<u64>> {
    let (channel, until) = (channel(py)?, until(seconds)?);
    Ok(wait(py, || channel.wait_ready(until))?.unwrap_or_default())
}

/// The same for an event loop: reads what is there, and waits for nothing.
#[pyfunction]
pub(crate) fn look(py: Python<'_>) -> PyResult<Vec<u64>> {
    let channel = channel(py)?;
    channel.look_as_loop();
    if channel.is_closed() {
        return Err(closed(py)?);
    }
    Ok(channel.take_ready())
}

/// Says, where that matters, that an event loop has nothing to do.
#[pyfunction]
pub(crate) fn rest(py: Python<'_>) -> PyResult<()> {
    channel(py)?.page.set_waiting(true);
    Ok(())
}

/// The descriptors that an event loop has to watch.
#[pyfunction]
pub(crate) fn watched(py: Python<'_>) -> PyResult<(i32, i32)> {
    Ok(channel(py)?.watched()?)
}

/// Answers a call that was put off, of this actor or of another that has handed its caller on.
#[pyfunction]
pub(crate) fn reply(py: Python<'_>, caller: PyCaller, value: &Bound<'_, PyAny>) -> PyResult<()> {
    let channel = channel(py)?;
    let to = ReplyTo { call: CallId(caller.call), caller: caller.who() };
    let codec = if caller.is_plain { Codec::Data } else { Codec::Pickle };
    let content = match codec {
        Codec::Pickle => message_content(channel, value)?,
        Codec::Data => Content { bytes: PyBytes::new(py, &codec::dump_value(value)?), buffers: None, held: None },
    };
    acknowledge_noted(py, channel)?;
    let reply = Reply { to, outcome: Outcome::Returned(codec), done: None, is_last: false, buffers: content.buffers };
    send(py, channel, &ToSupervisor::Reply(reply), content.as_bytes())
}

/// A number that stands for a key of a partition supervisor, the same in every process.
#[pyfunction]
pub(crate) fn key_number(key: &Bound<'_, PyAny>) -> PyResult<u64> {
    if let Ok(number) = key.extract::<u64>()
        && !key.is_instance_of::<pyo3::types::PyBool>()
    {
        return Ok(number);
    }
    let bytes = codec::dump_value(key)
        .map_err(|error| PyRuntimeError::new_err(format!("a key is plain data, a text or a number mostly: {error}")))?;
    Ok(fnv1a(&bytes))
}

fn remote_error(py: Python<'_>, raised: &Raised, payload: &Payload) -> PyResult<PyErr> {
    let errors = py.import("rebeam._errors")?;
    let pickled = PyBytes::new(py, payload.as_slice());
    let error = errors.call_method1("remote", (&raised.kind, &raised.message, &raised.traceback, pickled))?;
    Ok(PyErr::from_value(error))
}
