//! An actor's one connection to its supervisor, shared by all threads of the process.
//!
//! There is no reader thread (a native thread would make every `fork` in an actor warn): whoever waits for something
//! reads, one thread at a time, and files what comes for the others. The lock is never held while a thread waits in
//! the kernel or for the interpreter, so that neither can deadlock with it. It must not know Python objects: payloads
//! are bytes here, and [`crate::codec`] makes them.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::eventfd::{EfdFlags, EventFd};
use rebeam_protocol::address::Address;
use rebeam_protocol::exit::ExitReason;
use rebeam_protocol::frame::HEAD_ROOM;
use rebeam_protocol::handshake::{Hello, MAGIC, VERSION, Welcome};
use rebeam_protocol::id::Seq;
use rebeam_protocol::message::{Form, Lane, Outcome};
use rebeam_protocol::page::{ACK_AFTER, SIZE};
use rebeam_protocol::process::ProcessAnswer;
use rebeam_protocol::table::{READING, TableAnswer};
use rebeam_protocol::worker::{Delivery, Done, Full, Gate, Lease, ToSupervisor, ToWorker};

use rebeam_sys::frames::NotWritten;

use crate::arenas::{self, Leased};
use crate::clock;
use crate::gates::Gates;
use crate::session::is_main_thread;
use crate::status_page::StatusPage;
use crate::tables;
use crate::wire::{NoRead, Payload, Reader, Wait, Writer};

/// Acknowledge casts after so many bytes, if not after [`ACK_AFTER`] of them: a quarter of the supervisor's window.
const ACK_BYTES: usize = 128 * 1024;

/// Acknowledge a cast at once whose handler took so many microseconds: beside that, the frame costs nothing, and senders
/// may wait for its room.
const ACK_SLOW_US: u32 = 1000;

/// How long the main thread waits at most for another thread that reads, before it lets Python handle signals.
const SLICE: Duration = Duration::from_millis(50);

/// The first frame's bound, before the supervisor has said its own: that of the prefix. It carries the state of the last
/// process, which may be as large as a message.
const WELCOME_LIMIT: usize = u32::MAX as usize;

/// What an actor's main loop takes next.
pub(crate) enum Letter {
    /// With its place, if it lay among those that are taken in turn.
    Message(Box<Delivery>, Payload, Place),
    Stop(ExitReason),
    /// An exit signal that is not trapped.
    Exit,
    /// Hand the state over and end.
    Recycle,
    /// Hand the state over and wait; how many milliseconds handlers that overlap may take before.
    Move(u64),
    /// Go on: the next process has failed to take over.
    GoOn,
    /// End: the next process has taken over.
    Leave,
    /// Log from this of `logging`'s numbers on.
    LogLevel(u16),
    /// The stacks that were written have been read.
    StacksTaken,
    /// A message that somebody looks at just now.
    Lent,
}

/// Where a letter lies among those that are taken in turn; counts up from 1.
pub(crate) type Place = u64;

/// Why a wait ended without what was waited for.
#[derive(Debug)]
pub(crate) enum Unmet {
    TimedOut,
    /// A signal came: let Python handle it and wait again.
    Interrupted,
    /// The supervisor is gone; so will this process be.
    Closed,
}

pub(crate) struct Channel {
    pub(crate) welcome: Welcome,
    pub(crate) page: StatusPage,
    /// Where the fault handler writes stacks: the room behind the page, by a descriptor with a place of its own.
    pub(crate) stacks: Option<OwnedFd>,
    lifeline: Option<OwnedFd>,
    socket: OwnedFd,
    pen: Mutex<Pen>,
    writer_free: Condvar,
    state: Mutex<State>,
    wake: Condvar,
    next_id: AtomicU64,
    /// Wakes an event loop that does not wait in here, when something was filed by somebody else.
    nudge: OnceLock<EventFd>,
}

/// Who may write.
struct Pen {
    /// `None` while a thread writes.
    writer: Option<Writer>,
    /// How many threads wait for it.
    wanted: usize,
}

