//! Reloads: which actors move to a new version of the code, in what order, and which of them go back.
//!
//! An actor moves between two messages, as in recycling: its process hands over its state and waits, and a process of the
//! new version takes the state over. The steps of one move are those of [`crate::incarnation`]'s machine. This module
//! decides whose turn it is, and keeps what a rollback needs. It must not know what a state or a version is made of: that
//! is the shell's affair.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use rebeam_protocol::certificate::{Certificate, Next};
use rebeam_protocol::exit::ExitReason;
use rebeam_protocol::hash::fnv1a;
use rebeam_protocol::id::{ActorId, Pid, ProcessId, Version};
use rebeam_protocol::message::CallFailure;
use rebeam_protocol::outside::{Change, Failure, Fate, Reloaded};
use rebeam_protocol::spec::{ActorSpec, Reload};

use super::Core;
use crate::actor::Actor;
use crate::event::{Action, HandedOver, NewCode, State};
use crate::incarnation::{Before, Code, Command, Incarnation, Limit, Machine};
use crate::timers::{Due, TimerKey};

/// How many actors move at the same time. More would only wait for each other, since the zygote forks one by one.
const MOST_AT_ONCE: usize = 2;

/// An actor that is still busy this long after it was asked to move does not hold up the others.
const PATIENCE: Duration = Duration::from_millis(50);

/// A process that has not taken over after this time does not hold up the others.
const PATIENCE_WITH_A_START: Duration = Duration::from_millis(250);

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
    /// Digests of its modules, each with what it imports.
    modules: HashMap<String, u64>,
    pub(super) options: ReloadOptions,
    /// Code that has failed: the class, and the digest of its code. Oldest first.
    failed: VecDeque<(String, u64)>,
    /// Classes whose newest code has failed, and what they run instead; with the modules that count, which the arguments
    /// of an actor may add to.
    held_back: HashMap<Held, Code>,
    /// Specs that have failed, with the digest of the code that was to run them.
    pub(super) refused: HashMap<ActorId, (Arc<ActorSpec>, u64)>,
    /// Children that a reload has added and that have not started, with the digest of their code.
    pub(super) not_started: BTreeMap<ActorId, u64>,
    pub(super) under_way: Option<UnderWay>,
    /// The versions that the shell was last told to keep.
    needed: Vec<Version>,
    /// Whether others may be needed by now.
    is_stale: bool,
}

/// A class, and modules.
type Held = (String, Vec<String>);

fn held(spec: &ActorSpec) -> Held {
    (spec.class.clone(), spec.modules.clone())
}

/// How many failures are remembered.
const MOST_FAILED: usize = 100;

impl Versions {
    /// The digest of the code that an actor of the current version runs.
    pub(super) fn digest(&self, spec: &ActorSpec) -> u64 {
        digest_of(&self.modules, spec)
    }

    fn held_back(&self, spec: &ActorSpec) -> Option<Code> {
        if self.held_back.is_empty() { None } else { self.held_back.get(&held(spec)).copied() }
    }

    /// Whether a spec has failed, and neither it nor its code has changed since.
    pub(super) fn is_refused(&self, id: ActorId, is_it: impl FnOnce(&ActorSpec) -> bool) -> bool {
        self.refused.get(&id).is_some_and(|(spec, digest)| *digest == self.digest(spec) && is_it(spec))
    }

    fn has_failed(&self, class: &str, digest: u64) -> bool {
        self.failed.iter().any(|(of, failed)| of == class && *failed == digest)
    }

    fn note_failed(&mut self, class: &str, digest: u64) {
        if !self.has_failed(class, digest) {
            self.failed.push_back((class.to_owned(), digest));
            if self.failed.len() > MOST_FAILED {
                self.failed.pop_front();
            }
        }
    }

    /// Classes that have got other code than what has failed are held back no more.
    fn release_held_back(&mut self) {
        let Versions { modules, failed, held_back, .. } = self;
        held_back.retain(|(class, of), _| {
            let digest = digest(modules, class, of);
            failed.iter().any(|(of, failed)| of == class && *failed == digest)
        });
    }
}

fn digest_of(modules: &HashMap<String, u64>, spec: &ActorSpec) -> u64 {
    digest(modules, &spec.class, &spec.modules)
}

