//! One supervisor's life, as a machine over its children; it knows nothing of processes, mail or nesting.
//!
//! The model is OTP's `supervisor.erl` (and Elixir's `DynamicSupervisor`): a sequential process that starts or stops
//! one child at a time, and in whose inbox deaths, retries and requests wait meanwhile. A restart whose start fails
//! goes back through that inbox (`try_again_restart`), so that other requests are heard, and is counted again.
//!
//! Calling order: [`Machine::begin`] once; then the `child_*` and request methods as things happen; after each, drain
//! [`Machine::poll_command`]. Every [`Command::Start`] is answered by exactly one of [`Machine::child_started`],
//! [`Machine::child_ignored`] or [`Machine::child_ended`]; every [`Command::Stop`] by [`Machine::child_ended`]; every
//! [`Command::Pause`] by [`Machine::pause_over`] with its number.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

use rebeam_protocol::exit::ExitReason;
use rebeam_protocol::id::ActorId;
use rebeam_protocol::spec::{AutoShutdown, OnGiveup, Pauses, Restart, Strategy, SupervisorKind, SupervisorSpec};
use rebeam_protocol::state::MemberState;

use crate::intensity::RestartWindow;
use crate::strategy;

/// What a supervisor has to know about a child. Children are ordered by their [`ActorId`], which counts up: a child
/// that is added later comes later, unless [`Machine::reorder`] says otherwise.
#[derive(Clone, Debug)]
pub struct Traits {
    /// Its id; not looked at under a dynamic supervisor.
    pub id: String,
    /// When it is started again.
    pub restart: Restart,
    /// Whether `auto_shutdown` looks at it.
    pub significant: bool,
    /// Pauses before restarts.
    pub pauses: Pauses,
    /// What happens when it has used up the restart limit.
    pub on_giveup: OnGiveup,
}

/// What a child is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChildState {
    /// Not running, and not about to.
    Stopped,
    /// The same, because it used up the restart limit.
    Parked,
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
    Start(ActorId),
    /// Stop the child by its shutdown setting.
    Stop {
        /// Which.
        child: ActorId,
        /// For good, or to be started again: decides whether waiting mail is handled first.
        purpose: Purpose,
    },
    /// Say when so much time has passed.
    Pause {
        /// Which child waits for its restart.
        child: ActorId,
        /// How long.
        time: Duration,
        /// Which of its pauses: an earlier one that is overtaken by a start means nothing.
        number: u64,
    },
    /// What follows from an end that was told before, while this supervisor had something else to do.
    Verdict {
        /// Who ended.
        child: ActorId,
        /// Why.
        reason: ExitReason,
        /// What now.
        verdict: Verdict,
    },
    /// The child will not come back by itself.
    Settled(ActorId),
    /// The child is no child of this supervisor any more.
    Removed(ActorId),
    /// Every child of the initial list is up.
    Up,
    /// The initial start failed; what was up is stopped again.
    Failed {
        /// The child that did not start.
        child: ActorId,
        /// Why not.
        reason: ExitReason,
    },
    /// The supervisor has ended; all children are down.
    Ended(ExitReason),
    /// A request is done; the children are as the answer has to say.
    Answer {
        /// Which.
        request: u64,
        /// How it went.
        result: Result<Done, RequestError>,
    },
}

/// What a request has led to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Done {
    /// It is done with this child.
    Child(ActorId),
    /// The children as they were at its turn, in start order, with their ids.
    Children(Vec<(ActorId, String, ChildState)>),
}

/// What a stop is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// It is not started again: mail that came before is handled first.
    Final,
    /// It is started again right after: its mail waits for the next incarnation.
    Restart,
}

impl Purpose {
    /// What follows for a child that ends in such a stop.
    fn verdict(self) -> Verdict {
        match self {
            Purpose::Restart => Verdict::Restarts(Duration::ZERO),
            Purpose::Final => Verdict::StaysDown,
        }
    }
}

/// What a supervisor decided about an end that nobody ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is started again, after a pause.
    Restarts(Duration),
    /// It stays down.
    StaysDown,
    /// The restart limit is used up: the supervisor ends.
    GivesUp,
    /// The restart limit is used up: the child stays down until it is started by hand.
    Parks,
}

