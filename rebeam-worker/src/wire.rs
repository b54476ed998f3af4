//! Blocking framed reads and writes on a socket. A descriptor travels with the first byte of the frame that speaks of
//! it.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use rebeam_protocol::frame::{self, PREFIX};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::arenas::Leased;

/// Room for one read: several hundred small frames.
const CHUNK: usize = 64 * 1024;

/// Above this, a payload is written from where it lies rather than copied behind its header.
const COPIED: usize = 16 * 1024;

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
    Closed(io::Error),
}

/// The reading side of a socket: bytes that came, and frames cut out of them.
pub(crate) struct Reader {
    fd: RawFd,
    buffer: Vec<u8>,
    start: usize,
    limit: usize,
    /// How many frames the last read has brought.
    frames: usize,
    /// Descriptors that came, in order.
    descriptors: VecDeque<OwnedFd>,
}

/// A frame: its header decoded, its payload where the frame lies.
pub(crate) struct Frame<T> {
    pub(crate) header: T,
    pub(crate) payload: Payload,
}

/// Bytes of a frame behind its header, and the memory that its large buffers lie in.
pub(crate) struct Payload {
    bytes: Vec<u8>,
    start: usize,
    pub(crate) memory: Option<Leased>,
}

impl Payload {
    pub(crate) fn as_slice(&self) -> &[u8] {
        &self.bytes[self.start..]
    }
}

impl Reader {
    pub(crate) fn new(socket: &OwnedFd, limit: usize) -> Self {
        Reader {
            fd: socket.as_raw_fd(),
            buffer: Vec::with_capacity(CHUNK),
            start: 0,
            limit,
            frames: 0,
            descriptors: VecDeque::new(),
        }
    }

    /// The descriptor that came with the frame just taken.
    pub(crate) fn take_descriptor(&mut self) -> Option<OwnedFd> {
        self.descriptors.pop_front()
    }

