//! The words by which readers and the store understand each other, and the protocol that makes reading safe.
//!
//! The store writes one [page](PUBLISHED) that all readers map: which transaction is complete, and which one is being
//! written. Each process that reads has a page of its own with *pins*: the transactions that it reads from. For what is
//! pinned, the store keeps a read transaction of its own open (a *proxy*), so that LMDB does not reuse the pages.
//!
//! ```text
//! store   1  W = write transaction; changes; ANNOUNCED = W; fence; commit
//!         2  open a proxy of what is committed now; its number is N
//!         3  PUBLISHED = N; fence
//!         4  look at the pins now and then: drop proxy X, followed by proxy Y, if no pin lies in X..Y; keep the newest
//! reader  1  P = PUBLISHED; pin P; fence
//!         2  begin to read; the transaction is T; fence; go on if T is P and ANNOUNCED <= P + 1
//!         3  if T is P + 1 (committed, and not published yet): the same with the meta page before
//!         4  otherwise: from 1 again
//!         5  read, copy, end the transaction, unpin
//! ```
//!
//! Why that is safe. *The pin is seen*: T is P, so at the reader's second fence nothing after P had been published; the
//! pin, which came first, is thus seen by every look after a later publication, and until then P's proxy is the newest one,
//! which stays. *Pages*: LMDB reuses what a transaction freed only if no older one is read, and a proxy at or before P is.
//! *The meta page*: LMDB has two, and P's is written to next by P + 2; ANNOUNCED <= P + 1, read after the copy of it, says
//! that the copy is whole. *A killed reader*: its pins are given up when it is known to be dead. A *stopped* one that has not
//! come past 2 goes back to 1; one that has is protected for as long as it takes, and the file may grow meanwhile. A wrong
//! pin harms nobody but who wrote it.
//!
//! Large buffers lie in a file of their own ([`crate::arrays`]), and are looked at for longer than a row is read. So behind
//! its pins a reader notes which pieces of that file it has mapped (*holds*), while the snapshot that says where they are is
//! still pinned. The store gives a piece back when no pin is older than the transaction that let go of it, and then no hold
//! is on it: it looks at the pins first, so if a reader replaces a pin by a hold, the store sees at
//! least one of them.
//!
//! The next store has the same file of arrays. What no row has then may still be looked at by those who read from the rows
//! of before; it stays as long as there is a pin of before. After its pin a reader looks whether its store is still the
//! current one, else it starts over with the next: so nobody can pin what is of before once the next store has been told
//! that it is the current one, and has looked at the pins.

/// Bytes of either page.
pub const PAGE: usize = 4096;

/// On the store's page: the byte offset of the number of the transaction that everybody may read.
pub const PUBLISHED: usize = 0;

/// On the store's page: the byte offset of the number of the transaction that is committed next, or was last.
pub const ANNOUNCED: usize = 64;

/// On a reader's page: the byte offset of the number of places for pins that were ever used.
pub const USED: usize = 0;

/// How many pins a process may have.
pub const PLACES: usize = PAGE / 8 - 1;

/// The byte offset of a place for a pin. A place without a pin holds 0.
pub fn place(index: usize) -> usize {
    8 * (index + 1)
}

/// Bytes that a reader writes: a page of pins, and some of holds, which are laid out alike. (What is not written to takes no
/// memory.)
pub const READER: usize = 9 * PAGE;

/// How many arrays a process may hold.
pub const HOLDS: usize = (READER - PAGE) / 8 - 1;

/// The byte offset of the number of places for holds that were ever used.
pub(crate) const HOLDS_USED: usize = PAGE + USED;

/// The byte offset of a place for a hold. It has the offset of the piece that is held, and one more; 0: nothing is.
pub(crate) fn hold(index: usize) -> usize {
    PAGE + place(index)
}
