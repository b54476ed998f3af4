//! The layout of the status page: one page of memory that a worker shares with the supervisor.
//!
//! The worker notes in it what it has in hand, so that a death needs no last words. It is an array of [`MARKS`] marks.
//! The worker takes a free one for each message that it begins, and gives it back once the supervisor has been told
//! that the message is done; a mark carries the message's number, by which a reader finds it. That covers messages
//! taken out of order (lanes, selective receive) and handlers that overlap, without a lock and without a message.
//!
//! A mark is written by one thread with plain aligned stores; readers take whatever is there. This module holds
//! numbers only: mapping the memory is the business of each side.

/// How many messages may be begun, or done and not acknowledged, at once.
pub const MARKS: usize = 240;

/// How many messages a worker may have done before it acknowledges them.
pub const ACK_AFTER: usize = 16;

/// The most messages that an actor handles at once. Each needs a mark, beside those that wait to be acknowledged and those
/// whose acknowledgement is in flight.
pub const MOST_CONCURRENCY: u32 = 200;

const _: () = assert!(MOST_CONCURRENCY as usize + 2 * ACK_AFTER <= MARKS);

/// Bytes of the page.
pub const SIZE: usize = 4096;

/// Bytes behind the page, into which the worker's fault handler writes stacks: in a file, not in a mapping, since they
/// must be writable when the process is broken.
pub const STACKS: usize = 60 * 1024;

/// Byte offset of `attention`, a `u32` that the supervisor sets to have the worker read its channel before it goes on.
pub const ATTENTION: usize = 0;

/// Byte offset of `condition`, a `u32` of the worker's.
pub const CONDITION: usize = 4;

/// Bits of `condition`: it was told to handle no message for now.
pub const SUSPENDED: u32 = 1;

/// Bits of `condition`: it takes its mail itself, when it likes, as a function does.
pub const OWN_MAIL: u32 = 2;

/// Bits of `condition`: it knows of its exit signal.
pub const LEAVING: u32 = 4;

/// Byte offset of a `u64` of the worker's: how many frames it has read. Looked at by tests only.
pub const FILED: usize = 8;

/// Byte offset of a `u64` of the worker's: 1 while it waits for its supervisor. Written in virtual time only.
pub const WAITING: usize = 16;

/// Bits of `attention`: read the channel.
pub const LOOK: u32 = 1;

/// Bits of `attention`: an exit signal came; stays set.
pub const EXIT: u32 = 2;

/// Byte offset of the first mark; each is two `u64`: the state word and when it was begun, in nanoseconds of the
/// monotonic clock.
pub const FIRST_MARK: usize = 64;

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

/// The byte offset of a mark: its state word; eight bytes on, when it was begun.
pub fn mark_offset(mark: usize) -> usize {
    FIRST_MARK + mark * MARK_SIZE
}

/// The state word of message `seq` at `stage`. Zero says nothing: messages are counted from 1.
pub fn state_word(seq: u64, stage: Stage) -> u64 {
    let code = match stage {
        Stage::Waiting => 0,
        Stage::Begun => 1,
        Stage::Done => 2,
    };
    (seq << 2) | code
}

/// The marks as they were at one moment: what a reader copies out of the page before it thinks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// State word and time of every mark in use, by number of the message.
    marks: Vec<(u64, u64)>,
    condition: u32,
}

impl Snapshot {
    /// Copies the marks with a function that reads the word at a byte offset.
    pub fn read(word_at: impl Fn(usize) -> u64) -> Self {
        let mark = |mark| (word_at(mark_offset(mark)), word_at(mark_offset(mark) + 8));
        let mut marks: Vec<(u64, u64)> = (0..MARKS).map(mark).filter(|(word, _)| *word != 0).collect();
        marks.sort_unstable();
        // The condition is the upper half of the first word on a little-endian machine.
        Snapshot { marks, condition: (word_at(ATTENTION) >> 32) as u32 }
    }

    /// Whether mail that waits is nobody's fault: the worker was told to handle none, or takes it when it likes.
    pub fn lets_mail_wait(&self) -> bool {
        self.condition & (SUSPENDED | OWN_MAIL) != 0
    }

    /// Notes the worker's condition, as it does.
    pub fn set_condition(&mut self, condition: u32) {
        self.condition = condition;
    }

    /// Notes a stage, as the worker does.
    pub fn note(&mut self, seq: u64, stage: Stage, since_ns: u64) {
        self.marks.retain(|(word, _)| word >> 2 != seq);
        self.marks.push((state_word(seq, stage), since_ns));
        self.marks.sort_unstable();
    }

    /// How far message `seq` has come. Without a mark it was not begun, or it was done and acknowledged.
    pub fn stage(&self, seq: u64) -> Stage {
        match self.mark(seq).map_or(0, |(word, _)| word & 3) {
            1 => Stage::Begun,
            2 => Stage::Done,
            _ => Stage::Waiting,
        }
    }

    /// When message `seq` was begun, in nanoseconds of the monotonic clock; 0 if it was not.
    pub fn since_ns(&self, seq: u64) -> u64 {
        self.mark(seq).map_or(0, |(_, since)| since)
    }

    fn mark(&self, seq: u64) -> Option<(u64, u64)> {
        let place = self.marks.partition_point(|(word, _)| word >> 2 < seq & (u64::MAX >> 2));
        self.marks.get(place).copied().filter(|(word, _)| word >> 2 == seq & (u64::MAX >> 2))
    }
}

const _: () = assert!(FIRST_MARK + MARKS * MARK_SIZE <= SIZE);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_says_something_about_its_own_message_only() {
        let words = |offset: usize| match offset {
            FIRST_MARK => state_word(7, Stage::Begun),
            offset if offset == mark_offset(5) => state_word(3, Stage::Done),
            offset if offset == FIRST_MARK + 8 => 70,
            _ => 0,
        };
        let page = Snapshot::read(words);
        let stages: Vec<Stage> = [3, 5, 7, 8].iter().map(|seq| page.stage(*seq)).collect();
        assert_eq!(stages, [Stage::Done, Stage::Waiting, Stage::Begun, Stage::Waiting]);
        assert_eq!(page.since_ns(7), 70);
    }
}
