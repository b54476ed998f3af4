//! Requests to the supervisor itself: about names, other actors, supervisors and their children.

use std::os::fd::BorrowedFd;

use pyo3::exceptions::{PyOSError, PyTypeError};
use pyo3::prelude::*;
use pyo3::types::{IntoPyDict, PyBytes, PyDict};
use rebeam_protocol::id::{ActorId, Pid, RequestId};
use rebeam_protocol::message::{CallFailure, LogRecord, Waits};
use rebeam_protocol::process::{ChildError, Counts, ProcessAnswer, ProcessRequest, SupervisorRequest};
use rebeam_protocol::spec::{ChildKind, ChildSpec, Shutdown};
use rebeam_protocol::worker::ToSupervisor;

use crate::asked::Asked;
use crate::channel::Filed;
use crate::codec;
use crate::convert;
use crate::outgoing::{alarm_payload, until};
use crate::session::{self, channel, send, send_with, tell_news, wait};
use crate::spec;
use crate::wire::Payload;

/// A pid as Python has it.
pub(crate) type PyPid = (u32, u32, u64);

pub(crate) fn unfit<T>(answer: &impl std::fmt::Debug) -> PyResult<T> {
    Err(PyOSError::new_err(format!("an unexpected answer: {answer:?}")))
}

/// Asks something that belongs to some content, and is answered at once.
pub(crate) fn ask_about(py: Python<'_>, body: ProcessRequest, content: &[u8]) -> PyResult<ProcessAnswer> {
    Ok(ask_answer(py, body, content, None)?.0)
}

/// As [`ask_about`], with a descriptor, and with what comes with the answer.
pub(crate) fn ask_answer(
    py: Python<'_>,
    body: ProcessRequest,
    content: &[u8],
    descriptor: Option<BorrowedFd<'_>>,
) -> PyResult<(ProcessAnswer, Payload)> {
    let channel = channel(py)?;
    tell_news(py, channel)?;
    let number = channel.next_id();
    channel.expect(number);
    let request = ToSupervisor::Request { request: RequestId(number), body };
    let answer = send_with(py, channel, &request, content, descriptor)
        .and_then(|()| wait(py, || channel.wait_filed(number, None)));
    channel.forget(number);
    match answer? {
        Some(Filed::Answer(ProcessAnswer::TooLarge(text), _)) => Err(session::answer_too_large(py, &text)),
        Some(Filed::Answer(answer, payload)) => Ok((answer, payload)),
        _ => Err(PyOSError::new_err("an unexpected answer")),
    }
}

/// Asks something that is answered at once.
pub(crate) fn ask(py: Python<'_>, request: ProcessRequest) -> PyResult<ProcessAnswer> {
    ask_about(py, request, &[])
}

/// Asks for the node to be stopped.
#[pyfunction]
pub(crate) fn request_down(py: Python<'_>) -> PyResult<()> {
    ask(py, ProcessRequest::StopNode).map(drop)
}

/// The living incarnation behind an address.
#[pyfunction]
pub(crate) fn resolve(py: Python<'_>, to: &Bound<'_, PyAny>) -> PyResult<Option<PyPid>> {
    match ask(py, ProcessRequest::Resolve(convert::address(to)?))? {
        ProcessAnswer::Pid(pid) => Ok(pid.map(convert::pid_numbers)),
        other => unfit(&other),
    }
}

/// Links this actor with an incarnation; false if there is no such one.
#[pyfunction]
pub(crate) fn link(py: Python<'_>, to: &Bound<'_, PyAny>) -> PyResult<bool> {
    Ok(ask(py, ProcessRequest::Link(convert::pid(to)?))? == ProcessAnswer::Ok)
}

/// Takes a link back.
#[pyfunction]
pub(crate) fn unlink(py: Python<'_>, to: &Bound<'_, PyAny>) -> PyResult<()> {
    ask(py, ProcessRequest::Unlink(convert::pid(to)?)).map(drop)
}

/// Has exit signals come as messages, or not.
#[pyfunction]
pub(crate) fn trap_exits(py: Python<'_>, traps: bool) -> PyResult<()> {
    ask(py, ProcessRequest::TrapExits(traps)).map(drop)
}

/// Watches an incarnation; gives the monitor's number.
#[pyfunction]
pub(crate) fn monitor(py: Python<'_>, to: &Bound<'_, PyAny>) -> PyResult<u64> {
    match ask(py, ProcessRequest::Monitor(convert::address(to)?))? {
        ProcessAnswer::Monitor(monitor) => Ok(monitor),
        other => unfit(&other),
    }
}

