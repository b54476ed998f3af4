//! Writing: what the one process that holds the tables does.

use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use rebeam_protocol::table::Extent;
use rebeam_sys::memory::{self, Resident, SharedWords};

use crate::arrays::{self, Arrays};
use crate::mdb::{Env, Mode, ReadTxn, WriteTxn, path_of};
use crate::pins::{ANNOUNCED, PAGE, PLACES, PUBLISHED, READER, USED, place};
use crate::reader::{Descriptors, Rows};
use crate::row::{self, EXTENTS};
use crate::{Error, Result};

/// How many transactions may be read at once, by all together.
const MOST_PROXIES: u32 = 16 * 1024;

/// By how many bytes the file grows before the pins are looked at.
const MUCH_GROWTH: usize = 4 << 20;

/// By how many bytes the file grows before they are mapped.
const GROWTH: usize = 1 << 20;

/// Proxies that are not worth a look at the pins.
const FEW_PROXIES: usize = 16;

/// What the file is called while LMDB opens it.
const ROWS: &str = "rows";

/// A name for a file in memory.
struct Name(PathBuf);

impl Name {
    fn of(file: &impl AsFd, name: PathBuf) -> io::Result<Self> {
        // One that was killed may have left its own.
        let _ = fs::remove_file(&name);
        symlink(path_of(file), &name)?;
        Ok(Name(name))
    }
}

impl Drop for Name {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// The tables, for the one process that writes them.
#[derive(Debug)]
pub struct Store {
    // Transactions before their environment: they go in this order.
    /// One for each transaction that may be read from, the oldest first; never empty.
    proxies: VecDeque<ReadTxn>,
    env: Env,
    /// Open for reading.
    data: File,
    arrays: Arrays,
    resident: Resident,
    map_size: usize,
    page: OwnedFd,
    words: SharedWords,
    readers: BTreeMap<ReaderId, Pins>,
    next_reader: ReaderId,
    /// When there are this many proxies, the pins are looked at.
    enough: usize,
    /// How much of the file was used when they were last.
    released_at: usize,
}

/// The pins of a process that reads.
#[derive(Debug)]
struct Pins {
    fd: OwnedFd,
    words: SharedWords,
    /// For each place the pin that was seen there last, if it was behind, and when it was first.
    behind: Vec<Option<(u64, Instant)>>,
}

/// A process that reads, as the store knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ReaderId(pub u64);

impl Store {
    /// Makes an empty file in memory. The map takes so many bytes of address space here and in each process that reads;
    /// more rows there cannot be. Names that LMDB needs are in `directory` for a moment, which is this store's alone.
    ///
    /// # Errors
    /// Those of the system.
    pub fn create(directory: &Path, map_size: usize) -> Result<Self> {
        let mut store = Self::open(memory::create_empty(c"rebeam-rows")?, directory, map_size)?;
        // LMDB counts from 0, which is no pin.
        store.write(|write| {
            write.put(b"first", &[])?;
            write.delete(b"first").map(drop)
        })?;
        Ok(store)
    }

    /// Goes on where a store has ended: with a copy of its rows, since whoever still reads those is not to be disturbed, and
    /// with its arrays. Who reads from before is to be [adopted](Self::adopt) at once.
    ///
    /// # Errors
    /// Those of the system; no room for the copy is one.
    pub fn restore(data: &OwnedFd, arrays: OwnedFd, directory: &Path, map_size: usize) -> Result<Self> {
        let copy = File::from(memory::create_empty(c"rebeam-rows")?);
        // Opened anew: others share the descriptor, and with it how far it was read.
        io::copy(&mut File::open(path_of(data))?, &mut &copy)?;
        let mut store = Self::open(copy.into(), directory, map_size)?;
        store.arrays = Arrays::take_over(arrays.into(), &store.extents()?)?;
        Ok(store)
    }

    /// What rows have of the file of arrays.
    fn extents(&self) -> Result<Vec<Extent>> {
        let mut extents = Vec::new();
        if let Some(newest) = self.proxies.back() {
            let mut rows = Rows::new(newest.cursor()?, &row::prefix(EXTENTS));
            while let Some((key, value)) = rows.next_row()? {
                extents.extend(row::extent_of(key, value));
            }
        }
        Ok(extents)
    }

