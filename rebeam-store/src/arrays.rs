//! Large buffers of values: a file in memory beside the rows', of which readers map pieces.
//!
//! The store copies the buffers of a value into an *extent*, whole pages at the end of the file, and the row says where it
//! is. Nothing is written to an extent again, nor is its place used for another; when no row has it and nobody looks at it
//! any more, its pages go back to the system, and there is a hole in the file. Who looks at an extent says so by a hold (see
//! [`crate::pins`]). A store that goes on where another has ended uses the same file.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, Permissions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::sync::atomic::{Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use rebeam_protocol::table::Extent;
use rebeam_sys::memory::{self, Mapping, SharedWords};

use crate::fork::is_forked;
use crate::mdb::path_of;
use crate::pins::{HOLDS, HOLDS_USED, hold};
use crate::{Error, Result};

/// How much is copied at once.
const CHUNK: usize = 1 << 20;

/// Bytes that an extent takes: whole pages.
pub(crate) fn pages(length: u64) -> u64 {
    let page = memory::page_size() as u64;
    length.div_ceil(page).saturating_mul(page)
}

/// The file, for the one process that writes it.
#[derive(Debug)]
pub(crate) struct Arrays {
    file: File,
    /// Open for reading.
    for_readers: File,
    end: u64,
    /// What no row has any more, and since which transaction.
    dead: Vec<(u64, Extent)>,
    dead_bytes: u64,
    /// What no row had when a store before had ended, though who reads from before may look at it.
    unknown: Vec<Extent>,
    /// From which transaction on nobody can come to look at that, if it is known who reads from before.
    unknown_before: Option<u64>,
    buffer: Vec<u8>,
}

impl Arrays {
    /// An empty file.
    pub(crate) fn create() -> Result<Self> {
        let file = File::from(memory::create_growing(c"rebeam-arrays")?);
        // Whoever has it by a descriptor that reads is to read it, and no more.
        file.set_permissions(Permissions::from_mode(0o444))?;
        Self::open(file, 0)
    }

    /// The file of a store before, of which rows have these extents, by where they begin. Nothing of it is written to
    /// again; what else is in it is given back when [all readers are known](Self::know_readers).
    pub(crate) fn take_over(file: File, extents: &[Extent]) -> Result<Self> {
        let end = pages(file.metadata()?.len());
        let mut arrays = Self::open(file, end)?;
        let mut known = 0;
        for extent in extents.iter().chain([&Extent { offset: end, length: 0 }]) {
            if extent.offset > known {
                arrays.unknown.push(Extent { offset: known, length: extent.offset - known });
            }
            known = extent.offset + pages(extent.length);
        }
        Ok(arrays)
    }

    fn open(file: File, end: u64) -> Result<Self> {
        let for_readers = File::open(path_of(&file))?;
        let (dead, unknown, buffer) = (Vec::new(), Vec::new(), Vec::new());
        Ok(Arrays { file, for_readers, end, dead, dead_bytes: 0, unknown, unknown_before: None, buffer })
    }

    /// The file, to be read only.
    pub(crate) fn for_readers(&self) -> io::Result<OwnedFd> {
        Ok(self.for_readers.try_clone()?.into())
    }

    /// The file, for the next store.
    pub(crate) fn for_next(&self) -> io::Result<OwnedFd> {
        Ok(self.file.try_clone()?.into())
    }

    /// Copies a piece of another file to the end of this one.
    pub(crate) fn add(&mut self, from: &File, piece: Extent) -> Result<Extent> {
        let extent = Extent { offset: self.end, length: piece.length };
        match self.copy(from, piece) {
            Ok(()) => {
                self.end += pages(piece.length);
                Ok(extent)
            }
            Err(error) => {
                self.give_back(extent);
                Err(error)
            }
        }
    }

    fn copy(&mut self, from: &File, piece: Extent) -> Result<()> {
        self.buffer.resize(CHUNK, 0);
        let mut done = 0;
        while done < piece.length {
            let chunk = &mut self.buffer[..CHUNK.min((piece.length - done) as usize)];
            from.read_exact_at(chunk, piece.offset + done)?;
            self.file.write_all_at(chunk, self.end + done).map_err(|error| match error.raw_os_error() {
                Some(code) => Error::of(code),
                None => error.into(),
            })?;
            done += chunk.len() as u64;
        }
        Ok(())
    }

    /// No row has it any more, by this transaction.
    pub(crate) fn let_go(&mut self, version: u64, extent: Extent) {
        self.dead_bytes += pages(extent.length);
        self.dead.push((version, extent));
    }

    /// Bytes that no row has, and that somebody may still look at.
    pub(crate) fn dead_bytes(&self) -> u64 {
        self.dead_bytes
    }

