//! Hangs and limits: which actor counts as hung, which one has to go on in a new process.
//!
//! Nobody is asked whether it is alive: a busy actor is not a dead one (MAP-07). The core has the status page of an
//! actor read when a limit may have passed, and only while the actor has mail.

use std::time::Duration;

use rebeam_protocol::exit::ExitReason;
use rebeam_protocol::id::{ActorId, ProcessId};
use rebeam_protocol::page::{Snapshot, Stage as MarkStage};

use super::Core;
use crate::actor::Actor;
use crate::event::Action;
use crate::incarnation::Machine;
use crate::timers::{Due, TimerKey};

/// How long an actor may leave mail untaken while it has nothing in hand.
const TAKES_NO_MAIL: Duration = Duration::from_secs(30);

/// When an actor that seems to be hung is looked at once more.
const SECOND_LOOK: Duration = Duration::from_millis(100);

/// How long a process that was judged hung has for writing its stacks.
const DUMP_TIME: Duration = Duration::from_millis(300);

/// If a look comes later than this, it was we who slept (a frozen container, a closed lid): hang limits start anew.
const PAUSE: Duration = Duration::from_secs(2);

impl Core {
    /// Mail was handed over: a look is due when a limit may have passed.
    pub(super) fn watch(&mut self, id: ActorId) {
        let now = self.now;
        let Some(actor) = self.members.actor_mut(id) else { return };
        let limits = &actor.spec.limits;
        let deadline = limits.deadlines.iter().map(|(_, limit)| *limit).chain(limits.deadline_ms).min();
        let wait = deadline.map_or(TAKES_NO_MAIL, |limit| Duration::from_millis(limit).min(TAKES_NO_MAIL));
        let Some(incarnation) = actor.incarnation_mut() else { return };
        if incarnation.look.is_none() {
            incarnation.look = Some(self.timers.set(now + wait, Due::Look(incarnation.process())));
        }
    }

    pub(super) fn look(&mut self, process: ProcessId, due: Duration) {
        let is_late = self.now.saturating_sub(due) > PAUSE;
        let Some(id) = self.members.serving(process).map(|actor| actor.id) else { return };
        let Some(incarnation) = self.members.incarnation_mut(id) else { return };
        incarnation.look = None;
        if is_late {
            incarnation.got_on = self.now;
            return self.watch(id);
        }
        self.actions.push_back(Action::Look(process));
    }

    /// What a look found.
    pub(super) fn looked(&mut self, process: ProcessId, page: &Snapshot, clock_ns: u64) {
        let Some(id) = self.members.serving(process).map(|actor| actor.id) else { return };
        let now = self.now;
        let Some(actor) = self.members.actor(id) else { return };
        // Whoever is asked for its state, and has nothing in hand, is to give it: as if a message waited.
        let is_asked = actor.incarnation().is_some_and(|incarnation| incarnation.machine.is_handing_over());
        let mut next = TAKES_NO_MAIL;
        let mut is_hung = false;
        let mut done = None;
        for (seq, message) in actor.mailbox.handed() {
            match page.stage(seq.0) {
                MarkStage::Begun => {
                    let Some(limit) = actor.spec.limits.deadline_of(&message.head.method) else { continue };
                    let limit = Duration::from_millis(limit);
                    let age = Duration::from_nanos(clock_ns.saturating_sub(page.since_ns(seq.0)));
                    is_hung |= age >= limit;
                    next = next.min(limit.saturating_sub(age) + Duration::from_millis(1));
                }
                MarkStage::Waiting => {}
                MarkStage::Done => done = done.max(Some(*seq)),
            }
        }
        if is_hung {
            return self.judge_hung(process);
        }
        let has_mail = actor.mailbox.handed().next().is_some() || is_asked;
        let Some(incarnation) = self.members.incarnation_mut(id) else { return };
        // It has finished one since it was last looked at, though it has not said so yet.
        if done > incarnation.seen_done {
            incarnation.seen_done = done;
            incarnation.got_on = now;
        }
        let Some(actor) = self.members.actor(id) else { return };
        if let Some(silent) = silence(actor, page, now) {
            let since = now.saturating_sub(silent);
            let Some(incarnation) = self.members.incarnation_mut(id) else { return };
            if silent < TAKES_NO_MAIL {
                next = next.min(TAKES_NO_MAIL - silent);
            } else if incarnation.suspected == Some(since) {
                return self.judge_hung(process);
            } else {
                // What it has just said may be under way: it is looked at once more.
                incarnation.suspected = Some(since);
                next = next.min(SECOND_LOOK);
            }
        }
        if has_mail {
            let timer = self.timers.set(now + next, Due::Look(process));
            if let Some(incarnation) = self.members.incarnation_mut(id) {
                incarnation.look = Some(timer);
            }
        }
    }

