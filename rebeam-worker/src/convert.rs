//! The protocol's own types to Python and back: addresses, exit reasons, certificates, failures, specs.

use pyo3::exceptions::{PyException, PyTypeError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyInt, PyString, PyTuple};
use rebeam_protocol::address::Address;
use rebeam_protocol::certificate::{Certificate, Next};
use rebeam_protocol::exit::{ExitReason, Raised, signal_name};
use rebeam_protocol::id::{ActorId, NodeStart, Pid};
use rebeam_protocol::message::{CallFailure, DeadLetter};
use rebeam_protocol::process::ChildAddress;
use rebeam_protocol::spec::{
    ActorSpec, AutoShutdown, Backoff, ChildKind, ChildSpec, Limits, MAX_DEPTH, MailboxOptions, OnGiveup, Overflow,
    ProcessOptions, Restart, Shutdown, Strategy, SupervisorKind, SupervisorSpec,
};

use crate::codec;

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
    if object.is_instance_of::<PyString>() {
        Ok(Address::Name(object.extract()?))
    } else if object.is_instance_of::<PyInt>() {
        Ok(Address::Actor(ActorId(object.extract()?)))
    } else if let Ok((name, key)) = object.extract() {
        Ok(Address::Partition { name, key })
    } else if let Ok((registry, key)) = object.extract::<(String, Bound<'_, PyBytes>)>() {
        Ok(Address::Via { registry, key: key.as_bytes().to_vec() })
    } else if let Ok((group,)) = object.extract() {
        Ok(Address::Group(group))
    } else {
        Ok(Address::Pid(pid(object)?))
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
        ExitReason::Other(text)
        | ExitReason::BadProtocol(text)
        | ExitReason::NotStarted(text)
        | ExitReason::NameTaken(text)
        | ExitReason::BadReturn(text) => (kind, text.clone(), None),
        ExitReason::MemoryLimit(used, limit) => (kind, format!("{} of {} MiB", used / 1024, limit / 1024), None),
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
    next: Next,
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
    let (next, after_ms) = match next {
        Next::Nothing => (None, 0),
        Next::Restarts { after_ms } => (Some("restarts"), after_ms),
        Next::StaysDown => (Some("stays_down"), 0),
        Next::GivesUp => (Some("gives_up"), 0),
        Next::Parked => (Some("parked"), 0),
    };
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
    let fields =
        (letter.id, &letter.to, &letter.sender, &letter.method, letter.cause.word(), letter.deliveries, letter.bytes);
    py.import("rebeam._server")?.call_method1("dead_letter", fields)
}

