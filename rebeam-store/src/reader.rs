//! Reading: what an actor's process has of the tables.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{Ordering, fence};
use std::sync::{Arc, Mutex, PoisonError};

use rebeam_protocol::table::{Extent, READING};
use rebeam_sys::memory::{SharedWords, WordsOfOthers};

use crate::arrays::{Array, Held};
use crate::fork::is_forked;
use crate::mdb::{Cursor, Env, Item, Mode, ReadTxn, To, path_of};
use crate::pins::{ANNOUNCED, PAGE, PLACES, PUBLISHED, READER, USED, place};
use crate::{Error, Result, key};

/// How often a reader tries to begin before it says that it cannot.
const MOST_TRIES: u32 = 1_000_000;

/// What a process needs to read.
#[derive(Debug)]
pub struct Descriptors {
    /// The file of the rows, to be read only.
    pub data: OwnedFd,
    /// The file of the arrays, to be read only.
    pub arrays: OwnedFd,
    /// The store's page.
    pub page: OwnedFd,
    /// The pages for this process's pins and holds.
    pub pins: OwnedFd,
}

impl Descriptors {
    /// In their order.
    pub fn into_array(self) -> [OwnedFd; READING] {
        [self.data, self.arrays, self.page, self.pins]
    }

    /// From their order.
    pub fn from_array([data, arrays, page, pins]: [OwnedFd; READING]) -> Self {
        Descriptors { data, arrays, page, pins }
    }
}

/// The tables, as one process reads them. Cheap to clone; every thread may use it.
#[derive(Clone, Debug)]
pub struct Reader(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    // Transactions before their environments: they go in this order.
    idle: Mutex<Idle>,
    previous: Env,
    newest: Env,
    published: WordsOfOthers,
    own: Own,
}

/// What a process keeps from one store to the next.
#[derive(Clone, Debug)]
struct Own {
    pins: Arc<SharedWords>,
    places: Arc<Mutex<Places>>,
    arrays: Arc<Held>,
}

/// What is there for the next snapshots.
#[derive(Debug, Default)]
struct Idle {
    seats: Vec<Seat>,
}

/// Places for pins.
#[derive(Debug, Default)]
struct Places {
    /// Those without a seat, the lowest first.
    free: BinaryHeap<Reverse<usize>>,
    /// How many were ever used.
    used: usize,
}

/// A place for a pin, with transactions that are renewed for each snapshot.
#[derive(Debug)]
struct Seat {
    index: usize,
    newest: ReadTxn,
    previous: Option<ReadTxn>,
}

impl Reader {
    /// Opens what the store gave to this process.
    ///
    /// # Errors
    /// Those of the system: no address space for the map is one.
    pub fn open(descriptors: Descriptors, map_size: usize) -> Result<Self> {
        let Descriptors { data, arrays, page, pins } = descriptors;
        let pins = Arc::new(SharedWords::new(pins, READER)?);
        pins.withhold_from_forks()?;
        let own = Own { pins, places: Arc::default(), arrays: Arc::new(Held::new(arrays)) };
        Self::with(own, &data, &page, map_size)
    }

