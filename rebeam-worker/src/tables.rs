//! Tables as Python has them: reads go to the file that the store writes, changes to the store.
//!
//! The file is opened when this process first looks into a table, never by the zygote. A read takes no lock that another
//! process holds, and no message. What a table is, and whose, stands in the ledger; it is looked up again whenever that has
//! changed, so a handle is never out of date.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use pyo3::exceptions::{PyKeyError, PyOSError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyInt, PyString, PyTuple};
use rebeam_protocol::address::Registry;
use rebeam_protocol::id::{Pid, RequestId};
use rebeam_protocol::ledger::{RegistryId, key_label, text_key};
use rebeam_protocol::process::{ProcessAnswer, ProcessRequest, RegistryError, RegistryRequest};
use rebeam_protocol::table::{
    Access, Extent, NewRow, OnFull, Only, Operation, Outcome, PLAIN, RowChanges, Table as Description, TableAnswer,
    TableError, TableId, TableKind, TableRequest,
};
use rebeam_protocol::value::{self, Value};
use rebeam_protocol::worker::ToSupervisor;
use rebeam_store::key::{self, NoKey, Numbers};
use rebeam_store::row::{self, LONGEST_KEY, Row, Size};
use rebeam_store::{Array, Descriptors, Reader, Snapshot};
use rebeam_sys::clock::monotonic_ms;
use sha2::{Digest, Sha256};

use crate::asked::Asked;
use crate::channel::Channel;
use crate::clock;
use crate::codec;
use crate::convert;
use crate::forks;
use crate::ledger;
use crate::requests::{PyPid, ask_about, ask_answer, unfit};
use crate::session::{channel, not_an_actor, send};
use crate::values::{Arrays, damaged, dumped, loaded};

/// How many rows a walk takes out of the file at once, and bytes of them.
const ROWS_AT_ONCE: usize = 64;
const BYTES_AT_ONCE: usize = 1 << 20;

/// The words of `rebeam._options`.
const KINDS: [(&str, TableKind); 4] = [
    ("set", TableKind::Set),
    ("ordered_set", TableKind::OrderedSet),
    ("bag", TableKind::Bag),
    ("duplicate_bag", TableKind::DuplicateBag),
];
const ACCESSES: [(&str, Access); 3] =
    [("public", Access::Public), ("protected", Access::Protected), ("private", Access::Private)];

/// What was opened, and of which store: how many there were before it.
static OPENED: Mutex<Option<(u64, Reader)>> = Mutex::new(None);

fn opened() -> MutexGuard<'static, Option<(u64, Reader)>> {
    OPENED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The rows as they are now.
fn snapshot(py: Python<'_>) -> PyResult<Snapshot> {
    forks::let_go();
    loop {
        let (store, reader) = reader(py)?;
        let snapshot = reader.snapshot().map_err(|error| refused(&error))?;
        // What it shows is kept only if its store was the current one when it was pinned.
        fence(Ordering::SeqCst);
        if ledger::stores() <= store {
            return Ok(snapshot);
        }
    }
}

/// What this process reads with, and from which store.
fn reader(py: Python<'_>) -> PyResult<(u64, Reader)> {
    let stores = ledger::stores();
    if let Some((store, reader)) = &*opened()
        && *store >= stores
    {
        return Ok((*store, reader.clone()));
    }
    let (answer, payload) = ask_answer(py, ProcessRequest::Table(TableRequest::Attach), &[], None)?;
    let (map_size, store) = match answer {
        ProcessAnswer::Table(TableAnswer::Attached { map_size, store }) => (map_size, store),
        ProcessAnswer::Table(TableAnswer::Failed(error)) => return Err(table_error(py, "", &error)?),
        other => return unfit(&other),
    };
    let descriptors = payload.descriptors.try_into();
    let descriptors =
        descriptors.map_err(|_| PyOSError::new_err("the tables came without their memory: too many open files?"))?;
    let map_size = usize::try_from(map_size).unwrap_or(usize::MAX);
    let descriptors = Descriptors::from_array(descriptors);
    let mut opened = opened();
    let reader = match &*opened {
        Some((_, before)) => before.open_next(&descriptors, map_size),
        None => Reader::open(descriptors, map_size),
    };
    let reader = reader.map_err(|error| refused(&error))?;
    match &*opened {
        // Another thread was faster.
        Some((other, reader)) if *other >= store => Ok((*other, reader.clone())),
        _ => {
            *opened = Some((store, reader.clone()));
            Ok((store, reader))
        }
    }
}

/// The arrays that this process looks at.
pub(crate) fn held_arrays() -> Vec<Arc<Array>> {
    opened().as_ref().map_or_else(Vec::new, |(_, reader)| reader.held_arrays())
}

/// A node in this process has tables, or no more.
#[cfg(feature = "testing")]
pub(crate) fn open_here(reader: Option<Reader>) {
    *opened() = reader.map(|reader| (ledger::stores(), reader));
}

fn refused(error: &rebeam_store::Error) -> PyErr {
    PyOSError::new_err(error.to_string())
}

fn table_error(py: Python<'_>, name: &str, error: &TableError) -> PyResult<PyErr> {
    let (kind, text) = match error {
        TableError::NoTable => ("no_table", ""),
        TableError::NotYours => ("not_yours", ""),
        TableError::Full => ("full", ""),
        TableError::AtLimit => ("at_limit", ""),
        TableError::Restarted => ("restarted", ""),
        TableError::Unavailable(text) => ("unavailable", text.as_str()),
        TableError::BadRequest(text) => ("bad_request", text.as_str()),
    };
    Ok(PyErr::from_value(py.import("rebeam._errors")?.call_method1("table_error", (kind, name, text))?))
}

