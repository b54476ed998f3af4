//! A descriptor that the event loop watches: the one place where it is registered.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Instant;

use tokio::io::Interest;
use tokio::io::unix::{AsyncFd, AsyncFdReadyGuard};

/// A descriptor of ours, and its readiness.
pub(crate) type Watched = AsyncFd<OwnedFd>;

/// Has the event loop watch for something to read. It would be woken for each message that the other side takes, were
/// it to watch for room as well.
pub(crate) fn watch(fd: OwnedFd) -> io::Result<Watched> {
    register(fd, Interest::READABLE)
}

/// Has the event loop watch for room to write, by a descriptor beside the one that is read from.
pub(crate) fn watch_for_room(fd: &OwnedFd) -> io::Result<Watched> {
    register(fd.try_clone()?, Interest::WRITABLE)
}

/// Waits until there is something to read; `None` if there is none by then.
pub(crate) async fn readable_until(
    watched: &Watched,
    until: Option<Instant>,
) -> Option<io::Result<AsyncFdReadyGuard<'_, OwnedFd>>> {
    match until {
        Some(until) => tokio::time::timeout_at(until.into(), watched.readable()).await.ok(),
        None => Some(watched.readable().await),
    }
}

fn register(fd: OwnedFd, interest: Interest) -> io::Result<Watched> {
    // SAFETY: an `OwnedFd` is open and the same descriptor for as long as it lives, which is as long as the result.
    unsafe { AsyncFd::register_with_interest(fd, interest) }.map_err(|error| io::Error::other(error.to_string()))
}
