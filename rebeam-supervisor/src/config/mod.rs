//! From flags, environment and files to what is in force: flag > `REBEAM_*` > project file > default.
//!
//! The file is `rebeam.toml`, or `[tool.rebeam]` in `pyproject.toml`, of the nearest directory upwards. An unknown key
//! is an error with a suggestion: a slip of the pen must not pass.

use std::ffi::OsStr;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::ValueEnum;
use rebeam_protocol::zygote::{Fork, Source, Target};
use serde::Deserialize;

use crate::view::failure::Failure;

/// How long a stop may take when nobody says otherwise: below the 30 s of Kubernetes.
pub(crate) const DEFAULT_GRACE: Duration = Duration::from_secs(25);

/// Whether libpython is loaded into `rebeam-worker`, or the interpreter executed in its place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Embed {
    /// As the interpreter itself is built.
    #[default]
    Auto,
    /// Load its shared library even if it is not linked against it.
    Always,
    /// Execute it.
    Never,
}

/// The project's file.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct ProjectFile {
    /// What `rebeam up` runs when it is not told.
    pub(crate) app: Option<String>,
    /// The interpreter.
    pub(crate) python: Option<PathBuf>,
    /// How it is started.
    pub(crate) embed: Option<Embed>,
    /// Modules that the zygote imports before the application.
    pub(crate) preload: Vec<String>,
    /// Whether actors are forks.
    pub(crate) fork: Fork,
    /// Seconds that a stop may take.
    pub(crate) grace: Option<f64>,
    /// The largest message.
    pub(crate) max_message: Option<String>,
    /// From which level on actors log.
    pub(crate) log_level: Option<String>,
    /// Where `rebeam run` serves health and metrics.
    pub(crate) http: Option<String>,
    /// Names under which it may be asked there.
    pub(crate) http_host: Vec<String>,
    /// How its logs look.
    pub(crate) log_format: Option<LogFormat>,
    /// Where it writes them.
    pub(crate) log_file: Option<PathBuf>,
    /// Seconds that a message may wait before it is not ready.
    pub(crate) longest_wait: Option<f64>,
    /// The collector that it sends spans to.
    pub(crate) otlp: Option<String>,
    /// Which share of traces is sampled.
    pub(crate) trace_share: Option<f64>,
    /// Whether, and how, `rebeam up` sees that a file is saved.
    pub(crate) reload: Option<WatchBy>,
    /// Files beside modules that have it reload.
    pub(crate) watch: Vec<String>,
    /// When new code counts as working.
    pub(crate) probation: ProbationKeys,
    /// Foreign programs that run beside the application, or without one.
    pub(crate) programs: toml::Table,
}

impl ProjectFile {
    /// The name of each program, in the order of the file, and its options as JSON.
    pub(crate) fn programs(&self) -> Result<Vec<(String, String)>, Failure> {
        let as_json = |(name, options): (&String, &toml::Value)| {
            let json = serde_json::to_string(options).map_err(|error| {
                Failure::usage(format!("the program `{name}` of the project's file")).because(&error)
            })?;
            Ok((name.clone(), json))
        };
        self.programs.iter().map(as_json).collect()
    }
}

/// How changes of files are noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub(crate) enum WatchBy {
    /// By what the system tells, or not at all.
    System(bool),
    /// By looking at them.
    Word(WatchWord),
}

/// The one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum WatchWord {
    Poll,
}

/// When new code of an actor counts as working: until then its death undoes the move.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct ProbationKeys {
    /// After so many messages.
    pub(crate) messages: Option<u64>,
    /// After this many seconds.
    pub(crate) seconds: Option<f64>,
}

const KEYS: [&str; 19] = [
    "app",
    "python",
    "embed",
    "preload",
    "fork",
    "grace",
    "max_message",
    "log_level",
    "http",
    "http_host",
    "log_format",
    "log_file",
    "longest_wait",
    "otlp",
    "trace_share",
    "reload",
    "watch",
    "probation",
    "programs",
];

/// How logs look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogFormat {
    /// One JSON object a line.
    #[default]
    Json,
    /// As `up` shows them.
    Text,
}

/// The levels of `logging`.
const LEVELS: [(&str, u16); 5] = [("debug", 10), ("info", 20), ("warning", 30), ("error", 40), ("critical", 50)];

