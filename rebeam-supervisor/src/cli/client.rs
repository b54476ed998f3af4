//! The client of a running node's control socket: blocking, without an event loop, so that it answers in milliseconds.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rebeam_protocol::exit::ExitReason;
use rebeam_protocol::frame::{self, MAX_FRAME, PREFIX};
use rebeam_protocol::message::CallFailure;
use rebeam_protocol::outside::{Answer, Answered, Asked, Hello, Request, TreeRequest};
use rebeam_protocol::process::ChildError;
use rebeam_sys::socket::connect_node;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::config::Project;
use crate::shell::node_dir;
use crate::view::crash::plain_crash_block;
use crate::view::failure::Failure;

/// How long a node may take for what it answers at once.
const PATIENCE: Duration = Duration::from_secs(10);

/// A connection to the node of a project.
pub(crate) struct Client {
    stream: UnixStream,
    /// Requests so far.
    asked: u64,
}

impl Client {
    /// Connects to the node of a project.
    pub(crate) fn connect(project: &Project, runtime_dir: Option<&Path>) -> Result<Self, Failure> {
        let node_dir = node_dir::path_for(&project.directory, runtime_dir);
        let stream = connect_node(&node_dir, runtime_dir.is_some()).map_err(|error| match error.kind() {
            std::io::ErrorKind::PermissionDenied => {
                Failure::request(format!("the node in `{}` is not yours to control", project.directory.display()))
                    .cause(format!("`{}` belongs to another user", node_dir.display()))
                    .hint("a node is controlled by the user who runs it")
            }
            _ => Failure::request(format!("nothing is running in `{}`", project.directory.display()))
                .hint("start it with `rebeam up`, or name its directory with `--project`"),
        })?;
        Client::open(stream)
    }

    /// Shakes hands.
    fn open(stream: UnixStream) -> Result<Self, Failure> {
        let mut client = Client { stream, asked: 0 };
        client.write(&Hello::new(), &[])?;
        let (hello, _) = client.read::<Hello>(Some(PATIENCE))?;
        hello.check().map_err(|error| Failure::request("the node cannot be talked to").cause(error))?;
        Ok(client)
    }

    /// Asks, and waits for the answer and its payload.
    pub(crate) fn ask(&mut self, request: Request, payload: &[u8]) -> Result<(Answer, Vec<u8>), Failure> {
        // Stops, starts and reloads take as long as the actors and their settings say; all else is answered at once.
        let patience = match &request {
            Request::Call { timeout_ms, .. } => Some(Duration::from_millis(*timeout_ms).saturating_add(PATIENCE)),
            Request::Reload | Request::Tree(TreeRequest::Stop { .. } | TreeRequest::Restart { .. }) => None,
            _ => Some(PATIENCE),
        };
        self.asked += 1;
        self.write(&Asked { number: self.asked, request }, payload)?;
        let (answered, content) = self.read::<Answered>(patience)?;
        Ok((answered.answer, content))
    }

    fn write(&mut self, header: &impl Serialize, payload: &[u8]) -> Result<(), Failure> {
        let mut bytes = Vec::new();
        frame::encode(header, payload, MAX_FRAME, &mut bytes)
            .map_err(|error| Failure::usage("the request cannot be sent").because(&error))?;
        self.stream.write_all(&bytes).map_err(|error| lost(&error))
    }

    fn read<T: DeserializeOwned>(&mut self, patience: Option<Duration>) -> Result<(T, Vec<u8>), Failure> {
        let _ = self.stream.set_read_timeout(patience);
        let mut prefix = [0; PREFIX];
        self.stream.read_exact(&mut prefix).map_err(|error| lost(&error))?;
        let length = frame::length(&prefix, MAX_FRAME).map_err(std::io::Error::other).map_err(|error| lost(&error))?;
        let mut body = vec![0; length.unwrap_or_default()];
        self.stream.read_exact(&mut body).map_err(|error| lost(&error))?;
        let (header, offset) = frame::decode(&body).map_err(std::io::Error::other).map_err(|error| lost(&error))?;
        Ok((header, body.split_off(offset)))
    }

