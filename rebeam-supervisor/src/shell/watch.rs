//! The file watcher: requests a reload when files of the application are saved.
//!
//! It watches the directories of loaded modules and the files that match the project's `watch` patterns, never the whole
//! project. It only decides *when* to reload; what has changed is found out by comparing digests after the import.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use globset::{Glob, GlobSet, GlobSetBuilder};
use nix::errno::Errno;
use notify::event::{AccessKind, AccessMode, ModifyKind};
use notify::{Config, ErrorKind, Event, EventKind, PollWatcher, RecommendedWatcher, RecursiveMode, Watcher};
use rebeam_protocol::hash::fnv1a;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::MissedTickBehavior;

use crate::printer::Printer;
use crate::shell::engine::{Import, Node, Trigger};
use crate::shell::sampler::look;

/// How long to wait after a change for more changes: of one file, and of several.
const QUIET: Duration = Duration::from_millis(20);
const QUIET_IN_A_BURST: Duration = Duration::from_millis(80);

/// The longest wait for the end of a burst.
const LONGEST_BURST: Duration = Duration::from_secs(1);

/// How often files are polled where the file system reports no changes.
const POLL: Duration = Duration::from_millis(500);

/// How often missing directories are looked for.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// Files up to this size, in bytes, are read to tell whether they have changed.
const MOST_READ: u64 = 1024 * 1024;

/// A file that changes during this many reloads in a row is taken to be written by the application itself.
const MOST_IN_A_ROW: u32 = 5;

/// How files are watched.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) directory: PathBuf,
    /// Patterns of files that belong to the application and are not modules, relative to the project.
    pub(crate) patterns: Vec<String>,
    /// Whether to poll, because the file system reports no changes.
    pub(crate) polls: bool,
}

/// The `watch` patterns, compiled.
#[derive(Debug)]
pub(crate) struct Patterns(GlobSet);

impl Patterns {
    /// # Errors
    /// The first invalid pattern, and why it is invalid.
    pub(crate) fn new(patterns: &[String]) -> Result<Self, globset::Error> {
        let mut set = GlobSetBuilder::new();
        for pattern in patterns {
            // A pattern without a slash matches in every directory of the project.
            let anywhere = if pattern.contains('/') { pattern.clone() } else { format!("**/{pattern}") };
            set.add(Glob::new(&anywhere)?);
        }
        Ok(Patterns(set.build()?))
    }
}

enum News {
    /// The system reports a change.
    Change(Event),
    Import(Import),
    Trouble(notify::Error),
}

/// Watches until the node ends.
pub(crate) async fn watch(node: Node, options: Options, patterns: Patterns, printer: Printer) {
    let (sender, receiver) = unbounded_channel();
    let backend = match backend(&options, sender.clone()) {
        Ok(backend) => backend,
        Err(error) => return cannot_watch(&printer, &error),
    };
    node.watch_imports(move |import| drop(sender.send(News::Import(import))));
    let mut watched = Watched {
        backend,
        since: SystemTime::now() - node.age(),
        contents: HashMap::new(),
        options,
        patterns: patterns.0,
        printer,
        modules: HashSet::new(),
        directories: BTreeSet::new(),
        missing: BTreeSet::new(),
        is_broken: false,
        others: BTreeSet::new(),
        has_warned: false,
    };
    watched.run(receiver, &node).await;
}

fn cannot_watch(printer: &Printer, error: &notify::Error) {
    let (reason, limit) = match &error.kind {
        ErrorKind::MaxFilesWatch => {
            ("the system watches no more directories for this user".into(), Some("fs.inotify.max_user_watches"))
        }
        ErrorKind::Io(error) if error.raw_os_error() == Some(Errno::EMFILE as i32) => {
            ("this user has too many watchers of files".into(), Some("fs.inotify.max_user_instances"))
        }
        _ => (error.to_string(), None),
    };
    printer.warn(&format!("not all files can be watched: {reason}; `rebeam reload` reloads by hand"));
    let raise = limit.map(|limit| format!("raise `{limit}` (sysctl), or ")).unwrap_or_default();
    printer.say(&format!(
        "hint: {raise}set `reload = \"poll\"` in the project's file: then files are read twice a second"
    ));
}

