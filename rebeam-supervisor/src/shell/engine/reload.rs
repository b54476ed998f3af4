//! Loading a new version of the application's code.
//!
//! A zygote for the new version is started beside the one in use. When it has imported the application, the core moves the
//! actors whose code has changed. Until then no actor is affected, and a newer request cancels an older one.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Instant;

use rebeam_core::Event;
use rebeam_core::event::{Changed, NewCode};
use rebeam_core::spec;
use rebeam_protocol::outside::{Answer, Fate, Reloaded};
use rebeam_protocol::spec::{ChildSpec, SupervisorSpec};
use rebeam_protocol::zygote::{FromZygote, LoadError, LoadErrorKind, Module, ToZygote};
use rebeam_sys::memory::create_empty;
use tokio::sync::{Mutex, oneshot};

use super::{Engine, Node};
use crate::shell::service::{Frames, Process, Service};
use crate::shell::versions::{self, Code};
use crate::shell::zygote::{self, Base};

/// Why there is to be a new version.
#[derive(Clone, Debug, Default)]
pub(crate) struct Trigger {
    /// Changed files that belong to the application and are not modules: all actors move.
    pub(crate) files: Vec<PathBuf>,
    /// Whether it was requested by hand, rather than by a save.
    pub(crate) is_asked_for: bool,
}

/// What the file watcher is told.
#[derive(Debug)]
pub(crate) enum Import {
    /// New code is loaded: the files of all its modules.
    Loaded(Vec<PathBuf>),
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
    /// The memory for its code.
    memory: Option<OwnedFd>,
    attempts: u64,
    is_loading: bool,
    /// What was requested since the current import began.
    next: Option<Trigger>,
    /// Those who wait for an import, and those who wait for actors to move.
    askers: Vec<oneshot::Sender<Answer>>,
    askers_of_moves: Vec<oneshot::Sender<Answer>>,
    /// When the current reload was requested, and the files that have changed.
    since: Option<(Instant, Vec<PathBuf>)>,
    /// Digests of versions that have failed.
    bad: Vec<u64>,
    /// The digest of the current version.
    digest: u64,
    /// Whether the hint at `preload` was given.
    has_hinted: bool,
    /// Tells the file watcher, if there is one.
    watcher: Option<Rc<dyn Fn(Import)>>,
}

struct Coming {
    /// The number of this attempt.
    attempt: u64,
    zygote: Service,
}

