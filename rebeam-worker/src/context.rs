//! What a handler knows of the message it has in hand: for answers, deadlines, and those who look for deadlocks.
//!
//! Where handlers do not overlap it is kept per thread. On an event loop it is a variable of Python's contexts, so that
//! the tasks that a handler starts know it, too.

use std::cell::RefCell;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyDict;
use rebeam_protocol::address::{Caller, ReplyTo};
use rebeam_protocol::id::{NodeStart, Pid, Seq};
use rebeam_protocol::message::{Codec, Form, Trace, Waits};
use rebeam_protocol::worker::Delivery;

use crate::clock;
use crate::convert;
use crate::session::is_main_thread;

/// The message in hand.
#[pyclass(frozen, module = "rebeam._rebeam")]
pub(crate) struct Message {
    pub(crate) seq: Seq,
    pub(crate) reply_to: Option<ReplyTo>,
    pub(crate) codec: Codec,
    pub(crate) deadline: Option<Instant>,
    /// The method asked for.
    #[pyo3(get)]
    pub(crate) method: String,
    /// Whether that is a method of the actor's class, rather than a callback for messages of free form.
    pub(crate) is_method: bool,
    /// Bytes of its content.
    pub(crate) size: usize,
    /// The label of the sender.
    #[pyo3(get)]
    pub(crate) sender: String,
    /// Which delivery of this message it is, from 1.
    #[pyo3(get)]
    delivery: u32,
    /// What it is part of, if somebody traces.
    trace: Option<Trace>,
    /// Whether its handler has said that the answer comes later.
    is_deferred: AtomicBool,
    /// Whether it is done with: what its handler has left behind has no message in hand.
    is_over: AtomicBool,
}

#[pymethods]
impl Message {
    /// Whether somebody waits for an answer.
    #[getter]
    fn is_call(&self) -> bool {
        self.reply_to.is_some()
    }

    /// Its number in this process.
    #[getter]
    fn number(&self) -> u64 {
        self.seq.0
    }

    /// The W3C trace context that its handler runs in (`traceparent`), if somebody traces.
    #[getter]
    fn traceparent(&self) -> Option<String> {
        self.trace.map(|it| format!("00-{:032x}-{:016x}-{:02x}", it.trace, it.span, it.flags))
    }

    /// Seconds until nobody waits for the answer any more.
    #[getter]
    fn time_left(&self) -> Option<f64> {
        self.deadline.map(|deadline| deadline.saturating_duration_since(clock::now()).as_secs_f64())
    }
}

/// Whether any message so far was traced: as long as none was, nobody looks for a trace.
static IS_TRACED: AtomicBool = AtomicBool::new(false);

/// The trace that what is sent now is part of.
pub(crate) fn trace(py: Python<'_>) -> Option<Trace> {
    if !IS_TRACED.load(Ordering::Relaxed) {
        return None;
    }
    current(py)?.get().trace
}

impl Message {
    pub(crate) fn new(delivery: &Delivery, size: usize) -> Self {
        if delivery.head.trace.is_some() {
            IS_TRACED.store(true, Ordering::Relaxed);
        }
        let after = |ms| clock::now().checked_add(Duration::from_millis(ms));
        Message {
            seq: delivery.seq,
            reply_to: delivery.reply_to,
            codec: delivery.head.codec,
            deadline: delivery.head.deadline_ms.and_then(after),
            method: delivery.head.method.clone(),
            is_method: delivery.head.form == Form::Arguments,
            size,
            sender: delivery.sender.clone(),
            delivery: delivery.delivery,
            trace: delivery.head.trace.as_deref().copied(),
            is_deferred: AtomicBool::new(false),
            is_over: AtomicBool::new(false),
        }
    }

