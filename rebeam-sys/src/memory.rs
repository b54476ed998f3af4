//! Memory that processes share: files in memory whose size is sealed, and mappings of them.
//!
//! A process that maps a file and reads beyond its end is killed by SIGBUS. So nothing is mapped here that can shrink:
//! [`Mapping`] asks the kernel for the seal first, whoever has made the file. What others may write to meanwhile is only
//! ever touched through atomics ([`SharedWords`]), or handed on as a bare address with the proof left to its user.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use memmap2::{Advice, MmapOptions, MmapRaw};
use nix::fcntl::{FallocateFlags, FcntlArg, SealFlag, fallocate, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::fstat;

/// `F_SEAL_FUTURE_WRITE` of Linux 5.1: no mapping made from now on may be written through.
const FUTURE_WRITE: SealFlag = SealFlag::from_bits_retain(0x10);

/// Makes a file in memory that can neither shrink nor grow. It goes with its last descriptor and mapping.
///
/// # Errors
/// Those of the system.
pub fn create(name: &CStr, size: usize) -> io::Result<OwnedFd> {
    let fd = unsealed(name, size)?;
    fcntl(&fd, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL))?;
    Ok(fd)
}

/// Makes an empty file in memory that may still grow, and be sealed by whoever fills it.
///
/// # Errors
/// Those of the system.
pub fn create_empty(name: &CStr) -> io::Result<OwnedFd> {
    unsealed(name, 0)
}

/// Makes an empty file in memory that may grow and not shrink.
///
/// # Errors
/// Those of the system.
pub fn create_growing(name: &CStr) -> io::Result<OwnedFd> {
    let fd = unsealed(name, 0)?;
    fcntl(&fd, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_SEAL))?;
    Ok(fd)
}

/// Gives the pages of a piece of a file back to the system. What is read there afterwards is zeros.
///
/// # Errors
/// Those of the system.
pub fn punch(fd: impl AsFd, offset: u64, length: u64) -> io::Result<()> {
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    Ok(fallocate(fd, flags, offset as i64, length as i64)?)
}

/// The time since 1970 that a file gets which is made now: of one that is. It lags behind the clock, and advances in steps,
/// as the kernel likes.
///
/// # Errors
/// Those of the system.
pub fn file_time() -> io::Result<Duration> {
    let file = fstat(create_empty(c"rebeam-time")?)?;
    Ok(Duration::new(file.st_ctime as u64, file.st_ctime_nsec as u32))
}

/// As [`create`], with a mapping that alone can be written through: whoever maps it later only reads.
///
/// # Errors
/// Those of the system; it needs Linux 5.1.
pub fn create_written_by_us(name: &CStr, size: usize) -> io::Result<(OwnedFd, SharedWords)> {
    let fd = unsealed(name, size)?;
    // It cannot shrink yet, since nobody else has it.
    let words = SharedWords { mapping: Mapping { raw: options(size).map_raw(&fd)? } };
    let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | FUTURE_WRITE | SealFlag::F_SEAL_SEAL;
    fcntl(&fd, FcntlArg::F_ADD_SEALS(seals))?;
    Ok((fd, words))
}

fn unsealed(name: &CStr, size: usize) -> io::Result<OwnedFd> {
    let fd = memfd_create(name, MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
    nix::unistd::ftruncate(&fd, size as i64)?;
    Ok(fd)
}

/// Whether a file has so many bytes and will go on having them.
///
/// # Errors
/// What is wrong with it.
pub fn check_sealed(fd: impl AsFd, size: u64) -> Result<(), &'static str> {
    let seals = fcntl(fd.as_fd(), FcntlArg::F_GET_SEALS).map(SealFlag::from_bits_truncate);
    if !seals.is_ok_and(|seals| seals.contains(SealFlag::F_SEAL_SHRINK)) {
        return Err("memory that may shrink");
    }
    match fstat(fd.as_fd()) {
        Ok(file) if u64::try_from(file.st_size).is_ok_and(|length| length >= size) => Ok(()),
        _ => Err("memory that is smaller than it says"),
    }
}

