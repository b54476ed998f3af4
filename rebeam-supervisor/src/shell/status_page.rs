//! The supervisor's side of the status page: making it, reading it, asking for attention.

use std::io;
use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use rebeam_protocol::page::{ATTENTION, SIZE, STACKS, Snapshot};

/// The page, and the room for stacks behind it.
const WHOLE: usize = SIZE + STACKS;

/// A mapping of one worker's page.
#[derive(Debug)]
pub(crate) struct StatusPage {
    base: NonNull<libc::c_void>,
}

impl StatusPage {
    /// Makes a page; gives the mapping and the descriptor for the worker. It is sealed at its size: a worker that
    /// could shrink it could kill the supervisor with SIGBUS.
    pub(crate) fn new() -> io::Result<(Self, OwnedFd)> {
        let fd = memfd_create(c"rebeam-page", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
        nix::unistd::ftruncate(&fd, WHOLE as i64)?;
        fcntl(&fd, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL))?;
        let size = const { NonZeroUsize::new(WHOLE).expect("the page has a size") };
        // SAFETY: a new mapping at an address of the kernel's choice.
        let base =
            unsafe { mmap(None, size, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_SHARED, &fd, 0)? };
        Ok((StatusPage { base }, fd))
    }

    /// Copies the marks.
    pub(crate) fn snapshot(&self) -> Snapshot {
        Snapshot::read(|offset| {
            // SAFETY: the protocol's offsets are multiples of 8 within the mapping.
            unsafe { AtomicU64::from_ptr(self.base.as_ptr().cast::<u8>().add(offset).cast()) }.load(Ordering::Acquire)
        })
    }

    /// What the worker's fault handler has written, and was not taken.
    pub(crate) fn stacks(&self) -> String {
        let bytes: Vec<u8> = self.room().map(|byte| byte.load(Ordering::Relaxed)).collect();
        // What was taken before has left a gap.
        let begin = bytes.iter().position(|byte| *byte != 0).unwrap_or(STACKS);
        let length = bytes[begin..].iter().position(|byte| *byte == 0).unwrap_or(STACKS - begin);
        let text = String::from_utf8_lossy(&bytes[begin..begin + length]);
        // What called the actor's method is ours, and tells nobody anything.
        let is_own = |line: &&str| line.contains("/rebeam/_boot.py\"") || line.contains("File \"<string>\", line 1 in");
        text.trim().lines().filter(|line| !is_own(line)).collect::<Vec<_>>().join("\n")
    }

    /// The same, of a worker that lives: it is not there a second time.
    pub(crate) fn take_stacks(&self) -> String {
        let stacks = self.stacks();
        self.room().for_each(|byte| byte.store(0, Ordering::Relaxed));
        stacks
    }

    /// The room for stacks.
    fn room(&self) -> impl Iterator<Item = &AtomicU8> {
        // SAFETY: it lies within the mapping, which lives as long as this.
        (SIZE..WHOLE).map(|offset| unsafe { AtomicU8::from_ptr(self.base.as_ptr().cast::<u8>().add(offset)) })
    }

    /// Has the worker look at its channel before it goes on (see [`rebeam_protocol::page::LOOK`]).
    pub(crate) fn ask_for_attention(&self, bits: u32) {
        // SAFETY: an aligned offset within the mapping.
        let word = unsafe { AtomicU32::from_ptr(self.base.as_ptr().cast::<u8>().add(ATTENTION).cast()) };
        word.fetch_or(bits, Ordering::Release);
    }
}

impl Drop for StatusPage {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `new`, unmapped once.
        let _ = unsafe { munmap(self.base, WHOLE) };
    }
}

/// The time on the pages' clock, in nanoseconds.
pub(crate) fn clock_ns() -> u64 {
    let now = nix::time::ClockId::CLOCK_MONOTONIC.now();
    now.map_or(0, |now| now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64)
}
