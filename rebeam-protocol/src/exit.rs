//! Why an actor ended: data, not an error. The rows are those of section 0 of the OTP conformance table.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::text::shortened;

/// How many bytes of a text, of a traceback and of a class's name are kept.
const MOST_TEXT: usize = 8 * 1024;
const MOST_TRACEBACK: usize = 16 * 1024;
const MOST_KIND: usize = 512;

/// The reason of an end, as watchers, callers and the command line see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExitReason {
    /// It said so itself: a stop with `normal`, or `SystemExit(0)`.
    Normal,
    /// Its supervisor asked for it, or it stopped itself so; with an optional detail.
    Shutdown(Option<String>),
    /// An exception nobody caught in a callback.
    Exception(Raised),
    /// The process ended by itself without a final report, also with code 0; or `SystemExit(n)` with n ≠ 0.
    ExitCode(i32),
    /// A signal that Re:BEAM did not send.
    Signal(i32),
    /// Re:BEAM sent SIGKILL: a kill, a brutal stop, or the shutdown time ran out.
    Killed,
    /// Re:BEAM judged the worker hung and killed it.
    HeartbeatTimeout,
    /// A reason chosen by user code, as text.
    Other(String),
    /// Seen only by who asks: there is no such actor.
    NoProc,
    /// Seen only by who asks: its node cannot be reached.
    NoConnection,
    /// The worker broke the protocol and was killed for it; the text says how.
    BadProtocol(String),
    /// `init` took longer than the start limit.
    StartTimeout,
    /// The process could not be made at all.
    NotStarted(String),
    /// It was to be started under a name that another actor holds.
    NameTaken(String),
    /// A callback returned what none may return; the text shows it.
    BadReturn(String),
    /// It used more memory than it may, in KiB: what it used, and its limit.
    MemoryLimit(u64, u64),
    /// It held more of something than one actor may; the text says of what, and how much is allowed.
    LimitExceeded(String),
}

/// An exception as it was raised in a worker, in words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Raised {
    /// Its class, with the module unless that is `builtins`.
    pub kind: String,
    /// `str()` of it.
    pub message: String,
    /// The formatted traceback, chain and notes included, frames of Re:BEAM left out.
    pub traceback: String,
}

impl ExitReason {
    /// The plain shutdown that a supervisor orders.
    pub const SHUTDOWN: ExitReason = ExitReason::Shutdown(None);

    /// The same with texts of bounded length: it is kept, shown, and told to everybody who asks.
    #[must_use]
    pub fn bounded(self) -> Self {
        let text = |text| shortened(text, MOST_TEXT);
        match self {
            ExitReason::Exception(raised) => ExitReason::Exception(Raised {
                kind: shortened(raised.kind, MOST_KIND),
                message: text(raised.message),
                traceback: shortened(raised.traceback, MOST_TRACEBACK),
            }),
            ExitReason::Shutdown(detail) => ExitReason::Shutdown(detail.map(text)),
            ExitReason::Other(other) => ExitReason::Other(text(other)),
            ExitReason::BadProtocol(complaint) => ExitReason::BadProtocol(text(complaint)),
            ExitReason::NotStarted(error) => ExitReason::NotStarted(text(error)),
            ExitReason::NameTaken(name) => ExitReason::NameTaken(text(name)),
            ExitReason::BadReturn(value) => ExitReason::BadReturn(text(value)),
            ExitReason::LimitExceeded(what) => ExitReason::LimitExceeded(text(what)),
            plain => plain,
        }
    }

    /// Whether a transient child with this end is left alone.
    pub fn is_clean(&self) -> bool {
        matches!(self, ExitReason::Normal | ExitReason::Shutdown(_))
    }

    /// One word for the sort of end, as in `--json` output.
    pub fn kind(&self) -> &'static str {
        match self {
            ExitReason::Normal => "normal",
            ExitReason::Shutdown(_) => "shutdown",
            ExitReason::Exception(_) => "exception",
            ExitReason::ExitCode(_) => "exit_code",
            ExitReason::Signal(_) => "signal",
            ExitReason::Killed => "killed",
            ExitReason::HeartbeatTimeout => "heartbeat_timeout",
            ExitReason::Other(_) => "other",
            ExitReason::NoProc => "noproc",
            ExitReason::NoConnection => "noconnection",
            ExitReason::BadProtocol(_) => "bad_protocol",
            ExitReason::StartTimeout => "start_timeout",
            ExitReason::NotStarted(_) => "not_started",
            ExitReason::NameTaken(_) => "name_taken",
            ExitReason::BadReturn(_) => "bad_return",
            ExitReason::MemoryLimit(..) => "memory_limit",
            ExitReason::LimitExceeded(_) => "limit_exceeded",
        }
    }
}

impl fmt::Display for ExitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ExitReason::Shutdown(Some(detail)) => write!(f, "shutdown({detail})"),
            ExitReason::Exception(raised) => write!(f, "{raised}"),
            ExitReason::ExitCode(code) => write!(f, "exit_code({code})"),
            ExitReason::Signal(number) => write!(f, "signal({})", signal_name(*number)),
            ExitReason::Other(text) => f.write_str(text),
            ExitReason::BadProtocol(text) => write!(f, "bad_protocol({text})"),
            ExitReason::NotStarted(text) => write!(f, "not_started({text})"),
            ExitReason::NameTaken(name) => write!(f, "name_taken({name})"),
            ExitReason::LimitExceeded(text) => write!(f, "limit_exceeded({text})"),
            ExitReason::BadReturn(value) => write!(f, "bad_return({value})"),
            ExitReason::MemoryLimit(used, limit) if *limit < 10 * 1024 => {
                write!(f, "memory_limit({used} of {limit} KiB)")
            }
            ExitReason::MemoryLimit(used, limit) => write!(f, "memory_limit({} of {} MiB)", used / 1024, limit / 1024),
            plain => f.write_str(plain.kind()),
        }
    }
}

impl fmt::Display for Raised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.message.is_empty() { f.write_str(&self.kind) } else { write!(f, "{}: {}", self.kind, self.message) }
    }
}

/// The name of a signal by its Linux number; `SIG<n>` for one without a name.
pub fn signal_name(number: i32) -> String {
    const NAMES: [&str; 31] = [
        "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM",
        "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF",
        "WINCH", "IO", "PWR", "SYS",
    ];
    match usize::try_from(number - 1).ok().and_then(|index| NAMES.get(index)) {
        Some(name) => format!("SIG{name}"),
        None => format!("SIG{number}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_read_as_in_the_conformance_table() {
        assert_eq!(ExitReason::Signal(11).to_string(), "signal(SIGSEGV)");
        assert_eq!(ExitReason::Signal(64).to_string(), "signal(SIG64)");
        assert_eq!(ExitReason::Shutdown(Some("migrate".into())).to_string(), "shutdown(migrate)");
        assert!(!ExitReason::ExitCode(0).is_clean(), "an end without a report is abnormal (MAP-02)");
    }
}