/// Why a request was not carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RequestError {
    /// There is no such child.
    NotFound,
    /// It runs already.
    Running,
    /// It is between two tries of a restart.
    Restarting,
    /// There is one with that id, and it runs.
    AlreadyStarted(ActorId),
    /// There is one with that id, and it is stopped.
    AlreadyPresent,
    /// There are as many as there may be.
    MaxChildren,
    /// A dynamic supervisor has no stopped children, and knows none by id.
    Unsupported,
    /// This child's start failed.
    StartFailed(ActorId, ExitReason),
    /// The supervisor is ending.
    Ending,
}

/// What may be asked about children.
#[derive(Clone, Debug)]
pub enum Verb {
    /// Start a new child (SUP-070).
    Start(ActorId, Traits),
    /// Stop a child and keep its spec (SUP-072).
    Terminate(ChildRef),
    /// Start a stopped child (SUP-073).
    Restart(ChildRef),
    /// Forget a stopped child (SUP-074).
    Delete(ChildRef),
    /// Stop a child if it runs, then start it.
    Cycle(ChildRef),
    /// Look at all children, or at one, in turn.
    Look(Option<ChildRef>),
}

/// How a request names a child.
#[derive(Clone, Debug)]
pub enum ChildRef {
    /// By id.
    Id(String),
    /// By its number.
    Key(ActorId),
}

#[derive(Debug)]
struct Child {
    traits: Traits,
    state: ChildState,
    /// When it was last up.
    since: Option<Duration>,
    /// What it was last stopped for.
    purpose: Purpose,
    /// Restarts since it was last healthy.
    attempt: u32,
    /// The number of its pause before a restart.
    pause: u64,
    /// Whether its last end counts towards the restart limit.
    counts: bool,
    /// Who waits for its start or its end, where the supervisor itself does not ([`SupervisorKind::Spawned`]).
    requests: Vec<u64>,
    /// Whether it is to be started again when it has ended, as it was asked to.
    comes_back: bool,
    /// A restart limit of its own, where it has one.
    window: Option<RestartWindow>,
}

#[derive(Debug)]
enum Phase {
    New,
    Starting { queue: VecDeque<ActorId> },
    Running,
    Restarting { stops: VecDeque<ActorId>, starts: VecDeque<ActorId> },
    Serving { request: u64, work: Work, child: ActorId },
    Ending { stops: VecDeque<ActorId>, purpose: Purpose, end: Command },
    Ended,
}

/// What a request that takes time is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Work {
    StartNew,
    Stop,
    Start,
    /// Stop, then start.
    Cycle,
}

#[derive(Debug)]
enum Item {
    Ended(ActorId),
    TryAgain(ActorId, ExitReason),
    PauseOver(ActorId, u64),
    Request { request: u64, verb: Verb },
}

/// The machine of one supervisor.
#[derive(Debug)]
pub struct Machine {
    kind: SupervisorKind,
    strategy: Strategy,
    auto_shutdown: AutoShutdown,
    window: RestartWindow,
    children: BTreeMap<ActorId, Child>,
    /// The start order, where it is not that of the ids.
    ranks: HashMap<ActorId, usize>,
    starting: usize,
    stopping: usize,
    phase: Phase,
    inbox: VecDeque<Item>,
    commands: VecDeque<Command>,
    /// The child whose end is being told just now, and what was decided about it.
    telling: Option<(ActorId, Option<Verdict>)>,
}

impl Machine {
    /// A supervisor that has not begun, with the children of its initial list.
    pub fn new(spec: &SupervisorSpec, children: impl IntoIterator<Item = (ActorId, Traits)>) -> Self {
        Machine {
            kind: spec.kind,
            strategy: spec.strategy,
            auto_shutdown: spec.auto_shutdown,
            window: RestartWindow::new(spec.max_restarts, Duration::from_millis(spec.max_ms)),
            children: children.into_iter().map(|(key, traits)| (key, Child::new(traits))).collect(),
            ranks: HashMap::new(),
            starting: 0,
            stopping: 0,
            phase: Phase::New,
            inbox: VecDeque::new(),
            commands: VecDeque::new(),
            telling: None,
        }
    }

