//! Tables: requests of actors go on to the store, its answers back; and the store is told which tables there are.
//!
//! Nothing here looks into an operation. Whose a table is the core knows; whether somebody may write to it, the store decides.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rebeam_core::shell::Frame;
use rebeam_core::{EntryChange, Event};
use rebeam_protocol::frame::{HEAD_ROOM, MAX_FRAME};
use rebeam_protocol::id::{ProcessId, RequestId};
use rebeam_protocol::outside::{Trouble, TroubleKind};
use rebeam_protocol::page;
use rebeam_protocol::process::ProcessAnswer;
use rebeam_protocol::table::{FromStore, RowWatch, TableAnswer, TableError, TableId, TableRequest, ToStore};
use rebeam_protocol::worker::ToWorker;
use rebeam_sys::frames::WriteQueue;
use rustc_hash::FxBuildHasher;

use super::worker::Writing;
use super::{Engine, MOST_UNREAD, Node};
use crate::shell::descriptors;
use crate::shell::reaper::Reaped;
use crate::shell::room;
use crate::shell::service::{self, Frames, Next, Process, Service};
use crate::shell::store;
use crate::view::text::duration;

/// How many requests one process may have that are not answered: many times what threads and tasks need.
const MOST_ASKED: usize = 100_000;

/// How many requests that have brought arrays may be open: each has a descriptor until the store has it.
fn most_bringing() -> usize {
    descriptors::clients(MOST_BRINGING)
}

const MOST_BRINGING: usize = 1000;

/// How long the store may take for an answer, and how often that is looked at while it says nothing.
const LONGEST_WAIT: Duration = Duration::from_secs(30);
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// How long a process may keep a snapshot though it was told to end it: the file grows meanwhile.
const MUCH_TOO_LONG: Duration = Duration::from_secs(30);

/// What the engine knows of the store.
pub(super) struct Tables {
    pub(super) service: Service,
    out: WriteQueue,
    writing: Writing,
    /// Who waits for what, by the number that the store was told.
    open: BTreeMap<u64, Open>,
    last: u64,
    /// How many of them each process waits for.
    asked: HashMap<ProcessId, usize, FxBuildHasher>,
    /// Processes that read, or are about to.
    readers: HashMap<ProcessId, Reader, FxBuildHasher>,
    /// Those of them whose user was told that they keep snapshots.
    told: HashSet<ProcessId>,
    /// Rows and arrays, which the next store would go on with.
    files: Option<store::Files>,
    /// How many of the open requests have brought arrays.
    bringing: usize,
    /// How many stores have ended.
    ended: u64,
    /// Why there is no store, and will be none.
    given_up: Option<String>,
}

/// A request that the store has not answered.
#[derive(Clone, Copy)]
struct Open {
    process: ProcessId,
    request: RequestId,
    /// Whether it may be asked of the next store, too: it changes nothing.
    is_attach: bool,
    /// Whether it has brought arrays.
    has_arrays: bool,
    /// The watch that begins with it.
    watch: Option<u64>,
    /// Since when; `None`: it may wait for others.
    since: Option<Instant>,
}

impl Open {
    /// A request that is made now.
    fn new(process: ProcessId, request: RequestId) -> Self {
        Open { process, request, is_attach: false, has_arrays: false, watch: None, since: Some(Instant::now()) }
    }
}

/// What a process reads with.
struct Reader {
    /// Our number for it.
    number: u64,
    /// Where it says what it reads and holds, if it has been told: the next store is to know that.
    pins: Option<Arc<OwnedFd>>,
}

impl Default for Tables {
    fn default() -> Self {
        Tables {
            service: store::service(),
            out: WriteQueue::default(),
            writing: Writing::Idle,
            open: BTreeMap::new(),
            last: 0,
            asked: HashMap::default(),
            readers: HashMap::default(),
            told: HashSet::new(),
            files: None,
            bringing: 0,
            ended: 0,
            given_up: None,
        }
    }
}

/// What the node knows of its tables.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TableFigures {
    /// How many there are.
    pub(crate) count: usize,
    /// Bytes of memory that their rows take.
    pub(crate) bytes: u64,
    /// The process that keeps them, if there is one.
    pub(crate) store: Option<i32>,
    /// How many of those have ended.
    pub(crate) ended: u64,
}