/// The digest of an actor's code: of the modules of its class, with what they import. Tests name the class itself.
fn digest(modules: &HashMap<String, u64>, class: &String, of: &[String]) -> u64 {
    let one = |name: &String| {
        let digest = modules.get(name)?;
        Some(fnv1a(&[name.as_bytes(), &digest.to_le_bytes()].concat()))
    };
    of.iter().chain([class]).filter_map(one).fold(0, u64::wrapping_add)
}

impl Default for Versions {
    fn default() -> Self {
        Versions {
            current: Version::FIRST,
            modules: HashMap::new(),
            options: ReloadOptions::default(),
            failed: VecDeque::new(),
            held_back: HashMap::new(),
            refused: HashMap::new(),
            not_started: BTreeMap::new(),
            under_way: None,
            needed: vec![Version::FIRST],
            is_stale: false,
        }
    }
}

/// A reload that is not complete.
#[derive(Debug, Default)]
pub(super) struct UnderWay {
    /// Whether all actors move.
    moves_all: bool,
    /// Whether what has failed before is tried again.
    pub(super) retries: bool,
    /// Actors whose turn has not come, in the order of the tree.
    waiting: VecDeque<ActorId>,
    /// Actors with another class or other arguments, with the spec before: they start over.
    respecified: BTreeMap<ActorId, Arc<ActorSpec>>,
    /// Actors with other options: they move, whether or not their code has changed.
    reoptioned: BTreeSet<ActorId>,
    /// Actors that are moving.
    moving: BTreeMap<ActorId, Moving>,
    pub(super) changes: Vec<Change>,
    /// Changes of the tree that its supervisors have been asked for and have not carried out.
    pub(super) expected: usize,
    /// How many of these are removals.
    pub(super) removals: usize,
    /// Children that are started once all removals are carried out.
    pub(super) additions: Vec<Addition>,
    timer: Option<TimerKey>,
}

/// A child that is new in the tree.
#[derive(Debug)]
pub(super) struct Addition {
    pub(super) supervisor: ActorId,
    pub(super) child: ActorId,
    pub(super) change: Change,
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

    /// Says what the first version of the code is made of, by digests of its modules.
    pub fn set_modules(&mut self, modules: HashMap<String, u64>) {
        self.versions.modules = modules;
    }

    /// Whether an actor runs other code than the current version has for it, or not at all, or not by its spec.
    pub fn is_anyone_behind(&self) -> bool {
        let is_behind = |actor: &Actor| actor.incarnation().is_some_and(|incarnation| incarnation.is_behind);
        !self.versions.not_started.is_empty()
            || !self.versions.refused.is_empty()
            || self.members.actors().any(|actor| actor.spec.reload != Reload::Never && is_behind(actor))
    }

    /// The actors that the reload under way waits for.
    pub fn reload_waits_for(&self) -> Vec<String> {
        let Some(under_way) = &self.versions.under_way else { return Vec::new() };
        let ids: BTreeSet<&ActorId> = under_way.moving.keys().chain(&under_way.waiting).collect();
        ids.into_iter().filter_map(|id| self.members.actor(*id)).map(|actor| actor.label.clone()).collect()
    }

    /// The code that an actor starts with.
    pub(super) fn code_of(&self, spec: &ActorSpec) -> Code {
        let current = || Code { version: self.versions.current, digest: self.versions.digest(spec) };
        self.versions.held_back(spec).unwrap_or_else(current)
    }

    /// The code that a further process of an incarnation runs: the same as before, from the current version if that has it.
    pub(super) fn next_code(&self, id: ActorId) -> Option<Code> {
        let actor = self.members.actor(id)?;
        let incarnation = actor.incarnation()?;
        let (code, is_behind) = (incarnation.code, incarnation.is_behind);
        Some(if is_behind { code } else { Code { version: self.versions.current, ..code } })
    }

    /// Notes the code that an incarnation runs from now on.
    pub(super) fn runs(&mut self, id: ActorId, code: Code) {
        let Some(actor) = self.members.actor(id) else { return };
        let is_behind = code.digest != self.versions.digest(&actor.spec);
        if let Some(incarnation) = self.members.incarnation_mut(id) {
            (incarnation.code, incarnation.is_behind) = (code, is_behind);
        }
    }

