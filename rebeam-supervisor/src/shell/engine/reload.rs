//! Loading a new version of the application's code.
//!
//! A zygote for the new version is started beside the one in use. When it has imported the application, the core moves the
//! actors whose code has changed. Until then no actor is affected, and a newer request cancels an older one.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

use rebeam_core::Event;
use rebeam_core::event::NewCode;
use rebeam_core::spec;
use rebeam_protocol::id::Version;
use rebeam_protocol::outside::{Answer, Reloaded};
use rebeam_protocol::spec::{ChildSpec, SupervisorSpec};
use rebeam_protocol::zygote::{FromZygote, LoadError, LoadErrorKind, Module, ToZygote};
use rebeam_sys::memory::create_empty;
use tokio::sync::{Mutex, oneshot};

use super::births::HANGS;
use super::{Engine, Node};
use crate::shell::reaper::{self, Reaped};
use crate::shell::service::{self, Frames, Process, Service};
use crate::shell::versions::{self, Code};
use crate::shell::zygote::{self, Base};

/// An import, or moves, that take longer than this are told of.
const LATE_IMPORT: Duration = Duration::from_secs(2);
const LATE_MOVES: Duration = Duration::from_secs(1);

/// Why there is to be a new version.
#[derive(Clone, Debug, Default)]
pub(crate) struct Trigger {
    /// Changed files that belong to the application and are not modules: all actors move.
    pub(crate) files: Vec<PathBuf>,
    /// Whether it was requested by hand, rather than by a save.
    pub(crate) is_asked_for: bool,
}

impl Trigger {
    fn add(&mut self, other: Trigger) {
        self.files.extend(other.files);
        self.is_asked_for |= other.is_asked_for;
    }
}

/// What the file watcher is told.
#[derive(Debug)]
pub(crate) enum Import {
    /// New code is loaded: the files of all its modules, imported or to be imported, and names that it imports and
    /// that are no modules of the project yet (`*`: whatever comes).
    Loaded { files: Vec<PathBuf>, missing: Vec<String> },
    /// New code could not be loaded.
    Failed,
}

/// The state of reloads.
#[derive(Default)]
pub(super) struct Reloading {
    /// The process that zygotes are forked from, if there is one.
    base: Option<Rc<Mutex<Base>>>,
    /// The process of the base.
    pub(super) base_os_pid: Option<i32>,
    /// Whether the base is forking a zygote whose process id is not known yet.
    pub(super) is_forking: bool,
    /// The version that is being imported.
    coming: Option<Coming>,
    is_loading: bool,
    /// What was requested since the current import began.
    next: Option<Trigger>,
    /// What was requested of imports that have failed or were cancelled.
    unused: Trigger,
    /// The reload whose code is being imported, and the one whose actors are moving.
    importing: Progress,
    moving: Progress,
    /// Whether the hint at `preload` was given.
    has_hinted: bool,
    /// Tells the file watcher, if there is one.
    watcher: Option<Rc<dyn Fn(Import)>>,
}

/// A version that is being imported.
struct Coming {
    zygote: Service,
    /// The memory for its code.
    memory: OwnedFd,
}

/// What is known of a reload until it is over.
#[derive(Default)]
struct Progress {
    since: Option<Instant>,
    /// The files that have changed.
    files: BTreeSet<PathBuf>,
    /// Those who wait for its outcome.
    askers: Vec<oneshot::Sender<Answer>>,
}

impl Progress {
    fn answer(self, answer: &Answer) {
        for asker in self.askers {
            let _ = asker.send(answer.clone());
        }
    }
}

/// What a zygote says of new code.
struct Loaded {
    tree: SupervisorSpec,
    gateway: ChildSpec,
    unforkable: Option<String>,
    modules: Vec<Module>,
    missing: Vec<String>,
    slow: Vec<(String, u64)>,
}

/// How an attempt to load new code ended.
enum Attempt {
    Loaded(Box<Loaded>, Frames),
    Failed(LoadError),
    /// A newer request has cancelled it, or the node is stopping.
    Overtaken,
}

impl Reloading {
    /// From now on zygotes are forked from this process.
    pub(super) fn set_base(&mut self, base: Base) {
        self.base_os_pid = Some(base.process.os_pid);
        self.base = Some(Rc::new(Mutex::new(base)));
    }