/// What ends a wait. Calls, requests and waits for room are numbered together.
pub(crate) enum Filed {
    /// Of a call.
    Reply(Outcome, Payload),
    /// Of a request to the supervisor.
    Answer(ProcessAnswer, Payload),
    /// A mailbox has room again.
    Room,
}

/// Something that is waited for.
#[derive(Default)]
struct Slot {
    filed: Option<Filed>,
    /// Nobody waits for this one alone: it is noted as ready when it comes.
    is_event: bool,
}

struct State {
    /// `None` while a thread reads.
    reader: Option<Reader>,
    /// What is for the process rather than for the actor, and does not wait while the actor is suspended.
    system: VecDeque<Letter>,
    high: VecDeque<Letter>,
    /// With the place of each, which counts up.
    normal: VecDeque<(Place, Letter)>,
    last_place: Place,
    slots: HashMap<u64, Slot>,
    /// Where those send who wait for room, oldest first.
    rooms: BTreeMap<u64, Address>,
    /// The numbers of those that have come and that nobody waits for alone.
    ready: Vec<u64>,
    /// Messages in hand whose answers nobody wants any more.
    cancelled: Vec<Seq>,
    /// Whether handlers can be cancelled here at all.
    takes_cancels: bool,
    is_suspended: bool,
    /// Whether the state was given to the next process: mail that comes is taken back by the supervisor.
    stands_still: bool,
    gates: Gates,
    is_closed: bool,
    /// Until when the actor has to end, if it is being stopped; taken by who has looked.
    time_left: Option<Duration>,
    /// Threads that wait while another one reads.
    sleepers: usize,
    done: Vec<Done>,
    done_bytes: usize,
}

/// What an actor is started from.
pub(crate) struct Start {
    /// Its class and arguments.
    pub(crate) payload: Payload,
    /// The state that the process before this one has handed over.
    pub(crate) takes_over: Option<OwnedFd>,
}

impl Channel {
    /// Shakes hands; gives the channel and what this actor is started from.
    pub(crate) fn open(socket: OwnedFd, page: &OwnedFd, lifeline: Option<OwnedFd>) -> io::Result<(Self, Start)> {
        // Without /proc there are no stacks of faults; everything else works.
        let stacks = lifeline.as_ref().and_then(|_| open_stacks(page).ok());
        let page = StatusPage::map(page)?;
        let mut reader = Reader::new(WELCOME_LIMIT);
        let (header, start) = loop {
            match reader.next_frame::<ToWorker>().map_err(io::Error::other)? {
                Some(frame) => break frame,
                None => match reader.read(socket.as_fd(), None) {
                    Ok(()) | Err(NoRead::Interrupted | NoRead::TimedOut) => {}
                    Err(NoRead::Closed) => return Err(io::ErrorKind::UnexpectedEof.into()),
                },
            }
        };
        let ToWorker::Welcome(welcome) = header else {
            return Err(io::Error::other("the first frame is not a handshake"));
        };
        welcome.check().map_err(io::Error::other)?;
        if welcome.is_suspended {
            page.set_suspended(true);
        }
        let takes_over = welcome.takes_over.and_then(|_| reader.frames.take_descriptor());
        // What is passed on to this worker tells more than what its sender wrote.
        reader.frames.set_limit((welcome.max_frame as usize).saturating_add(HEAD_ROOM));
        let channel = Channel {
            page,
            stacks,
            lifeline,
            pen: Mutex::new(Pen { writer: Some(Writer::new(welcome.max_frame as usize)), wanted: 0 }),
            writer_free: Condvar::new(),
            socket,
            next_id: AtomicU64::new(first_id(&welcome)),
            state: Mutex::new(State {
                reader: Some(reader),
                system: VecDeque::new(),
                high: VecDeque::new(),
                normal: VecDeque::new(),
                last_place: 0,
                slots: HashMap::new(),
                rooms: BTreeMap::new(),
                ready: Vec::new(),
                cancelled: Vec::new(),
                takes_cancels: false,
                is_suspended: welcome.is_suspended,
                stands_still: false,
                gates: Gates::default(),
                is_closed: false,
                time_left: None,
                sleepers: 0,
                done: Vec::new(),
                done_bytes: 0,
            }),
            welcome,
            wake: Condvar::new(),
            nudge: OnceLock::new(),
        };
        let hello = Hello { magic: MAGIC, version: VERSION, os_pid: std::process::id() };
        channel.send(&ToSupervisor::Hello(hello), &[], None, |wait| wait()).map_err(|error| match error {
            NotWritten::Closed(error) => error,
            NotWritten::Frame(error) => io::Error::other(error),
        })?;
        Ok((channel, Start { payload: start, takes_over }))
    }

