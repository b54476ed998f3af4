//! Frames (see [`rebeam_protocol::frame`]) over a stream socket, with the descriptors that some of them speak of.
//!
//! A descriptor travels with the first byte of the frame that speaks of it, so whoever has taken that frame takes the
//! next descriptor, too. A payload is [`Bytes`]: a small one is copied out of the buffer so that this can be used again, a
//! large one is the buffer. Nothing here waits: the supervisor's event loop and the worker's blocking loop both build
//! on it. It must not know what the frames say.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use bytes::{Buf, Bytes, BytesMut};
use rebeam_protocol::frame::{self, FrameError, PREFIX};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::socket::{self, receive, send};

/// Room for one read: several hundred small frames.
const CHUNK: usize = 64 * 1024;

/// Above this a payload is passed on where it lies instead of being copied.
const COPIED: usize = 16 * 1024;

/// How many descriptors may come without a frame that takes them.
const DESCRIPTORS: usize = 16;

/// How many parts one write takes.
const PARTS: usize = 16;

/// Frames cut out of a stream of bytes.
#[derive(Debug)]
pub struct FrameReader {
    pending: BytesMut,
    /// Descriptors that came, in order.
    descriptors: VecDeque<OwnedFd>,
    limit: usize,
}

/// What a read brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read {
    /// Some bytes; `is_all` if there are no more for now.
    Some {
        /// See above.
        is_all: bool,
    },
    /// Nothing for now.
    Nothing,
    /// The other side is gone.
    Closed,
    /// Descriptors were cut off, or came without a frame: from here on nothing can be trusted.
    Broken,
}

impl FrameReader {
    /// Of frames of at most so many bytes.
    pub fn new(limit: usize) -> Self {
        FrameReader { pending: BytesMut::new(), descriptors: VecDeque::new(), limit }
    }

    /// From now on frames may have so many bytes.
    pub fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
    }

    /// Reads once from a socket, without waiting.
    pub fn read(&mut self, socket: impl AsFd) -> Read {
        self.make_room();
        let room = self.pending.capacity() - self.pending.len();
        match receive(socket, &mut self.pending, &mut self.descriptors) {
            Ok(received) if received.are_cut_off || self.descriptors.len() > DESCRIPTORS => Read::Broken,
            Ok(received) if received.count == 0 => Read::Closed,
            Ok(received) => Read::Some { is_all: received.count < room && !received.has_descriptors },
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                Read::Nothing
            }
            Err(_) => Read::Closed,
        }
    }

    /// Room for the rest of the frame that is under way, but no more at once than has come of it: its length is only what
    /// the other side says.
    fn make_room(&mut self) {
        let missing = match frame::length(&self.pending, self.limit) {
            Ok(Some(length)) => (PREFIX + length).saturating_sub(self.pending.len()),
            _ => 0,
        };
        self.pending.reserve(missing.min(self.pending.len()).max(CHUNK));
    }

    /// The next frame that is whole.
    ///
    /// # Errors
    /// The bytes are no frame. From here on nothing can be trusted.
    pub fn next_frame<T: DeserializeOwned>(&mut self) -> Result<Option<(T, Bytes)>, FrameError> {
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

    /// The descriptor that came with the frame just taken.
    pub fn take_descriptor(&mut self) -> Option<OwnedFd> {
        self.descriptors.pop_front()
    }

    /// All descriptors that came with the frame just taken, where frames bring several and none is under way behind it.
    pub fn take_descriptors(&mut self) -> Vec<OwnedFd> {
        self.descriptors.drain(..).collect()
    }
}

/// What is to be written to a socket.
#[derive(Debug, Default)]
pub struct WriteQueue {
    segments: VecDeque<Segment>,
    tail: Vec<u8>,
    sent: usize,
    /// Bytes of all segments.
    segment_bytes: usize,
}

/// Bytes, and the descriptors that go with their first one.
#[derive(Debug)]
struct Segment {
    bytes: Bytes,
    descriptors: Vec<Arc<OwnedFd>>,
}

impl WriteQueue {
    /// Appends a frame with descriptors.
    ///
    /// # Errors
    /// It is larger than the limit; nothing was appended.
    pub fn push_with<T: Serialize>(
        &mut self,
        header: &T,
        payload: &Bytes,
        limit: usize,
        descriptors: Vec<Arc<OwnedFd>>,
    ) -> Result<(), FrameError> {
        let mut head = Vec::new();
        frame::encode_head(header, payload.len(), limit, &mut head)?;
        self.close_tail();
        self.push_segment(head.into(), descriptors);
        self.push_segment(payload.clone(), Vec::new());
        Ok(())
    }

