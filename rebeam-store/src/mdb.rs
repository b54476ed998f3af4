//! LMDB's own interface, as far as it is used here, made safe: environments, transactions, cursors.
//!
//! `heed` is not used, since it has neither renewed read transactions nor `MDB_PREVSNAPSHOT`, both of which the protocol
//! of [`crate::pins`] is built on. There is one unnamed database, so nothing has to be opened within a transaction.

use std::ffi::{CString, c_uint};
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::ptr::{self, NonNull};
use std::slice;

use lmdb_master_sys as sys;

use crate::{Error, Result};

/// The unnamed database.
const MAIN: sys::MDB_dbi = 1;

fn check(code: i32) -> Result<()> {
    if code == sys::MDB_SUCCESS { Ok(()) } else { Err(Error::of(code)) }
}

/// Like [`check`], but what is not there is no error.
fn found(code: i32) -> Result<bool> {
    match code {
        sys::MDB_NOTFOUND => Ok(false),
        code => check(code).map(|()| true),
    }
}

fn val(bytes: &[u8]) -> sys::MDB_val {
    sys::MDB_val { mv_size: bytes.len(), mv_data: bytes.as_ptr().cast_mut().cast() }
}

/// # Safety
/// The bytes must stay as they are for the lifetime.
unsafe fn bytes<'a>(val: &sys::MDB_val) -> &'a [u8] {
    if val.mv_size == 0 {
        return &[];
    }
    // SAFETY: LMDB gives a pointer to so many bytes; that they stay is the caller's promise.
    unsafe { slice::from_raw_parts(val.mv_data.cast(), val.mv_size) }
}

/// A path by which this process opens the file of a descriptor once more.
pub(crate) fn path_of(file: &impl AsFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_fd().as_raw_fd()))
}

/// How an environment is opened.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Mode {
    /// By the one writer. The file may be damaged if the machine, but not if a process ends: it is in memory anyway.
    Write { most_readers: u32 },
    /// By a reader, which touches the data file alone.
    Read,
    /// As [`Mode::Read`], from the meta page before the newest.
    ReadPrevious,
}

/// An open file.
#[derive(Debug)]
pub(crate) struct Env(NonNull<sys::MDB_env>);

// SAFETY: with MDB_NOTLS neither an environment nor its read transactions belong to a thread. (A write transaction does:
// LMDB's lock is held by who began it; [`Txn`] is not `Send`.)
unsafe impl Send for Env {}
// SAFETY: as above; to begin and end transactions LMDB takes its own locks.
unsafe impl Sync for Env {}

impl Env {
    /// Opens a file whose map has so many bytes of address space.
    ///
    /// # Errors
    /// Those of the system and of LMDB.
    pub(crate) fn open(path: &Path, mode: Mode, map_size: usize) -> Result<Self> {
        let path = CString::new(path.as_os_str().as_bytes()).map_err(|_| Error::of(libc::EINVAL))?;
        let mut env = ptr::null_mut();
        // SAFETY: it makes an environment, or gives an error.
        check(unsafe { sys::mdb_env_create(&mut env) })?;
        let env = Env(NonNull::new(env).ok_or_else(|| Error::of(libc::ENOMEM))?);
        let flags = sys::MDB_NOSUBDIR | sys::MDB_NOTLS;
        let (flags, readers, permissions) = match mode {
            Mode::Write { most_readers } => (flags | sys::MDB_NOSYNC | sys::MDB_NOMETASYNC, most_readers, 0o600),
            Mode::Read => (flags | sys::MDB_RDONLY | sys::MDB_NOLOCK, 1, 0),
            Mode::ReadPrevious => (flags | sys::MDB_RDONLY | sys::MDB_NOLOCK | sys::MDB_PREVSNAPSHOT, 1, 0),
        };
        // SAFETY: the environment is not open yet, as these demand; `path` is a C string that is copied.
        unsafe {
            check(sys::mdb_env_set_maxreaders(env.0.as_ptr(), readers))?;
            check(sys::mdb_env_set_mapsize(env.0.as_ptr(), map_size))?;
            check(sys::mdb_env_open(env.0.as_ptr(), path.as_ptr(), flags, permissions))?;
        }
        env.open_main(if matches!(mode, Mode::Write { .. }) { 0 } else { sys::MDB_RDONLY })?;
        Ok(env)
    }

    /// Has LMDB set how keys compare, which it does when a database is opened for the first time.
    fn open_main(&self, flags: c_uint) -> Result<()> {
        let txn = self.begin(flags)?;
        let mut main = 0;
        // SAFETY: the transaction is under way, and gone afterwards.
        let opened = check(unsafe { sys::mdb_dbi_open(txn.as_ptr(), ptr::null(), 0, &mut main) });
        // SAFETY: as above. A commit keeps the database open.
        let committed = check(unsafe { sys::mdb_txn_commit(txn.as_ptr()) });
        debug_assert_eq!(main, MAIN);
        opened.and(committed)
    }

