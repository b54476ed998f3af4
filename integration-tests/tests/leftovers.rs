//! No process is ever left behind: whatever is killed, stopped or hung up, two seconds later nothing of the tree is
//! there, and the socket's directory can be used again.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::process::Stdio;

use harness::{Node, Project, kill};
use nix::sys::signal::Signal;
use serde_json::json;

use crate::tree;

/// An actor with children of its own: one plain, one in a session of its own, one that forked twice.
const FAMILY: &str = "None
import subprocess, multiprocessing

class Family(Actor):
    def init(self):
        self.plain = subprocess.Popen(['sleep', '1000'])
        self.session = subprocess.Popen(['sleep', '1000'], start_new_session=True)
        self.daemon = subprocess.run(['sh', '-c', 'sleep 1000 &'])
        self.pool = multiprocessing.get_context('fork').Pool(2)
        self.pool.map(abs, range(4))

    def exit(self):
        os._exit(1)

    def loop_in_c(self):
        sum(range(10**15))

tree = Supervisor([child(Family, name='family'), child(Recorder, name='recorder'), child(Child, name='c')], max_restarts=100)";

fn family() -> Project {
    tree(FAMILY)
}

fn again(project: &Project) {
    project.up().down();
}

#[test]
fn sup_088_map_08_after_a_kill_of_the_supervisor() {
    let project = family();
    let node = project.up();
    assert!(project.processes().len() >= 9, "{:?}", project.processes());
    node.signal(Signal::SIGKILL);
    node.wait();
    project.assert_nothing_left();
    again(&project);
}

#[test]
fn after_a_kill_of_the_zygote_and_then_of_everything() {
    let project = family();
    let mut node = project.up();
    kill(node.zygote(), Signal::SIGKILL);
    node.wait_for("the zygote died");
    kill(node.os_pid_of("c"), Signal::SIGKILL);
    node.eventually("it is back", |node| (node.ps("c")["restarts"] == 1).then_some(()));
    node.down();
}

#[test]
fn after_a_kill_of_the_keeper_and_then_of_the_supervisor() {
    let project = family();
    let node = project.up();
    let keepers = || {
        let is_keeper = |os_pid: &i32| {
            let line = std::fs::read(format!("/proc/{os_pid}/cmdline")).unwrap_or_default();
            line.split(|byte| *byte == 0).any(|word| word == b"keeper")
        };
        project.processes().into_iter().find(is_keeper)
    };
    let first = keepers().expect("there is a keeper");
    kill(first, Signal::SIGKILL);
    node.eventually("there is another", |_| keepers().filter(|second| *second != first));
    node.signal(Signal::SIGKILL);
    node.wait();
    project.assert_nothing_left();
}

#[test]
fn the_keeper_of_the_last_run_leaves_the_next_one_alone() {
    let project = tree("Supervisor([child(Recorder, name='recorder'), child(Child, name='c')])");
    for round in 0..10 {
        let node = project.up();
        if round % 2 == 0 {
            node.signal(Signal::SIGKILL);
        } else {
            node.signal(Signal::SIGTERM);
        }
        // The next one starts at once, while the keeper of this one looks round.
        node.wait();
    }
    project.assert_nothing_left();
}

#[test]
fn map_06_of_an_actor_that_started_children_of_its_own() {
    let project = family();
    let node = project.up();
    let sleeping = || -> BTreeSet<i32> {
        let is_one = |os_pid: &i32| {
            std::fs::read(format!("/proc/{os_pid}/cmdline")).is_ok_and(|line| line.starts_with(b"sleep"))
        };
        project.processes().into_iter().filter(is_one).collect()
    };
    let before = node.eventually("three sleep", |_| Some(sleeping()).filter(|now| now.len() == 3));
    kill(node.os_pid_of("family"), Signal::SIGKILL);
    node.eventually("it is back", |node| {
        let family = node.ps("family");
        (family["restarts"] == 1 && family["state"] == "running").then_some(())
    });
    // The old family is gone, the new one is as large.
    node.eventually("the old family is gone", |_| {
        let now = sleeping();
        (now.len() == 3 && now.is_disjoint(&before)).then_some(())
    });
    node.down();
}

