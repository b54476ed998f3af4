//! The clock that supervisor and workers share.

use std::time::Duration;

use nix::time::ClockId;

/// The monotonic clock, in nanoseconds. All processes of a machine have the same.
pub fn monotonic_ns() -> u64 {
    ClockId::CLOCK_MONOTONIC.now().map_or(0, |now| now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64)
}

/// The time since 1970 that a file gets which is made now.
pub fn file_time() -> Duration {
    #[cfg(target_os = "linux")]
    let clock = ClockId::CLOCK_REALTIME_COARSE;
    #[cfg(not(target_os = "linux"))]
    let clock = ClockId::CLOCK_REALTIME;
    clock.now().map_or(Duration::ZERO, Duration::from)
}
