//! The store: the process that keeps the rows of all tables, and alone writes them.
//!
//! It does what the supervisor passes on to it, one turn after the other: whatever has come is read, operations that follow on
//! one another are carried out in one transaction, and the answers go out together. Only rows of tables that are gone are
//! removed between turns. It must not know what an actor is, nor Python.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rebeam_protocol::frame::{HEAD_ROOM, MAX_FRAME};
use rebeam_protocol::id::Pid;
use rebeam_protocol::table::{FromStore, TableError, TableId, ToStore};
use rebeam_store::{Answer, ReaderId, Request, Store, Tables, Told};
use rebeam_sys::clock::monotonic_ms;
use rebeam_sys::frames::{FrameReader, Read, WriteQueue};
use rebeam_sys::process::tie_to;
use rebeam_sys::socket;

/// The first descriptor that the supervisor starts this process with.
const FIRST: i32 = 3;

/// How often it is looked for snapshots that are open for long, and from when on that is reported.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
const TOO_LONG: Duration = Duration::from_secs(10);

/// Address space for the rows: twice what they may take, since a page is seldom full.
fn map_size(most_bytes: u64) -> usize {
    let most = usize::try_from(most_bytes).unwrap_or(usize::MAX / 4).min(1 << 42);
    (2 * most + (64 << 20)).next_multiple_of(1 << 20)
}

/// Serves until the supervisor is gone.
///
/// # Errors
/// What went wrong, in words.
pub(crate) fn serve(mut args: impl Iterator<Item = OsString>) -> Result<(), String> {
    let (sort, directory) = (args.next(), args.next());
    let mut number = || args.next()?.to_str()?.parse::<u64>().ok();
    let (Some(sort), Some(directory), Some(most_bytes), Some(most_answer)) = (sort, directory, number(), number())
    else {
        return Err("this program is started by `rebeam`; run `rebeam --help`".into());
    };
    let _ = nix::sys::prctl::set_name(c"rebeam-store");
    let is_restored = sort == "restored";
    // SAFETY: the supervisor started this process with these descriptors for this purpose.
    let mut fds = (FIRST..).map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
    let before = if is_restored { fds.next().zip(fds.next()) } else { None };
    let (Some(control), Some(lifeline)) = (fds.next(), fds.next()) else { return Ok(()) };
    tie_to(&lifeline).map_err(|error| error.to_string())?;
    let directory = PathBuf::from(directory);
    let size = map_size(most_bytes);
    let store = match &before {
        Some((data, arrays)) => {
            arrays.try_clone().map_err(Into::into).and_then(|arrays| Store::restore(data, arrays, &directory, size))
        }
        None => Store::create(&directory, size),
    };
    drop(before);
    let opened = store.and_then(|store| {
        let files = store.files()?;
        Ok((Tables::new(store, most_bytes, usize::try_from(most_answer).unwrap_or(usize::MAX))?, files))
    });
    let mut server = Server { control, out: WriteQueue::default(), readers: BTreeMap::new() };
    match opened {
        Ok((tables, files)) => {
            server.say_with(&FromStore::Ready, files.map(Arc::new).to_vec());
            server.run(tables).map_err(|error| error.to_string())
        }
        Err(error) => {
            server.say(&FromStore::Failed(error.to_string()), &Bytes::new());
            let _ = server.flush();
            Err(error.to_string())
        }
    }
}

/// An operation that was asked for.
struct Asked {
    id: TableId,
    by: Pid,
    operation: Bytes,
    arrays: Option<OwnedFd>,
}

impl Asked {
    fn request(&self) -> Request<'_> {
        Request { id: self.id, by: self.by, operation: &self.operation, arrays: self.arrays.as_ref() }
    }
}

struct Server {
    control: OwnedFd,
    out: WriteQueue,
    /// By the supervisor's numbers for them.
    readers: BTreeMap<u64, ReaderId>,
}

