//! What the container lets us have: CPU, memory and processes, from the control groups that we are in, version 1 or 2.
//!
//! A limit of a group above ours holds, too, so the least on the way up counts. Each number is kept with the file that it
//! came from. Nothing here acts on them.

use std::fs;
use std::path::{Path, PathBuf};

/// Where the system tells about control groups; another root in tests.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    root: PathBuf,
}

/// A number, and the file that says it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Limit<T> {
    pub(crate) value: T,
    pub(crate) from: PathBuf,
}

/// The limits of our own control groups. `None`: no limit, or no way to know.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Limits {
    /// CPUs' worth of time.
    pub(crate) cpu_quota: Option<Limit<f64>>,
    /// How many CPUs may be run on.
    pub(crate) cpuset: Option<Limit<u64>>,
    /// Bytes.
    pub(crate) memory: Option<Limit<u64>>,
    /// Processes and threads.
    pub(crate) pids: Option<Limit<u64>>,
}

/// The group of one controller: the directory of ours, and how many of its parents are to be seen.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Group {
    directory: PathBuf,
    top: PathBuf,
    version: Version,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

/// Version 1 says "no limit" by a number so large that nobody means it.
const NO_LIMIT: u64 = 1 << 60;

impl Default for Source {
    fn default() -> Self {
        Source { root: "/".into() }
    }
}

impl Source {
    /// The group of a controller that we are in.
    pub(crate) fn group(&self, controller: &str) -> Option<Group> {
        let ours = fs::read_to_string(self.root.join("proc/self/cgroup")).ok()?;
        let mounts = fs::read_to_string(self.root.join("proc/self/mountinfo")).ok()?;
        let lines = || ours.lines().filter_map(|line| line.split_once(':')?.1.split_once(':'));
        let in_v1 = lines().find(|(names, _)| names.split(',').any(|name| name == controller));
        let v1 = in_v1.and_then(|(_, path)| {
            let is_it = |kind: &str, options: &str| kind == "cgroup" && options.split(',').any(|it| it == controller);
            self.mounted(&mounts, path, Version::One, is_it)
        });
        let in_v2 = || lines().find(|(names, _)| names.is_empty());
        v1.or_else(|| self.mounted(&mounts, in_v2()?.1, Version::Two, |kind, _| kind == "cgroup2"))
    }

    /// Where a group is to be seen, by the lines of `mountinfo`.
    fn mounted(&self, mounts: &str, path: &str, version: Version, is_it: impl Fn(&str, &str) -> bool) -> Option<Group> {
        mounts.lines().find_map(|line| {
            let (place, kind) = line.split_once(" - ")?;
            let mut kind = kind.split(' ');
            if !is_it(kind.next()?, kind.nth(1)?) {
                return None;
            }
            let mut place = place.split(' ').skip(3);
            let (mount_root, mount_point) = (place.next()?, place.next()?);
            let top = self.root.join(mount_point.trim_start_matches('/'));
            // In a container the path may be the host's, and what is mounted the container's own group.
            let below = Path::new(path).strip_prefix(mount_root).unwrap_or(Path::new(""));
            let directory = top.join(below);
            let directory = if directory.is_dir() { directory } else { top.clone() };
            Some(Group { directory, top, version })
        })
    }

    /// The limit of memory, and the group that has it: ours, or one above.
    pub(crate) fn memory(&self) -> Option<(u64, Group)> {
        let limit = self.limits().memory?;
        let group = Group { directory: limit.from.parent()?.to_owned(), ..self.group("memory")? };
        Some((limit.value, group))
    }

    /// All limits.
    pub(crate) fn limits(&self) -> Limits {
        let least = |controller: &str, read: &dyn Fn(&Group, &Path) -> Option<Limit<f64>>| {
            let group = self.group(controller)?;
            group.up().filter_map(|directory| read(&group, directory)).min_by(|a, b| a.value.total_cmp(&b.value))
        };
        let whole = |limit: Option<Limit<f64>>| limit.map(|it| Limit { value: it.value as u64, from: it.from });
        let memory = |group: &Group, directory: &Path| {
            let name = group.name("memory.limit_in_bytes", "memory.max");
            number(&directory.join(name)).filter(|limit| limit.value < NO_LIMIT as f64)
        };
        let cpuset = || {
            let group = self.group("cpuset")?;
            let from = group.directory.join(group.name("cpuset.effective_cpus", "cpuset.cpus.effective"));
            Some(Limit { value: cpus_in(fs::read_to_string(&from).ok()?.trim())?, from })
        };
        Limits {
            cpu_quota: least("cpu", &quota),
            cpuset: cpuset(),
            memory: whole(least("memory", &memory)),
            pids: whole(least("pids", &|_, directory| number(&directory.join("pids.max")))),
        }
    }
}

impl Group {
    /// A file of ours, named as each version does.
    pub(crate) fn file(&self, v1: &str, v2: &str) -> PathBuf {
        self.directory.join(self.name(v1, v2))
    }

    fn name<'a>(&self, v1: &'a str, v2: &'a str) -> &'a str {
        match self.version {
            Version::One => v1,
            Version::Two => v2,
        }
    }

    /// The directories of ours and of those above it.
    fn up(&self) -> impl Iterator<Item = &Path> {
        self.directory.ancestors().take_while(|directory| directory.starts_with(&self.top))
    }

