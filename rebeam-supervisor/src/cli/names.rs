//! `rebeam names`, `rebeam groups`, and the names that a shell completes.

use std::collections::BTreeMap;
use std::ffi::OsStr;

use clap_complete::engine::CompletionCandidate;
use rebeam_protocol::address::Registry;
use rebeam_protocol::outside::{Answer, EntryInfo, MemberKind, SupervisorSort, TreeRequest};
use serde_json::{Value as Json, json};

use crate::cli::client::{Client, unexpected};
use crate::cli::render;
use crate::config::Project;
use crate::view::failure::Failure;
use crate::view::text::table;

/// `rebeam names`: who is called what; with the name of a registry, who holds which of its keys.
pub(crate) fn names(client: &mut Client, registry: Option<&str>, as_json: bool) -> Result<(), Failure> {
    let registry = registry.map_or(Registry::Names, |name| Registry::Named(name.to_owned()));
    let column = if registry == Registry::Names { "NAME" } else { "KEY" };
    let entries = entries(client, &registry)?;
    if as_json {
        let all = entries.iter().map(|entry| {
            json!({ "key": entry.key, "holder": entry.holder, "pid": entry.pid.to_string(), "class": label(&entry.kind) })
        });
        render::data(&all.collect::<Json>().to_string());
        return Ok(());
    }
    let row = |entry: &EntryInfo| {
        vec![entry.key.clone(), entry.holder.clone(), entry.pid.to_string(), label(&entry.kind).to_owned()]
    };
    let rows: Vec<_> = entries.iter().map(row).collect();
    render::data(&table(&[column, "HOLDER", "PID", "CLASS"], &rows));
    Ok(())
}

/// `rebeam groups`: the groups and their members.
pub(crate) fn groups(client: &mut Client, as_json: bool) -> Result<(), Failure> {
    let mut groups: BTreeMap<String, Vec<EntryInfo>> = BTreeMap::new();
    for entry in entries(client, &Registry::Groups)? {
        groups.entry(entry.key.clone()).or_default().push(entry);
    }
    if as_json {
        let member = |entry: &EntryInfo| json!({ "holder": entry.holder, "pid": entry.pid.to_string() });
        let all = groups.iter().map(|(name, members)| (name.clone(), members.iter().map(member).collect::<Json>()));
        render::data(&Json::Object(all.collect()).to_string());
        return Ok(());
    }
    let row = |(name, members): (&String, &Vec<EntryInfo>)| {
        let labels: Vec<&str> = members.iter().map(|entry| entry.holder.as_str()).collect();
        vec![name.clone(), members.len().to_string(), labels.join(" ")]
    };
    let rows: Vec<_> = groups.iter().map(row).collect();
    render::data(&table(&["GROUP", "SIZE", "MEMBERS"], &rows));
    Ok(())
}

fn entries(client: &mut Client, registry: &Registry) -> Result<Vec<EntryInfo>, Failure> {
    match client.expect_of_tree(TreeRequest::Entries(registry.clone()))? {
        Answer::Entries(Some(entries)) => Ok(entries),
        Answer::Entries(None) => {
            Err(Failure::request(format!("there is no registry `{registry}`"))
                .hint("`rebeam tree` shows what there is"))
        }
        other => Err(unexpected(&other)),
    }
}

/// What a holder is: module and class, or what a supervisor does.
fn label(kind: &MemberKind) -> &str {
    match kind {
        MemberKind::Actor(class) => class,
        MemberKind::Supervisor(sort) => sort.word(),
    }
}

/// The names of the running application that begin so, for a shell. Whatever goes wrong: none.
pub(crate) fn complete(start: &OsStr) -> Vec<CompletionCandidate> {
    candidates(start, |_| true)
}

/// The same, of registries.
pub(crate) fn complete_registry(start: &OsStr) -> Vec<CompletionCandidate> {
    candidates(start, |entry| entry.kind == MemberKind::Supervisor(SupervisorSort::Registry))
}

fn candidates(start: &OsStr, fits: impl Fn(&EntryInfo) -> bool) -> Vec<CompletionCandidate> {
    let Ok(here) = std::env::current_dir() else { return Vec::new() };
    let project =
        std::env::var_os("REBEAM_PROJECT").map_or_else(|| Project::find(&here), |path| Project::find(path.as_ref()));
    let runtime_dir = std::env::var_os("REBEAM_RUNTIME_DIR");
    let found = || {
        let mut client = Client::connect(&project, runtime_dir.as_deref().map(AsRef::as_ref))?;
        entries(&mut client, &Registry::Names)
    };
    let start = start.to_string_lossy();
    let names = found().unwrap_or_default().into_iter().filter(|entry| entry.key.starts_with(&*start) && fits(entry));
    names.map(|entry| CompletionCandidate::new(entry.key).help(Some(label(&entry.kind).to_owned().into()))).collect()
}
