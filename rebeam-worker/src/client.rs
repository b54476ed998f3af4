//! A connection to a running node from outside the tree: plain data in and out, never a pickle.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::poll::PollFlags;
use pyo3::exceptions::{PyConnectionError, PyTypeError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};
use rebeam_protocol::address::Registry;
use rebeam_protocol::frame::{self, HEAD_ROOM, MAX_FRAME, PREFIX};
use rebeam_protocol::hash::fnv1a;
use rebeam_protocol::id::{NodeStart, Pid};
use rebeam_protocol::message::Outcome;
use rebeam_protocol::outside::{Answer, Answered, Asked, Hello, MemberKind, Request, TreeRequest};
use rebeam_protocol::value::{self, Value};
use rebeam_sys::socket::{connect_node, is_ready, waits_for_input};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::codec;
use crate::convert::{self, PidNumbers};
use crate::outgoing::limited;
use crate::session::too_large;

/// The largest request, as the node takes it.
const MAX_REQUEST: usize = 16 * 1024 * 1024;

/// How long a node may take beyond a call's own timeout.
const PATIENCE: Duration = Duration::from_secs(10);

/// The fields of `rebeam.ActorInfo`.
#[derive(IntoPyObject)]
pub(crate) struct ActorFields {
    path: String,
    name: Option<String>,
    state: &'static str,
    class_name: String,
    restarts: u32,
    version: Option<u32>,
    waiting: u64,
}

/// How often a wait for an answer looks whether a signal has come.
const SLICE: Duration = Duration::from_millis(100);

/// One connection. Threads take turns.
#[pyclass(frozen, module = "rebeam._rebeam")]
pub(crate) struct Client {
    connection: Mutex<Connection>,
    /// The same socket, to end it while somebody waits for it.
    handle: UnixStream,
}

/// A connection whose handshake is done.
struct Connection {
    stream: UnixStream,
    /// Requests so far.
    asked: u64,
}

#[pymethods]
impl Client {
    #[new]
    #[expect(clippy::needless_pass_by_value, reason = "pyo3 asks for it so")]
    fn new(node_dir: PathBuf, is_chosen: bool) -> PyResult<Self> {
        let stream =
            connect_node(&node_dir, is_chosen).map_err(|error| PyConnectionError::new_err(error.to_string()))?;
        let opened = stream.try_clone().and_then(|handle| Ok((Connection::open(stream)?, handle)));
        let (connection, handle) = opened.map_err(|error| PyConnectionError::new_err(error.to_string()))?;
        Ok(Client { connection: Mutex::new(connection), handle })
    }

