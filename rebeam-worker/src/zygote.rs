//! The zygote: a warm interpreter with one thread that imports the application once and forks workers on request.
//!
//! It never runs a callback of an actor, and nothing depends on its health: the workers are its siblings, not its
//! children (see [`rebeam_sys::fork`]), and a dead zygote is replaced. Where code is reloaded, a *base* that has imported
//! what does not change is forked into a zygote for each version.

use std::ffi::{CStr, OsStr};
use std::io;
use std::os::fd::{AsFd, IntoRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;

use nix::unistd::{Pid, dup2_stderr, dup2_stdout, setpgid, setsid};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use rebeam_protocol::frame::MAX_FRAME;
use rebeam_protocol::handshake::VERSION;
use rebeam_protocol::zygote::{Fork, FromZygote, LoadError, LoadErrorKind, Module, Source, Target, ToZygote};
use rebeam_sys::fork::{Hooks, Side, fork_as_sibling, fork_twice};
use rebeam_sys::frames::{self, FrameReader};
use rebeam_sys::process;

use crate::convert;
use crate::spec;

/// Descriptors of a fork request: channel, status page, lifeline, stdout, stderr.
const FORK_FDS: usize = 5;

/// What `ps` and `top` show of them, as they show an actor by its name.
const BASE: &CStr = c"rebeam-base";
const ZYGOTE: &CStr = c"rebeam-zygote";

/// What a new worker is handed by the zygote.
pub(crate) struct Birth {
    pub(crate) channel: OwnedFd,
    pub(crate) page: OwnedFd,
    pub(crate) lifeline: OwnedFd,
}

/// Serves the supervisor until that has said `End` or is gone (`None`), or until this process is a new worker. The
/// application's code is kept in the memory behind the descriptor `code`.
pub(crate) fn serve(
    py: Python<'_>,
    mut control: OwnedFd,
    mut lifeline: OwnedFd,
    mut code: RawFd,
) -> PyResult<Option<Birth>> {
    process::tie_to(&lifeline)?;
    let mut reader = FrameReader::new(MAX_FRAME);
    let hooks = PythonHooks { _attached: py };
    let app = py.import("rebeam._app")?;
    send(&control, &FromZygote::Ready { version: VERSION })?;
    let (mut must_fork_twice, mut may_have_threads) = (false, false);
    loop {
        let Some((message, fds)) = frames::read_one(control.as_fd(), &mut reader)? else { return Ok(None) };
        match message {
            ToZygote::Load(ref target) => {
                may_have_threads = target.fork == Fork::Always;
                let answer = match load(&app, target, code) {
                    Ok((answer, twice)) => {
                        must_fork_twice = twice;
                        answer
                    }
                    Err(error) => FromZygote::LoadFailed(load_error(&app, &error)?),
                };
                send(&control, &answer)?;
                // First all that is not needed goes, so that no worker has to tidy it up.
                drop((answer, message));
                app.call_method0("freeze")?;
            }
            ToZygote::Preload(modules) => {
                let _ = nix::sys::prctl::set_name(BASE);
                let loaded = app.call_method1("preload", (modules,));
                let answer = match loaded.and_then(|it| it.extract::<(Option<String>, bool)>()) {
                    Ok((unforkable, twice)) => {
                        must_fork_twice = twice;
                        FromZygote::Preloaded { unforkable }
                    }
                    Err(error) => FromZygote::LoadFailed(load_error(&app, &error)?),
                };
                app.call_method0("freeze")?;
                send(&control, &answer)?;
            }
            ToZygote::ForkZygote { request } => {
                let Ok([new_control, new_lifeline, new_code, stdout, stderr]) = <[OwnedFd; FORK_FDS]>::try_from(fds)
                else {
                    let error = format!("a fork comes with {FORK_FDS} descriptors");
                    send(&control, &FromZygote::ForkFailed { request, error })?;
                    continue;
                };
                let side = if must_fork_twice { fork_twice(&hooks) } else { fork_as_sibling(&hooks) };
                match side {
                    Ok(Side::Child) => {
                        control = new_control;
                        lifeline = new_lifeline;
                        let base_code = std::mem::replace(&mut code, new_code.into_raw_fd());
                        let _ = nix::unistd::close(base_code);
                        reader = FrameReader::new(MAX_FRAME);
                        // A service process leads a session of its own.
                        let is_set_up = setsid().and_then(|_| dup2_stdout(&stdout)).and_then(|()| dup2_stderr(&stderr));
                        is_set_up.map_err(io::Error::from)?;
                        process::tie_to(&lifeline)?;
                        let _ = nix::sys::prctl::set_name(ZYGOTE);
                        app.call_method1("become_zygote", (code,))?;
                        send(&control, &FromZygote::Ready { version: VERSION })?;
                    }
                    Ok(Side::Parent(os_pid)) => send(&control, &FromZygote::Forked { request, os_pid })?,
                    Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                        send(&control, &FromZygote::Unforkable { request, reason: error.to_string() })?;
                    }
                    Err(error) => {
                        send(&control, &FromZygote::ForkFailed { request, error: error.to_string() })?;
                    }
                }
            }
            ToZygote::End => {
                // Its end is to be that of the process.
                let _ = lifeline.into_raw_fd();
                return Ok(None);
            }
            ToZygote::Fork { request } => {
                let Ok([channel, page, own_lifeline, stdout, stderr]) = <[OwnedFd; FORK_FDS]>::try_from(fds) else {
                    let error = format!("a fork comes with {FORK_FDS} descriptors");
                    send(&control, &FromZygote::ForkFailed { request, error })?;
                    continue;
                };
                let fork = || if must_fork_twice { fork_twice(&hooks) } else { fork_as_sibling(&hooks) };
                let side = match fork() {
                    Err(error) if error.kind() == io::ErrorKind::Unsupported && may_have_threads => fork_twice(&hooks),
                    side => side,
                };
                match side {
                    Ok(Side::Child) => {
                        drop(control);
                        drop(lifeline);
                        // The process leads its own group from here on (MAP-06).
                        let is_set_up = setpgid(Pid::from_raw(0), Pid::from_raw(0))
                            .and_then(|()| dup2_stdout(&stdout))
                            .and_then(|()| dup2_stderr(&stderr));
                        is_set_up.map_err(io::Error::from)?;
                        return Ok(Some(Birth { channel, page, lifeline: own_lifeline }));
                    }
                    Ok(Side::Parent(os_pid)) => send(&control, &FromZygote::Forked { request, os_pid })?,
                    // A library has started a thread since the import: from now on this process cannot be forked.
                    Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                        let reason = format!("a thread was started after the import: {error}");
                        send(&control, &FromZygote::Unforkable { request, reason })?;
                    }
                    Err(error) => {
                        send(&control, &FromZygote::ForkFailed { request, error: error.to_string() })?;
                    }
                }
            }
        }
    }
}

