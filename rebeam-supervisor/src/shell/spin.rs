//! Looking for the next message a moment longer before going to sleep, while messages follow closely on one another.
//!
//! Waking a process on another CPU takes many times what passing a message on does. So while a call goes back and forth,
//! the supervisor keeps looking, for as long as it has been worth it. It gives way to whoever else wants its CPU, and
//! does none of this where it has only one.

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;

/// How long to look for the next message. A machine that wakes slowly needs it most: with less than such a wake-up takes,
/// each look is in vain, and each message pays for a wake-up.
const PATIENCE: Duration = Duration::from_micros(300);

/// Looks in vain, in a row, after which it sleeps at once; it tries again after so many messages.
const IN_VAIN: u32 = 10;
const TRY_AGAIN: u32 = 64;

/// Messages as they come.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    count: Cell<u64>,
    is_asleep: Cell<bool>,
    /// Looks in vain, in a row.
    in_vain: Cell<u32>,
    /// Messages until the next try.
    rest: Cell<u32>,
    wake: Notify,
}

impl Traffic {
    /// A message has come.
    pub(crate) fn note(&self) {
        self.count.set(self.count.get() + 1);
        if self.is_asleep.get() {
            if self.rest.get() > 0 {
                self.rest.set(self.rest.get() - 1);
                return;
            }
            self.is_asleep.set(false);
            self.wake.notify_one();
        }
    }
}

/// Keeps the event loop awake while that pays. Never returns, unless it can never pay.
pub(crate) async fn spin(traffic: Rc<Traffic>) {
    let cpus = nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0));
    let count =
        cpus.map_or(1, |cpus| (0..nix::sched::CpuSet::count()).filter(|cpu| cpus.is_set(*cpu) == Ok(true)).count());
    if count < 2 {
        return;
    }
    loop {
        traffic.is_asleep.set(true);
        traffic.wake.notified().await;
        let mut seen = traffic.count.get();
        let mut since = Instant::now();
        while since.elapsed() < PATIENCE {
            std::thread::yield_now();
            tokio::task::yield_now().await;
            if traffic.count.get() != seen {
                seen = traffic.count.get();
                since = Instant::now();
                traffic.in_vain.set(0);
            }
        }
        let in_vain = traffic.in_vain.get() + 1;
        traffic.in_vain.set(in_vain);
        if in_vain >= IN_VAIN {
            traffic.rest.set(TRY_AGAIN);
        }
    }
}
