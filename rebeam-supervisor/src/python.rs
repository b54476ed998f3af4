//! Which Python runs the application, and what kind of interpreter it is.
//!
//! It is asked once what it is; the answer is kept by path, size and time of change, so that the next start costs no
//! interpreter of its own. A script in its place (pyenv's shims) is asked every time: it may answer otherwise.

use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rebeam_protocol::hash::fnv1a;
use serde::{Deserialize, Serialize};

use crate::config::Embed;
use crate::view::failure::Failure;

/// The oldest Python that the stable ABI of the module is for.
const OLDEST: (u32, u32) = (3, 11);

/// An interpreter, ready to be started.
#[derive(Clone, Debug)]
pub(crate) struct Python {
    /// The user's own `python`, inside its virtual environment if it has one.
    pub(crate) executable: PathBuf,
    /// The libpython to load; `None`: execute the interpreter.
    pub(crate) embed: Option<PathBuf>,
    /// The application, for interpreters that import it themselves.
    pub(crate) app: Option<OsString>,
    /// How a pipeline is to be run, if one is: `REBEAM_BATCH`.
    pub(crate) batch: Option<String>,
    /// What its processes carry in their environment, by which the keeper finds them.
    pub(crate) mark: Option<OsString>,
}

impl Python {
    /// Whether a pipeline is run.
    pub(crate) fn is_batch(&self) -> bool {
        self.batch.is_some()
    }
}

/// What an interpreter says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct About {
    executable: PathBuf,
    version: (u32, u32),
    /// The libpython that it has loaded, if it is linked against one.
    libpython: Option<PathBuf>,
    /// The libpython that belongs to it, loaded or not.
    library: Option<PathBuf>,
    implementation: String,
}

/// Asked of an interpreter, one answer a line.
const QUESTION: &str = r#"
import os, sys, sysconfig
loaded = ""
with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
    for line in maps:
        path = line.rstrip("\n").partition("/")[2]
        if os.path.basename(path).startswith("libpython"):
            loaded = "/" + path
            break
library = os.path.join(sysconfig.get_config_var("LIBDIR") or "", sysconfig.get_config_var("INSTSONAME") or "")
print(sys.executable, *sys.version_info[:2], loaded, library if os.path.isfile(library) else "", sys.implementation.name, sep="\n")
"#;

/// Finds the interpreter: the one asked for, else the one beside `rebeam`, of the active environment, of the project,
/// on the path.
pub(crate) fn find(wanted: Option<&Path>, project: &Path, embed: Embed) -> Result<Python, Failure> {
    let (path, whence) = match wanted {
        Some(path) => (resolve(path, project)?, "the one asked for"),
        None => candidates(project).into_iter().find(|(path, _)| is_executable(path)).ok_or_else(|| {
            Failure::start("there is no Python").hint("install Python 3.11 or newer, or name one with `--python`")
        })?,
    };
    let about =
        ask_cached(&path).map_err(|failure| failure.hint(format!("it is {whence}; choose another with `--python`")))?;
    if about.implementation != "cpython" || about.version < OLDEST {
        let (major, minor) = about.version;
        return Err(Failure::start(format!(
            "`{}` is {} {major}.{minor}; Re:BEAM needs CPython {}.{} or newer",
            path.display(),
            about.implementation,
            OLDEST.0,
            OLDEST.1
        )));
    }
    let embed = match embed {
        Embed::Auto => about.libpython,
        Embed::Never => None,
        Embed::Always => match about.libpython.or(about.library) {
            Some(library) => Some(library),
            None => {
                return Err(Failure::start(format!("`{}` has no shared libpython to embed", path.display()))
                    .hint("use `embed = \"auto\"`, or install its shared library"));
            }
        },
    };
    Ok(Python { executable: about.executable, embed, app: None, batch: None, mark: None })
}

