//! The supervisor's side of the ledger: making its memory, writing records (see [`rebeam_protocol::ledger`]).

use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use rebeam_protocol::ledger::{HALF, Record, SIZE, STATE, Tail, encode};

/// `F_SEAL_FUTURE_WRITE` of Linux 5.1: no mapping made from now on may be written through.
const FUTURE_WRITE: SealFlag = SealFlag::from_bits_retain(0x10);

/// Bytes of records out of date that are not worth a new beginning.
const SLACK: u32 = 64 * 1024;

/// The ledger of a node, as its one writer has it.
#[derive(Debug)]
pub(crate) struct Ledger {
    memory: OwnedFd,
    base: NonNull<libc::c_void>,
    tail: Tail,
    /// Bytes with which this epoch began.
    began_with: u32,
}

impl Ledger {
    /// An empty one. Its size is sealed, and none but this mapping can be written through: workers only read.
    pub(crate) fn new() -> io::Result<Self> {
        let memory = memfd_create(c"rebeam-ledger", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
        nix::unistd::ftruncate(&memory, SIZE as i64)?;
        let size = const { NonZeroUsize::new(SIZE).expect("the ledger has a size") };
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let base = unsafe { mmap(None, size, access, MapFlags::MAP_SHARED | MapFlags::MAP_NORESERVE, &memory, 0)? };
        let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | FUTURE_WRITE | SealFlag::F_SEAL_SEAL;
        fcntl(&memory, FcntlArg::F_ADD_SEALS(seals))?;
        Ok(Ledger { memory, base, tail: Tail::default(), began_with: 0 })
    }

    /// What a worker maps.
    pub(crate) fn memory(&self) -> BorrowedFd<'_> {
        self.memory.as_fd()
    }

    /// Adds a record; false if there is no room, or if it is time to begin anew.
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

    /// Begins anew with what holds.
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
            self.word(at.offset(at.length) + index * 8).store(*word, Ordering::Relaxed);
        }
    }

    /// Lets readers see what was written.
    fn publish(&self) {
        self.word(STATE).store(self.tail.word(), Ordering::Release);
    }

    fn word(&self, offset: usize) -> &AtomicU64 {
        debug_assert!(offset + 8 <= SIZE, "beyond the ledger");
        // SAFETY: offsets are multiples of 8 within the mapping, which lives as long as this.
        unsafe { AtomicU64::from_ptr(self.base.as_ptr().cast::<u8>().add(offset).cast()) }
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `new`, unmapped once.
        let _ = unsafe { munmap(self.base, SIZE) };
    }
}