    /// Sends a frame; when it returns, the frame is where a SIGKILL of this process cannot lose it (MAP-03).
    pub(crate) fn send(
        &self,
        message: &ToSupervisor,
        payload: &[u8],
        descriptor: Option<BorrowedFd<'_>>,
        blocking: impl Fn(Wait<'_>) -> io::Result<()>,
    ) -> Result<(), NotWritten> {
        let mut writer = self.pen().writer.take();
        if writer.is_none() {
            let mut wait = || {
                let mut pen = self.pen();
                pen.wanted += 1;
                let free = self.writer_free.wait_while(pen, |pen| pen.writer.is_none());
                let mut pen = free.unwrap_or_else(PoisonError::into_inner);
                pen.wanted -= 1;
                writer = pen.writer.take();
                Ok(())
            };
            blocking(&mut wait).map_err(NotWritten::Closed)?;
        }
        let Some(mut writer) = writer else { return Err(NotWritten::Closed(io::ErrorKind::BrokenPipe.into())) };
        let result = writer.write(self.socket.as_fd(), message, payload, descriptor, &blocking);
        let mut pen = self.pen();
        pen.writer = Some(writer);
        // A system call, whether anybody waits or not.
        if pen.wanted > 0 {
            self.writer_free.notify_one();
        }
        result
    }

    fn pen(&self) -> MutexGuard<'_, Pen> {
        self.pen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A number for a new call or request.
    pub(crate) fn next_id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    /// What comes under this number is kept.
    pub(crate) fn expect(&self, number: u64) {
        self.state().slots.insert(number, Slot::default());
    }

    /// That the mailbox behind an address has room again is filed under this number, unless it has already.
    pub(crate) fn expect_room(&self, number: u64, to: &Address) {
        let mut state = self.state();
        let filed = state.gates.blocked(to).is_none().then_some(Filed::Room);
        if filed.is_none() {
            state.rooms.insert(number, to.clone());
        }
        state.slots.insert(number, Slot { filed, is_event: false });
    }

    /// That it has come is noted as an event: nobody waits for it alone.
    pub(crate) fn note(&self, number: u64) {
        if let Some(slot) = self.state().slots.get_mut(&number) {
            slot.is_event = true;
        }
    }

    pub(crate) fn forget(&self, number: u64) {
        let mut state = self.state();
        state.slots.remove(&number);
        state.rooms.remove(&number);
    }

    /// Waits for what comes under a number.
    pub(crate) fn wait_filed(&self, number: u64, until: Option<Instant>) -> Result<Filed, Unmet> {
        self.wait(until, |state| state.take_filed(number))
    }

    /// What has come under a number.
    pub(crate) fn take_filed(&self, number: u64) -> Option<Filed> {
        self.state().take_filed(number)
    }

    /// Whether anything has come under a number.
    pub(crate) fn has_filed(&self, number: u64) -> bool {
        self.look_aside();
        self.state().slots.get(&number).is_some_and(|slot| slot.filed.is_some())
    }

    /// The numbers under which something has come that nobody waits for alone.
    pub(crate) fn take_ready(&self) -> Vec<u64> {
        std::mem::take(&mut self.state().ready)
    }

    /// Waits for such.
    pub(crate) fn wait_ready(&self, until: Option<Instant>) -> Result<Vec<u64>, Unmet> {
        self.wait(until, |state| (!state.ready.is_empty()).then(|| std::mem::take(&mut state.ready)))
    }

    /// Messages in hand that are to be cancelled.
    pub(crate) fn take_cancelled(&self) -> Vec<Seq> {
        std::mem::take(&mut self.state().cancelled)
    }

    /// The descriptors that an event loop has to watch: the socket, and what wakes it when somebody else has read.
    pub(crate) fn watched(&self) -> io::Result<(RawFd, RawFd)> {
        if self.nudge.get().is_none() {
            let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
            let _ = self.nudge.set(EventFd::from_value_and_flags(0, flags)?);
            self.state().takes_cancels = true;
        }
        let nudge = self.nudge.get().ok_or(io::ErrorKind::Other)?;
        Ok((self.socket.as_raw_fd(), nudge.as_fd().as_raw_fd()))
    }

    /// Wakes the event loop, if there is one.
    fn nudge(&self) {
        if let Some(nudge) = self.nudge.get() {
            let _ = nudge.write(1);
        }
    }

    /// The look of an event loop: takes away what has woken it, and reads what is there.
    pub(crate) fn look_as_loop(&self) {
        if clock::is_virtual() {
            self.page.set_waiting(false);
        }
        if let Some(nudge) = self.nudge.get() {
            let _ = nudge.read();
        }
        self.look();
    }

    /// Reads what is there without waiting, unless another thread reads.
    fn look(&self) {
        let _ = self.page.take_attention();
        let mut state = self.state();
        if let Some(mut reader) = state.reader.take() {
            if matches!(reader.read_now(self.socket.as_fd()), Err(NoRead::Closed)) {
                state.is_closed = true;
            }
            let filed = state.file(&mut reader);
            self.count_filed(filed);
            state.reader = Some(reader);
            self.wake_others(&state);
        }
    }

    /// How much time the actor has to end, if it was told so since this was asked last.
    pub(crate) fn take_time_left(&self) -> Option<Duration> {
        self.state().time_left.take()
    }

    /// Whether the supervisor is gone.
    pub(crate) fn is_closed(&self) -> bool {
        self.state().is_closed
    }

    /// The next letter that has come; with `system_only`, none that is for the actor rather than for its process.
    pub(crate) fn next_filed(&self, system_only: bool) -> Option<Letter> {
        let mut state = self.state();
        if system_only { state.system.pop_front() } else { state.take_letter() }
    }

    pub(crate) fn wait_letter(&self, until: Option<Instant>) -> Result<Letter, Unmet> {
        self.wait(until, State::take_letter)
    }

    /// The next letter if one has come already; looks for more first if the supervisor asked for it.
    pub(crate) fn try_letter(&self) -> Option<Letter> {
        self.look_if_asked();
        self.state().take_letter()
    }

    /// From now on mail that comes is dropped, and what has come and was not begun is, until this process is to go on.
    pub(crate) fn stand_still(&self) {
        let mut state = self.state();
        state.stands_still = true;
        state.high.clear();
        // An order to stop comes again, to whichever process goes on.
        state.normal.clear();
        state.system.retain(|letter| !matches!(letter, Letter::Message(..) | Letter::Stop(_)));
    }

    /// Waits for a letter to the process, whether or not it stands still.
    pub(crate) fn wait_for_process(&self) -> Result<Letter, Unmet> {
        self.wait(None, |state| state.system.pop_front())
    }

    /// From now on only what is for the process is taken, or everything again.
    pub(crate) fn set_suspended(&self, is_suspended: bool) {
        self.page.set_suspended(is_suspended);
        self.state().is_suspended = is_suspended;
    }

    /// The place of the first plain message behind another place.
    pub(crate) fn next_plain(&self, behind: Place) -> Option<Place> {
        self.look_if_asked();
        let state = self.state();
        let from = state.normal.partition_point(|(place, _)| *place <= behind);
        let is_plain = |letter: &Letter| match letter {
            Letter::Message(delivery, ..) => {
                delivery.head.method == "handle_info" && delivery.head.form != Form::Arguments
            }
            _ => false,
        };
        state.normal.range(from..).find(|(_, letter)| is_plain(letter)).map(|(place, _)| *place)
    }

    /// Takes a message out of its place, to be looked at; [`Channel::put_back`] undoes it.
    pub(crate) fn lend(&self, place: Place) -> Option<(Box<Delivery>, Payload)> {
        let mut state = self.state();
        let index = state.normal.binary_search_by_key(&place, |(place, _)| *place).ok()?;
        match std::mem::replace(&mut state.normal[index].1, Letter::Lent) {
            Letter::Message(delivery, payload, _) => Some((delivery, payload)),
            other => {
                state.normal[index].1 = other;
                None
            }
        }
    }

    pub(crate) fn put_back(&self, place: Place, delivery: Box<Delivery>, payload: Payload) {
        let mut state = self.state();
        if let Ok(index) = state.normal.binary_search_by_key(&place, |(place, _)| *place) {
            state.normal[index].1 = Letter::Message(delivery, payload, place);
        }
    }

    /// Takes a message for good; gives its number.
    pub(crate) fn take(&self, place: Place) -> Option<Seq> {
        let mut state = self.state();
        let index = state.normal.binary_search_by_key(&place, |(place, _)| *place).ok()?;
        match state.normal.remove(index)? {
            (_, Letter::Message(delivery, ..)) => Some(delivery.seq),
            _ => None,
        }
    }

    /// The place of the last letter that has come.
    pub(crate) fn last_place(&self) -> Place {
        self.state().last_place
    }

    /// Takes a call or cast out that no `receive` will ever take.
    pub(crate) fn take_call(&self) -> Option<Box<Delivery>> {
        let mut state = self.state();
        let is_call = |letter: &Letter| match letter {
            Letter::Message(delivery, ..) => {
                delivery.head.method != "handle_info" || delivery.head.form == Form::Arguments
            }
            _ => false,
        };
        let taken = match state.high.pop_front() {
            Some(letter) => Some(letter),
            None => {
                let place = state.normal.iter().position(|(_, letter)| is_call(letter))?;
                state.normal.remove(place).map(|(_, letter)| letter)
            }
        };
        match taken? {
            Letter::Message(delivery, ..) => Some(delivery),
            _ => None,
        }
    }

    /// Whether a letter lies at a place.
    pub(crate) fn has_letter_at(&self, place: Place) -> bool {
        self.state().normal.binary_search_by_key(&place, |(place, _)| *place).is_ok()
    }

    /// How many letters lie here in turn.
    pub(crate) fn waiting(&self) -> usize {
        self.state().normal.len()
    }

    /// Waits until a letter has come behind this place, or, if that matters, one that is taken before all others.
    pub(crate) fn wait_behind(&self, place: Place, or_system: bool, until: Option<Instant>) -> Result<(), Unmet> {
        self.wait(until, |state| {
            let is_behind = state.last_place > place;
            (is_behind || (or_system && !state.system.is_empty())).then_some(())
        })
    }

    /// The next letter for the process of an actor that takes its own mail: what is on the system lane, else an order to
    /// stop, which does not wait for mail that may never be taken.
    pub(crate) fn next_for_process(&self) -> Option<Letter> {
        let mut state = self.state();
        if let Some(letter) = state.system.pop_front() {
            return Some(letter);
        }
        let place = state.normal.iter().position(|(_, letter)| matches!(letter, Letter::Stop(_)))?;
        state.normal.remove(place).map(|(_, letter)| letter)
    }

    /// Whether there is one.
    pub(crate) fn has_for_process(&self) -> bool {
        let state = self.state();
        !state.system.is_empty() || state.normal.iter().any(|(_, letter)| matches!(letter, Letter::Stop(_)))
    }

    /// Takes what has come of a monitor or a watch out of what waits here; gives the numbers of those messages.
    pub(crate) fn take_back(&self, of: u64) -> Vec<Done> {
        let mut taken = Vec::new();
        self.state().normal.retain(|(_, letter)| {
            let Letter::Message(delivery, ..) = letter else { return true };
            let Form::Signal(signal) = &delivery.head.form else { return true };
            let is_it = signal.is_of(of);
            if is_it {
                taken.push(delivery.seq.into());
            }
            !is_it
        });
        taken
    }

    fn look_if_asked(&self) {
        if self.page.take_attention() {
            self.look_aside();
        }
    }

    /// A look by somebody else than the event loop, which has to be told of what it has brought.
    fn look_aside(&self) {
        self.look();
        self.nudge();
    }

    /// Whether mail to `to` has to wait; reads the channel first if the supervisor asked for it.
    pub(crate) fn is_blocked(&self, to: &Address) -> Option<Full> {
        self.look_if_asked();
        self.state().gates.blocked(to)
    }

    /// Notes a message done without an answer; gives what to acknowledge once it is worth a frame.
    pub(crate) fn note_done(&self, done: Done, bytes: usize) -> Option<Vec<Done>> {
        let mut state = self.state();
        let is_slow = done.took_us.is_some_and(|took| took >= ACK_SLOW_US);
        state.done.push(done);
        state.done_bytes += bytes;
        let is_due = is_slow || state.done.len() >= ACK_AFTER || state.done_bytes >= ACK_BYTES;
        is_due.then(|| {
            state.done_bytes = 0;
            std::mem::take(&mut state.done)
        })
    }

    /// What was done and not acknowledged yet.
    pub(crate) fn take_done(&self) -> Option<Vec<Done>> {
        let mut state = self.state();
        state.done_bytes = 0;
        Some(std::mem::take(&mut state.done)).filter(|done| !done.is_empty())
    }

    /// Has the next stacks written where the last ones were.
    pub(crate) fn rewind_stacks(&self) {
        if let Some(stacks) = &self.stacks {
            let _ = nix::unistd::lseek(stacks, SIZE as i64, nix::unistd::Whence::SeekSet);
        }
    }

    /// Closes the descriptors of this process, whose channel is its parent's.
    pub(crate) fn close_descriptors(&self) {
        let own = [&self.socket].into_iter().chain(&self.lifeline).map(AsRawFd::as_raw_fd);
        for fd in own.chain(self.nudge.get().map(|nudge| nudge.as_fd().as_raw_fd())) {
            // Nothing in this process uses them again: every way to them asks first whether it is a helper.
            let _ = nix::unistd::close(fd);
        }
    }

    /// Has everything that waits or is said on it fail. The descriptors stay.
    pub(crate) fn hang_up(&self) {
        let _ = nix::sys::socket::shutdown(self.socket.as_raw_fd(), nix::sys::socket::Shutdown::Both);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `take` gives something, reading the channel unless another thread does so already.
    fn wait<T>(&self, until: Option<Instant>, mut take: impl FnMut(&mut State) -> Option<T>) -> Result<T, Unmet> {
        let mut state = self.state();
        let mut has_looked = false;
        loop {
            if let Some(found) = take(&mut state) {
                return Ok(found);
            }
            if state.is_closed {
                return Err(Unmet::Closed);
            }
            // What has come already counts, also where there is no time to wait for it (GEN-016, MSG-005).
            let is_over = until.is_some_and(|until| clock::now() >= until);
            if is_over && (has_looked || state.reader.is_none()) {
                return Err(Unmet::TimedOut);
            }
            let Some(mut reader) = state.reader.take() else {
                // A condition variable hides signals: the main thread looks up now and then to let Python handle them.
                let slice = if is_main_thread() { SLICE } else { Duration::from_secs(3600) };
                let left = match until {
                    Some(until) if !clock::is_virtual() => until.saturating_duration_since(clock::now()).min(slice),
                    _ => slice,
                };
                state.sleepers += 1;
                self.rests(true);
                let (woken, result) = self.wake.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner);
                self.rests(false);
                state = woken;
                state.sleepers -= 1;
                if result.timed_out() && is_main_thread() {
                    return take(&mut state).ok_or(Unmet::Interrupted);
                }
                continue;
            };
            drop(state);
            let result = if is_over { reader.read_now(self.socket.as_fd()) } else { self.read(&mut reader, until) };
            has_looked = true;
            state = self.state();
            let filed = state.file(&mut reader);
            self.count_filed(filed);
            state.reader = Some(reader);
            if matches!(result, Err(NoRead::Closed)) {
                state.is_closed = true;
            }
            // Others may have got what they wait for, or have to take over the reading.
            self.wake_others(&state);
            self.nudge();
            if matches!(result, Err(NoRead::Interrupted)) {
                return Err(Unmet::Interrupted);
            }
        }
    }
}

impl Channel {
    /// Wakes the other threads that wait. A system call, whether there are any or not.
    fn wake_others(&self, state: &State) {
        if state.sleepers > 0 {
            self.wake.notify_all();
        }
    }

