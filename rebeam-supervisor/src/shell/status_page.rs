//! The supervisor's side of the status page: making it, reading it, asking for attention.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use rebeam_protocol::page::{ATTENTION, CONDITION, LEAVING, SIZE, STACKS, Snapshot};
use rebeam_sys::memory::{self, SharedWords};

/// The page, and the room for stacks behind it.
const WHOLE: usize = SIZE + STACKS;

/// For how long what was taken is what is known of an end: between the dump of a hang and its kill.
const RECENT: Duration = Duration::from_secs(1);

/// A mapping of one worker's page.
#[derive(Debug)]
pub(crate) struct StatusPage {
    words: SharedWords,
    /// Where the next stacks come, in the room for them.
    next: Cell<usize>,
    /// The stacks that were taken last, and when.
    taken: RefCell<Option<(Instant, String)>>,
}

impl StatusPage {
    /// Makes a page; gives the mapping and the descriptor for the worker. It is sealed at its size: a worker that
    /// could shrink it could kill the supervisor with SIGBUS.
    pub(crate) fn new() -> io::Result<(Self, OwnedFd)> {
        let fd = memory::create(c"rebeam-page", WHOLE)?;
        let words = SharedWords::new(&fd, WHOLE)?;
        Ok((StatusPage { words, next: Cell::new(0), taken: RefCell::new(None) }, fd))
    }

    /// Copies the marks.
    pub(crate) fn snapshot(&self) -> Snapshot {
        Snapshot::read(|offset| self.words.word(offset).load(Ordering::Acquire))
    }

    /// What the fault handler of a worker that has ended had written: after the last look, or, if that was a moment ago,
    /// at that look.
    pub(crate) fn stacks(&self) -> String {
        let (begin, end) = self.written();
        let taken = self.taken.borrow();
        match &*taken {
            Some((at, text)) if begin == end && at.elapsed() < RECENT => text.clone(),
            _ => self.text(begin, end),
        }
    }

    /// The same, of a worker that lives: it is not there a second time. `None` if there is hardly room for more, and what
    /// there is kept for its end.
    pub(crate) fn take_stacks(&self) -> Option<String> {
        let (begin, end) = self.written();
        if begin > STACKS / 2 {
            return None;
        }
        let text = self.text(begin, end);
        (begin..end).for_each(|place| self.byte(place).store(0, Ordering::Relaxed));
        self.next.set(end);
        *self.taken.borrow_mut() = Some((Instant::now(), text.clone()));
        Some(text)
    }

    /// Where the stacks are that nobody has taken: at the beginning, if the worker has been told that those before were,
    /// else behind them.
    fn written(&self) -> (usize, usize) {
        let begin = if self.byte(0).load(Ordering::Relaxed) != 0 { 0 } else { self.next.get() };
        let is_text = |place: &usize| *place < STACKS && self.byte(*place).load(Ordering::Relaxed) != 0;
        (begin, (begin..).take_while(is_text).last().map_or(begin, |last| last + 1))
    }

    fn text(&self, begin: usize, end: usize) -> String {
        let bytes: Vec<u8> = (begin..end).map(|place| self.byte(place).load(Ordering::Relaxed)).collect();
        let text = String::from_utf8_lossy(&bytes);
        // What called the actor's method is ours, and tells nobody anything.
        let is_own = |line: &&str| line.contains("/rebeam/_boot.py\"") || line.contains("File \"<string>\", line 1 in");
        text.trim().lines().filter(|line| !is_own(line)).collect::<Vec<_>>().join("\n")
    }

    /// A byte of the room for stacks; the last one, for what lies beyond.
    fn byte(&self, place: usize) -> &AtomicU8 {
        self.words.byte(SIZE + place.min(STACKS - 1))
    }

    /// Whether the worker knows of its exit signal.
    pub(crate) fn is_leaving(&self) -> bool {
        self.words.half_word(CONDITION).load(Ordering::Acquire) & LEAVING != 0
    }

    /// Has the worker look at its channel before it goes on (see [`rebeam_protocol::page::LOOK`]).
    pub(crate) fn ask_for_attention(&self, bits: u32) {
        self.words.half_word(ATTENTION).fetch_or(bits, Ordering::Release);
    }
}
