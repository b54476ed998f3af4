//! A process that was forked off one that reads has no page for pins: it reads no more.

use std::sync::atomic::{AtomicBool, Ordering};

static IS_FORKED: AtomicBool = AtomicBool::new(false);

/// This process was forked off one that reads. It reads no more, and lets go of what it has without a word.
pub fn forget_after_fork() {
    IS_FORKED.store(true, Ordering::Relaxed);
}

/// Whether this is such a process.
pub(crate) fn is_forked() -> bool {
    IS_FORKED.load(Ordering::Relaxed)
}
