//! Keeps an eye on the memory of actors that have a limit, and of no others.
//!
//! Resident pages are read from `statm`, which costs microseconds; the proportional size, which is what counts (pages
//! shared with the zygote are not this actor's), only of who comes near a limit.

use std::time::Duration;

use rebeam_core::Event;

use crate::shell::engine::Node;

/// How often is looked.
const PERIOD: Duration = Duration::from_millis(250);

/// Looks until no actor with a limit is left.
pub(super) async fn watch(node: Node) {
    loop {
        tokio::time::sleep(PERIOD).await;
        let Some(limited) = node.memory_limits() else { return };
        for (process, os_pid, least_kib) in limited {
            if resident_kib(os_pid).is_some_and(|resident| resident >= least_kib)
                && let Some(used_kib) = proportional_kib(os_pid)
                && used_kib >= least_kib
            {
                node.handle(Event::OverMemory { process, used_kib });
            }
        }
    }
}

/// Resident memory, shared pages included.
fn resident_kib(os_pid: i32) -> Option<u64> {
    let statm = std::fs::read_to_string(format!("/proc/{os_pid}/statm")).ok()?;
    let pages: u64 = statm.split_whitespace().nth(1)?.parse().ok()?;
    let page_size = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok()??;
    Some(pages * page_size as u64 / 1024)
}

/// Proportional set size: each page divided by how many share it.
fn proportional_kib(os_pid: i32) -> Option<u64> {
    let rollup = std::fs::read_to_string(format!("/proc/{os_pid}/smaps_rollup")).ok()?;
    rollup.lines().find_map(|line| line.strip_prefix("Pss:")?.trim().strip_suffix(" kB")?.parse().ok())
}
