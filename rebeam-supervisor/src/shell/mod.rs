//! Does what the core decides, and reports what happened: sockets, processes, signals, the clock.
//!
//! Everything here runs on one thread, but [`http`] and [`otlp`] have one of their own each. [`engine`] owns the core; connections, the reaper and the control socket are
//! small tasks that call it and never touch each other. It must not decide anything about restarts, mail or names.

pub(crate) mod arenas;
pub(crate) mod cgroup;
pub(crate) mod control;
pub(crate) mod descriptors;
pub(crate) mod engine;
pub(crate) mod http;
pub(crate) mod keeper;
pub(crate) mod launcher;
pub(crate) mod ledger;
pub(crate) mod memory;
pub(crate) mod node;
pub(crate) mod node_dir;
pub(crate) mod oom;
pub(crate) mod otlp;
pub(crate) mod output;
pub(crate) mod reaper;
pub(crate) mod room;
mod sampler;
pub(crate) mod service;
pub(crate) mod service_manager;
pub(crate) mod signals;
pub(crate) mod spin;
pub(crate) mod status_page;
pub(crate) mod store;
pub(crate) mod versions;
pub(crate) mod watch;
pub(crate) mod watched;
pub(crate) mod zygote;
