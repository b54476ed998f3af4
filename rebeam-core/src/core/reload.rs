//! Reloads: which actors move to a new version of the code, in what order, and which of them go back.
//!
//! An actor moves between two messages, as in recycling: its process hands over its state and waits, and a process of the
//! new version takes the state over. The steps of one move are those of [`crate::incarnation`]'s machine. This module
//! decides whose turn it is, and keeps what a rollback needs. It must not know what a state or a version is made of: that
//! is the shell's affair.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use rebeam_protocol::certificate::Certificate;
use rebeam_protocol::exit::ExitReason;
use rebeam_protocol::id::{ActorId, ProcessId, Version};
use rebeam_protocol::outside::{Change, Fate, Reloaded};
use rebeam_protocol::spec::{ActorSpec, Reload};

use super::Core;
use crate::event::{Action, HandedOver, NewCode, State};
use crate::incarnation::{Before, Command, Limit, Machine};
use crate::timers::{Due, TimerKey};

/// How many actors move at the same time. More would only wait for each other, since the zygote forks one by one.
const MOST_AT_ONCE: usize = 2;

/// An actor that is still busy this long after it was asked to move does not hold up the others.
const PATIENCE: Duration = Duration::from_millis(50);

/// When the probation of new code ends in an actor. Until then, a failure undoes the move.
#[derive(Clone, Copy, Debug)]
pub struct Probation {
    /// After this many handled messages,
    pub messages: u64,
    /// or after this time.
    pub time: Duration,
}

impl Default for Probation {
    /// 10 messages, or 10 s.
    fn default() -> Self {
        Probation { messages: 10, time: Duration::from_secs(10) }
    }
}

/// How a node reloads.
#[derive(Clone, Copy, Debug)]
pub struct ReloadOptions {
    /// When the probation of new code ends.
    pub probation: Probation,
    /// How long handlers that overlap may take to finish before they are cancelled.
    pub grace: Duration,
}

impl Default for ReloadOptions {
    fn default() -> Self {
        ReloadOptions { probation: Probation::default(), grace: Duration::from_secs(2) }
    }
}

/// The version that the node runs, the classes that stay behind it, and the reload under way.
#[derive(Debug)]
pub(super) struct Versions {
    current: Version,
    pub(super) options: ReloadOptions,
    /// Classes whose new code has failed, with the version that they run instead.
    held_back: HashMap<String, Version>,
    under_way: Option<UnderWay>,
    /// The versions that the shell was last told to keep.
    needed: Vec<Version>,
}

impl Versions {
    /// A change of the tree is under way.
    pub(super) fn expect_change(&mut self) {
        if let Some(under_way) = &mut self.under_way {
            under_way.expected += 1;
        }
    }

    /// One is carried out, or will never be.
    pub(super) fn changed(&mut self, change: Option<Change>) {
        if let Some(under_way) = &mut self.under_way {
            under_way.expected = under_way.expected.saturating_sub(1);
            under_way.changes.extend(change);
        }
    }
}

impl Default for Versions {
    fn default() -> Self {
        Versions {
            current: Version::FIRST,
            options: ReloadOptions::default(),
            held_back: HashMap::new(),
            under_way: None,
            needed: vec![Version::FIRST],
        }
    }
}

/// A reload that is not complete.
#[derive(Debug, Default)]
struct UnderWay {
    /// Actors whose turn has not come, in the order of the tree.
    waiting: VecDeque<ActorId>,
    /// Actors whose spec has changed, with the spec before.
    respecified: BTreeMap<ActorId, Arc<ActorSpec>>,
    /// Actors that are moving.
    moving: BTreeMap<ActorId, Moving>,
    changes: Vec<Change>,
    /// Changes of the tree that its supervisors have not carried out yet.
    expected: usize,
    timer: Option<TimerKey>,
}

#[derive(Clone, Debug)]
struct Moving {
    asked: Duration,
    /// Since when it takes no mail.
    still_since: Option<Duration>,
    /// Why it starts over, if it does not take its state along.
    starts_over: Option<StartsOver>,
}

#[derive(Clone, Debug)]
enum StartsOver {
    /// Its class says so, or it is a function.
    ByChoice,
    /// Its state cannot be moved.
    Because(String),
    /// Its spec has changed.
    Respecified,
}

