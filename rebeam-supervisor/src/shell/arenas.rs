//! Memory in which workers hand large buffers to each other. Only descriptors pass through here.
//!
//! A worker makes arenas, and tells us once about each. A message whose buffers lie in one holds it ([`Hold`]) for as
//! long as the message or any receiver of it is there; then its maker may write to it again. Nothing is left behind by
//! a death: an arena is a memfd, which is gone with the last descriptor and mapping of it. It must not map anything.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rebeam_core::event::Ticket;
use rebeam_protocol::id::ProcessId;
use rebeam_protocol::worker::{Buffers, Lease, Memory};
use rebeam_sys::memory::check_sealed;

/// How many arenas one worker may have.
const MOST: usize = 1024;

/// Arenas that nobody holds any more: whose, and which.
pub(crate) type Freed = Arc<Mutex<Vec<(ProcessId, u64)>>>;

/// How many arenas are kept, by all workers together: each is a descriptor.
pub(crate) type Count = Arc<AtomicUsize>;

/// Memory of one worker.
#[derive(Debug)]
struct Arena {
    count: Count,
    fd: Arc<OwnedFd>,
    maker: ProcessId,
    number: u64,
    size: u64,
}

impl Drop for Arena {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One use of an arena by a message and its receivers.
#[derive(Debug)]
struct Hold {
    arena: Arc<Arena>,
    freed: Freed,
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut freed = self.freed.lock().unwrap_or_else(PoisonError::into_inner);
        freed.push((self.arena.maker, self.arena.number));
    }
}

/// What one worker has of such memory: arenas of its own, and what was handed to it.
#[derive(Debug, Default)]
pub(crate) struct Memories {
    arenas: HashMap<u64, Arc<Arena>>,
    leases: HashMap<u64, Arc<Hold>>,
    next_lease: u64,
}

impl Memories {
    /// Takes note of a new arena.
    ///
    /// # Errors
    /// What is wrong with it, as a complaint about the worker.
    pub(crate) fn add(
        &mut self,
        maker: ProcessId,
        number: u64,
        size: u64,
        fd: Option<OwnedFd>,
        count: &Count,
    ) -> Result<(), String> {
        let fd = fd.ok_or("an arena without a descriptor")?;
        check_sealed(&fd, size).map_err(|error| format!("an arena of {error}"))?;
        if self.arenas.len() >= MOST {
            return Err(format!("more than {MOST} arenas"));
        }
        count.fetch_add(1, Ordering::Relaxed);
        let count = count.clone();
        self.arenas.insert(number, Arc::new(Arena { count, fd: Arc::new(fd), maker, number, size }));
        Ok(())
    }

    /// Forgets an arena. Messages that use it go on doing so.
    pub(crate) fn remove(&mut self, number: u64) {
        self.arenas.remove(&number);
    }

    /// What a message holds that names buffers.
    ///
    /// # Errors
    /// A complaint about the worker, if it has no such memory.
    pub(crate) fn ticket(&self, buffers: Buffers, freed: &Freed) -> Result<Ticket, String> {
        let hold = match buffers.from {
            Memory::Arena(number) => {
                let arena = self.arenas.get(&number).ok_or("buffers in an arena that is not there")?;
                Arc::new(Hold { arena: arena.clone(), freed: freed.clone() })
            }
            Memory::Lease(lease) => self.leases.get(&lease).ok_or("buffers of a lease that is not there")?.clone(),
        };
        let bytes = buffers.bytes.min(hold.arena.size);
        Ok(Ticket { bytes, hold })
    }

    /// Hands memory to this worker: what to tell it, and the descriptor that goes along.
    pub(crate) fn lend(&mut self, ticket: &Ticket) -> Option<(Lease, Arc<OwnedFd>)> {
        let hold = ticket.hold.clone().downcast::<Hold>().ok()?;
        self.next_lease += 1;
        let lease = Lease { lease: self.next_lease, size: hold.arena.size };
        let fd = hold.arena.fd.clone();
        self.leases.insert(self.next_lease, hold);
        Some((lease, fd))
    }

    /// The worker does not look at these any more.
    pub(crate) fn release(&mut self, leases: &[u64]) {
        for lease in leases {
            self.leases.remove(lease);
        }
    }
}
