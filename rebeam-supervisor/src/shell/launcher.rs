//! Making a process: the seam between "start this child" and how that is done on this system.
//!
//! A worker comes from the zygote if the application may be forked, else from a fresh interpreter. The supervisor
//! itself never forks without an exec, so its own state does not matter to its children.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use rebeam_protocol::spec::ProcessOptions;
use rebeam_sys::process::{Group, spawn};
use rebeam_sys::socket::stream_pair;

use crate::python::Python;
use crate::shell::cgroup::Source;
use crate::shell::output::Outputs;
use crate::shell::service_manager::VARIABLES;
use crate::shell::status_page::StatusPage;

/// What keeps libraries from starting threads, unless the user has set it. Of numeric ones, since an actor is one of many;
/// of Arrow's allocator, which starts its thread on import, since a process with threads is not forked.
const THREAD_VARIABLES: [(&str, &str); 5] = [
    ("OMP_NUM_THREADS", "1"),
    ("OPENBLAS_NUM_THREADS", "1"),
    ("MKL_NUM_THREADS", "1"),
    ("NUMEXPR_NUM_THREADS", "1"),
    ("JE_ARROW_MALLOC_CONF", "background_thread:false"),
];

/// By this a script says who it is: see `go_with_parent` of the command line.
pub(crate) const PARENT: &str = "REBEAM_PARENT";

/// How many CPUs Python is to count on, where the container gives us less time than that.
const CPU_COUNT: &str = "PYTHON_CPU_COUNT";

/// Memory that every interpreter of a node is started with: the ledger, and the code of the project.
pub(crate) type Inherited<'a> = [BorrowedFd<'a>; 2];

/// Our ends of what connects us with a worker.
#[derive(Debug)]
pub(crate) struct Wiring {
    pub(crate) channel: OwnedFd,
    pub(crate) page: StatusPage,
    pub(crate) lifeline: OwnedFd,
    pub(crate) outputs: Outputs,
}

/// The worker's ends.
#[derive(Debug)]
pub(crate) struct TheirEnds {
    pub(crate) channel: OwnedFd,
    page: OwnedFd,
    lifeline: OwnedFd,
    stdout: OwnedFd,
    stderr: OwnedFd,
}

impl Wiring {
    /// Makes all that a worker needs: our ends, and its own.
    pub(crate) fn new() -> io::Result<(Self, TheirEnds)> {
        let (channel, their_channel) = stream_pair()?;
        let (lifeline, their_lifeline) = stream_pair()?;
        let (page, their_page) = StatusPage::new()?;
        let (outputs, stdout, stderr) = Outputs::new()?;
        let theirs = TheirEnds { channel: their_channel, page: their_page, lifeline: their_lifeline, stdout, stderr };
        Ok((Wiring { channel, page, lifeline, outputs }, theirs))
    }
}

impl TheirEnds {
    /// In the order of a fork request.
    pub(crate) fn as_fds(&self) -> [BorrowedFd<'_>; 5] {
        [&self.channel, &self.page, &self.lifeline, &self.stdout, &self.stderr].map(AsFd::as_fd)
    }

    /// Starts a fresh interpreter with them, or a port.
    pub(crate) fn spawn(
        self,
        python: &Python,
        directory: &Path,
        options: &ProcessOptions,
        [ledger, code]: Inherited<'_>,
    ) -> io::Result<i32> {
        let own = [self.channel.as_fd(), self.page.as_fd(), self.lifeline.as_fd()];
        let (mut command, fds, group) = match options.is_port {
            // Away from the terminal: what asks for one there fails, and is not stopped.
            true => (port(python, directory)?, own.to_vec(), Group::Session),
            false => {
                let mut command = interpreter(python, "worker", directory)?;
                // The application is imported from the project, wherever the actor then works.
                command.env("REBEAM_PROJECT", directory);
                (command, [&[ledger, code], &own[..]].concat(), Group::Group)
            }
        };
        command.stdin(Stdio::null()).stdout(self.stdout).stderr(self.stderr);
        command.envs(options.env.iter().map(|(name, value)| (name, value)));
        if let Some(own) = &options.directory {
            let own = directory.join(own);
            // What the system says of a start does not tell what was not found.
            std::fs::metadata(own.join("."))
                .map_err(|error| blame(&format!("directory='{}'", own.display()), &error))?;
            command.current_dir(own);
        }
        if let Some(gid) = options.gid {
            command.gid(gid);
        }
        if let Some(uid) = options.uid {
            command.uid(uid);
        }
        spawn(command, &fds, group).map_err(|error| match options.uid.or(options.gid) {
            Some(_) if error.raw_os_error() == Some(libc::EPERM) => {
                blame("`uid` and `gid` are for a supervisor that runs as root", &error)
            }
            _ => error,
        })
    }
}

/// An error with the option that it comes from.
fn blame(option: &str, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{option}: {error}"))
}

/// CPUs' worth of time by the quota at our start, if nobody has said how many to count on.
fn cpus_by_quota() -> Option<u64> {
    static CPUS: OnceLock<Option<u64>> = OnceLock::new();
    *CPUS.get_or_init(|| {
        let quota = Source::default().limits().cpu_quota.filter(|_| std::env::var_os(CPU_COUNT).is_none())?;
        Some((quota.value.ceil() as u64).max(1))
    })
}

/// `rebeam-worker` as a port. A program's environment is ours.
fn port(python: &Python, directory: &Path) -> io::Result<Command> {
    let mut command = Command::new(worker_program()?);
    command.arg("port").current_dir(directory);
    for variable in VARIABLES.into_iter().chain([PARENT]) {
        command.env_remove(variable);
    }
    if let Some(mark) = &python.mark {
        command.env("REBEAM_NODE", mark);
    }
    Ok(command)
}

/// `rebeam-worker` in one of its roles that are a Python.
pub(crate) fn interpreter(python: &Python, role: &str, directory: &Path) -> io::Result<Command> {
    let mut command = Command::new(worker_program()?);
    command
        .arg(role)
        .arg(&python.executable)
        .arg(python.embed.as_ref().map_or(OsString::from("-"), |library| library.clone().into()))
        .current_dir(directory);
    // A script's `run` has named its process to this one alone.
    for variable in VARIABLES.into_iter().chain([PARENT]) {
        command.env_remove(variable);
    }
    for (variable, value) in THREAD_VARIABLES {
        if std::env::var_os(variable).is_none() {
            command.env(variable, value);
        }
    }
    if let Some(cpus) = cpus_by_quota() {
        command.env(CPU_COUNT, cpus.to_string());
    }
    if let Some(mark) = &python.mark {
        command.env("REBEAM_NODE", mark);
    }
    if let Some(batch) = &python.batch {
        command.env("REBEAM_BATCH", batch);
    }
    if let Some(app) = &python.app {
        command.env("REBEAM_APP", app);
    }
    Ok(command)
}

/// `rebeam-worker`, which stands beside this very program.
pub(crate) fn worker_program() -> io::Result<PathBuf> {
    let path = std::env::current_exe()?.with_file_name("rebeam-worker");
    if path.exists() { Ok(path) } else { Err(io::Error::other(format!("`{}` is missing", path.display()))) }
}
