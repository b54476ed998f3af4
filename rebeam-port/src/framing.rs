//! How what a program writes is cut into messages: by lines, or by headers that say how long each is.

use std::collections::VecDeque;

use rebeam_protocol::program::Framing;

/// Bytes of a header that is one.
const LONGEST_HEADER: usize = 8 * 1024;

/// One message, or what is wrong with one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    /// It is whole.
    Whole(Vec<u8>),
    /// Bytes that are no header. The rest is looked through for one.
    Garbage(Vec<u8>),
    /// It is longer than it may be: as many bytes have come of it, or it has said so. A line is left out up to its end;
    /// after a longer message with a header nothing more is cut.
    TooLong(u64),
}

/// Cuts bytes into messages.
#[derive(Debug)]
pub(crate) struct Cutter {
    framing: Framing,
    most: usize,
    pending: Vec<u8>,
    /// Up to here there is no end of a line.
    looked: usize,
    /// Whether it is within a line that is left out.
    is_skipping: bool,
    whole: VecDeque<Piece>,
}

impl Cutter {
    pub(crate) fn new(framing: Framing, most: usize) -> Self {
        let (pending, whole) = (Vec::new(), VecDeque::new());
        Cutter { framing, most, pending, looked: 0, is_skipping: false, whole }
    }

    /// Takes what has been read.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.pending.extend_from_slice(bytes);
        match self.framing {
            Framing::Lines => self.cut_lines(),
            Framing::Headers => self.cut_headers(),
        }
    }

    fn cut_lines(&mut self) {
        let mut start = 0;
        while let Some(end) = self.pending[self.looked..].iter().position(|byte| *byte == b'\n') {
            let end = self.looked + end;
            let line = self.pending[start..end].strip_suffix(b"\r").unwrap_or(&self.pending[start..end]);
            (start, self.looked) = (end + 1, end + 1);
            if std::mem::take(&mut self.is_skipping) {
                continue;
            }
            self.whole.push_back(match line.len() > self.most {
                true => Piece::TooLong(line.len() as u64),
                false => Piece::Whole(line.to_vec()),
            });
        }
        self.forget(start);
        // The end of a line may have two bytes.
        if self.pending.len() > self.most + 1 {
            if !std::mem::replace(&mut self.is_skipping, true) {
                self.whole.push_back(Piece::TooLong(self.pending.len() as u64));
            }
            self.pending.clear();
        }
        self.looked = self.pending.len();
    }

    fn cut_headers(&mut self) {
        loop {
            let Some((head, body)) = header(&self.pending) else {
                if self.pending.len() > LONGEST_HEADER {
                    // Nothing of that sort begins there.
                    let garbage = std::mem::take(&mut self.pending);
                    self.whole.push_back(Piece::Garbage(garbage));
                }
                return;
            };
            let Some(length) = content_length(&self.pending[..head]) else {
                self.whole.push_back(Piece::Garbage(self.pending[..body].to_vec()));
                self.forget(body);
                continue;
            };
            if length > self.most as u64 {
                self.forget(self.pending.len());
                return self.whole.push_back(Piece::TooLong(length));
            }
            let end = body + length as usize;
            if self.pending.len() < end {
                return;
            }
            self.whole.push_back(Piece::Whole(self.pending[body..end].to_vec()));
            self.forget(end);
        }
    }

    fn forget(&mut self, end: usize) {
        self.pending.drain(..end);
        self.looked = 0;
    }

    /// Whether there is none that is whole.
    pub(crate) fn is_empty(&self) -> bool {
        self.whole.is_empty()
    }

    /// The next message that is whole.
    pub(crate) fn next(&mut self) -> Option<Piece> {
        self.whole.pop_front()
    }

    /// What there is of one that is not, at the end of all.
    pub(crate) fn take_rest(&mut self) -> Option<Vec<u8>> {
        self.looked = 0;
        let rest = std::mem::take(&mut self.pending);
        (!std::mem::take(&mut self.is_skipping) && !rest.is_empty()).then_some(rest)
    }
}

