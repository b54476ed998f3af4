//! Rules about the sources that no compiler checks: who may import whom, and how texts are written.
//!
//! A module here is a file of a crate's root, or of `shell` in the supervisor; a directory counts as one module with its
//! parts. Imports are read from the sources as text: every path that begins with `crate::`, tests left out.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// Which modules each module imports.
type Graph = BTreeMap<String, BTreeSet<String>>;

/// The import graph of a crate.
fn imports(krate: &str) -> Graph {
    let root = harness::root().join(krate).join("src");
    let mut sources = Vec::new();
    collect(&root, &mut Vec::new(), &mut sources);
    // What the crate's root hands on belongs to the module that it comes from.
    let handed_on: BTreeMap<String, String> = sources
        .iter()
        .filter(|(path, _)| path.is_empty())
        .flat_map(|(_, text)| paths(text, "pub use "))
        .filter_map(|path| Some((path.last()?.clone(), path.first()?.clone())))
        .collect();
    let mut graph = Graph::new();
    for (path, text) in sources.iter().filter(|(path, _)| !path.is_empty()) {
        let module = module_of(path);
        let imported = paths(text, "crate::").into_iter().map(|mut path| {
            if let Some(first) = path.first_mut()
                && let Some(source) = handed_on.get(first)
            {
                first.clone_from(source);
            }
            module_of(&path)
        });
        let others = imported.filter(|other| *other != module).collect::<Vec<_>>();
        graph.entry(module.clone()).or_default().extend(others);
    }
    let known: BTreeSet<String> = graph.keys().cloned().collect();
    graph.values_mut().for_each(|others| others.retain(|other| known.contains(other)));
    graph
}

/// Every source below a directory, by its module path; the root's is empty.
fn collect(directory: &Path, path: &mut Vec<String>, sources: &mut Vec<(Vec<String>, String)>) {
    for entry in fs::read_dir(directory).expect("a directory").flatten() {
        let file = entry.path();
        let name = file.file_stem().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
        if file.is_dir() {
            path.push(name);
            collect(&file, path, sources);
            path.pop();
        } else if file.extension().is_some_and(|it| it == "rs") && name != "tests" {
            let mut module = path.clone();
            if !["mod", "lib", "main"].contains(&name.as_str()) {
                module.push(name);
            }
            let text = fs::read_to_string(&file).expect("a source");
            let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default().to_owned();
            let code = text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
            sources.push((module, code));
        }
    }
}

/// Two segments within `shell`, one elsewhere.
fn module_of(path: &[String]) -> String {
    let depth = if path.first().is_some_and(|first| first == "shell") { 2 } else { 1 };
    path.iter().take(depth).cloned().collect::<Vec<_>>().join("::")
}

/// Every path behind `prefix`, braces taken apart.
fn paths(text: &str, prefix: &str) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    for (start, _) in text.match_indices(prefix) {
        expand(&text[start + prefix.len()..], &[], &mut found);
    }
    found
}

/// Reads one path, or several in braces; gives what is left of the text.
fn expand<'a>(mut text: &'a str, before: &[String], found: &mut Vec<Vec<String>>) -> &'a str {
    let mut path = before.to_vec();
    loop {
        text = text.trim_start();
        if let Some(mut inner) = text.strip_prefix('{') {
            loop {
                inner = expand(inner, &path, found).trim_start();
                match inner.strip_prefix(',') {
                    Some(rest) => inner = rest,
                    None => return inner.strip_prefix('}').unwrap_or(inner),
                }
            }
        }
        let end = text.find(|it: char| !(it.is_alphanumeric() || it == '_')).unwrap_or(text.len());
        if end == 0 {
            return text;
        }
        path.push(text[..end].to_owned());
        text = &text[end..];
        match text.strip_prefix("::") {
            Some(rest) => text = rest,
            None => {
                let rest = text
                    .strip_prefix(" as ")
                    .map_or(text, |it| it.trim_start_matches(|it: char| it.is_alphanumeric() || it == '_'));
                found.push(path);
                return rest;
            }
        }
    }
}

/// A way from a module back to itself, if there is one.
fn circle(graph: &Graph) -> Option<Vec<String>> {
    fn visit(graph: &Graph, at: &str, way: &mut Vec<String>, done: &mut BTreeSet<String>) -> Option<Vec<String>> {
        if let Some(start) = way.iter().position(|module| module == at) {
            return Some(way[start..].iter().cloned().chain([at.to_owned()]).collect());
        }
        if !done.insert(at.to_owned()) {
            return None;
        }
        way.push(at.to_owned());
        let found = graph.get(at).into_iter().flatten().find_map(|next| visit(graph, next, way, done));
        way.pop();
        found
    }
    let mut done = BTreeSet::new();
    graph.keys().find_map(|module| visit(graph, module, &mut Vec::new(), &mut done))
}

#[test]
fn paths_are_read_as_the_compiler_does() {
    let text = "use crate::shell::{self, output::{Lines, Stream as It}, reaper};\nlet x = crate::view::text::kib(1);";
    let found: Vec<String> = paths(text, "crate::").iter().map(|path| path.join("::")).collect();
    let expected = ["shell::self", "shell::output::Lines", "shell::output::Stream", "shell::reaper", "view::text::kib"];
    assert_eq!(found, expected);
    let graph: Graph = [("a", "b"), ("b", "c"), ("c", "b")].map(|(a, b)| (a.into(), [b.into()].into())).into();
    assert_eq!(circle(&graph), Some(vec!["b".into(), "c".into(), "b".into()]));
}

#[test]
fn no_modules_import_each_other_in_a_circle() {
    for krate in ["rebeam-protocol", "rebeam-sys", "rebeam-store", "rebeam-port", "rebeam-core", "rebeam-supervisor"] {
        let graph = imports(krate);
        assert!(graph.values().any(|others| !others.is_empty()), "{krate}: no imports were found");
        assert_eq!(circle(&graph), None, "{krate}");
    }
}

#[test]
fn the_supervisor_is_in_layers() {
    // Each imports only what stands before it.
    let layers = ["view", "printer", "config", "python", "shell", "cli"];
    let rank = |module: &str| layers.iter().position(|layer| module.split("::").next() == Some(layer));
    for (module, others) in imports("rebeam-supervisor") {
        let Some(own) = rank(&module) else { panic!("`{module}` is in no layer") };
        for other in others {
            assert!(rank(&other) <= Some(own), "`{module}` must not know `{other}`");
        }
    }
}

#[test]
fn the_core_asks_nobody() {
    // It is told the time and what happened (see `rebeam-core/clippy.toml` for single functions).
    let root = harness::root().join("rebeam-core/src");
    let mut sources = Vec::new();
    collect(&root, &mut Vec::new(), &mut sources);
    for (path, text) in sources {
        for outside in
            ["std::fs", "std::net", "std::process", "std::env", "std::thread", "std::os", "std::io", "Instant"]
        {
            assert!(!text.contains(outside), "rebeam-core `{}` uses `{outside}`", path.join("::"));
        }
    }
}
