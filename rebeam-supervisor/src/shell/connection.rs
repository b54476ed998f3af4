//! One worker's socket: cutting what comes into frames, and writing what goes out without ever waiting.
//!
//! It must not know what the frames say. A payload passes through as [`Bytes`]: small ones are copied out of the read
//! buffer so that it can be used again, large ones are the buffer. A descriptor travels with the first byte of the frame
//! that speaks of it.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;

use bytes::{Buf, Bytes, BytesMut};
use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, MsgFlags, send, sendmsg};
use rebeam_protocol::frame::{self, FrameError, PREFIX};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Room for one read.
const CHUNK: usize = 64 * 1024;

/// Above this a payload is passed on where it lies instead of being copied.
const COPIED: usize = 16 * 1024;

/// Frames cut out of a stream of bytes.
#[derive(Debug)]
pub(crate) struct Decoder {
    pending: BytesMut,
    /// Descriptors that came, in order.
    descriptors: VecDeque<OwnedFd>,
    limit: usize,
}

/// How many descriptors may come without a frame that takes them.
const DESCRIPTORS: usize = 16;

/// What a read brought.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Read {
    /// Some bytes; `is_all` if there are no more for now.
    Some { is_all: bool },
    /// Nothing for now.
    Nothing,
    /// The other side is gone.
    Closed,
    /// Descriptors were cut off, or came without a frame: from here on nothing can be trusted.
    Broken,
}

impl Decoder {
    pub(crate) fn new(limit: usize) -> Self {
        Decoder { pending: BytesMut::new(), descriptors: VecDeque::new(), limit }
    }

    /// Reads once from a socket, without waiting.
    pub(crate) fn read(&mut self, socket: &OwnedFd) -> Read {
        let missing = match frame::length(&self.pending, self.limit) {
            Ok(Some(length)) => (PREFIX + length).saturating_sub(self.pending.len()),
            _ => 0,
        };
        self.pending.reserve(missing.max(CHUNK));
        let spare = self.pending.spare_capacity_mut();
        let room = spare.len();
        let part = libc::iovec { iov_base: spare.as_mut_ptr().cast(), iov_len: room };
        let mut control = Control::default();
        // SAFETY: msghdr is plain data for which zero is valid.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = (&raw const part).cast_mut();
        message.msg_iovlen = 1;
        message.msg_control = control.0.as_mut_ptr().cast();
        message.msg_controllen = size_of::<Control>() as _;
        let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
        // SAFETY: the kernel writes at most `room` bytes to the buffer's own spare room, and control data to `control`.
        let count = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, flags) };
        // A read ends behind a descriptor, whatever else is there.
        let has_descriptor = count > 0 && message.msg_controllen > 0;
        if has_descriptor && !self.take_descriptors(&message) {
            return Read::Broken;
        }
        match usize::try_from(count) {
            Ok(0) => Read::Closed,
            Ok(count) => {
                // SAFETY: the kernel has written `count` bytes behind the current length.
                unsafe { self.pending.set_len(self.pending.len() + count) };
                Read::Some { is_all: count < room && !has_descriptor }
            }
            Err(_) if matches!(Errno::last(), Errno::EAGAIN | Errno::EINTR) => Read::Nothing,
            Err(_) => Read::Closed,
        }
    }

    /// Keeps the descriptors that came with a read; false if there are too many, or some were cut off.
    fn take_descriptors(&mut self, message: &libc::msghdr) -> bool {
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
        message.msg_flags & libc::MSG_CTRUNC == 0 && self.descriptors.len() <= DESCRIPTORS
    }

    /// The descriptor that came with the frame just taken.
    pub(crate) fn take_descriptor(&mut self) -> Option<OwnedFd> {
        self.descriptors.pop_front()
    }

    /// The next frame that is whole.
    pub(crate) fn next<T: DeserializeOwned>(&mut self) -> Result<Option<(T, Bytes)>, FrameError> {
        let Some(length) = frame::length(&self.pending, self.limit)? else { return Ok(None) };
        let Some(body) = self.pending.get(PREFIX..PREFIX + length) else { return Ok(None) };
        let (header, offset) = frame::decode(body)?;
        let payload = if length - offset > COPIED {
            let mut whole = self.pending.split_to(PREFIX + length).freeze();
            whole.advance(PREFIX + offset);
            whole
        } else {
            let payload = Bytes::copy_from_slice(&body[offset..]);
            self.pending.advance(PREFIX + length);
            payload
        };
        Ok(Some((header, payload)))
    }
}

/// Room for what comes beside the bytes of one read.
#[repr(C, align(8))]
#[derive(Default)]
struct Control([u64; 16]);

/// What is to be written to a socket.
#[derive(Debug, Default)]
pub(crate) struct WriteQueue {
    segments: VecDeque<Segment>,
    tail: Vec<u8>,
    sent: usize,
}

/// Bytes, and the descriptor that goes with their first one.
#[derive(Debug)]
struct Segment {
    bytes: Bytes,
    descriptor: Option<Arc<OwnedFd>>,
}

