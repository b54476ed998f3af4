//! The life of one incarnation, as a machine: which order is carried out when, and what an end means.
//!
//! It is told what was ordered ([`Machine::stop`], [`Machine::exit`], [`Machine::kill`], [`Machine::recycle`],
//! [`Machine::move_on`], [`Machine::start_over`]) and what its process has done ([`Machine::started`], [`Machine::handed_over`], [`Machine::reported`], [`Machine::died`]), and
//! gives the commands that follow, in order. Whatever the life, no order is lost: it is carried out at once, or noted
//! for the moment when it can be, or it is overtaken by a stronger one (a stop by an exit signal, anything by a kill).
//! A life that has to end in time carries a [`Limit`]; when it is over, [`Machine::time_is_over`] says what happens.
//!
//! It must not know mail, links or supervisors, nor what time it is. A table of every life and every order stands in
//! the tests below; the diagram is in `LIFECYCLE.md`.

use rebeam_protocol::exit::ExitReason;
use rebeam_protocol::id::{Generation, ProcessId};
use rebeam_protocol::state::MemberState;

use crate::event::{State, Status};

/// What the process is doing, and what was ordered.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Life {
    /// `init` runs, or `restore` of a process that takes over; `then` says what follows it.
    Starting { then: After },
    /// `init` asked to be passed over: the process ends by itself.
    Ignoring,
    /// It handles mail.
    Serving,
    /// It was asked for its state, for a new process. In a move, this process waits until the new one is up.
    HandingOver { then: After, state: Option<State>, moves: bool },
    /// It was told to stop, and starts over in a new process.
    StartingOver,
    /// It handles the mail that came before the order to stop.
    Draining { reason: ExitReason },
    /// It was told to stop. `urgent`: before the mail that it has been handed.
    Stopping { reason: ExitReason, urgent: bool },
    /// It was sent an exit signal and has to unwind, within this limit.
    Exiting { reason: ExitReason, limit: Limit },
    /// It was sent SIGKILL.
    Killed(Kill),
}

/// What the next process of an incarnation does when it is up.
#[derive(Clone, Debug, PartialEq, Eq)]
enum After {
    Serve,
    /// Handle the mail that came before the order to stop, then stop.
    Drain(Ordered),
    /// Stop.
    Stop(Ordered),
}

/// A stop that the next process carries out.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Ordered {
    reason: ExitReason,
    /// Whether its shutdown time runs, over both processes.
    is_limited: bool,
}

impl Ordered {
    /// This order after an earlier one: an order of its supervisor gives the reason, a second request does not.
    fn after(self, earlier: &After) -> Self {
        match earlier {
            After::Drain(first) | After::Stop(first) if !self.is_limited => first.clone(),
            _ => self,
        }
    }
}

impl After {
    /// Whether a limit runs that the next process must not replace.
    fn is_limited(&self) -> bool {
        matches!(self, After::Drain(Ordered { is_limited: true, .. }) | After::Stop(Ordered { is_limited: true, .. }))
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Kill {
    reason: ExitReason,
    why: &'static str,
    /// The exit signal that it was unwinding from.
    exit: Option<ExitReason>,
    /// Whether its end had been ordered before.
    was_ordered: bool,
    /// Whether its process was about to end by itself, which may have been faster than the kill.
    was_handing_over: bool,
}

impl Kill {
    /// Whether it is why the process has ended like that.
    fn is_cause_of(&self, status: Status) -> bool {
        status == Status::Signalled(9) || (self.was_handing_over && status == Status::Exited(0))
    }
}

/// What is to be done about the process, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// Tell it to stop.
    Stop {
        /// The reason to end with.
        reason: ExitReason,
        /// Before the mail that it has been handed.
        urgent: bool,
    },
    /// Tell it of an exit signal.
    Exit,
    /// SIGKILL.
    Kill,
    /// Ask for its state; the process ends then.
    Recycle,
    /// Ask for its state; the process waits then.
    Move,
    /// From now on it has so much time; replaces the limit before.
    Limit(Limit),
    /// Mail that comes from now on is not for this incarnation.
    Seal,
    /// It may be handed mail.
    Pump,
}

/// How long a life may last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Limit {
    /// As long as it likes.
    None,
    /// The time for `init`.
    Start,
    /// The time to take over a state, where `init` does not run.
    TakeOver,
    /// The time for a stop.
    Shutdown,
    /// The time to unwind after an exit signal.
    Unwind,
}