/// What `/proc/self/pagemap` has for each page, and bits of it (`Documentation/admin-guide/mm/pagemap.rst` of Linux). A
/// page that was copied to be written to is no file's any more.
const PAGEMAP_ENTRY: usize = 8;
const PAGE_OF_FILE: u64 = 1 << 61;
const PAGE_SWAPPED: u64 = 1 << 62;
const PAGE_PRESENT: u64 = 1 << 63;

/// Bytes of a page of memory: what can be mapped begins at multiples of this.
pub fn page_size() -> usize {
    static SIZE: OnceLock<usize> = OnceLock::new();
    let asked = || nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten();
    *SIZE.get_or_init(|| asked().map_or(4096, |size| size as usize))
}

fn options(size: usize) -> MmapOptions {
    let mut options = MmapOptions::new();
    options.len(size).no_reserve_swap();
    options
}

/// What a mapping is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reading what others write.
    Read,
    /// Reading and writing, seen by others.
    Write,
    /// Reading and writing, seen by nobody else: a page is copied when it is first written to.
    Copy,
}

/// A mapping of a file that cannot shrink. It ends with this.
#[derive(Debug)]
pub struct Mapping {
    raw: MmapRaw,
}

impl Mapping {
    /// Maps so many bytes from the file's beginning.
    ///
    /// # Errors
    /// Those of the system; a file that may shrink or is too small is [`io::ErrorKind::InvalidInput`].
    pub fn new(fd: impl AsFd, size: usize, access: Access) -> io::Result<Self> {
        let fd = fd.as_fd();
        check_sealed(fd, size as u64).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        let options = options(size);
        let raw = match access {
            Access::Read => options.map_raw_read_only(&fd)?,
            Access::Write => options.map_raw(&fd)?,
            // SAFETY: the file cannot shrink, so no access faults. That others may write to pages that were not copied
            // yet is no matter of this type, which gives an address and no reference.
            Access::Copy => unsafe { options.map_copy(&fd)? }.into(),
        };
        Ok(Mapping { raw })
    }

    /// Maps a piece of a file to be read; it begins at a multiple of [`page_size`].
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn part(fd: impl AsFd, offset: u64, size: usize) -> io::Result<Self> {
        let fd = fd.as_fd();
        let end = offset.saturating_add(size as u64);
        check_sealed(fd, end).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        Ok(Mapping { raw: options(size).offset(offset).map_raw_read_only(&fd)? })
    }

    /// Whether no page of these bytes was written to, in a mapping for [`Access::Copy`]: what is there is still the file's.
    /// False if the system does not tell.
    pub fn is_as_in_file(&self, offset: usize, length: usize) -> bool {
        let page = page_size();
        let first = (self.base() as usize + offset) / page;
        let pages = (self.base() as usize + offset + length).div_ceil(page) - first;
        let mut entries = vec![0; pages * PAGEMAP_ENTRY];
        let read = File::open("/proc/self/pagemap")
            .and_then(|pagemap| pagemap.read_exact_at(&mut entries, (first * PAGEMAP_ENTRY) as u64));
        let is_ours = |entry: &[u8]| {
            let entry = u64::from_le_bytes(entry.try_into().unwrap_or_default());
            entry & PAGE_SWAPPED != 0 || (entry & PAGE_PRESENT != 0 && entry & PAGE_OF_FILE == 0)
        };
        read.is_ok() && !entries.chunks_exact(PAGEMAP_ENTRY).any(is_ours)
    }

    /// Where it begins. The bytes may change under whoever reads them, unless that is known otherwise.
    pub fn base(&self) -> *mut u8 {
        self.raw.as_mut_ptr()
    }

    /// How many bytes it has.
    pub fn size(&self) -> usize {
        self.raw.len()
    }
}

/// A file whose pages this process keeps mapped, so that they are nobody's own: of a page that one process alone has mapped,
/// the kernel says that it is that one's private memory, whoever filled it.
#[derive(Debug)]
pub struct Resident {
    raw: MmapRaw,
    /// Bytes from the beginning that are mapped.
    length: usize,
}

