//! An actor's loop: taking messages, calling what handles them, saying what came of it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use pyo3::exceptions::{PySystemExit, PyTypeError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PyDict, PyTuple};
use rebeam_protocol::exit::Raised;
use rebeam_protocol::message::{
    CallFailure, Codec, Delivery, Form, Lane, Outcome, Reply, Signal, Started, ToSupervisor,
};
use rebeam_protocol::page::MARKS;

use crate::channel::{Channel, Letter};
use crate::codec;
use crate::convert;
use crate::outgoing::{IN_HAND, IS_DEFERRED, InHand, until};
use crate::session::{channel, is_helper, send, wait};
use crate::wire::Payload;

/// What is to be run right after the message in hand, before any other.
static AFTER: Mutex<Option<Py<PyAny>>> = Mutex::new(None);

/// How long to wait for the next message before the actor is told that none came.
static IDLE: Mutex<Option<Duration>> = Mutex::new(None);

/// The exit reason of a worker that hands its state over, as `rebeam._boot` knows it.
const RECYCLE: &str = "recycle";

fn take<T>(of: &Mutex<Option<T>>) -> Option<T> {
    of.lock().unwrap_or_else(PoisonError::into_inner).take()
}

/// Has something run right after the message in hand; the last one counts.
#[pyfunction]
pub(crate) fn set_after(function: Py<PyAny>) {
    *AFTER.lock().unwrap_or_else(PoisonError::into_inner) = Some(function);
}

/// Has the actor told, by `Timeout`, if no message comes for so many seconds.
#[pyfunction]
pub(crate) fn set_idle(seconds: f64) -> PyResult<()> {
    let idle = Duration::try_from_secs_f64(seconds)
        .map_err(|_| pyo3::exceptions::PyValueError::new_err(format!("an idle time of {seconds} seconds")))?;
    *IDLE.lock().unwrap_or_else(PoisonError::into_inner) = Some(idle);
    Ok(())
}

/// Gives memory that is free back to the system.
#[pyfunction]
pub(crate) fn trim_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: a call of the allocator without conditions.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Says that `init` has returned, and what it hands back for whoever starts the actor.
#[pyfunction]
pub(crate) fn started(py: Python<'_>, ignored: bool, info: Option<&Bound<'_, PyAny>>) -> PyResult<()> {
    let started = if ignored { Started::Ignore } else { Started::Ready };
    let info = info.map(codec::dumps).transpose()?;
    send(py, channel(py)?, &ToSupervisor::Started(started), info.as_ref().map_or(&[], |info| info.as_bytes()))
}

/// Sends the final report.
#[pyfunction]
#[pyo3(signature = (kind, text, traceback=None))]
pub(crate) fn report(py: Python<'_>, kind: &str, text: String, traceback: Option<String>) -> PyResult<()> {
    let reason = convert::reason(kind, text, traceback)?;
    send(py, channel(py)?, &ToSupervisor::Exit(reason), &[])
}

/// Sends the state that the next process of this incarnation goes on with.
#[pyfunction]
pub(crate) fn hand_over(py: Python<'_>, state: &Bound<'_, PyBytes>) -> PyResult<()> {
    send(py, channel(py)?, &ToSupervisor::HandOver, state.as_bytes())
}

/// What of `rebeam._dispatch` handles messages.
struct Handlers<'py> {
    /// The function for a method, or `BadCall`.
    resolve: Bound<'py, PyAny>,
    /// What takes a callback's name and a message of free form.
    receive: Bound<'py, PyAny>,
    /// What takes the name and the content of what is asked of the process.
    system: Bound<'py, PyAny>,
    methods: HashMap<String, Bound<'py, PyAny>>,
}

