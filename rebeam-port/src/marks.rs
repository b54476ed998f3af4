//! A port's side of the status page: which messages are in hand.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;

use rebeam_protocol::id::Seq;
use rebeam_protocol::page::{ATTENTION, EXIT, LOOK, MARKS, SIZE, Stage, mark_offset, state_word};
use rebeam_protocol::worker::Done;
use rebeam_sys::clock::monotonic_ns;
use rebeam_sys::memory::SharedWords;

pub(crate) struct Marks {
    words: SharedWords,
    free: Vec<usize>,
    taken: Vec<(Seq, usize)>,
}

impl Marks {
    pub(crate) fn new(page: &OwnedFd) -> io::Result<Self> {
        Ok(Marks { words: SharedWords::new(page, SIZE)?, free: (0..MARKS).rev().collect(), taken: Vec::new() })
    }

    /// A message is in hand from now on.
    pub(crate) fn begin(&mut self, seq: Seq) {
        let Some(mark) = self.free.pop() else { return };
        self.taken.push((seq, mark));
        self.words.word(mark_offset(mark) + 8).store(monotonic_ns(), Ordering::Relaxed);
        self.words.word(mark_offset(mark)).store(state_word(seq.0, Stage::Begun), Ordering::Release);
    }

    /// A message is done, which the supervisor is about to be told.
    pub(crate) fn done(&mut self, seq: Seq) -> Done {
        let Some(place) = self.taken.iter().position(|(of, _)| *of == seq) else { return seq.into() };
        let (_, mark) = self.taken[place];
        let since = self.words.word(mark_offset(mark) + 8).load(Ordering::Relaxed);
        self.words.word(mark_offset(mark)).store(state_word(seq.0, Stage::Done), Ordering::Release);
        let took = monotonic_ns().saturating_sub(since) / 1000;
        Done { seq, took_us: Some(u32::try_from(took).unwrap_or(u32::MAX)) }
    }

    /// The supervisor has been told.
    pub(crate) fn settled(&mut self, seq: Seq) {
        if let Some(place) = self.taken.iter().position(|(of, _)| *of == seq) {
            let (_, mark) = self.taken.swap_remove(place);
            self.words.word(mark_offset(mark)).store(0, Ordering::Release);
            self.free.push(mark);
        }
    }

    /// Whether an exit signal came; the channel is about to be read in any case.
    pub(crate) fn is_exit_ordered(&self) -> bool {
        let bits = self.words.half_word(ATTENTION).fetch_and(!LOOK, Ordering::Acquire);
        bits & EXIT != 0
    }
}
