//! What the core does for a message, over and over, to be counted by `benches/instructions.py`: `hot_path cast 1000`.

#![expect(clippy::unwrap_used, reason = "a program that stops if its script is broken")]

use std::time::Duration;

use bytes::Bytes;
use rebeam_core::{Action, Core, Event};
use rebeam_protocol::address::{Address, ReplyTo};
use rebeam_protocol::id::{CallId, NodeStart, ProcessId, Seq};
use rebeam_protocol::message::{Codec, Head, Kind, Outcome, Waits};
use rebeam_protocol::spec::{ActorSpec, ChildSpec, SupervisorSpec};
use rebeam_protocol::worker::{Envelope, Reply, Started};

fn main() {
    let kind = std::env::args().nth(1).unwrap();
    let count: u64 = std::env::args().nth(2).unwrap().parse().unwrap();
    let mut node = Node::up();
    for number in 1..=count {
        if kind == "cast" { node.cast() } else { node.call(number) }
    }
}

/// A core with a sender and a receiver that do what is expected of them.
struct Node {
    core: Core,
    processes: Vec<ProcessId>,
    delivered: Option<(Seq, Option<ReplyTo>)>,
}

impl Node {
    fn up() -> Self {
        let spec = SupervisorSpec::new("root", vec![actor("sender"), actor("receiver")]);
        let core = Core::new(spec, NodeStart::default()).unwrap();
        let mut node = Node { core, processes: Vec::new(), delivered: None };
        node.tell(Event::Boot);
        node
    }

    fn tell(&mut self, event: Event) {
        self.core.handle_event(Duration::ZERO, event);
        while let Some(action) = self.core.poll_action() {
            match action {
                Action::Launch(launch) => {
                    let process = launch.process;
                    self.processes.push(process);
                    let started = Event::Started { process, started: Started::Ready, info: Bytes::new() };
                    self.core.handle_event(Duration::ZERO, started);
                }
                Action::Deliver { delivery, .. } => self.delivered = Some((delivery.seq, delivery.reply_to)),
                _ => {}
            }
        }
    }

    fn send(&mut self, kind: Kind) {
        let to = Address::Name("receiver".into());
        let envelope = Envelope { to, kind, head: Head::new("note"), buffers: None };
        let payload = Bytes::from_static(b"a small message, pickled");
        self.tell(Event::Sent { process: self.processes[0], envelope, payload, buffers: None });
    }

    fn cast(&mut self) {
        self.send(Kind::Cast);
        let (seq, _) = self.delivered.take().unwrap();
        self.tell(Event::Acked { process: self.processes[1], done: vec![seq.into()] });
    }

    fn call(&mut self, number: u64) {
        let waits = Waits::Actor { message: None, is_deferred: false };
        self.send(Kind::Call { call: CallId(number), waits });
        let (seq, to) = self.delivered.take().unwrap();
        let reply = Reply {
            to: to.unwrap(),
            outcome: Outcome::Returned(Codec::Pickle),
            done: Some(seq.into()),
            is_last: false,
            buffers: None,
        };
        let payload = Bytes::from_static(b"a small answer");
        self.tell(Event::Replied { process: self.processes[1], reply, payload, buffers: None });
    }
}

fn actor(name: &str) -> ChildSpec {
    ChildSpec::actor(name, ActorSpec { start_ms: None, ..ActorSpec::new("app.A") })
}