    /// From now on it has these flags. Restarts that have happened count on.
    pub fn respecify(&mut self, spec: &SupervisorSpec) {
        self.window.set_limit(spec.max_restarts, Duration::from_millis(spec.max_ms));
        self.kind = spec.kind;
        self.strategy = spec.strategy;
        self.auto_shutdown = spec.auto_shutdown;
    }

    /// From now on this holds for a child.
    pub fn set_traits(&mut self, child: ActorId, traits: Traits) {
        if let Some(child) = self.children.get_mut(&child) {
            child.traits = traits;
        }
    }

    /// From now on it has this child, which is stopped, unless it has it already.
    pub fn add(&mut self, child: ActorId, traits: Traits) {
        self.children.entry(child).or_insert_with(|| Child::new(traits));
    }

    /// From now on these children are started in this order, before all others.
    pub fn reorder(&mut self, children: &[ActorId]) {
        self.ranks.clear();
        if !children.is_sorted() {
            self.ranks.extend(children.iter().copied().zip(0..));
        }
    }

    /// The children in start order.
    fn order(&self) -> impl DoubleEndedIterator<Item = ActorId> {
        let by_rank = (!self.ranks.is_empty()).then(|| {
            let mut children: Vec<ActorId> = self.children.keys().copied().collect();
            children.sort_by_key(|child| (self.ranks.get(child).copied().unwrap_or(usize::MAX), *child));
            children
        });
        let by_id = by_rank.is_none().then(|| self.children.keys().copied());
        by_id.into_iter().flatten().chain(by_rank.into_iter().flatten())
    }

    /// Starts the children, one after another (SUP-010).
    pub fn begin(&mut self, now: Duration) {
        self.phase = Phase::Starting { queue: self.order().collect() };
        self.advance(now);
    }

    /// A child's `init` has returned.
    pub fn child_started(&mut self, child: ActorId, now: Duration) {
        if self.state(child) == Some(&ChildState::Starting) {
            self.set(child, ChildState::Running);
            if let Some(child) = self.children.get_mut(&child) {
                child.since = Some(now);
            }
            self.answer_all(child, &Ok(Done::Child(child)));
            self.advance(now);
        }
    }

    /// A child's `init` asked to be passed over (SUP-013).
    pub fn child_ignored(&mut self, child: ActorId, now: Duration) {
        if self.state(child) == Some(&ChildState::Starting) {
            self.answer_all(child, &Ok(Done::Child(child)));
            self.leave_down(child);
            self.advance(now);
        }
    }

    /// Answers those who wait for this child alone; says whether there was one.
    fn answer_all(&mut self, child: ActorId, result: &Result<Done, RequestError>) -> bool {
        let requests = self.children.get_mut(&child).map(|child| std::mem::take(&mut child.requests));
        let requests = requests.unwrap_or_default();
        let is_any = !requests.is_empty();
        requests.into_iter().for_each(|request| self.answer(request, result.clone()));
        is_any
    }

    /// The end of a child that is told next does not count towards the restart limit.
    pub fn do_not_count(&mut self, child: ActorId) {
        if let Some(child) = self.children.get_mut(&child) {
            child.counts = false;
        }
    }

    /// A child has ended: by itself, because it was told to, or before it was up. Gives what was decided about it, if
    /// there is something to decide and this supervisor is free to; else [`Command::Verdict`] comes later.
    pub fn child_ended(&mut self, child: ActorId, reason: ExitReason, now: Duration) -> Option<Verdict> {
        self.telling = Some((child, None));
        self.note_end(child, reason, now);
        self.telling.take()?.1
    }

    fn note_end(&mut self, child: ActorId, reason: ExitReason, now: Duration) {
        match self.state(child) {
            Some(ChildState::Starting) => self.start_failed(child, reason, now),
            Some(ChildState::Stopping) => {
                self.set(child, ChildState::Stopped);
                // It was asked, and ended otherwise (SUP-055).
                if !matches!(reason, ExitReason::Shutdown(_)) {
                    let verdict = self.children[&child].purpose.verdict();
                    self.decide(child, reason, verdict);
                }
                if self.kind == SupervisorKind::Spawned && !matches!(self.phase, Phase::Ending { .. }) {
                    let comes_back = self.children.get_mut(&child).is_some_and(|it| std::mem::take(&mut it.comes_back));
                    if comes_back {
                        self.start(child);
                    } else {
                        self.answer_all(child, &Ok(Done::Child(child)));
                        self.leave_down(child);
                    }
                }
                self.advance(now);
            }
            Some(ChildState::Running) => {
                self.set(child, ChildState::Ended(reason));
                self.inbox.push_back(Item::Ended(child));
                self.advance(now);
            }
            _ => {}
        }
    }

