//! `rebeam._rebeam`: all that Python sees of Rust. Only private modules of the package import it.
//!
//! It holds what belongs to one process: the zygote's loop or an actor's channel. It must not know what an actor class
//! looks like (`rebeam._dispatch` does), nor anything of trees and restarts.

mod actor_loop;
mod arenas;
mod asked;
mod channel;
mod client;
mod clock;
mod codec;
mod context;
mod convert;
mod forks;
mod gates;
mod in_process;
mod ledger;
mod moving;
mod outgoing;
mod registry;
mod requests;
mod session;
mod spec;
mod status_page;
mod system;
mod tables;
#[cfg(feature = "testing")]
mod testing;
mod values;
mod wire;
mod zygote;

use pyo3::prelude::*;

#[pymodule]
mod _rebeam {
    #[pymodule_export]
    use crate::actor_loop::{
        Handlers, catch_up_now, is_recycled, receive, report, serve, set_after, set_idle, set_idle_left, settle,
        started, stop_if_idle, take_cancelled, take_idle, take_idle_left, take_own_mail, take_time_left, trim_memory,
    };
    #[pymodule_export]
    use crate::asked::Asked;
    #[pymodule_export]
    use crate::client::{Client, node_directory};
    #[pymodule_export]
    use crate::clock::{clock, is_virtual_time};
    #[pymodule_export]
    use crate::codec::{private_view, set_dumps, share};
    #[pymodule_export]
    use crate::context::{Message, caller, current, defer, set_context_variable};
    #[pymodule_export]
    use crate::forks::forked;
    #[pymodule_export]
    use crate::in_process::{
        ThreadOwner, attach_in_process, detach_in_process, join_in_process, part_in_process, thread_owner,
    };
    #[pymodule_export]
    use crate::moving::{cannot_move, hand_over, wait_for_successor};
    #[pymodule_export]
    use crate::outgoing::{
        abandon, await_answer, call, call_message, cancel_call, cast, forget_call, has_answer, key_number, look,
        note_answer, reply, request, rest, room, send_message, take_answer, wait_answer, wait_ready, watched,
    };
    #[pymodule_export]
    use crate::registry::{Keys, Registry, find, is_name_known, registry_key, registry_key_label, unwatch};
    #[pymodule_export]
    use crate::requests::{
        cancel_timer, demonitor, exit_signal, kill, link, log, monitor, request_down, resolve, send_after,
        set_readiness, spawn, stop, supervisor, trap_exits, unlink, wait_for, watch_dead_letters,
    };
    #[pymodule_export]
    use crate::session::{
        attach, attach_forked, detach_after_fork, exit_ordered, is_attached, leave, map_ledger, pin_memory,
        raise_exit_again,
    };
    #[pymodule_export]
    use crate::spec::program_start;
    #[pymodule_export]
    use crate::system::{birth_time, file_time, has_fork_handlers};
    #[pymodule_export]
    use crate::tables::{Table, Walk, table_names};
    #[cfg(feature = "testing")]
    #[pymodule_export]
    use crate::testing::Node;

    use super::*;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("MOST_CONCURRENCY", rebeam_protocol::page::MOST_CONCURRENCY)?;
        module.add("DUMP_SIGNAL", rebeam_sys::process::dump_signal())?;
        module.add("TASKS_SIGNAL", rebeam_sys::process::tasks_signal())?;
        module.add("EXIT_SIGNAL", rebeam_sys::process::exit_signal())?;
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}
