//! The operating system's primitives that both programs need, each once: shared memory, framed sockets that carry
//! descriptors, forks, signals, clocks.
//!
//! What the language cannot check stands here, with the argument why it holds; supervisor and worker keep as little of
//! that as they can. It is for Unix only, and for Linux first: another system is another set of these modules. It must
//! not know what actors are, nor Python, nor an event loop.

pub mod clock;
pub mod fork;
pub mod frames;
pub mod libraries;
pub mod memory;
pub mod process;
pub mod socket;
pub mod tag;
