//! What `up` shows: lines of actors with their names before them, log records, one block per crash.
//!
//! What an actor writes to stdout goes to stdout, everything else to stderr. A thread of its own writes, so that a
//! slow terminal never holds up the supervisor; what it cannot keep up with is dropped, counted and said.

use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use anstyle::{AnsiColor, Style};
use rebeam_protocol::certificate::{Certificate, Killer, Next};
use rebeam_protocol::exit::ExitReason;
use rebeam_protocol::message::{DeadLetter, LogRecord};

use crate::cli::render::{duration, has_colour, kib, painted};
use crate::shell::output::Stream;

/// Lines that may wait for a slow terminal, and bytes of them.
const WAITING: usize = 20_000;
const WAITING_BYTES: usize = 16 * 1024 * 1024;

/// Names longer than this are not aligned to.
const WIDEST: usize = 24;

const PALETTE: [AnsiColor; 6] =
    [AnsiColor::Cyan, AnsiColor::Green, AnsiColor::Magenta, AnsiColor::Blue, AnsiColor::Yellow, AnsiColor::BrightCyan];

/// A handle on the printing thread.
#[derive(Clone, Debug)]
pub(crate) struct Printer {
    lines: SyncSender<Line>,
    dropped: Arc<AtomicU64>,
    waiting_bytes: Arc<AtomicUsize>,
    width: Arc<AtomicUsize>,
    colour: [bool; 2],
}

#[derive(Debug)]
enum Line {
    Text(Stream, String),
    End,
}

impl Printer {
    /// Starts the thread. Join it after [`Printer::finish`] to have everything out.
    pub(crate) fn start() -> (Self, JoinHandle<()>) {
        let (lines, receiver) = sync_channel(WAITING);
        let dropped = Arc::new(AtomicU64::new(0));
        let counted = dropped.clone();
        let waiting_bytes = Arc::new(AtomicUsize::new(0));
        let waiting = waiting_bytes.clone();
        let thread = std::thread::spawn(move || {
            let (mut stdout, mut stderr) = (std::io::stdout().lock(), std::io::stderr());
            while let Ok(Line::Text(stream, text)) = receiver.recv() {
                waiting.fetch_sub(text.len(), Ordering::Relaxed);
                let missing = counted.swap(0, Ordering::Relaxed);
                if missing > 0 {
                    let _ = writeln!(stderr, "({missing} lines were dropped: this output is read too slowly)");
                }
                let _ = match stream {
                    Stream::Stdout => writeln!(stdout, "{text}"),
                    Stream::Stderr => writeln!(stderr, "{text}"),
                };
            }
        });
        let colour = [has_colour(std::io::stdout().is_terminal()), has_colour(std::io::stderr().is_terminal())];
        (Printer { lines, dropped, waiting_bytes, width: Arc::new(AtomicUsize::new(6)), colour }, thread)
    }

    /// Lets the thread end after what has been printed so far.
    pub(crate) fn finish(&self) {
        let _ = self.lines.send(Line::End);
    }

    /// A line that an actor wrote.
    pub(crate) fn output(&self, label: &str, stream: Stream, line: &str) {
        self.prefixed(label, stream, line);
    }

    /// A log record of an actor.
    pub(crate) fn log(&self, label: &str, record: &LogRecord) {
        let (level, colour) = match record.level {
            0..=19 => ("debug", AnsiColor::BrightBlack),
            20..=29 => ("info", AnsiColor::Green),
            30..=39 => ("warning", AnsiColor::Yellow),
            40..=49 => ("error", AnsiColor::Red),
            _ => ("critical", AnsiColor::BrightRed),
        };
        let level = self.paint(Stream::Stderr, colour.on_default(), level);
        let logger = if record.logger == "root" { String::new() } else { format!("{}: ", record.logger) };
        let text = format!("{level} {logger}{}", record.message);
        let exception = record.exception.iter().flat_map(|exception| exception.lines());
        for line in text.lines().chain(exception) {
            self.prefixed(label, Stream::Stderr, line);
        }
    }

    /// Something that the supervisor itself says.
    pub(crate) fn say(&self, text: &str) {
        self.prefixed("rebeam", Stream::Stderr, text);
    }

    /// The same, of something that is not as it should be.
    pub(crate) fn warn(&self, text: &str) {
        let word = self.paint(Stream::Stderr, AnsiColor::Yellow.on_default().bold(), "warning");
        self.say(&format!("{word}: {text}"));
    }

    /// The tree is up.
    pub(crate) fn up(&self, actors: usize, after: Duration) {
        let plural = if actors == 1 { "" } else { "s" };
        self.say(&format!("up with {actors} actor{plural} after {}", duration(after)));
    }

