//! Large buffers of values: a file in memory beside the rows', of which readers map pieces.
//!
//! The store copies the buffers of a value into an *extent*, whole pages at the end of the file, and the row says where it
//! is. Nothing is written to an extent again, nor is its place used for another; when no row has it and nobody looks at it
//! any more, its pages go back to the system, and there is a hole in the file. Who looks at an extent says so by a hold (see
//! [`crate::pins`]).

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use rebeam_protocol::table::Extent;
use rebeam_sys::memory::{self, Mapping, SharedWords};

use crate::fork::is_forked;
use crate::mdb::path_of;
use crate::pins::{HOLDS_USED, PLACES, hold};
use crate::{Error, Result};

/// How much is copied at once.
const CHUNK: usize = 1 << 20;

/// What an extent takes.
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
    buffer: Vec<u8>,
}

impl Arrays {
    pub(crate) fn create() -> Result<Self> {
        let file = File::from(memory::create_growing(c"rebeam-arrays")?);
        let for_readers = File::open(path_of(&file))?;
        Ok(Arrays { file, for_readers, end: 0, dead: Vec::new(), buffer: Vec::new() })
    }

    /// Copies what rows have out of the file of a store before. Who looks at that one keeps it.
    pub(crate) fn copy_from(&mut self, before: &OwnedFd, extents: &[Extent]) -> Result<()> {
        let before = File::open(path_of(before))?;
        for extent in extents {
            self.copy(&before, *extent, extent.offset)?;
            self.end = self.end.max(extent.offset + pages(extent.length));
        }
        Ok(())
    }

    /// The file, to be read only.
    pub(crate) fn descriptor(&self) -> io::Result<OwnedFd> {
        Ok(self.for_readers.try_clone()?.into())
    }

    /// Copies a piece of another file to the end of this one.
    pub(crate) fn add(&mut self, from: &File, piece: Extent) -> Result<Extent> {
        let offset = self.end;
        match self.copy(from, piece, offset) {
            Ok(()) => {
                self.end += pages(piece.length);
                Ok(Extent { offset, length: piece.length })
            }
            Err(error) => {
                self.give_back(Extent { offset, length: piece.length });
                Err(error)
            }
        }
    }

    fn copy(&mut self, from: &File, piece: Extent, to: u64) -> Result<()> {
        self.buffer.resize(CHUNK, 0);
        let mut done = 0;
        while done < piece.length {
            let chunk = &mut self.buffer[..CHUNK.min((piece.length - done) as usize)];
            from.read_exact_at(chunk, piece.offset + done)?;
            self.file.write_all_at(chunk, to + done).map_err(|error| match error.raw_os_error() {
                Some(code) => Error::of(code),
                None => error.into(),
            })?;
            done += chunk.len() as u64;
        }
        Ok(())
    }

    /// No row has it any more, by this transaction.
    pub(crate) fn let_go(&mut self, version: u64, extent: Extent) {
        self.dead.push((version, extent));
    }

    /// Bytes that no row has, and that somebody may still look at.
    pub(crate) fn dead_bytes(&self) -> u64 {
        self.dead.iter().map(|(_, extent)| pages(extent.length)).sum()
    }

    /// Gives back what nobody can look at any more. The oldest pin is of before.
    pub(crate) fn release<'a>(&mut self, oldest: Option<u64>, readers: impl Iterator<Item = &'a SharedWords>) {
        if self.dead.is_empty() {
            return;
        }
        fence(Ordering::SeqCst);
        let held: BTreeSet<u64> = readers.flat_map(held).collect();
        let is_seen = |version: u64, extent: Extent| {
            oldest.is_some_and(|oldest| oldest < version) || held.contains(&extent.offset)
        };
        let (seen, unseen) = std::mem::take(&mut self.dead).into_iter().partition(|(at, it)| is_seen(*at, *it));
        self.dead = seen;
        let unseen: Vec<(u64, Extent)> = unseen;
        unseen.into_iter().for_each(|(_, extent)| self.give_back(extent));
    }

    pub(crate) fn give_back(&self, extent: Extent) {
        // It is no matter if that fails: nobody reads it.
        let _ = memory::punch(&self.file, extent.offset, pages(extent.length));
    }
}

/// What a reader says that it holds.
fn held(words: &SharedWords) -> impl Iterator<Item = u64> + '_ {
    let used = (words.word(HOLDS_USED).load(Ordering::SeqCst) as usize).min(PLACES);
    (0..used).filter_map(|index| words.word(hold(index)).load(Ordering::SeqCst).checked_sub(1))
}

/// What a process that reads looks at.
#[derive(Debug)]
pub(crate) struct Held {
    file: OwnedFd,
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
        Held { file, places: Mutex::default() }
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
            (place < PLACES).then(|| places.used += 1)?;
            words.word(HOLDS_USED).fetch_max(places.used as u64, Ordering::SeqCst);
            Some(place)
        });
        let Some(place) = place else {
            // As many are mapped as can be held: this one is a copy.
            drop(places);
            let mut bytes = vec![0; size];
            File::open(path_of(&self.file))?.read_exact_at(&mut bytes, extent.offset)?;
            return Ok(Arc::new(Array { bytes: Bytes::Copied(bytes) }));
        };
        words.word(hold(place)).store(extent.offset + 1, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        let hold = Hold { held: self.clone(), words: words.clone(), place, offset: extent.offset, stays: false.into() };
        // A hold that fails to be mapped asks for the places when it goes.
        drop(places);
        let mapping = Mapping::part(&self.file, extent.offset, size)?;
        let array = Arc::new(Array { bytes: Bytes::Mapped(mapping, hold) });
        self.places().mapped.insert(extent.offset, Arc::downgrade(&array));
        Ok(array)
    }

    /// A process is about to be forked that may look at whatever is held now: it is held until this process ends.
    pub(crate) fn keep_all(&self) {
        for array in self.places().mapped.values().filter_map(Weak::upgrade).collect::<Vec<_>>() {
            if let Bytes::Mapped(_, hold) = &array.bytes {
                hold.stays.store(true, Ordering::Relaxed);
            }
        }
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
    Mapped(Mapping, Hold),
    Copied(Vec<u8>),
}

impl Array {
    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        match &self.bytes {
            // SAFETY: the file cannot shrink, and the store neither writes to an extent again nor gives it back while it
            // is held.
            Bytes::Mapped(mapping, _) => unsafe { std::slice::from_raw_parts(mapping.base(), mapping.size()) },
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
    /// A process that was forked may look at it.
    stays: AtomicBool,
}

impl Drop for Hold {
    fn drop(&mut self) {
        if is_forked() || self.stays.load(Ordering::Relaxed) {
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