#[test]
fn of_an_actor_in_an_endless_loop_inside_c_code() {
    let project = family();
    let node = project.up();
    node.run(&["cast", "family", "loop_in_c"]);
    node.eventually("it is busy", |node| (!node.ps("family")["busy"].is_null()).then_some(()));
    node.signal(Signal::SIGKILL);
    node.wait();
    project.assert_nothing_left();
    again(&project);
}

#[test]
fn of_an_actor_that_is_stopped() {
    let project = tree("Supervisor([child(Recorder, name='recorder'), child(Child, name='c', shutdown=0.2)])");
    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        let node = project.up();
        node.run(&["cast", "c", "stop_self"]);
        let os_pid = node.os_pid_of("c");
        node.eventually("it is stopped", |_| {
            let stat = std::fs::read_to_string(format!("/proc/{os_pid}/stat")).ok()?;
            stat.contains(") T ").then_some(())
        });
        node.signal(signal);
        node.wait();
        project.assert_nothing_left();
    }
    again(&project);
}

/// A pseudo-terminal, with `rebeam up` as its foreground job.
fn on_a_terminal(project: &Project) -> (OwnedFd, Node<'_>) {
    let pty = nix::pty::openpty(None, None).expect("a pseudo-terminal");
    // Our end must be ours alone: closing it is what is tested.
    let flag = nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC);
    nix::fcntl::fcntl(&pty.master, flag).expect("a descriptor");
    let terminal = || Stdio::from(pty.slave.try_clone().expect("a descriptor"));
    let mut command = project.command(&["up", "app.py"]);
    command.stdin(terminal()).stdout(terminal()).stderr(terminal());
    // SAFETY: setsid and one ioctl between fork and exec.
    unsafe {
        std::os::unix::process::CommandExt::pre_exec(&mut command, || {
            nix::unistd::setsid()?;
            nix::libc::ioctl(0, nix::libc::TIOCSCTTY, 0);
            Ok(())
        });
    }
    let node = project.adopt(&mut command);
    drop(pty.slave);
    node.eventually("it is up", |node| {
        let ran = node.run(&["ps", "--json"]);
        (ran.code == Some(0) && ran.json().as_array()?.iter().all(|it| it["state"] == "running")).then_some(())
    });
    (pty.master, node)
}

#[test]
fn after_ctrl_c_in_a_terminal() {
    let project = family();
    let (terminal, node) = on_a_terminal(&project);
    assert_eq!(node.ps("c")["restarts"], json!(0));
    nix::unistd::write(&terminal, b"\x03").expect("a terminal takes what is typed");
    // Somebody has to read what is printed.
    let reader = std::thread::spawn(move || {
        let mut all = Vec::new();
        let mut chunk = [0; 4096];
        while let Ok(count) = nix::unistd::read(&terminal, &mut chunk)
            && count > 0
        {
            all.extend_from_slice(&chunk[..count]);
        }
        String::from_utf8_lossy(&all).into_owned()
    });
    let (status, _) = node.wait();
    let output = reader.join().expect("it reads to the end");
    assert_eq!(status.code(), Some(0), "{output}");
    assert!(output.contains("stopping"), "{output}");
    assert!(!output.contains("died:"), "Ctrl-C reaches the supervisor alone: {output}");
    project.assert_nothing_left();
    project.assert_socket_gone();
}

#[test]
fn after_the_terminal_was_closed() {
    let project = family();
    let (terminal, node) = on_a_terminal(&project);
    drop(terminal);
    node.wait();
    project.assert_nothing_left();
    project.assert_socket_gone();
}

#[test]
fn a_hundred_actors_come_and_go() {
    let project =
        tree("Supervisor([child(Recorder, name='recorder')] + [child(Child, name=f'c{n}') for n in range(100)])");
    let node = project.up();
    assert_eq!(node.run(&["ps", "--json"]).json().as_array().map(Vec::len), Some(101));
    node.down();
}

