//! Service processes: processes of a node that are not actors. The zygotes, one for each version of
//! the code, the keeper, and the store of tables.
//!
//! A [`Service`] is what the node wants to have running; a [`Process`] is one process of it, which exchanges frames with the
//! supervisor. When a process ends, the service decides by its [`Policy`] what follows, and reports that in an [`End`]. This
//! module must not know what a service does: its users say how to start one, and when it is ready.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rebeam_core::event::Status;
use rebeam_protocol::exit::signal_name;
use rebeam_protocol::frame::MAX_FRAME;
use rebeam_sys::frames::{FrameReader, FrameWriter, NotWritten, Read, WriteQueue};
use rebeam_sys::process::{Group, spawn};
use rebeam_sys::socket::stream_pair;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::task::JoinHandle;

use crate::printer::{Printer, Speaker, Stream};
use crate::shell::output::{LastLines, LineReader, Lines, Outputs};
use crate::shell::reaper::{self, Reaped};
use crate::shell::watched::{Watched, readable_until, watch, watch_for_room};
use crate::view::text::duration;

/// One process of a service, which leads a session of its own.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) os_pid: i32,
    control: OwnedFd,
    outputs: Outputs,
    started: Instant,
    /// Its end is the process's end, so it is kept.
    lifeline: OwnedFd,
}

impl Process {
    /// Starts a program. Its descriptors are, from 3 on: `fds`, its end of the socket for frames, and its lifeline.
    ///
    /// # Errors
    /// Those of the system.
    pub(crate) fn start(mut command: Command, fds: &[BorrowedFd<'_>]) -> io::Result<Self> {
        let (control, their_control) = stream_pair()?;
        let (lifeline, their_lifeline) = stream_pair()?;
        let (outputs, stdout, stderr) = Outputs::new()?;
        command.stdin(Stdio::null()).stdout(stdout).stderr(stderr);
        let fds: Vec<BorrowedFd<'_>> =
            fds.iter().copied().chain([their_control.as_fd(), their_lifeline.as_fd()]).collect();
        let os_pid = spawn(command, &fds, Group::Session)?;
        Ok(Process { os_pid, control, outputs, started: Instant::now(), lifeline })
    }

    /// Waits until it has ended. What it has forked must have let go of its lifeline.
    pub(crate) fn ended(&self) -> impl Future<Output = ()> + use<> {
        let lifeline = self.lifeline.try_clone().and_then(watch);
        async {
            if let Ok(lifeline) = lifeline {
                let _ = lifeline.readable().await;
            }
        }
    }

    /// Reading ends of its stdout and stderr.
    ///
    /// # Errors
    /// No descriptor is left.
    pub(crate) fn outputs(&self) -> io::Result<Outputs> {
        Ok(Outputs { stdout: self.outputs.stdout.try_clone()?, stderr: self.outputs.stderr.try_clone()? })
    }

    /// What it says from now on.
    ///
    /// # Errors
    /// No descriptor is left.
    pub(crate) fn frames(&self) -> io::Result<Frames> {
        self.frames_up_to(MAX_FRAME)
    }

    /// As [`frames`](Self::frames), of this many bytes at most.
    ///
    /// # Errors
    /// No descriptor is left.
    pub(crate) fn frames_up_to(&self, limit: usize) -> io::Result<Frames> {
        Ok(Frames { control: watch(self.control.try_clone()?)?, reader: FrameReader::new(limit) })
    }

    /// Writes what its socket takes; true if everything is out.
    ///
    /// # Errors
    /// It is gone.
    pub(crate) fn flush(&self, out: &mut WriteQueue) -> io::Result<bool> {
        out.flush(&self.control)
    }

    /// Tells when its socket has room.
    ///
    /// # Errors
    /// No descriptor is left.
    pub(crate) fn room(&self) -> io::Result<Watched> {
        watch_for_room(&self.control)
    }

    /// Sends a frame, with its descriptors. Frames are small: if there is no room, the service does not read, and it is
    /// not waited for.
    ///
    /// # Errors
    /// It does not read, or is gone.
    pub(crate) fn send(&self, message: &impl Serialize, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let busy = |_: BorrowedFd<'_>| Err(io::Error::other("the service does not read its requests"));
        FrameWriter::new(MAX_FRAME).write(self.control.as_fd(), message, &[], fds, busy).map_err(|error| match error {
            NotWritten::Frame(error) => io::Error::other(error),
            NotWritten::Closed(error) => error,
        })
    }
}

/// A process that another is to fork: our ends, and its own.
#[derive(Debug)]
pub(crate) struct Unborn {
    control: OwnedFd,
    lifeline: OwnedFd,
    outputs: Outputs,
    theirs: [OwnedFd; 4],
}

impl Unborn {
    /// Makes what connects it with us.
    ///
    /// # Errors
    /// Those of the system.
    pub(crate) fn new() -> io::Result<Self> {
        let (control, their_control) = stream_pair()?;
        let (lifeline, their_lifeline) = stream_pair()?;
        let (outputs, stdout, stderr) = Outputs::new()?;
        Ok(Unborn { control, lifeline, outputs, theirs: [their_control, their_lifeline, stdout, stderr] })
    }

