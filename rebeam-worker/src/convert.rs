//! The protocol's own types to Python and back: addresses, exit reasons, certificates, failures, specs.

use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyInt, PyString, PyTuple};
use rebeam_protocol::certificate::Certificate;
use rebeam_protocol::exit::{ExitReason, Raised, signal_name};
use rebeam_protocol::id::{ActorId, NodeStart, Pid};
use rebeam_protocol::message::{Address, CallFailure};
use rebeam_protocol::spec::{
    ActorSpec, AutoShutdown, ChildKind, ChildSpec, MailboxLimits, Restart, Shutdown, Strategy, SupervisorSpec,
};

use crate::codec;

/// An address as `rebeam._ref` writes it: a name, an actor's number, or a pid's three numbers.
pub(crate) fn address(object: &Bound<'_, PyAny>) -> PyResult<Address> {
    if object.is_instance_of::<PyString>() {
        Ok(Address::Name(object.extract()?))
    } else if object.is_instance_of::<PyInt>() {
        Ok(Address::Actor(ActorId(object.extract()?)))
    } else {
        let (node, started, serial) = object.extract()?;
        Ok(Address::Pid(Pid { at: NodeStart { node, started }, serial }))
    }
}

/// A pid as three numbers.
pub(crate) fn pid_numbers(pid: Pid) -> (u32, u32, u64) {
    (pid.at.node, pid.at.started, pid.serial)
}

/// The fields of `rebeam.ExitReason`: kind, text, traceback.
pub(crate) fn reason_fields(reason: &ExitReason) -> (&'static str, String, Option<String>) {
    let kind = reason.kind();
    match reason {
        ExitReason::Exception(raised) => (kind, raised.to_string(), Some(raised.traceback.clone())),
        ExitReason::Shutdown(detail) => (kind, detail.clone().unwrap_or_default(), None),
        ExitReason::ExitCode(code) => (kind, code.to_string(), None),
        ExitReason::Signal(number) => (kind, signal_name(*number), None),
        ExitReason::Other(text) | ExitReason::BadProtocol(text) | ExitReason::NotStarted(text) => {
            (kind, text.clone(), None)
        }
        _ => (kind, String::new(), None),
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
        "other" => ExitReason::Other(text),
        _ => return Err(PyTypeError::new_err(format!("`{kind}` is no kind of exit reason"))),
    })
}

/// A certificate as a dictionary, from which Python makes its own object.
fn certificate<'py>(py: Python<'py>, certificate: &Certificate) -> PyResult<Bound<'py, PyDict>> {
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
    dict.set_item("last_output", &certificate.last_output)?;
    dict.set_item("age", certificate.age_ms as f64 / 1000.0)?;
    dict.set_item("restarts", certificate.restarts)?;
    dict.set_item("cpu", certificate.cpu_ms as f64 / 1000.0)?;
    dict.set_item("peak_kib", certificate.peak_kib)?;
    Ok(dict)
}

/// The error for a call that has no answer, made by `rebeam._errors`.
pub(crate) fn failure(py: Python<'_>, failure: &CallFailure) -> PyErr {
    let made = (|| -> PyResult<Bound<'_, PyAny>> {
        let errors = py.import("rebeam._errors")?;
        match failure {
            CallFailure::NoProc { target, similar } => errors.call_method1("no_proc", (target, similar)),
            CallFailure::Died(dead) => errors.call_method1("actor_died", (certificate(py, dead)?,)),
            CallFailure::TimedOut(callee) => {
                let (method, since) = match &callee.busy {
                    Some((method, ms)) => (Some(method), *ms as f64 / 1000.0),
                    None => (None, 0.0),
                };
                let fields = (&callee.target, &callee.state, method, since, callee.waiting);
                errors.call_method1("call_timeout", fields)
            }
            CallFailure::CallingSelf { target } => errors.call_method1("calling_self", (target,)),
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

/// A tree as `rebeam._spec` describes it: a `Supervisor` and what hangs on it.
pub(crate) fn supervisor_spec(object: &Bound<'_, PyAny>, id: String) -> PyResult<SupervisorSpec> {
    let strategy: String = object.getattr("strategy")?.extract()?;
    let auto_shutdown: String = object.getattr("auto_shutdown")?.extract()?;
    let max_seconds: f64 = object.getattr("max_seconds")?.extract()?;
    let children = object.getattr("children")?;
    Ok(SupervisorSpec {
        id,
        strategy: match strategy.as_str() {
            "one_for_all" => Strategy::OneForAll,
            "rest_for_one" => Strategy::RestForOne,
            _ => Strategy::OneForOne,
        },
        max_restarts: object.getattr("max_restarts")?.extract()?,
        max_ms: (max_seconds * 1000.0).ceil() as u64,
        auto_shutdown: match auto_shutdown.as_str() {
            "any_significant" => AutoShutdown::AnySignificant,
            "all_significant" => AutoShutdown::AllSignificant,
            _ => AutoShutdown::Never,
        },
        children: children.try_iter()?.map(|child| child_spec(&child?)).collect::<PyResult<_>>()?,
    })
}

fn child_spec(object: &Bound<'_, PyAny>) -> PyResult<ChildSpec> {
    let id: String = object.getattr("id")?.extract()?;
    let restart: String = object.getattr("restart")?.extract()?;
    let kind = if object.getattr("is_supervisor")?.is_truthy()? {
        ChildKind::Supervisor(supervisor_spec(object, id.clone())?)
    } else {
        let start = object.getattr("start")?.cast_into::<PyTuple>()?;
        let pickled = codec::dumps(&start).or_else(|error| {
            let spec = object.py().import("rebeam._spec")?;
            Err(PyErr::from_value(spec.call_method1("unpicklable", (object, error.value(object.py())))?))
        })?;
        let start_timeout: Option<f64> = object.getattr("start_timeout")?.extract()?;
        let (messages, bytes) = object.getattr("mailbox_limits")?.extract()?;
        ChildKind::Actor(ActorSpec {
            name: object.getattr("name")?.extract()?,
            class: object.getattr("class_name")?.extract()?,
            start: pickled.as_bytes().to_vec(),
            start_ms: start_timeout.map(|seconds| (seconds * 1000.0) as u64),
            mailbox: MailboxLimits { messages, bytes },
        })
    };
    let shutdown = object.getattr("shutdown")?;
    let shutdown = match shutdown.extract::<f64>() {
        Ok(seconds) => Shutdown::Timeout((seconds * 1000.0) as u64),
        Err(_) if shutdown.extract::<String>()? == "brutal_kill" => Shutdown::BrutalKill,
        Err(_) => Shutdown::Infinity,
    };
    Ok(ChildSpec {
        id,
        restart: match restart.as_str() {
            "transient" => Restart::Transient,
            "temporary" => Restart::Temporary,
            _ => Restart::Permanent,
        },
        shutdown,
        significant: object.getattr("significant")?.extract()?,
        kind,
    })
}
