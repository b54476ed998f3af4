//! What two processes of Re:BEAM may say to each other, and nothing of how the bytes travel.
//!
//! The supervisor speaks to workers ([`worker`]), to the zygote ([`zygote`]) and to clients of the control socket
//! ([`outside`]). All three use [`frame`]s: a length, a postcard header, and, behind the header, payload bytes that nobody between
//! sender and receiver decodes. This crate must not know sockets, clocks, Python or tokio; it is shared by the
//! blocking worker and the asynchronous supervisor.
//!
//! Evolution: postcard is not self-describing, so both ends must be of the same version. The supervisor and its processes
//! come in one wheel, and [`handshake::VERSION`] follows from the sources. A client from outside may be older than its node:
//! [`outside::VERSION`] goes up with every change there, and the golden bytes in `tests/protocol/golden.rs` fail until it
//! has.

pub mod address;
pub mod certificate;
pub mod exit;
pub mod frame;
pub mod handshake;
pub mod hash;
pub mod id;
pub mod ledger;
pub mod message;
pub mod outside;
pub mod page;
pub mod process;
pub mod program;
pub mod spec;
pub mod state;
pub mod table;
pub mod text;
pub mod value;
pub mod worker;
pub mod zygote;
