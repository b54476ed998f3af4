//! The worker's side of the status page: noting what is in hand, with plain stores.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use rebeam_protocol::page::{ATTENTION, MARK_SIZE, MARKS, PROGRESS, RING, SIZE, Stage, state_word};

/// A mapping of the page, there until the process ends.
pub(crate) struct StatusPage {
    base: *mut u8,
}

// SAFETY: the page is only ever touched through atomics.
unsafe impl Send for StatusPage {}
// SAFETY: as above.
unsafe impl Sync for StatusPage {}

impl StatusPage {
    /// Maps the page and closes the descriptor. Forked helpers do not inherit the mapping.
    pub(crate) fn map(fd: &OwnedFd) -> io::Result<Self> {
        // SAFETY: a new shared mapping at an address of the kernel's choice; the supervisor sealed the memfd at this
        // size, so no access can fault.
        let base = unsafe {
            let protection = libc::PROT_READ | libc::PROT_WRITE;
            libc::mmap(std::ptr::null_mut(), SIZE, protection, libc::MAP_SHARED, fd.as_raw_fd(), 0)
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `base` is the mapping of SIZE bytes just made.
        unsafe { libc::madvise(base, SIZE, libc::MADV_DONTFORK) };
        Ok(StatusPage { base: base.cast() })
    }

    /// Notes that the handler of message `seq` begins now.
    pub(crate) fn begin(&self, seq: u64) {
        self.word(Self::mark(seq) + 8).store(clock_ns(), Ordering::Relaxed);
        self.word(Self::mark(seq)).store(state_word(seq, Stage::Begun), Ordering::Release);
        self.word(PROGRESS).fetch_add(1, Ordering::Relaxed);
    }

    /// Notes that message `seq` is done.
    pub(crate) fn done(&self, seq: u64) {
        self.word(Self::mark(seq)).store(state_word(seq, Stage::Done), Ordering::Release);
        self.word(PROGRESS).fetch_add(1, Ordering::Relaxed);
    }

    /// Whether the supervisor wants the channel to be read before anything else; asking takes the wish away.
    pub(crate) fn take_attention(&self) -> bool {
        // SAFETY: ATTENTION is an aligned offset of a u32 within the mapping.
        let word = unsafe { AtomicU32::from_ptr(self.base.add(ATTENTION).cast()) };
        word.load(Ordering::Relaxed) != 0 && word.swap(0, Ordering::Acquire) != 0
    }

    fn mark(seq: u64) -> usize {
        RING + (seq as usize % MARKS) * MARK_SIZE
    }

    fn word(&self, offset: usize) -> &AtomicU64 {
        // SAFETY: every offset used here is a multiple of 8 within the mapping, which lives as long as the process.
        unsafe { AtomicU64::from_ptr(self.base.add(offset).cast()) }
    }
}

fn clock_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes one timespec.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}
