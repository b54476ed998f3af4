//! The control socket: requests of the command line to a running node.
//!
//! What comes here is from outside the tree: plain data, never a pickle. Only the node's own user (and root) may ask.

use std::cell::Cell;
use std::time::Duration;

use bytes::Bytes;
use rebeam_protocol::control::{Answer, NodeInfo, Request};
use rebeam_protocol::frame::{self, MAX_FRAME};
use rebeam_protocol::id::{ActorId, CallId};
use rebeam_protocol::message::{Address, CallFailure, Codec, Envelope, Form, Kind, Lane, Outcome, Waits};
use rebeam_protocol::value;
use tokio::io::AsyncWriteExt;
use tokio::net::{UnixListener, UnixStream};
use tokio_util::codec::{Framed, LengthDelimitedCodec};

use crate::shell::engine::{Loading, Node};

/// The largest request, in bytes.
const MAX_REQUEST: usize = 16 * 1024 * 1024;

/// After a call's deadline, how long the core has for its last word.
const LAST_WORD: Duration = Duration::from_secs(1);

/// Takes clients until the node ends.
pub(crate) async fn serve(node: Loading, listener: UnixListener) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // Out of descriptors, most likely: others may go.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let own = nix::unistd::getuid().as_raw();
        if stream.peer_cred().is_ok_and(|peer| peer.uid() == own || peer.uid() == 0) {
            tokio::task::spawn_local(serve_client(node.clone(), stream));
        }
    }
}

async fn serve_client(loading: Loading, stream: UnixStream) {
    let client = Client { loading, number: Cell::new(None) };
    let _ = converse(&client, stream).await;
    if let (Some(node), Some(number)) = (client.loading.node(), client.number.get()) {
        node.remove_client(number);
    }
}

/// Who is connected, and to which node, once there is one.
struct Client {
    loading: Loading,
    /// The node's number for it.
    number: Cell<Option<u64>>,
}

impl Client {
    async fn answer(&self, request: Request, payload: Bytes) -> (Answer, Bytes) {
        match (self.loading.node(), request) {
            (_, Request::Health) => (Answer::Health(self.loading.health()), Bytes::new()),
            (None, _) => (Answer::Refused("the application is still being imported".into()), Bytes::new()),
            (Some(node), request) => {
                let number = self.number.get().unwrap_or_else(|| node.add_client());
                self.number.set(Some(number));
                answer(node, number, request, payload).await
            }
        }
    }
}

async fn converse(client: &Client, stream: UnixStream) -> std::io::Result<()> {
    let codec = LengthDelimitedCodec::builder().little_endian().max_frame_length(MAX_REQUEST).new_codec();
    let mut framed = Framed::new(stream, codec);
    loop {
        let Some(body) = next_frame(&mut framed).await? else { return Ok(()) };
        let (answer, payload) = match frame::decode::<Request>(&body) {
            Ok((request, offset)) => {
                let work = client.answer(request, Bytes::copy_from_slice(&body[offset..]));
                // A client that goes away waits for nothing any more.
                tokio::select! {
                    answer = work => answer,
                    _ = gone(framed.get_ref()) => return Ok(()),
                }
            }
            Err(error) => (Answer::Refused(error.to_string()), Bytes::new()),
        };
        let mut bytes = Vec::new();
        frame::encode(&answer, &payload, MAX_FRAME, &mut bytes).map_err(std::io::Error::other)?;
        framed.get_mut().write_all(&bytes).await?;
    }
}

async fn next_frame(framed: &mut Framed<UnixStream, LengthDelimitedCodec>) -> std::io::Result<Option<Bytes>> {
    use tokio_stream::StreamExt;
    framed.next().await.transpose().map(|frame| frame.map(bytes::BytesMut::freeze))
}

/// Waits until the other side has closed.
async fn gone(stream: &UnixStream) {
    loop {
        if stream.ready(tokio::io::Interest::READABLE).await.is_err() {
            return;
        }
        match stream.try_read(&mut [0; 1]) {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            _ => return,
        }
    }
}

