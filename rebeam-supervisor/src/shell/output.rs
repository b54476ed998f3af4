//! What an actor writes to stdout and stderr: lines for the printer, and the last of them for its certificate.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use rebeam_sys::socket::set_nonblocking;

/// How many lines are kept for a certificate, and how many bytes of them.
const KEPT: usize = 50;
const KEPT_BYTES: usize = 64 * 1024;

/// A line longer than this is cut into pieces, so that a stream without line breaks takes no memory.
const LONGEST: usize = 16 * 1024;

/// After which time without more a line is shown that has not ended: a prompt, a dot for each item.
const MOMENT: Duration = Duration::from_millis(200);

/// How often a line is shown that is written over again and again, as a progress bar is.
const OVERWRITTEN: Duration = Duration::from_secs(5);

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

/// The lines of a stream of bytes, and the one that has not ended yet.
///
/// Text that a carriage return has written over is not shown, as on a terminal. Bytes that are no UTF-8 are shown as
/// `\xff`.
#[derive(Debug, Default)]
pub(crate) struct LineReader {
    partial: Vec<u8>,
    /// Whether it is written over again and again.
    is_overwritten: bool,
    /// Whether it was shown as far as it had come, and ended in a carriage return then.
    was_shown: bool,
    was_returned: bool,
    /// When it is to be shown all the same.
    due: Option<Instant>,
    /// Whether bytes came that are no UTF-8, and that was said.
    is_foreign: bool,
    is_foreign_said: bool,
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
        Lines::Some(self.take(&chunk[..count], Instant::now()))
    }

    fn take(&mut self, bytes: &[u8], now: Instant) -> Vec<String> {
        let mut lines = Vec::new();
        for piece in bytes.split_inclusive(|byte| matches!(byte, b'\n' | b'\r')) {
            // What follows a carriage return, unless that is the end of the line, is written over what came before.
            let is_returned = self.partial.ends_with(b"\r") || (self.partial.is_empty() && self.was_returned);
            if is_returned && piece != b"\n" && piece != b"\r" {
                self.partial.clear();
                self.is_overwritten = true;
            }
            self.was_returned = false;
            if piece == b"\n" && self.partial.is_empty() && std::mem::take(&mut self.was_shown) {
                // The end of what was shown already.
                (self.is_overwritten, self.due) = (false, None);
                continue;
            }
            self.partial.extend_from_slice(piece);
            if piece.ends_with(b"\n") {
                lines.extend(self.take_partial());
                (self.is_overwritten, self.was_shown, self.due) = (false, false, None);
            }
            while self.partial.len() >= LONGEST {
                let end = whole_characters(&self.partial[..LONGEST]);
                let rest = self.partial.split_off(end);
                lines.extend(self.take_partial());
                self.partial = rest;
            }
        }
        if !self.is_overwritten || self.due.is_none() {
            self.due = (!self.partial.is_empty()).then_some(now + MOMENT);
        }
        lines
    }

    /// When the line that has not ended is to be shown as far as it has come.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.due.filter(|_| !self.partial.is_empty())
    }

    /// The line that has not ended, if it is to be shown.
    pub(crate) fn take_due(&mut self, now: Instant) -> Option<String> {
        self.due().filter(|due| *due <= now)?;
        let rest = self.partial.split_off(whole_characters(&self.partial));
        (self.was_shown, self.was_returned) = (true, self.partial.ends_with(b"\r"));
        self.is_overwritten |= self.was_returned;
        let line = self.take_partial();
        self.partial = rest;
        self.due = self.is_overwritten.then_some(now + OVERWRITTEN);
        line
    }

    /// What came without a line break at the end.
    pub(crate) fn take_partial(&mut self) -> Option<String> {
        if self.partial.is_empty() {
            return None;
        }
        let mut line = String::with_capacity(self.partial.len());
        for chunk in self.partial.utf8_chunks() {
            line.push_str(chunk.valid());
            for byte in chunk.invalid() {
                self.is_foreign = true;
                line.push_str(&format!("\\x{byte:02x}"));
            }
        }
        self.partial.clear();
        line.truncate(line.trim_end_matches(['\n', '\r']).len());
        Some(line)
    }

    /// Whether bytes came that are no UTF-8; once.
    pub(crate) fn take_is_foreign(&mut self) -> bool {
        self.is_foreign && !std::mem::replace(&mut self.is_foreign_said, true)
    }
}

