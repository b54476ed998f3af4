//! A registry as Python has it: looks at the replica of this process, requests to the supervisor.

use pyo3::exceptions::{PyLookupError, PyRuntimeError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PyList, PyString, PyTuple};
use rebeam_protocol::address::{Address, Registry as Which};
use rebeam_protocol::id::Pid;
use rebeam_protocol::ledger::{RegistryId, UNIQUE, key_label, text_key};
use rebeam_protocol::message::Signal;
use rebeam_protocol::process::{ProcessAnswer, ProcessRequest, RegistryError, RegistryRequest};
use rebeam_protocol::value::{self, Value};
use rebeam_protocol::worker::ToSupervisor;

use crate::codec;
use crate::convert;
use crate::ledger::{self, Entry, Replica, Seen};
use crate::outgoing::explained;
use crate::requests::{PyPid, ask_about, unfit};
use crate::session::{channel, not_an_actor, send};

/// The names of the node, its groups, or a registry of its tree.
#[pyclass(module = "rebeam._rebeam", frozen)]
pub(crate) struct Registry {
    which: Which,
    /// Whether its handle says that its keys have one holder each, if it says so.
    is_unique: Option<bool>,
}

/// Goes over the keys of a registry, and no further once that has changed.
#[pyclass(module = "rebeam._rebeam")]
pub(crate) struct Keys {
    id: RegistryId,
    generation: u64,
    next: usize,
}

#[pymethods]
impl Registry {
    /// `Registry("names", "")`, `Registry("groups", "")`, or, with `unique` or `duplicate`, a registry of the tree.
    #[new]
    fn new(kind: &str, name: String) -> Self {
        let which = match kind {
            "names" => Which::Names,
            "groups" => Which::Groups,
            _ => Which::Named(name),
        };
        let is_unique = matches!(which, Which::Named(_)).then_some(kind == "unique");
        Registry { which, is_unique }
    }

    /// The first entry under a key, or `None`: a `Pid`, or, of a registry of the tree, an `Entry`.
    fn first<'py>(&self, py: Python<'py>, key: &Bound<'py, PyAny>) -> PyResult<Option<Bound<'py, PyAny>>> {
        let key = encoded(key)?;
        let (id, _) = self.id(py)?;
        let seen = ledger::look(id, |replica| replica.entries.get(&*key)?.first().map(|entry| entry.seen(py)));
        seen.map(|seen| self.object(py, id, &key, seen)).transpose()
    }

    /// All entries under a key, oldest first.
    fn all<'py>(&self, py: Python<'py>, key: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyList>> {
        let key = encoded(key)?;
        let (id, _) = self.id(py)?;
        let seen: Vec<Seen> = ledger::look(id, |replica| {
            replica.entries.get(&*key).into_iter().flatten().map(|entry| entry.seen(py)).collect()
        });
        let objects = seen.into_iter().map(|seen| self.object(py, id, &key, seen));
        PyList::new(py, objects.collect::<PyResult<Vec<_>>>()?)
    }

    /// The keys that an incarnation has.
    fn keys_of<'py>(&self, py: Python<'py>, holder: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyList>> {
        let holder = convert::pid(holder)?;
        let keys: Vec<Box<[u8]>> = self.look(py, |replica| {
            let is_held = |entries: &Vec<Entry>| entries.iter().any(|entry| entry.holder == holder);
            replica.entries.iter().filter(|(_, entries)| is_held(entries)).map(|(key, _)| key.clone()).collect()
        })?;
        PyList::new(py, keys.iter().map(|key| codec::load_value(py, key)).collect::<PyResult<Vec<_>>>()?)
    }

