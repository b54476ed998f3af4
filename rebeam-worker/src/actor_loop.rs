//! An actor's loop: taking messages, calling what handles them, saying what came of it.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::time::{Duration, Instant};

use pyo3::exceptions::{PySystemExit, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyTuple, PyType};
use rebeam_protocol::address::Address;
use rebeam_protocol::exit::Raised;
use rebeam_protocol::id::Seq;
use rebeam_protocol::message::{CallFailure, Codec, Form, Lane, Outcome, Signal};
use rebeam_protocol::process::{ProcessAnswer, ProcessRequest};
use rebeam_protocol::worker::{Buffers, Delivery, Done, Reply, Started, ToSupervisor};

use rebeam_sys::process;

use crate::arenas::{self, Held};
use crate::channel::{Channel, Letter, Place};
use crate::clock;
use crate::codec;
use crate::context::{self, Message};
use crate::convert;
use crate::in_process::is_shared;
use crate::moving::{self, MOVE};
use crate::outgoing::until;
use crate::registry;
use crate::requests;
use crate::session::{
    acknowledge_noted, actor_exit, channel, exit_ordered, is_helper, send, send_acks, tell_news, too_large, wait,
};
use crate::tables;
use crate::wire::Payload;

thread_local! {
    /// What is to be run right after the message in hand, before any other.
    static AFTER: Cell<Option<Py<PyAny>>> = const { Cell::new(None) };
    /// How long to wait for the next message before the actor is told that none came.
    static IDLE: Cell<Option<Duration>> = const { Cell::new(None) };
    /// The same of an actor that goes on in another process, or has come from one: how much is left, and of how much.
    static IDLE_LEFT: Cell<Option<(Duration, Duration)>> = const { Cell::new(None) };
    static SEEN: RefCell<Seen> = RefCell::default();
    /// Whether this actor is a function, which takes its own mail and so learns of a stop there.
    static IS_PLAIN: Cell<bool> = const { Cell::new(false) };
    /// Whether such an actor was asked to go on in a new process.
    static IS_RECYCLED: Cell<bool> = const { Cell::new(false) };
    /// The message whose handler has raised what ends the actor.
    static FAILED: Cell<Option<Seq>> = const { Cell::new(None) };
    /// How many messages the supervisor hands over beyond what it does by itself.
    static WIDENED: Cell<usize> = const { Cell::new(0) };
}

/// The exit reason of a worker that hands its state over, as `rebeam._boot` knows it.
const RECYCLE: &str = "recycle";

/// Has something run right after the message in hand; the last one counts.
#[pyfunction]
pub(crate) fn set_after(function: Py<PyAny>) {
    AFTER.set(Some(function));
}

/// Has the actor told, by `Timeout`, if no message comes for this many seconds.
#[pyfunction]
pub(crate) fn set_idle(seconds: f64) -> PyResult<()> {
    let idle = Duration::try_from_secs_f64(seconds)
        .map_err(|_| PyValueError::new_err(format!("an idle time of {seconds} seconds")))?;
    IDLE.set(Some(idle));
    Ok(())
}

/// Gives memory that is free back to the system.
#[pyfunction]
pub(crate) fn trim_memory() {
    arenas::trim();
    process::trim_allocator();
}

/// Says that `init` has returned, and what it hands back for whoever starts the actor.
#[pyfunction]
pub(crate) fn started(
    py: Python<'_>,
    ignored: bool,
    is_function: bool,
    info: Option<&Bound<'_, PyAny>>,
) -> PyResult<()> {
    let started = match (ignored, is_function) {
        (true, _) => Started::Ignore,
        (false, true) => Started::Function,
        (false, false) => Started::Ready,
    };
    let info = info.map(codec::dumps).transpose()?;
    send(py, channel(py)?, &ToSupervisor::Started(started), info.as_ref().map_or(&[], |info| info.as_bytes()))
}

/// Sends the final report.
#[pyfunction]
#[pyo3(signature = (kind, text, traceback=None))]
pub(crate) fn report(py: Python<'_>, kind: &str, text: String, traceback: Option<String>) -> PyResult<()> {
    let reason = convert::reason(kind, text, traceback)?;
    send(py, channel(py)?, &ToSupervisor::Exit { reason, message: FAILED.take() }, &[])
}

/// What of `rebeam._dispatch` handles messages.
#[pyclass(module = "rebeam._rebeam")]
pub(crate) struct Handlers {
    /// The function for a method, or `BadCall`.
    resolve: Py<PyAny>,
    /// What takes a callback's name and a message of free form.
    receive: Py<PyAny>,
    /// What takes the name and the content of what is asked of the process.
    system: Py<PyAny>,
    methods: HashMap<String, Py<PyAny>>,
}

