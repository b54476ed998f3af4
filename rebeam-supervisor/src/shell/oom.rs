//! The kernel's own count of processes that its out-of-memory killer ended in our cgroup, version 1 or 2.
//!
//! The kernel does not say whom it killed. Where the count went up by one and one process of ours was killed by nobody
//! known, that is taken as proof (rule 15 of the design); otherwise the killer stays unknown.

use std::fs;
use std::path::PathBuf;

use crate::shell::cgroup::Source;

/// The count, and how far it was when it was last read.
#[derive(Debug)]
pub(crate) struct OutOfMemory {
    file: Option<PathBuf>,
    seen: u64,
}

impl OutOfMemory {
    /// Finds the count of the cgroup that we are in.
    pub(crate) fn new() -> Self {
        let group = Source::default().group("memory");
        let file = group.map(|group| group.file("memory.oom_control", "memory.events"));
        let mut this = OutOfMemory { file, seen: 0 };
        this.seen = this.read();
        this
    }

    /// Whether the kernel has killed exactly one process since this was last asked.
    pub(crate) fn has_killed_one(&mut self) -> bool {
        let now = self.read();
        let before = std::mem::replace(&mut self.seen, now);
        self.seen == before + 1
    }

    fn read(&self) -> u64 {
        let text = self.file.as_ref().and_then(|file| fs::read_to_string(file).ok()).unwrap_or_default();
        count_in(&text)
    }
}

fn count_in(text: &str) -> u64 {
    let count = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
    count.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_name_the_count_alike() {
        assert_eq!(count_in("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"), 3);
        assert_eq!(count_in("low 0\nhigh 0\nmax 12\noom 2\noom_kill 1\n"), 1);
        assert_eq!(count_in(""), 0);
    }
}