    /// Every key with its entry, or with all its entries if it may have several: as they are at one moment.
    fn snapshot<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let (id, is_unique) = self.id(py)?;
        let seen: Vec<(Box<[u8]>, Vec<Seen>)> = ledger::look(id, |replica| {
            let of_key = |(key, entries): (&_, &Vec<Entry>)| {
                (Box::clone(key), entries.iter().map(|entry| entry.seen(py)).collect())
            };
            replica.entries.iter().map(of_key).collect()
        });
        let item = |(key, seen): (Box<[u8]>, Vec<Seen>)| -> PyResult<Bound<'py, PyTuple>> {
            let objects = seen.into_iter().map(|seen| self.object(py, id, &key, seen)).collect::<PyResult<Vec<_>>>()?;
            let value = match objects.first() {
                Some(first) if is_unique => first.clone(),
                _ => PyList::new(py, objects)?.into_any(),
            };
            PyTuple::new(py, [codec::load_value(py, &key)?, value])
        };
        PyList::new(py, seen.into_iter().map(item).collect::<PyResult<Vec<_>>>()?)
    }

    fn __len__(&self, py: Python<'_>) -> PyResult<usize> {
        self.look(py, |replica| replica.entries.len())
    }

    fn __contains__(&self, py: Python<'_>, key: &Bound<'_, PyAny>) -> PyResult<bool> {
        let Ok(key) = encoded(key) else { return Ok(false) };
        self.look(py, |replica| replica.entries.contains_key(&*key))
    }

    fn __iter__(&self, py: Python<'_>) -> PyResult<Keys> {
        let (id, _) = self.id(py)?;
        self.look(py, |replica| Keys { id, generation: replica.generation, next: 0 })
    }

    /// Enters an actor, this one if none is given, under a key.
    #[pyo3(signature = (key, value=None, who=None))]
    fn enter(
        &self,
        py: Python<'_>,
        key: &Bound<'_, PyAny>,
        value: Option<&Bound<'_, PyAny>>,
        who: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let who = who.map(convert::address).transpose()?;
        let value = value.map(dumped).transpose()?;
        let request = RegistryRequest::Enter { key: encoded(key)?, who };
        self.ask(py, key, request, value.as_ref().map_or(&[], |value| value.as_bytes())).map(drop)
    }

    /// Gives this actor's entry under a key another value.
    fn update(&self, py: Python<'_>, key: &Bound<'_, PyAny>, value: Option<&Bound<'_, PyAny>>) -> PyResult<()> {
        let value = value.map(dumped).transpose()?;
        let request = RegistryRequest::Update { key: encoded(key)? };
        self.ask(py, key, request, value.as_ref().map_or(&[], |value| value.as_bytes())).map(drop)
    }

    /// Takes out what an actor, this one if none is given, has under a key.
    #[pyo3(signature = (key, who=None))]
    fn leave(&self, py: Python<'_>, key: &Bound<'_, PyAny>, who: Option<&Bound<'_, PyAny>>) -> PyResult<()> {
        let who = who.map(convert::address).transpose()?;
        self.ask(py, key, RegistryRequest::Leave { key: encoded(key)?, who }, &[]).map(drop)
    }

    /// As `all`, by a question to the supervisor.
    fn ask_all<'py>(&self, py: Python<'py>, key: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyList>> {
        match self.ask(py, key, RegistryRequest::Look { key: encoded(key)? }, &[])? {
            ProcessAnswer::Entries(entries) => self.objects(py, &entries),
            other => unfit(&other),
        }
    }

    /// Has a message come for each change under a key; gives the number of the watch and what there is.
    fn watch<'py>(&self, py: Python<'py>, key: &Bound<'py, PyAny>) -> PyResult<(u64, Bound<'py, PyList>)> {
        match self.ask(py, key, RegistryRequest::Watch { key: encoded(key)? }, &[])? {
            ProcessAnswer::Watching { watch, entries } => Ok((watch, self.objects(py, &entries)?)),
            other => unfit(&other),
        }
    }

    /// The member under a key for whom the fewest messages wait.
    fn least_busy(&self, py: Python<'_>, key: &Bound<'_, PyAny>) -> PyResult<Option<PyPid>> {
        match self.ask(py, key, RegistryRequest::LeastBusy { key: encoded(key)? }, &[])? {
            ProcessAnswer::Pid(pid) => Ok(pid.map(convert::pid_numbers)),
            other => unfit(&other),
        }
    }
}

impl Registry {
    /// Its number, and whether its keys have one holder each, as its handle has to say.
    fn id(&self, py: Python<'_>) -> PyResult<(RegistryId, bool)> {
        let (id, is_unique) = registry_id(py, &self.which)?;
        if self.is_unique.is_some_and(|said| said != is_unique) {
            let sort = if is_unique { "unique" } else { "duplicate" };
            return Err(PyValueError::new_err(format!("the registry `{}` of the tree has {sort} keys", self.which)));
        }
        Ok((id, is_unique))
    }

    fn look<T>(&self, py: Python<'_>, use_it: impl FnOnce(&mut Replica) -> T) -> PyResult<T> {
        Ok(ledger::look(self.id(py)?.0, use_it))
    }

    /// An entry as Python has it. One without a value is made once. (Not within a look: this runs Python.)
    fn object<'py>(&self, py: Python<'py>, id: RegistryId, key: &[u8], seen: Seen) -> PyResult<Bound<'py, PyAny>> {
        if let Some(object) = seen.object {
            return Ok(object.into_bound(py));
        }
        let object = entry_object(py, &self.which, seen.holder, &seen.value)?;
        if seen.value.is_empty() || self.which == Which::Names {
            remember(py, id, key, seen.number, &object);
        }
        Ok(object)
    }

    fn objects<'py>(
        &self,
        py: Python<'py>,
        entries: &[rebeam_protocol::process::Entry],
    ) -> PyResult<Bound<'py, PyList>> {
        let object =
            |entry: &rebeam_protocol::process::Entry| entry_object(py, &self.which, entry.holder, &entry.value);
        PyList::new(py, entries.iter().map(object).collect::<PyResult<Vec<_>>>()?)
    }

    fn ask(
        &self,
        py: Python<'_>,
        key: &Bound<'_, PyAny>,
        request: RegistryRequest,
        value: &[u8],
    ) -> PyResult<ProcessAnswer> {
        self.id(py)?;
        let request = ProcessRequest::Registry { registry: self.which.clone(), request };
        match ask_about(py, request, value)? {
            ProcessAnswer::Registry(error) => Err(registry_error(py, &self.which, &key_label(&encoded(key)?), &error)?),
            answer => Ok(answer),
        }
    }
}