/// Who orders a stop, and so how it is carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stop {
    /// The reason to end with.
    pub(crate) reason: ExitReason,
    /// Whether what waits is handled first.
    pub(crate) manner: Manner,
    /// Whether it has only its shutdown time: an order of its supervisor, rather than a request.
    pub(crate) is_limited: bool,
}

/// How a stop treats the mail that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Manner {
    /// It is handled first.
    InTurn,
    /// The stop goes before it.
    Urgent,
}

/// What the end of a process means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The incarnation goes on in a new process, with this state; the commands are for that one.
    NextGeneration { state: Option<State>, commands: Vec<Command> },
    /// It has failed to take over: the process before it, which has waited, serves again. The commands are for that one.
    GoesBack { commands: Vec<Command> },
    /// It has failed on probation: a new process goes on with the code and the state before.
    Undone { commands: Vec<Command> },
    /// Its `init` asked to be passed over.
    Ignored,
    /// The incarnation is over.
    Over,
}

/// The life of one incarnation.
#[derive(Debug)]
pub(crate) struct Machine {
    process: ProcessId,
    life: Life,
    /// The process's own last word.
    report: Option<ExitReason>,
    /// The process before this one: it waits until this one has taken over, and serves again if that fails.
    kept: Option<ProcessId>,
    /// Whether a failure leads back to the code and the state before.
    is_on_probation: bool,
    /// How many processes it has had.
    generations: u32,
}

impl Machine {
    /// Of a process that is about to be made. Its first limit is [`Limit::Start`].
    pub(crate) fn new(process: ProcessId) -> Self {
        Machine {
            process,
            life: Life::Starting { then: After::Serve },
            report: None,
            kept: None,
            is_on_probation: false,
            generations: 1,
        }
    }

    /// The process that serves it now.
    pub(crate) fn process(&self) -> ProcessId {
        self.process
    }

    /// Its `init` has returned, and mail may be handed to it; `None` if nobody waits for that any more.
    pub(crate) fn started(&mut self) -> Option<Vec<Command>> {
        let Life::Starting { then } = &self.life else { return None };
        let then = then.clone();
        Some(self.go_on(then))
    }

    /// Its process handles mail, or does what was ordered meanwhile.
    fn go_on(&mut self, then: After) -> Vec<Command> {
        let no_limit = (!then.is_limited()).then_some(Command::Limit(Limit::None));
        let (life, told) = match then {
            After::Serve => (Life::Serving, None),
            After::Drain(Ordered { reason, .. }) => (Life::Draining { reason }, None),
            After::Stop(Ordered { reason, .. }) => (stopping(&reason), Some(Command::Stop { reason, urgent: true })),
        };
        self.life = life;
        no_limit.into_iter().chain(told).collect()
    }

    /// Its `init` asked to be passed over. Only when its process has ended is that done. An incarnation that has been up
    /// ends with it.
    pub(crate) fn ignored(&mut self) {
        if matches!(self.life, Life::Starting { .. }) && self.process.generation == Generation(0) {
            self.life = Life::Ignoring;
        }
    }

    /// It is to stop, and runs `terminate`.
    pub(crate) fn stop(&mut self, order: Stop) -> Vec<Command> {
        let Stop { reason, manner, is_limited } = order;
        let is_first_process = self.process.generation == Generation(0);
        let tell = |reason: &ExitReason| Command::Stop { reason: reason.clone(), urgent: true };
        let (life, told) = match (std::mem::replace(&mut self.life, Life::Serving), manner) {
            (life @ (Life::Exiting { .. } | Life::Killed(_)), _) => {
                self.life = life;
                return Vec::new();
            }
            // It has handled nothing, and does not begin to.
            (Life::Starting { .. }, _) if is_first_process => (stopping(&reason), vec![tell(&reason)]),
            (Life::Ignoring, _) => (stopping(&reason), vec![tell(&reason)]),
            // For others it is running, in one process or the next: no mail that came before is lost.
            (Life::Starting { then }, manner) => {
                let (then, seal) = after(then, manner, Ordered { reason, is_limited });
                (Life::Starting { then }, seal)
            }
            (Life::HandingOver { then, state, moves }, manner) => {
                let (then, seal) = after(then, manner, Ordered { reason, is_limited });
                (Life::HandingOver { then, state, moves }, seal)
            }
            // It was told already.
            (Life::StartingOver, _) => (stopping(&reason), Vec::new()),
            (Life::Serving, Manner::InTurn) => (Life::Draining { reason }, vec![Command::Seal, Command::Pump]),
            // An order of its supervisor gives the reason, a second request does not.
            (Life::Draining { reason: first }, Manner::InTurn) => {
                (Life::Draining { reason: if is_limited { reason } else { first } }, Vec::new())
            }
            (Life::Serving | Life::Draining { .. }, Manner::Urgent) => (stopping(&reason), vec![tell(&reason)]),
            (Life::Stopping { reason: first, urgent: false }, Manner::Urgent) => (stopping(&first), vec![tell(&first)]),
            (life @ Life::Stopping { .. }, _) => (life, Vec::new()),
        };
        self.life = life;
        is_limited.then_some(Command::Limit(Limit::Shutdown)).into_iter().chain(told).collect()
    }

