//! Processes that could not be made: which starts are tried again, and when.
//!
//! A start that fails for want of a resource is nobody's crash. Whoever asked for a first start is told at once; an actor
//! that is to come back is tried again, after longer and longer pauses, and counts as starting meanwhile.

use std::time::Duration;

use rebeam_protocol::exit::ExitReason;
use rebeam_protocol::id::{ActorId, Generation, ProcessId};

use super::Core;
use crate::event::{Action, Death, Launch, LaunchError, Status};
use crate::incarnation::{Command, Limit, Machine, Postponed};
use crate::timers::Due;

/// The first pause before another try, and the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

impl Core {
    pub(super) fn launch_failed(&mut self, process: ProcessId, error: LaunchError) {
        match error.again {
            Some(launch) if self.comes_back(process) => self.postpone_launch(*launch, error.text),
            _ => self.never_launched(process, Some(ExitReason::NotStarted(error.text).bounded())),
        }
    }

    /// Whether an actor has been up before, nobody has ordered its end meanwhile, and nobody waits who could go on.
    fn comes_back(&self, process: ProcessId) -> bool {
        let Some(actor) = self.members.serving(process) else { return false };
        let has_been_up = actor.starts > 1 || process.generation != Generation(0);
        let may_wait = |it: &Machine| !it.is_ordered() && !it.is_being_killed() && !it.has_kept();
        has_been_up && actor.incarnation().is_some_and(|it| may_wait(&it.machine))
    }

    fn postpone_launch(&mut self, launch: Launch, error: String) {
        let process = launch.process;
        let Some(id) = self.members.serving(process).map(|actor| actor.id) else { return };
        let Some(incarnation) = self.members.incarnation_mut(id) else { return };
        let pause = (FIRST_PAUSE * 2u32.pow(incarnation.failed_launches.min(16))).min(LONGEST_PAUSE);
        incarnation.failed_launches += 1;
        let is_first = incarnation.failed_launches == 1;
        let label = launch.label.clone();
        // The time for `init` has not begun.
        let limit = incarnation.limit.take();
        self.timers.cancel(limit);
        let timer = self.timers.set(self.now + pause, Due::Launch(process));
        if let Some(incarnation) = self.members.incarnation_mut(id) {
            incarnation.postponed = Some(Postponed { launch: Box::new(launch), timer });
        }
        if is_first {
            self.actions.push_back(Action::NotLaunched { label, error, after: pause });
        }
    }

    /// A pause before another try is over.
    pub(super) fn launch_again(&mut self, process: ProcessId) {
        let Some(id) = self.members.serving(process).map(|actor| actor.id) else { return };
        let Some(postponed) = self.members.incarnation_mut(id).and_then(|it| it.postponed.take()) else { return };
        self.actions.push_back(Action::Launch(*postponed.launch));
        self.obey(id, vec![Command::Limit(Limit::Start)]);
    }

    /// An order came for a process that is not made yet: there is nobody to carry it out, and the incarnation is over.
    pub(super) fn end_unlaunched(&mut self, id: ActorId, order: &Command) -> bool {
        let reason = match order {
            Command::Stop { reason, .. } => Some(reason.clone()),
            Command::Exit | Command::Kill => None,
            Command::Recycle | Command::Move | Command::Limit(_) | Command::Seal | Command::Pump => return false,
        };
        self.is_unlaunched(id, reason)
    }

    /// A process that is not made yet was to carry out a stop.
    pub(super) fn end_unlaunched_if_ordered(&mut self, id: ActorId) {
        let reason = self.members.incarnation_mut(id).and_then(|it| it.machine.stop_to_come().cloned());
        if reason.is_some() {
            self.is_unlaunched(id, reason);
        }
    }

    /// The incarnation is over, if its process is not made yet. What follows is done when the event at hand is.
    fn is_unlaunched(&mut self, id: ActorId, reason: Option<ExitReason>) -> bool {
        let Some(incarnation) = self.members.incarnation_mut(id) else { return false };
        let Some(postponed) = incarnation.postponed.take() else { return false };
        let process = incarnation.process();
        self.timers.cancel(Some(postponed.timer));
        self.unlaunched.push_back((process, reason));
        true
    }

    /// Tells of those who are over without a process.
    pub(super) fn bury_unlaunched(&mut self) {
        while let Some((process, reason)) = self.unlaunched.pop_front() {
            self.never_launched(process, reason);
        }
    }

    fn never_launched(&mut self, process: ProcessId, reason: Option<ExitReason>) {
        if let Some(reason) = reason {
            self.reported(process, reason, None);
        }
        self.died(Death::without_trace(process, Status::Signalled(9)));
    }
}
