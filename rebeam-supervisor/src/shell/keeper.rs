//! The keeper: a service process that outlives the supervisor by a moment, and kills what that left (see
//! `rebeam-worker/src/keeper.rs`). No frames are exchanged with it: it waits for the end of its socket.

use std::ffi::OsStr;
use std::io;
use std::process::Command;
use std::time::Duration;

use crate::shell::launcher::worker_program;
use crate::shell::service::{Policy, Process, Service};

const POLICY: Policy = Policy { most_failures: 10, healthy_after: Duration::from_secs(1) };

/// The keeper of a node, which is not started yet.
pub(crate) fn service() -> Service {
    Service::new("keeper", POLICY)
}

/// Starts a keeper for what carries a mark in its environment.
///
/// # Errors
/// Those of the system.
pub(crate) fn start(mark: &OsStr) -> io::Result<Process> {
    let mut command = Command::new(worker_program()?);
    command.arg("keeper").arg(mark).current_dir("/").env_remove("REBEAM_NODE");
    Process::start(command, &[])
}