impl Tables {
    /// Of this many tables.
    pub(super) fn figures(&self, count: usize) -> TableFigures {
        // They are in memory, but for their holes.
        let files = self.files.iter().flatten().filter_map(|file| nix::sys::stat::fstat(file).ok());
        let bytes = files.map(|file| file.st_blocks as u64 * 512).sum();
        TableFigures { count, bytes, store: self.service.os_pid(), ended: self.ended }
    }

    /// How many processes read; of each we have a descriptor.
    pub(super) fn readers(&self) -> usize {
        self.readers.len()
    }

    /// Why the tables cannot be used, and will not be.
    pub(super) fn trouble(&self) -> Option<Trouble> {
        let why = self.given_up.as_ref()?;
        let detail = format!("the process that keeps the rows is given up: {why}");
        Some(Trouble { actor: "tables".into(), kind: TroubleKind::Parked, detail })
    }

    /// A request is to be answered: the number for the store's answer.
    fn open(&mut self, open: Open) -> u64 {
        self.last += 1;
        *self.asked.entry(open.process).or_default() += 1;
        self.open.insert(self.last, open);
        self.last
    }

    /// A request is answered: which it was.
    fn answered(&mut self, tag: u64) -> Option<Open> {
        let open = self.open.remove(&tag)?;
        self.bringing -= usize::from(open.has_arrays);
        if let Some(asked) = self.asked.get_mut(&open.process) {
            *asked = asked.saturating_sub(1);
        }
        Some(open)
    }
}

impl Node {
    /// Reads what a store says, until it says no more.
    async fn hear_store(self, number: u64, mut frames: Frames) {
        loop {
            let next = tokio::time::timeout(LOOK_AGAIN, frames.next::<FromStore>()).await;
            let (message, payload) = match next {
                Ok(Ok(Some(frame))) => frame,
                // The end itself comes from the reaper.
                Ok(Ok(None)) => return,
                Ok(Err(_)) => return self.0.borrow().tables.service.kill(),
                Err(_) => {
                    self.0.borrow().look_after_store();
                    continue;
                }
            };
            // Those of the next frame may be there, too.
            let count = message.descriptors();
            let descriptors = (0..count).filter_map(|_| frames.take_descriptor()).map(Arc::new).collect();
            let is_current = self.with(|engine| {
                let is_current = engine.tables.ended == number;
                if is_current {
                    engine.store_said(message, payload, descriptors);
                }
                is_current
            });
            if !is_current {
                return;
            }
        }
    }

    async fn write_store(self, number: u64) {
        let room = match self.0.borrow().tables.service.process().map(Process::room) {
            Some(Ok(room)) => room,
            Some(Err(_)) | None => return self.0.borrow().tables.service.kill(),
        };
        loop {
            let Ok(mut guard) = room.writable().await else { return };
            let mut engine = self.0.borrow_mut();
            if engine.tables.ended != number || engine.flush_tables() {
                return;
            }
            guard.clear_ready();
        }
    }
}

impl Engine {
    // ---- what the store is told -------------------------------------------------------------------------------------

    /// An actor wants something of the store; the memory with the arrays of an operation has come with that.
    pub(super) fn table_asked(
        &mut self,
        process: ProcessId,
        request: RequestId,
        body: TableRequest,
        payload: &Bytes,
        arrays: Option<OwnedFd>,
    ) {
        if let TableRequest::Seen { watch } = body {
            if self.tables.out.bytes() > MOST_UNREAD {
                let what = "messages of watches that nobody has told it of".to_owned();
                return self.tell(Event::HoldsTooMuch { process, what });
            }
            return self.tell_store(&ToStore::Seen { watch, by: process.pid }, &Bytes::new());
        }
        self.start_store();
        if let Some(why) = &self.tables.given_up {
            let error = TableError::Unavailable(why.clone());
            return self.answer_table(process, request, TableAnswer::Failed(error), Bytes::new());
        }
        let brings_much = arrays.is_some() && self.tables.bringing >= most_bringing();
        if brings_much {
            let text = "many arrays are on their way to the tables, and descriptors are few";
            let error = TableError::Unavailable(text.into());
            return self.answer_table(process, request, TableAnswer::Failed(error), Bytes::new());
        }
        if !self.may_ask_store(process, request) {
            return;
        }
        let has_arrays = arrays.is_some();
        self.tables.bringing += usize::from(has_arrays);
        let open = Open { is_attach: body == TableRequest::Attach, has_arrays, ..Open::new(process, request) };
        let tag = match body {
            TableRequest::Claim(_) => self.tables.open(Open { since: None, ..open }),
            _ => self.tables.open(open),
        };
        match body {
            TableRequest::Seen { .. } => {}
            TableRequest::Attach => {
                let reader = self.tables.readers.entry(process).or_insert(Reader { number: tag, pins: None });
                let message = ToStore::Attach { tag, reader: reader.number };
                self.tell_store(&message, &Bytes::new());
            }
            TableRequest::Operate { id, .. } => {
                let message = ToStore::Operate { tag, id, by: process.pid, has_arrays };
                self.tell_store_with(&message, payload, arrays.map(Arc::new).into_iter().collect());
            }
            TableRequest::Claim(id) => {
                self.tell_store(&ToStore::Claim { tag, id, by: (process, request), is_release: false }, payload);
            }
            TableRequest::Release { id, claim } => {
                self.tell_store(&ToStore::Claim { tag, id, by: (process, claim), is_release: true }, payload);
            }
        }
    }

