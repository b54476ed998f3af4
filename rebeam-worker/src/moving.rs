//! Handing this actor's state to the next process of its incarnation, and waiting for the result.
//!
//! It must not know what a state is made of; that is the affair of `rebeam._state`.

use std::cell::Cell;
use std::os::fd::{BorrowedFd, RawFd};
use std::time::{Duration, Instant};

use pyo3::prelude::*;
use rebeam_protocol::worker::ToSupervisor;

use crate::actor_loop::settle_done;
use crate::channel::Letter;
use crate::in_process::is_shared;
use crate::session::{actor_exit, channel, exit_ordered, send, send_with, wait};

/// The reason with which the loop ends when the actor is to move. Its text is the time for handlers that overlap, in
/// milliseconds.
pub(crate) const MOVE: &str = "move";

thread_local! {
    /// When this actor stopped taking mail.
    static STILL_SINCE: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// Notes that this actor takes no mail from now on.
pub(crate) fn stands_still() {
    STILL_SINCE.set(Some(Instant::now()));
}

/// Hands over the state, which is in the file of this descriptor. Finished messages are acknowledged first, so that they
/// are not handled again. With `waits`, messages that were not begun are dropped: the supervisor hands them over again.
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

/// Says that the state cannot be handed over, and that this process serves again. `is_failure`: a hook has raised.
#[pyfunction]
pub(crate) fn cannot_move(py: Python<'_>, why: String, is_failure: bool) -> PyResult<()> {
    STILL_SINCE.take();
    send(py, channel(py)?, &ToSupervisor::CannotMove { why, is_failure }, &[])
}

/// Waits for the result of the move: true if this process is to serve again, false if it is to end.
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
            // Other requests are repeated to the next process.
            _ => {}
        }
    }
}
