//! Memory in which large buffers go from one worker to another without being copied by the supervisor or the receiver.
//!
//! The sender copies a message's buffers into an arena, a memfd that the supervisor knows (once per arena), and may
//! write to it again when the supervisor says that nobody has it any more: fresh memory is slow, used memory is not. The
//! receiver maps what is lent to it, so that what it writes there is its own, as with any message; the mapping lives as long as
//! any object that looks into it. What lies in an arena already, one's own or a lent one, and was not written to, is passed on
//! as it is. It must not know pickles: see [`crate::codec`].

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use nix::sys::resource::{Resource, getrlimit};
use pyo3::exceptions::{PyBufferError, PyOSError};
use pyo3::ffi;
use pyo3::prelude::*;
use rebeam_protocol::worker::{Buffers, Lease, Memory, ToSupervisor};
use rebeam_sys::memory::{self, Access};

use crate::channel::Channel;
use crate::ledger;
use crate::session::{is_helper, send_with};

/// Buffers from this size on go out of band.
pub(crate) const LARGE: usize = 64 * 1024;

/// Each buffer begins at a multiple of this, for the sake of vector instructions.
const ALIGNED: usize = 64;

/// Arenas are made in multiples of this, so that they fit the next message, too.
const GRAIN: usize = 1024 * 1024;

/// How much memory may lie idle in arenas, and in how many.
const IDLE_BYTES: usize = 128 * 1024 * 1024;
const IDLE: usize = 16;

/// How many arenas there may be, in use or not; more large buffers travel within their pickle.
const MOST: usize = 500;

/// The same where descriptors are few: this share of those that a process may have. The supervisor has as many as we.
const SHARE: u64 = 32;

fn most() -> usize {
    static MOST_HERE: OnceLock<usize> = OnceLock::new();
    *MOST_HERE.get_or_init(|| {
        let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(u64::MAX, |(soft, _)| soft);
        usize::try_from(limit / SHARE).unwrap_or(MOST).clamp(4, MOST)
    })
}

/// Copies above this leave the interpreter to other threads.
const LONG_COPY: usize = 1024 * 1024;

/// Memory that was lent to this process: told back when nothing looks into it any more.
pub(crate) struct Leased {
    fd: OwnedFd,
    lease: Lease,
}

impl Leased {
    pub(crate) fn new(fd: OwnedFd, lease: Lease) -> Self {
        Leased { fd, lease }
    }
}

impl Drop for Leased {
    fn drop(&mut self) {
        if is_helper() {
            return;
        }
        let mut state = state();
        if state.pinned.contains(&self.lease.lease) {
            return;
        }
        state.released.push(self.lease.lease);
        HAS_NEWS.store(true, Ordering::Relaxed);
    }
}

/// A mapping of memory that messages were, or may be, made of.
struct Mapping {
    memory: ManuallyDrop<memory::Mapping>,
    source: Source,
    access: Access,
    /// Whether it may be looked up by where it is.
    is_known: bool,
}

impl Mapping {
    fn new(memory: memory::Mapping, source: Source, access: Access) -> Self {
        Mapping { memory: ManuallyDrop::new(memory), source, access, is_known: false }
    }

    /// Whether these bytes are still what the memory's maker has put there.
    fn is_as_made(&self, start: usize, length: usize) -> bool {
        self.access == Access::Read || self.memory.is_as_in_file(start - self.base(), length)
    }

    fn base(&self) -> usize {
        self.memory.base() as usize
    }

    fn size(&self) -> usize {
        self.memory.size()
    }
}

/// Whose memory a mapping shows.
#[derive(Clone)]
enum Source {
    Leased(Arc<Leased>),
    /// A view on an arena of our own, held as long as it lives.
    Own(Arc<OwnView>),
}

struct OwnView {
    arena: u64,
}

