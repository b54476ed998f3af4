//! Processes: starting programs with descriptors in place, signals to single threads, ends that cannot be missed.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use command_fds::{CommandFdExt, FdMapping};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::WaitStatus;
use nix::unistd::Pid;

/// The signal at which a worker writes its stacks.
pub fn dump_signal() -> i32 {
    libc::SIGRTMIN() + 1
}

/// The signal at which a worker writes what its event loop's tasks wait for, which takes its interpreter.
pub fn tasks_signal() -> i32 {
    libc::SIGRTMIN() + 3
}

/// The signal at which a worker looks whether an exit signal came.
pub fn exit_signal() -> i32 {
    libc::SIGRTMIN() + 2
}

/// Sends a signal to the main thread of a child, so that it interrupts what that thread waits for. Safe only while the
/// child is not reaped: until then the number is its own.
pub fn signal_main_thread(os_pid: i32, signal: i32) {
    // SAFETY: a system call that takes numbers.
    unsafe { libc::syscall(libc::SYS_tgkill, os_pid, os_pid, signal) };
}

/// Among which processes a new one is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// It leads a session, away from our terminal.
    Session,
    /// It leads a process group.
    Group,
}

/// Starts a program with `fds` as its descriptors 3, 4, 5…; gives its process id.
///
/// # Errors
/// Those of the system.
pub fn spawn(mut command: Command, fds: &[BorrowedFd<'_>], group: Group) -> io::Result<i32> {
    let mappings = fds.iter().zip(3..);
    let mappings = mappings.map(|(fd, child_fd)| Ok(FdMapping { parent_fd: fd.try_clone_to_owned()?, child_fd }));
    command.fd_mappings(mappings.collect::<io::Result<_>>()?).map_err(io::Error::other)?;
    match group {
        Group::Group => drop(command.process_group(0)),
        // SAFETY: setsid is async-signal-safe, and allocates nothing.
        Group::Session => unsafe {
            command.pre_exec(|| Ok(nix::unistd::setsid().map(drop)?));
        },
    }
    Ok(command.spawn()?.id() as i32)
}

/// Takes over a descriptor that this process was started with, by its number. Children that it starts do not inherit it.
///
/// # Errors
/// There is no such descriptor.
///
/// # Safety
/// Nobody else in this process owns the number.
pub unsafe fn inherited(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: that it is open is checked with the next call, before anything is done with it; that nobody else owns it is
    // the caller's promise.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    fcntl(borrowed, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    // SAFETY: as above.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Ties the calling process's group to a socket on which nothing is ever said: when the other end is closed, by whatever
/// means, the kernel sends SIGKILL to the whole group, stopped processes included. No thread watches, no signal handler
/// runs. (`PR_SET_PDEATHSIG` will not do: it fires when a *thread* of the parent ends.) The descriptor has to stay open.
///
/// # Errors
/// Those of the system.
pub fn tie_to(lifeline: impl AsFd) -> io::Result<()> {
    const F_SETSIG: libc::c_int = 10;
    let fd = lifeline.as_fd().as_raw_fd();
    let check = |result: libc::c_int| if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) };
    let group = nix::unistd::getpgrp();
    // SAFETY: plain calls on an open descriptor, no memory involved.
    unsafe {
        check(libc::fcntl(fd, libc::F_SETOWN, -group.as_raw()))?;
        check(libc::fcntl(fd, F_SETSIG, libc::SIGKILL))?;
        let flags = check(libc::fcntl(fd, libc::F_GETFL))?;
        check(libc::fcntl(fd, libc::F_SETFL, flags | libc::O_ASYNC))?;
    }
    // The other end may have gone before the signal was set.
    let mut polled = [PollFd::new(lifeline.as_fd(), PollFlags::empty())];
    if poll(&mut polled, PollTimeout::ZERO)? == 1
        && polled[0].revents().is_some_and(|found| found.contains(PollFlags::POLLHUP))
    {
        killpg(group, Signal::SIGKILL)?;
    }
    Ok(())
}

/// A child that was reaped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reaped {
    /// How it ended; `None` if that has no name here, or it was no child of ours.
    pub status: Option<WaitStatus>,
    /// The number of the signal that ended it, or 0.
    pub signal: i32,
    /// User and system time, in milliseconds.
    pub cpu_ms: u64,
    /// Largest resident size, in KiB.
    pub peak_kib: u64,
}

/// Reaps a child that has died.
pub fn reap(os_pid: i32) -> Reaped {
    let mut status = 0;
    // SAFETY: rusage is plain data for which zero is valid.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes one status and one rusage.
    let result = unsafe { libc::wait4(os_pid, &raw mut status, 0, &raw mut usage) };
    let ms = |time: libc::timeval| time.tv_sec as u64 * 1000 + time.tv_usec as u64 / 1000;
    let signal = status & 0x7f;
    let status = (result == os_pid).then(|| WaitStatus::from_raw(Pid::from_raw(os_pid), status).ok()).flatten();
    Reaped { status, signal, cpu_ms: ms(usage.ru_utime) + ms(usage.ru_stime), peak_kib: usage.ru_maxrss as u64 }
}

/// The children of a process, those that have died and are not reaped among them; empty if it is gone.
pub fn children_of(os_pid: i32) -> Vec<i32> {
    let Ok(tasks) = fs::read_dir(format!("/proc/{os_pid}/task")) else { return Vec::new() };
    let lists: Vec<String> =
        tasks.flatten().filter_map(|task| fs::read_to_string(task.path().join("children")).ok()).collect();
    if !lists.is_empty() {
        return lists.iter().flat_map(|list| list.split_whitespace()).filter_map(|id| id.parse().ok()).collect();
    }
    // A kernel without these lists.
    let Ok(all) = fs::read_dir("/proc") else { return Vec::new() };
    let ids = all.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let is_child = |id: &i32| {
        let stat = fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
        let parent = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(1)?.parse::<i32>().ok());
        parent == Some(os_pid)
    };
    ids.filter(is_child).collect()
}

/// Ends this process at once, without running anything of it.
pub fn end_at_once(code: i32) -> ! {
    // SAFETY: it does not come back.
    unsafe { libc::_exit(code) }
}

/// Gives memory of the C library's allocator that is free back to the system.
pub fn trim_allocator() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: a call of the allocator without conditions.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// How many threads this process has.
pub fn thread_count() -> usize {
    // Each task is a directory there, beside `.` and `..`.
    nix::sys::stat::stat("/proc/self/task").map_or(0, |found| (found.st_nlink as usize).saturating_sub(2))
}
