//! Whatever is said arrives as it was said, however the bytes are cut; and rubbish is an error, never a panic.

use proptest::prelude::*;
use rebeam_protocol::address::Address;
use rebeam_protocol::exit::{ExitReason, Raised};
use rebeam_protocol::frame::{self, MAX_FRAME, PREFIX};
use rebeam_protocol::id::{ActorId, CallId, NodeStart, Pid, RequestId, Seq};
use rebeam_protocol::message::{Codec, Form, Head, Kind, Lane, Trace, Waits};
use rebeam_protocol::outside::{Answer, Request};
use rebeam_protocol::process::{ChildAddress, ProcessRequest, SupervisorRequest};
use rebeam_protocol::worker::{Buffers, Envelope, Memory, ToSupervisor, ToWorker};
use rebeam_protocol::zygote::{FromZygote, ToZygote};

fn pids() -> impl Strategy<Value = Pid> {
    (any::<u32>(), any::<u32>(), any::<u64>())
        .prop_map(|(node, started, serial)| Pid { at: NodeStart { node, started }, serial })
}

fn addresses() -> impl Strategy<Value = Address> {
    prop_oneof![
        ".{0,20}".prop_map(Address::Name),
        any::<u64>().prop_map(|id| Address::Actor(ActorId(id))),
        pids().prop_map(Address::Pid),
        (".{0,9}", any::<u64>()).prop_map(|(name, key)| Address::Partition { name, key }),
    ]
}

fn reasons() -> impl Strategy<Value = ExitReason> {
    prop_oneof![
        Just(ExitReason::Normal),
        proptest::option::of(".{0,9}").prop_map(ExitReason::Shutdown),
        (".{0,9}", ".{0,9}", ".{0,99}")
            .prop_map(|(kind, message, traceback)| { ExitReason::Exception(Raised { kind, message, traceback }) }),
        any::<i32>().prop_map(ExitReason::ExitCode),
        any::<i32>().prop_map(ExitReason::Signal),
        Just(ExitReason::Killed),
        Just(ExitReason::HeartbeatTimeout),
        ".{0,9}".prop_map(ExitReason::Other),
    ]
}

fn kinds() -> impl Strategy<Value = Kind> {
    let call = (any::<u64>(), waits()).prop_map(|(call, waits)| Kind::Call { call: CallId(call), waits });
    prop_oneof![Just(Kind::Cast), Just(Kind::Info), call]
}

fn waits() -> impl Strategy<Value = Waits> {
    let actor = (proptest::option::of(any::<u64>().prop_map(Seq)), any::<bool>())
        .prop_map(|(message, is_deferred)| Waits::Actor { message, is_deferred });
    let handler = (any::<u64>(), any::<bool>())
        .prop_map(|(message, is_deferred)| Waits::Handler { message: Seq(message), is_deferred });
    prop_oneof![Just(Waits::Nobody), actor, handler]
}

fn buffers() -> impl Strategy<Value = Buffers> {
    let memory = prop_oneof![any::<u64>().prop_map(Memory::Arena), any::<u64>().prop_map(Memory::Lease)];
    (memory, any::<u64>()).prop_map(|(from, bytes)| Buffers { from, bytes })
}

fn messages() -> impl Strategy<Value = ToSupervisor> {
    let trace =
        (any::<u128>(), any::<u64>(), any::<u8>()).prop_map(|(trace, span, flags)| Trace { trace, span, flags });
    let parts = (
        addresses(),
        kinds(),
        "[a-z]{1,20}",
        any::<bool>(),
        proptest::option::of(any::<u64>()),
        proptest::option::of(buffers()),
        proptest::option::of(trace),
    );
    let send = parts.prop_map(|(to, kind, method, is_high, deadline_ms, buffers, trace)| {
        let lane = if is_high { Lane::High } else { Lane::Normal };
        let form = if is_high { Form::Arguments } else { Form::Message };
        let head =
            Head { form, codec: Codec::Data, lane, deadline_ms, trace: trace.map(Box::new), ..Head::new(method) };
        ToSupervisor::Send(Envelope { to, kind, head, buffers })
    });
    let process = prop_oneof![
        addresses().prop_map(ProcessRequest::Monitor),
        pids().prop_map(ProcessRequest::Link),
        (addresses(), reasons()).prop_map(|(to, reason)| ProcessRequest::Stop { to, reason }),
        (addresses(), ".{0,9}").prop_map(|(supervisor, id)| ProcessRequest::Supervisor {
            supervisor,
            request: SupervisorRequest::Terminate(ChildAddress::Id(id)),
            waits: Waits::Nobody,
        }),
    ];
    prop_oneof![
        1 => (any::<u64>(), process).prop_map(|(request, body)| ToSupervisor::Request {
            request: RequestId(request),
            body,
        }),
        1 => (any::<bool>(), any::<u64>()).prop_map(|(runs_init, took_us)| ToSupervisor::HandOver { runs_init, took_us }),
        3 => send,
        1 => proptest::collection::vec(any::<u64>().prop_map(|seq| Seq(seq).into()), 0..40).prop_map(|done| ToSupervisor::Ack { done }),
        1 => reasons().prop_map(|reason| ToSupervisor::Exit { reason, message: None }),
        1 => (any::<u64>(), ".{0,9}").prop_map(|(request, name)| ToSupervisor::Request {
            request: RequestId(request),
            body: ProcessRequest::Whereis(name),
        }),
    ]
}