    /// Opens what the next store gave to this process, which has the same page for pins, and the same file of arrays.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_next(&self, descriptors: &Descriptors, map_size: usize) -> Result<Self> {
        Self::with(self.0.own.clone(), &descriptors.data, &descriptors.page, map_size)
    }

    fn with(own: Own, data: &OwnedFd, page: &OwnedFd, map_size: usize) -> Result<Self> {
        let path = path_of(data);
        let open = |mode| {
            // A meta page may just be written: the file is looked at again.
            let tries = (0..100).map(|_| Env::open(&path, mode, map_size));
            let mut last = Err(Error::Full);
            for opened in tries {
                match opened {
                    Err(Error::Damaged(_)) => last = opened,
                    opened => return opened,
                }
            }
            last
        };
        let shared = Shared {
            idle: Mutex::default(),
            previous: open(Mode::ReadPrevious)?,
            newest: open(Mode::Read)?,
            published: WordsOfOthers::new(page, PAGE)?,
            own,
        };
        Ok(Reader(Arc::new(shared)))
    }

    /// The rows as they are now, whatever is written meanwhile. While it lives the file may grow, so it should be short.
    ///
    /// # Errors
    /// [`Error::System`] if this process has too many snapshots, or the store writes in no sensible way.
    pub fn snapshot(&self) -> Result<Snapshot> {
        let mut seat = self.take_seat()?;
        match self.0.begin(&mut seat) {
            Ok(is_previous) => Ok(Snapshot { reader: self.clone(), seat: Some(seat), is_previous }),
            Err(error) => {
                self.0.leave(seat);
                Err(error)
            }
        }
    }

    /// All arrays that this process looks at.
    pub fn held_arrays(&self) -> Vec<Arc<Array>> {
        self.0.own.arrays.all()
    }

    fn take_seat(&self) -> Result<Seat> {
        if let Some(seat) = self.0.idle().seats.pop() {
            return Ok(seat);
        }
        let newest = self.0.newest.read()?;
        newest.reset();
        let mut places = self.0.own.places();
        let too_many = || Error::System(io::Error::other(format!("this process has {PLACES} snapshots open already")));
        let index = match places.free.pop() {
            Some(Reverse(index)) => index,
            None if places.used < PLACES => {
                places.used += 1;
                places.used - 1
            }
            None => return Err(too_many()),
        };
        self.0.own.pins.word(USED).fetch_max(places.used as u64, Ordering::SeqCst);
        Ok(Seat { index, newest, previous: None })
    }
}

impl Own {
    fn places(&self) -> std::sync::MutexGuard<'_, Places> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // The reader from the next store has its places.
        if !is_forked() {
            let seats = std::mem::take(&mut self.idle().seats);
            self.own.places().free.extend(seats.iter().map(|seat| Reverse(seat.index)));
        }
    }
}

impl Shared {
    fn idle(&self) -> std::sync::MutexGuard<'_, Idle> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn leave(&self, seat: Seat) {
        self.own.pins.word(place(seat.index)).store(0, Ordering::Release);
        self.idle().seats.push(seat);
    }

    /// The protocol of [`crate::pins`]; true if it is the transaction before the newest that is read.
    fn begin(&self, seat: &mut Seat) -> Result<bool> {
        let pin = self.own.pins.word(place(seat.index));
        let mut last = None;
        for turn in 0..MOST_TRIES {
            let at = self.published.load(PUBLISHED, Ordering::SeqCst);
            pin.store(at, Ordering::SeqCst);
            fence(Ordering::SeqCst);
            match seat.newest.renew() {
                Ok(()) => {}
                Err(error) => {
                    // Half of a meta page was seen.
                    last = Some(error);
                    continue;
                }
            }
            let is_whole = || {
                fence(Ordering::SeqCst);
                self.published.load(ANNOUNCED, Ordering::SeqCst) <= at + 1
            };
            let is_ahead = match seat.newest.id() {
                id if id == at => {
                    if is_whole() {
                        return Ok(false);
                    }
                    false
                }
                id => id == at + 1,
            };
            seat.newest.reset();
            // Committed, and not published yet.
            if is_ahead && self.published.load(PUBLISHED, Ordering::SeqCst) == at && is_whole() {
                let previous = match &seat.previous {
                    Some(previous) => previous.renew().map(|()| previous),
                    None => match self.previous.read() {
                        Ok(txn) => Ok(&*seat.previous.insert(txn)),
                        Err(error) => Err(error),
                    },
                };
                match previous {
                    Ok(previous) if previous.id() == at && is_whole() => return Ok(true),
                    Ok(previous) => previous.reset(),
                    Err(error) => last = Some(error),
                }
            }
            if turn > 100 {
                std::thread::yield_now();
            }
        }
        Err(last.unwrap_or_else(|| Error::System(io::Error::other("no snapshot of the tables is available"))))
    }
}

