//! What an application declares, from the objects of `rebeam._spec` to the protocol's specs.
//!
//! `rebeam._spec` has checked the values for its users. Here each field is looked up by its name, and each word in the
//! list of those that are known: what does not fit is an error, never a default.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyString, PyTuple};
use rebeam_protocol::program::{Cancel, Framing, Program, Ready, Stdio};
use rebeam_protocol::spec::{
    ActorSpec, AutoShutdown, Backoff, ChildKind, ChildSpec, Limits, MAX_DEPTH, MailboxOptions, OnGiveup, Overflow,
    Pauses, ProcessOptions, Reload, Restart, Shutdown, Strategy, SupervisorKind, SupervisorSpec,
};

use crate::codec;
use crate::convert::{address, is_fault};
use crate::tables;

const STRATEGIES: &[(&str, Strategy)] = &[
    ("one_for_one", Strategy::OneForOne),
    ("one_for_all", Strategy::OneForAll),
    ("rest_for_one", Strategy::RestForOne),
];

const AUTO_SHUTDOWNS: &[(&str, AutoShutdown)] = &[
    ("never", AutoShutdown::Never),
    ("any_significant", AutoShutdown::AnySignificant),
    ("all_significant", AutoShutdown::AllSignificant),
];

const RESTARTS: &[(&str, Restart)] =
    &[("permanent", Restart::Permanent), ("transient", Restart::Transient), ("temporary", Restart::Temporary)];

const ON_GIVEUP: &[(&str, OnGiveup)] = &[("stop", OnGiveup::Stop), ("park", OnGiveup::Park)];

const ON_FULL: &[(&str, Overflow)] = &[
    ("block", Overflow::Block),
    ("fail", Overflow::Fail),
    ("drop_oldest", Overflow::DropOldest),
    ("drop_new", Overflow::DropNew),
];

const RELOADS: &[(&str, Reload)] = &[("state", Reload::State), ("restart", Reload::Restart), ("never", Reload::Never)];

/// Whether mail survives a crash.
const ON_CRASH: &[(&str, bool)] = &[("keep", true), ("drop", false)];

/// Whether calls fail while their actor is being restarted.
const WHILE_RESTARTING: &[(&str, bool)] = &[("queue", false), ("fail", true)];

/// How Python writes a value down that it gave as a word: the reverse of a lookup in such a list.
pub(crate) fn restart_word(restart: Restart) -> &'static str {
    RESTARTS.iter().find(|(_, known)| *known == restart).map_or("", |(word, _)| word)
}

/// The value of an attribute that is one of some words.
fn choice<T: Copy>(object: &Bound<'_, PyAny>, attribute: &str, words: &[(&str, T)]) -> PyResult<T> {
    let word: String = object.getattr(attribute)?.extract()?;
    match words.iter().find(|(known, _)| *known == word) {
        Some((_, value)) => Ok(*value),
        None => Err(unknown(attribute, &word, words.iter().map(|(known, _)| *known))),
    }
}

fn unknown<'a>(attribute: &str, word: &str, known: impl Iterator<Item = &'a str>) -> PyErr {
    let known: Vec<_> = known.map(|word| format!("'{word}'")).collect();
    PyValueError::new_err(format!("{attribute}='{word}' is not known; it is one of {}", known.join(", ")))
}

/// Whole milliseconds, rounded up: a limit is never tighter than asked for.
fn ms(seconds: f64) -> u64 {
    (seconds * 1000.0).ceil() as u64
}

/// A tree: a `Supervisor` and what hangs on it.
///
/// # Errors
/// What lacks an attribute, has a value of another type or a word that is not known, or cannot be pickled.
pub(crate) fn supervisor(object: &Bound<'_, PyAny>, id: String) -> PyResult<SupervisorSpec> {
    nested_supervisor(object, id, 1)
}

/// A child: what `child` gives, or a `Supervisor`.
///
/// # Errors
/// As `supervisor`.
pub(crate) fn child(object: &Bound<'_, PyAny>) -> PyResult<ChildSpec> {
    nested_child(object, 1)
}

fn nested_supervisor(object: &Bound<'_, PyAny>, id: String, depth: usize) -> PyResult<SupervisorSpec> {
    if depth > MAX_DEPTH {
        let errors = object.py().import("rebeam._errors")?;
        let text = format!("supervisors nest deeper than {MAX_DEPTH}; is one its own descendant?");
        return Err(PyErr::from_value(errors.getattr("SpecError")?.call1((text,))?));
    }
    let children = object.getattr("children")?;
    Ok(SupervisorSpec {
        id,
        name: object.getattr("name")?.extract()?,
        kind: supervisor_kind(object)?,
        strategy: choice(object, "strategy", STRATEGIES)?,
        max_restarts: object.getattr("max_restarts")?.extract()?,
        max_ms: ms(object.getattr("max_seconds")?.extract()?),
        auto_shutdown: choice(object, "auto_shutdown", AUTO_SHUTDOWNS)?,
        children: children.try_iter()?.map(|child| nested_child(&child?, depth)).collect::<PyResult<_>>()?,
    })
}

