//! The time as this process has it: the system's, or, where many actors share a process to be tested, one that a test
//! moves on.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use pyo3::prelude::*;

/// When virtual time began, and how far it has come, in nanoseconds.
static VIRTUAL: OnceLock<Instant> = OnceLock::new();
static OFFSET: AtomicU64 = AtomicU64::new(0);

/// The time.
pub(crate) fn now() -> Instant {
    match VIRTUAL.get() {
        None => Instant::now(),
        Some(start) => *start + Duration::from_nanos(OFFSET.load(Ordering::Acquire)),
    }
}

/// Seconds of the time since some moment.
#[pyfunction]
pub(crate) fn clock() -> f64 {
    static FIRST: OnceLock<Instant> = OnceLock::new();
    now().saturating_duration_since(*FIRST.get_or_init(now)).as_secs_f64()
}

/// Whether time stands still unless a test moves it on.
pub(crate) fn is_virtual() -> bool {
    VIRTUAL.get().is_some()
}

/// How much virtual time has passed; `None` if time is not virtual.
pub(crate) fn passed() -> Option<Duration> {
    is_virtual().then(|| Duration::from_nanos(OFFSET.load(Ordering::Acquire)))
}

/// From now on time is virtual.
#[cfg(feature = "testing")]
pub(crate) fn stop() {
    VIRTUAL.get_or_init(Instant::now);
}

/// Moves virtual time on.
#[cfg(feature = "testing")]
pub(crate) fn advance(by: Duration) {
    OFFSET.fetch_add(by.as_nanos() as u64, Ordering::AcqRel);
}

/// Whether time is virtual.
#[pyfunction(name = "is_virtual")]
pub(crate) fn is_virtual_time() -> bool {
    is_virtual()
}