#[pymethods]
impl Handlers {
    #[new]
    fn new(resolve: Py<PyAny>, receive: Py<PyAny>, system: Py<PyAny>) -> Self {
        Handlers { resolve, receive, system, methods: HashMap::new() }
    }

    /// Takes one letter that has come and handles it; with `system_only`, none that is for the actor. Gives `None` if
    /// there was none; if it is done with, whether it was a message to the actor; a reason to end with; or a message and
    /// the coroutine that handles it.
    fn step<'py>(&mut self, py: Python<'py>, system_only: bool) -> PyResult<Option<Bound<'py, PyAny>>> {
        let channel = channel(py)?;
        run_after(py)?;
        let Some(letter) = channel.next_filed(system_only) else { return Ok(None) };
        let is_message = is_message(&letter);
        let done = || Ok(Some(is_message.into_pyobject(py)?.to_owned().into_any()));
        match self.take(py, channel, letter)? {
            Taken::Done => done(),
            Taken::End(kind, text, traceback) => Ok(Some((kind, text, traceback).into_pyobject(py)?.into_any())),
            Taken::Begun(message, coroutine) => Ok(Some((message, coroutine).into_pyobject(py)?.into_any())),
        }
    }

    /// Concludes a message whose coroutine has returned `result` or raised `error`; raises what ends the actor.
    fn finish(
        &self,
        py: Python<'_>,
        message: &Bound<'_, Message>,
        result: Bound<'_, PyAny>,
        error: Option<Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let channel = channel(py)?;
        let result = error.map_or(Ok(result), |error| Err(Refusal::Raised(PyErr::from_value(error))));
        self.conclude(py, channel, message.get(), result)?;
        channel.page.done(message.get().seq);
        Ok(())
    }

    /// Concludes a message whose handler was cancelled, since the actor goes on in another process: a caller gets
    /// `Restarting` with this name.
    fn cut(&self, py: Python<'_>, message: &Bound<'_, Message>, target: String) -> PyResult<()> {
        let channel = channel(py)?;
        let failure = CallFailure::Restarting { target };
        self.conclude(py, channel, message.get(), Err(Refusal::Bad(failure)))?;
        channel.page.done(message.get().seq);
        Ok(())
    }
}

/// Whether it is what the actor itself is to hear, before which it was idle.
fn is_message(letter: &Letter) -> bool {
    matches!(letter, Letter::Message(delivery, ..) if delivery.head.lane != Lane::System)
}