/// A table, by its name.
#[pyclass(module = "rebeam._rebeam", subclass)]
pub(crate) struct Table {
    #[pyo3(get)]
    name: String,
    in_ledger: Vec<u8>,
    /// What was found last, and what the ledger's stamp was then.
    found: Mutex<Option<(u64, Found)>>,
    view: Mutex<View>,
}

#[derive(Clone, Copy)]
struct Found {
    id: TableId,
    owner: Pid,
    table: Description,
}

impl Found {
    fn numbers(self) -> Numbers {
        numbers_of(self.table.kind)
    }

    fn is_bag(self) -> bool {
        self.table.kind.is_bag()
    }

    fn key(self, key: &Bound<'_, PyAny>) -> PyResult<Key> {
        Key::new(key, self.numbers())
    }

    /// What takes the arrays of its values; those of a bag are compared, and have none.
    fn arrays(self) -> Arrays {
        if self.is_bag() { Arrays::none() } else { Arrays::default() }
    }

    /// What the keys of tuples begin with that begin with these items.
    fn prefix(self, items: &Bound<'_, PyTuple>) -> PyResult<Vec<u8>> {
        let values = items.iter().map(|item| plain_key(&item)).collect::<PyResult<Vec<_>>>()?;
        let prefix = key::encode_prefix(&values, self.numbers()).map_err(|error| no_key(items, &error))?;
        // Of longer keys only the beginning is kept as it is.
        let most = LONGEST_KEY - <Sha256 as Digest>::output_size();
        match prefix.len() > most {
            true => Err(PyValueError::new_err(format!("a prefix of {} bytes: it may have {most}", prefix.len()))),
            false => Ok(prefix),
        }
    }

    /// When a row expires that is put now, if it is to stay for this many seconds.
    fn expires(self, ttl: Option<f64>) -> u64 {
        ttl.map(in_ms).or(self.table.ttl_ms).map_or(0, |ttl| now_ms().saturating_add(ttl))
    }
}

fn numbers_of(kind: TableKind) -> Numbers {
    if kind == TableKind::OrderedSet { Numbers::ByValue } else { Numbers::ByType }
}

/// A key's bytes, and the key itself if it does not follow from them.
struct Key {
    bytes: Vec<u8>,
    original: Vec<u8>,
}

impl Key {
    fn new(object: &Bound<'_, PyAny>, numbers: Numbers) -> PyResult<Self> {
        let value = plain_key(object)?;
        let mut bytes = key::encode(&value, numbers).map_err(|error| no_key(object, &error))?;
        let is_short = bytes.len() <= LONGEST_KEY;
        // Of numbers by value, and of times and the like, those that are equal have the same bytes.
        let may_differ = numbers == Numbers::ByValue || matches!(value, Value::Text { .. } | Value::Tuple(_));
        let follows = is_short && (!may_differ || key::decode(&bytes, numbers).as_ref() == Some(&value));
        if !is_short {
            // Still ordered, by what it begins with; and unlike any other.
            let digest = Sha256::digest(&bytes);
            bytes.truncate(LONGEST_KEY - digest.len());
            bytes.extend(digest);
        }
        Ok(Key { bytes, original: if follows { Vec::new() } else { value::encode(&value) } })
    }
}

fn plain_key(object: &Bound<'_, PyAny>) -> PyResult<Value> {
    if let Ok(text) = object.cast_exact::<PyString>() {
        let text =
            text.to_str().map_err(|_| PyValueError::new_err("a key is text of whole characters, no surrogates"))?;
        return Ok(Value::Str(text.to_owned()));
    }
    codec::to_value(object).map_err(|error| match error.is_instance_of::<PyTypeError>(object.py()) {
        true => no_key(object, &NoKey::Kind("")),
        false => error,
    })
}

fn no_key(object: &Bound<'_, PyAny>, error: &NoKey) -> PyErr {
    let class = object.get_type().fully_qualified_name().map_or_else(|_| "?".into(), |name| name.to_string());
    match error {
        NoKey::Kind(_) => PyTypeError::new_err(format!(
            "a key is text, a number, bytes, None, a date or the like, or a tuple of those: no `{class}`"
        )),
        NoKey::NotANumber | NoKey::TooDeep => PyValueError::new_err(error.to_string()),
    }
}

/// Whether a row is there for nobody any more, though the store has not removed it yet.
fn is_expired(bytes: &[u8]) -> bool {
    Row::decode(bytes).is_some_and(|row| row.is_expired(now_ms))
}

/// A copy of a row, and what its value looks into.
struct Taken {
    row: Vec<u8>,
    array: Option<Arc<Array>>,
}

impl Taken {
    /// Only its key is wanted.
    fn without_array(row: &[u8]) -> Self {
        Taken { row: row.to_vec(), array: None }
    }

    fn out_of(snapshot: &Snapshot, row: &[u8]) -> rebeam_store::Result<Self> {
        let extent = Row::decode(row).and_then(|row| Extent::of(row.value));
        let array = extent.map(|(extent, _)| snapshot.array(extent)).transpose()?;
        Ok(Taken { row: row.to_vec(), array })
    }

    fn bytes(&self) -> usize {
        self.row.len() + self.array.as_ref().map_or(0, |array| array.bytes().len())
    }

    fn row(&self) -> PyResult<Row<'_>> {
        Row::decode(&self.row).ok_or_else(damaged)
    }

    fn value<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        loaded(py, self.row()?.value, self.array.as_ref())
    }
}

