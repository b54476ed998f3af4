//! Giving this actor's state to the next process of its incarnation, and waiting until that has taken over, or has failed to.
//!
//! It must not know what a state is: that is `rebeam._state`'s affair. The loop that handles mail stands still meanwhile.

use std::cell::Cell;
use std::os::fd::{BorrowedFd, RawFd};
use std::time::{Duration, Instant};

use pyo3::prelude::*;
use rebeam_protocol::worker::ToSupervisor;

use crate::actor_loop::settle_done;
use crate::channel::Letter;
use crate::in_process::is_shared;
use crate::session::{actor_exit, channel, exit_ordered, send, send_with, wait};

/// What the loop ends with when the actor is to hand its state over and wait; its text is how many milliseconds handlers
/// that overlap may take.
pub(crate) const MOVE: &str = "move";

thread_local! {
    /// Since when this actor takes no mail.
    static STILL_SINCE: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// From now on this actor takes no mail.
pub(crate) fn stands_still() {
    STILL_SINCE.set(Some(Instant::now()));
}

/// Gives the state for the next process, which lies in this memory. What was done is told before, so that the next process
/// does not do it again. With `waits`, what was handed over and not begun is dropped: it was taken back.
#[pyfunction]
pub(crate) fn hand_over(py: Python<'_>, memory: RawFd, runs_init: bool, waits: bool) -> PyResult<()> {
    let channel = channel(py)?;
    settle_done(py, channel)?;
    if waits {
        channel.stand_still();
    }
    let took = STILL_SINCE.take().map_or(Duration::ZERO, |since| since.elapsed());
    let message = ToSupervisor::HandOver { runs_init, took_us: took.as_micros() as u64 };
    // SAFETY: its owner, the caller, keeps it open until this has returned.
    let memory = unsafe { BorrowedFd::borrow_raw(memory) };
    send_with(py, channel, &message, &[], Some(memory))
}

/// Says that the state cannot be given, and that this process goes on; with `is_failure`, that a hook has failed.
#[pyfunction]
pub(crate) fn cannot_move(py: Python<'_>, why: String, is_failure: bool) -> PyResult<()> {
    STILL_SINCE.take();
    send(py, channel(py)?, &ToSupervisor::CannotMove { why, is_failure }, &[])
}

/// Waits for what has become of the next process: true if this one is to go on, false if it is to end.
#[pyfunction]
pub(crate) fn wait_for_successor(py: Python<'_>) -> PyResult<bool> {
    let channel = channel(py)?;
    loop {
        match wait(py, || channel.wait_for_process())? {
            Some(Letter::GoOn) => {
                channel.page.forget_all();
                return Ok(true);
            }
            Some(Letter::Leave) => return Ok(false),
            Some(Letter::Exit) if is_shared() || exit_ordered() => return Err(actor_exit(py)?),
            Some(Letter::StacksTaken) => channel.rewind_stacks(),
            Some(Letter::LogLevel(level)) => {
                py.import("rebeam._logging")?.call_method1("set_level", (level,))?;
            }
            // Whatever else was asked, the next process is asked again.
            _ => {}
        }
    }
}
