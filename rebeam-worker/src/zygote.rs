//! The zygote: a warm interpreter with one thread that imports the application once and forks workers on request.
//!
//! It never runs a callback of an actor, and nothing depends on its health: the workers are its siblings, not its
//! children (see [`crate::fork`]), and a dead zygote is replaced.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use pyo3::prelude::*;
use pyo3::types::PyDict;
use rebeam_protocol::frame::{self, MAX_FRAME, PREFIX};
use rebeam_protocol::handshake::VERSION;
use rebeam_protocol::zygote::{FromZygote, LoadError, LoadErrorKind, Source, Target, ToZygote};

use crate::convert;
use crate::fork::{Side, fork_as_sibling, fork_twice};
use crate::lifeline;

/// Descriptors of a fork request: channel, status page, lifeline, stdout, stderr.
const FORK_FDS: usize = 5;

/// What a new worker is handed by the zygote.
pub(crate) struct Birth {
    pub(crate) channel: OwnedFd,
    pub(crate) page: OwnedFd,
    pub(crate) lifeline: OwnedFd,
}

/// Serves the supervisor until it is gone (`None`), or until this process is a new worker.
pub(crate) fn serve(py: Python<'_>, control: OwnedFd, lifeline: OwnedFd) -> PyResult<Option<Birth>> {
    lifeline::tie(&lifeline)?;
    let app = py.import("rebeam._app")?;
    send(&control, &FromZygote::Ready { version: VERSION })?;
    let mut must_fork_twice = false;
    loop {
        let Some((message, mut fds)) = receive(&control)? else { return Ok(None) };
        match message {
            ToZygote::Load(ref target) => {
                let answer = match load(&app, target) {
                    Ok((answer, twice)) => {
                        must_fork_twice = twice;
                        answer
                    }
                    Err(error) => FromZygote::LoadFailed(load_error(&app, &error)?),
                };
                send(&control, &answer)?;
                // First all that is not needed goes, so that no worker has to tidy it up.
                drop((answer, message));
                app.call_method0("freeze")?;
            }
            ToZygote::Fork { request } => {
                if fds.len() != FORK_FDS {
                    let error = format!("{} descriptors came with a fork, {FORK_FDS} expected", fds.len());
                    send(&control, &FromZygote::ForkFailed { request, error })?;
                    continue;
                }
                let side = if must_fork_twice { fork_twice() } else { fork_as_sibling() };
                match side {
                    Ok(Side::Child) => {
                        drop(control);
                        drop(lifeline);
                        // SAFETY: plain system calls; the process leads its own group from here on (MAP-06).
                        unsafe { libc::setpgid(0, 0) };
                        for (fd, target) in fds.drain(3..).zip([1, 2]) {
                            // SAFETY: both are open descriptors.
                            unsafe { libc::dup2(fd.as_raw_fd(), target) };
                        }
                        let mut fds = fds.into_iter();
                        let (Some(channel), Some(page), Some(lifeline)) = (fds.next(), fds.next(), fds.next()) else {
                            return Ok(None);
                        };
                        return Ok(Some(Birth { channel, page, lifeline }));
                    }
                    Ok(Side::Parent(os_pid)) => send(&control, &FromZygote::Forked { request, os_pid })?,
                    Err(error) => {
                        send(&control, &FromZygote::ForkFailed { request, error: error.to_string() })?;
                    }
                }
            }
        }
    }
}

