//! How much one actor may hold of the node, and what becomes of one that holds more.
//!
//! A worker is not trusted: whatever it asks for is kept here, and none of it is to grow without a bound. The bounds are
//! far beyond what an application needs; who breaks one has a leak, and ends with that as its reason. Mailboxes have bounds
//! of their own, and so has what waits to be written to a worker, which the shell keeps.

use rebeam_protocol::address::Caller;
use rebeam_protocol::exit::ExitReason;
use rebeam_protocol::id::ProcessId;

use super::Core;
use crate::actor::Actor;

/// How many of each: timers that are not due, links and monitors, watches, calls and requests that are not answered.
pub(super) const MOST_OF_EACH: usize = 100_000;

/// Bytes of the content of all timers of one actor that are not due.
const MOST_TIMER_BYTES: usize = 64 * 1024 * 1024;

/// How often an actor may send to a mailbox after it was told that that is full: many times what can be under way then.
const MOST_AFTER_SHUT: u32 = 4096;

/// How many timers fire in one turn of the loop, so that others have their turn between.
pub(super) const MOST_TIMERS_PER_TURN: usize = 1000;

impl Core {
    /// Whether an actor may hold more of whatever it asks for; else it ends.
    pub(super) fn may_hold_more(&mut self, process: ProcessId) -> bool {
        let pid = process.pid;
        let timers = self.alarms.held(pid);
        let counts = [
            (timers.count, "timers"),
            (self.links.count(pid), "links and monitors"),
            (self.registries.watches_of(pid).len(), "watches"),
            (self.router.count(Caller::Actor(pid)) + self.waiters.count(pid), "calls without an answer"),
            (
                self.members.serving(process).and_then(Actor::incarnation).map_or(0, |it| it.made.most()),
                "things in `init`",
            ),
        ];
        let what = match counts.into_iter().find(|(count, _)| *count >= MOST_OF_EACH) {
            Some((_, what)) => format!("{MOST_OF_EACH} {what}"),
            None if timers.bytes > MOST_TIMER_BYTES => format!("{} MiB in timers", MOST_TIMER_BYTES >> 20),
            None => return true,
        };
        self.holds_too_much(process, what);
        false
    }

    /// Notes that an actor has sent to a mailbox that it was told is full, so often by now.
    pub(super) fn sent_though_full(&mut self, process: ProcessId, times: u32) {
        if times > MOST_AFTER_SHUT {
            self.holds_too_much(process, format!("{MOST_AFTER_SHUT} messages to a mailbox that it knew was full"));
        }
    }

    /// A worker does not read what is written to it.
    pub(super) fn reads_nothing(&mut self, process: ProcessId, bytes: u64) {
        self.holds_too_much(process, format!("{} MiB of answers that it does not read", bytes >> 20));
    }

    /// Ends an actor that has more than it may.
    pub(super) fn holds_too_much(&mut self, process: ProcessId, what: String) {
        self.kill_for(process, ExitReason::LimitExceeded(what), "it held more than one actor may");
    }
}