    /// The node has less time to stop: an incarnation that is being stopped gets no more than that, and handles no more mail.
    pub(crate) fn hurry(&mut self) -> Vec<Command> {
        let reason = match &self.life {
            Life::Stopping { .. } | Life::Exiting { limit: Limit::Shutdown, .. } => {
                return vec![Command::Limit(Limit::Shutdown)];
            }
            Life::Draining { reason }
            | Life::Starting { then: After::Drain(Ordered { reason, .. }) | After::Stop(Ordered { reason, .. }) }
            | Life::HandingOver {
                then: After::Drain(Ordered { reason, .. }) | After::Stop(Ordered { reason, .. }),
                ..
            } => reason.clone(),
            _ => return Vec::new(),
        };
        self.stop(Stop { reason, manner: Manner::Urgent, is_limited: true })
    }

    /// It handles no more mail for now: a stop does not wait for what waits.
    pub(crate) fn suspended(&mut self) -> Vec<Command> {
        let Life::Draining { reason } = &self.life else { return Vec::new() };
        let reason = reason.clone();
        self.life = stopping(&reason);
        vec![Command::Stop { reason, urgent: true }]
    }

    /// It is to unwind and end without `terminate`: within its shutdown time if its supervisor orders that, at once if a
    /// signal does.
    pub(crate) fn exit(&mut self, reason: ExitReason, limit: Limit) -> Vec<Command> {
        match &mut self.life {
            // A signal leaves it less time than the order before.
            Life::Exiting { limit: first @ Limit::Shutdown, .. } if limit == Limit::Unwind => {
                *first = limit;
                return vec![Command::Limit(limit)];
            }
            Life::Exiting { .. } | Life::Killed(_) => return Vec::new(),
            _ => {}
        }
        self.life = Life::Exiting { reason, limit };
        vec![Command::Limit(limit), Command::Exit]
    }

    /// It is to be killed, for this reason and, in words, why. The first kill counts.
    pub(crate) fn kill(&mut self, reason: ExitReason, why: &'static str) -> Vec<Command> {
        if matches!(self.life, Life::Killed(_)) {
            return vec![Command::Kill];
        }
        let exit = if let Life::Exiting { reason, .. } = &self.life { Some(reason.clone()) } else { None };
        let was_handing_over = matches!(self.life, Life::HandingOver { .. });
        self.life = Life::Killed(Kill { reason, why, exit, was_ordered: self.is_ordered(), was_handing_over });
        vec![Command::Limit(Limit::None), Command::Kill]
    }

    /// It is to go on in a new process, between two messages. Whoever does not handle mail is asked another time.
    pub(crate) fn recycle(&mut self) -> Vec<Command> {
        if self.life != Life::Serving {
            return Vec::new();
        }
        self.life = Life::HandingOver { then: After::Serve, state: None, moves: false };
        // It has first to finish what it has in hand, which may take as long as that does.
        vec![Command::Recycle]
    }

    /// It is to go on in a new process with other code, between two messages. This process waits meanwhile.
    pub(crate) fn move_on(&mut self) -> Vec<Command> {
        if self.life != Life::Serving {
            return Vec::new();
        }
        self.life = Life::HandingOver { then: After::Serve, state: None, moves: true };
        vec![Command::Move]
    }

    /// It is to stop, and to start over in a new process. It is asked to stop, or sent an exit signal.
    pub(crate) fn start_over(&mut self, is_asked: bool) -> Vec<Command> {
        if self.life != Life::Serving {
            return Vec::new();
        }
        self.life = Life::StartingOver;
        let order = Command::Stop { reason: ExitReason::SHUTDOWN, urgent: true };
        vec![Command::Limit(Limit::Shutdown), if is_asked { order } else { Command::Exit }]
    }

