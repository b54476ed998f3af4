//! Golden bytes. If one of these fails, the protocol has changed: raise `handshake::VERSION` (or `outside::VERSION`), then
//! take the new bytes.

use rebeam_protocol::address::{Address, Caller, ReplyTo};
use rebeam_protocol::exit::ExitReason;
use rebeam_protocol::frame::{self, MAX_FRAME};
use rebeam_protocol::handshake::{Hello, MAGIC, VERSION, Welcome};
use rebeam_protocol::id::{ActorId, CallId, Generation, NodeStart, Pid, ProcessId, RequestId, Seq};
use rebeam_protocol::message::{Codec, Form, Head, Kind, Lane, Outcome, Waits};
use rebeam_protocol::outside::{self, Answer, Answered, Asked, Request, TreeRequest};
use rebeam_protocol::process::ProcessAnswer;
use rebeam_protocol::spec::ProcessOptions;
use rebeam_protocol::value::Value;
use rebeam_protocol::worker::{Delivery, Done, Envelope, Full, Gate, Reply, ToSupervisor, ToWorker};
use rebeam_protocol::zygote::ToZygote;
use serde::Serialize;

fn check(message: &impl Serialize, payload: &[u8], expected: &str) {
    let mut bytes = Vec::new();
    frame::encode(message, payload, MAX_FRAME, &mut bytes).expect("below the limit");
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hex, expected);
}

fn pid() -> Pid {
    Pid { at: NodeStart { node: 0, started: 300 }, serial: 5 }
}

#[test]
fn of_version_6_between_worker_and_supervisor() {
    assert_eq!(VERSION, 6);
    let hello = Hello { magic: MAGIC, version: VERSION, os_pid: 4000 };
    check(&ToSupervisor::Hello(hello), &[], "0900000000cd8a89920506a01f");
    let welcome = Welcome {
        magic: MAGIC,
        version: VERSION,
        process: ProcessId { pid: pid(), generation: Generation(0) },
        actor: ActorId(2),
        label: "a".into(),
        named: true,
        restarts: 1,
        start_length: 5,
        options: ProcessOptions { cpus: vec![0], nice: Some(1), ..ProcessOptions::default() },
        concurrency: 1,
        max_frame: 1024,
        log_level: None,
    };
    check(
        &ToWorker::Welcome(welcome),
        b"start",
        "2300000000cd8a8992050600ac0205000201610101050100010200000000018008007374617274",
    );
    let envelope = Envelope {
        to: Address::Name("b".into()),
        kind: Kind::Call { call: CallId(7), waits: Waits::Actor { message: Some(Seq(9)), is_deferred: false } },
        head: Head { deadline_ms: Some(5000), ..Head::new("get") },
        buffers: None,
    };
    check(&ToSupervisor::Send(envelope), b"xy", "18000000020001620007020109000367657400000201882700007879");
    let reply_to = ReplyTo { caller: Caller::Actor(pid()), call: CallId(7) };
    let delivery = Delivery {
        seq: Seq(1),
        reply_to: Some(reply_to),
        head: Head { form: Form::Message, codec: Codec::Data, lane: Lane::High, ..Head::new("get") },
        delivery: 1,
        sender: "a".into(),
        buffers: None,
    };
    check(&ToWorker::Deliver(delivery), &[], "160000000101010000ac02050703676574010101000001016100");
    let reply = Reply {
        to: reply_to,
        outcome: Outcome::Returned(Codec::Pickle),
        done: Some(Done { seq: Seq(1), took_us: Some(300) }),
        buffers: None,
    };
    check(&ToSupervisor::Reply(reply), b"r", "10000000030000ac0205070000010101ac020072");
    check(&ToSupervisor::Exit(ExitReason::ExitCode(3)), &[], "030000000e0306");
    check(&ToWorker::Answer { request: RequestId(1), answer: ProcessAnswer::Whereis(None) }, &[], "0400000009010f00");
    let to = Address::Partition { name: "p".into(), key: 1 };
    check(
        &ToWorker::Gate(Gate::Shut { actor: ActorId(2), to, copies: Some(4), full: Full::Wait }),
        &[],
        "0a0000000a010203017001010400",
    );
    check(&ToZygote::Fork { request: 3 }, &[], "020000000103");
    check(
        &Value::Dict(vec![(Value::Str("k".into()), Value::List(vec![Value::Int(-1), Value::Float(0.5)]))]),
        &[],
        "12000000080104016b0602020103000000000000e03f",
    );
}

#[test]
fn of_version_1_on_the_control_socket() {
    assert_eq!(outside::VERSION, 1);
    check(&outside::Hello::new(), &[], "06000000cd8a89920501");
    let request = Request::Call { name: "a".into(), method: "get".into(), timeout_ms: 5000 };
    check(&Asked { number: 3, request }, b"xy", "0c000000030201610367657488277879");
    let request = Request::Tree(TreeRequest::Restart { name: "a".into() });
    check(&Asked { number: 4, request }, &[], "050000000406010161");
    check(&Answered { number: 4, is_last: true, answer: Answer::Ok }, &[], "03000000040100");
}
