//! The versions of the application's code that a node keeps: the current one, and those that actors may go back to.
//!
//! A version is a snapshot of the project's files in shared memory, with a zygote that has imported them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use rebeam_protocol::hash::fnv1a;
use rebeam_protocol::id::Version;
use rebeam_protocol::spec::{ChildKind, SupervisorSpec};
use rebeam_protocol::zygote::Module;

use crate::shell::service::Service;

/// One version of the code.
#[derive(Debug)]
pub(crate) struct Code {
    /// The snapshot, written by the version's first zygote.
    pub(crate) memory: OwnedFd,
    /// Down if the application must not be forked: then every actor gets a fresh interpreter.
    pub(crate) zygote: Service,
    pub(crate) modules: Vec<Module>,
    /// Names that are imported, and that are no modules of the project (`*`: whatever comes).
    pub(crate) missing: Vec<String>,
    /// A digest of the tree.
    pub(crate) declaration: u64,
}

/// All versions that are kept.
#[derive(Debug)]
pub(crate) struct Versions {
    current: Version,
    all: BTreeMap<Version, Code>,
    /// The last number that was given out.
    last: Version,
}

impl Versions {
    /// The versions of a node that has just started.
    pub(crate) fn new(first: Code) -> Self {
        Versions { current: Version::FIRST, all: BTreeMap::from([(Version::FIRST, first)]), last: Version::FIRST }
    }

    /// The number of the next version.
    pub(crate) fn next(&mut self) -> Version {
        self.last.0 += 1;
        self.last
    }

    /// Adds a version, which is the current one from now on.
    pub(crate) fn add(&mut self, version: Version, code: Code) {
        self.current = version;
        self.all.insert(version, code);
    }

    /// Drops all versions but the current one and those given. Their zygotes end.
    pub(crate) fn keep(&mut self, needed: &[Version]) {
        let current = self.current;
        let gone = self.all.extract_if(.., |version, _| *version != current && !needed.contains(version));
        gone.for_each(|(_, mut code)| code.zygote.retire());
    }

    /// Ends all zygotes.
    pub(crate) fn retire_all(&mut self) {
        self.all.values_mut().for_each(|code| code.zygote.retire());
    }

    pub(crate) fn current(&self) -> Version {
        self.current
    }

    /// A version, if it is kept.
    pub(crate) fn code(&self, version: Version) -> Option<&Code> {
        self.all.get(&version)
    }

    /// The modules of the current version.
    pub(crate) fn modules(&self) -> &[Module] {
        self.code(self.current).map(|code| code.modules.as_slice()).unwrap_or_default()
    }

    /// Names that the current version imports, and that are no modules of the project.
    pub(crate) fn missing(&self) -> &[String] {
        self.code(self.current).map(|code| code.missing.as_slice()).unwrap_or_default()
    }

    /// The digest of the current version's tree.
    pub(crate) fn declaration(&self) -> Option<u64> {
        self.code(self.current).map(|code| code.declaration)
    }

    /// The zygote of a version, if that is kept.
    pub(crate) fn zygote(&self, version: Version) -> Option<&Service> {
        self.code(version).map(|code| &code.zygote)
    }

    /// The zygote of a version, if that is kept.
    pub(crate) fn zygote_mut(&mut self, version: Version) -> Option<&mut Service> {
        self.all.get_mut(&version).map(|code| &mut code.zygote)
    }

    /// The zygotes of all versions.
    pub(crate) fn zygotes(&self) -> impl Iterator<Item = (Version, &Service)> {
        self.all.iter().map(|(version, code)| (*version, &code.zygote))
    }

    /// The version whose zygote a process is.
    pub(crate) fn of_zygote(&self, os_pid: i32) -> Option<Version> {
        self.zygotes().find(|(_, zygote)| zygote.os_pid() == Some(os_pid)).map(|(version, _)| version)
    }
}

/// The files that were changed, added or removed from one version to another.
pub(crate) fn changed_files(old: &[Module], new: &[Module]) -> BTreeSet<PathBuf> {
    let of = |modules: &[Module]| -> BTreeMap<Vec<u8>, u64> {
        modules.iter().map(|module| (module.path.clone(), module.own)).collect()
    };
    let (old, new) = (of(old), of(new));
    let paths = old.keys().chain(new.keys());
    paths.filter(|path| old.get(*path) != new.get(*path)).map(|path| OsStr::from_bytes(path).into()).collect()
}

/// Digests of modules, each with what it imports.
pub(crate) fn digests(modules: &[Module]) -> HashMap<String, u64> {
    modules.iter().map(|module| (module.name.clone(), module.closure)).collect()
}

/// A digest of a tree, arguments left out: what holds a set may be pickled in another order each time.
pub(crate) fn digest_of_tree(tree: &SupervisorSpec) -> u64 {
    fn without_arguments(tree: &mut SupervisorSpec) {
        for child in &mut tree.children {
            match &mut child.kind {
                ChildKind::Actor(actor) => actor.start.clear(),
                ChildKind::Supervisor(tree) => without_arguments(tree),
            }
        }
    }
    let mut tree = tree.clone();
    without_arguments(&mut tree);
    fnv1a(&postcard::to_allocvec(&tree).unwrap_or_default())
}

/// The file of a module.
pub(crate) fn path_of(module: &Module) -> PathBuf {
    OsStr::from_bytes(&module.path).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_changed_if_it_was_changed_added_or_removed() {
        let module = |name: &str, own: u64| Module {
            name: name.into(),
            path: format!("/{name}.py").into_bytes(),
            own,
            closure: 0,
        };
        let old = [module("app", 1), module("models", 2), module("gone", 4)];
        let new = [module("app", 1), module("models", 5), module("come", 6)];
        let changed = ["/come.py", "/gone.py", "/models.py"].map(PathBuf::from);
        assert_eq!(changed_files(&old, &new), BTreeSet::from(changed));
    }
}