    pub(crate) fn end(&self) {
        self.is_over.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_deferred(&self) -> bool {
        self.is_deferred.load(Ordering::Relaxed)
    }
}

thread_local! {
    static IN_HAND: RefCell<Option<Py<Message>>> = const { RefCell::new(None) };
}

/// The variable of Python's contexts, once there is an event loop.
static VARIABLE: OnceLock<Py<PyAny>> = OnceLock::new();

/// From now on the message in hand is a variable of Python's contexts.
#[pyfunction]
pub(crate) fn set_context_variable(variable: Py<PyAny>) {
    let _ = VARIABLE.set(variable);
}

/// Notes what this thread has in hand.
pub(crate) fn set(py: Python<'_>, message: Option<Py<Message>>) -> PyResult<()> {
    match VARIABLE.get() {
        Some(variable) => variable.call_method1(py, "set", (message,)).map(drop),
        None => {
            let before = IN_HAND.replace(message);
            drop(before);
            Ok(())
        }
    }
}

/// The message in hand.
#[pyfunction]
pub(crate) fn current(py: Python<'_>) -> Option<Py<Message>> {
    let message: Option<Py<Message>> = match VARIABLE.get() {
        Some(variable) => variable.call_method1(py, "get", (py.None(),)).ok()?.extract(py).ok()?,
        None => IN_HAND.with_borrow(|message| message.as_ref().map(|message| message.clone_ref(py))),
    };
    message.filter(|message| !message.get().is_over.load(Ordering::Relaxed))
}

/// Who waits if this thread waits now; `is_task` if it is only the task that it runs.
pub(crate) fn waits(py: Python<'_>, is_task: bool) -> Waits {
    if !is_main_thread() {
        return Waits::Nobody;
    }
    let message = current(py).map(|message| (message.get().seq, message.get().is_deferred()));
    match (message, is_task) {
        (Some((message, is_deferred)), true) => Waits::Handler { message, is_deferred },
        (None, true) => Waits::Nobody,
        (Some((message, is_deferred)), false) => Waits::Actor { message: Some(message), is_deferred },
        (None, false) => Waits::Actor { message: None, is_deferred: false },
    }
}

/// Warns, once of each form, if this thread runs an event loop that is about to stand still.
pub(crate) fn warn_of_blocking(py: Python<'_>, form: &str) -> PyResult<()> {
    static MODULES: PyOnceLock<Py<PyDict>> = PyOnceLock::new();
    let modules = MODULES.get_or_try_init(py, || -> PyResult<_> {
        Ok(py.import("sys")?.getattr("modules")?.cast_into::<PyDict>()?.unbind())
    })?;
    // Without that there is no event loop.
    match modules.bind(py).get_item(intern!(py, "asyncio"))? {
        Some(asyncio) if !asyncio.getattr(intern!(py, "_get_running_loop"))?.call0()?.is_none() => {
            py.import("rebeam._pending")?.call_method1("warn_of_blocking", (form,)).map(drop)
        }
        _ => Ok(()),
    }
}

/// Who waits for an answer, as `rebeam.Caller` keeps it.
#[derive(Clone, Copy, FromPyObject, IntoPyObject)]
pub(crate) struct PyCaller {
    /// The incarnation that called; `None`: the client outside of the tree with the number that follows.
    pid: Option<(u32, u32, u64)>,
    client: u64,
    pub(crate) call: u64,
    /// Whether the answer is to be plain data, rather than a pickle.
    pub(crate) is_plain: bool,
}

impl PyCaller {
    pub(crate) fn who(self) -> Caller {
        match self.pid {
            Some((node, started, serial)) => Caller::Actor(Pid { at: NodeStart { node, started }, serial }),
            None => Caller::Outside(self.client),
        }
    }
}

/// The caller of the message in hand, if it is a call: the fields of `rebeam.Caller`, by their names.
#[pyfunction]
pub(crate) fn caller(py: Python<'_>) -> PyResult<Option<Bound<'_, PyAny>>> {
    let Some(message) = current(py) else { return Ok(None) };
    let message = message.get();
    let Some(ReplyTo { caller, call }) = message.reply_to else { return Ok(None) };
    let (pid, client) = match caller {
        Caller::Actor(pid) => (Some(convert::pid_numbers(pid)), 0),
        Caller::Outside(client) => (None, client),
    };
    let is_plain = message.codec == Codec::Data;
    PyCaller { pid, client, call: call.0, is_plain }.into_pyobject(py).map(|fields| Some(fields.into_any()))
}

/// Says that the answer to the message in hand comes later.
#[pyfunction]
pub(crate) fn defer(py: Python<'_>) {
    if let Some(message) = current(py) {
        message.get().is_deferred.store(true, Ordering::Relaxed);
    }
}
