//! A node from its first breath to its last: interpreter, application, tree, and the order of going.

use std::cell::RefCell;
use std::ffi::{OsStr, OsString};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rebeam_core::event::Status;
use rebeam_core::{Core, ReloadOptions};
use rebeam_protocol::certificate::Certificate;
use rebeam_protocol::exit::{ExitReason, signal_name};
use rebeam_protocol::id::NodeStart;
use rebeam_protocol::spec::{ChildSpec, SupervisorSpec};
use rebeam_protocol::zygote::{FromZygote, LoadError, LoadErrorKind, Module, Target, ToZygote};
use rebeam_sys::memory::create_empty;
use tokio::net::UnixListener;
use tokio::task::{JoinHandle, LocalSet};

use crate::printer::Printer;
use crate::shell::cgroup::Source;
use crate::shell::control;
use crate::shell::descriptors;
use crate::shell::engine::{Ended, Loading, Node, Services, Setup};
use crate::shell::http;
use crate::shell::keeper;
use crate::shell::launcher::Inherited;
use crate::shell::ledger::Ledger;
use crate::shell::memory;
use crate::shell::node_dir::{NodeDir, NodeDirError};
use crate::shell::otlp::{self, Exporter};
use crate::shell::reaper;
use crate::shell::room;
use crate::shell::sampler;
use crate::shell::service::{self, Process, Silent};
use crate::shell::service_manager;
use crate::shell::signals::{Hangup, Signals};
use crate::shell::versions::{self, Code, Versions};
use crate::shell::watch;
use crate::shell::zygote::{self, Base, BaseError};
use crate::view::crash::{plain_crash_block, words_of};
use crate::view::exit_code::ExitCode;
use crate::view::failure::Failure;
use crate::view::text::{duration, kib};

/// How a node is run, beside what it runs.
pub(crate) struct RunOptions {
    /// How long a stop may take before what is left is killed.
    pub(crate) grace: Duration,
    /// Whether somebody has said where its socket is to be.
    pub(crate) is_place_chosen: bool,
    /// What SIGHUP means.
    pub(crate) hangup: Hangup,
    /// An actor's name and method, to which the first order to stop is cast, instead of being carried out.
    pub(crate) drain: Option<(String, String)>,
    /// Where to tell of health and figures.
    pub(crate) http: Option<http::Options>,
    /// Where to send spans.
    pub(crate) otlp: Option<otlp::Options>,
    /// Which files have the application reloaded when they are saved, if any.
    pub(crate) reload: Option<(watch::Options, watch::Patterns)>,
    /// How actors go over to new code.
    pub(crate) reloading: ReloadOptions,
}