/// What became of a letter.
enum Taken<'py> {
    Done,
    /// The actor is to end: a reason, [`RECYCLE`], or [`MOVE`].
    End(&'static str, String, Option<String>),
    /// A coroutine handles it.
    Begun(Py<Message>, Bound<'py, PyAny>),
}

/// Handles messages until a stop is ordered, whose reason it gives, or a handler raises, which it lets through after
/// the caller has been told. For actors whose handlers do not overlap.
#[pyfunction]
pub(crate) fn serve(
    py: Python<'_>,
    handlers: &Bound<'_, Handlers>,
) -> PyResult<(&'static str, String, Option<String>)> {
    let channel = channel(py)?;
    let mut handlers = handlers.borrow_mut();
    let (mut idle_until, mut patience) = match IDLE_LEFT.take() {
        Some((left, patience)) => (Some(clock::now() + left), patience),
        None => (None, Duration::ZERO),
    };
    loop {
        run_after(py)?;
        if let Some(idle) = IDLE.take() {
            (idle_until, patience) = (Some(clock::now() + idle), idle);
        }
        let Some(letter) = next_letter(py, channel, idle_until)? else {
            idle_until = None;
            let timeout = py.import("rebeam._server")?.getattr("TIMEOUT")?;
            if let Err(error) = handlers.receive.call1(py, ("handle_info", timeout)) {
                if !is_refused(py, &error)? {
                    return Err(error);
                }
                idle_until = Some(clock::now() + patience);
            }
            continue;
        };
        if is_message(&letter) {
            idle_until = None;
        }
        match handlers.take(py, channel, letter)? {
            // The signal handlers of a busy actor run between two messages at the latest.
            Taken::Done => py.check_signals()?,
            Taken::End(kind, text, traceback) => {
                IDLE_LEFT.set(idle_until.map(|until| (until.saturating_duration_since(clock::now()), patience)));
                return Ok((kind, text, traceback));
            }
            Taken::Begun(message, coroutine) => {
                context::set(py, Some(message.clone_ref(py)))?;
                let run = || py.import("rebeam._dispatch")?.call_method1("run_coroutine", (&coroutine,));
                let result = run().map_err(Refusal::Raised);
                context::set(py, None)?;
                handlers.conclude(py, channel, message.get(), result)?;
                channel.page.done(message.get().seq);
            }
        }
    }
}

/// Whether an actor that ends because no message came has to go on, as one has come meanwhile.
fn is_refused(py: Python<'_>, error: &PyErr) -> PyResult<bool> {
    py.import("rebeam._server")?.call_method1("is_stop_refused", (error.value(py),))?.is_truthy()
}

/// Says that this actor is about to stop as no message came; false if one has.
#[pyfunction]
pub(crate) fn stop_if_idle(py: Python<'_>, reason: convert::PyReason) -> PyResult<bool> {
    settle_done(py, channel(py)?)?;
    let answer = requests::ask(py, ProcessRequest::StopIfIdle { reason: reason.try_into()? })?;
    Ok(answer != ProcessAnswer::MailWaits)
}

/// Seconds to wait for a message until the actor is told that none came, if somebody has asked for that.
#[pyfunction]
pub(crate) fn take_idle() -> Option<f64> {
    IDLE.take().map(|idle| idle.as_secs_f64())
}

/// The idle time of an actor that goes on in another process, or has come from one: how many seconds are left, and of
/// how many.
#[pyfunction]
pub(crate) fn take_idle_left() -> Option<(f64, f64)> {
    IDLE_LEFT.take().map(|(left, patience)| (left.as_secs_f64(), patience.as_secs_f64()))
}

/// Sets what [`take_idle_left`] gives.
#[pyfunction]
pub(crate) fn set_idle_left(left: f64, patience: f64) -> PyResult<()> {
    let seconds =
        |seconds: f64| Duration::try_from_secs_f64(seconds).map_err(|error| PyValueError::new_err(error.to_string()));
    IDLE_LEFT.set(Some((seconds(left.max(0.0))?, seconds(patience)?)));
    Ok(())
}

/// Seconds that the actor has to end, if it has been told so since this was asked last.
#[pyfunction]
pub(crate) fn take_time_left(py: Python<'_>) -> PyResult<Option<f64>> {
    Ok(channel(py)?.take_time_left().map(|left| left.as_secs_f64()))
}

/// Tells what is done before there is nothing to do: nothing is handed over beyond what is not settled.
#[pyfunction]
pub(crate) fn settle(py: Python<'_>) -> PyResult<()> {
    settle_done(py, channel(py)?)
}

/// The numbers of the messages in hand that are to be cancelled.
#[pyfunction]
pub(crate) fn take_cancelled(py: Python<'_>) -> PyResult<Vec<u64>> {
    Ok(channel(py)?.take_cancelled().into_iter().map(|seq| seq.0).collect())
}

pub(crate) fn settle_done(py: Python<'_>, channel: &Channel) -> PyResult<()> {
    tell_news(py, channel)?;
    acknowledge_noted(py, channel)
}

/// What selective receive remembers: messages that it has decoded, and up to where the last asker has refused all.
#[derive(Default)]
struct Seen {
    decoded: HashMap<Place, Py<PyAny>>,
    /// Of which watches of rows some of them come.
    watches: HashMap<Place, u64>,
    refused: Option<(Py<PyAny>, Place)>,
}

fn with_seen<T>(use_it: impl FnOnce(&mut Seen) -> T) -> T {
    SEEN.with_borrow_mut(use_it)
}

/// From now on a stop that waits ends the next [`receive`].
#[pyfunction]
pub(crate) fn take_own_mail(py: Python<'_>) -> PyResult<()> {
    channel(py)?.page.take_own_mail();
    IS_PLAIN.set(true);
    Ok(())
}

/// Messages that are handed over in any case.
const WINDOW: usize = 64;

/// Takes the first plain message that fits, out of turn, and waits for one; `None` if the time is over. All others stay
/// where they are. `fits` is a type, a tuple of types, or a function, which is asked about a message once as long as it
/// is the same object. What is given is settled before. Without `waits` it only looks at what has come; without
/// `takes`, too, it leaves that where it is, and gives an empty tuple if a call that takes would give something, or raise.
#[pyfunction]
#[pyo3(signature = (fits, timeout, *, waits = true, takes = true))]
pub(crate) fn receive<'py>(
    py: Python<'py>,
    fits: Option<&Bound<'py, PyAny>>,
    timeout: Option<f64>,
    waits: bool,
    takes: bool,
) -> PyResult<Option<Bound<'py, PyTuple>>> {
    let channel = channel(py)?;
    let until = until(timeout)?;
    if waits && timeout != Some(0.0) {
        context::warn_of_blocking(py, "receive")?;
    }
    forget_what_is_gone(channel);
    let mut behind = with_seen(|seen| match (&seen.refused, fits) {
        (Some((asker, place)), Some(fits)) if asker.is(fits) => *place,
        _ => 0,
    });
    loop {
        if IS_PLAIN.get() {
            if takes {
                attend_to_process(py, channel)?;
            } else if channel.has_for_process() {
                return Ok(Some(PyTuple::empty(py)));
            }
            refuse_calls(py, channel)?;
        }
        let known = channel.last_place();
        while let Some(place) = channel.next_plain(behind) {
            let message = message_at(py, channel, place);
            let is_it = match (&message, fits) {
                (Ok(message), Some(fits)) if fits.is_instance_of::<PyType>() || fits.is_instance_of::<PyTuple>() => {
                    message.is_instance(fits)
                }
                (Ok(message), Some(fits)) => fits.call1((message,)).and_then(|result| result.is_truthy()),
                (Ok(_), None) => Ok(true),
                // Whatever it is, it cannot be had; it is reported when it is handled in turn.
                (Err(error), _) => convert::fault(py, error.clone_ref(py)).map(|_| false),
            };
            if !takes && !matches!(is_it, Ok(false)) {
                return Ok(Some(PyTuple::empty(py)));
            }
            if !is_it? {
                behind = place;
                continue;
            }
            let (decoded, watch) = with_seen(|seen| (seen.decoded.remove(&place), seen.watches.remove(&place)));
            drop(decoded);
            watch.map_or(Ok(()), |watch| tables::seen(py, channel, watch))?;
            let mut done = channel.take_done().unwrap_or_default();
            done.extend(channel.take(place).map(Done::from));
            send_acks(py, channel, done)?;
            remember_refused(fits, behind);
            return Ok(Some(PyTuple::new(py, [message?])?));
        }
        settle_done(py, channel)?;
        // Half of what may be handed over is looked at and stays: more is wanted. The one in hand counts, too.
        let waiting = channel.waiting() + 1;
        let widened = WIDENED.get();
        if waiting * 2 > WINDOW + widened {
            WIDENED.set(2 * widened + WINDOW);
            send(py, channel, &ToSupervisor::WantMore { more: (WINDOW + widened) as u64 }, &[])?;
        }
        if !waits {
            remember_refused(fits, behind);
            return Ok(None);
        }
        let is_plain = IS_PLAIN.get();
        let has_come = || channel.last_place() > known;
        if wait(py, || channel.wait_behind(known, is_plain, until))?.is_none()
            && !(catch_up(py, channel).map(|()| has_come())?)
        {
            remember_refused(fits, behind);
            return Ok(None);
        }
    }
}