impl Drop for OwnView {
    fn drop(&mut self) {
        if !is_helper() {
            state().give_back(self.arena);
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if is_helper() {
            return;
        }
        if self.is_known {
            state().mapped.remove(&self.base());
        }
        // SAFETY: it is not used again. (A helper keeps its mappings: it ends soon, and may not tell of them.)
        unsafe { ManuallyDrop::drop(&mut self.memory) };
    }
}

/// An arena of our own.
struct Arena {
    fd: Arc<OwnedFd>,
    memory: memory::Mapping,
    size: usize,
    /// Messages and views that have it.
    holds: usize,
}

#[derive(Default)]
struct State {
    arenas: BTreeMap<u64, Arena>,
    next: u64,
    released: Vec<u64>,
    /// Arenas given up, to be told.
    gone: Vec<u64>,
    /// What is mapped, by where it begins: its end, what it is, and the mapping.
    mapped: BTreeMap<usize, (usize, Memory, Weak<Mapping>)>,
    /// Leases that a forked helper may look into, and that are never given back.
    pinned: BTreeSet<u64>,
}

static STATE: Mutex<State> = Mutex::new(State {
    arenas: BTreeMap::new(),
    next: 0,
    released: Vec::new(),
    gone: Vec::new(),
    mapped: BTreeMap::new(),
    pinned: BTreeSet::new(),
});

/// Whether there is something to tell.
static HAS_NEWS: AtomicBool = AtomicBool::new(false);

fn state() -> MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    fn give_back(&mut self, number: u64) {
        if let Some(arena) = self.arenas.get_mut(&number) {
            arena.holds = arena.holds.saturating_sub(1);
        }
        // What is idle beyond the bound goes, the largest first.
        let most = if ledger::descriptors_are_few() { 1 } else { IDLE };
        loop {
            let idle = || self.arenas.iter().filter(|(_, arena)| arena.holds == 0);
            if idle().count() <= most && idle().map(|(_, arena)| arena.size).sum::<usize>() <= IDLE_BYTES {
                return;
            }
            let Some(number) = idle().max_by_key(|(_, arena)| arena.size).map(|(number, _)| *number) else { return };
            self.give_up(number);
        }
    }

    fn give_up(&mut self, number: u64) {
        if self.arenas.remove(&number).is_some() {
            self.gone.push(number);
            HAS_NEWS.store(true, Ordering::Relaxed);
        }
    }
}

/// Nobody has an arena of ours any more.
pub(crate) fn freed(arena: u64) {
    state().give_back(arena);
}

/// A helper is about to be forked, and may look into all that is mapped: none of it is given back any more.
pub(crate) fn pin_memory() {
    let mut state = state();
    let memories: Vec<Memory> = state.mapped.values().map(|(_, memory, _)| *memory).collect();
    for memory in memories {
        match memory {
            Memory::Lease(lease) => {
                state.pinned.insert(lease);
            }
            Memory::Arena(number) => {
                if let Some(arena) = state.arenas.get_mut(&number) {
                    arena.holds += 1;
                }
            }
        }
    }
}

/// Gives idle arenas back to the system.
pub(crate) fn trim() {
    let mut state = state();
    let idle: Vec<u64> = state.arenas.iter().filter(|(_, arena)| arena.holds == 0).map(|(number, _)| *number).collect();
    idle.into_iter().for_each(|number| state.give_up(number));
}

/// What the supervisor is to be told: leases that nothing looks into any more, and arenas that are gone.
pub(crate) fn news() -> Vec<ToSupervisor> {
    if !HAS_NEWS.swap(false, Ordering::Relaxed) {
        return Vec::new();
    }
    let mut state = state();
    let gone = std::mem::take(&mut state.gone).into_iter().map(|arena| ToSupervisor::ArenaGone { arena });
    let mut news: Vec<ToSupervisor> = gone.collect();
    if !state.released.is_empty() {
        news.push(ToSupervisor::Released { leases: std::mem::take(&mut state.released) });
    }
    news
}

/// Bytes of another object, as [`place`] gets them.
#[derive(Clone, Copy)]
pub(crate) struct Slice {
    pub(crate) start: usize,
    pub(crate) length: usize,
}

/// Buffers that a receiver can map.
pub(crate) struct Placed {
    pub(crate) buffers: Buffers,
    /// Where each of them is: offset and length.
    pub(crate) places: Vec<(u64, u64)>,
    /// What they lie in, if that was handed to us: to be kept until the message is sent.
    pub(crate) held: Option<Held>,
}

/// Keeps a mapping.
pub(crate) struct Held {
    _mapping: Arc<Mapping>,
}

