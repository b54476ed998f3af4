//! The file watcher: requests a reload when files of the application are saved.
//!
//! It watches the directories of the modules that the application imports, and files that match the project's `watch`
//! patterns. It only decides *when* to reload; what has changed is found out by comparing digests after the import.

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
use crate::view::text::duration;

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

/// After this many reloads for one file that has changed during the reload before, a further one waits until the file has
/// not changed for a while, which doubles each time. For files that are no modules, shortly afterwards counts as well.
const MOST_IN_A_ROW: u32 = 8;
const SHORTLY: Duration = Duration::from_secs(1);
const FIRST_WAIT: Duration = Duration::from_secs(5);
const MOST_DOUBLINGS: u32 = 9;

/// How many files that may be the fix of a failed import are remembered.
const MOST_OTHERS: usize = 1000;

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

/// Begins to watch; goes on until the node ends.
pub(crate) async fn watch(node: Node, options: Options, patterns: Patterns, printer: Printer) {
    let (sender, mut receiver) = unbounded_channel();
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
        wanted: HashSet::new(),
        has_warned: false,
    };
    let mut burst = Burst::default();
    // Before anybody is told that the node is up: a change from then on is seen.
    if let Some(News::Import(import)) = receiver.recv().await {
        watched.imported(import, &mut burst).await;
    }
    tokio::task::spawn_local(async move { watched.run(receiver, burst, &node).await });
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
    // Without comparing contents, two saves within one second would be one.
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
    /// Files of modules that are imported, or may be.
    modules: HashSet<PathBuf>,
    directories: BTreeSet<PathBuf>,
    /// Directories that should be watched and do not exist.
    missing: BTreeSet<PathBuf>,
    /// Whether the last import failed: then any Python file or directory that appears may be the fix.
    is_broken: bool,
    /// Such files and directories that have changed since the current import began: the fix if it fails.
    others: BTreeSet<PathBuf>,
    /// Names that are imported, and that are no modules yet.
    wanted: HashSet<String>,
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

/// Files that change again and again, as those do that the application writes itself: they are reloaded once they have not
/// changed for a while.
#[derive(Debug, Default)]
struct Restless {
    /// Files that wait, and until when.
    waiting: BTreeMap<PathBuf, Instant>,
    /// How many reloads there were in a row for a file.
    streaks: BTreeMap<PathBuf, u32>,
    is_reloading: bool,
    /// When the last reload was over.
    last: Option<Instant>,
}

impl Restless {
    /// A file has changed; returns whether it has to wait.
    fn note(&mut self, path: &Path, is_module: bool, now: Instant) -> bool {
        let Some(streak) = self.streaks.get_mut(path) else { return false };
        let is_shortly_after = !is_module && self.last.is_some_and(|last| now.duration_since(last) < SHORTLY);
        if !self.is_reloading && !is_shortly_after && !self.waiting.contains_key(path) {
            self.streaks.remove(path);
            return false;
        }
        let surplus = streak.checked_sub(MOST_IN_A_ROW);
        if let Some(surplus) = surplus {
            self.waiting.insert(path.to_owned(), now + FIRST_WAIT * 2_u32.pow(surplus.min(MOST_DOUBLINGS)));
        }
        surplus.is_some()
    }

    /// There is a reload for a file; returns whether a further one may have to wait.
    fn reloads(&mut self, path: &Path) -> bool {
        self.is_reloading = true;
        let streak = self.streaks.entry(path.to_owned()).or_default();
        *streak = streak.saturating_add(1);
        *streak == MOST_IN_A_ROW
    }

    /// All reloads are over.
    fn over(&mut self, now: Instant) {
        self.is_reloading = false;
        self.last = Some(now);
    }

    /// When the next file has waited long enough.
    fn next(&self) -> Option<Instant> {
        self.waiting.values().min().copied()
    }

    /// Files that have waited long enough.
    fn take_due(&mut self, now: Instant) -> Vec<PathBuf> {
        self.waiting.extract_if(.., |_, until| *until <= now).map(|(path, _)| path).collect()
    }
}