/// Runs a node until it has ended.
///
/// # Errors
/// Whatever kept it from coming up, or made it give up.
pub(crate) fn run(mut setup: Setup, node_dir: &Path, options: RunOptions, printer: &Printer) -> Result<(), Failure> {
    let started = Instant::now();
    setup.node_dir = node_dir.to_owned();
    let dir =
        NodeDir::take(node_dir, &setup.directory, options.is_place_chosen).map_err(|error| node_dir_failure(&error))?;
    let dir = Rc::new(RefCell::new(dir));
    prepare_process();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(sampler::THREADS)
        .thread_keep_alive(Duration::MAX)
        .build()
        .map_err(|error| Failure::start("failed to start the event loop").because(&error))?;
    let local = LocalSet::new();
    let result = local.block_on(&runtime, async {
        let io = |what: &'static str| move |error: std::io::Error| Failure::start(what).because(&error);
        let mut signals = Signals::catch().map_err(io("failed to catch signals"))?;
        let opened = dir.borrow_mut().listen();
        let listeners =
            opened.and_then(|it| it.into_iter().map(UnixListener::from_std).collect()).map_err(|error| {
                let socket = dir.borrow().socket();
                Failure::start(format!("failed to open the control socket `{socket}`")).because(&error)
            })?;
        sampler::prepare().await;
        let mark = mark_of(node_dir);
        let strangers = setup.strangers.clone();
        setup.python.mark = Some(mark.clone());
        let loading = Loading::default();
        let serving =
            tokio::task::spawn_local(control::serve(loading.clone(), Rc::downgrade(&dir), listeners, printer.clone()));
        if let Some(options) = options.http {
            let address = http::start(loading.clone(), options).map_err(io("failed to serve HTTP"))?;
            printer.say(&format!("health and metrics at http://{address}"));
        }
        let mut keeper = keeper::service();
        keeper.started(keeper::start(&mark).map_err(io("failed to start `rebeam-worker`"))?);
        keeper.is_up(Instant::now());
        let ledger = Ledger::new()
            .map_err(|error| io("failed to make shared memory")(error).hint("Re:BEAM needs Linux 5.1 or newer"))?;
        let code = create_empty(c"rebeam-code").map_err(io("failed to make shared memory"))?;
        let has_base = options.reload.as_ref().is_some_and(|_| !setup.python.is_batch());
        let first = tokio::select! {
            first = first_zygote(&setup, [ledger.memory(), code.as_fd()], has_base, printer) => first?,
            () = signals.stop_ordered(options.hangup, printer) => return Ok(()),
        };
        let FirstZygote { zygote, base } = first;
        let loaded = tokio::select! {
            loaded = load(&zygote, &setup, printer) => loaded,
            () = signals.stop_ordered(options.hangup, printer) => {
                end_zygote(zygote.os_pid);
                return Ok(());
            }
        };
        let Application { tree, gateway, unforkable, modules, missing } = match loaded {
            Ok(loaded) => loaded,
            Err(failure) => {
                zygote::dismiss(&zygote).await;
                return Err(failure);
            }
        };
        warn_of_room(&tree, printer);
        let declaration = versions::digest_of_tree(&tree);
        let at = NodeStart { node: 0, started: unix_now() };
        let mut core = match Core::new(tree, at) {
            Ok(core) => core,
            Err(error) => {
                zygote::dismiss(&zygote).await;
                return Err(Failure::usage(error.to_string()).hint(error.hint()));
            }
        };
        core.set_gateway(gateway);
        core.set_reload_options(options.reloading);
        core.set_modules(versions::digests(&modules));
        let mut service = zygote::service();
        match unforkable {
            None => {
                service.started(zygote);
                service.is_up(Instant::now());
            }
            Some(reason) => {
                printer.unforkable(&reason);
                zygote::dismiss(&zygote).await;
            }
        }
        setup.python.app = Some(app_variable(&setup.target));
        let versions = Versions::new(Code { memory: code, zygote: service, modules, missing, declaration });
        let services = Services { keeper, base };
        let node = Node::new(core, setup, printer.clone(), services, (ledger, versions), started);
        if let Some((options, patterns)) = options.reload {
            watch::watch(node.clone(), options, patterns, printer.clone()).await;
        }
        tokio::task::spawn_local(signals.attend(
            node.clone(),
            printer.clone(),
            options.grace,
            options.hangup,
            options.drain,
        ));
        loading.done(node.clone());
        if let Some(options) = options.otlp {
            let (share, began) = (options.share, SystemTime::now() - started.elapsed());
            let exporter = Exporter::start(options, began, printer.clone()).map_err(io("failed to send spans"))?;
            node.trace(exporter, share);
        }
        tokio::task::spawn_local(tell_service_manager(node.clone()));
        guard_memory(&node, printer);
        node.boot();
        let ended = node.ended().await;
        // Answers to whoever ordered the end are written before the sockets go.
        tokio::task::yield_now().await;
        if let Some(summary) = node.dead_letters() {
            printer.say(&summary);
        }
        node.finish_tracing().await;
        service_manager::finish();
        if matches!(ended, Ended::Clean) {
            printer.say(&format!("down after {}", duration(started.elapsed())));
        }
        node.end_zygote().await;
        // Everything is down. The keeper scans once more after our end, and then ends too.
        let known = node.keeper().into_iter().collect();
        reaper::kill_strays(&reaper::strays(&known, &strangers, &mark), &known);
        // The sockets go before the connections of those who wait for the end.
        serving.abort();
        tokio::task::yield_now().await;
        finish(ended)
    });
    // A client that waited for the end on the control socket may start the project again at once: first the lock goes.
    drop(dir);
    drop(local);
    // Not for readings of `/proc` that are under way.
    runtime.shutdown_background();
    result
}

fn finish(ended: Ended) -> Result<(), Failure> {
    let plain = |certificate: Option<Arc<Certificate>>| certificate.map(|it| plain_crash_block(&it, it.next));
    match ended {
        Ended::Clean => Ok(()),
        Ended::GaveUp(last) => {
            let failure = Failure::new(ExitCode::GaveUp, "the tree gave up: its restart limit is used up");
            // The whole certificate was printed when it happened.
            Err(match last {
                Some((last, next)) => failure
                    .cause(format!("`{}` died: {}; {}", last.actor, last.reason, words_of(next)))
                    .hint("`backoff=rebeam.Backoff(…)` of the actor leaves more time before it is started again")
                    .hint("`max_restarts=` and `max_seconds=` of its supervisor allow more"),
                None => failure,
            })
        }
        Ended::NotStarted { child, reason, certificate } => {
            let mut failure = Failure::start(format!("`{child}` did not start: {reason}"));
            if reason == ExitReason::StartTimeout {
                failure = failure
                    .hint("`init` has to return: what runs on is started there with `rebeam.background(…)`, or in a thread")
                    .hint("`start_timeout=` gives it more time");
            }
            Err(match plain(certificate) {
                Some(block) => failure.detail(block),
                None => failure,
            })
        }
    }
}