    /// Its process has handed its state over, and ends: that may take as long as a stop.
    pub(crate) fn handed_over(&mut self, handed: State) -> Vec<Command> {
        let Life::HandingOver { state, then, moves: false } = &mut self.life else { return Vec::new() };
        *state = Some(handed);
        if then.is_limited() { Vec::new() } else { vec![Command::Limit(Limit::Shutdown)] }
    }

    /// Its process has handed over its state, and waits. The commands are for the next process, which has this limit to
    /// take over. `None` if the process was not asked to move.
    pub(crate) fn gave_state(&mut self, limit: Limit) -> Option<Vec<Command>> {
        let Life::HandingOver { then, state: None, moves: true } = &self.life else { return None };
        let then = then.clone();
        self.kept = Some(self.process);
        self.is_on_probation = true;
        Some(self.next_process(then, limit))
    }

    /// Its process cannot hand over its state, and serves again. `None` if it was not asked to.
    pub(crate) fn cannot_move(&mut self) -> Option<Vec<Command>> {
        let Life::HandingOver { then, state: None, moves: true } = &self.life else { return None };
        let then = then.clone();
        Some(self.go_on(then))
    }

    fn next_process(&mut self, then: After, limit: Limit) -> Vec<Command> {
        // A stop that has its time goes on with what is left of that.
        let limit = (!then.is_limited()).then_some(Command::Limit(limit));
        self.life = Life::Starting { then };
        self.report = None;
        self.process.generation = Generation(self.generations);
        self.generations += 1;
        limit.into_iter().collect()
    }

    /// Takes the process that waits for this one.
    pub(crate) fn take_kept(&mut self) -> Option<ProcessId> {
        self.kept.take()
    }

    /// Whether a process waits for this one.
    pub(crate) fn has_kept(&self) -> bool {
        self.kept.is_some()
    }

    /// A process has ended; whether it was the one that waits.
    pub(crate) fn kept_died(&mut self, process: ProcessId) -> bool {
        self.kept.take_if(|kept| *kept == process).is_some()
    }

    /// Begins or ends the probation.
    pub(crate) fn set_on_probation(&mut self, is_on_probation: bool) {
        self.is_on_probation = is_on_probation;
    }

    /// Its process has said its last word: what it still has to do may take as long as a stop.
    pub(crate) fn reported(&mut self, reason: ExitReason) -> Vec<Command> {
        self.report.get_or_insert(reason);
        match &self.life {
            Life::Starting { then } | Life::HandingOver { then, .. } if then.is_limited() => Vec::new(),
            Life::Starting { .. } | Life::HandingOver { .. } | Life::Ignoring | Life::Serving => {
                vec![Command::Limit(Limit::Shutdown)]
            }
            _ => Vec::new(),
        }
    }

    /// The mail that came before an order to stop was handed over.
    pub(crate) fn drained(&mut self) -> Vec<Command> {
        let Life::Draining { reason } = &self.life else { return Vec::new() };
        let reason = reason.clone();
        self.life = Life::Stopping { reason: reason.clone(), urgent: false };
        vec![Command::Stop { reason, urgent: false }]
    }

    /// Whether it is its `init` that takes the time that it has.
    pub(crate) fn is_in_init(&self) -> bool {
        matches!(self.life, Life::Starting { then: After::Serve }) && self.report.is_none()
    }

    /// Its limit has passed.
    pub(crate) fn time_is_over(&mut self) -> Vec<Command> {
        let has_reported = self.report.is_some();
        let (reason, why) = match &self.life {
            Life::Killed(_) => return Vec::new(),
            Life::Exiting { reason, limit: Limit::Unwind } => {
                (reason.clone(), "it did not unwind in time after an exit signal")
            }
            Life::Starting { then: After::Serve } | Life::Ignoring if !has_reported => {
                (ExitReason::StartTimeout, "its `init` took longer than `start_timeout`")
            }
            // Its exit hooks hang. What it is to go on with is here.
            Life::HandingOver { then, state: Some(_), .. } if !then.is_limited() => return vec![Command::Kill],
            Life::StartingOver => return vec![Command::Kill],
            _ => (ExitReason::Killed, "its time to stop was over"),
        };
        self.kill(reason, why)
    }