    /// An actor wants to hear of rows that change.
    pub(super) fn watch_in_store(&mut self, from: Option<(ProcessId, RequestId)>, rows: RowWatch) {
        let Some((process, request)) = from else { return };
        if let Some(why) = &self.tables.given_up {
            let error = TableError::Unavailable(why.clone());
            self.answer_table(process, request, TableAnswer::Failed(error), Bytes::new());
            return self.tell(Event::RowWatchFailed { watch: rows.watch });
        }
        if !self.may_ask_store(process, request) {
            return self.tell(Event::RowWatchFailed { watch: rows.watch });
        }
        let tag = self.tables.open(Open { watch: Some(rows.watch), ..Open::new(process, request) });
        match self.tables.service.process().is_some() {
            true => self.tell_store(&ToStore::Watch { tag: Some(tag), rows }, &Bytes::new()),
            // It is told of all watches.
            false => self.start_store(),
        }
    }

    /// Whether a process may ask the store for one more thing now; else it is told, or ended.
    fn may_ask_store(&mut self, process: ProcessId, request: RequestId) -> bool {
        if self.tables.out.bytes() > MOST_UNREAD {
            let error = TableError::Unavailable("too much waits to be written already".into());
            self.answer_table(process, request, TableAnswer::Failed(error), Bytes::new());
            return false;
        }
        if self.tables.asked.get(&process).is_some_and(|asked| *asked >= MOST_ASKED) {
            let what = format!("{MOST_ASKED} requests to tables without an answer");
            self.tell(Event::HoldsTooMuch { process, what });
            return false;
        }
        true
    }

    pub(super) fn unwatch_in_store(&mut self, watch: u64, heir: Option<u64>, has_missed: bool) {
        self.tell_store(&ToStore::Unwatch { watch, heir, has_missed }, &Bytes::new());
    }

    /// A table has come, has another owner, or is gone.
    pub(super) fn note_table(&mut self, change: &EntryChange) {
        let Some((id, there)) = change.table() else { return };
        self.start_store();
        self.tell_store(&about(id, there), &Bytes::new());
    }

    /// A process is dead: what it has read needs no protection any more.
    pub(super) fn forget_reader(&mut self, process: ProcessId) {
        self.tables.told.remove(&process);
        self.tables.asked.remove(&process);
        if let Some(Reader { number, .. }) = self.tables.readers.remove(&process) {
            self.tell_store(&ToStore::Detach { reader: number }, &Bytes::new());
        }
        self.tell_store(&ToStore::Ended { by: process }, &Bytes::new());
    }

    fn tell_store(&mut self, message: &ToStore, payload: &Bytes) {
        self.tell_store_with(message, payload, Vec::new());
    }

    fn tell_store_with(&mut self, message: &ToStore, payload: &Bytes, descriptors: Vec<Arc<OwnedFd>>) {
        if self.tables.service.process().is_none() {
            return;
        }
        // What a worker may send is bounded where it is read.
        let limit = self.setup.max_frame.max(MAX_FRAME) + HEAD_ROOM;
        let _ = match descriptors.is_empty() {
            true => self.tables.out.push(message, payload, limit),
            false => self.tables.out.push_with(message, payload, limit, descriptors),
        };
        if self.tables.writing == Writing::Idle {
            self.tables.writing = Writing::Queued;
        }
    }

