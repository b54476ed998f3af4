//! The engine with workers that are no processes: the tests hold their ends of the sockets, and say what they would.
//!
//! No task of the event loop runs meanwhile: what a socket has is read when a test says so, so that the order of events
//! is the test's own.

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rebeam_core::event::Status;
use rebeam_protocol::address::{Address, ReplyTo};
use rebeam_protocol::certificate::Killer;
use rebeam_protocol::exit::ExitReason;
use rebeam_protocol::frame::MAX_FRAME;
use rebeam_protocol::handshake::{Hello, MAGIC, Secret, VERSION};
use rebeam_protocol::id::NodeStart;
use rebeam_protocol::message::{Codec, Head, Kind, Outcome, Waits};
use rebeam_protocol::outside::{Answer, TreeRequest};
use rebeam_protocol::spec::{ActorSpec, ChildSpec, SupervisorSpec};
use rebeam_protocol::worker::{Delivery, Envelope, Reply, Started};
use rebeam_protocol::zygote::{Fork, Source};
use rebeam_sys::frames::{FrameReader, FrameWriter, Read};
use rebeam_sys::memory::create_empty;
use rebeam_sys::socket;
use tokio::sync::oneshot::Receiver;
use tokio::task::LocalSet;

use super::worker::Writing;
use super::*;
use crate::shell::reaper::Reaped;
use crate::shell::versions::{Code, Versions};
use crate::shell::{keeper, zygote};

/// Above what the kernel gives out: no process has such an id, and no signal to it arrives.
const NO_PROCESS: i32 = 1 << 30;

thread_local! {
    /// Their ends of the workers that were started and not taken yet. Each test has a thread of its own.
    static BORN: RefCell<VecDeque<TheirEnds>> = const { RefCell::new(VecDeque::new()) };
    static STARTED: RefCell<i32> = const { RefCell::new(0) };
    static FAILS: RefCell<Option<i32>> = const { RefCell::new(None) };
}

fn spawn(theirs: TheirEnds, _: &Setup, _: &ProcessOptions, _: Inherited<'_>) -> io::Result<i32> {
    if let Some(code) = FAILS.take() {
        return Err(io::Error::from_raw_os_error(code));
    }
    BORN.with_borrow_mut(|born| born.push_back(theirs));
    STARTED.with_borrow_mut(|started| {
        *started += 1;
        Ok(NO_PROCESS + *started)
    })
}

/// Runs a test where tasks and descriptors can be registered.
fn test(body: impl FnOnce()) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    LocalSet::new().block_on(&runtime, async { body() });
}

/// A node with a tree of these actors.
fn node(actors: &[&str]) -> Node {
    let children = actors.iter().map(|name| ChildSpec::actor(*name, ActorSpec::new("app.Actor"))).collect();
    let core = Core::new(SupervisorSpec::new("root", children), NodeStart::default()).expect("a tree");
    let python = Python { executable: "python".into(), embed: None, app: None, batch: None, mark: None };
    let setup = Setup {
        python,
        directory: ".".into(),
        node_dir: ".".into(),
        target: Target {
            source: Source::Module("app".into()),
            attribute: None,
            preload: Vec::new(),
            fork: Fork::Auto,
            programs: Vec::new(),
        },
        target_text: "app:tree".into(),
        max_frame: MAX_FRAME,
        secret: Secret::default(),
        log_level: None,
        longest_wait: Duration::from_secs(60),
        strangers: Arc::new(Strangers::now()),
    };
    let (printer, _) = Printer::json(Some("/dev/null".as_ref())).expect("a printer");
    let services = Services { keeper: keeper::service(), base: None };
    let code = Code {
        memory: create_empty(c"code").expect("memory"),
        zygote: zygote::service(),
        modules: Vec::new(),
        missing: Vec::new(),
        declaration: 0,
    };
    let memory = (Ledger::new().expect("memory"), Versions::new(code));
    let node = Node::new(core, setup, printer, services, memory, Instant::now());
    node.0.borrow_mut().spawn = spawn;
    node.handle(Event::Boot);
    node
}

/// A worker that is a socket.
struct Puppet {
    node: Node,
    channel: OwnedFd,
    reader: FrameReader,
    os_pid: i32,
    process: ProcessId,
}

