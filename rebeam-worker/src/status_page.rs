//! The worker's side of the status page: noting what is in hand, with plain stores.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use rebeam_protocol::page::{ATTENTION, CONDITION, EXIT, LOOK, SIZE, Stage, mark_offset, state_word};

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
        self.word(mark_offset(seq) + 8).store(clock_ns(), Ordering::Relaxed);
        self.word(mark_offset(seq)).store(state_word(seq, Stage::Begun), Ordering::Release);
    }

    /// Notes that message `seq` is done.
    pub(crate) fn done(&self, seq: u64) {
        self.word(mark_offset(seq)).store(state_word(seq, Stage::Done), Ordering::Release);
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

    /// Notes whether this actor was told to handle no message for now.
    pub(crate) fn set_suspended(&self, is_suspended: bool) {
        self.half_word(CONDITION).store(u32::from(is_suspended), Ordering::Release);
    }

    fn half_word(&self, offset: usize) -> &AtomicU32 {
        // SAFETY: every offset used here is a multiple of 4 within the mapping, which lives as long as the process.
        unsafe { AtomicU32::from_ptr(self.base.add(offset).cast()) }
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
