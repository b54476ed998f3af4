//! The control socket: requests of clients to a running node.
//!
//! What comes here is from outside the tree: plain data, never a pickle. Only the node's own user (and root) may ask.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::select_all;
use futures_util::stream::{FuturesUnordered, StreamExt};
use rebeam_protocol::address::Address;
use rebeam_protocol::frame::{self, MAX_FRAME};
use rebeam_protocol::id::{ActorId, CallId, Pid};
use rebeam_protocol::message::{CallFailure, Codec, Form, Head, Kind, Outcome, Waits};
use rebeam_protocol::outside::{Answer, Answered, Asked, Hello, NodeInfo, Request};
use rebeam_protocol::value::{self, Value};
use rebeam_protocol::worker::Envelope;
use serde::Serialize;
use tokio::io::AsyncWriteExt;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::AbortHandle;
use tokio::time::MissedTickBehavior;
use tokio_util::codec::{Framed, LengthDelimitedCodec};

use crate::printer::Printer;
use crate::shell::descriptors;
use crate::shell::engine::{Loading, Node, Trigger};
use crate::shell::node_dir::NodeDir;

/// The largest request, in bytes.
const MAX_REQUEST: usize = 16 * 1024 * 1024;

/// How many requests of one client are worked on at once; more wait in its socket.
const MOST_REQUESTS: usize = 64;

/// How many clients there may be at once, where descriptors are many; for another one the longest idle makes room.
const MOST_CLIENTS: usize = 1024;

/// How long a client may take to introduce itself.
const PATIENCE: Duration = Duration::from_secs(3);

/// How often is looked whether the socket is still where clients look for it.
const PERIOD: Duration = Duration::from_secs(1);

/// After a call's deadline, how long the core has for its last word.
const LAST_WORD: Duration = Duration::from_secs(1);