/// How many of these bytes are whole characters, or nothing that could still become one.
fn whole_characters(bytes: &[u8]) -> usize {
    let last = bytes.utf8_chunks().last().map_or(&[][..], |chunk| chunk.invalid());
    let is_begun = str::from_utf8(last).is_err_and(|error| error.error_len().is_none());
    // If all that there is could become a character, it has to wait for the rest.
    if is_begun { bytes.len() - last.len() } else { bytes.len() }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(pieces: &[&[u8]]) -> (LineReader, Vec<String>) {
        let mut reader = LineReader::default();
        let now = Instant::now();
        let lines = pieces.iter().flat_map(|piece| reader.take(piece, now)).collect();
        (reader, lines)
    }

    #[test]
    fn a_character_is_never_cut() {
        for character in ["é", "日", "😀"] {
            let text = format!("x{}\n", character.repeat(20_000));
            let pieces: Vec<&[u8]> = text.as_bytes().chunks(1_001).collect();
            let (_, lines) = lines(&pieces);
            assert!(lines.len() > 1);
            assert_eq!(lines.concat() + "\n", text);
        }
        let (mut reader, none) = lines(&[b"a\xf0\x9f"]);
        let later = Instant::now() + MOMENT;
        assert_eq!((none.len(), reader.take_due(later)), (0, Some("a".into())));
        assert_eq!((reader.due(), reader.take_due(later)), (None, None), "what is half a character waits for the rest");
        assert_eq!(reader.take(b"\x98\x80\n", later), ["😀"]);
    }

    #[test]
    fn what_is_no_utf8_is_shown_by_its_bytes_and_said_once() {
        let (mut reader, lines) = lines(&[b"caf\xe9 au lait\n\xff\xfe\n"]);
        assert_eq!(lines, ["caf\\xe9 au lait", "\\xff\\xfe"]);
        assert!(reader.take_is_foreign() && !reader.take_is_foreign());
    }

    #[test]
    fn a_line_that_does_not_end_is_shown_after_a_moment() {
        let (mut reader, none) = lines(&[b"name: "]);
        let due = reader.due().expect("a time");
        assert_eq!((none.len(), reader.take_due(due - MOMENT)), (0, None));
        assert_eq!(reader.take_due(due), Some("name: ".into()));
        assert_eq!(reader.due(), None);
        assert_eq!(reader.take(b"done\r\n", due), ["done"]);
        reader.take(b"prompt", due);
        assert_eq!(reader.take_due(due + MOMENT), Some("prompt".into()));
        assert_eq!(reader.take(b"\n\nafter an empty line\n", due), ["", "after an empty line"]);
    }

    #[test]
    fn a_progress_bar_is_shown_now_and_then_and_at_its_end() {
        let mut reader = LineReader::default();
        let start = Instant::now();
        let mut shown = Vec::new();
        for step in 0..=100 {
            let now = start + Duration::from_millis(100 * step);
            shown.extend(reader.take(format!("\r{step}%").as_bytes(), now));
            shown.extend(reader.take_due(now));
        }
        shown.extend(reader.take(b"\nnext\n", start + Duration::from_secs(11)));
        assert_eq!(shown, ["2%", "52%", "100%", "next"]);
        // Others write the carriage return behind.
        let mut reader = LineReader::default();
        let mut shown = Vec::new();
        for step in 0..=10 {
            let now = start + Duration::from_millis(500 * step);
            shown.extend(reader.take(format!("{step}%\r").as_bytes(), now));
            shown.extend(reader.take_due(now + MOMENT));
        }
        shown.extend(reader.take(b"\nnext\n", start + Duration::from_secs(11)));
        assert_eq!(shown, ["0%", "10%", "next"]);
        let (_, lines) = lines(&[b"50%\r", b"100%\r", b"\nold\rnew\r\n"]);
        assert_eq!(lines, ["100%", "new"]);
    }
}