    /// There is a new version of the code.
    pub(super) fn new_code(&mut self, new: NewCode) {
        let NewCode { version, tree, gateway, modules, moves_all, retries } = new;
        let old = std::mem::replace(&mut self.versions.modules, modules);
        let before = std::mem::replace(&mut self.versions.current, version);
        if retries {
            self.versions.failed.clear();
            self.versions.refused.clear();
        }
        self.versions.release_held_back();
        if let Some(gateway) = gateway {
            self.set_gateway(gateway);
        }
        // Actors that an earlier reload has not reached move straight to this version.
        let mut under_way = self.versions.under_way.take().unwrap_or_default();
        self.timers.cancel(under_way.timer.take());
        let late: BTreeSet<ActorId> = under_way.waiting.drain(..).chain(under_way.moving.keys().copied()).collect();
        let late_move = std::mem::replace(&mut under_way.moves_all, moves_all);
        under_way.retries = retries;
        let mut ids: Vec<ActorId> = self.members.actors().map(|actor| actor.id).collect();
        ids.sort_unstable();
        for id in ids {
            let Some(actor) = self.members.actor(id) else { continue };
            let Some(code) = actor.incarnation().map(|incarnation| incarnation.code) else { continue };
            let now = self.versions.digest(&actor.spec);
            let has_changed = moves_all || digest_of(&old, &actor.spec) != now;
            let spec = actor.spec.clone();
            // Whoever is starting is launched with the version that it has.
            let stays = |it: &Incarnation| it.is_behind || it.machine.is_starting();
            let stays = actor.incarnation().is_some_and(stays);
            let code = if stays { code } else { Code { version: before, ..code } };
            self.runs(id, code);
            let is_late = late.contains(&id);
            let is_behind = code.digest != now && (has_changed || is_late || retries);
            let is_respecified = under_way.respecified.contains_key(&id) || under_way.reoptioned.contains(&id);
            if !(is_behind || moves_all || is_respecified || is_late && late_move) {
                continue;
            }
            let stays = match spec.reload {
                Reload::Never => Some("`reload=\"never\"`".to_owned()),
                Reload::State | Reload::Restart if self.versions.has_failed(&spec.class, now) => {
                    self.versions.held_back.entry(held(&spec)).or_insert(code);
                    Some(format!("this code of `{}` has failed before; `rebeam reload` tries it again", spec.class))
                }
                Reload::State | Reload::Restart => None,
            };
            match stays {
                Some(why) if has_changed => under_way.changes.extend(self.change(id, Fate::Stays { why })),
                Some(_) => {}
                None => under_way.waiting.push_back(id),
            }
        }
        self.versions.under_way = Some(under_way);
        for (id, old) in self.change_tree(tree) {
            self.takes_its_new_spec(id, old);
        }
        self.reload_goes_on();
        self.tell_needed();
    }

    /// The spec of an actor has changed. If it is up, it starts over with another class or other arguments, and moves with
    /// other options.
    fn takes_its_new_spec(&mut self, id: ActorId, old: Arc<ActorSpec>) {
        let Some(actor) = self.members.actor(id).filter(|actor| actor.incarnation().is_some()) else { return };
        let starts_over = actor.spec.class != old.class || actor.spec.start != old.start;
        if !starts_over && actor.spec.reload == Reload::Never {
            return;
        }
        if let Some(under_way) = &mut self.versions.under_way {
            if starts_over {
                under_way.respecified.entry(id).or_insert(old);
            } else {
                under_way.reoptioned.insert(id);
            }
            if !under_way.waiting.contains(&id) {
                under_way.waiting.push_back(id);
            }
        }
    }

