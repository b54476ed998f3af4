//! Making a process: the seam between "start this child" and how that is done on this system.
//!
//! A worker comes from the zygote if the application may be forked, else from a fresh interpreter. The supervisor
//! itself never forks without an exec, so its own state does not matter to its children.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use rebeam_protocol::spec::ProcessOptions;

use crate::python::Python;
use crate::shell::cgroup::Source;
use crate::shell::ledger::Ledger;
use crate::shell::service_manager::VARIABLES;
use crate::shell::status_page::StatusPage;
use crate::shell::zygote::stream_pair;

/// Threads of numeric libraries per actor, unless the user said otherwise: an actor is one of many.
const THREAD_VARIABLES: [&str; 4] =
    ["OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS"];

/// How many CPUs Python is to count on, where the container gives us less time than that.
const CPU_COUNT: &str = "PYTHON_CPU_COUNT";

/// How a new process stands among the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Group {
    /// It leads a session, away from our terminal: the zygote, whose children are in it.
    Session,
    /// It leads a process group.
    Group,
}

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
    channel: OwnedFd,
    page: OwnedFd,
    lifeline: OwnedFd,
    stdout: OwnedFd,
    stderr: OwnedFd,
}

/// Reading ends of a process's stdout and stderr.
#[derive(Debug)]
pub(crate) struct Outputs {
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: OwnedFd,
}

impl Outputs {
    /// Two pipes: our ends, and theirs for stdout and stderr.
    pub(crate) fn new() -> io::Result<(Self, OwnedFd, OwnedFd)> {
        let (stdout, their_stdout) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
        let (stderr, their_stderr) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
        set_nonblocking(&stdout)?;
        set_nonblocking(&stderr)?;
        Ok((Outputs { stdout, stderr }, their_stdout, their_stderr))
    }
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
    pub(crate) fn as_raw(&self) -> [RawFd; 5] {
        [&self.channel, &self.page, &self.lifeline, &self.stdout, &self.stderr].map(AsRawFd::as_raw_fd)
    }

    /// Starts a fresh interpreter with them.
    pub(crate) fn spawn(
        self,
        python: &Python,
        directory: &Path,
        options: &ProcessOptions,
        ledger: &Ledger,
    ) -> io::Result<i32> {
        let fds = [ledger.memory(), self.channel.as_fd(), self.page.as_fd(), self.lifeline.as_fd()];
        let mut command = interpreter(python, "worker", directory, self.stdout, self.stderr)?;
        // The application is imported from the project, wherever the actor then works.
        command.env("REBEAM_PROJECT", directory);
        command.envs(options.env.iter().map(|(name, value)| (name, value)));
        if let Some(own) = &options.directory {
            command.current_dir(directory.join(own));
        }
        if let Some(gid) = options.gid {
            command.gid(gid);
        }
        if let Some(uid) = options.uid {
            command.uid(uid);
        }
        spawn_with(command, &fds, Group::Group)
    }
}

/// Starts the zygote, with `fds` as its descriptors 3, 4, 5…
pub(crate) fn spawn_zygote(
    python: &Python,
    directory: &Path,
    fds: &[BorrowedFd<'_>],
    stdout: OwnedFd,
    stderr: OwnedFd,
) -> io::Result<i32> {
    spawn_with(interpreter(python, "zygote", directory, stdout, stderr)?, fds, Group::Session)
}

/// CPUs' worth of time by the quota at our start, if nobody has said how many to count on.
fn cpus_by_quota() -> Option<u64> {
    static CPUS: OnceLock<Option<u64>> = OnceLock::new();
    *CPUS.get_or_init(|| {
        let quota = Source::default().limits().cpu_quota.filter(|_| std::env::var_os(CPU_COUNT).is_none())?;
        Some((quota.value.ceil() as u64).max(1))
    })
}

/// `rebeam-worker` in one of its roles that are a Python.
fn interpreter(python: &Python, role: &str, directory: &Path, stdout: OwnedFd, stderr: OwnedFd) -> io::Result<Command> {
    let mut command = Command::new(worker_program()?);
    command
        .arg(role)
        .arg(&python.executable)
        .arg(python.embed.as_ref().map_or(OsString::from("-"), |library| library.clone().into()))
        .current_dir(directory)
        .stdin(Stdio::null())
        .stdout(stdout)
        .stderr(stderr);
    for variable in VARIABLES {
        command.env_remove(variable);
    }
    for variable in THREAD_VARIABLES {
        if std::env::var_os(variable).is_none() {
            command.env(variable, "1");
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

/// The signal at which a worker writes its stacks; `rebeam-worker/src/lib.rs` says the same.
pub(crate) fn dump_signal() -> i32 {
    libc::SIGRTMIN() + 1
}

/// The signal at which a worker looks whether an exit signal came; the same.
pub(crate) fn exit_signal() -> i32 {
    libc::SIGRTMIN() + 2
}

/// Sends a signal to the main thread of a child, so that it interrupts what that thread waits for.
pub(crate) fn signal_main_thread(os_pid: i32, signal: i32) {
    // SAFETY: a plain system call. The child is not reaped, so the number is its own.
    unsafe { libc::syscall(libc::SYS_tgkill, os_pid, os_pid, signal) };
}

/// Whether a process is stopped, by SIGSTOP or a debugger.
pub(crate) fn is_stopped(os_pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{os_pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with(['T', 't']))
}

/// The process that outlives us by a moment (see `rebeam-worker/src/keeper.rs`).
#[derive(Debug)]
pub(crate) struct Keeper {
    pub(crate) os_pid: i32,
    /// Open as long as we live.
    _sign: OwnedFd,
}

/// Starts the keeper of a node.
pub(crate) fn spawn_keeper(mark: &OsStr) -> io::Result<Keeper> {
    let (theirs, ours) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    let mut command = Command::new(worker_program()?);
    command.arg("keeper").arg(mark).current_dir("/").env_remove("REBEAM_NODE");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    Ok(Keeper { os_pid: spawn_with(command, &[theirs.as_fd()], Group::Session)?, _sign: ours })
}

/// Starts a program with `fds` as its descriptors 3, 4, 5…
fn spawn_with(mut command: Command, fds: &[BorrowedFd<'_>], group: Group) -> io::Result<i32> {
    let fds: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    // SAFETY: between fork and exec only async-signal-safe calls are made: setsid, setpgid, fcntl, dup2. First all
    // descriptors are moved out of the way of their final numbers, then each is put in place, which also clears its
    // close-on-exec flag.
    unsafe {
        command.pre_exec(move || {
            let result = if group == Group::Session { libc::setsid() } else { libc::setpgid(0, 0) };
            check(result)?;
            let mut moved = [0; 8];
            for (index, fd) in fds.iter().enumerate() {
                moved[index] = check(libc::fcntl(*fd, libc::F_DUPFD_CLOEXEC, 64))?;
            }
            for (index, fd) in moved[..fds.len()].iter().enumerate() {
                check(libc::dup2(*fd, 3 + index as RawFd))?;
            }
            Ok(())
        });
    }
    Ok(command.spawn()?.id() as i32)
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// `rebeam-worker`, which stands beside this very program.
fn worker_program() -> io::Result<PathBuf> {
    let path = std::env::current_exe()?.with_file_name("rebeam-worker");
    if path.exists() { Ok(path) } else { Err(io::Error::other(format!("`{}` is missing", path.display()))) }
}

pub(crate) fn set_nonblocking(fd: &OwnedFd) -> io::Result<()> {
    let flags = OFlag::from_bits_truncate(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}
