//! From who ended to who is stopped and started.

use std::collections::VecDeque;

use rebeam_protocol::spec::Strategy;

/// What a restart does: stop these in this order, then start those in that order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan<T> {
    /// Whom to stop, in order; the ended child is not among them.
    pub stop: VecDeque<T>,
    /// Whom to start, in order; the ended child is among them.
    pub start: VecDeque<T>,
}

/// The plan for the child `ended` of `children`, who come in start order (SUP-030, SUP-031, SUP-032).
pub fn plan<T: Copy + PartialEq>(strategy: Strategy, children: impl Iterator<Item = T>, ended: T) -> Plan<T> {
    let start: VecDeque<T> = match strategy {
        Strategy::OneForOne => VecDeque::from([ended]),
        Strategy::OneForAll => children.collect(),
        Strategy::RestForOne => children.skip_while(|child| *child != ended).collect(),
    };
    Plan { stop: start.iter().rev().copied().filter(|child| *child != ended).collect(), start }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sup_030_sup_031_sup_032_who_goes_with_whom() {
        let check = |strategy, stop: &[char], start: &[char]| {
            let expected = Plan { stop: stop.to_vec().into(), start: start.to_vec().into() };
            assert_eq!(plan(strategy, "abcd".chars(), 'b'), expected, "{strategy:?}");
        };
        check(Strategy::OneForOne, &[], &['b']);
        check(Strategy::OneForAll, &['d', 'c', 'a'], &['a', 'b', 'c', 'd']);
        check(Strategy::RestForOne, &['d', 'c'], &['b', 'c', 'd']);
    }
}