type Backend = Box<dyn Watcher>;

fn backend(options: &Options, sender: UnboundedSender<News>) -> notify::Result<Backend> {
    let tell = move |result: notify::Result<Event>| {
        let _ = sender.send(result.map_or_else(News::Trouble, News::Change));
    };
    let config = Config::default().with_poll_interval(POLL).with_compare_contents(true);
    Ok(match options.polls {
        true => Box::new(PollWatcher::new(tell, config)?),
        false => Box::new(RecommendedWatcher::new(tell, config)?),
    })
}

struct Watched {
    backend: Backend,
    /// When the last import that is known to have read all files began.
    since: SystemTime,
    /// Digests of files that have changed, by which a save that changes nothing is told.
    contents: HashMap<PathBuf, u64>,
    options: Options,
    patterns: GlobSet,
    printer: Printer,
    /// Files of loaded modules.
    modules: HashSet<PathBuf>,
    directories: BTreeSet<PathBuf>,
    /// Directories that should be watched and do not exist.
    missing: BTreeSet<PathBuf>,
    /// Whether the last import failed: then any Python file or directory that appears may be the fix.
    is_broken: bool,
    /// Such files and directories that have changed since the current import began: the fix if it fails.
    others: BTreeSet<PathBuf>,
    has_warned: bool,
}

/// Changes that came shortly after one another.
#[derive(Debug, Default)]
struct Burst {
    /// All changed files.
    paths: BTreeSet<PathBuf>,
    /// Those that are not modules.
    files: BTreeSet<PathBuf>,
    /// When the burst began, and when it is over unless more changes come.
    times: Option<(Instant, Instant)>,
}

impl Burst {
    fn note(&mut self, path: &Path, is_module: bool) {
        let now = Instant::now();
        self.paths.insert(path.to_owned());
        // One save of one file is several changes.
        let quiet = if self.paths.len() > 1 { QUIET_IN_A_BURST } else { QUIET };
        let since = self.times.map_or(now, |(since, _)| since);
        self.times = Some((since, (now + quiet).min(since + LONGEST_BURST)));
        if !is_module {
            self.files.insert(path.to_owned());
        }
    }
}

/// Files that change during every reload, since the application writes them itself.
#[derive(Debug, Default)]
struct OwnWrites {
    /// Whether a reload is under way.
    is_under_way: bool,
    /// Files that have changed since it began.
    changed: BTreeSet<PathBuf>,
    in_a_row: BTreeMap<PathBuf, u32>,
    muted: BTreeSet<PathBuf>,
}

impl OwnWrites {
    /// Notes that a file has changed; returns whether the change counts.
    fn note(&mut self, path: &Path) -> bool {
        if self.is_under_way {
            self.changed.insert(path.to_owned());
        }
        !self.muted.contains(path)
    }

    /// A reload begins, and ends the one under way, if any: returns the files whose changes do not count any more.
    fn begins(&mut self) -> Vec<PathBuf> {
        let found = if self.is_under_way { self.ends() } else { Vec::new() };
        self.is_under_way = true;
        found
    }

    /// A reload is over, whatever has come of it: returns the files whose changes do not count any more.
    fn ends(&mut self) -> Vec<PathBuf> {
        self.is_under_way = false;
        let changed = std::mem::take(&mut self.changed);
        self.in_a_row.retain(|path, _| changed.contains(path));
        let mut found = Vec::new();
        for path in changed {
            let times = self.in_a_row.entry(path.clone()).or_default();
            *times += 1;
            if *times == MOST_IN_A_ROW && self.muted.insert(path.clone()) {
                found.push(path);
            }
        }
        found
    }
}

