//! What the node runs short of, what is taken away from it, and what stands still: it goes on, or says why not.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;

use harness::{Node, Project, http, kill, parent_of};
use nix::sys::signal::Signal;
use serde_json::json;

/// A project with these lines, which make a tree of `Echo`es.
fn project(lines: &str) -> Project {
    crate::tree(&format!(
        "None
class Echo(Actor):
    def init(self, data=None):
        pass
    def pid(self):
        return os.getpid()
{lines}"
    ))
}

fn two() -> Project {
    project("tree = Supervisor([child(Echo, name='a'), child(Echo, name='b')], max_restarts=3, max_seconds=60)")
}

/// A project whose supervisor has so many descriptors, at most, and what starts it.
fn with_descriptors(project: &Project, count: u32, args: &str) -> Command {
    let mut command = project.command_of("sh");
    let program = harness::rebeam();
    command.args(["-c", &format!("ulimit -n {count}; exec {} run app.py {args}", program.display())]);
    command
}

/// Sets how many descriptors a process may have, of which it may have more already.
fn set_descriptors(node: &Node<'_>, count: &str) {
    let limit = format!("--nofile={count}:");
    let set = Command::new("prlimit").args(["--pid", &node.os_pid().to_string(), &limit]).status();
    assert!(set.expect("prlimit is there").success());
}

#[test]
fn a_restart_for_which_there_are_no_descriptors_is_tried_again_and_counts_as_no_crash() {
    let project = two();
    let mut node = project.up();
    // Room for a client or two, and not for a new actor.
    let open = fs::read_dir(format!("/proc/{}/fd", node.os_pid())).expect("it runs").flatten();
    let open: BTreeSet<u32> = open.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    let third_free = (0..).filter(|number| !open.contains(number)).nth(2).expect("numbers go on");
    set_descriptors(&node, &third_free.to_string());
    // The first comes from the worker that was forked ahead.
    for _ in 0..2 {
        let before = node.os_pid_of("a");
        kill(before, Signal::SIGKILL);
        node.eventually("it was seen to die", |node| (node.ps("a")["os_pid"] != json!(before)).then_some(()));
    }
    node.wait_for("`a` cannot be started yet: Too many open files");
    node.eventually("the other answers", |node| (node.ps("b")["state"] == "running").then_some(()));
    set_descriptors(&node, "1024");
    node.eventually("it is back", |node| (node.ps("a")["state"] == "running").then_some(()));
    assert_eq!(node.ps("a")["restarts"], json!(2));
    node.down();
}

#[test]
fn large_buffers_that_wait_leave_descriptors_for_actors() {
    let project = project(
        "import pickle
class Slow(Actor, shutdown='brutal_kill'):
    def take(self, x):
        time.sleep(0.01)
    def sleep(self, seconds):
        time.sleep(seconds)
class Sender(Actor):
    def send(self, count):
        for _ in range(count):
            rebeam.ref(Slow, 'slow').cast(Slow.take, pickle.PickleBuffer(bytearray(70_000)))
        return count
tree = Supervisor([child(Slow, name='slow'), *(child(Sender, name=f's{n}') for n in range(3)), child(Echo, name='a')])",
    );
    let node = project.adopt(&mut with_descriptors(&project, 128, "--grace 1"));
    node.eventually("it is up", |node| (node.run(&["health"]).code == Some(0)).then_some(()));
    node.run(&["cast", "slow", "sleep", "60"]);
    for sender in ["s0", "s1", "s2"] {
        assert_eq!(node.call(sender, "send", &["100"]), json!(100), "it is not ended for what waits");
    }
    let open = fs::read_dir(format!("/proc/{}/fd", node.os_pid())).expect("it runs").count();
    assert!(open < 112, "{open} of 128");
    let before = node.os_pid_of("a");
    kill(before, Signal::SIGKILL);
    node.eventually("it is back", |node| {
        (node.ps("a")["os_pid"] != json!(before) && node.ps("a")["state"] == "running").then_some(())
    });
    node.signal(Signal::SIGTERM);
    node.wait();
}

#[test]
fn idle_http_clients_keep_neither_actors_nor_probes_out() {
    let project = two();
    let port = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound").port();
    let address = format!("127.0.0.1:{port}");
    let mut command = with_descriptors(&project, 128, &format!("--http {address}"));
    let node = project.adopt(&mut command);
    node.eventually("it is up", |node| (node.run(&["health"]).code == Some(0)).then_some(()));
    let mut idle = Vec::new();
    for _ in 0..150 {
        let mut client = TcpStream::connect(&address).expect("it is taken in");
        // It may have been put out again already.
        let _ = client.write(b"GET /livez HTTP/1.1\r\nX: ");
        idle.push(client);
    }
    assert_eq!(http(&address, "GET /livez", &[]).0, 200);
    for _ in 0..2 {
        let before = node.os_pid_of("a");
        kill(before, Signal::SIGKILL);
        node.eventually("it is back", |node| {
            (node.ps("a")["os_pid"] != json!(before) && node.ps("a")["state"] == "running").then_some(())
        });
    }
    let mut oldest = idle.remove(0);
    assert_eq!(oldest.read(&mut [0; 16]).unwrap_or(0), 0, "the oldest made room");
    node.down();
}

