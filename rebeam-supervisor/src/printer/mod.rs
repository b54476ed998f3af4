//! What a running node shows: lines of actors, log records, one block or record per crash.
//!
//! A thread of its own writes, so that a slow reader never holds up the supervisor, let alone an actor; what it cannot
//! keep up with is dropped, counted and said. For people ([`human`]) what an actor writes to stdout goes to stdout, and
//! everything else to stderr; for machines ([`json`]) everything goes to stdout or into a file, one object a line.

mod human;
mod json;

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use rebeam_protocol::certificate::{Certificate, Next};
use rebeam_protocol::id::{Pid, Version};
use rebeam_protocol::message::{DeadLetter, LogRecord};
use rebeam_protocol::outside::Reloaded;
use rebeam_protocol::zygote::LoadError;
use serde_json::json;

use self::human::Human;
use crate::view::failure::Failure;
use crate::view::reload;
use crate::view::text::{duration, in_line};

/// Lines that may wait for a slow reader, and bytes of them.
const WAITING: usize = 20_000;
const WAITING_BYTES: usize = 16 * 1024 * 1024;

/// How long a reader may take for what is left when the node has ended.
const LAST_LINES: Duration = Duration::from_secs(2);

/// Who says something.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Speaker<'a> {
    /// A name or path; `app` for the zygote, `rebeam` for the supervisor.
    pub(crate) label: &'a str,
    /// The incarnation, of an actor.
    pub(crate) pid: Option<Pid>,
    /// The version of the code that it runs.
    pub(crate) code: Option<Version>,
}

/// The reason not to fork that somebody has given.
const NEVER: &str = "`fork` is `never`";

const REBEAM: Speaker<'_> = Speaker { label: "rebeam", pid: None, code: None };

/// Which stream a line came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

/// A handle on the printing thread.
#[derive(Clone, Debug)]
pub(crate) struct Printer {
    form: Form,
    /// What a batch has left.
    report: Arc<Mutex<Option<serde_json::Value>>>,
    lines: SyncSender<Line>,
    dropped: Arc<Dropped>,
    waiting_bytes: Arc<AtomicUsize>,
}

/// What the thread is told beside its lines: which were not printed, and whether its file is to be opened anew.
#[derive(Debug, Default)]
struct Dropped {
    reopens: AtomicBool,
    all: AtomicU64,
    unsaid: AtomicU64,
}

#[derive(Clone, Debug)]
enum Form {
    Human(Arc<Human>),
    Json,
}

#[derive(Debug)]
enum Line {
    Text(Stream, String),
    /// Lines that stand at the end of a terminal, and are replaced by the next ones.
    Live(Vec<String>),
    Reopen,
    End,
}

/// Says when everything is out.
pub(crate) struct Rest(Receiver<()>);

impl Printer {
    /// Starts the thread, for people who look on.
    pub(crate) fn human() -> (Self, Rest) {
        Self::start(Form::Human(Arc::new(Human::new())), None)
    }