impl WriteQueue {
    /// Appends a frame with a descriptor.
    pub(crate) fn push_with<T: Serialize>(
        &mut self,
        header: &T,
        payload: &Bytes,
        limit: usize,
        descriptor: Arc<OwnedFd>,
    ) -> Result<(), FrameError> {
        let mut head = Vec::new();
        frame::encode_head(header, payload.len(), limit, &mut head)?;
        self.close_tail();
        self.segments.push_back(Segment { bytes: head.into(), descriptor: Some(descriptor) });
        self.segments.push_back(Segment { bytes: payload.clone(), descriptor: None });
        Ok(())
    }

    /// Appends a frame.
    pub(crate) fn push<T: Serialize>(&mut self, header: &T, payload: &Bytes, limit: usize) -> Result<(), FrameError> {
        frame::encode_head(header, payload.len(), limit, &mut self.tail)?;
        if payload.len() <= COPIED {
            self.tail.extend_from_slice(payload);
        } else {
            self.close_tail();
            self.segments.push_back(Segment { bytes: payload.clone(), descriptor: None });
        }
        Ok(())
    }

    /// Writes what the socket takes; true if everything is out.
    pub(crate) fn flush(&mut self, socket: &OwnedFd) -> io::Result<bool> {
        let fd = socket.as_raw_fd();
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        while !self.is_empty() {
            let result = if self.segments.is_empty() {
                send(fd, &self.tail[self.sent..], flags)
            } else {
                self.close_tail();
                // A descriptor goes with the first byte of a write.
                let first = self.segments.front().and_then(|segment| segment.descriptor.as_ref());
                let descriptor = first.map(|descriptor| [descriptor.as_raw_fd()]);
                let control: Vec<ControlMessage<'_>> =
                    descriptor.iter().map(|it| ControlMessage::ScmRights(it)).collect();
                let is_plain = |(place, segment): &(usize, &Segment)| *place == 0 || segment.descriptor.is_none();
                let batch = self.segments.iter().take(16).enumerate().take_while(is_plain);
                let parts: Vec<IoSlice<'_>> = batch.map(|(_, segment)| IoSlice::new(&segment.bytes)).collect();
                sendmsg::<()>(fd, &parts, &control, flags, None)
            };
            match result {
                Ok(count) => self.consume(count),
                Err(Errno::EAGAIN) => return Ok(false),
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(true)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.segments.is_empty() && self.tail.len() == self.sent
    }

    fn close_tail(&mut self) {
        if self.tail.len() > self.sent {
            let mut tail = Bytes::from(std::mem::take(&mut self.tail));
            tail.advance(self.sent);
            self.segments.push_back(Segment { bytes: tail, descriptor: None });
        }
        self.tail.clear();
        self.sent = 0;
    }

    fn consume(&mut self, mut count: usize) {
        if self.segments.is_empty() {
            self.sent += count;
            if self.sent == self.tail.len() {
                self.tail.clear();
                self.sent = 0;
            }
            return;
        }
        while let Some(first) = self.segments.front_mut() {
            let taken = count.min(first.bytes.len());
            if taken > 0 {
                first.descriptor = None;
            }
            first.bytes.advance(taken);
            count -= taken;
            if !first.bytes.is_empty() {
                return;
            }
            self.segments.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

    #[test]
    fn frames_of_all_sizes_come_through_a_socket_that_takes_little_at_a_time() {
        let (left, right) =
            socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_NONBLOCK).expect("a socketpair");
        let sizes = [0, 1, 100, COPIED, COPIED + 1, CHUNK, 3_000_000, 5];
        let mut queue = WriteQueue::default();
        for size in sizes {
            queue.push(&(size as u64), &Bytes::from(vec![size as u8; size]), usize::MAX).expect("no limit");
        }
        let mut decoder = Decoder::new(usize::MAX);
        let mut received = Vec::new();
        while received.len() < sizes.len() {
            queue.flush(&left).expect("the other side is there");
            decoder.read(&right);
            while let Some((header, payload)) = decoder.next::<u64>().expect("whole frames") {
                assert!(payload.iter().all(|byte| *byte == header as u8));
                assert_eq!(payload.len() as u64, header);
                received.push(payload.len());
            }
        }
        assert_eq!(received, sizes);
        assert!(queue.is_empty());
    }

    #[test]
    fn a_descriptor_comes_with_its_frame_and_with_no_other() {
        let (left, right) =
            socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_NONBLOCK).expect("a socketpair");
        let mut queue = WriteQueue::default();
        let file = Arc::new(OwnedFd::from(std::fs::File::open("/dev/null").expect("it is there")));
        for number in 0..6u64 {
            let payload = Bytes::from(vec![0; 30_000]);
            match number % 2 {
                0 => queue.push(&number, &payload, usize::MAX),
                _ => queue.push_with(&number, &payload, usize::MAX, file.clone()),
            }
            .expect("no limit");
        }
        let mut decoder = Decoder::new(usize::MAX);
        let mut seen = Vec::new();
        while seen.len() < 6 {
            queue.flush(&left).expect("the other side is there");
            decoder.read(&right);
            while let Some((number, _)) = decoder.next::<u64>().expect("whole frames") {
                let descriptor = if number % 2 == 1 { decoder.take_descriptor() } else { None };
                seen.push((number, descriptor.is_some()));
            }
        }
        assert_eq!(seen, [(0, false), (1, true), (2, false), (3, true), (4, false), (5, true)]);
        assert!(decoder.take_descriptor().is_none());
    }
}