/// The error for a call that has no answer, made by `rebeam._errors`.
pub(crate) fn failure(py: Python<'_>, failure: &CallFailure) -> PyErr {
    let made = (|| -> PyResult<Bound<'_, PyAny>> {
        let errors = py.import("rebeam._errors")?;
        match failure {
            CallFailure::NoProc { target, similar, is_down } => {
                errors.call_method1("no_proc", (target, similar, *is_down))
            }
            CallFailure::Died(dead) => errors.call_method1("actor_died", (certificate(py, dead)?,)),
            CallFailure::TimedOut(callee) => {
                let (method, since) = match &callee.busy {
                    Some((method, ms)) => (Some(method), *ms as f64 / 1000.0),
                    None => (None, 0.0),
                };
                let fields = (&callee.target, callee.state.word(), method, since, callee.waiting);
                errors.call_method1("call_timeout", fields)
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

/// A tree as `rebeam._spec` describes it: a `Supervisor` and what hangs on it.
pub(crate) fn supervisor_spec(object: &Bound<'_, PyAny>, id: String) -> PyResult<SupervisorSpec> {
    nested_supervisor_spec(object, id, 1)
}

fn nested_supervisor_spec(object: &Bound<'_, PyAny>, id: String, depth: usize) -> PyResult<SupervisorSpec> {
    if depth > MAX_DEPTH {
        let errors = object.py().import("rebeam._errors")?;
        let text = format!("supervisors nest deeper than {MAX_DEPTH}; is one its own descendant?");
        return Err(PyErr::from_value(errors.getattr("SpecError")?.call1((text,))?));
    }
    let strategy: String = object.getattr("strategy")?.extract()?;
    let auto_shutdown: String = object.getattr("auto_shutdown")?.extract()?;
    let max_seconds: f64 = object.getattr("max_seconds")?.extract()?;
    let children = object.getattr("children")?;
    let kind: String = object.getattr("kind")?.extract()?;
    Ok(SupervisorSpec {
        id,
        name: object.getattr("name")?.extract()?,
        kind: match kind.as_str() {
            "dynamic" => SupervisorKind::Dynamic { max_children: object.getattr("max_children")?.extract()? },
            "partition" => SupervisorKind::Partition,
            "unique" | "duplicate" => SupervisorKind::Registry { is_unique: kind == "unique" },
            _ => SupervisorKind::Static,
        },
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
        children: children.try_iter()?.map(|child| nested_child_spec(&child?, depth)).collect::<PyResult<_>>()?,
    })
}

/// A child as `rebeam._spec` describes it.
pub(crate) fn child_spec(object: &Bound<'_, PyAny>) -> PyResult<ChildSpec> {
    nested_child_spec(object, 1)
}

fn nested_child_spec(object: &Bound<'_, PyAny>, depth: usize) -> PyResult<ChildSpec> {
    let id: String = object.getattr("id")?.extract()?;
    let restart: String = object.getattr("restart")?.extract()?;
    let kind = if object.getattr("is_supervisor")?.is_truthy()? {
        ChildKind::Supervisor(nested_supervisor_spec(object, id.clone(), depth + 1)?)
    } else {
        let start = object.getattr("start")?.cast_into::<PyTuple>()?;
        let pickled = codec::dumps(&start).or_else(|error| {
            if !is_fault(object.py(), &error) {
                return Err(error);
            }
            let spec = object.py().import("rebeam._spec")?;
            Err(PyErr::from_value(spec.call_method1("unpicklable", (object, error.value(object.py())))?))
        })?;
        let start_timeout: Option<f64> = object.getattr("start_timeout")?.extract()?;
        let mailbox: PyMailbox = object.getattr("mailbox")?.extract()?;
        let limits: PyLimits = object.getattr("limits")?.extract()?;
        let process: PyProcess = object.getattr("process")?.extract()?;
        let ms = |seconds: f64| (seconds * 1000.0).ceil() as u64;
        ChildKind::Actor(Box::new(ActorSpec {
            name: object.getattr("name")?.extract()?,
            via: object.getattr("via")?.extract()?,
            class: object.getattr("class_name")?.extract()?,
            start: pickled.as_bytes().to_vec(),
            start_ms: start_timeout.map(|seconds| (seconds * 1000.0) as u64),
            mailbox: MailboxOptions {
                messages: mailbox.0,
                bytes: mailbox.1,
                overflow: match mailbox.2.as_str() {
                    "fail" => Overflow::Fail,
                    "drop_oldest" => Overflow::DropOldest,
                    "drop_new" => Overflow::DropNew,
                    _ => Overflow::Block,
                },
                is_kept: mailbox.3 == "keep",
                fails_while_restarting: mailbox.4 == "fail",
            },
            concurrency: object.getattr("concurrency")?.extract()?,
            redelivered: object.getattr("redelivered")?.extract()?,
            terminate_on_shutdown: object.getattr("terminate_on_shutdown")?.extract()?,
            limits: Limits {
                deadline_ms: limits.0.map(ms),
                deadlines: limits.1.into_iter().map(|(method, seconds)| (method, ms(seconds))).collect(),
                memory_soft_kib: limits.2,
                memory_hard_kib: limits.3,
                max_messages: limits.4,
                max_age_ms: limits.5.map(ms),
            },
            process: ProcessOptions {
                cpus: process.0,
                nice: process.1,
                env: process.2,
                directory: process.3,
                uid: process.4,
                gid: process.5,
            },
        }))
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
        backoff: backoff(&object.getattr("backoff")?)?,
        on_giveup: match object.getattr("on_giveup")?.extract::<String>()?.as_str() {
            "park" => OnGiveup::Park,
            _ => OnGiveup::Stop,
        },
        kind,
    })
}

/// `rebeam._spec.ChildSpec.limits`: deadline, deadlines, soft and hard memory in KiB, messages, age.
type PyLimits = (Option<f64>, Vec<(String, f64)>, Option<u64>, Option<u64>, Option<u64>, Option<f64>);

/// `rebeam._spec.ChildSpec.mailbox`: messages, bytes, what a full one does, whether it is kept, what a restart does.
type PyMailbox = (Option<u64>, Option<u64>, String, String, String);

/// `rebeam._spec.ChildSpec.process`: CPUs, niceness, environment, directory, user, group.
type PyProcess = (Vec<u32>, Option<i32>, Vec<(String, String)>, Option<String>, Option<u32>, Option<u32>);

fn backoff(object: &Bound<'_, PyAny>) -> PyResult<Option<Backoff>> {
    if object.is_none() {
        return Ok(None);
    }
    let (initial, factor, cap, jitter): (f64, f64, f64, f64) = object.extract()?;
    let milli = |value: f64| (value * 1000.0).round() as u64;
    Ok(Some(Backoff {
        initial_ms: milli(initial),
        factor_milli: milli(factor),
        cap_ms: milli(cap),
        jitter_milli: milli(jitter),
    }))
}
