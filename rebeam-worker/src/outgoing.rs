//! The ways to send: calls, casts, plain messages, answers.

use std::cell::Cell;
use std::time::{Duration, Instant};

use pyo3::exceptions::{PyOSError, PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyTuple};
use rebeam_protocol::exit::Raised;
use rebeam_protocol::hash::fnv1a;
use rebeam_protocol::id::{CallId, NodeStart, Pid, Seq};
use rebeam_protocol::message::{
    Address, CallFailure, Caller, Codec, Envelope, Form, Kind, Lane, Outcome, Reply, ReplyTo, ToSupervisor,
};

use crate::channel::Channel;
use crate::codec;
use crate::convert;
use crate::session::{channel, send, wait};
use crate::wire::Payload;

/// After a call's own deadline, how long to wait for the supervisor's word on what the callee does.
const LAST_WORD: Duration = Duration::from_secs(2);

/// The message that a thread has in hand.
#[derive(Clone, Copy)]
pub(crate) struct InHand {
    pub(crate) seq: Seq,
    pub(crate) reply_to: Option<ReplyTo>,
    pub(crate) codec: Codec,
}

thread_local! {
    pub(crate) static IN_HAND: Cell<Option<InHand>> = const { Cell::new(None) };
    /// Whether the handler of the message in hand has said that the answer comes later.
    pub(crate) static IS_DEFERRED: Cell<bool> = const { Cell::new(false) };
}

/// What is common to all that is sent: waits for room, encodes, sends.
struct Outgoing<'a, 'py> {
    to: Address,
    kind: Kind,
    form: Form,
    method: &'a str,
    payload: Bound<'py, PyBytes>,
    lane: Lane,
    until: Option<Instant>,
}

impl Outgoing<'_, '_> {
    fn send(self, py: Python<'_>, channel: &Channel) -> PyResult<()> {
        if self.lane != Lane::System
            && channel.is_shut(&self.to)
            && wait(py, || channel.wait_open(&self.to, self.until))?.is_none()
        {
            let label = rebeam_protocol::control::address_label(&self.to);
            return Err(convert::failure(py, &CallFailure::MailboxFull { target: label, waiting: 0 }));
        }
        let left = |until: Instant| until.saturating_duration_since(Instant::now()).as_millis() as u64;
        let envelope = Envelope {
            to: self.to,
            kind: self.kind,
            method: self.method.to_owned(),
            form: self.form,
            codec: Codec::Pickle,
            lane: self.lane,
            deadline_ms: match self.kind {
                Kind::Call { .. } => self.until.map(left),
                Kind::Cast | Kind::Info => None,
            },
            parent: IN_HAND.get().map(|message| message.seq),
            trace: None,
        };
        send(py, channel, &ToSupervisor::Send(envelope), self.payload.as_bytes())
    }

    /// Sends a call and waits for its answer.
    fn call<'py>(self, py: Python<'py>, channel: &Channel, call: CallId) -> PyResult<Bound<'py, PyAny>> {
        let until = self.until;
        channel.expect_reply(call);
        let result = (|| {
            self.send(py, channel)?;
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
}

fn lane(is_high: bool) -> Lane {
    if is_high { Lane::High } else { Lane::Normal }
}

/// The payload of a method's arguments.
fn arguments<'py>(
    py: Python<'py>,
    method: &str,
    args: &Bound<'py, PyTuple>,
    kwargs: &Bound<'py, PyDict>,
) -> PyResult<Bound<'py, PyBytes>> {
    let content = PyTuple::new(py, [args.as_any(), kwargs.as_any()])?;
    codec::dumps(&content).map_err(|error| {
        let explained = py
            .import("rebeam._pickling")
            .and_then(|module| module.call_method1("explain", (content, method, error.value(py))));
        explained.map_or_else(|error| error, PyErr::from_value)
    })
}

/// The payload of a message of free form.
fn message_payload<'py>(message: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyBytes>> {
    codec::dumps(message).map_err(|error| {
        let py = message.py();
        let explained = py
            .import("rebeam._pickling")
            .and_then(|module| module.call_method1("explain_message", (message, error.value(py))));
        explained.map_or_else(|error| error, PyErr::from_value)
    })
}

/// The payload and form of what an alarm is to send: a method's arguments, or a message of free form.
pub(crate) fn alarm_payload<'py>(
    py: Python<'py>,
    method: &str,
    is_method: bool,
    content: &Bound<'py, PyAny>,
) -> PyResult<Bound<'py, PyBytes>> {
    if !is_method {
        return message_payload(content);
    }
    let (args, kwargs): (Bound<'py, PyTuple>, Bound<'py, PyDict>) = content.extract()?;
    arguments(py, method, &args, &kwargs)
}

