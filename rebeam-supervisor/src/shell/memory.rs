//! Keeps an eye on the memory of actors that have a limit, and, where the container has one, on the whole.
//!
//! Of everybody the resident size is read, which costs microseconds; the proportional size, which is what counts (pages
//! shared with the zygote are not this actor's), only of who comes near a limit. All of it is read by the [`sampler`].

use std::sync::Arc;
use std::time::{Duration, Instant};

use rebeam_core::Event;
use rebeam_protocol::id::ProcessId;

use crate::printer::Printer;
use crate::shell::cgroup::Group;
use crate::shell::sampler::{Measured, look};
use crate::view::text::kib;

/// How often is looked.
const PERIOD: Duration = Duration::from_millis(250);

/// As fast as a process can take memory here, in bytes per second (new pages must be cleared): what is left is looked at
/// again before it can be gone, but neither all the time nor never.
const FASTEST: f64 = 2e9;
const SHORTEST: Duration = Duration::from_millis(10);
const LONGEST: Duration = Duration::from_secs(1);

/// The shortest when nothing has grown for a while.
const CALM: Duration = Duration::from_millis(100);
const A_WHILE: Duration = Duration::from_secs(1);

/// More than this between two looks is growth, in bytes: 12 MB/s and above, at the shortest.
const GROWTH: u64 = 128 << 10;

/// How long an actor that was ended may take to give its memory back, and how long nobody else is ended if that did not
/// help.
const LET_GO: Duration = Duration::from_millis(500);
const IN_VAIN: Duration = Duration::from_secs(10);

/// How many of the largest are measured exactly.
const CANDIDATES: usize = 5;

/// The actors, as far as their memory goes.
pub(crate) trait Actors {
    /// Every actor's process.
    fn processes(&self) -> Vec<(ProcessId, Measured)>;

    /// Who has a limit: the process, and the least that matters, in KiB. `None` if nobody has.
    fn limited(&self) -> Option<Vec<(ProcessId, Measured, u64)>>;

    /// Bytes that the tables take.
    fn table_bytes(&self) -> u64;

    /// Somebody uses too much.
    fn tell(&self, event: Event);
}

/// Ends the fattest actor before the kernel ends whom it likes (rule 15 of the design): the kernel may take the whole
/// container with it, and does not say why.
pub(super) async fn guard(actors: impl Actors, group: Group, limit: u64, printer: Printer) {
    let reserve = reserve(limit);
    let memory_in_use = {
        let group = Arc::new(group);
        move || {
            let group = group.clone();
            async move { look(move || group.memory_in_use()).await.ok().flatten() }
        }
    };
    let mut has_warned = false;
    let mut pace = Pace::new(Instant::now());
    loop {
        let Some(used) = memory_in_use().await else {
            // Out of descriptors, most likely.
            tokio::time::sleep(LONGEST).await;
            continue;
        };
        let room = limit.saturating_sub(used);
        if room > reserve {
            tokio::time::sleep(pace.until_next(used, room, Instant::now())).await;
            continue;
        }
        let processes = actors.processes();
        match look(move || fattest(&processes, limit)).await.ok().flatten() {
            Some((process, used_kib)) => {
                actors.tell(Event::OutOfRoom { process, used_kib, limit_kib: limit / 1024 });
                has_warned = false;
                tokio::time::sleep(LET_GO).await;
                // If its end has freed nothing, nor will another's.
                let freed = used.saturating_sub(memory_in_use().await.unwrap_or(used));
                if freed < used_kib * 1024 / 4 {
                    tokio::time::sleep(IN_VAIN).await;
                }
            }
            None => {
                if !has_warned {
                    has_warned = true;
                    let tables = match actors.table_bytes() / 1024 {
                        0 => String::new(),
                        tables => format!(" (tables take {})", kib(tables)),
                    };
                    let what = "the memory of the container is nearly used up, and not by actors";
                    printer.warn(&format!("{what}{tables}"));
                }
                tokio::time::sleep(LONGEST).await;
            }
        }
    }
}

/// What may come between two looks: a sixteenth, but not much of a small container, nor more than is ever needed.
fn reserve(limit: u64) -> u64 {
    (limit / 16).clamp(4 << 20, 256 << 20).min(limit / 4)
}