impl Core {
    /// Says how new code is taken over.
    pub fn set_reload_options(&mut self, options: ReloadOptions) {
        self.versions.options = options;
    }

    /// How long handlers that overlap may take to finish before an actor goes over to new code.
    pub fn move_grace(&self) -> Duration {
        self.versions.options.grace
    }

    /// The version of the code that the node runs, but for actors under way or held back.
    pub fn version(&self) -> Version {
        self.versions.current
    }

    /// The version that a process of this class is to run.
    pub(super) fn version_of(&self, class: &str) -> Version {
        self.versions.held_back.get(class).copied().unwrap_or(self.versions.current)
    }

    /// There is a new version of the code.
    pub(super) fn new_code(&mut self, new: NewCode) {
        let NewCode { version, tree, gateway, changed } = new;
        self.versions.current = version;
        self.versions.held_back.clear();
        if let Some(gateway) = gateway {
            self.set_gateway(gateway);
        }
        let mut under_way = UnderWay::default();
        // Actors that an earlier reload has not reached move straight to this version.
        let earlier = self.versions.under_way.take();
        if let Some(earlier) = &earlier {
            self.timers.cancel(earlier.timer);
        }
        under_way.expected = earlier.as_ref().map_or(0, |earlier| earlier.expected);
        let (earlier, moving) = earlier.map(|it| (it.waiting, it.moving)).unwrap_or_default();
        let is_late = |id: ActorId| earlier.contains(&id) || moving.contains_key(&id);
        let mut ids: Vec<ActorId> = self.members.actors().map(|actor| actor.id).collect();
        ids.sort_unstable();
        for id in ids {
            let Some(actor) = self.members.actor(id) else { continue };
            if actor.incarnation().is_none() || !(is_late(id) || changed.is_code_of(&actor.spec)) {
                continue;
            }
            match actor.spec.reload {
                Reload::Never => under_way.changes.push(Change {
                    actor: actor.label.clone(),
                    class: actor.spec.class.clone(),
                    fate: Fate::Stays { why: "`reload=\"never\"`".into() },
                }),
                Reload::State | Reload::Restart => under_way.waiting.push_back(id),
            }
        }
        under_way.moving = moving;
        self.versions.under_way = Some(under_way);
        for (id, old) in self.change_tree(tree) {
            self.takes_its_new_spec(id, old);
        }
        self.reload_goes_on();
    }

    /// The spec of an actor has changed: it starts over if it is up.
    fn takes_its_new_spec(&mut self, id: ActorId, old: Arc<ActorSpec>) {
        let is_alive = self.members.actor(id).is_some_and(|actor| actor.incarnation().is_some());
        if let Some(under_way) = self.versions.under_way.as_mut().filter(|_| is_alive) {
            under_way.respecified.insert(id, old);
            if !under_way.waiting.contains(&id) {
                under_way.waiting.push_back(id);
            }
        }
    }

    /// Asks the next actors to move, as far as there is room, and ends the reload when nothing is left to do.
    pub(super) fn reload_goes_on(&mut self) {
        let Some(mut under_way) = self.versions.under_way.take() else { return };
        self.timers.cancel(under_way.timer.take());
        under_way.moving.retain(|id, _| self.members.actor(*id).is_some_and(|actor| actor.incarnation().is_some()));
        let now = self.now;
        let is_in_the_way =
            |moving: &Moving| moving.still_since.is_some() || now.saturating_sub(moving.asked) < PATIENCE;
        let mut later = VecDeque::new();
        while let Some(id) = under_way.waiting.pop_front() {
            if under_way.moving.values().filter(|it| is_in_the_way(it)).count() >= MOST_AT_ONCE {
                later.push_back(id);
                break;
            }
            match self.ask_to_move(id, &under_way) {
                Turn::Asked(starts_over) => {
                    under_way.moving.insert(id, Moving { asked: now, still_since: None, starts_over });
                }
                Turn::NotYet => later.push_back(id),
                Turn::Passed => {}
                Turn::Stays(why) => {
                    let change = self.change(id, Fate::Stays { why });
                    under_way.changes.extend(change);
                }
            }
        }
        later.extend(std::mem::take(&mut under_way.waiting));
        under_way.waiting = later;
        if under_way.waiting.is_empty() && under_way.moving.is_empty() && under_way.expected == 0 {
            let mut changes = under_way.changes;
            changes.sort_by(|a, b| a.actor.cmp(&b.actor));
            let reloaded = Reloaded { version: self.versions.current, changes };
            self.actions.push_back(Action::Reloaded(Box::new(reloaded)));
            self.tell_needed();
            return;
        }
        if !under_way.waiting.is_empty() {
            under_way.timer = Some(self.timers.set(now + PATIENCE, Due::ReloadGoesOn));
        }
        self.versions.under_way = Some(under_way);
    }

