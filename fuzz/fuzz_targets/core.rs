//! Whatever a worker says, in whatever order: the core decides something, keeps its invariants, and never panics.

#![no_main]

use std::time::Duration;

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use rebeam_core::event::{Death, Status};
use rebeam_core::shell::{self, Heard};
use rebeam_core::{Action, Core, Event};
use rebeam_protocol::address::Caller;
use rebeam_protocol::frame;
use rebeam_protocol::id::{NodeStart, ProcessId};
use rebeam_protocol::spec::{
    ActorSpec, ChildSpec, Limits, MailboxOptions, Overflow, Restart, Shutdown, Strategy, SupervisorSpec,
};
use rebeam_protocol::worker::{Started, ToSupervisor};

fn actor(name: &str, restart: Restart, overflow: Overflow) -> ChildSpec {
    let spec = ActorSpec {
        start_ms: Some(1000),
        mailbox: MailboxOptions { messages: Some(4), bytes: Some(64), overflow, ..MailboxOptions::default() },
        concurrency: 2,
        redelivered: vec![(String::new(), 2)],
        limits: Limits { max_messages: Some(3), deadline_ms: Some(500), ..Limits::default() },
        ..ActorSpec::new("A")
    };
    ChildSpec { restart, shutdown: Shutdown::Timeout(100), ..ChildSpec::actor(name, spec) }
}

fn tree() -> SupervisorSpec {
    let children =
        vec![actor("a", Restart::Permanent, Overflow::Block), actor("b", Restart::Temporary, Overflow::DropOldest)];
    SupervisorSpec {
        name: Some("s".into()),
        strategy: Strategy::OneForAll,
        max_restarts: 1000,
        max_ms: 1000,
        ..SupervisorSpec::new("root", children)
    }
}

/// Processes that start at once and die when they are told to.
struct World {
    core: Core,
    now: Duration,
    processes: Vec<ProcessId>,
}

impl World {
    fn tell(&mut self, event: Event) {
        self.core.handle_event(self.now, event);
        while let Some(action) = self.core.poll_action() {
            match action {
                Action::Launch(launch) => {
                    self.processes.push(launch.process);
                    let started =
                        Event::Started { process: launch.process, started: Started::Ready, info: Bytes::new() };
                    self.core.handle_event(self.now, started);
                }
                Action::Kill(process) | Action::Exit(process) | Action::Stop { process, .. } => self.dies(process),
                Action::Recycle(process) => {
                    let state = Bytes::new();
                    self.core.handle_event(self.now, Event::HandedOver { process, state });
                    self.dies(process);
                }
                _ => {}
            }
        }
        self.core.check_invariants();
    }

    fn dies(&mut self, process: ProcessId) {
        self.processes.retain(|other| *other != process);
        self.core.handle_event(self.now, Event::Died(Box::new(Death::without_trace(process, Status::Signalled(9)))));
    }
}

fuzz_target!(|bytes: &[u8]| {
    let core = Core::new(tree(), NodeStart::default()).expect("a valid tree");
    let mut world = World { core, now: Duration::ZERO, processes: Vec::new() };
    world.tell(Event::Boot);
    // Each piece: who speaks, how long it is, and what is said.
    let mut rest = bytes;
    while let [who, length, tail @ ..] = rest {
        let (said, after) = tail.split_at((*length as usize).min(tail.len()));
        rest = after;
        world.now += Duration::from_millis(u64::from(*who) * 7);
        world.core.handle_timeout(world.now);
        let Some(&process) = world.processes.get(*who as usize % world.processes.len().max(1)) else {
            world.tell(Event::StopNode);
            return;
        };
        let Ok((message, offset)) = frame::decode::<ToSupervisor>(said) else {
            world.tell(Event::Misbehaved { process, complaint: "rubbish".into() });
            continue;
        };
        let payload = Bytes::copy_from_slice(&said[offset..]);
        let no_arenas = |_| Err("there are no arenas".to_owned());
        match shell::hear(process, message, payload, no_arenas) {
            Ok(Heard::Event(event)) => world.tell(event),
            Ok(Heard::Abandon(call)) => {
                world.tell(Event::Abandoned { caller: Caller::Actor(process.pid), call, page: None });
            }
            Ok(Heard::Shell(_)) => {}
            Err(complaint) => world.tell(Event::Misbehaved { process, complaint }),
        }
    }
});