impl Server {
    fn run(mut self, mut tables: Tables) -> rebeam_store::Result<()> {
        let mut reader = FrameReader::new(u32::MAX as usize);
        let mut looked = Instant::now();
        loop {
            let has_more = tables.clear_up()? | tables.expire(monotonic_ms())?;
            for Told { watch, changes } in tables.take_told() {
                let payload = postcard::to_stdvec(&changes).unwrap_or_default();
                self.say(&FromStore::Changed { watch, is_last: changes.is_gone }, &payload.into());
            }
            self.flush()?;
            if looked.elapsed() >= LOOK_AGAIN {
                looked = Instant::now();
                for (reader, time) in tables.store.overdue(looked, TOO_LONG) {
                    let known = self.readers.iter().find(|(_, known)| **known == reader).map(|(number, _)| *number);
                    let ms = time.as_millis() as u64;
                    let told = known.map(|reader| FromStore::Overdue { reader, ms });
                    told.iter().for_each(|told| self.say(told, &Bytes::new()));
                }
            }
            let wait = match has_more {
                true => Some(Duration::ZERO),
                false => {
                    tables.store.keep_mapped()?;
                    tables.store.release();
                    let expiry =
                        tables.next_expiry()?.map(|at| Duration::from_millis(at.saturating_sub(monotonic_ms())));
                    tables.store.keeps_old().then_some(LOOK_AGAIN).into_iter().chain(expiry).min()
                }
            };
            match socket::wait_readable(self.control.as_fd(), wait) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Ok(false) => continue,
                Ok(true) => {}
                Err(error) => return Err(error.into()),
            }
            match reader.read(self.control.as_fd()) {
                Read::Some { .. } => self.turn(&mut reader, &mut tables)?,
                Read::Nothing => {}
                Read::Closed => return Ok(()),
                Read::Broken => return Err(io::Error::other("the supervisor sent what is no frame").into()),
            }
        }
    }

    /// Does all that has come.
    fn turn(&mut self, reader: &mut FrameReader, tables: &mut Tables) -> rebeam_store::Result<()> {
        let mut operations = Vec::new();
        loop {
            let frame = reader.next_frame::<ToStore>().map_err(io::Error::other)?;
            if let Some((ToStore::Operate { tag, id, by, has_arrays }, payload)) = frame {
                let arrays = if has_arrays { reader.take_descriptor() } else { None };
                operations.push((tag, Asked { id, by, operation: payload, arrays }));
                continue;
            }
            self.operate(tables, &std::mem::take(&mut operations))?;
            let Some((message, payload)) = frame else { return Ok(()) };
            match message {
                ToStore::Table { id, owner, table } => tables.note(id, owner, table),
                ToStore::ThatIsAll => tables.forget_others()?,
                ToStore::IsCurrent => tables.store.is_current(),
                ToStore::Gone { id } => tables.forget(id),
                ToStore::Attach { tag, reader: number } => {
                    let attached = match self.readers.get(&number) {
                        Some(known) => tables.store.descriptors(*known).map(|fds| (*known, fds)),
                        None => tables.store.attach(),
                    };
                    match attached {
                        Ok((reader, fds)) => {
                            self.readers.insert(number, reader);
                            let map_size = tables.store.map_size() as u64;
                            let fds = fds.into_array().map(Arc::new).to_vec();
                            self.say_with(&FromStore::Attached { tag, map_size }, fds);
                            // They are open here until they are out.
                            self.flush()?;
                        }
                        Err(error) => self.answer(vec![(tag, Err(TableError::Unavailable(error.to_string())))]),
                    }
                }
                ToStore::Adopt { reader: number } => {
                    let pins = reader.take_descriptor().ok_or_else(|| io::Error::other("a reader without its pins"))?;
                    self.readers.insert(number, tables.store.adopt(pins)?);
                }
                ToStore::Detach { reader } => {
                    if let Some(reader) = self.readers.remove(&reader) {
                        tables.store.detach(reader);
                    }
                }
                ToStore::Claim { tag, id, by, is_release: false } => {
                    tables.claim(tag, id, by, &payload, monotonic_ms())?;
                }
                ToStore::Claim { tag, id, by, is_release: true } => tables.release(tag, id, by, &payload),
                ToStore::Ended { by } => tables.ended(by),
                ToStore::Watch { tag, rows } => {
                    let watched = tables.watch(rows, tag.is_none());
                    if let Some(tag) = tag {
                        self.answer(vec![(tag, watched.map(|()| Vec::new()))]);
                    }
                }
                ToStore::Seen { watch, by } => tables.seen(watch, by),
                ToStore::Unwatch { watch, heir, has_missed } => tables.unwatch(watch, heir, has_missed),
                ToStore::Operate { .. } => {}
            }
            self.answer(tables.take_answers());
        }
    }

    fn operate(&mut self, tables: &mut Tables, operations: &[(u64, Asked)]) -> rebeam_store::Result<()> {
        if operations.is_empty() {
            return Ok(());
        }
        let requests: Vec<Request<'_>> = operations.iter().map(|(_, asked)| asked.request()).collect();
        let results = tables.operate(&requests, monotonic_ms())?;
        self.answer(operations.iter().map(|(tag, ..)| *tag).zip(results).collect());
        self.answer(tables.take_answers());
        Ok(())
    }

    fn answer(&mut self, answers: Vec<Answer>) {
        for (tag, result) in answers {
            let (failed, outcome) = result.map_or_else(|error| (Some(error), Vec::new()), |outcome| (None, outcome));
            self.say(&FromStore::Operated { tag, failed }, &outcome.into());
        }
    }

    fn say(&mut self, message: &FromStore, payload: &Bytes) {
        let _ = self.out.push(message, payload, u32::MAX as usize);
    }

    fn say_with(&mut self, message: &FromStore, descriptors: Vec<Arc<OwnedFd>>) {
        let _ = self.out.push_with(message, &Bytes::new(), MAX_FRAME + HEAD_ROOM, descriptors);
    }

    fn flush(&mut self) -> io::Result<()> {
        let control: BorrowedFd<'_> = self.control.as_fd();
        while !self.out.flush(control)? {
            socket::wait_writable(control)?;
        }
        Ok(())
    }
}