/// A level of `logging`, as its number.
pub(crate) fn parse_level(text: &str) -> Result<u16, Failure> {
    let word = text.to_ascii_lowercase();
    let known = LEVELS.iter().find(|(name, _)| *name == word).map(|(_, level)| *level);
    known.ok_or_else(|| {
        let failure = Failure::usage(format!("there is no log level `{text}`"));
        match nearest(&word, &LEVELS.map(|(name, _)| name)) {
            Some(near) => failure.hint(format!("did you mean `{near}`?")),
            None => failure.hint(format!("levels: {}", LEVELS.map(|(name, _)| name).join(", "))),
        }
    })
}

/// A project: a directory, and the file in it that may say something.
#[derive(Clone, Debug)]
pub(crate) struct Project {
    pub(crate) directory: PathBuf,
    file: Option<PathBuf>,
}

impl Project {
    /// The project of a directory: the nearest one upwards with a file of its own, else the directory itself.
    pub(crate) fn find(start: &Path) -> Self {
        for directory in start.ancestors() {
            for name in ["rebeam.toml", "pyproject.toml"] {
                let file = directory.join(name);
                if file.is_file() {
                    return Project { directory: directory.to_owned(), file: Some(file) };
                }
            }
        }
        Project { directory: start.to_owned(), file: None }
    }

    /// Why it is this one.
    pub(crate) fn whence(&self) -> String {
        match &self.file {
            Some(file) => file.display().to_string(),
            None => "this directory: there is no file of a project upwards".into(),
        }
    }

    /// What its file says. Only who starts a node reads it: a slip in it must not keep one from being stopped.
    pub(crate) fn read(&self) -> Result<ProjectFile, Failure> {
        match &self.file {
            None => Ok(ProjectFile::default()),
            Some(own) if own.ends_with("rebeam.toml") => read(own, |table| Some(table.into())),
            Some(shared) => read(shared, |table| table.get("tool")?.get("rebeam").cloned()),
        }
    }
}

fn read(path: &Path, section: impl Fn(toml::Table) -> Option<toml::Value>) -> Result<ProjectFile, Failure> {
    let name = path.display();
    let text = std::fs::read_to_string(path)
        .map_err(|error| Failure::usage(format!("failed to read `{name}`")).because(&error))?;
    let table: toml::Table =
        text.parse().map_err(|error| Failure::usage(format!("`{name}` is not valid TOML")).because(&error))?;
    let Some(section) = section(table) else { return Ok(ProjectFile::default()) };
    if let Some(keys) = section.as_table() {
        for key in keys.keys() {
            if !KEYS.contains(&key.as_str()) {
                let failure = Failure::usage(format!("`{name}` has the unknown key `{key}`"));
                return Err(match nearest(key, &KEYS) {
                    Some(near) => failure.hint(format!("did you mean `{near}`?")),
                    None => failure.hint(format!("known keys: {}", KEYS.join(", "))),
                });
            }
        }
    }
    section.try_into().map_err(|error: toml::de::Error| Failure::usage(format!("a value in `{name}`")).because(&error))
}

/// The known word that looks most like `word`, if one does.
pub(crate) fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    let score = |other: &&str| strsim::jaro_winkler(word, other);
    let best = known.iter().copied().max_by(|a, b| score(a).total_cmp(&score(b)))?;
    (score(&best) > 0.75).then_some(best)
}

/// Reads a target: `module`, `module:attribute`, `file.py` or `file.py:attribute`.
pub(crate) fn parse_target(
    text: &OsStr,
    directory: &Path,
    preload: Vec<String>,
    fork: Fork,
) -> Result<Target, Failure> {
    let wrong = |what: &str, text: &OsStr| {
        Failure::usage(format!("`{}` is {what}", text.display()))
            .hint("write `module:attribute`, `module`, `file.py` or `file.py:attribute`")
    };
    let bytes = text.as_bytes();
    let (source, attribute) = match bytes.iter().rposition(|byte| *byte == b':') {
        Some(colon) => (OsStr::from_bytes(&bytes[..colon]), Some(OsStr::from_bytes(&bytes[colon + 1..]))),
        None => (text, None),
    };
    let attribute = attribute.map(|it| it.to_str().ok_or_else(|| wrong("no target", text))).transpose()?;
    if source.is_empty() || attribute.is_some_and(str::is_empty) {
        return Err(wrong("no target", text));
    }
    let is_file = source.as_bytes().ends_with(b".py") || source.as_bytes().contains(&b'/');
    let source = match source.to_str().filter(|_| !is_file) {
        Some(name) if !is_module_name(name) && directory.join(name).is_dir() => {
            return Err(wrong("a directory", source));
        }
        Some(name) => Source::Module(name.to_owned()),
        None => {
            let path = directory.join(source);
            if path.is_dir() && !source.as_bytes().ends_with(b".py") {
                return Err(wrong("a directory", source));
            }
            Source::File(path.canonicalize().unwrap_or(path).into_os_string().into_vec())
        }
    };
    Ok(Target { source, attribute: attribute.map(str::to_owned), preload, fork, programs: Vec::new() })
}