    /// Its process is gone.
    pub(crate) fn died(&mut self, status: Status) -> End {
        let is_failure = !self.is_ordered() && !self.exit_reason(status).is_clean();
        match self.life.clone() {
            Life::HandingOver { then, state: Some(state), .. } => {
                let commands = self.next_process(then, Limit::Start);
                End::NextGeneration { state: Some(state), commands }
            }
            // An actor that has ended by itself at the same time does not start over.
            Life::StartingOver if self.report != Some(ExitReason::Normal) => {
                self.is_on_probation = true;
                let commands = self.next_process(After::Serve, Limit::Start);
                End::NextGeneration { state: None, commands }
            }
            Life::Starting { then } if self.kept.is_some() => self.go_back(then),
            Life::Killed(_) if self.kept.is_some() && is_failure => self.go_back(After::Serve),
            Life::Starting { then } if self.is_on_probation => self.undo(then),
            Life::Serving | Life::HandingOver { .. } | Life::Killed(_) if self.is_on_probation && is_failure => {
                self.undo(After::Serve)
            }
            Life::Ignoring => End::Ignored,
            _ => End::Over,
        }
    }

    fn go_back(&mut self, then: After) -> End {
        self.report = None;
        self.is_on_probation = false;
        if let Some(kept) = self.kept.take() {
            self.process = kept;
        }
        End::GoesBack { commands: self.go_on(then) }
    }

    fn undo(&mut self, then: After) -> End {
        self.is_on_probation = false;
        End::Undone { commands: self.next_process(then, Limit::Start) }
    }

    /// Why it has ended: the first that applies of MAP-02.
    pub(crate) fn exit_reason(&self, status: Status) -> ExitReason {
        let (kill, exit) = match &self.life {
            Life::Killed(kill) => (Some(kill), kill.exit.as_ref()),
            Life::Exiting { reason, .. } => (None, Some(reason)),
            _ => (None, None),
        };
        match (&self.report, kill, exit, status) {
            (Some(report), ..) => report.clone(),
            (None, Some(kill), _, status) if kill.is_cause_of(status) => kill.reason.clone(),
            (None, _, Some(reason), _) => reason.clone(),
            (None, _, None, Status::Signalled(number)) => ExitReason::Signal(number),
            (None, _, None, Status::Exited(code)) => ExitReason::ExitCode(code),
        }
    }

    /// Whether its end was asked for, rather than caused by what it did.
    pub(crate) fn is_ordered(&self) -> bool {
        match &self.life {
            Life::Draining { .. }
            | Life::Stopping { .. }
            | Life::Exiting { .. }
            | Life::Starting { then: After::Drain(_) | After::Stop(_) }
            | Life::HandingOver { then: After::Drain(_) | After::Stop(_), .. } => true,
            Life::Killed(kill) => kill.was_ordered || kill.reason == ExitReason::Killed,
            Life::Starting { then: After::Serve }
            | Life::HandingOver { then: After::Serve, .. }
            | Life::StartingOver
            | Life::Ignoring
            | Life::Serving => false,
        }
    }