/// Watches no longer; with `flush`, a notice that has come is taken out of the mailbox, too.
#[pyfunction]
pub(crate) fn demonitor(py: Python<'_>, monitor: u64, flush: bool) -> PyResult<()> {
    ask(py, ProcessRequest::Demonitor { monitor, flush })?;
    if flush {
        let channel = channel(py)?;
        // What was handed over before the answer lies here.
        let done = channel.take_back(monitor);
        if !done.is_empty() {
            send(py, channel, &ToSupervisor::Ack { done }, &[])?;
        }
    }
    Ok(())
}

/// Sends an exit signal.
#[pyfunction]
pub(crate) fn exit_signal(py: Python<'_>, to: &Bound<'_, PyAny>, reason: convert::PyReason) -> PyResult<()> {
    let reason = reason.try_into()?;
    ask(py, ProcessRequest::Exit { to: convert::address(to)?, reason }).map(drop)
}

/// Kills.
#[pyfunction]
pub(crate) fn kill(py: Python<'_>, to: &Bound<'_, PyAny>, is_hung: bool) -> PyResult<()> {
    ask(py, ProcessRequest::Kill { to: convert::address(to)?, is_hung }).map(drop)
}

/// Stops and waits for the end. Gives a word, `ok`, `noproc`, `self`, `timeout` or `other`, and the other reason.
#[pyfunction]
pub(crate) fn stop(to: &Bound<'_, PyAny>, reason: convert::PyReason, timeout: Option<f64>) -> PyResult<Asked> {
    let request = ProcessRequest::Stop { to: convert::address(to)?, reason: reason.try_into()? };
    Ok(Asked::request(request, until(timeout)?, |py, answer| {
        let found: (&str, Option<convert::ReasonFields>) = match answer.map(|(answer, _)| answer) {
            None => ("timeout", None),
            Some(ProcessAnswer::Ok) => ("ok", None),
            Some(ProcessAnswer::NoProc) => ("noproc", None),
            Some(ProcessAnswer::Child(ChildError::WaitingForYou)) => ("self", None),
            Some(ProcessAnswer::EndedWith(reason)) => ("other", Some(convert::reason_fields(&reason))),
            Some(other) => return unfit(&other),
        };
        Ok(found.into_pyobject(py)?.into_any().unbind())
    }))
}

/// Sends later; gives the number of the timer.
#[pyfunction]
#[pyo3(signature = (to, after, *, every, method, content))]
pub(crate) fn send_after(
    py: Python<'_>,
    to: &Bound<'_, PyAny>,
    after: f64,
    every: Option<f64>,
    method: Option<&str>,
    content: &Bound<'_, PyAny>,
) -> PyResult<u64> {
    let is_method = method.is_some();
    let name = method.unwrap_or("handle_info");
    convert::check_length("method", name.len())?;
    let payload = alarm_payload(py, name, is_method, content)?;
    let timer = channel(py)?.next_id();
    let ms = |seconds: f64| (seconds * 1000.0).ceil() as u64;
    let request = ProcessRequest::SendAfter {
        timer,
        to: convert::address(to)?,
        after_ms: ms(after),
        every_ms: every.map(ms),
        method: name.to_owned(),
        is_method,
    };
    ask_about(py, request, payload.as_bytes())?;
    Ok(timer)
}

/// Takes a timer back; gives the seconds it had left.
#[pyfunction]
pub(crate) fn cancel_timer(py: Python<'_>, maker: &Bound<'_, PyAny>, timer: u64) -> PyResult<Option<f64>> {
    match ask(py, ProcessRequest::CancelTimer { maker: convert::pid(maker)?, timer })? {
        ProcessAnswer::TimeLeft(left) => Ok(left.map(|ms| ms as f64 / 1000.0)),
        other => unfit(&other),
    }
}

/// A child as `which_children` lists it.
#[derive(IntoPyObject)]
struct ChildEntry {
    id: String,
    number: u64,
    pid: Option<PyPid>,
    is_restarting: bool,
    is_supervisor: bool,
    class_name: String,
}