    /// Asks the next actors to move, as far as there is room, and ends the reload when nothing is left to do.
    pub(super) fn reload_goes_on(&mut self) {
        self.start_what_is_added();
        let Some(mut under_way) = self.versions.under_way.take() else { return };
        self.timers.cancel(under_way.timer.take());
        under_way.moving.retain(|id, _| self.members.actor(*id).is_some_and(|actor| actor.incarnation().is_some()));
        let now = self.now;
        let is_in_the_way = |moving: &Moving| match moving.still_since {
            Some(since) => now.saturating_sub(since) < PATIENCE_WITH_A_START,
            None => now.saturating_sub(moving.asked) < PATIENCE,
        };
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
        let is_complete = under_way.waiting.is_empty() && under_way.moving.is_empty();
        if is_complete && under_way.expected == 0 && under_way.additions.is_empty() {
            let reloaded = Reloaded { version: self.versions.current, changes: summed_up(under_way.changes) };
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
        let is_changed = is_respecified || under_way.reoptioned.contains(&id);
        if incarnation.version == self.versions.current && !is_changed {
            return Turn::Passed;
        }
        if self.versions.held_back(&actor.spec).is_some() && !is_changed {
            return Turn::Stays(format!("the new code of `{}` has failed", actor.spec.class));
        }
        if !incarnation.machine.is_serving() {
            return if incarnation.machine.is_ordered() { Turn::Passed } else { Turn::NotYet };
        }
        let process = incarnation.process();
        if is_respecified || actor.spec.reload == Reload::Restart || incarnation.is_function {
            if actor.has_no_arguments {
                return Turn::Stays(NO_ARGUMENTS.into());
            }
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
        for timer in self.members.incarnation_mut(id).map(Incarnation::process_ended).into_iter().flatten() {
            self.timers.cancel(timer);
        }
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

    /// Launches the next process of an incarnation, with the code that its class is to run.
    fn launch_with_new_code(&mut self, id: ActorId, state: Option<State>, runs_init: bool, commands: Vec<Command>) {
        let Some(actor) = self.members.actor(id) else { return };
        let (Some(process), Some(before)) = (actor.process(), self.next_code(id)) else { return };
        let code = self.code_of(&actor.spec);
        let made = self.all_it_made(id, process.pid);
        // Whoever takes its state along starts over afterwards to take its new spec.
        let respecified = self.versions.under_way.as_mut().map(|it| &mut it.respecified);
        let spec = respecified.filter(|_| state.is_none()).and_then(|it| it.remove(&id));
        if let Some(under_way) = &mut self.versions.under_way {
            under_way.reoptioned.remove(&id);
        }
        let Some(incarnation) = self.members.incarnation_mut(id) else { return };
        let version = incarnation.version;
        let owed = incarnation.owed().clone();
        let traps_exits = incarnation.traps_exits;
        let mut earlier = incarnation.before.take();
        let timer = earlier.as_mut().and_then(|earlier| earlier.timer.take());
        incarnation.before = Some(Before {
            version,
            code: before,
            state: state.clone(),
            runs_init,
            spec,
            handled: 0,
            timer: None,
            made,
            owed,
            traps_exits,
            linked: Vec::new(),
            cancelled: Vec::new(),
            earlier: earlier.map(Before::into_earlier),
        });
        self.timers.cancel(timer);
        self.runs(id, code);
        // Code that is the same has nothing to bring up to date.
        let version = if before.digest == code.digest { code.version } else { version };
        self.next_process(id, state.map(|state| (state, version)), runs_init, commands);
    }

    /// A process cannot hand over its state, and serves again. The actor starts over instead, unless a hook has failed.
    pub(super) fn cannot_move(&mut self, process: ProcessId, why: String, is_failure: bool) {
        let Some(id) = self.members.serving(process).map(|actor| actor.id) else { return };
        let Some(incarnation) = self.members.incarnation_mut(id) else { return };
        let Some(commands) = incarnation.machine.cannot_move() else { return };
        self.obey(id, commands);
        let has_arguments = self.members.actor(id).is_some_and(|actor| !actor.has_no_arguments);
        if is_failure {
            self.complete(id, |_, _| Fate::Failed { what: Failure::OldCode, why });
        } else if !has_arguments {
            self.complete(id, |_, _| Fate::Stays { why: format!("{why}; and {NO_ARGUMENTS}") });
        } else {
            if let Some(moving) = self.moving_mut(id) {
                moving.starts_over = Some(StartsOver::Because(why));
            }
            self.order_to_start_over(id, process);
        }
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
        let code = incarnation.code;
        if incarnation.before.take_if(|before| before.spec.is_some() && before.code.digest == code.digest).is_some() {
            // Its new arguments have proved themselves, and its code is as it was.
            incarnation.machine.set_on_probation(false);
        }
        if let Some(before) = &mut incarnation.before
            && before.timer.is_none()
        {
            before.timer = Some(self.timers.set(now + time, Due::ProbationOver(process.pid)));
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
        let Probation { time, .. } = self.versions.options.probation;
        let Some(incarnation) = self.members.incarnation_mut(id) else { return };
        let process = incarnation.process();
        let failed = incarnation.code;
        let Some(mut before) = incarnation.before.take() else { return };
        incarnation.version = before.version;
        incarnation.before = before.earlier.take().map(|earlier| *earlier);
        incarnation.machine.set_on_probation(incarnation.before.is_some());
        if let Some(before) = &mut incarnation.before {
            before.timer = Some(self.timers.set(self.now + time, Due::ProbationOver(process.pid)));
        }
        let asked = incarnation.asked().to_vec();
        self.runs(id, before.code);
        self.restore_what_was_made_before(id, process.pid);
        self.restore(id, process.pid, &mut before);
        self.actions.push_back(Action::GoOn(process));
        self.has_failed(id, failed, failure);
        for message in &asked {
            self.hand_to_process(process, message);
        }
        self.obey(id, commands);
        self.got_on(process);
        self.watch(id);
        self.pump(id);
    }

    /// New code has failed on probation: another process goes on with the code and the state before.
    pub(super) fn is_undone(&mut self, id: ActorId, failure: &Arc<Certificate>, commands: Vec<Command>) {
        let Some(incarnation) = self.members.incarnation_mut(id) else { return };
        let Some(mut before) = incarnation.before.take() else { return };
        let pid = incarnation.process().pid;
        let failed = incarnation.code;
        incarnation.before = before.earlier.take().map(|earlier| *earlier);
        incarnation.machine.set_on_probation(incarnation.before.is_some());
        // The state before knows nothing of what the new code has made and put off.
        let unknown = incarnation.take_owed_since(&before.owed);
        self.restore(id, pid, &mut before);
        let Before { code, state, runs_init, spec, timer, made, .. } = before;
        if let (Some(spec), Some(actor)) = (spec, self.members.actor_mut(id)) {
            let refused = std::mem::replace(&mut actor.spec, spec);
            let digest = self.versions.digest(&refused);
            self.versions.refused.insert(id, (refused, digest));
        }
        self.timers.cancel(timer);
        self.runs(id, code);
        self.take_back_since(id, pid, &made);
        for call in unknown {
            self.fail_call(call, CallFailure::Died { certificate: failure.clone(), begun: true });
        }
        self.has_failed(id, failed, failure);
        self.next_process(id, state.map(|state| (state, code.version)), runs_init, commands);
        self.tell_needed();
    }

    /// Links that the new code has made are taken back, and timers that it has cancelled are set again.
    fn restore(&mut self, id: ActorId, pid: Pid, before: &mut Before) {
        std::mem::take(&mut before.linked).into_iter().for_each(|other| self.links.unlink(pid, other));
        if let Some(incarnation) = self.members.incarnation_mut(id) {
            incarnation.traps_exits = before.traps_exits;
        }
        for (number, mut alarm) in std::mem::take(&mut before.cancelled) {
            alarm.key = self.timers.set(alarm.key.0.max(self.now), Due::Alarm(number));
            self.alarms.insert(number, alarm);
        }
    }

    /// Where a rollback leads.
    pub(super) fn goes_back_to(&self, id: ActorId) -> Option<Next> {
        let before = self.members.actor(id)?.incarnation()?.before.as_ref()?;
        Some(Next::Undone { to: before.code.version, lost: before.handled, has_state: before.state.is_some() })
    }

    /// Code of a class has failed, and the actor runs what was before. If it was the newest code, no other actor of that
    /// class moves to it; else the actor moves on to the newest.
    fn has_failed(&mut self, id: ActorId, failed: Code, failure: &Certificate) {
        let Some(actor) = self.members.actor(id) else { return };
        let Some(code) = actor.incarnation().map(|incarnation| incarnation.code) else { return };
        let spec = actor.spec.clone();
        let newest = self.versions.digest(&spec);
        let is_newest = failed.digest == newest;
        self.versions.note_failed(&spec.class, failed.digest);
        // Code that has proved itself is not bad for having failed later.
        self.versions.failed.retain(|(class, digest)| *class != spec.class || *digest != code.digest);
        let key = held(&spec);
        match self.versions.held_back.get_mut(&key) {
            _ if code.digest == newest => drop(self.versions.held_back.remove(&key)),
            Some(held) if held.digest == failed.digest => *held = code,
            Some(_) => {}
            None if is_newest => drop(self.versions.held_back.insert(key, code)),
            None => {
                let under_way = self.versions.under_way.get_or_insert_default();
                under_way.moving.remove(&id);
                if !under_way.waiting.contains(&id) {
                    under_way.waiting.push_back(id);
                }
                return;
            }
        }
        let mut why = match &failure.reason {
            ExitReason::StartTimeout => {
                "it did not take over within `start_timeout`, or 10 s if `init` does not run".into()
            }
            reason => why_of(reason),
        };
        if !failure.stacks.is_empty() {
            // It hung: the reason alone does not say where.
            why = format!("{why}\n{}", failure.stacks);
        }
        self.complete(id, |_, _| Fate::Failed { what: Failure::NewCode, why });
    }

    /// An actor has handled messages, which count towards the end of its probation.
    pub(super) fn count_on_probation(&mut self, id: ActorId, by: u64) {
        let most = self.versions.options.probation.messages;
        let Some(incarnation) = self.members.incarnation_mut(id) else { return };
        let Some(before) = &mut incarnation.before else { return };
        before.handled += by;
        if before.handled >= most {
            let pid = incarnation.process().pid;
            self.probation_over(pid);
        }
    }

    /// The probation of new code is over.
    pub(super) fn probation_over(&mut self, pid: Pid) {
        let Some(id) = self.members.living(pid) else { return };
        let Some(incarnation) = self.members.incarnation_mut(id) else { return };
        incarnation.machine.set_on_probation(false);
        let timer = incarnation.before.take().and_then(|before| before.timer);
        self.timers.cancel(timer);
        self.tell_needed();
    }

    /// An incarnation has ended: there is nothing left to roll back.
    pub(super) fn forget_before(&mut self, id: ActorId, reason: &ExitReason, incarnation: &mut Incarnation) {
        if !self.shutdown.is_stopping() {
            let why = || Some(format!("it ended as it was to move: {reason}"));
            self.complete(id, |_, _| Fate::StartedOver { still_us: 0, why: why() });
        }
        if let Some(kept) = incarnation.machine.take_kept() {
            self.actions.push_back(Action::Kill(kept));
        }
        let before = incarnation.before.take();
        if before.is_some() || incarnation.is_behind {
            self.timers.cancel(before.and_then(|before| before.timer));
            self.tell_needed();
        }
    }

    /// Other versions may be needed from now on: the shell is told when the current event has been handled.
    fn tell_needed(&mut self) {
        self.versions.is_stale = true;
    }

    /// Tells the shell which versions may still be needed, if that has changed.
    pub(super) fn tell_what_is_needed(&mut self) {
        if !std::mem::take(&mut self.versions.is_stale) {
            return;
        }
        let mut needed: BTreeSet<Version> = BTreeSet::from([self.versions.current]);
        needed.extend(self.versions.held_back.values().map(|code| code.version));
        for actor in self.members.actors() {
            let Some(incarnation) = actor.incarnation() else { continue };
            if incarnation.machine.is_starting() || incarnation.is_behind {
                needed.insert(incarnation.code.version);
            }
            let before = std::iter::successors(incarnation.before.as_ref(), |before| before.earlier.as_deref());
            needed.extend(before.map(|before| before.code.version));
        }
        let needed: Vec<Version> = needed.into_iter().collect();
        if needed != self.versions.needed {
            self.versions.needed.clone_from(&needed);
            self.actions.push_back(Action::Needed(needed));
        }
    }
}

/// How long the exit hooks of a process may take after its successor has taken over.
const LEAVES_WITHIN: Duration = Duration::from_secs(5);

/// One change for each actor: what has happened last. One that has gone and come was declared otherwise.
fn summed_up(changes: Vec<Change>) -> Vec<Change> {
    let mut by_actor: BTreeMap<String, Change> = BTreeMap::new();
    for mut change in changes {
        let before = by_actor.get(&change.actor).map(|before| &before.fate);
        if matches!((before, &change.fate), (Some(Fate::Removed), Fate::Added)) {
            change.fate = Fate::Respecified;
        }
        by_actor.insert(change.actor.clone(), change);
    }
    by_actor.into_values().collect()
}

const NO_ARGUMENTS: &str =
    "it cannot start over: it is temporary, and its arguments, which are larger than 16 KiB, were not kept";

/// Why something has failed, with the traceback if there is one.
pub(super) fn why_of(reason: &ExitReason) -> String {
    match reason {
        ExitReason::Exception(raised) if !raised.traceback.is_empty() => raised.traceback.clone(),
        reason => reason.to_string(),
    }
}

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