    /// Reads what comes. Virtual time does not pass meanwhile: whoever moves it on says something, too.
    fn read(&self, reader: &mut Reader, until: Option<Instant>) -> Result<(), NoRead> {
        if !clock::is_virtual() {
            return reader.read(self.socket.as_fd(), until);
        }
        self.rests(true);
        let result = reader.read(self.socket.as_fd(), None);
        self.rests(false);
        result
    }

    /// Notes whether the actor waits, for who tests many actors in one process. A thread that one has started is not it.
    fn rests(&self, is_waiting: bool) {
        if clock::is_virtual() && is_main_thread() {
            self.page.set_waiting(is_waiting);
        }
    }

    /// Counts frames that were read, for the same. The actor may be about to wake up for them, whoever has read them.
    fn count_filed(&self, filed: u64) {
        if filed > 0 && clock::is_virtual() {
            self.page.set_waiting(false);
        }
        self.page.count_filed(filed);
    }
}

/// The first number for calls and requests: no two processes of one incarnation, nor, where actors share a process, any
/// two actors, may use the same.
fn first_id(welcome: &Welcome) -> u64 {
    let of_actor = if clock::is_virtual() { welcome.process.pid.serial << 32 } else { 0 };
    of_actor + (u64::from(welcome.process.generation.0) << 40) + 1
}

/// The memory that comes with a frame.
fn lease_of(message: &ToWorker) -> Option<Lease> {
    match message {
        ToWorker::Deliver(delivery) => delivery.buffers,
        ToWorker::Reply { buffers, .. } => *buffers,
        _ => None,
    }
}

/// The file of the page once more, with a place of its own, behind the page.
fn open_stacks(page: &OwnedFd) -> io::Result<OwnedFd> {
    let mut file = std::fs::OpenOptions::new().write(true).open(format!("/proc/self/fd/{}", page.as_raw_fd()))?;
    file.seek(SeekFrom::Start(SIZE as u64))?;
    Ok(file.into())
}

impl State {
    fn take_letter(&mut self) -> Option<Letter> {
        if let Some(letter) = self.system.pop_front() {
            return Some(letter);
        }
        if self.is_suspended {
            // A stop in its turn comes through: nobody is to be killed for being suspended.
            let place = self.normal.iter().position(|(_, letter)| matches!(letter, Letter::Stop(_)))?;
            return self.normal.remove(place).map(|(_, letter)| letter);
        }
        self.high.pop_front().or_else(|| self.normal.pop_front().map(|(_, letter)| letter))
    }