    fn open(rows: OwnedFd, directory: &Path, map_size: usize) -> Result<Self> {
        let locks = memory::create_empty(c"rebeam-locks")?;
        let env = {
            // LMDB opens its two files by their names. Nothing of them is left once they are open.
            let _rows = Name::of(&rows, directory.join(ROWS))?;
            let _locks = Name::of(&locks, directory.join(format!("{ROWS}-lock")))?;
            Env::open(&directory.join(ROWS), Mode::Write { most_readers: MOST_PROXIES }, map_size)?
        };
        let data = File::from(rows);
        // Whoever has the file by a descriptor is to read it, and no more.
        data.set_permissions(Permissions::from_mode(0o444))?;
        let data = File::open(path_of(&data))?;
        let resident = Resident::new(&data, map_size)?;
        let (page, words) = memory::create_written_by_us(c"rebeam-tables", PAGE)?;
        let mut store = Store {
            proxies: VecDeque::new(),
            env,
            data,
            arrays: Arrays::create()?,
            resident,
            map_size,
            page,
            words,
            readers: BTreeMap::new(),
            next_reader: ReaderId(1),
            enough: FEW_PROXIES,
            released_at: 0,
        };
        store.publish()?;
        Ok(store)
    }

    /// The files of the rows, to be read only, and of the arrays: what [`Store::restore`] takes.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn files(&self) -> Result<[OwnedFd; 2]> {
        Ok([self.data.try_clone()?.into(), self.arrays.for_next()?])
    }

    /// Takes note of a process that reads from a store before, and may hold arrays.
    ///
    /// # Errors
    /// It is no page for pins.
    pub fn adopt(&mut self, pins: OwnedFd) -> Result<ReaderId> {
        let words = SharedWords::new(&pins, READER)?;
        let id = self.next_reader;
        self.next_reader = ReaderId(id.0 + 1);
        self.readers.insert(id, Pins { fd: pins, words, behind: Vec::new() });
        Ok(id)
    }

    /// What a process needs to read that is known.
    ///
    /// # Errors
    /// It is not; no descriptor is left.
    pub fn descriptors(&self, reader: ReaderId) -> Result<Descriptors> {
        let pins = self.readers.get(&reader).ok_or_else(|| Error::of(libc::EINVAL))?.fd.try_clone()?;
        let (data, arrays) = (self.data.try_clone()?.into(), self.arrays.for_readers()?);
        Ok(Descriptors { data, arrays, page: self.page.try_clone()?, pins })
    }

    /// All who read from before are adopted, and whoever has no snapshot of before by now reads from this store.
    pub fn is_current(&mut self) {
        self.arrays.know_readers(self.proxies.back().map_or(0, ReadTxn::id));
    }

    /// How much address space a reader needs.
    pub fn map_size(&self) -> usize {
        self.map_size
    }

    /// Bytes of the file that were ever used. They are used again, but not given back.
    pub fn used(&self) -> usize {
        self.env.used()
    }

    /// Takes note of a process that wants to read.
    ///
    /// # Errors
    /// Those of the system.
    pub fn attach(&mut self) -> Result<(ReaderId, Descriptors)> {
        let id = self.adopt(memory::create(c"rebeam-pins", READER)?)?;
        Ok((id, self.descriptors(id)?))
    }

    /// A process that reads is dead: its pins protect nothing any more. Not before: it may still be reading.
    pub fn detach(&mut self, reader: ReaderId) {
        self.readers.remove(&reader);
    }