/// Handles messages until a stop is ordered, whose reason it gives, or a handler raises, which it lets through after
/// the caller has been told.
#[pyfunction]
pub(crate) fn serve<'py>(
    py: Python<'py>,
    resolve: Bound<'py, PyAny>,
    receive: Bound<'py, PyAny>,
    system: Bound<'py, PyAny>,
) -> PyResult<(&'static str, String, Option<String>)> {
    let channel = channel(py)?;
    let mut handlers = Handlers { resolve, receive, system, methods: HashMap::new() };
    let mut idle_until = None;
    loop {
        run_after(py)?;
        if let Some(idle) = take(&IDLE) {
            idle_until = Some(Instant::now() + idle);
        }
        let Some(letter) = next_letter(py, channel, idle_until)? else {
            idle_until = None;
            let timeout = py.import("rebeam._server")?.getattr("TIMEOUT")?;
            handlers.receive.call1(("handle_info", timeout))?;
            continue;
        };
        match letter {
            Letter::Stop(reason) => return Ok(convert::reason_fields(&reason)),
            Letter::Recycle => return Ok((RECYCLE, String::new(), None)),
            Letter::Exit => return Err(PyErr::from_value(class(py, "ActorExit")?.call0()?)),
            Letter::Message(delivery, payload) if delivery.lane == Lane::System => {
                handle_system(py, channel, &delivery, &payload, &handlers)?;
            }
            Letter::Message(delivery, payload) => {
                idle_until = None;
                let seq = delivery.seq;
                channel.page.begin(seq.0);
                IN_HAND.set(Some(InHand { seq, reply_to: delivery.reply_to, codec: delivery.codec }));
                IS_DEFERRED.set(false);
                let result = handle(py, channel, &delivery, &payload, &mut handlers);
                IN_HAND.set(None);
                if is_helper() {
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

/// Whether more was handed over than there are marks: then each message is acknowledged before the next is begun.
static IS_WIDENED: AtomicBool = AtomicBool::new(false);

/// How many messages the supervisor hands over.
static WINDOW: AtomicUsize = AtomicUsize::new(MARKS);

/// Takes the first plain message that fits, out of turn, and waits for one; `None` if the time is over. All others stay
/// where they are. What it gives is settled before it is given.
#[pyfunction]
pub(crate) fn receive<'py>(
    py: Python<'py>,
    fits: Option<&Bound<'py, PyAny>>,
    timeout: Option<f64>,
) -> PyResult<Option<Bound<'py, PyTuple>>> {
    let channel = channel(py)?;
    let until = until(timeout)?;
    let mut seen = 0;
    if !IS_WIDENED.swap(true, Ordering::Relaxed) {
        send(py, channel, &ToSupervisor::WantMore { more: 0 }, &[])?;
    }
    loop {
        while let Some((place, delivery, payload)) = channel.take_plain(seen) {
            let message = match &delivery.form {
                Form::Signal(signal) => signal_object(py, signal),
                _ => codec::loads(py, payload.as_slice()),
            };
            let is_it = match (&message, fits) {
                (Ok(message), Some(fits)) => fits.call1((message,)).and_then(|result| result.is_truthy()),
                (Ok(_), None) => Ok(true),
                (Err(_), _) => Ok(false),
            };
            if !matches!(is_it, Ok(true)) {
                channel.put_back(place, delivery, payload);
                seen = place + 1;
                is_it?;
                continue;
            }
            let mut done = channel.take_done().unwrap_or_default();
            done.push(delivery.seq);
            send(py, channel, &ToSupervisor::Ack { done }, &[])?;
            return Ok(Some(PyTuple::new(py, [message?])?));
        }
        if let Some(done) = channel.take_done() {
            send(py, channel, &ToSupervisor::Ack { done }, &[])?;
        }
        let waiting = channel.waiting();
        // The one in hand counts, too.
        if waiting + 1 >= WINDOW.load(Ordering::Relaxed) {
            WINDOW.fetch_add(MARKS, Ordering::Relaxed);
            send(py, channel, &ToSupervisor::WantMore { more: MARKS as u64 }, &[])?;
        }
        if wait(py, || channel.wait_more(waiting, until))?.is_none() {
            return Ok(None);
        }
    }
}

fn run_after(py: Python<'_>) -> PyResult<()> {
    while let Some(function) = take(&AFTER) {
        function.call0(py)?;
    }
    Ok(())
}

/// The next letter; `None` if that time has come without one.
fn next_letter(py: Python<'_>, channel: &Channel, until: Option<Instant>) -> PyResult<Option<Letter>> {
    if let Some(letter) = channel.try_letter() {
        return Ok(Some(letter));
    }
    // Before this waits, everything done is settled: nothing is handed over beyond what is not.
    if let Some(done) = channel.take_done() {
        send(py, channel, &ToSupervisor::Ack { done }, &[])?;
    }
    wait(py, || channel.wait_letter(until))
}

/// A class or a constant of `rebeam._errors`.
fn class<'py>(py: Python<'py>, name: &str) -> PyResult<Bound<'py, PyAny>> {
    py.import("rebeam._errors")?.getattr(name)
}

/// Does what is asked of the process. Nothing of it can harm the actor.
fn handle_system(
    py: Python<'_>,
    channel: &Channel,
    delivery: &Delivery,
    payload: &Payload,
    handlers: &Handlers<'_>,
) -> PyResult<()> {
    let Some(to) = delivery.reply_to else { return Ok(()) };
    let result = (|| {
        match delivery.method.as_str() {
            "suspend" => channel.set_suspended(true),
            "resume" => channel.set_suspended(false),
            _ => {}
        }
        let content = codec::loads(py, payload.as_slice())?;
        let result = handlers.system.call1((&delivery.method, content))?;
        Ok(codec::dumps(&result)?.as_bytes().to_vec())
    })();
    let (outcome, content) = match result {
        Ok(content) => (Outcome::Returned(Codec::Pickle), content),
        Err(error) => raised(py, &error, Codec::Pickle)?,
    };
    send(py, channel, &ToSupervisor::Reply(Reply { to, outcome, done: None }), &content)
}

/// An exception as an answer.
fn raised(py: Python<'_>, error: &PyErr, codec: Codec) -> PyResult<(Outcome, Vec<u8>)> {
    // Before Python 3.12 an error that is on its way keeps its traceback beside it.
    error.value(py).setattr("__traceback__", error.traceback(py))?;
    let described = py.import("rebeam._failure")?.call_method1("describe", (error.value(py),))?;
    let (kind, message, traceback, pickled): (String, String, String, Option<Vec<u8>>) = described.extract()?;
    let content = pickled.filter(|_| codec == Codec::Pickle).unwrap_or_default();
    Ok((Outcome::Raised(Raised { kind, message, traceback }), content))
}

/// Handles one message. An error is the handler's own: the actor ends with it.
fn handle<'py>(
    py: Python<'py>,
    channel: &Channel,
    delivery: &Delivery,
    payload: &Payload,
    handlers: &mut Handlers<'py>,
) -> PyResult<()> {
    let result = match prepare(py, delivery, payload, handlers) {
        Ok(work) => work.run(py, delivery, handlers),
        Err(error) => Err(Refusal::Bad(CallFailure::BadCall(error.value(py).to_string()))),
    };
    let (outcome, content, error) = match result {
        Ok(_) if delivery.reply_to.is_none() || IS_DEFERRED.get() => {
            return acknowledge(py, channel, delivery, payload, false);
        }
        Ok(result) => match encode(&result, delivery) {
            Ok(content) => (Outcome::Returned(delivery.codec), content, None),
            Err(failure) => (Outcome::Failed(failure), Vec::new(), None),
        },
        Err(Refusal::Bad(failure)) => {
            if delivery.reply_to.is_none()
                && let CallFailure::BadCall(text) = &failure
            {
                py.import("rebeam._logging")?.call_method1("warn_bad_cast", (text, &delivery.sender))?;
            }
            (Outcome::Failed(failure), Vec::new(), None)
        }
        Err(Refusal::Raised(error)) => match end_of(py, &error)? {
            // It is done with the message, and ends. A caller learns the reason with its end, by a message in hand.
            End::InGoodOrder => {
                if let (Some(to), Some(answer)) = (delivery.reply_to, last_answer(py, &error)?) {
                    let (outcome, content) = match encode(&answer, delivery) {
                        Ok(content) => (Outcome::Returned(delivery.codec), content),
                        Err(failure) => (Outcome::Failed(failure), Vec::new()),
                    };
                    let reply = Reply { to, outcome, done: Some(delivery.seq) };
                    send(py, channel, &ToSupervisor::Reply(reply), &content)?;
                } else if delivery.reply_to.is_none() || IS_DEFERRED.get() {
                    acknowledge(py, channel, delivery, payload, true)?;
                }
                return Err(error);
            }
            // The message stays in hand, as the certificate then says.
            End::WithoutAnswer => return Err(error),
            End::ByException => {
                let (outcome, content) = raised(py, &error, delivery.codec)?;
                let failure = py.import("rebeam._failure")?;
                let is_answer = delivery.form == Form::Arguments
                    && failure
                        .call_method1("is_answer", (&delivery.method, error.value(py), &handlers.resolve))?
                        .is_truthy()?;
                (outcome, content, (!is_answer).then_some(error))
            }
        },
    };
    match delivery.reply_to {
        Some(to) => {
            let reply = Reply { to, outcome, done: error.is_none().then_some(delivery.seq) };
            send(py, channel, &ToSupervisor::Reply(reply), &content)?;
        }
        None if error.is_none() => acknowledge(py, channel, delivery, payload, false)?,
        None => {}
    }
    error.map_or(Ok(()), Err)
}