impl Resident {
    /// Of a file that may grow to so many bytes, and never shrinks.
    ///
    /// # Errors
    /// Those of the system: no address space is one.
    pub fn new(fd: impl AsFd, most: usize) -> io::Result<Self> {
        Ok(Resident { raw: options(most).map_raw_read_only(&fd.as_fd())?, length: 0 })
    }

    /// Maps what the file has by now. It is no matter if that fails.
    pub fn grow_to(&mut self, length: usize) {
        let length = length.min(self.raw.len());
        if length > self.length {
            #[cfg(target_os = "linux")]
            let _ = self.raw.advise_range(Advice::PopulateRead, self.length, length - self.length);
            self.length = length;
        }
    }

    /// Bytes from the beginning that are mapped.
    pub fn length(&self) -> usize {
        self.length
    }
}

/// Memory that processes read and write at the same time, word by word.
#[derive(Debug)]
pub struct SharedWords {
    mapping: Mapping,
}

impl SharedWords {
    /// Maps so many bytes from the file's beginning, to be read and written.
    ///
    /// # Errors
    /// As [`Mapping::new`].
    pub fn new(fd: impl AsFd, size: usize) -> io::Result<Self> {
        Ok(SharedWords { mapping: Mapping::new(fd, size, Access::Write)? })
    }

    /// Children that are forked from now on do not inherit the mapping: whatever they touch there faults.
    ///
    /// # Errors
    /// Those of the system.
    pub fn withhold_from_forks(&self) -> io::Result<()> {
        self.mapping.raw.advise(Advice::DontFork)
    }

    /// The word at a byte offset.
    ///
    /// # Panics
    /// If that is no multiple of 8, or lies beyond the mapping.
    pub fn word(&self, offset: usize) -> &AtomicU64 {
        // SAFETY: in bounds and aligned, as checked; the mapping lives as long as `self` and is touched by atomics only.
        unsafe { AtomicU64::from_ptr(self.at(offset, 8).cast()) }
    }

    /// The half word at a byte offset.
    ///
    /// # Panics
    /// If that is no multiple of 4, or lies beyond the mapping.
    pub fn half_word(&self, offset: usize) -> &AtomicU32 {
        // SAFETY: as above.
        unsafe { AtomicU32::from_ptr(self.at(offset, 4).cast()) }
    }

    /// The byte at an offset.
    ///
    /// # Panics
    /// If that lies beyond the mapping.
    pub fn byte(&self, offset: usize) -> &AtomicU8 {
        // SAFETY: as above.
        unsafe { AtomicU8::from_ptr(self.at(offset, 1)) }
    }

    fn at(&self, offset: usize, size: usize) -> *mut u8 {
        let is_inside =
            offset.is_multiple_of(size) && offset.checked_add(size).is_some_and(|end| end <= self.mapping.size());
        assert!(is_inside, "offset {offset} of shared memory");
        self.mapping.base().wrapping_add(offset)
    }
}

/// Memory that another process writes, word by word, and this one only reads.
#[derive(Debug)]
pub struct WordsOfOthers {
    mapping: Mapping,
}

impl WordsOfOthers {
    /// Maps so many bytes from the file's beginning, to be read.
    ///
    /// # Errors
    /// As [`Mapping::new`].
    pub fn new(fd: impl AsFd, size: usize) -> io::Result<Self> {
        Ok(WordsOfOthers { mapping: Mapping::new(fd, size, Access::Read)? })
    }