impl Table {
    /// What the table is, if it is there.
    fn look(&self, py: Python<'_>) -> PyResult<Found> {
        if !ledger::is_there() {
            return Err(not_an_actor(py));
        }
        let stamp = ledger::stamp();
        let is_live = matches!(*self.view(), View::Live);
        if let Some((seen, found)) = *self.found.lock().unwrap_or_else(PoisonError::into_inner)
            && (seen == stamp || !is_live)
        {
            return Ok(found);
        }
        // Not under the lock: what the look drops may be anything of the user's.
        let now = ledger::look(RegistryId::TABLES, |tables| {
            let entry = tables.entries.get(&*self.in_ledger)?.first()?;
            Some(Found { id: TableId(entry.number), owner: entry.holder, table: Description::decode(&entry.value)? })
        });
        *self.found.lock().unwrap_or_else(PoisonError::into_inner) = now.map(|now| (stamp, now));
        match now {
            Some(now) => Ok(now),
            None => Err(table_error(py, &self.name, &TableError::NoTable)?),
        }
    }

    /// Asks for something about its entry in the ledger.
    fn ask(&self, py: Python<'_>, request: RegistryRequest, content: &[u8]) -> PyResult<()> {
        match self.ask_for(py, request, content)? {
            ProcessAnswer::Ok => Ok(()),
            other => unfit(&other),
        }
    }

    fn ask_for(&self, py: Python<'_>, request: RegistryRequest, content: &[u8]) -> PyResult<ProcessAnswer> {
        let request = ProcessRequest::Registry { registry: Registry::Tables, request };
        let (kind, text) = match ask_about(py, request, content)? {
            ProcessAnswer::Table(TableAnswer::Failed(error)) => return Err(table_error(py, &self.name, &error)?),
            ProcessAnswer::Registry(RegistryError::AlreadyRegistered(_)) => ("exists", String::new()),
            ProcessAnswer::Registry(RegistryError::NotRegistered | RegistryError::NoRegistry) => {
                ("no_table", String::new())
            }
            ProcessAnswer::Registry(RegistryError::NotYours) => ("not_yours", String::new()),
            ProcessAnswer::Registry(RegistryError::NoProc) => ("no_owner", String::new()),
            ProcessAnswer::Registry(RegistryError::TooMuch(text)) => ("bad_request", text),
            other => return Ok(other),
        };
        let error = py.import("rebeam._errors")?.call_method1("table_error", (kind, &self.name, text))?;
        Err(PyErr::from_value(error))
    }

    /// As [`look`](Self::look), for who wants to read.
    fn readable(&self, py: Python<'_>) -> PyResult<Found> {
        let found = self.look(py)?;
        if found.table.access == Access::Private && channel(py)?.welcome.process.pid != found.owner {
            return Err(table_error(py, &self.name, &TableError::NotYours)?);
        }
        Ok(found)
    }