    /// Carries out changes: all of them, seen by everybody when this returns, or none.
    ///
    /// # Errors
    /// What `change` fails with; [`crate::Error::Full`].
    pub fn write<T>(&mut self, change: impl FnOnce(&mut Write<'_>) -> Result<T>) -> Result<T> {
        let result = self.commit(change)?;
        // It is done, and nobody could be told: whoever tried it again would do it twice.
        self.publish().map_err(|error| Error::Damaged(error.to_string()))?;
        Ok(result)
    }

    fn commit<T>(&mut self, change: impl FnOnce(&mut Write<'_>) -> Result<T>) -> Result<T> {
        let mut write = Write { txn: self.env.write()?, arrays: &mut self.arrays, added: Vec::new(), gone: Vec::new() };
        let changed = change(&mut write);
        let Write { txn, arrays, added, gone } = write;
        let version = txn.id();
        let result = changed.and_then(|result| {
            self.words.word(ANNOUNCED).store(version, Ordering::SeqCst);
            fence(Ordering::SeqCst);
            txn.commit().map(|()| result)
        });
        match &result {
            Ok(_) => gone.into_iter().for_each(|extent| arrays.let_go(version, extent)),
            Err(_) => added.into_iter().for_each(|extent| arrays.give_back(extent)),
        }
        result
    }

    /// The rows as they are now, for this process.
    ///
    /// # Errors
    /// [`Error::Damaged`].
    pub fn get(&self, key: &[u8]) -> Result<Option<&[u8]>> {
        self.proxies.back().map_or(Ok(None), |newest| newest.get(key))
    }

    /// The first row whose key begins so.
    ///
    /// # Errors
    /// [`Error::Damaged`].
    pub fn first(&self, prefix: &[u8]) -> Result<Option<(&[u8], &[u8])>> {
        let Some(newest) = self.proxies.back() else { return Ok(None) };
        Rows::new(newest.cursor()?, prefix).next_row()
    }

    /// What is committed is there for everybody from now on.
    fn publish(&mut self) -> Result<()> {
        let proxy = self.env.read()?;
        let id = proxy.id();
        if self.proxies.back().is_none_or(|newest| newest.id() < id) {
            self.proxies.push_back(proxy);
            self.words.word(PUBLISHED).store(id, Ordering::SeqCst);
            fence(Ordering::SeqCst);
        }
        // What is kept for nobody is not used again, so the file grows.
        let used = self.env.used();
        if self.proxies.len() >= self.enough || used >= self.released_at + MUCH_GROWTH {
            self.release();
        }
        // In steps, since each asks the system.
        if used >= self.resident.length() + GROWTH {
            self.keep_mapped()?;
        }
        Ok(())
    }

    /// Maps what was written since the last time, so that no reader is charged for it.
    ///
    /// # Errors
    /// Those of the system.
    pub fn keep_mapped(&mut self) -> Result<()> {
        if self.env.used() > self.resident.length() {
            let length = self.data.metadata()?.len();
            self.resident.grow_to(usize::try_from(length).unwrap_or(usize::MAX));
        }
        Ok(())
    }

    /// Drops the proxies that nobody needs, so that their pages are used again. It costs a look at each page of pins, so it
    /// is not done for each transaction.
    pub fn release(&mut self) {
        let mut pins: Vec<u64> = self.readers.values().flat_map(|pins| pinned(&pins.words)).collect();
        pins.retain(|pin| *pin != 0);
        pins.sort_unstable();
        let oldest = pins.first().copied();
        let mut rest = pins.into_iter().peekable();
        let ids: Vec<u64> = self.proxies.iter().map(ReadTxn::id).collect();
        let mut is_needed = ids.windows(2).map(|pair| {
            while rest.next_if(|pin| *pin < pair[0]).is_some() {}
            rest.peek().is_some_and(|pin| *pin < pair[1])
        });
        // There is one more proxy than pairs: the newest, which stays.
        self.proxies.retain(|_| is_needed.next().unwrap_or(true));
        self.enough = (2 * self.proxies.len() + FEW_PROXIES).min(MOST_PROXIES as usize / 2);
        self.released_at = self.env.used();
        self.arrays.release(oldest, self.readers.values().map(|pins| &pins.words));
    }

    /// Whether something is kept for those who read that is out of date.
    pub fn keeps_old(&self) -> bool {
        self.proxies.len() > 1 || self.arrays.has_dead()
    }

    /// Bytes of arrays that no row has any more, and that somebody looks at.
    pub fn dead_bytes(&self) -> u64 {
        self.arrays.dead_bytes()
    }

    /// Who reads from a transaction that was followed by another one long ago, as long as it has been seen to do so. What
    /// is read from the newest costs nothing, however long that takes.
    pub fn overdue(&mut self, now: Instant, limit: Duration) -> Vec<(ReaderId, Duration)> {
        let newest = self.proxies.back().map_or(0, ReadTxn::id);
        let mut overdue = Vec::new();
        for (id, Pins { words, behind, .. }) in &mut self.readers {
            let pins: Vec<u64> = pinned(words).collect();
            behind.resize(pins.len(), None);
            for (pin, behind) in pins.into_iter().zip(behind.iter_mut()) {
                *behind = match *behind {
                    _ if pin == 0 || pin >= newest => None,
                    Some((before, since)) if before == pin => Some((pin, since)),
                    _ => Some((pin, now)),
                };
            }
            let longest = behind.iter().flatten().map(|(_, since)| now.saturating_duration_since(*since)).max();
            overdue.extend(longest.filter(|longest| *longest >= limit).map(|longest| (*id, longest)));
        }
        overdue
    }

    /// How many transactions are kept for those who read.
    pub fn kept(&mut self) -> usize {
        self.release();
        self.proxies.len()
    }
}

/// The pins on a page, 0 where there is none. Whoever writes the page may write anything.
fn pinned(page: &SharedWords) -> impl Iterator<Item = u64> + '_ {
    let used = (page.word(USED).load(Ordering::SeqCst) as usize).min(PLACES);
    (0..used).map(|index| page.word(place(index)).load(Ordering::SeqCst))
}

/// A transaction that changes rows.
pub struct Write<'store> {
    txn: WriteTxn<'store>,
    arrays: &'store mut Arrays,
    /// Extents that come with it.
    added: Vec<Extent>,
    /// Extents that go with it.
    gone: Vec<Extent>,
}