/// Does what is asked of the process of a function, which handles no letters. An order to end is raised.
fn attend_to_process(py: Python<'_>, channel: &Channel) -> PyResult<()> {
    let stop = |kind: &str, text: &str| -> PyResult<()> {
        Err(PyErr::from_value(py.import("rebeam._functions")?.call_method1("stop", (kind, text))?))
    };
    while let Some(letter) = channel.next_for_process() {
        match letter {
            Letter::Stop(reason) => {
                let (kind, text, _) = convert::reason_fields(&reason);
                return stop(kind, &text);
            }
            Letter::Recycle => {
                IS_RECYCLED.set(true);
                return stop("shutdown", "recycled");
            }
            // Its signal may have been faster.
            Letter::Exit if is_shared() => return Err(actor_exit(py)?),
            Letter::Exit if exit_ordered() => {
                py.import("rebeam._boot")?.call_method0("exit_now")?;
            }
            Letter::Exit => {}
            Letter::LogLevel(level) => {
                py.import("rebeam._logging")?.call_method1("set_level", (level,))?;
            }
            Letter::StacksTaken => channel.rewind_stacks(),
            Letter::Message(delivery, ..) => {
                let Some(to) = delivery.reply_to else { continue };
                let text = format!("`{}` is a function: it has no state", channel.welcome.label);
                let outcome = Outcome::Failed(CallFailure::BadCall(text));
                let reply = Reply { to, outcome, done: None, is_last: false, buffers: None };
                send(py, channel, &ToSupervisor::Reply(reply), &[])?;
            }
            // A function is not asked to.
            Letter::Move(_) | Letter::GoOn | Letter::Leave | Letter::Lent => {}
        }
    }
    Ok(())
}

/// Whether this function was asked to go on in a new process, where it starts over.
#[pyfunction]
pub(crate) fn is_recycled() -> bool {
    IS_RECYCLED.get()
}

/// A function has no methods: whoever calls one learns it at once.
fn refuse_calls(py: Python<'_>, channel: &Channel) -> PyResult<()> {
    while let Some(delivery) = channel.take_call() {
        let text = format!("`{}` is a function: `rebeam.send` to it", channel.welcome.label);
        match delivery.reply_to {
            Some(to) => {
                let outcome = Outcome::Failed(CallFailure::BadCall(text));
                let reply = Reply { to, outcome, done: Some(delivery.seq.into()), is_last: false, buffers: None };
                send(py, channel, &ToSupervisor::Reply(reply), &[])?;
            }
            None => {
                py.import("rebeam._logging")?.call_method1("warn_bad_cast", (text, &delivery.sender))?;
                send(py, channel, &ToSupervisor::Ack { done: vec![delivery.seq.into()] }, &[])?;
            }
        }
    }
    Ok(())
}

