//! `rebeam._rebeam`: all that Python sees of Rust. Only private modules of the package import it.
//!
//! It holds what belongs to one process: the zygote's loop or an actor's channel. It must not know what an actor class
//! looks like (`rebeam._dispatch` does), nor anything of trees and restarts.

mod actor_loop;
mod channel;
mod codec;
mod convert;
mod fork;
mod lifeline;
mod outgoing;
mod requests;
mod session;
mod status_page;
mod wire;
mod zygote;

use pyo3::prelude::*;

#[pymodule]
mod _rebeam {
    #[pymodule_export]
    use crate::actor_loop::{hand_over, receive, report, serve, set_after, set_idle, started, trim_memory};
    #[pymodule_export]
    use crate::outgoing::{call, call_message, caller, cast, defer, key_number, reply, send_message};
    #[pymodule_export]
    use crate::requests::{
        cancel_timer, demonitor, exit_signal, kill, link, log, monitor, request_down, resolve, send_after, stop,
        supervisor, trap_exits, unlink, whereis,
    };
    #[pymodule_export]
    use crate::session::{attach, attach_forked, detach_after_fork, exit_ordered, is_attached};

    use super::*;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        // As `rebeam-supervisor/src/shell/launcher.rs` sends them.
        module.add("DUMP_SIGNAL", libc::SIGRTMIN() + 1)?;
        module.add("EXIT_SIGNAL", libc::SIGRTMIN() + 2)?;
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}