    /// Lets know what follows from an end: whoever tells of that end just now, or later by a command.
    fn decide(&mut self, child: ActorId, reason: ExitReason, verdict: Verdict) {
        match &mut self.telling {
            Some((told, decided @ None)) if *told == child => *decided = Some(verdict),
            _ => self.commands.push_back(Command::Verdict { child, reason, verdict }),
        }
    }

    /// The pause before a restart is over, by its number.
    pub fn pause_over(&mut self, child: ActorId, number: u64, now: Duration) {
        self.inbox.push_back(Item::PauseOver(child, number));
        self.advance(now);
    }

    /// Ends the supervisor with `reason`, children first and in reverse order (SUP-050); they come back with it if that
    /// is the purpose.
    pub fn stop(&mut self, reason: ExitReason, purpose: Purpose, now: Duration) {
        match &mut self.phase {
            Phase::Ended => {}
            // Whoever orders the end while it ends by itself gives the reason.
            Phase::Ending { end: Command::Ended(old), .. } => *old = reason,
            Phase::Ending { .. } => {}
            _ => self.end(Command::Ended(reason), purpose, now),
        }
    }

    /// Asks for something. Answered by [`Command::Answer`], in turn (SUP-079).
    pub fn request(&mut self, request: u64, verb: Verb, now: Duration) {
        if matches!(self.phase, Phase::Ended | Phase::New) {
            self.refuse(request, &verb);
            return;
        }
        self.inbox.push_back(Item::Request { request, verb });
        self.advance(now);
    }

    /// What is to be done next, in order.
    pub fn poll_command(&mut self) -> Option<Command> {
        self.commands.pop_front()
    }

    /// What a child is doing, if it is one.
    pub fn state(&self, child: ActorId) -> Option<&ChildState> {
        self.children.get(&child).map(|child| &child.state)
    }

    /// The children in start order, with their ids.
    pub fn children(&self) -> impl DoubleEndedIterator<Item = (ActorId, &str, &ChildState)> {
        self.order()
            .filter_map(|key| self.children.get(&key).map(|child| (key, child.traits.id.as_str(), &child.state)))
    }

    /// What the supervisor itself is doing.
    pub fn member_state(&self) -> MemberState {
        match self.phase {
            Phase::New | Phase::Starting { .. } => MemberState::Starting,
            Phase::Running | Phase::Restarting { .. } | Phase::Serving { .. } => MemberState::Running,
            Phase::Ending { .. } => MemberState::Stopping,
            Phase::Ended => MemberState::Stopped,
        }
    }

    /// Whether it is on its way down.
    pub fn is_ending(&self) -> bool {
        matches!(self.phase, Phase::Ending { .. })
    }

    /// Whether it waits for this child to start or to end, and so cannot answer it.
    pub fn waits_for(&self, child: ActorId) -> bool {
        self.kind != SupervisorKind::Spawned
            && matches!(self.state(child), Some(ChildState::Starting | ChildState::Stopping))
    }

    /// What is known about a child, if it is one.
    pub fn traits(&self, child: ActorId) -> Option<&Traits> {
        self.children.get(&child).map(|child| &child.traits)
    }

    /// The child with this id.
    pub fn child_by_id(&self, id: &str) -> Option<ActorId> {
        self.children.iter().find_map(|(key, child)| (child.traits.id == id).then_some(*key))
    }

    fn is_dynamic(&self) -> bool {
        matches!(self.kind, SupervisorKind::Dynamic { .. } | SupervisorKind::Spawned)
    }