    pub(crate) fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
    }

    /// The next frame that is whole; `None` if more has to be read first.
    pub(crate) fn next_frame<T: DeserializeOwned>(&mut self) -> Result<Option<Frame<T>>, frame::FrameError> {
        let bytes = &self.buffer[self.start..];
        let Some(length) = frame::length(bytes, self.limit)? else { return Ok(None) };
        let Some(body) = bytes.get(PREFIX..PREFIX + length) else { return Ok(None) };
        let (header, offset) = frame::decode(body)?;
        self.frames += 1;
        let payload = if self.start == 0 && bytes.len() == PREFIX + length && length > COPIED {
            // The buffer holds nothing but this large frame: hand it over as it is.
            Payload { bytes: std::mem::take(&mut self.buffer), start: PREFIX + offset, memory: None }
        } else {
            let payload = body[offset..].to_vec();
            self.start += PREFIX + length;
            Payload { bytes: payload, start: 0, memory: None }
        };
        if self.start == self.buffer.len() {
            self.buffer.clear();
            self.start = 0;
        }
        Ok(Some(Frame { header, payload }))
    }

    /// Reads what is there, waiting for it until `deadline` (`None`: for ever).
    ///
    /// It does not wait in the read itself: the kernel wakes whoever does so also when the other side has taken what was
    /// sent before, only to send him to sleep again. That was half of all task switches of a call.
    pub(crate) fn read(&mut self, deadline: Option<Instant>) -> Result<(), NoRead> {
        if self.frames > 1 {
            for _ in 0..LOOKS {
                match self.read_now() {
                    Err(NoRead::TimedOut) => std::thread::yield_now(),
                    done => return done,
                }
            }
        }
        self.poll(deadline.map(|deadline| deadline.saturating_duration_since(Instant::now())))?;
        self.read_now()
    }

    /// Reads what is there without waiting.
    pub(crate) fn read_now(&mut self) -> Result<(), NoRead> {
        self.make_room();
        self.frames = 0;
        let spare = self.buffer.spare_capacity_mut();
        let part = libc::iovec { iov_base: spare.as_mut_ptr().cast(), iov_len: spare.len() };
        let mut control = Control::default();
        // SAFETY: msghdr is plain data for which zero is valid.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = (&raw const part).cast_mut();
        message.msg_iovlen = 1;
        message.msg_control = control.0.as_mut_ptr().cast();
        message.msg_controllen = size_of::<Control>() as _;
        let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
        // SAFETY: the kernel writes at most `spare.len()` bytes to the buffer's own spare room, and control data to
        // `control`.
        let count = unsafe { libc::recvmsg(self.fd, &raw mut message, flags) };
        if count > 0 && message.msg_controllen > 0 {
            self.take_descriptors(&message);
            if message.msg_flags & libc::MSG_CTRUNC != 0 {
                return Err(NoRead::Closed(io::Error::other("descriptors were cut off: too many files are open")));
            }
        }
        match count {
            0 => Err(NoRead::Closed(io::ErrorKind::UnexpectedEof.into())),
            count if count > 0 => {
                // SAFETY: the kernel has written `count` bytes behind the current length.
                unsafe { self.buffer.set_len(self.buffer.len() + count as usize) };
                Ok(())
            }
            _ => Err(no_read(io::Error::last_os_error())),
        }
    }

    fn take_descriptors(&mut self, message: &libc::msghdr) {
        // SAFETY: the kernel has filled the control buffer of this message; its parts are walked by the system's macros.
        unsafe {
            let mut part = libc::CMSG_FIRSTHDR(message);
            while let Some(header) = part.as_ref() {
                if header.cmsg_level == libc::SOL_SOCKET && header.cmsg_type == libc::SCM_RIGHTS {
                    let bytes = header.cmsg_len - libc::CMSG_LEN(0) as usize;
                    let data: *const libc::c_int = libc::CMSG_DATA(part).cast();
                    for place in 0..bytes / size_of::<libc::c_int>() {
                        // The kernel has just made this descriptor for us.
                        self.descriptors.push_back(OwnedFd::from_raw_fd(data.add(place).read_unaligned()));
                    }
                }
                part = libc::CMSG_NXTHDR(message, part);
            }
        }
    }

    /// Makes room for the rest of a frame whose length is known, else for a chunk; moves what is there to the front.
    fn make_room(&mut self) {
        if self.start > 0 {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
        let wanted = match frame::length(&self.buffer, self.limit) {
            Ok(Some(length)) => (PREFIX + length).saturating_sub(self.buffer.len()).max(1),
            _ => CHUNK,
        };
        let room = self.buffer.capacity() - self.buffer.len();
        if room < wanted.min(CHUNK) || (wanted > CHUNK && room < wanted) {
            self.buffer.reserve_exact(wanted.max(CHUNK - self.buffer.len().min(CHUNK)));
        }
    }

    /// Waits until there is something to read, for so long at most (`None`: for ever).
    fn poll(&self, left: Option<Duration>) -> Result<(), NoRead> {
        let mut poll = libc::pollfd { fd: self.fd, events: libc::POLLIN, revents: 0 };
        let time = left.map(|left| libc::timespec {
            tv_sec: left.as_secs() as libc::time_t,
            tv_nsec: libc::c_long::from(left.subsec_nanos() as i32),
        });
        let time = time.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
        // SAFETY: one pollfd, one timespec or none, no signal mask.
        match unsafe { libc::ppoll(&raw mut poll, 1, time, std::ptr::null()) } {
            0 => Err(NoRead::TimedOut),
            count if count > 0 => Ok(()),
            _ => Err(no_read(io::Error::last_os_error())),
        }
    }
}

/// Room for what comes beside the bytes of one read, or goes beside those of a write.
#[repr(C, align(8))]
#[derive(Default)]
struct Control([u64; 16]);

fn no_read(error: io::Error) -> NoRead {
    match error.kind() {
        io::ErrorKind::WouldBlock => NoRead::TimedOut,
        io::ErrorKind::Interrupted => NoRead::Interrupted,
        _ => NoRead::Closed(error),
    }
}

