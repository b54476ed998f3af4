//! One supervisor's life, as a machine over its children; it knows nothing of processes, mail or nesting.
//!
//! The model is OTP's `supervisor.erl`: a sequential process that starts or stops one child at a time, and in whose
//! inbox deaths, retries and requests wait meanwhile. A restart whose start fails goes back through that inbox
//! (`try_again_restart`), so that other requests are heard, and is counted again.
//!
//! Calling order: [`Machine::begin`] once; then the `child_*` and request methods as things happen; after each, drain
//! [`Machine::poll_command`]. Every [`Command::Start`] is answered by exactly one of [`Machine::child_started`],
//! [`Machine::child_ignored`] or [`Machine::child_ended`]; every [`Command::Stop`] by [`Machine::child_ended`].

use std::collections::VecDeque;
use std::time::Duration;

use rebeam_protocol::exit::ExitReason;
use rebeam_protocol::spec::{AutoShutdown, Restart, Strategy, SupervisorSpec};

use crate::intensity::RestartWindow;
use crate::strategy;

/// A child, by its place in the supervisor's static list. Stable while the supervisor exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChildKey(pub usize);

/// What a child is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChildState {
    /// Not running, and not about to.
    Stopped,
    /// Its `init` runs.
    Starting,
    /// It serves.
    Running,
    /// It was asked to stop.
    Stopping,
    /// It has ended; the supervisor has not got to it yet.
    Ended(ExitReason),
    /// It is to be started again.
    Restarting,
}

/// What the supervisor wants done, or lets know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Start the child.
    Start(ChildKey),
    /// Stop the child by its shutdown setting.
    Stop {
        /// Which.
        child: ChildKey,
        /// For good, or to be started again: decides whether waiting mail is handled first.
        purpose: Purpose,
    },
    /// What follows from an end that nobody ordered.
    Verdict {
        /// Who ended.
        child: ChildKey,
        /// Why.
        reason: ExitReason,
        /// What now.
        verdict: Verdict,
    },
    /// The child will not come back by itself.
    Settled(ChildKey),
    /// Every child of the initial list is up.
    Up,
    /// The initial start failed; what was up is stopped again.
    Failed {
        /// The child that did not start.
        child: ChildKey,
        /// Why not.
        reason: ExitReason,
    },
    /// The supervisor has ended; all children are down.
    Ended(ExitReason),
    /// A request is done.
    Answer {
        /// Which.
        request: u64,
        /// How it went.
        result: Result<(), RequestError>,
    },
}

/// What a stop is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// It is not started again: mail that came before is handled first.
    Final,
    /// It is started again right after: its mail waits for the next incarnation.
    Restart,
}

/// What a supervisor decided about an end that nobody ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is started again.
    Restarts,
    /// It stays down.
    StaysDown,
    /// The restart limit is used up: the supervisor ends.
    GivesUp,
}

/// Why a request was not carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RequestError {
    /// The child's start failed.
    StartFailed(ExitReason),
    /// The supervisor is ending.
    Ending,
}

/// What may be asked about one child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Stop it and keep its spec (SUP-072).
    Terminate,
    /// Stop it if it runs, then start it.
    Cycle,
}

#[derive(Debug)]
struct Child {
    restart: Restart,
    significant: bool,
    state: ChildState,
}

#[derive(Debug)]
enum Phase {
    New,
    Starting { queue: VecDeque<usize> },
    Running,
    Restarting { stops: VecDeque<usize>, starts: VecDeque<usize> },
    Serving { request: u64, verb: Verb, child: usize },
    Ending { stops: VecDeque<usize>, end: Command },
    Ended,
}

#[derive(Debug)]
enum Item {
    Ended(usize),
    TryAgain(usize),
    Request { request: u64, verb: Verb, child: usize },
}

/// The machine of one supervisor.
#[derive(Debug)]
pub struct Machine {
    strategy: Strategy,
    auto_shutdown: AutoShutdown,
    window: RestartWindow,
    children: Vec<Child>,
    phase: Phase,
    inbox: VecDeque<Item>,
    commands: VecDeque<Command>,
}

