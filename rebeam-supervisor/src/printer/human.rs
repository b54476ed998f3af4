//! What a node shows to people: lines with the actor's name before them, in colour where that is wanted.

use std::borrow::Cow;
use std::io::IsTerminal;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anstyle::{AnsiColor, Style};
use rebeam_protocol::certificate::{Certificate, Next};
use rebeam_protocol::message::LogRecord;

use super::REBEAM;
use crate::printer::Stream;
use crate::view::crash::crash_block;
use crate::view::text::{has_colour, in_line, painted, printable};

/// Names longer than this are not aligned to.
const WIDEST: usize = 24;

const PALETTE: [AnsiColor; 6] =
    [AnsiColor::Cyan, AnsiColor::Green, AnsiColor::Magenta, AnsiColor::Blue, AnsiColor::Yellow, AnsiColor::BrightCyan];

/// How lines look.
#[derive(Debug)]
pub(super) struct Human {
    /// Of the names so far.
    width: AtomicUsize,
    colour: [bool; 2],
    /// Whether stderr is a terminal, on which lines may be replaced.
    is_live: bool,
    /// When the progress of a batch was last told where it is not.
    told: Mutex<Option<Instant>>,
}

/// How often that is.
const PROGRESS: Duration = Duration::from_secs(30);

impl Human {
    pub(super) fn new() -> Self {
        let colour = [has_colour(std::io::stdout().is_terminal()), has_colour(std::io::stderr().is_terminal())];
        let is_live = std::io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb");
        Human { width: AtomicUsize::new(6), colour, is_live, told: Mutex::new(None) }
    }

    pub(super) fn is_live(&self) -> bool {
        self.is_live
    }

    /// Whether it is time to tell of progress again; asking is telling.
    pub(super) fn is_time_for_progress(&self) -> bool {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let is_time = told.is_none_or(|at| at.elapsed() >= PROGRESS);
        if is_time {
            *told = Some(Instant::now());
        }
        is_time
    }

    pub(super) fn log(&self, label: &str, record: &LogRecord) -> Vec<String> {
        let colour = match record.level {
            0..=19 => AnsiColor::BrightBlack,
            20..=29 => AnsiColor::Green,
            30..=39 => AnsiColor::Yellow,
            40..=49 => AnsiColor::Red,
            _ => AnsiColor::BrightRed,
        };
        let level = self.paint(Stream::Stderr, colour.on_default(), record.level_word());
        let logger = if record.logger == "root" { String::new() } else { format!("{}: ", in_line(&record.logger)) };
        let text = format!("{level} {logger}{}", record.message);
        let exception = record.exception.iter().flat_map(|exception| exception.lines());
        text.lines().chain(exception).map(|line| self.prefixed(label, Stream::Stderr, line)).collect()
    }

    pub(super) fn warning(&self, text: &str) -> String {
        let word = self.paint(Stream::Stderr, AnsiColor::Yellow.on_default().bold(), "warning");
        self.prefixed(REBEAM.label, Stream::Stderr, &format!("{word}: {}", in_line(text)))
    }

    pub(super) fn crash(&self, certificate: &Certificate, next: Next) -> String {
        let block = crash_block(certificate, next, |style, text| self.paint(Stream::Stderr, style, text));
        self.printable(Stream::Stderr, &block).into_owned()
    }

    /// What a line of an actor's may have a terminal do: show it, in colours if there are any.
    pub(super) fn printable<'a>(&self, stream: Stream, text: &'a str) -> Cow<'a, str> {
        printable(text, self.colour[usize::from(stream == Stream::Stderr)])
    }

    pub(super) fn prefixed(&self, label: &str, stream: Stream, line: &str) -> String {
        let label = &*in_line(label);
        let line = self.printable(stream, line);
        let width = self.width.fetch_max(label.chars().count().min(WIDEST), Ordering::Relaxed);
        let width = width.max(label.chars().count().min(WIDEST));
        let sum = label.bytes().fold(7usize, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
        let style = match label {
            "rebeam" => Style::new().bold(),
            _ => PALETTE[sum % PALETTE.len()].on_default(),
        };
        let name = self.paint(stream, style, &format!("{label:<width$}"));
        format!("{name} | {line}")
    }

    fn paint(&self, stream: Stream, style: Style, text: &str) -> String {
        painted(self.colour[usize::from(stream == Stream::Stderr)], style, text)
    }
}