    fn operate<T>(
        &self,
        py: Python<'_>,
        operation: &Operation<'_>,
        use_it: impl FnOnce(Outcome<'_>) -> PyResult<T>,
    ) -> PyResult<T> {
        self.operate_with(py, operation, None, use_it)
    }

    /// With the memory in which the arrays of the operation's rows are.
    fn operate_with<T>(
        &self,
        py: Python<'_>,
        operation: &Operation<'_>,
        arrays: Option<&OwnedFd>,
        use_it: impl FnOnce(Outcome<'_>) -> PyResult<T>,
    ) -> PyResult<T> {
        if !matches!(*self.view(), View::Live) {
            return Err(PyTypeError::new_err(format!("a snapshot of `{}` is not changed", self.name)));
        }
        let found = self.look(py)?;
        let bytes = postcard::to_stdvec(operation).map_err(|error| PyValueError::new_err(error.to_string()))?;
        let request = TableRequest::Operate { id: found.id, has_arrays: arrays.is_some() };
        let arrays = arrays.map(AsFd::as_fd);
        let (answer, payload) = ask_answer(py, ProcessRequest::Table(request), &bytes, arrays)?;
        match answer {
            ProcessAnswer::Table(TableAnswer::Done) => {
                let outcome = postcard::from_bytes(payload.as_slice());
                use_it(outcome.map_err(|error| PyValueError::new_err(error.to_string()))?)
            }
            ProcessAnswer::Table(TableAnswer::Failed(error)) => Err(table_error(py, &self.name, &error)?),
            other => unfit(&other),
        }
    }

    /// Reads from the snapshot that is pinned, or from one of this moment. No code of the user's may run meanwhile.
    fn look_at<T>(&self, py: Python<'_>, look: impl FnOnce(&Snapshot) -> rebeam_store::Result<T>) -> PyResult<T> {
        let pinned = match &*self.view() {
            View::Live => None,
            View::Pinned(snapshot) => Some(snapshot.clone()),
            View::Closed => return Err(PyValueError::new_err(format!("the snapshot of `{}` is closed", self.name))),
        };
        let result = match pinned {
            None => look(&snapshot(py)?),
            Some(snapshot) => look(locked(&snapshot).as_ref().ok_or_else(|| was_ended(py, &self.name))?),
        };
        result.map_err(|error| refused(&error))
    }

    /// A snapshot that may be kept for a while: the one that is pinned, or one of this moment.
    fn shared(&self, py: Python<'_>) -> PyResult<Shared> {
        if let View::Pinned(snapshot) = &*self.view() {
            return Ok(snapshot.clone());
        }
        let snapshot = snapshot(py)?;
        let shared = Arc::new(Mutex::new(Some(snapshot)));
        let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|other| other.strong_count() > 0);
        kept.push(Arc::downgrade(&shared));
        Ok(shared)
    }

    fn view(&self) -> MutexGuard<'_, View> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is under a key of a set. No code of the user's runs while the file is looked at.
    fn taken(&self, py: Python<'_>, found: Found, key: &Bound<'_, PyAny>) -> PyResult<Option<Taken>> {
        let whole = row::of(found.id, &found.key(key)?.bytes);
        self.look_at(py, |snapshot| {
            let row = snapshot.get(&whole)?.filter(|row| !is_expired(row));
            row.map(|row| Taken::out_of(snapshot, row)).transpose()
        })
    }

    fn size(&self, py: Python<'_>, found: Found) -> PyResult<Size> {
        let key = Size::key(found.id);
        self.look_at(py, |snapshot| Ok(Size::decode(snapshot.get(&key)?)))
    }

    /// The values under a key of a bag, oldest first.
    fn values<'py>(&self, py: Python<'py>, found: Found, key: &Bound<'py, PyAny>) -> PyResult<Vec<Bound<'py, PyAny>>> {
        let prefix = row::of(found.id, &found.key(key)?.bytes);
        let values = self.look_at(py, |snapshot| {
            let mut rows = snapshot.rows(&prefix)?;
            let mut values = Vec::new();
            while let Some((_, value)) = rows.next_row()? {
                if !is_expired(value) {
                    values.push(Taken::out_of(snapshot, value)?);
                }
            }
            Ok(values)
        })?;
        values.iter().map(|taken| taken.value(py)).collect()
    }
}

/// A snapshot that several may read from; `None` once it was open for too long.
type Shared = Arc<Mutex<Option<Snapshot>>>;

/// Those that are kept by walks and by users.
static KEPT: Mutex<Vec<Weak<Mutex<Option<Snapshot>>>>> = Mutex::new(Vec::new());

fn locked(snapshot: &Shared) -> MutexGuard<'_, Option<Snapshot>> {
    snapshot.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ends all snapshots that are kept: one of them was open for too long.
pub(crate) fn end_snapshots() {
    let kept = std::mem::take(&mut *KEPT.lock().unwrap_or_else(PoisonError::into_inner));
    kept.iter().filter_map(Weak::upgrade).for_each(|snapshot| drop(locked(&snapshot).take()));
}

fn was_ended(py: Python<'_>, name: &str) -> PyErr {
    let error = || py.import("rebeam._errors")?.call_method1("table_error", ("snapshot_ended", name, ""));
    error().map_or_else(|error| error, PyErr::from_value)
}

/// What a handle shows.
enum View {
    /// The table as it is.
    Live,
    /// The table as it was.
    Pinned(Shared),
    /// Nothing any more.
    Closed,
}

#[pymethods]
impl Table {
    #[new]
    fn new(name: String) -> Self {
        let in_ledger = text_key(&name);
        Table { name, in_ledger, found: Mutex::new(None), view: Mutex::new(View::Live) }
    }

    /// From now on it is read as it is now.
    #[pyo3(name = "_pin")]
    fn pin(&self, py: Python<'_>) -> PyResult<()> {
        self.readable(py)?;
        let snapshot = self.shared(py)?;
        *self.view() = View::Pinned(snapshot);
        Ok(())
    }

    /// From now on it is not read any more.
    #[pyo3(name = "_close")]
    fn close(&self) {
        *self.view() = View::Closed;
    }

    /// Makes it, empty, of a kind and with an access in the words of `rebeam._tables`; for another owner, if one is given.
    #[pyo3(signature = (kind, access, owner = None, ttl = None, max_bytes = None, on_full = "error"))]
    #[expect(clippy::too_many_arguments, reason = "each is one of the table's options")]
    #[pyo3(name = "_make")]
    fn make(
        &self,
        py: Python<'_>,
        kind: &str,
        access: &str,
        owner: Option<&Bound<'_, PyAny>>,
        ttl: Option<f64>,
        max_bytes: Option<u64>,
        on_full: &str,
    ) -> PyResult<()> {
        let description = description(kind, access, ttl, max_bytes, on_full)?.encode();
        let who = owner.map(convert::address).transpose()?;
        self.ask(py, RegistryRequest::Enter { key: self.in_ledger.clone(), who }, &description)
    }

    /// Gives it to another actor, and says this with it.
    #[pyo3(name = "_give")]
    fn give(&self, py: Python<'_>, to: &Bound<'_, PyAny>, data: &Bound<'_, PyAny>) -> PyResult<()> {
        let request = RegistryRequest::Give { key: self.in_ledger.clone(), to: convert::address(to)? };
        self.ask(py, request, &dumped(data)?)
    }

    /// Who is to have it when its owner ends, and what is said with it then.
    #[pyo3(name = "_set_heir")]
    fn set_heir(&self, py: Python<'_>, heir: Option<&Bound<'_, PyAny>>, data: &Bound<'_, PyAny>) -> PyResult<()> {
        let heir = heir.map(convert::address).transpose()?;
        self.ask(py, RegistryRequest::Heir { key: self.in_ledger.clone(), heir }, &dumped(data)?)
    }

    /// Deletes it, with all its rows.
    fn drop(&self, py: Python<'_>) -> PyResult<()> {
        self.ask(py, RegistryRequest::Leave { key: self.in_ledger.clone(), who: None }, &[])
    }