    /// Writes what was told the store in this turn.
    pub(super) fn write_to_store(&mut self) {
        if self.tables.writing != Writing::Queued {
            return;
        }
        if !self.flush_tables() {
            let Some(node) = self.me.upgrade().map(Node) else { return };
            tokio::task::spawn_local(node.write_store(self.tables.ended));
        }
    }

    /// Writes what the store's socket takes; true if nothing is left.
    fn flush_tables(&mut self) -> bool {
        let Tables { service, out, writing, .. } = &mut self.tables;
        // A broken socket is a dead store: the reaper tells.
        let is_done = service.process().is_none_or(|process| process.flush(out).unwrap_or(true));
        *writing = if is_done { Writing::Idle } else { Writing::Blocked };
        is_done
    }

    // ---- what it says -------------------------------------------------------------------------------------------------

    fn store_said(&mut self, message: FromStore, payload: Bytes, descriptors: Vec<Arc<OwnedFd>>) {
        match message {
            FromStore::Ready => {
                self.tables.service.is_up(Instant::now());
                match descriptors.into_iter().filter_map(Arc::into_inner).collect::<Vec<_>>().try_into() {
                    Ok(files) => self.tables.files = Some(files),
                    // The next one would begin without rows. They got lost for want of descriptors.
                    Err(_) => return self.tables.service.kill(),
                }
                self.ledger.set_stores(self.tables.ended);
                self.tell_store(&ToStore::IsCurrent, &Bytes::new());
            }
            FromStore::Failed(why) => self.tables.given_up = Some(why),
            FromStore::Overdue { reader, ms } => self.snapshot_overdue(reader, Duration::from_millis(ms)),
            FromStore::Attached { tag, map_size } => {
                let waiting = self.tables.answered(tag);
                let waiting = waiting.filter(|open| self.workers.contains_key(&open.process));
                // One that is dead was detached.
                let Some(Open { process, request, .. }) = waiting else { return };
                if let Some(reader) = self.tables.readers.get_mut(&process) {
                    reader.pins = descriptors.last().cloned();
                }
                let answer = TableAnswer::Attached { map_size, store: self.tables.ended };
                let message = ToWorker::Answer { request, answer: ProcessAnswer::Table(answer) };
                self.push_with(process, &message, descriptors);
            }
            FromStore::Changed { watch, is_last } => {
                self.tell(Event::RowsChanged { watch, changes: payload, is_last });
            }
            FromStore::Operated { tag, failed } => {
                let Some(Open { process, request, watch, .. }) = self.tables.answered(tag) else { return };
                if let (Some(watch), Some(_)) = (watch, &failed) {
                    self.tell(Event::RowWatchFailed { watch });
                }
                let done = watch.map_or(TableAnswer::Done, TableAnswer::Watching);
                let answer = failed.map_or(done, TableAnswer::Failed);
                self.answer_table(process, request, answer, payload);
            }
        }
    }

    /// A process keeps a snapshot for long: it is told to end it; if it does not, being stopped or busy, it ends itself.
    fn snapshot_overdue(&mut self, reader: u64, time: Duration) {
        let found = self.tables.readers.iter().find(|(_, known)| known.number == reader);
        let Some(process) = found.map(|(process, _)| *process) else { return };
        if time >= MUCH_TOO_LONG {
            let what = format!("a snapshot of tables that was open for {} s", time.as_secs());
            return self.tell(Event::HoldsTooMuch { process, what });
        }
        if self.tables.told.insert(process)
            && let Some(worker) = self.workers.get(&process)
        {
            let time = duration(time);
            self.printer.warn(&format!("`{}` has kept a snapshot of the tables for {time}: it is ended", worker.label));
        }
        self.push(process, Frame { attention: page::LOOK, ..Frame::of(ToWorker::EndSnapshots) });
    }

    /// A store that is stopped, or hangs, keeps actors waiting: another one is to go on with its rows.
    fn look_after_store(&self) {
        let waits = |open: &Open| open.since.is_some_and(|since| since.elapsed() >= LONGEST_WAIT);
        if self.tables.open.values().any(waits) {
            let time = duration(LONGEST_WAIT);
            self.printer.warn(&format!("the store of tables has not answered for {time}: it is killed"));
            self.tables.service.kill();
        }
    }