fn resolve(wanted: &Path, project: &Path) -> Result<PathBuf, Failure> {
    let found = if wanted.components().count() == 1 { on_path(wanted.as_os_str()) } else { Some(project.join(wanted)) };
    match found {
        Some(path) if is_executable(&path) => Ok(path),
        _ => Err(Failure::start(format!("there is no Python at `{}`", wanted.display()))
            .hint("give the path of an interpreter, such as `.venv/bin/python`")),
    }
}

fn candidates(project: &Path) -> Vec<(PathBuf, &'static str)> {
    let beside = std::env::current_exe().ok().map(|program| program.with_file_name("python"));
    let active = std::env::var_os("VIRTUAL_ENV").map(|path| Path::new(&path).join("bin/python"));
    [
        (beside, "the one beside `rebeam`"),
        (active, "the one of `$VIRTUAL_ENV`"),
        (Some(project.join(".venv/bin/python")), "the one of the project's `.venv`"),
        (on_path(OsStr::new("python3")), "`python3` on the path"),
    ]
    .into_iter()
    .filter_map(|(path, whence)| Some((path?, whence)))
    .collect()
}

fn on_path(name: &OsStr) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|directory| directory.join(name)).find(|path| is_executable(path))
}

fn is_executable(path: &Path) -> bool {
    path.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

fn ask_cached(path: &Path) -> Result<About, Failure> {
    let Some(cache) = cache_for(path) else { return ask(path) };
    let cached = std::fs::read_to_string(&cache).ok();
    if let Some(about) = cached.and_then(|text| serde_json::from_str::<About>(&text).ok())
        && about.libpython.as_ref().is_none_or(|library| library.exists())
    {
        return Ok(about);
    }
    let about = ask(path)?;
    if let (Some(directory), Ok(text)) = (cache.parent(), serde_json::to_string(&about)) {
        // A cache that cannot be written costs the question the next time.
        let _ = std::fs::create_dir_all(directory).and_then(|()| std::fs::write(&cache, text));
    }
    Ok(about)
}

/// Where the answer of this very file is kept; `None` for a script.
fn cache_for(path: &Path) -> Option<PathBuf> {
    let mut magic = [0; 4];
    std::fs::File::open(path).ok()?.read_exact(&mut magic).ok()?;
    if magic != *b"\x7fELF" {
        return None;
    }
    let metadata = path.metadata().ok()?;
    let key = format!("{}|{}|{}.{}", path.display(), metadata.len(), metadata.mtime(), metadata.mtime_nsec());
    let name = fnv1a(key.as_bytes());
    let base = match std::env::var_os("XDG_CACHE_HOME").filter(|path| !path.is_empty()) {
        Some(path) => PathBuf::from(path),
        None => PathBuf::from(std::env::var_os("HOME")?).join(".cache"),
    };
    Some(base.join("rebeam").join(format!("python-{name:016x}.json")))
}

fn ask(path: &Path) -> Result<About, Failure> {
    let output = Command::new(path)
        .args(["-I", "-S", "-c", QUESTION])
        .stdin(Stdio::null())
        .output()
        .map_err(|error| Failure::start(format!("failed to run `{}`", path.display())).because(&error))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let lines: Vec<&str> = text.split('\n').collect();
    let [executable, major, minor, loaded, library, implementation, ..] = lines[..] else {
        let failure = Failure::start(format!("`{}` is no working Python", path.display()));
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(if said.is_empty() { failure } else { failure.detail(said) });
    };
    let some = |text: &str| (!text.is_empty()).then(|| PathBuf::from(text));
    // `-S` skips the site module, not the virtual environment's own `python`: a script's answer is believed, else the
    // path that was asked, which is the one inside the environment.
    let is_script = cache_for(path).is_none();
    Ok(About {
        executable: if is_script { executable.into() } else { path.to_owned() },
        version: (major.parse().unwrap_or(0), minor.parse().unwrap_or(0)),
        libpython: some(loaded),
        library: some(library),
        implementation: implementation.to_owned(),
    })
}
