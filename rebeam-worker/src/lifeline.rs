//! The lifeline: a socket on which nothing is ever said, and whose end is this process group's end.
//!
//! When the supervisor is gone, by whatever means, the kernel closes the other end and raises the signal that was set
//! here: SIGKILL, to the whole process group, stopped processes included. No thread watches, no signal handler runs.
//! (`PR_SET_PDEATHSIG` will not do: it fires when a *thread* of the parent ends.)

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

const F_SETSIG: libc::c_int = 10;

/// Ties the calling process's group to the lifeline. The descriptor must stay open from now on.
pub(crate) fn tie(lifeline: &OwnedFd) -> io::Result<()> {
    let fd = lifeline.as_raw_fd();
    // SAFETY: plain calls on an open descriptor, no memory involved.
    unsafe {
        let group = libc::getpgrp();
        check(libc::fcntl(fd, libc::F_SETOWN, -group))?;
        check(libc::fcntl(fd, F_SETSIG, libc::SIGKILL))?;
        let flags = check(libc::fcntl(fd, libc::F_GETFL))?;
        check(libc::fcntl(fd, libc::F_SETFL, flags | libc::O_ASYNC))?;
        // The supervisor may have gone before the signal was set.
        let mut poll = libc::pollfd { fd, events: 0, revents: 0 };
        if check(libc::poll(&raw mut poll, 1, 0))? == 1 && poll.revents & libc::POLLHUP != 0 {
            libc::kill(-group, libc::SIGKILL);
        }
    }
    Ok(())
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
