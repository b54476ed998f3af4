//! A tag by which a process is known to belong to an actor, whatever becomes of it.
//!
//! What an actor starts may leave its process group, its session and its parent, and may have any environment. Limits it
//! keeps, over forks and programs: so the tag is the soft limit of processor time without a pause for processes with
//! real-time priority (`RLIMIT_RTTIME`), at tens of thousands of years, where it limits nobody. Whoever sets that limit for
//! itself, as audio servers do, has no tag any more.

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use rebeam_protocol::hash::fnv1a;

/// What every tag begins with, above 32 bits for the node and 24 for the process.
const SIGN: u64 = 0x2b << 56;
const PROCESS: u64 = (1 << 24) - 1;

/// Whose a process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag {
    /// The node, by [`node_of`].
    pub node: u32,
    /// The process of the actor, or of the zygote, that it was started by.
    pub os_pid: i32,
}

/// A node, by the mark that tells it from every other.
pub fn node_of(mark: &[u8]) -> u32 {
    fnv1a(mark) as u32
}

/// Tags this process, and what it will start, as its own. Where the system allows less, there is no tag.
pub fn tag_own(node: u32) {
    let tag = SIGN | u64::from(node) << 24 | u64::from(std::process::id()) & PROCESS;
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_RTTIME)
        && hard > tag
    {
        let _ = setrlimit(Resource::RLIMIT_RTTIME, tag, hard);
    }
}

/// Takes a tag from this process that it was started with.
pub fn untag_own() {
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_RTTIME) {
        let _ = setrlimit(Resource::RLIMIT_RTTIME, hard, hard);
    }
}

/// The tag of a process, if it lives and has one.
pub fn tag_of(os_pid: i32) -> Option<Tag> {
    let stat = std::fs::read_to_string(format!("/proc/{os_pid}/stat")).ok()?;
    // Behind the name, which may hold anything, stands the state. Who is dead waits to be reaped.
    if stat.rsplit_once(") ")?.1.starts_with(['Z', 'X']) {
        return None;
    }
    let limits = std::fs::read_to_string(format!("/proc/{os_pid}/limits")).ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max realtime timeout"))?;
    let tag: u64 = line.split_whitespace().next()?.parse().ok()?;
    let is_ours = tag & !(u64::MAX >> 8) == SIGN;
    is_ours.then_some(Tag { node: (tag >> 24) as u32, os_pid: (tag & PROCESS) as i32 })
}

/// Whether a process belongs to the node with this mark: by its tag, or by `REBEAM_NODE` in the environment that it was
/// started with.
pub fn is_of(os_pid: i32, mark: &[u8]) -> bool {
    let is_marked = || {
        let environment = std::fs::read(format!("/proc/{os_pid}/environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|entry| entry.strip_prefix(b"REBEAM_NODE=") == Some(mark))
    };
    tag_of(os_pid).is_some_and(|tag| tag.node == node_of(mark)) || is_marked()
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};

    use super::*;

    /// A process that was started with this variable alone, and waits.
    fn sleeper(variable: &str, value: &str) -> Child {
        Command::new("sleep")
            .arg("60")
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env(variable, value)
            .spawn()
            .expect("sleep")
    }

    #[test]
    fn a_process_belongs_to_a_node_by_its_environment_as_well() {
        let mut children = [sleeper("REBEAM_NODE", "/run/one@7"), sleeper("REBEAM_NODES", "/run/one@7")];
        let [marked, other] = children.each_ref().map(|child| child.id() as i32);
        assert!(is_of(marked, b"/run/one@7") && !is_of(marked, b"/run/one@") && !is_of(marked, b"/run/one@70"));
        assert!(!is_of(other, b"/run/one@7") && !is_of(-1, b"/run/one@7"));
        for child in &mut children {
            child.kill().expect("its end");
            child.wait().expect("its end");
        }
    }

    #[test]
    fn what_a_process_starts_has_its_tag() {
        let node = node_of(b"a node");
        tag_own(node);
        let own = std::process::id() as i32;
        let mut child = Command::new("sleep").arg("60").env_clear().env("PATH", "/usr/bin:/bin").spawn();
        let child = child.as_mut().expect("a process");
        assert_eq!(tag_of(child.id() as i32), Some(Tag { node, os_pid: own }));
        assert!(is_of(child.id() as i32, b"a node") && !is_of(child.id() as i32, b"another"));
        child.kill().expect("its end");
        while tag_of(child.id() as i32).is_some() {}
        child.wait().expect("its end");
    }
}