fn send(control: &OwnedFd, message: &FromZygote) -> io::Result<()> {
    frames::write_one(control.as_fd(), message, &[])
}

/// Python's own hooks around a fork.
struct PythonHooks<'py> {
    /// They need the interpreter.
    _attached: Python<'py>,
}

impl Hooks for PythonHooks<'_> {
    fn before(&self) {
        // SAFETY: the interpreter is attached to this thread; one of the two below follows.
        unsafe { ffi::PyOS_BeforeFork() };
    }

    fn in_parent(&self) {
        // SAFETY: as above.
        unsafe { ffi::PyOS_AfterFork_Parent() };
    }

    fn in_child(&self) {
        // SAFETY: as above; this is the one thread of the new process.
        unsafe { ffi::PyOS_AfterFork_Child() };
    }
}

/// Imports the application and evaluates its tree; also says whether forks must run the C library's fork handlers.
fn load(app: &Bound<'_, PyModule>, target: &Target, code: RawFd) -> PyResult<(FromZygote, bool)> {
    let (kind, source) = match &target.source {
        Source::Module(name) => ("module", OsStr::new(name)),
        Source::File(path) => ("file", OsStr::from_bytes(path)),
    };
    let fork = match target.fork {
        Fork::Auto => "auto",
        Fork::Always => "always",
        Fork::Never => "never",
    };
    let loaded =
        app.call_method1("load", (kind, source, &target.attribute, &target.preload, fork, code, &target.programs))?;
    type Modules = (Vec<(String, Vec<u8>, u64, u64)>, Vec<String>);
    type Loaded<'py> = (Bound<'py, PyAny>, Bound<'py, PyAny>, Option<String>, bool, Modules, Vec<(String, f64)>);
    let (tree, gateway, unforkable, must_fork_twice, (modules, missing), slow): Loaded<'_> = loaded.extract()?;
    let module = |(name, path, own, closure)| Module { name, path, own, closure };
    let modules = modules.into_iter().map(module).collect();
    let slow = slow.into_iter().map(|(name, seconds)| (name, (seconds * 1000.0) as u64)).collect();
    let tree = Box::new(spec::supervisor(&tree, "root".into())?);
    let gateway = Box::new(spec::child(&gateway)?);
    Ok((FromZygote::Loaded { tree, gateway, unforkable, modules, missing, slow }, must_fork_twice))
}

fn load_error(app: &Bound<'_, PyModule>, error: &PyErr) -> PyResult<LoadError> {
    convert::set_traceback(app.py(), error);
    let fields = app.call_method1("describe_load_error", (error.value(app.py()),))?.cast_into::<PyDict>()?;
    let field = |name: &str| -> PyResult<Option<String>> { fields.get_item(name)?.map_or(Ok(None), |it| it.extract()) };
    let is_usage = field("kind")?.as_deref() == Some("usage");
    Ok(LoadError {
        kind: if is_usage { LoadErrorKind::Usage } else { LoadErrorKind::Raised },
        message: field("message")?.unwrap_or_default(),
        hint: field("hint")?,
        traceback: field("traceback")?,
    })
}
