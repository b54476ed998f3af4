//! Watching the files of the application, and having it reloaded when they are saved.
//!
//! Watched are the directories of the modules that are loaded, and what the project's file names besides; never the whole
//! project. What has really changed is found out by whoever loads it: here it is only decided when to look.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use globset::{Glob, GlobSet, GlobSetBuilder};
use notify::event::{AccessKind, AccessMode, ModifyKind};
use notify::{Config, ErrorKind, Event, EventKind, PollWatcher, RecommendedWatcher, RecursiveMode, Watcher};
use rebeam_protocol::outside::Answer;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::printer::Printer;
use crate::shell::engine::{Node, Trigger};

/// How long after a change nothing more must come before it is looked at, at first and when more has come.
const QUIET: Duration = Duration::from_millis(20);
const QUIET_IN_A_BURST: Duration = Duration::from_millis(80);

/// How long a burst is waited for at most.
const LONGEST_BURST: Duration = Duration::from_secs(1);

/// How often files are looked at where the system does not tell of changes.
const POLL: Duration = Duration::from_millis(500);

/// How often directories that are not there are looked for.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// A file that changes during so many reloads in a row is written by the application itself.
const MOST_IN_A_ROW: u32 = 5;

/// How files are watched.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) directory: PathBuf,
    /// Patterns of files that are no modules and belong to the application, relative to the project.
    pub(crate) patterns: Vec<String>,
    /// Whether files are looked at now and then, since the system does not tell of changes.
    pub(crate) polls: bool,
}

/// What is watched.
#[derive(Debug)]
pub(crate) struct Patterns(GlobSet);

impl Patterns {
    /// # Errors
    /// The pattern that is none, and why.
    pub(crate) fn new(patterns: &[String]) -> Result<Self, globset::Error> {
        let mut set = GlobSetBuilder::new();
        for pattern in patterns {
            // One without a slash is for any directory of the project.
            let anywhere = if pattern.contains('/') { pattern.clone() } else { format!("**/{pattern}") };
            set.add(Glob::new(&anywhere)?);
        }
        Ok(Patterns(set.build()?))
    }
}

enum News {
    /// The system tells of a change.
    Change(Event),
    /// These files are modules that are loaded.
    Modules(Vec<PathBuf>),
    Trouble(notify::Error),
}

/// Watches until the node ends.
pub(crate) async fn watch(node: Node, options: Options, patterns: Patterns, printer: Printer) {
    let (sender, receiver) = unbounded_channel();
    let backend = match backend(&options, sender.clone()) {
        Ok(backend) => backend,
        Err(error) => return cannot_watch(&printer, &error),
    };
    node.watch_files(move |files| drop(sender.send(News::Modules(files))));
    let mut watched = Watched {
        backend,
        options,
        patterns: patterns.0,
        printer,
        modules: HashSet::new(),
        directories: BTreeSet::new(),
        missing: BTreeSet::new(),
        is_broken: false,
        has_warned: false,
    };
    watched.run(receiver, &node).await;
}

fn cannot_watch(printer: &Printer, error: &notify::Error) {
    printer.warn(&format!("files cannot be watched: {error}; `rebeam reload` reloads by hand"));
    let hint = match error.kind {
        ErrorKind::MaxFilesWatch => {
            "raise `fs.inotify.max_user_watches`, or set `reload = \"poll\"` in the project's file"
        }
        _ => "`reload = \"poll\"` in the project's file has them looked at twice a second",
    };
    printer.say(&format!("hint: {hint}"));
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
    options: Options,
    patterns: GlobSet,
    printer: Printer,
    /// Modules that are loaded.
    modules: HashSet<PathBuf>,
    directories: BTreeSet<PathBuf>,
    /// Those that are to be watched and are not there.
    missing: BTreeSet<PathBuf>,
    /// Whether the last code could not be loaded: whatever is saved may be what it lacks.
    is_broken: bool,
    has_warned: bool,
}

/// Files that have changed and are to be looked at.
#[derive(Debug, Default)]
struct Burst {
    /// All of them.
    paths: BTreeSet<PathBuf>,
    /// Those that are no modules, and belong to the application.
    files: BTreeSet<PathBuf>,
    /// Since when, and until when nothing more must come.
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

/// Files that change while the application is reloaded, time after time: it writes them itself.
#[derive(Debug, Default)]
struct OwnWrites {
    /// Whether a reload is under way.
    is_under_way: bool,
    /// What has changed since it began.
    changed: BTreeSet<PathBuf>,
    in_a_row: BTreeMap<PathBuf, u32>,
    muted: BTreeSet<PathBuf>,
}

impl OwnWrites {
    /// A file has changed; whether that is to be listened to.
    fn note(&mut self, path: &Path) -> bool {
        if self.is_under_way {
            self.changed.insert(path.to_owned());
        }
        !self.muted.contains(path)
    }