    /// Calls a method of an actor by its name or path.
    fn call<'py>(
        &self,
        py: Python<'py>,
        name: String,
        method: String,
        args: &Bound<'py, PyTuple>,
        kwargs: &Bound<'py, PyDict>,
        timeout: Option<f64>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let payload = arguments(py, &method, args, kwargs)?;
        self.called(py, timeout, &payload, |timeout_ms| Request::Call { name, method, timeout_ms })
    }

    /// Calls a method of this connection's own gateway (`rebeam._gateway`).
    fn gateway<'py>(
        &self,
        py: Python<'py>,
        method: String,
        args: &Bound<'py, PyTuple>,
        kwargs: &Bound<'py, PyDict>,
        timeout: Option<f64>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let payload = arguments(py, &method, args, kwargs)?;
        self.called(py, timeout, &payload, |timeout_ms| Request::Gateway { method, timeout_ms })
    }

    /// Opens a streamed answer of an actor by its name or path; gives the incarnation that yields it, and its key.
    fn stream_open<'py>(
        &self,
        py: Python<'py>,
        name: String,
        method: &str,
        args: &Bound<'py, PyTuple>,
        kwargs: &Bound<'py, PyDict>,
        timeout: Option<f64>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let Value::Tuple(mut values) = plain_arguments(py, method, args, kwargs)? else { unreachable!("a tuple") };
        values.insert(0, Value::Str(method.to_owned()));
        let payload = value::encode(&Value::Tuple(values));
        self.called(py, timeout, &payload, |timeout_ms| Request::StreamOpen { name, timeout_ms })
    }

    /// Asks for more of it.
    fn stream_next<'py>(
        &self,
        py: Python<'py>,
        pid: PidNumbers,
        key: (u64, u64),
        wanted: u64,
        timeout: Option<f64>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let (node, started, serial) = pid;
        let pid = Pid { at: NodeStart { node, started }, serial };
        let [process, number, wanted] = [key.0, key.1, wanted].map(|it| Value::Int(it.into()));
        let payload = value::encode(&Value::Tuple(vec![Value::Tuple(vec![process, number]), wanted]));
        self.called(py, timeout, &payload, |timeout_ms| Request::StreamNext { pid, timeout_ms })
    }

    /// Casts to a method of an actor by its name or path.
    fn cast(
        &self,
        py: Python<'_>,
        name: String,
        method: String,
        args: &Bound<'_, PyTuple>,
        kwargs: &Bound<'_, PyDict>,
    ) -> PyResult<()> {
        let payload = arguments(py, &method, args, kwargs)?;
        match self.ask(py, Request::Cast { name, method }, &payload, Some(PATIENCE))?.0 {
            Answer::Ok => Ok(()),
            other => Err(refusal(py, other)?),
        }
    }

    /// The actors of the node.
    fn actors(&self, py: Python<'_>) -> PyResult<Vec<ActorFields>> {
        match self.ask(py, Request::List, &[], Some(PATIENCE))?.0 {
            Answer::List(children) => Ok(children
                .into_iter()
                .filter_map(|child| match child.kind {
                    MemberKind::Actor(class_name) => Some(ActorFields {
                        path: child.id,
                        name: child.name,
                        state: child.state.word(),
                        class_name,
                        restarts: child.restarts,
                        version: child.code.map(|code| code.0),
                        waiting: child.waiting,
                    }),
                    MemberKind::Supervisor(_) => None,
                })
                .collect()),
            other => Err(refusal(py, other)?),
        }
    }

    /// Who has which name: names and pids.
    fn names(&self, py: Python<'_>) -> PyResult<Vec<(String, PidNumbers)>> {
        let request = Request::Tree(TreeRequest::Entries(Registry::Names));
        match self.ask(py, request, &[], Some(PATIENCE))?.0 {
            Answer::Entries(entries) => {
                Ok(entries.into_iter().flatten().map(|entry| (entry.key, convert::pid_numbers(entry.pid))).collect())
            }
            other => Err(refusal(py, other)?),
        }
    }

    /// The last deaths of an actor, the fields of its certificates, oldest first.
    fn why<'py>(&self, py: Python<'py>, name: String) -> PyResult<Vec<Bound<'py, PyDict>>> {
        match self.ask(py, Request::Tree(TreeRequest::Why { name }), &[], Some(PATIENCE))?.0 {
            Answer::Why(deaths) => deaths
                .into_iter()
                .map(|(certificate, next)| convert::certificate_then(py, &certificate, next))
                .collect(),
            other => Err(refusal(py, other)?),
        }
    }

    /// Shuts the connection down. A thread that waits for an answer gets a `ConnectionError`.
    fn close(&self) {
        let _ = self.handle.shutdown(Shutdown::Both);
    }

    /// Whether the node is still at the other end.
    fn is_connected(&self) -> bool {
        let connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        // Nothing is under way: what can be read is the end.
        !is_ready(connection.stream.as_fd(), PollFlags::POLLIN | PollFlags::POLLHUP)
    }
}

impl Client {
    /// Asks for what is answered as a call is.
    fn called<'py>(
        &self,
        py: Python<'py>,
        timeout: Option<f64>,
        payload: &[u8],
        request: impl FnOnce(u64) -> Request,
    ) -> PyResult<Bound<'py, PyAny>> {
        let timeout = limited(timeout)?;
        let timeout_ms = timeout.map_or(u64::MAX, |timeout| timeout.as_millis().try_into().unwrap_or(u64::MAX));
        let patience = timeout.and_then(|timeout| timeout.checked_add(PATIENCE));
        let (answer, content) = self.ask(py, request(timeout_ms), payload, patience)?;
        match answer {
            Answer::Outcome(Outcome::Returned(_)) => codec::load_value(py, &content),
            Answer::Outcome(Outcome::Raised(raised)) => {
                let errors = py.import("rebeam._errors")?;
                let fields = (&raised.kind, &raised.message, &raised.traceback, pyo3::types::PyBytes::new(py, &[]));
                Err(PyErr::from_value(errors.call_method1("remote", fields)?))
            }
            other => Err(refusal(py, other)?),
        }
    }

    fn ask(
        &self,
        py: Python<'_>,
        request: Request,
        payload: &[u8],
        patience: Option<Duration>,
    ) -> PyResult<(Answer, Vec<u8>)> {
        let length = payload.len() + 1024;
        if length > MAX_REQUEST {
            return Err(too_large(py, length, MAX_REQUEST));
        }
        let mut interrupt = None;
        let exchanged = py.detach(|| {
            let mut connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
            // Ctrl-C ends the wait.
            connection.exchange(request, payload, patience, || {
                interrupt = Python::attach(|py| py.check_signals()).err();
                interrupt.is_none()
            })
        });
        exchanged.map_err(|error| {
            if let Some(interrupt) = interrupt {
                self.close();
                return interrupt;
            }
            match error.kind() {
                io::ErrorKind::WouldBlock => PyConnectionError::new_err("the node does not answer"),
                _ => PyConnectionError::new_err(format!("the connection to the node was lost: {error}")),
            }
        })
    }
}

