//! Reading and writing frames on the one socket of a worker, waiting where that is wanted.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rebeam_protocol::frame::FrameError;
use rebeam_sys::frames::{FrameReader, FrameWriter, NotWritten, Read};
use rebeam_sys::socket;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::arenas::Leased;

/// How often to look for more, giving way to others, before going to sleep in a flood: who sleeps has to be woken.
const LOOKS: u32 = 8;

/// How a read ended that brought nothing.
#[derive(Debug)]
pub(crate) enum NoRead {
    /// The deadline passed, or nothing was there and waiting was not wanted.
    TimedOut,
    /// A signal came; Python may have to handle it.
    Interrupted,
    /// The other side is gone, or the socket is broken.
    Closed,
}

/// The reading side of the socket.
pub(crate) struct Reader {
    pub(crate) frames: FrameReader,
    /// How many frames the last read has brought.
    brought: usize,
}

/// Bytes of a frame behind its header, and the memory that its large buffers lie in.
pub(crate) struct Payload {
    bytes: Bytes,
    pub(crate) memory: Option<Leased>,
    /// Other descriptors that have come with the frame.
    pub(crate) descriptors: Vec<OwnedFd>,
}

impl From<Bytes> for Payload {
    fn from(bytes: Bytes) -> Self {
        Payload { bytes, memory: None, descriptors: Vec::new() }
    }
}

impl Payload {
    pub(crate) fn as_slice(&self) -> &[u8] {
        &self.bytes
    }
}

impl Reader {
    /// Of frames of at most so many bytes.
    pub(crate) fn new(limit: usize) -> Self {
        Reader { frames: FrameReader::new(limit), brought: 0 }
    }

    /// The next frame that is whole; `None` if more has to be read first.
    pub(crate) fn next_frame<T: DeserializeOwned>(&mut self) -> Result<Option<(T, Payload)>, FrameError> {
        let Some((header, payload)) = self.frames.next_frame()? else { return Ok(None) };
        self.brought += 1;
        Ok(Some((header, payload.into())))
    }

    /// Reads what is there, waiting for it until `deadline` (`None`: forever).
    ///
    /// It does not wait in the read itself: the kernel wakes whoever does so also when the other side has taken what was
    /// sent before, only to send him to sleep again. That was half of all task switches of a call.
    pub(crate) fn read(&mut self, socket: BorrowedFd<'_>, deadline: Option<Instant>) -> Result<(), NoRead> {
        if self.brought > 1 {
            for _ in 0..LOOKS {
                match self.read_now(socket) {
                    Err(NoRead::TimedOut) => std::thread::yield_now(),
                    done => return done,
                }
            }
        }
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        match wait_readable(socket, left) {
            Ok(true) => self.read_now(socket),
            Ok(false) => Err(NoRead::TimedOut),
            Err(no_read) => Err(no_read),
        }
    }

    /// Reads what is there without waiting.
    pub(crate) fn read_now(&mut self, socket: BorrowedFd<'_>) -> Result<(), NoRead> {
        self.brought = 0;
        match self.frames.read(socket) {
            Read::Some { .. } => Ok(()),
            Read::Nothing => Err(NoRead::TimedOut),
            Read::Closed | Read::Broken => Err(NoRead::Closed),
        }
    }
}

fn wait_readable(socket: BorrowedFd<'_>, left: Option<Duration>) -> Result<bool, NoRead> {
    socket::wait_readable(socket, left).map_err(|error| match error.kind() {
        io::ErrorKind::Interrupted => NoRead::Interrupted,
        _ => NoRead::Closed,
    })
}

/// Something that may take long, to be done while the interpreter is left to other threads.
pub(crate) type Wait<'a> = &'a mut (dyn FnMut() -> io::Result<()> + Send);

/// The writing side of the socket. A frame is written whole before [`Writer::write`] returns.
pub(crate) struct Writer(FrameWriter);

impl Writer {
    /// Of frames of at most so many bytes.
    pub(crate) fn new(limit: usize) -> Self {
        Writer(FrameWriter::new(limit))
    }

    /// Writes a frame. `blocking` is called around the rare wait for room in the socket.
    pub(crate) fn write<T: Serialize>(
        &mut self,
        socket: BorrowedFd<'_>,
        header: &T,
        payload: &[u8],
        descriptor: Option<BorrowedFd<'_>>,
        blocking: &impl Fn(Wait<'_>) -> io::Result<()>,
    ) -> Result<(), NotWritten> {
        self.0.write(socket, header, payload, descriptor.as_slice(), |socket| {
            let mut wait = || socket::wait_writable(socket);
            blocking(&mut wait)
        })
    }
}