    fn ask_to_move(&mut self, id: ActorId, under_way: &UnderWay) -> Turn {
        let Some(actor) = self.members.actor(id) else { return Turn::Passed };
        let Some(incarnation) = actor.incarnation() else { return Turn::Passed };
        let is_respecified = under_way.respecified.contains_key(&id);
        if under_way.moving.contains_key(&id) {
            // To an earlier version, perhaps.
            return Turn::NotYet;
        }
        if incarnation.code == self.versions.current && !is_respecified {
            return Turn::Passed;
        }
        if self.versions.held_back.contains_key(&actor.spec.class) {
            return Turn::Stays(format!("the new code of `{}` has failed", actor.spec.class));
        }
        if !incarnation.machine.is_serving() {
            return if incarnation.machine.is_ordered() { Turn::Passed } else { Turn::NotYet };
        }
        let process = incarnation.process();
        if is_respecified || actor.spec.reload == Reload::Restart || incarnation.is_function {
            self.order_to_start_over(id, process);
            return Turn::Asked(Some(if is_respecified { StartsOver::Respecified } else { StartsOver::ByChoice }));
        }
        self.order(process, Machine::move_on);
        self.got_on(process);
        self.watch(id);
        Turn::Asked(None)
    }

    fn order_to_start_over(&mut self, id: ActorId, process: ProcessId) {
        let Some(actor) = self.members.actor(id) else { return };
        // OTP's rule: who does not trap exits is not asked (MAP-05).
        let traps_exits = actor.incarnation().is_some_and(|incarnation| incarnation.traps_exits);
        let is_asked = actor.spec.terminate_on_shutdown || traps_exits;
        self.order(process, |machine| machine.start_over(is_asked));
    }

    fn change(&self, id: ActorId, fate: Fate) -> Option<Change> {
        let actor = self.members.actor(id)?;
        Some(Change { actor: actor.label.clone(), class: actor.spec.class.clone(), fate })
    }

    fn moving_mut(&mut self, id: ActorId) -> Option<&mut Moving> {
        self.versions.under_way.as_mut()?.moving.get_mut(&id)
    }

    /// The reload is complete for an actor, successful or not.
    fn complete(&mut self, id: ActorId, fate: impl FnOnce(Duration, Moving) -> Fate) {
        let now = self.now;
        let Some(moving) = self.versions.under_way.as_mut().and_then(|it| it.moving.remove(&id)) else { return };
        let change = self.change(id, fate(now, moving));
        if let Some(under_way) = &mut self.versions.under_way {
            under_way.changes.extend(change);
        }
    }

    /// A process has handed over its state. If it was asked to move, it waits now, and the next process is launched; a
    /// process that is recycled ends first.
    pub(super) fn handed_over(&mut self, handed: HandedOver) {
        let HandedOver { process, state, runs_init, took, page } = handed;
        let Some(id) = self.members.serving(process).map(|actor| actor.id) else { return };
        let limit = if runs_init { Limit::Start } else { Limit::TakeOver };
        let Some(incarnation) = self.members.incarnation_mut(id) else { return };
        let Some(commands) = incarnation.machine.gave_state(limit) else {
            return self.order(process, |machine| machine.handed_over(state));
        };
        self.take_mail_back(id, &page);
        let since = self.now.saturating_sub(took);
        if let Some(moving) = self.moving_mut(id) {
            moving.still_since = Some(since);
        }
        self.launch_with_new_code(id, Some(state), runs_init, commands);
    }

