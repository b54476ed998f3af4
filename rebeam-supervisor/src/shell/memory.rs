//! Keeps an eye on the memory of actors that have a limit, and, where the container has one, on the whole.
//!
//! Resident pages are read from `statm`, which costs microseconds; the proportional size, which is what counts (pages
//! shared with the zygote are not this actor's), only of who comes near a limit.

use std::time::Duration;

use rebeam_core::Event;

use crate::printer::Printer;
use crate::shell::cgroup::Group;
use crate::shell::engine::Node;

/// How often is looked.
const PERIOD: Duration = Duration::from_millis(250);

/// As fast as a process can take memory here, in bytes per second (new pages must be cleared): what is left is looked at
/// again before it can be gone, but neither all the time nor never.
const FASTEST: f64 = 2e9;
const SHORTEST: Duration = Duration::from_millis(10);
const LONGEST: Duration = Duration::from_secs(1);

/// How long an actor that was ended may take to give its memory back before another one is.
const LET_GO: Duration = Duration::from_millis(500);

/// Ends the fattest actor before the kernel ends whom it likes (rule 15 of the design): the kernel may take the whole
/// container with it, and does not say why.
pub(super) async fn guard(node: Node, group: Group, limit: u64, printer: Printer) {
    // What may come between two looks: a sixteenth, but not much of a small container, nor more than is ever needed.
    let reserve = (limit / 16).clamp(4 << 20, 256 << 20).min(limit / 4);
    let mut has_warned = false;
    loop {
        let Some(used) = group.memory_in_use() else { return };
        let room = limit.saturating_sub(used);
        tokio::time::sleep(Duration::from_secs_f64(room as f64 / FASTEST).clamp(SHORTEST, LONGEST)).await;
        if group.memory_in_use().is_none_or(|used| limit.saturating_sub(used) > reserve) {
            continue;
        }
        let sizes = node.processes().into_iter().filter_map(|(process, os_pid)| Some((process, private_kib(os_pid)?)));
        let fattest = sizes.max_by_key(|(_, used_kib)| *used_kib);
        match fattest.filter(|(_, used_kib)| used_kib * 1024 >= limit / 16) {
            Some((process, used_kib)) => {
                node.handle(Event::OutOfRoom { process, used_kib, limit_kib: limit / 1024 });
                has_warned = false;
            }
            None if !has_warned => {
                has_warned = true;
                printer.warn("the memory of the container is nearly used up, and not by an actor");
            }
            None => {}
        }
        tokio::time::sleep(LET_GO).await;
    }
}

/// Resident memory that is this process's own: quicker to read than the proportional size, and near it.
fn private_kib(os_pid: i32) -> Option<u64> {
    let (resident, shared) = sizes_kib(os_pid)?;
    Some(resident.saturating_sub(shared))
}

/// Looks until no actor with a limit is left.
pub(super) async fn watch(node: Node) {
    loop {
        tokio::time::sleep(PERIOD).await;
        let Some(limited) = node.memory_limits() else { return };
        for (process, os_pid, least_kib) in limited {
            if sizes_kib(os_pid).is_some_and(|(resident, _)| resident >= least_kib)
                && let Some(used_kib) = proportional_kib(os_pid)
                && used_kib >= least_kib
            {
                node.handle(Event::OverMemory { process, used_kib });
            }
        }
    }
}

/// Resident memory, and how much of it files and shared memory are.
fn sizes_kib(os_pid: i32) -> Option<(u64, u64)> {
    let statm = std::fs::read_to_string(format!("/proc/{os_pid}/statm")).ok()?;
    let mut pages = statm.split_whitespace().skip(1).map(str::parse::<u64>);
    let page_kib = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok()?? as u64 / 1024;
    Some((pages.next()?.ok()? * page_kib, pages.next()?.ok()? * page_kib))
}

/// Proportional set size: each page divided by how many share it.
pub(super) fn proportional_kib(os_pid: i32) -> Option<u64> {
    let rollup = std::fs::read_to_string(format!("/proc/{os_pid}/smaps_rollup")).ok()?;
    rollup.lines().find_map(|line| line.strip_prefix("Pss:")?.trim().strip_suffix(" kB")?.parse().ok())
}