/// Places buffers where a receiver can map them, copying them unless they lie in such memory already. The arena is held
/// until the supervisor says that nobody has it. `None` if there may be no more arenas: there are many in use, or descriptors
/// are few.
pub(crate) fn place(py: Python<'_>, channel: &Channel, slices: &[Slice]) -> PyResult<Option<Placed>> {
    if let Some(placed) = lies_in(slices) {
        if let Memory::Arena(number) = placed.buffers.from
            && let Some(arena) = state().arenas.get_mut(&number)
        {
            arena.holds += 1;
        }
        return Ok(Some(placed));
    }
    let mut places = Vec::with_capacity(slices.len());
    let mut end = 0usize;
    for slice in slices {
        places.push((end as u64, slice.length as u64));
        end = (end + slice.length).next_multiple_of(ALIGNED);
    }
    let Some((number, base)) = take_arena(py, channel, end.max(1))? else { return Ok(None) };
    let copy = || {
        for (slice, (offset, _)) in slices.iter().zip(&places) {
            // SAFETY: the caller holds the source buffer; the arena is ours alone until it is sent, and large enough.
            unsafe {
                let to = (base + *offset as usize) as *mut u8;
                std::ptr::copy_nonoverlapping(slice.start as *const u8, to, slice.length);
            }
        }
    };
    if end > LONG_COPY {
        py.detach(copy);
    } else {
        copy();
    }
    Ok(Some(Placed { buffers: Buffers { from: Memory::Arena(number), bytes: end as u64 }, places, held: None }))
}

/// Takes a placed arena back whose message was not sent.
pub(crate) fn take_back(buffers: Buffers) {
    if let Memory::Arena(number) = buffers.from {
        state().give_back(number);
    }
}

/// The memory that all of these lie in, if it is one that can be passed on.
fn lies_in(slices: &[Slice]) -> Option<Placed> {
    let state = state();
    let first = slices.first()?;
    let (base, (end, memory, mapping)) = state.mapped.range(..=first.start).next_back()?;
    let (base, end, memory, mapping) = (*base, *end, *memory, mapping.clone());
    // A mapping that goes asks for the state.
    drop(state);
    let mapping = mapping.upgrade()?;
    let place = |slice: &Slice| {
        let is_inside = slice.start >= base && slice.start + slice.length <= end;
        is_inside.then(|| ((slice.start - base) as u64, slice.length as u64))
    };
    let bytes = slices.iter().map(|slice| slice.length as u64).sum();
    let places = slices.iter().map(place).collect::<Option<_>>()?;
    if !slices.iter().all(|slice| mapping.is_as_made(slice.start, slice.length)) {
        return None;
    }
    Some(Placed { buffers: Buffers { from: memory, bytes }, places, held: Some(Held { _mapping: mapping }) })
}

/// An idle arena that is large enough, or a new one; held once.
fn take_arena(py: Python<'_>, channel: &Channel, size: usize) -> PyResult<Option<(u64, usize)>> {
    {
        let mut state = state();
        let fits = |arena: &Arena| arena.holds == 0 && arena.size >= size && arena.size / 4 <= size.max(GRAIN);
        let found = state.arenas.iter_mut().filter(|(_, arena)| fits(arena)).min_by_key(|(_, arena)| arena.size);
        if let Some((number, arena)) = found {
            arena.holds = 1;
            return Ok(Some((*number, arena.memory.base() as usize)));
        }
        if state.arenas.len() >= most() || ledger::descriptors_are_few() {
            return Ok(None);
        }
    }
    let size = size.next_multiple_of(GRAIN);
    let failed = |what: &str, error: io::Error| PyOSError::new_err(format!("{what} of {size} bytes: {error}"));
    let fd = memory::create(c"rebeam-buffers", size).map_err(|error| failed("no memory for buffers", error))?;
    let mapping = memory::Mapping::new(&fd, size, Access::Write);
    let memory = mapping.map_err(|error| failed("no room for buffers", error))?;
    let (fd, base) = (Arc::new(fd), memory.base() as usize);
    let number = {
        let mut state = state();
        state.next += 1;
        let number = state.next;
        state.arenas.insert(number, Arena { fd: fd.clone(), memory, size, holds: 1 });
        number
    };
    let message = ToSupervisor::Arena { arena: number, size: size as u64 };
    send_with(py, channel, &message, &[], Some(fd.as_fd()))?;
    Ok(Some((number, base)))
}

/// Bytes in such memory, as Python sees them.
#[pyclass(frozen, module = "rebeam._rebeam")]
pub(crate) struct Buffer {
    mapping: Arc<Mapping>,
    offset: usize,
    length: usize,
}

