//! What an actor writes to stdout and stderr: lines for the printer, and the last of them for its certificate.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use rebeam_sys::socket::set_nonblocking;

/// How many lines are kept for a certificate, and how many bytes of them.
const KEPT: usize = 50;
const KEPT_BYTES: usize = 64 * 1024;

/// A line longer than this is cut into pieces, so that a stream without line breaks takes no memory.
const LONGEST: usize = 16 * 1024;

/// What a read brought.
#[derive(Debug)]
pub(crate) enum Lines {
    Some(Vec<String>),
    Nothing,
    Closed,
}

/// Reading ends of a process's stdout and stderr.
#[derive(Debug)]
pub(crate) struct Outputs {
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: OwnedFd,
}

impl Outputs {
    /// Two pipes: our ends, and theirs for stdout and stderr.
    pub(crate) fn new() -> io::Result<(Self, OwnedFd, OwnedFd)> {
        let (stdout, their_stdout) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
        let (stderr, their_stderr) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
        set_nonblocking(&stdout)?;
        set_nonblocking(&stderr)?;
        Ok((Outputs { stdout, stderr }, their_stdout, their_stderr))
    }
}

/// The reading end of a pipe, and the line that is not whole yet.
#[derive(Debug, Default)]
pub(crate) struct LineReader {
    partial: Vec<u8>,
}

impl LineReader {
    /// Reads once, without waiting.
    pub(crate) fn read(&mut self, pipe: &OwnedFd) -> Lines {
        let mut chunk = [0; 16 * 1024];
        let count = match nix::unistd::read(pipe, &mut chunk) {
            Ok(0) => return Lines::Closed,
            Ok(count) => count,
            Err(Errno::EAGAIN | Errno::EINTR) => return Lines::Nothing,
            Err(_) => return Lines::Closed,
        };
        let mut lines = Vec::new();
        for piece in chunk[..count].split_inclusive(|byte| *byte == b'\n') {
            self.partial.extend_from_slice(piece);
            if piece.ends_with(b"\n") || self.partial.len() >= LONGEST {
                lines.extend(self.take_partial());
            }
        }
        Lines::Some(lines)
    }

    /// What came without a line break at the end.
    pub(crate) fn take_partial(&mut self) -> Option<String> {
        if self.partial.is_empty() {
            return None;
        }
        let line = String::from_utf8_lossy(&self.partial).trim_end_matches(['\n', '\r']).to_owned();
        self.partial.clear();
        Some(line)
    }
}

/// The last lines of an actor.
#[derive(Debug, Default)]
pub(crate) struct LastLines {
    lines: VecDeque<String>,
    bytes: usize,
}

impl LastLines {
    pub(crate) fn push(&mut self, line: String) {
        self.bytes += line.len();
        self.lines.push_back(line);
        while self.lines.len() > KEPT || self.bytes > KEPT_BYTES {
            let Some(oldest) = self.lines.pop_front() else { return };
            self.bytes -= oldest.len();
        }
    }

    pub(crate) fn take(&mut self) -> Vec<String> {
        std::mem::take(self).lines.into()
    }
}