    /// The base, and the zygote that is importing new code.
    pub(super) fn os_pids(&self) -> impl Iterator<Item = i32> {
        let coming = self.coming.as_ref().and_then(|coming| coming.zygote.os_pid());
        self.base_os_pid.into_iter().chain(coming)
    }

    /// The base has ended: from now on, new versions start with a fresh interpreter.
    pub(super) fn base_died(&mut self) {
        self.base = None;
        self.base_os_pid = None;
    }

    /// Whether it was the zygote that is importing new code that has ended.
    pub(super) fn coming_died(&mut self, os_pid: i32, reaped: Reaped) -> bool {
        let coming = self.coming.as_mut().filter(|coming| coming.zygote.os_pid() == Some(os_pid));
        coming.is_some_and(|coming| coming.zygote.ended(reaped, Instant::now()).is_some())
    }
}

impl Node {
    /// Reloads the application. The answer comes when all actors have moved.
    pub(crate) fn reload(&self, trigger: Trigger) -> oneshot::Receiver<Answer> {
        let (sender, receiver) = oneshot::channel();
        let mut engine = self.0.borrow_mut();
        let refusal = match () {
            () if engine.setup.python.is_batch() => Some("a batch runs the code that it has begun with"),
            () if engine.life.is_stopping || engine.life.has_ended => Some("the node is stopping"),
            () if !engine.life.is_up => Some("the node is still starting"),
            () => None,
        };
        if let Some(refusal) = refusal {
            let _ = sender.send(Answer::Refused(refusal.into()));
            return receiver;
        }
        engine.reloading.importing.askers.push(sender);
        engine.reloading.next.get_or_insert_default().add(trigger);
        // What is being imported is older than this.
        if let Some(coming) = &engine.reloading.coming {
            coming.zygote.kill();
        }
        if !std::mem::replace(&mut engine.reloading.is_loading, true) {
            tokio::task::spawn_local(self.clone().load());
        }
        receiver
    }

    /// Whether the whole tree has started.
    pub(crate) fn is_up(&self) -> bool {
        self.0.borrow().life.is_up
    }

    /// Calls `tell` now, with the modules that are loaded, and whenever new code was loaded or could not be.
    pub(crate) fn watch_imports(&self, tell: impl Fn(Import) + 'static) {
        let mut engine = self.0.borrow_mut();
        engine.reloading.watcher = Some(Rc::new(tell));
        engine.tell_watcher_modules();
    }

    /// Works on requests until there are no more.
    async fn load(self) {
        loop {
            let Some(trigger) = self.0.borrow_mut().begin_loading() else { return };
            let attempt = self.attempt().await;
            self.with(|engine| engine.end_loading(trigger, attempt));
        }
    }

    /// Has a new zygote import the application.
    async fn attempt(&self) -> Attempt {
        match self.try_to_load().await {
            Ok(attempt) => attempt,
            Err(error) => Attempt::Failed(LoadError {
                kind: LoadErrorKind::Usage,
                message: format!("an interpreter for the new code could not be started: {error}"),
                hint: None,
                traceback: None,
            }),
        }
    }

    async fn try_to_load(&self) -> std::io::Result<Attempt> {
        let memory = create_empty(c"rebeam-code")?;
        let process = self.new_zygote(&memory).await?;
        let mut frames = process.frames()?;
        {
            let mut engine = self.0.borrow_mut();
            service::print_output(&process, "app", &engine.printer, None);
            let mut zygote = zygote::service();
            zygote.started(process);
            if engine.reloading.next.is_some() {
                zygote.kill();
            }
            engine.reloading.coming = Some(Coming { zygote, memory });
        }
        let mut is_late = std::pin::pin!(tokio::time::sleep(LATE_IMPORT));
        loop {
            let message = tokio::select! {
                message = frames.next::<FromZygote>() => message?.map(|(message, _)| message),
                () = &mut is_late, if !is_late.is_elapsed() => {
                    let engine = self.0.borrow();
                    engine.printer.say("the new code is being imported, and the old code goes on meanwhile");
                    continue;
                }
            };
            let engine = self.0.borrow();
            if engine.reloading.next.is_some() || engine.life.is_stopping {
                return Ok(Attempt::Overtaken);
            }
            let process = engine.reloading.coming.as_ref().and_then(|coming| coming.zygote.process());
            match (message, process) {
                (Some(FromZygote::Ready { .. }), Some(process)) => {
                    process.send(&ToZygote::Load(engine.setup.target.clone()), &[])?;
                }
                (Some(FromZygote::Loaded { tree, gateway, unforkable, modules, missing, slow }), Some(_)) => {
                    let loaded = Loaded { tree: *tree, gateway: *gateway, unforkable, modules, missing, slow };
                    return Ok(Attempt::Loaded(Box::new(loaded), frames));
                }
                (Some(FromZygote::LoadFailed(error)), _) => return Ok(Attempt::Failed(error)),
                (Some(_), Some(_)) => {}
                (None, _) | (_, None) => return Ok(Attempt::Failed(interpreter_ended())),
            }
        }
    }