#[pymethods]
impl Buffer {
    /// # Safety
    /// Called by the interpreter, with a view to be filled.
    #[expect(clippy::needless_pass_by_value, reason = "pyo3 asks for it so")]
    unsafe fn __getbuffer__(slf: Bound<'_, Self>, view: *mut ffi::Py_buffer, flags: std::ffi::c_int) -> PyResult<()> {
        let buffer = slf.get();
        let start = (buffer.mapping.base() + buffer.offset) as *mut std::ffi::c_void;
        let is_read_only = std::ffi::c_int::from(buffer.mapping.access == Access::Read);
        // SAFETY: the mapping lives as long as this object, to which the view holds a reference. Its bytes stay as they
        // are as long as their maker does not write to them before it is told that nobody has them (`ArenaFree`): a promise
        // of the sender's worker, which runs the same application. One that breaks it can show us other bytes, not more.
        let result =
            unsafe { ffi::PyBuffer_FillInfo(view, slf.as_ptr(), start, buffer.length as isize, is_read_only, flags) };
        if result == 0 {
            Ok(())
        } else {
            Err(PyErr::take(slf.py()).unwrap_or_else(|| PyBufferError::new_err("no view")))
        }
    }
}

/// Views on memory that was lent to this process.
pub(crate) fn views(leased: Leased, places: &[(u64, u64)]) -> PyResult<Vec<Buffer>> {
    let (size, lease) = (leased.lease.size as usize, leased.lease.lease);
    let memory = memory::Mapping::new(&leased.fd, size, Access::Copy)
        .map_err(|error| PyOSError::new_err(format!("buffers of {size} bytes cannot be mapped: {error}")))?;
    let mapping = Mapping::new(memory, Source::Leased(Arc::new(leased)), Access::Copy);
    cut(mapping, Memory::Lease(lease), places)
}

/// Views on an arena of our own that [`place`] has just filled; they take over its hold.
pub(crate) fn own_views(buffers: Buffers, places: &[(u64, u64)]) -> PyResult<Option<Vec<Buffer>>> {
    let Memory::Arena(arena) = buffers.from else { return Ok(None) };
    let found = state().arenas.get(&arena).map(|arena| (arena.fd.clone(), arena.size));
    let Some((fd, size)) = found else { return Ok(None) };
    let source = Source::Own(Arc::new(OwnView { arena }));
    let memory = memory::Mapping::new(&*fd, size, Access::Read)?;
    cut(Mapping::new(memory, source, Access::Read), Memory::Arena(arena), places).map(Some)
}

/// Copy-on-write views on the same memory as these bytes lie in; `None` if that is no memory of this sort.
pub(crate) fn private_view(buffer: &Bound<'_, PyAny>, slice: Slice) -> PyResult<Option<Buffer>> {
    let found = mapping_behind(buffer, slice).filter(|mapping| mapping.is_as_made(slice.start, slice.length));
    let Some(mapping) = found else { return Ok(None) };
    let fd = match &mapping.source {
        Source::Leased(leased) => leased.fd.try_clone()?,
        Source::Own(view) => match state().arenas.get(&view.arena) {
            Some(arena) => arena.fd.try_clone()?,
            None => return Ok(None),
        },
    };
    let memory = memory::Mapping::new(&fd, mapping.size(), Access::Copy)?;
    let offset = slice.start - mapping.base();
    let private = Mapping::new(memory, mapping.source.clone(), Access::Copy);
    Ok(Some(Buffer { mapping: Arc::new(private), offset, length: slice.length }))
}

/// The mapping that a buffer of another object looks into: that object's memory views end in one of ours.
fn mapping_behind(buffer: &Bound<'_, PyAny>, slice: Slice) -> Option<Arc<Mapping>> {
    let is_known = {
        let state = state();
        let found = state.mapped.range(..=slice.start).next_back();
        found.is_some_and(|(_, (end, ..))| slice.start + slice.length <= *end)
    };
    if !is_known {
        return None;
    }
    // An object that looks into our memory holds ours as the base of its own, some steps down.
    let mut object = buffer.clone();
    for _ in 0..16 {
        if let Ok(own) = object.cast::<Buffer>() {
            return Some(own.get().mapping.clone());
        }
        object = ["obj", "base"].iter().find_map(|name| object.getattr(*name).ok().filter(|it| !it.is_none()))?;
    }
    None
}

fn cut(mut mapping: Mapping, memory: Memory, places: &[(u64, u64)]) -> PyResult<Vec<Buffer>> {
    mapping.is_known = true;
    let mapping = Arc::new(mapping);
    let (base, size) = (mapping.base(), mapping.size());
    state().mapped.insert(base, (base + size, memory, Arc::downgrade(&mapping)));
    let one = |(offset, length): &(u64, u64)| {
        let end = offset.checked_add(*length).filter(|end| *end <= size as u64);
        end.ok_or_else(|| PyBufferError::new_err("a buffer beyond its memory"))?;
        Ok(Buffer { mapping: mapping.clone(), offset: *offset as usize, length: *length as usize })
    };
    places.iter().map(one).collect()
}