/// When a wait of so many seconds ends; `None`: never.
pub(crate) fn until(timeout: Option<f64>) -> PyResult<Option<Instant>> {
    match timeout {
        None => Ok(None),
        Some(seconds) => match Duration::try_from_secs_f64(seconds) {
            Ok(timeout) => Ok(Instant::now().checked_add(timeout)),
            Err(_) => Err(PyValueError::new_err(format!("a timeout of {seconds} seconds"))),
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
    let payload = arguments(py, method, args, kwargs)?;
    let until = until(timeout)?;
    let call = CallId(channel.next_id());
    let kind = Kind::Call { call, blocking: true };
    Outgoing { to, kind, form: Form::Arguments, method, payload, lane: lane(is_high), until }.call(py, channel, call)
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
    let payload = arguments(py, method, args, kwargs)?;
    let until = until(timeout)?;
    Outgoing { to, kind: Kind::Cast, form: Form::Arguments, method, payload, lane: lane(is_high), until }
        .send(py, channel)
}

/// Calls with a message of free form, for `handle_call`; on the system lane, with what is asked of the process.
#[pyfunction]
pub(crate) fn call_message<'py>(
    py: Python<'py>,
    to: &Bound<'py, PyAny>,
    method: &str,
    message: &Bound<'py, PyAny>,
    timeout: Option<f64>,
    is_system: bool,
) -> PyResult<Bound<'py, PyAny>> {
    let channel = channel(py)?;
    let to = convert::address(to)?;
    let payload = message_payload(message)?;
    let until = until(timeout)?;
    let call = CallId(channel.next_id());
    let kind = Kind::Call { call, blocking: true };
    let lane = if is_system { Lane::System } else { Lane::Normal };
    Outgoing { to, kind, form: Form::Message, method, payload, lane, until }.call(py, channel, call)
}

/// Sends a message of free form, for `handle_cast` or `handle_info`.
#[pyfunction]
pub(crate) fn send_message(
    py: Python<'_>,
    to: &Bound<'_, PyAny>,
    is_cast: bool,
    message: &Bound<'_, PyAny>,
    timeout: Option<f64>,
) -> PyResult<()> {
    let channel = channel(py)?;
    let to = convert::address(to)?;
    let payload = message_payload(message)?;
    let until = until(timeout)?;
    let (kind, method) = if is_cast { (Kind::Cast, "handle_cast") } else { (Kind::Info, "handle_info") };
    Outgoing { to, kind, form: Form::Message, method, payload, lane: Lane::Normal, until }.send(py, channel)
}

/// Who waits for the answer of the message in hand, as `rebeam.Caller` keeps it.
type PyCaller = (Option<(u32, u32, u64)>, u64, u64, bool);

/// The caller of the message in hand, if it is a call.
#[pyfunction]
pub(crate) fn caller() -> Option<PyCaller> {
    let in_hand = IN_HAND.get()?;
    let ReplyTo { caller, call } = in_hand.reply_to?;
    let is_data = in_hand.codec == Codec::Data;
    Some(match caller {
        Caller::Actor(pid) => (Some(convert::pid_numbers(pid)), 0, call.0, is_data),
        Caller::Outside(client) => (None, client, call.0, is_data),
    })
}

/// Says that the answer to the message in hand comes later, by [`reply`].
#[pyfunction]
pub(crate) fn defer() {
    IS_DEFERRED.set(true);
}

/// Answers a call that was put off, of this actor or of another that has handed its caller on.
#[pyfunction]
pub(crate) fn reply(py: Python<'_>, caller: PyCaller, value: &Bound<'_, PyAny>) -> PyResult<()> {
    let (pid, client, call, is_data) = caller;
    let caller = match pid {
        Some((node, started, serial)) => Caller::Actor(Pid { at: NodeStart { node, started }, serial }),
        None => Caller::Outside(client),
    };
    let codec = if is_data { Codec::Data } else { Codec::Pickle };
    let payload = match codec {
        Codec::Pickle => message_payload(value)?.as_bytes().to_vec(),
        Codec::Data => codec::dump_value(value)?,
    };
    let reply = Reply { to: ReplyTo { caller, call: CallId(call) }, outcome: Outcome::Returned(codec), done: None };
    send(py, channel(py)?, &ToSupervisor::Reply(reply), &payload)
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
