//! The one connection of this process, and how everything here waits and sends on it.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, IntoRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread::ThreadId;

use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};
use rebeam_protocol::frame::FrameError;
use rebeam_protocol::id::Seq;
use rebeam_protocol::worker::{Done, ToSupervisor};
use rebeam_sys::frames::NotWritten;
use rebeam_sys::{process, tag};

use crate::arenas;
use crate::channel::{Channel, Unmet};
use crate::clock;
use crate::convert;
use crate::forks;
use crate::in_process;
use crate::ledger;
use crate::spec::PyProcess;
use crate::tables;
use crate::wire::Wait;
use crate::zygote;

static CHANNEL: OnceLock<Channel> = OnceLock::new();

/// The thread that handles messages.
static MAIN_THREAD: OnceLock<ThreadId> = OnceLock::new();

/// Whether this is the thread that handles messages.
pub(crate) fn is_main_thread() -> bool {
    in_process::is_actor() || MAIN_THREAD.get() == Some(&std::thread::current().id())
}

/// Set in a process that an actor forked: the channel is its parent's.
static IS_HELPER: AtomicBool = AtomicBool::new(false);

/// Whether the order to exit was raised, or need not be any more.
static IS_UNWINDING: AtomicBool = AtomicBool::new(false);

/// Runs the zygote; comes back with what the handshake said in a new worker, with `None` when the supervisor is gone.
#[pyfunction]
pub(crate) fn attach_forked<'py>(
    py: Python<'py>,
    control: RawFd,
    lifeline: RawFd,
    code: RawFd,
) -> PyResult<Option<Bound<'py, PyDict>>> {
    tag_what_it_starts();
    match zygote::serve(py, owned(control)?, owned(lifeline)?, code)? {
        Some(birth) => {
            tag_what_it_starts();
            // It dies with the supervisor from here on, whether or not it is ever told who it is.
            process::tie_to(&birth.lifeline)?;
            py.import("rebeam._boot")?.call_method0("warm_up")?;
            become_actor(py, birth.channel, &birth.page, birth.lifeline).map(Some)
        }
        None => Ok(None),
    }
}

/// By this the supervisor knows whose the programs are that this process starts (`reaper::kill_strays`).
fn tag_what_it_starts() {
    if let Some(mark) = std::env::var_os("REBEAM_NODE") {
        tag::tag_own(tag::node_of(mark.as_encoded_bytes()));
    }
}

/// Maps the memory in which the node says who has which name.
#[pyfunction]
pub(crate) fn map_ledger(memory: RawFd) -> PyResult<()> {
    Ok(ledger::map(&owned(memory)?)?)
}

/// Shakes hands as a worker that was not forked; gives what the handshake said.
#[pyfunction]
pub(crate) fn attach<'py>(
    py: Python<'py>,
    channel: RawFd,
    page: RawFd,
    lifeline: RawFd,
) -> PyResult<Bound<'py, PyDict>> {
    let lifeline = owned(lifeline)?;
    process::tie_to(&lifeline)?;
    tag_what_it_starts();
    become_actor(py, owned(channel)?, &owned(page)?, lifeline)
}

/// Shakes hands as one of many actors of this process.
pub(crate) fn open_in_process(py: Python<'_>, channel: RawFd, page: RawFd) -> PyResult<(Channel, Bound<'_, PyDict>)> {
    open(py, owned(channel)?, &owned(page)?, None)
}

/// Takes over a descriptor that this process was started with; each number once.
fn owned(fd: RawFd) -> PyResult<OwnedFd> {
    static TAKEN: Mutex<BTreeSet<RawFd>> = Mutex::new(BTreeSet::new());
    // The threads of a test get numbers that were used before; a process is started with each of its own once.
    if !clock::is_virtual() && !TAKEN.lock().unwrap_or_else(PoisonError::into_inner).insert(fd) {
        return Err(PyOSError::new_err(format!("descriptor {fd} was taken before")));
    }
    // SAFETY: it was taken by nobody else, as was just noted, and was made for this purpose by whoever started this
    // process, or, in a test, by the node for this actor's thread.
    Ok(unsafe { process::inherited(fd)? })
}

/// Makes this process an actor.
fn become_actor<'py>(
    py: Python<'py>,
    socket: OwnedFd,
    page: &OwnedFd,
    lifeline: OwnedFd,
) -> PyResult<Bound<'py, PyDict>> {
    let (channel, start) = open(py, socket, page, Some(lifeline))?;
    let welcome = &channel.welcome;
    // What `ps` and `top` show: the start of the actor's name.
    let name: Vec<u8> = welcome.label.bytes().filter(|byte| *byte != 0).take(15).collect();
    if let Ok(name) = CString::new(name) {
        let _ = nix::sys::prctl::set_name(&name);
    }
    let _ = MAIN_THREAD.set(std::thread::current().id());
    if CHANNEL.set(channel).is_err() {
        return Err(PyOSError::new_err("this process is an actor already"));
    }
    Ok(start)
}