fn remember_refused(fits: Option<&Bound<'_, PyAny>>, behind: Place) {
    let refused = fits.map(|fits| (fits.clone().unbind(), behind));
    let before = with_seen(|seen| std::mem::replace(&mut seen.refused, refused));
    drop(before);
}

/// A message that waits, as an object; decoded once.
fn message_at<'py>(py: Python<'py>, channel: &Channel, place: Place) -> PyResult<Bound<'py, PyAny>> {
    if let Some(known) = with_seen(|seen| seen.decoded.get(&place).map(|object| object.clone_ref(py))) {
        return Ok(known.into_bound(py));
    }
    let Some((delivery, mut payload)) = channel.lend(place) else {
        return Err(PyTypeError::new_err("somebody else looks at this message"));
    };
    let object = match &delivery.head.form {
        Form::Signal(signal) => signal_object(py, signal),
        _ => codec::load_content(py, &mut payload),
    };
    let watch = watch_of(&delivery.head.form);
    channel.put_back(place, delivery, payload);
    let object = object?;
    with_seen(|seen| {
        seen.watches.extend(watch.map(|watch| (place, watch)));
        seen.decoded.insert(place, object.clone().unbind())
    });
    Ok(object)
}

/// The watch of rows that a message comes of.
fn watch_of(form: &Form) -> Option<u64> {
    match form {
        Form::Signal(signal) => match &**signal {
            Signal::Rows { watch, .. } => Some(*watch),
            _ => None,
        },
        _ => None,
    }
}

fn run_after(py: Python<'_>) -> PyResult<()> {
    while let Some(function) = AFTER.take() {
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
    settle_done(py, channel)?;
    if let Some(letter) = wait(py, || channel.wait_letter(until))? {
        return Ok(Some(letter));
    }
    catch_up(py, channel)?;
    Ok(channel.try_letter())
}

/// Has everything come that the supervisor has for this actor: a wait that is over must not overtake it (GEN-016).
fn catch_up(py: Python<'_>, channel: &Channel) -> PyResult<()> {
    settle_done(py, channel)?;
    // What was sent before the answer comes before it.
    requests::ask(py, ProcessRequest::Resolve(Address::Pid(channel.welcome.process.pid))).map(drop)
}

/// The same, for an event loop, which looks at what has come itself.
#[pyfunction]
pub(crate) fn catch_up_now(py: Python<'_>) -> PyResult<()> {
    catch_up(py, channel(py)?)
}

/// Drops messages that selective receive has decoded and that were taken back meanwhile.
fn forget_what_is_gone(channel: &Channel) {
    let gone: Vec<Py<PyAny>> = with_seen(|seen| {
        if seen.decoded.len() <= channel.waiting() {
            return Vec::new();
        }
        seen.decoded.extract_if(|place, _| !channel.has_letter_at(*place)).map(|(_, object)| object).collect()
    });
    drop(gone);
}

/// A class or a constant of `rebeam._errors`.
fn class<'py>(py: Python<'py>, name: &str) -> PyResult<Bound<'py, PyAny>> {
    py.import("rebeam._errors")?.getattr(name)
}