/// Says what of the tree may not fit.
fn warn_of_room(tree: &SupervisorSpec, printer: &Printer) {
    let (limits, needs) = (Source::default().limits(), room::Needs::of(tree));
    for shortfall in needs.shortfalls(&limits, descriptors::limit()) {
        printer.warn(&shortfall);
    }
    if let (Some(memory), Some(share)) = (&limits.memory, needs.share_kib(&limits)) {
        let (memory, share) = (kib(memory.value / 1024), kib(share));
        printer.say(&format!("{memory} of memory in all: {share} for each actor without a limit of its own"));
    }
}

/// Tells the service manager, as often as it asks for, that the loop turns, and how the node is.
async fn tell_service_manager(node: Node) {
    let Some(period) = service_manager::watchdog_period() else { return };
    loop {
        let health = node.health();
        service_manager::alive(match health.troubles.first() {
            Some(trouble) => format!("{} in trouble: {}: {}", health.troubles.len(), trouble.actor, trouble.detail),
            None => format!("{} actors", node.alive().len()),
        });
        tokio::time::sleep(period).await;
    }
}

/// Where there is a limit to the memory of the whole, watches it.
fn guard_memory(node: &Node, printer: &Printer) {
    if let Some((limit, group)) = Source::default().memory() {
        tokio::task::spawn_local(memory::guard(node.clone(), group, limit, printer.clone()));
    }
}

/// What the process must be before it has children.
fn prepare_process() {
    // Orphans of actors come to us, to be killed and reaped.
    let _ = nix::sys::prctl::set_child_subreaper(true);
    // Should memory run out, the kernel is to take an actor rather than us. Only the privileged may ask for that.
    let _ = std::fs::write("/proc/self/oom_score_adj", "-500");
    // Each actor takes several descriptors: take what the system lets us have.
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

fn end_zygote(os_pid: i32) {
    reaper::kill_group(os_pid);
    reaper::reap(os_pid);
}

/// What tells the processes of this run from those of every other, of the same project too: the keeper of a run that
/// has just ended may still be looking round when the next one starts.
fn mark_of(node_dir: &Path) -> OsString {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut mark = node_dir.as_os_str().to_owned();
    mark.push(format!("@{}.{}", std::process::id(), since.as_nanos()));
    mark
}

fn unix_now() -> u32 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as u32)
}

/// The application, for interpreters that have to import it themselves.
fn app_variable(target: &Target) -> OsString {
    use rebeam_protocol::zygote::Source;
    let (kind, source) = match &target.source {
        Source::Module(name) => ("module:", OsStr::new(name)),
        Source::File(path) => ("file:", OsStr::from_bytes(path)),
    };
    [OsStr::new(kind), source].into_iter().collect()
}

/// The first zygote, and what it was forked from.
struct FirstZygote {
    zygote: Process,
    base: Option<Base>,
}

/// Starts the first zygote: forked from a base that stays, if there is to be one.
async fn first_zygote(
    setup: &Setup,
    inherited: Inherited<'_>,
    has_base: bool,
    printer: &Printer,
) -> Result<FirstZygote, Failure> {
    let io = |error: std::io::Error| Failure::start("failed to start `rebeam-worker`").because(&error);
    if has_base {
        let preload = setup.target.preload.clone();
        let base = Base::start(&setup.python, &setup.directory, inherited, preload, printer).await;
        let base = base.map_err(|error| match error {
            BaseError::Io(error) => io(error),
            BaseError::Load(error) => load_failure(error),
        })?;
        if let Some(mut base) = base {
            let [_, code] = inherited;
            match base.fork(code).await {
                Ok(zygote) => return Ok(FirstZygote { zygote, base: Some(base) }),
                Err(_) => zygote::dismiss(&base.process).await,
            }
        }
    }
    let zygote = zygote::start(&setup.python, &setup.directory, inherited).map_err(io)?;
    Ok(FirstZygote { zygote, base: None })
}