#[test]
fn a_frozen_zygote_does_not_keep_a_node_from_being_stopped() {
    let project = tree("Supervisor([child(Recorder, name='recorder'), child(Child, name='c')], max_restarts=20)");
    let mut node = project.up();
    kill(node.zygote(), Signal::SIGSTOP);
    // Workers that were forked ahead take over until there are none left; then a start waits for the zygote.
    let mut looks_without_process = 0;
    node.eventually("a start waits for the zygote", |node| {
        match node.ps("c")["os_pid"].as_i64() {
            Some(os_pid) => {
                looks_without_process = 0;
                kill(os_pid as i32, Signal::SIGKILL);
            }
            None => looks_without_process += 1,
        }
        (looks_without_process == 5).then_some(())
    });
    for words in ["stopping, within", "hurrying"] {
        node.signal(Signal::SIGINT);
        node.wait_for(words);
    }
    node.signal(Signal::SIGINT);
    assert_eq!(node.wait().0.code(), Some(0));
    project.assert_nothing_left();
}

#[test]
fn a_helper_of_a_living_actor_outlives_the_death_of_another() {
    let project = tree(
        "None\nimport subprocess\nclass Host(Actor):\n    def init(self):\n        \
         subprocess.run(['sh', '-c', 'sleep 1000 & echo $! > helper; exec setsid sh -c \\\"sleep 1000 & echo \\$! > away\\\"'])\n\
         tree = Supervisor([child(Recorder, name='recorder'), child(Host, name='host'), child(Child, name='c')])",
    );
    let node = project.up();
    let helper = |name: &str| -> i32 {
        let text = std::fs::read_to_string(project.path().join(name)).expect("it is there");
        text.trim().parse().expect("a number")
    };
    let helpers = node.eventually("both are there", |_| {
        let away = std::fs::read_to_string(project.path().join("away")).ok()?;
        (!away.trim().is_empty()).then(|| [helper("helper"), helper("away")])
    });
    kill(node.os_pid_of("c"), Signal::SIGKILL);
    node.eventually("it is back", |node| (node.ps("c")["restarts"] == 1).then_some(()));
    for os_pid in helpers {
        assert!(std::path::Path::new(&format!("/proc/{os_pid}")).exists(), "the helper {os_pid} was killed");
    }
    node.down();
}

/// An actor with daemons that have left its group, its session and its environment.
const DAEMONS: &str = "None
import subprocess, sys

TWICE = '''
import os
if os.fork():
    os._exit(0)
os.setsid()
if os.fork():
    os._exit(0)
with open('pid.new', 'w') as file:
    file.write(str(os.getpid()))
os.rename('pid.new', 'pid')
os.execlp('sleep', 'sleep', '1000')
'''

class Parent(Actor):
    def init(self):
        self.daemons = []
        for number, command in enumerate([
            ['env', '-i', 'setsid', 'sh', '-c', 'echo $$ > pid.new; mv pid.new pid; exec sleep 1000'],
            # Twice, the second time as an orphan.
            [sys.executable, '-S', '-c', TWICE],
            ['sh', '-c', 'env -i setsid sh -c \"echo \\\\$\\\\$ > pid.new; mv pid.new pid; exec sleep 1000\" & exit 0'],
        ]):
            directory = f'{os.getpid()}-{number}'
            os.mkdir(directory)
            subprocess.Popen(command, cwd=directory)
            self.daemons.append(directory)
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                os.mkdir(f'{os.getppid()}-2')
                time.sleep(1000)
            os._exit(0)

    def pids(self):
        return [int(open(directory + '/pid').read()) for directory in self.daemons if os.path.exists(directory + '/pid')]

    def exit(self):
        os._exit(1)

tree = Supervisor([child(Parent, name='parent'), child(Recorder, name='recorder'), child(Child, name='other')], max_restarts=100)";

/// Where the daemons of the actor are that lives now.
fn daemons(node: &Node<'_>) -> Vec<i32> {
    node.eventually("its daemons run", |node| {
        let pids: Vec<i32> = serde_json::from_value(node.call("parent", "pids", &[])).ok()?;
        (pids.len() == 3).then_some(pids)
    })
}