    /// A process that was stopped to start over has ended.
    pub(super) fn starts_over(&mut self, id: ActorId, commands: Vec<Command>) {
        let now = self.now;
        if let Some(moving) = self.moving_mut(id) {
            moving.still_since = Some(now);
        }
        self.launch_with_new_code(id, None, true, commands);
    }

    /// Launches the next process of an incarnation, with the version that its class is to run.
    fn launch_with_new_code(&mut self, id: ActorId, state: Option<State>, runs_init: bool, commands: Vec<Command>) {
        let Some(actor) = self.members.actor(id) else { return };
        let code = self.version_of(&actor.spec.class);
        let spec = self.versions.under_way.as_mut().and_then(|it| it.respecified.remove(&id));
        let Some(incarnation) = self.members.incarnation_mut(id) else { return };
        let before = std::mem::replace(&mut incarnation.code, code);
        let earlier = incarnation.before.replace(Before {
            code: before,
            state: state.clone(),
            runs_init,
            spec,
            handled: 0,
            timer: None,
        });
        let timer = earlier.and_then(|earlier| earlier.timer);
        self.timers.cancel(timer);
        self.next_process(id, state.map(|state| (state, before)), runs_init, commands);
    }

    /// A process cannot hand over its state, and serves again. The actor starts over instead, unless a hook has failed.
    pub(super) fn cannot_move(&mut self, process: ProcessId, why: String, is_failure: bool) {
        let Some(id) = self.members.serving(process).map(|actor| actor.id) else { return };
        let Some(incarnation) = self.members.incarnation_mut(id) else { return };
        let Some(commands) = incarnation.machine.cannot_move() else { return };
        self.obey(id, commands);
        if is_failure {
            self.hold_back(id);
            self.complete(id, |_, _| Fate::Failed { why });
            self.pump(id);
            return self.reload_goes_on();
        }
        if let Some(moving) = self.moving_mut(id) {
            moving.starts_over = Some(StartsOver::Because(why));
        }
        self.order_to_start_over(id, process);
        self.pump(id);
        self.reload_goes_on();
    }

    /// A process is up. If it has taken over with new code, the process before it ends, and the probation begins.
    pub(super) fn has_taken_over(&mut self, id: ActorId) {
        let Probation { time, .. } = self.versions.options.probation;
        let now = self.now;
        let Some(incarnation) = self.members.incarnation_mut(id) else { return };
        let process = incarnation.process();
        if let Some(kept) = incarnation.machine.take_kept() {
            self.actions.push_back(Action::Leave(kept));
            self.timers.set(now + LEAVES_WITHIN, Due::Leaves(kept));
        }
        if let Some(before) = &mut incarnation.before
            && before.timer.is_none()
        {
            before.timer = Some(self.timers.set(now + time, Due::ProbationOver(process)));
        }
        self.complete(id, |now, moving| {
            let still_us = now.saturating_sub(moving.still_since.unwrap_or(now)).as_micros() as u64;
            match moving.starts_over {
                None => Fate::Moved { still_us },
                Some(StartsOver::ByChoice) => Fate::StartedOver { still_us, why: None },
                Some(StartsOver::Because(why)) => Fate::StartedOver { still_us, why: Some(why) },
                Some(StartsOver::Respecified) => Fate::Respecified,
            }
        });
    }

    /// The process that was to take over has failed: the process before it serves again.
    pub(super) fn goes_back(&mut self, id: ActorId, failure: &Certificate, commands: Vec<Command>) {
        let Some(incarnation) = self.members.incarnation_mut(id) else { return };
        let process = incarnation.process();
        if let Some(before) = incarnation.before.take() {
            incarnation.code = before.code;
        }
        let asked = incarnation.asked().to_vec();
        self.restore_what_was_made_before(id, process.pid);
        self.actions.push_back(Action::GoOn(process));
        self.has_failed(id, failure);
        for message in &asked {
            self.hand_to_process(process, message);
        }
        self.obey(id, commands);
        self.got_on(process);
        self.pump(id);
    }