    fn begins(&mut self) {
        self.is_under_way = true;
    }

    /// A reload is over: gives what is not listened to any more.
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
        loop {
            let quiet = async {
                match burst.times {
                    Some((_, until)) => tokio::time::sleep_until(until.into()).await,
                    None => std::future::pending().await,
                }
            };
            let again = async {
                match self.missing.is_empty() {
                    false => tokio::time::sleep(LOOK_AGAIN).await,
                    true => std::future::pending().await,
                }
            };
            tokio::select! {
                news = receiver.recv() => match news {
                    Some(News::Change(event)) => self.changed(&event, &mut burst, &mut own),
                    Some(News::Modules(files)) => self.watch_modules(files),
                    Some(News::Trouble(error)) => self.warn(&error),
                    None => return,
                },
                Some(answer) = answers.next() => match answer {
                    Ok(Answer::NotReloaded(_)) => self.is_broken = true,
                    Ok(Answer::Reloaded(reloaded)) => {
                        self.is_broken = false;
                        if reloaded.is_some() {
                            for path in own.ends() {
                                burst.files.remove(&path);
                                self.say_own(&path);
                            }
                        }
                    }
                    _ => {}
                },
                () = again => self.look_for_missing(&mut burst),
                () = quiet => {
                    let Burst { files, .. } = std::mem::take(&mut burst);
                    own.begins();
                    answers.push(node.reload(Trigger { files: files.into_iter().collect(), is_asked_for: false }));
                }
            }
        }
    }

    /// The system tells of a change: whether it is ours.
    fn changed(&mut self, event: &Event, burst: &mut Burst, own: &mut OwnWrites) {
        // Reading changes nothing, and writing is over when the file is closed, of which polling does not tell.
        let is_written = matches!(event.kind, EventKind::Access(AccessKind::Close(AccessMode::Write)));
        let is_being_written = matches!(event.kind, EventKind::Modify(ModifyKind::Data(_) | ModifyKind::Metadata(_)));
        if (event.kind.is_access() && !is_written) || (is_being_written && !self.options.polls) {
            return;
        }
        for path in &event.paths {
            if self.directories.contains(path) && matches!(event.kind, EventKind::Remove(_)) {
                self.missing.insert(path.clone());
            }
            let is_python = path.extension().is_some_and(|extension| extension == "py");
            if self.modules.contains(path) || (self.is_broken && is_python) {
                if own.note(path) {
                    burst.note(path, true);
                }
            } else if self.is_listed(path) {
                if own.note(path) {
                    burst.note(path, false);
                }
            } else if !self.options.patterns.is_empty() && matches!(event.kind, EventKind::Create(_)) && path.is_dir() {
                self.watch_below(path);
            }
        }
    }

    fn is_listed(&self, path: &Path) -> bool {
        path.strip_prefix(&self.options.directory).is_ok_and(|relative| self.patterns.is_match(relative))
            && !path.is_dir()
    }

    /// From now on these are the modules that are loaded.
    fn watch_modules(&mut self, files: Vec<PathBuf>) {
        // Where a path leads over a symbolic link, both its ends are looked at.
        let real = files.iter().filter_map(|file| file.canonicalize().ok()).collect::<Vec<PathBuf>>();
        self.modules = files.into_iter().chain(real).collect();
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
        for directory in parents {
            self.watch_directory(directory);
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

    /// Directories of the project, but for hidden ones, environments and packages of other languages.
    fn watch_below(&mut self, directory: &Path) {
        let mut queue = vec![directory.to_owned()];
        while let Some(directory) = queue.pop() {
            if self.has_warned {
                return;
            }
            let Ok(entries) = std::fs::read_dir(&directory) else { continue };
            for entry in entries.flatten() {
                let name = entry.file_name();
                let is_directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
                let is_other = name.as_encoded_bytes().starts_with(b".") || OTHERS.iter().any(|other| name == *other);
                if is_directory && !is_other && !entry.path().join("pyvenv.cfg").exists() {
                    queue.push(entry.path());
                }
            }
            self.watch_directory(directory);
        }
    }

    /// Directories that were gone and are there again: what is in them may have changed.
    fn look_for_missing(&mut self, burst: &mut Burst) {
        let back: Vec<PathBuf> = self.missing.iter().filter(|directory| directory.is_dir()).cloned().collect();
        for directory in back {
            burst.note(&directory, true);
            self.watch_directory(directory);
        }
    }

    fn say_own(&self, path: &Path) {
        let path = path.strip_prefix(&self.options.directory).unwrap_or(path).display();
        self.printer.warn(&format!(
            "`{path}` changes during every reload, as if the application wrote it: it is not watched any more"
        ));
    }

    fn warn(&mut self, error: &notify::Error) {
        if !std::mem::replace(&mut self.has_warned, true) {
            cannot_watch(&self.printer, error);
        }
    }
}

/// Directories that are never the application's.
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
}