    /// Its ends, in the order of a request for a zygote with this code.
    pub(crate) fn as_fds<'a>(&'a self, code: BorrowedFd<'a>) -> [BorrowedFd<'a>; 5] {
        let [control, lifeline, stdout, stderr] = &self.theirs;
        [control.as_fd(), lifeline.as_fd(), code, stdout.as_fd(), stderr.as_fd()]
    }

    /// It is there.
    pub(crate) fn born(self, os_pid: i32) -> Process {
        let Unborn { control, lifeline, outputs, .. } = self;
        Process { os_pid, control, outputs, started: Instant::now(), lifeline }
    }
}

/// The frames of one process.
#[derive(Debug)]
pub(crate) struct Frames {
    control: Watched,
    reader: FrameReader,
}

impl Frames {
    /// Waits for the next frame; `None` when it says no more.
    ///
    /// # Errors
    /// What came is no frame: from here on nothing can be trusted.
    pub(crate) async fn next<T: DeserializeOwned>(&mut self) -> io::Result<Option<(T, Bytes)>> {
        loop {
            if let Some(frame) = self.reader.next_frame().map_err(io::Error::other)? {
                return Ok(Some(frame));
            }
            let mut guard = self.control.readable().await?;
            match self.reader.read(self.control.get_ref()) {
                Read::Some { .. } => {}
                Read::Nothing => guard.clear_ready(),
                Read::Closed => return Ok(None),
                Read::Broken => return Err(io::Error::other("descriptors came that belong to no frame")),
            }
        }
    }

    /// The next descriptor that came with the frame just taken.
    pub(crate) fn take_descriptor(&mut self) -> Option<OwnedFd> {
        self.reader.take_descriptor()
    }
}

/// Prints what it writes under a label; into `silent` instead, as long as that says so.
/// The tasks end with the pipes.
pub(crate) fn print_output(
    process: &Process,
    label: &'static str,
    printer: &Printer,
    silent: Option<&Rc<Silent>>,
) -> Vec<JoinHandle<()>> {
    let Ok(outputs) = process.outputs() else { return Vec::new() };
    [(outputs.stdout, Stream::Stdout), (outputs.stderr, Stream::Stderr)]
        .map(|(pipe, stream)| {
            tokio::task::spawn_local(print_pipe(label, printer.clone(), silent.cloned(), pipe, stream))
        })
        .into()
}

/// What an interpreter wrote that is not up yet: part of the error if it never is.
#[derive(Debug, Default)]
pub(crate) struct Silent {
    pub(crate) lines: RefCell<LastLines>,
    pub(crate) is_up: Cell<bool>,
}

async fn print_pipe(label: &'static str, printer: Printer, silent: Option<Rc<Silent>>, pipe: OwnedFd, stream: Stream) {
    let Ok(pipe) = watch(pipe) else { return };
    let mut reader = LineReader::default();
    let show = |line: String| match &silent {
        Some(silent) if !silent.is_up.get() => silent.lines.borrow_mut().push(line),
        _ => printer.output(Speaker { label, pid: None, code: None }, stream, &line),
    };
    loop {
        reader.take_due(Instant::now()).into_iter().for_each(&show);
        let Some(ready) = readable_until(&pipe, reader.due()).await else { continue };
        let Ok(mut guard) = ready else { return };
        match reader.read(pipe.get_ref()) {
            Lines::Closed => return reader.take_partial().into_iter().for_each(show),
            Lines::Nothing => guard.clear_ready(),
            Lines::Some(lines) => {
                lines.into_iter().for_each(&show);
                tokio::task::yield_now().await;
            }
        }
    }
}

/// When a process that has ended is followed by another.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Policy {
    /// How many in a row may end before they were healthy.
    pub(crate) most_failures: u32,
    /// How long a process must have been ready to count as healthy.
    pub(crate) healthy_after: Duration,
}

/// What follows the end of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Another is to be started.
    Restarts,
    /// Too many in a row have failed: there will be none.
    GivesUp,
}

/// What is known of the end of a process of a service.
#[derive(Debug)]
pub(crate) struct End {
    service: &'static str,
    os_pid: i32,
    reaped: Reaped,
    age: Duration,
    pub(crate) next: Next,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (service, os_pid, age) = (self.service, self.os_pid, duration(self.age));
        match self.next {
            Next::Restarts => write!(f, "the {service} died; it is started again")?,
            Next::GivesUp => write!(f, "the {service} died again and again, and is not started any more")?,
        }
        match self.reaped.status {
            Status::Exited(code) => write!(f, " (exit code {code}, process {os_pid}, after {age})"),
            Status::Signalled(number) => write!(f, " ({}, process {os_pid}, after {age})", signal_name(number)),
        }
    }
}

/// What the node wants to have running.
#[derive(Debug)]
pub(crate) struct Service {
    name: &'static str,
    policy: Policy,
    /// How many processes in a row have ended before they were healthy.
    failures: u32,
    life: Life,
}