    fn set(&mut self, child: ActorId, state: ChildState) {
        let Some(child) = self.children.get_mut(&child) else { return };
        let count = |state: &ChildState| {
            (usize::from(*state == ChildState::Starting), usize::from(*state == ChildState::Stopping))
        };
        let (before, after) = (count(&child.state), count(&state));
        self.starting = self.starting + after.0 - before.0;
        self.stopping = self.stopping + after.1 - before.1;
        child.state = state;
    }

    /// The child stays down for now: its spec is kept, unless nobody could ever start it again.
    fn leave_down(&mut self, child: ActorId) {
        self.set(child, ChildState::Stopped);
        let Some(found) = self.children.get(&child) else { return };
        if found.traits.restart == Restart::Temporary || self.is_dynamic() {
            self.children.remove(&child);
            self.commands.push_back(Command::Removed(child));
        } else {
            self.commands.push_back(Command::Settled(child));
        }
    }

    fn start_failed(&mut self, child: ActorId, reason: ExitReason, now: Duration) {
        match &self.phase {
            Phase::Starting { .. } => {
                self.set(child, ChildState::Stopped);
                self.end(Command::Failed { child, reason }, Purpose::Final, now);
            }
            Phase::Serving { request, work, .. } => {
                let (request, work) = (*request, *work);
                self.set(child, ChildState::Stopped);
                let result = Err(RequestError::StartFailed(child, reason));
                self.commands.push_back(Command::Answer { request, result });
                if work == Work::StartNew {
                    self.children.remove(&child);
                    self.commands.push_back(Command::Removed(child));
                } else {
                    self.leave_down(child);
                }
                self.phase = Phase::Running;
                self.advance(now);
            }
            Phase::Restarting { .. } => {
                self.set(child, ChildState::Restarting);
                self.inbox.push_back(Item::TryAgain(child, reason));
                self.phase = Phase::Running;
                self.advance(now);
            }
            Phase::Running if self.kind == SupervisorKind::Spawned => {
                if self.answer_all(child, &Err(RequestError::StartFailed(child, reason.clone()))) {
                    self.set(child, ChildState::Stopped);
                    self.children.remove(&child);
                    self.commands.push_back(Command::Removed(child));
                } else {
                    self.set(child, ChildState::Restarting);
                    self.inbox.push_back(Item::TryAgain(child, reason));
                }
                self.advance(now);
            }
            Phase::New | Phase::Running | Phase::Ending { .. } | Phase::Ended => {
                self.set(child, ChildState::Stopped);
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
            let is_temporary =
                self.children.get(&child).is_some_and(|child| child.traits.restart == Restart::Temporary);
            self.stop_child(child, if is_temporary { Purpose::Final } else { Purpose::Restart });
        } else if let Some(child) = starts.pop_front() {
            match self.children.get(&child).map(|child| child.traits.restart) {
                Some(Restart::Temporary) => self.leave_down(child),
                Some(_) => self.start(child),
                None => {}
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
        let Phase::Serving { request, work, child } = self.phase else { return true };
        if self.state(child) == Some(&ChildState::Stopped) {
            match work {
                Work::Stop => self.leave_down(child),
                Work::Cycle => {
                    self.phase = Phase::Serving { request, work: Work::Start, child };
                    self.start(child);
                    return false;
                }
                Work::StartNew | Work::Start => {}
            }
        }
        self.phase = Phase::Running;
        self.answer(request, Ok(Done::Child(child)));
        false
    }

    fn advance_ending(&mut self) -> bool {
        // A child that is still starting is told to stop rather than waited for: a stop always ends in time.
        if self.stopping > 0 && !self.is_dynamic() {
            return true;
        }
        let Phase::Ending { stops, purpose, .. } = &mut self.phase else { return true };
        let purpose = *purpose;
        if let Some(child) = stops.pop_front() {
            self.stop_child(child, purpose);
            return false;
        }
        if self.stopping > 0 {
            return true;
        }
        if let Phase::Ending { end, .. } = std::mem::replace(&mut self.phase, Phase::Ended) {
            let waiting: Vec<ActorId> = self.children.keys().copied().collect();
            for child in waiting {
                self.answer_all(child, &Err(RequestError::Ending));
            }
            for item in std::mem::take(&mut self.inbox) {
                if let Item::Request { request, verb } = item {
                    self.refuse(request, &verb);
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
                if let Some(ChildState::Ended(reason)) = self.state(child) {
                    let reason = reason.clone();
                    self.handle_end(child, reason, now);
                }
            }
            Item::TryAgain(child, reason) => {
                if self.state(child) == Some(&ChildState::Restarting) {
                    self.restart(child, reason, now);
                }
            }
            Item::PauseOver(child, number) => {
                let is_current = self.children.get(&child).is_some_and(|child| child.pause == number);
                if is_current && self.state(child) == Some(&ChildState::Restarting) {
                    self.carry_out_restart(child);
                }
            }
            Item::Request { request, verb } => self.handle_request(request, verb),
        }
        false
    }

    fn handle_request(&mut self, request: u64, verb: Verb) {
        use ChildState::{Parked, Restarting, Stopped};
        match verb {
            Verb::Start(child, traits) => self.start_new(request, child, traits),
            Verb::Look(None) => {
                let children = self.children().map(|(child, id, state)| (child, id.to_owned(), state.clone()));
                let children = children.collect();
                self.answer(request, Ok(Done::Children(children)));
            }
            Verb::Look(Some(of)) => {
                let found = self.find(&of).ok_or(RequestError::NotFound);
                self.answer(request, found.map(Done::Child));
            }
            Verb::Terminate(of) => match self.find(&of) {
                Some(_) if self.is_dynamic() && matches!(of, ChildRef::Id(_)) => {
                    self.answer(request, Err(RequestError::Unsupported));
                }
                Some(child) if self.kind == SupervisorKind::Spawned => self.stop_beside(request, child, false),
                Some(child) => {
                    self.stop_child(child, Purpose::Final);
                    self.phase = Phase::Serving { request, work: Work::Stop, child };
                }
                None => self.answer(request, Err(self.missing(&of))),
            },
            Verb::Restart(_) | Verb::Delete(_) if self.is_dynamic() => {
                self.answer(request, Err(RequestError::Unsupported));
            }
            Verb::Cycle(of) => match self.find(&of) {
                Some(child) if self.kind == SupervisorKind::Spawned => self.stop_beside(request, child, true),
                Some(child) => {
                    self.stop_child(child, Purpose::Restart);
                    self.phase = Phase::Serving { request, work: Work::Cycle, child };
                }
                None => self.answer(request, Err(self.missing(&of))),
            },
            Verb::Restart(of) | Verb::Delete(of) if self.find(&of).is_none() => {
                self.answer(request, Err(self.missing(&of)));
            }
            Verb::Restart(of) => {
                let Some(child) = self.find(&of) else { return };
                match self.state(child) {
                    Some(Stopped | Parked) => {
                        self.phase = Phase::Serving { request, work: Work::Start, child };
                        self.start(child);
                    }
                    Some(Restarting) => self.answer(request, Err(RequestError::Restarting)),
                    _ => self.answer(request, Err(RequestError::Running)),
                }
            }
            Verb::Delete(of) => {
                let Some(child) = self.find(&of) else { return };
                match self.state(child) {
                    Some(Stopped | Parked) => {
                        self.children.remove(&child);
                        self.commands.push_back(Command::Removed(child));
                        self.answer(request, Ok(Done::Child(child)));
                    }
                    Some(Restarting) => self.answer(request, Err(RequestError::Restarting)),
                    _ => self.answer(request, Err(RequestError::Running)),
                }
            }
        }
    }

    /// Stops a child while others start and stop; starts it again then if it is to come back.
    fn stop_beside(&mut self, request: u64, child: ActorId, comes_back: bool) {
        // Whoever waits for its start waits in vain.
        if self.state(child) == Some(&ChildState::Starting) {
            self.answer_all(child, &Err(RequestError::Ending));
        }
        self.stop_child(child, if comes_back { Purpose::Restart } else { Purpose::Final });
        let Some(found) = self.children.get_mut(&child) else { return };
        found.requests.push(request);
        found.comes_back = comes_back;
        if found.state == ChildState::Stopping {
            return;
        }
        if comes_back {
            found.comes_back = false;
            self.start(child);
        } else {
            self.answer_all(child, &Ok(Done::Child(child)));
            self.leave_down(child);
        }
    }

    fn start_new(&mut self, request: u64, child: ActorId, traits: Traits) {
        let error = match self.kind {
            SupervisorKind::Dynamic { max_children: Some(most) } if self.children.len() as u64 >= most => {
                Some(RequestError::MaxChildren)
            }
            SupervisorKind::Dynamic { .. } | SupervisorKind::Spawned => None,
            SupervisorKind::Partition | SupervisorKind::Registry { .. } | SupervisorKind::Table(_) => {
                Some(RequestError::Unsupported)
            }
            SupervisorKind::Static => {
                self.find(&ChildRef::Id(traits.id.clone())).map(|other| match self.state(other) {
                    Some(ChildState::Stopped | ChildState::Parked | ChildState::Restarting) => {
                        RequestError::AlreadyPresent
                    }
                    _ => RequestError::AlreadyStarted(other),
                })
            }
        };
        if let Some(error) = error {
            self.commands.push_back(Command::Removed(child));
            return self.answer(request, Err(error));
        }
        let mut new = Child::new(traits);
        if self.kind == SupervisorKind::Spawned {
            new.requests.push(request);
            new.window = Some(self.window.clone());
        } else {
            self.phase = Phase::Serving { request, work: Work::StartNew, child };
        }
        self.children.insert(child, new);
        self.start(child);
    }

    fn find(&self, of: &ChildRef) -> Option<ActorId> {
        match of {
            ChildRef::Key(child) => self.children.contains_key(child).then_some(*child),
            ChildRef::Id(id) => self.child_by_id(id),
        }
    }

    fn missing(&self, of: &ChildRef) -> RequestError {
        match of {
            ChildRef::Id(_) if self.is_dynamic() => RequestError::Unsupported,
            _ => RequestError::NotFound,
        }
    }

    fn answer(&mut self, request: u64, result: Result<Done, RequestError>) {
        self.commands.push_back(Command::Answer { request, result });
    }

    fn refuse(&mut self, request: u64, verb: &Verb) {
        if let Verb::Start(child, _) = verb {
            self.commands.push_back(Command::Removed(*child));
        }
        self.answer(request, Err(RequestError::Ending));
    }

    fn handle_end(&mut self, child: ActorId, reason: ExitReason, now: Duration) {
        let Some(found) = self.children.get(&child) else { return };
        let stays_down = match found.traits.restart {
            Restart::Permanent => false,
            Restart::Transient => reason.is_clean(),
            Restart::Temporary => true,
        };
        if !stays_down {
            return self.restart(child, reason, now);
        }
        let is_significant = found.traits.significant;
        self.decide(child, reason, Verdict::StaysDown);
        self.leave_down(child);
        if is_significant && self.significant_end_is_last() {
            self.end(Command::Ended(ExitReason::SHUTDOWN), Purpose::Final, now);
        }
    }

    fn significant_end_is_last(&self) -> bool {
        match self.auto_shutdown {
            AutoShutdown::Never => false,
            AutoShutdown::AnySignificant => true,
            AutoShutdown::AllSignificant => {
                let is_down = |state: &ChildState| matches!(state, ChildState::Stopped | ChildState::Parked);
                !self.children.values().any(|child| child.traits.significant && !is_down(&child.state))
            }
        }
    }

    /// Counts a restart, and carries it out or gives up (SUP-040, SUP-044).
    fn restart(&mut self, child: ActorId, reason: ExitReason, now: Duration) {
        let Some(found) = self.children.get_mut(&child) else { return };
        let counts = std::mem::replace(&mut found.counts, true);
        let has_own_limit = found.window.is_some();
        let window = found.window.as_mut().unwrap_or(&mut self.window);
        let (allowed, share) = (!counts || window.add(now), window.share());
        let pause = found.next_pause(child, share, now);
        let verdict = match (allowed, found.traits.on_giveup) {
            (true, _) => Verdict::Restarts(pause),
            (false, OnGiveup::Stop) if has_own_limit => Verdict::StaysDown,
            (false, OnGiveup::Stop) => Verdict::GivesUp,
            (false, OnGiveup::Park) => Verdict::Parks,
        };
        self.decide(child, reason, verdict);
        match verdict {
            Verdict::GivesUp => {
                self.set(child, ChildState::Stopped);
                self.end(Command::Ended(ExitReason::SHUTDOWN), Purpose::Final, now);
            }
            Verdict::Parks => {
                // What it used up is its siblings' again.
                self.window.forget();
                self.set(child, ChildState::Parked);
                self.commands.push_back(Command::Settled(child));
            }
            Verdict::Restarts(pause) => {
                self.set(child, ChildState::Restarting);
                if pause > Duration::ZERO {
                    let Some(found) = self.children.get_mut(&child) else { return };
                    // Numbers of an earlier life of this supervisor are not used again, nor those of this one.
                    let number = (now.as_nanos() as u64).max(found.pause) + 1;
                    found.pause = number;
                    self.commands.push_back(Command::Pause { child, time: pause, number });
                } else {
                    self.carry_out_restart(child);
                }
            }
            Verdict::StaysDown => self.leave_down(child),
        }
    }

    fn carry_out_restart(&mut self, child: ActorId) {
        if self.kind == SupervisorKind::Spawned {
            return self.start(child);
        }
        let plan = strategy::plan(self.strategy, self.order(), child);
        self.phase = Phase::Restarting { stops: plan.stop, starts: plan.start };
    }

    fn end(&mut self, end: Command, purpose: Purpose, now: Duration) {
        if let Phase::Serving { request, .. } = self.phase {
            self.answer(request, Err(RequestError::Ending));
        }
        let stops = self.order().rev().collect();
        self.phase = Phase::Ending { stops, purpose, end };
        self.advance(now);
    }

    fn start(&mut self, child: ActorId) {
        self.set(child, ChildState::Starting);
        self.commands.push_back(Command::Start(child));
    }

    /// Stops a child if it is alive; a death that waits in the inbox is used up (SUP-056).
    fn stop_child(&mut self, child: ActorId, purpose: Purpose) {
        match self.state(child) {
            Some(ChildState::Running | ChildState::Starting) => {
                self.set(child, ChildState::Stopping);
                if let Some(child) = self.children.get_mut(&child) {
                    child.purpose = purpose;
                }
                self.commands.push_back(Command::Stop { child, purpose });
            }
            Some(ChildState::Ended(reason)) => {
                let reason = reason.clone();
                self.set(child, ChildState::Stopped);
                self.decide(child, reason, purpose.verdict());
            }
            Some(ChildState::Restarting | ChildState::Parked) => self.set(child, ChildState::Stopped),
            Some(ChildState::Stopped | ChildState::Stopping) | None => {}
        }
    }

    fn is_waiting_for_child(&self) -> bool {
        self.starting + self.stopping > 0
    }
}

impl Child {
    fn new(traits: Traits) -> Self {
        Child {
            traits,
            state: ChildState::Stopped,
            since: None,
            purpose: Purpose::Final,
            attempt: 0,
            pause: 0,
            counts: true,
            requests: Vec::new(),
            comes_back: false,
            window: None,
        }
    }

    /// The pause before the next restart.
    fn next_pause(&mut self, key: ActorId, share: Duration, now: Duration) -> Duration {
        let healthy = match self.traits.pauses {
            Pauses::None => return Duration::ZERO,
            Pauses::ByLimit => share.max(Duration::from_secs(1)),
            Pauses::Backoff(backoff) => Duration::from_millis(backoff.healthy_ms()),
        };
        // A start that fails is no life, and begins nothing anew.
        if self.since.take().is_some_and(|since| now.saturating_sub(since) >= healthy) {
            self.attempt = 0;
        }
        let attempt = self.attempt;
        self.attempt += 1;
        let backoff = match (self.traits.pauses, attempt) {
            (Pauses::Backoff(backoff), _) => backoff,
            (_, 0) => return Duration::ZERO,
            (_, 1) => return share / 2,
            (_, _) => return share,
        };
        let pause = backoff.pause_ms(attempt) * 1000;
        // The core has no source of chance; what counts is that children that died together come back apart.
        let seed = (now.as_nanos() as u64) ^ key.0.rotate_left(32) ^ u64::from(self.attempt);
        let chance = mixed(seed) % 1001;
        Duration::from_micros(pause - pause * backoff.jitter_milli * chance / 1_000_000)
    }
}

/// SplitMix64's finaliser: spreads a number over all bits.
fn mixed(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}