    /// Starts a zygote: a fork of the base, or a fresh interpreter.
    async fn new_zygote(&self, memory: &OwnedFd) -> std::io::Result<Process> {
        let base = self.0.borrow().reloading.base.clone();
        if let Some(base) = base {
            self.0.borrow_mut().reloading.is_forking = true;
            let mut base = base.lock().await;
            let forked = tokio::time::timeout(HANGS, base.fork(memory.as_fd())).await;
            let mut engine = self.0.borrow_mut();
            engine.reloading.is_forking = false;
            let error = match forked {
                Ok(Ok(process)) => return Ok(process),
                Ok(Err(error)) => error.to_string(),
                Err(_) => "the process that is forked for it does not answer".into(),
            };
            engine.printer.warn(&format!("from now on, new code is imported from scratch: {error}"));
            engine.reloading.base = None;
            engine.reloading.base_os_pid.into_iter().for_each(reaper::kill_group);
        }
        let engine = self.0.borrow();
        let inherited = [engine.ledger.memory(), memory.as_fd()];
        zygote::start(&engine.setup.python, &engine.setup.directory, inherited)
    }

    /// Says for whom a reload waits, if it is not over soon.
    async fn say_if_late(self, version: Version) {
        tokio::time::sleep(LATE_MOVES).await;
        let engine = self.0.borrow();
        let busy = engine.core.reload_waits_for();
        if engine.versions.current() == version && !busy.is_empty() && !engine.life.is_stopping {
            engine.printer.reload_waits(version, &busy);
        }
    }
}

impl Engine {
    fn begin_loading(&mut self) -> Option<Trigger> {
        let mut next = self.reloading.next.take().filter(|_| !self.life.is_stopping);
        match &mut next {
            Some(next) => {
                next.add(std::mem::take(&mut self.reloading.unused));
                self.reloading.importing.since.get_or_insert_with(Instant::now);
            }
            None => self.reloading.is_loading = false,
        }
        next
    }

    fn end_loading(&mut self, trigger: Trigger, attempt: Attempt) {
        let Some(mut coming) = self.reloading.coming.take() else {
            if let Attempt::Failed(error) = attempt {
                self.not_reloaded(trigger, error);
            }
            return;
        };
        match attempt {
            Attempt::Overtaken => {
                coming.zygote.retire();
                self.reloading.unused.add(trigger);
            }
            Attempt::Failed(error) => {
                coming.zygote.retire();
                self.not_reloaded(trigger, error);
            }
            Attempt::Loaded(..) if coming.zygote.process().is_none() => self.not_reloaded(trigger, interpreter_ended()),
            Attempt::Loaded(loaded, frames) => match spec::check(&loaded.tree) {
                Ok(()) => self.take_new_code(&trigger, coming, *loaded, frames),
                Err(error) => {
                    coming.zygote.retire();
                    let error = LoadError {
                        kind: LoadErrorKind::Usage,
                        message: error.to_string(),
                        hint: Some(error.hint()),
                        traceback: None,
                    };
                    self.not_reloaded(trigger, error);
                }
            },
        }
    }

    fn not_reloaded(&mut self, trigger: Trigger, error: LoadError) {
        // Whoever has asked gets an answer now; files that have changed are not forgotten.
        self.reloading.unused.add(Trigger { is_asked_for: false, ..trigger });
        // First, since whoever reads the error may save the fix at once.
        self.tell_watcher(Import::Failed);
        self.printer.not_reloaded(&error, self.versions.current());
        std::mem::take(&mut self.reloading.importing).answer(&Answer::NotReloaded(error));
    }

