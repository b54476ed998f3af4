//! `rebeam doctor`: what this machine or container allows, with where each number was found, and what is not as it should
//! be.

use std::path::Path;

use serde_json::json;

use crate::cli::render;
use crate::cli::start::wanted;
use crate::config::{Embed, Project};
use crate::python;
use crate::shell::cgroup::{Limits, Source};
use crate::shell::descriptors;
use crate::shell::{node_dir, room};
use crate::view::failure::Failure;
use crate::view::text::kib;
use crate::view::text::table;

/// One thing that was looked at.
struct Finding {
    what: &'static str,
    value: String,
    from: String,
    is_bad: bool,
}

/// Looks at everything and shows it; fails if something would keep a node from coming up.
pub(super) fn run(
    project: &Project,
    runtime_dir: Option<&Path>,
    python: Option<&Path>,
    as_json: bool,
) -> Result<(), Failure> {
    let mut findings = Vec::new();
    let mut add = |what, value: String, from: String, is_bad| findings.push(Finding { what, value, from, is_bad });
    add("rebeam", env!("CARGO_PKG_VERSION").into(), program(), false);
    let file = project.read();
    match &file {
        Ok(_) => add("project", project.directory.display().to_string(), project.whence(), false),
        Err(failure) => add("project", failure.message.clone(), project.directory.display().to_string(), true),
    }
    let file = file.unwrap_or_default();
    let embed = file.embed.unwrap_or(Embed::Auto);
    match python::find(wanted(python).or(file.python.as_deref()), &project.directory, embed) {
        Ok(found) => {
            let how = found.embed.as_ref().map_or("executed".into(), |library| format!("loads {}", library.display()));
            add("python", found.executable.display().to_string(), how, false);
        }
        Err(failure) => add("python", failure.message.clone(), failure.hints.join("; "), true),
    }
    let place = node_dir::path_for(&project.directory, runtime_dir);
    match node_dir::probe(&place, runtime_dir.is_some()) {
        Ok(shown) => add(
            "control socket",
            shown,
            "`REBEAM_RUNTIME_DIR`, `XDG_RUNTIME_DIR` or the temporary directory".into(),
            false,
        ),
        Err(error) => add("control socket", error.to_string(), place.display().to_string(), true),
    }
    let is_first = std::process::id() == 1;
    add("process 1", if is_first { "yes" } else { "no" }.into(), "own process id".into(), false);
    let limits = Source::default().limits();
    add_limits(&limits, &mut add);
    let descriptors = descriptors::limit();
    add("descriptors", descriptors.to_string(), "`ulimit -Hn`".into(), false);
    add("threads per actor", threads(), "`OMP_NUM_THREADS` and the like; 1 if not set".into(), false);
    add("tables", format!("at most {}", kib(room::for_tables() / 1024)), "a quarter of the memory".into(), false);
    let (actors, bound) = room::actors(&limits, descriptors);
    add("idle actors that fit", actors.to_string(), format!("bounded by {bound}"), actors == 0);
    show(&findings, as_json)
}

fn add_limits(limits: &Limits, add: &mut impl FnMut(&'static str, String, String, bool)) {
    let none = || ("no limit".to_owned(), "control groups".to_owned());
    let said = |known: Option<(String, String)>| known.unwrap_or_else(none);
    let quota = limits.cpu_quota.as_ref().map(|it| (format!("{:.2}", it.value), it.from.display().to_string()));
    let cpus = limits.cpuset.as_ref().map(|it| (it.value.to_string(), it.from.display().to_string()));
    let memory = limits.memory.as_ref().map(|it| (kib(it.value / 1024), it.from.display().to_string()));
    let pids = limits.pids.as_ref().map(|it| (it.value.to_string(), it.from.display().to_string()));
    for (what, known) in [("CPU quota", quota), ("CPUs", cpus), ("memory", memory), ("processes", pids)] {
        let (value, from) = said(known);
        add(what, value, from, false);
    }
}

fn program() -> String {
    std::env::current_exe().map_or_else(|error| error.to_string(), |path| path.display().to_string())
}

fn threads() -> String {
    std::env::var("OMP_NUM_THREADS").unwrap_or_else(|_| "1".into())
}

fn show(findings: &[Finding], as_json: bool) -> Result<(), Failure> {
    if as_json {
        let one = |it: &Finding| json!({ "what": it.what, "value": it.value, "from": it.from, "ok": !it.is_bad });
        render::data(&serde_json::Value::Array(findings.iter().map(one).collect()).to_string());
    } else {
        let row = |it: &Finding| {
            let mark = if it.is_bad { "!" } else { "" };
            vec![mark.to_owned(), it.what.to_owned(), it.value.clone(), it.from.clone()]
        };
        render::data(&table(&["", "WHAT", "VALUE", "FROM"], &findings.iter().map(row).collect::<Vec<_>>()));
    }
    let bad: Vec<&str> = findings.iter().filter(|it| it.is_bad).map(|it| it.what).collect();
    match bad.as_slice() {
        [] => Ok(()),
        bad => Err(Failure::request(format!("something would keep a node from coming up: {}", bad.join(", ")))),
    }
}