/// The keys are those of `rebeam._boot.Start`.
fn open<'py>(
    py: Python<'py>,
    socket: OwnedFd,
    page: &OwnedFd,
    lifeline: Option<OwnedFd>,
) -> PyResult<(Channel, Bound<'py, PyDict>)> {
    let (channel, start) = py.detach(|| Channel::open(socket, page, lifeline))?;
    let welcome = &channel.welcome;
    let dict = PyDict::new(py);
    dict.set_item("start", PyBytes::new(py, start.payload.as_slice()))?;
    // Python closes it.
    dict.set_item("takes_over", start.takes_over.map(IntoRawFd::into_raw_fd))?;
    dict.set_item("taken_from", welcome.takes_over.map(|version| version.0))?;
    dict.set_item("code", welcome.code.0)?;
    dict.set_item("pid", convert::pid_numbers(welcome.process.pid))?;
    dict.set_item("number", welcome.actor.0)?;
    dict.set_item("label", &welcome.label)?;
    dict.set_item("named", welcome.named)?;
    dict.set_item("restarts", welcome.restarts)?;
    dict.set_item("process", PyProcess::from(welcome.options.clone()))?;
    dict.set_item("concurrency", welcome.concurrency)?;
    dict.set_item("log_level", welcome.log_level)?;
    dict.set_item("secret", PyBytes::new(py, &welcome.secret.0))?;
    dict.set_item("stacks", channel.stacks.as_ref().map(AsRawFd::as_raw_fd))?;
    Ok((channel, dict))
}

/// Whether this process is an actor (and not a helper that one forked).
#[pyfunction]
pub(crate) fn is_attached() -> bool {
    in_process::own_channel().is_some() || own_process().is_some()
}

/// In a process that an actor forked: lets go of the actor's channel, so that nothing here speaks on it.
#[pyfunction]
pub(crate) fn detach_after_fork() {
    // A helper's own helper finds it done: the numbers may be other files by now.
    if !IS_HELPER.swap(true, Ordering::Relaxed) {
        if let Some(channel) = CHANNEL.get() {
            channel.close_descriptors();
        }
        ledger::forget();
    }
}

/// Whether the order to exit is to be raised now, by the handler of its signal: once.
#[pyfunction]
pub(crate) fn exit_ordered() -> bool {
    let channel = in_process::own_channel().or_else(own_process);
    let Some(channel) = channel.filter(|channel| channel.page.is_exit_ordered()) else { return false };
    channel.page.leave();
    !IS_UNWINDING.swap(true, Ordering::Relaxed)
}

/// The exit of this actor that was ordered, to be raised. It comes by a frame and by a signal: whichever is first raises it,
/// and `finally` blocks are not interrupted by the other.
pub(crate) fn actor_exit(py: Python<'_>) -> PyResult<PyErr> {
    leave();
    Ok(PyErr::from_value(py.import("rebeam._errors")?.getattr("ActorExit")?.call0()?))
}

/// From now on no exit signal is raised in this process: it ends.
#[pyfunction]
pub(crate) fn leave() {
    IS_UNWINDING.store(true, Ordering::Relaxed);
    if let Some(channel) = own_process() {
        channel.page.leave();
    }
}

/// Is `sys.unraisablehook`: an exit that was raised where Python swallows errors, in a finalizer or a callback of the
/// collector, is raised once more as soon as the actor's own code runs again. It is native, as in Python code that might
/// be right here.
#[pyfunction]
pub(crate) fn raise_exit_again(unraisable: &Bound<'_, PyAny>) -> PyResult<()> {
    let py = unraisable.py();
    let exit = py.import("rebeam._errors")?.getattr("ActorExit")?;
    if unraisable.getattr("exc_type")?.is(&exit) && is_main_thread() && !in_process::is_shared() {
        IS_UNWINDING.store(false, Ordering::Relaxed);
        // SAFETY: it may be called at any time.
        unsafe { pyo3::ffi::PyErr_SetInterruptEx(process::exit_signal()) };
        return Ok(());
    }
    py.import("sys")?.getattr("__unraisablehook__")?.call1((unraisable,))?;
    Ok(())
}

/// Whether this process was forked by an actor.
pub(crate) fn is_helper() -> bool {
    IS_HELPER.load(Ordering::Relaxed)
}

