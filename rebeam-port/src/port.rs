//! The loop of a port: whatever comes of supervisor, program and time is done here, one thing after the other.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::{self, PipeReader};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use bytes::Bytes;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::prctl;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, kill, sigaction};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::time::TimeSpec;
use nix::sys::wait::WaitStatus;
use nix::unistd::{read, write};
use rebeam_protocol::address::{Address, Caller, ReplyTo};
use rebeam_protocol::exit::{ExitReason, Raised, signal_name};
use rebeam_protocol::id::{CallId, Pid, Seq};
use rebeam_protocol::message::{CallFailure, Codec, Form, Lane, Outcome, Signal as Notice};
use rebeam_protocol::process::ProcessRequest;
use rebeam_protocol::program::{Framing, Program, Ready, Stdio};
use rebeam_protocol::spec::ProcessOptions;
use rebeam_protocol::value::{self, Value};
use rebeam_protocol::worker::{Delivery, ToSupervisor, ToWorker};
use rebeam_sys::process::{dump_signal, end_at_once, exit_signal, inherited, tasks_signal};
use rebeam_sys::tag;
use regex_lite::Regex;
use serde_json::{Value as Json, json};

use crate::framing::{Cutter, Piece, framed};
use crate::json;
use crate::link::Link;
use crate::pickle;
use crate::program::{self, Running};
use crate::ready;
use crate::rpc::{self, Failure, Rpc, Said, shown};

/// The descriptors that the supervisor starts this process with: channel, status page, lifeline.
const FIRST: i32 = 3;

/// How much is read of the program at once.
const CHUNK: usize = 64 * 1024;

/// How much may wait of answers that the program does not read, before nothing more is read of it; and of a line that is
/// looked at.
const MUCH_WAITS: usize = 1 << 20;

/// How long a program that has closed its input or output may take to end.
const AFTER_CLOSED: Duration = Duration::from_secs(2);

/// How long those may take to end that a program has left behind which was told to end.
const REST_ENDS: Duration = Duration::from_secs(2);

/// How long the listeners of a program may take to take what it has written before its end.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// How long a program that does not read its input any more may be about to end.
const MAY_END: Duration = Duration::from_millis(200);

/// How many pieces of what it writes are passed on before the supervisor may say that somebody's mailbox is full.
const PIECES_AT_ONCE: usize = 256;

/// How many of the program's mistakes are logged; of more it is said once that there are more.
const MOST_COMPLAINTS: u32 = 20;

/// `logging`'s number for a warning.
const WARNING: u16 = 30;

/// Whose request `initialize` is: nobody's.
const INITIALIZE: Seq = Seq(u64::MAX);

/// Codes of JSON-RPC.
const METHOD_NOT_FOUND: i64 = -32601;
const INTERNAL_ERROR: i64 = -32603;
const SERVER_ERROR: i64 = -32000;

/// Serves as the port of one program until that or its actor ends.
///
/// # Errors
/// It was not started by a supervisor, or that is gone.
pub fn serve() -> Result<(), String> {
    // SAFETY: the supervisor started this process with these descriptors for this purpose.
    let fds = [FIRST, FIRST + 1, FIRST + 2].map(|fd| unsafe { inherited(fd) });
    // Other workers are killed by their lifeline. A port that was killed could end nothing that its program has started, so
    // it ends by itself, when the channel is closed: it never does anything else for long.
    let [Ok(channel), Ok(page), Ok(lifeline)] = fds else {
        return Err("this program is started by `rebeam`; run `rebeam --help`".into());
    };
    let _ = prctl::set_name(c"rebeam-port");
    if let Some(mark) = std::env::var_os("REBEAM_NODE") {
        tag::tag_own(tag::node_of(mark.as_encoded_bytes()));
    }
    // Whatever the program leaves behind comes to us.
    prctl::set_child_subreaper(true).map_err(|error| error.to_string())?;
    let children = signals().map_err(|error| error.to_string())?;
    let (link, welcome, start) = Link::open(channel, &page).map_err(|error| error.to_string())?;
    limit(&welcome.options);
    let mut port = Program::decode(&start).and_then(|program| Port::new(link, welcome.label, program, children))?;
    if let Err(error) = port.start() {
        port.ends(ExitReason::NotStarted(error));
    }
    let error = loop {
        if let Err(error) = port.turn() {
            break error;
        }
    };
    // The supervisor is gone, and with it the reason to be.
    program::end_all();
    drop(lifeline);
    Err(error.to_string())
}

/// What the program is to inherit. Where the system does not allow it, it has none of that, as other actors.
fn limit(options: &ProcessOptions) {
    if let Some(nice) = options.nice {
        // SAFETY: a system call that takes a number.
        unsafe { libc::nice(nice) };
    }
    if !options.cpus.is_empty() {
        let mut set = nix::sched::CpuSet::new();
        if options.cpus.iter().all(|cpu| set.set(*cpu as usize).is_ok()) {
            let _ = nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set);
        }
    }
}