/// The writing side of a socket. A frame is written whole before [`Writer::write`] returns.
pub(crate) struct Writer {
    fd: RawFd,
    buffer: Vec<u8>,
    limit: usize,
}

/// Something that may take long, to be done while the interpreter is left to other threads.
pub(crate) type Wait<'a> = &'a mut (dyn FnMut() -> io::Result<()> + Send);

/// Why nothing was sent.
#[derive(Debug)]
pub(crate) enum NoWrite {
    /// The frame is not one; nothing was written.
    Frame(frame::FrameError),
    /// The socket is broken.
    Closed(io::Error),
}

impl Writer {
    pub(crate) fn new(socket: &OwnedFd, limit: usize) -> Self {
        Writer { fd: socket.as_raw_fd(), buffer: Vec::with_capacity(4096), limit }
    }

    /// Writes a frame. `blocking` is called around the rare wait for room in the socket.
    pub(crate) fn write<T: Serialize>(
        &mut self,
        header: &T,
        payload: &[u8],
        mut descriptor: Option<RawFd>,
        blocking: &impl Fn(Wait<'_>) -> io::Result<()>,
    ) -> Result<(), NoWrite> {
        self.buffer.clear();
        frame::encode_head(header, payload.len(), self.limit, &mut self.buffer).map_err(NoWrite::Frame)?;
        let mut rest = payload;
        if payload.len() <= COPIED {
            self.buffer.extend_from_slice(payload);
            rest = &[];
        }
        let head_length = self.buffer.len();
        let mut written = 0;
        let total = head_length + rest.len();
        let (fd, head) = (self.fd, &self.buffer);
        while written < total {
            let parts = [head.get(written..).unwrap_or(&[]), &rest[written.saturating_sub(head_length)..]];
            match send(fd, parts, descriptor) {
                Ok(count) => {
                    written += count;
                    descriptor = None;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let mut wait = || wait_for_room(fd);
                    blocking(&mut wait).map_err(NoWrite::Closed)?;
                }
                Err(error) => return Err(NoWrite::Closed(error)),
            }
        }
        Ok(())
    }
}

fn wait_for_room(fd: RawFd) -> io::Result<()> {
    let mut poll = libc::pollfd { fd, events: libc::POLLOUT, revents: 0 };
    loop {
        // SAFETY: one pollfd.
        if unsafe { libc::poll(&raw mut poll, 1, -1) } >= 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

fn send(fd: RawFd, parts: [&[u8]; 2], descriptor: Option<RawFd>) -> io::Result<usize> {
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    let count = if parts[1].is_empty() && descriptor.is_none() {
        // SAFETY: the kernel reads the bytes of one slice.
        unsafe { libc::send(fd, parts[0].as_ptr().cast(), parts[0].len(), flags) }
    } else {
        let vector = parts.map(|part| libc::iovec { iov_base: part.as_ptr().cast_mut().cast(), iov_len: part.len() });
        // SAFETY: msghdr is plain data for which zero is valid; the kernel reads two slices through it.
        unsafe {
            let mut message: libc::msghdr = std::mem::zeroed();
            message.msg_iov = vector.as_ptr().cast_mut();
            message.msg_iovlen = 2;
            let mut control = Control::default();
            if let Some(descriptor) = descriptor {
                message.msg_control = control.0.as_mut_ptr().cast();
                message.msg_controllen = libc::CMSG_SPACE(size_of::<RawFd>() as u32) as _;
                let part = libc::CMSG_FIRSTHDR(&raw const message);
                (*part).cmsg_level = libc::SOL_SOCKET;
                (*part).cmsg_type = libc::SCM_RIGHTS;
                (*part).cmsg_len = libc::CMSG_LEN(size_of::<RawFd>() as u32) as _;
                libc::CMSG_DATA(part).cast::<RawFd>().write_unaligned(descriptor);
            }
            libc::sendmsg(fd, &raw const message, flags)
        }
    };
    if count < 0 { Err(io::Error::last_os_error()) } else { Ok(count as usize) }
}