/// Where the header ends, and where what follows begins.
fn header(bytes: &[u8]) -> Option<(usize, usize)> {
    let bytes = &bytes[..bytes.len().min(LONGEST_HEADER)];
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n");
    let lax = bytes.windows(2).position(|two| two == b"\n\n");
    match (end, lax) {
        (Some(end), Some(lax)) if lax < end => Some((lax, lax + 2)),
        (Some(end), _) => Some((end, end + 4)),
        (None, lax) => lax.map(|lax| (lax, lax + 2)),
    }
}

fn content_length(header: &[u8]) -> Option<u64> {
    let header = std::str::from_utf8(header).ok()?;
    let fields = header.lines().filter_map(|line| line.split_once(':'));
    let mut lengths = fields.filter(|(name, _)| name.trim().eq_ignore_ascii_case("content-length"));
    lengths.next()?.1.trim().parse().ok()
}

/// A message with what tells it from the next one.
pub(crate) fn framed(framing: Framing, message: &[u8]) -> Vec<u8> {
    match framing {
        Framing::Lines => [message, b"\n"].concat(),
        Framing::Headers => [format!("Content-Length: {}\r\n\r\n", message.len()).as_bytes(), message].concat(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(cutter: &mut Cutter) -> Vec<Piece> {
        std::iter::from_fn(|| cutter.next()).collect()
    }

    fn whole(texts: &[&str]) -> Vec<Piece> {
        texts.iter().map(|text| Piece::Whole(text.as_bytes().to_vec())).collect()
    }

    #[test]
    fn messages_come_whole_however_they_are_cut() {
        for framing in [Framing::Lines, Framing::Headers] {
            let bytes: Vec<u8> =
                ["one", "", "three"].iter().flat_map(|text| framed(framing, text.as_bytes())).collect();
            for size in 1..=bytes.len() {
                let mut cutter = Cutter::new(framing, 100);
                bytes.chunks(size).for_each(|chunk| cutter.push(chunk));
                assert_eq!(all(&mut cutter), whole(&["one", "", "three"]), "{framing:?} {size}");
                assert_eq!(cutter.take_rest(), None);
            }
        }
        let mut cutter = Cutter::new(Framing::Lines, 100);
        cutter.push(b"one\r\nhalf");
        assert_eq!(all(&mut cutter), whole(&["one"]));
        assert_eq!(cutter.take_rest().as_deref(), Some(&b"half"[..]));
    }

    #[test]
    fn what_is_too_long_takes_no_more_memory_than_it_may() {
        for size in [1, 5, 100] {
            let mut cutter = Cutter::new(Framing::Lines, 10);
            for chunk in b"0123456789\r\n01234567890\nshort\n0123456789012345678901234567\nlast".chunks(size) {
                cutter.push(chunk);
                assert!(cutter.pending.len() <= 11);
            }
            let found = all(&mut cutter);
            let shown = found.iter().map(|piece| matches!(piece, Piece::Whole(_))).collect::<Vec<_>>();
            assert_eq!(shown, [true, false, true, false], "{size}: {found:?}");
            assert_eq!(cutter.take_rest().as_deref(), Some(&b"last"[..]));
            cutter.push(b"012345678901234567");
            assert_eq!((all(&mut cutter), cutter.take_rest()), (vec![Piece::TooLong(18)], None));
        }
        let mut cutter = Cutter::new(Framing::Headers, 10);
        cutter.push(b"Content-Length: 11\r\n\r\n");
        assert_eq!(all(&mut cutter), [Piece::TooLong(11)]);
        let mut cutter = Cutter::new(Framing::Headers, 10);
        let garbage = [b'x'; LONGEST_HEADER + 1];
        cutter.push(&garbage);
        assert_eq!(all(&mut cutter), [Piece::Garbage(garbage.to_vec())]);
    }

    #[test]
    fn what_is_no_header_is_passed_over() {
        let mut cutter = Cutter::new(Framing::Headers, 100);
        cutter.push(b"Hello: world\r\n\r\ncontent-length:2\n\nokContent-Length: x\r\n\r\n");
        let garbage = |text: &[u8]| Piece::Garbage(text.to_vec());
        assert_eq!(
            all(&mut cutter),
            [garbage(b"Hello: world\r\n\r\n"), Piece::Whole(b"ok".to_vec()), garbage(b"Content-Length: x\r\n\r\n")]
        );
    }
}