    /// Its kind and access, as `rebeam._tables` calls them, its owner, how many rows it has, and their bytes.
    #[pyo3(name = "_facts")]
    fn facts(&self, py: Python<'_>) -> PyResult<(&'static str, &'static str, PyPid, u64, u64)> {
        let found = self.look(py)?;
        let Found { owner, table, .. } = found;
        let size = self.size(py, found)?;
        let kind = KINDS.iter().find(|(_, kind)| *kind == table.kind).map_or("", |(word, _)| word);
        let access = ACCESSES.iter().find(|(_, access)| *access == table.access).map_or("", |(word, _)| word);
        Ok((kind, access, convert::pid_numbers(owner), size.rows, size.bytes))
    }

    fn __len__(&self, py: Python<'_>) -> PyResult<usize> {
        let found = self.readable(py)?;
        Ok(self.size(py, found)?.rows as usize)
    }

    fn __contains__(&self, py: Python<'_>, key: &Bound<'_, PyAny>) -> PyResult<bool> {
        let found = self.readable(py)?;
        if found.is_bag() {
            return Ok(!self.values(py, found, key)?.is_empty());
        }
        let whole = row::of(found.id, &found.key(key)?.bytes);
        self.look_at(py, |snapshot| Ok(snapshot.get(&whole)?.is_some_and(|row| !is_expired(row))))
    }

    /// The value under a key; of a bag, the list of them.
    fn __getitem__<'py>(&self, py: Python<'py>, key: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        self.read(py, key)?.ok_or_else(|| PyKeyError::new_err((key.clone().unbind(),)))
    }

