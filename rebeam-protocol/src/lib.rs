//! What two processes of Re:BEAM may say to each other, and nothing of how the bytes travel.
//!
//! The supervisor speaks to workers ([`worker`]), to the zygote ([`zygote`]) and to clients of the control socket
//! ([`outside`]). All three use [`frame`]s: a length, a postcard header, and, behind the header, payload bytes that nobody between
//! sender and receiver decodes. This crate must not know sockets, clocks, Python or tokio; it is shared by the
//! blocking worker and the asynchronous supervisor.
//!
//! Evolution: postcard is not self-describing, so variants and fields are only ever appended, [`handshake::VERSION`]
//! goes up with every change, and the golden bytes in `tests/protocol/golden.rs` say so when it was forgotten.

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
pub mod spec;
pub mod state;
pub mod value;
pub mod worker;
pub mod zygote;
