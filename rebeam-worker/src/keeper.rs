//! The keeper: a small process that outlives the supervisor by a moment, to see that nothing else does.
//!
//! Workers and their process groups go with the supervisor by their lifelines. What an actor put into a session of
//! its own does not: while the supervisor lives, it kills that as a subreaper; when the supervisor itself was killed,
//! this process finds it by the tag that an actor and all that it starts carry ([`rebeam_sys::tag`]), or by the mark in its
//! environment. It waits in a poll and costs nothing meanwhile.
//!
//! There are two of them, so that whoever kills or stops one together with the supervisor leaves nothing behind either:
//! the second is a child of the first, which makes another if it dies. It acts if the first does not.

use std::fs;
use std::io::{self, PipeReader, PipeWriter};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::{ForkResult, Pid, fork, getppid};
use rebeam_sys::tag::{is_of, untag_own};

/// The descriptor that is at its end when the supervisor is.
const SUPERVISOR: i32 = 3;

/// Looks without finding anything, before it is believed that nothing is left: a fork may be under way.
const QUIET_LOOKS: u32 = 3;

/// The pauses between two looks: longer as long as something is found that does not go.
const SHORTEST: Duration = Duration::from_millis(20);
const LONGEST: Duration = Duration::from_secs(1);

/// How long the second waits for the first to have cleared up, in milliseconds.
const PATIENCE_MS: u16 = 1000;

/// How many seconds are made, at most, by a first: one that dies again and again is somebody's will.
const MOST_SECONDS: u32 = 10;

/// Waits for the end of the supervisor, then kills all that belongs to the node with this mark.
pub(crate) fn keep(mark: &std::ffi::OsStr) {
    // SAFETY: the supervisor started this process with this descriptor for this purpose.
    let supervisor = unsafe { OwnedFd::from_raw_fd(SUPERVISOR) };
    // An actor of another node may have started ours, and we are not to go with that one's.
    untag_own();
    let mut second = Some(Second::start(&supervisor, mark));
    for _ in 1..MOST_SECONDS {
        match &second {
            Some(Ok(one)) if one.ends_before(supervisor.as_fd()) => second = Some(Second::start(&supervisor, mark)),
            _ => break,
        }
    }
    wait_for_end(supervisor.as_fd());
    clear_up(mark);
    if let Some(Ok(second)) = second {
        let _ = kill(second.os_pid, Signal::SIGKILL);
    }
}

/// The second keeper, as the first has it.
struct Second {
    os_pid: Pid,
    /// At its end when the second is.
    life: PipeReader,
    /// Tells it that the first is there.
    _first: PipeWriter,
}

impl Second {
    fn start(supervisor: &OwnedFd, mark: &std::ffi::OsStr) -> io::Result<Self> {
        let (life, its_life) = io::pipe()?;
        let (first, its_first) = io::pipe()?;
        // SAFETY: this process has one thread.
        match unsafe { fork() }? {
            ForkResult::Parent { child } => Ok(Second { os_pid: child, life, _first: its_first }),
            ForkResult::Child => {
                drop((life, its_first));
                be_the_second(supervisor.as_fd(), &first, mark);
                drop(its_life);
                rebeam_sys::process::end_at_once(0)
            }
        }
    }

    /// Waits for its end, or the supervisor's; true if it is its own, alone.
    fn ends_before(&self, supervisor: BorrowedFd<'_>) -> bool {
        let ended = wait_for([supervisor, self.life.as_fd()], PollTimeout::NONE);
        let is_over = ended == [false, true];
        if is_over {
            let _ = waitpid(self.os_pid, Some(WaitPidFlag::WNOHANG));
        }
        is_over
    }
}

/// Waits for the end of the supervisor, and does what the first, which ends this process when all is done, has not done.
fn be_the_second(supervisor: BorrowedFd<'_>, first: &PipeReader, mark: &std::ffi::OsStr) {
    // Whoever kills by name is to find one of the two at most.
    let _ = nix::sys::prctl::set_name(c"keeper");
    let parent = getppid();
    wait_for_end(supervisor);
    let _ = wait_for([first.as_fd()], PollTimeout::from(PATIENCE_MS));
    clear_up(mark);
    if getppid() == parent {
        // It is stopped, and its parent is gone.
        let _ = kill(parent, Signal::SIGKILL);
    }
}

fn wait_for_end(fd: BorrowedFd<'_>) {
    while wait_for([fd], PollTimeout::NONE) == [false] {}
}

/// Waits until one of these can be read from or is at its end; which.
fn wait_for<const N: usize>(fds: [BorrowedFd<'_>; N], timeout: PollTimeout) -> [bool; N] {
    let mut polled = fds.map(|fd| PollFd::new(fd, PollFlags::POLLIN));
    match poll(&mut polled, timeout) {
        Ok(_) => polled.map(|it| it.any().unwrap_or(true)),
        Err(_) => [false; N],
    }
}

/// Kills everything that belongs to a node.
fn clear_up(mark: &std::ffi::OsStr) {
    let (mut quiet, mut pause) = (0, SHORTEST);
    while quiet < QUIET_LOOKS {
        // Each was seen with our mark a moment ago. What has become another user's is not ours to kill.
        let is_ours = |os_pid: &i32| kill(Pid::from_raw(*os_pid), Signal::SIGKILL) != Err(Errno::EPERM);
        let is_quiet = marked(mark.as_bytes()).into_iter().filter(is_ours).count() == 0;
        quiet = if is_quiet { quiet + 1 } else { 0 };
        // One that waits in the kernel cannot be killed yet, perhaps not for hours.
        pause = if is_quiet { SHORTEST } else { (pause * 2).min(LONGEST) };
        std::thread::sleep(pause);
    }
}

fn marked(mark: &[u8]) -> Vec<i32> {
    let own = std::process::id() as i32;
    let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
    let os_pids = processes.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    os_pids.filter(|os_pid| *os_pid != own).filter(|os_pid| is_of(*os_pid, mark)).collect()
}
