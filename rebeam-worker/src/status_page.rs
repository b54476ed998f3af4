//! The worker's side of the status page: noting what is in hand, with plain stores.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rebeam_protocol::id::Seq;
#[cfg(feature = "testing")]
use rebeam_protocol::page::Snapshot;
use rebeam_protocol::page::{
    ATTENTION, CONDITION, EXIT, FILED, LEAVING, LOOK, MARKS, OWN_MAIL, SIZE, SUSPENDED, Stage, WAITING, mark_offset,
    state_word,
};
use rebeam_protocol::worker::Done;
use rebeam_sys::memory::SharedWords;

use crate::clock;

/// A mapping of the page, there until the process ends.
pub(crate) struct StatusPage {
    words: SharedWords,
    marks: Mutex<Marks>,
}

/// Which marks are free, and which message has which of the others.
struct Marks {
    free: Vec<usize>,
    taken: Vec<(u64, usize)>,
}

impl StatusPage {
    /// Maps the page. Forked helpers do not inherit the mapping: whoever may be in one asks first
    /// ([`crate::session::is_helper`]).
    pub(crate) fn map(fd: &OwnedFd) -> io::Result<Self> {
        let words = SharedWords::new(fd, SIZE)?;
        words.withhold_from_forks()?;
        let marks = Mutex::new(Marks { free: (0..MARKS).rev().collect(), taken: Vec::new() });
        Ok(StatusPage { words, marks })
    }

    /// Notes that the handler of a message begins now. There is a free mark as long as no more handlers overlap than
    /// an actor may have, and what is done is acknowledged in small batches.
    pub(crate) fn begin(&self, Seq(seq): Seq) {
        let mut marks = self.marks();
        let Some(mark) = marks.free.pop() else { return };
        marks.taken.push((seq, mark));
        drop(marks);
        self.word(mark_offset(mark) + 8).store(clock_ns(), Ordering::Relaxed);
        self.word(mark_offset(mark)).store(state_word(seq, Stage::Begun), Ordering::Release);
    }

    /// Notes that a message is done.
    pub(crate) fn done(&self, Seq(seq): Seq) {
        if let Some((_, mark)) = self.marks().taken.iter().find(|(of, _)| *of == seq) {
            self.word(mark_offset(*mark)).store(state_word(seq, Stage::Done), Ordering::Release);
        }
    }

    /// A message whose handler has just ended, with the time that it took.
    pub(crate) fn timed(&self, seq: Seq) -> Done {
        let begun = self.marks().taken.iter().find(|(of, _)| *of == seq.0).map(|(_, mark)| *mark);
        let since = begun.map(|mark| self.word(mark_offset(mark) + 8).load(Ordering::Relaxed));
        let took = |since| u32::try_from(clock_ns().saturating_sub(since) / 1000).unwrap_or(u32::MAX);
        Done { seq, took_us: since.map(took) }
    }

    /// Frees the marks of messages: the supervisor has been told that they are done.
    pub(crate) fn settled(&self, done: &[Seq]) {
        let mut marks = self.marks();
        for Seq(seq) in done {
            if let Some(place) = marks.taken.iter().position(|(of, _)| of == seq) {
                let (_, mark) = marks.taken.swap_remove(place);
                self.word(mark_offset(mark)).store(0, Ordering::Release);
                marks.free.push(mark);
            }
        }
    }

    /// Frees all marks: whatever was in hand is nobody's any more.
    pub(crate) fn forget_all(&self) {
        let all: Vec<Seq> = self.marks().taken.iter().map(|(seq, _)| Seq(*seq)).collect();
        self.settled(&all);
    }

    fn marks(&self) -> MutexGuard<'_, Marks> {
        self.marks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the supervisor wants the channel to be read before anything else; asking takes the wish away.
    pub(crate) fn take_attention(&self) -> bool {
        let word = self.half_word(ATTENTION);
        word.load(Ordering::Relaxed) & LOOK != 0 && word.fetch_and(!LOOK, Ordering::Acquire) & LOOK != 0
    }

    /// Whether an exit signal came.
    pub(crate) fn is_exit_ordered(&self) -> bool {
        self.half_word(ATTENTION).load(Ordering::Acquire) & EXIT != 0
    }

    /// Counts frames that were read, for who tests many actors in one process.
    pub(crate) fn count_filed(&self, count: u64) {
        self.word(FILED).fetch_add(count, Ordering::Release);
    }

    /// Notes whether the actor waits for its supervisor, for the same.
    pub(crate) fn set_waiting(&self, is_waiting: bool) {
        self.word(WAITING).store(u64::from(is_waiting), Ordering::Release);
    }

    /// How many frames were read, and whether the actor waits for more.
    #[cfg(feature = "testing")]
    pub(crate) fn progress(&self) -> (u64, bool) {
        let is_waiting = self.word(WAITING).load(Ordering::Acquire) == 1;
        (self.word(FILED).load(Ordering::Acquire), is_waiting)
    }

    /// The marks as they are.
    #[cfg(feature = "testing")]
    pub(crate) fn snapshot(&self) -> Snapshot {
        Snapshot::read(|offset| self.word(offset).load(Ordering::Acquire))
    }

    /// Has the worker look at its channel, or, with [`EXIT`], end.
    #[cfg(feature = "testing")]
    pub(crate) fn ask_for_attention(&self, bits: u32) {
        self.half_word(ATTENTION).fetch_or(bits, Ordering::Release);
    }

    /// Notes whether this actor was told to handle no message for now.
    pub(crate) fn set_suspended(&self, is_suspended: bool) {
        match is_suspended {
            true => self.half_word(CONDITION).fetch_or(SUSPENDED, Ordering::Release),
            false => self.half_word(CONDITION).fetch_and(!SUSPENDED, Ordering::Release),
        };
    }

    /// Notes that this actor takes its mail itself.
    pub(crate) fn take_own_mail(&self) {
        self.half_word(CONDITION).fetch_or(OWN_MAIL, Ordering::Release);
    }

    /// Notes that this actor knows of its exit signal, which need not come again.
    pub(crate) fn leave(&self) {
        self.half_word(CONDITION).fetch_or(LEAVING, Ordering::Release);
    }

    fn half_word(&self, offset: usize) -> &AtomicU32 {
        self.words.half_word(offset)
    }

    fn word(&self, offset: usize) -> &AtomicU64 {
        self.words.word(offset)
    }
}

/// The time of the marks, in nanoseconds.
pub(crate) fn clock_ns() -> u64 {
    clock::passed().map_or_else(rebeam_sys::clock::monotonic_ns, |passed| passed.as_nanos() as u64 + 1)
}