    /// New code has failed on probation: another process goes on with the code and the state before.
    pub(super) fn is_undone(&mut self, id: ActorId, failure: &Certificate, commands: Vec<Command>) {
        let Some(incarnation) = self.members.incarnation_mut(id) else { return };
        let Some(Before { code, state, runs_init, spec, timer, .. }) = incarnation.before.take() else { return };
        incarnation.code = code;
        if let (Some(spec), Some(actor)) = (spec, self.members.actor_mut(id)) {
            actor.spec = spec;
        }
        self.timers.cancel(timer);
        self.has_failed(id, failure);
        self.next_process(id, state.map(|state| (state, code)), runs_init, commands);
        self.tell_needed();
    }

    /// Where a rollback leads: the version before, and how many messages the new one has handled.
    pub(super) fn goes_back_to(&self, id: ActorId) -> Option<(Version, u64)> {
        let before = self.members.actor(id)?.incarnation()?.before.as_ref()?;
        Some((before.code, before.handled))
    }

    /// The new code of a class has failed: no other actor of that class moves to it.
    fn has_failed(&mut self, id: ActorId, failure: &Certificate) {
        self.hold_back(id);
        let why = match &failure.reason {
            ExitReason::Exception(raised) if !raised.traceback.is_empty() => raised.traceback.clone(),
            reason => reason.to_string(),
        };
        self.complete(id, |_, _| Fate::Failed { why });
    }

    /// The class of an actor stays with the version that the actor runs.
    fn hold_back(&mut self, id: ActorId) {
        let Some(actor) = self.members.actor(id) else { return };
        let Some(incarnation) = actor.incarnation() else { return };
        self.versions.held_back.insert(actor.spec.class.clone(), incarnation.code);
    }

    /// An actor has handled messages, which count towards the end of its probation.
    pub(super) fn count_on_probation(&mut self, id: ActorId, by: u64) {
        let most = self.versions.options.probation.messages;
        let Some(incarnation) = self.members.incarnation_mut(id) else { return };
        let Some(before) = &mut incarnation.before else { return };
        before.handled += by;
        if before.handled >= most {
            let process = incarnation.process();
            self.probation_over(process);
        }
    }

    /// The probation of new code is over.
    pub(super) fn probation_over(&mut self, process: ProcessId) {
        let Some(id) = self.members.serving(process).map(|actor| actor.id) else { return };
        let Some(incarnation) = self.members.incarnation_mut(id) else { return };
        incarnation.machine.set_on_probation(false);
        let timer = incarnation.before.take().and_then(|before| before.timer);
        self.timers.cancel(timer);
        self.tell_needed();
    }

    /// An incarnation has ended: there is nothing left to roll back.
    pub(super) fn forget_before(&mut self, id: ActorId, before: Option<Before>, kept: Option<ProcessId>) {
        if let Some(under_way) = &mut self.versions.under_way {
            under_way.moving.remove(&id);
        }
        if let Some(kept) = kept {
            self.actions.push_back(Action::Kill(kept));
        }
        if let Some(before) = before {
            self.timers.cancel(before.timer);
            self.tell_needed();
        }
    }

    /// Tells the shell which versions may still be needed, if that has changed.
    fn tell_needed(&mut self) {
        let before = self.members.actors().filter_map(|actor| actor.incarnation()?.before.as_ref());
        let mut needed: BTreeSet<Version> = before.map(|before| before.code).collect();
        let starting = self.members.actors().filter_map(|actor| actor.incarnation());
        needed.extend(starting.filter(|it| it.machine.is_starting()).map(|it| it.code));
        needed.extend(self.versions.held_back.values().copied().chain([self.versions.current]));
        let needed: Vec<Version> = needed.into_iter().collect();
        if needed != self.versions.needed {
            self.versions.needed.clone_from(&needed);
            self.actions.push_back(Action::Needed(needed));
        }
    }
}

/// How long the exit hooks of a process may take after its successor has taken over.
const LEAVES_WITHIN: Duration = Duration::from_secs(5);

/// What became of an actor whose turn had come.
enum Turn {
    /// It was asked to move, or to start over.
    Asked(Option<StartsOver>),
    /// It is starting, or in some other state that passes.
    NotYet,
    /// There is nothing to do.
    Passed,
    /// It keeps its version.
    Stays(String),
}