/// Imports the application and evaluates its tree; also says whether forks must run the C library's fork handlers.
fn load(app: &Bound<'_, PyModule>, target: &Target) -> PyResult<(FromZygote, bool)> {
    let (kind, source) = match &target.source {
        Source::Module(name) => ("module", name),
        Source::File(path) => ("file", path),
    };
    let loaded = app.call_method1("load", (kind, source, &target.attribute, &target.preload))?;
    let (tree, unforkable, must_fork_twice): (Bound<'_, PyAny>, Option<String>, bool) = loaded.extract()?;
    let tree = Box::new(convert::supervisor_spec(&tree, "root".into())?);
    Ok((FromZygote::Loaded { tree, unforkable }, must_fork_twice))
}

fn load_error(app: &Bound<'_, PyModule>, error: &PyErr) -> PyResult<LoadError> {
    // Before Python 3.12 an error that is on its way keeps its traceback beside it.
    error.value(app.py()).setattr("__traceback__", error.traceback(app.py()))?;
    let fields = app.call_method1("describe_load_error", (error.value(app.py()),))?.cast_into::<PyDict>()?;
    let field = |name: &str| -> PyResult<Option<String>> { fields.get_item(name)?.map_or(Ok(None), |it| it.extract()) };
    let is_usage = field("kind")?.as_deref() == Some("usage");
    Ok(LoadError {
        kind: if is_usage { LoadErrorKind::Usage } else { LoadErrorKind::Raised },
        message: field("message")?.unwrap_or_default(),
        hint: field("hint")?,
        traceback: field("traceback")?,
    })
}

fn send(control: &OwnedFd, message: &FromZygote) -> io::Result<()> {
    let mut bytes = Vec::new();
    frame::encode(message, &[], MAX_FRAME, &mut bytes).map_err(io::Error::other)?;
    let mut rest = bytes.as_slice();
    while !rest.is_empty() {
        // SAFETY: the kernel reads the bytes of one slice.
        let count = unsafe { libc::send(control.as_raw_fd(), rest.as_ptr().cast(), rest.len(), libc::MSG_NOSIGNAL) };
        if count < 0 {
            let error = io::Error::last_os_error();
            if error.kind() == io::ErrorKind::Interrupted {
                continue;
            }
            return Err(error);
        }
        rest = &rest[count as usize..];
    }
    Ok(())
}

/// One request and its descriptors; `None` when the supervisor is gone. Reads are exact, so that descriptors, which
/// the kernel attaches to a frame's first byte, always come with their own frame.
fn receive(control: &OwnedFd) -> io::Result<Option<(ToZygote, Vec<OwnedFd>)>> {
    let mut prefix = [0; PREFIX];
    let mut fds = Vec::new();
    if !read_exact(control, &mut prefix, &mut fds)? {
        return Ok(None);
    }
    let length = frame::length(&prefix, MAX_FRAME).map_err(io::Error::other)?.unwrap_or_default();
    let mut body = vec![0; length];
    if !read_exact(control, &mut body, &mut fds)? {
        return Ok(None);
    }
    let (message, _) = frame::decode(&body).map_err(io::Error::other)?;
    Ok(Some((message, fds)))
}

fn read_exact(control: &OwnedFd, mut buffer: &mut [u8], fds: &mut Vec<OwnedFd>) -> io::Result<bool> {
    while !buffer.is_empty() {
        let count = match receive_some(control, buffer, fds) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            other => other?,
        };
        if count == 0 {
            return Ok(false);
        }
        buffer = &mut buffer[count..];
    }
    Ok(true)
}

fn receive_some(control: &OwnedFd, buffer: &mut [u8], fds: &mut Vec<OwnedFd>) -> io::Result<usize> {
    // Room for the descriptors of one request; u64 for the alignment that cmsghdr wants.
    let mut space = [MaybeUninit::<u64>::uninit(); 16];
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: msghdr is plain data for which zero is valid; it points to one buffer and to room for control data,
    // both of which outlive the call. The control messages are walked by the C library's own macros, and every
    // descriptor found there is new and ours.
    unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = space.as_mut_ptr().cast();
        message.msg_controllen = size_of_val(&space) as _;
        let count = libc::recvmsg(control.as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC);
        if count < 0 {
            return Err(io::Error::last_os_error());
        }
        let mut header = libc::CMSG_FIRSTHDR(&raw const message);
        while !header.is_null() {
            if (*header).cmsg_level == libc::SOL_SOCKET && (*header).cmsg_type == libc::SCM_RIGHTS {
                let data = libc::CMSG_DATA(header).cast::<RawFd>();
                let length = (*header).cmsg_len as usize - libc::CMSG_LEN(0) as usize;
                for index in 0..length / size_of::<RawFd>() {
                    fds.push(OwnedFd::from_raw_fd(data.add(index).read_unaligned()));
                }
            }
            header = libc::CMSG_NXTHDR(&raw const message, header);
        }
        if message.msg_flags & libc::MSG_CTRUNC != 0 {
            return Err(io::Error::other("descriptors were lost on the way: too many open files?"));
        }
        Ok(count as usize)
    }
}