/// What an exception out of a handler is.
enum End {
    /// `Stop`, or `SystemExit` without a code.
    InGoodOrder,
    /// An exit signal, an exit code, or a return value that no callback may give.
    WithoutAnswer,
    /// Any other.
    ByException,
}

/// What a `Stop` has for the caller of the message in hand.
fn last_answer<'py>(py: Python<'py>, error: &PyErr) -> PyResult<Option<Bound<'py, PyAny>>> {
    match error.value(py).getattr_opt("reply")? {
        Some(answer) if !answer.is(&class(py, "NO_REPLY")?) => Ok(Some(answer)),
        _ => Ok(None),
    }
}

fn end_of(py: Python<'_>, error: &PyErr) -> PyResult<End> {
    if error.is_instance(py, &class(py, "Stop")?) {
        return Ok(End::InGoodOrder);
    }
    if error.is_instance_of::<PySystemExit>(py) {
        let is_clean = !error.value(py).getattr("code")?.is_truthy()?;
        return Ok(if is_clean { End::InGoodOrder } else { End::WithoutAnswer });
    }
    if error.is_instance(py, &class(py, "ActorExit")?) || error.is_instance(py, &class(py, "BadReturn")?) {
        return Ok(End::WithoutAnswer);
    }
    Ok(End::ByException)
}

