//! The versions of the application's code that a node keeps: one that it runs, and those that actors may go back to.
//!
//! A version is memory with the project's files, and a zygote that has imported them. Where code is reloaded, zygotes are
//! forked from a *base*, which has imported what does not change.

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
    /// The project's files, as its first zygote has written them down.
    pub(crate) memory: OwnedFd,
    /// Down where the application is not to be forked: every actor gets a fresh interpreter.
    pub(crate) zygote: Service,
    pub(crate) modules: Vec<Module>,
}

/// All that are kept.
#[derive(Debug)]
pub(crate) struct Versions {
    current: Version,
    all: BTreeMap<Version, Code>,
    /// The last number that was given to one.
    last: Version,
}

impl Versions {
    /// Of a node that has just started.
    pub(crate) fn new(first: Code) -> Self {
        Versions { current: Version::FIRST, all: BTreeMap::from([(Version::FIRST, first)]), last: Version::FIRST }
    }

    /// A number for one that is to be loaded.
    pub(crate) fn next(&mut self) -> Version {
        self.last.0 += 1;
        self.last
    }

    /// From now on this is what the node runs.
    pub(crate) fn add(&mut self, version: Version, code: Code) {
        self.current = version;
        self.all.insert(version, code);
    }

    /// Lets go of all but those that are needed; their zygotes end.
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

    /// A version; the current one in the place of one that is not kept.
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

    /// All of them, with their zygotes.
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
    /// Modules that have changed themselves, or by what they import.
    pub(crate) changed: Changed,
    /// Files that have changed, come or gone.
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
    // What nobody imports, neither before nor now, is nobody's code.
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

/// A digest of everything that is loaded, to know a version again by.
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
