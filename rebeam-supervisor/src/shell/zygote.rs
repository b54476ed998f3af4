//! The zygote: a service process that imports the application once, and is forked for each actor.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use rebeam_protocol::zygote::ToZygote;
use tokio::task::JoinHandle;

use crate::printer::{Printer, Speaker, Stream};
use crate::python::Python;
use crate::shell::launcher::{self, Inherited};
use crate::shell::output::{LastLines, LineReader, Lines};
use crate::shell::reaper;
use crate::shell::service::{Policy, Process, Service};
use crate::shell::watched::{readable_until, watch};

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

/// Prints what it writes; into `silent` instead, as long as that says so.
/// The tasks end with the pipes.
pub(crate) fn print_output(process: &Process, printer: &Printer, silent: Option<&Rc<Silent>>) -> Vec<JoinHandle<()>> {
    let Ok(outputs) = process.outputs() else { return Vec::new() };
    [(outputs.stdout, Stream::Stdout), (outputs.stderr, Stream::Stderr)]
        .map(|(pipe, stream)| tokio::task::spawn_local(print_pipe(printer.clone(), silent.cloned(), pipe, stream)))
        .into()
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
    let show = |line: String| match &silent {
        Some(silent) if !silent.is_up.get() => silent.lines.borrow_mut().push(line),
        _ => printer.output(Speaker { label: "app", pid: None }, stream, &line),
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
