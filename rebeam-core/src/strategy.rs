//! From who ended to who is stopped and started. Positions are places in the start order.

use rebeam_protocol::spec::Strategy;

/// What a restart does: stop these in this order, then start those in that order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Positions to stop, in order; the ended child is not among them.
    pub stop: Vec<usize>,
    /// Positions to start, in order; the ended child is among them.
    pub start: Vec<usize>,
}

/// The plan for the child at `ended` of `count` children (SUP-030, SUP-031, SUP-032).
pub fn plan(strategy: Strategy, count: usize, ended: usize) -> Plan {
    let first = match strategy {
        Strategy::OneForOne => return Plan { stop: Vec::new(), start: vec![ended] },
        Strategy::OneForAll => 0,
        Strategy::RestForOne => ended,
    };
    Plan { stop: (first..count).rev().filter(|&place| place != ended).collect(), start: (first..count).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sup_030_sup_031_sup_032_who_goes_with_whom() {
        let check = |strategy, stop: &[usize], start: &[usize]| {
            assert_eq!(plan(strategy, 4, 1), Plan { stop: stop.to_vec(), start: start.to_vec() }, "{strategy:?}");
        };
        check(Strategy::OneForOne, &[], &[1]);
        check(Strategy::OneForAll, &[3, 2, 0], &[0, 1, 2, 3]);
        check(Strategy::RestForOne, &[3, 2], &[1, 2, 3]);
    }
}