fn supervisor_kind(object: &Bound<'_, PyAny>) -> PyResult<SupervisorKind> {
    let kind: String = object.getattr("kind")?.extract()?;
    Ok(match kind.as_str() {
        "static" => SupervisorKind::Static,
        "dynamic" => SupervisorKind::Dynamic { max_children: object.getattr("max_children")?.extract()? },
        "partition" => SupervisorKind::Partition,
        "unique" => SupervisorKind::Registry { is_unique: true },
        "duplicate" => SupervisorKind::Registry { is_unique: false },
        "table" => {
            let word = |name| object.getattr(name)?.extract::<String>();
            let ttl = object.getattr("table_ttl")?.extract()?;
            let max_bytes = object.getattr("table_max_bytes")?.extract()?;
            let (kind, access, on_full) = (word("table_kind")?, word("table_access")?, word("table_on_full")?);
            SupervisorKind::Table(tables::description(&kind, &access, ttl, max_bytes, &on_full)?)
        }
        _ => {
            let words = ["static", "dynamic", "partition", "unique", "duplicate", "table"];
            return Err(unknown("kind", &kind, words.into_iter()));
        }
    })
}

fn nested_child(object: &Bound<'_, PyAny>, depth: usize) -> PyResult<ChildSpec> {
    let id: String = object.getattr("id")?.extract()?;
    let kind = if object.getattr("is_supervisor")?.is_truthy()? {
        ChildKind::Supervisor(nested_supervisor(object, id.clone(), depth + 1)?)
    } else {
        ChildKind::Actor(Box::new(actor(object)?))
    };
    Ok(ChildSpec {
        id,
        restart: choice(object, "restart", RESTARTS)?,
        shutdown: shutdown(&object.getattr("shutdown")?)?,
        significant: object.getattr("significant")?.extract()?,
        pauses: pauses(&object.getattr("backoff")?)?,
        on_giveup: choice(object, "on_giveup", ON_GIVEUP)?,
        kind,
    })
}

/// `auto`, a `rebeam.Backoff`, or None.
fn pauses(backoff: &Bound<'_, PyAny>) -> PyResult<Pauses> {
    if backoff.is_instance_of::<PyString>() {
        return Ok(Pauses::ByLimit);
    }
    let backoff = backoff.extract::<Option<PyBackoff>>()?;
    Ok(backoff.map_or(Pauses::None, |backoff| Pauses::Backoff(backoff.into())))
}

fn actor(object: &Bound<'_, PyAny>) -> PyResult<ActorSpec> {
    let start = object.getattr("start")?.cast_into::<PyTuple>()?;
    let process: ProcessOptions = object.getattr("process")?.extract::<PyProcess>()?.into();
    let pickled = codec::dumps(&start).or_else(|error| {
        if !is_fault(object.py(), &error) {
            return Err(error);
        }
        let spec = object.py().import("rebeam._spec")?;
        Err(PyErr::from_value(spec.call_method1("unpicklable", (object, error.value(object.py())))?))
    })?;
    let start_timeout: Option<f64> = object.getattr("start_timeout")?.extract()?;
    Ok(ActorSpec {
        name: object.getattr("name")?.extract()?,
        via: object.getattr("via")?.extract()?,
        class: object.getattr("class_name")?.extract()?,
        modules: object.getattr("modules")?.extract()?,
        reload: choice(object, "reload", RELOADS)?,
        has_checkpoint: object.getattr("has_checkpoint")?.extract()?,
        // What stands before a program knows no pickles.
        start: match process.is_port {
            true => start.get_item(1)?.get_item(0)?.extract()?,
            false => pickled.as_bytes().to_vec(),
        },
        start_ms: start_timeout.map(|seconds| (seconds * 1000.0) as u64),
        mailbox: mailbox(&object.getattr("mailbox")?)?,
        concurrency: object.getattr("concurrency")?.extract()?,
        redelivered: object.getattr("redelivered")?.extract()?,
        terminate_on_shutdown: object.getattr("terminate_on_shutdown")?.extract()?,
        limits: object.getattr("limits")?.extract::<PyLimits>()?.into(),
        process,
    })
}

