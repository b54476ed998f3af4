//! The real binaries, from outside: a module per theme.

mod aio;
mod batch;
mod batch_data;
mod batch_stages;
mod bounds;
mod chaos;
mod cli;
mod delivery;
mod executor;
mod files;
mod imports;
mod leftovers;
mod limits;
mod mail;
mod messages;
mod names;
mod otp;
mod output;
mod programs;
mod protocol;
mod python;
mod recycling;
mod reload;
mod run;
mod scripts;
mod supervision;
mod tables;
mod tidy;
mod torture_tables;
mod zygote;

use harness::Project;

/// A project whose tree is `children` (Python), beside the recorder, with the actors of `fixtures/actors.py` at hand.
fn project(children: &str) -> Project {
    tree(&format!("Supervisor([child(Recorder, name='recorder'), Supervisor([{children}], id='s', max_restarts=100)])"))
}

/// Says that something is not to be had here.
#[expect(clippy::print_stderr, reason = "a test that shows nothing says so")]
fn not_tested(what: &str) {
    eprintln!("NOT TESTED: {what} is not to be had here");
}

/// A project with a tree of its own.
fn tree(tree: &str) -> Project {
    let project = Project::new(&format!(
        "import os, sys, time, signal, threading, socket\nimport rebeam\nfrom rebeam import *\nfrom actors import *\n\ntree = {tree}\n"
    ));
    let fixtures = harness::root().join("integration-tests/fixtures/actors.py");
    project.write("actors.py", &std::fs::read_to_string(fixtures).expect("the fixtures are there"));
    project
}
