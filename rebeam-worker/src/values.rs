//! Values of tables as bytes and back: plain ones, pickles, and pickles whose large buffers lie in memory of their own.
//!
//! It must not know keys, rows or who may write them: see [`crate::tables`].

use std::ffi::c_int;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use pyo3::buffer::PyBuffer;
use pyo3::exceptions::{PyBufferError, PyOSError, PyValueError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyBytes, PyFloat, PyInt, PyString};
use rebeam_protocol::table::{Extent, PICKLE, PLAIN};
use rebeam_protocol::value::{self, Value};
use rebeam_store::Array;
use rebeam_sys::memory::{self, Access, Mapping};

use crate::codec::{self, Buffers};
use crate::ledger;
use crate::outgoing::explained;

/// Each buffer begins at a multiple of this, for the sake of vector instructions.
const ALIGNED: u64 = 64;

/// A value without arrays, whatever its size.
pub(crate) fn dumped(object: &Bound<'_, PyAny>) -> PyResult<Vec<u8>> {
    Arrays::none().dumped(object)
}

/// The arrays that come with an operation: the large buffers of its values.
pub(crate) struct Arrays {
    are_apart: bool,
    buffers: Vec<(u64, PyBuffer<u8>)>,
    end: u64,
}

impl Default for Arrays {
    fn default() -> Self {
        // Each operation with arrays takes a descriptor for a moment.
        Arrays { are_apart: !ledger::descriptors_are_few(), buffers: Vec::new(), end: 0 }
    }
}

impl Arrays {
    /// None: buffers stay in their values.
    pub(crate) fn none() -> Self {
        Arrays { are_apart: false, ..Arrays::default() }
    }

    /// Encodes a value; its large buffers come along.
    pub(crate) fn dumped(&mut self, object: &Bound<'_, PyAny>) -> PyResult<Vec<u8>> {
        let is_plain = object.is_none()
            || object.is_exact_instance_of::<PyString>()
            || object.is_exact_instance_of::<PyInt>()
            || object.is_exact_instance_of::<PyFloat>()
            || object.is_exact_instance_of::<PyBool>()
            || object.is_exact_instance_of::<PyBytes>();
        if is_plain {
            // A whole number of more than 128 bits is pickled, and so is text that is not made of whole characters.
            if let Ok(value) = codec::to_value(object)
                && !matches!(value, Value::Text { .. })
            {
                return Ok([&[PLAIN], &value::encode(&value)[..]].concat());
            }
        }
        let py = object.py();
        let are_apart = if self.are_apart { Buffers::Apart } else { Buffers::Within };
        let (pickle, buffers) = explained(py, codec::dumps_apart(object, are_apart), |module, error| {
            module.call_method1("explain_value", (object, error.value(py)))
        })?;
        if buffers.is_empty() {
            return Ok([&[PICKLE], pickle.as_bytes()].concat());
        }
        // The store copies whole pages.
        let offset = self.end.next_multiple_of(memory::page_size() as u64);
        let mut places = Vec::with_capacity(buffers.len());
        self.end = offset;
        for buffer in buffers {
            let (start, length) = (self.end.next_multiple_of(ALIGNED), buffer.len_bytes() as u64);
            places.push((start - offset, length));
            self.buffers.push((start, buffer));
            self.end = start + length;
        }
        let rest = [&codec::encode_places(&places), pickle.as_bytes()].concat();
        Ok(Extent { offset, length: self.end - offset }.encode(&rest))
    }

    /// The memory that they are copied to, if there are some.
    pub(crate) fn memory(&self, py: Python<'_>) -> PyResult<Option<OwnedFd>> {
        if self.buffers.is_empty() {
            return Ok(None);
        }
        let size = usize::try_from(self.end).unwrap_or(usize::MAX);
        let failed = |error| PyOSError::new_err(format!("no memory for arrays of {size} bytes: {error}"));
        let fd = memory::create(c"rebeam-arrays", size).map_err(failed)?;
        let mapping = Mapping::new(&fd, size, Access::Write).map_err(failed)?;
        let slices: Vec<_> = self.buffers.iter().map(|(at, it)| (*at, it.buf_ptr() as usize, it.len_bytes())).collect();
        let base = mapping.base() as usize;
        py.detach(|| {
            for (offset, start, length) in slices {
                // SAFETY: the buffers are held, and the memory is ours alone, and large enough.
                unsafe {
                    std::ptr::copy_nonoverlapping(start as *const u8, (base + offset as usize) as *mut u8, length);
                };
            }
        });
        Ok(Some(fd))
    }
}

/// The object of a value, which looks into its arrays, if it has some.
pub(crate) fn loaded<'py>(py: Python<'py>, value: &[u8], array: Option<&Arc<Array>>) -> PyResult<Bound<'py, PyAny>> {
    match value.split_first() {
        Some((&PLAIN, value)) => codec::load_value(py, value),
        Some((&PICKLE, pickle)) => codec::loads(py, pickle),
        _ => {
            let (_, rest) = Extent::of(value).ok_or_else(damaged)?;
            let (places, pickle) = codec::places(rest).ok_or_else(damaged)?;
            let array = array.ok_or_else(damaged)?;
            let views = places.iter().map(|place| ArrayBuffer::new(array, *place)).collect::<PyResult<Vec<_>>>()?;
            codec::loads_with(py, pickle, views)
        }
    }
}

pub(crate) fn damaged() -> PyErr {
    PyValueError::new_err("this row of the table is damaged")
}

/// A large buffer of a value, as Python sees it: to be read, by everybody who has it.
#[pyclass(frozen, module = "rebeam._rebeam")]
pub(crate) struct ArrayBuffer {
    array: Arc<Array>,
    offset: usize,
    length: usize,
}

impl ArrayBuffer {
    fn new(array: &Arc<Array>, (offset, length): (u64, u64)) -> PyResult<Self> {
        let (offset, length) = (offset as usize, length as usize);
        let end = offset.checked_add(length).ok_or_else(damaged)?;
        array.bytes().get(offset..end).ok_or_else(damaged)?;
        Ok(ArrayBuffer { array: array.clone(), offset, length })
    }
}

#[pymethods]
impl ArrayBuffer {
    /// # Safety
    /// Called by the interpreter, with a view to be filled.
    #[expect(clippy::needless_pass_by_value, reason = "pyo3 asks for it so")]
    unsafe fn __getbuffer__(slf: Bound<'_, Self>, view: *mut ffi::Py_buffer, flags: c_int) -> PyResult<()> {
        let buffer = slf.get();
        let start = buffer.array.bytes()[buffer.offset..].as_ptr().cast_mut().cast();
        // SAFETY: the array lives as long as this object, to which the view holds a reference, and stays as it is. The view
        // is read-only.
        let result = unsafe { ffi::PyBuffer_FillInfo(view, slf.as_ptr(), start, buffer.length as isize, 1, flags) };
        if result == 0 {
            Ok(())
        } else {
            Err(PyErr::take(slf.py()).unwrap_or_else(|| PyBufferError::new_err("no view")))
        }
    }
}