#[test]
fn a_stopped_zygote_or_a_stopped_newborn_worker_is_replaced() {
    let project = two();
    let node = project.up();
    let zygote = node.zygote();
    kill(zygote, Signal::SIGSTOP);
    // The first comes from the worker that was forked ahead, the second from the zygote.
    for _ in 0..2 {
        restart(&node);
    }
    assert_ne!(node.find_zygote(), Some(zygote));
    restart(&node);
    let standby = node.eventually("a worker is forked ahead", |node| standby_of(node));
    kill(standby, Signal::SIGSTOP);
    restart(&node);
    assert_eq!(node.ps("a")["restarts"], json!(4), "nothing of that was a crash of the actor");
    node.down();
}

fn restart(node: &Node<'_>) {
    let before = node.os_pid_of("a");
    assert_eq!(node.run(&["restart", "a"]).code, Some(0));
    assert_ne!(node.os_pid_of("a"), before);
    node.call("a", "pid", &[]);
}

/// A child of the supervisor that is no actor, nor the zygote, nor the keeper, which lead sessions of their own.
fn standby_of(node: &Node<'_>) -> Option<i32> {
    let actors = ["a", "b"].map(|name| node.os_pid_of(name));
    let processes = fs::read_dir("/proc").expect("/proc").flatten();
    let os_pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let leads_session = |os_pid: i32| {
        nix::unistd::getsid(Some(nix::unistd::Pid::from_raw(os_pid))).is_ok_and(|session| session.as_raw() == os_pid)
    };
    let is_child = |os_pid: &i32| parent_of(*os_pid) == Some(node.os_pid());
    os_pids.filter(is_child).find(|os_pid| !actors.contains(os_pid) && !leads_session(*os_pid))
}

#[test]
fn a_node_whose_directory_was_cleaned_up_is_found_and_makes_it_anew() {
    let project = two();
    let mut node = project.start(&["run", "app.py"]);
    node.wait_for("up with");
    for take in ["socket", "directory"] {
        match take {
            "socket" => fs::remove_file(project.socket()).expect("it is there"),
            _ => fs::remove_dir_all(project.socket().parent().expect("a directory")).expect("it is there"),
        }
        // At once by its name, and in a moment by its socket again.
        assert_eq!(node.run(&["health"]).code, Some(0), "{take}");
        let second = project.run(&["run", "app.py"]);
        let refused = format!("this project is running already, as process {}", node.os_pid());
        assert!(second.code == Some(3) && second.stdout.contains(&refused), "{second:?}");
        node.wait_for("the control socket was removed");
        node.eventually("the socket is there", |_| project.socket().exists().then_some(()));
        assert!(project.socket().with_file_name("lock").exists());
        assert_eq!(node.run(&["health"]).code, Some(0), "{take}");
    }
    node.down();
    project.assert_socket_gone();
}

#[test]
fn a_fork_hook_that_registers_a_hook_is_run_once_for_each_fork() {
    let project = project(
        "def hook():
    os.register_at_fork(after_in_child=hook)
hook()
tree = Supervisor([child(Echo, name='a')])",
    );
    let node = project.up();
    restart(&node);
    node.down();
}

#[test]
fn the_text_of_an_exception_is_bounded_in_what_is_kept_and_told() {
    let project = project(
        "class Loud(Actor):
    def crash(self):
        raise ValueError('x' * 500_000)
class Asks(Actor):
    def ask(self, count):
        loud = rebeam.ref(Loud, 'loud')
        loud.cast(Loud.crash)
        pendings = [loud.request(Loud.crash) for _ in range(count)]
        texts = []
        for pending in pendings:
            try:
                pending.result()
            except (rebeam.ActorDied, ValueError) as error:
                texts.append(len(str(error)))
        return texts
tree = Supervisor([child(Loud, name='loud', mailbox='drop'), child(Asks, name='asks')], max_restarts=1000)",
    );
    let node = project.up();
    let texts = node.call("asks", "ask", &["50"]);
    assert_eq!(texts.as_array().map(Vec::len), Some(50));
    let why = node.run(&["why", "loud"]).stdout;
    assert!(why.len() < 64 * 1024 && why.contains("more bytes"), "{} bytes", why.len());
    node.down();
}

#[test]
fn an_answer_of_the_supervisor_that_is_too_large_is_an_error_of_who_asked() {
    let project = project(
        "class Asks(Actor):
    def ask(self):
        try:
            rebeam.supervisor('root').child_spec('wide')
        except rebeam.MessageTooLarge as error:
            return str(error)
    def small(self):
        return rebeam.supervisor('root').child_spec('asks')['id']
wide = Supervisor([child(Echo, bytes(1_500_000), name=f'e{n}') for n in range(3)], name='wide', id='wide')
tree = Supervisor([wide, child(Asks, name='asks', id='asks')])",
    );
    project.write("rebeam.toml", "max_message = \"2MB\"\n");
    let node = project.up();
    let text = node.call("asks", "ask", &[]);
    assert!(text.as_str().is_some_and(|text| text.starts_with("the answer is too large")), "{text}");
    assert_eq!(node.call("asks", "small", &[]), json!("asks"), "it goes on");
    node.down();
}