/// Has the ends of children come by a descriptor. The signals by which workers are asked for their stacks interrupt a wait,
/// and do nothing else; what is executed has none of this.
fn signals() -> io::Result<SignalFd> {
    extern "C" fn nothing(_: i32) {}
    let action = SigAction::new(SigHandler::Handler(nothing), SaFlags::empty(), SigSet::empty());
    for number in [dump_signal(), tasks_signal(), exit_signal()] {
        // SAFETY: the action is plain data, of a handler that does nothing. (`nix` knows no real-time signals.)
        if unsafe { libc::sigaction(number, &action.into(), std::ptr::null_mut()) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    let ignored = SigAction::new(SigHandler::SigIgn, SaFlags::empty(), SigSet::empty());
    // SAFETY: no handler is involved.
    unsafe { sigaction(Signal::SIGPIPE, &ignored) }?;
    let mut ends = SigSet::empty();
    ends.add(Signal::SIGCHLD);
    ends.thread_block()?;
    Ok(SignalFd::with_flags(&ends, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?)
}

/// Where the program is.
enum State {
    /// It is started, and not ready.
    Coming,
    /// It serves.
    Up,
    /// It is not there, since nobody uses it; the next message starts it.
    Idle,
    /// It was told to end, for want of use.
    Resting,
    /// It was told to end; for this reason the actor ends with it.
    Stopping(ExitReason),
}

struct Port {
    link: Link,
    label: String,
    program: Program,
    line: Option<Regex>,
    children: SignalFd,
    state: State,
    has_said_ready: bool,
    running: Option<Running>,
    probe: Option<PipeReader>,
    rpc: Rpc,
    /// What it has answered to `initialize`.
    info: Option<Json>,
    cutter: Cutter,
    /// Beginnings of lines that are looked at, of both outputs.
    partial: [Vec<u8>; 2],
    /// What is to be written to the program: the rest of each piece, and whose message it is.
    input: VecDeque<Input>,
    /// Messages for a program that is not ready.
    waiting: VecDeque<(Delivery, Bytes)>,
    subscribers: Vec<Pid>,
    /// Requests of the program that its handler has.
    asked: BTreeMap<CallId, Json>,
    calls: BTreeMap<Seq, ReplyTo>,
    last_use: Instant,
    /// Since when it has no input or no output any more, and still lives.
    closed: Option<Instant>,
    /// When it is killed, if it has not ended as it was asked to.
    killed_at: Option<Instant>,
    /// How it has ended, if nothing of it is left but what it has written last.
    ended: Option<Option<WaitStatus>>,
    /// Since when it does not read its input any more, as long as it may be about to end.
    deaf: Option<Instant>,
    /// When a program that is started again has to be ready.
    ready_by: Option<Instant>,
    /// Whether it was sent `initialize`.
    is_greeted: bool,
    /// Once it has ended as it was asked to: who of those that it has left behind was asked, too.
    left: Option<BTreeSet<nix::unistd::Pid>>,
    complaints: u32,
}

struct Input {
    bytes: Vec<u8>,
    written: usize,
    what: What,
}

/// What is written to a program.
enum What {
    /// A message that is done when it is written.
    Message(Seq, Option<ReplyTo>),
    /// Nothing: its input is closed. It is such a message, if somebody asked for it.
    Close(Option<(Seq, Option<ReplyTo>)>),
    /// A request for this message.
    Request(Seq),
    /// The answer to a request of the program's.
    Answer,
    /// What nobody waits for.
    Notice,
}

impl Port {
    fn new(link: Link, label: String, program: Program, children: SignalFd) -> Result<Self, String> {
        let line = match &program.ready {
            Ready::Line(pattern) => Some(Regex::new(pattern).map_err(|error| format!("ready: {error}"))?),
            _ => None,
        };
        let (framing, cancel) = match program.stdio {
            Stdio::JsonRpc { framing, cancel } => (framing, cancel),
            _ => (Framing::Lines, rebeam_protocol::program::Cancel::Never),
        };
        let most = usize::try_from(program.max_line).unwrap_or(usize::MAX).min(link.most());
        Ok(Port {
            link,
            label,
            line,
            children,
            state: State::Coming,
            has_said_ready: false,
            running: None,
            probe: None,
            rpc: Rpc::new(cancel),
            info: None,
            cutter: Cutter::new(framing, most),
            partial: [Vec::new(), Vec::new()],
            input: VecDeque::new(),
            waiting: VecDeque::new(),
            subscribers: Vec::new(),
            asked: BTreeMap::new(),
            calls: BTreeMap::new(),
            last_use: Instant::now(),
            closed: None,
            killed_at: None,
            ended: None,
            deaf: None,
            ready_by: None,
            is_greeted: false,
            left: None,
            complaints: 0,
            program,
        })
    }

    // ---- the program's life ---------------------------------------------------------------------------------------------

    fn start(&mut self) -> Result<(), String> {
        self.running = Some(program::start(&self.program, self.line.is_some())?);
        self.state = State::Coming;
        self.info = None;
        self.is_greeted = false;
        // Of the first start the supervisor has an eye on the clock.
        let limit = self.program.start_ms.filter(|_| self.has_said_ready);
        self.ready_by = limit.map(|limit| Instant::now() + Duration::from_millis(limit));
        self.probe = ready::watch(&self.program.ready).map_err(|error| error.to_string())?;
        if self.program.ready == Ready::AtOnce {
            self.is_ready();
        }
        Ok(())
    }

    /// It is up, unless the protocol begins with a request that it has to answer first.
    fn is_ready(&mut self) {
        if !matches!(self.state, State::Coming) {
            return;
        }
        self.probe = None;
        if let (Some(params), None, Stdio::JsonRpc { framing, .. }) =
            (&self.program.initialize, &self.info, self.program.stdio)
        {
            if std::mem::replace(&mut self.is_greeted, true) {
                return;
            }
            let params = serde_json::from_str(params).unwrap_or(Json::Null);
            let request = self.rpc.request(INITIALIZE, "initialize", params);
            return self.put(framed(framing, &request), What::Notice);
        }
        self.state = State::Up;
        self.ready_by = None;
        self.last_use = Instant::now();
        if !std::mem::replace(&mut self.has_said_ready, true) {
            self.link.started();
        }
        self.take_waiting();
    }

    fn take_waiting(&mut self) {
        for (delivery, payload) in std::mem::take(&mut self.waiting) {
            self.take(delivery, &payload);
        }
    }

    /// Ends all that there is of the program, and this process, for this reason.
    fn ends(&mut self, reason: ExitReason) -> ! {
        program::end_all();
        self.link.ends(reason);
        end_at_once(0)
    }

    /// Asks the program to end, by its signal and by the end of its input, and kills it if it has not after its time.
    fn stop(&mut self, state: State) {
        self.state = state;
        self.probe = None;
        self.closed = None;
        self.killed_at = self.program.stop_ms.map(|limit| Instant::now() + Duration::from_millis(limit));
        match &self.running {
            // It has ended, and the rest was asked to.
            Some(_) if self.left.is_some() || self.ended.is_some() => {}
            Some(running) => {
                let number = self.program.stop_signal;
                // SAFETY: a system call that takes numbers; the program is our child, and not reaped.
                unsafe { libc::kill(running.os_pid.as_raw(), number) };
                // One that was stopped hears nothing.
                let _ = kill(running.os_pid, Signal::SIGCONT);
                // Some wait for that (servers of the Model Context Protocol are told to).
                self.put(Vec::new(), What::Close(None));
            }
            None => self.has_ended(None),
        }
    }

    /// Looks after children that have ended.
    fn look_after_children(&mut self) {
        while matches!(self.children.read_signal(), Ok(Some(_))) {}
        let running = self.running.as_ref().filter(|_| self.ended.is_none());
        let Some(os_pid) = running.map(|running| running.os_pid) else { return };
        match program::look(os_pid) {
            None if self.left.is_some() => self.ask_the_rest(),
            None => {}
            Some(WaitStatus::Stopped(_, Signal::SIGTTIN | Signal::SIGTTOU)) => {
                self.ends(ExitReason::Other("it wants a terminal, and has none".into()));
            }
            Some(WaitStatus::Stopped(..)) => {}
            Some(_) if matches!(self.state, State::Resting | State::Stopping(_)) => {
                self.left = Some(BTreeSet::new());
                let limit = Instant::now() + REST_ENDS;
                self.killed_at = Some(self.killed_at.map_or(limit, |at| at.min(limit)));
                self.ask_the_rest();
            }
            Some(status) => self.has_ended(Some(status)),
        }
    }

    /// Asks those to end that the program has left behind: what a shell has started does not hear of its end.
    fn ask_the_rest(&mut self) {
        let rest = program::children();
        let Some(asked) = self.left.as_mut().filter(|_| !rest.is_empty()) else { return self.has_ended(None) };
        for os_pid in rest {
            if asked.insert(os_pid) {
                // SAFETY: a system call that takes numbers; it is our child, and not reaped.
                unsafe { libc::kill(os_pid.as_raw(), self.program.stop_signal) };
            }
        }
    }

    /// Ends what there is of it. What it has written last is still to be heard, at the listeners' pace.
    fn has_ended(&mut self, status: Option<WaitStatus>) {
        program::end_all();
        self.ended = Some(status);
        self.killed_at = Some(Instant::now() + LAST_WORDS);
        self.closed = None;
        self.deaf = None;
        self.ready_by = None;
        if let Some(running) = &mut self.running {
            running.stdin = None;
        }
        while self.read_errors() {}
    }

    /// Nothing of it is left, and nothing to be heard.
    fn is_over(&mut self, status: Option<WaitStatus>) {
        if let Some(rest) = self.cutter.take_rest() {
            self.hear_rest(&rest);
        }
        self.running = None;
        self.killed_at = None;
        self.left = None;
        self.asked.clear();
        if matches!(self.state, State::Resting) {
            self.state = State::Idle;
            self.drop_input();
            if !self.waiting.is_empty() {
                self.start_again();
            }
            return;
        }
        let reason = match (std::mem::replace(&mut self.state, State::Idle), status) {
            (State::Stopping(reason), _) => reason,
            (_, Some(WaitStatus::Exited(_, 0))) => ExitReason::Normal,
            (_, Some(WaitStatus::Exited(_, code))) => {
                self.explain_code(code);
                ExitReason::ExitCode(code)
            }
            (_, Some(WaitStatus::Signaled(_, signal, _))) => ExitReason::Signal(signal as i32),
            _ => ExitReason::Other("it has ended".into()),
        };
        self.ends(reason)
    }

    /// What the codes of shells mean.
    #[expect(clippy::print_stderr, reason = "the last lines of stderr are in the certificate")]
    fn explain_code(&self, code: i32) {
        match code {
            127 => eprintln!("rebeam: exit code 127 is a shell's for a command that was not found"),
            126 => eprintln!("rebeam: exit code 126 is a shell's for a command that cannot be executed"),
            129..=159 => {
                let signal = signal_name(code - 128);
                eprintln!("rebeam: exit code {code} is a shell's for a command that was killed by {signal}");
            }
            _ => {}
        }
    }

    /// It has answered `initialize`.
    fn is_initialized(&mut self, result: Result<Json, Failure>) {
        let Stdio::JsonRpc { framing, .. } = self.program.stdio else { return };
        match result {
            Ok(info) => {
                self.info = Some(info);
                let told = match framing {
                    Framing::Lines => rpc::notification("notifications/initialized", Json::Null),
                    Framing::Headers => rpc::notification("initialized", json!({})),
                };
                self.put(framed(framing, &told), What::Notice);
                self.is_ready();
            }
            Err(Failure { code, message, .. }) => {
                self.ends(ExitReason::NotStarted(format!("it refuses `initialize`: {message} ({code})")));
            }
        }
    }

    fn start_again(&mut self) {
        if let Err(error) = self.start() {
            self.ends(ExitReason::NotStarted(error));
        }
    }

    /// What could not be written is not: nobody reads it.
    fn drop_input(&mut self) {
        for input in std::mem::take(&mut self.input) {
            if let What::Message(seq, reply_to) | What::Close(Some((seq, reply_to))) = input.what {
                self.refuse(seq, reply_to, "the program does not read its input any more".into());
            }
        }
    }

    // ---- one turn -------------------------------------------------------------------------------------------------------

    fn turn(&mut self) -> io::Result<()> {
        self.link.flush()?;
        let [children, channel, input, output, errors, probe] = self.wait()?;
        if self.link.is_exit_ordered() {
            // The core knows why.
            program::end_all();
            end_at_once(0);
        }
        // Before messages: what is not begun when it has ended comes to the next incarnation.
        if children {
            self.look_after_children();
        }
        if channel {
            self.link.read()?;
            while let Some((message, payload)) = self.link.next()? {
                self.hear(message, payload);
            }
        }
        if input {
            self.write_input();
        }
        if output {
            self.read_output();
        }
        if errors {
            self.read_errors();
        }
        if probe {
            self.is_ready();
        }
        self.hear_pieces();
        if let Some(status) = self.ended
            && self.is_heard_out()
        {
            self.ended = None;
            self.is_over(status);
        }
        self.look_at_clock();
        Ok(())
    }

    /// Waits until there is something to do: with children, channel, the program's input, output and errors, the probe.
    fn wait(&mut self) -> io::Result<[bool; 6]> {
        let is_full = self.link.is_full() || self.ended.is_none() && self.has_unread_answers();
        let has_more = !self.cutter.is_empty();
        let running = self.running.as_ref();
        let channel = if self.link.wants_room() { PollFlags::POLLIN | PollFlags::POLLOUT } else { PollFlags::POLLIN };
        let input = running.and_then(|it| it.stdin.as_ref()).filter(|_| !self.input.is_empty()).map(AsFd::as_fd);
        let output = running.and_then(|it| it.stdout.as_ref()).filter(|_| !is_full && !has_more).map(AsFd::as_fd);
        let errors = running.and_then(|it| it.stderr.as_ref()).map(AsFd::as_fd);
        let all = [
            (Some(self.children.as_fd()), PollFlags::POLLIN),
            (Some(self.link.as_fd()), channel),
            (input, PollFlags::POLLOUT),
            (output, PollFlags::POLLIN),
            (errors, PollFlags::POLLIN),
            (self.probe.as_ref().map(AsFd::as_fd), PollFlags::POLLIN),
        ];
        let mut polled: Vec<PollFd<'_>> =
            all.iter().filter_map(|(fd, flags)| Some(PollFd::new((*fd)?, *flags))).collect();
        // After its end nothing tells that there is something to read, or that there is not.
        let has_nothing = self.ended.is_some() && self.running.is_none();
        let goes_on = has_nothing || !is_full && (has_more || self.ended.is_some());
        let time_left = if goes_on { Some(Duration::ZERO) } else { self.time_left() };
        match ppoll(&mut polled, time_left.map(TimeSpec::from_duration), None) {
            Ok(_) => {}
            Err(Errno::EINTR) => return Ok([false, true, false, false, false, false]),
            Err(error) => return Err(error.into()),
        }
        let mut found = polled.iter().map(|it| it.any().unwrap_or(true)).collect::<VecDeque<bool>>();
        Ok(all.map(|(fd, _)| fd.is_some() && found.pop_front().unwrap_or(false)))
    }

    /// Whether the program asks and asks, and does not read what it is answered.
    fn has_unread_answers(&self) -> bool {
        let answers = self.input.iter().filter(|input| matches!(input.what, What::Answer));
        answers.map(|input| input.bytes.len()).sum::<usize>() > MUCH_WAITS
    }

    fn time_left(&self) -> Option<Duration> {
        let idle = self.rests_at().map(|at| at.saturating_duration_since(Instant::now()));
        let closed = self.closed.map(|since| (since + AFTER_CLOSED).saturating_duration_since(Instant::now()));
        let killed = self.killed_at.map(|at| at.saturating_duration_since(Instant::now()));
        let deaf = self.deaf.map(|since| (since + MAY_END).saturating_duration_since(Instant::now()));
        let ready = self.ready_by.map(|at| at.saturating_duration_since(Instant::now()));
        idle.into_iter().chain(closed).chain(killed).chain(deaf).chain(ready).min()
    }

    /// When it is stopped for want of use.
    fn rests_at(&self) -> Option<Instant> {
        let idle = Duration::from_millis(self.program.idle_ms?);
        let is_unused =
            matches!(self.state, State::Up) && self.calls.is_empty() && self.asked.is_empty() && self.input.is_empty();
        is_unused.then(|| self.last_use + idle)
    }

    fn look_at_clock(&mut self) {
        let now = Instant::now();
        if self.rests_at().is_some_and(|at| at <= now) {
            self.stop(State::Resting);
        }
        if self.killed_at.is_some_and(|at| at <= now) {
            match self.ended.take() {
                None => self.has_ended(None),
                // Nobody takes what it has written last.
                Some(status) => self.is_over(status),
            }
        }
        if self.deaf.is_some_and(|since| since + MAY_END <= now) {
            self.deaf = None;
            self.drop_input();
            self.take_waiting();
        }
        if self.ready_by.is_some_and(|at| at <= now) {
            let limit = self.program.start_ms.unwrap_or_default() as f64 / 1000.0;
            self.ends(ExitReason::NotStarted(format!("it was not ready again within {limit} s")));
        }
        if self.closed.is_some_and(|since| since + AFTER_CLOSED <= now) {
            self.ends(ExitReason::Other("it has closed its input or output, and lives on".into()));
        }
    }

    // ---- the supervisor says ----------------------------------------------------------------------------------------------

    fn hear(&mut self, message: ToWorker, payload: Bytes) {
        match message {
            ToWorker::Deliver(delivery) => self.delivered(delivery, payload),
            ToWorker::Reply { call, outcome, .. } => self.replied(call, outcome, &payload),
            ToWorker::Stop { reason, urgent } => {
                self.stop(State::Stopping(reason));
                // Its supervisor has an eye on the clock.
                self.killed_at = self.killed_at.filter(|_| !urgent);
            }
            ToWorker::Exit => {
                program::end_all();
                end_at_once(0)
            }
            ToWorker::Cancel { seq, .. } => self.cancelled(seq),
            ToWorker::Move { .. } | ToWorker::Recycle => {
                let why = "a program has no state to be moved".to_owned();
                self.link.say_raw(&ToSupervisor::CannotMove { why, is_failure: false });
            }
            ToWorker::Welcome(_)
            | ToWorker::TimeLeft { .. }
            | ToWorker::GoOn
            | ToWorker::Leave
            | ToWorker::Wake
            | ToWorker::ArenaFree { .. }
            | ToWorker::Answer { .. }
            | ToWorker::Gate(_)
            | ToWorker::LogLevel { .. }
            | ToWorker::EndSnapshots
            | ToWorker::StacksTaken => {}
        }
    }

    fn delivered(&mut self, delivery: Delivery, payload: Bytes) {
        if let Form::Signal(notice) = &delivery.head.form {
            if let Notice::Down { pid: Some(pid), .. } = &**notice {
                self.subscribers.retain(|subscriber| subscriber != pid);
            }
            return self.link.done(delivery.seq);
        }
        // What is asked of the port starts no program.
        let is_for_program = matches!(&*delivery.head.method, "request" | "notify" | "write" | "close_input");
        if is_for_program {
            self.last_use = Instant::now();
        }
        match self.state {
            _ if !is_for_program => self.take(delivery, &payload),
            State::Up if self.deaf.is_none() && self.ended.is_none() => self.take(delivery, &payload),
            // It stays unbegun, for the next incarnation, if the program has ended.
            State::Up => self.waiting.push_back((delivery, payload)),
            State::Idle => {
                self.waiting.push_back((delivery, payload));
                self.start_again();
            }
            State::Coming | State::Resting => self.waiting.push_back((delivery, payload)),
            // It stays unbegun, for the next incarnation.
            State::Stopping(_) => {}
        }
    }

    /// Does what a message asks for.
    fn take(&mut self, delivery: Delivery, payload: &[u8]) {
        let Delivery { seq, reply_to, head, .. } = delivery;
        self.link.begin(seq);
        if let Err(why) = self.try_to_take(seq, reply_to, &head, payload) {
            self.refuse(seq, reply_to, why);
        }
    }

    fn try_to_take(
        &mut self,
        seq: Seq,
        reply_to: Option<ReplyTo>,
        head: &rebeam_protocol::message::Head,
        payload: &[u8],
    ) -> Result<(), String> {
        if head.lane == Lane::System {
            return Err("a program has neither state nor handlers".into());
        }
        if head.codec != Codec::Data || head.form != Form::Arguments {
            return Err("a program takes plain data, by a reference to it: `rebeam.ProgramRef(name)`".into());
        }
        let content = value::decode(payload)?;
        let arguments = match content {
            Value::Tuple(mut both) if both.len() == 2 => match both.swap_remove(0) {
                Value::Tuple(arguments) | Value::List(arguments) => arguments,
                _ => return Err("no arguments".into()),
            },
            _ => return Err("no arguments".into()),
        };
        match (head.method.as_str(), &*arguments, self.program.stdio) {
            ("request" | "notify", [Value::Str(method), rest @ ..], Stdio::JsonRpc { framing, .. })
                if rest.len() < 2 =>
            {
                let params = rest.first().map_or(Ok(Json::Null), json::to_json)?;
                if !matches!(params, Json::Null | Json::Object(_) | Json::Array(_)) {
                    return Err(format!("the parameters of `{method}` are an object or an array"));
                }
                let is_request = head.method == "request";
                let (message, what) = match reply_to.filter(|_| is_request) {
                    Some(to) => {
                        self.calls.insert(seq, to);
                        (self.rpc.request(seq, method, params), What::Request(seq))
                    }
                    None => (rpc::notification(method, params), What::Message(seq, reply_to)),
                };
                self.put(framed(framing, &message), what);
            }
            ("write", [Value::Str(text)], Stdio::Raw) => {
                self.put(text.clone().into_bytes(), What::Message(seq, reply_to));
            }
            ("write", [Value::Bytes(bytes)], Stdio::Raw) => {
                self.put(bytes.clone(), What::Message(seq, reply_to));
            }
            ("write", [Value::Str(line)], Stdio::Lines) => {
                if line.contains('\n') {
                    return Err("a line has no line break in it".into());
                }
                self.put(format!("{line}\n").into_bytes(), What::Message(seq, reply_to));
            }
            ("close_input", [], Stdio::Raw | Stdio::Lines) => {
                self.put(Vec::new(), What::Close(Some((seq, reply_to))));
            }
            ("subscribe" | "unsubscribe", [Value::Tuple(numbers)], stdio) if stdio != Stdio::Log => {
                let pid = pid_of(numbers).ok_or("whose pid?")?;
                let was_one = self.subscribers.contains(&pid);
                match head.method == "subscribe" {
                    true if was_one => {}
                    true => {
                        self.subscribers.push(pid);
                        let _ = self.link.ask(ProcessRequest::Monitor(Address::Pid(pid)));
                    }
                    false => self.subscribers.retain(|subscriber| *subscriber != pid),
                }
                self.answer(seq, reply_to, &Value::None);
            }
            ("server_info", [], Stdio::JsonRpc { .. }) => {
                let info = self.info.as_ref().map_or(Value::None, json::to_value);
                self.answer(seq, reply_to, &info);
            }
            ("os_pid", [], _) => {
                let running = self.running.as_ref().filter(|_| self.ended.is_none() && self.left.is_none());
                let os_pid = running.map(|running| running.os_pid.as_raw());
                self.answer(seq, reply_to, &os_pid.map_or(Value::None, |pid| Value::Int(pid.into())));
            }
            (method, _, stdio) => return Err(unfit(method, stdio)),
        }
        Ok(())
    }

    /// Nobody waits for the answer to a message any more.
    fn cancelled(&mut self, seq: Seq) {
        if let Some(place) = self.waiting.iter().position(|(delivery, _)| delivery.seq == seq) {
            self.waiting.remove(place);
            return self.link.done(seq);
        }
        if self.calls.remove(&seq).is_some() {
            let is_it = |input: &Input| input.written == 0 && matches!(input.what, What::Request(of) if of == seq);
            let unwritten = self.input.iter().position(is_it);
            match (self.rpc.cancel(seq), self.program.stdio, unwritten) {
                // The program has not heard of it.
                (_, _, Some(place)) => drop(self.input.remove(place)),
                (Some(told), Stdio::JsonRpc { framing, .. }, None) => self.put(framed(framing, &told), What::Notice),
                _ => {}
            }
            self.last_use = Instant::now();
            self.link.done(seq);
        }
    }

    fn answer(&mut self, seq: Seq, reply_to: Option<ReplyTo>, result: &Value) {
        let Some(to) = reply_to else { return self.link.done(seq) };
        let payload = value::encode(result);
        if payload.len() > self.link.most() {
            let text = format!("the result has {} bytes: it may have {}", payload.len(), self.link.most());
            return self.link.answer(seq, to, Outcome::Failed(CallFailure::BadResult(text)), &[]);
        }
        self.link.answer(seq, to, Outcome::Returned(Codec::Data), &payload);
    }

    fn refuse(&mut self, seq: Seq, reply_to: Option<ReplyTo>, why: String) {
        match reply_to {
            Some(to) => self.link.answer(seq, to, Outcome::Failed(CallFailure::BadCall(why)), &[]),
            None => {
                self.link.log(WARNING, format!("a message to it was not done: {why}"));
                self.link.done(seq);
            }
        }
    }

    /// The handler answers a request of the program.
    fn replied(&mut self, call: CallId, outcome: Outcome, payload: &[u8]) {
        let Some(id) = self.asked.remove(&call) else { return };
        let result = match outcome {
            Outcome::Returned(_) => value::decode(payload)
                .and_then(|value| json::to_json(&value))
                .map_err(|why| failure(INTERNAL_ERROR, format!("the answer is not JSON: {why}"))),
            Outcome::Raised(raised) => Err(raised_by_handler(&raised)),
            Outcome::Failed(why) => {
                Err(failure(INTERNAL_ERROR, format!("its handler does not answer: {}", why.word())))
            }
        };
        self.put_answer(&id, result);
    }

    fn put_answer(&mut self, id: &Json, result: Result<Json, Failure>) {
        if let Stdio::JsonRpc { framing, .. } = self.program.stdio {
            let bytes = framed(framing, &rpc::answer(id, result));
            self.put(bytes, What::Answer);
        }
    }

    // ---- to the program -----------------------------------------------------------------------------------------------------

    /// Queues what is to be written to it.
    fn put(&mut self, bytes: Vec<u8>, what: What) {
        self.input.push_back(Input { bytes, written: 0, what });
        self.write_input();
    }

    fn write_input(&mut self) {
        while let Some(next) = self.input.front_mut() {
            let Some(running) = &mut self.running else { return };
            let Some(stdin) = &running.stdin else {
                if self.deaf.is_none() && self.ended.is_none() {
                    self.drop_input();
                }
                return;
            };
            if matches!(next.what, What::Close(_)) {
                running.stdin = None;
            } else if !next.bytes.is_empty() {
                match write(stdin, &next.bytes[next.written..]) {
                    Ok(count) => next.written += count,
                    Err(Errno::EAGAIN) => return,
                    Err(Errno::EINTR) => continue,
                    Err(_) => {
                        running.stdin = None;
                        self.has_closed();
                        self.deaf = Some(Instant::now());
                        return;
                    }
                }
                if next.written < next.bytes.len() {
                    continue;
                }
            }
            let what = self.input.pop_front().map(|input| input.what);
            if let Some(What::Message(seq, reply_to) | What::Close(Some((seq, reply_to)))) = what {
                self.answer(seq, reply_to, &Value::None);
            }
        }
    }

    // ---- from the program -----------------------------------------------------------------------------------------------------

    /// Reads once what it has written.
    fn read_output(&mut self) {
        let Some(running) = &mut self.running else { return };
        let Some(stdout) = &running.stdout else { return };
        let mut chunk = vec![0; CHUNK];
        match read(stdout, &mut chunk) {
            Ok(0) => {
                running.stdout = None;
                self.has_closed();
            }
            Ok(count) => self.hear_output(&chunk[..count]),
            // Somebody who is none of its has the other end.
            Err(Errno::EAGAIN) if self.ended.is_some() => running.stdout = None,
            Err(_) => {}
        }
    }

    /// Whether all that it has written was passed on.
    fn is_heard_out(&mut self) -> bool {
        if self.cutter.is_empty() && !self.link.is_full() {
            self.read_output();
        }
        self.cutter.is_empty() && self.running.as_ref().is_none_or(|running| running.stdout.is_none())
    }

    /// The program has closed one of its pipes: no request can be answered any more.
    fn has_closed(&mut self) {
        let is_used = matches!(self.state, State::Coming | State::Up) && self.ended.is_none();
        if is_used && matches!(self.program.stdio, Stdio::JsonRpc { .. }) {
            self.closed.get_or_insert_with(Instant::now);
        }
    }

    fn hear_output(&mut self, bytes: &[u8]) {
        self.look_for_line(0, bytes);
        match self.program.stdio {
            Stdio::Log => pass_on(1, bytes),
            Stdio::Raw => self.tell_all(Value::Bytes(bytes.to_vec())),
            Stdio::Lines | Stdio::JsonRpc { .. } => self.cutter.push(bytes),
        }
    }

    /// Passes on some of the messages that have come, as long as nobody's mailbox is full.
    fn hear_pieces(&mut self) {
        for _ in 0..PIECES_AT_ONCE {
            if self.link.is_full() {
                return;
            }
            match self.cutter.next() {
                Some(piece) => self.hear_piece(piece),
                None => return,
            }
        }
    }

    fn hear_rest(&mut self, rest: &[u8]) {
        match self.program.stdio {
            Stdio::Lines => self.hear_piece(Piece::Whole(rest.to_vec())),
            Stdio::JsonRpc { .. } => self.complain(&format!("it has ended within a message: {}", shown(rest))),
            Stdio::Log | Stdio::Raw => {}
        }
    }

    fn hear_piece(&mut self, piece: Piece) {
        match (piece, self.program.stdio) {
            (Piece::Whole(line), Stdio::Lines) => self.tell_all(Value::Str(text(&line))),
            (Piece::Whole(message), _) => {
                for said in self.rpc.hear(&message) {
                    self.hear_said(said);
                }
            }
            (Piece::TooLong(length), _) => self.is_too_long(length),
            (Piece::Garbage(bytes), _) => self.complain(&format!("no header of a message: {}", shown(bytes))),
        }
    }

    fn is_too_long(&mut self, length: u64) {
        let most = self.program.max_line;
        match self.program.stdio {
            Stdio::Lines => {
                self.complain(&format!("a line of {length} bytes and more is left out: it may have {most}"));
            }
            _ => {
                let what = format!("a message of {length} bytes and more: it may have {most}, see `max_line`");
                self.ends(ExitReason::LimitExceeded(what));
            }
        }
    }

    fn hear_said(&mut self, said: Said) {
        match said {
            Said::Answer(INITIALIZE, result) => self.is_initialized(result),
            Said::Answer(seq, result) => {
                let Some(to) = self.calls.remove(&seq) else { return };
                self.last_use = Instant::now();
                match result {
                    Ok(result) => self.answer(seq, Some(to), &json::to_value(&result)),
                    Err(error) => self.raise(seq, to, error),
                }
            }
            Said::Garbled(seq, why) => {
                if let Some(to) = self.calls.remove(&seq) {
                    self.last_use = Instant::now();
                    self.link.answer(seq, to, Outcome::Failed(CallFailure::BadResult(why)), &[]);
                }
            }
            // Whoever is asked that is only to show that it is there.
            Said::Request { id, method, .. } if method == "ping" => self.put_answer(&id, Ok(json!({}))),
            Said::Request { id, method, params } => match self.program.handler.clone() {
                Some(handler) => {
                    let arguments = vec![Value::Str(method), json::to_value(&params)];
                    let call = self.link.send(handler, "handle_request", arguments, true);
                    self.asked.insert(call, id);
                }
                None => self.put_answer(&id, Err(failure(METHOD_NOT_FOUND, format!("nobody handles `{method}`")))),
            },
            Said::Notification { method, params } => {
                let (method, params) = (Value::Str(method), json::to_value(&params));
                if let Some(handler) = self.program.handler.clone() {
                    self.link.send(handler, "handle_notification", vec![method.clone(), params.clone()], false);
                }
                let label = Value::Str(self.label.clone());
                for listener in self.listeners() {
                    self.link.tell(listener, "notified", &[label.clone(), method.clone(), params.clone()]);
                }
            }
            Said::Nonsense(text) if text.is_empty() => {}
            Said::Nonsense(text) => self.complain(&text),
        }
    }

    fn raise(&mut self, seq: Seq, to: ReplyTo, error: Failure) {
        let Failure { code, message, data } = error;
        let shown = format!("{message} ({code})");
        let raised = Raised { kind: "rebeam.ProgramError".into(), message: shown, traceback: String::new() };
        // Only for who unpickles it.
        let payload = match to.caller {
            Caller::Actor(_) => {
                let arguments = [Value::Int(code.into()), Value::Str(message), json::to_value(&data)];
                let error = pickle::call("rebeam._programs", "program_error", &arguments);
                pickle::of(&Value::Tuple(vec![Value::Bytes(error), Value::List(Vec::new()), Value::List(Vec::new())]))
            }
            Caller::Outside(_) => Vec::new(),
        };
        self.link.answer(seq, to, Outcome::Raised(raised), &payload);
    }

    fn listeners(&self) -> Vec<Address> {
        let declared = self.program.output.clone();
        declared.into_iter().chain(self.subscribers.iter().copied().map(Address::Pid)).collect()
    }

    /// Passes output on to who wants it; to the log if nobody does.
    fn tell_all(&mut self, output: Value) {
        let listeners = self.listeners();
        if listeners.is_empty() {
            return match &output {
                Value::Bytes(bytes) => pass_on(1, bytes),
                Value::Str(line) => pass_on(1, format!("{line}\n").as_bytes()),
                _ => {}
            };
        }
        let arguments = [Value::Str(self.label.clone()), output];
        listeners.into_iter().for_each(|listener| self.link.tell(listener, "wrote", &arguments));
    }

    /// Reads once of its errors; whether there were some.
    fn read_errors(&mut self) -> bool {
        let Some(running) = &mut self.running else { return false };
        let Some(stderr) = &running.stderr else { return false };
        let mut chunk = vec![0; CHUNK];
        match read(stderr, &mut chunk) {
            Ok(0) => {
                running.stderr = None;
                false
            }
            Ok(count) => {
                pass_on(2, &chunk[..count]);
                self.look_for_line(1, &chunk[..count]);
                true
            }
            Err(_) => false,
        }
    }

    /// Whether one of these lines says that it is ready.
    fn look_for_line(&mut self, stream: usize, bytes: &[u8]) {
        let Some(line) = self.line.as_ref().filter(|_| matches!(self.state, State::Coming)) else { return };
        let partial = &mut self.partial[stream];
        partial.extend_from_slice(bytes);
        let end = partial.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        let is_there = String::from_utf8_lossy(&partial[..end]).lines().any(|text| line.is_match(text));
        partial.drain(..end);
        if is_there || partial.len() > MUCH_WAITS {
            partial.clear();
        }
        if is_there {
            self.is_ready();
        }
    }

    fn complain(&mut self, text: &str) {
        self.complaints += 1;
        match self.complaints.cmp(&MOST_COMPLAINTS) {
            std::cmp::Ordering::Less => self.link.log(WARNING, format!("what it writes is wrong: {text}")),
            std::cmp::Ordering::Equal => {
                self.link.log(WARNING, "what it writes is wrong again and again: that is not said any more".into());
            }
            std::cmp::Ordering::Greater => {}
        }
    }
}

/// What the program is answered when its handler raises. A `rebeam.ProgramError` ends with its code.
fn raised_by_handler(raised: &Raised) -> Failure {
    let own = raised.message.strip_suffix(')').and_then(|text| text.rsplit_once(" ("));
    match own.and_then(|(message, code)| Some((message, code.parse().ok()?))) {
        Some((message, code)) if raised.kind.ends_with(".ProgramError") => failure(code, message.to_owned()),
        _ => failure(SERVER_ERROR, format!("{}: {}", raised.kind, raised.message)),
    }
}

fn failure(code: i64, message: String) -> Failure {
    Failure { code, message, data: Json::Null }
}

fn unfit(method: &str, stdio: Stdio) -> String {
    let has = match stdio {
        Stdio::Log => "`stdio` is not given, so its input and output are nobody's",
        Stdio::Raw => "`stdio=\"raw\"`: it takes `write` with bytes, and `close_input`",
        Stdio::Lines => "`stdio=\"lines\"`: it takes `write` with a line, and `close_input`",
        Stdio::JsonRpc { .. } => {
            "`stdio=\"jsonrpc\"`: it takes `request` and `notify` with a method and its parameters"
        }
    };
    format!("`{method}` is not for this program: {has}")
}

fn pid_of(numbers: &[Value]) -> Option<Pid> {
    let [Value::Int(node), Value::Int(started), Value::Int(serial)] = numbers else { return None };
    let at =
        rebeam_protocol::id::NodeStart { node: u32::try_from(*node).ok()?, started: u32::try_from(*started).ok()? };
    Some(Pid { at, serial: u64::try_from(*serial).ok()? })
}

/// A line as text; what is none of UTF-8 is shown as its bytes.
fn text(line: &[u8]) -> String {
    match std::str::from_utf8(line) {
        Ok(text) => text.to_owned(),
        Err(_) => line.utf8_chunks().fold(String::new(), |mut text, chunk| {
            text.push_str(chunk.valid());
            chunk.invalid().iter().for_each(|byte| text.push_str(&format!("\\x{byte:02x}")));
            text
        }),
    }
}

/// Writes to one of our own outputs, which the supervisor reads.
fn pass_on(number: i32, mut bytes: &[u8]) {
    // SAFETY: outputs are open as long as this process lives.
    let output = unsafe { BorrowedFd::borrow_raw(number) };
    while !bytes.is_empty() {
        match write(output, bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(Errno::EINTR) => {}
            Err(_) => return,
        }
    }
}