async fn answer(node: &Node, client: u64, request: Request, payload: Bytes) -> (Answer, Bytes) {
    match request {
        Request::Node => {
            let info = NodeInfo {
                version: env!("CARGO_PKG_VERSION").into(),
                os_pid: std::process::id(),
                project: node.directory().display().to_string(),
                target: node.target_text(),
                age_ms: node.age().as_millis() as u64,
            };
            (Answer::Node(info), Bytes::new())
        }
        Request::List => (Answer::List(node.list()), Bytes::new()),
        Request::Call { name, method, timeout_ms } => {
            let Some((actor, _)) = node.actor_named(&name) else { return (node.not_found(&name), Bytes::new()) };
            let call = node.next_call();
            let kind = Kind::Call { call, waits: Waits::Nobody };
            let envelope = envelope(actor, method, kind, Some(timeout_ms));
            let mut reply = node.send_from_outside(client, call, envelope, payload);
            let limit = Duration::from_millis(timeout_ms);
            let reply = match tokio::time::timeout(limit, &mut reply).await {
                Ok(reply) => reply.ok(),
                Err(_) => {
                    node.abandon(client, call);
                    tokio::time::timeout(LAST_WORD, reply).await.ok().and_then(Result::ok)
                }
            };
            match reply {
                Some((outcome, payload)) => (Answer::Outcome(outcome), payload),
                None => (Answer::Refused("the node is stopping".into()), Bytes::new()),
            }
        }
        Request::Cast { name, method } => {
            // OTP's cast says nothing of an unknown name; a person at a terminal wants to know.
            let Some((actor, is_gone)) = node.actor_named(&name) else { return (node.not_found(&name), Bytes::new()) };
            if is_gone {
                let failure = CallFailure::NoProc { target: name, similar: Vec::new(), is_down: true };
                return (Answer::Outcome(Outcome::Failed(failure)), Bytes::new());
            }
            drop(node.send_from_outside(client, CallId(0), envelope(actor, method, Kind::Cast, None), payload));
            (Answer::Ok, Bytes::new())
        }
        Request::Health => (Answer::Health(node.health()), Bytes::new()),
        Request::Stacks { name } => match (node.stacks(name.as_deref()).await, name) {
            (Some(stacks), _) => (Answer::Stacks(stacks), Bytes::new()),
            (None, name) => (node.not_found(&name.unwrap_or_default()), Bytes::new()),
        },
        Request::Whereis { .. }
        | Request::LogLevel { .. }
        | Request::Why { .. }
        | Request::StopChild { .. }
        | Request::RestartChild { .. }
        | Request::Down => (ask(node, request).await.0, Bytes::new()),
        // The content of a dead letter may be a pickle: it is not for whoever is outside.
        Request::DeadLetters(_) | Request::Entries(_) => (ask(node, request).await.0, Bytes::new()),
        // Pickles pass through those.
        Request::Process(_) => (Answer::Refused("only an actor may ask this".into()), Bytes::new()),
    }
}

/// Casts to a method without arguments; false if nobody is there.
pub(crate) fn cast(node: &Node, actor: &str, method: &str) -> bool {
    let Some((actor, false)) = node.actor_named(actor) else { return false };
    let payload = value::encode(&value::Value::Tuple(vec![value::Value::List(vec![]), value::Value::Dict(vec![])]));
    drop(node.send_from_outside(0, CallId(0), envelope(actor, method.to_owned(), Kind::Cast, None), payload.into()));
    true
}

async fn ask(node: &Node, request: Request) -> (Answer, Bytes) {
    let stopping = || (Answer::Refused("the node is stopping".into()), Bytes::new());
    node.ask(request).await.unwrap_or_else(|_| stopping())
}

fn envelope(to: ActorId, method: String, kind: Kind, deadline_ms: Option<u64>) -> Envelope {
    Envelope {
        to: Address::Actor(to),
        kind,
        method,
        form: Form::Arguments,
        codec: Codec::Data,
        lane: Lane::Normal,
        deadline_ms,
        buffers: None,
        trace: None,
    }
}
