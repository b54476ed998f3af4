//! `rebeam._rebeam`: all that Python sees of Rust. `rebeam._runtime` and `rebeam._boot` are its only importers.
//!
//! It holds what belongs to one process: the zygote's loop or an actor's channel. It must not know what an actor class
//! looks like (`rebeam._dispatch` does), nor anything of trees and restarts.

mod actor_loop;
mod channel;
mod codec;
mod convert;
mod fork;
mod lifeline;
mod status_page;
mod wire;
mod zygote;

use pyo3::prelude::*;

#[pymodule]
mod _rebeam {
    #[pymodule_export]
    use crate::actor_loop::{
        attach, attach_forked, call, cast, detach_after_fork, is_attached, log, report, request_down, serve, started,
        whereis,
    };

    use super::*;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}