impl Watched {
    async fn run(&mut self, mut receiver: UnboundedReceiver<News>, mut burst: Burst, node: &Node) {
        let mut restless = Restless::default();
        let mut answers = FuturesUnordered::new();
        let mut look_again = tokio::time::interval(LOOK_AGAIN);
        look_again.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let quiet = async {
                match burst.times {
                    Some((_, until)) => tokio::time::sleep_until(until.into()).await,
                    None => std::future::pending().await,
                }
                // Before that, nothing is reloaded.
                while !node.is_up() {
                    tokio::time::sleep(QUIET).await;
                }
            };
            let rested = async {
                match restless.next() {
                    Some(until) => tokio::time::sleep_until(until.into()).await,
                    None => std::future::pending().await,
                }
            };
            let is_any_missing = !self.missing.is_empty();
            tokio::select! {
                // A change after the end of a reload is not taken for one before.
                biased;
                Some(_) = answers.next() => if answers.is_empty() {
                    restless.over(Instant::now());
                },
                news = receiver.recv() => match news {
                    Some(News::Change(event)) => self.changed(&event, &mut burst, &mut restless),
                    Some(News::Import(import)) => self.imported(import, &mut burst).await,
                    Some(News::Trouble(error)) => self.warn(&error),
                    None => return,
                },
                _ = look_again.tick(), if is_any_missing => self.look_for_missing(&mut burst),
                () = rested => for path in restless.take_due(Instant::now()) {
                    burst.note(&path, self.modules.contains(&path));
                },
                () = quiet => {
                    let Burst { paths, files, .. } = std::mem::take(&mut burst);
                    for path in &paths {
                        if restless.reloads(path) {
                            self.say_restless(path);
                        }
                    }
                    self.others.clear();
                    self.since = SystemTime::now();
                    answers.push(node.reload(Trigger { files: files.into_iter().collect(), is_asked_for: false }));
                }
            }
        }
    }

    /// The application was imported, or could not be.
    async fn imported(&mut self, import: Import, burst: &mut Burst) {
        match import {
            Import::Loaded { files, missing } => {
                self.is_broken = false;
                self.wanted = missing.into_iter().collect();
                self.others.clear();
                self.watch_modules(files, burst).await;
            }
            Import::Failed => {
                self.is_broken = true;
                for path in std::mem::take(&mut self.others) {
                    self.note_other(&path, burst);
                }
            }
        }
    }

    /// The system reports a change.
    fn changed(&mut self, event: &Event, burst: &mut Burst, restless: &mut Restless) {
        // Reads change nothing, and a write is complete when the file is closed, which polling does not report.
        let is_written = matches!(event.kind, EventKind::Access(AccessKind::Close(AccessMode::Write)));
        let is_being_written = matches!(event.kind, EventKind::Modify(ModifyKind::Data(_) | ModifyKind::Metadata(_)));
        if (event.kind.is_access() && !is_written) || (is_being_written && !self.options.polls) {
            return;
        }
        let now = Instant::now();
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
                if !restless.note(path, true, now) {
                    burst.note(path, true);
                }
            } else if self.is_listed(path) {
                if !restless.note(path, false, now) {
                    burst.note(path, false);
                }
            } else if is_python || is_new_directory(event, path) {
                if !self.options.patterns.is_empty() && !is_python {
                    self.watch_below(path);
                    // Files may have come before it was watched.
                    for file in files_below(path).filter(|file| self.is_listed(file)) {
                        burst.note(&file, false);
                    }
                }
                if self.is_broken || self.is_wanted(path) {
                    if !restless.note(path, true, now) {
                        self.note_other(path, burst);
                    }
                } else if self.others.len() < MOST_OTHERS {
                    self.others.insert(path.clone());
                }
            }
        }
    }

    /// Whether a module is imported by this name that was not there.
    fn is_wanted(&self, path: &Path) -> bool {
        let file = if path.ends_with("__init__.py") { path.parent() } else { Some(path) };
        let name = file.and_then(Path::file_stem).and_then(OsStr::to_str);
        self.wanted.contains("*") || name.is_some_and(|name| self.wanted.contains(name))
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
            let directories = look(move || directories_below(&project)).await.unwrap_or_default();
            self.watch_all(directories);
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

    /// Watches a directory and all below it that may belong to the application.
    fn watch_below(&mut self, directory: &Path) {
        self.watch_all(directories_below(directory));
    }

    fn watch_all(&mut self, directories: Vec<PathBuf>) {
        for directory in directories {
            if self.has_warned {
                return;
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

    fn say_restless(&self, path: &Path) {
        let path = path.strip_prefix(&self.options.directory).unwrap_or(path).display();
        self.printer.warn(&format!(
            "`{path}` changes again and again: it is reloaded once it has not changed for {}",
            duration(FIRST_WAIT)
        ));
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

/// A directory and all below it, except hidden ones, virtual environments and others that never belong to the application.
fn directories_below(directory: &Path) -> Vec<PathBuf> {
    let mut found = vec![directory.to_owned()];
    let mut next = 0;
    while let Some(directory) = found.get(next) {
        next += 1;
        let Ok(entries) = std::fs::read_dir(directory) else { continue };
        for entry in entries.flatten() {
            let is_directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
            if is_directory && !is_other(&entry.file_name()) && !entry.path().join("pyvenv.cfg").exists() {
                found.push(entry.path());
            }
        }
    }
    found
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

    /// How many reloads there are for a file that changes again and again, so long after the reload before.
    fn reloads(times: u32, is_module: bool, after: Duration) -> u32 {
        let (mut restless, mut now, file) = (Restless::default(), Instant::now(), Path::new("file"));
        let mut reloads = 0;
        for _ in 0..times {
            if !restless.note(file, is_module, now) {
                restless.reloads(file);
                reloads += 1;
                if after.is_zero() {
                    // As it is imported.
                    continue;
                }
                restless.over(now);
            }
            now += after;
        }
        reloads
    }

    #[test]
    fn a_file_that_the_application_writes_again_and_again_is_not_reloaded_again_and_again() {
        assert_eq!(reloads(100, true, Duration::ZERO), 8);
        assert_eq!(reloads(100, false, Duration::from_millis(400)), 8);
        // Nor one that every import changes, though nothing else does.
        let (mut restless, start, file) = (Restless::default(), Instant::now(), Path::new("own.py"));
        let (mut now, mut reloads) = (start, 0);
        while now < start + Duration::from_secs(3600) {
            restless.reloads(file);
            reloads += 1;
            if restless.note(file, true, now) {
                restless.over(now);
                now = restless.next().expect("it waits");
                assert_eq!(restless.take_due(now), [file]);
            }
        }
        assert!(reloads < 20, "{reloads} in an hour");
    }

    #[test]
    fn what_is_saved_between_reloads_is_always_reloaded() {
        assert_eq!(reloads(100, true, Duration::from_millis(1)), 100);
        assert_eq!(reloads(100, false, Duration::from_secs(2)), 100);
        // And what waits is reloaded when it has rested.
        let (mut restless, now, file) = (Restless::default(), Instant::now(), Path::new("app.py"));
        for _ in 0..MOST_IN_A_ROW {
            restless.reloads(file);
        }
        assert!(restless.note(file, true, now) && restless.take_due(now).is_empty());
        assert_eq!(restless.take_due(now + FIRST_WAIT), [file]);
    }
}
