//! The store: the service process that keeps the rows of all tables, and alone writes them (see `rebeam-store`).
//!
//! It is started when the first table is made. If it dies, the next one goes on with the rows that it had.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::python::Python;
use crate::shell::launcher::worker_program;
use crate::shell::service::{Policy, Process, Service};

/// One that dies more often than this without having been healthy has met something that every next one meets.
const POLICY: Policy = Policy { most_failures: 20, healthy_after: Duration::from_secs(1) };

/// The store of a node, which is not started yet.
pub(crate) fn service() -> Service {
    Service::new("store of tables", POLICY)
}

/// The rows and the arrays of a store.
pub(crate) type Files = [OwnedFd; 2];

/// Starts a store whose rows may have this many bytes, and its answers that many; with the files of the last one, it goes on
/// with those. Names that it needs for a moment are in `directory`.
///
/// # Errors
/// Those of the system.
pub(crate) fn start(
    python: &Python,
    directory: &Path,
    most_bytes: u64,
    most_answer: usize,
    before: Option<&Files>,
) -> io::Result<Process> {
    let mut command = Command::new(worker_program()?);
    let sort = if before.is_some() { "restored" } else { "new" };
    command.arg("store").arg(sort).arg(directory).current_dir("/");
    command.args([most_bytes.to_string(), most_answer.to_string()]);
    if let Some(mark) = &python.mark {
        command.env("REBEAM_NODE", mark);
    }
    let files: Vec<BorrowedFd<'_>> = before.into_iter().flatten().map(AsFd::as_fd).collect();
    Process::start(command, &files)
}