    fn push_in_turn(&mut self, letter: Letter) {
        self.last_place += 1;
        self.normal.push_back((self.last_place, letter));
    }

    fn take_filed(&mut self, number: u64) -> Option<Filed> {
        self.slots.get_mut(&number)?.filed.take()
    }

    /// Files what ends a wait. What nobody waits for any more is dropped here (MAP-13).
    fn put_filed(&mut self, number: u64, filed: Filed) {
        if let Some(slot) = self.slots.get_mut(&number) {
            slot.filed = Some(filed);
            if slot.is_event {
                self.ready.push(number);
            }
        }
    }

    /// Notes which mailboxes are full, and has those go on who waited for room.
    fn file_gate(&mut self, gate: Gate) {
        let opens = matches!(gate, Gate::Open { .. });
        self.gates.note(gate);
        if opens {
            let free = self.rooms.extract_if(.., |_, to| self.gates.blocked(to).is_none());
            let free: Vec<u64> = free.map(|(number, _)| number).collect();
            free.into_iter().for_each(|number| self.put_filed(number, Filed::Room));
        }
    }

    /// Drops a message that was not begun, as if it were done; else notes that its handler is to be cancelled.
    fn cancel(&mut self, seq: Seq, even_if_begun: bool) {
        let is_it = |letter: &Letter| matches!(letter, Letter::Message(delivery, ..) if delivery.seq == seq);
        if let Some(place) = self.high.iter().position(is_it) {
            self.high.remove(place);
        } else if let Some(place) = self.normal.iter().position(|(_, letter)| is_it(letter)) {
            self.normal.remove(place);
        } else {
            if self.takes_cancels && even_if_begun {
                self.cancelled.push(seq);
            }
            return;
        }
        self.done.push(seq.into());
        // Whoever waits for a message goes round once, and settles what is done.
        self.system.push_back(Letter::Lent);
    }

