//! Golden bytes of what clients from outside say, who may be older than the node. If one of these fails, the protocol has
//! changed: raise `outside::VERSION`, then take the new bytes. (Supervisor and workers are always of one build, which the
//! fingerprint in `handshake::VERSION` sees to.)

use rebeam_protocol::frame::{self, MAX_FRAME};
use rebeam_protocol::handshake::MAGIC;
use rebeam_protocol::outside::{Answer, Answered, Asked, Hello, Request, TreeRequest};
use rebeam_protocol::value::Value;
use serde::Serialize;

fn check(message: &impl Serialize, payload: &[u8], expected: &str) {
    let mut bytes = Vec::new();
    frame::encode(message, payload, MAX_FRAME, &mut bytes).expect("below the limit");
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hex, expected);
}

#[test]
fn on_the_control_socket() {
    check(&Hello { magic: MAGIC, version: 2 }, &[], "06000000cd8a89920502");
    let request = Request::Call { name: "a".into(), method: "get".into(), timeout_ms: 5000 };
    check(&Asked { number: 3, request }, b"xy", "0c000000030201610367657488277879");
    let request = Request::Tree(TreeRequest::Restart { name: "a".into() });
    check(&Asked { number: 4, request }, &[], "050000000409010161");
    check(&Answered { number: 4, is_last: true, answer: Answer::Ok }, &[], "03000000040100");
    // Arguments and results.
    check(
        &Value::Dict(vec![(Value::Str("k".into()), Value::List(vec![Value::Int(-1), Value::Float(0.5)]))]),
        &[],
        "12000000080104016b0602020103000000000000e03f",
    );
}
