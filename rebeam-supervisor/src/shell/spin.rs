//! Looking for the next message a moment longer before going to sleep, while messages follow closely on one another.
//!
//! Waking a process on another CPU takes many times what passing a message on does. So while a call goes back and forth,
//! the supervisor keeps looking, for as long as it has been worth it. It gives way to whoever else wants its CPU, and
//! does none of this where everybody shares one.

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::Pid;
use tokio::sync::Notify;

/// How long to look for the next message. A machine that wakes slowly needs it most: with less than such a wake-up takes,
/// each look is in vain, and each message pays for a wake-up.
const PATIENCE: Duration = Duration::from_micros(300);

/// Looks in vain, in a row, after which it sleeps at once; it tries again after so many messages.
const IN_VAIN: u32 = 10;
const TRY_AGAIN: u32 = 64;

/// The most messages between two tries, where somebody else needs this CPU: with each try in vain it is twice as many. A
/// try costs whoever waits for the next message a time slice of the other's.
const MOST_REST: u32 = 64 * 1024;

/// Messages as they come.
#[derive(Debug)]
pub(crate) struct Traffic {
    /// The CPUs that we may run on.
    own: CpuSet,
    /// Whether somebody may run at the same time as we do.
    can_pay: Cell<bool>,
    count: Cell<u64>,
    is_asleep: Cell<bool>,
    /// Looks in vain, in a row.
    in_vain: Cell<u32>,
    /// Messages until the next try, and until the one after a try at which somebody else needed this CPU.
    rest: Cell<u32>,
    next_rest: Cell<u32>,
    wake: Notify,
}

impl Traffic {
    pub(crate) fn new() -> Self {
        let own = sched_getaffinity(Pid::from_raw(0)).unwrap_or_default();
        let count = (0..CpuSet::count()).filter(|cpu| own.is_set(*cpu) == Ok(true)).count();
        Traffic {
            own,
            can_pay: Cell::new(count > 1),
            count: Cell::default(),
            is_asleep: Cell::default(),
            in_vain: Cell::default(),
            rest: Cell::default(),
            next_rest: Cell::new(TRY_AGAIN),
            wake: Notify::new(),
        }
    }

    /// An actor is bound to these CPUs, or, if there are none, to ours.
    pub(crate) fn bound(&self, cpus: &[u32]) {
        if cpus.iter().any(|cpu| self.own.is_set(*cpu as usize) != Ok(true)) {
            self.can_pay.set(true);
        }
    }

    /// A message has come.
    pub(crate) fn note(&self) {
        self.count.set(self.count.get() + 1);
        if self.is_asleep.get() && self.can_pay.get() {
            if self.rest.get() > 0 {
                self.rest.set(self.rest.get() - 1);
                return;
            }
            self.is_asleep.set(false);
            self.wake.notify_one();
        }
    }
}

/// Keeps the event loop awake while that pays. Never returns.
pub(crate) async fn spin(traffic: Rc<Traffic>) {
    loop {
        traffic.is_asleep.set(true);
        traffic.wake.notified().await;
        let mut seen = traffic.count.get();
        let mut since = Instant::now();
        let mut found = 0;
        loop {
            let now = Instant::now();
            if now - since >= PATIENCE {
                break;
            }
            std::thread::yield_now();
            if now.elapsed() >= PATIENCE {
                // Somebody needs this CPU for more than a message.
                traffic.rest.set(traffic.next_rest.get());
                traffic.next_rest.set((2 * traffic.next_rest.get()).min(MOST_REST));
                traffic.in_vain.set(0);
                break;
            }
            tokio::task::yield_now().await;
            if traffic.count.get() != seen {
                seen = traffic.count.get();
                since = Instant::now();
                traffic.in_vain.set(0);
                found += 1;
                if found == TRY_AGAIN {
                    traffic.next_rest.set(TRY_AGAIN);
                }
            }
        }
        let in_vain = traffic.in_vain.get() + 1;
        traffic.in_vain.set(in_vain);
        if in_vain >= IN_VAIN {
            traffic.rest.set(TRY_AGAIN);
        }
    }
}
