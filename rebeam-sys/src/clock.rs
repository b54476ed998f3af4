//! The clock that supervisor and workers share.

use nix::time::ClockId;

/// The monotonic clock, in nanoseconds. All processes of a machine have the same.
pub fn monotonic_ns() -> u64 {
    ClockId::CLOCK_MONOTONIC.now().map_or(0, |now| now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64)
}

/// The same clock, in milliseconds: the time by which the rows of tables expire.
pub fn monotonic_ms() -> u64 {
    monotonic_ns() / 1_000_000
}