impl Machine {
    /// A supervisor that has not begun.
    pub fn new(spec: &SupervisorSpec) -> Self {
        let child = |spec: &rebeam_protocol::spec::ChildSpec| Child {
            restart: spec.restart,
            significant: spec.significant,
            state: ChildState::Stopped,
        };
        Machine {
            strategy: spec.strategy,
            auto_shutdown: spec.auto_shutdown,
            window: RestartWindow::new(spec.max_restarts, Duration::from_millis(spec.max_ms)),
            children: spec.children.iter().map(child).collect(),
            phase: Phase::New,
            inbox: VecDeque::new(),
            commands: VecDeque::new(),
        }
    }

    /// Starts the children, one after another (SUP-010).
    pub fn begin(&mut self, now: Duration) {
        self.phase = Phase::Starting { queue: (0..self.children.len()).collect() };
        self.advance(now);
    }

    /// A child's `init` has returned.
    pub fn child_started(&mut self, child: ChildKey, now: Duration) {
        if self.children[child.0].state == ChildState::Starting {
            self.children[child.0].state = ChildState::Running;
            self.advance(now);
        }
    }

    /// A child's `init` asked to be passed over (SUP-013).
    pub fn child_ignored(&mut self, child: ChildKey, now: Duration) {
        self.children[child.0].state = ChildState::Stopped;
        self.commands.push_back(Command::Settled(child));
        self.advance(now);
    }

    /// A child has ended: by itself, because it was told to, or before it was up.
    pub fn child_ended(&mut self, child: ChildKey, reason: ExitReason, now: Duration) {
        let state = &mut self.children[child.0].state;
        match state {
            ChildState::Starting => self.start_failed(child, reason, now),
            ChildState::Stopping => {
                *state = ChildState::Stopped;
                self.advance(now);
            }
            ChildState::Running => {
                *state = ChildState::Ended(reason);
                self.inbox.push_back(Item::Ended(child.0));
                self.advance(now);
            }
            ChildState::Stopped | ChildState::Ended(_) | ChildState::Restarting => {}
        }
    }

    /// Ends the supervisor with `reason`, children first and in reverse order (SUP-050).
    pub fn stop(&mut self, reason: ExitReason, now: Duration) {
        if !matches!(self.phase, Phase::Ending { .. } | Phase::Ended) {
            self.end(Command::Ended(reason), now);
        }
    }

    /// Asks for something about one child. Answered by [`Command::Answer`], in turn (SUP-079).
    pub fn request(&mut self, request: u64, verb: Verb, child: ChildKey, now: Duration) {
        self.inbox.push_back(Item::Request { request, verb, child: child.0 });
        self.advance(now);
    }

    /// What is to be done next, in order.
    pub fn poll_command(&mut self) -> Option<Command> {
        self.commands.pop_front()
    }

    /// What a child is doing.
    pub fn child_state(&self, child: ChildKey) -> &ChildState {
        &self.children[child.0].state
    }

