//! The keeper: a small process that outlives the supervisor by a moment, to see that nothing else does.
//!
//! Workers and their process groups go with the supervisor by their lifelines. What an actor put into a session of
//! its own does not: while the supervisor lives, it kills that as a subreaper; when the supervisor itself was killed,
//! this process finds it by the mark that everything of a node carries in its environment. It waits in a read and
//! costs nothing meanwhile. A helper that was started with an empty environment is not found.

use std::fs;
use std::io::Read;
use std::os::fd::FromRawFd;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// The descriptor that is at its end when the supervisor is.
const SUPERVISOR: i32 = 3;

/// Looks without finding anything, before it is believed that nothing is left: a fork may be under way.
const QUIET_LOOKS: u32 = 3;

/// The pauses between two looks: longer as long as something is found that does not go.
const SHORTEST: Duration = Duration::from_millis(20);
const LONGEST: Duration = Duration::from_secs(1);

/// Waits for the end of the supervisor, then kills everything with `mark` in its environment.
pub(crate) fn keep(mark: &std::ffi::OsStr) {
    // SAFETY: the supervisor started this process with this descriptor for this purpose.
    let mut supervisor = unsafe { fs::File::from_raw_fd(SUPERVISOR) };
    let _ = supervisor.read(&mut [0]);
    let wanted = [b"REBEAM_NODE=", mark.as_bytes(), b"\0"].concat();
    let (mut quiet, mut pause) = (0, SHORTEST);
    while quiet < QUIET_LOOKS {
        let found = marked(&wanted);
        quiet = if found.is_empty() { quiet + 1 } else { 0 };
        // One that waits in the kernel cannot be killed yet, perhaps not for hours.
        pause = if found.is_empty() { SHORTEST } else { (pause * 2).min(LONGEST) };
        for os_pid in found {
            // It was seen with our mark a moment ago.
            let _ = kill(Pid::from_raw(os_pid), Signal::SIGKILL);
        }
        std::thread::sleep(pause);
    }
}

fn marked(wanted: &[u8]) -> Vec<i32> {
    let own = std::process::id() as i32;
    let is_marked = |os_pid: &i32| {
        let environment = fs::read(format!("/proc/{os_pid}/environ")).unwrap_or_default();
        environment.windows(wanted.len()).any(|window| window == wanted)
    };
    let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
    let os_pids = processes.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    os_pids.filter(|os_pid| *os_pid != own).filter(is_marked).collect()
}