/// How soon to look again.
struct Pace {
    before: u64,
    /// When it was last seen to grow.
    grew: Instant,
}

impl Pace {
    fn new(now: Instant) -> Self {
        Pace { before: 0, grew: now }
    }

    fn until_next(&mut self, used: u64, room: u64, now: Instant) -> Duration {
        if used > self.before + GROWTH {
            self.grew = now;
        }
        self.before = used;
        let shortest = if now.duration_since(self.grew) < A_WHILE { SHORTEST } else { CALM };
        Duration::from_secs_f64(room as f64 / FASTEST).clamp(shortest, LONGEST)
    }
}

/// Who uses the most, and how much, in KiB of proportional set size: what is shared with the zygote is not an actor's.
/// `None` if the actors together do not use a quarter of the limit: it is not their fault.
fn fattest(processes: &[(ProcessId, Measured)], limit: u64) -> Option<(ProcessId, u64)> {
    let resident = |measured: &Measured| measured.resident_kib().unwrap_or(0);
    let mut all: Vec<(u64, ProcessId, Measured)> =
        processes.iter().map(|(it, measured)| (resident(measured), *it, *measured)).collect();
    all.sort_unstable_by_key(|(size, ..)| std::cmp::Reverse(*size));
    let measured =
        all.iter().take(CANDIDATES).filter_map(|(_, it, measured)| Some((*it, measured.proportional_kib()?)));
    let (process, used_kib) = measured.max_by_key(|(_, used_kib)| *used_kib)?;
    // No other has more than this one.
    let together = used_kib * 1024 * all.len() as u64;
    (together >= limit / 4).then_some((process, used_kib))
}

/// Who of them uses as much as matters, and how much, in KiB of proportional set size.
fn over_limit(limited: &[(ProcessId, Measured, u64)]) -> Vec<(ProcessId, u64)> {
    let used = |(process, measured, least_kib): &(ProcessId, Measured, u64)| {
        measured.resident_kib().filter(|resident| resident >= least_kib)?;
        Some((*process, measured.proportional_kib().filter(|used_kib| used_kib >= least_kib)?))
    };
    limited.iter().filter_map(used).collect()
}

/// Looks until no actor with a limit is left.
pub(super) async fn watch(actors: impl Actors) {
    loop {
        tokio::time::sleep(PERIOD).await;
        let Some(limited) = actors.limited() else { return };
        for (process, used_kib) in look(move || over_limit(&limited)).await.unwrap_or_default() {
            actors.tell(Event::OverMemory { process, used_kib });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// How much room is left at the first look that finds less than the reserve, where `used` grows from a time on.
    fn room_when_seen(limit: u64, calm: Duration, used: impl Fn(Duration) -> u64) -> u64 {
        let begin = Instant::now();
        let mut pace = Pace::new(begin);
        let mut elapsed = Duration::ZERO;
        loop {
            let used = used(elapsed.saturating_sub(calm));
            let room = limit.saturating_sub(used);
            if room <= reserve(limit) {
                return room;
            }
            elapsed += pace.until_next(used, room, begin + elapsed);
        }
    }

    #[test]
    fn growth_of_any_pace_is_seen_before_it_has_used_up_a_small_container() {
        for (calm, per_second) in [0, 1, 30].into_iter().flat_map(|calm| [1, 5, 20, 60, 100, 200].map(|it| (calm, it)))
        {
            let used = |since: Duration| 20 * MIB + (since.as_secs_f64() * (per_second * MIB) as f64) as u64;
            let left = room_when_seen(64 * MIB, Duration::from_secs(calm), used);
            assert!(left >= MIB, "{per_second} MiB/s after {calm} s: {left} bytes left");
        }
    }

    #[test]
    fn where_nothing_grows_it_looks_ten_times_a_second_at_most() {
        let begin = Instant::now();
        let mut pace = Pace::new(begin);
        pace.until_next(60 * MIB, 4 * MIB, begin);
        let after = begin + A_WHILE;
        assert_eq!(pace.until_next(60 * MIB + 1, 4 * MIB - 1, after), CALM);
        assert_eq!(pace.until_next(60 * MIB, 100 << 30, after), LONGEST);
    }
}