/// Asks a supervisor about its children. `what` is the name of a method of `rebeam.SupervisorRef`, `child` a spec or
/// whatever names a child.
#[pyfunction]
#[pyo3(signature = (to, what, child = None, reason = None))]
pub(crate) fn supervisor(
    py: Python<'_>,
    to: &Bound<'_, PyAny>,
    what: &str,
    child: Option<Bound<'_, PyAny>>,
    reason: Option<convert::PyReason>,
) -> PyResult<Asked> {
    let child = &child.unwrap_or_else(|| py.None().into_bound(py));
    let request = match what {
        "start_child" => SupervisorRequest::Start(Box::new(spec::child(child)?)),
        "terminate_child" => SupervisorRequest::Terminate(convert::child_address(child)?),
        "restart_child" => SupervisorRequest::Restart(convert::child_address(child)?),
        "delete_child" => SupervisorRequest::Delete(convert::child_address(child)?),
        "exit_child" => {
            let reason = reason.ok_or_else(|| PyTypeError::new_err("a reason is missing"))?;
            SupervisorRequest::Exit(convert::child_address(child)?, reason.try_into()?)
        }
        "which_children" => SupervisorRequest::Which,
        "count_children" => SupervisorRequest::Count,
        "child_spec" => SupervisorRequest::Spec(convert::child_address(child)?),
        _ => return Err(PyTypeError::new_err(format!("a supervisor is not asked for `{what}`"))),
    };
    let waits = Waits::Nobody;
    let request = ProcessRequest::Supervisor { supervisor: convert::address(to)?, request, waits };
    let to = to.clone().unbind();
    Ok(Asked::request(request, None, move |py, answer| {
        let (answer, payload) = answered(answer)?;
        Ok(supervisor_said(py, to.bind(py), answer, &payload)?.unbind())
    }))
}

/// The answer to what has no time limit of its own.
fn answered(answer: Option<(ProcessAnswer, Payload)>) -> PyResult<(ProcessAnswer, Payload)> {
    answer.ok_or_else(|| PyOSError::new_err("the supervisor does not answer"))
}

fn supervisor_said<'py>(
    py: Python<'py>,
    to: &Bound<'py, PyAny>,
    answer: ProcessAnswer,
    payload: &Payload,
) -> PyResult<Bound<'py, PyAny>> {
    Ok(match answer {
        ProcessAnswer::Started { actor, pid } => started_fields(py, actor, pid, payload)?,
        ProcessAnswer::Deadlock(cycle) => return Err(convert::failure(py, &CallFailure::Deadlock { cycle })),
        ProcessAnswer::Children(children) => {
            let entries = children.into_iter().map(|child| ChildEntry {
                id: child.id,
                number: child.actor.0,
                pid: child.pid.map(convert::pid_numbers),
                is_restarting: child.is_restarting,
                is_supervisor: child.is_supervisor,
                class_name: child.class,
            });
            entries.collect::<Vec<_>>().into_pyobject(py)?.into_any()
        }
        ProcessAnswer::Counts(counts) => {
            let Counts { specs, active, supervisors, workers } = counts;
            let fields = [("specs", specs), ("active", active), ("supervisors", supervisors), ("workers", workers)];
            fields.into_py_dict(py)?.into_any()
        }
        ProcessAnswer::Spec(spec) => spec_fields(py, &spec)?.into_any(),
        ProcessAnswer::Child(error) => return Err(child_error(py, &error)?),
        ProcessAnswer::NoProc => return Err(no_supervisor(py, to)?),
        _ => py.None().into_bound(py),
    })
}

/// Starts a child under the node's own dynamic supervisor.
#[pyfunction]
#[pyo3(signature = (child, *, is_owned, is_linked))]
pub(crate) fn spawn(child: &Bound<'_, PyAny>, is_owned: bool, is_linked: bool) -> PyResult<Asked> {
    let child = Box::new(spec::child(child)?);
    let request = ProcessRequest::Spawn { child, is_owned, is_linked, waits: Waits::Nobody };
    Ok(Asked::request(request, None, |py, answer| match answered(answer)? {
        (ProcessAnswer::Started { actor, pid }, payload) => Ok(started_fields(py, actor, pid, &payload)?.unbind()),
        (ProcessAnswer::Child(error), _) => Err(child_error(py, &error)?),
        (other, _) => unfit(&other),
    }))
}

/// Waits until a running incarnation is behind an address; `None` if the time is over, or if there will never be one.
#[pyfunction]
pub(crate) fn wait_for(to: &Bound<'_, PyAny>, timeout: Option<f64>) -> PyResult<Asked> {
    let timeout_ms = timeout.map(|seconds| (seconds.max(0.0) * 1000.0).ceil() as u64);
    let request = ProcessRequest::WaitFor { to: convert::address(to)?, timeout_ms, waits: Waits::Nobody };
    Ok(Asked::request(request, None, |py, answer| match answered(answer)?.0 {
        ProcessAnswer::Pid(pid) => Ok(pid.map(convert::pid_numbers).into_pyobject(py)?.unbind()),
        ProcessAnswer::Deadlock(cycle) => Err(convert::failure(py, &CallFailure::Deadlock { cycle })),
        other => unfit(&other),
    }))
}

