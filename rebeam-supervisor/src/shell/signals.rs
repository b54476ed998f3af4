//! Signals to the supervisor: one drains, two hurry, three kill; Ctrl-Z stops everybody, Ctrl-\ shows what they do.

use std::time::Duration;

use rebeam_core::Event;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::printer::Printer;
use crate::shell::control;
use crate::shell::engine::Node;

/// After the second signal nobody is waited for longer than this.
const HURRY: Duration = Duration::from_secs(1);

/// After the terminal is gone, the whole tree has this long.
const HANGUP: Duration = Duration::from_secs(1);

/// What SIGHUP means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hangup {
    /// The terminal is gone, and with it the node.
    Stop,
    /// The log has been moved away: it is opened anew.
    Reopen,
}

/// The signals that the supervisor answers to, caught from the moment this is made.
pub(crate) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
    quit: Signal,
    suspend: Signal,
    child: Signal,
}

impl Signals {
    pub(crate) fn catch() -> std::io::Result<Self> {
        Ok(Signals {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
            quit: signal(SignalKind::quit())?,
            suspend: signal(SignalKind::from_raw(libc::SIGTSTP))?,
            child: signal(SignalKind::child())?,
        })
    }

    /// Waits for a signal to stop, before there is a tree that could be stopped.
    pub(crate) async fn stop_ordered(&mut self, hangup: Hangup, printer: &Printer) {
        loop {
            tokio::select! {
                _ = self.interrupt.recv() => return,
                _ = self.terminate.recv() => return,
                _ = self.hangup.recv() => match hangup {
                    Hangup::Stop => return,
                    Hangup::Reopen => printer.reopen(),
                },
                _ = self.quit.recv() => printer.say("the application is being imported: there are no actors yet"),
            }
        }
    }

    /// Acts on signals until the node has ended (and this is dropped).
    pub(crate) async fn attend(
        mut self,
        node: Node,
        printer: Printer,
        grace: Duration,
        hangup: Hangup,
        drain: Option<(String, String)>,
    ) {
        let mut orders = 0;
        let mut kills_at: Option<tokio::time::Instant> = None;
        loop {
            let out_of_time = async {
                match kills_at {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                _ = self.child.recv() => {
                    node.reap();
                    continue;
                }
                _ = self.suspend.recv() => {
                    // Ctrl-Z is for all of it: who works on while we sleep would find nobody to talk to.
                    node.signal_all(nix::sys::signal::Signal::SIGSTOP);
                    let _ = nix::sys::signal::raise(nix::sys::signal::Signal::SIGSTOP);
                    node.signal_all(nix::sys::signal::Signal::SIGCONT);
                    continue;
                }
                _ = self.interrupt.recv() => orders += 1,
                _ = self.terminate.recv() => orders += 1,
                () = node.stopping(), if kills_at.is_none() => {
                    // Whoever ordered it, a stop ends in time.
                    kills_at = Some(tokio::time::Instant::now() + grace);
                    continue;
                }
                _ = self.quit.recv() => {
                    tokio::task::spawn_local(print_stacks(node.clone(), printer.clone()));
                    continue;
                }
                _ = self.hangup.recv() => {
                    if hangup == Hangup::Reopen {
                        printer.reopen();
                        continue;
                    }
                    kills_at = Some(tokio::time::Instant::now() + HANGUP);
                    node.handle(Event::Hurry { limit_ms: (HANGUP / 2).as_millis() as u64 });
                    node.handle(Event::StopNode);
                    continue;
                }
                () = out_of_time => {
                    kills_at = None;
                    say_killed(&node, &printer, "the time to stop is over");
                    node.handle(Event::KillAll);
                    continue;
                }
            }
            match orders {
                1 => {
                    printer.say(&format!("stopping, within {} s; once more to hurry", grace.as_secs_f64()));
                    kills_at = Some(tokio::time::Instant::now() + grace);
                    match &drain {
                        Some((actor, method)) if control::cast(&node, actor, method) => {}
                        _ => node.handle(Event::StopNode),
                    }
                }
                2 => {
                    printer.say("hurrying; once more to kill");
                    node.handle(Event::Hurry { limit_ms: HURRY.as_millis() as u64 });
                    node.handle(Event::StopNode);
                }
                _ => {
                    say_killed(&node, &printer, "asked three times");
                    node.handle(Event::KillAll);
                }
            }
        }
    }
}

/// What everybody does right now.
async fn print_stacks(node: Node, printer: Printer) {
    for (label, stacks) in node.stacks(None).await.unwrap_or_default() {
        printer.stacks(&label, stacks.as_deref().map_err(String::as_str));
    }
}

fn say_killed(node: &Node, printer: &Printer, why: &str) {
    let alive = node.alive();
    if !alive.is_empty() {
        printer.warn(&format!("{why}: killed without having ended by themselves: {}", alive.join(", ")));
    }
}