    /// Gives back what nobody can look at any more. `oldest` is the oldest pin, and must have been read before this call.
    pub(crate) fn release<'a>(&mut self, oldest: Option<u64>, readers: impl Iterator<Item = &'a SharedWords>) {
        let may_look_back = self.unknown_before.is_none_or(|before| oldest.is_some_and(|oldest| oldest < before));
        let are_unknown_due = !self.unknown.is_empty() && !may_look_back;
        if self.dead.is_empty() && !are_unknown_due {
            return;
        }
        fence(Ordering::SeqCst);
        let held: BTreeSet<u64> = readers.flat_map(held).collect();
        if are_unknown_due {
            self.look_at_unknown(&held);
        }
        let is_seen = |version: u64, extent: Extent| {
            oldest.is_some_and(|oldest| oldest < version) || held.contains(&extent.offset)
        };
        let (seen, unseen): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.dead).into_iter().partition(|(at, it)| is_seen(*at, *it));
        self.dead = seen;
        for (_, extent) in unseen {
            self.dead_bytes -= pages(extent.length);
            self.give_back(extent);
        }
    }

    /// All who read from a store before are known, and none of them begins to do so any more. What no row has is theirs as
    /// long as one has a snapshot of before this transaction.
    pub(crate) fn know_readers(&mut self, version: u64) {
        self.unknown_before = Some(version);
    }

    /// Whether there is something that is to be given back, as soon as nobody can look at it.
    pub(crate) fn has_dead(&self) -> bool {
        !self.dead.is_empty() || !self.unknown.is_empty()
    }

    /// Of what no row had, only what is held stays. How long that is is not known: it counts up to the next one.
    fn look_at_unknown(&mut self, held: &BTreeSet<u64>) {
        for Extent { offset, length } in std::mem::take(&mut self.unknown) {
            let end = offset + length;
            let mut from = offset;
            for next in held.range(offset..end).copied().chain([end]) {
                let piece = Extent { offset: from, length: next - from };
                match held.contains(&from) {
                    true => self.let_go(0, piece),
                    false if piece.length > 0 => self.give_back(piece),
                    false => {}
                }
                from = next;
            }
        }
    }

    /// Gives an extent's pages back to the system. If that fails, it costs memory and nothing else.
    pub(crate) fn give_back(&self, extent: Extent) {
        let _ = memory::punch(&self.file, extent.offset, pages(extent.length));
    }
}

/// What a reader says that it holds.
fn held(words: &SharedWords) -> impl Iterator<Item = u64> + '_ {
    let used = (words.word(HOLDS_USED).load(Ordering::SeqCst) as usize).min(HOLDS);
    (0..used).filter_map(|index| words.word(hold(index)).load(Ordering::SeqCst).checked_sub(1))
}

/// What a process that reads looks at.
#[derive(Debug)]
pub(crate) struct Held {
    file: File,
    places: Mutex<Places>,
}

#[derive(Debug, Default)]
struct Places {
    /// By where they begin.
    mapped: BTreeMap<u64, Weak<Array>>,
    free: Vec<usize>,
    used: usize,
}

impl Held {
    pub(crate) fn new(file: OwnedFd) -> Self {
        Held { file: file.into(), places: Mutex::default() }
    }

    fn places(&self) -> MutexGuard<'_, Places> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Holds an extent of a row, whose snapshot is pinned until this returns, and maps it.
    pub(crate) fn map(self: &Arc<Self>, words: &Arc<SharedWords>, extent: Extent) -> Result<Arc<Array>> {
        let mut places = self.places();
        if let Some(array) = places.mapped.get(&extent.offset).and_then(Weak::upgrade) {
            return Ok(array);
        }
        let size = usize::try_from(extent.length).map_err(|_| Error::of(libc::ENOMEM))?;
        let place = places.free.pop().or_else(|| {
            let place = places.used;
            (place < HOLDS).then(|| places.used += 1)?;
            words.word(HOLDS_USED).fetch_max(places.used as u64, Ordering::SeqCst);
            Some(place)
        });
        let Some(place) = place else {
            // As many are mapped as can be held: this one is a copy.
            drop(places);
            let mut bytes = Vec::new();
            bytes.try_reserve_exact(size).map_err(|_| Error::of(libc::ENOMEM))?;
            bytes.resize(size, 0);
            self.file.read_exact_at(&mut bytes, extent.offset)?;
            return Ok(Arc::new(Array { bytes: Bytes::Copied(bytes) }));
        };
        words.word(hold(place)).store(extent.offset + 1, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        let hold = Hold { held: self.clone(), words: words.clone(), place, offset: extent.offset };
        // If mapping fails, dropping the hold takes the lock again.
        drop(places);
        let mapping = Mapping::part(&self.file, extent.offset, size)?;
        let array = Arc::new(Array { bytes: Bytes::Mapped { mapping, _hold: hold } });
        self.places().mapped.insert(extent.offset, Arc::downgrade(&array));
        Ok(array)
    }

    /// All that is mapped.
    pub(crate) fn all(&self) -> Vec<Arc<Array>> {
        self.places().mapped.values().filter_map(Weak::upgrade).collect()
    }
}

/// The large buffers of one value. They stay as they are while this lives.
#[derive(Debug)]
pub struct Array {
    bytes: Bytes,
}

#[derive(Debug)]
enum Bytes {
    // The mapping goes before its hold.
    Mapped { mapping: Mapping, _hold: Hold },
    Copied(Vec<u8>),
}

impl Array {
    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        match &self.bytes {
            // SAFETY: the file cannot shrink, and the store neither writes to an extent again nor gives it back while it
            // is held.
            Bytes::Mapped { mapping, .. } => unsafe { std::slice::from_raw_parts(mapping.base(), mapping.size()) },
            Bytes::Copied(bytes) => bytes,
        }
    }
}

#[derive(Debug)]
struct Hold {
    held: Arc<Held>,
    words: Arc<SharedWords>,
    place: usize,
    offset: u64,
}

impl Drop for Hold {
    fn drop(&mut self) {
        if is_forked() {
            return;
        }
        let mut places = self.held.places();
        if places.mapped.get(&self.offset).is_some_and(|array| array.strong_count() == 0) {
            places.mapped.remove(&self.offset);
        }
        self.words.word(hold(self.place)).store(0, Ordering::Release);
        places.free.push(self.place);
    }
}
