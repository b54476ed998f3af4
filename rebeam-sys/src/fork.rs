//! Forks whose child is not the caller's but the caller's own parent's.
//!
//! A plain `fork` would make the child hang on the caller's fate. `clone` with `CLONE_PARENT` makes it a sibling, so that
//! the common parent reaps it and the caller may come and go. A raw clone leaves the C library's cached thread id stale;
//! letting the kernel write the new id where the C library keeps it (`CLONE_CHILD_SETTID` at the address of
//! `PR_GET_TID_ADDRESS`) puts that right. What it cannot do is run the handlers of `pthread_atfork`: where libraries have
//! registered any, [`fork_twice`] forks for real and lets the parent, a subreaper, inherit the grandchild.

use std::io::{self, Read, Write};

use crate::process::thread_count;

/// Which side of a fork this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The process that asked; the new one's id.
    Parent(u32),
    /// The new process.
    Child,
}

/// What is run around a fork, as `pthread_atfork` has it.
pub trait Hooks {
    /// Before it.
    fn before(&self);
    /// After it, in the process that asked, whether or not it worked.
    fn in_parent(&self);
    /// After it, in the new process.
    fn in_child(&self);
}

/// Forks by `clone(CLONE_PARENT)`.
///
/// # Errors
/// Those of the system; [`io::ErrorKind::Unsupported`] if this process has other threads, of which the child would have
/// only the locks.
pub fn fork_as_sibling(hooks: &impl Hooks) -> io::Result<Side> {
    let threads = thread_count();
    if threads > 1 {
        return Err(io::Error::new(io::ErrorKind::Unsupported, format!("there are {threads} threads")));
    }
    let mut tid_address: *mut libc::c_int = std::ptr::null_mut();
    // SAFETY: the kernel writes one pointer to the address given.
    if unsafe { libc::prctl(libc::PR_GET_TID_ADDRESS, &raw mut tid_address) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let flags = libc::CLONE_PARENT | libc::CLONE_CHILD_SETTID | libc::CLONE_CHILD_CLEARTID | libc::SIGCHLD;
    hooks.before();
    // SAFETY: the calling thread is the only one, as was just counted, so no lock is held by another. The child goes on
    // with a copy of this very stack (a null stack pointer).
    let result = unsafe { raw_clone(i64::from(flags), tid_address) };
    let error = io::Error::last_os_error();
    side(result, error, hooks)
}

fn side(result: i64, error: io::Error, hooks: &impl Hooks) -> io::Result<Side> {
    if result == 0 {
        hooks.in_child();
        return Ok(Side::Child);
    }
    hooks.in_parent();
    if result > 0 { Ok(Side::Parent(result as u32)) } else { Err(error) }
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
///
/// # Errors
/// Those of the system.
pub fn fork_twice(hooks: &impl Hooks) -> io::Result<Side> {
    let (mut reader, mut writer) = io::pipe()?;
    hooks.before();
    // SAFETY: the C library's own fork, with its handlers; the middle process calls nothing but fork, write and _exit.
    match unsafe { libc::fork() } {
        // SAFETY: as above.
        0 => match unsafe { libc::fork() } {
            0 => {
                hooks.in_child();
                Ok(Side::Child)
            }
            os_pid => {
                let _ = writer.write_all(&os_pid.to_le_bytes());
                crate::process::end_at_once(0)
            }
        },
        middle => {
            let error = io::Error::last_os_error();
            hooks.in_parent();
            if middle < 0 {
                return Err(error);
            }
            drop(writer);
            let mut os_pid = [0; 4];
            reader.read_exact(&mut os_pid)?;
            crate::process::reap(middle);
            match i32::from_le_bytes(os_pid) {
                os_pid if os_pid > 0 => Ok(Side::Parent(os_pid as u32)),
                _ => Err(io::Error::other("the second fork failed")),
            }
        }
    }
}