/// This actor's channel.
pub(crate) fn channel(py: Python<'_>) -> PyResult<&'static Channel> {
    match in_process::own_channel().or_else(own_process) {
        Some(channel) => Ok(channel),
        None => Err(not_an_actor(py)),
    }
}

/// The error for what only an actor can do.
pub(crate) fn not_an_actor(py: Python<'_>) -> PyErr {
    let error = py.import("rebeam._errors").and_then(|errors| errors.call_method1("not_an_actor", (is_helper(),)));
    error.map_or_else(|error| error, PyErr::from_value)
}

/// The channel of the actor that this process is.
fn own_process() -> Option<&'static Channel> {
    CHANNEL.get().filter(|_| !is_helper())
}

/// Sends a frame, leaving the interpreter to other threads should the socket be full.
pub(crate) fn send(py: Python<'_>, channel: &Channel, message: &ToSupervisor, payload: &[u8]) -> PyResult<()> {
    tell_news(py, channel)?;
    send_with(py, channel, message, payload, None)
}

/// Tells the supervisor what became of memory since the last time.
pub(crate) fn tell_news(py: Python<'_>, channel: &Channel) -> PyResult<()> {
    arenas::news().iter().try_for_each(|news| send_with(py, channel, news, &[], None))
}

/// Tells the supervisor of all messages that were noted as done.
pub(crate) fn acknowledge_noted(py: Python<'_>, channel: &Channel) -> PyResult<()> {
    channel.take_done().map_or(Ok(()), |done| send_acks(py, channel, done))
}

/// Tells the supervisor that these messages are done.
pub(crate) fn send_acks(py: Python<'_>, channel: &Channel, done: Vec<Done>) -> PyResult<()> {
    let settled: Vec<Seq> = done.iter().map(|done| done.seq).collect();
    send(py, channel, &ToSupervisor::Ack { done }, &[])?;
    channel.page.settled(&settled);
    Ok(())
}

/// Sends a frame with a descriptor.
pub(crate) fn send_with(
    py: Python<'_>,
    channel: &Channel,
    message: &ToSupervisor,
    payload: &[u8],
    descriptor: Option<BorrowedFd<'_>>,
) -> PyResult<()> {
    let blocking = |wait: Wait<'_>| -> io::Result<()> { py.detach(wait) };
    channel.send(message, payload, descriptor, blocking).map_err(|error| match error {
        NotWritten::Frame(FrameError::TooLarge { length, limit }) => too_large(py, length, limit),
        NotWritten::Frame(error) => PyValueError::new_err(format!("failed to send: {error}")),
        NotWritten::Closed(_) if in_process::is_shared() => actor_exit(py).unwrap_or_else(|error| error),
        NotWritten::Closed(error) => PyOSError::new_err(format!("the supervisor is gone: {error}")),
    })
}

/// The error for a message that is larger than a message may be.
pub(crate) fn too_large(py: Python<'_>, length: usize, limit: usize) -> PyErr {
    let made = || py.import("rebeam._errors")?.call_method1("too_large", (length, limit));
    made().map_or_else(|error| error, PyErr::from_value)
}

/// The error for an answer of the supervisor's that is larger than it may be.
pub(crate) fn answer_too_large(py: Python<'_>, text: &str) -> PyErr {
    let made = || py.import("rebeam._errors")?.getattr("MessageTooLarge")?.call1((format!("the answer is {text}"),));
    made().map_or_else(|error| error, PyErr::from_value)
}

/// Waits with the interpreter left to other threads, and lets Python handle signals; `None` if the time is over.
pub(crate) fn wait<T: Send>(
    py: Python<'_>,
    mut attempt: impl FnMut() -> Result<T, Unmet> + Send,
) -> PyResult<Option<T>> {
    loop {
        match py.detach(&mut attempt) {
            Ok(found) => return Ok(Some(found)),
            Err(Unmet::TimedOut) => return Ok(None),
            Err(Unmet::Interrupted) => py.check_signals()?,
            Err(Unmet::Closed) => return Err(closed(py)?),
        }
    }
}

/// A process is about to be forked, and may look into all that is mapped: none of it is given back any more, or not before
/// that process has ended.
#[pyfunction]
pub(crate) fn pin_memory() -> PyResult<()> {
    arenas::pin_memory();
    Ok(forks::keep(tables::held_arrays())?)
}

/// Nobody is left to work for: ends the process, or the actor that this thread is.
pub(crate) fn closed(py: Python<'_>) -> PyResult<PyErr> {
    if !in_process::is_shared() {
        // The lifeline is about to say so, too.
        process::end_at_once(1)
    }
    actor_exit(py)
}