    /// Bytes in use that the kernel cannot take back: what it keeps of files, and can drop, is not counted.
    pub(crate) fn memory_in_use(&self) -> Option<u64> {
        let used = number(&self.file("memory.usage_in_bytes", "memory.current"))?.value as u64;
        let stat = fs::read_to_string(self.directory.join("memory.stat")).unwrap_or_default();
        let names: &[&str] = match self.version {
            Version::One => &["total_inactive_file", "total_active_file"],
            Version::Two => &["inactive_file", "active_file", "slab_reclaimable"],
        };
        let fields = stat.lines().filter_map(|line| line.split_once(' '));
        let kept = fields.filter(|(name, _)| names.contains(name)).filter_map(|(_, bytes)| bytes.parse::<u64>().ok());
        Some(used.saturating_sub(kept.sum()))
    }
}

fn quota(group: &Group, directory: &Path) -> Option<Limit<f64>> {
    let (quota, period, from) = match group.version {
        Version::One => {
            let from = directory.join("cpu.cfs_quota_us");
            (number(&from)?.value, number(&directory.join("cpu.cfs_period_us"))?.value, from)
        }
        Version::Two => {
            let from = directory.join("cpu.max");
            let text = fs::read_to_string(&from).ok()?;
            let (quota, period) = text.trim().split_once(' ')?;
            (quota.parse().ok()?, period.parse().ok()?, from)
        }
    };
    (quota > 0.0 && period > 0.0).then(|| Limit { value: quota / period, from })
}

/// The number in a file; `None` for `max`.
fn number(from: &Path) -> Option<Limit<f64>> {
    let value = fs::read_to_string(from).ok()?.trim().parse().ok()?;
    Some(Limit { value, from: from.to_owned() })
}

/// How many CPUs a list such as `0-3,8` has.
fn cpus_in(list: &str) -> Option<u64> {
    let count = |part: &str| match part.split_once('-') {
        Some((first, last)) => Some(last.parse::<u64>().ok()?.checked_sub(first.parse().ok()?)? + 1),
        None => part.parse::<u64>().ok().map(|_| 1),
    };
    list.split(',').map(count).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A system with these files.
    fn system(files: &[(&str, &str)]) -> (tempfile::TempDir, Source) {
        let root = tempfile::tempdir().expect("a directory");
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().expect("a parent")).expect("directories");
            fs::write(path, text).expect("a file");
        }
        let source = Source { root: root.path().to_owned() };
        (root, source)
    }

    #[test]
    fn version_2_in_a_container() {
        let (root, source) = system(&[
            ("proc/self/cgroup", "0::/\n"),
            ("proc/self/mountinfo", "30 23 0:26 / /sys/fs/cgroup ro,nosuid - cgroup2 cgroup rw\n"),
            ("sys/fs/cgroup/memory.max", "134217728\n"),
            ("sys/fs/cgroup/memory.current", "50000000\n"),
            (
                "sys/fs/cgroup/memory.stat",
                "anon 9\ninactive_file 15000000\nactive_file 4000000\nslab_reclaimable 1000000\n",
            ),
            ("sys/fs/cgroup/cpu.max", "150000 100000\n"),
            ("sys/fs/cgroup/cpuset.cpus.effective", "0-3,8\n"),
            ("sys/fs/cgroup/pids.max", "max\n"),
        ]);
        let limits = source.limits();
        assert_eq!(limits.cpu_quota.map(|limit| limit.value), Some(1.5));
        assert_eq!(limits.cpuset.map(|limit| limit.value), Some(5));
        let memory = limits.memory.expect("a limit");
        assert_eq!((memory.value, memory.from), (128 << 20, root.path().join("sys/fs/cgroup/memory.max")));
        assert_eq!(limits.pids, None);
        assert_eq!(source.group("memory").and_then(|group| group.memory_in_use()), Some(30_000_000));
    }

    #[test]
    fn version_1_of_the_host_where_a_limit_above_ours_holds() {
        let mounts = "40 23 0:30 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                      41 23 0:31 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
                      42 23 0:32 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n";
        let (_root, source) = system(&[
            ("proc/self/cgroup", "9:memory:/pod/app\n8:cpu,cpuacct:/pod\n7:pids:/pod\n"),
            ("proc/self/mountinfo", mounts),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
            ("sys/fs/cgroup/memory/pod/memory.limit_in_bytes", "1000000\n"),
            ("sys/fs/cgroup/memory/pod/app/memory.limit_in_bytes", "9223372036854771712\n"),
            ("sys/fs/cgroup/memory/pod/memory.usage_in_bytes", "900000\n"),
            (
                "sys/fs/cgroup/memory/pod/memory.stat",
                "inactive_file 1\ntotal_inactive_file 70000\ntotal_active_file 30000\n",
            ),
            ("sys/fs/cgroup/cpu,cpuacct/pod/cpu.cfs_quota_us", "-1\n"),
            ("sys/fs/cgroup/cpu,cpuacct/pod/cpu.cfs_period_us", "100000\n"),
            ("sys/fs/cgroup/pids/pod/pids.max", "4096\n"),
        ]);
        let limits = source.limits();
        assert_eq!(limits.memory.map(|limit| limit.value), Some(1_000_000));
        assert_eq!(limits.cpu_quota, None);
        assert_eq!(limits.pids.map(|limit| limit.value), Some(4096));
        // What is used is asked where the limit is.
        assert_eq!(source.memory().and_then(|(_, group)| group.memory_in_use()), Some(800_000));
    }

    #[test]
    fn version_1_in_a_container_whose_path_is_the_hosts() {
        let (_root, source) = system(&[
            ("proc/self/cgroup", "9:memory:/machine/abc\n"),
            ("proc/self/mountinfo", "40 23 0:30 /machine/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "67108864\n"),
        ]);
        assert_eq!(source.limits().memory.map(|limit| limit.value), Some(64 << 20));
    }

    #[test]
    fn where_there_are_no_control_groups_there_are_no_limits() {
        let (_root, source) = system(&[]);
        assert_eq!(source.limits(), Limits::default());
    }
}