impl Watched {
    async fn run(&mut self, mut receiver: UnboundedReceiver<News>, node: &Node) {
        let (mut burst, mut own) = (Burst::default(), OwnWrites::default());
        let mut answers = FuturesUnordered::new();
        let mut look_again = tokio::time::interval(LOOK_AGAIN);
        look_again.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let quiet = async {
                match burst.times {
                    Some((_, until)) => tokio::time::sleep_until(until.into()).await,
                    None => std::future::pending().await,
                }
            };
            let is_any_missing = !self.missing.is_empty();
            tokio::select! {
                news = receiver.recv() => match news {
                    Some(News::Change(event)) => self.changed(&event, &mut burst, &mut own),
                    Some(News::Import(Import::Loaded(files))) => {
                        self.is_broken = false;
                        self.others.clear();
                        self.watch_modules(files, &mut burst).await;
                    }
                    Some(News::Import(Import::Failed)) => {
                        self.is_broken = true;
                        for path in std::mem::take(&mut self.others) {
                            self.note_other(&path, &mut burst);
                        }
                    }
                    Some(News::Trouble(error)) => self.warn(&error),
                    None => return,
                },
                Some(_) = answers.next() => if answers.is_empty() {
                    self.mute(own.ends(), &mut burst);
                },
                _ = look_again.tick(), if is_any_missing => self.look_for_missing(&mut burst),
                () = quiet => {
                    self.mute(own.begins(), &mut burst);
                    let Burst { paths, files, .. } = std::mem::take(&mut burst);
                    if paths.is_empty() {
                        continue;
                    }
                    self.others.clear();
                    self.since = SystemTime::now();
                    answers.push(node.reload(Trigger { files: files.into_iter().collect(), is_asked_for: false }));
                }
            }
        }
    }

    /// The system reports a change.
    fn changed(&mut self, event: &Event, burst: &mut Burst, own: &mut OwnWrites) {
        // Reads change nothing, and a write is complete when the file is closed, which polling does not report.
        let is_written = matches!(event.kind, EventKind::Access(AccessKind::Close(AccessMode::Write)));
        let is_being_written = matches!(event.kind, EventKind::Modify(ModifyKind::Data(_) | ModifyKind::Metadata(_)));
        if (event.kind.is_access() && !is_written) || (is_being_written && !self.options.polls) {
            return;
        }
        if event.need_rescan() {
            // Changes were lost.
            burst.note(&self.options.directory, true);
        }
        for path in &event.paths {
            let is_moved = matches!(event.kind, EventKind::Remove(_) | EventKind::Modify(ModifyKind::Name(_)));
            if is_moved && self.directories.contains(path) {
                self.lose(path);
            }
            if self.is_as_it_was(path) && !self.is_broken {
                continue;
            }
            let is_python = path.extension().is_some_and(|extension| extension == "py");
            if self.modules.contains(path) {
                if own.note(path) {
                    burst.note(path, true);
                }
            } else if self.is_listed(path) {
                if own.note(path) {
                    burst.note(path, false);
                }
            } else if is_python || is_new_directory(event, path) {
                if !self.options.patterns.is_empty() && !is_python {
                    self.watch_below(path);
                    // Files may have come before it was watched.
                    for file in files_below(path).filter(|file| self.is_listed(file)) {
                        if own.note(&file) {
                            burst.note(&file, false);
                        }
                    }
                }
                match self.is_broken {
                    true if own.note(path) => self.note_other(path, burst),
                    _ => _ = self.others.insert(path.clone()),
                }
            }
        }
    }

    /// The last import has failed, and this file or directory, which was not part of the application, may be the fix.
    fn note_other(&mut self, path: &Path, burst: &mut Burst) {
        if path.is_dir() {
            self.watch_below(path);
        }
        burst.note(path, true);
    }

    /// Whether a file holds what it held when it last changed.
    fn is_as_it_was(&mut self, path: &Path) -> bool {
        if !self.modules.contains(path) && !self.is_listed(path) {
            return false;
        }
        match std::fs::metadata(path).and_then(|file| {
            if file.len() <= MOST_READ { std::fs::read(path) } else { Err(std::io::ErrorKind::FileTooLarge.into()) }
        }) {
            Ok(content) => {
                let digest = fnv1a(&content);
                self.contents.insert(path.to_owned(), digest) == Some(digest)
            }
            Err(_) => {
                self.contents.remove(path);
                false
            }
        }
    }

    /// A directory was removed or renamed, and with it all below. There may be another by its name.
    fn lose(&mut self, directory: &Path) {
        let lost: Vec<PathBuf> = self.directories.iter().filter(|it| it.starts_with(directory)).cloned().collect();
        for directory in lost {
            let _ = self.backend.unwatch(&directory);
            self.missing.insert(directory);
        }
    }

    fn is_listed(&self, path: &Path) -> bool {
        path.strip_prefix(&self.options.directory).is_ok_and(|relative| self.patterns.is_match(relative))
            && !path.is_dir()
    }

    /// Watches the directories of these modules.
    async fn watch_modules(&mut self, files: Vec<PathBuf>, burst: &mut Burst) {
        // Behind a symbolic link, both the link and its target are watched.
        let and_targets = move || {
            let targets: Vec<PathBuf> = files.iter().filter_map(|file| file.canonicalize().ok()).collect();
            files.into_iter().chain(targets).collect()
        };
        self.modules = look(and_targets).await.unwrap_or_default();
        let parents: BTreeSet<PathBuf> =
            self.modules.iter().filter_map(|file| Some(file.parent()?.to_owned())).collect();
        let gone: Vec<PathBuf> = self.directories.difference(&parents).cloned().collect();
        if self.options.patterns.is_empty() {
            for directory in gone {
                let _ = self.backend.unwatch(&directory);
                self.directories.remove(&directory);
                self.missing.remove(&directory);
            }
        }
        let new: BTreeSet<PathBuf> = parents.difference(&self.directories).cloned().collect();
        for directory in parents {
            self.watch_directory(directory);
        }
        // What was saved after it was read, and before it was watched.
        for file in self.modules.iter().filter(|file| file.parent().is_some_and(|parent| new.contains(parent))) {
            if std::fs::metadata(file).and_then(|it| it.modified()).is_ok_and(|modified| modified >= self.since) {
                burst.note(file, true);
            }
        }
        if !self.options.patterns.is_empty() {
            let project = self.options.directory.clone();
            self.watch_below(&project);
        }
    }

    fn watch_directory(&mut self, directory: PathBuf) {
        if self.directories.contains(&directory) && !self.missing.contains(&directory) {
            return;
        }
        match self.backend.watch(&directory, RecursiveMode::NonRecursive) {
            Ok(()) => {
                self.missing.remove(&directory);
            }
            Err(_) if !directory.exists() => {
                self.missing.insert(directory.clone());
            }
            Err(error) => self.warn(&error),
        }
        self.directories.insert(directory);
    }

    /// Watches a directory and all below it, except hidden ones, virtual environments and `node_modules`.
    fn watch_below(&mut self, directory: &Path) {
        let mut queue = vec![directory.to_owned()];
        while let Some(directory) = queue.pop() {
            if self.has_warned {
                return;
            }
            let Ok(entries) = std::fs::read_dir(&directory) else { continue };
            for entry in entries.flatten() {
                let is_directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
                if is_directory && !is_other(&entry.file_name()) && !entry.path().join("pyvenv.cfg").exists() {
                    queue.push(entry.path());
                }
            }
            self.watch_directory(directory);
        }
    }

    /// Watches directories that exist again; their files may have changed.
    fn look_for_missing(&mut self, burst: &mut Burst) {
        let back: Vec<PathBuf> = self.missing.iter().filter(|directory| directory.is_dir()).cloned().collect();
        for directory in back {
            burst.note(&directory, true);
            self.watch_directory(directory);
        }
    }

    /// From now on, changes of these files do not count.
    fn mute(&self, files: Vec<PathBuf>, burst: &mut Burst) {
        for path in files {
            burst.files.remove(&path);
            burst.paths.remove(&path);
            let path = path.strip_prefix(&self.options.directory).unwrap_or(&path).display();
            self.printer.warn(&format!(
                "`{path}` changes during every reload, as if the application wrote it: it is not watched any more"
            ));
        }
    }

    fn warn(&mut self, error: &notify::Error) {
        if !std::mem::replace(&mut self.has_warned, true) {
            cannot_watch(&self.printer, error);
        }
    }
}