    /// The application must not be forked.
    pub(crate) fn unforkable(&self, reason: &str) {
        self.warn(&format!("the application cannot be forked: {reason}; each actor gets a fresh interpreter"));
        self.say("hint: open it in `init` rather than on import, and actors start in a millisecond");
    }

    /// A message nobody will handle.
    pub(crate) fn dead_letter(&self, letter: &DeadLetter) {
        let DeadLetter { id, method, sender, to, cause, .. } = letter;
        self.warn(&format!("dead letter {id}: `{method}` from {sender} to {to}: {}", cause.words()));
    }

    /// An end that nobody ordered: one block, from its reason to what follows.
    pub(crate) fn crash(&self, certificate: &Certificate) {
        let block = crash_block(certificate, |style, text| self.paint(Stream::Stderr, style, text));
        self.send(Stream::Stderr, block);
    }

    fn prefixed(&self, label: &str, stream: Stream, line: &str) {
        let width = self.width.fetch_max(label.chars().count().min(WIDEST), Ordering::Relaxed);
        let width = width.max(label.chars().count().min(WIDEST));
        let sum = label.bytes().fold(7usize, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
        let style = match label {
            "rebeam" => Style::new().bold(),
            _ => PALETTE[sum % PALETTE.len()].on_default(),
        };
        let name = self.paint(stream, style, &format!("{label:<width$}"));
        self.send(stream, format!("{name} | {line}"));
    }

    fn send(&self, stream: Stream, text: String) {
        let length = text.len();
        let is_over = self.waiting_bytes.load(Ordering::Relaxed) > WAITING_BYTES;
        self.waiting_bytes.fetch_add(length, Ordering::Relaxed);
        if is_over || matches!(self.lines.try_send(Line::Text(stream, text)), Err(TrySendError::Full(_))) {
            self.waiting_bytes.fetch_sub(length, Ordering::Relaxed);
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn paint(&self, stream: Stream, style: Style, text: &str) -> String {
        painted(self.colour[usize::from(stream == Stream::Stderr)], style, text)
    }
}

/// The block about one end, for `up`, `why` and errors.
pub(crate) fn crash_block(certificate: &Certificate, paint: impl Fn(Style, &str) -> String) -> String {
    let dim = AnsiColor::BrightBlack.on_default();
    let red = AnsiColor::Red.on_default().bold();
    let bar = paint(red, "┃");
    let mut lines = vec![format!(
        "{} {} {}",
        paint(red, "┏━"),
        paint(Style::new().bold(), &certificate.actor),
        paint(red, &format!("died: {}", certificate.reason))
    )];
    for message in &certificate.in_hand {
        let again = if message.delivery > 1 { format!(", delivery {}", message.delivery) } else { String::new() };
        let age = duration(Duration::from_millis(message.age_ms));
        lines.push(format!("{bar} in hand: `{}` from {}, for {age}{again}", message.method, message.sender));
    }
    if let ExitReason::Exception(raised) = &certificate.reason {
        lines.extend(raised.traceback.lines().map(|line| format!("{bar}   {line}")));
    }
    match &certificate.killer {
        Killer::Nobody => {}
        Killer::Rebeam(why) => lines.push(format!("{bar} killed by rebeam: {why}")),
        Killer::OutOfMemory => lines.push(format!("{bar} killed by the kernel: out of memory")),
        Killer::Unknown => lines.push(format!("{bar} who sent the signal is not known")),
    }
    lines.extend(certificate.stacks.lines().map(|line| format!("{bar}   {line}")));
    if !certificate.last_output.is_empty() {
        lines.push(format!("{bar} {}", paint(dim, "last output:")));
        let skipped = certificate.last_output.len().saturating_sub(20);
        lines.extend(certificate.last_output[skipped..].iter().map(|line| format!("{bar}   {line}")));
    }
    let lived = duration(Duration::from_millis(certificate.age_ms));
    let cpu = duration(Duration::from_millis(certificate.cpu_ms));
    let facts = format!(
        "{}, process {}, lived {lived}, cpu {cpu}, peak {}, restarts before {}",
        certificate.pid,
        certificate.os_pid,
        kib(certificate.peak_kib),
        certificate.restarts
    );
    lines.push(format!("{bar} {}", paint(dim, &facts)));
    let next = match certificate.next {
        Next::Nothing => String::new(),
        Next::Restarts { after_ms: 0 } => " it is started again".into(),
        Next::Restarts { after_ms } => {
            format!(" it is started again after {}", duration(Duration::from_millis(after_ms)))
        }
        Next::StaysDown => " it stays down".into(),
        Next::GivesUp => " the restart limit is used up: its supervisor gives up".into(),
        Next::Parked => {
            format!(" the restart limit is used up: it stays down until `rebeam restart {}`", certificate.actor)
        }
    };
    lines.push(format!("{}{next}", paint(red, "┗━")));
    lines.join("\n")
}