    /// Files every whole frame that was read; says how many.
    fn file(&mut self, reader: &mut Reader) -> u64 {
        let mut count = 0;
        loop {
            match reader.next_frame::<ToWorker>() {
                Ok(None) => return count,
                Ok(Some((header, mut payload))) => {
                    count += 1;
                    if let Some(lease) = lease_of(&header) {
                        payload.memory = reader.frames.take_descriptor().map(|fd| Leased::new(fd, lease));
                    }
                    if let ToWorker::Answer { answer: ProcessAnswer::Table(TableAnswer::Attached { .. }), .. } = &header
                    {
                        payload.descriptors = (0..READING).filter_map(|_| reader.frames.take_descriptor()).collect();
                    }
                    self.file_one(header, payload);
                }
                Err(_) => {
                    self.is_closed = true;
                    return count;
                }
            }
        }
    }

    fn file_one(&mut self, message: ToWorker, payload: Payload) {
        match message {
            // Its memory is given back with it.
            ToWorker::Deliver(_) | ToWorker::Stop { .. } if self.stands_still => {}
            ToWorker::Deliver(delivery) => {
                let lane = delivery.head.lane;
                let place = if lane == Lane::Normal { self.last_place + 1 } else { 0 };
                let letter = Letter::Message(Box::new(delivery), payload, place);
                match lane {
                    Lane::System => self.system.push_back(letter),
                    Lane::High => self.high.push_back(letter),
                    Lane::Normal => self.push_in_turn(letter),
                }
            }
            ToWorker::Reply { call, outcome, .. } => self.put_filed(call.0, Filed::Reply(outcome, payload)),
            ToWorker::Answer { request, answer } => self.put_filed(request.0, Filed::Answer(answer, payload)),
            ToWorker::Stop { reason, urgent: true } => self.system.push_back(Letter::Stop(reason)),
            ToWorker::Stop { reason, urgent: false } => self.push_in_turn(Letter::Stop(reason)),
            ToWorker::TimeLeft { ms } => self.time_left = Some(Duration::from_millis(ms)),
            ToWorker::Exit => self.system.push_front(Letter::Exit),
            ToWorker::Recycle => self.system.push_back(Letter::Recycle),
            ToWorker::Move { grace_ms } => self.system.push_back(Letter::Move(grace_ms)),
            ToWorker::GoOn => {
                self.stands_still = false;
                self.system.push_back(Letter::GoOn);
            }
            ToWorker::Leave => self.system.push_back(Letter::Leave),
            ToWorker::StacksTaken => self.system.push_back(Letter::StacksTaken),
            ToWorker::LogLevel { level } => self.system.push_back(Letter::LogLevel(level)),
            ToWorker::Wake => {}
            ToWorker::Cancel { seq, even_if_begun } => self.cancel(seq, even_if_begun),
            ToWorker::ArenaFree { arena } => arenas::freed(arena),
            ToWorker::EndSnapshots => tables::end_snapshots(),
            ToWorker::Gate(gate) => self.file_gate(gate),
            ToWorker::Welcome(_) => {}
        }
    }
}
