//! What the engine keeps of one worker: its socket, its page, its pipes, and how far it is trusted.

use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Instant;

use bytes::Bytes;
use rebeam_core::event::Launch;
use rebeam_protocol::id::Version;
use rebeam_protocol::page;
use rebeam_protocol::worker::ToWorker;
use rebeam_sys::process;
use tokio::task::AbortHandle;

use crate::shell::arenas::Memories;
use crate::shell::output::{LastLines, LineReader};
use crate::shell::sampler::Measured;
use crate::shell::status_page::StatusPage;
use crate::shell::watched::Watched;
use rebeam_sys::frames::{FrameReader, WriteQueue};

pub(super) struct Worker {
    pub(super) label: String,
    /// The version of the code that it runs.
    pub(super) code: Version,
    pub(super) os_pid: Option<i32>,
    /// Whether it is the port of a foreign program.
    pub(super) is_port: bool,
    pub(super) channel: Rc<Watched>,
    pub(super) decoder: FrameReader,
    /// Whether it has sent frames that were read and not handled.
    pub(super) has_frames: bool,
    pub(super) out: WriteQueue,
    pub(super) writing: Writing,
    pub(super) trust: Trust,
    pub(super) is_killed: bool,
    /// It was killed to be made again: it has never said anything.
    pub(super) is_replaced: bool,
    /// Since when its process is there.
    pub(super) born: Option<Instant>,
    /// What to have it look at, once everything is written.
    pub(super) wants_attention: u32,
    /// From which size on its memory matters, in KiB.
    pub(super) memory_limit: Option<u64>,
    /// Large buffers that it has made or was handed.
    pub(super) memories: Memories,
    /// Why its stacks cannot be had, if they were asked for and cannot.
    pub(super) no_stacks: Option<&'static str>,
    pub(super) page: StatusPage,
    pub(super) _lifeline: OwnedFd,
    pub(super) stdout: Output,
    pub(super) stderr: Output,
    pub(super) last_lines: LastLines,
    pub(super) tasks: Vec<AbortHandle>,
    /// As long as its process has not said anything, and so may be made again.
    pub(super) unborn: Option<Unborn>,
}

/// What has to be made and said again, should the zygote die while it forks a worker, or the worker be stopped.
pub(super) struct Unborn {
    pub(super) launch: Launch,
    pub(super) said: Vec<(ToWorker, Bytes)>,
}

/// Where what is written to a worker stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Writing {
    /// There is nothing to write.
    Idle,
    /// It is written at the end of this turn.
    Queued,
    /// Its socket is full: a task waits for room.
    Blocked,
}

/// Whether a worker is listened to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trust {
    /// It has not shaken hands.
    Unknown,
    Attached,
    /// It broke the protocol: what it says is not listened to.
    Distrusted,
}

pub(super) struct Output {
    pub(super) pipe: Rc<Watched>,
    pub(super) lines: LineReader,
}

impl Worker {
    /// Writes what the socket takes; true if everything is out.
    pub(super) fn flush(&mut self) -> Result<bool, ()> {
        let is_all = self.out.flush(self.channel.get_ref()).map_err(drop)?;
        self.get_attention();
        if is_all {
            self.wants_attention = 0;
        }
        Ok(is_all)
    }

    /// Its process, once it has one.
    pub(super) fn measured(&self) -> Option<Measured> {
        Some(Measured { os_pid: self.os_pid?, is_port: self.is_port })
    }

    /// Has it look at what was written, or unwind. What did not fit into its socket comes when it has read.
    pub(super) fn get_attention(&mut self) {
        let bits = self.wants_attention;
        if bits == 0 {
            return;
        }
        self.page.ask_for_attention(bits);
        if bits & page::EXIT != 0
            && let Some(os_pid) = self.os_pid
        {
            process::signal_main_thread(os_pid, process::exit_signal());
        }
        // One signal is enough.
        self.wants_attention &= !page::EXIT;
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}