/// What a zygote says of new code.
struct Loaded {
    tree: SupervisorSpec,
    gateway: ChildSpec,
    unforkable: Option<String>,
    modules: Vec<Module>,
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
        engine.reloading.askers.push(sender);
        let next = engine.reloading.next.get_or_insert_default();
        next.files.extend(trigger.files);
        next.is_asked_for |= trigger.is_asked_for;
        // What is being imported is older than this.
        if let Some(coming) = &engine.reloading.coming {
            coming.zygote.kill();
        }
        if !std::mem::replace(&mut engine.reloading.is_loading, true) {
            tokio::task::spawn_local(self.clone().load());
        }
        receiver
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
            self.with(|engine| engine.end_loading(&trigger, attempt));
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
        let attempt = {
            let mut engine = self.0.borrow_mut();
            engine.reloading.attempts += 1;
            let attempt = engine.reloading.attempts;
            zygote::print_output(&process, &engine.printer, None);
            let mut zygote = zygote::service();
            zygote.started(process);
            let is_overtaken = engine.reloading.next.is_some();
            if is_overtaken {
                zygote.kill();
            }
            engine.reloading.coming = Some(Coming { attempt, zygote });
            engine.reloading.memory = Some(memory);
            attempt
        };
        loop {
            let message = frames.next::<FromZygote>().await?.map(|(message, _)| message);
            let engine = self.0.borrow_mut();
            let is_ours = engine.reloading.coming.as_ref().is_some_and(|coming| coming.attempt == attempt);
            if !is_ours || engine.reloading.next.is_some() || engine.life.is_stopping {
                return Ok(Attempt::Overtaken);
            }
            match message {
                Some(FromZygote::Ready { .. }) => {
                    let target = engine.setup.target.clone();
                    if let Some(process) = engine.reloading.coming.as_ref().and_then(|it| it.zygote.process()) {
                        process.send(&ToZygote::Load(target), &[])?;
                    }
                }
                Some(FromZygote::Loaded { tree, gateway, unforkable, modules, slow }) => {
                    let loaded = Loaded { tree: *tree, gateway: *gateway, unforkable, modules, slow };
                    return Ok(Attempt::Loaded(Box::new(loaded), frames));
                }
                Some(FromZygote::LoadFailed(error)) => return Ok(Attempt::Failed(error)),
                Some(_) => {}
                None => {
                    let message = "the interpreter ended while it imported the new code".into();
                    let hint = Some("what it wrote is above; does the application exit or crash on import?".into());
                    return Ok(Attempt::Failed(LoadError {
                        kind: LoadErrorKind::Raised,
                        message,
                        hint,
                        traceback: None,
                    }));
                }
            }
        }
    }

    /// Starts a zygote: a fork of the base, or a fresh interpreter.
    async fn new_zygote(&self, memory: &OwnedFd) -> std::io::Result<Process> {
        let base = self.0.borrow().reloading.base.clone();
        if let Some(base) = base {
            self.0.borrow_mut().reloading.is_forking = true;
            let forked = base.lock().await.fork(memory.as_fd()).await;
            let mut engine = self.0.borrow_mut();
            engine.reloading.is_forking = false;
            match forked {
                Ok(process) => return Ok(process),
                Err(error) => {
                    engine.printer.warn(&format!("the new code is imported from scratch: {error}"));
                    engine.reloading.base = None;
                }
            }
        }
        let engine = self.0.borrow();
        let inherited = [engine.ledger.memory(), memory.as_fd()];
        zygote::start(&engine.setup.python, &engine.setup.directory, inherited)
    }
}

impl Engine {
    fn begin_loading(&mut self) -> Option<Trigger> {
        let next = self.reloading.next.take().filter(|_| !self.life.is_stopping);
        match &next {
            Some(_) => {
                let since = self.reloading.since.take().map_or_else(Instant::now, |(since, _)| since);
                self.reloading.since = Some((since, Vec::new()));
            }
            None => self.reloading.is_loading = false,
        }
        next
    }

    fn end_loading(&mut self, trigger: &Trigger, attempt: Attempt) {
        let coming = self.reloading.coming.take();
        let memory = self.reloading.memory.take();
        let dismiss = |coming: Option<Coming>| {
            if let Some(mut coming) = coming {
                coming.zygote.retire();
            }
        };
        match attempt {
            Attempt::Overtaken => dismiss(coming),
            Attempt::Failed(error) => {
                dismiss(coming);
                self.not_reloaded(error);
            }
            Attempt::Loaded(loaded, frames) => match (coming, memory) {
                (Some(coming), Some(memory)) => self.take_new_code(trigger, coming, memory, *loaded, frames),
                (coming, _) => dismiss(coming),
            },
        }
    }

    fn not_reloaded(&mut self, error: LoadError) {
        self.reloading.since = None;
        // First, since whoever reads the error may save the fix at once.
        self.tell_watcher(Import::Failed);
        self.printer.not_reloaded(&error, self.versions.current());
        answer(&mut self.reloading.askers, &Answer::NotReloaded(error));
    }

