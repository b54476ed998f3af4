//! What a process that an actor forks may still look at: it is kept until that has ended.
//!
//! Memory that messages have brought is kept for good ([`crate::arenas`]); arrays of tables for as long as one of the
//! processes lives that have inherited the writing end of a pipe, which is closed in what they execute.

use std::io::{self, PipeReader, PipeWriter};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use pyo3::prelude::*;
use rebeam_store::Array;

/// The end of a pipe by which it is known that all have ended who may look at these arrays.
struct Kept {
    ended: PipeReader,
    _arrays: Vec<Arc<Array>>,
}

static KEPT: Mutex<Vec<Kept>> = Mutex::new(Vec::new());

/// Whether there is something to let go of, sometime.
static IS_ANY: AtomicBool = AtomicBool::new(false);

/// The end that is inherited, from before a fork until after it.
static INHERITED: Mutex<Option<PipeWriter>> = Mutex::new(None);

fn kept() -> MutexGuard<'static, Vec<Kept>> {
    KEPT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A process is about to be forked, and may look into all that is mapped.
pub(crate) fn keep(arrays: Vec<Arc<Array>>) -> io::Result<()> {
    let_go();
    if arrays.is_empty() {
        return Ok(());
    }
    let (ended, inherited) = io::pipe()?;
    *INHERITED.lock().unwrap_or_else(PoisonError::into_inner) = Some(inherited);
    kept().push(Kept { ended, _arrays: arrays });
    IS_ANY.store(true, Ordering::Relaxed);
    Ok(())
}

/// It was forked, or not.
#[pyfunction]
pub(crate) fn forked() {
    INHERITED.lock().unwrap_or_else(PoisonError::into_inner).take();
}

/// Lets go of what was kept for processes that have ended.
pub(crate) fn let_go() {
    if !IS_ANY.load(Ordering::Relaxed) {
        return;
    }
    let has_ended = |kept: &Kept| {
        let mut polled = [PollFd::new(kept.ended.as_fd(), PollFlags::POLLIN)];
        poll(&mut polled, PollTimeout::ZERO).is_ok_and(|count| count > 0)
    };
    let mut all = kept();
    let (over, still): (Vec<Kept>, Vec<Kept>) = all.drain(..).partition(has_ended);
    IS_ANY.store(!still.is_empty(), Ordering::Relaxed);
    *all = still;
    drop(all);
    // Not under the lock: it asks for that of the tables.
    drop(over);
}