    /// Appends a frame.
    ///
    /// # Errors
    /// It is larger than the limit; nothing was appended.
    pub fn push<T: Serialize>(&mut self, header: &T, payload: &Bytes, limit: usize) -> Result<(), FrameError> {
        frame::encode_head(header, payload.len(), limit, &mut self.tail)?;
        if payload.len() <= COPIED {
            self.tail.extend_from_slice(payload);
        } else {
            self.close_tail();
            self.push_segment(payload.clone(), Vec::new());
        }
        Ok(())
    }

    fn push_segment(&mut self, bytes: Bytes, descriptors: Vec<Arc<OwnedFd>>) {
        self.segment_bytes += bytes.len();
        self.segments.push_back(Segment { bytes, descriptors });
    }

    /// How many bytes wait to be written.
    pub fn bytes(&self) -> usize {
        self.segment_bytes + self.tail.len() - self.sent
    }

    /// Writes what the socket takes; true if everything is out.
    ///
    /// # Errors
    /// The socket is broken.
    pub fn flush(&mut self, socket: impl AsFd) -> io::Result<bool> {
        let socket = socket.as_fd();
        while !self.is_empty() {
            let result = if self.segments.is_empty() {
                send(socket, &[IoSlice::new(&self.tail[self.sent..])], &[])
            } else {
                self.close_tail();
                // Descriptors go with the first byte of a write.
                let first = self.segments.front().into_iter().flat_map(|segment| &segment.descriptors);
                let descriptors: Vec<BorrowedFd<'_>> = first.map(|descriptor| descriptor.as_fd()).collect();
                let is_plain = |(place, segment): &(usize, &Segment)| *place == 0 || segment.descriptors.is_empty();
                let batch = self.segments.iter().take(PARTS).enumerate().take_while(is_plain);
                let parts: Vec<IoSlice<'_>> = batch.map(|(_, segment)| IoSlice::new(&segment.bytes)).collect();
                send(socket, &parts, &descriptors)
            };
            match result {
                Ok(count) => self.consume(count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// Whether everything is out.
    pub fn is_empty(&self) -> bool {
        self.segments.is_empty() && self.tail.len() == self.sent
    }

    fn close_tail(&mut self) {
        if self.tail.len() > self.sent {
            let mut tail = Bytes::from(std::mem::take(&mut self.tail));
            tail.advance(self.sent);
            self.push_segment(tail, Vec::new());
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
                first.descriptors.clear();
            }
            first.bytes.advance(taken);
            count -= taken;
            self.segment_bytes -= taken;
            if !first.bytes.is_empty() {
                return;
            }
            self.segments.pop_front();
        }
    }
}

/// Why a frame was not written.
#[derive(Debug)]
pub enum NotWritten {
    /// It is no frame; nothing was written.
    Frame(FrameError),
    /// The socket is broken.
    Closed(io::Error),
}

/// The writing side of a socket that is written to one frame at a time, each to its end.
#[derive(Debug)]
pub struct FrameWriter {
    head: Vec<u8>,
    limit: usize,
}

impl FrameWriter {
    /// Of frames of at most so many bytes.
    pub fn new(limit: usize) -> Self {
        FrameWriter { head: Vec::with_capacity(4096), limit }
    }

    /// Writes a frame. `wait_for_room` is called when the socket is full, and waits until it is not.
    ///
    /// # Errors
    /// It is no frame, or the socket is broken.
    pub fn write<T: Serialize>(
        &mut self,
        socket: BorrowedFd<'_>,
        header: &T,
        payload: &[u8],
        descriptors: &[BorrowedFd<'_>],
        mut wait_for_room: impl FnMut(BorrowedFd<'_>) -> io::Result<()>,
    ) -> Result<(), NotWritten> {
        self.head.clear();
        frame::encode_head(header, payload.len(), self.limit, &mut self.head).map_err(NotWritten::Frame)?;
        let mut rest = payload;
        if payload.len() <= COPIED {
            self.head.extend_from_slice(payload);
            rest = &[];
        }
        let mut descriptors = descriptors;
        let mut written = 0;
        while written < self.head.len() + rest.len() {
            let head = self.head.get(written..).unwrap_or(&[]);
            let behind = &rest[written.saturating_sub(self.head.len())..];
            let parts = [IoSlice::new(head), IoSlice::new(behind)];
            let parts = if behind.is_empty() { &parts[..1] } else { &parts[..] };
            match send(socket, parts, descriptors) {
                Ok(count) => {
                    written += count;
                    descriptors = &[];
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    wait_for_room(socket).map_err(NotWritten::Closed)?;
                }
                Err(error) => return Err(NotWritten::Closed(error)),
            }
        }
        Ok(())
    }
}

/// Writes one frame, waiting for room, to a socket over which little is said.
///
/// # Errors
/// It is no frame, or the socket is broken.
pub fn write_one<T: Serialize>(socket: BorrowedFd<'_>, header: &T, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let written = FrameWriter::new(frame::MAX_FRAME).write(socket, header, &[], descriptors, socket::wait_writable);
    written.map_err(|error| match error {
        NotWritten::Frame(error) => io::Error::other(error),
        NotWritten::Closed(error) => error,
    })
}

/// Reads one frame, waiting for it, with the descriptors that came with it; `None` if the other side is gone. The other
/// side says nothing more before it is answered.
///
/// # Errors
/// What comes is no frame, or was cut off.
pub fn read_one<T: DeserializeOwned>(
    socket: BorrowedFd<'_>,
    reader: &mut FrameReader,
) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    loop {
        if let Some((header, _)) = reader.next_frame().map_err(io::Error::other)? {
            return Ok(Some((header, reader.take_descriptors())));
        }
        match socket::wait_readable(socket, None) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            result => result?,
        };
        match reader.read(socket) {
            Read::Closed => return Ok(None),
            Read::Broken => return Err(io::Error::other("descriptors were lost on the way: too many open files?")),
            Read::Some { .. } | Read::Nothing => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (OwnedFd, OwnedFd) {
        let (left, right) = socket::pair().expect("a socketpair");
        socket::set_nonblocking(&left).expect("a socket");
        (left, right)
    }

    #[test]
    fn frames_of_all_sizes_come_through_a_socket_that_takes_little_at_a_time() {
        let (left, right) = pair();
        let sizes = [0, 1, 100, COPIED, COPIED + 1, CHUNK, 3_000_000, 5];
        let mut queue = WriteQueue::default();
        for size in sizes {
            queue.push(&(size as u64), &Bytes::from(vec![size as u8; size]), usize::MAX).expect("no limit");
        }
        let mut reader = FrameReader::new(usize::MAX);
        let mut received = Vec::new();
        while received.len() < sizes.len() {
            queue.flush(&left).expect("the other side is there");
            reader.read(&right);
            while let Some((header, payload)) = reader.next_frame::<u64>().expect("whole frames") {
                assert!(payload.iter().all(|byte| *byte == header as u8));
                assert_eq!(payload.len() as u64, header);
                received.push(payload.len());
            }
        }
        assert_eq!(received, sizes);
        assert!(queue.is_empty() && queue.bytes() == 0);
    }

    #[test]
    fn a_descriptor_comes_with_its_frame_and_with_no_other() {
        let (left, right) = pair();
        let mut queue = WriteQueue::default();
        let file = Arc::new(OwnedFd::from(std::fs::File::open("/dev/null").expect("it is there")));
        for number in 0..6u64 {
            let payload = Bytes::from(vec![0; 30_000]);
            match number % 2 {
                0 => queue.push(&number, &payload, usize::MAX),
                _ => queue.push_with(&number, &payload, usize::MAX, vec![file.clone()]),
            }
            .expect("no limit");
        }
        let mut reader = FrameReader::new(usize::MAX);
        let mut seen = Vec::new();
        while seen.len() < 6 {
            queue.flush(&left).expect("the other side is there");
            reader.read(&right);
            while let Some((number, _)) = reader.next_frame::<u64>().expect("whole frames") {
                let descriptor = if number % 2 == 1 { reader.take_descriptor() } else { None };
                seen.push((number, descriptor.is_some()));
            }
        }
        assert_eq!(seen, [(0, false), (1, true), (2, false), (3, true), (4, false), (5, true)]);
        assert!(reader.take_descriptor().is_none());
    }

    #[test]
    fn a_length_that_is_only_said_takes_no_memory() {
        let (left, right) = pair();
        send(&left, &[IoSlice::new(&200_000_000u32.to_le_bytes())], &[]).expect("room");
        let mut reader = FrameReader::new(usize::MAX);
        for _ in 0..3 {
            reader.read(&right);
        }
        assert!(reader.next_frame::<u64>().expect("so far so good").is_none());
        assert!(reader.pending.capacity() <= 4 * CHUNK, "{}", reader.pending.capacity());
    }

    #[test]
    fn a_question_and_its_descriptors_are_read_as_one() {
        let (left, right) = socket::pair().expect("a socketpair");
        let file = OwnedFd::from(std::fs::File::open("/dev/null").expect("it is there"));
        write_one(left.as_fd(), &7u64, &[file.as_fd(), file.as_fd()]).expect("room");
        let mut reader = FrameReader::new(1000);
        let (header, descriptors) = read_one::<u64>(right.as_fd(), &mut reader).expect("a frame").expect("one");
        assert_eq!((header, descriptors.len()), (7, 2));
        drop(left);
        assert!(read_one::<u64>(right.as_fd(), &mut reader).expect("an end").is_none());
    }
}