impl Handlers {
    /// Takes a letter, and handles it unless a coroutine has to.
    fn take<'py>(&mut self, py: Python<'py>, channel: &Channel, letter: Letter) -> PyResult<Taken<'py>> {
        match letter {
            Letter::Stop(reason) => {
                let (kind, text, traceback) = convert::reason_fields(&reason);
                Ok(Taken::End(kind, text, traceback))
            }
            Letter::Recycle => Ok(Taken::End(RECYCLE, String::new(), None)),
            Letter::Move(grace_ms) => {
                moving::stands_still();
                Ok(Taken::End(MOVE, grace_ms.to_string(), None))
            }
            Letter::Exit => Err(actor_exit(py)?),
            Letter::Lent | Letter::GoOn | Letter::Leave => Ok(Taken::Done),
            Letter::StacksTaken => {
                channel.rewind_stacks();
                Ok(Taken::Done)
            }
            Letter::LogLevel(level) => {
                py.import("rebeam._logging")?.call_method1("set_level", (level,))?;
                Ok(Taken::Done)
            }
            Letter::Message(delivery, payload, _) if delivery.head.lane == Lane::System => {
                self.handle_system(py, channel, &delivery, &payload)?;
                Ok(Taken::Done)
            }
            Letter::Message(delivery, mut payload, place) => {
                let message = Bound::new(py, Message::new(&delivery, payload.as_slice().len()))?;
                channel.page.begin(delivery.seq);
                context::set(py, Some(message.clone().unbind()))?;
                // What `receive` has looked at and left is decoded already.
                let result = match with_seen(|seen| seen.decoded.remove(&place)) {
                    Some(known) => Work::Message(known.into_bound(py)).run(py, &delivery, self),
                    None => self.handle(py, &delivery, &mut payload),
                };
                let is_begun = matches!(&result, Ok(result) if is_coroutine(py, result)?);
                let taken = match result {
                    Ok(coroutine) if is_begun => Taken::Begun(message.unbind(), coroutine),
                    result => {
                        // After an exception the mark stays: the certificate names the message in hand.
                        self.conclude(py, channel, message.get(), result)?;
                        channel.page.done(delivery.seq);
                        Taken::Done
                    }
                };
                context::set(py, None)?;
                Ok(taken)
            }
        }
    }

    /// Does what is asked of the process. Nothing of it can harm the actor.
    fn handle_system(&self, py: Python<'_>, channel: &Channel, delivery: &Delivery, payload: &Payload) -> PyResult<()> {
        let Some(to) = delivery.reply_to else { return Ok(()) };
        let result = (|| {
            match delivery.head.method.as_str() {
                "suspend" => channel.set_suspended(true),
                "resume" => channel.set_suspended(false),
                _ => {}
            }
            let content = codec::loads(py, payload.as_slice())?;
            let result = self.system.call1(py, (&delivery.head.method, content))?;
            Ok(codec::dumps(result.bind(py))?.as_bytes().to_vec())
        })();
        let (outcome, content) = match result {
            Ok(content) => (Outcome::Returned(Codec::Pickle), content),
            Err(error) if convert::is_fault(py, &error) => raised(py, &error, Codec::Pickle)?,
            Err(error) => return Err(error),
        };
        let reply = Reply { to, outcome, done: None, is_last: false, buffers: None };
        send(py, channel, &ToSupervisor::Reply(reply), &content)
    }

    /// Runs what handles a message.
    fn handle<'py>(
        &mut self,
        py: Python<'py>,
        delivery: &Delivery,
        payload: &mut Payload,
    ) -> Result<Bound<'py, PyAny>, Refusal> {
        match self.prepare(py, delivery, payload) {
            Ok(work) => work.run(py, delivery, self),
            Err(error) => Err(Refusal::bad_call(py, error)),
        }
    }

    /// Says what came of a message. An error is the handler's own: the actor ends with it.
    fn conclude(
        &self,
        py: Python<'_>,
        channel: &Channel,
        message: &Message,
        result: Result<Bound<'_, PyAny>, Refusal>,
    ) -> PyResult<()> {
        if is_helper() {
            // The handler forked, and this is its child: it has no business with the actor's mail.
            return match result {
                Err(Refusal::Raised(error)) => Err(error),
                Ok(_) | Err(Refusal::Bad(_)) => process::end_at_once(0),
            };
        }
        message.end();
        // Times are counted of what there is: anybody may name a method that there is not.
        let done = match result {
            Err(Refusal::Bad(CallFailure::BadCall(_))) => message.seq.into(),
            _ => channel.page.timed(message.seq),
        };
        let (outcome, content, error) = match result {
            Ok(_) if message.reply_to.is_none() || message.is_deferred() => {
                return acknowledge(py, channel, message, done, false);
            }
            Ok(result) => {
                let (outcome, content) = encode(channel, &result, message)?;
                (outcome, content, None)
            }
            Err(Refusal::Bad(failure)) => {
                if message.reply_to.is_none()
                    && let CallFailure::BadCall(text) = &failure
                {
                    py.import("rebeam._logging")?.call_method1("warn_bad_cast", (text, &message.sender))?;
                }
                (Outcome::Failed(failure), Answer::default(), None)
            }
            Err(Refusal::Raised(error)) => match end_of(py, &error)? {
                // Whoever cancelled the call has no answer coming; who did not, and still waits, is told.
                End::Cancelled if message.reply_to.is_none() => return acknowledge(py, channel, message, done, true),
                End::Cancelled => {
                    let (outcome, bytes) = raised(py, &error, message.codec)?;
                    (outcome, Answer { bytes, buffers: None, _held: None }, None)
                }
                // It is done with the message, and ends. A caller learns the reason with its end, by a message in hand.
                End::InGoodOrder => {
                    if let (Some(to), Some(answer)) = (message.reply_to, last_answer(py, &error)?) {
                        let (outcome, content) = encode(channel, &answer, message)?;
                        // `terminate` comes first (GEN-012).
                        acknowledge_noted(py, channel)?;
                        let reply = Reply { to, outcome, done: Some(done), is_last: true, buffers: content.buffers };
                        send(py, channel, &ToSupervisor::Reply(reply), &content.bytes)?;
                    } else if message.reply_to.is_none() || message.is_deferred() {
                        acknowledge(py, channel, message, done, true)?;
                    }
                    return Err(error);
                }
                // The message stays in hand, as the certificate then says.
                End::WithoutAnswer => {
                    FAILED.set(Some(message.seq));
                    return Err(error);
                }
                End::ByException => {
                    let (outcome, bytes) = raised(py, &error, message.codec)?;
                    let failure = py.import("rebeam._failure")?;
                    let is_answer = message.is_method
                        && failure
                            .call_method1("is_answer", (&message.method, error.value(py), &self.resolve))?
                            .is_truthy()?;
                    (outcome, Answer { bytes, buffers: None, _held: None }, (!is_answer).then_some(error))
                }
            },
        };
        match message.reply_to {
            Some(to) => {
                // Who is answered may count on the room of what was done before.
                acknowledge_noted(py, channel)?;
                let done = error.is_none().then_some(done);
                let reply = Reply { to, outcome, done, is_last: false, buffers: content.buffers };
                send(py, channel, &ToSupervisor::Reply(reply), &content.bytes)?;
                if done.is_some() {
                    channel.page.settled(&[message.seq]);
                }
            }
            None if error.is_none() => acknowledge(py, channel, message, done, false)?,
            None => {}
        }
        error.map_or(Ok(()), |error| {
            FAILED.set(Some(message.seq));
            Err(error)
        })
    }

    fn prepare<'py>(&mut self, py: Python<'py>, delivery: &Delivery, payload: &mut Payload) -> PyResult<Work<'py>> {
        let mut load = || match delivery.head.codec {
            Codec::Pickle => codec::load_content(py, payload),
            Codec::Data => codec::load_value(py, payload.as_slice()),
        };
        match &delivery.head.form {
            Form::Arguments => {}
            Form::Message => return Ok(Work::Message(load()?)),
            Form::Signal(signal) => {
                if let Some(watch) = watch_of(&delivery.head.form) {
                    tables::seen(py, channel(py)?, watch)?;
                }
                return Ok(Work::Message(signal_object(py, signal)?));
            }
        }
        let function = match self.methods.get(&delivery.head.method) {
            Some(function) => function.clone_ref(py),
            None => {
                let function = self.resolve.call1(py, (&delivery.head.method,))?;
                self.methods.insert(delivery.head.method.clone(), function.clone_ref(py));
                function
            }
        };
        let content = load()?;
        let content =
            content.cast::<PyTuple>().map_err(|_| PyTypeError::new_err("the message is no pair of arguments"))?;
        let args = content.get_item(0)?;
        let args = match args.cast::<PyTuple>() {
            Ok(args) => args.clone(),
            Err(_) => PyTuple::new(py, args.try_iter()?.collect::<PyResult<Vec<_>>>()?)?,
        };
        Ok(Work::Method(function.into_bound(py), args, content.get_item(1)?.cast_into::<PyDict>()?))
    }
}