    /// The value under a key, or another; of a bag, the list of values.
    #[pyo3(signature = (key, default = None))]
    fn get<'py>(
        &self,
        py: Python<'py>,
        key: &Bound<'py, PyAny>,
        default: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        Ok(self.read(py, key)?.unwrap_or_else(|| default.unwrap_or_else(|| py.None().into_bound(py))))
    }

    /// The value under a key of a set, with the transaction that has put it; `None` if there is none.
    #[pyo3(name = "_versioned")]
    fn versioned<'py>(&self, py: Python<'py>, key: &Bound<'py, PyAny>) -> PyResult<Option<(u64, Bound<'py, PyAny>)>> {
        let found = self.readable(py)?;
        if found.is_bag() {
            return Err(PyValueError::new_err(format!("`{}` is a bag: a key has several values", self.name)));
        }
        let Some(taken) = self.taken(py, found, key)? else { return Ok(None) };
        Ok(Some((taken.row()?.version, taken.value(py)?)))
    }

    /// Rows in order, or the other way round, of one moment: all whose keys lie between two, the second left out, or begin
    /// with these items. `what` is `keys`, `values` or `items`.
    #[pyo3(signature = (what, *, start = None, stop = None, prefix = None, after = None, before = None, is_reversed = false))]
    #[expect(clippy::too_many_arguments, reason = "each is one of Python's keywords")]
    #[pyo3(name = "_walk")]
    fn walk(
        &self,
        py: Python<'_>,
        what: &str,
        start: Option<&Bound<'_, PyAny>>,
        stop: Option<&Bound<'_, PyAny>>,
        prefix: Option<&Bound<'_, PyTuple>>,
        after: Option<&Bound<'_, PyAny>>,
        before: Option<&Bound<'_, PyAny>>,
        is_reversed: bool,
    ) -> PyResult<Walk> {
        let found = self.readable(py)?;
        let whole = |key: &Bound<'_, PyAny>| Ok::<_, PyErr>(row::of(found.id, &found.key(key)?.bytes));
        let beyond = |prefix: &[u8]| key::successor(prefix).unwrap_or_default();
        let (mut lower, mut upper) = (row::first(found.id), beyond(&row::prefix(found.id)));
        if let Some(items) = prefix {
            let bytes = found.prefix(items)?;
            lower = row::of(found.id, &bytes);
            upper = beyond(&lower);
        }
        if let Some(start) = start {
            lower = lower.max(whole(start)?);
        }
        if let Some(after) = after {
            lower = lower.max(beyond(&whole(after)?));
        }
        for stop in [stop, before].into_iter().flatten() {
            upper = upper.min(whole(stop)?);
        }
        let what = match what {
            "keys" => What::Keys,
            "values" => What::Values,
            _ => What::Items,
        };
        let snapshot = self.shared(py)?;
        let name = self.name.clone();
        let walk = Walking { name, snapshot, found, what, lower, upper, is_reversed, rows: VecDeque::new() };
        Ok(Walk(Mutex::new(Some(walk))))
    }

    /// Puts rows, all or none; false if `only_new` and one of the keys is there. Of pairs of keys and values.
    #[pyo3(signature = (rows, *, only_new = false, only_version = None, ttl = None))]
    #[pyo3(name = "_put_rows")]
    fn put_rows(
        &self,
        py: Python<'_>,
        rows: &Bound<'_, PyAny>,
        only_new: bool,
        only_version: Option<u64>,
        ttl: Option<f64>,
    ) -> PyResult<bool> {
        let found = self.look(py)?;
        let mut arrays = found.arrays();
        let rows = rows.try_iter()?.map(|row| {
            let row = row?;
            let pair = row.extract::<(Bound<'_, PyAny>, Bound<'_, PyAny>)>();
            let (key, value) = pair
                .map_err(|_| PyTypeError::new_err(format!("rows are pairs of keys and values: not {}", shown(&row))))?;
            Ok((found.key(&key)?, arrays.dumped(&value)?))
        });
        let rows = rows.collect::<PyResult<Vec<(Key, Vec<u8>)>>>()?;
        let only = match only_version {
            Some(version) => Only::IfVersion(version),
            None if only_new => Only::IfNew,
            None => Only::Always,
        };
        let expires = found.expires(ttl);
        fn row((key, value): &(Key, Vec<u8>), expires: u64) -> NewRow<'_> {
            NewRow { key: &key.bytes, original: &key.original, expires, value }
        }
        let rows = rows.iter().map(|pair| row(pair, expires)).collect();
        self.operate_with(py, &Operation::Put { rows, only }, arrays.memory(py)?.as_ref(), is_done)
    }

    fn __setitem__(&self, py: Python<'_>, key: &Bound<'_, PyAny>, value: &Bound<'_, PyAny>) -> PyResult<()> {
        let found = self.look(py)?;
        let mut arrays = found.arrays();
        let (key, value) = (found.key(key)?, arrays.dumped(value)?);
        let expires = found.expires(None);
        let rows = vec![NewRow { key: &key.bytes, original: &key.original, expires, value: &value }];
        self.operate_with(py, &Operation::Put { rows, only: Only::Always }, arrays.memory(py)?.as_ref(), |_| Ok(()))
    }

    fn __delitem__(&self, py: Python<'_>, key: &Bound<'_, PyAny>) -> PyResult<()> {
        match self.remove(py, key, None)? {
            Some(0) => Err(PyKeyError::new_err((key.clone().unbind(),))),
            _ => Ok(()),
        }
    }

    /// Removes what is under a key; how many rows that was, or `None` if the version is another.
    #[pyo3(signature = (key, only_version = None))]
    #[pyo3(name = "_remove")]
    fn remove(&self, py: Python<'_>, key: &Bound<'_, PyAny>, only_version: Option<u64>) -> PyResult<Option<u64>> {
        let key = self.look(py)?.key(key)?;
        let only = only_version.map_or(Only::Always, Only::IfVersion);
        self.operate(py, &Operation::Delete { key: &key.bytes, only }, |outcome| match outcome {
            Outcome::Done(count) => Ok(Some(count)),
            Outcome::Refused => Ok(None),
            other => unfit(&other),
        })
    }

    /// Removes one value that is under a key of a bag; how often it was there.
    #[pyo3(name = "_remove_value")]
    fn remove_value(&self, py: Python<'_>, key: &Bound<'_, PyAny>, value: &Bound<'_, PyAny>) -> PyResult<u64> {
        let (key, value) = (self.look(py)?.key(key)?, dumped(value)?);
        self.operate(py, &Operation::DeleteValue { key: &key.bytes, value: &value }, count)
    }

    /// Removes all rows whose keys are tuples that begin with these items, or all rows; how many.
    #[pyo3(signature = (items = None))]
    #[pyo3(name = "_remove_all")]
    fn remove_all(&self, py: Python<'_>, items: Option<&Bound<'_, PyTuple>>) -> PyResult<u64> {
        let found = self.look(py)?;
        let mut prefix = Vec::new();
        if let Some(items) = items {
            prefix = found.prefix(items)?;
        }
        self.operate(py, &Operation::DeletePrefix { prefix: &prefix }, count)
    }

    /// Has messages come about rows that change: under a key, under those of tuples that begin with these items, or any. The
    /// number of the watch.
    #[pyo3(signature = (*key, prefix = None))]
    #[pyo3(name = "_watch")]
    fn watch(&self, py: Python<'_>, key: &Bound<'_, PyTuple>, prefix: Option<&Bound<'_, PyTuple>>) -> PyResult<u64> {
        let found = self.readable(py)?;
        let lower = match (key.iter().next(), prefix) {
            (Some(key), _) => found.key(&key)?.bytes,
            (None, Some(items)) => found.prefix(items)?,
            (None, None) => Vec::new(),
        };
        let upper = key::successor(&lower);
        let key = self.in_ledger.clone();
        match self.ask_for(py, RegistryRequest::WatchRows { key, lower, upper }, &[])? {
            ProcessAnswer::Table(TableAnswer::Watching(watch)) => Ok(watch),
            other => unfit(&other),
        }
    }

    /// Removes what is under a key, and gives it: a list, which is empty if nothing was there.
    #[pyo3(name = "_take_all")]
    fn take_all<'py>(&self, py: Python<'py>, key: &Bound<'py, PyAny>) -> PyResult<Vec<Bound<'py, PyAny>>> {
        let found = self.readable(py)?;
        if found.is_bag() {
            let key = found.key(key)?;
            return self.operate(py, &Operation::Take { key: &key.bytes }, |outcome| match outcome {
                Outcome::Taken(values) => values.iter().map(|value| loaded(py, value.0, None)).collect(),
                other => unfit(&other),
            });
        }
        loop {
            let Some(taken) = self.taken(py, found, key)? else { return Ok(Vec::new()) };
            if self.remove(py, key, Some(taken.row()?.version))?.is_some() {
                return Ok(vec![taken.value(py)?]);
            }
        }
    }

    /// Asks to be the one who puts a row under a key: true once it is this one's turn, false once there is a row.
    #[pyo3(name = "_claim")]
    fn claim(&self, py: Python<'_>, key: &Bound<'_, PyAny>) -> PyResult<Asked> {
        let found = self.look(py)?;
        let (key, name) = (found.key(key)?.bytes, self.name.clone());
        let request = ProcessRequest::Table(TableRequest::Claim(found.id));
        let asked = Asked::request(request, None, move |py, answer| match answer {
            Some((ProcessAnswer::Table(TableAnswer::Done), payload)) => {
                match postcard::from_bytes(payload.as_slice()) {
                    Ok(Outcome::Granted) => Ok(PyBool::new(py, true).to_owned().into_any().unbind()),
                    Ok(Outcome::There) => Ok(PyBool::new(py, false).to_owned().into_any().unbind()),
                    other => unfit(&other),
                }
            }
            Some((ProcessAnswer::Table(TableAnswer::Failed(error)), _)) => Err(table_error(py, &name, &error)?),
            other => unfit(&other.map(|(answer, _)| answer)),
        });
        Ok(asked.about(key))
    }

    /// Does not put a row under a key after all that a request with this number has claimed, nor waits for that any more.
    #[pyo3(name = "_release")]
    fn release(&self, py: Python<'_>, key: &Bound<'_, PyAny>, claim: u64) -> PyResult<()> {
        let found = self.look(py)?;
        let request = ProcessRequest::Table(TableRequest::Release { id: found.id, claim: RequestId(claim) });
        ask_about(py, request, &found.key(key)?.bytes).map(drop)
    }

    /// Adds to the number under a key; the sum, or `None` if nothing is there and there is no default.
    #[pyo3(name = "_add")]
    fn add<'py>(
        &self,
        py: Python<'py>,
        key: &Bound<'py, PyAny>,
        by: &Bound<'py, PyAny>,
        default: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        let found = self.look(py)?;
        let key = found.key(key)?;
        let by = number(by)?;
        let default = default.map(number).transpose()?;
        let value = default.map_or_else(Vec::new, |value| [&[PLAIN], &value::encode(&value)[..]].concat());
        let row = NewRow { key: &key.bytes, original: &key.original, expires: found.expires(None), value: &value };
        self.operate(py, &Operation::Add { row, by }, |outcome| match outcome {
            Outcome::Sum(sum) => Ok(Some(codec::load_value(py, &value::encode(&sum))?)),
            Outcome::Refused => Ok(None),
            other => unfit(&other),
        })
    }
}