    /// The word at a byte offset, as it is now.
    ///
    /// # Panics
    /// If that is no multiple of 8, or lies beyond the mapping.
    pub fn load(&self, offset: usize, order: Ordering) -> u64 {
        let is_inside = offset.is_multiple_of(8) && offset.checked_add(8).is_some_and(|end| end <= self.mapping.size());
        assert!(is_inside, "offset {offset} of shared memory");
        // SAFETY: in bounds and aligned; read-only memory may be loaded from atomically, and is never stored to here.
        unsafe { AtomicU64::from_ptr(self.mapping.base().wrapping_add(offset).cast()) }.load(order)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_shrink_or_is_too_small_is_not_mapped() {
        let open = unsealed(c"test", 4096).expect("memory");
        assert!(Mapping::new(&open, 4096, Access::Read).is_err(), "it may shrink");
        let sealed = create(c"test", 4096).expect("memory");
        assert!(Mapping::new(&sealed, 8192, Access::Read).is_err(), "it is too small");
        assert!(check_sealed(&sealed, u64::MAX).is_err(), "nor is any file as large as that");
        assert!(nix::unistd::ftruncate(&sealed, 0).is_err(), "it stays as large as it is");
    }

    #[test]
    fn a_piece_of_a_growing_file_is_mapped_until_its_pages_are_given_back() {
        let fd = create_growing(c"test").expect("memory");
        let page = page_size();
        let file = File::from(fd);
        file.write_all_at(&vec![7; 2 * page], page as u64).expect("it grows");
        let part = Mapping::part(&file, page as u64, 2 * page).expect("a mapping");
        // SAFETY: the file cannot shrink, and nobody else writes to it.
        let byte = |at: usize| unsafe { part.base().add(at).read_volatile() };
        assert_eq!((byte(0), byte(2 * page - 1)), (7, 7));
        assert!(Mapping::part(&file, 2 * page as u64, 2 * page).is_err(), "it lies beyond the end");
        assert!(file.set_len(0).is_err(), "it stays as large as it is");
        punch(&file, page as u64, page as u64).expect("a hole");
        assert_eq!((byte(0), byte(page)), (0, 7));
    }

    #[test]
    fn what_one_mapping_writes_another_reads_and_a_copy_keeps_to_itself() {
        let fd = create(c"test", 4096).expect("memory");
        let words = SharedWords::new(&fd, 4096).expect("a mapping");
        let others = WordsOfOthers::new(&fd, 4096).expect("a mapping");
        words.word(8).store(7, Ordering::Release);
        words.half_word(16).store(1, Ordering::Relaxed);
        words.byte(20).store(1, Ordering::Relaxed);
        assert_eq!((others.load(8, Ordering::Acquire), others.load(16, Ordering::Relaxed)), (7, 0x1_0000_0001));
        let copy = SharedWords { mapping: Mapping::new(&fd, 4096, Access::Copy).expect("a mapping") };
        copy.word(8).store(9, Ordering::Relaxed);
        assert_eq!(words.word(8).load(Ordering::Relaxed), 7);
    }

    #[test]
    fn a_copy_knows_what_was_written_to() {
        const SIZE: usize = 64 * 4096;
        let fd = create(c"test", SIZE).expect("memory");
        let copy = SharedWords { mapping: Mapping::new(&fd, SIZE, Access::Copy).expect("a mapping") };
        assert!(copy.mapping.is_as_in_file(0, SIZE), "nothing was touched");
        let sum: u64 = (0..SIZE / 8).map(|word| copy.word(word * 8).load(Ordering::Relaxed)).sum();
        assert!(copy.mapping.is_as_in_file(0, SIZE), "{sum} was read only");
        copy.word(5 * 4096 + 8).store(1, Ordering::Relaxed);
        assert!(!copy.mapping.is_as_in_file(0, SIZE) && !copy.mapping.is_as_in_file(5 * 4096, 1));
        assert!(copy.mapping.is_as_in_file(0, 5 * 4096) && copy.mapping.is_as_in_file(6 * 4096, SIZE - 6 * 4096));
    }

    #[test]
    fn what_only_we_write_cannot_be_mapped_to_be_written() {
        let (fd, words) = create_written_by_us(c"test", 4096).expect("memory");
        words.word(0).store(3, Ordering::Relaxed);
        assert!(SharedWords::new(&fd, 4096).is_err());
        assert_eq!(WordsOfOthers::new(&fd, 4096).expect("a mapping").load(0, Ordering::Relaxed), 3);
    }

    #[test]
    #[should_panic(expected = "offset 4096")]
    fn nothing_beyond_a_mapping_is_touched() {
        let fd = create(c"test", 4096).expect("memory");
        SharedWords::new(&fd, 4096).expect("a mapping").word(4096);
    }
}
