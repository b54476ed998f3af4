//! The zygote: a service process that imports the application once, and is forked for each actor.

use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use rebeam_protocol::zygote::{FromZygote, LoadError, ToZygote};
use tokio::task::JoinHandle;

use crate::printer::Printer;
use crate::python::Python;
use crate::shell::launcher::{self, Inherited};
use crate::shell::reaper;
use crate::shell::service::{Frames, Policy, Process, Service, Silent, Unborn, print_output};

/// One that died more often than this without having been healthy is not started again: fresh interpreters serve.
const POLICY: Policy = Policy { most_failures: 3, healthy_after: Duration::from_secs(5) };

/// How long exit hooks of the application's import may take.
const EXIT_TIME: Duration = Duration::from_secs(2);

/// The zygote of a node, which is not started yet.
pub(crate) fn service() -> Service {
    Service::new("zygote", POLICY)
}

/// Starts the interpreter of the project. It says `Ready` when it is up.
///
/// # Errors
/// Those of the system.
pub(crate) fn start(python: &Python, directory: &Path, inherited: Inherited<'_>) -> io::Result<Process> {
    Process::start(launcher::interpreter(python, "zygote", directory)?, &inherited)
}

/// A process that has imported what does not change, and that zygotes are forked from.
#[derive(Debug)]
pub(crate) struct Base {
    pub(crate) process: Process,
    frames: Frames,
    /// The number of the last request.
    requests: u64,
}

impl Base {
    /// Starts one, and has it import these modules; `None` if it must not be forked then.
    ///
    /// # Errors
    /// What went wrong, as the application's own import would say it.
    pub(crate) async fn start(
        python: &Python,
        directory: &Path,
        inherited: Inherited<'_>,
        modules: Vec<String>,
        printer: &Printer,
    ) -> Result<Option<Self>, BaseError> {
        let process = start(python, directory, inherited)?;
        let output = print_output(&process, "app", printer, Some(&Rc::new(Silent::default())));
        let mut frames = process.frames()?;
        loop {
            let Some((message, _)) = frames.next::<FromZygote>().await? else {
                // The zygote, which is started next, will say why.
                reaper::kill_group(process.os_pid);
                reaper::reap(process.os_pid);
                return Ok(None);
            };
            match message {
                FromZygote::Ready { .. } => process.send(&ToZygote::Preload(modules.clone()), &[])?,
                FromZygote::Preloaded { unforkable: None } => {
                    output.iter().for_each(JoinHandle::abort);
                    print_output(&process, "app", printer, None);
                    return Ok(Some(Base { process, frames, requests: 0 }));
                }
                FromZygote::Preloaded { unforkable: Some(_) } => {
                    dismiss(&process).await;
                    return Ok(None);
                }
                FromZygote::LoadFailed(error) => {
                    dismiss(&process).await;
                    return Err(BaseError::Load(error));
                }
                _ => {}
            }
        }
    }

    /// Forks a zygote for the version of the code that this memory is for.
    ///
    /// # Errors
    /// Those of the system; or why it cannot be forked.
    pub(crate) async fn fork(&mut self, code: BorrowedFd<'_>) -> io::Result<Process> {
        self.requests += 1;
        let unborn = Unborn::new()?;
        self.process.send(&ToZygote::ForkZygote { request: self.requests }, &unborn.as_fds(code))?;
        loop {
            let ended = || io::Error::other("the process that zygotes are forked from has ended");
            let (message, _) = self.frames.next::<FromZygote>().await?.ok_or_else(ended)?;
            match message {
                FromZygote::Forked { request, os_pid } if request == self.requests => {
                    return Ok(unborn.born(os_pid as i32));
                }
                FromZygote::ForkFailed { request, error } if request == self.requests => {
                    return Err(io::Error::other(error));
                }
                FromZygote::Unforkable { request, reason } if request == self.requests => {
                    return Err(io::Error::other(reason));
                }
                _ => {}
            }
        }
    }
}

/// Why there is no base.
#[derive(Debug)]
pub(crate) enum BaseError {
    Io(io::Error),
    /// A module that is to be imported first cannot be.
    Load(LoadError),
}

impl From<io::Error> for BaseError {
    fn from(error: io::Error) -> Self {
        BaseError::Io(error)
    }
}

/// Has it do what the application's import wants done at exit, and end; only for a zygote that no [`Service`] has taken over.
pub(crate) async fn dismiss(process: &Process) {
    order_end(process).await;
    reaper::kill_group(process.os_pid);
    reaper::reap(process.os_pid);
}

/// Orders a zygote to end, and returns what waits until it has, or has had [`EXIT_TIME`] for it.
pub(crate) fn order_end(process: &Process) -> impl Future<Output = ()> + use<> {
    let ended = process.send(&ToZygote::End, &[]).is_ok().then(|| process.ended());
    async {
        if let Some(ended) = ended {
            let _ = tokio::time::timeout(EXIT_TIME, ended).await;
        }
    }
}