impl Table {
    fn read<'py>(&self, py: Python<'py>, key: &Bound<'py, PyAny>) -> PyResult<Option<Bound<'py, PyAny>>> {
        let found = self.readable(py)?;
        if found.is_bag() {
            let values = self.values(py, found, key)?;
            return Ok(if values.is_empty() { None } else { Some(values.into_pyobject(py)?) });
        }
        self.taken(py, found, key)?.map(|taken| taken.value(py)).transpose()
    }
}

/// As Python shows it, if that is short.
fn shown(object: &Bound<'_, PyAny>) -> String {
    let text = object.repr().map_or_else(|_| "?".to_owned(), |text| text.to_string());
    text.chars().take(100).collect()
}

fn number(object: &Bound<'_, PyAny>) -> PyResult<Value> {
    match codec::to_value(object) {
        Ok(value @ (Value::Int(_) | Value::Float(_))) => Ok(value),
        Ok(Value::Text { .. }) if object.is_instance_of::<PyInt>() => {
            Err(PyValueError::new_err("a counter counts in whole numbers of 128 bits: this one is larger"))
        }
        _ => Err(PyTypeError::new_err(format!(
            "a counter counts in whole numbers of 128 bits, or in floats: not by a `{}`",
            object.get_type().fully_qualified_name()?
        ))),
    }
}

fn is_done(outcome: Outcome<'_>) -> PyResult<bool> {
    match outcome {
        Outcome::Done(_) => Ok(true),
        Outcome::Refused => Ok(false),
        other => unfit(&other),
    }
}

fn count(outcome: Outcome<'_>) -> PyResult<u64> {
    match outcome {
        Outcome::Done(count) => Ok(count),
        other => unfit(&other),
    }
}

/// What a walk gives of each row.
#[derive(Clone, Copy)]
enum What {
    Keys,
    Values,
    Items,
}

/// A row as it lies in the file: its key, and the rest.
type Bytes = (Vec<u8>, Taken);

/// Goes over the rows of one moment.
#[pyclass(module = "rebeam._rebeam")]
pub(crate) struct Walk(Mutex<Option<Walking>>);

struct Walking {
    name: String,
    snapshot: Shared,
    found: Found,
    what: What,
    /// What is left lies from here on, and before there.
    lower: Vec<u8>,
    upper: Vec<u8>,
    is_reversed: bool,
    /// Rows that were taken out of the file already.
    rows: VecDeque<Py<PyAny>>,
}

#[pymethods]
impl Walk {
    fn __iter__(walk: PyRef<'_, Self>) -> PyRef<'_, Self> {
        walk
    }

    fn __next__<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        if !ledger::is_there() {
            return Err(not_an_actor(py));
        }
        let mut walking = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        let next = walking.as_mut().map_or(Ok(None), |walking| walking.next(py));
        // With its last row the snapshot goes, though the iterator may be kept.
        if matches!(next, Ok(Some(_))) {
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) = walking;
        }
        next
    }
}