/// What the zygote knows once it has imported the application.
struct Application {
    tree: SupervisorSpec,
    /// How the gateway of a client is started.
    gateway: ChildSpec,
    /// Why it must not be forked, if it must not.
    unforkable: Option<String>,
    /// The modules of the project.
    modules: Vec<Module>,
    /// Names that they import, and that are no modules of the project.
    missing: Vec<String>,
}

/// Has the zygote import the application.
async fn load(zygote: &Process, setup: &Setup, printer: &Printer) -> Result<Application, Failure> {
    let broken = |error: std::io::Error| Failure::start("failed to talk to the interpreter").because(&error);
    let silent = Rc::new(Silent::default());
    let output = service::print_output(zygote, "app", printer, Some(&silent));
    let mut frames = zygote.frames().map_err(broken)?;
    loop {
        let Some((message, _)) = frames.next::<FromZygote>().await.map_err(broken)? else {
            return Err(interpreter_failure(zygote, setup, &silent, output).await);
        };
        match message {
            FromZygote::Ready { version } if version != rebeam_protocol::handshake::VERSION => {
                return Err(Failure::start(format!(
                    "the `rebeam` package of `{}` speaks another version of the protocol ({version})",
                    setup.python.executable.display()
                ))
                .hint("`rebeam` and the package come in one wheel: install it again"));
            }
            FromZygote::Ready { .. } => {
                silent.is_up.set(true);
                zygote.send(&ToZygote::Load(setup.target.clone()), &[]).map_err(broken)?;
            }
            FromZygote::Loaded { tree, gateway, unforkable, modules, missing, .. } => {
                return Ok(Application { tree: *tree, gateway: *gateway, unforkable, modules, missing });
            }
            FromZygote::LoadFailed(error) => return Err(load_failure(error)),
            FromZygote::Forked { .. }
            | FromZygote::ForkFailed { .. }
            | FromZygote::Unforkable { .. }
            | FromZygote::Preloaded { .. } => {}
        }
    }
}

fn load_failure(error: LoadError) -> Failure {
    let code = match error.kind {
        LoadErrorKind::Usage => ExitCode::Usage,
        LoadErrorKind::Raised => ExitCode::StartFailed,
    };
    let mut failure = Failure::new(code, error.message);
    if let Some(traceback) = error.traceback {
        failure = failure.detail(traceback.trim_end().to_owned());
    }
    match error.hint {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}

/// The interpreter ended before it said anything, or while it imported the application.
async fn interpreter_failure(zygote: &Process, setup: &Setup, silent: &Silent, output: Vec<JoinHandle<()>>) -> Failure {
    let reaped = reaper::reap(zygote.os_pid);
    for reader in output {
        // They end with the pipes, which a stray child may hold open.
        let _ = tokio::time::timeout(Duration::from_secs(1), reader).await;
    }
    let lines = silent.lines.borrow_mut().take();
    let text = lines.join("\n");
    let python = setup.python.executable.display();
    if silent.is_up.get() {
        let how = match reaped.status {
            Status::Exited(code) => format!("with exit code {code}"),
            Status::Signalled(number) => format!("by {}", signal_name(number)),
        };
        return Failure::start(format!("the interpreter ended {how} while it imported the application"))
            .hint("what it wrote is above; does the application exit or crash on import?");
    }
    if text.contains("No module named 'rebeam'") {
        return Failure::start(format!("the Python `{python}` has no package `rebeam`"))
            .hint(format!("install it there: `{python} -m pip install rebeam`, or choose another with `--python`"));
    }
    let failure = Failure::start(match reaped.status {
        Status::Signalled(number) => {
            format!("the Python `{python}` was ended by {} as it started", signal_name(number))
        }
        Status::Exited(_) => format!("the Python `{python}` does not start"),
    });
    let failure = if text.is_empty() { failure } else { failure.detail(text) };
    failure.hint("choose another with `--python`, `REBEAM_PYTHON` or `python = \"…\"` in the configuration")
}

fn node_dir_failure(error: &NodeDirError) -> Failure {
    let hint = match error {
        NodeDirError::Taken { .. } => "look at it with `rebeam ps`, stop it with `rebeam down`",
        NodeDirError::NotOurs { .. } => "set `REBEAM_RUNTIME_DIR` to a directory of your own with mode 0700",
        NodeDirError::Io { .. } => "set `REBEAM_RUNTIME_DIR` to a directory that can be written to",
    };
    Failure::start(error.to_string()).because_of(std::error::Error::source(error)).hint(hint)
}