#[pymethods]
impl Keys {
    fn __iter__(slf: PyRef<'_, Self>) -> PyRef<'_, Self> {
        slf
    }

    fn __next__<'py>(&mut self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        let key = ledger::look(self.id, |replica| {
            if replica.generation != self.generation {
                return Err(PyRuntimeError::new_err("the registry has changed during iteration"));
            }
            Ok(replica.entries.get_index(self.next).map(|(key, _)| key.clone()))
        })?;
        self.next += 1;
        key.map(|key| codec::load_value(py, &key)).transpose()
    }
}

/// The living incarnation behind a name or a key, as this process knows it, or `None`.
#[pyfunction]
pub(crate) fn find<'py>(py: Python<'py>, to: &Bound<'py, PyAny>) -> PyResult<Option<Bound<'py, PyAny>>> {
    let (which, key) = match to.cast::<PyString>() {
        Ok(name) => (Which::Names, text_key(name.to_str()?)),
        Err(_) => match convert::address(to)? {
            Address::Via { registry, key } => (Which::Named(registry), key),
            _ => return Err(PyTypeError::new_err("it is no name and no key of a registry")),
        },
    };
    let id = match registry_id(py, &which) {
        Ok((id, true)) => id,
        Ok((_, false)) => {
            let text = format!("`{which}` has duplicate keys: `dispatch` to its entries");
            return Err(PyValueError::new_err(text));
        }
        Err(error) if matches!(which, Which::Named(_)) && error.is_instance_of::<PyLookupError>(py) => return Ok(None),
        Err(error) => return Err(error),
    };
    let seen = ledger::look(id, |replica| replica.entries.get(&*key)?.first().map(|entry| entry.seen(py)));
    let Some(seen) = seen else { return Ok(None) };
    match seen.object {
        Some(object) if matches!(which, Which::Names) => Ok(Some(object.into_bound(py))),
        _ => {
            let pid = pid_object(py, seen.holder)?;
            if matches!(which, Which::Names) {
                remember(py, id, &key, seen.number, &pid);
            }
            Ok(Some(pid))
        }
    }
}

/// Keeps what was made of an entry, if that is still there.
fn remember(py: Python<'_>, id: RegistryId, key: &[u8], number: u64, object: &Bound<'_, PyAny>) {
    let object = object.clone().unbind();
    ledger::look(id, |replica| {
        let entries = replica.entries.get_mut(key).into_iter().flatten();
        entries.filter(|entry| entry.number == number).for_each(|entry| entry.object = Some(object.clone_ref(py)));
    });
}

/// Takes a watch back, with what has come of it and waits in the mailbox.
#[pyfunction]
pub(crate) fn unwatch(py: Python<'_>, watch: u64) -> PyResult<()> {
    let request = RegistryRequest::Unwatch { watch };
    ask_about(py, ProcessRequest::Registry { registry: Which::Names, request }, &[])?;
    let channel = channel(py)?;
    let done = channel.take_back(watch);
    if !done.is_empty() {
        send(py, channel, &ToSupervisor::Ack { done }, &[])?;
    }
    Ok(())
}

/// A key as it stands in the ledger.
#[pyfunction]
pub(crate) fn registry_key<'py>(key: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyBytes>> {
    Ok(PyBytes::new(key.py(), &encoded(key)?))
}

/// A key as people read it.
#[pyfunction]
pub(crate) fn registry_key_label(key: &[u8]) -> String {
    key_label(key)
}

/// The number of a registry's present incarnation, and whether its keys have one holder each.
fn registry_id(py: Python<'_>, which: &Which) -> PyResult<(RegistryId, bool)> {
    if !ledger::is_there() {
        return Err(not_an_actor(py));
    }
    match which {
        Which::Names => Ok((RegistryId::NAMES, true)),
        Which::Groups => Ok((RegistryId::GROUPS, false)),
        Which::Tables => Ok((RegistryId::TABLES, true)),
        Which::Named(name) => {
            let key = text_key(name);
            // What is no registry has no sort.
            let found = ledger::look(RegistryId::NAMES, |names| {
                let entry = names.entries.get(&*key)?.first()?;
                (!entry.value.is_empty()).then_some((entry.holder, &*entry.value == UNIQUE))
            });
            match found {
                Some((pid, is_unique)) => Ok((RegistryId(pid.serial), is_unique)),
                None => Err(registry_error(py, which, "", &RegistryError::NoRegistry)?),
            }
        }
    }
}

