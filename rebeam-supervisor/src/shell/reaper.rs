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
use rebeam_sys::process;
use rebeam_sys::tag::{is_of, tag_of};

use crate::shell::sampler;

/// A child that was reaped.
#[derive(Debug)]
pub(crate) struct Reaped {
    pub(crate) status: Status,
    pub(crate) cpu_ms: u64,
    pub(crate) peak_kib: u64,
}

/// How a child is, without waiting and without reaping it; an error if there is no such child.
fn look_at(child: Id<'_>) -> nix::Result<WaitStatus> {
    waitid(child, WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT)
}

/// A child that has died and is not reaped yet, if there is one.
pub(crate) fn next_dead() -> Option<i32> {
    loop {
        match look_at(Id::All) {
            Ok(status) => return status.pid().filter(|_| status != WaitStatus::StillAlive).map(Pid::as_raw),
            Err(Errno::EINTR) => {}
            Err(_) => return None,
        }
    }
}

/// Whether a child has died and is not reaped yet.
pub(crate) fn is_dead(os_pid: i32) -> bool {
    look_at(Id::Pid(Pid::from_raw(os_pid))).is_ok_and(|status| status != WaitStatus::StillAlive)
}

/// Whether a process is a child of ours that is not reaped yet.
pub(crate) fn is_child(os_pid: i32) -> bool {
    look_at(Id::Pid(Pid::from_raw(os_pid))).is_ok()
}

/// Kills what is left of a dead child's group, and reaps the child.
pub(crate) fn reap(os_pid: i32) -> Reaped {
    let _ = killpg(Pid::from_raw(os_pid), Signal::SIGKILL);
    let reaped = process::reap(os_pid);
    let status = match reaped.status {
        Some(WaitStatus::Signaled(_, signal, _)) => Status::Signalled(signal as i32),
        Some(WaitStatus::Exited(_, code)) => Status::Exited(code),
        // By a real-time signal, which has no name.
        _ => Status::Signalled(reaped.signal),
    };
    Reaped { status, cpu_ms: reaped.cpu_ms, peak_kib: reaped.peak_kib }
}

/// Reaps a child, and leaves its group alone.
pub(crate) fn reap_alone(os_pid: i32) {
    process::reap(os_pid);
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
        let there_before: HashSet<i32> = sampler::children().into_iter().collect();
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
        !self.there_before.is_empty() && self.sessions.contains(&session) && !is_of(os_pid, mark.as_encoded_bytes())
    }
}

/// A child that nobody knew of when it was looked at.
#[derive(Debug)]
pub(crate) struct Stray {
    os_pid: i32,
    /// The actor's process that it was started by, if that is known.
    started_by: Option<i32>,
}

/// The children that are not `known`, nor strangers: what actors started, and, where these have died, left to us. Reads
/// `/proc`.
pub(crate) fn strays(known: &HashSet<i32>, strangers: &Strangers, mark: &OsStr) -> Vec<Stray> {
    let unknown = sampler::children().into_iter().filter(|child| !known.contains(child));
    let strays = unknown.filter(|child| !strangers.has(*child, mark));
    strays.map(|os_pid| Stray { os_pid, started_by: tag_of(os_pid).map(|tag| tag.os_pid) }).collect()
}

/// Kills those of them that are still there and are not a living actor's own. `known` are our processes as of now: a
/// stray that was reaped since may have left its id to one of them.
pub(crate) fn kill_strays(strays: &[Stray], known: &HashSet<i32>) {
    for Stray { os_pid, started_by } in strays {
        let is_child = || look_at(Id::Pid(Pid::from_raw(*os_pid))).is_ok();
        let is_owned = known.contains(&group_of(*os_pid)) || started_by.is_some_and(|actor| known.contains(&actor));
        if !known.contains(os_pid) && !is_owned && is_child() {
            let _ = kill(Pid::from_raw(*os_pid), Signal::SIGKILL);
        }
    }
}

/// The process group of a child of ours, which leads it if it has died meanwhile.
fn group_of(os_pid: i32) -> i32 {
    nix::unistd::getpgid(Some(Pid::from_raw(os_pid))).map_or(os_pid, Pid::as_raw)
}
