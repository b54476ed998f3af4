//! Actors that share this process, each a thread, as `rebeam.testing` runs them; and the threads that these start, which
//! speak as the actor that they are of. It knows nothing of what is said.

use std::cell::Cell;
use std::os::fd::RawFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::channel::Channel;
use crate::session;

thread_local! {
    static OWN: Cell<Option<Own>> = const { Cell::new(None) };
}

/// Who a thread is.
#[derive(Clone, Copy)]
struct Own {
    actor: &'static Shared,
    /// Whether the actor, or another thread of its, has started this thread.
    is_guest: bool,
}

/// An actor that is a thread.
struct Shared {
    channel: Channel,
    life: Mutex<Life>,
}

/// The descriptors of an actor's channel are closed when it has ended and no thread of its uses them.
struct Life {
    is_over: bool,
    guests: usize,
}

impl Shared {
    fn life(&self) -> MutexGuard<'_, Life> {
        self.life.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The actor that a thread is of, to be given to another.
#[pyclass(frozen, module = "rebeam._rebeam")]
pub(crate) struct ThreadOwner {
    actor: &'static Shared,
}

/// Shakes hands as one of many actors of this process: the calling thread is the actor from now on.
#[pyfunction]
pub(crate) fn attach_in_process(py: Python<'_>, channel: RawFd, page: RawFd) -> PyResult<Bound<'_, PyDict>> {
    let (channel, start) = session::open_in_process(py, channel, page)?;
    // It lives as long as the process: a test has few of them, and nothing refers to one that may be gone.
    let actor = Box::leak(Box::new(Shared { channel, life: Mutex::new(Life { is_over: false, guests: 0 }) }));
    OWN.set(Some(Own { actor, is_guest: false }));
    Ok(start)
}

/// The actor of this thread is no more. What other threads of its wait for fails.
#[pyfunction]
pub(crate) fn detach_in_process() {
    let Some(own) = OWN.take() else { return };
    let mut life = own.actor.life();
    life.is_over = true;
    match life.guests {
        0 => own.actor.channel.close_descriptors(),
        _ => own.actor.channel.hang_up(),
    }
}

/// The actor that the calling thread is of, if it is one of many in this process.
#[pyfunction]
pub(crate) fn thread_owner() -> Option<ThreadOwner> {
    OWN.get().map(|own| ThreadOwner { actor: own.actor })
}

/// Makes the calling thread one of an actor; false if that has ended.
#[pyfunction]
pub(crate) fn join_in_process(owner: &ThreadOwner) -> bool {
    let mut life = owner.actor.life();
    if life.is_over {
        return false;
    }
    life.guests += 1;
    OWN.set(Some(Own { actor: owner.actor, is_guest: true }));
    true
}

/// The calling thread ends, which had joined an actor.
#[pyfunction]
pub(crate) fn part_in_process() {
    let Some(own) = OWN.take() else { return };
    let mut life = own.actor.life();
    life.guests -= 1;
    if life.is_over && life.guests == 0 {
        own.actor.channel.close_descriptors();
    }
}

/// The channel of the actor that this thread is of, if actors share this process and that one lives.
pub(crate) fn own_channel() -> Option<&'static Channel> {
    let own = OWN.get()?;
    let is_over = own.is_guest && own.actor.life().is_over;
    (!is_over).then_some(&own.actor.channel)
}

/// Whether this thread is of an actor that shares this process with others, or was.
pub(crate) fn is_shared() -> bool {
    OWN.get().is_some()
}

/// Whether this thread is such an actor itself.
pub(crate) fn is_actor() -> bool {
    OWN.get().is_some_and(|own| !own.is_guest)
}