fn is_module_name(text: &str) -> bool {
    text.split('.').all(|part| !part.is_empty() && part.chars().all(|it| it.is_alphanumeric() || it == '_'))
}

/// A number of seconds that somebody gave as `what`.
pub(crate) fn parse_seconds(what: &str, seconds: f64) -> Result<Duration, Failure> {
    Duration::try_from_secs_f64(seconds)
        .map_err(|_| Failure::usage(format!("a {what} of `{seconds}` seconds")).hint("give a number of 0 or more"))
}

/// A size that somebody gave as `what`: bytes, or a number with a unit; at most what a length prefix can say.
pub(crate) fn parse_size(what: &str, text: &str) -> Result<usize, Failure> {
    let digits = text.trim_end_matches(|end: char| end.is_alphabetic() || end == ' ');
    let unit: f64 = match text[digits.len()..].trim().to_ascii_uppercase().as_str() {
        "" | "B" => 1.0,
        "KB" => 1e3,
        "MB" => 1e6,
        "GB" => 1e9,
        "KIB" => 1024.0,
        "MIB" => 1024.0 * 1024.0,
        "GIB" => 1024.0 * 1024.0 * 1024.0,
        _ => f64::NAN,
    };
    let size = digits.trim().parse::<f64>().unwrap_or(f64::NAN) * unit;
    if !(1024.0 * 1024.0..=3.9e9).contains(&size) {
        return Err(Failure::usage(format!("a {what} of `{text}`"))
            .hint("give a size from 1MB to 3.9GB, such as `64MB`, or a number of bytes"));
    }
    Ok(size as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_bytes_or_have_a_unit() {
        let size = |text| parse_size("max_message", text).ok();
        assert_eq!(
            [size("2000000"), size("64MB"), size("1.5 MiB")],
            [Some(2_000_000), Some(64_000_000), Some(1_572_864)]
        );
        assert_eq!([size("12"), size("1TB"), size("many"), size("9GB")], [None; 4]);
    }

    #[test]
    fn targets_are_read_as_people_write_them() {
        let check = |text: &str| parse_target(text.as_ref(), Path::new("/nowhere"), Vec::new(), Fork::Auto);
        let target = check("app:tree").expect("a target");
        assert_eq!((target.source, target.attribute), (Source::Module("app".into()), Some("tree".into())));
        assert_eq!(check("a/b.py").expect("a target").source, Source::File("/nowhere/a/b.py".into()));
        assert!(check("app:").is_err());
        assert!(check(":tree").is_err());
        let odd = OsStr::from_bytes(b"caf\xe9.py:tree");
        let target = parse_target(odd, Path::new("/nowhere"), Vec::new(), Fork::Auto).expect("a target");
        assert_eq!(target.source, Source::File(b"/nowhere/caf\xe9.py".to_vec()));
    }

    #[test]
    fn a_slip_of_the_pen_in_the_file_is_named() {
        let directory = tempfile::tempdir().expect("a directory");
        std::fs::write(directory.path().join("rebeam.toml"), "pyton = \"x\"\n").expect("a file");
        let failure = Project::find(directory.path()).read().expect_err("an unknown key");
        assert!(failure.to_string().contains("`pyton`"), "{failure}");
        assert!(failure.to_string().contains("did you mean `python`?"), "{failure}");
    }

    #[test]
    fn the_nearest_file_upwards_counts() {
        let directory = tempfile::tempdir().expect("a directory");
        let inner = directory.path().join("a/b");
        std::fs::create_dir_all(&inner).expect("directories");
        std::fs::write(directory.path().join("pyproject.toml"), "[tool.rebeam]\napp = \"m:t\"\ngrace = 3\n")
            .expect("a file");
        let project = Project::find(&inner);
        assert_eq!(project.directory, directory.path());
        let file = project.read().expect("a valid file");
        assert_eq!((file.app.as_deref(), file.grace), (Some("m:t"), Some(3.0)));
    }
}