/// Whether a change has brought a directory that may belong to the application.
fn is_new_directory(event: &Event, path: &Path) -> bool {
    let is_new = matches!(event.kind, EventKind::Create(_) | EventKind::Modify(ModifyKind::Name(_)));
    is_new && !path.file_name().is_some_and(is_other) && path.is_dir()
}

/// Whether a directory of this name never belongs to the application.
fn is_other(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(b".") || OTHERS.iter().any(|other| name == *other)
}

/// All files below a directory, as far as they may belong to the application.
fn files_below(directory: &Path) -> impl Iterator<Item = PathBuf> {
    let mut queue = vec![directory.to_owned()];
    let mut found = Vec::new();
    while let Some(directory) = queue.pop() {
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() && !is_other(&entry.file_name()) => queue.push(entry.path()),
                Ok(kind) if kind.is_file() => found.push(entry.path()),
                _ => {}
            }
        }
    }
    found.into_iter()
}

/// Directories that never belong to the application.
const OTHERS: [&str; 2] = ["__pycache__", "node_modules"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_without_a_slash_is_for_every_directory() {
        let patterns = Patterns::new(&["*.html".into(), "static/**".into()]).expect("patterns").0;
        let matched = ["a.html", "x/y/a.html", "static/x/y.css"].map(|path| patterns.is_match(path));
        assert_eq!(matched, [true; 3]);
        assert!(!patterns.is_match("x/static/y.css") && !patterns.is_match("a.htm"));
        assert!(Patterns::new(&["[".into()]).is_err());
    }

    #[test]
    fn a_file_that_changes_during_every_reload_is_not_listened_to_any_more() {
        let mut own = OwnWrites::default();
        let mut found = Vec::new();
        for _ in 0..MOST_IN_A_ROW {
            own.begins();
            assert!(own.note(Path::new("own.html")));
            found.extend(own.ends());
        }
        assert_eq!(found, [PathBuf::from("own.html")]);
        assert!(!own.note(Path::new("own.html")) && own.note(Path::new("app.py")));
    }

    #[test]
    fn what_is_saved_between_reloads_is_listened_to_for_ever() {
        let mut own = OwnWrites::default();
        for _ in 0..3 * MOST_IN_A_ROW {
            assert!(own.note(Path::new("app.py")));
            own.begins();
            assert_eq!(own.ends(), [] as [PathBuf; 0]);
        }
    }

    #[test]
    fn a_file_that_is_saved_twice_for_each_change_is_listened_to_for_ever() {
        let mut own = OwnWrites::default();
        for _ in 0..3 * MOST_IN_A_ROW {
            assert!(own.note(Path::new("app.py")));
            own.begins();
            // The second save, as the first is reloaded, is a reload of its own.
            assert!(own.note(Path::new("app.py")));
            assert_eq!(own.ends(), [] as [PathBuf; 0]);
            own.begins();
            assert_eq!(own.ends(), [] as [PathBuf; 0]);
        }
    }

    #[test]
    fn a_file_that_is_written_during_imports_that_end_each_other_is_found_as_well() {
        let mut own = OwnWrites::default();
        let mut found = Vec::new();
        for _ in 0..2 * MOST_IN_A_ROW {
            found.extend(own.begins());
            own.note(Path::new("own.py"));
        }
        assert_eq!(found, [PathBuf::from("own.py")]);
    }
}