/// Takes clients until the node ends. A cleaner of temporary files may take the socket away: then it is made anew.
pub(crate) async fn serve(
    node: Loading,
    dir: Weak<RefCell<NodeDir>>,
    mut listeners: Vec<UnixListener>,
    printer: Printer,
) {
    let most = descriptors::clients(MOST_CLIENTS);
    let mut seats: Vec<Seat> = Vec::new();
    let mut looks = tokio::time::interval(PERIOD);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut has_warned = false;
    loop {
        let accept = async { select_all(listeners.iter().map(|listener| Box::pin(listener.accept()))).await.0 };
        let accepted = tokio::select! {
            accepted = accept => accepted,
            _ = looks.tick() => {
                let Some(dir) = dir.upgrade() else { return };
                let restored = dir.borrow_mut().restore();
                match restored.and_then(|it| it.map(UnixListener::from_std).transpose()) {
                    Ok(None) => {}
                    Ok(Some(new)) => {
                        // The one in the directory comes first.
                        listeners[0] = new;
                        has_warned = false;
                        printer.warn("the control socket was removed, and is made anew: does somebody clean its directory?");
                    }
                    Err(error) if !has_warned => {
                        has_warned = true;
                        printer.warn(&format!("the control socket was removed, and cannot be made anew: {error}"));
                    }
                    Err(_) => {}
                }
                continue;
            }
        };
        let Ok((stream, _)) = accepted else {
            // Out of descriptors, most likely: others may go.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let own = nix::unistd::getuid().as_raw();
        if stream.peer_cred().is_ok_and(|peer| peer.uid() == own || peer.uid() == 0) {
            seats.retain(|seat| !seat.task.is_finished());
            if seats.len() >= most && !make_room(&mut seats) {
                // All of them wait for answers: this one has to come again.
                continue;
            }
            let activity = Rc::new(Activity::default());
            let served = serve_client(node.clone(), stream, activity.clone());
            seats.push(Seat { task: tokio::task::spawn_local(served).abort_handle(), activity });
        }
    }
}

/// A client that is connected.
struct Seat {
    task: AbortHandle,
    activity: Rc<Activity>,
}

/// What a client is doing.
struct Activity {
    /// How many of its requests are worked on.
    under_way: Cell<usize>,
    /// When it last asked or was answered.
    since: Cell<Instant>,
}

impl Default for Activity {
    fn default() -> Self {
        Activity { under_way: Cell::new(0), since: Cell::new(Instant::now()) }
    }
}

/// Puts out the client that has been idle longest, so that nobody who says nothing keeps others out; false if none is idle.
fn make_room(seats: &mut Vec<Seat>) -> bool {
    let idle = seats.iter().enumerate().filter(|(_, seat)| seat.activity.under_way.get() == 0);
    let Some(longest) = idle.min_by_key(|(_, seat)| seat.activity.since.get()).map(|(place, _)| place) else {
        return false;
    };
    seats.swap_remove(longest).task.abort();
    true
}

async fn serve_client(loading: Loading, stream: UnixStream, activity: Rc<Activity>) {
    let client = Client { loading, number: Cell::new(None), activity };
    let _ = converse(&client, stream).await;
}

/// Who is connected, and to which node, once there is one.
struct Client {
    loading: Loading,
    /// The node's number for it.
    number: Cell<Option<u64>>,
    activity: Rc<Activity>,
}

impl Drop for Client {
    /// However it has gone.
    fn drop(&mut self) {
        if let (Some(node), Some(number)) = (self.loading.node(), self.number.get()) {
            node.remove_client(number);
        }
    }
}

impl Client {
    async fn answer(&self, number: u64, request: Request, payload: Bytes) -> (Answered, Bytes) {
        let (answer, content) = match (self.loading.node(), request) {
            (_, Request::Health) => (Answer::Health(self.loading.health()), Bytes::new()),
            (None, _) => (Answer::Refused("the application is still being imported".into()), Bytes::new()),
            (Some(node), request) => {
                let client = self.number.get().unwrap_or_else(|| node.add_client());
                self.number.set(Some(client));
                answer(node, client, request, payload).await
            }
        };
        (Answered { number, is_last: true, answer }, content)
    }
}

/// What has happened on a connection.
enum Next {
    Frame(Bytes),
    Answer(Answered, Bytes),
    Gone,
}

/// Serves a client until it goes. Requests are worked on side by side, and answered as they are done.
async fn converse(client: &Client, stream: UnixStream) -> std::io::Result<()> {
    let codec = LengthDelimitedCodec::builder().little_endian().max_frame_length(MAX_REQUEST).new_codec();
    let mut framed = Framed::new(stream, codec);
    let hello = tokio::time::timeout(PATIENCE, next_frame(&mut framed)).await;
    let Some(body) = hello.map_err(std::io::Error::other)?? else { return Ok(()) };
    write(&mut framed, &Hello::new(), &[]).await?;
    // Who speaks another version is told ours, and no more.
    if !frame::decode::<Hello>(&body).is_ok_and(|(hello, _)| hello.check().is_ok()) {
        return Ok(());
    }
    let mut under_way = FuturesUnordered::new();
    loop {
        client.activity.under_way.set(under_way.len());
        client.activity.since.set(Instant::now());
        let has_room = under_way.len() < MOST_REQUESTS;
        let next = tokio::select! {
            Some((answered, content)) = under_way.next() => Next::Answer(answered, content),
            frame = next_frame(&mut framed), if has_room => frame?.map_or(Next::Gone, Next::Frame),
        };
        match next {
            // Whoever goes away waits for nothing any more.
            Next::Gone => return Ok(()),
            Next::Answer(answered, content) => {
                // One that does not read its answers waits for nothing either.
                client.activity.under_way.set(under_way.len());
                write(&mut framed, &answered, &content).await?;
            }
            Next::Frame(body) => match frame::decode::<Asked>(&body) {
                Ok((asked, offset)) => {
                    under_way.push(client.answer(asked.number, asked.request, body.slice(offset..)));
                }
                // There is no number to answer to.
                Err(_) => return Ok(()),
            },
        }
    }
}

type Connection = Framed<UnixStream, LengthDelimitedCodec>;

async fn next_frame(framed: &mut Connection) -> std::io::Result<Option<Bytes>> {
    framed.next().await.transpose().map(|frame| frame.map(bytes::BytesMut::freeze))
}

async fn write(framed: &mut Connection, header: &impl Serialize, payload: &[u8]) -> std::io::Result<()> {
    let mut bytes = Vec::new();
    frame::encode(header, payload, MAX_FRAME, &mut bytes).map_err(std::io::Error::other)?;
    framed.get_mut().write_all(&bytes).await
}

async fn answer(node: &Node, client: u64, request: Request, payload: Bytes) -> (Answer, Bytes) {
    let answer = match request {
        Request::Node => Answer::Node(NodeInfo {
            version: env!("CARGO_PKG_VERSION").into(),
            os_pid: std::process::id(),
            project: node.directory().display().to_string(),
            target: node.target_text(),
            code: node.code(),
            age_ms: node.age().as_millis() as u64,
        }),
        Request::List => Answer::List(node.list().await),
        Request::Call { name, method, timeout_ms } => {
            let Some((actor, _)) = node.actor_named(&name) else { return (node.not_found(&name), Bytes::new()) };
            return call(node, client, Address::Actor(actor), plain(method), timeout_ms, payload).await;
        }
        Request::StreamOpen { name, timeout_ms } => {
            let Some((actor, _)) = node.actor_named(&name) else { return (node.not_found(&name), Bytes::new()) };
            let Some((_, gateway)) = node.gateway(client) else { return (stopping(), Bytes::new()) };
            let payload = match with_client(&payload, gateway) {
                Ok(payload) => payload,
                Err(text) => return (Answer::Refused(text), Bytes::new()),
            };
            return call(node, client, Address::Actor(actor), message("stream_open"), timeout_ms, payload).await;
        }
        Request::StreamNext { pid, timeout_ms } => {
            return call(node, client, Address::Pid(pid), message("stream_next"), timeout_ms, payload).await;
        }
        Request::Gateway { method, timeout_ms } => {
            let Some((actor, _)) = node.gateway(client) else { return (stopping(), Bytes::new()) };
            return call(node, client, Address::Actor(actor), plain(method), timeout_ms, payload).await;
        }
        Request::Cast { name, method } => {
            // OTP's cast says nothing of an unknown name; a person at a terminal wants to know.
            let Some((actor, is_gone)) = node.actor_named(&name) else { return (node.not_found(&name), Bytes::new()) };
            if is_gone {
                let failure = CallFailure::NoProc { target: name, similar: Vec::new(), is_down: true };
                return (Answer::Outcome(Outcome::Failed(failure)), Bytes::new());
            }
            drop(node.send_from_outside(client, CallId(0), cast_to(actor, method), payload));
            Answer::Ok
        }
        Request::Health => Answer::Health(node.health()),
        Request::Stacks { name } => match (node.stacks(name.as_deref()).await, name) {
            (Some(stacks), _) => Answer::Stacks(stacks),
            (None, name) => node.not_found(&name.unwrap_or_default()),
        },
        Request::Reload => {
            let trigger = Trigger { is_asked_for: true, ..Trigger::default() };
            node.reload(trigger).await.unwrap_or_else(|_| stopping())
        }
        Request::Tree(request) => node.ask(request).await.unwrap_or_else(|_| stopping()),
    };
    (answer, Bytes::new())
}

fn stopping() -> Answer {
    Answer::Refused("the node is stopping".into())
}

/// Calls for a client.
async fn call(node: &Node, client: u64, to: Address, head: Head, timeout_ms: u64, payload: Bytes) -> (Answer, Bytes) {
    let call = node.next_call();
    let kind = Kind::Call { call, waits: Waits::Nobody };
    let head = Head { deadline_ms: Some(timeout_ms), ..head };
    let mut reply = node.send_from_outside(client, call, Envelope { to, kind, head, buffers: None }, payload);
    let replied = match tokio::time::timeout(Duration::from_millis(timeout_ms), &mut reply).await {
        Ok(reply) => reply.ok(),
        Err(_) => {
            node.abandon(client, call);
            tokio::time::timeout(LAST_WORD, reply).await.ok().and_then(Result::ok)
        }
    };
    match replied {
        Some((outcome, content)) => (Answer::Outcome(outcome), content),
        None => (stopping(), Bytes::new()),
    }
}

/// Casts to a method without arguments; false if nobody is there.
pub(crate) fn cast(node: &Node, actor: &str, method: &str) -> bool {
    let Some((actor, false)) = node.actor_named(actor) else { return false };
    let payload = value::encode(&Value::Tuple(vec![Value::List(vec![]), Value::Dict(vec![])]));
    drop(node.send_from_outside(0, CallId(0), cast_to(actor, method), payload.into()));
    true
}

/// Of a message to a method, with plain data.
fn plain(method: impl Into<String>) -> Head {
    Head { codec: Codec::Data, ..Head::new(method) }
}

/// Of a message to what handles streams, with plain data.
fn message(step: &str) -> Head {
    Head { form: Form::Message, ..plain(step) }
}

fn cast_to(actor: ActorId, method: impl Into<String>) -> Envelope {
    Envelope { to: Address::Actor(actor), kind: Kind::Cast, head: plain(method), buffers: None }
}

/// What opens a stream, and for whom: it is closed when that gateway ends.
fn with_client(payload: &[u8], gateway: Pid) -> Result<Bytes, String> {
    let Pid { at, serial } = gateway;
    let numbers = [i128::from(at.node), i128::from(at.started), i128::from(serial)];
    let gateway = Value::Tuple(numbers.map(Value::Int).into());
    Ok(value::encode(&Value::Tuple(vec![value::decode(payload)?, gateway])).into())
}
