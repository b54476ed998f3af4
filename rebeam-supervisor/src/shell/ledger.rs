//! The supervisor's side of the ledger: making its memory, writing records (see [`rebeam_protocol::ledger`]).

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{Ordering, fence};

use rebeam_protocol::ledger::{FEW_DESCRIPTORS, HALF, Record, SIZE, STATE, STORES, Tail, encode};
use rebeam_sys::memory::{self, SharedWords};

/// Bytes of records out of date that are not worth a new beginning.
const SLACK: u32 = 64 * 1024;

/// The ledger of a node, as its one writer has it.
#[derive(Debug)]
pub(crate) struct Ledger {
    memory: OwnedFd,
    words: SharedWords,
    tail: Tail,
    /// Bytes with which this epoch began.
    began_with: u32,
}

impl Ledger {
    /// An empty one. Its size is sealed, and none but this mapping can be written through: workers only read.
    pub(crate) fn new() -> io::Result<Self> {
        let (memory, words) = memory::create_written_by_us(c"rebeam-ledger", SIZE)?;
        Ok(Ledger { memory, words, tail: Tail::default(), began_with: 0 })
    }

    /// What a worker maps.
    pub(crate) fn memory(&self) -> BorrowedFd<'_> {
        self.memory.as_fd()
    }

    /// Adds a record; false if there is no room, or if it is time to start over.
    pub(crate) fn write(&mut self, record: &Record<'_>) -> bool {
        let words = encode(record);
        let length = self.tail.length + words.len() as u32 * 8;
        if length as usize > HALF || length > 3 * self.began_with + SLACK {
            return false;
        }
        self.put(self.tail, &words);
        self.tail.length = length;
        self.publish();
        true
    }

    /// Tells all workers whether descriptors are few.
    pub(crate) fn set_few_descriptors(&self, are_few: bool) {
        self.words.word(FEW_DESCRIPTORS).store(u64::from(are_few), Ordering::Relaxed);
    }

    /// Tells all workers how many stores of tables have ended.
    pub(crate) fn set_stores(&self, ended: u64) {
        self.words.word(STORES).store(ended, Ordering::Release);
    }

    /// Starts over with what holds.
    pub(crate) fn begin_anew<'a>(&mut self, records: impl Iterator<Item = Record<'a>>) {
        let mut tail = Tail { epoch: self.tail.epoch.wrapping_add(1), length: 0 };
        // Who still reads what is about to be overwritten sees by the epoch that it is out of date.
        fence(Ordering::Release);
        for record in records {
            let words = encode(&record);
            let length = tail.length + words.len() as u32 * 8;
            // The core sees to it that there is room; what does not fit cannot be found.
            if length as usize <= HALF {
                self.put(tail, &words);
                tail.length = length;
            }
        }
        self.tail = tail;
        self.began_with = tail.length;
        self.publish();
    }

    fn put(&self, at: Tail, words: &[u64]) {
        for (index, word) in words.iter().enumerate() {
            self.words.word(at.offset(at.length) + index * 8).store(*word, Ordering::Relaxed);
        }
    }

    /// Lets readers see what was written.
    fn publish(&self) {
        self.words.word(STATE).store(self.tail.word(), Ordering::Release);
    }
}