/// An actor's number, its incarnation, and what its `init` handed back, by their names.
fn started_fields<'py>(
    py: Python<'py>,
    actor: ActorId,
    pid: Option<Pid>,
    payload: &Payload,
) -> PyResult<Bound<'py, PyAny>> {
    let info = match payload.as_slice() {
        [] => py.None().into_bound(py),
        bytes => codec::loads(py, bytes)?,
    };
    let started = PyDict::new(py);
    started.set_item("number", actor.0)?;
    started.set_item("pid", pid.map(convert::pid_numbers))?;
    started.set_item("info", info)?;
    Ok(started.into_any())
}

/// Has a message come for every dead letter, or no more.
#[pyfunction]
pub(crate) fn watch_dead_letters(py: Python<'_>, watches: bool) -> PyResult<()> {
    ask(py, ProcessRequest::WatchDeadLetters(watches)).map(drop)
}

fn no_supervisor(py: Python<'_>, to: &Bound<'_, PyAny>) -> PyResult<PyErr> {
    Ok(PyErr::from_value(py.import("rebeam._errors")?.call_method1("no_supervisor", (to,))?))
}

fn child_error(py: Python<'_>, error: &ChildError) -> PyResult<PyErr> {
    let kind = match error {
        ChildError::NotFound => "not_found",
        ChildError::Running => "running",
        ChildError::Restarting => "restarting",
        ChildError::AlreadyStarted(_) => "already_started",
        ChildError::AlreadyPresent => "already_present",
        ChildError::StartFailed { .. } => "start_failed",
        ChildError::MaxChildren => "max_children",
        ChildError::Unsupported => "unsupported",
        ChildError::Ending => "ending",
        ChildError::BadSpec(_) => "bad_spec",
        ChildError::WaitingForYou => "waiting_for_you",
    };
    let pid = if let ChildError::AlreadyStarted(pid) = error { Some(convert::pid_numbers(*pid)) } else { None };
    let (child, reason) = match error {
        ChildError::StartFailed { child, reason } => (Some(child), Some(convert::reason_fields(reason))),
        _ => (None, None),
    };
    let made =
        py.import("rebeam._errors")?.call_method1("child_error", (kind, error.to_string(), pid, reason, child))?;
    Ok(PyErr::from_value(made))
}

/// The fields of a spec that do not need its class.
fn spec_fields<'py>(py: Python<'py>, spec: &ChildSpec) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("id", &spec.id)?;
    dict.set_item("restart", spec::restart_word(spec.restart))?;
    match spec.shutdown {
        Shutdown::BrutalKill => dict.set_item("shutdown", "brutal_kill")?,
        Shutdown::Infinity => dict.set_item("shutdown", "infinity")?,
        Shutdown::Timeout(ms) => dict.set_item("shutdown", ms as f64 / 1000.0)?,
    }
    dict.set_item("significant", spec.significant)?;
    match &spec.kind {
        ChildKind::Actor(actor) => {
            dict.set_item("kind", "worker")?;
            dict.set_item("name", &actor.name)?;
            dict.set_item("class_name", &actor.class)?;
            dict.set_item("start", PyBytes::new(py, &actor.start))?;
        }
        ChildKind::Supervisor(inner) => {
            dict.set_item("kind", "supervisor")?;
            dict.set_item("name", &inner.name)?;
            dict.set_item("class_name", "rebeam.Supervisor")?;
            dict.set_item("start", py.None())?;
        }
    }
    Ok(dict)
}

/// Says whether this actor is ready for what it is there for: why it is not, or `None`.
#[pyfunction]
pub(crate) fn set_readiness(py: Python<'_>, not_ready: Option<String>) -> PyResult<()> {
    send(py, channel(py)?, &ToSupervisor::Readiness { not_ready }, &[])
}

/// Sends a log record.
#[pyfunction]
#[pyo3(signature = (*, time, level, logger, message, exception, extra))]
pub(crate) fn log(
    py: Python<'_>,
    time: f64,
    level: u16,
    logger: String,
    message: String,
    exception: Option<String>,
    extra: Option<String>,
) -> PyResult<()> {
    let record = LogRecord { time_ms: (time * 1000.0) as u64, level, logger, message, exception, extra };
    send(py, channel(py)?, &ToSupervisor::Log(record), &[])
}
