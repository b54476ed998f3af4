//! The protocol's own types to Python and back: addresses, exit reasons, certificates, failures. Specs are in `spec`.

use pyo3::exceptions::{PyException, PyTypeError, PyValueError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyInt, PyString};
use rebeam_protocol::address::{Address, LONGEST_NAME};
use rebeam_protocol::certificate::{Certificate, Next};
use rebeam_protocol::exit::{ExitReason, Raised, signal_name};
use rebeam_protocol::id::{ActorId, NodeStart, Pid};
use rebeam_protocol::message::{CallFailure, DeadLetter};
use rebeam_protocol::process::ChildAddress;

use crate::ledger;

/// Whether an error says that something is wrong with what was at hand. What is no `Exception` (an exit signal, for one)
/// says that the actor is to end, whatever it was at, and must go on its way.
pub(crate) fn is_fault(py: Python<'_>, error: &PyErr) -> bool {
    error.is_instance_of::<PyException>(py)
}

/// What an error that is a fault says; any other is given back.
pub(crate) fn fault(py: Python<'_>, error: PyErr) -> PyResult<String> {
    if !is_fault(py, &error) {
        return Err(error);
    }
    py.import("rebeam._failure")?.call_method1("message_of", (error.value(py),))?.extract()
}

/// An address as `rebeam._ref` writes it: a name, an actor's number, a pid's three numbers, the name of a partition
/// supervisor with a key's number, the name of a registry with an encoded key, or a group's name alone in a tuple.
pub(crate) fn address(object: &Bound<'_, PyAny>) -> PyResult<Address> {
    let to = if object.is_instance_of::<PyString>() {
        Address::Name(object.extract()?)
    } else if object.is_instance_of::<PyInt>() {
        Address::Actor(ActorId(object.extract()?))
    } else if let Ok((name, key)) = object.extract() {
        Address::Partition { name, key }
    } else if let Ok((registry, key)) = object.extract::<(String, Bound<'_, PyBytes>)>() {
        Address::Via { registry, key: key.as_bytes().to_vec() }
    } else if let Ok((group,)) = object.extract() {
        Address::Group(group)
    } else {
        Address::Pid(pid(object)?)
    };
    check_length("name", to.name_length())?;
    Ok(to)
}

/// Refuses a name or a method that is longer than any may be.
pub(crate) fn check_length(what: &str, length: usize) -> PyResult<()> {
    match length > LONGEST_NAME {
        true => Err(PyValueError::new_err(format!("a {what} of {length} bytes: it may have {LONGEST_NAME}"))),
        false => Ok(()),
    }
}

/// A pid of its three numbers.
pub(crate) fn pid(object: &Bound<'_, PyAny>) -> PyResult<Pid> {
    let (node, started, serial) = object.extract()?;
    Ok(Pid { at: NodeStart { node, started }, serial })
}

/// A child of a supervisor: an id, an actor's number, or a pid's three numbers.
pub(crate) fn child_address(object: &Bound<'_, PyAny>) -> PyResult<ChildAddress> {
    Ok(match address(object)? {
        Address::Name(id) => ChildAddress::Id(id),
        Address::Actor(id) => ChildAddress::Actor(id),
        Address::Pid(pid) => ChildAddress::Pid(pid),
        Address::Partition { .. } | Address::Via { .. } | Address::Group(_) => {
            return Err(PyTypeError::new_err("a key names no child: give its handle or its `Pid`"));
        }
    })
}

/// Has an exception know its traceback, which before Python 3.12 stands beside one that is on its way. Past the
/// exception's own class, which may forbid to set anything.
pub(crate) fn set_traceback(py: Python<'_>, error: &PyErr) {
    if let Some(traceback) = error.traceback(py) {
        // SAFETY: the interpreter is attached, and both are objects of the kinds that are asked for.
        unsafe { ffi::PyException_SetTraceback(error.value(py).as_ptr(), traceback.as_ptr()) };
    }
}

/// The fields of `rebeam.Pid`.
pub(crate) type PidNumbers = (u32, u32, u64);

/// A pid as three numbers.
pub(crate) fn pid_numbers(pid: Pid) -> PidNumbers {
    (pid.at.node, pid.at.started, pid.serial)
}

/// The fields of `rebeam.ExitReason`: kind, text, traceback.
pub(crate) fn reason_fields(reason: &ExitReason) -> ReasonFields {
    let kind = reason.kind();
    match reason {
        ExitReason::Exception(raised) => (kind, raised.to_string(), Some(raised.traceback.clone())),
        ExitReason::Shutdown(detail) => (kind, detail.clone().unwrap_or_default(), None),
        ExitReason::ExitCode(code) => (kind, code.to_string(), None),
        ExitReason::Signal(number) => (kind, signal_name(*number), None),
        ExitReason::Other(text)
        | ExitReason::BadProtocol(text)
        | ExitReason::NotStarted(text)
        | ExitReason::NameTaken(text)
        | ExitReason::BadReturn(text)
        | ExitReason::LimitExceeded(text) => (kind, text.clone(), None),
        ExitReason::MemoryLimit(used, limit) => (kind, format!("{} of {} MiB", used / 1024, limit / 1024), None),
        _ => (kind, String::new(), None),
    }
}

