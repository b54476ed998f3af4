//! The versions of the application's code that a node keeps: the current one, and those that actors may go back to.
//!
//! A version is a snapshot of the project's files in shared memory, with a zygote that has imported them.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use rebeam_core::event::Changed;
use rebeam_protocol::id::Version;
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

    /// A version, or the current one if that version is not kept.
    pub(crate) fn code(&self, version: Version) -> &Code {
        self.all.get(&version).unwrap_or_else(|| &self.all[&self.current])
    }

    /// Whether a version is kept.
    pub(crate) fn has(&self, version: Version) -> bool {
        self.all.contains_key(&version)
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

    /// Memory of a version, for interpreters.
    pub(crate) fn memory(&self, version: Version) -> BorrowedFd<'_> {
        self.code(version).memory.as_fd()
    }
}

/// How one version differs from another.
#[derive(Debug)]
pub(crate) struct Difference {
    /// Modules that have changed, or that import one that has.
    pub(crate) changed: Changed,
    /// Files that were changed, added or removed.
    pub(crate) files: Vec<PathBuf>,
}

/// How the new modules of a project differ from the old ones.
pub(crate) fn difference(old: &[Module], new: &[Module]) -> Difference {
    let of = |modules: &[Module]| -> BTreeMap<String, Module> {
        modules.iter().map(|module| (module.name.clone(), module.clone())).collect()
    };
    let (old, new) = (of(old), of(new));
    let names: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    let differs = |name: &str, what: fn(&Module) -> u64| old.get(name).map(what) != new.get(name).map(what);
    // A file that is not imported, neither before nor now, changes nothing.
    let is_used = |name: &str| [&old, &new].iter().any(|it| it.get(name).is_some_and(|module| module.is_loaded));
    let changed: HashSet<String> =
        names.iter().filter(|name| differs(name, |module| module.closure)).map(|name| (*name).clone()).collect();
    let files = names.iter().filter(|name| is_used(name) && differs(name, |module| module.own));
    let path = |name: &&&String| new.get(**name).or_else(|| old.get(**name)).map(path_of);
    let files: BTreeSet<PathBuf> = files.filter_map(|name| path(&name)).collect();
    Difference { changed: Changed::Modules(changed), files: files.into_iter().collect() }
}

/// The file of a module.
pub(crate) fn path_of(module: &Module) -> PathBuf {
    OsStr::from_bytes(&module.path).into()
}

/// A digest of all loaded modules, by which a version is recognized.
pub(crate) fn digest(modules: &[Module]) -> u64 {
    let mut digests: Vec<(&str, u64)> =
        modules.iter().filter(|it| it.is_loaded).map(|it| (it.name.as_str(), it.closure)).collect();
    digests.sort_unstable();
    let text: Vec<String> = digests.into_iter().map(|(name, digest)| format!("{name} {digest}")).collect();
    rebeam_protocol::hash::fnv1a(text.join("\n").as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn module(name: &str, own: u64, closure: u64) -> Module {
        Module { name: name.into(), path: format!("/{name}.py").into_bytes(), own, closure, is_loaded: true }
    }

    #[test]
    fn what_has_changed_itself_is_told_from_what_imports_it() {
        let old = [module("app", 1, 10), module("models", 2, 20), module("other", 3, 30), module("gone", 4, 40)];
        let new = [module("app", 1, 11), module("models", 5, 21), module("other", 3, 30), module("come", 6, 60)];
        let Difference { changed, files } = difference(&old, &new);
        let names = ["app", "models", "gone", "come"].map(str::to_owned);
        assert_eq!(changed, Changed::Modules(names.into()));
        assert_eq!(files, ["/come.py", "/gone.py", "/models.py"].map(PathBuf::from));
        assert!(digest(&old) != digest(&new));
    }

    #[test]
    fn a_file_that_nobody_imports_changes_nothing() {
        let lazy = |own| Module { is_loaded: false, ..module("lazy", own, own) };
        let difference = difference(&[module("app", 1, 1), lazy(1)], &[module("app", 1, 1), lazy(2)]);
        assert_eq!(difference.files, [] as [PathBuf; 0]);
    }
}