/// The rows of one moment.
#[derive(Debug)]
pub struct Snapshot {
    reader: Reader,
    seat: Option<Seat>,
    is_previous: bool,
}

impl Snapshot {
    fn txn(&self) -> Result<&ReadTxn> {
        let seat = self.seat.as_ref();
        let txn = seat.and_then(|seat| if self.is_previous { seat.previous.as_ref() } else { Some(&seat.newest) });
        txn.ok_or_else(|| Error::of(libc::EINVAL))
    }

    /// The number of the transaction that was the last.
    pub fn version(&self) -> u64 {
        self.txn().map_or(0, ReadTxn::id)
    }

    /// The value under a key.
    ///
    /// # Errors
    /// [`Error::Damaged`].
    pub fn get(&self, key: &[u8]) -> Result<Option<&[u8]>> {
        self.txn()?.get(key)
    }

    /// The rows whose keys begin so, in order.
    ///
    /// # Errors
    /// [`Error::Damaged`].
    pub fn rows(&self, prefix: &[u8]) -> Result<Rows<'_>> {
        Ok(Rows::new(self.txn()?.cursor()?, prefix))
    }

    /// The large buffers of a value of this snapshot. They may be kept for longer than it.
    ///
    /// # Errors
    /// Those of the system: no address space is one.
    pub fn array(&self, extent: Extent) -> Result<Arc<Array>> {
        let own = &self.reader.0.own;
        own.arrays.map(&own.pins, extent)
    }
}

impl Drop for Snapshot {
    fn drop(&mut self) {
        if is_forked() {
            return std::mem::forget(self.seat.take());
        }
        if let Some(seat) = self.seat.take() {
            seat.newest.reset();
            if let Some(previous) = &seat.previous {
                previous.reset();
            }
            self.reader.0.leave(seat);
        }
    }
}

/// Rows in the order of their keys, from either end.
#[derive(Debug)]
pub struct Rows<'a> {
    cursor: Cursor<'a>,
    prefix: Vec<u8>,
    /// The next one lies beyond this key, if there is one.
    after: Option<Vec<u8>>,
    has_begun: bool,
}

impl<'a> Rows<'a> {
    pub(crate) fn new(cursor: Cursor<'a>, prefix: &[u8]) -> Self {
        Rows { cursor, prefix: prefix.to_vec(), after: None, has_begun: false }
    }

    /// Goes on with the first row whose key is not smaller than this.
    pub fn seek(&mut self, key: &[u8]) {
        self.after = Some(key.to_vec());
        self.has_begun = false;
    }

    /// The next row.
    ///
    /// # Errors
    /// [`Error::Damaged`].
    pub fn next_row(&mut self) -> Result<Option<Item<'a>>> {
        let first = self.after.take();
        let from = first.as_deref().filter(|from| *from > &self.prefix[..]).unwrap_or(&self.prefix);
        let to = if self.has_begun {
            To::Next
        } else if from.is_empty() {
            To::First
        } else {
            To::AtLeast(from)
        };
        let item = self.cursor.go(to)?;
        self.has_begun = true;
        Ok(item.filter(|(key, _)| key.starts_with(&self.prefix)))
    }

    /// The row before; before anything else, the last one.
    ///
    /// # Errors
    /// [`Error::Damaged`].
    pub fn previous_row(&mut self) -> Result<Option<Item<'a>>> {
        let item = if self.has_begun {
            self.cursor.go(To::Previous)?
        } else {
            self.has_begun = true;
            // One beyond all that begin so, and back.
            let beyond = self.after.take().or_else(|| key::successor(&self.prefix));
            match beyond.map(|beyond| self.cursor.go(To::AtLeast(&beyond))).transpose()?.flatten() {
                Some(_) => self.cursor.go(To::Previous)?,
                None => self.cursor.go(To::Last)?,
            }
        };
        Ok(item.filter(|(key, _)| key.starts_with(&self.prefix)))
    }
}
