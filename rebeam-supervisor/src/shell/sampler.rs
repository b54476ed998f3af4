//! What the system knows of processes: memory, processor time, whether they are stopped, whose children they are.
//!
//! A reading of `/proc` may take long (`smaps_rollup` of a large process takes 100 ms, and waits for that process's own
//! page faults), so none is made on the engine's loop: whoever wants one hands it to [`look`], which has another thread
//! make it. The functions here do the reading; they know processes by their ids, and nothing of actors.

use std::collections::HashMap;
use std::io;

use nix::unistd::{SysconfVar, sysconf};
use rebeam_sys::process::children_of;
use tokio::task::spawn_blocking;

/// How many readings are made at once; more wait. Each of those that take long (two for memory, one for `/metrics`, one for
/// stray processes) is made once at a time, so that a short one need not wait.
pub(crate) const THREADS: usize = 8;

/// Of how many processes of a program the children are looked up: one that forks without end is not followed forever.
const MOST_DESCENDANTS: usize = 1000;

/// Has a thread made before there are actors, who may use up what the system allows. Tokio panics if it cannot make its
/// first; with one that stays, more readings than threads wait.
pub(crate) async fn prepare() {
    let _ = look(|| ()).await;
}

/// Reads on another thread.
///
/// # Errors
/// The reading panicked, or the node ends.
pub(crate) async fn look<T: Send + 'static>(read: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    spawn_blocking(read).await.map_err(io::Error::other)
}

/// An actor's process. What a foreign program uses is what its port and all of the port's descendants use.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Measured {
    pub(crate) os_pid: i32,
    pub(crate) is_port: bool,
}

impl Measured {
    /// Resident memory, in KiB; `None`: it is gone.
    pub(crate) fn resident_kib(self) -> Option<u64> {
        self.sum(resident_kib)
    }

    /// Proportional set size, in KiB; `None`: it is gone.
    pub(crate) fn proportional_kib(self) -> Option<u64> {
        self.sum(proportional_kib)
    }

    /// User and system time, in seconds. Of a program, also of those of its processes that have ended.
    pub(crate) fn cpu_seconds(self) -> f64 {
        match self.is_port {
            false => cpu_times(self.os_pid, 2),
            true => self.descendants().into_iter().map(|os_pid| cpu_times(os_pid, 4)).sum(),
        }
    }

    fn sum(self, kib: impl Fn(i32) -> Option<u64>) -> Option<u64> {
        let own = kib(self.os_pid)?;
        let others = if self.is_port { self.descendants() } else { Vec::new() };
        Some(own + others.into_iter().filter(|it| *it != self.os_pid).filter_map(kib).sum::<u64>())
    }

    /// It, and all that it has started.
    fn descendants(self) -> Vec<i32> {
        let mut all = vec![self.os_pid];
        let mut looked_at = 0;
        while let Some(os_pid) = all.get(looked_at).filter(|_| looked_at < MOST_DESCENDANTS) {
            all.extend(children_of(*os_pid));
            looked_at += 1;
        }
        all
    }
}

/// Resident memory, in KiB, of those that live.
pub(crate) fn resident_sizes(measured: &[Measured]) -> HashMap<u32, u64> {
    measured.iter().filter_map(|it| Some((it.os_pid as u32, it.resident_kib()?))).collect()
}

/// Resident memory, in KiB, what is shared with others included. Costs microseconds.
pub(crate) fn resident_kib(os_pid: i32) -> Option<u64> {
    let statm = std::fs::read_to_string(format!("/proc/{os_pid}/statm")).ok()?;
    let page_kib = sysconf(SysconfVar::PAGE_SIZE).ok()?? as u64 / 1024;
    Some(statm.split_whitespace().nth(1)?.parse::<u64>().ok()? * page_kib)
}

/// Proportional set size, in KiB: each page divided by how many share it.
pub(crate) fn proportional_kib(os_pid: i32) -> Option<u64> {
    let rollup = std::fs::read_to_string(format!("/proc/{os_pid}/smaps_rollup")).ok()?;
    rollup.lines().find_map(|line| line.strip_prefix("Pss:")?.trim().strip_suffix(" kB")?.parse().ok())
}

/// User and system time of a process, in seconds.
pub(crate) fn cpu_seconds(os_pid: u32) -> f64 {
    cpu_times(os_pid as i32, 2)
}

/// The first of the four times that `/proc/<pid>/stat` has, in seconds: own in user mode and in the kernel, and those of
/// children that were waited for.
fn cpu_times(os_pid: i32, count: usize) -> f64 {
    let stat = fields_of_stat(os_pid);
    let ticks: u64 = stat.split(' ').skip(11).take(count).filter_map(|field| field.parse::<u64>().ok()).sum();
    let per_second = sysconf(SysconfVar::CLK_TCK).ok().flatten().unwrap_or(100);
    ticks as f64 / per_second as f64
}

/// Whether a process is stopped, by SIGSTOP or a debugger.
pub(crate) fn is_stopped(os_pid: i32) -> bool {
    fields_of_stat(os_pid).starts_with(['T', 't'])
}

/// What `/proc/<pid>/stat` says after the name, which may hold anything.
fn fields_of_stat(os_pid: i32) -> String {
    let stat = std::fs::read_to_string(format!("/proc/{os_pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").map_or_else(String::new, |(_, rest)| rest.to_owned())
}

/// How many descriptors this process has open, and how many threads.
pub(crate) fn own_counts() -> (u64, u64) {
    let count = |directory| std::fs::read_dir(directory).map_or(0, |entries| entries.count() as u64);
    (count("/proc/self/fd"), count("/proc/self/task"))
}

/// The children of this process, those that died and are not reaped among them.
pub(crate) fn children() -> Vec<i32> {
    children_of(std::process::id() as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_this_process_everything_is_known() {
        let me = std::process::id();
        assert!(resident_kib(me as i32) > Some(0));
        assert!(proportional_kib(me as i32) > Some(0));
        assert!(cpu_seconds(me) >= 0.0 && !is_stopped(me as i32));
        let of = |is_port| Measured { os_pid: me as i32, is_port };
        assert!(of(false).resident_kib() > Some(0) && of(false).cpu_seconds() >= 0.0);
        assert!(of(true).descendants().contains(&(me as i32)) && of(true).proportional_kib() > Some(0));
    }

    #[test]
    fn of_nobody_nothing_is() {
        assert_eq!((resident_kib(-1), proportional_kib(-1)), (None, None));
        assert_eq!((cpu_seconds(u32::MAX), is_stopped(-1)), (0.0, false));
    }
}