/// The start payload of a port, by the arguments of `rebeam.program` as that has checked them.
#[pyfunction]
#[pyo3(signature = (*, argv, stdio, framing, cancel, output, handler, ready, initialize, start_limit, stop_signal, stop_limit, idle, max_line))]
#[expect(clippy::too_many_arguments, reason = "each is one of the program's options")]
pub(crate) fn program_start<'py>(
    py: Python<'py>,
    argv: Vec<String>,
    stdio: Option<&str>,
    framing: &str,
    cancel: &str,
    output: Option<&Bound<'_, PyAny>>,
    handler: Option<&Bound<'_, PyAny>>,
    ready: Option<(String, String, u16, String)>,
    initialize: Option<String>,
    start_limit: Option<f64>,
    stop_signal: i32,
    stop_limit: Option<f64>,
    idle: Option<f64>,
    max_line: u64,
) -> PyResult<Bound<'py, PyBytes>> {
    let no = |what: &str| PyValueError::new_err(format!("`{what}` says nothing of a program"));
    let framing = if framing == "headers" { Framing::Headers } else { Framing::Lines };
    let cancel = match cancel {
        "mcp" => Cancel::Mcp,
        "lsp" => Cancel::Lsp,
        _ => Cancel::Never,
    };
    let stdio = match stdio {
        None => Stdio::Log,
        Some("raw") => Stdio::Raw,
        Some("lines") => Stdio::Lines,
        Some("jsonrpc") => Stdio::JsonRpc { framing, cancel },
        Some(other) => return Err(no(other)),
    };
    let ready = match ready {
        None => Ready::AtOnce,
        Some((kind, host, port, text)) => match kind.as_str() {
            "line" => {
                rebeam_port::check_pattern(&text)
                    .map_err(|error| PyValueError::new_err(format!("ready='line:{text}': {error}")))?;
                Ready::Line(text)
            }
            "tcp" => Ready::Tcp(host, port),
            "unix" => Ready::Unix(text),
            "file" => Ready::File(text),
            "http" => Ready::Http(host, port, text),
            other => return Err(no(other)),
        },
    };
    let program = Program {
        argv,
        stdio,
        output: output.map(address).transpose()?,
        handler: handler.map(address).transpose()?,
        ready,
        initialize,
        start_ms: start_limit.map(ms),
        stop_signal,
        stop_ms: stop_limit.map(ms),
        idle_ms: idle.map(ms),
        max_line,
    };
    Ok(PyBytes::new(py, &program.encode()))
}

fn shutdown(object: &Bound<'_, PyAny>) -> PyResult<Shutdown> {
    if let Ok(seconds) = object.extract::<f64>() {
        return Ok(Shutdown::Timeout((seconds * 1000.0) as u64));
    }
    match object.extract::<String>()?.as_str() {
        "brutal_kill" => Ok(Shutdown::BrutalKill),
        "infinity" => Ok(Shutdown::Infinity),
        word => Err(unknown("shutdown", word, ["brutal_kill", "infinity"].into_iter())),
    }
}

fn mailbox(object: &Bound<'_, PyAny>) -> PyResult<MailboxOptions> {
    Ok(MailboxOptions {
        messages: object.getattr("messages")?.extract()?,
        bytes: object.getattr("bytes")?.extract()?,
        overflow: choice(object, "on_full", ON_FULL)?,
        is_kept: choice(object, "on_crash", ON_CRASH)?,
        fails_while_restarting: choice(object, "while_restarting", WHILE_RESTARTING)?,
    })
}

/// `rebeam._spec.Limits`: times in seconds, memory in KiB.
#[derive(FromPyObject)]
struct PyLimits {
    deadline: Option<f64>,
    deadlines: Vec<(String, f64)>,
    memory_soft: Option<u64>,
    memory_hard: Option<u64>,
    max_messages: Option<u64>,
    max_age: Option<f64>,
}

impl From<PyLimits> for Limits {
    fn from(limits: PyLimits) -> Self {
        Limits {
            deadline_ms: limits.deadline.map(ms),
            deadlines: limits.deadlines.into_iter().map(|(method, seconds)| (method, ms(seconds))).collect(),
            memory_soft_kib: limits.memory_soft,
            memory_hard_kib: limits.memory_hard,
            max_messages: limits.max_messages,
            max_age_ms: limits.max_age.map(ms),
        }
    }
}

/// `rebeam._spec.Process`; on its way to Python, a dictionary of its fields.
#[derive(FromPyObject, IntoPyObject)]
pub(crate) struct PyProcess {
    cpus: Vec<u32>,
    nice: Option<i32>,
    env: Vec<(String, String)>,
    directory: Option<String>,
    uid: Option<u32>,
    gid: Option<u32>,
    is_port: bool,
}

impl From<PyProcess> for ProcessOptions {
    fn from(process: PyProcess) -> Self {
        let PyProcess { cpus, nice, env, directory, uid, gid, is_port } = process;
        ProcessOptions { cpus, nice, env, directory, uid, gid, is_port }
    }
}

impl From<ProcessOptions> for PyProcess {
    fn from(options: ProcessOptions) -> Self {
        let ProcessOptions { cpus, nice, env, directory, uid, gid, is_port } = options;
        PyProcess { cpus, nice, env, directory, uid, gid, is_port }
    }
}

/// `rebeam.Backoff`: times in seconds, `jitter` a share from 0 to 1.
#[derive(FromPyObject)]
struct PyBackoff {
    initial: f64,
    factor: f64,
    cap: f64,
    jitter: f64,
}

impl From<PyBackoff> for Backoff {
    fn from(backoff: PyBackoff) -> Self {
        let milli = |value: f64| (value * 1000.0).round() as u64;
        Backoff {
            initial_ms: milli(backoff.initial),
            factor_milli: milli(backoff.factor),
            cap_ms: milli(backoff.cap),
            jitter_milli: milli(backoff.jitter),
        }
    }
}
