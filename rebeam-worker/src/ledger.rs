//! What this process knows of the node's ledger (see [`rebeam_protocol::ledger`]): for each registry that somebody here
//! has looked at, a replica of its entries, brought up to date whenever it is looked at again.
//!
//! Nobody tells this process of changes: it reads on in memory that the supervisor writes. So a look costs no message,
//! and who never looks has no replica. In a test's one process (`crate::testing`) the node tells instead.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use indexmap::IndexMap;
use pyo3::prelude::*;
use rebeam_protocol::id::Pid;
use rebeam_protocol::ledger::{FEW_DESCRIPTORS, Record, RegistryId, SIZE, STATE, STORES, Tail, decode, key_label};
use rebeam_sys::memory::WordsOfOthers;
use rustc_hash::{FxBuildHasher, FxHashMap};

/// The memory, once it is mapped. It stays for the life of the process.
static MEMORY: OnceLock<WordsOfOthers> = OnceLock::new();

/// How many changes the node of this process has told.
static TOLD: AtomicU64 = AtomicU64::new(0);

/// Set in a process that an actor forked: it has no part in the node.
static IS_FORGOTTEN: AtomicBool = AtomicBool::new(false);

static LEDGER: Mutex<Ledger> =
    Mutex::new(Ledger { read: Tail { epoch: 0, length: 0 }, is_told: false, replicas: None, gone: Vec::new() });

/// Something under a key.
pub(crate) struct Entry {
    pub(crate) number: u64,
    pub(crate) holder: Pid,
    pub(crate) value: Box<[u8]>,
    /// The entry as Python has it, if that never changes.
    pub(crate) object: Option<Py<PyAny>>,
}

/// An entry, to be made an object of outside the look.
pub(crate) struct Seen {
    pub(crate) number: u64,
    pub(crate) holder: Pid,
    pub(crate) value: Box<[u8]>,
    pub(crate) object: Option<Py<PyAny>>,
}

type Entries = IndexMap<Box<[u8]>, Vec<Entry>, FxBuildHasher>;

/// One registry, by key.
#[derive(Default)]
pub(crate) struct Replica {
    pub(crate) entries: Entries,
    /// Counts changes, so that an iterator knows that it is out of date.
    pub(crate) generation: u64,
}

#[derive(Default)]
struct Ledger {
    /// Up to where the replicas know it.
    read: Tail,
    /// The node tells of changes, and there is no memory.
    is_told: bool,
    replicas: Option<FxHashMap<RegistryId, Replica>>,
    /// What is known no more. Objects of Python are dropped outside the lock: what that runs may look, too.
    gone: Vec<Entry>,
}

/// Maps the ledger of the node.
pub(crate) fn map(memory: &OwnedFd) -> std::io::Result<()> {
    let _ = MEMORY.set(WordsOfOthers::new(memory, SIZE)?);
    Ok(())
}

/// Whether there is a ledger to look at.
pub(crate) fn is_there() -> bool {
    memory().is_some() || ledger().is_told
}

/// Whether no more memory for large buffers is to be made.
pub(crate) fn descriptors_are_few() -> bool {
    memory().is_some_and(|memory| memory.load(FEW_DESCRIPTORS, Ordering::Relaxed) != 0)
}

/// How many stores of tables have ended.
pub(crate) fn stores() -> u64 {
    memory().map_or(0, |memory| memory.load(STORES, Ordering::Acquire))
}

/// Something that is another whenever an entry has changed.
pub(crate) fn stamp() -> u64 {
    match memory() {
        Some(memory) => memory.load(STATE, Ordering::Acquire),
        None => TOLD.load(Ordering::Acquire),
    }
}

/// A node begins in this process, and tells what it has to say; or has ended.
#[cfg(feature = "testing")]
pub(crate) fn tell_all(is_told: bool) {
    *ledger() = Ledger { is_told, ..Ledger::default() };
    TOLD.fetch_add(1, Ordering::AcqRel);
}

/// In a process that an actor forked: it has no part in the node any more.
pub(crate) fn forget() {
    IS_FORGOTTEN.store(true, Ordering::Release);
    rebeam_store::forget_after_fork();
}

/// The node of this process tells of a change.
#[cfg(feature = "testing")]
pub(crate) fn tell(record: &Record<'_>) {
    let gone = {
        let mut ledger = ledger();
        let mut gone = Vec::new();
        ledger.replicas().entry(record.registry).or_default().note(record, &mut gone);
        gone
    };
    TOLD.fetch_add(1, Ordering::AcqRel);
    drop(gone);
}

/// Looks at a registry as it is now. Nothing of Python's may run meanwhile: it could look, too.
pub(crate) fn look<T>(id: RegistryId, use_it: impl FnOnce(&mut Replica) -> T) -> T {
    let (result, gone) = {
        let mut ledger = ledger();
        ledger.catch_up();
        ledger.learn(id);
        let result = use_it(ledger.replicas().entry(id).or_default());
        (result, std::mem::take(&mut ledger.gone))
    };
    drop(gone);
    result
}

/// How many names are compared with one that nobody has.
const MOST_COMPARED: usize = 10_000;

/// Up to three names that look like one that nobody has, the nearest first.
pub(crate) fn similar_names(name: &str) -> Vec<String> {
    let mut near: Vec<(f64, String)> = look(RegistryId::NAMES, |replica| {
        let names = replica.entries.keys().take(MOST_COMPARED).map(|key| key_label(key));
        let compared = names.map(|other| (strsim::jaro_winkler(name, &other), other));
        compared.filter(|(score, _)| *score > 0.8).collect()
    });
    near.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
    near.into_iter().take(3).map(|(_, name)| name).collect()
}

