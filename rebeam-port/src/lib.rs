//! Ports: what stands between the supervisor and a foreign program.
//!
//! To the supervisor a port is a worker like any other: it speaks the same frames, notes on its status page what is in
//! hand, and ends with its actor. It starts the program in its own process group, passes messages on to the program's
//! standard input, what the program writes to whoever wants it, and sees to it that nothing of the program outlives it. It
//! must not know Python; what it sends to actors is plain data, or a pickle that it writes by hand ([`pickle`]).

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test fails by that"))]

mod framing;
mod json;
mod link;
mod marks;
pub mod pickle;
mod port;
mod program;
mod ready;
mod rpc;

pub use port::serve;
pub use ready::check_pattern;