impl Puppet {
    /// The worker that was started last and is not taken yet.
    fn born(node: &Node) -> Self {
        let theirs = BORN.with_borrow_mut(VecDeque::pop_front).expect("a worker was started");
        socket::set_nonblocking(&theirs.channel).expect("a socket");
        let os_pid = NO_PROCESS + STARTED.with_borrow(|started| *started - BORN.with_borrow(VecDeque::len) as i32);
        let process = node.0.borrow().by_os_pid[&os_pid];
        Puppet { node: node.clone(), channel: theirs.channel, reader: FrameReader::new(MAX_FRAME), os_pid, process }
    }

    /// One that has shaken hands and run its `init`.
    fn up(node: &Node) -> Self {
        let mut puppet = Puppet::born(node);
        assert!(matches!(puppet.next(), Some((ToWorker::Welcome(_), _))));
        puppet.say(&ToSupervisor::Hello(Hello { magic: MAGIC, version: VERSION, os_pid: puppet.os_pid as u32 }), b"");
        puppet.say(&ToSupervisor::Started(Started::Ready), b"");
        puppet.is_heard();
        puppet
    }

    /// Writes a frame, which is not read yet.
    fn say(&self, message: &ToSupervisor, payload: &[u8]) {
        let full = |_: std::os::fd::BorrowedFd<'_>| Err(io::Error::other("no room"));
        FrameWriter::new(MAX_FRAME).write(self.channel.as_fd(), message, payload, &[], full).expect("written");
    }

    /// Has the engine read what was written.
    fn is_heard(&self) {
        while self.node.with(|engine| engine.read_worker(self.process, MOST_ACTIONS)) == (Read::Some { is_all: false })
        {
        }
    }

    /// The next frame that the engine has written.
    fn next(&mut self) -> Option<(ToWorker, Bytes)> {
        loop {
            if let Some(frame) = self.reader.next_frame().expect("frames") {
                return Some(frame);
            }
            if !matches!(self.reader.read(&self.channel), Read::Some { .. }) {
                return None;
            }
        }
    }

    fn next_delivery(&mut self) -> Option<(Delivery, Bytes)> {
        while let Some((message, payload)) = self.next() {
            if let ToWorker::Deliver(delivery) = message {
                return Some((delivery, payload));
            }
        }
        None
    }

    /// Has it die, unread frames and all.
    fn dies(self, status: Status) {
        self.node.with(|engine| {
            engine.by_os_pid.remove(&self.os_pid);
            let reaped = Reaped { status, cpu_ms: 1, peak_kib: 2 };
            engine.worker_died(self.process, self.os_pid, &reaped, false);
        });
    }
}

/// Calls an actor from outside.
fn call(node: &Node, name: &str, payload: &[u8]) -> Receiver<(Outcome, Bytes)> {
    let (actor, _) = node.actor_named(name).expect("an actor");
    let call = node.next_call();
    let kind = Kind::Call { call, waits: Waits::Nobody };
    let head = Head { codec: Codec::Data, ..Head::new("method") };
    let envelope = Envelope { to: Address::Actor(actor), kind, head, buffers: None };
    node.send_from_outside(7, call, envelope, Bytes::copy_from_slice(payload))
}

fn answer(to: ReplyTo, delivery: &Delivery) -> ToSupervisor {
    let outcome = Outcome::Returned(Codec::Data);
    ToSupervisor::Reply(Reply { to, outcome, done: Some(delivery.seq.into()), is_last: false, buffers: None })
}

