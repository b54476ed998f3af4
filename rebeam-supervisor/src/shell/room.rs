//! How many actors fit: into the memory, the processes and the descriptors that we may have.
//!
//! The costs are those of an actor that does nothing; what an application needs beyond that, nobody knows.

use nix::unistd::SysconfVar;
use rebeam_protocol::spec::{ChildKind, SupervisorKind, SupervisorSpec};

use crate::shell::cgroup::{Limits, Source};
use crate::shell::descriptors;
use crate::view::text::kib;

/// Memory of the supervisor, the zygote and what they have at their side, and of an idle actor, in KiB.
const BASE_KIB: u64 = 20 * 1024;
const ACTOR_KIB: u64 = 1536;

/// Processes and threads beside the actors'.
const BASE_PROCESSES: u64 = 8;

/// What actors need of a tree, as far as it is declared.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Needs {
    pub(crate) actors: u64,
    /// The limits of those that have one, together.
    pub(crate) limited_kib: u64,
    /// How many have none.
    pub(crate) unlimited: u64,
    /// What those of its tables may take together that have a limit.
    pub(crate) tables_kib: u64,
}

/// How many bytes the rows of all tables may have: a quarter of the memory that we may use.
pub(crate) fn for_tables() -> u64 {
    let sysconf = |name| nix::unistd::sysconf(name).ok().flatten().map(|it| it as u64);
    let all = || Some(sysconf(SysconfVar::_PHYS_PAGES)? * sysconf(SysconfVar::PAGE_SIZE)?);
    let limit = Source::default().memory().map(|(limit, _)| limit);
    limit.or_else(all).unwrap_or(u64::MAX) / 4
}

/// How many idle actors fit, and what bounds them.
pub(crate) fn actors(limits: &Limits, descriptors: u64) -> (u64, &'static str) {
    let memory = limits.memory.as_ref().map(|limit| (limit.value / 1024).saturating_sub(BASE_KIB) / ACTOR_KIB);
    let pids = limits.pids.as_ref().map(|limit| limit.value.saturating_sub(BASE_PROCESSES));
    let bounds = [
        (Some(descriptors.saturating_sub(descriptors::OWN) / descriptors::PER_ACTOR), "descriptors"),
        (memory, "memory"),
        (pids, "processes"),
    ];
    let bounds = bounds.into_iter().filter_map(|(count, what)| Some((count?, what)));
    bounds.min_by_key(|(count, _)| *count).unwrap_or((u64::MAX, "nothing"))
}

impl Needs {
    /// Of a tree as it is declared.
    pub(crate) fn of(tree: &SupervisorSpec) -> Self {
        let mut needs = Needs::default();
        needs.add(tree);
        needs.tables_kib = needs.tables_kib.min(for_tables() / 1024);
        needs
    }

    fn add(&mut self, supervisor: &SupervisorSpec) {
        for child in &supervisor.children {
            match &child.kind {
                ChildKind::Supervisor(inner) => {
                    if let SupervisorKind::Table(table) = &inner.kind {
                        self.tables_kib = self.tables_kib.saturating_add(table.max_bytes.unwrap_or(0) / 1024);
                    }
                    self.add(inner);
                }
                ChildKind::Actor(actor) => {
                    self.actors += 1;
                    match actor.limits.memory_hard_kib.or(actor.limits.memory_soft_kib) {
                        Some(limit) => self.limited_kib += limit,
                        None => self.unlimited += 1,
                    }
                }
            }
        }
    }

    /// Memory for each actor without a limit of its own, in KiB, if all others use up theirs.
    pub(crate) fn share_kib(&self, limits: &Limits) -> Option<u64> {
        let memory = limits.memory.as_ref()?.value / 1024;
        let others = BASE_KIB + self.limited_kib + self.tables_kib;
        (self.unlimited > 0).then(|| memory.saturating_sub(others) / self.unlimited)
    }