    fn judge_hung(&mut self, process: ProcessId) {
        self.kill_after_stacks(process, Due::Hung(process));
    }

    /// Has a process write down where it is, before it is killed.
    pub(super) fn kill_after_stacks(&mut self, process: ProcessId, due: Due) -> TimerKey {
        self.actions.push_back(Action::DumpStacks(process));
        self.timers.set(self.now + DUMP_TIME, due)
    }

    /// An actor has handled a message: it may have handled as many as its process may.
    pub(super) fn count_handled(&mut self, id: ActorId, by: u64) {
        self.count_on_probation(id, by);
        let Some(actor) = self.members.actor_mut(id) else { return };
        let Some(most) = actor.spec.limits.max_messages else { return };
        let Some(incarnation) = actor.incarnation_mut() else { return };
        incarnation.handled += by;
        if incarnation.handled >= most {
            let process = incarnation.process();
            self.recycle(process);
        }
    }

    pub(super) fn over_memory(&mut self, process: ProcessId, used_kib: u64) {
        let Some(id) = self.members.serving(process).map(|actor| actor.id) else { return };
        let Some(actor) = self.members.actor(id) else { return };
        let limits = &actor.spec.limits;
        match (limits.memory_hard_kib, limits.memory_soft_kib) {
            (Some(hard), _) if used_kib >= hard => {
                let reason = ExitReason::MemoryLimit(used_kib, hard);
                self.kill_for(process, reason, "it used more memory than it may");
            }
            (_, Some(soft)) if used_kib >= soft => self.recycle(process),
            _ => {}
        }
    }

    /// Has an actor go on in a new process, between two messages, unseen by others.
    pub(super) fn recycle(&mut self, process: ProcessId) {
        if let Some(incarnation) = self.members.serving_mut(process).and_then(Actor::incarnation_mut)
            && incarnation.is_suspended
        {
            // Its next process would not be.
            incarnation.recycles_later = true;
            return;
        }
        self.order(process, Machine::recycle);
        self.got_on(process);
        if let Some(id) = self.members.serving(process).map(|actor| actor.id) {
            self.watch(id);
        }
    }

    /// A process has got on: what it leaves untaken, it leaves from now on.
    pub(super) fn got_on(&mut self, process: ProcessId) {
        let now = self.now;
        if let Some(incarnation) = self.members.serving_mut(process).and_then(Actor::incarnation_mut) {
            incarnation.got_on = now;
        }
    }
}

/// For how long an actor has left mail untaken, or an order to hand over, with nothing in hand; `None` if it does not.
pub(super) fn silence(actor: &Actor, page: &Snapshot, now: Duration) -> Option<Duration> {
    let incarnation = actor.incarnation()?;
    // One that is told to stop does not take it any more.
    if page.lets_mail_wait() || !(incarnation.machine.takes_mail() || incarnation.machine.is_handing_over()) {
        return None;
    }
    let mut is_waiting = incarnation.machine.is_handing_over();
    for (seq, _) in actor.mailbox.handed() {
        match page.stage(seq.0) {
            MarkStage::Begun => return None,
            MarkStage::Waiting => is_waiting = true,
            MarkStage::Done => {}
        }
    }
    is_waiting.then(|| now.saturating_sub(incarnation.got_on))
}