    /// Bytes of the file that were ever used.
    pub(crate) fn used(&self) -> usize {
        let mut info = sys::MDB_envinfo {
            me_mapaddr: ptr::null_mut(),
            me_mapsize: 0,
            me_last_pgno: 0,
            me_last_txnid: 0,
            me_maxreaders: 0,
            me_numreaders: 0,
        };
        let mut stat = sys::MDB_stat {
            ms_psize: 0,
            ms_depth: 0,
            ms_branch_pages: 0,
            ms_leaf_pages: 0,
            ms_overflow_pages: 0,
            ms_entries: 0,
        };
        // SAFETY: the environment is open, and both are there to be filled.
        unsafe {
            sys::mdb_env_info(self.0.as_ptr(), &mut info);
            sys::mdb_env_stat(self.0.as_ptr(), &mut stat);
        }
        (info.me_last_pgno + 1) * stat.ms_psize as usize
    }

    fn begin(&self, flags: c_uint) -> Result<NonNull<sys::MDB_txn>> {
        let mut txn = ptr::null_mut();
        // SAFETY: the environment is open, and the transaction is within no other.
        check(unsafe { sys::mdb_txn_begin(self.0.as_ptr(), ptr::null_mut(), flags, &mut txn) })?;
        NonNull::new(txn).ok_or_else(|| Error::of(libc::ENOMEM))
    }

    /// Begins to read.
    ///
    /// # Errors
    /// Those of LMDB.
    pub(crate) fn read(&self) -> Result<ReadTxn> {
        Ok(ReadTxn(self.begin(sys::MDB_RDONLY)?))
    }

    /// Begins to write.
    ///
    /// # Errors
    /// Those of LMDB.
    pub(crate) fn write(&self) -> Result<WriteTxn<'_>> {
        Ok(WriteTxn { txn: Some(self.begin(0)?), _env: PhantomData })
    }
}

impl Drop for Env {
    fn drop(&mut self) {
        // SAFETY: whoever holds a transaction of it drops that first (see the fields of `Reader` and `Store`).
        unsafe { sys::mdb_env_close(self.0.as_ptr()) };
    }
}

/// A transaction that reads. It must not outlive its environment: who has both drops this first.
#[derive(Debug)]
pub(crate) struct ReadTxn(NonNull<sys::MDB_txn>);

// SAFETY: see `Env`.
unsafe impl Send for ReadTxn {}

impl ReadTxn {
    /// From which committed transaction it reads.
    pub(crate) fn id(&self) -> u64 {
        // SAFETY: the transaction is there.
        unsafe { sys::mdb_txn_id(self.0.as_ptr()) as u64 }
    }

    /// Ends reading; [`renew`](Self::renew) begins again.
    pub(crate) fn reset(&self) {
        // SAFETY: the transaction is there; to reset one that is reset already does nothing.
        unsafe { sys::mdb_txn_reset(self.0.as_ptr()) };
    }

    /// Begins again after a reset, with what is committed now.
    ///
    /// # Errors
    /// Those of LMDB; a meta page that is being written is one.
    pub(crate) fn renew(&self) -> Result<()> {
        // SAFETY: the transaction is there and was reset.
        check(unsafe { sys::mdb_txn_renew(self.0.as_ptr()) })
    }

    /// The value under a key.
    ///
    /// # Errors
    /// Those of LMDB.
    pub(crate) fn get(&self, key: &[u8]) -> Result<Option<&[u8]>> {
        get(self.0, key)
    }

    /// A cursor, which stands nowhere yet.
    ///
    /// # Errors
    /// Those of LMDB.
    pub(crate) fn cursor(&self) -> Result<Cursor<'_>> {
        Cursor::open(self.0)
    }
}

impl Drop for ReadTxn {
    fn drop(&mut self) {
        // SAFETY: the transaction is there, and nobody uses it any more.
        unsafe { sys::mdb_txn_abort(self.0.as_ptr()) };
    }
}

fn get<'a>(txn: NonNull<sys::MDB_txn>, key: &[u8]) -> Result<Option<&'a [u8]>> {
    let mut data = val(&[]);
    // SAFETY: the transaction is under way; the key is only read.
    let is_there = found(unsafe { sys::mdb_get(txn.as_ptr(), MAIN, &mut val(key), &mut data) })?;
    // SAFETY: the value stays while the transaction reads (or until it writes again): callers bind it to that.
    Ok(is_there.then(|| unsafe { bytes(&data) }))
}

/// A transaction that writes. It is undone unless it is committed.
pub(crate) struct WriteTxn<'env> {
    txn: Option<NonNull<sys::MDB_txn>>,
    /// It ends before its environment; and it belongs to the thread that began it.
    _env: PhantomData<(&'env Env, *mut ())>,
}