    /// Why the tree may not fit, each with where the limit is said.
    pub(crate) fn shortfalls(&self, limits: &Limits, descriptors: u64) -> Vec<String> {
        let mut found = Vec::new();
        if let Some(memory) = &limits.memory {
            let needed = BASE_KIB + self.limited_kib + self.unlimited * ACTOR_KIB + self.tables_kib;
            let (there, from) = (memory.value / 1024, memory.from.display());
            if needed > there {
                let (needed, there) = (kib(needed), kib(there));
                found.push(format!("the tree may use {needed} of memory, and there are {there} (`{from}`)"));
            }
        }
        if let Some(pids) = limits.pids.as_ref().filter(|pids| self.actors + BASE_PROCESSES > pids.value) {
            let (needed, from) = (self.actors + BASE_PROCESSES, pids.from.display());
            found.push(format!("the tree needs {needed} processes, and there may be {} (`{from}`)", pids.value));
        }
        let needed = descriptors::OWN + self.actors * descriptors::PER_ACTOR;
        if needed > descriptors {
            found.push(format!("the tree needs {needed} descriptors, and there may be {descriptors} (`ulimit -n`)"));
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use rebeam_protocol::spec::ChildSpec;
    use rebeam_protocol::table::{Access, Table, TableKind};

    use super::*;
    use crate::shell::cgroup::Limit;

    fn limits(memory: u64, pids: u64) -> Limits {
        let limit = |value| Some(Limit { value, from: "/a/file".into() });
        Limits { memory: limit(memory), pids: limit(pids), ..Limits::default() }
    }

    #[test]
    fn what_does_not_fit_is_told_with_where_the_limit_is_said() {
        let needs = Needs { actors: 100, limited_kib: 200 * 1024, unlimited: 50, tables_kib: 0 };
        assert_eq!(needs.shortfalls(&limits(1 << 30, 200), 1024), Vec::<String>::new());
        let told = needs.shortfalls(&limits(64 << 20, 64), 256);
        assert_eq!(told.len(), 3, "{told:?}");
        assert!(told.iter().take(2).all(|text| text.contains("`/a/file`")), "{told:?}");
        assert_eq!(needs.share_kib(&limits(1 << 30, 200)), Some((1024 * 1024 - 220 * 1024) / 50));
        let needs = Needs { tables_kib: 800 * 1024, ..needs };
        assert_eq!(needs.share_kib(&limits(1 << 30, 200)), Some(4 * 1024 / 50));
        assert_eq!(needs.shortfalls(&limits(1 << 30, 200), 1024).len(), 1);
    }

    #[test]
    fn tables_with_a_limit_count_up_to_a_quarter_of_the_memory() {
        let table = |max_bytes| {
            let table = Table { max_bytes, ..Table::new(TableKind::Set, Access::Public) };
            let spec = SupervisorSpec::new("table", Vec::new());
            ChildSpec::supervisor(SupervisorSpec { kind: SupervisorKind::Table(table), ..spec })
        };
        let tree = |children| SupervisorSpec::new("root", children);
        assert_eq!(Needs::of(&tree(vec![table(Some(1 << 20)), table(Some(2 << 20))])).tables_kib, 3 << 10);
        assert_eq!(Needs::of(&tree(vec![table(Some(1 << 20)), table(None)])).tables_kib, 1 << 10);
        assert_eq!(Needs::of(&tree(vec![table(Some(u64::MAX))])).tables_kib, for_tables() / 1024);
        assert_eq!(Needs::of(&tree(Vec::new())).tables_kib, 0);
    }

    #[test]
    fn the_least_bounds_how_many_fit() {
        assert_eq!(actors(&limits(1 << 30, 100), 100_000), (92, "processes"));
        assert_eq!(actors(&limits(64 << 20, 4096), 100_000).1, "memory");
        assert_eq!(actors(&Limits::default(), 1064), (250, "descriptors"));
    }
}
