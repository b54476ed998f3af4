//! The one place that waits for children. There is no `tokio::process` beside it.
//!
//! A dead child is first only looked at (`WNOWAIT`): while it is a zombie its id cannot be reused, so the rest of its
//! process group is killed safely; then it is reaped.

use std::collections::HashSet;
use std::ffi::OsStr;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;
use rebeam_core::event::Status;

/// A child that was reaped.
#[derive(Debug)]
pub(crate) struct Reaped {
    pub(crate) status: Status,
    pub(crate) cpu_ms: u64,
    pub(crate) peak_kib: u64,
}

/// A child that has died and is not reaped yet, if there is one.
pub(crate) fn next_dead() -> Option<i32> {
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    loop {
        match waitid(Id::All, flags) {
            Ok(status) => return status.pid().filter(|_| status != WaitStatus::StillAlive).map(Pid::as_raw),
            Err(Errno::EINTR) => {}
            Err(_) => return None,
        }
    }
}

/// Whether a child has died and is not reaped yet.
pub(crate) fn is_dead(os_pid: i32) -> bool {
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    waitid(Id::Pid(Pid::from_raw(os_pid)), flags).is_ok_and(|status| status != WaitStatus::StillAlive)
}

/// Kills what is left of a dead child's group, and reaps the child.
pub(crate) fn reap(os_pid: i32) -> Reaped {
    let _ = killpg(Pid::from_raw(os_pid), Signal::SIGKILL);
    let mut status = 0;
    // SAFETY: rusage is plain data for which zero is valid.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes one status and one rusage.
    let result = unsafe { libc::wait4(os_pid, &raw mut status, 0, &raw mut usage) };
    let ms = |time: libc::timeval| time.tv_sec as u64 * 1000 + time.tv_usec as u64 / 1000;
    let status = match WaitStatus::from_raw(Pid::from_raw(os_pid), status) {
        Ok(WaitStatus::Signaled(_, signal, _)) if result == os_pid => Status::Signalled(signal as i32),
        Ok(WaitStatus::Exited(_, code)) => Status::Exited(code),
        _ => Status::Signalled(status & 0x7f),
    };
    Reaped { status, cpu_ms: ms(usage.ru_utime) + ms(usage.ru_stime), peak_kib: usage.ru_maxrss as u64 }
}

/// Sends a signal to a child's whole group. Safe only while the child is not reaped.
pub(crate) fn signal_group(os_pid: i32, signal: Signal) {
    let _ = killpg(Pid::from_raw(os_pid), signal);
}

/// Kills a worker and everything in its group. Safe only while the worker is not reaped.
pub(crate) fn kill_group(os_pid: i32) {
    // The group may not be there yet: a newborn makes it with its first breath.
    let _ = kill(Pid::from_raw(os_pid), Signal::SIGKILL);
    let _ = killpg(Pid::from_raw(os_pid), Signal::SIGKILL);
}

/// Processes that are none of ours: whoever became us (an entrypoint's shell, by `exec`) had started them before.
#[derive(Debug)]
pub(crate) struct Strangers {
    there_before: HashSet<i32>,
    /// Their sessions, and our own, in which what they start is.
    sessions: HashSet<i32>,
}

impl Strangers {
    /// Those that are our children now: to be asked before there are others.
    pub(crate) fn now() -> Self {
        let there_before: HashSet<i32> = children().into_iter().collect();
        let session = |os_pid| nix::unistd::getsid(os_pid).map(Pid::as_raw);
        let theirs = there_before.iter().filter_map(|os_pid| session(Some(Pid::from_raw(*os_pid))).ok());
        let sessions = theirs.chain(session(None)).collect();
        Strangers { there_before, sessions }
    }

    /// Whether a child of ours is one of them, or was left to us by one of them. What actors start carries the mark of the
    /// run, or is in another session.
    fn has(&self, os_pid: i32, mark: &OsStr) -> bool {
        if self.there_before.contains(&os_pid) {
            return true;
        }
        let session = nix::unistd::getsid(Some(Pid::from_raw(os_pid))).map_or(0, Pid::as_raw);
        !self.there_before.is_empty() && self.sessions.contains(&session) && !is_marked(os_pid, mark)
    }
}

/// Whether a process has the mark of a run in its environment.
fn is_marked(os_pid: i32, mark: &OsStr) -> bool {
    let environment = std::fs::read(format!("/proc/{os_pid}/environ")).unwrap_or_default();
    let found = environment.split(|byte| *byte == 0).find_map(|entry| entry.strip_prefix(b"REBEAM_NODE="));
    found == Some(mark.as_encoded_bytes())
}

/// Kills every child that is not `known`, nor a living actor's own, nor a stranger's: what dead actors started and left
/// behind.
pub(crate) fn kill_strays(known: &HashSet<i32>, strangers: &Strangers, mark: &OsStr) {
    for stray in children().into_iter().filter(|child| !known.contains(child) && !strangers.has(*child, mark)) {
        if !known.contains(&group_of(stray)) && !started_by(stray).is_some_and(|actor| known.contains(&actor)) {
            let _ = kill(Pid::from_raw(stray), Signal::SIGKILL);
        }
    }
}

/// The process group of a child of ours, which leads it if it has died meanwhile.
fn group_of(os_pid: i32) -> i32 {
    nix::unistd::getpgid(Some(Pid::from_raw(os_pid))).map_or(os_pid, Pid::as_raw)
}

/// The actor's process that a program was started by, as it stands in its environment.
fn started_by(os_pid: i32) -> Option<i32> {
    let environment = std::fs::read(format!("/proc/{os_pid}/environ")).ok()?;
    let value = environment.split(|byte| *byte == 0).find_map(|entry| entry.strip_prefix(b"REBEAM_ACTOR="))?;
    std::str::from_utf8(value).ok()?.parse().ok()
}

fn children() -> Vec<i32> {
    let Ok(tasks) = std::fs::read_dir("/proc/self/task") else { return Vec::new() };
    let lists = tasks.flatten().filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
    lists.flat_map(|list| list.split_whitespace().filter_map(|id| id.parse().ok()).collect::<Vec<i32>>()).collect()
}
