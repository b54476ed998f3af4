//! A descriptor that the event loop watches: the one place where it is registered.

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::unix::AsyncFd;

/// A descriptor of ours, and its readiness.
pub(crate) type Watched = AsyncFd<OwnedFd>;

/// Has the event loop watch a descriptor.
pub(crate) fn watch(fd: OwnedFd) -> io::Result<Watched> {
    // SAFETY: an `OwnedFd` is open and the same descriptor for as long as it lives, which is as long as the result.
    unsafe { AsyncFd::register(fd) }.map_err(|error| io::Error::other(error.to_string()))
}
