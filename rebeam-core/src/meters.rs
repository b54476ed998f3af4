//! What a node counts of itself: times of handlers, ends, dead letters; and how things stand at this moment.
//!
//! Counting costs an actor nothing and the core a look into a table. How the figures are shown, and what the system
//! knows of processes, is not known here. Everything is bounded: names come from workers.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use rebeam_protocol::exit::ExitReason;
use rebeam_protocol::message::Cause;
use rebeam_protocol::state::MemberState;
use rustc_hash::FxBuildHasher;

/// Upper bounds of the buckets of a [`Histogram`], in microseconds; one more bucket takes the rest.
pub const BOUNDS_US: [u64; 16] = [
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 5_000_000,
    20_000_000, 60_000_000,
];

/// How many pairs of class and method are told apart; the rest is counted together.
const MOST_METHODS: usize = 500;

/// The same for pairs of class and reason of an end.
const MOST_ENDS: usize = 500;

/// What the rest is called.
const OTHER: &str = "(other)";

/// Times, counted in buckets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Histogram {
    /// How many fell into each bucket, and not into one before it.
    pub buckets: [u64; BOUNDS_US.len() + 1],
    /// All of them together, in microseconds.
    pub sum_us: u64,
}

impl Histogram {
    fn note(&mut self, took_us: u64) {
        let bucket = BOUNDS_US.partition_point(|bound| *bound < took_us);
        self.buckets[bucket] += 1;
        self.sum_us = self.sum_us.saturating_add(took_us);
    }

    /// How many there were.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }
}

/// The counters of a node.
#[derive(Debug, Default)]
pub(crate) struct Meters {
    handled: HashMap<String, HashMap<Box<str>, Histogram, FxBuildHasher>, FxBuildHasher>,
    methods: usize,
    ended: BTreeMap<String, BTreeMap<&'static str, u64>>,
    end_pairs: usize,
    dead_letters: BTreeMap<&'static str, u64>,
    starts: Histogram,
}

impl Meters {
    /// A message was handled, if a handler ran at all.
    pub(crate) fn handled(&mut self, class: &str, method: &str, took_us: Option<u32>) {
        let Some(took_us) = took_us else { return };
        let known = self.handled.get_mut(class).and_then(|methods| methods.get_mut(method));
        if let Some(histogram) = known {
            return histogram.note(took_us.into());
        }
        let (class, method) = match self.methods < MOST_METHODS {
            true => (class, method.into()),
            false => (OTHER, OTHER.into()),
        };
        let histogram = self.handled.entry(class.to_owned()).or_default().entry(method).or_insert_with(|| {
            self.methods += 1;
            Histogram::default()
        });
        histogram.note(took_us.into());
    }

    /// An incarnation has ended.
    pub(crate) fn ended(&mut self, class: &str, reason: &ExitReason) {
        let known = self.ended.get_mut(class).and_then(|ends| ends.get_mut(reason.kind()));
        if let Some(count) = known {
            *count += 1;
            return;
        }
        let class = if self.end_pairs < MOST_ENDS { class } else { OTHER };
        let count = self.ended.entry(class.to_owned()).or_default().entry(reason.kind()).or_insert_with(|| {
            self.end_pairs += 1;
            0
        });
        *count += 1;
    }

    /// An incarnation has come up.
    pub(crate) fn started(&mut self, took: Duration) {
        self.starts.note(took.as_micros() as u64);
    }

    /// How long handlers took, by class and method.
    pub(crate) fn handlers(&self) -> Vec<(String, String, Histogram)> {
        let mut handled = Vec::new();
        for (class, methods) in &self.handled {
            handled.extend(methods.iter().map(|(method, times)| (class.clone(), method.to_string(), times.clone())));
        }
        handled.sort_by(|a, b| (&a.0, &a.1).cmp(&(&b.0, &b.1)));
        handled
    }

    /// Ends of incarnations, by class and reason.
    pub(crate) fn ends(&self) -> Vec<(String, &'static str, u64)> {
        let ended = self.ended.iter();
        ended.flat_map(|(class, ends)| ends.iter().map(|(reason, count)| (class.clone(), *reason, *count))).collect()
    }

    /// Dead letters, by cause.
    pub(crate) fn letters(&self) -> Vec<(&'static str, u64)> {
        self.dead_letters.iter().map(|(cause, count)| (*cause, *count)).collect()
    }

    /// From the order to start an incarnation until its `init` had returned.
    pub(crate) fn starts(&self) -> &Histogram {
        &self.starts
    }

    /// A message was not handled by anyone and never will be.
    pub(crate) fn dead_letter(&mut self, cause: Cause) {
        *self.dead_letters.entry(cause.word()).or_default() += 1;
    }
}

/// How a node stands, and what it has counted so far.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    /// How long handlers took, by class and method.
    pub handled: Vec<(String, String, Histogram)>,
    /// Ends of incarnations, by class and [`ExitReason::kind`].
    pub ended: Vec<(String, &'static str, u64)>,
    /// Dead letters, by [`Cause::word`].
    pub dead_letters: Vec<(&'static str, u64)>,
    /// From the order to start an incarnation until its `init` had returned.
    pub starts: Histogram,
    /// Calls whose answer is waited for.
    pub calls_in_flight: u64,
    /// Ticks of timers that were left out: the node was late for them, or the mailbox was full.
    pub skipped_ticks: u64,
    /// Every actor, in tree order.
    pub actors: Vec<ActorFigures>,
}

/// How one actor stands.
#[derive(Clone, Debug)]
pub struct ActorFigures {
    /// Its name or path.
    pub label: String,
    /// Whether it is the same actor for as long as the node lives: it was declared with the tree.
    pub is_lasting: bool,
    /// Module and class.
    pub class: String,
    /// What it is doing, as in `ps`.
    pub state: MemberState,
    /// Messages that wait for it.
    pub waiting: u64,
    /// Bytes of them, and of what it has in hand.
    pub waiting_bytes: u64,
    /// How long the oldest of them waits.
    pub oldest: Option<Duration>,
    /// How often it was started again.
    pub restarts: u32,
    /// Its process, while it has one.
    pub os_pid: Option<u32>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_fall_into_the_first_bucket_that_holds_them() {
        let mut histogram = Histogram::default();
        [0, 100, 101, 60_000_000, 60_000_001].iter().for_each(|us| histogram.note(*us));
        assert_eq!(histogram.buckets[..2], [2, 1]);
        assert_eq!(histogram.buckets[15..], [1, 1]);
        assert_eq!(histogram.count(), 5);
    }

    #[test]
    fn names_that_never_end_take_no_room() {
        let mut meters = Meters::default();
        for number in 0..2 * MOST_ENDS {
            meters.ended(&format!("app.Class{number}"), &ExitReason::Normal);
        }
        assert_eq!(meters.ended.len(), MOST_ENDS + 1);
        meters.ended("app.Class0", &ExitReason::Normal);
        assert_eq!(meters.ended["app.Class0"]["normal"], 2, "what is known is still told apart");
        assert_eq!(meters.ended[OTHER]["normal"] as usize, MOST_ENDS);
    }
}
