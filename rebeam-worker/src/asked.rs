//! What may take long to be answered: waited for by a thread, or by a task of an event loop (`rebeam._pending`).
//!
//! It is asked by whoever waits, who alone knows whether the whole actor waits or one handler of it. It must not know
//! what is asked: [`crate::requests`] and [`crate::outgoing`] make these.

use std::time::Instant;

use pyo3::exceptions::{PyOSError, PyRuntimeError};
use pyo3::prelude::*;
use rebeam_protocol::address::Address;
use rebeam_protocol::id::{CallId, RequestId};
use rebeam_protocol::message::Waits;
use rebeam_protocol::process::{ProcessAnswer, ProcessRequest};
use rebeam_protocol::worker::ToSupervisor;

use crate::channel::{Channel, Filed};
use crate::clock;
use crate::context;
use crate::session::{answer_too_large, channel, send, wait};
use crate::wire::Payload;

/// What is asked.
enum Question {
    /// With what it is about.
    Request(ProcessRequest, Vec<u8>),
    /// That the mailbox behind an address has room for a message to this method.
    Room { to: Address, method: String },
}

/// Makes an answer what Python gets; `None`: the time is over.
type Finish = Box<dyn FnOnce(Python<'_>, Option<Filed>) -> PyResult<Py<PyAny>> + Send + Sync>;

/// A question that is asked when somebody waits for its answer, once.
#[pyclass(module = "rebeam._rebeam")]
pub(crate) struct Asked {
    /// Until it is asked.
    question: Option<Question>,
    /// Its number from then on.
    #[pyo3(get)]
    number: u64,
    until: Option<Instant>,
    finish: Option<Finish>,
}

impl Asked {
    /// A request; who waits is filled in.
    pub(crate) fn request(
        request: ProcessRequest,
        until: Option<Instant>,
        finish: impl FnOnce(Python<'_>, Option<(ProcessAnswer, Payload)>) -> PyResult<Py<PyAny>> + Send + Sync + 'static,
    ) -> Self {
        let finish = move |py: Python<'_>, filed: Option<Filed>| match filed {
            Some(Filed::Answer(ProcessAnswer::TooLarge(text), _)) => Err(answer_too_large(py, &text)),
            Some(Filed::Answer(answer, payload)) => finish(py, Some((answer, payload))),
            Some(_) => Err(PyOSError::new_err("an unexpected answer")),
            None => finish(py, None),
        };
        let question = Question::Request(request, Vec::new());
        Asked { question: Some(question), number: 0, until, finish: Some(Box::new(finish)) }
    }

    /// With content.
    pub(crate) fn about(mut self, about: Vec<u8>) -> Self {
        if let Some(Question::Request(_, content)) = &mut self.question {
            *content = about;
        }
        self
    }

    /// A wait for room.
    pub(crate) fn room(
        to: Address,
        method: String,
        until: Option<Instant>,
        finish: impl FnOnce(Python<'_>, Option<Filed>) -> PyResult<Py<PyAny>> + Send + Sync + 'static,
    ) -> Self {
        Asked { question: Some(Question::Room { to, method }), number: 0, until, finish: Some(Box::new(finish)) }
    }

    fn ask(&mut self, py: Python<'_>, channel: &Channel, waits: Waits) -> PyResult<()> {
        let Some(question) = self.question.take() else {
            return Err(PyRuntimeError::new_err("this was asked already"));
        };
        self.number = channel.next_id();
        let mut content = Vec::new();
        let asked = match question {
            Question::Request(mut body, about) => {
                content = about;
                channel.expect(self.number);
                if let ProcessRequest::Supervisor { waits: who, .. }
                | ProcessRequest::Spawn { waits: who, .. }
                | ProcessRequest::WaitFor { waits: who, .. } = &mut body
                {
                    *who = waits;
                }
                ToSupervisor::Request { request: RequestId(self.number), body }
            }
            Question::Room { to, method } => {
                channel.expect_room(self.number, &to);
                ToSupervisor::AwaitRoom { call: CallId(self.number), to, method, waits }
            }
        };
        let sent = send(py, channel, &asked, &content);
        if sent.is_err() {
            channel.forget(self.number);
        }
        sent
    }

    fn finish(&mut self, py: Python<'_>, filed: Option<Filed>) -> PyResult<Py<PyAny>> {
        match self.finish.take() {
            Some(finish) => finish(py, filed),
            None => Err(PyRuntimeError::new_err("the answer was taken already")),
        }
    }

    fn give_up(&self, py: Python<'_>, channel: &Channel) -> PyResult<()> {
        channel.forget(self.number);
        send(py, channel, &ToSupervisor::Cancel { call: CallId(self.number) }, &[])
    }
}

#[pymethods]
impl Asked {
    /// Asks, and waits for the answer; `form` is the function that its user has called for that.
    /// `None`: nobody who could await it instead.
    pub(crate) fn wait(&mut self, py: Python<'_>, form: Option<&str>) -> PyResult<Py<PyAny>> {
        let (channel, until) = (channel(py)?, self.until);
        form.map_or(Ok(()), |form| context::warn_of_blocking(py, form))?;
        self.ask(py, channel, context::waits(py, false))?;
        let number = self.number;
        let filed = wait(py, || channel.wait_filed(number, until));
        match filed {
            Ok(filed) => {
                match &filed {
                    Some(_) => channel.forget(number),
                    None => self.give_up(py, channel)?,
                }
                self.finish(py, filed)
            }
            // What has ended the wait is told, whatever else fails.
            Err(error) => {
                let _ = self.give_up(py, channel);
                Err(error)
            }
        }
    }

    /// Asks, and waits for nothing. `is_handler` says whether the handler of the message in hand waits for the answer.
    fn begin(&mut self, py: Python<'_>, is_handler: bool) -> PyResult<()> {
        let waits = if is_handler { context::waits(py, true) } else { Waits::Nobody };
        self.ask(py, channel(py)?, waits)
    }

    /// Seconds that it may still take, if there is a limit.
    #[getter]
    fn time_left(&self) -> Option<f64> {
        self.until.map(|until| until.saturating_duration_since(clock::now()).as_secs_f64())
    }

    /// The answer. Without one the time is over; also if it was never asked.
    fn take(&mut self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        if self.question.take().is_some() {
            return self.finish(py, None);
        }
        let channel = channel(py)?;
        let filed = channel.take_filed(self.number);
        match &filed {
            Some(_) => channel.forget(self.number),
            None => self.give_up(py, channel)?,
        }
        self.finish(py, filed)
    }

    /// Nobody wants the answer any more.
    fn cancel(&self, py: Python<'_>) -> PyResult<()> {
        self.give_up(py, channel(py)?)
    }
}
