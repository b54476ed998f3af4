//! Python objects to bytes and back: pickles between actors, plain values for what comes from outside.

use std::cell::RefCell;

use pyo3::buffer::PyBuffer;
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBool, PyBytes, PyDict, PyFloat, PyFrozenSet, PyInt, PyList, PySet, PyString, PyTuple};
use rebeam_protocol::value::{self, MAX_DEPTH, Value};
use rebeam_protocol::worker;

use crate::arenas::{self, Buffer, Held, LARGE, Placed, Slice};
use crate::channel::Channel;
use crate::clock;
use crate::wire::Payload;

static DUMPS: PyOnceLock<Py<PyAny>> = PyOnceLock::new();

/// What is used instead, if something is.
static OWN_DUMPS: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
static LARGE_BUFFER: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
static LOADS: PyOnceLock<Py<PyAny>> = PyOnceLock::new();

/// Up to here bytes are copied into a Python object before they are unpickled; above it they are looked at in place.
const COPIED: usize = 4096;

/// A message's content on its way out.
pub(crate) struct Content<'py> {
    pub(crate) bytes: Bound<'py, PyBytes>,
    pub(crate) buffers: Option<worker::Buffers>,
    /// What the buffers lie in, until they are sent.
    pub(crate) held: Option<Held>,
}

impl<'py> Content<'py> {
    pub(crate) fn as_bytes(&self) -> &[u8] {
        self.bytes.as_bytes()
    }
}

thread_local! {
    /// Buffers that the pickle under way leaves to us.
    static COLLECTED: RefCell<Vec<PyBuffer<u8>>> = const { RefCell::new(Vec::new()) };
}

/// What pickle calls for every buffer that could go out of band; true keeps it in.
#[pyfunction]
fn keep_in_band(buffer: &Bound<'_, PyAny>) -> PyResult<bool> {
    let raw = buffer.call_method0("raw")?;
    let bytes = PyBuffer::<u8>::get(&raw)?;
    if bytes.len_bytes() < LARGE {
        return Ok(true);
    }
    COLLECTED.with_borrow_mut(|collected| collected.push(bytes));
    Ok(false)
}

/// Where the large buffers of an object go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Buffers {
    /// Into its pickle.
    Within,
    /// They are left out, and given apart.
    Apart,
}

impl Buffers {
    /// Of what is sent: where actors share a process, there is nothing to be mapped.
    fn of_messages() -> Self {
        if clock::is_virtual() { Buffers::Within } else { Buffers::Apart }
    }
}

/// Pickles an object with protocol 5.
pub(crate) fn dumps_apart<'py>(
    object: &Bound<'py, PyAny>,
    large: Buffers,
) -> PyResult<(Bound<'py, PyBytes>, Vec<PyBuffer<u8>>)> {
    let py = object.py();
    static KEYS: PyOnceLock<Py<PyDict>> = PyOnceLock::new();
    let dumps = match OWN_DUMPS.get(py) {
        Some(own) => own.bind(py),
        None => DUMPS.import(py, "_pickle", "dumps")?,
    };
    let keys = KEYS.get_or_try_init(py, || {
        let keys = PyDict::new(py);
        let callback =
            LARGE_BUFFER.get_or_try_init(py, || wrap_pyfunction!(keep_in_band, py).map(|it| it.into_any().unbind()))?;
        keys.set_item("buffer_callback", callback)?;
        Ok::<_, PyErr>(keys.unbind())
    })?;
    if large == Buffers::Within {
        return Ok((dumps.call1((object, 5))?.cast_into::<PyBytes>()?, Vec::new()));
    }
    // A pickle within a pickle (`__reduce__` that sends something) has collected its own by then.
    let before = COLLECTED.take();
    let result = dumps.call((object, 5), Some(keys.bind(py)));
    let collected = COLLECTED.replace(before);
    Ok((result?.cast_into::<PyBytes>()?, collected))
}

/// Pickles an object with its large buffers out of band, placed where a receiver can map them.
pub(crate) fn dump_content<'py>(channel: &Channel, object: &Bound<'py, PyAny>) -> PyResult<Content<'py>> {
    let (bytes, collected) = dumps_apart(object, Buffers::of_messages())?;
    if collected.is_empty() {
        return Ok(Content { bytes, buffers: None, held: None });
    }
    let py = object.py();
    let Some(Placed { buffers, places, held }) = arenas::place(py, channel, &slices(&collected))? else {
        return Ok(Content { bytes: dumps(object)?, buffers: None, held: None });
    };
    let whole = [&encode_places(&places), bytes.as_bytes()].concat();
    Ok(Content { bytes: PyBytes::new(py, &whole), buffers: Some(buffers), held })
}

