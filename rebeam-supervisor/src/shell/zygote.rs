//! The supervisor's end of the zygote: starting it, loading the application, asking for forks one at a time.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::rc::Rc;

use rebeam_protocol::frame::MAX_FRAME;
use rebeam_protocol::zygote::ToZygote;
use rebeam_sys::frames::{FrameWriter, NotWritten};
use rebeam_sys::socket;
use tokio::task::JoinHandle;

use crate::printer::{Printer, Speaker};
use crate::python::Python;
use crate::shell::launcher::{self, Outputs};
use crate::shell::ledger::Ledger;
use crate::shell::output::{LastLines, LineReader, Lines, Stream};
use crate::shell::watched::watch;

/// A running zygote.
#[derive(Debug)]
pub(crate) struct Zygote {
    pub(crate) os_pid: i32,
    pub(crate) control: OwnedFd,
    pub(crate) outputs: Outputs,
    /// Its end is the zygote's end, so it is kept.
    _lifeline: OwnedFd,
}

impl Zygote {
    /// Starts the interpreter of the project. It says `Ready` when it is up.
    pub(crate) fn start(python: &Python, directory: &Path, ledger: &Ledger) -> io::Result<Self> {
        let (control, theirs) = stream_pair()?;
        let (lifeline, their_lifeline) = stream_pair()?;
        let (outputs, their_stdout, their_stderr) = Outputs::new()?;
        let fds = [ledger.memory(), theirs.as_fd(), their_lifeline.as_fd()];
        let os_pid = launcher::spawn_zygote(python, directory, &fds, their_stdout, their_stderr)?;
        Ok(Zygote { os_pid, control, outputs, _lifeline: lifeline })
    }

    /// Prints what it writes; into `silent` instead, as long as that says so.
    /// The tasks end with the pipes.
    pub(crate) fn print_output(&self, printer: &Printer, silent: Option<&Rc<Silent>>) -> Vec<JoinHandle<()>> {
        let pipes = [(&self.outputs.stdout, Stream::Stdout), (&self.outputs.stderr, Stream::Stderr)];
        let print = |(pipe, stream): (&OwnedFd, Stream)| {
            let pipe = pipe.try_clone().ok()?;
            Some(tokio::task::spawn_local(print_pipe(printer.clone(), silent.cloned(), pipe, stream)))
        };
        pipes.into_iter().filter_map(print).collect()
    }

    /// Sends a request, with its descriptors. Requests are small, and one fork is under way at a time: if there is no room,
    /// the zygote does not read, and it is not waited for.
    pub(crate) fn send(&self, message: &ToZygote, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let busy = |_: BorrowedFd<'_>| Err(io::Error::other("the zygote does not read its requests"));
        FrameWriter::new(MAX_FRAME).write(self.control.as_fd(), message, &[], fds, busy).map_err(|error| match error {
            NotWritten::Frame(error) => io::Error::other(error),
            NotWritten::Closed(error) => error,
        })
    }
}

/// What an interpreter wrote that is not up yet: part of the error if it never is.
#[derive(Debug, Default)]
pub(crate) struct Silent {
    pub(crate) lines: RefCell<LastLines>,
    pub(crate) is_up: Cell<bool>,
}

async fn print_pipe(printer: Printer, silent: Option<Rc<Silent>>, pipe: OwnedFd, stream: Stream) {
    let Ok(pipe) = watch(pipe) else { return };
    let mut reader = LineReader::default();
    loop {
        let Ok(mut guard) = pipe.readable().await else { return };
        match reader.read(pipe.get_ref()) {
            Lines::Closed => return,
            Lines::Nothing => guard.clear_ready(),
            Lines::Some(lines) => {
                for line in lines {
                    match &silent {
                        Some(silent) if !silent.is_up.get() => silent.lines.borrow_mut().push(line),
                        _ => printer.output(Speaker { label: "app", pid: None }, stream, &line),
                    }
                }
                tokio::task::yield_now().await;
            }
        }
    }
}

/// A connected pair: ours does not block, theirs does; neither survives an exec by accident.
pub(crate) fn stream_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let (ours, theirs) = socket::pair()?;
    socket::set_nonblocking(&ours)?;
    Ok((ours, theirs))
}