impl Connection {
    /// Shakes hands.
    fn open(mut stream: UnixStream) -> io::Result<Self> {
        stream.set_read_timeout(Some(PATIENCE))?;
        write(&mut stream, &Hello::new(), &[])?;
        let (hello, _) = read::<Hello>(&mut stream)?;
        hello.check().map_err(io::Error::other)?;
        Ok(Connection { stream, asked: 0 })
    }

    /// Asks, and waits for the answer as long as `goes_on`.
    fn exchange(
        &mut self,
        request: Request,
        payload: &[u8],
        patience: Option<Duration>,
        mut goes_on: impl FnMut() -> bool,
    ) -> io::Result<(Answer, Vec<u8>)> {
        self.asked += 1;
        let number = self.asked;
        write(&mut self.stream, &Asked { number, request }, payload)?;
        let until = patience.and_then(|patience| Instant::now().checked_add(patience));
        loop {
            while !waits_for_input(self.stream.as_fd(), SLICE)? {
                if !goes_on() {
                    return Err(io::ErrorKind::Interrupted.into());
                }
                if until.is_some_and(|until| Instant::now() >= until) {
                    return Err(io::ErrorKind::WouldBlock.into());
                }
            }
            // The answer to a request that nobody waited for any more may come first.
            let (answered, content) = read::<Answered>(&mut self.stream)?;
            if answered.number == number {
                return Ok((answered.answer, content));
            }
        }
    }
}

fn write(stream: &mut UnixStream, header: &impl Serialize, payload: &[u8]) -> io::Result<()> {
    let mut bytes = Vec::new();
    frame::encode(header, payload, MAX_FRAME, &mut bytes).map_err(io::Error::other)?;
    stream.write_all(&bytes)
}

fn read<T: DeserializeOwned>(stream: &mut UnixStream) -> io::Result<(T, Vec<u8>)> {
    let mut prefix = [0; PREFIX];
    stream.read_exact(&mut prefix)?;
    let length = frame::length(&prefix, u32::MAX as usize - HEAD_ROOM).map_err(io::Error::other)?;
    let mut body = vec![0; length.unwrap_or_default()];
    stream.read_exact(&mut body)?;
    let (header, offset) = frame::decode(&body).map_err(io::Error::other)?;
    Ok((header, body.split_off(offset)))
}

/// The payload of a message from outside: arguments that are plain data.
fn arguments(py: Python<'_>, method: &str, args: &Bound<'_, PyTuple>, kwargs: &Bound<'_, PyDict>) -> PyResult<Vec<u8>> {
    Ok(value::encode(&plain_arguments(py, method, args, kwargs)?))
}

fn plain_arguments(
    py: Python<'_>,
    method: &str,
    args: &Bound<'_, PyTuple>,
    kwargs: &Bound<'_, PyDict>,
) -> PyResult<Value> {
    let values = (|| {
        let args = args.iter().map(|arg| codec::to_value(&arg)).collect::<PyResult<Vec<Value>>>()?;
        Ok(Value::Tuple(vec![Value::List(args), codec::to_value(kwargs)?]))
    })();
    values.map_err(|error: PyErr| {
        PyTypeError::new_err(format!("`{method}` cannot be sent from outside the tree: {}", error.value(py)))
    })
}

/// The error for an answer that means no.
fn refusal(py: Python<'_>, answer: Answer) -> PyResult<PyErr> {
    Ok(match answer {
        Answer::Outcome(Outcome::Failed(failure)) => convert::failure(py, &failure),
        Answer::NotFound { name, similar } => {
            let errors = py.import("rebeam._errors")?;
            PyErr::from_value(errors.call_method1("no_proc", (name, similar, false))?)
        }
        Answer::Refused(text) => PyConnectionError::new_err(text),
        other => PyConnectionError::new_err(format!("an unexpected answer: {other:?}")),
    })
}

/// The name of the directory in which the node of a project has its socket.
#[pyfunction]
pub(crate) fn node_directory(project: &[u8]) -> String {
    format!("{:016x}", fnv1a(project))
}
