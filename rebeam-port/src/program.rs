//! The program itself: how it is started, and that nothing of it is left.

use std::fs;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio as Pipes};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, getpid, getppid};
use rebeam_protocol::program::{Program, Stdio};
use rebeam_sys::process::children_of;

/// How long what cannot be killed at once is waited for. What is left then, the supervisor finds.
const LONGEST_END: Duration = Duration::from_secs(2);

/// The program, and our ends of its pipes.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) os_pid: Pid,
    pub(crate) stdin: Option<OwnedFd>,
    pub(crate) stdout: Option<OwnedFd>,
    /// If its lines are looked at.
    pub(crate) stderr: Option<OwnedFd>,
}

/// Starts it. With `is_looked_at`, its output comes through us even if it is only logged.
///
/// # Errors
/// Why it cannot be started, in words that name it.
pub(crate) fn start(program: &Program, is_looked_at: bool) -> Result<Running, String> {
    let (name, arguments) = program.argv.split_first().ok_or("there is no program to start")?;
    // Without this, the C library would have a shell read it as a script.
    if let Some(path) = found(name).filter(|path| is_of_another_machine(path)) {
        return Err(format!("`{}` was built for another kind of machine", path.display()));
    }
    let is_logged = program.stdio == Stdio::Log;
    let mut command = Command::new(name);
    command.args(arguments);
    command.stdin(if is_logged { Pipes::null() } else { Pipes::piped() });
    command.stdout(if is_logged && !is_looked_at { Pipes::inherit() } else { Pipes::piped() });
    command.stderr(if is_looked_at { Pipes::piped() } else { Pipes::inherit() });
    // What it says to its own group is not for us.
    command.process_group(0);
    let port = getpid();
    // SAFETY: both are system calls that allocate nothing.
    unsafe {
        command.pre_exec(move || {
            prctl::set_pdeathsig(Signal::SIGKILL)?;
            // We may have ended before that.
            if getppid() == port { Ok(()) } else { Err(io::ErrorKind::BrokenPipe.into()) }
        });
    }
    let child = command.spawn().map_err(|error| explain(name, &error))?;
    let os_pid = Pid::from_raw(child.id() as i32);
    let mut running = Running {
        os_pid,
        stdin: child.stdin.map(Into::into),
        stdout: child.stdout.map(Into::into),
        stderr: child.stderr.map(Into::into),
    };
    for pipe in [&mut running.stdin, &mut running.stdout, &mut running.stderr].into_iter().flatten() {
        let _ = fcntl(pipe.as_fd(), FcntlArg::F_SETFL(OFlag::O_NONBLOCK));
    }
    Ok(running)
}

/// What the system says of a start does not tell what was not found.
fn explain(name: &str, error: &io::Error) -> String {
    let Some(path) = found(name) else {
        return match name.contains('/') {
            true => format!("`{name}` is not there"),
            false => format!("`{name}` is in none of the directories of `PATH`"),
        };
    };
    let shown = path.display();
    if path.is_dir() {
        return format!("`{shown}` is a directory");
    }
    match error.raw_os_error() {
        Some(libc::EACCES) => format!("`{shown}` is not executable: `chmod +x` makes it so"),
        Some(libc::ENOENT) => match interpreter(&path) {
            Some(interpreter) => format!("`{shown}` is a script for `{interpreter}`, which is not there"),
            None => format!("`{shown}` needs a loader that is not there: it was built for another system"),
        },
        _ => format!("`{shown}`: {error}"),
    }
}

fn found(name: &str) -> Option<PathBuf> {
    if name.contains('/') {
        return Path::new(name).exists().then(|| name.into());
    }
    let path = std::env::var_os("PATH")?;
    let all: Vec<PathBuf> = std::env::split_paths(&path).map(|directory| directory.join(name)).collect();
    let is_program = |path: &&PathBuf| fs::metadata(path).is_ok_and(|it| it.permissions().mode() & 0o111 != 0);
    all.iter().find(is_program).or_else(|| all.iter().find(|path| path.exists())).cloned()
}

/// Whether it is an executable file of the ELF format, for another processor than ours.
fn is_of_another_machine(path: &Path) -> bool {
    let machine = |path: &Path| {
        let mut head = [0; 20];
        fs::File::open(path).and_then(|mut file| file.read_exact(&mut head)).ok()?;
        head.starts_with(b"\x7fELF").then_some([head[18], head[19]])
    };
    machine(path).is_some_and(|it| machine(Path::new("/proc/self/exe")).is_some_and(|own| own != it))
}

fn interpreter(path: &Path) -> Option<String> {
    let script = fs::read(path).ok()?;
    let line = script.strip_prefix(b"#!")?.split(|byte| *byte == b'\n').next()?;
    Some(String::from_utf8_lossy(line).trim().to_owned())
}

/// How the program has ended, or that it was stopped by a signal; `None`: neither. All others that have come to us are
/// reaped, too.
pub(crate) fn look(main: Pid) -> Option<WaitStatus> {
    let mut found = None;
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG | WaitPidFlag::WUNTRACED)) {
            Ok(WaitStatus::StillAlive) => return found,
            Ok(status) if status.pid() == Some(main) => found = Some(status),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return found,
        }
    }
}

/// Ends whatever is left of it: its children come to us when their parents end, whatever they have made of their group,
/// session and environment.
pub(crate) fn end_all() {
    let end = Instant::now() + LONGEST_END;
    let mut pause = Duration::from_micros(200);
    loop {
        for child in children() {
            let _ = kill(child, Signal::SIGKILL);
        }
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Err(Errno::ECHILD) => return,
                Ok(WaitStatus::StillAlive) | Err(_) => break,
                Ok(_) => {}
            }
        }
        if Instant::now() > end {
            return;
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

/// Our own children.
pub(crate) fn children() -> Vec<Pid> {
    children_of(std::process::id() as i32).into_iter().map(Pid::from_raw).collect()
}