    /// New code is imported: tells the core, unless nothing has changed.
    fn take_new_code(
        &mut self,
        trigger: &Trigger,
        mut coming: Coming,
        memory: OwnedFd,
        loaded: Loaded,
        frames: Frames,
    ) {
        let Loaded { tree, gateway, unforkable, modules, slow } = loaded;
        self.hint_at_preload(&slow);
        let old = &self.versions.code(self.versions.current()).modules;
        let mut difference = versions::difference(old, &modules);
        if !trigger.files.is_empty() {
            difference.changed = Changed::All;
            difference.files.extend(trigger.files.iter().cloned());
        }
        let digest = versions::digest(&modules);
        let has_failed = self.reloading.bad.contains(&digest);
        if has_failed && trigger.is_asked_for {
            // Classes that were held back try again.
            difference.changed = Changed::All;
        }
        let is_known_bad = has_failed && trigger.files.is_empty() && !trigger.is_asked_for;
        if is_known_bad || (difference.files.is_empty() && difference.changed != Changed::All) {
            coming.zygote.retire();
            self.reloading.since = None;
            self.tell_watcher_modules();
            if is_known_bad {
                self.printer.warn(
                    "this code has failed before, and is not tried again by itself: save other code, or `rebeam reload`",
                );
            }
            return answer(&mut self.reloading.askers, &Answer::Reloaded(None));
        }
        if let Err(error) = spec::check(&tree) {
            coming.zygote.retire();
            return self.not_reloaded(LoadError {
                kind: LoadErrorKind::Usage,
                message: error.to_string(),
                hint: Some(error.hint()),
                traceback: None,
            });
        }
        let version = self.versions.next();
        let Coming { mut zygote, .. } = coming;
        match unforkable {
            None => zygote.is_up(Instant::now()),
            Some(reason) => {
                // Not again if the version before could not be forked either.
                if self.versions.code(self.versions.current()).zygote.ready().is_some() {
                    self.printer.unforkable(&reason);
                }
                zygote.retire();
            }
        }
        self.discard_standby();
        self.versions.add(version, Code { memory, zygote, modules });
        self.reloading.digest = digest;
        if let Some((_, files)) = &mut self.reloading.since {
            files.extend(difference.files);
        }
        self.tell_watcher_modules();
        // A reload that is still under way ends with this one.
        let askers = std::mem::take(&mut self.reloading.askers);
        self.reloading.askers_of_moves.extend(askers);
        self.wants_standby = true;
        if let Some(node) = self.me.upgrade().map(Node) {
            tokio::task::spawn_local(node.hear_zygote(version, frames));
        }
        let new = NewCode { version, tree, gateway: Some(gateway), changed: difference.changed };
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
        let (since, files) = self.reloading.since.take().unwrap_or_else(|| (Instant::now(), Vec::new()));
        if reloaded.changes.iter().any(|change| matches!(change.fate, Fate::Failed { .. })) {
            self.note_bad();
        }
        let files: Vec<PathBuf> =
            files.iter().map(|path| path.strip_prefix(&self.setup.directory).unwrap_or(path).to_owned()).collect();
        if !self.life.is_stopping {
            self.printer.reloaded(&reloaded, &files, since.elapsed());
        }
        answer(&mut self.reloading.askers_of_moves, &Answer::Reloaded(Some(reloaded)));
    }

    /// The current version has failed.
    pub(super) fn note_bad(&mut self) {
        let digest = self.reloading.digest;
        if !self.reloading.bad.contains(&digest) {
            self.reloading.bad.push(digest);
            let surplus = self.reloading.bad.len().saturating_sub(MOST_BAD);
            self.reloading.bad.drain(..surplus);
        }
    }

    /// Tells the watcher which modules are loaded.
    fn tell_watcher_modules(&self) {
        let modules = &self.versions.code(self.versions.current()).modules;
        let files = modules.iter().filter(|it| it.is_loaded).map(versions::path_of).collect();
        self.tell_watcher(Import::Loaded(files));
    }

    fn tell_watcher(&self, import: Import) {
        if let Some(tell) = &self.reloading.watcher {
            tell(import);
        }
    }
}

fn answer(askers: &mut Vec<oneshot::Sender<Answer>>, answer: &Answer) {
    for asker in std::mem::take(askers) {
        let _ = asker.send(answer.clone());
    }
}

/// How many failed versions are remembered.
const MOST_BAD: usize = 100;