/// Keys compare with their type: 1, 1.0 and True are three (MAP-15).
fn encoded(key: &Bound<'_, PyAny>) -> PyResult<Vec<u8>> {
    if let Ok(text) = key.cast::<PyString>() {
        return Ok(text_key(text.to_str()?));
    }
    let refuse = || {
        let class = key.get_type().fully_qualified_name()?;
        let text =
            format!("a key is text, a number, bytes, None, a date or the like, or a tuple of those: no `{class}`");
        Err(PyTypeError::new_err(text))
    };
    match codec::to_value(key) {
        Ok(value) if is_key(&value) => Ok(value::encode(&value)),
        Ok(_) => refuse(),
        Err(error) if convert::is_fault(key.py(), &error) => refuse(),
        Err(error) => Err(error),
    }
}

fn dumped<'py>(value: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyBytes>> {
    let py = value.py();
    explained(py, codec::dumps(value), |module, error| module.call_method1("explain_message", (value, error.value(py))))
}

fn is_key(value: &Value) -> bool {
    match value {
        Value::None | Value::Bool(_) | Value::Int(_) | Value::Float(_) => true,
        Value::Str(_) | Value::Bytes(_) | Value::Text { .. } => true,
        Value::Tuple(items) => items.iter().all(is_key),
        Value::List(_) | Value::Dict(_) | Value::Set(_) => false,
    }
}

fn pid_object<'py>(py: Python<'py>, pid: Pid) -> PyResult<Bound<'py, PyAny>> {
    static PID: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    PID.import(py, "rebeam._ref", "Pid")?.call1(convert::pid_numbers(pid))
}

fn entry_object<'py>(py: Python<'py>, which: &Which, holder: Pid, value: &[u8]) -> PyResult<Bound<'py, PyAny>> {
    static ENTRY: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let pid = pid_object(py, holder)?;
    if !matches!(which, Which::Named(_)) {
        return Ok(pid);
    }
    ENTRY.import(py, "rebeam._registry", "Entry")?.call1((pid, value_object(py, value)?))
}

fn value_object<'py>(py: Python<'py>, value: &[u8]) -> PyResult<Bound<'py, PyAny>> {
    if value.is_empty() { Ok(py.None().into_bound(py)) } else { codec::loads(py, value) }
}

/// The message about a change under a key that is watched.
pub(crate) fn change_object<'py>(py: Python<'py>, signal: &Signal) -> PyResult<Bound<'py, PyAny>> {
    let Signal::Entry { watch, registry, key, holder, value } = signal else {
        return Err(PyTypeError::new_err("no change of a registry"));
    };
    let (pid, key) = (pid_object(py, *holder)?, codec::load_value(py, key)?);
    let is_group = *registry == Which::Groups;
    let module = py.import("rebeam._registry")?;
    match value {
        Some(value) => {
            let value = value_object(py, value)?;
            module.call_method1("entered", (is_group, watch, key, pid, value))
        }
        None => module.call_method1("left", (is_group, watch, key, pid)),
    }
}

fn registry_error(py: Python<'_>, which: &Which, key: &str, error: &RegistryError) -> PyResult<PyErr> {
    let (kind, pid, text) = match error {
        RegistryError::NoRegistry => ("no_registry", None, ""),
        RegistryError::AlreadyRegistered(pid) => ("already_registered", *pid, ""),
        RegistryError::NotRegistered => ("not_registered", None, ""),
        RegistryError::NoProc => ("no_proc", None, ""),
        RegistryError::NotYours => ("not_yours", None, ""),
        RegistryError::TooMuch(text) => ("too_much", None, text.as_str()),
    };
    let pid = pid.map(|pid| pid_object(py, pid)).transpose()?;
    let fields = (kind, which.to_string(), key, pid, text);
    Ok(PyErr::from_value(py.import("rebeam._errors")?.call_method1("registry_error", fields)?))
}

/// Whether somebody has a name, or will have it again: asked of the supervisor if nobody here knows of one.
#[pyfunction]
pub(crate) fn is_name_known(py: Python<'_>, name: String) -> PyResult<bool> {
    let key = text_key(&name);
    if ledger::is_there() && ledger::look(RegistryId::NAMES, |names| names.entries.contains_key(&*key)) {
        return Ok(true);
    }
    match crate::requests::ask(py, ProcessRequest::Whereis(name))? {
        ProcessAnswer::Whereis(found) => Ok(found.is_some()),
        other => unfit(&other),
    }
}