fn lives(os_pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{os_pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, state)| !state.starts_with('Z'))
}

/// The two keepers.
pub(crate) fn keepers(project: &Project) -> Vec<i32> {
    let is_keeper = |os_pid: &i32| {
        let line = std::fs::read(format!("/proc/{os_pid}/cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).any(|word| word == b"keeper")
    };
    project.processes().into_iter().filter(is_keeper).collect()
}

#[test]
fn daemons_of_an_actor_live_as_long_as_it_does() {
    let project = tree(DAEMONS);
    let node = project.up();
    let first = daemons(&node);
    kill(node.os_pid_of("other"), Signal::SIGKILL);
    node.eventually("it is back", |node| (node.ps("other")["restarts"] == 1).then_some(()));
    // What a look for strays would have found is decided when the next one that dies has been looked after.
    kill(node.os_pid_of("other"), Signal::SIGKILL);
    node.eventually("it is back", |node| (node.ps("other")["restarts"] == 2).then_some(()));
    assert!(first.iter().all(|os_pid| lives(*os_pid)), "{first:?}");
    node.run(&["call", "parent", "exit"]);
    node.eventually("they have gone with it", |_| first.iter().all(|os_pid| !lives(*os_pid)).then_some(()));
    let second = daemons(&node);
    node.down();
    assert!(second.iter().all(|os_pid| !lives(*os_pid)), "{second:?}");
}

#[test]
fn after_a_kill_of_the_supervisor_with_one_keeper_killed_or_stopped() {
    let project = tree(DAEMONS);
    for (number, signal) in [
        (0, None),
        (0, Some(Signal::SIGKILL)),
        (0, Some(Signal::SIGSTOP)),
        (1, Some(Signal::SIGKILL)),
        (1, Some(Signal::SIGSTOP)),
    ] {
        let node = project.up();
        let daemons = daemons(&node);
        let keepers = keepers(&project);
        assert_eq!(keepers.len(), 2);
        if let Some(signal) = signal {
            // So that the supervisor cannot have another started.
            node.signal(Signal::SIGSTOP);
            kill(keepers[number], signal);
        }
        node.signal(Signal::SIGKILL);
        node.wait();
        for os_pid in daemons {
            let since = std::time::Instant::now();
            while lives(os_pid) {
                assert!(since.elapsed().as_secs() < 30, "{os_pid} is left, after keeper {number} was sent {signal:?}");
                std::thread::yield_now();
            }
        }
        project.assert_nothing_left();
    }
}

#[test]
fn after_a_kill_of_a_node_in_which_an_actor_ran_another() {
    let project = tree(
        "None\nimport subprocess\n\nclass Outer(Actor):\n    def init(self):\n        os.makedirs('inner', exist_ok=True)\n        \
         with open('inner/app.py', 'w') as file:\n            file.write('''\nimport os, subprocess\nfrom rebeam import *\n\nclass Inner(Actor):\n    def init(self):\n        \
         subprocess.Popen(['env', '-i', 'setsid', 'sh', '-c', 'echo $$ > pid.new; mv pid.new pid; exec sleep 1000'])\n\ntree = Supervisor([child(Inner, name='inner')])\n''')\n        \
         subprocess.Popen([os.environ['REBEAM'], 'up', 'app.py'], cwd='inner')\n\n\
         tree = Supervisor([child(Outer, name='outer')])",
    );
    let mut command = project.command(&["up", "app.py"]);
    command.env("REBEAM", harness::rebeam()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let node = project.adopt(&mut command);
    let pid = project.path().join("inner/pid");
    let os_pid: i32 =
        node.eventually("the inner daemon runs", |_| std::fs::read_to_string(&pid).ok()?.trim().parse().ok());
    node.signal(Signal::SIGKILL);
    node.wait();
    project.assert_nothing_left();
    assert!(!lives(os_pid), "what the inner node's actor had started is left");
}