    /// Why we killed it, in words, if that is why its process has ended like that.
    pub(crate) fn killed_because(&self, status: Status) -> Option<&'static str> {
        match &self.life {
            Life::Killed(kill) if kill.is_cause_of(status) => Some(kill.why),
            _ => None,
        }
    }

    /// Whether its process said itself why it ends.
    pub(crate) fn has_reported(&self) -> bool {
        self.report.is_some()
    }

    /// The reason of a stop that its next process is to carry out.
    pub(crate) fn stop_to_come(&self) -> Option<&ExitReason> {
        match &self.life {
            Life::Starting { then: After::Drain(ordered) | After::Stop(ordered) } => Some(&ordered.reason),
            _ => None,
        }
    }

    /// Whether its process handles mail, or has to end what it has in hand, and does better to know until when.
    pub(crate) fn can_be_told_to_hurry(&self) -> bool {
        matches!(self.life, Life::Draining { .. } | Life::Stopping { .. }) && self.report.is_none()
    }

    /// Whether mail may be handed to it.
    pub(crate) fn takes_mail(&self) -> bool {
        matches!(self.life, Life::Serving | Life::Draining { .. })
    }

    /// Whether its process does not hear what is asked of it yet.
    pub(crate) fn is_starting(&self) -> bool {
        matches!(self.life, Life::Starting { .. } | Life::Ignoring)
    }

    /// Whether it is between two processes, or about to be: what is asked of its process waits for the next one.
    pub(crate) fn is_between_processes(&self) -> bool {
        match self.life {
            Life::HandingOver { .. } | Life::StartingOver => true,
            Life::Starting { .. } => self.process.generation != Generation(0),
            _ => false,
        }
    }

    /// Whether it was asked for its state and has not given it.
    pub(crate) fn is_handing_over(&self) -> bool {
        matches!(self.life, Life::HandingOver { state: None, .. })
    }

    /// Whether it is up, and was not told to end.
    pub(crate) fn is_up(&self) -> bool {
        matches!(self.life, Life::Serving | Life::StartingOver | Life::HandingOver { then: After::Serve, .. })
    }

    /// Whether it handles mail, and nothing was ordered: it may be asked to go on in a new process.
    pub(crate) fn is_serving(&self) -> bool {
        self.life == Life::Serving
    }

    /// Whether it is about to end, whatever it does.
    pub(crate) fn is_ending(&self) -> bool {
        matches!(self.life, Life::Exiting { .. } | Life::Killed(_))
    }

    /// Whether it was killed, and is only not known to be dead yet.
    pub(crate) fn is_being_killed(&self) -> bool {
        matches!(self.life, Life::Killed(_))
    }

    /// How others see it.
    pub(crate) fn state(&self) -> MemberState {
        match &self.life {
            _ if self.is_ordered() => MemberState::Stopping,
            Life::HandingOver { moves: true, .. } | Life::StartingOver => MemberState::Reloading,
            Life::Starting { .. } if self.kept.is_some() => MemberState::Reloading,
            Life::Starting { .. } | Life::Ignoring => MemberState::Starting,
            Life::HandingOver { .. } => MemberState::Recycling,
            Life::Killed(_) => MemberState::Stopping,
            _ => MemberState::Running,
        }
    }
}

/// What the next process does when a stop is ordered: one that goes before mail is not taken back.
fn after(then: After, manner: Manner, order: Ordered) -> (After, Vec<Command>) {
    let order = order.after(&then);
    match (then, manner) {
        (After::Stop(_), _) | (_, Manner::Urgent) => (After::Stop(order), Vec::new()),
        (_, Manner::InTurn) => (After::Drain(order), vec![Command::Seal]),
    }
}