    /// Starts the thread, for machines; into a file rather than to stdout, if one is given.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub(crate) fn json(file: Option<&Path>) -> io::Result<(Self, Rest)> {
        let file = file.map(|path| Ok::<_, io::Error>((path.to_owned(), open(path)?))).transpose()?;
        Ok(Self::start(Form::Json, file))
    }

    fn start(form: Form, file: Option<(PathBuf, File)>) -> (Self, Rest) {
        let (lines, receiver) = sync_channel(WAITING);
        let (over, rest) = channel();
        let dropped = Arc::new(Dropped::default());
        let waiting_bytes = Arc::new(AtomicUsize::new(0));
        let printer = Printer {
            form,
            report: Arc::default(),
            lines,
            dropped: dropped.clone(),
            waiting_bytes: waiting_bytes.clone(),
        };
        let form = printer.form.clone();
        std::thread::spawn(move || {
            write(&receiver, &form, file, &dropped, &waiting_bytes);
            let _ = over.send(());
        });
        (printer, Rest(rest))
    }

    /// Prints what is left, unless nobody reads it; true if everything is out.
    pub(crate) fn finish(self, rest: &Rest) -> bool {
        let is_stuck = matches!(self.lines.try_send(Line::End), Err(TrySendError::Full(_)));
        // The thread ends with its last line, or with this last handle.
        drop(self);
        rest.0.recv_timeout(if is_stuck { LAST_LINES / 4 } else { LAST_LINES }).is_ok() && !is_stuck
    }

    /// Opens the file anew: somebody has moved it away.
    pub(crate) fn reopen(&self) {
        self.dropped.reopens.store(true, Ordering::Relaxed);
        // Also if nothing is printed for a while. If that finds no room, something is being printed.
        let _ = self.lines.try_send(Line::Reopen);
    }

    /// How many lines were dropped because they were read too slowly.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.all.load(Ordering::Relaxed)
    }

    /// A line that an actor wrote.
    pub(crate) fn output(&self, who: Speaker<'_>, stream: Stream, line: &str) {
        match &self.form {
            Form::Human(human) => self.send(stream, human.prefixed(who.label, stream, line)),
            Form::Json => self.send(stream, json::output(who, stream, line)),
        }
    }

    /// The report of the batch that has run.
    pub(crate) fn take_report(&self) -> Option<serde_json::Value> {
        self.report.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// What a batch tells of itself, by records that carry it along.
    fn batch(&self, record: &LogRecord) -> bool {
        let Some(mut extra) = record.extra.as_deref().and_then(|it| serde_json::from_str::<serde_json::Value>(it).ok())
        else {
            return false;
        };
        let is_report = extra.get("batch_report").is_some();
        if is_report {
            *self.report.lock().unwrap_or_else(PoisonError::into_inner) = Some(extra["batch_report"].take());
        }
        let Form::Human(human) = &self.form else { return false };
        match (is_report, extra.get("batch")) {
            (true, _) => self.send(Stream::Stdout, human.printable(Stream::Stdout, &record.message).into_owned()),
            (false, Some(progress)) => {
                let is_last = progress["is_last"] == true;
                let lines = human.printable(Stream::Stderr, &record.message);
                let lines: Vec<String> = lines.lines().map(str::to_owned).collect();
                if human.is_live() && !is_last {
                    let _ = self.lines.try_send(Line::Live(lines));
                } else if is_last || human.is_time_for_progress() {
                    lines.into_iter().for_each(|line| self.send(Stream::Stderr, line));
                }
            }
            (false, None) => return false,
        }
        true
    }

    /// A log record of an actor.
    pub(crate) fn log(&self, who: Speaker<'_>, record: &LogRecord) {
        if record.logger == "rebeam.batch" && self.batch(record) {
            return;
        }
        match &self.form {
            Form::Human(human) => {
                human.log(who.label, record).into_iter().for_each(|line| self.send(Stream::Stderr, line));
            }
            Form::Json => self.send(Stream::Stderr, json::log(who, record)),
        }
    }

    /// Something that the supervisor itself says.
    pub(crate) fn say(&self, text: &str) {
        match &self.form {
            Form::Human(human) => {
                self.send(Stream::Stderr, human.prefixed(REBEAM.label, Stream::Stderr, &in_line(text)));
            }
            Form::Json => self.send(Stream::Stderr, json::said("info", text)),
        }
    }

    /// The same, of something that is not as it should be.
    pub(crate) fn warn(&self, text: &str) {
        match &self.form {
            Form::Human(human) => self.send(Stream::Stderr, human.warning(text)),
            Form::Json => self.send(Stream::Stderr, json::said("warning", text)),
        }
    }

    /// The tree is up.
    pub(crate) fn up(&self, actors: usize, after: Duration) {
        let plural = if actors == 1 { "" } else { "s" };
        self.say(&format!("up with {actors} actor{plural} after {}", duration(after)));
    }

    /// The application must not be forked.
    pub(crate) fn unforkable(&self, reason: &str) {
        if reason == NEVER {
            return self.say("each actor gets a fresh interpreter: `fork` is `never`");
        }
        self.warn(&format!("the application cannot be forked: {reason}; each actor gets a fresh interpreter"));
        self.say(
            "hint: what is opened or started in `init` rather than on import lets actors start in a millisecond; \
             `fork = \"always\"` in the project's file forks all the same",
        );
    }

    /// A message nobody will handle.
    pub(crate) fn dead_letter(&self, letter: &DeadLetter) {
        let DeadLetter { id, method, sender, to, cause, .. } = letter;
        self.warn(&format!("dead letter {id}: `{method}` from {sender} to {to}: {}", cause.words()));
    }

    /// An end that nobody ordered: all that is known of it, from its reason to what follows.
    pub(crate) fn crash(&self, certificate: &Certificate, next: Next) {
        match &self.form {
            Form::Human(human) => self.send(Stream::Stderr, human.crash(certificate, next)),
            Form::Json => self.send(Stream::Stderr, json::crash(certificate, next)),
        }
    }

    /// What became of a reload: which files it was about, and how long it took.
    pub(crate) fn reloaded(&self, reloaded: &Reloaded, files: &[PathBuf], took: Duration) {
        let about = reload::summary(reloaded, files, took);
        self.say_with(&about, json!({ "reload": reload::data(reloaded, files, took) }));
        for (why, text) in reload::failures(reloaded) {
            self.warn_in_full(&why, &text);
        }
        for line in reload::details(reloaded) {
            self.say(&line);
        }
    }

    /// A reload waits for actors that are busy.
    pub(crate) fn reload_waits(&self, version: Version, busy: &[String]) {
        self.say(&format!("{version} is loaded; not moved yet: {}", reload::listed(busy)));
    }

    /// New code could not be imported.
    pub(crate) fn not_reloaded(&self, error: &LoadError, version: Version) {
        self.warn_in_full(
            &format!("not reloaded, {version} goes on: {}", error.message),
            error.traceback.as_deref().unwrap_or_default(),
        );
        if let Some(hint) = &error.hint {
            self.say(&format!("hint: {hint}"));
        }
    }

    /// Something with data that belongs to it, for machines.
    fn say_with(&self, text: &str, extra: serde_json::Value) {
        match &self.form {
            Form::Human(_) => self.say(text),
            Form::Json => self.send(Stream::Stderr, json::said_with("info", text, extra)),
        }
    }

    /// Something that is not as it should be, with a traceback of many lines.
    fn warn_in_full(&self, text: &str, detail: &str) {
        match &self.form {
            Form::Human(human) => {
                self.warn(text);
                let lines = detail.trim_end().lines();
                lines.for_each(|line| self.send(Stream::Stderr, human.prefixed(REBEAM.label, Stream::Stderr, line)));
            }
            Form::Json => self.send(Stream::Stderr, json::said_with("warning", text, json!({ "exception": detail }))),
        }
    }

    /// What an actor does right now.
    pub(crate) fn stacks(&self, label: &str, stacks: Result<&str, &str>) {
        match &self.form {
            Form::Human(human) => {
                let text = stacks.unwrap_or_else(|why| why);
                text.lines().for_each(|line| self.send(Stream::Stderr, human.prefixed(label, Stream::Stderr, line)));
            }
            Form::Json => self.send(Stream::Stderr, json::stacks(label, stacks)),
        }
    }

    /// The end of a node that is not as it was asked for; true if it was printed, for machines.
    pub(crate) fn failure(&self, failure: &Failure) -> bool {
        let is_json = matches!(self.form, Form::Json);
        if is_json {
            self.send(Stream::Stderr, json::failure(failure));
        }
        is_json
    }

    fn send(&self, stream: Stream, text: String) {
        let length = text.len();
        let is_over = self.waiting_bytes.load(Ordering::Relaxed) > WAITING_BYTES;
        self.waiting_bytes.fetch_add(length, Ordering::Relaxed);
        if is_over || matches!(self.lines.try_send(Line::Text(stream, text)), Err(TrySendError::Full(_))) {
            self.waiting_bytes.fetch_sub(length, Ordering::Relaxed);
            self.dropped.all.fetch_add(1, Ordering::Relaxed);
            self.dropped.unsaid.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The life of the thread.
fn write(
    lines: &Receiver<Line>,
    form: &Form,
    mut file: Option<(PathBuf, File)>,
    dropped: &Dropped,
    waiting_bytes: &AtomicUsize,
) {
    let (mut stdout, mut stderr) = (io::stdout(), io::stderr());
    let mut put = |stream: Stream, text: &str, file: &mut Option<(PathBuf, File)>| {
        // One write for a line, so that lines stay whole whoever else writes there.
        let line = format!("{text}\n");
        let written = match (form, file, stream) {
            (_, Some((_, file)), _) => file.write_all(line.as_bytes()),
            (Form::Json, None, _) | (Form::Human(_), None, Stream::Stdout) => stdout.write_all(line.as_bytes()),
            (Form::Human(_), None, Stream::Stderr) => stderr.write_all(line.as_bytes()),
        };
        if written.is_err() {
            dropped.all.fetch_add(1, Ordering::Relaxed);
        }
    };
    let mut live = 0;
    while let Ok(line) = lines.recv() {
        if dropped.reopens.swap(false, Ordering::Relaxed)
            && let Some((path, open_file)) = &mut file
        {
            match open(path) {
                Ok(anew) => *open_file = anew,
                Err(error) => {
                    let told = format!("`{}` could not be opened anew: {error}", path.display());
                    put(Stream::Stderr, &json::said("warning", &told), &mut file);
                }
            }
        }
        match line {
            Line::Text(stream, text) => {
                clear(std::mem::take(&mut live));
                waiting_bytes.fetch_sub(text.len(), Ordering::Relaxed);
                let missing = dropped.unsaid.swap(0, Ordering::Relaxed);
                if missing > 0 {
                    let told = format!("{missing} lines were dropped: this output is read too slowly");
                    let told = if let Form::Json = form { json::said("warning", &told) } else { format!("({told})") };
                    put(Stream::Stderr, &told, &mut file);
                }
                put(stream, &text, &mut file);
            }
            Line::Live(lines) => {
                clear(live);
                for line in &lines {
                    put(Stream::Stderr, line, &mut file);
                }
                live = lines.len();
            }
            Line::Reopen => {}
            Line::End => return,
        }
    }
}

/// Takes away the last lines of a terminal.
fn clear(lines: usize) {
    if lines > 0 {
        let _ = write!(io::stderr(), "\x1b[{lines}A\x1b[J");
    }
}

fn open(path: &Path) -> io::Result<File> {
    // Without waiting: nobody may read a FIFO. Once it is open, its writing may wait.
    let file = OpenOptions::new().create(true).append(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    let flags = OFlag::from_bits_truncate(fcntl(&file, FcntlArg::F_GETFL)?);
    fcntl(&file, FcntlArg::F_SETFL(flags & !OFlag::O_NONBLOCK))?;
    Ok(file)
}
