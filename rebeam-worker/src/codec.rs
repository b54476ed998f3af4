//! Python objects to bytes and back: pickles between actors, plain values for what comes from outside.

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBool, PyBytes, PyDict, PyFloat, PyFrozenSet, PyInt, PyList, PySet, PyString, PyTuple};
use rebeam_protocol::value::{self, MAX_DEPTH, Value};

static DUMPS: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
static LOADS: PyOnceLock<Py<PyAny>> = PyOnceLock::new();

/// Up to here bytes are copied into a Python object before they are unpickled; above it they are looked at in place.
const COPIED: usize = 4096;

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
    if object.is_instance_of::<PyInt>() {
        return Ok(Value::Int(object.extract()?));
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
    let class = object.get_type().fully_qualified_name()?;
    Err(PyTypeError::new_err(format!("`{class}` is not plain data")))
}

fn to_python<'py>(py: Python<'py>, value: &Value) -> PyResult<Bound<'py, PyAny>> {
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