proptest! {
    #[test]
    fn frames_survive_any_chunking(
        sent in proptest::collection::vec((messages(), proptest::collection::vec(any::<u8>(), 0..300)), 1..12),
        cuts in proptest::collection::vec(1usize..50, 1..200),
    ) {
        let mut bytes = Vec::new();
        for (message, payload) in &sent {
            frame::encode(message, payload, MAX_FRAME, &mut bytes).expect("below the limit");
        }
        let mut buffer = Vec::new();
        let mut received = Vec::new();
        let mut rest = bytes.as_slice();
        let mut cuts = cuts.into_iter().cycle();
        while !rest.is_empty() {
            let cut = cuts.next().unwrap_or(1).min(rest.len());
            buffer.extend_from_slice(&rest[..cut]);
            rest = &rest[cut..];
            while let Some(length) = frame::length(&buffer, MAX_FRAME).expect("below the limit") {
                if buffer.len() < PREFIX + length {
                    break;
                }
                let body: Vec<u8> = buffer.drain(..PREFIX + length).skip(PREFIX).collect();
                let (message, offset) = frame::decode::<ToSupervisor>(&body).expect("what was encoded");
                received.push((message, body[offset..].to_vec()));
            }
        }
        prop_assert!(buffer.is_empty());
        prop_assert_eq!(received, sent);
    }

    #[test]
    fn rubbish_is_an_error_and_never_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = frame::length(&bytes, MAX_FRAME);
        let _ = frame::decode::<ToSupervisor>(&bytes);
        let _ = frame::decode::<ToWorker>(&bytes);
        let _ = frame::decode::<FromZygote>(&bytes);
        let _ = frame::decode::<ToZygote>(&bytes);
        let _ = frame::decode::<Request>(&bytes);
        let _ = frame::decode::<Answer>(&bytes);
    }

    #[test]
    fn a_cut_off_message_is_an_error(message in messages(), cut in 1usize..20) {
        let mut bytes = Vec::new();
        frame::encode(&message, &[], MAX_FRAME, &mut bytes).expect("below the limit");
        let body = &bytes[PREFIX..];
        let kept = body.len().saturating_sub(cut);
        prop_assert!(frame::decode::<ToSupervisor>(&body[..kept]).is_err());
    }
}

#[test]
fn supervisors_that_nest_without_end_are_an_error_and_no_overflow() {
    use rebeam_protocol::spec::{AutoShutdown, ChildKind, ChildSpec, OnGiveup, Restart, Shutdown, Strategy};
    use rebeam_protocol::spec::{MAX_DEPTH, Pauses, SupervisorKind, SupervisorSpec};
    let supervisor = |children| SupervisorSpec {
        id: "s".into(),
        name: None,
        kind: SupervisorKind::Static,
        strategy: Strategy::OneForOne,
        max_restarts: 3,
        max_ms: 5000,
        children,
        auto_shutdown: AutoShutdown::Never,
    };
    let around = |inner: SupervisorSpec| {
        supervisor(vec![ChildSpec {
            id: "s".into(),
            restart: Restart::Permanent,
            shutdown: Shutdown::Infinity,
            significant: false,
            pauses: Pauses::ByLimit,
            on_giveup: OnGiveup::Stop,
            kind: ChildKind::Supervisor(inner),
        }])
    };
    let nested = |depth| (1..depth).fold(supervisor(Vec::new()), |inner, _| around(inner));
    let encode = |spec: &SupervisorSpec| {
        let mut bytes = Vec::new();
        frame::encode(spec, &[], MAX_FRAME, &mut bytes).expect("below the limit");
        bytes.split_off(PREFIX)
    };
    assert!(frame::decode::<SupervisorSpec>(&encode(&nested(MAX_DEPTH))).is_ok());
    // What stands around the innermost one of two levels, a hundred thousand times.
    let (one, two) = (encode(&nested(1)), encode(&nested(2)));
    let at = two.windows(one.len()).rposition(|window| window == one).expect("it is in there");
    let deep = [two[..at].repeat(100_000), one, two[at..][encode(&nested(1)).len()..].repeat(100_000)].concat();
    assert!(frame::decode::<SupervisorSpec>(&deep).is_err());
}
