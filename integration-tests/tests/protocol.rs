//! A worker that breaks the protocol is ended with a reason, and nobody else notices.

use harness::Node;
use rebeam_protocol::address::Address;
use rebeam_protocol::frame;
use rebeam_protocol::id::RequestId;
use rebeam_protocol::message::{Head, Kind};
use rebeam_protocol::process::ProcessRequest;
use rebeam_protocol::worker::{Envelope, ToSupervisor};
use serde_json::json;

use crate::tree;

/// An actor that writes what it likes to the channel of its own process.
const RUDE: &str = "
class Big(Actor):
    def get(self):
        return bytes(1 << 20)

class Slow(Actor, max_messages_waiting=10):
    def take(self):
        time.sleep(60)

class Rude(Actor):
    def init(self):
        pass

    def write(self, text):
        channel = next(int(fd) for fd in os.listdir('/proc/self/fd') if int(fd) > 2 and self.is_channel(int(fd)))
        os.write(channel, bytes.fromhex(text))
        time.sleep(30)

    def repeat(self, text, count):
        channel = next(int(fd) for fd in os.listdir('/proc/self/fd') if int(fd) > 2 and self.is_channel(int(fd)))
        frame = bytes.fromhex(text)
        for _ in range(count):
            left = frame
            while left:
                try:
                    left = left[os.write(channel, left):]
                except BlockingIOError:
                    time.sleep(0.001)
        time.sleep(30)

    def timers(self, count):
        for _ in range(count):
            rebeam.send_every(0.001, 'slow', 'tick')

    def calls(self, count):
        pendings = [rebeam.ref(Big, 'big').request(Big.get) for _ in range(count)]
        time.sleep(30)

    def is_channel(self, fd):
        import fcntl

        try:
            is_socket = os.readlink(f'/proc/self/fd/{fd}').startswith('socket:')
            return is_socket and not fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ASYNC
        except OSError:
            return False
";

fn rude_node(check: impl Fn(&mut Node<'_>)) {
    let project = tree(&format!(
        "None\n{RUDE}\ntree = Supervisor([child(Recorder, name='recorder'), child(Child, name='other'), child(Rude, name='rude'), child(Big, name='big'), child(Slow, name='slow', shutdown='brutal_kill')], max_restarts=10)"
    ));
    let mut node = project.up();
    let other = node.call("other", "pid", &[]);
    check(&mut node);
    assert_eq!(node.call("other", "pid", &[]), other, "the others do not notice");
    node.eventually("the rude one is back", |node| (node.ps("rude")["state"] == "running").then_some(()));
    node.down();
}

fn check_ended(node: &mut Node<'_>, bytes: &str, reason: &str) {
    check_killed(node, &["write", &format!("\"{bytes}\"")], reason, "bad_protocol");
}

fn check_killed(node: &mut Node<'_>, call: &[&str], reason: &str, kind: &str) {
    let ran = node.run(&[&["call", "--timeout", "30", "rude"], call].concat());
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(ran.stderr.contains(reason), "{ran:?}");
    let why = node.run(&["why", "rude", "--json"]).json();
    assert_eq!(why.as_array().and_then(|all| all.last()).expect("a death")["kind"], json!(kind));
}

/// A frame as Python reads it.
fn hex(message: &ToSupervisor, payload: &[u8]) -> String {
    let mut bytes = Vec::new();
    frame::encode(message, payload, frame::MAX_FRAME, &mut bytes).expect("a small frame");
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn send(to: Address, kind: Kind, method: &str) -> String {
    hex(&ToSupervisor::Send(Envelope { to, kind, head: Head::new(method), buffers: None }), &[])
}

#[test]
fn a_sender_that_does_not_stop_at_a_full_mailbox_is_ended() {
    let cast = send(Address::Name("slow".into()), Kind::Cast, "take");
    rude_node(|node| {
        let call = ["repeat", &format!("\"{cast}\""), "10000"];
        check_killed(node, &call, "messages to a mailbox that it knew was full", "limit_exceeded");
        let waiting = node.ps("slow")["waiting"].as_u64().expect("a number");
        assert!(waiting < 9000, "{waiting}");
    });
}

#[test]
fn a_worker_that_does_not_read_its_answers_is_ended_and_they_do_not_pile_up() {
    rude_node(|node| {
        check_killed(node, &["calls", "2000"], "MiB of answers that it does not read", "limit_exceeded");
    });
}

#[test]
fn many_fast_timers_do_not_make_the_node_deaf_and_more_monitors_than_may_be_end_their_actor() {
    rude_node(|node| {
        // Every one of them ticks a thousand times a second.
        node.call("rude", "timers", &["2000"]);
        for _ in 0..5 {
            assert_eq!(node.run(&["health"]).code, Some(0));
        }
    });
    rude_node(|node| {
        let body = ProcessRequest::Monitor(Address::Name("other".into()));
        let monitor = hex(&ToSupervisor::Request { request: RequestId(1 << 60), body }, &[]);
        let call = ["repeat", &format!("\"{monitor}\""), "100010"];
        check_killed(node, &call, "limit_exceeded(100000 links and monitors)", "limit_exceeded");
    });
}

#[test]
fn rubbish_is_ended_with_a_reason() {
    rude_node(|node| check_ended(node, "03000000ffffff", "header does not decode"));
}

#[test]
fn a_frame_too_large_is_refused_before_it_is_read() {
    rude_node(|node| check_ended(node, "ffffffff", "a frame of 4294967295 bytes, where the limit is"));
}

#[test]
fn a_second_handshake_is_refused() {
    // Hello { magic 0, version 0, features 0, os_pid 0 }
    rude_node(|node| check_ended(node, "050000000000000000", "second handshake"));
}

#[test]
fn a_call_number_used_twice_is_refused() {
    // Two calls with one number to somebody who takes its time: Send { to: Name("other"), Call { 7, nobody waits } … }.
    let call = |method: &str| {
        let mut body = vec![2, 0, 5];
        body.extend(b"other");
        body.extend([0, 7, 0, method.len() as u8]);
        body.extend(method.as_bytes());
        // Arguments, pickled, the normal lane; no deadline, no buffers, no trace.
        body.extend([0, 0, 2, 0, 0, 0]);
        let length = (body.len() as u32).to_le_bytes();
        [&length[..], &body].concat().iter().map(|byte| format!("{byte:02x}")).collect::<String>()
    };
    rude_node(|node| check_ended(node, &(call("loop") + &call("loop")), "call 7 was made twice"));
}
