//! What a supervisor decides, as a pure machine: trees, restarts, mailboxes, calls, names.
//!
//! The only machine from outside is [`Core`]. It is told what happened with [`Core::handle_event`] and what time it is
//! with [`Core::handle_timeout`]; after either, drain [`Core::poll_action`] until it is empty and do what it says, then
//! ask [`Core::poll_timeout`] when to come back. Time is an argument, counted from the node's start.
//!
//! This crate must not know tokio, clocks, files, sockets, processes, randomness or log lines: it is the part that is
//! tested in virtual time, and the compiler keeps it so. State diagrams are in `LIFECYCLE.md` beside this crate.

mod actor;
mod alarms;
mod core;
mod dead_letters;
mod deaths;
pub mod event;
mod incarnation;
pub mod intensity;
mod links;
mod mailbox;
mod members;
pub mod meters;
mod registries;
mod requests;
mod resolve;
mod router;
pub mod shell;
mod shutdown;
pub mod spec;
pub mod strategy;
pub mod supervisor;
mod tally;
mod timers;
pub mod tracing;
mod waiters;

pub use crate::core::{Core, Probation, ReloadOptions};
pub use crate::event::{Action, Event};
pub use crate::registries::EntryChange;
