//! `rebeam batch`: a pipeline as a node that ends. What it does stands in the Python package `rebeam.batch`; here it is
//! started, watched, and its report made into an exit code and a page.

use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use nix::sys::memfd::{MFdFlags, memfd_create};
use serde_json::{Value, json};

use crate::cli::args::{self, About};
use crate::cli::batch_report;
use crate::cli::render;
use crate::cli::start;
use crate::config::{Embed, Project, ProjectFile};
use crate::printer::Printer;
use crate::python;
use crate::shell::node;
use crate::shell::node_dir;
use crate::shell::signals::Hangup;
use crate::view::exit_code::ExitCode;
use crate::view::failure::Failure;

/// Runs a pipeline, or tells about one.
pub(super) fn run(
    batch: &args::Batch,
    project: &Project,
    runtime_dir: Option<&Path>,
    here: &Path,
) -> Result<(), Failure> {
    if let Some(about) = &batch.about {
        return tell(about, project, here);
    }
    if let Some(most) = &batch.max_failures
        && most.strip_suffix('%').map_or_else(|| most.parse::<u64>().is_err(), |share| share.parse::<f64>().is_err())
    {
        return Err(Failure::usage(format!("`--max-failures {most}`")).hint("write a number, or a share such as `5%`"));
    }
    let is_of_script = start::go_with_parent();
    let file = project.read()?;
    // Programs are for what serves, not for a run that ends.
    let file = ProjectFile { programs: toml::Table::new(), ..file };
    let mut setup = start::setup(&batch.start, &file, project, here, "batch")?;
    // Held open for as long as the run lasts: its processes open it by this number.
    let marks = memfd_create(c"rebeam-batch", MFdFlags::MFD_CLOEXEC)
        .map_err(|error| Failure::start("failed to make shared memory").because(&error))?;
    let journal = journal(batch.journal.as_deref(), project, here);
    let options = json!({
        "attribute": setup.target.attribute,
        // JSON has no bytes.
        "journal": journal.as_os_str().as_bytes(),
        "fresh": batch.fresh,
        "no_journal": batch.no_journal,
        "retry_failed": batch.retry_failed,
        "only": batch.only,
        "max_failures": batch.max_failures,
        "accept_changes": batch.accept_changes,
        "trust_journal": batch.trust_journal,
        "token": token(),
        "marks": format!("/proc/{}/fd/{}", std::process::id(), marks.as_raw_fd()),
        "stdin": format!("/proc/{}/fd/0", std::process::id()),
        "command": (!is_of_script).then(|| command(&setup.target_text, batch)),
    });
    let target = setup.target_text.clone();
    setup.python.batch = Some(options.to_string());
    let mut service = start::service(&batch.start, &file, runtime_dir, Hangup::Stop)?;
    service.drain = Some(("conductor".into(), "drain".into()));
    let (printer, rest) = match batch.json {
        true => Printer::json(None).map_err(|error| Failure::start("failed to print").because(&error))?,
        false => Printer::human(),
    };
    let result = node::run(setup, &node_dir::path_for(&project.directory, runtime_dir), service, &printer);
    let report = printer.take_report();
    printer.finish(&rest);
    let Some(report) = report else {
        result?;
        // Killed within its grace, or told twice: what was done by then is written down.
        let failure = Failure::new(ExitCode::Unfinished, "the pipeline was ended before it could report");
        return Err(failure.hint(format!("it goes on with: rebeam batch {target}")));
    };
    keep(&report, &journal, batch.report.as_deref().map(|path| here.join(path)).as_deref())?;
    result?;
    let state = report["state"].as_str().unwrap_or_default().to_owned();
    match report["code"].as_u64() {
        Some(0) => Ok(()),
        // The report has said it.
        Some(3) => Err(Failure { is_told: true, ..Failure::new(ExitCode::StartFailed, state) }),
        Some(4) => Err(Failure { is_told: true, ..Failure::new(ExitCode::DeadItems, state) }),
        _ => Err(Failure { is_told: true, ..Failure::new(ExitCode::Unfinished, state) }),
    }
}

/// The command that goes on with a run, as a shell reads it.
fn command(target: &str, batch: &args::Batch) -> String {
    let quoted = |word: &str| match word.chars().all(|it| it.is_ascii_alphanumeric() || "-_./:".contains(it)) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    };
    let journal = batch.journal.iter().map(|path| format!(" --journal {}", quoted(&path.display().to_string())));
    std::iter::once(format!("rebeam batch {}", quoted(target))).chain(journal).collect()
}

/// Leaves the report as a page beside the journal, and where it was asked for as JSON.
fn keep(report: &Value, journal: &Path, path: Option<&Path>) -> Result<(), Failure> {
    if let Some(path) = path {
        std::fs::write(path, report.to_string()).map_err(|error| {
            Failure::request(format!("the report could not be written to `{}`", path.display())).because(&error)
        })?;
    }
    let page = journal.join(report["name"].as_str().unwrap_or_default()).join("report.html");
    match batch_report::page(report).and_then(|html| Ok(std::fs::write(&page, html)?)) {
        Ok(()) => render::note(&format!("report: {}", page.display())),
        Err(error) => render::note(&format!("the report could not be drawn: {error}")),
    }
    Ok(())
}

/// What tells this run from every other.
fn token() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("{}.{}", std::process::id(), since.as_nanos())
}

fn journal(chosen: Option<&Path>, project: &Project, here: &Path) -> PathBuf {
    chosen.map_or_else(|| project.directory.join(".rebeam/batch"), |path| here.join(path))
}

/// What stands in a journal: its file is Python's to read.
fn tell(about: &About, project: &Project, here: &Path) -> Result<(), Failure> {
    let (verb, of) = match about {
        About::Status(of) => ("status", of),
        About::Dead(of) => ("dead", of),
        About::Replay(of) => ("replay", of),
        About::Report(of) => ("report", of),
    };
    let file = project.read()?;
    let wanted = std::env::var_os("REBEAM_PYTHON").map(PathBuf::from);
    let wanted = start::wanted(wanted.as_deref()).or(file.python.as_deref());
    let python = python::find(wanted, &project.directory, Embed::Auto)?;
    let mut command = Command::new(&python.executable);
    command.args(["-m", "rebeam.batch", verb, &of.name]).arg(journal(of.journal.as_deref(), project, here));
    command.args(of.json.then_some("--json"));
    let ran = command.status().map_err(|error| Failure::start("failed to run Python").because(&error))?;
    match ran.code() {
        Some(0) => Ok(()),
        _ => Err(Failure { is_told: true, ..Failure::request("the journal could not be read") }),
    }
}