    fn answer_table(&mut self, process: ProcessId, request: RequestId, answer: TableAnswer, payload: Bytes) {
        let message = ToWorker::Answer { request, answer: ProcessAnswer::Table(answer) };
        self.push(process, Frame { payload, ..Frame::of(message) });
    }

    // ---- its life -------------------------------------------------------------------------------------------------------

    /// Starts the store if there is none and may be one.
    fn start_store(&mut self) {
        if self.tables.service.process().is_some() || self.tables.given_up.is_some() || self.life.has_ended {
            return;
        }
        let started = store::start(
            &self.setup.python,
            &self.setup.node_dir,
            room::for_tables(),
            self.setup.max_frame,
            self.tables.files.as_ref(),
        );
        let listening = started.and_then(|process| {
            let frames = process.frames_up_to(u32::MAX as usize);
            service::print_output(&process, "tables", &self.printer, None);
            self.tables.service.started(process);
            frames
        });
        match listening {
            Ok(frames) => {
                let Some(node) = self.me.upgrade().map(Node) else { return };
                tokio::task::spawn_local(node.hear_store(self.tables.ended, frames));
            }
            Err(error) => {
                self.tables.service.retire();
                self.tables.given_up = Some(format!("it could not be started: {error}"));
                return;
            }
        }
        for change in self.core.ledger() {
            if let Some((id, there)) = change.table() {
                self.tell_store(&about(id, there), &Bytes::new());
            }
        }
        let readers = self.tables.readers.values().filter_map(|reader| Some((reader.number, reader.pins.clone()?)));
        for (reader, pins) in readers.collect::<Vec<_>>() {
            self.tell_store_with(&ToStore::Adopt { reader }, &Bytes::new(), vec![pins]);
        }
        self.tell_store(&ToStore::ThatIsAll, &Bytes::new());
        let begins: HashMap<u64, u64, FxBuildHasher> =
            self.tables.open.iter().filter_map(|(tag, open)| Some((open.watch?, *tag))).collect();
        for rows in self.core.row_watches() {
            // One that has not begun has missed nothing.
            let tag = begins.get(&rows.watch).copied();
            self.tell_store(&ToStore::Watch { tag, rows }, &Bytes::new());
        }
    }

    pub(super) fn store_died(&mut self, reaped: Reaped) {
        let Some(end) = self.tables.service.ended(reaped, Instant::now()) else { return };
        self.tables.ended += 1;
        self.tables.out = WriteQueue::default();
        self.tables.writing = Writing::Idle;
        self.tables.asked.clear();
        if self.life.has_ended {
            return;
        }
        if self.tables.given_up.is_none() {
            self.printer.warn(&end.to_string());
        }
        if end.next == Next::GivesUp {
            self.tables.given_up.get_or_insert_with(|| "it has died too often".into());
        }
        self.tables.bringing = 0;
        // The next store is told of watches that begin, and answers them.
        let is_given_up = self.tables.given_up.is_some();
        let (begin, ended): (BTreeMap<u64, Open>, BTreeMap<u64, Open>) = std::mem::take(&mut self.tables.open)
            .into_iter()
            .partition(|(_, open)| open.watch.is_some() && !is_given_up);
        self.tables.open = begin;
        self.start_store();
        if is_given_up {
            // Who watches is not to wait for what never comes.
            for rows in self.core.row_watches() {
                self.tell(Event::RowsChanged { watch: rows.watch, changes: Bytes::new(), is_last: true });
            }
        }
        for Open { process, request, is_attach, .. } in ended.into_values() {
            let error = match &self.tables.given_up {
                None if is_attach => {
                    self.table_asked(process, request, TableRequest::Attach, &Bytes::new(), None);
                    continue;
                }
                None => TableError::Restarted,
                Some(why) => TableError::Unavailable(why.clone()),
            };
            self.answer_table(process, request, TableAnswer::Failed(error), Bytes::new());
        }
    }
}

fn about(id: TableId, there: Option<(rebeam_protocol::id::Pid, rebeam_protocol::table::Table)>) -> ToStore {
    match there {
        Some((owner, table)) => ToStore::Table { id, owner, table },
        None => ToStore::Gone { id },
    }
}