    /// Asks for something whose answer carries no payload; an answer that means no is a failure.
    pub(crate) fn expect(&mut self, request: Request) -> Result<Answer, Failure> {
        match self.ask(request, &[])?.0 {
            Answer::NotFound { name, similar } => Err(not_found(&name, &similar)),
            Answer::Refused(text) => Err(Failure::request(text)),
            Answer::Failed { what, reason } => Err(failed(&what, &reason)),
            answer => Ok(answer),
        }
    }

    /// The same, of the tree.
    pub(crate) fn expect_of_tree(&mut self, request: TreeRequest) -> Result<Answer, Failure> {
        self.expect(Request::Tree(request))
    }

    /// Waits until the node has closed the connection, which it does when it ends.
    pub(crate) fn wait_for_end(mut self) {
        let _ = self.stream.set_read_timeout(None);
        let _ = self.stream.read(&mut [0; 1]);
    }
}

fn lost(error: &std::io::Error) -> Failure {
    match error.kind() {
        std::io::ErrorKind::WouldBlock => Failure::request("the node does not answer")
            .hint("is its process stopped? `kill -CONT` its `rebeam up` lets it go on"),
        _ => Failure::request("the connection to the node was lost").because(error),
    }
}

/// The failure for an answer to another question.
pub(crate) fn unexpected(answer: &Answer) -> Failure {
    Failure::request(format!("unexpected response from the node: {answer:?}"))
}

/// The failure for a name that nobody has.
pub(crate) fn not_found(name: &str, similar: &[String]) -> Failure {
    let failure = Failure::request(format!("there is no actor `{name}`"));
    match similar {
        [] => failure.hint("`rebeam ps` lists them"),
        names => failure.hint(format!("did you mean `{}`?", names.join("` or `"))),
    }
}

fn failed(what: &str, error: &ChildError) -> Failure {
    match error {
        ChildError::StartFailed { child, reason } => {
            let is_itself = child == what || child.rsplit('/').next() == Some(what);
            let cause = if is_itself { String::new() } else { format!("`{child}`: ") };
            let failure = Failure::request(format!("`{what}` did not start: {cause}{reason}"));
            match reason {
                ExitReason::Exception(raised) => failure.detail(raised.traceback.trim_end().to_owned()),
                _ => failure,
            }
        }
        ChildError::Ending => Failure::request(format!("the supervisor of `{what}` is not running")),
        other => Failure::request(format!("`{what}`: {other}")),
    }
}

/// The failure for a call without an answer.
pub(crate) fn call_failure(failure: &CallFailure) -> Failure {
    match failure {
        CallFailure::NoProc { target, is_down: true, .. } => {
            Failure::request(format!("`{target}` is down")).hint(format!("`rebeam restart {target}` starts it"))
        }
        CallFailure::NoProc { target, similar, .. } => not_found(target, similar),
        CallFailure::Died { certificate, .. } => {
            Failure::request(format!("`{}` died before it answered: {}", certificate.actor, certificate.reason))
                .detail(plain_crash_block(certificate, certificate.next))
        }
        CallFailure::TimedOut(callee) => {
            let doing = match &callee.busy {
                Some((method, ms)) => format!("busy {:.1} s in `{method}`", *ms as f64 / 1000.0),
                None => callee.state.word().to_owned(),
            };
            Failure::request(format!("`{}` did not answer in time: {doing}, {} waiting", callee.target, callee.waiting))
                .hint("wait longer with `--timeout`")
        }
        CallFailure::Deadlock { cycle } => Failure::request(format!("it would wait forever: {}", cycle.join(" -> "))),
        CallFailure::Restarting { target } => Failure::request(format!("`{target}` is being restarted")),
        CallFailure::MailboxFull { target, waiting } => {
            Failure::request(format!("the mailbox of `{target}` is full: {waiting} waiting"))
        }
        CallFailure::BadCall(text) | CallFailure::BadResult(text) => Failure::request(text.clone()),
    }
}
