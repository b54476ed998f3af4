//! What Python's standard library does not tell of the system.

use pyo3::prelude::*;

/// When a file or directory came to be there, in seconds since 1970; `None` if it is not there, or that is not known.
#[pyfunction]
pub(crate) fn birth_time(path: std::path::PathBuf) -> Option<f64> {
    let born = std::fs::symlink_metadata(path).ok()?.created().ok()?;
    Some(born.duration_since(std::time::UNIX_EPOCH).ok()?.as_secs_f64())
}

/// The time that a file gets which is made now, in seconds since 1970. It advances in steps of milliseconds.
#[pyfunction]
pub(crate) fn file_time() -> PyResult<f64> {
    Ok(rebeam_sys::memory::file_time()?.as_secs_f64())
}

/// Whether a library of this process may have registered handlers with `pthread_atfork` that do something.
#[pyfunction]
pub(crate) fn has_fork_handlers() -> bool {
    rebeam_sys::libraries::any_that_wants("__register_atfork", |name| {
        HARMLESS_FORK_HANDLERS.iter().any(|harmless| name.starts_with(harmless))
    })
}

/// Libraries whose fork handlers need not run: the C library's own, and OpenSSL 3's, which do nothing.
const HARMLESS_FORK_HANDLERS: [&str; 7] =
    ["libc.", "libc-", "libpthread", "ld-linux", "libcrypto", "libpython", "rebeam-worker"];
