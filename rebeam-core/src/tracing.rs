//! Spans of calls and handlers, for who wants to see where the time of a request goes.
//!
//! The supervisor sees every message, so actors make no spans: they only say, with what they send, in which handler's
//! span they do so. Nothing is done for a message that is not part of a sampled trace. How spans are sent anywhere is not
//! known here, nor what time it is: spans are counted from the node's start, as everything is.

use std::time::Duration;

use rebeam_protocol::id::Pid;
use rebeam_protocol::message::{Outcome, Trace};

/// The flag by which W3C's trace context says that a trace is sampled.
const SAMPLED: u8 = 1;

/// One thing that was done, from its beginning to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// The trace that it is part of.
    pub trace: u128,
    /// Its own number there.
    pub span: u64,
    /// The span within which it was done; 0 for none.
    pub parent: u64,
    /// What sort it is.
    pub kind: SpanKind,
    /// `Class.method` of a handler; the method of a call.
    pub name: String,
    /// Who handles it, or who calls.
    pub actor: String,
    /// Its incarnation, if it is an actor.
    pub pid: Option<Pid>,
    /// From when.
    pub from: Duration,
    /// Until when.
    pub until: Duration,
    /// Why it failed, if it did.
    pub error: Option<String>,
}

/// What a span is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpanKind {
    /// A caller waits for its answer.
    Call,
    /// A handler of a call.
    Handler,
    /// A handler of a message that nobody waits for.
    Consumer,
}

/// Which traces there are, and what their numbers are.
#[derive(Debug, Default)]
pub(crate) struct Tracer {
    /// A trace that begins here is sampled with this probability, in units of 2⁻³²; none is, if this is 0.
    share: u64,
    /// Makes numbers; as good as random, as long as its seed was.
    state: u64,
}

/// How a message is traced, or that its trace is not one of those that are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Traced {
    is_sampled: bool,
    trace: u128,
    /// The span within which it was sent; 0 for none.
    parent: u64,
    /// The span of its handler.
    handler: u64,
}

impl Traced {
    /// The span of its handler, if its trace is sampled.
    pub(crate) fn span(&self, work: impl FnOnce() -> Work) -> Option<Span> {
        let Work { kind, name, actor, pid, from, until, error } = self.is_sampled.then(work)?;
        let (trace, span, parent) = (self.trace, self.handler, self.parent);
        Some(Span { trace, span, parent, kind, name, actor, pid, from, until, error })
    }

    /// What the handler runs in.
    pub(crate) fn context(&self) -> Trace {
        Trace { trace: self.trace, span: self.handler, flags: if self.is_sampled { SAMPLED } else { 0 } }
    }
}

/// What a handler has done, for its span.
pub(crate) struct Work {
    pub(crate) kind: SpanKind,
    pub(crate) name: String,
    pub(crate) actor: String,
    pub(crate) pid: Option<Pid>,
    pub(crate) from: Duration,
    pub(crate) until: Duration,
    pub(crate) error: Option<String>,
}

/// How a call is traced that is not answered yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TracedCall {
    trace: u128,
    parent: u64,
    span: u64,
    method: Box<str>,
    from: Duration,
}

impl TracedCall {
    /// The span of the call, which has ended.
    pub(crate) fn span(self, actor: String, pid: Option<Pid>, until: Duration, error: Option<String>) -> Span {
        let TracedCall { trace, parent, span, method, from } = self;
        Span { trace, span, parent, kind: SpanKind::Call, name: method.into(), actor, pid, from, until, error }
    }
}

impl Tracer {
    /// Traces this share of what begins here, from 0 to 1. Numbers come from the seed.
    pub(crate) fn new(seed: u64, share: f64) -> Self {
        Tracer { share: (share.clamp(0.0, 1.0) * (1u64 << 32) as f64) as u64, state: seed }
    }

    /// How a message is traced that was sent within `within`; `None` if nobody traces. What is not sampled at its
    /// beginning is not sampled later, either.
    pub(crate) fn trace(&mut self, within: Option<Trace>) -> Option<Box<Traced>> {
        if self.share == 0 {
            return None;
        }
        let (is_sampled, trace, parent) = match within {
            Some(within) => (within.flags & SAMPLED != 0, within.trace, within.span),
            None => {
                let is_sampled = self.next() >> 32 < self.share;
                (is_sampled, (u128::from(self.next()) << 64) | u128::from(self.next()), 0)
            }
        };
        Some(Box::new(Traced { is_sampled, trace, parent, handler: self.next() }))
    }

    /// A span between a message that is a call and its handler, if it is sampled.
    pub(crate) fn call(&mut self, traced: &mut Traced, method: &str, from: Duration) -> Option<TracedCall> {
        let span = traced.is_sampled.then(|| self.next())?;
        let parent = std::mem::replace(&mut traced.parent, span);
        Some(TracedCall { trace: traced.trace, parent, span, method: method.into(), from })
    }

    /// The next number of splitmix64 (Steele, Lea, Flood 2014); never 0, which stands for none.
    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)).max(1)
    }
}

/// Why a call failed, if it did.
pub(crate) fn error_of(outcome: &Outcome) -> Option<String> {
    match outcome {
        Outcome::Returned(_) => None,
        Outcome::Raised(raised) => Some(raised.to_string()),
        Outcome::Failed(failure) => Some(failure.word().to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_within_a_handler_is_part_of_its_trace() {
        let mut tracer = Tracer { share: 1 << 32, state: 7 };
        let mut first = tracer.trace(None).expect("all are sampled");
        let call = tracer.call(&mut first, "ask", Duration::ZERO).expect("it is sampled");
        assert_eq!((call.parent, first.parent), (0, call.span));
        let second = tracer.trace(Some(first.context())).expect("it is part of it");
        assert_eq!((second.trace, second.parent), (first.trace, first.handler));
        assert_ne!(second.handler, first.handler);
    }

    #[test]
    fn about_so_many_traces_are_sampled_as_was_said_and_each_as_a_whole() {
        let mut tracer = Tracer { share: 1 << 30, state: 7 };
        let mut sampled = 0;
        for _ in 0..10_000 {
            let first = tracer.trace(None).expect("somebody traces");
            sampled += u32::from(first.is_sampled);
            // Whatever its handler sends, and what that has sent, is as it is.
            let second = tracer.trace(Some(first.context())).expect("somebody traces");
            let third = tracer.trace(Some(second.context())).expect("somebody traces");
            assert_eq!([second.is_sampled, third.is_sampled], [first.is_sampled; 2]);
        }
        assert!((2_200..2_800).contains(&sampled), "{sampled}");
        assert_eq!(Tracer::default().trace(None), None, "nobody traces");
    }
}
