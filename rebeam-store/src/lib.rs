//! Tables in memory: one process writes them, every other reads them, and no crash of a reader can harm them.
//!
//! The rows lie in one LMDB file on a file system in memory. A [`Store`] alone opens it for writing; a [`Reader`] maps
//! nothing but the data file, and that read-only, so an actor that scribbles over all its memory changes no row. LMDB
//! itself keeps a table of readers in a second file, which readers write to; ours leave that file alone, and say in a page
//! of their own which transaction they read from (see [`pins`]).
//!
//! Large buffers of values lie in a file of their own, of which readers map pieces ([`Array`]).
//!
//! This crate knows keys, rows and transactions. It must not know what an actor is, who owns a table, nor Python.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test fails by that"))]

mod arrays;
mod error;
mod fork;
pub mod key;
mod mdb;
mod order;
pub mod pins;
mod reader;
pub mod row;
mod store;
mod tables;
mod watches;

pub use arrays::Array;
pub use error::Error;
pub use fork::forget_after_fork;
pub use reader::{Descriptors, Reader, Rows, Snapshot};
pub use store::{ReaderId, Store, Write};
pub use tables::{Answer, Claimant, Done, Request, Tables};
pub use watches::Told;

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;