impl Write<'_> {
    /// The number of this transaction: larger than that of any before.
    pub fn version(&self) -> u64 {
        self.txn.id()
    }

    /// The value under a key, changes of this transaction included.
    ///
    /// # Errors
    /// [`crate::Error::Damaged`].
    pub fn get(&self, key: &[u8]) -> Result<Option<&[u8]>> {
        self.txn.get(key)
    }

    /// The rows whose keys begin so, in order.
    ///
    /// # Errors
    /// [`crate::Error::Damaged`].
    pub fn rows(&self, prefix: &[u8]) -> Result<Rows<'_>> {
        Ok(Rows::new(self.txn.cursor()?, prefix))
    }

    /// Puts a value under a key, whatever was there.
    ///
    /// # Errors
    /// [`crate::Error::Full`].
    pub fn put(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        self.txn.put(key, value)
    }

    /// Removes a key; false if it was not there.
    ///
    /// # Errors
    /// [`crate::Error::Full`]: a removal may need pages, too.
    pub fn delete(&mut self, key: &[u8]) -> Result<bool> {
        self.txn.delete(key)
    }

    /// Bytes of arrays that go with this transaction.
    pub fn gone_bytes(&self) -> u64 {
        self.gone.iter().map(|extent| arrays::pages(extent.length)).sum()
    }

    /// Copies a piece of another file to where readers can map it; a row is to say where.
    ///
    /// # Errors
    /// [`crate::Error::Full`]; [`crate::Error::System`]: there is no such piece.
    pub fn add_array(&mut self, from: &File, piece: Extent) -> Result<Extent> {
        let extent = self.arrays.add(from, piece)?;
        self.added.push(extent);
        self.put(&row::of_extent(extent.offset), &extent.length.to_le_bytes())?;
        Ok(extent)
    }

    /// No row has this any more.
    ///
    /// # Errors
    /// [`crate::Error::Full`]: a removal may need pages, too.
    pub fn drop_array(&mut self, extent: Extent) -> Result<()> {
        if self.delete(&row::of_extent(extent.offset))? {
            self.gone.push(extent);
        }
        Ok(())
    }
}