    /// A word for what the supervisor itself is doing.
    pub fn state_word(&self) -> &'static str {
        match self.phase {
            Phase::New | Phase::Starting { .. } => "starting",
            Phase::Running | Phase::Restarting { .. } | Phase::Serving { .. } => "running",
            Phase::Ending { .. } => "stopping",
            Phase::Ended => "stopped",
        }
    }

    /// Whether nothing is under way: no start, stop or unhandled death.
    pub fn is_settled(&self) -> bool {
        matches!(self.phase, Phase::Running | Phase::Ended) && self.inbox.is_empty()
    }

    fn start_failed(&mut self, child: ChildKey, reason: ExitReason, now: Duration) {
        let failed = &mut self.children[child.0];
        match &self.phase {
            Phase::Starting { .. } => {
                failed.state = ChildState::Stopped;
                self.end(Command::Failed { child, reason }, now);
            }
            Phase::Serving { request, .. } => {
                failed.state = ChildState::Stopped;
                let result = Err(RequestError::StartFailed(reason));
                self.commands.push_back(Command::Answer { request: *request, result });
                self.commands.push_back(Command::Settled(child));
                self.phase = Phase::Running;
                self.advance(now);
            }
            Phase::Restarting { .. } => {
                failed.state = ChildState::Restarting;
                self.commands.push_back(Command::Verdict { child, reason, verdict: Verdict::Restarts });
                self.inbox.push_back(Item::TryAgain(child.0));
                self.phase = Phase::Running;
                self.advance(now);
            }
            Phase::New | Phase::Running | Phase::Ending { .. } | Phase::Ended => {
                failed.state = ChildState::Stopped;
                self.advance(now);
            }
        }
    }

    /// Goes on with what is under way until something has to be waited for.
    fn advance(&mut self, now: Duration) {
        loop {
            let waits = match &mut self.phase {
                Phase::New | Phase::Ended => true,
                Phase::Starting { .. } => self.advance_starting(),
                Phase::Running => self.take_from_inbox(now),
                Phase::Restarting { .. } => self.advance_restarting(),
                Phase::Serving { .. } => self.advance_serving(),
                Phase::Ending { .. } => self.advance_ending(),
            };
            if waits {
                return;
            }
        }
    }

    fn advance_starting(&mut self) -> bool {
        if self.is_waiting_for_child() {
            return true;
        }
        let Phase::Starting { queue } = &mut self.phase else { return true };
        match queue.pop_front() {
            Some(child) => self.start(child),
            None => {
                self.phase = Phase::Running;
                self.commands.push_back(Command::Up);
            }
        }
        false
    }

    fn advance_restarting(&mut self) -> bool {
        if self.is_waiting_for_child() {
            return true;
        }
        let Phase::Restarting { stops, starts } = &mut self.phase else { return true };
        if let Some(child) = stops.pop_front() {
            // A temporary child taken down by its group does not come back (supervisor.erl, terminate_children).
            let stays_down = self.children[child].restart == Restart::Temporary;
            if stays_down {
                starts.retain(|&other| other != child);
            }
            let purpose = if stays_down { Purpose::Final } else { Purpose::Restart };
            self.stop_child(child, purpose);
            if stays_down {
                self.commands.push_back(Command::Settled(ChildKey(child)));
            }
        } else if let Some(child) = starts.pop_front() {
            if self.children[child].restart != Restart::Temporary {
                self.start(child);
            }
        } else {
            self.phase = Phase::Running;
        }
        false
    }

    fn advance_serving(&mut self) -> bool {
        if self.is_waiting_for_child() {
            return true;
        }
        let Phase::Serving { request, verb, child } = self.phase else { return true };
        match (&self.children[child].state, verb) {
            (ChildState::Stopped, Verb::Cycle) => {
                self.start(child);
                return false;
            }
            (ChildState::Stopped, Verb::Terminate) => self.commands.push_back(Command::Settled(ChildKey(child))),
            _ => {}
        }
        self.commands.push_back(Command::Answer { request, result: Ok(()) });
        self.phase = Phase::Running;
        false
    }

    fn advance_ending(&mut self) -> bool {
        // A child that is still starting is told to stop rather than waited for: a stop always ends in time.
        if self.children.iter().any(|child| child.state == ChildState::Stopping) {
            return true;
        }
        let Phase::Ending { stops, .. } = &mut self.phase else { return true };
        if let Some(child) = stops.pop_front() {
            self.stop_child(child, Purpose::Final);
            return false;
        }
        if let Phase::Ending { end, .. } = std::mem::replace(&mut self.phase, Phase::Ended) {
            for item in self.inbox.drain(..) {
                if let Item::Request { request, .. } = item {
                    self.commands.push_back(Command::Answer { request, result: Err(RequestError::Ending) });
                }
            }
            self.commands.push_back(end);
        }
        true
    }

    /// Takes one item; true if there was none.
    fn take_from_inbox(&mut self, now: Duration) -> bool {
        let Some(item) = self.inbox.pop_front() else { return true };
        match item {
            Item::Ended(child) => {
                if let ChildState::Ended(reason) = &self.children[child].state {
                    let reason = reason.clone();
                    self.handle_end(child, reason, now);
                }
            }
            Item::TryAgain(child) => {
                if self.children[child].state == ChildState::Restarting {
                    self.restart(child, None, now);
                }
            }
            Item::Request { request, verb, child } => {
                let purpose = if verb == Verb::Cycle { Purpose::Restart } else { Purpose::Final };
                self.stop_child(child, purpose);
                self.phase = Phase::Serving { request, verb, child };
            }
        }
        false
    }

    fn handle_end(&mut self, child: usize, reason: ExitReason, now: Duration) {
        let key = ChildKey(child);
        let stays_down = match self.children[child].restart {
            Restart::Permanent => false,
            Restart::Transient => reason.is_clean(),
            Restart::Temporary => true,
        };
        if !stays_down {
            return self.restart(child, Some(reason), now);
        }
        self.children[child].state = ChildState::Stopped;
        self.commands.push_back(Command::Verdict { child: key, reason, verdict: Verdict::StaysDown });
        self.commands.push_back(Command::Settled(key));
        if self.children[child].significant && self.significant_end_is_last() {
            self.end(Command::Ended(ExitReason::SHUTDOWN), now);
        }
    }

    fn significant_end_is_last(&self) -> bool {
        match self.auto_shutdown {
            AutoShutdown::Never => false,
            AutoShutdown::AnySignificant => true,
            AutoShutdown::AllSignificant => {
                let alive = |child: &Child| child.significant && child.state != ChildState::Stopped;
                !self.children.iter().any(alive)
            }
        }
    }

    /// Counts a restart, and carries it out or gives up (SUP-040, SUP-044). A retry has had its verdict.
    fn restart(&mut self, child: usize, reason: Option<ExitReason>, now: Duration) {
        let allowed = self.window.add(now);
        let verdict = if allowed { Verdict::Restarts } else { Verdict::GivesUp };
        if let Some(reason) = reason {
            self.commands.push_back(Command::Verdict { child: ChildKey(child), reason, verdict });
        }
        if !allowed {
            self.children[child].state = ChildState::Stopped;
            return self.end(Command::Ended(ExitReason::SHUTDOWN), now);
        }
        self.children[child].state = ChildState::Restarting;
        let plan = strategy::plan(self.strategy, self.children.len(), child);
        self.phase = Phase::Restarting { stops: plan.stop.into(), starts: plan.start.into() };
    }

    fn end(&mut self, end: Command, now: Duration) {
        if let Phase::Serving { request, .. } = self.phase {
            self.commands.push_back(Command::Answer { request, result: Err(RequestError::Ending) });
        }
        self.phase = Phase::Ending { stops: (0..self.children.len()).rev().collect(), end };
        self.advance(now);
    }

    fn start(&mut self, child: usize) {
        self.children[child].state = ChildState::Starting;
        self.commands.push_back(Command::Start(ChildKey(child)));
    }

    /// Stops a child if it is alive; a death that waits in the inbox is used up (SUP-056).
    fn stop_child(&mut self, child: usize, purpose: Purpose) {
        let state = &mut self.children[child].state;
        match state {
            ChildState::Running | ChildState::Starting => {
                *state = ChildState::Stopping;
                self.commands.push_back(Command::Stop { child: ChildKey(child), purpose });
            }
            ChildState::Ended(_) => {
                let verdict = if purpose == Purpose::Restart { Verdict::Restarts } else { Verdict::StaysDown };
                if let ChildState::Ended(reason) = std::mem::replace(state, ChildState::Stopped) {
                    self.commands.push_back(Command::Verdict { child: ChildKey(child), reason, verdict });
                }
            }
            ChildState::Restarting => *state = ChildState::Stopped,
            ChildState::Stopped | ChildState::Stopping => {}
        }
    }

    fn is_waiting_for_child(&self) -> bool {
        self.children.iter().any(|child| matches!(child.state, ChildState::Starting | ChildState::Stopping))
    }
}
