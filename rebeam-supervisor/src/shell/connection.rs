//! One worker's socket: cutting what comes into frames, and writing what goes out without ever waiting.
//!
//! It must not know what the frames say. A payload passes through as [`Bytes`]: small ones are copied out of the read
//! buffer so that it can be used again, large ones are the buffer.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, OwnedFd};

use bytes::{Buf, Bytes, BytesMut};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, send, sendmsg};
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
    limit: usize,
}

/// What a read brought.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Read {
    /// Some bytes; `is_all` if there are no more for now.
    Some { is_all: bool },
    /// Nothing for now.
    Nothing,
    /// The other side is gone.
    Closed,
}

impl Decoder {
    pub(crate) fn new(limit: usize) -> Self {
        Decoder { pending: BytesMut::new(), limit }
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
        // SAFETY: the kernel writes at most `room` bytes to the buffer's own spare room.
        let count = unsafe { libc::recv(socket.as_raw_fd(), spare.as_mut_ptr().cast(), room, libc::MSG_DONTWAIT) };
        match usize::try_from(count) {
            Ok(0) => Read::Closed,
            Ok(count) => {
                // SAFETY: the kernel has written `count` bytes behind the current length.
                unsafe { self.pending.set_len(self.pending.len() + count) };
                Read::Some { is_all: count < room }
            }
            Err(_) if matches!(Errno::last(), Errno::EAGAIN | Errno::EINTR) => Read::Nothing,
            Err(_) => Read::Closed,
        }
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

/// What is to be written to a socket.
#[derive(Debug, Default)]
pub(crate) struct WriteQueue {
    segments: VecDeque<Bytes>,
    tail: Vec<u8>,
    sent: usize,
}

impl WriteQueue {
    /// Appends a frame.
    pub(crate) fn push<T: Serialize>(&mut self, header: &T, payload: &Bytes, limit: usize) -> Result<(), FrameError> {
        frame::encode_head(header, payload.len(), limit, &mut self.tail)?;
        if payload.len() <= COPIED {
            self.tail.extend_from_slice(payload);
        } else {
            self.close_tail();
            self.segments.push_back(payload.clone());
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
                let parts: Vec<IoSlice<'_>> = self.segments.iter().take(16).map(|part| IoSlice::new(part)).collect();
                sendmsg::<()>(fd, &parts, &[], flags, None)
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
            self.segments.push_back(tail);
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
        while count > 0
            && let Some(first) = self.segments.front_mut()
        {
            let taken = count.min(first.len());
            first.advance(taken);
            count -= taken;
            if first.is_empty() {
                self.segments.pop_front();
            }
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
}