#[derive(Debug)]
enum Life {
    /// There is no process, and none is wanted.
    Down,
    /// It is not ready yet.
    Starting(Process),
    Ready {
        process: Process,
        since: Instant,
    },
}

impl Service {
    /// One that has no process yet.
    pub(crate) fn new(name: &'static str, policy: Policy) -> Self {
        Service { name, policy, failures: 0, life: Life::Down }
    }

    /// From now on this is its process. It is not ready until somebody says so.
    pub(crate) fn started(&mut self, process: Process) {
        self.life = Life::Starting(process);
    }

    /// Its process does what it is there for.
    pub(crate) fn is_up(&mut self, now: Instant) {
        self.life = match std::mem::replace(&mut self.life, Life::Down) {
            Life::Starting(process) => Life::Ready { process, since: now },
            other => other,
        };
    }

    /// Its process, ready or not.
    pub(crate) fn process(&self) -> Option<&Process> {
        match &self.life {
            Life::Starting(process) | Life::Ready { process, .. } => Some(process),
            Life::Down => None,
        }
    }

    /// Its process, if that is ready.
    pub(crate) fn ready(&self) -> Option<&Process> {
        if let Life::Ready { process, .. } = &self.life { Some(process) } else { None }
    }

    /// Whether there is a process that is not ready yet.
    pub(crate) fn is_starting(&self) -> bool {
        matches!(self.life, Life::Starting(_))
    }

    /// The id of its process.
    pub(crate) fn os_pid(&self) -> Option<i32> {
        self.process().map(|process| process.os_pid)
    }

    /// Kills its process, if there is one; the reaper tells of the end.
    pub(crate) fn kill(&self) {
        if let Some(os_pid) = self.os_pid() {
            reaper::kill_group(os_pid);
        }
    }

    /// Kills its process for good: its end is not reported.
    pub(crate) fn retire(&mut self) {
        self.kill();
        self.life = Life::Down;
    }

    /// Its process was reaped: what is to follow.
    pub(crate) fn ended(&mut self, reaped: Reaped, now: Instant) -> Option<End> {
        let (process, is_healthy) = match std::mem::replace(&mut self.life, Life::Down) {
            Life::Down => return None,
            Life::Starting(process) => (process, false),
            Life::Ready { process, since } => (process, now.duration_since(since) >= self.policy.healthy_after),
        };
        self.failures = if is_healthy { 0 } else { self.failures + 1 };
        let next = if self.failures > self.policy.most_failures { Next::GivesUp } else { Next::Restarts };
        let age = now.saturating_duration_since(process.started);
        Some(End { service: self.name, os_pid: process.os_pid, reaped, age, next })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: Policy = Policy { most_failures: 3, healthy_after: Duration::from_secs(5) };

    fn process(started: Instant) -> Process {
        let (control, _) = stream_pair().expect("a socket");
        let (lifeline, _) = stream_pair().expect("a socket");
        let (outputs, ..) = Outputs::new().expect("pipes");
        // No process has this id, and none is signalled here.
        Process { os_pid: i32::MAX, control, outputs, started, lifeline }
    }

    fn killed() -> Reaped {
        Reaped { status: Status::Signalled(9), cpu_ms: 0, peak_kib: 0 }
    }

    /// What follows when a process ends, `ready` after its start and `lived` after that.
    fn end(service: &mut Service, ready: Option<Duration>) -> Next {
        let now = Instant::now();
        service.started(process(now));
        if let Some(lived) = ready {
            service.is_up(now);
            return service.ended(killed(), now + lived).expect("an end").next;
        }
        service.ended(killed(), now).expect("an end").next
    }

    #[test]
    fn one_that_fails_again_and_again_is_given_up() {
        let mut service = Service::new("zygote", POLICY);
        let ends = [None, Some(Duration::from_secs(1)), None, Some(Duration::from_secs(4))];
        let next: Vec<Next> = ends.into_iter().map(|ready| end(&mut service, ready)).collect();
        assert_eq!(next, [Next::Restarts, Next::Restarts, Next::Restarts, Next::GivesUp]);
    }

    #[test]
    fn one_that_was_healthy_begins_anew() {
        let mut service = Service::new("zygote", POLICY);
        for _ in 0..10 {
            assert_eq!(end(&mut service, None), Next::Restarts);
            assert_eq!(end(&mut service, Some(Duration::from_secs(1))), Next::Restarts);
            assert_eq!(end(&mut service, Some(Duration::from_secs(5))), Next::Restarts);
        }
    }

    #[test]
    fn an_end_says_of_what_and_what_follows() {
        let mut service = Service::new("keeper", POLICY);
        let now = Instant::now();
        service.started(process(now));
        assert!(service.is_starting() && service.ready().is_none());
        service.is_up(now);
        assert!(!service.is_starting() && service.os_pid() == Some(i32::MAX));
        let end = service.ended(killed(), now + Duration::from_secs(2)).expect("an end");
        let text = end.to_string();
        assert!(
            text.starts_with("the keeper died; it is started again (SIGKILL, process 2147483647, after 2"),
            "{text}"
        );
        assert!(service.process().is_none() && service.ended(killed(), now).is_none());
    }
}