    /// New code is imported: tells the core, unless nothing has changed.
    fn take_new_code(&mut self, trigger: &Trigger, coming: Coming, loaded: Loaded, frames: Frames) {
        let Loaded { tree, gateway, unforkable, modules, missing, slow } = loaded;
        let Coming { mut zygote, memory } = coming;
        self.hint_at_preload(&slow);
        let importing = std::mem::take(&mut self.reloading.importing);
        let mut files = versions::changed_files(self.versions.modules(), &modules);
        files.extend(trigger.files.iter().cloned());
        let retries = trigger.is_asked_for && self.core.is_anyone_behind();
        let declaration = versions::digest_of_tree(&tree);
        let is_declared_anew = trigger.is_asked_for && Some(declaration) != self.versions.declaration();
        if files.is_empty() && !retries && !is_declared_anew {
            zygote.retire();
            self.tell_watcher_modules();
            if self.reloading.moving.since.is_some() {
                // The last change is still under way.
                return self.reloading.moving.askers.extend(importing.askers);
            }
            return importing.answer(&Answer::Reloaded(None));
        }
        let version = self.versions.next();
        match unforkable {
            None => zygote.is_up(Instant::now()),
            Some(reason) => {
                // Not again if the version before could not be forked either.
                if self.versions.zygote(self.versions.current()).and_then(Service::ready).is_some() {
                    self.printer.unforkable(&reason);
                }
                zygote.retire();
            }
        }
        let digests = versions::digests(&modules);
        self.discard_standby();
        self.versions.add(version, Code { memory, zygote, modules, missing, declaration });
        // A reload that is still under way ends with this one.
        let moving = &mut self.reloading.moving;
        moving.since = importing.since;
        moving.files.extend(files);
        moving.askers.extend(importing.askers);
        self.tell_watcher_modules();
        self.wants_standby = true;
        if let Some(node) = self.me.upgrade().map(Node) {
            tokio::task::spawn_local(node.clone().hear_zygote(version, frames));
            tokio::task::spawn_local(node.say_if_late(version));
        }
        let moves_all = !trigger.files.is_empty();
        let new = NewCode { version, tree, gateway: Some(gateway), modules: digests, moves_all, retries };
        self.tell(Event::NewCode(Box::new(new)));
    }

    /// Says, once, which imports would be done before all versions if the project's file named them.
    fn hint_at_preload(&mut self, slow: &[(String, u64)]) {
        if slow.is_empty() || std::mem::replace(&mut self.reloading.has_hinted, true) {
            return;
        }
        let names: Vec<String> = slow.iter().map(|(name, _)| format!("\"{name}\"")).collect();
        let ms: u64 = slow.iter().map(|(_, ms)| ms).sum();
        self.printer.say(&format!(
            "hint: `preload = [{}]` in the project's file saves {ms} ms of every reload",
            names.join(", ")
        ));
    }

    /// All actors have moved, or will not.
    pub(super) fn reload_is_over(&mut self, reloaded: Reloaded) {
        let moving = std::mem::take(&mut self.reloading.moving);
        let relative = |path: &PathBuf| path.strip_prefix(&self.setup.directory).unwrap_or(path).to_owned();
        let files: Vec<PathBuf> = moving.files.iter().map(relative).collect();
        if !self.life.is_stopping {
            let took = moving.since.map(|since| since.elapsed()).unwrap_or_default();
            self.printer.reloaded(&reloaded, &files, took);
        }
        moving.answer(&Answer::Reloaded(Some(reloaded)));
    }

    /// Tells the watcher which modules there are.
    fn tell_watcher_modules(&self) {
        if self.reloading.watcher.is_some() {
            let files = self.versions.modules().iter().map(versions::path_of).collect();
            self.tell_watcher(Import::Loaded { files, missing: self.versions.missing().to_vec() });
        }
    }

    fn tell_watcher(&self, import: Import) {
        if let Some(tell) = &self.reloading.watcher {
            tell(import);
        }
    }
}

fn interpreter_ended() -> LoadError {
    LoadError {
        kind: LoadErrorKind::Raised,
        message: "the interpreter ended while it imported the new code".into(),
        hint: Some("what it wrote is above; does the application exit or crash on import?".into()),
        traceback: None,
    }
}