fn is_coroutine(py: Python<'_>, result: &Bound<'_, PyAny>) -> PyResult<bool> {
    static COROUTINE: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    Ok(result.get_type().is(COROUTINE.import(py, "types", "CoroutineType")?))
}

/// An exception as an answer.
fn raised(py: Python<'_>, error: &PyErr, codec: Codec) -> PyResult<(Outcome, Vec<u8>)> {
    convert::set_traceback(py, error);
    let described = py.import("rebeam._failure")?.call_method1("describe", (error.value(py),))?;
    let (kind, message, traceback, pickled): (String, String, String, Option<Vec<u8>>) = described.extract()?;
    let content = pickled.filter(|_| codec == Codec::Pickle).unwrap_or_default();
    Ok((Outcome::Raised(Raised { kind, message, traceback }), content))
}

/// What an exception out of a handler is.
enum End {
    /// `Stop`, or `SystemExit` without a code.
    InGoodOrder,
    /// An exit signal, an exit code, or a return value that no callback may give.
    WithoutAnswer,
    /// Its task was cancelled.
    Cancelled,
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
    // Only who has imported asyncio can have been cancelled by it.
    let modules = py.import("sys")?.getattr("modules")?;
    if let Ok(asyncio) = modules.get_item("asyncio")
        && error.is_instance(py, &asyncio.getattr("CancelledError")?)
    {
        return Ok(End::Cancelled);
    }
    Ok(End::ByException)
}

/// Why a message was not handled to its end.
enum Refusal {
    /// The message was at fault, or its result: the actor is none the worse.
    Bad(CallFailure),
    /// The handler raised, or the process is to end.
    Raised(PyErr),
}

