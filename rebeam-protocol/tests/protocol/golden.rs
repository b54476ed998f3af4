//! Golden bytes. If one of these fails, the protocol has changed: raise `handshake::VERSION`, then take the new bytes.

use rebeam_protocol::control::{Answer, Request};
use rebeam_protocol::exit::ExitReason;
use rebeam_protocol::frame::{self, MAX_FRAME};
use rebeam_protocol::handshake::{Features, Hello, MAGIC, VERSION, Welcome};
use rebeam_protocol::id::{ActorId, CallId, Generation, NodeStart, Pid, ProcessId, RequestId, Seq};
use rebeam_protocol::message::*;
use rebeam_protocol::value::Value;
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
fn of_version_5() {
    assert_eq!(VERSION, 5);
    let hello = Hello { magic: MAGIC, version: VERSION, features: Features(0), os_pid: 4000 };
    check(&ToSupervisor::Hello(hello), &[], "0a00000000cd8a8992050500a01f");
    let welcome = Welcome {
        magic: MAGIC,
        version: VERSION,
        features: Features(0),
        process: ProcessId { pid: pid(), generation: Generation(0) },
        actor: ActorId(2),
        label: "a".into(),
        named: true,
        restarts: 1,
        start_length: 5,
        cpus: vec![0],
        nice: None,
        concurrency: 1,
        max_frame: 1024,
        log_level: None,
    };
    check(
        &ToWorker::Welcome(welcome),
        b"start",
        "1f00000000cd8a899205050000ac020500020161010105010000018008007374617274",
    );
    let envelope = Envelope {
        to: Address::Name("b".into()),
        kind: Kind::Call { call: CallId(7), waits: Waits::Actor { message: Some(Seq(9)), is_deferred: false } },
        method: "get".into(),
        form: Form::Arguments,
        codec: Codec::Pickle,
        lane: Lane::Normal,
        deadline_ms: Some(5000),
        buffers: None,
        trace: None,
    };
    check(&ToSupervisor::Send(envelope), b"xy", "18000000020001620007020109000367657400000201882700007879");
    let reply_to = ReplyTo { caller: Caller::Actor(pid()), call: CallId(7) };
    let delivery = Delivery {
        seq: Seq(1),
        reply_to: Some(reply_to),
        method: "get".into(),
        form: Form::Message,
        codec: Codec::Data,
        lane: Lane::High,
        deadline_ms: None,
        delivery: 1,
        sender: "a".into(),
        buffers: None,
        trace: None,
    };
    check(&ToWorker::Deliver(delivery), &[], "160000000101010000ac02050703676574010101000101610000");
    let reply = Reply {
        to: reply_to,
        outcome: Outcome::Returned(Codec::Pickle),
        done: Some(Done { seq: Seq(1), took_us: Some(300) }),
        buffers: None,
    };
    check(&ToSupervisor::Reply(reply), b"r", "10000000030000ac0205070000010101ac020072");
    check(&ToSupervisor::Exit(ExitReason::ExitCode(3)), &[], "030000000e0306");
    check(&ToWorker::Answer { request: RequestId(1), answer: Answer::Whereis(None) }, &[], "0400000009010400");
    check(&Request::RestartChild { name: "a".into() }, &[], "03000000050161");
    check(&ToZygote::Fork { request: 3 }, &[], "020000000103");
    check(
        &Value::Dict(vec![(Value::Str("k".into()), Value::List(vec![Value::Int(-1), Value::Float(0.5)]))]),
        &[],
        "12000000080104016b0602020103000000000000e03f",
    );
}