fn slices(buffers: &[PyBuffer<u8>]) -> Vec<Slice> {
    buffers.iter().map(|buffer| Slice { start: buffer.buf_ptr() as usize, length: buffer.len_bytes() }).collect()
}

/// Unpickles a message, and maps its large buffers if it has any.
pub(crate) fn load_content<'py>(py: Python<'py>, payload: &mut Payload) -> PyResult<Bound<'py, PyAny>> {
    let Some(leased) = payload.memory.take() else { return loads(py, payload.as_slice()) };
    let cut_off = || PyValueError::new_err("a message whose buffers are not where it says");
    let (places, pickle) = places(payload.as_slice()).ok_or_else(cut_off)?;
    loads_with(py, pickle, arenas::views(leased, &places)?)
}

/// Where large buffers are: the offset and the length of each.
pub(crate) type Places = Vec<(u64, u64)>;

/// Where large buffers are, and the pickle that follows; `None` if it is cut off.
pub(crate) fn places(bytes: &[u8]) -> Option<(Places, &[u8])> {
    let (count, rest) = bytes.split_first_chunk::<4>()?;
    let count = u32::from_le_bytes(*count) as usize;
    let (numbers, pickle) = rest.split_at_checked(count.checked_mul(16)?)?;
    let number = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().unwrap_or_default());
    let places = numbers.chunks_exact(16).map(|pair| (number(&pair[..8]), number(&pair[8..])));
    Some((places.collect(), pickle))
}

/// What [`places`] reads.
pub(crate) fn encode_places(places: &[(u64, u64)]) -> Vec<u8> {
    let count = (places.len() as u32).to_le_bytes();
    let numbers = places.iter().flat_map(|(offset, length)| [offset.to_le_bytes(), length.to_le_bytes()]).flatten();
    count.into_iter().chain(numbers).collect()
}

/// Unpickles what was pickled without its large buffers.
pub(crate) fn loads_with<'py>(
    py: Python<'py>,
    pickle: &[u8],
    views: Vec<impl IntoPyObject<'py>>,
) -> PyResult<Bound<'py, PyAny>> {
    let loads = LOADS.import(py, "_pickle", "loads")?;
    let keys = PyDict::new(py);
    keys.set_item("buffers", PyList::new(py, views)?)?;
    loads.call((PyBytes::new(py, pickle),), Some(&keys))
}

/// A copy of an object whose large buffers lie in memory that is sent without being copied again.
#[pyfunction]
pub(crate) fn share<'py>(py: Python<'py>, object: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    let (bytes, collected) = dumps_apart(object, Buffers::of_messages())?;
    let channel = crate::session::channel(py)?;
    if collected.is_empty() {
        return loads(py, bytes.as_bytes());
    }
    let Some(Placed { buffers, places, .. }) = arenas::place(py, channel, &slices(&collected))? else {
        return Ok(object.clone());
    };
    match arenas::own_views(buffers, &places)? {
        Some(views) => loads_with(py, bytes.as_bytes(), views),
        // It lies in memory of this sort already.
        None => Ok(object.clone()),
    }
}

/// A copy-on-write view on the bytes of a buffer, if they lie in memory that was handed over or shared.
#[pyfunction]
pub(crate) fn private_view(buffer: &Bound<'_, PyAny>) -> PyResult<Option<Buffer>> {
    let bytes = PyBuffer::<u8>::get(buffer)?;
    let slice = Slice { start: bytes.buf_ptr() as usize, length: bytes.len_bytes() };
    arenas::private_view(buffer, slice)
}

/// Pickles with this function from now on, which is used as `_pickle.dumps` is.
#[pyfunction]
pub(crate) fn set_dumps(py: Python<'_>, dumps: Py<PyAny>) -> PyResult<()> {
    OWN_DUMPS.set(py, dumps).map_err(|_| PyTypeError::new_err("there is such a function already"))
}

/// Pickles an object with protocol 5.
pub(crate) fn dumps<'py>(object: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyBytes>> {
    let py = object.py();
    let dumps = DUMPS.import(py, "_pickle", "dumps")?;
    Ok(dumps.call1((object, 5))?.cast_into::<PyBytes>()?)
}

/// Unpickles. Only ever of bytes that a worker of this tree made.
pub(crate) fn loads<'py>(py: Python<'py>, bytes: &[u8]) -> PyResult<Bound<'py, PyAny>> {
    let loads = LOADS.import(py, "_pickle", "loads")?;
    if bytes.len() <= COPIED {
        return loads.call1((PyBytes::new(py, bytes),));
    }
    // SAFETY: the view is read-only and released before `bytes` goes: `loads` copies what it keeps.
    let view = unsafe {
        let pointer = bytes.as_ptr().cast_mut().cast();
        let view = pyo3::ffi::PyMemoryView_FromMemory(pointer, bytes.len() as isize, pyo3::ffi::PyBUF_READ);
        Bound::from_owned_ptr_or_err(py, view)?
    };
    let result = loads.call1((&view,));
    view.call_method0("release")?;
    result
}