/// The certificate of an actor's last death.
fn certificate(node: &Node, name: &str) -> Arc<Certificate> {
    match node.ask(TreeRequest::Why { name: name.into() }).try_recv() {
        Ok(Answer::Why(deaths)) => deaths.last().expect("a death").0.clone(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_worker_is_started_called_and_answers() {
    test(|| {
        let node = node(&["a"]);
        let mut worker = Puppet::up(&node);
        assert_eq!(node.health().state, NodeState::Up);
        let mut reply = call(&node, "a", b"question");
        let (delivery, payload) = worker.next_delivery().expect("the call");
        assert_eq!((&payload[..], &delivery.head.method[..]), (&b"question"[..], "method"));
        worker.say(&answer(delivery.reply_to.expect("a call"), &delivery), b"answer");
        assert!(reply.try_recv().is_err(), "nobody has read it yet");
        worker.is_heard();
        assert_eq!(reply.try_recv().expect("an answer"), (Outcome::Returned(Codec::Data), Bytes::from("answer")));
    });
}

#[test]
fn map_03_what_a_dead_worker_had_written_counts() {
    test(|| {
        let node = node(&["a"]);
        let mut worker = Puppet::up(&node);
        let mut reply = call(&node, "a", b"");
        let (delivery, _) = worker.next_delivery().expect("the call");
        worker.say(&answer(delivery.reply_to.expect("a call"), &delivery), b"answer");
        worker.dies(Status::Signalled(libc::SIGKILL));
        assert_eq!(reply.try_recv().expect("an answer").1, "answer");
        assert_eq!(certificate(&node, "a").in_hand.len(), 0);
        Puppet::up(&node);
        assert_eq!(node.health().state, NodeState::Up);
    });
}

#[test]
fn what_was_in_hand_is_said_and_the_next_one_goes_on() {
    test(|| {
        let node = node(&["a"]);
        let mut worker = Puppet::up(&node);
        let (mut first, mut second) = (call(&node, "a", b"1"), call(&node, "a", b"2"));
        let (delivery, _) = worker.next_delivery().expect("a call");
        worker.say(&answer(delivery.reply_to.expect("a call"), &delivery), b"one");
        worker.dies(Status::Exited(3));
        assert_eq!(first.try_recv().expect("an answer").1, "one");
        assert_eq!(certificate(&node, "a").reason, ExitReason::ExitCode(3));
        let mut next = Puppet::up(&node);
        let (delivery, payload) = next.next_delivery().expect("what was not begun");
        assert_eq!(&payload[..], b"2");
        next.say(&answer(delivery.reply_to.expect("a call"), &delivery), b"two");
        next.is_heard();
        assert_eq!(second.try_recv().expect("an answer").1, "two");
    });
}

#[test]
fn who_does_not_shake_hands_is_killed_for_it() {
    test(|| {
        let node = node(&["a"]);
        let worker = Puppet::born(&node);
        worker.say(&ToSupervisor::Started(Started::Ready), b"");
        worker.is_heard();
        assert!(node.0.borrow().workers[&worker.process].is_killed);
        // Nothing that it says counts any more.
        worker.say(&ToSupervisor::Hello(Hello { magic: MAGIC, version: VERSION, os_pid: 1 }), b"");
        worker.is_heard();
        worker.dies(Status::Signalled(libc::SIGKILL));
        let certificate = certificate(&node, "a");
        assert!(matches!(&certificate.reason, ExitReason::BadProtocol(text) if text.contains("handshake")));
        assert!(matches!(&certificate.killer, Killer::Rebeam(_)));
    });
}

#[test]
fn one_whose_socket_is_full_holds_up_nobody() {
    test(|| {
        let node = node(&["slow", "quick"]);
        let mut slow = Puppet::up(&node);
        let mut quick = Puppet::up(&node);
        let payload = vec![7; 1 << 20];
        let waiting: Vec<_> = (0..4).map(|_| call(&node, "slow", &payload)).collect();
        assert_eq!(node.0.borrow().workers[&slow.process].writing, Writing::Blocked);
        let mut reply = call(&node, "quick", b"");
        let (delivery, _) = quick.next_delivery().expect("the call");
        quick.say(&answer(delivery.reply_to.expect("a call"), &delivery), b"here");
        quick.is_heard();
        assert_eq!(reply.try_recv().expect("an answer").1, "here");
        // It reads at last, and gets all of it.
        for _ in &waiting {
            let (delivery, content) = loop {
                node.0.borrow_mut().write_more(slow.process);
                if let Some(frame) = slow.next_delivery() {
                    break frame;
                }
            };
            assert_eq!(content.len(), payload.len());
            slow.say(&answer(delivery.reply_to.expect("a call"), &delivery), b"");
            slow.is_heard();
        }
        assert!(slow.next_delivery().is_none());
        assert!(waiting.into_iter().all(|mut reply| reply.try_recv().is_ok()));
    });
}

#[test]
fn a_worker_that_cannot_be_made_ends_the_start_with_a_hint() {
    test(|| {
        FAILS.set(Some(libc::EMFILE));
        let node = node(&["a"]);
        let ended = node.0.borrow_mut().life.ended.take();
        let Some(Ended::NotStarted { child, reason, .. }) = ended else { panic!("{ended:?}") };
        assert_eq!(child, "a");
        assert!(reason.to_string().contains("raise `ulimit -n`"), "{reason}");
    });
}

#[test]
fn an_order_to_kill_one_that_is_not_born_yet_is_carried_out_at_its_birth() {
    test(|| {
        let node = node(&["a"]);
        let worker = Puppet::born(&node);
        node.handle(Event::KillAll);
        assert!(node.0.borrow().workers[&worker.process].is_killed);
        worker.dies(Status::Signalled(libc::SIGKILL));
        assert!(node.0.borrow().life.has_ended);
    });
}