/// In a process of its own the lock is held only by who has the interpreter, so a fork never copies it locked.
fn ledger() -> MutexGuard<'static, Ledger> {
    LEDGER.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Ledger {
    fn replicas(&mut self) -> &mut FxHashMap<RegistryId, Replica> {
        self.replicas.get_or_insert_default()
    }

    /// Reads what was written since the last time.
    fn catch_up(&mut self) {
        let Some(memory) = memory().filter(|_| !self.is_told) else { return };
        loop {
            let tail = Tail::of(memory.load(STATE, Ordering::Acquire));
            if tail == self.read {
                return;
            }
            let is_new_epoch = tail.epoch != self.read.epoch;
            let from = if is_new_epoch { 0 } else { self.read.length };
            let Some(bytes) = copy(memory, tail, from) else { continue };
            if is_new_epoch {
                self.begin_anew(&bytes);
            } else {
                let Ledger { replicas, gone, .. } = self;
                let replicas = replicas.get_or_insert_default();
                for record in records(&bytes) {
                    if let Some(replica) = replicas.get_mut(&record.registry) {
                        replica.note(&record, gone);
                    }
                }
            }
            self.read = tail;
            return;
        }
    }

    /// Makes all replicas anew. One that is as it was stays as it is, and its iterators with it.
    fn begin_anew(&mut self, bytes: &[u8]) {
        let mut fresh: FxHashMap<RegistryId, Replica> = FxHashMap::default();
        let Ledger { replicas, gone, .. } = self;
        let replicas = replicas.get_or_insert_default();
        for record in records(bytes).filter(|record| replicas.contains_key(&record.registry)) {
            fresh.entry(record.registry).or_default().note(&record, gone);
        }
        for (id, replica) in replicas {
            let fresh = fresh.remove(id).unwrap_or_default();
            if !replica.is_like(&fresh) {
                let old = std::mem::replace(&mut replica.entries, fresh.entries);
                gone.extend(old.into_values().flatten());
                replica.generation += 1;
            }
        }
    }

    /// Makes the replica of a registry that nobody has looked at before.
    fn learn(&mut self, id: RegistryId) {
        while let Some(memory) = memory().filter(|_| !self.is_told)
            && !self.replicas().contains_key(&id)
        {
            let mut replica = Replica::default();
            match copy(memory, self.read, 0) {
                Some(bytes) => {
                    let own = records(&bytes).filter(|record| record.registry == id);
                    own.for_each(|record| replica.note(&record, &mut self.gone));
                    self.replicas().insert(id, replica);
                }
                None => self.catch_up(),
            }
        }
    }
}

impl Replica {
    /// Takes note of a record; what it says may be known already. What it replaces is added to `gone`.
    fn note(&mut self, record: &Record<'_>, gone: &mut Vec<Entry>) {
        let entries = self.entries.entry(record.key.into()).or_default();
        let place = entries.iter().position(|entry| entry.number == record.number);
        match (record.entry, place) {
            (Some((holder, value)), place) => {
                let entry = Entry { number: record.number, holder, value: value.into(), object: None };
                match place {
                    Some(place) if entries[place].is_like(&entry) => return,
                    Some(place) => gone.push(std::mem::replace(&mut entries[place], entry)),
                    None => entries.push(entry),
                }
            }
            (None, Some(place)) => gone.push(entries.remove(place)),
            (None, None) => {}
        }
        if entries.is_empty() {
            self.entries.swap_remove(record.key);
        }
        // Keys stay where they are when a value changes.
        self.generation += u64::from(record.entry.is_some() != place.is_some());
    }

    fn is_like(&self, other: &Replica) -> bool {
        let is_same = |(key, entries): (&_, &Vec<Entry>)| {
            let other = other.entries.get(key).map_or(&[][..], Vec::as_slice);
            entries.len() == other.len() && entries.iter().zip(other).all(|(one, other)| one.is_like(other))
        };
        self.entries.len() == other.entries.len() && self.entries.iter().all(is_same)
    }
}

impl Entry {
    pub(crate) fn seen(&self, py: Python<'_>) -> Seen {
        let object = self.object.as_ref().map(|object| object.clone_ref(py));
        Seen { number: self.number, holder: self.holder, value: self.value.clone(), object }
    }

    fn is_like(&self, other: &Entry) -> bool {
        self.number == other.number && self.holder == other.holder && self.value == other.value
    }
}

/// The bytes from a position to a tail; `None` if the supervisor has begun anew meanwhile.
fn copy(memory: &WordsOfOthers, tail: Tail, from: u32) -> Option<Vec<u8>> {
    let at = |position| memory.load(tail.offset(position), Ordering::Relaxed);
    let words = (from..tail.length).step_by(8).map(at);
    let bytes: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
    fence(Ordering::Acquire);
    (Tail::of(memory.load(STATE, Ordering::Relaxed)).epoch == tail.epoch).then_some(bytes)
}

fn records(mut bytes: &[u8]) -> impl Iterator<Item = Record<'_>> {
    std::iter::from_fn(move || {
        let (record, length) = decode(bytes)?;
        bytes = bytes.get(length..).unwrap_or_default();
        Some(record)
    })
}

/// The memory that this process reads, if it has a part in the node.
fn memory() -> Option<&'static WordsOfOthers> {
    MEMORY.get().filter(|_| !IS_FORGOTTEN.load(Ordering::Acquire))
}
