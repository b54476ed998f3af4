//! The layout of the status page: one page of memory that a worker shares with the supervisor.
//!
//! The worker notes in it what it has in hand, so that a death needs no last words. It is a ring of [`MARKS`] marks,
//! one per message handed over and not yet settled: the numbers of those never lie further apart than that, so the
//! message with number `seq` owns mark `seq % MARKS` alone. That covers messages taken out of order (lanes, selective
//! receive) and handlers that overlap, without a lock and without a message.
//!
//! A mark is written by one thread with plain aligned stores; readers take whatever is there. This module holds
//! numbers only: mapping the memory is the business of each side.

/// How many messages may be handed over and unsettled at once.
pub const MARKS: usize = 64;

/// Bytes of the page.
pub const SIZE: usize = 4096;

/// Bytes behind the page, into which the worker's fault handler writes stacks: in a file, not in a mapping, since they
/// must be writable when the process is broken.
pub const STACKS: usize = 60 * 1024;

/// Byte offset of `attention`, a `u32` that the supervisor sets to have the worker read its channel before it goes on.
pub const ATTENTION: usize = 0;

/// Byte offset of `condition`, a `u32` of the worker's: bit 0 says that it is suspended.
pub const CONDITION: usize = 4;

/// Bits of `attention`: read the channel.
pub const LOOK: u32 = 1;

/// Bits of `attention`: an exit signal came; stays set.
pub const EXIT: u32 = 2;

/// Byte offset of the ring; each mark is two `u64`: the state word and when it was begun, in nanoseconds of the
/// monotonic clock.
pub const RING: usize = 64;

/// Bytes of one mark.
pub const MARK_SIZE: usize = 16;

/// How far a message has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Handed over, not begun.
    Waiting,
    /// Its handler runs.
    Begun,
    /// Its handler has returned.
    Done,
}

/// The byte offset of the mark of message `seq`: its state word; eight bytes on, when it was begun.
pub fn mark_offset(seq: u64) -> usize {
    RING + (seq as usize % MARKS) * MARK_SIZE
}

/// The state word of message `seq` at `stage`.
pub fn state_word(seq: u64, stage: Stage) -> u64 {
    let code = match stage {
        Stage::Waiting => 0,
        Stage::Begun => 1,
        Stage::Done => 2,
    };
    (seq << 2) | code
}

/// What the state word in the mark of message `seq` says about it. A word of an earlier message says: not begun.
pub fn stage_of(seq: u64, word: u64) -> Stage {
    if word >> 2 != seq & (u64::MAX >> 2) {
        return Stage::Waiting;
    }
    match word & 3 {
        1 => Stage::Begun,
        2 => Stage::Done,
        _ => Stage::Waiting,
    }
}

/// The ring as it was at one moment: what a reader copies out of the page before it thinks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    marks: Vec<(u64, u64)>,
    is_suspended: bool,
}

impl Default for Snapshot {
    /// A page nobody wrote: nothing was begun.
    fn default() -> Self {
        Snapshot { marks: vec![(0, 0); MARKS], is_suspended: false }
    }
}

impl Snapshot {
    /// Copies the ring with a function that reads the word at a byte offset.
    pub fn read(word_at: impl Fn(usize) -> u64) -> Self {
        let mark = |index| (word_at(RING + index * MARK_SIZE), word_at(RING + index * MARK_SIZE + 8));
        let marks = (0..MARKS).map(mark).collect();
        // The condition is the upper half of the first word on a little-endian machine.
        Snapshot { marks, is_suspended: (word_at(ATTENTION) >> 32) & 1 == 1 }
    }

    /// Whether the worker was told to handle no message for now.
    pub fn is_suspended(&self) -> bool {
        self.is_suspended
    }

    /// Notes a stage, as the worker does.
    pub fn note(&mut self, seq: u64, stage: Stage, since_ns: u64) {
        self.marks[seq as usize % MARKS] = (state_word(seq, stage), since_ns);
    }

    /// How far message `seq` has come.
    pub fn stage(&self, seq: u64) -> Stage {
        stage_of(seq, self.marks[seq as usize % MARKS].0)
    }

    /// When message `seq` was begun, in nanoseconds of the monotonic clock; 0 if it was not.
    pub fn since_ns(&self, seq: u64) -> u64 {
        if self.stage(seq) == Stage::Waiting { 0 } else { self.marks[seq as usize % MARKS].1 }
    }
}

const _: () = assert!(RING + MARKS * MARK_SIZE <= SIZE);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_of_an_earlier_message_says_nothing_about_a_later_one() {
        let earlier = state_word(3, Stage::Done);
        assert_eq!(stage_of(3, earlier), Stage::Done);
        assert_eq!(stage_of(3 + MARKS as u64, earlier), Stage::Waiting);
    }
}