impl WriteTxn<'_> {
    fn txn(&self) -> Result<NonNull<sys::MDB_txn>> {
        self.txn.ok_or_else(|| Error::of(sys::MDB_BAD_TXN))
    }

    /// The number that it will be committed under.
    pub(crate) fn id(&self) -> u64 {
        // SAFETY: the transaction is there.
        self.txn.map_or(0, |txn| unsafe { sys::mdb_txn_id(txn.as_ptr()) as u64 })
    }

    /// The value under a key, until the next change.
    ///
    /// # Errors
    /// Those of LMDB.
    pub(crate) fn get(&self, key: &[u8]) -> Result<Option<&[u8]>> {
        get(self.txn()?, key)
    }

    /// A cursor; changes wait until it is dropped.
    ///
    /// # Errors
    /// Those of LMDB.
    pub(crate) fn cursor(&self) -> Result<Cursor<'_>> {
        Cursor::open(self.txn()?)
    }

    /// Puts a value under a key.
    ///
    /// # Errors
    /// Those of LMDB.
    pub(crate) fn put(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        let txn = self.txn()?;
        // SAFETY: the transaction is under way; key and value are copied.
        check(unsafe { sys::mdb_put(txn.as_ptr(), MAIN, &mut val(key), &mut val(value), 0) })
    }

    /// Removes a key; false if it was not there.
    ///
    /// # Errors
    /// Those of LMDB.
    pub(crate) fn delete(&mut self, key: &[u8]) -> Result<bool> {
        let txn = self.txn()?;
        // SAFETY: the transaction is under way; the key is only read.
        found(unsafe { sys::mdb_del(txn.as_ptr(), MAIN, &mut val(key), ptr::null_mut()) })
    }

    /// Makes the changes lasting: all of them, or, with an error, none.
    ///
    /// # Errors
    /// Those of LMDB and of the system; a full file system is one.
    pub(crate) fn commit(mut self) -> Result<()> {
        let txn = self.txn()?;
        self.txn = None;
        // SAFETY: the transaction is under way, and gone afterwards, whatever comes of it.
        check(unsafe { sys::mdb_txn_commit(txn.as_ptr()) })
    }
}

impl Drop for WriteTxn<'_> {
    fn drop(&mut self) {
        if let Some(txn) = self.txn {
            // SAFETY: the transaction is under way, and nobody uses it any more.
            unsafe { sys::mdb_txn_abort(txn.as_ptr()) };
        }
    }
}

/// A place among the keys of a transaction.
#[derive(Debug)]
pub(crate) struct Cursor<'txn> {
    cursor: NonNull<sys::MDB_cursor>,
    _txn: PhantomData<&'txn ()>,
}

/// Where a cursor goes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum To<'a> {
    /// The first key.
    First,
    /// The last key.
    Last,
    /// The first key that is not smaller.
    AtLeast(&'a [u8]),
    /// The next key; from nowhere, the first.
    Next,
    /// The key before; from nowhere, the last.
    Previous,
}

/// A key and its value.
pub(crate) type Item<'txn> = (&'txn [u8], &'txn [u8]);

impl<'txn> Cursor<'txn> {
    fn open(txn: NonNull<sys::MDB_txn>) -> Result<Self> {
        let mut cursor = ptr::null_mut();
        // SAFETY: the transaction is under way.
        check(unsafe { sys::mdb_cursor_open(txn.as_ptr(), MAIN, &mut cursor) })?;
        let cursor = NonNull::new(cursor).ok_or_else(|| Error::of(libc::ENOMEM))?;
        Ok(Cursor { cursor, _txn: PhantomData })
    }

    /// Goes there; what is there.
    ///
    /// # Errors
    /// Those of LMDB.
    pub(crate) fn go(&mut self, to: To<'_>) -> Result<Option<Item<'txn>>> {
        let (mut key, operation) = match to {
            To::First => (val(&[]), sys::MDB_FIRST),
            To::Last => (val(&[]), sys::MDB_LAST),
            To::AtLeast(key) => (val(key), sys::MDB_SET_RANGE),
            To::Next => (val(&[]), sys::MDB_NEXT),
            To::Previous => (val(&[]), sys::MDB_PREV),
        };
        let mut data = val(&[]);
        // SAFETY: the cursor's transaction is under way, as its lifetime says; the key that is given is only read.
        let is_there = found(unsafe { sys::mdb_cursor_get(self.cursor.as_ptr(), &mut key, &mut data, operation) })?;
        // SAFETY: both stay while the transaction lasts unchanged, which the lifetime says.
        Ok(is_there.then(|| unsafe { (bytes(&key), bytes(&data)) }))
    }
}

impl Drop for Cursor<'_> {
    fn drop(&mut self) {
        // SAFETY: the cursor is there; its transaction is still under way, which a writer's cursor needs.
        unsafe { sys::mdb_cursor_close(self.cursor.as_ptr()) };
    }
}
