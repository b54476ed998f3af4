//! Running an application: `up` for development, `run` for production. They differ in what they show, not in what they do.

use std::fs::File;
use std::io::{self, Read};
use std::net::TcpListener;
use std::os::fd::{FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::CommandFactory;
use nix::sys::signal::Signal;
use rebeam_core::{Probation, ReloadOptions};
use rebeam_protocol::frame::MAX_FRAME;
use rebeam_protocol::handshake::Secret;

use crate::cli::args::{self, Cli};
use crate::config::{self, DEFAULT_GRACE, LogFormat, Project, ProjectFile, WatchBy, WatchWord};
use crate::printer::Printer;
use crate::python;
use crate::shell::engine::Setup;
use crate::shell::http;
use crate::shell::launcher::PARENT;
use crate::shell::node::{self, RunOptions};
use crate::shell::node_dir;
use crate::shell::otlp;
use crate::shell::reaper::Strangers;
use crate::shell::signals::Hangup;
use crate::shell::watch;
use crate::view::exit_code::ExitCode;
use crate::view::failure::Failure;

/// How long a message may wait before a node is not ready, when nobody says otherwise.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// A script that has called `run` is not survived by what it runs: its end is an order to stop. Says whether there is one.
pub(super) fn go_with_parent() -> bool {
    let Some(parent) = std::env::var(PARENT).ok().and_then(|text| text.parse::<i32>().ok()) else { return false };
    let _ = nix::sys::prctl::set_pdeathsig(Signal::SIGTERM);
    if nix::unistd::getppid().as_raw() != parent {
        // It has ended already.
        let _ = nix::sys::signal::raise(Signal::SIGTERM);
    }
    true
}

/// `rebeam up`.
pub(super) fn up(up: &args::Up, project: &Project, runtime_dir: Option<&Path>, here: &Path) -> Result<(), Failure> {
    go_with_parent();
    let file = project.read()?;
    let setup = setup(&up.start, &file, project, here, "up")?;
    let mut service = service(&up.start, &file, runtime_dir, Hangup::Stop)?;
    service.reload = if up.no_reload { None } else { reload(&file, project)? };
    let (printer, rest) = Printer::human();
    let result = node::run(setup, &node_dir::path_for(&project.directory, runtime_dir), service, &printer);
    printer.finish(&rest);
    result
}

/// `rebeam run`.
pub(super) fn run(run: &args::Run, project: &Project, runtime_dir: Option<&Path>, here: &Path) -> Result<(), Failure> {
    go_with_parent();
    let prepared = check_environment().and_then(|()| {
        let file = project.read()?;
        let setup = setup(&run.start, &file, project, here, "run")?;
        Ok((file, setup))
    });
    let (file, mut setup) = prepared.inspect_err(as_record)?;
    if let Some(seconds) = run.longest_wait.or(file.longest_wait) {
        setup.longest_wait = config::parse_seconds("longest_wait", seconds)?;
    }
    let mut service = service(&run.start, &file, runtime_dir, Hangup::Reopen)?;
    service.reloading.grace = service.grace;
    if let Some(address) = run.http.as_ref().or(file.http.as_ref()) {
        let hosts = if run.http_host.is_empty() { file.http_host.clone() } else { run.http_host.clone() };
        service.http = Some(http::Options { listener: listen(address)?, hosts });
    }
    let share = run.trace_share.or(file.trace_share).unwrap_or(1.0);
    if !(0.0..=1.0).contains(&share) {
        return Err(Failure::usage(format!("a trace share of `{share}`")).hint("it is between 0 and 1"));
    }
    service.otlp = otlp::Options::new(run.otlp.as_deref().or(file.otlp.as_deref()), share, &project.directory)?;
    let log_file: Option<PathBuf> = run.log_file.as_ref().map(|path| here.join(path));
    let log_file = log_file.or_else(|| file.log_file.as_ref().map(|path| project.directory.join(path)));
    let (printer, rest) = match run.log_format.or(file.log_format).unwrap_or_default() {
        LogFormat::Json => Printer::json(log_file.as_deref()).map_err(|error| {
            let path = log_file.as_deref().unwrap_or(Path::new("")).display();
            Failure::usage(format!("the log file `{path}` cannot be opened")).because(&error)
        })?,
        LogFormat::Text if log_file.is_some() => {
            return Err(Failure::usage("a log file is written as JSON").hint("leave out `--log-format text`"));
        }
        LogFormat::Text => Printer::human(),
    };
    let result = node::run(setup, &node_dir::path_for(&project.directory, runtime_dir), service, &printer);
    let is_record = result.as_ref().is_err_and(|failure| printer.failure(failure));
    // A failure whose record nobody has read is told as any other.
    let is_told = printer.finish(&rest) && is_record;
    result.map_err(|failure| Failure { is_told, ..failure })
}

/// Says in the log, too, what kept a node from being started at all.
fn as_record(failure: &Failure) {
    if let Ok((printer, rest)) = Printer::json(None) {
        printer.failure(failure);
        printer.finish(&rest);
    }
}

/// The application of a project that has programs, and none of its own.
const PROGRAMS_ONLY: &str = "rebeam._programs_only";

/// What is run, from flags and the project's file.
pub(super) fn setup(
    start: &args::Start,
    file: &ProjectFile,
    project: &Project,
    here: &Path,
    command: &str,
) -> Result<Setup, Failure> {
    let (target_text, relative_to) = match (&start.target, &file.app) {
        (Some(target), _) => (target.clone(), here),
        (None, Some(app)) => (app.into(), project.directory.as_path()),
        (None, None) if !file.programs.is_empty() => (PROGRAMS_ONLY.into(), project.directory.as_path()),
        (None, None) => {
            let hint = format!(
                "say `rebeam {command} TARGET`, or set `app = \"module:tree\"` under `[tool.rebeam]` in pyproject.toml"
            );
            return Err(Failure::usage("there is nothing to run").hint(hint));
        }
    };
    let mut target = config::parse_target(&target_text, relative_to, file.preload.clone(), file.fork)?;
    target.programs = file.programs()?;
    let max_frame = match start.max_message.as_ref().or(file.max_message.as_ref()) {
        Some(size) => config::parse_size("max_message", size)?,
        None => MAX_FRAME,
    };
    let log_level = start.log_level.as_ref().or(file.log_level.as_ref());
    let log_level = log_level.map(|level| config::parse_level(level)).transpose()?;
    let embed = start.embed.or(file.embed).unwrap_or_default();
    let python = python::find(wanted(start.python.as_deref()).or(file.python.as_deref()), &project.directory, embed)?;
    let directory = project.directory.clone();
    let strangers = Arc::new(Strangers::now());
    let secret = secret().map_err(|error| Failure::start("failed to read `/dev/urandom`").because(&error))?;
    Ok(Setup {
        python,
        directory,
        node_dir: PathBuf::new(),
        target,
        target_text: target_text.display().to_string(),
        max_frame,
        secret,
        log_level,
        longest_wait: LONGEST_WAIT,
        strangers,
    })
}

fn secret() -> io::Result<Secret> {
    let mut secret = Secret::default();
    File::open("/dev/urandom")?.read_exact(&mut secret.0)?;
    Ok(secret)
}

/// An empty `REBEAM_PYTHON` is none.
pub(super) fn wanted(python: Option<&Path>) -> Option<&Path> {
    python.filter(|path| !path.as_os_str().is_empty())
}

pub(super) fn service(
    start: &args::Start,
    file: &ProjectFile,
    runtime_dir: Option<&Path>,
    hangup: Hangup,
) -> Result<RunOptions, Failure> {
    let grace = match start.grace.or(file.grace) {
        Some(seconds) => config::parse_seconds("grace", seconds)?,
        None => DEFAULT_GRACE,
    };
    let probation = Probation::default();
    let time = match file.probation.seconds {
        Some(seconds) => config::parse_seconds("probation.seconds", seconds)?,
        None => probation.time,
    };
    let probation = Probation { messages: file.probation.messages.unwrap_or(probation.messages), time };
    Ok(RunOptions {
        grace,
        hangup,
        is_place_chosen: runtime_dir.is_some(),
        drain: None,
        http: None,
        otlp: None,
        reload: None,
        reloading: ReloadOptions { probation, ..ReloadOptions::default() },
    })
}

/// Which files have the application reloaded when they are saved, if any.
fn reload(file: &ProjectFile, project: &Project) -> Result<Option<(watch::Options, watch::Patterns)>, Failure> {
    let polls = match file.reload {
        Some(WatchBy::System(false)) => return Ok(None),
        Some(WatchBy::System(true)) | None => false,
        Some(WatchBy::Word(WatchWord::Poll)) => true,
    };
    let patterns = watch::Patterns::new(&file.watch).map_err(|error| {
        Failure::usage("`watch` of the project's file has a pattern that is none")
            .because(&error)
            .hint("write paths relative to the project, such as `\"*.html\"` or `\"templates/**\"`")
    })?;
    Ok(Some((watch::Options { directory: project.directory.clone(), patterns: file.watch.clone(), polls }, patterns)))
}

/// A slip in the name of a variable must not pass in production.
fn check_environment() -> Result<(), Failure> {
    let cli = Cli::command();
    let commands = cli.get_subcommands().chain([&cli]);
    let arguments = commands.flat_map(|command| command.get_arguments().filter_map(clap::Arg::get_env));
    let known: Vec<&str> = arguments.filter_map(|name| name.to_str()).collect();
    // A node within an actor, and a name that its certificates go by.
    let inherited = ["REBEAM_NODE", "REBEAM_APP", "REBEAM_PROJECT", PARENT];
    for (name, _) in std::env::vars_os() {
        let Some(name) = name.to_str().filter(|name| name.starts_with("REBEAM_")) else { continue };
        if !known.contains(&name) && !inherited.contains(&name) && !is_service_link(name) {
            let failure = Failure::usage(format!("the environment has the unknown variable `{name}`"));
            return Err(match config::nearest(name, &known) {
                Some(near) => failure.hint(format!("did you mean `{near}`?")),
                None => failure.hint("variables that begin with `REBEAM_` are Re:BEAM's"),
            });
        }
    }
    Ok(())
}

/// Whether it is one of the variables by which Kubernetes tells each container of the services beside it: one of them may
/// be called `rebeam`.
fn is_service_link(name: &str) -> bool {
    let behind = |part: &str| name.rsplit_once(part).map(|(_, behind)| behind);
    let is_port = |text: &str| text.is_empty() || text.starts_with('_');
    behind("_SERVICE_HOST").is_some_and(str::is_empty)
        || behind("_SERVICE_PORT").is_some_and(is_port)
        || behind("_PORT").is_some_and(str::is_empty)
        || (name.contains("_PORT_") && (name.contains("_TCP") || name.contains("_UDP")))
}

/// The listener for HTTP: of an address, or the one that the service manager hands over.
fn listen(address: &str) -> Result<TcpListener, Failure> {
    if address != "systemd" {
        return TcpListener::bind(address).map_err(|error| {
            let is_usage = error.kind() == io::ErrorKind::InvalidInput;
            let code = if is_usage { ExitCode::Usage } else { ExitCode::StartFailed };
            Failure::new(code, format!("HTTP cannot be served at `{address}`"))
                .because(&error)
                .hint("write an address and a port, such as `0.0.0.0:8080`")
        });
    }
    let handed = sd_notify::listen_fds().ok().and_then(|mut descriptors| descriptors.next());
    let Some(handed) = handed else {
        return Err(Failure::usage("no socket was handed over for `--http systemd`")
            .hint("a `.socket` unit of the same name hands it over"));
    };
    // SAFETY: the service manager opened this descriptor for us, and nobody else here takes it.
    Ok(TcpListener::from(unsafe { OwnedFd::from_raw_fd(handed) }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_that_is_called_as_we_are_is_no_slip() {
        for name in ["REBEAM_SERVICE_HOST", "REBEAM_WEB_SERVICE_PORT", "REBEAM_SERVICE_PORT_HTTP", "REBEAM_PORT"] {
            assert!(is_service_link(name), "{name}");
        }
        assert!(is_service_link("REBEAM_PORT_8080_TCP_ADDR"));
        assert!(!is_service_link("REBEAM_GRAZE") && !is_service_link("REBEAM_HTTP_POTR"));
    }
}
