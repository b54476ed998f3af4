//! `rebeam`: the supervisor, and the command line that speaks to it. There is no Python in this program.

mod cli;
mod config;
mod printer;
mod python;
mod shell;
mod view;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use clap_complete::env::CompleteEnv;

fn main() -> ExitCode {
    // A shell asks what may come next: `source <(COMPLETE=bash rebeam)`.
    CompleteEnv::with_factory(cli::args::Cli::command).complete();
    match cli::run(&cli::args::Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if !failure.is_told {
                cli::render::failure(&failure);
            }
            failure.code.into()
        }
    }
}