/// Why a message was not handled to its end.
enum Refusal {
    /// The message was at fault, or its result: the actor is none the worse.
    Bad(CallFailure),
    /// The handler raised.
    Raised(PyErr),
}

/// What a message asks for.
enum Work<'py> {
    Method(Bound<'py, PyAny>, Bound<'py, PyTuple>, Bound<'py, PyDict>),
    Message(Bound<'py, PyAny>),
}

fn prepare<'py>(
    py: Python<'py>,
    delivery: &Delivery,
    payload: &Payload,
    handlers: &mut Handlers<'py>,
) -> PyResult<Work<'py>> {
    let load = || match delivery.codec {
        Codec::Pickle => codec::loads(py, payload.as_slice()),
        Codec::Data => codec::load_value(py, payload.as_slice()),
    };
    match &delivery.form {
        Form::Arguments => {}
        Form::Message => return Ok(Work::Message(load()?)),
        Form::Signal(signal) => return Ok(Work::Message(signal_object(py, signal)?)),
    }
    let function = match handlers.methods.get(&delivery.method) {
        Some(function) => function.clone(),
        None => {
            let function = handlers.resolve.call1((&delivery.method,))?;
            handlers.methods.insert(delivery.method.clone(), function.clone());
            function
        }
    };
    let content = load()?;
    let content = content.cast::<PyTuple>().map_err(|_| PyTypeError::new_err("the message is no pair of arguments"))?;
    let args = content.get_item(0)?;
    let args = match args.cast::<PyTuple>() {
        Ok(args) => args.clone(),
        Err(_) => PyTuple::new(py, args.try_iter()?.collect::<PyResult<Vec<_>>>()?)?,
    };
    Ok(Work::Method(function, args, content.get_item(1)?.cast_into::<PyDict>()?))
}

/// `rebeam.Down` or `rebeam.Exit`.
fn signal_object<'py>(py: Python<'py>, signal: &Signal) -> PyResult<Bound<'py, PyAny>> {
    let module = py.import("rebeam._server")?;
    match signal {
        Signal::Down { monitor, pid, reason, certificate } => {
            let pid = pid.map(convert::pid_numbers);
            let certificate = certificate.as_deref().map(|it| convert::certificate(py, it)).transpose()?;
            module.call_method1("down", (*monitor, pid, convert::reason_fields(reason), certificate))
        }
        Signal::Exit { pid, reason } => {
            module.call_method1("exit_message", (convert::pid_numbers(*pid), convert::reason_fields(reason)))
        }
    }
}

impl<'py> Work<'py> {
    fn run(self, py: Python<'py>, delivery: &Delivery, handlers: &Handlers<'py>) -> Result<Bound<'py, PyAny>, Refusal> {
        static COROUTINE: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
        let (function, args, kwargs) = match self {
            Work::Method(function, args, kwargs) => (function, args, kwargs),
            Work::Message(message) => {
                let result = handlers.receive.call1((&delivery.method, message));
                return result.map_err(|error| match class(py, "BadCall") {
                    // The actor is of a sort that takes no such message.
                    Ok(bad) if error.is_instance(py, &bad) && error.traceback(py).as_ref().is_none_or(is_own) => {
                        Refusal::Bad(CallFailure::BadCall(error.value(py).to_string()))
                    }
                    _ => Refusal::Raised(error),
                });
            }
        };
        let result = function.call(&args, Some(&kwargs)).map_err(|error| {
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
}

/// Whether a traceback goes no deeper than the one frame of our own that was called.
fn is_own(traceback: &Bound<'_, pyo3::types::PyTraceback>) -> bool {
    traceback.getattr("tb_next").is_ok_and(|next| next.is_none())
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

/// Notes a message as done without an answer, and tells the supervisor if that is worth a frame, or if it `must` know.
fn acknowledge(py: Python<'_>, channel: &Channel, delivery: &Delivery, payload: &Payload, must: bool) -> PyResult<()> {
    let mut due = channel.note_done(delivery.seq, payload.as_slice().len());
    if must || IS_WIDENED.load(Ordering::Relaxed) {
        due = due.or_else(|| channel.take_done());
    }
    match due {
        // The marks must say so first: what is acknowledged may be overwritten.
        Some(done) => {
            channel.page.done(delivery.seq.0);
            send(py, channel, &ToSupervisor::Ack { done }, &[])
        }
        None => Ok(()),
    }
}
