//! The restart limit: a sliding window over past restarts.
//!
//! OTP's `add_restart/3` (`supervisor.erl`): a pure function of the past restarts, now and the period. Nothing else in
//! the core compares times for a decision about restarts.

use std::collections::VecDeque;
use std::time::Duration;

/// The restarts of the last `period`, of which `max` are allowed.
#[derive(Clone, Debug)]
pub struct RestartWindow {
    max: u32,
    period: Duration,
    restarts: VecDeque<Duration>,
}

impl RestartWindow {
    /// An empty window: at most `max` restarts in any `period`.
    pub fn new(max: u32, period: Duration) -> Self {
        RestartWindow { max, period, restarts: VecDeque::new() }
    }

    /// From now on this is the limit; past restarts count on.
    pub fn set_limit(&mut self, max: u32, period: Duration) {
        (self.max, self.period) = (max, period);
    }

    /// Counts a restart at `now`; says whether it is allowed. A restart aged exactly `period` still counts (MAP-12).
    pub fn add(&mut self, now: Duration) -> bool {
        self.restarts.push_back(now);
        while self.restarts.front().is_some_and(|&then| now.saturating_sub(then) > self.period) {
            self.restarts.pop_front();
        }
        self.restarts.len() <= self.max as usize
    }

    /// The pause of which as many as there may be restarts take half of the window; a second at most.
    pub fn share(&self) -> Duration {
        (self.period / (2 * self.max.max(1))).min(Duration::from_secs(1))
    }

    /// Forgets all past restarts.
    pub fn forget(&mut self) {
        self.restarts.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn sup_040_two_are_allowed_and_the_third_is_not() {
        let mut window = RestartWindow::new(2, ms(60_000));
        assert_eq!([window.add(ms(1)), window.add(ms(2)), window.add(ms(3))], [true, true, false]);
    }

    #[test]
    fn sup_041_map_12_the_window_slides_without_buckets() {
        let mut window = RestartWindow::new(1, ms(1000));
        for round in 0..4 {
            assert!(window.add(ms(round * 2100)), "spaced crashes never overflow");
        }
        assert!(!window.add(ms(3 * 2100 + 1000)), "aged exactly the period still counts");
    }

    proptest! {
        #[test]
        fn it_agrees_with_counting_by_hand(max in 0u32..4, gaps in proptest::collection::vec(0u64..900, 1..40)) {
            let mut window = RestartWindow::new(max, ms(1000));
            let mut all: Vec<u64> = Vec::new();
            let mut now = 0;
            for gap in gaps {
                now += gap;
                all.push(now);
                let within = all.iter().filter(|&&then| now - then <= 1000).count();
                prop_assert_eq!(window.add(ms(now)), within <= max as usize);
            }
        }
    }
}
