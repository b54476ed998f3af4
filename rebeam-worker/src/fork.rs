//! Making a worker out of the zygote, as a child of the zygote's own parent.
//!
//! A plain `fork` would make the worker a child of the zygote, and its fate would hang on the zygote's. `clone` with
//! `CLONE_PARENT` makes it a sibling, so that the supervisor reaps it and the zygote may come and go. A raw clone
//! leaves the C library's cached thread id stale; letting the kernel write the new id where the C library keeps it
//! (`CLONE_CHILD_SETTID` at the address of `PR_GET_TID_ADDRESS`) puts that right. What it cannot do is run the
//! handlers of `pthread_atfork`: for applications whose libraries registered any, [`fork_twice`] forks for real and
//! lets the supervisor, a subreaper, inherit the grandchild.

use std::io::{self, Read, Write};

use pyo3::ffi;

/// Which side of a fork this is.
pub(crate) enum Side {
    /// The process that asked; the worker's id.
    Parent(u32),
    /// The new worker.
    Child,
}

/// Forks by `clone(CLONE_PARENT)`. Call it with the interpreter attached, in a process with one thread.
pub(crate) fn fork_as_sibling() -> io::Result<Side> {
    let mut tid_address: *mut libc::c_int = std::ptr::null_mut();
    // SAFETY: the kernel writes one pointer to the address given.
    if unsafe { libc::prctl(libc::PR_GET_TID_ADDRESS, &raw mut tid_address) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let flags = libc::CLONE_PARENT | libc::CLONE_CHILD_SETTID | libc::CLONE_CHILD_CLEARTID | libc::SIGCHLD;
    // SAFETY: the interpreter is attached to this, the only thread, which holds for the fork hooks and for the clone:
    // the child goes on with a copy of this very stack (a null stack pointer) and no lock held by another thread.
    unsafe {
        ffi::PyOS_BeforeFork();
        let result = raw_clone(i64::from(flags), tid_address);
        let error = io::Error::last_os_error();
        match result {
            0 => {
                ffi::PyOS_AfterFork_Child();
                Ok(Side::Child)
            }
            os_pid if os_pid > 0 => {
                ffi::PyOS_AfterFork_Parent();
                Ok(Side::Parent(os_pid as u32))
            }
            _ => {
                ffi::PyOS_AfterFork_Parent();
                Err(error)
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
unsafe fn raw_clone(flags: i64, child_tid: *mut libc::c_int) -> i64 {
    // SAFETY: the caller's; x86-64 takes flags, stack, parent tid, child tid, tls.
    unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, child_tid, 0) }
}

#[cfg(not(target_arch = "x86_64"))]
unsafe fn raw_clone(flags: i64, child_tid: *mut libc::c_int) -> i64 {
    // SAFETY: the caller's; the other 64-bit architectures take flags, stack, parent tid, tls, child tid.
    unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, child_tid) }
}

/// Forks twice by the C library's own `fork`, handlers of `pthread_atfork` included; the middle process ends at once.
pub(crate) fn fork_twice() -> io::Result<Side> {
    let (mut reader, mut writer) = io::pipe()?;
    // SAFETY: as in `fork_as_sibling`; the middle process calls nothing but fork, write and _exit.
    unsafe {
        ffi::PyOS_BeforeFork();
        match libc::fork() {
            0 => match libc::fork() {
                0 => {
                    ffi::PyOS_AfterFork_Child();
                    Ok(Side::Child)
                }
                os_pid => {
                    let _ = writer.write_all(&os_pid.to_le_bytes());
                    libc::_exit(0)
                }
            },
            middle => {
                let error = io::Error::last_os_error();
                ffi::PyOS_AfterFork_Parent();
                if middle < 0 {
                    return Err(error);
                }
                drop(writer);
                let mut os_pid = [0; 4];
                reader.read_exact(&mut os_pid)?;
                libc::waitpid(middle, std::ptr::null_mut(), 0);
                match i32::from_le_bytes(os_pid) {
                    os_pid if os_pid > 0 => Ok(Side::Parent(os_pid as u32)),
                    _ => Err(io::Error::other("the second fork failed")),
                }
            }
        }
    }
}