impl Refusal {
    /// What could not be made out of a message is its own fault, unless the actor is told to end meanwhile.
    fn bad_call(py: Python<'_>, error: PyErr) -> Self {
        convert::fault(py, error).map_or_else(Refusal::Raised, |text| Refusal::Bad(CallFailure::BadCall(text)))
    }
}

/// What a message asks for.
enum Work<'py> {
    Method(Bound<'py, PyAny>, Bound<'py, PyTuple>, Bound<'py, PyDict>),
    Message(Bound<'py, PyAny>),
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
        Signal::DeadLetter(letter) => convert::dead_letter(py, letter),
        Signal::Entry { .. } => registry::change_object(py, signal),
        Signal::Rows { watch, key, changes } => tables::change_object(py, *watch, key, changes),
        Signal::Table { key, from, data } => tables::transfer_object(py, key, *from, data),
        Signal::Exit { pid, reason } => {
            module.call_method1("exit_message", (convert::pid_numbers(*pid), convert::reason_fields(reason)))
        }
    }
}

impl<'py> Work<'py> {
    fn run(self, py: Python<'py>, delivery: &Delivery, handlers: &Handlers) -> Result<Bound<'py, PyAny>, Refusal> {
        let (function, args, kwargs) = match self {
            Work::Method(function, args, kwargs) => (function, args, kwargs),
            Work::Message(message) => {
                let result = handlers.receive.bind(py).call1((&delivery.head.method, message));
                return result.map_err(|error| match class(py, "BadCall") {
                    // The actor is of a sort that takes no such message.
                    Ok(bad)
                        if error.is_instance(py, &bad)
                            && (error.traceback(py).as_ref().is_none_or(is_own)
                                || delivery.head.method == "stream_open") =>
                    {
                        Refusal::bad_call(py, error)
                    }
                    _ => Refusal::Raised(error),
                });
            }
        };
        function.call(&args, Some(&kwargs)).map_err(|error| {
            // A TypeError without a traceback was raised by the call itself: the arguments do not fit.
            if error.is_instance_of::<PyTypeError>(py) && error.traceback(py).is_none() {
                return Refusal::bad_call(py, error);
            }
            Refusal::Raised(error)
        })
    }
}

/// Whether a traceback goes no deeper than the one frame of our own that was called.
fn is_own(traceback: &Bound<'_, pyo3::types::PyTraceback>) -> bool {
    traceback.getattr("tb_next").is_ok_and(|next| next.is_none())
}

/// The content of an answer.
#[derive(Default)]
struct Answer {
    bytes: Vec<u8>,
    buffers: Option<Buffers>,
    /// What the buffers lie in, until they are sent.
    _held: Option<Held>,
}

/// Encodes a result as its caller wants it, or says why that cannot be. An error is an order to end.
fn encode(channel: &Channel, result: &Bound<'_, PyAny>, message: &Message) -> PyResult<(Outcome, Answer)> {
    let encoded = match message.codec {
        Codec::Pickle => codec::dump_content(channel, result).map(|it| Answer {
            bytes: it.as_bytes().to_vec(),
            buffers: it.buffers,
            _held: it.held,
        }),
        Codec::Data => codec::dump_value(result).map(|bytes| Answer { bytes, buffers: None, _held: None }),
    };
    let py = result.py();
    let limit = channel.welcome.max_frame as usize;
    let error = match encoded {
        Ok(answer) if answer.bytes.len() + ANSWER_HEAD <= limit => {
            return Ok((Outcome::Returned(message.codec), answer));
        }
        Ok(answer) => too_large(py, answer.bytes.len(), limit),
        Err(error) => error,
    };
    let text = convert::fault(py, error.clone_ref(py))?;
    let explain = || -> PyResult<String> {
        let module = py.import("rebeam._pickling")?;
        module.call_method1("explain_result", (result, &message.method, error.value(py)))?.extract()
    };
    let text = explain().or_else(|error| convert::fault(py, error).map(|_| text))?;
    Ok((Outcome::Failed(CallFailure::BadResult(text)), Answer::default()))
}

/// Room for the head of an answer, whatever it says.
const ANSWER_HEAD: usize = 4096;

/// Notes a message as done without an answer, and tells the supervisor if that is worth a frame, or if it `must` know.
fn acknowledge(py: Python<'_>, channel: &Channel, message: &Message, done: Done, must: bool) -> PyResult<()> {
    let mut due = channel.note_done(done, message.size);
    if must {
        due = due.or_else(|| channel.take_done());
    }
    match due {
        // The mark must say so first, in case of an end between the two.
        Some(done) => {
            channel.page.done(message.seq);
            send_acks(py, channel, done)
        }
        None => Ok(()),
    }
}