impl Walking {
    fn next<'py>(&mut self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        if self.rows.is_empty() {
            self.take_more(py)?;
        }
        Ok(self.rows.pop_front().map(|row| row.into_bound(py)))
    }

    fn take_more(&mut self, py: Python<'_>) -> PyResult<()> {
        let taken = self.take_bytes().map_err(|error| refused(&error))?;
        let taken = taken.ok_or_else(|| was_ended(py, &self.name))?;
        for (whole, taken) in taken {
            self.rows.push_back(object(py, self.found, self.what, &whole, &taken)?.unbind());
        }
        Ok(())
    }

    /// Copies of the next rows; `None` if the snapshot was open for too long.
    fn take_bytes(&mut self) -> rebeam_store::Result<Option<Vec<Bytes>>> {
        let Walking { snapshot, lower, upper, is_reversed, what, .. } = self;
        let snapshot = locked(snapshot);
        let Some(snapshot) = &*snapshot else { return Ok(None) };
        let mut rows = snapshot.rows(&[])?;
        rows.seek(if *is_reversed { upper } else { lower });
        let (mut taken, mut bytes) = (Vec::new(), 0);
        while taken.len() < ROWS_AT_ONCE && bytes < BYTES_AT_ONCE {
            let row = if *is_reversed { rows.previous_row()? } else { rows.next_row()? };
            let Some((whole, value)) = row.filter(|(whole, _)| *whole >= &**lower && *whole < &**upper) else { break };
            if *is_reversed {
                *upper = whole.to_vec();
            } else {
                *lower = [whole, &[0]].concat();
            }
            if !is_expired(value) {
                let one = match what {
                    What::Keys => Taken::without_array(value),
                    What::Values | What::Items => Taken::out_of(snapshot, value)?,
                };
                bytes += one.bytes();
                taken.push((whole.to_vec(), one));
            }
        }
        Ok(Some(taken))
    }
}

fn object<'py>(py: Python<'py>, found: Found, what: What, whole: &[u8], taken: &Taken) -> PyResult<Bound<'py, PyAny>> {
    let row = taken.row()?;
    let key = || {
        if !row.original.is_empty() {
            return codec::load_value(py, row.original);
        }
        let bytes = row::key_of(whole, found.is_bag()).ok_or_else(damaged)?;
        codec::to_python(py, &key::decode(bytes, found.numbers()).ok_or_else(damaged)?)
    };
    match what {
        What::Keys => key(),
        What::Values => taken.value(py),
        What::Items => Ok(PyTuple::new(py, [key()?, taken.value(py)?])?.into_any()),
    }
}

/// The names of all tables, in order.
#[pyfunction]
pub(crate) fn table_names(py: Python<'_>) -> PyResult<Vec<String>> {
    if !ledger::is_there() {
        return Err(not_an_actor(py));
    }
    let mut names: Vec<String> =
        ledger::look(RegistryId::TABLES, |tables| tables.entries.keys().map(|key| key_label(key)).collect());
    names.sort();
    Ok(names)
}

/// The message about a table that this actor owns from now on.
pub(crate) fn transfer_object<'py>(py: Python<'py>, key: &[u8], from: Pid, data: &[u8]) -> PyResult<Bound<'py, PyAny>> {
    let fields = (key_label(key), convert::pid_numbers(from), loaded(py, data, None)?);
    py.import("rebeam._tables")?.call_method1("transferred", fields)
}

/// The store may tell more of a watch: what it has told last is in hand.
pub(crate) fn seen(py: Python<'_>, channel: &Channel, watch: u64) -> PyResult<()> {
    let body = ProcessRequest::Table(TableRequest::Seen { watch });
    send(py, channel, &ToSupervisor::Request { request: RequestId(channel.next_id()), body }, &[])
}

/// The message about rows that have changed.
pub(crate) fn change_object<'py>(
    py: Python<'py>,
    watch: u64,
    table: &[u8],
    changes: &[u8],
) -> PyResult<Bound<'py, PyAny>> {
    let changes = postcard::from_bytes(changes).ok();
    let (is_gone, keys) = match changes {
        Some(RowChanges { is_gone, kind, keys }) => {
            let numbers = numbers_of(kind);
            let key = |(whole, original): (Vec<u8>, Vec<u8>)| match original.is_empty() {
                true => codec::to_python(py, &key::decode(&whole, numbers).ok_or_else(damaged)?),
                false => codec::load_value(py, &original),
            };
            let keys = keys.map(|keys| keys.into_iter().map(key).collect::<PyResult<Vec<_>>>()).transpose()?;
            (is_gone, keys)
        }
        None => (false, None),
    };
    py.import("rebeam._tables")?.call_method1("changed", (watch, key_label(table), keys, is_gone))
}

/// Seconds as whole milliseconds, at least one.
fn in_ms(seconds: f64) -> u64 {
    ((seconds * 1000.0).ceil() as u64).max(1)
}

/// The time by which rows expire: that of the system, or, where many actors share a process to be tested, of the test.
pub(crate) fn now_ms() -> u64 {
    clock::passed().map_or_else(monotonic_ms, |passed| passed.as_millis() as u64 + 1)
}

/// What a table is, in those words.
pub(crate) fn description(
    kind: &str,
    access: &str,
    ttl: Option<f64>,
    max_bytes: Option<u64>,
    on_full: &str,
) -> PyResult<Description> {
    let unknown = |word: &str| PyValueError::new_err(format!("`{word}` says nothing of a table"));
    let kind_of = KINDS.iter().find(|(known, _)| *known == kind).map(|(_, kind)| *kind);
    let access_of = ACCESSES.iter().find(|(known, _)| *known == access).map(|(_, access)| *access);
    let (kind, access) = (kind_of.ok_or_else(|| unknown(kind))?, access_of.ok_or_else(|| unknown(access))?);
    let on_full = match on_full {
        "error" => OnFull::Error,
        "oldest" => OnFull::Oldest,
        _ => return Err(unknown(on_full)),
    };
    Ok(Description { kind, access, ttl_ms: ttl.map(in_ms), max_bytes, on_full })
}
