//! A worker that breaks the protocol is ended with a reason, and nobody else notices.

use harness::Node;
use serde_json::json;

use crate::tree;

/// An actor that writes what it likes to the channel of its own process.
const RUDE: &str = "
class Rude(Actor):
    def init(self):
        pass

    def write(self, text):
        channel = next(int(fd) for fd in os.listdir('/proc/self/fd') if int(fd) > 2 and self.is_channel(int(fd)))
        os.write(channel, bytes.fromhex(text))
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
        "None\n{RUDE}\ntree = Supervisor([child(Recorder, name='recorder'), child(Child, name='other'), child(Rude, name='rude')], max_restarts=10)"
    ));
    let mut node = project.up();
    let other = node.call("other", "pid", &[]);
    check(&mut node);
    assert_eq!(node.call("other", "pid", &[]), other, "the others do not notice");
    node.eventually("the rude one is back", |node| (node.ps("rude")["state"] == "running").then_some(()));
    node.down();
}

fn check_ended(node: &mut Node<'_>, bytes: &str, reason: &str) {
    let ran = node.run(&["call", "rude", "write", &format!("\"{bytes}\"")]);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(ran.stderr.contains(reason), "{ran:?}");
    let why = node.run(&["why", "rude", "--json"]).json();
    assert_eq!(why.as_array().and_then(|all| all.last()).expect("a death")["kind"], json!("bad_protocol"));
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