fn stopping(reason: &ExitReason) -> Life {
    Life::Stopping { reason: reason.clone(), urgent: true }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rebeam_protocol::id::{NodeStart, Pid};

    /// What may be told to a machine.
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Order {
        Started,
        Ignored,
        Stop(Manner),
        /// A stop without a limit.
        Request(Manner),
        Hurry,
        Exit,
        /// The stop of one that is not asked.
        StopByExit,
        Kill,
        Recycle,
        HandedOver,
        Move,
        GaveState,
        CannotMove,
        StartOver,
        Reported,
        Drained,
        TimeIsOver,
        Died,
    }

    const ORDERS: [Order; 20] = [
        Order::Started,
        Order::Ignored,
        Order::Stop(Manner::InTurn),
        Order::Stop(Manner::Urgent),
        Order::Request(Manner::InTurn),
        Order::Request(Manner::Urgent),
        Order::Hurry,
        Order::Exit,
        Order::StopByExit,
        Order::Kill,
        Order::Recycle,
        Order::HandedOver,
        Order::Move,
        Order::GaveState,
        Order::CannotMove,
        Order::StartOver,
        Order::Reported,
        Order::Drained,
        Order::TimeIsOver,
        Order::Died,
    ];

    fn machine(life: Life, generation: u32) -> Machine {
        let pid = Pid { at: NodeStart::default(), serial: 1 };
        let process = ProcessId { pid, generation: Generation(generation) };
        Machine { life, ..Machine::new(process) }
    }

    fn shutdown() -> ExitReason {
        ExitReason::SHUTDOWN
    }

    fn first() -> ExitReason {
        ExitReason::Other("first".into())
    }

    fn ordered(is_limited: bool) -> Ordered {
        Ordered { reason: first(), is_limited }
    }

    fn tell(machine: &mut Machine, order: Order) -> Vec<Command> {
        match order {
            Order::Started => machine.started().unwrap_or_default(),
            Order::Ignored => {
                machine.ignored();
                Vec::new()
            }
            Order::Stop(manner) => machine.stop(Stop { reason: shutdown(), manner, is_limited: true }),
            Order::Request(manner) => machine.stop(Stop { reason: shutdown(), manner, is_limited: false }),
            Order::Hurry => machine.hurry(),
            Order::Exit => machine.exit(ExitReason::Other("signal".into()), Limit::Unwind),
            Order::StopByExit => machine.exit(shutdown(), Limit::Shutdown),
            Order::Kill => machine.kill(ExitReason::Killed, "test"),
            Order::Recycle => machine.recycle(),
            Order::HandedOver => machine.handed_over(State::new(())),
            Order::Reported => machine.reported(shutdown()),
            Order::Drained => machine.drained(),
            Order::TimeIsOver => machine.time_is_over(),
            Order::Move => machine.move_on(),
            Order::StartOver => machine.start_over(true),
            Order::GaveState => machine.gave_state(Limit::TakeOver).unwrap_or_default(),
            Order::CannotMove => machine.cannot_move().unwrap_or_default(),
            Order::Died => match machine.died(Status::Signalled(9)) {
                End::NextGeneration { commands, .. } | End::GoesBack { commands } | End::Undone { commands } => {
                    commands
                }
                End::Ignored | End::Over => Vec::new(),
            },
        }
    }

    fn show(life: &Life) -> String {
        let ordered = |order: &Ordered| format!("{}{}", order.reason, if order.is_limited { "" } else { " unlimited" });
        let after = |then: &After| match then {
            After::Serve => "serve".to_owned(),
            After::Drain(order) => format!("drain:{}", ordered(order)),
            After::Stop(order) => format!("stop:{}", ordered(order)),
        };
        match life {
            Life::Starting { then } => format!("starting({})", after(then)),
            Life::Ignoring => "ignoring".into(),
            Life::Serving => "serving".into(),
            Life::HandingOver { then, state, moves } => {
                let word = if *moves { "moving" } else { "handing over" };
                format!("{word}({}{})", after(then), if state.is_some() { ", done" } else { "" })
            }
            Life::StartingOver => "starting over".into(),
            Life::Draining { reason } => format!("draining({reason})"),
            Life::Stopping { reason, urgent } => format!("stopping({reason}{})", if *urgent { ", urgent" } else { "" }),
            Life::Exiting { reason, limit } => format!("exiting({reason}, {})", format!("{limit:?}").to_lowercase()),
            Life::Killed(kill) => format!("killed({})", kill.reason),
        }
    }

    fn show_commands(commands: &[Command]) -> String {
        let word = |command: &Command| match command {
            Command::Stop { reason, urgent } => format!("stop:{reason}{}", if *urgent { "!" } else { "" }),
            Command::Limit(limit) => format!("limit {limit:?}").to_lowercase(),
            other => format!("{other:?}").to_lowercase(),
        };
        commands.iter().map(word).collect::<Vec<_>>().join(", ")
    }

    /// Every life with every order: what does not stand in the table changes nothing and commands nothing.
    #[test]
    fn every_order_in_every_life() {
        let handing =
            |then, state: bool| Life::HandingOver { then, state: state.then(|| State::new(())), moves: false };
        let moving = |then| Life::HandingOver { then, state: None, moves: true };
        let killed =
            Kill { reason: ExitReason::Killed, why: "test", exit: None, was_ordered: false, was_handing_over: false };
        let lives = [
            (Life::Starting { then: After::Serve }, 0),
            (Life::Starting { then: After::Serve }, 1),
            (Life::Starting { then: After::Drain(ordered(true)) }, 1),
            (Life::Starting { then: After::Drain(ordered(false)) }, 1),
            (Life::Starting { then: After::Stop(ordered(true)) }, 1),
            (Life::Ignoring, 0),
            (Life::Serving, 0),
            (handing(After::Serve, false), 0),
            (handing(After::Serve, true), 0),
            (handing(After::Drain(ordered(true)), true), 0),
            (handing(After::Drain(ordered(false)), true), 0),
            (handing(After::Stop(ordered(true)), true), 0),
            (moving(After::Serve), 0),
            (moving(After::Drain(ordered(true))), 0),
            (moving(After::Stop(ordered(false))), 0),
            (Life::StartingOver, 0),
            (Life::Draining { reason: first() }, 0),
            (Life::Stopping { reason: first(), urgent: false }, 0),
            (Life::Stopping { reason: first(), urgent: true }, 0),
            (Life::Exiting { reason: first(), limit: Limit::Unwind }, 0),
            (Life::Exiting { reason: first(), limit: Limit::Shutdown }, 0),
            (Life::Killed(killed), 0),
        ];
        let mut table = String::new();
        for (life, generation) in lives {
            let name = format!("{}{}", show(&life), if generation > 0 { " again" } else { "" });
            for order in ORDERS {
                let mut machine = machine(life.clone(), generation);
                let commands = tell(&mut machine, order);
                let is_same = machine.life == life && machine.process.generation == Generation(generation);
                if is_same && commands.is_empty() {
                    continue;
                }
                let after = if is_same { "=".to_owned() } else { show(&machine.life) };
                table += &format!("{name} | {order:?} | {after} | {}\n", show_commands(&commands));
            }
        }
        let expected = include_str!("table.txt");
        assert!(table == expected, "the table is now:\n{table}");
    }

    /// A process that does what it is told: gives what it says in answer to a command.
    fn answer(command: &Command) -> Vec<Order> {
        match command {
            Command::Stop { .. } | Command::Exit => vec![Order::Reported, Order::Died],
            Command::Kill => vec![Order::Died],
            Command::Recycle => vec![Order::HandedOver, Order::Died],
            Command::Move => vec![Order::GaveState],
            Command::Pump => vec![Order::Drained],
            Command::Limit(_) | Command::Seal => Vec::new(),
        }
    }

    proptest! {
        /// Whatever is ordered in whatever order, with a process that answers sooner or later: an order to end leads to
        /// an end, a stop that is limited always has a limit until then, and nothing but an order ends the incarnation.
        #[test]
        fn no_order_is_lost(orders in proptest::collection::vec((0usize..12, any::<bool>()), 1..40)) {
            let given = [
                Order::Stop(Manner::InTurn), Order::Stop(Manner::Urgent), Order::Exit, Order::Kill,
                Order::Recycle, Order::Hurry, Order::Started, Order::Request(Manner::InTurn), Order::Request(Manner::Urgent),
                Order::StopByExit, Order::Move, Order::StartOver,
            ];
            let mut machine = machine(Life::Starting { then: After::Serve }, 0);
            let mut owed: std::collections::VecDeque<Order> = [Order::Started].into();
            let (mut is_to_end, mut is_limited) = (false, false);
            let mut has_limit = true;
            let mut is_over = false;
            let mut step = |machine: &mut Machine, order: Order, owed: &mut std::collections::VecDeque<Order>| {
                let commands = if order == Order::Died {
                    match machine.died(Status::Signalled(9)) {
                        End::GoesBack { commands } => {
                            owed.clear();
                            owed.push_back(Order::Drained);
                            commands
                        }
                        End::NextGeneration { commands, .. } | End::Undone { commands } => {
                            // What the last process still had to say is never heard; the new one comes up.
                            owed.clear();
                            owed.push_back(Order::Started);
                            commands
                        }
                        End::Ignored | End::Over => { is_over = true; Vec::new() }
                    }
                } else {
                    tell(machine, order)
                };
                if order == Order::Started {
                    owed.push_back(Order::Drained);
                    machine.take_kept();
                }
                if order == Order::GaveState {
                    owed.push_back(Order::Started);
                }
                for command in &commands {
                    if let Command::Limit(limit) = command {
                        has_limit = *limit != Limit::None;
                    }
                    owed.extend(answer(command));
                }
                (is_over, has_limit)
            };
            let mut last = (false, true);
            for (order, answers) in orders {
                let order = given[order];
                // A process says only once that it has started.
                if order == Order::Started { continue; }
                is_limited |= matches!(order, Order::Stop(_) | Order::Exit | Order::StopByExit | Order::Kill);
                is_to_end |= is_limited || matches!(order, Order::Request(_));
                is_limited |= order == Order::Hurry && is_to_end;
                last = step(&mut machine, order, &mut owed);
                if answers && let Some(next) = owed.pop_front() {
                    last = step(&mut machine, next, &mut owed);
                }
                if last.0 { break; }
                if is_limited && !machine.is_being_killed() {
                    prop_assert!(last.1, "a stop without a limit: {}", show(&machine.life));
                }
                if matches!(machine.life, Life::Starting { .. } | Life::HandingOver { state: Some(_), .. }) {
                    prop_assert!(last.1, "nothing ends this life: {}", show(&machine.life));
                }
            }
            while !last.0 && let Some(next) = owed.pop_front() {
                last = step(&mut machine, next, &mut owed);
            }
            prop_assert_eq!(last.0, is_to_end, "left: {}", show(&machine.life));
        }
    }
}
