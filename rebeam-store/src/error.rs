//! What may go wrong with the file of the tables.

use std::ffi::CStr;
use std::io;

/// Why the store or a reader could not do something.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The map of the file, or the file system that holds it, is full. What was to be written was not.
    #[error("the memory for tables is full")]
    Full,
    /// So many descriptors, so much memory or address space is not available.
    #[error("the tables cannot be reached: {0}")]
    System(#[from] io::Error),
    /// The file is not what was written to it. There is no way on but to begin with another one.
    #[error("the file of the tables is damaged (LMDB: {0})")]
    Damaged(String),
}

impl Error {
    /// The error with a number of LMDB's, or of the system's.
    pub(crate) fn of(code: i32) -> Self {
        match code {
            lmdb_master_sys::MDB_MAP_FULL | libc::ENOSPC | libc::EDQUOT => Error::Full,
            code if code > 0 => Error::System(io::Error::from_raw_os_error(code)),
            code => Error::Damaged(text(code)),
        }
    }
}

/// What LMDB says of one of its errors.
fn text(code: i32) -> String {
    // SAFETY: for any number it gives a text that nobody frees.
    unsafe { CStr::from_ptr(lmdb_master_sys::mdb_strerror(code)) }.to_string_lossy().into_owned()
}