/// The plain value of an object.
pub(crate) fn to_value(object: &Bound<'_, PyAny>) -> PyResult<Value> {
    plain(object, 0)
}

/// Encodes an object as a plain value.
pub(crate) fn dump_value(object: &Bound<'_, PyAny>) -> PyResult<Vec<u8>> {
    Ok(value::encode(&to_value(object)?))
}

/// Decodes a plain value.
pub(crate) fn load_value<'py>(py: Python<'py>, bytes: &[u8]) -> PyResult<Bound<'py, PyAny>> {
    let value = value::decode(bytes).map_err(PyValueError::new_err)?;
    to_python(py, &value)
}

fn plain(object: &Bound<'_, PyAny>, depth: usize) -> PyResult<Value> {
    if depth >= MAX_DEPTH {
        return Err(PyValueError::new_err(format!("plain data may nest {MAX_DEPTH} levels deep, not more")));
    }
    let all = |items: Vec<Bound<'_, PyAny>>| -> PyResult<Vec<Value>> {
        items.iter().map(|item| plain(item, depth + 1)).collect()
    };
    if object.is_none() {
        return Ok(Value::None);
    }
    if let Ok(value) = object.cast::<PyBool>() {
        return Ok(Value::Bool(value.is_true()));
    }
    if let (true, Ok(value)) = (object.is_instance_of::<PyInt>(), object.extract()) {
        return Ok(Value::Int(value));
    }
    if object.is_instance_of::<PyFloat>() {
        return Ok(Value::Float(object.extract()?));
    }
    if object.is_instance_of::<PyString>() {
        return Ok(Value::Str(object.extract()?));
    }
    if let Ok(bytes) = object.cast::<PyBytes>() {
        return Ok(Value::Bytes(bytes.as_bytes().to_vec()));
    }
    if let Ok(list) = object.cast::<PyList>() {
        return Ok(Value::List(all(list.iter().collect())?));
    }
    if let Ok(tuple) = object.cast::<PyTuple>() {
        return Ok(Value::Tuple(all(tuple.iter().collect())?));
    }
    if let Ok(dict) = object.cast::<PyDict>() {
        let pair = |(key, value)| Ok((plain(&key, depth + 1)?, plain(&value, depth + 1)?));
        return Ok(Value::Dict(dict.iter().map(pair).collect::<PyResult<_>>()?));
    }
    if object.is_instance_of::<PySet>() || object.is_instance_of::<PyFrozenSet>() {
        return Ok(Value::Set(all(object.try_iter()?.collect::<PyResult<_>>()?)?));
    }
    let others = object.py().import("rebeam._plain")?;
    if let Some((kind, text)) = others.call_method1("kind_and_text", (object,))?.extract()? {
        return Ok(Value::Text { kind, text });
    }
    if let Some((simpler,)) = others.call_method1("simpler", (object,))?.extract::<Option<(Bound<'_, PyAny>,)>>()? {
        return plain(&simpler, depth + 1);
    }
    let class = object.get_type().fully_qualified_name()?;
    Err(PyTypeError::new_err(format!("`{class}` is not plain data")))
}

/// The object of a plain value.
pub(crate) fn to_python<'py>(py: Python<'py>, value: &Value) -> PyResult<Bound<'py, PyAny>> {
    let all = |items: &[Value]| -> PyResult<Vec<Bound<'py, PyAny>>> {
        items.iter().map(|item| to_python(py, item)).collect()
    };
    Ok(match value {
        Value::None => py.None().into_bound(py),
        Value::Bool(value) => PyBool::new(py, *value).to_owned().into_any(),
        Value::Int(value) => value.into_pyobject(py)?.into_any(),
        Value::Float(value) => PyFloat::new(py, *value).into_any(),
        Value::Str(value) => PyString::new(py, value).into_any(),
        Value::Bytes(value) => PyBytes::new(py, value).into_any(),
        Value::Text { kind, text } => py.import("rebeam._plain")?.call_method1("made", (kind, text))?,
        Value::List(items) => PyList::new(py, all(items)?)?.into_any(),
        Value::Tuple(items) => PyTuple::new(py, all(items)?)?.into_any(),
        Value::Set(items) => PySet::new(py, all(items)?)?.into_any(),
        Value::Dict(items) => {
            let dict = PyDict::new(py);
            for (key, value) in items {
                dict.set_item(to_python(py, key)?, to_python(py, value)?)?;
            }
            dict.into_any()
        }
    })
}