/// `rebeam.ExitReason` on its way to Python: kind, detail, traceback.
pub(crate) type ReasonFields = (&'static str, String, Option<String>);

/// `rebeam.ExitReason` on its way from Python.
#[derive(FromPyObject)]
pub(crate) struct PyReason {
    kind: String,
    detail: String,
    traceback: Option<String>,
}

impl TryFrom<PyReason> for ExitReason {
    type Error = PyErr;

    fn try_from(reason: PyReason) -> PyResult<Self> {
        self::reason(&reason.kind, reason.detail, reason.traceback)
    }
}

/// The exit reason that `rebeam._boot` reports: a kind and what belongs to it.
pub(crate) fn reason(kind: &str, text: String, traceback: Option<String>) -> PyResult<ExitReason> {
    Ok(match kind {
        "normal" => ExitReason::Normal,
        "shutdown" => ExitReason::Shutdown(Some(text).filter(|text| !text.is_empty())),
        "exit_code" => ExitReason::ExitCode(text.parse().unwrap_or(1)),
        "exception" => {
            let (kind, message) = text.split_once(": ").unwrap_or((&text, ""));
            let (kind, message) = (kind.to_owned(), message.to_owned());
            ExitReason::Exception(Raised { kind, message, traceback: traceback.unwrap_or_default() })
        }
        "bad_return" => ExitReason::BadReturn(text),
        "killed" => ExitReason::Killed,
        "noproc" => ExitReason::NoProc,
        "other" => ExitReason::Other(text),
        _ => return Err(PyTypeError::new_err(format!("`{kind}` is no kind of exit reason"))),
    })
}

/// A certificate as a dictionary, from which Python makes its own object.
pub(crate) fn certificate<'py>(py: Python<'py>, certificate: &Certificate) -> PyResult<Bound<'py, PyDict>> {
    certificate_then(py, certificate, certificate.next)
}

/// The same, with what followed.
pub(crate) fn certificate_then<'py>(
    py: Python<'py>,
    certificate: &Certificate,
    then: Next,
) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("actor", &certificate.actor)?;
    dict.set_item("pid", pid_numbers(certificate.pid))?;
    dict.set_item("os_pid", certificate.os_pid)?;
    dict.set_item("reason", reason_fields(&certificate.reason))?;
    let in_hand: Vec<_> = certificate
        .in_hand
        .iter()
        .map(|message| (&message.method, &message.sender, message.age_ms as f64 / 1000.0, message.delivery))
        .collect();
    dict.set_item("in_hand", in_hand)?;
    dict.set_item("killer", certificate.killer.words())?;
    dict.set_item("stacks", &certificate.stacks)?;
    let (next, after_ms) = match then {
        Next::Nothing => (None, 0),
        Next::Restarts { after_ms } => (Some("restarts"), after_ms),
        Next::StaysDown => (Some("stays_down"), 0),
        Next::GivesUp { .. } => (Some("gives_up"), 0),
        Next::Parked => (Some("parked"), 0),
        Next::Undone { .. } => (Some("undone"), 0),
    };
    let undone = if let Next::Undone { to, lost, .. } = then { Some((to.0, lost)) } else { None };
    dict.set_item("undone", undone)?;
    dict.set_item("version", certificate.code.0)?;
    dict.set_item("next", next)?;
    dict.set_item("restarts_after", after_ms as f64 / 1000.0)?;
    dict.set_item("last_output", &certificate.last_output)?;
    dict.set_item("age", certificate.age_ms as f64 / 1000.0)?;
    dict.set_item("restarts", certificate.restarts)?;
    dict.set_item("cpu", certificate.cpu_ms as f64 / 1000.0)?;
    dict.set_item("peak_kib", certificate.peak_kib)?;
    Ok(dict)
}

/// A dead letter, made by `rebeam._dead_letters`.
pub(crate) fn dead_letter<'py>(py: Python<'py>, letter: &DeadLetter) -> PyResult<Bound<'py, PyAny>> {
    let fields = PyDict::new(py);
    fields.set_item("id", letter.id)?;
    fields.set_item("to", &letter.to)?;
    fields.set_item("sender", &letter.sender)?;
    fields.set_item("method", &letter.method)?;
    fields.set_item("cause", letter.cause.word())?;
    fields.set_item("deliveries", letter.deliveries)?;
    fields.set_item("bytes", letter.bytes)?;
    py.import("rebeam._server")?.getattr("DeadLetter")?.call((), Some(&fields))
}

/// The error for a call that has no answer, made by `rebeam._errors`.
pub(crate) fn failure(py: Python<'_>, failure: &CallFailure) -> PyErr {
    let made = (|| -> PyResult<Bound<'_, PyAny>> {
        let errors = py.import("rebeam._errors")?;
        match failure {
            CallFailure::NoProc { target, similar, is_down } => {
                let similar = if similar.is_empty() && !is_down { &ledger::similar_names(target) } else { similar };
                errors.call_method1("no_proc", (target, similar, *is_down))
            }
            CallFailure::Died { certificate: dead, begun } => {
                errors.call_method1("actor_died", (certificate(py, dead)?, begun))
            }
            CallFailure::TimedOut(callee) => {
                let (method, since) = match &callee.busy {
                    Some((method, ms)) => (Some(method), *ms as f64 / 1000.0),
                    None => (None, 0.0),
                };
                let fields = PyDict::new(py);
                fields.set_item("target", &callee.target)?;
                fields.set_item("state", callee.state.word())?;
                fields.set_item("method", method)?;
                fields.set_item("busy", since)?;
                fields.set_item("waiting", callee.waiting)?;
                errors.call_method("call_timeout", (), Some(&fields))
            }
            CallFailure::Deadlock { cycle } => errors.call_method1("deadlock", (cycle,)),
            CallFailure::Restarting { target } => errors.call_method1("restarting", (target,)),
            CallFailure::MailboxFull { target, waiting } => errors.call_method1("mailbox_full", (target, waiting)),
            CallFailure::BadCall(text) => errors.call_method1("bad_call", (text,)),
            CallFailure::BadResult(text) => errors.call_method1("bad_result", (text,)),
        }
    })();
    match made {
        Ok(error) => PyErr::from_value(error),
        Err(error) => error,
    }
}
